/* Byte-level BPE over a small vocabulary and, where it is, GPT-2's: what is merged, what is taken whole, what
 * special tokens do, and that every text comes back. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/test.h"
#include "tests/unit/worker/model/bpe_vocabulary.h"
#include "worker/model/pretokenize.h"

static const struct tokenizer_options plain = {0};

static struct tokenizer *opened(struct bpe_change change)
{
    struct tokenizer *t;
    struct err err = {0};
    if (bpe_open(&t, &change, &err)) {
        printf("# %s\n", err.message);
        exit(1);
    }
    return t;
}

/* Encodes; `expected` is ids up to -1. */
static void check_ids(const struct tokenizer *t, const char *text, size_t bytes,
                      const struct tokenizer_options *options, const int32_t *expected)
{
    struct token_ids ids = {0};
    struct err err = {0};
    size_t count = 0;
    int before = test_failures;
    while (expected[count] >= 0)
        count++;
    CHECK_INT(tokenizer_encode(t, text, bytes, options, &ids, &err), 0);
    CHECK_INT(ids.count, count);
    for (size_t i = 0; i < count && i < ids.count; i++)
        CHECK_INT(ids.data[i], expected[i]);
    if (test_failures != before)
        printf("# the text was: %s\n", text);
    token_ids_release(&ids);
}
#define IDS(t, text, options, ...) \
    check_ids(t, text, sizeof(text) - 1, options, (const int32_t[]){__VA_ARGS__, -1})

static void test_merging(void)
{
    struct tokenizer *t = opened((struct bpe_change){0});
    IDS(t, "hello", &plain, 259);
    IDS(t, " hello the", &plain, 260, 262);
    IDS(t, "hhello", &plain, 'h', 259);
    IDS(t, "abc", &plain, 268); /* "a b" stands before "b c" */
    IDS(t, "bc", &plain, 267);
    IDS(t, "aaaaaaa", &plain, 264, 263, 'a'); /* the leftmost first */
    IDS(t, "world", &plain, 'w', 'o', 'r', 'l', 'd');
    IDS(t, "\xC3\xA9\xFF", &plain, 269, 0xFF);
    IDS(t, "\n\n", &plain, 271);
    IDS(t, "a\n\nb", &plain, 'a', '\n', '\n', 'b'); /* two words */
    check_ids(t, "", 0, &plain, (const int32_t[]){-1});
    tokenizer_close(&t);
}

/* The merge of two spaces makes piece 272; here that one is user-defined and stands in plain text. */
static void test_plain_product(void)
{
    struct tokenizer_options none = {0};
    struct tokenizer *t = opened((struct bpe_change){.at = 272, .text = "  ", .type = PIECE_USER_DEFINED});
    IDS(t, "a   ", &none, 'a', 272, ' ');
    tokenizer_close(&t);
    struct bpe_change normal = {.at = 272, .text = "  ", .type = PIECE_NORMAL};
    struct err err = {0};
    CHECK_INT(bpe_open(&t, &normal, &err), -1);
    CHECK_CONTAINS(err.message, "[16]: what it makes is no piece");
}

static void test_ignore_merges(void)
{
    struct tokenizer *t = opened((struct bpe_change){.pre = "llama-bpe"});
    IDS(t, "world", &plain, BPE_WORLD);
    IDS(t, " world", &plain, ' ', 'w', 'o', 'r', 'l', 'd'); /* no piece: merges as ever */
    IDS(t, "never", &plain, 'n', 'e', 'v', 'e', 'r');       /* unused, no normal piece */
    tokenizer_close(&t);
}

static void test_special(void)
{
    struct tokenizer_options special = {.parse_special = true};
    struct tokenizer *t = opened((struct bpe_change){0});
    IDS(t, "a<|bos|>he", &special, 'a', BPE_BOS, 256);
    IDS(t, "<|bos|>", &plain, '<', '|', 'b', 'o', 's', '|', '>');
    IDS(t, "<tool>!a<tool>", &plain, 280, 'a', BPE_TOOL);
    IDS(t, "<|endoftext|><|im_end|>", &plain, BPE_ENDOFTEXT, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|',
        '>');
    IDS(t, "<|endoftext|><|im_end|>", &special, BPE_ENDOFTEXT, BPE_IM_END);
    tokenizer_close(&t);
}

static void test_control_is_never_formed(void)
{
    struct tokenizer_options special = {.parse_special = true};
    struct tokenizer *t =
        opened((struct bpe_change){.pre = "bloom"}); /* its words hold symbols and letters */
    IDS(t, "<x>", &plain, 273, '>');
    IDS(t, "<x>", &special, BPE_CONTROL);
    tokenizer_close(&t);
    t = opened((struct bpe_change){.pre = "bloom", .at = BPE_CONTROL, .type = PIECE_NORMAL});
    IDS(t, "<x>", &plain, BPE_CONTROL);
    tokenizer_close(&t);
}

static void test_options(void)
{
    struct tokenizer_options ends = {.add_bos = true, .add_eos = true};
    struct tokenizer *t = opened((struct bpe_change){0});
    IDS(t, "he", &ends, BPE_BOS, 256, BPE_EOS);
    IDS(t, "", &ends, BPE_BOS, BPE_EOS);
    tokenizer_close(&t);
    t = opened((struct bpe_change){.omit = "tokenizer.ggml.eos_token_id"});
    IDS(t, "he", &ends, BPE_BOS, 256);
    tokenizer_close(&t);
    t = opened(
        (struct bpe_change){.key = "tokenizer.ggml.add_space_prefix", .key_type = GGUF_BOOL, .value = 1});
    IDS(t, "hello", &plain, 260);
    IDS(t, " hello", &plain, ' ', 260);
    tokenizer_close(&t);
}

static void test_missing_byte(void)
{
    struct token_ids ids = {0};
    struct err err = {0};
    struct tokenizer *t = opened((struct bpe_change){.at = 'z', .text = "zz"});
    IDS(t, "azb", &plain, 'a', BPE_UNKNOWN, 'b');
    tokenizer_close(&t);
    struct bpe_change change = {.at = BPE_UNKNOWN, .text = "z1", .type = PIECE_NORMAL};
    t = opened(change);
    t->byte_id['z'] = -1; /* as a vocabulary without that byte and without an unknown token has it */
    token_ids_push(&ids, 1);
    CHECK_INT(tokenizer_encode(t, "heaz", 4, &plain, &ids, &err), -1);
    CHECK_INT(err.code, 400);
    CHECK_CONTAINS(err.message, "the byte 0x7A");
    CHECK_INT(ids.count, 1);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

/* ---- texts come back --------------------------------------------------------------------------------------
 */

static uint64_t random_state = 42;
static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static void put_utf8(struct buffer *b, uint32_t c)
{
    uint8_t s[4] = {(uint8_t)c};
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (n == 2)
        s[0] = (uint8_t)(0xC0 | c >> 6);
    if (n == 3)
        s[0] = (uint8_t)(0xE0 | c >> 12);
    if (n == 4)
        s[0] = (uint8_t)(0xF0 | c >> 18);
    for (int i = 1; i < n; i++)
        s[i] = (uint8_t)(0x80 | ((c >> 6 * (n - 1 - i)) & 0x3F));
    buffer_append(b, s, (size_t)n);
}

/* Characters of every length, most of them plain, spaces often. */
static struct buffer random_utf8(size_t bytes)
{
    struct buffer b = {0};
    static const uint32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
    while (b.size < bytes) {
        uint32_t c =
            random_below(4) ? random_below(limits[random_below(5)]) : (uint32_t) " \n'h1"[random_below(5)];
        if (c < 0xD800 || c > 0xDFFF)
            put_utf8(&b, c);
    }
    return b;
}

static struct buffer random_bytes(size_t bytes)
{
    struct buffer b = {0};
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)random_below(256);
        buffer_append(&b, &byte, 1);
    }
    return b;
}

/* The bytes of the pieces must be the text; so must what the detokenizer gives, when the text is valid. */
static void check_comes_back(const struct tokenizer *t, const struct buffer *text)
{
    struct token_ids ids = {0};
    struct err err = {0};
    struct buffer raw = {0}, decoded = {0};
    struct detokenizer d;
    CHECK_INT(tokenizer_encode(t, (const char *)text->data, text->size, &plain, &ids, &err), 0);
    detokenizer_init(&d, t, true);
    for (size_t i = 0; i < ids.count; i++) {
        const struct piece *p = &t->pieces[ids.data[i]];
        size_t before = decoded.size;
        for (size_t at = 0; at < p->bytes;) {
            uint32_t c;
            at += (size_t)tokenizer_character(p->text + at, p->bytes - at, &c);
            uint8_t byte = (uint8_t)tokenizer_byte_of(c);
            buffer_append(&raw, &byte, 1);
        }
        detokenizer_push(&d, ids.data[i], &decoded);
        if (!utf8_valid((const char *)decoded.data + before, decoded.size - before))
            CHECK(!"half a character was given out");
    }
    detokenizer_flush(&d, &decoded);
    CHECK_INT(raw.size, text->size);
    CHECK(raw.size == text->size && memcmp(raw.data, text->data, raw.size) == 0);
    if (utf8_valid((const char *)text->data, text->size))
        CHECK(decoded.size == text->size && memcmp(decoded.data, text->data, decoded.size) == 0);
    CHECK(utf8_valid((const char *)decoded.data, decoded.size));
    buffer_release(&raw);
    buffer_release(&decoded);
    token_ids_release(&ids);
}

static void test_every_rule_comes_back(void)
{
    struct buffer utf8 = random_utf8(20000), bytes = random_bytes(20000);
    for (const struct pretokenizer *p = pretokenizer_all(); p->name; p++) {
        struct tokenizer *t = opened((struct bpe_change){.pre = p->name});
        check_comes_back(t, &utf8);
        check_comes_back(t, &bytes);
        tokenizer_close(&t);
    }
    buffer_release(&utf8);
    buffer_release(&bytes);
}

static void test_mebibyte_comes_back(void)
{
    struct buffer utf8 = random_utf8(1 << 20), bytes = random_bytes(1 << 20);
    static const char *const rules[] = {"gpt-2", "llama-bpe", "deepseek-llm"};
    for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
        struct tokenizer *t = opened((struct bpe_change){.pre = rules[i]});
        check_comes_back(t, &utf8);
        check_comes_back(t, &bytes);
        tokenizer_close(&t);
    }
    buffer_release(&utf8);
    buffer_release(&bytes);
}

static struct tokenizer *shared_tokenizer(const char *path)
{
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err err = {0};
    if (gguf_open(&g, path, &err) || tokenizer_open(&t, g, &err)) {
        printf("# %s\n", err.message);
        exit(1);
    }
    gguf_close(&g);
    return t;
}

static void test_shared_comes_back(void)
{
    const char *path = test_shared("data/tokenizer/ggml-vocab-gpt-2.gguf");
    if (!path)
        SKIP("no shared data");
    struct buffer utf8 = random_utf8(1 << 20), bytes = random_bytes(1 << 20);
    struct tokenizer *t = shared_tokenizer(path);
    check_comes_back(t, &utf8);
    check_comes_back(t, &bytes);
    tokenizer_close(&t);
    buffer_release(&utf8);
    buffer_release(&bytes);
}

/* Falcon's vocabulary lacks 28 bytes and has no unknown token: a text that holds one is refused. */
static void test_shared_incomplete(void)
{
    const char *path = test_shared("data/tokenizer/ggml-vocab-falcon.gguf");
    if (!path)
        SKIP("no shared data");
    struct tokenizer *t = shared_tokenizer(path);
    int refused = 0;
    for (int byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        struct token_ids ids = {0};
        struct err err = {0};
        if (tokenizer_encode(t, &text, 1, &plain, &ids, &err)) {
            refused++;
            CHECK_INT(err.code, 400);
            CHECK_CONTAINS(err.message, "neither a piece nor an unknown token");
        }
        token_ids_release(&ids);
    }
    CHECK_INT(refused, 28);
    tokenizer_close(&t);
}

/* A word of 1 MiB is exact: 8 a's are the longest piece. What is longer is cut, and comes back all the same.
 */
static void test_long_words(void)
{
    struct tokenizer *t = opened((struct bpe_change){0});
    size_t bytes = 1 << 20;
    struct buffer text = {0};
    struct token_ids ids = {0};
    text.data = xmalloc(text.size = text.capacity = bytes * 3 + 5);
    memset(text.data, 'a', text.size);
    CHECK_INT(tokenizer_encode(t, (const char *)text.data, bytes, &plain, &ids, NULL), 0);
    CHECK_INT(ids.count, bytes / 8);
    for (size_t i = 0; i < ids.count; i++)
        if (ids.data[i] != 265)
            CHECK_INT(ids.data[i], 265);
    check_comes_back(t, &text);
    memset(text.data, ' ', text.size);
    check_comes_back(t, &text);
    buffer_release(&text);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

/* In a process of its own, whose peak is what this text cost. */
static long peak_kib(const char *unit, size_t bytes)
{
    pid_t child = fork();
    if (child == 0) {
        struct tokenizer *t = opened((struct bpe_change){0});
        struct token_ids ids = {0};
        char *text = xmalloc(bytes);
        for (size_t i = 0, n = strlen(unit); i < bytes; i++)
            text[i] = unit[i % n];
        _exit(tokenizer_encode(t, text, bytes, &plain, &ids, NULL) ? 1 : 0);
    }
    int status = -1;
    struct rusage usage = {0};
    CHECK(wait4(child, &status, 0, &usage) == child);
    CHECK_INT(status, 0);
    return usage.ru_maxrss;
}

static void test_memory(void)
{
#ifdef LEPTON_SANITIZE
    SKIP("sanitizers have their own memory");
#endif
    static const char *const units[] = {"a", "the cat ", "ab", "z"};
    size_t bytes = 16 << 20;
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        long peak = peak_kib(units[i], bytes);
        printf("# 16 MiB of \"%s\": peak %ld KiB\n", units[i], peak);
        CHECK(peak <= (long)(4 * bytes / 1024 + 64 * 1024));
    }
}

/* ---- the algorithm, said again ----------------------------------------------------------------------------
 */

/* The merge of two pieces as the list of merges has it, or -1. */
static int plain_rank(const char *left, size_t left_bytes, const char *right, size_t right_bytes)
{
    for (size_t i = 0; i < ARRAY_LEN(bpe_merges); i++) {
        const char *space = strchr(bpe_merges[i], ' ');
        if ((size_t)(space - bpe_merges[i]) == left_bytes && strlen(space + 1) == right_bytes &&
            memcmp(bpe_merges[i], left, left_bytes) == 0 && memcmp(space + 1, right, right_bytes) == 0)
            return (int)i;
    }
    return -1;
}

/* One word by searching the best merge again for every step; appends ids to `context`. */
static const struct tokenizer *plain_tokenizer;
static int plain_word(void *context, const char *word, size_t bytes)
{
    char text[256];
    size_t begin[128], count = 0, at = 0;
    ASSERT(bytes < ARRAY_LEN(begin));
    for (size_t i = 0; i < bytes; i++) {
        begin[count++] = at;
        at += bpe_byte_text((uint8_t)word[i], text + at);
    }
    begin[count] = at;
    for (;;) {
        int best = -1;
        size_t where = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            int rank = plain_rank(text + begin[i], begin[i + 1] - begin[i], text + begin[i + 1],
                                  begin[i + 2] - begin[i + 1]);
            if (rank >= 0 && (best < 0 || rank < best)) {
                best = rank;
                where = i;
            }
        }
        if (best < 0)
            break;
        memmove(begin + where + 1, begin + where + 2, (count - where - 1) * sizeof(begin[0]));
        count--;
    }
    for (size_t i = 0; i < count; i++)
        token_ids_push(context, tokenizer_lookup(plain_tokenizer, text + begin[i], begin[i + 1] - begin[i]));
    return 0;
}

static void test_against_plain(void)
{
    static const char letters[] = "aaabcheehlllot  \n'x";
    struct tokenizer *t = opened((struct bpe_change){.at = BPE_CONTROL, .type = PIECE_NORMAL});
    plain_tokenizer = t;
    for (int round = 0; round < 20000; round++) {
        char text[64];
        size_t n = random_below(sizeof(text));
        struct token_ids ids = {0}, expected = {0};
        for (size_t i = 0; i < n; i++)
            text[i] = letters[random_below(sizeof(letters) - 1)];
        CHECK_INT(tokenizer_encode(t, text, n, &plain, &ids, NULL), 0);
        CHECK_INT(pretokenize(pretokenizer_find("gpt-2", 5), text, n, plain_word, &expected), 0);
        CHECK_INT(ids.count, expected.count);
        if (ids.count != expected.count ||
            (ids.count && memcmp(ids.data, expected.data, ids.count * 4) != 0)) {
            printf("# the text was: %.*s\n", (int)n, text);
            CHECK(!"equal ids");
        }
        token_ids_release(&ids);
        token_ids_release(&expected);
    }
    tokenizer_close(&t);
}

/* ---- detokenising -----------------------------------------------------------------------------------------
 */

static void check_decodes(const struct tokenizer *t, const int32_t *ids, const char *expected)
{
    struct detokenizer d;
    struct buffer text = {0};
    detokenizer_init(&d, t, true);
    for (; *ids >= 0; ids++)
        detokenizer_push(&d, *ids, &text);
    detokenizer_flush(&d, &text);
    buffer_append(&text, "", 1);
    CHECK_STR((const char *)text.data, expected);
    buffer_release(&text);
}

static void test_decoding(void)
{
    struct tokenizer *t = opened((struct bpe_change){0});
    check_decodes(t, (const int32_t[]){260, 262, -1}, " hello the");
    check_decodes(t, (const int32_t[]){0xE6, 0x97, 0xA5, 269, -1}, "\xE6\x97\xA5\xC3\xA9");
    check_decodes(t, (const int32_t[]){0xE6, 0x97, 'a', 0xFF, -1},
                  "\xEF\xBF\xBD"
                  "a\xEF\xBF\xBD");
    check_decodes(t, (const int32_t[]){BPE_BOS, 'a', BPE_TOOL, BPE_EOS, -1}, "a<tool>");
    check_decodes(t, (const int32_t[]){281, 0xE6, 281, -1}, "\xE6\x97\xA5\xEF\xBF\xBD\xE6\x97\xA5");
    check_decodes(t, (const int32_t[]){BPE_UNKNOWN, 999999, -1}, "\xEF\xBF\xBD\xEF\xBF\xBD");
    tokenizer_close(&t);
    t = opened(
        (struct bpe_change){.key = "tokenizer.ggml.add_space_prefix", .key_type = GGUF_BOOL, .value = 1});
    check_decodes(t, (const int32_t[]){260, 262, -1}, "hello the");
    check_decodes(t, (const int32_t[]){' ', 260, -1}, " hello");
    tokenizer_close(&t);
}

static void test_byte_characters(void)
{
    bool seen[0x150] = {0};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t c = tokenizer_byte_character((uint8_t)byte);
        CHECK(c < 0x144 && !seen[c]);
        seen[c] = true;
        CHECK_INT(tokenizer_byte_of(c), byte);
    }
    for (uint32_t c = 0; c < 0x150; c++)
        if (!seen[c])
            CHECK_INT(tokenizer_byte_of(c), -1);
    CHECK_INT(tokenizer_byte_character(' '), 0x120); /* as GPT-2's vocabulary has them */
    CHECK_INT(tokenizer_byte_character('\n'), 0x10A);
    CHECK_INT(tokenizer_byte_of(0x10FFFF), -1);
}

int main(void)
{
    TEST(test_byte_characters, "every byte has its own character");
    TEST(test_merging, "the merge that stands first is done first, the leftmost among equals");
    TEST(test_plain_product, "a merge may make a user-defined piece written in plain text");
    TEST(test_ignore_merges, "Llama 3's words that are tokens are taken whole");
    TEST(test_special, "control tokens are parsed on demand, user-defined ones always");
    TEST(test_control_is_never_formed, "merges never form a control token");
    TEST(test_options, "BOS, EOS and the space prefix stand where they are asked for");
    TEST(test_missing_byte, "a byte without a piece is the unknown token or an error");
    TEST(test_against_plain, "ids are those of the algorithm without heap and list");
    TEST(test_decoding, "bytes come out as whole characters");
    TEST(test_every_rule_comes_back, "every text comes back, whatever cuts it");
    TEST(test_mebibyte_comes_back, "a mebibyte of UTF-8 and of bytes comes back");
    TEST(test_shared_comes_back, "a mebibyte comes back through GPT-2's vocabulary");
    TEST(test_shared_incomplete, "a byte that Falcon's vocabulary lacks is refused, not dropped");
    TEST(test_long_words, "a word of a mebibyte is exact, a longer one is cut");
    TEST(test_memory, "16 MiB of text take at most 4 x 16 + 64 MiB");
    return test_result();
}
