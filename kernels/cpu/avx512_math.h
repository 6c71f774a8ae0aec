/* avx512_math: elementary functions of sixteen floats, for files of the AVX-512 sets alone. Each lane is
 * computed by the same operations in the same order wherever it stands, so that neither the length of a row
 * nor the cut of a range shows in its bits. NaN stays NaN. */
#ifndef LEPTON_KERNELS_CPU_AVX512_MATH_H
#define LEPTON_KERNELS_CPU_AVX512_MATH_H

#include "kernels/cpu/avx512.h"

#define AVX512_NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

/* 2^n * exp(r), n whole, |r| <= ln2 / 2: Taylor to degree 6. */
AVX512_INLINE __m512 avx512_exp_reduced(__m512 n, __m512 r)
{
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* x less the multiple of ln 2 nearest to it, which is *n times it (Cody & Waite 1980). */
AVX512_INLINE __m512 avx512_off_ln2(__m512 x, __m512 *n)
{
    *n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), AVX512_NEAREST);
    __m512 r = _mm512_fnmadd_ps(*n, _mm512_set1_ps(0.693359375f), x);
    return _mm512_fnmadd_ps(*n, _mm512_set1_ps(-2.12194440e-4f), r);
}

/* exp(x) for x <= 0: error below 2 units of the last place. */
AVX512_INLINE __m512 avx512_exp(__m512 x)
{
    __m512 n, r = avx512_off_ln2(_mm512_max_ps(_mm512_set1_ps(-104.0f), x), &n);
    return avx512_exp_reduced(n, r);
}

/* 2^x for x <= 0, near enough to the least normal number below -126; 1 for 0: error below 2 units of the last
 * place. x = floor(x) + r; the polynomial has the least greatest relative error on [0, 1], 2e-9, among those
 * that begin with 1 (Remez 1934). */
AVX512_INLINE __m512 avx512_exp2(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0x1.c54174p-13f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.46d64ep-10f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.3d0b92p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c68912p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebfd58p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e42cp-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}

#endif
