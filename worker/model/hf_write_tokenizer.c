/* hf_write_tokenizer: tokenizer.ggml.* keys -> tokenizer.model (SentencePiece) or tokenizer.json
 * (byte-level), and tokenizer_config.json. */
#include "worker/model/hf_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY "tokenizer.ggml."

static bool string_is(struct gguf_string s, const char *text)
{
    return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}

static int get_id(const struct gguf *g, const struct hf_vocabulary *v, const char *key, int64_t *id,
                  struct err *err)
{
    int found = gguf_get_int(g, key, id, err);
    if (found < 0)
        return -1;
    if (found && *id != -1 && *id != UINT32_MAX && (*id < 0 || (uint64_t)*id >= v->count))
        return err_set(err, "%s: %s: expected an id below %llu, found %lld", gguf_name(g), key,
                       (unsigned long long)v->count, (long long)*id);
    if (found && *id == UINT32_MAX)
        *id = -1;
    return 0;
}

/* The filler that hf_tokenizer.c would put there itself. */
static bool is_filler(const struct hf_vocabulary *v, uint64_t id)
{
    char text[32];
    snprintf(text, sizeof(text), "[PAD%llu]", (unsigned long long)id);
    return v->token[id].type == HF_TOKEN_UNUSED && strcmp(hf_vocabulary_text(v, (int64_t)id), text) == 0;
}

static int read_tokens(struct hf_vocabulary *v, const struct gguf *g, struct err *err)
{
    enum gguf_type element;
    uint64_t count = 0, scores = 0, types = 0;
    if (gguf_get_array(g, KEY "tokens", &element, &count, err) < 0)
        return -1;
    if (count == 0 || element != GGUF_STRING)
        return err_set(err, "%s: " KEY "tokens: expected an array of strings", gguf_name(g));
    int has_types = gguf_get_array(g, KEY "token_type", &element, &types, err);
    if (has_types < 0 || (has_types && (element != GGUF_I32 || types != count)))
        return err_set(err, "%s: " KEY "token_type: expected an i32 for each token", gguf_name(g));
    int has_scores = gguf_get_array(g, KEY "scores", &element, &scores, err);
    if (has_scores < 0 || (has_scores && (element != GGUF_F32 || scores != count)))
        return err_set(err, "%s: " KEY "scores: expected an f32 for each token", gguf_name(g));
    for (uint64_t i = 0; i < count; i++) {
        struct gguf_string s = gguf_array_string(g, KEY "tokens", i);
        int64_t type = has_types ? gguf_array_int(g, KEY "token_type", i) : HF_TOKEN_NORMAL;
        float score = has_scores ? (float)gguf_array_float(g, KEY "scores", i) : 0;
        if (type < HF_TOKEN_NORMAL || type > HF_TOKEN_BYTE)
            return err_set(err, "%s: " KEY "token_type[%llu]: expected 1 to 6, found %lld", gguf_name(g),
                           (unsigned long long)i, (long long)type);
        if (hf_vocabulary_put(v, gguf_name(g), (int64_t)i, s.data, s.size, score, (enum hf_token_type)type,
                              err))
            return -1;
    }
    return get_id(g, v, KEY "bos_token_id", &v->bos, err) || get_id(g, v, KEY "eos_token_id", &v->eos, err) ||
                   get_id(g, v, KEY "unknown_token_id", &v->unknown, err) ||
                   get_id(g, v, KEY "padding_token_id", &v->pad, err)
               ? -1
               : 0;
}

/* ---- tokenizer.json ----------------------------------------------------------------------------------- */

static json_t *vocab_json(const struct hf_vocabulary *v)
{
    json_t *vocab = json_object();
    for (uint64_t i = 0; i < v->count; i++)
        if (!is_filler(v, i))
            json_object_set_new(vocab, hf_vocabulary_text(v, (int64_t)i), json_integer((json_int_t)i));
    return vocab;
}

static json_t *added_json(const struct hf_vocabulary *v)
{
    json_t *added = json_array();
    for (uint64_t i = 0; i < v->count; i++) {
        enum hf_token_type type = v->token[i].type;
        if (type != HF_TOKEN_CONTROL && type != HF_TOKEN_USER_DEFINED && type != HF_TOKEN_UNKNOWN)
            continue;
        json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                               "content", hf_vocabulary_text(v, (int64_t)i), "single_word", 0,
                                               "lstrip", 0, "rstrip", 0, "normalized", 0, "special",
                                               type != HF_TOKEN_USER_DEFINED));
    }
    return added;
}

static json_t *merges_json(const struct gguf *g, struct err *err)
{
    enum gguf_type element;
    uint64_t count = 0;
    json_t *merges = json_array();
    int found = gguf_get_array(g, KEY "merges", &element, &count, err);
    if (found <= 0 || element != GGUF_STRING) {
        err_set(err, "%s: " KEY "merges: expected an array of strings", gguf_name(g));
        json_decref(merges);
        return NULL;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct gguf_string s = gguf_array_string(g, KEY "merges", i);
        const char *space = s.size ? memchr(s.data, ' ', s.size) : NULL;
        if (!space || !utf8_valid(s.data, s.size)) {
            err_set(err, "%s: " KEY "merges[%llu]: expected two tokens with a space between", gguf_name(g),
                    (unsigned long long)i);
            json_decref(merges);
            return NULL;
        }
        json_array_append_new(merges, json_stringn(s.data, s.size));
    }
    return merges;
}

static json_t *template_json(const struct hf_vocabulary *v)
{
    const char *bos = hf_vocabulary_text(v, v->bos);
    return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], "
                     "s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}], "
                     "s:{s:{s:s, s:[I], s:[s]}}}",
                     "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0,
                     "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", bos, "type_id", 0,
                     "Sequence", "id", "A", "type_id", 0, "SpecialToken", "id", bos, "type_id", 1, "Sequence",
                     "id", "B", "type_id", 1, "special_tokens", bos, "id", bos, "ids", (json_int_t)v->bos,
                     "tokens", bos);
}

static int write_byte_level(const struct gguf *g, const struct hf_vocabulary *v, const char *directory,
                            bool add_bos, struct err *err)
{
    struct gguf_string pre = {"default", 7};
    char name[64];
    if (gguf_get_string(g, KEY "pre", &pre, err) < 0)
        return -1;
    snprintf(name, sizeof(name), "%.*s", (int)(pre.size < 63 ? pre.size : 63), pre.data);
    json_t *cut = hf_pre_write(name), *merges;
    if (!cut)
        return err_set(err, "%s: " KEY "pre \"%s\" has no tokenizer.json form here", gguf_name(g), name);
    merges = merges_json(g, err);
    if (!merges) {
        json_decref(cut);
        return -1;
    }
    json_t *bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                              "trim_offsets", 1, "use_regex", 1);
    json_t *model =
        json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                  "ignore_merges", strcmp(name, "llama-bpe") == 0, "vocab", vocab_json(v), "merges", merges);
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:o, s:O, s:o}", "version", "1.0", "truncation",
                             "padding", "added_tokens", added_json(v), "normalizer", "pre_tokenizer", cut,
                             "post_processor", add_bos && v->bos >= 0 ? template_json(v) : json_incref(bytes),
                             "decoder", bytes, "model", model);
    ASSERT(root);
    int rc = hf_write_json(directory, "tokenizer.json", root, err);
    json_decref(bytes);
    json_decref(root);
    return rc;
}

/* ---- tokenizer_config.json ---------------------------------------------------------------------------- */

static void set_text(json_t *root, const char *key, const struct hf_vocabulary *v, int64_t id)
{
    if (id >= 0)
        json_object_set_new(root, key, json_string(hf_vocabulary_text(v, id)));
}

static int write_config(const struct gguf *g, const struct hf_family *family, const struct hf_vocabulary *v,
                        const char *directory, bool add_bos, bool add_eos, struct err *err)
{
    struct gguf_string chat;
    bool gemma = strncmp(family->model_type, "gemma", 5) == 0;
    json_t *root = json_object();
    json_object_set_new(root, "tokenizer_class",
                        json_string(!v->sentencepiece ? "PreTrainedTokenizerFast"
                                    : gemma           ? "GemmaTokenizer"
                                                      : "LlamaTokenizer"));
    json_object_set_new(root, "add_bos_token", json_boolean(add_bos));
    json_object_set_new(root, "add_eos_token", json_boolean(add_eos));
    json_object_set_new(root, "clean_up_tokenization_spaces", json_false());
    set_text(root, "bos_token", v, v->bos);
    set_text(root, "eos_token", v, v->eos);
    set_text(root, "unk_token", v, v->unknown);
    set_text(root, "pad_token", v, v->pad);
    if (gguf_get_string(g, "tokenizer.chat_template", &chat, NULL) == 1 && utf8_valid(chat.data, chat.size))
        json_object_set_new(root, "chat_template", json_stringn(chat.data, chat.size));
    int rc = hf_write_json(directory, "tokenizer_config.json", root, err);
    json_decref(root);
    return rc;
}

static int write_files(const struct gguf *g, const struct hf_family *family, struct hf_vocabulary *v,
                       const char *directory, struct err *err)
{
    bool add_bos = v->sentencepiece, add_eos = false;
    v->add_space_prefix = true;
    if (read_tokens(v, g, err) || gguf_get_bool(g, KEY "add_bos_token", &add_bos, err) < 0 ||
        gguf_get_bool(g, KEY "add_eos_token", &add_eos, err) < 0 ||
        gguf_get_bool(g, KEY "add_space_prefix", &v->add_space_prefix, err) < 0)
        return -1;
    if (v->sentencepiece) {
        struct buffer out = {0};
        hf_sentencepiece_write(v, &out);
        int rc = hf_write_file(directory, "tokenizer.model", out.data, out.size, err);
        buffer_release(&out);
        if (rc)
            return -1;
    } else if (write_byte_level(g, v, directory, add_bos, err)) {
        return -1;
    }
    return write_config(g, family, v, directory, add_bos, add_eos, err);
}

int hf_write_tokenizer(const struct gguf *g, const struct hf_family *family, const char *directory,
                       struct buffer *notes, struct err *err)
{
    struct gguf_string model;
    struct hf_vocabulary v;
    int found = gguf_get_string(g, KEY "model", &model, err);
    if (found < 0)
        return -1;
    if (found == 0) {
        buffer_printf(notes, "no tokenizer: the file has none\n");
        return 0;
    }
    hf_vocabulary_init(&v);
    v.sentencepiece = string_is(model, "llama");
    int rc =
        v.sentencepiece || string_is(model, "gpt2")
            ? write_files(g, family, &v, directory, err)
            : err_set(err, "%s: " KEY "model \"%.*s\" has no Hugging Face form here, expected llama or gpt2",
                      gguf_name(g), (int)(model.size < 32 ? model.size : 32), model.data);
    hf_vocabulary_release(&v);
    return rc;
}
