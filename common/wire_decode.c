/* wire_decode: frames to messages, driven by the table of wire_schema.c.
 *
 * Frames are read object by object, in the order of their bytes, once wire_scan has proved them whole: no
 * tree of objects is built. A decoded message keeps its strings and arrays in one msgpack zone (`memory`). */
#include "common/wire.h"

#include <math.h>
#include <msgpack.h>
#include <string.h>

#include "common/wire_value.h"

struct decoder {
    const uint8_t *at;    /* the next object; wire_scan has seen that all of it is there */
    msgpack_zone *memory; /* of the message: strings and arrays */
    struct err *err;
};

static int decode_record(struct decoder *d, const struct wire_record *record, void *out);

/* A big-endian number of so many bytes. */
static uint64_t take_number(struct decoder *d, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | *d->at++;
    return v;
}

static msgpack_object take_bytes(struct decoder *d, msgpack_object_type type, uint64_t bytes)
{
    msgpack_object o = {.type = type};
    o.via.str.size = (uint32_t)bytes; /* bin's are in the same place */
    o.via.str.ptr = (const char *)d->at;
    d->at += bytes;
    return o;
}

/* Of a container the count alone: what is in it comes next. */
static msgpack_object container(msgpack_object_type type, uint64_t count)
{
    msgpack_object o = {.type = type};
    o.via.array.size = (uint32_t)count; /* a map's is in the same place */
    return o;
}

static msgpack_object natural(uint64_t v)
{
    msgpack_object o = {.type = MSGPACK_OBJECT_POSITIVE_INTEGER};
    o.via.u64 = v;
    return o;
}

static msgpack_object integer(uint64_t v, int bytes)
{
    uint64_t sign = 1ull << (8 * bytes - 1);
    msgpack_object o = natural(v);
    if (!(v & sign))
        return o;
    o.type = MSGPACK_OBJECT_NEGATIVE_INTEGER;
    o.via.i64 = (int64_t)((v ^ sign) - sign);
    return o;
}

static msgpack_object real(uint64_t bits, int bytes)
{
    msgpack_object o = {.type = bytes == 4 ? MSGPACK_OBJECT_FLOAT32 : MSGPACK_OBJECT_FLOAT64};
    uint32_t low = (uint32_t)bits;
    float single;
    memcpy(&single, &low, sizeof(single));
    memcpy(&o.via.f64, &bits, sizeof(bits));
    if (bytes == 4)
        o.via.f64 = (double)single;
    return o;
}

/* Heads of one byte that say it all, and those that a length or a number follows (the same list as
 * wire_scan's). */
static msgpack_object larger_object(struct decoder *d)
{
    uint8_t b = *d->at++;
    if (b <= 0x8F)
        return container(MSGPACK_OBJECT_MAP, b & 0x0F);
    if (b <= 0x9F)
        return container(MSGPACK_OBJECT_ARRAY, b & 0x0F);
    if (b >= 0xE0)
        return integer(b, 1);
    int more = 1 << (b & 3); /* of the numbers, which come in four sizes */
    switch (b) {
    case 0xC0:
        return (msgpack_object){.type = MSGPACK_OBJECT_NIL};
    case 0xC2:
    case 0xC3:
        return (msgpack_object){.type = MSGPACK_OBJECT_BOOLEAN, .via.boolean = b == 0xC3};
    case 0xC4:
    case 0xC5:
    case 0xC6:
        return take_bytes(d, MSGPACK_OBJECT_BIN, take_number(d, more));
    case 0xCA:
    case 0xCB:
        return real(take_number(d, b == 0xCA ? 4 : 8), b == 0xCA ? 4 : 8);
    case 0xCC:
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return natural(take_number(d, more));
    case 0xD0:
    case 0xD1:
    case 0xD2:
    case 0xD3:
        return integer(take_number(d, more), more);
    case 0xD9:
    case 0xDA:
    case 0xDB:
        return take_bytes(d, MSGPACK_OBJECT_STR, take_number(d, 1 << (b - 0xD9)));
    case 0xDC:
    case 0xDD:
        return container(MSGPACK_OBJECT_ARRAY, take_number(d, b == 0xDC ? 2 : 4));
    case 0xDE:
    case 0xDF:
        return container(MSGPACK_OBJECT_MAP, take_number(d, b == 0xDE ? 2 : 4));
    default:
        ASSERT(!"wire_scan lets no other byte through");
        return (msgpack_object){.type = MSGPACK_OBJECT_NIL};
    }
}

/* Small numbers and short strings, which most objects are, and the others. */
static inline msgpack_object next_object(struct decoder *d)
{
    uint8_t b = *d->at;
    if (b <= 0x7F) {
        d->at++;
        return natural(b);
    }
    if (b >= 0xA0 && b <= 0xBF) {
        d->at++;
        return take_bytes(d, MSGPACK_OBJECT_STR, b & 0x1F);
    }
    return larger_object(d);
}

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
    if (wire_check_uint(f, o->via.u64, d->err) < 0)
        return -1;
    *(uint64_t *)wire_member(base, f->offset) = o->via.u64;
    if (f->has_flag)
        *(bool *)wire_member(base, f->side_offset) = true;
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
    if (wire_check_float(f, v, d->err) < 0)
        return -1;
    *(double *)wire_member(base, f->offset) =
        v + 0.0; /* -0 becomes 0: equal structs stay equal in their bits */
    return 0;
}

static int decode_string(struct decoder *d, const struct wire_field *f, const msgpack_object *o, void *base)
{
    struct wire_str *out = wire_member(base, f->offset);
    if (o->type != MSGPACK_OBJECT_STR)
        return wrong_kind(d, "a string", o);
    struct wire_str s = {o->via.str.ptr, o->via.str.size};
    if (wire_check_string(f, s, d->err) < 0)
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
    if (wire_check_count(f, count, d->err) < 0)
        return -1;
    if (count == 0)
        return 0;
    size_t bytes = (size_t)count * f->element->bytes; /* count <= 1024 */
    char *elements = msgpack_zone_malloc(d->memory, bytes);
    if (!elements)
        return err_set_code(d->err, 500, "no memory for %zu bytes", bytes);
    memset(elements, 0, bytes);
    for (uint32_t i = 0; i < count; i++)
        if (decode_record(d, f->element, elements + (size_t)i * f->element->bytes) < 0)
            return err_prefix(d->err, "[%u]", i);
    *(void **)wire_member(base, f->offset) = elements;
    *(uint32_t *)wire_member(base, f->side_offset) = count;
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
    if (wire_check_count(f, count, d->err) < 0)
        return -1;
    if (count == 0)
        return 0;
    uint32_t *ids = msgpack_zone_malloc(d->memory, bytes);
    if (!ids)
        return err_set_code(d->err, 500, "no memory for %u bytes", bytes);
    for (uint32_t i = 0; i < count; i++, in += 4)
        ids[i] = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
    *(uint32_t **)wire_member(base, f->offset) = ids;
    *(uint32_t *)wire_member(base, f->side_offset) = count;
    return 0;
}

static int decode_value(struct decoder *d, const struct wire_field *f, void *base)
{
    msgpack_object object = next_object(d), *o = &object;
    switch (f->kind) {
    case WIRE_KIND_UINT:
        return decode_uint(d, f, o, base);
    case WIRE_KIND_FLOAT:
        return decode_float(d, f, o, base);
    case WIRE_KIND_BOOL:
        if (o->type != MSGPACK_OBJECT_BOOLEAN)
            return wrong_kind(d, "a boolean", o);
        *(bool *)wire_member(base, f->offset) = o->via.boolean;
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

static bool is_name(const char *field, struct wire_str name)
{
    return strncmp(field, name.data, name.size) == 0 && field[name.size] == '\0';
}

/* Fields mostly come in the table's order: `next` is where to look first. */
static uint32_t field_index(const struct wire_record *record, struct wire_str name, uint32_t next)
{
    for (uint32_t i = next; i < record->field_count; i++)
        if (is_name(record->fields[i].name, name))
            return i;
    for (uint32_t i = 0; i < next; i++)
        if (is_name(record->fields[i].name, name))
            return i;
    return record->field_count;
}

static int decode_list(struct decoder *d, const struct wire_record *record, void *out)
{
    msgpack_object list = next_object(d);
    if (list.type != MSGPACK_OBJECT_ARRAY)
        return wrong_kind(d, "an array of values", &list);
    uint32_t count = list.via.array.size;
    if (count > record->field_count)
        return err_set_code(d->err, 400, "expected at most %u values, found %u", record->field_count, count);
    for (uint32_t i = 0; i < count; i++)
        if (decode_value(d, &record->fields[i], out) < 0)
            return err_prefix(d->err, "%s", record->fields[i].name);
    for (uint32_t i = count; i < record->field_count; i++) {
        if (record->fields[i].required)
            return err_set_code(d->err, 400, "%s: missing", record->fields[i].name);
        wire_set_default(&record->fields[i], out);
    }
    return 0;
}

/* `out` is zero. */
static int decode_record(struct decoder *d, const struct wire_record *record, void *out)
{
    uint64_t seen = 0;
    uint32_t next = 0;
    char shown[48];
    ASSERT(record->field_count <= 64);
    if (record->bare)
        return decode_value(d, &record->fields[0], out);
    if (record->listed)
        return decode_list(d, record, out);
    msgpack_object map = next_object(d);
    if (map.type != MSGPACK_OBJECT_MAP)
        return wrong_kind(d, "a map of fields", &map);
    for (uint32_t i = 0; i < map.via.map.size; i++) {
        msgpack_object key = next_object(d);
        if (key.type != MSGPACK_OBJECT_STR)
            return wrong_kind(d, "a string as field name", &key);
        struct wire_str name = {key.via.str.ptr, key.via.str.size};
        uint32_t index = field_index(record, name, next);
        if (index == record->field_count)
            return err_set_code(d->err, 400, "unknown field \"%s\"", wire_printable(shown, name));
        const struct wire_field *f = &record->fields[index];
        if (seen & 1ull << index)
            return err_set_code(d->err, 400, "%s: given twice", f->name);
        seen |= 1ull << index;
        next = index + 1;
        if (decode_value(d, f, out) < 0)
            return err_prefix(d->err, "%s", f->name);
    }
    for (uint32_t i = 0; i < record->field_count; i++) {
        if (seen & 1ull << i)
            continue;
        if (record->fields[i].required)
            return err_set_code(d->err, 400, "%s: missing", record->fields[i].name);
        wire_set_default(&record->fields[i], out);
    }
    return 0;
}

/* The frame's envelope: [version, type, {fields}]; the fields come next. */
static const struct wire_record *decode_envelope(struct decoder *d)
{
    msgpack_object frame = next_object(d);
    if (frame.type != MSGPACK_OBJECT_ARRAY || frame.via.array.size != 3) {
        err_set_code(d->err, 400, "frame: expected an array [version, type, {fields}], found %s%s",
                     object_kind(&frame), frame.type == MSGPACK_OBJECT_ARRAY ? " of another length" : "");
        return NULL;
    }
    msgpack_object version = next_object(d);
    if (version.type != MSGPACK_OBJECT_POSITIVE_INTEGER || version.via.u64 != WIRE_VERSION) {
        if (version.type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            err_set_code(d->err, 400, "frame: version %llu is not spoken here, expected %d",
                         (unsigned long long)version.via.u64, WIRE_VERSION);
        else
            err_set_code(d->err, 400, "frame: version: expected %d, found %s", WIRE_VERSION,
                         object_kind(&version));
        return NULL;
    }
    msgpack_object type = next_object(d);
    if (type.type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
        err_set_code(d->err, 400, "frame: type: expected a message number, found %s", object_kind(&type));
        return NULL;
    }
    const struct wire_record *record = wire_record_find(type.via.u64);
    if (!record)
        err_set_code(d->err, 400, "frame: unknown message type %llu", (unsigned long long)type.via.u64);
    return record;
}

int wire_decode(struct wire_message *m, const void *frame, size_t bytes, struct err *err)
{
    struct decoder d = {.at = frame, .err = err};
    memset(m, 0, sizeof(*m));
    if (wire_scan(frame, bytes, err) < 0)
        return -1;
    const struct wire_record *record = decode_envelope(&d);
    if (!record)
        return -1;
    d.memory = msgpack_zone_new(bytes + 64); /* holds all strings of the frame in its first chunk */
    if (!d.memory)
        return err_set_code(err, 500, "frame: no memory for %zu bytes", bytes);
    m->type = record->type;
    m->memory = d.memory;
    int rc = decode_record(&d, record, &m->generate);
    if (rc < 0) {
        err_prefix(err, "%s", record->name);
        wire_release(m);
    }
    return rc;
}
