/* transfer: how steps and their results move between the ranks of a group, and the hook that keeps sends
 * moving while a stage computes. It knows nothing of sequences: who plans a step is the leader's business. */
#ifndef LEPTON_WORKER_INFER_TRANSFER_H
#define LEPTON_WORKER_INFER_TRANSFER_H

#include "worker/infer/serve.h"

/* Sends the step's descriptor and this stage's rows to the next rank. `encoded` is scratch. */
int transfer_send_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                       struct err *err);
/* Receives a step from the rank before: its descriptor into `step` (through bytes[capacity]), its rows into
 * the executor. */
int transfer_recv_step(const struct serve_options *o, struct step *step, void *bytes, size_t capacity,
                       struct err *err);
/* Called once per rank, before its first step. `o` is borrowed as long as the executor runs. */
void transfer_hook_stage(const struct serve_options *o);

/* The answer of the last stage to a step: its id, its drawn tokens, and their log-probabilities when a row
 * wants them. Both ends know its size from the step, so that one receive takes it. */
struct transfer_result {
    uint64_t *step_id;
    int32_t *ids;                    /* [sample_count] */
    struct token_logprobs *logprobs; /* [sample_count], or NULL */
};
size_t transfer_result_bytes(const struct step *step);
size_t transfer_result_max_bytes(const struct step_limits *limits);
/* Where the parts lie in bytes[transfer_result_bytes], which is aligned for uint64_t. */
struct transfer_result transfer_result_view(void *bytes, const struct step *step);

#endif
