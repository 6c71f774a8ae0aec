/* The layout of the database, how it grew, and what is checked before it is believed. */
#include "coordinator/store_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define APPLICATION_ID 0x4C50544E /* "LPTN" */
/* Another process may hold the database for so long, such as somebody with a shell of SQLite. */
#define BUSY_MS 2000
/* The log is cut back to this after it was longer. */
#define LOG_BYTES "4194304"

/* Each entry takes the layout one version further and is never changed once it was released: what a later
 * program needs is a further entry. Rows that belong to a key carry its name as `owner`. */
static const char *const steps[] = {
    "CREATE TABLE state(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "INSERT INTO state VALUES('runs', 0), ('epoch_ceiling', 0);"
    "CREATE TABLE answers(row INTEGER PRIMARY KEY, owner TEXT NOT NULL, request TEXT NOT NULL,"
    "  digest BLOB NOT NULL, stored_ms INTEGER NOT NULL, bytes BLOB NOT NULL, UNIQUE(owner, request));"
    /* what is written to see whether there is room again */
    "CREATE TABLE probe(bytes BLOB);",

    "CREATE TABLE groups(name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, incarnation INTEGER NOT NULL,"
    "  lost_soon INTEGER NOT NULL, lost INTEGER NOT NULL, held INTEGER NOT NULL, since_ms INTEGER NOT NULL,"
    "  changed_ms INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE suspects(owner TEXT NOT NULL, digest BLOB NOT NULL, tokens INTEGER NOT NULL,"
    "  refused TEXT NOT NULL, losses BLOB NOT NULL, changed_ms INTEGER NOT NULL,"
    "  PRIMARY KEY(owner, digest)) WITHOUT ROWID;"
    "CREATE TABLE settings(name TEXT PRIMARY KEY, automatic INTEGER NOT NULL, value INTEGER NOT NULL,"
    "  configured INTEGER NOT NULL) WITHOUT ROWID;",

    "INSERT INTO state VALUES('audit_gone', 0);"
    "CREATE TABLE audit(seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, who TEXT NOT "
    "NULL,"
    "  what TEXT NOT NULL, hash BLOB NOT NULL);"
    "CREATE TRIGGER audit_stays BEFORE UPDATE ON audit"
    "  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;"
    "CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit"
    "  WHEN OLD.seq > (SELECT value FROM state WHERE name = 'audit_gone')"
    "  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;",
};

int store_versions(void)
{
    return (int)ARRAY_LEN(steps);
}

int store_failed(sqlite3 *db, const char *path, const char *what, struct err *err)
{
    int rc = db ? sqlite3_errcode(db) : SQLITE_NOMEM;
    const char *says = db ? sqlite3_errmsg(db) : sqlite3_errstr(rc);
    if (rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB)
        return err_set(err,
                       "%s: %s: damaged, or no database (%s): put a backup back with `lepton restore`, or "
                       "move %s and %s-wal away to begin with nothing",
                       path, what, says, path, path);
    if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED)
        return err_set(err, "%s: %s: another process writes to it (%s): end that process first", path, what,
                       says);
    int system = db && (rc & 0xFF) == SQLITE_IOERR ? sqlite3_system_errno(db) : 0;
    return err_set(err, "%s: %s: %s%s%s", path, what, says, system ? ": " : "",
                   system ? strerror(system) : "");
}

int store_number(sqlite3 *db, const char *sql, uint64_t *out)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *out = (uint64_t)sqlite3_column_int64(statement, 0);
    int end = sqlite3_finalize(statement);
    return rc == SQLITE_ROW ? end : rc == SQLITE_DONE ? SQLITE_CORRUPT : rc;
}

int store_connect(sqlite3 **out, const char *path, bool write, struct err *err)
{
    int flags = (write ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY) | SQLITE_OPEN_FULLMUTEX;
    sqlite3 *db = NULL;
    *out = NULL;
    if (sqlite3_open_v2(path, &db, flags, NULL) != SQLITE_OK)
        goto fail;
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, BUSY_MS);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    /* A reader never checkpoints, and the writer does it itself: SQLite would pass over its errors. */
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (sqlite3_exec(db, "PRAGMA cell_size_check=ON; PRAGMA wal_autocheckpoint=0", NULL, NULL, NULL) !=
        SQLITE_OK)
        goto fail;
    if (write && sqlite3_exec(db, "PRAGMA synchronous=FULL; PRAGMA journal_size_limit=" LOG_BYTES, NULL, NULL,
                              NULL) != SQLITE_OK)
        goto fail;
    *out = db;
    return 0;
fail:
    store_failed(db, path, "cannot be opened", err);
    sqlite3_close(db);
    return -1;
}

static int integrity(sqlite3 *db, const char *path, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, "PRAGMA integrity_check(1)", -1, &statement, NULL), code = -1;
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    const char *text = rc == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    if (!text)
        store_failed(db, path, "cannot be checked", err);
    else if (strcmp(text, "ok") == 0)
        code = 0;
    else
        err_set(err,
                "%s: damaged: %.200s: put a backup back with `lepton restore`, or move %s and %s-wal away to "
                "begin with nothing",
                path, text, path, path);
    sqlite3_finalize(statement);
    return code;
}

int store_check(sqlite3 *db, const char *path, struct err *err)
{
    uint64_t id = 0, version = 0, tables = 0;
    if (store_number(db, "PRAGMA application_id", &id) != SQLITE_OK ||
        store_number(db, "PRAGMA user_version", &version) != SQLITE_OK ||
        store_number(db, "SELECT count(*) FROM sqlite_schema", &tables) != SQLITE_OK)
        return store_failed(db, path, "cannot be read", err);
    if (id != APPLICATION_ID && (id || version || tables))
        return err_set(err, "%s: a database of another program (application_id %" PRIu64 ")", path, id);
    if (version > (uint64_t)STORE_VERSION)
        return err_set(err, "%s: of layout %" PRIu64 ", which a later Lepton wrote; this one knows up to %d",
                       path, version, STORE_VERSION);
    return integrity(db, path, err);
}

static int one_step(sqlite3 *db, int version)
{
    char number[64];
    snprintf(number, sizeof(number), "PRAGMA application_id=%d; PRAGMA user_version=%d", APPLICATION_ID,
             version + 1);
    int rc = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(db, steps[version], NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(db, number, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    return rc;
}

int store_migrate(sqlite3 *db, const char *path, int to, struct err *err)
{
    uint64_t version = 0;
    if (store_number(db, "PRAGMA user_version", &version) != SQLITE_OK)
        return store_failed(db, path, "cannot be read", err);
    ASSERT(to <= STORE_VERSION);
    for (; version < (uint64_t)to; version++)
        if (one_step(db, (int)version) != SQLITE_OK) {
            store_failed(db, path, "its layout cannot be brought up to date", err);
            if (!sqlite3_get_autocommit(db))
                sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
            return -1;
        }
    return 0;
}
