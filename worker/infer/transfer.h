/* transfer: how steps and their results move between the ranks of a group, and the hook that keeps sends
 * moving while a stage computes. It knows nothing of sequences: who plans a step is the leader's business. */
#ifndef LEPTON_WORKER_INFER_TRANSFER_H
#define LEPTON_WORKER_INFER_TRANSFER_H

#include "worker/infer/serve.h"

/* Where a rank stands: ranks count the slots of a stage, then the stages (layout.h). */
static inline int transfer_width(const struct serve_options *o)
{
    return o->tensor ? o->tensor->size : 1;
}
static inline int transfer_stages(const struct serve_options *o)
{
    return o->control ? o->control->size / transfer_width(o) : 1;
}
static inline int transfer_stage(const struct serve_options *o)
{
    return o->control ? o->control->rank / transfer_width(o) : 0;
}
static inline bool transfer_is_last(const struct serve_options *o)
{
    return transfer_stage(o) == transfer_stages(o) - 1;
}
/* The rank that draws: slot 0 of the last stage. */
static inline int transfer_drawing_rank(const struct serve_options *o)
{
    return (transfer_stages(o) - 1) * transfer_width(o);
}

/* Leader: sends the step's descriptor to the other slots of its stage, before it runs its own part. `encoded`
 * is scratch. */
int transfer_share_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                        struct err *err);
/* Sends the step's descriptor and this stage's rows to the next stage; nothing to do in the last. */
int transfer_send_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                       struct err *err);
/* Receives a step from the stage before, or from the leader in its own stage: its descriptor into `step`
 * (through bytes[capacity]), the rows of a stage before into the executor. */
int transfer_recv_step(const struct serve_options *o, struct step *step, void *bytes, size_t capacity,
                       struct err *err);
/* executor_run, and what it took into the step's times. *since_us: when this rank last stopped running a step
 * or, where it slept since, was woken; 0: when nothing is known. Now on return. */
int transfer_run_step(const struct serve_options *o, struct step *step, uint64_t *since_us, int32_t *ids,
                      struct token_logprobs *logprobs, struct err *err);
/* Called once per rank, before its first step. `o` is borrowed as long as the executor runs. */
void transfer_hook_stage(const struct serve_options *o);

/* The answer of the last stage to a step: its id, the stages' times, its drawn tokens, and their
 * log-probabilities when a row wants them. Both ends know its size from the step, so that one receive takes
 * it. */
struct transfer_result {
    uint64_t *step_id;
    struct stage_time *times;        /* [stages] */
    int32_t *ids;                    /* [sample_count] */
    struct token_logprobs *logprobs; /* [sample_count], or NULL */
};
size_t transfer_result_bytes(const struct serve_options *o, const struct step *step);
size_t transfer_result_max_bytes(const struct serve_options *o);
/* Where the parts lie in bytes[transfer_result_bytes], which is aligned for uint64_t. */
struct transfer_result transfer_result_view(const struct serve_options *o, void *bytes,
                                            const struct step *step);

#endif
