/* dtype: element types of tensors and the exact meaning of their bytes.
 *
 * Block types (Q8_0, and the ggml family that follows) store `block_elements` consecutive elements of a row
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
    DTYPE_COUNT,
};

struct dtype_info {
    const char *name;        /* "f32", "q8_0": as in --type and in messages */
    uint32_t block_elements; /* 1 for plain types */
    uint32_t block_bytes;
    int ggml_type; /* number in a GGUF tensor record, -1 when it has none */
};

/* Q8_0: 32 signed bytes and one F16 scale; value i = scale * q[i]. */
#define Q8_0_BLOCK 32
struct block_q8_0 {
    uint16_t scale; /* F16 bits */
    int8_t q[Q8_0_BLOCK];
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

/* Converts `elements` values (a whole number of blocks) to or from float. Dequantising is exact in float.
 * Quantising Q8_0: scale = max|x| / 127 rounded to F16, q = round-half-away(x / scale) as ggml's reference
 * does. */
void dtype_to_f32(enum dtype type, const void *src, float *dst, uint64_t elements);
void dtype_from_f32(enum dtype type, const float *src, void *dst, uint64_t elements);

#ifdef __cplusplus
}
#endif
#endif
