/* Several products of one x as one job: each has the bits that it has alone, whatever stands beside it. */
#include "kernels/cpu/products.h"

#include "tests/test.h"

#define K 512

static const char *const SETS[] = {"reference", "avx2", "avx512vnni", "avx512bf16"};
static const int ROWS[] = {1, 2, 4, 5, 13, 40};
static const int64_t OUTPUTS[MATMUL_OUTPUTS] = {37, 5, 64, 200};

static struct weight random_weight(struct device *device, enum dtype type, int64_t n, unsigned long long seed)
{
    uint64_t bytes = 0;
    float row[K];
    struct weight w;
    struct err err;
    dtype_row_bytes(type, K, &bytes);
    char *rows = malloc(bytes * (size_t)n);
    for (int64_t r = 0; r < n; r++) {
        for (int k = 0; k < K; k++)
            row[k] = test_uniform(&seed);
        dtype_from_f32(type, row, rows + (uint64_t)r * bytes, K);
    }
    struct tensor host = tensor_2d(NULL, type, rows, n, K);
    if (weight_pack(&w, device, &host, &err))
        die("%s", err.message);
    if (w.packed != rows)
        free(rows);
    return w;
}

/* 1 where the joint products differ from the single ones. */
static int differs(struct device *device, struct stream *s, const struct weight *w, int64_t T)
{
    float *x = malloc((size_t)T * K * sizeof(float)), bias[200];
    float *alone[MATMUL_OUTPUTS], *joint[MATMUL_OUTPUTS];
    unsigned long long seed = 7;
    struct tensor in = tensor_2d(device, DTYPE_F32, x, T, K), to[MATMUL_OUTPUTS], add[MATMUL_OUTPUTS];
    struct matmul_output outputs[MATMUL_OUTPUTS];
    int different = 0;
    for (int64_t i = 0; i < T * K; i++)
        x[i] = test_uniform(&seed);
    for (int i = 0; i < 200; i++)
        bias[i] = test_uniform(&seed);
    for (int i = 0; i < MATMUL_OUTPUTS; i++) {
        size_t bytes = (size_t)(T * OUTPUTS[i]) * sizeof(float);
        alone[i] = malloc(bytes);
        joint[i] = malloc(bytes);
        add[i] = tensor_1d(device, DTYPE_F32, i % 2 ? bias : NULL, OUTPUTS[i]);
        struct tensor single = tensor_2d(device, DTYPE_F32, alone[i], T, OUTPUTS[i]);
        kernel_matmul(s, &single, &in, &w[i], &add[i]);
        to[i] = tensor_2d(device, DTYPE_F32, joint[i], T, OUTPUTS[i]);
        outputs[i] = (struct matmul_output){&to[i], &w[i], &add[i]};
    }
    kernel_matmul_each(s, &in, outputs, MATMUL_OUTPUTS);
    for (int i = 0; i < MATMUL_OUTPUTS; i++) {
        different |= memcmp(alone[i], joint[i], (size_t)(T * OUTPUTS[i]) * sizeof(float)) != 0;
        free(alone[i]);
        free(joint[i]);
    }
    free(x);
    return different;
}

static void test_joint_products_have_the_bits_of_single_ones(void)
{
    static const enum dtype TYPES[][MATMUL_OUTPUTS] = {{DTYPE_Q8_0, DTYPE_Q8_0, DTYPE_Q8_0, DTYPE_Q8_0},
                                                       {DTYPE_Q4_K, DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_Q4_K},
                                                       {DTYPE_F16, DTYPE_F16, DTYPE_F16, DTYPE_F16},
                                                       {DTYPE_BF16, DTYPE_Q4_0, DTYPE_BF16, DTYPE_BF16},
                                                       {DTYPE_F32, DTYPE_F32, DTYPE_Q2_K, DTYPE_Q2_K}};
    int run = 0;
    for (size_t set = 0; set < ARRAY_LEN(SETS); set++)
        for (int threads = 1; threads <= 3; threads++) {
            struct device *device;
            struct stream *s;
            struct err err;
            if (device_open(&device, "cpu",
                            &(struct device_options){.threads = threads, .kernels = SETS[set]}, &err))
                continue; /* this processor has not that set */
            ASSERT(stream_open(&s, device, &err) == 0);
            for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
                struct weight w[MATMUL_OUTPUTS];
                for (int i = 0; i < MATMUL_OUTPUTS; i++)
                    w[i] = random_weight(device, TYPES[t][i], OUTPUTS[i], 10 * t + (unsigned)i);
                for (size_t r = 0; r < ARRAY_LEN(ROWS); r++, run++)
                    CHECK_INT(differs(device, s, w, ROWS[r]), 0);
                for (int i = 0; i < MATMUL_OUTPUTS; i++) {
                    if (!w[i].owned)
                        free(w[i].packed);
                    weight_release(&w[i]);
                }
            }
            stream_close(&s);
            device_close(&device);
        }
    CHECK(run >= 3 * 5 * 6); /* the reference runs anywhere */
}

static void test_a_range_is_cut_at_the_products(void)
{
    struct products p = {.count = 3, .total = 20, .of = {{.first = 0}, {.first = 8}, {.first = 9}}};
    int64_t from, to;
    CHECK(products_part(&p, 0, 0, 20, &from, &to) && from == 0 && to == 8);
    CHECK(products_part(&p, 1, 0, 20, &from, &to) && from == 0 && to == 1);
    CHECK(products_part(&p, 2, 0, 20, &from, &to) && from == 0 && to == 11);
    CHECK(products_part(&p, 2, 12, 14, &from, &to) && from == 3 && to == 5);
    CHECK(!products_part(&p, 0, 8, 20, &from, &to));
    CHECK(!products_part(&p, 1, 9, 20, &from, &to));
    CHECK(!products_part(&p, 2, 0, 9, &from, &to));
}

int main(void)
{
    TEST(test_joint_products_have_the_bits_of_single_ones, "joint products have the bits of single ones");
    TEST(test_a_range_is_cut_at_the_products, "a part of the range is cut at the products");
    return test_result();
}
