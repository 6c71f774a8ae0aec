/* hf_family: the families as tables, and the moves of elements that the tables name. A new family is rows
 * here. Names on the GGUF side are those of ggml's gguf constants, names on the other side those of the
 * models' published checkpoints. */
#include "worker/model/hf_impl.h"

#include <stdio.h>
#include <string.h>

#define SIZE_KEYS                                                              \
    {"num_hidden_layers", "block_count", HF_INT, true, 0},                     \
        {"max_position_embeddings", "context_length", HF_INT, true, 0},        \
        {"hidden_size", "embedding_length", HF_INT, true, 0},                  \
        {"intermediate_size", "feed_forward_length", HF_INT, true, 0},         \
        {"num_attention_heads", "attention.head_count", HF_INT, true, 0},      \
        {"num_key_value_heads", "attention.head_count_kv", HF_INT, false, -1}, \
    {                                                                          \
        "vocab_size", "vocab_size", HF_INT, false, -1                          \
    }

static const struct hf_key llama_keys[] = {
    SIZE_KEYS,
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", HF_FLOAT, true, 0},
};

static const struct hf_key gemma2_keys[] = {
    SIZE_KEYS,
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", HF_FLOAT, true, 0},
    {"attn_logit_softcapping", "attn_logit_softcapping", HF_FLOAT, false, 50},
    {"final_logit_softcapping", "final_logit_softcapping", HF_FLOAT, false, 30},
};

static const struct hf_key stablelm_keys[] = {
    SIZE_KEYS,
    {"layer_norm_eps", "attention.layer_norm_epsilon", HF_FLOAT, true, 0},
};

static const struct hf_key mixtral_keys[] = {
    SIZE_KEYS,
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", HF_FLOAT, true, 0},
    {"num_local_experts", "expert_count", HF_INT, true, 0},
    {"num_experts_per_tok", "expert_used_count", HF_INT, true, 0},
};

static const struct hf_key qwen3moe_keys[] = {
    SIZE_KEYS,
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", HF_FLOAT, true, 0},
    {"num_experts", "expert_count", HF_INT, true, 0},
    {"num_experts_per_tok", "expert_used_count", HF_INT, true, 0},
    {"moe_intermediate_size", "expert_feed_forward_length", HF_INT, true, 0},
};

static const struct hf_key gpt2_keys[] = {
    {"n_layer", "block_count", HF_INT, true, 0},
    {"n_positions", "context_length", HF_INT, true, 0},
    {"n_embd", "embedding_length", HF_INT, true, 0},
    {"n_inner", "feed_forward_length", HF_INT, false, -1},
    {"n_head", "attention.head_count", HF_INT, true, 0},
    {"vocab_size", "vocab_size", HF_INT, false, -1},
    {"layer_norm_epsilon", "attention.layer_norm_epsilon", HF_FLOAT, true, 0},
};

#define B "blk.{l}."
#define L "model.layers.{l}."

/* What every decoder with separate matrices has; q and k as `change` says. */
#define EMBED_ROWS(norm)                                                \
    {"token_embd.weight", "model.embed_tokens.weight", HF_SAME, false}, \
        {"output_norm.weight", "model.norm.weight", norm, false},       \
    {                                                                   \
        "output.weight", "lm_head.weight", HF_SAME, true                \
    }
#define ATTENTION_ROWS(q, k)                                                \
    {B "attn_q.weight", L "self_attn.q_proj.weight", q, false},             \
        {B "attn_k.weight", L "self_attn.k_proj.weight", k, false},         \
        {B "attn_v.weight", L "self_attn.v_proj.weight", HF_SAME, false},   \
        {B "attn_q.bias", L "self_attn.q_proj.bias", q, true},              \
        {B "attn_k.bias", L "self_attn.k_proj.bias", k, true},              \
        {B "attn_v.bias", L "self_attn.v_proj.bias", HF_SAME, true},        \
    {                                                                       \
        B "attn_output.weight", L "self_attn.o_proj.weight", HF_SAME, false \
    }
#define FFN_ROWS                                                      \
    {B "ffn_gate.weight", L "mlp.gate_proj.weight", HF_SAME, false},  \
        {B "ffn_up.weight", L "mlp.up_proj.weight", HF_SAME, false},  \
    {                                                                 \
        B "ffn_down.weight", L "mlp.down_proj.weight", HF_SAME, false \
    }
#define NORM_ROWS(norm)                                                       \
    {B "attn_norm.weight", L "input_layernorm.weight", norm, false},          \
    {                                                                         \
        B "ffn_norm.weight", L "post_attention_layernorm.weight", norm, false \
    }

static const struct hf_tensor_row llama_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    ATTENTION_ROWS(HF_PERMUTE_Q, HF_PERMUTE_K),
    {B "attn_output.bias", L "self_attn.o_proj.bias", HF_SAME, true},
    {B "ffn_gate.bias", L "mlp.gate_proj.bias", HF_SAME, true},
    {B "ffn_up.bias", L "mlp.up_proj.bias", HF_SAME, true},
    {B "ffn_down.bias", L "mlp.down_proj.bias", HF_SAME, true},
    FFN_ROWS,
};

static const struct hf_tensor_row qwen2_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    FFN_ROWS,
};

static const struct hf_tensor_row qwen3_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    {B "attn_q_norm.weight", L "self_attn.q_norm.weight", HF_SAME, false},
    {B "attn_k_norm.weight", L "self_attn.k_norm.weight", HF_SAME, false},
    FFN_ROWS,
};

static const struct hf_tensor_row gemma_tensors[] = {
    EMBED_ROWS(HF_PLUS_ONE),
    NORM_ROWS(HF_PLUS_ONE),
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    FFN_ROWS,
};

static const struct hf_tensor_row gemma2_tensors[] = {
    EMBED_ROWS(HF_PLUS_ONE),
    {B "attn_norm.weight", L "input_layernorm.weight", HF_PLUS_ONE, false},
    {B "post_attention_norm.weight", L "post_attention_layernorm.weight", HF_PLUS_ONE, false},
    {B "ffn_norm.weight", L "pre_feedforward_layernorm.weight", HF_PLUS_ONE, false},
    {B "post_ffw_norm.weight", L "post_feedforward_layernorm.weight", HF_PLUS_ONE, false},
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    FFN_ROWS,
};

/* q, k and v are one matrix, and so are gate and up: in both formats. */
static const struct hf_tensor_row phi3_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    {B "attn_qkv.weight", L "self_attn.qkv_proj.weight", HF_SAME, false},
    {B "attn_output.weight", L "self_attn.o_proj.weight", HF_SAME, false},
    {B "ffn_up.weight", L "mlp.gate_up_proj.weight", HF_SAME, false},
    {B "ffn_down.weight", L "mlp.down_proj.weight", HF_SAME, false},
};

static const struct hf_tensor_row stablelm_tensors[] = {
    EMBED_ROWS(HF_SAME),
    {"output_norm.bias", "model.norm.bias", HF_SAME, true},
    {B "attn_norm.weight", L "input_layernorm.weight", HF_SAME, false},
    {B "attn_norm.bias", L "input_layernorm.bias", HF_SAME, true},
    {B "ffn_norm.weight", L "post_attention_layernorm.weight", HF_SAME, true},
    {B "ffn_norm.bias", L "post_attention_layernorm.bias", HF_SAME, true},
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    FFN_ROWS,
};

static const struct hf_tensor_row mixtral_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    ATTENTION_ROWS(HF_PERMUTE_Q, HF_PERMUTE_K),
    {B "ffn_gate_inp.weight", L "block_sparse_moe.gate.weight", HF_SAME, false},
    {B "ffn_gate_exps.weight", L "block_sparse_moe.experts.{e}.w1.weight", HF_STACK, false},
    {B "ffn_up_exps.weight", L "block_sparse_moe.experts.{e}.w3.weight", HF_STACK, false},
    {B "ffn_down_exps.weight", L "block_sparse_moe.experts.{e}.w2.weight", HF_STACK, false},
};

static const struct hf_tensor_row qwen3moe_tensors[] = {
    EMBED_ROWS(HF_SAME),
    NORM_ROWS(HF_SAME),
    ATTENTION_ROWS(HF_SAME, HF_SAME),
    {B "attn_q_norm.weight", L "self_attn.q_norm.weight", HF_SAME, false},
    {B "attn_k_norm.weight", L "self_attn.k_norm.weight", HF_SAME, false},
    {B "ffn_gate_inp.weight", L "mlp.gate.weight", HF_SAME, false},
    {B "ffn_gate_exps.weight", L "mlp.experts.{e}.gate_proj.weight", HF_STACK, false},
    {B "ffn_up_exps.weight", L "mlp.experts.{e}.up_proj.weight", HF_STACK, false},
    {B "ffn_down_exps.weight", L "mlp.experts.{e}.down_proj.weight", HF_STACK, false},
};

static const struct hf_tensor_row gpt2_tensors[] = {
    {"token_embd.weight", "wte.weight", HF_SAME, false},
    {"position_embd.weight", "wpe.weight", HF_SAME, false},
    {"output_norm.weight", "ln_f.weight", HF_SAME, false},
    {"output_norm.bias", "ln_f.bias", HF_SAME, false},
    {"output.weight", "lm_head.weight", HF_SAME, true},
    {B "attn_norm.weight", "h.{l}.ln_1.weight", HF_SAME, false},
    {B "attn_norm.bias", "h.{l}.ln_1.bias", HF_SAME, false},
    {B "attn_qkv.weight", "h.{l}.attn.c_attn.weight", HF_TRANSPOSE, false},
    {B "attn_qkv.bias", "h.{l}.attn.c_attn.bias", HF_SAME, false},
    {B "attn_output.weight", "h.{l}.attn.c_proj.weight", HF_TRANSPOSE, false},
    {B "attn_output.bias", "h.{l}.attn.c_proj.bias", HF_SAME, false},
    {B "ffn_norm.weight", "h.{l}.ln_2.weight", HF_SAME, false},
    {B "ffn_norm.bias", "h.{l}.ln_2.bias", HF_SAME, false},
    {B "ffn_up.weight", "h.{l}.mlp.c_fc.weight", HF_TRANSPOSE, false},
    {B "ffn_up.bias", "h.{l}.mlp.c_fc.bias", HF_SAME, false},
    {B "ffn_down.weight", "h.{l}.mlp.c_proj.weight", HF_TRANSPOSE, false},
    {B "ffn_down.bias", "h.{l}.mlp.c_proj.bias", HF_SAME, false},
};

#define TABLES(k, t) .keys = (k), .key_count = ARRAY_LEN(k), .tensors = (t), .tensor_count = ARRAY_LEN(t)

const struct hf_family hf_families[] = {
    {"llama", "llama", "LlamaForCausalLM", TABLES(llama_keys, llama_tensors), .activation = "silu",
     .rope_base = 10000},
    {"mistral", "llama", "MistralForCausalLM", TABLES(llama_keys, llama_tensors), .activation = "silu",
     .sliding_window = true, .rope_base = 10000},
    {"mixtral", "llama", "MixtralForCausalLM", TABLES(mixtral_keys, mixtral_tensors), .activation = "silu",
     .sliding_window = true, .experts = true, .rope_base = 1e6},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", TABLES(llama_keys, qwen2_tensors), .activation = "silu",
     .rope_base = 10000},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", TABLES(llama_keys, qwen3_tensors), .head_length = 128,
     .activation = "silu", .rope_base = 10000},
    {"qwen3_moe", "qwen3moe", "Qwen3MoeForCausalLM", TABLES(qwen3moe_keys, qwen3moe_tensors),
     .activation = "silu", .experts = true, .rope_base = 10000},
    {"gemma", "gemma", "GemmaForCausalLM", TABLES(llama_keys, gemma_tensors), .head_length = 256,
     .activation = "gelu_pytorch_tanh", .activation_alias = "gelu", .tied = true, .rope_base = 10000},
    {"gemma2", "gemma2", "Gemma2ForCausalLM", TABLES(gemma2_keys, gemma2_tensors), .head_length = 256,
     .activation = "gelu_pytorch_tanh", .tied = true, .sliding_window = true, .rope_base = 10000},
    {"phi3", "phi3", "Phi3ForCausalLM", TABLES(llama_keys, phi3_tensors), .activation = "silu",
     .sliding_window = true, .rope_base = 10000},
    {"stablelm", "stablelm", "StableLmForCausalLM", TABLES(stablelm_keys, stablelm_tensors),
     .activation = "silu", .rope_base = 10000},
    {"gpt2", "gpt2", "GPT2LMHeadModel", TABLES(gpt2_keys, gpt2_tensors), .activation = "gelu_new",
     .prefix = "transformer.", .tied = true},
};
const size_t hf_family_count = ARRAY_LEN(hf_families);

const char *hf_config_name(const struct hf_family *family, const char *gguf)
{
    for (int i = 0; i < family->key_count; i++)
        if (strcmp(family->keys[i].gguf, gguf) == 0)
            return family->keys[i].config;
    return NULL;
}

void hf_format_name(char *out, size_t bytes, const char *pattern, int64_t layer, int64_t expert)
{
    size_t n = 0;
    while (*pattern && n + 1 < bytes) {
        bool number = pattern[0] == '{' && (pattern[1] == 'l' || pattern[1] == 'e') && pattern[2] == '}';
        if (!number) {
            out[n++] = *pattern++;
            continue;
        }
        int k = snprintf(out + n, bytes - n, "%lld", (long long)(pattern[1] == 'l' ? layer : expert));
        n = n + (size_t)k < bytes ? n + (size_t)k : bytes - 1;
        pattern += 3;
    }
    out[n] = 0;
}

/* Row 2i + half of a head in GGUF is row half * n/2 + i in HF (n rows a head). */
static void permute(bool toward_hf, const uint8_t *src, uint8_t *dst, int64_t rows, uint64_t row_bytes,
                    int64_t heads)
{
    int64_t n = rows / heads;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t half = 0; half < 2; half++)
            for (int64_t i = 0; i < n / 2; i++) {
                uint64_t gguf = (uint64_t)(h * n + 2 * i + half), hf = (uint64_t)(h * n + half * (n / 2) + i);
                memcpy(dst + (toward_hf ? hf : gguf) * row_bytes, src + (toward_hf ? gguf : hf) * row_bytes,
                       row_bytes);
            }
}

/* In squares of 32 elements, so that neither side runs through memory a line for each element. */
static void transpose(const uint8_t *src, uint8_t *dst, uint64_t rows, uint64_t columns, uint32_t bytes)
{
    for (uint64_t r0 = 0; r0 < rows; r0 += 32)
        for (uint64_t c0 = 0; c0 < columns; c0 += 32)
            for (uint64_t r = r0; r < rows && r < r0 + 32; r++)
                for (uint64_t c = c0; c < columns && c < c0 + 32; c++)
                    memcpy(dst + (c * rows + r) * bytes, src + (r * columns + c) * bytes, bytes);
}

void hf_apply(enum hf_change change, bool toward_hf, const void *src, void *dst, int64_t rows,
              int64_t columns, uint32_t element_bytes, int64_t heads)
{
    uint64_t count = (uint64_t)rows * (uint64_t)columns;
    switch (change) {
    case HF_SAME:
    case HF_STACK:
        memcpy(dst, src, count * element_bytes);
        break;
    case HF_PERMUTE_Q:
    case HF_PERMUTE_K:
        ASSERT(rows % (2 * heads) == 0);
        permute(toward_hf, src, dst, rows, (uint64_t)columns * element_bytes, heads);
        break;
    case HF_TRANSPOSE:
        transpose(src, dst, (uint64_t)rows, (uint64_t)columns, element_bytes);
        break;
    case HF_PLUS_ONE:
        ASSERT(element_bytes == sizeof(float));
        for (uint64_t i = 0; i < count; i++) {
            float v;
            memcpy(&v, (const uint8_t *)src + i * sizeof(v), sizeof(v));
            v = toward_hf ? v - 1 : v + 1;
            memcpy((uint8_t *)dst + i * sizeof(v), &v, sizeof(v));
        }
        break;
    }
}
