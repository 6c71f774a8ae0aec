/* upstream: the gateway as a client of the coordinator: one connection, one thread, any number of exchanges
 * over it. It sends their `generate`, takes tokens and ends to them, and grants credit as their readers read.
 *
 * When the coordinator is lost it looks for it, and every exchange goes on behind what was delivered, under
 * its idempotent id; what has found no coordinator or no place within retry_ms ends with 503. New exchanges
 * wait for it the same way.
 *
 * It refuses to know what HTTP is. */
#ifndef LEPTON_COORDINATOR_GATEWAY_UPSTREAM_H
#define LEPTON_COORDINATOR_GATEWAY_UPSTREAM_H

#include "common/client.h"
#include "coordinator/gateway/exchange.h"

#define UPSTREAM_MAX_MODELS 64

struct upstream_options {
    const struct client_settings *client;
    uint64_t retry_ms; /* how long a lost coordinator is looked for */
    uint64_t ping_ms;  /* silence of a stream after which it gets a ping */
};

/* What the last status of the coordinator said. */
struct upstream_model {
    char name[129];
    uint64_t groups; /* ready ones */
    uint64_t context;
};
struct upstream_state {
    bool ready;         /* connected, answered lately, not draining, and a group is ready */
    const char *reason; /* why not */
    uint64_t groups;
    struct upstream_model models[UPSTREAM_MAX_MODELS];
    uint32_t model_count;
};

struct upstream;
/* Starts the thread; the coordinator need not be there yet. */
int upstream_open(struct upstream **out, const struct upstream_options *options, struct err *err);
/* Ends what is left, and what is submitted later, with 503. */
void upstream_stop(struct upstream *u);
void upstream_close(struct upstream **u); /* when no other thread calls it any more */

/* Any thread, all of these. */
/* The exchange gets the second user; its end is told to it alone. */
void upstream_submit(struct upstream *u, struct exchange *x);
/* Its reader is gone: the request is cancelled. Also after its end. */
void upstream_cancel(struct upstream *u, struct exchange *x);
/* Its reader has read. */
void upstream_drained(struct upstream *u, struct exchange *x);
void upstream_state(struct upstream *u, struct upstream_state *out);

#endif
