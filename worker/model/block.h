/* block: one transformer block, written as the paper: pre-norm attention with rotary positions and grouped
 * key/value heads, then a gated feed-forward. The same code serves and trains; a backward pass will stand
 * beneath its forward.
 *
 * It knows nothing of requests, steps or ranks: rows, their view, weights, pages. */
#ifndef LEPTON_WORKER_MODEL_BLOCK_H
#define LEPTON_WORKER_MODEL_BLOCK_H

#include "worker/model/model.h"

/* The pages of one layer: [P, page_tokens, G, D], F32 or F16. */
struct kv_layer {
    struct tensor k, v;
};

/* Activations between the operations of a block, for up to max_tokens rows; one allocation sliced into views.
 */
struct block_scratch {
    struct device *device;
    void *memory;
    int64_t max_tokens;
    float *hidden;      /* [T, C] normalised rows, then the output of a half */
    float *query;       /* [T, H*D] */
    float *key, *value; /* [T, G*D] */
    float *attention;   /* [T, H*D] */
    float *gate, *up;   /* [T, F] */
};

int block_scratch_init(struct block_scratch *b, const struct model_params *p, struct device *device,
                       int64_t max_tokens, struct err *err);
void block_scratch_release(struct block_scratch *b);

/* x[T, C] in place: x += attention(norm(x)); x += ffn(norm(x)). Keys and values of the T rows are written to
 * `kv` at their positions first. `layer` indexes the model's slice. */
void block_forward(const struct model *m, int64_t layer, struct stream *stream, struct tensor *x,
                   const struct seq_view *view, struct kv_layer *kv, struct block_scratch *scratch);

#endif
