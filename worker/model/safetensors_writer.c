/* safetensors_writer: one file, written front to back into a temporary file beside its final name.
 *
 * Records gather in memory; the tensors' bytes only pass through. Readers see no file or the whole one: the
 * name is taken by rename(2) after fsync(2). Wrong calls (data before begin, more bytes than a tensor has)
 * are bugs of the caller. */
#include "worker/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER_BYTES (1u << 20)

struct safetensors_writer {
    char *path, *temporary;
    FILE *file;
    json_t *header;
    uint64_t data_bytes, written;
    bool begun;
};

int safetensors_writer_open(struct safetensors_writer **out, const char *path, struct err *err)
{
    struct safetensors_writer *w = xcalloc(1, sizeof(*w));
    *out = w;
    w->path = xstrdup(path);
    w->temporary = xasprintf("%s.tmp-%ld", path, (long)getpid());
    w->header = json_object();
    json_object_set_new(w->header, "__metadata__", json_pack("{s:s}", "format", "pt"));
    int fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(err, "%s: %s", w->temporary, strerror(errno));
        safetensors_writer_close(out, NULL);
        return -1;
    }
    w->file = fdopen(fd, "wb");
    if (!w->file)
        die("fdopen: %s", strerror(errno));
    setvbuf(w->file, NULL, _IOFBF, BUFFER_BYTES);
    return 0;
}

static const char *dtype_name(enum dtype dtype)
{
    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16);
    return dtype == DTYPE_F32 ? "F32" : dtype == DTYPE_F16 ? "F16" : "BF16";
}

void safetensors_writer_tensor(struct safetensors_writer *w, const char *name, enum dtype dtype, int ndim,
                               const int64_t *dim)
{
    uint64_t bytes = dtype_info(dtype)->block_bytes;
    json_t *shape = json_array();
    ASSERT(!w->begun && !json_object_get(w->header, name));
    for (int d = 0; d < ndim; d++) {
        bytes *= (uint64_t)dim[d]; /* fits: the tensor is there */
        json_array_append_new(shape, json_integer(dim[d]));
    }
    json_object_set_new(w->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(dtype), "shape", shape,
                                  "data_offsets", (json_int_t)w->data_bytes,
                                  (json_int_t)(w->data_bytes + bytes)));
    w->data_bytes += bytes;
}

static int put(struct safetensors_writer *w, const void *data, uint64_t bytes, struct err *err)
{
    if (bytes && fwrite(data, 1, bytes, w->file) != bytes)
        return err_set(err, "%s: cannot write: %s", w->temporary, strerror(errno));
    return 0;
}

int safetensors_writer_begin(struct safetensors_writer *w, struct err *err)
{
    char *text = json_dumps(w->header, JSON_COMPACT);
    uint64_t bytes = text ? strlen(text) : 0;
    ASSERT(text && !w->begun);
    w->begun = true;
    /* Spaces behind the header align the data. */
    uint64_t padded = round_up_u64(bytes, 8);
    int rc = put(w, &padded, 8, err) || put(w, text, bytes, err) || put(w, "        ", padded - bytes, err)
                 ? -1
                 : 0;
    free(text);
    return rc;
}

int safetensors_writer_data(struct safetensors_writer *w, const void *data, uint64_t bytes, struct err *err)
{
    ASSERT(w->begun && bytes <= w->data_bytes - w->written);
    w->written += bytes;
    return put(w, data, bytes, err);
}

static int finish(struct safetensors_writer *w, struct err *err)
{
    if (!w->begun || w->written != w->data_bytes)
        return err_set(err, "%s: not written: %llu of %llu bytes were there", w->path,
                       (unsigned long long)w->written, (unsigned long long)w->data_bytes);
    if (fflush(w->file) != 0 || ferror(w->file) || fsync(fileno(w->file)) != 0)
        return err_set(err, "%s: cannot write: %s", w->temporary, strerror(errno));
    if (rename(w->temporary, w->path) != 0)
        return err_set(err, "%s: cannot rename %s: %s", w->path, w->temporary, strerror(errno));
    return 0;
}

int safetensors_writer_close(struct safetensors_writer **writer, struct err *err)
{
    struct safetensors_writer *w = *writer;
    int rc = 0;
    if (!w)
        return 0;
    if (w->file) {
        rc = finish(w, err);
        if (fclose(w->file) != 0 && rc == 0)
            rc = err_set(err, "%s: cannot close: %s", w->path, strerror(errno));
        if (rc)
            unlink(w->temporary); /* after the rename there is none left to remove */
    }
    json_decref(w->header);
    free(w->path);
    free(w->temporary);
    free(w);
    *writer = NULL;
    return rc;
}
