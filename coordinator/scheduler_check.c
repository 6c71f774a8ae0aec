/* Every invariant of the scheduler, counted anew from the entries: for tests and simulations. */
#include "coordinator/scheduler_internal.h"

#include <stdlib.h>

struct sums {
    uint64_t requests, assigned, prefill, decode, kv;
};

static void check_group(const struct scheduler *s, uint32_t group, const struct sums *sum)
{
    const struct group *g = &s->groups[group];
    ASSERT(g->view.requests == sum->requests && g->view.assigned == sum->assigned);
    ASSERT(g->view.prefill_tokens == sum->prefill);
    ASSERT(g->view.decode_tokens == sum->decode && g->view.kv_reserved == sum->kv);
    ASSERT(g->live || sum->requests == 0);
    if (!g->known)
        return;
    /* No over-commitment: only a request that has a group for itself may be larger than the group. */
    ASSERT(g->view.assigned <= g->view.max_sequences || g->view.requests == 1);
    ASSERT(g->view.kv_tokens == 0 || g->view.kv_reserved <= g->view.kv_tokens || g->view.requests == 1);
    ASSERT(!g->kept || s->entries[g->kept_for].alone);
    ASSERT(!g->kept || g->view.requests <= 1 || s->entries[g->kept_for].state == HELD);
    ASSERT(g->open == (g->live && g->accepting && !g->kept && g->view.assigned < g->view.max_sequences));
    ASSERT(!g->open || s->open_nodes[group].key == balancer_load_us(&g->view));
    ASSERT(g->view.prefill_rate > 0 && g->view.decode_rate > 0);
}

static void check_groups(const struct scheduler *s)
{
    struct sums *sums = xcalloc(s->limits.groups, sizeof(*sums));
    for (uint32_t i = 0; i < s->limits.live_requests; i++) {
        const struct entry *e = &s->entries[i];
        if (e->state != RUNNING && e->state != PREEMPTED && e->state != ENDING)
            continue;
        ASSERT(e->group < s->limits.groups && s->groups[e->group].live);
        sums[e->group].requests++;
        sums[e->group].assigned += e->choices;
        sums[e->group].prefill += e->prefill_left;
        sums[e->group].decode += e->decode_left;
        sums[e->group].kv += e->kv_tokens;
    }
    for (uint32_t g = 0; g < s->limits.groups; g++)
        check_group(s, g, &sums[g]);
    free(sums);
}

static void check_entry(const struct scheduler *s, uint32_t request)
{
    const struct entry *e = &s->entries[request];
    ASSERT(!e->moved || e->state == QUEUED);
    ASSERT(!e->alone || e->state == HELD || e->state == RUNNING || e->state == ENDING ||
           e->state == PREEMPTED);
    ASSERT(e->due ==
           (e->state == QUEUED || e->state == HELD || e->state == RUNNING || e->state == PREEMPTED));
    ASSERT(!e->victim || e->state == RUNNING);
    ASSERT(e->preemptions <= SCHEDULER_MAX_PREEMPTIONS);
    ASSERT(e->state == FREE || e->choices > 0);
    ASSERT(e->state == FREE || (s->flows[e->flow].used && s->flows[e->flow].class == e->class));
}

static void check_flows(const struct scheduler *s)
{
    uint32_t queued = 0, live = 0;
    for (uint32_t i = 0; i < s->flow_limit; i++) {
        const struct flow *f = &s->flows[i];
        ASSERT(f->order.count == f->arrived.count && f->active == (f->order.count > 0));
        ASSERT(f->used || f->live == 0);
        queued += f->order.count;
        live += f->live;
    }
    ASSERT(queued == s->queued && live == s->live);
}

/* The places that are waited for, taken, and about to come free, counted anew. */
static void check_places(const struct scheduler *s)
{
    uint32_t *running = xcalloc(s->flow_limit, sizeof(*running));
    uint32_t *preempting = xcalloc(s->pool_limit, sizeof(*preempting));
    uint32_t(*queued)[SCHEDULER_MAX_CLASSES] = xcalloc(s->pool_limit, sizeof(*queued));
    for (uint32_t i = 0; i < s->limits.live_requests; i++) {
        const struct entry *e = &s->entries[i];
        uint32_t pool = s->flows[e->flow].pool;
        if (e->state == QUEUED)
            queued[pool][e->class] += e->choices;
        if (e->state == PREEMPTED)
            preempting[pool] += e->choices;
        if (e->state == RUNNING || e->state == PREEMPTED || e->state == ENDING)
            running[e->flow] += e->choices;
    }
    for (uint32_t i = 0; i < s->flow_limit; i++)
        ASSERT(s->flows[i].running == running[i]);
    for (uint32_t i = 0; i < s->pool_limit; i++) {
        ASSERT(s->pools[i].preempting == preempting[i]);
        for (uint32_t c = 0; c < s->limits.class_count; c++)
            ASSERT(s->pools[i].class[c].queued_places == queued[i][c]);
    }
    free(running);
    free(preempting);
    free(queued);
}

static void check_pools(const struct scheduler *s)
{
    uint32_t queued = 0, entries = 0;
    for (uint32_t i = 0; i < s->pool_limit; i++) {
        const struct pool *p = &s->pools[i];
        uint32_t in_classes = 0, moved = 0;
        for (uint32_t r = 0; r < s->limits.live_requests; r++)
            moved += s->entries[r].moved && &s->pools[s->flows[s->entries[r].flow].pool] == p;
        ASSERT(moved == p->moved);
        for (uint32_t c = 0; c < s->limits.class_count; c++) {
            in_classes += p->class[c].queued;
            ASSERT(p->class[c].queued > 0 || p->class[c].work_us == 0);
        }
        ASSERT(in_classes == p->queued);
        queued += p->queued;
        entries += p->entries;
    }
    ASSERT(queued == s->queued && entries == s->live);
}

/* The sums over each pool's groups. */
static void check_pool_groups(const struct scheduler *s, uint32_t pool)
{
    const struct pool *p = &s->pools[pool];
    uint64_t groups = 0, accepting = 0, places = 0, unmeasured = 0, prefill = 0, decode = 0;
    for (uint32_t i = 0; i < s->limits.groups; i++) {
        const struct group *g = &s->groups[i];
        if (!g->live || g->pool != pool)
            continue;
        groups++;
        accepting += g->accepting;
        places += g->accepting ? g->view.max_sequences : 0;
        unmeasured += !g->measured;
        prefill += g->view.prefill_rate;
        decode += g->view.decode_rate;
    }
    ASSERT(groups == p->groups && accepting == p->accepting && places == p->places);
    ASSERT(unmeasured == p->unmeasured && prefill == p->prefill_rate && decode == p->decode_rate);
}

void scheduler_check(const struct scheduler *s)
{
    uint64_t bytes = 0;
    uint32_t live = 0, queued = 0, lost = 0;
    for (uint32_t i = 0; i < s->limits.live_requests; i++) {
        const struct entry *e = &s->entries[i];
        check_entry(s, i);
        live += e->state != FREE;
        queued += e->state == QUEUED;
        lost += e->state == LOST;
        bytes += e->state != FREE ? e->bytes : 0;
    }
    ASSERT(live == s->live && queued == s->queued && lost == s->lost.count && bytes == s->bytes);
    ASSERT(s->queued <= s->limits.live_requests && bytes <= s->limits.prompt_bytes);
    check_flows(s);
    check_places(s);
    check_pools(s);
    check_groups(s);
    for (uint32_t i = 0; i < s->pool_limit; i++)
        check_pool_groups(s, i);
}
