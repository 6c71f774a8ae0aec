#include "worker/infer/serve.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "worker/infer/flight.h"
#include "worker/infer/sequences.h"
#include "worker/infer/transfer.h"

/* ---- followers */

struct follower {
    const struct serve_options *o;
    struct step step;
    void *bytes; /* a received descriptor */
    size_t capacity;
    struct buffer encoded;
    void *result;      /* transfer_result_max_bytes */
    uint64_t since_us; /* it last stopped running a step, or was woken */
};

/* One step, from its receipt to its sending on. *flags = the step's. */
static int follow_step(struct follower *f, uint32_t *flags, struct err *err)
{
    const struct serve_options *o = f->o;
    bool draws = o->control->rank == transfer_drawing_rank(o);
    watchdog_enter(o->watchdog, "waiting for a step", o->wait_limit_ms);
    if (transfer_recv_step(o, &f->step, f->bytes, f->capacity, err))
        return -1;
    *flags = f->step.flags;
    watchdog_enter(o->watchdog, "a step", o->step_limit_ms);
    if (!*flags) {
        struct transfer_result r = {0};
        if (draws)
            r = transfer_result_view(o, f->result, &f->step);
        if (transfer_run_step(o, &f->step, &f->since_us, r.ids, r.logprobs, err))
            return -1;
        if (draws) {
            *r.step_id = f->step.id;
            ASSERT(f->step.time_count == transfer_stages(o));
            memcpy(r.times, f->step.times, (size_t)f->step.time_count * sizeof(*r.times));
            return comm_send(o->control, NULL, f->result, transfer_result_bytes(o, &f->step), 0, err);
        }
    }
    return transfer_send_step(o, &f->step, &f->encoded, err);
}

/* Sleeping ranks owe nobody a message: sends under way are finished before the sleep. */
static int follow(struct follower *f, struct err *err)
{
    for (;;) {
        watchdog_enter(f->o->watchdog, "sleep", 0);
        if (wake_wait(f->o->wake, err))
            return -1;
        f->since_us = clock_now_us();
        if (f->o->occupancy)
            occupancy_wake(f->o->occupancy, f->since_us);
        uint32_t flags = 0;
        do {
            if (follow_step(f, &flags, err))
                return -1;
        } while (!flags);
        if (comm_barrier(f->o->control, NULL, err))
            return -1;
        if (flags & STEP_STOP)
            return 0;
    }
}

int serve_follower(const struct serve_options *o, struct err *err)
{
    struct follower f = {.o = o, .capacity = step_max_bytes(&o->engine.limits)};
    transfer_hook_stage(o);
    step_init(&f.step, &o->engine.limits);
    f.bytes = xmalloc(f.capacity);
    f.result = xcalloc(1, transfer_result_max_bytes(o));
    int code = follow(&f, err);
    if (code == 0)
        watchdog_leave(o->watchdog);
    step_release(&f.step);
    free(f.bytes);
    free(f.result);
    buffer_release(&f.encoded);
    return code;
}

/* ---- the leader */

static int lead(struct leader *l, struct err *err)
{
    for (;;) {
        sequences_take_commands(l);
        sequences_publish(l);
        int launched = 0;
        if (flight_may_launch(l) && (launched = flight_launch(l, err)) < 0)
            return -1;
        if (launched)
            continue;
        if (l->flight_count) {
            if (flight_collect(l, err))
                return -1;
            continue;
        }
        /* Nothing is under way and nothing could be planned: then nobody is here, or somebody would wait for
         * ever (batch.h says why this cannot be). */
        ASSERT(l->stats.running == 0 && l->waiting_count == 0);
        if (l->draining && l->waiting_count == 0 && l->stats.running == 0)
            return flight_send_flag(l, STEP_STOP, err);
        if ((l->awake || l->pinged) && flight_send_flag(l, STEP_SLEEP, err))
            return -1;
        l->awake = l->pinged = false;
        l->since_us = 0;
        watchdog_enter(l->o->watchdog, "idle", 0);
        mailbox_wait(l->o->mailbox);
    }
}

int serve_leader(const struct serve_options *o, struct err *err)
{
    struct leader l;
    transfer_hook_stage(o);
    leader_init(&l, o);
    int code = lead(&l, err);
    watchdog_enter(o->watchdog, "leaving", 0);
    leader_release(&l);
    if (code == 0)
        mailbox_emit(o->mailbox, &(struct event){.kind = EVENT_LEFT});
    return code;
}
