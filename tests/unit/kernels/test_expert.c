#include "tests/unit/kernels/rig.h"

/* A row's experts by definition: repeated search for the highest, softmax in double. */
static int check_route(const float *logits, int E, int k, bool renormalise, const int32_t *ids,
                       const float *weights)
{
    bool used[64] = {false};
    double sum = 0, all = 0;
    int wrong = 0;
    for (int e = 0; e < E; e++)
        all += exp((double)logits[e]);
    for (int r = 0; r < k; r++) {
        int best = -1;
        for (int e = 0; e < E; e++)
            if (!used[e] && (best < 0 || logits[e] > logits[best]))
                best = e;
        used[best] = true;
        wrong += ids[r] != best;
        sum += exp((double)logits[best]);
    }
    for (int r = 0; r < k; r++) {
        double expected = exp((double)logits[ids[r]]) / (renormalise ? sum : all);
        wrong += !(fabs((double)weights[r] - expected) <= 1e-7);
    }
    return wrong;
}

static void test_route_picks_the_highest(void)
{
    static const int SHAPES[][2] = {{1, 1}, {2, 1}, {5, 2}, {8, 8}, {61, 7}};
    for (size_t i = 0; i < ARRAY_LEN(SHAPES); i++)
        for (int renormalise = 0; renormalise < 2; renormalise++) {
            struct rig r;
            const int E = SHAPES[i][0], k = SHAPES[i][1], T = 37;
            rig_open(&r, 3);
            struct tensor logits = RIG_F32(&r, T, E), ids = RIG_I32(&r, T, k), weights = RIG_F32(&r, T, k);
            rig_random(&r, &logits);
            for (int64_t j = 0; j < T * E; j++)
                floats(&logits)[j] *= 6.0f;
            for (int e = 0; e < E; e++) /* all equal: the lower ids */
                floats(&logits)[e] = 0.5f;
            kernel_route(r.stream, &ids, &weights, &logits, renormalise != 0);
            int wrong = 0;
            for (int t = 0; t < T; t++)
                wrong += check_route(floats(&logits) + t * E, E, k, renormalise != 0, ints(&ids) + t * k,
                                     floats(&weights) + t * k);
            CHECK_INT(wrong, 0);
            rig_close(&r);
        }
}

static void test_route_shows_nan(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct tensor logits = RIG_F32(&r, 3, 6), ids = RIG_I32(&r, 3, 2), weights = RIG_F32(&r, 3, 2);
    rig_random(&r, &logits);
    floats(&logits)[6 + 4] = NAN;
    kernel_route(r.stream, &ids, &weights, &logits, true);
    for (int i = 0; i < 6; i++) {
        CHECK(ints(&ids)[i] >= 0 && ints(&ids)[i] < 6);
        CHECK(!isnan(floats(&weights)[i]) == (i / 2 != 1));
    }
    rig_close(&r);
}

/* Random experts, k different ones for each row. */
static void pick(struct rig *r, struct tensor *ids, int E)
{
    int64_t T = ids->dim[0], k = ids->dim[1];
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < k; i++)
            ints(ids)[t * k + i] = (int32_t)(((int64_t)(test_random(&r->random) % 1000) * k + i) % E);
}

static void test_expert_matmul_follows_the_definition(void)
{
    enum { E = 5, K = 67, N = 19, USED = 2 };
    static const int ROWS[] = {1, 3, 50};
    for (size_t i = 0; i < ARRAY_LEN(ROWS); i++)
        for (int own = 0; own < 2; own++) {
            const int T = ROWS[i], x_rows = own ? T * USED : T;
            struct rig r;
            rig_open(&r, 2);
            struct weight w = rig_weight(&r, DTYPE_F32, E * N, K);
            struct tensor x = RIG_F32(&r, x_rows, K), out = RIG_F32(&r, T * USED, N);
            struct tensor ids = RIG_I32(&r, T, USED);
            rig_random(&r, &x);
            pick(&r, &ids, E);
            kernel_expert_matmul(r.stream, &out, &x, &w, &ids);
            int wrong = 0;
            for (int slot = 0; slot < T * USED; slot++)
                for (int n = 0; n < N; n++) {
                    const float *row = (const float *)w.packed + (ints(&ids)[slot] * N + n) * K;
                    const float *from = floats(&x) + (own ? slot : slot / USED) * K;
                    double sum = 0;
                    for (int c = 0; c < K; c++)
                        sum += (double)from[c] * (double)row[c];
                    wrong += !(fabs((double)floats(&out)[slot * N + n] - sum) <= 1e-5);
                }
            CHECK_INT(wrong, 0);
            weight_release(&w);
            rig_close(&r);
        }
}

/* One row alone, and the same row among others, by any number of threads: the same bits. */
static void test_other_rows_do_not_show(void)
{
    enum { E = 4, K = 96, N = 33, USED = 3, T = 29 };
    static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_F16, DTYPE_Q8_0};
    for (size_t type = 0; type < ARRAY_LEN(TYPES); type++)
        for (int threads = 1; threads <= 3; threads++) {
            struct rig r;
            rig_open(&r, threads);
            struct weight w = rig_weight(&r, TYPES[type], E * N, K);
            struct tensor x = RIG_F32(&r, T, K), out = RIG_F32(&r, T * USED, N), ids = RIG_I32(&r, T, USED);
            rig_random(&r, &x);
            pick(&r, &ids, E);
            kernel_expert_matmul(r.stream, &out, &x, &w, &ids);
            for (int t = 0; t < T; t++) {
                struct tensor row = tensor_rows(&x, t, 1), chosen = tensor_rows(&ids, t, 1);
                struct tensor among = tensor_rows(&out, t * USED, USED), alone = RIG_F32(&r, USED, N);
                kernel_expert_matmul(r.stream, &alone, &row, &w, &chosen);
                CHECK(same_bits(&alone, &among));
            }
            weight_release(&w);
            rig_close(&r);
        }
}

static void test_expert_sum_adds_in_rank_order(void)
{
    enum { T = 7, USED = 4, C = 131 };
    struct rig r;
    rig_open(&r, 2);
    struct tensor parts = RIG_F32(&r, T * USED, C), weights = RIG_F32(&r, T, USED), out = RIG_F32(&r, T, C);
    rig_random(&r, &parts);
    rig_random(&r, &weights);
    kernel_expert_sum(r.stream, &out, &parts, &weights);
    int wrong = 0, other_order = 0;
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) {
            volatile float sum = floats(&weights)[t * USED] * floats(&parts)[t * USED * C + c], reverse = 0;
            for (int i = 1; i < USED; i++) {
                volatile float part = floats(&weights)[t * USED + i] * floats(&parts)[(t * USED + i) * C + c];
                sum += part;
            }
            for (int i = USED - 1; i >= 0; i--) {
                volatile float part = floats(&weights)[t * USED + i] * floats(&parts)[(t * USED + i) * C + c];
                reverse += part;
            }
            wrong += floats(&out)[t * C + c] != sum;
            other_order += reverse != sum;
        }
    CHECK_INT(wrong, 0);
    CHECK(other_order > 0);
    rig_close(&r);
}

int main(void)
{
    TEST(test_route_picks_the_highest, "route picks the highest logits, lower ids first, and weighs them");
    TEST(test_route_shows_nan, "route gives a row with NaN NaN weights, and valid ids");
    TEST(test_expert_matmul_follows_the_definition, "expert_matmul follows the definition");
    TEST(test_other_rows_do_not_show, "other rows and threads do not show in the bits of expert_matmul");
    TEST(test_expert_sum_adds_in_rank_order, "expert_sum adds in rank order, to the bit");
    return test_result();
}
