/* parse_expression: tokens to nodes: the expressions, by recursive descent in jinja2's order of precedence:
 * if-else, or, and, not, comparisons, + -, ~, * / // %, **, signs, subscripts and calls, filters and tests.
 */
#include <string.h>

#include "worker/model/template/impl.h"

struct value parser_name(struct parser *p, const struct token *t)
{
    struct string *s = arena_take(p->arena, sizeof(*s));
    *s = (struct string){t->text, t->bytes, SIZE_MAX};
    return (struct value){.kind = VALUE_STRING, .string = s};
}

static struct node *unexpected(struct parser *p, const char *expected)
{
    char found[64];
    parser_fail(p, &p->token, "expected %s, found %s", expected,
                token_describe(&p->token, found, sizeof(found)));
    return NULL;
}

static struct node *constant(struct parser *p, const struct token *at, struct value v)
{
    struct node *n = parser_node(p, NODE_CONSTANT, at);
    n->value = v;
    return n;
}

static struct node *parse_name(struct parser *p)
{
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {{"true", {.kind = VALUE_BOOL, .boolean = true}},
                     {"True", {.kind = VALUE_BOOL, .boolean = true}},
                     {"false", {.kind = VALUE_BOOL}},
                     {"False", {.kind = VALUE_BOOL}},
                     {"none", {.kind = VALUE_NONE}},
                     {"None", {.kind = VALUE_NONE}}};
    static const char *const refused[] = {"self", "super", "caller", "varargs", "kwargs"};
    const struct token t = p->token;
    if (parser_is_keyword(&t))
        return unexpected(p, "an expression");
    for (size_t i = 0; i < ARRAY_LEN(constants); i++)
        if (parser_at_name(p, constants[i].name))
            return parser_next(p) ? NULL : constant(p, &t, constants[i].value);
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        if (parser_at_name(p, refused[i]) && (i < 2 || p->macros)) {
            parser_fail(p, &t, "the variable %s is not supported", refused[i]);
            return NULL;
        }
    if (t.bytes >= 2 && memcmp(t.text, "__", 2) == 0) {
        char found[64];
        parser_fail(p, &t, "the name %s is refused: it begins with __",
                    token_describe(&t, found, sizeof(found)));
        return NULL;
    }
    struct node *n = parser_node(p, NODE_NAME, &t);
    n->value = parser_name(p, &t);
    return parser_next(p) ? NULL : n;
}

/* Strings that stand beside each other are one. */
static struct node *parse_string(struct parser *p)
{
    struct token at = p->token;
    struct value v = at.value;
    if (parser_next(p))
        return NULL;
    if (p->token.kind != TOKEN_STRING)
        return constant(p, &at, v);
    struct buffer all = {0};
    buffer_append(&all, v.string->data, v.string->bytes);
    int code = 0;
    while (code == 0 && p->token.kind == TOKEN_STRING) {
        buffer_append(&all, p->token.value.string->data, p->token.value.string->bytes);
        code = parser_next(p);
    }
    char *data = arena_take(p->arena, all.size + 1);
    if (all.size)
        memcpy(data, all.data, all.size);
    at.text = data;
    at.bytes = all.size;
    buffer_release(&all);
    return code ? NULL : constant(p, &at, parser_name(p, &at));
}

/* [a, b, ]  and  {k: v, } */
static struct node *parse_collection(struct parser *p, enum node_kind kind, const char *close)
{
    struct node *n = parser_node(p, kind, &p->token), **link = &n->a;
    if (parser_enter(p, &p->token) || parser_next(p))
        return NULL;
    while (!parser_at(p, close)) {
        if (n->a && parser_expect(p, ","))
            return NULL;
        if (parser_at(p, close))
            break;
        if (parser_adopt(p, n, link, parse_expression(p, true)))
            return NULL;
        link = &(*link)->next;
        if (kind == NODE_DICT) {
            if (parser_expect(p, ":") || parser_adopt(p, n, link, parse_expression(p, true)))
                return NULL;
            link = &(*link)->next;
        }
    }
    p->depth--;
    return parser_next(p) ? NULL : n;
}

static struct node *parse_primary(struct parser *p)
{
    struct token at = p->token;
    if (at.kind == TOKEN_NAME)
        return parse_name(p);
    if (at.kind == TOKEN_STRING)
        return parse_string(p);
    if (at.kind == TOKEN_NUMBER)
        return parser_next(p) ? NULL : constant(p, &at, at.value);
    if (parser_at(p, "["))
        return parse_collection(p, NODE_LIST, "]");
    if (parser_at(p, "{"))
        return parse_collection(p, NODE_DICT, "}");
    if (!parser_at(p, "("))
        return unexpected(p, "an expression");
    if (parser_enter(p, &at) || parser_next(p))
        return NULL;
    struct node *n = parse_tuple(p, true, true);
    p->depth--;
    return n && parser_expect(p, ")") == 0 ? n : NULL;
}

/* One bound of a slice, or NONE where it is left out. */
static struct node *parse_bound(struct parser *p)
{
    if (parser_at(p, ":") || parser_at(p, "]"))
        return constant(p, &p->token, value_none());
    return parse_expression(p, true);
}

/* After the first bound, at its colon. */
static int parse_slice(struct parser *p, struct node *n, struct node *first)
{
    struct node **link = &n->b;
    n->kind = NODE_SLICE;
    if (parser_adopt(p, n, link, first) || parser_next(p))
        return -1;
    link = &(*link)->next;
    if (parser_adopt(p, n, link, parse_bound(p)))
        return -1;
    link = &(*link)->next;
    if (parser_at(p, ":") && parser_next(p))
        return -1;
    return parser_adopt(p, n, link, parse_bound(p));
}

static struct node *parse_subscript(struct parser *p, struct node *object)
{
    struct token at = p->token;
    struct node *n = parser_node(p, NODE_ITEM, &at);
    if (parser_next(p) || parser_adopt(p, n, &n->a, object))
        return NULL;
    if (*at.op == '.') {
        const struct token name = p->token;
        if (name.kind == TOKEN_NUMBER && name.value.kind == VALUE_INT) {
            n->b = constant(p, &name, name.value);
            return parser_next(p) ? NULL : n;
        }
        if (name.kind != TOKEN_NAME)
            return unexpected(p, "a name or a number after the dot");
        if (name.bytes >= 2 && memcmp(name.text, "__", 2) == 0) {
            char found[64];
            parser_fail(p, &name, "the attribute %s is refused: it begins with __",
                        token_describe(&name, found, sizeof(found)));
            return NULL;
        }
        n->kind = NODE_ATTRIBUTE;
        n->value = parser_name(p, &name);
        return parser_next(p) ? NULL : n;
    }
    if (parser_enter(p, &at))
        return NULL;
    struct node *first = parse_bound(p);
    if (!first || (parser_at(p, ":") ? parse_slice(p, n, first) : parser_adopt(p, n, &n->b, first)))
        return NULL;
    p->depth--;
    if (n->kind == NODE_ITEM && first->kind == NODE_CONSTANT && first->value.kind == VALUE_NONE &&
        first->line == p->token.line && first->column == p->token.column)
        return unexpected(p, "an index");
    return parser_expect(p, "]") ? NULL : n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    while (n) {
        if (parser_at(p, ".") || parser_at(p, "["))
            n = parse_subscript(p, n);
        else if (parser_at(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

struct node *parse_filters(struct parser *p, struct node *n, bool inside)
{
    while (n) {
        if (parser_at(p, "|"))
            n = parser_next(p) ? NULL : parse_filter(p, n);
        else if (!inside && parser_at_name(p, "is"))
            n = parser_next(p) ? NULL : parse_test(p, n);
        else if (!inside && parser_at(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

/* A test's argument that stands without parentheses. */
struct node *parse_test_argument(struct parser *p)
{
    return parse_postfix(p, parse_primary(p));
}

static struct node *parse_unary(struct parser *p, bool with_filters)
{
    struct token at = p->token;
    struct node *n;
    if (parser_at(p, "-") || parser_at(p, "+")) {
        n = parser_node(p, parser_at(p, "-") ? NODE_NEGATE : NODE_PLUS, &at);
        if (parser_enter(p, &at) || parser_next(p) || parser_adopt(p, n, &n->a, parse_unary(p, false)))
            return NULL;
        p->depth--;
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    return with_filters && n ? parse_filters(p, n, false) : n;
}

struct operator_name {
    const char *text;
    enum operation op;
};

/* The operation that stands at the token, of a list that ends with NULL; false for none. */
static bool at_operation(const struct parser *p, const struct operator_name *list, enum operation *op)
{
    for (; list->text; list++)
        if (parser_at(p, list->text)) {
            *op = list->op;
            return true;
        }
    return false;
}

/* left op right op right ..., from the left. */
static struct node *parse_binary(struct parser *p, const struct operator_name *operators,
                                 struct node *(*parse)(struct parser *p))
{
    struct node *left = parse(p);
    enum operation op;
    while (left && at_operation(p, operators, &op)) {
        struct node *n = parser_node(p, NODE_BINARY, &p->token);
        n->op = op;
        if (parser_next(p) || parser_adopt(p, n, &n->a, left) || parser_adopt(p, n, &n->b, parse(p)))
            return NULL;
        left = n;
    }
    return left;
}

static struct node *parse_operand(struct parser *p)
{
    return parse_unary(p, true);
}

static struct node *parse_power(struct parser *p)
{
    static const struct operator_name operators[] = {{"**", OP_POWER}, {NULL, 0}};
    return parse_binary(p, operators, parse_operand);
}

static struct node *parse_product(struct parser *p)
{
    static const struct operator_name operators[] = {
        {"*", OP_MULTIPLY}, {"/", OP_DIVIDE}, {"//", OP_FLOOR_DIVIDE}, {"%", OP_MODULO}, {NULL, 0}};
    return parse_binary(p, operators, parse_power);
}

static struct node *parse_concat(struct parser *p)
{
    struct token at = p->token;
    struct node *first = parse_product(p);
    if (!first || !parser_at(p, "~"))
        return first;
    struct node *n = parser_node(p, NODE_CONCAT, &at), **link = &n->a;
    if (parser_adopt(p, n, link, first))
        return NULL;
    while (parser_at(p, "~")) {
        link = &(*link)->next;
        if (parser_next(p) || parser_adopt(p, n, link, parse_product(p)))
            return NULL;
    }
    return n;
}

static struct node *parse_sum(struct parser *p)
{
    static const struct operator_name operators[] = {{"+", OP_ADD}, {"-", OP_SUBTRACT}, {NULL, 0}};
    return parse_binary(p, operators, parse_concat);
}

static bool at_comparison(const struct parser *p, enum operation *op)
{
    static const struct operator_name operators[] = {
        {"==", OP_EQ}, {"!=", OP_NE}, {"<", OP_LT}, {"<=", OP_LE}, {">", OP_GT}, {">=", OP_GE}, {NULL, 0}};
    if (at_operation(p, operators, op))
        return true;
    *op = parser_at_name(p, "in") ? OP_IN : OP_NOT_IN;
    return *op == OP_IN || (parser_at_name(p, "not") && p->ahead.kind == TOKEN_NAME && p->ahead.bytes == 2 &&
                            memcmp(p->ahead.text, "in", 2) == 0);
}

static struct node *parse_comparison(struct parser *p)
{
    struct token at = p->token;
    enum operation op;
    struct node *first = parse_sum(p);
    if (!first || !at_comparison(p, &op))
        return first;
    struct node *n = parser_node(p, NODE_COMPARE, &at), **link = &n->b;
    if (parser_adopt(p, n, &n->a, first))
        return NULL;
    for (; at_comparison(p, &op); link = &(*link)->next) {
        struct node *c = parser_node(p, NODE_COMPARISON, &p->token);
        c->op = op;
        if ((op == OP_NOT_IN && parser_next(p)) || parser_next(p) ||
            parser_adopt(p, c, &c->a, parse_sum(p)) || parser_adopt(p, n, link, c))
            return NULL;
    }
    return n;
}

static struct node *parse_not(struct parser *p)
{
    struct token at = p->token;
    if (!parser_at_name(p, "not"))
        return parse_comparison(p);
    struct node *n = parser_node(p, NODE_NOT, &at);
    if (parser_enter(p, &at) || parser_next(p) || parser_adopt(p, n, &n->a, parse_not(p)))
        return NULL;
    p->depth--;
    return n;
}

static struct node *parse_logic(struct parser *p, const char *word, enum node_kind kind,
                                struct node *(*parse)(struct parser *p))
{
    struct node *left = parse(p);
    while (left && parser_at_name(p, word)) {
        struct node *n = parser_node(p, kind, &p->token);
        if (parser_next(p) || parser_adopt(p, n, &n->a, left) || parser_adopt(p, n, &n->b, parse(p)))
            return NULL;
        left = n;
    }
    return left;
}

static struct node *parse_and(struct parser *p)
{
    return parse_logic(p, "and", NODE_AND, parse_not);
}

static struct node *parse_or(struct parser *p)
{
    return parse_logic(p, "or", NODE_OR, parse_and);
}

struct node *parse_expression(struct parser *p, bool with_conditional)
{
    struct token at = p->token;
    if (parser_enter(p, &at))
        return NULL;
    struct node *value = parse_or(p);
    while (value && with_conditional && parser_at_name(p, "if")) {
        struct node *n = parser_node(p, NODE_CONDITIONAL, &p->token);
        if (parser_next(p) || parser_adopt(p, n, &n->b, value) || parser_adopt(p, n, &n->a, parse_or(p)))
            return NULL;
        if (parser_at_name(p, "else") &&
            (parser_next(p) || parser_adopt(p, n, &n->c, parse_expression(p, true))))
            return NULL;
        value = n;
    }
    p->depth--;
    return value;
}

struct node *parse_tuple(struct parser *p, bool with_conditional, bool explicit)
{
    struct token at = p->token;
    struct node *tuple = parser_node(p, NODE_TUPLE, &at), **link = &tuple->a;
    if (explicit && parser_at(p, ")"))
        return tuple;
    struct node *item = parse_expression(p, with_conditional);
    if (!item || !parser_at(p, ","))
        return item;
    for (;;) {
        if (parser_adopt(p, tuple, link, item))
            return NULL;
        link = &item->next;
        if (!parser_at(p, ","))
            return tuple;
        if (parser_next(p))
            return NULL;
        if (p->token.kind == TOKEN_PRINT_END || p->token.kind == TOKEN_BLOCK_END || parser_at(p, ")"))
            return tuple;
        if (!(item = parse_expression(p, with_conditional)))
            return NULL;
    }
}
