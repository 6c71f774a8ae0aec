/* json_text: bytes of an HTTP body to a tree, strictly (RFC 8259), and texts back to JSON. PURE.
 *
 * Before a tree is made one pass over the bytes bounds it: nesting, and the number of values, since a value
 * takes many times its bytes. What jansson then refuses stays refused: NaN, numbers that do not fit, lone
 * surrogates, bad UTF-8, a key given twice, anything behind the end. */
#ifndef LEPTON_COORDINATOR_GATEWAY_JSON_TEXT_H
#define LEPTON_COORDINATOR_GATEWAY_JSON_TEXT_H

#include <jansson.h>

#include "common/base.h"

#define JSON_MAX_DEPTH  32
#define JSON_MAX_VALUES 262144 /* keys count as values */

/* Makes *out of the bytes; json_decref it. Errors (code 400) say where. \u0000 is taken: whoever reads a
 * string minds its length. */
int json_text_read(json_t **out, const void *data, size_t bytes, struct err *err);
/* Appends the text, which is valid UTF-8, as a JSON string with its quotes. */
void json_text_string(struct buffer *out, const char *text, size_t bytes);
/* Appends a number so that reading it gives the same double; infinities become the largest there is. */
void json_text_real(struct buffer *out, double value);

#endif
