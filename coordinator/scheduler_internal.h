/* scheduler_internal: what scheduler.c (events), scheduler_admit.c, scheduler_alone.c, scheduler_learn.c,
 * scheduler_pool.c (models, tenants, order), scheduler_step.c (decisions), scheduler_tune.c and
 * scheduler_check.c share. Nobody else includes it. */
#ifndef LEPTON_COORDINATOR_SCHEDULER_INTERNAL_H
#define LEPTON_COORDINATOR_SCHEDULER_INTERNAL_H

#include "coordinator/heap.h"
#include "coordinator/scheduler.h"
#include "coordinator/tuner.h"

#define NAME_BYTES 129

enum state { FREE, QUEUED, RUNNING, PREEMPTED, ENDING, LOST, HELD };

/* A request. QUEUED: in its flow's heap and list. RUNNING and preemptible: in its pool's list of victims.
 * LOST: in the list of the lost. HELD: in none, kept from all groups, or `alone` and waiting for an empty
 * one. QUEUED, HELD and RUNNING: in the heap of due times. */
struct entry {
    enum state state;
    bool charged, prefilled;
    bool given;       /* a group had it before: it is not shed */
    bool victim, due; /* in its pool's list; in the heap of due times */
    bool alone;       /* a group is, or will be, kept for it */
    bool ending;      /* LOST: its client has its outcome */
    bool exact;       /* max_tokens come */
    bool moved;       /* QUEUED, and before that at a group that is gone or drains: it goes first */
    uint64_t numeric; /* class of the groups that generated its tokens; 0: none yet */
    uint8_t class, preemptions;
    uint32_t previous, next; /* of the list it is in */
    uint32_t group;          /* RUNNING, PREEMPTED, ENDING */
    uint32_t flow;
    uint32_t choices; /* places that it takes at a group */
    uint32_t passed;  /* how often another went first for want of room */
    uint64_t bytes, submitted_ms, deadline_ms, order;
    uint64_t impatient_ms; /* from when on it may preempt; 0: it may now, or its class never does */
    uint64_t prompt_tokens, output_tokens; /* expected; output_tokens: of each choice, like max_tokens */
    uint64_t max_tokens;
    uint64_t cached_raw;              /* as the index has it; cached_tokens: as far as it is believed */
    uint64_t cached_tokens, produced; /* at its group */
    uint64_t prefill_left, decode_left, kv_tokens; /* its part of its group's sums */
    uint64_t work_us;                              /* its part of its flow's and class's sums, while QUEUED */
    uint64_t charge;
    uint32_t mark; /* for the tuner; 0: none */
};

struct list {
    uint32_t first, last, count;
};

/* The requests of one tenant, in one class, for one model. */
struct flow {
    bool used, active; /* active: something waits */
    uint32_t pool, class;
    uint32_t next, previous; /* of the active flows of its class in its pool */
    uint32_t bucket_next;    /* of the hash table */
    uint32_t live;           /* entries that point here */
    uint32_t running;        /* their sequences at groups */
    struct heap order;       /* by deadline */
    struct list arrived;     /* by arrival */
    uint64_t served;         /* virtual tokens */
    uint64_t work_us;        /* of what waits */
    uint64_t passed_round;   /* not asked again in this round */
    char tenant[NAME_BYTES];
};

struct pool_class {
    uint32_t active; /* first active flow */
    uint32_t active_count, queued, queued_places;
    uint32_t live_flows; /* flows with entries */
    uint64_t served;     /* virtual tokens, by weight */
    uint64_t clock;      /* the virtual time of the flow that was served last */
    uint64_t work_us;    /* of what waits */
    /* How fast the class really drains, while something waits: work begun since window_ms, and the rate of
     * the windows before, in microseconds of work per millisecond; 0: not known. */
    uint64_t window_ms, drained_us, drain_rate;
};

/* What serves one model, and what waits for it. */
struct pool {
    bool used, known; /* known: a group serves it or did */
    char model[NAME_BYTES];
    struct pool_class class[SCHEDULER_MAX_CLASSES];
    uint64_t clock; /* of the classes */
    uint32_t queued, entries;
    uint32_t moved;                     /* of the queued ones */
    uint32_t groups, accepting;         /* live ones */
    uint32_t unmeasured;                /* of them: their rates are assumed */
    uint64_t places;                    /* sequences of the accepting ones */
    struct heap open;                   /* groups that take more, by load */
    struct list victims;                /* preemptible ones that run, by start */
    uint32_t preempting;                /* sequences that were told to make room */
    uint64_t gone_ms;                   /* when it lost its last group */
    uint64_t prefill_rate, decode_rate; /* sums over its live groups */
    uint64_t bytes_per_256_tokens;      /* estimates, learned */
    uint64_t output_tokens_x16;
    uint64_t cached_expected,
        cached_found;      /* tokens, of requests lately: how far the index is to be believed */
    uint64_t token_us;     /* of one sequence between two tokens; 0: unknown */
    uint64_t token_dev_us; /* how far answers of some length are from it, in the mean */
    bool assignable;       /* something changed since nothing could be assigned */
    uint32_t round;        /* next group of BALANCER_NEXT */
};

struct group {
    bool known;     /* was ready once and is not forgotten: its model exists */
    bool live;      /* may hold requests */
    bool accepting; /* may be given more */
    bool open;      /* in its pool's heap */
    bool measured;  /* its rates are learned or given, not assumed */
    bool kept;      /* for one request, kept_for: it takes no other */
    uint32_t kept_for;
    bool hand_over; /* it drains: what it runs goes to others while they have room */
    uint64_t numeric;
    uint32_t pool;
    struct balancer_group view;
};

/* What may be tuned: set by hand to `value`, or automatic. */
struct setting {
    const char *name;
    uint64_t value, low, high;
    bool automatic;
};

struct scheduler {
    struct scheduler_limits limits;
    const struct balancer_policy *policy;
    struct setting weight, belief;
    struct tuner tuner;          /* of the weight */
    struct prefix_index *prefix; /* or NULL */
    struct entry *entries;       /* [live_requests] */
    struct heap_node *order;     /* [live_requests] nodes of the flows' heaps */
    struct heap_node *due_nodes; /* [live_requests] */
    struct prefix_key *keys;     /* [live_requests], NULL without an index */
    struct heap due;
    struct group *groups;         /* [groups] */
    struct heap_node *open_nodes; /* [groups] */
    uint32_t group_end;           /* groups at or above were never known */
    struct pool *pools;           /* [pool_limit]; 0: the requests that named no model before a group came */
    uint32_t pool_limit;
    struct flow *flows; /* [flow_limit] */
    uint32_t *buckets;  /* [flow_limit], heads of hash chains */
    uint32_t flow_limit, flow_hand;
    struct list lost;
    uint32_t live, queued, class_queued[SCHEDULER_MAX_CLASSES];
    uint64_t now_ms; /* of the last call that said it */
    uint64_t bytes, next_order, next_choice, round;
    uint32_t alone_waiting; /* HELD ones that wait for an empty group */
    bool handing_over;      /* some group drains, and others may take what it runs */
    bool draining;
    uint64_t drain_deadline_ms;
    uint64_t random;
    struct scheduler_counts counts;
};

/* ---- scheduler_pool.c ---- */
struct entry *scheduler_entry(struct scheduler *s, uint32_t request);
/* The pool of a model; NULL when there is none, or, with make, no room for another. */
struct pool *pool_find(struct scheduler *s, const char *model, bool make);
/* The one pool with live groups; NULL: several, or (*none) none. */
struct pool *pool_only(struct scheduler *s, bool *none);
/* The flow of (pool, class, tenant), made when it is new; SCHEDULER_NONE when all are in use. */
uint32_t flow_of(struct scheduler *s, uint32_t pool, uint32_t class, const char *tenant);
void list_append(struct scheduler *s, struct list *l, uint32_t request);
void list_remove(struct scheduler *s, struct list *l, uint32_t request);
/* FREE or not in any list -> QUEUED, and the way back. */
void queue_put(struct scheduler *s, uint32_t request);
void queue_take(struct scheduler *s, uint32_t request);
/* An entry points to the flow from now on, or no more. */
void flow_join(struct scheduler *s, uint32_t flow);
void flow_part(struct scheduler *s, uint32_t flow);
/* Does it run more than its class's and tenant's part of the places, as the demand is now? */
bool flow_over_share(const struct scheduler *s, const struct flow *f);
/* The request that goes first in the pool, of the flows not yet marked with the present round. */
uint32_t queue_first(struct scheduler *s, struct pool *p);
/* Accounts what an entry is going to use, or (settle) the difference to what it used. */
void entry_charge(struct scheduler *s, uint32_t request);
void entry_settle(struct scheduler *s, uint32_t request, uint64_t tokens);
/* Fills the expected tokens, work and charge of a new entry. */
void entry_estimate(struct scheduler *s, struct entry *e);
/* How long a request like e would wait, in microseconds: by how fast its class drains, or where that is not
 * known yet, by its share. */
uint64_t pool_wait_us(const struct scheduler *s, const struct pool *p, const struct entry *e);
/* How much of what the index expects to be cached is found to be, in percent. */
uint64_t pool_prefix_percent(const struct scheduler *s, const struct pool *p);
/* Until the entry's last expected token is out, from its first on. A length that is known is met with some
 * certainty, so that what is let in comes in time; one that is guessed is not worth the margin. */
uint64_t entry_decode_us(const struct pool *p, const struct entry *e);
/* Mean rates of a group of the pool, never 0. */
uint64_t pool_prefill_rate(const struct pool *p);
uint64_t pool_decode_rate(const struct pool *p);
/* When the entry ends though nothing happens to it. */
uint64_t entry_due_ms(const struct scheduler *s, const struct entry *e, int *code, const char **reason);
/* Sets its due time anew. */
void entry_due(struct scheduler *s, uint32_t request);

/* ---- scheduler_alone.c ---- */
/* The next request that is to run alone, and the empty group kept for it; SCHEDULER_NONE: none. */
uint32_t alone_next(struct scheduler *s, uint32_t *group);
void group_unkeep(struct scheduler *s, uint32_t group);
/* The entry needs no group for itself: it leaves, or is no suspect any more. */
void entry_shared(struct scheduler *s, uint32_t request);

/* ---- scheduler_step.c ---- */
/* The numeric class that a request is bound to, as long as a group of it takes work; else 0. */
uint64_t entry_numeric(const struct scheduler *s, const struct pool *p, const struct entry *e);

/* ---- scheduler_learn.c ---- */
/* Gives the groups of a pool that were not measured the rates of those that were. */
void assume_rates(struct scheduler *s, uint32_t pool);

/* ---- scheduler_tune.c ---- */
void settings_init(struct scheduler *s, const struct scheduler_limits *limits);
/* In force now, in percent. */
uint32_t prefix_weight(const struct scheduler *s);
/* A request of the pool has just been assigned under it. */
void tune_given(struct scheduler *s, const struct pool *p, struct entry *e);

/* ---- scheduler.c ---- */
/* Takes the entry out of whatever it is in. */
void entry_leave(struct scheduler *s, uint32_t request);
void entry_free(struct scheduler *s, uint32_t request);
/* The group's place among the open ones of its pool follows its state and load. */
void group_refresh(struct scheduler *s, uint32_t group);

#endif
