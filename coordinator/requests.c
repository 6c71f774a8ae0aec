#include "coordinator/requests.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

struct requests {
    struct request *slots; /* [limit] */
    uint32_t *buckets;     /* [bucket_count]: first slot by (client, client's id) */
    uint32_t *free_slots;  /* a stack */
    uint32_t limit, count, bucket_count;
    uint64_t rounds; /* grows with each request: makes the ids unique */
};

struct requests *requests_new(uint32_t limit)
{
    ASSERT(limit > 0 && limit < NONE / 2);
    struct requests *r = xcalloc(1, sizeof(*r));
    r->limit = limit;
    r->slots = xcalloc(limit, sizeof(*r->slots));
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
    for (uint32_t i = 0; i < (*r)->limit; i++)
        if ((*r)->slots[i].used)
            requests_remove(*r, &(*r)->slots[i]);
    free((*r)->slots);
    free((*r)->free_slots);
    free((*r)->buckets);
    free(*r);
    *r = NULL;
}

static uint32_t *bucket_of(struct requests *r, const struct peer *client, const char *id, size_t bytes)
{
    uint64_t h = peer_hash(client);
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (uint8_t)id[i]) * 0x100000001B3ull;
    return &r->buckets[(h ^ h >> 32) & (r->bucket_count - 1)];
}

struct request *requests_of_client(struct requests *r, const struct peer *client, struct wire_str id)
{
    for (uint32_t i = *bucket_of(r, client, id.data, id.size); i != NONE; i = r->slots[i].next)
        if (wire_str_is(id, r->slots[i].client_request) && peer_equal(client, &r->slots[i].client))
            return &r->slots[i];
    return NULL;
}

/* "r" + (round * limit + slot): the slot is in the number, and no number comes twice. */
struct request *requests_of_group(struct requests *r, struct wire_str id)
{
    if (id.size < 2 || id.size > 20 || id.data[0] != 'r')
        return NULL;
    uint64_t number = 0;
    for (uint32_t i = 1; i < id.size; i++) {
        if (id.data[i] < '0' || id.data[i] > '9')
            return NULL;
        number = number * 10 + (uint64_t)(id.data[i] - '0');
    }
    struct request *q = &r->slots[number % r->limit];
    return q->used && wire_str_is(id, q->id) ? q : NULL;
}

/* The same client may ask twice with one id once the first is over for it, though a group still holds it. */
static void release_client_id(struct requests *r, struct request *q)
{
    uint32_t *link = bucket_of(r, &q->client, q->client_request, strlen(q->client_request));
    while (*link != NONE && *link != q->slot)
        link = &r->slots[*link].next;
    if (*link == q->slot)
        *link = q->next;
    q->next = NONE;
}

struct request *requests_add(struct requests *r, const struct peer *client, const struct wire_generate *in,
                             uint64_t now_us, struct err *err)
{
    ASSERT(in->sampling.has_seed && in->request.size <= WIRE_MAX_ID);
    struct request *old = requests_of_client(r, client, in->request);
    if (old && !old->outcome_sent) {
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
                          .sampling = in->sampling,
                          .group = REQUEST_NO_GROUP,
                          .waits = true,
                          .accepted_us = now_us};
    snprintf(q->id, sizeof(q->id), "r%llu", (unsigned long long)(++r->rounds * r->limit + slot));
    snprintf(q->client_request, sizeof(q->client_request), "%.*s", (int)in->request.size, in->request.data);
    if (in->prompt.size > 0)
        memcpy(q->prompt, in->prompt.data, in->prompt.size);
    uint32_t *bucket = bucket_of(r, client, q->client_request, strlen(q->client_request));
    q->next = *bucket;
    *bucket = slot;
    return q;
}

void requests_remove(struct requests *r, struct request *q)
{
    ASSERT(q->used);
    release_client_id(r, q);
    free(q->model);
    free(q->prompt);
    free(q->tokens);
    buffer_release(&q->text);
    free(q->error_message);
    free(q->done_text);
    q->used = false;
    r->free_slots[r->limit - r->count--] = q->slot;
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
    snprintf(q->group_name, sizeof(q->group_name), "%s", place->name);
    q->assigned_us = now_us;
}

/* Most bytes of text that a stream may have: far above what vocabularies hold, far below what hurts. */
static uint64_t text_limit(const struct request *q)
{
    return 65536 + q->max_tokens * 256;
}

enum request_token_result request_token(struct request *q, const struct wire_token *token, struct err *err)
{
    if (token->choice == 0 && token->index < q->token_count)
        return REQUEST_TOKEN_DUPLICATE;
    if (token->choice != 0)
        err_set_code(err, 500, "its group sent a token of choice %llu", (unsigned long long)token->choice);
    else if (token->index != q->token_count)
        err_set_code(err, 500, "its group sent token %llu where %llu was due",
                     (unsigned long long)token->index, (unsigned long long)q->token_count);
    else if (q->token_count >= q->max_tokens)
        err_set_code(err, 500, "its group sent more than %llu tokens", (unsigned long long)q->max_tokens);
    else if (token->id > UINT32_MAX || q->text.size + token->text.size > text_limit(q))
        err_set_code(err, 500, "its group sent more text than its tokens can hold");
    else {
        if (q->token_count == q->token_capacity) {
            q->token_capacity = q->token_capacity ? q->token_capacity * 2 : 64;
            q->tokens = xrealloc(q->tokens, q->token_capacity * sizeof(*q->tokens));
        }
        q->tokens[q->token_count++] = (struct request_token){
            .id = (uint32_t)token->id, .text_bytes = token->text.size, .text_offset = q->text.size};
        if (token->text.size > 0)
            buffer_append(&q->text, token->text.data, token->text.size);
        return REQUEST_TOKEN_LOGGED;
    }
    return REQUEST_TOKEN_BROKEN;
}

bool request_done(struct request *q, const struct wire_done *done)
{
    if (q->outcome != OUTCOME_NONE)
        return false;
    /* One more than was sent is right: the token that ends a text is generated, never sent. After a cancel
     * more may have been under way. */
    bool cancelled = wire_str_is(done->finish_reason, "cancelled");
    if (done->choice != 0 || done->completion_tokens < q->token_count ||
        (!cancelled && done->completion_tokens > q->token_count + 1))
        return request_error(q, 500, "group %s says it generated %llu tokens, %llu came", q->group_name,
                             (unsigned long long)done->completion_tokens, (unsigned long long)q->token_count);
    q->outcome = OUTCOME_DONE;
    q->done = *done;
    snprintf(q->finish_reason, sizeof(q->finish_reason), "%.*s", (int)done->finish_reason.size,
             done->finish_reason.data);
    q->done_text = wire_str_dup(done->text);
    q->done.text.data = q->done_text;
    q->done.request = wire_string(q->client_request);
    q->done.finish_reason = wire_string(q->finish_reason);
    q->done.group = wire_string(q->group_name[0] ? q->group_name : NULL);
    q->done.epoch = q->epoch;
    q->done.stages = q->stage_count;
    q->done.queue_us = q->waits ? 0 : q->assigned_us - q->accepted_us;
    return true;
}

bool request_error(struct request *q, int code, const char *fmt, ...)
{
    if (q->outcome != OUTCOME_NONE)
        return false;
    q->outcome = OUTCOME_ERROR;
    q->error_code = code;
    q->error_message = xmalloc(500);
    va_list args;
    va_start(args, fmt);
    vsnprintf(q->error_message, 500, fmt, args);
    va_end(args);
    wire_string_mend(q->error_message, 499); /* the cut may have split a character */
    return true;
}

bool request_next(const struct request *q, struct wire_message *out)
{
    if (q->client_gone || q->outcome_sent)
        return false;
    if (q->sent < q->token_count) {
        const struct request_token *t = &q->tokens[q->sent];
        wire_init(out, WIRE_TOKEN);
        out->token.request = wire_string(q->client_request);
        out->token.index = q->sent;
        out->token.id = t->id;
        if (t->text_bytes > 0)
            out->token.text = (struct wire_str){(const char *)q->text.data + t->text_offset, t->text_bytes};
        return true;
    }
    if (q->outcome == OUTCOME_DONE) {
        wire_init(out, WIRE_DONE);
        out->done = q->done;
        return true;
    }
    if (q->outcome == OUTCOME_ERROR) {
        wire_init(out, WIRE_ERROR);
        out->error.request = wire_string(q->client_request);
        out->error.code = (uint64_t)q->error_code;
        out->error.message = wire_string(q->error_message);
        return true;
    }
    return false;
}

void request_sent(struct request *q)
{
    if (q->sent < q->token_count)
        q->sent++;
    else
        q->outcome_sent = true;
}

bool request_over(const struct request *q)
{
    return (q->outcome_sent || q->client_gone) && !q->waits && q->group == REQUEST_NO_GROUP;
}
