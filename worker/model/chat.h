/* chat: how a model wants a conversation written: its chat template and the special tokens the template
 * names.
 *
 * Variables are those of Hugging Face's apply_chat_template: messages, tools (none without), documents
 * (none), add_generation_prompt, bos_token, eos_token, unk_token and pad_token where the model has them, and
 * whatever the caller adds. It knows no tokenizer and no network. */
#ifndef LEPTON_WORKER_MODEL_CHAT_H
#define LEPTON_WORKER_MODEL_CHAT_H

#include "worker/model/gguf.h"
#include "worker/model/template.h"

struct chat_format;

/* The template that `choice` names: a built-in (chat_builtin), else a file; NULL: the model's own,
 * tokenizer.chat_template. A GGUF file or a Hugging Face directory gives its own template and tokens. Special
 * tokens come from `model`, and where it has none (or is NULL) from the built-in. Copies what it needs. */
int chat_format_open(struct chat_format **out, const struct gguf *model, const char *choice, struct err *err);
void chat_format_close(struct chat_format **f);

/* Where the template came from: "FILE tokenizer.chat_template", "built-in chatml". */
const char *chat_format_name(const struct chat_format *f);
/* The special token's text, or NULL: "bos_token", "eos_token", ... */
const char *chat_format_token(const struct chat_format *f, const char *name);

struct chat_input {
    const json_t *messages;    /* an array of objects; borrowed like all here */
    const json_t *tools;       /* an array, or NULL */
    const json_t *variables;   /* an object of further variables, or NULL; they win over the others */
    bool no_generation_prompt; /* do not begin the assistant's answer */
    int64_t now;               /* seconds since 1970, for templates that write the date */
};
/* Appends the conversation as one text. Errors as template_render. */
int chat_format_render(const struct chat_format *f, const struct chat_input *input, struct buffer *out,
                       struct err *err);

/* Whether the text begins with the model's begin-of-text token: templates write it themselves, and the worker
 * is to add no second one. */
bool chat_format_begins_with_bos(const struct chat_format *f, const struct buffer *text);

/* The built-in templates, for models that carry none; NULL past the last. */
struct chat_builtin {
    const char *name, *about, *bos_token, *eos_token, *source;
};
const struct chat_builtin *chat_builtin_at(size_t index);

#endif
