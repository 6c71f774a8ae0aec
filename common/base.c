#include "common/base.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void (*say_why)(const char *word);

static void err_vset(struct err *e, int code, const char *fmt, va_list ap)
{
    if (!e)
        return;
    e->code = code;
    vsnprintf(e->message, sizeof(e->message), fmt, ap);
}

int err_set(struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(e, 0, fmt, ap);
    va_end(ap);
    return -1;
}

int err_set_code(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(e, code, fmt, ap);
    va_end(ap);
    return -1;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (!e)
        return -1;
    char old[sizeof(e->message)];
    memcpy(old, e->message, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->message, sizeof(e->message), fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n + 2 < sizeof(e->message)) {
        memcpy(e->message + n, ": ", 2);
        memcpy(e->message + n + 2, old, sizeof(old) - (size_t)n - 2); /* cut where the room ends */
        e->message[sizeof(e->message) - 1] = '\0';
    }
    return -1;
}

/* Ending must not wait for somebody to read why: on a full pipe this says nothing. */
static void say_last(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void say_last(const char *fmt, ...)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&out, 1, 0) == 0)
        return;
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fflush(NULL);
}

void die_at(const char *file, int line, const char *fmt, ...)
{
    char message[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    if (say_why)
        say_why("exit 70");
    say_last("lepton: fatal: %s (%s:%d)\n", message, file, line);
    _Exit(EXIT_DIE);
}

void assert_failed(const char *file, int line, const char *cond)
{
    say_last("lepton: bug: %s:%d: assertion failed: %s\n", file, line, cond);
    abort();
}

void no_memory(size_t count, size_t bytes)
{
    if (say_why)
        say_why("out of memory");
    say_last("lepton: fatal: out of memory: %zu x %zu bytes\n", count, bytes);
    _Exit(EXIT_NO_MEMORY);
}

void *xmalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        no_memory(1, bytes);
    return p;
}

void *xcalloc(size_t count, size_t bytes)
{
    void *p = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!p)
        no_memory(count, bytes);
    return p;
}

void *xrealloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p)
        no_memory(1, bytes);
    return p;
}

char *xstrdup(const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(xmalloc(n), s, n);
}

char *xasprintf(const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    char *s = xmalloc((size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

void reader_init(struct reader *r, const void *data, uint64_t size, const char *name, struct err *err)
{
    *r = (struct reader){.data = (const uint8_t *)data, .size = size, .name = name, .err = err};
}

int reader_fail(struct reader *r, const char *fmt, ...)
{
    if (r->failed)
        return -1;
    r->failed = true;
    char message[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    return err_set(r->err, "%s:%llu: %s", r->name, (unsigned long long)r->offset, message);
}

int reader_bytes(struct reader *r, const char *what, uint64_t bytes, const uint8_t **out)
{
    if (r->failed)
        return -1;
    if (bytes > reader_left(r))
        return reader_fail(r, "%s: expected %llu bytes, only %llu are left", what, (unsigned long long)bytes,
                           (unsigned long long)reader_left(r));
    *out = r->data + r->offset;
    r->offset += bytes;
    return 0;
}

/* The scalar readers copy through memcpy: the data need not be aligned. */
#define READER_SCALAR(name, type)                                    \
    int reader_##name(struct reader *r, const char *what, type *out) \
    {                                                                \
        const uint8_t *p;                                            \
        if (reader_bytes(r, what, sizeof(*out), &p))                 \
            return -1;                                               \
        memcpy(out, p, sizeof(*out));                                \
        return 0;                                                    \
    }
READER_SCALAR(u8, uint8_t)
READER_SCALAR(u16, uint16_t)
READER_SCALAR(u32, uint32_t)
READER_SCALAR(u64, uint64_t)
READER_SCALAR(f32, float)
READER_SCALAR(f64, double)

static void buffer_reserve(struct buffer *b, size_t more)
{
    size_t need;
    if (__builtin_add_overflow(b->size, more, &need))
        die("buffer of %zu + %zu bytes", b->size, more);
    if (need <= b->capacity)
        return;
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < need)
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    b->data = xrealloc(b->data, capacity);
    b->capacity = capacity;
}

void buffer_append(struct buffer *b, const void *data, size_t bytes)
{
    if (bytes == 0)
        return;
    buffer_reserve(b, bytes);
    memcpy(b->data + b->size, data, bytes);
    b->size += bytes;
}

void buffer_u32(struct buffer *b, uint32_t v)
{
    buffer_append(b, &v, sizeof(v));
}

void buffer_u64(struct buffer *b, uint64_t v)
{
    buffer_append(b, &v, sizeof(v));
}

void buffer_printf(struct buffer *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    buffer_reserve(b, (size_t)n + 1);
    vsnprintf((char *)b->data + b->size, (size_t)n + 1, fmt, again);
    va_end(again);
    b->size += (size_t)n;
}

void buffer_release(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){0};
}

int utf8_sequence_bytes(uint8_t first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xC2 && first <= 0xDF)
        return 2;
    if (first >= 0xE0 && first <= 0xEF)
        return 3;
    if (first >= 0xF0 && first <= 0xF4)
        return 4;
    return 0;
}

bool utf8_valid(const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    for (size_t i = 0; i < n;) {
        if (p[i] < 0x80) { /* most of what is looked at */
            i++;
            continue;
        }
        int bytes = utf8_sequence_bytes(p[i]);
        if (bytes == 0 || (size_t)bytes > n - i)
            return false;
        /* The second byte's range is narrower after E0, ED, F0 and F4: no overlong forms, no surrogates. */
        if (bytes >= 2) {
            uint8_t low = p[i] == 0xE0 ? 0xA0 : p[i] == 0xF0 ? 0x90 : 0x80;
            uint8_t high = p[i] == 0xED ? 0x9F : p[i] == 0xF4 ? 0x8F : 0xBF;
            if (p[i + 1] < low || p[i + 1] > high)
                return false;
        }
        for (int k = 2; k < bytes; k++)
            if ((p[i + (size_t)k] & 0xC0) != 0x80)
                return false;
        i += (size_t)bytes;
    }
    return true;
}
