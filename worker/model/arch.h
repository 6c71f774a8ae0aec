/* arch: model families as data. One row of tables per family says what its tensors are called, which shapes
 * they have, which metadata keys hold the sizes and how its blocks differ; model.c and block.c read the row
 * and hold no family's name. A new family is a new row, and a new flag where its block does something no
 * other did. */
#ifndef LEPTON_WORKER_MODEL_ARCH_H
#define LEPTON_WORKER_MODEL_ARCH_H

#include "kernels/kernels.h"
#include "worker/model/gguf.h"

/* Sizes that shapes are written in. */
enum arch_dim {
    DIM_NONE, /* no such dimension: the tensor is a vector */
    DIM_VOCAB,
    DIM_EMBED,
    DIM_QUERY, /* heads x head length */
    DIM_KV,    /* KV heads x head length */
    DIM_FFN,
};

/* What a tensor is for. One enum for all families; a family leaves out what it has not. */
enum arch_tensor {
    TENSOR_TOKEN_EMBED,
    TENSOR_OUTPUT_NORM,
    TENSOR_OUTPUT, /* absent: tied to the token embedding */
    TENSOR_GLOBAL_COUNT,

    TENSOR_ATTN_NORM = 0, /* per layer, counted on their own */
    TENSOR_ATTN_Q,
    TENSOR_ATTN_K,
    TENSOR_ATTN_V,
    TENSOR_ATTN_Q_BIAS,
    TENSOR_ATTN_K_BIAS,
    TENSOR_ATTN_V_BIAS,
    TENSOR_ATTN_OUTPUT,
    TENSOR_FFN_NORM,
    TENSOR_FFN_GATE,
    TENSOR_FFN_UP,
    TENSOR_FFN_DOWN,
    TENSOR_LAYER_COUNT,
};

struct arch_tensor_row {
    int tensor;       /* enum arch_tensor, global or per layer */
    const char *name; /* per layer: behind "blk.N." */
    enum arch_dim rows, columns;
    bool optional;
};

struct arch {
    const char *name; /* general.architecture */
    enum rope_pairs rope_pairs;
    const struct arch_tensor_row *global;
    int global_count;
    const struct arch_tensor_row *layer;
    int layer_count;
};

/* The row of a family, or NULL and an error that names the known ones. */
const struct arch *arch_find(struct gguf_string name, struct err *err);

/* The sizes of one model, read from its metadata and checked against each other. */
struct model_params {
    const struct arch *arch;
    int64_t layers, embed, ffn, heads, kv_heads, head_length, vocab, context;
    float norm_eps;
    float attention_scale;   /* 1 / sqrt(head length) */
    float rope_magnitude;    /* multiplies cosine and sine: YaRN's attention factor, else 1 */
    int64_t rope_length;     /* elements of a head that are rotated */
    float *rope_frequencies; /* [rope_length / 2] radians per position, scaling included; owned */
};

/* Reads and checks <arch>.* metadata. Errors name the key, what was found and what was expected. */
int model_params_read(struct model_params *out, const struct gguf *g, struct err *err);
void model_params_release(struct model_params *p);
/* The number behind a dimension; 1 for DIM_NONE. */
int64_t model_params_dim(const struct model_params *p, enum arch_dim dim);

#endif
