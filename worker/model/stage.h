/* stage: one pipeline stage of a model: rows in, rows out. The first stage takes token ids, the last gives
 * logits; between stages travels x[T, C] in F32, always: the residual's type at block borders is fixed, so
 * the number of stages does not show in the result (design I7).
 *
 * It knows nothing of requests, sampling or of who its neighbours are. */
#ifndef LEPTON_WORKER_MODEL_STAGE_H
#define LEPTON_WORKER_MODEL_STAGE_H

#include "worker/model/block.h"

struct stage {
    const struct model *model; /* borrowed */
    struct stream *stream;     /* borrowed */
    int64_t max_tokens, max_logits;
    struct block_scratch scratch;
    void *x_memory;      /* [max_tokens, C] */
    void *rows_memory;   /* [max_logits, C] the rows that get logits, normalised */
    void *logits_memory; /* [max_logits, V], last stage only */
    /* Of a tensor slot of the last stage: its columns of the logits, then all slots', one after the other. */
    void *part_memory, *parts_memory;
    int64_t widest_part; /* columns of the slot that has most */
    /* Called between blocks, so that sends under way move on and the watchdog sees progress; may be NULL. */
    int (*between)(void *context, struct err *err);
    void *between_context;
    /* Of a tensor slot: out = `in` of all slots, `bytes` of each, in their order. The sum over the slots is
     * the scratch's (block.h). */
    int (*gather)(void *context, struct stream *stream, const void *in, void *out, size_t bytes,
                  struct err *err);
    void *gather_context;
};

int stage_open(struct stage **out, const struct model *model, struct stream *stream, int64_t max_tokens,
               int64_t max_logits, struct err *err);
void stage_close(struct stage **s);

/* The stage's activations as [tokens, C]: where the previous stage's rows are received, and where the result
 * lies. */
struct tensor stage_rows(struct stage *s, int64_t tokens);
/* Runs the stage's blocks over the rows in stage_rows(view's T). The first stage embeds ids[T] first (NULL
 * elsewhere). kv[l] are the pages of the slice's layer l. -1 only when a hook failed. */
int stage_forward(struct stage *s, const struct tensor *ids, const struct seq_view *view, struct kv_layer *kv,
                  struct err *err);
/* Last stage: logits[B, V] of the rows named by rows[B] (I32); the tensor is the stage's own and is
 * overwritten by the next call. B <= max_logits. On a tensor slot these are its columns of V alone:
 * stage_join_logits. */
struct tensor stage_logits(struct stage *s, int64_t tokens, const struct tensor *rows);
/* Last stage, all its tensor slots together: gathers the logits of stage_logits from all slots; on slot 0
 * *logits becomes [B, V]. Nothing to do where one slot holds the whole. */
int stage_join_logits(struct stage *s, struct tensor *logits, struct err *err);

#endif
