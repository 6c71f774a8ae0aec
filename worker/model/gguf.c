/* gguf: opening a file: every record is read through a struct reader and checked before it is believed.
 *
 * The layout of a file (all little-endian):
 *
 *   "GGUF" | version u32 | tensors u64 | keys u64 | key records | tensor records | padding | tensor data
 *   key record:    string key | type u32 | value            string: bytes u64, then the text
 *   array value:   element type u32 | count u64 | elements
 *   tensor record: string name | ndim u32 | ne[0..ndim) u64 | ggml type u32 | offset u64 in the data section
 */
#include "worker/model/gguf.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "worker/model/gguf_impl.h"
#include "worker/model/map_file.h"

/* Limits beyond what the format says. They keep memory below 4 x file + 64 MiB; the largest published models
 * have a few thousand tensors and a few dozen keys. */
#define KEYS_MAX          (1u << 20)
#define TENSORS_MAX       (1u << 20)
#define KEY_BYTES_MAX     65535
#define TENSOR_NAME_MAX   64
#define KEY_RECORD_MIN    14 /* bytes: length, one letter, type, one byte */
#define TENSOR_RECORD_MIN 33 /* bytes: length, one letter, ndim, one dimension, type, offset */
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MIN     8
#define ALIGNMENT_MAX     (1u << 24)

/* Every element type that ggml has given a number, so that a refusal can name it. */
static const char *const ggml_type_names[] = {
    [0] = "f32",     [1] = "f16",         [2] = "q4_0",        [3] = "q4_1",        [4] = "q4_2",
    [5] = "q4_3",    [6] = "q5_0",        [7] = "q5_1",        [8] = "q8_0",        [9] = "q8_1",
    [10] = "q2_K",   [11] = "q3_K",       [12] = "q4_K",       [13] = "q5_K",       [14] = "q6_K",
    [15] = "q8_K",   [16] = "iq2_xxs",    [17] = "iq2_xs",     [18] = "iq3_xxs",    [19] = "iq1_s",
    [20] = "iq4_nl", [21] = "iq3_s",      [22] = "iq2_s",      [23] = "iq4_xs",     [24] = "i8",
    [25] = "i16",    [26] = "i32",        [27] = "i64",        [28] = "f64",        [29] = "iq1_m",
    [30] = "bf16",   [31] = "q4_0_4_4",   [32] = "q4_0_4_8",   [33] = "q4_0_8_8",   [34] = "tq1_0",
    [35] = "tq2_0",  [36] = "iq4_nl_4_4", [37] = "iq4_nl_4_8", [38] = "iq4_nl_8_8", [39] = "mxfp4",
};

static const struct {
    const char *name;
    uint32_t bytes;
} value_types[GGUF_TYPE_COUNT] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(enum gguf_type type)
{
    ASSERT((unsigned)type < GGUF_TYPE_COUNT);
    return value_types[type].name;
}

uint32_t gguf_type_bytes(enum gguf_type type)
{
    ASSERT((unsigned)type < GGUF_TYPE_COUNT);
    return value_types[type].bytes;
}

const char *gguf_show(struct gguf_string s, char out[GGUF_SHOW_BYTES])
{
    size_t n = s.size > 64 ? 64 : (size_t)s.size;
    while (n < s.size && n > 0 && ((uint8_t)s.data[n] & 0xC0) == 0x80)
        n--; /* never half a character */
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)s.data[i];
        out[i] = c < 0x20 || c == 0x7F || c == '"' ? '?' : (char)c;
    }
    memcpy(out + n, n < s.size ? "..." : "", n < s.size ? 4 : 1);
    return out;
}

/* Refuses at a given place instead of where the reader stands. */
#define fail_at(r, where, ...) ((r)->offset = (where), reader_fail(r, __VA_ARGS__))

/* ---- names to numbers --------------------------------------------------------------------------------- */

static void index_init(struct gguf_index *index, uint64_t count)
{
    uint64_t slots = 8;
    while (slots < 2 * count)
        slots *= 2;
    index->slot = xcalloc(slots, sizeof(*index->slot));
    index->mask = slots - 1;
}

static struct gguf_string key_at(const struct gguf *g, uint64_t i)
{
    return (struct gguf_string){g->entry[i].key, g->entry[i].key_bytes};
}

static struct gguf_string tensor_name_at(const struct gguf *g, uint64_t i)
{
    return g->tensor[i].name;
}

/* The slot that holds `name`, or the free one where it belongs. */
static uint32_t *index_slot(const struct gguf *g, const struct gguf_index *index, struct gguf_string name,
                            struct gguf_string (*name_at)(const struct gguf *, uint64_t))
{
    uint64_t hash;
    _Static_assert(sizeof(hash) == crypto_shorthash_BYTES, "siphash gives 64 bits");
    crypto_shorthash((uint8_t *)&hash, (const uint8_t *)name.data, name.size, g->hash_key);
    for (uint64_t i = hash & index->mask;; i = (i + 1) & index->mask) {
        uint32_t *slot = &index->slot[i];
        if (*slot == 0)
            return slot;
        struct gguf_string other = name_at(g, *slot - 1);
        if (other.size == name.size && memcmp(other.data, name.data, name.size) == 0)
            return slot;
    }
}

const struct gguf_entry *gguf_entry_find(const struct gguf *g, const char *key)
{
    uint32_t slot = *index_slot(g, &g->key_index, (struct gguf_string){key, strlen(key)}, key_at);
    return slot ? &g->entry[slot - 1] : NULL;
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name)
{
    uint32_t slot =
        *index_slot(g, &g->tensor_index, (struct gguf_string){name, strlen(name)}, tensor_name_at);
    return slot ? &g->tensor[slot - 1] : NULL;
}

/* ---- the parser --------------------------------------------------------------------------------------- */

static int parse_header(struct gguf *g, struct reader *r)
{
    const uint8_t *magic;
    if (reader_bytes(r, "magic", 4, &magic))
        return -1;
    if (memcmp(magic, "GGUF", 4) != 0)
        return fail_at(r, 0, "magic: expected 47 47 55 46 (\"GGUF\"), found %02x %02x %02x %02x", magic[0],
                       magic[1], magic[2], magic[3]);
    if (reader_u32(r, "version", &g->version))
        return -1;
    uint32_t swapped = __builtin_bswap32(g->version);
    if (swapped >= 1 && swapped <= 3)
        return fail_at(r, 4, "a big-endian GGUF file (version %u): expected little-endian, convert the file",
                       swapped);
    if (g->version == 1)
        return fail_at(r, 4, "GGUF version 1 is obsolete: expected version 2 or 3, convert the file");
    if (g->version != 2 && g->version != 3)
        return fail_at(r, 4, "unknown GGUF version %u: expected 2 or 3", g->version);
    if (reader_u64(r, "tensor count", &g->tensor_count) || reader_u64(r, "key count", &g->entry_count))
        return -1;
    if (g->tensor_count > TENSORS_MAX || g->tensor_count > reader_left(r) / TENSOR_RECORD_MIN)
        return fail_at(r, 8, "tensor count: %llu do not fit into a file of %llu bytes (at most %u)",
                       (unsigned long long)g->tensor_count, (unsigned long long)r->size, TENSORS_MAX);
    if (g->entry_count > KEYS_MAX || g->entry_count > reader_left(r) / KEY_RECORD_MIN)
        return fail_at(r, 16, "key count: %llu do not fit into a file of %llu bytes (at most %u)",
                       (unsigned long long)g->entry_count, (unsigned long long)r->size, KEYS_MAX);
    return 0;
}

/* A key's or a tensor's name: neither empty nor too long, UTF-8, no zero byte (names are C strings here). */
static int parse_name(struct reader *r, const char *what, uint64_t max, struct gguf_string *out)
{
    uint64_t start = r->offset;
    const uint8_t *text;
    if (reader_u64(r, what, &out->size))
        return -1;
    if (out->size == 0)
        return fail_at(r, start, "%s is empty", what);
    if (out->size > max)
        return fail_at(r, start, "%s of %llu bytes: expected at most %llu", what,
                       (unsigned long long)out->size, (unsigned long long)max);
    if (reader_bytes(r, what, out->size, &text))
        return -1;
    out->data = (const char *)text;
    if (!utf8_valid(out->data, out->size))
        return fail_at(r, start + 8, "%s is not valid UTF-8", what);
    if (memchr(text, 0, out->size))
        return fail_at(r, start + 8, "%s contains a zero byte", what);
    return 0;
}

static int parse_type(struct reader *r, const char *what, const char *shown, uint8_t *out)
{
    uint64_t start = r->offset;
    uint32_t type;
    if (reader_u32(r, what, &type))
        return -1;
    if (type >= GGUF_TYPE_COUNT)
        return fail_at(r, start, "key \"%s\": unknown %s %u: expected 0 to %u", shown, what, type,
                       GGUF_TYPE_COUNT - 1);
    *out = (uint8_t)type;
    return 0;
}

/* Remembers where every string begins, so that the n-th is found at once: vocabularies have 100,000. */
static int parse_strings(struct reader *r, struct gguf_entry *e)
{
    e->offset = xmalloc((e->count + 1) * sizeof(*e->offset));
    for (uint64_t i = 0; i < e->count; i++) {
        uint64_t bytes;
        const uint8_t *text;
        e->offset[i] = r->offset;
        if (reader_u64(r, "array string length", &bytes) || reader_bytes(r, "array string", bytes, &text))
            return -1;
    }
    e->offset[e->count] = r->offset;
    return 0;
}

static int check_bools(struct reader *r, const char *shown, const uint8_t *value, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (value[i] > 1)
            return fail_at(r, (uint64_t)(value - r->data) + i, "key \"%s\": bool is %u, expected 0 or 1",
                           shown, value[i]);
    return 0;
}

static int parse_array(struct reader *r, const char *shown, struct gguf_entry *e)
{
    uint64_t start = r->offset;
    if (parse_type(r, "array element type", shown, &e->element))
        return -1;
    if (e->element == GGUF_ARRAY)
        return fail_at(r, start, "key \"%s\": nested arrays are not supported", shown);
    if (reader_u64(r, "array length", &e->count))
        return -1;
    uint64_t bytes = e->element == GGUF_STRING ? 8 : gguf_type_bytes(e->element), left = reader_left(r);
    if (e->count > left / bytes)
        return fail_at(r, start + 4, "key \"%s\": array of %llu x %s does not fit into the %llu bytes left",
                       shown, (unsigned long long)e->count, gguf_type_name(e->element),
                       (unsigned long long)left);
    e->value = r->data + r->offset;
    if (e->element == GGUF_STRING)
        return parse_strings(r, e);
    if (e->element == GGUF_BOOL && check_bools(r, shown, e->value, e->count))
        return -1;
    return reader_bytes(r, "array", e->count * bytes, &e->value);
}

static int parse_entry(struct reader *r, struct gguf_entry *e)
{
    struct gguf_string key;
    char shown[GGUF_SHOW_BYTES];
    if (parse_name(r, "key", KEY_BYTES_MAX, &key))
        return -1;
    e->key = key.data;
    e->key_bytes = (uint32_t)key.size;
    gguf_show(key, shown);
    if (parse_type(r, "value type", shown, &e->type))
        return -1;
    if (e->type == GGUF_ARRAY)
        return parse_array(r, shown, e);
    e->count = gguf_type_bytes(e->type);
    if (e->type == GGUF_STRING && reader_u64(r, "string length", &e->count))
        return -1;
    if (reader_bytes(r, e->type == GGUF_STRING ? "string" : "value", e->count, &e->value))
        return -1;
    return e->type == GGUF_BOOL ? check_bools(r, shown, e->value, 1) : 0;
}

static int parse_entries(struct gguf *g, struct reader *r)
{
    uint64_t count = g->entry_count;
    index_init(&g->key_index, count);
    g->entry = xcalloc(count, sizeof(*g->entry));
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = r->offset;
        if (parse_entry(r, &g->entry[i]))
            return -1;
        uint32_t *slot = index_slot(g, &g->key_index, key_at(g, i), key_at);
        char shown[GGUF_SHOW_BYTES];
        if (*slot)
            return fail_at(r, start, "key \"%s\" stands twice in the file", gguf_show(key_at(g, i), shown));
        *slot = (uint32_t)i + 1;
    }
    return 0;
}

static int check_alignment(struct gguf *g, struct reader *r)
{
    const struct gguf_entry *e = gguf_entry_find(g, "general.alignment");
    g->alignment = ALIGNMENT_DEFAULT;
    if (!e)
        return 0;
    uint64_t where = (uint64_t)(e->value - g->data);
    if (e->type != GGUF_U32)
        return fail_at(r, where, "general.alignment is of type %s, expected u32", gguf_type_name(e->type));
    memcpy(&g->alignment, e->value, sizeof(g->alignment));
    if (g->alignment < ALIGNMENT_MIN || g->alignment > ALIGNMENT_MAX || (g->alignment & (g->alignment - 1)))
        return fail_at(r, where, "general.alignment is %u, expected a power of two from %u to %u",
                       g->alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    return 0;
}

static int parse_dims(struct reader *r, const char *shown, struct gguf_tensor *t)
{
    uint32_t ndim;
    uint64_t start = r->offset;
    if (reader_u32(r, "tensor ndim", &ndim))
        return -1;
    if (ndim < 1 || ndim > TENSOR_MAX_DIMS)
        return fail_at(r, start, "tensor \"%s\": %u dimensions, expected 1 to %d", shown, ndim,
                       TENSOR_MAX_DIMS);
    t->ndim = (int)ndim;
    /* The file lists the fastest dimension first. */
    for (int d = t->ndim - 1; d >= 0; d--) {
        uint64_t n;
        start = r->offset;
        if (reader_u64(r, "tensor dimension", &n))
            return -1;
        if (n < 1 || n > INT64_MAX)
            return fail_at(r, start, "tensor \"%s\": dimension of %lld, expected 1 or more", shown,
                           (long long)n);
        t->dim[d] = (int64_t)n;
    }
    return 0;
}

static int parse_dtype(struct reader *r, const char *shown, struct gguf_tensor *t)
{
    uint64_t start = r->offset;
    uint32_t number;
    if (reader_u32(r, "tensor type", &number))
        return -1;
    if (!dtype_from_ggml(number, &t->dtype)) {
        if (number < ARRAY_LEN(ggml_type_names))
            return fail_at(r, start, "tensor \"%s\": type %s (%u) is not supported yet", shown,
                           ggml_type_names[number], number);
        return fail_at(r, start, "tensor \"%s\": unknown tensor type %u", shown, number);
    }
    const struct dtype_info *info = dtype_info(t->dtype);
    int64_t row = t->dim[t->ndim - 1];
    if (row % info->block_elements)
        return fail_at(r, start, "tensor \"%s\": rows of %lld elements are no whole %s blocks of %u", shown,
                       (long long)row, info->name, info->block_elements);
    bool fits = dtype_row_bytes(t->dtype, (uint64_t)row, &t->bytes) == 0;
    for (int d = 0; fits && d < t->ndim - 1; d++)
        fits = checked_mul_u64(t->bytes, (uint64_t)t->dim[d], &t->bytes);
    return fits ? 0 : fail_at(r, start, "tensor \"%s\": its size does not fit 64 bits", shown);
}

/* Reads one record; t->offset is still relative to the data section, whose place is not known yet. */
static int parse_tensor(struct gguf *g, struct reader *r, struct gguf_tensor *t)
{
    char shown[GGUF_SHOW_BYTES];
    if (parse_name(r, "tensor name", TENSOR_NAME_MAX, &t->name))
        return -1;
    gguf_show(t->name, shown);
    if (parse_dims(r, shown, t) || parse_dtype(r, shown, t))
        return -1;
    uint64_t start = r->offset;
    if (reader_u64(r, "tensor offset", &t->offset))
        return -1;
    if (t->offset % g->alignment)
        return fail_at(r, start, "tensor \"%s\": offset %llu is no multiple of the alignment %u", shown,
                       (unsigned long long)t->offset, g->alignment);
    return 0;
}

static int parse_tensors(struct gguf *g, struct reader *r)
{
    uint64_t count = g->tensor_count;
    index_init(&g->tensor_index, count);
    g->tensor = xcalloc(count, sizeof(*g->tensor));
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = r->offset;
        if (parse_tensor(g, r, &g->tensor[i]))
            return -1;
        uint32_t *slot = index_slot(g, &g->tensor_index, g->tensor[i].name, tensor_name_at);
        char shown[GGUF_SHOW_BYTES];
        if (*slot)
            return fail_at(r, start, "tensor \"%s\" stands twice in the file",
                           gguf_show(g->tensor[i].name, shown));
        *slot = (uint32_t)i + 1;
    }
    g->table_end = r->offset;
    g->data_offset = round_up_u64(r->offset, g->alignment);
    return 0;
}

/* Turns offsets into places in the file, all of them inside it. */
static int place_tensors(struct gguf *g, struct reader *r)
{
    for (uint64_t i = 0; i < g->tensor_count; i++) {
        struct gguf_tensor *t = &g->tensor[i];
        uint64_t begin, end;
        char shown[GGUF_SHOW_BYTES];
        if (!checked_add_u64(t->offset, g->data_offset, &begin) || !checked_add_u64(begin, t->bytes, &end) ||
            end > g->size)
            return fail_at(
                r, g->table_end,
                "tensor \"%s\": %llu bytes at offset %llu of the data, which begins at %llu, reach "
                "past the end of the file (%llu bytes)",
                gguf_show(t->name, shown), (unsigned long long)t->bytes, (unsigned long long)t->offset,
                (unsigned long long)g->data_offset, (unsigned long long)g->size);
        t->offset = begin;
        t->mapped = g->data + begin;
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a;
    const struct gguf_tensor *y = *(const struct gguf_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int check_overlap(const struct gguf *g, struct reader *r)
{
    const struct gguf_tensor **order = xmalloc(g->tensor_count * sizeof(*order));
    int rc = 0;
    for (uint64_t i = 0; i < g->tensor_count; i++)
        order[i] = &g->tensor[i];
    qsort(order, g->tensor_count, sizeof(*order), by_offset);
    for (uint64_t i = 1; i < g->tensor_count && rc == 0; i++) {
        const struct gguf_tensor *a = order[i - 1], *b = order[i];
        char shown_a[GGUF_SHOW_BYTES], shown_b[GGUF_SHOW_BYTES];
        if (b->offset < a->offset + a->bytes)
            rc = fail_at(r, b->offset, "tensors \"%s\" and \"%s\" overlap", gguf_show(a->name, shown_a),
                         gguf_show(b->name, shown_b));
    }
    free(order);
    return rc;
}

static struct gguf *gguf_new(const void *data, uint64_t size, const char *name)
{
    struct gguf *g = xcalloc(1, sizeof(*g));
    g->name = xstrdup(name);
    g->data = data;
    g->size = size;
    if (sodium_init() < 0)
        die("libsodium does not start");
    randombytes_buf(g->hash_key, sizeof(g->hash_key));
    return g;
}

int gguf_parse(struct gguf **out, const void *data, uint64_t size, const char *name, struct err *err)
{
    struct gguf *g = gguf_new(data, size, name);
    struct reader r;
    *out = NULL;
    reader_init(&r, data, size, g->name, err);
    if (parse_header(g, &r) || parse_entries(g, &r) || check_alignment(g, &r) || parse_tensors(g, &r) ||
        place_tensors(g, &r) || check_overlap(g, &r)) {
        gguf_close(&g);
        return -1;
    }
    *out = g;
    return 0;
}

int gguf_assemble(struct gguf **out, struct buffer *header, const struct gguf_source *source,
                  const char *name, struct err *err)
{
    struct gguf *g = gguf_new(header->data, header->size, name);
    struct reader r;
    *out = NULL;
    g->header = *header;
    g->source = *source;
    *header = (struct buffer){0};
    reader_init(&r, g->data, g->size, g->name, err);
    if (parse_header(g, &r) || parse_entries(g, &r) || check_alignment(g, &r) || parse_tensors(g, &r)) {
        gguf_close(&g);
        return -1;
    }
    /* The offsets and the size are those of the file that this would be. */
    g->size = g->data_offset;
    for (uint64_t i = 0; i < g->tensor_count; i++) {
        struct gguf_tensor *t = &g->tensor[i];
        t->offset += g->data_offset;
        if (t->offset + t->bytes > g->size)
            g->size = t->offset + t->bytes;
    }
    *out = g;
    return 0;
}

/* ---- files -------------------------------------------------------------------------------------------- */

int gguf_open(struct gguf **out, const char *path, struct err *err)
{
    const void *mapping;
    uint64_t size;
    *out = NULL;
    if (map_file(path, "a GGUF file", &mapping, &size, err))
        return -1;
    /* An empty file has no mapping; the parser refuses it. */
    if (gguf_parse(out, mapping ? mapping : "", size, path, err)) {
        map_file_release(mapping, size);
        return -1;
    }
    (*out)->mapping = (void *)(uintptr_t)mapping;
    return 0;
}

void gguf_close(struct gguf **g)
{
    struct gguf *f = *g;
    if (!f)
        return;
    for (uint64_t i = 0; f->entry && i < f->entry_count; i++)
        free(f->entry[i].offset);
    free(f->entry);
    free(f->tensor);
    free(f->key_index.slot);
    free(f->tensor_index.slot);
    map_file_release(f->mapping, f->size);
    if (f->source.close)
        f->source.close(f->source.context);
    buffer_release(&f->header);
    free(f->name);
    free(f);
    *g = NULL;
}

const char *gguf_name(const struct gguf *g)
{
    return g->name;
}

uint64_t gguf_file_bytes(const struct gguf *g)
{
    return g->size;
}

uint32_t gguf_version(const struct gguf *g)
{
    return g->version;
}

uint32_t gguf_alignment(const struct gguf *g)
{
    return g->alignment;
}

uint64_t gguf_tensor_count(const struct gguf *g)
{
    return g->tensor_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t index)
{
    ASSERT(index < g->tensor_count);
    return &g->tensor[index];
}
