/* speed: how fast a simulated group is, from what `lepton bench engine --json` measured or from a file. */
#ifndef LEPTON_TOOLS_SIM_SPEED_H
#define LEPTON_TOOLS_SIM_SPEED_H

#include "worker/mock/engine.h"

/* *speed keeps what the file does not say. A .cfg file is what a mock group takes (worker/mock/speed.h). Any
 * other is JSON: either
 *   {"results":[{"test":"pp512","batch":1,"tokens_per_second":…}, {"test":"tg128","batch":8,…}]}
 * (prompts give prefill_us; generation over batches gives base_us and decode_us, by least squares), or
 *   {"base_us", "decode_us", "prefill_us", "step_tokens", "max_sequences", "kv_tokens", "cache_places"}. */
int speed_read(struct engine_speed *speed, const char *path, struct err *err);

#endif
