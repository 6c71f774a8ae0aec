/* batch: which sequences go into the next step, how many tokens of each, and who gives up its pages for them.
 * PURE: the same state gives the same plan.
 *
 * Every sequence has `known` tokens (its prompt and what was generated) of which `fed` went through the
 * model. One that is one token behind decodes; one that is further behind is in its prefill. Decoding goes
 * first (a running stream does not wait for somebody's prompt), then prefills take what is left of the token
 * budget, in chunks. Within each the earlier one goes first: earlier is the smaller (due_us, order), which is
 * the time of arrival, put off by the priority (the lower number goes first). So a priority is a head start,
 * and what has waited long enough is overtaken by nobody.
 *
 * Steps under way hold the tokens that they draw: a sequence waits for those. Chunks of a prompt that draw
 * nothing may follow each other through the stages (`flying`), so that one prompt keeps them all busy.
 *
 * Drafts (speculation) come last: behind the last known token of a sequence that draws go as many drafted
 * tokens as rows and free pages are left for. Nobody waits or is preempted for a draft.
 *
 * The order never changes while a sequence lives, and pages are taken only from later ones: the earliest
 * sequence is never preempted and gets every page it needs, it ends, and another is the earliest. That is why
 * a full cache neither deadlocks nor livelocks. */
#ifndef LEPTON_WORKER_INFER_BATCH_H
#define LEPTON_WORKER_INFER_BATCH_H

#include "common/base.h"

struct batch_sequence {
    int32_t slot;
    int32_t known, fed;
    int32_t draft;  /* tokens that are guessed behind the known ones */
    bool busy;      /* in a step under way that draws, or waiting for another's prompt: neither planned nor
                       preempted */
    bool flying;    /* in steps under way: not preempted. Unless busy, its next rows may follow them */
    bool copy;      /* its next row goes into a page that others see: it needs a page of its own first */
    int32_t pages;  /* it holds; they cover positions [0, pages * page_tokens) */
    int32_t sole;   /* of these, those that nobody else holds */
    int64_t due_us; /* arrival, and what its priority adds */
    uint64_t order; /* of arrival, unique */
};

struct batch_item {
    int32_t sequence; /* index into the array given */
    int32_t tokens;   /* the next so many tokens behind `fed` */
    bool sample;      /* they reach the last known token: the next one is drawn */
    int32_t draft;    /* so many guessed tokens behind them, each with a draw of its own */
};

struct batch_limits {
    int32_t tokens;        /* rows of one step */
    int32_t mixed_tokens;  /* the same where sequences decode: their next tokens wait for somebody's prompt no
                              longer than such a step takes; 0 = tokens */
    int32_t prompt_tokens; /* rows of a step up to which it takes prompts; 0 = tokens */
    int32_t sequences;     /* sequences of one step */
    int32_t micro_batches; /* steps that may be under way at once: a step takes its share of the sequences
                              that run */
    int32_t draft_rows;    /* a step takes drafts only as long as it has fewer sequences and drafts than this:
                              few    rows cost hardly more than one, many do */
    int32_t page_tokens;
    int32_t pages; /* that can be taken: free or cached */
};

struct batch_plan {
    struct batch_item *items; /* decoding ones first, each in order */
    int32_t item_count;
    int32_t *victims; /* indices of the sequences to preempt before the items take their pages */
    int32_t victim_count;
    void *scratch; /* the planner's own */
};

/* Room for plans over so many sequences. */
void batch_plan_init(struct batch_plan *plan, int32_t sequences);
void batch_plan_release(struct batch_plan *plan);

/* Whether a comes before b. */
bool batch_earlier(int64_t a_due_us, uint64_t a_order, int64_t b_due_us, uint64_t b_order);

/* Replaces *plan. No items and no victims: nothing is ready, or all that is ready waits for pages of busy
 * sequences. No items but victims: plan again after the preemptions. */
void batch_plan_step(const struct batch_sequence *sequences, int32_t count, const struct batch_limits *limits,
                     struct batch_plan *plan);

#endif
