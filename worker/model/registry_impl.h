/* registry_impl: what registry.c (finds, opens, lists) and registry_change.c (adds, removes) share. Nobody
 * else includes it. */
#ifndef LEPTON_WORKER_MODEL_REGISTRY_IMPL_H
#define LEPTON_WORKER_MODEL_REGISTRY_IMPL_H

#include "worker/model/gguf_impl.h"
#include "worker/model/registry.h"

#define MODEL_FILE "model.gguf"

int registry_check_name(const char *name, struct err *err);

#endif
