/* hf_tokenizer_json: what tokenizer.json says beyond its vocabulary: which algorithm, how the text is
 * prepared, which tokens are special; and SentencePiece scores for the merges of files that have no
 * tokenizer.model. */
#include "worker/model/hf_impl.h"

#include <stdlib.h>
#include <string.h>

#define MARK            "\xE2\x96\x81" /* U+2581, how SentencePiece writes a space */
#define SCORED_TEXT_MAX 256

static int refuse(const char *where, const char *what, const char *value, struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    return err_set(err, "%s: %s: \"%s\" is not supported", where, what, json_show(value, shown));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* ---- added tokens ------------------------------------------------------------------------------------- */

static int add_token(struct hf_vocabulary *v, const json_t *added, const char *where, struct err *err)
{
    int64_t id = -1;
    const char *text = NULL;
    bool special = false;
    if (json_get_int(added, where, "id", &id, err) < 0 ||
        json_get_text(added, where, "content", &text, err) < 0 ||
        json_get_bool(added, where, "special", &special, err) < 0)
        return -1;
    if (!text || id < 0)
        return err_set(err, "%s: added_tokens: expected an id and a content in each", where);
    enum hf_token_type type = special ? HF_TOKEN_CONTROL : HF_TOKEN_USER_DEFINED;
    char shown[JSON_SHOW_BYTES];
    int64_t known = hf_vocabulary_find(v, text, strlen(text));
    if (known < 0)
        return hf_vocabulary_put(v, where, id, text, strlen(text), 0, type, err);
    if (known != id)
        return err_set(err, "%s: added_tokens: \"%s\" has id %lld there and %lld in the vocabulary", where,
                       json_show(text, shown), (long long)id, (long long)known);
    if (v->token[known].type != HF_TOKEN_UNKNOWN)
        v->token[known].type = type;
    return 0;
}

static int add_tokens(struct hf_vocabulary *v, const json_t *root, const char *where, struct err *err)
{
    json_t *list = NULL, *added;
    size_t i;
    if (json_get_array(root, where, "added_tokens", &list, err) < 0)
        return -1;
    json_array_foreach(list, i, added)
    {
        if (!json_is_object(added))
            return err_set(err, "%s: added_tokens: expected objects", where);
        if (add_token(v, added, where, err))
            return -1;
    }
    return 0;
}

/* ---- SentencePiece in tokenizer.json ------------------------------------------------------------------ */

static bool replaces_spaces(const json_t *step)
{
    return strcmp(text_of(step, "type"), "Replace") == 0 && strcmp(text_of(step, "content"), MARK) == 0 &&
           strcmp(text_of(json_object_get(step, "pattern"), "String"), " ") == 0;
}

/* A normalizer of "Prepend U+2581" and "Replace space by U+2581", in any nesting. */
static int read_mark_normalizer(struct hf_vocabulary *v, const json_t *step, const char *where,
                                bool *replaces, struct err *err)
{
    const char *type = text_of(step, "type");
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        json_t *inner;
        json_array_foreach(json_object_get(step, "normalizers"), i,
                           inner) if (read_mark_normalizer(v, inner, where, replaces, err)) return -1;
        return 0;
    }
    if (replaces_spaces(step))
        *replaces = true;
    else if (strcmp(type, "Prepend") == 0 && strcmp(text_of(step, "prepend"), MARK) == 0)
        v->add_space_prefix = true;
    else
        return refuse(where, "normalizer", type, err);
    return 0;
}

/* Metaspace does what the normalizer does; a split at spaces does nothing once there are none. */
static int read_mark_pre(struct hf_vocabulary *v, const json_t *step, const char *where, bool *replaces,
                         struct err *err)
{
    const char *type = text_of(step, "type"), *scheme = text_of(step, "prepend_scheme");
    if (strcmp(type, "Split") == 0 && *replaces &&
        strcmp(text_of(json_object_get(step, "pattern"), "String"), " ") == 0)
        return 0;
    if (strcmp(type, "Metaspace") != 0 || strcmp(text_of(step, "replacement"), MARK) != 0)
        return refuse(where, "pre_tokenizer", type, err);
    if (!json_is_false(json_object_get(step, "split")))
        return refuse(where, "pre_tokenizer", "Metaspace with split", err);
    if (strcmp(scheme, "first") != 0 && strcmp(scheme, "always") != 0 && strcmp(scheme, "never") != 0)
        return refuse(where, "pre_tokenizer: prepend_scheme", scheme, err);
    v->add_space_prefix = strcmp(scheme, "never") != 0;
    *replaces = true;
    return 0;
}

static int apply_sentencepiece(struct hf_vocabulary *v, const json_t *root, const char *where,
                               struct err *err)
{
    json_t *normalizer = NULL, *pre = NULL;
    bool replaces = false;
    v->add_space_prefix = false;
    if (json_get_object(root, where, "normalizer", &normalizer, err) < 0 ||
        json_get_object(root, where, "pre_tokenizer", &pre, err) < 0 ||
        (normalizer && read_mark_normalizer(v, normalizer, where, &replaces, err)) ||
        (pre && read_mark_pre(v, pre, where, &replaces, err)))
        return -1;
    if (!replaces)
        return err_set(err,
                       "%s: normalizer: expected one that replaces spaces by U+2581, as byte_fallback "
                       "needs",
                       where);
    for (uint64_t i = 0; i < v->count; i++) {
        struct hf_token *t = &v->token[i];
        if (t->type != HF_TOKEN_NORMAL)
            continue;
        const char *text = hf_vocabulary_text(v, (int64_t)i);
        if (t->bytes == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' &&
            strspn(text + 3, "0123456789ABCDEF") == 2)
            t->type = HF_TOKEN_BYTE;
    }
    return hf_scores_from_merges(v, where, err);
}

static int by_pair(const void *a, const void *b)
{
    const struct hf_merge *x = a, *y = b;
    if (x->left != y->left)
        return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

/* How many ways there are to make a piece of two pieces. */
static uint32_t count_splits(const struct hf_vocabulary *v, int64_t id)
{
    const char *text = hf_vocabulary_text(v, id);
    uint32_t bytes = v->token[id].bytes, ways = 0;
    for (uint32_t i = 1; i < bytes; i++) {
        if (((uint8_t)text[i] & 0xC0) == 0x80)
            continue;
        int64_t left = hf_vocabulary_find(v, text, i);
        int64_t right = left < 0 ? -1 : hf_vocabulary_find(v, text + i, bytes - i);
        ways +=
            right >= 0 && v->token[left].type == HF_TOKEN_NORMAL && v->token[right].type == HF_TOKEN_NORMAL;
    }
    return ways;
}

static int check_splits(const struct hf_vocabulary *v, const uint32_t *ways, const char *where,
                        struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    for (uint64_t i = 0; i < v->count; i++) {
        if (v->token[i].type != HF_TOKEN_NORMAL)
            continue;
        const char *text = hf_vocabulary_text(v, (int64_t)i);
        if (v->token[i].bytes > SCORED_TEXT_MAX)
            return err_set(err, "%s: token %llu has %u bytes, expected at most %d with byte_fallback", where,
                           (unsigned long long)i, v->token[i].bytes, SCORED_TEXT_MAX);
        if (count_splits(v, (int64_t)i) != ways[i])
            return err_set(err,
                           "%s: \"%s\" can be made of two tokens in a way that the merges do not have: "
                           "SentencePiece scores cannot say that; expected a tokenizer.model",
                           where, json_show(text, shown));
    }
    return 0;
}

/* SentencePiece joins the pair whose result has the highest score, wherever the vocabulary has the result;
 * BPE joins the pair with the lowest merge. They agree when every possible pair is a merge and the merges of
 * one result stand together; then minus the place of its first merge is its score. */
int hf_scores_from_merges(struct hf_vocabulary *v, const char *where, struct err *err)
{
    uint32_t *ways = xcalloc(v->count + 1, sizeof(*ways));
    char shown[JSON_SHOW_BYTES];
    int rc = 0;
    for (uint64_t i = 0; i < v->merge_count && rc == 0; i++) {
        int32_t result = v->merge[i].result;
        bool again = i > 0 && v->merge[i - 1].result == result;
        if (ways[result] && !again)
            rc = err_set(err,
                         "%s: the merges that make \"%s\" do not stand together: SentencePiece scores "
                         "cannot say that; expected a tokenizer.model",
                         where, json_show(hf_vocabulary_text(v, result), shown));
        if (!ways[result])
            v->token[result].score = -(float)i;
        ways[result]++;
    }
    for (uint64_t i = 0; i < v->count; i++)
        if (!ways[i] && v->token[i].type == HF_TOKEN_NORMAL)
            v->token[i].score = -(float)v->merge_count;
    if (rc == 0 && v->merge_count) {
        qsort(v->merge, v->merge_count, sizeof(*v->merge), by_pair);
        for (uint64_t i = 1; i < v->merge_count && rc == 0; i++)
            if (by_pair(&v->merge[i - 1], &v->merge[i]) == 0)
                rc = err_set(err, "%s: a merge that makes \"%s\" stands twice", where,
                             json_show(hf_vocabulary_text(v, v->merge[i].result), shown));
    }
    if (rc == 0)
        rc = check_splits(v, ways, where, err);
    free(ways);
    return rc;
}

/* ---- byte-level BPE ----------------------------------------------------------------------------------- */

static int apply_byte_level(struct hf_vocabulary *v, const json_t *root, const json_t *model,
                            const char *where, struct err *err)
{
    json_t *normalizer = NULL;
    bool ignore = false;
    if (json_get_object(root, where, "normalizer", &normalizer, err) < 0 ||
        json_get_bool(model, where, "ignore_merges", &ignore, err) < 0)
        return -1;
    /* NFC changes only text that is not in that form yet; GGUF has no word for it, and no reader applies it.
     */
    if (normalizer && strcmp(text_of(normalizer, "type"), "NFC") != 0)
        return refuse(where, "normalizer", text_of(normalizer, "type"), err);
    if (hf_pre_recognise(root, where, &v->pre, err))
        return -1;
    if (ignore && strcmp(v->pre, "llama-bpe") != 0)
        return err_set(err, "%s: ignore_merges is not supported with the pre-tokenizer %s", where, v->pre);
    return 0;
}

/* What the post-processor puts around a text. */
static int read_template(struct hf_vocabulary *v, const json_t *step, const char *where, struct err *err)
{
    const char *type = text_of(step, "type");
    size_t i, n;
    json_t *inner;
    if (strcmp(type, "Sequence") == 0) {
        json_array_foreach(json_object_get(step, "processors"), i,
                           inner) if (read_template(v, inner, where, err)) return -1;
        return 0;
    }
    if (strcmp(type, "ByteLevel") == 0)
        return 0;
    if (strcmp(type, "TemplateProcessing") != 0)
        return refuse(where, "post_processor", type, err);
    const json_t *single = json_object_get(step, "single");
    n = json_array_size(single);
    v->add_bos = n > 0 && json_object_get(json_array_get(single, 0), "SpecialToken") != NULL;
    v->add_eos = n > 1 && json_object_get(json_array_get(single, n - 1), "SpecialToken") != NULL;
    return 0;
}

static int apply_model(struct hf_vocabulary *v, const json_t *root, const char *where, struct err *err)
{
    static const char *const must_be_empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    json_t *model = NULL;
    const char *unknown = NULL;
    bool byte_fallback = false;
    int found = json_get_object(root, where, "model", &model, err);
    if (found <= 0)
        return found < 0 ? -1 : err_set(err, "%s: model is missing", where);
    const char *type = text_of(model, "type");
    if (strcmp(type, "BPE") != 0 && type[0])
        return refuse(where, "model type", type, err);
    if (v->count == 0)
        return err_set(err, "%s: model.vocab is missing or empty", where);
    for (size_t i = 0; i < ARRAY_LEN(must_be_empty); i++)
        if (text_of(model, must_be_empty[i])[0])
            return refuse(where, must_be_empty[i], text_of(model, must_be_empty[i]), err);
    if (json_get_bool(model, where, "byte_fallback", &byte_fallback, err) < 0 ||
        json_get_text(model, where, "unk_token", &unknown, err) < 0)
        return -1;
    v->unknown = unknown ? hf_vocabulary_find(v, unknown, strlen(unknown)) : -1;
    v->sentencepiece = byte_fallback;
    if (v->sentencepiece && v->unknown >= 0)
        v->token[v->unknown].type = HF_TOKEN_UNKNOWN;
    if (add_tokens(v, root, where, err))
        return -1;
    return byte_fallback ? apply_sentencepiece(v, root, where, err)
                         : apply_byte_level(v, root, model, where, err);
}

int hf_tokenizer_apply(struct hf_vocabulary *v, const json_t *root, const char *where, struct err *err)
{
    json_t *post = NULL;
    if (v->sentencepiece ? add_tokens(v, root, where, err) : apply_model(v, root, where, err))
        return -1;
    if (json_get_object(root, where, "post_processor", &post, err) < 0)
        return -1;
    v->add_bos = v->add_eos = 0;
    return post ? read_template(v, post, where, err) : 0;
}
