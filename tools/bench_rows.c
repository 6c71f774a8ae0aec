/* The kernels of `lepton bench kernels` that are no products with weights, in the sizes of TinyLlama-1.1B.
 * Each runs on the device and, for its error, on the portable reference with the same inputs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tools/bench_kernels.h"

enum { C = 2048, F = 5632, H = 32, G = 4, D = 64, V = 32000, PAGE = 16, SLOTS = 1 };

/* One kernel's arguments on one device. Every buffer is big enough for every kernel. */
struct operands {
    struct device *device;
    struct stream *stream;
    int64_t T, context;       /* rows; positions that attention sees, the rows among them */
    float *x, *y, *out;       /* [T, V] */
    float *gain;              /* [F] */
    float *k_pages, *v_pages; /* [pages, PAGE, G, D] */
    void *k_half, *v_half;    /* the same in F16 */
    int32_t *ids;             /* [T] below V and below T, whichever a kernel wants */
    struct seq_view view;
    struct sample_row *samples; /* [T] */
    struct tensor history, frequency;
    struct weight table; /* [V, C] Q8_0 */
    void *table_rows;
};

struct other_kernel {
    const char *name, *type;
    void (*run)(struct operands *o);
    int64_t width;     /* floats of a row of `out`; 0 = ids of 4 bytes, compared whole */
    double bytes, ops; /* of one row */
    bool in_place;     /* it changes x: errors are of a first run on fresh inputs */
    bool attends;      /* bytes and ops are for each position that a row sees */
};

static struct tensor rows2(const struct operands *o, float *memory, int64_t width)
{
    return tensor_2d(o->device, DTYPE_F32, memory, o->T, width);
}

static struct tensor rows3(const struct operands *o, float *memory, int64_t heads)
{
    return tensor_3d(o->device, DTYPE_F32, memory, o->T, heads, D);
}

static struct tensor pages4(const struct operands *o, enum dtype type, void *memory)
{
    return tensor_4d(o->device, type, memory, (o->context + PAGE - 1) / PAGE, PAGE, G, D);
}

static void run_rmsnorm(struct operands *o)
{
    struct tensor out = rows2(o, o->out, C), x = rows2(o, o->x, C);
    struct tensor gain = tensor_1d(o->device, DTYPE_F32, o->gain, C);
    kernel_rmsnorm(o->stream, &out, &x, &gain, 1e-5f);
}

static void run_layernorm(struct operands *o)
{
    struct tensor out = rows2(o, o->out, C), x = rows2(o, o->x, C);
    struct tensor gain = tensor_1d(o->device, DTYPE_F32, o->gain, C);
    kernel_layernorm(o->stream, &out, &x, &gain, &gain, 1e-5f);
}

static void run_add(struct operands *o)
{
    struct tensor out = rows2(o, o->out, C), x = rows2(o, o->x, C);
    kernel_add(o->stream, &out, &x);
}

static void run_activation(struct operands *o, enum activation f)
{
    struct tensor out = rows2(o, o->out, F), gate = rows2(o, o->x, F), up = rows2(o, o->y, F);
    kernel_activate(o->stream, &out, &gate, &up, f);
}

static void run_silu(struct operands *o)
{
    run_activation(o, ACTIVATION_SILU);
}

static void run_gelu(struct operands *o)
{
    run_activation(o, ACTIVATION_GELU_TANH);
}

static void run_rope(struct operands *o)
{
    struct tensor x = rows3(o, o->out, H);
    kernel_rope(o->stream, &x, &o->view.positions, &o->frequency, ROPE_INTERLEAVED, 1);
}

static void run_gather(struct operands *o)
{
    struct tensor out = rows2(o, o->out, C), x = rows2(o, o->x, C);
    struct tensor rows = tensor_1d(o->device, DTYPE_I32, o->ids, o->T);
    kernel_gather_rows(o->stream, &out, &x, &rows);
}

static void run_embed(struct operands *o)
{
    struct tensor out = rows2(o, o->out, C), ids = tensor_1d(o->device, DTYPE_I32, o->ids, o->T);
    kernel_embed(o->stream, &out, &o->table, &ids);
}

static void run_kv_store(struct operands *o)
{
    struct tensor k = rows3(o, o->x, G), v = rows3(o, o->y, G);
    struct tensor kp = pages4(o, DTYPE_F32, o->k_pages), vp = pages4(o, DTYPE_F32, o->v_pages);
    kernel_kv_store(o->stream, &kp, &vp, &k, &v, &o->view);
}

static void run_attention(struct operands *o, struct tensor k, struct tensor v)
{
    struct tensor out = rows3(o, o->out, H), q = rows3(o, o->x, H);
    struct attention_options how = {.scale = 0.125f};
    kernel_attention(o->stream, &out, &q, &k, &v, &o->view, &how);
}

static void run_attention_f32(struct operands *o)
{
    run_attention(o, pages4(o, DTYPE_F32, o->k_pages), pages4(o, DTYPE_F32, o->v_pages));
}

static void run_attention_f16(struct operands *o)
{
    run_attention(o, pages4(o, DTYPE_F16, o->k_half), pages4(o, DTYPE_F16, o->v_half));
}

static void run_sample(struct operands *o, float temperature, float top_p)
{
    struct tensor logits = rows2(o, o->y, V), ids = tensor_1d(o->device, DTYPE_I32, o->out, o->T);
    for (int64_t t = 0; t < o->T; t++)
        o->samples[t] = (struct sample_row){.seed = 7,
                                            .index = (uint32_t)t,
                                            .temperature = temperature,
                                            .top_p = top_p,
                                            .repetition_penalty = 1,
                                            .banned_id = -1};
    memcpy(o->y, o->x,
           (size_t)(o->T * V) * sizeof(float)); /* sampling overwrites them: the copy is timed too */
    kernel_sample(o->stream, &ids, &logits, o->samples, &o->history, NULL);
}

static void run_greedy(struct operands *o)
{
    run_sample(o, 0, 1);
}

static void run_nucleus(struct operands *o)
{
    run_sample(o, 1, 0.9f);
}

static void run_loss(struct operands *o)
{
    struct tensor out = tensor_1d(o->device, DTYPE_F32, o->out, o->T), logits = rows2(o, o->x, V);
    struct tensor ids = tensor_1d(o->device, DTYPE_I32, o->ids, o->T);
    kernel_token_loss(o->stream, &out, &logits, &ids);
}

/* Bytes read and written, and operations, of one row. */
static const struct other_kernel kernels[] = {
    {"rmsnorm", "f32", run_rmsnorm, C, 8.0 * C, 4.0 * C, false, false},
    {"layernorm", "f32", run_layernorm, C, 8.0 * C, 7.0 * C, false, false},
    {"add", "f32", run_add, C, 12.0 * C, C, true, false},
    {"silu", "f32", run_silu, F, 12.0 * F, 6.0 * F, false, false},
    {"gelu", "f32", run_gelu, F, 12.0 * F, 10.0 * F, false, false},
    {"rope", "f32", run_rope, H *D, 8.0 * H *D, 3.0 * H *D, true, false},
    {"gather", "f32", run_gather, C, 8.0 * C, 0, false, false},
    {"embed", "q8_0", run_embed, C, 5.0 * C, C, false, false},
    {"kv_store", "f32", run_kv_store, 0, 16.0 * G *D, 0, true, false},
    {"attention", "f32", run_attention_f32, H *D, 8.0 * G *D, 4.0 * H *D, false, true},
    {"attention", "f16", run_attention_f16, H *D, 4.0 * G *D, 4.0 * H *D, false, true},
    {"greedy", "f32", run_greedy, 0, 12.0 * V, V, false, false},
    {"nucleus", "f32", run_nucleus, 0, 12.0 * V, 4.0 * V, false, false},
    {"loss", "f32", run_loss, 1, 4.0 * V, 4.0 * V, false, false},
};

static void fill(float *x, int64_t count, uint64_t state)
{
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
}

static void operands_fill(struct operands *o)
{
    int64_t kv = (o->context + PAGE - 1) / PAGE * PAGE * G * D;
    fill(o->x, o->T * V, 1);
    fill(o->y, o->T * V, 2);
    fill(o->out, o->T * V, 3);
    fill(o->k_pages, kv, 4);
    fill(o->v_pages, kv, 5);
    dtype_from_f32(DTYPE_F16, o->k_pages, o->k_half, (uint64_t)kv);
    dtype_from_f32(DTYPE_F16, o->v_pages, o->v_half, (uint64_t)kv);
}

/* The last T positions of one sequence; pages in order. */
static int operands_view(struct operands *o, struct err *err)
{
    int64_t pages = (o->context + PAGE - 1) / PAGE;
    int32_t *n = device_alloc(o->device, (size_t)(2 * o->T + pages + 3) * sizeof(int32_t), err);
    if (!n)
        return -1;
    int32_t *position = n + 3, *page = position + o->T;
    o->ids = page + pages;
    n[1] = (int32_t)o->T; /* n[0], n[1]: row_begin; n[2]: the slot */
    for (int64_t t = 0; t < o->T; t++) {
        position[t] = (int32_t)(o->context - o->T + t);
        o->ids[t] = (int32_t)((t * 7) % o->T);
    }
    for (int64_t i = 0; i < pages; i++)
        page[i] = (int32_t)i;
    o->view = (struct seq_view){.row_begin = tensor_1d(o->device, DTYPE_I32, n, 2),
                                .positions = tensor_1d(o->device, DTYPE_I32, position, o->T),
                                .slots = tensor_1d(o->device, DTYPE_I32, n + 2, 1),
                                .page_table = tensor_2d(o->device, DTYPE_I32, page, SLOTS, pages),
                                .page_tokens = PAGE};
    return 0;
}

/* Rows of zeros but for the first ones: what embedding reads. */
static int operands_table(struct operands *o, struct err *err)
{
    uint64_t row_bytes = 0;
    int code = dtype_row_bytes(DTYPE_Q8_0, C, &row_bytes);
    ASSERT(code == 0);
    if (!(o->table_rows = device_alloc(o->device, row_bytes * V, err)))
        return -1;
    for (int64_t t = 0; t < o->T; t++)
        dtype_from_f32(DTYPE_Q8_0, o->x + t * C, (char *)o->table_rows + (uint64_t)t * row_bytes, C);
    struct tensor host = tensor_2d(NULL, DTYPE_Q8_0, o->table_rows, V, C);
    return weight_pack(&o->table, o->device, &host, err);
}

static void *take(struct operands *o, int64_t floats, struct err *err, int *code)
{
    void *memory = *code ? NULL : device_alloc(o->device, (size_t)floats * sizeof(float), err);
    if (!memory)
        *code = -1;
    return memory;
}

static void operands_release(struct operands *o)
{
    void *all[] = {o->x,
                   o->y,
                   o->out,
                   o->gain,
                   o->k_pages,
                   o->v_pages,
                   o->k_half,
                   o->v_half,
                   o->samples,
                   o->view.row_begin.data,
                   o->history.data,
                   o->frequency.data,
                   o->table_rows};
    weight_release(&o->table);
    for (size_t i = 0; i < ARRAY_LEN(all) && o->device; i++)
        device_free(o->device, all[i]);
    stream_close(&o->stream);
}

static int operands_init(struct operands *o, struct device *device, int64_t T, int64_t context,
                         struct err *err)
{
    int64_t kv = (context + PAGE - 1) / PAGE * PAGE * G * D;
    *o = (struct operands){.device = device, .T = T, .context = context};
    int code = stream_open(&o->stream, device, err);
    o->x = take(o, T * V, err, &code);
    o->y = take(o, T * V, err, &code);
    o->out = take(o, T * V, err, &code);
    o->gain = take(o, F, err, &code);
    o->k_pages = take(o, kv, err, &code);
    o->v_pages = take(o, kv, err, &code);
    o->k_half = take(o, kv / 2, err, &code);
    o->v_half = take(o, kv / 2, err, &code);
    o->samples = take(o, T * (int64_t)(sizeof(struct sample_row) / sizeof(float) + 1), err, &code);
    int32_t *history = take(o, SLOTS * context, err, &code);
    float *frequency = take(o, D / 2, err, &code);
    if (code)
        return -1;
    o->history = tensor_2d(device, DTYPE_I32, history, SLOTS, context);
    o->frequency = tensor_1d(device, DTYPE_F32, frequency, D / 2);
    for (int i = 0; i < D / 2; i++)
        frequency[i] = powf(10000.0f, -2.0f * (float)i / D);
    fill(o->gain, F, 6);
    operands_fill(o);
    return operands_view(o, err) || operands_table(o, err) ? -1 : 0;
}

/* Relative, over the whole output; of ids, the share of rows that differ; of stored pages, any difference. */
static double error_against(const struct other_kernel *k, const struct operands *a, const struct operands *b)
{
    double wrong = 0, all = 0;
    if (k->run == run_kv_store) {
        size_t bytes = (size_t)((a->context + PAGE - 1) / PAGE * PAGE * G * D) * sizeof(float);
        return memcmp(a->k_pages, b->k_pages, bytes) || memcmp(a->v_pages, b->v_pages, bytes) ? 1 : 0;
    }
    for (int64_t t = 0; t < a->T && k->width == 0; t++)
        wrong += memcmp(a->out + t, b->out + t, sizeof(float)) != 0;
    if (k->width == 0)
        return wrong / (double)a->T;
    for (int64_t i = 0; i < a->T * k->width; i++) {
        double d = (double)a->out[i] - (double)b->out[i];
        wrong += d * d;
        all += (double)b->out[i] * (double)b->out[i];
    }
    return sqrt(wrong / all);
}

static void measure(struct bench *b, const struct other_kernel *k, struct operands *o,
                    struct operands *reference)
{
    double *seconds = xcalloc((size_t)b->s->repeats, sizeof(*seconds));
    int64_t runs = o->T == 1 ? 100 : 1; /* one row takes microseconds: a hundred of them in a run */
    operands_fill(o);
    operands_fill(reference);
    k->run(o);
    k->run(reference);
    double error = error_against(k, o, reference);
    for (int64_t r = -1; r < b->s->repeats; r++) {
        double begun = bench_now_s();
        for (int64_t i = 0; i < runs; i++)
            k->run(o);
        if (r >= 0)
            seconds[r] = (bench_now_s() - begun) / (double)runs;
    }
    double rows = (double)o->T, seen = k->attends ? (double)o->context - (rows - 1) / 2 : 1;
    /* Attention shares the keys and values among its rows. */
    double bytes = k->attends ? k->bytes * (double)o->context : k->bytes * rows;
    bool compute = k->attends && o->T > 1;
    bool memory = bytes > 4e6; /* less than that stays in a cache, whose speed is no limit that we measure */
    bench_kernel_report(b, k->name, k->type, o->T, bench_summarise(seconds, b->s->repeats), bytes,
                        k->ops * rows * seen,
                        compute  ? "fp32"
                        : memory ? "read"
                                 : "cache",
                        compute  ? b->limits.cpu.fp32_flop_per_s
                        : memory ? b->limits.read_bytes_per_s
                                 : 0,
                        error);
    free(seconds);
}

/* The kernels that were asked for, with T rows; of a whole chunk of a prompt only what attends is measured.
 */
static int measure_rows(struct bench *b, struct device *reference, int64_t T, bool chunk, struct err *err)
{
    struct operands fast = {0}, plain = {0};
    int code = operands_init(&fast, b->device, T, b->s->context, err) ||
                       operands_init(&plain, reference, T, b->s->context, err)
                   ? -1
                   : 0;
    for (size_t i = 0; i < ARRAY_LEN(kernels) && code == 0; i++)
        if (b->s->only ? strcmp(b->s->only, kernels[i].name) == 0 : !chunk || kernels[i].attends)
            measure(b, &kernels[i], &fast, &plain);
    operands_release(&fast);
    operands_release(&plain);
    return code;
}

static bool is_kernel(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(kernels); i++)
        if (strcmp(kernels[i].name, name) == 0)
            return true;
    return false;
}

int bench_other_kernels(struct bench *b, struct err *err)
{
    enum { MANY = 128, CHUNK = 512 }; /* rows; a chunk is what a prompt is processed in */
    const int64_t rows[] = {1, MANY, CHUNK};
    struct device *reference = NULL;
    struct device_options how = {.threads = device_threads(b->device), .kernels = "reference"};
    if (b->s->only && !is_kernel(b->s->only))
        return err_set(err, "--only: expected a kernel without weights, found \"%s\"", b->s->only);
    int code = device_open(&reference, "cpu", &how, err);
    for (size_t r = 0; r < ARRAY_LEN(rows) && code == 0; r++)
        if (rows[r] < CHUNK || b->s->context >= CHUNK)
            code = measure_rows(b, reference, rows[r] < b->s->context ? rows[r] : b->s->context,
                                rows[r] == CHUNK, err);
    device_close(&reference);
    return code;
}
