/* The readers of a request: connections that are sent its log, each at its own pace, and who may become one.
 */
#include "coordinator/requests.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

/* ---- who may read ---- */
void request_digest(const struct wire_generate *in, uint8_t digest[REQUEST_DIGEST])
{
    struct wire_message m;
    struct buffer bytes = {0};
    wire_init(&m, WIRE_GENERATE);
    m.generate = *in;
    /* What does not decide the tokens; the seed is compared apart, for one of the two may not know it. */
    m.generate.request = wire_string("-");
    m.generate.class = (struct wire_str){NULL, 0};
    m.generate.timeout_ms = 0;
    m.generate.delivered = NULL;
    m.generate.delivered_count = 0;
    m.generate.idempotent = true;
    m.generate.numeric = 0;
    m.generate.context = 0;
    m.generate.credit = 0;
    m.generate.sampling.seed = 0;
    m.generate.sampling.has_seed = false;
    wire_encode(&m, &bytes);
    crypto_generichash(digest, REQUEST_DIGEST, bytes.data, bytes.size, NULL, 0);
    buffer_release(&bytes);
}

void request_digest_of(const struct request *q, uint8_t digest[REQUEST_DIGEST])
{
    struct wire_generate in = {.model = wire_string(q->model),
                               .prompt = {q->prompt, q->prompt_bytes},
                               .max_tokens = q->max_tokens,
                               .no_bos = q->no_bos,
                               .special = q->special,
                               .sampling = q->sampling,
                               .service = q->service};
    if (q->idempotent)
        memcpy(digest, q->digest, REQUEST_DIGEST);
    else
        request_digest(&in, digest);
}

/* What the newcomer says to have had must be what the log says. */
static int place_cursors(const struct request *q, struct request_cursor *cursors,
                         const struct wire_generate *in, struct err *err)
{
    for (uint32_t i = 0; i < in->delivered_count; i++) {
        const struct wire_delivered *d = &in->delivered[i];
        if (d->choice >= q->sampling.n)
            return err_set_code(err, 400, "delivered: choice %llu, expected 0 to %llu",
                                (unsigned long long)d->choice, (unsigned long long)q->sampling.n - 1);
        const struct request_choice *c = &q->choices[d->choice];
        if (d->id_count > c->token_count || (d->ended && !c->ended))
            return err_set_code(err, 503, "choice %llu has %llu tokens so far, the client had %u: try again",
                                (unsigned long long)d->choice, (unsigned long long)c->token_count,
                                d->id_count);
        for (uint32_t k = 0; k < d->id_count; k++)
            if (c->tokens[k].id != d->ids[k])
                return err_set_code(err, 409, "delivered: token %u of choice %llu is %u, the client had %u",
                                    k, (unsigned long long)d->choice, c->tokens[k].id, d->ids[k]);
        cursors[d->choice].sent = d->ended ? c->token_count : d->id_count;
        cursors[d->choice].end_sent = d->ended;
    }
    for (uint64_t i = 0; i < q->sampling.n; i++)
        if (cursors[i].sent < q->choices[i].bare || (q->choices[i].end_unknown && !cursors[i].end_sent))
            return err_set_code(err, 409, "the %s of request %s is not known any more: ask with another id",
                                cursors[i].sent < q->choices[i].bare ? "beginning" : "end of a choice",
                                q->client_request);
    return 0;
}

struct request_reader *request_reader_of(const struct request *q, const struct peer *client)
{
    for (uint32_t i = 0; i < q->reader_count; i++) {
        struct request_reader *reader = &q->readers[i];
        if (!reader->gone && !reader->outcome_sent && peer_equal(&reader->client, client))
            return reader;
    }
    return NULL;
}

/* A place that nobody needs any more, or a new one. */
static struct request_reader *free_place(struct request *q, struct err *err)
{
    for (uint32_t i = 0; i < q->reader_count; i++)
        if ((q->readers[i].gone || q->readers[i].outcome_sent) && !q->readers[i].stalled_ms) {
            free(q->readers[i].cursors);
            return &q->readers[i];
        }
    if (q->reader_count == REQUEST_MAX_READERS) {
        err_set_code(err, 429, "%u connections read request %s, more may not", q->reader_count,
                     q->client_request);
        return NULL;
    }
    q->readers = xrealloc(q->readers, (q->reader_count + 1) * sizeof(*q->readers));
    return &q->readers[q->reader_count++];
}

struct request_reader *request_join(struct request *q, const struct peer *client,
                                    const struct wire_generate *in, struct err *err)
{
    if (request_reader_of(q, client)) {
        err_set_code(err, 409, "request %s is live already", q->client_request);
        return NULL;
    }
    struct request_cursor *cursors = xcalloc(q->sampling.n, sizeof(*cursors));
    struct request_reader *reader = NULL;
    if (place_cursors(q, cursors, in, err) == 0)
        reader = free_place(q, err);
    if (!reader) {
        free(cursors);
        return NULL;
    }
    *reader = (struct request_reader){
        .client = *client, .cursors = cursors, .credit = in->credit ? in->credit : UINT64_MAX};
    return reader;
}

bool request_is_read(const struct request *q)
{
    for (uint32_t i = 0; i < q->reader_count; i++)
        if (!q->readers[i].gone && !q->readers[i].cut && !q->readers[i].outcome_sent)
            return true;
    return false;
}

void request_drop_readers(struct request *q)
{
    for (uint32_t i = 0; i < q->reader_count; i++)
        free(q->readers[i].cursors);
    free(q->readers);
    q->readers = NULL;
    q->reader_count = 0;
}

/* ---- what comes next ---- */
static struct wire_str part_of(const struct buffer *text, uint64_t offset, uint32_t bytes)
{
    return bytes ? (struct wire_str){(const char *)text->data + offset, bytes} : (struct wire_str){NULL, 0};
}

static void fill_token(const struct request *q, uint64_t choice, uint64_t index, struct request_message *out)
{
    const struct request_choice *c = &q->choices[choice];
    const struct request_token *t = &c->tokens[index];
    struct wire_token *m = &out->wire.token;
    wire_init(&out->wire, WIRE_TOKEN);
    m->request = wire_string(q->client_request);
    m->choice = choice;
    m->index = index;
    m->id = t->id;
    m->text = part_of(&c->text, t->text_offset, t->text_bytes);
    m->numeric = index == 0 ? q->numeric : 0;
    m->context = index == 0 ? q->context : 0;
    m->model = wire_string(index == 0 ? q->only_model : NULL);
    m->logprob = (double)t->logprob;
    m->piece = part_of(&c->text, t->text_offset + t->text_bytes, t->piece_bytes);
    m->top_logprobs = out->top;
    m->top_count = t->top_count;
    for (uint32_t i = 0; i < t->top_count; i++) {
        const struct request_alternative *a =
            (const struct request_alternative *)c->alternatives.data + t->top_offset + i;
        out->top[i] = (struct wire_alternative){.id = a->id,
                                                .logprob = (double)a->logprob,
                                                .piece = part_of(&c->text, a->piece_offset, a->piece_bytes)};
    }
}

static void fill_error(const struct request *q, struct request_message *out)
{
    wire_init(&out->wire, WIRE_ERROR);
    out->wire.error.request = wire_string(q->client_request);
    out->wire.error.code = (uint64_t)q->error_code;
    out->wire.error.retry_after_ms = q->retry_after_ms;
    out->wire.error.message = wire_string(q->error_message);
}

bool request_next(const struct request *q, const struct request_reader *reader, struct request_message *out)
{
    if (reader->gone || reader->outcome_sent)
        return false;
    if (reader->cut) {
        wire_init(&out->wire, WIRE_ERROR);
        out->wire.error.request = wire_string(q->client_request);
        out->wire.error.code = 408;
        out->wire.error.message = wire_string("the client did not read: the stream is cut");
        return true;
    }
    if (reader->unaccepted) {
        wire_init(&out->wire, WIRE_ACCEPTED);
        out->wire.accepted.request = wire_string(q->client_request);
        out->wire.accepted.seed = q->sampling.seed;
        out->wire.accepted.queued = reader->queued;
        return true;
    }
    for (uint64_t i = 0; i < q->sampling.n; i++) {
        const struct request_choice *c = &q->choices[i];
        const struct request_cursor *at = &reader->cursors[i];
        if (at->sent < c->token_count && !at->end_sent) {
            fill_token(q, i, at->sent, out);
            return true;
        }
        if (c->ended && !at->end_sent && !q->storing && !q->not_stored) {
            wire_init(&out->wire, WIRE_DONE);
            out->wire.done = c->done;
            out->wire.done.request = wire_string(q->client_request);
            out->wire.done.group = wire_string(q->group_name[0] ? q->group_name : NULL);
            return true;
        }
    }
    if (q->outcome != OUTCOME_ERROR)
        return false;
    fill_error(q, out);
    return true;
}

void request_sent(const struct request *q, struct request_reader *reader, const struct request_message *m)
{
    if (m->wire.type == WIRE_ACCEPTED) {
        reader->unaccepted = false;
        return;
    }
    if (m->wire.type == WIRE_TOKEN) {
        reader->cursors[m->wire.token.choice].sent++;
        reader->credit -= reader->credit != UINT64_MAX;
        return;
    }
    if (m->wire.type == WIRE_DONE)
        reader->cursors[m->wire.done.choice].end_sent = true;
    reader->outcome_sent = m->wire.type == WIRE_ERROR || q->outcome == OUTCOME_DONE;
    for (uint64_t i = 0; q->outcome == OUTCOME_DONE && !reader->cut && i < q->sampling.n; i++)
        reader->outcome_sent &= reader->cursors[i].end_sent;
}

void request_credit(struct request_reader *reader, uint64_t tokens)
{
    if (reader->credit == UINT64_MAX)
        return;
    uint64_t most = UINT64_MAX - 1 - reader->credit;
    reader->credit += tokens < most ? tokens : most;
}

bool request_over(const struct request *q)
{
    for (uint32_t i = 0; i < q->reader_count; i++)
        if (!q->readers[i].gone && !q->readers[i].outcome_sent)
            return false;
    return !q->waits && !q->storing && q->group == REQUEST_NO_GROUP;
}
