/* hf_write_config: metadata -> config.json and generation_config.json: the family's table backwards, and the
 * settings that hf_config.c reads. What config.json has no word for is refused. */
#include "worker/model/hf_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct out {
    const struct gguf *g;
    const struct hf_family *family;
    json_t *root;
    struct err *err;
};

/* 1 found, 0 absent, -1. */
static int get_int(const struct out *o, const char *suffix, uint64_t *value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", o->family->architecture, suffix);
    return gguf_get_uint(o->g, key, value, o->err);
}

static int get_float(const struct out *o, const char *suffix, double *value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", o->family->architecture, suffix);
    return gguf_get_float(o->g, key, value, o->err);
}

/* The shortest decimal that is this float: 1e-05 and not 9.9999997e-06. */
static json_t *json_float(double v)
{
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtof(text, NULL) == (float)v)
            break;
    }
    return json_real(strtod(text, NULL));
}

static void set_int(const struct out *o, const char *key, uint64_t value)
{
    json_object_set_new(o->root, key, json_integer((json_int_t)value));
}

static bool is_type(const struct hf_family *f, const char *model_type)
{
    return strcmp(f->model_type, model_type) == 0;
}

/* Several families share the architecture `llama`: experts make mixtral, a window mistral. */
const struct hf_family *hf_write_family(const struct gguf *g, struct err *err)
{
    struct gguf_string name = {NULL, 0};
    struct buffer known = {0};
    uint64_t experts = 0, window = 0;
    const struct hf_family *found = NULL;
    if (gguf_get_string(g, "general.architecture", &name, err) < 0 ||
        gguf_get_uint(g, "llama.expert_count", &experts, err) < 0 ||
        gguf_get_uint(g, "llama.attention.sliding_window", &window, err) < 0)
        return NULL;
    const char *wanted = experts ? "mixtral" : window ? "mistral" : "llama";
    for (size_t i = 0; i < hf_family_count; i++) {
        const struct hf_family *f = &hf_families[i];
        bool same =
            strlen(f->architecture) == name.size && memcmp(f->architecture, name.data, name.size) == 0;
        if (same && (strcmp(f->architecture, "llama") != 0 || is_type(f, wanted)))
            found = f;
        buffer_printf(&known, "%s%s", i ? ", " : "", f->architecture);
    }
    if (!found)
        err_set(err, "%s: general.architecture \"%.*s\" has no Hugging Face form here, expected one of: %s",
                gguf_name(g), (int)(name.size < 64 ? name.size : 64), name.data ? name.data : "",
                (const char *)known.data);
    buffer_release(&known);
    return found;
}

static int write_table(const struct out *o)
{
    for (int i = 0; i < o->family->key_count; i++) {
        const struct hf_key *k = &o->family->keys[i];
        uint64_t n = 0;
        double v = 0;
        int found = k->kind == HF_INT ? get_int(o, k->gguf, &n) : get_float(o, k->gguf, &v);
        if (found < 0)
            return -1;
        if (!found && k->required)
            return err_set(o->err, "%s: metadata key %s.%s is missing", gguf_name(o->g),
                           o->family->architecture, k->gguf);
        if (found && n > INT32_MAX)
            return err_set(o->err, "%s: %s.%s is %llu, expected at most %d", gguf_name(o->g),
                           o->family->architecture, k->gguf, (unsigned long long)n, INT32_MAX);
        if (found)
            json_object_set_new(o->root, k->config,
                                k->kind == HF_INT ? json_integer((json_int_t)n) : json_float(v));
    }
    return 0;
}

/* Which of Llama 3's published parameters give exactly these divisors. */
static json_t *find_llama3(const struct out *o, const struct gguf_tensor *t, double base)
{
    static const double originals[] = {8192, 4096, 16384, 32768};
    int64_t n = t->dim[0];
    float *have = xmalloc((size_t)n * sizeof(*have)), *want = xmalloc((size_t)n * sizeof(*want));
    json_t *scaling = NULL;
    memcpy(have, gguf_tensor_data(o->g, t), (size_t)n * sizeof(*have));
    double factor = have[n - 1];
    for (size_t i = 0; i < ARRAY_LEN(originals) && !scaling && factor > 0; i++) {
        double worst = 0;
        hf_llama3_divisors(want, 2 * n, base, factor, 1, 4, originals[i]);
        for (int64_t k = 0; k < n; k++) {
            double off = fabs(want[k] - have[k]) / have[k];
            worst = off <= worst ? worst : off; /* NaN stays */
        }
        if (worst <= 1e-5)
            scaling = json_pack("{s:s, s:o, s:f, s:f, s:I}", "rope_type", "llama3", "factor",
                                json_float(factor), "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                                "original_max_position_embeddings", (json_int_t)originals[i]);
    }
    free(have);
    free(want);
    return scaling;
}

/* A vector of `n` floats, or NULL. */
static const struct gguf_tensor *factors(const struct out *o, const char *name, uint64_t n)
{
    const struct gguf_tensor *t = gguf_tensor_find(o->g, name);
    return t && t->dtype == DTYPE_F32 && t->ndim == 1 && (uint64_t)t->dim[0] == n ? t : NULL;
}

static json_t *factors_json(const struct out *o, const struct gguf_tensor *t)
{
    json_t *list = json_array();
    const uint8_t *data = gguf_tensor_data(o->g, t);
    for (int64_t i = 0; i < t->dim[0]; i++) {
        float v;
        memcpy(&v, data + (size_t)i * sizeof(v), sizeof(v));
        json_array_append_new(list, json_float(v));
    }
    return list;
}

/* rope_scaling from tensors: 1 written, 0 there are none, -1. */
static int write_scaling_tensors(const struct out *o, double base, uint64_t n, uint64_t original,
                                 double attention)
{
    bool any = gguf_tensor_find(o->g, "rope_factors_long.weight") ||
               gguf_tensor_find(o->g, "rope_factors_short.weight");
    const struct gguf_tensor *t = factors(o, "rope_freqs.weight", n),
                             *longer = factors(o, "rope_factors_long.weight", n),
                             *shorter = factors(o, "rope_factors_short.weight", n);
    json_t *scaling = NULL;
    if (!any && !gguf_tensor_find(o->g, "rope_freqs.weight"))
        return 0;
    if (any && longer && shorter && original && attention > 0 && is_type(o->family, "phi3")) {
        scaling =
            json_pack("{s:s, s:o, s:o, s:o}", "type", "longrope", "long_factor", factors_json(o, longer),
                      "short_factor", factors_json(o, shorter), "attention_factor", json_float(attention));
        set_int(o, "original_max_position_embeddings", original);
    } else if (!any && t) {
        scaling = find_llama3(o, t, base);
    }
    if (!scaling)
        return err_set(o->err, "%s: tensor %s: no rope_scaling known here gives these values",
                       gguf_name(o->g), any ? "rope_factors_long.weight" : "rope_freqs.weight");
    json_object_set_new(o->root, "rope_scaling", scaling);
    return 1;
}

/* A factor without a type means linear, as arch_rope.c reads it. */
static int write_scaling(const struct out *o, double base, uint64_t rope_length)
{
    char key[128];
    struct gguf_string type = {"linear", 6};
    double factor = 1, attention = 0;
    uint64_t original = 0;
    snprintf(key, sizeof(key), "%s.rope.scaling.type", o->family->architecture);
    if (gguf_get_string(o->g, key, &type, o->err) < 0 || get_float(o, "rope.scale_linear", &factor) < 0 ||
        get_float(o, "rope.scaling.factor", &factor) < 0 ||
        get_float(o, "rope.scaling.attn_factor", &attention) < 0 ||
        get_int(o, "rope.scaling.original_context_length", &original) < 0)
        return -1;
    bool none = type.size == 4 && memcmp(type.data, "none", 4) == 0;
    bool linear = type.size == 6 && memcmp(type.data, "linear", 6) == 0;
    bool yarn = type.size == 4 && memcmp(type.data, "yarn", 4) == 0;
    bool longer = type.size == 8 && memcmp(type.data, "longrope", 8) == 0;
    int tensors = write_scaling_tensors(o, base, rope_length / 2, original, attention);
    if (tensors < 0)
        return -1;
    if (!none && !linear && !yarn && !(longer && tensors))
        return err_set(o->err, "%s: %s: \"%.*s\" has no Hugging Face form here", gguf_name(o->g), key,
                       (int)(type.size < 64 ? type.size : 64), type.data);
    if (none || longer || (linear && factor == 1))
        return 0;
    if (tensors)
        return err_set(o->err, "%s: %s and frequency tensors together have no Hugging Face form here",
                       gguf_name(o->g), key);
    json_t *scaling =
        json_pack("{s:s, s:o}", "rope_type", linear ? "linear" : "yarn", "factor", json_float(factor));
    if (yarn && original)
        json_object_set_new(scaling, "original_max_position_embeddings", json_integer((json_int_t)original));
    if (yarn && attention > 0)
        json_object_set_new(scaling, "attention_factor", json_real(attention * (1 + 0.1 * log(factor))));
    json_object_set_new(o->root, "rope_scaling", scaling);
    return 0;
}

static int write_rope(const struct out *o)
{
    uint64_t embed = 1, heads = 1, head = 0, length = 0;
    double base = 10000; /* GGUF's, where the key is absent: each family has its own in config.json */
    if (o->family->rope_base == 0)
        return 0;
    if (get_int(o, "embedding_length", &embed) < 0 || get_int(o, "attention.head_count", &heads) < 0 ||
        heads == 0)
        return heads ? -1 : err_set(o->err, "%s: attention.head_count is 0", gguf_name(o->g));
    head = embed / heads;
    if (get_int(o, "attention.key_length", &head) < 0)
        return -1;
    length = head;
    if (get_int(o, "rope.dimension_count", &length) < 0 || get_float(o, "rope.freq_base", &base) < 0)
        return -1;
    set_int(o, "head_dim", head);
    json_object_set_new(o->root, "rope_theta", json_float(base));
    bool partial = is_type(o->family, "stablelm") || is_type(o->family, "phi3");
    if (length > head || (length != head && !partial))
        return err_set(o->err, "%s: %s.rope.dimension_count is %llu, expected the head length %llu",
                       gguf_name(o->g), o->family->architecture, (unsigned long long)length,
                       (unsigned long long)head);
    if (partial)
        json_object_set_new(o->root, "partial_rotary_factor",
                            json_real((double)length / (double)(head ? head : 1)));
    return write_scaling(o, base, length);
}

/* The number whose root divides the scores: whole in every published model. */
static json_t *json_query_scale(const struct out *o, double scale)
{
    if (!(scale > 0))
        return json_incref(json_object_get(o->root, "head_dim"));
    double number = 1 / (scale * scale), whole = round(number);
    return (float)(1 / sqrt(whole)) == (float)scale ? json_integer((json_int_t)whole) : json_real(number);
}

/* What belongs to single families. */
static int write_special(const struct out *o)
{
    const struct hf_family *f = o->family;
    uint64_t window = 0;
    double scale = 0;
    bool parallel = false;
    if (get_int(o, "attention.sliding_window", &window) < 0 || get_float(o, "attention.scale", &scale) < 0)
        return -1;
    if (f->sliding_window)
        json_object_set_new(o->root, "sliding_window",
                            window ? json_integer((json_int_t)window) : json_null());
    else if (window)
        return err_set(o->err, "%s: %s.attention.sliding_window has no Hugging Face form for %s",
                       gguf_name(o->g), f->architecture, f->model_type);
    bool qkv_bias = gguf_tensor_find(o->g, "blk.0.attn_q.bias") != NULL;
    if (is_type(f, "llama") || is_type(f, "qwen3") || is_type(f, "qwen3_moe")) {
        json_object_set_new(o->root, "attention_bias", json_boolean(qkv_bias));
        json_object_set_new(o->root, "mlp_bias",
                            json_boolean(gguf_tensor_find(o->g, "blk.0.ffn_up.bias") != NULL));
    }
    if (is_type(f, "gemma2"))
        json_object_set_new(o->root, "query_pre_attn_scalar", json_query_scale(o, scale));
    if (is_type(f, "stablelm")) {
        if (gguf_get_bool(o->g, "stablelm.use_parallel_residual", &parallel, o->err) < 0)
            return -1;
        json_object_set_new(o->root, "use_parallel_residual", json_boolean(parallel));
        json_object_set_new(o->root, "use_qkv_bias", json_boolean(qkv_bias));
    }
    if (is_type(f, "qwen3_moe")) {
        bool renormalise = true;
        if (gguf_get_bool(o->g, "qwen3moe.expert_weights_norm", &renormalise, o->err) < 0)
            return -1;
        json_object_set_new(o->root, "norm_topk_prob", json_boolean(renormalise));
        set_int(o, "decoder_sparse_step", 1);
        json_object_set_new(o->root, "mlp_only_layers", json_array());
    }
    if (is_type(f, "qwen2") || is_type(f, "qwen3") || is_type(f, "qwen3_moe"))
        json_object_set_new(o->root, "use_sliding_window", json_false());
    return 0;
}

/* Keys of the architecture that the functions above have said, or that say nothing. */
static bool is_said(const struct out *o, const char *suffix)
{
    static const char *const known[] = {
        "rope.dimension_count",     "rope.freq_base",
        "rope.scaling.type",        "rope.scaling.factor",
        "rope.scaling.attn_factor", "rope.scaling.original_context_length",
        "rope.scale_linear",        "attention.key_length",
        "attention.value_length",   "attention.sliding_window",
        "attention.head_count_kv",  "rope.scaling.finetuned",
        "tensor_data_layout",       "vocab_size",
    };
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (strcmp(known[i], suffix) == 0)
            return true;
    if (strcmp(suffix, "attention.scale") == 0)
        return is_type(o->family, "gemma2");
    if (strcmp(suffix, "use_parallel_residual") == 0)
        return is_type(o->family, "stablelm");
    if (strcmp(suffix, "expert_weights_norm") == 0 && is_type(o->family, "qwen3_moe"))
        return true;
    return hf_config_name(o->family, suffix) != NULL;
}

/* A key that config.json cannot carry would silently change the model; zero and "causal" change nothing. */
static int check_keys(const struct out *o)
{
    size_t n = strlen(o->family->architecture);
    for (uint64_t i = 0; i < gguf_key_count(o->g); i++) {
        struct gguf_string name = gguf_key(o->g, i, NULL);
        char key[128];
        uint64_t number = 1;
        bool flag = false;
        if (name.size <= n || memcmp(name.data, o->family->architecture, n) != 0 || name.data[n] != '.')
            continue;
        snprintf(key, sizeof(key), "%.*s", (int)(name.size < 127 ? name.size : 127), name.data);
        if (is_said(o, key + n + 1) || (gguf_get_uint(o->g, key, &number, NULL) == 1 && number == 0))
            continue;
        bool neutral =
            strcmp(key + n + 1, "attention.causal") == 0 || strcmp(key + n + 1, "expert_weights_norm") == 0;
        if (neutral && gguf_get_bool(o->g, key, &flag, NULL) == 1 && flag)
            continue;
        return err_set(o->err, "%s: metadata key %s has no Hugging Face form in a %s model", gguf_name(o->g),
                       key, o->family->model_type);
    }
    return 0;
}

static void copy_id(const struct gguf *g, const char *key, json_t *to, const char *name)
{
    uint64_t id;
    if (gguf_get_uint(g, key, &id, NULL) == 1 && id < INT32_MAX)
        json_object_set_new(to, name, json_integer((json_int_t)id));
}

static void write_ends(const struct gguf *g, json_t *to)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        uint64_t id;
        bool again = false;
        json_t *known;
        size_t k;
        if (gguf_get_uint(g, keys[i], &id, NULL) != 1 || id >= INT32_MAX)
            continue;
        json_array_foreach(list, k, known) again |= json_integer_value(known) == (json_int_t)id;
        if (!again)
            json_array_append_new(list, json_integer((json_int_t)id));
    }
    if (json_array_size(list) == 1)
        json_object_set(to, "eos_token_id", json_array_get(list, 0));
    else if (json_array_size(list))
        json_object_set(to, "eos_token_id", list);
    json_decref(list);
}

json_t *hf_write_config(const struct gguf *g, const struct hf_family *family, const char *dtype_name,
                        struct err *err)
{
    struct out o = {.g = g, .family = family, .root = json_object(), .err = err};
    const struct gguf_tensor *embed = gguf_tensor_find(g, "token_embd.weight");
    json_object_set_new(o.root, "architectures", json_pack("[s]", family->class_name));
    json_object_set_new(o.root, "model_type", json_string(family->model_type));
    json_object_set_new(o.root, "torch_dtype", json_string(dtype_name));
    json_object_set_new(o.root,
                        strcmp(family->model_type, "gpt2") == 0 ? "activation_function" : "hidden_act",
                        json_string(family->activation));
    if (strncmp(family->model_type, "gemma", 5) == 0)
        json_object_set_new(o.root, "hidden_activation", json_string(family->activation));
    json_object_set_new(o.root, "tie_word_embeddings", json_boolean(!gguf_tensor_find(g, "output.weight")));
    if (check_keys(&o) || write_table(&o) || write_rope(&o) || write_special(&o)) {
        json_decref(o.root);
        return NULL;
    }
    if (embed)
        set_int(&o, "vocab_size", (uint64_t)embed->dim[0]);
    copy_id(g, "tokenizer.ggml.bos_token_id", o.root, "bos_token_id");
    copy_id(g, "tokenizer.ggml.padding_token_id", o.root, "pad_token_id");
    write_ends(g, o.root);
    return o.root;
}

json_t *hf_write_generation(const struct gguf *g)
{
    static const struct {
        const char *gguf, *config;
    } keys[] = {{"general.sampling.temp", "temperature"},
                {"general.sampling.top_p", "top_p"},
                {"general.sampling.min_p", "min_p"},
                {"general.sampling.penalty_repeat", "repetition_penalty"}};
    json_t *root = json_object();
    double value;
    json_object_set_new(root, "_from_model_config", json_true());
    copy_id(g, "tokenizer.ggml.bos_token_id", root, "bos_token_id");
    write_ends(g, root);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (gguf_get_float(g, keys[i].gguf, &value, NULL) == 1)
            json_object_set_new(root, keys[i].config, json_float(value));
    copy_id(g, "general.sampling.top_k", root, "top_k");
    return root;
}
