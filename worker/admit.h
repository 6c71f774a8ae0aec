/* admit: turns what an assign asks for into a request for the step thread: its prompt as tokens, its length
 * held against what the group has, its sampling in the kernels' terms. It refuses what can never be served,
 * with the numbers, and knows nothing of sockets or of what else runs. */
#ifndef LEPTON_WORKER_ADMIT_H
#define LEPTON_WORKER_ADMIT_H

#include "common/wire.h"
#include "worker/infer/mailbox.h"
#include "worker/model/tokenizer.h"

/* Fills *out but its handle; out->prompt is the caller's to free (or to give to a command). `group` says the
 * capacity, `ids` is scratch. -1: err->code is 400 or 413. */
int admit_request(struct sequence_request *out, const struct wire_assign *assign,
                  const struct wire_hello *group, const struct tokenizer *tokenizer, struct token_ids *ids,
                  struct err *err);

#endif
