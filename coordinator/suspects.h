/* suspects: which requests kill groups. PURE: what happened comes as arguments, what to do comes back.
 *
 * A group that dies takes a dozen requests along, and one of them may be why: it would kill the next group,
 * and the one after it. But most groups die of something else, and a request must not suffer for that. So a
 * request is a suspect only once two groups died under it, both of themselves (SIGSEGV, SIGABRT and the like,
 * or out of memory), before it had a token more. It is then tried once, in a group of its own; when that dies
 * of itself as well, the request is refused with the reason. A group that was killed from outside accuses
 * nobody; why a group died is known when its next job says hello.
 *
 * That news may take as long as the next job loads. So after two deaths, which chance may bring as well, it
 * is waited for a moment only; then they hold nobody any more, and count if they are heard of. After three it
 * is waited for.
 *
 * A group that was lost in silence, its connection still there, need not have died at all: it was stopped,
 * cut off, or does not move. When it dies after all may be minutes later, so nobody waits for that; it counts
 * if it is heard of.
 *
 *   loss ──> loss ──(why?)──> HOLD ──both of themselves──> ALONE ──again──> REFUSE
 *                               └────────not so───────────> GO             a token more: all is forgotten */
#ifndef LEPTON_COORDINATOR_SUSPECTS_H
#define LEPTON_COORDINATOR_SUSPECTS_H

#include "common/wire.h"

#define SUSPECT_DEATHS 2 /* from so many groups on */
#define SUSPECT_LOSSES                                                                   \
    5 /* most groups that a request may lose without a token more, whatever they died of \
       */

enum loss_cause { LOSS_UNKNOWN, LOSS_FROM_OUTSIDE, LOSS_OF_ITSELF };

struct loss {
    uint32_t group; /* slot and epoch of the group that died under the request */
    uint64_t epoch;
    enum loss_cause cause;
    bool silent; /* nothing says that the group died */
    bool waited; /* for the news of why it died, long enough */
    bool alone;  /* the request was the only one there */
    char ended[WIRE_MAX_ENDED + 1];
};

/* Of one request. */
struct suspicion {
    struct loss loss[SUSPECT_LOSSES]; /* since it had `tokens` */
    uint32_t count;
    uint64_t tokens;
    bool alone, held;
    uint64_t held_ms; /* since when */
};

enum verdict {
    VERDICT_GO,     /* to any group */
    VERDICT_HOLD,   /* nowhere until it is known why its groups died */
    VERDICT_ALONE,  /* to a group for itself */
    VERDICT_REFUSE, /* it kills groups */
    VERDICT_GIVE_UP /* too many groups died under it */
};

/* What the word in a hello (`ended`) says of how the job before it ended; empty: LOSS_FROM_OUTSIDE, for who
 * says nothing accuses nobody. */
enum loss_cause loss_cause_of(struct wire_str ended);

/* The group was lost under the request, which has so many tokens; `silent`: its connection was not. */
void suspicion_lost(struct suspicion *s, uint32_t group, uint64_t epoch, uint64_t tokens, bool silent);
/* Why the group died; false when that is no news. */
bool suspicion_learn(struct suspicion *s, uint32_t group, uint64_t epoch, struct wire_str ended);
/* It has a token more: whatever killed its groups, it was not this. */
static inline void suspicion_clear(struct suspicion *s)
{
    s->count = 0;
    s->alone = false;
}
enum verdict suspicion_judge(const struct suspicion *s);
/* Held: whether so many of its groups died that it stays so until it is known why. */
bool suspicion_is_grave(const struct suspicion *s);
/* Held, and not grave: it was waited long enough for the news. */
void suspicion_waited(struct suspicion *s);

#endif
