/* bench_relay: the two ways of `lepton bench relay`, one function each, so that both carry the same traffic:
 * a group's step brings one token to each of so many streams, at once, and each token says when it was made.
 *
 *   relay   mock group's step thread -> link -> CURVE -> coordinator -> CURVE -> client
 *   floor   step thread -> sender -> bare socket -> bare socket: what no relay can be below */
#ifndef LEPTON_TOOLS_BENCH_RELAY_H
#define LEPTON_TOOLS_BENCH_RELAY_H

#include "common/base.h"

struct relay_traffic {
    uint32_t streams, step_us;
    uint32_t steps;        /* of a round */
    const char *processor; /* the coordinator's option */
};

/* How long tokens were under way, in milliseconds. */
struct relay_ways {
    float *ms;
    uint64_t count, capacity;
};
void relay_way(struct relay_ways *w, uint64_t id, uint64_t now_us); /* id: a mock group's stamp */

/* A cluster of one coordinator and one mock group on this machine. */
struct relay_cluster;
int relay_cluster_start(struct relay_cluster **out, const struct relay_traffic *traffic, struct err *err);
void relay_cluster_stop(struct relay_cluster **c);
/* One round. Tokens of the first two steps, which the prompts take part in, are not counted. */
int relay_cluster_round(struct relay_cluster *c, struct relay_ways *ways, struct err *err);
/* Processor time of the coordinator so far. */
double relay_cluster_cpu_s(const struct relay_cluster *c);

/* The sender is a process of its own: to be started before this process has threads. */
struct relay_floor;
int relay_floor_start(struct relay_floor **out, const struct relay_traffic *traffic, struct err *err);
void relay_floor_stop(struct relay_floor **f);
int relay_floor_round(struct relay_floor *f, struct relay_ways *ways, struct err *err);

#endif
