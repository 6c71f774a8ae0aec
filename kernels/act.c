/* act: element-wise work on activations: residual addition, SwiGLU, sums of ranks; the portable reference. */
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"
#include "kernels/cpu/lanes.h"

/* Elements below which waking a thread costs more than it saves. */
#define GRAIN_ADD    16384
#define GRAIN_SWIGLU 4096

struct elements {
    float *out;
    const float *a, *b;
    int64_t ranks, stride; /* sum_ranks: parts and elements of each */
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

/* out may be gate, so the results of a run are held back until its inputs are read. */
CPU_CLONES static void swiglu_range(float *out, const float *gate, const float *up, int64_t n)
{
    enum { RUN = 64 };
    float run[RUN];
    for (int64_t i = 0; i < n; i += RUN) {
        int length = n - i < RUN ? (int)(n - i) : RUN;
        for (int j = 0; j < length; j++)
            run[j] = gate[i + j] / (1.0f + fixed_expf(-gate[i + j])) * up[i + j];
        for (int j = 0; j < length; j++)
            out[i + j] = run[j];
    }
}

static void swiglu_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    swiglu_range(e->out + begin, e->a + begin, e->b + begin, end - begin);
}

void cpu_swiglu(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up)
{
    struct elements e = {.out = out->data, .a = gate->data, .b = up->data};
    team_for(cpu_team(s), tensor_elements(out), GRAIN_SWIGLU, swiglu_body, &e);
}

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
