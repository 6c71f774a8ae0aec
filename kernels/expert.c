/* expert: mixture of experts: the router's choice, the matmul of chosen experts, the weighted sum; the
 * portable reference.
 *
 * The matmul gathers the rows that chose an expert, multiplies them at once, and scatters the results:
 *
 *   ids        row 0: 2 5   row 1: 5 1   row 2: 2 5
 *   expert 2:  rows 0, 2     -> matmul -> slots (0,0), (2,0)
 *   expert 5:  rows 0, 1, 2  -> matmul -> slots (0,1), (1,0), (2,1)
 *
 * An output of matmul depends on its row and its weights alone, so who else chose an expert does not show. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"
#include "kernels/cpu/panel.h"

/* ---- the router */

struct route {
    int32_t *ids;
    float *weights;
    const float *logits;
    int64_t E, k;
    bool renormalise;
};

/* The highest logit that is not among the `taken` picked already, the lowest id among equals. */
static int32_t best_left(const float *logits, int64_t E, const int32_t *picked, int64_t taken)
{
    int32_t best = -1;
    for (int32_t e = 0; e < E; e++) {
        bool used = false;
        for (int64_t i = 0; i < taken && !used; i++)
            used = picked[i] == e;
        if (!used && (best < 0 || logits[e] > logits[best]))
            best = e;
    }
    return best;
}

static void route_row(const struct route *r, int32_t *ids, float *weights, const float *logits)
{
    double sum = 0.0, highest = -(double)INFINITY;
    bool nan = false;
    for (int64_t e = 0; e < r->E; e++) {
        nan |= isnan(logits[e]) != 0;
        highest = logits[e] > highest ? (double)logits[e] : highest;
    }
    for (int64_t i = 0; i < r->k; i++)
        ids[i] = best_left(logits, r->E, ids, i);
    if (!r->renormalise)
        for (int64_t e = 0; e < r->E; e++)
            sum += fixed_exp((double)logits[e] - highest);
    else
        for (int64_t i = 0; i < r->k; i++)
            sum += fixed_exp((double)logits[ids[i]] - highest);
    for (int64_t i = 0; i < r->k; i++)
        weights[i] = nan ? NAN : (float)(fixed_exp((double)logits[ids[i]] - highest) / sum);
}

static void route_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct route *r = context;
    (void)member;
    for (int64_t t = begin; t < end; t++)
        route_row(r, r->ids + t * r->k, r->weights + t * r->k, r->logits + t * r->E);
}

void cpu_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
               bool renormalise)
{
    struct route r = {.ids = ids->data,
                      .weights = weights->data,
                      .logits = logits->data,
                      .E = logits->dim[1],
                      .k = ids->dim[1],
                      .renormalise = renormalise};
    team_for(cpu_team(s), ids->dim[0], 1 + 4096 / (r.E * r.k), route_body, &r);
}

/* ---- matmul of the chosen experts */

/* An expert's rows of a weight, in place. Panels hold sixteen rows: `skip` of the part's rows are the
 * expert's before, and the last may be the next one's. */
static struct weight expert_rows(const struct weight *w, int64_t first, int64_t count, int64_t *skip)
{
    struct weight part = {.stored = w->stored, .layout = w->layout};
    int64_t N = w->stored.dim[0], K = w->stored.dim[1], end = first + count;
    uint64_t row_bytes = 0;
    int rc = dtype_row_bytes(w->stored.dtype, (uint64_t)K, &row_bytes);
    ASSERT(rc == 0 && first >= 0 && end <= N);
    *skip = 0;
    part.packed = (char *)w->packed + (uint64_t)first * row_bytes;
    if (w->layout != 0) {
        size_t panel_bytes = panel_layout(w->stored.dtype, N, K).panel_bytes;
        *skip = first % PANEL_ROWS;
        first -= *skip;
        end = (int64_t)round_up_u64((uint64_t)end, PANEL_ROWS);
        end = end < N ? end : N;
        part.packed = (char *)w->packed + (size_t)(first / PANEL_ROWS) * panel_bytes;
    }
    part.stored.dim[0] = end - first;
    part.stored.data = part.packed;
    return part;
}

struct gathered {
    float *x, *out; /* [slots, K], [slots, N + 2 PANEL_ROWS]: the rows of one expert, packed */
    int64_t *slot;  /* [slots] sorted by expert; slot t * k + r belongs to row t */
    int64_t *begin; /* [E + 1] slots of expert e: slot[begin[e]] .. */
};

/* Counting sort: ascending slots within each expert. */
static void sort_slots(struct gathered *g, const int32_t *ids, int64_t slots, int64_t E)
{
    memset(g->begin, 0, sizeof(int64_t) * (size_t)(E + 2));
    for (int64_t i = 0; i < slots; i++) {
        ASSERT(ids[i] >= 0 && ids[i] < E);
        g->begin[ids[i] + 2]++;
    }
    for (int64_t e = 2; e <= E + 1; e++)
        g->begin[e] += g->begin[e - 1];
    for (int64_t i = 0; i < slots; i++)
        g->slot[g->begin[ids[i] + 1]++] = i;
}

static void run_expert(struct stream *s, struct gathered *g, int64_t e, struct tensor *out,
                       const struct tensor *x, const struct weight *w, int64_t rows_per_x)
{
    int64_t first = g->begin[e], count = g->begin[e + 1] - first, N = out->dim[1], K = x->dim[1];
    if (count == 0)
        return;
    for (int64_t i = 0; i < count; i++)
        memcpy(g->x + i * K, (const float *)x->data + g->slot[first + i] / rows_per_x * K,
               sizeof(float) * (size_t)K);
    int64_t skip;
    struct weight part = expert_rows(w, e * N, N, &skip);
    int64_t width = part.stored.dim[0];
    struct tensor from = tensor_2d(s->device, DTYPE_F32, g->x, count, K);
    struct tensor to = tensor_2d(s->device, DTYPE_F32, g->out, count, width);
    kernel_matmul(s, &to, &from, &part, NULL);
    for (int64_t i = 0; i < count; i++)
        memcpy((float *)out->data + g->slot[first + i] * N, g->out + i * width + skip,
               sizeof(float) * (size_t)N);
}

void cpu_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                       const struct tensor *ids)
{
    int64_t slots = out->dim[0], N = out->dim[1], K = x->dim[1], E = w->stored.dim[0] / N;
    size_t numbers = (size_t)(slots + E + 2) * sizeof(int64_t), in = (size_t)(slots * K) * sizeof(float);
    numbers = round_up_u64(numbers, 64);
    in = round_up_u64(in, 64);
    char *memory =
        cpu_stream_gathered(s, numbers + in + (size_t)(slots * (N + 2 * PANEL_ROWS)) * sizeof(float));
    struct gathered g = {.slot = (int64_t *)(void *)memory,
                         .begin = (int64_t *)(void *)memory + slots,
                         .x = (float *)(void *)(memory + numbers),
                         .out = (float *)(void *)(memory + numbers + in)};
    sort_slots(&g, ids->data, slots, E);
    for (int64_t e = 0; e < E; e++)
        run_expert(s, &g, e, out, x, w, slots / x->dim[0]);
}

/* ---- the weighted sum, in the order of the ranks */

struct expert_sum {
    float *out;
    const float *parts, *weights;
    int64_t C, k;
};

static void expert_sum_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct expert_sum *e = context;
    (void)member;
    for (int64_t t = begin; t < end; t++) {
        float *restrict out = e->out + t * e->C;
        for (int64_t r = 0; r < e->k; r++) {
            const float *restrict part = e->parts + (t * e->k + r) * e->C;
            float weight = e->weights[t * e->k + r];
            for (int64_t c = 0; c < e->C; c++)
                out[c] = r ? out[c] + weight * part[c] : weight * part[c];
        }
    }
}

void cpu_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                    const struct tensor *weights)
{
    struct expert_sum e = {.out = out->data,
                           .parts = parts->data,
                           .weights = weights->data,
                           .C = out->dim[1],
                           .k = weights->dim[1]};
    team_for(cpu_team(s), out->dim[0], 1 + 8192 / (e.C * e.k), expert_sum_body, &e);
}
