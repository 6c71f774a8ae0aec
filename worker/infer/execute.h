/* execute: runs one step on one rank: page work, the rows' inputs onto the device, the stage's blocks, and on
 * the last stage the draw of the next tokens. Every rank of a group has one; it talks to nobody. */
#ifndef LEPTON_WORKER_INFER_EXECUTE_H
#define LEPTON_WORKER_INFER_EXECUTE_H

#include "worker/infer/kvcache.h"
#include "worker/model/stage.h"

struct executor_options {
    struct step_limits limits;
    int32_t page_tokens;
    enum dtype kv_type;
};

struct executor;

/* `model` is this rank's slice and outlives the executor. */
int executor_open(struct executor **out, const struct model *model, const struct executor_options *options,
                  struct err *err);
void executor_close(struct executor **e);

struct stream *executor_stream(struct executor *e);
struct stage *executor_stage(struct executor *e);
/* The rows of a step: the previous stage's output is received here before the run, and this stage's lies here
 * after. */
struct tensor executor_rows(struct executor *e, const struct step *step);
/* Runs the step. On the last stage (its first tensor slot) ids[sample_count] (host memory) receives the drawn
 * tokens, -1 for a row whose logits were not finite; NULL elsewhere. logprobs[sample_count] likewise when
 * step_wants_logprobs: of the rows that want none they are zero. -1: the device or a hook of the stage
 * failed: the rank cannot go on. */
int executor_run(struct executor *e, const struct step *step, int32_t *ids, struct token_logprobs *logprobs,
                 struct err *err);

#endif
