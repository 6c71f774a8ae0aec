/* arch: model families as data. One row of tables per family says what its tensors are called, which shapes
 * they have, which metadata keys hold the sizes and how its blocks differ; model.c and block.c read the row
 * and hold no family's name. A new family is a new row, and a new flag where its block does something no
 * other did.
 *
 *   arch_table.c  the rows        arch.c  a model's sizes, read and checked        arch_rope.c  its
 * frequencies
 *
 * Names of tensors and metadata keys are GGUF's (ggml docs/gguf.md and gguf-py's constants). */
#ifndef LEPTON_WORKER_MODEL_ARCH_H
#define LEPTON_WORKER_MODEL_ARCH_H

#include "kernels/kernels.h"
#include "worker/model/gguf.h"

/* Sizes that shapes are written in. */
enum arch_dim {
    DIM_NONE, /* no such dimension: the tensor is a vector */
    DIM_VOCAB,
    DIM_CONTEXT,
    DIM_EMBED,
    DIM_QUERY, /* heads x head length */
    DIM_KV,    /* KV heads x head length */
    DIM_HEAD,  /* head length */
    DIM_ROPE,  /* rotated pairs of a head */
    DIM_FFN,
    DIM_EXPERTS,
    DIM_EXPERT_FFN, /* feed-forward length of one expert */
};

/* What a tensor is for. One enum for all families; a family leaves out what it has not. */
enum arch_tensor {
    TENSOR_TOKEN_EMBED,
    TENSOR_POSITION_EMBED,
    TENSOR_OUTPUT_NORM,
    TENSOR_OUTPUT_NORM_BIAS,
    TENSOR_OUTPUT,        /* absent: tied to the token embedding */
    TENSOR_ROPE_DIVISORS, /* of the frequencies, always */
    TENSOR_ROPE_LONG,     /* divisors where more than the original context is served */
    TENSOR_ROPE_SHORT,    /* and where not */
    TENSOR_GLOBAL_COUNT,

    TENSOR_ATTN_NORM = 0, /* per layer, counted on their own */
    TENSOR_ATTN_NORM_BIAS,
    TENSOR_ATTN_Q,
    TENSOR_ATTN_K,
    TENSOR_ATTN_V,
    TENSOR_ATTN_Q_BIAS,
    TENSOR_ATTN_K_BIAS,
    TENSOR_ATTN_V_BIAS,
    TENSOR_ATTN_Q_NORM, /* one gain for all heads */
    TENSOR_ATTN_K_NORM,
    TENSOR_ATTN_OUTPUT,
    TENSOR_ATTN_OUTPUT_BIAS,
    TENSOR_ATTN_POST_NORM, /* of attention's output, before the residual addition */
    TENSOR_FFN_NORM,
    TENSOR_FFN_NORM_BIAS,
    TENSOR_FFN_GATE, /* absent: up alone goes through the activation */
    TENSOR_FFN_UP,
    TENSOR_FFN_DOWN,
    TENSOR_FFN_GATE_BIAS,
    TENSOR_FFN_UP_BIAS,
    TENSOR_FFN_DOWN_BIAS,
    TENSOR_FFN_POST_NORM,
    TENSOR_ROUTER,
    TENSOR_EXPERT_GATE, /* [E * F, C]: expert after expert */
    TENSOR_EXPERT_UP,
    TENSOR_EXPERT_DOWN, /* [E * C, F] */
    TENSOR_LAYER_COUNT,
};

enum arch_presence {
    NEEDED,
    OPTIONAL,
    DENSE_ONLY,   /* needed, in a model without experts */
    DENSE_OPTION, /* optional there */
    ROUTED_ONLY,  /* needed, in a model with experts */
};

/* Rows that follow each other under the same name share one tensor of the file: its rows are theirs, in this
 * order (fused projections). With `stacked` the file's tensor is [experts, rows, columns], or, in older
 * files, one tensor an expert, named by `each` with the expert's number. */
struct arch_tensor_row {
    int tensor;       /* enum arch_tensor, global or per layer */
    const char *name; /* per layer: behind "blk.N." */
    enum arch_dim rows, columns;
    enum arch_presence presence;
    bool stacked;
    const char *each; /* "ffn_up.%d.weight" */
};

enum arch_norm {
    NORM_RMS,
    NORM_LAYER,
};

enum arch_positions {
    POSITIONS_ROPE,
    POSITIONS_LEARNED, /* a vector for each position is added to the embedding */
};

/* Which layers see a sliding window, where the metadata give its length. */
enum arch_window {
    WINDOW_NEVER,
    WINDOW_ALL,
    WINDOW_EVEN, /* layers 0, 2, 4, ... */
};

struct arch {
    const char *name; /* general.architecture */
    const struct arch_tensor_row *global;
    int global_count;
    const struct arch_tensor_row *layer;
    int layer_count;

    enum arch_norm norm;
    enum arch_positions positions;
    enum rope_pairs rope_pairs;
    enum activation activation;
    enum arch_window window;
    int64_t window_length;   /* when the key is absent; -1 = it must be there */
    bool scaled_embedding;   /* embeddings are multiplied by sqrt(embedding length) */
    bool routed;             /* may have experts */
    bool softcaps;           /* reads the soft caps' keys */
    float attention_softcap; /* when the key is absent */
    float logit_softcap;
    int64_t embed_scaled_layers; /* a model of this many layers scales its queries by 1 / sqrt(C / H) */
};

/* The row of a family, or NULL and an error that names the known ones. */
const struct arch *arch_find(struct gguf_string name, struct err *err);
/* The row of a global tensor, NULL where the family has none. */
const struct arch_tensor_row *arch_global(const struct arch *a, enum arch_tensor tensor);

/* The sizes of one model, read from its metadata and checked against each other. */
struct model_params {
    const struct arch *arch;
    int64_t layers, embed, ffn, heads, kv_heads, head_length, vocab, context;
    int64_t experts, experts_used, expert_ffn; /* 0 without experts */
    bool expert_renormalise;                   /* the weights of the experts used add up to 1 */
    int64_t window; /* positions a row sees where its layer has a window; 0 = all */
    float norm_eps;
    float attention_scale;   /* 1 / sqrt(head length), as a rule */
    float attention_softcap; /* 0 = off */
    float logit_softcap;     /* 0 = off */
    float embedding_scale;   /* 1 = off */
    float rope_magnitude;    /* multiplies cosine and sine: YaRN's attention factor, else 1 */
    bool rope_long;          /* the frequencies are those of a long context: part of the numeric class */
    int64_t rope_length;     /* elements of a head that are rotated; 0 = none */
    float *rope_frequencies; /* [rope_length / 2] radians per position, scaling included; owned */
};

/* Reads and checks <arch>.* metadata, and refuses keys and tensors by name that would change the result and
 * that the family's row does not know. Errors name the key, what was found and what was expected. */
int model_params_read(struct model_params *out, const struct gguf *g, struct err *err);
/* The same for serving sequences of at most `served` positions, where that changes the frequencies
 * (LongRoPE); 0 = the model's context. */
int model_params_read_for(struct model_params *out, const struct gguf *g, int64_t served, struct err *err);
void model_params_release(struct model_params *p);
/* The number behind a dimension; 1 for DIM_NONE. */
int64_t model_params_dim(const struct model_params *p, enum arch_dim dim);
/* Whether a model of these sizes has the row's tensor: 1 it must, 0 it may, -1 it must not. */
int model_params_expects(const struct model_params *p, const struct arch_tensor_row *row);
/* Attention in a layer (counted over the whole model). */
struct attention_options model_params_attention(const struct model_params *p, int64_t layer);
/* Operations that the model needs beyond those every model needs: bits for kernels_supported. */
uint32_t model_params_kernels(const struct model_params *p);

/* ---- within arch*.c */

/* Reads "<arch>.<suffix>" as a size within [low, high]; absent gives `standard`, or an error when that is
 * negative. */
int arch_read_size(const struct gguf *g, const struct arch *arch, const char *suffix, int64_t low,
                   int64_t high, int64_t standard, int64_t *out, struct err *err);
/* As a float; absent gives `standard`, or an error when that is NaN. */
int arch_read_float(const struct gguf *g, const struct arch *arch, const char *suffix, double low,
                    double high, double standard, double *out, struct err *err);
/* Fills the rope_ fields: frequencies with their scaling for sequences of `served` positions. */
int arch_read_rope(struct model_params *p, const struct gguf *g, int64_t served, struct err *err);
/* Every tensor of the file is one that the family's rows name. */
int arch_check_tensors(const struct model_params *p, const struct gguf *g, struct err *err);

#endif
