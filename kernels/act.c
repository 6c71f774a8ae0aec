/* act: element-wise work: residual addition, activations and their gates, scaling, soft caps, sums of ranks;
 * the portable reference. */
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"
#include "kernels/cpu/lanes.h"

/* Elements below which waking a thread costs more than it saves. */
#define GRAIN_ADD      16384
#define GRAIN_ACTIVATE 4096

struct elements {
    float *out;
    const float *a, *b;
    int64_t ranks, stride; /* sum_ranks: parts and elements of each */
    enum activation f;
    float factor; /* scale, softcap */
};

CPU_CLONES static void add_range(float *restrict x, const float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void add_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    add_range(e->out + begin, e->a + begin, end - begin);
}

void cpu_add(struct stream *s, struct tensor *x, const struct tensor *y)
{
    struct elements e = {.out = x->data, .a = y->data};
    team_for(cpu_team(s), tensor_elements(x), GRAIN_ADD, add_body, &e);
}

/* ---- activations. out may be gate, so the results of a run are held back until its inputs are read. */

enum { RUN = 64 };

ALWAYS_INLINE float silu(float z)
{
    return z / (1.0f + fixed_expf(-z));
}

/* z / 2 * (1 + tanh(u)) = z / (1 + exp(-2u)), u = sqrt(2 / pi) * (z + 0.044715 z^3), in double. */
ALWAYS_INLINE float gelu_tanh(float z)
{
    double d = (double)z, twice = 1.5957691216057308 * (d + 0.044715 * d * d * d);
    return (float)(d / (1.0 + fixed_exp(-twice)));
}

#define ACTIVATE_RANGE(NAME, FUNCTION)                                                     \
    CPU_CLONES static void NAME(float *out, const float *gate, const float *up, int64_t n) \
    {                                                                                      \
        float run[RUN];                                                                    \
        for (int64_t i = 0; i < n; i += RUN) {                                             \
            int length = n - i < RUN ? (int)(n - i) : RUN;                                 \
            for (int j = 0; j < length; j++)                                               \
                run[j] = FUNCTION(gate[i + j]);                                            \
            for (int j = 0; up && j < length; j++)                                         \
                run[j] *= up[i + j];                                                       \
            for (int j = 0; j < length; j++)                                               \
                out[i + j] = run[j];                                                       \
        }                                                                                  \
    }

ACTIVATE_RANGE(silu_range, silu)
ACTIVATE_RANGE(gelu_tanh_range, gelu_tanh)

static void activate_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    const float *up = e->b ? e->b + begin : NULL;
    (void)member;
    if (e->f == ACTIVATION_SILU)
        silu_range(e->out + begin, e->a + begin, up, end - begin);
    else
        gelu_tanh_range(e->out + begin, e->a + begin, up, end - begin);
}

void cpu_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                  enum activation f)
{
    struct elements e = {.out = out->data, .a = gate->data, .b = up ? up->data : NULL, .f = f};
    team_for(cpu_team(s), tensor_elements(out), GRAIN_ACTIVATE, activate_body, &e);
}

/* ---- scale, softcap: in place */

static void scale_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    for (int64_t i = begin; i < end; i++)
        e->out[i] *= e->factor;
}

void cpu_scale(struct stream *s, struct tensor *x, float factor)
{
    struct elements e = {.out = x->data, .factor = factor};
    team_for(cpu_team(s), tensor_elements(x), GRAIN_ADD, scale_body, &e);
}

CPU_CLONES static void softcap_range(float *x, float cap, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = cap * fixed_tanhf(x[i] / cap);
}

static void softcap_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    softcap_range(e->out + begin, e->factor, end - begin);
}

void cpu_softcap(struct stream *s, struct tensor *x, float cap)
{
    struct elements e = {.out = x->data, .factor = cap};
    team_for(cpu_team(s), tensor_elements(x), GRAIN_ACTIVATE, softcap_body, &e);
}

/* ---- sums of ranks */

static void sum_ranks_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    for (int64_t i = begin; i < end; i++)
        e->out[i] = e->a[i];
    for (int64_t rank = 1; rank < e->ranks; rank++)
        add_range(e->out + begin, e->a + rank * e->stride + begin, end - begin);
}

void cpu_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts)
{
    struct elements e = {
        .out = out->data, .a = parts->data, .ranks = parts->dim[0], .stride = tensor_elements(out)};
    team_for(cpu_team(s), e.stride, GRAIN_ADD, sum_ranks_body, &e);
}
