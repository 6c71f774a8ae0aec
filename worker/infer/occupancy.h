/* occupancy: whether a stage that waits could compute. Stages that share processors may take turns on them:
 * of the time that one waits, the part in which others have its processors costs nothing, and what is left is
 * the bubbles of the pipeline. It is told for each stage in its own share: with t threads a stage and p
 * processors (t <= p: of more, no more can run), while k stages run,
 *
 *   taken(k) = the part of t threads for which k others leave no processor = clamp(k t + t - p, 0, t) / t
 *
 * so that stages with processors of their own have nothing taken: they wait in vain. So do those that share
 * no memory, which have no occupancy.
 *
 * Ranks of one host share one word and one sum in memory that all see (comm.h); a rank that dies in a step
 * leaves the count wrong, but its group is over then. */
#ifndef LEPTON_WORKER_INFER_OCCUPANCY_H
#define LEPTON_WORKER_INFER_OCCUPANCY_H

#include <stdatomic.h>

#include "common/base.h"

/* Zeros at first. */
struct occupancy_shared {
    _Atomic uint64_t state;    /* stages that run, and since when it is so many (us) */
    _Atomic uint64_t taken_us; /* the integral of taken(k) up to then */
};

struct occupancy {
    struct occupancy_shared *shared; /* borrowed */
    int threads, processors;
    uint64_t taken_us; /* when this stage began to wait */
};

/* threads: of a stage, all its slots together; processors: that the stages which share have together. shared:
 * borrowed, seen by all of them. */
void occupancy_init(struct occupancy *o, struct occupancy_shared *shared, int threads, int processors);
/* This stage runs from now (us, monotonic) on. Returns how much of its wait its processors were taken. */
uint64_t occupancy_run(struct occupancy *o, uint64_t now_us);
/* It does no longer, and waits. */
void occupancy_wait(struct occupancy *o, uint64_t now_us);
/* What it waited so far, it slept. */
void occupancy_wake(struct occupancy *o, uint64_t now_us);

#endif
