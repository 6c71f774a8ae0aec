/* Encoding: the results of the reference where real data is there, the algorithm written the slow way where
 * it is not, and that any text survives. */
#include "tests/test.h"
#include "tests/unit/worker/model/vocabulary.h"

#include <sys/resource.h>
#include <sys/wait.h>

static const struct tokenizer_options plain = {0};

static struct tokenizer *small_tokenizer(const struct vocabulary_change *change)
{
    static const struct vocabulary_change none;
    struct tokenizer *t;
    struct err err = {0};
    if (vocabulary_open(&t, change ? change : &none, &err))
        die("%s", err.message);
    return t;
}

static struct tokenizer *shared_tokenizer(const char *shared)
{
    const char *path = test_shared(shared);
    struct gguf *g;
    struct tokenizer *t;
    struct err err = {0};
    if (!path)
        return NULL;
    if (gguf_open(&g, path, &err) || tokenizer_open(&t, g, &err))
        die("%s", err.message);
    gguf_close(&g);
    return t;
}

static struct token_ids encode(const struct tokenizer *t, const char *text, size_t bytes,
                               const struct tokenizer_options *options)
{
    struct token_ids ids = {0};
    struct err err = {0};
    CHECK_INT(tokenizer_encode(t, text, bytes, options, &ids, &err), 0);
    return ids;
}

static struct buffer decode(const struct tokenizer *t, const struct token_ids *ids)
{
    struct detokenizer d;
    struct buffer text = {0};
    detokenizer_init(&d, t, true);
    for (size_t i = 0; i < ids->count; i++)
        detokenizer_push(&d, ids->data[i], &text);
    detokenizer_flush(&d, &text);
    return text;
}

/* The pieces joined by '|', which a reader can compare: "▁the|<0x41>". */
static const char *pieces_of(const struct tokenizer *t, const char *text,
                             const struct tokenizer_options *options)
{
    static struct buffer out;
    struct token_ids ids = encode(t, text, strlen(text), options);
    out.size = 0;
    for (size_t i = 0; i < ids.count; i++) {
        size_t bytes;
        const char *piece = tokenizer_piece(t, ids.data[i], &bytes);
        buffer_printf(&out, "%s%.*s", i ? "|" : "", (int)bytes, piece);
    }
    buffer_append(&out, "", 1);
    token_ids_release(&ids);
    return (const char *)out.data;
}

/* ---- the algorithm ---- */

static void test_merges(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    CHECK_STR(pieces_of(t, "", &plain), "");
    CHECK_STR(pieces_of(t, "a", &plain), MARK "|a");
    CHECK_STR(pieces_of(t, "the", &plain), MARK "the");
    CHECK_STR(pieces_of(t, " a", &plain), MARK MARK "|a");
    CHECK_STR(pieces_of(t, "aaaa", &plain), MARK "|aaaa");
    CHECK_STR(pieces_of(t, "hello", &plain), MARK "hello"); /* the longest piece there is */
    CHECK_STR(pieces_of(t, "xyz", &plain), MARK "|<0x78>|<0x79>|<0x7A>");
    CHECK_STR(pieces_of(t, "\xE6\x97\xA5\xE6\x9C\xAC", &plain), MARK "|\xE6\x97\xA5|<0xE6>|<0x9C>|<0xAC>");
    tokenizer_close(&t);
}

static void test_ties_go_left(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    /* "ab" and "bc" have one score: the left one is merged, then "abc" can be. */
    CHECK_STR(pieces_of(t, "abc", &plain), MARK "|abc");
    CHECK_STR(pieces_of(t, "bcbc", &plain), MARK "|bc|bc");
    tokenizer_close(&t);
}

/* "hello" would grow from "hel" and "lo", between which "ll" allows merges. */
static void test_only_normal_formed(void)
{
    static const int types[] = {2, 3, 5};
    struct tokenizer *t = small_tokenizer(NULL);
    CHECK_STR(pieces_of(t, "ahello", &plain), MARK "|a|hello");
    CHECK_STR(pieces_of(t, "never", &plain), MARK "|ne|ve|r");
    tokenizer_close(&t);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        struct vocabulary_change change = {.at = 29, .type = types[i]};
        t = small_tokenizer(&change);
        CHECK_STR(pieces_of(t, "ahello", &plain), MARK "|a|hel|lo");
        tokenizer_close(&t);
    }
}

static void test_space_prefix_off(void)
{
    struct vocabulary_change off = {.key = "tokenizer.ggml.add_space_prefix", .key_type = GGUF_BOOL};
    struct tokenizer *t = small_tokenizer(&off);
    CHECK_STR(pieces_of(t, "a t", &plain), "a|" MARK "t");
    struct token_ids ids = encode(t, " a", 2, &plain);
    struct buffer text = decode(t, &ids);
    CHECK(text.size == 2 && memcmp(text.data, " a", 2) == 0);
    buffer_release(&text);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

static void test_bos(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    struct tokenizer_options bos = {.add_bos = true};
    CHECK_STR(pieces_of(t, "", &bos), "<s>");
    CHECK_STR(pieces_of(t, "a", &bos), "<s>|" MARK "|a");
    tokenizer_close(&t);
    struct vocabulary_change none = {.key = "tokenizer.ggml.bos_token_id", .key_type = GGUF_I32, .value = -1};
    t = small_tokenizer(&none);
    CHECK_STR(pieces_of(t, "a", &bos), MARK "|a");
    tokenizer_close(&t);
}

static void test_ids_are_appended(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    struct token_ids ids = encode(t, "a", 1, &plain);
    struct err err;
    size_t before = ids.count;
    CHECK_INT(tokenizer_encode(t, "a", 1, &plain, &ids, &err), 0);
    CHECK_INT(ids.count, 2 * before);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

/* ---- special tokens ---- */

static void test_control_needs_asking(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    struct tokenizer_options special = {.parse_special = true};
    CHECK_STR(pieces_of(t, "a</s>a", &plain), MARK "|a|<|<0x2F>|s|>|a");
    CHECK_STR(pieces_of(t, "<s>", &plain), MARK "|<s|>");
    CHECK_STR(pieces_of(t, "<0x41>", &plain), MARK "|<|<0x30>|<0x78>|<0x34>|<0x31>|>");
    CHECK_STR(pieces_of(t, "a</s>a", &special), MARK "|a|</s>|" MARK "|a");
    CHECK_STR(pieces_of(t, "<s></s><unk>", &special), "<s>|</s>|<unk>");
    tokenizer_close(&t);
}

static void test_user_defined_always(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    CHECK_STR(pieces_of(t, "a<tool>a", &plain), MARK "|a|<tool>|a");
    CHECK_STR(pieces_of(t, "<tool>!", &plain), "<tool>!");
    CHECK_STR(pieces_of(t, "<tool><tool>!<tool", &plain), "<tool>|<tool>!|<|t|o|o|l");
    CHECK_STR(pieces_of(t, "  ##a", &plain), "  ##|a");
    tokenizer_close(&t);
}

/* ---- what cannot be said ---- */

static void test_missing_byte_token(void)
{
    /* <0x9C> is another word: U+672C cannot be spelled whole, so it is unknown as a whole. */
    struct vocabulary_change change = {.at = VOCABULARY_BYTES + 0x9C, .text = "zzz", .type = 1};
    struct tokenizer *t = small_tokenizer(&change);
    CHECK_STR(pieces_of(t,
                        "a\xE6\x9C\xAC"
                        "a",
                        &plain),
              MARK "|a|<unk>|a");
    CHECK_STR(pieces_of(t, "\xE2\x82\xAC", &plain), MARK "|<0xE2>|<0x82>|<0xAC>");
    tokenizer_close(&t);
}

static void test_unknown_by_type(void)
{
    struct vocabulary_change change = {
        .no_bytes = true, .key = "tokenizer.ggml.unknown_token_id", .key_type = GGUF_I32, .value = -1};
    struct tokenizer *t = small_tokenizer(&change);
    CHECK_STR(pieces_of(t, "axa", &plain), MARK "|a|<unk>|a");
    tokenizer_close(&t);
}

static void test_no_token_at_all(void)
{
    struct vocabulary_change change = {.at = 0, .type = 3, .no_bytes = true};
    struct tokenizer *t = small_tokenizer(&change);
    struct token_ids ids = encode(t, "a", 1, &plain);
    struct err err = {0};
    CHECK_INT(tokenizer_encode(t, "axa", 3, &plain, &ids, &err), -1);
    CHECK_INT(err.code, 400);
    CHECK_CONTAINS(err.message, "no byte token <0x78>");
    CHECK_INT(ids.count, 2);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

static void test_too_long(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    struct token_ids ids = {0};
    struct err err = {0};
    CHECK_INT(tokenizer_encode(t, "", (size_t)TOKENIZER_MAX_TEXT_BYTES + 1, &plain, &ids, &err), -1);
    CHECK_INT(err.code, 400);
    CHECK_CONTAINS(err.message, "expected at most 67108864");
    CHECK_INT(ids.count, 0);
    tokenizer_close(&t);
}

/* A vocabulary whose space mark is another word: a space is its byte. */
static void test_no_space_mark(void)
{
    struct vocabulary_change change = {.at = 8, .text = "zzz"};
    struct tokenizer *t = small_tokenizer(&change);
    CHECK_STR(pieces_of(t, "a a", &plain), "<0x20>|a|<0x20>|a");
    struct token_ids ids = encode(t, "a a", 3, &plain);
    struct buffer text = decode(t, &ids);
    CHECK(text.size == 3 && memcmp(text.data, "a a", 3) == 0);
    buffer_release(&text);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

/* ---- against the algorithm written the slow way ---- */

/* Symbols of the whole text; the best pair is searched anew for every merge, nothing is cut into segments. */
static struct token_ids encode_slowly(const struct tokenizer *t, const char *text, size_t bytes)
{
    struct {
        const char *at;
        size_t bytes;
    } symbol[128];
    size_t count = 0;
    struct buffer marked = {0};
    struct token_ids ids = {0};
    buffer_append(&marked, MARK, 3);
    for (size_t i = 0; i < bytes; i++)
        buffer_append(&marked, text[i] == ' ' ? MARK : text + i, text[i] == ' ' ? 3 : 1);
    for (size_t i = 0; i < marked.size; i += symbol[count++].bytes) {
        symbol[count].at = (const char *)marked.data + i;
        symbol[count].bytes = (size_t)utf8_sequence_bytes(marked.data[i]);
    }
    for (;;) {
        size_t best = count;
        float score = -INFINITY;
        for (size_t i = 0; i + 1 < count; i++)
            for (int p = 0; p < VOCABULARY_SMALL; p++)
                if (vocabulary_small[p].type == 1 && vocabulary_small[p].score > score &&
                    strlen(vocabulary_small[p].text) == symbol[i].bytes + symbol[i + 1].bytes &&
                    memcmp(vocabulary_small[p].text, symbol[i].at, symbol[i].bytes + symbol[i + 1].bytes) ==
                        0) {
                    best = i;
                    score = vocabulary_small[p].score;
                }
        if (best == count)
            break;
        symbol[best].bytes += symbol[best + 1].bytes;
        memmove(&symbol[best + 1], &symbol[best + 2], (count - best - 2) * sizeof(symbol[0]));
        count--;
    }
    for (size_t i = 0; i < count; i++) {
        int found = -1;
        for (int p = 0; p < VOCABULARY_SMALL; p++)
            if (vocabulary_small[p].type == 1 && strlen(vocabulary_small[p].text) == symbol[i].bytes &&
                memcmp(vocabulary_small[p].text, symbol[i].at, symbol[i].bytes) == 0)
                found = p;
        if (found >= 0)
            token_ids_push(&ids, found);
        for (size_t k = 0; found < 0 && k < symbol[i].bytes; k++)
            token_ids_push(&ids, VOCABULARY_BYTES + (uint8_t)symbol[i].at[k]);
    }
    CHECK(tokenizer_vocab_size(t) == VOCABULARY_COUNT);
    buffer_release(&marked);
    return ids;
}

static void test_slow_reference(void)
{
    static const char *const letters[] = {
        "a", "a", "a", "b", "c", "t", "h", "e", "l", "o",        " ",
        " ", "n", "v", "r", "w", "<", "s", ">", "d", "\xC3\xA9", "\xE6\x97\xA5",
        "z"};
    struct tokenizer *t = small_tokenizer(NULL);
    unsigned long long seed = 7;
    for (int round = 0; round < 2000 && test_failures == 0; round++) {
        struct buffer text = {0};
        size_t alphabet = round % 3 == 0 ? 3 : round % 3 == 1 ? 11 : ARRAY_LEN(letters);
        for (int n = 1 + (int)(test_random(&seed) % 60); n > 0; n--) {
            const char *letter = letters[test_random(&seed) % alphabet];
            buffer_append(&text, letter, strlen(letter));
        }
        struct token_ids slow = encode_slowly(t, (const char *)text.data, text.size);
        struct token_ids fast = encode(t, (const char *)text.data, text.size, &plain);
        CHECK_INT(fast.count, slow.count);
        CHECK(fast.count == slow.count && memcmp(fast.data, slow.data, slow.count * sizeof(int32_t)) == 0);
        if (test_failures)
            printf("# the text was \"%.*s\"\n", (int)text.size, text.data);
        token_ids_release(&slow);
        token_ids_release(&fast);
        buffer_release(&text);
    }
    tokenizer_close(&t);
}

/* ---- any text survives ---- */

static void append_character(struct buffer *b, uint32_t c)
{
    uint8_t s[4] = {(uint8_t)c};
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; n > 1 && i > 0; i--, c >>= 6)
        s[i] = (uint8_t)(0x80 | (c & 0x3F));
    if (n > 1)
        s[0] = (uint8_t)((0xF00u >> n) & 0xFF) | (uint8_t)c;
    buffer_append(b, s, (size_t)n);
}

/* Every length of character; not U+2581, which counts as a space, and no surrogates. */
static uint32_t random_character(unsigned long long *seed)
{
    static const uint32_t limit[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
    for (;;) {
        uint32_t c = (uint32_t)(test_random(seed) % limit[test_random(seed) % ARRAY_LEN(limit)]);
        if (test_random(seed) % 4 == 0)
            return " aeht"[test_random(seed) % 5];
        if (c != 0x2581 && (c < 0xD800 || c > 0xDFFF))
            return c;
    }
}

static void check_survives(const struct tokenizer *t)
{
    unsigned long long seed = 11;
    for (int round = 0; round < 2000 && test_failures == 0; round++) {
        struct buffer text = {0};
        for (int n = (int)(test_random(&seed) % 60); n > 0; n--)
            append_character(&text, random_character(&seed));
        CHECK(utf8_valid((const char *)text.data, text.size));
        struct token_ids ids = encode(t, (const char *)text.data, text.size, &plain);
        struct buffer back = decode(t, &ids);
        CHECK_INT(back.size, text.size);
        CHECK(back.size == text.size && (text.size == 0 || memcmp(back.data, text.data, text.size) == 0));
        buffer_release(&back);
        token_ids_release(&ids);
        buffer_release(&text);
    }
}

static void test_round_trip(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    check_survives(t);
    tokenizer_close(&t);
    struct vocabulary_change off = {.key = "tokenizer.ggml.add_space_prefix", .key_type = GGUF_BOOL};
    t = small_tokenizer(&off);
    check_survives(t);
    tokenizer_close(&t);
}

static void test_round_trip_shared(void)
{
    struct tokenizer *t = shared_tokenizer("data/tokenizer/ggml-vocab-llama-spm.gguf");
    if (!t)
        SKIP("no shared data");
    check_survives(t);
    tokenizer_close(&t);
}

/* ---- the reference's results ---- */

static char *read_all(const char *path)
{
    struct buffer b = {0};
    char chunk[4096];
    FILE *f = fopen(path, "rb");
    if (!f)
        die("%s cannot be read", path);
    for (size_t n; (n = fread(chunk, 1, sizeof(chunk), f)) > 0;)
        buffer_append(&b, chunk, n);
    fclose(f);
    buffer_append(&b, "", 1);
    return (char *)b.data;
}

static int check_reference(const struct tokenizer *t, char *inputs, char *outputs)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    int count = 0;
    for (char *end; (end = strstr(inputs, mark)); inputs = end + strlen(mark), count++) {
        char *line = strsep(&outputs, "\n");
        struct token_ids ids = encode(t, inputs, (size_t)(end - inputs), &plain);
        size_t i = 0;
        for (char *word; line && (word = strsep(&line, " "));)
            if (*word) {
                CHECK(i < ids.count && ids.data[i] == atoi(word));
                i++;
            }
        CHECK_INT(ids.count, i);
        token_ids_release(&ids);
    }
    return count;
}

static void test_reference(void)
{
    struct tokenizer *t = shared_tokenizer("data/tokenizer/ggml-vocab-llama-spm.gguf");
    if (!t)
        SKIP("no shared data");
    char *inputs = read_all(test_shared("data/tokenizer/ggml-vocab-llama-spm.gguf.inp"));
    char *outputs = read_all(test_shared("data/tokenizer/ggml-vocab-llama-spm.gguf.out"));
    CHECK_INT(check_reference(t, inputs, outputs), 46);
    free(inputs);
    free(outputs);
    tokenizer_close(&t);
}

/* ---- size ---- */

static void test_one_megabyte(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    size_t bytes = 1 << 20;
    char *text = xmalloc(bytes);
    memset(text, 'a', bytes);
    struct token_ids ids = encode(t, text, bytes, &plain);
    /* "aaa" grows at once from each leftmost "aa"; the letter left over makes the last one "aaaa". */
    CHECK_INT(ids.count, 1 + bytes / 3);
    token_ids_release(&ids);
    tokenizer_close(&t);
    if ((t = shared_tokenizer("data/tokenizer/ggml-vocab-llama-spm.gguf"))) {
        ids = encode(t, text, bytes, &plain);
        struct buffer back = decode(t, &ids);
        CHECK(back.size == bytes && memcmp(back.data, text, bytes) == 0);
        buffer_release(&back);
        token_ids_release(&ids);
        tokenizer_close(&t);
    }
    free(text);
}

/* Longer than the encoder's segments: cut somewhere, with nothing lost. */
static void test_beyond_a_segment(void)
{
    struct tokenizer *t = small_tokenizer(NULL);
    size_t bytes = 5 << 20;
    char *text = xmalloc(bytes);
    memset(text, 'a', bytes);
    struct token_ids ids = encode(t, text, bytes, &plain);
    struct buffer back = decode(t, &ids);
    CHECK_INT(back.size, bytes);
    CHECK(back.size == bytes && memcmp(back.data, text, bytes) == 0);
    CHECK(ids.count < bytes / 3 + 16);
    buffer_release(&back);
    token_ids_release(&ids);
    free(text);
    tokenizer_close(&t);
}

/* In a process of its own, whose peak is what this text cost. */
static long peak_kib(const char *unit, size_t bytes)
{
    pid_t child = fork();
    if (child == 0) {
        struct tokenizer *t = small_tokenizer(NULL);
        struct token_ids ids = {0};
        struct err err;
        char *text = xmalloc(bytes);
        for (size_t i = 0, n = strlen(unit); i < bytes; i++)
            text[i] = unit[i % n];
        _exit(tokenizer_encode(t, text, bytes, &plain, &ids, &err) ? 1 : 0);
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
    static const char *const units[] = {"a", "the cat ", "\xFF"};
    size_t bytes = 16 << 20;
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        long peak = peak_kib(units[i], bytes);
        printf("# 16 MiB of \"%s\": peak %ld KiB\n", (uint8_t)units[i][0] == 0xFF ? "\\xFF" : units[i], peak);
        CHECK(peak <= (long)(4 * bytes / 1024 + 64 * 1024));
    }
}

int main(void)
{
    TEST(test_merges, "pairs are merged in the order of their scores, bytes stand in for what has no piece");
    TEST(test_ties_go_left, "among equal scores the leftmost pair is merged first");
    TEST(test_only_normal_formed, "unknown, control and unused pieces are not formed");
    TEST(test_space_prefix_off, "without the space prefix the text begins as it is");
    TEST(test_bos, "BOS stands in front when asked for, before an empty text too");
    TEST(test_ids_are_appended, "ids are appended to those already there");
    TEST(test_control_needs_asking, "control and byte tokens written in a text stay text unless asked for");
    TEST(test_user_defined_always, "user-defined tokens are recognised always, the longest first");
    TEST(test_missing_byte_token, "a character that bytes cannot spell is unknown as a whole");
    TEST(test_unknown_by_type, "the unknown token is found by its type");
    TEST(test_no_token_at_all, "a character that no token can stand for is refused, the ids are as before");
    TEST(test_too_long, "text over 64 MiB is refused");
    TEST(test_no_space_mark, "a space without a piece is its byte");
    TEST(test_slow_reference, "segments and heap give what the slow algorithm gives");
    TEST(test_round_trip, "any text survives encoding and decoding");
    TEST(test_round_trip_shared, "any text survives the Llama vocabulary");
    TEST(test_reference, "the 46 strings of the Llama vocabulary have the reference's ids");
    TEST(test_one_megabyte, "1 MiB of one character is encoded");
    TEST(test_beyond_a_segment, "a run longer than a segment loses nothing");
    TEST(test_memory, "16 MiB of text take at most 4 x 16 + 64 MiB");
    return test_result();
}
