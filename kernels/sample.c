/* sample: one token per row of logits; the portable reference.
 *
 *   log-probabilities | bias -> penalties -> ban -> greedy, or: temperature -> top-k -> top-p -> min-p -> one
 *   draw
 *
 * The distribution is never sorted as a whole: a heap gives its candidates in order (higher logit first,
 * lower id among equals) for as long as one is needed. Weights exp((logit - highest) / temperature) and their
 * sums are double, so that neither a tiny temperature nor a large vocabulary loses the tail. */
#include <float.h>
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
    float *raw;             /* [V] the logits as they came; NULL when no row wants log-probabilities */
    int64_t V;
    int64_t size;  /* of the heap */
    int64_t taken; /* candidates taken from it */
    float highest;
    float temperature;
};

/* ---- bias and penalties */

#define PENALISED 0x80000000u /* in `count`: this id was dealt with */

/* A logit that was finite stays so: an overflow must not look like a fault of the model. */
static float kept_finite(float logit, float was)
{
    return isinf(logit) && isfinite(was) ? copysignf(FLT_MAX, logit) : logit;
}

static void apply_biases(const struct sampler *s, float *logits, const struct logit_bias *bias, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        ASSERT(bias[i].id >= 0 && bias[i].id < s->V);
        float *logit = &logits[bias[i].id];
        *logit = kept_finite(*logit + bias[i].bias, *logit);
    }
}

static void penalise(float *logit, uint32_t occurrences, const struct sample_row *row)
{
    float l = *logit;
    l = kept_finite(l > 0.0f ? l / row->repetition_penalty : l * row->repetition_penalty, l);
    if (occurrences > 0)
        l = kept_finite(l - (row->frequency_penalty * (float)occurrences + row->presence_penalty), l);
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

/* ---- log-probabilities */

/* The `most` likeliest of the raw logits, by insertion: nearly every logit is below the last one kept. */
static int32_t likeliest(const struct sampler *s, int32_t most, struct candidate *top)
{
    int32_t kept = 0;
    for (int64_t i = 0; i < s->V && most > 0; i++) {
        struct candidate c = {.logit = s->raw[i], .id = (int32_t)i};
        if (c.logit == -INFINITY || (kept == most && !before(&c, &top[kept - 1])))
            continue;
        int32_t at = kept < most ? kept++ : kept - 1;
        for (; at > 0 && before(&c, &top[at - 1]); at--)
            top[at] = top[at - 1];
        top[at] = c;
    }
    return kept;
}

/* The difference of two floats may be no float. */
static float logprob_of(float logit, double logs)
{
    double p = (double)logit - logs;
    return p < -(double)FLT_MAX ? -FLT_MAX : (float)p;
}

/* `drawn` has a finite raw logit: what has none cannot be drawn. */
static void take_logprobs(const struct sampler *s, int32_t wanted, int32_t drawn, struct token_logprobs *out)
{
    struct candidate top[SAMPLE_MAX_TOP];
    float highest = -INFINITY;
    for (int64_t i = 0; i < s->V; i++)
        if (s->raw[i] > highest)
            highest = s->raw[i];
    double logs = (double)highest + log(whole_mass(s->raw, s->V, (double)highest, 1.0));
    *out = (struct token_logprobs){.drawn = logprob_of(s->raw[drawn], logs)};
    out->count = likeliest(s, wanted, top);
    for (int32_t i = 0; i < out->count; i++) {
        out->id[i] = top[i].id;
        out->logprob[i] = logprob_of(top[i].logit, logs);
    }
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
                          const int32_t *history, const struct logit_bias *biases)
{
    apply_biases(s, logits, biases, row->bias_count);
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
    return draw(s, kept, philox_uniform(row->seed, row->choice, row->index) * mass);
}

struct sample {
    struct team *team;
    int32_t *ids;
    float *logits;
    const struct sample_row *rows;
    const struct tensor *history;
    const struct sample_extra *extra;
    int64_t V;
};

/* The scratch is cut into the widest items first, so that each array is aligned. */
static void sampler_init(struct sampler *s, const struct sample *c, int member)
{
    size_t V = (size_t)c->V, raw_bytes = c->extra->logprobs ? V * sizeof(float) : 0;
    size_t bytes = V * (sizeof(double) + sizeof(struct candidate) + sizeof(uint32_t)) + raw_bytes;
    char *at = team_scratch(c->team, member, bytes);
    *s = (struct sampler){.weight = (double *)at, .V = c->V};
    s->heap = (struct candidate *)(at += V * sizeof(double));
    s->count = (uint32_t *)(at += V * sizeof(struct candidate));
    s->raw = raw_bytes ? (float *)(at + V * sizeof(uint32_t)) : NULL;
}

static void check_row(const struct sample *c, const struct sample_row *row)
{
    ASSERT(row->history_tokens >= 0 && row->history_tokens <= c->history->dim[1]);
    ASSERT(row->prompt_tokens >= 0 && row->prompt_tokens <= row->history_tokens);
    ASSERT(row->history_tokens == 0 || (row->slot >= 0 && row->slot < c->history->dim[0]));
    ASSERT(row->bias_begin >= 0 && row->bias_count >= 0);
    ASSERT(row->bias_count <= c->extra->bias_count - row->bias_begin);
    ASSERT(row->logprobs >= 0 && row->logprobs <= 1 + SAMPLE_MAX_TOP);
    ASSERT(row->logprobs == 0 || c->extra->logprobs);
}

static void sample_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct sample *c = context;
    struct sampler s;
    sampler_init(&s, c, member);
    for (int64_t b = begin; b < end; b++) {
        const struct sample_row *row = &c->rows[b];
        float *logits = c->logits + b * c->V;
        check_row(c, row);
        const int32_t *history = NULL;
        if (row->history_tokens > 0)
            history = (const int32_t *)c->history->data + row->slot * c->history->dim[1];
        if (row->logprobs)
            memcpy(s.raw, logits, (size_t)c->V * sizeof(float));
        const struct logit_bias *biases = row->bias_count ? c->extra->biases + row->bias_begin : NULL;
        int32_t id = c->ids[b] = sample_one(&s, logits, row, history, biases);
        if (c->extra->logprobs)
            c->extra->logprobs[b] = (struct token_logprobs){0};
        if (row->logprobs && id >= 0)
            take_logprobs(&s, row->logprobs - 1, id, &c->extra->logprobs[b]);
    }
}

void cpu_sample(struct stream *s, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                const struct tensor *history, const struct sample_extra *extra)
{
    struct sample c = {.team = cpu_team(s),
                       .ids = ids->data,
                       .logits = logits->data,
                       .rows = rows,
                       .history = history,
                       .extra = extra,
                       .V = logits->dim[1]};
    team_for(c.team, ids->dim[0], 1, sample_body, &c);
}
