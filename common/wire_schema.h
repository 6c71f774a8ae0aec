/* wire_schema: the one table of every message and its fields, for wire.c (encode, decode, describe) and for
 * tests that walk it (random messages of every type). Nobody else needs it. */
#ifndef LEPTON_COMMON_WIRE_SCHEMA_H
#define LEPTON_COMMON_WIRE_SCHEMA_H

#include "common/wire.h"

enum wire_kind {
    WIRE_KIND_UINT,   /* uint64_t within min..max */
    WIRE_KIND_FLOAT,  /* double within float_min..float_max */
    WIRE_KIND_BOOL,   /* bool; always optional, default false */
    WIRE_KIND_ID,     /* struct wire_str that satisfies wire_id_valid */
    WIRE_KIND_STRING, /* struct wire_str, UTF-8 without NUL, min..max bytes, or one of `choices` */
    WIRE_KIND_TEXT,   /* as STRING, NUL allowed: what people write and models generate */
    WIRE_KIND_ARRAY,  /* min..max records; a pointer at `offset`, its uint32_t count at `side_offset` */
    WIRE_KIND_IDS, /* min..max token ids (uint32_t), pointer and count as an ARRAY's; written as binary data,
                      4 bytes each, the least first: a million of them would be too many objects */
};

struct wire_record;

struct wire_field {
    const char *name;
    enum wire_kind kind;
    bool required;
    bool above_min;  /* FLOAT: float_min itself is refused */
    bool has_flag;   /* presence is recorded in the bool at `side_offset`; there is no default */
    uint32_t offset; /* of the member in the record's struct */
    uint32_t side_offset;
    uint64_t min, max; /* UINT: values; strings: bytes; ARRAY: records; IDS: ids */
    uint64_t standard; /* UINT: the value of an absent optional field */
    double float_min, float_max, float_standard;
    const char *choices; /* STRING: "a|b": the only values; NULL = any */
    const struct wire_record *element;
    const char *help; /* one sentence for docs/protocol.md */
};

/* A message's fields, or those of one element of an array. */
struct wire_record {
    enum wire_type type; /* 0 for elements of arrays */
    const char *name;
    const char *direction; /* "client -> coordinator"; NULL for elements */
    const char *help;
    const struct wire_field *fields;
    uint32_t field_count; /* at most 64 */
    uint32_t bytes;       /* sizeof of the struct */
    bool bare;            /* an element of one field, written as that value alone and not as a map */
    bool listed; /* an element written as an array of its values in the table's order, those it requires
                    first; defaults at the end are left out */
};

/* All messages in the order of their numbers. */
const struct wire_record *wire_records(size_t *count);
const struct wire_record *wire_record_find(uint64_t type); /* NULL when there is none */
/* True when `value` is one of the words of "a|b|c". */
bool wire_choice_valid(const char *choices, struct wire_str value);

#endif
