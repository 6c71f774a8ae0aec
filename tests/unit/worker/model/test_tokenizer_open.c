/* Bad vocabularies: each is refused, and each with the error that names what is wrong with it. */
#include "tests/test.h"
#include "tests/unit/worker/model/vocabulary.h"

#define TOKENS "tokenizer.ggml.tokens"
#define SCORES "tokenizer.ggml.scores"
#define TYPES  "tokenizer.ggml.token_type"

struct bad {
    const char *what;
    struct vocabulary_change change;
    const char *expected[2]; /* parts of the message; the second may be NULL */
};

static const struct bad bad_arrays[] = {
    {"no model", {.omit = "tokenizer.ggml.model"}, {"no tokenizer.ggml.model", "holds no tokenizer"}},
    {"model is a number",
     {.retype = "tokenizer.ggml.model", .as = GGUF_U32},
     {"tokenizer.ggml.model", "u32"}},
    {"model unknown", {.model = "bert"}, {"\"bert\" is not supported", "expected \"llama\" or \"gpt2\""}},
    {"model empty", {.model = ""}, {"model \"\" is not supported", NULL}},
    {"model a prefix", {.model = "llam"}, {"\"llam\" is not supported", NULL}},
    {"model longer", {.model = "llama2"}, {"\"llama2\" is not supported", NULL}},
    {"model with an escape", {.model = "\x1B[31mred"}, {"\"?[31mred\" is not supported", NULL}},
    {"no tokens", {.omit = TOKENS}, {"no array " TOKENS, NULL}},
    {"tokens a string", {.retype = TOKENS, .as = GGUF_STRING, .scalar = true}, {TOKENS, "array"}},
    {"tokens floats", {.retype = TOKENS, .as = GGUF_F32}, {TOKENS ": expected an array of strings", NULL}},
    {"tokens ints", {.retype = TOKENS, .as = GGUF_I32}, {TOKENS ": expected an array of strings", NULL}},
    {"tokens bools", {.retype = TOKENS, .as = GGUF_BOOL}, {TOKENS ": expected an array of strings", NULL}},
    {"tokens empty", {.resize = TOKENS, .by = -1000000}, {TOKENS ": expected 1 to", "found 0"}},
    {"tokens fewer", {.resize = TOKENS, .by = -1}, {SCORES ": expected 307 elements", "found 308"}},
    {"no scores", {.omit = SCORES}, {"no array " SCORES, NULL}},
    {"scores one f32", {.retype = SCORES, .as = GGUF_F32, .scalar = true}, {SCORES, "array"}},
    {"scores ints", {.retype = SCORES, .as = GGUF_I32}, {SCORES ": expected an array of f32", NULL}},
    {"scores f64", {.retype = SCORES, .as = GGUF_F64}, {SCORES ": expected an array of f32", NULL}},
    {"scores strings", {.retype = SCORES, .as = GGUF_STRING}, {SCORES ": expected an array of f32", NULL}},
    {"scores one short", {.resize = SCORES, .by = -1}, {SCORES ": expected 308 elements", "found 307"}},
    {"scores one long", {.resize = SCORES, .by = 1}, {SCORES ": expected 308 elements", "found 309"}},
    {"scores empty", {.resize = SCORES, .by = -1000000}, {SCORES ": expected 308 elements", "found 0"}},
    {"no types", {.omit = TYPES}, {"no array " TYPES, NULL}},
    {"types one i32", {.retype = TYPES, .as = GGUF_I32, .scalar = true}, {TYPES, "array"}},
    {"types u32", {.retype = TYPES, .as = GGUF_U32}, {TYPES ": expected an array of i32", NULL}},
    {"types u8", {.retype = TYPES, .as = GGUF_U8}, {TYPES ": expected an array of i32", NULL}},
    {"types f32", {.retype = TYPES, .as = GGUF_F32}, {TYPES ": expected an array of i32", NULL}},
    {"types strings", {.retype = TYPES, .as = GGUF_STRING}, {TYPES ": expected an array of i32", NULL}},
    {"types one short", {.resize = TYPES, .by = -1}, {TYPES ": expected 308 elements", "found 307"}},
    {"types one long", {.resize = TYPES, .by = 1}, {TYPES ": expected 308 elements", "found 309"}},
};

static const char long_piece[1025] = {[0 ... 1023] = 'x'};

/* Piece 8 is the space mark, 9 is "a"; 308 - 256 + 0x41 = 117 is <0x41>. */
static const struct bad bad_pieces[] = {
    {"piece empty", {.at = 9, .text = ""}, {TOKENS "[9]: expected 1 to 1024 bytes, found 0", NULL}},
    {"piece too long", {.at = 9, .text = long_piece, .text_bytes = 1025}, {TOKENS "[9]", "found 1025"}},
    {"lone continuation", {.at = 9, .text = "\x80"}, {TOKENS "[9]: expected valid UTF-8", NULL}},
    {"cut character", {.at = 10, .text = "b\xC3"}, {TOKENS "[10]: expected valid UTF-8", NULL}},
    {"overlong form", {.at = 11, .text = "\xC0\x80"}, {TOKENS "[11]: expected valid UTF-8", NULL}},
    {"surrogate", {.at = 12, .text = "\xED\xA0\x80"}, {TOKENS "[12]: expected valid UTF-8", NULL}},
    {"past U+10FFFF", {.at = 13, .text = "\xF4\x90\x80\x80"}, {TOKENS "[13]: expected valid UTF-8", NULL}},
    {"control token no UTF-8", {.at = 1, .text = "<\xFF>"}, {TOKENS "[1]: expected valid UTF-8", NULL}},
    {"two normal pieces", {.at = 10, .text = "a"}, {TOKENS "[9] and [10] are the same piece", NULL}},
    {"normal as control", {.at = 9, .text = "</s>"}, {TOKENS "[2] and [9] are the same piece", NULL}},
    {"two byte tokens", {.at = 118, .text = "<0x41>"}, {TOKENS "[117] and [118] are the same piece", NULL}},
    {"byte negative", {.at = 117, .text = "<0x-1>"}, {TOKENS "[117]: a byte token", "<0x00> to <0xFF>"}},
    {"byte one digit", {.at = 117, .text = "<0x1>"}, {TOKENS "[117]: a byte token", NULL}},
    {"byte three digits", {.at = 117, .text = "<0x041>"}, {TOKENS "[117]: a byte token", NULL}},
    {"byte no digits", {.at = 117, .text = "<0xGG>"}, {TOKENS "[117]: a byte token", NULL}},
    {"byte lower case", {.at = 126, .text = "<0x4a>"}, {TOKENS "[126]: a byte token", NULL}},
    {"byte capital X", {.at = 117, .text = "<0X41>"}, {TOKENS "[117]: a byte token", NULL}},
    {"byte not closed", {.at = 117, .text = "<0x41 "}, {TOKENS "[117]: a byte token", NULL}},
    {"byte with a sign", {.at = 117, .text = "<0x+4>"}, {TOKENS "[117]: a byte token", NULL}},
    {"byte with a space", {.at = 117, .text = "<0x 4>"}, {TOKENS "[117]: a byte token", NULL}},
    {"a word as byte", {.at = 9, .type = 6}, {TOKENS "[9]: a byte token", NULL}},
    {"score NaN", {.at = 9, .score = NAN}, {SCORES "[9]: expected a finite number", NULL}},
    {"score infinite", {.at = 9, .score = INFINITY}, {SCORES "[9]", "found inf"}},
    {"score -infinite", {.at = 10, .score = -INFINITY}, {SCORES "[10]", "found -inf"}},
    {"type 0", {.at = 9, .type = NO_TYPE}, {TYPES "[9]: expected 1 to 6, found 0", NULL}},
    {"type 7", {.at = 9, .type = 7}, {TYPES "[9]: expected 1 to 6, found 7", NULL}},
    {"type -1", {.at = 9, .type = -1}, {TYPES "[9]: expected 1 to 6, found -1", NULL}},
    {"type huge", {.at = 9, .type = INT32_MAX}, {TYPES "[9]: expected 1 to 6", "2147483647"}},
};

#define ID(name, t, v)                                           \
    {                                                            \
        .key = "tokenizer.ggml." name, .key_type = t, .value = v \
    }
static const struct bad bad_settings[] = {
    {"BOS the count", ID("bos_token_id", GGUF_U32, 308), {"bos_token_id: expected an id below 308", "308"}},
    {"BOS -2", ID("bos_token_id", GGUF_I32, -2), {"bos_token_id: expected an id", "found -2"}},
    {"BOS text", ID("bos_token_id", GGUF_STRING, 0), {"bos_token_id", "string"}},
    {"BOS 2^63", ID("bos_token_id", GGUF_U64, INT64_MIN), {"bos_token_id", "9223372036854775808"}},
    {"EOS 2^32", ID("eos_token_id", GGUF_U64, 1ll << 32), {"eos_token_id: expected an id", "4294967296"}},
    {"EOS f32", ID("eos_token_id", GGUF_F32, 2), {"eos_token_id", "f32"}},
    {"EOS a bool", ID("eos_token_id", GGUF_BOOL, 1), {"eos_token_id", "bool"}},
    {"unknown", ID("unknown_token_id", GGUF_U32, 9999), {"unknown_token_id: expected an id", "9999"}},
    {"EOT", ID("eot_token_id", GGUF_U32, 308), {"eot_token_id: expected an id", "308"}},
    {"EOM", ID("eom_token_id", GGUF_I64, INT64_MIN), {"eom_token_id: expected an id", "-92233720368"}},
    {"add_bos a number", ID("add_bos_token", GGUF_U32, 1), {"add_bos_token", "u32"}},
    {"add_space text", ID("add_space_prefix", GGUF_STRING, 0), {"add_space_prefix", "string"}},
};

static void check_refused(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct tokenizer *t = NULL;
        struct err err = {0};
        int before = test_failures;
        CHECK_INT(vocabulary_open(&t, &cases[i].change, &err), -1);
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

static void test_arrays(void)
{
    check_refused(bad_arrays, ARRAY_LEN(bad_arrays));
}

static void test_pieces(void)
{
    check_refused(bad_pieces, ARRAY_LEN(bad_pieces));
}

static void test_settings(void)
{
    check_refused(bad_settings, ARRAY_LEN(bad_settings));
}

static void test_good(void)
{
    struct tokenizer *t;
    struct err err = {0};
    struct vocabulary_change none = {0};
    CHECK_INT(vocabulary_open(&t, &none, &err), 0);
    CHECK_STR(err.message, "");
    CHECK_INT(tokenizer_vocab_size(t), VOCABULARY_COUNT);
    CHECK_INT(tokenizer_bos(t), 1);
    CHECK_INT(tokenizer_eos(t), 2);
    CHECK(tokenizer_adds_bos(t));
    CHECK(tokenizer_is_end(t, 2));
    CHECK(!tokenizer_is_end(t, 1) && !tokenizer_is_end(t, 3) && !tokenizer_is_end(t, -1));
    tokenizer_close(&t);
    CHECK(t == NULL);
    tokenizer_close(&t);
}

static void test_named_ids(void)
{
    struct tokenizer *t;
    struct vocabulary_change eot = ID("eot_token_id", GGUF_U32, 3), eom = ID("eom_token_id", GGUF_I32, 3),
                             bos = ID("bos_token_id", GGUF_U64, 3), no_bos = ID("bos_token_id", GGUF_I32, -1),
                             no_eos = ID("eos_token_id", GGUF_U32, UINT32_MAX),
                             never = ID("add_bos_token", GGUF_BOOL, 0);
    CHECK_INT(vocabulary_open(&t, &eot, NULL), 0);
    CHECK(tokenizer_is_end(t, 3) && tokenizer_is_end(t, 2));
    tokenizer_close(&t);
    CHECK_INT(vocabulary_open(&t, &eom, NULL), 0);
    CHECK(tokenizer_is_end(t, 3) && tokenizer_is_end(t, 2));
    tokenizer_close(&t);
    CHECK_INT(vocabulary_open(&t, &bos, NULL), 0);
    CHECK_INT(tokenizer_bos(t), 3);
    tokenizer_close(&t);
    CHECK_INT(vocabulary_open(&t, &no_bos, NULL), 0);
    CHECK_INT(tokenizer_bos(t), -1);
    CHECK(!tokenizer_adds_bos(t));
    tokenizer_close(&t);
    CHECK_INT(vocabulary_open(&t, &no_eos, NULL), 0);
    CHECK_INT(tokenizer_eos(t), -1);
    CHECK(!tokenizer_is_end(t, -1));
    tokenizer_close(&t);
    CHECK_INT(vocabulary_open(&t, &never, NULL), 0);
    CHECK(!tokenizer_adds_bos(t));
    CHECK_INT(tokenizer_bos(t), 1);
    tokenizer_close(&t);
}

/* A normal piece that happens to be number 1 is no BOS. */
static void test_default_must_be_control(void)
{
    struct tokenizer *t;
    struct vocabulary_change change = {.at = 1, .type = 1};
    CHECK_INT(vocabulary_open(&t, &change, NULL), 0);
    CHECK_INT(tokenizer_bos(t), -1);
    CHECK_INT(tokenizer_eos(t), 2);
    tokenizer_close(&t);
}

static void check_opens(const char *path, int pieces, int bos, int eos, bool adds_bos)
{
    struct gguf *g;
    struct tokenizer *t = NULL;
    struct err err = {0};
    CHECK_INT(gguf_open(&g, path, &err), 0);
    CHECK_INT(tokenizer_open(&t, g, &err), 0);
    CHECK_STR(err.message, "");
    if (t) {
        CHECK_INT(tokenizer_vocab_size(t), pieces);
        CHECK_INT(tokenizer_bos(t), bos);
        CHECK_INT(tokenizer_eos(t), eos);
        CHECK_INT(tokenizer_adds_bos(t), adds_bos);
        CHECK(tokenizer_is_end(t, eos));
    }
    tokenizer_close(&t);
    gguf_close(&g);
}

static void test_shared_models(void)
{
    const char *path = test_shared("data/lm/stories260K/stories260K.gguf");
    if (!path)
        SKIP("no shared data");
    check_opens(path, 512, 1, 2, true);
    if ((path = test_shared("data/lm/llama-2-tiny-random/llama-2-tiny-random.gguf")))
        check_opens(path, 32000, 1, 2, true);
    if ((path = test_shared("data/tokenizer/ggml-vocab-gpt-2.gguf")))
        check_opens(path, 50257, 50256, 50256, false);
    if ((path = test_shared("data/tokenizer/ggml-vocab-falcon.gguf")))
        check_opens(path, 65024, 11, 11, false);
}

int main(void)
{
    TEST(test_good, "a small good vocabulary opens with the defaults of llama");
    TEST(test_arrays, "missing, wrongly typed and unequal arrays are refused by name");
    TEST(test_pieces, "bad pieces, scores and types are refused by number");
    TEST(test_settings, "ids out of range and settings of a wrong type are refused by key");
    TEST(test_named_ids, "BOS, EOS, EOT and end-of-message follow the file");
    TEST(test_default_must_be_control, "the default BOS must be a control token");
    TEST(test_shared_models, "the vocabularies of real models open");
    return test_result();
}
