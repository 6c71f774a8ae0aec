/* tokenizer_spm: the `llama` algorithm, SentencePiece's BPE with scores.
 *
 * Characters are merged pairwise, the pair whose piece has the highest score first, the leftmost among
 * equals; what no piece covers becomes byte tokens, or the unknown token where the vocabulary lacks them.
 * Only normal pieces are formed: a control token written out in a text stays text.
 *
 * The text is first cut into segments at every boundary that no merge of this vocabulary can cross, i.e.
 * where no piece splits into two symbols ending and beginning with the two characters. That changes no
 * result, and it keeps the working memory at the size of a word instead of the text:
 *
 *     T h e ␣ c a t        "␣" begins pieces and never stands inside one
 *     [T h e] [␣ c a t]    two segments, merged one after the other
 *
 * A segment lies in a byte array; two tags say how the symbols lie on it, so that both neighbours of a symbol
 * are found without a list node:
 *
 *     text   T h e        start[p] = bytes of the symbol that begins at p, 0 inside one
 *     start  2 0 1        end[p]   = bytes of the symbol that ends at p
 *     end    . 2 1
 *
 * The heap keeps candidates that other merges have made stale; they are recognised by their size when popped.
 */
#include "worker/model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

/* A segment is cut here at the latest, which bounds the working memory (about 56 MiB). Only a text with
 * megabytes of one run, without any boundary in it, can notice. */
#define SEGMENT_MAX_BYTES (2u << 20)
/* For longer pieces every inner boundary counts as one that merges cross: true enough, and linear. */
#define PRECISE_PIECE_BYTES 64

/* Pairs of characters between which a merge may happen: open addressing, 0 = free slot. */
struct spm {
    uint64_t *pairs;
    uint64_t count, capacity; /* capacity is a power of two */
};

struct candidate {
    float score;
    uint32_t left;  /* where the left symbol begins */
    uint32_t bytes; /* of both symbols */
};

struct workspace {
    char *text;
    uint16_t *start, *end;
    size_t bytes, capacity;
    struct candidate *heap;
    size_t heap_count, heap_capacity;
};

_Static_assert(PIECE_MAX_BYTES <= UINT16_MAX, "tags hold the length of any symbol");

/* ---- pairs ------------------------------------------------------------------------------------------------
 */

static uint64_t pair_key(uint32_t a, uint32_t b)
{
    return ((uint64_t)a << 32 | b) + 1; /* never 0 */
}

static uint64_t *pair_slot(const struct tokenizer *t, const struct spm *s, uint64_t key)
{
    for (uint64_t at = tokenizer_mix(t, 0, key);; at++) {
        uint64_t *slot = &s->pairs[at & (s->capacity - 1)];
        if (*slot == 0 || *slot == key)
            return slot;
    }
}

static void pair_add(const struct tokenizer *t, struct spm *s, uint32_t a, uint32_t b)
{
    if (s->count * 2 >= s->capacity) {
        struct spm bigger = {.capacity = s->capacity ? s->capacity * 2 : 1024};
        bigger.pairs = xcalloc(bigger.capacity, sizeof(*bigger.pairs));
        for (uint64_t i = 0; i < s->capacity; i++)
            if (s->pairs[i])
                *pair_slot(t, &bigger, s->pairs[i]) = s->pairs[i];
        bigger.count = s->count;
        free(s->pairs);
        *s = bigger;
    }
    uint64_t key = pair_key(a, b), *slot = pair_slot(t, s, key);
    s->count += *slot == 0;
    *slot = key;
}

static bool pair_may_merge(const struct tokenizer *t, uint32_t a, uint32_t b)
{
    const struct spm *s = t->state;
    return s->capacity && *pair_slot(t, s, pair_key(a, b)) != 0;
}

static int32_t normal_piece(const struct tokenizer *t, const char *text, size_t bytes)
{
    if (bytes > t->longest_bytes)
        return -1;
    int32_t id = tokenizer_lookup(t, text, bytes);
    return id >= 0 && t->pieces[id].type == PIECE_NORMAL ? id : -1;
}

/* A symbol is a single character or a normal piece: only those can be halves of a merge. */
static bool is_symbol(const struct tokenizer *t, const char *text, size_t bytes)
{
    return (int)bytes == utf8_sequence_bytes((uint8_t)text[0]) || normal_piece(t, text, bytes) >= 0;
}

static void add_pairs_of(const struct tokenizer *t, struct spm *s, const struct piece *piece)
{
    uint32_t before = 0;
    for (size_t i = 0; i < piece->bytes;) {
        uint32_t character;
        int n = tokenizer_character(piece->text + i, piece->bytes - i, &character);
        ASSERT(n > 0); /* the vocabulary's pieces were checked */
        if (i > 0 && (piece->bytes > PRECISE_PIECE_BYTES ||
                      (is_symbol(t, piece->text, i) && is_symbol(t, piece->text + i, piece->bytes - i))))
            pair_add(t, s, before, character);
        before = character;
        i += (size_t)n;
    }
}

static int spm_begin(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    (void)g;
    (void)err;
    t->add_bos = t->add_space_prefix = true;
    t->unknown = 0;
    t->bos = 1;
    t->eos = 2;
    return 0;
}

static int spm_prepare(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    (void)g;
    (void)err;
    struct spm *s = xcalloc(1, sizeof(*s));
    for (uint32_t i = 0; i < t->count; i++)
        if (t->pieces[i].type == PIECE_NORMAL)
            add_pairs_of(t, s, &t->pieces[i]);
    t->state = s;
    return 0;
}

static void spm_release(struct tokenizer *t)
{
    struct spm *s = t->state;
    if (s)
        free(s->pairs);
    free(s);
    t->state = NULL;
}

/* ---- the heap: highest score first, leftmost among equals -------------------------------------------------
 */

static bool candidate_before(const struct candidate *a, const struct candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(struct workspace *w, struct candidate c)
{
    if (w->heap_count == w->heap_capacity) {
        w->heap_capacity = w->heap_capacity ? w->heap_capacity * 2 : 64;
        w->heap = xrealloc(w->heap, w->heap_capacity * sizeof(*w->heap));
    }
    size_t i = w->heap_count++;
    for (; i > 0 && candidate_before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static struct candidate heap_pop(struct workspace *w)
{
    struct candidate top = w->heap[0], last = w->heap[--w->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->heap_count)
            break;
        if (child + 1 < w->heap_count && candidate_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!candidate_before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* ---- one segment ------------------------------------------------------------------------------------------
 */

/* Appends one character as a symbol. */
static void segment_append(struct workspace *w, const char *character, size_t bytes)
{
    if (w->bytes + bytes > w->capacity) {
        w->capacity = w->capacity ? w->capacity * 2 : 256;
        w->text = xrealloc(w->text, w->capacity);
        w->start = xrealloc(w->start, w->capacity * sizeof(*w->start));
        w->end = xrealloc(w->end, w->capacity * sizeof(*w->end));
    }
    memcpy(w->text + w->bytes, character, bytes);
    memset(w->start + w->bytes, 0, bytes * sizeof(*w->start));
    w->start[w->bytes] = (uint16_t)bytes;
    w->bytes += bytes;
    w->end[w->bytes - 1] = (uint16_t)bytes;
}

/* Puts the merge of the symbol at `left` with its right neighbour on the heap where a piece allows it. */
static void consider(const struct tokenizer *t, struct workspace *w, size_t left)
{
    size_t right = left + w->start[left];
    if (right >= w->bytes)
        return;
    size_t bytes = (size_t)w->start[left] + w->start[right];
    int32_t id = normal_piece(t, w->text + left, bytes);
    if (id >= 0)
        heap_push(w, (struct candidate){t->pieces[id].score, (uint32_t)left, (uint32_t)bytes});
}

static void segment_merge(const struct tokenizer *t, struct workspace *w)
{
    for (size_t p = 0; p < w->bytes; p += w->start[p])
        consider(t, w, p);
    while (w->heap_count > 0) {
        struct candidate c = heap_pop(w);
        size_t left = c.left, right = left + w->start[left];
        if (right >= w->bytes || w->start[left] + w->start[right] != (int)c.bytes)
            continue; /* stale: one of the two has been merged with another since (the left one: 0 + 0) */
        w->start[right] = 0;
        w->start[left] = w->end[left + c.bytes - 1] = (uint16_t)c.bytes;
        if (left > 0)
            consider(t, w, left - w->end[left - 1]);
        consider(t, w, left);
    }
}

/* A character (or a byte that is none) without a piece: byte tokens, all or none; else the unknown token. A
 * space is its own byte, not the three of its mark, so that it is a space again when decoded. */
static int emit_bytes(const struct tokenizer *t, const char *text, size_t bytes, struct token_ids *ids,
                      struct err *err)
{
    if (bytes == SPACE_MARK_BYTES && memcmp(text, SPACE_MARK, SPACE_MARK_BYTES) == 0) {
        text = " ";
        bytes = 1;
    }
    size_t known = 0;
    while (known < bytes && t->byte_id[(uint8_t)text[known]] >= 0)
        known++;
    if (known == bytes) {
        for (size_t i = 0; i < bytes; i++)
            token_ids_push(ids, t->byte_id[(uint8_t)text[i]]);
        return 0;
    }
    if (t->unknown < 0)
        return err_set_code(
            err, 400,
            "text holds a character without a token: no piece, no byte token <0x%02X>, and the "
            "vocabulary has no unknown token",
            (uint8_t)text[known]);
    token_ids_push(ids, t->unknown);
    return 0;
}

/* Merges the collected segment, appends its ids and empties it. */
static int segment_finish(const struct tokenizer *t, struct workspace *w, struct token_ids *ids,
                          struct err *err)
{
    segment_merge(t, w);
    for (size_t p = 0; p < w->bytes; p += w->start[p]) {
        int32_t id = normal_piece(t, w->text + p, w->start[p]);
        if (id >= 0)
            token_ids_push(ids, id);
        else if (emit_bytes(t, w->text + p, w->start[p], ids, err))
            return -1;
    }
    w->bytes = 0;
    return 0;
}

/* ---- a stretch of text ------------------------------------------------------------------------------------
 */

static int encode_stretch(const struct tokenizer *t, struct workspace *w, const char *text, size_t bytes,
                          bool prefix, struct token_ids *ids, struct err *err)
{
    const uint32_t space = 0x2581;
    uint32_t before = space;
    if (prefix)
        segment_append(w, SPACE_MARK, SPACE_MARK_BYTES);
    for (size_t i = 0; i < bytes;) {
        uint32_t character;
        int n = tokenizer_character(text + i, bytes - i, &character);
        if (n > 0 && character == ' ')
            character = space;
        bool together =
            n > 0 && w->bytes > 0 && w->bytes < SEGMENT_MAX_BYTES && pair_may_merge(t, before, character);
        if (!together && segment_finish(t, w, ids, err))
            return -1;
        if (n == 0) { /* no character: this byte stands alone */
            if (emit_bytes(t, text + i, 1, ids, err))
                return -1;
            i++;
            continue;
        }
        if (character == space)
            segment_append(w, SPACE_MARK, SPACE_MARK_BYTES);
        else
            segment_append(w, text + i, (size_t)n);
        before = character;
        i += (size_t)n;
    }
    return segment_finish(t, w, ids, err);
}

static int spm_encode(const struct tokenizer *t, const char *text, size_t bytes, bool prefix,
                      struct token_ids *ids, struct err *err)
{
    struct workspace w = {0};
    int result = encode_stretch(t, &w, text, bytes, prefix, ids, err);
    free(w.text);
    free(w.start);
    free(w.end);
    free(w.heap);
    return result;
}

const struct tokenizer_algorithm tokenizer_spm = {
    .model = "llama",
    .begin = spm_begin,
    .prepare = spm_prepare,
    .encode = spm_encode,
    .release = spm_release,
};
