/* panel: the layout in which the fast kernels of the CPU want a weight matrix.
 *
 * Sixteen rows (outputs) stand side by side, so that one 512-bit register (or two of 256) holds the same four
 * bytes of all sixteen, and the integer dot product of four bytes (VPDPBUSD) adds to sixteen outputs at once.
 * A block-quantised row is a string of blocks as the file stores them; a panel is the same blocks, cut into
 * pieces of four bytes and turned on their side:
 *
 *   panel p = rows 16p .. 16p + 15
 *   block b of the file, piece d:   64 bytes at (b * pieces + d) * 64;  byte 4r + i = byte 4d + i of row r
 *   behind the pieces of a group:   types whose block is no multiple of four bytes have one F16 left over,
 * its scale: 16 x F16 for each block of the group. Groups are pairs of blocks, whose scales fill a line, so
 * that a panel is read from its first byte to its last; or, where kernels use the codes as they lie (Q8_0),
 * all blocks of a panel
 *
 * So a panel takes the bytes that its rows had in the file (plus rows of zeros up to a multiple of sixteen),
 * and what the bits of a block mean is told in dtype.h and quant.c alone. Two things are changed, to be had
 * for nothing in the kernels: the codes of Q8_0 are stored with an offset of 128 (unsigned), and the fifth
 * bits of Q5_0 and Q5_1 are regrouped: bit j of byte i is that of element 4j + i.
 *
 * Plain types: F32 and F16 [K][16] elements; BF16 [K / 2][16][2], the pairs that VDPBF16PS takes. K is
 * rounded up to PANEL_FLOATS, with zeros.
 *
 * A matrix is repacked once, when a model is loaded. Rows can be read back for embeddings and the transposed
 * product. */
#ifndef LEPTON_KERNELS_CPU_PANEL_H
#define LEPTON_KERNELS_CPU_PANEL_H

#include "kernels/kernels.h"

#define PANEL_ROWS   16
#define PANEL_PIECE  64 /* bytes: four of each row */
#define PANEL_BLOCK  32 /* elements of K that x is quantised by */
#define PANEL_FLOATS 8  /* elements of K that a tile of floats takes at a time */

/* How far ahead of its use a panel is asked for where rows are few and memory is the slower part, in bytes:
 * the hardware looks no further than a page. First into the second-level cache and then, since the way from
 * there limits too, into the first: one row of F16 on two threads loses 6 % with the nearer alone, 12 with
 * the farther alone. Half of each costs Q8_0, Q4_0 and Q4_K 2 to 4 %, double the first gains nothing. */
#define PANEL_FAR  12288
#define PANEL_NEAR 4096

/* How the blocks of a type are cut, and what a kernel must know of their values:
 *   value = scale * (code - offset) + addend,   one scale (and addend) for each part of 32 elements */
struct panel_type {
    uint8_t pieces;             /* of a block, four bytes each; 0 = the type has no panels of blocks */
    uint8_t pieces_at;          /* byte of the block where they begin */
    uint8_t scale_at;           /* byte where the F16 beside them stands, where there is one */
    bool scale_apart, in_place; /* in_place: no scales between the blocks of a panel */
    bool fifth_bits;            /* the piece before the last four holds fifth bits */
    uint32_t flip;              /* exclusive or of every piece */
    uint8_t parts;              /* 1, or 2: sixteen elements share a scale */
    uint8_t offset;             /* of the unsigned codes */
    bool has_addends;           /* the type has a minimum; its offset is 0 */
};

struct panel_layout {
    int64_t blocks;     /* of a row: of the file; plain types: elements */
    size_t quant_bytes; /* pieces of one block of a panel */
    size_t scale_bytes; /* of one block of a panel, behind the pieces of its group; 0: among these */
    int64_t group;      /* blocks */
    size_t group_bytes;
    size_t panel_bytes; /* of a whole panel, a multiple of 64 */
    int64_t panels;
};

/* Bytes from the beginning of a panel to the pieces of block b, and to its scales where they stand apart. */
static inline size_t panel_pieces_at(const struct panel_layout *l, int64_t b)
{
    return (size_t)(b / l->group) * l->group_bytes + (size_t)(b % l->group) * l->quant_bytes;
}
static inline size_t panel_scales_at(const struct panel_layout *l, int64_t b)
{
    int64_t left = l->blocks - b / l->group * l->group; /* the last group may be shorter */
    return (size_t)(b / l->group) * l->group_bytes +
           (size_t)(left < l->group ? left : l->group) * l->quant_bytes +
           (size_t)(b % l->group) * l->scale_bytes;
}

/* True for the types whose panels hold plain numbers. */
static inline bool panel_is_float(enum dtype type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}
/* The cut of a block type; NULL for the others. */
const struct panel_type *panel_type(enum dtype type);
/* True when there is a panel form of the type. */
bool panel_supported(enum dtype type);
struct panel_layout panel_layout(enum dtype type, int64_t rows, int64_t columns);
/* Repacks panels [begin, end) of `rows` (the matrix as the file stores it, [N, K]) to `packed`. */
void panel_pack(const struct tensor *rows, void *packed, int64_t begin, int64_t end);
/* Elements [k, k + count) of row n as floats, exactly; k and count in whole blocks. */
void panel_row_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out);

/* The same of all sixteen rows of panel p: out[row][count]. */
void panel_floats(const struct weight *w, int64_t p, int64_t k, int64_t count, float *out);

/* out[d * 16 + r] = row r's number d: `count` numbers of each of `rows` rows that lie `stride` bytes apart;
 * rows that are not there are zeros. With AVX-512. */
void panel_turn_avx512(const void *from, size_t stride, int rows, int64_t count, uint32_t *out);

#endif
