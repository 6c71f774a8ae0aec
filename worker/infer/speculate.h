/* speculate: drafts of what a sequence may say next, from its own text (prompt lookup; Saxena 2023). Text
 * repeats itself (names, quotations, code, a document that is being edited), so what followed the last few
 * tokens when they stood there before is a fair guess for what follows them now.
 *
 *     ... the red ball rolled away. ... Then the red | ball rolled away     <- the draft
 *         ^^^^^^^ found                      ^^^^^^^ the last tokens
 *
 * The guess costs nothing that shows: the model computes the draft's rows in the step of the last known
 * token, each row's own token is drawn as it would be without a draft, and the draft is taken as far as it
 * agrees (Leviathan et al. 2023; with draws that are functions of (seed, choice, index) agreement is
 * equality). What is rejected is computed again, so a draft that fails costs time alone. draft_length keeps
 * that small: it grows while drafts are taken and falls when they are not.
 *
 * PURE: the same tokens and the same past give the same draft. It knows nothing of pages, steps or devices.
 */
#ifndef LEPTON_WORKER_INFER_SPECULATE_H
#define LEPTON_WORKER_INFER_SPECULATE_H

#include "common/base.h"

#define SPECULATE_MAX_TOKENS 64 /* of one draft */
/* A step of fewer rows takes about as long as reading the weights: there drafted rows are nearly free. From
 * so many rows on every row costs, and nothing is drafted. */
#define SPECULATE_STEP_ROWS 32

struct speculate_options {
    int32_t least_match, most_match; /* tokens that must be the same in front of the draft; longest wins */
    int32_t window;                  /* the last so many tokens are searched */
};
extern const struct speculate_options speculate_standard;

/* Fills draft[most] with what followed the longest earlier occurrence of the last tokens, the latest of equal
 * ones; returns how many, 0 when there is none. */
int32_t speculate_draft(const int32_t *tokens, int32_t count, const struct speculate_options *options,
                        int32_t most, int32_t *draft);

/* How much to draft for one sequence, from what became of its drafts. */
struct draft_length {
    int32_t length; /* of the next one; 0 = it never had one */
    int32_t pause;  /* draws to wait before the next one */
    int32_t missed; /* drafts in a row of which nothing was taken */
};

/* Tokens to draft for the next draw: at most `most`; 0 while drafts are paused. Called once per draw. */
int32_t draft_length_next(struct draft_length *d, int32_t most);
/* `accepted` of `drafted` tokens were right. */
void draft_length_learn(struct draft_length *d, int32_t drafted, int32_t accepted);

#endif
