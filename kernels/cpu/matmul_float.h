/* matmul_float: x . w^T for panels of F32, F16 and BF16 weights. This is the part that knows no instruction
 * set: how the work is cut, in which order sums are made. The tiles are the set's (matmul_float_avx512.c,
 * matmul_bf16.c, matmul_float_avx2.c).
 *
 * An output is the sum of blocks of FLOAT_BLOCK elements of K, added in ascending order; a block is one chain
 * of fused multiply-adds from zero, k ascending:
 *
 *   out[t][n] = ((block 0 + block 1) + block 2) ... + bias[n]
 *   block b   = fma(x[t][k], w[n][k], ...)                        k in [512 b, 512 b + 512)
 *
 * so neither the tile, nor the number of rows of x, nor threads show in it, and every set with fused
 * multiply-add has the same bits. VDPBF16PS (matmul_bf16.c) is the exception: it adds pairs, and x is
 * rounded.
 *
 * Rows of x are laid out for the tiles: [K][rows of the tile], so that a tile reads one stream of them. */
#ifndef LEPTON_KERNELS_CPU_MATMUL_FLOAT_H
#define LEPTON_KERNELS_CPU_MATMUL_FLOAT_H

#include "kernels/cpu/panel.h"

#define FLOAT_BLOCK    512
#define FLOAT_AHEAD    (FLOAT_BLOCK * 32)
#define FLOAT_MAX_ROWS 12 /* of a tile */
#define FLOAT_MAX_SIDE 4  /* panels that a tile reads side by side */

/* One block of K of one tile: what is added to out. */
struct float_tile {
    const void *x;                     /* [k][rows], from the block's first k on */
    const void *panel[FLOAT_MAX_SIDE]; /* the block's part of each panel */
    float *out;                        /* the tile's first output */
    const float *bias;                 /* of that output; only with the last block */
    int64_t k, stride;                 /* elements in the block, a multiple of PANEL_FLOATS; floats between
                                        * rows of out */
    int64_t outputs;                   /* at and behind `out` that exist */
    bool first;                        /* the first block of K: out is written, not added to */
    /* What is worth asking memory for on the way: with many rows FLOAT_AHEAD bytes from `ahead` on; with few
     * the panels themselves, `left` bytes of each from this block on, and then those `jump` bytes further. */
    const char *ahead;
    int64_t left, jump;
};
typedef void float_tile_function(const struct float_tile *tile);

/* The tiles of a set for weights of one type. */
struct float_tiles {
    int max_rows;                                  /* of a tile, at most FLOAT_MAX_ROWS */
    int side[FLOAT_MAX_ROWS + 1];                  /* panels side by side, by rows; one number from
                                                    * max_rows / 2 on, as many rows are cut so */
    float_tile_function *few[FLOAT_MAX_ROWS + 1];  /* by rows, where they are all: panels come from memory */
    float_tile_function *many[FLOAT_MAX_ROWS + 1]; /* where many tiles share a panel, which `widen` makes
                                                    * floats for them; NULL: it is read as it is packed */
    void (*widen)(const void *panel, int64_t k, float *out);
    /* Lays `rows` rows of x, K elements each, out as [laid][rows], with zeros from K to laid. */
    void (*lay)(const float *x, int64_t K, int64_t laid, int rows, void *out);
    int64_t x_bytes; /* of an element of x so laid out */
};

/* Lines of a panel that are asked for together where rows are few: it costs memory less than one of each
 * panel in turn, 2 % with four lines of 64 bytes, while eight are too many at once and lose 4. */
#define FLOAT_LINES 4

/* Elements of K in so many lines of a panel. */
#define FLOAT_STEP(type) (FLOAT_LINES * 64 / (PANEL_ROWS * ((type) == DTYPE_F32 ? 4 : 2)))
_Static_assert(PANEL_FLOATS % FLOAT_STEP(DTYPE_F32) == 0 && PANEL_FLOATS % FLOAT_STEP(DTYPE_F16) == 0,
               "a tile has no remainder");

/* Asks for what of `side` panels comes behind byte `at` of the tile's block, FLOAT_LINES lines of each;
 * panels side by side share the distance. */
static inline __attribute__((always_inline)) void float_ask(const struct float_tile *tile, int64_t at,
                                                            const int side)
{
    const int64_t far = PANEL_FAR / side + (at + PANEL_FAR / side < tile->left ? 0 : tile->jump);
    const int64_t near = PANEL_NEAR / side + (at + PANEL_NEAR / side < tile->left ? 0 : tile->jump);
#pragma GCC unroll 4
    for (int p = 0; p < side; p++) {
        const char *here = (const char *)tile->panel[p] + at;
#pragma GCC unroll 4
        for (int line = 0; line < FLOAT_LINES; line++)
            __builtin_prefetch(here + far + line * 64, 0, 2);
#pragma GCC unroll 4
        for (int line = 0; line < FLOAT_LINES; line++)
            __builtin_prefetch(here + near + line * 64, 0, 3);
    }
}

/* Each out = x . w^T + bias on the stream's team with these tiles; all weights of one type. x is laid out
 * once for all. */
void float_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count,
                  const struct float_tiles *tiles);

#endif
