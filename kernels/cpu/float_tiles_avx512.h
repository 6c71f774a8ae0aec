/* float_tiles_avx512: what the tiles with and without VDPBF16PS share: their shapes, and how a tile's sums
 * reach the output. */
#ifndef LEPTON_KERNELS_CPU_FLOAT_TILES_AVX512_H
#define LEPTON_KERNELS_CPU_FLOAT_TILES_AVX512_H

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/matmul_float.h"

/* out = sum, or out += sum; bias comes last. rows and side are constants where this is inlined. */
AVX512_INLINE void avx512_add_tile(const struct float_tile *tile, const int rows, const int side,
                                   __m512 sum[FLOAT_MAX_ROWS][FLOAT_MAX_SIDE])
{
    /* All is read before anything is stored, which might lie there for all GCC knows; and nothing branches,
     * for else it keeps sums in memory, through the loop over K too. */
    const float *bias = tile->bias ? tile->bias : tile->out; /* of no bias nothing is read */
    const int64_t stride = tile->stride, outputs = tile->outputs;
    const __mmask16 more = tile->first ? 0 : 0xFFFF, biased = tile->bias ? 0xFFFF : 0;
    float *out = tile->out;
#pragma GCC unroll 4
    for (int p = 0; p < side; p++) {
        const __mmask16 mask = avx512_first(outputs - p * PANEL_ROWS);
        const __m512 last = _mm512_maskz_loadu_ps(mask & biased, bias + p * PANEL_ROWS);
#pragma GCC unroll 12
        for (int t = 0; t < rows; t++) {
            float *at = out + t * stride + p * PANEL_ROWS;
            __m512 all =
                _mm512_mask_add_ps(sum[t][p], more, _mm512_maskz_loadu_ps(mask & more, at), sum[t][p]);
            _mm512_mask_storeu_ps(at, mask, _mm512_mask_add_ps(all, biased, all, last));
        }
    }
}

/* One function for each type and shape, so that the sums live in registers: TILE(NAME, TYPE, rows, side). */
#define AVX512_TILES(TILE, NAME, TYPE) \
    TILE(NAME, TYPE, 1, 4)             \
    TILE(NAME, TYPE, 2, 4)             \
    TILE(NAME, TYPE, 3, 4)             \
    TILE(NAME, TYPE, 4, 4)             \
    TILE(NAME, TYPE, 5, 4)             \
    TILE(NAME, TYPE, 6, 2)             \
    TILE(NAME, TYPE, 7, 2)             \
    TILE(NAME, TYPE, 8, 2)             \
    TILE(NAME, TYPE, 9, 2)             \
    TILE(NAME, TYPE, 10, 2)            \
    TILE(NAME, TYPE, 11, 2)            \
    TILE(NAME, TYPE, 12, 2)
#define AVX512_SHAPES .max_rows = 12, .side = {0, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2}
#define AVX512_BY_ROWS(NAME)                                                                            \
    {                                                                                                   \
        NULL, NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6, NAME##_7, NAME##_8, NAME##_9, \
            NAME##_10, NAME##_11, NAME##_12                                                             \
    }

#endif
