#include "tests/unit/kernels/rig.h"

static void test_rmsnorm_follows_the_definition(void)
{
    static const int64_t WIDTHS[] = {1, 5, 16, 33, 2048, 2051};
    struct rig r;
    rig_open(&r, 2);
    for (size_t i = 0; i < ARRAY_LEN(WIDTHS); i++) {
        const int64_t T = 9, C = WIDTHS[i];
        struct tensor x = RIG_F32(&r, T, C), gain = RIG_F32(&r, C), out = RIG_F32(&r, T, C);
        rig_random(&r, &x);
        rig_random(&r, &gain);
        kernel_rmsnorm(r.stream, &out, &x, &gain, 1e-5f);
        for (int64_t t = 0; t < T; t++) {
            double sum = 0.0;
            for (int64_t c = 0; c < C; c++)
                sum += (double)floats(&x)[t * C + c] * (double)floats(&x)[t * C + c];
            double inverse = 1.0 / sqrt(sum / (double)C + (double)1e-5f);
            int wrong = 0;
            for (int64_t c = 0; c < C; c++) {
                double expected = (double)floats(&x)[t * C + c] * inverse * (double)floats(&gain)[c];
                wrong += !(fabs(floats(&out)[t * C + c] - expected) <= 1e-6 + 1e-6 * fabs(expected));
            }
            CHECK_INT(wrong, 0);
        }
        struct tensor row_x = tensor_rows(&x, 7, 1), row = RIG_F32(&r, 1, C), same = tensor_rows(&out, 7, 1);
        kernel_rmsnorm(r.stream, &row, &row_x, &gain, 1e-5f); /* alone: the same bits */
        CHECK(same_bits(&row, &same));
        kernel_rmsnorm(r.stream, &x, &x, &gain, 1e-5f); /* in place: the same bits */
        CHECK(same_bits(&x, &out));
    }
    rig_close(&r);
}

static void test_rmsnorm_passes_nan_on(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct tensor x = RIG_F32(&r, 2, 20), gain = RIG_F32(&r, 20), out = RIG_F32(&r, 2, 20);
    rig_random(&r, &x);
    rig_random(&r, &gain);
    floats(&x)[25] = NAN;
    kernel_rmsnorm(r.stream, &out, &x, &gain, 1e-5f);
    for (int c = 0; c < 20; c++)
        CHECK(!isnan(floats(&out)[c]) && isnan(floats(&out)[20 + c]));
    rig_close(&r);
}

static void test_layernorm_follows_the_definition(void)
{
    static const int64_t WIDTHS[] = {1, 5, 16, 33, 2048, 2051};
    struct rig r;
    rig_open(&r, 2);
    for (size_t i = 0; i < ARRAY_LEN(WIDTHS); i++)
        for (int biased = 0; biased < 2; biased++) {
            const int64_t T = 9, C = WIDTHS[i];
            struct tensor x = RIG_F32(&r, T, C), gain = RIG_F32(&r, C), bias = RIG_F32(&r, C);
            struct tensor out = RIG_F32(&r, T, C), none = {0};
            rig_random(&r, &x);
            rig_random(&r, &gain);
            rig_random(&r, &bias);
            for (int64_t j = 0; j < T * C; j++)
                floats(&x)[j] += 20.0f; /* a mean far from 0: squares minus the squared mean would cancel */
            kernel_layernorm(r.stream, &out, &x, &gain, biased ? &bias : &none, 1e-5f);
            int wrong = 0;
            for (int64_t t = 0; t < T; t++) {
                double mean = 0.0, variance = 0.0;
                for (int64_t c = 0; c < C; c++)
                    mean += (double)floats(&x)[t * C + c] / (double)C;
                for (int64_t c = 0; c < C; c++)
                    variance += pow((double)floats(&x)[t * C + c] - mean, 2.0) / (double)C;
                for (int64_t c = 0; c < C; c++) {
                    double expected = ((double)floats(&x)[t * C + c] - mean) /
                                      sqrt(variance + (double)1e-5f) * (double)floats(&gain)[c];
                    expected += biased ? (double)floats(&bias)[c] : 0.0;
                    /* C = 1: the difference is the mean's rounding alone */
                    wrong += !(fabs((double)floats(&out)[t * C + c] - expected) <= 1e-5);
                }
            }
            CHECK_INT(wrong, 0);
            struct tensor row_x = tensor_rows(&x, 7, 1), row = RIG_F32(&r, 1, C);
            struct tensor same = tensor_rows(&out, 7, 1);
            kernel_layernorm(r.stream, &row, &row_x, &gain, biased ? &bias : NULL, 1e-5f); /* alone */
            CHECK(same_bits(&row, &same));
            kernel_layernorm(r.stream, &x, &x, &gain, biased ? &bias : NULL, 1e-5f); /* in place */
            CHECK(same_bits(&x, &out));
        }
    rig_close(&r);
}

static void test_layernorm_passes_nan_on(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct tensor x = RIG_F32(&r, 2, 20), gain = RIG_F32(&r, 20), out = RIG_F32(&r, 2, 20);
    rig_random(&r, &x);
    rig_random(&r, &gain);
    floats(&x)[25] = NAN;
    kernel_layernorm(r.stream, &out, &x, &gain, NULL, 1e-5f);
    for (int c = 0; c < 20; c++)
        CHECK(!isnan(floats(&out)[c]) && isnan(floats(&out)[20 + c]));
    rig_close(&r);
}

int main(void)
{
    TEST(test_rmsnorm_follows_the_definition,
         "rmsnorm follows the definition, alone, in a batch and in place");
    TEST(test_layernorm_follows_the_definition,
         "layernorm follows the definition, alone, in a batch and in place");
    TEST(test_layernorm_passes_nan_on, "layernorm passes NaN on to its row alone");
    TEST(test_rmsnorm_passes_nan_on, "rmsnorm passes NaN on to its row alone");
    return test_result();
}
