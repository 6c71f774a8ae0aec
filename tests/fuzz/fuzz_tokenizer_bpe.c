/* libFuzzer over byte-level BPE and its pre-tokenizers. The first byte chooses what the rest is:
 *
 *   0  a rule, then text for a fixed vocabulary that holds every byte: it must come back
 *   1  patches (place, byte) to that vocabulary's file, which reach deeper than bytes from nothing
 *   2  a vocabulary of the input's own merges over all bytes, then a text for it
 *   3  a file as it is
 *
 * What opens is used: a text is encoded, every id is decoded, and what comes out must be valid UTF-8. */
#include <stdio.h>

#include "common/log.h"
#include "tests/unit/worker/model/bpe_vocabulary.h"
#include "worker/model/pretokenize.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_setup("fuzz", LOG_ERROR, LOG_TEXT); /* a missing pre-tokenizer is a warning each time */
    return 0;
}

static struct buffer decode(const struct tokenizer *t, const struct token_ids *ids)
{
    struct detokenizer d;
    struct buffer text = {0};
    detokenizer_init(&d, t, true);
    for (size_t i = 0; i < ids->count; i++) {
        size_t before = text.size;
        detokenizer_push(&d, ids->data[i], &text);
        ASSERT(text.size == before || utf8_valid((const char *)text.data + before, text.size - before));
    }
    detokenizer_flush(&d, &text);
    return text;
}

/* The bytes that an id stands for must be those of the text, in order. */
static void check_bytes(const struct tokenizer *t, const struct token_ids *ids, const char *text,
                        size_t bytes)
{
    size_t at = 0;
    for (size_t i = 0; i < ids->count; i++) {
        const struct piece *p = &t->pieces[ids->data[i]];
        if (p->type == PIECE_USER_DEFINED) {
            ASSERT(p->bytes <= bytes - at && memcmp(p->text, text + at, p->bytes) == 0);
            at += p->bytes;
            continue;
        }
        for (size_t j = 0; j < p->bytes; at++) {
            uint32_t c;
            j += (size_t)tokenizer_character(p->text + j, p->bytes - j, &c);
            ASSERT(at < bytes && tokenizer_byte_of(c) == (uint8_t)text[at]);
        }
    }
    ASSERT(at == bytes);
}

/* `whole`: the vocabulary spells every byte and has no prefix. */
static void use(const struct tokenizer *t, const char *text, size_t bytes, bool special, bool whole)
{
    struct tokenizer_options options = {.parse_special = special, .add_bos = special};
    struct token_ids ids = {0};
    struct err err = {0};
    if (tokenizer_encode(t, text, bytes, &options, &ids, &err)) {
        ASSERT(!whole && ids.count == 0 && err.message[0]);
    } else {
        for (size_t i = 0; i < ids.count; i++)
            ASSERT(ids.data[i] >= 0 && ids.data[i] < tokenizer_vocab_size(t));
        struct buffer back = decode(t, &ids);
        if (whole && !special) {
            check_bytes(t, &ids, text, bytes);
            if (utf8_valid(text, bytes))
                ASSERT(back.size == bytes && (bytes == 0 || memcmp(back.data, text, bytes) == 0));
        }
        buffer_release(&back);
    }
    token_ids_release(&ids);
}

static void use_every_id(const struct tokenizer *t)
{
    struct token_ids ids = {0};
    for (int32_t id = -1; id <= tokenizer_vocab_size(t); id++)
        token_ids_push(&ids, id);
    struct buffer text = decode(t, &ids);
    buffer_release(&text);
    token_ids_release(&ids);
}

static void fuzz_text(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizers[64]; /* one for each name */
    const struct pretokenizer *all = pretokenizer_all();
    struct err err;
    uint32_t names = 0;
    while (all[names].name)
        names++;
    ASSERT(names <= ARRAY_LEN(tokenizers));
    if (size == 0)
        return;
    uint32_t which = data[0] % names;
    struct bpe_change change = {.pre = all[which].name};
    if (!tokenizers[which] && bpe_open(&tokenizers[which], &change, &err))
        die("%s", err.message);
    use(tokenizers[which], (const char *)data + 1, size - 1, false, true);
    use(tokenizers[which], (const char *)data + 1, size - 1, true, true);
}

static void fuzz_file(const void *file, size_t bytes)
{
    static const char text[] = "the hello <tool><|im_end|> he's 1234  aaaa\xE6\x97\xA5\xFF\n\n <x>";
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
    static const struct bpe_change none;
    if (!file.data)
        file = bpe_build(&none);
    uint8_t *copy = xmalloc(file.size);
    memcpy(copy, file.data, file.size);
    for (; size >= 3; data += 3, size -= 3)
        copy[(data[0] << 8 | data[1]) % file.size] = data[2];
    fuzz_file(copy, file.size);
    free(copy);
}

/* Puts the string when no piece before it is the same. */
static void put_new(struct buffer *tokens, uint64_t *count, const char *text, size_t bytes)
{
    for (size_t at = 0; at < tokens->size;) {
        uint64_t n;
        memcpy(&n, tokens->data + at, sizeof(n));
        if (n == bytes && memcmp(tokens->data + at + 8, text, bytes) == 0)
            return;
        at += 8 + n;
    }
    vocabulary_put_string(tokens, text, bytes);
    (*count)++;
}

/* Each merge: the numbers of two pieces known so far, where number n stands for byte n or what merge n - 200
 * made. Two equal numbers end the merges; what follows is the text. */
static void fuzz_merges(const uint8_t *data, size_t size)
{
    struct buffer file = {0}, tokens = {0}, merges = {0};
    uint64_t token_count = 0, merge_count = 0;
    char made[64][256];
    size_t made_bytes[64];
    for (int byte = 0; byte < 256; byte++) {
        char text[2];
        put_new(&tokens, &token_count, text, bpe_byte_text(byte, text));
    }
    for (; size >= 2 && merge_count < 56; data += 2, size -= 2) {
        char both[520];
        size_t n = 0, left = 0;
        if (data[0] == 0 && data[1] == 0)
            break;
        for (int i = 0; i < 2; i++) {
            uint32_t number = data[i];
            if (number >= 200 && number - 200 < merge_count) {
                memcpy(both + n, made[number - 200], made_bytes[number - 200]);
                n += made_bytes[number - 200];
            } else {
                n += bpe_byte_text((int)number, both + n);
            }
            if (i == 0) {
                left = n;
                both[n++] = ' ';
            }
        }
        vocabulary_put_string(&merges, both, n);
        memmove(both + left, both + left + 1, n - left - 1);
        put_new(&tokens, &token_count, both, --n);
        made_bytes[merge_count] = n < sizeof(made[0]) ? n : 0; /* an empty part is refused later */
        memcpy(made[merge_count], both, made_bytes[merge_count]);
        merge_count++;
    }
    buffer_append(&file, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0", 24);
    vocabulary_put_key(&file, "tokenizer.ggml.model", GGUF_STRING);
    vocabulary_put_string(&file, "gpt2", 4);
    vocabulary_put_key(&file, "tokenizer.ggml.pre", GGUF_STRING);
    vocabulary_put_string(&file, "bloom", 5); /* the longest words */
    const struct {
        const char *key;
        uint64_t count;
        struct buffer *data;
    } arrays[] = {{"tokenizer.ggml.tokens", token_count, &tokens},
                  {"tokenizer.ggml.merges", merge_count, &merges}};
    for (size_t i = 0; i < ARRAY_LEN(arrays); i++) {
        vocabulary_put_key(&file, arrays[i].key, GGUF_ARRAY);
        buffer_u32(&file, GGUF_STRING);
        buffer_u64(&file, arrays[i].count);
        if (arrays[i].data->size)
            buffer_append(&file, arrays[i].data->data, arrays[i].data->size);
        buffer_release(arrays[i].data);
    }
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err err = {0};
    ASSERT(gguf_parse(&g, file.data, file.size, "fuzz.gguf", &err) == 0);
    if (tokenizer_open(&t, g, &err) == 0)
        use(t, (const char *)data, size, false, true);
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
        fuzz_merges(data + 1, size - 1);
        break;
    default:
        fuzz_file(data + 1, size - 1);
    }
    return 0;
}
