/* lepton quantize: a model written again with other element types.
 *
 * Tensors pass through one after another, rows in batches split over the threads; each row's bytes depend on
 * the row alone, so the file is the same for every number of threads and never in memory as a whole. Vectors
 * and what is no weight of a product stay as they are stored. A value that the new type cannot hold ends the
 * work: nothing is written that differs by more than rounding. */
#include "tools/command.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/interrupt.h"
#include "tools/mix.h"
#include "tools/progress.h"
#include "worker/model/model_file.h"

#define BATCH_FLOATS (4u << 20) /* of rows, made between two writes */
#define THREADS_MAX  64
#define NAME_BYTES   65 /* the reader refuses longer names */

struct quantize_settings {
    char *type, *keep_output, *keep_embedding;
    int64_t threads;
    bool pure, list;
};

#define FIELD(member) .offset = offsetof(struct quantize_settings, member)
static const struct config_option options[] = {
    {.name = "type",
     .kind = CONFIG_STRING,
     FIELD(type),
     .standard = "q8_0",
     .value = "TYPE",
     .choices = MIX_NAMES,
     .help = "Element type of the matrices, or a mix of types."},
    {.name = "pure",
     .kind = CONFIG_BOOL,
     FIELD(pure),
     .help = "Gives every matrix the type that a mix is named after."},
    {.name = "keep_output",
     .kind = CONFIG_STRING,
     FIELD(keep_output),
     .value = "TYPE",
     .choices = TYPE_NAMES,
     .help =
         "The output matrix's type, whatever --type says of it (the token embedding's, where it serves as "
         "the output matrix)."},
    {.name = "keep_embedding",
     .kind = CONFIG_STRING,
     FIELD(keep_embedding),
     .value = "TYPE",
     .choices = TYPE_NAMES,
     .help = "The token embedding's type, whatever --type says of it."},
    {.name = "list",
     .letter = 'l',
     .kind = CONFIG_BOOL,
     FIELD(list),
     .help = "Shows every tensor that is converted: its types, and its error as a share of its size."},
    {.name = "threads",
     .kind = CONFIG_INT,
     FIELD(threads),
     .min = 1,
     .max = THREADS_MAX,
     .standard = "2",
     .help = "Threads; the file does not depend on it."},
};

static const struct config_table table = {
    .program = "lepton quantize",
    .arguments = "IN.gguf OUT.gguf",
    .about = "Writes a model again with other element types: smaller and faster, or larger. Vectors (norms, "
             "biases), "
             "routers of experts and all metadata stay as they are.",
    .after =
        "Mixes (q2_k and names that end in _s, _m or _l) are those of llama.cpp; docs/models.md lists them.\n"
        "A matrix whose rows are no whole number of blocks gets the nearest type that fits; each is named.\n"
        "The file appears under its name only when it is complete.\n"
        "example: lepton quantize --type q4_k_m model-f16.gguf model-q4_k_m.gguf\n",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct quantize_settings),
};

/* ---- what becomes of each tensor ---------------------------------------------------------------------- */

struct piece {
    const struct gguf_tensor *from;
    char name[NAME_BYTES];
    enum dtype dtype;
    bool fell_back;
    int64_t rows, columns;
};

struct plan {
    struct piece *piece;
    uint64_t count;
    uint64_t fallbacks, requantised;
};

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Weights of products and the token embedding. Norms of heads are stored as matrices too, routers decide too
 * much to be rounded, and positions are added as they are. */
static bool is_convertible(const struct piece *p)
{
    return p->from->ndim >= 2 && p->from->dtype != DTYPE_I32 && ends_with(p->name, ".weight") &&
           !ends_with(p->name, "_norm.weight") && !ends_with(p->name, "ffn_gate_inp.weight") &&
           !ends_with(p->name, "position_embd.weight") && !ends_with(p->name, "token_types.weight");
}

static enum dtype wanted_type(const struct quantize_settings *s, const struct mix *mix,
                              const struct mix_model *model, const char *name)
{
    enum dtype type = mix_type(mix, model, name);
    bool embedding = strcmp(name, "token_embd.weight") == 0;
    bool output = model->has_output ? strcmp(name, "output.weight") == 0 : embedding;
    const char *kept = embedding && s->keep_embedding ? s->keep_embedding : output ? s->keep_output : NULL;
    if (kept && !dtype_from_name(kept, &type))
        die("the choices of an option are types");
    return type;
}

/* A count of the model's metadata; `standard` where it is absent or differs by layer. */
static int64_t metadata_count(const struct gguf *g, const char *suffix, int64_t standard)
{
    struct gguf_string arch = {"", 0};
    struct err ignored;
    uint64_t value;
    if (gguf_get_string(g, "general.architecture", &arch, &ignored) != 1)
        return standard;
    char *key = xasprintf("%.*s.%s", (int)arch.size, arch.data, suffix);
    bool found = gguf_get_uint(g, key, &value, &ignored) == 1 && value <= INT32_MAX;
    free(key);
    return found ? (int64_t)value : standard;
}

static struct plan make_plan(const struct gguf *g, const struct quantize_settings *s, const struct mix *mix)
{
    struct plan plan = {.count = gguf_tensor_count(g)};
    plan.piece = xcalloc(plan.count, sizeof(*plan.piece));
    int64_t heads = metadata_count(g, "attention.head_count", 1);
    const struct mix_model model = {.layers = metadata_count(g, "block_count", 0),
                                    .heads = heads,
                                    .kv_heads = metadata_count(g, "attention.head_count_kv", heads),
                                    .experts = metadata_count(g, "expert_count", 0),
                                    .has_output = gguf_tensor_find(g, "output.weight") != NULL};
    for (uint64_t i = 0; i < plan.count; i++) {
        struct piece *p = &plan.piece[i];
        p->from = gguf_tensor_at(g, i);
        p->dtype = p->from->dtype;
        p->columns = p->from->dim[p->from->ndim - 1];
        p->rows = 1; /* the product fits: the tensor's bytes do */
        for (int d = 0; d < p->from->ndim - 1; d++)
            p->rows *= p->from->dim[d];
        snprintf(p->name, sizeof(p->name), "%.*s", (int)p->from->name.size, p->from->name.data);
        if (!is_convertible(p))
            continue;
        enum dtype wanted = wanted_type(s, mix, &model, p->name);
        p->dtype = mix_fitting(wanted, p->columns);
        p->fell_back = p->dtype != wanted;
        plan.fallbacks += p->fell_back;
        plan.requantised += p->dtype != p->from->dtype && dtype_info(p->from->dtype)->block_elements > 1;
        if (p->fell_back)
            printf("%s: rows of %" PRId64 " elements are no whole %s blocks of %u: %s instead\n", p->name,
                   p->columns, dtype_info(wanted)->name, dtype_info(wanted)->block_elements,
                   dtype_info(p->dtype)->name);
    }
    return plan;
}

/* ---- rows --------------------------------------------------------------------------------------------- */

/* Rows [0, count) of a batch, converted by one thread. */
struct share {
    const struct piece *piece;
    int64_t first, count; /* rows of the tensor */
    const uint8_t *in;
    uint8_t *out;
    double error, size;          /* sums of squares: of what rounding took away, and of the values */
    int64_t bad_row, bad_column; /* the first value that does not survive; row -1 = none */
    float bad_value;
};

static uint64_t row_bytes(enum dtype type, int64_t columns)
{
    uint64_t bytes = 0;
    int rc = dtype_row_bytes(type, (uint64_t)columns, &bytes);
    ASSERT(rc == 0); /* the reader and mix_fitting saw to it */
    return bytes;
}

/* The value to blame for row r: one that is no finite number, else the largest of those that became none.
 * (NaN is written as 0 by types that cannot hold it, and one value too large spoils its whole block.) */
static void find_culprit(struct share *s, int64_t r, const float *x, const float *y)
{
    for (int64_t c = 0; c < s->piece->columns; c++) {
        bool first = s->bad_row < 0;
        if (!first && !isfinite(s->bad_value))
            return;
        if (!isfinite(x[c]) || (!isfinite(y[c]) && (first || fabsf(x[c]) > fabsf(s->bad_value)))) {
            s->bad_row = s->first + r;
            s->bad_column = c;
            s->bad_value = x[c];
        }
    }
}

static void convert_row(struct share *s, int64_t r, float *x, float *y)
{
    const struct piece *p = s->piece;
    uint8_t *out = s->out + (uint64_t)r * row_bytes(p->dtype, p->columns);
    dtype_to_f32(p->from->dtype, s->in + (uint64_t)r * row_bytes(p->from->dtype, p->columns), x,
                 (uint64_t)p->columns);
    dtype_from_f32(p->dtype, x, out, (uint64_t)p->columns);
    dtype_to_f32(p->dtype, out, y, (uint64_t)p->columns);
    double error = 0, size = 0;
    for (int64_t c = 0; c < p->columns; c++) {
        double off = (double)y[c] - (double)x[c];
        error += off * off;
        size += (double)x[c] * (double)x[c];
    }
    s->error += error;
    s->size += size;
    if (!isfinite(error) || !isfinite(size))
        find_culprit(s, r, x, y);
}

static void *convert_rows(void *context)
{
    struct share *s = context;
    float *x = xmalloc((size_t)s->piece->columns * 2 * sizeof(float));
    for (int64_t r = 0; r < s->count && s->bad_row < 0; r++)
        convert_row(s, r, x, x + s->piece->columns);
    free(x);
    return NULL;
}

/* A part of the batch for each thread; the first is this thread's own. Their sums are added in order. */
static void convert_batch(struct share *whole, int threads)
{
    struct share share[THREADS_MAX];
    pthread_t thread[THREADS_MAX];
    int n = whole->count < threads ? (int)whole->count : threads;
    for (int k = 0; k < n; k++) {
        int64_t from = whole->count * k / n, to = whole->count * (k + 1) / n;
        const struct piece *p = whole->piece;
        share[k] = *whole;
        share[k].error = share[k].size = 0;
        share[k].first = whole->first + from;
        share[k].count = to - from;
        share[k].in = whole->in + (uint64_t)from * row_bytes(p->from->dtype, p->columns);
        share[k].out = whole->out + (uint64_t)from * row_bytes(p->dtype, p->columns);
        if (k && pthread_create(&thread[k], NULL, convert_rows, &share[k]) != 0)
            die("cannot start a thread");
    }
    convert_rows(&share[0]);
    for (int k = 0; k < n; k++) {
        if (k)
            pthread_join(thread[k], NULL);
        whole->error += share[k].error;
        whole->size += share[k].size;
        if (share[k].bad_row >= 0 && whole->bad_row < 0) {
            whole->bad_row = share[k].bad_row;
            whole->bad_column = share[k].bad_column;
            whole->bad_value = share[k].bad_value;
        }
    }
}

/* ---- the file ----------------------------------------------------------------------------------------- */

struct work {
    const struct gguf *g;
    struct gguf_writer *w;
    const struct quantize_settings *settings;
    struct progress progress;
    double error, size;
};

/* Unchanged tensors: the bytes as they are, in pieces. */
static int copy_piece(struct work *work, const struct piece *p, const uint8_t *data, struct err *err)
{
    for (uint64_t at = 0; at < p->from->bytes && !interrupted();) {
        uint64_t left = p->from->bytes - at, bytes = left < BATCH_FLOATS ? left : BATCH_FLOATS;
        if (gguf_writer_data(work->w, data + at, bytes, err))
            return -1;
        at += bytes;
        progress_add(&work->progress, bytes, p->name);
    }
    return 0;
}

static int convert_piece(struct work *work, const struct piece *p, const uint8_t *data, struct err *err)
{
    uint64_t in_bytes = row_bytes(p->from->dtype, p->columns), out_bytes = row_bytes(p->dtype, p->columns);
    int64_t batch = BATCH_FLOATS / p->columns + 1;
    batch = batch < p->rows ? batch : p->rows;
    uint8_t *out = xmalloc((size_t)batch * out_bytes);
    double error = 0, size = 0;
    int rc = 0;
    for (int64_t first = 0; first < p->rows && rc == 0 && !interrupted(); first += batch) {
        int64_t count = p->rows - first < batch ? p->rows - first : batch;
        struct share s = {.piece = p,
                          .first = first,
                          .count = count,
                          .in = data + (uint64_t)first * in_bytes,
                          .out = out,
                          .bad_row = -1};
        convert_batch(&s, (int)work->settings->threads);
        error += s.error;
        size += s.size;
        if (s.bad_row >= 0)
            rc = err_set(err,
                         "%s: tensor \"%s\": element [%" PRId64 ", %" PRId64 "] is %g, which %s cannot hold",
                         gguf_name(work->g), p->name, s.bad_row, s.bad_column, (double)s.bad_value,
                         dtype_info(p->dtype)->name);
        else
            rc = gguf_writer_data(work->w, out, (uint64_t)count * out_bytes, err);
        progress_add(&work->progress, (uint64_t)count * in_bytes, p->name);
    }
    free(out);
    work->error += error;
    work->size += size;
    if (rc == 0 && work->settings->list && !interrupted()) {
        progress_end(&work->progress);
        printf("%s\t%s\t%s\t%.5f\n", p->name, dtype_info(p->from->dtype)->name, dtype_info(p->dtype)->name,
               size > 0 ? sqrt(error / size) : 0.0);
    }
    return rc;
}

static void add_keys(struct gguf_writer *w, const struct gguf *g, const struct mix *mix)
{
    /* These tell of the file, not of the model: the writer aligns to the format's standard. */
    static const char *const OWN[] = {"general.alignment", "general.file_type",
                                      "general.quantization_version"};
    for (uint64_t i = 0; i < gguf_key_count(g); i++) {
        struct gguf_string key = gguf_key(g, i, NULL);
        bool own = false;
        for (size_t k = 0; k < ARRAY_LEN(OWN); k++)
            own = own || (strlen(OWN[k]) == key.size && memcmp(OWN[k], key.data, key.size) == 0);
        if (!own)
            gguf_writer_copy(w, g, i);
    }
    gguf_writer_uint(w, "general.file_type", mix->file_type);
    if (dtype_info(mix->base)->block_elements > 1)
        gguf_writer_uint(w, "general.quantization_version", 2);
}

static void print_summary(const struct work *work, const struct plan *plan, const char *path)
{
    uint64_t before = 0, after = 0, elements = 0;
    for (uint64_t i = 0; i < plan->count; i++) {
        const struct piece *p = &plan->piece[i];
        before += p->from->bytes;
        after += (uint64_t)p->rows * row_bytes(p->dtype, p->columns);
        elements += (uint64_t)p->rows * (uint64_t)p->columns;
    }
    printf("%s: %.1f MB of tensors, %.2f bits per weight, were %.1f MB; error %.5f of the weights' size\n",
           path, (double)after / 1e6, 8.0 * (double)after / (double)elements, (double)before / 1e6,
           work->size > 0 ? sqrt(work->error / work->size) : 0.0);
    if (plan->fallbacks)
        printf("%" PRIu64 " of %" PRIu64 " tensors got another type than asked for, because of their rows\n",
               plan->fallbacks, plan->count);
    if (plan->requantised)
        printf("%" PRIu64
               " tensors had been quantised before: their errors add up; start from f16 or f32 where "
               "you can\n",
               plan->requantised);
}

static int write_model(struct work *work, const struct mix *mix, const char *path, struct err *err)
{
    struct plan plan = make_plan(work->g, work->settings, mix);
    uint64_t total_bytes = 0;
    add_keys(work->w, work->g, mix);
    for (uint64_t i = 0; i < plan.count; i++) {
        const struct piece *p = &plan.piece[i];
        gguf_writer_tensor(work->w, p->name, p->dtype, p->from->ndim, p->from->dim);
        total_bytes += p->from->bytes;
    }
    progress_begin(&work->progress, total_bytes);
    int rc = gguf_writer_begin(work->w, err);
    for (uint64_t i = 0; i < plan.count && rc == 0 && !interrupted(); i++) {
        const struct piece *p = &plan.piece[i];
        const uint8_t *data = gguf_tensor_data(work->g, p->from);
        rc = p->dtype == p->from->dtype ? copy_piece(work, p, data, err) : convert_piece(work, p, data, err);
        gguf_tensor_drop(work->g, p->from);
    }
    progress_end(&work->progress);
    if (rc == 0 && !interrupted())
        print_summary(work, &plan, path);
    free(plan.piece);
    return rc;
}

/* The new file takes its name while the old one is still read. */
static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int quantize(const struct quantize_settings *s, const char *from, const char *to, struct err *err)
{
    struct gguf *g = NULL;
    struct mix mix = mix_find(s->type, s->pure);
    struct work work = {.settings = s};
    if (model_file_open(&g, from, err))
        return -1;
    work.g = g;
    interrupt_watch();
    int rc = same_file(from, to) ? err_set(err, "%s: expected another file than the one that is read", to)
                                 : gguf_writer_open(&work.w, to, err);
    if (rc == 0) {
        rc = write_model(&work, &mix, to, err);
        /* After a failure close removes what was written; the first message is the one to show. */
        int closed = gguf_writer_close(&work.w, rc ? NULL : err);
        rc = rc ? rc : closed;
    }
    gguf_close(&g);
    return rc;
}

int command_quantize(int argc, char **argv)
{
    struct quantize_settings settings;
    const char *arguments[2];
    struct err err;
    int code = EXIT_OK;
    config_main(&table, &settings, argc, argv, arguments, 2);
    if (quantize(&settings, arguments[0], arguments[1], &err)) {
        fprintf(stderr, "lepton quantize: %s\n",
                interrupted() ? "interrupted: nothing was written" : err.message);
        code = interrupted() ? EXIT_INTERRUPTED : EXIT_FAILED;
    }
    config_release(&table, &settings);
    return code;
}
