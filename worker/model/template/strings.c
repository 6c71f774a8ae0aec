/* strings: the methods of strings, dicts and lists, and the filters over strings. */
#include "worker/model/template/strings.h"

#include <stdlib.h>
#include <string.h>
#include <wctype.h>

/* ---- case ---- */

/* Simple case mapping: one character for one. (Python writes the few that become two, such as the German
 * sharp s, as two.) */
static uint32_t to_case(locale_t locale, uint32_t c, bool upper)
{
    if (c < 0x80)
        return upper ? (c >= 'a' && c <= 'z' ? c - 32 : c) : c >= 'A' && c <= 'Z' ? c + 32 : c;
    return (uint32_t)(upper ? towupper_l((wint_t)c, locale) : towlower_l((wint_t)c, locale));
}

static bool is_cased(locale_t locale, uint32_t c)
{
    return iswupper_l((wint_t)c, locale) || iswlower_l((wint_t)c, locale);
}

/* jinja2's title filter begins a word after these; Python's method after anything without case. */
static bool breaks_word(uint32_t c)
{
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || text_is_space(c);
}

int string_case(struct render *r, const struct string *s, enum letter_case to, struct value *out)
{
    struct text t = {.r = r};
    bool begins = true;
    locale_t locale = render_locale(r);
    for (size_t i = 0; i < s->bytes && !r->failed;) {
        uint32_t c;
        i += text_decode(s->data + i, s->bytes - i, &c);
        text_put_code_point(&t, to_case(locale, c, to == CASE_UPPER || (to != CASE_LOWER && begins)));
        if (to == CASE_CAPITALIZE)
            begins = false;
        else if (to == CASE_TITLE_WORDS)
            begins = breaks_word(c);
        else
            begins = !is_cased(locale, c);
    }
    return render_charge(r, s->bytes / 8) ? -1 : text_value(&t, out);
}

/* ---- pieces ---- */

static bool strips(const struct string *set, uint32_t c)
{
    uint32_t other;
    if (!set)
        return text_is_space(c);
    for (size_t i = 0; i < set->bytes;) {
        i += text_decode(set->data + i, set->bytes - i, &other);
        if (other == c)
            return true;
    }
    return false;
}

int string_strip(struct render *r, const struct string *s, const struct string *set, bool left, bool right,
                 struct value *out)
{
    size_t begin = 0, end = s->bytes;
    uint32_t c;
    while (left && begin < end) {
        size_t n = text_decode(s->data + begin, end - begin, &c);
        if (!strips(set, c))
            break;
        begin += n;
    }
    while (right && end > begin) {
        size_t at = end - 1;
        while (((unsigned char)s->data[at] & 0xC0) == 0x80)
            at--;
        text_decode(s->data + at, end - at, &c);
        if (!strips(set, c))
            break;
        end = at;
    }
    uint64_t cost = (s->bytes - (end - begin)) * (set ? 1 + set->bytes : 1) / 8;
    return render_charge(r, cost) ? -1 : string_borrow(r, s->data + begin, end - begin, out);
}

static int push_piece(struct render *r, struct list *l, const char *data, size_t bytes)
{
    struct value v;
    return string_borrow(r, data, bytes, &v) || list_push(r, l, v) ? -1 : 0;
}

static int split_at(struct render *r, const struct string *s, const struct string *by, int64_t most,
                    struct value *out)
{
    const char *p = s->data, *end = s->data + s->bytes, *found;
    for (; most != 0 && (found = memmem(p, (size_t)(end - p), by->data, by->bytes)); most--) {
        if (push_piece(r, out->list, p, (size_t)(found - p)))
            return -1;
        p = found + by->bytes;
    }
    return push_piece(r, out->list, p, (size_t)(end - p));
}

static size_t to_space(const char *s, size_t bytes)
{
    uint32_t c;
    size_t at = 0;
    while (at < bytes) {
        size_t n = text_decode(s + at, bytes - at, &c);
        if (text_is_space(c))
            break;
        at += n;
    }
    return at;
}

static int split_at_space(struct render *r, const struct string *s, int64_t most, struct value *out)
{
    const char *p = s->data, *end = s->data + s->bytes;
    for (;; most--) {
        p += text_skip_space(p, (size_t)(end - p));
        if (p == end)
            return 0;
        size_t n = most == 0 ? text_without_space(p, (size_t)(end - p)) : to_space(p, (size_t)(end - p));
        if (most == 0)
            n = (size_t)(end - p);
        if (push_piece(r, out->list, p, n))
            return -1;
        p += n;
    }
}

int string_split(struct render *r, const struct string *s, const struct string *by, int64_t most,
                 struct value *out)
{
    if (by && by->bytes == 0)
        return render_fail(r, "split: empty separator");
    if (list_new(r, VALUE_LIST, 0, out) || render_charge(r, s->bytes / 32))
        return -1;
    return by ? split_at(r, s, by, most, out) : split_at_space(r, s, most, out);
}

/* From the right; the separator must be given when the number of splits is. */
static int string_rsplit(struct render *r, const struct string *s, const struct string *by, int64_t most,
                         struct value *out)
{
    if (most < 0)
        return string_split(r, s, by, most, out);
    if (!by)
        return render_fail(r, "rsplit with maxsplit needs a separator here");
    struct value all;
    if (string_split(r, s, by, -1, &all) || list_new(r, VALUE_LIST, 0, out))
        return -1;
    size_t count = all.list->count, joined = count > (size_t)most + 1 ? count - (size_t)most : 1;
    const struct string *last = all.list->items[joined - 1].string;
    if (push_piece(r, out->list, s->data, (size_t)(last->data + last->bytes - s->data)))
        return -1;
    for (size_t i = joined; i < count; i++)
        if (list_push(r, out->list, all.list->items[i]))
            return -1;
    return 0;
}

static size_t line_end(const char *s, size_t bytes, size_t *past)
{
    for (size_t at = 0, n; at < bytes; at += n) {
        uint32_t c;
        n = text_decode(s + at, bytes - at, &c);
        if ((c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029) {
            *past = at + n + (c == '\r' && at + 1 < bytes && s[at + 1] == '\n');
            return at;
        }
    }
    *past = bytes;
    return bytes;
}

int string_lines(struct render *r, const struct string *s, struct value *out)
{
    size_t past;
    if (list_new(r, VALUE_LIST, 0, out) || render_charge(r, s->bytes / 16))
        return -1;
    for (size_t at = 0; at < s->bytes; at += past) {
        size_t n = line_end(s->data + at, s->bytes - at, &past);
        if (push_piece(r, out->list, s->data + at, n))
            return -1;
    }
    return 0;
}

int string_replace(struct render *r, const struct string *s, const struct string *old,
                   const struct string *new, int64_t most, struct value *out)
{
    struct text t = {.r = r};
    const char *p = s->data, *end = s->data + s->bytes, *found;
    for (; most != 0 && !r->failed; most--) {
        if (old->bytes == 0) { /* between all characters and at both ends */
            text_put(&t, new->data, new->bytes);
            if (p == end || render_charge(r, 1))
                break;
            size_t n = (size_t)utf8_sequence_bytes((uint8_t)*p);
            text_put(&t, p, n);
            p += n;
            continue;
        }
        if (!(found = memmem(p, (size_t)(end - p), old->data, old->bytes)) || render_charge(r, 1))
            break;
        text_put(&t, p, (size_t)(found - p));
        text_put(&t, new->data, new->bytes);
        p = found + old->bytes;
    }
    text_put(&t, p, (size_t)(end - p));
    return render_charge(r, s->bytes / 16) ? -1 : text_value(&t, out);
}

/* ---- methods ---- */

#define METHOD(name) \
    static int method_##name(struct render *r, const struct node *n, struct value *args, struct value *out)

static int needs(struct render *r, const struct node *n, const struct value *v, bool has)
{
    if (has)
        return 0;
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    return render_fail(r, "'%s' has no attribute '%s'", value_object(v), n->callable->name);
}

static int needs_string(struct render *r, const struct node *n, const struct value *v)
{
    return needs(r, n, v, v->kind == VALUE_STRING);
}

static int needs_dict(struct render *r, const struct node *n, const struct value *v)
{
    return needs(r, n, v, v->kind == VALUE_DICT);
}

/* An argument that is a string, or absent or none where `optional`; *out is NULL then. */
static int string_argument(struct render *r, const struct node *n, const struct value *v, bool optional,
                           const struct string **out)
{
    *out = v->kind == VALUE_STRING ? v->string : NULL;
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    if (v->kind == VALUE_STRING || (optional && (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE)))
        return 0;
    return render_fail(r, "%s: expected a string, found %s", n->callable->name, value_type(v));
}

static int integer_argument(struct render *r, const struct node *n, const struct value *v, int64_t preset,
                            int64_t *out)
{
    *out = preset;
    if (v->kind == VALUE_ABSENT || value_integer(v, out))
        return 0;
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    return render_fail(r, "%s: expected an integer, found %s", n->callable->name, value_type(v));
}

static int strip(struct render *r, const struct node *n, struct value *args, bool left, bool right,
                 struct value *out)
{
    const struct string *set;
    if (needs_string(r, n, &args[0]) || string_argument(r, n, &args[1], true, &set))
        return -1;
    return string_strip(r, args[0].string, set, left, right, out);
}

METHOD(strip)
{
    return strip(r, n, args, true, true, out);
}
METHOD(lstrip)
{
    return strip(r, n, args, true, false, out);
}
METHOD(rstrip)
{
    return strip(r, n, args, false, true, out);
}

METHOD(split)
{
    const struct string *by;
    int64_t most;
    if (needs_string(r, n, &args[0]) || string_argument(r, n, &args[1], true, &by) ||
        integer_argument(r, n, &args[2], -1, &most))
        return -1;
    return string_split(r, args[0].string, by, most, out);
}

METHOD(rsplit)
{
    const struct string *by;
    int64_t most;
    if (needs_string(r, n, &args[0]) || string_argument(r, n, &args[1], true, &by) ||
        integer_argument(r, n, &args[2], -1, &most))
        return -1;
    return string_rsplit(r, args[0].string, by, most, out);
}

METHOD(splitlines)
{
    return needs_string(r, n, &args[0]) ? -1 : string_lines(r, args[0].string, out);
}

static bool affix(const struct string *s, const struct string *part, bool end)
{
    return part->bytes <= s->bytes &&
           (part->bytes == 0 ||
            memcmp(s->data + (end ? s->bytes - part->bytes : 0), part->data, part->bytes) == 0);
}

/* The argument may be a tuple of strings. */
static int has_affix(struct render *r, const struct node *n, struct value *args, bool end, struct value *out)
{
    const struct string *part;
    bool found = false;
    if (needs_string(r, n, &args[0]))
        return -1;
    bool several = args[1].kind == VALUE_TUPLE;
    size_t count = several ? args[1].list->count : 1;
    for (size_t i = 0; i < count && !found; i++) {
        if (string_argument(r, n, several ? &args[1].list->items[i] : &args[1], false, &part))
            return -1;
        found = affix(args[0].string, part, end);
    }
    *out = value_bool(found);
    return render_charge(r, count);
}

METHOD(startswith)
{
    return has_affix(r, n, args, false, out);
}
METHOD(endswith)
{
    return has_affix(r, n, args, true, out);
}

METHOD(upper)
{
    return needs_string(r, n, &args[0]) ? -1 : string_case(r, args[0].string, CASE_UPPER, out);
}
METHOD(lower)
{
    return needs_string(r, n, &args[0]) ? -1 : string_case(r, args[0].string, CASE_LOWER, out);
}
METHOD(title)
{
    return needs_string(r, n, &args[0]) ? -1 : string_case(r, args[0].string, CASE_TITLE, out);
}
METHOD(capitalize)
{
    return needs_string(r, n, &args[0]) ? -1 : string_case(r, args[0].string, CASE_CAPITALIZE, out);
}

METHOD(replace)
{
    const struct string *old, *new;
    int64_t most;
    if (needs_string(r, n, &args[0]) || string_argument(r, n, &args[1], false, &old) ||
        string_argument(r, n, &args[2], false, &new) || integer_argument(r, n, &args[3], -1, &most))
        return -1;
    return string_replace(r, args[0].string, old, new, most, out);
}

static int find(struct render *r, const struct node *n, struct value *args, bool last, struct value *out)
{
    const struct string *part, *s = args[0].string;
    if (needs_string(r, n, &args[0]) || string_argument(r, n, &args[1], false, &part) ||
        render_charge(r, s->bytes / 8))
        return -1;
    const char *found = NULL, *p = s->data, *end = s->data + s->bytes, *next;
    if (last && part->bytes == 0)
        found = end;
    else
        while ((next = memmem(p, (size_t)(end - p), part->data, part->bytes))) {
            found = next;
            if (!last)
                break;
            p = next + utf8_sequence_bytes((uint8_t)*next);
        }
    int64_t at = found ? 0 : -1;
    for (p = s->data; found && p < found; p++)
        at += ((unsigned char)*p & 0xC0) != 0x80;
    *out = value_int(at);
    return 0;
}

METHOD(find)
{
    return find(r, n, args, false, out);
}
METHOD(rfind)
{
    return find(r, n, args, true, out);
}

METHOD(count)
{
    int64_t count = 0;
    if (args[0].kind == VALUE_STRING) {
        const struct string *part;
        if (string_argument(r, n, &args[1], false, &part) || render_charge(r, args[0].string->bytes / 8))
            return -1;
        const char *p = args[0].string->data, *end = p + args[0].string->bytes;
        if (part->bytes == 0)
            count = (int64_t)string_chars(args[0].string) + 1;
        else
            for (; (p = memmem(p, (size_t)(end - p), part->data, part->bytes)); p += part->bytes)
                count++;
    } else {
        if (needs(r, n, &args[0], args[0].kind == VALUE_LIST || args[0].kind == VALUE_TUPLE))
            return -1;
        for (size_t i = 0; i < args[0].list->count; i++) {
            bool equal;
            if (value_equal(r, &args[0].list->items[i], &args[1], &equal))
                return -1;
            count += equal;
        }
    }
    *out = value_int(count);
    return 0;
}

METHOD(join)
{
    struct list items;
    struct text t = {.r = r};
    if (needs_string(r, n, &args[0]))
        return -1;
    if (value_iterate(r, &args[1], &items))
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        if (items.items[i].kind != VALUE_STRING)
            return render_fail(r, "join: expected strings, found %s", value_type(&items.items[i]));
        if (i > 0)
            text_put(&t, args[0].string->data, args[0].string->bytes);
        text_put(&t, items.items[i].string->data, items.items[i].string->bytes);
        if (render_charge(r, 1))
            return -1;
    }
    return text_value(&t, out);
}

static bool all_characters(struct render *r, const struct string *s, bool digits)
{
    bool all = s->bytes > 0;
    for (size_t i = 0; i < s->bytes && all;) {
        uint32_t c;
        i += text_decode(s->data + i, s->bytes - i, &c);
        all = digits ? c >= '0' && c <= '9' : text_is_space(c);
    }
    return render_charge(r, s->bytes / 8) == 0 && all;
}

METHOD(isdigit)
{
    if (needs_string(r, n, &args[0]))
        return -1;
    *out = value_bool(all_characters(r, args[0].string, true));
    return 0;
}
METHOD(isspace)
{
    if (needs_string(r, n, &args[0]))
        return -1;
    *out = value_bool(all_characters(r, args[0].string, false));
    return 0;
}

/* ---- dicts ---- */

int dict_items(struct render *r, const struct dict *d, enum value_kind kind, struct value *out)
{
    if (list_new(r, kind, d->count, out))
        return -1;
    out->list->label = "dict_items";
    for (size_t i = 0; i < d->count; i++) {
        struct value pair;
        if (list_new(r, VALUE_TUPLE, 2, &pair) || list_push(r, pair.list, d->entries[i].key) ||
            list_push(r, pair.list, d->entries[i].value) || list_push(r, out->list, pair))
            return -1;
    }
    return 0;
}

METHOD(items)
{
    return needs_dict(r, n, &args[0]) ? -1 : dict_items(r, args[0].dict, VALUE_VIEW, out);
}

static int one_side(struct render *r, const struct dict *d, bool keys, struct value *out)
{
    if (list_new(r, VALUE_VIEW, d->count, out))
        return -1;
    out->list->label = keys ? "dict_keys" : "dict_values";
    for (size_t i = 0; i < d->count; i++)
        if (list_push(r, out->list, keys ? d->entries[i].key : d->entries[i].value))
            return -1;
    return 0;
}

METHOD(keys)
{
    return needs_dict(r, n, &args[0]) ? -1 : one_side(r, args[0].dict, true, out);
}
METHOD(values)
{
    return needs_dict(r, n, &args[0]) ? -1 : one_side(r, args[0].dict, false, out);
}

METHOD(get)
{
    struct value *found;
    if (needs_dict(r, n, &args[0]) || dict_find(r, args[0].dict, &args[1], &found))
        return -1;
    *out = found ? *found : args[2].kind == VALUE_ABSENT ? value_none() : args[2];
    return 0;
}

const struct callable template_methods[] = {
    {"strip", method_strip, 0, 1, {"chars"}, 0},
    {"lstrip", method_lstrip, 0, 1, {"chars"}, 0},
    {"rstrip", method_rstrip, 0, 1, {"chars"}, 0},
    {"split", method_split, 0, 2, {"sep", "maxsplit"}, 0},
    {"rsplit", method_rsplit, 0, 2, {"sep", "maxsplit"}, 0},
    {"splitlines", method_splitlines, 0, 0, {0}, 0},
    {"startswith", method_startswith, 1, 1, {"prefix"}, 0},
    {"endswith", method_endswith, 1, 1, {"suffix"}, 0},
    {"upper", method_upper, 0, 0, {0}, 0},
    {"lower", method_lower, 0, 0, {0}, 0},
    {"title", method_title, 0, 0, {0}, 0},
    {"capitalize", method_capitalize, 0, 0, {0}, 0},
    {"replace", method_replace, 2, 3, {"old", "new", "count"}, 0},
    {"find", method_find, 1, 1, {"sub"}, 0},
    {"rfind", method_rfind, 1, 1, {"sub"}, 0},
    {"count", method_count, 1, 1, {"sub"}, 0},
    {"join", method_join, 1, 1, {"iterable"}, 0},
    {"isdigit", method_isdigit, 0, 0, {0}, 0},
    {"isspace", method_isspace, 0, 0, {0}, 0},
    {"items", method_items, 0, 0, {0}, 0},
    {"keys", method_keys, 0, 0, {0}, 0},
    {"values", method_values, 0, 0, {0}, 0},
    {"get", method_get, 1, 2, {"key", "default"}, 0},
    {0},
};

/* What the sandbox lets Python find; methods that change their object are not found there either. */
bool method_exists(const struct value *v, const struct string *name)
{
    static const char *const of_string[] = {
        "capitalize", "casefold",     "center",       "count",   "encode",     "endswith",    "expandtabs",
        "find",       "format",       "format_map",   "index",   "isalnum",    "isalpha",     "isascii",
        "isdecimal",  "isdigit",      "isidentifier", "islower", "isnumeric",  "isprintable", "isspace",
        "istitle",    "isupper",      "join",         "ljust",   "lower",      "lstrip",      "maketrans",
        "partition",  "removeprefix", "removesuffix", "replace", "rfind",      "rindex",      "rjust",
        "rpartition", "rsplit",       "rstrip",       "split",   "splitlines", "startswith",  "strip",
        "swapcase",   "title",        "translate",    "upper",   "zfill",      NULL};
    static const char *const of_dict[] = {"copy", "fromkeys", "get", "items", "keys", "values", NULL};
    static const char *const of_list[] = {"copy", "count", "index", NULL};
    const char *const *list = v->kind == VALUE_STRING                            ? of_string
                              : v->kind == VALUE_DICT                            ? of_dict
                              : v->kind == VALUE_LIST                            ? of_list
                              : v->kind == VALUE_TUPLE || v->kind == VALUE_RANGE ? of_list + 1
                                                                                 : NULL;
    for (; list && *list; list++)
        if (string_is(name, *list))
            return true;
    return false;
}
