/* panel: the layout in which the fast kernels of the CPU want a block-quantised weight matrix.
 *
 * Sixteen rows (outputs) stand side by side, so that one 512-bit register holds four consecutive elements of
 * K of all sixteen, and the integer dot product of four bytes (VPDPBUSD) adds to sixteen outputs at once:
 *
 *   panel p = rows 16p .. 16p+15
 *   quants   for each block of 32 elements of K: 8 registers; register j, byte 4r + i = element 4j + i of row
 * r, unsigned (4-bit types: 4 registers, the low half of a byte belongs to register j, the high half to j +
 * 4) scales   for each block: 16 x F16, then (types with a minimum) 16 x F16
 *
 * A matrix is repacked once, when a model is loaded; it takes the bytes it had in the file (plus rows of
 * zeros up to a multiple of sixteen). Rows can be read back for embeddings and the transposed product. */
#ifndef LEPTON_KERNELS_CPU_PANEL_H
#define LEPTON_KERNELS_CPU_PANEL_H

#include "kernels/kernels.h"

#define PANEL_ROWS  16
#define PANEL_BLOCK 32 /* elements of K that share a scale */

struct panel_layout {
    int64_t blocks;     /* of a row */
    size_t quant_bytes; /* of one block of a panel */
    size_t scale_bytes; /* the same, minima included */
    size_t panel_bytes; /* of a whole panel, a multiple of 64 */
    int64_t panels;
};

/* True for the types whose panels hold plain numbers. */
static inline bool panel_is_float(enum dtype type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}
/* True when the fast kernels have a panel form of the type. */
bool panel_supported(enum dtype type);
struct panel_layout panel_layout(enum dtype type, int64_t rows, int64_t columns);
/* Repacks panels [begin, end) of `rows` (the matrix as the file stores it, [N, K]) to `packed`. */
void panel_pack(const struct tensor *rows, void *packed, int64_t begin, int64_t end);
/* Elements [k, k + count) of row n as floats, exactly; k and count in whole blocks. */
void panel_row_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out);

#endif
