/* panel_avx512: numbers of 32 bits turned on their side with AVX-512: sixteen rows of sixteen numbers at a
 * time stand in sixteen registers.
 *
 *   pairs, then fours inside each quarter of the registers        quarters among the registers
 *
 *   a0 a1 a2 a3 ..    a0 b0 a1 b1     a0 b0 c0 d0                  a0..p0
 *   b0 b1 b2 b3 ..    a2 b2 a3 b3     a1 b1 c1 d1                  a1..p1
 *   c0 ..             c0 d0 c1 d1     a2 b2 c2 d2                  ...
 */
#include "kernels/cpu/fast.h"

#include "kernels/cpu/panel.h"

#ifdef CPU_HAS_FAST
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))

TARGET static inline __attribute__((always_inline)) void turn16(__m512i v[16])
{
    __m512i t[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512i ab_low = _mm512_unpacklo_epi32(v[i], v[i + 1]),
                ab_high = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        __m512i cd_low = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]),
                cd_high = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
        t[i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        t[i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        t[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        t[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    /* t[4g + i]: quarter q holds number 4q + i of rows 4g .. 4g + 3 */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i even01 = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88); /* quarters 0, 2 of both */
        __m512i odd01 = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xDD);
        __m512i even23 = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
        __m512i odd23 = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xDD);
        v[i] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        v[8 + i] = _mm512_shuffle_i32x4(even01, even23, 0xDD);
        v[4 + i] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        v[12 + i] = _mm512_shuffle_i32x4(odd01, odd23, 0xDD);
    }
}

TARGET void panel_turn_avx512(const void *from, size_t stride, int rows, int64_t count, uint32_t *out)
{
    for (int64_t d = 0; d < count; d += 16) {
        __m512i v[16];
        const char *at = (const char *)from + 4 * d;
        __mmask16 there = count - d < 16 ? (__mmask16)((1u << (count - d)) - 1) : 0xFFFF;
        if (rows == 16 && there == 0xFFFF) {
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++)
                v[r] = _mm512_loadu_si512(at + (size_t)r * stride);
        } else {
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++)
                v[r] = r < rows ? _mm512_maskz_loadu_epi32(there, at + (size_t)r * stride)
                                : _mm512_setzero_si512();
        }
        turn16(v);
        if (there == 0xFFFF) {
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                _mm512_storeu_si512(out + (d + i) * 16, v[i]);
        } else {
            for (int i = 0; i < (int)(count - d); i++)
                _mm512_storeu_si512(out + (d + i) * 16, v[i]);
        }
    }
}
#endif
