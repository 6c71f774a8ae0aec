/* mock: a worker group without a model, for load tests: it speaks the real wire through the real link, and
 * its answers come when a group of the given speed would bring them. A prompt counts one token for each four
 * bytes; an answer has max_tokens tokens of letters that follow from the seed, the choice and the index.
 *
 * With stamps its tokens say instead when they were made: id = MOCK_STAMP + (monotonic microseconds / 4)
 * modulo 262144, so that a client on the same machine knows how long each was under way. */
#ifndef LEPTON_WORKER_MOCK_MOCK_H
#define LEPTON_WORKER_MOCK_MOCK_H

#include "worker/infer/mailbox.h"
#include "worker/mock/engine.h"
#include "worker/model/tokenizer.h"

#define MOCK_STAMP    259
#define MOCK_STAMPS   262144
#define MOCK_STAMP_US 4

/* A vocabulary of bytes: a token for each, behind <unk>, <s> and </s>; with `stamps` the stamps behind them.
 * *gguf holds it and outlives the tokenizer. */
int mock_tokenizer(struct tokenizer **tokenizer, struct gguf **gguf, bool stamps, struct err *err);

/* The step thread of a mock group: takes commands and emits events until a drain is done. */
void mock_serve(struct mailbox *mailbox, const struct engine_speed *speed, bool stamps);

#endif
