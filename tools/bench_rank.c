/* A group of one rank in this process, for `lepton bench engine`: opened from the options of lepton-worker in
 * the order of its main, served by serve_leader in a thread, and driven through the mailbox as the link does.
 */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "tools/bench.h"
#include "tools/bench_engine.h"
#include "worker/infer/serve.h"
#include "worker/model/registry.h"
#include "worker/model/tokenizer.h"
#include "worker/settings.h"

struct bench_rank {
    struct bench_target target; /* first: the two are cast into each other */
    struct worker_settings settings;
    struct registry_model source;
    struct gguf *gguf;
    struct device *device;
    struct model *model;
    struct tokenizer *tokenizer;
    struct executor_options engine;
    struct executor *executor;
    struct mailbox *mailbox;
    bool *is_end;
    pthread_t thread;
    bool serving;
    struct err served; /* why the step thread ended */
};

static void *serve_main(void *context)
{
    struct bench_rank *r = context;
    bool ngram = strcmp(r->settings.speculation, "ngram") == 0;
    struct serve_options options = {.executor = r->executor,
                                    .engine = r->engine,
                                    .step_limit_ms = (uint64_t)r->settings.step_limit_ms,
                                    .wait_limit_ms = (uint64_t)r->settings.wait_limit_ms,
                                    .mixed_tokens = (int32_t)r->settings.mixed_tokens,
                                    .no_prefix_cache = !r->settings.prefix_cache,
                                    .priority_step_ms = (uint64_t)r->settings.priority_step_ms,
                                    .mailbox = r->mailbox,
                                    .draft_tokens = (int32_t)r->settings.speculation_tokens,
                                    .speculation = ngram ? SPECULATION_NGRAM : SPECULATION_OFF,
                                    .is_end = r->is_end};
    if (serve_leader(&options, &r->served)) /* the caller waits for an event */
        mailbox_emit(r->mailbox, &(struct event){.kind = EVENT_LEFT});
    return NULL;
}

static int read_settings(struct bench_rank *r, const struct bench_target_options *o, struct err *err)
{
    enum { MOST = 64 };
    char *argv[MOST] = {(char[]){"lepton-worker"}};
    int argc = 1, none = 0;
    for (; o->worker_arguments[argc - 1] && argc < MOST; argc++)
        argv[argc] = (char *)(uintptr_t)o->worker_arguments[argc - 1];
    config_defaults(&worker_table, &r->settings);
    r->settings.threads = o->threads;
    r->settings.context = o->context;
    r->settings.max_sequences = o->max_sequences;
    return config_args(&worker_table, &r->settings, argc, argv, NULL, &none, err) ? -1 : 0;
}

static int open_model(struct bench_rank *r, const struct bench_target_options *o, struct err *err)
{
    const struct worker_settings *s = &r->settings;
    struct model_params params;
    struct device_options device = {.threads = (int)s->threads, .kernels = s->kernels};
    if (registry_find(&r->source, o->models, o->model, registry_verify_from_name(s->verify), err) ||
        registry_open(&r->gguf, &r->source, 0, err) || model_params_read(&params, r->gguf, err))
        return -1;
    int code = settings_engine(&r->engine, s, &params, params.layers, err);
    struct model_slice slice = {.last_layer = params.layers, .embed = true, .head = true};
    uint32_t kernels = model_params_kernels(&params);
    if (code == 0)
        r->target.kv_bytes = (uint64_t)r->engine.limits.pages *
                             kv_page_bytes(&params, params.layers, r->engine.page_tokens, r->engine.kv_type);
    model_params_release(&params);
    slice.context = r->engine.limits.context;
    struct model_check check = registry_check(&r->source);
    if (code || device_open(&r->device, s->device, &device, err) ||
        kernels_supported(r->device, kernels, err) ||
        model_open_checked(&r->model, r->gguf, r->device, &slice, &check, err))
        return -1;
    integrity_close(&r->source.integrity);
    return executor_open(&r->executor, r->model, &r->engine, err) ||
                   tokenizer_open(&r->tokenizer, r->gguf, err)
               ? -1
               : 0;
}

static int start_serving(struct bench_rank *r, struct err *err)
{
    r->is_end = xcalloc((size_t)r->engine.limits.vocab, sizeof(bool));
    for (int32_t id = 0; id < tokenizer_vocab_size(r->tokenizer) && id < r->engine.limits.vocab; id++)
        r->is_end[id] = tokenizer_is_end(r->tokenizer, id);
    mailbox_open(&r->mailbox);
    int code = pthread_create(&r->thread, NULL, serve_main, r);
    r->serving = code == 0;
    return code ? err_set(err, "the step thread cannot start: %s", strerror(code)) : 0;
}

/* Random ids, none of the first few, which are the vocabulary's own marks. */
static int32_t *make_prompt(const struct bench_rank *r, const struct bench_stream *q)
{
    uint64_t state = q->prompt * 0x9E3779B97F4A7C15ull + 1;
    int32_t vocab = r->engine.limits.vocab, low = vocab > 16 ? 8 : 0;
    int32_t *ids = xcalloc((size_t)q->prompt_tokens, sizeof(*ids));
    for (int32_t i = 0; i < q->prompt_tokens; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        ids[i] = low + (int32_t)((state >> 33) % (uint64_t)(vocab - low));
    }
    return ids;
}

static void submit(struct bench_rank *r, struct bench_stream *q, uint64_t handle)
{
    struct command c = {.kind = COMMAND_SUBMIT,
                        .request = {.handle = handle,
                                    .prompt = make_prompt(r, q),
                                    .prompt_tokens = q->prompt_tokens,
                                    .max_tokens = q->max_tokens,
                                    .choices = 1,
                                    .speculation = q->speculation,
                                    .sampling = {.top_p = 1, .repetition_penalty = 1, .banned_id = -1}}};
    q->tokens = 0;
    q->sent_us = clock_now_us();
    mailbox_send(r->mailbox, &c);
}

static int take_event(struct bench_stream *streams, int32_t count, const struct event *e, int32_t *live,
                      struct err *err)
{
    struct bench_stream *q = &streams[e->handle];
    uint64_t now_us = e->emitted_us; /* the step's clock: this thread may read many at once */
    ASSERT(e->handle < (uint64_t)count);
    switch (e->kind) {
    case EVENT_TOKEN:
        if (q->tokens == 0)
            q->first_us = now_us;
        ASSERT(q->tokens < q->max_tokens);
        q->token_us[q->tokens++] = now_us;
        return 0;
    case EVENT_DONE:
        q->over_us = now_us;
        q->prefill_us = e->prefill_us;
        q->decode_us = e->decode_us;
        q->drafted = (uint64_t)e->drafted_tokens;
        q->accepted = (uint64_t)e->accepted_tokens;
        (*live)--;
        return 0;
    case EVENT_FAILED:
        return err_set(err, "the model's logits are not finite");
    default:
        return 0;
    }
}

static int rank_run(struct bench_target *t, struct bench_stream *streams, int32_t count, struct err *err)
{
    struct bench_rank *r = (struct bench_rank *)t;
    int32_t live = count;
    for (int32_t i = 0; i < count; i++)
        submit(r, &streams[i], (uint64_t)i);
    while (live > 0) {
        struct event e;
        if (mailbox_next(r->mailbox, &e)) {
            if (e.kind == EVENT_LEFT)
                return err_set(err, "the engine ended: %s", r->served.message);
            if (take_event(streams, count, &e, &live, err))
                return -1;
            continue;
        }
        struct pollfd ready = {.fd = mailbox_event_fd(r->mailbox), .events = POLLIN};
        poll(&ready, 1, -1);
    }
    return 0;
}

static int rank_resident(struct bench_target *t, uint64_t *all, uint64_t *anonymous, struct err *err)
{
    (void)t;
    return bench_resident(getpid(), all, anonymous, err);
}

static int rank_times(struct bench_target *t, struct stage_time *times, int *stages, struct err *err)
{
    struct serve_stats stats = mailbox_stats(((struct bench_rank *)t)->mailbox);
    (void)err;
    memcpy(times, stats.stage, (size_t)stats.stages * sizeof(*times));
    *stages = stats.stages;
    return 0;
}

static void rank_close(struct bench_target *t)
{
    struct bench_rank *r = (struct bench_rank *)t;
    if (r->serving) {
        mailbox_send(r->mailbox, &(struct command){.kind = COMMAND_CANCEL_ALL});
        mailbox_send(r->mailbox, &(struct command){.kind = COMMAND_DRAIN});
        pthread_join(r->thread, NULL);
    }
    mailbox_close(&r->mailbox);
    executor_close(&r->executor);
    model_close(&r->model);
    tokenizer_close(&r->tokenizer);
    device_close(&r->device);
    gguf_close(&r->gguf);
    registry_release(&r->source);
    config_release(&worker_table, &r->settings);
    free(r->is_end);
    free(r);
}

int bench_rank_open(struct bench_target **out, const struct bench_target_options *o, struct err *err)
{
    struct bench_rank *r = xcalloc(1, sizeof(*r));
    r->target = (struct bench_target){
        .run = rank_run, .resident = rank_resident, .times = rank_times, .close = rank_close};
    uint64_t begun_us = clock_now_us();
    if (read_settings(r, o, err) || open_model(r, o, err) || start_serving(r, err)) {
        rank_close(&r->target);
        return -1;
    }
    r->target.kv_type = r->engine.kv_type;
    r->target.load_us = clock_now_us() - begun_us;
    snprintf(r->target.kernel_set, sizeof(r->target.kernel_set), "%s", device_kernel_set(r->device));
    *out = &r->target;
    return 0;
}
