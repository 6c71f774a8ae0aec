/* eval: expressions over a scope. */
#include <string.h>

#include "worker/model/template/impl.h"

static int eval_name(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value *found = scope_find(r, s, n->value.string);
    if (r->failed)
        return -1;
    if (found) {
        *out = *found;
        return 0;
    }
    if (callable_find(CALLABLE_FUNCTION, n->value.string->data, n->value.string->bytes)) {
        *out = (struct value){.kind = VALUE_FUNCTION, .string = n->value.string};
        return 0;
    }
    return value_undefined(r, NULL, &n->value, out);
}

static int eval_list(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value item;
    if (list_new(r, n->kind == NODE_LIST ? VALUE_LIST : VALUE_TUPLE, 0, out))
        return -1;
    for (const struct node *i = n->a; i; i = i->next)
        if (eval(r, s, i, &item) || list_push(r, out->list, item))
            return -1;
    return 0;
}

static int eval_dict(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value key, v;
    if (dict_new(r, VALUE_DICT, out))
        return -1;
    for (const struct node *i = n->a; i; i = i->next->next)
        if (eval(r, s, i, &key) || eval(r, s, i->next, &v) || dict_set(r, out->dict, key, v))
            return -1;
    return 0;
}

static int eval_slice(struct render *r, struct scope *s, const struct node *n, const struct value *object,
                      struct value *out)
{
    struct value bounds[3];
    int count = 0;
    for (const struct node *i = n->b; i; i = i->next)
        if (eval(r, s, i, &bounds[count++]))
            return -1;
    r->at = n;
    return value_slice(r, object, bounds, out);
}

static int eval_call(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value *found = scope_find(r, s, n->value.string);
    if (!found || r->failed)
        return render_fail(r, "'%.*s' is undefined", (int)n->value.string->bytes, n->value.string->data);
    if (found->kind != VALUE_MACRO)
        return render_fail(r, "%.*s is a %s and cannot be called", (int)n->value.string->bytes,
                           n->value.string->data, value_type(found));
    return macro_call(r, s, found->macro, n->b, out);
}

static int eval_sign(struct render *r, const struct node *n, const struct value *v, struct value *out)
{
    int64_t i;
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    if (v->kind == VALUE_FLOAT)
        *out = value_float(n->kind == NODE_NEGATE ? -v->real : v->real);
    else if (!value_integer(v, &i))
        return render_fail(r, "a %s has no sign", value_type(v));
    else if (n->kind == NODE_NEGATE && i == INT64_MIN)
        return render_fail(r, "this integer does not fit 64 bits");
    else
        *out = value_int(n->kind == NODE_NEGATE ? -i : i);
    return 0;
}

static int eval_concat(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct text t = {.r = r};
    struct value v;
    for (const struct node *i = n->a; i; i = i->next) {
        if (eval(r, s, i, &v))
            return -1;
        r->at = i;
        if (text_str(&t, &v))
            return -1;
    }
    return text_value(&t, out);
}

/* a < b < c is (a < b) and (b < c), each operand evaluated once. */
static int eval_compare(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value left, right;
    bool holds = true;
    if (eval(r, s, n->a, &left))
        return -1;
    for (const struct node *c = n->b; c && holds; c = c->next) {
        if (eval(r, s, c->a, &right))
            return -1;
        r->at = c;
        if (value_compare(r, c->op, &left, &right, &holds))
            return -1;
        left = right;
    }
    *out = value_bool(holds);
    return 0;
}

static int eval_conditional(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value condition;
    if (eval(r, s, n->a, &condition))
        return -1;
    if (value_true(&condition))
        return eval(r, s, n->b, out);
    if (n->c)
        return eval(r, s, n->c, out);
    return value_undefined(r, "the inline if-expression evaluated to false and no else section was defined.",
                           NULL, out);
}

static int eval_binary(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value left, right;
    if (eval(r, s, n->a, &left) || eval(r, s, n->b, &right))
        return -1;
    r->at = n;
    return value_binary(r, n->op, &left, &right, out);
}

static int eval_logic(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    if (eval(r, s, n->a, out))
        return -1;
    return value_true(out) == (n->kind == NODE_AND) ? eval(r, s, n->b, out) : 0;
}

/* What works on the value of n->a first. */
static int eval_subject(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    struct value subject = {0}, key;
    if (n->a && eval(r, s, n->a, &subject))
        return -1;
    r->at = n;
    switch (n->kind) {
    case NODE_ATTRIBUTE:
        return value_attribute(r, &subject, &n->value, out);
    case NODE_ITEM:
        if (eval(r, s, n->b, &key))
            return -1;
        r->at = n;
        return value_item(r, &subject, &key, out);
    case NODE_SLICE:
        return eval_slice(r, s, n, &subject, out);
    case NODE_BUILTIN:
        return builtin_call(r, s, n, &subject, out);
    case NODE_NOT:
        *out = value_bool(!value_true(&subject));
        return 0;
    default:
        ASSERT(n->kind == NODE_NEGATE || n->kind == NODE_PLUS);
        return eval_sign(r, n, &subject, out);
    }
}

static int eval_node(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    switch (n->kind) {
    case NODE_CONSTANT:
        *out = n->value;
        return 0;
    case NODE_NAME:
        return eval_name(r, s, n, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_list(r, s, n, out);
    case NODE_DICT:
        return eval_dict(r, s, n, out);
    case NODE_CALL:
        return eval_call(r, s, n, out);
    case NODE_BINARY:
        return eval_binary(r, s, n, out);
    case NODE_AND:
    case NODE_OR:
        return eval_logic(r, s, n, out);
    case NODE_CONCAT:
        return eval_concat(r, s, n, out);
    case NODE_COMPARE:
        return eval_compare(r, s, n, out);
    case NODE_CONDITIONAL:
        return eval_conditional(r, s, n, out);
    case NODE_CAPTURED:
        *out = r->captured;
        return 0;
    default:
        return eval_subject(r, s, n, out);
    }
}

int eval(struct render *r, struct scope *s, const struct node *n, struct value *out)
{
    r->at = n;
    if (render_charge(r, 1) || render_enter(r))
        return -1;
    int code = eval_node(r, s, n, out);
    r->depth--;
    return code;
}
