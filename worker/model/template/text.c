/* text: values as text: Python's str() and repr(), and JSON as json.dumps writes it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

#include "worker/model/template/impl.h"

static const struct {
    const char *type, *object;
} names[] = {
    [VALUE_ABSENT] = {"absent", "absent object"},
    [VALUE_UNDEFINED] = {"Undefined", "Undefined"},
    [VALUE_NONE] = {"NoneType", "None"},
    [VALUE_BOOL] = {"bool", "bool object"},
    [VALUE_INT] = {"int", "int object"},
    [VALUE_FLOAT] = {"float", "float object"},
    [VALUE_STRING] = {"str", "str object"},
    [VALUE_LIST] = {"list", "list object"},
    [VALUE_TUPLE] = {"tuple", "tuple object"},
    [VALUE_RANGE] = {"range", "range object"},
    [VALUE_VIEW] = {"dict view", "dict view object"},
    [VALUE_ITERATOR] = {"generator", "generator object"},
    [VALUE_DICT] = {"dict", "dict object"},
    [VALUE_NAMESPACE] = {"Namespace", "namespace object"},
    [VALUE_LOOP] = {"LoopContext", "loop object"},
    [VALUE_MACRO] = {"Macro", "macro object"},
    [VALUE_FUNCTION] = {"function", "function object"},
    [VALUE_METHOD] = {"method", "method object"},
};

const char *value_type(const struct value *v)
{
    return names[v->kind].type;
}

const char *value_object(const struct value *v)
{
    return names[v->kind].object;
}

/* The shortest digits that read back as the same number, as Python writes them. */
static void put_float(struct text *t, double d, bool json)
{
    char digits[40], out[60];
    if (!isfinite(d)) {
        text_puts(t, isnan(d) ? (json ? "NaN" : "nan")
                     : d > 0  ? (json ? "Infinity" : "inf")
                     : json   ? "-Infinity"
                              : "-inf");
        return;
    }
    for (int precision = 0; precision <= 17; precision++) {
        snprintf(digits, sizeof(digits), "%.*e", precision, d);
        if (strtod(digits, NULL) == d)
            break;
    }
    int exponent = atoi(strchr(digits, 'e') + 1), n = 0;
    bool negative = digits[0] == '-';
    char mantissa[24];
    for (const char *p = digits + negative; *p != 'e'; p++)
        if (*p != '.')
            mantissa[n++] = *p;
    mantissa[n] = '\0';
    if (exponent < -4 || exponent >= 16)
        snprintf(out, sizeof(out), "%c%s%se%c%02d", mantissa[0], n > 1 ? "." : "", mantissa + 1,
                 exponent < 0 ? '-' : '+', abs(exponent));
    else if (exponent < 0)
        snprintf(out, sizeof(out), "0.%.*s%s", -exponent - 1, "0000", mantissa);
    else if (n <= exponent + 1)
        snprintf(out, sizeof(out), "%s%.*s.0", mantissa, exponent + 1 - n, "0000000000000000");
    else
        snprintf(out, sizeof(out), "%.*s.%s", exponent + 1, mantissa, mantissa + exponent + 1);
    if (negative)
        text_puts(t, "-");
    text_puts(t, out);
}

static void put_int(struct text *t, int64_t i)
{
    char digits[24];
    snprintf(digits, sizeof(digits), "%" PRId64, i);
    text_puts(t, digits);
}

/* str.isprintable: no control, format, private, unassigned character, and of white space the blank alone. */
static bool is_printable(struct render *r, uint32_t c)
{
    if (c < 0x7F)
        return c >= 0x20;
    if (text_is_space(c) || c == 0xAD || c == 0x61C || (c >= 0x600 && c <= 0x605) || c == 0x6DD ||
        c == 0x70F || c == 0x180E || (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
        (c >= 0x2060 && c <= 0x206F) || (c >= 0xE000 && c <= 0xF8FF) || c == 0xFEFF ||
        (c >= 0xFFF9 && c <= 0xFFFB) || (c >= 0xE0000 && c <= 0xE00FF) || c >= 0xF0000)
        return false;
    return iswprint_l((wint_t)c, render_locale(r));
}

static void repr_string(struct text *t, const struct string *s)
{
    char quote = memchr(s->data, '\'', s->bytes) && !memchr(s->data, '"', s->bytes) ? '"' : '\'';
    char escape[16];
    text_put(t, &quote, 1);
    for (size_t i = 0, n; i < s->bytes; i += n) {
        uint32_t c;
        n = text_decode(s->data + i, s->bytes - i, &c);
        if (c == (unsigned char)quote || c == '\\')
            snprintf(escape, sizeof(escape), "\\%c", (char)c);
        else if (c == '\n' || c == '\t' || c == '\r')
            snprintf(escape, sizeof(escape), "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
        else if (is_printable(t->r, c))
            escape[0] = '\0';
        else
            snprintf(escape, sizeof(escape), c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        if (escape[0])
            text_puts(t, escape);
        else
            text_put(t, s->data + i, n);
    }
    text_put(t, &quote, 1);
}

static int repr_items(struct text *t, const struct list *l, const char *open, const char *close)
{
    text_puts(t, open);
    for (size_t i = 0; i < l->count; i++) {
        if (i > 0)
            text_puts(t, ", ");
        if (text_repr(t, &l->items[i]))
            return -1;
    }
    text_puts(t, close);
    return 0;
}

static int repr_dict(struct text *t, const struct dict *d)
{
    text_puts(t, "{");
    for (size_t i = 0; i < d->count; i++) {
        if (i > 0)
            text_puts(t, ", ");
        if (text_repr(t, &d->entries[i].key))
            return -1;
        text_puts(t, ": ");
        if (text_repr(t, &d->entries[i].value))
            return -1;
    }
    text_puts(t, "}");
    return 0;
}

static int repr_range(struct text *t, const struct list *l)
{
    text_puts(t, "range(");
    put_int(t, l->range[0]);
    text_puts(t, ", ");
    put_int(t, l->range[1]);
    if (l->range[2] != 1) {
        text_puts(t, ", ");
        put_int(t, l->range[2]);
    }
    text_puts(t, ")");
    return 0;
}

static int repr_collection(struct text *t, const struct value *v)
{
    switch (v->kind) {
    case VALUE_LIST:
        return repr_items(t, v->list, "[", "]");
    case VALUE_TUPLE:
        return repr_items(t, v->list, "(", v->list->count == 1 ? ",)" : ")");
    case VALUE_VIEW:
        text_puts(t, v->list->label);
        return repr_items(t, v->list, "([", "])");
    case VALUE_RANGE:
        return repr_range(t, v->list);
    case VALUE_DICT:
        return repr_dict(t, v->dict);
    default:
        return render_fail(t->r, "a %s has no text", value_type(v));
    }
}

int text_repr(struct text *t, const struct value *v)
{
    struct render *r = t->r;
    if (render_charge(r, 1))
        return -1;
    if (v->kind == VALUE_STRING) {
        repr_string(t, v->string);
        return r->failed ? -1 : 0;
    }
    if (v->kind == VALUE_UNDEFINED) {
        text_puts(t, "Undefined");
        return r->failed ? -1 : 0;
    }
    if (v->kind < VALUE_STRING)
        return text_str(t, v);
    if (render_enter(r))
        return -1;
    int code = repr_collection(t, v);
    r->depth--;
    return code || r->failed ? -1 : 0;
}

int text_str(struct text *t, const struct value *v)
{
    switch (v->kind) {
    case VALUE_UNDEFINED:
        break;
    case VALUE_NONE:
        text_puts(t, "None");
        break;
    case VALUE_BOOL:
        text_puts(t, v->boolean ? "True" : "False");
        break;
    case VALUE_INT:
        put_int(t, v->integer);
        break;
    case VALUE_FLOAT:
        put_float(t, v->real, false);
        break;
    case VALUE_STRING:
        text_put(t, v->string->data, v->string->bytes);
        break;
    default:
        return text_repr(t, v);
    }
    return t->r->failed ? -1 : 0;
}

int value_to_string(struct render *r, const struct value *v, struct value *out)
{
    struct text t = {.r = r};
    if (v->kind == VALUE_STRING) {
        *out = *v;
        return 0;
    }
    return text_str(&t, v) ? -1 : text_value(&t, out);
}

/* ---- JSON ---- */

static void json_escape(struct text *t, uint32_t c)
{
    char escape[16];
    if (c >= 0x10000)
        snprintf(escape, sizeof(escape), "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                 0xDC00 + (c & 0x3FF));
    else
        snprintf(escape, sizeof(escape), "\\u%04x", c);
    text_puts(t, escape);
}

static void json_string_text(struct text *t, const struct string *s, bool ascii)
{
    static const char letters[] = "\"\\\n\r\t\f\b", written[] = "\"\\nrtfb";
    text_puts(t, "\"");
    for (size_t i = 0, n; i < s->bytes; i += n) {
        uint32_t c;
        n = text_decode(s->data + i, s->bytes - i, &c);
        const char *letter = c && c < 0x80 ? strchr(letters, (int)c) : NULL;
        if (letter) {
            text_puts(t, "\\");
            text_put(t, written + (letter - letters), 1);
        } else if (c < 0x20 || (ascii && c >= 0x7F + (c == 0x7F))) {
            json_escape(t, c);
        } else {
            text_put(t, s->data + i, n);
        }
    }
    text_puts(t, "\"");
}

static void json_line(struct text *t, const struct json_style *style, int level)
{
    if (!style->indent)
        return;
    text_puts(t, "\n");
    for (int i = 0; i < level && !t->r->failed; i++)
        text_put(t, style->indent, style->indent_bytes);
}

static int json_key(struct text *t, const struct value *key, const struct json_style *style)
{
    if (key->kind == VALUE_STRING) {
        json_string_text(t, key->string, style->ascii);
        return 0;
    }
    if (key->kind != VALUE_INT && key->kind != VALUE_FLOAT && key->kind != VALUE_BOOL &&
        key->kind != VALUE_NONE)
        return render_fail(t->r, "tojson: a key of type %s is not supported", value_type(key));
    text_puts(t, "\"");
    if (text_json(t, key, style, 0))
        return -1;
    text_puts(t, "\"");
    return 0;
}

/* The entries in the order of their keys; strings only, as Python cannot order others among them. */
static int compare_keys(const void *a, const void *b)
{
    const struct string *x = ((const struct entry *)a)->key.string,
                        *y = ((const struct entry *)b)->key.string;
    size_t n = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = n ? memcmp(x->data, y->data, n) : 0;
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int sorted_entries(struct render *r, const struct dict *d, struct entry **out)
{
    if (d->count == 0)
        return 0;
    *out = render_take(r, d->count * sizeof(**out));
    if (!*out || render_charge(r, d->count * 8))
        return -1;
    for (size_t i = 0; i < d->count; i++) {
        (*out)[i] = d->entries[i];
        if (d->entries[i].key.kind != VALUE_STRING)
            return render_fail(r, "keys that are not strings cannot be sorted");
    }
    qsort(*out, d->count, sizeof(**out), compare_keys);
    return 0;
}

static int json_dict(struct text *t, const struct dict *d, const struct json_style *style, int level)
{
    struct entry *entries = d->entries;
    if (style->sort_keys && sorted_entries(t->r, d, &entries))
        return -1;
    text_puts(t, "{");
    for (size_t i = 0; i < d->count; i++) {
        if (i > 0)
            text_put(t, style->comma.data, style->comma.bytes);
        json_line(t, style, level + 1);
        if (json_key(t, &entries[i].key, style))
            return -1;
        text_put(t, style->colon.data, style->colon.bytes);
        if (text_json(t, &entries[i].value, style, level + 1))
            return -1;
    }
    if (d->count)
        json_line(t, style, level);
    text_puts(t, "}");
    return 0;
}

static int json_list(struct text *t, const struct list *l, const struct json_style *style, int level)
{
    text_puts(t, "[");
    for (size_t i = 0; i < l->count; i++) {
        if (i > 0)
            text_put(t, style->comma.data, style->comma.bytes);
        json_line(t, style, level + 1);
        if (text_json(t, &l->items[i], style, level + 1))
            return -1;
    }
    if (l->count)
        json_line(t, style, level);
    text_puts(t, "]");
    return 0;
}

int text_json(struct text *t, const struct value *v, const struct json_style *style, int level)
{
    struct render *r = t->r;
    int code = 0;
    if (render_charge(r, 1) || render_enter(r))
        return -1;
    switch (v->kind) {
    case VALUE_NONE:
        text_puts(t, "null");
        break;
    case VALUE_BOOL:
        text_puts(t, v->boolean ? "true" : "false");
        break;
    case VALUE_INT:
        put_int(t, v->integer);
        break;
    case VALUE_FLOAT:
        put_float(t, v->real, true);
        break;
    case VALUE_STRING:
        json_string_text(t, v->string, style->ascii);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
        code = json_list(t, v->list, style, level);
        break;
    case VALUE_DICT:
        code = json_dict(t, v->dict, style, level);
        break;
    default:
        code = render_fail(r, "tojson: a value of type %s is not JSON serializable", value_type(v));
    }
    r->depth--;
    return code || r->failed ? -1 : 0;
}
