/* arch_table: the families, one row each. Sources: the papers and model cards of the families; names and
 * shapes as the GGUF files in circulation have them. */
#include <string.h>

#include "worker/model/arch.h"

/* ---- pieces that families share */

#define TOKEN_EMBED                                                                        \
    {                                                                                      \
        TENSOR_TOKEN_EMBED, "token_embd.weight", DIM_VOCAB, DIM_EMBED, NEEDED, false, NULL \
    }
#define OUTPUT_NORM                                                                        \
    {                                                                                      \
        TENSOR_OUTPUT_NORM, "output_norm.weight", DIM_EMBED, DIM_NONE, NEEDED, false, NULL \
    }
#define OUTPUT                                                                      \
    {                                                                               \
        TENSOR_OUTPUT, "output.weight", DIM_VOCAB, DIM_EMBED, OPTIONAL, false, NULL \
    }
#define ROPE_DIVISORS                                                                        \
    {                                                                                        \
        TENSOR_ROPE_DIVISORS, "rope_freqs.weight", DIM_ROPE, DIM_NONE, OPTIONAL, false, NULL \
    }
#define OUTPUT_NORM_BIAS                                                                      \
    {                                                                                         \
        TENSOR_OUTPUT_NORM_BIAS, "output_norm.bias", DIM_EMBED, DIM_NONE, NEEDED, false, NULL \
    }

#define MATRIX(tensor, name, rows, columns)              \
    {                                                    \
        tensor, name, rows, columns, NEEDED, false, NULL \
    }
#define VECTOR(tensor, name, rows, presence)                \
    {                                                       \
        tensor, name, rows, DIM_NONE, presence, false, NULL \
    }
#define DENSE(tensor, name, rows, columns)                   \
    {                                                        \
        tensor, name, rows, columns, DENSE_ONLY, false, NULL \
    }
#define EXPERTS(tensor, name, rows, columns, each)           \
    {                                                        \
        tensor, name, rows, columns, ROUTED_ONLY, true, each \
    }

#define ATTN_NORM VECTOR(TENSOR_ATTN_NORM, "attn_norm.weight", DIM_EMBED, NEEDED)
#define FFN_NORM  VECTOR(TENSOR_FFN_NORM, "ffn_norm.weight", DIM_EMBED, NEEDED)

#define ATTN_MATRICES                                              \
    MATRIX(TENSOR_ATTN_Q, "attn_q.weight", DIM_QUERY, DIM_EMBED),  \
        MATRIX(TENSOR_ATTN_K, "attn_k.weight", DIM_KV, DIM_EMBED), \
        MATRIX(TENSOR_ATTN_V, "attn_v.weight", DIM_KV, DIM_EMBED), \
        MATRIX(TENSOR_ATTN_OUTPUT, "attn_output.weight", DIM_EMBED, DIM_QUERY)

#define ATTN_BIASES(presence)                                        \
    VECTOR(TENSOR_ATTN_Q_BIAS, "attn_q.bias", DIM_QUERY, presence),  \
        VECTOR(TENSOR_ATTN_K_BIAS, "attn_k.bias", DIM_KV, presence), \
        VECTOR(TENSOR_ATTN_V_BIAS, "attn_v.bias", DIM_KV, presence)

#define ATTN_HEAD_NORMS                                                 \
    VECTOR(TENSOR_ATTN_Q_NORM, "attn_q_norm.weight", DIM_HEAD, NEEDED), \
        VECTOR(TENSOR_ATTN_K_NORM, "attn_k_norm.weight", DIM_HEAD, NEEDED)

#define FFN_GATED                                                  \
    DENSE(TENSOR_FFN_GATE, "ffn_gate.weight", DIM_FFN, DIM_EMBED), \
        DENSE(TENSOR_FFN_UP, "ffn_up.weight", DIM_FFN, DIM_EMBED), \
        DENSE(TENSOR_FFN_DOWN, "ffn_down.weight", DIM_EMBED, DIM_FFN)

#define FFN_ROUTED                                                                                      \
    {TENSOR_ROUTER, "ffn_gate_inp.weight", DIM_EXPERTS, DIM_EMBED, ROUTED_ONLY, false, NULL},           \
        EXPERTS(TENSOR_EXPERT_GATE, "ffn_gate_exps.weight", DIM_EXPERT_FFN, DIM_EMBED,                  \
                "ffn_gate.%d.weight"),                                                                  \
        EXPERTS(TENSOR_EXPERT_UP, "ffn_up_exps.weight", DIM_EXPERT_FFN, DIM_EMBED, "ffn_up.%d.weight"), \
        EXPERTS(TENSOR_EXPERT_DOWN, "ffn_down_exps.weight", DIM_EMBED, DIM_EXPERT_FFN, "ffn_down.%d.weight")

/* ---- llama: Llama 2 and 3, Mistral, TinyLlama, SmolLM; Mixtral with experts */

static const struct arch_tensor_row llama_global[] = {TOKEN_EMBED, OUTPUT_NORM, OUTPUT, ROPE_DIVISORS};

static const struct arch_tensor_row llama_layer[] = {
    ATTN_NORM,
    ATTN_MATRICES,
    ATTN_BIASES(OPTIONAL),
    VECTOR(TENSOR_ATTN_OUTPUT_BIAS, "attn_output.bias", DIM_EMBED, OPTIONAL),
    FFN_NORM,
    FFN_GATED,
    VECTOR(TENSOR_FFN_GATE_BIAS, "ffn_gate.bias", DIM_FFN, DENSE_OPTION),
    VECTOR(TENSOR_FFN_UP_BIAS, "ffn_up.bias", DIM_FFN, DENSE_OPTION),
    VECTOR(TENSOR_FFN_DOWN_BIAS, "ffn_down.bias", DIM_EMBED, DENSE_OPTION),
    FFN_ROUTED,
};

/* ---- qwen2: as llama, with biases on queries, keys and values; qwen3: norms on the heads instead */

static const struct arch_tensor_row plain_global[] = {TOKEN_EMBED, OUTPUT_NORM, OUTPUT};

static const struct arch_tensor_row qwen2_layer[] = {ATTN_NORM, ATTN_MATRICES, ATTN_BIASES(NEEDED), FFN_NORM,
                                                     FFN_GATED};

static const struct arch_tensor_row qwen3_layer[] = {ATTN_NORM, ATTN_MATRICES, ATTN_HEAD_NORMS, FFN_NORM,
                                                     FFN_GATED};

static const struct arch_tensor_row qwen3moe_layer[] = {ATTN_NORM, ATTN_MATRICES, ATTN_HEAD_NORMS, FFN_NORM,
                                                        FFN_ROUTED};

/* ---- gpt2 */

static const struct arch_tensor_row gpt2_global[] = {
    TOKEN_EMBED, MATRIX(TENSOR_POSITION_EMBED, "position_embd.weight", DIM_CONTEXT, DIM_EMBED),
    OUTPUT_NORM, OUTPUT_NORM_BIAS,
    OUTPUT,
};

static const struct arch_tensor_row gpt2_layer[] = {
    ATTN_NORM,
    VECTOR(TENSOR_ATTN_NORM_BIAS, "attn_norm.bias", DIM_EMBED, NEEDED),
    MATRIX(TENSOR_ATTN_Q, "attn_qkv.weight", DIM_QUERY, DIM_EMBED),
    MATRIX(TENSOR_ATTN_K, "attn_qkv.weight", DIM_KV, DIM_EMBED),
    MATRIX(TENSOR_ATTN_V, "attn_qkv.weight", DIM_KV, DIM_EMBED),
    VECTOR(TENSOR_ATTN_Q_BIAS, "attn_qkv.bias", DIM_QUERY, NEEDED),
    VECTOR(TENSOR_ATTN_K_BIAS, "attn_qkv.bias", DIM_KV, NEEDED),
    VECTOR(TENSOR_ATTN_V_BIAS, "attn_qkv.bias", DIM_KV, NEEDED),
    MATRIX(TENSOR_ATTN_OUTPUT, "attn_output.weight", DIM_EMBED, DIM_QUERY),
    VECTOR(TENSOR_ATTN_OUTPUT_BIAS, "attn_output.bias", DIM_EMBED, NEEDED),
    FFN_NORM,
    VECTOR(TENSOR_FFN_NORM_BIAS, "ffn_norm.bias", DIM_EMBED, NEEDED),
    MATRIX(TENSOR_FFN_UP, "ffn_up.weight", DIM_FFN, DIM_EMBED),
    VECTOR(TENSOR_FFN_UP_BIAS, "ffn_up.bias", DIM_FFN, NEEDED),
    MATRIX(TENSOR_FFN_DOWN, "ffn_down.weight", DIM_EMBED, DIM_FFN),
    VECTOR(TENSOR_FFN_DOWN_BIAS, "ffn_down.bias", DIM_EMBED, NEEDED),
};

/* ---- gemma, gemma2. The files' norm gains already hold the 1 that the papers add. */

static const struct arch_tensor_row gemma_layer[] = {ATTN_NORM, ATTN_MATRICES, FFN_NORM, FFN_GATED};

static const struct arch_tensor_row gemma2_layer[] = {
    ATTN_NORM, ATTN_MATRICES, VECTOR(TENSOR_ATTN_POST_NORM, "post_attention_norm.weight", DIM_EMBED, NEEDED),
    FFN_NORM,  FFN_GATED,     VECTOR(TENSOR_FFN_POST_NORM, "post_ffw_norm.weight", DIM_EMBED, NEEDED),
};

/* ---- phi3: one matrix for queries, keys and values, one for gate and up */

static const struct arch_tensor_row phi3_global[] = {
    TOKEN_EMBED,
    OUTPUT_NORM,
    OUTPUT,
    VECTOR(TENSOR_ROPE_LONG, "rope_factors_long.weight", DIM_ROPE, OPTIONAL),
    VECTOR(TENSOR_ROPE_SHORT, "rope_factors_short.weight", DIM_ROPE, OPTIONAL),
};

static const struct arch_tensor_row phi3_layer[] = {
    ATTN_NORM,
    MATRIX(TENSOR_ATTN_Q, "attn_qkv.weight", DIM_QUERY, DIM_EMBED),
    MATRIX(TENSOR_ATTN_K, "attn_qkv.weight", DIM_KV, DIM_EMBED),
    MATRIX(TENSOR_ATTN_V, "attn_qkv.weight", DIM_KV, DIM_EMBED),
    MATRIX(TENSOR_ATTN_OUTPUT, "attn_output.weight", DIM_EMBED, DIM_QUERY),
    FFN_NORM,
    MATRIX(TENSOR_FFN_GATE, "ffn_up.weight", DIM_FFN, DIM_EMBED),
    MATRIX(TENSOR_FFN_UP, "ffn_up.weight", DIM_FFN, DIM_EMBED),
    MATRIX(TENSOR_FFN_DOWN, "ffn_down.weight", DIM_EMBED, DIM_FFN),
};

/* ---- stablelm: LayerNorm, part of a head rotated */

static const struct arch_tensor_row layernorm_global[] = {TOKEN_EMBED, OUTPUT_NORM, OUTPUT_NORM_BIAS, OUTPUT};

static const struct arch_tensor_row stablelm_layer[] = {
    ATTN_NORM,     VECTOR(TENSOR_ATTN_NORM_BIAS, "attn_norm.bias", DIM_EMBED, NEEDED),
    ATTN_MATRICES, ATTN_BIASES(OPTIONAL),
    FFN_NORM,      VECTOR(TENSOR_FFN_NORM_BIAS, "ffn_norm.bias", DIM_EMBED, NEEDED),
    FFN_GATED,
};

#define TABLES(globals, layers) \
    .global = globals, .global_count = ARRAY_LEN(globals), .layer = layers, .layer_count = ARRAY_LEN(layers)

static const struct arch archs[] = {
    {.name = "llama",
     TABLES(llama_global, llama_layer),
     .rope_pairs = ROPE_INTERLEAVED,
     .window = WINDOW_ALL,
     .routed = true},
    {.name = "qwen2", TABLES(plain_global, qwen2_layer), .rope_pairs = ROPE_HALVES},
    {.name = "qwen3", TABLES(plain_global, qwen3_layer), .rope_pairs = ROPE_HALVES},
    {.name = "qwen3moe", TABLES(plain_global, qwen3moe_layer), .rope_pairs = ROPE_HALVES, .routed = true},
    {.name = "gpt2",
     TABLES(gpt2_global, gpt2_layer),
     .norm = NORM_LAYER,
     .positions = POSITIONS_LEARNED,
     .activation = ACTIVATION_GELU_TANH},
    {.name = "gemma",
     TABLES(plain_global, gemma_layer),
     .rope_pairs = ROPE_HALVES,
     .activation = ACTIVATION_GELU_TANH,
     .scaled_embedding = true},
    {.name = "gemma2",
     TABLES(plain_global, gemma2_layer),
     .rope_pairs = ROPE_HALVES,
     .activation = ACTIVATION_GELU_TANH,
     .window = WINDOW_EVEN,
     .window_length = 4096,
     .scaled_embedding = true,
     .softcaps = true,
     .attention_softcap = 50,
     .logit_softcap = 30,
     .embed_scaled_layers = 46},
    {.name = "phi3",
     TABLES(phi3_global, phi3_layer),
     .rope_pairs = ROPE_HALVES,
     .window = WINDOW_ALL,
     .window_length = -1},
    {.name = "stablelm",
     TABLES(layernorm_global, stablelm_layer),
     .rope_pairs = ROPE_HALVES,
     .norm = NORM_LAYER},
};

const struct arch *arch_find(struct gguf_string name, struct err *err)
{
    struct buffer known = {0};
    for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
        if (strlen(archs[i].name) == name.size && memcmp(archs[i].name, name.data, name.size) == 0) {
            buffer_release(&known);
            return &archs[i];
        }
        buffer_printf(&known, "%s%s", i ? ", " : "", archs[i].name);
    }
    err_set(err, "general.architecture: \"%.*s\" is not supported, expected one of: %s",
            (int)(name.size < 64 ? name.size : 64), name.data, (const char *)known.data);
    buffer_release(&known);
    return NULL;
}

const struct arch_tensor_row *arch_global(const struct arch *a, enum arch_tensor tensor)
{
    for (int i = 0; i < a->global_count; i++)
        if (a->global[i].tensor == (int)tensor)
            return &a->global[i];
    return NULL;
}
