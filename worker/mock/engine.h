/* engine: a worker group's engine without a model: when each step ends and which tokens it brings. PURE: time
 * is an argument. The simulator runs thousands of them in one process, and a mock group runs one in real
 * time, so what the one says about the other can be measured.
 *
 * It keeps the rules of worker/infer: continuous batching, decoding before prefill, prompts in chunks under a
 * token budget, KV pages reserved, prefixes kept while there is room, least recently used first. Choices of
 * one request share their prompt: the first computes it, the others begin when it is there. A step of d
 * decoding sequences and p prompt tokens takes
 *
 *      max(base_us + d * decode_us, (d + p) * prefill_us)
 *
 * the larger of reading the weights (and each sequence's keys) and of the arithmetic. */
#ifndef LEPTON_WORKER_MOCK_ENGINE_H
#define LEPTON_WORKER_MOCK_ENGINE_H

#include "common/base.h"

#define ENGINE_NEVER  UINT64_MAX
#define ENGINE_PLACES 64 /* of a prompt, at most */

struct engine_speed {
    double base_us;    /* of a step: the weights are read once */
    double decode_us;  /* more for each sequence that decodes */
    double prefill_us; /* for each token when arithmetic is the limit */
    uint32_t step_tokens, max_sequences;
    uint64_t kv_tokens;    /* of the KV cache, prefixes included */
    uint32_t cache_places; /* beginnings of prompts that are remembered; 0: no prefix reuse */
};
/* A group of one accelerator with a model of some billion parameters. */
extern const struct engine_speed engine_standard_speed;

/* The beginning of a prompt: the name of its first tokens[i] tokens, shortest first. */
struct engine_place {
    uint64_t name;
    uint32_t tokens;
};

struct engine_request {
    uint64_t id;
    uint32_t prompt_tokens, output_tokens; /* both >= 1 */
    uint32_t choices;                      /* sequences over the prompt; 0: 1 */
    uint32_t place_count;
    const struct engine_place *places; /* borrowed during the call */
};

enum engine_event_kind {
    ENGINE_TOKENS,    /* it has `tokens` now; the first time: its prefill is over */
    ENGINE_DONE,      /* all its tokens came */
    ENGINE_CANCELLED, /* it is gone, with `tokens` generated */
};
struct engine_event {
    enum engine_event_kind kind;
    uint64_t id;
    uint32_t choice; /* of the request */
    uint32_t tokens, cached_tokens;
};

struct engine;
/* max_jump: steps that may be taken as one while nothing but decoding happens; 1: every token is an event. */
struct engine *engine_new(const struct engine_speed *speed, uint32_t max_jump);
void engine_free(struct engine **e);
void engine_submit(struct engine *e, const struct engine_request *r, uint64_t now_us);
/* One choice, or all (-1), leave with the step under way; an unknown id does nothing. */
void engine_cancel(struct engine *e, uint64_t id, int32_t choice, uint64_t now_us);
/* When the step under way ends; ENGINE_NEVER when there is nothing to do. */
uint64_t engine_due_us(const struct engine *e);
/* Ends the step that was due and begins the next. The events are valid until the next call. */
size_t engine_step(struct engine *e, const struct engine_event **events);
uint32_t engine_running(const struct engine *e);
uint32_t engine_waiting(const struct engine *e);
uint64_t engine_kv_used(const struct engine *e); /* tokens, without kept prefixes */
/* Sequences that decode at once and tokens/s of prefill and decoding at full batch: what a group would
 * measure of itself. */
double engine_prefill_rate(const struct engine_speed *s);
double engine_decode_rate(const struct engine_speed *s);

#endif
