/* pipeline: how many micro-batches go through the stages at once. PURE: the same observations give the same
 * choice.
 *
 * With m micro-batches over P stages (m <= P) every sequence gets a token in the time that P stages take for
 * a micro-batch of n / m rows: stages beyond m stand still, but each reads its weights m times for the n
 * sequences instead of once. Where stages have memory of their own that costs nothing and m = P is best;
 * where they share a memory's bandwidth, small batches may go faster undivided. So times are measured for
 * each m: a step takes the longer of a pass over the weights and of its rows' arithmetic,
 *
 *   t(m, rows) = max(pass_us[m], rows * row_us[m])
 *
 * An m that was not tried for long, while others were, is forgotten: the machine or its neighbours may have
 * changed. One that was not tried for a few steps (the first of all may have been a cold one) is taken for as
 * good as it can be, a pass that shares with nobody, so that it is tried where it might win. What it was
 * shows in the tokens of nobody. */
#ifndef LEPTON_WORKER_INFER_PIPELINE_H
#define LEPTON_WORKER_INFER_PIPELINE_H

#include "common/base.h"

#define PIPELINE_MAX_STAGES 256

struct pipeline_cost {
    int32_t stages;
    uint64_t observed;
    struct {
        double pass_us, row_us; /* of the slowest stage, everything that comes with a step included */
        int32_t steps;          /* observed, as far as it matters; 0: none */
        uint64_t seen_at;       /* the count of observations when there was one last */
        bool bound; /* a step was so long that its rows must have bound; else row_us is no less than the truth
                     */
    } of[PIPELINE_MAX_STAGES + 1]; /* [m] */
};

void pipeline_init(struct pipeline_cost *cost, int32_t stages);
/* A step that generates, of `rows` rows, took the slowest stage `us` while up to m were under way. */
void pipeline_observe(struct pipeline_cost *cost, int32_t m, int32_t rows, double us);
/* The time of a step; from the observations of m, or from those of its neighbours. */
double pipeline_step_us(const struct pipeline_cost *cost, int32_t m, int32_t rows);
/* The m, 1 to stages, that gives so many sequences most tokens per second. */
int32_t pipeline_choose(const struct pipeline_cost *cost, int32_t sequences);

#endif
