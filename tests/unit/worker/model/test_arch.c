/* Models that must not load: one change to a good model of a family, and the message it must bring. The good
 * ones load, so every refusal is the change's. */
#include "tests/test.h"
#include "worker/model/model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { C = 48, F = 80, H = 6, G = 3, D = 8, V = 70, T = 32, E = 4, X = 24, LAYERS = 2 };

/* "name rows [columns [planes]]"; sizes as letters: C F V T, D of a head, Q = H * D, K = G * D, A = Q + 2 K,
 * P = 2 F, E experts, X their feed-forward length, R rotated pairs. */
#define ENDS    "token_embd.weight V C|output_norm.weight C|output.weight V C|"
#define ENDS_LN ENDS "output_norm.bias C|"
#define ATTN \
    "*attn_norm.weight C|*attn_q.weight Q C|*attn_k.weight K C|*attn_v.weight K C|*attn_output.weight C Q|"
#define FFN "*ffn_norm.weight C|*ffn_gate.weight F C|*ffn_up.weight F C|*ffn_down.weight C F|"
#define LN  "*attn_norm.bias C|*ffn_norm.bias C|"
#define MIX                                                                                                 \
    "*ffn_gate_inp.weight E C|*ffn_gate_exps.weight E X C|*ffn_up_exps.weight E X C|*ffn_down_exps.weight " \
    "E C X|"
#define EACH \
    "*ffn_gate_inp.weight E C|*ffn_norm.weight C|" EACH_OF(gate, X C) EACH_OF(up, X C) EACH_OF(down, C X)
#define EACH_OF(name, shape)                                                                                \
    "*ffn_" #name ".0.weight " #shape "|*ffn_" #name ".1.weight " #shape "|*ffn_" #name ".2.weight " #shape \
    "|*ffn_" #name ".3.weight " #shape "|"

static const struct family {
    const char *label, *arch, *tensors, *eps;
    bool routed;
} FAMILIES[] = {
    {"llama", "llama", ENDS ATTN FFN "rope_freqs.weight R|*attn_q.bias Q|", "layer_norm_rms_epsilon", false},
    {"mixtral", "llama", ENDS ATTN "*ffn_norm.weight C|" MIX, "layer_norm_rms_epsilon", true},
    {"each", "llama", ENDS ATTN EACH, "layer_norm_rms_epsilon", true},
    {"qwen2", "qwen2", ENDS ATTN FFN "*attn_q.bias Q|*attn_k.bias K|*attn_v.bias K|",
     "layer_norm_rms_epsilon", false},
    {"qwen3", "qwen3", ENDS ATTN FFN "*attn_q_norm.weight D|*attn_k_norm.weight D|", "layer_norm_rms_epsilon",
     false},
    {"qwen3moe", "qwen3moe", ENDS ATTN "*ffn_norm.weight C|*attn_q_norm.weight D|*attn_k_norm.weight D|" MIX,
     "layer_norm_rms_epsilon", true},
    {"gpt2", "gpt2",
     ENDS_LN LN
     "position_embd.weight T C|*attn_norm.weight C|*attn_qkv.weight A C|*attn_qkv.bias A|"
     "*attn_output.weight C Q|*attn_output.bias C|*ffn_norm.weight C|*ffn_up.weight F C|*ffn_up.bias F|"
     "*ffn_down.weight C F|*ffn_down.bias C|",
     "layer_norm_epsilon", false},
    {"gemma", "gemma", ENDS ATTN FFN, "layer_norm_rms_epsilon", false},
    {"gemma2", "gemma2", ENDS ATTN FFN "*post_attention_norm.weight C|*post_ffw_norm.weight C|",
     "layer_norm_rms_epsilon", false},
    {"phi3", "phi3",
     ENDS "*attn_norm.weight C|*attn_qkv.weight A C|*attn_output.weight C Q|*ffn_norm.weight C|"
          "*ffn_up.weight P C|*ffn_down.weight C F|",
     "layer_norm_rms_epsilon", false},
    {"long", "phi3",
     ENDS "*attn_norm.weight C|*attn_qkv.weight A C|*attn_output.weight C Q|*ffn_norm.weight C|"
          "*ffn_up.weight P C|*ffn_down.weight C F|rope_factors_long.weight R|rope_factors_short.weight R|",
     "layer_norm_rms_epsilon", false},
    {"stablelm", "stablelm", ENDS_LN LN ATTN FFN, "layer_norm_epsilon", false},
};

enum change_kind {
    NOTHING,
    SET_UINT, /* metadata `where` (behind "<arch>." unless it holds "general") */
    SET_FLOAT,
    SET_BOOL,
    SET_STRING,
    DROP_KEY,
    DROP_TENSOR,
    ADD_TENSOR, /* a vector of `value` */
    RESHAPE,    /* the first dimension becomes `value` */
    FLATTEN,    /* all in one dimension */
    RETYPE,     /* to the enum dtype `value` */
    NEGATE,     /* values are -1, not 0 or 1 */
};

struct change {
    const char *family;
    enum change_kind kind;
    const char *where;
    double value;
    const char *text, *message;
};

static const struct change BAD[] = {
    /* metadata: absent, out of range, contradictory */
    {"llama", DROP_KEY, "general.architecture", 0, 0, "metadata key general.architecture is missing"},
    {"llama", SET_STRING, "general.architecture", 0, "bloom",
     "\"bloom\" is not supported, expected one of: llama, "},
    {"llama", DROP_KEY, "block_count", 0, 0, "metadata key llama.block_count is missing"},
    {"llama", SET_UINT, "block_count", 0, 0, "llama.block_count is 0, expected 1 to"},
    {"llama", SET_UINT, "block_count", 3, 0, "tensor blk.2.attn_norm.weight is missing"},
    {"llama", SET_UINT, "block_count", 1, 0, "tensor blk.1."},
    {"llama", SET_STRING, "block_count", 0, "two", "llama.block_count"},
    {"llama", DROP_KEY, "embedding_length", 0, 0, "llama.embedding_length is missing"},
    {"llama", SET_UINT, "embedding_length", 47, 0, "metadata key llama.attention.key_length is missing"},
    {"qwen2", SET_UINT, "embedding_length", 96, 0, "tensor token_embd.weight is [70, 48], expected [70, 96]"},
    {"llama", DROP_KEY, "feed_forward_length", 0, 0, "llama.feed_forward_length is missing"},
    {"llama", SET_UINT, "feed_forward_length", 81, 0,
     "tensor blk.0.ffn_gate.weight is [80, 48], expected [81, 48]"},
    {"llama", DROP_KEY, "context_length", 0, 0, "llama.context_length is missing"},
    {"llama", DROP_KEY, "attention.head_count", 0, 0, "llama.attention.head_count is missing"},
    {"llama", SET_UINT, "attention.head_count_kv", 4, 0, "expected a multiple of head_count_kv (4)"},
    {"llama", SET_UINT, "attention.head_count_kv", 0, 0, "llama.attention.head_count_kv is 0"},
    {"llama", SET_UINT, "attention.value_length", 16, 0, "key length 8 and value length 16: expected equal"},
    {"llama", DROP_KEY, "attention.layer_norm_rms_epsilon", 0, 0, "layer_norm_rms_epsilon is missing"},
    {"gpt2", DROP_KEY, "attention.layer_norm_epsilon", 0, 0, "gpt2.attention.layer_norm_epsilon is missing"},
    {"llama", SET_FLOAT, "attention.layer_norm_rms_epsilon", -1, 0,
     "layer_norm_rms_epsilon is -1, expected 0 to 1"},
    {"llama", SET_FLOAT, "attention.layer_norm_rms_epsilon", NAN, 0, "layer_norm_rms_epsilon is nan"},
    {"llama", SET_FLOAT, "attention.scale", 0, 0, "llama.attention.scale is 0, expected"},
    {"llama", DROP_KEY, "attention.head_count_kv", 0, 0,
     "tensor blk.0.attn_k.weight is [24, 48], expected [48, 48]"},
    /* rotation */
    {"llama", SET_UINT, "rope.dimension_count", 10, 0, "llama.rope.dimension_count is 10, expected 2 to 8"},
    {"stablelm", SET_UINT, "rope.dimension_count", 3, 0,
     "stablelm.rope.dimension_count is 3, expected an even number"},
    {"llama", SET_FLOAT, "rope.freq_base", 1, 0, "llama.rope.freq_base is 1, expected"},
    {"llama", SET_STRING, "rope.scaling.type", 0, "longrope",
     "\"longrope\" is not supported without rope_factors tensors"},
    {"llama", SET_FLOAT, "rope.scaling.factor", 0, 0, "llama.rope.scaling.factor is 0, expected"},
    {"llama", SET_FLOAT, "rope.scaling.yarn_log_multiplier", 0.1, 0,
     "llama.rope.scaling.yarn_log_multiplier: llama models"},
    {"llama", NEGATE, "rope_freqs.weight", 0, 0,
     "tensor rope_freqs.weight: value 0 is -1, expected more than 0"},
    {"llama", RESHAPE, "rope_freqs.weight", 5, 0, "tensor rope_freqs.weight: expected 4 f32 values"},
    {"llama", SET_STRING, "rope.scaling.type", 0, "dynamic",
     "\"dynamic\" is not supported, expected none, linear, yarn or longrope"},
    {"phi3", ADD_TENSOR, "rope_factors_long.weight", 4, 0,
     "metadata key phi3.rope.scaling.attn_factor is missing"},
    {"long", DROP_KEY, "rope.scaling.original_context_length", 0, 0,
     "metadata key phi3.rope.scaling.original_context_length is missing"},
    {"long", DROP_TENSOR, "rope_factors_long.weight", 0, 0, "tensor rope_factors_long.weight is missing"},
    {"long", RESHAPE, "rope_factors_long.weight", 3, 0,
     "tensor rope_factors_long.weight: expected 4 f32 values"},
    {"long", NEGATE, "rope_factors_long.weight", 0, 0, "rope_factors_long.weight: value 0 is -1"},
    {"long", SET_STRING, "rope.scaling.type", 0, "yarn",
     "\"yarn\" contradicts the file's rope_factors tensors"},
    {"llama", ADD_TENSOR, "rope_factors_short.weight", 4, 0,
     "tensor rope_factors_short.weight: llama models"},
    {"qwen2", ADD_TENSOR, "rope_freqs.weight", 4, 0, "tensor rope_freqs.weight: qwen2 models"},
    /* keys that the family does not read */
    {"qwen2", SET_UINT, "attention.sliding_window", 8, 0,
     "qwen2.attention.sliding_window: qwen2 models with this key set (to 8)"},
    {"llama", SET_FLOAT, "attn_logit_softcapping", 30, 0, "llama.attn_logit_softcapping: llama models"},
    {"gemma", SET_FLOAT, "final_logit_softcapping", 30, 0, "gemma.final_logit_softcapping: gemma models"},
    {"gemma2", SET_FLOAT, "final_logit_softcapping", -30, 0,
     "gemma2.final_logit_softcapping is -30, expected"},
    {"gemma2", SET_UINT, "attn_logit_softcapping", 50, 0, "gemma2.attn_logit_softcapping"},
    {"qwen2", SET_UINT, "expert_count", 8, 0, "qwen2.expert_count: qwen2 models"},
    {"stablelm", SET_BOOL, "use_parallel_residual", 1, 0, "stablelm.use_parallel_residual: stablelm models"},
    {"llama", SET_BOOL, "attention.causal", 0, 0, "llama.attention.causal: llama models"},
    {"llama", SET_FLOAT, "attention.max_alibi_bias", 8, 0, "llama.attention.max_alibi_bias"},
    {"llama", SET_FLOAT, "logit_scale", 0.5, 0, "llama.logit_scale: llama models with this key set (to 0.5)"},
    {"llama", SET_STRING, "rope.dimension_sections", 0, "16,24",
     "llama.rope.dimension_sections: llama models"},
    {"phi3", DROP_KEY, "attention.sliding_window", 0, 0,
     "metadata key phi3.attention.sliding_window is missing"},
    /* experts */
    {"mixtral", SET_UINT, "expert_used_count", 0, 0,
     "llama.expert_used_count is 0, expected 1 to expert_count (4)"},
    {"mixtral", SET_UINT, "expert_used_count", 5, 0,
     "llama.expert_used_count is 5, expected 1 to expert_count (4)"},
    {"llama", SET_UINT, "expert_used_count", 2, 0,
     "llama.expert_used_count is 2, expected 1 to expert_count (0)"},
    {"mixtral", SET_UINT, "expert_count", 5, 0,
     "tensor blk.0.ffn_gate_inp.weight is [4, 48], expected [5, 48]"},
    {"llama", SET_UINT, "expert_count", 4, 0, "llama.expert_used_count is 0"},
    {"qwen3moe", SET_UINT, "expert_shared_count", 1, 0, "qwen3moe.expert_shared_count: qwen3moe models"},
    {"qwen3moe", SET_UINT, "expert_gating_func", 2, 0, "qwen3moe.expert_gating_func: qwen3moe models"},
    {"qwen3moe", SET_UINT, "expert_feed_forward_length", 25, 0, "expected [4, 25, 48]"},
    {"qwen3moe", DROP_TENSOR, "blk.1.ffn_gate_inp.weight", 0, 0,
     "tensor blk.1.ffn_gate_inp.weight is missing"},
    {"mixtral", DROP_TENSOR, "blk.0.ffn_down_exps.weight", 0, 0,
     "tensor blk.0.ffn_down_exps.weight is missing"},
    {"mixtral", RESHAPE, "blk.1.ffn_up_exps.weight", 3, 0,
     "tensor blk.1.ffn_up_exps.weight is [3, 24, 48], expected [4, 24, 48]"},
    {"mixtral", FLATTEN, "blk.0.ffn_up_exps.weight", 0, 0,
     "tensor blk.0.ffn_up_exps.weight is [4608], expected [4, 24, 48]"},
    {"mixtral", ADD_TENSOR, "blk.0.ffn_gate.0.weight", 4, 0,
     "tensor blk.0.ffn_gate.0.weight: llama models of 2 layers with experts have no"},
    {"mixtral", ADD_TENSOR, "blk.0.ffn_up_shexp.weight", 4, 0,
     "tensor blk.0.ffn_up_shexp.weight: llama models"},
    {"each", DROP_TENSOR, "blk.1.ffn_up.2.weight", 0, 0, "tensor blk.1.ffn_up.2.weight is missing"},
    {"each", RESHAPE, "blk.1.ffn_down.3.weight", 47, 0,
     "tensor blk.1.ffn_down.3.weight is [47, 24], expected [48, 24]"},
    {"each", RETYPE, "blk.0.ffn_gate.1.weight", DTYPE_F16, 0,
     "tensor blk.0.ffn_gate.1.weight has type f16, expected f32"},
    {"each", ADD_TENSOR, "blk.0.ffn_gate.4.weight", 4, 0, "tensor blk.0.ffn_gate.4.weight: llama models"},
    {"each", ADD_TENSOR, "blk.0.ffn_gate.01.weight", 4, 0, "tensor blk.0.ffn_gate.01.weight: llama models"},
    /* tensors: absent, misshapen, of a type that cannot be, or more than there should be */
    {"llama", DROP_TENSOR, "token_embd.weight", 0, 0, "tensor token_embd.weight is missing"},
    {"llama", FLATTEN, "token_embd.weight", 0, 0, "tensor token_embd.weight has 1 dimensions, expected 2"},
    {"llama", DROP_TENSOR, "output_norm.weight", 0, 0, "tensor output_norm.weight is missing"},
    {"llama", DROP_TENSOR, "blk.1.ffn_up.weight", 0, 0, "tensor blk.1.ffn_up.weight is missing"},
    {"llama", RESHAPE, "blk.0.attn_k.weight", 48, 0,
     "tensor blk.0.attn_k.weight is [48, 48], expected [24, 48]"},
    {"llama", RESHAPE, "blk.1.attn_q.bias", 47, 0, "tensor blk.1.attn_q.bias is [47], expected [48]"},
    {"llama", RESHAPE, "output.weight", 71, 0, "tensor output.weight is [71, 48], expected [70, 48]"},
    {"llama", FLATTEN, "blk.0.attn_q.weight", 0, 0,
     "tensor blk.0.attn_q.weight is [2304], expected [48, 48]"},
    {"llama", RETYPE, "blk.1.attn_v.weight", DTYPE_I32, 0, "tensor blk.1.attn_v.weight has type i32"},
    {"llama", RETYPE, "output_norm.weight", DTYPE_I32, 0, "tensor output_norm.weight has type i32"},
    {"llama", ADD_TENSOR, "blk.0.attn_q_norm.weight", 8, 0, "tensor blk.0.attn_q_norm.weight: llama models"},
    {"llama", ADD_TENSOR, "blk.0.attn_sinks.weight", 6, 0, "tensor blk.0.attn_sinks.weight: llama models"},
    {"llama", ADD_TENSOR, "blk.2.attn_norm.weight", C, 0,
     "tensor blk.2.attn_norm.weight: llama models of 2 layers"},
    {"llama", ADD_TENSOR, "blk.00.attn_norm.weight", C, 0, "tensor blk.00.attn_norm.weight: llama models"},
    {"llama", ADD_TENSOR, "output_norm.bias", C, 0, "tensor output_norm.bias: llama models"},
    {"llama", ADD_TENSOR, "v.patch_embd.weight", 8, 0, "tensor v.patch_embd.weight: llama models"},
    {"qwen2", DROP_TENSOR, "blk.0.attn_k.bias", 0, 0, "tensor blk.0.attn_k.bias is missing"},
    {"qwen2", ADD_TENSOR, "blk.1.attn_output.bias", C, 0, "tensor blk.1.attn_output.bias: qwen2 models"},
    {"qwen3", DROP_TENSOR, "blk.1.attn_k_norm.weight", 0, 0, "tensor blk.1.attn_k_norm.weight is missing"},
    {"qwen3", RESHAPE, "blk.0.attn_q_norm.weight", 48, 0,
     "tensor blk.0.attn_q_norm.weight is [48], expected [8]"},
    {"qwen3", ADD_TENSOR, "blk.0.attn_q.bias", C, 0, "tensor blk.0.attn_q.bias: qwen3 models"},
    {"gpt2", DROP_TENSOR, "position_embd.weight", 0, 0, "tensor position_embd.weight is missing"},
    {"gpt2", RESHAPE, "position_embd.weight", 31, 0,
     "tensor position_embd.weight is [31, 48], expected [32, 48]"},
    {"gpt2", RESHAPE, "blk.0.attn_qkv.weight", 95, 0,
     "tensor blk.0.attn_qkv.weight is [95, 48], expected [96, 48]"},
    {"gpt2", DROP_TENSOR, "blk.1.ffn_down.bias", 0, 0, "tensor blk.1.ffn_down.bias is missing"},
    {"gpt2", ADD_TENSOR, "blk.0.ffn_gate.weight", 4, 0, "tensor blk.0.ffn_gate.weight: gpt2 models"},
    {"gemma2", DROP_TENSOR, "blk.0.post_ffw_norm.weight", 0, 0,
     "tensor blk.0.post_ffw_norm.weight is missing"},
    {"gemma", ADD_TENSOR, "blk.0.post_ffw_norm.weight", C, 0,
     "tensor blk.0.post_ffw_norm.weight: gemma models"},
    {"phi3", RESHAPE, "blk.1.ffn_up.weight", 80, 0,
     "tensor blk.1.ffn_up.weight is [80, 48], expected [160, 48]"},
    {"phi3", ADD_TENSOR, "blk.0.attn_qkv.bias", 96, 0, "tensor blk.0.attn_qkv.bias: phi3 models"},
    {"stablelm", ADD_TENSOR, "blk.0.attn_q_norm.weight", 8, 0,
     "tensor blk.0.attn_q_norm.weight: stablelm models"},
    {"stablelm", DROP_TENSOR, "blk.0.ffn_norm.weight", 0, 0, "tensor blk.0.ffn_norm.weight is missing"},
};

/* ---- writing the models */

static char path[] = "/tmp/lepton-test-arch-XXXXXX";

struct writer {
    struct gguf_writer *w;
    const struct change *change;
    const char *arch;
    bool data; /* second pass: the tensors' bytes, in the same order */
};

static bool key_kept(const struct writer *w, const char *key)
{
    const struct change *c = w->change;
    return !(c->kind >= SET_UINT && c->kind <= DROP_KEY && strcmp(key, c->where) == 0);
}

static const char *full_key(const struct writer *w, const char *key, char out[128])
{
    snprintf(out, 128, "%s%s%s", strncmp(key, "general.", 8) ? w->arch : "",
             strncmp(key, "general.", 8) ? "." : "", key);
    return out;
}

static void put_uint(struct writer *w, const char *key, uint64_t value)
{
    char full[128];
    if (key_kept(w, key))
        gguf_writer_uint(w->w, full_key(w, key, full), value);
}

static void put_metadata(struct writer *w, const struct family *f)
{
    const struct change *c = w->change;
    char full[128], eps[64];
    snprintf(eps, sizeof(eps), "attention.%s", f->eps);
    if (key_kept(w, "general.architecture"))
        gguf_writer_string(w->w, "general.architecture", f->arch);
    put_uint(w, "block_count", LAYERS);
    put_uint(w, "context_length", T);
    put_uint(w, "embedding_length", C);
    put_uint(w, "feed_forward_length", F);
    put_uint(w, "attention.head_count", H);
    put_uint(w, "attention.head_count_kv", G);
    if (strcmp(f->arch, "phi3") == 0)
        put_uint(w, "attention.sliding_window", 12);
    if (strcmp(f->label, "long") == 0) {
        put_uint(w, "rope.scaling.original_context_length", T / 2);
        gguf_writer_float(w->w, "phi3.rope.scaling.attn_factor", 1.1);
    }
    if (f->routed) {
        put_uint(w, "expert_count", E);
        put_uint(w, "expert_used_count", 2);
        put_uint(w, "expert_feed_forward_length", X);
    }
    if (key_kept(w, eps))
        gguf_writer_float(w->w, full_key(w, eps, full), 1e-5);
    if (c->kind == SET_UINT)
        gguf_writer_uint(w->w, full_key(w, c->where, full), (uint64_t)c->value);
    else if (c->kind == SET_FLOAT)
        gguf_writer_float(w->w, full_key(w, c->where, full), c->value);
    else if (c->kind == SET_BOOL)
        gguf_writer_bool(w->w, full_key(w, c->where, full), c->value != 0);
    else if (c->kind == SET_STRING)
        gguf_writer_string(w->w, full_key(w, c->where, full), c->text);
}

static void put_tensor(struct writer *w, const char *name, int ndim, const int64_t *shape)
{
    const struct change *c = w->change;
    bool changed = c->where && strcmp(c->where, name) == 0;
    enum dtype dtype = DTYPE_F32;
    int64_t dim[4] = {shape[0], ndim > 1 ? shape[1] : 1, ndim > 2 ? shape[2] : 1}, elements = 1;
    if (changed && c->kind == DROP_TENSOR)
        return;
    if (changed && c->kind == RESHAPE)
        dim[0] = (int64_t)c->value;
    for (int i = 0; i < ndim; i++)
        elements *= dim[i];
    if (changed && c->kind == FLATTEN) {
        ndim = 1;
        dim[0] = elements;
    }
    if (changed && c->kind == RETYPE)
        dtype = (enum dtype)c->value;
    if (!w->data) {
        gguf_writer_tensor(w->w, name, dtype, ndim, dim);
        return;
    }
    struct err err;
    uint64_t bytes = 0;
    dtype_row_bytes(dtype, (uint64_t)elements, &bytes);
    float *values = calloc(1, bytes + sizeof(float));
    for (int64_t i = 0; ndim == 1 && dtype == DTYPE_F32 && i < elements; i++)
        values[i] = changed && c->kind == NEGATE ? -1.0f : 1.0f;
    if (gguf_writer_data(w->w, values, bytes, &err))
        die("%s", err.message);
    free(values);
}

static int64_t size_of(char letter)
{
    static const char LETTERS[] = "CFVTDQKAPEXR";
    static const int64_t SIZES[] = {C, F, V, T, D, H * D, G * D, (H + 2 * G) * D, 2 * F, E, X, D / 2};
    const char *at = strchr(LETTERS, letter);
    ASSERT(letter && at);
    return SIZES[at - LETTERS];
}

static void put_tensors(struct writer *w, const struct family *f)
{
    for (const char *at = f->tensors; *at; at = strchr(at, '|') + 1) {
        char name[64], full[128];
        int64_t shape[4] = {0};
        int ndim = 0;
        bool layered = *at == '*';
        const char *space = strchr(at, ' ');
        snprintf(name, sizeof(name), "%.*s", (int)(space - at - layered), at + layered);
        for (; *space == ' '; space += 2)
            shape[ndim++] = size_of(space[1]);
        for (int layer = 0; layer < (layered ? LAYERS : 1); layer++) {
            if (layered)
                snprintf(full, sizeof(full), "blk.%d.%s", layer, name);
            else
                snprintf(full, sizeof(full), "%s", name);
            put_tensor(w, full, ndim, shape);
        }
    }
    if (w->change->kind == ADD_TENSOR) {
        struct change plain = {.kind = NOTHING};
        struct writer added = *w;
        added.change = &plain;
        put_tensor(&added, w->change->where, 1, (int64_t[]){(int64_t)w->change->value});
    }
}

/* Writes the family's model with one change and opens it. */
static int open_model(const struct family *f, const struct change *change, struct err *err)
{
    struct writer w = {.change = change, .arch = f->arch};
    struct gguf *g = NULL;
    struct device *device = NULL;
    struct model *model = NULL;
    struct device_options options = {.threads = 1};
    if (gguf_writer_open(&w.w, path, err))
        die("%s", err->message);
    put_metadata(&w, f);
    put_tensors(&w, f);
    w.data = true;
    if (gguf_writer_begin(w.w, err))
        die("%s", err->message);
    put_tensors(&w, f);
    if (gguf_writer_close(&w.w, err) || gguf_open(&g, path, err) ||
        device_open(&device, "cpu", &options, err))
        die("%s", err->message);
    int code = model_open(&model, g, device, NULL, err);
    CHECK((code == 0) == (model != NULL));
    model_close(&model);
    device_close(&device);
    gguf_close(&g);
    unlink(path);
    return code;
}

static const struct family *family_of(const char *label)
{
    for (size_t i = 0; i < ARRAY_LEN(FAMILIES); i++)
        if (strcmp(FAMILIES[i].label, label) == 0)
            return &FAMILIES[i];
    ASSERT(!"a family that is in the table");
    return NULL;
}

/* ---- the tests */

static void test_good_models_load(void)
{
    static const struct change NONE = {.kind = NOTHING};
    for (size_t i = 0; i < ARRAY_LEN(FAMILIES); i++) {
        struct err err = {0};
        int code = open_model(&FAMILIES[i], &NONE, &err);
        if (code)
            printf("# %s: %s\n", FAMILIES[i].label, err.message);
        CHECK_INT(code, 0);
    }
}

static void test_bad_models_are_refused_by_name(void)
{
    for (size_t i = 0; i < ARRAY_LEN(BAD); i++) {
        struct err err = {0};
        int code = open_model(family_of(BAD[i].family), &BAD[i], &err);
        if (code == 0)
            printf("# loaded: %s, %s\n", BAD[i].family, BAD[i].message);
        CHECK_INT(code, -1);
        CHECK_CONTAINS(err.message, BAD[i].message);
        CHECK_CONTAINS(err.message, path); /* which file */
    }
}

/* What a family may lack, or say in a way that changes nothing. */
static void test_harmless_differences_load(void)
{
    static const struct change HARMLESS[] = {
        {"llama", DROP_TENSOR, "output.weight", 0, 0, 0},
        {"llama", DROP_TENSOR, "rope_freqs.weight", 0, 0, 0},
        {"llama", SET_UINT, "vocab_size", 70, 0, 0},
        {"llama", SET_UINT, "expert_count", 0, 0, 0},
        {"llama", SET_FLOAT, "logit_scale", 1, 0, 0},
        {"llama", SET_UINT, "attention.sliding_window", 8, 0, 0},
        {"llama", SET_STRING, "rope.scaling.type", 0, "none", 0},
        {"qwen2", SET_UINT, "attention.sliding_window", 0, 0, 0},
        {"stablelm", SET_BOOL, "use_parallel_residual", 0, 0, 0},
        {"gpt2", SET_BOOL, "attention.causal", 1, 0, 0},
        {"phi3", SET_UINT, "attention.sliding_window", 0, 0, 0},
        {"llama", ADD_TENSOR, "blk.1.attn_rot_embd.freqs", 4, 0, 0},
        {"mixtral", SET_BOOL, "expert_weights_norm", 0, 0, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(HARMLESS); i++) {
        struct err err = {0};
        int code = open_model(family_of(HARMLESS[i].family), &HARMLESS[i], &err);
        if (code)
            printf("# %s %s: %s\n", HARMLESS[i].family, HARMLESS[i].where, err.message);
        CHECK_INT(code, 0);
    }
}

int main(void)
{
    close(mkstemp(path));
    TEST(test_good_models_load, "a good model of every family loads");
    TEST(test_bad_models_are_refused_by_name, "bad models are refused, each by its own name");
    TEST(test_harmless_differences_load, "what changes nothing is no reason to refuse");
    return test_result();
}
