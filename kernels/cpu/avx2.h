/* avx2: what the kernels written with AVX2, FMA and F16C share. Included by files of the AVX2 set alone. */
#ifndef LEPTON_KERNELS_CPU_AVX2_H
#define LEPTON_KERNELS_CPU_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define AVX2_TARGET __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))

#define AVX2_LANES 8

/* The first n of eight lanes: all bits set. */
AVX2_INLINE __m256i avx2_first(int64_t n)
{
    int limit = n < 0 ? 0 : n > AVX2_LANES ? AVX2_LANES : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#endif
