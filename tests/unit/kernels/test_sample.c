#include "tests/unit/kernels/rig.h"

#include "kernels/philox.h"

static struct sample_row plain_row(float temperature)
{
    return (struct sample_row){
        .seed = 1, .temperature = temperature, .top_p = 1.0f, .repetition_penalty = 1.0f, .banned_id = -1};
}

/* Samples one row over V logits; history may be NULL. */
static int sample_with(struct rig *r, const float *logits, int V, const struct sample_row *row,
                       const int32_t *history)
{
    float copy[64];
    int32_t id = -2, none = 0;
    ASSERT(V <= 64);
    memcpy(copy, logits, (size_t)V * sizeof(float));
    struct tensor l = tensor_2d(r->device, DTYPE_F32, copy, 1, V),
                  ids = tensor_1d(r->device, DTYPE_I32, &id, 1);
    struct tensor h = tensor_2d(r->device, DTYPE_I32, history ? (void *)history : &none, 1,
                                history ? row->history_tokens : 1);
    kernel_sample(r->stream, &ids, &l, row, &h, NULL);
    return id;
}

/* ---- the generator */

static void check_philox(const uint32_t counter[4], uint32_t key0, uint32_t key1, const uint32_t expected[4])
{
    uint32_t c[4];
    memcpy(c, counter, sizeof(c));
    philox4x32_10(c, key0, key1);
    for (int i = 0; i < 4; i++)
        CHECK_INT(c[i], expected[i]);
}

/* The known answers that Random123 publishes (kat_vectors, philox4x32 10). */
static void test_philox_gives_the_known_answers(void)
{
    check_philox((uint32_t[]){0, 0, 0, 0}, 0, 0,
                 (uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    check_philox((uint32_t[]){~0u, ~0u, ~0u, ~0u}, ~0u, ~0u,
                 (uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    check_philox((uint32_t[]){0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
                 (uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    CHECK(philox_uniform(0, 0, 0) == (double)(0x6627e8d5e169c58dull >> 11) * 0x1p-53);
}

/* ---- greedy */

static void test_greedy_takes_the_highest_and_the_lowest_id_among_equals(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct sample_row row = plain_row(0.0f);
    CHECK_INT(sample_with(&r, (float[]){1, 5, 3, 5, 5}, 5, &row, NULL), 1);
    CHECK_INT(sample_with(&r, (float[]){-7, -7}, 2, &row, NULL), 0);
    CHECK_INT(sample_with(&r, (float[]){-INFINITY, -INFINITY, -1e38f}, 3, &row, NULL), 2);
    CHECK_INT(sample_with(&r, (float[]){0.0f, -0.0f}, 2, &row, NULL), 0);
    CHECK_INT(sample_with(&r, (float[]){-0.0f, 0.0f}, 2, &row, NULL), 0); /* equal, whatever the sign */
    row.banned_id = 1;
    CHECK_INT(sample_with(&r, (float[]){1, 5, 3, 5, 5}, 5, &row, NULL), 3);
    rig_close(&r);
}

static void test_rows_without_a_sound_answer_give_minus_one(void)
{
    struct rig r;
    rig_open(&r, 1);
    for (int i = 0; i < 2; i++) {
        struct sample_row row = plain_row(i ? 0.8f : 0.0f);
        CHECK_INT(sample_with(&r, (float[]){1, NAN, 3}, 3, &row, NULL), -1);
        CHECK_INT(sample_with(&r, (float[]){1, INFINITY, 3}, 3, &row, NULL), -1);
        CHECK_INT(sample_with(&r, (float[]){-INFINITY, -INFINITY}, 2, &row, NULL), -1);
        row.banned_id = 1; /* a ban hides no fault, and may leave nothing */
        CHECK_INT(sample_with(&r, (float[]){1, NAN, 3}, 3, &row, NULL), -1);
        CHECK_INT(sample_with(&r, (float[]){-INFINITY, 2}, 2, &row, NULL), -1);
    }
    rig_close(&r);
}

/* ---- the distribution */

/* Draws `draws` tokens (index 0, 1, ...) in batches; counts them in count[V]. */
static void draw_many(struct rig *r, const float *logits, int V, struct sample_row row, int draws, int *count)
{
    enum { BATCH = 64 };
    int blocks = r->blocks;
    struct tensor l = RIG_F32(r, BATCH, V), ids = RIG_I32(r, BATCH), history = RIG_I32(r, 1, 1);
    struct sample_row rows[BATCH];
    memset(count, 0, (size_t)V * sizeof(int));
    for (int done = 0; done < draws; done += BATCH) {
        for (int b = 0; b < BATCH; b++) {
            memcpy(floats(&l) + b * V, logits, (size_t)V * sizeof(float));
            rows[b] = row;
            rows[b].index = (uint32_t)(done + b);
        }
        kernel_sample(r->stream, &ids, &l, rows, &history, NULL);
        for (int b = 0; b < BATCH; b++) {
            ASSERT(ints(&ids)[b] >= 0 && ints(&ids)[b] < V);
            count[ints(&ids)[b]]++;
        }
    }
    ASSERT(r->blocks == blocks + 3);
}

/* Pearson's statistic over the ids with a probability. */
static double chi_square(const int *count, const double *p, int V, int draws)
{
    double sum = 0.0;
    for (int i = 0; i < V; i++) {
        if (p[i] > 0.0)
            sum += (count[i] - draws * p[i]) * (count[i] - draws * p[i]) / (draws * p[i]);
        else if (count[i] > 0)
            return INFINITY; /* what was cut off must never be drawn */
    }
    return sum;
}

enum { WORDS = 10, DRAWS = 64000 };
static const float LOGITS[WORDS] = {0.3f, 2.1f, -1.0f, 1.7f, 0.0f, 2.0f, -3.0f, 1.2f, 0.9f, -0.4f};

/* softmax(LOGITS / temperature) over the ids that keep[] names, and its statistic against drawn tokens. The
 * draws are a function of the seed: the statistic is a constant, far below the bound (p = 1e-4, 9 degrees).
 */
static void check_distribution(const struct sample_row *row, double temperature, const bool *keep)
{
    struct rig r;
    double p[WORDS], sum = 0.0;
    int count[WORDS];
    rig_open(&r, 2);
    for (int i = 0; i < WORDS; i++)
        sum += p[i] = keep[i] ? exp((double)LOGITS[i] / temperature) : 0.0;
    for (int i = 0; i < WORDS; i++)
        p[i] /= sum;
    draw_many(&r, LOGITS, WORDS, *row, DRAWS, count);
    CHECK(chi_square(count, p, WORDS, DRAWS) < 33.7);
    rig_close(&r);
}

static const bool ALL[WORDS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static void test_draws_follow_the_softmax(void)
{
    struct sample_row row = plain_row(1.0f);
    check_distribution(&row, 1.0, ALL);
    row = plain_row(0.6f);
    row.seed = 0xFEDCBA9876543210ull;
    check_distribution(&row, (double)0.6f, ALL);
    row = plain_row(2.5f);
    check_distribution(&row, 2.5, ALL);
}

/* In order of likelihood: 1 5 3 7 8 0 4 9 2 6. */
static void test_top_k_keeps_the_k_likeliest(void)
{
    const bool keep[WORDS] = {[1] = 1, [5] = 1, [3] = 1, [7] = 1};
    struct sample_row row = plain_row(1.0f);
    row.top_k = 4;
    check_distribution(&row, 1.0, keep);
    row.top_k = 1000; /* more than there are */
    check_distribution(&row, 1.0, ALL);
}

static void test_top_p_keeps_the_fewest_that_hold_p(void)
{
    const bool keep[WORDS] = {[1] = 1, [5] = 1, [3] = 1};
    double p[WORDS], sum = 0.0;
    for (int i = 0; i < WORDS; i++)
        sum += p[i] = exp((double)LOGITS[i]);
    struct sample_row row = plain_row(1.0f);
    row.top_p = (float)((p[1] + p[5] + 0.5 * p[3]) / sum);
    check_distribution(&row, 1.0, keep);
    const bool first[WORDS] = {[1] = 1};
    row.top_p = 1e-6f; /* at least one stays */
    check_distribution(&row, 1.0, first);
    /* after top-k the mass is that of the k: half of four is the first two */
    const bool two[WORDS] = {[1] = 1, [5] = 1};
    row.top_k = 4;
    row.top_p = (float)((p[1] + 0.5 * p[5]) / (p[1] + p[5] + p[3] + p[7]));
    check_distribution(&row, 1.0, two);
}

static void test_min_p_keeps_what_is_near_the_likeliest(void)
{
    const bool keep[WORDS] = {[1] = 1, [5] = 1, [3] = 1, [7] = 1};
    struct sample_row row = plain_row(1.0f);
    row.min_p = 0.35f; /* exp(1.2 - 2.1) = 0.41, exp(0.9 - 2.1) = 0.30 */
    check_distribution(&row, 1.0, keep);
    const bool first[WORDS] = {[1] = 1};
    row.min_p = 1.0f;
    check_distribution(&row, 1.0, first);
}

static void test_equal_logits_are_cut_by_id(void)
{
    struct rig r;
    float flat[50] = {0};
    int count[50];
    rig_open(&r, 1);
    struct sample_row row = plain_row(1.0f);
    row.top_k = 7;
    draw_many(&r, flat, 50, row, 6400, count);
    for (int i = 0; i < 50; i++)
        CHECK((count[i] > 0) == (i < 7));
    rig_close(&r);
}

static void test_extreme_temperatures_stay_sound(void)
{
    struct rig r;
    rig_open(&r, 1);
    for (uint32_t index = 0; index < 50; index++) {
        struct sample_row row = plain_row(1e-38f);
        row.index = index;
        CHECK_INT(sample_with(&r, LOGITS, WORDS, &row, NULL), 1);
        row.temperature = 1e38f;
        int id = sample_with(&r, LOGITS, WORDS, &row, NULL);
        CHECK(id >= 0 && id < WORDS);
        row.temperature = 1.0f;
        CHECK_INT(sample_with(&r, (float[]){-3e38f, 3e38f, -3e38f}, 3, &row, NULL), 1);
    }
    rig_close(&r);
}

/* A draw depends on (seed, index) and the row's own logits: not on its place, its neighbours or threads. */
static void test_a_draw_does_not_depend_on_the_batch(void)
{
    enum { B = 13, V = 1000 };
    int32_t first[B];
    for (int threads = 1; threads <= 3; threads++) {
        struct rig r;
        struct sample_row rows[B];
        rig_open(&r, threads);
        struct tensor all = RIG_F32(&r, B, V), l = RIG_F32(&r, B, V), ids = RIG_I32(&r, B),
                      one = RIG_I32(&r, 1);
        struct tensor history = RIG_I32(&r, 1, 1);
        rig_random(&r, &all);
        for (int b = 0; b < B; b++) {
            rows[b] = plain_row(b % 3 ? 0.7f : 1.3f);
            rows[b].seed = (uint64_t)b * 77;
            rows[b].index = (uint32_t)(b * b);
            rows[b].top_k = b % 2 ? 40 : 0;
            rows[b].top_p = b % 4 ? 0.9f : 1.0f;
            rows[b].min_p = b % 5 ? 0.0f : 0.05f;
        }
        memcpy(l.data, all.data, tensor_bytes(&all));
        kernel_sample(r.stream, &ids, &l, rows, &history, NULL);
        if (threads == 1)
            memcpy(first, ids.data, sizeof(first));
        CHECK(memcmp(first, ids.data, sizeof(first)) == 0);
        for (int b = B - 1; b >= 0; b--) {
            struct tensor alone = tensor_rows(&all, b, 1);
            kernel_sample(r.stream, &one, &alone, &rows[b], &history, NULL);
            CHECK_INT(ints(&one)[0], first[b]);
        }
        rig_close(&r);
    }
}

/* ---- penalties */

static void test_repetition_counts_prompt_and_generated_once(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct sample_row row = plain_row(0.0f);
    const int32_t history[5] = {2, 2, 0, 2, 3};
    row.history_tokens = 5;
    row.prompt_tokens = 3;
    row.repetition_penalty = 2.0f;
    /* 8 -> 4 once, not 8 -> 1 for three occurrences; -1 -> -2 */
    CHECK_INT(sample_with(&r, (float[]){-1, 3.5f, 8, 1}, 4, &row, history), 2);
    CHECK_INT(sample_with(&r, (float[]){-1, 4.5f, 8, 1}, 4, &row, history), 1);
    CHECK_INT(sample_with(&r, (float[]){-1, -1.5f, -9, -9}, 4, &row, history), 1);
    CHECK_INT(sample_with(&r, (float[]){-1, -2.5f, -9, -9}, 4, &row, history), 0);
    rig_close(&r);
}

static void test_presence_and_frequency_count_generated_tokens_alone(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct sample_row row = plain_row(0.0f);
    const int32_t history[6] = {1, 1, 1, 2, 2, 3}; /* generated: 2 2 3 */
    row.history_tokens = 6;
    row.prompt_tokens = 3;
    row.presence_penalty = 1.0f;
    CHECK_INT(sample_with(&r, (float[]){0, 5, 5.9f, 0}, 4, &row, history), 1); /* 2: 4.9 */
    CHECK_INT(sample_with(&r, (float[]){0, 5, 6.1f, 0}, 4, &row, history), 2); /* 2: 5.1 */
    row.presence_penalty = 0.0f;
    row.frequency_penalty = 1.0f;
    CHECK_INT(sample_with(&r, (float[]){0, 5, 6.9f, 5.9f}, 4, &row, history), 1); /* 2: 4.9, 3: 4.9 */
    CHECK_INT(sample_with(&r, (float[]){0, 5, 7.1f, 5.9f}, 4, &row, history), 2); /* 2: 5.1 */
    row.history_tokens = 3;                                                       /* nothing generated yet */
    CHECK_INT(sample_with(&r, (float[]){0, 5, 5.1f, 0}, 4, &row, history), 2);
    rig_close(&r);
}

int main(void)
{
    TEST(test_philox_gives_the_known_answers, "Philox4x32-10 gives the published known answers");
    TEST(test_greedy_takes_the_highest_and_the_lowest_id_among_equals,
         "greedy takes the highest logit and the lowest id among equals");
    TEST(test_rows_without_a_sound_answer_give_minus_one, "NaN, +infinity and rows of -infinity give -1");
    TEST(test_draws_follow_the_softmax, "draws follow the softmax at each temperature");
    TEST(test_top_k_keeps_the_k_likeliest, "top-k keeps the k likeliest");
    TEST(test_top_p_keeps_the_fewest_that_hold_p, "top-p keeps the fewest that hold p, of what top-k left");
    TEST(test_min_p_keeps_what_is_near_the_likeliest, "min-p keeps what is near the likeliest");
    TEST(test_equal_logits_are_cut_by_id, "equal logits are cut by id");
    TEST(test_extreme_temperatures_stay_sound, "extreme temperatures and logits stay sound");
    TEST(test_a_draw_does_not_depend_on_the_batch, "a draw does not depend on the batch or the threads");
    TEST(test_repetition_counts_prompt_and_generated_once,
         "repetition counts prompt and generated tokens once");
    TEST(test_presence_and_frequency_count_generated_tokens_alone,
         "presence and frequency count generated tokens alone");
    return test_result();
}
