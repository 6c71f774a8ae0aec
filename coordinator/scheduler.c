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

/* Tokens/s of one sequence of a group that has not said how fast it is: larger ones are taken for faster. */
#define ASSUMED_SEQUENCE_RATE 125
/* Links below this are equal: a busy processor delays a message as much. */
#define NEAR_US 20000

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
    settings_init(s, limits);
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
    bool open = g->live && g->accepting && !g->kept && g->view.assigned < g->view.max_sequences;
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
    ASSERT(g->view.requests > 0 && g->view.assigned >= e->choices);
    g->view.requests--;
    g->view.assigned -= e->choices;
    g->view.prefill_tokens -= e->prefill_left;
    g->view.decode_tokens -= e->decode_left;
    g->view.kv_reserved -= e->kv_tokens;
    s->flows[e->flow].running -= e->choices;
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
        s->pools[s->flows[e->flow].pool].preempting -= e->choices;
        leave_group(s, e);
        break;
    case RUNNING:
        leave_victims(s, request);
        leave_group(s, e);
        break;
    case ENDING:
        leave_group(s, e);
        break;
    case HELD:
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
    entry_shared(s, request);
    entry_leave(s, request);
    flow_part(s, e->flow);
    s->bytes -= e->bytes;
    s->live--;
    e->state = FREE;
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
    uint64_t left = e->choices * (tokens < e->output_tokens ? e->output_tokens - tokens : tokens / 4 + 1);
    g->view.decode_tokens += left - e->decode_left;
    e->decode_left = left;
    group_refresh(s, e->group);
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
        s->pools[s->flows[e->flow].pool].preempting -= e->choices;
    if (e->state == RUNNING)
        leave_victims(s, request);
    e->ending = e->state == LOST;
    if (e->state == RUNNING || e->state == PREEMPTED)
        e->state = ENDING;
    if (e->due)
        heap_remove(&s->due, s->due_nodes, request);
    e->due = false;
}

/* Tokens that are delivered bind it to the class that generated them. */
static void keep_numeric(struct scheduler *s, struct entry *e)
{
    if (e->produced > 0 && !e->numeric)
        e->numeric = s->groups[e->group].numeric;
}

/* Back to its place in the queue. */
static void requeue(struct scheduler *s, uint32_t request)
{
    struct entry *e = &s->entries[request];
    entry_leave(s, request);
    e->prefilled = false;
    if (e->alone) { /* for another group of its own */
        e->state = HELD;
        s->alone_waiting++;
    } else {
        queue_put(s, request);
    }
    entry_due(s, request);
}

void scheduler_yielded(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state == PREEMPTED);
    keep_numeric(s, e);
    e->moved = s->groups[e->group].hand_over; /* who made room for another waits like the others */
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
                        .numeric = info->numeric,
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
    g->kept = false;                                             /* whoever it was kept for finds another */
    s->pools[g->pool].assignable |= s->pools[g->pool].moved > 0; /* who was bound to its class may be free */
    group_refresh(s, group);
}

void scheduler_group_draining(struct scheduler *s, uint32_t group, bool hand_over)
{
    group_at(s, group)->hand_over = hand_over;
    s->handing_over |= hand_over;
    stop_accepting(s, group);
}

void scheduler_group_resumes(struct scheduler *s, uint32_t group)
{
    struct group *g = group_at(s, group);
    if (!g->live || g->accepting)
        return;
    g->accepting = true;
    g->hand_over = false;
    s->pools[g->pool].accepting++;
    s->pools[g->pool].places += g->view.max_sequences;
    group_refresh(s, group);
}

void scheduler_group_link(struct scheduler *s, uint32_t group, uint64_t round_trip_us)
{
    struct group *g = group_at(s, group);
    uint64_t link_us = round_trip_us < NEAR_US ? 0 : round_trip_us;
    if (!g->live || g->view.link_us == link_us)
        return;
    g->view.link_us = link_us;
    group_refresh(s, group);
}

void scheduler_group_gone(struct scheduler *s, uint32_t group, uint64_t now_ms)
{
    struct group *g = group_at(s, group);
    if (!g->live)
        return;
    struct pool *p = &s->pools[g->pool];
    stop_accepting(s, group);
    tuner_spoil(&s->tuner);
    for (uint32_t i = 0; i < s->limits.live_requests && g->view.assigned > 0; i++) {
        struct entry *e = &s->entries[i];
        if ((e->state == RUNNING || e->state == PREEMPTED || e->state == ENDING) && e->group == group) {
            keep_numeric(s, e);
            entry_shared(s, i);
            e->ending = e->state == ENDING;
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
        if (s->entries[i].state == QUEUED || s->entries[i].state == HELD || s->entries[i].state == RUNNING)
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
