/* wire: messages to frames, driven by the table of wire_schema.c (back: wire_decode.c). It owns no field:
 * adding one does not touch this file. */
#include "common/wire.h"

#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire_value.h"

/* ---- strings ---- */

struct wire_str wire_string(const char *s)
{
    size_t n = s ? strlen(s) : 0;
    ASSERT(n <= UINT32_MAX);
    return (struct wire_str){n ? s : NULL, (uint32_t)n};
}

bool wire_str_equal(struct wire_str a, struct wire_str b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

bool wire_str_is(struct wire_str a, const char *s)
{
    return wire_str_equal(a, wire_string(s));
}

char *wire_str_dup(struct wire_str s)
{
    char *copy = xmalloc((size_t)s.size + 1);
    if (s.size)
        memcpy(copy, s.data, s.size);
    copy[s.size] = '\0';
    return copy;
}

/* Of an id. A table: every token names its request. */
static const bool id_character[256] = {
    ['a' ... 'z'] = true, ['A' ... 'Z'] = true, ['0' ... '9'] = true, ['.'] = true,
    ['_'] = true,         [':'] = true,         ['-'] = true,
};

bool wire_id_valid(struct wire_str s)
{
    if (s.size == 0 || s.size > WIRE_MAX_ID)
        return false;
    for (uint32_t i = 0; i < s.size; i++)
        if (!id_character[(uint8_t)s.data[i]])
            return false;
    return true;
}

struct wire_str wire_string_mend(char *s, size_t max_bytes)
{
    size_t n = strlen(s), kept = 0;
    while (kept < n) {
        int bytes = utf8_sequence_bytes((uint8_t)s[kept]);
        bool whole = bytes > 0 && kept + (size_t)bytes <= n && utf8_valid(s + kept, (size_t)bytes);
        if (!whole) {
            s[kept] = '?';
            bytes = 1;
        }
        if (kept + (size_t)bytes > max_bytes)
            break;
        kept += (size_t)bytes;
    }
    s[kept] = '\0';
    return wire_string(s);
}

const char *wire_printable(char out[48], struct wire_str s)
{
    uint32_t n = s.size < 40 ? s.size : 40;
    for (uint32_t i = 0; i < n; i++)
        out[i] = s.data[i] >= 0x20 && s.data[i] < 0x7F ? s.data[i] : '?';
    strcpy(out + n, s.size > n ? "..." : "");
    return out;
}

/* ---- one value: checks shared by both directions ---- */

int wire_check_uint(const struct wire_field *f, uint64_t v, struct err *err)
{
    if (v >= f->min && v <= f->max)
        return 0;
    return err_set_code(err, 400, "expected an integer from %llu to %llu, found %llu",
                        (unsigned long long)f->min, (unsigned long long)f->max, (unsigned long long)v);
}

int wire_check_float(const struct wire_field *f, double v, struct err *err)
{
    /* Written so that NaN fails. */
    if (v <= f->float_max && (f->above_min ? v > f->float_min : v >= f->float_min))
        return 0;
    return err_set_code(err, 400, "expected a number %s %g to %g, found %g", f->above_min ? "above" : "from",
                        f->float_min, f->float_max, v);
}

int wire_check_string(const struct wire_field *f, struct wire_str s, struct err *err)
{
    char shown[48];
    if (f->choices && !wire_choice_valid(f->choices, s))
        return err_set_code(err, 400, "expected one of %s, found \"%s\"", f->choices,
                            wire_printable(shown, s));
    if (f->kind == WIRE_KIND_ID && !wire_id_valid(s))
        return err_set_code(err, 400,
                            "expected 1 to %u characters of [A-Za-z0-9._:-], found \"%s\" (%u bytes)",
                            WIRE_MAX_ID, wire_printable(shown, s), s.size);
    if (f->kind == WIRE_KIND_ID)
        return 0;
    if (s.size < f->min || s.size > f->max)
        return err_set_code(err, 400, "expected a string of %llu to %llu bytes, found %u bytes",
                            (unsigned long long)f->min, (unsigned long long)f->max, s.size);
    if (s.size && !utf8_valid(s.data, s.size))
        return err_set_code(err, 400, "expected UTF-8, found bytes that are none");
    if (s.size && f->kind == WIRE_KIND_STRING && memchr(s.data, 0, s.size))
        return err_set_code(err, 400, "holds a NUL byte");
    return 0;
}

int wire_check_count(const struct wire_field *f, uint64_t count, struct err *err)
{
    if (count >= f->min && count <= f->max)
        return 0;
    return err_set_code(err, 400, "expected %llu to %llu entries, found %llu", (unsigned long long)f->min,
                        (unsigned long long)f->max, (unsigned long long)count);
}

void wire_set_default(const struct wire_field *f, void *base)
{
    if (f->kind == WIRE_KIND_UINT)
        *(uint64_t *)wire_member(base, f->offset) = f->standard;
    else if (f->kind == WIRE_KIND_FLOAT)
        *(double *)wire_member(base, f->offset) = f->float_standard;
}

void wire_release(struct wire_message *m)
{
    if (!m)
        return;
    if (m->memory)
        msgpack_zone_free(m->memory);
    memset(m, 0, sizeof(*m));
}

void wire_init(struct wire_message *m, enum wire_type type)
{
    const struct wire_record *record = wire_record_find((uint64_t)type);
    ASSERT(record != NULL);
    m->type = type;
    m->memory = NULL;
    memset(&m->generate, 0, record->bytes); /* every member of the union begins there; it is large */
    for (uint32_t i = 0; i < record->field_count; i++)
        wire_set_default(&record->fields[i], &m->generate);
}

/* ---- encode ---- */

static void encode_record(msgpack_packer *p, const struct wire_record *record, const void *base);

static int append(void *buffer, const char *data, size_t bytes)
{
    struct buffer *b = buffer;
    if (bytes > b->capacity - b->size) {
        buffer_append(b, data, bytes);
        return 0;
    }
    memcpy(b->data + b->size, data, bytes);
    b->size += bytes;
    return 0;
}

static bool is_default(const struct wire_field *f, const void *base)
{
    if (f->has_flag)
        return !*(const bool *)wire_member(base, f->side_offset);
    switch (f->kind) {
    case WIRE_KIND_UINT:
        return *(const uint64_t *)wire_member(base, f->offset) == f->standard;
    case WIRE_KIND_FLOAT:
        return *(const double *)wire_member(base, f->offset) == f->float_standard;
    case WIRE_KIND_BOOL:
        return !*(const bool *)wire_member(base, f->offset);
    case WIRE_KIND_ARRAY:
    case WIRE_KIND_IDS:
        return *(const uint32_t *)wire_member(base, f->side_offset) == 0;
    default:
        return ((const struct wire_str *)wire_member(base, f->offset))->size == 0;
    }
}

/* A value out of its bounds is a bug of the sender: say which field before the assertion ends the process. */
static void must(int checked, const struct wire_record *record, const struct wire_field *f,
                 const struct err *err)
{
    if (checked < 0)
        fprintf(stderr, "wire: cannot encode %s: %s: %s\n", record->name, f->name, err->message);
    ASSERT(checked == 0);
}

static void encode_ids(msgpack_packer *p, const uint32_t *ids, uint32_t count)
{
    msgpack_pack_bin(p, (size_t)count * 4);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t b[4] = {(uint8_t)ids[i], (uint8_t)(ids[i] >> 8), (uint8_t)(ids[i] >> 16),
                        (uint8_t)(ids[i] >> 24)};
        msgpack_pack_bin_body(p, b, sizeof(b));
    }
}

static void encode_value(msgpack_packer *p, const struct wire_record *record, const struct wire_field *f,
                         const void *base)
{
    struct err err;
    const void *value = wire_member(base, f->offset);
    switch (f->kind) {
    case WIRE_KIND_UINT:
        must(wire_check_uint(f, *(const uint64_t *)value, &err), record, f, &err);
        msgpack_pack_uint64(p, *(const uint64_t *)value);
        return;
    case WIRE_KIND_FLOAT:
        must(wire_check_float(f, *(const double *)value, &err), record, f, &err);
        msgpack_pack_double(p, *(const double *)value);
        return;
    case WIRE_KIND_BOOL:
        *(const bool *)value ? msgpack_pack_true(p) : msgpack_pack_false(p);
        return;
    case WIRE_KIND_ID:
    case WIRE_KIND_STRING:
    case WIRE_KIND_TEXT: {
        struct wire_str s = *(const struct wire_str *)value;
        must(wire_check_string(f, s, &err), record, f, &err);
        msgpack_pack_str(p, s.size);
        msgpack_pack_str_body(p, s.size ? s.data : "", s.size);
        return;
    }
    case WIRE_KIND_ARRAY: {
        uint32_t count = *(const uint32_t *)wire_member(base, f->side_offset);
        const char *elements = *(char *const *)value;
        must(wire_check_count(f, count, &err), record, f, &err);
        msgpack_pack_array(p, count);
        for (uint32_t i = 0; i < count; i++)
            encode_record(p, f->element, elements + (size_t)i * f->element->bytes);
        return;
    }
    case WIRE_KIND_IDS: {
        uint32_t count = *(const uint32_t *)wire_member(base, f->side_offset);
        must(wire_check_count(f, count, &err), record, f, &err);
        encode_ids(p, *(uint32_t *const *)value, count);
        return;
    }
    }
    ASSERT(!"a kind of the table that nobody encodes");
}

/* A field's name: a short string, head and body in one piece. */
static void encode_name(msgpack_packer *p, const char *name)
{
    char piece[32];
    size_t bytes = strlen(name);
    ASSERT(bytes < sizeof(piece));
    piece[0] = (char)(0xA0 | bytes);
    memcpy(piece + 1, name, bytes);
    append(p->data, piece, bytes + 1);
}

static void encode_list(msgpack_packer *p, const struct wire_record *record, const void *base)
{
    uint32_t count = record->field_count;
    while (count > 0 && !record->fields[count - 1].required && is_default(&record->fields[count - 1], base))
        count--;
    msgpack_pack_array(p, count);
    for (uint32_t i = 0; i < count; i++)
        encode_value(p, record, &record->fields[i], base);
}

static void encode_record(msgpack_packer *p, const struct wire_record *record, const void *base)
{
    uint32_t present = 0;
    if (record->bare) {
        encode_value(p, record, &record->fields[0], base);
        return;
    }
    if (record->listed) {
        encode_list(p, record, base);
        return;
    }
    for (uint32_t i = 0; i < record->field_count; i++) {
        const struct wire_field *f = &record->fields[i];
        ASSERT(!(f->required && f->has_flag && is_default(f, base))); /* an assign without a seed */
        present += f->required || !is_default(f, base);
    }
    msgpack_pack_map(p, present);
    for (uint32_t i = 0; i < record->field_count; i++) {
        const struct wire_field *f = &record->fields[i];
        if (!f->required && is_default(f, base))
            continue;
        encode_name(p, f->name);
        encode_value(p, record, f, base);
    }
}

void wire_encode(const struct wire_message *m, struct buffer *out)
{
    const struct wire_record *record = wire_record_find((uint64_t)m->type);
    size_t before = out->size;
    msgpack_packer p;
    ASSERT(record != NULL);
    msgpack_packer_init(&p, out, append);
    msgpack_pack_array(&p, 3);
    msgpack_pack_uint64(&p, WIRE_VERSION);
    msgpack_pack_uint64(&p, (uint64_t)m->type);
    encode_record(&p, record, &m->generate);
    ASSERT(out->size - before <= WIRE_MAX_FRAME);
}
