/* What is done now: who has waited too long, who goes first, where to, and who makes room. */
#include "coordinator/scheduler_internal.h"

#define TRIES        16 /* heads of flows that are asked when the first finds no room */
#define PASSED_LIMIT 64 /* so often may others go first: then the room is kept for it */
#define CANDIDATES   24 /* groups that are compared for one request */
#define DRAWS        8  /* random draws before a full scan */

struct output {
    struct scheduler_action *actions;
    size_t count, max;
};

static bool output_full(const struct output *out)
{
    return out->count == out->max;
}

/* Ends a request: at once when no group holds it, else when its group confirms. */
static void end(struct scheduler *s, struct output *out, uint32_t request, int code, const char *reason)
{
    struct entry *e = &s->entries[request];
    bool held = e->state == RUNNING || e->state == PREEMPTED;
    out->actions[out->count++] = (struct scheduler_action){.kind = SCHEDULER_END,
                                                           .request = request,
                                                           .group = held ? e->group : SCHEDULER_NONE,
                                                           .code = code,
                                                           .reason = reason};
    if (held)
        scheduler_ending(s, request);
    else
        entry_free(s, request);
}

/* Its group is gone: it waits again, before all others. */
static void move(struct scheduler *s, struct output *out, uint32_t request)
{
    struct entry *e = &s->entries[request];
    out->actions[out->count++] =
        (struct scheduler_action){.kind = SCHEDULER_MOVE, .request = request, .group = SCHEDULER_NONE};
    entry_leave(s, request);
    e->moved = true;
    e->prefilled = false;
    s->counts.moved++;
    queue_put(s, request);
    entry_due(s, request);
}

static void step_lost(struct scheduler *s, struct output *out)
{
    while (s->lost.first != SCHEDULER_NONE && !output_full(out)) {
        uint32_t request = s->lost.first;
        struct entry *e = &s->entries[request];
        bool shed = e->group == SCHEDULER_NONE;
        if (!shed && !e->ending) {
            move(s, out, request);
            continue;
        }
        end(s, out, request, shed ? 429 : 502,
            shed ? "the queue is full, and its tenant holds most of it" : "its group was lost");
    }
}

/* Ends what is due. A due time may be stale (its model is served again): it is computed anew. */
static void step_due(struct scheduler *s, uint64_t now_ms, struct output *out)
{
    uint32_t request;
    while (!output_full(out) && (request = heap_first(&s->due)) != HEAP_NONE &&
           s->due_nodes[request].key <= now_ms) {
        struct entry *e = &s->entries[request];
        int code;
        const char *reason;
        if (e->impatient_ms && e->impatient_ms <= now_ms) {
            e->impatient_ms = 0;
            s->pools[s->flows[e->flow].pool].assignable = true;
        }
        if (entry_due_ms(s, &s->entries[request], &code, &reason) <= now_ms)
            end(s, out, request, code, reason);
        else
            entry_due(s, request);
    }
}

/* ---- where to ---- */
static uint64_t draw(struct scheduler *s)
{
    s->random += 0x9e3779b97f4a7c15ull; /* SplitMix64 (Steele, Lea, Flood 2014) */
    uint64_t z = s->random;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* A twelfth of a group's places is kept for those who run less than their share: they need not wait until
 * somebody greedy is done. */
static uint32_t kept_places(const struct balancer_group *g)
{
    return g->max_sequences >= 8 ? (g->max_sequences + 11) / 12 : 0;
}

struct candidates {
    bool over_share;  /* of the request */
    uint64_t numeric; /* of the groups that may have it; 0: any */
    struct balancer_group groups[CANDIDATES];
    size_t count;
};

/* Adds a group of the pool that has room, once. */
static bool consider(const struct scheduler *s, const struct pool *p, struct candidates *c, uint32_t group,
                     const struct balancer_request *r, uint64_t cached)
{
    const struct group *g = &s->groups[group];
    if (c->numeric && g->numeric != c->numeric)
        return false;
    if (!g->open || &s->pools[g->pool] != p || !balancer_fits(&g->view, r) || c->count == CANDIDATES)
        return false;
    uint32_t taken = g->view.assigned + r->choices + kept_places(&g->view);
    if (c->over_share && taken > g->view.max_sequences && g->view.requests > 0)
        return false;
    for (size_t i = 0; i < c->count; i++)
        if (c->groups[i].group == group)
            return false;
    c->groups[c->count] = g->view;
    c->groups[c->count++].cached_tokens = cached;
    return true;
}

static void consider_prefix(struct scheduler *s, const struct pool *p, struct candidates *c, uint32_t request,
                            const struct balancer_request *r)
{
    struct prefix_match found[16];
    const struct entry *e = &s->entries[request];
    uint32_t count = prefix_find(s->prefix, &s->keys[request], found, ARRAY_LEN(found));
    uint64_t believed = pool_prefix_percent(s, p);
    for (uint32_t i = 0; i < count; i++)
        if (found[i].group < s->group_end)
            consider(s, p, c, found[i].group, r,
                     e->bytes ? found[i].bytes * e->prompt_tokens / e->bytes * believed / 100 : 0);
}

/* The least loaded: the first of the heap, then what lies right under it. */
static void consider_least(const struct scheduler *s, const struct pool *p, struct candidates *c,
                           const struct balancer_request *r, uint32_t most)
{
    uint32_t first = heap_first(&p->open);
    if (first == HEAP_NONE)
        return;
    consider(s, p, c, first, r, 0);
    uint32_t i = s->open_nodes[first].child;
    for (uint32_t n = 1; i != HEAP_NONE && n < most; i = s->open_nodes[i].next, n++)
        consider(s, p, c, i, r, 0);
}

static void consider_random(struct scheduler *s, const struct pool *p, struct candidates *c,
                            const struct balancer_request *r, uint32_t most)
{
    size_t before = c->count;
    for (int i = 0; i < DRAWS && c->count - before < most && p->open.count > 0; i++)
        consider(s, p, c, (uint32_t)(draw(s) % s->group_end), r, 0);
}

static void consider_all(const struct scheduler *s, const struct pool *p, struct candidates *c,
                         const struct balancer_request *r, uint32_t from, size_t most)
{
    for (uint32_t i = 0; i < s->group_end && c->count < most; i++)
        consider(s, p, c, (from + i) % s->group_end, r, 0);
}

uint64_t entry_numeric(const struct scheduler *s, const struct pool *p, const struct entry *e)
{
    for (uint32_t i = 0; e->numeric && i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (g->live && g->accepting && g->numeric == e->numeric && &s->pools[g->pool] == p)
            return e->numeric;
    }
    return 0;
}

/* The group for this request, by the policy; SCHEDULER_NONE when none has room. */
static uint32_t choose_group(struct scheduler *s, struct pool *p, uint32_t request, uint64_t *cached)
{
    const struct entry *e = &s->entries[request];
    const struct balancer_policy *policy = s->policy;
    struct balancer_request r = {.prompt_tokens = e->prompt_tokens,
                                 .output_tokens = e->choices * e->output_tokens,
                                 .kv_tokens = e->kv_tokens,
                                 .choices = e->choices};
    struct candidates c = {.over_share = !e->moved && flow_over_share(s, &s->flows[e->flow]),
                           .numeric = entry_numeric(s, p, e)};
    if (p->open.count == 0)
        return SCHEDULER_NONE;
    if (policy->prefix && s->prefix)
        consider_prefix(s, p, &c, request, &r);
    if (policy->sample == BALANCER_LEAST)
        consider_least(s, p, &c, &r, policy->samples);
    else if (policy->sample == BALANCER_RANDOM)
        consider_random(s, p, &c, &r, policy->samples);
    else
        consider_all(s, p, &c, &r, p->round, 1);
    if (c.count == 0) /* those that were looked at have no room for this one: another may */
        consider_all(s, p, &c, &r, p->round, CANDIDATES);
    int chosen = balancer_choose(policy, c.groups, c.count, &r, prefix_weight(s));
    if (chosen < 0)
        return SCHEDULER_NONE;
    *cached = c.groups[chosen].cached_tokens;
    p->round = c.groups[chosen].group + 1;
    return c.groups[chosen].group;
}

/* Tokens that it is expected to generate yet. */
static uint64_t decode_left(const struct entry *e)
{
    return e->choices *
           (e->produced < e->output_tokens ? e->output_tokens - e->produced : e->produced / 4 + 1);
}

static void assign(struct scheduler *s, struct pool *p, struct output *out, uint32_t request, uint32_t group,
                   uint64_t cached)
{
    struct entry *e = &s->entries[request];
    struct group *g = &s->groups[group];
    queue_take(s, request);
    entry_charge(s, request);
    e->state = RUNNING;
    e->group = group;
    e->passed = 0;
    e->cached_tokens = cached < e->prompt_tokens ? cached : e->prompt_tokens;
    e->cached_raw = cached * 100 / pool_prefix_percent(s, p);
    e->prefill_left = e->prompt_tokens - e->cached_tokens + e->produced; /* as if it were prompt */
    e->decode_left = decode_left(e);
    g->view.requests++;
    g->view.assigned += e->choices;
    s->flows[e->flow].running += e->choices;
    g->view.prefill_tokens += e->prefill_left;
    g->view.decode_tokens += e->decode_left;
    g->view.kv_reserved += e->kv_tokens;
    g->view.last = s->next_choice++;
    group_refresh(s, group);
    if (s->prefix)
        prefix_note(s->prefix, &s->keys[request], group);
    if (!e->alone && s->limits.classes[e->class].preemptible && e->preemptions < SCHEDULER_MAX_PREEMPTIONS) {
        list_append(s, &p->victims, request);
        e->victim = true;
    }
    tune_given(s, p, e);
    entry_due(s, request);
    s->counts.decisions++;
    s->counts.prefix_tokens += e->cached_tokens;
    out->actions[out->count++] =
        (struct scheduler_action){.kind = SCHEDULER_ASSIGN, .request = request, .group = group};
}

/* ---- who makes room ---- */
/* Its group is told to let go of it; then it waits again. */
static void give_way(struct scheduler *s, struct output *out, uint32_t request)
{
    struct entry *e = &s->entries[request];
    struct pool *p = &s->pools[s->flows[e->flow].pool];
    if (e->victim)
        list_remove(s, &p->victims, request);
    e->victim = false;
    e->state = PREEMPTED;
    p->preempting += e->choices;
    out->actions[out->count++] =
        (struct scheduler_action){.kind = SCHEDULER_PREEMPT, .request = request, .group = e->group};
}

/* The preemptible request that began last loses least; only of groups that take work. Its group alone gives
 * as many places as are needed at once. */
static void preempt(struct scheduler *s, struct pool *p, struct output *out, uint32_t places)
{
    uint32_t waiting = 0, group = SCHEDULER_NONE, free = 0;
    for (uint32_t c = 0; c < s->limits.class_count; c++)
        waiting += s->limits.classes[c].preempts ? p->class[c].queued_places : 0;
    for (uint32_t i = p->victims.last; i != SCHEDULER_NONE && p->preempting < waiting && !output_full(out);) {
        struct entry *e = &s->entries[i];
        uint32_t request = i;
        i = e->previous;
        const struct group *g = &s->groups[e->group];
        if (!g->accepting || (group != SCHEDULER_NONE && e->group != group))
            continue;
        if (group == SCHEDULER_NONE && g->open)
            free = g->view.max_sequences - g->view.assigned;
        group = e->group;
        e->preemptions++;
        free += e->choices;
        s->counts.preempted++;
        give_way(s, out, request);
        if (free >= places)
            return;
    }
}

/* Sequences that groups of a class could take beside what they have and what waits for them. */
static uint32_t room_of(const struct scheduler *s, const struct group *like)
{
    uint64_t room = 0;
    const struct pool *p = &s->pools[like->pool];
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (g->live && g->accepting && g->numeric == like->numeric && g->pool == like->pool)
            room += g->view.max_sequences - g->view.assigned;
    }
    uint64_t waiting = p->preempting;
    for (uint32_t c = 0; c < s->limits.class_count; c++)
        waiting += p->class[c].queued_places;
    return room > waiting ? (uint32_t)(room - waiting) : 0;
}

/* Groups that drain give what they run to others, as far as there is room: it need not wait for their end.
 * The state is as it was when no room is left: asked again with every step, until they are empty. */
static void step_hand_over(struct scheduler *s, struct output *out)
{
    bool left = false;
    for (uint32_t i = 0; s->handing_over && i < s->group_end; i++) {
        struct group *g = &s->groups[i];
        if (!g->live || !g->hand_over || g->view.assigned == 0)
            continue;
        left = true;
        uint32_t room = room_of(s, g);
        for (uint32_t r = 0; r < s->limits.live_requests && room > 0 && !output_full(out); r++) {
            if (s->entries[r].state != RUNNING || s->entries[r].group != i)
                continue;
            if (s->entries[r].choices > room)
                continue;
            room -= s->entries[r].choices;
            give_way(s, out, r);
        }
    }
    s->handing_over = left;
}

/* Can it still come in time when it starts now? Only said when speeds are known. */
static bool too_late(const struct scheduler *s, const struct pool *p, const struct entry *e, uint32_t group,
                     uint64_t cached, uint64_t now_ms)
{
    const struct balancer_group *g = &s->groups[group].view;
    if (p->token_us == 0 || e->produced > 0 || e->moved)
        return false;
    uint64_t fresh = e->prompt_tokens - (cached < e->prompt_tokens ? cached : e->prompt_tokens);
    uint64_t need_us = (g->prefill_tokens + fresh) * 1000000 / g->prefill_rate + entry_decode_us(p, e);
    return now_ms + need_us / 1000 > e->deadline_ms;
}

/* One pool: heads of the queue in order, until nothing fits. */
static void step_pool(struct scheduler *s, struct pool *p, uint64_t now_ms, struct output *out)
{
    int tries = TRIES;
    s->round++;
    while (!output_full(out)) {
        uint64_t cached = 0;
        uint32_t request = queue_first(s, p);
        if (request == SCHEDULER_NONE)
            break;
        struct entry *e = &s->entries[request];
        uint32_t group = choose_group(s, p, request, &cached);
        if (group != SCHEDULER_NONE && too_late(s, p, e, group, cached, now_ms)) {
            s->counts.late++;
            end(s, out, request, 408, "it can no longer meet its deadline");
            continue;
        }
        if (group != SCHEDULER_NONE) {
            assign(s, p, out, request, group, cached);
            continue;
        }
        if (s->limits.classes[e->class].preempts && !e->impatient_ms)
            preempt(s, p, out, e->choices);
        bool waits_for_room = !flow_over_share(s, &s->flows[e->flow]);
        if (p->open.count == 0 || (waits_for_room && (++e->passed > PASSED_LIMIT || --tries == 0)))
            break;
        s->flows[e->flow].passed_round = s->round;
    }
    p->assignable = output_full(out);
}

/* Suspects to the empty groups that are kept for them. */
static void step_alone(struct scheduler *s, struct output *out)
{
    uint32_t request, group;
    while (!output_full(out) && (request = alone_next(s, &group)) != SCHEDULER_NONE) {
        queue_put(s, request); /* from where assign takes what it gives away */
        assign(s, &s->pools[s->groups[group].pool], out, request, group, 0);
    }
}

/* Those that named no model before any group came get the only one that is served. */
static void step_unnamed(struct scheduler *s, struct output *out)
{
    struct pool *unnamed = &s->pools[0];
    bool none;
    struct pool *only = unnamed->queued ? pool_only(s, &none) : NULL;
    if (!unnamed->queued || (!only && none) || only == unnamed)
        return;
    for (uint32_t i = 0; i < s->limits.live_requests && unnamed->queued && !output_full(out); i++) {
        struct entry *e = &s->entries[i];
        if (e->state != QUEUED || s->flows[e->flow].pool != 0)
            continue;
        uint32_t flow = SCHEDULER_NONE;
        if (only)
            flow = flow_of(s, (uint32_t)(only - s->pools), e->class, s->flows[e->flow].tenant);
        if (flow == SCHEDULER_NONE) {
            end(s, out, i, only ? 429 : 400,
                only ? "the queue is full" : "several models are served: name one of them");
            continue;
        }
        queue_take(s, i);
        flow_part(s, e->flow);
        e->flow = flow;
        flow_join(s, flow);
        queue_put(s, i);
        entry_due(s, i);
    }
}

size_t scheduler_step(struct scheduler *s, uint64_t now_ms, struct scheduler_action *actions, size_t max)
{
    struct output out = {.actions = actions, .max = max};
    s->now_ms = now_ms;
    step_lost(s, &out);
    step_due(s, now_ms, &out);
    if (s->draining)
        return out.count;
    step_hand_over(s, &out);
    step_alone(s, &out);
    step_unnamed(s, &out);
    for (uint32_t i = 0; i < s->pool_limit && !output_full(&out); i++)
        if (s->pools[i].used && s->pools[i].assignable)
            step_pool(s, &s->pools[i], now_ms, &out);
    return out.count;
}

uint64_t scheduler_due_ms(const struct scheduler *s)
{
    if (s->lost.count > 0)
        return 0;
    for (uint32_t i = 0; i < s->pool_limit && !s->draining; i++)
        if (s->pools[i].used && s->pools[i].assignable && s->pools[i].queued > 0 && s->pools[i].groups > 0)
            return 0;
    uint32_t first = heap_first(&s->due);
    return first == HEAP_NONE ? SCHEDULER_NEVER : s->due_nodes[first].key;
}
