/* admit: turns what an assign asks for into a request for the step thread: its prompt as tokens, its length
 * held against what the group has, its sampling in the kernels' terms. It refuses what can never be served,
 * with the numbers, and knows nothing of sockets or of what else runs. */
#ifndef LEPTON_WORKER_ADMIT_H
#define LEPTON_WORKER_ADMIT_H

#include "common/wire.h"
#include "worker/infer/mailbox.h"
#include "worker/model/tokenizer.h"

/* What requests are held against. */
struct admit {
    const struct wire_hello *group; /* its capacity; borrowed, as is the tokenizer */
    const struct tokenizer *tokenizer;
    uint8_t salt_key[16]; /* of this process: nobody outside can make two salts meet */
};
void admit_init(struct admit *a, const struct wire_hello *group, const struct tokenizer *tokenizer);

/* Fills *out but its handle; what it owns is the caller's to release (or to give to a command). `ids` is
 * scratch. -1: err->code is 400 or 413. */
int admit_request(struct sequence_request *out, const struct wire_assign *assign, const struct admit *admit,
                  struct token_ids *ids, struct err *err);

#endif
