#include "worker/model/block.h"

/* Scratch views and their widths for one row. */
#define BLOCK_VIEWS 11

int block_scratch_init(struct block_scratch *b, const struct model *model, int64_t max_tokens,
                       struct err *err)
{
    const struct model_params *p = &model->params;
    const struct model_part *part = &model->part;
    struct device *device = model->device;
    int64_t query = part->heads.count * p->head_length, kv = part->kv_heads.count * p->head_length;
    int64_t ffn = p->experts ? p->experts_used * part->expert_ffn.count : part->ffn.count;
    struct {
        void **view;
        int64_t width; /* 4-byte elements of a row */
    } views[BLOCK_VIEWS] = {
        {(void **)&b->hidden, p->embed},
        {(void **)&b->query, query},
        {(void **)&b->key, kv},
        {(void **)&b->value, kv},
        {(void **)&b->attention, query},
        {(void **)&b->gate, ffn},
        {(void **)&b->up, ffn},
        {(void **)&b->router, p->experts},
        {(void **)&b->expert_ids, p->experts_used},
        {(void **)&b->expert_weights, p->experts_used},
        {(void **)&b->expert_parts, p->experts_used * p->embed},
    };
    /* Offsets in elements, each rounded so that every view is 64-byte aligned. */
    uint64_t total = 0;
    for (int i = 0; i < BLOCK_VIEWS; i++)
        total += round_up_u64((uint64_t)(views[i].width * max_tokens), 16);
    *b = (struct block_scratch){.device = device, .max_tokens = max_tokens};
    b->memory = device_alloc(device, total * sizeof(float), err);
    if (!b->memory)
        return -1;
    float *next = b->memory;
    for (int i = 0; i < BLOCK_VIEWS; i++) {
        *views[i].view = next;
        next += round_up_u64((uint64_t)(views[i].width * max_tokens), 16);
    }
    return 0;
}

void block_scratch_release(struct block_scratch *b)
{
    if (!b || !b->memory)
        return;
    device_free(b->device, b->memory);
    b->memory = NULL;
}

void block_norm(const struct model *m, struct stream *stream, struct tensor *out, const struct tensor *x,
                const struct tensor *gain, const struct tensor *bias)
{
    if (m->params.arch->norm == NORM_LAYER)
        kernel_layernorm(stream, out, x, gain, bias, m->params.norm_eps);
    else
        kernel_rmsnorm(stream, out, x, gain, m->params.norm_eps);
}

/* What one call of block_forward works on. */
struct block {
    const struct model *m;
    const struct model_tensor *w;
    struct stream *stream;
    struct block_scratch *b;
    int64_t layer; /* of the whole model */
    int64_t T;
};

static struct tensor rows(const struct block *k, void *memory, int64_t width)
{
    return tensor_2d(k->m->device, DTYPE_F32, memory, k->T, width);
}

static struct tensor heads(const struct block *k, void *memory, int64_t count)
{
    return tensor_3d(k->m->device, DTYPE_F32, memory, k->T, count, k->m->params.head_length);
}

static void trace(const struct block *k, const char *what, const struct tensor *x)
{
    if (k->b->trace)
        k->b->trace(k->b->trace_context, k->layer, what, x);
}

/* What the slots of this stage computed, added up; nothing to do where one holds the whole. */
static int sum(const struct block *k, struct tensor *x, struct err *err)
{
    if (k->m->part.width == 1)
        return 0;
    ASSERT(k->b->sum);
    return k->b->sum(k->b->sum_context, k->stream, x, err);
}

/* q, k and v of the normalised rows. */
static void project(const struct block *k, const struct tensor *hidden)
{
    const struct block_scratch *b = k->b;
    int64_t D = k->m->params.head_length;
    struct tensor query = rows(k, b->query, k->m->part.heads.count * D),
                  key = rows(k, b->key, k->m->part.kv_heads.count * D),
                  value = rows(k, b->value, k->m->part.kv_heads.count * D);
    const struct matmul_output outputs[] = {
        {&query, &k->w[TENSOR_ATTN_Q].weight, &k->w[TENSOR_ATTN_Q_BIAS].vector},
        {&key, &k->w[TENSOR_ATTN_K].weight, &k->w[TENSOR_ATTN_K_BIAS].vector},
        {&value, &k->w[TENSOR_ATTN_V].weight, &k->w[TENSOR_ATTN_V_BIAS].vector}};
    kernel_matmul_each(k->stream, hidden, outputs, ARRAY_LEN(outputs));
}

/* q or k, normalised head by head where the family does, and rotated. */
static struct tensor turn(const struct block *k, float *memory, int64_t count, const struct tensor *norm,
                          const struct seq_view *view)
{
    const struct model_params *p = &k->m->params;
    struct tensor by_head = heads(k, memory, count);
    if (norm->data) {
        struct tensor flat = tensor_2d(k->m->device, DTYPE_F32, memory, k->T * count, p->head_length);
        kernel_rmsnorm(k->stream, &flat, &flat, norm, p->norm_eps);
    }
    if (p->arch->positions == POSITIONS_ROPE)
        kernel_rope(k->stream, &by_head, &view->positions, &k->m->rope_frequency, p->arch->rope_pairs,
                    p->rope_magnitude);
    return by_head;
}

/* x += post(W_o attention(rope(W_q h), rope(W_k h), W_v h)), h = norm(x) */
static int attention_half(const struct block *k, struct tensor *x, const struct seq_view *view,
                          struct kv_layer *kv, struct err *err)
{
    const struct model_params *p = &k->m->params;
    int64_t H = k->m->part.heads.count, G = k->m->part.kv_heads.count;
    const struct model_tensor *w = k->w;
    struct attention_options options = model_params_attention(p, k->layer);
    struct tensor hidden = rows(k, k->b->hidden, p->embed);
    struct tensor out = rows(k, k->b->attention, H * p->head_length);
    struct tensor out_heads = heads(k, k->b->attention, H);

    block_norm(k->m, k->stream, &hidden, x, &w[TENSOR_ATTN_NORM].vector, &w[TENSOR_ATTN_NORM_BIAS].vector);
    project(k, &hidden);
    struct tensor query = turn(k, k->b->query, H, &w[TENSOR_ATTN_Q_NORM].vector, view);
    struct tensor key = turn(k, k->b->key, G, &w[TENSOR_ATTN_K_NORM].vector, view);
    struct tensor value = heads(k, k->b->value, G);
    kernel_kv_store(k->stream, &kv->k, &kv->v, &key, &value, view);
    kernel_attention(k->stream, &out_heads, &query, &kv->k, &kv->v, view, &options);
    kernel_matmul(k->stream, &hidden, &out, &w[TENSOR_ATTN_OUTPUT].weight,
                  &w[TENSOR_ATTN_OUTPUT_BIAS].vector);
    if (sum(k, &hidden, err))
        return -1;
    if (w[TENSOR_ATTN_POST_NORM].vector.data)
        block_norm(k->m, k->stream, &hidden, &hidden, &w[TENSOR_ATTN_POST_NORM].vector, NULL);
    trace(k, "attention", &hidden);
    kernel_add(k->stream, x, &hidden);
    return 0;
}

/* hidden = W_down (f(W_gate h) * W_up h), or W_down f(W_up h) without a gate */
static void dense_ffn(const struct block *k, struct tensor *hidden)
{
    const struct model_params *p = &k->m->params;
    const struct model_tensor *w = k->w;
    int64_t F = k->m->part.ffn.count;
    struct tensor up = rows(k, k->b->up, F), gate = rows(k, k->b->gate, F);
    bool gated = w[TENSOR_FFN_GATE].weight.packed != NULL;
    const struct matmul_output outputs[] = {
        {&up, &w[TENSOR_FFN_UP].weight, &w[TENSOR_FFN_UP_BIAS].vector},
        {&gate, &w[TENSOR_FFN_GATE].weight, &w[TENSOR_FFN_GATE_BIAS].vector}};
    kernel_matmul_each(k->stream, hidden, outputs, gated ? 2 : 1);
    kernel_activate(k->stream, &gate, gated ? &gate : &up, gated ? &up : NULL, p->arch->activation);
    kernel_matmul(k->stream, hidden, &gate, &w[TENSOR_FFN_DOWN].weight, &w[TENSOR_FFN_DOWN_BIAS].vector);
}

/* hidden = sum over the experts e that the router picks: weight_e * W_down,e (f(W_gate,e h) * W_up,e h) */
static void routed_ffn(const struct block *k, struct tensor *hidden)
{
    const struct model_params *p = &k->m->params;
    const struct model_tensor *w = k->w;
    struct device *device = k->m->device;
    int64_t used = p->experts_used, F = k->m->part.expert_ffn.count;
    struct tensor logits = rows(k, k->b->router, p->experts), weights = rows(k, k->b->expert_weights, used);
    struct tensor ids = tensor_2d(device, DTYPE_I32, k->b->expert_ids, k->T, used);
    struct tensor gate = tensor_2d(device, DTYPE_F32, k->b->gate, k->T * used, F);
    struct tensor up = tensor_2d(device, DTYPE_F32, k->b->up, k->T * used, F);
    struct tensor parts = tensor_2d(device, DTYPE_F32, k->b->expert_parts, k->T * used, p->embed);
    kernel_matmul(k->stream, &logits, hidden, &w[TENSOR_ROUTER].weight, NULL);
    kernel_route(k->stream, &ids, &weights, &logits, p->expert_renormalise);
    kernel_expert_matmul(k->stream, &gate, hidden, &w[TENSOR_EXPERT_GATE].weight, &ids);
    kernel_expert_matmul(k->stream, &up, hidden, &w[TENSOR_EXPERT_UP].weight, &ids);
    kernel_activate(k->stream, &gate, &gate, &up, p->arch->activation);
    kernel_expert_matmul(k->stream, &parts, &gate, &w[TENSOR_EXPERT_DOWN].weight, &ids);
    kernel_expert_sum(k->stream, hidden, &parts, &weights);
}

/* x += post(ffn(norm(x))) */
static int ffn_half(const struct block *k, struct tensor *x, struct err *err)
{
    const struct model_tensor *w = k->w;
    struct tensor hidden = rows(k, k->b->hidden, k->m->params.embed);
    block_norm(k->m, k->stream, &hidden, x, &w[TENSOR_FFN_NORM].vector, &w[TENSOR_FFN_NORM_BIAS].vector);
    if (k->m->params.experts)
        routed_ffn(k, &hidden);
    else
        dense_ffn(k, &hidden);
    if (sum(k, &hidden, err))
        return -1;
    if (w[TENSOR_FFN_POST_NORM].vector.data)
        block_norm(k->m, k->stream, &hidden, &hidden, &w[TENSOR_FFN_POST_NORM].vector, NULL);
    trace(k, "ffn", &hidden);
    kernel_add(k->stream, x, &hidden);
    return 0;
}

int block_forward(const struct model *m, int64_t layer, struct stream *stream, struct tensor *x,
                  const struct seq_view *view, struct kv_layer *kv, struct block_scratch *scratch,
                  struct err *err)
{
    ASSERT(x->dim[0] <= scratch->max_tokens);
    struct block k = {.m = m,
                      .w = m->layer[layer],
                      .stream = stream,
                      .b = scratch,
                      .layer = m->slice.first_layer + layer,
                      .T = x->dim[0]};
    if (attention_half(&k, x, view, kv, err) || ffn_half(&k, x, err))
        return -1;
    trace(&k, "block", x);
    return 0;
}
