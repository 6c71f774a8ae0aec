/* sample: one token per row of logits; the portable reference.
 *
 *   penalties -> ban -> greedy, or: temperature -> top-k -> top-p -> min-p -> one draw
 *
 * The distribution is never sorted as a whole: a heap gives its candidates in order (higher logit first,
 * lower id among equals) for as long as one is needed. Weights exp((logit - highest) / temperature) and their
 * sums are double, so that neither a tiny temperature nor a large vocabulary loses the tail. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"
#include "kernels/philox.h"

struct candidate {
    float logit;
    int32_t id;
};

/* Scratch of one member, for a vocabulary of V. */
struct sampler {
    double *weight;         /* [V] of the candidates taken from the heap so far, in order */
    struct candidate *heap; /* [V]; those taken are kept behind the shrinking heap */
    uint32_t *count;        /* [V] occurrences in the generated tokens */
    int64_t V;
    int64_t size;  /* of the heap */
    int64_t taken; /* candidates taken from it */
    float highest;
    float temperature;
};

/* ---- penalties */

#define PENALISED 0x80000000u /* in `count`: this id was dealt with */

static void penalise(float *logit, uint32_t occurrences, const struct sample_row *row)
{
    float l = *logit;
    l = l > 0.0f ? l / row->repetition_penalty : l * row->repetition_penalty;
    if (occurrences > 0)
        l -= row->frequency_penalty * (float)occurrences + row->presence_penalty;
    *logit = l;
}

static void apply_penalties(struct sampler *s, float *logits, const struct sample_row *row,
                            const int32_t *history)
{
    if (row->repetition_penalty == 1.0f && row->presence_penalty == 0.0f && row->frequency_penalty == 0.0f)
        return;
    for (int32_t i = 0; i < row->history_tokens; i++) {
        ASSERT(history[i] >= 0 && history[i] < s->V);
        s->count[history[i]] = 0; /* of the ids that occur alone: the vocabulary is not walked */
    }
    for (int32_t i = row->prompt_tokens; i < row->history_tokens; i++)
        s->count[history[i]]++;
    for (int32_t i = 0; i < row->history_tokens; i++) {
        uint32_t *count = &s->count[history[i]];
        if (!(*count & PENALISED))
            penalise(&logits[history[i]], *count, row);
        *count |= PENALISED;
    }
}

/* ---- order */

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(struct candidate *heap, int64_t size, int64_t i)
{
    struct candidate moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < size; i = child) {
        if (child + 1 < size && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &moved))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static double weight_of(const struct sampler *s, float logit)
{
    return fixed_exp(((double)logit - (double)s->highest) / (double)s->temperature);
}

/* Takes the next candidate in order and notes its weight; false when none is left. The candidate of rank r
 * (0 = first) then stands at heap[V - 1 - r], which the shrinking heap has left. */
static bool take_next(struct sampler *s)
{
    if (s->size == 0)
        return false;
    struct candidate first = s->heap[0];
    s->heap[0] = s->heap[--s->size];
    if (s->size > 0)
        sift_down(s->heap, s->size, 0);
    s->heap[s->V - 1 - s->taken] = first;
    s->weight[s->taken++] = weight_of(s, first.logit);
    return true;
}

static int32_t id_of_rank(const struct sampler *s, int64_t rank)
{
    return s->heap[s->V - 1 - rank].id;
}

/* ---- the cuts, in order. Each keeps a first part of the sorted candidates. */

static double sum_of_first(const struct sampler *s, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += s->weight[i];
    return sum;
}

/* Of all candidates; a logit of -infinity adds 0. */
CPU_CLONES static double whole_mass(const float *logits, int64_t V, double highest, double temperature)
{
    return fixed_exp_sum(logits, V, highest, temperature);
}

/* Top-k: how many candidates remain, and the sum of their weights. */
static int64_t cut_top_k(struct sampler *s, const float *logits, int32_t top_k, double *mass)
{
    if (top_k > 0 && top_k < s->size) {
        while (s->taken < top_k)
            take_next(s);
        *mass = sum_of_first(s, s->taken);
        return s->taken;
    }
    *mass = whole_mass(logits, s->V, (double)s->highest, (double)s->temperature);
    return s->size;
}

/* Top-p: the fewest candidates that hold top_p of the mass; at least one. */
static int64_t cut_top_p(struct sampler *s, int64_t kept, float top_p, double *mass)
{
    if (!(top_p < 1.0f))
        return kept;
    double sum = 0.0;
    int64_t n = 0;
    do {
        if (n == s->taken)
            take_next(s);
        sum += s->weight[n++];
    } while (n < kept && sum < (double)top_p * *mass);
    *mass = sum;
    return n;
}

/* Min-p: those that are at least min_p times as likely as the first. */
static int64_t cut_min_p(struct sampler *s, int64_t kept, float min_p, double *mass)
{
    if (!(min_p > 0.0f))
        return kept;
    int64_t n = 0;
    while (n < kept) {
        if (n == s->taken)
            take_next(s);
        if (n > 0 && s->weight[n] < (double)min_p * s->weight[0])
            break;
        n++;
    }
    *mass = sum_of_first(s, n);
    return n;
}

/* Inverse of the cumulative distribution over the kept candidates. */
static int32_t draw(struct sampler *s, int64_t kept, double target)
{
    double sum = 0.0;
    int64_t likely = 0; /* the last one with any weight: what rounding at the end of the sum falls back to */
    for (int64_t i = 0; i < kept; i++) {
        if (i == s->taken)
            take_next(s);
        if (s->weight[i] > 0.0)
            likely = i;
        sum += s->weight[i];
        if (sum > target)
            return id_of_rank(s, i);
    }
    return id_of_rank(s, likely);
}

/* ---- one row */

/* Finds the highest logit (lowest id among equals); -1 for a row that no token may come from. */
static int32_t highest_id(const float *logits, int64_t V)
{
    int32_t best = -1;
    for (int64_t i = 0; i < V; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return -1;
        if (logits[i] != -INFINITY && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    }
    return best;
}

static void fill_heap(struct sampler *s, const float *logits)
{
    s->size = 0;
    s->taken = 0;
    for (int64_t i = 0; i < s->V; i++)
        if (logits[i] != -INFINITY)
            s->heap[s->size++] = (struct candidate){.logit = logits[i], .id = (int32_t)i};
    for (int64_t i = s->size / 2 - 1; i >= 0; i--)
        sift_down(s->heap, s->size, i);
}

static int32_t sample_one(struct sampler *s, float *logits, const struct sample_row *row,
                          const int32_t *history)
{
    apply_penalties(s, logits, row, history);
    /* A ban must not hide a fault: NaN and +infinity stay and are found below. */
    if (row->banned_id >= 0 && row->banned_id < s->V && logits[row->banned_id] < INFINITY)
        logits[row->banned_id] = -INFINITY;
    int32_t best = highest_id(logits, s->V);
    if (best < 0 || row->temperature == 0.0f)
        return best;
    ASSERT(row->temperature > 0.0f);
    s->highest = logits[best];
    s->temperature = row->temperature;
    fill_heap(s, logits);
    double mass;
    int64_t kept = cut_top_k(s, logits, row->top_k, &mass);
    kept = cut_top_p(s, kept, row->top_p, &mass);
    kept = cut_min_p(s, kept, row->min_p, &mass);
    return draw(s, kept, philox_uniform(row->seed, row->index) * mass);
}

struct sample {
    struct team *team;
    int32_t *ids;
    float *logits;
    const struct sample_row *rows;
    const struct tensor *history;
    int64_t V;
};

static void sample_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct sample *c = context;
    size_t V = (size_t)c->V;
    char *scratch =
        team_scratch(c->team, member, V * (sizeof(double) + sizeof(struct candidate) + sizeof(uint32_t)));
    struct sampler s = {.weight = (double *)scratch,
                        .heap = (struct candidate *)(scratch + V * sizeof(double)),
                        .count = (uint32_t *)(scratch + V * (sizeof(double) + sizeof(struct candidate))),
                        .V = c->V};
    for (int64_t b = begin; b < end; b++) {
        const struct sample_row *row = &c->rows[b];
        int64_t context_tokens = c->history->dim[1];
        ASSERT(row->history_tokens >= 0 && row->history_tokens <= context_tokens);
        ASSERT(row->prompt_tokens >= 0 && row->prompt_tokens <= row->history_tokens);
        ASSERT(row->history_tokens == 0 || (row->slot >= 0 && row->slot < c->history->dim[0]));
        const int32_t *history = NULL;
        if (row->history_tokens > 0)
            history = (const int32_t *)c->history->data + row->slot * context_tokens;
        c->ids[b] = sample_one(&s, c->logits + b * c->V, row, history);
    }
}

void cpu_sample(struct stream *s, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                const struct tensor *history)
{
    struct sample c = {.team = cpu_team(s),
                       .ids = ids->data,
                       .logits = logits->data,
                       .rows = rows,
                       .history = history,
                       .V = logits->dim[1]};
    team_for(c.team, ids->dim[0], 1, sample_body, &c);
}
