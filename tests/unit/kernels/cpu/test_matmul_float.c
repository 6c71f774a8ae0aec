/* Products with F32, F16 and BF16 weights in every kernel set that is here: against exact arithmetic, over
 * odd shapes and several blocks of K, and against themselves: other batches and threads must not show. */
#include "kernels/cpu/matmul_float.h"
#include "kernels/half.h"
#include "tests/unit/kernels/rig.h"

static const char *const SETS[] = {"avx2", "avx512vnni", "avx512bf16"};
static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

static bool here(const char *set)
{
    struct device *device;
    struct err err;
    if (device_open(&device, "cpu", &(struct device_options){.threads = 1, .kernels = set}, &err) != 0)
        return false;
    device_close(&device);
    return true;
}

static bool rounds_x(const char *set, enum dtype type)
{
    return strcmp(set, "avx512bf16") == 0 && type == DTYPE_BF16;
}

/* out against double, with x rounded as the set does; `w` are the weights as floats. */
static void check_product(const char *set, enum dtype type, const struct tensor *out, const struct tensor *x,
                          const struct tensor *w, const struct tensor *bias)
{
    int64_t T = x->dim[0], K = x->dim[1], N = w->dim[0];
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            double want = bias ? (double)floats(bias)[n] : 0, size = fabs(want);
            for (int64_t k = 0; k < K; k++) {
                float v = floats(x)[t * K + k];
                if (rounds_x(set, type))
                    v = widen_bf16(narrow_bf16(v));
                want += (double)v * (double)floats(w)[n * K + k];
                size += fabs((double)v * (double)floats(w)[n * K + k]);
            }
            CHECK_NEAR(floats(out)[t * N + n], want, size * 4e-6);
        }
}

static struct weight pack(struct rig *r, enum dtype type, int64_t N, int64_t K, struct tensor *as_floats)
{
    struct tensor host = rig_tensor(r, type, 2, (int64_t[]){N, K});
    struct weight w;
    struct err err;
    rig_random(r, &host);
    *as_floats = RIG_F32(r, N, K);
    dtype_to_f32(type, host.data, as_floats->data, (uint64_t)(N * K));
    if (weight_pack(&w, r->device, &host, &err) != 0)
        die("%s", err.message);
    return w;
}

static void test_odd_shapes(void)
{
    static const int64_t SHAPES[][3] = {{1, 1, 1},    {1, 16, 2},    {2, 17, 7},   {3, 50, 511},
                                        {5, 33, 512}, {6, 129, 513}, {12, 31, 40}, {13, 70, 1025},
                                        {29, 40, 77}, {64, 300, 600}};
    for (size_t set = 0; set < ARRAY_LEN(SETS); set++)
        for (size_t type = 0; here(SETS[set]) && type < ARRAY_LEN(TYPES); type++)
            for (size_t i = 0; i < ARRAY_LEN(SHAPES); i++) {
                int64_t T = SHAPES[i][0], N = SHAPES[i][1], K = SHAPES[i][2];
                struct rig r;
                struct tensor w_floats;
                rig_kernels = SETS[set];
                rig_open(&r, 2);
                struct weight w = pack(&r, TYPES[type], N, K, &w_floats);
                struct tensor x = RIG_F32(&r, T, K), bias = RIG_F32(&r, N), out = RIG_F32(&r, T, N);
                rig_random(&r, &x);
                rig_random(&r, &bias);
                kernel_matmul(r.stream, &out, &x, &w, i % 2 ? &bias : NULL);
                check_product(SETS[set], TYPES[type], &out, &x, &w_floats, i % 2 ? &bias : NULL);
                weight_release(&w);
                rig_close(&r);
            }
}

static void test_batches_and_threads(void)
{
    enum { T = 61, N = 210, K = 1300 };
    for (size_t set = 0; set < ARRAY_LEN(SETS); set++)
        for (size_t type = 0; here(SETS[set]) && type < ARRAY_LEN(TYPES); type++) {
            float *kept = NULL;
            for (int threads = 1; threads <= 3; threads++) {
                struct rig r;
                struct tensor w_floats;
                rig_kernels = SETS[set];
                rig_open(&r, threads);
                struct weight w = pack(&r, TYPES[type], N, K, &w_floats);
                struct tensor x = RIG_F32(&r, T, K), all = RIG_F32(&r, T, N), some = RIG_F32(&r, T, N);
                rig_random(&r, &x);
                kernel_matmul(r.stream, &all, &x, &w, NULL);
                if (!kept) {
                    kept = malloc(sizeof(float) * T * N);
                    memcpy(kept, all.data, sizeof(float) * T * N);
                }
                CHECK(memcmp(kept, all.data, sizeof(float) * T * N) == 0);
                for (int64_t rows = 1; rows < T; rows += rows < 14 ? 1 : 9) {
                    struct tensor part = x, out = some;
                    part.dim[0] = out.dim[0] = rows;
                    part.data = floats(&x) + (T - rows) * K; /* the last rows */
                    kernel_matmul(r.stream, &out, &part, &w, NULL);
                    CHECK(memcmp(out.data, floats(&all) + (T - rows) * N,
                                 sizeof(float) * (size_t)(rows * N)) == 0);
                }
                weight_release(&w);
                rig_close(&r);
            }
            free(kept);
        }
}

static void test_f16_as_bf16(void)
{
    struct device *device;
    struct err err;
    struct device_options options = {.threads = 2, .kernels = "avx512vnni", .f16_as_bf16 = true};
    if (!here("avx512bf16"))
        SKIP("this processor has no AVX-512 BF16");
    CHECK_INT(device_open(&device, "cpu", &options, &err), -1);
    CHECK_CONTAINS(err.message, "f16_as_bf16: expected the kernel set avx512bf16, found avx512vnni");
    options.kernels = "avx512bf16";
    ASSERT(device_open(&device, "cpu", &options, &err) == 0);
    CHECK_STR(device_kernel_set(device), "cpu-avx512bf16+f16_as_bf16");

    enum { N = 21, K = 70 };
    uint16_t rows[N * K];
    float values[N * K], got[K];
    struct weight w;
    unsigned long long seed = 9;
    for (int i = 0; i < N * K; i++)
        rows[i] = f32_to_f16(test_uniform(&seed));
    dtype_to_f32(DTYPE_F16, rows, values, N * K);
    struct tensor host = tensor_2d(NULL, DTYPE_F16, rows, N, K);
    ASSERT(weight_pack(&w, device, &host, &err) == 0);
    CHECK_INT(w.stored.dtype, DTYPE_BF16);
    for (int n = 0; n < N; n++) {
        panel_row_floats(&w, n, 0, K, got);
        for (int k = 0; k < K; k++)
            CHECK(got[k] == widen_bf16(narrow_bf16(values[n * K + k])));
    }
    weight_release(&w);
    device_close(&device);
}

static void test_large_and_not_a_number(void)
{
    for (size_t set = 0; set < ARRAY_LEN(SETS); set++)
        for (size_t type = 0; here(SETS[set]) && type < ARRAY_LEN(TYPES); type++) {
            struct rig r;
            struct tensor w_floats;
            rig_kernels = SETS[set];
            rig_open(&r, 1);
            struct weight w = pack(&r, TYPES[type], 40, 600, &w_floats);
            struct tensor x = RIG_F32(&r, 3, 600), out = RIG_F32(&r, 3, 40);
            rig_random(&r, &x);
            floats(&x)[600 + 599] = NAN;
            kernel_matmul(r.stream, &out, &x, &w, NULL);
            for (int n = 0; n < 40; n++)
                CHECK(isfinite(floats(&out)[n]) && isnan(floats(&out)[40 + n]) &&
                      isfinite(floats(&out)[80 + n]));
            weight_release(&w);
            rig_close(&r);
        }
}

int main(void)
{
    if (!here(SETS[0])) {
        printf("# no fast kernel set on this processor\n");
        return 0;
    }
    TEST(test_odd_shapes, "products over odd shapes are those of exact arithmetic");
    TEST(test_batches_and_threads, "batches and threads do not show in the bits");
    TEST(test_f16_as_bf16, "F16 weights are rounded to BF16 where that is asked for");
    TEST(test_large_and_not_a_number, "NaN in x reaches its row alone");
    return test_result();
}
