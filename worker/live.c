#include "worker/live.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/stop.h"

struct live_choice {
    struct detokenizer detokenizer;
    struct stop_matcher stop;
    uint64_t tokens; /* told */
    bool ended;
};

struct live {
    bool used, cancelled;
    bool failed, logprobs;
    uint32_t generation; /* tells a reused entry from its predecessor */
    char request[WIRE_MAX_ID + 1];
    struct live_choice *choice; /* [choices] */
    uint32_t choices, left;     /* left: not ended yet */
    int32_t failed_at;          /* index of the token that could not be drawn */
    struct stop_set *stops;
};

void live_table_init(struct live_table *t, uint32_t count, const struct tokenizer *tokenizer)
{
    *t = (struct live_table){.count = count, .tokenizer = tokenizer};
    t->entry = xcalloc(count, sizeof(*t->entry));
}

void live_table_release(struct live_table *t)
{
    if (!t->entry)
        return;
    live_drop_all(t);
    free(t->entry);
    buffer_release(&t->text);
    buffer_release(&t->pieces);
    *t = (struct live_table){0};
}

struct live *live_find(struct live_table *t, struct wire_str request)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (t->entry[i].used && wire_str_is(request, t->entry[i].request))
            return &t->entry[i];
    return NULL;
}

uint64_t live_handle(const struct live_table *t, const struct live *v)
{
    return (uint64_t)v->generation << 32 | (uint64_t)(v - t->entry);
}

/* The entry of a handle; NULL when it ended (was fenced) in the meantime. */
static struct live *find_handle(struct live_table *t, uint64_t handle)
{
    uint32_t index = (uint32_t)handle;
    ASSERT(index < t->count);
    struct live *v = &t->entry[index];
    return v->used && v->generation == (uint32_t)(handle >> 32) ? v : NULL;
}

static struct stop_set *read_stops(const struct wire_sampling *s)
{
    const char *text[WIRE_MAX_STOPS];
    size_t bytes[WIRE_MAX_STOPS];
    for (uint32_t i = 0; i < s->stop_count; i++) {
        text[i] = s->stop[i].text.data;
        bytes[i] = s->stop[i].text.size;
    }
    return stop_set_new(text, bytes, s->stop_count);
}

struct live *live_add(struct live_table *t, const struct wire_assign *a, struct err *err)
{
    struct live *v = NULL;
    if (live_find(t, a->request)) {
        err_set_code(err, 409, "request is already running here");
        return NULL;
    }
    for (uint32_t i = 0; i < t->count && !v; i++)
        if (!t->entry[i].used)
            v = &t->entry[i];
    if (!v) {
        err_set_code(err, 429, "group has %u requests, its limit", t->count);
        return NULL;
    }
    uint32_t n = (uint32_t)a->sampling.n;
    *v = (struct live){.used = true,
                       .generation = v->generation,
                       .logprobs = a->sampling.logprobs,
                       .choices = n,
                       .left = n,
                       .stops = read_stops(&a->sampling)};
    memcpy(v->request, a->request.data, a->request.size);
    v->request[a->request.size] = '\0';
    v->choice = xcalloc(n, sizeof(*v->choice));
    for (uint32_t i = 0; i < n; i++) {
        detokenizer_init(&v->choice[i].detokenizer, t->tokenizer, false);
        stop_matcher_init(&v->choice[i].stop, v->stops);
    }
    return v;
}

bool live_cancel(struct live *v)
{
    bool first = !v->cancelled;
    v->cancelled = true;
    return first;
}

void live_drop(struct live *v)
{
    for (uint32_t i = 0; i < v->choices; i++)
        stop_matcher_release(&v->choice[i].stop);
    free(v->choice);
    stop_set_free(&v->stops);
    v->choice = NULL;
    v->choices = 0;
    v->used = false;
    v->generation++;
}

void live_drop_all(struct live_table *t)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (t->entry[i].used)
            live_drop(&t->entry[i]);
}

/* ---- events */

static struct wire_str text_of(const struct buffer *b)
{
    return b->size ? (struct wire_str){(const char *)b->data, (uint32_t)b->size} : (struct wire_str){NULL, 0};
}

/* Appends the text of one token alone; of a token that gives no text, what the vocabulary calls it. */
static uint32_t append_piece(struct live_table *t, int32_t id)
{
    struct detokenizer d;
    size_t before = t->pieces.size, bytes = 0;
    detokenizer_init(&d, t->tokenizer, false);
    detokenizer_push(&d, id, &t->pieces);
    detokenizer_flush(&d, &t->pieces);
    if (t->pieces.size == before && id < tokenizer_vocab_size(t->tokenizer)) {
        const char *piece = tokenizer_piece(t->tokenizer, id, &bytes);
        if (bytes && utf8_valid(piece, bytes))
            buffer_append(&t->pieces, piece, bytes);
    }
    return (uint32_t)(t->pieces.size - before);
}

static void fill_logprobs(struct live_table *t, const struct event *e, struct wire_token *m)
{
    const struct token_logprobs *l = &e->logprobs;
    t->pieces.size = 0;
    m->logprob = (double)l->drawn;
    m->piece.size = append_piece(t, e->id);
    m->top_logprobs = t->top;
    m->top_count = (uint32_t)l->count;
    for (int32_t i = 0; i < l->count; i++)
        t->top[i] = (struct wire_alternative){.id = (uint64_t)l->id[i],
                                              .logprob = (double)l->logprob[i],
                                              .piece = {NULL, append_piece(t, l->id[i])}};
    /* Only now does the buffer stay where it is. */
    const char *at = (const char *)t->pieces.data;
    m->piece.data = m->piece.size ? at : NULL;
    at += m->piece.size;
    for (int32_t i = 0; i < l->count; i++) {
        t->top[i].piece.data = t->top[i].piece.size ? at : NULL;
        at += t->top[i].piece.size;
    }
}

static void end_at_step_thread(const struct live_table *t, const struct live *v, int32_t choice,
                               struct live_news *news)
{
    news->cancel = true;
    news->command =
        (struct command){.kind = COMMAND_CANCEL, .request = {.handle = live_handle(t, v), .choice = choice}};
}

/* Detokenises one more id (or, with id < 0, what is left) and lets the stop strings see it: what may be shown
 * is then in t->text. */
static bool show(struct live_table *t, struct live_choice *c, int32_t id)
{
    struct buffer raw = {0};
    t->text.size = 0;
    if (id >= 0)
        detokenizer_push(&c->detokenizer, id, &raw);
    else
        detokenizer_flush(&c->detokenizer, &raw);
    bool stopped = stop_matcher_push(&c->stop, raw.data, raw.size, &t->text);
    buffer_release(&raw);
    return stopped;
}

uint32_t live_resume(struct live_table *t, struct live *v, const struct wire_assign *assign,
                     uint32_t *stopped)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < assign->delivered_count; i++) {
        const struct wire_delivered *d = &assign->delivered[i];
        struct live_choice *c = &v->choice[d->choice];
        if (d->ended) {
            ASSERT(!c->ended && v->left > 1);
            c->ended = true;
            v->left--;
            continue;
        }
        for (uint32_t k = 0; k < d->id_count && !c->stop.stopped; k++, c->tokens++)
            show(t, c, (int32_t)d->ids[k]);
        if (c->stop.stopped)
            stopped[count++] = (uint32_t)d->choice;
    }
    return count;
}

static void take_token(struct live_table *t, struct live *v, const struct event *e, struct live_news *news)
{
    struct live_choice *c = &v->choice[e->choice];
    if (v->cancelled || v->failed || c->stop.stopped)
        return;
    if (show(t, c, e->id))
        end_at_step_thread(t, v, e->choice, news);
    c->tokens++;
    struct wire_token *m = &news->message.token;
    wire_init(&news->message, WIRE_TOKEN);
    m->request = wire_string(v->request);
    m->choice = (uint64_t)e->choice;
    m->index = (uint64_t)e->index;
    m->id = (uint64_t)e->id;
    m->text = text_of(&t->text);
    if (v->logprobs)
        fill_logprobs(t, e, m);
    news->tell = true;
}

static const char *finish_name(enum finish_reason reason)
{
    return reason == FINISH_STOP ? "stop" : reason == FINISH_LENGTH ? "length" : "cancelled";
}

/* Of a cancelled request tokens may have been withheld: whatever the step thread says of its end, no outcome
 * may be told that counts them as delivered. What a stop string ended was told whole before. */
static void tell_done(struct live_table *t, struct live *v, const struct event *e, struct live_news *news)
{
    struct live_choice *c = &v->choice[e->choice];
    struct wire_done *m = &news->message.done;
    enum finish_reason reason = v->cancelled ? FINISH_CANCELLED : e->reason;
    uint64_t count = (uint64_t)e->completion_tokens;
    bool stopped_before = c->stop.stopped;
    if (stopped_before)
        count = c->tokens;
    if (show(t, c, -1))
        reason = FINISH_STOP;
    else
        stop_matcher_flush(&c->stop, &t->text);
    wire_init(&news->message, WIRE_DONE);
    m->request = wire_string(v->request);
    m->choice = (uint64_t)e->choice;
    m->finish_reason = wire_string(finish_name(reason));
    m->text = text_of(&t->text);
    m->prompt_tokens = (uint64_t)e->prompt_tokens;
    m->completion_tokens = count;
    m->cached_tokens = (uint64_t)e->cached_tokens;
    m->drafted_tokens = (uint64_t)e->drafted_tokens;
    m->accepted_tokens = (uint64_t)e->accepted_tokens;
    m->prefill_us = e->prefill_us;
    m->decode_us = e->decode_us;
    news->tell = true;
}

static void tell_failure(struct live_table *t, const struct live *v, struct live_news *news)
{
    snprintf(t->error, sizeof(t->error), "the model gave no finite logits at token %d", v->failed_at);
    wire_init(&news->message, WIRE_ERROR);
    news->message.error.request = wire_string(v->request);
    news->message.error.code = 500;
    news->message.error.message = wire_string(t->error);
    news->tell = true;
}

void live_take(struct live_table *t, const struct event *e, struct live_news *news)
{
    *news = (struct live_news){0};
    struct live *v = find_handle(t, e->handle);
    if (!v)
        return;
    ASSERT(e->choice >= 0 && (uint32_t)e->choice < v->choices && !v->choice[e->choice].ended);
    if (e->kind == EVENT_TOKEN) {
        take_token(t, v, e, news);
        return;
    }
    v->choice[e->choice].ended = true;
    v->left--;
    if (e->kind == EVENT_FAILED && !v->failed) {
        v->failed = true;
        v->failed_at = e->index;
        if (v->left)
            end_at_step_thread(t, v, -1, news);
    }
    /* The error of a request comes when nothing of it runs any more. */
    if (!v->failed)
        tell_done(t, v, e, news);
    else if (!v->left)
        tell_failure(t, v, news);
    if (!v->left)
        live_drop(v); /* its name stays until the entry is used again */
}
