/* Requests that are held back, and those that run alone: a suspect (coordinator/suspects.h) gets a group for
 * itself, so that what it may kill is nobody else's. While it waits for one that is empty it is in no queue:
 * its tenant's other requests go on. */
#include "coordinator/scheduler_internal.h"

void scheduler_hold(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state == QUEUED);
    queue_take(s, request);
    e->state = HELD;
    entry_due(s, request);
}

void scheduler_release(struct scheduler *s, uint32_t request, bool alone)
{
    struct entry *e = scheduler_entry(s, request);
    ASSERT(e->state == HELD);
    e->alone = alone;
    if (alone) {
        s->alone_waiting++;
        return;
    }
    e->moved = true;
    queue_put(s, request);
    entry_due(s, request);
}

bool scheduler_waits_alone(const struct scheduler *s, uint32_t request)
{
    ASSERT(request < s->limits.live_requests);
    return s->entries[request].state == HELD && s->entries[request].alone;
}

/* The group that is kept for the request; SCHEDULER_NONE: none. */
static uint32_t kept_group(const struct scheduler *s, uint32_t request)
{
    for (uint32_t i = 0; i < s->group_end; i++)
        if (s->groups[i].kept && s->groups[i].kept_for == request)
            return i;
    return SCHEDULER_NONE;
}

void group_unkeep(struct scheduler *s, uint32_t group)
{
    s->groups[group].kept = false;
    group_refresh(s, group);
}

void entry_shared(struct scheduler *s, uint32_t request)
{
    struct entry *e = scheduler_entry(s, request);
    if (!e->alone)
        return;
    uint32_t group = kept_group(s, request);
    if (group != SCHEDULER_NONE)
        group_unkeep(s, group);
    s->alone_waiting -= e->state == HELD;
    e->alone = false;
}

void scheduler_shared(struct scheduler *s, uint32_t request)
{
    entry_shared(s, request);
}

/* The emptiest group that takes work and is kept for nobody; of the class that the request is bound to while
 * there is one. */
static uint32_t choose(const struct scheduler *s, const struct entry *e)
{
    const struct pool *p = &s->pools[s->flows[e->flow].pool];
    uint64_t numeric = entry_numeric(s, p, e);
    uint32_t best = SCHEDULER_NONE;
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (!g->live || !g->accepting || g->kept || &s->pools[g->pool] != p ||
            (numeric && g->numeric != numeric))
            continue;
        if (best == SCHEDULER_NONE || g->view.assigned < s->groups[best].view.assigned)
            best = i;
    }
    return best;
}

uint32_t alone_next(struct scheduler *s, uint32_t *group)
{
    for (uint32_t i = 0; s->alone_waiting > 0 && i < s->limits.live_requests; i++) {
        struct entry *e = &s->entries[i];
        if (e->state != HELD || !e->alone)
            continue;
        *group = kept_group(s, i);
        if (*group == SCHEDULER_NONE && (*group = choose(s, e)) != SCHEDULER_NONE) {
            s->groups[*group].kept = true; /* nobody else comes; who is there ends or moves on */
            s->groups[*group].kept_for = i;
            group_refresh(s, *group);
        }
        if (*group != SCHEDULER_NONE && s->groups[*group].view.requests == 0) {
            s->alone_waiting--;
            return i;
        }
    }
    return SCHEDULER_NONE;
}
