/* step: the descriptor of one micro-batch, which travels through the stages in front of its activations. It
 * carries everything a stage must know: the rows' tokens and positions, where each sequence's pages lie, page
 * work in order, and how the last stage samples. Pages are named by the leader alone (design, decision 12),
 * so every stage holds the same table because it applied the same operations in the same order.
 *
 * The encoding is the host's own layout (ranks of a job run one build); decoding still checks every count and
 * index against the limits, so that a corrupted descriptor is an error and never a wild write. */
#ifndef LEPTON_WORKER_INFER_STEP_H
#define LEPTON_WORKER_INFER_STEP_H

#include "kernels/kernels.h"

enum step_flags {
    STEP_SLEEP = 1, /* no rows: pass it on, then sleep until woken */
    STEP_STOP = 2,  /* no rows: pass it on, then leave */
};

enum page_op_kind {
    PAGE_ASSIGN = 1, /* a = slot, b = index in the sequence's table, c = page */
    PAGE_MOVE = 2,   /* a = from page (-1 = zero), b = to page */
};

struct page_op {
    int32_t kind, a, b, c;
};

/* One sequence's rows: tokens [position, position + tokens) of the sequence in `slot`. */
struct step_sequence {
    int32_t slot;
    int32_t position;
    int32_t tokens;
    int32_t sample; /* the last so many rows get logits and a token each: 1, more to verify a draft, or 0 */
    struct sample_row
        row; /* of the first of these; the next has the next index, and one token more behind it */
};

/* Tokens [position, position + tokens) of the sequence in `slot` that go through no stage, because their keys
 * and values are in its pages already: the last stage needs them for its sampling history. */
struct step_history {
    int32_t slot, position, tokens;
};

struct step_limits {
    int32_t tokens;             /* rows of one step */
    int32_t sequences;          /* sequences of one step */
    int32_t samples;            /* rows of one step that get logits; 0 = as many as sequences */
    int32_t slots;              /* sequences of a group */
    int32_t context;            /* positions of a sequence */
    int32_t pages;              /* of the pool */
    int32_t pages_per_sequence; /* entries in a sequence's table */
    int32_t vocab;
    int32_t page_ops; /* of one step */
    int32_t biases;   /* logit biases of one step, all sequences together */
    int32_t history;  /* history tokens of one step */
};

/* What one stage says of a step, for its first slot. */
struct stage_time {
    uint64_t busy_us;   /* it ran the step */
    uint64_t wait_us;   /* since it last ran one, though the group had work: waiting, receiving, sending on */
    uint64_t bubble_us; /* of that, its processors were not taken by other stages (occupancy.h) */
    uint64_t processor_us; /* of all its threads, while it ran the step */
};
#define STEP_MAX_STAGES 256

struct step {
    struct stage_time times[STEP_MAX_STAGES]; /* of the stages that it has been through */
    int32_t time_count;
    uint64_t id; /* grows by one */
    uint32_t flags;
    int32_t sequence_count, token_count, sample_count, op_count, bias_count;
    int32_t history_count, history_tokens;
    struct step_sequence *sequences;
    int32_t *ids; /* [token_count], the rows in order of the sequences */
    struct page_op *ops;
    struct logit_bias *biases;    /* what the sampling rows' bias_begin and bias_count point into */
    struct step_history *history; /* [history_count <= limits.sequences] */
    int32_t *history_ids;         /* [history_tokens], in order of `history` */
};

static inline int32_t step_samples(const struct step_limits *l)
{
    return l->samples ? l->samples : l->sequences;
}

/* Room for a step of these limits. The arrays belong to the step until step_release. */
void step_init(struct step *s, const struct step_limits *limits);
void step_release(struct step *s);
void step_clear(struct step *s, uint64_t id, uint32_t flags);

/* What the next stage took. */
void step_add_time(struct step *s, const struct stage_time *time);

/* Adds a sampling row's biases and points the row at them; the limits hold them. */
void step_add_biases(struct step *s, struct sample_row *row, const struct logit_bias *biases, int32_t count);
/* Does any row of the step want log-probabilities? The last stage then answers with sample_count of them. */
bool step_wants_logprobs(const struct step *s);

/* Bytes of the longest encoding. */
size_t step_max_bytes(const struct step_limits *limits);
/* Replaces *out by the encoding. */
void step_encode(const struct step *s, struct buffer *out);
/* Fills a step made by step_init with the same limits. */
int step_decode(struct step *s, const void *data, size_t bytes, const struct step_limits *limits,
                struct err *err);

#endif
