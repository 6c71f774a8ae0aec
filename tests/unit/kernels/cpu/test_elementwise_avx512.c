/* Activations, soft caps and rotary positions of the AVX-512 sets against float64, and against themselves:
 * other batches, threads and places must not show. */
#include "tests/unit/kernels/rig.h"

static const char *missing(void)
{
    struct device *device = NULL;
    struct err err;
    bool here = device_open(&device, "cpu", &(struct device_options){.kernels = "avx512vnni"}, &err) == 0;
    device_close(&device);
    return here ? NULL : "this processor has no AVX-512 VNNI";
}

#define NEED_AVX512()        \
    do {                     \
        if (missing())       \
            SKIP(missing()); \
        open_fast(&r, 2);    \
    } while (0)

static void open_fast(struct rig *r, int threads)
{
    rig_kernels = "avx512vnni";
    rig_open(r, threads);
}

/* Arguments of every size of both signs, the smallest that are not denormal and those where exp() of them is
 * denormal among them. */
static void fill_wide(struct tensor *x)
{
    int64_t n = tensor_elements(x);
    for (int64_t i = 0; i < n; i++) {
        double at = (double)(i / 2) / (double)(n / 2), size = i % 4 < 2 ? 100 * at : exp2(at * 132 - 126);
        floats(x)[i] = (float)(i % 2 ? -size : size);
    }
}

/* Units of the last place that `got` is off by; a result whose factors are denormal may be off by as many of
 * the smallest denormals. */
static double units_off(float got, double want)
{
    double off = fabs((double)got - want) - 100 * 0x1p-149;
    return off <= 0 ? 0 : off / (fabs(want) * 0x1p-23);
}

static double silu(double z)
{
    return z / (1 + exp(-z));
}

static double gelu(double z)
{
    return z / (1 + exp(-2 * sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
}

static void test_activations_are_within_units_of_the_last_place(void)
{
    static double (*const exact[])(double) = {[ACTIVATION_SILU] = silu, [ACTIVATION_GELU_TANH] = gelu};
    struct rig r;
    NEED_AVX512();
    struct tensor gate = RIG_F32(&r, 51, 2003), up = RIG_F32(&r, 51, 2003), alone = RIG_F32(&r, 51, 2003),
                  out = RIG_F32(&r, 51, 2003);
    fill_wide(&gate);
    rig_random(&r, &up);
    for (int f = ACTIVATION_SILU; f <= ACTIVATION_GELU_TANH; f++) {
        double most = 0;
        int wrong = 0;
        kernel_activate(r.stream, &alone, &gate, NULL, (enum activation)f);
        kernel_activate(r.stream, &out, &gate, &up, (enum activation)f);
        for (int64_t i = 0; i < tensor_elements(&gate); i++) {
            double off = units_off(floats(&alone)[i], exact[f]((double)floats(&gate)[i]));
            wrong += !(off <= 4);
            most = off > most ? off : most;
            wrong += !(floats(&out)[i] == floats(&alone)[i] * floats(&up)[i]);
        }
        CHECK_INT(wrong, 0);
        printf("# %s: at most %.2f units\n", f == ACTIVATION_SILU ? "silu" : "gelu", most);
    }
    rig_close(&r);
}

static void test_the_soft_cap_is_within_units_of_the_last_place(void)
{
    struct rig r;
    NEED_AVX512();
    struct tensor x = RIG_F32(&r, 51, 2003), capped = RIG_F32(&r, 51, 2003);
    double most = 0;
    int wrong = 0;
    fill_wide(&x);
    memcpy(capped.data, x.data, tensor_bytes(&x));
    kernel_softcap(r.stream, &capped, 30.0f);
    for (int64_t i = 0; i < tensor_elements(&x); i++) {
        double off = units_off(floats(&capped)[i], 30 * tanh((double)floats(&x)[i] / 30));
        wrong += !(off <= 6);
        most = off > most ? off : most;
    }
    CHECK_INT(wrong, 0);
    printf("# softcap: at most %.2f units\n", most);
    rig_close(&r);
}

/* At every place of a row, so that all lanes and the tail get them. */
static void test_nan_and_infinity_reach_their_element_alone(void)
{
    struct rig r;
    NEED_AVX512();
    for (int64_t at = 0; at < 37; at++)
        for (int f = ACTIVATION_SILU; f <= ACTIVATION_GELU_TANH; f++) {
            struct tensor gate = RIG_F32(&r, 1, 37), out = RIG_F32(&r, 1, 37), capped = RIG_F32(&r, 1, 37);
            rig_random(&r, &gate);
            floats(&gate)[at] = NAN;
            memcpy(capped.data, gate.data, tensor_bytes(&gate));
            kernel_activate(r.stream, &out, &gate, NULL, (enum activation)f);
            kernel_softcap(r.stream, &capped, 3.0f);
            for (int64_t i = 0; i < 37; i++) {
                CHECK(isnan(floats(&out)[i]) == (i == at));
                CHECK(isnan(floats(&capped)[i]) == (i == at));
            }
            floats(&gate)[at] = floats(&capped)[at] = INFINITY;
            kernel_activate(r.stream, &out, &gate, NULL, (enum activation)f);
            kernel_softcap(r.stream, &capped, 3.0f);
            CHECK(floats(&out)[at] == INFINITY && floats(&capped)[at] == 3.0f);
            floats(&gate)[at] = -200.0f;
            floats(&capped)[at] = -INFINITY;
            kernel_activate(r.stream, &out, &gate, NULL, (enum activation)f);
            kernel_softcap(r.stream, &capped, 3.0f);
            CHECK(floats(&out)[at] == 0.0f && floats(&capped)[at] == -3.0f);
        }
    rig_close(&r);
}

/* Every row of a batch on its own, on other threads, has the bits it has in the batch; so have results that
 * stand where their inputs stood. */
static void test_batches_threads_and_places_do_not_show(void)
{
    enum { T = 37, F = 2051 };
    struct rig r;
    NEED_AVX512();
    struct tensor gate = RIG_F32(&r, T, F), up = RIG_F32(&r, T, F), out = RIG_F32(&r, T, F),
                  capped = RIG_F32(&r, T, F);
    rig_random(&r, &gate);
    rig_random(&r, &up);
    for (int f = ACTIVATION_SILU; f <= ACTIVATION_GELU_TANH; f++) {
        kernel_activate(r.stream, &out, &gate, &up, (enum activation)f);
        memcpy(capped.data, gate.data, tensor_bytes(&gate));
        kernel_softcap(r.stream, &capped, 2.0f);
        for (int threads = 1; threads <= 3; threads++) {
            struct rig other;
            open_fast(&other, threads);
            struct tensor g = RIG_F32(&other, T, F), u = RIG_F32(&other, T, F), c = RIG_F32(&other, T, F);
            memcpy(g.data, gate.data, tensor_bytes(&g));
            memcpy(u.data, up.data, tensor_bytes(&u));
            memcpy(c.data, gate.data, tensor_bytes(&c));
            for (int64_t t = 0; threads == 1 && t < T; t++) {
                struct tensor one = tensor_rows(&g, t, 1), by = tensor_rows(&u, t, 1),
                              cap = tensor_rows(&c, t, 1);
                kernel_activate(other.stream, &one, &one, &by, (enum activation)f);
                kernel_softcap(other.stream, &cap, 2.0f);
            }
            if (threads > 1) {
                kernel_activate(other.stream, &g, &g, &u, (enum activation)f);
                kernel_softcap(other.stream, &c, 2.0f);
            }
            CHECK(same_bits(&g, &out));
            CHECK(same_bits(&c, &capped));
            rig_close(&other);
        }
    }
    rig_close(&r);
}

/* x turned by angles in float64; what lies past R stays as it was. */
static int count_wrong_turns(const struct tensor *x, const struct tensor *before,
                             const struct tensor *positions, const struct tensor *frequency,
                             enum rope_pairs pairs, float magnitude)
{
    int64_t heads = x->dim[1], D = x->dim[2], R = 2 * frequency->dim[0];
    int wrong = 0;
    for (int64_t row = 0; row < x->dim[0] * heads; row++) {
        const float *a = floats(before) + row * D, *b = floats(x) + row * D;
        for (int64_t i = 0; i < R / 2; i++) {
            int64_t first = pairs == ROPE_INTERLEAVED ? 2 * i : i;
            int64_t second = pairs == ROPE_INTERLEAVED ? 2 * i + 1 : i + R / 2;
            double angle = (double)ints(positions)[row / heads] * (double)floats(frequency)[i];
            double c = cos(angle) * (double)magnitude, s = sin(angle) * (double)magnitude;
            double bound = 4 * 0x1p-24 * (double)magnitude * (fabs(a[first]) + fabs(a[second]));
            wrong += !(fabs(b[first] - (a[first] * c - a[second] * s)) <= bound);
            wrong += !(fabs(b[second] - (a[first] * s + a[second] * c)) <= bound);
        }
        for (int64_t i = R; i < D; i++)
            wrong += a[i] != b[i];
    }
    return wrong;
}

static void check_rope(struct rig *r, enum rope_pairs pairs, int64_t D, int64_t R, float magnitude)
{
    enum { T = 300, HEADS = 5 };
    struct tensor x = RIG_F32(r, T, HEADS, D), before = RIG_F32(r, T, HEADS, D);
    struct tensor positions = RIG_I32(r, T), frequency = RIG_F32(r, R / 2);
    rig_random(r, &before);
    memcpy(x.data, before.data, tensor_bytes(&x));
    for (int64_t t = 0; t < T; t++)
        ints(&positions)[t] = (int32_t)(t * t * 11); /* up to 983000 */
    for (int64_t i = 0; i < R / 2; i++)
        floats(&frequency)[i] = (float)pow(10000.0, -2.0 * (double)i / (double)R);
    kernel_rope(r->stream, &x, &positions, &frequency, pairs, magnitude);
    CHECK_INT(count_wrong_turns(&x, &before, &positions, &frequency, pairs, magnitude), 0);
    for (int64_t t = 0; t < T; t++) {
        struct tensor one = tensor_rows(&before, t, 1), at = tensor_rows(&positions, t, 1);
        kernel_rope(r->stream, &one, &at, &frequency, pairs, magnitude);
    }
    CHECK(same_bits(&x, &before));
}

static void test_rope_turns_pairs_alone_as_in_a_batch(void)
{
    static const struct {
        int64_t D, R;
        float magnitude;
    } CASES[] = {{64, 64, 1.0f},  {128, 128, 1.0f}, {10, 6, 1.25f},
                 {41, 40, 0.75f}, {80, 32, 1.0f},   {2, 2, 1}};
    struct rig r;
    NEED_AVX512();
    for (size_t i = 0; i < ARRAY_LEN(CASES); i++) {
        check_rope(&r, ROPE_INTERLEAVED, CASES[i].D, CASES[i].R, CASES[i].magnitude);
        check_rope(&r, ROPE_HALVES, CASES[i].D, CASES[i].R, CASES[i].magnitude);
    }
    rig_close(&r);
}

static void test_rope_threads_do_not_show(void)
{
    enum { T = 200, HEADS = 4, D = 64 };
    static float first[T * HEADS * D];
    for (int threads = 1; threads <= 3; threads++) {
        struct rig r;
        if (missing())
            SKIP(missing());
        open_fast(&r, threads);
        struct tensor x = RIG_F32(&r, T, HEADS, D), at = RIG_I32(&r, T), frequency = RIG_F32(&r, D / 2);
        rig_random(&r, &x);
        for (int t = 0; t < T; t++)
            ints(&at)[t] = 7 * t;
        for (int i = 0; i < D / 2; i++)
            floats(&frequency)[i] = ldexpf(1.0f, -i);
        kernel_rope(r.stream, &x, &at, &frequency, ROPE_HALVES, 1.0f);
        if (threads == 1)
            memcpy(first, x.data, sizeof(first));
        CHECK(memcmp(first, x.data, sizeof(first)) == 0);
        rig_close(&r);
    }
}

int main(void)
{
    TEST(test_activations_are_within_units_of_the_last_place,
         "silu and gelu are within four units of the last place");
    TEST(test_the_soft_cap_is_within_units_of_the_last_place,
         "the soft cap is within six units of the last place");
    TEST(test_nan_and_infinity_reach_their_element_alone, "NaN and infinity reach their element alone");
    TEST(test_batches_threads_and_places_do_not_show, "batches, threads and places do not show in the bits");
    TEST(test_rope_turns_pairs_alone_as_in_a_batch, "rope turns pairs, a row alone as in a batch");
    TEST(test_rope_threads_do_not_show, "threads do not show in rope's bits");
    return test_result();
}
