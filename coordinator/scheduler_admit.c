/* Who is let in: models, room in the queue and in bytes, the expected wait, deadlines, and who makes room. */
#include "coordinator/scheduler_internal.h"

#include <string.h>

/* Requests that a tenant may hold beyond twice another's before it makes room for it. */
#define SHED_MARGIN 4

static int full(struct scheduler *s, struct scheduler_admission *out, const struct pool *p, struct err *err)
{
    out->retry_after_ms = 1000;
    tuner_spoil(&s->tuner);
    if (p && p->queued) { /* by then the queue has moved by a tenth */
        uint64_t work_us = 0;
        for (uint32_t c = 0; c < s->limits.class_count; c++)
            work_us += p->class[c].work_us;
        uint64_t tenth = work_us / 10000 / (p->accepting ? p->accepting : 1);
        out->retry_after_ms = tenth < 100 ? 100 : tenth > 60000 ? 60000 : tenth;
    }
    return err_set_code(err, 429, "the queue is full: %u requests wait; try again in %llu ms", s->queued,
                        (unsigned long long)out->retry_after_ms);
}

/* Which pool a submission belongs to: NULL and 404 or 400. A name is wrong only when groups have been seen
 * and none of them ever served it: while a cluster starts, a request may wait for its model. */
static struct pool *admit_model(struct scheduler *s, const char *model, struct err *err)
{
    bool none, any = false;
    if (strlen(model) >= NAME_BYTES) {
        err_set_code(err, 404, "no group serves a model with a name of %zu bytes", strlen(model));
        return NULL;
    }
    if (!model[0]) {
        struct pool *only = pool_only(s, &none);
        if (!only && !none)
            err_set_code(err, 400, "several models are served: name one of them");
        return only || !none ? only : &s->pools[0];
    }
    for (uint32_t i = 0; i < s->pool_limit; i++)
        any |= s->pools[i].used && s->pools[i].known;
    struct pool *p = pool_find(s, model, !any);
    if (!p || (any && !p->known)) {
        err_set_code(err, 404, "no group serves model \"%s\"", model);
        return NULL;
    }
    return p;
}

/* The flow's newest request that no group has had: whoever reads a stream already is not told to come back
 * later, because its group was lost or somebody else went first. */
static uint32_t newest_fresh(const struct scheduler *s, const struct flow *f)
{
    uint32_t i = f->arrived.last;
    while (i != SCHEDULER_NONE && (s->entries[i].given || s->entries[i].numeric))
        i = s->entries[i].previous;
    return i;
}

/* The tenant that holds most of the queue in this class; its newest request makes room when
 * it holds more than twice what the newcomer's tenant holds: to be equal is not to be greedy. */
static uint32_t find_shed(const struct scheduler *s, uint32_t class, uint32_t flow)
{
    uint32_t most = SCHEDULER_NONE, count = s->flows[flow].arrived.count + 1;
    count = 2 * count + SHED_MARGIN;
    for (uint32_t i = 0; i < s->flow_limit; i++) {
        const struct flow *f = &s->flows[i];
        if (f->used && f->class == class && f->arrived.count > count &&
            newest_fresh(s, f) != SCHEDULER_NONE) {
            most = i;
            count = f->arrived.count;
        }
    }
    return most == SCHEDULER_NONE ? SCHEDULER_NONE : newest_fresh(s, &s->flows[most]);
}

/* Preemptible work may fill half of the queue, and an eighth more than all of it is kept for those who
 * preempt: nobody who was let in must go for somebody more important. */
static bool queue_room(const struct scheduler *s, uint32_t class)
{
    const struct scheduler_class *c = &s->limits.classes[class];
    uint64_t most = s->limits.queue_requests, held = s->queued + s->lost.count;
    if (c->preempts)
        return held < most + most / 8;
    if (!c->preemptible || held >= most)
        return held < most;
    held = 0;
    for (uint32_t i = 0; i < s->limits.class_count; i++)
        held += s->limits.classes[i].preemptible ? s->class_queued[i] : 0;
    return held < (most + 1) / 2;
}

/* Room in the queue: 0, or a refusal. */
static int admit_room(struct scheduler *s, const struct scheduler_submission *in, struct pool *p,
                      uint32_t flow, struct scheduler_admission *out, struct err *err)
{
    bool room = queue_room(s, in->class);
    if (s->live >= s->limits.live_requests)
        return full(s, out, p, err);
    if (in->bytes > s->limits.prompt_bytes - s->bytes) {
        full(s, out, p, err);
        return err_set_code(err, 429,
                            "the queue is full: its prompts hold %llu of %llu bytes; try again in %llu ms",
                            (unsigned long long)s->bytes, (unsigned long long)s->limits.prompt_bytes,
                            (unsigned long long)out->retry_after_ms);
    }
    if (!room) {
        uint32_t shed = find_shed(s, in->class, flow);
        if (shed == SCHEDULER_NONE)
            return full(s, out, p, err);
        entry_leave(s, shed);
        s->entries[shed].state = LOST;
        s->entries[shed].group = SCHEDULER_NONE;
        list_append(s, &s->lost, shed);
        s->counts.shed++;
        tuner_spoil(&s->tuner);
    }
    return 0;
}

static int refuse_wait(struct scheduler *s, struct scheduler_admission *out, uint64_t limit_ms,
                       struct err *err)
{
    tuner_spoil(&s->tuner);
    out->retry_after_ms = out->wait_ms - limit_ms;
    return err_set_code(err, 429,
                        "the expected wait is %llu ms, at most %llu are allowed; try again in %llu ms",
                        (unsigned long long)out->wait_ms, (unsigned long long)limit_ms,
                        (unsigned long long)out->retry_after_ms);
}

/* What it would wait for, against its deadline and the longest wait that is allowed. */
static int admit_wait(struct scheduler *s, const struct pool *p, const struct entry *e, uint64_t now_ms,
                      struct scheduler_admission *out, struct err *err)
{
    out->queued = p->queued;
    out->wait_ms = 0;
    if (p->accepting > 0 && (p->queued > 0 || p->open.count == 0))
        out->wait_ms = pool_wait_us(s, p, e) / 1000;
    uint64_t limit = s->limits.classes[e->class].queue_ms;
    limit = limit ? limit : s->limits.queue_ms;
    if (limit && out->wait_ms > limit)
        return refuse_wait(s, out, limit, err);
    uint64_t prefill_ms = e->prompt_tokens * 1000 / pool_prefill_rate(p);
    uint64_t decode_ms = entry_decode_us(p, e) / 1000;
    uint64_t needed_ms = prefill_ms + decode_ms;
    if (p->token_us == 0 || now_ms + out->wait_ms + needed_ms <= e->deadline_ms) {
        /* The wait is an estimate: a queue that uses up what the deadlines leave ends in work done for
         * nothing, so it may use half of that. */
        uint64_t slack = p->token_us && e->deadline_ms > now_ms ? e->deadline_ms - now_ms - needed_ms : 0;
        return slack && out->wait_ms > slack / 2 ? refuse_wait(s, out, slack / 2, err) : 0;
    }
    s->counts.late++;
    return err_set_code(err, 408,
                        "it cannot meet its deadline in %llu ms: about %llu ms of queue, %llu of prefill and "
                        "%llu of generation",
                        (unsigned long long)(e->deadline_ms > now_ms ? e->deadline_ms - now_ms : 0),
                        (unsigned long long)out->wait_ms, (unsigned long long)prefill_ms,
                        (unsigned long long)decode_ms);
}

int scheduler_submit(struct scheduler *s, const struct scheduler_submission *in, uint64_t now_ms,
                     struct scheduler_admission *out, struct err *err)
{
    *out = (struct scheduler_admission){0};
    s->now_ms = now_ms;
    ASSERT(in->class < s->limits.class_count);
    if (s->draining)
        return err_set_code(err, 503, "the coordinator is draining and takes no new requests");
    struct pool *p = admit_model(s, in->model, err);
    if (!p)
        return -1;
    if (in->bytes > s->limits.prompt_bytes)
        return err_set_code(err, 413, "the prompt has %llu bytes, at most %llu are taken",
                            (unsigned long long)in->bytes, (unsigned long long)s->limits.prompt_bytes);
    uint32_t flow = flow_of(s, (uint32_t)(p - s->pools), in->class, in->tenant ? in->tenant : "");
    if (flow == SCHEDULER_NONE)
        return full(s, out, p, err);
    struct entry *e = scheduler_entry(s, in->request), made = {.group = SCHEDULER_NONE,
                                                               .flow = flow,
                                                               .class = (uint8_t)in->class,
                                                               .choices = in->choices ? in->choices : 1,
                                                               .bytes = in->bytes,
                                                               .max_tokens = in->max_tokens,
                                                               .exact = in->exact && in->max_tokens,
                                                               .numeric = in->numeric,
                                                               .submitted_ms = now_ms,
                                                               .deadline_ms = in->deadline_ms};
    ASSERT(e->state == FREE);
    entry_estimate(s, &made);
    if (admit_wait(s, p, &made, now_ms, out, err) != 0 || admit_room(s, in, p, flow, out, err) != 0)
        return -1;
    made.order = s->next_order++;
    if (s->limits.classes[in->class].preempts)
        made.impatient_ms = now_ms + s->limits.classes[in->class].patience_ms;
    *e = made;
    if (s->keys)
        s->keys[in->request] = in->prefix ? *in->prefix : (struct prefix_key){0};
    flow_join(s, flow);
    s->live++;
    s->bytes += in->bytes;
    queue_put(s, in->request);
    entry_due(s, in->request);
    return 0;
}
