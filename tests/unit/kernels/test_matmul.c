#include "tests/unit/kernels/rig.h"

static const enum dtype WEIGHT_TYPES[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0,
                                          DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_Q2_K, DTYPE_Q3_K,
                                          DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};

/* `wanted`, made a length that rows of the type can have. */
static int64_t row_of(enum dtype type, int64_t wanted)
{
    return (int64_t)round_up_u64((uint64_t)wanted, dtype_info(type)->block_elements);
}

static void weight_row(const struct weight *w, int64_t n, float *out)
{
    uint64_t bytes = 0;
    dtype_row_bytes(w->stored.dtype, (uint64_t)w->stored.dim[1], &bytes);
    dtype_to_f32(w->stored.dtype, (char *)w->packed + (uint64_t)n * bytes, out, (uint64_t)w->stored.dim[1]);
}

/* Against double arithmetic; the bound is that of float sums: K * 2^-24 of the sum of magnitudes. */
static void check_matmul(struct rig *r, enum dtype type, int64_t T, int64_t N, int64_t K, bool with_bias)
{
    struct weight w = rig_weight(r, type, N, K);
    struct tensor x = RIG_F32(r, T, K), bias = RIG_F32(r, N), out = RIG_F32(r, T, N);
    rig_random(r, &x);
    rig_random(r, &bias);
    kernel_matmul(r->stream, &out, &x, &w, with_bias ? &bias : NULL);
    float *row = malloc((size_t)K * sizeof(float));
    int wrong = 0;
    for (int64_t n = 0; n < N; n++) {
        weight_row(&w, n, row);
        for (int64_t t = 0; t < T; t++) {
            double sum = with_bias ? floats(&bias)[n] : 0.0, size = fabs(sum);
            for (int64_t k = 0; k < K; k++) {
                double term = (double)floats(&x)[t * K + k] * (double)row[k];
                sum += term;
                size += fabs(term);
            }
            wrong += !(fabs(floats(&out)[t * N + n] - sum) <= size * ((double)K / 16 + 8) * 0x1p-24);
        }
    }
    CHECK_INT(wrong, 0);
    free(row);
    weight_release(&w);
}

static void test_matmul_follows_the_definition(void)
{
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        struct rig r;
        rig_open(&r, 2);
        enum dtype type = WEIGHT_TYPES[i];
        for (int64_t T = 1; T <= 9; T++)
            check_matmul(&r, type, T, 37, row_of(type, 21), T % 2);
        check_matmul(&r, type, 1, 1, row_of(type, 1), false);
        check_matmul(&r, type, 3, 130, row_of(type, 1031), true);
        check_matmul(&r, type, 21, 70, row_of(type, 515), true);
        rig_close(&r);
    }
}

/* The same rows alone, in twos, threes, sevens, sixteens and all together, on 1, 2 and 3 threads: the same
 * bits. */
static void test_matmul_of_a_row_does_not_depend_on_the_batch(void)
{
    static const int64_t GROUPS[] = {1, 2, 3, 7, 16, 64};
    const int64_t T = 64, N = 83;
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        struct tensor first;
        struct rig keeper;
        rig_open(&keeper, 1);
        first = RIG_F32(&keeper, T, N);
        for (int threads = 1; threads <= 3; threads++) {
            struct rig r;
            rig_open(&r, threads);
            const int64_t K = row_of(WEIGHT_TYPES[i], 1056);
            struct weight w = rig_weight(&r, WEIGHT_TYPES[i], N, K);
            struct tensor x = RIG_F32(&r, T, K), bias = RIG_F32(&r, N);
            rig_random(&r, &x);
            rig_random(&r, &bias);
            for (size_t g = 0; g < ARRAY_LEN(GROUPS); g++) {
                struct tensor out = RIG_F32(&r, T, N);
                for (int64_t t = 0; t < T; t += GROUPS[g]) {
                    int64_t rows = T - t < GROUPS[g] ? T - t : GROUPS[g];
                    struct tensor xs = tensor_rows(&x, t, rows), outs = tensor_rows(&out, t, rows);
                    kernel_matmul(r.stream, &outs, &xs, &w, &bias);
                }
                if (threads == 1 && g == 0)
                    memcpy(first.data, out.data, tensor_bytes(&out));
                CHECK(same_bits(&first, &out));
            }
            weight_release(&w);
            rig_close(&r);
        }
        rig_close(&keeper);
    }
}

/* Written once from the plain loop; every machine, compiler and vector width must reproduce it. The loops
 * below are the definition of the order (kernels/cpu/lanes.h), one scalar at a time. */
static float dot_by_definition(const float *x, const float *w, int64_t K)
{
    float lane[16] = {0};
    for (int64_t k = 0; k < K; k++) {
        volatile float product = x[k] * w[k]; /* volatile: nothing is fused or reordered here */
        lane[k % 16] += product;
    }
    for (int width = 8; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lane[j] += lane[j + width];
    return lane[0];
}

static void test_matmul_has_the_bits_of_the_written_order(void)
{
    struct rig r;
    rig_open(&r, 2);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        const int64_t T = 13, N = 41, K = row_of(WEIGHT_TYPES[i], 1637);
        struct weight w = rig_weight(&r, WEIGHT_TYPES[i], N, K);
        struct tensor x = RIG_F32(&r, T, K), out = RIG_F32(&r, T, N), one = RIG_F32(&r, 1, N);
        rig_random(&r, &x);
        kernel_matmul(r.stream, &out, &x, &w, NULL);
        struct tensor x0 = tensor_rows(&x, 0, 1);
        kernel_matmul(r.stream, &one, &x0, &w, NULL);
        float *row = malloc((size_t)K * sizeof(float));
        int wrong = 0;
        for (int64_t n = 0; n < N; n++) {
            weight_row(&w, n, row);
            for (int64_t t = 0; t < T; t++)
                wrong += floats(&out)[t * N + n] != dot_by_definition(floats(&x) + t * K, row, K);
            wrong += floats(&one)[n] != dot_by_definition(floats(&x), row, K);
        }
        CHECK_INT(wrong, 0);
        free(row);
        weight_release(&w);
    }
    rig_close(&r);
}

static void test_matmul_passes_nan_on(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct weight w = rig_weight(&r, DTYPE_Q8_0, 20, 64);
    struct tensor x = RIG_F32(&r, 5, 64), out = RIG_F32(&r, 5, 20);
    rig_random(&r, &x);
    floats(&x)[3 * 64 + 17] = NAN;
    kernel_matmul(r.stream, &out, &x, &w, NULL);
    for (int64_t t = 0; t < 5; t++)
        for (int64_t n = 0; n < 20; n++)
            CHECK(!isnan(floats(&out)[t * 20 + n]) == (t != 3));
    weight_release(&w);
    rig_close(&r);
}

static void test_transposed_product_follows_the_definition(void)
{
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        struct rig r;
        rig_open(&r, 2);
        const int64_t N = 75, K = row_of(WEIGHT_TYPES[i], 531), T = 70;
        struct weight w = rig_weight(&r, WEIGHT_TYPES[i], N, K);
        struct tensor dy = RIG_F32(&r, T, N), dx = RIG_F32(&r, T, K);
        rig_random(&r, &dy);
        kernel_matmul_transposed(r.stream, &dx, &dy, &w);
        float *rows = malloc((size_t)(N * K) * sizeof(float));
        for (int64_t n = 0; n < N; n++)
            weight_row(&w, n, rows + n * K);
        int wrong = 0;
        for (int64_t t = 0; t < T; t++)
            for (int64_t k = 0; k < K; k++) {
                double sum = 0.0;
                float exact = 0.0f; /* n ascending, in float: the written order */
                for (int64_t n = 0; n < N; n++) {
                    volatile float product = floats(&dy)[t * N + n] * rows[n * K + k];
                    exact += product;
                    sum += (double)floats(&dy)[t * N + n] * (double)rows[n * K + k];
                }
                wrong += floats(&dx)[t * K + k] != exact || !(fabs(exact - sum) <= 1e-4);
            }
        CHECK_INT(wrong, 0);
        struct tensor dx1 = RIG_F32(&r, 1, K), dy1 = tensor_rows(&dy, 66, 1), same = tensor_rows(&dx, 66, 1);
        kernel_matmul_transposed(r.stream, &dx1, &dy1, &w);
        CHECK(same_bits(&dx1, &same));
        free(rows);
        weight_release(&w);
        rig_close(&r);
    }
}

/* <dy, x w^T> = <dy w, x> */
static void test_transposed_product_is_the_adjoint(void)
{
    struct rig r;
    rig_open(&r, 2);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        const int64_t T = 6, N = 95, K = row_of(WEIGHT_TYPES[i], 320);
        struct weight w = rig_weight(&r, WEIGHT_TYPES[i], N, K);
        struct tensor x = RIG_F32(&r, T, K), y = RIG_F32(&r, T, N), dy = RIG_F32(&r, T, N),
                      dx = RIG_F32(&r, T, K);
        rig_random(&r, &x);
        rig_random(&r, &dy);
        kernel_matmul(r.stream, &y, &x, &w, NULL);
        kernel_matmul_transposed(r.stream, &dx, &dy, &w);
        double left = 0.0, right = 0.0;
        for (int64_t j = 0; j < T * N; j++)
            left += (double)floats(&dy)[j] * (double)floats(&y)[j];
        for (int64_t j = 0; j < T * K; j++)
            right += (double)floats(&dx)[j] * (double)floats(&x)[j];
        CHECK(fabs(left) > 1.0);
        CHECK_NEAR(right, left, 1e-3);
        weight_release(&w);
    }
    rig_close(&r);
}

static void test_packing_keeps_mapped_bytes_and_copies_misaligned_ones(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct err err;
    struct weight w;
    uint8_t *bytes = rig_memory(&r, 2 * 34 + 8);
    memset(bytes, 1, 2 * 34 + 8);
    struct tensor host = tensor_2d(r.device, DTYPE_Q8_0, bytes, 2, 32);
    CHECK_INT(weight_pack(&w, r.device, &host, &err), 0);
    CHECK(w.packed == bytes && !w.owned);
    weight_release(&w);
    CHECK(w.packed == NULL);
    host = tensor_2d(r.device, DTYPE_F32, bytes + 1, 2, 4);
    CHECK_INT(weight_pack(&w, r.device, &host, &err), 0);
    CHECK(w.packed != bytes + 1 && w.owned && memcmp(w.packed, bytes + 1, 32) == 0);
    weight_release(&w);
    rig_close(&r);
}

int main(void)
{
    TEST(test_matmul_follows_the_definition,
         "matmul follows the definition for every weight type and odd sizes");
    TEST(test_matmul_of_a_row_does_not_depend_on_the_batch,
         "matmul gives a row the same bits in every batch and on any number of threads");
    TEST(test_matmul_has_the_bits_of_the_written_order,
         "matmul has the bits of the written order of additions");
    TEST(test_matmul_passes_nan_on, "matmul passes NaN on to its row and to no other");
    TEST(test_transposed_product_follows_the_definition,
         "the transposed product follows the definition, to the bit of its order");
    TEST(test_transposed_product_is_the_adjoint, "the transposed product is the adjoint of matmul");
    TEST(test_packing_keeps_mapped_bytes_and_copies_misaligned_ones,
         "packing keeps mapped bytes and copies misaligned ones");
    return test_result();
}
