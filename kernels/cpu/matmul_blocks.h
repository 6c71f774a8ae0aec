/* matmul_blocks: x . w^T for panels of block-quantised weights (kernels/cpu/panel.h) by integer products.
 * This is the part that knows no instruction set: how the work is cut, how x lies in memory, in which order
 * sums are made. The tiles are the set's (matmul_vnni.c, matmul_avx2.c).
 *
 * x is quantised once per call, each 32 elements of a row by their own scale: a[k] = round(x[k] / s), s =
 * max|x| / 127. Codes of weights are unsigned; what their offset adds, -offset * sum(a), starts each integer
 * sum, which is exact. Per part (32 elements, or 16 where the type has a scale for each 16), in ascending
 * order:
 *
 *   out[t][n] = fma(float(isum), w_scale[n] * x_scale[t], out[t][n])
 *   out[t][n] = fma(w_addend[n], x_scale[t] * sum(a), out[t][n])           types with a minimum
 *
 * and nothing else rounds. So neither the tile, nor the number of rows or of threads show, and every set has
 * the same bits.
 *
 *            run of K ->                              run of K ->
 *   x tile [ rows, quantised ]      panels side by side [ spread into bytes, in the first-level cache ]
 *                        \             /
 *                     sums[rows][side][16], in memory between runs
 *
 * The panels are spread (kernels/cpu/spread.h) once for all tiles of a group of rows of x, whose quantised
 * form stays in the second-level cache while the panels of a member go by. */
#ifndef LEPTON_KERNELS_CPU_MATMUL_BLOCKS_H
#define LEPTON_KERNELS_CPU_MATMUL_BLOCKS_H

#include "kernels/cpu/panel.h"

#define BLOCK_MAX_ROWS  6  /* of a tile */
#define BLOCK_MAX_SIDE  2  /* panels that a tile reads side by side */
#define BLOCK_MAX_FEW   16 /* rows of x for which a set may have functions of their own */
#define BLOCK_MAX_PARTS 2  /* of 32 elements */
#define BLOCK_QUANTISE  16 /* blocks that are quantised at a time */

/* One block of a tile of x: numbers [rows][32], for each part sums [rows] (integers: -offset * sum(a); or
 * floats: x_scale * sum(a)), scales [rows]. */
#define TILE_BLOCK_BYTES(rows, parts) ((size_t)(rows) * (PANEL_BLOCK + 4 * (size_t)(parts) + 4))

/* Sixteen lanes: those of the rows of a panel. */
typedef uint32_t lanes_u32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t lanes_i32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float lanes_f32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t lanes_u16 __attribute__((vector_size(32), aligned(2), may_alias));

#define SPREAD_CODES 8 /* registers of codes of a block of 32 elements */

/* A run of blocks of one panel, spread: [block of 32][8] codes, [block][parts] scales and addends. The codes
 * of Q8_0 are where they were. */
struct spread {
    const lanes_u32 *codes;
    const lanes_f32 *scales, *addends;
};
/* Where to spread to. */
struct spread_room {
    lanes_u32 *codes;
    lanes_f32 *scales, *addends;
};

/* What a tile asks memory for while it computes: its share of the next run, and the next tile's x. */
struct ask {
    const char *at[BLOCK_MAX_SIDE];
    size_t block_bytes; /* of each panel, for each block of the tile's run */
    size_t next_x;      /* from the tile's x to the next tile's */
};

/* What quantising sixteen blocks of a row gives. */
struct quantised {
    _Alignas(64) int8_t numbers[BLOCK_QUANTISE][PANEL_BLOCK];
    float scales[BLOCK_QUANTISE];
    int32_t sums[BLOCK_MAX_PARTS][BLOCK_QUANTISE]; /* of the numbers; with one part both are the block's */
};

/* Spreads blocks [block, block + blocks) of 32 elements, whole blocks of the type. */
typedef struct spread spread_function(const struct panel_layout *l, const char *panel, int64_t block,
                                      int64_t blocks, const struct spread_room *room);
/* sums[rows][side][16] += a run of `blocks` blocks. */
typedef void tile_function(const struct spread *w, const struct ask *ask, const char *x, int64_t blocks,
                           float *sums);
/* sums[rows][16] = one panel by all of x, for a few rows. */
typedef void few_function(const struct panel_layout *l, const char *panel, const char *x, float *sums);

/* The functions of a set for one type. */
struct block_type {
    spread_function *spread;
    few_function *few[BLOCK_MAX_FEW + 1];          /* by rows, those of few_rows */
    tile_function *const *by_rows[BLOCK_MAX_SIDE]; /* [panels - 1][rows] */
};

struct block_tiles {
    int rows, side, few; /* of a tile; panels side by side; up to how many rows the types have `few` */
    /* The rows of the `few` function that serves so many, which may be more: rows of zeros are added. */
    uint8_t few_rows[BLOCK_MAX_FEW + 1];
    /* Blocks of 32 in a run, for as few rows as leave the memory the slower part, and for more. Multiples of
     * the longest block of a type, and short enough that the codes of the panels side by side leave room for
     * x in the first-level cache. */
    int run_few, run_many;
    /* `blocks` (at most 16) blocks of a row. The greatest magnitude is found among the bits, where NaN is
     * above infinity and infinity above all numbers: a block that has one gets NaN as its scale, and so do
     * its outputs. A block so small that the inverse of its scale overflows is zeros. */
    void (*quantise)(const float *x, int blocks, int parts, struct quantised *out);
    const struct block_type *types; /* [DTYPE_COUNT] */
};

/* Each out = x . w^T + bias on the stream's team with these tiles; all weights of one type. x is quantised
 * once for all. */
void block_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count,
                  const struct block_tiles *tiles);

#endif
