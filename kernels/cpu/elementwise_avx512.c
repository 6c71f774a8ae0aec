/* elementwise_avx512: activations, the logits' soft cap and rotary positions with AVX-512: what the portable
 * reference computes in double, in single precision (angles excepted), within a few units of the last place.
 *
 * Only what showed in the time of a step is here: the reference's norms, additions and page writes already
 * run at the speed of memory. For the same reason nothing is fused with its neighbours: a SwiGLU that is
 * bound by memory costs about two hundredths of the three products around it. */
#include "kernels/cpu/fast.h"

#include <math.h>

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx512_math.h"

#define TARGET AVX512_TARGET
#define INLINE AVX512_INLINE

/* Elements below which waking a thread costs more than it saves: some ten microseconds of work. */
#define GRAIN 32768

struct elements {
    float *out;
    const float *gate, *up;
    enum activation f;
    float cap;
};

/* ---- activations: both are z / (1 + exp(-a)) with a of z's sign; with e = exp(-|a|), which cannot overflow,
 * that is z / (1 + e) for z >= 0 and z e / (1 + e) below. */

INLINE __m512 gated(__m512 z, __m512 e)
{
    __mmask16 below = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_mul_ps(z, below, z, e), _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

INLINE __m512 silu(__m512 z)
{
    return gated(z, avx512_exp(_mm512_or_ps(z, _mm512_set1_ps(-0.0f))));
}

/* -|a| of eight z, a = 2 sqrt(2 / pi) (z + 0.044715 z^3): as *n ln 2 plus the result. In double: an error of
 * a is a relative error of exp(a). */
INLINE __m512d gelu_exponent(__m512d z, __m512d *n)
{
    __m512d cubic = _mm512_fmadd_pd(_mm512_mul_pd(z, z), _mm512_set1_pd(0.044715), _mm512_set1_pd(1.0));
    __m512d a = _mm512_mul_pd(_mm512_mul_pd(z, _mm512_set1_pd(1.5957691216057308)), cubic);
    a = _mm512_max_pd(_mm512_set1_pd(-104.0), _mm512_or_pd(a, _mm512_set1_pd(-0.0)));
    *n = _mm512_roundscale_pd(_mm512_mul_pd(a, _mm512_set1_pd(1.4426950408889634)), AVX512_NEAREST);
    return _mm512_fnmadd_pd(*n, _mm512_set1_pd(0.6931471805599453), a);
}

INLINE __m512 join(__m512d low, __m512d high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}

INLINE __m512 gelu_tanh(__m512 z)
{
    __m512d n[2], low = gelu_exponent(_mm512_cvtps_pd(_mm512_castps512_ps256(z)), &n[0]);
    __m512d high = gelu_exponent(_mm512_cvtps_pd(_mm512_extractf32x8_ps(z, 1)), &n[1]);
    return gated(z, avx512_exp_reduced(join(n[0], n[1]), join(low, high)));
}

#define ACTIVATE_RANGE(NAME, FUNCTION)                                            \
    TARGET static void NAME(const struct elements *e, int64_t begin, int64_t end) \
    {                                                                             \
        for (int64_t i = begin; i < end; i += 16) {                               \
            __mmask16 there = avx512_first(end - i);                              \
            __m512 y = FUNCTION(_mm512_maskz_loadu_ps(there, e->gate + i));       \
            if (e->up)                                                            \
                y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(there, e->up + i));    \
            _mm512_mask_storeu_ps(e->out + i, there, y);                          \
        }                                                                         \
    }

ACTIVATE_RANGE(silu_range, silu)
ACTIVATE_RANGE(gelu_tanh_range, gelu_tanh)

static void activate_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    (void)member;
    if (e->f == ACTIVATION_SILU)
        silu_range(e, begin, end);
    else
        gelu_tanh_range(e, begin, end);
}

void fast_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                   enum activation f)
{
    struct elements e = {.out = out->data, .gate = gate->data, .up = up ? up->data : NULL, .f = f};
    team_for(cpu_team(s), tensor_elements(out), GRAIN, activate_body, &e);
}

/* ---- softcap */

/* tanh |x| = m / (m + 2), m = exp(2 |x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1): without the cancellation that
 * 1 - exp() has for small x. */
INLINE __m512 tanh_ps(__m512 x)
{
    const __m512 sign = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1.0f);
    __m512 twice = _mm512_mul_ps(_mm512_andnot_ps(sign, x), _mm512_set1_ps(2.0f));
    __m512 n, r = avx512_off_ln2(_mm512_min_ps(_mm512_set1_ps(40.0f), twice), &n);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r);
    __m512 power = _mm512_scalef_ps(one, n);
    __m512 m = _mm512_fmadd_ps(power, p, _mm512_sub_ps(power, one));
    __m512 t = _mm512_div_ps(m, _mm512_add_ps(m, _mm512_set1_ps(2.0f)));
    return _mm512_or_ps(t, _mm512_and_ps(x, sign));
}

TARGET static void softcap_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct elements *e = context;
    const __m512 cap = _mm512_set1_ps(e->cap);
    (void)member;
    for (int64_t i = begin; i < end; i += 16) {
        __mmask16 there = avx512_first(end - i);
        __m512 x = _mm512_div_ps(_mm512_maskz_loadu_ps(there, e->out + i), cap);
        _mm512_mask_storeu_ps(e->out + i, there, _mm512_mul_ps(cap, tanh_ps(x)));
    }
}

void fast_softcap(struct stream *s, struct tensor *x, float cap)
{
    struct elements e = {.out = x->data, .cap = cap};
    team_for(cpu_team(s), tensor_elements(x), GRAIN, softcap_body, &e);
}

/* ---- rope. Cosines and sines of a row are made once, in double, and serve all its heads. */

struct rope {
    struct team *team;
    float *x;
    const int32_t *positions;
    const float *frequency;
    int64_t heads, D, count; /* count: pairs of a head */
    enum rope_pairs pairs;
    float magnitude;
};

/* The reduction of fixed_sincos (fixed_math.h), angle = k pi/2 + r, |r| <= pi/4, with fused multiply-add and
 * as many terms as a float can show: within 1e-11 absolute for angles below 2^22. */
INLINE void sincos_pd(__m512d angle, __m512d *sine, __m512d *cosine)
{
    __m512d k =
        _mm512_roundscale_pd(_mm512_mul_pd(angle, _mm512_set1_pd(0x1.45f306dc9c883p-1)), AVX512_NEAREST);
    __m512d r = _mm512_fnmadd_pd(k, _mm512_set1_pd(0x1.921fb54400000p+0), angle);
    r = _mm512_fnmadd_pd(k, _mm512_set1_pd(0x1.0b4611a600000p-34), r);
    r = _mm512_fnmadd_pd(k, _mm512_set1_pd(0x1.3198a2e037073p-69), r);
    __m512d z = _mm512_mul_pd(r, r), s = _mm512_set1_pd(-1.0 / 39916800.0);
    s = _mm512_fmadd_pd(s, z, _mm512_set1_pd(1.0 / 362880.0));
    s = _mm512_fmadd_pd(s, z, _mm512_set1_pd(-1.0 / 5040.0));
    s = _mm512_fmadd_pd(s, z, _mm512_set1_pd(1.0 / 120.0));
    s = _mm512_fmadd_pd(s, z, _mm512_set1_pd(-1.0 / 6.0));
    s = _mm512_fmadd_pd(_mm512_mul_pd(z, s), r, r);
    __m512d c = _mm512_set1_pd(1.0 / 479001600.0);
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(-1.0 / 3628800.0));
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(1.0 / 40320.0));
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(-1.0 / 720.0));
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(1.0 / 24.0));
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(-0.5));
    c = _mm512_fmadd_pd(c, z, _mm512_set1_pd(1.0));
    __m512i quadrant = _mm512_cvtpd_epi64(k), two = _mm512_set1_epi64(2);
    __mmask8 odd = _mm512_test_epi64_mask(quadrant, _mm512_set1_epi64(1));
    __m512i flip_s = _mm512_slli_epi64(_mm512_and_si512(quadrant, two), 62);
    __m512i flip_c =
        _mm512_slli_epi64(_mm512_and_si512(_mm512_add_epi64(quadrant, _mm512_set1_epi64(1)), two), 62);
    *sine = _mm512_xor_pd(_mm512_mask_blend_pd(odd, s, c), _mm512_castsi512_pd(flip_s));
    *cosine = _mm512_xor_pd(_mm512_mask_blend_pd(odd, c, s), _mm512_castsi512_pd(flip_c));
}

/* The two factors of each pair of a position. */
TARGET static void make_turns(const struct rope *r, int32_t position, float *cosine, float *sine)
{
    const __m512d magnitude = _mm512_set1_pd((double)r->magnitude), at = _mm512_set1_pd((double)position);
    for (int64_t i = 0; i < r->count; i += 8) {
        __mmask8 there = (__mmask8)avx512_first(r->count - i);
        __m512d s, c, f = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(there, r->frequency + i));
        sincos_pd(_mm512_mul_pd(at, f), &s, &c);
        _mm256_mask_storeu_ps(cosine + i, there, _mm512_cvtpd_ps(_mm512_mul_pd(c, magnitude)));
        _mm256_mask_storeu_ps(sine + i, there, _mm512_cvtpd_ps(_mm512_mul_pd(s, magnitude)));
    }
}

TARGET static void turn_halves(const struct rope *r, float *x, const float *cosine, const float *sine)
{
    for (int64_t i = 0; i < r->count; i += 16) {
        __mmask16 there = avx512_first(r->count - i);
        __m512 c = _mm512_maskz_loadu_ps(there, cosine + i), s = _mm512_maskz_loadu_ps(there, sine + i);
        for (int64_t h = 0; h < r->heads; h++) {
            float *low = x + h * r->D + i, *high = low + r->count;
            __m512 a = _mm512_maskz_loadu_ps(there, low), b = _mm512_maskz_loadu_ps(there, high);
            _mm512_mask_storeu_ps(low, there, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(high, there, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
        }
    }
}

/* Eight pairs at a time: (a, b) c + (-b, a) s. */
TARGET static void turn_interleaved(const struct rope *r, float *x, const float *cosine, const float *sine)
{
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int64_t i = 0; i < r->count; i += 8) {
        __mmask16 pairs = avx512_first(r->count - i) & 0xFF, there = avx512_first(2 * (r->count - i));
        __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, cosine + i));
        __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, sine + i));
        for (int64_t h = 0; h < r->heads; h++) {
            float *at = x + h * r->D + 2 * i;
            __m512 ab = _mm512_maskz_loadu_ps(there, at), ba = _mm512_permute_ps(ab, 0xB1);
            _mm512_mask_storeu_ps(at, there, _mm512_fmaddsub_ps(ab, c, _mm512_mul_ps(ba, s)));
        }
    }
}

static void rope_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct rope *r = context;
    float *cosine = team_scratch(r->team, member, sizeof(float) * 2 * (size_t)r->count);
    float *sine = cosine + r->count;
    for (int64_t t = begin; t < end; t++) {
        float *x = r->x + t * r->heads * r->D;
        make_turns(r, r->positions[t], cosine, sine);
        if (r->pairs == ROPE_INTERLEAVED)
            turn_interleaved(r, x, cosine, sine);
        else
            turn_halves(r, x, cosine, sine);
    }
}

void fast_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
               const struct tensor *frequency, enum rope_pairs pairs, float magnitude)
{
    struct rope r = {.team = cpu_team(s),
                     .x = x->data,
                     .positions = positions->data,
                     .frequency = frequency->data,
                     .heads = x->dim[1],
                     .D = x->dim[2],
                     .count = frequency->dim[0],
                     .pairs = pairs,
                     .magnitude = magnitude};
    team_for(r.team, x->dim[0], 1 + GRAIN / (r.heads * r.D + 1), rope_body, &r);
}
#endif
