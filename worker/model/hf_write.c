/* hf_write: a model as a Hugging Face directory. Everything is written into a directory beside the wanted
 * one, which takes its name at the end: readers see no directory or the whole one. Tensors pass through one
 * at a time. */
#include "worker/model/hf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/model/hf_impl.h"
#include "worker/model/safetensors.h"

#define PIECE_ELEMENTS (1u << 20) /* converted at a time where only the type changes */

/* One tensor of the directory. */
struct target {
    char name[256];
    const struct gguf_tensor *from;
    enum hf_change change;
    int64_t expert; /* of HF_STACK */
    enum dtype dtype;
    int ndim;
    int64_t dim[TENSOR_MAX_DIMS]; /* as written */
    int64_t rows, columns;        /* as read */
    int64_t heads;
    uint64_t bytes;
    int shard;
};

struct plan {
    const struct gguf *g;
    const struct hf_family *family;
    const struct hf_write_options *options;
    struct target *target;
    uint64_t count, capacity, total_bytes, rounded;
    int shards;
};

/* ---- files -------------------------------------------------------------------------------------------- */

int hf_write_file(const char *directory, const char *name, const void *data, uint64_t bytes, struct err *err)
{
    char *path = xasprintf("%s/%s", directory, name);
    FILE *f = fopen(path, "wbe");
    int rc = f ? 0 : -1;
    if (f && (fwrite(data, 1, bytes, f) != bytes || fflush(f) != 0 || fsync(fileno(f)) != 0))
        rc = -1;
    if (rc)
        err_set(err, "%s: %s", path, strerror(errno));
    if (f)
        fclose(f);
    free(path);
    return rc;
}

int hf_write_json(const char *directory, const char *name, const json_t *root, struct err *err)
{
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    ASSERT(text);
    int rc = hf_write_file(directory, name, text, strlen(text), err);
    free(text);
    return rc;
}

/* Only files lie in a directory of ours. */
static void remove_directory(const char *directory)
{
    DIR *d = opendir(directory);
    struct dirent *entry;
    while (d && (entry = readdir(d)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(d), entry->d_name, 0);
    if (d)
        closedir(d);
    rmdir(directory);
}

static int sync_directory(const char *directory, struct err *err)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 && fsync(fd) == 0 ? 0 : err_set(err, "%s: %s", directory, strerror(errno));
    if (fd >= 0)
        close(fd);
    return rc;
}

/* rename(2) replaces an empty directory and refuses any other. */
static int publish(const char *temporary, const char *directory, struct err *err)
{
    if (sync_directory(temporary, err))
        return -1;
    if (rename(temporary, directory) != 0)
        return err_set(err, "%s: %s: expected a name that is free, or an empty directory", directory,
                       strerror(errno));
    char *copy = xstrdup(directory);
    int rc = sync_directory(dirname(copy), err);
    free(copy);
    return rc;
}

/* ---- the plan ----------------------------------------------------------------------------------------- */

/* The row of the family whose GGUF name this is, and its layer (-1 for those without). */
static const struct hf_tensor_row *find_row(const struct hf_family *f, struct gguf_string name,
                                            int64_t *layer)
{
    char text[128], candidate[128];
    long long n = 0;
    snprintf(text, sizeof(text), "%.*s", (int)(name.size < 127 ? name.size : 127), name.data);
    *layer = sscanf(text, "blk.%lld.", &n) == 1 ? n : -1;
    for (int i = 0; i < f->tensor_count; i++) {
        hf_format_name(candidate, sizeof(candidate), f->tensors[i].gguf, *layer, 0);
        if (strcmp(candidate, text) == 0)
            return &f->tensors[i];
    }
    return NULL;
}

static int choose_type(const struct plan *p, const struct gguf_tensor *t, struct target *out, struct err *err)
{
    char shown[128];
    snprintf(shown, sizeof(shown), "%.*s", (int)t->name.size, t->name.data);
    bool plain = t->dtype == DTYPE_F32 || t->dtype == DTYPE_F16 || t->dtype == DTYPE_BF16;
    out->dtype = p->options->keep || t->ndim < 2 ? t->dtype : p->options->dtype;
    if (!plain && (p->options->keep || t->ndim < 2))
        return err_set(err, "%s: tensor %s: safetensors has no type %s: --type f32, f16 or bf16 converts it",
                       gguf_name(p->g), shown, dtype_info(t->dtype)->name);
    return 0;
}

static int head_count(const struct plan *p, enum hf_change change, int64_t rows, int64_t *heads,
                      struct err *err)
{
    char key[128];
    uint64_t n = 0, kv;
    snprintf(key, sizeof(key), "%s.attention.head_count", p->family->architecture);
    if (gguf_get_uint(p->g, key, &n, err) < 0)
        return -1;
    kv = n;
    snprintf(key, sizeof(key), "%s.attention.head_count_kv", p->family->architecture);
    if (gguf_get_uint(p->g, key, &kv, err) < 0)
        return -1;
    n = change == HF_PERMUTE_Q ? n : kv;
    if (n < 1 || n > 65536 || rows % (int64_t)(2 * n))
        return err_set(err, "%s: %s: %llu heads for a tensor of %lld rows", gguf_name(p->g), key,
                       (unsigned long long)n, (long long)rows);
    *heads = (int64_t)n;
    return 0;
}

static struct target *add_target(struct plan *p)
{
    if (p->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 64;
        p->target = xrealloc(p->target, p->capacity * sizeof(*p->target));
    }
    p->target[p->count] = (struct target){0};
    return &p->target[p->count++];
}

static int plan_tensor(struct plan *p, const struct gguf_tensor *t, struct err *err)
{
    int64_t layer;
    const struct hf_tensor_row *row = find_row(p->family, t->name, &layer);
    bool stack = row && row->change == HF_STACK;
    if (!row)
        return t->name.size > 5 && memcmp(t->name.data, "rope_", 5) == 0
                   ? 0 /* rope_scaling says it, or hf_write_config refused it */
                   : err_set(err, "%s: tensor %.*s has no Hugging Face name in a %s model", gguf_name(p->g),
                             (int)t->name.size, t->name.data, p->family->model_type);
    if (t->ndim != (stack          ? 3
                    : t->ndim == 1 ? 1
                                   : 2) ||
        (row->change == HF_TRANSPOSE && t->ndim != 2) ||
        (row->change == HF_PLUS_ONE && (t->ndim != 1 || t->dtype != DTYPE_F32)) ||
        (stack && t->dim[0] > HF_EXPERTS_MAX))
        return err_set(err,
                       "%s: tensor %.*s: its shape or type (%d dimensions, %s) is not that of a %s model",
                       gguf_name(p->g), (int)t->name.size, t->name.data, t->ndim, dtype_info(t->dtype)->name,
                       p->family->model_type);
    for (int64_t e = 0; e < (stack ? t->dim[0] : 1); e++) {
        struct target *out = add_target(p);
        const int64_t *dim = t->dim + (stack ? 1 : 0);
        *out = (struct target){.from = t, .change = row->change, .expert = e, .ndim = stack ? 2 : t->ndim};
        hf_format_name(out->name, sizeof(out->name), row->hf, layer, e);
        out->rows = dim[0];
        out->columns = out->ndim == 2 ? dim[1] : 1;
        out->dim[0] = row->change == HF_TRANSPOSE ? out->columns : out->rows;
        out->dim[1] = row->change == HF_TRANSPOSE ? out->rows : out->columns;
        if (choose_type(p, t, out, err))
            return -1;
        if ((row->change == HF_PERMUTE_Q || row->change == HF_PERMUTE_K) &&
            head_count(p, row->change, out->rows, &out->heads, err))
            return -1;
        out->bytes = (uint64_t)(out->rows * out->columns) * dtype_info(out->dtype)->block_bytes;
    }
    return 0;
}

/* Wide types first: then all data is aligned, as the format's own writers have it. */
static int by_width(const void *a, const void *b)
{
    const struct target *x = a, *y = b;
    uint32_t wx = dtype_info(x->dtype)->block_bytes, wy = dtype_info(y->dtype)->block_bytes;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (wx != wy)
        return wx > wy ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int make_plan(struct plan *p, struct err *err)
{
    uint64_t in_shard = 0;
    for (uint64_t i = 0; i < gguf_tensor_count(p->g); i++)
        if (plan_tensor(p, gguf_tensor_at(p->g, i), err))
            return -1;
    if (p->count == 0)
        return err_set(err, "%s: no tensors", gguf_name(p->g));
    p->shards = 1;
    for (uint64_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        if (in_shard && in_shard + t->bytes > p->options->shard_bytes) {
            p->shards++;
            in_shard = 0;
        }
        in_shard += t->bytes;
        p->total_bytes += t->bytes;
        t->shard = p->shards - 1;
    }
    qsort(p->target, p->count, sizeof(*p->target), by_width);
    return 0;
}

/* ---- tensors ------------------------------------------------------------------------------------------ */

/* Converts `count` elements and writes them. */
static int write_converted(struct safetensors_writer *w, enum dtype from, const uint8_t *data, enum dtype to,
                           uint64_t count, struct err *err)
{
    const struct dtype_info *in = dtype_info(from);
    float *wide = xmalloc(PIECE_ELEMENTS * sizeof(*wide));
    uint8_t *narrow = xmalloc(PIECE_ELEMENTS * sizeof(float));
    int rc = 0;
    for (uint64_t at = 0; at < count && rc == 0; at += PIECE_ELEMENTS) {
        uint64_t n = count - at < PIECE_ELEMENTS ? count - at : PIECE_ELEMENTS;
        dtype_to_f32(from, data + at / in->block_elements * in->block_bytes, wide, n);
        dtype_from_f32(to, wide, narrow, n);
        rc = safetensors_writer_data(w, narrow, n * dtype_info(to)->block_bytes, err);
    }
    free(wide);
    free(narrow);
    return rc;
}

/* Where HF's weight - 1, plus one, is another number than the file's. */
static uint64_t count_rounded(const float *gguf, const float *hf, int64_t count)
{
    uint64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        float back = hf[i] + 1;
        n += memcmp(&back, &gguf[i], sizeof(back)) != 0;
    }
    return n;
}

static int write_target(struct plan *p, struct safetensors_writer *w, const struct target *t, struct err *err)
{
    uint64_t elements = (uint64_t)(t->rows * t->columns);
    const struct dtype_info *in = dtype_info(t->from->dtype);
    const uint8_t *data = gguf_tensor_data(p->g, t->from);
    data += (uint64_t)t->expert * (elements / in->block_elements) * in->block_bytes;
    if (t->change == HF_SAME || t->change == HF_STACK)
        return t->dtype == t->from->dtype ? safetensors_writer_data(w, data, t->bytes, err)
                                          : write_converted(w, t->from->dtype, data, t->dtype, elements, err);
    /* Block types cannot be moved about by element; rows can, but a transposition needs elements. */
    enum dtype moved = in->block_elements == 1 ? t->from->dtype : DTYPE_F32;
    uint32_t width = dtype_info(moved)->block_bytes;
    float *wide = NULL;
    if (moved != t->from->dtype) {
        wide = xmalloc(elements * sizeof(*wide));
        dtype_to_f32(t->from->dtype, data, wide, elements);
    }
    uint8_t *out = xmalloc(elements * width);
    hf_apply(t->change, true, wide ? (const void *)wide : data, out, t->rows, t->columns, width, t->heads);
    if (t->change == HF_PLUS_ONE)
        p->rounded +=
            count_rounded((const float *)(const void *)data, (const float *)(const void *)out, t->rows);
    int rc = moved == t->dtype ? safetensors_writer_data(w, out, t->bytes, err)
                               : write_converted(w, moved, out, t->dtype, elements, err);
    free(out);
    free(wide);
    return rc;
}

static void shard_name(const struct plan *p, int shard, char out[64])
{
    if (p->shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, p->shards);
}

static int write_shard(struct plan *p, const char *directory, int shard, struct err *err)
{
    char name[64];
    const struct hf_write_options *o = p->options;
    struct safetensors_writer *w;
    shard_name(p, shard, name);
    char *path = xasprintf("%s/%s", directory, name);
    int rc = safetensors_writer_open(&w, path, err);
    free(path);
    if (rc)
        return -1;
    for (uint64_t i = 0; i < p->count; i++)
        if (p->target[i].shard == shard)
            safetensors_writer_tensor(w, p->target[i].name, p->target[i].dtype, p->target[i].ndim,
                                      p->target[i].dim);
    rc = safetensors_writer_begin(w, err);
    for (uint64_t i = 0; i < p->count && rc == 0; i++) {
        const struct target *t = &p->target[i];
        if (t->shard != shard)
            continue;
        if (o->stop && o->stop(o->context)) {
            rc = err_set(err, "interrupted");
            break;
        }
        rc = write_target(p, w, t, err);
        /* Experts follow one another by name, not by number: the stack is made once for all of them. */
        if (t->change != HF_STACK)
            gguf_tensor_drop(p->g, t->from);
        if (o->progress)
            o->progress(o->context,
                        t->change == HF_STACK ? t->from->bytes / (uint64_t)t->from->dim[0] : t->from->bytes,
                        t->name);
    }
    int closed = safetensors_writer_close(&w, rc ? NULL : err);
    return rc ? rc : closed;
}

static int write_index(const struct plan *p, const char *directory, struct err *err)
{
    json_t *map = json_object();
    char name[64];
    for (uint64_t i = 0; i < p->count; i++) {
        shard_name(p, p->target[i].shard, name);
        json_object_set_new(map, p->target[i].name, json_string(name));
    }
    json_t *root =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)p->total_bytes, "weight_map", map);
    int rc = hf_write_json(directory, "model.safetensors.index.json", root, err);
    json_decref(root);
    return rc;
}

/* ---- all of it ---------------------------------------------------------------------------------------- */

/* The type of most of the weights, as config.json calls it. */
static const char *type_name(const struct plan *p)
{
    uint64_t bytes[DTYPE_COUNT] = {0};
    enum dtype most = DTYPE_F32;
    for (uint64_t i = 0; i < p->count; i++)
        bytes[p->target[i].dtype] += p->target[i].bytes;
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (bytes[d] > bytes[most])
            most = (enum dtype)d;
    return most == DTYPE_F16 ? "float16" : most == DTYPE_BF16 ? "bfloat16" : "float32";
}

static int write_all(struct plan *p, const char *directory, struct buffer *notes, struct err *err)
{
    json_t *config = hf_write_config(p->g, p->family, type_name(p), err);
    if (!config)
        return -1;
    json_t *generation = hf_write_generation(p->g);
    int rc = hf_write_tokenizer(p->g, p->family, directory, notes, err);
    for (int s = 0; s < p->shards && rc == 0; s++)
        rc = write_shard(p, directory, s, err);
    if (rc == 0)
        rc = hf_write_json(directory, "config.json", config, err) ||
                     hf_write_json(directory, "generation_config.json", generation, err) ||
                     (p->shards > 1 && write_index(p, directory, err))
                 ? -1
                 : 0;
    if (p->rounded)
        buffer_printf(notes, "%llu norm weights are rounded: %s stores weight - 1\n",
                      (unsigned long long)p->rounded, p->family->model_type);
    json_decref(config);
    json_decref(generation);
    return rc;
}

int hf_write(const struct gguf *g, const char *directory, const struct hf_write_options *options,
             struct buffer *notes, struct err *err)
{
    struct plan p = {.g = g, .options = options, .family = hf_write_family(g, err)};
    if (!p.family)
        return -1;
    size_t n = strlen(directory);
    while (n > 1 && directory[n - 1] == '/')
        n--;
    char *target = xasprintf("%.*s", (int)n, directory);
    char *temporary = xasprintf("%s.tmp-%ld", target, (long)getpid());
    int rc = make_plan(&p, err);
    if (rc == 0 && mkdir(temporary, 0777) != 0)
        rc = err_set(err, "%s: %s", temporary, strerror(errno));
    else if (rc == 0) {
        rc = write_all(&p, temporary, notes, err) || publish(temporary, target, err) ? -1 : 0;
        if (rc)
            remove_directory(temporary);
    }
    free(target);
    free(temporary);
    free(p.target);
    return rc;
}
