/* dtype: the table of element types and the conversions that the rest of kernels/ builds on.
 *
 * Conversions are bit arithmetic without branches, so that the compiler can vectorise the loops over rows;
 * they are exact, hence the same on every machine. It knows nothing of tensors or devices. */
#include "kernels/dtype.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/clones.h"

_Static_assert(sizeof(struct block_q8_0) == 2 + Q8_0_BLOCK, "a Q8_0 block is a scale and 32 bytes, unpadded");

static const struct dtype_info TYPES[DTYPE_COUNT] = {
    [DTYPE_F32] = {.name = "f32", .block_elements = 1, .block_bytes = 4, .ggml_type = 0},
    [DTYPE_F16] = {.name = "f16", .block_elements = 1, .block_bytes = 2, .ggml_type = 1},
    [DTYPE_BF16] = {.name = "bf16", .block_elements = 1, .block_bytes = 2, .ggml_type = 30},
    [DTYPE_I32] = {.name = "i32", .block_elements = 1, .block_bytes = 4, .ggml_type = 26},
    [DTYPE_Q8_0] = {.name = "q8_0",
                    .block_elements = Q8_0_BLOCK,
                    .block_bytes = sizeof(struct block_q8_0),
                    .ggml_type = 8},
};

const struct dtype_info *dtype_info(enum dtype type)
{
    ASSERT((unsigned)type < DTYPE_COUNT);
    return &TYPES[type];
}

bool dtype_from_name(const char *name, enum dtype *out)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(TYPES[i].name, name) == 0) {
            *out = (enum dtype)i;
            return true;
        }
    }
    return false;
}

bool dtype_from_ggml(uint32_t number, enum dtype *out)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (TYPES[i].ggml_type >= 0 && (uint32_t)TYPES[i].ggml_type == number) {
            *out = (enum dtype)i;
            return true;
        }
    }
    return false;
}

int dtype_row_bytes(enum dtype type, uint64_t elements, uint64_t *bytes)
{
    const struct dtype_info *info = dtype_info(type);
    if (elements % info->block_elements != 0)
        return -1;
    return checked_mul_u64(elements / info->block_elements, info->block_bytes, bytes) ? 0 : -1;
}

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

float f16_to_f32(uint16_t bits)
{
    return widen_f16(bits);
}

uint16_t f32_to_f16(float value)
{
    return narrow_f16(value);
}

float bf16_to_f32(uint16_t bits)
{
    return widen_bf16(bits);
}

uint16_t f32_to_bf16(float value)
{
    return narrow_bf16(value);
}

CPU_CLONES static void f16_row(const uint16_t *restrict src, float *restrict dst, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        dst[i] = widen_f16(src[i]);
}

CPU_CLONES static void bf16_row(const uint16_t *restrict src, float *restrict dst, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        dst[i] = widen_bf16(src[i]);
}

/* scale has 11 significant bits and q 8: the product is exact in float. */
CPU_CLONES static void q8_0_row(const struct block_q8_0 *restrict src, float *restrict dst, uint64_t blocks)
{
    for (uint64_t b = 0; b < blocks; b++) {
        float scale = widen_f16(src[b].scale);
        for (int i = 0; i < Q8_0_BLOCK; i++)
            dst[b * Q8_0_BLOCK + i] = scale * (float)src[b].q[i];
    }
}

void dtype_to_f32(enum dtype type, const void *src, float *dst, uint64_t elements)
{
    ASSERT(elements % dtype_info(type)->block_elements == 0);
    switch (type) {
    case DTYPE_F32:
        memcpy(dst, src, elements * sizeof(float));
        return;
    case DTYPE_F16:
        f16_row(src, dst, elements);
        return;
    case DTYPE_BF16:
        bf16_row(src, dst, elements);
        return;
    case DTYPE_I32:
        for (uint64_t i = 0; i < elements; i++)
            dst[i] = (float)((const int32_t *)src)[i];
        return;
    case DTYPE_Q8_0:
        q8_0_row(src, dst, elements / Q8_0_BLOCK);
        return;
    case DTYPE_COUNT:
        break;
    }
    ASSERT(!"a type without a conversion");
}

CPU_CLONES static void narrow_f16_row(const float *restrict src, uint16_t *restrict dst, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        dst[i] = narrow_f16(src[i]);
}

/* As ggml's quantize_row_q8_0: the inverse of the unrounded scale multiplies; the rounded scale is stored. A
 * value that is not finite has no place in the format: NaN becomes 0, infinity makes the block's scale
 * infinite. */
static void quantize_q8_0(const float *x, struct block_q8_0 *block)
{
    float highest = 0.0f;
    for (int i = 0; i < Q8_0_BLOCK; i++)
        highest = fmaxf(highest, fabsf(x[i]));
    float scale = highest / 127.0f;
    float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    block->scale = narrow_f16(scale);
    for (int i = 0; i < Q8_0_BLOCK; i++) {
        float q = roundf(x[i] * inverse);
        block->q[i] = (int8_t)(q >= 127.0f ? 127.0f : q <= -127.0f ? -127.0f : isnan(q) ? 0.0f : q);
    }
}

void dtype_from_f32(enum dtype type, const float *src, void *dst, uint64_t elements)
{
    ASSERT(elements % dtype_info(type)->block_elements == 0);
    switch (type) {
    case DTYPE_F32:
        memcpy(dst, src, elements * sizeof(float));
        return;
    case DTYPE_F16:
        narrow_f16_row(src, dst, elements);
        return;
    case DTYPE_BF16:
        for (uint64_t i = 0; i < elements; i++)
            ((uint16_t *)dst)[i] = narrow_bf16(src[i]);
        return;
    case DTYPE_Q8_0:
        for (uint64_t b = 0; b < elements / Q8_0_BLOCK; b++)
            quantize_q8_0(src + b * Q8_0_BLOCK, (struct block_q8_0 *)dst + b);
        return;
    case DTYPE_I32:
    case DTYPE_COUNT:
        break;
    }
    ASSERT(!"a type that floats are not converted to");
}
