#include "worker/model/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/model/map_file.h"

#define FORMAT      "lepton-model"
#define TENSORS_MAX (1u << 18)
#define NAME_MAX_   128
#define SOURCE_MAX  4096
#define TENSOR_MAX  64 /* bytes of a tensor's name, as GGUF has it */
#define HEX_HASH    (2 * MANIFEST_HASH)
#define JSON_DEPTH  4
#define SHOWN       64 /* bytes of a text from the file in a message */

bool manifest_name_valid(const char *name)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(name);
    return n >= 1 && n <= NAME_MAX_ && name[0] != '.' && strspn(name, letters) == n;
}

void manifest_free(struct manifest **pm)
{
    if (!pm || !*pm)
        return;
    struct manifest *m = *pm;
    for (uint64_t i = 0; i < m->tensor_count; i++) {
        free(m->tensor[i].name);
        free(m->tensor[i].chunk);
    }
    free(m->tensor);
    free(m->name);
    free(m->source);
    free(m);
    *pm = NULL;
}

void manifest_digest(const struct manifest *m, char out[HEX_HASH + 1])
{
    crypto_generichash_state state;
    uint8_t digest[MANIFEST_HASH];
    crypto_generichash_init(&state, NULL, 0, sizeof(digest));
    crypto_generichash_update(&state, m->header, sizeof(m->header)); /* covers the tensors' names and sizes */
    for (uint64_t i = 0; i < m->tensor_count; i++)
        crypto_generichash_update(&state, m->tensor[i].hash, sizeof(m->tensor[i].hash));
    crypto_generichash_final(&state, digest, sizeof(digest));
    sodium_bin2hex(out, HEX_HASH + 1, digest, sizeof(digest));
}

/* ---- writing ------------------------------------------------------------------------------------------ */

static void put_hex(struct buffer *b, const uint8_t *data, size_t bytes)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < bytes; i++)
        buffer_append(b, (char[]){digit[data[i] >> 4], digit[data[i] & 15]}, 2);
}

/* A JSON string; -1 when the text is not UTF-8. */
static int put_string(struct buffer *b, const char *text)
{
    json_t *value = json_string(text);
    char *quoted = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    if (quoted)
        buffer_append(b, quoted, strlen(quoted));
    free(quoted);
    json_decref(value);
    return quoted ? 0 : -1;
}

/* Everything but the seal, which is made of exactly these bytes: written by hand, because they must come out
 * the same with every version of a library. A tensor a line, for people and for diff. */
static int put_body(const struct manifest *m, struct buffer *b, struct err *err)
{
    buffer_printf(b, "{\"format\": \"%s\",\n \"version\": %d,\n \"name\": ", FORMAT, MANIFEST_VERSION);
    put_string(b, m->name);
    buffer_printf(b, ",\n \"source\": ");
    if (put_string(b, m->source))
        return err_set(err, "%s: the path is not UTF-8, which a manifest cannot say", m->source);
    buffer_printf(b, ",\n \"kind\": \"%s\",\n \"file_bytes\": %llu,\n \"file_time_ns\": %lld,\n",
                  m->linked ? "link" : "copy", (unsigned long long)m->file_bytes, (long long)m->file_time_ns);
    buffer_printf(b, " \"created\": %lld,\n \"chunk_bytes\": %u,\n", (long long)m->created_s, MANIFEST_CHUNK);
    buffer_printf(b, " \"header_bytes\": %llu,\n \"header_blake2b\": \"",
                  (unsigned long long)m->header_bytes);
    put_hex(b, m->header, sizeof(m->header));
    buffer_printf(b, "\",\n \"tensors\": [");
    for (uint64_t i = 0; i < m->tensor_count; i++) {
        const struct manifest_tensor *t = &m->tensor[i];
        buffer_printf(b, "%s\n  {\"name\": ", i ? "," : "");
        if (put_string(b, t->name))
            return err_set(err, "tensor %llu: its name is not UTF-8", (unsigned long long)i);
        buffer_printf(b, ", \"bytes\": %llu, \"blake2b\": \"", (unsigned long long)t->bytes);
        put_hex(b, t->hash, sizeof(t->hash));
        buffer_printf(b, "\", \"xxh3_128\": \"");
        put_hex(b, t->chunk, manifest_chunks(t->bytes) * MANIFEST_CHUNK_HASH);
        buffer_printf(b, "\"}");
    }
    buffer_printf(b, "],\n");
    return 0;
}

static void seal(const struct buffer *body, uint8_t out[MANIFEST_HASH])
{
    crypto_generichash(out, MANIFEST_HASH, body->data, body->size, NULL, 0);
}

int manifest_write(const struct manifest *m, struct buffer *out, struct err *err)
{
    uint8_t hash[MANIFEST_HASH];
    ASSERT(out->size == 0);
    if (put_body(m, out, err))
        return -1;
    seal(out, hash);
    buffer_printf(out, " \"seal\": \"");
    put_hex(out, hash, sizeof(hash));
    buffer_printf(out, "\"}\n");
    return out->size <= MANIFEST_BYTES_MAX
               ? 0
               : err_set(err, "a manifest of %zu bytes: expected at most %u", out->size, MANIFEST_BYTES_MAX);
}

/* ---- reading ------------------------------------------------------------------------------------------ */

/* Bounds what jansson will allocate before it does: depth, and about 250 bytes for each object or array, 80
 * for each string or member. Broken text is left to jansson, which says where it breaks. */
static int scan(const char *text, uint64_t size, const char *name, struct err *err)
{
    uint64_t cost = 0, limit = 3 * size + (56u << 20);
    int depth = 0;
    for (uint64_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '"') {
            uint64_t start = i;
            for (i++; i < size && text[i] != '"'; i++)
                i += text[i] == '\\';
            cost += 80 + (i - start);
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH)
                return err_set(err, "%s:%llu: nested deeper than %d", name, (unsigned long long)i,
                               JSON_DEPTH);
            cost += 250;
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',' || c == ':') {
            cost += 80;
        }
    }
    if (cost > limit)
        return err_set(err, "%s: its %llu bytes would take %llu bytes of memory", name,
                       (unsigned long long)size, (unsigned long long)cost);
    return 0;
}

/* Where a value is looked for: an object, how messages call it, and how many of its members were used. */
struct place {
    const json_t *object;
    char label[160]; /* "manifest.json: " or "manifest.json: tensor 3: " */
    size_t used;
    struct err *err;
};

/* A text of the file for a message: short, without control characters. */
static const char *show(const char *text, char out[SHOWN + 4])
{
    size_t n = strlen(text), k = n > SHOWN ? SHOWN : n;
    while (k < n && k > 0 && ((uint8_t)text[k] & 0xC0) == 0x80)
        k--;
    for (size_t i = 0; i < k; i++)
        out[i] = (uint8_t)text[i] < 0x20 || text[i] == 0x7F || text[i] == '"' ? '?' : text[i];
    snprintf(out + k, 4, "%s", k < n ? "..." : "");
    return out;
}

static const json_t *member(struct place *p, const char *key)
{
    const json_t *value = json_object_get(p->object, key);
    p->used++;
    if (!value)
        err_set(p->err, "%s%s is missing", p->label, key);
    return value;
}

static int get_text(struct place *p, const char *key, uint64_t max, const char **out)
{
    const json_t *value = member(p, key);
    if (!value)
        return -1;
    if (!json_is_string(value))
        return err_set(p->err, "%s%s: expected a string", p->label, key);
    *out = json_string_value(value);
    if (json_string_length(value) < 1 || json_string_length(value) > max)
        return err_set(p->err, "%s%s: a text of %zu bytes, expected 1 to %llu", p->label, key,
                       json_string_length(value), (unsigned long long)max);
    return 0;
}

static int get_int(struct place *p, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *value = member(p, key);
    if (!value)
        return -1;
    if (!json_is_integer(value))
        return err_set(p->err, "%s%s: expected an integer", p->label, key);
    *out = json_integer_value(value);
    if (*out < min || *out > max)
        return err_set(p->err, "%s%s: %lld, expected %lld to %lld", p->label, key, (long long)*out,
                       (long long)min, (long long)max);
    return 0;
}

static int get_hex(struct place *p, const char *key, uint8_t *out, uint64_t bytes)
{
    const json_t *value = member(p, key);
    if (!value)
        return -1;
    if (!json_is_string(value))
        return err_set(p->err, "%s%s: expected a string", p->label, key);
    size_t length = json_string_length(value);
    const char *text = json_string_value(value);
    if (length != 2 * bytes)
        return err_set(p->err, "%s%s: %zu digits, expected %llu", p->label, key, length,
                       (unsigned long long)(2 * bytes));
    /* Lower case alone: a hash has one spelling. */
    size_t good = strspn(text, "0123456789abcdef");
    if (good != length)
        return err_set(p->err, "%s%s: digit %zu is not one of 0-9 and a-f", p->label, key, good);
    int code = sodium_hex2bin(out, bytes, text, length, NULL, NULL, NULL);
    ASSERT(code == 0);
    return 0;
}

/* Members that nobody asked for: refused, they may change the meaning. */
static int no_others(const struct place *p)
{
    if (json_object_size(p->object) == p->used)
        return 0;
    return err_set(p->err, "%s%zu members, expected %zu: made by a newer Lepton?", p->label,
                   json_object_size(p->object), p->used);
}

static int parse_tensor(struct manifest_tensor *out, const json_t *object, const char *name, uint64_t index,
                        struct err *err)
{
    struct place p = {.object = object, .err = err};
    const char *text;
    int64_t bytes;
    snprintf(p.label, sizeof(p.label), "%.120s: tensor %llu: ", name, (unsigned long long)index);
    if (!json_is_object(object))
        return err_set(err, "%sexpected an object", p.label);
    if (get_text(&p, "name", TENSOR_MAX, &text))
        return -1;
    out->name = xstrdup(text);
    if (get_int(&p, "bytes", 1, INT64_MAX, &bytes) || get_hex(&p, "blake2b", out->hash, MANIFEST_HASH))
        return -1;
    /* Nothing is allocated for more chunks than there are digits. */
    uint64_t hash_bytes = manifest_chunks((uint64_t)bytes) * MANIFEST_CHUNK_HASH;
    size_t digits = json_string_length(json_object_get(object, "xxh3_128"));
    out->bytes = (uint64_t)bytes;
    out->chunk = digits == 2 * hash_bytes ? xmalloc(hash_bytes) : NULL;
    if (get_hex(&p, "xxh3_128", out->chunk, hash_bytes))
        return -1;
    return no_others(&p);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_tensors(const struct manifest *m, const char *name, struct err *err)
{
    uint64_t sum = m->header_bytes;
    int code = 0;
    if (m->header_bytes > m->file_bytes)
        return err_set(err, "%s: header_bytes: %llu, more than file_bytes", name,
                       (unsigned long long)m->header_bytes);
    for (uint64_t i = 0; i < m->tensor_count; i++)
        if (!checked_add_u64(sum, m->tensor[i].bytes, &sum) || sum > m->file_bytes)
            return err_set(err, "%s: tensor %llu: the tensors are larger than the file's %llu bytes", name,
                           (unsigned long long)i, (unsigned long long)m->file_bytes);
    const char **names = xcalloc(m->tensor_count + 1, sizeof(*names));
    for (uint64_t i = 0; i < m->tensor_count; i++)
        names[i] = m->tensor[i].name;
    qsort(names, m->tensor_count, sizeof(*names), compare_names);
    for (uint64_t i = 1; i < m->tensor_count && code == 0; i++) {
        char shown[SHOWN + 4];
        if (strcmp(names[i - 1], names[i]) == 0)
            code = err_set(err, "%s: two tensors are called \"%s\"", name, show(names[i], shown));
    }
    free(names);
    return code;
}

static int parse_tensors(struct manifest *m, struct place *p, const char *name)
{
    const json_t *list = member(p, "tensors");
    if (!list)
        return -1;
    if (!json_is_array(list))
        return err_set(p->err, "%stensors: expected an array", p->label);
    size_t count = json_array_size(list);
    if (count < 1 || count > TENSORS_MAX)
        return err_set(p->err, "%stensors: %zu of them, expected 1 to %u", p->label, count, TENSORS_MAX);
    m->tensor = xcalloc(count, sizeof(*m->tensor));
    m->tensor_count = count;
    for (size_t i = 0; i < count; i++)
        if (parse_tensor(&m->tensor[i], json_array_get(list, i), name, i, p->err))
            return -1;
    return check_tensors(m, name, p->err);
}

/* What kind of file this is comes first: another kind is called so, not broken. */
static int parse_kind(struct place *p)
{
    const char *text;
    char shown[SHOWN + 4];
    int64_t value;
    if (get_text(p, "format", SOURCE_MAX, &text))
        return -1;
    if (strcmp(text, FORMAT) != 0)
        return err_set(p->err, "%sformat: \"%s\", expected \"%s\"", p->label, show(text, shown), FORMAT);
    if (get_int(p, "version", 1, INT64_MAX, &value))
        return -1;
    if (value != MANIFEST_VERSION)
        return err_set(p->err, "%sversion: %lld is not known, expected %d", p->label, (long long)value,
                       MANIFEST_VERSION);
    return get_int(p, "chunk_bytes", MANIFEST_CHUNK, MANIFEST_CHUNK, &value);
}

static int parse_fields(struct manifest *m, struct place *p)
{
    const char *text;
    char shown[SHOWN + 4];
    int64_t value;
    if (get_text(p, "name", SOURCE_MAX, &text))
        return -1;
    if (!manifest_name_valid(text))
        return err_set(p->err, "%sname: \"%s\", expected [A-Za-z0-9._-]{1,128} without a leading dot",
                       p->label, show(text, shown));
    m->name = xstrdup(text);
    if (get_text(p, "source", SOURCE_MAX, &text))
        return -1;
    if (text[0] != '/')
        return err_set(p->err, "%ssource: \"%s\", expected an absolute path", p->label, show(text, shown));
    m->source = xstrdup(text);
    if (get_text(p, "kind", SOURCE_MAX, &text))
        return -1;
    m->linked = strcmp(text, "link") == 0;
    if (!m->linked && strcmp(text, "copy") != 0)
        return err_set(p->err, "%skind: \"%s\", expected copy or link", p->label, show(text, shown));
    if (get_int(p, "file_bytes", 1, INT64_MAX, &value))
        return -1;
    m->file_bytes = (uint64_t)value;
    if (get_int(p, "file_time_ns", INT64_MIN, INT64_MAX, &m->file_time_ns) ||
        get_int(p, "created", 0, (int64_t)1 << 40, &m->created_s) ||
        get_int(p, "header_bytes", 1, INT64_MAX, &value))
        return -1;
    m->header_bytes = (uint64_t)value;
    return get_hex(p, "header_blake2b", m->header, MANIFEST_HASH);
}

static int parse_seal(const struct manifest *m, struct place *p)
{
    struct buffer body = {0};
    uint8_t written[MANIFEST_HASH], made[MANIFEST_HASH];
    if (get_hex(p, "seal", written, sizeof(written)) || no_others(p))
        return -1;
    int code = put_body(m, &body, p->err);
    if (code == 0) {
        seal(&body, made);
        if (memcmp(written, made, sizeof(made)) != 0)
            code = err_set(p->err, "%sseal: does not match: the manifest itself was damaged or changed",
                           p->label);
    }
    buffer_release(&body);
    return code;
}

static int parse_root(struct manifest *m, const json_t *root, const char *name, struct err *err)
{
    struct place p = {.object = root, .err = err};
    snprintf(p.label, sizeof(p.label), "%.120s: ", name);
    if (!json_is_object(root))
        return err_set(err, "%sexpected a JSON object", p.label);
    return parse_kind(&p) || parse_fields(m, &p) || parse_tensors(m, &p, name) || parse_seal(m, &p) ? -1 : 0;
}

int manifest_parse(struct manifest **out, const void *data, uint64_t size, const char *name, struct err *err)
{
    json_error_t error;
    *out = NULL;
    if (size == 0)
        return err_set(err, "%s: the file is empty", name);
    if (size > MANIFEST_BYTES_MAX)
        return err_set(err, "%s: %llu bytes, expected at most %u", name, (unsigned long long)size,
                       MANIFEST_BYTES_MAX);
    if (scan(data, size, name, err))
        return -1;
    json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        char shown[SHOWN + 4];
        return err_set(err, "%s:%d:%d: %s", name, error.line, error.column, show(error.text, shown));
    }
    struct manifest *m = xcalloc(1, sizeof(*m));
    int code = parse_root(m, root, name, err);
    json_decref(root);
    if (code)
        manifest_free(&m);
    *out = m;
    return code;
}

int manifest_read(struct manifest **out, const char *path, struct err *err)
{
    struct stat st;
    const void *data;
    uint64_t size;
    *out = NULL;
    if (lstat(path, &st) != 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, "%s: expected a regular file", path);
    if (map_file(path, "a manifest", &data, &size, err))
        return -1;
    int code = manifest_parse(out, data, size, path, err);
    map_file_release(data, size);
    return code;
}
