/* A real group for `lepton bench engine`: coordinator, supervisor and MPI job as `lepton run` starts them,
 * driven by a client over ZeroMQ. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "tools/bench.h"
#include "tools/bench_engine.h"
#include "tools/local.h"
#include "tools/prompt.h"
#include "worker/model/registry.h"
#include "worker/model/tokenizer.h"

#define START_MS     120000
#define HEARTBEAT_US 10000000
#define SETTLE_US    50000 /* from the last stream's end until the leader has counted its step */

struct bench_group {
    struct bench_target target; /* first: the two are cast into each other */
    struct local *local;
    struct client *client;
    int interrupt_fd;
    uint64_t over_us;            /* when the last stream ended */
    struct tokenizer *tokenizer; /* for prompts of the wanted length */
};

static int open_tokenizer(struct bench_group *g, const struct bench_target_options *o, struct err *err)
{
    struct registry_model source = {0};
    struct gguf *gguf = NULL;
    int code = registry_find(&source, o->models, o->model, VERIFY_NEVER, err) ||
                       registry_open_vocabulary(&gguf, &source, err) ||
                       tokenizer_open(&g->tokenizer, gguf, err)
                   ? -1
                   : 0;
    gguf_close(&gguf);
    registry_release(&source);
    return code;
}

/* Random letters and spaces until they make at least `tokens` tokens, cut back to the nearest length below.
 */
static int make_prompt(const struct bench_group *g, struct bench_stream *q, struct buffer *text,
                       struct err *err)
{
    uint64_t state = q->prompt * 0x9E3779B97F4A7C15ull + 1;
    struct token_ids ids = {0};
    struct tokenizer_options how = {.add_bos = tokenizer_adds_bos(g->tokenizer)};
    int code = 0;
    while (code == 0 && ids.count < (size_t)q->prompt_tokens) {
        size_t missing = (size_t)q->prompt_tokens - ids.count; /* a token has at least one letter */
        for (size_t i = 0; i < missing; i++) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            char c = (char)((state >> 40) % 7 == 0 ? ' ' : 'a' + (state >> 33) % 26);
            buffer_append(text, &c, 1);
        }
        ids.count = 0;
        code = tokenizer_encode(g->tokenizer, (const char *)text->data, text->size, &how, &ids, err);
    }
    while (code == 0 && ids.count > (size_t)q->prompt_tokens && text->size > 1) {
        text->size--;
        ids.count = 0;
        code = tokenizer_encode(g->tokenizer, (const char *)text->data, text->size, &how, &ids, err);
    }
    q->prompt_tokens = (int32_t)ids.count;
    token_ids_release(&ids);
    return code;
}

static void on_token(struct client_job *job)
{
    struct bench_stream *q = job->context;
    uint64_t now_us = clock_now_us();
    if (q->tokens == 0)
        q->first_us = now_us;
    if (q->tokens < q->max_tokens)
        q->token_us[q->tokens++] = now_us;
}

static void fill_job(struct client_job *job, struct bench_stream *q, const struct buffer *text)
{
    struct wire_message m;
    wire_init(&m, WIRE_GENERATE);
    job->ask = m.generate;
    job->ask.prompt = (struct wire_str){.data = (const char *)text->data, .size = (uint32_t)text->size};
    job->ask.max_tokens = (uint64_t)q->max_tokens;
    job->ask.timeout_ms = 86400000;
    job->ask.sampling.temperature = 0;
    job->ask.sampling.ignore_eos = true;
    if (q->speculation != SPECULATION_DEFAULT)
        job->ask.service.speculation = wire_string(q->speculation == SPECULATION_NGRAM ? "ngram" : "off");
    job->on_token = on_token;
    job->context = q;
    q->tokens = 0;
}

static int job_result(struct bench_group *g, const struct client_job *job, struct bench_stream *q,
                      struct err *err)
{
    if (job->error.code)
        return err_set(err, "%s", job->error.message);
    if (q->tokens != q->max_tokens)
        return err_set(err, "a stream ended (%s) after %d of %d tokens", client_job_finish(job, 0), q->tokens,
                       q->max_tokens);
    q->sent_us = job->sent_us;
    q->over_us = job->over_us;
    q->prefill_us = job->prefill_us;
    q->decode_us = job->decode_us;
    q->drafted = job->drafted_tokens;
    q->accepted = job->accepted_tokens;
    g->over_us = q->over_us > g->over_us ? q->over_us : g->over_us;
    return 0;
}

static int group_run(struct bench_target *t, struct bench_stream *streams, int32_t count, struct err *err)
{
    struct bench_group *g = (struct bench_group *)t;
    struct client_job *jobs = xcalloc((size_t)count, sizeof(*jobs));
    struct buffer *texts = xcalloc((size_t)count, sizeof(*texts));
    bool interrupted = false;
    int code = 0;
    for (int32_t i = 0; i < count && code == 0; i++) {
        code = make_prompt(g, &streams[i], &texts[i], err);
        fill_job(&jobs[i], &streams[i], &texts[i]);
    }
    if (code == 0)
        code = client_generate_many(g->client, jobs, (size_t)count, &interrupted, err);
    if (code == 0 && interrupted)
        code = err_set(err, "interrupted");
    for (int32_t i = 0; i < count; i++) {
        if (code == 0)
            code = job_result(g, &jobs[i], &streams[i], err);
        client_job_release(&jobs[i]);
        buffer_release(&texts[i]);
    }
    free(jobs);
    free(texts);
    return code;
}

static int group_resident(struct bench_target *t, uint64_t *all, uint64_t *anonymous, struct err *err)
{
    struct bench_group *g = (struct bench_group *)t;
    struct wire_message m;
    if (client_status(g->client, true, 5000, &m, err))
        return -1;
    int code = 0;
    *all = *anonymous = 0;
    for (uint32_t i = 0; i < m.status_reply.group_count && code == 0; i++)
        for (uint32_t k = 0; k < m.status_reply.groups[i].stage_count && code == 0; k++) {
            uint64_t a = 0, b = 0;
            code = bench_resident((int64_t)m.status_reply.groups[i].stages[k].pid, &a, &b, err);
            *all += a;
            *anonymous += b;
        }
    wire_release(&m);
    return code;
}

/* The times of all steps until now come with the first heartbeat behind the last stream. */
static int group_times(struct bench_target *t, struct stage_time *times, int *stages, struct err *err)
{
    struct bench_group *g = (struct bench_group *)t;
    for (uint64_t begun_us = clock_now_us(); clock_now_us() - begun_us < HEARTBEAT_US; usleep(20000)) {
        struct wire_message m;
        if (client_status(g->client, true, 5000, &m, err))
            return -1;
        const struct wire_group_status *s = m.status_reply.group_count ? m.status_reply.groups : NULL;
        bool fresh = s && s->heartbeat_age_ms * 1000 + SETTLE_US < clock_now_us() - g->over_us;
        *stages = fresh && s->stage_count <= STEP_MAX_STAGES ? (int)s->stage_count : 0;
        for (int i = 0; i < *stages; i++)
            times[i] = (struct stage_time){.busy_us = s->stages[i].busy_us,
                                           .wait_us = s->stages[i].wait_us,
                                           .bubble_us = s->stages[i].bubble_us,
                                           .processor_us = s->stages[i].processor_us};
        wire_release(&m);
        if (fresh)
            return 0;
    }
    return err_set(err, "no heartbeat of the group for %d s", HEARTBEAT_US / 1000000);
}

static void group_close(struct bench_target *t)
{
    struct bench_group *g = (struct bench_group *)t;
    client_close(&g->client);
    local_stop(&g->local, 0);
    tokenizer_close(&g->tokenizer);
    free(g);
}

static int read_class(struct bench_group *g, struct err *err)
{
    struct wire_message m;
    if (client_status(g->client, true, 5000, &m, err))
        return -1;
    if (m.status_reply.group_count > 0) {
        const struct wire_group_status *group = &m.status_reply.groups[0];
        char kv_type[16];
        snprintf(g->target.kernel_set, sizeof(g->target.kernel_set), "%.*s", (int)group->kernels.size,
                 group->kernels.data);
        snprintf(kv_type, sizeof(kv_type), "%.*s", (int)group->kv_type.size, group->kv_type.data);
        if (!dtype_from_name(kv_type, &g->target.kv_type))
            g->target.kv_type = DTYPE_F32;
    }
    wire_release(&m);
    return 0;
}

int bench_group_open(struct bench_target **out, const struct bench_target_options *o, struct err *err)
{
    struct bench_group *g = xcalloc(1, sizeof(*g));
    g->target = (struct bench_target){
        .run = group_run, .resident = group_resident, .times = group_times, .close = group_close};
    struct local_options local = {.model = o->model,
                                  .models = o->models,
                                  .store = "none",
                                  .groups = 1,
                                  .stages = o->stages,
                                  .tensor = o->tensor,
                                  .threads = o->threads,
                                  .context = o->context,
                                  .max_sequences = o->max_sequences,
                                  .log_level = "warn",
                                  .worker_arguments = o->worker_arguments};
    g->interrupt_fd = prompt_open_interrupt();
    uint64_t begun_us = clock_now_us();
    int code = open_tokenizer(g, o, err) || local_start(&g->local, &local, err) ? -1 : 0;
    if (code == 0)
        code = local_wait(g->local, &g->client, g->interrupt_fd, START_MS, err);
    if (code > 0)
        code = err_set(err, "interrupted");
    if (code || read_class(g, err)) {
        group_close(&g->target);
        return -1;
    }
    g->target.load_us = clock_now_us() - begun_us;
    client_interrupt_on(g->client, g->interrupt_fd);
    client_retry_for(g->client, 0); /* a run with a gap measures nothing */
    *out = &g->target;
    return 0;
}
