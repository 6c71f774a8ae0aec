/* The arithmetic of "cpu-reference" as one number per operation. The numbers were taken once; a machine,
 * compiler or change that gives others belongs to another numeric class (design I7): it needs another kernel
 * set's name, not another number here. */
#include "tests/unit/kernels/rig.h"

static void check_bits(const char *what, const struct tensor *t, unsigned long long expected)
{
    unsigned long long got = bits_hash(t);
    if (got != expected)
        printf("# %s: 0x%016llx\n", what, got);
    CHECK(got == expected);
}

static void test_matmul_bits(void)
{
    static const struct {
        enum dtype type;
        unsigned long long forward, transposed;
    } CASES[] = {{DTYPE_F32, 0x822a070d05c3ba6aull, 0xff4174511384d70cull},
                 {DTYPE_F16, 0xda06c1852a26aef3ull, 0x6502a6a37b828cd9ull},
                 {DTYPE_BF16, 0x6f02c91dd4718b6dull, 0xd21ddd387f795993ull},
                 {DTYPE_Q8_0, 0xcc5231c312b6e144ull, 0x64db79ecbaff9313ull},
                 {DTYPE_Q4_0, 0xa8afcb36e2e94bceull, 0xd2ec6040da7dfbd8ull},
                 {DTYPE_Q4_1, 0x9d48f4889b9a731bull, 0xc62e951c8c10a357ull},
                 {DTYPE_Q5_0, 0x6b611c86904eb68dull, 0xc252a9ed85072481ull},
                 {DTYPE_Q5_1, 0x6cbc3613e30d47c7ull, 0x35f2aab5022926f0ull},
                 {DTYPE_Q2_K, 0x7f8fda2c27e12b99ull, 0x72e9861e63a96cf7ull},
                 {DTYPE_Q3_K, 0xd8dc55394ffe7a80ull, 0xac5253a0366e4c1full},
                 {DTYPE_Q4_K, 0xb504006a28ee0ae5ull, 0x602e6f6f810d6e85ull},
                 {DTYPE_Q5_K, 0xc31feeea636c2d6bull, 0x3bd5c1eee8155295ull},
                 {DTYPE_Q6_K, 0x1a9cab9c9989cc51ull, 0xe901991bea32541cull}};
    for (size_t i = 0; i < ARRAY_LEN(CASES); i++) {
        const int64_t K = dtype_info(CASES[i].type)->block_elements > 32 ? 512 : 352;
        struct rig r;
        rig_open(&r, 2);
        struct weight w = rig_weight(&r, CASES[i].type, 50, K);
        struct tensor x = RIG_F32(&r, 6, K), out = RIG_F32(&r, 6, 50), dx = RIG_F32(&r, 6, K);
        rig_random(&r, &x);
        kernel_matmul(r.stream, &out, &x, &w, NULL);
        kernel_matmul_transposed(r.stream, &dx, &out, &w);
        check_bits(dtype_info(CASES[i].type)->name, &out, CASES[i].forward);
        check_bits("transposed", &dx, CASES[i].transposed);
        weight_release(&w);
        rig_close(&r);
    }
}

static void test_row_bits(void)
{
    struct rig r;
    rig_open(&r, 2);
    struct tensor x = RIG_F32(&r, 7, 333), up = RIG_F32(&r, 7, 333), gain = RIG_F32(&r, 333);
    struct tensor out = RIG_F32(&r, 7, 333);
    rig_random(&r, &x);
    rig_random(&r, &up);
    rig_random(&r, &gain);
    kernel_rmsnorm(r.stream, &out, &x, &gain, 1e-5f);
    check_bits("rmsnorm", &out, 0xf87582a9a2a67394ull);
    for (int64_t i = 0; i < 7 * 333; i++)
        floats(&x)[i] *= 30.0f;
    kernel_activate(r.stream, &out, &x, &up, ACTIVATION_SILU);
    check_bits("silu", &out, 0x5dc5b579c1e01f2aull);
    rig_close(&r);
}

static void test_rope_and_attention_bits(void)
{
    enum { T = 53, HEADS = 4, KV_HEADS = 2, D = 24 };
    struct rig r;
    rig_open(&r, 2);
    struct tensor q = RIG_F32(&r, T, HEADS, D), out = RIG_F32(&r, T, HEADS, D),
                  frequency = RIG_F32(&r, D / 2);
    struct tensor k = RIG_F32(&r, T, KV_HEADS, D), v = RIG_F32(&r, T, KV_HEADS, D);
    struct seq_view view = {.row_begin = RIG_I32(&r, 2), .positions = RIG_I32(&r, T)};
    ints(&view.row_begin)[0] = 0;
    ints(&view.row_begin)[1] = T;
    for (int t = 0; t < T; t++)
        ints(&view.positions)[t] = t;
    for (int i = 0; i < D / 2; i++)
        floats(&frequency)[i] = ldexpf(1.0f, -i);
    rig_random(&r, &q);
    rig_random(&r, &k);
    rig_random(&r, &v);
    for (int64_t i = 0; i < T * HEADS * D; i++)
        floats(&q)[i] *= 10.0f;
    kernel_rope(r.stream, &q, &view.positions, &frequency, ROPE_INTERLEAVED, 1.0f);
    kernel_rope(r.stream, &k, &view.positions, &frequency, ROPE_HALVES, 1.0f);
    check_bits("rope interleaved", &q, 0x76e58664644ef93cull);
    check_bits("rope halves", &k, 0x87a4a67b836ace44ull);
    kernel_attention(r.stream, &out, &q, &k, &v, &view, &(struct attention_options){.scale = 0.2f});
    check_bits("attention", &out, 0x7cedc740126f6c20ull);
    struct attention_options some = {.scale = 0.2f, .softcap = 3.0f, .window = 21};
    kernel_attention(r.stream, &out, &q, &k, &v, &view, &some);
    check_bits("attention with a window and a cap", &out, 0x949334462ad18c41ull);
    rig_close(&r);
}

static void test_bits_of_some_families(void)
{
    enum { T = 11, C = 197, E = 6, USED = 2 };
    struct rig r;
    rig_open(&r, 2);
    struct tensor x = RIG_F32(&r, T, C), gain = RIG_F32(&r, C), bias = RIG_F32(&r, C),
                  out = RIG_F32(&r, T, C);
    struct tensor logits = RIG_F32(&r, T, E), ids = RIG_I32(&r, T, USED), weights = RIG_F32(&r, T, USED);
    struct tensor parts = RIG_F32(&r, T * USED, C), active = RIG_F32(&r, T, C);
    struct weight w = rig_weight(&r, DTYPE_F32, E * C, C);
    rig_random(&r, &x);
    rig_random(&r, &gain);
    rig_random(&r, &bias);
    rig_random(&r, &logits);
    kernel_layernorm(r.stream, &out, &x, &gain, &bias, 1e-5f);
    check_bits("layernorm", &out, 0x683672443435e78eull);
    kernel_scale(r.stream, &out, 7.3f);
    kernel_activate(r.stream, &active, &out, &x, ACTIVATION_GELU_TANH);
    check_bits("gelu", &active, 0x8c49a1dc914b0968ull);
    kernel_softcap(r.stream, &out, 3.0f);
    check_bits("softcap", &out, 0x18b96c893f1695c9ull);
    kernel_route(r.stream, &ids, &weights, &logits, true);
    check_bits("route", &weights, 0x6fa5b0d8c6af0d5cull);
    kernel_expert_matmul(r.stream, &parts, &out, &w, &ids);
    kernel_expert_sum(r.stream, &x, &parts, &weights);
    check_bits("experts", &x, 0xa0c81bdb83545150ull);
    weight_release(&w);
    rig_close(&r);
}

static void test_sample_bits(void)
{
    enum { B = 200, V = 300 };
    struct rig r;
    struct sample_row rows[B];
    rig_open(&r, 2);
    struct tensor logits = RIG_F32(&r, B, V), ids = RIG_I32(&r, B), history = RIG_I32(&r, 1, 1);
    rig_random(&r, &logits);
    for (int b = 0; b < B; b++)
        rows[b] = (struct sample_row){.seed = 0x123456789ABCDEFull * (unsigned)b,
                                      .index = (uint32_t)b * 3,
                                      .temperature = 0.1f + 0.01f * (float)b,
                                      .top_k = b % 3 ? 40 : 0,
                                      .top_p = b % 4 ? 0.9f : 1.0f,
                                      .min_p = b % 5 ? 0.02f : 0.0f,
                                      .repetition_penalty = 1.0f,
                                      .banned_id = b};
    kernel_sample(r.stream, &ids, &logits, rows, &history, NULL);
    check_bits("sample", &ids, 0x33747df7046d4b56ull);
    rig_close(&r);
}

int main(void)
{
    TEST(test_matmul_bits, "matmul and its transpose have the bits of cpu-reference");
    TEST(test_row_bits, "rmsnorm and silu have the bits of cpu-reference");
    TEST(test_rope_and_attention_bits, "rope and attention have the bits of cpu-reference");
    TEST(test_bits_of_some_families, "operations of some families have the bits of cpu-reference");
    TEST(test_sample_bits, "sample draws the tokens of cpu-reference");
    return test_result();
}
