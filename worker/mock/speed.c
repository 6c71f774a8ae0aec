#include "worker/mock/speed.h"

#include "common/config.h"

struct numbers {
    double base_us, decode_us, prefill_us;
    int64_t step_tokens, max_sequences, kv_tokens, cache_places;
    bool stamps;
};

#define REAL(member, low, preset, text)                                                                \
    {                                                                                                  \
        .name = #member, .kind = CONFIG_FLOAT, .offset = offsetof(struct numbers, member), .min = low, \
        .max = 1e9, .standard = preset, .help = text                                                   \
    }
#define INT(member, low, high, preset, text)                                                         \
    {                                                                                                \
        .name = #member, .kind = CONFIG_INT, .offset = offsetof(struct numbers, member), .min = low, \
        .max = high, .standard = preset, .help = text                                                \
    }

static const struct config_option options[] = {
    REAL(base_us, 0, "20000", "Of a step: the weights are read once."),
    REAL(decode_us, 0, "250", "More for each sequence that decodes."),
    REAL(prefill_us, 1e-3, "100", "For each token when arithmetic is the limit."),
    INT(step_tokens, 1, 1000000, "1024", "Tokens of a step."),
    INT(max_sequences, 1, 65536, "32", "Sequences at once."),
    INT(kv_tokens, 1, 1000000000000, "200000", "KV cache, in tokens."),
    INT(cache_places, 0, 1000000, "4096", "Beginnings of prompts that are remembered."),
    {.name = "stamps",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct numbers, stamps),
     .help = "Tokens say when they were made (lepton load --stamps)."},
};

static const struct config_table table = {
    .program = "speed",
    .about = "How fast a group without a model is.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct numbers),
};

int engine_speed_load(struct engine_speed *speed, bool *stamps, const char *path, struct err *err)
{
    struct numbers n;
    config_defaults(&table, &n);
    int code = config_load(&table, &n, path, err);
    *speed = (struct engine_speed){.base_us = n.base_us,
                                   .decode_us = n.decode_us,
                                   .prefill_us = n.prefill_us,
                                   .step_tokens = (uint32_t)n.step_tokens,
                                   .max_sequences = (uint32_t)n.max_sequences,
                                   .kv_tokens = (uint64_t)n.kv_tokens,
                                   .cache_places = (uint32_t)n.cache_places};
    if (stamps)
        *stamps = n.stamps;
    config_release(&table, &n);
    return code;
}
