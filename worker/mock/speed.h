/* speed: the file that says how fast a group without a model is. */
#ifndef LEPTON_WORKER_MOCK_SPEED_H
#define LEPTON_WORKER_MOCK_SPEED_H

#include "worker/mock/engine.h"

/* Reads a libconfig file with any of base_us, decode_us, prefill_us (microseconds), step_tokens,
 * max_sequences, kv_tokens, cache_places; *speed becomes engine_standard_speed where it is silent. *stamps
 * (may be NULL): tokens say when they were made (worker/mock/mock.h). */
int engine_speed_load(struct engine_speed *speed, bool *stamps, const char *path, struct err *err);

#endif
