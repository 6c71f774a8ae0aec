/* scheduler: which request runs where and when, which one makes room, and which one has waited too long.
 * PURE: (state, event, now) -> actions. No socket, no clock, no message: time is an argument, requests and
 * groups are numbers below limits that the caller hands out. So one seed replays a whole cluster, and a
 * simulation runs the real thing.
 *
 *                       ┌──────────── yielded ───────────── PREEMPTED
 *                       v                                      ^ preempt, hand over
 *      submit ──> QUEUED ──assign──> RUNNING ──────────────────┘
 *                    │  ^──move── LOST <─┤ its group is gone
 *                    │                   ├──finished──> gone
 *                    │ deadline,        │ deadline, drain
 *                    │ drain, shed      v
 *                    v               ENDING (its client has its error; the group still holds the sequence
 *                   gone <──────────────┘    until it confirms, so that no group is given too much)
 *
 * Who goes first. Requests of one model form a pool. In a pool every class (realtime, interactive, batch) is
 * sure of its share of the tokens: weight / sum of weights; the class that got least of its share goes first,
 * so a class below its share never waits for one above it, and none starves. Within a class the tenant that
 * was served least goes first (virtual token counters: Sheng et al. 2024, "Fairness in Serving Large Language
 * Models"); an idle tenant earns nothing. Tenants that are about equal, and the requests of one tenant, go by
 * deadline, earliest first. A request that is passed over for want of room too often gets the next room.
 *
 * What was at a group that is gone goes first of all, to a group of the numeric class that generated its
 * tokens as long as one takes work (I7), and is never refused for its deadline: its client reads already.
 *
 * What it costs is estimated from bytes and max_tokens, corrected by what the groups report.
 *
 * Events change the state at once; what must be done about it comes out of scheduler_step, in a bounded
 * array. Every request that was submitted leaves by exactly one of: scheduler_finished by the caller, or one
 * END action without a group (I1). Memory is taken once, in scheduler_new, but for tables of tenants. */
#ifndef LEPTON_COORDINATOR_SCHEDULER_H
#define LEPTON_COORDINATOR_SCHEDULER_H

#include "coordinator/balancer.h"
#include "coordinator/prefix.h"

#define SCHEDULER_NONE            UINT32_MAX
#define SCHEDULER_NEVER           UINT64_MAX
#define SCHEDULER_MAX_CLASSES     8
#define SCHEDULER_MAX_PREEMPTIONS 3 /* of one request */

struct scheduler_class {
    const char *name; /* borrowed */
    uint32_t weight;  /* its share of the tokens when all classes have work */
    bool preempts;    /* takes the place of preemptible work when no room comes free in patience_ms */
    bool preemptible;
    uint32_t
        patience_ms;   /* places come free all the time in a large cluster, and what gives way begins anew */
    uint32_t queue_ms; /* a longer expected wait is refused with 429; 0: half of what the deadline leaves */
};

struct scheduler_limits {
    uint32_t live_requests; /* request numbers are below this */
    uint32_t groups;        /* group numbers are below this */
    uint32_t
        queue_requests; /* most that wait; preemptible ones half of it, those that preempt an eighth more */
    uint64_t prompt_bytes;  /* most bytes of prompts held, waiting and running */
    uint64_t group_wait_ms; /* how long a request waits while no group serves its model */
    uint64_t queue_ms;      /* the same for all classes that name none; 0: none */
    uint32_t tenants;       /* most (model, class, tenant) that are remembered; 0: 1024 */
    uint32_t prefix_places; /* of the prefix index; 0: none */
    uint32_t prefix_weight; /* percent that it counts in balancer_prefix */
    uint32_t prefix_weight_low, prefix_weight_high; /* its bounds; both 0: 0 and 10000 */
    bool prefix_weight_auto;                        /* looks for the best value from there on */
    uint32_t prefix_belief; /* percent of the index that is believed; 0: as caches show */
    uint32_t class_count;   /* 0: scheduler_standard_classes */
    struct scheduler_class classes[SCHEDULER_MAX_CLASSES];
    uint64_t seed; /* of the random choices */
};

/* realtime (preempts after 50 ms), interactive, batch (preemptible): 70, 25 and 5 percent. */
extern const struct scheduler_class scheduler_standard_classes[3];
#define SCHEDULER_INTERACTIVE 1 /* the class of who names none, of the standard ones */

enum scheduler_action_kind {
    SCHEDULER_ASSIGN,  /* give `request` to `group` */
    SCHEDULER_PREEMPT, /* tell `group` to give `request` back; when it did: scheduler_yielded */
    SCHEDULER_MOVE,    /* the group of `request` is gone: it waits again, and goes on where it stood */
    SCHEDULER_END, /* tell the client `code`; a group other than NONE must be told to cancel and confirm */
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
struct scheduler_submission {
    uint32_t request;    /* a number that is not in use */
    const char *model;   /* may be empty: the only model served */
    const char *tenant;  /* NULL: "" */
    uint32_t class;      /* below the number of classes */
    uint64_t bytes;      /* of the prompt */
    uint32_t choices;    /* answers over the one prompt: so many places at a group; 0: 1 */
    uint64_t max_tokens; /* of each; 0: unknown */
    bool exact;          /* so many will come: nothing ends an answer before */
    uint64_t deadline_ms;
    uint64_t numeric;                /* class that generated its first tokens; 0: it begins here */
    const struct prefix_key *prefix; /* NULL: nothing is known of the prompt */
};
struct scheduler_admission {
    uint64_t queued;         /* how many wait before it, about */
    uint64_t wait_ms;        /* expected */
    uint64_t retry_after_ms; /* after a 429: when to try again */
};
/* Admits a request. Refusals (-1, err->code): 400 the model must be named, 404 no such model, 408 it cannot
 * meet its deadline, 413, 429 full or too long a wait, 503 draining. *out is filled in either case. When the
 * queue is full, the newest request of a tenant that holds more of it than the new one's may be shed. */
int scheduler_submit(struct scheduler *s, const struct scheduler_submission *in, uint64_t now_ms,
                     struct scheduler_admission *out, struct err *err);
/* Each of its choices has so many tokens now, about (>= 1: its prefill is over). Need not be said for every
 * token. */
void scheduler_progress(struct scheduler *s, uint32_t request, uint64_t tokens);
/* Its first token came so long after its submission. */
void scheduler_first_token(struct scheduler *s, uint32_t request, uint64_t after_us);
/* What it really was, before scheduler_finished: estimates and accounts are corrected. */
struct scheduler_usage {
    uint64_t prompt_tokens, cached_tokens, output_tokens; /* of all choices together */
    uint64_t prefill_us, decode_us;                       /* 0: unknown */
};
void scheduler_used(struct scheduler *s, uint32_t request, const struct scheduler_usage *usage);
/* The request is over: its group said so, or it still waited and its client cancelled it. */
void scheduler_finished(struct scheduler *s, uint32_t request);
/* The client no longer waits for a running request, its group was told to cancel: RUNNING -> ENDING. */
void scheduler_ending(struct scheduler *s, uint32_t request);
/* The group gave a preempted request back: it waits again, at its old place. */
void scheduler_yielded(struct scheduler *s, uint32_t request);
/* The assignment could not be delivered: back to its place in the queue. */
void scheduler_unassign(struct scheduler *s, uint32_t request);

/* It waits, and is to be kept from all groups until scheduler_release, which may give it a group for itself:
 * the next one that is empty, or becomes so. Its deadline counts on. */
void scheduler_hold(struct scheduler *s, uint32_t request);
void scheduler_release(struct scheduler *s, uint32_t request, bool alone);
/* It was released to be alone, and no group is empty yet. */
bool scheduler_waits_alone(const struct scheduler *s, uint32_t request);
/* It needs no group for itself any more. */
void scheduler_shared(struct scheduler *s, uint32_t request);

/* ---- events of groups ---- */
struct scheduler_group_info {
    const char *model; /* copied */
    uint32_t max_sequences;
    uint64_t kv_tokens;                 /* 0: unknown */
    uint64_t prefill_rate, decode_rate; /* tokens/s; 0: learned from what it reports */
    uint64_t numeric;                   /* names its numeric class; never 0 but where all are the same */
};
void scheduler_group_ready(struct scheduler *s, uint32_t group, const struct scheduler_group_info *info);
/* The group takes no more work. With hand_over what runs there is preempted as long as groups of the same
 * numeric class have room for it; the rest ends where it is. */
void scheduler_group_draining(struct scheduler *s, uint32_t group, bool hand_over);
/* It takes work again, and what it runs stays. */
void scheduler_group_resumes(struct scheduler *s, uint32_t group);
/* A message there and back took so long; what is less than a step counts as nothing. */
void scheduler_group_link(struct scheduler *s, uint32_t group, uint64_t round_trip_us);
/* The group, or the epoch that its requests ran in, is gone: they MOVE; those that were ENDING END. */
void scheduler_group_gone(struct scheduler *s, uint32_t group, uint64_t now_ms);
/* The number will name another group. */
void scheduler_group_forget(struct scheduler *s, uint32_t group);

/* What is known of cached prefixes, with groups by their names, for a warm restart; and what such a snapshot
 * says of one group, which is ready. -1: it is no snapshot. */
void scheduler_prefix_save(const struct scheduler *s, const char *(*name)(void *context, uint32_t group),
                           void *context, struct buffer *out);
int scheduler_prefix_restore(struct scheduler *s, const void *data, size_t bytes, const char *name,
                             uint32_t group, struct err *err);

/* No new requests; those that wait END with 503, those that run may finish until the deadline. */
void scheduler_drain(struct scheduler *s, uint64_t deadline_ms);

/* ---- settings that have a measured optimum ---- */
#define SCHEDULER_SETTINGS      2
#define SCHEDULER_PREFIX_WEIGHT 100 /* percent, where nothing was measured yet */
struct scheduler_setting {
    const char *name; /* static */
    uint64_t value;   /* in force; of an automatic one: the best that is known */
    uint64_t low, high;
    bool automatic; /* else set by hand */
};
void scheduler_settings(const struct scheduler *s, struct scheduler_setting out[SCHEDULER_SETTINGS]);
/* Reads "auto" or a number of digits; `name` is for the error. */
int scheduler_setting_read(const char *name, const char *text, bool *automatic, uint64_t *value,
                           struct err *err);
/* Sets one by hand, or lets it be found again. 404: no such setting; 400: outside its bounds. */
int scheduler_tune(struct scheduler *s, const char *name, bool automatic, uint64_t value, struct err *err);

/* ---- what to do now ---- */
/* Fills at most `max` actions; as many as `max` means: call again. */
size_t scheduler_step(struct scheduler *s, uint64_t now_ms, struct scheduler_action *out, size_t max);
/* When scheduler_step must be called at the latest though nothing happened. */
uint64_t scheduler_due_ms(const struct scheduler *s);

/* ---- a look inside ---- */
uint32_t scheduler_queued(const struct scheduler *s);
uint32_t scheduler_live(const struct scheduler *s); /* all that were submitted and have not left */
uint64_t scheduler_bytes(const struct scheduler *s);
uint32_t scheduler_assigned(const struct scheduler *s, uint32_t group); /* sequences */
bool scheduler_draining(const struct scheduler *s);
struct scheduler_counts {
    uint64_t decisions;             /* assignments */
    uint64_t moved;                 /* from groups that were gone */
    uint64_t preempted, shed, late; /* late: refused because the deadline could not be met */
    uint64_t prefix_tokens;         /* of prompts, expected to be cached where they went */
};
struct scheduler_counts scheduler_counts(const struct scheduler *s);
/* Bytes of memory that it holds: limits decide it. */
uint64_t scheduler_memory(const struct scheduler *s);
/* Checks every invariant; ASSERTs. For tests and simulations: O(everything). */
void scheduler_check(const struct scheduler *s);

#endif
