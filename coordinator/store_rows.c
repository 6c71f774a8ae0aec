/* The rows of each kind: what a change writes, and what a new run reads. */
#include "coordinator/store_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TEXT_AT   (STORE_NUMBERS + 1)
#define DIGEST_AT (TEXT_AT + STORE_TEXTS)
#define BYTES_AT  (DIGEST_AT + 1)

static const char *const statements[CHANGE_KINDS] = {
    [CHANGE_EPOCHS] = "UPDATE state SET value = ?1 WHERE name = 'epoch_ceiling' AND value < ?1",
    [CHANGE_ANSWER] = "INSERT OR REPLACE INTO answers(row, stored_ms, owner, request, digest, bytes) "
                      "VALUES(?1, ?2, ?9, ?10, ?13, ?14)",
    [CHANGE_ANSWER_GONE] = "DELETE FROM answers WHERE row = ?1",
    [CHANGE_GROUP] = "INSERT OR REPLACE INTO groups(epoch, incarnation, lost_soon, lost, held, since_ms, "
                     "changed_ms, name) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9)",
    [CHANGE_GROUP_GONE] = "DELETE FROM groups WHERE name = ?9",
    [CHANGE_SUSPECT] = "INSERT OR REPLACE INTO suspects(tokens, changed_ms, owner, refused, digest, losses) "
                       "VALUES(?1, ?2, ?9, ?10, ?13, ?14)",
    [CHANGE_SUSPECT_GONE] = "DELETE FROM suspects WHERE owner = ?9 AND digest = ?13",
    [CHANGE_SETTING] = "INSERT OR REPLACE INTO settings(automatic, value, configured, name) "
                       "VALUES(?1, ?2, ?3, ?9)",
    [CHANGE_AUDIT] = "INSERT INTO audit(seq, at_ms, kind, who, what, hash) VALUES(?1, ?2, ?9, ?10, ?11, ?14)",
    [CHANGE_SETTING_GONE] = "DELETE FROM settings WHERE name = ?9",
};

/* For people and for ages that outlive a process; nothing is ever decided by it within a run. */
uint64_t store_wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int store_bind(struct store *s, const struct change *c, sqlite3_stmt **out)
{
    sqlite3_stmt **statement = &s->statements[c->kind];
    int rc = SQLITE_OK;
    if (!*statement)
        rc = sqlite3_prepare_v3(s->db, statements[c->kind], -1, SQLITE_PREPARE_PERSISTENT, statement, NULL);
    int count = rc == SQLITE_OK ? sqlite3_bind_parameter_count(*statement) : 0;
    for (int i = 1; i <= count && rc == SQLITE_OK; i++) {
        if (i < TEXT_AT)
            rc = sqlite3_bind_int64(*statement, i, (sqlite3_int64)c->numbers[i - 1]);
        else if (i < DIGEST_AT)
            rc = sqlite3_bind_text(*statement, i, c->texts[i - TEXT_AT], -1, SQLITE_STATIC);
        else if (i == DIGEST_AT)
            rc = sqlite3_bind_blob(*statement, i, c->digest, sizeof(c->digest), SQLITE_STATIC);
        else
            rc = sqlite3_bind_blob64(*statement, i, c->bytes, c->size, SQLITE_STATIC);
    }
    *out = *statement;
    return rc;
}

int store_epochs(struct store *s, uint64_t ceiling, uint64_t tag, struct err *err)
{
    return store_queue(s, &(struct change){.kind = CHANGE_EPOCHS, .tag = tag, .numbers = {ceiling}}, err);
}

int store_answer(struct store *s, const struct store_answer *a, uint64_t tag, struct err *err)
{
    struct change c = {.kind = CHANGE_ANSWER,
                       .tag = tag,
                       .numbers = {a->row, store_wall_ms()},
                       .texts = {a->owner, a->request},
                       .bytes = (void *)(uintptr_t)a->bytes,
                       .size = a->size};
    memcpy(c.digest, a->digest, sizeof(c.digest));
    return store_queue(s, &c, err);
}

int store_answer_gone(struct store *s, uint64_t row, struct err *err)
{
    return store_queue(s, &(struct change){.kind = CHANGE_ANSWER_GONE, .numbers = {row}}, err);
}

int store_group(struct store *s, const struct store_group *g, uint64_t tag, struct err *err)
{
    uint64_t now = store_wall_ms();
    struct change c = {.kind = CHANGE_GROUP,
                       .tag = tag,
                       .numbers = {g->epoch, g->incarnation, g->lost_soon, g->lost, g->held,
                                   now > g->age_ms ? now - g->age_ms : 0, now},
                       .texts = {g->name}};
    return store_queue(s, &c, err);
}

int store_group_gone(struct store *s, const char *name, struct err *err)
{
    return store_queue(s, &(struct change){.kind = CHANGE_GROUP_GONE, .texts = {name}}, err);
}

int store_suspect(struct store *s, const struct store_suspect *in, struct err *err)
{
    struct change c = {.kind = CHANGE_SUSPECT,
                       .numbers = {in->tokens, store_wall_ms()},
                       .texts = {in->owner, in->refused},
                       .bytes = (void *)(uintptr_t)in->losses,
                       .size = in->size};
    memcpy(c.digest, in->digest, sizeof(c.digest));
    return store_queue(s, &c, err);
}

int store_suspect_gone(struct store *s, const char *owner, const uint8_t digest[STORE_DIGEST],
                       struct err *err)
{
    struct change c = {.kind = CHANGE_SUSPECT_GONE, .texts = {owner}};
    memcpy(c.digest, digest, sizeof(c.digest));
    return store_queue(s, &c, err);
}

int store_setting(struct store *s, const struct store_setting *in, uint64_t tag, struct err *err)
{
    struct change c = {.kind = CHANGE_SETTING,
                       .tag = tag,
                       .numbers = {in->automatic, in->value, (uint64_t)in->configured},
                       .texts = {in->name}};
    return store_queue(s, &c, err);
}

int store_setting_gone(struct store *s, const char *name, struct err *err)
{
    return store_queue(s, &(struct change){.kind = CHANGE_SETTING_GONE, .texts = {name}}, err);
}

/* ---- reading ---- */
/* A wall clock that was set back makes nothing older than it is. */
static uint64_t age_ms(sqlite3_stmt *row, int column)
{
    uint64_t then = (uint64_t)sqlite3_column_int64(row, column), now = store_wall_ms();
    return now > then ? now - then : 0;
}

/* Steps through what the query gives; each row goes to `take`, which may pass over it. */
static int each_row(struct store *s, const char *sql,
                    void (*take)(sqlite3_stmt *row, void *each, void *context), void *each, void *context,
                    struct err *err)
{
    sqlite3_stmt *row = NULL;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &row, NULL);
    ASSERT(!s->started);
    if (rc == SQLITE_OK)
        while ((rc = sqlite3_step(row)) == SQLITE_ROW)
            take(row, each, context);
    if (rc != SQLITE_DONE)
        store_failed(s->db, s->path, "cannot be read", err);
    sqlite3_finalize(row);
    return rc == SQLITE_DONE ? 0 : -1;
}

/* A digest in this column; false: that is none that we wrote. */
static bool take_digest(sqlite3_stmt *row, int column, uint8_t out[STORE_DIGEST])
{
    const void *digest = sqlite3_column_blob(row, column);
    if (!digest || sqlite3_column_bytes(row, column) != STORE_DIGEST)
        return false;
    memcpy(out, digest, STORE_DIGEST);
    return true;
}

static const char *text(sqlite3_stmt *row, int column)
{
    return (const char *)sqlite3_column_text(row, column);
}

static uint64_t number(sqlite3_stmt *row, int column)
{
    return (uint64_t)sqlite3_column_int64(row, column);
}

static void take_answer(sqlite3_stmt *row, void *each, void *context)
{
    void (**call)(void *, const struct store_answer *) = each;
    struct store_answer a = {.row = number(row, 0),
                             .age_ms = age_ms(row, 1),
                             .owner = text(row, 2),
                             .request = text(row, 3),
                             .bytes = sqlite3_column_blob(row, 5),
                             .size = (size_t)sqlite3_column_bytes(row, 5)};
    if (a.owner && a.request && take_digest(row, 4, a.digest))
        (*call)(context, &a);
}

int store_each_answer(struct store *s, void (*each)(void *context, const struct store_answer *a),
                      void *context, struct err *err)
{
    return each_row(s, "SELECT row, stored_ms, owner, request, digest, bytes FROM answers ORDER BY row",
                    take_answer, &each, context, err);
}

static void take_group(sqlite3_stmt *row, void *each, void *context)
{
    void (**call)(void *, const struct store_group *) = each;
    struct store_group g = {.name = text(row, 0),
                            .epoch = number(row, 1),
                            .incarnation = number(row, 2),
                            .lost_soon = number(row, 3),
                            .lost = number(row, 4) != 0,
                            .held = number(row, 5) != 0,
                            .age_ms = age_ms(row, 6)};
    if (g.name)
        (*call)(context, &g);
}

int store_each_group(struct store *s, void (*each)(void *context, const struct store_group *g), void *context,
                     struct err *err)
{
    return each_row(s,
                    "SELECT name, epoch, incarnation, lost_soon, lost, held, since_ms FROM groups "
                    "ORDER BY changed_ms DESC",
                    take_group, &each, context, err);
}

static void take_suspect(sqlite3_stmt *row, void *each, void *context)
{
    void (**call)(void *, const struct store_suspect *) = each;
    struct store_suspect in = {.owner = text(row, 0),
                               .tokens = number(row, 2),
                               .refused = text(row, 3),
                               .losses = sqlite3_column_blob(row, 4),
                               .size = (size_t)sqlite3_column_bytes(row, 4),
                               .age_ms = age_ms(row, 5)};
    if (in.owner && in.refused && take_digest(row, 1, in.digest))
        (*call)(context, &in);
}

int store_each_suspect(struct store *s, void (*each)(void *context, const struct store_suspect *in),
                       void *context, struct err *err)
{
    return each_row(s,
                    "SELECT owner, digest, tokens, refused, losses, changed_ms FROM suspects "
                    "ORDER BY changed_ms",
                    take_suspect, &each, context, err);
}

static void take_setting(sqlite3_stmt *row, void *each, void *context)
{
    void (**call)(void *, const struct store_setting *) = each;
    struct store_setting in = {.name = text(row, 0),
                               .automatic = number(row, 1) != 0,
                               .value = number(row, 2),
                               .configured = sqlite3_column_int64(row, 3)};
    if (in.name)
        (*call)(context, &in);
}

int store_each_setting(struct store *s, void (*each)(void *context, const struct store_setting *in),
                       void *context, struct err *err)
{
    return each_row(s, "SELECT name, automatic, value, configured FROM settings", take_setting, &each,
                    context, err);
}
