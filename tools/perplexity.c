/* lepton perplexity: how well a model predicts a text: exp(mean negative log-likelihood per token). One
 * process, the same executor as a rank's, no network. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/clock.h"
#include "tools/command.h"
#include "worker/infer/execute.h"
#include "worker/model/registry.h"
#include "worker/model/tokenizer.h"

struct perplexity_settings {
    char *file, *kv_type, *kernels, *models;
    bool json;
    int64_t context, threads, bytes, chunk;
};

#define OPTION(member) offsetof(struct perplexity_settings, member)

static const struct config_option options[] = {
    {"file", 'f', CONFIG_STRING, OPTION(file), 0, 0, NULL, "PATH", NULL, "the text", false},
    {"bytes", 'b', CONFIG_INT, OPTION(bytes), 0, 1 << 30, "0", "N", NULL,
     "read only the first N bytes; 0 = all", false},
    {"context", 0, CONFIG_INT, OPTION(context), 2, 1 << 20, "512", "N", NULL,
     "tokens of a window (at most the model's context)", false},
    {"chunk", 0, CONFIG_INT, OPTION(chunk), 1, 65536, "128", "N", NULL, "rows of one step", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "N", NULL, "threads; 0 = every processor",
     false},
    {"kv_type", 0, CONFIG_STRING, OPTION(kv_type), 0, 0, "f32", "TYPE", "f32|f16|bf16|q8_0",
     "element type of the KV cache", false},
    {"kernels", 0, CONFIG_STRING, OPTION(kernels), 0, 0, "auto", "NAME",
     "auto|reference|avx2|avx512vnni|avx512bf16", "kernel set; auto = the fastest that this processor has",
     false},
    {"json", 'j', CONFIG_BOOL, OPTION(json), 0, 0, NULL, NULL, NULL, "print one JSON object", false},
    MODELS_OPTION(struct perplexity_settings),
};

static const struct config_table table = {
    .program = "lepton perplexity",
    .arguments = "MODEL",
    .about =
        "Perplexity of a text under a model. The text is cut into windows of --context tokens that do not "
        "overlap; each "
        "begins with the model's BOS token when it has one, and every other token of the window is scored.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct perplexity_settings),
};

struct run {
    struct registry_model source;
    struct gguf *gguf;
    struct device *device;
    struct model *model;
    struct tokenizer *tokenizer;
    struct executor *executor;
    struct executor_options engine;
    struct step step;
    void *rows, *targets, *losses; /* device memory, [chunk] each */
    double total;                  /* nats */
    int64_t scored;
    uint64_t begun_ms, shown_ms;
};

static int read_text(const struct perplexity_settings *s, struct buffer *text, struct err *err)
{
    char part[65536];
    size_t n;
    FILE *f = fopen(s->file, "rb");
    if (!f)
        return err_set(err, "%s: %s", s->file, strerror(errno));
    while ((n = fread(part, 1, sizeof(part), f)) > 0) {
        buffer_append(text, part, n);
        if (s->bytes && text->size >= (size_t)s->bytes) {
            text->size = (size_t)s->bytes;
            break;
        }
    }
    bool failed = ferror(f);
    fclose(f);
    return failed ? err_set(err, "%s: cannot be read", s->file) : 0;
}

static int open_run(struct run *r, const struct perplexity_settings *s, const char *path, struct err *err)
{
    struct device_options device = {.threads = (int)s->threads, .kernels = s->kernels};
    struct model_params sizes = {0};
    if (registry_find(&r->source, s->models, path, VERIFY_REGISTERED, err) ||
        registry_open(&r->gguf, &r->source, (int)s->threads, err) || model_params_read(&sizes, r->gguf, err))
        return -1;
    model_params_release(&sizes); /* the numbers stay */
    struct model_slice all = {.last_layer = sizes.layers, .embed = true, .head = true, .context = s->context};
    struct model_check check = registry_check(&r->source);
    if (tokenizer_open(&r->tokenizer, r->gguf, err) || device_open(&r->device, "cpu", &device, err) ||
        model_open_checked(&r->model, r->gguf, r->device, &all, &check, err))
        return -1;
    const struct model_params *p = &r->model->params;
    if (tokenizer_vocab_size(r->tokenizer) > p->vocab)
        return err_set(err, "%s: the tokenizer has %d tokens, the model's embedding %lld rows", path,
                       tokenizer_vocab_size(r->tokenizer), (long long)p->vocab);
    int32_t context = (int32_t)(s->context < p->context ? s->context : p->context);
    int32_t chunk = (int32_t)(s->chunk < context ? s->chunk : context), page_tokens = 16;
    int32_t pages = (context + page_tokens - 1) / page_tokens;
    r->engine = (struct executor_options){.page_tokens = page_tokens,
                                          .limits = {.tokens = chunk,
                                                     .sequences = chunk, /* every row gets logits */
                                                     .slots = 1,
                                                     .context = context,
                                                     .pages = pages,
                                                     .pages_per_sequence = pages,
                                                     .vocab = (int32_t)p->vocab,
                                                     .page_ops = pages}};
    bool known = dtype_from_name(s->kv_type, &r->engine.kv_type);
    ASSERT(known);
    if (executor_open(&r->executor, r->model, &r->engine, err))
        return -1;
    step_init(&r->step, &r->engine.limits);
    r->rows = device_alloc(r->device, (size_t)chunk * sizeof(int32_t), err);
    r->targets = device_alloc(r->device, (size_t)chunk * sizeof(int32_t), err);
    r->losses = device_alloc(r->device, (size_t)chunk * sizeof(float), err);
    return r->rows && r->targets && r->losses ? 0 : -1;
}

static void close_run(struct run *r)
{
    if (r->device) {
        device_free(r->device, r->rows);
        device_free(r->device, r->targets);
        device_free(r->device, r->losses);
    }
    step_release(&r->step);
    executor_close(&r->executor);
    model_close(&r->model);
    device_close(&r->device);
    tokenizer_close(&r->tokenizer);
    gguf_close(&r->gguf);
    registry_release(&r->source);
}

/* Feeds rows [position, position + tokens) of a window and scores what they predict. ids[position + tokens]
 * exists for `targets` of them. */
static int score_rows(struct run *r, const int32_t *ids, int32_t position, int32_t tokens, int32_t targets,
                      struct err *err)
{
    struct stream *stream = executor_stream(r->executor);
    int32_t rows[tokens];
    float losses[tokens];
    step_clear(&r->step, 1, 0);
    r->step.sequences[r->step.sequence_count++] =
        (struct step_sequence){.position = position, .tokens = tokens};
    r->step.token_count = tokens;
    memcpy(r->step.ids, ids + position, (size_t)tokens * sizeof(int32_t));
    for (int32_t page = 0; position == 0 && page < r->engine.limits.pages; page++)
        r->step.ops[r->step.op_count++] = (struct page_op){.kind = PAGE_ASSIGN, .b = page, .c = page};
    if (executor_run(r->executor, &r->step, NULL, NULL, err))
        return -1;
    for (int32_t i = 0; i < targets; i++)
        rows[i] = i;
    stream_upload(stream, r->rows, rows, (size_t)targets * sizeof(int32_t));
    stream_upload(stream, r->targets, ids + position + 1, (size_t)targets * sizeof(int32_t));
    struct tensor row_tensor = tensor_1d(r->device, DTYPE_I32, r->rows, targets);
    struct tensor target_tensor = tensor_1d(r->device, DTYPE_I32, r->targets, targets);
    struct tensor loss_tensor = tensor_1d(r->device, DTYPE_F32, r->losses, targets);
    struct tensor logits = stage_logits(executor_stage(r->executor), tokens, &row_tensor);
    kernel_token_loss(stream, &loss_tensor, &logits, &target_tensor);
    stream_download(stream, losses, r->losses, (size_t)targets * sizeof(float));
    if (stream_sync(stream, err))
        return -1;
    for (int32_t i = 0; i < targets; i++)
        r->total += losses[i];
    r->scored += targets;
    return 0;
}

static int score_window(struct run *r, const int32_t *ids, int32_t count, struct err *err)
{
    for (int32_t position = 0; position < count - 1;) {
        int32_t left = count - 1 - position; /* the last token is only a target */
        int32_t tokens = left < r->engine.limits.tokens ? left : r->engine.limits.tokens;
        if (score_rows(r, ids, position, tokens, tokens, err))
            return -1;
        position += tokens;
    }
    return 0;
}

static void show_progress(struct run *r, size_t done, size_t all)
{
    uint64_t now_ms = clock_now_ms();
    if (!isatty(STDERR_FILENO) || now_ms - r->begun_ms < 1000 || now_ms - r->shown_ms < 200)
        return;
    r->shown_ms = now_ms;
    fprintf(stderr, "\r%zu of %zu tokens, perplexity so far %.4f ", done, all,
            exp(r->total / (double)r->scored));
}

static int score_text(struct run *r, const struct perplexity_settings *s, size_t *tokens, struct err *err)
{
    struct buffer text = {0};
    struct token_ids ids = {0};
    struct tokenizer_options plain = {0};
    int code = read_text(s, &text, err);
    if (code == 0)
        code = tokenizer_encode(r->tokenizer, (const char *)text.data, text.size, &plain, &ids, err);
    int32_t bos = tokenizer_adds_bos(r->tokenizer) ? tokenizer_bos(r->tokenizer) : -1,
            context = r->engine.limits.context;
    int32_t *window = xcalloc((size_t)context, sizeof(int32_t));
    size_t room = (size_t)context - (bos >= 0);
    for (size_t at = 0; code == 0 && at < ids.count; at += room) {
        size_t count = ids.count - at < room ? ids.count - at : room;
        if (bos >= 0)
            window[0] = bos;
        memcpy(window + (bos >= 0), ids.data + at, count * sizeof(int32_t));
        code = score_window(r, window, (int32_t)count + (bos >= 0), err);
        show_progress(r, at + count, ids.count);
    }
    *tokens = ids.count;
    if (code == 0 && r->scored == 0)
        code = err_set(err, "%s: %zu tokens: nothing to score", s->file, ids.count);
    free(window);
    token_ids_release(&ids);
    buffer_release(&text);
    return code;
}

static void print_result(const struct run *r, const struct perplexity_settings *s, const char *path,
                         size_t tokens)
{
    double mean = r->total / (double)r->scored, seconds = (double)(clock_now_ms() - r->begun_ms) / 1000;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
    if (!s->json) {
        printf("perplexity %.6f over %lld tokens (%.6f nats a token)\n", exp(mean), (long long)r->scored,
               mean);
        return;
    }
    json_t *o =
        json_pack("{s:s, s:s, s:f, s:f, s:I, s:I, s:i, s:f}", "model", path, "file", s->file, "perplexity",
                  exp(mean), "nats_per_token", mean, "tokens", (json_int_t)tokens, "scored",
                  (json_int_t)r->scored, "context", (int)r->engine.limits.context, "seconds", seconds);
    json_dumpf(o, stdout, JSON_REAL_PRECISION(12));
    printf("\n");
    json_decref(o);
}

int command_perplexity(int argc, char **argv)
{
    struct perplexity_settings s;
    struct run r = {.begun_ms = clock_now_ms()};
    struct err err = {0};
    const char *path[1];
    size_t tokens = 0;
    int code = EXIT_OK;
    config_main(&table, &s, argc, argv, path, 1);
    if (!s.file) {
        fprintf(stderr, "lepton perplexity: --file: expected the path of a text\n");
        config_release(&table, &s);
        return EXIT_USAGE;
    }
    if (open_run(&r, &s, path[0], &err) || score_text(&r, &s, &tokens, &err)) {
        fprintf(stderr, "lepton perplexity: %s\n", err.message);
        code = EXIT_FAILED;
    } else {
        print_result(&r, &s, path[0], tokens);
    }
    close_run(&r);
    config_release(&table, &s);
    return code;
}
