/* The audit log: who was refused, cut, or changed something, in a chain of hashes: each row's hash covers the
 * row and the hash before it, so that a row that was changed, removed or put in later shows. Rows come at the
 * end alone; the oldest go when there are too many, and the first that is left is then where the chain
 * begins. No prompt and no generated text is ever in it. */
#include "coordinator/store_internal.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

/* Of the chain's end, checked at every start; `lepton audit` checks all of it. */
#define CHECKED_AT_START 10000

static void hash_text(crypto_generichash_state *h, const char *text)
{
    uint64_t bytes = strlen(text);
    crypto_generichash_update(h, (const uint8_t *)&bytes, sizeof(bytes));
    crypto_generichash_update(h, (const uint8_t *)text, bytes);
}

/* BLAKE2b of the hash before, the number and the time as 64 bits (little-endian), and each text behind its
 * length. */
static void chain(const uint8_t before[STORE_AUDIT_HASH], const struct store_audit *row,
                  uint8_t out[STORE_AUDIT_HASH])
{
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, STORE_AUDIT_HASH);
    crypto_generichash_update(&h, before, STORE_AUDIT_HASH);
    crypto_generichash_update(&h, (const uint8_t *)&row->sequence, sizeof(row->sequence));
    crypto_generichash_update(&h, (const uint8_t *)&row->at_ms, sizeof(row->at_ms));
    hash_text(&h, row->kind);
    hash_text(&h, row->who);
    hash_text(&h, row->what);
    crypto_generichash_final(&h, out, STORE_AUDIT_HASH);
}

int store_audit(struct store *s, const char *kind, const char *who, const char *what, uint64_t tag,
                struct err *err)
{
    struct change c = {.kind = CHANGE_AUDIT,
                       .tag = tag,
                       .numbers = {0, store_wall_ms()},
                       .texts = {kind, who, what},
                       .bytes = malloc(STORE_AUDIT_HASH),
                       .size = STORE_AUDIT_HASH};
    if (!c.bytes)
        return err_set_code(err, 503, "no memory for an audit row");
    return store_queue(s, &c, err);
}

void store_audit_next(struct store *s, struct change *c)
{
    struct store_audit row = {.sequence = ++s->audit_sequence,
                              .at_ms = c->numbers[1],
                              .kind = c->texts[0],
                              .who = c->texts[1],
                              .what = c->texts[2]};
    c->numbers[0] = row.sequence;
    chain(s->audit_hash, &row, s->audit_hash);
    memcpy(c->bytes, s->audit_hash, STORE_AUDIT_HASH);
}

/* Reads rows behind `after`, in order, checks the chain, and gives each to `each` (NULL: nobody). The first
 * row is believed when there is none before it to check it by. *broken: the first row that does not fit. */
static int walk(sqlite3 *db, uint64_t after, void (*each)(void *context, const struct store_audit *row),
                void *context, uint64_t *broken)
{
    sqlite3_stmt *row = NULL;
    uint8_t hash[STORE_AUDIT_HASH] = {0}, expected[STORE_AUDIT_HASH];
    uint64_t last = 0;
    bool first = true;
    *broken = 0;
    int rc = sqlite3_prepare_v2(
        db, "SELECT seq, at_ms, kind, who, what, hash FROM audit WHERE seq > ?1 ORDER BY seq", -1, &row,
        NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int64(row, 1, (sqlite3_int64)after);
    while (rc == SQLITE_OK || rc == SQLITE_ROW) {
        if ((rc = sqlite3_step(row)) != SQLITE_ROW)
            break;
        struct store_audit a = {.sequence = (uint64_t)sqlite3_column_int64(row, 0),
                                .at_ms = (uint64_t)sqlite3_column_int64(row, 1),
                                .kind = (const char *)sqlite3_column_text(row, 2),
                                .who = (const char *)sqlite3_column_text(row, 3),
                                .what = (const char *)sqlite3_column_text(row, 4)};
        const void *said = sqlite3_column_blob(row, 5);
        bool whole = a.kind && a.who && a.what && said && sqlite3_column_bytes(row, 5) == STORE_AUDIT_HASH;
        if (whole && !(first && a.sequence > 1)) {
            chain(hash, &a, expected);
            whole = a.sequence == last + 1 && memcmp(expected, said, STORE_AUDIT_HASH) == 0;
        }
        if (!whole && !*broken)
            *broken = a.sequence;
        if (said && sqlite3_column_bytes(row, 5) == STORE_AUDIT_HASH)
            memcpy(hash, said, STORE_AUDIT_HASH);
        memcpy(a.hash, hash, sizeof(a.hash));
        last = a.sequence;
        first = false;
        if (each && a.kind && a.who && a.what)
            each(context, &a);
    }
    sqlite3_finalize(row);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int store_audit_begin(struct store *s, uint64_t most, struct err *err)
{
    sqlite3_stmt *row = NULL;
    uint64_t broken = 0;
    s->audit_most = most;
    int rc =
        sqlite3_prepare_v2(s->db, "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", -1, &row, NULL);
    if (rc == SQLITE_OK && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        const void *hash = sqlite3_column_blob(row, 1);
        s->audit_sequence = (uint64_t)sqlite3_column_int64(row, 0);
        if (hash && sqlite3_column_bytes(row, 1) == STORE_AUDIT_HASH)
            memcpy(s->audit_hash, hash, STORE_AUDIT_HASH);
    }
    sqlite3_finalize(row);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        return store_failed(s->db, s->path, "the audit log cannot be read", err);
    uint64_t after = s->audit_sequence > CHECKED_AT_START ? s->audit_sequence - CHECKED_AT_START : 0;
    if (walk(s->db, after, NULL, NULL, &broken) != SQLITE_OK)
        return store_failed(s->db, s->path, "the audit log cannot be read", err);
    if (broken)
        log_error("store", "%s: the audit log was changed: row %llu does not follow from the one before it",
                  s->path, (unsigned long long)broken);
    return 0;
}

int store_audit_trim(struct store *s)
{
    uint64_t first = 0;
    char sql[200];
    if (!s->audit_most || s->audit_sequence <= s->audit_most)
        return SQLITE_OK;
    int rc = store_number(s->db, "SELECT value FROM state WHERE name = 'audit_gone'", &first);
    uint64_t gone = s->audit_sequence - s->audit_most;
    if (rc != SQLITE_OK || gone < first + s->audit_most / 8 + 1) /* not for every row */
        return rc;
    snprintf(sql, sizeof(sql),
             "BEGIN IMMEDIATE; UPDATE state SET value = %llu WHERE name = 'audit_gone';"
             "DELETE FROM audit WHERE seq <= %llu; COMMIT",
             (unsigned long long)gone, (unsigned long long)gone);
    rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
    if (rc != SQLITE_OK && !sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

int store_audit_read(const char *path, void (*each)(void *context, const struct store_audit *row),
                     void *context, uint64_t *broken, struct err *err)
{
    sqlite3 *db = NULL;
    uint64_t version = 0;
    if (store_connect(&db, path, false, err))
        return -1;
    int code = store_check(db, path, err);
    if (code == 0 && (store_number(db, "PRAGMA user_version", &version) != SQLITE_OK || version < 3))
        code =
            err_set(err, "%s: of layout %llu, which has no audit log yet", path, (unsigned long long)version);
    if (code == 0 && walk(db, 0, each, context, broken) != SQLITE_OK)
        code = store_failed(db, path, "the audit log cannot be read", err);
    sqlite3_close(db);
    return code;
}
