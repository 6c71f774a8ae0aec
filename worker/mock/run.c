#include "worker/mock/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/log.h"
#include "worker/mock/mock.h"
#include "worker/mock/speed.h"

#define PAGE_TOKENS 1 /* KV room is counted in tokens */

static struct wire_str ended_of(const struct worker_settings *s)
{
    return s->ended ? wire_string_mend(s->ended, WIRE_MAX_ENDED) : (struct wire_str){NULL, 0};
}

/* Its class is its own: a mock group's answers are no model's. */
static struct wire_hello describe(const struct worker_settings *s, const struct engine_speed *speed,
                                  struct wire_stage *stage, char host[128])
{
    if (gethostname(host, 127) != 0)
        snprintf(host, 128, "localhost");
    *stage = (struct wire_stage){
        .last_layer = 1, .tensor = 1, .pid = (uint64_t)getpid(), .host = wire_string_mend(host, 127)};
    return (struct wire_hello){.group = wire_string(s->group),
                               .ended = ended_of(s),
                               .model = wire_string(s->model_name ? s->model_name : "mock"),
                               .weights = wire_string("mock"),
                               .kernels = wire_string("mock"),
                               .kv_type = wire_string("mock"),
                               .tensor = 1,
                               .max_sequences = speed->max_sequences,
                               .context = speed->kv_tokens < UINT32_MAX ? speed->kv_tokens : UINT32_MAX,
                               .pages = speed->kv_tokens,
                               .page_tokens = PAGE_TOKENS,
                               .stages = stage,
                               .stage_count = 1};
}

int mock_run(const struct worker_settings *s, void (*serving)(struct link *link), struct err *err)
{
    struct engine_speed speed;
    bool stamps;
    struct curve_key server = {0}, own = {0};
    struct tokenizer *tokenizer = NULL;
    struct gguf *vocabulary = NULL;
    struct mailbox *mailbox = NULL;
    struct link *link = NULL;
    struct wire_stage stage;
    char host[128];
    int code = -1;
    if (!s->server_key || !s->key) {
        err_set(err, "server_key and key: both are needed to reach the coordinator (see lepton keygen)");
        return -1;
    }
    if (engine_speed_load(&speed, &stamps, s->mock, err) || curve_load(&server, s->server_key, true, err) ||
        curve_load(&own, s->key, false, err) || mock_tokenizer(&tokenizer, &vocabulary, stamps, err))
        goto out;
    mailbox_open(&mailbox);
    struct link_options options = {.endpoint = s->endpoint,
                                   .server_key = server.public_key,
                                   .key = &own,
                                   .hello = describe(s, &speed, &stage, host),
                                   .tokenizer = tokenizer,
                                   .mailbox = mailbox,
                                   .max_live = 2 * speed.max_sequences};
    if (link_start(&link, &options, err))
        goto out;
    log_info("worker", "mock group %s: %.0f us a step, %.1f us a prompt token, %u sequences", s->group,
             speed.base_us, speed.prefill_us, speed.max_sequences);
    serving(link);
    mock_serve(mailbox, &speed, stamps);
    serving(NULL);
    link_stop(&link);
    code = 0;
out:
    mailbox_close(&mailbox);
    tokenizer_close(&tokenizer);
    gguf_close(&vocabulary);
    curve_wipe(&own);
    return code;
}
