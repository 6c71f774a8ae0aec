#include "tools/sim/simulation.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "coordinator/heap.h"

#define STEP_ACTIONS   64
#define PROGRESS_EVERY 16 /* tokens between two words to the scheduler */
#define MOST_SAMPLES   20000

struct sim_group {
    struct engine *engine;
    struct engine_speed speed;
    bool live;
    uint64_t change_us; /* when it fails, or is back */
};

struct live {
    bool used, accepted, yielding, ended; /* ended: its client has its outcome */
    bool cut;                             /* a choice was cancelled */
    struct workload_item item;
    uint32_t group;
    uint64_t first_us; /* its first token; 0: none yet */
    uint32_t cached, progress;
    uint32_t choices_left; /* that its group has not ended */
    uint32_t produced;     /* by those that it has */
    uint64_t order;        /* told to engines: a slot is used again */
};

struct simulation {
    const struct sim_options *o;
    struct workload *w;
    struct sim_result *r;
    struct scheduler *s;
    struct sim_group *groups;
    struct heap_node *due_nodes, *change_nodes; /* [groups] */
    struct heap due, change; /* engines by their next end of a step; failures and repairs */
    struct live *live;
    uint32_t *unused, unused_count, limit;
    uint64_t now_us, next_sample_us, sample_gap_us, orders, random;
};

static double uniform(struct simulation *m)
{
    m->random = m->random * 6364136223846793005ull + 1442695040888963407ull;
    return (double)((m->random >> 11) + 1) / 9007199254740993.0;
}

static uint64_t after_us(struct simulation *m, double mean_s)
{
    return m->now_us + (uint64_t)(-mean_s * 1e6 * log(uniform(m))) + 1;
}

/* ---- time spent in what is being simulated ---- */
static uint64_t enter(void)
{
    return clock_now_ns();
}

static void leave(struct simulation *m, uint64_t entered)
{
    m->r->scheduler_s += (double)(clock_now_ns() - entered) / 1e9;
    if (m->o->check)
        scheduler_check(m->s);
}

/* ---- outcomes ---- */
static void record(struct simulation *m, const struct live *q, int code)
{
    struct sim_result *r = m->r;
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 4096;
        r->requests = xrealloc(r->requests, r->capacity * sizeof(*r->requests));
    }
    uint64_t e2e_us = m->now_us - q->item.arrival_us;
    r->requests[r->count++] = (struct sim_request){
        .arrival_s = (float)((double)q->item.arrival_us / 1e6),
        .ttft_ms = q->first_us ? (float)((double)(q->first_us - q->item.arrival_us) / 1e3) : -1,
        .e2e_ms = (float)((double)e2e_us / 1e3),
        .tenant = q->item.tenant,
        .prompt_tokens = q->item.prompt_tokens,
        .output_tokens = code ? 0 : q->item.choices * q->item.output_tokens,
        .cached_tokens = q->cached,
        .code = (int16_t)code,
        .accepted = q->accepted,
        .class = (uint8_t)q->item.class,
        .in_time = code == 0 && e2e_us <= q->item.deadline_us};
}

static void free_slot(struct simulation *m, uint32_t slot)
{
    m->live[slot].used = false;
    m->unused[m->unused_count++] = slot;
}

/* ---- engines ---- */
static void engine_changed(struct simulation *m, uint32_t group)
{
    uint64_t due = m->groups[group].live ? engine_due_us(m->groups[group].engine) : ENGINE_NEVER;
    bool in = m->due_nodes[group].tie == 1;
    if (in)
        heap_remove(&m->due, m->due_nodes, group);
    m->due_nodes[group].tie = 0;
    if (due != ENGINE_NEVER)
        heap_push(&m->due, m->due_nodes, group, due, 1);
}

static uint64_t engine_id(const struct simulation *m, uint32_t slot)
{
    return m->live[slot].order << 24 | slot;
}

static void give(struct simulation *m, uint32_t slot, uint32_t group)
{
    struct live *q = &m->live[slot];
    struct prefix_key key;
    struct engine_place places[ENGINE_PLACES];
    workload_prefix(&q->item, &key, places);
    q->group = group;
    q->progress = q->produced = 0;
    q->choices_left = q->item.choices;
    q->order = ++m->orders;
    engine_submit(m->groups[group].engine,
                  &(struct engine_request){.id = engine_id(m, slot),
                                           .prompt_tokens = q->item.prompt_tokens,
                                           .output_tokens = q->item.output_tokens,
                                           .choices = q->item.choices,
                                           .place_count = key.count,
                                           .places = places},
                  m->now_us);
    engine_changed(m, group);
}

static void take_back(struct simulation *m, uint32_t slot)
{
    struct live *q = &m->live[slot];
    engine_cancel(m->groups[q->group].engine, engine_id(m, slot), -1, m->now_us);
    engine_changed(m, q->group);
}

/* ---- the scheduler's decisions ---- */
static void act(struct simulation *m)
{
    struct scheduler_action a[STEP_ACTIONS];
    size_t count;
    do {
        uint64_t entered = enter();
        count = scheduler_step(m->s, m->now_us / 1000, a, STEP_ACTIONS);
        leave(m, entered);
        for (size_t i = 0; i < count; i++) {
            struct live *q = &m->live[a[i].request];
            switch (a[i].kind) {
            case SCHEDULER_ASSIGN:
                give(m, a[i].request, a[i].group);
                break;
            case SCHEDULER_PREEMPT:
                q->yielding = true;
                take_back(m, a[i].request);
                break;
            case SCHEDULER_END:
                if (!q->ended)
                    record(m, q, a[i].code);
                q->ended = true;
                if (a[i].group == SCHEDULER_NONE)
                    free_slot(m, a[i].request);
                else
                    take_back(m, a[i].request);
                break;
            }
        }
    } while (count == STEP_ACTIONS);
}

static void arrive(struct simulation *m)
{
    struct workload_item item;
    workload_take(m->w, &item);
    if (m->unused_count == 0) { /* more than the coordinator can hold: it would refuse as well */
        struct live full = {.item = item};
        record(m, &full, 429);
        return;
    }
    uint32_t slot = m->unused[--m->unused_count];
    struct live *q = &m->live[slot];
    *q = (struct live){.used = true, .item = item};
    char tenant[24];
    struct prefix_key key;
    struct engine_place places[ENGINE_PLACES];
    struct scheduler_admission out;
    struct err err;
    snprintf(tenant, sizeof(tenant), "tenant-%u", item.tenant);
    workload_prefix(&item, &key, places);
    struct scheduler_submission in = {.request = slot,
                                      .model = "",
                                      .tenant = tenant,
                                      .class = item.class,
                                      .bytes = (uint64_t)item.prompt_tokens * WORKLOAD_TOKEN_BYTES,
                                      .choices = item.choices,
                                      .max_tokens = m->o->announced ? item.output_tokens : 0,
                                      .deadline_ms = (item.arrival_us + item.deadline_us) / 1000,
                                      .prefix = &key};
    uint64_t entered = enter();
    int refused = scheduler_submit(m->s, &in, m->now_us / 1000, &out, &err);
    leave(m, entered);
    if (refused) {
        record(m, q, err.code);
        free_slot(m, slot);
        return;
    }
    q->accepted = true;
    uint32_t used = m->limit - m->unused_count;
    if (used > m->r->most_live)
        m->r->most_live = used;
}

/* ---- what groups report ---- */
static void finished(struct simulation *m, uint32_t slot)
{
    struct live *q = &m->live[slot];
    struct scheduler_usage u = {.prompt_tokens = q->item.prompt_tokens,
                                .cached_tokens = q->cached,
                                .output_tokens = q->produced,
                                .decode_us = q->first_us ? m->now_us - q->first_us : 0};
    uint64_t entered = enter();
    scheduler_used(m->s, slot, &u);
    scheduler_finished(m->s, slot);
    leave(m, entered);
    if (!q->ended) {
        record(m, q, q->cut ? 499 : 0);
        if (!q->cut && (!m->o->until_us || m->now_us < m->o->until_us))
            workload_answered(m->w, &q->item, m->now_us);
    }
    free_slot(m, slot);
}

static void happened(struct simulation *m, const struct engine_event *v)
{
    uint32_t slot = (uint32_t)(v->id & 0xffffff);
    struct live *q = &m->live[slot];
    ASSERT(q->used && v->id == engine_id(m, slot));
    if (v->tokens > 0 && !q->first_us)
        q->first_us = m->now_us;
    if (v->tokens > 0 && v->choice == 0)
        q->cached = v->cached_tokens; /* the other choices find the first one's prompt */
    if (v->kind == ENGINE_TOKENS) {
        if (q->progress && v->tokens / PROGRESS_EVERY == q->progress / PROGRESS_EVERY)
            return;
        q->progress = v->tokens;
        uint64_t entered = enter();
        scheduler_progress(m->s, slot, v->tokens);
        leave(m, entered);
        return;
    }
    q->produced += v->tokens;
    q->cut |= v->kind == ENGINE_CANCELLED;
    if (--q->choices_left > 0)
        return;
    if (q->cut && q->yielding && !q->ended) {
        q->yielding = q->cut = false;
        uint64_t entered = enter();
        scheduler_yielded(m->s, slot);
        leave(m, entered);
    } else {
        finished(m, slot);
    }
}

static void engines_step(struct simulation *m)
{
    uint32_t group;
    while ((group = heap_first(&m->due)) != HEAP_NONE && m->due_nodes[group].key <= m->now_us) {
        const struct engine_event *events;
        size_t count = engine_step(m->groups[group].engine, &events);
        m->r->engine_steps++;
        for (size_t i = 0; i < count; i++)
            happened(m, &events[i]);
        engine_changed(m, group);
    }
}

/* ---- groups ---- */
static void group_starts(struct simulation *m, uint32_t group)
{
    struct sim_group *g = &m->groups[group];
    g->engine = engine_new(&g->speed, m->o->check ? 1 : 1u << 20);
    g->live = true;
    struct scheduler_group_info info = {
        .model = "model", .max_sequences = g->speed.max_sequences, .kv_tokens = g->speed.kv_tokens};
    if (m->o->tell_speeds) {
        info.prefill_rate = (uint64_t)engine_prefill_rate(&g->speed);
        info.decode_rate = (uint64_t)engine_decode_rate(&g->speed);
    }
    uint64_t entered = enter();
    scheduler_group_ready(m->s, group, &info);
    leave(m, entered);
    if (m->o->mtbf_s > 0)
        heap_push(&m->change, m->change_nodes, group, after_us(m, m->o->mtbf_s), group);
}

static void group_fails(struct simulation *m, uint32_t group)
{
    struct sim_group *g = &m->groups[group];
    g->live = false;
    engine_changed(m, group);
    engine_free(&g->engine);
    m->r->failures++;
    uint64_t entered = enter();
    scheduler_group_gone(m->s, group, m->now_us / 1000);
    leave(m, entered);
    act(m); /* its requests end before anything else speaks of them */
    heap_push(&m->change, m->change_nodes, group, after_us(m, m->o->repair_s), group);
}

static void groups_change(struct simulation *m)
{
    uint32_t group;
    while ((group = heap_first(&m->change)) != HEAP_NONE && m->change_nodes[group].key <= m->now_us) {
        heap_remove(&m->change, m->change_nodes, group);
        if (m->groups[group].live)
            group_fails(m, group);
        else
            group_starts(m, group);
    }
}

/* ---- the turn ---- */
/* Now and then, ever less often, so that any run has a bounded number of them. */
static void sample(struct simulation *m)
{
    struct sim_result *r = m->r;
    if (m->now_us < m->next_sample_us)
        return;
    if (r->sample_count == MOST_SAMPLES) {
        for (uint64_t i = 0; i < MOST_SAMPLES / 2; i++)
            r->samples[i] = r->samples[2 * i];
        r->sample_count = MOST_SAMPLES / 2;
        m->sample_gap_us *= 2;
    }
    uint32_t queued = scheduler_queued(m->s);
    r->samples[r->sample_count++] = (struct sim_sample){
        .at_s = (float)((double)m->now_us / 1e6), .queued = queued, .running = scheduler_live(m->s) - queued};
    m->next_sample_us = m->now_us + m->sample_gap_us;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* When the next request comes; UINT64_MAX: none comes any more, as far as is known. */
static uint64_t arrival_us(const struct simulation *m)
{
    uint64_t due = workload_due_us(m->w);
    return m->o->until_us && due > m->o->until_us ? UINT64_MAX : due;
}

/* When something happens next; UINT64_MAX: never again. */
static uint64_t next_us(const struct simulation *m)
{
    uint64_t due = arrival_us(m), scheduler = scheduler_due_ms(m->s);
    bool idle = due == UINT64_MAX && scheduler_live(m->s) == 0;
    if (idle)
        return UINT64_MAX;
    if (heap_first(&m->due) != HEAP_NONE)
        due = least(due, m->due_nodes[heap_first(&m->due)].key);
    if (heap_first(&m->change) != HEAP_NONE)
        due = least(due, m->change_nodes[heap_first(&m->change)].key);
    if (scheduler != SCHEDULER_NEVER)
        due = least(due, scheduler * 1000);
    return due > m->now_us ? due : m->now_us;
}

static void turn(struct simulation *m)
{
    groups_change(m);
    engines_step(m);
    while (arrival_us(m) <= m->now_us)
        arrive(m);
    act(m);
    sample(m);
}

static void open_simulation(struct simulation *m)
{
    const struct sim_options *o = m->o;
    uint64_t sequences = (uint64_t)o->groups * o->speed.max_sequences;
    m->limit = (uint32_t)least(o->queue_requests + sequences + 64, 1u << 22);
    struct scheduler_limits limits = {.live_requests = m->limit,
                                      .groups = o->groups,
                                      .queue_requests = o->queue_requests,
                                      .prompt_bytes = 1ull << 50,
                                      .group_wait_ms = 30000,
                                      .queue_ms = o->queue_ms,
                                      .tenants = o->tenants_remembered,
                                      .prefix_places = o->prefix_places,
                                      .prefix_weight = o->prefix_weight,
                                      .seed = o->seed};
    m->s = scheduler_new(&limits, o->policy);
    m->live = xcalloc(m->limit, sizeof(*m->live));
    m->unused = xcalloc(m->limit, sizeof(*m->unused));
    for (uint32_t i = m->limit; i-- > 0;)
        m->unused[m->unused_count++] = i;
    m->groups = xcalloc(o->groups, sizeof(*m->groups));
    m->due_nodes = xcalloc(o->groups, sizeof(*m->due_nodes));
    m->change_nodes = xcalloc(o->groups, sizeof(*m->change_nodes));
    m->due = m->change = heap_empty();
    m->sample_gap_us = 100000;
    m->r->samples = xcalloc(MOST_SAMPLES, sizeof(*m->r->samples));
    for (uint32_t i = 0; i < o->groups; i++) {
        m->groups[i].speed = o->speed;
        if (i < (uint32_t)(o->slow_share * o->groups + 0.5)) {
            m->groups[i].speed.base_us *= o->slow_factor;
            m->groups[i].speed.decode_us *= o->slow_factor;
            m->groups[i].speed.prefill_us *= o->slow_factor;
        }
        group_starts(m, i);
    }
}

static void close_simulation(struct simulation *m)
{
    struct scheduler_counts counts = scheduler_counts(m->s);
    m->r->decisions = counts.decisions;
    m->r->preempted = counts.preempted;
    m->r->shed = counts.shed;
    m->r->late = counts.late;
    m->r->scheduler_bytes = scheduler_memory(m->s);
    m->r->end_s = (double)m->now_us / 1e6;
    for (uint32_t i = 0; i < m->o->groups; i++)
        engine_free(&m->groups[i].engine);
    scheduler_free(&m->s);
    free(m->live);
    free(m->unused);
    free(m->groups);
    free(m->due_nodes);
    free(m->change_nodes);
}

void simulation_run(struct sim_result *out, const struct sim_options *o, struct workload *w)
{
    *out = (struct sim_result){0};
    struct simulation m = {.o = o, .w = w, .r = out, .random = o->seed ^ 0x5bd1e995};
    uint64_t started = clock_now_ns(), next;
    open_simulation(&m);
    while ((next = next_us(&m)) != UINT64_MAX) {
        m.now_us = next;
        turn(&m);
    }
    close_simulation(&m);
    out->wall_s = (double)(clock_now_ns() - started) / 1e9;
}

void sim_result_release(struct sim_result *r)
{
    free(r->requests);
    free(r->samples);
    *r = (struct sim_result){0};
}
