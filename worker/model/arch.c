/* arch: the sizes of one model, from its metadata. What a file says and a family's row does not know is
 * refused by name when it would change the result: a model that runs a little wrong is worse than one that
 * does not run. */
#include "worker/model/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int arch_read_size(const struct gguf *g, const struct arch *arch, const char *suffix, int64_t low,
                   int64_t high, int64_t standard, int64_t *out, struct err *err)
{
    char key[128];
    uint64_t value = 0;
    snprintf(key, sizeof(key), "%s.%s", arch->name, suffix);
    int found = gguf_get_uint(g, key, &value, err);
    if (found < 0)
        return -1;
    if (!found) {
        if (standard < 0)
            return err_set(err, "%s: metadata key %s is missing", gguf_name(g), key);
        *out = standard;
        return 0;
    }
    if (value < (uint64_t)low || value > (uint64_t)high)
        return err_set(err, "%s: %s is %llu, expected %lld to %lld", gguf_name(g), key,
                       (unsigned long long)value, (long long)low, (long long)high);
    *out = (int64_t)value;
    return 0;
}

int arch_read_float(const struct gguf *g, const struct arch *arch, const char *suffix, double low,
                    double high, double standard, double *out, struct err *err)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", arch->name, suffix);
    double value = standard;
    int found = gguf_get_float(g, key, &value, err);
    if (found < 0)
        return -1;
    if (!found && isnan(standard))
        return err_set(err, "%s: metadata key %s is missing", gguf_name(g), key);
    if (!(value >= low && value <= high))
        return err_set(err, "%s: %s is %g, expected %g to %g", gguf_name(g), key, value, low, high);
    *out = value;
    return 0;
}

/* The vocabulary's size is the token embedding's row count: the one source that the weights themselves give.
 */
static int read_vocab(struct model_params *p, const struct gguf *g, struct err *err)
{
    const char *name = arch_global(p->arch, TENSOR_TOKEN_EMBED)->name;
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (!t)
        return err_set(err, "%s: tensor %s is missing", gguf_name(g), name);
    if (t->ndim != 2)
        return err_set(err, "%s: tensor %s has %d dimensions, expected 2", gguf_name(g), name, t->ndim);
    p->vocab = t->dim[0];
    if (p->vocab > 1 << 24)
        return err_set(err, "%s: tensor %s has %lld rows, expected at most %d", gguf_name(g), name,
                       (long long)p->vocab, 1 << 24);
    return 0;
}

/* ---- what a family's row does not know */

/* Keys behind "<arch>." that change the result in some family. A value other than the neutral ones is
 * refused, except by the families whose rows say that they read the key. */
static const struct {
    const char *suffix;
    double neutral, neutral_too;
} influences[] = {
    {"attention.sliding_window", 0, 0},
    {"attn_logit_softcapping", 0, 0},
    {"final_logit_softcapping", 0, 0},
    {"expert_count", 0, 0},
    {"expert_used_count", 0, 0},
    {"expert_shared_count", 0, 0},
    {"expert_gating_func", 0, 1},
    {"expert_weights_scale", 0, 1},
    {"expert_group_count", 0, 1},
    {"leading_dense_block_count", 0, 0},
    {"interleave_moe_layer_step", 0, 1},
    {"moe_every_n_layers", 0, 1},
    {"nextn_predict_layers", 0, 0},
    {"use_parallel_residual", 0, 0},
    {"attention.causal", 1, 1},
    {"attention.clamp_kqv", 0, 0},
    {"attention.max_alibi_bias", 0, 0},
    {"attention.q_lora_rank", 0, 0},
    {"attention.kv_lora_rank", 0, 0},
    {"attention.shared_kv_layers", 0, 0},
    {"attention.temperature_length", 0, 0},
    {"attention.temperature_scale", 0, 0},
    {"attention.sliding_window_pattern", 0, 0},
    {"logit_scale", 0, 1},
    {"residual_scale", 0, 1},
    {"embedding_scale", 0, 1},
    {"rope.scaling.yarn_log_multiplier", 0, 0},
    {"rope.scaling.yarn_ext_factor", 1, -1},
    {"rope.scaling.yarn_attn_factor", 1, 1},
    {"rope.scaling.yarn_beta_fast", 32, 32},
    {"rope.scaling.yarn_beta_slow", 1, 1},
    {"rope.dimension_sections", 0, 0},
};

static bool reads_key(const struct arch *a, const char *suffix)
{
    if (strcmp(suffix, "attention.sliding_window") == 0)
        return a->window != WINDOW_NEVER;
    if (strcmp(suffix, "expert_count") == 0 || strcmp(suffix, "expert_used_count") == 0)
        return a->routed;
    return a->softcaps && strstr(suffix, "_logit_softcapping") != NULL;
}

/* Any number or bool as a double; NaN for what is neither. */
static double any_number(const struct gguf *g, const char *key, enum gguf_type type)
{
    double value = NAN;
    int64_t integer = 0;
    bool flag = false;
    struct err ignored;
    if (type == GGUF_BOOL && gguf_get_bool(g, key, &flag, &ignored) == 1)
        return flag;
    if ((type == GGUF_F32 || type == GGUF_F64) && gguf_get_float(g, key, &value, &ignored) == 1)
        return value;
    if (type != GGUF_STRING && type != GGUF_ARRAY && gguf_get_int(g, key, &integer, &ignored) == 1)
        return (double)integer;
    return NAN;
}

static int check_keys(const struct arch *a, const struct gguf *g, struct err *err)
{
    size_t prefix = strlen(a->name) + 1;
    for (uint64_t i = 0; i < gguf_key_count(g); i++) {
        enum gguf_type type;
        struct gguf_string key = gguf_key(g, i, &type);
        char name[128];
        if (key.size >= sizeof(name) || key.size <= prefix || memcmp(key.data, a->name, prefix - 1) != 0 ||
            key.data[prefix - 1] != '.')
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)key.size, key.data);
        for (size_t k = 0; k < ARRAY_LEN(influences); k++) {
            if (strcmp(name + prefix, influences[k].suffix) != 0 || reads_key(a, influences[k].suffix))
                continue;
            double value = any_number(g, name, type);
            if (value == influences[k].neutral || value == influences[k].neutral_too)
                continue;
            return err_set(err, "%s: %s: %s models with this key set (to %g) are not supported", gguf_name(g),
                           name, a->name, value);
        }
    }
    return 0;
}

/* ---- tensors */

int model_params_expects(const struct model_params *p, const struct arch_tensor_row *row)
{
    switch (row->presence) {
    case NEEDED:
        return 1;
    case OPTIONAL:
        return 0;
    case DENSE_ONLY:
        return p->experts ? -1 : 1;
    case DENSE_OPTION:
        return p->experts ? -1 : 0;
    case ROUTED_ONLY:
        return p->experts ? 1 : -1;
    }
    ASSERT(!"a presence without a meaning");
    return -1;
}

/* Whether `name`, behind "blk.N.", is a tensor that a layer of this model may have. */
static bool layer_tensor_known(const struct model_params *p, const struct gguf *g, const char *name,
                               int64_t layer)
{
    for (int i = 0; i < p->arch->layer_count; i++) {
        const struct arch_tensor_row *row = &p->arch->layer[i];
        char other[128];
        if (model_params_expects(p, row) < 0)
            continue;
        if (strcmp(name, row->name) == 0)
            return true;
        snprintf(other, sizeof(other), "blk.%lld.%s", (long long)layer, row->name);
        if (!row->stacked || gguf_tensor_find(g, other))
            continue;
        int expert = -1;
        if (sscanf(name + strcspn(name, "0123456789"), "%5d", &expert) != 1 || expert >= p->experts)
            continue;
        snprintf(other, sizeof(other), row->each, expert); /* and back: only the canonical name is the same */
        if (strcmp(name, other) == 0)
            return true;
    }
    /* Old converters stored the rotary frequencies of each layer; they follow from the metadata. */
    return strcmp(name, "attn_rot_embd.freqs") == 0;
}

static bool tensor_known(const struct model_params *p, const struct gguf *g, const char *name)
{
    int64_t layer = 0;
    int digits = 0;
    for (int i = 0; i < p->arch->global_count; i++)
        if (strcmp(name, p->arch->global[i].name) == 0)
            return model_params_expects(p, &p->arch->global[i]) >= 0;
    if (strncmp(name, "blk.", 4) != 0)
        return false;
    for (; digits < 5 && name[4 + digits] >= '0' && name[4 + digits] <= '9'; digits++)
        layer = layer * 10 + name[4 + digits] - '0';
    bool canonical = digits > 0 && (digits == 1 || name[4] != '0');
    return canonical && layer < p->layers && name[4 + digits] == '.' &&
           layer_tensor_known(p, g, name + 5 + digits, layer);
}

int arch_check_tensors(const struct model_params *p, const struct gguf *g, struct err *err)
{
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        struct gguf_string s = gguf_tensor_at(g, i)->name;
        char name[128];
        snprintf(name, sizeof(name), "%.*s", s.size < sizeof(name) ? (int)s.size : (int)sizeof(name) - 1,
                 s.data);
        if (s.size >= sizeof(name) || !tensor_known(p, g, name))
            return err_set(err, "%s: tensor %s: %s models of %lld layers%s have no such tensor", gguf_name(g),
                           name, p->arch->name, (long long)p->layers, p->experts ? " with experts" : "");
    }
    return 0;
}

/* ---- sizes */

static int read_heads(struct model_params *p, const struct gguf *g, struct err *err)
{
    const struct arch *a = p->arch;
    int64_t value_length;
    if (arch_read_size(g, a, "attention.head_count", 1, 65536, -1, &p->heads, err) ||
        arch_read_size(g, a, "attention.head_count_kv", 1, 65536, p->heads, &p->kv_heads, err))
        return -1;
    if (p->heads % p->kv_heads)
        return err_set(err,
                       "%s: %s.attention.head_count is %lld, expected a multiple of head_count_kv (%lld)",
                       gguf_name(g), a->name, (long long)p->heads, (long long)p->kv_heads);
    int64_t share = p->embed % p->heads ? -1 : p->embed / p->heads;
    if (arch_read_size(g, a, "attention.key_length", 1, 65536, share, &p->head_length, err) ||
        arch_read_size(g, a, "attention.value_length", 1, 65536, p->head_length, &value_length, err))
        return -1;
    if (value_length != p->head_length)
        return err_set(err, "%s: key length %lld and value length %lld: expected equal", gguf_name(g),
                       (long long)p->head_length, (long long)value_length);
    return 0;
}

static int read_experts(struct model_params *p, const struct gguf *g, struct err *err)
{
    const struct arch *a = p->arch;
    if (!a->routed)
        return 0;
    if (arch_read_size(g, a, "expert_count", 0, 4096, 0, &p->experts, err) ||
        arch_read_size(g, a, "expert_used_count", 0, 4096, 0, &p->experts_used, err))
        return -1;
    if (p->experts == 0 && p->experts_used == 0)
        return 0;
    if (p->experts_used < 1 || p->experts_used > p->experts)
        return err_set(err, "%s: %s.expert_used_count is %lld, expected 1 to expert_count (%lld)",
                       gguf_name(g), a->name, (long long)p->experts_used, (long long)p->experts);
    bool renormalise = true;
    char key[128];
    snprintf(key, sizeof(key), "%s.expert_weights_norm", a->name);
    if (gguf_get_bool(g, key, &renormalise, err) < 0)
        return -1;
    p->expert_renormalise = renormalise;
    return arch_read_size(g, a, "expert_feed_forward_length", 1, 1 << 22, p->ffn, &p->expert_ffn, err);
}

/* The numbers of the blocks' arithmetic. */
static int read_arithmetic(struct model_params *p, const struct gguf *g, struct err *err)
{
    const struct arch *a = p->arch;
    double eps, scale, attention_cap = 0, logit_cap = 0;
    bool by_embed = a->embed_scaled_layers && p->layers == a->embed_scaled_layers;
    double squared = by_embed ? (double)p->embed / (double)p->heads : (double)p->head_length;
    const char *eps_key =
        a->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    if (arch_read_float(g, a, eps_key, 0, 1, NAN, &eps, err) ||
        arch_read_float(g, a, "attention.scale", 1e-6, 1e6, 1.0 / sqrt(squared), &scale, err))
        return -1;
    if (a->softcaps &&
        (arch_read_float(g, a, "attn_logit_softcapping", 0, 1e6, a->attention_softcap, &attention_cap, err) ||
         arch_read_float(g, a, "final_logit_softcapping", 0, 1e6, a->logit_softcap, &logit_cap, err)))
        return -1;
    if (a->window != WINDOW_NEVER &&
        arch_read_size(g, a, "attention.sliding_window", 0, INT32_MAX, a->window_length, &p->window, err))
        return -1;
    p->norm_eps = (float)eps;
    p->attention_scale = (float)scale;
    p->attention_softcap = (float)attention_cap;
    p->logit_softcap = (float)logit_cap;
    p->embedding_scale = a->scaled_embedding ? (float)sqrt((double)p->embed) : 1;
    return 0;
}

static int read_params(struct model_params *p, const struct gguf *g, int64_t served, struct err *err)
{
    struct gguf_string name = {NULL, 0};
    int found = gguf_get_string(g, "general.architecture", &name, err);
    if (found < 0)
        return -1;
    if (!found)
        return err_set(err, "%s: metadata key general.architecture is missing", gguf_name(g));
    p->arch = arch_find(name, err);
    if (!p->arch)
        return err_prefix(err, "%s", gguf_name(g));
    const struct arch *a = p->arch;
    if (check_keys(a, g, err) || arch_read_size(g, a, "block_count", 1, 4096, -1, &p->layers, err) ||
        arch_read_size(g, a, "embedding_length", 1, 1 << 20, -1, &p->embed, err) ||
        arch_read_size(g, a, "feed_forward_length", 1, 1 << 22, -1, &p->ffn, err) ||
        arch_read_size(g, a, "context_length", 1, INT32_MAX, -1, &p->context, err) || read_heads(p, g, err) ||
        read_experts(p, g, err) || read_arithmetic(p, g, err) || read_vocab(p, g, err) ||
        arch_read_rope(p, g, served && served < p->context ? served : p->context, err))
        return -1;
    return arch_check_tensors(p, g, err);
}

int model_params_read_for(struct model_params *out, const struct gguf *g, int64_t served, struct err *err)
{
    *out = (struct model_params){0};
    if (read_params(out, g, served, err) == 0)
        return 0;
    model_params_release(out);
    return -1;
}

int model_params_read(struct model_params *out, const struct gguf *g, struct err *err)
{
    return model_params_read_for(out, g, 0, err);
}

void model_params_release(struct model_params *p)
{
    if (!p)
        return;
    free(p->rope_frequencies);
    p->rope_frequencies = NULL;
}

int64_t model_params_dim(const struct model_params *p, enum arch_dim dim)
{
    switch (dim) {
    case DIM_NONE:
        return 1;
    case DIM_VOCAB:
        return p->vocab;
    case DIM_EMBED:
        return p->embed;
    case DIM_QUERY:
        return p->heads * p->head_length;
    case DIM_KV:
        return p->kv_heads * p->head_length;
    case DIM_CONTEXT:
        return p->context;
    case DIM_HEAD:
        return p->head_length;
    case DIM_ROPE:
        return p->rope_length / 2;
    case DIM_FFN:
        return p->ffn;
    case DIM_EXPERTS:
        return p->experts;
    case DIM_EXPERT_FFN:
        return p->expert_ffn;
    }
    ASSERT(!"a dimension without a size");
    return 0;
}

struct attention_options model_params_attention(const struct model_params *p, int64_t layer)
{
    bool windowed = p->arch->window == WINDOW_ALL || (p->arch->window == WINDOW_EVEN && layer % 2 == 0);
    return (struct attention_options){
        .scale = p->attention_scale, .softcap = p->attention_softcap, .window = windowed ? p->window : 0};
}

uint32_t model_params_kernels(const struct model_params *p)
{
    uint32_t ops = 0;
    if (p->arch->norm == NORM_LAYER)
        ops |= 1u << KERNEL_LAYERNORM;
    if (p->embedding_scale != 1)
        ops |= 1u << KERNEL_SCALE;
    if (p->logit_softcap > 0)
        ops |= 1u << KERNEL_SOFTCAP;
    if (p->experts)
        ops |= 1u << KERNEL_ROUTE | 1u << KERNEL_EXPERT_MATMUL | 1u << KERNEL_EXPERT_SUM;
    return ops;
}
