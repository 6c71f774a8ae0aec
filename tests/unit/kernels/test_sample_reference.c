/* The sampler against a second one written the plain way, in double: everything sorted, every sum taken anew.
 * Options are mixed at random, so that each meets each other one. Where the reference itself stands on a
 * border (a cumulative sum within 1e-5 of the drawn number, a cut within 1e-5 of its bound) rounding may
 * decide either way: such draws are passed over, and their share is bounded. */
#include "tests/unit/kernels/rig.h"

#include "kernels/philox.h"

enum { V = 97, CONTEXT = 40, SLOTS = 3, BIASES = 6, MARGIN_PER_MILLION = 10 };

struct reference {
    double logit[V], weight[V]; /* after bias, penalties and ban */
    int order[V];
    double margin; /* how near the nearest decision came to its border */
};

struct situation {
    float logits[V];
    int32_t history[SLOTS][CONTEXT];
    struct logit_bias bias[BIASES];
    struct sample_row row;
};

static unsigned long long random_state = 20240607;

static double uniform(void)
{
    return (double)(test_random(&random_state) >> 11) * 0x1p-53;
}

static int below(int n)
{
    return (int)(test_random(&random_state) % (unsigned)n);
}

static void near(struct reference *r, double distance)
{
    if (fabs(distance) < r->margin)
        r->margin = fabs(distance);
}

static void apply_history(struct reference *r, const struct situation *s)
{
    const struct sample_row *row = &s->row;
    const int32_t *history = s->history[row->slot];
    for (int id = 0; id < V; id++) {
        int seen = 0, generated = 0;
        for (int i = 0; i < row->history_tokens; i++) {
            seen += history[i] == id;
            generated += history[i] == id && i >= row->prompt_tokens;
        }
        double penalty = (double)row->repetition_penalty;
        if (seen)
            r->logit[id] = r->logit[id] > 0 ? r->logit[id] / penalty : r->logit[id] * penalty;
        if (generated)
            r->logit[id] -= (double)row->presence_penalty + (double)row->frequency_penalty * generated;
    }
}

static struct reference *sorted; /* for the comparison of qsort */

static int by_logit(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    double d = sorted->logit[y] - sorted->logit[x];
    return d > 0 ? 1 : d < 0 ? -1 : x - y;
}

static double sum_of(const struct reference *r, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += r->weight[i];
    return sum;
}

/* How many of the sorted candidates stay. */
static int cut(struct reference *r, const struct sample_row *row)
{
    int kept = V, n = 0;
    while (kept > 0 && r->logit[r->order[kept - 1]] == -(double)INFINITY)
        kept--;
    if (row->top_k > 0 && row->top_k < kept) {
        kept = row->top_k;
        near(r, r->logit[r->order[kept - 1]] - r->logit[r->order[kept]]);
    }
    if (row->top_p < 1.0f) {
        double mass = sum_of(r, kept);
        while (n < kept) {
            double held = sum_of(r, ++n) / mass - (double)row->top_p;
            near(r, held);
            if (held >= 0)
                break;
        }
        kept = n;
    }
    for (n = 1; row->min_p > 0.0f && n < kept; n++) {
        double over = r->weight[n] / r->weight[0] - (double)row->min_p;
        near(r, over);
        if (over < 0)
            break;
    }
    return row->min_p > 0.0f ? n : kept;
}

/* The token that the options ask for. */
static int reference_sample(struct reference *r, const struct situation *s)
{
    const struct sample_row *row = &s->row;
    r->margin = 1.0;
    for (int i = 0; i < V; i++) {
        r->logit[i] = (double)s->logits[i];
        r->order[i] = i;
    }
    for (int i = 0; i < row->bias_count; i++)
        r->logit[s->bias[row->bias_begin + i].id] += (double)s->bias[row->bias_begin + i].bias;
    apply_history(r, s);
    if (row->banned_id >= 0)
        r->logit[row->banned_id] = -(double)INFINITY;
    sorted = r;
    qsort(r->order, V, sizeof(int), by_logit);
    if (row->temperature == 0.0f) {
        near(r, r->logit[r->order[0]] - r->logit[r->order[1]]);
        return r->order[0];
    }
    for (int i = 0; i < V; i++)
        r->weight[i] = exp((r->logit[r->order[i]] - r->logit[r->order[0]]) / (double)row->temperature);
    int kept = cut(r, row);
    double target = philox_uniform(row->seed, row->choice, row->index) * sum_of(r, kept),
           mass = sum_of(r, kept);
    for (int i = 0; i < kept; i++) {
        near(r, (sum_of(r, i + 1) - target) / mass);
        if (sum_of(r, i + 1) > target)
            return r->order[i];
    }
    return r->order[kept - 1];
}

static void random_situation(struct situation *s)
{
    struct sample_row *row = &s->row;
    for (int i = 0; i < V; i++)
        s->logits[i] = (float)(8 * uniform() - 4);
    for (int i = 0; i < SLOTS * CONTEXT; i++)
        s->history[i / CONTEXT][i % CONTEXT] = below(V / 2);
    for (int i = 0; i < BIASES; i++)
        s->bias[i] = (struct logit_bias){.id = 16 * i + below(16), .bias = (float)(6 * uniform() - 3)};
    *row = (struct sample_row){.seed = test_random(&random_state),
                               .choice = (uint32_t)below(3),
                               .index = (uint32_t)below(1000),
                               .slot = below(SLOTS),
                               .temperature = below(4) ? (float)(0.3 + 1.5 * uniform()) : 0.0f,
                               .top_p = below(2) ? 1.0f : (float)(0.2 + 0.75 * uniform()),
                               .min_p = below(2) ? 0.0f : (float)(0.3 * uniform()),
                               .top_k = below(2) ? 0 : 1 + below(V + 10),
                               .repetition_penalty = below(2) ? 1.0f : (float)(0.5 + 1.5 * uniform()),
                               .presence_penalty = below(2) ? 0.0f : (float)(4 * uniform() - 2),
                               .frequency_penalty = below(2) ? 0.0f : (float)(4 * uniform() - 2),
                               .banned_id = below(2) ? -1 : below(V),
                               .logprobs = below(2) ? 0 : 1 + below(1 + SAMPLE_MAX_TOP)};
    row->history_tokens = below(2) ? 0 : below(CONTEXT + 1);
    row->prompt_tokens = row->history_tokens ? below(row->history_tokens + 1) : 0;
    row->bias_begin = below(BIASES + 1);
    row->bias_count = below(BIASES + 1 - row->bias_begin);
}

/* Log softmax of the logits as they came. */
static void check_logprobs(const struct situation *s, int32_t drawn, const struct token_logprobs *got)
{
    struct reference r;
    double sum = 0;
    for (int i = 0; i < V; i++) {
        r.logit[i] = (double)s->logits[i];
        r.order[i] = i;
        sum += exp((double)s->logits[i]);
    }
    sorted = &r;
    qsort(r.order, V, sizeof(int), by_logit);
    CHECK(fabs((double)got->drawn - (r.logit[drawn] - log(sum))) < 1e-5);
    CHECK_INT(got->count, s->row.logprobs - 1);
    for (int i = 0; i < got->count; i++) {
        CHECK_INT(got->id[i], r.order[i]);
        CHECK(fabs((double)got->logprob[i] - (r.logit[r.order[i]] - log(sum))) < 1e-5);
    }
}

static int32_t sample(struct rig *r, const struct situation *s, struct token_logprobs *logprobs)
{
    float copy[V];
    int32_t id = -2;
    memcpy(copy, s->logits, sizeof(copy));
    struct tensor l = tensor_2d(r->device, DTYPE_F32, copy, 1, V),
                  ids = tensor_1d(r->device, DTYPE_I32, &id, 1);
    struct tensor history = tensor_2d(r->device, DTYPE_I32, (void *)(uintptr_t)s->history, SLOTS, CONTEXT);
    struct sample_extra extra = {.biases = s->bias, .bias_count = BIASES, .logprobs = logprobs};
    kernel_sample(r->stream, &ids, &l, &s->row, &history, &extra);
    return id;
}

static void test_every_mix_of_options_draws_the_references_token(void)
{
    enum { ROUNDS = 20000 };
    struct rig r;
    int passed_over = 0, wrong = 0;
    rig_open(&r, 1);
    for (int round = 0; round < ROUNDS; round++) {
        struct situation s;
        struct reference reference;
        struct token_logprobs logprobs;
        memset(&logprobs, 0xFF, sizeof(logprobs));
        random_situation(&s);
        int want = reference_sample(&reference, &s);
        if (reference.margin < MARGIN_PER_MILLION * 1e-6) {
            passed_over++;
            continue;
        }
        int32_t got = sample(&r, &s, &logprobs);
        wrong += got != want;
        if (s.row.logprobs)
            check_logprobs(&s, got, &logprobs);
        else
            CHECK(logprobs.count == 0 && logprobs.drawn == 0.0f);
    }
    CHECK_INT(wrong, 0);
    CHECK(passed_over < ROUNDS / 100);
    rig_close(&r);
}

/* What asks for log-probabilities draws the token that it would have drawn without. */
static void test_logprobs_and_other_choices_do_not_change_a_draw(void)
{
    struct rig r;
    int different = 0;
    rig_open(&r, 1);
    for (int round = 0; round < 500; round++) {
        struct situation s;
        struct token_logprobs logprobs;
        random_situation(&s);
        s.row.logprobs = 0;
        s.row.choice = 0;
        int32_t alone = sample(&r, &s, NULL);
        s.row.logprobs = 1 + SAMPLE_MAX_TOP;
        CHECK_INT(sample(&r, &s, &logprobs), alone);
        s.row.choice = 1;
        different += sample(&r, &s, &logprobs) != alone;
    }
    CHECK(different > 100); /* another choice is another draw */
    rig_close(&r);
}

static struct situation flat(void)
{
    struct situation s = {.row = {.top_p = 1, .repetition_penalty = 1, .banned_id = -1}};
    return s;
}

static void test_extremes_stay_finite(void)
{
    struct rig r;
    struct token_logprobs logprobs;
    rig_open(&r, 1);
    struct situation s = flat();
    for (int i = 0; i < V; i++)
        s.logits[i] = -3.0e38f;
    s.logits[7] = 3.0e38f;
    s.history[0][0] = 7;
    s.row.history_tokens = 1;
    s.row.repetition_penalty = 1e-38f; /* 3e76 is no float */
    CHECK_INT(sample(&r, &s, NULL), 7);
    s.history[0][0] = 8; /* -3e38 * 10 */
    s.row.repetition_penalty = 10.0f;
    s.row.presence_penalty = 2.0f;
    CHECK_INT(sample(&r, &s, NULL), 7);
    s.row.temperature = 1.0f;
    s.row.logprobs = 1 + 3;
    CHECK_INT(sample(&r, &s, &logprobs), 7);
    CHECK(logprobs.drawn == 0.0f && logprobs.id[0] == 7 && isfinite(logprobs.logprob[2]));
    s.row.logprobs = 0;
    s.logits[8] = 3.4e38f;
    s.bias[0] = (struct logit_bias){.id = 8, .bias = 3.4e38f};
    s.row.bias_count = 1;
    s.row.history_tokens = 0;
    CHECK_INT(sample(&r, &s, NULL), 8);
    s.logits[8] = INFINITY; /* a fault stays one, whatever is subtracted from it */
    s.bias[0].bias = -100.0f;
    CHECK_INT(sample(&r, &s, NULL), -1);
    rig_close(&r);
}

static void test_fewer_alternatives_than_wanted(void)
{
    struct rig r;
    struct token_logprobs logprobs;
    rig_open(&r, 1);
    struct situation s = flat();
    for (int i = 0; i < V; i++)
        s.logits[i] = i % 30 == 0 ? 1.0f : -INFINITY;
    s.row.logprobs = 1 + SAMPLE_MAX_TOP;
    CHECK_INT(sample(&r, &s, &logprobs), 0);
    CHECK_INT(logprobs.count, 4);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(logprobs.id[i], 30 * i); /* equal: by id */
        CHECK(fabs((double)logprobs.logprob[i] + log(4.0)) < 1e-6);
    }
    s.row.logprobs = 1; /* the drawn one's alone */
    CHECK_INT(sample(&r, &s, &logprobs), 0);
    CHECK_INT(logprobs.count, 0);
    CHECK(fabs((double)logprobs.drawn + log(4.0)) < 1e-6);
    rig_close(&r);
}

int main(void)
{
    TEST(test_every_mix_of_options_draws_the_references_token,
         "every mix of options draws the token, and names the log-probabilities, of a reference in double");
    TEST(test_logprobs_and_other_choices_do_not_change_a_draw,
         "asking for log-probabilities changes no draw; another choice does");
    TEST(test_extremes_stay_finite, "bias and penalties leave finite logits finite");
    TEST(test_fewer_alternatives_than_wanted, "only tokens with a probability are named, ties by id");
    return test_result();
}
