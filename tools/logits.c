/* lepton logits: what a model computes for given token ids, as numbers: the logits, and on request what each
 * block adds and hands on. For comparing an engine with another, and a file with what it should be. One
 * process; --stages cuts the model into slices and hands the rows on, as ranks do. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/command.h"
#include "worker/infer/execute.h"
#include "worker/model/registry.h"

struct logits_settings {
    char *ids, *kv_type, *models;
    bool all, trace, json;
    int64_t stages, chunk, threads, top;
};

#define OPTION(member) offsetof(struct logits_settings, member)

static const struct config_option options[] = {
    {"ids", 'i', CONFIG_STRING, OPTION(ids), 0, 0, NULL, "N,N,...", NULL, "the token ids of the prompt",
     false},
    {"all", 'a', CONFIG_BOOL, OPTION(all), 0, 0, NULL, NULL, NULL,
     "logits behind every token, not only behind the last", false},
    {"top", 0, CONFIG_INT, OPTION(top), 1, 1000, "10", "N", NULL, "highest logits shown without --json",
     false},
    {"trace", 0, CONFIG_BOOL, OPTION(trace), 0, 0, NULL, NULL, NULL,
     "with --json: also what attention and feed-forward of every block add, and the rows behind the block",
     false},
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 4096, "1", "N", NULL,
     "cut the model into N pipeline stages; the result is the same", false},
    {"chunk", 0, CONFIG_INT, OPTION(chunk), 1, 65536, "128", "N", NULL, "rows of one step", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "N", NULL, "threads; 0 = every processor",
     false},
    {"kv_type", 0, CONFIG_STRING, OPTION(kv_type), 0, 0, "f32", "TYPE", "f32|f16|bf16|q8_0",
     "element type of the KV cache", false},
    {"json", 'j', CONFIG_BOOL, OPTION(json), 0, 0, NULL, NULL, NULL, "print one JSON object", false},
    MODELS_OPTION(struct logits_settings),
};

static const struct config_table table = {
    .program = "lepton logits",
    .arguments = "MODEL",
    .about = "What a model computes for the token ids of --ids: the logits behind the last token (or, with "
             "--all, behind every token). The numbers of --json are the floats to the last bit.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct logits_settings),
};

/* One stage as a rank would hold it. */
struct part {
    struct model *model;
    struct executor *executor;
};

struct run {
    const struct logits_settings *settings;
    struct registry_model source;
    struct gguf *gguf;
    struct device *device;
    struct executor_options engine;
    struct step step;
    struct part *part;
    int parts;
    int32_t *ids;
    int32_t count;
    void *rows;     /* device memory: I32[chunk] */
    float *logits;  /* [chunk, V] of one step */
    json_t *traced; /* [layer] objects, each of arrays of rows; NULL without --trace */
    float *tracing; /* [chunk, C] */
};

/* ---- the ids */

static int read_ids(struct run *r, const char *text, struct err *err)
{
    r->ids = xcalloc(strlen(text) / 2 + 1, sizeof(int32_t));
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno || id < 0 || id > INT32_MAX || (*end && *end != ','))
            return err_set(err, "--ids: \"%.20s\": expected token ids with commas between them", at);
        r->ids[r->count++] = (int32_t)id;
        if (!*end)
            return 0;
        at = end;
    }
}

static int check_ids(const struct run *r, const struct model_params *p, struct err *err)
{
    if (r->count > p->context)
        return err_set(err, "--ids: %d tokens, the model's context is %lld", r->count, (long long)p->context);
    for (int32_t i = 0; i < r->count; i++)
        if (r->ids[i] >= p->vocab)
            return err_set(err, "--ids: token %d is %d, expected less than the vocabulary's size %lld", i,
                           r->ids[i], (long long)p->vocab);
    return 0;
}

/* JSON has no NaN and no infinity: null. */
static json_t *json_floats(const float *values, int64_t count)
{
    json_t *row = json_array();
    for (int64_t i = 0; i < count; i++)
        json_array_append_new(row, isfinite(values[i]) ? json_real((double)values[i]) : json_null());
    return row;
}

/* ---- the stages */

/* Runs inside a kernel sequence: the rows are waited for, so that they are those of this moment. */
static void take_trace(void *context, int64_t layer, const char *what, const struct tensor *x)
{
    struct run *r = context;
    struct stream *stream = NULL;
    struct err err;
    for (int i = 0; i < r->parts; i++) {
        const struct model_slice *slice = &r->part[i].model->slice;
        if (layer >= slice->first_layer && layer < slice->last_layer)
            stream = executor_stream(r->part[i].executor);
    }
    stream_download(stream, r->tracing, x->data, tensor_bytes(x));
    if (stream_sync(stream, &err))
        die("%s", err.message);
    json_t *object = json_array_get(r->traced, (size_t)layer), *list = json_object_get(object, what);
    if (!list) {
        list = json_array();
        json_object_set_new(object, what, list);
    }
    for (int64_t t = 0; t < x->dim[0]; t++)
        json_array_append_new(list, json_floats(r->tracing + t * x->dim[1], x->dim[1]));
}

static int open_part(struct run *r, int i, int64_t layers, struct err *err)
{
    struct part *part = &r->part[i];
    struct model_slice slice = {.first_layer = layers * i / r->parts,
                                .last_layer = layers * (i + 1) / r->parts,
                                .embed = i == 0,
                                .head = i == r->parts - 1,
                                .context = r->count};
    struct model_check check = registry_check(&r->source);
    if (model_open_checked(&part->model, r->gguf, r->device, &slice, &check, err) ||
        executor_open(&part->executor, part->model, &r->engine, err))
        return -1;
    if (r->traced) {
        executor_stage(part->executor)->scratch.trace = take_trace;
        executor_stage(part->executor)->scratch.trace_context = r;
    }
    return 0;
}

static int open_run(struct run *r, const char *path, struct err *err)
{
    const struct logits_settings *s = r->settings;
    struct device_options device = {.threads = (int)s->threads};
    struct model_params p = {0};
    if (read_ids(r, s->ids, err) || registry_find(&r->source, s->models, path, VERIFY_REGISTERED, err) ||
        registry_open(&r->gguf, &r->source, (int)s->threads, err) || model_params_read(&p, r->gguf, err))
        return -1;
    model_params_release(&p); /* the sizes stay */
    if (check_ids(r, &p, err))
        return -1;
    if (s->stages > p.layers)
        return err_set(err, "--stages %lld: the model has %lld layers", (long long)s->stages,
                       (long long)p.layers);
    int32_t chunk = (int32_t)(s->chunk < r->count ? s->chunk : r->count), page_tokens = 16;
    int32_t pages = (r->count + page_tokens - 1) / page_tokens;
    r->engine = (struct executor_options){.page_tokens = page_tokens,
                                          .limits = {.tokens = chunk,
                                                     .sequences = chunk, /* every row gets logits */
                                                     .slots = 1,
                                                     .context = r->count,
                                                     .pages = pages,
                                                     .pages_per_sequence = pages,
                                                     .vocab = (int32_t)p.vocab,
                                                     .page_ops = pages}};
    bool known = dtype_from_name(s->kv_type, &r->engine.kv_type);
    ASSERT(known);
    r->parts = (int)s->stages;
    r->part = xcalloc((size_t)r->parts, sizeof(*r->part));
    r->logits = xcalloc((size_t)chunk * (size_t)p.vocab, sizeof(float));
    step_init(&r->step, &r->engine.limits);
    if (s->trace) {
        r->tracing = xcalloc((size_t)chunk * (size_t)p.embed, sizeof(float));
        r->traced = json_array();
        for (int64_t l = 0; l < p.layers; l++)
            json_array_append_new(r->traced, json_object());
    }
    if (device_open(&r->device, "cpu", &device, err) ||
        !(r->rows = device_alloc(r->device, (size_t)chunk * sizeof(int32_t), err)))
        return -1;
    for (int i = 0; i < r->parts; i++)
        if (open_part(r, i, p.layers, err))
            return -1;
    return 0;
}

static void close_run(struct run *r)
{
    for (int i = 0; i < r->parts; i++) {
        executor_close(&r->part[i].executor);
        model_close(&r->part[i].model);
    }
    if (r->device)
        device_free(r->device, r->rows);
    step_release(&r->step);
    device_close(&r->device);
    gguf_close(&r->gguf);
    registry_release(&r->source);
    json_decref(r->traced);
    free(r->part);
    free(r->ids);
    free(r->logits);
    free(r->tracing);
}

/* Feeds tokens [position, position + tokens) through all stages. */
static int feed(struct run *r, int32_t position, int32_t tokens, struct err *err)
{
    struct step *step = &r->step;
    step_clear(step, (uint64_t)position + 1, 0);
    step->sequences[step->sequence_count++] = (struct step_sequence){.position = position, .tokens = tokens};
    step->token_count = tokens;
    memcpy(step->ids, r->ids + position, (size_t)tokens * sizeof(int32_t));
    for (int32_t page = 0; position == 0 && page < r->engine.limits.pages; page++)
        step->ops[step->op_count++] = (struct page_op){.kind = PAGE_ASSIGN, .b = page, .c = page};
    for (int i = 0; i < r->parts; i++) {
        struct stream *stream = executor_stream(r->part[i].executor);
        struct tensor to = executor_rows(r->part[i].executor, step);
        if (i > 0)
            stream_copy(stream, to.data, executor_rows(r->part[i - 1].executor, step).data,
                        tensor_bytes(&to));
        if (executor_run(r->part[i].executor, step, NULL, NULL, err))
            return -1;
    }
    return 0;
}

/* Logits of rows [first, first + count) of the step that was fed last, into r->logits. */
static int take_logits(struct run *r, int32_t tokens, int32_t first, int32_t count, struct err *err)
{
    struct executor *last = r->part[r->parts - 1].executor;
    struct stream *stream = executor_stream(last);
    int32_t rows[count];
    for (int32_t i = 0; i < count; i++)
        rows[i] = first + i;
    stream_upload(stream, r->rows, rows, sizeof(rows));
    struct tensor picked = tensor_1d(r->device, DTYPE_I32, r->rows, count);
    struct tensor logits = stage_logits(executor_stage(last), tokens, &picked);
    stream_download(stream, r->logits, logits.data, tensor_bytes(&logits));
    return stream_sync(stream, err);
}

/* ---- output */

static int by_logit(const void *a, const void *b, void *logits)
{
    const float *sort_by = logits;
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sort_by[i] != sort_by[j])
        return sort_by[i] > sort_by[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

static void show_row(const struct run *r, int32_t position, const float *logits)
{
    int32_t V = r->engine.limits.vocab, *order = xcalloc((size_t)V, sizeof(int32_t));
    for (int32_t i = 0; i < V; i++)
        order[i] = i;
    qsort_r(order, (size_t)V, sizeof(*order), by_logit, (void *)(uintptr_t)logits);
    printf("behind token %d (id %d):\n", position, r->ids[position]);
    for (int32_t i = 0; i < V && i < r->settings->top; i++)
        printf("  %8d  %.6f\n", order[i], (double)logits[order[i]]);
    free(order);
}

static int print_logits(struct run *r, const char *path, struct err *err)
{
    json_t *list = json_array();
    int code = 0;
    for (int32_t position = 0; code == 0 && position < r->count;) {
        int32_t left = r->count - position;
        int32_t tokens = left < r->engine.limits.tokens ? left : r->engine.limits.tokens;
        bool wanted = r->settings->all || tokens == left;
        int32_t first = r->settings->all ? 0 : tokens - 1;
        code = feed(r, position, tokens, err);
        if (code == 0 && wanted)
            code = take_logits(r, tokens, first, tokens - first, err);
        for (int32_t i = first; code == 0 && wanted && i < tokens; i++) {
            const float *logits = r->logits + (int64_t)(i - first) * r->engine.limits.vocab;
            if (r->settings->json)
                json_array_append_new(list, json_floats(logits, r->engine.limits.vocab));
            else
                show_row(r, position + i, logits);
        }
        position += tokens;
    }
    if (code == 0 && r->settings->json) {
        json_t *o =
            json_pack("{s:s, s:i, s:O}", "model", path, "vocab", (int)r->engine.limits.vocab, "logits", list);
        if (r->traced)
            json_object_set(o, "layers", r->traced);
        json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        printf("\n");
        json_decref(o);
    }
    json_decref(list);
    return code;
}

int command_logits(int argc, char **argv)
{
    struct logits_settings s;
    struct run r = {.settings = &s};
    struct err err = {0};
    const char *path[1];
    int code = EXIT_OK;
    config_main(&table, &s, argc, argv, path, 1);
    if (!s.ids || (s.trace && !s.json)) {
        fprintf(stderr, "lepton logits: %s\n",
                s.ids ? "--trace: expected --json with it" : "--ids: expected token ids");
        config_release(&table, &s);
        return EXIT_USAGE;
    }
    if (open_run(&r, path[0], &err) || print_logits(&r, path[0], &err)) {
        fprintf(stderr, "lepton logits: %s\n", err.message);
        code = EXIT_FAILED;
    }
    close_run(&r);
    config_release(&table, &s);
    return code;
}
