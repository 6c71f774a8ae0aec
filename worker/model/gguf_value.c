/* gguf_value: questions about the metadata of an opened file: typed getters, arrays, and values as text.
 *
 * Everything was checked when the file was opened, so reading cannot fail any more; what can still be wrong
 * is the type, which belongs to the file and is therefore an error of the world, not a bug. */
#include "worker/model/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/gguf_impl.h"

#define FORMAT_ELEMENTS 6 /* of an array, in gguf_format_value */

/* A scalar of the mapping, which need not be aligned. */
#define LOAD(type, p)                 \
    ({                                \
        type v_;                      \
        memcpy(&v_, (p), sizeof(v_)); \
        v_;                           \
    })

uint64_t gguf_key_count(const struct gguf *g)
{
    return g->entry_count;
}

struct gguf_string gguf_key(const struct gguf *g, uint64_t index, enum gguf_type *type)
{
    ASSERT(index < g->entry_count);
    if (type)
        *type = g->entry[index].type;
    return (struct gguf_string){g->entry[index].key, g->entry[index].key_bytes};
}

static bool is_integer(enum gguf_type type)
{
    return type <= GGUF_I32 || type == GGUF_U64 || type == GGUF_I64;
}

/* A u64 above INT64_MAX comes back negative; the callers tell it by its type. */
static int64_t load_integer(enum gguf_type type, const uint8_t *p)
{
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        return *p;
    case GGUF_I8:
        return (int8_t)*p;
    case GGUF_U16:
        return LOAD(uint16_t, p);
    case GGUF_I16:
        return LOAD(int16_t, p);
    case GGUF_U32:
        return LOAD(uint32_t, p);
    case GGUF_I32:
        return LOAD(int32_t, p);
    case GGUF_U64:
    case GGUF_I64:
        return LOAD(int64_t, p);
    default:
        die("bug: %s is no integer type", gguf_type_name(type));
    }
}

static double load_float(enum gguf_type type, const uint8_t *p)
{
    if (type == GGUF_F32)
        return LOAD(float, p);
    if (type == GGUF_F64)
        return LOAD(double, p);
    if (type == GGUF_U64)
        return (double)LOAD(uint64_t, p);
    return (double)load_integer(type, p);
}

static int wrong_type(const struct gguf *g, const char *key, const struct gguf_entry *e, const char *expected,
                      struct err *err)
{
    return err_set(err, "%s: key \"%s\" is of type %s, expected %s", g->name, key, gguf_type_name(e->type),
                   expected);
}

int gguf_get_uint(const struct gguf *g, const char *key, uint64_t *out, struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (!is_integer(e->type))
        return wrong_type(g, key, e, "an integer", err);
    int64_t value = load_integer(e->type, e->value);
    if (value < 0 && e->type != GGUF_U64)
        return err_set(err, "%s: key \"%s\" (%s) is %lld, expected an integer that is not negative", g->name,
                       key, gguf_type_name(e->type), (long long)value);
    *out = (uint64_t)value;
    return 1;
}

int gguf_get_int(const struct gguf *g, const char *key, int64_t *out, struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (!is_integer(e->type))
        return wrong_type(g, key, e, "an integer", err);
    int64_t value = load_integer(e->type, e->value);
    if (value < 0 && e->type == GGUF_U64)
        return err_set(err, "%s: key \"%s\" (u64) is %llu, expected at most %lld", g->name, key,
                       (unsigned long long)value, (long long)INT64_MAX);
    *out = value;
    return 1;
}

int gguf_get_float(const struct gguf *g, const char *key, double *out, struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (e->type != GGUF_F32 && e->type != GGUF_F64)
        return wrong_type(g, key, e, "f32 or f64", err);
    *out = load_float(e->type, e->value);
    return 1;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *out, struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (e->type != GGUF_BOOL)
        return wrong_type(g, key, e, "bool", err);
    *out = *e->value != 0;
    return 1;
}

int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *out, struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (e->type != GGUF_STRING)
        return wrong_type(g, key, e, "string", err);
    *out = (struct gguf_string){(const char *)e->value, e->count};
    return 1;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type *element, uint64_t *count,
                   struct err *err)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (!e)
        return 0;
    if (e->type != GGUF_ARRAY)
        return wrong_type(g, key, e, "array", err);
    *element = e->element;
    *count = e->count;
    return 1;
}

static struct gguf_string entry_string(const struct gguf *g, const struct gguf_entry *e, uint64_t index)
{
    ASSERT(e && e->type == GGUF_ARRAY && e->element == GGUF_STRING && index < e->count);
    uint64_t text = e->offset[index] + 8;
    return (struct gguf_string){(const char *)g->data + text, e->offset[index + 1] - text};
}

static const uint8_t *entry_element(const struct gguf_entry *e, uint64_t index)
{
    ASSERT(e && e->type == GGUF_ARRAY && e->element != GGUF_STRING && index < e->count);
    return e->value + index * gguf_type_bytes(e->element);
}

struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t index)
{
    return entry_string(g, gguf_entry_find(g, key), index);
}

double gguf_array_float(const struct gguf *g, const char *key, uint64_t index)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    const uint8_t *p = entry_element(e, index);
    return load_float(e->element, p);
}

int64_t gguf_array_int(const struct gguf *g, const char *key, uint64_t index)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    const uint8_t *p = entry_element(e, index);
    ASSERT(is_integer(e->element) || e->element == GGUF_BOOL);
    return load_integer(e->element, p);
}

const void *gguf_array_data(const struct gguf *g, const char *key)
{
    const struct gguf_entry *e = gguf_entry_find(g, key);
    return e && e->type == GGUF_ARRAY && e->element != GGUF_STRING ? e->value : NULL;
}

/* A quoted string: control characters, quotes and bytes that are no UTF-8 are escaped, so that a hostile file
 * cannot write to the terminal that shows it. */
static void format_string(struct gguf_string s, size_t limit, struct buffer *out)
{
    buffer_append(out, "\"", 1);
    uint64_t i = 0;
    while (i < s.size) {
        uint8_t c = (uint8_t)s.data[i];
        uint64_t bytes = (uint64_t)utf8_sequence_bytes(c);
        bool whole = bytes > 0 && bytes <= s.size - i && utf8_valid(s.data + i, bytes);
        if (i + (whole ? bytes : 1) > limit)
            break;
        /* U+0080 to U+009F are control characters too. */
        bool control = c < 0x20 || c == 0x7F || (c == 0xC2 && whole && (uint8_t)s.data[i + 1] < 0xA0);
        if (c == '\n')
            buffer_append(out, "\\n", 2);
        else if (c == '"' || c == '\\')
            buffer_printf(out, "\\%c", c);
        else if (!whole || control)
            buffer_printf(out, "\\x%02x", c), bytes = 1;
        else
            buffer_append(out, s.data + i, bytes);
        i += bytes;
    }
    buffer_append(out, "\"", 1);
    if (i < s.size)
        buffer_printf(out, "... (%llu bytes)", (unsigned long long)s.size);
}

/* The shortest text that reads back as the same number: 0.1 and not 0.100000001. */
static void format_float(float v, struct buffer *out)
{
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v)
            break;
    }
    buffer_printf(out, "%s", text);
}

static void format_scalar(enum gguf_type type, const uint8_t *p, struct buffer *out)
{
    if (type == GGUF_BOOL)
        buffer_printf(out, "%s", *p ? "true" : "false");
    else if (type == GGUF_F32)
        format_float(LOAD(float, p), out);
    else if (type == GGUF_F64)
        buffer_printf(out, "%.17g", LOAD(double, p));
    else if (type == GGUF_U64)
        buffer_printf(out, "%llu", (unsigned long long)LOAD(uint64_t, p));
    else
        buffer_printf(out, "%lld", (long long)load_integer(type, p));
}

void gguf_format_value(const struct gguf *g, uint64_t index, size_t limit, struct buffer *out)
{
    ASSERT(index < g->entry_count);
    const struct gguf_entry *e = &g->entry[index];
    if (e->type == GGUF_STRING) {
        format_string((struct gguf_string){(const char *)e->value, e->count}, limit, out);
        return;
    }
    if (e->type != GGUF_ARRAY) {
        format_scalar(e->type, e->value, out);
        return;
    }
    buffer_printf(out, "[");
    for (uint64_t i = 0; i < e->count && i < FORMAT_ELEMENTS; i++) {
        buffer_printf(out, "%s", i ? ", " : "");
        if (e->element == GGUF_STRING)
            format_string(entry_string(g, e, i), limit, out);
        else
            format_scalar(e->element, entry_element(e, i), out);
    }
    buffer_printf(out, "%s] (%llu x %s)", e->count > FORMAT_ELEMENTS ? ", ..." : "",
                  (unsigned long long)e->count, gguf_type_name(e->element));
}
