/* loss: the negative log likelihood of target tokens; the portable reference. In double, in ascending order.
 */
#include <math.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"

struct token_loss {
    const float *logits;
    const int32_t *targets;
    float *nll;
    int64_t V;
};

/* A NaN in the row makes the sum NaN, and the loss with it. */
CPU_CLONES static double sum_row(const float *row, int64_t V, double highest)
{
    return fixed_exp_sum(row, V, highest, 1.0);
}

static void token_loss_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct token_loss *l = context;
    (void)member;
    for (int64_t t = begin; t < end; t++) {
        const float *row = l->logits + t * l->V;
        ASSERT(l->targets[t] >= 0 && l->targets[t] < l->V);
        float highest = row[0];
        for (int64_t i = 1; i < l->V; i++)
            highest = row[i] > highest ? row[i] : highest;
        double sum = sum_row(row, l->V, (double)highest);
        l->nll[t] = (float)(log(sum) + (double)highest - (double)row[l->targets[t]]);
    }
}

void cpu_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                    const struct tensor *targets)
{
    struct token_loss l = {
        .logits = logits->data, .targets = targets->data, .nll = nll->data, .V = logits->dim[1]};
    team_for(cpu_team(s), nll->dim[0], 1, token_loss_body, &l);
}
