/* dispatch: what each message means: it checks the sender's role and state, feeds the pure modules, and
 * carries out what they decide. The one place where cluster, scheduler, requests and router meet; it owns the
 * first three.
 *
 *      client ── generate, cancel, status ──>            ── assign, cancel, drain, welcome, lease ──> group
 *             <── accepted, token*, done | error ── dispatch <── hello, heartbeat, token*, done | error, bye
 * ──
 *
 * Tokens go through the request's log: what a client does not take now waits there and is sent when it reads
 * again, or the stream is cut after stall_timeout_ms. */
#ifndef LEPTON_COORDINATOR_DISPATCH_H
#define LEPTON_COORDINATOR_DISPATCH_H

#include "coordinator/affinity.h"
#include "coordinator/requests.h"
#include "coordinator/router.h"
#include "coordinator/scheduler.h"
#include "coordinator/store.h"

struct dispatch_options {
    uint64_t lease_ms, heartbeat_ms;
    uint64_t progress_ms;        /* a group that has work and does not move for so long is lost */
    uint64_t request_timeout_ms; /* of requests that name none */
    uint64_t stall_timeout_ms;
    uint64_t suspect_wait_ms; /* after two deaths so long for the news of what they were of */
    uint64_t suspect_ms;      /* so long it is remembered under which requests groups died */
    struct scheduler_limits limits;
    struct requests_keep keep;
    const struct balancer_policy *policy;
    const char *admins;              /* names of the clients that may tune, with commas between; NULL: none */
    struct store *store;             /* borrowed; NULL: nothing outlives this process */
    const struct affinity *affinity; /* borrowed: for status */
    const char *prefix_snapshot;     /* a file: read at the start, written by dispatch_save; NULL: none */
};

struct dispatch;
struct dispatch *dispatch_new(struct router *router, const struct dispatch_options *options);
void dispatch_free(struct dispatch **d);
/* Takes what the store holds of earlier runs, and starts it. Before the first message. */
int dispatch_restore(struct dispatch *d, struct err *err);

void dispatch_message(struct dispatch *d, const struct router_message *m);
/* The connection is no more: a client's requests end, a group is lost. */
void dispatch_left(struct dispatch *d, const struct peer *peer);
/* Ends leases and requests that are due, assigns, sends on to clients that read again. After every turn. */
void dispatch_tick(struct dispatch *d);
/* When dispatch_tick must be called though no message came; monotonic; UINT64_MAX = never. */
uint64_t dispatch_due_ms(const struct dispatch *d);

/* Writes what is known of cached prefixes, whole or not at all. A failure is logged: it costs prefills. */
void dispatch_save(struct dispatch *d);

/* Refuses new requests, lets the running ones finish for `timeout_ms`, tells the groups. */
void dispatch_drain(struct dispatch *d, uint64_t timeout_ms);
/* After dispatch_drain: nobody waits for anything any more, or the time is over. */
bool dispatch_drained(const struct dispatch *d);

#endif
