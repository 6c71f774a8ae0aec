/* poison: what is remembered of requests under which groups died, by who asked and what was asked, beyond the
 * life of the request, its connection and the coordinator: who asks for the same again goes on under the same
 * suspicion (suspects.h), and what was refused for killing groups is refused at the door. PURE.
 *
 * An entry goes when the request has a token more, or after `keep_ms`; the oldest goes when there are too
 * many. Groups stand here by their names: slots mean nothing to the next run. */
#ifndef LEPTON_COORDINATOR_POISON_H
#define LEPTON_COORDINATOR_POISON_H

#include "coordinator/requests.h"

#define POISON_MOST 1024

struct poison_loss {
    char group[WIRE_MAX_ID + 1];
    uint64_t epoch;
    enum loss_cause cause;
    bool alone;
    char ended[WIRE_MAX_ENDED + 1];
};

struct poison {
    char owner[65];
    uint8_t digest[REQUEST_DIGEST]; /* of what was asked */
    uint64_t tokens;                /* it had, when its groups died */
    char refused[320];              /* why; empty: it is not */
    struct poison_loss loss[SUSPECT_LOSSES];
    uint32_t count;
    uint64_t until_ms; /* monotonic */
};

struct poisons;
struct poisons *poisons_new(uint64_t keep_ms);
void poisons_free(struct poisons **list);

/* NULL when nothing is known (any more). */
struct poison *poisons_find(struct poisons *list, const char *owner, const uint8_t digest[REQUEST_DIGEST],
                            uint64_t now_ms);
/* Takes a copy, in the place of what is known of the same. `age_ms`: of what another run knew. NULL: it is
 * too old. *dropped is filled, and its owner not empty, when another had to go for it. */
struct poison *poisons_put(struct poisons *list, const struct poison *in, uint64_t age_ms, uint64_t now_ms,
                           struct poison *dropped);
/* False when nothing was known. */
bool poisons_drop(struct poisons *list, const char *owner, const uint8_t digest[REQUEST_DIGEST]);
/* The next entry that had lost this group in this epoch and now knows why; NULL: no more. *at begins with 0.
 */
struct poison *poisons_learn(struct poisons *list, uint32_t *at, const char *group, uint64_t epoch,
                             const char *ended);
uint32_t poisons_count(const struct poisons *list);

/* Its losses as bytes, and back: -1: they are none. */
void poison_record(const struct poison *p, struct buffer *out);
int poison_read(struct poison *p, const void *bytes, size_t size, struct err *err);

#endif
