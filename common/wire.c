/* wire: messages to frames and back, driven by the table of wire_schema.c. It owns no field: adding one does
 * not touch this file.
 *
 * A decoded message keeps its strings and arrays in one msgpack zone (`memory`); the tree of msgpack objects
 * lies in another that is gone when wire_decode returns. */
#include "common/wire.h"

#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire_schema.h"

static void *member(const void *base, uint32_t offset)
{
    return (char *)base + offset; /* the callers that read only go through this too */
}

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

bool wire_id_valid(struct wire_str s)
{
    if (s.size == 0 || s.size > WIRE_MAX_ID)
        return false;
    for (uint32_t i = 0; i < s.size; i++) {
        char c = s.data[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '.' && c != '_' && c != ':' && c != '-')
            return false;
    }
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

/* A name that a peer sent, fit for an error message: printable ASCII, not too long. */
static const char *printable(char out[48], struct wire_str s)
{
    uint32_t n = s.size < 40 ? s.size : 40;
    for (uint32_t i = 0; i < n; i++)
        out[i] = s.data[i] >= 0x20 && s.data[i] < 0x7F ? s.data[i] : '?';
    strcpy(out + n, s.size > n ? "..." : "");
    return out;
}

/* ---- one value: checks shared by both directions ---- */

static int check_uint(const struct wire_field *f, uint64_t v, struct err *err)
{
    if (v >= f->min && v <= f->max)
        return 0;
    return err_set_code(err, 400, "expected an integer from %llu to %llu, found %llu",
                        (unsigned long long)f->min, (unsigned long long)f->max, (unsigned long long)v);
}

static int check_float(const struct wire_field *f, double v, struct err *err)
{
    /* Written so that NaN fails. */
    if (v <= f->float_max && (f->above_min ? v > f->float_min : v >= f->float_min))
        return 0;
    return err_set_code(err, 400, "expected a number %s %g to %g, found %g", f->above_min ? "above" : "from",
                        f->float_min, f->float_max, v);
}

static int check_string(const struct wire_field *f, struct wire_str s, struct err *err)
{
    char shown[48];
    if (f->choices && !wire_choice_valid(f->choices, s))
        return err_set_code(err, 400, "expected one of %s, found \"%s\"", f->choices, printable(shown, s));
    if (f->kind == WIRE_KIND_ID && !wire_id_valid(s))
        return err_set_code(err, 400,
                            "expected 1 to %u characters of [A-Za-z0-9._:-], found \"%s\" (%u bytes)",
                            WIRE_MAX_ID, printable(shown, s), s.size);
    if (s.size < f->min || s.size > f->max)
        return err_set_code(err, 400, "expected a string of %llu to %llu bytes, found %u bytes",
                            (unsigned long long)f->min, (unsigned long long)f->max, s.size);
    if (s.size && !utf8_valid(s.data, s.size))
        return err_set_code(err, 400, "expected UTF-8, found bytes that are none");
    if (s.size && f->kind == WIRE_KIND_STRING && memchr(s.data, 0, s.size))
        return err_set_code(err, 400, "holds a NUL byte");
    return 0;
}

static int check_count(const struct wire_field *f, uint64_t count, struct err *err)
{
    if (count >= f->min && count <= f->max)
        return 0;
    return err_set_code(err, 400, "expected %llu to %llu entries, found %llu", (unsigned long long)f->min,
                        (unsigned long long)f->max, (unsigned long long)count);
}

/* ---- decode ---- */

struct decoder {
    msgpack_zone *memory; /* of the message: strings and arrays */
    struct err *err;
};

static int decode_record(struct decoder *d, const struct wire_record *record, const msgpack_object *o,
                         void *out);

static const char *object_kind(const msgpack_object *o)
{
    switch (o->type) {
    case MSGPACK_OBJECT_NIL:
        return "nil";
    case MSGPACK_OBJECT_BOOLEAN:
        return "a boolean";
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return "an integer";
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return "a negative integer";
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return "a float";
    case MSGPACK_OBJECT_STR:
        return "a string";
    case MSGPACK_OBJECT_ARRAY:
        return "an array";
    case MSGPACK_OBJECT_MAP:
        return "a map";
    case MSGPACK_OBJECT_BIN:
        return "binary data";
    default:
        return "an extension";
    }
}

static int wrong_kind(struct decoder *d, const char *expected, const msgpack_object *o)
{
    return err_set_code(d->err, 400, "expected %s, found %s", expected, object_kind(o));
}

static int decode_uint(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return wrong_kind(d, "an unsigned integer", o);
    if (check_uint(f, o->via.u64, d->err) < 0)
        return -1;
    *(uint64_t *)member(base, f->offset) = o->via.u64;
    if (f->has_flag)
        *(bool *)member(base, f->side_offset) = true;
    return 0;
}

static int decode_float(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    double v;
    if (o->type == MSGPACK_OBJECT_FLOAT32 || o->type == MSGPACK_OBJECT_FLOAT64)
        v = o->via.f64;
    else if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
        v = (double)o->via.u64;
    else if (o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        v = (double)o->via.i64;
    else
        return wrong_kind(d, "a number", o);
    if (!isfinite(v))
        return err_set_code(d->err, 400, "expected a finite number, found %g", v);
    if (check_float(f, v, d->err) < 0)
        return -1;
    *(double *)member(base, f->offset) = v + 0.0; /* -0 becomes 0: equal structs stay equal in their bits */
    return 0;
}

static int decode_string(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    struct wire_str *out = member(base, f->offset);
    if (o->type != MSGPACK_OBJECT_STR)
        return wrong_kind(d, "a string", o);
    struct wire_str s = {o->via.str.ptr, o->via.str.size};
    if (check_string(f, s, d->err) < 0)
        return -1;
    if (s.size == 0)
        return 0; /* an empty string and an absent one are the same: {NULL, 0} */
    char *copy = msgpack_zone_malloc_no_align(d->memory, s.size);
    if (!copy)
        return err_set_code(d->err, 500, "no memory for %u bytes", s.size);
    memcpy(copy, s.data, s.size);
    *out = (struct wire_str){copy, s.size};
    return 0;
}

static int decode_array(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    if (o->type != MSGPACK_OBJECT_ARRAY)
        return wrong_kind(d, "an array", o);
    uint32_t count = o->via.array.size;
    if (check_count(f, count, d->err) < 0)
        return -1;
    if (count == 0)
        return 0;
    size_t bytes = (size_t)count * f->element->bytes; /* count <= 1024 */
    char *elements = msgpack_zone_malloc(d->memory, bytes);
    if (!elements)
        return err_set_code(d->err, 500, "no memory for %zu bytes", bytes);
    memset(elements, 0, bytes);
    for (uint32_t i = 0; i < count; i++)
        if (decode_record(d, f->element, &o->via.array.ptr[i], elements + (size_t)i * f->element->bytes) < 0)
            return err_prefix(d->err, "[%u]", i);
    *(void **)member(base, f->offset) = elements;
    *(uint32_t *)member(base, f->side_offset) = count;
    return 0;
}

static int decode_ids(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    if (o->type != MSGPACK_OBJECT_BIN)
        return wrong_kind(d, "token ids as binary data", o);
    uint32_t bytes = o->via.bin.size, count = bytes / 4;
    const uint8_t *in = (const uint8_t *)o->via.bin.ptr;
    if (bytes % 4)
        return err_set_code(d->err, 400, "expected 4 bytes for each token id, found %u bytes", bytes);
    if (check_count(f, count, d->err) < 0)
        return -1;
    if (count == 0)
        return 0;
    uint32_t *ids = msgpack_zone_malloc(d->memory, bytes);
    if (!ids)
        return err_set_code(d->err, 500, "no memory for %u bytes", bytes);
    for (uint32_t i = 0; i < count; i++, in += 4)
        ids[i] = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
    *(uint32_t **)member(base, f->offset) = ids;
    *(uint32_t *)member(base, f->side_offset) = count;
    return 0;
}

static int decode_value(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    switch (f->kind) {
    case WIRE_KIND_UINT:
        return decode_uint(d, f, o, base);
    case WIRE_KIND_FLOAT:
        return decode_float(d, f, o, base);
    case WIRE_KIND_BOOL:
        if (o->type != MSGPACK_OBJECT_BOOLEAN)
            return wrong_kind(d, "a boolean", o);
        *(bool *)member(base, f->offset) = o->via.boolean;
        return 0;
    case WIRE_KIND_ID:
    case WIRE_KIND_STRING:
    case WIRE_KIND_TEXT:
        return decode_string(d, f, o, base);
    case WIRE_KIND_ARRAY:
        return decode_array(d, f, o, base);
    case WIRE_KIND_IDS:
        return decode_ids(d, f, o, base);
    }
    ASSERT(!"a kind of the table that nobody decodes");
    return -1;
}

static void set_defaults(const struct wire_record *record, void *base)
{
    memset(base, 0, record->bytes);
    for (uint32_t i = 0; i < record->field_count; i++) {
        const struct wire_field *f = &record->fields[i];
        if (f->kind == WIRE_KIND_UINT)
            *(uint64_t *)member(base, f->offset) = f->standard;
        else if (f->kind == WIRE_KIND_FLOAT)
            *(double *)member(base, f->offset) = f->float_standard;
    }
}

static uint32_t field_index(const struct wire_record *record, struct wire_str name)
{
    uint32_t i = 0;
    while (i < record->field_count && !wire_str_is(name, record->fields[i].name))
        i++;
    return i;
}

static int decode_record(struct decoder *d, const struct wire_record *record, const msgpack_object *o,
                         void *out)
{
    uint64_t seen = 0;
    char shown[48];
    ASSERT(record->field_count <= 64);
    if (record->bare)
        return decode_value(d, &record->fields[0], o, out);
    if (o->type != MSGPACK_OBJECT_MAP)
        return wrong_kind(d, "a map of fields", o);
    set_defaults(record, out);
    for (uint32_t i = 0; i < o->via.map.size; i++) {
        const msgpack_object *key = &o->via.map.ptr[i].key;
        if (key->type != MSGPACK_OBJECT_STR)
            return wrong_kind(d, "a string as field name", key);
        struct wire_str name = {key->via.str.ptr, key->via.str.size};
        uint32_t index = field_index(record, name);
        if (index == record->field_count)
            return err_set_code(d->err, 400, "unknown field \"%s\"", printable(shown, name));
        const struct wire_field *f = &record->fields[index];
        if (seen & 1ull << index)
            return err_set_code(d->err, 400, "%s: given twice", f->name);
        seen |= 1ull << index;
        if (decode_value(d, f, &o->via.map.ptr[i].val, out) < 0)
            return err_prefix(d->err, "%s", f->name);
    }
    for (uint32_t i = 0; i < record->field_count; i++)
        if (record->fields[i].required && !(seen & 1ull << i))
            return err_set_code(d->err, 400, "%s: missing", record->fields[i].name);
    return 0;
}

/* The frame's envelope: [version, type, {fields}]. */
static const struct wire_record *decode_envelope(const msgpack_object *o, struct err *err)
{
    const msgpack_object *part = o->via.array.ptr;
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3) {
        err_set_code(err, 400, "frame: expected an array [version, type, {fields}], found %s%s",
                     object_kind(o), o->type == MSGPACK_OBJECT_ARRAY ? " of another length" : "");
        return NULL;
    }
    if (part[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || part[0].via.u64 != WIRE_VERSION) {
        if (part[0].type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            err_set_code(err, 400, "frame: version %llu is not spoken here, expected %d",
                         (unsigned long long)part[0].via.u64, WIRE_VERSION);
        else
            err_set_code(err, 400, "frame: version: expected %d, found %s", WIRE_VERSION,
                         object_kind(&part[0]));
        return NULL;
    }
    if (part[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
        err_set_code(err, 400, "frame: type: expected a message number, found %s", object_kind(&part[1]));
        return NULL;
    }
    const struct wire_record *record = wire_record_find(part[1].via.u64);
    if (!record)
        err_set_code(err, 400, "frame: unknown message type %llu", (unsigned long long)part[1].via.u64);
    return record;
}

int wire_decode(struct wire_message *m, const void *frame, size_t bytes, struct err *err)
{
    int rc = -1;
    size_t offset = 0;
    msgpack_unpacked tree;
    const struct wire_record *record;
    struct decoder d = {.err = err};

    memset(m, 0, sizeof(*m));
    msgpack_unpacked_init(&tree);
    if (wire_scan(frame, bytes, err) < 0)
        goto out;
    if (msgpack_unpack_next(&tree, frame, bytes, &offset) != MSGPACK_UNPACK_SUCCESS) {
        err_set_code(err, 500, "frame: msgpack could not unpack %zu bytes", bytes); /* out of memory */
        goto out;
    }
    record = decode_envelope(&tree.data, err);
    if (!record)
        goto out;
    d.memory = msgpack_zone_new(bytes + 64); /* holds all strings of the frame in its first chunk */
    if (!d.memory) {
        err_set_code(err, 500, "frame: no memory for %zu bytes", bytes);
        goto out;
    }
    m->type = record->type;
    m->memory = d.memory;
    rc = decode_record(&d, record, &tree.data.via.array.ptr[2], &m->generate);
    if (rc < 0) {
        err_prefix(err, "%s", record->name);
        wire_release(m);
    }
out:
    msgpack_unpacked_destroy(&tree);
    return rc;
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
    memset(m, 0, sizeof(*m));
    m->type = type;
    set_defaults(record, &m->generate); /* every member of the union begins at the same place */
}

/* ---- encode ---- */

static void encode_record(msgpack_packer *p, const struct wire_record *record, const void *base);

static int append(void *buffer, const char *data, size_t bytes)
{
    buffer_append(buffer, data, bytes);
    return 0;
}

static bool is_default(const struct wire_field *f, const void *base)
{
    if (f->has_flag)
        return !*(const bool *)member(base, f->side_offset);
    switch (f->kind) {
    case WIRE_KIND_UINT:
        return *(const uint64_t *)member(base, f->offset) == f->standard;
    case WIRE_KIND_FLOAT:
        return *(const double *)member(base, f->offset) == f->float_standard;
    case WIRE_KIND_BOOL:
        return !*(const bool *)member(base, f->offset);
    case WIRE_KIND_ARRAY:
    case WIRE_KIND_IDS:
        return *(const uint32_t *)member(base, f->side_offset) == 0;
    default:
        return ((const struct wire_str *)member(base, f->offset))->size == 0;
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
    const void *value = member(base, f->offset);
    switch (f->kind) {
    case WIRE_KIND_UINT:
        must(check_uint(f, *(const uint64_t *)value, &err), record, f, &err);
        msgpack_pack_uint64(p, *(const uint64_t *)value);
        return;
    case WIRE_KIND_FLOAT:
        must(check_float(f, *(const double *)value, &err), record, f, &err);
        msgpack_pack_double(p, *(const double *)value);
        return;
    case WIRE_KIND_BOOL:
        *(const bool *)value ? msgpack_pack_true(p) : msgpack_pack_false(p);
        return;
    case WIRE_KIND_ID:
    case WIRE_KIND_STRING:
    case WIRE_KIND_TEXT: {
        struct wire_str s = *(const struct wire_str *)value;
        must(check_string(f, s, &err), record, f, &err);
        msgpack_pack_str(p, s.size);
        msgpack_pack_str_body(p, s.size ? s.data : "", s.size);
        return;
    }
    case WIRE_KIND_ARRAY: {
        uint32_t count = *(const uint32_t *)member(base, f->side_offset);
        const char *elements = *(char *const *)value;
        must(check_count(f, count, &err), record, f, &err);
        msgpack_pack_array(p, count);
        for (uint32_t i = 0; i < count; i++)
            encode_record(p, f->element, elements + (size_t)i * f->element->bytes);
        return;
    }
    case WIRE_KIND_IDS: {
        uint32_t count = *(const uint32_t *)member(base, f->side_offset);
        must(check_count(f, count, &err), record, f, &err);
        encode_ids(p, *(uint32_t *const *)value, count);
        return;
    }
    }
    ASSERT(!"a kind of the table that nobody encodes");
}

static void encode_record(msgpack_packer *p, const struct wire_record *record, const void *base)
{
    uint32_t present = 0;
    if (record->bare) {
        encode_value(p, record, &record->fields[0], base);
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
        msgpack_pack_str(p, strlen(f->name));
        msgpack_pack_str_body(p, f->name, strlen(f->name));
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
