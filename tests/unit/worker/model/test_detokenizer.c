/* Decoding: whole characters only, replacement where bytes are none, and the space prefix taken away once. */
#include "tests/test.h"
#include "tests/unit/worker/model/vocabulary.h"

#define FFFD "\xEF\xBF\xBD"

static struct tokenizer *small_tokenizer(void)
{
    static const struct vocabulary_change none;
    struct tokenizer *t;
    struct err err = {0};
    if (vocabulary_open(&t, &none, &err))
        die("%s", err.message);
    return t;
}

static int32_t byte_token(int byte)
{
    return VOCABULARY_BYTES + byte;
}

static int32_t word(const char *text)
{
    for (int i = 0; i < VOCABULARY_SMALL; i++)
        if (strcmp(vocabulary_small[i].text, text) == 0)
            return i;
    die("no piece %s", text);
}

/* The text of these ids from the start of a sequence, ended by -1. Static buffer. */
static const char *text_of(const struct tokenizer *t, bool at_start, const int32_t *ids)
{
    static struct buffer text;
    struct detokenizer d;
    text.size = 0;
    detokenizer_init(&d, t, at_start);
    for (; *ids != -1; ids++)
        detokenizer_push(&d, *ids, &text);
    detokenizer_flush(&d, &text);
    buffer_append(&text, "", 1);
    return (const char *)text.data;
}
#define IDS(...) ((const int32_t[]){__VA_ARGS__, -1})

static const char *text_of_bytes(const struct tokenizer *t, const char *bytes)
{
    int32_t ids[64];
    int n = 0;
    for (; *bytes; bytes++)
        ids[n++] = byte_token((uint8_t)*bytes);
    ids[n] = -1;
    return text_of(t, true, ids);
}

static void test_prefix(void)
{
    struct tokenizer *t = small_tokenizer();
    int32_t mark = word(MARK), hello = word(MARK "hello"), two = word(MARK MARK), a = word("a");
    CHECK_STR(text_of(t, true, IDS(hello, hello)), "hello hello");
    CHECK_STR(text_of(t, false, IDS(hello, hello)), " hello hello");
    CHECK_STR(text_of(t, true, IDS(1, hello)), "hello");
    CHECK_STR(text_of(t, true, IDS(mark, hello)), " hello");
    CHECK_STR(text_of(t, true, IDS(two, a)), " a");
    CHECK_STR(text_of(t, true, IDS(a, hello)), "a hello");
    CHECK_STR(text_of(t, true, IDS(word("  ##"), a)), "  ##a");
    CHECK_STR(text_of(t, true, IDS(word("t" MARK), a)), "t a");
    tokenizer_close(&t);
}

static void test_no_text(void)
{
    struct tokenizer *t = small_tokenizer();
    int32_t a = word("a");
    CHECK_STR(text_of(t, true, IDS(1, a, 2, a, 3)), "aa");
    CHECK_STR(text_of(t, true, IDS(1, 2)), "");
    CHECK_STR(text_of(t, true, IDS(a, 0, a)), "a" FFFD "a");
    CHECK_STR(text_of(t, true, IDS(a, -7, VOCABULARY_COUNT, INT32_MAX, a)), "a" FFFD FFFD FFFD "a");
    CHECK_STR(text_of(t, true, IDS(word("<tool>"), word("never"))), "<tool>never");
    tokenizer_close(&t);
}

static void test_held(void)
{
    struct tokenizer *t = small_tokenizer();
    struct detokenizer d;
    struct buffer text = {0};
    detokenizer_init(&d, t, true);
    detokenizer_push(&d, byte_token(0xF0), &text);
    detokenizer_push(&d, byte_token(0x9F), &text);
    detokenizer_push(&d, byte_token(0x98), &text);
    CHECK_INT(text.size, 0);
    detokenizer_push(&d, byte_token(0x80), &text);
    CHECK_INT(text.size, 4);
    CHECK(text.size == 4 && memcmp(text.data, "\xF0\x9F\x98\x80", 4) == 0);
    detokenizer_flush(&d, &text);
    CHECK_INT(text.size, 4);
    detokenizer_push(&d, byte_token(0xE2), &text);
    CHECK_INT(text.size, 4);
    detokenizer_flush(&d, &text);
    CHECK_INT(text.size, 7);
    buffer_release(&text);
    tokenizer_close(&t);
}

/* Tables 3-8 to 3-11 of the Unicode standard, section 3.9. */
static void test_maximal_subparts(void)
{
    struct tokenizer *t = small_tokenizer();
    CHECK_STR(text_of_bytes(t, "\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
              FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    CHECK_STR(text_of_bytes(t, "\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
              FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    CHECK_STR(text_of_bytes(t, "\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
              FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B");
    CHECK_STR(text_of_bytes(t, "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), FFFD FFFD FFFD FFFD "A");
    CHECK_STR(text_of_bytes(t, "\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
              "a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d");
    CHECK_STR(text_of_bytes(t, "a\xE2\x82"), "a" FFFD);
    CHECK_STR(text_of(t, true, IDS(byte_token(0xE2), word("a"))), FFFD "a");
    CHECK_STR(text_of(t, true, IDS(byte_token(0xE2), word("<tool>"))), FFFD "<tool>");
    CHECK_STR(text_of(t, true, IDS(byte_token(0xE2), 0)), FFFD FFFD);
    tokenizer_close(&t);
}

/* The WHATWG decoder written the other way round: the longest prefix of a valid character is replaced. */
static void append_replaced(struct buffer *out, const uint8_t *s, size_t n)
{
    static const char *const endings[] = {"",         "\x80",     "\x90",         "\xA0",        "\x80\x80",
                                          "\x90\x80", "\xA0\x80", "\x80\x80\x80", "\x90\x80\x80"};
    for (size_t i = 0; i < n;) {
        size_t whole = 0, part = 1;
        for (size_t k = 1; k <= 4 && i + k <= n; k++) {
            for (size_t e = 0; e < ARRAY_LEN(endings); e++) {
                char candidate[8];
                memcpy(candidate, s + i, k);
                memcpy(candidate + k, endings[e], strlen(endings[e]));
                size_t bytes = k + strlen(endings[e]);
                if ((size_t)utf8_sequence_bytes(s[i]) != bytes || !utf8_valid(candidate, bytes))
                    continue;
                part = k;
                if (bytes == k)
                    whole = k;
            }
        }
        if (whole)
            buffer_append(out, s + i, whole);
        else
            buffer_append(out, FFFD, 3);
        i += whole ? whole : part;
    }
}

static void append_spaced(struct buffer *out, const char *piece, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        bool mark = i + 3 <= bytes && memcmp(piece + i, MARK, 3) == 0;
        buffer_append(out, mark ? " " : piece + i, 1);
        i += mark ? 2 : 0;
    }
}

/* What the ids say in bytes, spaces in place of marks. */
static void append_raw(struct buffer *out, const struct tokenizer *t, int32_t id)
{
    size_t bytes;
    const char *piece = tokenizer_piece(t, id, &bytes);
    uint8_t byte = (uint8_t)(id - VOCABULARY_BYTES);
    if (id >= VOCABULARY_BYTES)
        buffer_append(out, &byte, 1);
    else if (vocabulary_small[id].type == 4)
        buffer_append(out, piece, bytes);
    else if (vocabulary_small[id].type == 2)
        buffer_append(out, FFFD, 3);
    else if (vocabulary_small[id].type != 3)
        append_spaced(out, piece, bytes);
}

/* Mostly bytes of characters, so that whole and broken ones both come often. */
static int32_t random_id(unsigned long long *seed)
{
    static const uint8_t often[] = {0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80,
                                    0xC3, 0xA9, 0xED, 0xA0, 0xE0, 0xF4, 0x90};
    switch (test_random(seed) % 4) {
    case 0:
        return (int32_t)(test_random(seed) % VOCABULARY_SMALL);
    case 1:
        return byte_token((int)(test_random(seed) % 256));
    default:
        return byte_token(often[test_random(seed) % ARRAY_LEN(often)]);
    }
}

static void test_streaming(void)
{
    struct tokenizer *t = small_tokenizer();
    unsigned long long seed = 3;
    for (int round = 0; round < 5000 && test_failures == 0; round++) {
        struct detokenizer d;
        struct buffer text = {0}, raw = {0}, expected = {0};
        detokenizer_init(&d, t, false);
        for (int n = (int)(test_random(&seed) % 30); n > 0; n--) {
            int32_t id = random_id(&seed);
            size_t before = text.size;
            detokenizer_push(&d, id, &text);
            CHECK(utf8_valid((const char *)text.data + before, text.size - before));
            append_raw(&raw, t, id);
        }
        size_t before = text.size;
        detokenizer_flush(&d, &text);
        CHECK(utf8_valid((const char *)text.data + before, text.size - before));
        append_replaced(&expected, raw.data, raw.size);
        CHECK_INT(text.size, expected.size);
        CHECK(text.size == expected.size &&
              (text.size == 0 || memcmp(text.data, expected.data, text.size) == 0));
        buffer_release(&text);
        buffer_release(&raw);
        buffer_release(&expected);
    }
    tokenizer_close(&t);
}

static void test_random_bytes(void)
{
    struct tokenizer *t = small_tokenizer();
    struct tokenizer_options plain = {0};
    unsigned long long seed = 5;
    for (int round = 0; round < 5000 && test_failures == 0; round++) {
        uint8_t bytes[64];
        size_t n = test_random(&seed) % sizeof(bytes);
        for (size_t i = 0; i < n; i++) {
            int32_t id = random_id(&seed);
            bytes[i] = id >= VOCABULARY_BYTES ? (uint8_t)(id - VOCABULARY_BYTES) : (uint8_t) " aeht"[id % 5];
        }
        struct token_ids ids = {0};
        struct buffer text = {0}, expected = {0};
        struct err err;
        struct detokenizer d;
        CHECK_INT(tokenizer_encode(t, (const char *)bytes, n, &plain, &ids, &err), 0);
        detokenizer_init(&d, t, true);
        for (size_t i = 0; i < ids.count; i++)
            detokenizer_push(&d, ids.data[i], &text);
        detokenizer_flush(&d, &text);
        append_replaced(&expected, bytes, n);
        CHECK(text.size == expected.size &&
              (text.size == 0 || memcmp(text.data, expected.data, text.size) == 0));
        token_ids_release(&ids);
        buffer_release(&text);
        buffer_release(&expected);
    }
    tokenizer_close(&t);
}

int main(void)
{
    TEST(test_prefix, "the space prefix is removed from the first piece at the start, once");
    TEST(test_no_text, "control tokens give no text, unknown ids the replacement character");
    TEST(test_held, "an unfinished character is held until its last byte or the flush");
    TEST(test_maximal_subparts, "each maximal subpart of a broken character is replaced once");
    TEST(test_streaming, "every push gives whole characters, together the text of all bytes");
    TEST(test_random_bytes, "bytes survive, replaced only where they are no characters");
    return test_result();
}
