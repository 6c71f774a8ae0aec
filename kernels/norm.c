/* norm: root mean square and layer normalisation; the portable reference. */
#include <math.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/lanes.h"

struct rmsnorm {
    const float *x, *gain;
    float *out;
    int64_t C;
    float eps;
};

CPU_CLONES static void rmsnorm_row(float *out, const float *x, const float *gain, int64_t C, float eps)
{
    float inverse = 1.0f / sqrtf(lanes_dot(x, x, C) / (float)C + eps);
    for (int64_t c = 0; c < C; c++)
        out[c] = x[c] * inverse * gain[c];
}

static void rmsnorm_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct rmsnorm *n = context;
    (void)member;
    for (int64_t t = begin; t < end; t++)
        rmsnorm_row(n->out + t * n->C, n->x + t * n->C, n->gain, n->C, n->eps);
}

void cpu_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                 float eps)
{
    struct rmsnorm n = {.x = x->data, .gain = gain->data, .out = out->data, .C = x->dim[1], .eps = eps};
    /* Rows of less than some thousand elements are not worth waking a thread for. */
    team_for(cpu_team(s), x->dim[0], 1 + 8192 / (n.C + 1), rmsnorm_body, &n);
}

/* ---- layernorm: mean, then the squares of the differences (no cancellation), each in the order of lanes.h.
 */

struct layernorm {
    const float *x, *gain, *bias;
    float *out;
    int64_t C;
    float eps;
};

CPU_CLONES static void layernorm_row(float *out, const float *x, const float *gain, const float *bias,
                                     int64_t C, float eps)
{
    float mean = lanes_sum(x, C) / (float)C;
    for (int64_t c = 0; c < C; c++)
        out[c] = x[c] - mean;
    float inverse = 1.0f / sqrtf(lanes_dot(out, out, C) / (float)C + eps);
    for (int64_t c = 0; c < C; c++)
        out[c] = out[c] * inverse * gain[c];
    for (int64_t c = 0; bias && c < C; c++)
        out[c] += bias[c];
}

static void layernorm_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct layernorm *n = context;
    (void)member;
    for (int64_t t = begin; t < end; t++)
        layernorm_row(n->out + t * n->C, n->x + t * n->C, n->gain, n->bias, n->C, n->eps);
}

void cpu_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                   const struct tensor *bias, float eps)
{
    struct layernorm n = {.x = x->data,
                          .gain = gain->data,
                          .bias = bias ? bias->data : NULL,
                          .out = out->data,
                          .C = x->dim[1],
                          .eps = eps};
    team_for(cpu_team(s), x->dim[0], 1 + 8192 / (n.C + 1), layernorm_body, &n);
}
