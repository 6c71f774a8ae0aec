/* hf: a Hugging Face directory (config.json, *.safetensors, tokenizer.json or tokenizer.model, ...) read as
 * if it were a GGUF file, and a GGUF file written as such a directory.
 *
 * Reading assembles a struct gguf: its header is made in memory from the configuration and the tokenizer,
 * with the keys that llama.cpp's conversion writes; its tensors stay in the safetensors mappings, and those
 * that the two formats store differently are made when they are first asked for. Nothing is written into the
 * directory. What cannot be expressed exactly is refused by name. Everything about families is data:
 * hf_family.c. */
#ifndef LEPTON_WORKER_MODEL_HF_H
#define LEPTON_WORKER_MODEL_HF_H

#include "worker/model/gguf.h"

enum hf_need {
    HF_MODEL,      /* configuration, tokenizer and weights */
    HF_VOCABULARY, /* the tokenizer alone: no weights need be there, and no configuration */
};

/* The model's tokenizer may be missing (the result then has no tokenizer.ggml.* keys), not for
 * HF_VOCABULARY. */
int hf_open(struct gguf **out, const char *directory, enum hf_need need, struct err *err);

struct hf_write_options {
    bool keep;            /* tensors keep their type; block types are refused */
    enum dtype dtype;     /* else the type of all tensors of two dimensions or more */
    uint64_t shard_bytes; /* most bytes of tensors in one file */
    void (*progress)(void *context, uint64_t bytes, const char *tensor); /* so many more were read */
    bool (*stop)(void *context); /* asked between pieces; NULL = never */
    void *context;
};

/* Writes `g` as a directory, which must not be there yet or be empty. Files appear under their names only
 * when they are complete; the index, which makes a directory of several shards readable, comes last. *notes
 * gathers one line for everything that the directory cannot say as the file did. */
int hf_write(const struct gguf *g, const char *directory, const struct hf_write_options *options,
             struct buffer *notes, struct err *err);

#endif
