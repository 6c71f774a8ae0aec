#include "worker/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The tensor of a table row in the file, checked: 1 = found, 0 = absent and optional, -1 = error. */
static int find_tensor(const struct gguf *g, const struct model_params *p, const struct arch_tensor_row *row,
                       int64_t layer, const struct gguf_tensor **out, struct err *err)
{
    char name[128];
    if (layer < 0)
        snprintf(name, sizeof(name), "%s", row->name);
    else
        snprintf(name, sizeof(name), "blk.%lld.%s", (long long)layer, row->name);
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (!t) {
        if (row->optional)
            return 0;
        return err_set(err, "%s: tensor %s is missing", gguf_name(g), name);
    }
    int64_t rows = model_params_dim(p, row->rows), columns = model_params_dim(p, row->columns);
    bool vector = row->columns == DIM_NONE;
    if (vector && (t->ndim != 1 || t->dim[0] != rows))
        return err_set(err, "%s: tensor %s: expected a vector of %lld", gguf_name(g), name, (long long)rows);
    if (!vector && (t->ndim != 2 || t->dim[0] != rows || t->dim[1] != columns))
        return err_set(err, "%s: tensor %s is [%lld, %lld], expected [%lld, %lld]", gguf_name(g), name,
                       (long long)t->dim[0], (long long)(t->ndim > 1 ? t->dim[1] : 1), (long long)rows,
                       (long long)columns);
    if (t->dtype == DTYPE_I32 || (vector && dtype_info(t->dtype)->block_elements != 1))
        return err_set(err, "%s: tensor %s has type %s, which is not supported there", gguf_name(g), name,
                       dtype_info(t->dtype)->name);
    *out = t;
    return 1;
}

/* Puts `count` floats on the device. */
static int upload_floats(struct tensor *out, struct device *device, const float *values, int64_t count,
                         struct err *err)
{
    void *memory = device_alloc(device, (size_t)count * sizeof(float), err);
    if (!memory)
        return -1;
    *out = tensor_1d(device, DTYPE_F32, memory, count);
    struct stream *stream = NULL;
    if (stream_open(&stream, device, err))
        return -1;
    stream_upload(stream, memory, values, (size_t)count * sizeof(float));
    int result = stream_sync(stream, err);
    stream_close(&stream);
    return result;
}

static int load_tensor(struct model *m, struct model_tensor *out, const struct arch_tensor_row *row,
                       int64_t layer, struct err *err)
{
    const struct gguf_tensor *t = NULL;
    int found = find_tensor(m->gguf, &m->params, row, layer, &t, err);
    if (found <= 0)
        return found;
    if (row->columns == DIM_NONE) {
        float *values = xmalloc((size_t)t->dim[0] * sizeof(float));
        dtype_to_f32(t->dtype, gguf_tensor_data(m->gguf, t), values, (uint64_t)t->dim[0]);
        int result = upload_floats(&out->vector, m->device, values, t->dim[0], err);
        free(values);
        return result;
    }
    /* The mapping is read-only; weight_pack reads it or keeps it, and never writes. */
    struct tensor host =
        tensor_2d(NULL, t->dtype, (void *)(uintptr_t)gguf_tensor_data(m->gguf, t), t->dim[0], t->dim[1]);
    if (weight_pack(&out->weight, m->device, &host, err))
        return err_prefix(err, "%s: tensor %.*s", gguf_name(m->gguf), (int)t->name.size, t->name.data);
    return 0;
}

static bool row_wanted(const struct model_slice *s, int tensor, bool tied)
{
    if (tensor == TENSOR_TOKEN_EMBED)
        return s->embed || (s->head && tied);
    return s->head;
}

static int load_slice(struct model *m, struct err *err)
{
    const struct arch *a = m->params.arch;
    bool tied = !gguf_tensor_find(m->gguf, a->global[TENSOR_OUTPUT].name);
    for (int i = 0; i < a->global_count; i++)
        if (row_wanted(&m->slice, a->global[i].tensor, tied) &&
            load_tensor(m, &m->global[a->global[i].tensor], &a->global[i], -1, err))
            return -1;
    if (tied && m->slice.head) {
        m->global[TENSOR_OUTPUT].weight = m->global[TENSOR_TOKEN_EMBED].weight;
        m->global[TENSOR_OUTPUT].weight.owned = false; /* the embedding releases it */
    }
    for (int64_t layer = m->slice.first_layer; layer < m->slice.last_layer; layer++)
        for (int i = 0; i < a->layer_count; i++)
            if (load_tensor(m, &m->layer[layer - m->slice.first_layer][a->layer[i].tensor], &a->layer[i],
                            layer, err))
                return -1;
    return 0;
}

int model_open(struct model **out, const struct gguf *g, struct device *device,
               const struct model_slice *slice, struct err *err)
{
    *out = NULL;
    struct model *m = xcalloc(1, sizeof(*m));
    m->device = device;
    m->gguf = g;
    if (model_params_read(&m->params, g, err)) {
        free(m);
        return -1;
    }
    m->slice = slice ? *slice : (struct model_slice){0, m->params.layers, true, true};
    ASSERT(m->slice.first_layer >= 0 && m->slice.first_layer <= m->slice.last_layer &&
           m->slice.last_layer <= m->params.layers);
    m->layer = xcalloc((size_t)(m->slice.last_layer - m->slice.first_layer), sizeof(*m->layer));
    if (load_slice(m, err) || upload_floats(&m->rope_frequency, device, m->params.rope_frequencies,
                                            m->params.rope_length / 2, err)) {
        model_close(&m);
        return -1;
    }
    *out = m;
    return 0;
}

static void release_tensor(struct device *device, struct model_tensor *t)
{
    weight_release(&t->weight);
    device_free(device, t->vector.data);
}

void model_close(struct model **pm)
{
    if (!pm || !*pm)
        return;
    struct model *m = *pm;
    for (int i = 0; i < TENSOR_GLOBAL_COUNT; i++)
        release_tensor(m->device, &m->global[i]);
    for (int64_t layer = 0; layer < m->slice.last_layer - m->slice.first_layer; layer++)
        for (int i = 0; i < TENSOR_LAYER_COUNT; i++)
            release_tensor(m->device, &m->layer[layer][i]);
    free(m->layer);
    device_free(m->device, m->rope_frequency.data);
    model_params_release(&m->params);
    free(m);
    *pm = NULL;
}

int model_layer_bytes(const struct gguf *g, const struct model_params *p, int64_t layer, uint64_t *bytes,
                      struct err *err)
{
    *bytes = 0;
    for (int i = 0; i < p->arch->layer_count; i++) {
        const struct gguf_tensor *t = NULL;
        int found = find_tensor(g, p, &p->arch->layer[i], layer, &t, err);
        if (found < 0)
            return -1;
        if (found)
            *bytes += t->bytes;
    }
    return 0;
}

int model_head_bytes(const struct gguf *g, const struct model_params *p, uint64_t *bytes, struct err *err)
{
    const struct arch_tensor_row *row = &p->arch->global[TENSOR_OUTPUT];
    const struct gguf_tensor *t = NULL;
    int found = find_tensor(g, p, row, -1, &t, err);
    if (found == 0)
        found = find_tensor(g, p, &p->arch->global[TENSOR_TOKEN_EMBED], -1, &t, err);
    if (found < 0)
        return -1;
    *bytes = t->bytes;
    return 0;
}
