/* gguf_writer: a GGUF v3 file, written front to back into a temporary file beside its final name.
 *
 * Keys and tensor records gather in memory; the tensors' bytes only pass through, so a file may be larger
 * than memory. Readers see the old file or the whole new one: the name is taken by rename(2) after fsync(2).
 * Wrong calls (data before begin, more bytes than a tensor has, a key twice) are bugs of the caller. */
#include "worker/model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/model/gguf_impl.h"

#define ALIGNMENT    32
#define BUFFER_BYTES (1u << 20)

struct gguf_writer {
    char *path;
    char *temporary;
    FILE *file;
    struct buffer keys;    /* records, as in the file */
    struct buffer tensors; /* records, as in the file */
    uint64_t key_count;
    struct buffer sizes; /* bytes of each tensor, u64 */
    uint64_t tensor_count;
    uint64_t data_bytes; /* of the data section as far as tensors were added; a multiple of ALIGNMENT */
    struct err first;    /* what was wrong with a tensor added, reported by begin */
    bool refused;
    bool begun;
    uint64_t current; /* the tensor whose bytes come next */
    uint64_t written; /* bytes of it that came */
};

int gguf_writer_open(struct gguf_writer **out, const char *path, struct err *err)
{
    struct gguf_writer *w = xcalloc(1, sizeof(*w));
    *out = NULL;
    w->path = xstrdup(path);
    w->temporary = xasprintf("%s.tmp-%ld", path, (long)getpid());
    int fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(err, "%s: %s", w->temporary, strerror(errno));
        free(w->path);
        free(w->temporary);
        free(w);
        return -1;
    }
    w->file = fdopen(fd, "wb");
    if (!w->file)
        die("fdopen: %s", strerror(errno));
    setvbuf(w->file, NULL, _IOFBF, BUFFER_BYTES);
    *out = w;
    return 0;
}

struct gguf_writer *gguf_writer_new(const char *name)
{
    struct gguf_writer *w = xcalloc(1, sizeof(*w));
    w->path = xstrdup(name);
    return w;
}

static void put_string(struct buffer *b, const char *s)
{
    buffer_u64(b, strlen(s));
    buffer_append(b, s, strlen(s));
}

static void put_key(struct gguf_writer *w, const char *key, enum gguf_type type)
{
    ASSERT(!w->begun && key[0]);
    put_string(&w->keys, key);
    buffer_u32(&w->keys, type);
    w->key_count++;
}

void gguf_writer_uint(struct gguf_writer *w, const char *key, uint64_t value)
{
    put_key(w, key, value <= UINT32_MAX ? GGUF_U32 : GGUF_U64);
    if (value <= UINT32_MAX)
        buffer_u32(&w->keys, (uint32_t)value);
    else
        buffer_u64(&w->keys, value);
}

void gguf_writer_float(struct gguf_writer *w, const char *key, double value)
{
    float narrow = (float)value;
    put_key(w, key, GGUF_F32);
    buffer_append(&w->keys, &narrow, sizeof(narrow));
}

void gguf_writer_bool(struct gguf_writer *w, const char *key, bool value)
{
    uint8_t byte = value;
    put_key(w, key, GGUF_BOOL);
    buffer_append(&w->keys, &byte, 1);
}

void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value)
{
    put_key(w, key, GGUF_STRING);
    put_string(&w->keys, value);
}

static void put_array(struct gguf_writer *w, const char *key, enum gguf_type element, uint64_t count)
{
    put_key(w, key, GGUF_ARRAY);
    buffer_u32(&w->keys, element);
    buffer_u64(&w->keys, count);
}

void gguf_writer_strings(struct gguf_writer *w, const char *key, const char *const *values, uint64_t count)
{
    put_array(w, key, GGUF_STRING, count);
    for (uint64_t i = 0; i < count; i++)
        put_string(&w->keys, values[i]);
}

void gguf_writer_floats(struct gguf_writer *w, const char *key, const float *values, uint64_t count)
{
    put_array(w, key, GGUF_F32, count);
    buffer_append(&w->keys, values, count * sizeof(*values));
}

void gguf_writer_ints(struct gguf_writer *w, const char *key, const int32_t *values, uint64_t count)
{
    put_array(w, key, GGUF_I32, count);
    buffer_append(&w->keys, values, count * sizeof(*values));
}

void gguf_writer_copy(struct gguf_writer *w, const struct gguf *g, uint64_t index)
{
    enum gguf_type type;
    struct gguf_string name = gguf_key(g, index, &type), s;
    char *key = xasprintf("%.*s", (int)name.size, name.data);
    const struct gguf_entry *e = gguf_entry_find(g, key);
    if (type == GGUF_ARRAY && e->element == GGUF_STRING) {
        put_array(w, key, GGUF_STRING, e->count);
        for (uint64_t i = 0; i < e->count; i++) {
            s = gguf_array_string(g, key, i);
            buffer_u64(&w->keys, s.size);
            buffer_append(&w->keys, s.data, s.size);
        }
    } else if (type == GGUF_ARRAY) {
        put_array(w, key, e->element, e->count);
        buffer_append(&w->keys, e->value, e->count * gguf_type_bytes(e->element));
    } else {
        put_key(w, key, type);
        if (type == GGUF_STRING)
            buffer_u64(&w->keys, e->count);
        buffer_append(&w->keys, e->value, e->count);
    }
    free(key);
}

/* Bytes of a tensor; -1 with w->first filled for a shape that no file can hold. */
static int tensor_size(struct gguf_writer *w, const char *name, enum dtype dtype, int ndim,
                       const int64_t *dim, uint64_t *bytes)
{
    const struct dtype_info *info = dtype_info(dtype);
    if (info->ggml_type < 0)
        return err_set(&w->first, "%s: tensor \"%s\": %s has no number in GGUF", w->path, name, info->name);
    for (int d = 0; d < ndim; d++)
        if (dim[d] < 1)
            return err_set(&w->first, "%s: tensor \"%s\": dimension of %lld, expected 1 or more", w->path,
                           name, (long long)dim[d]);
    if (dtype_row_bytes(dtype, (uint64_t)dim[ndim - 1], bytes))
        return err_set(&w->first, "%s: tensor \"%s\": rows of %lld elements are no whole %s blocks of %u",
                       w->path, name, (long long)dim[ndim - 1], info->name, info->block_elements);
    for (int d = 0; d < ndim - 1; d++)
        if (!checked_mul_u64(*bytes, (uint64_t)dim[d], bytes))
            return err_set(&w->first, "%s: tensor \"%s\": its size does not fit 64 bits", w->path, name);
    return 0;
}

void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int ndim,
                        const int64_t *dim)
{
    uint64_t bytes, end;
    ASSERT(!w->begun && name[0] && ndim >= 1 && ndim <= TENSOR_MAX_DIMS);
    if (w->refused)
        return;
    if (tensor_size(w, name, dtype, ndim, dim, &bytes)) {
        w->refused = true;
        return;
    }
    if (!checked_add_u64(w->data_bytes, bytes, &end) || end > INT64_MAX) {
        err_set(&w->first, "%s: tensor \"%s\": the file would be larger than 2^63 bytes", w->path, name);
        w->refused = true;
        return;
    }
    put_string(&w->tensors, name);
    buffer_u32(&w->tensors, (uint32_t)ndim);
    for (int d = ndim - 1; d >= 0; d--)
        buffer_u64(&w->tensors, (uint64_t)dim[d]);
    buffer_u32(&w->tensors, (uint32_t)dtype_info(dtype)->ggml_type);
    buffer_u64(&w->tensors, w->data_bytes);
    w->data_bytes = round_up_u64(end, ALIGNMENT);
    buffer_u64(&w->sizes, bytes);
    w->tensor_count++;
}

static int put(struct gguf_writer *w, const void *data, uint64_t bytes, struct err *err)
{
    if (bytes && fwrite(data, 1, bytes, w->file) != bytes)
        return err_set(err, "%s: cannot write: %s", w->temporary, strerror(errno));
    return 0;
}

static int put_padding(struct gguf_writer *w, uint64_t position, struct err *err)
{
    static const uint8_t zero[ALIGNMENT];
    return put(w, zero, round_up_u64(position, ALIGNMENT) - position, err);
}

int gguf_writer_header(struct gguf_writer *w, struct buffer *out, struct err *err)
{
    if (w->refused)
        return err_set(err, "%s", w->first.message);
    buffer_append(out, "GGUF", 4);
    buffer_u32(out, 3);
    buffer_u64(out, w->tensor_count);
    buffer_u64(out, w->key_count);
    buffer_append(out, w->keys.data, w->keys.size);
    buffer_append(out, w->tensors.data, w->tensors.size);
    return 0;
}

int gguf_writer_begin(struct gguf_writer *w, struct err *err)
{
    struct buffer head = {0};
    ASSERT(!w->begun && w->file);
    if (gguf_writer_header(w, &head, err))
        return -1;
    w->begun = true;
    int rc = put(w, head.data, head.size, err) || put_padding(w, head.size, err) ? -1 : 0;
    buffer_release(&head);
    return rc;
}

int gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes, struct err *err)
{
    ASSERT(w->begun && w->current < w->tensor_count);
    uint64_t whole = ((const uint64_t *)(const void *)w->sizes.data)[w->current];
    ASSERT(bytes <= whole - w->written);
    if (put(w, data, bytes, err))
        return -1;
    w->written += bytes;
    if (w->written < whole)
        return 0;
    /* The last tensor is padded too: other readers of the format expect it. */
    w->current++;
    w->written = 0;
    return put_padding(w, whole, err);
}

/* Makes the rename itself last: the directory is data as well. */
static int sync_directory(const char *path, struct err *err)
{
    char *copy = xstrdup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 && fsync(fd) == 0 ? 0 : err_set(err, "%s: its directory: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(copy);
    return rc;
}

static int finish(struct gguf_writer *w, struct err *err)
{
    if (!w->begun || w->current < w->tensor_count)
        return err_set(err, "%s: not written: %llu of %llu tensors were complete", w->path,
                       (unsigned long long)w->current, (unsigned long long)w->tensor_count);
    if (fflush(w->file) != 0 || ferror(w->file) || fsync(fileno(w->file)) != 0)
        return err_set(err, "%s: cannot write: %s", w->temporary, strerror(errno));
    if (rename(w->temporary, w->path) != 0)
        return err_set(err, "%s: cannot rename %s: %s", w->path, w->temporary, strerror(errno));
    return sync_directory(w->path, err);
}

void gguf_writer_free(struct gguf_writer **writer)
{
    struct gguf_writer *w = *writer;
    if (!w)
        return;
    ASSERT(!w->file);
    buffer_release(&w->keys);
    buffer_release(&w->tensors);
    buffer_release(&w->sizes);
    free(w->path);
    free(w->temporary);
    free(w);
    *writer = NULL;
}

int gguf_writer_close(struct gguf_writer **writer, struct err *err)
{
    struct gguf_writer *w = *writer;
    if (!w)
        return 0;
    int rc = finish(w, err);
    if (fclose(w->file) != 0 && rc == 0)
        rc = err_set(err, "%s: cannot close: %s", w->path, strerror(errno));
    if (rc)
        unlink(w->temporary); /* after the rename there is none left to remove */
    w->file = NULL;
    gguf_writer_free(writer);
    return rc;
}
