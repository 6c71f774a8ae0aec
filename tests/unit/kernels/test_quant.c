/* The block types, read and written, against their definitions in double (tests/block_types.h). */
#include "tests/block_types.h"
#include "tests/test.h"

static const struct {
    enum dtype type;
    int elements, bytes;
    double (*element)(const uint8_t *block, int i);
    int f16[2]; /* where the block's F16 numbers stand; -1 = none */
    int step;   /* codes on one side of zero, or on the whole range where there is a minimum */
    bool minimum;
    int sub;          /* elements that share a scale */
    int scale_levels; /* largest integer scale of a sub-block; 0 = the scale is the F16 itself */
} TYPES[] = {
    {DTYPE_Q8_0, 32, 34, q8_0_element, {0, -1}, 127, false, 32, 0},
    {DTYPE_Q4_0, 32, 18, q4_0_element, {0, -1}, 8, false, 32, 0},
    {DTYPE_Q4_1, 32, 20, q4_1_element, {0, 2}, 15, true, 32, 0},
    {DTYPE_Q5_0, 32, 22, q5_0_element, {0, -1}, 16, false, 32, 0},
    {DTYPE_Q5_1, 32, 24, q5_1_element, {0, 2}, 31, true, 32, 0},
    {DTYPE_Q2_K, 256, 84, q2_k_element, {80, 82}, 3, true, 16, 15},
    {DTYPE_Q3_K, 256, 110, q3_k_element, {108, -1}, 4, false, 16, 32},
    {DTYPE_Q4_K, 256, 144, q4_k_element, {0, 2}, 15, true, 32, 63},
    {DTYPE_Q5_K, 256, 176, q5_k_element, {0, 2}, 31, true, 32, 63},
    {DTYPE_Q6_K, 256, 210, q6_k_element, {208, -1}, 32, false, 16, 128},
};

/* Products and differences of these numbers are exact in double, so the float must be the nearest one. */
static bool is_nearest(float got, double value)
{
    return isnan(value) ? isnan(got) : got == (float)value && !signbit(got) == !signbit((float)value);
}

static int count_wrong(size_t t, const uint8_t *blocks, int count)
{
    int wrong = 0, n = TYPES[t].elements;
    float *out = malloc((size_t)(count * n + 2) * sizeof(float));
    out[0] = out[count * n + 1] = 77.0f; /* guards */
    dtype_to_f32(TYPES[t].type, blocks, out + 1, (uint64_t)(count * n));
    for (int b = 0; b < count; b++)
        for (int i = 0; i < n; i++)
            wrong += !is_nearest(out[1 + b * n + i], TYPES[t].element(blocks + b * TYPES[t].bytes, i));
    wrong += out[0] != 77.0f || out[count * n + 1] != 77.0f;
    free(out);
    return wrong;
}

static void fill_random(uint8_t *bytes, int count, unsigned long long *state)
{
    for (int i = 0; i < count; i++)
        bytes[i] = (uint8_t)(test_random(state) >> 56);
}

static void put_f16(uint8_t *p, unsigned bits)
{
    p[0] = (uint8_t)bits;
    p[1] = (uint8_t)(bits >> 8);
}

static void test_random_blocks(void)
{
    unsigned long long state = 1;
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        enum { COUNT = 2000 };
        CHECK_INT(dtype_info(TYPES[t].type)->block_bytes, TYPES[t].bytes);
        CHECK_INT(dtype_info(TYPES[t].type)->block_elements, TYPES[t].elements);
        uint8_t *blocks = malloc((size_t)(COUNT * TYPES[t].bytes));
        fill_random(blocks, COUNT * TYPES[t].bytes, &state);
        int wrong = count_wrong(t, blocks, COUNT);
        if (wrong)
            printf("# %s\n", dtype_info(TYPES[t].type)->name);
        CHECK_INT(wrong, 0);
        free(blocks);
    }
}

/* Every class of F16: zeros, subnormals, ordinary numbers, the largest, infinities, NaN; in each place it can
 * stand, and in both at once; over random, all-zero and all-one codes. */
static void test_extreme_scales(void)
{
    static const unsigned CLASSES[] = {0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00,
                                       0xBC01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00};
    unsigned long long state = 2;
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        uint8_t block[256];
        int wrong = 0;
        for (size_t a = 0; a < ARRAY_LEN(CLASSES); a++)
            for (size_t b = 0; b < ARRAY_LEN(CLASSES); b++)
                for (int fill = 0; fill < 3; fill++) {
                    fill_random(block, TYPES[t].bytes, &state);
                    if (fill)
                        memset(block, fill == 1 ? 0x00 : 0xFF, (size_t)TYPES[t].bytes);
                    put_f16(block + TYPES[t].f16[0], CLASSES[a]);
                    if (TYPES[t].f16[1] >= 0)
                        put_f16(block + TYPES[t].f16[1], CLASSES[b]);
                    wrong += count_wrong(t, block, 1);
                }
        CHECK_INT(wrong, 0);
    }
}

/* Every bit of a block matters to at least one element, and each alone where it is a code's: catches two
 * elements that read the same bits. */
static void test_every_bit_counts(void)
{
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        uint8_t block[256];
        float before[256], after[256];
        unsigned long long state = 3;
        fill_random(block, TYPES[t].bytes, &state);
        put_f16(block + TYPES[t].f16[0], 0x3C01);
        if (TYPES[t].f16[1] >= 0)
            put_f16(block + TYPES[t].f16[1], 0x3155);
        dtype_to_f32(TYPES[t].type, block, before, (uint64_t)TYPES[t].elements);
        int silent = 0;
        for (int i = 0; i < 8 * TYPES[t].bytes; i++) {
            block[i / 8] ^= (uint8_t)(1 << i % 8);
            dtype_to_f32(TYPES[t].type, block, after, (uint64_t)TYPES[t].elements);
            silent += memcmp(before, after, (size_t)TYPES[t].elements * sizeof(float)) == 0;
            block[i / 8] ^= (uint8_t)(1 << i % 8);
        }
        CHECK_INT(silent, 0);
    }
}

/* ---- writing */

static double gauss(unsigned long long *state)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += test_uniform(state);
    return sum / 2; /* deviation 1: twelve uniform numbers of variance 1/3 each, halved */
}

/* The squared error of the plainest way to use the codes of a type: real scales, each sub-block's from its
 * own extreme values. No format reaches it in general (its scales are not real numbers), and a search may go
 * below it. */
static double plain_error(size_t t, const float *x, int n)
{
    double total = 0;
    for (int s = 0; s < n; s += TYPES[t].sub) {
        double low = 0, high = 0;
        for (int i = s; i < s + TYPES[t].sub; i++) {
            low = fmin(low, x[i]);
            high = fmax(high, x[i]);
        }
        double step = TYPES[t].minimum ? (high - low) / TYPES[t].step : fmax(high, -low) / TYPES[t].step;
        double zero = TYPES[t].minimum ? low : 0;
        for (int i = s; i < s + TYPES[t].sub; i++) {
            double off = x[i] - zero - step * nearbyint(step > 0 ? (x[i] - zero) / step : 0);
            total += off * off;
        }
    }
    return total;
}

static double squared_error(size_t t, const float *x, int n)
{
    double total = 0;
    uint8_t *bytes = malloc((size_t)(n / TYPES[t].elements * TYPES[t].bytes));
    float *y = malloc((size_t)n * sizeof(float));
    dtype_from_f32(TYPES[t].type, x, bytes, (uint64_t)n);
    dtype_to_f32(TYPES[t].type, bytes, y, (uint64_t)n);
    for (int i = 0; i < n; i++)
        total += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
    free(bytes);
    free(y);
    return total;
}

/* How far off a value may be, from the format alone, as a share of the block's amplitude A = max|x|. Half a
 * step of codes over the range that must be covered (A, or 2A with a minimum); a symmetric code that lacks
 * the positive end may be a whole step off there. Integer scales add half of one of them times the largest
 * code (and half a minimum). F16 rounds each part by 2^-11 of what it multiplies. A least-squares scale may
 * exceed the covering one by 1 / (codes - 1). */
static double level(size_t t)
{
    double range = TYPES[t].minimum ? 2.0 : 1.0, codes = TYPES[t].step;
    double error = range / codes * (TYPES[t].minimum || codes == 127 ? 0.5 : 1.0);
    if (TYPES[t].scale_levels)
        error += range / (2.0 * TYPES[t].scale_levels) * codes / (codes - 1) +
                 (TYPES[t].minimum ? 1.0 / (2.0 * TYPES[t].scale_levels) : 0);
    return error + (range + TYPES[t].minimum) * 0x1p-11;
}

static void test_blocks_of_every_size_come_back_within_the_level(void)
{
    unsigned long long state = 4;
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        double worst = 0;
        int n = TYPES[t].elements;
        for (int round = 0; round < 2000; round++) {
            float x[256];
            double amplitude = 0;
            for (int i = 0; i < n; i++) {
                double shape = round % 3 == 0 ? test_uniform(&state) : gauss(&state);
                x[i] = (float)ldexp(shape + (round % 5 == 4 ? 3 : 0), round % 16 - 8);
                amplitude = fmax(amplitude, fabs(x[i]));
            }
            worst = fmax(worst, sqrt(squared_error(t, x, n) / n) / amplitude);
        }
        if (!(worst <= level(t)))
            printf("# %s: %g of %g\n", dtype_info(TYPES[t].type)->name, worst, level(t));
        CHECK(worst <= level(t));
        CHECK(worst > level(t) / 20); /* the bound is not idle */
    }
}

/* On normally distributed values, where nearly all weights live. */
static void test_the_search_is_better_than_plain_rounding(void)
{
    enum { N = 256 * 400 };
    unsigned long long state = 5;
    float *x = malloc(N * sizeof(float));
    for (int i = 0; i < N; i++)
        x[i] = (float)gauss(&state);
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        double ratio = squared_error(t, x, N) / plain_error(t, x, N);
        CHECK(ratio <= (TYPES[t].scale_levels ? 1.0 : 1.03)); /* Q4_0 and Q5_0 cut the far end's code */
    }
    free(x);
}

/* What the format can hold exactly must come back exactly: values made of small whole numbers. */
static void test_what_fits_is_kept(void)
{
    unsigned long long state = 6;
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        float x[256], zero[256] = {0};
        int n = TYPES[t].elements, low = TYPES[t].minimum ? 0 : -TYPES[t].step;
        int high = TYPES[t].minimum || TYPES[t].step == 127 ? TYPES[t].step : TYPES[t].step - 1;
        for (int i = 0; i < n; i++)
            x[i] = (float)(low + (int)(test_random(&state) % (unsigned)(high - low + 1)));
        for (int i = 0; i < n; i += TYPES[t].sub) { /* both ends, so that the scale is 1 everywhere */
            x[i] = (float)low;
            x[i + 1] = (float)high;
        }
        /* The super-block's scale is 1 over its largest integer scale, rounded to F16 unless it is a power of
         * two: then all values are off by that one factor. */
        double factor = TYPES[t].scale_levels && TYPES[t].minimum ? 0x1p-11 : 0,
               size = squared_error(t, zero, n);
        CHECK(size == 0);
        for (int i = 0; i < n; i++)
            size += (double)x[i] * x[i];
        CHECK(squared_error(t, x, n) <= size * factor * factor);
    }
}

static void test_values_that_are_not_numbers(void)
{
    for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
        float x[256] = {1.0f, NAN, -1.0f}, y[256];
        uint8_t bytes[256];
        uint64_t n = (uint64_t)TYPES[t].elements;
        dtype_from_f32(TYPES[t].type, x, bytes, n);
        dtype_to_f32(TYPES[t].type, bytes, y, n);
        for (uint64_t i = 0; i < n; i++) /* NaN counts as 0 */
            CHECK(fabsf(y[i] - (isnan(x[i]) ? 0.0f : x[i])) <= (float)(1.01 * level(t)));
        x[1] = INFINITY;
        dtype_from_f32(TYPES[t].type, x, bytes, n);
        dtype_to_f32(TYPES[t].type, bytes, y, n);
        CHECK(!isfinite(y[1]));
        x[1] = 1e30f; /* beyond F16 */
        dtype_from_f32(TYPES[t].type, x, bytes, n);
        dtype_to_f32(TYPES[t].type, bytes, y, n);
        CHECK(!isfinite(y[1]));
        for (uint64_t i = 0; i < n; i++)
            x[i] = i % 2 ? 1e-38f : -1e-44f; /* below F16, and below normal floats */
        dtype_from_f32(TYPES[t].type, x, bytes, n);
        dtype_to_f32(TYPES[t].type, bytes, y, n);
        for (uint64_t i = 0; i < n; i++)
            CHECK(y[i] == 0.0f);
    }
}

/* ggml's reference rounding, by hand: -8 is the largest, so the scale is 1; halves go up; +8 is cut to 7. */
static void test_the_reference_rounding_of_q4_0(void)
{
    float x[32] = {-8.0f, 8.0f, 0.5f, -0.5f, 7.4f, 7.6f, -7.5f, 2.49f};
    static const int EXPECTED[8] = {-8, 7, 1, 0, 7, 7, -7, 2};
    float y[32];
    struct block_q4_0 block;
    dtype_from_f32(DTYPE_Q4_0, x, &block, 32);
    CHECK_INT(block.scale, 0x3C00);
    dtype_to_f32(DTYPE_Q4_0, &block, y, 32);
    for (int i = 0; i < 8; i++)
        CHECK_INT(y[i], EXPECTED[i]);
    x[0] = 7.9f; /* now +8 is the largest: the scale turns negative, and +8 is kept */
    dtype_from_f32(DTYPE_Q4_0, x, &block, 32);
    CHECK_INT(block.scale, 0xBC00);
    dtype_to_f32(DTYPE_Q4_0, &block, y, 32);
    CHECK_INT(y[1], 8);
    CHECK_INT(y[6], -7);
}

int main(void)
{
    TEST(test_random_blocks, "every block type reads random bytes as its definition does, to the bit");
    TEST(test_extreme_scales, "every block type reads every class of scale as its definition does");
    TEST(test_every_bit_counts, "every bit of a block changes what is read");
    TEST(test_blocks_of_every_size_come_back_within_the_level,
         "quantised blocks come back within the level of their format");
    TEST(test_the_search_is_better_than_plain_rounding,
         "the search of the K types beats plain rounding with real scales");
    TEST(test_what_fits_is_kept, "values that a format holds exactly come back exactly");
    TEST(test_values_that_are_not_numbers,
         "NaN is written as 0; infinity and values beyond F16 never come back as a number");
    TEST(test_the_reference_rounding_of_q4_0, "Q4_0 rounds as ggml's reference does");
    return test_result();
}
