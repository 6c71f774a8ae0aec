/* parse: tokens to nodes: the statements. What is on the list is parsed, everything else refused by name. */
#include "worker/model/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/template/impl.h"

struct name_list {
    struct name_list *next;
    const char *name;
    size_t bytes;
};

int parser_fail(struct parser *p, const struct token *at, const char *fmt, ...)
{
    char message[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    return err_set(p->err, "%s:%u:%u: %s", p->lexer.name, at->line, at->column, message);
}

int parser_next(struct parser *p)
{
    p->token = p->ahead;
    if (p->token.kind == TOKEN_END)
        return 0;
    return lexer_next(&p->lexer, &p->ahead);
}

bool parser_at(const struct parser *p, const char *op)
{
    return p->token.kind == TOKEN_OPERATOR && strcmp(p->token.op, op) == 0;
}

static bool token_is_name(const struct token *t, const char *name)
{
    return t->kind == TOKEN_NAME && t->bytes == strlen(name) && memcmp(t->text, name, t->bytes) == 0;
}

bool parser_at_name(const struct parser *p, const char *name)
{
    return token_is_name(&p->token, name);
}

const char *token_describe(const struct token *t, char *out, size_t bytes)
{
    switch (t->kind) {
    case TOKEN_TEXT:
        return "text";
    case TOKEN_PRINT_BEGIN:
        return "{{";
    case TOKEN_PRINT_END:
        return "}}, the end of the output";
    case TOKEN_BLOCK_BEGIN:
        return "{%";
    case TOKEN_BLOCK_END:
        return "%}, the end of the statement";
    case TOKEN_END:
        return "the end of the template";
    default: {
        int n = t->bytes > 40 ? 40 : (int)t->bytes;
        while (n > 0 && n < (int)t->bytes && ((unsigned char)t->text[n] & 0xC0) == 0x80)
            n--;
        snprintf(out, bytes, "%.*s", n, t->text);
        return out;
    }
    }
}

int parser_expect(struct parser *p, const char *op)
{
    char found[64];
    if (!parser_at(p, op))
        return parser_fail(p, &p->token, "expected %s, found %s", op,
                           token_describe(&p->token, found, sizeof(found)));
    return parser_next(p);
}

struct node *parser_node(struct parser *p, enum node_kind kind, const struct token *at)
{
    struct node *n = arena_take(p->arena, sizeof(*n));
    n->kind = kind;
    n->depth = 1;
    n->line = at->line;
    n->column = at->column;
    return n;
}

int parser_enter(struct parser *p, const struct token *at)
{
    if (++p->depth > PARSE_MAX_DEPTH)
        return parser_fail(p, at, "nested too deep: expected at most %d levels", PARSE_MAX_DEPTH);
    return 0;
}

int parser_adopt(struct parser *p, struct node *parent, struct node **slot, struct node *child)
{
    if (!child)
        return -1;
    *slot = child;
    if (child->depth >= parent->depth)
        parent->depth = (uint16_t)(child->depth + 1);
    struct token at = {.line = parent->line, .column = parent->column};
    if (parent->depth > 2 * PARSE_MAX_DEPTH)
        return parser_fail(p, &at, "this expression is too long: expected at most %d operators in a chain",
                           2 * PARSE_MAX_DEPTH);
    return 0;
}

/* Their number is bounded, which keeps this and check_calls linear. */
static int assigns(struct parser *p, const struct token *name)
{
    int count = 0;
    for (struct name_list *a = p->assigned; a; a = a->next, count++)
        if (a->bytes == name->bytes && memcmp(a->name, name->text, a->bytes) == 0)
            return 0;
    if (count == PARSE_MAX_NAMES)
        return parser_fail(p, name, "expected at most %d names that are assigned to", PARSE_MAX_NAMES);
    struct name_list *entry = arena_take(p->arena, sizeof(*entry));
    *entry = (struct name_list){p->assigned, name->text, name->bytes};
    p->assigned = entry;
    return 0;
}

bool parser_is_keyword(const struct token *t)
{
    static const char *const words[] = {"and", "or", "not", "in", "is", "if", "else", "elif"};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (token_is_name(t, words[i]))
            return true;
    return false;
}

/* ---- statements ---- */

/* A body up to {% and one of the words (NULL-terminated), which is then the current token. */
static int parse_body(struct parser *p, struct node *parent, struct node **slot, const char *const *ends);

static int expect_block_end(struct parser *p)
{
    char found[64];
    if (p->token.kind != TOKEN_BLOCK_END)
        return parser_fail(p, &p->token, "expected %%}, found %s",
                           token_describe(&p->token, found, sizeof(found)));
    return parser_next(p);
}

/* Past the word that ended a body and its %}. */
static int end_statement(struct parser *p)
{
    return parser_next(p) || expect_block_end(p) ? -1 : 0;
}

static int parse_if(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct node **link = &n->a;
    bool has_else = false;
    for (;;) {
        struct node *branch = parser_node(p, NODE_BRANCH, &p->token);
        if (parser_at_name(p, "else")) {
            has_else = true;
            if (parser_next(p))
                return -1;
        } else if (parser_next(p) || parser_adopt(p, branch, &branch->a, parse_tuple(p, false, false))) {
            return -1;
        }
        if (expect_block_end(p) || parse_body(p, branch, &branch->b, has_else ? ends + 2 : ends) ||
            parser_adopt(p, n, link, branch))
            return -1;
        link = &branch->next;
        if (parser_at_name(p, "endif"))
            return end_statement(p);
    }
}

static struct node *parse_target_name(struct parser *p)
{
    char found[64];
    const struct token t = p->token;
    if (t.kind != TOKEN_NAME || parser_is_keyword(&t)) {
        parser_fail(p, &t, "expected a name to assign to, found %s",
                    token_describe(&t, found, sizeof(found)));
        return NULL;
    }
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None", "loop"};
    for (size_t i = 0; i < ARRAY_LEN(constants); i++)
        if (token_is_name(&t, constants[i])) {
            parser_fail(p, &t, "%s cannot be assigned to", constants[i]);
            return NULL;
        }
    if (callable_find(CALLABLE_FUNCTION, t.text, t.bytes)) {
        parser_fail(p, &t, "%.*s is a function here and cannot be assigned to", (int)t.bytes, t.text);
        return NULL;
    }
    if (assigns(p, &t))
        return NULL;
    struct node *n = parser_node(p, NODE_NAME, &t);
    struct string *s = arena_take(p->arena, sizeof(*s));
    *s = (struct string){t.text, t.bytes, SIZE_MAX};
    n->value = (struct value){.kind = VALUE_STRING, .string = s};
    return parser_next(p) ? NULL : n;
}

/* x   or   x, y   or   (x, y), as deep as the brackets allow. */
static struct node *parse_target(struct parser *p);

static struct node *parse_target_item(struct parser *p)
{
    if (!parser_at(p, "("))
        return parse_target_name(p);
    if (parser_enter(p, &p->token) || parser_next(p))
        return NULL;
    struct node *n = parse_target(p);
    p->depth--;
    return n && parser_expect(p, ")") == 0 ? n : NULL;
}

static struct node *parse_target(struct parser *p)
{
    struct token at = p->token;
    struct node *first = parse_target_item(p);
    if (!first || !parser_at(p, ","))
        return first;
    struct node *tuple = parser_node(p, NODE_TUPLE, &at), **link = &tuple->a, *item = first;
    for (;;) {
        if (parser_adopt(p, tuple, link, item))
            return NULL;
        link = &item->next;
        if (!parser_at(p, ","))
            return tuple;
        if (parser_next(p))
            return NULL;
        if (p->token.kind != TOKEN_NAME && !parser_at(p, "("))
            return tuple;
        if (parser_at_name(p, "in"))
            return tuple;
        if (!(item = parse_target_item(p)))
            return NULL;
    }
}

static int parse_for(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    char found[64];
    if (parser_next(p) || parser_adopt(p, n, &n->a, parse_target(p)))
        return -1;
    if (!parser_at_name(p, "in"))
        return parser_fail(p, &p->token, "expected in, found %s",
                           token_describe(&p->token, found, sizeof(found)));
    if (parser_next(p) || parser_adopt(p, n, &n->b, parse_tuple(p, false, false)))
        return -1;
    if (parser_at_name(p, "if") && (parser_next(p) || parser_adopt(p, n, &n->e, parse_expression(p, true))))
        return -1;
    if (parser_at_name(p, "recursive"))
        return parser_fail(p, &p->token, "recursive loops are not supported");
    if (expect_block_end(p))
        return -1;
    p->loops++;
    int code = parse_body(p, n, &n->c, ends);
    p->loops--;
    if (code)
        return -1;
    if (parser_at_name(p, "else") && (parser_next(p) || expect_block_end(p) || parse_body(p, n, &n->d, last)))
        return -1;
    return end_statement(p);
}

/* namespace.attribute, or a target. */
static struct node *parse_set_target(struct parser *p)
{
    char found[64];
    struct token at = p->token;
    if (!(p->ahead.kind == TOKEN_OPERATOR && strcmp(p->ahead.op, ".") == 0))
        return parse_target(p);
    struct node *object = parse_target_name(p);
    if (!object || parser_next(p))
        return NULL;
    struct node *n = parser_node(p, NODE_ATTRIBUTE, &at);
    n->a = object;
    if (p->token.kind != TOKEN_NAME) {
        parser_fail(p, &p->token, "expected a name after the dot, found %s",
                    token_describe(&p->token, found, sizeof(found)));
        return NULL;
    }
    struct string *s = arena_take(p->arena, sizeof(*s));
    *s = (struct string){p->token.text, p->token.bytes, SIZE_MAX};
    n->value = (struct value){.kind = VALUE_STRING, .string = s};
    return parser_next(p) ? NULL : n;
}

/* {% set x = ... %}, or {% set x %}...{% endset %}. */
static int parse_set(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"endset", NULL};
    if (parser_next(p) || parser_adopt(p, n, &n->a, parse_set_target(p)))
        return -1;
    if (parser_at(p, "=")) {
        if (parser_next(p) || parser_adopt(p, n, &n->b, parse_tuple(p, true, false)))
            return -1;
        return expect_block_end(p);
    }
    n->kind = NODE_BLOCK_SET;
    if (n->a->kind == NODE_TUPLE)
        return parser_fail(p, &p->token, "expected = after several names");
    if (parser_at(p, "|") &&
        parser_adopt(p, n, &n->c, parse_filters(p, parser_node(p, NODE_CAPTURED, &p->token), true)))
        return -1;
    int loops = p->loops;
    p->loops = 0; /* a loop cannot be left from inside a block that is captured */
    int code = expect_block_end(p) || parse_body(p, n, &n->b, ends) ? -1 : end_statement(p);
    p->loops = loops;
    return code;
}

/* name, name = default, ... ) */
static int parse_parameters(struct parser *p, struct node *n)
{
    struct node **link = &n->a;
    bool defaults = false;
    if (parser_expect(p, "("))
        return -1;
    while (!parser_at(p, ")")) {
        if (n->a && parser_expect(p, ","))
            return -1;
        struct node *parameter = parse_target_name(p);
        if (!parameter)
            return -1;
        for (const struct node *other = n->a; other; other = other->next)
            if (string_same(other->value.string, parameter->value.string)) {
                struct token at = {.line = parameter->line, .column = parameter->column};
                return parser_fail(p, &at, "the macro has this parameter twice");
            }
        if (parser_at(p, "=")) {
            defaults = true;
            if (parser_next(p) || parser_adopt(p, parameter, &parameter->a, parse_expression(p, true)))
                return -1;
        } else if (defaults) {
            return parser_fail(p, &p->token, "expected = : the parameters before have defaults");
        }
        if (n->arg_count++ == 64)
            return parser_fail(p, &p->token, "the macro has more than 64 parameters");
        if (parser_adopt(p, n, link, parameter))
            return -1;
        link = &parameter->next;
    }
    return parser_next(p);
}

static int parse_macro(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"endmacro", NULL};
    int loops = p->loops;
    if (parser_next(p))
        return -1;
    struct node *name = parse_target_name(p);
    if (!name || parse_parameters(p, n))
        return -1;
    n->value = name->value;
    p->macros++;
    p->loops = 0;
    int code = expect_block_end(p) || parse_body(p, n, &n->b, ends) ? -1 : 0;
    p->macros--;
    p->loops = loops;
    if (code || parser_next(p))
        return -1;
    if (p->token.kind == TOKEN_NAME && parser_next(p)) /* {% endmacro name %} */
        return -1;
    return expect_block_end(p);
}

static int parse_generation(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"endgeneration", NULL};
    int loops = p->loops;
    p->loops = 0;
    int code = parser_next(p) || expect_block_end(p) || parse_body(p, n, &n->a, ends) ? -1 : end_statement(p);
    p->loops = loops;
    return code;
}

static int parse_loop_control(struct parser *p, struct node *n)
{
    if (p->loops == 0)
        return parser_fail(p, &p->token, "%s stands in no loop",
                           n->kind == NODE_BREAK ? "break" : "continue");
    return parser_next(p) || expect_block_end(p) ? -1 : 0;
}

static const struct {
    const char *word;
    enum node_kind kind;
    int (*parse)(struct parser *p, struct node *n);
} statements[] = {
    {"if", NODE_IF, parse_if},
    {"for", NODE_FOR, parse_for},
    {"set", NODE_SET, parse_set},
    {"macro", NODE_MACRO, parse_macro},
    {"generation", NODE_SCOPE, parse_generation},
    {"break", NODE_BREAK, parse_loop_control},
    {"continue", NODE_CONTINUE, parse_loop_control},
};

/* From the word after {% on; returns past the %}. */
static struct node *parse_statement(struct parser *p)
{
    char found[64];
    struct token at = p->token;
    for (size_t i = 0; i < ARRAY_LEN(statements); i++)
        if (parser_at_name(p, statements[i].word)) {
            struct node *n = parser_node(p, statements[i].kind, &at);
            if (parser_enter(p, &at) || statements[i].parse(p, n))
                return NULL;
            p->depth--;
            return n;
        }
    if (at.kind != TOKEN_NAME)
        parser_fail(p, &at, "expected a statement, found %s", token_describe(&at, found, sizeof(found)));
    else if (at.bytes > 3 && memcmp(at.text, "end", 3) == 0)
        parser_fail(p, &at, "unexpected %s: nothing it could end is open",
                    token_describe(&at, found, sizeof(found)));
    else
        parser_fail(p, &at, "the statement %s is not supported", token_describe(&at, found, sizeof(found)));
    return NULL;
}

static struct node *parse_print(struct parser *p)
{
    char found[64];
    struct node *n = parser_node(p, NODE_PRINT, &p->token);
    if (parser_next(p) || parser_adopt(p, n, &n->a, parse_tuple(p, true, false)))
        return NULL;
    if (p->token.kind != TOKEN_PRINT_END) {
        parser_fail(p, &p->token, "expected }}, found %s", token_describe(&p->token, found, sizeof(found)));
        return NULL;
    }
    return parser_next(p) ? NULL : n;
}

static bool at_any(const struct parser *p, const char *const *words)
{
    for (; words && *words; words++)
        if (parser_at_name(p, *words))
            return true;
    return false;
}

static int parse_body(struct parser *p, struct node *parent, struct node **slot, const char *const *ends)
{
    for (struct node **link = slot, *n;; link = &n->next) {
        switch (p->token.kind) {
        case TOKEN_TEXT:
            n = parser_node(p, NODE_TEXT, &p->token);
            n->value = p->token.value;
            if (parser_next(p))
                return -1;
            break;
        case TOKEN_PRINT_BEGIN:
            n = parse_print(p);
            break;
        case TOKEN_BLOCK_BEGIN:
            if (parser_next(p))
                return -1;
            if (at_any(p, ends))
                return 0;
            n = parse_statement(p);
            break;
        default: {
            ASSERT(p->token.kind == TOKEN_END);
            size_t last = 0;
            while (ends && ends[last + 1])
                last++;
            return ends ? parser_fail(p, &p->token, "the template ends: expected {%% %s %%} for line %u",
                                      ends[last], parent->line)
                        : 0;
        }
        }
        if (parser_adopt(p, parent, link, n))
            return -1;
    }
}

/* A name that is called must be a macro, so it must be assigned somewhere. */
static int check_calls(struct parser *p)
{
    for (const struct node *n = p->unknown_calls; n; n = n->e) {
        const struct string *name = n->value.string;
        bool known = false;
        for (const struct name_list *a = p->assigned; a && !known; a = a->next)
            known = a->bytes == name->bytes && memcmp(a->name, name->data, a->bytes) == 0;
        struct token at = {.line = n->line, .column = n->column};
        if (!known)
            return parser_fail(p, &at, "the function %.*s is not supported", (int)name->bytes, name->data);
    }
    return 0;
}

int template_parse(struct template **out, const char *source, size_t bytes, const char *name, struct err *err)
{
    struct template *t = xcalloc(1, sizeof(*t));
    struct parser p = {.arena = &t->arena, .err = err};
    struct node root = {.depth = 1, .line = 1};
    t->name = xstrdup(name);
    *out = NULL;
    if (lexer_open(&p.lexer, &t->arena, source, bytes, t->name, err) || lexer_next(&p.lexer, &p.ahead) ||
        parser_next(&p) || parse_body(&p, &root, &root.a, NULL) || check_calls(&p)) {
        template_free(&t);
        return -1;
    }
    t->body = root.a;
    *out = t;
    return 0;
}

void template_free(struct template **t)
{
    if (!t || !*t)
        return;
    arena_release(&(*t)->arena);
    free((*t)->name);
    free(*t);
    *t = NULL;
}
