/* ops: what operators do to values: truth, equality, order, arithmetic, as Python does. */
#include <math.h>
#include <string.h>

#include "worker/model/template/impl.h"

bool value_number(const struct value *v, double *out)
{
    int64_t i;
    if (v->kind == VALUE_FLOAT)
        *out = v->real;
    else if (value_integer(v, &i))
        *out = (double)i;
    else
        return false;
    return true;
}

bool value_integer(const struct value *v, int64_t *out)
{
    if (v->kind == VALUE_INT)
        *out = v->integer;
    else if (v->kind == VALUE_BOOL)
        *out = v->boolean;
    else
        return false;
    return true;
}

bool value_true(const struct value *v)
{
    switch (v->kind) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v->boolean;
    case VALUE_INT:
        return v->integer != 0;
    case VALUE_FLOAT:
        return v->real != 0;
    case VALUE_STRING:
        return v->string->bytes > 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return v->list->count > 0;
    case VALUE_DICT:
        return v->dict->count > 0;
    default:
        return true;
    }
}

int value_undefined_error(struct render *r, const struct value *v)
{
    const struct undefined *u = v->undefined;
    struct text t = {.r = r};
    if (u->key.kind == VALUE_ABSENT)
        return render_fail(r, "%s", u->of);
    if (text_repr(&t, &u->key))
        return -1;
    int n = t.bytes > 200 ? 200 : (int)t.bytes;
    if (!u->of)
        return render_fail(r, "%.*s is undefined", n, t.data);
    if (u->key.kind == VALUE_STRING)
        return render_fail(r, "'%s' has no attribute %.*s", u->of, n, t.data);
    return render_fail(r, "%s has no element %.*s", u->of, n, t.data);
}

static int list_equal(struct render *r, const struct list *a, const struct list *b, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++)
        if (value_equal(r, &a->items[i], &b->items[i], out))
            return -1;
    return 0;
}

static int dict_equal(struct render *r, const struct dict *a, const struct dict *b, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) {
        struct value *other;
        if (dict_find(r, b, &a->entries[i].key, &other))
            return -1;
        if (!other)
            *out = false;
        else if (value_equal(r, &a->entries[i].value, other, out))
            return -1;
    }
    return 0;
}

static bool numbers_equal(const struct value *a, const struct value *b)
{
    double x, y;
    int64_t i, j;
    if (value_integer(a, &i) && value_integer(b, &j))
        return i == j;
    value_number(a, &x);
    value_number(b, &y);
    return x == y;
}

int value_equal(struct render *r, const struct value *a, const struct value *b, bool *out)
{
    double x;
    int code = 0;
    *out = false;
    if (value_number(a, &x) && value_number(b, &x)) {
        *out = numbers_equal(a, b);
        return render_charge(r, 1);
    }
    if (a->kind != b->kind)
        return 0;
    if (render_charge(r, 1) || render_enter(r))
        return -1;
    switch (a->kind) {
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        *out = true;
        break;
    case VALUE_STRING:
        *out = string_same(a->string, b->string);
        code = render_charge(r, a->string->bytes / 32);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        code = list_equal(r, a->list, b->list, out);
        break;
    case VALUE_DICT:
        code = dict_equal(r, a->dict, b->dict, out);
        break;
    default:
        *out = a->list == b->list;
    }
    r->depth--;
    return code;
}

static bool string_less(const struct string *a, const struct string *b)
{
    size_t n = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = n ? memcmp(a->data, b->data, n) : 0;
    return order < 0 || (order == 0 && a->bytes < b->bytes);
}

static int list_less(struct render *r, const struct list *a, const struct list *b, bool *out)
{
    for (size_t i = 0; i < a->count && i < b->count; i++) {
        bool equal;
        if (value_equal(r, &a->items[i], &b->items[i], &equal))
            return -1;
        if (!equal)
            return value_less(r, &a->items[i], &b->items[i], out);
    }
    *out = a->count < b->count;
    return 0;
}

int value_less(struct render *r, const struct value *a, const struct value *b, bool *out)
{
    double x, y;
    int64_t i, j;
    if (render_charge(r, 1))
        return -1;
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, a->kind == VALUE_UNDEFINED ? a : b);
    if (value_integer(a, &i) && value_integer(b, &j)) {
        *out = i < j;
        return 0;
    }
    if (value_number(a, &x) && value_number(b, &y)) {
        *out = x < y;
        return 0;
    }
    if (a->kind == VALUE_STRING && b->kind == VALUE_STRING) {
        *out = string_less(a->string, b->string);
        return render_charge(r, a->string->bytes / 32);
    }
    if (a->kind != b->kind || (a->kind != VALUE_LIST && a->kind != VALUE_TUPLE))
        return render_fail(r, "'<' not supported between %s and %s", value_type(a), value_type(b));
    if (render_enter(r))
        return -1;
    int code = list_less(r, a->list, b->list, out);
    r->depth--;
    return code;
}

int value_in(struct render *r, const struct value *item, const struct value *in, bool *out)
{
    *out = false;
    if (in->kind == VALUE_STRING) {
        if (item->kind != VALUE_STRING)
            return render_fail(r, "'in <string>' requires a string on the left, found %s", value_type(item));
        *out = item->string->bytes == 0 ||
               memmem(in->string->data, in->string->bytes, item->string->data, item->string->bytes);
        return render_charge(r, in->string->bytes / 32);
    }
    if (in->kind == VALUE_DICT) {
        struct value *found;
        if (dict_find(r, in->dict, item, &found))
            return -1;
        *out = found != NULL;
        return 0;
    }
    struct list items;
    if (value_iterate(r, in, &items))
        return -1;
    for (size_t i = 0; i < items.count && !*out; i++)
        if (value_equal(r, item, &items.items[i], out))
            return -1;
    return 0;
}

/* Not (b < a) is not a <= b where NaN is. */
static int not_greater(struct render *r, const struct value *a, const struct value *b, bool *out)
{
    bool less, equal;
    if (value_less(r, a, b, &less) || value_equal(r, a, b, &equal))
        return -1;
    *out = less || equal;
    return 0;
}

int value_compare(struct render *r, enum operation op, const struct value *a, const struct value *b,
                  bool *out)
{
    int code;
    switch (op) {
    case OP_LT:
        return value_less(r, a, b, out);
    case OP_GT:
        return value_less(r, b, a, out);
    case OP_LE:
        return not_greater(r, a, b, out);
    case OP_GE:
        return not_greater(r, b, a, out);
    case OP_IN:
        return value_in(r, a, b, out);
    case OP_NOT_IN:
        code = value_in(r, a, b, out);
        *out = !*out;
        return code;
    default:
        code = value_equal(r, a, b, out);
        *out ^= op == OP_NE;
        return code;
    }
}

/* ---- arithmetic ---- */

static int overflow(struct render *r)
{
    return render_fail(r, "this integer does not fit 64 bits");
}

static int integer_power(struct render *r, int64_t base, int64_t exponent, int64_t *out)
{
    *out = 1;
    for (int64_t square = base; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(*out, square, out))
            return overflow(r);
        if (exponent > 1 && __builtin_mul_overflow(square, square, &square))
            return overflow(r);
    }
    return 0;
}

static int integers(struct render *r, enum operation op, int64_t a, int64_t b, struct value *out)
{
    int64_t v = 0;
    bool wide = false;
    switch (op) {
    case OP_ADD:
        wide = __builtin_add_overflow(a, b, &v);
        break;
    case OP_SUBTRACT:
        wide = __builtin_sub_overflow(a, b, &v);
        break;
    case OP_MULTIPLY:
        wide = __builtin_mul_overflow(a, b, &v);
        break;
    case OP_FLOOR_DIVIDE:
        if (b == -1)
            wide = __builtin_sub_overflow((int64_t)0, a, &v);
        else
            v = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case OP_MODULO:
        v = b == -1 ? 0 : a % b;
        v += v != 0 && (v < 0) != (b < 0) ? b : 0;
        break;
    default:
        if (integer_power(r, a, b, &v))
            return -1;
    }
    *out = value_int(v);
    return wide ? overflow(r) : 0;
}

static int reals(struct render *r, enum operation op, double a, double b, struct value *out)
{
    double v;
    switch (op) {
    case OP_ADD:
        v = a + b;
        break;
    case OP_SUBTRACT:
        v = a - b;
        break;
    case OP_MULTIPLY:
        v = a * b;
        break;
    case OP_DIVIDE:
        v = a / b;
        break;
    case OP_POWER:
        v = pow(a, b);
        if ((a == 0 && b < 0) || (isnan(v) && !isnan(a) && !isnan(b)) ||
            (isinf(v) && isfinite(a) && isfinite(b)))
            return render_fail(r, "the result of ** is no finite real number");
        break;
    default:
        v = fmod(a, b);
        if (v != 0 ? (v < 0) != (b < 0) : signbit(v) != signbit(b))
            v = v != 0 ? v + b : copysign(0, b);
        if (op == OP_FLOOR_DIVIDE) {
            v = (a - v) / b;
            v = v != 0 ? floor(v) + (v - floor(v) > 0.5) : copysign(0, a / b);
        }
    }
    *out = value_float(v);
    return 0;
}

static int repeat_list(struct render *r, const struct value *v, size_t times, struct value *out)
{
    size_t count = v->list->count;
    uint64_t all;
    if (!checked_mul_u64(count, times, &all) || render_charge(r, all) ||
        list_new(r, v->kind, (size_t)all, out))
        return r->failed ? -1 : render_fail(r, "this list is too long");
    for (size_t i = 0; i < times && count; i++) {
        memcpy(out->list->items + out->list->count, v->list->items, count * sizeof(struct value));
        out->list->count += count;
    }
    return 0;
}

static int repeat_string(struct render *r, const struct string *s, size_t times, struct value *out)
{
    uint64_t all;
    if (!checked_mul_u64(s->bytes, times, &all) || render_charge(r, all / 32))
        return r->failed ? -1 : render_fail(r, "this text is too long");
    char *data = render_take(r, (size_t)all);
    if (!data)
        return -1;
    for (size_t i = 0; i < times && s->bytes; i++)
        memcpy(data + i * s->bytes, s->data, s->bytes);
    return string_borrow(r, data, (size_t)all, out);
}

static bool is_sequence(const struct value *v)
{
    return v->kind == VALUE_STRING || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE;
}

static int sequences(struct render *r, enum operation op, const struct value *a, const struct value *b,
                     struct value *out)
{
    int64_t n;
    if (op == OP_MULTIPLY && is_sequence(b) && value_integer(a, &n))
        return sequences(r, op, b, a, out);
    if (op == OP_MULTIPLY && is_sequence(a) && value_integer(b, &n)) {
        size_t times = n > 0 ? (size_t)n : 0;
        return a->kind == VALUE_STRING ? repeat_string(r, a->string, times, out)
                                       : repeat_list(r, a, times, out);
    }
    if (op == OP_ADD && a->kind == VALUE_STRING && b->kind == VALUE_STRING) {
        struct text t = {.r = r};
        text_reserve(&t, a->string->bytes + b->string->bytes);
        text_put(&t, a->string->data, a->string->bytes);
        text_put(&t, b->string->data, b->string->bytes);
        return text_value(&t, out);
    }
    if (op == OP_ADD && a->kind == b->kind && is_sequence(a)) {
        if (list_new(r, a->kind, a->list->count + b->list->count, out))
            return -1;
        for (size_t i = 0; i < a->list->count + b->list->count; i++)
            if (list_push(r, out->list,
                          i < a->list->count ? a->list->items[i] : b->list->items[i - a->list->count]))
                return -1;
        return 0;
    }
    static const char *const symbols[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (op == OP_MODULO && a->kind == VALUE_STRING)
        return render_fail(r, "formatting a string with %% is not supported");
    return render_fail(r, "unsupported operand types for %s: %s and %s", symbols[op], value_type(a),
                       value_type(b));
}

int value_binary(struct render *r, enum operation op, const struct value *a, const struct value *b,
                 struct value *out)
{
    int64_t i, j;
    double x, y;
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, a->kind == VALUE_UNDEFINED ? a : b);
    if (!value_number(a, &x) || !value_number(b, &y))
        return sequences(r, op, a, b, out);
    if (y == 0 && (op == OP_DIVIDE || op == OP_FLOOR_DIVIDE || op == OP_MODULO))
        return render_fail(r, "division by zero");
    if (value_integer(a, &i) && value_integer(b, &j) && op != OP_DIVIDE && !(op == OP_POWER && j < 0))
        return integers(r, op, i, j, out);
    return reals(r, op, x, y, out);
}
