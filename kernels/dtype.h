/* dtype: element types of tensors and the exact meaning of their bytes.
 *
 * Block types (Q8_0 and the rest of the ggml family) store `block_elements` consecutive elements of a row
 * in `block_bytes` bytes; a row of a block type always holds a whole number of blocks. Source of the block
 * formats: ggml's published GGUF/ggml-quants definitions. */
#ifndef LEPTON_KERNELS_DTYPE_H
#define LEPTON_KERNELS_DTYPE_H

#include "common/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_I32,
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_COUNT,
};

struct dtype_info {
    const char *name;        /* "f32", "q8_0": as in --type and in messages */
    uint32_t block_elements; /* 1 for plain types */
    uint32_t block_bytes;
    int ggml_type; /* number in a GGUF tensor record, -1 when it has none */
};

/* The block types. Scales (`scale`, `minimum`) are F16 bits; q is the stored code of an element, a number
 * from 0 to 2^bits - 1 unless said otherwise. Nothing is padded: dtype.c asserts every size.
 *
 * Types of 32 elements. Element i < 16 has the low half of byte low[i], element i + 16 its high half; a fifth
 * bit is bit i of `high`, read as a little-endian number. */
#define Q8_0_BLOCK  32 /* elements of every _0 and _1 type */
#define QUANT_BLOCK Q8_0_BLOCK

/* value = scale * q, q signed */
struct block_q8_0 {
    uint16_t scale;
    int8_t q[Q8_0_BLOCK];
};
/* value = scale * (q - 8) */
struct block_q4_0 {
    uint16_t scale;
    uint8_t low[QUANT_BLOCK / 2];
};
/* value = scale * q + minimum */
struct block_q4_1 {
    uint16_t scale, minimum;
    uint8_t low[QUANT_BLOCK / 2];
};
/* value = scale * (q - 16) */
struct block_q5_0 {
    uint16_t scale;
    uint8_t high[4];
    uint8_t low[QUANT_BLOCK / 2];
};
/* value = scale * q + minimum */
struct block_q5_1 {
    uint16_t scale, minimum;
    uint8_t high[4];
    uint8_t low[QUANT_BLOCK / 2];
};

/* K types: 256 elements in sub-blocks of 16 or 32, each with a small integer scale s (and minimum m) of its
 * own. How codes and scales are packed is written where they are read, in quant.c. */
#define QUANT_SUPER 256

/* value = scale * s * q - minimum * m; 16 x 16 elements; s the low, m the high half of a byte of `scales` */
struct block_q2_k {
    uint8_t scales[QUANT_SUPER / 16];
    uint8_t q[QUANT_SUPER / 4];
    uint16_t scale, minimum;
};
/* value = scale * (s - 32) * (q - 4); 16 x 16 elements; s of 6 bits; the third bit of q in `high` */
struct block_q3_k {
    uint8_t high[QUANT_SUPER / 8];
    uint8_t q[QUANT_SUPER / 4];
    uint8_t scales[12];
    uint16_t scale;
};
/* value = scale * s * q - minimum * m; 8 x 32 elements; s and m of 6 bits */
struct block_q4_k {
    uint16_t scale, minimum;
    uint8_t scales[12];
    uint8_t q[QUANT_SUPER / 2];
};
/* value = scale * s * q - minimum * m; 8 x 32 elements; s and m of 6 bits; the fifth bit of q in `high` */
struct block_q5_k {
    uint16_t scale, minimum;
    uint8_t scales[12];
    uint8_t high[QUANT_SUPER / 8];
    uint8_t q[QUANT_SUPER / 2];
};
/* value = scale * s * (q - 32); 16 x 16 elements; s signed; the upper two bits of q in `high` */
struct block_q6_k {
    uint8_t low[QUANT_SUPER / 2];
    uint8_t high[QUANT_SUPER / 4];
    int8_t scales[QUANT_SUPER / 16];
    uint16_t scale;
};

const struct dtype_info *dtype_info(enum dtype type);
/* Finds a type by name ("q8_0") or by GGUF number; false when there is none. */
bool dtype_from_name(const char *name, enum dtype *out);
bool dtype_from_ggml(uint32_t number, enum dtype *out);
/* Bytes of a row of `elements`; -1 when it is no whole number of blocks or does not fit 64 bits. */
int dtype_row_bytes(enum dtype type, uint64_t elements, uint64_t *bytes);

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value); /* round to nearest even; overflow gives infinity */
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value); /* round to nearest even; NaN stays NaN */

/* Converts `elements` values (a whole number of blocks) to or from float. Dequantising gives the float next
 * to the value as defined above: every product is exact, so a type without a minimum is exact and one with a
 * minimum is rounded once. Quantising is deterministic; how scales are chosen is told in quant_fit.c. */
void dtype_to_f32(enum dtype type, const void *src, float *dst, uint64_t elements);
void dtype_from_f32(enum dtype type, const float *src, void *dst, uint64_t elements);

#ifdef __cplusplus
}
#endif
#endif
