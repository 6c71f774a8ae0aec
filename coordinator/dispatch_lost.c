/* What becomes of requests whose group is gone, and of groups that go too often. */
#include <stdio.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/dispatch_internal.h"

static void refuse(struct dispatch *d, struct request *q)
{
    const struct suspicion *s = &q->suspicion;
    char why[320];
    int n = snprintf(why, sizeof(why), "%u groups died under this request at token %llu", s->count,
                     (unsigned long long)s->tokens);
    for (uint32_t i = 0; i < s->count && n > 0 && (size_t)n < sizeof(why); i++)
        n += snprintf(why + n, sizeof(why) - (size_t)n, "%s%s%s", i ? ", " : ": ",
                      s->loss[i].ended[0] ? s->loss[i].ended : "unknown", s->loss[i].alone ? " (alone)" : "");
    log_error("dispatch", "audit: request %s of client %s is refused: %s", q->id, q->client.name, why);
    dispatch_audit(d, "poison", q->client.name, "request %s: %s", q->client_request, why);
    dispatch_suspected(d, q, why);
    dispatch_fail(d, q, 500, why);
}

void dispatch_judge(struct dispatch *d, struct request *q)
{
    struct suspicion *s = &q->suspicion;
    enum verdict verdict = suspicion_judge(s);
    if (verdict == VERDICT_REFUSE) {
        refuse(d, q);
    } else if (verdict == VERDICT_GIVE_UP) {
        dispatch_fail(d, q, 502, "its groups were lost again and again before it had a token more");
    } else if (verdict == VERDICT_HOLD && !s->held) {
        log_warn("dispatch", "request %s is held until it is known why its groups died", q->id);
        s->held = true;
        s->held_ms = clock_now_ms();
        d->held++;
        scheduler_hold(d->scheduler, q->slot);
    } else if (verdict == VERDICT_ALONE && scheduler_waits_alone(d->scheduler, q->slot)) {
        return; /* the news is of another of its groups */
    } else if (verdict == VERDICT_ALONE || (verdict == VERDICT_GO && s->held)) {
        bool alone = verdict == VERDICT_ALONE;
        if (alone)
            log_warn("dispatch", "request %s is suspected of killing groups: it is tried alone", q->id);
        if (!s->held)
            scheduler_hold(d->scheduler, q->slot);
        dispatch_unheld(d, q);
        s->alone = alone;
        scheduler_release(d->scheduler, q->slot, alone);
    }
}

void dispatch_unheld(struct dispatch *d, struct request *q)
{
    d->held -= q->suspicion.held;
    q->suspicion.held = false;
}

void dispatch_moved(struct dispatch *d, struct request *q, uint32_t group, uint64_t epoch)
{
    const struct group *g = cluster_group(d->cluster, group);
    suspicion_lost(&q->suspicion, group, epoch, request_token_count(q), g && g->epoch == epoch && g->silent);
    if (g && g->ended_epoch == epoch) /* its next job has said hello already */
        suspicion_learn(&q->suspicion, group, epoch, wire_string(g->ended));
    dispatch_suspected(d, q, NULL);
    dispatch_judge(d, q);
}

void dispatch_learn(struct dispatch *d, const struct group *g)
{
    for (uint32_t i = 0; i < requests_limit(d->requests); i++) {
        struct request *q = requests_at(d->requests, i);
        if (!q || !suspicion_learn(&q->suspicion, g->slot, g->ended_epoch, wire_string(g->ended)))
            continue;
        dispatch_suspected(d, q, NULL);
        if (q->waits)
            dispatch_judge(d, q);
    }
    dispatch_learn_poison(d, g); /* and those of which nobody asks now */
}

/* Until when it is held. */
static uint64_t held_until_ms(const struct dispatch *d, const struct request *q)
{
    return q->suspicion.held_ms +
           (suspicion_is_grave(&q->suspicion) ? d->options.limits.group_wait_ms : d->options.suspect_wait_ms);
}

/* A group that never comes back tells nothing: after group_wait_ms its death accuses nobody. */
static void hold_no_more(struct dispatch *d, struct request *q)
{
    bool grave = suspicion_is_grave(&q->suspicion);
    if (!grave)
        suspicion_waited(&q->suspicion);
    for (uint32_t k = 0; grave && k < q->suspicion.count; k++)
        suspicion_learn(&q->suspicion, q->suspicion.loss[k].group, q->suspicion.loss[k].epoch,
                        (struct wire_str){NULL, 0});
    dispatch_judge(d, q);
}

void dispatch_tick_lost(struct dispatch *d, uint64_t now_ms)
{
    for (uint32_t i = 0; d->held > 0 && i < requests_limit(d->requests); i++) {
        struct request *q = requests_at(d->requests, i);
        if (q && q->waits && q->suspicion.held && now_ms >= held_until_ms(d, q))
            hold_no_more(d, q);
    }
    struct group *g;
    while ((g = cluster_rested(d->cluster, now_ms)))
        dispatch_ready(d, g);
}

uint64_t dispatch_lost_due_ms(const struct dispatch *d)
{
    uint64_t due = cluster_rest_due_ms(d->cluster);
    for (uint32_t i = 0; d->held > 0 && i < requests_limit(d->requests); i++) {
        const struct request *q = requests_at(d->requests, i);
        if (q && q->waits && q->suspicion.held && held_until_ms(d, q) < due)
            due = held_until_ms(d, q);
    }
    return due;
}
