#include "coordinator/cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Epochs that last less are counted; from the third in a row on the group rests, twice as long each time. */
#define STEADY_MS    30000
#define REST_AFTER   3
#define REST_MS      1000
#define REST_MOST_MS 60000

struct cluster {
    struct group *groups; /* [limit] */
    uint32_t limit, end;  /* slots at or above `end` were never used */
    uint64_t lease_ms;
    uint64_t epoch_floor, epoch_ceiling, epoch_wanted;
    char forgotten[WIRE_MAX_ID + 1];
};

/* Who says to have an epoch so far above the ceiling never had it from this coordinator: it is given the next
 * one, but does not take the ceiling along, or one group could use up all epochs. */
#define EPOCH_FOREIGN (1u << 20)

const char *group_state_name(enum group_state state)
{
    static const char *const names[] = {"ready", "resting", "draining", "held", "lost"};
    return names[state];
}

struct cluster *cluster_new(uint32_t groups, uint64_t lease_ms)
{
    ASSERT(groups > 0 && lease_ms > 0);
    struct cluster *c = xcalloc(1, sizeof(*c));
    c->groups = xcalloc(groups, sizeof(*c->groups));
    c->limit = groups;
    c->lease_ms = lease_ms;
    c->epoch_ceiling = UINT64_MAX;
    return c;
}

void cluster_epochs(struct cluster *c, uint64_t floor, uint64_t ceiling)
{
    c->epoch_floor = floor;
    c->epoch_ceiling = ceiling;
    if (c->epoch_wanted < floor)
        c->epoch_wanted = floor;
}

uint64_t cluster_epoch_wanted(const struct cluster *c)
{
    return c->epoch_wanted;
}

/* The epoch behind `known`, which must be one that the next run will know of. */
static int next_epoch(struct cluster *c, uint64_t *known, struct err *err)
{
    if (*known < c->epoch_floor)
        *known = c->epoch_floor;
    if (*known >= UINT64_MAX / 2) /* a wrapped epoch would fence nobody */
        return err_set_code(err, 400, "hello: epoch: expected less than 2^63");
    if (c->epoch_ceiling != UINT64_MAX && *known >= c->epoch_ceiling + EPOCH_FOREIGN)
        return 0;
    if (*known + 1 > c->epoch_wanted)
        c->epoch_wanted = *known + 1;
    if (*known >= c->epoch_ceiling)
        return err_set_code(err, 409, "hello: epochs above %llu are not stored yet: try again",
                            (unsigned long long)c->epoch_ceiling);
    return 0;
}

void cluster_free(struct cluster **c)
{
    if (!*c)
        return;
    for (uint32_t i = 0; i < (*c)->end; i++)
        free((*c)->groups[i].stages);
    free((*c)->groups);
    free(*c);
    *c = NULL;
}

bool cluster_may_serve(const char *identity, struct wire_str name)
{
    size_t n = strlen(identity);
    return n > 0 && name.size >= n && memcmp(name.data, identity, n) == 0 &&
           (name.size == n || name.data[n] == '-');
}

struct group *cluster_find(struct cluster *c, struct wire_str name)
{
    for (uint32_t i = 0; i < c->end; i++)
        if (c->groups[i].used && wire_str_is(name, c->groups[i].name))
            return &c->groups[i];
    return NULL;
}

bool cluster_has_numeric(const struct cluster *c, uint64_t numeric)
{
    for (uint32_t i = 0; i < c->end; i++)
        if (c->groups[i].used && c->groups[i].state != GROUP_LOST && c->groups[i].numeric == numeric)
            return true;
    return false;
}

/* A fresh slot, or that of the group lost the longest ago; NULL when all are live. */
static struct group *make_room(struct cluster *c, bool *forgotten)
{
    struct group *oldest = NULL;
    for (uint32_t i = 0; i < c->limit; i++) {
        struct group *g = &c->groups[i];
        if (!g->used) {
            g->slot = i;
            if (i >= c->end)
                c->end = i + 1;
            return g;
        }
        if (g->state == GROUP_LOST && (!oldest || g->heard_ms < oldest->heard_ms))
            oldest = g;
    }
    *forgotten = oldest != NULL;
    if (oldest)
        memcpy(c->forgotten, oldest->name, sizeof(c->forgotten));
    return oldest;
}

const char *cluster_forgotten(const struct cluster *c)
{
    return c->forgotten;
}

bool cluster_remember(struct cluster *c, const struct cluster_memory *m)
{
    if (c->end == c->limit || strlen(m->name) > WIRE_MAX_ID)
        return false;
    struct group *g = &c->groups[c->end];
    *g = (struct group){.slot = c->end++,
                        .used = true,
                        .remembered = true,
                        .seen_alive = !m->lost,
                        .state = GROUP_LOST,
                        .epoch = m->epoch,
                        .incarnation = m->incarnation,
                        .held = m->held,
                        .lost_soon = !m->lost && m->age_ms >= STEADY_MS ? 0 : m->lost_soon};
    snprintf(g->name, sizeof(g->name), "%s", m->name);
    return true;
}

static void copy(char *out, size_t bytes, struct wire_str s)
{
    size_t n = s.size < bytes - 1 ? s.size : bytes - 1;
    if (n > 0)
        memcpy(out, s.data, n);
    out[n] = 0;
}

static uint64_t add_to_name(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001B3ull; /* FNV-1a */
    return hash;
}

/* Two groups that differ in any of this may round differently. */
static uint64_t numeric_name(const struct group *g)
{
    uint64_t hash = 0xCBF29CE484222325ull;
    hash = add_to_name(hash, g->weights, strlen(g->weights) + 1);
    hash = add_to_name(hash, g->kernels, strlen(g->kernels) + 1);
    hash = add_to_name(hash, g->kv_type, strlen(g->kv_type) + 1);
    hash = add_to_name(hash, &g->tensor, sizeof(g->tensor));
    return hash ? hash : 1;
}

static void take_description(struct group *g, const struct wire_hello *hello)
{
    copy(g->model, sizeof(g->model), hello->model);
    copy(g->weights, sizeof(g->weights), hello->weights);
    copy(g->kernels, sizeof(g->kernels), hello->kernels);
    copy(g->kv_type, sizeof(g->kv_type), hello->kv_type);
    g->tensor = hello->tensor;
    g->max_sequences = hello->max_sequences;
    g->context = hello->context;
    g->pages = hello->pages;
    g->page_tokens = hello->page_tokens;
    g->load_ms = hello->load_ms;
    g->numeric = numeric_name(g);
    g->stage_count = hello->stage_count;
    g->stages = xcalloc(hello->stage_count ? hello->stage_count : 1, sizeof(*g->stages));
    for (uint32_t i = 0; i < hello->stage_count; i++) {
        const struct wire_stage *in = &hello->stages[i];
        g->stages[i] = (struct group_stage){.first_layer = in->first_layer,
                                            .last_layer = in->last_layer,
                                            .tensor = in->tensor,
                                            .pid = in->pid};
        copy(g->stages[i].host, sizeof(g->stages[i].host), in->host);
    }
}

static void rest(struct group *g, uint64_t now_ms)
{
    if (g->lost_soon < REST_AFTER)
        return;
    uint32_t doubled = g->lost_soon - REST_AFTER;
    uint64_t ms = doubled < 6 ? (uint64_t)REST_MS << doubled : REST_MOST_MS;
    g->state = GROUP_RESTING;
    g->rests_until_ms = now_ms + (ms < REST_MOST_MS ? ms : REST_MOST_MS);
}

struct group *cluster_rested(struct cluster *c, uint64_t now_ms)
{
    for (uint32_t i = 0; i < c->end; i++) {
        struct group *g = &c->groups[i];
        if (g->used && g->state == GROUP_RESTING && now_ms >= g->rests_until_ms) {
            g->state = GROUP_READY;
            return g;
        }
    }
    return NULL;
}

uint64_t cluster_rest_due_ms(const struct cluster *c)
{
    uint64_t due = UINT64_MAX;
    for (uint32_t i = 0; i < c->end; i++)
        if (c->groups[i].used && c->groups[i].state == GROUP_RESTING && c->groups[i].rests_until_ms < due)
            due = c->groups[i].rests_until_ms;
    return due;
}

int cluster_hello(struct cluster *c, const struct peer *peer, const struct wire_hello *hello, uint64_t now_ms,
                  struct group **out, bool *was_live, bool *forgotten, struct err *err)
{
    *was_live = *forgotten = false;
    if (!cluster_may_serve(peer->name, hello->group))
        return err_set_code(err, 403, "key \"%s\" may serve the groups %s and %s-*, not %.*s", peer->name,
                            peer->name, peer->name, (int)hello->group.size, hello->group.data);
    struct group *g = cluster_find(c, hello->group);
    bool live = g && g->state != GROUP_LOST && now_ms < g->lease_end_ms;
    if (live && (g->incarnation != hello->incarnation || strcmp(g->peer.name, peer->name) != 0))
        return err_set_code(
            err, 409, "group %s is held by another job (epoch %llu); its lease ends in %llu ms", g->name,
            (unsigned long long)g->epoch, (unsigned long long)(g->lease_end_ms - now_ms));
    uint64_t known = hello->epoch;
    if (g && g->epoch > known)
        known = g->epoch;
    if (next_epoch(c, &known, err))
        return -1;
    *was_live = g && g->state != GROUP_LOST;
    if (!g)
        g = make_room(c, forgotten);
    if (!g)
        return err_set_code(err, 503, "%u groups are live, more are not taken", c->limit);
    uint32_t slot = g->slot;
    uint32_t lost_soon = g->used && !*forgotten ? g->lost_soon : 0;
    bool new_job = g->used && !*forgotten && g->incarnation != hello->incarnation;
    uint64_t ended_epoch = g->used && !*forgotten ? g->epoch : 0;
    lost_soon += new_job && g->remembered && g->seen_alive; /* it died while nobody looked */
    bool held = g->used && !*forgotten && g->held;
    free(g->stages);
    *g = (struct group){.slot = slot,
                        .used = true,
                        .state = GROUP_READY,
                        .peer = *peer,
                        .epoch = known + 1,
                        .incarnation = hello->incarnation,
                        .ended_epoch = ended_epoch,
                        .ready_ms = now_ms,
                        .lost_soon = lost_soon,
                        .held = held,
                        .heard_ms = now_ms,
                        .lease_end_ms = now_ms + c->lease_ms};
    copy(g->name, sizeof(g->name), hello->group);
    if (new_job) /* else the job lives on, whatever ended its epoch */
        copy(g->ended, sizeof(g->ended), hello->ended);
    if (held)
        g->state = GROUP_HELD;
    else
        rest(g, now_ms);
    take_description(g, hello);
    *out = g;
    return 0;
}

struct group *cluster_current(struct cluster *c, const struct peer *peer, struct wire_str name,
                              uint64_t epoch, struct err *err)
{
    if (!cluster_may_serve(peer->name, name)) {
        err_set_code(err, 403, "key \"%s\" may not speak for group %.*s", peer->name, (int)name.size,
                     name.data);
        return NULL;
    }
    struct group *g = cluster_find(c, name);
    if (!g || g->state == GROUP_LOST)
        err_set_code(err, 409, "group %.*s is not live: say hello first", (int)name.size, name.data);
    else if (!peer_equal(&g->peer, peer))
        err_set_code(err, 409, "group %s was introduced on another connection: say hello first", g->name);
    else if (g->epoch != epoch)
        err_set_code(err, 409, "group %s is in epoch %llu, not %llu", g->name, (unsigned long long)g->epoch,
                     (unsigned long long)epoch);
    else
        return g;
    return NULL;
}

static void take_trip(struct group *g, uint64_t us)
{
    if (!us)
        return;
    g->trips_us[g->trip_count++ % GROUP_TRIPS] = us;
    g->round_trip_us = us;
    for (uint32_t i = 0; i < GROUP_TRIPS; i++)
        if (g->trips_us[i] && g->trips_us[i] < g->round_trip_us)
            g->round_trip_us = g->trips_us[i];
}

bool cluster_heartbeat(struct cluster *c, struct group *g, const struct wire_heartbeat *beat, uint64_t now_ms)
{
    if (g->heartbeat_seen && beat->sequence <= g->sequence)
        return false;
    g->heartbeat_seen = true;
    g->sequence = beat->sequence;
    g->heard_ms = now_ms;
    g->lease_end_ms = now_ms + c->lease_ms;
    g->steps = beat->steps;
    g->running = beat->running;
    g->waiting = beat->waiting;
    g->pages_used = beat->pages_used;
    g->pages_cached = beat->pages_cached;
    g->prefix_queries = beat->prefix_queries;
    g->prefix_hits = beat->prefix_hits;
    g->preemptions = beat->preemptions;
    g->drafted_tokens = beat->drafted_tokens;
    g->accepted_tokens = beat->accepted_tokens;
    for (uint32_t i = 0; i < beat->time_count && i < g->stage_count; i++) {
        g->stages[i].busy_us = beat->times[i].busy_us;
        g->stages[i].wait_us = beat->times[i].wait_us;
        g->stages[i].bubble_us = beat->times[i].bubble_us;
        g->stages[i].processor_us = beat->times[i].processor_us;
    }
    g->tokens_generated = beat->tokens_generated;
    take_trip(g, beat->round_trip_us);
    return true;
}

void cluster_draining(struct group *g)
{
    if (g->state != GROUP_LOST)
        g->state = GROUP_DRAINING;
}

void cluster_hold(struct group *g)
{
    g->held = true;
    if (g->state == GROUP_READY || g->state == GROUP_RESTING)
        g->state = GROUP_HELD;
}

void cluster_release(struct group *g)
{
    g->held = false;
    if (g->state == GROUP_HELD)
        g->state = GROUP_READY;
}

void cluster_lost(struct group *g, uint64_t now_ms)
{
    if (g->state != GROUP_DRAINING)
        g->lost_soon = now_ms < g->ready_ms + STEADY_MS ? g->lost_soon + 1 : 1;
    g->state = GROUP_LOST;
}

struct group *cluster_expired(struct cluster *c, uint64_t now_ms)
{
    for (uint32_t i = 0; i < c->end; i++) {
        struct group *g = &c->groups[i];
        if (g->used && g->state != GROUP_LOST && now_ms >= g->lease_end_ms)
            return g;
    }
    return NULL;
}

uint64_t cluster_due_ms(const struct cluster *c)
{
    uint64_t due = UINT64_MAX;
    for (uint32_t i = 0; i < c->end; i++) {
        const struct group *g = &c->groups[i];
        if (g->used && g->state != GROUP_LOST && g->lease_end_ms < due)
            due = g->lease_end_ms;
    }
    return due;
}

struct group *cluster_group(struct cluster *c, uint32_t slot)
{
    return slot < c->end && c->groups[slot].used ? &c->groups[slot] : NULL;
}

uint32_t cluster_slots(const struct cluster *c)
{
    return c->end;
}
