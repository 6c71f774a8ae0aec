#include "worker/infer/execute.h"

#include <stdlib.h>
#include <string.h>

/* The I32 inputs of a step lie in one block, so that they cost one copy:
 *   ids[T] positions[T] row_begin[S+1] slots[S] sample rows[B]
 * B is at most `samples` of the limits. */
struct inputs {
    int32_t *ids, *positions, *row_begin, *slots, *rows;
};

struct executor {
    const struct model *model;
    struct executor_options options;
    struct stream *stream;
    struct stage *stage;
    struct kv_pool *pool;
    int32_t *host_inputs; /* staging */
    void *device_inputs;
    size_t input_bytes;
    struct inputs host, device;
    struct sample_row *host_rows; /* [samples] */
    void *device_rows;
    void *device_ids;      /* [samples] drawn tokens */
    void *device_biases;   /* [limits.biases] */
    void *device_logprobs; /* [samples] */
    struct tensor history; /* [slots, context], last stage only */
};

static size_t padded_tokens(const struct step_limits *l)
{
    return round_up_u64((uint64_t)l->tokens, 16);
}

static size_t padded_sequences(const struct step_limits *l)
{
    return round_up_u64((uint64_t)l->sequences + 1, 16);
}

static void lay_inputs(struct inputs *in, int32_t *base, const struct step_limits *l)
{
    size_t tokens = padded_tokens(l), sequences = padded_sequences(l);
    in->ids = base;
    in->positions = in->ids + tokens;
    in->row_begin = in->positions + tokens;
    in->slots = in->row_begin + sequences;
    in->rows = in->slots + sequences;
}

static int open_inputs(struct executor *e, struct err *err)
{
    const struct step_limits *l = &e->options.limits;
    struct device *device = e->model->device;
    size_t samples = (size_t)step_samples(l);
    e->input_bytes = (2 * padded_tokens(l) + 2 * padded_sequences(l) + samples) * sizeof(int32_t);
    e->host_inputs = xcalloc(1, e->input_bytes);
    if (!(e->device_inputs = device_alloc(device, e->input_bytes, err)))
        return -1;
    lay_inputs(&e->host, e->host_inputs, l);
    lay_inputs(&e->device, e->device_inputs, l);
    if (!e->model->slice.head)
        return 0;
    e->host_rows = xcalloc(samples, sizeof(*e->host_rows));
    if (!(e->device_rows = device_alloc(device, samples * sizeof(struct sample_row), err)) ||
        !(e->device_ids = device_alloc(device, samples * sizeof(int32_t), err)) ||
        !(e->device_logprobs = device_alloc(device, samples * sizeof(struct token_logprobs), err)))
        return -1;
    size_t bias_bytes = (size_t)l->biases * sizeof(struct logit_bias);
    if (bias_bytes && !(e->device_biases = device_alloc(device, bias_bytes, err)))
        return -1;
    void *history = device_alloc(device, (size_t)l->slots * (size_t)l->context * sizeof(int32_t), err);
    if (!history)
        return -1;
    e->history = tensor_2d(device, DTYPE_I32, history, l->slots, l->context);
    return 0;
}

int executor_open(struct executor **out, const struct model *model, const struct executor_options *options,
                  struct err *err)
{
    *out = NULL;
    struct executor *e = xcalloc(1, sizeof(*e));
    e->model = model;
    e->options = *options;
    const struct step_limits *l = &options->limits;
    struct kv_pool_options pool = {.dtype = options->kv_type,
                                   .pages = l->pages,
                                   .page_tokens = options->page_tokens,
                                   .slots = l->slots,
                                   .pages_per_sequence = l->pages_per_sequence};
    if (kernels_kv_supported(model->device, options->kv_type, model->params.head_length, err) ||
        stream_open(&e->stream, model->device, err) ||
        stage_open(&e->stage, model, e->stream, l->tokens, step_samples(l), err) ||
        kv_pool_open(&e->pool, model, &pool, l->page_ops, err) || open_inputs(e, err)) {
        executor_close(&e);
        return -1;
    }
    *out = e;
    return 0;
}

void executor_close(struct executor **pe)
{
    if (!pe || !*pe)
        return;
    struct executor *e = *pe;
    struct device *device = e->model->device;
    stage_close(&e->stage);
    kv_pool_close(&e->pool);
    device_free(device, e->device_inputs);
    device_free(device, e->device_rows);
    device_free(device, e->device_ids);
    device_free(device, e->device_biases);
    device_free(device, e->device_logprobs);
    device_free(device, e->history.data);
    stream_close(&e->stream);
    free(e->host_inputs);
    free(e->host_rows);
    free(e);
    *pe = NULL;
}

struct stream *executor_stream(struct executor *e)
{
    return e->stream;
}

struct stage *executor_stage(struct executor *e)
{
    return e->stage;
}

struct tensor executor_rows(struct executor *e, const struct step *step)
{
    return stage_rows(e->stage, step->token_count);
}

/* The history of a sequence is what went through the model, which the step's rows bring along, and what lay
 * in its pages before, which comes as spans. */
static void upload_history(struct executor *e, const struct step *step)
{
    int32_t *history = e->history.data;
    const int32_t *ids = step->history_ids;
    for (int32_t i = 0; i < step->history_count; i++) {
        const struct step_history *h = &step->history[i];
        stream_upload(e->stream, history + (int64_t)h->slot * e->options.limits.context + h->position, ids,
                      (size_t)h->tokens * sizeof(int32_t));
        ids += h->tokens;
    }
}

/* Spreads the step over the input block and uploads it. */
static void upload_inputs(struct executor *e, const struct step *step)
{
    struct inputs *in = &e->host;
    int32_t row = 0, sample = 0;
    memcpy(in->ids, step->ids, (size_t)step->token_count * sizeof(int32_t));
    if (e->model->slice.head)
        upload_history(e, step);
    for (int32_t i = 0; i < step->sequence_count; i++) {
        const struct step_sequence *q = &step->sequences[i];
        in->row_begin[i] = row;
        in->slots[i] = q->slot;
        for (int32_t t = 0; t < q->tokens; t++)
            in->positions[row + t] = q->position + t;
        if (e->model->slice.head) {
            int32_t *history = e->history.data;
            stream_upload(e->stream, history + (int64_t)q->slot * e->options.limits.context + q->position,
                          step->ids + row, (size_t)q->tokens * sizeof(int32_t));
            for (int32_t s = 0; s < q->sample; s++, sample++) {
                in->rows[sample] = row + q->tokens - q->sample + s;
                e->host_rows[sample] = q->row;
                e->host_rows[sample].index += (uint32_t)s;
                e->host_rows[sample].history_tokens += s;
            }
        }
        row += q->tokens;
    }
    in->row_begin[step->sequence_count] = row;
    stream_upload(e->stream, e->device_inputs, e->host_inputs, e->input_bytes);
}

static int draw(struct executor *e, const struct step *step, int32_t *ids, struct token_logprobs *logprobs,
                struct err *err)
{
    struct device *device = e->model->device;
    int64_t B = step->sample_count;
    bool wanted = step_wants_logprobs(step);
    struct tensor rows = tensor_1d(device, DTYPE_I32, e->device.rows, B);
    struct tensor drawn = tensor_1d(device, DTYPE_I32, e->device_ids, B);
    struct tensor logits = stage_logits(e->stage, step->token_count, &rows);
    if (stage_join_logits(e->stage, &logits, err))
        return -1;
    if (e->model->part.slot != 0)
        return 0; /* one slot draws for all */
    struct sample_extra extra = {.biases = e->device_biases,
                                 .bias_count = step->bias_count,
                                 .logprobs = wanted ? e->device_logprobs : NULL};
    stream_upload(e->stream, e->device_rows, e->host_rows, (size_t)B * sizeof(struct sample_row));
    if (step->bias_count)
        stream_upload(e->stream, e->device_biases, step->biases,
                      (size_t)step->bias_count * sizeof(struct logit_bias));
    kernel_sample(e->stream, &drawn, &logits, e->device_rows, &e->history, &extra);
    stream_download(e->stream, ids, e->device_ids, (size_t)B * sizeof(int32_t));
    if (wanted)
        stream_download(e->stream, logprobs, e->device_logprobs, (size_t)B * sizeof(struct token_logprobs));
    return 0;
}

int executor_run(struct executor *e, const struct step *step, int32_t *ids, struct token_logprobs *logprobs,
                 struct err *err)
{
    struct device *device = e->model->device;
    int64_t T = step->token_count, S = step->sequence_count;
    kv_pool_apply(e->pool, e->stream, step->ops, step->op_count);
    if (T == 0)
        return stream_sync(e->stream, err);
    upload_inputs(e, step);
    struct seq_view view = {.row_begin = tensor_1d(device, DTYPE_I32, e->device.row_begin, S + 1),
                            .positions = tensor_1d(device, DTYPE_I32, e->device.positions, T),
                            .slots = tensor_1d(device, DTYPE_I32, e->device.slots, S),
                            .page_table = e->pool->table,
                            .page_tokens = e->options.page_tokens};
    struct tensor id_rows = tensor_1d(device, DTYPE_I32, e->device.ids, T);
    if (stage_forward(e->stage, e->model->slice.embed ? &id_rows : NULL, &view, e->pool->layer, err))
        return -1;
    if (e->model->slice.head && step->sample_count > 0 && draw(e, step, ids, logprobs, err))
        return -1;
    return stream_sync(e->stream, err);
}
