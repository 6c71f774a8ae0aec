#include "tools/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

/* The coordinator answers a generate at once; a silence this long means that it is gone or stuck. */
#define ANSWER_TIMEOUT_MS 10000
/* After a cancel the outcomes get this long. */
#define CANCEL_TIMEOUT_MS 3000
/* Of a stream that has no place yet behind a coordinator that came back. */
#define RESEND_MS 200

/* What becomes of one job between us and the coordinator. */
struct track {
    bool accepted;      /* by the coordinator that we are connected to */
    bool seeded;        /* its seed is known: it was accepted once */
    uint64_t resend_ms; /* when to ask again; 0 = no need */
};

struct run {
    struct client *client;
    struct client_job *jobs;
    size_t count, live;
    size_t unanswered;    /* jobs without accepted or error */
    struct track *tracks; /* [count] */
    char name[24];        /* begins our request ids: nobody else has them, so they are idempotent */
    bool interrupted;
    uint64_t give_up_ms;     /* when to stop waiting; UINT64_MAX = never */
    uint64_t retry_until_ms; /* after a loss: when to stop looking for what was lost; 0: nothing was */
    bool found;              /* and something was since */
};

static void job_id(const struct run *r, char out[64], size_t job)
{
    snprintf(out, 64, "%s%zu", r->name, job);
}

/* The job that a request id names; NULL for an id that is not ours. */
static struct client_job *find_job(struct run *r, struct wire_str id, size_t *index)
{
    char text[64];
    size_t prefix = strlen(r->name);
    if (id.size <= prefix || id.size >= sizeof(text) || memcmp(id.data, r->name, prefix) != 0)
        return NULL;
    memcpy(text, id.data, id.size);
    text[id.size] = 0;
    char *end;
    unsigned long long n = strtoull(text + prefix, &end, 10);
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
    if (!r->tracks[index].accepted) {
        r->tracks[index].accepted = true;
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
    if (t->numeric && !job->numeric) {
        job->numeric = t->numeric;
        job->began_context = t->context;
    }
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
        if (r->tracks[i].accepted || r->jobs[i].over)
            continue;
        err_set_code(&r->jobs[i].error, (int)e->code, "%.*s", (int)e->message.size, e->message.data);
        answered(r, i);
        finish(r, &r->jobs[i]);
    }
}

/* The seed is what makes the rest of a resumed stream the same: another one must not be taken for it. */
static void take_accepted(struct run *r, struct client_job *job, size_t index, const struct wire_accepted *a)
{
    struct track *t = &r->tracks[index];
    if (t->seeded && a->seed != job->seed) {
        err_set_code(&job->error, 500, "it was accepted again with seed %llu, not %llu",
                     (unsigned long long)a->seed, (unsigned long long)job->seed);
        finish(r, job);
        return;
    }
    t->seeded = r->found = true;
    job->seed = a->seed;
}

static void take_error(struct run *r, struct client_job *job, size_t index, const struct wire_error *e)
{
    uint64_t now_ms = clock_now_ms(),
             again_ms = e->retry_after_ms > RESEND_MS ? e->retry_after_ms : RESEND_MS;
    if (job->resumed && !r->interrupted && client_worth_trying(e->code) &&
        now_ms + again_ms < r->retry_until_ms) {
        r->tracks[index].resend_ms = now_ms + again_ms;
        return;
    }
    err_set_code(&job->error, (int)e->code, "%.*s", (int)e->message.size, e->message.data);
    finish(r, job);
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
        take_accepted(r, job, index, &m->accepted);
        break;
    case WIRE_TOKEN:
        take_token(r, job, &m->token);
        break;
    case WIRE_DONE:
        take_done(r, job, &m->done);
        break;
    case WIRE_ERROR:
        take_error(r, job, index, &m->error);
        break;
    default:
        break;
    }
}

/* Asks for a job; for what is left of it when it has begun. */
static int send_job(struct run *r, size_t index, struct err *err)
{
    struct client_job *job = &r->jobs[index];
    struct track *t = &r->tracks[index];
    struct wire_delivered had[WIRE_MAX_CHOICES];
    struct wire_message m;
    char id[64];
    wire_init(&m, WIRE_GENERATE);
    m.generate = job->ask;
    job_id(r, id, index);
    m.generate.request = wire_string(id);
    m.generate.idempotent = true;
    uint64_t spent_ms = job->sent_us ? (clock_now_us() - job->sent_us) / 1000 : 0,
             most_ms = job->ask.timeout_ms;
    if (most_ms) /* the deadline stays where it was */
        m.generate.timeout_ms = spent_ms < most_ms ? most_ms - spent_ms : 1;
    if (!job->sent_us)
        job->sent_us = clock_now_us();
    if (t->seeded) {
        m.generate.sampling.has_seed = true;
        m.generate.sampling.seed = job->seed;
        m.generate.numeric = job->numeric;
        m.generate.context = job->began_context;
        m.generate.delivered = had;
    }
    for (uint64_t c = 0; t->seeded && c < job->ask.sampling.n; c++) {
        const struct client_choice *choice = &job->choice[c];
        if (choice->token_count || choice->over)
            had[m.generate.delivered_count++] =
                (struct wire_delivered){.choice = c,
                                        .ended = choice->over,
                                        .ids = choice->tokens,
                                        .id_count = (uint32_t)choice->token_count};
    }
    t->resend_ms = 0;
    return client_send(r->client, &m, err);
}

static int send_all(struct run *r, struct err *err)
{
    r->unanswered = 0;
    r->give_up_ms = clock_now_ms() + ANSWER_TIMEOUT_MS;
    for (size_t i = 0; i < r->count; i++) {
        if (r->jobs[i].over)
            continue;
        r->tracks[i].accepted = false;
        r->unanswered++;
        if (send_job(r, i, err) != 0)
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
        char id[64];
        if (r->jobs[i].over)
            continue;
        wire_init(&m, WIRE_CANCEL);
        job_id(r, id, i);
        m.cancel.request = wire_string(id);
        if (client_send(r->client, &m, err) != 0)
            return -1;
    }
    return 0;
}

/* The coordinator is lost: every stream that is not over is asked for again once it is found. */
static int resume(struct run *r, struct err *err)
{
    uint64_t now_ms = clock_now_ms();
    if (r->interrupted || client_retry_ms(r->client) == 0 || err->code != 503)
        return -1;
    if (r->found || !r->retry_until_ms)
        r->retry_until_ms = now_ms + client_retry_ms(r->client);
    r->found = false;
    for (size_t i = 0; i < r->count; i++)
        r->jobs[i].resumed += !r->jobs[i].over;
    for (;;) {
        int found = client_find_again(r->client, r->retry_until_ms, err);
        if (found > 0) { /* Ctrl-C: nobody is there whom it could be told */
            r->interrupted = true;
            err_set_code(err, 503, "interrupted while the coordinator was looked for");
        }
        if (found != 0)
            return -1;
        if (send_all(r, err) == 0)
            return 0;
    }
}

/* Asks again for what had no place; when the next one is due. */
static int send_due(struct run *r, uint64_t now_ms, uint64_t *due_ms, struct err *err)
{
    for (size_t i = 0; i < r->count; i++) {
        struct track *t = &r->tracks[i];
        if (t->resend_ms && !r->jobs[i].over && t->resend_ms <= now_ms) {
            t->accepted = false;
            r->unanswered++;
            r->give_up_ms = now_ms + ANSWER_TIMEOUT_MS;
            if (send_job(r, i, err) != 0)
                return -1;
        } else if (t->resend_ms && !r->jobs[i].over && t->resend_ms < *due_ms) {
            *due_ms = t->resend_ms;
        }
    }
    return 0;
}

/* One message, or one event. */
static int step(struct run *r, struct err *err)
{
    uint64_t now_ms = clock_now_ms(), due_ms = UINT64_MAX;
    if (r->retry_until_ms && !r->interrupted && send_due(r, now_ms, &due_ms, err) != 0)
        return resume(r, err);
    uint64_t until_ms = due_ms < r->give_up_ms ? due_ms : r->give_up_ms;
    uint64_t wait_ms = until_ms == UINT64_MAX ? UINT64_MAX : until_ms > now_ms ? until_ms - now_ms : 0;
    struct wire_message m;
    int rc = client_receive_watching(r->client, &m, wait_ms, !r->interrupted, err);
    if (rc < 0)
        return resume(r, err);
    if (rc == 0 && due_ms <= r->give_up_ms)
        return 0;
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
                    .tracks = xcalloc(count ? count : 1, sizeof(struct track))};
    snprintf(r.name, sizeof(r.name), "g%016llx-", (unsigned long long)clock_entropy());
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
    free(r.tracks);
    return rc;
}
