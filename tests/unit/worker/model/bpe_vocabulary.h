/* bpe_vocabulary: GGUF bytes of a small `gpt2` vocabulary, made in memory for tests and the fuzzer, with one
 * thing changed where a test wants it bad. Ids 0 to 255 are the bytes. */
#ifndef LEPTON_TESTS_BPE_VOCABULARY_H
#define LEPTON_TESTS_BPE_VOCABULARY_H

#include "tests/unit/worker/model/vocabulary.h"
#include "worker/model/tokenizer_impl.h"

#define G "\xC4\xA0" /* how the vocabulary writes a space */

/* What is done differently. Zero: a good vocabulary with the rule gpt-2. */
struct bpe_change {
    const char *pre;    /* instead of "gpt-2" */
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
    const char *merge; /* the merge `merge_at` */
    size_t merge_bytes;
    int merge_at;
    const char *key; /* a further key with `value` */
    enum gguf_type key_type;
    int64_t value;
};

static const struct vocabulary_piece bpe_pieces[] = {
    /* 256 */ {"he", 0, 1},
    {"ll", 0, 1},
    {"hell", 0, 1},
    {"hello", 0, 1},
    /* 260 */ {G "hello", 0, 1},
    {G "t", 0, 1},
    {G "the", 0, 1},
    {"aa", 0, 1},
    {"aaaa", 0, 1},
    /* 265 */ {"aaaaaaaa", 0, 1},
    {"ab", 0, 1},
    {"bc", 0, 1},
    {"abc", 0, 1},
    {"\xC3\x83\xC2\xA9", 0, 1}, /* é */
    /* 270 */ {"world", 0, 1},  /* no merge makes it */
    {"\xC4\x8A\xC4\x8A", 0, 1}, /* two line ends */
    {G G, 0, 1},
    {"<x", 0, 1},
    {"<x>", 0, 3}, /* a control token that a merge would make */
    /* 275 */ {"<|bos|>", 0, 3},
    {"<|eos|>", 0, 3},
    {"<|im_end|>", 0, 3},
    {"<|endoftext|>", 0, 4}, /* by name an end, but no control token */
    {"<tool>", 0, 4},
    /* 280 */ {"<tool>!", 0, 4},
    {"\xE6\x97\xA5", 0, 1}, /* a piece that is not in byte characters */
    {"never", 0, 5},
    {"<unk>", 0, 2},
};
enum {
    BPE_WORLD = 270,
    BPE_CONTROL = 274,
    BPE_BOS,
    BPE_EOS,
    BPE_IM_END,
    BPE_ENDOFTEXT,
    BPE_TOOL,
    BPE_UNKNOWN = 283
};
#define BPE_COUNT (256 + (int)ARRAY_LEN(bpe_pieces))

static const char *const bpe_merges[] = {
    "h e",
    "l l",
    "he ll",
    "hell o",
    G " hello",
    G " t",
    G "t he",
    "a a",
    "aa aa",
    "aaaa aaaa",
    "a b",
    "b c",
    "ab c",
    "a bc",
    "\xC3\x83 \xC2\xA9",
    "\xC4\x8A \xC4\x8A",
    G " " G,
    "< x",
    "<x >",
};

static inline size_t bpe_byte_text(int byte, char out[2])
{
    uint32_t c = tokenizer_byte_character((uint8_t)byte);
    out[0] = (char)(c < 0x80 ? c : 0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return c < 0x80 ? 1 : 2;
}

static inline void bpe_put_piece(struct buffer *b, enum gguf_type type, int id, const struct bpe_change *c)
{
    char byte[2];
    struct vocabulary_piece p = {byte, 0, 1};
    size_t bytes;
    if (id < 256) {
        bytes = bpe_byte_text(id, byte);
    } else {
        p = id < BPE_COUNT ? bpe_pieces[id - 256] : (struct vocabulary_piece){"one more", 0, 1};
        bytes = strlen(p.text);
    }
    if (id == c->at && c->text) {
        p.text = c->text;
        bytes = c->text_bytes ? c->text_bytes : strlen(c->text);
    }
    if (id == c->at && c->type)
        p.type = c->type == NO_TYPE ? 0 : c->type;
    if (id == c->at)
        p.score = c->score;
    if (type == GGUF_STRING)
        vocabulary_put_string(b, p.text, bytes);
    else if (type == GGUF_F32)
        buffer_append(b, &p.score, sizeof(p.score));
    else
        buffer_u32(b, (uint32_t)p.type);
}

static inline uint64_t bpe_put_array(struct buffer *b, const char *key, enum gguf_type type, int count,
                                     const struct bpe_change *c)
{
    bool retyped = vocabulary_is(c->retype, key), merges = strstr(key, "merges") != NULL;
    if (vocabulary_is(c->omit, key))
        return 0;
    if (retyped && c->scalar) {
        vocabulary_put_key(b, key, c->as);
        vocabulary_put_value(b, c->as, 1);
        return 1;
    }
    count += vocabulary_is(c->resize, key) ? c->by : 0;
    if (count < 0)
        count = 0;
    vocabulary_put_key(b, key, GGUF_ARRAY);
    buffer_u32(b, retyped ? c->as : type);
    buffer_u64(b, (uint64_t)count);
    for (int i = 0; i < count; i++) {
        if (retyped) {
            vocabulary_put_value(b, c->as, 1);
        } else if (!merges) {
            bpe_put_piece(b, type, i, c);
        } else {
            bool changed = c->merge && i == c->merge_at;
            const char *merge = changed ? c->merge : i < (int)ARRAY_LEN(bpe_merges) ? bpe_merges[i] : "a ll";
            vocabulary_put_string(b, merge, changed && c->merge_bytes ? c->merge_bytes : strlen(merge));
        }
    }
    return 1;
}

static inline uint64_t bpe_put_string(struct buffer *b, const char *key, const char *value,
                                      const struct bpe_change *c)
{
    if (vocabulary_is(c->omit, key))
        return 0;
    vocabulary_put_key(b, key, vocabulary_is(c->retype, key) ? c->as : GGUF_STRING);
    if (vocabulary_is(c->retype, key))
        vocabulary_put_value(b, c->as, 1);
    else
        vocabulary_put_string(b, value, strlen(value));
    return 1;
}

/* The file's bytes; the caller releases them. */
static inline struct buffer bpe_build(const struct bpe_change *c)
{
    struct buffer body = {0}, file = {0};
    uint64_t keys = bpe_put_string(&body, "tokenizer.ggml.model", "gpt2", c);
    keys += bpe_put_string(&body, "tokenizer.ggml.pre", c->pre ? c->pre : "gpt-2", c);
    keys += bpe_put_array(&body, "tokenizer.ggml.tokens", GGUF_STRING, BPE_COUNT, c);
    if (c->score != 0 || vocabulary_is(c->resize, "tokenizer.ggml.scores") ||
        vocabulary_is(c->retype, "tokenizer.ggml.scores")) /* most files have none */
        keys += bpe_put_array(&body, "tokenizer.ggml.scores", GGUF_F32, BPE_COUNT, c);
    keys += bpe_put_array(&body, "tokenizer.ggml.token_type", GGUF_I32, BPE_COUNT, c);
    keys += bpe_put_array(&body, "tokenizer.ggml.merges", GGUF_STRING, (int)ARRAY_LEN(bpe_merges), c);
    const struct {
        const char *key;
        uint32_t id;
    } ids[] = {{"tokenizer.ggml.bos_token_id", BPE_BOS}, {"tokenizer.ggml.eos_token_id", BPE_EOS}};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        if (vocabulary_is(c->omit, ids[i].key) || vocabulary_is(c->key, ids[i].key))
            continue;
        vocabulary_put_key(&body, ids[i].key, GGUF_U32);
        buffer_u32(&body, ids[i].id);
        keys++;
    }
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
static inline int bpe_open(struct tokenizer **t, const struct bpe_change *c, struct err *err)
{
    struct buffer file = bpe_build(c);
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
