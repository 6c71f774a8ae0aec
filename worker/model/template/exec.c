/* exec: statements. Scopes are jinja2's: a loop's body, a macro and a captured block have their own, an if
 * has not; what is set inside one is gone after it, and a macro sees the scope it stands in, not its
 * caller's. */
#include <string.h>

#include "worker/model/template/impl.h"

struct value *scope_find(struct render *r, struct scope *s, const struct string *name)
{
    uint64_t looked = 0;
    for (; s; s = s->parent)
        for (struct binding *b = s->bindings; b; b = b->next, looked++)
            if (string_same(b->name, name)) {
                render_charge(r, looked / 8);
                return &b->value;
            }
    render_charge(r, looked / 8);
    return NULL;
}

int scope_set(struct render *r, struct scope *s, const struct string *name, struct value v)
{
    uint64_t looked = 0;
    for (struct binding *b = s->bindings; b; b = b->next, looked++)
        if (string_same(b->name, name)) {
            b->value = v;
            return 0;
        }
    struct binding *b = render_take(r, sizeof(*b));
    if (!b || render_charge(r, looked / 8))
        return -1;
    *b = (struct binding){name, v, s->bindings};
    s->bindings = b;
    return 0;
}

static struct scope *scope_new(struct render *r, struct scope *parent)
{
    struct scope *s = render_take(r, sizeof(*s));
    if (s)
        s->parent = parent;
    return s;
}

static int assign(struct render *r, struct scope *s, const struct node *target, struct value v)
{
    struct list items;
    size_t count = 0, i = 0;
    r->at = target;
    if (target->kind == NODE_NAME)
        return scope_set(r, s, target->value.string, v);
    if (target->kind == NODE_ATTRIBUTE) {
        struct value *object = scope_find(r, s, target->a->value.string);
        if (!object || object->kind != VALUE_NAMESPACE)
            return render_fail(r, "cannot assign attribute on non-namespace object");
        return dict_set(r, object->dict, target->value, v);
    }
    if (v.kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &v);
    if (value_iterate(r, &v, &items))
        return -1;
    for (const struct node *n = target->a; n; n = n->next)
        count++;
    if (count != items.count)
        return render_fail(r, "expected %zu values to unpack, found %zu", count, items.count);
    for (const struct node *n = target->a; n; n = n->next)
        if (assign(r, s, n, items.items[i++]))
            return -1;
    return 0;
}

static int put_output(struct render *r, const char *data, size_t bytes)
{
    if (render_charge(r, bytes / 32))
        return -1;
    if (bytes > r->max_output_bytes - r->output.size)
        return render_fail(r, "the output has more than %zu bytes", r->max_output_bytes);
    buffer_append(&r->output, data, bytes);
    return 0;
}

/* Takes what was put out since `begin` as a string. */
static int take_output(struct render *r, size_t begin, struct value *out)
{
    size_t bytes = r->output.size - begin;
    if (string_new(r, bytes ? (const char *)r->output.data + begin : "", bytes, out))
        return -1;
    r->output.size = begin;
    return 0;
}

static int exec_print(struct render *r, struct scope *s, const struct node *n)
{
    struct value v;
    if (eval(r, s, n->a, &v))
        return -1;
    r->at = n;
    if (value_to_string(r, &v, &v))
        return -1;
    return put_output(r, v.string->data, v.string->bytes);
}

static enum flow exec_if(struct render *r, struct scope *s, const struct node *n)
{
    for (const struct node *branch = n->a; branch; branch = branch->next) {
        struct value condition;
        if (branch->a && eval(r, s, branch->a, &condition))
            return FLOW_FAILED;
        if (!branch->a || value_true(&condition))
            return exec_body(r, s, branch->b);
    }
    return FLOW_ON;
}

/* The elements that pass the loop's own `if`, which sees the target and nothing of the body. */
static int filter_items(struct render *r, struct scope *s, const struct node *n, struct list *items)
{
    struct value kept;
    if (!n->e)
        return 0;
    if (list_new(r, VALUE_LIST, 0, &kept))
        return -1;
    for (size_t i = 0; i < items->count; i++) {
        struct value passes;
        struct scope *inner = scope_new(r, s);
        if (!inner || assign(r, inner, n->a, items->items[i]) || eval(r, inner, n->e, &passes) ||
            (value_true(&passes) && list_push(r, kept.list, items->items[i])))
            return -1;
    }
    *items = *kept.list;
    return 0;
}

static const struct string loop_name = {"loop", 4, 4};

static enum flow exec_iteration(struct render *r, struct scope *s, const struct node *n, struct loop *loop)
{
    struct scope *inner = scope_new(r, s);
    if (!inner || scope_set(r, inner, &loop_name, (struct value){.kind = VALUE_LOOP, .loop = loop}) ||
        assign(r, inner, n->a, loop->items[loop->index]))
        return FLOW_FAILED;
    return exec_body(r, inner, n->c);
}

static enum flow exec_for(struct render *r, struct scope *s, const struct node *n)
{
    struct value iterable;
    struct list items;
    if (eval(r, s, n->b, &iterable))
        return FLOW_FAILED;
    r->at = n->b;
    if (value_iterate(r, &iterable, &items) || filter_items(r, s, n, &items))
        return FLOW_FAILED;
    struct loop *loop = render_take(r, sizeof(*loop));
    if (!loop)
        return FLOW_FAILED;
    *loop = (struct loop){.items = items.items, .count = items.count, .depth = 1};
    bool completed = false;
    enum flow flow = FLOW_ON;
    for (; loop->index < loop->count && flow != FLOW_BREAK; loop->index++) {
        flow = render_charge(r, 1) ? FLOW_FAILED : exec_iteration(r, s, n, loop);
        if (flow == FLOW_FAILED)
            return FLOW_FAILED;
        completed |= flow == FLOW_ON;
    }
    /* As in jinja2, else is for loops no iteration of which came to its end. */
    struct scope *inner = completed || !n->d ? NULL : scope_new(r, s);
    return inner ? exec_body(r, inner, n->d) : r->failed ? FLOW_FAILED : FLOW_ON;
}

/* A body in a scope of its own, its output taken as a string. */
static int capture(struct render *r, struct scope *parent, const struct node *body, struct value *out)
{
    size_t begin = r->output.size;
    struct scope *inner = scope_new(r, parent);
    if (!inner || exec_body(r, inner, body) == FLOW_FAILED)
        return -1;
    return take_output(r, begin, out);
}

static int exec_block_set(struct render *r, struct scope *s, const struct node *n)
{
    struct value v;
    if (capture(r, s, n->b, &v))
        return -1;
    if (n->c) {
        r->captured = v;
        if (eval(r, s, n->c, &v))
            return -1;
    }
    return assign(r, s, n->a, v);
}

static int exec_macro(struct render *r, struct scope *s, const struct node *n)
{
    struct macro *m = render_take(r, sizeof(*m));
    if (!m)
        return -1;
    *m = (struct macro){n, s};
    return scope_set(r, s, n->value.string, (struct value){.kind = VALUE_MACRO, .macro = m});
}

static enum flow exec_statement(struct render *r, struct scope *s, const struct node *n)
{
    struct value v;
    int code;
    switch (n->kind) {
    case NODE_TEXT:
        code = put_output(r, n->value.string->data, n->value.string->bytes);
        break;
    case NODE_PRINT:
        code = exec_print(r, s, n);
        break;
    case NODE_IF:
        return exec_if(r, s, n);
    case NODE_FOR:
        return exec_for(r, s, n);
    case NODE_SET:
        code = eval(r, s, n->b, &v) || assign(r, s, n->a, v);
        break;
    case NODE_BLOCK_SET:
        code = exec_block_set(r, s, n);
        break;
    case NODE_MACRO:
        code = exec_macro(r, s, n);
        break;
    case NODE_SCOPE: {
        struct scope *inner = scope_new(r, s);
        return inner ? exec_body(r, inner, n->a) : FLOW_FAILED;
    }
    default:
        return n->kind == NODE_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
    }
    return code ? FLOW_FAILED : FLOW_ON;
}

enum flow exec_body(struct render *r, struct scope *s, const struct node *body)
{
    enum flow flow = FLOW_ON;
    if (render_enter(r))
        return FLOW_FAILED;
    for (const struct node *n = body; n && flow == FLOW_ON; n = n->next) {
        r->at = n;
        flow = render_charge(r, 1) ? FLOW_FAILED : exec_statement(r, s, n);
    }
    r->depth--;
    return flow;
}

/* ---- macros ---- */

/* The given arguments into the macro's scope, positions first, then names. */
static int bind_arguments(struct render *r, struct scope *caller, struct scope *inner, const struct macro *m,
                          const struct node *arguments)
{
    const struct node *parameter = m->node->a;
    const struct string *name = m->node->value.string;
    for (const struct node *a = arguments; a; a = a->next) {
        const struct node *target = parameter;
        struct value v;
        if (a->value.kind == VALUE_STRING) {
            for (target = m->node->a; target && !string_same(target->value.string, a->value.string);)
                target = target->next;
            r->at = a;
            if (!target)
                return render_fail(r, "macro '%.*s' takes no keyword argument '%.*s'", (int)name->bytes,
                                   name->data, (int)a->value.string->bytes, a->value.string->data);
            for (const struct binding *b = inner->bindings; b; b = b->next)
                if (string_same(b->name, target->value.string))
                    return render_fail(r, "macro '%.*s' got its argument '%.*s' twice", (int)name->bytes,
                                       name->data, (int)a->value.string->bytes, a->value.string->data);
        } else {
            if (!target)
                return render_fail(r, "macro '%.*s' takes not more than %u argument(s)", (int)name->bytes,
                                   name->data, m->node->arg_count);
            parameter = parameter->next;
        }
        if (eval(r, caller, a->a, &v) || scope_set(r, inner, target->value.string, v))
            return -1;
    }
    return 0;
}

static int bind_defaults(struct render *r, struct scope *inner, const struct macro *m)
{
    for (const struct node *p = m->node->a; p; p = p->next) {
        struct value v;
        bool given = false;
        for (const struct binding *b = inner->bindings; b && !given; b = b->next)
            given = string_same(b->name, p->value.string);
        if (given)
            continue;
        if (p->a ? eval(r, inner, p->a, &v) : value_undefined(r, NULL, &p->value, &v))
            return -1;
        if (scope_set(r, inner, p->value.string, v))
            return -1;
    }
    return 0;
}

int macro_call(struct render *r, struct scope *caller, const struct macro *m, const struct node *arguments,
               struct value *out)
{
    size_t begin = r->output.size;
    struct scope *inner = scope_new(r, m->scope);
    if (!inner || bind_arguments(r, caller, inner, m, arguments) || bind_defaults(r, inner, m) ||
        exec_body(r, inner, m->node->b) == FLOW_FAILED)
        return -1;
    return take_output(r, begin, out);
}
