/* store_internal: what store.c (life, writer thread), store_schema.c (layout, checks) and store_rows.c (the
 * rows of each kind) share. Nobody else includes it but tests. */
#ifndef LEPTON_COORDINATOR_STORE_INTERNAL_H
#define LEPTON_COORDINATOR_STORE_INTERNAL_H

#include <pthread.h>
#include <sqlite3.h>

#include "coordinator/store.h"

#define STORE_NUMBERS 8
#define STORE_TEXTS   4

enum change_kind {
    CHANGE_EPOCHS,
    CHANGE_ANSWER,
    CHANGE_ANSWER_GONE,
    CHANGE_GROUP,
    CHANGE_GROUP_GONE,
    CHANGE_SUSPECT,
    CHANGE_SUSPECT_GONE,
    CHANGE_SETTING,
    CHANGE_SETTING_GONE,
    CHANGE_AUDIT,
    CHANGE_KINDS,
};

/* One row that comes or goes. In the statement of its kind ?1 to ?8 are its numbers, ?9 to ?12 its texts, ?13
 * its digest and ?14 its bytes. */
struct change {
    struct change *next;
    enum change_kind kind;
    uint64_t tag; /* 0: nobody waits for it */
    uint64_t numbers[STORE_NUMBERS];
    const char *texts[STORE_TEXTS]; /* in `memory` */
    uint8_t digest[STORE_DIGEST];
    void *bytes; /* owned */
    size_t size;
    struct store_done done;
    char memory[];
};

enum control { CONTROL_BEGIN, CONTROL_COMMIT, CONTROL_ROLLBACK, CONTROLS };

struct store {
    char *path;
    int lock;  /* descriptor of PATH.lock */
    int ready; /* eventfd */
    sqlite3 *db;
    sqlite3_stmt *statements[CHANGE_KINDS]; /* the writer's */
    sqlite3_stmt *controls[CONTROLS];
    int wal_pages; /* the writer's: in the log since the last checkpoint */
    struct store_run run;
    uint64_t audit_sequence, audit_most; /* the writer's, with the next: the end of the chain */
    uint8_t audit_hash[STORE_AUDIT_HASH];
    pthread_t writer;
    bool started;

    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t wake;
    struct change *queue, **queue_end;
    uint64_t queue_count, queue_bytes;
    struct change *done, **done_end;
    bool closing;
    bool full;
    char full_message[200];
};

/* ---- store.c ---- */
/* Queues a change like *like, whose texts and digest are copied and whose bytes are taken, also when it
 * fails: 503, no memory or too much is queued. */
int store_queue(struct store *s, const struct change *like, struct err *err);

/* Takes PATH.lock: its descriptor, or -1. *unfinished: a restore did not come to its end. */
int store_lock(const char *path, bool *unfinished, struct err *err);
/* The name of a new file is on the disk when its directory is. */
int store_sync_directory(const char *path, struct err *err);

/* ---- store_rows.c ---- */
/* The statement of this kind, prepared and bound. An SQLite result. */
int store_bind(struct store *s, const struct change *c, sqlite3_stmt **out);

uint64_t store_wall_ms(void);

/* ---- store_audit.c ---- */
/* Finds the end of the chain and checks what leads to it. */
int store_audit_begin(struct store *s, uint64_t most, struct err *err);
/* Makes this change the next row of the chain. */
void store_audit_next(struct store *s, struct change *c);
/* Drops the oldest rows when there are too many. An SQLite result. */
int store_audit_trim(struct store *s);

/* ---- store_schema.c ---- */
#define STORE_VERSION (store_versions())
int store_versions(void);
/* Opens PATH for writing, or for reading alone, with everything set that a connection must have. */
int store_connect(sqlite3 **out, const char *path, bool write, struct err *err);
/* Is it ours, not of a later program, and undamaged? */
int store_check(sqlite3 *db, const char *path, struct err *err);
/* Brings the layout to version `to`, each step in a transaction of its own. */
int store_migrate(sqlite3 *db, const char *path, int to, struct err *err);
/* Fills *err with what SQLite says, and how to go on. */
int store_failed(sqlite3 *db, const char *path, const char *what, struct err *err);
/* The one number that the query gives. */
int store_number(sqlite3 *db, const char *sql, uint64_t *out);

#endif
