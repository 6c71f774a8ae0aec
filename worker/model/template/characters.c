/* characters: UTF-8 strings counted in characters, white space, and text under construction. */
#include <string.h>

#include "worker/model/template/impl.h"

size_t text_decode(const char *s, size_t left, uint32_t *c)
{
    const unsigned char *u = (const unsigned char *)s;
    int n = utf8_sequence_bytes(u[0]);
    ASSERT(n > 0 && (size_t)n <= left);
    *c = n == 1 ? u[0] : u[0] & (0x7Fu >> n);
    for (int i = 1; i < n; i++)
        *c = *c << 6 | (u[i] & 0x3F);
    return (size_t)n;
}

size_t text_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(((0xF00u >> n) & 0xFF) | c);
    return n;
}

bool text_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

size_t text_skip_space(const char *s, size_t bytes)
{
    size_t at = 0;
    uint32_t c;
    while (at < bytes) {
        size_t n = text_decode(s + at, bytes - at, &c);
        if (!text_is_space(c))
            break;
        at += n;
    }
    return at;
}

size_t text_without_space(const char *s, size_t bytes)
{
    uint32_t c;
    while (bytes > 0) {
        size_t begin = bytes - 1;
        while (begin > 0 && ((unsigned char)s[begin] & 0xC0) == 0x80)
            begin--;
        text_decode(s + begin, bytes - begin, &c);
        if (!text_is_space(c))
            break;
        bytes = begin;
    }
    return bytes;
}

size_t string_chars(struct string *s)
{
    if (s->chars == SIZE_MAX) {
        s->chars = 0;
        for (size_t i = 0; i < s->bytes; i++)
            s->chars += ((unsigned char)s->data[i] & 0xC0) != 0x80;
    }
    return s->chars;
}

int string_borrow(struct render *r, const char *data, size_t bytes, struct value *out)
{
    struct string *s = render_take(r, sizeof(*s));
    if (!s)
        return -1;
    *s = (struct string){data, bytes, SIZE_MAX};
    *out = (struct value){.kind = VALUE_STRING, .string = s};
    return 0;
}

int string_new(struct render *r, const char *data, size_t bytes, struct value *out)
{
    char *copy = render_take(r, bytes);
    if (!copy || render_charge(r, bytes / 32))
        return -1;
    if (bytes)
        memcpy(copy, data, bytes);
    return string_borrow(r, copy, bytes, out);
}

int string_slice(struct render *r, struct string *s, size_t from, size_t to, struct value *out)
{
    size_t begin = from, end = to;
    if (string_chars(s) != s->bytes) {
        begin = end = 0;
        for (size_t i = 0; i < to; i++) {
            if (i == from)
                begin = end;
            end += (size_t)utf8_sequence_bytes((uint8_t)s->data[end]);
        }
        if (from == to)
            begin = end;
    }
    if (render_charge(r, end / 32) || string_borrow(r, s->data + begin, end - begin, out))
        return -1;
    out->string->chars = to - from;
    return 0;
}

/* ---- text under construction ---- */

void text_reserve(struct text *t, size_t bytes)
{
    if (t->r->failed || bytes <= t->capacity)
        return;
    char *data = render_take(t->r, bytes);
    if (!data)
        return;
    if (t->bytes)
        memcpy(data, t->data, t->bytes);
    t->data = data;
    t->capacity = bytes;
}

void text_put(struct text *t, const char *data, size_t bytes)
{
    if (t->r->failed || bytes == 0 || render_charge(t->r, bytes / 32))
        return;
    if (bytes > t->capacity - t->bytes)
        text_reserve(t, 2 * (t->bytes + bytes) + 32);
    if (t->r->failed)
        return;
    memcpy(t->data + t->bytes, data, bytes);
    t->bytes += bytes;
}

void text_puts(struct text *t, const char *s)
{
    text_put(t, s, strlen(s));
}

void text_put_code_point(struct text *t, uint32_t c)
{
    char utf8[4];
    text_put(t, utf8, text_encode(c, utf8));
}

int text_value(struct text *t, struct value *out)
{
    return t->r->failed ? -1 : string_borrow(t->r, t->data ? t->data : "", t->bytes, out);
}
