#include "coordinator/store_copy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/failpoint.h"
#include "coordinator/store_internal.h"

/* The backup does not know which epochs were given after it was made. */
#define EPOCHS_SKIPPED 1000000

static int read_facts(sqlite3 *db, const char *path, struct store_facts *out, struct err *err)
{
    if (store_number(db, "PRAGMA user_version", &out->version) != SQLITE_OK ||
        store_number(db, "SELECT value FROM state WHERE name = 'runs'", &out->runs) != SQLITE_OK ||
        store_number(db, "SELECT value FROM state WHERE name = 'epoch_ceiling'", &out->epoch_ceiling) !=
            SQLITE_OK ||
        store_number(db, "SELECT count(*) FROM answers", &out->answers) != SQLITE_OK)
        return store_failed(db, path, "cannot be read", err);
    return 0;
}

/* Opens a database that must be there and be one of ours, and checks every page of it. */
static int open_checked(sqlite3 **db, const char *path, struct store_facts *out, struct err *err)
{
    uint64_t version = 0;
    if (access(path, R_OK) != 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    if (store_connect(db, path, false, err))
        return -1;
    int rc = store_number(*db, "PRAGMA user_version", &version);
    if (store_check(*db, path, err) == 0) {
        if (rc == SQLITE_OK && version > 0 && read_facts(*db, path, out, err) == 0)
            return 0;
        if (version == 0)
            err_set(err, "%s: expected a database of a coordinator, found an empty one", path);
    }
    sqlite3_close(*db);
    *db = NULL;
    return -1;
}

/* Everything of the open database into a new file, which only we may read, on the disk. */
static int copy_into(sqlite3 *db, const char *path, const char *to, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    int fd = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600), code = 0;
    if (fd < 0)
        return err_set(err, "%s: %s", to, strerror(errno));
    int rc = sqlite3_prepare_v2(db, "VACUUM INTO ?1", -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(statement, 1, to, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc != SQLITE_DONE)
        code = store_failed(db, path, "cannot be copied", err);
    sqlite3_finalize(statement);
    if (code == 0 && fsync(fd) != 0)
        code = err_set(err, "%s: %s", to, strerror(errno));
    close(fd);
    return code;
}

int store_backup(const char *path, const char *to, struct store_facts *out, struct err *err)
{
    sqlite3 *db = NULL, *copy = NULL;
    struct store_facts before;
    char *temporary = xasprintf("%s.%ld.part", to, (long)getpid());
    int code = -1;
    if (access(to, F_OK) == 0) {
        err_set(err, "%s: is there already: expected the name of a new file", to);
        goto out;
    }
    if (open_checked(&db, path, &before, err) || copy_into(db, path, temporary, err) ||
        open_checked(&copy, temporary, out, err))
        goto out;
    sqlite3_close(copy);
    copy = NULL;
    if (link(temporary, to) != 0) /* never over another file, not even one that has just come */
        err_set(err, "%s: %s", to, strerror(errno));
    else
        code = store_sync_directory(to, err);
out:
    sqlite3_close(copy);
    sqlite3_close(db);
    unlink(temporary);
    free(temporary);
    return code;
}

/* ---- and back ---- */
/* A word in the lock file, for whoever opens the store before we are done; or none again. */
static int mark(int lock, const char *word, struct err *err)
{
    size_t bytes = strlen(word);
    if (ftruncate(lock, 0) != 0 || pwrite(lock, word, bytes, 0) != (ssize_t)bytes || fsync(lock) != 0)
        return err_set(err, "the lock file cannot be written: %s", strerror(errno));
    return 0;
}

/* Brings the copy up to date, and its epochs above all that may have been given. */
static int prepare(const char *path, uint64_t least, struct store_facts *out, struct err *err)
{
    char sql[128];
    sqlite3 *db = NULL;
    uint64_t ceiling = out->epoch_ceiling > least ? out->epoch_ceiling : least;
    snprintf(sql, sizeof(sql), "UPDATE state SET value = %llu WHERE name = 'epoch_ceiling'",
             (unsigned long long)(ceiling + EPOCHS_SKIPPED));
    int code = store_connect(&db, path, true, err);
    if (code == 0 && sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        code = store_failed(db, path, "cannot be written", err);
    if (code == 0)
        code = store_migrate(db, path, STORE_VERSION, err);
    if (code == 0)
        code = read_facts(db, path, out, err);
    sqlite3_close(db);
    return code;
}

static int move(const char *from, const char *to, struct err *err)
{
    if (rename(from, to) != 0 && errno != ENOENT)
        return err_set(err, "%s: cannot be moved to %s: %s", from, to, strerror(errno));
    return 0;
}

/* Where what is there goes. A restore that was interrupted goes on with the name that it had. */
static char *name_aside(const char *path, int lock, bool unfinished)
{
    struct tm now;
    char text[4096] = "";
    time_t seconds = time(NULL);
    if (unfinished && pread(lock, text, sizeof(text) - 1, 0) > 0 && strncmp(text, path, strlen(path)) == 0)
        return xstrdup(text);
    gmtime_r(&seconds, &now);
    strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &now);
    return xasprintf("%s.old-%s", path, text);
}

/* What is there goes to `old`, its log with it: a database and another one's log must never meet. */
static int put_aside(const char *path, const char *old, struct err *err)
{
    char *log = xasprintf("%s-wal", path), *old_log = xasprintf("%s-wal", old);
    char *index = xasprintf("%s-shm", path);
    /* When it has gone already, what is there now is the empty one of somebody who only read. */
    int code = access(old_log, F_OK) == 0 ? 0 : move(log, old_log, err);
    FAILPOINT("restore.log");
    if (code == 0)
        code = move(path, old, err);
    FAILPOINT("restore.aside");
    if (code == 0 && ((unlink(index) != 0 && errno != ENOENT) || (unlink(log) != 0 && errno != ENOENT)))
        code = err_set(err, "%s: %s", log, strerror(errno));
    free(log);
    free(index);
    free(old_log);
    return code;
}

/* The last epoch that the store to be replaced may have given, as far as it can still be read. */
static uint64_t known_ceiling(const char *path)
{
    struct store_facts facts = {0};
    struct err err;
    sqlite3 *db = NULL;
    if (access(path, R_OK) != 0 || store_connect(&db, path, false, &err))
        return 0;
    bool known = read_facts(db, path, &facts, &err) == 0;
    sqlite3_close(db);
    return known ? facts.epoch_ceiling : 0;
}

int store_restore(const char *from, const char *path, char **aside, struct store_facts *out, struct err *err)
{
    sqlite3 *db = NULL;
    char *fresh = xasprintf("%s.new", path), *old = NULL;
    bool unfinished;
    int code = -1, lock = store_lock(path, &unfinished, err);
    *aside = NULL;
    if (lock < 0)
        goto out;
    old = name_aside(path, lock, unfinished);
    if (!unfinished && access(old, F_OK) == 0) {
        err_set(err, "%s: is there already: try again", old);
        goto out;
    }
    unlink(fresh);
    if (open_checked(&db, from, out, err) || copy_into(db, from, fresh, err) ||
        prepare(fresh, known_ceiling(unfinished && access(path, F_OK) != 0 ? old : path), out, err))
        goto out;
    sqlite3_close(db);
    db = NULL;
    /* From here on it goes forward alone: a coordinator that started now would see half of it. */
    if (open_checked(&db, fresh, out, err) || mark(lock, old, err) || put_aside(path, old, err) ||
        move(fresh, path, err) || store_sync_directory(path, err))
        goto out;
    FAILPOINT("restore.done");
    code = mark(lock, "", err);
    if (code == 0 && access(old, F_OK) == 0)
        *aside = xstrdup(old);
out:
    sqlite3_close(db);
    if (lock >= 0)
        close(lock);
    if (code)
        unlink(fresh);
    free(fresh);
    free(old);
    return code;
}
