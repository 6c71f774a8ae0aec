/* tiny_model: writes a small random llama-architecture GGUF for tests, and decodes with an executor, greedily
 * or not. */
#ifndef LEPTON_TESTS_TINY_MODEL_H
#define LEPTON_TESTS_TINY_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/test.h"
#include "worker/infer/execute.h"

struct tiny_shape {
    int64_t layers, embed, ffn, heads, kv_heads, vocab, context;
    enum dtype dtype;
    bool tied;
};

static const struct tiny_shape tiny_standard = {.layers = 4,
                                                .embed = 64,
                                                .ffn = 96,
                                                .heads = 4,
                                                .kv_heads = 2,
                                                .vocab = 300,
                                                .context = 128,
                                                .dtype = DTYPE_F32};

/* The tensors are written in the order they are declared: two passes over the same list. */
struct tiny_writer {
    struct gguf_writer *w;
    const struct tiny_shape *shape;
    unsigned long long random;
    bool data; /* second pass */
};

static inline void tiny_tensor(struct tiny_writer *t, const char *name, int64_t rows, int64_t columns)
{
    enum dtype dtype = columns ? t->shape->dtype : DTYPE_F32;
    int64_t dim[2] = {rows, columns};
    int64_t elements = columns ? rows * columns : rows;
    if (!t->data) {
        gguf_writer_tensor(t->w, name, dtype, columns ? 2 : 1, dim);
        return;
    }
    float *values = malloc((size_t)elements * sizeof(float));
    uint64_t bytes = 0;
    struct err err;
    for (int64_t i = 0; i < elements; i++)
        values[i] = columns ? test_uniform(&t->random) * 2.0f / sqrtf((float)columns)
                            : 1.0f + 0.1f * test_uniform(&t->random);
    dtype_row_bytes(dtype, (uint64_t)elements, &bytes);
    void *packed = malloc(bytes);
    dtype_from_f32(dtype, values, packed, (uint64_t)elements);
    if (gguf_writer_data(t->w, packed, bytes, &err))
        die("%s", err.message);
    free(values);
    free(packed);
}

static inline void tiny_tensors(struct tiny_writer *t)
{
    const struct tiny_shape *s = t->shape;
    int64_t kv = s->embed / s->heads * s->kv_heads;
    tiny_tensor(t, "token_embd.weight", s->vocab, s->embed);
    for (int64_t l = 0; l < s->layers; l++) {
        const char *names[] = {"attn_norm", "attn_q",   "attn_k", "attn_v",  "attn_output",
                               "ffn_norm",  "ffn_gate", "ffn_up", "ffn_down"};
        int64_t shape[][2] = {{s->embed, 0},      {s->embed, s->embed}, {kv, s->embed},
                              {kv, s->embed},     {s->embed, s->embed}, {s->embed, 0},
                              {s->ffn, s->embed}, {s->ffn, s->embed},   {s->embed, s->ffn}};
        for (int i = 0; i < 9; i++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%lld.%s.weight", (long long)l, names[i]);
            tiny_tensor(t, name, shape[i][0], shape[i][1]);
        }
    }
    tiny_tensor(t, "output_norm.weight", s->embed, 0);
    if (!s->tied)
        tiny_tensor(t, "output.weight", s->vocab, s->embed);
}

/* Writes the model to `path`. */
static inline void tiny_model_write(const char *path, const struct tiny_shape *shape)
{
    struct err err;
    struct tiny_writer t = {.shape = shape, .random = 7};
    if (gguf_writer_open(&t.w, path, &err))
        die("%s", err.message);
    gguf_writer_string(t.w, "general.architecture", "llama");
    gguf_writer_uint(t.w, "llama.block_count", (uint64_t)shape->layers);
    gguf_writer_uint(t.w, "llama.embedding_length", (uint64_t)shape->embed);
    gguf_writer_uint(t.w, "llama.feed_forward_length", (uint64_t)shape->ffn);
    gguf_writer_uint(t.w, "llama.attention.head_count", (uint64_t)shape->heads);
    gguf_writer_uint(t.w, "llama.attention.head_count_kv", (uint64_t)shape->kv_heads);
    gguf_writer_uint(t.w, "llama.context_length", (uint64_t)shape->context);
    gguf_writer_float(t.w, "llama.attention.layer_norm_rms_epsilon", 1e-5);
    tiny_tensors(&t);
    t.data = true;
    if (gguf_writer_begin(t.w, &err))
        die("%s", err.message);
    tiny_tensors(&t);
    if (gguf_writer_close(&t.w, &err))
        die("%s", err.message);
}

/* A model and an executor over it, in one process. */
struct tiny_engine {
    struct gguf *gguf;
    struct device *device;
    struct model *model;
    struct executor *executor;
    struct executor_options options;
    struct step step;
    uint64_t next_step;
};

/* The kernel set that engines are opened with; NULL = the reference. */
static const char *tiny_kernels;

static inline void tiny_engine_open(struct tiny_engine *e, const char *path, int threads, int page_tokens,
                                    const struct model_slice *slice)
{
    struct err err;
    struct device_options device = {.threads = threads, .kernels = tiny_kernels};
    *e = (struct tiny_engine){.next_step = 1};
    if (gguf_open(&e->gguf, path, &err) || device_open(&e->device, "cpu", &device, &err) ||
        model_open(&e->model, e->gguf, e->device, slice, &err))
        die("%s", err.message);
    const struct model_params *p = &e->model->params;
    int32_t context = p->context < 256 ? (int32_t)p->context : 256;
    int32_t per_sequence = (context + page_tokens - 1) / page_tokens;
    e->options = (struct executor_options){.page_tokens = page_tokens,
                                           .kv_type = DTYPE_F32,
                                           .limits = {.tokens = 64,
                                                      .sequences = 8,
                                                      .slots = 8,
                                                      .context = context,
                                                      .pages = 8 * per_sequence,
                                                      .pages_per_sequence = per_sequence,
                                                      .vocab = (int32_t)p->vocab,
                                                      .page_ops = 8 * per_sequence,
                                                      .biases = 64,
                                                      .history = context}};
    if (executor_open(&e->executor, e->model, &e->options, &err))
        die("%s", err.message);
    step_init(&e->step, &e->options.limits);
}

static inline void tiny_engine_close(struct tiny_engine *e)
{
    step_release(&e->step);
    executor_close(&e->executor);
    model_close(&e->model);
    device_close(&e->device);
    gguf_close(&e->gguf);
}

/* Adds `tokens` rows of a sequence to the step being built; pages of a slot lie scattered (by a fixed
 * permutation). */
static inline void tiny_engine_add(struct tiny_engine *e, int32_t slot, const int32_t *ids, int32_t position,
                                   int32_t tokens, const struct sample_row *row)
{
    const struct step_limits *l = &e->options.limits;
    struct step *s = &e->step;
    int32_t page_tokens = e->options.page_tokens;
    for (int32_t p = (position + page_tokens - 1) / page_tokens; p * page_tokens < position + tokens; p++)
        s->ops[s->op_count++] =
            (struct page_op){.kind = PAGE_ASSIGN, .a = slot, .b = p, .c = (slot + p * l->slots) % l->pages};
    s->sequences[s->sequence_count] =
        (struct step_sequence){.slot = slot, .position = position, .tokens = tokens, .sample = row != NULL};
    if (row)
        s->sequences[s->sequence_count].row = *row;
    s->sample_count += row != NULL;
    s->sequence_count++;
    memcpy(s->ids + s->token_count, ids, (size_t)tokens * sizeof(int32_t));
    s->token_count += tokens;
}

static inline void tiny_engine_run(struct tiny_engine *e, int32_t *drawn)
{
    struct err err;
    if (executor_run(e->executor, &e->step, drawn, NULL, &err))
        die("%s", err.message);
    step_clear(&e->step, ++e->next_step, 0);
}

/* Generates `count` tokens behind the prompt of ids[] in `slot`, the prompt in chunks; ids[] has room for
 * them. */
static inline void tiny_engine_generate(struct tiny_engine *e, int32_t slot, int32_t *ids, int32_t prompt,
                                        int32_t count, int32_t chunk, float temperature)
{
    int32_t fed = 0;
    for (int32_t known = prompt; known < prompt + count;) {
        int32_t tokens = known - fed < chunk ? known - fed : chunk;
        bool sample = fed + tokens == known;
        struct sample_row row = {.seed = 11,
                                 .index = (uint32_t)(known - prompt),
                                 .slot = slot,
                                 .history_tokens = known,
                                 .prompt_tokens = prompt,
                                 .temperature = temperature,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .banned_id = -1};
        int32_t drawn = 0;
        tiny_engine_add(e, slot, ids + fed, fed, tokens, sample ? &row : NULL);
        tiny_engine_run(e, &drawn);
        fed += tokens;
        if (sample)
            ids[known++] = drawn;
    }
}

#endif
