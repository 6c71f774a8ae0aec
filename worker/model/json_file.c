/* json_file: the scan in front of jansson, reading files, and members with their types checked. */
#include "worker/model/json_file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "worker/model/map_file.h"

/* What jansson 2.14 allocates, malloc's own bytes included: for an object with its first buckets, an array
 * with its first slots, a string beside its text, what a member takes beyond that of a string, a number, a
 * slot. */
#define OBJECT_BYTES 224
#define ARRAY_BYTES  128
#define STRING_BYTES 80
#define MEMBER_BYTES 40
#define NUMBER_BYTES 32
#define SLOT_BYTES   16

/* Where a string ends: the offset behind the closing quote, or `bytes` when there is none. */
static uint64_t skip_string(const char *text, uint64_t bytes, uint64_t i)
{
    for (i++; i < bytes && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < bytes ? i + 1 : bytes;
}

/* Depth and cost of the text. It need not be well-formed: jansson says what is wrong with it. */
static int scan(const char *text, uint64_t bytes, const char *name, struct err *err)
{
    uint64_t cost = 0, limit;
    int depth = 0;
    if (!checked_mul_u64(bytes, 3, &limit) || !checked_add_u64(limit, 64u << 20, &limit))
        return err_set(err, "%s: too large", name);
    for (uint64_t i = 0; i < bytes;) {
        uint64_t start = i;
        switch (text[i]) {
        case '"':
            i = skip_string(text, bytes, i);
            cost += STRING_BYTES + (i - start);
            continue;
        case '{':
        case '[':
            if (++depth > JSON_DEPTH_MAX)
                return err_set(err, "%s:%llu: JSON nested deeper than %d", name, (unsigned long long)i,
                               JSON_DEPTH_MAX);
            cost += text[i] == '{' ? OBJECT_BYTES : ARRAY_BYTES;
            break;
        case '}':
        case ']':
            depth--;
            break;
        case ':':
            cost += MEMBER_BYTES + NUMBER_BYTES;
            break;
        case ',':
            cost += SLOT_BYTES + NUMBER_BYTES;
            break;
        }
        i++;
    }
    if (cost > limit)
        return err_set(err, "%s: %llu bytes of JSON would take %llu bytes of memory, expected at most %llu",
                       name, (unsigned long long)bytes, (unsigned long long)cost, (unsigned long long)limit);
    return 0;
}

json_t *json_parse(const char *text, uint64_t bytes, const char *name, struct err *err)
{
    json_error_t error;
    if (scan(text, bytes, name, err))
        return NULL;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!root) {
        char shown[JSON_SHOW_BYTES * 2];
        snprintf(shown, sizeof(shown), "%s", error.text);
        for (char *c = shown; *c; c++)
            if ((uint8_t)*c < 0x20 || *c == 0x7F)
                *c = '?';
        err_set(err, "%s:%d:%d: JSON: %s", name, error.line, error.column, shown);
        return NULL;
    }
    if (!json_is_object(root)) {
        err_set(err, "%s: expected a JSON object", name);
        json_decref(root);
        return NULL;
    }
    return root;
}

json_t *json_read(const char *path, uint64_t limit, bool *found, struct err *err)
{
    const void *text;
    uint64_t bytes;
    *found = access(path, F_OK) == 0;
    if (!*found)
        return NULL;
    if (map_file(path, "a JSON file", &text, &bytes, err))
        return NULL;
    json_t *root = NULL;
    if (bytes == 0)
        err_set(err, "%s: the file is empty", path);
    else if (bytes > limit)
        err_set(err, "%s: %llu bytes, expected at most %llu", path, (unsigned long long)bytes,
                (unsigned long long)limit);
    else
        root = json_parse(text, bytes, path, err);
    map_file_release(text, bytes);
    return root;
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null"};
    return names[json_typeof(value)];
}

/* The member, NULL when absent or null. *wrong when it is there and not of the type. */
static json_t *member(const json_t *object, const char *where, const char *key, const char *expected,
                      bool (*is)(const json_t *), int *result, struct err *err)
{
    json_t *value = json_object_get(object, key);
    *result = 0;
    if (!value || json_is_null(value))
        return NULL;
    *result = 1;
    if (!is(value))
        *result = err_set(err, "%s: %s: expected %s, found %s", where, key, expected, type_name(value));
    return value;
}

static bool is_int(const json_t *v)
{
    return json_is_integer(v);
}
static bool is_number(const json_t *v)
{
    return json_is_number(v);
}
static bool is_bool(const json_t *v)
{
    return json_is_boolean(v);
}
static bool is_text(const json_t *v)
{
    return json_is_string(v);
}
static bool is_object(const json_t *v)
{
    return json_is_object(v);
}
static bool is_array(const json_t *v)
{
    return json_is_array(v);
}

int json_get_int(const json_t *object, const char *where, const char *key, int64_t *out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "an integer", is_int, &result, err);
    if (result == 1)
        *out = json_integer_value(value);
    return result;
}

int json_get_number(const json_t *object, const char *where, const char *key, double *out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "a number", is_number, &result, err);
    if (result == 1)
        *out = json_number_value(value);
    return result;
}

int json_get_bool(const json_t *object, const char *where, const char *key, bool *out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "true or false", is_bool, &result, err);
    if (result == 1)
        *out = json_boolean_value(value);
    return result;
}

int json_get_text(const json_t *object, const char *where, const char *key, const char **out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "a string", is_text, &result, err);
    if (result == 1)
        *out = json_string_value(value);
    return result;
}

int json_get_object(const json_t *object, const char *where, const char *key, json_t **out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "an object", is_object, &result, err);
    if (result == 1)
        *out = value;
    return result;
}

int json_get_array(const json_t *object, const char *where, const char *key, json_t **out, struct err *err)
{
    int result;
    json_t *value = member(object, where, key, "an array", is_array, &result, err);
    if (result == 1)
        *out = value;
    return result;
}

const char *json_show(const char *text, char out[JSON_SHOW_BYTES])
{
    size_t size = strlen(text), n = size > 64 ? 64 : size;
    while (n < size && n > 0 && ((uint8_t)text[n] & 0xC0) == 0x80)
        n--; /* never half a character */
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)text[i] < 0x20 || text[i] == 0x7F || text[i] == '"' ? '?' : text[i];
    memcpy(out + n, n < size ? "..." : "", n < size ? 4 : 1);
    return out;
}
