/* dispatch_internal: what dispatch.c (requests and actions), dispatch_client.c, dispatch_admin.c and
 * dispatch_worker.c (one function per message) share. Nobody else includes it. */
#ifndef LEPTON_COORDINATOR_DISPATCH_INTERNAL_H
#define LEPTON_COORDINATOR_DISPATCH_INTERNAL_H

#include "coordinator/cluster.h"
#include "coordinator/dispatch.h"
#include "coordinator/poison.h"
#include "coordinator/requests.h"
#include "coordinator/throttle.h"

/* When to try again what had no place, or lost it, where the scheduler gives no better guess. */
#define DISPATCH_RETRY_MS 1000
/* When to ask again for a stream that has not come so far yet. */
#define DISPATCH_REJOIN_MS 200

/* Clients that may wait for a change of theirs to become durable. */
#define DISPATCH_ADMINS 64

struct dispatch_waiter {
    uint64_t tag;     /* 0: nobody */
    uint32_t pending; /* changes with the tag that the store has not done yet */
    struct peer client;
    struct err refused; /* what it is told then; code 0: nothing is wrong */
};

/* Refusals that wait for clients to read: of all, and of one. */
#define DISPATCH_REFUSALS      512
#define DISPATCH_REFUSALS_EACH 64

struct refusal {
    struct peer to;
    char request[WIRE_MAX_ID + 1];
    uint64_t code, retry_after_ms;
    uint64_t until_ms; /* then the client is given up */
    char message[sizeof(((struct err *)0)->message)];
};

struct dispatch {
    struct dispatch_options options;
    struct router *router; /* borrowed */
    struct cluster *cluster;
    struct scheduler *scheduler;
    struct requests *requests;
    struct snapshot *snapshot; /* of the run before; NULL: none */
    uint64_t started_ms;
    uint64_t drain_deadline_ms;
    uint32_t stalled; /* readers that do not read */
    uint32_t held;    /* requests that are kept from all groups until it is known why theirs died */
    struct poisons *poisons;
    struct scheduler_setting configured[SCHEDULER_SETTINGS];
    struct dispatch_waiter waiters[DISPATCH_ADMINS];
    uint64_t waited;                      /* tags given to waiters */
    uint64_t answers;                     /* rows of the store that were given to answers */
    uint64_t epoch_ceiling, epochs_asked; /* 0: not asked */
    uint64_t accepted, completed, failed, cancelled, rejected;
    struct throttle stale_log, token_log, revoked_log, audit;
    uint64_t refused_peers; /* as many as were audited */
    struct refusal refusals[DISPATCH_REFUSALS];
    uint32_t refusal_count;
    uint64_t refusals_due_ms; /* when to try again */
};

/* Sends the client what its request has for it; forgets the request when nothing is left to do. *q may be
 * gone afterwards. */
void dispatch_flush(struct dispatch *d, struct request *q);
/* Counts a request that has just got its outcome. */
void dispatch_count_outcome(struct dispatch *d, const struct request *q);
/* The request fails: the client gets the error, and a group that holds it is told to cancel. *q may be gone.
 */
void dispatch_fail(struct dispatch *d, struct request *q, int code, const char *message);
/* No group has the request, and its client cancels it. *q may be gone. */
void dispatch_cancel_waiting(struct dispatch *d, struct request *q);
/* Tells the group that holds the request to cancel it, once. */
void dispatch_cancel_at_group(struct dispatch *d, struct request *q);
/* The group is gone; its requests end at the next tick. */
void dispatch_group_lost(struct dispatch *d, struct group *g, const char *why);
/* The same, and nothing says that it died. */
void dispatch_group_silent(struct dispatch *d, struct group *g, const char *why);

/* ---- dispatch_lost.c ---- */
/* The request's group is gone, and it waits again. *q may be gone afterwards. */
void dispatch_moved(struct dispatch *d, struct request *q, uint32_t group, uint64_t epoch);
/* Does what its suspicion asks for: it waits in the scheduler's queue, or is held there. *q may be gone. */
void dispatch_judge(struct dispatch *d, struct request *q);
/* It is not held any more. */
void dispatch_unheld(struct dispatch *d, struct request *q);
/* It is known how the group's last epoch ended. */
void dispatch_learn(struct dispatch *d, const struct group *g);
void dispatch_tick_lost(struct dispatch *d, uint64_t now_ms);
uint64_t dispatch_lost_due_ms(const struct dispatch *d);

/* ---- dispatch_store.c ---- */
/* The request has its outcome: true when that must become durable before anybody is told (and counted). */
bool dispatch_store_outcome(struct dispatch *d, struct request *q);
/* May a request be taken whose outcome will have to become durable? */
bool dispatch_may_promise(struct dispatch *d, const struct wire_generate *in, struct err *err);
/* What has become durable; what is to be forgotten. */
void dispatch_tick_store(struct dispatch *d);
/* A new tag for changes that somebody waits for: each comes back to dispatch_waiter_done. */
uint64_t dispatch_waiter_tag(struct dispatch *d);

/* A row of the audit log: what kind, who did it, what happened. No prompts. */
void dispatch_audit(struct dispatch *d, const char *kind, const char *who, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
/* One that somebody waits for: it is never left out. */
int dispatch_audit_durably(struct dispatch *d, uint64_t tag, const char *kind, const char *who,
                           struct err *err, const char *fmt, ...) PRINTF_LIKE(6, 7);

/* ---- dispatch_refuse.c ---- */
/* A generate that is not taken: its one outcome, and no strike, for the client did nothing wrong. */
void dispatch_reject(struct dispatch *d, const struct peer *from, struct wire_str request,
                     const struct err *err, uint64_t retry_after_ms);
void dispatch_tick_refusals(struct dispatch *d, uint64_t now_ms);

/* ---- dispatch_admin.c ---- */
/* A change with a waiter's tag is durable, or refused. */
void dispatch_waiter_done(struct dispatch *d, const struct store_done *done);

/* ---- dispatch_memory.c ---- */
/* What the store knows of groups, suspects and settings. */
int dispatch_remember(struct dispatch *d, struct err *err);
/* The group has a new epoch, is lost, or is held or not. */
int dispatch_group_changed(struct dispatch *d, const struct group *g, uint64_t tag, struct err *err);
void dispatch_group_forgotten(struct dispatch *d, const char *name);
/* What the request is suspected of has changed; with `refused` it is refused for that. */
void dispatch_suspected(struct dispatch *d, struct request *q, const char *refused);
/* It is suspected of nothing any more. */
void dispatch_cleared(struct dispatch *d, struct request *q);
/* The same was refused before: *err says why. */
bool dispatch_is_poison(struct dispatch *d, const struct peer *from, const struct wire_generate *in,
                        struct err *err);
/* A new request goes on under the suspicion of the same before it. *q may be gone afterwards. */
void dispatch_recall(struct dispatch *d, struct request *q, const struct wire_generate *in);
/* It is known how the group's last epoch ended. */
void dispatch_learn_poison(struct dispatch *d, const struct group *g);
int dispatch_tuned(struct dispatch *d, const char *name, bool automatic, uint64_t value, uint64_t tag,
                   struct err *err);

/* ---- dispatch_worker.c ---- */
/* The group takes work from now on. */
void dispatch_ready(struct dispatch *d, const struct group *g);

/* ---- dispatch_client.c ---- */
/* The key of a client is not authorized any more: it gets no more than what it has begun. */
void dispatch_revoked(struct dispatch *d, const struct peer *from, const struct wire_message *m);

/* ---- dispatch_snapshot.c ---- */
/* Reads the file of the run before; NULL when there is none, or it is none (logged). */
struct snapshot *snapshot_open(const char *path);
void snapshot_close(struct snapshot **s);
/* A group is ready: what the snapshot says of it, once. */
void snapshot_restore(struct dispatch *d, const struct group *g);

void dispatch_generate(struct dispatch *d, const struct peer *from, const struct wire_generate *m);
void dispatch_cancel(struct dispatch *d, const struct peer *from, const struct wire_cancel *m);
void dispatch_status(struct dispatch *d, const struct peer *from, const struct wire_status *m);
void dispatch_tune(struct dispatch *d, const struct peer *from, const struct wire_tune *m);
void dispatch_credit(struct dispatch *d, const struct peer *from, const struct wire_credit *m);
void dispatch_hold(struct dispatch *d, const struct peer *from, const struct wire_hold *m);

void dispatch_hello(struct dispatch *d, const struct peer *from, const struct wire_hello *m);
void dispatch_heartbeat(struct dispatch *d, const struct peer *from, const struct wire_heartbeat *m);
void dispatch_bye(struct dispatch *d, const struct peer *from, const struct wire_bye *m);
void dispatch_token(struct dispatch *d, const struct peer *from, const struct wire_token *m);
void dispatch_tokens(struct dispatch *d, const struct peer *from, const struct wire_tokens *m);
void dispatch_done(struct dispatch *d, const struct peer *from, const struct wire_done *m);
void dispatch_error(struct dispatch *d, const struct peer *from, const struct wire_error *m);

#endif
