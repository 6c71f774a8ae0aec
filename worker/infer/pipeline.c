#include "worker/infer/pipeline.h"

#define WEIGHT 0.125 /* of a new observation */
#define KEPT   512   /* observations, times the stages, after which what is not seen any more is forgotten */
#define GAIN   0.97  /* fewer micro-batches must take less than so much of the time to be taken */
#define TRIALS 3     /* steps that it takes to know a time: the first may have been a cold one */

void pipeline_init(struct pipeline_cost *cost, int32_t stages)
{
    *cost = (struct pipeline_cost){.stages = stages < PIPELINE_MAX_STAGES ? stages : PIPELINE_MAX_STAGES};
}

/* Rows 1, 2, 3-4, 5-8, 9-16, ... */
static int size_of(int32_t rows)
{
    int size = 0;
    while (size < PIPELINE_SIZES - 1 && rows > 1 << size)
        size++;
    return size;
}

static bool known(const struct pipeline_cost *cost, const struct pipeline_time *t)
{
    return t->steps && cost->observed - t->seen_at <= KEPT * (uint64_t)cost->stages;
}

void pipeline_observe(struct pipeline_cost *cost, int32_t m, int32_t rows, double us)
{
    if (m < 1 || m > cost->stages || rows < 1 || !(us > 0))
        return;
    struct pipeline_time *t = &cost->of[m][size_of(rows)];
    int32_t before = known(cost, t) ? t->steps : 0;
    if (before == 0 || (before < TRIALS && us < t->us))
        t->us = us;
    else if (before >= TRIALS)
        t->us += (us - t->us) * WEIGHT;
    t->steps = before < TRIALS ? before + 1 : TRIALS;
    t->seen_at = ++cost->observed;
}

/* The least that a step can take, by what one of k micro-batches and another size took: shared with fewer it
 * is faster by no more than their number, and by no more than its rows; never by having more of either. */
static double least_us(double us, int32_t k, int size, int32_t m, int wanted)
{
    us *= k > m ? (double)m / k : 1;
    return size > wanted ? us / (1 << (size - wanted)) : us;
}

double pipeline_step_us(const struct pipeline_cost *cost, int32_t m, int32_t rows)
{
    int wanted = size_of(rows);
    const struct pipeline_time *own = &cost->of[m][wanted];
    if (known(cost, own) && own->steps >= TRIALS)
        return own->us;
    double least = 0;
    for (int32_t k = 1; k <= cost->stages; k++)
        for (int size = 0; size < PIPELINE_SIZES; size++) {
            const struct pipeline_time *t = &cost->of[k][size];
            bool tells = t->steps >= TRIALS && known(cost, t);
            double us = tells ? least_us(t->us, k, size, m, wanted) : 0;
            least = us > least ? us : least;
        }
    if (known(cost, own) && (least == 0 || own->us < least))
        return own->us;
    return least > 0 ? least : 1;
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
