#include "worker/infer/pipeline.h"

#define WEIGHT    0.125 /* of a new observation */
#define TELL_ROWS 1.25  /* a step so much longer than a pass is long because of its rows */
#define KEPT      512   /* observations, times the stages, after which an m that is not used is forgotten */
#define GAIN      0.97  /* fewer micro-batches must take less than so much of the time to be taken */
#define TRIALS    3     /* steps that it takes to know an m: the first may have been a cold one */

void pipeline_init(struct pipeline_cost *cost, int32_t stages)
{
    *cost = (struct pipeline_cost){.stages = stages < PIPELINE_MAX_STAGES ? stages : PIPELINE_MAX_STAGES};
}

static bool known(const struct pipeline_cost *cost, int32_t m)
{
    return cost->of[m].steps && cost->observed - cost->of[m].seen_at <= KEPT * (uint64_t)cost->stages;
}

void pipeline_observe(struct pipeline_cost *cost, int32_t m, int32_t rows, double us)
{
    if (m < 1 || m > cost->stages || rows < 1 || !(us > 0))
        return;
    double *pass = &cost->of[m].pass_us, *row = &cost->of[m].row_us;
    bool before = known(cost, m);
    cost->of[m].seen_at = ++cost->observed;
    if (!before) {
        *pass = us;
        *row = us / rows; /* at most */
        cost->of[m].steps = 1;
        cost->of[m].bound = false;
        return;
    }
    if (cost->of[m].steps < TRIALS) {
        cost->of[m].steps++;
        *pass = us < *pass ? us : *pass; /* no pass takes longer than a step */
    }
    if (us > TELL_ROWS * *pass && rows > 1) {
        /* Rows bind; until the first such step row_us was only a bound from above. */
        *row += (us / rows - *row) * (cost->of[m].bound ? WEIGHT : 1);
        cost->of[m].bound = true;
    } else {
        *pass += (us - *pass) * WEIGHT;
        *row = us / rows < *row ? us / rows : *row;
    }
}

/* The observed m next to this one, the larger first; 0 when no other was observed. */
static int32_t neighbour(const struct pipeline_cost *cost, int32_t m)
{
    for (int32_t k = m + 1; k <= cost->stages; k++)
        if (known(cost, k))
            return k;
    for (int32_t k = m - 1; k >= 1; k--)
        if (known(cost, k))
            return k;
    return 0;
}

/* By what was observed of k; another m may be as good as it can be, shared with fewer. No row binds that was
 * not seen to: of steps of one row nothing is known of those of many. */
static double by_observed(const struct pipeline_cost *cost, int32_t k, int32_t m, int32_t rows)
{
    double pass = cost->of[k].pass_us * (k > m ? (double)m / k : 1);
    double arithmetic = cost->of[k].bound ? rows * cost->of[k].row_us : 0;
    return pass > arithmetic ? pass : arithmetic;
}

double pipeline_step_us(const struct pipeline_cost *cost, int32_t m, int32_t rows)
{
    double own = known(cost, m) ? by_observed(cost, m, m, rows) : 0;
    int32_t k = own > 0 && cost->of[m].steps >= TRIALS ? 0 : neighbour(cost, m);
    if (k == 0)
        return own > 0 ? own : 1;
    double best = by_observed(cost, k, m, rows);
    return own > 0 && own < best ? own : best;
}

int32_t pipeline_choose(const struct pipeline_cost *cost, int32_t sequences)
{
    int32_t most = sequences < cost->stages ? sequences : cost->stages, best = most > 1 ? most : 1;
    double best_us = 0;
    for (int32_t m = most; m >= 1; m--) {
        double us = cost->stages * pipeline_step_us(cost, m, (sequences + m - 1) / m);
        if (m == most || us < GAIN * best_us) {
            best = m;
            best_us = us;
        }
    }
    return best;
}
