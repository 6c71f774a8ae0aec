/* bench_engine: the two ways in which `lepton bench engine` reaches an engine, behind one table: a group of
 * one rank inside this process (its mailbox, as the link drives it), or a real group with its coordinator,
 * started as `lepton run` starts it. Neither has a loop of its own around the kernels: what is measured is
 * what serves. */
#ifndef LEPTON_TOOLS_BENCH_ENGINE_H
#define LEPTON_TOOLS_BENCH_ENGINE_H

#include "worker/infer/execute.h"
#include "worker/infer/mailbox.h"

/* One request of a measurement. All times are of the monotonic clock, in microseconds. */
struct bench_stream {
    uint64_t prompt;       /* asked: which prompt; two of one number are the same text */
    int32_t prompt_tokens; /* asked; a group's prompts are text and may differ by a little: what came */
    int32_t max_tokens;    /* asked: exactly so many come, all drawn greedily */
    enum speculation speculation;        /* asked */
    uint64_t sent_us, first_us, over_us; /* as we saw it */
    uint64_t prefill_us, decode_us;      /* as the engine says: until the first token, from it to the last */
    uint64_t *token_us;                  /* [max_tokens] the arrival of each; the caller's memory */
    int32_t tokens;                      /* that came */
    uint64_t drafted, accepted;          /* by speculation */
};

struct bench_target {
    /* Runs all streams at once until each is over. */
    int (*run)(struct bench_target *t, struct bench_stream *streams, int32_t count, struct err *err);
    /* Of all ranks together. */
    int (*resident)(struct bench_target *t, uint64_t *all, uint64_t *anonymous, struct err *err);
    /* What steps have taken each stage so far, nothing being under way: times[STEP_MAX_STAGES], *stages of
     * them. */
    int (*times)(struct bench_target *t, struct stage_time *times, int *stages, struct err *err);
    void (*close)(struct bench_target *t);
    uint64_t load_us;  /* from nothing to ready */
    uint64_t kv_bytes; /* of all pages; 0 = not known here */
    enum dtype kv_type;
    char kernel_set[64];
};

struct bench_target_options {
    const char *model;                   /* the word of the command line */
    const char *models;                  /* the registry's directory, or NULL */
    const char *const *worker_arguments; /* options of lepton-worker, NULL-terminated */
    int stages, tensor, threads;         /* threads of a rank */
    int64_t context, max_sequences;
};

int bench_rank_open(struct bench_target **out, const struct bench_target_options *o, struct err *err);
int bench_group_open(struct bench_target **out, const struct bench_target_options *o, struct err *err);

#endif
