#include "worker/model/stage.h"

#include <stdlib.h>

/* What the last stage computes logits in. */
static int open_logits(struct stage *s, struct err *err)
{
    const struct model *m = s->model;
    size_t columns = (size_t)s->max_logits * sizeof(float), width = (size_t)m->part.width;
    size_t row = (size_t)m->params.embed * sizeof(float);
    if (!(s->rows_memory = device_alloc(m->device, (size_t)s->max_logits * row, err)) ||
        !(s->logits_memory = device_alloc(m->device, columns * (size_t)m->params.vocab, err)))
        return -1;
    if (width == 1)
        return 0;
    s->widest_part = slice_widest_vocab(&m->params, m->part.width);
    columns *= (size_t)s->widest_part;
    return (s->part_memory = device_alloc(m->device, columns, err)) &&
                   (s->parts_memory = device_alloc(m->device, columns * width, err))
               ? 0
               : -1;
}

int stage_open(struct stage **out, const struct model *model, struct stream *stream, int64_t max_tokens,
               int64_t max_logits, struct err *err)
{
    struct stage *s = xcalloc(1, sizeof(*s));
    *out = NULL;
    s->model = model;
    s->stream = stream;
    s->max_tokens = max_tokens;
    s->max_logits = max_logits;
    const struct model_params *p = &model->params;
    size_t row = (size_t)p->embed * sizeof(float);
    if (block_scratch_init(&s->scratch, model, max_tokens, err) ||
        !(s->x_memory = device_alloc(model->device, (size_t)max_tokens * row, err)) ||
        (model->slice.head && open_logits(s, err))) {
        stage_close(&s);
        return -1;
    }
    *out = s;
    return 0;
}

void stage_close(struct stage **ps)
{
    if (!ps || !*ps)
        return;
    struct stage *s = *ps;
    block_scratch_release(&s->scratch);
    device_free(s->model->device, s->x_memory);
    device_free(s->model->device, s->rows_memory);
    device_free(s->model->device, s->logits_memory);
    device_free(s->model->device, s->part_memory);
    device_free(s->model->device, s->parts_memory);
    free(s);
    *ps = NULL;
}

struct tensor stage_rows(struct stage *s, int64_t tokens)
{
    ASSERT(tokens <= s->max_tokens);
    return tensor_2d(s->model->device, DTYPE_F32, s->x_memory, tokens, s->model->params.embed);
}

/* x = embedding of the ids, scaled, with learned positions added: as the family does. */
static void embed(struct stage *s, struct tensor *x, const struct tensor *ids, const struct tensor *positions)
{
    const struct model *m = s->model;
    kernel_embed(s->stream, x, &m->global[TENSOR_TOKEN_EMBED].weight, ids);
    if (m->params.embedding_scale != 1)
        kernel_scale(s->stream, x, m->params.embedding_scale);
    if (m->params.arch->positions == POSITIONS_LEARNED) {
        struct tensor added = tensor_2d(m->device, DTYPE_F32, s->scratch.hidden, x->dim[0], x->dim[1]);
        kernel_embed(s->stream, &added, &m->global[TENSOR_POSITION_EMBED].weight, positions);
        kernel_add(s->stream, x, &added);
    }
}

int stage_forward(struct stage *s, const struct tensor *ids, const struct seq_view *view, struct kv_layer *kv,
                  struct err *err)
{
    const struct model *m = s->model;
    struct tensor x = stage_rows(s, view->positions.dim[0]);
    ASSERT((ids != NULL) == m->slice.embed);
    if (ids)
        embed(s, &x, ids, &view->positions);
    for (int64_t layer = 0; layer < m->slice.last_layer - m->slice.first_layer; layer++) {
        if (block_forward(m, layer, s->stream, &x, view, &kv[layer], &s->scratch, err) ||
            (s->between && s->between(s->between_context, err)))
            return -1;
    }
    return 0;
}

struct tensor stage_logits(struct stage *s, int64_t tokens, const struct tensor *rows)
{
    const struct model *m = s->model;
    const struct model_params *p = &m->params;
    int64_t B = rows->dim[0];
    ASSERT(m->slice.head && B <= s->max_logits);
    struct tensor x = stage_rows(s, tokens);
    struct tensor picked = tensor_2d(m->device, DTYPE_F32, s->rows_memory, B, p->embed);
    void *memory = m->part.width > 1 ? s->part_memory : s->logits_memory;
    struct tensor logits = tensor_2d(m->device, DTYPE_F32, memory, B, m->part.vocab.count);
    kernel_gather_rows(s->stream, &picked, &x, rows);
    block_norm(m, s->stream, &picked, &picked, &m->global[TENSOR_OUTPUT_NORM].vector,
               &m->global[TENSOR_OUTPUT_NORM_BIAS].vector);
    kernel_matmul(s->stream, &logits, &picked, &m->global[TENSOR_OUTPUT].weight, NULL);
    if (p->logit_softcap > 0)
        kernel_softcap(s->stream, &logits, p->logit_softcap);
    return logits;
}

int stage_join_logits(struct stage *s, struct tensor *logits, struct err *err)
{
    const struct model *m = s->model;
    int64_t B = logits->dim[0], V = m->params.vocab;
    size_t part_bytes = (size_t)(B * s->widest_part) * sizeof(float);
    if (m->part.width == 1)
        return 0;
    ASSERT(s->gather && logits->data == s->part_memory);
    if (s->gather(s->gather_context, s->stream, s->part_memory, s->parts_memory, part_bytes, err))
        return -1;
    if (m->part.slot != 0)
        return 0;
    for (int slot = 0; slot < m->part.width; slot++) {
        struct slice_run run = slice_vocab(&m->params, m->part.width, slot);
        const float *part = (const float *)(void *)((char *)s->parts_memory + (size_t)slot * part_bytes);
        for (int64_t b = 0; b < B; b++)
            stream_copy(s->stream, (float *)s->logits_memory + b * V + run.first, part + b * run.count,
                        (size_t)run.count * sizeof(float));
    }
    *logits = tensor_2d(m->device, DTYPE_F32, s->logits_memory, B, V);
    return 0;
}
