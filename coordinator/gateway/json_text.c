#include "coordinator/gateway/json_text.h"

#include <math.h>
#include <string.h>

/* What the pass over the bytes has seen. */
struct bounds {
    size_t depth, values;
    bool in_string, escaped, in_scalar;
};

/* One byte more; a message when it goes over a bound. */
static const char *count(struct bounds *b, char c)
{
    if (b->in_string) {
        b->in_string = b->escaped || c != '"';
        b->escaped = !b->escaped && c == '\\';
        return NULL;
    }
    bool opens = c == '{' || c == '[', scalar = !opens && !strchr("}]:, \t\r\n", c);
    b->values += opens || c == '"' || (scalar && !b->in_scalar);
    b->in_scalar = scalar && c != '"';
    b->in_string = c == '"';
    b->depth += opens;
    if ((c == '}' || c == ']') && b->depth > 0)
        b->depth--;
    return b->depth > JSON_MAX_DEPTH ? "nesting" : b->values > JSON_MAX_VALUES ? "values" : NULL;
}

static int check_bounds(const char *data, size_t bytes, struct err *err)
{
    struct bounds b = {0};
    for (size_t i = 0; i < bytes; i++) {
        const char *over = data[i] ? count(&b, data[i]) : NULL; /* a NUL is refused by the parser */
        if (over)
            return err_set_code(err, 400, "the body at byte %zu: too many %s, expected at most %d", i,
                                over[0] == 'n' ? "levels of nesting" : over,
                                over[0] == 'n' ? JSON_MAX_DEPTH : JSON_MAX_VALUES);
    }
    return 0;
}

int json_text_read(json_t **out, const void *data, size_t bytes, struct err *err)
{
    json_error_t where;
    *out = NULL;
    if (bytes == 0)
        return err_set_code(err, 400, "the body is empty, expected a JSON object");
    if (check_bounds(data, bytes, err))
        return -1;
    *out = json_loadb(data, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (*out)
        return 0;
    for (char *c = where.text; *c; c++) /* it quotes what it found */
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
            *c = '?';
    return err_set_code(err, 400, "the body is no JSON: line %d, column %d: %.200s", where.line, where.column,
                        where.text);
}

void json_text_string(struct buffer *out, const char *text, size_t bytes)
{
    size_t begin = 0;
    buffer_append(out, "\"", 1);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            continue;
        buffer_append(out, text + begin, i - begin);
        begin = i + 1;
        if (c == '"' || c == '\\')
            buffer_printf(out, "\\%c", c);
        else if (c == '\n')
            buffer_append(out, "\\n", 2);
        else
            buffer_printf(out, "\\u%04x", c);
    }
    buffer_append(out, text + begin, bytes - begin);
    buffer_append(out, "\"", 1);
}

void json_text_real(struct buffer *out, double value)
{
    if (isnan(value))
        value = 0;
    if (isinf(value))
        value = value < 0 ? -1.7976931348623157e308 : 1.7976931348623157e308;
    buffer_printf(out, "%.17g", value);
}
