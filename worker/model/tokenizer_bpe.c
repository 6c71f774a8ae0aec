/* tokenizer_bpe: the `gpt2` algorithm, byte-level BPE with ranked merges.
 *
 * The pre-tokenizer cuts the text into words; the bytes of a word are symbols, and the neighbours whose merge
 * stands first in tokenizer.ggml.merges become one symbol, the leftmost among equals, until no merge applies.
 * Vocabulary and merges write bytes as characters (tokenizer_byte_character); here they are resolved once, at
 * opening, so that a merge is a look-up by two ids:
 *
 *     "Ġ t"  rank 0      (id of "Ġ", id of "t") -> rank 0, id of "Ġt"
 *
 * The symbols of a word are a list over an array; the heap holds (rank, place of the left symbol). What other
 * merges have made stale is recognised by the rank that the left symbol has with its present neighbour: ranks
 * are unique to a pair, and a symbol only grows. A merge makes a longer piece of two shorter ones, so no set
 * of merges can go round in a circle.
 *
 * A merge never forms a control token: written out in a text it stays text, unless the caller asked for
 * special tokens. Source: Sennrich et al. 2016; GPT-2's published encoder. */
#include "worker/model/tokenizer_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "worker/model/pretokenize.h"

#define KEY_PRE    "tokenizer.ggml.pre"
#define KEY_MERGES "tokenizer.ggml.merges"

/* A word is cut here at the latest, which bounds the working memory (about 32 MiB). */
#define WORD_MAX_BYTES (1u << 20)
#define NONE           UINT32_MAX

struct merge {
    uint32_t left, right; /* ids; left is NONE in a free slot */
    uint32_t rank, id;    /* id of both together */
};

struct bpe {
    const struct pretokenizer *pretokenizer;
    struct merge *merges; /* open addressing */
    uint64_t mask;
};

struct symbol {
    uint32_t id; /* NONE: a byte without a token */
    uint32_t previous, next;
    uint32_t rank; /* of the merge with `next`, NONE where there is none or the symbol is gone */
};

struct workspace {
    const struct tokenizer *t;
    struct token_ids *ids;
    struct err *err;
    struct symbol *symbols;
    size_t symbol_capacity;
    uint64_t *heap; /* rank << 32 | place of the left symbol */
    size_t heap_count, heap_capacity;
};

/* ---- opening ----------------------------------------------------------------------------------------------
 */

static int bpe_begin(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    struct gguf_string pre = {"default", strlen("default")};
    int found = gguf_get_string(g, KEY_PRE, &pre, err);
    if (found < 0)
        return -1;
    if (found == 0)
        log_warn("tokenizer",
                 "%s: no " KEY_PRE
                 ": words are cut by the default rule, which may not be the one of this model",
                 gguf_name(g));
    const struct pretokenizer *p = pretokenizer_find(pre.data, pre.size);
    if (!p) {
        char name[40]; /* as it stands in the file, without what a terminal would obey */
        size_t n = pre.size < sizeof(name) - 1 ? pre.size : sizeof(name) - 1;
        for (size_t i = 0; i < n; i++)
            name[i] = pre.data[i] >= 0x20 && pre.data[i] < 0x7F ? pre.data[i] : '?';
        name[n] = '\0';
        return err_set(err, "%s: " KEY_PRE " \"%s\" is not supported, expected one of docs/models.md",
                       gguf_name(g), name);
    }
    struct bpe *b = xcalloc(1, sizeof(*b));
    b->pretokenizer = p;
    t->state = b;
    t->add_bos = p->add_bos;
    t->add_space_prefix = false;
    t->bos = t->eos = 11; /* Falcon's, in files of the time when it was the only one */
    t->unknown = -1;
    return 0;
}

static struct merge *merge_slot(const struct tokenizer *t, const struct bpe *b, uint32_t left, uint32_t right)
{
    for (uint64_t at = tokenizer_mix(t, 0, (uint64_t)left << 32 | right);; at++) {
        struct merge *m = &b->merges[at & b->mask];
        if (m->left == NONE || (m->left == left && m->right == right))
            return m;
    }
}

/* The id of a piece of a merge. Converters write a piece that is user-defined as well in plain text. */
static int32_t merge_piece(const struct tokenizer *t, const char *text, size_t bytes)
{
    char plain[2 * PIECE_MAX_BYTES];
    size_t n = 0;
    int32_t id = tokenizer_lookup(t, text, bytes);
    for (size_t i = 0; id < 0 && i < bytes; n++) {
        uint32_t character;
        int length = tokenizer_character(text + i, bytes - i, &character);
        int byte = length ? tokenizer_byte_of(character) : -1;
        if (byte < 0)
            return -1;
        plain[n] = (char)byte;
        i += (size_t)length;
    }
    if (id < 0 && n > 0)
        id = tokenizer_lookup(t, plain, n);
    return id >= 0 && (n == 0 || t->pieces[id].type == PIECE_USER_DEFINED) ? id : -1;
}

/* Part `which` of merge `rank`, which must be a piece. */
static int merge_part(const struct tokenizer *t, const struct gguf *g, uint64_t rank, const char *which,
                      const char *text, size_t bytes, uint32_t *id, struct err *err)
{
    int32_t found = merge_piece(t, text, bytes);
    if (found < 0)
        return err_set(err, "%s: " KEY_MERGES "[%" PRIu64 "]: %s is no piece of the vocabulary", gguf_name(g),
                       rank, which);
    *id = (uint32_t)found;
    return 0;
}

static int add_merge(struct tokenizer *t, const struct gguf *g, uint64_t rank, struct err *err)
{
    const struct bpe *b = t->state;
    struct gguf_string s = gguf_array_string(g, KEY_MERGES, rank);
    if (s.size > 2 * PIECE_MAX_BYTES + 1)
        return err_set(err, "%s: " KEY_MERGES "[%" PRIu64 "]: expected at most %d bytes, found %" PRIu64,
                       gguf_name(g), rank, 2 * PIECE_MAX_BYTES + 1, s.size);
    const char *space = s.size ? memchr(s.data, ' ', s.size) : NULL;
    size_t left_bytes = space ? (size_t)(space - s.data) : 0;
    size_t right_bytes = space ? s.size - left_bytes - 1 : 0;
    if (left_bytes == 0 || right_bytes == 0 || memchr(space + 1, ' ', right_bytes))
        return err_set(err, "%s: " KEY_MERGES "[%" PRIu64 "]: expected two pieces with one space between",
                       gguf_name(g), rank);
    char both[2 * PIECE_MAX_BYTES];
    memcpy(both, s.data, left_bytes);
    memcpy(both + left_bytes, space + 1, right_bytes);
    struct merge m = {.rank = (uint32_t)rank};
    if (merge_part(t, g, rank, "its left part", s.data, left_bytes, &m.left, err) ||
        merge_part(t, g, rank, "its right part", space + 1, right_bytes, &m.right, err) ||
        merge_part(t, g, rank, "what it makes", both, left_bytes + right_bytes, &m.id, err))
        return -1;
    struct merge *slot = merge_slot(t, b, m.left, m.right);
    if (slot->left != NONE)
        return err_set(err, "%s: " KEY_MERGES "[%" PRIu64 "]: the same as [%u]", gguf_name(g), rank,
                       slot->rank);
    *slot = m;
    return 0;
}

static int read_merges(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    struct bpe *b = t->state;
    enum gguf_type element;
    uint64_t count, slots = 16;
    int found = gguf_get_array(g, KEY_MERGES, &element, &count, err);
    if (found < 0)
        return -1;
    if (found == 0)
        return err_set(err, "%s: no array " KEY_MERGES, gguf_name(g));
    if (element != GGUF_STRING)
        return err_set(err,
                       "%s: " KEY_MERGES ": expected an array of strings, found elements of another type",
                       gguf_name(g));
    if (count > INT32_MAX)
        return err_set(err, "%s: " KEY_MERGES ": expected at most %d merges, found %" PRIu64, gguf_name(g),
                       INT32_MAX, count);
    while (slots * 3 < count * 4)
        slots *= 2;
    b->merges = xmalloc(slots * sizeof(*b->merges));
    b->mask = slots - 1;
    for (uint64_t i = 0; i < slots; i++)
        b->merges[i].left = NONE;
    for (uint64_t i = 0; i < count; i++)
        if (add_merge(t, g, i, err))
            return -1;
    for (uint64_t i = 0; i < slots; i++)
        if (b->merges[i].left != NONE && t->pieces[b->merges[i].id].type == PIECE_CONTROL)
            b->merges[i].rank = NONE;
    return 0;
}

/* Writes the byte as its character; returns its length. */
static size_t put_byte_character(uint8_t byte, char out[2])
{
    uint32_t c = tokenizer_byte_character(byte);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
}

static int bpe_prepare(struct tokenizer *t, const struct gguf *g, struct err *err)
{
    for (int byte = 0; byte < 256; byte++) {
        char text[2];
        int32_t id = tokenizer_lookup(t, text, put_byte_character((uint8_t)byte, text));
        if (id >= 0)
            t->byte_id[byte] = id;
    }
    return read_merges(t, g, err);
}

static void bpe_release(struct tokenizer *t)
{
    struct bpe *b = t->state;
    if (b)
        free(b->merges);
    free(b);
    t->state = NULL;
}

/* ---- the heap: lowest rank first, leftmost among equals ---------------------------------------------------
 */

static void heap_push(struct workspace *w, uint64_t entry)
{
    if (w->heap_count == w->heap_capacity) {
        w->heap_capacity = w->heap_capacity ? w->heap_capacity * 2 : 64;
        w->heap = xrealloc(w->heap, w->heap_capacity * sizeof(*w->heap));
    }
    size_t i = w->heap_count++;
    for (; i > 0 && entry < w->heap[(i - 1) / 2]; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = entry;
}

static uint64_t heap_pop(struct workspace *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->heap_count)
            break;
        if (child + 1 < w->heap_count && w->heap[child + 1] < w->heap[child])
            child++;
        if (w->heap[child] >= last)
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* ---- one word ---------------------------------------------------------------------------------------------
 */

/* Finds the merge of the symbol with its neighbour and puts it on the heap where there is one. */
static void consider(struct workspace *w, uint32_t left)
{
    const struct bpe *b = w->t->state;
    struct symbol *s = &w->symbols[left];
    s->rank = NONE;
    if (s->next == NONE || s->id == NONE || w->symbols[s->next].id == NONE)
        return;
    const struct merge *m = merge_slot(w->t, b, s->id, w->symbols[s->next].id);
    if (m->left == NONE || m->rank == NONE)
        return;
    s->rank = m->rank;
    heap_push(w, (uint64_t)m->rank << 32 | left);
}

static void merge_word(struct workspace *w, uint32_t count)
{
    const struct bpe *b = w->t->state;
    for (uint32_t i = 0; i + 1 < count; i++)
        consider(w, i);
    while (w->heap_count > 0) {
        uint64_t entry = heap_pop(w);
        uint32_t left = (uint32_t)entry;
        struct symbol *s = &w->symbols[left];
        if (s->rank != entry >> 32)
            continue; /* stale */
        struct symbol *right = &w->symbols[s->next];
        s->id = merge_slot(w->t, b, s->id, right->id)->id;
        s->next = right->next;
        right->rank = NONE;
        if (s->next != NONE)
            w->symbols[s->next].previous = left;
        consider(w, left);
        if (s->previous != NONE)
            consider(w, s->previous);
    }
}

static int push_id(struct workspace *w, uint32_t id, uint8_t byte)
{
    if (id == NONE && w->t->unknown < 0)
        return err_set_code(w->err, 400,
                            "text holds the byte 0x%02X, for which the vocabulary has neither a piece nor an "
                            "unknown token",
                            byte);
    token_ids_push(w->ids, id == NONE ? w->t->unknown : (int32_t)id);
    return 0;
}

/* The id of the piece that is the whole word, or NONE. */
static uint32_t whole_word(const struct tokenizer *t, const char *word, size_t bytes)
{
    char text[PIECE_MAX_BYTES];
    size_t n = 0;
    if (bytes > sizeof(text) / 2)
        return NONE;
    for (size_t i = 0; i < bytes; i++)
        n += put_byte_character((uint8_t)word[i], text + n);
    int32_t id = tokenizer_lookup(t, text, n);
    return id >= 0 && t->pieces[id].type == PIECE_NORMAL ? (uint32_t)id : NONE;
}

static int encode_part(struct workspace *w, const char *word, uint32_t bytes)
{
    if (bytes > w->symbol_capacity) {
        while (w->symbol_capacity < bytes)
            w->symbol_capacity = w->symbol_capacity ? w->symbol_capacity * 2 : 64;
        free(w->symbols);
        w->symbols = xmalloc(w->symbol_capacity * sizeof(*w->symbols));
    }
    for (uint32_t i = 0; i < bytes; i++)
        w->symbols[i] = (struct symbol){.id = (uint32_t)w->t->byte_id[(uint8_t)word[i]], /* -1 is NONE */
                                        .previous = i ? i - 1 : NONE,
                                        .next = i + 1 < bytes ? i + 1 : NONE,
                                        .rank = NONE};
    merge_word(w, bytes);
    for (uint32_t i = 0; i != NONE; i = w->symbols[i].next)
        if (push_id(w, w->symbols[i].id, (uint8_t)word[i]))
            return -1;
    return 0;
}

static int encode_word(void *context, const char *word, size_t bytes)
{
    struct workspace *w = context;
    const struct bpe *b = w->t->state;
    uint32_t whole = b->pretokenizer->ignore_merges ? whole_word(w->t, word, bytes) : NONE;
    if (whole != NONE)
        return push_id(w, whole, 0);
    for (size_t done = 0; done < bytes; done += WORD_MAX_BYTES) {
        size_t part = bytes - done < WORD_MAX_BYTES ? bytes - done : WORD_MAX_BYTES;
        if (encode_part(w, word + done, (uint32_t)part))
            return -1;
    }
    return 0;
}

/* The space prefix belongs to the first word: the text is copied behind it. */
static int bpe_encode(const struct tokenizer *t, const char *text, size_t bytes, bool prefix,
                      struct token_ids *ids, struct err *err)
{
    const struct bpe *b = t->state;
    struct workspace w = {.t = t, .ids = ids, .err = err};
    struct buffer prefixed = {0};
    if (prefix) {
        buffer_append(&prefixed, " ", 1);
        buffer_append(&prefixed, text, bytes);
        text = (const char *)prefixed.data;
        bytes = prefixed.size;
    }
    int result = pretokenize(b->pretokenizer, text, bytes, encode_word, &w);
    buffer_release(&prefixed);
    free(w.symbols);
    free(w.heap);
    return result;
}

const struct tokenizer_algorithm tokenizer_bpe = {
    .model = "gpt2",
    .optional_arrays = true,
    .byte_level = true,
    .begin = bpe_begin,
    .prepare = bpe_prepare,
    .encode = bpe_encode,
    .release = bpe_release,
};
