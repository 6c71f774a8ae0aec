/* hf_vocabulary: a vocabulary by id and by text, and the streamed reading of tokenizer.json's two large
 * members, model.vocab and model.merges.
 *
 * jansson would take ten times a vocabulary's bytes. So the file is scanned once to find where the two values
 * lie; they are read here, straight into the vocabulary, and jansson gets the text without them. Both parts
 * are checked as JSON, so nothing that is no JSON passes. */
#include "worker/model/hf_impl.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/map_file.h"

#define IDS_MAX  (1 << 24)
#define TEXT_MAX 1024 /* bytes of a token: what the tokenizer takes */

void hf_vocabulary_init(struct hf_vocabulary *v)
{
    *v = (struct hf_vocabulary){.bos = -1, .eos = -1, .unknown = -1, .pad = -1, .add_bos = -1, .add_eos = -1};
    if (sodium_init() < 0)
        die("libsodium does not start");
    randombytes_buf(v->hash_key, sizeof(v->hash_key));
}

void hf_vocabulary_release(struct hf_vocabulary *v)
{
    free(v->token);
    free(v->merge);
    free(v->slot);
    buffer_release(&v->arena);
    *v = (struct hf_vocabulary){0};
}

const char *hf_vocabulary_text(const struct hf_vocabulary *v, int64_t id)
{
    ASSERT(id >= 0 && (uint64_t)id < v->count && v->token[id].type != HF_TOKEN_HOLE);
    return (const char *)v->arena.data + v->token[id].text;
}

static uint32_t *slot_of(const struct hf_vocabulary *v, const char *text, uint64_t bytes)
{
    uint64_t hash;
    crypto_shorthash((uint8_t *)&hash, (const uint8_t *)text, bytes, v->hash_key);
    for (uint64_t i = hash & v->slot_mask;; i = (i + 1) & v->slot_mask) {
        uint32_t *slot = &v->slot[i];
        if (*slot == 0)
            return slot;
        const struct hf_token *t = &v->token[*slot - 1];
        if (t->bytes == bytes && memcmp((const char *)v->arena.data + t->text, text, bytes) == 0)
            return slot;
    }
}

int64_t hf_vocabulary_find(const struct hf_vocabulary *v, const char *text, uint64_t bytes)
{
    return v->slot ? (int64_t)*slot_of(v, text, bytes) - 1 : -1;
}

/* Room for ids below `count`; the index follows. */
static void grow(struct hf_vocabulary *v, uint64_t count)
{
    if (count <= v->capacity)
        return;
    uint64_t capacity = v->capacity ? v->capacity : 256;
    while (capacity < count)
        capacity *= 2;
    v->token = xrealloc(v->token, capacity * sizeof(*v->token));
    v->capacity = capacity;
    free(v->slot);
    v->slot = xcalloc(2 * capacity, sizeof(*v->slot));
    v->slot_mask = 2 * capacity - 1;
    for (uint64_t i = 0; i < v->count; i++)
        if (v->token[i].type != HF_TOKEN_HOLE)
            *slot_of(v, hf_vocabulary_text(v, (int64_t)i), v->token[i].bytes) = (uint32_t)i + 1;
}

int hf_vocabulary_put(struct hf_vocabulary *v, const char *where, int64_t id, const char *text,
                      uint64_t bytes, float score, enum hf_token_type type, struct err *err)
{
    if (id < 0 || id >= IDS_MAX)
        return err_set(err, "%s: token id %lld, expected 0 to %d", where, (long long)id, IDS_MAX - 1);
    if (bytes == 0 || bytes > TEXT_MAX)
        return err_set(err, "%s: token %lld: a text of %llu bytes, expected 1 to %d", where, (long long)id,
                       (unsigned long long)bytes, TEXT_MAX);
    if (!utf8_valid(text, bytes) || memchr(text, 0, bytes))
        return err_set(err, "%s: token %lld: expected valid UTF-8 without zero bytes", where, (long long)id);
    grow(v, (uint64_t)id + 1);
    for (; v->count <= (uint64_t)id; v->count++)
        v->token[v->count] = (struct hf_token){0};
    if (v->token[id].type != HF_TOKEN_HOLE)
        return err_set(err, "%s: token id %lld stands twice", where, (long long)id);
    uint32_t *slot = slot_of(v, text, bytes);
    if (*slot)
        return err_set(err, "%s: tokens %lld and %lld are the same text", where, (long long)*slot - 1,
                       (long long)id);
    v->token[id] = (struct hf_token){v->arena.size, (uint32_t)bytes, score, type};
    buffer_append(&v->arena, text, bytes);
    buffer_append(&v->arena, "", 1);
    *slot = (uint32_t)id + 1;
    return 0;
}

/* ---- scanning JSON ------------------------------------------------------------------------------------ */

struct scan {
    const char *text;
    uint64_t bytes, at;
    const char *name;
    struct err *err;
    struct buffer string; /* the last one read, decoded */
};

static int scan_fail(const struct scan *s, const char *what)
{
    return err_set(s->err, "%s:%llu: expected %s", s->name, (unsigned long long)s->at, what);
}

/* The next character that is no space; 0 at the end. */
static char peek(struct scan *s)
{
    while (s->at < s->bytes && strchr(" \t\r\n", s->text[s->at]) && s->text[s->at])
        s->at++;
    return s->at < s->bytes ? s->text[s->at] : 0;
}

static int take(struct scan *s, char c, const char *what)
{
    if (peek(s) != c)
        return scan_fail(s, what);
    s->at++;
    return 0;
}

static int read_hex(struct scan *s, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        char c = s->at < s->bytes ? s->text[s->at] : 0;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return scan_fail(s, "four hexadecimal digits");
        *out = *out << 4 | (uint32_t)digit;
    }
    return 0;
}

static void put_character(struct buffer *b, uint32_t c)
{
    uint8_t out[4];
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)(lead[n] | c);
    buffer_append(b, out, (size_t)n);
}

/* Behind a backslash. */
static int read_escape(struct scan *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    uint32_t c, low;
    char e = s->at < s->bytes ? s->text[s->at++] : 0;
    const char *found = e ? strchr(from, e) : NULL;
    if (found) {
        buffer_append(&s->string, &to[found - from], 1);
        return 0;
    }
    if (e != 'u')
        return scan_fail(s, "a JSON escape");
    if (read_hex(s, &c))
        return -1;
    if (c >= 0xD800 && c < 0xDC00) {
        if (s->bytes - s->at < 6 || s->text[s->at] != '\\' || s->text[s->at + 1] != 'u')
            return scan_fail(s, "the second half of a surrogate pair");
        s->at += 2;
        if (read_hex(s, &low))
            return -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return scan_fail(s, "the second half of a surrogate pair");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    if (c == 0 || (c >= 0xD800 && c < 0xE000))
        return scan_fail(s, "a character other than zero and lone surrogates");
    put_character(&s->string, c);
    return 0;
}

/* A string, decoded into s->string (checked UTF-8, not terminated). */
static int read_string(struct scan *s)
{
    if (take(s, '"', "a string"))
        return -1;
    s->string.size = 0;
    for (;;) {
        uint64_t start = s->at;
        while (s->at < s->bytes && s->text[s->at] != '"' && s->text[s->at] != '\\' &&
               (uint8_t)s->text[s->at] >= 0x20)
            s->at++;
        buffer_append(&s->string, s->text + start, s->at - start);
        if (s->at == s->bytes || (uint8_t)s->text[s->at] < 0x20)
            return scan_fail(s, "the end of a string");
        if (s->text[s->at++] == '"')
            break;
        if (read_escape(s))
            return -1;
    }
    if (!utf8_valid((const char *)s->string.data, s->string.size))
        return scan_fail(s, "valid UTF-8");
    return 0;
}

/* Passes over one value of any kind. What lies in it is for jansson to check. */
static int skip_value(struct scan *s)
{
    int depth = 0;
    do {
        char c = peek(s);
        if (c == '"') {
            if (read_string(s))
                return -1;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return scan_fail(s, "JSON of less depth");
            s->at++;
        } else if (c == '}' || c == ']') {
            if (--depth < 0)
                return scan_fail(s, "a value");
            s->at++;
        } else if (c == 0) {
            return scan_fail(s, "a value");
        } else {
            uint64_t start = s->at;
            while (s->at < s->bytes && !strchr(" \t\r\n\",:{}[]", s->text[s->at]))
                s->at++;
            s->at += s->at == start; /* ',' or ':' */
        }
    } while (depth > 0);
    return 0;
}

struct span {
    uint64_t begin, end; /* 0, 0 = not there */
};

/* Runs through the members of an object; `member` gets every key and must pass over the value. */
static int each_member(struct scan *s, int (*member)(struct scan *s, void *context), void *context)
{
    if (take(s, '{', "'{'"))
        return -1;
    if (peek(s) == '}') {
        s->at++;
        return 0;
    }
    for (;;) {
        if (read_string(s) || take(s, ':', "':'") || member(s, context))
            return -1;
        char c = peek(s);
        s->at++;
        if (c == '}')
            return 0;
        if (c != ',') {
            s->at--;
            return scan_fail(s, "',' or '}'");
        }
    }
}

static bool key_is(const struct scan *s, const char *key)
{
    return s->string.size == strlen(key) && memcmp(s->string.data, key, s->string.size) == 0;
}

/* A key that stands twice is found by jansson, for which both keys remain. */
static int in_model(struct scan *s, void *context)
{
    struct span *spans = context;
    struct span *span = key_is(s, "vocab") ? &spans[0] : key_is(s, "merges") ? &spans[1] : NULL;
    peek(s);
    uint64_t begin = s->at;
    if (skip_value(s))
        return -1;
    if (span)
        *span = (struct span){begin, s->at};
    return 0;
}

static int in_root(struct scan *s, void *context)
{
    if (!key_is(s, "model") || (peek(s), s->at >= s->bytes || s->text[s->at] != '{'))
        return skip_value(s);
    return each_member(s, in_model, context);
}

/* ---- vocabulary and merges ---------------------------------------------------------------------------- */

static int read_token(struct scan *s, void *context)
{
    struct hf_vocabulary *v = context;
    int64_t id = 0;
    char c = peek(s);
    uint64_t start = s->at;
    for (; s->at < s->bytes && s->text[s->at] >= '0' && s->text[s->at] <= '9' && id < IDS_MAX; s->at++)
        id = id * 10 + (s->text[s->at] - '0');
    if (s->at == start || (c == '0' && s->at > start + 1))
        return scan_fail(s, "a token id, a whole number");
    return hf_vocabulary_put(v, s->name, id, (const char *)s->string.data, s->string.size, 0, HF_TOKEN_NORMAL,
                             s->err);
}

static int add_merge(struct scan *s, struct hf_vocabulary *v, const char *left, uint64_t left_bytes,
                     const char *right, uint64_t right_bytes)
{
    struct hf_merge m = {(int32_t)hf_vocabulary_find(v, left, left_bytes),
                         (int32_t)hf_vocabulary_find(v, right, right_bytes), -1};
    struct buffer both = {0};
    buffer_append(&both, left, left_bytes);
    buffer_append(&both, right, right_bytes);
    m.result = both.size ? (int32_t)hf_vocabulary_find(v, (const char *)both.data, both.size) : -1;
    buffer_append(&both, "", 1);
    char shown[JSON_SHOW_BYTES];
    if (m.left < 0 || m.right < 0 || m.result < 0) {
        err_set(s->err, "%s: merge %llu: \"%s\": %s is not in the vocabulary", s->name,
                (unsigned long long)v->merge_count, json_show((const char *)both.data, shown),
                m.left < 0    ? "its left part"
                : m.right < 0 ? "its right part"
                              : "what it makes");
        buffer_release(&both);
        return -1;
    }
    buffer_release(&both);
    if (v->merge_count == v->merge_capacity) {
        v->merge_capacity = v->merge_capacity ? 2 * v->merge_capacity : 1024;
        v->merge = xrealloc(v->merge, v->merge_capacity * sizeof(*v->merge));
    }
    v->merge[v->merge_count++] = m;
    return 0;
}

/* "left right", or ["left", "right"] as newer files have it. */
static int read_merge(struct scan *s, struct hf_vocabulary *v)
{
    if (peek(s) == '"') {
        if (read_string(s))
            return -1;
        const char *text = (const char *)s->string.data;
        const char *space = s->string.size ? memchr(text, ' ', s->string.size) : NULL;
        if (!space)
            return scan_fail(s, "a merge of two tokens with a space between");
        uint64_t left = (uint64_t)(space - text);
        return add_merge(s, v, text, left, space + 1, s->string.size - left - 1);
    }
    if (take(s, '[', "a merge") || read_string(s))
        return -1;
    struct buffer left = {0};
    buffer_append(&left, s->string.data, s->string.size);
    int rc = take(s, ',', "','") || read_string(s) || take(s, ']', "']': a merge has two tokens") ||
                     add_merge(s, v, (const char *)left.data, left.size, (const char *)s->string.data,
                               s->string.size)
                 ? -1
                 : 0;
    buffer_release(&left);
    return rc;
}

static int read_merges(struct scan *s, struct hf_vocabulary *v)
{
    if (take(s, '[', "model.merges: an array"))
        return -1;
    if (peek(s) == ']')
        return 0;
    for (;;) {
        if (read_merge(s, v))
            return -1;
        if (peek(s) == ']')
            return 0;
        if (take(s, ',', "',' or ']'"))
            return -1;
    }
}

/* The text with the spans' values replaced by null. */
static void cut(struct buffer *out, const char *text, uint64_t bytes, const struct span spans[2])
{
    bool swapped = spans[1].begin < spans[0].begin;
    uint64_t at = 0;
    for (int i = 0; i < 2; i++) {
        const struct span *span = &spans[swapped ? 1 - i : i];
        if (span->end == 0)
            continue;
        buffer_append(out, text + at, span->begin - at);
        buffer_append(out, "null", 4);
        at = span->end;
    }
    buffer_append(out, text + at, bytes - at);
}

json_t *hf_tokenizer_parse(struct hf_vocabulary *v, const char *text, uint64_t bytes, const char *name,
                           struct err *err)
{
    struct scan s = {.text = text, .bytes = bytes, .name = name, .err = err};
    struct span spans[2] = {{0, 0}, {0, 0}};
    struct buffer rest = {0};
    json_t *root = NULL;
    if (each_member(&s, in_root, spans))
        goto out;
    cut(&rest, text, bytes, spans);
    root = json_parse((const char *)rest.data, rest.size, name, err);
    if (!root)
        goto out;
    /* An array is unigram's: refused by the model's type, with its name. */
    if (spans[0].end && text[spans[0].begin] == '{') {
        s.at = spans[0].begin;
        if (each_member(&s, read_token, v))
            goto fail;
    }
    if (spans[1].end) {
        s.at = spans[1].begin;
        if (read_merges(&s, v))
            goto fail;
    }
    goto out;
fail:
    json_decref(root);
    root = NULL;
out:
    buffer_release(&s.string);
    buffer_release(&rest);
    return root;
}

json_t *hf_tokenizer_json(struct hf_vocabulary *v, const char *path, bool *found, struct err *err)
{
    const void *text;
    uint64_t bytes;
    struct err own;
    FILE *there = fopen(path, "re");
    *found = there != NULL;
    if (!there)
        return NULL;
    fclose(there);
    if (map_file(path, "a JSON file", &text, &bytes, err ? err : &own))
        return NULL;
    json_t *root = NULL;
    if (bytes == 0 || bytes > HF_TOKENIZER_MAX)
        err_set(err, "%s: %llu bytes, expected 1 to %u", path, (unsigned long long)bytes, HF_TOKENIZER_MAX);
    else
        root = hf_tokenizer_parse(v, text, bytes, path, err);
    map_file_release(text, bytes);
    return root;
}
