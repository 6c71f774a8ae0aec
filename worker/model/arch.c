#include "worker/model/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct arch_tensor_row llama_global[] = {
    {TENSOR_TOKEN_EMBED, "token_embd.weight", DIM_VOCAB, DIM_EMBED, false},
    {TENSOR_OUTPUT_NORM, "output_norm.weight", DIM_EMBED, DIM_NONE, false},
    {TENSOR_OUTPUT, "output.weight", DIM_VOCAB, DIM_EMBED, true},
};

static const struct arch_tensor_row llama_layer[] = {
    {TENSOR_ATTN_NORM, "attn_norm.weight", DIM_EMBED, DIM_NONE, false},
    {TENSOR_ATTN_Q, "attn_q.weight", DIM_QUERY, DIM_EMBED, false},
    {TENSOR_ATTN_K, "attn_k.weight", DIM_KV, DIM_EMBED, false},
    {TENSOR_ATTN_V, "attn_v.weight", DIM_KV, DIM_EMBED, false},
    {TENSOR_ATTN_Q_BIAS, "attn_q.bias", DIM_QUERY, DIM_NONE, true},
    {TENSOR_ATTN_K_BIAS, "attn_k.bias", DIM_KV, DIM_NONE, true},
    {TENSOR_ATTN_V_BIAS, "attn_v.bias", DIM_KV, DIM_NONE, true},
    {TENSOR_ATTN_OUTPUT, "attn_output.weight", DIM_EMBED, DIM_QUERY, false},
    {TENSOR_FFN_NORM, "ffn_norm.weight", DIM_EMBED, DIM_NONE, false},
    {TENSOR_FFN_GATE, "ffn_gate.weight", DIM_FFN, DIM_EMBED, false},
    {TENSOR_FFN_UP, "ffn_up.weight", DIM_FFN, DIM_EMBED, false},
    {TENSOR_FFN_DOWN, "ffn_down.weight", DIM_EMBED, DIM_FFN, false},
};

static const struct arch archs[] = {
    {.name = "llama",
     .rope_pairs = ROPE_INTERLEAVED,
     .global = llama_global,
     .global_count = ARRAY_LEN(llama_global),
     .layer = llama_layer,
     .layer_count = ARRAY_LEN(llama_layer)},
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

/* Reads "<arch>.<suffix>" as a size within [low, high]; absent gives `standard`, or an error when that is
 * negative. */
static int read_size(const struct gguf *g, const struct arch *arch, const char *suffix, int64_t low,
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

static int read_float(const struct gguf *g, const struct arch *arch, const char *suffix, double low,
                      double high, double standard, double *out, struct err *err)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", arch->name, suffix);
    double value = standard;
    if (gguf_get_float(g, key, &value, err) < 0)
        return -1;
    if (!(value >= low && value <= high))
        return err_set(err, "%s: %s is %g, expected %g to %g", gguf_name(g), key, value, low, high);
    *out = value;
    return 0;
}

/* YaRN (Peng et al. 2023): low frequencies are interpolated, high ones kept, with a ramp between the
 * dimensions that turn beta_fast and beta_slow times over the original context. */
static void yarn_scale(struct model_params *p, double base, double factor, double original_context,
                       double attn_factor)
{
    const double beta_fast = 32, beta_slow = 1, pi = 3.14159265358979323846;
    double n = (double)p->rope_length;
    double low = floor(n * log(original_context / (beta_fast * 2 * pi)) / (2 * log(base)));
    double high = ceil(n * log(original_context / (beta_slow * 2 * pi)) / (2 * log(base)));
    low = low > 0 ? low : 0;
    high = high < n - 1 ? high : n - 1;
    for (int64_t i = 0; i < p->rope_length / 2; i++) {
        double ramp = ((double)i - low) / (high - low > 0.001 ? high - low : 0.001);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        double frequency = p->rope_frequencies[i];
        p->rope_frequencies[i] = (float)(frequency / factor * ramp + frequency * (1 - ramp));
    }
    p->rope_magnitude = (float)(attn_factor * (1 + 0.1 * log(factor)));
}

/* rope_freqs.weight (Llama 3): one divisor per frequency. */
static int divide_frequencies(struct model_params *p, const struct gguf *g, struct err *err)
{
    const struct gguf_tensor *t = gguf_tensor_find(g, "rope_freqs.weight");
    if (!t)
        return 0;
    if (t->dtype != DTYPE_F32 || t->ndim != 1 || t->dim[0] != p->rope_length / 2)
        return err_set(err, "%s: tensor rope_freqs.weight: expected %lld f32 values", gguf_name(g),
                       (long long)p->rope_length / 2);
    for (int64_t i = 0; i < p->rope_length / 2; i++) {
        float divisor;
        memcpy(&divisor, (const char *)gguf_tensor_data(g, t) + (size_t)i * 4, 4);
        if (!(divisor > 0))
            return err_set(err, "%s: tensor rope_freqs.weight: value %lld is %g, expected more than 0",
                           gguf_name(g), (long long)i, (double)divisor);
        p->rope_frequencies[i] /= divisor;
    }
    return 0;
}

static int read_rope(struct model_params *p, const struct gguf *g, struct err *err)
{
    const struct arch *a = p->arch;
    double base, factor, original, attn_factor;
    if (read_size(g, a, "rope.dimension_count", 2, p->head_length, p->head_length, &p->rope_length, err) ||
        read_float(g, a, "rope.freq_base", 1.0001, 1e12, 10000, &base, err) ||
        read_float(g, a, "rope.scaling.factor", 1e-3, 1e6, 1, &factor, err) ||
        read_float(g, a, "rope.scaling.attn_factor", 1e-3, 1e3, 1, &attn_factor, err))
        return -1;
    if (p->rope_length % 2)
        return err_set(err, "%s: %s.rope.dimension_count is %lld, expected an even number", gguf_name(g),
                       a->name, (long long)p->rope_length);
    p->rope_magnitude = 1;
    p->rope_frequencies = xcalloc((size_t)p->rope_length / 2, sizeof(float));
    for (int64_t i = 0; i < p->rope_length / 2; i++)
        p->rope_frequencies[i] = (float)pow(base, -2.0 * (double)i / (double)p->rope_length);

    char key[128];
    snprintf(key, sizeof(key), "%s.rope.scaling.type", a->name);
    struct gguf_string type = {"none", 4};
    if (gguf_get_string(g, key, &type, err) < 0)
        return -1;
    if (type.size == 6 && memcmp(type.data, "linear", 6) == 0) {
        for (int64_t i = 0; i < p->rope_length / 2; i++)
            p->rope_frequencies[i] = (float)(p->rope_frequencies[i] / factor);
    } else if (type.size == 4 && memcmp(type.data, "yarn", 4) == 0) {
        int64_t original_context;
        if (read_size(g, a, "rope.scaling.original_context_length", 1, INT32_MAX, p->context,
                      &original_context, err))
            return -1;
        original = (double)original_context;
        yarn_scale(p, base, factor, original, attn_factor);
    } else if (!(type.size == 4 && memcmp(type.data, "none", 4) == 0)) {
        return err_set(err, "%s: %s: \"%.*s\" is not supported, expected none, linear or yarn", gguf_name(g),
                       key, (int)(type.size < 64 ? type.size : 64), type.data);
    }
    return divide_frequencies(p, g, err);
}

/* The vocabulary's size is the token embedding's row count: the one source that the weights themselves give.
 */
static int read_vocab(struct model_params *p, const struct gguf *g, struct err *err)
{
    const char *name = p->arch->global[TENSOR_TOKEN_EMBED].name;
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

static int read_params(struct model_params *p, const struct gguf *g, struct err *err)
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
    double eps;
    if (read_size(g, a, "block_count", 1, 4096, -1, &p->layers, err) ||
        read_size(g, a, "embedding_length", 1, 1 << 20, -1, &p->embed, err) ||
        read_size(g, a, "feed_forward_length", 1, 1 << 22, -1, &p->ffn, err) ||
        read_size(g, a, "attention.head_count", 1, 65536, -1, &p->heads, err) ||
        read_size(g, a, "attention.head_count_kv", 1, 65536, p->heads, &p->kv_heads, err) ||
        read_size(g, a, "context_length", 1, INT32_MAX, -1, &p->context, err) ||
        read_float(g, a, "attention.layer_norm_rms_epsilon", 0, 1, 1e-5, &eps, err))
        return -1;
    p->norm_eps = (float)eps;
    if (p->heads % p->kv_heads)
        return err_set(err,
                       "%s: %s.attention.head_count is %lld, expected a multiple of head_count_kv (%lld)",
                       gguf_name(g), a->name, (long long)p->heads, (long long)p->kv_heads);
    if (read_size(g, a, "attention.key_length", 1, 65536, p->embed / p->heads, &p->head_length, err))
        return -1;
    int64_t value_length;
    if (read_size(g, a, "attention.value_length", 1, 65536, p->head_length, &value_length, err))
        return -1;
    if (p->head_length < 1 || value_length != p->head_length)
        return err_set(err, "%s: key length %lld and value length %lld: expected equal and at least 1",
                       gguf_name(g), (long long)p->head_length, (long long)value_length);
    p->attention_scale = (float)(1.0 / sqrt((double)p->head_length));
    return read_vocab(p, g, err) || read_rope(p, g, err) ? -1 : 0;
}

int model_params_read(struct model_params *out, const struct gguf *g, struct err *err)
{
    *out = (struct model_params){0};
    if (read_params(out, g, err) == 0)
        return 0;
    model_params_release(out);
    return -1;
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
    case DIM_FFN:
        return p->ffn;
    }
    ASSERT(!"a dimension without a size");
    return 0;
}
