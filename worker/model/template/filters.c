/* filters: those over one value: text, numbers, JSON, defaults. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/template/strings.h"

#define FILTER(name) \
    static int filter_##name(struct render *r, const struct node *n, struct value *args, struct value *out)

static int case_filter(struct render *r, struct value *args, enum letter_case to, struct value *out)
{
    struct value s;
    return value_to_string(r, &args[0], &s) ? -1 : string_case(r, s.string, to, out);
}

FILTER(upper)
{
    (void)n;
    return case_filter(r, args, CASE_UPPER, out);
}
FILTER(lower)
{
    (void)n;
    return case_filter(r, args, CASE_LOWER, out);
}
FILTER(capitalize)
{
    (void)n;
    return case_filter(r, args, CASE_CAPITALIZE, out);
}
FILTER(title)
{
    (void)n;
    return case_filter(r, args, CASE_TITLE_WORDS, out);
}

FILTER(string)
{
    (void)n;
    return value_to_string(r, &args[0], out);
}

FILTER(trim)
{
    struct value s;
    (void)n;
    if (args[1].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &args[1]);
    if (args[1].kind != VALUE_ABSENT && args[1].kind != VALUE_NONE && args[1].kind != VALUE_STRING)
        return render_fail(r, "trim: expected a string of characters, found %s", value_type(&args[1]));
    return value_to_string(r, &args[0], &s) ||
                   string_strip(r, s.string, args[1].kind == VALUE_STRING ? args[1].string : NULL, true, true,
                                out)
               ? -1
               : 0;
}

FILTER(replace)
{
    int64_t most = -1;
    (void)n;
    if (args[3].kind != VALUE_ABSENT && args[3].kind != VALUE_NONE && !value_integer(&args[3], &most))
        return render_fail(r, "replace: expected an integer count, found %s", value_type(&args[3]));
    for (int i = 0; i < 3; i++)
        if (value_to_string(r, &args[i], &args[i]))
            return -1;
    return string_replace(r, args[0].string, args[1].string, args[2].string, most, out);
}

/* Joins all lines but the first with the indention; empty lines have it only with `blank`. */
FILTER(indent)
{
    struct value s, lines;
    struct text t = {.r = r};
    int64_t width = 4;
    (void)n;
    if (args[1].kind != VALUE_ABSENT && args[1].kind != VALUE_STRING && !value_integer(&args[1], &width))
        return render_fail(r, "indent: expected a width, found %s", value_type(&args[1]));
    bool first = value_true(&args[2]), blank = value_true(&args[3]);
    if (args[0].kind != VALUE_STRING)
        return render_fail(r, "indent: expected a string, found %s", value_type(&args[0]));
    text_put(&t, args[0].string->data, args[0].string->bytes);
    text_puts(&t, "\n"); /* so that there is a line at the end, empty or not */
    if (text_value(&t, &s) || string_lines(r, s.string, &lines))
        return -1;
    t = (struct text){.r = r};
    for (size_t i = 0; i < lines.list->count && !r->failed; i++) {
        const struct string *line = lines.list->items[i].string;
        if (i > 0)
            text_puts(&t, "\n");
        if (i == 0 ? first : blank || line->bytes) {
            if (args[1].kind == VALUE_STRING)
                text_put(&t, args[1].string->data, args[1].string->bytes);
            for (int64_t k = 0; args[1].kind != VALUE_STRING && k < width && !r->failed; k++)
                if (render_charge(r, 1) == 0)
                    text_puts(&t, " ");
        }
        text_put(&t, line->data, line->bytes);
    }
    return text_value(&t, out);
}

FILTER(default)
{
    (void)n;
    (void)r;
    bool use = args[0].kind == VALUE_UNDEFINED || (value_true(&args[2]) && !value_true(&args[0]));
    *out = args[0];
    if (use && args[1].kind == VALUE_ABSENT)
        return string_borrow(r, "", 0, out);
    if (use)
        *out = args[1];
    return 0;
}

/* ---- numbers ---- */

/* A number as Python's int() or float() reads it from text: white space around, underscores between digits.
 */
static bool read_number(const struct string *s, int base, bool real, struct value *out)
{
    char text[400];
    size_t n = 0, from = text_skip_space(s->data, s->bytes), to = text_without_space(s->data, s->bytes);
    if (to <= from || to - from >= sizeof(text))
        return false;
    for (size_t i = from; i < to; i++) {
        char c = s->data[i];
        bool between = i > from && i + 1 < to && strchr("0123456789abcdefABCDEF", s->data[i - 1]) &&
                       strchr("0123456789abcdefABCDEF", s->data[i + 1]) && s->data[i - 1] && s->data[i + 1];
        if (c == '_' ? !between : !c || !strchr("0123456789abcdefABCDEFxXoO+-.eEinfNatyIFTY", c))
            return false;
        if (c != '_')
            text[n++] = c;
    }
    text[n] = '\0';
    char *end;
    const char *digits = text + (*text == '-' || *text == '+');
    errno = 0;
    if (real && !strpbrk(text, "xX") && !strchr(text, '('))
        *out = value_float(strtod(text, &end));
    else if (!real && *digits != '-' && *digits != '+')
        *out = value_int(strtoll(text, &end, base));
    else
        return false;
    return *end == '\0' && end != text && (real || errno == 0);
}

FILTER(float)
{
    double d;
    (void)n;
    if (args[0].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &args[0]);
    if (value_number(&args[0], &d))
        *out = value_float(d);
    else if (args[0].kind != VALUE_STRING || !read_number(args[0].string, 10, true, out))
        *out = args[1].kind == VALUE_ABSENT ? value_float(0) : args[1];
    return 0;
}

static int truncate_to_int(struct render *r, double d, const struct value *otherwise, struct value *out)
{
    if (isnan(d)) {
        *out = *otherwise;
        return 0;
    }
    if (!(d > -9.2e18 && d < 9.2e18))
        return render_fail(r, "int: this number does not fit 64 bits");
    *out = value_int((int64_t)d);
    return 0;
}

FILTER(int)
{
    struct value otherwise = args[1].kind == VALUE_ABSENT ? value_int(0) : args[1], number;
    int64_t base = 10;
    (void)n;
    if (args[0].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &args[0]);
    if (args[2].kind != VALUE_ABSENT && (!value_integer(&args[2], &base) || base < 2 || base > 36))
        return render_fail(r, "int: expected a base from 2 to 36");
    if (args[0].kind == VALUE_FLOAT)
        return truncate_to_int(r, args[0].real, &otherwise, out);
    int64_t i;
    if (value_integer(&args[0], &i)) {
        *out = value_int(i);
        return 0;
    }
    if (args[0].kind == VALUE_STRING && read_number(args[0].string, (int)base, false, out))
        return 0;
    if (args[0].kind == VALUE_STRING && read_number(args[0].string, 10, true, &number))
        return truncate_to_int(r, number.real, &otherwise, out);
    *out = otherwise;
    return 0;
}

FILTER(abs)
{
    int64_t i;
    (void)n;
    if (args[0].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &args[0]);
    if (args[0].kind == VALUE_FLOAT)
        *out = value_float(fabs(args[0].real));
    else if (!value_integer(&args[0], &i) || i == INT64_MIN)
        return render_fail(r, "abs: a %s has no absolute value", value_type(&args[0]));
    else
        *out = value_int(i < 0 ? -i : i);
    return 0;
}

/* ---- JSON ---- */

static int json_indent(struct render *r, const struct value *v, struct json_style *style)
{
    int64_t width;
    struct text t = {.r = r};
    if (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE)
        return 0;
    style->comma = (struct string){",", 1, 1};
    if (v->kind == VALUE_STRING) {
        style->indent = v->string->data;
        style->indent_bytes = v->string->bytes;
        return 0;
    }
    if (!value_integer(v, &width))
        return render_fail(r, "tojson: expected an indent of blanks, found %s", value_type(v));
    if (width > 100)
        return render_fail(r, "tojson: expected an indent of at most 100");
    for (int64_t i = 0; i < width; i++)
        text_puts(&t, " ");
    style->indent = t.data ? t.data : "";
    style->indent_bytes = t.bytes;
    return r->failed ? -1 : 0;
}

static int json_separators(struct render *r, const struct value *v, struct json_style *style)
{
    struct list pair;
    if (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE)
        return 0;
    if (value_iterate(r, v, &pair))
        return -1;
    if (pair.count != 2 || pair.items[0].kind != VALUE_STRING || pair.items[1].kind != VALUE_STRING)
        return render_fail(r, "tojson: expected two strings as separators");
    style->comma = *pair.items[0].string;
    style->colon = *pair.items[1].string;
    return 0;
}

/* As transformers define it: json.dumps, characters as they are, nothing escaped for HTML. */
FILTER(tojson)
{
    struct json_style style = {.comma = {", ", 2, 2}, .colon = {": ", 2, 2}};
    struct text t = {.r = r};
    (void)n;
    style.ascii = value_true(&args[1]);
    style.sort_keys = value_true(&args[4]);
    if (json_indent(r, &args[2], &style) || json_separators(r, &args[3], &style) ||
        text_json(&t, &args[0], &style, 0))
        return -1;
    return text_value(&t, out);
}

const struct callable template_filters[] = {
    {"upper", filter_upper, 0, 0, {0}, 0},
    {"lower", filter_lower, 0, 0, {0}, 0},
    {"capitalize", filter_capitalize, 0, 0, {0}, 0},
    {"title", filter_title, 0, 0, {0}, 0},
    {"string", filter_string, 0, 0, {0}, 0},
    {"safe", filter_string, 0, 0, {0}, 0},
    {"trim", filter_trim, 0, 1, {"chars"}, 0},
    {"replace", filter_replace, 2, 3, {"old", "new", "count"}, 0},
    {"indent", filter_indent, 0, 3, {"width", "first", "blank"}, 0},
    {"default", filter_default, 0, 2, {"default_value", "boolean"}, 0},
    {"d", filter_default, 0, 2, {"default_value", "boolean"}, 0},
    {"float", filter_float, 0, 1, {"default"}, 0},
    {"int", filter_int, 0, 2, {"default", "base"}, 0},
    {"abs", filter_abs, 0, 0, {0}, 0},
    {"tojson", filter_tojson, 0, 4, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0},
    {0},
};
