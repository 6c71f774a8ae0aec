/* tokenizer: opens a vocabulary, finds pieces and special tokens, and hands the text between special tokens
 * to the algorithm that the file names.
 *
 * It owns a copy of every piece, so the GGUF file may be closed afterwards. It knows nothing of how an
 * algorithm forms tokens, and nothing of models: whether ids fit the embedding table is for the model to say.
 * Everything in a file is checked here, once; the algorithms rely on it. */
#include "worker/model/tokenizer_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define KEY "tokenizer.ggml."

static const struct tokenizer_algorithm *const algorithms[] = {&tokenizer_spm, &tokenizer_bpe};

/* ---- growing ids ------------------------------------------------------------------------------------------
 */

void token_ids_push(struct token_ids *ids, int32_t id)
{
    if (ids->count == ids->capacity) {
        ids->capacity = ids->capacity ? ids->capacity * 2 : 64;
        ids->data = xrealloc(ids->data, ids->capacity * sizeof(*ids->data));
    }
    ids->data[ids->count++] = id;
}

void token_ids_release(struct token_ids *ids)
{
    free(ids->data);
    *ids = (struct token_ids){0};
}

/* ---- the index --------------------------------------------------------------------------------------------
 */

static uint32_t hash_text(const struct tokenizer *t, const char *text, size_t bytes)
{
    uint64_t hash = bytes, word = 0;
    for (; bytes > sizeof(word); text += sizeof(word), bytes -= sizeof(word)) {
        memcpy(&word, text, sizeof(word));
        hash = tokenizer_mix(t, hash, word);
    }
    word = 0;
    for (size_t i = 0; i < bytes; i++)
        word = word << 8 | (uint8_t)text[i];
    return (uint32_t)tokenizer_mix(t, hash, word);
}

/* The slot that holds a piece with this text, or the free slot where it belongs. */
static uint32_t *index_slot(const struct tokenizer *t, const char *text, size_t bytes)
{
    for (uint32_t at = hash_text(t, text, bytes);; at++) {
        uint32_t *slot = &t->slots[at & t->slot_mask];
        if (*slot == 0)
            return slot;
        const struct piece *p = &t->pieces[*slot - 1];
        if (p->bytes == bytes && memcmp(p->text, text, bytes) == 0)
            return slot;
    }
}

int32_t tokenizer_lookup(const struct tokenizer *t, const char *text, size_t bytes)
{
    return (int32_t)*index_slot(t, text, bytes) - 1;
}

int tokenizer_character(const char *text, size_t bytes, uint32_t *codepoint)
{
    const uint8_t *s = (const uint8_t *)text;
    int n = utf8_sequence_bytes(s[0]);
    if (n == 0 || (size_t)n > bytes || (n > 1 && !utf8_valid(text, (size_t)n)))
        return 0;
    uint32_t c = n == 1 ? s[0] : s[0] & (0x7Fu >> n);
    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3Fu);
    *codepoint = c;
    return n;
}

/* ---- special tokens ---------------------------------------------------------------------------------------
 */

static int compare_pieces(const void *a, const void *b, void *context)
{
    const struct tokenizer *t = context;
    const struct piece *p = &t->pieces[*(const int32_t *)a], *q = &t->pieces[*(const int32_t *)b];
    int order = memcmp(p->text, q->text, p->bytes < q->bytes ? p->bytes : q->bytes);
    return order ? order : (int)p->bytes - (int)q->bytes;
}

static void special_add(struct tokenizer *t, struct special_set *set, uint32_t id)
{
    set->ids[set->count++] = (int32_t)id;
    set->begins[(uint8_t)t->pieces[id].text[0]] = true;
}

static void collect_special(struct tokenizer *t)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < t->count; i++)
        count += t->pieces[i].type >= PIECE_UNKNOWN && t->pieces[i].type <= PIECE_USER_DEFINED;
    t->user_defined.ids = xcalloc(count, sizeof(int32_t));
    t->every_special.ids = xcalloc(count, sizeof(int32_t));
    for (uint32_t i = 0; i < t->count; i++) {
        uint8_t type = t->pieces[i].type;
        if (type == PIECE_USER_DEFINED)
            special_add(t, &t->user_defined, i);
        if (type == PIECE_USER_DEFINED || type == PIECE_CONTROL || type == PIECE_UNKNOWN)
            special_add(t, &t->every_special, i);
    }
    qsort_r(t->user_defined.ids, t->user_defined.count, sizeof(int32_t), compare_pieces, t);
    qsort_r(t->every_special.ids, t->every_special.count, sizeof(int32_t), compare_pieces, t);
}

/* The first member in [low, high) whose byte `at` is `byte` or above; a member that ends before it is below.
 */
static uint32_t special_bound(const struct tokenizer *t, const struct special_set *set, uint32_t low,
                              uint32_t high, size_t at, int byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct piece *p = &t->pieces[set->ids[middle]];
        if ((p->bytes > at ? (uint8_t)p->text[at] : -1) < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest member that stands at the front of the text, or -1. */
static int32_t special_match(const struct tokenizer *t, const struct special_set *set, const char *text,
                             size_t bytes)
{
    int32_t best = -1;
    if (!set->begins[(uint8_t)text[0]])
        return best;
    uint32_t low = 0, high = set->count;
    for (size_t i = 0; i < bytes && low < high; i++) {
        int byte = (uint8_t)text[i];
        low = special_bound(t, set, low, high, i, byte);
        high = special_bound(t, set, low, high, i, byte + 1);
        if (low < high && t->pieces[set->ids[low]].bytes == i + 1)
            best = set->ids[low];
    }
    return best;
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

static int choose_algorithm(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    struct gguf_string model;
    int found = gguf_get_string(g, KEY "model", &model, err);
    if (found < 0)
        return -1;
    if (found == 0)
        return err_set(err, "%s: no " KEY "model: the file holds no tokenizer", gguf_name(g));
    for (size_t i = 0; i < ARRAY_LEN(algorithms); i++)
        if (model.size == strlen(algorithms[i]->model) &&
            memcmp(model.data, algorithms[i]->model, model.size) == 0) {
            t->algorithm = algorithms[i];
            return 0;
        }
    char name[32]; /* as it stands in the file, without what a terminal would obey */
    size_t n = model.size < sizeof(name) - 1 ? model.size : sizeof(name) - 1;
    for (size_t i = 0; i < n; i++)
        name[i] = model.data[i] >= 0x20 && model.data[i] < 0x7F ? model.data[i] : '?';
    name[n] = '\0';
    return err_set(err, "%s: " KEY "model \"%s\" is not supported, expected \"llama\" or \"gpt2\"",
                   gguf_name(g), name);
}

/* Checks that the array `key` is there with `count` elements (0 = any but none) of one type. */
static int check_array(const struct gguf *g, const char *key, enum gguf_type type, const char *type_name,
                       uint64_t *count, struct err *err)
{
    enum gguf_type element = GGUF_TYPE_COUNT;
    uint64_t n = 0;
    int found = gguf_get_array(g, key, &element, &n, err);
    if (found < 0)
        return -1;
    if (found == 0)
        return err_set(err, "%s: no array %s", gguf_name(g), key);
    if (element != type)
        return err_set(err, "%s: %s: expected an array of %s, found elements of another type", gguf_name(g),
                       key, type_name);
    if (*count == 0 && (n == 0 || n > INT32_MAX))
        return err_set(err, "%s: %s: expected 1 to %d pieces, found %" PRIu64, gguf_name(g), key, INT32_MAX,
                       n);
    if (*count != 0 && n != *count)
        return err_set(err, "%s: %s: expected %" PRIu64 " elements as in " KEY "tokens, found %" PRIu64,
                       gguf_name(g), key, *count, n);
    *count = n;
    return 0;
}

/* Copies the texts. Sizes first: one allocation, so that pieces may point into it. */
static int read_texts(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        struct gguf_string s = gguf_array_string(g, KEY "tokens", i);
        if (s.size == 0 || s.size > PIECE_MAX_BYTES)
            return err_set(err, "%s: " KEY "tokens[%u]: expected 1 to %d bytes, found %" PRIu64, gguf_name(g),
                           i, PIECE_MAX_BYTES, s.size);
        if (!utf8_valid(s.data, s.size))
            return err_set(err, "%s: " KEY "tokens[%u]: expected valid UTF-8", gguf_name(g), i);
        total += s.size;
    }
    t->arena = xmalloc(total);
    char *to = t->arena;
    for (uint32_t i = 0; i < t->count; i++) {
        struct gguf_string s = gguf_array_string(g, KEY "tokens", i);
        t->pieces[i].text = memcpy(to, s.data, s.size);
        t->pieces[i].bytes = (uint16_t)s.size;
        to += s.size;
    }
    return 0;
}

static int read_scores_and_types(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    const char *scores = gguf_array_data(g, KEY "scores"), *types = gguf_array_data(g, KEY "token_type");
    ASSERT((scores && types) || t->algorithm->optional_arrays);
    for (uint32_t i = 0; i < t->count; i++) {
        float score = 0;
        int32_t type = PIECE_NORMAL;
        if (scores)
            memcpy(&score, scores + i * sizeof(score), sizeof(score)); /* the arrays are not aligned */
        if (types)
            memcpy(&type, types + i * sizeof(type), sizeof(type));
        if (!isfinite(score))
            return err_set(err, "%s: " KEY "scores[%u]: expected a finite number, found %g", gguf_name(g), i,
                           (double)score);
        if (type < PIECE_NORMAL || type > PIECE_BYTE)
            return err_set(err, "%s: " KEY "token_type[%u]: expected %d to %d, found %d", gguf_name(g), i,
                           PIECE_NORMAL, PIECE_BYTE, type);
        t->pieces[i].score = score;
        t->pieces[i].type = (uint8_t)type;
        if (type == PIECE_NORMAL && t->pieces[i].bytes > t->longest_bytes)
            t->longest_bytes = t->pieces[i].bytes;
    }
    return 0;
}

static int build_index(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)t->count)
        slots *= 2;
    if (getrandom(t->key, sizeof(t->key), 0) != (ssize_t)sizeof(t->key))
        die("no random bytes: %s", strerror(errno));
    t->slots = xcalloc(slots, sizeof(*t->slots));
    t->slot_mask = (uint32_t)(slots - 1);
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t *slot = index_slot(t, t->pieces[i].text, t->pieces[i].bytes);
        if (*slot)
            return err_set(err, "%s: " KEY "tokens[%u] and [%u] are the same piece", gguf_name(g), *slot - 1,
                           i);
        *slot = i + 1;
    }
    return 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Two pieces of one byte would be the same text, which the index has refused. */
static int read_byte_tokens(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    memset(t->byte_id, -1, sizeof(t->byte_id));
    for (uint32_t i = 0; i < t->count; i++) {
        struct piece *p = &t->pieces[i];
        if (p->type != PIECE_BYTE)
            continue;
        int high = p->bytes == 6 ? hex_digit(p->text[3]) : -1,
            low = p->bytes == 6 ? hex_digit(p->text[4]) : -1;
        if (high < 0 || low < 0 || memcmp(p->text, "<0x", 3) != 0 || p->text[5] != '>')
            return err_set(err, "%s: " KEY "tokens[%u]: a byte token, expected <0x00> to <0xFF>",
                           gguf_name(g), i);
        p->byte = (uint8_t)(high << 4 | low);
        t->byte_id[p->byte] = (int32_t)i;
    }
    return 0;
}

/* Reads an id. Absent, -1 (which some writers store as 2^32 - 1) or `standard` without a token of `type` at
 * that place: none. */
static int read_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t standard,
                   enum piece_type type, int32_t *out, struct err *err)
{
    int64_t id;
    int found = gguf_get_int(g, key, &id, err);
    *out = -1;
    if (found < 0)
        return -1;
    if (found == 0) {
        if (standard >= 0 && (uint32_t)standard < t->count && t->pieces[standard].type == type)
            *out = standard;
        return 0;
    }
    if (id == -1 || id == UINT32_MAX)
        return 0;
    if (id < 0 || id >= t->count)
        return err_set(err, "%s: %s: expected an id below %u, found %" PRId64, gguf_name(g), key, t->count,
                       id);
    *out = (int32_t)id;
    return 0;
}

static int read_flag(const struct gguf *g, const char *key, bool standard, bool *out, struct err *err)
{
    *out = standard;
    return gguf_get_bool(g, key, out, err) < 0 ? -1 : 0;
}

static int read_settings(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    if (read_id(t, g, KEY "bos_token_id", t->bos, PIECE_CONTROL, &t->bos, err) ||
        read_id(t, g, KEY "eos_token_id", t->eos, PIECE_CONTROL, &t->eos, err) ||
        read_id(t, g, KEY "unknown_token_id", t->unknown, PIECE_UNKNOWN, &t->unknown, err) ||
        read_id(t, g, KEY "eot_token_id", -1, PIECE_CONTROL, &t->eot, err) ||
        read_id(t, g, KEY "eom_token_id", -1, PIECE_CONTROL, &t->eom, err) ||
        read_flag(g, KEY "add_bos_token", t->add_bos, &t->add_bos, err) ||
        read_flag(g, KEY "add_eos_token", false, &t->add_eos, err) ||
        read_flag(g, KEY "add_space_prefix", t->add_space_prefix, &t->add_space_prefix, err))
        return -1;
    for (uint32_t i = 0; i < t->count && t->unknown < 0; i++)
        if (t->pieces[i].type == PIECE_UNKNOWN)
            t->unknown = (int32_t)i;
    return 0;
}

/* Many files name one token that ends a generation and hold others: a chat model's turn ends with one of
 * these, whatever its eos_token_id says. */
static void find_end_names(struct tokenizer *t)
{
    static const char *const names[] = {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<|end_of_turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<EOT>",
        "<|return|>",
        "<end_of_utterance>",
        "<\xEF\xBD\x9C"
        "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
    };
    _Static_assert(ARRAY_LEN(names) <= TOKENIZER_END_NAMES, "all of them fit");
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        int32_t id = tokenizer_lookup(t, names[i], strlen(names[i]));
        if (id >= 0 && t->pieces[id].type == PIECE_CONTROL)
            t->end_names[t->end_count++] = id;
    }
}

/* An array that the algorithm can do without. */
static int check_extra_array(const struct tokenizer *t, const struct gguf *g, const char *key,
                             enum gguf_type type, const char *type_name, uint64_t *count, struct err *err)
{
    enum gguf_type element;
    uint64_t n;
    if (t->algorithm->optional_arrays && gguf_get_array(g, key, &element, &n, NULL) == 0)
        return 0;
    return check_array(g, key, type, type_name, count, err);
}

static int read_vocabulary(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    uint64_t count = 0;
    if (choose_algorithm(t, g, err) || t->algorithm->begin(t, g, err) ||
        check_array(g, KEY "tokens", GGUF_STRING, "strings", &count, err) ||
        check_extra_array(t, g, KEY "scores", GGUF_F32, "f32", &count, err) ||
        check_extra_array(t, g, KEY "token_type", GGUF_I32, "i32", &count, err))
        return -1;
    t->count = (uint32_t)count;
    t->pieces = xcalloc(count, sizeof(*t->pieces));
    if (read_texts(t, g, err) || read_scores_and_types(t, g, err) || build_index(t, g, err) ||
        read_byte_tokens(t, g, err) || read_settings(t, g, err))
        return -1;
    collect_special(t);
    find_end_names(t);
    return t->algorithm->prepare(t, g, err);
}

int tokenizer_open(struct tokenizer **out, const struct gguf *g, struct err *err)
{
    struct tokenizer *t = xcalloc(1, sizeof(*t));
    *out = NULL;
    if (read_vocabulary(t, g, err)) {
        tokenizer_close(&t);
        return -1;
    }
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer **tokenizer)
{
    struct tokenizer *t = *tokenizer;
    if (!t)
        return;
    if (t->algorithm)
        t->algorithm->release(t);
    free(t->user_defined.ids);
    free(t->every_special.ids);
    free(t->slots);
    free(t->pieces);
    free(t->arena);
    free(t);
    *tokenizer = NULL;
}

/* ---- using it ---------------------------------------------------------------------------------------------
 */

int32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return (int32_t)t->count;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->add_bos && t->bos >= 0;
}

bool tokenizer_adds_eos(const struct tokenizer *t)
{
    return t->add_eos && t->eos >= 0;
}

bool tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    if (id < 0)
        return false;
    for (uint32_t i = 0; i < t->end_count; i++)
        if (id == t->end_names[i])
            return true;
    return id == t->eos || id == t->eot || id == t->eom;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes)
{
    ASSERT(id >= 0 && (uint32_t)id < t->count);
    *bytes = t->pieces[id].bytes;
    return t->pieces[id].text;
}

/* The space prefix stands in front of the text and again after a control token, which begins a new text. It
 * does not follow a user-defined token: there it would be a space that nobody wrote. */
static int encode_text(const struct tokenizer *t, const struct special_set *set, const char *text,
                       size_t bytes, struct token_ids *ids, struct err *err)
{
    bool prefix = t->add_space_prefix;
    size_t begin = 0;
    for (size_t i = 0; set->count > 0 && i < bytes;) {
        int32_t id = special_match(t, set, text + i, bytes - i);
        if (id < 0) {
            i++;
            continue;
        }
        if (i > begin && t->algorithm->encode(t, text + begin, i - begin, prefix, ids, err))
            return -1;
        token_ids_push(ids, id);
        prefix = t->add_space_prefix && t->pieces[id].type != PIECE_USER_DEFINED;
        begin = i += t->pieces[id].bytes;
    }
    return bytes > begin ? t->algorithm->encode(t, text + begin, bytes - begin, prefix, ids, err) : 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                     const struct tokenizer_options *options, struct token_ids *ids, struct err *err)
{
    if (bytes > TOKENIZER_MAX_TEXT_BYTES)
        return err_set_code(err, 400, "text of %zu bytes, expected at most %u", bytes,
                            TOKENIZER_MAX_TEXT_BYTES);
    size_t before = ids->count;
    if (options->add_bos && t->bos >= 0)
        token_ids_push(ids, t->bos);
    const struct special_set *set = options->parse_special ? &t->every_special : &t->user_defined;
    if (encode_text(t, set, text, bytes, ids, err)) {
        ids->count = before;
        return -1;
    }
    if (options->add_eos && t->eos >= 0)
        token_ids_push(ids, t->eos);
    return 0;
}
