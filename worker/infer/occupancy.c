#include "worker/infer/occupancy.h"

#define COUNT_BITS 10 /* of the state; the rest is the time */

void occupancy_init(struct occupancy *o, struct occupancy_shared *shared, int threads, int processors)
{
    ASSERT(threads > 0 && processors > 0);
    *o = (struct occupancy){
        .shared = shared, .threads = threads < processors ? threads : processors, .processors = processors};
}

static double taken(const struct occupancy *o, uint64_t running)
{
    double most = o->threads, over = ((double)running + 1) * most - o->processors;
    return over < 0 ? 0 : over > most ? 1 : over / most;
}

/* Counts one more or less that runs, and brings the sum up to now. Clocks of processors may differ by a
 * little: time never goes back here. */
static uint64_t change(struct occupancy *o, int by, uint64_t now_us)
{
    struct occupancy_shared *s = o->shared;
    uint64_t old = atomic_load(&s->state), since_us, running, at_us;
    do {
        running = old & ((1u << COUNT_BITS) - 1);
        since_us = old >> COUNT_BITS;
        at_us = now_us > since_us ? now_us : since_us;
        ASSERT(by >= 0 || running > 0);
    } while (!atomic_compare_exchange_weak(&s->state, &old,
                                           at_us << COUNT_BITS | (uint64_t)((int64_t)running + by)));
    uint64_t more_us = since_us ? (uint64_t)((double)(at_us - since_us) * taken(o, running)) : 0;
    return atomic_fetch_add(&s->taken_us, more_us) + more_us;
}

uint64_t occupancy_run(struct occupancy *o, uint64_t now_us)
{
    return change(o, 1, now_us) - o->taken_us;
}

void occupancy_wait(struct occupancy *o, uint64_t now_us)
{
    o->taken_us = change(o, -1, now_us);
}

void occupancy_wake(struct occupancy *o, uint64_t now_us)
{
    o->taken_us = change(o, 0, now_us);
}
