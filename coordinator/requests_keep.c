/* What is kept of requests that are over, for those who ask again: within bounds of bytes and time, the
 * oldest leaving first; and its form as bytes, in which it outlives the coordinator. */
#include "coordinator/requests_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool requests_too_old(const struct request *q, uint64_t now_us)
{
    return q->kept && now_us > q->kept_until_us;
}

void requests_forget_row(struct requests *r, uint64_t row)
{
    if (r->forgotten_count == r->forgotten_capacity) {
        r->forgotten_capacity = r->forgotten_capacity ? 2 * r->forgotten_capacity : 64;
        r->forgotten = xrealloc(r->forgotten, r->forgotten_capacity * sizeof(*r->forgotten));
    }
    r->forgotten[r->forgotten_count++] = row;
}

bool requests_forgotten(struct requests *r, uint64_t *row)
{
    if (r->forgotten_count == 0)
        return false;
    *row = r->forgotten[--r->forgotten_count];
    return true;
}

static uint64_t log_bytes(const struct request *q)
{
    uint64_t bytes = sizeof(*q) + q->sampling.n * sizeof(*q->choices);
    for (uint64_t i = 0; i < q->sampling.n; i++) {
        const struct request_choice *c = &q->choices[i];
        bytes += c->token_capacity * sizeof(*c->tokens) + c->text.capacity + c->alternatives.capacity +
                 (c->done_text ? strlen(c->done_text) + 1 : 0);
    }
    return bytes;
}

/* Makes room for `bytes` more, the oldest first. False when those that are just read stand in the way. */
static bool make_room(struct requests *r, uint64_t bytes, uint64_t now_us)
{
    while (r->kept_count > 0) {
        struct request *q = &r->slots[r->limit + r->first_kept];
        bool full = r->kept_count == r->limit || r->kept_bytes + bytes > r->keep.bytes;
        if (q->used && !full && !requests_too_old(q, now_us))
            return true;
        if (q->used && q->reader_count > 0)
            return !full;
        if (q->used)
            requests_remove(r, q);
        r->first_kept = (r->first_kept + 1) % r->limit;
        r->kept_count--;
    }
    return bytes <= r->keep.bytes;
}

void requests_expire(struct requests *r, uint64_t now_us)
{
    for (; r->kept_count > 0; r->kept_count--) {
        struct request *q = &r->slots[r->limit + r->first_kept];
        if (q->used && (!requests_too_old(q, now_us) || q->reader_count > 0))
            return;
        if (q->used)
            requests_remove(r, q);
        r->first_kept = (r->first_kept + 1) % r->limit;
    }
}

uint64_t requests_expire_due_us(const struct requests *r)
{
    const struct request *q = r->kept_count > 0 ? &r->slots[r->limit + r->first_kept] : NULL;
    return q && q->used && q->reader_count == 0 ? q->kept_until_us + 1 : UINT64_MAX;
}

uint32_t requests_kept(const struct requests *r)
{
    return r->kept_count;
}

static struct request *next_place(struct requests *r)
{
    return &r->slots[r->limit + (r->first_kept + r->kept_count++) % r->limit];
}

static void keep(struct requests *r, struct request *q, uint64_t bytes, uint64_t now_us)
{
    struct request *k = next_place(r);
    uint32_t slot = (uint32_t)(k - r->slots), old = q->slot;
    uint32_t *link = requests_bucket(r, q);
    free(q->prompt); /* its digest tells whether the same is asked */
    q->prompt = NULL;
    q->prompt_bytes = 0;
    while (*link != old)
        link = &r->slots[*link].next;
    *k = *q;
    *link = k->slot = slot;
    k->kept = true;
    k->kept_until_us = now_us + r->keep.us;
    k->kept_bytes = bytes;
    r->kept_bytes += bytes;
    q->used = false;
    r->free_slots[r->limit - r->count--] = old;
}

bool requests_keeps(struct requests *r, const struct request *q)
{
    bool worth = q->idempotent && q->outcome == OUTCOME_DONE && !request_was_cancelled(q) &&
                 requests_of_key(r, q->client.name, wire_string(q->client_request), 0) == q;
    for (uint64_t i = 0; i < q->sampling.n; i++)
        worth &= q->choices[i].bare == 0 && !q->choices[i].end_unknown;
    return worth && log_bytes(q) <= r->keep.bytes;
}

void requests_leave(struct requests *r, struct request *q, uint64_t now_us)
{
    ASSERT(request_over(q));
    if (q->kept) {
        request_drop_readers(q);
        return;
    }
    uint64_t bytes = log_bytes(q);
    if (!requests_keeps(r, q) || !make_room(r, bytes, now_us)) {
        requests_remove(r, q);
        return;
    }
    request_drop_readers(q);
    keep(r, q, bytes, now_us);
}

void request_not_stored(struct request *q, int code, const char *message)
{
    ASSERT(q->storing && q->outcome == OUTCOME_DONE);
    q->storing = false;
    q->not_stored = true;
    q->row = 0;
    q->outcome = OUTCOME_NONE;
    request_error(q, code, "%s", message);
}

/* ---- as bytes ---- */
/* Little-endian: version, seed, numeric, context (from version 2 on), n, group; then each choice: its tokens
 * (id, bytes of text and of piece, alternatives, log-probability), their alternatives (id, log-probability,
 * bytes), the text of all of them in that order, and its done as it goes over the wire. */
#define RECORD_VERSION 2
#define TOKEN_BYTES    20

static void put_float(struct buffer *out, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    buffer_u32(out, bits);
}

static void put_bytes(struct buffer *out, const void *data, size_t bytes)
{
    buffer_u64(out, bytes);
    if (bytes)
        buffer_append(out, data, bytes);
}

static void put_choice(const struct request *q, const struct request_choice *c, struct buffer *out)
{
    struct buffer frame = {0};
    struct wire_message m;
    uint64_t alternatives = c->alternatives.size / sizeof(struct request_alternative);
    buffer_u64(out, c->token_count);
    for (uint64_t i = 0; i < c->token_count; i++) {
        const struct request_token *t = &c->tokens[i];
        buffer_u32(out, t->id);
        buffer_u32(out, t->text_bytes);
        buffer_u32(out, t->piece_bytes);
        buffer_u32(out, t->top_count);
        put_float(out, t->logprob);
    }
    buffer_u64(out, alternatives);
    for (uint64_t i = 0; i < alternatives; i++) {
        const struct request_alternative *a = (const struct request_alternative *)c->alternatives.data + i;
        buffer_u32(out, a->id);
        put_float(out, a->logprob);
        buffer_u32(out, a->piece_bytes);
    }
    put_bytes(out, c->text.data, c->text.size);
    wire_init(&m, WIRE_DONE);
    m.done = c->done;
    m.done.request = wire_string(q->client_request);
    m.done.group = wire_string(q->group_name[0] ? q->group_name : NULL);
    wire_encode(&m, &frame);
    put_bytes(out, frame.data, frame.size);
    buffer_release(&frame);
}

void request_record(const struct request *q, struct buffer *out)
{
    ASSERT(q->outcome == OUTCOME_DONE);
    buffer_u32(out, RECORD_VERSION);
    buffer_u64(out, q->sampling.seed);
    buffer_u64(out, q->numeric);
    buffer_u64(out, q->context);
    buffer_u32(out, (uint32_t)q->sampling.n);
    put_bytes(out, q->group_name, strlen(q->group_name));
    for (uint64_t i = 0; i < q->sampling.n; i++)
        put_choice(q, &q->choices[i], out);
}

/* A count of things of so many bytes each, which must still be there. */
static int read_count(struct reader *in, const char *what, uint64_t most, uint64_t each, uint64_t *out)
{
    if (reader_u64(in, what, out))
        return -1;
    if (*out > most || *out > reader_left(in) / each)
        return reader_fail(in, "%s: %llu, more than there are", what, (unsigned long long)*out);
    return 0;
}

/* Their texts lie one behind the other: each token's, its piece's, those of its alternatives. */
static int place_texts(struct reader *in, struct request_choice *c, uint64_t alternatives)
{
    struct request_alternative *a = (struct request_alternative *)c->alternatives.data;
    uint64_t at = 0, next = 0;
    for (uint64_t i = 0; i < c->token_count; i++) {
        struct request_token *t = &c->tokens[i];
        t->text_offset = at;
        t->top_offset = next;
        at += (uint64_t)t->text_bytes + t->piece_bytes;
        if (t->top_count > WIRE_MAX_TOP_LOGPROBS || t->top_count > alternatives - next)
            return reader_fail(in, "token %llu: %u alternatives", (unsigned long long)i, t->top_count);
        for (uint32_t k = 0; k < t->top_count; k++, next++) {
            a[next].piece_offset = at;
            at += a[next].piece_bytes;
        }
    }
    if (next != alternatives || at != c->text.size)
        return reader_fail(in, "its texts are %llu bytes, expected %llu", (unsigned long long)c->text.size,
                           (unsigned long long)at);
    return 0;
}

static int read_tokens(struct reader *in, struct request_choice *c)
{
    uint64_t alternatives, bytes;
    const uint8_t *text;
    if (read_count(in, "tokens", REQUEST_MAX_RECORDS, TOKEN_BYTES, &c->token_count))
        return -1;
    c->token_capacity = c->token_count;
    c->tokens = c->token_count ? xcalloc(c->token_count, sizeof(*c->tokens)) : NULL;
    for (uint64_t i = 0; i < c->token_count; i++) {
        struct request_token *t = &c->tokens[i];
        reader_u32(in, "id", &t->id);
        reader_u32(in, "text", &t->text_bytes);
        reader_u32(in, "piece", &t->piece_bytes);
        reader_u32(in, "alternatives", &t->top_count);
        reader_f32(in, "logprob", &t->logprob);
    }
    if (read_count(in, "alternatives", (uint64_t)REQUEST_MAX_RECORDS * WIRE_MAX_TOP_LOGPROBS, 12,
                   &alternatives))
        return -1;
    for (uint64_t i = 0; i < alternatives; i++) {
        struct request_alternative a = {0};
        reader_u32(in, "id", &a.id);
        reader_f32(in, "logprob", &a.logprob);
        reader_u32(in, "piece", &a.piece_bytes);
        buffer_append(&c->alternatives, &a, sizeof(a));
    }
    if (read_count(in, "text", UINT64_MAX, 1, &bytes) || reader_bytes(in, "text", bytes, &text))
        return -1;
    if (bytes)
        buffer_append(&c->text, text, bytes);
    return place_texts(in, c, alternatives);
}

static int read_done(struct reader *in, struct request *q, struct request_choice *c)
{
    struct wire_message m;
    const uint8_t *frame;
    uint64_t bytes;
    if (read_count(in, "done", WIRE_MAX_FRAME, 1, &bytes) || reader_bytes(in, "done", bytes, &frame) ||
        wire_decode(&m, frame, bytes, in->err))
        return -1;
    bool is_done = m.type == WIRE_DONE && m.done.finish_reason.size < sizeof(c->finish_reason);
    if (is_done) {
        c->ended = true;
        c->done = m.done;
        snprintf(c->finish_reason, sizeof(c->finish_reason), "%.*s", (int)m.done.finish_reason.size,
                 m.done.finish_reason.data);
        c->done.finish_reason = wire_string(c->finish_reason);
        c->done_text = wire_str_dup(m.done.text);
        c->done.text.data = c->done_text;
        if (m.done.model.size && !q->only_model)
            q->only_model = wire_str_dup(m.done.model);
        c->done.model = wire_string(q->only_model);
    }
    wire_release(&m);
    return is_done ? 0 : reader_fail(in, "expected a done");
}

/* Fills a request that is nowhere yet; what it holds after an error is for requests_remove's like. */
static int read_record(struct reader *in, struct request *q)
{
    uint32_t version = 0, n = 0;
    uint64_t bytes;
    const uint8_t *name;
    if (reader_u32(in, "version", &version) || version < 1 || version > RECORD_VERSION)
        return reader_fail(in, "version %u, expected 1 to %d", version, RECORD_VERSION);
    if (reader_u64(in, "seed", &q->sampling.seed) || reader_u64(in, "numeric", &q->numeric) ||
        (version > 1 && reader_u64(in, "context", &q->context)) || reader_u32(in, "choices", &n))
        return -1;
    if (n == 0 || n > WIRE_MAX_CHOICES)
        return reader_fail(in, "%u choices", n);
    if (read_count(in, "group", WIRE_MAX_ID, 1, &bytes) || reader_bytes(in, "group", bytes, &name))
        return -1;
    snprintf(q->group_name, sizeof(q->group_name), "%.*s", (int)bytes, (const char *)name);
    q->sampling.n = n;
    q->sampling.has_seed = true;
    q->choices = xcalloc(n, sizeof(*q->choices));
    for (uint32_t i = 0; i < n; i++)
        if (read_tokens(in, &q->choices[i]) || read_done(in, q, &q->choices[i]))
            return -1;
    if (reader_left(in) > 0)
        return reader_fail(in, "%llu bytes behind its end", (unsigned long long)reader_left(in));
    return 0;
}

int requests_restore(struct requests *r, const struct requests_record *in, uint64_t now_us, struct err *err)
{
    struct request q = {.id = "kept",
                        .used = true,
                        .idempotent = true,
                        .kept = true,
                        .group = REQUEST_NO_GROUP,
                        .outcome = OUTCOME_DONE,
                        .row = in->row,
                        .sampling = {.n = 0}};
    struct reader reader;
    reader_init(&reader, in->bytes, in->size, in->request, err);
    snprintf(q.client.name, sizeof(q.client.name), "%s", in->owner);
    snprintf(q.client_request, sizeof(q.client_request), "%s", in->request);
    memcpy(q.digest, in->digest, sizeof(q.digest));
    int code = read_record(&reader, &q);
    uint64_t bytes = log_bytes(&q);
    if (code || in->age_us > r->keep.us || !make_room(r, bytes, now_us)) {
        request_release(&q);
        requests_forget_row(r, in->row);
        return code;
    }
    struct request *k = next_place(r);
    uint32_t *bucket = requests_bucket(r, &q);
    q.slot = (uint32_t)(k - r->slots);
    q.kept_until_us = now_us + r->keep.us - in->age_us;
    q.kept_bytes = bytes;
    r->kept_bytes += bytes;
    q.next = *bucket;
    *bucket = q.slot;
    *k = q;
    return 0;
}
