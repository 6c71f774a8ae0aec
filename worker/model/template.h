/* template: chat templates: a small, allow-listed interpreter of Jinja, the language in which models say how
 * a conversation becomes one text (`tokenizer.chat_template`).
 *
 * It takes the part of Jinja that such templates use and renders it as jinja2 does in the sandbox that
 * Hugging Face's transformers set up (trim_blocks, lstrip_blocks, loop controls, {% generation %}, tojson
 * without HTML escapes, raise_exception, strftime_now). Whatever is not on the list — a statement, filter,
 * test, method, function or argument — is refused by name at parse time with its line and column;
 * docs/models.md has the list.
 *
 * A template is foreign code: it sees the variables it is given and nothing else, no file, no attribute of
 * any object, no clock but `now`. Steps, memory, output, nesting and the template's own size are bounded.
 * Integers have 64 bits; one that would not fit is an error.
 *
 * A parsed template is immutable; several threads may render it at once. */
#ifndef LEPTON_WORKER_MODEL_TEMPLATE_H
#define LEPTON_WORKER_MODEL_TEMPLATE_H

#include <jansson.h>

#include "common/base.h"

#define TEMPLATE_MAX_BYTES (512u << 10) /* the longest published ones have about 20 KiB */

struct template;

/* `name` stands in messages ("NAME:line:column: ..."). Errors: over TEMPLATE_MAX_BYTES; no valid UTF-8; bad
 * syntax; anything that is not on the list; nested too deep. Time and memory are linear in `bytes`. */
int template_parse(struct template **out, const char *source, size_t bytes, const char *name,
                   struct err *err);
void template_free(struct template **t);

/* Bounds of one rendering; 0 = the default. */
struct template_options {
    uint64_t max_steps;      /* 20 million: an expression, an element, 32 bytes of text are one each */
    size_t max_memory_bytes; /* 32 MiB: values made while rendering; strings of the input are borrowed */
    size_t max_output_bytes; /* 8 MiB */
    int64_t now;             /* seconds since 1970 for strftime_now, shown in local time */
};

/* Renders over the members of the object `variables` (borrowed, unchanged) and appends to *out. Errors carry
 * name:line:column: what the template refuses by raise_exception (code 400, "...: raise_exception: MESSAGE"),
 * an undefined value that is used, wrong types, an exhausted bound; *out is then as before. */
int template_render(const struct template *t, const json_t *variables, const struct template_options *options,
                    struct buffer *out, struct err *err);

#endif
