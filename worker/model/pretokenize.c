/* pretokenize: the table of names, the rules behind them, and how the passes of a rule are applied.
 *
 * A rule is up to MAX_PASSES passes. Pass n cuts every piece that pass n - 1 left, depth first, so that words
 * come out in order and nothing is stored. */
#include "worker/model/pretokenize_impl.h"

#include <string.h>

/* ---- sets of the published expressions --------------------------------------------------------------------
 */

/* The cased letters of deepseek-llm, as its tokenizer.json lists them. */
static const struct code_range deepseek_letters[] = {
    {0x41, 0x5A},       {0x61, 0x7A},       {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},
    {0xF8, 0x1BA},      {0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},
    {0x376, 0x376},     {0x377, 0x377},     {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},
    {0x388, 0x38A},     {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},     {0x3F7, 0x481},
    {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},   {0x13F8, 0x13FD},
    {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},
    {0x1E00, 0x1F15},   {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},
    {0x1F59, 0x1F59},   {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},
    {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},
    {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},   {0x2102, 0x2102},
    {0x2107, 0x2107},   {0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},
    {0x2126, 0x2126},   {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},
    {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2183},   {0x2184, 0x2184},
    {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},   {0x2CF2, 0x2CF2},   {0x2CF3, 0x2CF3},
    {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},
    {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},
    {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2},
    {0x118A0, 0x118DF}, {0x1E900, 0x1E943},
};
static const struct code_range deepseek_symbols[] = {
    {'!', '/'}, {':', '~'}, {0x2018, 0x201F}, {0x3000, 0x3002}, {0xFF01, 0xFF0F}, {0xFF1A, 0xFF5E},
};
/* The list's "[一-龥ࠀ-一가-퟿]": what lies between U+0800 and U+4E00 is meant, too. */
static const struct code_range deepseek_east_asian[] = {{0x800, 0x9FA5}, {0xAC00, 0xD7FF}};
static const struct code_range deepseek3_east_asian[] = {{0x3040, 0x30FF}, {0x4E00, 0x9FA5}};
static const struct code_range ascii_digits[] = {{'0', '9'}};
/* " ?[^(\s|.,!?…。，、।۔،)]+" */
static const struct code_range bloom_outside[] = {
    {'!', '!'},     {'(', ')'},     {',', ','},     {'.', '.'},       {'?', '?'},       {'|', '|'},
    {0x60C, 0x60C}, {0x6D4, 0x6D4}, {0x964, 0x964}, {0x2026, 0x2026}, {0x3001, 0x3002}, {0xFF0C, 0xFF0C},
};

#define RANGES(r) .ranges = (r), .range_count = ARRAY_LEN(r)

/* ---- rules ------------------------------------------------------------------------------------------------
 */

#define GPT2_PASS           \
    {                       \
        .match = match_gpt2 \
    }
#define EACH_NUMBER_PASS                                     \
    {                                                        \
        .match = match_run, .classes = CHAR_NUMBER, .max = 1 \
    }
#define NUMBERS_PASS                               \
    {                                              \
        .match = match_run, .classes = CHAR_NUMBER \
    }
#define EACH_LINE_END_PASS                                    \
    {                                                         \
        .match = match_run, .classes = CHAR_NEWLINE, .max = 1 \
    }
#define THREE_DIGITS_PASS                                            \
    {                                                                \
        .match = match_run, RANGES(ascii_digits), .min = 3, .max = 3 \
    }
#define EAST_ASIAN_PASS(r)            \
    {                                 \
        .match = match_run, RANGES(r) \
    }
#define BLOOM_PASS                                                                         \
    {                                                                                      \
        .match = match_run, .classes = CHAR_SPACE, RANGES(bloom_outside), .negated = true, \
        .before = BLANK_BEFORE                                                             \
    }

static const struct pretokenize_rule rule_default = {
    .name = "default",
    .passes = {{.match = match_run, .classes = CHAR_PUNCTUATION, .ascii = "$+<=>^~|"},
               GPT2_PASS,
               NUMBERS_PASS,
               THREE_DIGITS_PASS},
};
static const struct pretokenize_rule rule_gpt2 = {.name = "gpt-2", .passes = {GPT2_PASS}};
static const struct pretokenize_rule rule_falcon = {
    .name = "falcon",
    .passes = {{.match = match_run, .classes = CHAR_PUNCTUATION, .ascii = "$+<=>^~|`"},
               GPT2_PASS,
               THREE_DIGITS_PASS},
};
static const struct pretokenize_rule rule_starcoder = {
    .name = "starcoder",
    .passes = {EACH_NUMBER_PASS, GPT2_PASS},
};
static const struct pretokenize_rule rule_llama3 = {
    .name = "llama-bpe",
    .passes =
        {{.match = match_words, .contraction_first = true, .max_digits = 3, .newlines_after_symbols = true}},
};
static const struct pretokenize_rule rule_qwen2 = {
    .name = "qwen2",
    .passes =
        {{.match = match_words, .contraction_first = true, .max_digits = 1, .newlines_after_symbols = true}},
};
static const struct pretokenize_rule rule_gpt4o = {
    .name = "gpt-4o",
    .passes = {{.match = match_words,
                .contraction_last = true,
                .cased = true,
                .max_digits = 3,
                .newlines_after_symbols = true,
                .slash_after_symbols = true}},
};
static const struct pretokenize_rule rule_tekken = {
    .name = "tekken",
    .passes = {{.match = match_words,
                .cased = true,
                .max_digits = 1,
                .newlines_after_symbols = true,
                .slash_after_symbols = true}},
};
static const struct pretokenize_rule rule_seed_coder = {
    .name = "seed-coder",
    .passes = {{.match = match_words, .contraction_first = true, .max_digits = 1}},
};
static const struct pretokenize_rule rule_deepseek_llm = {
    .name = "deepseek-llm",
    .passes = {EACH_LINE_END_PASS,
               {.match = match_run, RANGES(deepseek_letters), .before = ANY_SPACE_BEFORE},
               {.match = match_run, RANGES(deepseek_symbols), .before = ANY_SPACE_BEFORE},
               {.match = match_space_at_end},
               EAST_ASIAN_PASS(deepseek_east_asian),
               NUMBERS_PASS},
};
static const struct pretokenize_rule rule_deepseek_coder = {
    .name = "deepseek-coder",
    .passes = {EACH_LINE_END_PASS,
               {.match = match_run, .classes = CHAR_LETTER, .before = ANY_SPACE_BEFORE},
               {.match = match_run, .classes = CHAR_PUNCTUATION, .before = ANY_SPACE_BEFORE},
               EAST_ASIAN_PASS(deepseek_east_asian),
               EACH_NUMBER_PASS},
};
static const struct pretokenize_rule rule_deepseek3 = {
    .name = "deepseek-v3",
    .passes = {{.match = match_run, .classes = CHAR_NUMBER, .max = 3},
               EAST_ASIAN_PASS(deepseek3_east_asian),
               {.match = match_deepseek3}},
};
static const struct pretokenize_rule rule_bloom = {.name = "bloom", .passes = {BLOOM_PASS}};
static const struct pretokenize_rule rule_viking = {.name = "viking",
                                                    .passes = {BLOOM_PASS, EACH_NUMBER_PASS}};

/* ---- names ------------------------------------------------------------------------------------------------
 */

/* docs/models.md shows this table. */
static const struct pretokenizer rows[] = {
    {.name = "default", .rule = &rule_default},
    {.name = "gpt-2", .rule = &rule_gpt2},
    {.name = "gpt-neox", .rule = &rule_gpt2},
    {.name = "mpt", .rule = &rule_gpt2},
    {.name = "olmo", .rule = &rule_gpt2},
    {.name = "phi-2", .rule = &rule_gpt2},
    {.name = "jais", .rule = &rule_gpt2},
    {.name = "gigachat", .rule = &rule_gpt2},
    {.name = "trillion", .rule = &rule_gpt2},
    {.name = "exaone4", .rule = &rule_gpt2},
    {.name = "granite-docling", .rule = &rule_gpt2},
    {.name = "a.x-4.0", .rule = &rule_gpt2},
    {.name = "mellum", .rule = &rule_gpt2},
    {.name = "jina-es", .rule = &rule_gpt2},
    {.name = "jina-de", .rule = &rule_gpt2},
    {.name = "jina-v2-es", .rule = &rule_gpt2},
    {.name = "jina-v2-de", .rule = &rule_gpt2},
    {.name = "starcoder", .rule = &rule_starcoder},
    {.name = "refact", .rule = &rule_starcoder},
    {.name = "command-r", .rule = &rule_starcoder},
    {.name = "smollm", .rule = &rule_starcoder},
    {.name = "codeshell", .rule = &rule_starcoder},
    {.name = "exaone", .rule = &rule_starcoder},
    {.name = "minerva-7b", .rule = &rule_starcoder},
    {.name = "falcon", .rule = &rule_falcon},
    {.name = "llama-bpe", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "falcon-h1", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "pixtral", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "midm-2.0", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "lfm2", .rule = &rule_llama3, .ignore_merges = true, .add_bos = true},
    {.name = "dbrx", .rule = &rule_llama3},
    {.name = "smaug-bpe", .rule = &rule_llama3},
    {.name = "chatglm-bpe", .rule = &rule_llama3},
    {.name = "glm4", .rule = &rule_llama3},
    {.name = "qwen2", .rule = &rule_qwen2},
    {.name = "stablelm2", .rule = &rule_qwen2},
    {.name = "deepseek-r1-qwen", .rule = &rule_qwen2},
    {.name = "megrez", .rule = &rule_qwen2},
    {.name = "hunyuan", .rule = &rule_qwen2},
    {.name = "kormo", .rule = &rule_qwen2},
    {.name = "grok-2", .rule = &rule_qwen2},
    {.name = "gpt-4o", .rule = &rule_gpt4o},
    {.name = "llama4", .rule = &rule_gpt4o},
    {.name = "tekken", .rule = &rule_tekken, .ignore_merges = true, .add_bos = true},
    {.name = "seed-coder", .rule = &rule_seed_coder},
    {.name = "deepseek-llm", .rule = &rule_deepseek_llm},
    {.name = "deepseek-coder", .rule = &rule_deepseek_coder},
    {.name = "deepseek-v3", .rule = &rule_deepseek3},
    {.name = "hunyuan-dense", .rule = &rule_deepseek3},
    {.name = "bloom", .rule = &rule_bloom},
    {.name = "gpt3-finnish", .rule = &rule_bloom},
    {.name = "poro-chat", .rule = &rule_bloom},
    {.name = "viking", .rule = &rule_viking},
    {0},
};

const struct pretokenizer *pretokenizer_find(const char *name, size_t bytes)
{
    for (const struct pretokenizer *p = rows; p->name; p++)
        if (strlen(p->name) == bytes && memcmp(p->name, name, bytes) == 0)
            return p;
    return NULL;
}

const struct pretokenizer *pretokenizer_all(void)
{
    return rows;
}

const char *pretokenizer_rule_name(const struct pretokenizer *p)
{
    return p->rule->name;
}

/* ---- applying a rule --------------------------------------------------------------------------------------
 */

struct split {
    const struct pass *passes;
    const char *text;
    int (*word)(void *context, const char *text, size_t bytes);
    void *context;
};

/* Cuts text[begin..end) by pass `n` and the ones after it. */
static int split_piece(const struct split *s, int n, size_t begin, size_t end)
{
    if (begin == end)
        return 0;
    if (n == MAX_PASSES || !s->passes[n].match)
        return s->word(s->context, s->text + begin, end - begin);
    const struct piece_of_text piece = {s->text, end};
    int result = 0;
    size_t gap = begin; /* what lies between two matches is a piece as well */
    for (size_t at = begin; at < end && result == 0;) {
        size_t skip = 0, bytes = s->passes[n].match(&s->passes[n], &piece, at, &skip);
        ASSERT(bytes <= end - at && (bytes || (skip && skip <= end - at)));
        if (bytes == 0) {
            at += skip;
            continue;
        }
        result = split_piece(s, n + 1, gap, at);
        if (result == 0)
            result = split_piece(s, n + 1, at, at + bytes);
        gap = at += bytes;
    }
    return result ? result : split_piece(s, n + 1, gap, end);
}

int pretokenize(const struct pretokenizer *p, const char *text, size_t bytes,
                int (*word)(void *context, const char *text, size_t bytes), void *context)
{
    const struct split s = {p->rule->passes, text, word, context};
    return split_piece(&s, 0, 0, bytes);
}
