/* hf_config: config.json and generation_config.json -> metadata keys. Numbers go through the family's table;
 * what needs thought (rotation, head lengths, windows) stands here, one function each. A setting that changes
 * what the model computes and that no key can carry is refused by name. */
#include "worker/model/hf_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse_text(const struct hf_config *c, const char *key, const char *value, const char *expected,
                       struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    return err_set(err, "%s: %s: \"%s\" is not supported, expected %s", c->path, key, json_show(value, shown),
                   expected);
}

/* A whole number from 1 to 2^31 - 1; absent leaves *out as it is. */
static int get_size(const struct hf_config *c, const json_t *object, const char *key, int64_t *out,
                    struct err *err)
{
    int64_t value = 0;
    int found = json_get_int(object, c->path, key, &value, err);
    if (found < 0)
        return -1;
    if (found && (value < 1 || value > INT32_MAX))
        return err_set(err, "%s: %s is %lld, expected 1 to %d", c->path, key, (long long)value, INT32_MAX);
    if (found)
        *out = value;
    return found;
}

static int get_positive(const struct hf_config *c, const json_t *object, const char *key, double *out,
                        struct err *err)
{
    double value = 0;
    int found = json_get_number(object, c->path, key, &value, err);
    if (found < 0)
        return -1;
    if (found && !(value > 0 && value <= 1e30))
        return err_set(err, "%s: %s is %g, expected a positive number", c->path, key, value);
    if (found)
        *out = value;
    return found;
}

/* A switch that must have one value, because the other one computes something else. */
static int must_be(const struct hf_config *c, const char *key, bool value, bool standard, struct err *err)
{
    bool found = standard;
    if (json_get_bool(c->root, c->path, key, &found, err) < 0)
        return -1;
    if (found != value)
        return err_set(err, "%s: %s: %s is not supported for %s", c->path, key, found ? "true" : "false",
                       c->family->model_type);
    return 0;
}

static int find_family(struct hf_config *c, struct err *err)
{
    const char *type = NULL;
    struct buffer known = {0};
    int found = json_get_text(c->root, c->path, "model_type", &type, err);
    if (found <= 0)
        return found < 0 ? -1 : err_set(err, "%s: model_type is missing", c->path);
    for (size_t i = 0; i < hf_family_count; i++) {
        buffer_printf(&known, "%s%s", i ? ", " : "", hf_families[i].model_type);
        if (strcmp(hf_families[i].model_type, type) == 0)
            c->family = &hf_families[i];
    }
    if (!c->family)
        refuse_text(c, "model_type", type, (const char *)known.data, err);
    buffer_release(&known);
    return c->family ? 0 : -1;
}

static int check_activation(const struct hf_config *c, struct err *err)
{
    static const char *const keys[] = {"hidden_activation", "hidden_act", "activation_function"};
    const struct hf_family *f = c->family;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const char *name = NULL;
        int found = json_get_text(c->root, c->path, keys[i], &name, err);
        if (found < 0)
            return -1;
        if (!found)
            continue;
        if (strcmp(name, f->activation) != 0 &&
            !(f->activation_alias && strcmp(name, f->activation_alias) == 0))
            return refuse_text(c, keys[i], name, f->activation, err);
        return 0; /* gemma: hidden_activation counts before hidden_act */
    }
    return 0;
}

/* Settings that only some families have. */
static int check_settings(const struct hf_config *c, struct err *err)
{
    const char *type = c->family->model_type;
    json_t *object = NULL, *layers = NULL;
    int64_t step = 1;
    if (json_object_get(c->root, "quantization_config") &&
        !json_is_null(json_object_get(c->root, "quantization_config")))
        return err_set(err,
                       "%s: quantization_config: quantised safetensors are not supported, expected F32, "
                       "F16 or BF16 weights",
                       c->path);
    if (check_activation(c, err))
        return -1;
    if (strcmp(type, "qwen2") == 0 || strcmp(type, "qwen3") == 0 || strcmp(type, "qwen3_moe") == 0)
        if (must_be(c, "use_sliding_window", false, false, err))
            return -1;
    if (strcmp(type, "stablelm") == 0 && must_be(c, "qk_layernorm", false, false, err))
        return -1;
    if (strcmp(type, "gpt2") == 0 && (must_be(c, "scale_attn_weights", true, true, err) ||
                                      must_be(c, "scale_attn_by_inverse_layer_idx", false, false, err)))
        return -1;
    if (strcmp(type, "qwen3_moe") == 0) {
        if (json_get_array(c->root, c->path, "mlp_only_layers", &layers, err) < 0 ||
            get_size(c, c->root, "decoder_sparse_step", &step, err) < 0)
            return -1;
        if (json_array_size(layers) || step != 1)
            return err_set(err,
                           "%s: mlp_only_layers, decoder_sparse_step: layers without experts are not "
                           "supported",
                           c->path);
    }
    if (strcmp(type, "gemma2") == 0)
        for (int i = 0; i < 2; i++) {
            const char *key = i ? "final_logit_softcapping" : "attn_logit_softcapping";
            object = json_object_get(c->root, key);
            if (object && json_is_null(object))
                return err_set(err, "%s: %s: null (no cap) is not supported", c->path, key);
        }
    return 0;
}

static int read_head_length(struct hf_config *c, struct err *err)
{
    c->head_length = c->family->head_length ? c->family->head_length : c->embed / c->heads;
    int found = c->family->rope_base > 0 ? get_size(c, c->root, "head_dim", &c->head_length, err) : 0;
    if (found < 0)
        return -1;
    if (!found && !c->family->head_length && c->embed % c->heads)
        return err_set(err, "%s: hidden size %lld is no multiple of %lld heads, and head_dim is missing",
                       c->path, (long long)c->embed, (long long)c->heads);
    double part = strcmp(c->family->model_type, "stablelm") == 0 ? 0.25 : 1;
    if (get_positive(c, c->root, "partial_rotary_factor", &part, err) < 0)
        return -1;
    bool partial =
        strcmp(c->family->model_type, "stablelm") == 0 || strcmp(c->family->model_type, "phi3") == 0;
    if (part > 1 || (!partial && part != 1))
        return err_set(err, "%s: partial_rotary_factor: %g is not supported for %s", c->path, part,
                       c->family->model_type);
    c->rope_length = (int64_t)((double)c->head_length * part);
    if (c->family->rope_base > 0 && (c->rope_length < 2 || c->rope_length % 2))
        return err_set(err, "%s: heads of %lld elements of which %lld are rotated: expected an even number",
                       c->path, (long long)c->head_length, (long long)c->rope_length);
    return 0;
}

static int read_sizes(struct hf_config *c, struct err *err)
{
    struct {
        const char *gguf;
        int64_t *out, most;
    } sizes[] = {{"block_count", &c->layers, 4096},
                 {"context_length", &c->context, INT32_MAX},
                 {"embedding_length", &c->embed, 1 << 20},
                 {"attention.head_count", &c->heads, 65536},
                 {"attention.head_count_kv", &c->kv_heads, 65536},
                 {"expert_count", &c->experts, HF_EXPERTS_MAX},
                 {"vocab_size", &c->vocab, 1 << 24}};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        const char *name = hf_config_name(c->family, sizes[i].gguf);
        if (!name)
            continue;
        if (get_size(c, c->root, name, sizes[i].out, err) < 0)
            return -1;
        if (*sizes[i].out > sizes[i].most)
            return err_set(err, "%s: %s is %lld, expected 1 to %lld", c->path, name, (long long)*sizes[i].out,
                           (long long)sizes[i].most);
        bool optional = sizes[i].out == &c->kv_heads || sizes[i].out == &c->vocab;
        if (*sizes[i].out == 0 && !optional)
            return err_set(err, "%s: %s is missing", c->path, name);
    }
    if (c->kv_heads == 0)
        c->kv_heads = c->heads;
    if (c->heads % c->kv_heads)
        return err_set(err,
                       "%s: num_attention_heads is %lld, expected a multiple of num_key_value_heads "
                       "(%lld)",
                       c->path, (long long)c->heads, (long long)c->kv_heads);
    c->tied = c->family->tied;
    if (json_get_bool(c->root, c->path, "tie_word_embeddings", &c->tied, err) < 0)
        return -1;
    return read_head_length(c, err);
}

static char *below(const char *directory, const char *name)
{
    return xasprintf("%s/%s", directory, name);
}

int hf_config_open(struct hf_config *c, const char *directory, struct err *err)
{
    bool found;
    *c = (struct hf_config){.path = below(directory, "config.json"),
                            .generation_path = below(directory, "generation_config.json")};
    c->root = json_read(c->path, HF_CONFIG_MAX, &found, err);
    if (!c->root) {
        if (!found)
            err_set(err, "%s: config.json is missing: a Hugging Face directory has one", directory);
        goto fail;
    }
    c->generation = json_read(c->generation_path, HF_CONFIG_MAX, &found, err);
    if (!c->generation && found)
        goto fail;
    if (find_family(c, err) || check_settings(c, err) || read_sizes(c, err))
        goto fail;
    return 0;
fail:
    hf_config_release(c);
    return -1;
}

void hf_config_release(struct hf_config *c)
{
    json_decref(c->root);
    json_decref(c->generation);
    free(c->path);
    free(c->generation_path);
    free(c->rope_divisors);
    free(c->rope_long);
    free(c->rope_short);
    *c = (struct hf_config){0};
}

/* ---- keys --------------------------------------------------------------------------------------------- */

#define KEY(out, suffix) snprintf(out, sizeof(out), "%s.%s", c->family->architecture, suffix)

static int add_table(const struct hf_config *c, struct gguf_writer *w, struct err *err)
{
    char key[128];
    for (int i = 0; i < c->family->key_count; i++) {
        const struct hf_key *k = &c->family->keys[i];
        int64_t size = (int64_t)k->standard;
        double number = k->standard;
        int found = k->kind == HF_INT ? get_size(c, c->root, k->config, &size, err)
                                      : get_positive(c, c->root, k->config, &number, err);
        if (found < 0)
            return -1;
        if (!found && k->required)
            return err_set(err, "%s: %s is missing", c->path, k->config);
        if (!found && strcmp(k->config, "n_inner") == 0)
            size = 4 * c->embed;
        if (!found && strcmp(k->config, "num_key_value_heads") == 0)
            size = c->heads;
        KEY(key, k->gguf);
        if (k->kind == HF_INT && size > 0)
            gguf_writer_uint(w, key, (uint64_t)size);
        else if (k->kind == HF_FLOAT && number > 0)
            gguf_writer_float(w, key, number);
    }
    return 0;
}

void hf_llama3_divisors(float *out, int64_t length, double base, double factor, double low, double high,
                        double original_context)
{
    const double pi = 3.14159265358979323846;
    for (int64_t i = 0; i < length / 2; i++) {
        double wave = 2 * pi * pow(base, 2.0 * (double)i / (double)length);
        double smooth = (original_context / wave - low) / (high - low);
        out[i] = wave < original_context / high  ? 1
                 : wave > original_context / low ? (float)factor
                                                 : (float)(1 / ((1 - smooth) / factor + smooth));
    }
}

static int need_positive(const struct hf_config *c, const json_t *scaling, const char *key, double *out,
                         struct err *err)
{
    int found = get_positive(c, scaling, key, out, err);
    return found == 0 ? err_set(err, "%s: rope_scaling: %s is missing", c->path, key) : found < 0 ? -1 : 0;
}

static int add_llama3(struct hf_config *c, const json_t *scaling, double base, struct err *err)
{
    double factor, low, high, original;
    if (need_positive(c, scaling, "factor", &factor, err) ||
        need_positive(c, scaling, "low_freq_factor", &low, err) ||
        need_positive(c, scaling, "high_freq_factor", &high, err) ||
        need_positive(c, scaling, "original_max_position_embeddings", &original, err))
        return -1;
    if (high <= low)
        return err_set(err,
                       "%s: rope_scaling: high_freq_factor is %g, expected more than low_freq_factor "
                       "(%g)",
                       c->path, high, low);
    c->rope_divisors = xcalloc((size_t)c->rope_length / 2, sizeof(float));
    hf_llama3_divisors(c->rope_divisors, c->rope_length, base, factor, low, high, original);
    return 0;
}

static int add_yarn(const struct hf_config *c, struct gguf_writer *w, const json_t *scaling, struct err *err)
{
    static const struct {
        const char *key;
        double standard;
    } fixed[] = {{"beta_fast", 32}, {"beta_slow", 1}, {"mscale", 1}, {"mscale_all_dim", 0}};
    double factor = 1, attention = 0, value;
    int64_t original = c->context;
    char key[128];
    if (need_positive(c, scaling, "factor", &factor, err) ||
        get_positive(c, scaling, "attention_factor", &attention, err) < 0 ||
        get_size(c, scaling, "original_max_position_embeddings", &original, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++) {
        value = fixed[i].standard;
        if (json_get_number(scaling, c->path, fixed[i].key, &value, err) < 0)
            return -1;
        if (value != fixed[i].standard)
            return err_set(err, "%s: rope_scaling: %s: %g is not supported, expected %g", c->path,
                           fixed[i].key, value, fixed[i].standard);
    }
    gguf_writer_string(w, (KEY(key, "rope.scaling.type"), key), "yarn");
    gguf_writer_float(w, (KEY(key, "rope.scaling.factor"), key), factor);
    gguf_writer_uint(w, (KEY(key, "rope.scaling.original_context_length"), key), (uint64_t)original);
    /* HF gives the whole magnitude, GGUF what multiplies the one that YaRN prescribes. */
    if (attention > 0)
        gguf_writer_float(w, (KEY(key, "rope.scaling.attn_factor"), key),
                          attention / (1 + 0.1 * log(factor)));
    return 0;
}

/* long_factor, short_factor: a positive number for each frequency. */
static int read_factors(const struct hf_config *c, const json_t *scaling, const char *key, float **out,
                        struct err *err)
{
    json_t *list = NULL;
    size_t n = (size_t)c->rope_length / 2;
    if (json_get_array(scaling, c->path, key, &list, err) < 0)
        return -1;
    if (json_array_size(list) != n)
        return err_set(err, "%s: rope_scaling: %s: expected %zu numbers, found %zu", c->path, key, n,
                       json_array_size(list));
    *out = xcalloc(n, sizeof(float));
    for (size_t i = 0; i < n; i++) {
        double value = json_number_value(json_array_get(list, i));
        if (!(value > 0 && value < 1e30))
            return err_set(err, "%s: rope_scaling: %s: expected positive numbers", c->path, key);
        (*out)[i] = (float)value;
    }
    return 0;
}

/* LongRoPE (Ding et al. 2024), as Phi-3 has it: what is served decides which factors hold, and the magnitude
 * is that of the whole context. */
static int add_long(struct hf_config *c, struct gguf_writer *w, const json_t *scaling, struct err *err)
{
    int64_t original = 0;
    double magnitude = 0;
    char key[128];
    if (strcmp(c->family->model_type, "phi3") != 0)
        return refuse_text(c, "rope_scaling: type", "longrope", "another for this model_type", err);
    if (get_size(c, c->root, "original_max_position_embeddings", &original, err) < 0 ||
        get_size(c, scaling, "original_max_position_embeddings", &original, err) < 0 ||
        get_positive(c, scaling, "attention_factor", &magnitude, err) < 0 ||
        read_factors(c, scaling, "long_factor", &c->rope_long, err) ||
        read_factors(c, scaling, "short_factor", &c->rope_short, err))
        return -1;
    if (original < 2)
        return err_set(err, "%s: original_max_position_embeddings is missing", c->path);
    if (json_object_get(scaling, "short_mscale") || json_object_get(scaling, "long_mscale"))
        return err_set(err, "%s: rope_scaling: short_mscale, long_mscale: not supported", c->path);
    double factor = (double)c->context / (double)original;
    if (magnitude == 0)
        magnitude = factor > 1 ? sqrt(1 + log(factor) / log((double)original)) : 1;
    gguf_writer_uint(w, (KEY(key, "rope.scaling.original_context_length"), key), (uint64_t)original);
    gguf_writer_float(w, (KEY(key, "rope.scaling.attn_factor"), key), magnitude);
    return 0;
}

/* rope_scaling, or rope_parameters as newer files call it. */
static int add_rope(struct hf_config *c, struct gguf_writer *w, struct err *err)
{
    json_t *scaling = NULL;
    const char *type = NULL;
    double base = c->family->rope_base, factor;
    char key[128];
    if (base == 0)
        return 0;
    int found = json_get_object(c->root, c->path, "rope_scaling", &scaling, err);
    if (found == 0)
        found = json_get_object(c->root, c->path, "rope_parameters", &scaling, err);
    if (found < 0 || get_positive(c, c->root, "rope_theta", &base, err) < 0 ||
        (scaling && get_positive(c, scaling, "rope_theta", &base, err) < 0))
        return -1;
    gguf_writer_uint(w, (KEY(key, "rope.dimension_count"), key), (uint64_t)c->rope_length);
    gguf_writer_float(w, (KEY(key, "rope.freq_base"), key), base);
    if (!scaling)
        return 0;
    found = json_get_text(scaling, c->path, "rope_type", &type, err);
    if (found == 0)
        found = json_get_text(scaling, c->path, "type", &type, err);
    if (found <= 0)
        return found < 0 ? -1 : err_set(err, "%s: rope_scaling: its type is missing", c->path);
    if (strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "llama3") == 0)
        return add_llama3(c, scaling, base, err);
    if (strcmp(type, "yarn") == 0)
        return add_yarn(c, w, scaling, err);
    if (strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0)
        return add_long(c, w, scaling, err);
    if (strcmp(type, "linear") != 0)
        return refuse_text(c, "rope_scaling: type", type, "default, linear, yarn, llama3 or longrope", err);
    if (need_positive(c, scaling, "factor", &factor, err))
        return -1;
    gguf_writer_string(w, (KEY(key, "rope.scaling.type"), key), "linear");
    gguf_writer_float(w, (KEY(key, "rope.scaling.factor"), key), factor);
    return 0;
}

static int add_attention(const struct hf_config *c, struct gguf_writer *w, struct err *err)
{
    char key[128];
    int64_t window = 0;
    bool parallel = false, renormalise = false;
    if (c->family->head_length || c->head_length * c->heads != c->embed) {
        gguf_writer_uint(w, (KEY(key, "attention.key_length"), key), (uint64_t)c->head_length);
        gguf_writer_uint(w, (KEY(key, "attention.value_length"), key), (uint64_t)c->head_length);
    }
    if (c->family->sliding_window && get_size(c, c->root, "sliding_window", &window, err) < 0)
        return -1;
    if (strcmp(c->family->model_type, "gemma2") == 0) {
        double scalar = (double)c->head_length;
        if (window == 0)
            window = 4096;
        if (get_positive(c, c->root, "query_pre_attn_scalar", &scalar, err) < 0)
            return -1;
        gguf_writer_float(w, (KEY(key, "attention.scale"), key), 1 / sqrt(scalar));
    }
    if (window || strcmp(c->family->model_type, "phi3") == 0) /* where 0 must be said */
        gguf_writer_uint(w, (KEY(key, "attention.sliding_window"), key), (uint64_t)window);
    if (strcmp(c->family->model_type, "qwen3_moe") == 0) {
        if (json_get_bool(c->root, c->path, "norm_topk_prob", &renormalise, err) < 0)
            return -1;
        gguf_writer_bool(w, (KEY(key, "expert_weights_norm"), key), renormalise);
    }
    if (strcmp(c->family->model_type, "stablelm") == 0) {
        if (json_get_bool(c->root, c->path, "use_parallel_residual", &parallel, err) < 0)
            return -1;
        gguf_writer_bool(w, (KEY(key, "use_parallel_residual"), key), parallel);
    }
    return 0;
}

/* What generation_config.json recommends, under the keys that ggml's conversion gives it. */
static int add_sampling(const struct hf_config *c, struct gguf_writer *w, struct err *err)
{
    static const struct {
        const char *config, *gguf;
        bool whole;
    } keys[] = {{"temperature", "general.sampling.temp", false},
                {"top_p", "general.sampling.top_p", false},
                {"min_p", "general.sampling.min_p", false},
                {"repetition_penalty", "general.sampling.penalty_repeat", false},
                {"top_k", "general.sampling.top_k", true}};
    for (size_t i = 0; c->generation && i < ARRAY_LEN(keys); i++) {
        double value = 0;
        int found = json_get_number(c->generation, c->generation_path, keys[i].config, &value, err);
        if (found < 0)
            return -1;
        if (found && !(value >= 0 && value <= 1e6))
            return err_set(err, "%s: %s is %g, expected 0 to 1000000", c->generation_path, keys[i].config,
                           value);
        if (found && keys[i].whole)
            gguf_writer_uint(w, keys[i].gguf, (uint64_t)value);
        else if (found)
            gguf_writer_float(w, keys[i].gguf, value);
    }
    return 0;
}

int hf_config_keys(struct hf_config *c, struct gguf_writer *w, const char *name, struct err *err)
{
    gguf_writer_string(w, "general.architecture", c->family->architecture);
    gguf_writer_string(w, "general.type", "model");
    gguf_writer_string(w, "general.name", name);
    return add_table(c, w, err) || add_rope(c, w, err) || add_attention(c, w, err) || add_sampling(c, w, err)
               ? -1
               : 0;
}
