/* scheduler: which request runs where and when, and which one has waited too long. PURE: (state, event, now)
 * -> actions. No socket, no clock, no message: time is an argument, requests and groups are numbers below
 * limits that the caller hands out. So one seed replays a whole cluster, and a simulation runs the real
 * thing.
 *
 *      submit ──> QUEUED ──assign──> RUNNING ──finished──> gone
 *                    │                  │ deadline, drain
 *                    │ deadline,        v
 *                    │ drain         ENDING (its client has its error; the group still holds the sequence
 *                    v                  │    until it confirms, so that no group is given too much)
 *                   gone <──────────────┘ finished, or the group is gone
 *
 * Events change the state at once; what must be done about it comes out of scheduler_step, in a bounded
 * array. Every request that was submitted leaves by exactly one of: scheduler_finished by the caller, or one
 * END action without a group (I1). Memory is taken once, in scheduler_new. */
#ifndef LEPTON_COORDINATOR_SCHEDULER_H
#define LEPTON_COORDINATOR_SCHEDULER_H

#include "coordinator/balancer.h"

#define SCHEDULER_NONE  UINT32_MAX
#define SCHEDULER_NEVER UINT64_MAX

struct scheduler_limits {
    uint32_t live_requests;  /* request numbers are below this */
    uint32_t groups;         /* group numbers are below this */
    uint32_t queue_requests; /* most that wait */
    uint64_t prompt_bytes;   /* most bytes of prompts held, waiting and running */
    uint64_t group_wait_ms;  /* how long a request waits while no group serves its model */
};

enum scheduler_action_kind {
    SCHEDULER_ASSIGN, /* give `request` to `group` */
    SCHEDULER_END,    /* tell the client `code`; a group other than NONE must be told to cancel and confirm */
};

struct scheduler_action {
    enum scheduler_action_kind kind;
    uint32_t request;
    uint32_t group;
    int code;           /* END: a wire code */
    const char *reason; /* END: for a person; static */
};

struct scheduler;
struct scheduler *scheduler_new(const struct scheduler_limits *limits, const struct balancer_policy *policy);
void scheduler_free(struct scheduler **s);

/* ---- events of requests ---- */
/* Admits a request. `model` may be empty: the only model served. *queued: how many wait before it. Refusals
 * (-1, err->code): 400 the model must be named, 404 no such model, 413, 429 full, 503 draining. */
struct scheduler_submission {
    uint32_t request; /* a number that is not in use */
    const char *model;
    uint64_t bytes; /* of the prompt */
    uint64_t deadline_ms;
};
int scheduler_submit(struct scheduler *s, const struct scheduler_submission *in, uint64_t now_ms,
                     uint64_t *queued, struct err *err);
/* The request is over: its group said so, or it still waited and its client cancelled it. */
void scheduler_finished(struct scheduler *s, uint32_t request);
/* The client no longer waits for a running request, its group was told to cancel: RUNNING -> ENDING. */
void scheduler_ending(struct scheduler *s, uint32_t request);

/* The assignment could not be delivered: back to the head of the queue. */
void scheduler_unassign(struct scheduler *s, uint32_t request);

/* ---- events of groups ---- */
struct scheduler_group_info {
    const char *name; /* copied, as is the model */
    const char *model;
    uint32_t max_sequences;
    uint64_t pages;
};
void scheduler_group_ready(struct scheduler *s, uint32_t group, const struct scheduler_group_info *info);
void scheduler_group_load(struct scheduler *s, uint32_t group, uint64_t pages_used);
/* The group takes no more work. */
void scheduler_group_draining(struct scheduler *s, uint32_t group);
/* The group, or the epoch that its requests ran in, is gone: they END with 502. */
void scheduler_group_gone(struct scheduler *s, uint32_t group, uint64_t now_ms);
/* The number will name another group. */
void scheduler_group_forget(struct scheduler *s, uint32_t group);

/* No new requests; those that wait END with 503, those that run may finish until the deadline. */
void scheduler_drain(struct scheduler *s, uint64_t deadline_ms);

/* ---- what to do now ---- */
/* Fills at most `max` actions; as many as `max` means: call again. */
size_t scheduler_step(struct scheduler *s, uint64_t now_ms, struct scheduler_action *out, size_t max);
/* When scheduler_step must be called at the latest though nothing happened. */
uint64_t scheduler_due_ms(const struct scheduler *s);

uint32_t scheduler_queued(const struct scheduler *s);
uint32_t scheduler_live(const struct scheduler *s); /* all that were submitted and have not left */
uint64_t scheduler_bytes(const struct scheduler *s);
uint32_t scheduler_assigned(const struct scheduler *s, uint32_t group);
bool scheduler_draining(const struct scheduler *s);

#endif
