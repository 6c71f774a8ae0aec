/* leader: the state of the leader's step thread, shared by the files that work on it: `serve` (its loop),
 * `sequences` (who lives, who waits, whose pages are whose) and `flight` (the steps under way). One thread
 * owns all of it; nobody outside worker/infer includes this. */
#ifndef LEPTON_WORKER_INFER_LEADER_H
#define LEPTON_WORKER_INFER_LEADER_H

#include "worker/infer/pages.h"
#include "worker/infer/pipeline.h"
#include "worker/infer/serve.h"
#include "worker/infer/speculate.h"

/* One choice of one request. It waits (and holds nothing but its tokens) or has a slot, and may go back and
 * forth: preempted, it waits again and recomputes what its pages held. Its tokens are all that it is:
 * sampling is a function of (seed, index), so its stream goes on as if nothing had happened. */
struct sequence {
    bool used;
    struct sequence_request request; /* prompt: moved into `tokens` */
    int64_t due_us;                  /* arrival, and what its priority adds */
    uint64_t order;  /* of arrival: (due_us, order) is its place among all, and never changes */
    int32_t *tokens; /* [prompt + max_tokens] prompt, then what was drawn, then the draft of what comes */
    int32_t known, fed;
    int32_t *pages; /* [pages_per_sequence] */
    int32_t page_count;
    int32_t assigned;    /* entries of the table that the stages know */
    int32_t published;   /* pages that are known by their tokens */
    int32_t history;     /* tokens that the last stage's sampling history holds */
    int32_t cached;      /* prompt tokens found in pages, before the first token */
    int32_t draft;       /* guessed tokens behind the known ones */
    int32_t draft_known; /* `known` when that was guessed */
    struct draft_length lengths;
    int32_t drafted, accepted; /* of all its drafts */
    int32_t flights;           /* steps under way that have rows of it */
    bool drawing;              /* the last of these draws: what comes next is not known yet */
    bool cancelled, silent;    /* silent: its end is reported to nobody */
    bool blocked;              /* an earlier choice computes its prompt */
    bool counted;              /* its prompt is among the tokens looked up */
    uint64_t first_us;
};

/* A sequence without a slot. */
struct waiting {
    struct sequence q;
    struct waiting *next, *before;
};

/* A step under way: which slots it holds and how many tokens of each. */
struct flight {
    struct step step;
    int32_t *slots;
    int32_t micro_batches; /* how many might be under way beside it, itself included */
    void *result;          /* a group of one rank has it at once */
};

struct leader {
    const struct serve_options *o;
    struct sequence *slot;                  /* [limits.slots] */
    struct waiting *waiting, *waiting_last; /* in order */
    size_t waiting_count;
    struct pages *pages;
    struct flight *flight; /* [stages], a ring */
    int32_t flights, first_flight, flight_count;
    int32_t micro_batches; /* steps that may be under way now, 1 to flights */
    struct pipeline_cost cost;
    struct batch_sequence *plan_in;
    struct batch_plan plan;
    int32_t *plan_slot; /* slot of each plan_in */
    struct buffer encoded;
    uint64_t next_step, next_order;
    uint64_t since_us; /* it last stopped running a step; 0 = nothing has run since it was idle */
    bool awake, draining;
    bool pinged; /* an idle group shall show that every rank's step loop runs */
    struct serve_stats stats;
};

/* The options are borrowed until leader_release. */
void leader_init(struct leader *l, const struct serve_options *options);
/* Whatever still runs is dropped without a word. */
void leader_release(struct leader *l);

static inline int32_t leader_pages_needed(const struct leader *l, int32_t tokens)
{
    return (tokens + l->o->engine.page_tokens - 1) / l->o->engine.page_tokens;
}

#endif
