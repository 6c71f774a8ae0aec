/* lex: source to tokens, one pass. White space is controlled here, as jinja2 does it with trim_blocks and
 * lstrip_blocks: a line end right after a statement or comment is dropped, blanks between the start of a line
 * and a statement or comment too; - beside a tag drops all white space on that side, + keeps it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/template/impl.h"

int lexer_open(struct lexer *l, struct arena *arena, const char *source, size_t bytes, const char *name,
               struct err *err)
{
    *l =
        (struct lexer){.name = name, .arena = arena, .err = err, .inside = TOKEN_TEXT, .line_starting = true};
    l->line = l->column = 1;
    if (bytes > TEMPLATE_MAX_BYTES)
        return err_set(err, "%s: %zu bytes, expected a template of at most %u", name, bytes,
                       TEMPLATE_MAX_BYTES);
    if (!utf8_valid(source, bytes))
        return err_set(err, "%s: not valid UTF-8", name);
    char *copy = arena_take(arena, bytes + 1);
    for (size_t i = 0; i < bytes; i++) {
        bool pair = source[i] == '\r' && i + 1 < bytes && source[i + 1] == '\n';
        if (!pair)
            copy[l->size++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (l->size && copy[l->size - 1] == '\n')
        l->size--;
    l->source = copy;
    return 0;
}

/* Counts lines and columns (in characters) up to an offset; offsets only grow. */
static void place(struct lexer *l, size_t offset, struct token *t)
{
    for (; l->placed < offset; l->placed++) {
        if (l->source[l->placed] == '\n') {
            l->line++;
            l->column = 1;
        } else {
            l->column += ((unsigned char)l->source[l->placed] & 0xC0) != 0x80;
        }
    }
    t->line = l->line;
    t->column = l->column;
}

static int fail(struct lexer *l, const struct token *at, const char *message)
{
    return err_set(l->err, "%s:%u:%u: %s", l->name, at->line, at->column, message);
}

static char peek(const struct lexer *l, size_t ahead)
{
    return l->offset + ahead < l->size ? l->source[l->offset + ahead] : '\0';
}

static bool looking_at(const struct lexer *l, const char *text)
{
    size_t n = strlen(text);
    return l->size - l->offset >= n && memcmp(l->source + l->offset, text, n) == 0;
}

static struct string *borrow(struct lexer *l, const char *data, size_t bytes)
{
    struct string *s = arena_take(l->arena, sizeof(*s));
    *s = (struct string){data, bytes, SIZE_MAX};
    return s;
}

/* Steps over the end of a tag, `sign` included, and the white space that goes with it. */
static void end_tag(struct lexer *l, char sign, bool trims_newline)
{
    l->offset += sign ? 3 : 2;
    if (sign == '-')
        l->offset += text_skip_space(l->source + l->offset, l->size - l->offset);
    else if (!sign && trims_newline && peek(l, 0) == '\n')
        l->offset++;
    l->line_starting = l->source[l->offset - 1] == '\n';
    l->inside = TOKEN_TEXT;
}

/* From the {# on. */
static int skip_comment(struct lexer *l, const struct token *at)
{
    l->offset += 2;
    if (peek(l, 0) == '-' || peek(l, 0) == '+')
        l->offset++;
    const char *begin = l->source + l->offset, *end = memmem(begin, l->size - l->offset, "#}", 2);
    if (!end)
        return fail(l, at, "this comment does not end: expected #}");
    char sign = end > begin && (end[-1] == '-' || end[-1] == '+') ? end[-1] : '\0';
    l->offset = (size_t)(end - l->source) - (sign != 0);
    end_tag(l, sign, true);
    return 0;
}

/* The bytes of text in front of a tag that stay. */
static size_t text_before(const struct lexer *l, size_t begin, size_t tag)
{
    const char *text = l->source + begin;
    size_t bytes = tag - begin, line = bytes;
    char sign = tag + 2 < l->size ? l->source[tag + 2] : '\0';
    if (sign == '-')
        return text_without_space(text, bytes);
    if (sign == '+' || l->source[tag + 1] == '{')
        return bytes;
    while (line > 0 && text[line - 1] != '\n')
        line--;
    if ((line > 0 || l->line_starting) && text_skip_space(text + line, bytes - line) == bytes - line)
        return line;
    return bytes;
}

static size_t find_tag(const struct lexer *l)
{
    for (size_t i = l->offset; i + 1 < l->size; i++)
        if (l->source[i] == '{' &&
            (l->source[i + 1] == '{' || l->source[i + 1] == '%' || l->source[i + 1] == '#'))
            return i;
    return l->size;
}

static int begin_tag(struct lexer *l, struct token *out)
{
    place(l, l->offset, out);
    out->text = l->source + l->offset;
    out->bytes = 2;
    out->kind = l->inside = out->text[1] == '{' ? TOKEN_PRINT_BEGIN : TOKEN_BLOCK_BEGIN;
    l->offset += 2;
    if (peek(l, 0) == '-' || peek(l, 0) == '+')
        l->offset++;
    l->bracket_count = 0;
    return 0;
}

/* Outside of tags: a text, or the beginning of a tag. */
static int next_outside(struct lexer *l, struct token *out)
{
    while (l->offset < l->size) {
        if (l->pending == l->offset + 1) {
            l->pending = 0;
            if (l->source[l->offset + 1] != '#')
                return begin_tag(l, out);
            place(l, l->offset, out);
            if (skip_comment(l, out))
                return -1;
            continue;
        }
        size_t begin = l->offset, tag = find_tag(l);
        size_t bytes = tag < l->size ? text_before(l, begin, tag) : tag - begin;
        l->offset = tag;
        l->pending = tag < l->size ? tag + 1 : 0;
        if (bytes == 0)
            continue;
        place(l, begin, out);
        out->kind = TOKEN_TEXT;
        out->text = l->source + begin;
        out->bytes = bytes;
        out->value = (struct value){.kind = VALUE_STRING, .string = borrow(l, out->text, bytes)};
        return 0;
    }
    place(l, l->size, out);
    out->kind = TOKEN_END;
    return 0;
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 32) >= 'a' && (c | 32) <= 'f')
        return (c | 32) - 'a' + 10;
    return 99;
}

/* Hexadecimal digits of \x, \u and \U, or up to three octal ones. */
static int code_escape(struct lexer *l, struct token *at, const char **s, const char *end, char **out)
{
    char kind = **s;
    int digits = kind == 'x'   ? 2
                 : kind == 'u' ? 4
                 : kind == 'U' ? 8
                               : 3,
        base = kind >= '0' && kind <= '7' ? 8 : 16;
    const char *p = *s + (base == 16);
    uint32_t c = 0;
    int n = 0;
    for (; n < digits && p < end && digit_value(*p) < base; n++)
        c = c * (uint32_t)base + (uint32_t)digit_value(*p++);
    if (base == 16 && n < digits)
        return fail(l, at, "an escape of this string is cut short");
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        return fail(l, at, "an escape of this string is no character");
    *out += text_encode(c, *out);
    *s = p;
    return 0;
}

/* What stands between the quotes, with Python's escapes; never longer than in the source. */
static int unescape(struct lexer *l, struct token *t, const char *s, const char *end)
{
    static const char letters[] = "abfnrtv\\'\"", meant[] = "\a\b\f\n\r\t\v\\'\"";
    if (!memchr(s, '\\', (size_t)(end - s))) {
        t->value = (struct value){.kind = VALUE_STRING, .string = borrow(l, s, (size_t)(end - s))};
        return 0;
    }
    char *data = arena_take(l->arena, (size_t)(end - s) + 4), *out = data;
    while (s < end) {
        const char *letter;
        if (*s != '\\') {
            *out++ = *s++;
        } else if (s[1] == '\n') {
            s += 2;
        } else if (s[1] && (letter = strchr(letters, s[1]))) {
            *out++ = meant[letter - letters];
            s += 2;
        } else if (s[1] && strchr("xuU01234567", s[1])) {
            s++;
            if (code_escape(l, t, &s, end, &out))
                return -1;
        } else if (s[1] == 'N') {
            return fail(l, t, "\\N{...} in a string is not supported");
        } else {
            *out++ = *s++;
            *out++ = *s++;
        }
    }
    t->value = (struct value){.kind = VALUE_STRING, .string = borrow(l, data, (size_t)(out - data))};
    return 0;
}

static int lex_string(struct lexer *l, struct token *out)
{
    const char *begin = l->source + l->offset, *end = l->source + l->size, *p = begin + 1;
    while (p < end && *p != *begin)
        p += *p == '\\' && p + 1 < end ? 2 : 1;
    if (p >= end)
        return fail(l, out, "this string does not end");
    out->kind = TOKEN_STRING;
    out->bytes = (size_t)(p + 1 - begin);
    l->offset += out->bytes;
    return unescape(l, out, begin + 1, p);
}

static size_t digits_at(const char *s, const char *end)
{
    const char *p = s;
    while (p < end &&
           ((*p >= '0' && *p <= '9') || (*p == '_' && p > s && p + 1 < end && p[1] >= '0' && p[1] <= '9')))
        p++;
    return (size_t)(p - s);
}

/* Integers (decimal, 0x, 0o, 0b) and floats, underscores between digits. */
static int lex_number(struct lexer *l, struct token *out)
{
    const char *s = out->text, *end = l->source + l->size, *p = s + digits_at(s, end);
    char text[64];
    size_t n = 0, more;
    int base = 10;
    bool real = false;
    if (*s == '0' && p == s + 1 && p < end && strchr("xXoObB", *p) && *p) {
        base = (*p | 32) == 'x' ? 16 : (*p | 32) == 'o' ? 8 : 2;
        for (p++; p < end && (digit_value(*p) < base || *p == '_');)
            p++;
    } else {
        if (l->offset > 0 && s[-1] != '.' && p + 1 < end && *p == '.' && (more = digits_at(p + 1, end))) {
            p += 1 + more;
            real = true;
        }
        const char *e = p + 1;
        if (p < end && (*p | 32) == 'e') {
            e += e < end && (*e == '+' || *e == '-');
            if ((more = digits_at(e, end))) {
                p = e + more;
                real = true;
            }
        }
    }
    for (const char *q = s + (base != 10 ? 2 : 0); q < p; q++)
        if (*q != '_' && n < sizeof(text) - 1)
            text[n++] = *q;
    text[n] = '\0';
    out->kind = TOKEN_NUMBER;
    out->bytes = (size_t)(p - s);
    l->offset += out->bytes;
    if (base == 10 && !real && *s == '0' && strspn(text, "0") != n)
        return fail(l, out, "an integer does not begin with 0");
    errno = 0;
    char *rest;
    out->value = real ? value_float(strtod(text, &rest)) : value_int(strtoll(text, &rest, base));
    if (n == 0 || *rest || n == sizeof(text) - 1 || (errno && !real))
        return fail(l, out, n ? "this number does not fit 64 bits" : "expected digits");
    return 0;
}

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static int track_bracket(struct lexer *l, struct token *t, char c)
{
    if (c == '(' || c == '[' || c == '{') {
        if (l->bracket_count == LEX_MAX_BRACKETS)
            return fail(l, t, "brackets are nested too deep: expected at most 64");
        l->brackets[l->bracket_count++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (l->bracket_count == 0 || l->brackets[l->bracket_count - 1] != c)
            return err_set(l->err, "%s:%u:%u: unexpected %c: no bracket of its kind is open", l->name,
                           t->line, t->column, c);
        l->bracket_count--;
    }
    return 0;
}

static int lex_operator(struct lexer *l, struct token *out)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    out->kind = TOKEN_OPERATOR;
    out->bytes = 1;
    for (size_t i = 0; i < ARRAY_LEN(two); i++)
        if (looking_at(l, two[i]))
            out->bytes = 2;
    if (out->bytes == 1 && (!*out->text || !strchr("+-/*%~[](){}=<>.:|,;", *out->text))) {
        size_t n = (size_t)utf8_sequence_bytes((uint8_t)*out->text);
        return err_set(l->err, "%s:%u:%u: unexpected character \"%.*s\"", l->name, out->line, out->column,
                       (int)n, out->text);
    }
    memcpy(out->op, out->text, out->bytes);
    l->offset += out->bytes;
    return track_bracket(l, out, out->bytes == 1 ? *out->text : '\0');
}

/* True at the end of the tag we are in; steps over it. */
static bool ends_tag(struct lexer *l, struct token *out)
{
    bool block = l->inside == TOKEN_BLOCK_BEGIN;
    char sign = peek(l, 0) == '-' || (block && peek(l, 0) == '+') ? peek(l, 0) : '\0';
    size_t at = sign ? 1 : 0;
    if (l->bracket_count || peek(l, at) != (block ? '%' : '}') || peek(l, at + 1) != '}')
        return false;
    out->kind = block ? TOKEN_BLOCK_END : TOKEN_PRINT_END;
    out->bytes = at + 2;
    end_tag(l, sign, block);
    return true;
}

int lexer_next(struct lexer *l, struct token *out)
{
    *out = (struct token){0};
    if (l->inside == TOKEN_TEXT)
        return next_outside(l, out);
    l->offset += text_skip_space(l->source + l->offset, l->size - l->offset);
    place(l, l->offset, out);
    out->text = l->source + l->offset;
    if (l->offset == l->size)
        return fail(l, out,
                    l->inside == TOKEN_BLOCK_BEGIN ? "the template ends inside a statement: expected %}"
                                                   : "the template ends inside an output: expected }}");
    if (ends_tag(l, out))
        return 0;
    char c = *out->text;
    if (c >= '0' && c <= '9')
        return lex_number(l, out);
    if (c == '"' || c == '\'')
        return lex_string(l, out);
    if (!is_name_byte(c))
        return lex_operator(l, out);
    out->kind = TOKEN_NAME;
    while (l->offset < l->size && is_name_byte(l->source[l->offset])) {
        l->offset++;
        out->bytes++;
    }
    return 0;
}
