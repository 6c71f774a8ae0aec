/* half: F16 and BF16 to float and back, inline for the loops over rows and blocks; everybody else calls
 * dtype.h.
 *
 * Bit arithmetic without branches, so that the compiler can vectorise the loops; exact, hence the same on
 * every machine. */
#ifndef LEPTON_KERNELS_HALF_H
#define LEPTON_KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

static inline float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

/* The exponent and fraction move to their float places; the exponent is rebiased by 127 - 15. Infinity and
 * NaN need a second rebias. A subnormal is first read as 2^-14 * (1 + fraction), then the 2^-14 is taken off
 * again, which is exact. */
static inline float widen_f16(uint16_t h)
{
    const uint32_t exponent_mask = 0x1Fu << 23;
    uint32_t body = (uint32_t)(h & 0x7FFFu) << 13;
    uint32_t exponent = body & exponent_mask;
    uint32_t normal = body + (112u << 23);
    uint32_t special = normal + (112u << 23);
    uint32_t subnormal = bits_of(float_of(normal + (1u << 23)) - float_of(113u << 23));
    uint32_t magnitude = exponent == exponent_mask ? special : exponent == 0 ? subnormal : normal;
    return float_of(magnitude | (uint32_t)(h & 0x8000u) << 16);
}

static inline float widen_bf16(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

/* Normal results: add half of the last kept place, less one when that place is even, and let the carry run
 * into the exponent (the largest finite value rounds to infinity by itself). Subnormal results: adding 0.5
 * makes the float adder round to the place 2^-24, the smallest F16. */
static inline uint16_t narrow_f16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t sign = bits & 0x80000000u;
    uint32_t magnitude = bits ^ sign;
    uint32_t nan_or_inf = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t rounded = magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u);
    uint32_t normal = rounded >> 13;
    uint32_t out = magnitude >= (143u << 23) ? nan_or_inf : magnitude < (113u << 23) ? subnormal : normal;
    return (uint16_t)(out | sign >> 16);
}

static inline uint16_t narrow_bf16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t quiet =
        (bits >> 16) | 0x40u; /* a NaN whose payload lies in the cut bits must not become infinity */
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

#endif
