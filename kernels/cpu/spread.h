/* spread: the blocks of a panel (kernels/cpu/panel.h) as unsigned bytes with float scales, the one form that
 * the integer kernels compute with. One function per type; a kernel set includes this file, so that its
 * vectors become the set's registers.
 *
 *   codes    [block of 32 elements][8][16 rows][4]: register j, byte 4r + i = element 4j + i of row r
 *   scales   [block][parts][16 rows], addends the same:  value = scale * (code - offset) + addend
 *
 * Where the bits of a type stand is told in quant.c. Scales are exact; addends are rounded once, as
 * everywhere. A set may define, before it includes this, SPREAD_TARGET, the attribute of its instructions,
 * and SPREAD_WIDEN(bits, out): sixteen F16, each in the low half of a 32-bit lane whose upper half is zero,
 * as floats. */
#ifndef LEPTON_KERNELS_CPU_SPREAD_H
#define LEPTON_KERNELS_CPU_SPREAD_H

#include "kernels/cpu/panel.h"
#include "kernels/half.h"

/* Sixteen lanes: those of the rows. */
typedef uint32_t lanes_u32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t lanes_i32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float lanes_f32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t lanes_u16 __attribute__((vector_size(32), aligned(2), may_alias));

#ifndef SPREAD_TARGET
#define SPREAD_TARGET
#endif
#ifndef SPREAD_WIDEN
static inline void spread_widen(const lanes_u32 *bits, lanes_f32 *out)
{
    for (int r = 0; r < PANEL_ROWS; r++)
        (*out)[r] = widen_f16((uint16_t)(*bits)[r]);
}
#define SPREAD_WIDEN(bits, out) spread_widen(bits, out)
#endif

#define SPREAD_CODES 8 /* registers of codes of a block */

/* A run of blocks of one panel, spread. `codes` may point into the panel where they are bytes already. */
struct spread {
    const lanes_u32 *codes;
    const lanes_f32 *scales, *addends;
};
/* Where to spread to. */
struct spread_room {
    lanes_u32 *codes;
    lanes_f32 *scales, *addends;
};
/* Blocks [block, block + blocks) of 32 elements, whole blocks of the type. */
typedef void spread_function(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                             const struct spread_room *room, struct spread *out);

#define SPREAD_INLINE static inline __attribute__((always_inline)) SPREAD_TARGET

SPREAD_INLINE const lanes_u32 *spread_pieces(const struct panel_layout *l, const char *panel, int64_t block)
{
    return (const lanes_u32 *)(const void *)(panel + (size_t)block * l->quant_bytes);
}

/* The scales of a block that stand apart. */
SPREAD_INLINE void spread_scale(const struct panel_layout *l, const char *panel, int64_t block,
                                lanes_f32 *out)
{
    const char *scales = panel + (size_t)l->blocks * l->quant_bytes;
    const lanes_u16 *at = (const lanes_u16 *)(const void *)(scales + (size_t)block * l->scale_bytes);
    lanes_u32 bits = __builtin_convertvector(*at, lanes_u32);
    SPREAD_WIDEN(&bits, out);
}

/* A piece that holds two F16 of each row. */
SPREAD_INLINE void spread_pair(const lanes_u32 *piece, lanes_f32 *first, lanes_f32 *second)
{
    lanes_u32 low = *piece & 0xFFFF, high = *piece >> 16;
    SPREAD_WIDEN(&low, first);
    SPREAD_WIDEN(&high, second);
}

/* Byte i of each row's piece as a float. */
#define SPREAD_BYTE(piece, i) __builtin_convertvector((lanes_i32)((piece) >> (8 * (i)) & 255), lanes_f32)

/* ---- types of 32 elements */

SPREAD_INLINE void spread_q8_0(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    for (int64_t b = 0; b < blocks; b++)
        spread_scale(l, panel, block + b, &room->scales[b]);
    out->codes = spread_pieces(l, panel, block);
}

/* Elements 0 to 15 in the low halves, 16 to 31 in the high ones; their fifth bits in `fifth`, where there are
 * any. */
SPREAD_INLINE void spread_halves(const lanes_u32 *q, const lanes_u32 *fifth, lanes_u32 *codes)
{
    for (int j = 0; j < 4; j++) {
        codes[j] = q[j] & 0x0F0F0F0F;
        codes[j + 4] = q[j] >> 4 & 0x0F0F0F0F;
    }
    if (fifth)
        for (int j = 0; j < 8; j++)
            codes[j] |= (*fifth >> j & 0x01010101) << 4;
}

SPREAD_INLINE void spread_q4_0(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b++) {
        spread_scale(l, panel, block + b, &room->scales[b]);
        spread_halves(spread_pieces(l, panel, block + b), NULL, room->codes + b * SPREAD_CODES);
    }
}

SPREAD_INLINE void spread_q4_1(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b++) {
        const lanes_u32 *piece = spread_pieces(l, panel, block + b);
        spread_pair(piece, &room->scales[b], &room->addends[b]);
        spread_halves(piece + 1, NULL, room->codes + b * SPREAD_CODES);
    }
}

SPREAD_INLINE void spread_q5_0(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b++) {
        const lanes_u32 *piece = spread_pieces(l, panel, block + b);
        spread_scale(l, panel, block + b, &room->scales[b]);
        spread_halves(piece + 1, piece, room->codes + b * SPREAD_CODES);
    }
}

SPREAD_INLINE void spread_q5_1(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b++) {
        const lanes_u32 *piece = spread_pieces(l, panel, block + b);
        spread_pair(piece, &room->scales[b], &room->addends[b]);
        spread_halves(piece + 2, piece + 1, room->codes + b * SPREAD_CODES);
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
    for (int b = 0; b < SUPER_BLOCKS; b++) {
        scales[b] = scale * SPREAD_BYTE(s[b / 4], b % 4);
        addends[b] = minimum * SPREAD_BYTE(m[b / 4], b % 4);
    }
}

SPREAD_INLINE void spread_q4_k(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b += SUPER_BLOCKS) {
        const lanes_u32 *piece = spread_pieces(l, panel, (block + b) / SUPER_BLOCKS);
        lanes_u32 *codes = room->codes + b * SPREAD_CODES;
        spread_scales_k(piece, room->scales + b, room->addends + b);
        for (int i = 0; i < 32; i++) {
            lanes_u32 q = piece[4 + i];
            codes[i / 8 * 16 + i % 8] = q & 0x0F0F0F0F;
            codes[i / 8 * 16 + 8 + i % 8] = q >> 4 & 0x0F0F0F0F;
        }
    }
}

SPREAD_INLINE void spread_q5_k(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b += SUPER_BLOCKS) {
        const lanes_u32 *piece = spread_pieces(l, panel, (block + b) / SUPER_BLOCKS);
        lanes_u32 *codes = room->codes + b * SPREAD_CODES;
        spread_scales_k(piece, room->scales + b, room->addends + b);
        for (int j = 0; j < SPREAD_CODES; j++) {
            lanes_u32 high = piece[4 + j];
            for (int pair = 0; pair < 4; pair++) {
                lanes_u32 q = piece[12 + pair * 8 + j];
                codes[pair * 16 + j] = (q & 0x0F0F0F0F) | (high >> (2 * pair) & 0x01010101) << 4;
                codes[pair * 16 + 8 + j] = (q >> 4 & 0x0F0F0F0F) | (high >> (2 * pair + 1) & 0x01010101) << 4;
            }
        }
    }
}

SPREAD_INLINE void spread_q6_k(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b += SUPER_BLOCKS) {
        const lanes_u32 *piece = spread_pieces(l, panel, (block + b) / SUPER_BLOCKS);
        lanes_u32 *codes = room->codes + b * SPREAD_CODES;
        lanes_f32 scale;
        spread_scale(l, panel, (block + b) / SUPER_BLOCKS, &scale);
        for (int i = 0; i < 16; i++) {
            lanes_i32 s = (lanes_i32)(piece[48 + i / 4] << (24 - i % 4 * 8)) >> 24;
            room->scales[2 * b + i] = scale * __builtin_convertvector(s, lanes_f32);
        }
        for (int half = 0; half < 2; half++)
            for (int j = 0; j < SPREAD_CODES; j++) {
                lanes_u32 high = piece[32 + half * 8 + j];
                for (int side = 0; side < 2; side++) {
                    lanes_u32 q = piece[half * 16 + side * 8 + j];
                    codes[(half * 4 + side) * 8 + j] = (q & 0x0F0F0F0F) | (high >> (2 * side) & 0x03030303)
                                                                              << 4;
                    codes[(half * 4 + side + 2) * 8 + j] =
                        (q >> 4 & 0x0F0F0F0F) | (high >> (2 * side + 4) & 0x03030303) << 4;
                }
            }
    }
}

SPREAD_INLINE void spread_q2_k(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b += SUPER_BLOCKS) {
        const lanes_u32 *piece = spread_pieces(l, panel, (block + b) / SUPER_BLOCKS);
        lanes_u32 *codes = room->codes + b * SPREAD_CODES;
        lanes_f32 scale, minimum;
        spread_pair(piece + 20, &scale, &minimum);
        minimum = -minimum;
        for (int i = 0; i < 16; i++) {
            room->scales[2 * b + i] = scale * SPREAD_BYTE(piece[i / 4] & 0x0F0F0F0F, i % 4);
            room->addends[2 * b + i] = minimum * SPREAD_BYTE(piece[i / 4] >> 4 & 0x0F0F0F0F, i % 4);
        }
        for (int i = 0; i < 16; i++)
            for (int plane = 0; plane < 4; plane++)
                codes[(i / 8 * 4 + plane) * 8 + i % 8] = piece[4 + i] >> (2 * plane) & 0x03030303;
    }
}

SPREAD_INLINE void spread_q3_k(const struct panel_layout *l, const char *panel, int64_t block, int64_t blocks,
                               const struct spread_room *room, struct spread *out)
{
    (void)out;
    for (int64_t b = 0; b < blocks; b += SUPER_BLOCKS) {
        const lanes_u32 *piece = spread_pieces(l, panel, (block + b) / SUPER_BLOCKS);
        lanes_u32 *codes = room->codes + b * SPREAD_CODES;
        lanes_f32 scale;
        spread_scale(l, panel, (block + b) / SUPER_BLOCKS, &scale);
        for (int i = 0; i < 16; i++) {
            lanes_u32 low = piece[24 + i / 4 % 2] >> (i / 8 * 4) & 0x0F0F0F0F;
            lanes_u32 both = low | (piece[26] >> (i / 4 * 2) & 0x03030303) << 4;
            room->scales[2 * b + i] = scale * (SPREAD_BYTE(both, i % 4) - 32.0f);
        }
        for (int i = 0; i < 16; i++)
            for (int plane = 0; plane < 4; plane++)
                codes[(i / 8 * 4 + plane) * 8 + i % 8] = (piece[8 + i] >> (2 * plane) & 0x03030303) |
                                                         (piece[i % 8] >> (i / 8 * 4 + plane) & 0x01010101)
                                                             << 2;
    }
}

#endif
