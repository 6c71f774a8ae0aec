/* kernels: checks every call once (shapes, types, devices; a mismatch is our bug) and calls the device's
 * table. No arithmetic happens here. */
#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

#include "kernels/device_ops.h"

/* ---- checks. Each is a macro over a predicate, so that ASSERT names the line of the operation. */

static bool is_tensor(const struct stream *s, const struct tensor *t, enum dtype dtype, int ndim)
{
    return t && t->device == s->device && t->dtype == dtype && t->ndim == ndim &&
           (t->data || tensor_elements(t) == 0);
}

static bool same_shape(const struct tensor *a, const struct tensor *b)
{
    if (a->ndim != b->ndim)
        return false;
    for (int i = 0; i < a->ndim; i++) {
        if (a->dim[i] != b->dim[i])
            return false;
    }
    return true;
}

/* F32 of any shape: the element-wise operations. */
static bool is_floats(const struct stream *s, const struct tensor *t)
{
    return is_tensor(s, t, DTYPE_F32, t->ndim);
}

static bool is_weight(const struct stream *s, const struct weight *w)
{
    return w->packed && w->stored.device == s->device && w->stored.ndim == 2;
}

static bool is_empty(const struct tensor *t)
{
    return tensor_elements(t) == 0;
}

#define CALL(s, entry, ...)                      \
    do {                                         \
        ASSERT((s)->device->ops->entry);         \
        (s)->device->ops->entry(s, __VA_ARGS__); \
    } while (0)

/* ---- weights */

int weight_pack(struct weight *out, struct device *device, const struct tensor *host, struct err *err)
{
    return weight_pack_watched(out, device, host, NULL, err);
}

int weight_pack_watched(struct weight *out, struct device *device, const struct tensor *host,
                        const struct weight_watch *watch, struct err *err)
{
    ASSERT(host->data && host->ndim == 2 && host->dim[0] > 0 && host->dim[1] > 0);
    ASSERT(host->dtype != DTYPE_I32);
    ASSERT(device->ops->pack);
    memset(out, 0, sizeof(*out));
    return device->ops->pack(out, device, host, watch, err);
}

void weight_release(struct weight *w)
{
    if (!w)
        return;
    if (w->owned)
        device_free(w->stored.device, w->packed);
    memset(w, 0, sizeof(*w));
}

void kernel_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                   const struct tensor *bias)
{
    struct matmul_output output = {out, w, bias};
    kernel_matmul_each(s, x, &output, 1);
}

void kernel_matmul_each(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    struct matmul_output checked[MATMUL_OUTPUTS];
    ASSERT(count >= 1 && count <= MATMUL_OUTPUTS && is_tensor(s, x, DTYPE_F32, 2));
    for (int i = 0; i < count; i++) {
        struct matmul_output *o = &checked[i];
        *o = outputs[i];
        o->bias = o->bias && o->bias->data ? o->bias : NULL;
        ASSERT(is_weight(s, o->w) && is_tensor(s, o->out, DTYPE_F32, 2));
        ASSERT(o->out->dim[0] == x->dim[0] && o->out->dim[1] == o->w->stored.dim[0]);
        ASSERT(x->dim[1] == o->w->stored.dim[1] && o->out->dim[1] > 0);
        ASSERT(!o->bias || (is_tensor(s, o->bias, DTYPE_F32, 1) && o->bias->dim[0] == o->out->dim[1]));
    }
    if (x->dim[0] > 0)
        CALL(s, matmul, x, checked, count);
}

void kernel_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                              const struct weight *w)
{
    ASSERT(is_weight(s, w) && is_tensor(s, dx, DTYPE_F32, 2) && is_tensor(s, dy, DTYPE_F32, 2));
    ASSERT(dx->dim[0] == dy->dim[0] && dx->dim[1] == w->stored.dim[1] && dy->dim[1] == w->stored.dim[0]);
    if (!is_empty(dx))
        CALL(s, matmul_transposed, dx, dy, w);
}

/* ---- rows */

void kernel_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids)
{
    ASSERT(is_weight(s, table) && is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, ids, DTYPE_I32, 1));
    ASSERT(out->dim[0] == ids->dim[0] && out->dim[1] == table->stored.dim[1]);
    if (!is_empty(out))
        CALL(s, embed, out, table, ids);
}

void kernel_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                    float eps)
{
    ASSERT(is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, x, DTYPE_F32, 2) && same_shape(out, x));
    ASSERT(is_tensor(s, gain, DTYPE_F32, 1) && gain->dim[0] == x->dim[1]);
    if (!is_empty(out))
        CALL(s, rmsnorm, out, x, gain, eps);
}

void kernel_add(struct stream *s, struct tensor *x, const struct tensor *y)
{
    ASSERT(is_floats(s, x) && is_floats(s, y) && same_shape(x, y));
    if (!is_empty(x))
        CALL(s, add, x, y);
}

void kernel_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x,
                        const struct tensor *rows)
{
    ASSERT(is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, x, DTYPE_F32, 2));
    ASSERT(is_tensor(s, rows, DTYPE_I32, 1) && out->dim[0] == rows->dim[0] && out->dim[1] == x->dim[1]);
    if (!is_empty(out))
        CALL(s, gather_rows, out, x, rows);
}

void kernel_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                      const struct tensor *bias, float eps)
{
    ASSERT(is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, x, DTYPE_F32, 2) && same_shape(out, x));
    ASSERT(is_tensor(s, gain, DTYPE_F32, 1) && gain->dim[0] == x->dim[1]);
    const struct tensor *added = bias && bias->data ? bias : NULL;
    if (added)
        ASSERT(is_tensor(s, added, DTYPE_F32, 1) && added->dim[0] == x->dim[1]);
    if (!is_empty(out))
        CALL(s, layernorm, out, x, gain, added, eps);
}

void kernel_scale(struct stream *s, struct tensor *x, float factor)
{
    ASSERT(is_floats(s, x));
    if (!is_empty(x))
        CALL(s, scale, x, factor);
}

void kernel_softcap(struct stream *s, struct tensor *x, float cap)
{
    ASSERT(is_floats(s, x) && cap > 0);
    if (!is_empty(x))
        CALL(s, softcap, x, cap);
}

void kernel_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                     enum activation f)
{
    ASSERT(is_floats(s, out) && is_floats(s, gate) && same_shape(out, gate));
    ASSERT(f == ACTIVATION_SILU || f == ACTIVATION_GELU_TANH);
    if (up)
        ASSERT(is_floats(s, up) && same_shape(out, up));
    if (!is_empty(out))
        CALL(s, activate, out, gate, up, f);
}

void kernel_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts)
{
    ASSERT(is_floats(s, out) && is_floats(s, parts) && parts->ndim >= 2 && parts->dim[0] > 0);
    ASSERT(tensor_elements(parts) == parts->dim[0] * tensor_elements(out));
    if (!is_empty(out))
        CALL(s, sum_ranks, out, parts);
}

void kernel_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
                 const struct tensor *frequency, enum rope_pairs pairs, float magnitude)
{
    ASSERT(is_tensor(s, x, DTYPE_F32, 3) && is_tensor(s, positions, DTYPE_I32, 1));
    ASSERT(is_tensor(s, frequency, DTYPE_F32, 1) && frequency->dim[0] * 2 <= x->dim[2]);
    ASSERT(positions->dim[0] == x->dim[0] && (pairs == ROPE_INTERLEAVED || pairs == ROPE_HALVES));
    if (!is_empty(x))
        CALL(s, rope, x, positions, frequency, pairs, magnitude);
}

/* ---- attention */

static bool is_view(const struct stream *s, const struct seq_view *view, int64_t rows)
{
    if (!is_tensor(s, &view->row_begin, DTYPE_I32, 1) || view->row_begin.dim[0] < 1 ||
        !is_tensor(s, &view->positions, DTYPE_I32, 1) || view->positions.dim[0] != rows)
        return false;
    if (!view->page_table.data) /* packed documents */
        return true;
    return is_tensor(s, &view->page_table, DTYPE_I32, 2) && view->page_tokens > 0 &&
           is_tensor(s, &view->slots, DTYPE_I32, 1) && view->slots.dim[0] == view->row_begin.dim[0] - 1;
}

static bool is_pages(const struct stream *s, const struct tensor *pages, const struct seq_view *view)
{
    return kernel_kv_available(s->device, pages->dtype, pages->dim[3]) &&
           is_tensor(s, pages, pages->dtype, 4) && pages->dim[1] == view->page_tokens;
}

void kernel_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                     const struct tensor *v, const struct seq_view *view)
{
    ASSERT(is_tensor(s, k, DTYPE_F32, 3) && is_tensor(s, v, DTYPE_F32, 3) && same_shape(k, v));
    ASSERT(view->page_table.data && is_view(s, view, k->dim[0]));
    ASSERT(is_pages(s, k_pages, view) && is_pages(s, v_pages, view) && same_shape(k_pages, v_pages));
    ASSERT(k_pages->dtype == v_pages->dtype);
    ASSERT(k_pages->dim[2] == k->dim[1] && k_pages->dim[3] == k->dim[2]);
    if (!is_empty(k))
        CALL(s, kv_store, k_pages, v_pages, k, v, view);
}

void kernel_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct seq_view *view,
                      const struct attention_options *options)
{
    ASSERT(is_tensor(s, out, DTYPE_F32, 3) && is_tensor(s, q, DTYPE_F32, 3) && same_shape(out, q));
    ASSERT(is_view(s, view, q->dim[0]) && same_shape(k, v) && k->dtype == v->dtype);
    if (view->page_table.data)
        ASSERT(is_pages(s, k, view) && is_pages(s, v, view));
    else
        ASSERT(is_tensor(s, k, DTYPE_F32, 3) && is_tensor(s, v, DTYPE_F32, 3) && k->dim[0] == q->dim[0]);
    int64_t kv_heads = k->dim[k->ndim - 2];
    ASSERT(k->dim[k->ndim - 1] == q->dim[2] && kv_heads > 0 && q->dim[1] % kv_heads == 0);
    ASSERT(options->softcap >= 0 && options->window >= 0);
    if (!is_empty(out))
        CALL(s, attention, out, q, k, v, view, options);
}

void kernel_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves)
{
    ASSERT(pages->device == s->device && pages->data && pages->ndim >= 1);
    ASSERT(is_tensor(s, moves, DTYPE_I32, 2) && moves->dim[1] == 2);
    if (!is_empty(moves))
        CALL(s, move_pages, pages, moves);
}

/* ---- experts */

void kernel_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
                  bool renormalise)
{
    ASSERT(is_tensor(s, ids, DTYPE_I32, 2) && is_tensor(s, weights, DTYPE_F32, 2) &&
           same_shape(ids, weights));
    ASSERT(is_tensor(s, logits, DTYPE_F32, 2) && logits->dim[0] == ids->dim[0]);
    ASSERT(ids->dim[1] >= 1 && ids->dim[1] <= logits->dim[1] && logits->dim[1] <= INT32_MAX);
    if (!is_empty(ids))
        CALL(s, route, ids, weights, logits, renormalise);
}

void kernel_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x,
                          const struct weight *w, const struct tensor *ids)
{
    ASSERT(is_weight(s, w) && is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, x, DTYPE_F32, 2));
    ASSERT(is_tensor(s, ids, DTYPE_I32, 2) && out->dim[0] == tensor_elements(ids));
    ASSERT(x->dim[0] == ids->dim[0] || x->dim[0] == out->dim[0]);
    ASSERT(x->dim[1] == w->stored.dim[1] && out->dim[1] > 0 && w->stored.dim[0] % out->dim[1] == 0);
    if (!is_empty(out))
        CALL(s, expert_matmul, out, x, w, ids);
}

void kernel_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                       const struct tensor *weights)
{
    ASSERT(is_tensor(s, out, DTYPE_F32, 2) && is_tensor(s, parts, DTYPE_F32, 2));
    ASSERT(is_tensor(s, weights, DTYPE_F32, 2) && weights->dim[0] == out->dim[0] && weights->dim[1] >= 1);
    ASSERT(parts->dim[0] == tensor_elements(weights) && parts->dim[1] == out->dim[1]);
    if (!is_empty(out))
        CALL(s, expert_sum, out, parts, weights);
}

/* ---- sampling */

void kernel_sample(struct stream *s, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                   const struct tensor *history, const struct sample_extra *extra)
{
    static const struct sample_extra none;
    ASSERT(is_tensor(s, ids, DTYPE_I32, 1) && is_tensor(s, logits, DTYPE_F32, 2));
    ASSERT(ids->dim[0] == logits->dim[0] && logits->dim[1] > 0 && logits->dim[1] <= INT32_MAX);
    ASSERT(is_tensor(s, history, DTYPE_I32, 2));
    if (is_empty(ids))
        return;
    ASSERT(rows);
    CALL(s, sample, ids, logits, rows, history, extra ? extra : &none);
}

void kernel_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                       const struct tensor *targets)
{
    ASSERT(is_tensor(s, nll, DTYPE_F32, 1) && is_tensor(s, logits, DTYPE_F32, 2));
    ASSERT(is_tensor(s, targets, DTYPE_I32, 1) && same_shape(nll, targets));
    ASSERT(nll->dim[0] == logits->dim[0] && logits->dim[1] > 0);
    if (!is_empty(nll))
        CALL(s, token_loss, nll, logits, targets);
}

/* ---- the device's side */

/* One row per operation: its name, where it stands in the table, and whether serving needs it. */
static const struct {
    const char *name;
    size_t offset;
    bool serving;
} OPERATIONS[KERNEL_OP_COUNT] = {
    [KERNEL_MATMUL] = {"matmul", offsetof(struct device_ops, matmul), true},
    [KERNEL_MATMUL_TRANSPOSED] = {"matmul_transposed", offsetof(struct device_ops, matmul_transposed), false},
    [KERNEL_EMBED] = {"embed", offsetof(struct device_ops, embed), true},
    [KERNEL_RMSNORM] = {"rmsnorm", offsetof(struct device_ops, rmsnorm), true},
    [KERNEL_ADD] = {"add", offsetof(struct device_ops, add), true},
    [KERNEL_GATHER_ROWS] = {"gather_rows", offsetof(struct device_ops, gather_rows), true},
    [KERNEL_ACTIVATE] = {"activate", offsetof(struct device_ops, activate), true},
    [KERNEL_SUM_RANKS] = {"sum_ranks", offsetof(struct device_ops, sum_ranks), true},
    [KERNEL_ROPE] = {"rope", offsetof(struct device_ops, rope), true},
    [KERNEL_KV_STORE] = {"kv_store", offsetof(struct device_ops, kv_store), true},
    [KERNEL_ATTENTION] = {"attention", offsetof(struct device_ops, attention), true},
    [KERNEL_MOVE_PAGES] = {"move_pages", offsetof(struct device_ops, move_pages), true},
    [KERNEL_SAMPLE] = {"sample", offsetof(struct device_ops, sample), true},
    [KERNEL_TOKEN_LOSS] = {"token_loss", offsetof(struct device_ops, token_loss), false},
    [KERNEL_LAYERNORM] = {"layernorm", offsetof(struct device_ops, layernorm), false},
    [KERNEL_SCALE] = {"scale", offsetof(struct device_ops, scale), false},
    [KERNEL_SOFTCAP] = {"softcap", offsetof(struct device_ops, softcap), false},
    [KERNEL_ROUTE] = {"route", offsetof(struct device_ops, route), false},
    [KERNEL_EXPERT_MATMUL] = {"expert_matmul", offsetof(struct device_ops, expert_matmul), false},
    [KERNEL_EXPERT_SUM] = {"expert_sum", offsetof(struct device_ops, expert_sum), false},
};

const char *kernel_op_name(enum kernel_op op)
{
    ASSERT((unsigned)op < KERNEL_OP_COUNT);
    return OPERATIONS[op].name;
}

bool kernel_available(const struct device *device, enum kernel_op op)
{
    ASSERT((unsigned)op < KERNEL_OP_COUNT);
    void (*entry)(void);
    memcpy(&entry, (const char *)device->ops + OPERATIONS[op].offset, sizeof(entry));
    return entry != NULL;
}

bool kernel_kv_available(const struct device *device, enum dtype dtype, int64_t head_length)
{
    bool known = dtype == DTYPE_F32 || dtype == DTYPE_F16 || (device->ops->kv_types >> dtype & 1);
    return known && head_length % dtype_info(dtype)->block_elements == 0;
}

int kernels_kv_supported(const struct device *device, enum dtype dtype, int64_t head_length, struct err *err)
{
    const char *name = dtype_info(dtype)->name;
    if (kernel_kv_available(device, dtype, head_length))
        return 0;
    if (kernel_kv_available(device, dtype, dtype_info(dtype)->block_elements))
        return err_set(err, "kv_type %s: heads of %lld elements, expected a multiple of %u", name,
                       (long long)head_length, dtype_info(dtype)->block_elements);
    return err_set(err, "kv_type %s: %s (%s) has no attention over such pages, expected f32 or f16", name,
                   device->name, device->kernel_set);
}

int kernels_supported(const struct device *device, uint32_t more, struct err *err)
{
    _Static_assert(KERNEL_OP_COUNT <= 32, "a bit for every operation");
    char missing[400] = "";
    size_t used = 0;
    for (int op = 0; op < KERNEL_OP_COUNT; op++) {
        bool needed = OPERATIONS[op].serving || (more >> op & 1);
        if (needed && !kernel_available(device, (enum kernel_op)op))
            used += (size_t)snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? ", " : "",
                                     OPERATIONS[op].name);
        ASSERT(used < sizeof(missing));
    }
    if (used == 0)
        return 0;
    return err_set(err, "%s (%s) cannot serve a model: it lacks %s", device->name, device->kernel_set,
                   missing);
}
