/* cluster: the worker groups: who leads them, which epoch they are in, until when their lease runs, what they
 * can and what they do. PURE: messages and the time come as arguments; nothing is sent from here.
 *
 * Invariants: a group name has one holder at a time. Its epoch only grows: every hello gives a new one, above
 * all that the coordinator or the group itself ever knew. A message counts only with the current epoch and
 * from the holder's own connection (I5). A lease ends lease_ms after the last heartbeat arrived; the group
 * counts from when it sent that heartbeat, so it stops first. */
#ifndef LEPTON_COORDINATOR_CLUSTER_H
#define LEPTON_COORDINATOR_CLUSTER_H

#include "common/wire.h"
#include "coordinator/peer.h"

/* RESTING: it was lost too often of late; it gets work again after a while. HELD: whoever runs the cluster
 * keeps work from it, under this epoch and those that follow. */
enum group_state { GROUP_READY, GROUP_RESTING, GROUP_DRAINING, GROUP_HELD, GROUP_LOST };
#define GROUP_TRIPS 4 /* heartbeats of which the fastest says how far away the group is */
const char *group_state_name(enum group_state state);

struct group_stage {
    uint64_t first_layer, last_layer, tensor, pid;
    uint64_t busy_us, wait_us, bubble_us, processor_us; /* of its steps, as the last heartbeat says */
    char host[256];
};

/* Read-only outside cluster.c. */
struct group {
    uint32_t slot; /* below the limit; keeps its name while the cluster remembers the group */
    bool used;
    bool remembered; /* from another run, and not heard of in this one */
    bool seen_alive; /* with that: it was not known to be lost */
    bool silent;     /* lost, though its connection was not: nothing says that its processes died */
    char name[WIRE_MAX_ID + 1];
    enum group_state state;
    struct peer peer; /* the leader's connection and identity */
    uint64_t epoch, incarnation;
    uint64_t heard_ms;     /* the last hello or heartbeat */
    uint64_t lease_end_ms; /* monotonic */
    uint64_t sequence;     /* of the last heartbeat; 0 = none yet */
    bool heartbeat_seen;
    char model[129], weights[129], kernels[129], kv_type[33];
    uint64_t tensor, max_sequences, context, pages, page_tokens, load_ms;
    uint64_t steps, running, waiting, pages_used, pages_cached, tokens_generated, prefix_queries, prefix_hits,
        preemptions, drafted_tokens, accepted_tokens;
    struct group_stage *stages; /* stage_count of them */
    uint32_t stage_count;
    uint64_t ended_epoch;           /* the last epoch that was lost and of which is known why */
    char ended[WIRE_MAX_ENDED + 1]; /* how it ended, in its supervisor's words */
    uint64_t ready_ms;              /* when its epoch began */
    uint32_t lost_soon;             /* epochs in a row that did not last */
    uint64_t rests_until_ms;
    bool held;                      /* whatever its state is */
    uint64_t trips_us[GROUP_TRIPS]; /* of the last heartbeats that told one, there and back; 0: none */
    uint32_t trip_count;
    uint64_t round_trip_us; /* the least of them: a busy moment is no slow link; 0: not known */
    uint64_t numeric; /* a name of its numeric class (I7): weights, kernels, KV type, tensor width; not 0 */
};

struct cluster;
struct cluster *cluster_new(uint32_t groups, uint64_t lease_ms);
void cluster_free(struct cluster **c);

/* Epochs above the floor alone are given from now on: no run before gave one of those. Those above the
 * ceiling are not given until it is raised, for the next run would not know of them. Without: 0 and
 * UINT64_MAX. */
void cluster_epochs(struct cluster *c, uint64_t floor, uint64_t ceiling);
/* The greatest epoch that was given, or asked for and refused. */
uint64_t cluster_epoch_wanted(const struct cluster *c);

/* What another run knew of a group: it is as if it were lost, until it says hello; then its epoch goes on, it
 * rests if it was lost too often, and a new job of it means that the one before died meanwhile. */
struct cluster_memory {
    const char *name;
    uint64_t epoch, incarnation;
    uint32_t lost_soon;
    bool lost, held;
    uint64_t age_ms; /* since its epoch began */
};
/* False when there is no room for it. */
bool cluster_remember(struct cluster *c, const struct cluster_memory *m);
/* The name of the group that the last hello made forgotten. */
const char *cluster_forgotten(const struct cluster *c);

/* May a worker whose key is called `identity` speak for group `name`? For NAME and NAME-anything. */
bool cluster_may_serve(const char *identity, struct wire_str name);

/* A leader introduces its group. On success *out holds it under its new epoch, and *was_live says that the
 * epoch before was still live (its work is void). When an old lost group had to be forgotten to make room,
 * its slot is the one returned and *forgotten is true. Refusals: 403 not this key's group, 409 the name is
 * held by another that lives, or the ceiling must be raised first; 503 too many groups. */
int cluster_hello(struct cluster *c, const struct peer *peer, const struct wire_hello *hello, uint64_t now_ms,
                  struct group **out, bool *was_live, bool *forgotten, struct err *err);

/* The live group that a message from `peer` about (name, epoch) speaks for; NULL with err->code 409 when it
 * is unknown, lost, stale or introduced on another connection, 403 when it belongs to another key. */
struct group *cluster_current(struct cluster *c, const struct peer *peer, struct wire_str name,
                              uint64_t epoch, struct err *err);
/* Renews the lease and takes the numbers over; false for an old or replayed sequence, which changes nothing.
 */
bool cluster_heartbeat(struct cluster *c, struct group *g, const struct wire_heartbeat *beat,
                       uint64_t now_ms);
void cluster_draining(struct group *g);
/* No work for it from now on, until cluster_release. */
void cluster_hold(struct group *g);
void cluster_release(struct group *g);
/* Does a group of this numeric class live? */
bool cluster_has_numeric(const struct cluster *c, uint64_t numeric);
/* By name, live or lost; NULL when it is not known. */
struct group *cluster_find(struct cluster *c, struct wire_str name);
/* The group is gone: bye, unreachable, or its lease ended. It keeps its name and epoch. */
void cluster_lost(struct group *g, uint64_t now_ms);
/* A group that has rested: it is ready now. NULL when there is none. And when the next one is. */
struct group *cluster_rested(struct cluster *c, uint64_t now_ms);
uint64_t cluster_rest_due_ms(const struct cluster *c);
/* A live group whose lease has ended; NULL when there is none. The caller marks it lost and asks again. */
struct group *cluster_expired(struct cluster *c, uint64_t now_ms);
/* When the next lease ends; UINT64_MAX without a live group. */
uint64_t cluster_due_ms(const struct cluster *c);

/* The group in this slot; NULL when the slot is empty. Slots run from 0 to cluster_slots(). */
struct group *cluster_group(struct cluster *c, uint32_t slot);
uint32_t cluster_slots(const struct cluster *c);

#endif
