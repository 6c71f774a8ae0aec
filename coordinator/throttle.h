/* throttle: how often a thing that others can provoke may be logged or answered. A plain value. */
#ifndef LEPTON_COORDINATOR_THROTTLE_H
#define LEPTON_COORDINATOR_THROTTLE_H

#include "common/base.h"

struct throttle {
    uint64_t second;     /* the running second */
    uint32_t allowed;    /* in it */
    uint32_t suppressed; /* since the last allowed one */
};

/* True when it may happen now; *suppressed then says how many did not since the last time. */
static inline bool throttle_allows(struct throttle *t, uint64_t now_ms, uint32_t per_second,
                                   uint32_t *suppressed)
{
    if (t->second != now_ms / 1000) {
        t->second = now_ms / 1000;
        t->allowed = 0;
    }
    if (t->allowed >= per_second) {
        t->suppressed++;
        return false;
    }
    t->allowed++;
    *suppressed = t->suppressed;
    t->suppressed = 0;
    return true;
}

#endif
