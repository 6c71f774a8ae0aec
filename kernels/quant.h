/* quant: rows of block types to floats and back; dtype.c calls it, everybody else calls dtype.h.
 *
 * quant.c reads the formats, quant_fit.c writes them: it chooses scales and codes. */
#ifndef LEPTON_KERNELS_QUANT_H
#define LEPTON_KERNELS_QUANT_H

#include "kernels/dtype.h"

/* `type` is a block type; dst and src hold `blocks` blocks and as many times the type's elements. */
void quant_to_f32(enum dtype type, const void *src, float *dst, uint64_t blocks);
void quant_from_f32(enum dtype type, const float *src, void *dst, uint64_t blocks);

#endif
