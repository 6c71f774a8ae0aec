/* quant: the block types, read. One function per type turns whole blocks into floats.
 *
 * The loops run over the bytes of a block in their order, so that the compiler turns them into vectors. Every
 * product is exact in float (F16 has 11 significant bits, s at most 7, q at most 6: 24 together), and a
 * minimum costs one rounding; so the bits are the same on every machine, fused or not. A scale that is
 * infinite or NaN gives what the definition gives: infinity or NaN.
 *
 * K types store q in planes: a group of elements shares one run of bytes, each element taking other bits of
 * it:
 *
 *   q2_k, q3_k   half h (128 elements), plane p:  element 128h + 32p + l  is bits 2p, 2p+1 of q[32h + l]
 *   q3_k         its third bit                    is bit 4h + p of high[l]
 *   q4_k, q5_k   pair p (64 elements):            element 64p + l       is the low half of q[32p + l]
 *                                                 element 64p + 32 + l  is the high half
 *   q5_k         its fifth bit                    is bit 2p (low half) or 2p + 1 (high half) of high[l]
 *   q6_k         half h, plane p:                 element 128h + 32p + l  is half p / 2 of low[64h + 32(p %
 * 2) + l], and bits 2p, 2p+1 of high[32h + l] above it
 */
#include "kernels/quant.h"

#include "kernels/cpu/clones.h"
#include "kernels/half.h"

#define PLANE 32 /* elements that lie side by side */

static inline uint32_t high_bits(const uint8_t high[4])
{
    return (uint32_t)high[0] | (uint32_t)high[1] << 8 | (uint32_t)high[2] << 16 | (uint32_t)high[3] << 24;
}

CPU_CLONES static void q8_0_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q8_0 *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++, dst += QUANT_BLOCK) {
        float scale = widen_f16(block->scale);
        for (int i = 0; i < QUANT_BLOCK; i++)
            dst[i] = scale * (float)block->q[i];
    }
}

CPU_CLONES static void q4_0_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q4_0 *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++, dst += QUANT_BLOCK) {
        float scale = widen_f16(block->scale);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[i] = scale * (float)((block->low[i] & 15) - 8);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[QUANT_BLOCK / 2 + i] = scale * (float)((block->low[i] >> 4) - 8);
    }
}

CPU_CLONES static void q4_1_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q4_1 *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++, dst += QUANT_BLOCK) {
        float scale = widen_f16(block->scale), minimum = widen_f16(block->minimum);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[i] = scale * (float)(block->low[i] & 15) + minimum;
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[QUANT_BLOCK / 2 + i] = scale * (float)(block->low[i] >> 4) + minimum;
    }
}

CPU_CLONES static void q5_0_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q5_0 *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++, dst += QUANT_BLOCK) {
        float scale = widen_f16(block->scale);
        uint32_t high = high_bits(block->high);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[i] = scale * (float)((int)((block->low[i] & 15u) | (high >> i & 1u) << 4) - 16);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[QUANT_BLOCK / 2 + i] =
                scale * (float)((int)((uint32_t)(block->low[i] >> 4) | (high >> (i + 16) & 1u) << 4) - 16);
    }
}

CPU_CLONES static void q5_1_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q5_1 *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++, dst += QUANT_BLOCK) {
        float scale = widen_f16(block->scale), minimum = widen_f16(block->minimum);
        uint32_t high = high_bits(block->high);
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[i] = scale * (float)(int)((block->low[i] & 15u) | (high >> i & 1u) << 4) + minimum;
        for (int i = 0; i < QUANT_BLOCK / 2; i++)
            dst[QUANT_BLOCK / 2 + i] =
                scale * (float)(int)((uint32_t)(block->low[i] >> 4) | (high >> (i + 16) & 1u) << 4) + minimum;
    }
}

CPU_CLONES static void q2_k_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q2_k *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++) {
        float scale = widen_f16(block->scale), minimum = widen_f16(block->minimum);
        for (int plane = 0; plane < QUANT_SUPER / PLANE; plane++)
            for (int side = 0; side < 2; side++, dst += 16) {
                const uint8_t *q = block->q + plane / 4 * PLANE + side * 16;
                uint8_t both = block->scales[plane * 2 + side];
                float s = scale * (float)(both & 15), m = minimum * (float)(both >> 4);
                int shift = plane % 4 * 2;
                for (int l = 0; l < 16; l++)
                    dst[l] = s * (float)(q[l] >> shift & 3) - m;
            }
    }
}

/* Sixteen numbers of 6 bits in 12 bytes: the low halves of numbers 0 to 7 in the low halves of bytes 0 to 7,
 * of numbers 8 to 15 in the high ones; their upper two bits, four numbers to a byte, in bytes 8 to 11. */
static inline void unpack_q3_k(const uint8_t packed[12], int scale[16])
{
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
        int high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        scale[j] = (low | high << 4) - 32;
    }
}

CPU_CLONES static void q3_k_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q3_k *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++) {
        float scale = widen_f16(block->scale);
        int part[16];
        unpack_q3_k(block->scales, part);
        for (int plane = 0; plane < QUANT_SUPER / PLANE; plane++)
            for (int side = 0; side < 2; side++, dst += 16) {
                const uint8_t *q = block->q + plane / 4 * PLANE + side * 16, *high = block->high + side * 16;
                float s = scale * (float)part[plane * 2 + side];
                int shift = plane % 4 * 2;
                for (int l = 0; l < 16; l++)
                    dst[l] = s * (float)((q[l] >> shift & 3) + (high[l] >> plane & 1) * 4 - 4);
            }
    }
}

/* Eight scales and eight minimums of 6 bits in 12 bytes: numbers 0 to 3 are the low six bits of bytes 0 to 3
 * (scales) and 4 to 7 (minimums); the upper two bits of those bytes belong to numbers 4 to 7, whose low four
 * bits are the low (scales) and high (minimums) halves of bytes 8 to 11. */
static inline void unpack_q4_k(const uint8_t packed[12], int scale[8], int minimum[8])
{
    for (int j = 0; j < 4; j++) {
        scale[j] = packed[j] & 63;
        minimum[j] = packed[4 + j] & 63;
        scale[4 + j] = (packed[8 + j] & 15) | packed[j] >> 6 << 4;
        minimum[4 + j] = packed[8 + j] >> 4 | packed[4 + j] >> 6 << 4;
    }
}

CPU_CLONES static void q4_k_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q4_k *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++) {
        float scale = widen_f16(block->scale), minimum = widen_f16(block->minimum);
        int s[8], m[8];
        unpack_q4_k(block->scales, s, m);
        for (int pair = 0; pair < 4; pair++, dst += 2 * PLANE) {
            const uint8_t *q = block->q + pair * PLANE;
            float s0 = scale * (float)s[2 * pair], m0 = minimum * (float)m[2 * pair];
            float s1 = scale * (float)s[2 * pair + 1], m1 = minimum * (float)m[2 * pair + 1];
            for (int l = 0; l < PLANE; l++)
                dst[l] = s0 * (float)(q[l] & 15) - m0;
            for (int l = 0; l < PLANE; l++)
                dst[PLANE + l] = s1 * (float)(q[l] >> 4) - m1;
        }
    }
}

CPU_CLONES static void q5_k_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q5_k *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++) {
        float scale = widen_f16(block->scale), minimum = widen_f16(block->minimum);
        int s[8], m[8];
        unpack_q4_k(block->scales, s, m);
        for (int pair = 0; pair < 4; pair++, dst += 2 * PLANE) {
            const uint8_t *q = block->q + pair * PLANE, *high = block->high;
            float s0 = scale * (float)s[2 * pair], m0 = minimum * (float)m[2 * pair];
            float s1 = scale * (float)s[2 * pair + 1], m1 = minimum * (float)m[2 * pair + 1];
            for (int l = 0; l < PLANE; l++)
                dst[l] = s0 * (float)((q[l] & 15) | (high[l] >> (2 * pair) & 1) << 4) - m0;
            for (int l = 0; l < PLANE; l++)
                dst[PLANE + l] = s1 * (float)(q[l] >> 4 | (high[l] >> (2 * pair + 1) & 1) << 4) - m1;
        }
    }
}

CPU_CLONES static void q6_k_row(const void *restrict src, float *restrict dst, uint64_t blocks)
{
    const struct block_q6_k *block = src;
    for (uint64_t b = 0; b < blocks; b++, block++) {
        float scale = widen_f16(block->scale);
        for (int plane = 0; plane < QUANT_SUPER / PLANE; plane++)
            for (int side = 0; side < 2; side++, dst += 16) {
                int half = plane / 4, shift_low = plane % 4 / 2 * 4, shift_high = plane % 4 * 2;
                const uint8_t *low = block->low + half * 64 + plane % 2 * PLANE + side * 16;
                const uint8_t *high = block->high + half * PLANE + side * 16;
                float s = scale * (float)block->scales[plane * 2 + side];
                for (int l = 0; l < 16; l++)
                    dst[l] =
                        s * (float)(((low[l] >> shift_low & 15) | (high[l] >> shift_high & 3) << 4) - 32);
            }
    }
}

void quant_to_f32(enum dtype type, const void *src, float *dst, uint64_t blocks)
{
    static void (*const ROW[DTYPE_COUNT])(const void *restrict, float *restrict, uint64_t) = {
        [DTYPE_Q8_0] = q8_0_row, [DTYPE_Q4_0] = q4_0_row, [DTYPE_Q4_1] = q4_1_row, [DTYPE_Q5_0] = q5_0_row,
        [DTYPE_Q5_1] = q5_1_row, [DTYPE_Q2_K] = q2_k_row, [DTYPE_Q3_K] = q3_k_row, [DTYPE_Q4_K] = q4_k_row,
        [DTYPE_Q5_K] = q5_k_row, [DTYPE_Q6_K] = q6_k_row,
    };
    ASSERT((unsigned)type < DTYPE_COUNT && ROW[type]);
    ROW[type](src, dst, blocks);
}
