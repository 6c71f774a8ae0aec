#include "worker/model/stage.h"

#include <stdlib.h>

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
    if (block_scratch_init(&s->scratch, p, model->device, max_tokens, err))
        goto fail;
    if (!(s->x_memory = device_alloc(model->device, (size_t)max_tokens * row, err)))
        goto fail;
    if (model->slice.head) {
        size_t logits = (size_t)max_logits * (size_t)p->vocab * sizeof(float);
        if (!(s->rows_memory = device_alloc(model->device, (size_t)max_logits * row, err)) ||
            !(s->logits_memory = device_alloc(model->device, logits, err)))
            goto fail;
    }
    *out = s;
    return 0;
fail:
    stage_close(&s);
    return -1;
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
        block_forward(m, layer, s->stream, &x, view, &kv[layer], &s->scratch);
        if (s->between && s->between(s->between_context, err))
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
    struct tensor logits = tensor_2d(m->device, DTYPE_F32, s->logits_memory, B, p->vocab);
    kernel_gather_rows(s->stream, &picked, &x, rows);
    block_norm(m, s->stream, &picked, &picked, &m->global[TENSOR_OUTPUT_NORM].vector,
               &m->global[TENSOR_OUTPUT_NORM_BIAS].vector);
    kernel_matmul(s->stream, &logits, &picked, &m->global[TENSOR_OUTPUT].weight, NULL);
    if (p->logit_softcap > 0)
        kernel_softcap(s->stream, &logits, p->logit_softcap);
    return logits;
}
