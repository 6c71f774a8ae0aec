/* Models of every weight type against a forward pass in double, written from the published description of the
 * architecture (Touvron et al. 2023) over the blocks' definitions: it shares no code with kernels/ or
 * block.c.
 *
 * The bound: the engine's sums are in F32 (24 bits). Each of the few dozen products and norms on the way to a
 * logit adds errors of about 2^-24 times the size of what it sums; logits are below 32, so that 1e-4 is about
 * fifty roundings of the last place of the largest. A wrong block layout, scale or order shows at 1e-1 and
 * above, one wrong weight of a 5-bit code already at 1e-3. */
#include "tests/block_types.h"
#include "tests/tiny_model.h"

#define TOKENS 24
#define LOGITS 8 /* rows at the end that are compared */
#define BOUND  1e-4

static char path[64];

/* ---- the reference */

struct reference {
    const struct gguf *g;
    int64_t C, F, H, G, D, V;
    double eps, base;
};

static double *matrix(const struct gguf *g, const char *name, int64_t *rows, int64_t *columns)
{
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (!t)
        die("%s is missing", name);
    *columns = t->dim[t->ndim - 1];
    *rows = t->ndim > 1 ? t->dim[0] : 1;
    const uint8_t *data = gguf_tensor_data(g, t);
    double *values = malloc((size_t)(*rows * *columns) * sizeof(double));
    for (int64_t r = 0; r < *rows; r++)
        for (int64_t c = 0; c < *columns; c++)
            values[r * *columns + c] =
                element_by_definition(t->dtype, data + (uint64_t)r * (t->bytes / (uint64_t)*rows), c);
    return values;
}

/* y[t] = W x[t] */
static void product(const struct gguf *g, const char *name, const double *x, double *y, int T)
{
    int64_t rows, columns;
    double *w = matrix(g, name, &rows, &columns);
    for (int t = 0; t < T; t++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t c = 0; c < columns; c++)
                sum += w[r * columns + c] * x[t * columns + c];
            y[t * rows + r] = sum;
        }
    free(w);
}

static void layer_product(const struct gguf *g, int64_t layer, const char *part, const double *x, double *y)
{
    char name[64];
    snprintf(name, sizeof(name), "blk.%lld.%s.weight", (long long)layer, part);
    product(g, name, x, y, TOKENS);
}

static void normalise(const struct gguf *g, const char *name, double eps, const double *x, double *y, int T)
{
    int64_t rows, C;
    double *gain = matrix(g, name, &rows, &C);
    for (int t = 0; t < T; t++) {
        double square = 0;
        for (int64_t c = 0; c < C; c++)
            square += x[t * C + c] * x[t * C + c];
        for (int64_t c = 0; c < C; c++)
            y[t * C + c] = x[t * C + c] / sqrt(square / (double)C + eps) * gain[c];
    }
    free(gain);
}

/* Rotates neighbours (2i, 2i + 1) of every head by position * base^(-2i / D). */
static void rotate(double *x, int64_t heads, int64_t D, double base)
{
    for (int t = 0; t < TOKENS; t++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < D / 2; i++) {
                double angle = t * pow(base, -2.0 * (double)i / (double)D);
                double *p = x + (t * heads + h) * D + 2 * i, a = p[0], b = p[1];
                p[0] = a * cos(angle) - b * sin(angle);
                p[1] = a * sin(angle) + b * cos(angle);
            }
}

static void attend(const struct reference *m, const double *q, const double *k, const double *v, double *out)
{
    int64_t H = m->H, G = m->G, D = m->D;
    memset(out, 0, (size_t)(TOKENS * H * D) * sizeof(double));
    for (int t = 0; t < TOKENS; t++)
        for (int64_t h = 0; h < H; h++) {
            double score[TOKENS], highest = -INFINITY, total = 0;
            int64_t g = h / (H / G);
            for (int s = 0; s <= t; s++) {
                score[s] = 0;
                for (int64_t d = 0; d < D; d++)
                    score[s] += q[(t * H + h) * D + d] * k[(s * G + g) * D + d] / sqrt((double)D);
                highest = fmax(highest, score[s]);
            }
            for (int s = 0; s <= t; s++)
                total += score[s] = exp(score[s] - highest);
            for (int s = 0; s <= t; s++)
                for (int64_t d = 0; d < D; d++)
                    out[(t * H + h) * D + d] += score[s] / total * v[(s * G + g) * D + d];
        }
}

static void layer_forward(const struct reference *m, int64_t layer, double *x)
{
    int64_t C = m->C, width = m->F > 2 * C ? m->F : 2 * C;
    double *room = malloc((size_t)(6 * TOKENS * width) * sizeof(double)), *part[6];
    char name[64];
    for (int i = 0; i < 6; i++)
        part[i] = room + i * TOKENS * width;
    snprintf(name, sizeof(name), "blk.%lld.attn_norm.weight", (long long)layer);
    normalise(m->g, name, m->eps, x, part[0], TOKENS);
    layer_product(m->g, layer, "attn_q", part[0], part[1]);
    layer_product(m->g, layer, "attn_k", part[0], part[2]);
    layer_product(m->g, layer, "attn_v", part[0], part[3]);
    rotate(part[1], m->H, m->D, m->base);
    rotate(part[2], m->G, m->D, m->base);
    attend(m, part[1], part[2], part[3], part[4]);
    layer_product(m->g, layer, "attn_output", part[4], part[5]);
    for (int64_t i = 0; i < TOKENS * C; i++)
        x[i] += part[5][i];
    snprintf(name, sizeof(name), "blk.%lld.ffn_norm.weight", (long long)layer);
    normalise(m->g, name, m->eps, x, part[0], TOKENS);
    layer_product(m->g, layer, "ffn_gate", part[0], part[1]);
    layer_product(m->g, layer, "ffn_up", part[0], part[2]);
    for (int64_t i = 0; i < TOKENS * m->F; i++)
        part[1][i] = part[1][i] / (1 + exp(-part[1][i])) * part[2][i];
    layer_product(m->g, layer, "ffn_down", part[1], part[3]);
    for (int64_t i = 0; i < TOKENS * C; i++)
        x[i] += part[3][i];
    free(room);
}

/* Logits of the last LOGITS of TOKENS ids: [LOGITS, V], to be freed. */
static double *reference_logits(const struct gguf *g, const int32_t *ids)
{
    uint64_t layers = 0, heads = 0, kv_heads = 0;
    struct err err;
    struct reference m = {.g = g, .base = 10000, .eps = 1e-5};
    gguf_get_uint(g, "llama.block_count", &layers, &err);
    gguf_get_uint(g, "llama.feed_forward_length", (uint64_t *)&m.F, &err);
    gguf_get_uint(g, "llama.attention.head_count", &heads, &err);
    kv_heads = heads;
    gguf_get_uint(g, "llama.attention.head_count_kv", &kv_heads, &err);
    gguf_get_float(g, "llama.attention.layer_norm_rms_epsilon", &m.eps, &err);
    gguf_get_float(g, "llama.rope.freq_base", &m.base, &err);
    double *table = matrix(g, "token_embd.weight", &m.V, &m.C);
    m.H = (int64_t)heads;
    m.G = (int64_t)kv_heads;
    m.D = m.C / m.H;
    double *x = malloc((size_t)(TOKENS * m.C) * sizeof(double));
    for (int t = 0; t < TOKENS; t++)
        memcpy(x + t * m.C, table + ids[t] * m.C, (size_t)m.C * sizeof(double));
    for (uint64_t layer = 0; layer < layers; layer++)
        layer_forward(&m, (int64_t)layer, x);
    double *last = x + (TOKENS - LOGITS) * m.C, *logits = malloc((size_t)(LOGITS * m.V) * sizeof(double));
    normalise(g, "output_norm.weight", m.eps, last, last, LOGITS);
    product(g, gguf_tensor_find(g, "output.weight") ? "output.weight" : "token_embd.weight", last, logits,
            LOGITS);
    free(table);
    free(x);
    return logits;
}

/* ---- the engine against it */

/* Feeds the ids in chunks and compares the logits of the last rows, `chunk` >= LOGITS. */
static void compare(enum dtype type, int threads, int32_t chunk)
{
    struct tiny_engine e;
    int32_t ids[TOKENS], rows[LOGITS];
    unsigned long long random = 9;
    tiny_engine_open(&e, path, threads, 16, NULL);
    int64_t V = e.model->params.vocab;
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (int32_t)(test_random(&random) % (unsigned long long)V);
    for (int32_t at = 0; at < TOKENS; at += chunk) {
        tiny_engine_add(&e, 0, ids + at, at, chunk, NULL);
        tiny_engine_run(&e, NULL);
    }
    for (int32_t i = 0; i < LOGITS; i++)
        rows[i] = chunk - LOGITS + i;
    struct tensor row_tensor = tensor_1d(e.device, DTYPE_I32, rows, LOGITS);
    struct tensor got = stage_logits(executor_stage(e.executor), chunk, &row_tensor);
    double *expected = reference_logits(e.gguf, ids), worst = 0, largest = 0;
    for (int64_t i = 0; i < LOGITS * V; i++) {
        double off = fabs((double)((float *)got.data)[i] - expected[i]);
        worst = off <= worst ? worst : off; /* NaN stays */
        largest = fmax(largest, fabs(expected[i]));
    }
    if (!(worst <= BOUND) || largest > 32)
        printf("# %s: off by %g, logits up to %g\n", dtype_info(type)->name, worst, largest);
    CHECK(worst <= BOUND);
    CHECK(largest > 0.5 && largest <= 32);
    free(expected);
    tiny_engine_close(&e);
}

/* ---- models */

static const enum dtype SMALL_BLOCKS[] = {DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0,
                                          DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1};
static const enum dtype K_TYPES[] = {DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};

static bool converts(const struct gguf_tensor *t, enum dtype type)
{
    return t->ndim == 2 && t->dim[1] % dtype_info(type)->block_elements == 0;
}

static void write_converted(struct gguf_writer *w, const struct gguf *g, const struct gguf_tensor *t,
                            enum dtype type)
{
    struct err err;
    uint64_t n = t->bytes / sizeof(float), bytes = 0;
    dtype_row_bytes(type, n, &bytes);
    void *out = malloc(bytes);
    dtype_from_f32(type, gguf_tensor_data(g, t), out, n);
    if (gguf_writer_data(w, out, bytes, &err))
        die("%s", err.message);
    free(out);
}

/* The F32 model again, every matrix in `type` whose rows it fits. Returns how many are. */
static int requantise(const char *from, enum dtype type)
{
    struct gguf *g;
    struct gguf_writer *w;
    struct err err;
    int converted = 0;
    if (gguf_open(&g, from, &err) || gguf_writer_open(&w, path, &err))
        die("%s", err.message);
    for (uint64_t i = 0; i < gguf_key_count(g); i++)
        gguf_writer_copy(w, g, i);
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[65];
        snprintf(name, sizeof(name), "%.*s", (int)t->name.size, t->name.data);
        gguf_writer_tensor(w, name, converts(t, type) ? type : t->dtype, t->ndim, t->dim);
        converted += converts(t, type);
    }
    if (gguf_writer_begin(w, &err))
        die("%s", err.message);
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        write_converted(w, g, t, converts(t, type) ? type : t->dtype);
    }
    if (gguf_writer_close(&w, &err))
        die("%s", err.message);
    gguf_close(&g);
    return converted;
}

static void test_stories_in_every_type_its_shapes_allow(void)
{
    const char *stories = test_shared("data/lm/stories260K/stories260K.gguf");
    if (!stories)
        SKIP("no shared data");
    for (size_t i = 0; i < ARRAY_LEN(SMALL_BLOCKS); i++) {
        /* 7 matrices a layer; rows of ffn_down have 172 elements, which are no whole blocks of 32 */
        CHECK_INT(requantise(stories, SMALL_BLOCKS[i]),
                  5 * 7 + 2 - (dtype_info(SMALL_BLOCKS[i])->block_elements > 1 ? 5 : 0));
        compare(SMALL_BLOCKS[i], 2, i % 2 ? 12 : 24);
    }
    CHECK_INT(requantise(stories, DTYPE_F32), 5 * 7 + 2);
    compare(DTYPE_F32, 1, 8);
}

static void test_wide_model_in_every_k_type(void)
{
    for (size_t i = 0; i < ARRAY_LEN(K_TYPES); i++) {
        struct tiny_shape shape = {.layers = 2,
                                   .embed = 256,
                                   .ffn = 512,
                                   .heads = 8,
                                   .kv_heads = 2,
                                   .vocab = 300,
                                   .context = 64,
                                   .dtype = K_TYPES[i],
                                   .tied = i % 2};
        tiny_model_write(path, &shape);
        compare(K_TYPES[i], 1 + (int)i % 3, i % 2 ? 8 : 24);
    }
}

int main(void)
{
    snprintf(path, sizeof(path), "/tmp/lepton-types-%ld.gguf", (long)getpid());
    TEST(test_stories_in_every_type_its_shapes_allow,
         "a trained model in every type its shapes allow has the logits of a forward pass in double");
    TEST(test_wide_model_in_every_k_type,
         "a model in every K type has the logits of a forward pass in double, in chunks and on threads");
    unlink(path);
    return test_result();
}
