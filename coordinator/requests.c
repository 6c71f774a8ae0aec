#include "coordinator/requests_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct requests *requests_new(uint32_t limit, const struct requests_keep *keep)
{
    ASSERT(limit > 0 && limit < NONE / 4);
    struct requests *r = xcalloc(1, sizeof(*r));
    r->limit = limit;
    r->keep = *keep;
    r->slots = xcalloc(requests_slots(r), sizeof(*r->slots));
    r->free_slots = xcalloc(limit, sizeof(*r->free_slots));
    for (uint32_t i = 0; i < limit; i++)
        r->free_slots[i] = limit - 1 - i;
    for (r->bucket_count = 64; r->bucket_count < limit; r->bucket_count *= 2)
        ;
    r->buckets = xcalloc(r->bucket_count, sizeof(*r->buckets));
    for (uint32_t i = 0; i < r->bucket_count; i++)
        r->buckets[i] = NONE;
    return r;
}

void requests_free(struct requests **r)
{
    if (!*r)
        return;
    for (uint32_t i = 0; i < requests_slots(*r); i++)
        if ((*r)->slots[i].used)
            requests_remove(*r, &(*r)->slots[i]);
    free((*r)->slots);
    free((*r)->free_slots);
    free((*r)->buckets);
    free((*r)->forgotten);
    free(*r);
    *r = NULL;
}

static uint64_t hash_bytes(uint64_t h, const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (uint8_t)data[i]) * 0x100000001B3ull; /* FNV-1a */
    return h;
}

/* `key`: the name of a key, for idempotent requests; NULL: the connection counts. */
static uint32_t *bucket_of(struct requests *r, const struct peer *client, const char *key, const char *id,
                           size_t bytes)
{
    uint64_t h = key ? hash_bytes(0x84222325CBF29CE4ull, key, strlen(key)) : peer_hash(client);
    h = hash_bytes(h, id, bytes);
    return &r->buckets[(h ^ h >> 32) & (r->bucket_count - 1)];
}

uint32_t *requests_bucket(struct requests *r, const struct request *q)
{
    return bucket_of(r, &q->client, q->idempotent ? q->client.name : NULL, q->client_request,
                     strlen(q->client_request));
}

struct request *requests_of_key(struct requests *r, const char *name, struct wire_str id, uint64_t now_us)
{
    for (uint32_t i = *bucket_of(r, NULL, name, id.data, id.size); i != NONE; i = r->slots[i].next) {
        struct request *q = &r->slots[i];
        if (q->idempotent && wire_str_is(id, q->client_request) && strcmp(name, q->client.name) == 0)
            return requests_too_old(q, now_us) && q->reader_count == 0 ? NULL : q;
    }
    return NULL;
}

struct request *requests_of_client(struct requests *r, const struct peer *client, struct wire_str id)
{
    for (uint32_t i = *bucket_of(r, client, NULL, id.data, id.size); i != NONE; i = r->slots[i].next) {
        struct request *q = &r->slots[i];
        if (!q->idempotent && wire_str_is(id, q->client_request) && peer_equal(client, &q->client))
            return q;
    }
    struct request *q = requests_of_key(r, client->name, id, 0);
    return q && !q->kept ? q : NULL;
}

/* "r" + (round * limit + slot): the slot is in the number, and no number comes twice. NULL: no such id. */
static struct request *slot_of(const struct requests *r, struct wire_str id)
{
    if (id.size < 2 || id.size > 20 || id.data[0] != 'r')
        return NULL;
    uint64_t number = 0;
    for (uint32_t i = 1; i < id.size; i++) {
        if (id.data[i] < '0' || id.data[i] > '9')
            return NULL;
        number = number * 10 + (uint64_t)(id.data[i] - '0');
    }
    return &r->slots[number % r->limit];
}

struct request *requests_of_group(struct requests *r, struct wire_str id)
{
    struct request *q = slot_of(r, id);
    return q && q->used && wire_str_is(id, q->id) ? q : NULL;
}

static inline void fetch(const void *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes + 63; i += 64)
        __builtin_prefetch((const char *)memory + i);
}

/* Three rounds, since what to fetch next stands in what was fetched before. */
void requests_ahead(const struct requests *r, const struct wire_token *tokens, uint32_t count)
{
    const struct request *of[WIRE_MAX_TOKENS];
    ASSERT(count <= ARRAY_LEN(of));
    for (uint32_t i = 0; i < count; i++) {
        of[i] = slot_of(r, tokens[i].request);
        if (!of[i])
            continue;
        fetch(of[i], offsetof(struct request, sampling));
        fetch(&of[i]->sampling.logprobs, sizeof(of[i]->client_request));
        fetch(&of[i]->suspicion.count, 1);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!of[i] || !of[i]->used || of[i]->reader_count == 0)
            of[i] = NULL;
        if (!of[i])
            continue;
        fetch(of[i]->choices, offsetof(struct request_choice, done));
        fetch(of[i]->readers, offsetof(struct request_reader, client) + sizeof(uint64_t));
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct request_choice *c = of[i] ? &of[i]->choices[0] : NULL;
        if (!c || !c->tokens)
            continue;
        fetch(c->tokens + c->token_count, sizeof(*c->tokens));
        fetch(c->text.data + c->text.size, 1);
        fetch(of[i]->readers[0].cursors, sizeof(struct request_cursor));
    }
}

/* The same client may ask twice with one id once the first is over for it, though a group still holds it. */
static void release_client_id(struct requests *r, struct request *q)
{
    uint32_t *link = requests_bucket(r, q);
    while (*link != NONE && *link != q->slot)
        link = &r->slots[*link].next;
    if (*link == q->slot)
        *link = q->next;
    q->next = NONE;
}

static struct wire_str own_string(struct wire_str s)
{
    return (struct wire_str){s.size ? wire_str_dup(s) : NULL, s.size};
}

/* Copies what the request's own message will not keep. */
static void keep_asked(struct request *q, const struct wire_generate *in)
{
    struct wire_sampling *s = &q->sampling;
    *s = in->sampling;
    q->service = in->service;
    q->service.speculation = own_string(in->service.speculation);
    q->service.cache_salt = own_string(in->service.cache_salt);
    s->stop = s->stop_count ? xcalloc(s->stop_count, sizeof(*s->stop)) : NULL;
    for (uint32_t i = 0; i < s->stop_count; i++)
        s->stop[i].text = own_string(in->sampling.stop[i].text);
    s->logit_bias = s->bias_count ? xcalloc(s->bias_count, sizeof(*s->logit_bias)) : NULL;
    if (s->bias_count)
        memcpy(s->logit_bias, in->sampling.logit_bias, s->bias_count * sizeof(*s->logit_bias));
    q->choices = xcalloc(s->n, sizeof(*q->choices));
}

/* What another run delivered goes into the log without its text: that was delivered as well. */
static int keep_delivered(struct request *q, const struct wire_generate *in, struct err *err)
{
    struct request_reader *reader = &q->readers[0];
    uint64_t ended = 0, named[(WIRE_MAX_CHOICES + 63) / 64] = {0};
    for (uint32_t i = 0; i < in->delivered_count; i++) {
        const struct wire_delivered *d = &in->delivered[i];
        if (d->choice >= q->sampling.n || (named[d->choice / 64] >> d->choice % 64 & 1))
            return err_set_code(err, 400, "delivered: choice %llu, expected each of 0 to %llu at most once",
                                (unsigned long long)d->choice, (unsigned long long)q->sampling.n - 1);
        if (d->id_count > q->max_tokens)
            return err_set_code(err, 400, "delivered: %u tokens, expected at most max_tokens (%llu)",
                                d->id_count, (unsigned long long)q->max_tokens);
        named[d->choice / 64] |= 1ull << d->choice % 64;
        struct request_choice *c = &q->choices[d->choice];
        c->token_count = c->token_capacity = c->bare = d->id_count;
        c->tokens = d->id_count ? xcalloc(d->id_count, sizeof(*c->tokens)) : NULL;
        for (uint32_t k = 0; k < d->id_count; k++)
            c->tokens[k].id = d->ids[k];
        reader->cursors[d->choice].sent = d->id_count;
        reader->cursors[d->choice].end_sent = c->ended = c->end_unknown = d->ended;
        ended += d->ended;
        q->again |= d->id_count > 0 || d->ended;
    }
    if (ended == q->sampling.n)
        return err_set_code(err, 400, "delivered: every choice has ended, expected one that goes on");
    q->numeric = in->numeric;
    q->context = in->context;
    return 0;
}

void request_release(struct request *q)
{
    free(q->model);
    free(q->only_model);
    free(q->prompt);
    free(q->error_message);
    for (uint32_t i = 0; i < q->sampling.stop_count; i++)
        free((void *)(uintptr_t)q->sampling.stop[i].text.data);
    free(q->sampling.stop);
    free(q->sampling.logit_bias);
    free((void *)(uintptr_t)q->service.speculation.data);
    free((void *)(uintptr_t)q->service.cache_salt.data);
    for (uint64_t c = 0; c < q->sampling.n; c++) {
        free(q->choices[c].tokens);
        buffer_release(&q->choices[c].text);
        buffer_release(&q->choices[c].alternatives);
        free(q->choices[c].done_text);
    }
    free(q->choices);
}

struct request *requests_add(struct requests *r, const struct peer *client, const struct wire_generate *in,
                             uint64_t now_us, struct err *err)
{
    ASSERT(in->sampling.has_seed && in->request.size <= WIRE_MAX_ID);
    struct request *old = in->idempotent ? requests_of_key(r, client->name, in->request, now_us)
                                         : requests_of_client(r, client, in->request);
    if (old && (in->idempotent ? old->outcome == OUTCOME_NONE : request_is_read(old))) {
        err_set_code(err, 409, "request %s is live already", old->client_request);
        return NULL;
    }
    if (old)
        release_client_id(r, old);
    if (r->count == r->limit) {
        err_set_code(err, 429, "%u requests are live, more are not taken", r->limit);
        return NULL;
    }
    uint32_t slot = r->free_slots[r->limit - 1 - r->count++];
    struct request *q = &r->slots[slot];
    *q = (struct request){.slot = slot,
                          .used = true,
                          .client = *client,
                          .model = wire_str_dup(in->model),
                          .prompt = xmalloc(in->prompt.size ? in->prompt.size : 1),
                          .prompt_bytes = in->prompt.size,
                          .max_tokens = in->max_tokens,
                          .no_bos = in->no_bos,
                          .special = in->special,
                          .idempotent = in->idempotent,
                          .group = REQUEST_NO_GROUP,
                          .waits = true,
                          .accepted_us = now_us};
    keep_asked(q, in);
    snprintf(q->id, sizeof(q->id), "r%llu", (unsigned long long)(++r->rounds * r->limit + slot));
    snprintf(q->client_request, sizeof(q->client_request), "%.*s", (int)in->request.size, in->request.data);
    if (in->prompt.size > 0)
        memcpy(q->prompt, in->prompt.data, in->prompt.size);
    if (in->idempotent)
        request_digest(in, q->digest);
    q->readers = xcalloc(1, sizeof(*q->readers));
    q->reader_count = 1;
    q->readers[0] = (struct request_reader){.client = *client,
                                            .credit = in->credit ? in->credit : UINT64_MAX,
                                            .cursors = xcalloc(q->sampling.n, sizeof(struct request_cursor))};
    uint32_t *bucket = requests_bucket(r, q);
    q->next = *bucket;
    *bucket = slot;
    if (keep_delivered(q, in, err) == 0)
        return q;
    requests_remove(r, q);
    return NULL;
}

void requests_remove(struct requests *r, struct request *q)
{
    ASSERT(q->used);
    release_client_id(r, q);
    request_drop_readers(q);
    request_release(q);
    q->used = false;
    if (q->row)
        requests_forget_row(r, q->row);
    if (q->kept)
        r->kept_bytes -= q->kept_bytes;
    else
        r->free_slots[r->limit - r->count--] = q->slot;
}

struct request *requests_any(struct requests *r, uint32_t slot)
{
    ASSERT(slot < requests_slots(r));
    return r->slots[slot].used ? &r->slots[slot] : NULL;
}

uint32_t requests_slots(const struct requests *r)
{
    return 2 * r->limit;
}

struct request *requests_at(struct requests *r, uint32_t slot)
{
    ASSERT(slot < r->limit);
    return r->slots[slot].used ? &r->slots[slot] : NULL;
}

uint32_t requests_limit(const struct requests *r)
{
    return r->limit;
}

uint32_t requests_count(const struct requests *r)
{
    return r->count;
}

void request_assigned(struct request *q, const struct request_place *place, uint64_t now_us)
{
    ASSERT(q->waits && q->outcome == OUTCOME_NONE);
    q->waits = false;
    q->group = place->group;
    q->epoch = place->epoch;
    q->stage_count = place->stage_count;
    q->moves += q->again;
    q->mixed |= q->numeric && q->numeric != place->numeric;
    q->place_numeric = place->numeric;
    q->place_context = place->context;
    snprintf(q->group_name, sizeof(q->group_name), "%s", place->name);
    if (!q->model[0] && !q->only_model && place->model)
        q->only_model = xstrdup(place->model);
    if (!q->again)
        q->assigned_us = now_us;
    for (uint64_t c = 0; c < q->sampling.n; c++)
        q->choices[c].held = !q->choices[c].ended;
}

/* Most bytes of text that a choice may have: far above what vocabularies hold, far below what hurts. */
static uint64_t text_limit(const struct request *q)
{
    uint64_t pieces = q->sampling.logprobs ? 2 + q->sampling.top_logprobs : 1;
    return 65536 + q->max_tokens * 256 * pieces;
}

static uint64_t text_bytes(const struct wire_token *t)
{
    uint64_t bytes = (uint64_t)t->text.size + t->piece.size;
    for (uint32_t i = 0; i < t->top_count; i++)
        bytes += t->top_logprobs[i].piece.size;
    return bytes;
}

static void append_string(struct buffer *to, struct wire_str s)
{
    if (s.size > 0)
        buffer_append(to, s.data, s.size);
}

static void log_token(struct request_choice *c, const struct wire_token *t)
{
    if (c->token_count == c->token_capacity) {
        c->token_capacity = c->token_capacity ? c->token_capacity * 2 : 64;
        c->tokens = xrealloc(c->tokens, c->token_capacity * sizeof(*c->tokens));
    }
    c->tokens[c->token_count++] =
        (struct request_token){.id = (uint32_t)t->id,
                               .text_bytes = t->text.size,
                               .text_offset = c->text.size,
                               .logprob = (float)t->logprob,
                               .piece_bytes = t->piece.size,
                               .top_count = t->top_count,
                               .top_offset = c->alternatives.size / sizeof(struct request_alternative)};
    append_string(&c->text, t->text);
    append_string(&c->text, t->piece);
    for (uint32_t i = 0; i < t->top_count; i++) {
        const struct wire_alternative *a = &t->top_logprobs[i];
        struct request_alternative kept = {.id = (uint32_t)a->id,
                                           .logprob = (float)a->logprob,
                                           .piece_bytes = a->piece.size,
                                           .piece_offset = c->text.size};
        append_string(&c->text, a->piece);
        buffer_append(&c->alternatives, &kept, sizeof(kept));
    }
}

enum request_token_result request_token(struct request *q, const struct wire_token *token, struct err *err)
{
    if (token->choice >= q->sampling.n) {
        err_set_code(err, 500, "its group sent a token of choice %llu", (unsigned long long)token->choice);
        return REQUEST_TOKEN_BROKEN;
    }
    struct request_choice *c = &q->choices[token->choice];
    if (token->index < c->token_count)
        return REQUEST_TOKEN_DUPLICATE;
    if (token->index > c->token_count) {
        err_set_code(err, 500, "it sent token %llu where %llu was due", (unsigned long long)token->index,
                     (unsigned long long)c->token_count);
        return REQUEST_TOKEN_MISSING;
    }
    if (c->token_count >= q->max_tokens || c->ended)
        err_set_code(err, 500, "its group sent more than %llu tokens", (unsigned long long)c->token_count);
    else if (token->id > UINT32_MAX || c->text.size + text_bytes(token) > text_limit(q))
        err_set_code(err, 500, "its group sent more text than its tokens can hold");
    else if (token->top_count > q->sampling.top_logprobs)
        err_set_code(err, 500, "its group sent %u alternatives, %llu were asked for", token->top_count,
                     (unsigned long long)q->sampling.top_logprobs);
    else {
        if (!q->numeric) {
            q->numeric = q->place_numeric;
            q->context = q->place_context;
        }
        log_token(c, token);
        return REQUEST_TOKEN_LOGGED;
    }
    return REQUEST_TOKEN_BROKEN;
}

static void end_choice(struct request *q, struct request_choice *c, const struct wire_done *done)
{
    c->ended = true;
    c->done = *done;
    snprintf(c->finish_reason, sizeof(c->finish_reason), "%.*s", (int)done->finish_reason.size,
             done->finish_reason.data);
    c->done_text = wire_str_dup(done->text);
    c->done.text.data = c->done_text;
    c->done.request = wire_string(q->client_request);
    c->done.finish_reason = wire_string(c->finish_reason);
    c->done.group = wire_string(q->group_name[0] ? q->group_name : NULL);
    c->done.model = wire_string(q->only_model);
    c->done.epoch = q->epoch;
    c->done.stages = q->stage_count;
    c->done.queue_us = q->assigned_us ? q->assigned_us - q->accepted_us : 0;
    c->done.moves = q->moves;
    c->done.mixed = q->mixed;
}

/* One more than was sent is right: the token that ends a text is generated, never sent. After a cancel more
 * may have been under way. */
bool request_lacks(const struct request *q, const struct wire_done *done)
{
    if (done->choice >= q->sampling.n || q->choices[done->choice].ended ||
        wire_str_is(done->finish_reason, "cancelled"))
        return false;
    bool unsent = !wire_str_is(done->finish_reason, "length");
    return done->completion_tokens > q->choices[done->choice].token_count + unsent;
}

bool request_done(struct request *q, const struct wire_done *done)
{
    if (done->choice >= q->sampling.n)
        return request_error(q, 500, "group %s ended choice %llu of %llu", q->group_name,
                             (unsigned long long)done->choice, (unsigned long long)q->sampling.n);
    struct request_choice *c = &q->choices[done->choice];
    c->held = false;
    if (c->ended)
        return false;
    c->done = *done; /* what it took counts even when its client has its outcome already */
    if (q->outcome != OUTCOME_NONE)
        return false;
    bool cancelled = wire_str_is(done->finish_reason, "cancelled");
    if (cancelled && q->yielding)
        return false;
    if (done->completion_tokens < c->token_count || request_lacks(q, done))
        return request_error(q, 500, "group %s says it generated %llu tokens, %llu came", q->group_name,
                             (unsigned long long)done->completion_tokens, (unsigned long long)c->token_count);
    end_choice(q, c, done);
    for (uint64_t i = 0; i < q->sampling.n; i++)
        if (!q->choices[i].ended)
            return false;
    q->outcome = OUTCOME_DONE;
    return true;
}

void request_done_unserved(struct request *q)
{
    struct wire_message m;
    wire_init(&m, WIRE_DONE);
    m.done.finish_reason = wire_string("cancelled");
    for (; m.done.choice < q->sampling.n; m.done.choice++) {
        m.done.completion_tokens = q->choices[m.done.choice].token_count;
        request_done(q, &m.done);
    }
}

void request_yields_no_more(struct request *q)
{
    bool yielded = q->yielding;
    q->yielding = false;
    for (uint64_t i = 0; yielded && i < q->sampling.n; i++) {
        struct request_choice *c = &q->choices[i];
        struct wire_done done = c->done; /* its numbers; its strings are no more */
        if (c->held || c->ended)
            continue;
        done.choice = i;
        done.finish_reason = wire_string("cancelled");
        done.text = (struct wire_str){NULL, 0};
        request_done(q, &done);
    }
}

void request_waits_again(struct request *q)
{
    ASSERT(!q->waits && q->outcome == OUTCOME_NONE);
    q->yielding = q->cancelled = false;
    q->again = q->waits = true;
    q->group = REQUEST_NO_GROUP;
    for (uint64_t c = 0; c < q->sampling.n; c++)
        q->choices[c].held = false;
}

uint32_t request_delivered(const struct request *q, struct wire_delivered *of, uint32_t **ids)
{
    uint64_t total = 0;
    uint32_t count = 0;
    for (uint64_t c = 0; c < q->sampling.n; c++)
        total += q->choices[c].ended ? 0 : q->choices[c].token_count;
    uint32_t *to = *ids = total ? xcalloc(total, sizeof(**ids)) : NULL;
    for (uint64_t c = 0; c < q->sampling.n; c++) {
        const struct request_choice *choice = &q->choices[c];
        if (!choice->ended && choice->token_count == 0)
            continue;
        of[count] = (struct wire_delivered){.choice = c, .ended = choice->ended, .ids = to};
        for (uint64_t t = 0; !choice->ended && t < choice->token_count; t++)
            *to++ = choice->tokens[t].id;
        of[count].id_count = choice->ended ? 0 : (uint32_t)choice->token_count;
        count++;
    }
    return count;
}

bool request_let_go(const struct request *q)
{
    for (uint64_t i = 0; i < q->sampling.n; i++)
        if (q->choices[i].held)
            return false;
    return true;
}

bool request_was_cancelled(const struct request *q)
{
    for (uint64_t i = 0; i < q->sampling.n; i++)
        if (strcmp(q->choices[i].finish_reason, "cancelled") == 0)
            return true;
    return false;
}

uint64_t request_token_count(const struct request *q)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < q->sampling.n; i++)
        count += q->choices[i].token_count;
    return count;
}

bool request_error(struct request *q, int code, const char *fmt, ...)
{
    if (q->outcome != OUTCOME_NONE)
        return false;
    q->outcome = OUTCOME_ERROR;
    q->error_code = code;
    free(q->error_message);
    q->error_message = xmalloc(500);
    va_list args;
    va_start(args, fmt);
    vsnprintf(q->error_message, 500, fmt, args);
    va_end(args);
    wire_string_mend(q->error_message, 499); /* the cut may have split a character */
    return true;
}
