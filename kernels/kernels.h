/* kernels: the manual of every operation. kernels.c checks shapes, types and devices once (a mismatch is our
 * bug: ASSERT) and calls the device's table; a device that lacks an operation is refused when a model is
 * loaded (kernels_supported), never in the middle of a step.
 *
 * Conventions
 *   T rows of a step (tokens of all sequences, packed)   C channels (embedding length)   F feed-forward
 * length H query heads   G key/value heads (G divides H)   D head length   V vocabulary   S sequences of the
 * step B rows that get logits   P pages of the KV pool   N x K: a weight matrix, N outputs, K inputs
 * Activations are F32. Weights may be any weight type. Positions, page tables and ids are I32 device tensors.
 *
 * Exactness (design I7): for every output element the order of the additions is fixed by the model and the
 * device's kernel set alone: not by T, S, the number of threads, the chunking of a prompt or the page layout.
 * A kernel that cannot keep this has no place here. */
#ifndef LEPTON_KERNELS_KERNELS_H
#define LEPTON_KERNELS_KERNELS_H

#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- weights
 * ------------------------------------------------------------------------------------------------ */

/* A matrix as the device's matmul wants it. `stored` describes the elements ([N, K], the type of the file);
 * `packed` is the device's memory: the file's own mapped bytes where they are used as stored. */
struct weight {
    struct tensor stored; /* shape and type; stored.data = NULL when absent */
    void *packed;
    bool owned; /* packed was allocated by weight_pack and is released by weight_release */
    int layout; /* of packed; the device's own business, 0 = rows as stored */
};

/* Makes `host` (rows of a mapped file, [N, K]) usable by the device. The CPU reference keeps the mapped
 * bytes; they are all in memory then. */
int weight_pack(struct weight *out, struct device *device, const struct tensor *host, struct err *err);
/* Who looks at a matrix in the pass that packs it (design decision 15). rows() is told of every row once, in
 * runs of about a tenth of a megabyte, each by the thread that has just packed it, number `member` of
 * device_threads(): the rows still lie in that thread's cache. Several threads call at once; what one calls
 * with mostly goes on where its last call ended. */
struct weight_watch {
    void (*rows)(void *context, int64_t begin, int64_t end, int member);
    void *context;
};
/* The same, watched; `watch` NULL = nobody looks. */
int weight_pack_watched(struct weight *out, struct device *device, const struct tensor *host,
                        const struct weight_watch *watch, struct err *err);
void weight_release(struct weight *w);

/* out[T,N] = x[T,K] . w[N,K]^T (+ bias[N], F32, optional: data NULL). */
void kernel_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                   const struct tensor *bias);
/* One of several products of the same x: out[T,N] = x[T,K] . w[N,K]^T (+ bias[N], F32; NULL or data NULL:
 * none). */
struct matmul_output {
    struct tensor *out;
    const struct weight *w;
    const struct tensor *bias;
};
/* All of them, `count` at most MATMUL_OUTPUTS. What a device shares among them (x in its own form, one
 * division among its threads) shows in no bit. */
#define MATMUL_OUTPUTS 4
void kernel_matmul_each(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count);
/* dx[T,K] = dy[T,N] . w[N,K]: the transposed product of the same packed weight (backward; adapters). */
void kernel_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                              const struct weight *w);

/* ---- rows
 * ---------------------------------------------------------------------------------------------------- */

/* out[T,C] = table[ids[t], :]; ids in [0, V) is the caller's duty (checked when a request is admitted). */
void kernel_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids);
/* out[t,c] = x[t,c] / sqrt(mean_c(x[t,c]^2) + eps) * gain[c]. In place allowed. (Zhang & Sennrich 2019) */
void kernel_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                    float eps);
/* out[t,c] = (x[t,c] - mean_c(x[t,c])) / sqrt(variance_c(x[t,c]) + eps) * gain[c] + bias[c]; bias optional:
 * data NULL. The variance is the mean of the squared differences. In place allowed. (Ba et al. 2016) */
void kernel_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                      const struct tensor *bias, float eps);
/* x[T,C] += y[T,C] */
void kernel_add(struct stream *s, struct tensor *x, const struct tensor *y);
/* x[T,C] *= factor */
void kernel_scale(struct stream *s, struct tensor *x, float factor);
/* x[T,C] = cap * tanh(x / cap), cap > 0. (Gemma Team 2024) */
void kernel_softcap(struct stream *s, struct tensor *x, float cap);
/* out[B,C] = x[rows[b], :] */
void kernel_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x,
                        const struct tensor *rows);

enum activation {
    ACTIVATION_SILU,      /* z / (1 + exp(-z)) */
    ACTIVATION_GELU_TANH, /* z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3))) (Hendrycks & Gimpel 2016)
                           */
};
/* out[T,F] = f(gate[T,F]) * up[T,F]; up NULL: out = f(gate). out may be gate. SwiGLU with silu, GeGLU with
 * gelu. (Shazeer 2020) */
void kernel_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                     enum activation f);
/* out[n] = parts[0][n] + parts[1][n] + ... in this order: parts is [ranks, n]. Tensor-parallel sums. */
void kernel_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts);

/* ---- positions
 * ------------------------------------------------------------------------------------------------ */

enum rope_pairs {
    ROPE_INTERLEAVED, /* rotates (x[2i], x[2i+1]): GGUF `llama` */
    ROPE_HALVES,      /* rotates (x[i], x[i + R/2]): GPT-NeoX style */
};
/* Rotates the first R = 2 * dim(frequency) elements of each head of x[T, heads, D] by positions[t] *
 * frequency[i] radians, cosine and sine multiplied by `magnitude` (1, or YaRN's attention factor). Angles are
 * computed in double. In place. (Su et al. 2021) */
void kernel_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
                 const struct tensor *frequency, enum rope_pairs pairs, float magnitude);

/* ---- attention
 * ------------------------------------------------------------------------------------------------ */

/* Which rows of a step belong to which sequence, and where that sequence's keys and values lie. Serving:
 * pages. Training: packed documents (page_table.data NULL): a document's keys and values are its own rows of
 * k and v. */
struct seq_view {
    struct tensor row_begin;  /* [S+1] I32: rows of sequence s are [row_begin[s], row_begin[s+1]) */
    struct tensor positions;  /* [T] I32: position of each row in its sequence */
    struct tensor slots;      /* [S] I32: row of page_table that belongs to sequence s */
    struct tensor page_table; /* [slots, pages per sequence] I32: page of each run of page_tokens positions */
    int page_tokens;          /* positions in a page */
};

struct attention_options {
    float scale;
    float softcap;  /* scores become softcap * tanh(score / softcap); 0 = off (Gemma Team 2024) */
    int64_t window; /* a row sees the last `window` positions, its own among them; 0 = all before it */
};

/* Writes k and v ([T, G, D] F32) at each row's position into the pages: k_pages, v_pages [P, page_tokens, G,
 * D], of a type that kernel_kv_available has (rounded to nearest even; Q8_0 as weights are). */
void kernel_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                     const struct tensor *v, const struct seq_view *view);
/* Causal attention: row t of sequence s attends to positions 0..positions[t] of s, or to those of its window;
 * query head h reads KV head h / (H / G); out[T,H,D] = softmax(cap(scale * q . K)) . V. k and v are pages
 * (see kernel_kv_store), or [T, G, D] for packed documents. Online softmax over blocks of fixed size at fixed
 * positions, so that pages and chunks do not show in the sums. */
void kernel_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct seq_view *view,
                      const struct attention_options *options);
/* Page work that rides in a step, for one pool [P, ...]: pages[to] = pages[from]; from < 0 zeroes the page.
 * moves is [n, 2] I32 rows of (from, to), done in order. */
void kernel_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves);

/* ---- experts
 * ---------------------------------------------------------------------------------------------------- */

/* Picks the experts of each row: ids[T,k] (I32) are the k highest of logits[T,E], highest first, the lower id
 * among equals; weights[T,k] their softmax over all E, or over the k picked when `renormalise`. A row with
 * NaN among its logits gets NaN weights. (Shazeer et al. 2017; Jiang et al. 2024) */
void kernel_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
                  bool renormalise);
/* out[T * k, N]: row t * k + r = x . w[e]^T with e = ids[t,r]; w is [E * N, K], expert after
 * expert. x[T,K] serves the k experts of its row, x[T * k, K] gives each its own. Which other rows chose an
 * expert does not show in the sums. */
void kernel_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x,
                          const struct weight *w, const struct tensor *ids);
/* out[T,C] = weights[t,0] * parts[t * k] + weights[t,1] * parts[t * k + 1] + ... in this order. */
void kernel_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                       const struct tensor *weights);

/* ---- sampling
 * --------------------------------------------------------------------------------------------------- */

/* How one row of logits becomes a token. Layout is fixed (it travels in step descriptors). */
struct sample_row {
    uint64_t seed;
    uint32_t index;           /* of the token in its choice */
    uint32_t choice;          /* the draw is a function of (seed, choice, index) alone */
    int32_t slot;             /* row of `history` */
    int32_t history_tokens;   /* tokens of that row that count: prompt and generated */
    int32_t prompt_tokens;    /* of these, the prompt's */
    int32_t top_k;            /* 0 = off */
    float temperature;        /* 0 = greedy: the highest logit, the lowest id among equals */
    float top_p;              /* 1 = off */
    float min_p;              /* 0 = off */
    float repetition_penalty; /* 1 = off; over prompt and generated tokens (Keskar et al. 2019) */
    float presence_penalty;   /* 0 = off; over generated tokens, subtracted once */
    float frequency_penalty;  /* 0 = off; over generated tokens, subtracted per occurrence */
    int32_t banned_id;        /* an id that must not be drawn (the end token under ignore_eos); -1 = none */
    int32_t bias_begin;       /* first of its entries among the step's biases */
    int32_t bias_count;       /* 0 = none */
    int32_t logprobs;         /* 0 = none are wanted; else 1 + how many of the likeliest tokens to name */
};

/* Added to one token's logit before anything else happens to it. */
struct logit_bias {
    int32_t id;
    float bias;
};
#define SAMPLE_MAX_BIASES 1024 /* of one row */

/* Log-probabilities (natural logarithm) of one row, in the model's own distribution: log softmax of the
 * logits as they came, before bias, penalties, temperature and cuts. */
#define SAMPLE_MAX_TOP 20
struct token_logprobs {
    float drawn;   /* of the id that was drawn */
    int32_t count; /* of the likeliest that follow: fewer than wanted where fewer have any probability */
    int32_t id[SAMPLE_MAX_TOP]; /* the likeliest first, the lower id among equals */
    float logprob[SAMPLE_MAX_TOP];
};

/* What not every step has; all in device memory. */
struct sample_extra {
    const struct logit_bias *biases; /* [bias_count] that rows point into; NULL = none */
    int32_t bias_count;
    struct token_logprobs *logprobs; /* [B], zero for a row that wants none; NULL = no row does */
};

/* ids[B] = one token per row of logits[B,V]. rows: B records in device memory; history [slots, context] I32.
 * Order: bias, penalties, ban, then temperature, then top-k, top-p, min-p on the sorted distribution, then
 * one draw by inverse CDF with the 53-bit uniform of Philox4x32-10 (Salmon et al. 2011) keyed (seed, choice,
 * index). A finite logit stays finite whatever bias and penalties do to it. A row whose logits hold NaN,
 * +infinity or no finite value gives id -1: the request ends with an error, never with a silent token. logits
 * are overwritten. extra may be NULL. */
void kernel_sample(struct stream *s, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                   const struct tensor *history, const struct sample_extra *extra);
/* nll[T] = -log softmax(logits[t])[targets[t]], in double inside; the loss of perplexity and training. */
void kernel_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                       const struct tensor *targets);

/* ---- the device's side
 * --------------------------------------------------------------------------------------- */

enum kernel_op {
    KERNEL_MATMUL,
    KERNEL_MATMUL_TRANSPOSED,
    KERNEL_EMBED,
    KERNEL_RMSNORM,
    KERNEL_ADD,
    KERNEL_GATHER_ROWS,
    KERNEL_ACTIVATE,
    KERNEL_SUM_RANKS,
    KERNEL_ROPE,
    KERNEL_KV_STORE,
    KERNEL_ATTENTION,
    KERNEL_MOVE_PAGES,
    KERNEL_SAMPLE,
    KERNEL_TOKEN_LOSS,
    KERNEL_LAYERNORM, /* from here on: what some families need, asked for by name */
    KERNEL_SCALE,
    KERNEL_SOFTCAP,
    KERNEL_ROUTE,
    KERNEL_EXPERT_MATMUL,
    KERNEL_EXPERT_SUM,
    KERNEL_OP_COUNT,
};
const char *kernel_op_name(enum kernel_op op); /* "matmul" */
/* Whether the device has this operation: for what serving does not need (token_loss, matmul_transposed). */
bool kernel_available(const struct device *device, enum kernel_op op);
/* 0 when the device has every operation that serving needs and those of `more` (bits 1 << op: what a model's
 * family needs besides); else -1 and the names of those it lacks. */
int kernels_supported(const struct device *device, uint32_t more, struct err *err);
/* Whether keys and values may lie in pages of this type: F32 and F16 everywhere; block types need heads of
 * whole blocks. */
bool kernel_kv_available(const struct device *device, enum dtype dtype, int64_t head_length);
/* The same as an error that names what is missing. */
int kernels_kv_supported(const struct device *device, enum dtype dtype, int64_t head_length, struct err *err);

#ifdef __cplusplus
}
#endif
#endif
