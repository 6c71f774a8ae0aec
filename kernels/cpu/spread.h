/* spread: the blocks of a panel (kernels/cpu/panel.h) as unsigned bytes and float scales, the one form that
 * the integer kernels compute with. A kernel set includes this file, so that its vectors become the set's
 * registers.
 *
 *   codes     of 32 elements: registers 0 to 7; register j, byte 4r + i = element 4j + i of row r
 *   scales, addends    [block of 32][parts][16 rows]:  value = scale * (code - offset) + addend
 *
 * Where the bits of a type stand is told in quant.c. Codes are not returned but handed to an `emit` function,
 * which stores them or multiplies them at once, in steps: as many blocks of 32 as share bytes. Who multiplies
 * may take codes `raw`, where they stand in their bytes: 1 << spread_shift() times as large. Scales are
 * exact; addends are rounded once, as everywhere. A set may define, before it includes this, SPREAD_TARGET,
 * the attribute of its instructions, and SPREAD_WIDEN(bits, out): sixteen F16, each in the low half of a
 * 32-bit lane whose upper half is zero, as floats. */
#ifndef LEPTON_KERNELS_CPU_SPREAD_H
#define LEPTON_KERNELS_CPU_SPREAD_H

#include "kernels/cpu/matmul_blocks.h"
#include "kernels/half.h"

#ifndef SPREAD_TARGET
#define SPREAD_TARGET
#endif
#ifndef SPREAD_WIDEN
static inline void spread_widen(const lanes_u16 *halves, lanes_f32 *out)
{
    for (int r = 0; r < PANEL_ROWS; r++)
        (*out)[r] = widen_f16((*halves)[r]);
}
#define SPREAD_WIDEN(halves, out) spread_widen(halves, out)
#endif

#define SPREAD_INLINE static inline __attribute__((always_inline)) SPREAD_TARGET

/* Register j of block `block` of the step. */
typedef void spread_emit(void *to, int block, int j, const lanes_u32 *codes);
#define EMIT(block, j, value)         \
    do {                              \
        lanes_u32 emitted = (value);  \
        emit(to, block, j, &emitted); \
    } while (0)

/* The scales that stand apart from the pieces of a block. */
SPREAD_INLINE void spread_apart(const uint16_t *scales, lanes_f32 *out)
{
    SPREAD_WIDEN((const lanes_u16 *)(const void *)scales, out);
}

/* A piece that holds two F16 of each row. */
SPREAD_INLINE void spread_pair(const lanes_u32 *piece, lanes_f32 *first, lanes_f32 *second)
{
    lanes_u16 low = __builtin_convertvector(*piece, lanes_u16),
              high = __builtin_convertvector(*piece >> 16, lanes_u16);
    SPREAD_WIDEN(&low, first);
    SPREAD_WIDEN(&high, second);
}

/* Byte i of each row's piece as a float. */
#define SPREAD_BYTE(piece, i) __builtin_convertvector((lanes_i32)((piece) >> (8 * (i)) & 255), lanes_f32)

/* ---- types of 32 elements: one step */

SPREAD_INLINE void spread_codes_bytes(const lanes_u32 *q, spread_emit *emit, void *to)
{
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        EMIT(0, j, q[j]);
}

/* Elements 0 to 15 in the low halves, 16 to 31 in the high ones. */
SPREAD_INLINE void spread_codes_halves(const lanes_u32 *q, spread_emit *emit, void *to)
{
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        EMIT(0, j, q[j] & 0x0F0F0F0F);
        EMIT(0, j + 4, q[j] >> 4 & 0x0F0F0F0F);
    }
}

/* The same with fifth bits. */
SPREAD_INLINE void spread_codes_fifths(const lanes_u32 *fifth, spread_emit *emit, void *to)
{
    const lanes_u32 *q = fifth + 1;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        EMIT(0, j, (q[j] & 0x0F0F0F0F) | (*fifth >> j & 0x01010101) << 4);
        EMIT(0, j + 4, (q[j] >> 4 & 0x0F0F0F0F) | (*fifth >> (j + 4) & 0x01010101) << 4);
    }
}

/* ---- types of 256 elements */

#define SUPER_BLOCKS (QUANT_SUPER / PANEL_BLOCK)

/* Pieces 0 to 3 of Q4_K and Q5_K: two F16, then eight scales and eight minima of 6 bits. */
SPREAD_INLINE void spread_scales_k(const lanes_u32 *piece, lanes_f32 *scales, lanes_f32 *addends)
{
    lanes_f32 scale, minimum;
    spread_pair(piece, &scale, &minimum);
    minimum = -minimum;
    lanes_u32 s[2] = {piece[1] & 0x3F3F3F3F, (piece[3] & 0x0F0F0F0F) | (piece[1] >> 2 & 0x30303030)};
    lanes_u32 m[2] = {piece[2] & 0x3F3F3F3F, (piece[3] >> 4 & 0x0F0F0F0F) | (piece[2] >> 2 & 0x30303030)};
#pragma GCC unroll 8
    for (int b = 0; b < SUPER_BLOCKS; b++) {
        scales[b] = scale * SPREAD_BYTE(s[b / 4], b % 4);
        addends[b] = minimum * SPREAD_BYTE(m[b / 4], b % 4);
    }
}

/* Step p of four: a pair of blocks in the halves of eight pieces. */
SPREAD_INLINE void spread_codes_q4_k(const lanes_u32 *piece, int64_t p, const bool raw, spread_emit *emit,
                                     void *to)
{
    const lanes_u32 *q = piece + 4 + p * 8;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        EMIT(0, j, q[j] & 0x0F0F0F0F);
        EMIT(1, j, raw ? q[j] & 0xF0F0F0F0 : q[j] >> 4 & 0x0F0F0F0F);
    }
}

SPREAD_INLINE void spread_codes_q5_k(const lanes_u32 *piece, int64_t p, spread_emit *emit, void *to)
{
    const lanes_u32 *high = piece + 4, *q = piece + 12 + p * 8;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        lanes_u32 fifth = high[j] >> (uint32_t)(2 * p);
        EMIT(0, j, (q[j] & 0x0F0F0F0F) | (fifth & 0x01010101) << 4);
        EMIT(1, j, (q[j] >> 4 & 0x0F0F0F0F) | (fifth & 0x02020202) << 3);
    }
}

SPREAD_INLINE void spread_scales_q6_k(const lanes_u32 *piece, const uint16_t *apart, lanes_f32 *scales)
{
    lanes_f32 scale;
    spread_apart(apart, &scale);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        lanes_i32 s = (lanes_i32)(piece[48 + i / 4] << (24 - i % 4 * 8)) >> 24;
        scales[i] = scale * __builtin_convertvector(s, lanes_f32);
    }
}

/* Step h of two: four blocks. */
SPREAD_INLINE void spread_codes_q6_k(const lanes_u32 *piece, int64_t h, spread_emit *emit, void *to)
{
    const lanes_u32 *q = piece + h * 16, *high = piece + 32 + h * 8;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        EMIT(0, j, (q[j] & 0x0F0F0F0F) | (high[j] & 0x03030303) << 4);
        EMIT(1, j, (q[8 + j] & 0x0F0F0F0F) | (high[j] & 0x0C0C0C0C) << 2);
        EMIT(2, j, (q[j] >> 4 & 0x0F0F0F0F) | (high[j] & 0x30303030));
        EMIT(3, j, (q[8 + j] >> 4 & 0x0F0F0F0F) | (high[j] >> 2 & 0x30303030));
    }
}

SPREAD_INLINE void spread_scales_q2_k(const lanes_u32 *piece, lanes_f32 *scales, lanes_f32 *addends)
{
    lanes_f32 scale, minimum;
    spread_pair(piece + 20, &scale, &minimum);
    minimum = -minimum;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        scales[i] = scale * SPREAD_BYTE(piece[i / 4] & 0x0F0F0F0F, i % 4);
        addends[i] = minimum * SPREAD_BYTE(piece[i / 4] >> 4 & 0x0F0F0F0F, i % 4);
    }
}

SPREAD_INLINE void spread_codes_q2_k(const lanes_u32 *piece, int64_t h, const bool raw, spread_emit *emit,
                                     void *to)
{
    const lanes_u32 *q = piece + 4 + h * 8;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
#pragma GCC unroll 4
        for (int plane = 0; plane < 4; plane++)
            EMIT(plane, j, raw ? q[j] & 0x03030303u << (2 * plane) : q[j] >> (2 * plane) & 0x03030303);
}

SPREAD_INLINE void spread_scales_q3_k(const lanes_u32 *piece, const uint16_t *apart, lanes_f32 *scales)
{
    lanes_f32 scale;
    spread_apart(apart, &scale);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        lanes_u32 low = piece[24 + i / 4 % 2] >> (i / 8 * 4) & 0x0F0F0F0F;
        lanes_u32 both = low | (piece[26] >> (i / 4 * 2) & 0x03030303) << 4;
        scales[i] = scale * (SPREAD_BYTE(both, i % 4) - 32.0f);
    }
}

SPREAD_INLINE void spread_codes_q3_k(const lanes_u32 *piece, int64_t h, spread_emit *emit, void *to)
{
    const lanes_u32 *q = piece + 8 + h * 8;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        lanes_u32 third = piece[j] >> (uint32_t)(4 * h);
#pragma GCC unroll 4
        for (int plane = 0; plane < 4; plane++)
            EMIT(plane, j, (q[j] >> (2 * plane) & 0x03030303) | (third >> plane & 0x01010101) << 2);
    }
}

/* ---- any type; `type` is a constant where this is inlined */

/* Blocks of 32 elements of a step. */
SPREAD_INLINE int spread_step(const enum dtype type)
{
    return type == DTYPE_Q4_K || type == DTYPE_Q5_K                         ? 2
           : type == DTYPE_Q6_K || type == DTYPE_Q2_K || type == DTYPE_Q3_K ? 4
                                                                            : 1;
}

/* Blocks of 32 elements of a block of the file. */
SPREAD_INLINE int spread_blocks(const enum dtype type)
{
    return spread_step(type) == 1 ? 1 : SUPER_BLOCKS;
}

/* Pieces of a block of the file; the table of panel.c as constants. */
SPREAD_INLINE int spread_pieces(const enum dtype type)
{
    static const uint8_t pieces[DTYPE_COUNT] = {
        [DTYPE_Q8_0] = 8,  [DTYPE_Q4_0] = 4,  [DTYPE_Q4_1] = 5,  [DTYPE_Q5_0] = 5,  [DTYPE_Q5_1] = 6,
        [DTYPE_Q2_K] = 21, [DTYPE_Q3_K] = 27, [DTYPE_Q4_K] = 36, [DTYPE_Q5_K] = 44, [DTYPE_Q6_K] = 52,
    };
    return pieces[type];
}

/* Where block b begins, and its scales where they stand apart: panel.h's arithmetic without its divisions. */
SPREAD_INLINE bool spread_in_pairs(const enum dtype type)
{
    return type == DTYPE_Q4_0 || type == DTYPE_Q5_0 || type == DTYPE_Q3_K || type == DTYPE_Q6_K;
}

SPREAD_INLINE const lanes_u32 *spread_piece(const enum dtype type, const struct panel_layout *l,
                                            const char *panel, int64_t b)
{
    size_t at = (size_t)b * l->quant_bytes;
    if (spread_in_pairs(type))
        at += (size_t)(b / 2) * PANEL_PIECE;
    return (const lanes_u32 *)(const void *)(panel + at);
}

SPREAD_INLINE const uint16_t *spread_apart_at(const enum dtype type, const struct panel_layout *l,
                                              const char *panel, int64_t b)
{
    int64_t end = l->blocks; /* of the group */
    size_t at = (size_t)b * (PANEL_PIECE / 2);
    if (spread_in_pairs(type))
        end = (b | 1) < l->blocks ? (b | 1) + 1 : l->blocks;
    at += (size_t)end * l->quant_bytes;
    return (const uint16_t *)(const void *)(panel + at);
}

/* The scales of a block of the file; `apart`: its scales behind the pieces. */
SPREAD_INLINE void spread_scales(const enum dtype type, const lanes_u32 *piece, const uint16_t *apart,
                                 lanes_f32 *scales, lanes_f32 *addends)
{
    if (type == DTYPE_Q8_0 || type == DTYPE_Q4_0 || type == DTYPE_Q5_0)
        spread_apart(apart, scales);
    else if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1)
        spread_pair(piece, scales, addends);
    else if (type == DTYPE_Q4_K || type == DTYPE_Q5_K)
        spread_scales_k(piece, scales, addends);
    else if (type == DTYPE_Q6_K)
        spread_scales_q6_k(piece, apart, scales);
    else if (type == DTYPE_Q3_K)
        spread_scales_q3_k(piece, apart, scales);
    else
        spread_scales_q2_k(piece, scales, addends);
}

/* By how many bits the codes of a block of a step are raw too far left. */
SPREAD_INLINE int spread_shift(const enum dtype type, const int block)
{
    return type == DTYPE_Q4_K ? 4 * block : type == DTYPE_Q2_K ? 2 * block : 0;
}

/* The codes of step `step` of a block of the file. */
SPREAD_INLINE void spread_codes(const enum dtype type, const lanes_u32 *piece, int64_t step, const bool raw,
                                spread_emit *emit, void *to)
{
    if (type == DTYPE_Q8_0)
        spread_codes_bytes(piece, emit, to);
    else if (type == DTYPE_Q4_0)
        spread_codes_halves(piece, emit, to);
    else if (type == DTYPE_Q4_1)
        spread_codes_halves(piece + 1, emit, to);
    else if (type == DTYPE_Q5_0)
        spread_codes_fifths(piece, emit, to);
    else if (type == DTYPE_Q5_1)
        spread_codes_fifths(piece + 1, emit, to);
    else if (type == DTYPE_Q4_K)
        spread_codes_q4_k(piece, step, raw, emit, to);
    else if (type == DTYPE_Q5_K)
        spread_codes_q5_k(piece, step, emit, to);
    else if (type == DTYPE_Q6_K)
        spread_codes_q6_k(piece, step, emit, to);
    else if (type == DTYPE_Q3_K)
        spread_codes_q3_k(piece, step, emit, to);
    else
        spread_codes_q2_k(piece, step, raw, emit, to);
}

/* ---- a run of blocks, stored */

SPREAD_INLINE void spread_store(void *to, int block, int j, const lanes_u32 *codes)
{
    ((lanes_u32 *)to)[block * SPREAD_CODES + j] = *codes;
}

/* Blocks [block, block + blocks) of 32 elements, whole blocks of the type. */
SPREAD_INLINE struct spread spread_run(const enum dtype type, const int parts, const struct panel_layout *l,
                                       const char *panel, int64_t block, int64_t blocks,
                                       const struct spread_room *room)
{
    int64_t each = spread_blocks(type), first = block / each;
    struct spread out = {room->codes, room->scales, room->addends};
    for (int64_t b = 0; b < blocks; b += each, first++) {
        const lanes_u32 *piece = spread_piece(type, l, panel, first);
        const uint16_t *apart = spread_apart_at(type, l, panel, first);
        spread_scales(type, piece, apart, room->scales + b * parts, room->addends + b * parts);
        for (int64_t step = 0; step < each / spread_step(type) && type != DTYPE_Q8_0; step++)
            spread_codes(type, piece, step, false, spread_store,
                         room->codes + (b + step * spread_step(type)) * SPREAD_CODES);
    }
    if (type == DTYPE_Q8_0)
        out.codes = spread_piece(type, l, panel, block);
    return out;
}

#undef EMIT
#endif
