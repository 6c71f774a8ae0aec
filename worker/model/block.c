#include "worker/model/block.h"

int block_scratch_init(struct block_scratch *b, const struct model_params *p, struct device *device,
                       int64_t max_tokens, struct err *err)
{
    int64_t query = p->heads * p->head_length, kv = p->kv_heads * p->head_length;
    /* Offsets in floats, each rounded so that every view is 64-byte aligned. */
    int64_t width[7] = {p->embed, query, kv, kv, query, p->ffn, p->ffn};
    float **view[7] = {&b->hidden, &b->query, &b->key, &b->value, &b->attention, &b->gate, &b->up};
    uint64_t total = 0;
    for (int i = 0; i < 7; i++)
        total += round_up_u64((uint64_t)(width[i] * max_tokens), 16);
    *b = (struct block_scratch){.device = device, .max_tokens = max_tokens};
    b->memory = device_alloc(device, total * sizeof(float), err);
    if (!b->memory)
        return -1;
    float *next = b->memory;
    for (int i = 0; i < 7; i++) {
        *view[i] = next;
        next += round_up_u64((uint64_t)(width[i] * max_tokens), 16);
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

/* x += W_o attention(rope(W_q h), rope(W_k h), W_v h), h = norm(x) */
static void attention_half(const struct model *m, const struct model_tensor *w, struct stream *stream,
                           struct tensor *x, const struct seq_view *view, struct kv_layer *kv,
                           struct block_scratch *b)
{
    const struct model_params *p = &m->params;
    int64_t T = x->dim[0], H = p->heads, G = p->kv_heads, D = p->head_length;
    struct tensor hidden = tensor_2d(m->device, DTYPE_F32, b->hidden, T, p->embed);
    struct tensor q = tensor_2d(m->device, DTYPE_F32, b->query, T, H * D);
    struct tensor k = tensor_2d(m->device, DTYPE_F32, b->key, T, G * D);
    struct tensor v = tensor_2d(m->device, DTYPE_F32, b->value, T, G * D);
    struct tensor out = tensor_2d(m->device, DTYPE_F32, b->attention, T, H * D);
    struct tensor q_heads = tensor_3d(m->device, DTYPE_F32, b->query, T, H, D);
    struct tensor k_heads = tensor_3d(m->device, DTYPE_F32, b->key, T, G, D);
    struct tensor v_heads = tensor_3d(m->device, DTYPE_F32, b->value, T, G, D);
    struct tensor out_heads = tensor_3d(m->device, DTYPE_F32, b->attention, T, H, D);

    kernel_rmsnorm(stream, &hidden, x, &w[TENSOR_ATTN_NORM].vector, p->norm_eps);
    kernel_matmul(stream, &q, &hidden, &w[TENSOR_ATTN_Q].weight, &w[TENSOR_ATTN_Q_BIAS].vector);
    kernel_matmul(stream, &k, &hidden, &w[TENSOR_ATTN_K].weight, &w[TENSOR_ATTN_K_BIAS].vector);
    kernel_matmul(stream, &v, &hidden, &w[TENSOR_ATTN_V].weight, &w[TENSOR_ATTN_V_BIAS].vector);
    kernel_rope(stream, &q_heads, &view->positions, &m->rope_frequency, p->arch->rope_pairs,
                p->rope_magnitude);
    kernel_rope(stream, &k_heads, &view->positions, &m->rope_frequency, p->arch->rope_pairs,
                p->rope_magnitude);
    kernel_kv_store(stream, &kv->k, &kv->v, &k_heads, &v_heads, view);
    kernel_attention(stream, &out_heads, &q_heads, &kv->k, &kv->v, view, p->attention_scale);
    kernel_matmul(stream, &hidden, &out, &w[TENSOR_ATTN_OUTPUT].weight, NULL);
    kernel_add(stream, x, &hidden);
}

/* x += W_down (silu(W_gate h) * W_up h), h = norm(x) */
static void ffn_half(const struct model *m, const struct model_tensor *w, struct stream *stream,
                     struct tensor *x, struct block_scratch *b)
{
    const struct model_params *p = &m->params;
    int64_t T = x->dim[0];
    struct tensor hidden = tensor_2d(m->device, DTYPE_F32, b->hidden, T, p->embed);
    struct tensor gate = tensor_2d(m->device, DTYPE_F32, b->gate, T, p->ffn);
    struct tensor up = tensor_2d(m->device, DTYPE_F32, b->up, T, p->ffn);

    kernel_rmsnorm(stream, &hidden, x, &w[TENSOR_FFN_NORM].vector, p->norm_eps);
    kernel_matmul(stream, &gate, &hidden, &w[TENSOR_FFN_GATE].weight, NULL);
    kernel_matmul(stream, &up, &hidden, &w[TENSOR_FFN_UP].weight, NULL);
    kernel_swiglu(stream, &gate, &gate, &up);
    kernel_matmul(stream, &hidden, &gate, &w[TENSOR_FFN_DOWN].weight, NULL);
    kernel_add(stream, x, &hidden);
}

void block_forward(const struct model *m, int64_t layer, struct stream *stream, struct tensor *x,
                   const struct seq_view *view, struct kv_layer *kv, struct block_scratch *scratch)
{
    ASSERT(x->dim[0] <= scratch->max_tokens);
    const struct model_tensor *w = m->layer[layer];
    attention_half(m, w, stream, x, view, kv, scratch);
    ffn_half(m, w, stream, x, scratch);
}
