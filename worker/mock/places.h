/* places: which beginnings of prompts a simulated engine still has in its KV cache: names with their lengths,
 * least recently used first out, bounded in number and in tokens. */
#ifndef LEPTON_WORKER_MOCK_PLACES_H
#define LEPTON_WORKER_MOCK_PLACES_H

#include "worker/mock/engine.h"

struct places;
struct places *places_new(uint32_t most);
void places_free(struct places **p);
/* Tokens of the longest beginning that is there without a gap; it counts as used now. */
uint32_t places_find(struct places *p, const struct engine_place *prompt, uint32_t count);
/* Keeps all of a prompt's places; others go until no more than max_tokens are held. */
void places_keep(struct places *p, const struct engine_place *prompt, uint32_t count, uint64_t max_tokens);

#endif
