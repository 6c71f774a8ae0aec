/* lepton synth: a model of random weights in the shape that is asked for, for benchmarks only.
 *
 * Every weight depends on (seed, tensor, row, column) alone, so the file is the same for every number of
 * threads. Rows are made in batches, converted, and written at once: the model is never in memory as a whole.
 * The vocabulary encodes any text, so that whole programs can be measured, but what comes out is noise. */
#include "tools/command.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/interrupt.h"
#include "tools/mix.h"
#include "tools/progress.h"
#include "worker/model/gguf.h"

#define BATCH_BYTES     (8u << 20) /* of rows, made between two writes */
#define THREADS_MAX     64
#define VOCAB_MIN       260 /* unk, bos, eos, 256 bytes, the space piece */
#define TOKEN_BYTES_MAX 32

struct synth_settings {
    char *arch, *type;
    int64_t layers, dim, ffn, heads, kv_heads, vocab, context, seed, threads;
    double rope_base;
    bool pure;
};

#define INT_OPTION(member, low, high, default_, text)                                                       \
    {                                                                                                       \
        .name = #member, .kind = CONFIG_INT, .offset = offsetof(struct synth_settings, member), .min = low, \
        .max = high, .standard = default_, .help = text                                                     \
    }

static const struct config_option options[] = {
    {.name = "arch",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct synth_settings, arch),
     .standard = "llama",
     .choices = "llama",
     .help = "Architecture."},
    {.name = "type",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct synth_settings, type),
     .standard = "q8_0",
     .value = "TYPE",
     .choices = MIX_NAMES,
     .help = "Element type of the matrices, or a mix of types; norms are always f32."},
    {.name = "pure",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct synth_settings, pure),
     .help = "Gives every matrix the type that a mix is named after."},
    INT_OPTION(layers, 1, 1000, "22", "Transformer blocks."),
    INT_OPTION(dim, 2, 65536, "2048", "Width of the residual stream."),
    INT_OPTION(ffn, 1, 1048576, "5632", "Width of the feed-forward layer."),
    INT_OPTION(heads, 1, 4096, "32", "Attention heads."),
    INT_OPTION(kv_heads, 1, 4096, "4", "Key and value heads."),
    INT_OPTION(vocab, VOCAB_MIN, 1000000, "32000", "Tokens in the vocabulary."),
    INT_OPTION(context, 1, 16777216, "2048", "Longest sequence in tokens that the file announces."),
    INT_OPTION(seed, 0, 9223372036854775807.0, "1", "Seed of the weights."),
    INT_OPTION(threads, 1, THREADS_MAX, "2", "Threads; the file does not depend on it."),
    {.name = "rope_base",
     .kind = CONFIG_FLOAT,
     .offset = offsetof(struct synth_settings, rope_base),
     .min = 1,
     .max = 1e12,
     .standard = "10000",
     .help = "Base of the rotary position frequencies."},
};

static const struct config_table table = {
    .program = "lepton synth",
    .arguments = "OUT.gguf",
    .about =
        "Writes a GGUF model of random weights, for benchmarks only: it has the shape and the speed of a "
        "model, and its text is noise. The defaults are the shape of TinyLlama-1.1B.",
    .after = "The file appears under its name only when it is complete.\n"
             "Mixes (q2_k and names that end in _s, _m or _l) are those of llama.cpp; docs/models.md lists "
             "them.\n"
             "example: lepton synth --layers 2 --dim 256 --ffn 512 --heads 8 --kv-heads 2 --vocab 1000 "
             "tiny.gguf\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct synth_settings),
};

/* One tensor of the plan. deviation 0 = a vector of ones (a norm). */
struct piece {
    char name[48];
    enum dtype dtype;
    int64_t rows, columns;
    double deviation;
};

struct plan {
    struct piece *piece;
    size_t count;
};

/* Shapes that no llama can have. */
static int check_shape(const struct synth_settings *s, const struct mix *mix, struct err *err)
{
    int64_t block = mix_block(mix);
    if (s->dim % s->heads)
        return err_set(err, "--dim %lld: expected a multiple of --heads (%lld)", (long long)s->dim,
                       (long long)s->heads);
    if (s->dim / s->heads % 2)
        return err_set(err, "--dim %lld: expected an even number per head, --heads %lld gives %lld",
                       (long long)s->dim, (long long)s->heads, (long long)(s->dim / s->heads));
    if (s->heads % s->kv_heads)
        return err_set(err, "--heads %lld: expected a multiple of --kv-heads (%lld)", (long long)s->heads,
                       (long long)s->kv_heads);
    if (s->dim % block)
        return err_set(err, "--dim %lld: expected a multiple of %lld, the block of %s", (long long)s->dim,
                       (long long)block, s->type);
    if (s->ffn % block)
        return err_set(err, "--ffn %lld: expected a multiple of %lld, the block of %s", (long long)s->ffn,
                       (long long)block, s->type);
    return 0;
}

/* ---- the vocabulary ----------------------------------------------------------------------------------- */

/* By frequency in English, so that a small vocabulary has the common pairs. */
static const char letters[] = "etaoinshrdlcumwfgypbvkjxqz";
#define SPACE_PIECE "\xE2\x96\x81" /* U+2581 stands for a space */
#define LETTERS     ((int64_t)sizeof(letters) - 1)

/* The index-th made-up piece: "!" to "~"; then for n = 1, 2, ...: the space and n letters, n + 1 letters.
 * Each is its own beginning with one more letter, so that merging pairs always reaches it. */
static void made_up(int64_t index, char out[TOKEN_BYTES_MAX])
{
    if (index < '~' - '!' + 1) {
        snprintf(out, TOKEN_BYTES_MAX, "%c", (char)('!' + index));
        return;
    }
    index -= '~' - '!' + 1;
    int64_t words = LETTERS; /* of n letters */
    int n = 1;
    bool spaced = true;
    while (index >= words) {
        index -= words;
        if (spaced) {
            words *= LETTERS;
            n++;
        }
        spaced = !spaced;
    }
    char word[16];
    ASSERT(n < (int)sizeof(word));
    word[n] = 0;
    for (int k = n - 1; k >= 0; k--) {
        word[k] = letters[index % LETTERS];
        index /= LETTERS;
    }
    snprintf(out, TOKEN_BYTES_MAX, "%s%s", spaced ? SPACE_PIECE : "", word);
}

/* Token types of GGUF's SentencePiece vocabularies. */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_BYTE = 6 };

static void add_vocabulary(struct gguf_writer *w, int64_t count)
{
    char(*text)[TOKEN_BYTES_MAX] = xcalloc((size_t)count, sizeof(*text));
    const char **tokens = xcalloc((size_t)count, sizeof(*tokens));
    float *scores = xcalloc((size_t)count, sizeof(*scores));
    int32_t *types = xcalloc((size_t)count, sizeof(*types));
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = text[i];
        types[i] = i == 0 ? TOKEN_UNKNOWN : i < 3 ? TOKEN_CONTROL : i < 259 ? TOKEN_BYTE : TOKEN_NORMAL;
        if (i < 3)
            strcpy(text[i], (const char *const[]){"<unk>", "<s>", "</s>"}[i]);
        else if (i < 259)
            snprintf(text[i], TOKEN_BYTES_MAX, "<0x%02X>", (unsigned)i - 3);
        else if (i == 259)
            strcpy(text[i], SPACE_PIECE);
        else
            made_up(i - VOCAB_MIN, text[i]);
        scores[i] = i < 259 ? 0 : -(float)(i - 259);
    }
    gguf_writer_string(w, "tokenizer.ggml.model", "llama");
    gguf_writer_strings(w, "tokenizer.ggml.tokens", tokens, (uint64_t)count);
    gguf_writer_floats(w, "tokenizer.ggml.scores", scores, (uint64_t)count);
    gguf_writer_ints(w, "tokenizer.ggml.token_type", types, (uint64_t)count);
    gguf_writer_uint(w, "tokenizer.ggml.unknown_token_id", 0);
    gguf_writer_uint(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_uint(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_writer_bool(w, "tokenizer.ggml.add_eos_token", false);
    free(types);
    free(scores);
    free(tokens);
    free(text);
}

/* ---- keys and tensors --------------------------------------------------------------------------------- */

static void add_keys(struct gguf_writer *w, const struct synth_settings *s, const struct mix *mix)
{
    char name[128];
    snprintf(name, sizeof(name), "synth-%s-%lldx%lld-%s", s->arch, (long long)s->layers, (long long)s->dim,
             s->type);
    gguf_writer_string(w, "general.architecture", s->arch);
    gguf_writer_string(w, "general.name", name);
    gguf_writer_string(w, "general.description", "random weights, for benchmarks only");
    gguf_writer_uint(w, "general.file_type", mix->file_type);
    if (dtype_info(mix->base)->block_elements > 1)
        gguf_writer_uint(w, "general.quantization_version", 2);
    gguf_writer_uint(w, "llama.context_length", (uint64_t)s->context);
    gguf_writer_uint(w, "llama.embedding_length", (uint64_t)s->dim);
    gguf_writer_uint(w, "llama.block_count", (uint64_t)s->layers);
    gguf_writer_uint(w, "llama.feed_forward_length", (uint64_t)s->ffn);
    gguf_writer_uint(w, "llama.attention.head_count", (uint64_t)s->heads);
    gguf_writer_uint(w, "llama.attention.head_count_kv", (uint64_t)s->kv_heads);
    gguf_writer_float(w, "llama.attention.layer_norm_rms_epsilon", 1e-5);
    gguf_writer_uint(w, "llama.rope.dimension_count", (uint64_t)(s->dim / s->heads));
    gguf_writer_float(w, "llama.rope.freq_base", s->rope_base);
    gguf_writer_uint(w, "llama.vocab_size", (uint64_t)s->vocab);
    add_vocabulary(w, s->vocab);
}

static void add(struct plan *plan, const char *name, enum dtype dtype, int64_t rows, int64_t columns,
                double deviation)
{
    struct piece *p = &plan->piece[plan->count++];
    *p = (struct piece){.dtype = dtype, .rows = rows, .columns = columns, .deviation = deviation};
    snprintf(p->name, sizeof(p->name), "%s", name);
}

static void add_block(struct plan *plan, const struct synth_settings *s, const struct mix *mix,
                      const struct mix_model *model, int64_t layer)
{
    int64_t C = s->dim, F = s->ffn, K = s->dim / s->heads * s->kv_heads;
    const struct {
        const char *name;
        int64_t rows, columns; /* 1 row = a norm */
    } part[] = {
        {"attn_norm", 1, C}, {"attn_q", C, C},   {"attn_k", K, C}, {"attn_v", K, C},   {"attn_output", C, C},
        {"ffn_norm", 1, C},  {"ffn_gate", F, C}, {"ffn_up", F, C}, {"ffn_down", C, F},
    };
    for (size_t i = 0; i < ARRAY_LEN(part); i++) {
        char name[48];
        bool norm = strstr(part[i].name, "norm") != NULL;
        snprintf(name, sizeof(name), "blk.%lld.%s.weight", (long long)layer, part[i].name);
        /* 1/sqrt(K) keeps the size of what passes through. */
        add(plan, name, norm ? DTYPE_F32 : mix_type(mix, model, name), part[i].rows, part[i].columns,
            norm ? 0 : 1 / sqrt((double)part[i].columns));
    }
}

static struct plan make_plan(const struct synth_settings *s, const struct mix *mix)
{
    struct plan plan = {.piece = xcalloc(3 + 9 * (size_t)s->layers, sizeof(struct piece))};
    const struct mix_model model = {
        .layers = s->layers, .heads = s->heads, .kv_heads = s->kv_heads, .has_output = true};
    const char *embed = "token_embd.weight", *output = "output.weight";
    add(&plan, embed, mix_type(mix, &model, embed), s->vocab, s->dim, 0.02);
    for (int64_t layer = 0; layer < s->layers; layer++)
        add_block(&plan, s, mix, &model, layer);
    add(&plan, "output_norm.weight", DTYPE_F32, 1, s->dim, 0);
    add(&plan, output, mix_type(mix, &model, output), s->vocab, s->dim, 1 / sqrt((double)s->dim));
    return plan;
}

/* ---- weights ------------------------------------------------------------------------------------------ */

/* splitmix64 (Steele, Lea and Flood 2014): the n-th number of a stream is a function of n. */
static inline uint64_t mix64(uint64_t z)
{
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static inline uint32_t sum_of_quarters(uint64_t z)
{
    return (uint32_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
}

/* Normal numbers, nearly: each is the sum of eight uniform ones of 16 bits, which is cheap, and differs from
 * the normal distribution only in the far tails (nothing beyond 4.9 deviations). */
static void random_row(uint64_t stream, double deviation, float *out, int64_t columns)
{
    const double mean = 8 * 65535.0 / 2, spread = sqrt(8 * (65536.0 * 65536.0 - 1) / 12);
    const float scale = (float)(deviation / spread);
    for (int64_t i = 0; i < columns; i++) {
        uint64_t n = stream + 2 * (uint64_t)i;
        uint32_t sum = sum_of_quarters(mix64(n)) + sum_of_quarters(mix64(n + 1));
        out[i] = ((float)sum - (float)mean) * scale;
    }
}

/* Rows [first, first + count) of one tensor, made by one thread. */
struct share {
    const struct piece *piece;
    uint64_t stream; /* of the tensor */
    int64_t first, count;
    uint64_t row_bytes;
    uint8_t *out;
};

static void *make_rows(void *context)
{
    const struct share *s = context;
    int64_t columns = s->piece->columns;
    float *row = xmalloc((size_t)columns * sizeof(float));
    for (int64_t r = 0; r < s->count; r++) {
        if (s->piece->deviation > 0)
            random_row(mix64(s->stream + (uint64_t)(s->first + r)), s->piece->deviation, row, columns);
        else
            for (int64_t i = 0; i < columns; i++)
                row[i] = 1;
        dtype_from_f32(s->piece->dtype, row, s->out + (uint64_t)r * s->row_bytes, (uint64_t)columns);
    }
    free(row);
    return NULL;
}

/* Makes `count` rows from `first` on, split over the threads. The first share is this thread's own. */
static void make_batch(struct share whole, int threads)
{
    struct share share[THREADS_MAX];
    pthread_t thread[THREADS_MAX];
    int n = whole.count < threads ? (int)whole.count : threads;
    for (int k = 0; k < n; k++) {
        int64_t from = whole.count * k / n, to = whole.count * (k + 1) / n;
        share[k] = whole;
        share[k].first = whole.first + from;
        share[k].count = to - from;
        share[k].out = whole.out + (uint64_t)from * whole.row_bytes;
        if (k && pthread_create(&thread[k], NULL, make_rows, &share[k]) != 0)
            die("cannot start a thread");
    }
    make_rows(&share[0]);
    for (int k = 1; k < n; k++)
        pthread_join(thread[k], NULL);
}

/* ---- writing ------------------------------------------------------------------------------------------ */

static uint64_t bytes_of_row(const struct piece *p)
{
    uint64_t bytes = 0;
    int rc = dtype_row_bytes(p->dtype, (uint64_t)p->columns, &bytes);
    ASSERT(rc == 0); /* check_shape refused what is no whole number of blocks */
    return bytes;
}

static int write_piece(struct gguf_writer *w, const struct synth_settings *s, const struct piece *piece,
                       uint64_t stream, struct progress *progress, struct err *err)
{
    uint64_t row_bytes = bytes_of_row(piece);
    int64_t batch = (int64_t)(BATCH_BYTES / row_bytes) + 1;
    uint8_t *rows = xmalloc((size_t)batch * row_bytes);
    int rc = 0;
    for (int64_t first = 0; first < piece->rows && rc == 0 && !interrupted(); first += batch) {
        int64_t count = piece->rows - first < batch ? piece->rows - first : batch;
        make_batch((struct share){piece, stream, first, count, row_bytes, rows}, (int)s->threads);
        rc = gguf_writer_data(w, rows, (uint64_t)count * row_bytes, err);
        progress_add(progress, (uint64_t)count * row_bytes, piece->name);
    }
    free(rows);
    return rc;
}

static int write_model(struct gguf_writer *w, const struct synth_settings *s, const struct mix *mix,
                       struct err *err)
{
    struct progress progress;
    struct plan plan = make_plan(s, mix);
    uint64_t total_bytes = 0;
    add_keys(w, s, mix);
    for (size_t i = 0; i < plan.count; i++) {
        const struct piece *p = &plan.piece[i];
        if (p->rows == 1)
            gguf_writer_tensor(w, p->name, p->dtype, 1, (int64_t[]){p->columns});
        else
            gguf_writer_tensor(w, p->name, p->dtype, 2, (int64_t[]){p->rows, p->columns});
        total_bytes += (uint64_t)p->rows * bytes_of_row(p);
    }
    progress_begin(&progress, total_bytes);
    int rc = gguf_writer_begin(w, err);
    for (size_t i = 0; i < plan.count && rc == 0 && !interrupted(); i++)
        rc = write_piece(w, s, &plan.piece[i], mix64(mix64((uint64_t)s->seed) + i), &progress, err);
    progress_end(&progress);
    free(plan.piece);
    return rc;
}

static int synth(const struct synth_settings *s, const struct mix *mix, const char *path, struct err *err)
{
    struct gguf_writer *w;
    interrupt_watch();
    if (gguf_writer_open(&w, path, err))
        return -1;
    int rc = write_model(w, s, mix, err);
    /* After a failure close removes what was written; the first message is the one to show. */
    int closed = gguf_writer_close(&w, rc ? NULL : err);
    return rc ? rc : closed;
}

int command_synth(int argc, char **argv)
{
    struct synth_settings settings;
    const char *arguments[1];
    struct err err;
    int code = EXIT_OK;
    config_main(&table, &settings, argc, argv, arguments, 1);
    struct mix mix = mix_find(settings.type, settings.pure);
    if (check_shape(&settings, &mix, &err)) {
        fprintf(stderr, "lepton synth: %s\n", err.message);
        code = EXIT_USAGE;
    } else if (synth(&settings, &mix, arguments[0], &err)) {
        fprintf(stderr, "lepton synth: %s\n",
                interrupted() ? "interrupted: nothing was written" : err.message);
        code = interrupted() ? EXIT_INTERRUPTED : EXIT_FAILED;
    }
    config_release(&table, &settings);
    return code;
}
