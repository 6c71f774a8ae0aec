/* The fast kernel sets against exact arithmetic and against themselves: other batches, threads and cuts must
 * not show. */
#include "kernels/cpu/fast.h"
#include "kernels/cpu/panel.h"
#include "tests/test.h"

#define GUARD 16

static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1,
                                   DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K,
                                   DTYPE_F32,  DTYPE_F16,  DTYPE_BF16};

/* `wanted`, made a length that rows of the type can have. */
static int64_t row_of(enum dtype type, int64_t wanted)
{
    return (int64_t)round_up_u64((uint64_t)wanted, dtype_info(type)->block_elements);
}

struct bed {
    struct device *device;
    struct stream *stream;
};

static bool open_bed(struct bed *b, const char *kernels, int threads)
{
    struct err err;
    *b = (struct bed){0};
    if (device_open(&b->device, "cpu", &(struct device_options){.threads = threads, .kernels = kernels},
                    &err))
        return false;
    return stream_open(&b->stream, b->device, &err) == 0;
}

static void close_bed(struct bed *b)
{
    stream_close(&b->stream);
    device_close(&b->device);
}

static const char *const SETS[] = {"avx2", "avx512vnni"};
static const char *set; /* that the tests run with */

static bool is_here(const char *kernels)
{
    struct bed b;
    bool here = open_bed(&b, kernels, 1);
    close_bed(&b);
    return here;
}

#define NEED_FAST()                                    \
    do {                                               \
        if (!is_here(set))                             \
            SKIP("this processor cannot run the set"); \
    } while (0)

/* A matrix of random blocks as a file stores it. */
static struct tensor random_rows(enum dtype type, int64_t n, int64_t k, unsigned long long seed)
{
    uint64_t bytes = 0;
    float *values = malloc((size_t)(n * k) * sizeof(float));
    for (int64_t i = 0; i < n * k; i++)
        values[i] = test_uniform(&seed);
    dtype_row_bytes(type, (uint64_t)k, &bytes);
    char *rows = malloc(bytes * (size_t)n);
    for (int64_t r = 0; r < n; r++)
        dtype_from_f32(type, values + r * k, rows + (uint64_t)r * bytes, (uint64_t)k);
    free(values);
    return tensor_2d(NULL, type, rows, n, k);
}

static float *random_x(int64_t t, int64_t k, unsigned long long seed)
{
    float *x = malloc((size_t)(t * k) * sizeof(float));
    for (int64_t i = 0; i < t * k; i++)
        x[i] = test_uniform(&seed) * (float)(1 + i / k); /* rows of different sizes */
    return x;
}

/* out = x . w^T (+ bias) on a device of this set; out has guards of 1e30 on both sides. */
static void multiply(const char *kernels, int threads, const struct tensor *host, float *x, int64_t t,
                     float *bias, float *out)
{
    struct bed b;
    struct weight w;
    struct err err;
    int64_t n = host->dim[0], k = host->dim[1];
    ASSERT(open_bed(&b, kernels, threads));
    if (weight_pack(&w, b.device, host, &err))
        die("%s", err.message);
    struct tensor in = tensor_2d(b.device, DTYPE_F32, x, t, k),
                  to = tensor_2d(b.device, DTYPE_F32, out, t, n);
    struct tensor add = tensor_1d(b.device, DTYPE_F32, bias, n);
    kernel_matmul(b.stream, &to, &in, &w, bias ? &add : NULL);
    weight_release(&w);
    close_bed(&b);
}

static void test_panels_hold_every_value(void)
{
    int64_t shapes[][2] = {{1, 32}, {16, 64}, {37, 96}, {100, 512}};
    for (size_t s = 0; s < ARRAY_LEN(shapes); s++)
        for (size_t i = 0; i < ARRAY_LEN(types); i++) {
            int64_t n = shapes[s][0], k = row_of(types[i], shapes[s][1]);
            struct tensor host = random_rows(types[i], n, k, 1 + s);
            struct panel_layout l = panel_layout(types[i], n, k);
            void *packed = malloc((size_t)l.panels * l.panel_bytes);
            panel_pack(&host, packed, 0, l.panels);
            struct weight w = {.stored = host, .packed = packed, .layout = 1};
            uint64_t row_bytes = 0;
            dtype_row_bytes(types[i], (uint64_t)k, &row_bytes);
            float want[512], got[512];
            CHECK((size_t)l.panels * l.panel_bytes <
                  row_bytes * (uint64_t)(l.panels * PANEL_ROWS) + 64 * (size_t)l.panels);
            for (int64_t r = 0; r < n; r++) {
                dtype_to_f32(types[i], (char *)host.data + (uint64_t)r * row_bytes, want, (uint64_t)k);
                panel_row_floats(&w, r, 0, k, got);
                CHECK(memcmp(want, got, (size_t)k * sizeof(float)) == 0);
            }
            free(packed);
            free(host.data);
        }
}

/* What the kernel may differ by from exact arithmetic: x is rounded to 8 bits per block, by at most half a
 * step each. */
static double bound(const struct tensor *host, const float *x, const float *row, int64_t k)
{
    double sum = 0;
    if (panel_is_float(host->dtype)) { /* fp32 throughout: the rounding of k additions */
        for (int64_t i = 0; i < k; i++)
            sum += fabs((double)x[i] * (double)row[i]);
        return sum * (double)(k + 4) * 6e-8 + 1e-7;
    }
    for (int64_t b = 0; b < k; b += PANEL_BLOCK) {
        double most = 0, weights = 0;
        for (int64_t i = b; i < b + PANEL_BLOCK; i++) {
            most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
            weights += fabs((double)row[i]);
        }
        sum += most / 127 * 0.501 * weights;
    }
    return sum + 1e-4;
}

static void test_matmul_is_exact_but_for_the_rounding_of_x(void)
{
    NEED_FAST();
    int64_t shapes[][3] = {{1, 1, 32}, {1, 16, 64}, {3, 17, 96}, {12, 33, 256}, {13, 48, 32}, {29, 100, 320}};
    for (size_t s = 0; s < ARRAY_LEN(shapes); s++)
        for (size_t i = 0; i < ARRAY_LEN(types); i++) {
            int64_t t = shapes[s][0], n = shapes[s][1], k = row_of(types[i], shapes[s][2]);
            struct tensor host = random_rows(types[i], n, k, 7 + s);
            float *x = random_x(t, k, 3), *bias = random_x(1, n, 5), row[512];
            float *out = malloc((size_t)(t * n + 2 * GUARD) * sizeof(float));
            for (int64_t j = 0; j < t * n + 2 * GUARD; j++)
                out[j] = 1e30f;
            multiply(set, 2, &host, x, t, bias, out + GUARD);
            for (int j = 0; j < GUARD; j++)
                CHECK(out[j] == 1e30f && out[GUARD + t * n + j] == 1e30f);
            uint64_t row_bytes = 0;
            dtype_row_bytes(types[i], (uint64_t)k, &row_bytes);
            for (int64_t r = 0; r < n; r++) {
                dtype_to_f32(types[i], (char *)host.data + (uint64_t)r * row_bytes, row, (uint64_t)k);
                for (int64_t j = 0; j < t; j++) {
                    double want = bias[r];
                    for (int64_t c = 0; c < k; c++)
                        want += (double)row[c] * (double)x[j * k + c];
                    CHECK_NEAR(out[GUARD + j * n + r], want, bound(&host, x + j * k, row, k));
                }
            }
            free(host.data);
            free(x);
            free(bias);
            free(out);
        }
}

/* The value that the integer kernels put in place of x[0..32): rounded to 8 bits, a scale for each block. */
static void rounded_block(const float *x, double *out)
{
    float most = 0;
    for (int i = 0; i < PANEL_BLOCK; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float inverse = most > 0 ? 127.0f / most : 0, scale = most / 127.0f;
    for (int i = 0; i < PANEL_BLOCK; i++)
        out[i] = (double)scale * (double)rintf(x[i] * inverse);
}

/* out against double arithmetic on the same blocks and the same rounded x. What may differ is the rounding of
 * two additions for each scale; a type with a minimum adds and takes off up to twice the greatest weight. */
static void check_rounding(const struct tensor *host, const float *x, int64_t t, const float *out)
{
    int64_t n = host->dim[0], k = host->dim[1];
    uint64_t row_bytes = 0;
    float *row = malloc((size_t)k * sizeof(float));
    double *rounded = malloc((size_t)(t * k) * sizeof(double));
    int wrong = 0;
    dtype_row_bytes(host->dtype, (uint64_t)k, &row_bytes);
    for (int64_t i = 0; i < t * k; i += PANEL_BLOCK)
        rounded_block(x + i, rounded + i);
    for (int64_t r = 0; r < n; r++) {
        dtype_to_f32(host->dtype, (char *)host->data + (uint64_t)r * row_bytes, row, (uint64_t)k);
        for (int64_t j = 0; j < t; j++) {
            double want = 0, size = 0, most = 0;
            for (int64_t c = 0; c < k; c++) {
                most = fabs((double)row[c]) > most ? fabs((double)row[c]) : most;
                want += (double)row[c] * rounded[j * k + c];
                size += fabs(rounded[j * k + c]);
            }
            wrong +=
                !(fabs((double)out[j * n + r] - want) <= 3 * most * size * ((double)k / 16 + 4) * 0x1p-24);
        }
    }
    CHECK_INT(wrong, 0);
    free(rounded);
    free(row);
}

static void test_only_the_rounding_of_sums_is_left(void)
{
    NEED_FAST();
    int64_t widths[] = {32, 96, 288, 1056};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int64_t t = 1; t <= 40 && !panel_is_float(types[i]); t++) {
            int64_t n = 5 + 13 * (t % 5), k = row_of(types[i], widths[t % 4]);
            struct tensor host = random_rows(types[i], n, k, 31 + (unsigned)t);
            float *x = random_x(t, k, 37), *out = malloc((size_t)(t * n) * sizeof(float));
            multiply(set, 2, &host, x, t, NULL, out);
            check_rounding(&host, x, t, out);
            free(host.data);
            free(x);
            free(out);
        }
}

static void test_batches_and_threads_do_not_show(void)
{
    NEED_FAST();
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        int64_t n = 83, k = row_of(types[i], 288);
        struct tensor host = random_rows(types[i], n, k, 11);
        float *x = random_x(40, k, 13), alone[83], together[40 * 83];
        for (int threads = 1; threads <= 3; threads++)
            for (int64_t t = 1; t <= 40; t += threads == 1 ? 1 : 13) {
                multiply(set, threads, &host, x, t, NULL, together);
                for (int64_t j = 0; j < t; j += 7) {
                    multiply(set, 1, &host, x + j * k, 1, NULL, alone);
                    CHECK(memcmp(alone, together + j * n, sizeof(alone)) == 0);
                }
            }
        free(host.data);
        free(x);
    }
}

static void test_nan_reaches_its_row_alone(void)
{
    NEED_FAST();
    float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int which = 0; which < 3; which++) {
            int64_t k = row_of(types[i], 64);
            struct tensor host = random_rows(types[i], 20, k, 17);
            float *x = random_x(3, k, 19), out[60];
            x[k + 40] = bad[which];
            multiply(set, 1, &host, x, 3, NULL, out);
            for (int j = 0; j < 20; j++)
                CHECK(isfinite(out[j]) && !isfinite(out[20 + j]) && isfinite(out[40 + j]));
            free(host.data);
            free(x);
        }
}

static void test_tiny_and_zero_rows_are_quiet(void)
{
    NEED_FAST();
    struct tensor host = random_rows(DTYPE_Q8_0, 16, 32, 23);
    float x[64] = {0}, out[32];
    for (int i = 32; i < 64; i++)
        x[i] = 1e-42f; /* a denormal: its inverse overflows */
    multiply(set, 1, &host, x, 2, NULL, out);
    for (int j = 0; j < 32; j++)
        CHECK_NEAR(out[j], 0, 1e-35);
    free(host.data);
}

/* Embeddings, the transposed product and experts read rows back out of the panels. */
static void test_rows_come_back_out_of_panels(void)
{
    NEED_FAST();
    struct bed b;
    struct weight w;
    struct err err;
    struct tensor host = random_rows(DTYPE_Q8_0, 40, 64, 29);
    ASSERT(open_bed(&b, set, 1) && weight_pack(&w, b.device, &host, &err) == 0);
    int32_t ids[3] = {39, 0, 17};
    float got[3 * 64], want[64], dy[40] = {0}, dx[64];
    struct tensor id = tensor_1d(b.device, DTYPE_I32, ids, 3),
                  to = tensor_2d(b.device, DTYPE_F32, got, 3, 64);
    kernel_embed(b.stream, &to, &w, &id);
    for (int i = 0; i < 3; i++) {
        dtype_to_f32(DTYPE_Q8_0, (char *)host.data + ids[i] * 2 * (int)sizeof(struct block_q8_0), want, 64);
        CHECK(memcmp(want, got + 64 * i, sizeof(want)) == 0);
    }
    dy[17] = 1;
    struct tensor dyt = tensor_2d(b.device, DTYPE_F32, dy, 1, 40),
                  dxt = tensor_2d(b.device, DTYPE_F32, dx, 1, 64);
    kernel_matmul_transposed(b.stream, &dxt, &dyt, &w);
    CHECK(memcmp(want, dx, sizeof(want)) == 0);

    /* two experts of 20 rows: the second begins inside a panel */
    int32_t chosen[2] = {1, 0};
    float x[64], out[40], whole[40];
    for (int i = 0; i < 64; i++)
        x[i] = (float)(i % 7) - 3;
    struct tensor xt = tensor_2d(b.device, DTYPE_F32, x, 1, 64),
                  ot = tensor_2d(b.device, DTYPE_F32, out, 2, 20);
    struct tensor ct = tensor_2d(b.device, DTYPE_I32, chosen, 1, 2);
    kernel_expert_matmul(b.stream, &ot, &xt, &w, &ct);
    multiply("reference", 1, &host, x, 1, NULL, whole);
    for (int i = 0; i < 20; i++) {
        CHECK_NEAR(out[i], whole[20 + i], 0.2);
        CHECK_NEAR(out[20 + i], whole[i], 0.2);
    }
    weight_release(&w);
    close_bed(&b);
    free(host.data);
}

/* dx = dy . w on a device of this set. */
static void multiply_transposed(const char *kernels, int threads, const struct tensor *host, float *dy,
                                int64_t t, float *dx)
{
    struct bed b;
    struct weight w;
    struct err err;
    ASSERT(open_bed(&b, kernels, threads));
    if (weight_pack(&w, b.device, host, &err))
        die("%s", err.message);
    struct tensor from = tensor_2d(b.device, DTYPE_F32, dy, t, host->dim[0]),
                  to = tensor_2d(b.device, DTYPE_F32, dx, t, host->dim[1]);
    kernel_matmul_transposed(b.stream, &to, &from, &w);
    weight_release(&w);
    close_bed(&b);
}

static void test_the_transposed_product_follows_the_definition(void)
{
    NEED_FAST();
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        int64_t t = 7, n = 45, k = row_of(types[i], 288);
        struct tensor host = random_rows(types[i], n, k, 41);
        float *dy = random_x(t, n, 43), *row = malloc((size_t)k * sizeof(float));
        float *dx = malloc((size_t)(t * k) * sizeof(float));
        double *want = calloc((size_t)(t * k), sizeof(double)),
               *size = calloc((size_t)(t * k), sizeof(double));
        uint64_t row_bytes = 0;
        int wrong = 0;
        dtype_row_bytes(types[i], (uint64_t)k, &row_bytes);
        for (int64_t r = 0; r < n; r++) {
            dtype_to_f32(types[i], (char *)host.data + (uint64_t)r * row_bytes, row, (uint64_t)k);
            for (int64_t c = 0; c < t * k; c++) {
                double term = (double)dy[c / k * n + r] * (double)row[c % k];
                want[c] += term;
                size[c] += fabs(term);
            }
        }
        multiply_transposed(set, 2, &host, dy, t, dx);
        for (int64_t c = 0; c < t * k; c++)
            wrong += !(fabs((double)dx[c] - want[c]) <= size[c] * (double)(n + 1) * 0x1p-24);
        CHECK_INT(wrong, 0);
        free(host.data);
        free(dy);
        free(row);
        free(dx);
        free(want);
        free(size);
    }
}

static void test_the_transposed_product_has_the_same_bits_everywhere(void)
{
    NEED_FAST();
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        int64_t t = 70, n = 37, k = row_of(types[i], 544);
        size_t bytes = (size_t)(t * k) * sizeof(float);
        struct tensor host = random_rows(types[i], n, k, 47);
        float *dy = random_x(t, n, 53), *dx = malloc(bytes), *other = malloc(bytes);
        multiply_transposed("reference", 1, &host, dy, t, dx);
        for (int threads = 1; threads <= 3; threads++) {
            multiply_transposed(set, threads, &host, dy, t, other);
            CHECK(memcmp(dx, other, bytes) == 0);
            multiply_transposed(set, threads, &host, dy + 3 * n, 2, other);
            CHECK(memcmp(dx + 3 * k, other, (size_t)(2 * k) * sizeof(float)) == 0);
        }
        free(host.data);
        free(dy);
        free(dx);
        free(other);
    }
}

/* Experts whose rows begin inside a panel, many rows of x: each output has the bits that its expert's rows
 * alone give. */
static void test_experts_have_the_bits_of_their_own_matrix(void)
{
    NEED_FAST();
    enum { E = 3, N = 20, T = 9, EACH = 2 };
    int32_t chosen[T * EACH];
    for (int i = 0; i < T * EACH; i++)
        chosen[i] = (i * 7 / 2 + i % 2) % E;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        struct bed b;
        struct weight w;
        struct err err;
        int64_t k = row_of(types[i], 64);
        struct tensor host = random_rows(types[i], E * N, k, 59);
        float *x = random_x(T, k, 61), out[T * EACH * N], want[N];
        uint64_t row_bytes = 0;
        dtype_row_bytes(types[i], (uint64_t)k, &row_bytes);
        ASSERT(open_bed(&b, set, 2) && weight_pack(&w, b.device, &host, &err) == 0);
        struct tensor xt = tensor_2d(b.device, DTYPE_F32, x, T, k),
                      ot = tensor_2d(b.device, DTYPE_F32, out, T * EACH, N);
        struct tensor ct = tensor_2d(b.device, DTYPE_I32, chosen, T, EACH);
        kernel_expert_matmul(b.stream, &ot, &xt, &w, &ct);
        for (int j = 0; j < T * EACH; j++) {
            struct tensor own =
                tensor_2d(NULL, types[i], (char *)host.data + (uint64_t)chosen[j] * N * row_bytes, N, k);
            multiply(set, 1, &own, x + j / EACH * k, 1, NULL, want);
            CHECK(memcmp(want, out + j * N, sizeof(want)) == 0);
        }
        weight_release(&w);
        close_bed(&b);
        free(host.data);
        free(x);
    }
}

/* Integer sums are exact and every set makes the sums of floats in one order. */
static void test_sets_have_the_same_bits(void)
{
    set = "avx2";
    NEED_FAST();
    set = "avx512vnni";
    NEED_FAST();
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int64_t t = 1; t <= 14; t++) {
            int64_t n = 53, k = row_of(types[i], 1120);
            struct tensor host = random_rows(types[i], n, k, 71);
            float *x = random_x(t, k, 73), one[14 * 53], other[14 * 53];
            x[40] = x[k - 1] = -90;
            multiply("avx2", 1, &host, x, t, NULL, one);
            multiply("avx512vnni", 2, &host, x, t, NULL, other);
            CHECK(memcmp(one, other, (size_t)(t * n) * sizeof(float)) == 0);
            free(host.data);
            free(x);
        }
}

/* Codes and numbers of x as large as they can be, and of one sign: no sum of 16 bits may saturate. */
static void test_extreme_codes_do_not_saturate(void)
{
    NEED_FAST();
    enum { N = 16, K = 256 };
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int fill = 0; fill < 2 && !panel_is_float(types[i]); fill++) {
            uint64_t row_bytes = 0;
            dtype_row_bytes(types[i], K, &row_bytes);
            struct tensor host = random_rows(types[i], N, K, 79);
            size_t block = dtype_info(types[i])->block_bytes;
            size_t code = types[i] == DTYPE_Q8_0 || types[i] == DTYPE_Q4_0 || types[i] == DTYPE_Q5_0 ? 2
                          : types[i] == DTYPE_Q4_1 || types[i] == DTYPE_Q5_1                         ? 4
                          : types[i] == DTYPE_Q4_K || types[i] == DTYPE_Q5_K                         ? 16
                                                                                                     : 0;
            size_t codes = types[i] == DTYPE_Q6_K   ? 192
                           : types[i] == DTYPE_Q3_K ? 96
                           : types[i] == DTYPE_Q2_K ? block - 4
                                                    : block - code;
            for (uint64_t at = 0; at < row_bytes * N; at += block)
                memset((char *)host.data + at + code,
                       types[i] == DTYPE_Q8_0 ? (fill ? 0x7F : 0x80) : (fill ? 0xFF : 0), codes);
            float x[3 * K], out[3 * N];
            for (int j = 0; j < 3 * K; j++)
                x[j] = j / K == 0 ? 1.0f : j / K == 1 ? -1.0f : j % 2 ? 1.0f : -1.0f;
            multiply(set, 1, &host, x, 3, NULL, out);
            check_rounding(&host, x, 3, out);
            free(host.data);
        }
}

static void test_sets_are_chosen_by_name(void)
{
    struct bed b;
    struct err err;
    CHECK_INT(device_open(&b.device, "cpu", &(struct device_options){.kernels = "fastest"}, &err), -1);
    CHECK_CONTAINS(err.message,
                   "kernels \"fastest\": expected auto, reference, avx2, avx512vnni or avx512bf16");
    CHECK(open_bed(&b, NULL, 1));
    CHECK_STR(device_kernel_set(b.device), "cpu-reference");
    close_bed(&b);
    CHECK(open_bed(&b, "auto", 1));
    const char *best = device_kernel_set(b.device);
    if (!is_here("avx2"))
        CHECK_STR(best, "cpu-reference");
    else if (!is_here("avx512vnni"))
        CHECK_STR(best, "cpu-avx2");
    else
        CHECK(strcmp(best, "cpu-avx512vnni") == 0 || strcmp(best, "cpu-avx512bf16") == 0);
    close_bed(&b);
}

int main(void)
{
    TEST(test_panels_hold_every_value, "panels hold every value of the matrix exactly");
    for (size_t i = 0; i < ARRAY_LEN(SETS); i++) {
        set = SETS[i];
        printf("# kernel set %s\n", set);
        TEST(test_matmul_is_exact_but_for_the_rounding_of_x,
             "matmul over panels is exact but for the rounding of x to 8 bits");
        TEST(test_only_the_rounding_of_sums_is_left,
             "with the same rounded x only the rounding of sums is left, for 1 to 40 rows of odd widths");
        TEST(test_batches_and_threads_do_not_show, "batches and threads do not show in the bits");
        TEST(test_nan_reaches_its_row_alone, "NaN and infinity in x reach the outputs of their row alone");
        TEST(test_tiny_and_zero_rows_are_quiet, "rows of zeros and of denormals give zeros");
        TEST(test_rows_come_back_out_of_panels, "embeddings, the transposed product and experts read panels");
        TEST(test_the_transposed_product_follows_the_definition,
             "the transposed product follows the definition");
        TEST(test_the_transposed_product_has_the_same_bits_everywhere,
             "the transposed product has the reference's bits for every batch and thread count");
        TEST(test_experts_have_the_bits_of_their_own_matrix, "experts have the bits of their own matrix");
        TEST(test_extreme_codes_do_not_saturate,
             "the largest codes by the largest numbers are added exactly");
    }
    TEST(test_sets_have_the_same_bits, "AVX2 and AVX-512 give the same bits");
    TEST(test_sets_are_chosen_by_name, "kernel sets are chosen by name");
    return test_result();
}
