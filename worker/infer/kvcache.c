#include "worker/infer/kvcache.h"

#include <stdlib.h>

/* Bytes of one layer's K (or V) in one page. */
static uint64_t half_page_bytes(const struct model_params *params, int32_t page_tokens, enum dtype dtype)
{
    uint64_t row = 0;
    int fits = dtype_row_bytes(dtype, (uint64_t)(params->kv_heads * params->head_length), &row);
    ASSERT(fits == 0);
    return row * (uint64_t)page_tokens;
}

uint64_t kv_page_bytes(const struct model_params *params, int64_t layers, int32_t page_tokens,
                       enum dtype dtype)
{
    return 2 * (uint64_t)layers * half_page_bytes(params, page_tokens, dtype);
}

static int open_memory(struct kv_pool *p, const struct model *model, struct err *err)
{
    const struct kv_pool_options *o = &p->options;
    struct model_params local = model->params;
    const struct model_params *params = &local;
    local.kv_heads = model->part.kv_heads.count; /* a tensor slot keeps the pages of its own heads */
    uint64_t half = half_page_bytes(params, o->page_tokens, o->dtype) * (uint64_t)o->pages, total;
    if (!checked_mul_u64(half, 2 * (uint64_t)(p->layers ? p->layers : 1), &total))
        return err_set(err, "KV cache of %d pages does not fit 64 bits", o->pages);
    if (!(p->memory = device_alloc(p->device, total, err)))
        return err_prefix(err, "KV cache of %d pages", o->pages);
    size_t table = (size_t)o->slots * (size_t)o->pages_per_sequence * sizeof(int32_t);
    void *device_table = device_alloc(p->device, table, err);
    if (!device_table)
        return -1;
    p->table = tensor_2d(p->device, DTYPE_I32, device_table, o->slots, o->pages_per_sequence);
    p->host_table = xcalloc(1, table);
    p->move_memory = device_alloc(p->device, (size_t)p->max_moves * 2 * sizeof(int32_t), err);
    if (!p->move_memory)
        return -1;
    p->layer = xcalloc((size_t)p->layers, sizeof(*p->layer));
    char *next = p->memory;
    for (int64_t l = 0; l < p->layers; l++, next += 2 * half) {
        p->layer[l].k = tensor_4d(p->device, o->dtype, next, o->pages, o->page_tokens, params->kv_heads,
                                  params->head_length);
        p->layer[l].v = tensor_4d(p->device, o->dtype, next + half, o->pages, o->page_tokens,
                                  params->kv_heads, params->head_length);
    }
    return 0;
}

int kv_pool_open(struct kv_pool **out, const struct model *model, const struct kv_pool_options *options,
                 int32_t max_moves, struct err *err)
{
    *out = NULL;
    struct kv_pool *p = xcalloc(1, sizeof(*p));
    p->options = *options;
    p->device = model->device;
    p->layers = model->slice.last_layer - model->slice.first_layer;
    p->max_moves = max_moves;
    if (open_memory(p, model, err)) {
        kv_pool_close(&p);
        return -1;
    }
    *out = p;
    return 0;
}

void kv_pool_close(struct kv_pool **pp)
{
    if (!pp || !*pp)
        return;
    struct kv_pool *p = *pp;
    device_free(p->device, p->memory);
    device_free(p->device, p->table.data);
    device_free(p->device, p->move_memory);
    free(p->host_table);
    free(p->layer);
    free(p);
    *pp = NULL;
}

/* A run of moves becomes one kernel call per tensor. */
static void move_pages(struct kv_pool *p, struct stream *stream, const struct page_op *ops, int32_t count)
{
    int32_t *pairs = xmalloc((size_t)count * 2 * sizeof(int32_t));
    for (int32_t i = 0; i < count; i++) {
        pairs[2 * i] = ops[i].a;
        pairs[2 * i + 1] = ops[i].b;
    }
    stream_upload(stream, p->move_memory, pairs, (size_t)count * 2 * sizeof(int32_t));
    free(pairs);
    struct tensor moves = tensor_2d(p->device, DTYPE_I32, p->move_memory, count, 2);
    for (int64_t l = 0; l < p->layers; l++) {
        kernel_move_pages(stream, &p->layer[l].k, &moves);
        kernel_move_pages(stream, &p->layer[l].v, &moves);
    }
}

/* A run of assignments to neighbouring entries of one sequence becomes one upload; returns its length. */
static int32_t assign_pages(struct kv_pool *p, struct stream *stream, const struct page_op *ops,
                            int32_t count)
{
    int32_t slot = ops[0].a, first = ops[0].b, n = 0;
    size_t at = (size_t)slot * (size_t)p->options.pages_per_sequence + (size_t)first;
    while (n < count && ops[n].kind == PAGE_ASSIGN && ops[n].a == slot && ops[n].b == first + n) {
        p->host_table[at + (size_t)n] = ops[n].c;
        n++;
    }
    stream_upload(stream, (int32_t *)p->table.data + at, p->host_table + at, (size_t)n * sizeof(int32_t));
    return n;
}

void kv_pool_apply(struct kv_pool *p, struct stream *stream, const struct page_op *ops, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        int32_t n = 0;
        if (ops[i].kind == PAGE_MOVE) {
            while (i + n < count && ops[i + n].kind == PAGE_MOVE && n < p->max_moves)
                n++;
            move_pages(p, stream, ops + i, n);
        } else {
            n = assign_pages(p, stream, ops + i, count - i);
        }
        i += n;
    }
}
