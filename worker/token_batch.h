/* token_batch: tokens that wait for the others of their step, so that one message carries all of them. What a
 * token borrows is copied: who made it has one place for it. It sends nothing, and knows no connection. */
#ifndef LEPTON_WORKER_TOKEN_BATCH_H
#define LEPTON_WORKER_TOKEN_BATCH_H

#include "common/wire.h"

struct token_batch {
    struct wire_token item[WIRE_MAX_TOKENS];
    uint32_t count;
    struct buffer text; /* of each: the request's id, then the token's text */
};

static inline bool token_batch_full(const struct token_batch *b)
{
    return b->count == WIRE_MAX_TOKENS;
}
/* Takes a copy; false for a token with log-probabilities, which goes alone. There must be room. */
bool token_batch_add(struct token_batch *b, const struct wire_token *t);
/* All that waits as one message, `token` or `tokens`; false when nothing does. It borrows from the batch,
 * until the next token is added. */
bool token_batch_take(struct token_batch *b, struct wire_str group, uint64_t epoch, struct wire_message *out);
/* Forgets what waits. */
void token_batch_drop(struct token_batch *b);
void token_batch_release(struct token_batch *b);

#endif
