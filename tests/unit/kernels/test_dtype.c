#include "kernels/dtype.h"
#include "tests/test.h"

/* The value of F16 bits by definition (IEEE 754 binary16), in double. */
static double f16_by_definition(uint16_t h)
{
    int exponent = (h >> 10) & 0x1F, fraction = h & 0x3FF;
    double sign = h & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, -24);
    return sign * ldexp(1024 + fraction, exponent - 25);
}

static bool same_float(float a, double b)
{
    return isnan(b) ? isnan(a) : a == (float)b && !signbit(a) == !signbit(b) && (double)(float)b == b;
}

static void test_every_f16_widens_to_its_value(void)
{
    int wrong = 0;
    uint16_t *all = malloc(65536 * sizeof(uint16_t));
    float *wide = malloc(65536 * sizeof(float));
    for (int i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    dtype_to_f32(DTYPE_F16, all, wide, 65536);
    for (int i = 0; i < 65536; i++) {
        double value = f16_by_definition((uint16_t)i);
        wrong += !same_float(f16_to_f32((uint16_t)i), value) || !same_float(wide[i], value);
    }
    CHECK_INT(wrong, 0);
    free(all);
    free(wide);
}

static void test_every_f16_survives_the_round_trip(void)
{
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
        uint16_t back = f32_to_f16(f16_to_f32((uint16_t)i));
        bool nan = (i & 0x7FFF) > 0x7C00;
        wrong += nan ? (back & 0x7FFF) <= 0x7C00 || (back & 0x8000) != (i & 0x8000) : back != i;
    }
    CHECK_INT(wrong, 0);
}

/* Between two neighbours a < b of a 16-bit format: below the middle goes to a, above to b, the middle to the
 * even one. */
static void test_narrowing_f16_rounds_to_nearest_even(void)
{
    int wrong = 0;
    for (int i = 0; i < 0x7C00; i++) {
        double a = f16_by_definition((uint16_t)i);
        double b = i == 0x7BFF ? 65536.0 : f16_by_definition((uint16_t)(i + 1));
        float middle = (float)((a + b) / 2);
        uint16_t even = (uint16_t)(i & 1 ? i + 1 : i);
        wrong += f32_to_f16(middle) != even;
        wrong += f32_to_f16(-middle) != (even | 0x8000);
        wrong += f32_to_f16(nextafterf(middle, 0.0f)) != i;
        wrong += f32_to_f16(nextafterf(middle, INFINITY)) != i + 1;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(f32_to_f16(1e30f), 0x7C00);
    CHECK_INT(f32_to_f16(-INFINITY), 0xFC00);
    CHECK_INT(f32_to_f16(1e-30f), 0);
}

static void test_bf16_is_the_upper_half_of_a_float(void)
{
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
        uint32_t bits = (uint32_t)i << 16;
        float value;
        memcpy(&value, &bits, sizeof(value));
        float got = bf16_to_f32((uint16_t)i);
        wrong += memcmp(&got, &value, sizeof(got)) != 0;
        uint16_t back = f32_to_bf16(value);
        wrong += isnan(value) ? !isnan(bf16_to_f32(back)) : back != i;
        if (isnan(value) || isinf(value))
            continue;
        bits |= 0x8000; /* the middle between this value and its neighbour away from zero */
        memcpy(&value, &bits, sizeof(value));
        wrong += f32_to_bf16(value) != (uint16_t)(i & 1 ? i + 1 : i);
        wrong += f32_to_bf16(nextafterf(value, 0.0f)) != i;
        wrong += f32_to_bf16(nextafterf(value, value < 0 ? -INFINITY : INFINITY)) != (uint16_t)(i + 1);
    }
    CHECK_INT(wrong, 0);
    uint32_t low_payload = 0x7F800001u;
    float nan;
    memcpy(&nan, &low_payload, sizeof(nan));
    CHECK(isnan(bf16_to_f32(f32_to_bf16(nan))));
}

static void test_q8_0_is_scale_times_byte_for_every_scale(void)
{
    int wrong = 0;
    struct block_q8_0 block;
    for (int i = 0; i < Q8_0_BLOCK; i++)
        block.q[i] = (int8_t)(i * 8 - 128);
    block.q[31] = 127;
    for (int scale = 0; scale < 65536; scale++) {
        float out[Q8_0_BLOCK];
        block.scale = (uint16_t)scale;
        dtype_to_f32(DTYPE_Q8_0, &block, out, Q8_0_BLOCK);
        for (int i = 0; i < Q8_0_BLOCK; i++)
            wrong += !same_float(out[i], f16_by_definition((uint16_t)scale) * block.q[i]);
    }
    CHECK_INT(wrong, 0);
}

static void test_q8_0_quantises_within_half_a_step(void)
{
    unsigned long long state = 7;
    float x[Q8_0_BLOCK], y[Q8_0_BLOCK];
    struct block_q8_0 block;
    for (int round = 0; round < 1000; round++) {
        float highest = 0.0f, size = ldexpf(1.0f, round % 12 - 6);
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            x[i] = size * test_uniform(&state);
            highest = fmaxf(highest, fabsf(x[i]));
        }
        dtype_from_f32(DTYPE_Q8_0, x, &block, Q8_0_BLOCK);
        dtype_to_f32(DTYPE_Q8_0, &block, y, Q8_0_BLOCK);
        CHECK_INT(block.scale, f32_to_f16(highest / 127.0f));
        for (int i = 0; i < Q8_0_BLOCK; i++) /* half a step, and the scale's own rounding at |q| = 127 */
            CHECK_NEAR(y[i], x[i], highest / 127.0f * (0.5 + 127.0 / 2048 + 1e-3));
    }
    memset(x, 0, sizeof(x));
    dtype_from_f32(DTYPE_Q8_0, x, &block, Q8_0_BLOCK);
    CHECK_INT(block.scale, 0);
    CHECK_INT(block.q[5], 0);
}

static void test_q8_0_rounds_halves_away_from_zero(void)
{
    float x[Q8_0_BLOCK] = {127.0f, 0.5f, -0.5f, 1.5f, -2.5f, 126.5f};
    struct block_q8_0 block;
    dtype_from_f32(DTYPE_Q8_0, x, &block, Q8_0_BLOCK);
    CHECK_INT(block.scale, 0x3C00);
    const int expected[6] = {127, 1, -1, 2, -3, 127};
    for (int i = 0; i < 6; i++)
        CHECK_INT(block.q[i], expected[i]);
}

static void test_types_are_found_by_name_and_number(void)
{
    enum dtype type;
    for (int i = 0; i < DTYPE_COUNT; i++) {
        CHECK(dtype_from_name(dtype_info((enum dtype)i)->name, &type) && (int)type == i);
        CHECK(dtype_from_ggml((uint32_t)dtype_info((enum dtype)i)->ggml_type, &type) && (int)type == i);
    }
    CHECK(!dtype_from_name("q8_k", &type)); /* ggml's type for activations stands in no file */
    CHECK(!dtype_from_name("", &type));
    CHECK(!dtype_from_ggml(UINT32_MAX, &type)); /* -1 of "none" must not match */
    CHECK(!dtype_from_ggml(9, &type));
    CHECK(!dtype_from_ggml(15, &type));
}

static void test_row_bytes_refuses_parts_of_blocks_and_wraps(void)
{
    uint64_t bytes;
    CHECK_INT(dtype_row_bytes(DTYPE_Q8_0, 64, &bytes), 0);
    CHECK_INT(bytes, 68);
    CHECK_INT(dtype_row_bytes(DTYPE_Q8_0, 33, &bytes), -1);
    CHECK_INT(dtype_row_bytes(DTYPE_F32, UINT64_MAX / 2, &bytes), -1);
    CHECK_INT(dtype_row_bytes(DTYPE_Q8_0, UINT64_MAX - 31, &bytes), -1);
    CHECK_INT(dtype_row_bytes(DTYPE_BF16, 3, &bytes), 0);
    CHECK_INT(bytes, 6);
}

int main(void)
{
    TEST(test_every_f16_widens_to_its_value, "every F16 pattern widens to its value, alone and in rows");
    TEST(test_every_f16_survives_the_round_trip, "every F16 pattern survives widening and narrowing");
    TEST(test_narrowing_f16_rounds_to_nearest_even,
         "narrowing to F16 rounds to nearest even, for every pair");
    TEST(test_bf16_is_the_upper_half_of_a_float,
         "BF16 is the upper half of a float, rounded to nearest even");
    TEST(test_q8_0_is_scale_times_byte_for_every_scale,
         "Q8_0 gives exactly scale times byte, for every scale");
    TEST(test_q8_0_quantises_within_half_a_step, "Q8_0 quantises within half a step");
    TEST(test_q8_0_rounds_halves_away_from_zero, "Q8_0 rounds halves away from zero");
    TEST(test_types_are_found_by_name_and_number, "types are found by name and by GGUF number");
    TEST(test_row_bytes_refuses_parts_of_blocks_and_wraps, "row bytes refuse parts of blocks and wraps");
    return test_result();
}
