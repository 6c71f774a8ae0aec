/* Bad byte-level vocabularies: each is refused, and each with the error that names what is wrong with it. */
#include "tests/test.h"
#include "tests/unit/worker/model/bpe_vocabulary.h"

#define TOKENS "tokenizer.ggml.tokens"
#define SCORES "tokenizer.ggml.scores"
#define TYPES  "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"
#define PRE    "tokenizer.ggml.pre"

struct bad {
    const char *what;
    struct bpe_change change;
    const char *expected[2]; /* parts of the message; the second may be NULL */
};

static const struct bad bad_pre[] = {
    {"pre unknown", {.pre = "kimi-k2"}, {PRE " \"kimi-k2\" is not supported", "docs/models.md"}},
    {"pre empty", {.pre = ""}, {PRE " \"\" is not supported", NULL}},
    {"pre a prefix", {.pre = "gpt"}, {PRE " \"gpt\" is not supported", NULL}},
    {"pre longer", {.pre = "gpt-22"}, {PRE " \"gpt-22\" is not supported", NULL}},
    {"pre in capitals", {.pre = "GPT-2"}, {PRE " \"GPT-2\" is not supported", NULL}},
    {"pre with an escape", {.pre = "\x1B[31mred"}, {PRE " \"?[31mred\" is not supported", NULL}},
    {"pre very long",
     {.pre = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
     {PRE " \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" is not", NULL}},
    {"pre a number", {.retype = PRE, .as = GGUF_U32}, {PRE, "u32"}},
    {"pre a bool", {.retype = PRE, .as = GGUF_BOOL}, {PRE, "bool"}},
};

static const struct bad bad_arrays[] = {
    {"no tokens", {.omit = TOKENS}, {"no array " TOKENS, NULL}},
    {"tokens a string", {.retype = TOKENS, .as = GGUF_STRING, .scalar = true}, {TOKENS, "array"}},
    {"tokens floats", {.retype = TOKENS, .as = GGUF_F32}, {TOKENS ": expected an array of strings", NULL}},
    {"tokens empty", {.resize = TOKENS, .by = -1000000}, {TOKENS ": expected 1 to", "found 0"}},
    {"tokens fewer", {.resize = TOKENS, .by = -1}, {TYPES ": expected 283 elements", "found 284"}},
    {"tokens more", {.resize = TOKENS, .by = 1}, {TYPES ": expected 285 elements", "found 284"}},
    {"types u32", {.retype = TYPES, .as = GGUF_U32}, {TYPES ": expected an array of i32", NULL}},
    {"types strings", {.retype = TYPES, .as = GGUF_STRING}, {TYPES ": expected an array of i32", NULL}},
    {"types one i32", {.retype = TYPES, .as = GGUF_I32, .scalar = true}, {TYPES, "array"}},
    {"types empty", {.resize = TYPES, .by = -1000000}, {TYPES ": expected 284 elements", "found 0"}},
    {"types one short", {.resize = TYPES, .by = -1}, {TYPES ": expected 284 elements", "found 283"}},
    {"scores one short", {.resize = SCORES, .by = -1}, {SCORES ": expected 284 elements", "found 283"}},
    {"scores ints", {.retype = SCORES, .as = GGUF_I32}, {SCORES ": expected an array of f32", NULL}},
    {"scores one f32", {.retype = SCORES, .as = GGUF_F32, .scalar = true}, {SCORES, "array"}},
    {"score NaN", {.at = 9, .score = NAN}, {SCORES "[9]: expected a finite number", NULL}},
    {"no merges", {.omit = MERGES}, {"no array " MERGES, NULL}},
    {"merges a string", {.retype = MERGES, .as = GGUF_STRING, .scalar = true}, {MERGES, "array"}},
    {"merges a number", {.retype = MERGES, .as = GGUF_U64, .scalar = true}, {MERGES, "array"}},
    {"merges ints", {.retype = MERGES, .as = GGUF_I32}, {MERGES ": expected an array of strings", NULL}},
    {"merges u8", {.retype = MERGES, .as = GGUF_U8}, {MERGES ": expected an array of strings", NULL}},
    {"merges floats", {.retype = MERGES, .as = GGUF_F32}, {MERGES ": expected an array of strings", NULL}},
    {"merges words", {.retype = MERGES, .as = GGUF_STRING}, {MERGES "[0]: expected two pieces", NULL}},
};

static const char long_piece[1025] = {[0 ... 1024] = 'x'};
static const char long_merge[2051] = {[0 ... 1024] = 'x', [1025] = ' ', [1026 ... 2050] = 'y'};
static const char long_part[1102] = {[0 ... 1099] = 'x', [1100] = ' ', [1101] = 'y'};

static const struct bad bad_pieces[] = {
    {"piece empty", {.at = 65, .text = ""}, {TOKENS "[65]: expected 1 to 1024 bytes, found 0", NULL}},
    {"piece too long", {.at = 65, .text = long_piece, .text_bytes = 1025}, {TOKENS "[65]", "found 1025"}},
    {"lone continuation", {.at = 257, .text = "\x80"}, {TOKENS "[257]: expected valid UTF-8", NULL}},
    {"a raw byte", {.at = 255, .text = "\xFF"}, {TOKENS "[255]: expected valid UTF-8", NULL}},
    {"cut character", {.at = 258, .text = "l\xC4"}, {TOKENS "[258]: expected valid UTF-8", NULL}},
    {"surrogate", {.at = 259, .text = "\xED\xA0\x80"}, {TOKENS "[259]: expected valid UTF-8", NULL}},
    {"overlong form", {.at = 259, .text = "\xC0\x80"}, {TOKENS "[259]: expected valid UTF-8", NULL}},
    {"two of a byte", {.at = 66, .text = "A"}, {TOKENS "[65] and [66] are the same piece", NULL}},
    {"two of a word", {.at = 257, .text = "he"}, {TOKENS "[256] and [257] are the same piece", NULL}},
    {"control twice", {.at = 276, .text = "<|bos|>"}, {TOKENS "[275] and [276] are the same piece", NULL}},
    {"type 0", {.at = 9, .type = NO_TYPE}, {TYPES "[9]: expected 1 to 6, found 0", NULL}},
    {"type 7", {.at = 9, .type = 7}, {TYPES "[9]: expected 1 to 6, found 7", NULL}},
    {"type -1", {.at = 9, .type = -1}, {TYPES "[9]: expected 1 to 6, found -1", NULL}},
    {"a word as byte", {.at = 256, .type = 6}, {TOKENS "[256]: a byte token", NULL}},
    {"byte negative", {.at = 282, .text = "<0x-1>", .type = 6}, {TOKENS "[282]: a byte token", NULL}},
    {"byte of three digits", {.at = 282, .text = "<0x041>", .type = 6}, {TOKENS "[282]: a byte token", NULL}},
};

#define MERGE(n, ...)                         \
    {                                         \
        .merge_at = (n), .merge = __VA_ARGS__ \
    }
static const struct bad bad_merges[] = {
    {"empty", MERGE(3, ""), {MERGES "[3]: expected two pieces", NULL}},
    {"a space", MERGE(3, " "), {MERGES "[3]: expected two pieces", NULL}},
    {"spaces", MERGE(3, "   "), {MERGES "[3]: expected two pieces", NULL}},
    {"one piece", MERGE(3, "hello"), {MERGES "[3]: expected two pieces", "one space between"}},
    {"no left part", MERGE(3, " o"), {MERGES "[3]: expected two pieces", NULL}},
    {"no right part", MERGE(3, "hell "), {MERGES "[3]: expected two pieces", NULL}},
    {"three pieces", MERGE(3, "he ll o"), {MERGES "[3]: expected two pieces", NULL}},
    {"two spaces", MERGE(3, "hell  o"), {MERGES "[3]: expected two pieces", NULL}},
    {"a space behind", MERGE(3, "hell o "), {MERGES "[3]: expected two pieces", NULL}},
    {"a space in front", MERGE(3, " hell o"), {MERGES "[3]: expected two pieces", NULL}},
    {"a tab between", MERGE(3, "hell\to"), {MERGES "[3]: expected two pieces", NULL}},
    {"a NUL between", MERGE(3, "hell\0o", .merge_bytes = 6), {MERGES "[3]: expected two pieces", NULL}},
    {"too long", MERGE(3, long_merge, .merge_bytes = 2051), {MERGES "[3]: expected at most 2049", "2051"}},
    {"a part too long",
     MERGE(3, long_part, .merge_bytes = 1102),
     {MERGES "[3]: its left part is no piece", NULL}},
    {"left missing", MERGE(3, "hel lo"), {MERGES "[3]: its left part is no piece", NULL}},
    {"right missing", MERGE(3, "he llo"), {MERGES "[3]: its right part is no piece", NULL}},
    {"product missing", MERGE(3, "he o"), {MERGES "[3]: what it makes is no piece", NULL}},
    {"line end on the right", MERGE(3, "hell o\r"), {MERGES "[3]: its right part is no piece", NULL}},
    {"NUL in a part",
     MERGE(3, "hell\0 o", .merge_bytes = 7),
     {MERGES "[3]: its left part is no piece", NULL}},
    {"no UTF-8", MERGE(3, "\xFF o"), {MERGES "[3]: its left part is no piece", NULL}},
    {"a cut character", MERGE(4, "\xC4 hello"), {MERGES "[4]: its left part is no piece", NULL}},
    {"a raw space mark", MERGE(4, MARK " hello"), {MERGES "[4]: its left part is no piece", NULL}},
    {"a piece with itself", MERGE(3, "hello hello"), {MERGES "[3]: what it makes is no piece", NULL}},
    {"turned round", MERGE(3, "o hell"), {MERGES "[3]: what it makes is no piece", NULL}},
    {"back to its part", MERGE(3, "hello h"), {MERGES "[3]: what it makes is no piece", NULL}},
    {"twice", MERGE(3, "h e"), {MERGES "[3]: the same as [0]", NULL}},
    {"twice, far apart", MERGE(18, "h e"), {MERGES "[18]: the same as [0]", NULL}},
    {"twice, next", MERGE(1, "h e"), {MERGES "[1]: the same as [0]", NULL}},
    {"a version line", MERGE(0, "#version: 0.2"), {MERGES "[0]: its left part is no piece", NULL}},
    {"one too many", {.resize = MERGES, .by = 1}, {MERGES "[19]: what it makes is no piece", NULL}},
    {"a part renamed", {.at = 256, .text = "eh"}, {MERGES "[0]: what it makes is no piece", NULL}},
    {"a byte renamed", {.at = 'h', .text = "never2"}, {MERGES "[0]: its left part is no piece", NULL}},
};

#define ID(name, t, v)                                           \
    {                                                            \
        .key = "tokenizer.ggml." name, .key_type = t, .value = v \
    }
static const struct bad bad_settings[] = {
    {"BOS the count", ID("bos_token_id", GGUF_U32, 284), {"bos_token_id: expected an id below 284", "284"}},
    {"BOS text", ID("bos_token_id", GGUF_STRING, 0), {"bos_token_id", "string"}},
    {"EOS -2", ID("eos_token_id", GGUF_I32, -2), {"eos_token_id: expected an id", "found -2"}},
    {"EOS f32", ID("eos_token_id", GGUF_F32, 2), {"eos_token_id", "f32"}},
    {"EOT", ID("eot_token_id", GGUF_U32, 9999), {"eot_token_id: expected an id", "9999"}},
    {"unknown", ID("unknown_token_id", GGUF_I64, INT64_MIN), {"unknown_token_id: expected an id", "-92"}},
    {"add_bos a number", ID("add_bos_token", GGUF_U32, 1), {"add_bos_token", "u32"}},
    {"add_eos text", ID("add_eos_token", GGUF_STRING, 0), {"add_eos_token", "string"}},
    {"add_space a number", ID("add_space_prefix", GGUF_I8, 1), {"add_space_prefix", "i8"}},
};

static void check_refused(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct tokenizer *t = NULL;
        struct err err = {0};
        int before = test_failures;
        CHECK_INT(bpe_open(&t, &cases[i].change, &err), -1);
        CHECK(t == NULL);
        CHECK_CONTAINS(err.message, "small.gguf: ");
        CHECK_CONTAINS(err.message, cases[i].expected[0]);
        if (cases[i].expected[1])
            CHECK_CONTAINS(err.message, cases[i].expected[1]);
        if (test_failures != before)
            printf("# the case was: %s\n", cases[i].what);
        tokenizer_close(&t);
    }
}

static void test_pre(void)
{
    check_refused(bad_pre, ARRAY_LEN(bad_pre));
}

static void test_arrays(void)
{
    check_refused(bad_arrays, ARRAY_LEN(bad_arrays));
}

static void test_pieces(void)
{
    check_refused(bad_pieces, ARRAY_LEN(bad_pieces));
}

static void test_merges(void)
{
    check_refused(bad_merges, ARRAY_LEN(bad_merges));
}

static void test_settings(void)
{
    check_refused(bad_settings, ARRAY_LEN(bad_settings));
}

/* Opens with the change and says what came out; the tokenizer must open. */
static struct tokenizer *opened(struct bpe_change change)
{
    struct tokenizer *t;
    struct err err = {0};
    CHECK_INT(bpe_open(&t, &change, &err), 0);
    CHECK_STR(err.message, "");
    if (!t)
        exit(1);
    return t;
}

static void test_without_arrays(void)
{
    struct tokenizer *t = opened((struct bpe_change){.omit = TYPES});
    CHECK_INT(t->pieces[BPE_BOS].type, PIECE_NORMAL);
    CHECK_INT(tokenizer_bos(t), BPE_BOS);
    tokenizer_close(&t);
    t = opened((struct bpe_change){.at = 9, .score = 1});
    CHECK_INT(tokenizer_vocab_size(t), BPE_COUNT);
    tokenizer_close(&t);
    t = opened((struct bpe_change){.resize = MERGES, .by = -1000000}); /* bytes alone */
    tokenizer_close(&t);
}

static void test_pre_absent(void)
{
    struct tokenizer *t = opened((struct bpe_change){.omit = PRE});
    struct tokenizer_options plain = {0};
    struct token_ids ids = {0};
    CHECK_INT(tokenizer_encode(t, "1234", 4, &plain, &ids, NULL), 0);
    CHECK_INT(ids.count, 4);
    token_ids_release(&ids);
    tokenizer_close(&t);
}

static void test_ends(void)
{
    struct tokenizer *t = opened((struct bpe_change){0});
    CHECK(tokenizer_is_end(t, BPE_EOS) && tokenizer_is_end(t, BPE_IM_END));
    CHECK(!tokenizer_is_end(t, BPE_BOS) && !tokenizer_is_end(t, BPE_ENDOFTEXT) && !tokenizer_is_end(t, -1));
    tokenizer_close(&t);
    static const char *const names[] = {"<|eot_id|>",
                                        "<|eom_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|endoftext|>",
                                        "<|end_of_text|>",
                                        "<end_of_turn>",
                                        "<EOT>",
                                        "<|return|>",
                                        "<|end_of_turn|>",
                                        "<|END_OF_TURN_TOKEN|>",
                                        "<end_of_utterance>"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        for (int type = 3; type <= 4; type++) {
            int at = strcmp(names[i], "<|im_end|>") == 0      ? BPE_IM_END
                     : strcmp(names[i], "<|endoftext|>") == 0 ? BPE_ENDOFTEXT
                                                              : BPE_UNKNOWN;
            t = opened((struct bpe_change){.at = at, .text = names[i], .type = type});
            CHECK_INT(tokenizer_is_end(t, at), type == 3);
            tokenizer_close(&t);
        }
}

static void test_defaults(void)
{
    struct tokenizer *t = opened((struct bpe_change){0});
    CHECK(!tokenizer_adds_bos(t) && !tokenizer_adds_eos(t) && !t->add_space_prefix);
    tokenizer_close(&t);
    t = opened((struct bpe_change){.pre = "llama-bpe"});
    CHECK(tokenizer_adds_bos(t));
    tokenizer_close(&t);
    t = opened((struct bpe_change){
        .pre = "llama-bpe", .key = "tokenizer.ggml.add_bos_token", .key_type = GGUF_BOOL});
    CHECK(!tokenizer_adds_bos(t));
    tokenizer_close(&t);
    t = opened((struct bpe_change){.key = "tokenizer.ggml.add_eos_token", .key_type = GGUF_BOOL, .value = 1});
    CHECK(tokenizer_adds_eos(t) && !tokenizer_adds_bos(t));
    tokenizer_close(&t);
    t = opened((struct bpe_change){.omit = "tokenizer.ggml.eos_token_id"});
    CHECK_INT(tokenizer_eos(t), -1); /* token 11 is a byte here */
    tokenizer_close(&t);
    t = opened((struct bpe_change){.omit = "tokenizer.ggml.eos_token_id", .at = 11, .type = 3});
    CHECK_INT(tokenizer_eos(t), 11);
    tokenizer_close(&t);
}

int main(void)
{
    TEST(test_pre, "an unknown pre-tokenizer is refused by name");
    TEST(test_arrays, "missing, wrongly typed and unequal arrays are refused by name");
    TEST(test_pieces, "bad pieces and types are refused by number");
    TEST(test_merges, "merges that are malformed, twice there or lead nowhere are refused by number");
    TEST(test_settings, "ids out of range and settings of a wrong type are refused by key");
    TEST(test_without_arrays, "scores, types and merges may be missing or empty");
    TEST(test_pre_absent, "a file without a pre-tokenizer gets the default rule");
    TEST(test_ends, "control tokens with the usual names end a generation");
    TEST(test_defaults, "BOS, EOS and the space prefix follow the file and the pre-tokenizer");
    return test_result();
}
