/* block: one transformer block: attention over grouped key/value heads, then a feed-forward, each behind a
 * norm and added to the residual. What differs between families (norms, positions, activation, windows, caps,
 * experts) is read from the model's row of tables; no family is named here. The same code serves and trains;
 * a backward pass will stand beneath its forward.
 *
 * A tensor slot's part of a model (slice.h) has some of the heads and of the feed-forward: each half of a
 * block then gives a partial result, and one sum over the slots, through a hook, makes it whole.
 *
 * It knows nothing of requests, steps or ranks: rows, their view, weights, pages. */
#ifndef LEPTON_WORKER_MODEL_BLOCK_H
#define LEPTON_WORKER_MODEL_BLOCK_H

#include "worker/model/model.h"

/* The pages of one layer: [P, page_tokens, G, D], F32 or F16; G of the model's part. */
struct kv_layer {
    struct tensor k, v;
};

/* Activations between the operations of a block, for up to max_tokens rows; one allocation sliced into views.
 * H, G and F are those of the model's part. */
struct block_scratch {
    struct device *device;
    void *memory;
    int64_t max_tokens;
    float *hidden;      /* [T, C] normalised rows, then the output of a half */
    float *query;       /* [T, H*D] */
    float *key, *value; /* [T, G*D] */
    float *attention;   /* [T, H*D] */
    float *gate, *up;   /* [T, F]; with experts [T * used, F] */
    float *router;      /* [T, E] logits of the router */
    int32_t *expert_ids;
    float *expert_weights; /* [T, used] both */
    float *expert_parts;   /* [T * used, C] */
    /* Called with what attention and feed-forward add ("attention", "ffn") and with the rows behind a block
     * ("block"), for a look inside; x is device memory, work on it may still be under way. NULL as a rule. */
    void (*trace)(void *context, int64_t layer, const char *what, const struct tensor *x);
    void *trace_context;
    /* Of a tensor slot: x = the sum of all slots' x, in their order, the same bits on each. Needed where the
     * model's part is not the whole, NULL elsewhere. */
    int (*sum)(void *context, struct stream *stream, struct tensor *x, struct err *err);
    void *sum_context;
};

int block_scratch_init(struct block_scratch *b, const struct model *model, int64_t max_tokens,
                       struct err *err);
void block_scratch_release(struct block_scratch *b);

/* out = norm(x) as the family normalises: RMS with a gain, or LayerNorm with a gain and an optional bias. */
void block_norm(const struct model *m, struct stream *stream, struct tensor *out, const struct tensor *x,
                const struct tensor *gain, const struct tensor *bias);

/* x[T, C] in place: x += attention(norm(x)); x += ffn(norm(x)). Keys and values of the T rows are written to
 * `kv` at their positions first. `layer` indexes the model's slice. -1 only when `sum` failed. */
int block_forward(const struct model *m, int64_t layer, struct stream *stream, struct tensor *x,
                  const struct seq_view *view, struct kv_layer *kv, struct block_scratch *scratch,
                  struct err *err);

#endif
