#include "worker/model/hf.h"

#include <dirent.h>

#include "tests/test.h"
#include "worker/model/tokenizer.h"

/* A model of one layer: 8 wide, 2 heads, 1 KV head, 6 tokens; every weight is zero. */
static const char config_json[] =
    "{\"model_type\": \"llama\", \"hidden_act\": \"silu\", \"num_hidden_layers\": 1, \"hidden_size\": 8, "
    "\"intermediate_size\": 4, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
    "\"max_position_embeddings\": 16, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
    "\"tie_word_embeddings\": false, \"vocab_size\": 6, \"eos_token_id\": 4}";

static const char tokenizer_json[] =
    "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 4, \"content\": \"<e>\", \"special\": true}], "
    "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
    "\"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null, "
    "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"byte_fallback\": false, "
    "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"c\\u0041\": 3, \"c\": 5, \"A\": 6}, "
    "\"merges\": [\"a b\", [\"c\", \"A\"]]}}";

/* SentencePiece in other words: the pieces of "abc". */
static const char fallback_json[] =
    "{\"added_tokens\": [{\"id\": 0, \"content\": \"<u>\", \"special\": true}], "
    "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "
    "\"\\u2581\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\\u2581\"}]}, "
    "\"pre_tokenizer\": null, \"model\": {\"type\": \"BPE\", \"unk_token\": \"<u>\", \"byte_fallback\": "
    "true, "
    "\"vocab\": {\"<u>\": 0, \"a\": 1, \"b\": 2, \"c\": 3, \"ab\": 4, \"abc\": 5}, "
    "\"merges\": [\"a b\", \"ab c\"]}}";

static char directory[64];

static void put_file(const char *name, const void *data, size_t bytes)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0)
        die("%s: cannot write", path);
}

static void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

/* `without` is left out; `more` (JSON of a tensor's name, dtype, shape and bytes) may be NULL. */
static void put_weights(const char *without, const char *more, uint64_t more_bytes)
{
    static const struct {
        const char *name;
        int rows, columns;
    } tensors[] = {{"model.embed_tokens.weight", 7, 8},
                   {"model.norm.weight", 8, 0},
                   {"lm_head.weight", 7, 8},
                   {"model.layers.0.input_layernorm.weight", 8, 0},
                   {"model.layers.0.post_attention_layernorm.weight", 8, 0},
                   {"model.layers.0.self_attn.q_proj.weight", 8, 8},
                   {"model.layers.0.self_attn.k_proj.weight", 4, 8},
                   {"model.layers.0.self_attn.v_proj.weight", 4, 8},
                   {"model.layers.0.self_attn.o_proj.weight", 8, 8},
                   {"model.layers.0.mlp.gate_proj.weight", 4, 8},
                   {"model.layers.0.mlp.up_proj.weight", 4, 8},
                   {"model.layers.0.mlp.down_proj.weight", 8, 4}};
    struct buffer header = {0}, file = {0};
    uint64_t at = 0;
    for (size_t i = 0; i < ARRAY_LEN(tensors); i++) {
        int rows = tensors[i].rows, columns = tensors[i].columns;
        uint64_t bytes = (uint64_t)(rows * (columns ? columns : 1)) * 2;
        if (without && strcmp(without, tensors[i].name) == 0)
            continue;
        buffer_printf(&header, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[%d", header.size ? "," : "{",
                      tensors[i].name, rows);
        if (columns)
            buffer_printf(&header, ",%d", columns);
        buffer_printf(&header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                      (unsigned long long)(at + bytes));
        at += bytes;
    }
    if (more)
        buffer_printf(&header, ",%s,\"data_offsets\":[%llu,%llu]}", more, (unsigned long long)at,
                      (unsigned long long)(at + more_bytes));
    at += more ? more_bytes : 0;
    buffer_printf(&header, "}");
    buffer_u64(&file, header.size);
    buffer_append(&file, header.data, header.size);
    for (uint64_t i = 0; i < at; i++)
        buffer_append(&file, "", 1);
    put_file("model.safetensors", file.data, file.size);
    buffer_release(&header);
    buffer_release(&file);
}

static void reset(void)
{
    DIR *d = opendir(directory);
    struct dirent *entry;
    while (d && (entry = readdir(d)))
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    put_text("config.json", "");
    char *config = xstrdup(config_json), *vocab = strstr(config, "\"vocab_size\": 6");
    vocab[14] = '7';
    put_text("config.json", config);
    free(config);
    put_text("tokenizer.json", tokenizer_json);
    put_weights(NULL, NULL, 0);
}

/* The text with the first `from` replaced by `to`; `from` must be there. */
static void put_edited(const char *name, const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        die("\"%s\" is not in %s", from, name);
    char *out = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    put_text(name, out);
    free(out);
}

static void expect_refused(const char *part)
{
    struct gguf *g;
    struct tokenizer *t = NULL;
    struct err err = {0};
    int rc = hf_open(&g, directory, HF_MODEL, &err);
    if (rc == 0)
        rc = tokenizer_open(&t, g, &err);
    CHECK_INT(rc, -1);
    CHECK_CONTAINS(err.message, part);
    tokenizer_close(&t);
    gguf_close(&g);
}

static void a_directory_opens(void)
{
    struct gguf *g;
    struct tokenizer *t;
    struct err err = {0};
    struct gguf_string name;
    uint64_t n;
    reset();
    CHECK_INT(hf_open(&g, directory, HF_MODEL, &err), 0);
    CHECK_STR(err.message, "");
    CHECK_INT(gguf_get_string(g, "general.architecture", &name, NULL), 1);
    CHECK(name.size == 5 && memcmp(name.data, "llama", 5) == 0);
    CHECK(gguf_get_uint(g, "llama.rope.dimension_count", &n, NULL) == 1 && n == 4);
    CHECK_INT(gguf_tensor_count(g), 12);
    const struct gguf_tensor *norm = gguf_tensor_find(g, "output_norm.weight");
    CHECK(norm && norm->dtype == DTYPE_F32 && norm->ndim == 1);
    CHECK_INT(tokenizer_open(&t, g, &err), 0);
    CHECK_INT(tokenizer_vocab_size(t), 7);
    CHECK_INT(tokenizer_eos(t), 4);
    tokenizer_close(&t);
    gguf_close(&g);
}

static const struct {
    const char *from, *to, *error;
} bad_config[] = {
    {"\"llama\"", "\"bloom\"", "model_type: \"bloom\" is not supported, expected llama, mistral"},
    {"\"llama\"", "7", "model_type: expected a string, found an integer"},
    {"\"model_type\": \"llama\", ", "", "model_type is missing"},
    {"\"silu\"", "\"relu\"", "hidden_act: \"relu\" is not supported, expected silu"},
    {"\"silu\"", "[]", "hidden_act: expected a string, found an array"},
    {"\"num_hidden_layers\": 1, ", "", "num_hidden_layers is missing"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": 0", "num_hidden_layers is 0, expected 1"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": -1", "num_hidden_layers is -1"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": 1.5", "num_hidden_layers: expected an integer"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": \"1\"", "num_hidden_layers: expected an integer"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": 4097",
     "num_hidden_layers is 4097, expected 1 to 4096"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2",
     "model.layers.1.input_layernorm.weight is missing"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": null", "num_hidden_layers is missing"},
    {"\"num_hidden_layers\": 1", "\"num_hidden_layers\": 99999999999999999999", "too big integer"},
    {"\"hidden_size\": 8", "\"hidden_size\": 9", "hidden size 9 is no multiple of 2 heads"},
    {"\"hidden_size\": 8", "\"hidden_size\": 2147483648", "hidden_size is 2147483648"},
    {"\"hidden_size\": 8", "\"hidden_size\": 16", "8 rows, expected 2 heads of 8"},
    {"\"intermediate_size\": 4, ", "", "intermediate_size is missing"},
    {"\"num_attention_heads\": 2", "\"num_attention_heads\": 0", "num_attention_heads is 0"},
    {"\"num_attention_heads\": 2", "\"num_attention_heads\": 70000", "expected 1 to 65536"},
    {"\"num_attention_heads\": 2", "\"num_attention_heads\": 8",
     "heads of 1 elements of which 1 are rotated"},
    {"\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3",
     "expected a multiple of num_key_value_heads"},
    {"\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2", "4 rows, expected 2 heads of 4"},
    {"\"max_position_embeddings\": 16, ", "", "max_position_embeddings is missing"},
    {"\"rms_norm_eps\": 1e-05, ", "", "rms_norm_eps is missing"},
    {"\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": -1", "rms_norm_eps is -1, expected a positive number"},
    {"\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": \"x\"", "rms_norm_eps: expected a number"},
    {"10000.0", "0", "rope_theta is 0, expected a positive number"},
    {"10000.0", "1e400", "real number overflow"},
    {"10000.0", "10000.0, \"rope_scaling\": {}", "rope_scaling: its type is missing"},
    {"10000.0", "10000.0, \"rope_scaling\": 4", "rope_scaling: expected an object"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"dynamic\"}", "type: \"dynamic\" is not supported"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"longrope\"}", "type: \"longrope\" is not supported"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"linear\"}", "rope_scaling: factor is missing"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}", "factor is 0"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"yarn\"}", "rope_scaling: factor is missing"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"beta_fast\": 16}",
     "beta_fast"},
    {"10000.0", "10000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}",
     "low_freq_factor is"},
    {"10000.0",
     "10000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
     "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8}",
     "expected more than low_freq_factor"},
    {"10000.0", "10000.0, \"head_dim\": 3", "3 elements of which 3 are rotated: expected an even number"},
    {"10000.0", "10000.0, \"head_dim\": 8", "8 rows, expected 2 heads of 8"},
    {"10000.0", "10000.0, \"head_dim\": -8", "head_dim is -8"},
    {"10000.0", "10000.0, \"partial_rotary_factor\": 0.5", "partial_rotary_factor: 0.5 is not supported"},
    {"10000.0", "10000.0, \"quantization_config\": {\"quant_method\": \"gptq\"}", "quantization_config"},
    {"false", "0", "tie_word_embeddings: expected true or false"},
    {"\"vocab_size\": 7", "\"vocab_size\": 6", "vocab_size is 6, the embedding has 7 rows"},
    {"\"vocab_size\": 7", "\"vocab_size\": 16777217", "vocab_size is 16777217"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": 7", "eos_token_id: 7, expected an id below 7"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": -1", "eos_token_id: -1, expected an id"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": [1,2,3,4]", "eos_token_id: 4 ids, expected at most 3"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": \"</s>\"", "eos_token_id: expected an id or a list"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": [\"x\"]", "eos_token_id: expected an id or a list"},
    {"\"eos_token_id\": 4", "\"bos_token_id\": 9", "bos_token_id: 9, expected an id below 7"},
    {"\"eos_token_id\": 4", "\"eos_token_id\": 4, \"eos_token_id\": 5", "duplicate object key"},
    {"{", "[{", "JSON"},
    {"}", "", "JSON"},
    {"{", "\xFF{", "JSON"},
};

static void bad_configurations_are_refused(void)
{
    char config[2048];
    snprintf(config, sizeof(config), "%s", config_json);
    strstr(config, "\"vocab_size\": 6")[14] = '7';
    for (size_t i = 0; i < ARRAY_LEN(bad_config); i++) {
        reset();
        put_edited("config.json", config, bad_config[i].from, bad_config[i].to);
        expect_refused(bad_config[i].error);
    }
}

static const struct {
    const char *from, *to, *error;
} bad_tokenizer[] = {
    {"\"a b\"", "\"a x\"", "merge 0: \"ax\": its right part is not in the vocabulary"},
    {"\"a b\"", "\"x b\"", "its left part is not in the vocabulary"},
    {"\"a b\"", "\"b a\"", "merge 0: \"ba\": what it makes is not in the vocabulary"},
    {"\"a b\"", "\"ab\"", "expected a merge of two tokens with a space between"},
    {"\"a b\"", "\"a  b\"", "its right part is not in the vocabulary"},
    {"\"a b\"", "\"\"", "expected a merge of two tokens"},
    {"\"a b\"", "7", "expected a merge"},
    {"\"a b\"", "[\"a\"]", "expected ','"},
    {"\"a b\"", "[\"a\", \"b\", \"c\"]", "a merge has two tokens"},
    {"\"a b\"", "[\"\", \"b\"]", "its left part is not in the vocabulary"},
    {"\"a b\", [\"c\", \"A\"]]", "\"a b\"", "expected"},
    {"\"merges\": [\"a b\"", "\"merges\": {\"a\":\"b\"}, \"x\": [\"a b\"", "model.merges: an array"},
    {"\"a\": 0", "\"a\": -1", "expected a token id"},
    {"\"a\": 0", "\"a\": 1.5", "expected"},
    {"\"a\": 0", "\"a\": \"0\"", "expected a token id"},
    {"\"a\": 0", "\"a\": 99999999999", "expected"},
    {"\"a\": 0", "\"a\": 00", "expected a token id"},
    {"\"a\": 0", "\"a\": 1", "token id 1 stands twice"},
    {"\"a\": 0", "\"a\": 0, \"a\": 9", "are the same text"},
    {"\"a\": 0", "\"\": 0", "a text of 0 bytes"},
    {"\"a\": 0", "\"a\\u0000\": 0", "a character other than zero"},
    {"\"a\": 0", "\"a\\ud800\": 0", "the second half of a surrogate pair"},
    {"\"a\": 0", "\"a\\udc00\": 0", "lone surrogates"},
    {"\"a\": 0", "\"a\\ud800\\u0041\": 0", "the second half of a surrogate pair"},
    {"\"a\": 0", "\"a\\x\": 0", "a JSON escape"},
    {"\"a\": 0", "\"a\\u00g0\": 0", "four hexadecimal digits"},
    {"\"a\": 0", "\"a\xFF\": 0", "valid UTF-8"},
    {"\"a\": 0", "\"a\n\": 0", "the end of a string"},
    {"\"a\": 0", "\"a\": 0, \"b2\": 9", "10 tokens, the embedding has 7 rows"},
    {"\"vocab\": {", "\"vocab\": [], \"v\": {", "its left part is not in the vocabulary"},
    {"\"vocab\": {", "\"v\": {", "not in the vocabulary"},
    {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model type: \"Unigram\" is not supported"},
    {"\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "model type: \"WordPiece\" is not supported"},
    {"\"model\": {", "\"m\": {", "model is missing"},
    {"\"model\": {", "\"model\": [], \"m\": {", "model: expected an object"},
    {"\"unk_token\": null", "\"unk_token\": 3", "unk_token: expected a string"},
    {"\"unk_token\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix: \"</w>\""},
    {"\"unk_token\": null", "\"continuing_subword_prefix\": \"##\"", "continuing_subword_prefix: \"##\""},
    {"\"unk_token\": null", "\"ignore_merges\": true",
     "ignore_merges is not supported with the pre-tokenizer gpt-2"},
    {"\"byte_fallback\": false", "\"byte_fallback\": 1", "byte_fallback: expected true or false"},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "normalizer: \"Lowercase\""},
    {"\"normalizer\": null", "\"normalizer\": \"NFC\"", "normalizer: expected an object"},
    {"\"ByteLevel\"", "\"Whitespace\"", "pre_tokenizer: \"Whitespace\" is not supported"},
    {"\"use_regex\": true", "\"use_regex\": false", "has no name in tokenizer.ggml.pre"},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space is not supported"},
    {"\"post_processor\": null", "\"post_processor\": {\"type\": \"Bert\"}", "post_processor: \"Bert\""},
    {"\"id\": 4", "\"id\": 2", "token id 2 stands twice"},
    {"\"id\": 4", "\"id\": -1", "expected an id and a content"},
    {"\"id\": 4", "\"id\": 99999999", "token id 99999999, expected 0 to"},
    {"\"id\": 4, \"content\": \"<e>\"", "\"id\": 4, \"content\": \"a\"",
     "has id 4 there and 0 in the vocabulary"},
    {"\"content\": \"<e>\", ", "", "expected an id and a content"},
    {"[{\"id\": 4, \"content\": \"<e>\", \"special\": true}]", "[3]", "added_tokens: expected objects"},
    {"[{\"id\": 4", "{\"x\": [{\"id\": 4", "expected ',' or '}'"},
    {"\"version\"", "\"model\": {}, \"version\"", "duplicate object key"},
};

static void bad_tokenizers_are_refused(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad_tokenizer); i++) {
        reset();
        put_edited("tokenizer.json", tokenizer_json, bad_tokenizer[i].from, bad_tokenizer[i].to);
        expect_refused(bad_tokenizer[i].error);
    }
}

static const struct {
    const char *from, *to, *error;
} bad_fallback[] = {
    {"\"ab c\"", "\"ab c\", \"a b\"", "do not stand together"},
    {"\"ab c\"", "\"ab c\", \"ab c\"", "stands twice"},
    {"[\"a b\", \"ab c\"]", "[\"a b\"]", "in a way that the merges do not have"},
    {"\"Prepend\"", "\"Append\"", "normalizer: \"Append\" is not supported"},
    {"\"String\": \" \"", "\"String\": \"x\"", "normalizer: \"Replace\" is not supported"},
    {"\"normalizer\": {", "\"n\": {", "expected one that replaces spaces by U+2581"},
    {"\"pre_tokenizer\": null", "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\"}",
     "Metaspace with split"},
    {"\"pre_tokenizer\": null",
     "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"split\": false, "
     "\"prepend_scheme\": \"last\"}",
     "prepend_scheme: \"last\""},
    {"\"pre_tokenizer\": null", "\"pre_tokenizer\": {\"type\": \"Digits\"}", "pre_tokenizer: \"Digits\""},
};

static void bad_byte_fallback_is_refused(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad_fallback); i++) {
        reset();
        put_edited("tokenizer.json", fallback_json, bad_fallback[i].from, bad_fallback[i].to);
        expect_refused(bad_fallback[i].error);
    }
}

static void bad_weights_are_refused(void)
{
    static const struct {
        const char *without, *more;
        uint64_t bytes;
        const char *error;
    } cases[] = {
        {"model.norm.weight", NULL, 0, "tensor model.norm.weight is missing"},
        {"lm_head.weight", NULL, 0, "lm_head.weight is missing, and tie_word_embeddings is false"},
        {"model.embed_tokens.weight", NULL, 0, "model.embed_tokens.weight is missing"},
        {NULL, "\"x\":{\"dtype\":\"F32\",\"shape\":[1]", 4, "\"x\" is no part of a llama model of 1 layers"},
        {NULL, "\"model.layers.1.mlp.up_proj.weight\":{\"dtype\":\"F32\",\"shape\":[1]", 4, "is no part of"},
        {"model.norm.weight", "\"model.norm.weight\":{\"dtype\":\"I32\",\"shape\":[8]", 32,
         "type I32 is not supported for weights"},
        {"model.norm.weight", "\"model.norm.weight\":{\"dtype\":\"F64\",\"shape\":[8]", 64, "type F64"},
        {"model.norm.weight", "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[]", 4, "0 dimensions"},
        {"model.norm.weight", "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[2,2,2]", 32,
         "3 dimensions"},
        {"model.layers.0.self_attn.q_proj.weight",
         "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"F32\",\"shape\":[6,8]", 192, "has 6 rows"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        reset();
        put_weights(cases[i].without, cases[i].more, cases[i].bytes);
        expect_refused(cases[i].error);
    }
}

static void other_bad_files_are_refused(void)
{
    static const struct {
        const char *file, *text, *error;
    } cases[] = {
        {"config.json", NULL, "config.json is missing"},
        {"config.json", "", "the file is empty"},
        {"tokenizer.json", "", "0 bytes, expected 1 to"},
        {"tokenizer.json", "[]", "expected '{'"},
        {"tokenizer.json", "{\"a\"", "expected ':'"},
        {"tokenizer.json", "{} {}", "JSON"},
        {"model.safetensors", NULL, "neither model.safetensors nor"},
        {"model.safetensors", "", "header length"},
        {"generation_config.json", "{", "JSON"},
        {"generation_config.json", "{\"eos_token_id\": 99}", "eos_token_id: 99, expected an id below 7"},
        {"generation_config.json", "{\"temperature\": -1}", "temperature is -1"},
        {"generation_config.json", "{\"top_k\": \"x\"}", "top_k: expected a number"},
        {"tokenizer_config.json", "nonsense", "JSON"},
        {"tokenizer_config.json", "{\"eos_token\": 3}", "eos_token: expected a string or an object"},
        {"tokenizer_config.json", "{\"chat_template\": 3}", "chat_template: expected a string or a list"},
        {"tokenizer_config.json", "{\"chat_template\": [{}]}",
         "chat_template: expected a name and a template"},
        {"tokenizer_config.json", "{\"add_bos_token\": \"yes\"}", "add_bos_token: expected true or false"},
        {"tokenizer_config.json", "{\"add_prefix_space\": true}", "add_prefix_space is not supported"},
        {"chat_template.jinja", "\xFF", "expected UTF-8 text"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char path[300];
        reset();
        snprintf(path, sizeof(path), "%s/%s", directory, cases[i].file);
        if (cases[i].text)
            put_text(cases[i].file, cases[i].text);
        else
            unlink(path);
        expect_refused(cases[i].error);
    }
}

static void every_truncation_is_refused(void)
{
    static const struct {
        const char *name, *text;
    } files[] = {
        {"config.json", config_json}, {"tokenizer.json", tokenizer_json}, {"tokenizer.json", fallback_json}};
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        for (size_t n = 0; n < strlen(files[i].text); n++) {
            struct gguf *g;
            struct err err = {0};
            if (n % 97 == 0)
                reset();
            put_file(files[i].name, files[i].text, n);
            CHECK_INT(hf_open(&g, directory, HF_MODEL, &err), -1);
            CHECK_CONTAINS(err.message, files[i].name);
        }
}

int main(void)
{
    snprintf(directory, sizeof(directory), "/tmp/test_hf-XXXXXX");
    if (!mkdtemp(directory))
        die("mkdtemp");
    TEST(a_directory_opens, "a Hugging Face directory opens as a model");
    TEST(bad_configurations_are_refused, "57 bad configurations are refused, each for its own reason");
    TEST(bad_tokenizers_are_refused, "54 bad tokenizer.json are refused, each for its own reason");
    TEST(bad_byte_fallback_is_refused, "merges that are no SentencePiece scores are refused");
    TEST(bad_weights_are_refused,
         "weights that are missing, unknown or of the wrong kind are refused by name");
    TEST(other_bad_files_are_refused, "bad files beside them are refused");
    TEST(every_truncation_is_refused, "JSON cut at any byte is refused");
    reset();
    char *command = xasprintf("rm -rf %s", directory);
    int rc = system(command);
    free(command);
    return rc ? 1 : test_result();
}
