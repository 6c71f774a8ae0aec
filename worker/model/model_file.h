/* model_file: a model by its path, whatever form it has on disk: a GGUF file, or a Hugging Face directory.
 * The one way that programs open models. */
#ifndef LEPTON_WORKER_MODEL_MODEL_FILE_H
#define LEPTON_WORKER_MODEL_MODEL_FILE_H

#include "worker/model/gguf.h"

/* gguf_close releases it. */
int model_file_open(struct gguf **out, const char *path, struct err *err);
/* For its tokenizer only: a directory needs no weights then. */
int model_file_open_vocabulary(struct gguf **out, const char *path, struct err *err);

#endif
