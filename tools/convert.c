/* lepton convert: a model from one form on disk into another: a Hugging Face directory into a GGUF file, a
 * GGUF file into a Hugging Face directory, or either into itself with another type of weights. Reading and
 * writing the forms is model_file's, gguf's and hf's work; here stand the choices and the progress. */
#include "tools/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/interrupt.h"
#include "tools/progress.h"
#include "worker/model/hf.h"
#include "worker/model/model_file.h"

#define PIECE_ELEMENTS (1u << 20)

struct convert_settings {
    char *type;
    int64_t shard_mb;
};

#define OFFSET(member) offsetof(struct convert_settings, member)
static const struct config_option options[] = {
    {.name = "type",
     .kind = CONFIG_STRING,
     .offset = OFFSET(type),
     .standard = "keep",
     .value = "TYPE",
     .choices = "keep|f32|f16|bf16",
     .help = "The type of every tensor of two dimensions or more; keep leaves each as it is."},
    {.name = "shard_mb",
     .kind = CONFIG_INT,
     .offset = OFFSET(shard_mb),
     .min = 1,
     .max = 1e6,
     .standard = "5000",
     .value = "N",
     .help = "Most megabytes of tensors in one .safetensors file of a directory."},
};

static const struct config_table table = {
    .program = "lepton convert",
    .arguments = "IN OUT",
    .about = "Converts a model between a Hugging Face directory (config.json, *.safetensors, tokenizer.json "
             "or tokenizer.model) and a GGUF file. IN is either; OUT becomes a GGUF file when its name ends "
             "in .gguf, else a directory. Weights of plain types come back byte for byte.",
    .after = "examples:\n"
             "  lepton convert model-directory model.gguf\n"
             "  lepton convert model.gguf model-directory --type bf16\n\n"
             "exit codes: 0 done, 1 the model could not be read, converted or written, 2 wrong usage, 130 "
             "ended by Ctrl-C (nothing is left)\n",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct convert_settings),
};

static bool stop(void *context)
{
    (void)context;
    return interrupted();
}

static void add_progress(void *context, uint64_t bytes, const char *tensor)
{
    progress_add(context, bytes, tensor);
}

/* ---- to GGUF ------------------------------------------------------------------------------------------ */

static enum dtype target_type(const struct gguf_tensor *t, bool keep, enum dtype type)
{
    return keep || t->ndim < 2 ? t->dtype : type;
}

static bool key_is(struct gguf_string key, const char *name)
{
    return key.size == strlen(name) && memcmp(key.data, name, key.size) == 0;
}

/* The same keys; only what says how the file itself is laid out is new. */
static void copy_keys(struct gguf_writer *w, const struct gguf *g, bool keep, enum dtype type)
{
    for (uint64_t i = 0; i < gguf_key_count(g); i++) {
        struct gguf_string key = gguf_key(g, i, NULL);
        if (key_is(key, "general.alignment"))
            continue;
        if (key_is(key, "general.file_type") && !keep)
            gguf_writer_uint(w, "general.file_type", type == DTYPE_F32 ? 0 : type == DTYPE_F16 ? 1 : 32);
        else
            gguf_writer_copy(w, g, i);
    }
}

static int write_tensor(struct gguf_writer *w, const struct gguf *g, const struct gguf_tensor *t,
                        enum dtype type, struct err *err)
{
    const struct dtype_info *in = dtype_info(t->dtype), *out = dtype_info(type);
    const uint8_t *data = gguf_tensor_data(g, t);
    if (t->dtype == type)
        return gguf_writer_data(w, data, t->bytes, err);
    uint64_t count = t->bytes / in->block_bytes * in->block_elements;
    float *wide = xmalloc(PIECE_ELEMENTS * sizeof(*wide));
    uint8_t *narrow = xmalloc(PIECE_ELEMENTS * sizeof(float));
    int rc = 0;
    for (uint64_t at = 0; at < count && rc == 0; at += PIECE_ELEMENTS) {
        uint64_t n = count - at < PIECE_ELEMENTS ? count - at : PIECE_ELEMENTS;
        dtype_to_f32(t->dtype, data + at / in->block_elements * in->block_bytes, wide, n);
        dtype_from_f32(type, wide, narrow, n);
        rc = gguf_writer_data(w, narrow, n * out->block_bytes, err);
    }
    free(wide);
    free(narrow);
    return rc;
}

static int write_gguf(const struct gguf *g, const char *path, const struct hf_write_options *o,
                      struct err *err)
{
    struct gguf_writer *w;
    uint64_t count = gguf_tensor_count(g);
    if (gguf_writer_open(&w, path, err))
        return -1;
    copy_keys(w, g, o->keep, o->dtype);
    for (uint64_t i = 0; i < count; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char *name = xasprintf("%.*s", (int)t->name.size, t->name.data);
        gguf_writer_tensor(w, name, target_type(t, o->keep, o->dtype), t->ndim, t->dim);
        free(name);
    }
    int rc = gguf_writer_begin(w, err);
    for (uint64_t i = 0; i < count && rc == 0; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[80];
        if (o->stop(o->context)) {
            rc = err_set(err, "interrupted");
            break;
        }
        rc = write_tensor(w, g, t, target_type(t, o->keep, o->dtype), err);
        gguf_tensor_drop(g, t);
        snprintf(name, sizeof(name), "%.*s", (int)t->name.size, t->name.data);
        o->progress(o->context, t->bytes, name);
    }
    /* After a failure close removes what was written; the first message is the one to show. */
    int closed = gguf_writer_close(&w, rc ? NULL : err);
    return rc ? rc : closed;
}

/* ---- the command -------------------------------------------------------------------------------------- */

static bool is_gguf_name(const char *path)
{
    size_t n = strlen(path);
    return n > 5 && strcmp(path + n - 5, ".gguf") == 0;
}

static int convert(const struct convert_settings *s, const char *in, const char *out, struct err *err)
{
    struct progress progress;
    struct hf_write_options o = {.keep = strcmp(s->type, "keep") == 0,
                                 .shard_bytes = (uint64_t)s->shard_mb * 1000000,
                                 .progress = add_progress,
                                 .stop = stop,
                                 .context = &progress};
    struct buffer notes = {0};
    struct gguf *g = NULL;
    uint64_t bytes = 0;
    if (!o.keep && !dtype_from_name(s->type, &o.dtype))
        die("the choices of --type are types");
    interrupt_watch();
    if (model_file_open(&g, in, err))
        return -1;
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++)
        bytes += gguf_tensor_at(g, i)->bytes;
    progress_begin(&progress, bytes);
    int rc = is_gguf_name(out) ? write_gguf(g, out, &o, err) : hf_write(g, out, &o, &notes, err);
    progress_end(&progress);
    if (rc == 0 && notes.size)
        fprintf(stderr, "lepton convert: %.*s", (int)notes.size, (const char *)notes.data);
    buffer_release(&notes);
    gguf_close(&g);
    return rc;
}

int command_convert(int argc, char **argv)
{
    struct convert_settings settings;
    const char *arguments[2];
    struct err err;
    int code = EXIT_OK;
    config_main(&table, &settings, argc, argv, arguments, 2);
    if (convert(&settings, arguments[0], arguments[1], &err)) {
        fprintf(stderr, "lepton convert: %s\n",
                interrupted() ? "interrupted: nothing was written" : err.message);
        code = interrupted() ? EXIT_INTERRUPTED : EXIT_FAILED;
    }
    config_release(&table, &settings);
    return code;
}
