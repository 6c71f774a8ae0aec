#include "tests/unit/kernels/rig.h"

static void test_add_adds_every_element(void)
{
    struct rig r;
    rig_open(&r, 3);
    const int64_t T = 31, C = 2047;
    struct tensor x = RIG_F32(&r, T, C), y = RIG_F32(&r, T, C), before = RIG_F32(&r, T, C);
    rig_random(&r, &x);
    rig_random(&r, &y);
    memcpy(before.data, x.data, tensor_bytes(&x));
    kernel_add(r.stream, &x, &y);
    int wrong = 0;
    for (int64_t i = 0; i < T * C; i++)
        wrong += floats(&x)[i] != floats(&before)[i] + floats(&y)[i];
    CHECK_INT(wrong, 0);
    rig_close(&r);
}

static void test_silu_follows_the_definition(void)
{
    struct rig r;
    rig_open(&r, 3);
    const int64_t T = 5, F = 1031;
    struct tensor gate = RIG_F32(&r, T, F), up = RIG_F32(&r, T, F), out = RIG_F32(&r, T, F);
    rig_random(&r, &gate);
    rig_random(&r, &up);
    for (int64_t i = 0; i < T * F; i++)
        floats(&gate)[i] *= 20.0f;
    floats(&gate)[0] = -200.0f; /* exp overflows: the limit is -0 */
    floats(&gate)[1] = NAN;
    kernel_activate(r.stream, &out, &gate, &up, ACTIVATION_SILU);
    int wrong = 0;
    for (int64_t i = 2; i < T * F; i++) {
        double z = (double)floats(&gate)[i], expected = z / (1.0 + exp(-z)) * (double)floats(&up)[i];
        wrong += !(fabs(floats(&out)[i] - expected) <= 4e-7 * fabs(expected) + 1e-9);
    }
    CHECK_INT(wrong, 0);
    CHECK(floats(&out)[0] == 0.0f);
    CHECK(isnan(floats(&out)[1]));
    kernel_activate(r.stream, &gate, &gate, &up, ACTIVATION_SILU); /* out may be gate */
    CHECK(same_bits(&gate, &out));
    rig_close(&r);
}

static void test_gelu_follows_the_definition(void)
{
    struct rig r;
    rig_open(&r, 3);
    const int64_t T = 5, F = 1031;
    struct tensor gate = RIG_F32(&r, T, F), up = RIG_F32(&r, T, F), out = RIG_F32(&r, T, F);
    struct tensor alone = RIG_F32(&r, T, F);
    rig_random(&r, &gate);
    rig_random(&r, &up);
    for (int64_t i = 0; i < T * F; i++)
        floats(&gate)[i] *= 8.0f;
    floats(&gate)[0] = -200.0f; /* exp overflows: the limit is -0 */
    floats(&gate)[1] = NAN;
    floats(&gate)[2] = 300.0f;
    kernel_activate(r.stream, &out, &gate, &up, ACTIVATION_GELU_TANH);
    kernel_activate(r.stream, &alone, &gate, NULL, ACTIVATION_GELU_TANH);
    int wrong = 0;
    for (int64_t i = 2; i < T * F; i++) {
        double z = (double)floats(&gate)[i];
        double gelu = 0.5 * z * (1.0 + tanh(sqrt(2.0 / M_PI) * (z + 0.044715 * z * z * z)));
        double expected = gelu * (double)floats(&up)[i];
        wrong += !(fabs((double)floats(&alone)[i] - gelu) <= 2e-7 * fabs(gelu) + 1e-12);
        wrong += !(fabs((double)floats(&out)[i] - expected) <= 4e-7 * fabs(expected) + 1e-12);
    }
    CHECK_INT(wrong, 0);
    CHECK(floats(&alone)[0] == 0.0f && isnan(floats(&alone)[1]));
    kernel_activate(r.stream, &gate, &gate, &up, ACTIVATION_GELU_TANH); /* out may be gate */
    CHECK(same_bits(&gate, &out));
    rig_close(&r);
}

static void test_scale_and_softcap_follow_the_definition(void)
{
    struct rig r;
    rig_open(&r, 3);
    const int64_t T = 7, C = 5003;
    struct tensor x = RIG_F32(&r, T, C), before = RIG_F32(&r, T, C);
    rig_random(&r, &before);
    for (int64_t i = 0; i < T * C; i++)
        floats(&before)[i] *= i % 3 ? 50.0f : 1e-3f;
    floats(&before)[0] = INFINITY;
    floats(&before)[1] = -INFINITY;
    floats(&before)[2] = NAN;
    memcpy(x.data, before.data, tensor_bytes(&x));
    kernel_softcap(r.stream, &x, 30.0f);
    int wrong = 0;
    for (int64_t i = 3; i < T * C; i++) {
        double expected = 30.0 * tanh((double)floats(&before)[i] / 30.0);
        wrong += !(fabs((double)floats(&x)[i] - expected) <= 3e-7 * fabs(expected) + 1e-13);
    }
    CHECK_INT(wrong, 0);
    CHECK(floats(&x)[0] == 30.0f && floats(&x)[1] == -30.0f && isnan(floats(&x)[2]));
    memcpy(x.data, before.data, tensor_bytes(&x));
    kernel_scale(r.stream, &x, 0.3f);
    for (int64_t i = 3; i < T * C; i++)
        wrong += floats(&x)[i] != floats(&before)[i] * 0.3f;
    CHECK_INT(wrong, 0);
    rig_close(&r);
}

static void test_sum_ranks_adds_in_rank_order(void)
{
    struct rig r;
    rig_open(&r, 2);
    const int64_t ranks = 5, T = 3, C = 777;
    struct tensor parts = RIG_F32(&r, ranks, T, C), out = RIG_F32(&r, T, C);
    rig_random(&r, &parts);
    for (int64_t i = 0; i < T * C; i++) /* sizes far apart: another order gives other bits */
        floats(&parts)[i] *= 1e7f;
    kernel_sum_ranks(r.stream, &out, &parts);
    int wrong = 0, other_order = 0;
    for (int64_t i = 0; i < T * C; i++) {
        float sum = floats(&parts)[i], reverse = floats(&parts)[(ranks - 1) * T * C + i];
        for (int64_t k = 1; k < ranks; k++)
            sum += floats(&parts)[k * T * C + i];
        for (int64_t k = ranks - 2; k >= 0; k--)
            reverse += floats(&parts)[k * T * C + i];
        wrong += floats(&out)[i] != sum;
        other_order += sum != reverse;
    }
    CHECK_INT(wrong, 0);
    CHECK(other_order > 0);
    rig_close(&r);
}

int main(void)
{
    TEST(test_add_adds_every_element, "add adds every element");
    TEST(test_silu_follows_the_definition, "gated silu follows the definition, in place too");
    TEST(test_gelu_follows_the_definition, "gelu follows the definition, gated, alone and in place");
    TEST(test_scale_and_softcap_follow_the_definition, "scale and softcap follow the definition");
    TEST(test_sum_ranks_adds_in_rank_order, "sum_ranks adds in rank order, to the bit");
    return test_result();
}
