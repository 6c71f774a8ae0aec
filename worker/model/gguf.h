/* gguf: a GGUF file (v2, v3, little-endian), mapped, every offset checked before anything is used.
 *
 * Opening parses the header, the metadata and the tensor table only: it costs the same for 1 MB and 100 GB.
 * Tensor data stays in the mapping. A file is refused, with file:offset and what was expected, for: magic,
 * version, counts that do not fit the file, 64-bit wraps, unknown or wrong value types, duplicate keys or
 * tensor names, bad alignment, tensors that overlap, are misaligned or reach past the end, unsupported tensor
 * types (named), and anything truncated. Source of the format: ggml docs/gguf.md. It knows nothing of what
 * the keys mean. */
#ifndef LEPTON_WORKER_MODEL_GGUF_H
#define LEPTON_WORKER_MODEL_GGUF_H

#include "kernels/tensor.h"

struct gguf;

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPE_COUNT,
};

const char *gguf_type_name(enum gguf_type type); /* "u32", "string" */

struct gguf_string { /* not terminated; points into the mapping */
    const char *data;
    uint64_t size;
};

struct gguf_tensor {
    struct gguf_string name;
    enum dtype dtype;
    int ndim;
    int64_t dim[TENSOR_MAX_DIMS]; /* row-major: dim[ndim - 1] is GGUF's ne[0] */
    uint64_t offset;              /* of the data, from the start of the file */
    uint64_t bytes;
    const void *mapped; /* in the file's mapping; NULL in an assembled one: ask gguf_tensor_data */
};

/* Opens and checks a file. The mapping is private and read-only and lives until gguf_close. */
int gguf_open(struct gguf **out, const char *path, struct err *err);
/* The same over bytes that the caller keeps alive (tests, fuzzing). `name` stands in messages. */
int gguf_parse(struct gguf **out, const void *data, uint64_t size, const char *name, struct err *err);
void gguf_close(struct gguf **g);

/* Where the tensors of an assembled model come from. Every check belongs before gguf_assemble: a tensor of
 * the table can always be made. `data` may be called from several threads. */
struct gguf_source {
    void *context;
    const void *(*data)(void *context, uint64_t index); /* its bytes, valid until drop or close */
    void (*drop)(void *context, uint64_t index);        /* frees what `data` made; NULL = keeps all */
    /* Shows the bytes that the tensor is made from, without making it; for fingerprints. */
    void (*sample)(void *context, uint64_t index, void (*take)(void *state, const void *data, uint64_t bytes),
                   void *state);
    void (*close)(void *context);
};

/* A model that is no GGUF file, as if it were one: `header` is what the file would begin with (the bytes of
 * gguf_writer_header, taken over and left empty), `source` gives the tensors by their number in its table.
 * After an error the source was closed. */
int gguf_assemble(struct gguf **out, struct buffer *header, const struct gguf_source *source,
                  const char *name, struct err *err);
bool gguf_is_assembled(const struct gguf *g);

const char *gguf_name(const struct gguf *g); /* the path */
uint64_t gguf_file_bytes(const struct gguf *g);
uint32_t gguf_version(const struct gguf *g);
uint32_t gguf_alignment(const struct gguf *g);

/* Header, metadata and tensor table as they stand in the file: what the registry hashes as one. */
const void *gguf_header(const struct gguf *g, uint64_t *bytes);

/* Metadata. Keys in file order. The typed getters return 1 = found, 0 = absent, -1 = present with another
 * type or out of range (err says key, type found, type expected). get_uint takes any integer type that is not
 * negative. */
uint64_t gguf_key_count(const struct gguf *g);
struct gguf_string gguf_key(const struct gguf *g, uint64_t index, enum gguf_type *type);
int gguf_get_uint(const struct gguf *g, const char *key, uint64_t *out, struct err *err);
int gguf_get_int(const struct gguf *g, const char *key, int64_t *out, struct err *err);
int gguf_get_float(const struct gguf *g, const char *key, double *out, struct err *err);
int gguf_get_bool(const struct gguf *g, const char *key, bool *out, struct err *err);
int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *out, struct err *err);
/* Arrays: number of elements and their type; then element by element. Strings were indexed at opening: O(1).
 */
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type *element, uint64_t *count,
                   struct err *err);
struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t index);
double gguf_array_float(const struct gguf *g, const char *key, uint64_t index);
int64_t gguf_array_int(const struct gguf *g, const char *key, uint64_t index);
/* The raw elements of a fixed-size array (unaligned, little-endian), NULL when absent or an array of strings.
 */
const void *gguf_array_data(const struct gguf *g, const char *key);
/* One value as text for inspection: strings shortened to `limit` bytes, arrays to their first elements. */
void gguf_format_value(const struct gguf *g, uint64_t index, size_t limit, struct buffer *out);

uint64_t gguf_tensor_count(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t index);
const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name); /* NULL when absent */
/* The tensor's bytes, made at the first call where the model was assembled and they do not lie ready. */
const void *gguf_tensor_data(const struct gguf *g, const struct gguf_tensor *t);
/* From disk, the whole tensor is asked for at once: a reader that faults page after page would wait for each
 * read-ahead. Nothing waits here. */
void gguf_tensor_ask(const struct gguf *g, const struct gguf_tensor *t);
/* Gives up the memory that its bytes take here: those that were made are made again by the next
 * gguf_tensor_data, those of a mapping come back by themselves when they are touched. */
void gguf_tensor_drop(const struct gguf *g, const struct gguf_tensor *t);
/* 32 hexadecimal digits over header, metadata, tensor table and a sample of every tensor's bytes: tells
 * models apart in the numeric class without reading the weights. Not a proof against tampering: that is the
 * registry's hashes. */
void gguf_fingerprint(const struct gguf *g, char out[33]);

/* Writing: keys and tensors are added, then the file is written front to back. */
struct gguf_writer;
int gguf_writer_open(struct gguf_writer **out, const char *path, struct err *err);
/* A writer without a file: takes keys and tensor records, for gguf_writer_header and gguf_writer_free. */
struct gguf_writer *gguf_writer_new(const char *name);
/* What the file would begin with, up to the tensors' data. */
int gguf_writer_header(struct gguf_writer *w, struct buffer *out, struct err *err);
void gguf_writer_free(struct gguf_writer **w);
/* Adds a key with the type and value it has in `g`. */
void gguf_writer_copy(struct gguf_writer *w, const struct gguf *g, uint64_t index);
void gguf_writer_uint(struct gguf_writer *w, const char *key,
                      uint64_t value); /* as u32; u64 when it does not fit */
void gguf_writer_float(struct gguf_writer *w, const char *key, double value); /* as f32 */
void gguf_writer_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value);
void gguf_writer_strings(struct gguf_writer *w, const char *key, const char *const *values, uint64_t count);
void gguf_writer_floats(struct gguf_writer *w, const char *key, const float *values, uint64_t count);
void gguf_writer_ints(struct gguf_writer *w, const char *key, const int32_t *values, uint64_t count);
void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int ndim,
                        const int64_t *dim);
/* After the last key and tensor: writes the header, then takes the tensors' bytes in the order they were
 * added, row by row or whole. close finishes (fsync, rename over `path`) or, when not complete, removes the
 * temporary file. */
int gguf_writer_begin(struct gguf_writer *w, struct err *err);
int gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes, struct err *err);
int gguf_writer_close(struct gguf_writer **w, struct err *err);

#endif
