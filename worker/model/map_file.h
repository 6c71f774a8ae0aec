/* map_file: a whole regular file as read-only memory. Nothing is read until it is touched; the default
 * read-ahead suits parsers, which go front to back. It knows no format. */
#ifndef LEPTON_WORKER_MODEL_MAP_FILE_H
#define LEPTON_WORKER_MODEL_MAP_FILE_H

#include "common/base.h"

/* *mapping is NULL for an empty file. `what` stands in the refusal of anything but a regular file: "a GGUF
 * file". The mapping is private and read-only; map_file_release ends it. */
int map_file(const char *path, const char *what, const void **mapping, uint64_t *size, struct err *err);
void map_file_release(const void *mapping, uint64_t size);

#endif
