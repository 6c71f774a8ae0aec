/* wire_value: one value of a message, for both directions: where it lies, its default, its bounds. For wire.c
 * and wire_decode.c alone. */
#ifndef LEPTON_COMMON_WIRE_VALUE_H
#define LEPTON_COMMON_WIRE_VALUE_H

#include "common/wire_schema.h"

static inline void *wire_member(const void *base, uint32_t offset)
{
    return (char *)base + offset; /* the callers that read only go through this too */
}

/* The value of an absent field in a record that is zero. */
void wire_set_default(const struct wire_field *f, void *base);

/* 0, or -1 with what was expected and found (code 400). */
int wire_check_uint(const struct wire_field *f, uint64_t v, struct err *err);
int wire_check_float(const struct wire_field *f, double v, struct err *err);
int wire_check_string(const struct wire_field *f, struct wire_str s, struct err *err);
int wire_check_count(const struct wire_field *f, uint64_t count, struct err *err);

/* A name that a peer sent, fit for an error message: printable ASCII, not too long. */
const char *wire_printable(char out[48], struct wire_str s);

#endif
