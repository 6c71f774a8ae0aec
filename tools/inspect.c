/* lepton inspect: what a model file holds, from its tables alone: no weight is read, so the size of the file
 * does not matter. On a terminal the tables are aligned; into a pipe every line is a record of fields with
 * tabs between them, or --json gives one object.
 *
 * Files come from anywhere: no text of theirs reaches the terminal with control characters in it. */
#include "tools/command.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/model/registry.h"

#define TERMINAL_VALUE_BYTES 60   /* of a string, in a table on a terminal */
#define PIPE_VALUE_BYTES     4096 /* into a pipe: as good as whole */
#define JSON_ARRAY_FIRST     8    /* elements of an array that --json shows */

struct inspect_settings {
    bool json, keys, tensors, fingerprint;
    char *models;
};

static const struct config_option options[] = {
    {.name = "keys",
     .letter = 'k',
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct inspect_settings, keys),
     .help = "Also lists every metadata key with its type and value."},
    {.name = "tensors",
     .letter = 't',
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct inspect_settings, tensors),
     .help = "Also lists every tensor with its type, shape, offset and bytes."},
    {.name = "fingerprint",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct inspect_settings, fingerprint),
     .help = "Also shows the weights' fingerprint, which reads a sample of every tensor."},
    {.name = "json",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct inspect_settings, json),
     .help = "Prints one JSON object."},
    MODELS_OPTION(struct inspect_settings),
};

static const struct config_table table = {
    .program = "lepton inspect",
    .arguments = "MODEL",
    .about = "Shows what a model holds, a GGUF file, a Hugging Face directory or a name of `lepton models`: "
             "architecture, sizes, "
             "vocabulary, types. Only its tables are read, "
             "never the weights. The file is checked as it is when a model is loaded.",
    .after = "Shapes are written row-major: the last dimension is the one that lies together in memory.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct inspect_settings),
};

/* What the summary shows of the architecture's own keys, in this order. */
static const struct {
    const char *suffix; /* after "<architecture>." */
    const char *label;
} summary_keys[] = {
    {"context_length", "context"},
    {"block_count", "layers"},
    {"embedding_length", "dimension"},
    {"feed_forward_length", "feed-forward"},
    {"attention.head_count", "heads"},
    {"attention.head_count_kv", "kv heads"},
    {"rope.dimension_count", "rope dimensions"},
    {"rope.freq_base", "rope base"},
    {"attention.layer_norm_rms_epsilon", "norm epsilon"},
};

struct totals {
    uint64_t parameters, bytes;
    struct {
        uint64_t tensors, parameters, bytes;
    } type[DTYPE_COUNT];
};

static struct totals count_all(const struct gguf *g)
{
    struct totals sum = {0};
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        uint64_t n = 1; /* fits: the bytes do */
        for (int d = 0; d < t->ndim; d++)
            n *= (uint64_t)t->dim[d];
        sum.parameters += n;
        sum.bytes += t->bytes;
        sum.type[t->dtype].tensors++;
        sum.type[t->dtype].parameters += n;
        sum.type[t->dtype].bytes += t->bytes;
    }
    return sum;
}

/* ---- text --------------------------------------------------------------------------------------------- */

struct printer {
    const struct gguf *g;
    bool terminal;
};

/* Names for people: control characters become '?', tabs among them. Freed by the caller. */
static char *plain(const char *text, size_t n)
{
    char *out = xmalloc(n + 1);
    for (size_t i = 0; i < n; i++) {
        bool c1 = i > 0 && (uint8_t)text[i - 1] == 0xC2 && (uint8_t)text[i] < 0xA0;
        out[i] = (uint8_t)text[i] < 0x20 || text[i] == 0x7F || c1 ? '?' : text[i];
    }
    out[n] = 0;
    return out;
}

static void line(const struct printer *p, const char *label, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void line(const struct printer *p, const char *label, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf(p->terminal ? "%-17s" : "%s\t", label);
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
}

/* "1.19 GiB" */
static const char *human_bytes(uint64_t bytes, char out[32])
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t k = 0;
    for (; v >= 1024 && k + 1 < ARRAY_LEN(unit); k++)
        v /= 1024;
    snprintf(out, 32, k ? "%.2f %s" : "%.0f %s", v, unit[k]);
    return out;
}

/* "1.10 B": parameters as people name model sizes. */
static const char *human_count(uint64_t count, char out[32])
{
    if (count < 1000)
        snprintf(out, 32, "%" PRIu64, count);
    else if (count < 1000000)
        snprintf(out, 32, "%.1f K", (double)count / 1e3);
    else if (count < 1000000000)
        snprintf(out, 32, "%.1f M", (double)count / 1e6);
    else
        snprintf(out, 32, "%.2f B", (double)count / 1e9);
    return out;
}

/* The index of a key, or UINT64_MAX. */
static uint64_t find_key(const struct gguf *g, const char *key)
{
    for (uint64_t i = 0; i < gguf_key_count(g); i++) {
        struct gguf_string s = gguf_key(g, i, NULL);
        if (s.size == strlen(key) && memcmp(s.data, key, s.size) == 0)
            return i;
    }
    return UINT64_MAX;
}

static void value_line(const struct printer *p, const char *label, const char *key)
{
    struct buffer text = {0};
    enum gguf_type type;
    uint64_t index = find_key(p->g, key);
    if (index == UINT64_MAX)
        return;
    gguf_format_value(p->g, index, 200, &text);
    gguf_key(p->g, index, &type);
    /* Strings come quoted, which reads badly here. */
    size_t cut = type == GGUF_STRING && text.data[text.size - 1] == '"' ? 1 : 0;
    line(p, label, "%.*s", (int)(text.size - 2 * cut), (char *)text.data + cut);
    buffer_release(&text);
}

/* The architecture's name as a C string; "" when the file has none. */
static void architecture(const struct gguf *g, char out[64])
{
    struct gguf_string s;
    out[0] = 0;
    if (gguf_get_string(g, "general.architecture", &s, NULL) == 1 && s.size < 64 &&
        !memchr(s.data, 0, s.size))
        snprintf(out, 64, "%.*s", (int)s.size, s.data);
}

/* Tokens in the vocabulary; 0 when there is none. */
static uint64_t vocabulary(const struct gguf *g)
{
    enum gguf_type element;
    uint64_t count;
    return gguf_get_array(g, "tokenizer.ggml.tokens", &element, &count, NULL) == 1 ? count : 0;
}

static void print_types(const struct printer *p, const struct totals *sum)
{
    char bytes[32];
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (sum->type[d].tensors)
            line(p, "type", "%s: %" PRIu64 " tensors, %s, %.2f %% of the parameters", dtype_info(d)->name,
                 sum->type[d].tensors, human_bytes(sum->type[d].bytes, bytes),
                 100.0 * (double)sum->type[d].parameters / (double)sum->parameters);
}

static void print_summary(const struct printer *p, const struct inspect_settings *settings)
{
    const struct gguf *g = p->g;
    struct totals sum = count_all(g);
    char arch[64], key[128], a[32], fingerprint[33];
    char *path = plain(gguf_name(g), strlen(gguf_name(g)));
    architecture(g, arch);
    line(p, "file", "%s", path);
    free(path);
    if (gguf_is_assembled(g))
        line(p, "format", "Hugging Face directory");
    else
        line(p, "format", "GGUF version %u, alignment %u", gguf_version(g), gguf_alignment(g));
    line(p, "size", "%s (%" PRIu64 " bytes)", human_bytes(gguf_file_bytes(g), a), gguf_file_bytes(g));
    value_line(p, "name", "general.name");
    value_line(p, "description", "general.description");
    value_line(p, "architecture", "general.architecture");
    line(p, "parameters", "%s (%" PRIu64 ") in %" PRIu64 " tensors", human_count(sum.parameters, a),
         sum.parameters, gguf_tensor_count(g));
    print_types(p, &sum);
    for (size_t i = 0; i < ARRAY_LEN(summary_keys); i++) {
        snprintf(key, sizeof(key), "%s.%s", arch, summary_keys[i].suffix);
        value_line(p, summary_keys[i].label, key);
    }
    if (vocabulary(g))
        line(p, "vocabulary", "%" PRIu64 " tokens", vocabulary(g));
    value_line(p, "tokenizer", "tokenizer.ggml.model");
    line(p, "keys", "%" PRIu64, gguf_key_count(g));
    if (settings->fingerprint) {
        gguf_fingerprint(g, fingerprint);
        line(p, "fingerprint", "%s", fingerprint);
    }
}

static int longest_name(const struct printer *p, bool tensors)
{
    uint64_t count = tensors ? gguf_tensor_count(p->g) : gguf_key_count(p->g), longest = 4;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t n = tensors ? gguf_tensor_at(p->g, i)->name.size : gguf_key(p->g, i, NULL).size;
        longest = n > longest ? n : longest;
    }
    return longest > 64 ? 64 : (int)longest;
}

static void print_keys(const struct printer *p)
{
    struct buffer text = {0};
    int width = longest_name(p, false);
    if (p->terminal)
        printf("\n%-*s  %-6s  value\n", width, "key", "type");
    for (uint64_t i = 0; i < gguf_key_count(p->g); i++) {
        enum gguf_type type;
        struct gguf_string key = gguf_key(p->g, i, &type);
        char *name = plain(key.data, key.size);
        text.size = 0;
        gguf_format_value(p->g, i, p->terminal ? TERMINAL_VALUE_BYTES : PIPE_VALUE_BYTES, &text);
        if (p->terminal)
            printf("%-*s  %-6s  ", width, name, gguf_type_name(type));
        else
            printf("key\t%s\t%s\t", name, gguf_type_name(type));
        printf("%.*s\n", (int)text.size, (char *)text.data);
        free(name);
    }
    buffer_release(&text);
}

static void print_tensors(const struct printer *p)
{
    int width = longest_name(p, true);
    if (p->terminal)
        printf("\n%-*s  %-5s  %-20s  %14s  %14s\n", width, "tensor", "type", "shape", "offset", "bytes");
    for (uint64_t i = 0; i < gguf_tensor_count(p->g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(p->g, i);
        char *name = plain(t->name.data, t->name.size), shape[100];
        size_t n = 0;
        for (int d = 0; d < t->ndim; d++)
            n += (size_t)snprintf(shape + n, sizeof(shape) - n, "%s%" PRId64, d ? " x " : "", t->dim[d]);
        printf(p->terminal ? "%-*s  %-5s  %-20s  %14" PRIu64 "  %14" PRIu64 "\n"
                           : "tensor\t%.*s\t%s\t%s\t%" PRIu64 "\t%" PRIu64 "\n",
               p->terminal ? width : (int)strlen(name), name, dtype_info(t->dtype)->name, shape, t->offset,
               t->bytes);
        free(name);
    }
}

/* ---- JSON --------------------------------------------------------------------------------------------- */

/* A JSON string of any bytes: what is no UTF-8 becomes U+FFFD. */
static json_t *json_text(const char *text, uint64_t size)
{
    if (utf8_valid(text, size))
        return json_stringn(text, size);
    struct buffer b = {0};
    for (uint64_t i = 0; i < size;) {
        uint64_t n = (uint64_t)utf8_sequence_bytes((uint8_t)text[i]);
        bool whole = n && n <= size - i && utf8_valid(text + i, n);
        buffer_append(&b, whole ? text + i : "\xEF\xBF\xBD", whole ? n : 3);
        i += whole ? n : 1;
    }
    json_t *out = json_stringn((char *)b.data, b.size);
    buffer_release(&b);
    return out;
}

/* JSON has neither infinity nor NaN nor numbers beyond 63 bits: those become strings. */
static json_t *json_float(double v)
{
    return isfinite(v) ? json_real(v) : json_string(isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
}

static json_t *json_uint(uint64_t v)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRIu64, v);
    return v <= INT64_MAX ? json_integer((json_int_t)v) : json_string(text);
}

static json_t *json_element(const struct gguf *g, const char *key, enum gguf_type element, uint64_t i)
{
    if (element == GGUF_STRING) {
        struct gguf_string s = gguf_array_string(g, key, i);
        return json_text(s.data, s.size);
    }
    if (element == GGUF_F32 || element == GGUF_F64)
        return json_float(gguf_array_float(g, key, i));
    if (element == GGUF_BOOL)
        return json_boolean(gguf_array_int(g, key, i));
    int64_t v = gguf_array_int(g, key, i);
    return element == GGUF_U64 ? json_uint((uint64_t)v) : json_integer(v);
}

static json_t *json_array_value(const struct gguf *g, const char *key)
{
    enum gguf_type element = GGUF_U8;
    uint64_t count = 0;
    gguf_get_array(g, key, &element, &count, NULL);
    json_t *first = json_array();
    for (uint64_t i = 0; i < count && i < JSON_ARRAY_FIRST; i++)
        json_array_append_new(first, json_element(g, key, element, i));
    return json_pack("{s:s, s:o, s:o}", "array", gguf_type_name(element), "count", json_uint(count), "first",
                     first);
}

static json_t *json_value(const struct gguf *g, const char *key, enum gguf_type type)
{
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    bool b = false;
    struct gguf_string s = {0};
    switch (type) {
    case GGUF_STRING:
        gguf_get_string(g, key, &s, NULL);
        return json_text(s.data, s.size);
    case GGUF_ARRAY:
        return json_array_value(g, key);
    case GGUF_F32:
    case GGUF_F64:
        gguf_get_float(g, key, &d, NULL);
        return json_float(d);
    case GGUF_BOOL:
        gguf_get_bool(g, key, &b, NULL);
        return json_boolean(b);
    case GGUF_U64:
        gguf_get_uint(g, key, &u, NULL);
        return json_uint(u);
    default:
        gguf_get_int(g, key, &i, NULL);
        return json_integer(i);
    }
}

/* Sets object[name] to the value of a key; nothing when the file has none. */
static void copy_key(json_t *object, const char *name, const struct gguf *g, const char *key)
{
    enum gguf_type type;
    uint64_t index = find_key(g, key);
    if (index == UINT64_MAX)
        return;
    gguf_key(g, index, &type);
    json_object_set_new(object, name, json_value(g, key, type));
}

static json_t *json_keys(const struct gguf *g)
{
    json_t *keys = json_object();
    for (uint64_t i = 0; i < gguf_key_count(g); i++) {
        enum gguf_type type;
        struct gguf_string s = gguf_key(g, i, &type);
        char *key = xasprintf("%.*s", (int)s.size, s.data);
        json_object_set_new(keys, key, json_value(g, key, type));
        free(key);
    }
    return keys;
}

static json_t *json_tensors(const struct gguf *g)
{
    json_t *tensors = json_array();
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        json_t *shape = json_array();
        for (int d = 0; d < t->ndim; d++)
            json_array_append_new(shape, json_integer(t->dim[d]));
        json_array_append_new(tensors, json_pack("{s:o, s:s, s:o, s:o, s:o}", "name",
                                                 json_text(t->name.data, t->name.size), "type",
                                                 dtype_info(t->dtype)->name, "shape", shape, "offset",
                                                 json_uint(t->offset), "bytes", json_uint(t->bytes)));
    }
    return tensors;
}

static json_t *json_types(const struct totals *sum)
{
    json_t *types = json_object();
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (sum->type[d].tensors)
            json_object_set_new(types, dtype_info(d)->name,
                                json_pack("{s:o, s:o, s:o}", "tensors", json_uint(sum->type[d].tensors),
                                          "parameters", json_uint(sum->type[d].parameters), "bytes",
                                          json_uint(sum->type[d].bytes)));
    return types;
}

static void print_json(const struct printer *p, const struct inspect_settings *settings)
{
    const struct gguf *g = p->g;
    struct totals sum = count_all(g);
    char arch[64], key[128], fingerprint[33];
    json_t *root = json_object();
    architecture(g, arch);
    json_object_set_new(root, "file", json_text(gguf_name(g), strlen(gguf_name(g))));
    json_object_set_new(root, "format", json_string(gguf_is_assembled(g) ? "huggingface" : "gguf"));
    json_object_set_new(root, "version", json_integer(gguf_version(g)));
    json_object_set_new(root, "alignment", json_integer(gguf_alignment(g)));
    json_object_set_new(root, "bytes", json_uint(gguf_file_bytes(g)));
    copy_key(root, "name", g, "general.name");
    copy_key(root, "description", g, "general.description");
    copy_key(root, "architecture", g, "general.architecture");
    json_object_set_new(root, "parameters", json_uint(sum.parameters));
    json_object_set_new(root, "tensor_count", json_uint(gguf_tensor_count(g)));
    json_object_set_new(root, "types", json_types(&sum));
    for (size_t i = 0; i < ARRAY_LEN(summary_keys); i++) {
        snprintf(key, sizeof(key), "%s.%s", arch, summary_keys[i].suffix);
        copy_key(root, summary_keys[i].suffix, g, key);
    }
    json_object_set_new(root, "vocabulary", json_uint(vocabulary(g)));
    copy_key(root, "tokenizer", g, "tokenizer.ggml.model");
    if (settings->fingerprint) {
        gguf_fingerprint(g, fingerprint);
        json_object_set_new(root, "fingerprint", json_string(fingerprint));
    }
    if (settings->keys)
        json_object_set_new(root, "keys", json_keys(g));
    if (settings->tensors)
        json_object_set_new(root, "tensors", json_tensors(g));
    json_dumpf(root, stdout, p->terminal ? JSON_INDENT(2) : JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}

int command_inspect(int argc, char **argv)
{
    struct inspect_settings settings;
    const char *arguments[1];
    struct registry_model m;
    struct gguf *g;
    struct err err;
    config_main(&table, &settings, argc, argv, arguments, 1);
    if (registry_find(&m, settings.models, arguments[0], VERIFY_REGISTERED, &err) ||
        registry_open(&g, &m, 1, &err)) {
        /* The message may hold pieces of the path and of the file. */
        char *message = plain(err.message, strlen(err.message));
        fprintf(stderr, "lepton inspect: %s\n", message);
        free(message);
        registry_release(&m);
        config_release(&table, &settings);
        return EXIT_FAILED;
    }
    struct printer p = {.g = g, .terminal = isatty(STDOUT_FILENO) == 1};
    if (settings.json) {
        print_json(&p, &settings);
    } else {
        print_summary(&p, &settings);
        if (settings.keys)
            print_keys(&p);
        if (settings.tensors)
            print_tensors(&p);
    }
    gguf_close(&g);
    registry_release(&m);
    config_release(&table, &settings);
    return EXIT_OK;
}
