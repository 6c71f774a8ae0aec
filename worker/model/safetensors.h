/* safetensors: named tensors in one file or in the shards of a directory, mapped, every offset checked before
 * anything is used.
 *
 *   header bytes u64 LE | JSON header {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data
 *
 * A file is refused, with the tensor's name and what was expected, for: a header that is empty, over 100 MB
 * or past the file's end; JSON that is malformed, deep or names something twice; unknown dtypes; shapes whose
 * size wraps or is not what the offsets say; data with holes, overlaps or bytes left over. Source: the
 * format's published description (huggingface/safetensors). It knows nothing of what the names mean. */
#ifndef LEPTON_WORKER_MODEL_SAFETENSORS_H
#define LEPTON_WORKER_MODEL_SAFETENSORS_H

#include "kernels/dtype.h"

#define SAFETENSORS_MAX_DIMS   8
#define SAFETENSORS_HEADER_MAX 100000000u

struct safetensors;

struct safetensors_tensor {
    const char *name;
    const char *file;       /* the path of the file that holds it */
    const char *dtype_name; /* "BF16" */
    bool usable;            /* F32, F16, BF16: what weights may be; then `dtype` is set */
    enum dtype dtype;
    int ndim; /* 0 = a scalar */
    int64_t dim[SAFETENSORS_MAX_DIMS];
    uint64_t bytes;
    const uint8_t *data; /* in the mapping; need not be aligned */
};

/* One file. The mapping lives until safetensors_close. */
int safetensors_open(struct safetensors **out, const char *path, struct err *err);
/* The same over bytes that the caller keeps alive. */
int safetensors_parse(struct safetensors **out, const void *data, uint64_t size, const char *name,
                      struct err *err);
/* A directory: model.safetensors, or the shards that model.safetensors.index.json names (files of that
 * directory, by a name without '/'). Of a shard only what the index lists counts; a tensor or shard that is
 * listed and missing is an error. */
int safetensors_open_directory(struct safetensors **out, const char *directory, struct err *err);
void safetensors_close(struct safetensors **s);

uint64_t safetensors_count(const struct safetensors *s);
const struct safetensors_tensor *safetensors_at(const struct safetensors *s, uint64_t index); /* by name */
const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name);
/* A string of the first file's __metadata__, or NULL. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);

/* Writing one file: tensors are added, then their bytes follow in the same order. close finishes (fsync,
 * rename over `path`) or, when not complete, removes the temporary file. */
struct safetensors_writer;
int safetensors_writer_open(struct safetensors_writer **out, const char *path, struct err *err);
void safetensors_writer_tensor(struct safetensors_writer *w, const char *name, enum dtype dtype, int ndim,
                               const int64_t *dim); /* F32, F16, BF16 only */
int safetensors_writer_begin(struct safetensors_writer *w, struct err *err);
int safetensors_writer_data(struct safetensors_writer *w, const void *data, uint64_t bytes, struct err *err);
int safetensors_writer_close(struct safetensors_writer **w, struct err *err);

#endif
