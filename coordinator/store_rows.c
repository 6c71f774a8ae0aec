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
};

/* For people and for ages that outlive a process; nothing is ever decided by it within a run. */
static uint64_t wall_ms(void)
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
                       .numbers = {a->row, wall_ms()},
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

/* ---- reading ---- */
/* A wall clock that was set back makes nothing older than it is. */
static uint64_t age_ms(sqlite3_stmt *row, int column)
{
    uint64_t then = (uint64_t)sqlite3_column_int64(row, column), now = wall_ms();
    return now > then ? now - then : 0;
}

int store_each_answer(struct store *s, void (*each)(void *context, const struct store_answer *a),
                      void *context, struct err *err)
{
    sqlite3_stmt *row = NULL;
    int rc = sqlite3_prepare_v2(
        s->db, "SELECT row, stored_ms, owner, request, digest, bytes FROM answers ORDER BY row", -1, &row,
        NULL);
    ASSERT(!s->started);
    while (rc == SQLITE_OK && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        struct store_answer a = {.row = (uint64_t)sqlite3_column_int64(row, 0),
                                 .age_ms = age_ms(row, 1),
                                 .owner = (const char *)sqlite3_column_text(row, 2),
                                 .request = (const char *)sqlite3_column_text(row, 3),
                                 .bytes = sqlite3_column_blob(row, 5),
                                 .size = (size_t)sqlite3_column_bytes(row, 5)};
        const void *digest = sqlite3_column_blob(row, 4);
        rc = SQLITE_OK;
        if (!a.owner || !a.request || !digest || sqlite3_column_bytes(row, 4) != STORE_DIGEST) {
            if (sqlite3_errcode(s->db) == SQLITE_NOMEM)
                rc = SQLITE_NOMEM;
            continue; /* none that we wrote: whoever asks for it gets it made anew */
        }
        memcpy(a.digest, digest, STORE_DIGEST);
        each(context, &a);
    }
    if (rc != SQLITE_DONE)
        store_failed(s->db, s->path, "answers cannot be read", err);
    sqlite3_finalize(row);
    return rc == SQLITE_DONE ? 0 : -1;
}
