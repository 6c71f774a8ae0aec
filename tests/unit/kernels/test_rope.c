#include "tests/unit/kernels/rig.h"

static void check_rope(enum rope_pairs pairs, int64_t D, int64_t R, float magnitude)
{
    struct rig r;
    rig_open(&r, 2);
    const int64_t T = 11, heads = 3;
    struct tensor x = RIG_F32(&r, T, heads, D), before = RIG_F32(&r, T, heads, D);
    struct tensor positions = RIG_I32(&r, T), frequency = RIG_F32(&r, R / 2);
    rig_random(&r, &x);
    memcpy(before.data, x.data, tensor_bytes(&x));
    for (int64_t t = 0; t < T; t++)
        ints(&positions)[t] = (int32_t)(t * t * 997);
    for (int64_t i = 0; i < R / 2; i++)
        floats(&frequency)[i] = (float)pow(10000.0, -2.0 * (double)i / (double)R);
    kernel_rope(r.stream, &x, &positions, &frequency, pairs, magnitude);
    int wrong = 0;
    for (int64_t row = 0; row < T * heads; row++) {
        const float *a = floats(&before) + row * D, *b = floats(&x) + row * D;
        for (int64_t i = 0; i < R / 2; i++) {
            int64_t first = pairs == ROPE_INTERLEAVED ? 2 * i : i;
            int64_t second = pairs == ROPE_INTERLEAVED ? 2 * i + 1 : i + R / 2;
            double angle = (double)ints(&positions)[row / heads] * (double)floats(&frequency)[i];
            double c = cos(angle) * (double)magnitude, s = sin(angle) * (double)magnitude;
            wrong += !(fabs(b[first] - (a[first] * c - a[second] * s)) <= 4e-7);
            wrong += !(fabs(b[second] - (a[first] * s + a[second] * c)) <= 4e-7);
        }
        for (int64_t i = R; i < D; i++) /* what lies past R is not turned */
            wrong += a[i] != b[i];
    }
    CHECK_INT(wrong, 0);
    struct tensor alone = tensor_rows(&before, 9, 1), at = tensor_rows(&positions, 9, 1);
    struct tensor same = tensor_rows(&x, 9, 1);
    kernel_rope(r.stream, &alone, &at, &frequency, pairs, magnitude);
    CHECK(same_bits(&alone, &same));
    rig_close(&r);
}

static void test_rope_turns_interleaved_pairs(void)
{
    check_rope(ROPE_INTERLEAVED, 64, 64, 1.0f);
    check_rope(ROPE_INTERLEAVED, 10, 6, 1.25f);
}

static void test_rope_turns_halves(void)
{
    check_rope(ROPE_HALVES, 64, 64, 1.0f);
    check_rope(ROPE_HALVES, 13, 8, 0.75f);
}

int main(void)
{
    TEST(test_rope_turns_interleaved_pairs, "rope turns interleaved pairs, a part of the head too");
    TEST(test_rope_turns_halves, "rope turns halves, a part of the head too");
    return test_result();
}
