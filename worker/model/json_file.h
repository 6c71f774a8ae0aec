/* json_file: JSON from outside, with bounds. Text is scanned before jansson builds anything from it: depth,
 * and the memory that its values will take (at most 4 times the text plus 64 MiB). Duplicate keys are
 * refused: two programs would read two different files. */
#ifndef LEPTON_WORKER_MODEL_JSON_FILE_H
#define LEPTON_WORKER_MODEL_JSON_FILE_H

#include <jansson.h>

#include "common/base.h"

#define JSON_DEPTH_MAX 32

/* NULL after an error, which says name:line:column. The root must be an object. */
json_t *json_parse(const char *text, uint64_t bytes, const char *name, struct err *err);
/* Reads a file of at most `limit` bytes. *found tells a file that is not there (NULL and no error) apart. */
json_t *json_read(const char *path, uint64_t limit, bool *found, struct err *err);

/* Members of an object with their type checked: 1 found, 0 absent or null, -1 another type (err names
 * `where` and the key). */
int json_get_int(const json_t *object, const char *where, const char *key, int64_t *out, struct err *err);
int json_get_number(const json_t *object, const char *where, const char *key, double *out, struct err *err);
int json_get_bool(const json_t *object, const char *where, const char *key, bool *out, struct err *err);
int json_get_text(const json_t *object, const char *where, const char *key, const char **out,
                  struct err *err);
int json_get_object(const json_t *object, const char *where, const char *key, json_t **out, struct err *err);
int json_get_array(const json_t *object, const char *where, const char *key, json_t **out, struct err *err);

/* A text from a file for a message: at most 64 bytes, control characters replaced. */
#define JSON_SHOW_BYTES 72
const char *json_show(const char *text, char out[JSON_SHOW_BYTES]);

#endif
