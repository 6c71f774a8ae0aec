#include "tests/unit/kernels/rig.h"

static void test_loss_follows_the_definition(void)
{
    struct rig r;
    rig_open(&r, 2);
    const int64_t T = 7, V = 503;
    struct tensor logits = RIG_F32(&r, T, V), targets = RIG_I32(&r, T), nll = RIG_F32(&r, T);
    rig_random(&r, &logits);
    for (int64_t i = 0; i < T * V; i++)
        floats(&logits)[i] *= 300.0f; /* exp of these overflows unless the highest is taken off */
    for (int64_t t = 0; t < T; t++)
        ints(&targets)[t] = (int32_t)(t * 71);
    kernel_token_loss(r.stream, &nll, &logits, &targets);
    for (int64_t t = 0; t < T; t++) {
        long double sum = 0.0L;
        for (int64_t i = 0; i < V; i++)
            sum += expl((long double)floats(&logits)[t * V + i]);
        double expected = (double)(logl(sum) - (long double)floats(&logits)[t * V + t * 71]);
        CHECK_NEAR(floats(&nll)[t], expected, 1e-6 * fabs(expected) + 1e-6);
    }
    rig_close(&r);
}

static void test_loss_of_a_row_with_nan_is_nan(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct tensor logits = RIG_F32(&r, 2, 9), targets = RIG_I32(&r, 2), nll = RIG_F32(&r, 2);
    rig_random(&r, &logits);
    ints(&targets)[0] = ints(&targets)[1] = 3;
    floats(&logits)[9 + 5] = NAN;
    kernel_token_loss(r.stream, &nll, &logits, &targets);
    CHECK(!isnan(floats(&nll)[0]) && isnan(floats(&nll)[1]));
    rig_close(&r);
}

int main(void)
{
    TEST(test_loss_follows_the_definition, "the loss follows the definition where exp would overflow");
    TEST(test_loss_of_a_row_with_nan_is_nan, "the loss of a row with NaN is NaN");
    return test_result();
}
