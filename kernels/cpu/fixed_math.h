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
#include <stdbool.h>
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

ALWAYS_INLINE double fixed_of(uint64_t bits)
{
    double d;
    memcpy(&d, &bits, sizeof(d));
    return d;
}

/* All ones for true: choices are made by masks, for the compiler does not vectorise a choice between doubles
 * unless it may ignore floating-point exceptions. */
ALWAYS_INLINE uint64_t fixed_mask(bool condition)
{
    return -(uint64_t)condition;
}

/* exp(x): 0 below -708 (no subnormal results), infinity above 709; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(x) = 2^n * sum r^k / k!. */
ALWAYS_INLINE double fixed_exp(double x)
{
    uint64_t low = fixed_mask(x < -708.0), high = fixed_mask(x > 709.0);
    double shifted = x * 0x1.71547652b82fep+0 + ROUND_MAGIC; /* 1 / ln 2 */
    double n = shifted - ROUND_MAGIC;
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33; /* ln 2 in two parts */
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
    uint64_t result = fixed_bits(p * fixed_of((fixed_bits(shifted) + 1023) << 52));
    return fixed_of((result & ~low & ~high) | (fixed_bits((double)INFINITY) & high));
}

ALWAYS_INLINE float fixed_expf(float x)
{
    return (float)fixed_exp((double)x);
}

/* The sum of exp((x[i] - highest) / temperature) for i ascending: the mass of a softmax. The exponentials of
 * a run are independent of each other and vectorise; their addition keeps its order. */
ALWAYS_INLINE double fixed_exp_sum(const float *x, int64_t n, double highest, double temperature)
{
    enum { RUN = 64 };
    double run[RUN], sum = 0.0;
    for (int64_t i = 0; i < n; i += RUN) {
        int length = n - i < RUN ? (int)(n - i) : RUN;
        for (int j = 0; j < length; j++)
            run[j] = fixed_exp(((double)x[i + j] - highest) / temperature);
        for (int j = 0; j < length; j++)
            sum += run[j];
    }
    return sum;
}

/* tanh(x) = 1 - 2 / (exp(2x) + 1): within 2^-52 absolute, far below a float's rounding where a score or a
 * logit is capped. */
ALWAYS_INLINE float fixed_tanhf(float x)
{
    return (float)(1.0 - 2.0 / (fixed_exp(2.0 * (double)x) + 1.0));
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
    uint64_t quadrant = fixed_bits(shifted), odd = fixed_mask(quadrant & 1);
    uint64_t first = (fixed_bits(s) & ~odd) | (fixed_bits(c) & odd);
    uint64_t second = (fixed_bits(c) & ~odd) | (fixed_bits(s) & odd);
    *sine = fixed_of(first ^ (quadrant & 2) << 62);
    *cosine = fixed_of(second ^ ((quadrant + 1) & 2) << 62);
}

#endif
