/* serve: the step threads of a group. The leader (rank 0: first stage, slot 0) admits sequences from the
 * mailbox, plans steps, runs its stage and sends the step on; every other rank runs its stage of each step
 * that comes and passes it on; the last stage sends the drawn tokens back to the leader.
 *
 *     leader  --(descriptor, rows)-->  stage 1  --...-->  last stage
 *        ^------------------(drawn ids)-----------------------'
 *
 * With tensor slots each slot passes steps on to its like in the next stage: all slots of a stage hold the
 * same rows at its end. The leader's own slots get the descriptor from it before it runs, since the slots of
 * a stage run together: they add up what they computed twice in each layer.
 *
 * Up to one step per stage is under way at once, as long as different sequences are ready to fill them. An
 * idle group sleeps: the leader sends a sleep step down the line and waits for its mailbox, the others wait
 * for the wake socket. */
#ifndef LEPTON_WORKER_INFER_SERVE_H
#define LEPTON_WORKER_INFER_SERVE_H

#include "worker/comm.h"
#include "worker/infer/batch.h"
#include "worker/infer/execute.h"
#include "worker/infer/mailbox.h"
#include "worker/infer/occupancy.h"
#include "worker/wake.h"
#include "worker/watchdog.h"

struct serve_options {
    struct executor *executor; /* this rank's */
    struct executor_options engine;
    struct comm *control;        /* host memory: descriptors and drawn tokens; NULL for a group of one rank */
    struct comm *data;           /* device memory: the rows between stages; NULL likewise. Waiting in one comm
                                    moves no sends of another, so rows in host memory go over `control` */
    struct comm *tensor;         /* device memory: sums between the slots of this stage; NULL without slots */
    struct wake *wake;           /* NULL for a group of one rank */
    struct watchdog *watchdog;   /* may be NULL */
    struct occupancy *occupancy; /* of the first slot of a stage; NULL: of what it waits nothing is taken */
    uint64_t step_limit_ms;      /* without progress inside a step */
    uint64_t wait_limit_ms;      /* waiting for another rank */
    /* leader only */
    struct mailbox *mailbox;
    int32_t mixed_tokens;         /* rows of a step that decodes too; 0 = engine.limits.tokens */
    uint64_t priority_step_ms;    /* by so much a level of priority puts a request's arrival off */
    bool no_prefix_cache;         /* pages are not kept for their tokens */
    enum speculation speculation; /* of requests that do not say; default = off */
    int32_t draft_tokens;         /* most tokens of one draft; at most SPECULATE_MAX_TOKENS */
    const bool *is_end;           /* [vocab] ids that end a sequence */
};

/* Runs until a drain is done: returns 0; -1 when the group cannot go on (*err says why). */
int serve_leader(const struct serve_options *options, struct err *err);
/* Runs until the leader says stop. */
int serve_follower(const struct serve_options *options, struct err *err);

#endif
