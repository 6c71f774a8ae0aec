/* Models, tenants and the order in which their requests wait; what a request is expected to cost. */
#include "coordinator/scheduler_internal.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

/* Mean deviations that a known length is given: nearly all answers end within three. */
#define MARGIN_DEVIATIONS 3
#define STANDARD_RATE     1000  /* tokens/s of a group that has not reported anything */
#define STANDARD_OUTPUT   128   /* tokens, before any request of the model has ended */
#define OUTPUT_WEIGHT     2     /* a generated token costs this many of a prompt (Sheng et al.) */
#define PREFIX_ENOUGH     10000 /* tokens expected in a cache, before what was found there counts */
#define DRAIN_FIRST_MS    500   /* after so long a backlog says how fast it drains */
#define DRAIN_WINDOW_MS   2000
#define EQUAL_TOKENS      4096 /* tenants this near to each other go by deadline */

struct entry *scheduler_entry(struct scheduler *s, uint32_t request)
{
    ASSERT(request < s->limits.live_requests);
    return &s->entries[request];
}

/* ---- pools ---- */
static void pool_init(struct pool *p, const char *model)
{
    *p = (struct pool){.used = true, .open = heap_empty()};
    p->victims = (struct list){SCHEDULER_NONE, SCHEDULER_NONE, 0};
    p->bytes_per_256_tokens = 4 * 256;
    p->output_tokens_x16 = 16 * STANDARD_OUTPUT;
    for (int c = 0; c < SCHEDULER_MAX_CLASSES; c++)
        p->class[c].active = SCHEDULER_NONE;
    snprintf(p->model, sizeof(p->model), "%s", model);
}

struct pool *pool_find(struct scheduler *s, const char *model, bool make)
{
    struct pool *unused = NULL;
    for (uint32_t i = 0; i < s->pool_limit; i++) {
        struct pool *p = &s->pools[i];
        if (p->used && strcmp(p->model, model) == 0)
            return p;
        if (!unused && (!p->used || (i > 0 && !p->known && p->entries == 0)))
            unused = p;
    }
    if (!make || !unused)
        return NULL;
    if (unused->used) /* flows of the model that went are forgotten with it */
        for (uint32_t f = 0; f < s->flow_limit; f++)
            if (s->flows[f].used && &s->pools[s->flows[f].pool] == unused)
                s->flows[f].served = 0;
    pool_init(unused, model);
    return unused;
}

struct pool *pool_only(struct scheduler *s, bool *none)
{
    struct pool *only = NULL;
    *none = true;
    for (uint32_t i = 0; i < s->pool_limit; i++) {
        if (!s->pools[i].used || s->pools[i].groups == 0)
            continue;
        *none = false;
        if (only)
            return NULL;
        only = &s->pools[i];
    }
    return only;
}

uint64_t pool_prefix_percent(const struct scheduler *s, const struct pool *p)
{
    if (!s->belief.automatic)
        return s->belief.value;
    if (p->cached_expected < PREFIX_ENOUGH)
        return 100;
    uint64_t percent = p->cached_found * 100 / p->cached_expected;
    return percent < s->belief.low ? s->belief.low : percent;
}

uint64_t pool_prefill_rate(const struct pool *p)
{
    return p->groups && p->prefill_rate >= p->groups ? p->prefill_rate / p->groups : STANDARD_RATE;
}

uint64_t pool_decode_rate(const struct pool *p)
{
    return p->groups && p->decode_rate >= p->groups ? p->decode_rate / p->groups : STANDARD_RATE;
}

/* ---- flows ---- */
static uint32_t flow_bucket(const struct scheduler *s, uint32_t pool, uint32_t class, const char *tenant)
{
    uint64_t hash = XXH3_64bits_withSeed(tenant, strlen(tenant), (uint64_t)pool << 8 | class);
    return (uint32_t)(hash % s->flow_limit);
}

static void flow_unlink_bucket(struct scheduler *s, uint32_t flow)
{
    struct flow *f = &s->flows[flow];
    uint32_t *at = &s->buckets[flow_bucket(s, f->pool, f->class, f->tenant)];
    while (*at != flow)
        at = &s->flows[*at].bucket_next;
    *at = f->bucket_next;
}

/* A flow that was never used, or the first idle one behind the hand: an idle tenant may be forgotten, since
 * it earns nothing. */
static uint32_t flow_free(struct scheduler *s)
{
    for (uint32_t i = 0; i < s->flow_limit; i++) {
        uint32_t at = (s->flow_hand + i) % s->flow_limit;
        if (s->flows[at].used && s->flows[at].live > 0)
            continue;
        s->flow_hand = at + 1;
        if (s->flows[at].used)
            flow_unlink_bucket(s, at);
        return at;
    }
    return SCHEDULER_NONE;
}

uint32_t flow_of(struct scheduler *s, uint32_t pool, uint32_t class, const char *tenant)
{
    uint32_t bucket = flow_bucket(s, pool, class, tenant);
    for (uint32_t i = s->buckets[bucket]; i != SCHEDULER_NONE; i = s->flows[i].bucket_next) {
        const struct flow *f = &s->flows[i];
        if (f->pool == pool && f->class == class && strcmp(f->tenant, tenant) == 0)
            return i;
    }
    uint32_t flow = flow_free(s);
    if (flow == SCHEDULER_NONE)
        return flow;
    struct flow *f = &s->flows[flow];
    *f = (struct flow){.used = true,
                       .pool = pool,
                       .class = class,
                       .next = SCHEDULER_NONE,
                       .previous = SCHEDULER_NONE,
                       .order = heap_empty(),
                       .arrived = {SCHEDULER_NONE, SCHEDULER_NONE, 0}};
    snprintf(f->tenant, sizeof(f->tenant), "%s", tenant);
    f->bucket_next = s->buckets[bucket];
    s->buckets[bucket] = flow;
    return flow;
}

void flow_join(struct scheduler *s, uint32_t flow)
{
    struct flow *f = &s->flows[flow];
    struct pool *p = &s->pools[f->pool];
    p->class[f->class].live_flows += f->live++ == 0;
    p->entries++;
}

void flow_part(struct scheduler *s, uint32_t flow)
{
    struct flow *f = &s->flows[flow];
    struct pool *p = &s->pools[f->pool];
    p->class[f->class].live_flows -= --f->live == 0;
    p->entries--;
}

bool flow_over_share(const struct scheduler *s, const struct flow *f)
{
    const struct pool *p = &s->pools[f->pool];
    uint64_t weights = 0;
    for (uint32_t c = 0; c < s->limits.class_count; c++)
        weights += p->class[c].live_flows ? s->limits.classes[c].weight : 0;
    uint64_t weight = s->limits.classes[f->class].weight, flows = p->class[f->class].live_flows;
    return weights > 0 && f->running * weights * flows > p->places * weight;
}

/* Something waits again. Who was idle starts level with those who were served last: neither owed nor
 * indebted for the time away. */
static void flow_activate(struct scheduler *s, uint32_t flow)
{
    struct flow *f = &s->flows[flow];
    struct pool *p = &s->pools[f->pool];
    struct pool_class *c = &p->class[f->class];
    if (f->served < c->clock)
        f->served = c->clock;
    if (c->active == SCHEDULER_NONE && c->served < p->clock)
        c->served = p->clock;
    f->active = true;
    f->previous = SCHEDULER_NONE;
    f->next = c->active;
    if (c->active != SCHEDULER_NONE)
        s->flows[c->active].previous = flow;
    c->active = flow;
    c->active_count++;
}

static void flow_deactivate(struct scheduler *s, uint32_t flow)
{
    struct flow *f = &s->flows[flow];
    struct pool_class *c = &s->pools[f->pool].class[f->class];
    if (f->previous == SCHEDULER_NONE)
        c->active = f->next;
    else
        s->flows[f->previous].next = f->next;
    if (f->next != SCHEDULER_NONE)
        s->flows[f->next].previous = f->previous;
    f->next = f->previous = SCHEDULER_NONE;
    f->active = false;
    c->active_count--;
}

/* ---- lists through the entries ---- */
void list_append(struct scheduler *s, struct list *l, uint32_t request)
{
    struct entry *e = &s->entries[request];
    e->previous = l->last;
    e->next = SCHEDULER_NONE;
    if (l->last == SCHEDULER_NONE)
        l->first = request;
    else
        s->entries[l->last].next = request;
    l->last = request;
    l->count++;
}

void list_remove(struct scheduler *s, struct list *l, uint32_t request)
{
    struct entry *e = &s->entries[request];
    if (e->previous == SCHEDULER_NONE)
        l->first = e->next;
    else
        s->entries[e->previous].next = e->next;
    if (e->next == SCHEDULER_NONE)
        l->last = e->previous;
    else
        s->entries[e->next].previous = e->previous;
    l->count--;
}

/* Something waits in the class where nothing did: what was measured is of another time. */
static void drain_begin(struct scheduler *s, struct pool_class *c)
{
    c->window_ms = s->now_ms;
    c->drained_us = c->drain_rate = 0;
}

static void drain_count(struct scheduler *s, struct pool_class *c, uint64_t work_us)
{
    uint64_t elapsed = s->now_ms - c->window_ms;
    c->drained_us += work_us;
    if (elapsed < DRAIN_WINDOW_MS)
        return;
    uint64_t rate = c->drained_us / elapsed + 1;
    c->drain_rate = c->drain_rate ? (c->drain_rate + rate) / 2 : rate;
    c->window_ms = s->now_ms;
    c->drained_us = 0;
}

/* ---- the queue ---- */
void queue_put(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    struct flow *f = &s->flows[e->flow];
    struct pool *p = &s->pools[f->pool];
    e->state = QUEUED;
    e->group = SCHEDULER_NONE;
    if (!f->active)
        flow_activate(s, e->flow);
    heap_push(&f->order, s->order, request, e->moved ? 0 : e->deadline_ms, e->order);
    p->moved += e->moved;
    list_append(s, &f->arrived, request);
    if (p->class[f->class].queued == 0)
        drain_begin(s, &p->class[f->class]);
    f->work_us += e->work_us;
    p->class[f->class].work_us += e->work_us;
    p->class[f->class].queued++;
    p->class[f->class].queued_places += e->choices;
    p->queued++;
    s->queued++;
    s->class_queued[f->class]++;
    p->assignable = true;
}

void queue_take(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    struct flow *f = &s->flows[e->flow];
    struct pool *p = &s->pools[f->pool];
    ASSERT(e->state == QUEUED);
    heap_remove(&f->order, s->order, request);
    list_remove(s, &f->arrived, request);
    p->moved -= e->moved;
    e->moved = false;
    f->work_us -= e->work_us;
    p->class[f->class].work_us -= e->work_us;
    p->class[f->class].queued--;
    p->class[f->class].queued_places -= e->choices;
    p->queued--;
    s->queued--;
    s->class_queued[f->class]--;
    if (f->order.count == 0)
        flow_deactivate(s, e->flow);
}

/* Of the flows of a class: who was served least; of those about equal, whose deadline comes first. */
static uint32_t class_first(const struct scheduler *s, const struct pool_class *c)
{
    uint64_t least = UINT64_MAX;
    uint32_t best = SCHEDULER_NONE;
    for (uint32_t i = c->active; i != SCHEDULER_NONE; i = s->flows[i].next)
        if (s->flows[i].passed_round != s->round && s->flows[i].served < least)
            least = s->flows[i].served;
    for (uint32_t i = c->active; i != SCHEDULER_NONE; i = s->flows[i].next) {
        const struct flow *f = &s->flows[i];
        if (f->passed_round == s->round || f->served > least + EQUAL_TOKENS)
            continue;
        uint32_t r = heap_first(&f->order);
        if (best == SCHEDULER_NONE || s->order[r].key < s->order[best].key ||
            (s->order[r].key == s->order[best].key && s->order[r].tie < s->order[best].tie))
            best = r;
    }
    return best;
}

/* Of those whose group is gone: whoever was accepted first, whatever its class. */
static uint32_t moved_first(const struct scheduler *s, const struct pool *p)
{
    uint32_t best = SCHEDULER_NONE;
    for (uint32_t c = 0; c < s->limits.class_count; c++)
        for (uint32_t i = p->class[c].active; i != SCHEDULER_NONE; i = s->flows[i].next) {
            uint32_t r = heap_first(&s->flows[i].order);
            if (s->entries[r].moved && s->flows[i].passed_round != s->round &&
                (best == SCHEDULER_NONE || s->entries[r].order < s->entries[best].order))
                best = r;
        }
    return best;
}

uint32_t queue_first(struct scheduler *s, struct pool *p)
{
    uint32_t moved = p->moved ? moved_first(s, p) : SCHEDULER_NONE;
    if (moved != SCHEDULER_NONE)
        return moved;
    bool asked[SCHEDULER_MAX_CLASSES] = {false};
    for (;;) {
        uint32_t least = SCHEDULER_NONE;
        for (uint32_t c = 0; c < s->limits.class_count; c++)
            if (!asked[c] && p->class[c].queued > 0 &&
                (least == SCHEDULER_NONE || p->class[c].served < p->class[least].served))
                least = c;
        if (least == SCHEDULER_NONE)
            return SCHEDULER_NONE;
        uint32_t request = class_first(s, &p->class[least]);
        if (request != SCHEDULER_NONE)
            return request;
        asked[least] = true; /* all its flows were passed over in this round */
    }
}

/* ---- accounts ---- */
static void account(struct scheduler *s, struct entry *e, int64_t tokens)
{
    struct flow *f = &s->flows[e->flow];
    struct pool *p = &s->pools[f->pool];
    struct pool_class *c = &p->class[f->class];
    int64_t share = tokens * 100 / (int64_t)s->limits.classes[f->class].weight;
    f->served = tokens < 0 && (uint64_t)-tokens > f->served ? 0 : f->served + (uint64_t)tokens;
    c->served = share < 0 && (uint64_t)-share > c->served ? 0 : c->served + (uint64_t)share;
}

void entry_charge(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    struct flow *f = &s->flows[e->flow];
    struct pool *p = &s->pools[f->pool];
    drain_count(s, &p->class[f->class], e -> work_us);
    if (e->charged)
        return; /* it was preempted: its place was paid for */
    if (f->served > p->class[f->class].clock)
        p->class[f->class].clock = f->served;
    if (p->class[f->class].served > p->clock)
        p->clock = p->class[f->class].served;
    e->charged = true;
    account(s, e, (int64_t)e->charge);
}

void entry_settle(struct scheduler *s, uint32_t request, uint64_t tokens)
{
    struct entry *e = scheduler_entry(s, request);
    if (!e->charged)
        return;
    account(s, e, (int64_t)tokens - (int64_t)e->charge);
    e->charge = tokens;
}

/* ---- estimates ---- */
void entry_estimate(struct scheduler *s, struct entry *e)
{
    const struct pool *p = &s->pools[s->flows[e->flow].pool];
    uint64_t output = p->output_tokens_x16 / 16;
    e->prompt_tokens = e->bytes * 256 / p->bytes_per_256_tokens + 1;
    bool most = e->exact || (e->max_tokens && e->max_tokens < output);
    e->output_tokens = most ? e->max_tokens : output;
    if (e->output_tokens == 0)
        e->output_tokens = 1;
    uint64_t generated = e->choices * e->output_tokens;
    e->work_us =
        e->prompt_tokens * 1000000 / pool_prefill_rate(p) + generated * 1000000 / pool_decode_rate(p);
    e->charge = e->prompt_tokens + OUTPUT_WEIGHT * generated;
    uint64_t room = 2 * e->output_tokens > 64 ? 2 * e->output_tokens : 64;
    room = e->max_tokens && e->max_tokens < room ? e->max_tokens : room;
    e->kv_tokens = e->prompt_tokens + e->choices * room; /* the choices share the prompt's pages */
}

uint64_t entry_decode_us(const struct pool *p, const struct entry *e)
{
    return e->output_tokens * (p->token_us + (e->exact ? MARGIN_DEVIATIONS * p->token_dev_us : 0));
}

/* Microseconds of work that the class begins in a millisecond. */
static uint64_t drain_rate(const struct scheduler *s, const struct pool *p, uint32_t class)
{
    const struct pool_class *c = &p->class[class];
    uint64_t elapsed = s->now_ms - c->window_ms, weights = 0, groups = p->accepting ? p->accepting : 1;
    if (c->drain_rate)
        return c->drain_rate;
    if (c->queued > 0 && elapsed >= DRAIN_FIRST_MS)
        return c->drained_us / elapsed + 1;
    for (uint32_t k = 0; k < s->limits.class_count; k++)
        if (p->class[k].queued > 0 || k == class)
            weights += s->limits.classes[k].weight;
    return groups * 1000 * s->limits.classes[class].weight / weights + 1;
}

uint64_t pool_wait_us(const struct scheduler *s, const struct pool *p, const struct entry *e)
{
    const struct flow *f = &s->flows[e->flow];
    const struct pool_class *c = &p->class[f->class];
    uint64_t tenants = c->active_count + (f->active ? 0 : 1), own = f->work_us * tenants;
    return (own < c->work_us ? own : c->work_us) * 1000 / drain_rate(s, p, f->class);
}

/* ---- due times ---- */
uint64_t entry_due_ms(const struct scheduler *s, const struct entry *e, int *code, const char **reason)
{
    *code = 408;
    bool waits = e->state == QUEUED || e->state == HELD;
    *reason = waits ? "the deadline passed in the queue" : "the deadline passed while it ran";
    const struct pool *p = &s->pools[s->flows[e->flow].pool];
    uint64_t due = e->deadline_ms;
    if (e->state == QUEUED && p->groups == 0) {
        uint64_t from = p->gone_ms > e->submitted_ms ? p->gone_ms : e->submitted_ms;
        if (from + s->limits.group_wait_ms < due) {
            due = from + s->limits.group_wait_ms;
            *code = 503;
            *reason = "no group is ready";
        }
    }
    if (e->state == QUEUED && e->impatient_ms && e->impatient_ms < due)
        due = e->impatient_ms; /* nothing ends: it may preempt from then on */
    if (s->draining && (waits || s->drain_deadline_ms < due)) {
        due = waits ? 0 : s->drain_deadline_ms;
        *code = 503;
        *reason = "the coordinator is draining";
    }
    return due;
}

void entry_due(struct scheduler *s, uint32_t request)
{
    int code;
    const char *reason;
    uint64_t due = entry_due_ms(s, &s->entries[request], &code, &reason);
    if (!s->entries[request].due)
        heap_push(&s->due, s->due_nodes, request, due, request);
    else if (s->due_nodes[request].key != due)
        heap_move(&s->due, s->due_nodes, request, due, request);
    s->entries[request].due = true;
}
