/* hf_tokenizer: the tokenizer's files of a directory -> tokenizer.ggml.* keys.
 *
 * tokenizer.json counts, except where it is SentencePiece in other words (byte_fallback, unigram) and
 * tokenizer.model is there: that has the scores themselves. Which ids end a text: generation_config.json,
 * else config.json, else tokenizer_config.json. */
#include "worker/model/hf_impl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/model/map_file.h"

#define KEY       "tokenizer.ggml."
#define MODEL_MAX (256u << 20)
#define ENDS_MAX  3 /* GGUF has keys for three: eos, eot, eom */

struct files {
    char *json, *model, *config, *added;
    json_t *config_root; /* NULL when absent */
};

static int read_sentencepiece(struct hf_vocabulary *v, const char *path, struct err *err)
{
    const void *data;
    uint64_t bytes;
    if (map_file(path, "a SentencePiece model", &data, &bytes, err))
        return -1;
    int rc = bytes > MODEL_MAX ? err_set(err, "%s: %llu bytes, expected at most %u", path,
                                         (unsigned long long)bytes, MODEL_MAX)
                               : hf_sentencepiece_parse(v, data ? data : "", bytes, path, err);
    map_file_release(data, bytes);
    return rc;
}

/* True when tokenizer.model says better what this tokenizer.json says. */
static bool is_sentencepiece(const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    return json_is_true(json_object_get(model, "byte_fallback")) || (type && strcmp(type, "Unigram") == 0);
}

/* added_tokens.json: {"text": id}; tokenizer_config.json: added_tokens_decoder {"id": {"content", ...}}. */
static int put_added(struct hf_vocabulary *v, const char *where, int64_t id, const char *text, bool special,
                     struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    int64_t known = hf_vocabulary_find(v, text, strlen(text));
    if (known == id)
        return 0;
    if (known >= 0)
        return err_set(err, "%s: \"%s\" has id %lld there and %lld in the vocabulary", where,
                       json_show(text, shown), (long long)id, (long long)known);
    return hf_vocabulary_put(v, where, id, text, strlen(text), 0,
                             special ? HF_TOKEN_CONTROL : HF_TOKEN_USER_DEFINED, err);
}

static int read_decoder(struct hf_vocabulary *v, const struct files *f, struct err *err)
{
    json_t *decoder = NULL, *token;
    const char *key, *text;
    if (!f->config_root ||
        json_get_object(f->config_root, f->config, "added_tokens_decoder", &decoder, err) < 0)
        return f->config_root ? -1 : 0;
    json_object_foreach(decoder, key, token)
    {
        char *end, shown[JSON_SHOW_BYTES];
        long id = strtol(key, &end, 10);
        bool special = false;
        text = NULL;
        if (!key[0] || *end || id < 0 || !json_is_object(token))
            return err_set(err, "%s: added_tokens_decoder: \"%s\": expected an id and an object", f->config,
                           json_show(key, shown));
        if (json_get_text(token, f->config, "content", &text, err) < 0 ||
            json_get_bool(token, f->config, "special", &special, err) < 0)
            return -1;
        if (text && put_added(v, f->config, id, text, special, err))
            return -1;
    }
    return 0;
}

static int read_added(struct hf_vocabulary *v, const struct files *f, struct err *err)
{
    bool found;
    const char *text;
    json_t *id, *root = json_read(f->added, HF_CONFIG_MAX, &found, err);
    int rc = !root && found ? -1 : 0;
    json_object_foreach(root, text, id)
    {
        if (rc)
            break;
        char shown[JSON_SHOW_BYTES];
        rc = json_is_integer(id)
                 ? put_added(v, f->added, json_integer_value(id), text, true, err)
                 : err_set(err, "%s: \"%s\": expected a token id", f->added, json_show(text, shown));
    }
    json_decref(root);
    return rc;
}

/* 1 read, 0 no tokenizer there, -1. */
static int read_vocabulary(struct hf_vocabulary *v, const struct files *f, struct err *err)
{
    bool found, model = access(f->model, F_OK) == 0;
    int rc = 0;
    json_t *root = hf_tokenizer_json(v, f->json, &found, err);
    if (!root && found)
        return -1;
    if (!root && !model)
        return 0;
    if (model && (!root || is_sentencepiece(root))) {
        hf_vocabulary_release(v);
        hf_vocabulary_init(v);
        rc =
            read_sentencepiece(v, f->model, err) || read_decoder(v, f, err) || read_added(v, f, err) ? -1 : 0;
    }
    if (rc == 0 && root)
        rc = hf_tokenizer_apply(v, root, f->json, err);
    json_decref(root);
    return rc ? -1 : 1;
}

/* ---- special ids -------------------------------------------------------------------------------------- */

/* "bos_token": "<s>" or {"content": "<s>", ...}. Leaves *id when not said or not in the vocabulary. */
static int named_id(const struct hf_vocabulary *v, const struct files *f, const char *key, int64_t *id,
                    struct err *err)
{
    const json_t *value = json_object_get(f->config_root, key);
    const char *text = json_is_object(value) ? json_string_value(json_object_get(value, "content"))
                                             : json_string_value(value);
    if (!value || json_is_null(value))
        return 0;
    if (!text)
        return err_set(err, "%s: %s: expected a string or an object with content", f->config, key);
    int64_t known = hf_vocabulary_find(v, text, strlen(text));
    if (known >= 0)
        *id = known;
    return 0;
}

static int check_id(const struct hf_vocabulary *v, const char *where, const char *key, int64_t id,
                    struct err *err)
{
    if (id >= 0 && (uint64_t)id < v->count)
        return 0;
    return err_set(err, "%s: %s: %lld, expected an id below %llu", where, key, (long long)id,
                   (unsigned long long)v->count);
}

/* An id or a list of ids: how many, 0 when absent. */
static int id_list(const struct hf_vocabulary *v, const json_t *object, const char *where, const char *key,
                   int64_t ids[ENDS_MAX], struct err *err)
{
    const json_t *value = json_object_get(object, key);
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (!value || json_is_null(value))
        return 0;
    if (n > ENDS_MAX)
        return err_set(err, "%s: %s: %zu ids, expected at most %d", where, key, n, ENDS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id))
            return err_set(err, "%s: %s: expected an id or a list of ids", where, key);
        ids[i] = json_integer_value(id);
        if (check_id(v, where, key, ids[i], err))
            return -1;
    }
    return (int)n;
}

/* The ids that end a text; the tokenizer's own eos comes first when it is one of them. */
static int read_ends(struct hf_vocabulary *v, const struct hf_config *c, int64_t ends[ENDS_MAX],
                     struct err *err)
{
    int n = 0;
    if (c && c->generation)
        n = id_list(v, c->generation, c->generation_path, "eos_token_id", ends, err);
    if (n == 0 && c)
        n = id_list(v, c->root, c->path, "eos_token_id", ends, err);
    if (n < 0)
        return -1;
    if (n == 0 && v->eos >= 0) {
        ends[0] = v->eos;
        return 1;
    }
    for (int i = 1; i < n; i++)
        if (ends[i] == v->eos) {
            ends[i] = ends[0];
            ends[0] = v->eos;
        }
    return n;
}

static int add_ids(struct hf_vocabulary *v, const struct hf_config *c, const struct files *f,
                   struct gguf_writer *w, struct err *err)
{
    static const char *const end_keys[] = {KEY "eos_token_id", KEY "eot_token_id", KEY "eom_token_id"};
    int64_t ends[ENDS_MAX], bos[ENDS_MAX];
    if (named_id(v, f, "bos_token", &v->bos, err) || named_id(v, f, "eos_token", &v->eos, err) ||
        named_id(v, f, "unk_token", &v->unknown, err) || named_id(v, f, "pad_token", &v->pad, err))
        return -1;
    if (v->bos < 0 && c) {
        int n = id_list(v, c->root, c->path, "bos_token_id", bos, err);
        if (n < 0)
            return -1;
        v->bos = n > 0 ? bos[0] : -1;
    }
    int n = read_ends(v, c, ends, err);
    if (n < 0)
        return -1;
    if (v->bos >= 0)
        gguf_writer_uint(w, KEY "bos_token_id", (uint64_t)v->bos);
    for (int i = 0; i < n; i++)
        gguf_writer_uint(w, end_keys[i], (uint64_t)ends[i]);
    if (v->unknown >= 0)
        gguf_writer_uint(w, KEY "unknown_token_id", (uint64_t)v->unknown);
    if (v->pad >= 0)
        gguf_writer_uint(w, KEY "padding_token_id", (uint64_t)v->pad);
    return 0;
}

/* ---- keys --------------------------------------------------------------------------------------------- */

static int add_flags(struct hf_vocabulary *v, const struct files *f, struct gguf_writer *w, struct err *err)
{
    bool bos = v->add_bos < 0 ? v->sentencepiece : v->add_bos > 0, eos = v->add_eos > 0, prefix = false;
    if (v->sentencepiece)
        prefix = v->add_space_prefix;
    if (f->config_root && (json_get_bool(f->config_root, f->config, "add_bos_token", &bos, err) < 0 ||
                           json_get_bool(f->config_root, f->config, "add_eos_token", &eos, err) < 0 ||
                           json_get_bool(f->config_root, f->config, "add_prefix_space", &prefix, err) < 0))
        return -1;
    if (!v->sentencepiece && prefix)
        return err_set(err, "%s: add_prefix_space is not supported with byte-level tokens", f->config);
    gguf_writer_bool(w, KEY "add_bos_token", bos);
    gguf_writer_bool(w, KEY "add_eos_token", eos);
    if (v->sentencepiece)
        gguf_writer_bool(w, KEY "add_space_prefix", prefix);
    return 0;
}

/* One template, or a list of named ones of which "default" is the first to use. */
static int add_chat_template(const struct files *f, const char *directory, struct gguf_writer *w,
                             struct err *err)
{
    json_t *list = json_object_get(f->config_root, "chat_template"), *item;
    size_t i;
    char *path = xasprintf("%s/chat_template.jinja", directory);
    const void *text = NULL;
    uint64_t bytes = 0;
    int rc = 0;
    if (access(path, F_OK) == 0) {
        rc = map_file(path, "a chat template", &text, &bytes, err);
        if (rc == 0 && (bytes > HF_CONFIG_MAX || !utf8_valid(text ? text : "", bytes)))
            rc = err_set(err, "%s: expected UTF-8 text of at most %u bytes", path, HF_CONFIG_MAX);
        if (rc == 0) {
            char *copy = xasprintf("%.*s", (int)bytes, text ? (const char *)text : "");
            gguf_writer_string(w, "tokenizer.chat_template", copy);
            free(copy);
        }
        map_file_release(text, bytes);
    } else if (json_is_string(list)) {
        gguf_writer_string(w, "tokenizer.chat_template", json_string_value(list));
    } else if (json_is_array(list)) {
        json_array_foreach(list, i, item)
        {
            const char *name = json_string_value(json_object_get(item, "name"));
            const char *body = json_string_value(json_object_get(item, "template"));
            if (!name || !body) {
                rc = err_set(err, "%s: chat_template: expected a name and a template in each", f->config);
                break;
            }
            if (strcmp(name, "default") == 0)
                gguf_writer_string(w, "tokenizer.chat_template", body);
        }
    } else if (list && !json_is_null(list)) {
        rc = err_set(err, "%s: chat_template: expected a string or a list", f->config);
    }
    free(path);
    return rc;
}

static void add_tokens(const struct hf_vocabulary *v, struct gguf_writer *w)
{
    const char **text = xmalloc((v->count + v->merge_count) * sizeof(*text));
    float *score = xmalloc(v->count * sizeof(*score));
    int32_t *type = xmalloc(v->count * sizeof(*type));
    for (uint64_t i = 0; i < v->count; i++) {
        text[i] = hf_vocabulary_text(v, (int64_t)i);
        score[i] = v->token[i].score;
        type[i] = (int32_t)v->token[i].type;
    }
    gguf_writer_string(w, KEY "model", v->sentencepiece ? "llama" : "gpt2");
    gguf_writer_string(w, KEY "pre", v->sentencepiece ? "default" : v->pre);
    gguf_writer_strings(w, KEY "tokens", text, v->count);
    if (v->sentencepiece)
        gguf_writer_floats(w, KEY "scores", score, v->count);
    gguf_writer_ints(w, KEY "token_type", type, v->count);
    if (!v->sentencepiece) {
        for (uint64_t i = 0; i < v->merge_count; i++)
            text[i] = xasprintf("%s %s", hf_vocabulary_text(v, v->merge[i].left),
                                hf_vocabulary_text(v, v->merge[i].right));
        gguf_writer_strings(w, KEY "merges", text, v->merge_count);
        for (uint64_t i = 0; i < v->merge_count; i++)
            free((char *)(uintptr_t)text[i]);
    }
    free(text);
    free(score);
    free(type);
}

/* Ids without a token get one that no text contains, up to the number of the embedding's rows. */
static int fill(struct hf_vocabulary *v, const char *where, int64_t rows, struct err *err)
{
    if (rows && v->count > (uint64_t)rows)
        return err_set(err, "%s: %llu tokens, the embedding has %lld rows", where,
                       (unsigned long long)v->count, (long long)rows);
    uint64_t count = rows ? (uint64_t)rows : v->count;
    for (uint64_t i = 0; i < count; i++) {
        char text[32];
        if (i < v->count && v->token[i].type != HF_TOKEN_HOLE)
            continue;
        snprintf(text, sizeof(text), "[PAD%llu]", (unsigned long long)i);
        if (hf_vocabulary_put(v, where, (int64_t)i, text, strlen(text), -1000, HF_TOKEN_UNUSED, err))
            return -1;
    }
    return 0;
}

static int add_keys(struct hf_vocabulary *v, const struct hf_config *c, const struct files *f,
                    const char *directory, struct gguf_writer *w, int64_t rows, struct err *err)
{
    if (fill(v, v->sentencepiece ? f->model : f->json, rows ? rows : c ? c->vocab : 0, err))
        return -1;
    add_tokens(v, w);
    return add_ids(v, c, f, w, err) || add_flags(v, f, w, err) || add_chat_template(f, directory, w, err) ? -1
                                                                                                          : 0;
}

int hf_tokenizer_keys(const struct hf_config *c, const char *directory, struct gguf_writer *w, int64_t rows,
                      bool *found, struct err *err)
{
    struct files f = {.json = xasprintf("%s/tokenizer.json", directory),
                      .model = xasprintf("%s/tokenizer.model", directory),
                      .config = xasprintf("%s/tokenizer_config.json", directory),
                      .added = xasprintf("%s/added_tokens.json", directory)};
    struct hf_vocabulary v;
    bool there;
    int rc = -1;
    hf_vocabulary_init(&v);
    f.config_root = json_read(f.config, HF_CONFIG_MAX, &there, err);
    if (f.config_root || !there)
        rc = read_vocabulary(&v, &f, err);
    *found = rc == 1;
    if (rc == 1)
        rc = add_keys(&v, c, &f, directory, w, rows, err);
    hf_vocabulary_release(&v);
    json_decref(f.config_root);
    free(f.json);
    free(f.model);
    free(f.config);
    free(f.added);
    return rc;
}
