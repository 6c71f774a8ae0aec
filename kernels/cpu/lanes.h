/* lanes: the one order of additions of every long sum on the CPU. Sixteen partial sums run side by side, lane
 * j taking the elements k with k mod 16 = j in ascending order; at the end the upper half is folded onto the
 * lower until one is left:
 *
 *   k:     0  1 .. 15 | 16 17 .. 31 | 32 ..          lane j += x[k] * w[k]
 *   fold:  j += j+8,  j += j+4,  j += j+2,  j += j+1
 *
 * Sixteen is the width of the widest registers in use and a multiple of all others, so every machine can run
 * this order at full speed with the same bits. Functions here are inlined into the clones that call them. */
#ifndef LEPTON_KERNELS_CPU_LANES_H
#define LEPTON_KERNELS_CPU_LANES_H

#include <stdint.h>

#include "kernels/cpu/clones.h"

#define LANES         16
#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE float lanes_fold(float lane[LANES])
{
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            lane[j] += lane[j + width];
    return lane[0];
}

ALWAYS_INLINE float lanes_sum(const float *x, int64_t n)
{
    float lane[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += x[k + j];
    for (int j = 0; k + j < n; j++)
        lane[j] += x[k + j];
    return lanes_fold(lane);
}

ALWAYS_INLINE float lanes_dot(const float *restrict a, const float *restrict b, int64_t n)
{
    float lane[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += a[k + j] * b[k + j];
    for (int j = 0; k + j < n; j++)
        lane[j] += a[k + j] * b[k + j];
    return lanes_fold(lane);
}

#endif
