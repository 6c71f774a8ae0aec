#include "coordinator/store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/failpoint.h"
#include "common/log.h"

/* Epochs that a run may give before it asks the disk for more. */
#define EPOCHS 1000
/* What waits for the writer; beyond it the caller keeps its changes and tries again. */
#define QUEUE_CHANGES 65536
#define QUEUE_BYTES   (64u << 20)
/* Pages in the log at which it is written back. */
#define CHECKPOINT_PAGES 1000
/* A full disk is tried again after this, with so many bytes. */
#define PROBE_MS    1000
#define PROBE_BYTES "65536"

/* ---- opening ---- */
static char *beside(const char *path, const char *suffix)
{
    size_t bytes = strlen(path) + strlen(suffix) + 1;
    char *out = malloc(bytes);
    if (out)
        snprintf(out, bytes, "%s%s", path, suffix);
    return out;
}

/* Whoever holds PATH.lock owns the database: it is let go with the process, however that ends. */
int store_lock(const char *of, bool *unfinished, struct err *err)
{
    struct stat st;
    char *path = beside(of, ".lock");
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1, code = -1;
    if (fd < 0)
        err_set(err, "%s.lock: %s", of, path ? strerror(errno) : "no memory");
    else if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        err_set(err, "%s: %s", of,
                errno == EWOULDBLOCK
                    ? "in use by another coordinator, or by `lepton restore` (its .lock is held)"
                    : strerror(errno));
    else if (fstat(fd, &st) != 0)
        err_set(err, "%s: %s", path, strerror(errno));
    else
        code = 0;
    free(path);
    if (code == 0) {
        *unfinished = st.st_size > 0;
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static int take_lock(struct store *s, struct err *err)
{
    bool unfinished;
    s->lock = store_lock(s->path, &unfinished, err);
    if (s->lock >= 0 && unfinished)
        return err_set(err, "%s: `lepton restore` was interrupted: run it again", s->path);
    return s->lock < 0 ? -1 : 0;
}

int store_sync_directory(const char *path, struct err *err)
{
    char *copy = beside(path, "");
    int code = -1, fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0 && fsync(fd) == 0)
        code = 0;
    else
        err_set(err, "%s: its directory cannot be synchronised: %s", path,
                copy ? strerror(errno) : "no memory");
    if (fd >= 0)
        close(fd);
    free(copy);
    return code;
}

/* Made by us and not by SQLite, so that nobody else may read it. */
static int make_file(struct store *s, struct err *err)
{
    struct stat st;
    int fd = open(s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0) {
        close(fd);
        return store_sync_directory(s->path, err);
    }
    if (errno != EEXIST)
        return err_set(err, "%s: %s", s->path, strerror(errno));
    if (lstat(s->path, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(err, "%s: expected a regular file", s->path);
    return 0;
}

static int limit_bytes(struct store *s, uint64_t bytes)
{
    char sql[64];
    uint64_t page = 4096;
    int rc = store_number(s->db, "PRAGMA page_size", &page);
    if (rc != SQLITE_OK || bytes == 0)
        return rc;
    snprintf(sql, sizeof(sql), "PRAGMA max_page_count=%llu", (unsigned long long)(bytes / page + 1));
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL);
}

/* Everything in the log goes into the database, and both to the disk: what a run before could not synchronise
 * is written anew, by pages that the kernel has not seen yet. */
static int write_back(struct store *s)
{
    int rc = sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    s->wal_pages = 0;
    return rc == SQLITE_BUSY ? SQLITE_OK : rc; /* somebody reads: with the next one */
}

static int begin_run(struct store *s, struct err *err)
{
    char sql[200];
    uint64_t runs = 0, ceiling = 0;
    if (store_number(s->db, "SELECT value FROM state WHERE name = 'runs'", &runs) != SQLITE_OK ||
        store_number(s->db, "SELECT value FROM state WHERE name = 'epoch_ceiling'", &ceiling) != SQLITE_OK)
        return store_failed(s->db, s->path, "cannot be read", err);
    s->run =
        (struct store_run){.number = runs + 1, .epoch_floor = ceiling, .epoch_ceiling = ceiling + EPOCHS};
    snprintf(sql, sizeof(sql),
             "BEGIN IMMEDIATE; UPDATE state SET value = %llu WHERE name = 'runs';"
             "UPDATE state SET value = %llu WHERE name = 'epoch_ceiling'; COMMIT",
             (unsigned long long)s->run.number, (unsigned long long)s->run.epoch_ceiling);
    FAILPOINT("store.run");
    if (sqlite3_exec(s->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return store_failed(s->db, s->path, "cannot be written", err);
    FAILPOINT("store.run.committed");
    return 0;
}

static int open_database(struct store *s, const struct store_options *o, struct err *err)
{
    uint64_t version = 0;
    if (store_connect(&s->db, s->path, true, err) || store_check(s->db, s->path, err))
        return -1;
    if (sqlite3_exec(s->db, "PRAGMA journal_mode=WAL", NULL, NULL, NULL) != SQLITE_OK)
        return store_failed(s->db, s->path, "cannot be written", err);
    if (limit_bytes(s, o->max_bytes) != SQLITE_OK || store_number(s->db, "PRAGMA user_version", &version))
        return store_failed(s->db, s->path, "cannot be read", err);
    if (store_migrate(s->db, s->path, STORE_VERSION, err))
        return -1;
    if (version && version < (uint64_t)STORE_VERSION)
        log_info("store", "%s: its layout was brought from version %llu to %d", s->path,
                 (unsigned long long)version, STORE_VERSION);
    FAILPOINT("store.migrated");
    int rc = write_back(s);
    if ((rc & 0xFF) == SQLITE_FULL) /* the log keeps what it has, and its end may have room for this run */
        log_error("store", "%s: the disk is full: its log cannot be written back", s->path);
    else if (rc != SQLITE_OK)
        return store_failed(s->db, s->path, "its log cannot be written back", err);
    if (store_audit_begin(s, o->audit_rows, err))
        return -1;
    return begin_run(s, err);
}

int store_open(struct store **out, const struct store_options *o, struct err *err)
{
    struct store *s = calloc(1, sizeof(*s));
    *out = NULL;
    if (!s)
        return err_set(err, "%s: no memory", o->path);
    s->lock = s->ready = -1;
    s->queue_end = &s->queue;
    s->done_end = &s->done;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->path = beside(o->path, "");
    s->ready = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!s->path || s->ready < 0)
        err_set(err, "%s: %s", o->path, strerror(errno));
    else if (take_lock(s, err) == 0 && make_file(s, err) == 0 && open_database(s, o, err) == 0) {
        *out = s;
        return 0;
    }
    store_close(&s);
    return -1;
}

struct store_run store_run(const struct store *s)
{
    return s->run;
}

int store_fd(const struct store *s)
{
    return s->ready;
}

/* ---- the loop's side ---- */
/* Queues a copy whose strings stand behind it. */
int store_queue(struct store *s, const struct change *like, struct err *err)
{
    size_t texts = 0;
    for (int i = 0; i < STORE_TEXTS; i++)
        texts += like->texts[i] ? strlen(like->texts[i]) + 1 : 0;
    struct change *c = malloc(sizeof(*c) + texts);
    if (!c) {
        free(like->bytes);
        return err_set_code(err, 503, "no memory for what is to be stored");
    }
    *c = *like;
    char *at = c->memory;
    for (int i = 0; i < STORE_TEXTS; i++) {
        size_t bytes = like->texts[i] ? strlen(like->texts[i]) + 1 : 0;
        c->texts[i] = bytes ? memcpy(at, like->texts[i], bytes) : NULL;
        at += bytes;
    }
    pthread_mutex_lock(&s->mutex);
    bool room =
        s->queue_count < QUEUE_CHANGES && (s->queue_count == 0 || s->queue_bytes + c->size <= QUEUE_BYTES);
    if (room) {
        c->next = NULL;
        *s->queue_end = c;
        s->queue_end = &c->next;
        s->queue_count++;
        s->queue_bytes += c->size;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->mutex);
    FAILPOINT("store.queued");
    if (room)
        return 0;
    free(c->bytes);
    free(c);
    return err_set_code(err, 503, "the disk is too slow: too much waits to be stored");
}

bool store_next_done(struct store *s, struct store_done *out)
{
    uint64_t count;
    pthread_mutex_lock(&s->mutex);
    struct change *c = s->done;
    if (c && !(s->done = c->next))
        s->done_end = &s->done;
    if (!s->done && read(s->ready, &count, sizeof(count)) < 0)
        ASSERT(errno == EAGAIN);
    pthread_mutex_unlock(&s->mutex);
    if (!c)
        return false;
    *out = c->done;
    free(c);
    return true;
}

bool store_is_full(struct store *s, struct err *err)
{
    pthread_mutex_lock(&s->mutex);
    bool full = s->full;
    if (full)
        err_set_code(err, 507, "%s", s->full_message);
    pthread_mutex_unlock(&s->mutex);
    return full;
}

/* ---- the writer's side ---- */
static bool no_room(struct store *s, int rc)
{
    int error = sqlite3_system_errno(s->db);
    bool io = (rc & 0xFF) == SQLITE_IOERR && rc != SQLITE_IOERR_FSYNC && rc != SQLITE_IOERR_DIR_FSYNC;
    return (rc & 0xFF) == SQLITE_FULL || (io && (error == ENOSPC || error == EDQUOT));
}

/* The code with which changes are refused that met this; what cannot be lived with ends the process. */
static int refusal(struct store *s, int rc)
{
    if (no_room(s, rc) || (rc & 0xFF) == SQLITE_TOOBIG)
        return 507;
    if ((rc & 0xFF) == SQLITE_NOMEM || rc == SQLITE_IOERR_NOMEM || (rc & 0xFF) == SQLITE_BUSY)
        return 503;
    die("%s: %s (%d, errno %d): what was not acknowledged may be lost; the next start checks the rest",
        s->path, sqlite3_errmsg(s->db), rc, sqlite3_system_errno(s->db));
}

/* BEGIN, COMMIT and ROLLBACK are prepared from the start: going back must need no memory. */
static int control(struct store *s, enum control which)
{
    int rc = sqlite3_step(s->controls[which]);
    int end = sqlite3_reset(s->controls[which]);
    return rc == SQLITE_DONE ? end : rc;
}

static int write_change(struct store *s, struct change *c)
{
    sqlite3_stmt *statement;
    if (c->kind == CHANGE_AUDIT)
        store_audit_next(s, c);
    int rc = store_bind(s, c, &statement);
    if (rc == SQLITE_OK && (rc = sqlite3_step(statement)) == SQLITE_DONE)
        rc = SQLITE_OK;
    if (statement) {
        sqlite3_reset(statement);
        sqlite3_clear_bindings(statement);
    }
    return rc;
}

/* Changes `first` up to `end` in one transaction: all of them, or none. */
static int transaction(struct store *s, struct change *first, const struct change *end)
{
    uint64_t audited = s->audit_sequence;
    uint8_t hash[STORE_AUDIT_HASH];
    memcpy(hash, s->audit_hash, sizeof(hash));
    FAILPOINT("store.begin");
    int rc = control(s, CONTROL_BEGIN);
    for (struct change *c = first; c != end && rc == SQLITE_OK; c = c->next) {
        rc = write_change(s, c);
        FAILPOINT("store.written");
    }
    if (rc == SQLITE_OK) {
        FAILPOINT("store.commit");
        rc = control(s, CONTROL_COMMIT);
    }
    if (rc == SQLITE_OK) {
        FAILPOINT("store.committed");
        return 0;
    }
    s->audit_sequence = audited; /* the chain goes on where it is on the disk */
    memcpy(s->audit_hash, hash, sizeof(hash));
    int code = refusal(s, rc);
    char message[sizeof(first->done.message)];
    snprintf(message, sizeof(message), "%s: %s",
             code == 507 ? "no room in the coordinator's store" : "the coordinator's store cannot be written",
             sqlite3_errmsg(s->db));
    if (!sqlite3_get_autocommit(s->db) && control(s, CONTROL_ROLLBACK) != SQLITE_OK)
        die("%s: what was not committed cannot be taken back: %s", s->path, sqlite3_errmsg(s->db));
    for (struct change *c = first; c != end; c = c->next) {
        c->done.code = code;
        memcpy(c->done.message, message, sizeof(message));
    }
    return code;
}

static void set_full(struct store *s, const char *message)
{
    pthread_mutex_lock(&s->mutex);
    bool before = s->full;
    s->full = message != NULL;
    if (message)
        snprintf(s->full_message, sizeof(s->full_message), "%s", message);
    pthread_mutex_unlock(&s->mutex);
    if (message && !before)
        log_error("store", "%s: %s; what needs it is refused until there is room", s->path, message);
    else if (!message && before)
        log_info("store", "%s: there is room again", s->path);
}

/* Moves the log's pages into the database once there are many. */
static void checkpoint(struct store *s, bool all)
{
    int pages = 0, rc;
    if (!all && s->wal_pages < CHECKPOINT_PAGES)
        return;
    FAILPOINT("store.checkpoint");
    rc = sqlite3_wal_checkpoint_v2(s->db, NULL, all ? SQLITE_CHECKPOINT_TRUNCATE : SQLITE_CHECKPOINT_PASSIVE,
                                   NULL, &pages);
    FAILPOINT("store.checkpointed");
    if (rc == SQLITE_OK)
        s->wal_pages = 0;
    else
        refusal(s, rc); /* no room, no memory, a reader: the log keeps what it has */
}

static int note_pages(void *context, sqlite3 *db, const char *name, int pages)
{
    (void)db, (void)name;
    ((struct store *)context)->wal_pages = pages;
    return SQLITE_OK;
}

/* All in one transaction; when they do not fit, each in its own, so that what fits gets in. */
static void write_batch(struct store *s, struct change *first)
{
    int code = transaction(s, first, NULL);
    if (code && first->next)
        for (struct change *c = first; c; c = c->next) {
            c->done = (struct store_done){0};
            int one = transaction(s, c, c->next);
            code = one ? one : code;
        }
    const char *full = NULL;
    for (struct change *c = first; c; c = c->next) {
        if (c->done.code == 507)
            full = c->done.message;
        if (c->done.code && !c->tag)
            log_warn("store", "%s: a change was lost: %s", s->path, c->done.message);
    }
    if (full || code == 0)
        set_full(s, full);
    int rc = store_audit_trim(s);
    if (rc != SQLITE_OK)
        refusal(s, rc); /* the next commit tries again */
    checkpoint(s, false);
}

/* Is there room again? */
static void probe(struct store *s)
{
    int rc = sqlite3_exec(s->db, "INSERT INTO probe VALUES(zeroblob(" PROBE_BYTES "))", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(s->db, "DELETE FROM probe", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        set_full(s, NULL);
    else
        refusal(s, rc);
    checkpoint(s, false);
}

/* Gives back what somebody waits for, and frees the rest. */
static void give_back(struct store *s, struct change *first)
{
    uint64_t one = 1;
    bool any = false;
    pthread_mutex_lock(&s->mutex);
    for (struct change *c = first, *next; c; c = next) {
        next = c->next;
        free(c->bytes);
        c->bytes = NULL;
        c->next = NULL;
        c->done.tag = c->tag;
        if (!c->tag) {
            free(c);
            continue;
        }
        *s->done_end = c;
        s->done_end = &c->next;
        any = true;
    }
    if (any && write(s->ready, &one, sizeof(one)) < 0)
        ASSERT(errno == EAGAIN); /* it is readable already */
    pthread_mutex_unlock(&s->mutex);
    FAILPOINT("store.given");
}

/* What has gathered; NULL when the store closes and nothing is left, or (*waited) it is time to probe. */
static struct change *take(struct store *s, bool *closing)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PROBE_MS / 1000;
    pthread_mutex_lock(&s->mutex);
    int waited = 0;
    while (!s->queue && !s->closing && waited != ETIMEDOUT)
        waited = s->full ? pthread_cond_timedwait(&s->wake, &s->mutex, &until)
                         : pthread_cond_wait(&s->wake, &s->mutex);
    struct change *first = s->queue;
    s->queue = NULL;
    s->queue_end = &s->queue;
    s->queue_count = s->queue_bytes = 0;
    *closing = s->closing;
    pthread_mutex_unlock(&s->mutex);
    return first;
}

static void *writer(void *context)
{
    struct store *s = context;
    for (bool closing = false; !closing;) {
        struct change *first = take(s, &closing);
        if (first) {
            write_batch(s, first);
            give_back(s, first);
        } else if (!closing) {
            probe(s);
        }
    }
    checkpoint(s, true);
    return NULL;
}

int store_start(struct store *s, struct err *err)
{
    ASSERT(!s->started);
    static const char *const words[] = {
        [CONTROL_BEGIN] = "BEGIN IMMEDIATE", [CONTROL_COMMIT] = "COMMIT", [CONTROL_ROLLBACK] = "ROLLBACK"};
    for (int i = 0; i < CONTROLS; i++)
        if (sqlite3_prepare_v3(s->db, words[i], -1, SQLITE_PREPARE_PERSISTENT, &s->controls[i], NULL))
            return store_failed(s->db, s->path, "cannot be written", err);
    sqlite3_wal_hook(s->db, note_pages, s);
    int rc = pthread_create(&s->writer, NULL, writer, s);
    if (rc)
        return err_set(err, "%s: no thread for the writer: %s", s->path, strerror(rc));
    s->started = true;
    return 0;
}

void store_close(struct store **store)
{
    struct store *s = *store;
    if (!s)
        return;
    if (s->started) {
        pthread_mutex_lock(&s->mutex);
        s->closing = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->mutex);
        pthread_join(s->writer, NULL);
    }
    for (int i = 0; i < CHANGE_KINDS; i++)
        sqlite3_finalize(s->statements[i]);
    for (int i = 0; i < CONTROLS; i++)
        sqlite3_finalize(s->controls[i]);
    sqlite3_close(s->db);
    for (struct change *c = s->done, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    ASSERT(!s->queue);
    if (s->ready >= 0)
        close(s->ready);
    if (s->lock >= 0)
        close(s->lock);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->mutex);
    free(s->path);
    free(s);
    *store = NULL;
}
