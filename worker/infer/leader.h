/* leader: the state of the leader's step thread, shared by the files that work on it: `serve` (its loop),
 * `sequences` (who lives, who waits, whose pages are whose) and `flight` (the steps under way). One thread
 * owns all of it; nobody outside worker/infer includes this. */
#ifndef LEPTON_WORKER_INFER_LEADER_H
#define LEPTON_WORKER_INFER_LEADER_H

#include "worker/infer/serve.h"

struct sequence {
    bool used;
    struct sequence_request request;
    uint64_t order;
    int32_t *tokens; /* [prompt + max_tokens] prompt, then what was drawn */
    int32_t known, fed;
    int32_t *pages;
    int32_t page_count, assigned; /* assigned: entries of the table that the stages know */
    bool busy, cancelled, silent; /* silent: its end is reported to nobody */
    uint64_t first_us;
};

/* A step under way: which slots it holds and how many tokens of each. */
struct flight {
    struct step step;
    int32_t *slots;
    void *result; /* a group of one rank has it at once */
};

struct leader {
    const struct serve_options *o;
    struct sequence *slot;   /* [limits.slots] */
    struct command *waiting; /* submitted, not yet admitted: a ring */
    size_t waiting_first, waiting_count, waiting_capacity;
    struct kv_pages pages;
    struct flight *flight; /* [stages], a ring */
    int32_t flights, first_flight, flight_count;
    struct batch_sequence *plan_in;
    struct batch_item *plan_out;
    int32_t *plan_slot; /* slot of each plan_in */
    struct buffer encoded;
    uint64_t next_step, next_order;
    bool awake, draining;
    struct serve_stats stats;
};

static inline int32_t leader_pages_needed(const struct leader *l, int32_t tokens)
{
    return (tokens + l->o->engine.page_tokens - 1) / l->o->engine.page_tokens;
}

#endif
