/* impl: what the files of the template interpreter share: memory, values, the syntax tree, the state of one
 * rendering. Nothing outside worker/model/template/ and template.c may include it, but their tests and
 * fuzzer.
 *
 *   source --lex.c--> tokens --parse_*.c--> nodes --exec.c, eval.c--> text
 *   ops.c        what operators and subscripts do to values
 *   text.c       values as text: str(), repr(), JSON
 *   builtin.c    the list of what may be called, and how arguments find their parameters
 *   filters.c, sequences.c, strings.c, predicates.c    what is on that list
 *
 * Semantics are Python's, for that is what templates were tested with: integers floor-divide, `and` gives an
 * operand, a dict keeps its order, a filter such as `map` gives an iterator that can be walked once. Strings
 * are valid UTF-8, counted in characters. Values are made in an arena that dies with the rendering: nothing
 * is ever freed alone, which is why a bound on the arena bounds everything. */
#ifndef LEPTON_WORKER_MODEL_TEMPLATE_IMPL_H
#define LEPTON_WORKER_MODEL_TEMPLATE_IMPL_H

#include <locale.h>

#include "worker/model/template.h"

/* ---- memory ---- */

struct arena {
    struct arena_chunk *chunks;
    size_t used, limit; /* bytes handed out; 0 = no limit */
};
void *arena_take(struct arena *a, size_t bytes); /* zeroed; NULL when over the limit */
void arena_release(struct arena *a);

/* ---- values ---- */

enum value_kind {
    VALUE_ABSENT, /* an argument that was not given; never seen by a template */
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_RANGE,
    VALUE_VIEW,     /* dict.keys(), .values(), .items() */
    VALUE_ITERATOR, /* of filters: walked once */
    VALUE_DICT,
    VALUE_NAMESPACE,
    VALUE_LOOP,
    VALUE_MACRO,
    VALUE_FUNCTION, /* a global function that is not called: `strftime_now is defined` */
    VALUE_METHOD,   /* a method that is not called: true, and nothing else */
};

struct value {
    enum value_kind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        struct string *string;
        struct list *list; /* LIST, TUPLE, RANGE, VIEW, ITERATOR */
        struct dict *dict; /* DICT, NAMESPACE */
        struct loop *loop;
        struct macro *macro;
        struct undefined *undefined;
    };
};

struct string {
    const char *data; /* not terminated */
    size_t bytes;
    size_t chars; /* SIZE_MAX: not counted yet */
};

struct list {
    struct value *items;
    size_t count, capacity;
    size_t next;       /* ITERATOR: what was walked already */
    const char *label; /* VIEW: "dict_keys" */
    int64_t range[3];  /* RANGE: start, stop, step */
};

struct entry {
    struct value key, value;
};
struct dict { /* in the order of insertion; looked up linearly: they are small, and steps are charged */
    struct entry *entries;
    size_t count, capacity;
};

struct undefined {    /* how the message names it */
    const char *of;   /* NULL: a variable; else the type of the object: "dict object" */
    struct value key; /* the name; ABSENT: `of` is the whole message */
};

struct loop {
    const struct value *items;
    size_t count, index;
    int64_t depth;
};

static inline struct value value_none(void)
{
    return (struct value){.kind = VALUE_NONE};
}
static inline struct value value_bool(bool b)
{
    return (struct value){.kind = VALUE_BOOL, .boolean = b};
}
static inline struct value value_int(int64_t i)
{
    return (struct value){.kind = VALUE_INT, .integer = i};
}
static inline struct value value_float(double d)
{
    return (struct value){.kind = VALUE_FLOAT, .real = d};
}
static inline bool string_is(const struct string *s, const char *text)
{
    size_t n = __builtin_strlen(text);
    return s->bytes == n && __builtin_memcmp(s->data, text, n) == 0;
}
static inline bool string_same(const struct string *a, const struct string *b)
{
    return a->bytes == b->bytes && __builtin_memcmp(a->data, b->data, a->bytes) == 0;
}

/* ---- tokens ---- */

enum token_kind {
    TOKEN_TEXT,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_NUMBER,
    TOKEN_OPERATOR,
    TOKEN_END,
};

struct token {
    enum token_kind kind;
    uint32_t line, column;
    const char *text; /* as it stands in the source */
    size_t bytes;
    struct value value; /* TEXT, STRING, NUMBER */
    char op[3];         /* OPERATOR */
};

#define LEX_MAX_BRACKETS 64

struct lexer {
    const char *source;
    size_t size, offset;
    const char *name;
    struct arena *arena;
    struct err *err;
    enum token_kind inside; /* PRINT_BEGIN, BLOCK_BEGIN, or TEXT when in none */
    bool line_starting;     /* what comes next begins a line */
    bool skip_newline;
    char brackets[LEX_MAX_BRACKETS]; /* the closing ones that are awaited */
    int bracket_count;
    size_t placed; /* line and column are counted up to here */
    uint32_t line, column;
    size_t pending; /* 0, or where the tag that ended the last text begins, plus 1 */
};

/* Takes the source as jinja2 does: line ends become \n, and one at the very end is dropped. */
int lexer_open(struct lexer *l, struct arena *arena, const char *source, size_t bytes, const char *name,
               struct err *err);
int lexer_next(struct lexer *l, struct token *out);

/* ---- the syntax tree ---- */

enum node_kind {
    /* expressions */
    NODE_CONSTANT,
    NODE_NAME,
    NODE_LIST, /* a = the items */
    NODE_TUPLE,
    NODE_DICT,      /* a = key, value, key, value, ... */
    NODE_ATTRIBUTE, /* a . value */
    NODE_ITEM,      /* a [b] */
    NODE_SLICE,     /* a [b], b = start, stop, step: NONE where absent */
    NODE_CALL,      /* the function or macro `value`; b = ARGUMENTs */
    NODE_BUILTIN,   /* callable over a and args: filter, test, method, global function */
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY, /* a op b */
    NODE_AND,
    NODE_OR,
    NODE_CONCAT,      /* a = the operands */
    NODE_COMPARE,     /* a, then b = COMPARISONs */
    NODE_COMPARISON,  /* op a */
    NODE_CONDITIONAL, /* b if a else c; c may be NULL */
    NODE_ARGUMENT,    /* a; its name in value, or ABSENT */
    /* statements */
    NODE_TEXT,
    NODE_PRINT,
    NODE_IF,        /* a = BRANCHes */
    NODE_BRANCH,    /* a = condition or NULL (else), b = body */
    NODE_FOR,       /* a = target, b = iterable, c = body, d = else body, e = filter or NULL */
    NODE_SET,       /* a = target, b = value */
    NODE_BLOCK_SET, /* a = target, b = body, c = filter over NODE_CAPTURED or NULL */
    NODE_CAPTURED,
    NODE_MACRO, /* its name in value, a = parameters, b = body */
    NODE_SCOPE, /* a = body: {% generation %} */
    NODE_BREAK,
    NODE_CONTINUE,
};

enum operation {
    OP_ADD,
    OP_SUBTRACT,
    OP_MULTIPLY,
    OP_DIVIDE,
    OP_FLOOR_DIVIDE,
    OP_MODULO,
    OP_POWER,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
};

struct node {
    enum node_kind kind;
    enum operation op;
    uint16_t depth; /* of the tree below: what evaluation may have to nest */
    uint16_t arg_count;
    uint32_t line, column;
    struct node *next; /* in a list */
    struct node *a, *b, *c, *d, *e;
    struct node **args;              /* BUILTIN: one for each parameter, NULL = absent */
    const struct callable *callable; /* BUILTIN */
    struct value value;
};

struct macro {
    const struct node *node;
    struct scope *scope; /* where it was defined */
};

#define PARSE_MAX_DEPTH 100 /* statements and brackets inside each other, and operators in a chain */

#define PARSE_MAX_NAMES 1000

struct template
{
    struct arena arena;
    char *name;
    struct node *body;
};

struct parser {
    struct lexer lexer;
    struct token token, ahead;
    struct arena *arena;
    struct err *err;
    int depth;
    int loops;                  /* around us, for break and continue */
    int macros;                 /* around us */
    struct node *unknown_calls; /* calls of names that are no builtin, to be checked at the end */
    struct name_list *assigned; /* every name that is assigned anywhere */
};

/* parse.c */
int parser_fail(struct parser *p, const struct token *at, const char *fmt, ...) PRINTF_LIKE(3, 4);
int parser_next(struct parser *p);
bool parser_at(const struct parser *p, const char *op);        /* the token is this operator */
bool parser_at_name(const struct parser *p, const char *name); /* the token is this word */
int parser_expect(struct parser *p, const char *op);
struct node *parser_node(struct parser *p, enum node_kind kind, const struct token *at);
int parser_enter(struct parser *p, const struct token *at);
/* Links `child` below `parent` through *slot. Fails when the tree becomes too deep. */
int parser_adopt(struct parser *p, struct node *parent, struct node **slot, struct node *child);
bool parser_is_keyword(const struct token *t);
/* Says what stands at the token, for messages; a static text or the token's own, quoted, in `out`. */
const char *token_describe(const struct token *t, char *out, size_t bytes);

/* parse_expression.c */
struct node *parse_expression(struct parser *p, bool with_conditional);
/* Expressions with commas between are a tuple; `explicit`: parentheses stand around. */
struct node *parse_tuple(struct parser *p, bool with_conditional, bool explicit);
struct node *parse_filters(struct parser *p, struct node *subject, bool inside);

struct node *parse_test_argument(struct parser *p);

/* parse_call.c: each begins at the token after the operator: the parenthesis, the name. */
struct node *parse_call(struct parser *p, struct node *callee);
struct node *parse_filter(struct parser *p, struct node *subject);
struct node *parse_test(struct parser *p, struct node *subject);
/* Copies the token's text, which must be a name. */
struct value parser_name(struct parser *p, const struct token *t);

/* ---- rendering ---- */

struct binding {
    const struct string *name;
    struct value value;
    struct binding *next;
};
struct scope {
    struct scope *parent;
    struct binding *bindings;
};

#define RENDER_MAX_DEPTH 400 /* expressions, statements and macros inside each other */
#define VALUE_MAX_DEPTH  100 /* lists and dicts inside each other, where they are walked */

struct render {
    const struct template *template;
    struct arena arena;
    uint64_t steps, max_steps;
    size_t max_output_bytes;
    int depth;
    struct buffer output;
    struct value captured; /* of the block set whose filter runs */
    const struct node *at; /* for messages */
    struct err *err;
    bool failed;
    int64_t now;
    int64_t loop_depth;
    struct scope *scope; /* of the builtin that runs */
    locale_t locale;     /* upper and lower case; made when first needed */
};

int render_fail(struct render *r, const char *fmt, ...) PRINTF_LIKE(2, 3); /* keeps the first failure */
int render_charge(struct render *r, uint64_t steps);
locale_t render_locale(struct render *r);
void *render_take(struct render *r, size_t bytes); /* NULL: failed */
int render_enter(struct render *r);                /* one level deeper; undone by r->depth-- */

/* exec.c */
enum flow { FLOW_FAILED = -1, FLOW_ON = 0, FLOW_BREAK, FLOW_CONTINUE };
enum flow exec_body(struct render *r, struct scope *s, const struct node *body);
int macro_call(struct render *r, struct scope *s, const struct macro *m, const struct node *arguments,
               struct value *out);
struct value *scope_find(struct render *r, struct scope *s, const struct string *name);
int scope_set(struct render *r, struct scope *s, const struct string *name, struct value v);
/* eval.c */
int eval(struct render *r, struct scope *s, const struct node *n, struct value *out);

/* Text under construction. After a failure nothing more is put; text_value then returns -1. */
struct text {
    struct render *r;
    char *data;
    size_t bytes, capacity;
};
void text_reserve(struct text *t, size_t bytes); /* for so many in all */
void text_put(struct text *t, const char *data, size_t bytes);
void text_puts(struct text *t, const char *s);
void text_put_code_point(struct text *t, uint32_t c);
int text_value(struct text *t, struct value *out);

/* ---- text.c: values as text ---- */
int text_str(struct text *t, const struct value *v);  /* as {{ v }} prints it */
int text_repr(struct text *t, const struct value *v); /* as it stands inside a list */
struct json_style {
    bool ascii, sort_keys;
    const char *indent; /* NULL = one line */
    size_t indent_bytes;
    struct string comma, colon;
};
int text_json(struct text *t, const struct value *v, const struct json_style *style, int level);
int value_to_string(struct render *r, const struct value *v, struct value *out); /* str() */
const char *value_type(const struct value *v);   /* Python's name: "str", "dict" */
const char *value_object(const struct value *v); /* as messages name it: "str object", "None" */

/* ---- strings.c: characters ---- */
size_t text_decode(const char *s, size_t left, uint32_t *c); /* bytes of the character; s is valid UTF-8 */
size_t text_encode(uint32_t c, char out[4]);
bool text_is_space(uint32_t c);                         /* str.isspace */
size_t text_skip_space(const char *s, size_t bytes);    /* bytes of white space at the beginning */
size_t text_without_space(const char *s, size_t bytes); /* bytes without white space at the end */
size_t string_chars(struct string *s);
int string_new(struct render *r, const char *data, size_t bytes, struct value *out); /* copies */
int string_borrow(struct render *r, const char *data, size_t bytes, struct value *out);
/* The characters [from, to) */
int string_slice(struct render *r, struct string *s, size_t from, size_t to, struct value *out);

/* ---- ops.c ---- */
bool value_true(const struct value *v);
int value_equal(struct render *r, const struct value *a, const struct value *b, bool *out);
int value_less(struct render *r, const struct value *a, const struct value *b, bool *out);
int value_in(struct render *r, const struct value *item, const struct value *in, bool *out);
int value_binary(struct render *r, enum operation op, const struct value *a, const struct value *b,
                 struct value *out);
int value_compare(struct render *r, enum operation op, const struct value *a, const struct value *b,
                  bool *out);
int value_length(struct render *r, const struct value *v, size_t *out);
bool value_number(const struct value *v, double *out);   /* bool, int, float */
bool value_integer(const struct value *v, int64_t *out); /* bool, int */
int value_undefined_error(struct render *r, const struct value *v);

/* ---- access.c ---- */
int value_attribute(struct render *r, const struct value *v, const struct value *name, struct value *out);
int value_item(struct render *r, const struct value *v, const struct value *key, struct value *out);
int value_slice(struct render *r, const struct value *v, const struct value bounds[3], struct value *out);
int value_undefined(struct render *r, const char *of, const struct value *key, struct value *out);
/* The elements in *items, borrowed where possible. Walks an iterator to its end. */
int value_iterate(struct render *r, const struct value *v, struct list *items);
int list_new(struct render *r, enum value_kind kind, size_t capacity, struct value *out);
int list_push(struct render *r, struct list *l, struct value v);
int dict_new(struct render *r, enum value_kind kind, struct value *out);
int dict_find(struct render *r, const struct dict *d, const struct value *key, struct value **out);
int dict_set(struct render *r, struct dict *d, struct value key, struct value v);
struct value *dict_find_name(const struct dict *d, const char *name, size_t bytes);

/* ---- builtin.c ---- */
#define CALLABLE_MAX_PARAMETERS 6

struct callable {
    const char *name;
    int (*call)(struct render *r, const struct node *n, struct value *args, struct value *out);
    uint8_t required, most; /* besides the subject, which is args[0] of filters, tests and methods */
    const char *parameters[CALLABLE_MAX_PARAMETERS];
    uint8_t special;
};
enum {
    SPECIAL_NONE,
    SPECIAL_FILTER_NAME,    /* map: a filter's name and its arguments, or attribute= and default= */
    SPECIAL_TEST_NAME,      /* select, reject: a test's name and its arguments */
    SPECIAL_ATTRIBUTE_TEST, /* selectattr, rejectattr: an attribute, then as SPECIAL_TEST_NAME */
    SPECIAL_KEYWORDS,       /* namespace, dict: any keywords; takes its node's ARGUMENTs */
};
enum callable_kind { CALLABLE_FILTER, CALLABLE_TEST, CALLABLE_METHOD, CALLABLE_FUNCTION };
const struct callable *callable_find(enum callable_kind kind, const char *name, size_t bytes);
const char *callable_kind_name(enum callable_kind kind);
/* True when this type has a Python method of this name, callable here or not. */
bool method_exists(const struct value *v, const struct string *name);

/* The arguments of a NODE_BUILTIN into args[1...]. */
int builtin_arguments(struct render *r, struct scope *s, const struct node *n, struct value *args);
/* Runs a NODE_BUILTIN over a subject; its other arguments are evaluated in *s. */
int builtin_call(struct render *r, struct scope *s, const struct node *n, const struct value *subject,
                 struct value *out);

extern const struct callable template_filters[], template_sequence_filters[], template_tests[],
    template_methods[], template_functions[];

#endif
