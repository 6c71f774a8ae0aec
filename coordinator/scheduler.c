#include "coordinator/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/scheduler_internal.h"

const struct scheduler_class scheduler_standard_classes[3] = {
    {.name = "realtime", .weight = 70, .preempts = true, .patience_ms = 50},
    {.name = "interactive", .weight = 25},
    {.name = "batch", .weight = 5, .preemptible = true},
};

/* What is learned moves by a sixteenth of the difference: about the last sixteen requests count. */
#define LEARN 16
/* Requests that a tenant may hold beyond twice another's before it makes room for it. */
#define SHED_MARGIN 4
/* Tokens expected in caches after which older ones count half. */
#define PREFIX_MEMORY 1000000
/* Tokens/s of one sequence of a group that has not said how fast it is: larger ones are taken for faster. */
#define ASSUMED_SEQUENCE_RATE 125

static void settle_limits(struct scheduler_limits *l)
{
    ASSERT(l->live_requests > 0 && l->groups > 0 && l->queue_requests > 0);
    ASSERT(l->class_count <= SCHEDULER_MAX_CLASSES);
    if (l->class_count == 0) {
        memcpy(l->classes, scheduler_standard_classes, sizeof(scheduler_standard_classes));
        l->class_count = ARRAY_LEN(scheduler_standard_classes);
    }
    for (uint32_t i = 0; i < l->class_count; i++)
        ASSERT(l->classes[i].weight > 0);
    l->tenants = l->tenants ? l->tenants : 1024;
}

struct scheduler *scheduler_new(const struct scheduler_limits *limits, const struct balancer_policy *policy)
{
    struct scheduler *s = xcalloc(1, sizeof(*s));
    s->limits = *limits;
    settle_limits(&s->limits);
    s->policy = policy;
    s->prefix_weight = limits->prefix_weight;
    s->entries = xcalloc(limits->live_requests, sizeof(*s->entries));
    s->order = xcalloc(limits->live_requests, sizeof(*s->order));
    s->due_nodes = xcalloc(limits->live_requests, sizeof(*s->due_nodes));
    if (limits->prefix_places) {
        s->prefix = prefix_new(limits->prefix_places);
        s->keys = xcalloc(limits->live_requests, sizeof(*s->keys));
    }
    s->due = heap_empty();
    s->groups = xcalloc(limits->groups, sizeof(*s->groups));
    s->open_nodes = xcalloc(limits->groups, sizeof(*s->open_nodes));
    s->pool_limit = 1 + (limits->groups < 256 ? limits->groups + 8 : 264);
    s->pools = xcalloc(s->pool_limit, sizeof(*s->pools));
    s->flow_limit = s->limits.tenants;
    s->flows = xcalloc(s->flow_limit, sizeof(*s->flows));
    s->buckets = xcalloc(s->flow_limit, sizeof(*s->buckets));
    for (uint32_t i = 0; i < s->flow_limit; i++)
        s->buckets[i] = SCHEDULER_NONE;
    s->lost = (struct list){SCHEDULER_NONE, SCHEDULER_NONE, 0};
    s->round = 1;
    s->random = limits->seed;
    struct pool *unnamed = pool_find(s, "", true);
    ASSERT(unnamed == &s->pools[0]);
    return s;
}

void scheduler_free(struct scheduler **ps)
{
    struct scheduler *s = *ps;
    if (!s)
        return;
    prefix_free(&s->prefix);
    free(s->keys);
    free(s->entries);
    free(s->order);
    free(s->due_nodes);
    free(s->groups);
    free(s->open_nodes);
    free(s->pools);
    free(s->flows);
    free(s->buckets);
    free(s);
    *ps = NULL;
}

static struct group *group_at(const struct scheduler *s, uint32_t group)
{
    ASSERT(group < s->limits.groups);
    return &s->groups[group];
}

void group_refresh(struct scheduler *s, uint32_t group)
{
    struct group *g = &s->groups[group];
    struct pool *p = &s->pools[g->pool];
    bool open = g->live && g->accepting && g->view.assigned < g->view.max_sequences;
    if (open) {
        uint64_t load = balancer_load_us(&g->view);
        if (!g->open)
            heap_push(&p->open, s->open_nodes, group, load, g->view.last);
        else if (s->open_nodes[group].key != load || s->open_nodes[group].tie != g->view.last)
            heap_move(&p->open, s->open_nodes, group, load, g->view.last);
    } else if (g->open) {
        heap_remove(&p->open, s->open_nodes, group);
    }
    g->open = open;
    p->assignable |= open;
}

/* Its group no longer counts on it. */
static void leave_group(struct scheduler *s, struct entry *e)
{
    struct group *g = &s->groups[e->group];
    ASSERT(g->view.assigned > 0);
    g->view.assigned--;
    g->view.prefill_tokens -= e->prefill_left;
    g->view.decode_tokens -= e->decode_left;
    g->view.kv_reserved -= e->kv_tokens;
    s->flows[e->flow].running--;
    e->prefill_left = e->decode_left = 0;
    group_refresh(s, e->group);
}

static void leave_victims(struct scheduler *s, uint32_t request)
{
    struct entry *e = &s->entries[request];
    if (e->victim)
        list_remove(s, &s->pools[s->flows[e->flow].pool].victims, request);
    e->victim = false;
}

void entry_leave(struct scheduler *s, uint32_t request)
{
    struct entry *e = &s->entries[request];
    switch (e->state) {
    case QUEUED:
        queue_take(s, request);
        break;
    case LOST:
        list_remove(s, &s->lost, request);
        break;
    case PREEMPTED:
        s->pools[s->flows[e->flow].pool].preempting--;
        leave_group(s, e);
        break;
    case RUNNING:
        leave_victims(s, request);
        leave_group(s, e);
        break;
    case ENDING:
        leave_group(s, e);
        break;
    case FREE:
        break;
    }
    if (e->due)
        heap_remove(&s->due, s->due_nodes, request);
    e->due = false;
}

void entry_free(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state != FREE);
    entry_leave(s, request);
    flow_part(s, e->flow);
    s->bytes -= e->bytes;
    s->live--;
    e->state = FREE;
}

/* ---- admission ---- */
static int full(const struct scheduler *s, struct scheduler_admission *out, const struct pool *p,
                struct err *err)
{
    out->retry_after_ms = 1000;
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

/* The tenant that holds most of the queue in this class; its newest request makes room when
 * it holds more than twice what the newcomer's tenant holds: to be equal is not to be greedy. */
static uint32_t find_shed(const struct scheduler *s, uint32_t class, uint32_t flow)
{
    uint32_t most = SCHEDULER_NONE, count = s->flows[flow].arrived.count + 1;
    count = 2 * count + SHED_MARGIN;
    for (uint32_t i = 0; i < s->flow_limit; i++) {
        const struct flow *f = &s->flows[i];
        if (f->used && f->class == class && f->arrived.count > count) {
            most = i;
            count = f->arrived.count;
        }
    }
    return most == SCHEDULER_NONE ? SCHEDULER_NONE : s->flows[most].arrived.last;
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
    if (!room) {
        uint32_t shed = find_shed(s, in->class, flow);
        if (shed == SCHEDULER_NONE)
            return full(s, out, p, err);
        entry_leave(s, shed);
        s->entries[shed].state = LOST;
        s->entries[shed].group = SCHEDULER_NONE;
        list_append(s, &s->lost, shed);
        s->counts.shed++;
    }
    if (in->bytes > s->limits.prompt_bytes - s->bytes) {
        full(s, out, p, err);
        return err_set_code(err, 429,
                            "the queue is full: its prompts hold %llu of %llu bytes; try again in %llu ms",
                            (unsigned long long)s->bytes, (unsigned long long)s->limits.prompt_bytes,
                            (unsigned long long)out->retry_after_ms);
    }
    return 0;
}

static int refuse_wait(struct scheduler_admission *out, uint64_t limit_ms, struct err *err)
{
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
        return refuse_wait(out, limit, err);
    uint64_t prefill_ms = e->prompt_tokens * 1000 / pool_prefill_rate(p);
    uint64_t decode_ms = e->output_tokens * p->token_us / 1000;
    uint64_t needed_ms = prefill_ms + decode_ms;
    if (p->token_us == 0 || now_ms + out->wait_ms + needed_ms <= e->deadline_ms) {
        /* The wait is an estimate: a queue that uses up what the deadlines leave ends in work done for
         * nothing, so it may use half of that. */
        uint64_t slack = p->token_us && e->deadline_ms > now_ms ? e->deadline_ms - now_ms - needed_ms : 0;
        return slack && out->wait_ms > slack / 2 ? refuse_wait(out, slack / 2, err) : 0;
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
                                                               .bytes = in->bytes,
                                                               .max_tokens = in->max_tokens,
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

/* ---- events of running requests ---- */
void scheduler_progress(struct scheduler *s, uint32_t request, uint64_t tokens)
{
    struct entry *e = scheduler_entry(s, request);
    if (e->state != RUNNING && e->state != ENDING && e->state != PREEMPTED)
        return;
    struct group *g = &s->groups[e->group];
    g->view.prefill_tokens -= e->prefill_left;
    e->prefill_left = 0;
    e->prefilled = true;
    e->produced = tokens;
    /* What is longer than expected is expected to go on for a quarter of what it has. */
    uint64_t left = tokens < e->output_tokens ? e->output_tokens - tokens : tokens / 4 + 1;
    g->view.decode_tokens += left - e->decode_left;
    e->decode_left = left;
    group_refresh(s, e->group);
}

/* *average moves towards the sample; both in units of 1/16. */
static void learn(uint64_t *average, uint64_t sample)
{
    int64_t step = ((int64_t)sample - (int64_t)*average) / LEARN;
    if (step == 0 && sample != *average)
        step = sample > *average ? 1 : -1;
    *average = (uint64_t)((int64_t)*average + step);
}

static void learn_rate(uint64_t *pool_sum, uint64_t *rate, bool measured, uint64_t sample)
{
    uint64_t old = *rate;
    if (sample == 0)
        return;
    if (measured)
        learn(rate, sample);
    else
        *rate = sample;
    *pool_sum += *rate - old;
}

/* What nobody has measured is taken to be as fast as the measured groups of its pool, place for place: else
 * the first that was measured would get everything, or nothing. */
static void assume_rates(struct scheduler *s, uint32_t pool)
{
    struct pool *p = &s->pools[pool];
    uint64_t prefill = 0, decode = 0, places = 0, measured = 0;
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (!g->live || g->pool != pool || !g->measured)
            continue;
        prefill += g->view.prefill_rate;
        decode += g->view.decode_rate;
        places += g->view.max_sequences;
        measured++;
    }
    for (uint32_t i = 0; i < s->group_end && measured > 0; i++) {
        struct group *g = &s->groups[i];
        if (!g->live || g->pool != pool || g->measured)
            continue;
        uint64_t old_prefill = g->view.prefill_rate, old_decode = g->view.decode_rate;
        g->view.prefill_rate = prefill / measured;
        g->view.decode_rate = decode * g->view.max_sequences / places + 1;
        p->prefill_rate += g->view.prefill_rate - old_prefill;
        p->decode_rate += g->view.decode_rate - old_decode;
        group_refresh(s, i);
    }
}

/* The prefill's rate includes its wait inside the group, so a short prompt behind others looks slow: only
 * prompts that the group had for itself, or long ones, say how fast it is. */
static void learn_group(struct scheduler *s, struct entry *e, const struct scheduler_usage *u)
{
    struct group *g = &s->groups[e->group];
    struct pool *p = &s->pools[g->pool];
    uint64_t fresh = u->prompt_tokens - (u->cached_tokens < u->prompt_tokens ? u->cached_tokens : 0);
    if (u->prefill_us > 0 && fresh >= 64 && (g->view.assigned <= 1 || !g->measured))
        learn_rate(&p->prefill_rate, &g->view.prefill_rate, g->measured, fresh * 1000000 / u->prefill_us);
    if (u->decode_us > 0 && u->output_tokens > 4) {
        uint64_t each_us = u->decode_us / (u->output_tokens - 1);
        if (p->token_us == 0)
            p->token_us = each_us ? each_us : 1;
        else
            learn(&p->token_us, each_us);
        if (each_us)
            learn_rate(&p->decode_rate, &g->view.decode_rate, g->measured,
                       g->view.assigned * 1000000 / each_us);
        p->unmeasured -= !g->measured;
        g->measured = true;
    }
    group_refresh(s, e->group);
    if (p->unmeasured > 0)
        assume_rates(s, g->pool);
}

/* Caches evict, and the index does not see it: what was found against what was expected, of late. */
static void learn_prefix(struct pool *p, const struct entry *e, const struct scheduler_usage *u)
{
    if (!e->cached_raw)
        return;
    p->cached_expected += e->cached_raw;
    p->cached_found += u->cached_tokens < e->cached_raw ? u->cached_tokens : e->cached_raw;
    if (p->cached_expected > PREFIX_MEMORY) {
        p->cached_expected /= 2;
        p->cached_found /= 2;
    }
}

void scheduler_used(struct scheduler *s, uint32_t request, const struct scheduler_usage *u)
{
    struct entry *e = scheduler_entry(s, request);
    if (e->state != RUNNING && e->state != ENDING && e->state != PREEMPTED)
        return;
    struct pool *p = &s->pools[s->flows[e->flow].pool];
    if (u->prompt_tokens > 0 && e->bytes > 0) {
        learn(&p->bytes_per_256_tokens, e->bytes * 256 / u->prompt_tokens);
        p->bytes_per_256_tokens = p->bytes_per_256_tokens ? p->bytes_per_256_tokens : 1;
    }
    if (e->state == RUNNING)
        learn(&p->output_tokens_x16, 16 * u->output_tokens);
    learn_prefix(p, e, u);
    learn_group(s, e, u);
    entry_settle(s, request, u->prompt_tokens + 2 * u->output_tokens);
}

void scheduler_finished(struct scheduler *s, uint32_t request)
{
    entry_free(s, request);
}

void scheduler_ending(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state == RUNNING || e->state == PREEMPTED || e->state == ENDING || e->state == LOST);
    if (e->state == PREEMPTED)
        s->pools[s->flows[e->flow].pool].preempting--;
    if (e->state == RUNNING)
        leave_victims(s, request);
    if (e->state == RUNNING || e->state == PREEMPTED)
        e->state = ENDING;
    if (e->due)
        heap_remove(&s->due, s->due_nodes, request);
    e->due = false;
}

/* Back to its place in the queue. */
static void requeue(struct scheduler *s, uint32_t request)
{
    entry_leave(s, request);
    s->entries[request].prefilled = false;
    queue_put(s, request);
    entry_due(s, request);
}

void scheduler_yielded(struct scheduler *s, uint32_t request)
{
    ASSERT(scheduler_entry(s, request)->state == PREEMPTED);
    requeue(s, request);
}

void scheduler_unassign(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state == RUNNING || e->state == LOST);
    requeue(s, request);
}

/* ---- events of groups ---- */
void scheduler_group_ready(struct scheduler *s, uint32_t group, const struct scheduler_group_info *info)
{
    struct group *g = group_at(s, group);
    ASSERT(!g->live && g->view.assigned == 0);
    struct pool *p = pool_find(s, info->model, true);
    ASSERT(p); /* there are more pools than groups, or their number is bounded by the caller's groups */
    *g = (struct group){.known = true,
                        .live = true,
                        .accepting = true,
                        .measured = info->prefill_rate && info->decode_rate,
                        .pool = (uint32_t)(p - s->pools)};
    g->view = (struct balancer_group){
        .group = group,
        .max_sequences = info->max_sequences,
        .kv_tokens = info->kv_tokens,
        .last = s->next_choice++,
        .prefill_rate = info->prefill_rate ? info->prefill_rate : pool_prefill_rate(p),
        .decode_rate = info->decode_rate ? info->decode_rate : ASSUMED_SEQUENCE_RATE * info->max_sequences};
    p->known = true;
    p->groups++;
    p->accepting++;
    p->places += info->max_sequences;
    p->prefill_rate += g->view.prefill_rate;
    p->decode_rate += g->view.decode_rate;
    if (group >= s->group_end)
        s->group_end = group + 1;
    group_refresh(s, group);
    p->unmeasured += !g->measured;
    if (!g->measured)
        assume_rates(s, g->pool);
}

static void stop_accepting(struct scheduler *s, uint32_t group)
{
    struct group *g = &s->groups[group];
    if (g->accepting) {
        s->pools[g->pool].accepting--;
        s->pools[g->pool].places -= g->view.max_sequences;
    }
    g->accepting = false;
    group_refresh(s, group);
}

void scheduler_group_draining(struct scheduler *s, uint32_t group)
{
    group_at(s, group);
    stop_accepting(s, group);
}

void scheduler_group_gone(struct scheduler *s, uint32_t group, uint64_t now_ms)
{
    struct group *g = group_at(s, group);
    if (!g->live)
        return;
    struct pool *p = &s->pools[g->pool];
    stop_accepting(s, group);
    for (uint32_t i = 0; i < s->limits.live_requests && g->view.assigned > 0; i++) {
        struct entry *e = &s->entries[i];
        if ((e->state == RUNNING || e->state == PREEMPTED || e->state == ENDING) && e->group == group) {
            entry_leave(s, i);
            e->state = LOST;
            list_append(s, &s->lost, i);
        }
    }
    ASSERT(g->view.assigned == 0);
    g->live = false;
    p->unmeasured -= !g->measured;
    p->groups--;
    p->prefill_rate -= g->view.prefill_rate;
    p->decode_rate -= g->view.decode_rate;
    if (s->prefix)
        prefix_drop_group(s->prefix, group);
    if (p->groups > 0)
        return;
    p->gone_ms = now_ms; /* who waits for this model waits no longer than group_wait_ms from here */
    for (uint32_t i = 0; i < s->limits.live_requests; i++)
        if (s->entries[i].state == QUEUED && &s->pools[s->flows[s->entries[i].flow].pool] == p)
            entry_due(s, i);
}

void scheduler_group_forget(struct scheduler *s, uint32_t group)
{
    struct group *g = group_at(s, group);
    ASSERT(!g->live);
    bool served = false;
    uint32_t pool = g->pool;
    bool known = g->known;
    *g = (struct group){0};
    for (uint32_t i = 0; i < s->group_end; i++)
        served |= s->groups[i].known && s->groups[i].pool == pool;
    if (known && !served)
        s->pools[pool].known = false;
}

void scheduler_prefix_save(const struct scheduler *s, const char *(*name)(void *context, uint32_t group),
                           void *context, struct buffer *out)
{
    out->size = 0;
    if (s->prefix)
        prefix_save(s->prefix, name, context, out);
}

/* The one group that a snapshot is read for. */
struct restored {
    const char *name;
    uint32_t group;
};

static uint32_t restored_number(void *context, const char *name)
{
    const struct restored *r = context;
    return strcmp(r->name, name) == 0 ? r->group : UINT32_MAX;
}

int scheduler_prefix_restore(struct scheduler *s, const void *data, size_t bytes, const char *name,
                             uint32_t group, struct err *err)
{
    struct restored r = {.name = name, .group = group};
    return s->prefix ? prefix_load(s->prefix, data, bytes, restored_number, &r, err) : 0;
}

void scheduler_drain(struct scheduler *s, uint64_t deadline_ms)
{
    s->draining = true;
    s->drain_deadline_ms = deadline_ms;
    for (uint32_t i = 0; i < s->limits.live_requests; i++)
        if (s->entries[i].state == QUEUED || s->entries[i].state == RUNNING)
            entry_due(s, i);
}

/* ---- a look inside ---- */
uint32_t scheduler_queued(const struct scheduler *s)
{
    return s->queued;
}

uint32_t scheduler_live(const struct scheduler *s)
{
    return s->live;
}

uint64_t scheduler_bytes(const struct scheduler *s)
{
    return s->bytes;
}

uint32_t scheduler_assigned(const struct scheduler *s, uint32_t group)
{
    return group_at(s, group)->view.assigned;
}

bool scheduler_draining(const struct scheduler *s)
{
    return s->draining;
}

struct scheduler_counts scheduler_counts(const struct scheduler *s)
{
    return s->counts;
}

uint64_t scheduler_memory(const struct scheduler *s)
{
    uint64_t request = sizeof(struct entry) + 2 * sizeof(struct heap_node);
    if (s->keys)
        request += sizeof(struct prefix_key);
    return sizeof(*s) + s->limits.live_requests * request +
           s->limits.groups * (sizeof(struct group) + sizeof(struct heap_node)) +
           s->pool_limit * sizeof(struct pool) + s->flow_limit * (sizeof(struct flow) + sizeof(uint32_t)) +
           (s->prefix ? prefix_memory(s->prefix) : 0);
}
