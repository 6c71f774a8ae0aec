/* batch: which sequences go into the next step, and how many tokens of each. PURE: the same state gives the
 * same plan.
 *
 * Every sequence has `known` tokens (its prompt and what was generated) of which `fed` went through the
 * model. One that is one token behind decodes; one that is further behind is in its prefill. Decoding goes
 * first (a running stream does not wait for somebody's prompt), then prefills take what is left of the token
 * budget, in order of arrival, in chunks. */
#ifndef LEPTON_WORKER_INFER_BATCH_H
#define LEPTON_WORKER_INFER_BATCH_H

#include "common/base.h"

struct batch_sequence {
    int32_t slot;
    int32_t known, fed;
    bool busy;      /* in a step that is under way */
    uint64_t order; /* of arrival: lower first */
};

struct batch_item {
    int32_t sequence; /* index into the array given */
    int32_t tokens;   /* the next so many tokens behind `fed` */
    bool sample;      /* they reach the last known token: the next one is drawn */
};

struct batch_limits {
    int32_t tokens;        /* rows of one step */
    int32_t sequences;     /* sequences of one step */
    int32_t micro_batches; /* steps that may be under way at once: a step takes its share of the sequences
                              that run */
};

/* Fills out[limits->sequences]; returns how many. 0: nothing is ready. */
int32_t batch_plan(const struct batch_sequence *sequences, int32_t count, const struct batch_limits *limits,
                   struct batch_item *out);

#endif
