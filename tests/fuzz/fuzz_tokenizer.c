/* libFuzzer over the tokenizer. The first byte chooses what the rest is:
 *
 *   0  text for a fixed small vocabulary: it must survive encoding and decoding
 *   1  patches (place, byte) to that vocabulary's file, which reach deeper than bytes from nothing
 *   2  a vocabulary of the input's own pieces, scores and types, then a text for it
 *   3  a file as it is
 *
 * What opens is used: a text is encoded, every id is decoded, and what comes out must be valid UTF-8. */
#include <math.h>
#include <stdio.h>

#include "tests/unit/worker/model/vocabulary.h"
#include "worker/model/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct buffer decode(const struct tokenizer *t, const int32_t *ids, size_t count)
{
    struct detokenizer d;
    struct buffer text = {0};
    detokenizer_init(&d, t, true);
    for (size_t i = 0; i < count; i++) {
        size_t before = text.size;
        detokenizer_push(&d, ids[i], &text);
        ASSERT(text.size == before || utf8_valid((const char *)text.data + before, text.size - before));
    }
    detokenizer_flush(&d, &text);
    ASSERT(text.size == 0 || utf8_valid((const char *)text.data, text.size));
    return text;
}

/* True when decoding gives this text again: all characters, and no space mark, which counts as a space. */
static bool survives(const char *text, size_t bytes)
{
    return utf8_valid(text, bytes) && !(bytes && memmem(text, bytes, MARK, 3));
}

/* `whole`: the vocabulary spells every byte and begins texts with the prefix. */
static void use(const struct tokenizer *t, const char *text, size_t bytes, bool special, bool whole)
{
    struct tokenizer_options options = {.add_bos = bytes & 1, .parse_special = special};
    struct token_ids ids = {0};
    struct err err = {0};
    if (tokenizer_encode(t, text, bytes, &options, &ids, &err)) {
        ASSERT(!whole && ids.count == 0 && err.message[0]);
    } else {
        struct buffer back = decode(t, ids.data, ids.count);
        for (size_t i = 0; i < ids.count; i++)
            ASSERT(ids.data[i] >= 0 && ids.data[i] < tokenizer_vocab_size(t));
        if (whole && !special && survives(text, bytes))
            ASSERT(back.size == bytes && (bytes == 0 || memcmp(back.data, text, bytes) == 0));
        buffer_release(&back);
    }
    token_ids_release(&ids);
}

static int32_t normal(const struct tokenizer *t, const char *text, size_t bytes)
{
    int32_t id = tokenizer_lookup(t, text, bytes);
    return id >= 0 && t->pieces[id].type == PIECE_NORMAL ? id : -1;
}

/* The algorithm without segments, heap and tags: the best pair of the whole text is searched for every merge.
 * What it gives for the symbols that are pieces must stand in the ids in this order, byte tokens between. */
static void check_merges(const struct tokenizer *t, const char *text, size_t bytes)
{
    struct tokenizer_options plain = {0};
    struct token_ids ids = {0};
    struct buffer marked = {0};
    size_t begin[600], count = 0, at = 0;
    if (bytes == 0 || bytes > 150 || !utf8_valid(text, bytes) || t->user_defined.count ||
        tokenizer_encode(t, text, bytes, &plain, &ids, NULL)) {
        token_ids_release(&ids);
        return;
    }
    buffer_append(&marked, MARK, 3);
    for (size_t i = 0; i < bytes; i++)
        buffer_append(&marked, text[i] == ' ' ? MARK : text + i, text[i] == ' ' ? 3 : 1);
    const char *s = (const char *)marked.data;
    for (size_t i = 0; i < marked.size; i += (size_t)utf8_sequence_bytes(marked.data[i]))
        begin[count++] = i;
    begin[count] = marked.size;
    for (size_t best = 0; best < count;) {
        float score = -INFINITY;
        best = count;
        for (size_t i = 0; i + 1 < count; i++) {
            int32_t id = normal(t, s + begin[i], begin[i + 2] - begin[i]);
            if (id >= 0 && t->pieces[id].score > score) {
                score = t->pieces[id].score;
                best = i;
            }
        }
        if (best < count) {
            memmove(begin + best + 1, begin + best + 2, (count - best - 1) * sizeof(begin[0]));
            count--;
        }
    }
    for (size_t i = 0; i < count; i++) {
        int32_t id = normal(t, s + begin[i], begin[i + 1] - begin[i]);
        while (id < 0 && at < ids.count && t->pieces[ids.data[at]].type != PIECE_NORMAL)
            at++;
        if (id >= 0)
            ASSERT(at < ids.count && ids.data[at] == id);
        at += id >= 0;
    }
    ASSERT(at == ids.count);
    buffer_release(&marked);
    token_ids_release(&ids);
}

static void use_every_id(const struct tokenizer *t)
{
    struct token_ids ids = {0};
    for (int32_t id = -1; id <= tokenizer_vocab_size(t); id++)
        token_ids_push(&ids, id);
    struct buffer text = decode(t, ids.data, ids.count);
    buffer_release(&text);
    token_ids_release(&ids);
}

static void fuzz_text(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizers[2]; /* with and without the space prefix */
    static const struct vocabulary_change change[2] = {
        {0}, {.key = "tokenizer.ggml.add_space_prefix", .key_type = GGUF_BOOL}};
    struct err err;
    for (int i = 0; i < 2; i++)
        if (!tokenizers[i] && vocabulary_open(&tokenizers[i], &change[i], &err))
            die("%s", err.message);
    if (size > 0)
        use(tokenizers[data[0] & 1], (const char *)data + 1, size - 1, data[0] & 2, true);
}

static void fuzz_file(const void *file, size_t bytes)
{
    static const char text[] = "the cat <tool></s> hello  aaaa\xE6\x97\xA5\xFF <0x41>";
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err err = {0};
    if (gguf_parse(&g, file, bytes, "fuzz.gguf", &err)) {
        ASSERT(err.message[0]);
        return;
    }
    if (tokenizer_open(&t, g, &err)) {
        ASSERT(!t && err.message[0]);
    } else {
        gguf_close(&g); /* the tokenizer keeps nothing of it */
        use(t, text, sizeof(text) - 1, false, false);
        use(t, text, sizeof(text) - 1, true, false);
        use_every_id(t);
    }
    tokenizer_close(&t);
    gguf_close(&g);
}

static void fuzz_patches(const uint8_t *data, size_t size)
{
    static struct buffer file;
    static const struct vocabulary_change none;
    if (!file.data)
        file = vocabulary_build(&none);
    uint8_t *copy = xmalloc(file.size);
    memcpy(copy, file.data, file.size);
    for (; size >= 3; data += 3, size -= 3)
        copy[(data[0] << 8 | data[1]) % file.size] = data[2];
    fuzz_file(copy, file.size);
    free(copy);
}

/* Each piece: one byte of length, its text, a byte of score and type. A length of 0 ends the pieces; what
 * follows is the text. */
static void fuzz_vocabulary(const uint8_t *data, size_t size)
{
    struct buffer file = {0}, tokens = {0}, scores = {0}, types = {0};
    uint64_t count = 0;
    while (size > 1 && data[0] > 0 && (size_t)data[0] + 2 <= size) {
        float score = (float)(data[data[0] + 1] >> 3);
        vocabulary_put_string(&tokens, (const char *)data + 1, data[0]);
        buffer_append(&scores, &score, sizeof(score));
        buffer_u32(&types, data[data[0] + 1] & 7 ? data[data[0] + 1] & 7 : 1);
        size -= (size_t)data[0] + 2;
        data += data[0] + 2;
        count++;
    }
    buffer_append(&file, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0", 24);
    vocabulary_put_key(&file, "tokenizer.ggml.model", GGUF_STRING);
    vocabulary_put_string(&file, "llama", 5);
    const struct {
        const char *key;
        enum gguf_type type;
        struct buffer *data;
    } arrays[] = {{"tokenizer.ggml.tokens", GGUF_STRING, &tokens},
                  {"tokenizer.ggml.scores", GGUF_F32, &scores},
                  {"tokenizer.ggml.token_type", GGUF_I32, &types}};
    for (size_t i = 0; i < ARRAY_LEN(arrays); i++) {
        vocabulary_put_key(&file, arrays[i].key, GGUF_ARRAY);
        buffer_u32(&file, arrays[i].type);
        buffer_u64(&file, count);
        buffer_append(&file, arrays[i].data->data, arrays[i].data->size);
        buffer_release(arrays[i].data);
    }
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err err = {0};
    ASSERT(gguf_parse(&g, file.data, file.size, "fuzz.gguf", &err) == 0);
    if (tokenizer_open(&t, g, &err) == 0) {
        use(t, (const char *)data, size, false, false);
        use(t, (const char *)data, size, true, false);
        check_merges(t, (const char *)data, size);
        use_every_id(t);
    }
    tokenizer_close(&t);
    gguf_close(&g);
    buffer_release(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    switch (data[0] & 3) {
    case 0:
        fuzz_text(data + 1, size - 1);
        break;
    case 1:
        fuzz_patches(data + 1, size - 1);
        break;
    case 2:
        fuzz_vocabulary(data + 1, size - 1);
        break;
    default:
        fuzz_file(data + 1, size - 1);
    }
    return 0;
}
