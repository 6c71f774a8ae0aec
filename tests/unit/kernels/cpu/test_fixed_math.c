#include "kernels/cpu/fixed_math.h"

#include "tests/test.h"

/* Against the C library in long double. */
static void test_exp_is_close_to_the_true_value(void)
{
    double worst = 0.0;
    for (int i = -700000; i <= 700000; i += 7) {
        double x = i * 0.001 + 1e-7 * (i % 13);
        long double truth = expl((long double)x);
        worst = fmax(worst, (double)fabsl(((long double)fixed_exp(x) - truth) / truth));
    }
    CHECK_NEAR(worst, 0.0, 1e-15);
    for (int i = -2000; i <= 2000; i++) { /* near 0, where the online softmax lives */
        double x = ldexp(i, -16);
        CHECK_NEAR(fixed_exp(x), (double)expl((long double)x), 3e-16 * exp(x));
    }
}

static void test_exp_at_the_ends(void)
{
    CHECK(fixed_exp(0.0) == 1.0 && fixed_exp(-0.0) == 1.0);
    CHECK(fixed_exp(-INFINITY) == 0.0 && fixed_exp(-800.0) == 0.0);
    CHECK(isinf(fixed_exp(INFINITY)) && isinf(fixed_exp(800.0)));
    CHECK(isnan(fixed_exp(NAN)));
    CHECK(fixed_expf(-INFINITY) == 0.0f && isinf(fixed_expf(89.0f)) && isnan(fixed_expf(NAN)));
    CHECK(fixed_expf(-100.0f) == (float)exp(-100.0)); /* subnormal in float */
}

static void test_sine_and_cosine_are_close_to_the_true_values(void)
{
    double worst = 0.0;
    for (int64_t i = 0; i < 400000; i++) {
        double angle = i < 200000 ? (double)i * 1e-4 : (double)(i - 200000) * 20.97 + 1.0 / (double)i, s, c;
        angle = i % 2 ? -angle : angle;
        fixed_sincos(angle, &s, &c);
        worst = fmax(worst, (double)fabsl((long double)s - sinl((long double)angle)));
        worst = fmax(worst, (double)fabsl((long double)c - cosl((long double)angle)));
    }
    CHECK_NEAR(worst, 0.0, 0x1p-45);
}

/* Constants found once on x86-64 with gcc 12; any machine or compiler that gives others has another numeric
 * class and must say so. */
static void test_the_bits_are_the_same_everywhere(void)
{
    unsigned long long h = 0xCBF29CE484222325ull;
    for (int i = -3000; i <= 3000; i++) {
        double s, c;
        fixed_sincos(i * 37.25, &s, &c);
        double all[3] = {fixed_exp(i * 0.2171875), s, c};
        for (int k = 0; k < 3; k++)
            h = (h ^ fixed_bits(all[k])) * 0x100000001B3ull;
    }
    CHECK(h == 0x7b244de6cab98633ull);
    if (test_failures)
        printf("# hash 0x%llx\n", h);
}

int main(void)
{
    TEST(test_exp_is_close_to_the_true_value, "exp is within a few units of the last place");
    TEST(test_exp_at_the_ends, "exp at the ends: 0, infinity, NaN, subnormal floats");
    TEST(test_sine_and_cosine_are_close_to_the_true_values, "sine and cosine are within 2^-45");
    TEST(test_the_bits_are_the_same_everywhere, "the bits are the same on every machine");
    return test_result();
}
