/* mock: a worker group without a model, for load tests: it speaks the real wire through the real link, and
 * its answers come when a group of the given speed would bring them. A prompt counts one token for each four
 * bytes; an answer has max_tokens tokens of letters that follow from the seed, the choice and the index. */
#ifndef LEPTON_WORKER_MOCK_MOCK_H
#define LEPTON_WORKER_MOCK_MOCK_H

#include "worker/infer/mailbox.h"
#include "worker/mock/engine.h"
#include "worker/model/tokenizer.h"

/* A vocabulary of bytes: a token for each, behind <unk>, <s> and </s>. *gguf holds it and outlives the
 * tokenizer. */
int mock_tokenizer(struct tokenizer **tokenizer, struct gguf **gguf, struct err *err);

/* The step thread of a mock group: takes commands and emits events until a drain is done. */
void mock_serve(struct mailbox *mailbox, const struct engine_speed *speed);

#endif
