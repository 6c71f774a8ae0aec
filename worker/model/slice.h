/* slice: which part of a model one tensor slot holds, and cutting that part out of the file's tensors.
 *
 * Queries, keys, values, gate and up are split by rows (outputs: whole heads, ranges of the feed-forward),
 * attention's output and down by columns (inputs), so that each slot computes a partial sum of what its half
 * of a block adds, and one sum over the slots makes it whole:
 *
 *   slot 0:  heads 0..h       W_o[:, 0..h*D]      partial 0  \
 *   slot 1:  heads h..H       W_o[:, h*D..H*D]    partial 1  /  sum in the order of the slots
 *
 * Where there are fewer KV heads than slots, slots share one and each keeps its own copy. Columns are cut at
 * the borders of quantised blocks, so shares may differ by a block. Norms, the router and the embedding are
 * whole on every slot; the output matrix is split by rows (vocabulary). Biases behind a sum are slot 0's. */
#ifndef LEPTON_WORKER_MODEL_SLICE_H
#define LEPTON_WORKER_MODEL_SLICE_H

#include "worker/model/arch.h"

/* A run of a dimension. */
struct slice_run {
    int64_t first, count;
};

struct model_part {
    int width, slot; /* of so many slots this one; 1, 0: the whole model */
    struct slice_run heads, kv_heads, ffn, expert_ffn;
    struct slice_run vocab; /* rows of the output matrix */
};

/* Elements of a dimension that cannot be cut apart because quantised blocks run along it; 1 = any cut. */
struct slice_blocks {
    int64_t query, ffn, expert_ffn;
};

/* The blocks of the model's file over all layers, so that all stages cut alike. */
struct slice_blocks slice_blocks(const struct model_params *p, const struct gguf *g);
/* PURE: slot `slot` of `width`; -1 and the numbers when the model does not divide so far. */
int slice_part(struct model_part *out, const struct model_params *p, const struct slice_blocks *blocks,
               int width, int slot, struct err *err);

/* The most KV heads that any slot holds; -1 when the model does not divide so far. */
int slice_widest_kv_heads(int64_t *out, const struct model_params *p, const struct slice_blocks *blocks,
                          int width, struct err *err);
/* The output matrix's rows of a slot of a model that divides so far, and the most that any slot has. */
struct slice_run slice_vocab(const struct model_params *p, int width, int slot);
int64_t slice_widest_vocab(const struct model_params *p, int width);

/* The run of a dimension that a part holds of a tensor: the whole where the dimension is not split. */
struct slice_run slice_run(const struct model_part *part, const struct model_params *p, int tensor,
                           enum arch_dim dim);
/* True for a per-layer tensor that only slot 0 has: a bias that is added to a sum. */
bool slice_leaves_out(const struct model_part *part, int tensor);

/* Copies rows x columns of a matrix whose rows have `row_elements`; columns at block borders. Returns the end
 * of what was written. */
void *slice_copy(void *out, enum dtype dtype, const void *matrix, int64_t row_elements, struct slice_run rows,
                 struct slice_run columns);

#endif
