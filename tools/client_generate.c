#include "tools/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

/* The coordinator answers a generate at once; a silence this long means that it is gone or stuck. */
#define ANSWER_TIMEOUT_MS 10000
/* After a cancel the outcomes get this long. */
#define CANCEL_TIMEOUT_MS 3000

struct run {
    struct client *client;
    struct client_job *jobs;
    size_t count, live;
    size_t unanswered; /* jobs without accepted or error */
    bool *accepted;    /* [count] */
    bool interrupted;
    uint64_t give_up_ms; /* when to stop waiting; UINT64_MAX = never */
};

static void job_id(char out[32], size_t job)
{
    snprintf(out, 32, "g%zu", job);
}

/* The job that a request id names; NULL for an id that is not ours. */
static struct client_job *find_job(struct run *r, struct wire_str id, size_t *index)
{
    char text[32];
    if (id.size < 2 || id.size >= sizeof(text) || id.data[0] != 'g')
        return NULL;
    memcpy(text, id.data, id.size);
    text[id.size] = 0;
    char *end;
    unsigned long long n = strtoull(text + 1, &end, 10);
    if (*end || n >= r->count)
        return NULL;
    *index = (size_t)n;
    return &r->jobs[n];
}

static void append_text(struct client_job *job, uint64_t choice, struct wire_str text)
{
    if (text.size == 0)
        return;
    buffer_append(&job->choice[choice].text, text.data, text.size);
    if (job->on_text)
        job->on_text(job, choice, text.data, text.size);
}

static void answered(struct run *r, size_t index)
{
    if (!r->accepted[index]) {
        r->accepted[index] = true;
        r->unanswered--;
    }
}

static void finish(struct run *r, struct client_job *job)
{
    job->over = true;
    job->over_us = clock_now_us();
    r->live--;
}

static void take_logprob(struct client_logprob *out, const struct wire_token *t)
{
    *out = (struct client_logprob){.logprob = t->logprob,
                                   .piece = wire_str_dup(t->piece),
                                   .piece_bytes = t->piece.size,
                                   .top_count = t->top_count};
    out->top = xcalloc(t->top_count ? t->top_count : 1, sizeof(*out->top));
    for (uint32_t i = 0; i < t->top_count; i++) {
        const struct wire_alternative *a = &t->top_logprobs[i];
        out->top[i] = (struct client_alternative){.id = (uint32_t)a->id,
                                                  .logprob = a->logprob,
                                                  .piece = wire_str_dup(a->piece),
                                                  .piece_bytes = a->piece.size};
    }
}

/* I2: what may never come, if it comes, is an error and never hidden. */
static void break_job(struct run *r, struct client_job *job, const char *what, uint64_t choice,
                      uint64_t index)
{
    err_set_code(&job->error, 500, "%s of choice %llu came where none was due (index %llu)", what,
                 (unsigned long long)choice, (unsigned long long)index);
    finish(r, job);
}

static void take_token(struct run *r, struct client_job *job, const struct wire_token *t)
{
    struct client_choice *c = t->choice < job->ask.sampling.n ? &job->choice[t->choice] : NULL;
    if (!c || c->over || t->index != c->token_count) {
        break_job(r, job, "a token", t->choice, t->index);
        return;
    }
    if (job->token_count++ == 0)
        job->first_token_us = clock_now_us();
    if ((c->token_count & (c->token_count - 1)) == 0) { /* doubles at every power of two */
        size_t capacity = c->token_count ? c->token_count * 2 : 1;
        c->tokens = xrealloc(c->tokens, capacity * sizeof(*c->tokens));
        if (job->ask.sampling.logprobs)
            c->logprobs = xrealloc(c->logprobs, capacity * sizeof(*c->logprobs));
    }
    if (c->logprobs)
        take_logprob(&c->logprobs[c->token_count], t);
    c->tokens[c->token_count++] = (uint32_t)t->id;
    if (job->on_token)
        job->on_token(job);
    append_text(job, t->choice, t->text);
}

static void keep_larger(uint64_t *kept, uint64_t value)
{
    *kept = value > *kept ? value : *kept;
}

static void take_done(struct run *r, struct client_job *job, const struct wire_done *d)
{
    struct client_choice *c = d->choice < job->ask.sampling.n ? &job->choice[d->choice] : NULL;
    if (!c || c->over) {
        break_job(r, job, "an end", d->choice, d->completion_tokens);
        return;
    }
    append_text(job, d->choice, d->text);
    c->over = true;
    snprintf(c->finish_reason, sizeof(c->finish_reason), "%.*s", (int)d->finish_reason.size,
             d->finish_reason.data);
    if (d->group.size > 0)
        snprintf(job->group, sizeof(job->group), "%.*s", (int)d->group.size, d->group.data);
    job->epoch = d->epoch;
    job->stages = d->stages;
    keep_larger(&job->moves, d->moves);
    job->mixed |= d->mixed;
    job->prompt_tokens = d->prompt_tokens;
    keep_larger(&job->cached_tokens, d->cached_tokens);
    job->completion_tokens += d->completion_tokens;
    job->drafted_tokens += d->drafted_tokens;
    job->accepted_tokens += d->accepted_tokens;
    keep_larger(&job->queue_us, d->queue_us);
    keep_larger(&job->prefill_us, d->prefill_us);
    keep_larger(&job->decode_us, d->decode_us);
    for (uint64_t i = 0; i < job->ask.sampling.n; i++)
        if (!job->choice[i].over)
            return;
    finish(r, job);
}

/* A frame was refused before its request id was read: it was one of those without an answer. */
static void fail_unanswered(struct run *r, const struct wire_error *e)
{
    for (size_t i = 0; i < r->count; i++) {
        if (r->accepted[i] || r->jobs[i].over)
            continue;
        err_set_code(&r->jobs[i].error, (int)e->code, "%.*s", (int)e->message.size, e->message.data);
        answered(r, i);
        finish(r, &r->jobs[i]);
    }
}

static void take(struct run *r, const struct wire_message *m)
{
    size_t index = 0;
    if (m->type == WIRE_ERROR && m->error.request.size == 0)
        fail_unanswered(r, &m->error);
    struct wire_str id = m->type == WIRE_ACCEPTED ? m->accepted.request
                         : m->type == WIRE_TOKEN  ? m->token.request
                         : m->type == WIRE_DONE   ? m->done.request
                         : m->type == WIRE_ERROR  ? m->error.request
                                                  : (struct wire_str){NULL, 0};
    struct client_job *job = find_job(r, id, &index);
    if (!job || job->over)
        return;
    answered(r, index);
    switch (m->type) {
    case WIRE_ACCEPTED:
        job->seed = m->accepted.seed;
        break;
    case WIRE_TOKEN:
        take_token(r, job, &m->token);
        break;
    case WIRE_DONE:
        take_done(r, job, &m->done);
        break;
    case WIRE_ERROR:
        err_set_code(&job->error, (int)m->error.code, "%.*s", (int)m->error.message.size,
                     m->error.message.data);
        finish(r, job);
        break;
    default:
        break;
    }
}

static int send_all(struct run *r, struct err *err)
{
    for (size_t i = 0; i < r->count; i++) {
        struct wire_message m;
        char id[32];
        wire_init(&m, WIRE_GENERATE);
        m.generate = r->jobs[i].ask;
        job_id(id, i);
        m.generate.request = wire_string(id);
        r->jobs[i].sent_us = clock_now_us();
        if (client_send(r->client, &m, err) != 0)
            return -1;
    }
    return 0;
}

static int cancel_all(struct run *r, struct err *err)
{
    r->interrupted = true;
    r->give_up_ms = clock_now_ms() + CANCEL_TIMEOUT_MS;
    for (size_t i = 0; i < r->count; i++) {
        struct wire_message m;
        char id[32];
        if (r->jobs[i].over)
            continue;
        wire_init(&m, WIRE_CANCEL);
        job_id(id, i);
        m.cancel.request = wire_string(id);
        if (client_send(r->client, &m, err) != 0)
            return -1;
    }
    return 0;
}

/* One message, or one event. */
static int step(struct run *r, struct err *err)
{
    uint64_t now_ms = clock_now_ms();
    uint64_t wait_ms = r->give_up_ms == UINT64_MAX ? UINT64_MAX
                       : r->give_up_ms > now_ms    ? r->give_up_ms - now_ms
                                                   : 0;
    struct wire_message m;
    int rc = client_receive_watching(r->client, &m, wait_ms, !r->interrupted, err);
    if (rc < 0)
        return -1;
    if (rc == 0)
        return err_set_code(err, 503, "%s: the coordinator does not answer", client_endpoint(r->client));
    if (rc == 2)
        return cancel_all(r, err);
    take(r, &m);
    wire_release(&m);
    if (r->unanswered == 0 && !r->interrupted)
        r->give_up_ms = UINT64_MAX; /* all have a deadline at the coordinator now */
    return 0;
}

int client_generate_many(struct client *c, struct client_job *jobs, size_t count, bool *interrupted,
                         struct err *err)
{
    struct run r = {.client = c,
                    .jobs = jobs,
                    .count = count,
                    .live = count,
                    .unanswered = count,
                    .accepted = xcalloc(count ? count : 1, sizeof(bool)),
                    .give_up_ms = clock_now_ms() + ANSWER_TIMEOUT_MS};
    for (size_t i = 0; i < count; i++)
        jobs[i].choice = xcalloc(jobs[i].ask.sampling.n, sizeof(*jobs[i].choice));
    int rc = send_all(&r, err);
    while (rc == 0 && r.live > 0)
        rc = step(&r, err);
    for (size_t i = 0; rc != 0 && i < count; i++)
        if (!jobs[i].over) {
            err_set_code(&jobs[i].error, err->code ? err->code : 503, "%s", err->message);
            finish(&r, &jobs[i]);
        }
    if (interrupted)
        *interrupted = r.interrupted;
    free(r.accepted);
    return rc;
}
