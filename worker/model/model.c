#include "worker/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where a table row's elements lie in the file. */
struct place {
    const struct gguf_tensor *tensor;
    int64_t first, rows, columns; /* rows [first, first + rows) of the tensor seen as a matrix */
    bool each;                    /* spread over one tensor for each expert, of which `tensor` is the first */
};

/* What of a place this rank holds: of each of `matrices` (experts, or one) some rows and columns. */
struct cut {
    int64_t matrices;
    struct slice_run rows, columns;
};

static void tensor_name(char out[128], const char *name, int64_t layer)
{
    if (layer < 0)
        snprintf(out, 128, "%s", name);
    else
        snprintf(out, 128, "blk.%lld.%s", (long long)layer, name);
}

/* Rows of a table that follow each other under one name share a tensor: where this row's part begins and how
 * long the whole is. */
static void row_part(const struct model_params *p, const struct arch_tensor_row *table, int count, int at,
                     int64_t *first, int64_t *total)
{
    *first = *total = 0;
    for (int i = 0; i < count; i++) {
        if (strcmp(table[i].name, table[at].name) != 0)
            continue;
        if (i < at)
            *first += model_params_dim(p, table[i].rows);
        *total += model_params_dim(p, table[i].rows);
    }
}

static int check_tensor(const struct gguf *g, const struct gguf_tensor *t, const char *name, int ndim,
                        const int64_t *dim, struct err *err)
{
    bool same = t->ndim == ndim;
    char found[80] = "", expected[80] = "";
    for (int i = 0; i < ndim; i++)
        same = same && t->dim[i] == dim[i];
    for (int i = 0; i < t->ndim; i++)
        snprintf(found + strlen(found), sizeof(found) - strlen(found), "%s%lld", i ? ", " : "",
                 (long long)t->dim[i]);
    for (int i = 0; i < ndim; i++)
        snprintf(expected + strlen(expected), sizeof(expected) - strlen(expected), "%s%lld", i ? ", " : "",
                 (long long)dim[i]);
    if (!same)
        return err_set(err, "%s: tensor %s is [%s], expected [%s]", gguf_name(g), name, found, expected);
    if (t->dtype == DTYPE_I32 || (ndim == 1 && dtype_info(t->dtype)->block_elements != 1))
        return err_set(err, "%s: tensor %s has type %s, which is not supported there", gguf_name(g), name,
                       dtype_info(t->dtype)->name);
    return 0;
}

/* The tensor of expert e in a file that keeps one for each; NULL when absent. */
static const struct gguf_tensor *expert_tensor(const struct gguf *g, const struct arch_tensor_row *row,
                                               int64_t layer, int e, char name[128])
{
    char suffix[64];
    snprintf(suffix, sizeof(suffix), row->each, e);
    tensor_name(name, suffix, layer);
    return gguf_tensor_find(g, name);
}

/* The same place in a file that keeps a tensor for each expert: all there, of one shape and type. */
static int find_each(const struct gguf *g, const struct model_params *p, const struct arch_tensor_row *row,
                     int64_t layer, struct place *out, struct err *err)
{
    int64_t dim[2] = {model_params_dim(p, row->rows), model_params_dim(p, row->columns)};
    const struct gguf_tensor *first = NULL;
    for (int e = 0; e < p->experts; e++) {
        char name[128];
        const struct gguf_tensor *t = expert_tensor(g, row, layer, e, name);
        if (!t)
            return err_set(err, "%s: tensor %s is missing", gguf_name(g), name);
        if (check_tensor(g, t, name, 2, dim, err))
            return -1;
        first = first ? first : t;
        if (t->dtype != first->dtype)
            return err_set(err, "%s: tensor %s has type %s, expected %s as its first expert has",
                           gguf_name(g), name, dtype_info(t->dtype)->name, dtype_info(first->dtype)->name);
    }
    *out = (struct place){.tensor = first, .rows = p->experts * dim[0], .columns = dim[1], .each = true};
    return 1;
}

/* The place of table[at] in the file, checked: 1 = found, 0 = absent and may be, -1 = error. */
static int find_tensor(const struct gguf *g, const struct model_params *p,
                       const struct arch_tensor_row *table, int count, int at, int64_t layer,
                       struct place *out, struct err *err)
{
    const struct arch_tensor_row *row = &table[at];
    char name[128];
    int64_t first, total, columns = model_params_dim(p, row->columns);
    int expected = model_params_expects(p, row);
    tensor_name(name, row->name, layer);
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (expected < 0)
        return 0; /* and not in the file: arch_check_tensors */
    char first_expert[128];
    if (!t && row->stacked && expert_tensor(g, row, layer, 0, first_expert))
        return find_each(g, p, row, layer, out, err);
    if (!t)
        return expected ? err_set(err, "%s: tensor %s is missing", gguf_name(g), name) : 0;
    row_part(p, table, count, at, &first, &total);
    int64_t matrix[] = {total, columns}, stack[] = {p->experts, total, columns};
    int ndim = row->stacked ? 3 : row->columns == DIM_NONE ? 1 : 2;
    if (check_tensor(g, t, name, ndim, row->stacked ? stack : matrix, err))
        return -1;
    *out = (struct place){
        .tensor = t, .first = first, .rows = model_params_dim(p, row->rows), .columns = columns};
    if (row->stacked)
        out->rows *= p->experts;
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

/* Bytes of a row of a place's tensor. */
static uint64_t row_bytes(const struct place *at)
{
    uint64_t bytes = 0;
    int rc = dtype_row_bytes(at->tensor->dtype, (uint64_t)at->columns, &bytes);
    ASSERT(rc == 0); /* gguf checked it */
    return bytes;
}

static struct cut cut_of(const struct model *m, const struct arch_tensor_row *row, int tensor)
{
    return (struct cut){.matrices = row->stacked ? m->params.experts : 1,
                        .rows = slice_run(&m->part, &m->params, tensor, row->rows),
                        .columns = slice_run(&m->part, &m->params, tensor, row->columns)};
}

static int load_vector(struct model *m, struct model_tensor *out, const struct place *at,
                       const struct cut *cut, struct err *err)
{
    uint32_t bytes = dtype_info(at->tensor->dtype)->block_bytes;
    float *values = xmalloc((size_t)cut->rows.count * sizeof(float));
    dtype_to_f32(at->tensor->dtype,
                 (const char *)gguf_tensor_data(m->gguf, at->tensor) +
                     (uint64_t)(at->first + cut->rows.first) * bytes,
                 values, (uint64_t)cut->rows.count);
    int result = upload_floats(&out->vector, m->device, values, cut->rows.count, err);
    free(values);
    return result;
}

/* The bytes of a cut as `weight` wants them: row after row, matrix after matrix. Where they do not lie so in
 * the file they are gathered into memory of *own. */
static const void *cut_data(const struct model *m, const struct place *at, const struct arch_tensor_row *row,
                            const struct cut *cut, int64_t layer, void **own)
{
    const char *data = gguf_tensor_data(m->gguf, at->tensor);
    int64_t rows = at->rows / cut->matrices;
    uint64_t matrix_bytes = (uint64_t)rows * row_bytes(at);
    bool whole_rows = cut->columns.count == at->columns;
    if (!at->each && whole_rows && (cut->matrices == 1 || cut->rows.count == rows))
        return data + (uint64_t)(at->first + cut->rows.first) * row_bytes(at);
    uint64_t cut_bytes = 0;
    int rc = dtype_row_bytes(at->tensor->dtype, (uint64_t)cut->columns.count, &cut_bytes);
    ASSERT(rc == 0); /* slice_part cuts at block borders */
    char *to = *own = xmalloc(cut_bytes * (uint64_t)(cut->matrices * cut->rows.count));
    data += (uint64_t)at->first * row_bytes(at);
    for (int64_t i = 0; i < cut->matrices; i++) {
        char name[128];
        const struct gguf_tensor *t =
            at->each ? expert_tensor(m->gguf, row, layer, (int)i, name) : at->tensor;
        const char *from = at->each ? gguf_tensor_data(m->gguf, t) : data + (uint64_t)i * matrix_bytes;
        to = slice_copy(to, t->dtype, from, at->columns, cut->rows, cut->columns);
        if (at->each)
            gguf_tensor_drop(m->gguf, t);
    }
    return *own;
}

/* The check of what is not read in one pass: vectors, what is gathered or cut. Rows that share a tensor
 * have it checked with the first of them. */
static int check_place(const struct model *m, const struct place *at, const struct arch_tensor_row *row,
                       int64_t layer, struct err *err)
{
    const struct model_check *c = &m->check;
    if (!c->tensor || at->first != 0)
        return 0;
    for (int e = 0; at->each && e < m->params.experts; e++) {
        char name[128];
        if (c->tensor(c->context, m->gguf, expert_tensor(m->gguf, row, layer, e, name), err))
            return -1;
    }
    return at->each ? 0 : c->tensor(c->context, m->gguf, at->tensor, err);
}

static bool checked_before(const struct model *m, const struct place *at)
{
    return at->each || m->part.width > 1;
}

/* A matrix on its way from the file to the device. */
struct reading {
    const struct model_check *check;
    uint64_t begin, row_bytes; /* of its first row in the tensor; of each row */
};

static void see_rows(void *context, int64_t begin, int64_t end, int member)
{
    const struct reading *r = context;
    r->check->read(r->check->context, r->begin + (uint64_t)begin * r->row_bytes,
                   r->begin + (uint64_t)end * r->row_bytes, member);
}

static int pack_failed(const struct model *m, const struct gguf_tensor *t, struct err *err)
{
    return err_prefix(err, "%s: tensor %.*s", gguf_name(m->gguf), (int)t->name.size, t->name.data);
}

/* Packs `host`, rows of the file's tensor `t` from byte `begin` on, and checks them in the same pass. */
static int pack_checked(struct model *m, struct weight *out, const struct tensor *host,
                        const struct gguf_tensor *t, uint64_t begin, struct err *err)
{
    const struct model_check *c = &m->check;
    struct reading r = {.check = c, .begin = begin, .row_bytes = tensor_bytes(host) / (uint64_t)host->dim[0]};
    struct weight_watch watch = {.rows = see_rows, .context = &r};
    if (c->tensor)
        c->begin(c->context, m->gguf, t, begin, device_threads(m->device));
    if (weight_pack_watched(out, m->device, host, c->tensor ? &watch : NULL, err))
        return pack_failed(m, t, err);
    return c->tensor ? c->end(c->context, err) : 0;
}

/* What lies in the file as the device wants it is checked in the pass that packs it; what is gathered, or is
 * a tensor slot's part, was checked before. */
static int load_matrix(struct model *m, struct model_tensor *out, const struct place *at,
                       const struct arch_tensor_row *row, const struct cut *cut, int64_t layer,
                       struct err *err)
{
    const struct gguf_tensor *t = at->tensor;
    uint64_t begin = (uint64_t)at->first * row_bytes(at);
    if (!at->each)
        gguf_tensor_ask(m->gguf, t);
    /* The mapping is read-only; weight_pack reads it or keeps it, and never writes. */
    const void *data = cut_data(m, at, row, cut, layer, &out->gathered);
    struct tensor host = tensor_2d(NULL, t->dtype, (void *)(uintptr_t)data, cut->matrices * cut->rows.count,
                                   cut->columns.count);
    if (checked_before(m, at) ? weight_pack(&out->weight, m->device, &host, err) && pack_failed(m, t, err)
                              : pack_checked(m, &out->weight, &host, t, begin, err))
        return -1;
    if (out->weight.packed != data) { /* the device has a copy of its own */
        free(out->gathered);
        out->gathered = NULL;
        if (!checked_before(m, at) && begin + tensor_bytes(&host) == t->bytes) /* the last that share it */
            gguf_tensor_drop(m->gguf, t);
    }
    return 0;
}

/* Loads what table[row] names as `tensor`: the row's own, or the output matrix from the token embedding. */
static int load_tensor(struct model *m, struct model_tensor *tensors, const struct arch_tensor_row *table,
                       int count, int row, int tensor, int64_t layer, struct err *err)
{
    struct place at;
    struct model_tensor *out = &tensors[tensor];
    int found = find_tensor(m->gguf, &m->params, table, count, row, layer, &at, err);
    if (found <= 0)
        return found;
    bool vector = table[row].columns == DIM_NONE;
    if ((vector || checked_before(m, &at)) && check_place(m, &at, &table[row], layer, err))
        return -1;
    struct cut cut = cut_of(m, &table[row], tensor);
    return vector ? load_vector(m, out, &at, &cut, err)
                  : load_matrix(m, out, &at, &table[row], &cut, layer, err);
}

static bool row_wanted(const struct model *m, int tensor, bool tied)
{
    const struct model_slice *s = &m->slice;
    switch (tensor) {
    case TENSOR_TOKEN_EMBED:
        return s->embed || (s->head && tied && m->part.width == 1);
    case TENSOR_POSITION_EMBED:
        return s->embed;
    case TENSOR_ROPE_DIVISORS: /* these are in the frequencies already */
    case TENSOR_ROPE_LONG:
    case TENSOR_ROPE_SHORT:
        return false;
    default:
        return s->head;
    }
}

/* The tensors that went into the rotary frequencies, on every rank. */
static int check_divisors(const struct model *m, struct err *err)
{
    static const enum arch_tensor all[] = {TENSOR_ROPE_DIVISORS, TENSOR_ROPE_LONG, TENSOR_ROPE_SHORT};
    for (size_t i = 0; i < ARRAY_LEN(all) && m->check.tensor; i++) {
        const struct arch_tensor_row *row = arch_global(m->params.arch, all[i]);
        const struct gguf_tensor *t = row ? gguf_tensor_find(m->gguf, row->name) : NULL;
        if (t && m->check.tensor(m->check.context, m->gguf, t, err))
            return -1;
    }
    return 0;
}

/* The output matrix of a model without one: the token embedding itself, or this slot's rows of it. */
static int load_tied_output(struct model *m, struct err *err)
{
    const struct arch *a = m->params.arch;
    int row = (int)(arch_global(a, TENSOR_TOKEN_EMBED) - a->global);
    if (m->part.width > 1)
        return load_tensor(m, m->global, a->global, a->global_count, row, TENSOR_OUTPUT, -1, err);
    m->global[TENSOR_OUTPUT].weight = m->global[TENSOR_TOKEN_EMBED].weight;
    m->global[TENSOR_OUTPUT].weight.owned = false; /* the embedding releases it */
    return 0;
}

static void tell_loaded(const struct model *m, int64_t done)
{
    const struct model_slice *s = &m->slice;
    if (s->loaded)
        s->loaded(s->loaded_context, done, 1 + s->last_layer - s->first_layer);
}

static int load_slice(struct model *m, struct err *err)
{
    const struct arch *a = m->params.arch;
    bool tied = !gguf_tensor_find(m->gguf, arch_global(a, TENSOR_OUTPUT)->name);
    if (check_divisors(m, err))
        return -1;
    for (int i = 0; i < a->global_count; i++)
        if (row_wanted(m, a->global[i].tensor, tied) &&
            load_tensor(m, m->global, a->global, a->global_count, i, a->global[i].tensor, -1, err))
            return -1;
    if (tied && m->slice.head && load_tied_output(m, err))
        return -1;
    tell_loaded(m, 1);
    for (int64_t layer = m->slice.first_layer; layer < m->slice.last_layer; layer++) {
        for (int i = 0; i < a->layer_count; i++)
            if (!slice_leaves_out(&m->part, a->layer[i].tensor) &&
                load_tensor(m, m->layer[layer - m->slice.first_layer], a->layer, a->layer_count, i,
                            a->layer[i].tensor, layer, err))
                return -1;
        tell_loaded(m, 2 + layer - m->slice.first_layer);
    }
    return 0;
}

int model_open(struct model **out, const struct gguf *g, struct device *device,
               const struct model_slice *slice, struct err *err)
{
    return model_open_checked(out, g, device, slice, NULL, err);
}

int model_open_checked(struct model **out, const struct gguf *g, struct device *device,
                       const struct model_slice *slice, const struct model_check *check, struct err *err)
{
    *out = NULL;
    struct model *m = xcalloc(1, sizeof(*m));
    if (check)
        m->check = *check;
    m->device = device;
    m->gguf = g;
    if (model_params_read_for(&m->params, g, slice ? slice->context : 0, err)) {
        free(m);
        return -1;
    }
    m->slice =
        slice ? *slice : (struct model_slice){.last_layer = m->params.layers, .embed = true, .head = true};
    ASSERT(m->slice.first_layer >= 0 && m->slice.first_layer <= m->slice.last_layer &&
           m->slice.last_layer <= m->params.layers);
    m->layer = xcalloc((size_t)(m->slice.last_layer - m->slice.first_layer), sizeof(*m->layer));
    struct slice_blocks blocks = slice_blocks(&m->params, g);
    if (slice_part(&m->part, &m->params, &blocks, m->slice.width ? m->slice.width : 1, m->slice.slot, err) ||
        load_slice(m, err) ||
        (m->params.rope_length && upload_floats(&m->rope_frequency, device, m->params.rope_frequencies,
                                                m->params.rope_length / 2, err))) {
        model_close(&m);
        return -1;
    }
    m->check = (struct model_check){0};
    *out = m;
    return 0;
}

static void release_tensor(struct device *device, struct model_tensor *t)
{
    weight_release(&t->weight);
    device_free(device, t->vector.data);
    free(t->gathered);
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
    const struct arch *a = p->arch;
    *bytes = 0;
    for (int i = 0; i < a->layer_count; i++) {
        struct place at;
        int found = find_tensor(g, p, a->layer, a->layer_count, i, layer, &at, err);
        if (found < 0)
            return -1;
        if (!found)
            continue;
        uint64_t all = (uint64_t)at.rows * row_bytes(&at);
        *bytes += a->layer[i].stacked ? all / (uint64_t)p->experts * (uint64_t)p->experts_used : all;
    }
    return 0;
}

int model_head_bytes(const struct gguf *g, const struct model_params *p, uint64_t *bytes, struct err *err)
{
    const struct arch *a = p->arch;
    struct place at;
    bool tied = !gguf_tensor_find(g, arch_global(a, TENSOR_OUTPUT)->name);
    int row = (int)(arch_global(a, tied ? TENSOR_TOKEN_EMBED : TENSOR_OUTPUT) - a->global);
    if (find_tensor(g, p, a->global, a->global_count, row, -1, &at, err) < 0)
        return -1;
    *bytes = (uint64_t)at.rows * row_bytes(&at);
    return 0;
}
