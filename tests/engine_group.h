/* engine_group: a whole worker group in one process: every rank a thread that runs serve as a rank does, the
 * test in the place of the link, through the mailbox. The engine is set up by the worker's own options, given
 * as the words of its command line, so that what a test varies is what a user would vary. */
#ifndef LEPTON_TESTS_ENGINE_GROUP_H
#define LEPTON_TESTS_ENGINE_GROUP_H

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tests/thread_comm.h"
#include "worker/infer/serve.h"
#include "worker/layout.h"
#include "worker/settings.h"

#define ENGINE_GROUP_WAIT_MS 120000

struct engine_rank {
    struct engine_group *group;
    int rank;
    struct gguf *gguf;
    struct device *device;
    struct model *model;
    struct executor *executor;
    struct serve_options options;
    pthread_t thread;
};

struct engine_group {
    struct worker_settings settings;
    struct model_params params; /* its numbers */
    struct executor_options engine;
    struct layout layout;
    int ranks;
    int first_layer[THREAD_COMM_RANKS + 1];
    struct thread_world control, data;
    struct thread_world tensor[THREAD_COMM_RANKS]; /* of each stage */
    struct wake_info wake_info;
    struct mailbox *mailbox;
    bool *is_end; /* [vocab] to be filled before engine_group_start */
    struct engine_rank rank[THREAD_COMM_RANKS];
};

/* What follows from the settings and the model, as on every rank. */
static inline void engine_group_size(struct engine_group *g, const struct gguf *gguf, int32_t pages)
{
    struct err err = {0};
    int64_t most = 0;
    enum dtype kv_type;
    if (model_params_read(&g->params, gguf, &err) ||
        settings_split(gguf, &g->params, g->layout.stages, g->first_layer, &err))
        die("%s", err.message);
    struct slice_blocks blocks = slice_blocks(&g->params, gguf);
    if (slice_widest_kv_heads(&g->params.kv_heads, &g->params, &blocks, g->layout.tensor, &err))
        die("%s", err.message);
    for (int i = 0; i < g->layout.stages; i++)
        if (g->first_layer[i + 1] - g->first_layer[i] > most)
            most = g->first_layer[i + 1] - g->first_layer[i];
    if (pages && dtype_from_name(g->settings.kv_type, &kv_type))
        g->settings.kv_bytes =
            (int64_t)kv_page_bytes(&g->params, most, (int32_t)g->settings.page_tokens, kv_type) * pages;
    if (settings_engine(&g->engine, &g->settings, &g->params, most, &err))
        die("%s", err.message);
    model_params_release(&g->params);
}

/* Opens the model's slices and the executors. `words` are options of lepton-worker ("--step-tokens", "16",
 * …); `pages` (unless 0) sets the KV budget to so many pages. Ends the test program when one is refused. */
static inline void engine_group_open(struct engine_group *g, const char *path, int stages, int32_t pages,
                                     const char *const *words, int count)
{
    struct err err = {0};
    char *argv[64] = {"lepton-worker", "--model", (char *)(uintptr_t)path};
    int argc = 3, arguments = 0;
    ASSERT(count < 60);
    for (int i = 0; i < count; i++)
        argv[argc++] = (char *)(uintptr_t)words[i];
    *g = (struct engine_group){.ranks = 0};
    config_defaults(&worker_table, &g->settings);
    if (config_args(&worker_table, &g->settings, argc, argv, NULL, &arguments, &err))
        die("%s", err.message);
    g->layout = (struct layout){.stages = stages, .tensor = (int)g->settings.tensor, .replicas = 1};
    g->ranks = stages * g->layout.tensor;
    ASSERT(g->ranks <= THREAD_COMM_RANKS);
    for (int r = 0; r < g->ranks; r++) {
        struct engine_rank *k = &g->rank[r];
        struct layout_place place = layout_place(&g->layout, r);
        struct device_options device = {.threads = (int)g->settings.threads, .kernels = g->settings.kernels};
        if (gguf_open(&k->gguf, path, &err) || device_open(&k->device, "cpu", &device, &err))
            die("%s", err.message);
        if (r == 0)
            engine_group_size(g, k->gguf, pages);
        struct model_slice slice = {.first_layer = g->first_layer[place.stage],
                                    .last_layer = g->first_layer[place.stage + 1],
                                    .embed = place.stage == 0,
                                    .head = place.stage == stages - 1,
                                    .context = g->engine.limits.context,
                                    .width = g->layout.tensor,
                                    .slot = place.slot};
        if (model_open(&k->model, k->gguf, k->device, &slice, &err) ||
            executor_open(&k->executor, k->model, &g->engine, &err))
            die("%s", err.message);
        k->group = g;
        k->rank = r;
    }
    g->is_end = xcalloc((size_t)g->engine.limits.vocab, sizeof(bool));
    mailbox_open(&g->mailbox);
}

static inline void *engine_rank_run(void *context)
{
    struct engine_rank *k = context;
    struct engine_group *g = k->group;
    struct err err = {0};
    if (g->ranks > 1 && (k->rank == 0 ? wake_accept(k->options.wake, g->ranks - 1, 10000, &err)
                                      : wake_connect(&k->options.wake, &g->wake_info, 10000, &err)))
        die("%s", err.message);
    if (k->rank == 0 ? serve_leader(&k->options, &err) : serve_follower(&k->options, &err))
        die("%s", err.message);
    return NULL;
}

/* Starts the ranks' threads. */
static inline void engine_group_start(struct engine_group *g)
{
    struct err err = {0};
    thread_world_init(&g->control, g->ranks);
    thread_world_init(&g->data, g->ranks);
    for (int s = 0; s < g->layout.stages; s++)
        thread_world_init(&g->tensor[s], g->layout.tensor);
    for (int r = 0; r < g->ranks; r++) {
        struct engine_rank *k = &g->rank[r];
        k->options = (struct serve_options){.executor = k->executor, .engine = g->engine};
        if (r == 0) {
            k->options.mailbox = g->mailbox;
            k->options.is_end = g->is_end;
            k->options.mixed_tokens = (int32_t)g->settings.mixed_tokens;
            k->options.priority_step_ms = (uint64_t)g->settings.priority_step_ms;
            k->options.no_prefix_cache = !g->settings.prefix_cache;
            k->options.speculation =
                strcmp(g->settings.speculation, "ngram") == 0 ? SPECULATION_NGRAM : SPECULATION_OFF;
            k->options.draft_tokens = (int32_t)g->settings.speculation_tokens;
        }
        struct layout_place place = layout_place(&g->layout, r);
        if (g->layout.tensor > 1)
            k->options.tensor = thread_comm_open(&g->tensor[place.stage], place.slot);
        if (g->ranks > 1) {
            k->options.control = thread_comm_open(&g->control, r);
            k->options.data = thread_comm_open(&g->data, r);
        }
    }
    if (g->ranks > 1 && wake_listen(&g->rank[0].options.wake, &g->wake_info, &err))
        die("%s", err.message);
    for (int r = 0; r < g->ranks; r++)
        if (pthread_create(&g->rank[r].thread, NULL, engine_rank_run, &g->rank[r]))
            die("no thread");
}

static inline void engine_group_submit(struct engine_group *g, const struct sequence_request *request)
{
    struct command c = {.kind = COMMAND_SUBMIT, .request = *request};
    size_t bytes = (size_t)request->prompt_tokens * sizeof(int32_t);
    c.request.prompt = xmalloc(bytes);
    memcpy(c.request.prompt, request->prompt, bytes);
    size_t bias_bytes = (size_t)request->sampling.bias_count * sizeof(*request->biases);
    c.request.biases = NULL;
    if (bias_bytes) {
        c.request.biases = xmalloc(bias_bytes);
        memcpy(c.request.biases, request->biases, bias_bytes);
    }
    if (request->delivered_tokens) {
        int32_t total = 0;
        for (int32_t i = 0; i < request->choices; i++)
            total += request->delivered_tokens[i] > 0 ? request->delivered_tokens[i] : 0;
        size_t counts = (size_t)request->choices * sizeof(int32_t), ids = (size_t)total * sizeof(int32_t);
        c.request.delivered_tokens = xmalloc(counts);
        memcpy(c.request.delivered_tokens, request->delivered_tokens, counts);
        c.request.delivered = xmalloc(ids + 1);
        memcpy(c.request.delivered, request->delivered, ids);
    }
    mailbox_send(g->mailbox, &c);
}

static inline void engine_group_cancel(struct engine_group *g, uint64_t handle)
{
    mailbox_send(g->mailbox,
                 &(struct command){.kind = COMMAND_CANCEL, .request = {.handle = handle, .choice = -1}});
}

/* Waits for the next event; a group that says nothing for two minutes ends the test program. */
static inline struct event engine_group_next(struct engine_group *g)
{
    struct event e;
    while (!mailbox_next(g->mailbox, &e)) {
        struct pollfd p = {.fd = mailbox_event_fd(g->mailbox), .events = POLLIN};
        if (poll(&p, 1, ENGINE_GROUP_WAIT_MS) != 1)
            die("no event came within %d s", ENGINE_GROUP_WAIT_MS / 1000);
    }
    return e;
}

/* Drains, waits for the ranks, closes everything; returns the last statistics. No request may be left that
 * has not ended. */
static inline struct serve_stats engine_group_close(struct engine_group *g)
{
    mailbox_send(g->mailbox, &(struct command){.kind = COMMAND_DRAIN});
    while (engine_group_next(g).kind != EVENT_LEFT)
        ;
    struct serve_stats stats = mailbox_stats(g->mailbox);
    for (int r = 0; r < g->ranks; r++)
        pthread_join(g->rank[r].thread, NULL);
    for (int r = 0; r < g->ranks; r++) {
        struct engine_rank *k = &g->rank[r];
        wake_close(&k->options.wake);
        comm_close(&k->options.control);
        comm_close(&k->options.data);
        comm_close(&k->options.tensor);
        executor_close(&k->executor);
        model_close(&k->model);
        device_close(&k->device);
        gguf_close(&k->gguf);
    }
    thread_world_release(&g->control);
    thread_world_release(&g->data);
    for (int s = 0; s < g->layout.stages; s++)
        thread_world_release(&g->tensor[s]);
    mailbox_close(&g->mailbox);
    free(g->is_end);
    config_release(&worker_table, &g->settings);
    return stats;
}

#endif
