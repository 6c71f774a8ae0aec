/* together: whether the coordinator's threads stay on one processor, and on which. PURE: samples come in, a
 * place comes out; it knows no thread, no file and no clock.
 *
 *      apart ── few tokens, and a processor that is idle half of the time ──> together on it
 *            <── others load it and none is better; or a flood: a processor is not enough ──
 *
 * Why together: a token passes from libzmq's thread to the deciding one and back. On one processor each
 * begins when the other sleeps; on two, each hand-over waits until a sleeping processor has woken. Why not
 * always: a thread that may run in one place waits there behind whatever else computes there, and all of them
 * have that processor's time and no more. So they part as soon as they wait for others, or use half of it,
 * and rest apart for longer and longer before the next try; a try that lasted makes the rests short again. */
#ifndef LEPTON_COORDINATOR_TOGETHER_H
#define LEPTON_COORDINATOR_TOGETHER_H

#include "common/base.h"

/* In place of a processor: on any. */
#define TOGETHER_APART UINT32_MAX
/* Rests apart between two tries. */
#define TOGETHER_REST_MS     1000
#define TOGETHER_MAX_REST_MS 64000

/* What happened since the sample before. Processors are numbered among those that are allowed. */
struct together_sample {
    uint64_t elapsed_us;
    uint64_t run_us, wait_us; /* of all threads: on a processor; ready to run, and waiting for one */
    uint64_t turns;           /* how often one of them got a processor */
    uint32_t here;            /* where the deciding thread runs; TOGETHER_APART: not known */
    uint32_t count;           /* of the processors */
    const uint32_t *idle;     /* [count] the share of the time in which nothing ran there, in thousandths */
};

/* A plain value; its fields are the module's. */
struct together {
    uint32_t on;                /* TOGETHER_APART, or where they are kept */
    uint64_t since_ms, till_ms; /* together since; apart at least until */
    uint64_t rest_ms;           /* the next rest */
};

void together_init(struct together *t);
/* Where the threads are to be from now on: a processor, or TOGETHER_APART. */
uint32_t together_decide(struct together *t, const struct together_sample *s, uint64_t now_ms);
/* They are apart, whatever was decided: somebody else moved them. */
void together_part(struct together *t, uint64_t now_ms);

#endif
