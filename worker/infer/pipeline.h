/* pipeline: how many micro-batches go through the stages at once. PURE: the same observations give the same
 * choice.
 *
 * With m micro-batches over P stages (m <= P) every sequence gets a token in the time that P stages take for
 * a micro-batch of n / m rows: stages beyond m stand still, but each reads its weights m times for the n
 * sequences instead of once. Where stages have memory of their own that costs nothing and m = P is best;
 * where they share a memory's bandwidth, or processors, small batches may go faster undivided. So the time of
 * a step is measured for each m and each size of a micro-batch (its rows, to the next power of two): neither
 * follows from the other, for rows cost nothing while reading the weights binds, and then all the more.
 *
 * What was not seen for long, while other steps were, is forgotten: the machine or its neighbours may have
 * changed. What was not tried for a few steps (the first of all may have been a cold one) is taken for as
 * good as what is known allows, so that it is tried where it might win. What it was shows in the tokens of
 * nobody.
 */
#ifndef LEPTON_WORKER_INFER_PIPELINE_H
#define LEPTON_WORKER_INFER_PIPELINE_H

#include "common/base.h"

#define PIPELINE_MAX_STAGES 256

#define PIPELINE_SIZES 17 /* 1, 2, 4, ... 65536 rows */

struct pipeline_time {
    double us;        /* of the slowest stage, everything that comes with a step included */
    uint64_t seen_at; /* the count of observations when there was one last */
    int32_t steps;    /* observed, as far as it matters; 0: none */
};
struct pipeline_cost {
    int32_t stages;
    uint64_t observed;
    struct pipeline_time of[PIPELINE_MAX_STAGES + 1][PIPELINE_SIZES]; /* [m][size] */
};

void pipeline_init(struct pipeline_cost *cost, int32_t stages);
/* A step that generates, of `rows` rows, took the slowest stage `us` while up to m were under way. */
void pipeline_observe(struct pipeline_cost *cost, int32_t m, int32_t rows, double us);
/* The time of a step of so many rows with m under way; where it is not known, the least that it can be. */
double pipeline_step_us(const struct pipeline_cost *cost, int32_t m, int32_t rows);
/* The m, 1 to stages, that gives so many sequences most tokens per second. */
int32_t pipeline_choose(const struct pipeline_cost *cost, int32_t sequences);

#endif
