/* vocabulary: GGUF bytes of a small `llama` vocabulary, made in memory for tests and the fuzzer, with one
 * thing changed where a test wants it bad. Written by hand and not by gguf_writer, which could not write it
 * bad. */
#ifndef LEPTON_TESTS_VOCABULARY_H
#define LEPTON_TESTS_VOCABULARY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/tokenizer.h"

#define MARK "\xE2\x96\x81"

struct vocabulary_piece {
    const char *text;
    float score;
    int type; /* 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte */
};

/* What is done differently. Zero: a good vocabulary. */
struct vocabulary_change {
    const char *model;  /* instead of "llama" */
    const char *omit;   /* this key is left out */
    const char *retype; /* this key gets elements, or with `scalar` one value, of type `as` */
    enum gguf_type as;
    bool scalar;
    const char *resize; /* this array has `by` elements more; -1000000: none */
    int by;
    int at;            /* this piece ... */
    const char *text;  /* ... has this text */
    size_t text_bytes; /* 0: up to the NUL */
    int type;          /* ... has this type (NO_TYPE: 0 itself) */
    float score;       /* ... has this score */
    bool no_bytes;     /* the byte tokens are ordinary words */
    const char *key;   /* a further key with `value` */
    enum gguf_type key_type;
    int64_t value;
};

#define NO_TYPE 100

static const struct vocabulary_piece vocabulary_small[] = {
    {"<unk>", 0, 2},
    {"<s>", 0, 3},
    {"</s>", 0, 3},
    {"<eot>", 0, 3},
    {"<tool>", 0, 4},
    {"<tool>!", 0, 4},
    {"  ##", 0, 4},
    {"never", -1, 5},
    {MARK, -50, 1},
    {"a", -51, 1},
    {"b", -52, 1},
    {"c", -53, 1},
    {"d", -54, 1},
    {"e", -55, 1},
    {"h", -56, 1},
    {"l", -57, 1},
    {"o", -58, 1},
    {"r", -59, 1},
    {"t", -60, 1},
    {"w", -61, 1},
    {"n", -62, 1},
    {"v", -63, 1},
    {"\xC3\xA9", -64, 1},
    {"\xE6\x97\xA5", -65, 1},
    {"he", -3, 1},
    {MARK "t", -1, 1},
    {MARK "the", -4, 1},
    {"ll", -9, 1},
    {"lo", -8, 1},
    {"hello", -12, 1},
    {"hel", -10, 1},
    {MARK "hello", -20, 1},
    {"aa", -5, 1},
    {"aaa", -2, 1},
    {"aaaa", -6, 1},
    {"aaaaaaaa", -7, 1},
    {"ab", -11, 1},
    {"bc", -11, 1},
    {"abc", -13, 1},
    {MARK MARK, -14, 1},
    {"ne", -15, 1},
    {"ve", -16, 1},
    {"nev", -17, 1},
    {"er", -18, 1},
    {"t" MARK, -19, 1},
    {"\xC3\xA9"
     "e",
     -21, 1},
    {"<", -66, 1},
    {"s", -67, 1},
    {">", -68, 1},
    {"<s", -22, 1},
    {"orl", -23, 1},
    {"wo", -24, 1},
};
#define VOCABULARY_SMALL ((int)ARRAY_LEN(vocabulary_small))
#define VOCABULARY_BYTES VOCABULARY_SMALL /* the id of <0x00>; <0xFF> is the last piece */
#define VOCABULARY_COUNT (VOCABULARY_SMALL + 256)

static inline void vocabulary_put_string(struct buffer *b, const char *s, size_t bytes)
{
    buffer_u64(b, bytes);
    buffer_append(b, s, bytes);
}

static inline void vocabulary_put_key(struct buffer *b, const char *key, enum gguf_type type)
{
    vocabulary_put_string(b, key, strlen(key));
    buffer_u32(b, type);
}

/* One value of any type that is not an array. */
static inline void vocabulary_put_value(struct buffer *b, enum gguf_type type, int64_t value)
{
    static const uint8_t size[GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == GGUF_STRING)
        vocabulary_put_string(b, "text", 4);
    else
        buffer_append(b, &value, size[type]); /* a float gets these bits: types are tested, not values */
}

static inline bool vocabulary_is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static inline void vocabulary_put_element(struct buffer *b, enum gguf_type type, int id,
                                          const struct vocabulary_change *c)
{
    char byte[8] = "";
    struct vocabulary_piece p = {byte, 0, c->no_bytes ? 1 : 6};
    if (id < VOCABULARY_SMALL)
        p = vocabulary_small[id];
    else
        snprintf(byte, sizeof(byte), "<0x%02X>", (unsigned)(id - VOCABULARY_BYTES) & 0xFF);
    bool changed = id == c->at;
    size_t bytes = strlen(p.text);
    if (changed && c->text) {
        p.text = c->text;
        bytes = c->text_bytes ? c->text_bytes : strlen(c->text);
    }
    if (changed && c->type)
        p.type = c->type == NO_TYPE ? 0 : c->type;
    if (changed && c->score != 0)
        p.score = c->score;
    if (type == GGUF_STRING)
        vocabulary_put_string(b, p.text, bytes);
    else if (type == GGUF_F32)
        buffer_append(b, &p.score, sizeof(p.score));
    else
        buffer_u32(b, (uint32_t)p.type);
}

static inline uint64_t vocabulary_put_array(struct buffer *b, const char *key, enum gguf_type type,
                                            const struct vocabulary_change *c)
{
    if (vocabulary_is(c->omit, key))
        return 0;
    bool retyped = vocabulary_is(c->retype, key);
    if (retyped && c->scalar) {
        vocabulary_put_key(b, key, c->as);
        vocabulary_put_value(b, c->as, 1);
        return 1;
    }
    int count = VOCABULARY_COUNT + (vocabulary_is(c->resize, key) ? c->by : 0);
    if (count < 0)
        count = 0;
    vocabulary_put_key(b, key, GGUF_ARRAY);
    buffer_u32(b, retyped ? c->as : type);
    buffer_u64(b, (uint64_t)count);
    for (int i = 0; i < count; i++)
        if (retyped)
            vocabulary_put_value(b, c->as, 1);
        else
            vocabulary_put_element(b, type, i, c);
    return 1;
}

/* The file's bytes; the caller releases them. */
static inline struct buffer vocabulary_build(const struct vocabulary_change *c)
{
    struct buffer body = {0}, file = {0};
    uint64_t keys = 0;
    if (vocabulary_is(c->retype, "tokenizer.ggml.model")) {
        vocabulary_put_key(&body, "tokenizer.ggml.model", c->as);
        vocabulary_put_value(&body, c->as, 1);
        keys++;
    } else if (!vocabulary_is(c->omit, "tokenizer.ggml.model")) {
        const char *model = c->model ? c->model : "llama";
        vocabulary_put_key(&body, "tokenizer.ggml.model", GGUF_STRING);
        vocabulary_put_string(&body, model, strlen(model));
        keys++;
    }
    keys += vocabulary_put_array(&body, "tokenizer.ggml.tokens", GGUF_STRING, c);
    keys += vocabulary_put_array(&body, "tokenizer.ggml.scores", GGUF_F32, c);
    keys += vocabulary_put_array(&body, "tokenizer.ggml.token_type", GGUF_I32, c);
    if (c->key) {
        vocabulary_put_key(&body, c->key, c->key_type);
        vocabulary_put_value(&body, c->key_type, c->value);
        keys++;
    }
    buffer_append(&file, "GGUF", 4);
    buffer_u32(&file, 3);
    buffer_u64(&file, 0);
    buffer_u64(&file, keys);
    buffer_append(&file, body.data, body.size);
    buffer_release(&body);
    return file;
}

/* Builds, parses and opens; the file's bytes are gone again before the tokenizer is used. */
static inline int vocabulary_open(struct tokenizer **t, const struct vocabulary_change *c, struct err *err)
{
    struct buffer file = vocabulary_build(c);
    struct gguf *g = NULL;
    int result = gguf_parse(&g, file.data, file.size, "small.gguf", err);
    *t = NULL;
    if (result == 0)
        result = tokenizer_open(t, g, err);
    gguf_close(&g);
    buffer_release(&file);
    return result;
}

#endif
