/* builtin: the list of what may be called, how arguments are evaluated, and the global functions. */
#include <string.h>
#include <time.h>

#include "worker/model/template/impl.h"

static const struct callable *find(const struct callable *list, const char *name, size_t bytes)
{
    for (; list->name; list++)
        if (strlen(list->name) == bytes && memcmp(list->name, name, bytes) == 0)
            return list;
    return NULL;
}

const struct callable *callable_find(enum callable_kind kind, const char *name, size_t bytes)
{
    const struct callable *c;
    switch (kind) {
    case CALLABLE_FILTER:
        c = find(template_filters, name, bytes);
        return c ? c : find(template_sequence_filters, name, bytes);
    case CALLABLE_TEST:
        return find(template_tests, name, bytes);
    case CALLABLE_METHOD:
        return find(template_methods, name, bytes);
    default:
        return find(template_functions, name, bytes);
    }
}

const char *callable_kind_name(enum callable_kind kind)
{
    static const char *const names[] = {"filter", "test", "method", "function"};
    return names[kind];
}

int builtin_arguments(struct render *r, struct scope *s, const struct node *n, struct value *args)
{
    for (int i = 0; i < n->arg_count; i++) {
        args[i + 1] = (struct value){.kind = VALUE_ABSENT};
        if (n->args[i] && eval(r, s, n->args[i], &args[i + 1]))
            return -1;
    }
    r->at = n;
    return 0;
}

int builtin_call(struct render *r, struct scope *s, const struct node *n, const struct value *subject,
                 struct value *out)
{
    struct value args[1 + CALLABLE_MAX_PARAMETERS] = {*subject};
    if (builtin_arguments(r, s, n, args))
        return -1;
    struct scope *outer = r->scope;
    r->scope = s;
    int code = n->callable->call(r, n, args, out);
    r->scope = outer;
    return code || r->failed ? -1 : 0;
}

/* ---- global functions ---- */

static int make_dict(struct render *r, const struct node *n, enum value_kind kind, struct value *out)
{
    struct value v;
    if (dict_new(r, kind, out))
        return -1;
    for (const struct node *a = n->b; a; a = a->next) {
        if (eval(r, r->scope, a->a, &v))
            return -1;
        r->at = a;
        if (a->value.kind == VALUE_STRING) {
            if (dict_set(r, out->dict, a->value, v))
                return -1;
            continue;
        }
        if (v.kind != VALUE_DICT || a != n->b)
            return render_fail(r, "%s() takes one dict and name = value, found a %s", n->callable->name,
                               value_type(&v));
        for (size_t i = 0; i < v.dict->count; i++)
            if (dict_set(r, out->dict, v.dict->entries[i].key, v.dict->entries[i].value))
                return -1;
    }
    return 0;
}

static int call_namespace(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)args;
    return make_dict(r, n, VALUE_NAMESPACE, out);
}

static int call_dict(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)args;
    return make_dict(r, n, VALUE_DICT, out);
}

#define RANGE_MAX 100000 /* jinja2's sandbox has the same bound */

static int call_range(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    int64_t bound[3] = {0, 0, 1};
    (void)n;
    for (int i = 0; i < 3; i++) {
        if (args[i + 1].kind == VALUE_UNDEFINED)
            return value_undefined_error(r, &args[i + 1]);
        if (args[i + 1].kind != VALUE_ABSENT && !value_integer(&args[i + 1], &bound[i]))
            return render_fail(r, "range() takes integers, found %s", value_type(&args[i + 1]));
    }
    if (args[2].kind == VALUE_ABSENT) {
        bound[1] = bound[0];
        bound[0] = 0;
    }
    if (bound[2] == 0)
        return render_fail(r, "range(): the step cannot be zero");
    if (list_new(r, VALUE_RANGE, 0, out))
        return -1;
    memcpy(out->list->range, bound, sizeof(bound));
    for (int64_t i = bound[0]; bound[2] > 0 ? i < bound[1] : i > bound[1];) {
        if (out->list->count == RANGE_MAX)
            return render_fail(r, "range() has more than %d elements", RANGE_MAX);
        if (list_push(r, out->list, value_int(i)))
            return -1;
        if (__builtin_add_overflow(i, bound[2], &i))
            break;
    }
    return 0;
}

static int call_raise_exception(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)n;
    (void)out;
    if (value_to_string(r, &args[1], &args[1]))
        return -1;
    size_t bytes = args[1].string->bytes > 400 ? 400 : args[1].string->bytes;
    while (bytes < args[1].string->bytes && ((unsigned char)args[1].string->data[bytes] & 0xC0) == 0x80)
        bytes--;
    render_fail(r, "raise_exception: %.*s", (int)bytes, args[1].string->data);
    if (r->err)
        r->err->code = 400;
    return -1;
}

static int call_strftime_now(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    char format[256], text[1024];
    struct tm tm;
    time_t now = (time_t)r->now;
    (void)n;
    if (args[1].kind != VALUE_STRING)
        return render_fail(r, "strftime_now() takes a string, found %s", value_type(&args[1]));
    if (args[1].string->bytes >= sizeof(format) - 1 ||
        memchr(args[1].string->data, '\0', args[1].string->bytes))
        return render_fail(r, "strftime_now(): expected a format of at most %zu bytes", sizeof(format) - 2);
    /* The blank at the end tells an empty text from one that has no room. */
    memcpy(format, args[1].string->data, args[1].string->bytes);
    memcpy(format + args[1].string->bytes, " ", 2);
    if (!localtime_r(&now, &tm))
        return render_fail(r, "strftime_now(): the time is out of range");
    size_t bytes = strftime(text, sizeof(text), format, &tm);
    if (bytes == 0 || !utf8_valid(text, bytes))
        return render_fail(r, "strftime_now(): the text is too long");
    return string_new(r, text, bytes - 1, out);
}

const struct callable template_functions[] = {
    {"namespace", call_namespace, 0, 0, {0}, SPECIAL_KEYWORDS},
    {"dict", call_dict, 0, 0, {0}, SPECIAL_KEYWORDS},
    {"range", call_range, 1, 3, {"start", "stop", "step"}, 0},
    {"raise_exception", call_raise_exception, 1, 1, {"message"}, 0},
    {"strftime_now", call_strftime_now, 1, 1, {"format"}, 0},
    {0},
};
