/* store: what must outlive the coordinator, in one SQLite database.
 *
 *   loop thread ── change, change ──> queue ──> writer thread ── one transaction ──> disk
 *        ^                                            │
 *        └──────── done: it is durable, or refused ───┘ (a descriptor that can be read)
 *
 * Commit, then acknowledge: who promises something to a peer sends the change with a tag, and the promise
 * when the tag comes back. The loop never waits for the disk; while one commit is under way, what comes
 * meanwhile gathers for the next (group commit), so a slow disk makes batches larger, not the queue longer.
 *
 * One connection does all writing and all checkpoints (SQLite 3.40.1 has the WAL-reset bug), in WAL mode with
 * synchronous=FULL. Other processes may read (`lepton backup`, `lepton audit`), never write.
 *
 * What the disk may do, and what follows:
 *   it is full          the changes of that transaction are refused (507), what was there stays; tried again
 *   no memory           the same, with 503
 *   fsync fails, I/O    the process ends (die): the kernel may have dropped the pages, so asking again would
 *                       be told a lie. The next start reads what is on the disk and writes it anew
 *   damaged, not ours   the store is not opened: a backup is put back by a person (docs/operations.md)
 *   power is cut        the last commit that was acknowledged is there, whole
 *
 * It refuses to know what a request, a group or a setting is: rows come and go. No prompt is ever stored. */
#ifndef LEPTON_COORDINATOR_STORE_H
#define LEPTON_COORDINATOR_STORE_H

#include "common/base.h"

#define STORE_DIGEST 16

struct store;

struct store_options {
    const char *path;    /* of the database; PATH-wal, PATH-shm and PATH.lock lie beside it */
    uint64_t max_bytes;  /* of the database; 0: what the disk holds */
    uint64_t audit_rows; /* most that are kept, about; 0: all */
};

/* Opens or makes the database: takes PATH.lock (one coordinator at a time), checks every page, brings the
 * layout up to date, and begins a new run. Errors say how to go on. The store is then read (store_each_*),
 * and after store_start written; from start to close the caller is one thread. */
int store_open(struct store **out, const struct store_options *options, struct err *err);
int store_start(struct store *s, struct err *err);
/* Commits what is queued and closes. Tags that have not come back never will. */
void store_close(struct store **s);

/* Readable when store_next_done has something. */
int store_fd(const struct store *s);
struct store_done {
    uint64_t tag;
    int code; /* 0: durable; 503, 507: refused, nothing of it is there */
    char message[200];
};
bool store_next_done(struct store *s, struct store_done *out);
/* The disk is full: whoever needs the store for a promise should not begin. *err says it, with code 507. */
bool store_is_full(struct store *s, struct err *err);

/* ---- the run ---- */
struct store_run {
    uint64_t number;                     /* 1: the first ever */
    uint64_t epoch_floor, epoch_ceiling; /* no run before gave an epoch above the floor, this one may give up
                                            to the ceiling */
};
struct store_run store_run(const struct store *s);
/* Raises the ceiling. */
int store_epochs(struct store *s, uint64_t ceiling, uint64_t tag, struct err *err);

/* ---- answers: complete idempotent requests, for whoever asks again ---- */
struct store_answer {
    uint64_t row; /* chosen by the caller, above all that there are; never used twice */
    const char *owner, *request;
    uint8_t digest[STORE_DIGEST];
    uint64_t age_ms; /* since it was stored; read only. By the wall clock: as good as that */
    const void *bytes;
    size_t size;
};
/* Takes *bytes (malloc), also when it fails. Another answer of this owner and request is replaced. */
int store_answer(struct store *s, const struct store_answer *a, uint64_t tag, struct err *err);
int store_answer_gone(struct store *s, uint64_t row, struct err *err);
/* The oldest first; what `each` is given is its only during the call. */
int store_each_answer(struct store *s, void (*each)(void *context, const struct store_answer *a),
                      void *context, struct err *err);

/* ---- groups: what must not be forgotten of them ---- */
struct store_group {
    const char *name;
    uint64_t epoch, incarnation; /* the last */
    uint64_t lost_soon;          /* epochs in a row that did not last */
    bool lost, held;
    uint64_t age_ms; /* of its epoch */
};
int store_group(struct store *s, const struct store_group *g, uint64_t tag, struct err *err);
int store_group_gone(struct store *s, const char *name, struct err *err);
/* The one that changed last first. */
int store_each_group(struct store *s, void (*each)(void *context, const struct store_group *g), void *context,
                     struct err *err);

/* ---- suspects: requests under which groups died ---- */
struct store_suspect {
    const char *owner;
    uint8_t digest[STORE_DIGEST]; /* of what it asks */
    uint64_t tokens;
    const char *refused; /* why; empty: it is not */
    const void *losses;
    size_t size;
    uint64_t age_ms; /* read only */
};
/* Takes *losses (malloc), also when it fails. */
int store_suspect(struct store *s, const struct store_suspect *in, struct err *err);
int store_suspect_gone(struct store *s, const char *owner, const uint8_t digest[STORE_DIGEST],
                       struct err *err);
/* The oldest first. */
int store_each_suspect(struct store *s, void (*each)(void *context, const struct store_suspect *in),
                       void *context, struct err *err);

/* ---- settings that were changed at run time ---- */
struct store_setting {
    const char *name;
    bool automatic;
    uint64_t value;
    int64_t configured; /* what the configuration said then: its value, or -1 for automatic */
};
int store_setting(struct store *s, const struct store_setting *in, uint64_t tag, struct err *err);
int store_setting_gone(struct store *s, const char *name, struct err *err);
int store_each_setting(struct store *s, void (*each)(void *context, const struct store_setting *in),
                       void *context, struct err *err);

/* ---- the audit log (store_audit.c): rows in a chain of hashes, without prompts ---- */
#define STORE_AUDIT_HASH 32
struct store_audit {
    uint64_t sequence, at_ms; /* 1, 2, ...; by the wall clock */
    const char *kind, *who, *what;
    uint8_t hash[STORE_AUDIT_HASH]; /* of this row and the one before; read only */
};
int store_audit(struct store *s, const char *kind, const char *who, const char *what, uint64_t tag,
                struct err *err);
/* For another process: every row in order. *broken: the first that does not follow from the one before it; 0:
 * the chain is whole. */
int store_audit_read(const char *path, void (*each)(void *context, const struct store_audit *row),
                     void *context, uint64_t *broken, struct err *err);

#endif
