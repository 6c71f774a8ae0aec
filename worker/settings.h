/* settings: the options of lepton-worker, as one table (file, command line, help), and the numbers that
 * follow from them and a model: the same on every rank without talking. */
#ifndef LEPTON_WORKER_SETTINGS_H
#define LEPTON_WORKER_SETTINGS_H

#include "common/config.h"
#include "worker/infer/execute.h"

struct worker_settings {
    char *config, *mock, *model, *models, *verify, *model_name, *group, *ended, *last_words, *endpoint,
        *server_key, *key, *device, *kernels, *kv_type, *speculation, *comm, *nccl_library, *load_file,
        *log_level, *log_format;
    int64_t threads, processors, tensor, context, max_sequences, step_tokens, mixed_tokens, page_tokens,
        kv_bytes, speculation_tokens, priority_step_ms;
    bool prefix_cache, f16_as_bf16, alone;
    int64_t step_limit_ms, wait_limit_ms, start_limit_ms, load_log_ms;
};

extern const struct config_table worker_table;

/* Layers of each stage: first[0..stages], by cost. */
int settings_split(const struct gguf *g, const struct model_params *params, int stages, int *first,
                   struct err *err);
/* Limits of the engine. `layers` = the most layers that one stage holds (a group's capacity is its smallest
 * stage's); with tensor slots, params->kv_heads = the most KV heads that one of them holds. */
int settings_engine(struct executor_options *out, const struct worker_settings *s,
                    const struct model_params *params, int64_t layers, struct err *err);

#endif
