/* fixed_math: exponential, sine and cosine as a written sequence of additions and multiplications, so that
 * they give the same bits on every machine, libc and compiler, and vectorise where they stand in a loop. The
 * C library's do not: glibc picks versions with fused multiply-add by processor and changes them by release,
 * which would split the CPU's numeric class (design I7) without a word.
 *
 * Range reduction after Cody & Waite (1980), then Taylor polynomials on the reduced range, all in double:
 * within a few units of 2^-52 relative for exp, of 2^-45 absolute for sine and cosine of angles below 2^22.
 */
#ifndef LEPTON_KERNELS_CPU_FIXED_MATH_H
#define LEPTON_KERNELS_CPU_FIXED_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/lanes.h"

/* Adding it rounds a double below 2^51 to an integer, which then stands in the low bits of the sum. */
#define ROUND_MAGIC 0x1.8p52

ALWAYS_INLINE uint64_t fixed_bits(double d)
{
    uint64_t bits;
    memcpy(&bits, &d, sizeof(bits));
    return bits;
}

/* exp(x): 0 below -708 (no subnormal results), infinity above 709; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(x) = 2^n * sum r^k / k!. */
ALWAYS_INLINE double fixed_exp(double x)
{
    double d = x > 710.0 ? 710.0 : x < -710.0 ? -710.0 : x;
    double shifted = d * 0x1.71547652b82fep+0 + ROUND_MAGIC; /* 1 / ln 2 */
    double n = shifted - ROUND_MAGIC;
    double r = (d - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33; /* ln 2 in two parts */
    double p = 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t scale_bits = (fixed_bits(shifted) + 1023) << 52;
    double scale, result;
    memcpy(&scale, &scale_bits, sizeof(scale));
    result = p * scale;
    result = x > 709.0 ? (double)INFINITY : result;
    return x < -708.0 ? 0.0 : result;
}

ALWAYS_INLINE float fixed_expf(float x)
{
    return (float)fixed_exp((double)x);
}

/* Sine and cosine of an angle below 2^22 in size: angle = k pi/2 + r, |r| <= pi/4. */
ALWAYS_INLINE void fixed_sincos(double angle, double *sine, double *cosine)
{
    double shifted = angle * 0x1.45f306dc9c883p-1 + ROUND_MAGIC; /* 2 / pi */
    double k = shifted - ROUND_MAGIC;
    /* pi / 2 in three parts of which k times the first two is exact */
    double r = ((angle - k * 0x1.921fb54400000p+0) - k * 0x1.0b4611a600000p-34) - k * 0x1.3198a2e037073p-69;
    double z = r * r;
    double s = -1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * (z * s);
    double c = 1.0 / 20922789888000.0;
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = c * z + 1.0;
    uint64_t quadrant = fixed_bits(shifted) & 3;
    double first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
    *sine = quadrant & 2 ? -first : first;
    *cosine = (quadrant + 1) & 2 ? -second : second;
}

#endif
