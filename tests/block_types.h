/* block_types: the element types by definition, element by element in double, from the published layouts:
 * byte offsets and all, sharing nothing with the code under test. */
#ifndef LEPTON_TESTS_BLOCK_TYPES_H
#define LEPTON_TESTS_BLOCK_TYPES_H

#include <math.h>
#include <string.h>

#include "kernels/dtype.h"

/* The value of F16 bits by definition (IEEE 754 binary16). */
static inline double f16_at(const uint8_t *p)
{
    unsigned h = (unsigned)p[0] | (unsigned)p[1] << 8;
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    double magnitude = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                       : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                      : ldexp(fraction, -24);
    return h >> 15 ? -magnitude : magnitude;
}

static inline double q8_0_element(const uint8_t *p, int i)
{
    return f16_at(p) * (double)(int8_t)p[2 + i];
}

/* Nibble i of `low`: the low halves are the first sixteen elements. */
static inline int nibble(const uint8_t *low, int i)
{
    return i < 16 ? low[i] % 16 : low[i - 16] / 16;
}

static inline int bit(const uint8_t *bits, int i)
{
    return bits[i / 8] >> i % 8 & 1;
}

static inline double q4_0_element(const uint8_t *p, int i)
{
    return f16_at(p) * (nibble(p + 2, i) - 8);
}

static inline double q4_1_element(const uint8_t *p, int i)
{
    return f16_at(p) * nibble(p + 4, i) + f16_at(p + 2);
}

static inline double q5_0_element(const uint8_t *p, int i)
{
    return f16_at(p) * (nibble(p + 6, i) + 16 * bit(p + 2, i) - 16);
}

static inline double q5_1_element(const uint8_t *p, int i)
{
    return f16_at(p) * (nibble(p + 8, i) + 16 * bit(p + 4, i)) + f16_at(p + 2);
}

/* scales 16, q 64, scale at 80, minimum at 82 */
static inline double q2_k_element(const uint8_t *p, int i)
{
    int q = p[16 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
    return f16_at(p + 80) * (p[i / 16] % 16) * q - f16_at(p + 82) * (p[i / 16] / 16);
}

/* high 32, q 64, scales at 96, scale at 108 */
static inline double q3_k_element(const uint8_t *p, int i)
{
    int j = i / 16, q = p[32 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
    int third = p[i % 32] >> i / 32 & 1;
    int scale = (j < 8 ? p[96 + j] % 16 : p[96 + j - 8] / 16) + 16 * (p[104 + j % 4] >> 2 * (j / 4) & 3);
    return f16_at(p + 108) * (scale - 32) * (q + 4 * third - 4);
}

/* scale, minimum, then twelve bytes of scales at 4 */
static inline double k4_line(const uint8_t *p, int j, int q)
{
    const uint8_t *s = p + 4;
    int scale = j < 4 ? s[j] % 64 : s[j + 4] % 16 + 16 * (s[j - 4] / 64);
    int minimum = j < 4 ? s[j + 4] % 64 : s[j + 4] / 16 + 16 * (s[j] / 64);
    return f16_at(p) * scale * q - f16_at(p + 2) * minimum;
}

static inline double q4_k_element(const uint8_t *p, int i)
{
    int byte = p[16 + i / 64 * 32 + i % 32];
    return k4_line(p, i / 32, i / 32 % 2 ? byte / 16 : byte % 16);
}

static inline double q5_k_element(const uint8_t *p, int i)
{
    int byte = p[48 + i / 64 * 32 + i % 32], fifth = p[16 + i % 32] >> i / 32 & 1;
    return k4_line(p, i / 32, (i / 32 % 2 ? byte / 16 : byte % 16) + 16 * fifth);
}

/* low 128, high 64, scales at 192, scale at 208 */
static inline double q6_k_element(const uint8_t *p, int i)
{
    int half = i / 128, plane = i / 32 % 4, l = i % 32;
    int byte = p[half * 64 + plane % 2 * 32 + l], low = plane < 2 ? byte % 16 : byte / 16;
    int high = p[128 + half * 32 + l] >> 2 * plane & 3;
    return f16_at(p + 208) * (double)(int8_t)p[192 + i / 16] * (low + 16 * high - 32);
}

/* Element i of a row of any type that weights have. */
static inline double element_by_definition(enum dtype type, const void *row, int64_t i)
{
    const uint8_t *p = row;
    switch (type) {
    case DTYPE_F32:
        return (double)((const float *)row)[i];
    case DTYPE_F16:
        return f16_at(p + 2 * i);
    case DTYPE_BF16: {
        float value;
        memcpy(&value, (uint8_t[]){0, 0, p[2 * i], p[2 * i + 1]}, sizeof(value));
        return (double)value;
    }
    case DTYPE_Q8_0:
        return q8_0_element(p + i / 32 * 34, (int)(i % 32));
    case DTYPE_Q4_0:
        return q4_0_element(p + i / 32 * 18, (int)(i % 32));
    case DTYPE_Q4_1:
        return q4_1_element(p + i / 32 * 20, (int)(i % 32));
    case DTYPE_Q5_0:
        return q5_0_element(p + i / 32 * 22, (int)(i % 32));
    case DTYPE_Q5_1:
        return q5_1_element(p + i / 32 * 24, (int)(i % 32));
    case DTYPE_Q2_K:
        return q2_k_element(p + i / 256 * 84, (int)(i % 256));
    case DTYPE_Q3_K:
        return q3_k_element(p + i / 256 * 110, (int)(i % 256));
    case DTYPE_Q4_K:
        return q4_k_element(p + i / 256 * 144, (int)(i % 256));
    case DTYPE_Q5_K:
        return q5_k_element(p + i / 256 * 176, (int)(i % 256));
    case DTYPE_Q6_K:
        return q6_k_element(p + i / 256 * 210, (int)(i % 256));
    default:
        die("%s is no type of weights", dtype_info(type)->name);
    }
}

#endif
