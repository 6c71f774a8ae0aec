/* wire_describe: the field tables of docs/protocol.md, written from the table that encodes and
 * decodes. */
#include "common/wire.h"

#include "common/wire_schema.h"

static void describe_number(struct buffer *out, uint64_t v)
{
    for (int bits = 20; bits <= 64; bits++) {
        uint64_t power = bits == 64 ? 0 : 1ull << bits;
        if (v == power && v != 0) {
            buffer_printf(out, "2^%d", bits);
            return;
        }
        if (v == power - 1) {
            buffer_printf(out, "2^%d-1", bits);
            return;
        }
    }
    buffer_printf(out, "%llu", (unsigned long long)v);
}

static void describe_kind(struct buffer *out, const struct wire_field *f)
{
    switch (f->kind) {
    case WIRE_KIND_UINT:
        buffer_printf(out, "integer ");
        describe_number(out, f->min);
        buffer_printf(out, " to ");
        describe_number(out, f->max);
        return;
    case WIRE_KIND_FLOAT:
        buffer_printf(out, "number %s %g to %g", f->above_min ? "above" : "from", f->float_min, f->float_max);
        return;
    case WIRE_KIND_BOOL:
        buffer_printf(out, "boolean");
        return;
    case WIRE_KIND_ID:
        buffer_printf(out, "id");
        return;
    case WIRE_KIND_ARRAY:
        buffer_printf(out, "array of %s, %llu to %llu", f->element->name, (unsigned long long)f->min,
                      (unsigned long long)f->max);
        return;
    case WIRE_KIND_IDS:
        buffer_printf(out, "token ids, %llu to ", (unsigned long long)f->min);
        describe_number(out, f->max);
        return;
    default:
        break;
    }
    if (f->choices) {
        for (const char *c = f->choices; *c; c++) /* a bare '|' would end the table's cell */
            buffer_printf(out, *c == '|' ? " or " : "%c", *c);
        return;
    }
    buffer_printf(out, "%s, ", f->kind == WIRE_KIND_TEXT ? "text" : "string");
    if (f->min) {
        describe_number(out, f->min);
        buffer_printf(out, " to ");
    } else {
        buffer_printf(out, "at most ");
    }
    describe_number(out, f->max);
    buffer_printf(out, " bytes");
}

static void describe_default(struct buffer *out, const struct wire_field *f)
{
    if (f->required)
        buffer_printf(out, "required");
    else if (f->has_flag)
        buffer_printf(out, "absent");
    else if (f->kind == WIRE_KIND_UINT)
        describe_number(out, f->standard);
    else if (f->kind == WIRE_KIND_FLOAT)
        buffer_printf(out, "%g", f->float_standard);
    else if (f->kind == WIRE_KIND_BOOL)
        buffer_printf(out, "false");
    else
        buffer_printf(out, f->kind == WIRE_KIND_ID ? "absent" : "empty");
}

static void describe_fields(struct buffer *out, const struct wire_record *record)
{
    buffer_printf(out, "| field | kind | default | meaning |\n| --- | --- | --- | --- |\n");
    for (uint32_t i = 0; i < record->field_count; i++) {
        const struct wire_field *f = &record->fields[i];
        buffer_printf(out, "| `%s` | ", f->name);
        describe_kind(out, f);
        buffer_printf(out, " | ");
        describe_default(out, f);
        buffer_printf(out, " | %s |\n", f->help);
    }
    buffer_printf(out, "\n");
}

void wire_describe(struct buffer *out)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    const struct wire_record *elements[16];
    size_t element_count = 0;
    for (size_t i = 0; i < count; i++) {
        const struct wire_record *r = &records[i];
        buffer_printf(out, "### %d `%s`: %s\n\n%s\n\n", (int)r->type, r->name, r->direction, r->help);
        describe_fields(out, r);
        for (uint32_t k = 0; k < r->field_count; k++) {
            const struct wire_record *e = r->fields[k].element;
            for (size_t n = 0; e && n < element_count; n++)
                if (elements[n] == e)
                    e = NULL;
            if (e) {
                ASSERT(element_count < ARRAY_LEN(elements));
                elements[element_count++] = e;
            }
        }
    }
    /* Arrays inside elements: the list grows while it is written. */
    for (size_t n = 0; n < element_count; n++) {
        const struct wire_record *r = elements[n];
        buffer_printf(out, "### element `%s`: %s\n\n", r->name, r->help);
        describe_fields(out, r);
    }
}
