/* predicates: what may stand after `is`. */
#include <string.h>
#include <wctype.h>

#include "worker/model/template/impl.h"

#define PREDICATE(name, condition)                                                                        \
    static int test_##name(struct render *r, const struct node *n, struct value *args, struct value *out) \
    {                                                                                                     \
        const struct value *v = &args[0];                                                                 \
        (void)r;                                                                                          \
        (void)n;                                                                                          \
        *out = value_bool(condition);                                                                     \
        return 0;                                                                                         \
    }

PREDICATE(defined, v->kind != VALUE_UNDEFINED)
PREDICATE(undefined, v->kind == VALUE_UNDEFINED)
PREDICATE(none, v->kind == VALUE_NONE)
PREDICATE(boolean, v->kind == VALUE_BOOL)
PREDICATE(true, v->kind == VALUE_BOOL && v->boolean)
PREDICATE(false, v->kind == VALUE_BOOL && !v->boolean)
PREDICATE(integer, v->kind == VALUE_INT)
PREDICATE(float, v->kind == VALUE_FLOAT)
PREDICATE(number, v->kind == VALUE_INT || v->kind == VALUE_FLOAT || v->kind == VALUE_BOOL)
PREDICATE(string, v->kind == VALUE_STRING)
PREDICATE(mapping, v->kind == VALUE_DICT)
PREDICATE(callable, v->kind == VALUE_MACRO || v->kind == VALUE_FUNCTION || v->kind == VALUE_METHOD ||
                        v->kind == VALUE_UNDEFINED)
/* What has a length and can be subscripted; an undefined value has both, and fails when it is used. */
PREDICATE(sequence, v->kind == VALUE_STRING || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE ||
                        v->kind == VALUE_RANGE || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED)
PREDICATE(iterable, v->kind == VALUE_STRING || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE ||
                        v->kind == VALUE_RANGE || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED ||
                        v->kind == VALUE_VIEW || v->kind == VALUE_ITERATOR || v->kind == VALUE_LOOP)

/* The rest of a division as Python's % gives it. */
static int divides(struct render *r, const struct value *v, const struct value *by, int64_t rest,
                   struct value *out)
{
    bool equal;
    struct value left, want = value_int(rest);
    if (v->kind == VALUE_STRING)
        return render_fail(r, "a string is neither even nor odd");
    if (value_binary(r, OP_MODULO, v, by, &left) || value_equal(r, &left, &want, &equal))
        return -1;
    *out = value_bool(equal);
    return 0;
}

static int test_even(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    struct value two = value_int(2);
    (void)n;
    return divides(r, &args[0], &two, 0, out);
}

static int test_odd(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    struct value two = value_int(2);
    (void)n;
    return divides(r, &args[0], &two, 1, out);
}

static int test_divisibleby(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)n;
    return divides(r, &args[0], &args[1], 0, out);
}

static int compare(struct render *r, enum operation op, struct value *args, struct value *out)
{
    bool holds;
    if (value_compare(r, op, &args[0], &args[1], &holds))
        return -1;
    *out = value_bool(holds);
    return 0;
}

#define COMPARISON(name, op)                                                                              \
    static int test_##name(struct render *r, const struct node *n, struct value *args, struct value *out) \
    {                                                                                                     \
        (void)n;                                                                                          \
        return compare(r, op, args, out);                                                                 \
    }
COMPARISON(eq, OP_EQ)
COMPARISON(ne, OP_NE)
COMPARISON(lt, OP_LT)
COMPARISON(le, OP_LE)
COMPARISON(gt, OP_GT)
COMPARISON(ge, OP_GE)
COMPARISON(in, OP_IN)

/* Letters of one case, and at least one. */
static int has_case(struct render *r, const struct value *v, bool upper, struct value *out)
{
    struct value s;
    bool any = false, other = false;
    if (value_to_string(r, v, &s) || render_charge(r, s.string->bytes / 32))
        return -1;
    locale_t locale = render_locale(r);
    for (size_t i = 0; i < s.string->bytes;) {
        uint32_t c;
        i += text_decode(s.string->data + i, s.string->bytes - i, &c);
        bool is_upper = iswupper_l((wint_t)c, locale), is_lower = iswlower_l((wint_t)c, locale);
        any |= upper ? is_upper : is_lower;
        other |= upper ? is_lower : is_upper;
    }
    *out = value_bool(any && !other);
    return 0;
}

static int test_upper(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)n;
    return has_case(r, &args[0], true, out);
}

static int test_lower(struct render *r, const struct node *n, struct value *args, struct value *out)
{
    (void)n;
    return has_case(r, &args[0], false, out);
}

#define PLAIN(name)                       \
    {                                     \
#name, test_##name, 0, 0, {0 }, 0 \
    }
#define WITH(name, test)               \
    {                                  \
        name, test, 1, 1, {"other"}, 0 \
    }
const struct callable template_tests[] = {
    PLAIN(defined),
    PLAIN(undefined),
    PLAIN(none),
    PLAIN(boolean),
    PLAIN(true),
    PLAIN(false),
    PLAIN(integer),
    PLAIN(float),
    PLAIN(number),
    PLAIN(string),
    PLAIN(mapping),
    PLAIN(callable),
    PLAIN(sequence),
    PLAIN(iterable),
    PLAIN(even),
    PLAIN(odd),
    PLAIN(upper),
    PLAIN(lower),
    {"divisibleby", test_divisibleby, 1, 1, {"num"}, 0},
    {"in", test_in, 1, 1, {"seq"}, 0},
    WITH("equalto", test_eq),
    WITH("eq", test_eq),
    WITH("==", test_eq),
    WITH("ne", test_ne),
    WITH("!=", test_ne),
    WITH("lt", test_lt),
    WITH("<", test_lt),
    WITH("lessthan", test_lt),
    WITH("le", test_le),
    WITH("<=", test_le),
    WITH("gt", test_gt),
    WITH(">", test_gt),
    WITH("greaterthan", test_gt),
    WITH("ge", test_ge),
    WITH(">=", test_ge),
    {0},
};
