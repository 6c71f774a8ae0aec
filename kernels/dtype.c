/* dtype: the table of element types, and the conversions of plain types; block types are quant.c's. It knows
 * nothing of tensors or devices. */
#include "kernels/dtype.h"

#include <string.h>

#include "kernels/cpu/clones.h"
#include "kernels/half.h"
#include "kernels/quant.h"

/* Bits of a code times elements, the scales of sub-blocks, and F16 numbers. */
_Static_assert(sizeof(struct block_q8_0) == 8 * 32 / 8 + 2, "q8_0: scale");
_Static_assert(sizeof(struct block_q4_0) == 4 * 32 / 8 + 2, "q4_0: scale");
_Static_assert(sizeof(struct block_q4_1) == 4 * 32 / 8 + 4, "q4_1: scale, minimum");
_Static_assert(sizeof(struct block_q5_0) == 5 * 32 / 8 + 2, "q5_0: scale");
_Static_assert(sizeof(struct block_q5_1) == 5 * 32 / 8 + 4, "q5_1: scale, minimum");
_Static_assert(sizeof(struct block_q2_k) == 2 * 256 / 8 + 16 * 8 / 8 + 4, "q2_k: 16 of 4 + 4 bits");
_Static_assert(sizeof(struct block_q3_k) == 3 * 256 / 8 + 16 * 6 / 8 + 2, "q3_k: 16 of 6 bits");
_Static_assert(sizeof(struct block_q4_k) == 4 * 256 / 8 + 8 * 12 / 8 + 4, "q4_k: 8 of 6 + 6 bits");
_Static_assert(sizeof(struct block_q5_k) == 5 * 256 / 8 + 8 * 12 / 8 + 4, "q5_k: 8 of 6 + 6 bits");
_Static_assert(sizeof(struct block_q6_k) == 6 * 256 / 8 + 16 * 8 / 8 + 2, "q6_k: 16 of 8 bits");

#define BLOCK_TYPE(name_, elements, struct_, number)                                      \
    {                                                                                     \
        .name = name_, .block_elements = elements, .block_bytes = sizeof(struct struct_), \
        .ggml_type = number                                                               \
    }

static const struct dtype_info TYPES[DTYPE_COUNT] = {
    [DTYPE_F32] = {.name = "f32", .block_elements = 1, .block_bytes = 4, .ggml_type = 0},
    [DTYPE_F16] = {.name = "f16", .block_elements = 1, .block_bytes = 2, .ggml_type = 1},
    [DTYPE_BF16] = {.name = "bf16", .block_elements = 1, .block_bytes = 2, .ggml_type = 30},
    [DTYPE_I32] = {.name = "i32", .block_elements = 1, .block_bytes = 4, .ggml_type = 26},
    [DTYPE_Q8_0] = BLOCK_TYPE("q8_0", QUANT_BLOCK, block_q8_0, 8),
    [DTYPE_Q4_0] = BLOCK_TYPE("q4_0", QUANT_BLOCK, block_q4_0, 2),
    [DTYPE_Q4_1] = BLOCK_TYPE("q4_1", QUANT_BLOCK, block_q4_1, 3),
    [DTYPE_Q5_0] = BLOCK_TYPE("q5_0", QUANT_BLOCK, block_q5_0, 6),
    [DTYPE_Q5_1] = BLOCK_TYPE("q5_1", QUANT_BLOCK, block_q5_1, 7),
    [DTYPE_Q2_K] = BLOCK_TYPE("q2_k", QUANT_SUPER, block_q2_k, 10),
    [DTYPE_Q3_K] = BLOCK_TYPE("q3_k", QUANT_SUPER, block_q3_k, 11),
    [DTYPE_Q4_K] = BLOCK_TYPE("q4_k", QUANT_SUPER, block_q4_k, 12),
    [DTYPE_Q5_K] = BLOCK_TYPE("q5_k", QUANT_SUPER, block_q5_k, 13),
    [DTYPE_Q6_K] = BLOCK_TYPE("q6_k", QUANT_SUPER, block_q6_k, 14),
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
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
    case DTYPE_Q2_K:
    case DTYPE_Q3_K:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
        quant_to_f32(type, src, dst, elements / TYPES[type].block_elements);
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
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
    case DTYPE_Q2_K:
    case DTYPE_Q3_K:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
        quant_from_f32(type, src, dst, elements / TYPES[type].block_elements);
        return;
    case DTYPE_I32:
    case DTYPE_COUNT:
        break;
    }
    ASSERT(!"a type that floats are not converted to");
}
