/* base: what every file may rely on: assertions, errors that a user can act on, checked arithmetic, and the
 * one way any parser touches bytes from outside (struct reader).
 *
 * Three kinds of errors have three answers:
 *   our bug             ASSERT, always on, in release builds too
 *   the world           return -1 and fill `struct err *` (what, where, what was expected)
 *   a lost resource     die(): the process cannot go on; a supervisor starts it again
 *
 * It refuses to know anything of networks, models or configuration. C and CUDA C++ may include it. */
#ifndef LEPTON_COMMON_BASE_H
#define LEPTON_COMMON_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LEPTON_VERSION "0.1.0"

#define ARRAY_LEN(a)           (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

/* An error of the world. `code` is 0 or one of the wire codes (400, 404, ...); `message` is always
 * terminated. */
struct err {
    int code;
    char message[500];
};

/* Fills *e (which may be NULL) and returns -1, so that a caller writes `return err_set(e, ...)`. */
int err_set(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);
int err_set_code(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Puts "what: " in front of the message already in *e; returns -1. */
int err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Told in a word what die() and no_memory() end the process with, before they do; NULL: nobody. Set before
 * there are other threads (common/last_words.h). */
extern void (*say_why)(const char *word);
/* Ends the process with a message and its place; exit code EXIT_DIE. Never returns. */
__attribute__((noreturn)) void die_at(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
#define die(...)       die_at(__FILE__, __LINE__, __VA_ARGS__)
#define EXIT_DIE       70
#define EXIT_NO_MEMORY 69 /* the same, for want of memory: what was asked of it may be why */

/* For want of memory, with exit code EXIT_NO_MEMORY. */
__attribute__((noreturn, cold)) void no_memory(size_t count, size_t bytes);

/* A programmer's error: prints the condition and aborts. The condition must have no side effect. */
#define ASSERT(cond)                                  \
    do {                                              \
        if (__builtin_expect(!(cond), 0))             \
            assert_failed(__FILE__, __LINE__, #cond); \
    } while (0)
__attribute__((noreturn)) void assert_failed(const char *file, int line, const char *cond);

/* Memory that the process cannot live without: dies instead of returning NULL. `free` releases it. */
void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t bytes);
void *xrealloc(void *old, size_t bytes);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Checked arithmetic: false when the true result does not fit; *out is then unspecified. */
static inline bool checked_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}
static inline bool checked_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline uint64_t round_up_u64(uint64_t n, uint64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* A bounded view of bytes that came from outside. Little-endian. Every read checks what is left; the first
 * failure fills `err` with "name:offset: ..." and every later read fails too, so a parser may check once per
 * record. */
struct reader {
    const uint8_t *data;
    uint64_t size;
    uint64_t offset;
    const char *name; /* borrowed; for messages */
    struct err *err;  /* borrowed; may be NULL */
    bool failed;
};

void reader_init(struct reader *r, const void *data, uint64_t size, const char *name, struct err *err);
/* Marks the reader failed with "name:offset: <message>"; returns -1. Keeps the first failure. */
int reader_fail(struct reader *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* `what` names the thing that is read, for the message. Each returns 0, or -1 with *out untouched. */
int reader_u8(struct reader *r, const char *what, uint8_t *out);
int reader_u16(struct reader *r, const char *what, uint16_t *out);
int reader_u32(struct reader *r, const char *what, uint32_t *out);
int reader_u64(struct reader *r, const char *what, uint64_t *out);
int reader_f32(struct reader *r, const char *what, float *out);
int reader_f64(struct reader *r, const char *what, double *out);
/* Borrows `bytes` bytes of the underlying data and moves past them. */
int reader_bytes(struct reader *r, const char *what, uint64_t bytes, const uint8_t **out);
static inline uint64_t reader_left(const struct reader *r)
{
    return r->size - r->offset;
}

/* A growing byte buffer for writers; dies when memory is gone. `data` is NULL while empty. */
struct buffer {
    uint8_t *data;
    size_t size;
    size_t capacity;
};

void buffer_append(struct buffer *b, const void *data, size_t bytes);
void buffer_u32(struct buffer *b, uint32_t v);
void buffer_u64(struct buffer *b, uint64_t v);
void buffer_printf(struct buffer *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
void buffer_release(struct buffer *b);

/* True when s[0..n) is well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms, up to U+10FFFF). */
bool utf8_valid(const char *s, size_t n);
/* Bytes of the UTF-8 sequence that begins with this byte: 1..4; 0 for a byte that begins none. */
int utf8_sequence_bytes(uint8_t first);

#ifdef __cplusplus
}
#endif
#endif
