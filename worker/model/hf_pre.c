/* hf_pre: the byte-level pre-tokenizers of tokenizer.json and the names that tokenizer.ggml.pre has for them.
 *
 * A pre-tokenizer is recognised by its structure: nested sequences are flattened, defaults filled in, members
 * that do not change where a text is cut left out; what remains must equal a row. Splitting at a known list
 * of characters too long to stand here ("Prefix") is recognised by its beginning, and cannot be written. */
#include "worker/model/hf_impl.h"

#include <stdio.h>
#include <string.h>

#define BYTES(regex) "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":" regex "}"
#define SPLIT(regex) \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define PREFIX(regex) \
    "{\"type\":\"Split\",\"pattern\":{\"Prefix\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define DIGITS(single) "{\"type\":\"Digits\",\"individual_digits\":" single "}"
#define WORDS(digits)                                                                    \
    SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits \
          "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
#define CJK "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80\xEA\xB0\x80-\xED\x9F\xBF]+"

static const struct {
    const char *pre, *json;
} rows[] = {
    {"gpt-2", "[" BYTES("true") "]"},
    {"llama-bpe", "[" WORDS("\\\\p{N}{1,3}") "," BYTES("false") "]"},
    {"qwen2", "[" WORDS("\\\\p{N}") "," BYTES("false") "]"},
    {"starcoder", "[" DIGITS("true") "," BYTES("true") "]"},
    {"falcon", "[{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}," BYTES("true") "," DIGITS(
                   "false") "," SPLIT("[0-9][0-9][0-9]") "]"},
    {"deepseek-coder", "[" SPLIT("[\\r\\n]") "," SPLIT("\\\\s?\\\\p{L}+") "," SPLIT(
                           "\\\\s?\\\\p{P}+") "," SPLIT(CJK) "," DIGITS("true") "," BYTES("false") "]"},
    {"deepseek-llm",
     "[" SPLIT("[\\r\\n]") "," PREFIX("\\\\s?[A-Za-z\xC2\xB5\xC3\x80-\xC3\x96") "," PREFIX(
         "\\\\s?[!-/:-~") "," SPLIT("\\\\s+$") "," SPLIT(CJK) "," DIGITS("true") "," BYTES("false") "]"},
};

/* Other names for what cuts a text in the same places. */
static const struct {
    const char *pre, *same;
} aliases[] = {{"mpt", "gpt-2"},        {"gpt-neox", "gpt-2"},      {"olmo", "gpt-2"},
               {"refact", "starcoder"}, {"command-r", "starcoder"}, {"smollm", "starcoder"}};

/* One step as it is compared: its type and the members that matter. NULL = a step not known here. */
static json_t *normal_step(const json_t *step)
{
    const char *type = json_string_value(json_object_get(step, "type"));
    json_t *out = json_object(), *value;
    static const struct {
        const char *type, *member;
        const char *standard; /* JSON; NULL = must be there */
    } members[] = {{"ByteLevel", "add_prefix_space", "true"},
                   {"ByteLevel", "use_regex", "true"},
                   {"Split", "pattern", NULL},
                   {"Split", "behavior", NULL},
                   {"Split", "invert", "false"},
                   {"Digits", "individual_digits", "false"},
                   {"Punctuation", "behavior", "\"Isolated\""}};
    bool known = false;
    for (size_t i = 0; type && i < ARRAY_LEN(members); i++) {
        if (strcmp(members[i].type, type) != 0)
            continue;
        known = true;
        value = json_object_get(step, members[i].member);
        if (!value && members[i].standard)
            json_object_set_new(out, members[i].member,
                                json_loads(members[i].standard, JSON_DECODE_ANY, NULL));
        else if (value)
            json_object_set(out, members[i].member, value);
    }
    json_object_set_new(out, "type", json_string(type ? type : ""));
    if (!known) {
        json_decref(out);
        return NULL;
    }
    return out;
}

/* Appends the steps of `pre` to `out`; depth is bounded by the parser's. */
static int flatten(const json_t *pre, const char *where, json_t *out, struct err *err)
{
    const char *type = json_string_value(json_object_get(pre, "type"));
    char shown[JSON_SHOW_BYTES];
    if (type && strcmp(type, "Sequence") == 0) {
        json_t *steps = json_object_get(pre, "pretokenizers"), *step;
        size_t i;
        json_array_foreach(steps, i, step) if (flatten(step, where, out, err)) return -1;
        return 0;
    }
    json_t *step = normal_step(pre);
    if (!step)
        return err_set(err, "%s: pre_tokenizer: \"%s\" is not supported", where,
                       json_show(type ? type : "", shown));
    json_array_append_new(out, step);
    return 0;
}

/* Equal, or a pattern that begins as a "Prefix" says. */
static bool step_matches(const json_t *step, const json_t *row)
{
    const char *prefix = json_string_value(json_object_get(json_object_get(row, "pattern"), "Prefix"));
    const char *regex = json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));
    if (!prefix)
        return json_equal(step, row);
    return regex && strncmp(regex, prefix, strlen(prefix)) == 0;
}

static bool matches(const json_t *steps, const json_t *row)
{
    size_t n = json_array_size(row);
    if (json_array_size(steps) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!step_matches(json_array_get(steps, i), json_array_get(row, i)))
            return false;
    return true;
}

static json_t *row_json(size_t i)
{
    json_t *row = json_loads(rows[i].json, 0, NULL);
    ASSERT(row);
    return row;
}

int hf_pre_recognise(const json_t *root, const char *where, const char **pre, struct err *err)
{
    json_t *object = NULL, *steps = json_array(), *step;
    size_t k;
    *pre = NULL;
    int found = json_get_object(root, where, "pre_tokenizer", &object, err);
    if (found == 0)
        err_set(err, "%s: pre_tokenizer is missing, expected a byte-level one", where);
    if (found <= 0 || flatten(object, where, steps, err)) {
        json_decref(steps);
        return -1;
    }
    json_array_foreach(steps, k, step) if (json_is_true(json_object_get(step, "add_prefix_space")))
    {
        json_decref(steps);
        return err_set(err, "%s: pre_tokenizer: ByteLevel with add_prefix_space is not supported", where);
    }
    for (size_t i = 0; i < ARRAY_LEN(rows) && !*pre; i++) {
        json_t *row = row_json(i);
        if (matches(steps, row))
            *pre = rows[i].pre;
        json_decref(row);
    }
    json_decref(steps);
    return *pre ? 0
                : err_set(err,
                          "%s: pre_tokenizer: this way of cutting a text has no name in "
                          "tokenizer.ggml.pre that is known here",
                          where);
}

json_t *hf_pre_write(const char *pre)
{
    for (size_t i = 0; i < ARRAY_LEN(aliases); i++)
        if (strcmp(aliases[i].pre, pre) == 0)
            pre = aliases[i].same;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (strcmp(rows[i].pre, pre) != 0 || strstr(rows[i].json, "\"Prefix\""))
            continue;
        json_t *row = row_json(i), *out = json_object();
        if (json_array_size(row) == 1) {
            json_decref(out);
            out = json_incref(json_array_get(row, 0));
        } else {
            json_object_set_new(out, "type", json_string("Sequence"));
            json_object_set(out, "pretokenizers", row);
        }
        json_decref(row);
        return out;
    }
    return NULL;
}
