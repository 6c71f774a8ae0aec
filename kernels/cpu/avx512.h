/* avx512: what the kernels written with AVX-512 share. Included by files of the AVX-512 sets alone. */
#ifndef LEPTON_KERNELS_CPU_AVX512_H
#define LEPTON_KERNELS_CPU_AVX512_H

#include <immintrin.h>

#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define AVX512_INLINE \
    static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))

/* The first n of sixteen lanes. */
AVX512_INLINE __mmask16 avx512_first(int64_t n)
{
    return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* to[column][stride] = row[..][column]: sixteen registers of sixteen lanes turned. */
AVX512_INLINE void avx512_turn(const __m512 row[16], __m512 to[16])
{
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512d low = _mm512_castps_pd(a[i + h]), high = _mm512_castps_pd(a[i + h + 2]);
            b[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 p = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), q = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
        __m512 r = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88),
               s = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
        to[i] = _mm512_shuffle_f32x4(p, r, 0x88);
        to[i + 4] = _mm512_shuffle_f32x4(q, s, 0x88);
        to[i + 8] = _mm512_shuffle_f32x4(p, r, 0xDD);
        to[i + 12] = _mm512_shuffle_f32x4(q, s, 0xDD);
    }
}

#endif
