/* parse_call: what is called: methods, functions, macros, filters, tests. Each is looked up and its arguments
 * are bound to its parameters here, so that whatever is not on the list is refused before anything runs. */
#include <string.h>

#include "worker/model/template/impl.h"

/* ( a, b, name = c ) as a list of NODE_ARGUMENT below *n. */
static int parse_arguments(struct parser *p, struct node *n, struct node **slot)
{
    struct node **link = slot;
    bool named = false;
    if (parser_enter(p, &p->token) || parser_expect(p, "("))
        return -1;
    while (!parser_at(p, ")")) {
        if (*slot && parser_expect(p, ","))
            return -1;
        if (parser_at(p, ")"))
            break;
        struct token at = p->token;
        struct node *argument = parser_node(p, NODE_ARGUMENT, &at);
        if (parser_at(p, "*") || parser_at(p, "**"))
            return parser_fail(p, &at, "unpacking arguments with %s is not supported", at.op);
        if (at.kind == TOKEN_NAME && p->ahead.kind == TOKEN_OPERATOR && strcmp(p->ahead.op, "=") == 0) {
            argument->value = parser_name(p, &at);
            named = true;
            if (parser_next(p) || parser_next(p))
                return -1;
        } else if (named) {
            return parser_fail(p, &at, "expected name = value: the arguments before have names");
        }
        if (parser_adopt(p, argument, &argument->a, parse_expression(p, true)) ||
            parser_adopt(p, n, link, argument))
            return -1;
        link = &argument->next;
    }
    p->depth--;
    return parser_next(p);
}

static int bind_one(struct parser *p, struct node *n, const struct callable *c, const char *what,
                    struct node *argument, int position)
{
    struct token at = {.line = argument->line, .column = argument->column};
    int slot = position;
    if (argument->value.kind == VALUE_STRING) {
        const struct string *name = argument->value.string;
        for (slot = 0; slot < c->most && !string_is(name, c->parameters[slot]);)
            slot++;
        if (slot == c->most)
            return parser_fail(p, &at, "the %s %s has no argument %.*s", what, c->name, (int)name->bytes,
                               name->data);
        if (n->args[slot])
            return parser_fail(p, &at, "the %s %s has its argument %.*s twice", what, c->name,
                               (int)name->bytes, name->data);
    } else if (slot >= c->most) {
        return parser_fail(p, &at, "the %s %s takes at most %d argument%s", what, c->name, c->most,
                           c->most == 1 ? "" : "s");
    }
    n->args[slot] = argument->a;
    return 0;
}

/* The arguments to the parameters of n->callable. */
static int bind(struct parser *p, struct node *n, const char *what, struct node *arguments)
{
    const struct callable *c = n->callable;
    struct token at = {.line = n->line, .column = n->column};
    n->arg_count = c->most;
    n->args = arena_take(p->arena, sizeof(n->args[0]) * (c->most + 1u));
    int position = 0;
    for (struct node *a = arguments; a; a = a->next)
        if (bind_one(p, n, c, what, a, position++))
            return -1;
    for (int i = 0; i < c->required; i++)
        if (!n->args[i])
            return parser_fail(p, &at, "the %s %s needs its argument %s", what, c->name, c->parameters[i]);
    return 0;
}

static int find_callable(struct parser *p, struct node *n, enum callable_kind kind, const char *name,
                         size_t bytes)
{
    struct token at = {.line = n->line, .column = n->column};
    n->callable = callable_find(kind, name, bytes);
    if (!n->callable)
        return parser_fail(p, &at, "the %s %.*s is not supported", callable_kind_name(kind),
                           bytes > 40 ? 40 : (int)bytes, name);
    return 0;
}

/* Makes *slot a filter or test that `name` names, over the arguments. */
static int bind_inner(struct parser *p, struct node *n, enum callable_kind kind, const struct node *name,
                      struct node *arguments)
{
    struct token at = {.line = name->line, .column = name->column};
    if (name->a->kind != NODE_CONSTANT || name->a->value.kind != VALUE_STRING)
        return parser_fail(p, &at, "the %s %s needs a %s's name, as a string", "filter", n->callable->name,
                           callable_kind_name(kind));
    struct node *inner = parser_node(p, NODE_BUILTIN, &at);
    const struct string *s = name->a->value.string;
    if (find_callable(p, inner, kind, s->data, s->bytes))
        return -1;
    if (inner->callable->special)
        return parser_fail(p, &at, "the filter %s inside %s is not supported", inner->callable->name,
                           n->callable->name);
    n->b = inner;
    return bind(p, inner, callable_kind_name(kind), arguments);
}

/* map('upper'), select('equalto', 3), selectattr('role', 'equalto', 'user'): the rest belongs to the inner
 * one. */
static int bind_special(struct parser *p, struct node *n, struct node *arguments)
{
    enum callable_kind kind = n->callable->special == SPECIAL_FILTER_NAME ? CALLABLE_FILTER : CALLABLE_TEST;
    bool named = arguments && arguments->value.kind == VALUE_STRING;
    struct node *inner = arguments;
    if (n->callable->special == SPECIAL_ATTRIBUTE_TEST) {
        if (!arguments || named)
            return bind(p, n, "filter", arguments); /* says that the attribute is missing */
        inner = arguments->next;
        arguments->next = NULL;
    } else if (kind == CALLABLE_FILTER && (!arguments || named)) {
        struct token at = {.line = n->line, .column = n->column};
        return arguments ? bind(p, n, "filter", arguments)
                         : parser_fail(p, &at, "the filter map needs a filter's name or attribute=");
    } else {
        arguments = NULL;
    }
    if (bind(p, n, "filter", arguments))
        return -1;
    return inner ? bind_inner(p, n, kind, inner, inner->next) : 0;
}

static int bind_any(struct parser *p, struct node *n, enum callable_kind kind, struct node *arguments)
{
    switch (n->callable->special) {
    case SPECIAL_NONE:
        return bind(p, n, callable_kind_name(kind), arguments);
    case SPECIAL_KEYWORDS:
        n->b = arguments;
        return bind(p, n, callable_kind_name(kind), NULL);
    default:
        return bind_special(p, n, arguments);
    }
}

struct node *parse_filter(struct parser *p, struct node *subject)
{
    char found[64];
    struct token name = p->token;
    struct node *n = parser_node(p, NODE_BUILTIN, &name), *arguments = NULL;
    if (name.kind != TOKEN_NAME) {
        parser_fail(p, &name, "expected a filter's name, found %s",
                    token_describe(&name, found, sizeof(found)));
        return NULL;
    }
    if (find_callable(p, n, CALLABLE_FILTER, name.text, name.bytes) || parser_next(p) ||
        parser_adopt(p, n, &n->a, subject) || (parser_at(p, "(") && parse_arguments(p, n, &arguments)) ||
        bind_any(p, n, CALLABLE_FILTER, arguments))
        return NULL;
    return n;
}

static bool begins_argument(const struct parser *p)
{
    return (p->token.kind == TOKEN_NAME && !parser_is_keyword(&p->token)) || p->token.kind == TOKEN_STRING ||
           p->token.kind == TOKEN_NUMBER || parser_at(p, "[") || parser_at(p, "{");
}

/* x is [not] name, name(arguments) or name argument. */
struct node *parse_test(struct parser *p, struct node *subject)
{
    char found[64];
    struct token at = p->token;
    bool negated = parser_at_name(p, "not");
    if (negated && parser_next(p))
        return NULL;
    struct token name = p->token;
    struct node *n = parser_node(p, NODE_BUILTIN, &name), *arguments = NULL;
    /* `in` is a word, and a test as well. */
    if (name.kind != TOKEN_NAME || (parser_is_keyword(&name) && !parser_at_name(p, "in"))) {
        parser_fail(p, &name, "expected a test's name, found %s",
                    token_describe(&name, found, sizeof(found)));
        return NULL;
    }
    if (find_callable(p, n, CALLABLE_TEST, name.text, name.bytes) || parser_next(p) ||
        parser_adopt(p, n, &n->a, subject))
        return NULL;
    if (parser_at(p, "(")) {
        if (parse_arguments(p, n, &arguments))
            return NULL;
    } else if (begins_argument(p)) {
        arguments = parser_node(p, NODE_ARGUMENT, &p->token);
        if (parser_adopt(p, arguments, &arguments->a, parse_test_argument(p)) ||
            parser_adopt(p, n, &n->b, arguments))
            return NULL;
    }
    if (bind(p, n, "test", arguments))
        return NULL;
    if (!negated)
        return n;
    struct node *not = parser_node(p, NODE_NOT, &at);
    return parser_adopt(p, not, &not ->a, n) ? NULL : not ;
}

static struct node *call_method(struct parser *p, struct node *callee)
{
    const struct string *name = callee->value.string;
    struct node *arguments = NULL;
    struct token at = {.line = callee->line, .column = callee->column};
    struct node *n = parser_node(p, NODE_BUILTIN, &at);
    if (find_callable(p, n, CALLABLE_METHOD, name->data, name->bytes) ||
        parser_adopt(p, n, &n->a, callee->a) || parse_arguments(p, n, &arguments) ||
        bind(p, n, "method", arguments))
        return NULL;
    return n;
}

struct node *parse_call(struct parser *p, struct node *callee)
{
    if (callee->kind == NODE_ATTRIBUTE)
        return call_method(p, callee);
    if (callee->kind != NODE_NAME) {
        parser_fail(p, &p->token, "only functions, macros and methods can be called");
        return NULL;
    }
    const struct string *name = callee->value.string;
    struct token at = {.line = callee->line, .column = callee->column};
    const struct callable *function = callable_find(CALLABLE_FUNCTION, name->data, name->bytes);
    struct node *n = parser_node(p, function ? NODE_BUILTIN : NODE_CALL, &at);
    n->value = callee->value;
    if (parse_arguments(p, n, &n->b))
        return NULL;
    if (!function) {
        n->e = p->unknown_calls;
        p->unknown_calls = n;
        return n;
    }
    n->callable = function;
    return bind_any(p, n, CALLABLE_FUNCTION, n->b) ? NULL : n;
}
