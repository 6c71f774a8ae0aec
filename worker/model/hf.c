/* hf: the assembled model: which tensor comes from which, and the bytes of those that have to be made.
 *
 * Everything that could be wrong with a tensor is checked while the table is built, so that making one later
 * cannot fail. Vectors become F32, as every GGUF file has them. */
#include "worker/model/hf.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/hf_impl.h"
#include "worker/model/safetensors.h"

#define ALIGNED 8 /* bytes: what kernels may expect of data that stays in a mapping */

/* One tensor of the table. */
struct part {
    enum hf_change change;
    const struct safetensors_tensor **source; /* one, or one for each expert; NULL: `made` is all there is */
    int source_count;
    enum dtype dtype;      /* of the result */
    int64_t rows, columns; /* of one source */
    int64_t heads;         /* of HF_PERMUTE_* */
    uint64_t bytes;        /* of the result */
    void *made;
};

struct hf {
    struct hf_config config;
    struct safetensors *weights;
    struct part *part;
    uint64_t count, capacity;
    pthread_mutex_t lock; /* of `made` */
};

/* ---- making ------------------------------------------------------------------------------------------- */

static uint64_t source_bytes(const struct part *p)
{
    return p->bytes / (uint64_t)p->source_count;
}

/* One source, changed, into `out`. Widening to F32 comes first: HF_PLUS_ONE takes it. */
static void make_one(const struct part *p, const struct safetensors_tensor *t, uint8_t *out)
{
    uint32_t bytes = dtype_info(p->dtype)->block_bytes;
    if (t->dtype == p->dtype) {
        hf_apply(p->change, false, t->data, out, p->rows, p->columns, bytes, p->heads);
        return;
    }
    uint64_t count = (uint64_t)p->rows * (uint64_t)p->columns;
    uint8_t *aligned = xmalloc(t->bytes);
    float *wide = xmalloc(count * sizeof(*wide));
    memcpy(aligned, t->data, t->bytes);
    dtype_to_f32(t->dtype, aligned, wide, count);
    hf_apply(p->change, false, wide, out, p->rows, p->columns, bytes, p->heads);
    free(aligned);
    free(wide);
}

/* The bytes as they lie in the file, or NULL when they have to be made. */
static const void *mapped(const struct part *p)
{
    const struct safetensors_tensor *t = p->source_count == 1 ? p->source[0] : NULL;
    bool same = t && p->change == HF_SAME && t->dtype == p->dtype && (uintptr_t)t->data % ALIGNED == 0;
    return same ? t->data : NULL;
}

static const void *source_data(void *context, uint64_t index)
{
    struct hf *h = context;
    struct part *p = &h->part[index];
    const void *ready = mapped(p);
    if (ready)
        return ready;
    pthread_mutex_lock(&h->lock);
    if (!p->made) {
        p->made = xmalloc(p->bytes);
        for (int i = 0; i < p->source_count; i++)
            make_one(p, p->source[i], (uint8_t *)p->made + (uint64_t)i * source_bytes(p));
    }
    pthread_mutex_unlock(&h->lock);
    return p->made;
}

static void source_drop(void *context, uint64_t index)
{
    struct hf *h = context;
    struct part *p = &h->part[index];
    pthread_mutex_lock(&h->lock);
    if (p->source_count) {
        free(p->made);
        p->made = NULL;
    }
    pthread_mutex_unlock(&h->lock);
}

static void source_sample(void *context, uint64_t index,
                          void (*take)(void *state, const void *data, uint64_t bytes), void *state)
{
    const struct hf *h = context;
    const struct part *p = &h->part[index];
    if (!p->source_count)
        take(state, p->made, p->bytes);
    for (int i = 0; i < p->source_count; i++)
        take(state, p->source[i]->data, p->source[i]->bytes);
}

static void source_close(void *context)
{
    struct hf *h = context;
    for (uint64_t i = 0; i < h->count; i++) {
        free(h->part[i].source);
        free(h->part[i].made);
    }
    free(h->part);
    safetensors_close(&h->weights);
    hf_config_release(&h->config);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

static const struct gguf_source source_of_hf = {
    .data = source_data, .drop = source_drop, .sample = source_sample, .close = source_close};

/* ---- the table ---------------------------------------------------------------------------------------- */

static struct part *add_part(struct hf *h)
{
    if (h->count == h->capacity) {
        h->capacity = h->capacity ? 2 * h->capacity : 64;
        h->part = xrealloc(h->part, h->capacity * sizeof(*h->part));
    }
    h->part[h->count] = (struct part){0};
    return &h->part[h->count++];
}

/* Finds a tensor under its name or under the name with the family's prefix. */
static const struct safetensors_tensor *find(const struct hf *h, const char *name)
{
    const struct safetensors_tensor *t = safetensors_find(h->weights, name);
    if (t || !h->config.family->prefix)
        return t;
    char *full = xasprintf("%s%s", h->config.family->prefix, name);
    t = safetensors_find(h->weights, full);
    free(full);
    return t;
}

/* A weight: of a type that can be used, a vector or a matrix. */
static int check_weight(const struct safetensors_tensor *t, struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    if (!t->usable)
        return err_set(err,
                       "%s: tensor \"%s\": type %s is not supported for weights, expected F32, F16 or "
                       "BF16",
                       t->file, json_show(t->name, shown), t->dtype_name);
    if (t->ndim != 1 && t->ndim != 2)
        return err_set(err, "%s: tensor \"%s\": %d dimensions, expected 1 or 2", t->file,
                       json_show(t->name, shown), t->ndim);
    return 0;
}

static int same_shape(const struct safetensors_tensor *a, const struct safetensors_tensor *b, struct err *err)
{
    char shown[JSON_SHOW_BYTES], other[JSON_SHOW_BYTES];
    bool same = a->dtype == b->dtype && a->ndim == b->ndim;
    for (int d = 0; same && d < a->ndim; d++)
        same = a->dim[d] == b->dim[d];
    return same ? 0
                : err_set(err, "%s: tensor \"%s\": expected the shape and type of \"%s\"", b->file,
                          json_show(b->name, shown), json_show(a->name, other));
}

/* Shapes that the change needs. */
static int check_change(const struct hf *h, struct part *p, const struct safetensors_tensor *t,
                        struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    p->rows = t->dim[0];
    p->columns = t->ndim == 2 ? t->dim[1] : 1;
    if (p->change == HF_PERMUTE_Q || p->change == HF_PERMUTE_K) {
        p->heads = p->change == HF_PERMUTE_Q ? h->config.heads : h->config.kv_heads;
        if (p->rows != p->heads * h->config.head_length)
            return err_set(err, "%s: tensor \"%s\" has %lld rows, expected %lld heads of %lld", t->file,
                           json_show(t->name, shown), (long long)p->rows, (long long)p->heads,
                           (long long)h->config.head_length);
    }
    if ((p->change == HF_TRANSPOSE || p->change == HF_STACK) && t->ndim != 2)
        return err_set(err, "%s: tensor \"%s\" has %d dimensions, expected 2", t->file,
                       json_show(t->name, shown), t->ndim);
    if (p->change == HF_PLUS_ONE && t->ndim != 1)
        return err_set(err, "%s: tensor \"%s\" has %d dimensions, expected 1", t->file,
                       json_show(t->name, shown), t->ndim);
    return 0;
}

/* Adds one row of the family's table for one layer. 1 added, 0 absent (and optional), -1 error. */
static int add_row(struct hf *h, struct gguf_writer *w, const struct hf_tensor_row *row, int64_t layer,
                   struct err *err)
{
    char name[256], gguf_name[128];
    int count = row->change == HF_STACK ? (int)h->config.experts : 1;
    const struct safetensors_tensor **source = xcalloc((size_t)count, sizeof(*source));
    for (int e = 0; e < count; e++) {
        hf_format_name(name, sizeof(name), row->hf, layer, e);
        source[e] = find(h, name);
        if (!source[e] || check_weight(source[e], err) || (e && same_shape(source[0], source[e], err))) {
            int rc = source[e] ? -1
                     : row->optional && e == 0
                         ? 0
                         : err_set(err, "%s: tensor %s is missing", h->config.path, name);
            free(source);
            return rc;
        }
    }
    struct part *p = add_part(h);
    const struct safetensors_tensor *t = source[0];
    *p = (struct part){.change = row->change, .source = source, .source_count = count, .dtype = t->dtype};
    if (t->ndim == 1)
        p->dtype = DTYPE_F32;
    if (check_change(h, p, t, err))
        return -1;
    int64_t dim[3] = {p->rows, p->columns, 0};
    int ndim = t->ndim;
    if (row->change == HF_TRANSPOSE)
        dim[0] = p->columns, dim[1] = p->rows;
    if (row->change == HF_STACK)
        dim[0] = count, dim[1] = p->rows, dim[2] = p->columns, ndim = 3;
    /* Widening doubles at most, and safetensors_parse bounds a file's tensors by its size. */
    p->bytes = (uint64_t)count * (uint64_t)p->rows * (uint64_t)p->columns * dtype_info(p->dtype)->block_bytes;
    hf_format_name(gguf_name, sizeof(gguf_name), row->gguf, layer, 0);
    gguf_writer_tensor(w, gguf_name, p->dtype, ndim, dim);
    return 1;
}

/* Tensors that Hugging Face writes into the configuration. */
static void add_made(struct hf *h, struct gguf_writer *w, const char *name, float **values)
{
    if (!*values)
        return;
    struct part *p = add_part(h);
    int64_t n = h->config.rope_length / 2;
    *p = (struct part){.dtype = DTYPE_F32, .bytes = (uint64_t)n * sizeof(float), .made = *values};
    *values = NULL;
    gguf_writer_tensor(w, name, DTYPE_F32, 1, &n);
}

static bool per_layer(const struct hf_tensor_row *row)
{
    return strstr(row->gguf, "{l}") != NULL;
}

static int add_tensors(struct hf *h, struct gguf_writer *w, struct err *err)
{
    const struct hf_family *f = h->config.family;
    add_made(h, w, "rope_freqs.weight", &h->config.rope_divisors);
    add_made(h, w, "rope_factors_long.weight", &h->config.rope_long);
    add_made(h, w, "rope_factors_short.weight", &h->config.rope_short);
    for (int64_t layer = -1; layer < h->config.layers; layer++)
        for (int i = 0; i < f->tensor_count; i++) {
            const struct hf_tensor_row *row = &f->tensors[i];
            bool head = strcmp(row->gguf, "output.weight") == 0;
            if (per_layer(row) != (layer >= 0) || (head && h->config.tied))
                continue;
            int rc = add_row(h, w, row, layer, err);
            if (rc == 0 && head)
                rc = err_set(err, "%s: tensor %s is missing, and tie_word_embeddings is false",
                             h->config.path, row->hf);
            if (rc < 0)
                return -1;
        }
    return 0;
}

/* Buffers that code computes again, and the copy of the embedding that a tied head is. */
static bool may_be_unused(const struct hf *h, const char *name)
{
    static const char *const tails[] = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"};
    size_t n = strlen(name);
    for (size_t i = 0; i < ARRAY_LEN(tails); i++)
        if (n > strlen(tails[i]) && strcmp(name + n - strlen(tails[i]), tails[i]) == 0)
            return true;
    return h->config.tied && strcmp(name, "lm_head.weight") == 0;
}

static int by_pointer(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return x < y ? -1 : x > y;
}

/* A weight that nothing reads would silently change what the model computes. */
static int check_all_used(const struct hf *h, struct err *err)
{
    uint64_t used = 0, n = 0;
    for (uint64_t i = 0; i < h->count; i++)
        used += (uint64_t)h->part[i].source_count;
    uintptr_t *list = xmalloc((used + 1) * sizeof(*list));
    for (uint64_t i = 0; i < h->count; i++)
        for (int k = 0; k < h->part[i].source_count; k++)
            list[n++] = (uintptr_t)h->part[i].source[k];
    qsort(list, n, sizeof(*list), by_pointer);
    int rc = 0;
    for (uint64_t i = 0; i < safetensors_count(h->weights) && rc == 0; i++) {
        const struct safetensors_tensor *t = safetensors_at(h->weights, i);
        uintptr_t key = (uintptr_t)t;
        char shown[JSON_SHOW_BYTES];
        if (!bsearch(&key, list, n, sizeof(key), by_pointer) && !may_be_unused(h, t->name))
            rc =
                err_set(err, "%s: tensor \"%s\" is no part of a %s model of %lld layers", t->file,
                        json_show(t->name, shown), h->config.family->model_type, (long long)h->config.layers);
    }
    free(list);
    return rc;
}

/* ggml's number for what most weights are: 0 = F32, 1 = F16, 32 = BF16. */
static uint64_t file_type(const struct hf *h)
{
    uint64_t bytes[DTYPE_COUNT] = {0};
    for (uint64_t i = 0; i < h->count; i++)
        bytes[h->part[i].dtype] += h->part[i].bytes;
    if (bytes[DTYPE_F16] >= bytes[DTYPE_F32] && bytes[DTYPE_F16] >= bytes[DTYPE_BF16])
        return 1;
    return bytes[DTYPE_BF16] >= bytes[DTYPE_F32] ? 32 : 0;
}

/* ---- opening ------------------------------------------------------------------------------------------ */

/* The last part of the path: what people call the model. */
static char *base_name(const char *directory)
{
    char *full = realpath(directory, NULL);
    const char *path = full ? full : directory, *slash = strrchr(path, '/');
    char *name = xstrdup(slash && slash[1] ? slash + 1 : path);
    free(full);
    return name;
}

static int assemble(struct hf *h, struct gguf_writer *w, const char *directory, struct err *err)
{
    bool found;
    char *name = base_name(directory);
    int rc = hf_config_keys(&h->config, w, utf8_valid(name, strlen(name)) ? name : "model", err);
    free(name);
    if (rc || safetensors_open_directory(&h->weights, directory, err) || add_tensors(h, w, err) ||
        check_all_used(h, err))
        return -1;
    gguf_writer_uint(w, "general.file_type", file_type(h));
    const struct safetensors_tensor *embed = NULL;
    for (uint64_t i = 0; i < h->count && !embed; i++)
        if (h->part[i].source_count && h->part[i].change == HF_SAME)
            embed = h->part[i].source[0]; /* the first row of every family's table */
    ASSERT(embed);
    if (h->config.vocab && embed->dim[0] != h->config.vocab)
        return err_set(err, "%s: vocab_size is %lld, the embedding has %lld rows", h->config.path,
                       (long long)h->config.vocab, (long long)embed->dim[0]);
    return hf_tokenizer_keys(&h->config, directory, w, embed->dim[0], &found, err);
}

/* Without a configuration or weights, what is in the tokenizer's files is all there is to say. */
static int assemble_vocabulary(struct hf *h, struct gguf_writer *w, const char *directory, struct err *err)
{
    bool found = false;
    char *config = xasprintf("%s/config.json", directory), *name = base_name(directory);
    FILE *there = fopen(config, "re");
    int rc = there ? hf_config_open(&h->config, directory, err) : 0;
    if (rc == 0 && there)
        rc = hf_config_keys(&h->config, w, utf8_valid(name, strlen(name)) ? name : "model", err);
    if (there)
        fclose(there);
    free(config);
    free(name);
    if (rc || hf_tokenizer_keys(h->config.family ? &h->config : NULL, directory, w, 0, &found, err))
        return -1;
    return found ? 0 : err_set(err, "%s: neither tokenizer.json nor tokenizer.model is there", directory);
}

int hf_open(struct gguf **out, const char *directory, enum hf_need need, struct err *err)
{
    struct hf *h = xcalloc(1, sizeof(*h));
    struct gguf_writer *w = gguf_writer_new(directory);
    struct buffer header = {0};
    struct gguf_source source = source_of_hf;
    *out = NULL;
    source.context = h;
    pthread_mutex_init(&h->lock, NULL);
    int rc = need == HF_VOCABULARY                        ? assemble_vocabulary(h, w, directory, err)
             : hf_config_open(&h->config, directory, err) ? -1
                                                          : assemble(h, w, directory, err);
    if (rc == 0)
        rc = gguf_writer_header(w, &header, err);
    gguf_writer_free(&w);
    if (rc) {
        buffer_release(&header);
        source_close(h);
        return -1;
    }
    return gguf_assemble(out, &header, &source, directory, err);
}
