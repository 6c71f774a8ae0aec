#include "worker/model/chat.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "worker/model/model_file.h"

struct chat_format {
    char *name;
    struct template *template;
    json_t *tokens; /* name: text */
};

static const struct chat_builtin *find_builtin(const char *name)
{
    const struct chat_builtin *b;
    for (size_t i = 0; (b = chat_builtin_at(i)); i++)
        if (strcmp(b->name, name) == 0)
            return b;
    return NULL;
}

static int read_template(const char *path, struct buffer *out, struct err *err)
{
    char chunk[16384];
    size_t n;
    FILE *f = fopen(path, "rb");
    if (!f && errno == ENOENT) {
        struct buffer names = {0};
        const struct chat_builtin *b;
        for (size_t i = 0; (b = chat_builtin_at(i)); i++)
            buffer_printf(&names, "%s%s", i ? ", " : "", b->name);
        err_set(err, "%s: no such file, and no built-in template: expected one of %s", path,
                (const char *)names.data);
        buffer_release(&names);
        return -1;
    }
    if (!f)
        return err_set(err, "%s: %s", path, strerror(errno));
    while (out->size <= TEMPLATE_MAX_BYTES && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        buffer_append(out, chunk, n);
    bool failed = ferror(f);
    fclose(f);
    return failed ? err_set(err, "%s: cannot be read", path) : 0;
}

static int parse(struct chat_format *f, const char *source, size_t bytes, const char *name, struct err *err)
{
    f->name = xstrdup(name);
    return template_parse(&f->template, source, bytes, name, err);
}

static int parse_file(struct chat_format *f, const char *path, struct err *err)
{
    struct buffer source = {0};
    int code = read_template(path, &source, err);
    if (code == 0)
        code = parse(f, source.size ? (const char *)source.data : "", source.size, path, err);
    buffer_release(&source);
    return code;
}

static int parse_own(struct chat_format *f, const struct gguf *model, struct err *err)
{
    static const char key[] = "tokenizer.chat_template";
    struct gguf_string source;
    int found = model ? gguf_get_string(model, key, &source, err) : 0;
    if (found < 0)
        return -1;
    if (!found)
        return err_set(err, "%s has no %s: name one with --chat-template",
                       model ? gguf_name(model) : "the model", key);
    char *name = xasprintf("%s %s", gguf_name(model), key);
    int code = parse(f, source.data, source.size, name, err);
    free(name);
    return code;
}

/* A GGUF file, or a directory, which can only be a model's. */
static bool is_model(const char *path)
{
    char magic[4] = "";
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    bool yes = fstat(fileno(f), &st) == 0 &&
               (S_ISDIR(st.st_mode) || (fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0));
    fclose(f);
    return yes;
}

/* The text of the token whose id the model names. */
static int read_token(struct chat_format *f, const struct gguf *model, const char *key, const char *name,
                      struct err *err)
{
    uint64_t id, count = 0;
    enum gguf_type element;
    int found = gguf_get_uint(model, key, &id, NULL); /* -1 and the like mean that there is none */
    if (found <= 0)
        return 0;
    found = gguf_get_array(model, "tokenizer.ggml.tokens", &element, &count, err);
    if (found <= 0 || element != GGUF_STRING)
        return found < 0 ? -1 : 0;
    if (id >= count)
        return err_set(err, "%s: %s is %llu, expected less than the vocabulary's %llu", gguf_name(model), key,
                       (unsigned long long)id, (unsigned long long)count);
    struct gguf_string text = gguf_array_string(model, "tokenizer.ggml.tokens", id);
    json_t *value = json_stringn(text.data, text.size); /* NULL when it is no UTF-8: no token for templates */
    if (value)
        json_object_set_new(f->tokens, name, value);
    return 0;
}

static int read_tokens(struct chat_format *f, const struct gguf *model, struct err *err)
{
    static const char *const tokens[][2] = {
        {"tokenizer.ggml.bos_token_id", "bos_token"},
        {"tokenizer.ggml.eos_token_id", "eos_token"},
        {"tokenizer.ggml.unknown_token_id", "unk_token"},
        {"tokenizer.ggml.padding_token_id", "pad_token"},
    };
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++)
        if (read_token(f, model, tokens[i][0], tokens[i][1], err))
            return -1;
    return 0;
}

static int open_other(struct chat_format **out, const char *path, struct err *err)
{
    struct gguf *other = NULL;
    int code =
        model_file_open_vocabulary(&other, path, err) || chat_format_open(out, other, NULL, err) ? -1 : 0;
    gguf_close(&other);
    return code;
}

int chat_format_open(struct chat_format **out, const struct gguf *model, const char *choice, struct err *err)
{
    if (choice && !find_builtin(choice) && is_model(choice))
        return open_other(out, choice, err);
    struct chat_format *f = xcalloc(1, sizeof(*f));
    const struct chat_builtin *b = choice ? find_builtin(choice) : NULL;
    int code;
    *out = NULL;
    if (!(f->tokens = json_object()))
        die("out of memory");
    if (b) {
        char *name = xasprintf("built-in %s", b->name);
        json_object_set_new(f->tokens, "bos_token", json_string(b->bos_token));
        json_object_set_new(f->tokens, "eos_token", json_string(b->eos_token));
        code = parse(f, b->source, strlen(b->source), name, err);
        free(name);
    } else {
        code = choice ? parse_file(f, choice, err) : parse_own(f, model, err);
    }
    if (code == 0 && model)
        code = read_tokens(f, model, err);
    if (code)
        chat_format_close(&f);
    *out = f;
    return code;
}

void chat_format_close(struct chat_format **f)
{
    if (!f || !*f)
        return;
    template_free(&(*f)->template);
    json_decref((*f)->tokens);
    free((*f)->name);
    free(*f);
    *f = NULL;
}

const char *chat_format_name(const struct chat_format *f)
{
    return f->name;
}

const char *chat_format_token(const struct chat_format *f, const char *name)
{
    return json_string_value(json_object_get(f->tokens, name));
}

bool chat_format_begins_with_bos(const struct chat_format *f, const struct buffer *text)
{
    const char *bos = chat_format_token(f, "bos_token");
    size_t bytes = bos ? strlen(bos) : 0;
    return bytes && text->size >= bytes && memcmp(text->data, bos, bytes) == 0;
}

int chat_format_render(const struct chat_format *f, const struct chat_input *input, struct buffer *out,
                       struct err *err)
{
    struct template_options options = {.now = input->now};
    json_t *variables = json_copy(f->tokens);
    if (!variables)
        die("out of memory");
    json_object_set(variables, "messages", (json_t *)(uintptr_t)input->messages);
    if (input->tools)
        json_object_set(variables, "tools", (json_t *)(uintptr_t)input->tools);
    else
        json_object_set_new(variables, "tools", json_null());
    json_object_set_new(variables, "documents", json_null());
    json_object_set_new(variables, "add_generation_prompt", json_boolean(!input->no_generation_prompt));
    if (input->variables)
        json_object_update(variables, (json_t *)(uintptr_t)input->variables);
    int code = template_render(f->template, variables, &options, out, err);
    json_decref(variables);
    return code;
}
