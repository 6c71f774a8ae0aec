/* test_cuda: the GPU beside the CPU. The plug-in is LEPTON_CUDA_PLUGIN, or lepton_cuda.so of this build.
 * Where it finds no GPU, it must say so, and the comparisons are skipped;
 * tests/integration/test_cuda_emulated.sh runs them on the emulated GPU of tests/fake_cuda. */
#include "kernels/kernels.h"
#include "tests/test.h"

#include <limits.h>

#define GUARD_BYTES 64
#define GUARD       0xA5

static char plugin[PATH_MAX];
static struct err gpu_missing; /* why there is no GPU */
static int gpus;               /* usable ones; -1 when the probe failed */

static struct device_options gpu_options(void)
{
    return (struct device_options){.plugin_path = plugin};
}

static void find_plugin(void)
{
    const char *wanted = getenv("LEPTON_CUDA_PLUGIN");
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    for (int up = 0; up < 4 && strrchr(self, '/'); up++) /* build/V/tests/unit/kernels/test_cuda */
        *strrchr(self, '/') = '\0';
    if (wanted)
        snprintf(plugin, sizeof(plugin), "%s", wanted);
    else
        snprintf(plugin, sizeof(plugin), "%.*s/lepton_cuda.so", PATH_MAX - 20, self);
    if (access(plugin, R_OK) != 0) {
        plugin[0] = '\0';
        err_set(&gpu_missing, "no GPU: no plug-in was built");
        gpus = -1;
        return;
    }
    struct device_options options = gpu_options();
    gpus = device_gpu_count(&options, &gpu_missing);
    if (gpus == 0)
        err_set(&gpu_missing, "no GPU: the probe found none");
    else if (gpus < 0)
        err_prefix(&gpu_missing, "no GPU");
}

#define NEED_GPU()                     \
    do {                               \
        if (gpus <= 0)                 \
            SKIP(gpu_missing.message); \
    } while (0)

/* ---- a bed: both devices ------------------------------------------------------------------------------- */

struct bed {
    struct device *cpu, *gpu;
    struct stream *cpu_stream, *gpu_stream;
    unsigned long long random;
};

/* The same tensor on both devices. The CPU's copy is written directly; the GPU's has guard bytes around it.
 */
struct twin {
    struct tensor cpu, gpu;
    uint8_t *gpu_memory; /* guard, data, guard */
};

static void bed_open(struct bed *b)
{
    struct err err;
    struct device_options options = gpu_options();
    *b = (struct bed){.random = 7};
    if (device_open(&b->cpu, "cpu", &(struct device_options){.threads = 1}, &err) < 0 ||
        device_open(&b->gpu, "cuda:0", &options, &err) < 0 || stream_open(&b->cpu_stream, b->cpu, &err) < 0 ||
        stream_open(&b->gpu_stream, b->gpu, &err) < 0)
        die("%s", err.message);
}

static void bed_close(struct bed *b)
{
    stream_close(&b->gpu_stream);
    stream_close(&b->cpu_stream);
    device_close(&b->gpu);
    device_close(&b->cpu);
}

static struct twin twin_new(struct bed *b, enum dtype type, int ndim, const int64_t *dim)
{
    struct twin t = {.cpu = {.device = b->cpu, .dtype = type, .ndim = ndim}};
    struct err err;
    memcpy(t.cpu.dim, dim, (size_t)ndim * sizeof(*dim));
    t.gpu = t.cpu;
    t.gpu.device = b->gpu;
    size_t bytes = tensor_bytes(&t.cpu);
    t.cpu.data = device_alloc(b->cpu, bytes, &err);
    t.gpu_memory = device_alloc(b->gpu, bytes + 2 * GUARD_BYTES, &err);
    if (!t.cpu.data || !t.gpu_memory)
        die("%s", err.message);
    uint8_t *host = xmalloc(bytes + 2 * GUARD_BYTES);
    memset(host, GUARD, bytes + 2 * GUARD_BYTES);
    memset(host + GUARD_BYTES, 0xFF, bytes); /* NaN: what is left unwritten never compares */
    memset(t.cpu.data, 0xFF, bytes);
    stream_upload(b->gpu_stream, t.gpu_memory, host, bytes + 2 * GUARD_BYTES);
    free(host);
    t.gpu.data = t.gpu_memory + GUARD_BYTES;
    return t;
}

#define TWIN(b, type, ...) twin_new(b, type, ARRAY_LEN(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})

static void twin_free(struct twin *t)
{
    device_free(t->cpu.device, t->cpu.data);
    device_free(t->gpu.device, t->gpu_memory);
}

static void twin_upload(struct bed *b, struct twin *t)
{
    stream_upload(b->gpu_stream, t->gpu.data, t->cpu.data, tensor_bytes(&t->cpu));
}

static void twin_random(struct bed *b, struct twin *t)
{
    int64_t n = tensor_elements(&t->cpu);
    float *values = xmalloc((size_t)(n + 1) * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        values[i] = test_uniform(&b->random);
    dtype_from_f32(t->cpu.dtype, values, t->cpu.data, (uint64_t)n);
    free(values);
    twin_upload(b, t);
}

static void twin_ints(struct bed *b, struct twin *t, const int32_t *values)
{
    memcpy(t->cpu.data, values, tensor_bytes(&t->cpu));
    twin_upload(b, t);
}

/* The GPU's bytes; checks its guards. The caller frees them. */
static void *twin_download(struct bed *b, const struct twin *t)
{
    struct err err;
    size_t bytes = tensor_bytes(&t->cpu);
    uint8_t *host = xcalloc(1, bytes + 2 * GUARD_BYTES);
    int broken = 0;
    stream_download(b->gpu_stream, host, t->gpu_memory, bytes + 2 * GUARD_BYTES);
    if (stream_sync(b->gpu_stream, &err) < 0) {
        printf("# %s\n", err.message);
        CHECK(!"the stream ends without a fault");
    }
    for (size_t i = 0; i < GUARD_BYTES; i++)
        broken += (host[i] != GUARD) + (host[GUARD_BYTES + bytes + i] != GUARD);
    CHECK_INT(broken, 0);
    memmove(host, host + GUARD_BYTES, bytes);
    return host;
}

/* Every element of F32 within `tolerance` of the CPU's, relative to 1 + |value|; NaN never passes. */
static void check_near_cpu(struct bed *b, const struct twin *t, double tolerance)
{
    const float *expected = t->cpu.data;
    float *actual = twin_download(b, t);
    int64_t n = tensor_elements(&t->cpu), wrong = 0, first = -1;
    for (int64_t i = 0; i < n; i++) {
        double bound = tolerance * (1 + fabs((double)expected[i]));
        if (!(fabs((double)actual[i] - (double)expected[i]) <= bound)) {
            first = wrong++ ? first : i;
        }
    }
    if (wrong)
        printf("# element %lld is %.9g, expected %.9g\n", (long long)first, (double)actual[first],
               (double)expected[first]);
    CHECK_INT(wrong, 0);
    free(actual);
}

/* ---- the probe -------------------------------------------------------------------------------------------
 */

static void test_probe_answers(void)
{
    if (!plugin[0])
        SKIP(gpu_missing.message);
    if (gpus >= 0)
        return;
    CHECK_CONTAINS(gpu_missing.message, "cudaGetDeviceCount: ");
    CHECK_CONTAINS(gpu_missing.message, "(cudaError");
}

static void test_open_tells_why_there_is_no_gpu(void)
{
    struct device *device = NULL;
    struct err err = {0};
    struct device_options options = gpu_options();
    if (!plugin[0])
        SKIP(gpu_missing.message);
    char name[32];
    snprintf(name, sizeof(name), "cuda:%d", gpus > 0 ? gpus : 0);
    CHECK_INT(device_open(&device, name, &options, &err), -1);
    CHECK(device == NULL);
    CHECK_CONTAINS(err.message, name);
    if (gpus < 0)
        CHECK_CONTAINS(err.message, gpu_missing.message + strlen("no GPU: "));
}

/* ---- copies and faults -----------------------------------------------------------------------------------
 */

static void test_copies_carry_every_byte(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    /* more than all staging slots hold, and no multiple of one */
    struct twin from = TWIN(&b, DTYPE_F32, 5000003), to = TWIN(&b, DTYPE_F32, 5000003);
    twin_random(&b, &from);
    stream_copy(b.gpu_stream, to.gpu.data, from.gpu.data, tensor_bytes(&from.cpu));
    void *back = twin_download(&b, &to);
    CHECK(memcmp(back, from.cpu.data, tensor_bytes(&from.cpu)) == 0);
    free(back);
    twin_free(&from);
    twin_free(&to);
    bed_close(&b);
}

static void test_memory_is_zeroed_and_its_end_is_told(void)
{
    NEED_GPU();
    struct bed b;
    struct err err = {0};
    uint8_t bytes[1000];
    bed_open(&b);
    memset(bytes, 1, sizeof(bytes));
    void *memory = device_alloc(b.gpu, sizeof(bytes), &err);
    stream_download(b.gpu_stream, bytes, memory, sizeof(bytes));
    CHECK_INT(stream_sync(b.gpu_stream, &err), 0);
    for (size_t i = 0; i < sizeof(bytes); i++)
        CHECK_INT(bytes[i], 0);
    device_free(b.gpu, memory);
    CHECK(device_alloc(b.gpu, (size_t)1 << 50, &err) == NULL);
    CHECK_CONTAINS(err.message, "cuda:0: no room for");
    bed_close(&b);
}

/* ---- products --------------------------------------------------------------------------------------------
 */

static const enum dtype WEIGHT_TYPES[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};

struct weights {
    struct twin host; /* [N, K], only its CPU side is used */
    struct weight cpu, gpu;
};

static struct weights weights_new(struct bed *b, enum dtype type, int64_t N, int64_t K)
{
    struct weights w = {.host = TWIN(b, type, N, K)};
    struct err err;
    twin_random(b, &w.host);
    if (weight_pack(&w.cpu, b->cpu, &w.host.cpu, &err) < 0 ||
        weight_pack(&w.gpu, b->gpu, &w.host.cpu, &err) < 0)
        die("%s", err.message);
    return w;
}

static void weights_free(struct weights *w)
{
    weight_release(&w->cpu);
    weight_release(&w->gpu);
    twin_free(&w->host);
}

static void check_matmul(struct bed *b, enum dtype type, int64_t T, int64_t N, int64_t K, bool with_bias)
{
    struct weights w = weights_new(b, type, N, K);
    struct twin x = TWIN(b, DTYPE_F32, T, K), bias = TWIN(b, DTYPE_F32, N), out = TWIN(b, DTYPE_F32, T, N);
    twin_random(b, &x);
    twin_random(b, &bias);
    kernel_matmul(b->cpu_stream, &out.cpu, &x.cpu, &w.cpu, with_bias ? &bias.cpu : NULL);
    kernel_matmul(b->gpu_stream, &out.gpu, &x.gpu, &w.gpu, with_bias ? &bias.gpu : NULL);
    check_near_cpu(b, &out, sqrt((double)K) * 1e-6);
    twin_free(&x);
    twin_free(&bias);
    twin_free(&out);
    weights_free(&w);
}

static void test_matmul_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        enum dtype type = WEIGHT_TYPES[i];
        bool blocks = type == DTYPE_Q8_0;
        for (int64_t T = 1; T <= 9; T++)
            check_matmul(&b, type, T, 37, blocks ? 96 : 91, T % 2);
        check_matmul(&b, type, 1, 1, blocks ? 32 : 1, false);
        check_matmul(&b, type, 2, 3, blocks ? 32 : 3, true);
        check_matmul(&b, type, 5, 19, blocks ? 1056 : 1030, true);
        check_matmul(&b, type, 33, 65, blocks ? 288 : 270, true);
        check_matmul(&b, type, 150, 300, blocks ? 288 : 277, false);
    }
    bed_close(&b);
}

/* Row t of a step of T rows has the bits that it has alone, whichever kernels run. */
static void test_matmul_of_a_row_does_not_depend_on_the_batch(void)
{
    static const int64_t STEPS[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                    12, 13, 14, 15, 16, 17, 31, 32, 33, 64, 130};
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        const int64_t T = 130, N = 133, K = WEIGHT_TYPES[i] == DTYPE_Q8_0 ? 544 : 523;
        struct weights w = weights_new(&b, WEIGHT_TYPES[i], N, K);
        struct twin x = TWIN(&b, DTYPE_F32, T, K), out = TWIN(&b, DTYPE_F32, T, N);
        float *alone = NULL;
        twin_random(&b, &x);
        for (size_t n = 0; n < ARRAY_LEN(STEPS); n++) {
            int64_t rows = STEPS[n], last = 0;
            for (int64_t t = 0; t < T; t = last) {
                last = t + rows < T ? t + rows : T;
                if (n > 0 && t >= 20 && rows < 20)
                    break; /* enough rows */
                struct tensor xs = tensor_rows(&x.gpu, t, last - t);
                struct tensor outs = tensor_rows(&out.gpu, t, last - t);
                kernel_matmul(b.gpu_stream, &outs, &xs, &w.gpu, NULL);
            }
            float *together = twin_download(&b, &out);
            if (!alone) {
                alone = together;
                continue;
            }
            CHECK(memcmp(alone, together, tensor_bytes(&out.cpu)) == 0);
            free(together);
        }
        free(alone);
        twin_free(&x);
        twin_free(&out);
        weights_free(&w);
    }
    bed_close(&b);
}

static void test_matmul_transposed_agrees_with_the_cpu(void)
{
    static const int64_t STEPS[] = {1, 3, 32, 130};
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        for (size_t n = 0; n < ARRAY_LEN(STEPS); n++) {
            const int64_t T = STEPS[n], N = 277, K = WEIGHT_TYPES[i] == DTYPE_Q8_0 ? 288 : 261;
            struct weights w = weights_new(&b, WEIGHT_TYPES[i], N, K);
            struct twin dy = TWIN(&b, DTYPE_F32, T, N), dx = TWIN(&b, DTYPE_F32, T, K);
            twin_random(&b, &dy);
            kernel_matmul_transposed(b.cpu_stream, &dx.cpu, &dy.cpu, &w.cpu);
            kernel_matmul_transposed(b.gpu_stream, &dx.gpu, &dy.gpu, &w.gpu);
            check_near_cpu(&b, &dx, sqrt((double)N) * 1e-6);
            twin_free(&dy);
            twin_free(&dx);
            weights_free(&w);
        }
    }
    bed_close(&b);
}

static void test_nan_in_an_input_reaches_the_output(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    struct weights w = weights_new(&b, DTYPE_F16, 5, 40);
    struct twin x = TWIN(&b, DTYPE_F32, 2, 40), out = TWIN(&b, DTYPE_F32, 2, 5);
    twin_random(&b, &x);
    ((float *)x.cpu.data)[39] = NAN;
    twin_upload(&b, &x);
    kernel_matmul(b.gpu_stream, &out.gpu, &x.gpu, &w.gpu, NULL);
    float *y = twin_download(&b, &out);
    for (int n = 0; n < 5; n++)
        CHECK(isnan(y[n]) && !isnan(y[5 + n]));
    free(y);
    twin_free(&x);
    twin_free(&out);
    weights_free(&w);
    bed_close(&b);
}

/* ---- rows ------------------------------------------------------------------------------------------------
 */

static void test_types_without_a_product_are_refused_by_name(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (int type = 0; type < DTYPE_COUNT; type++) {
        bool known = type == DTYPE_I32; /* no weight */
        for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++)
            known = known || type == (int)WEIGHT_TYPES[i];
        if (known)
            continue;
        uint8_t bytes[256] = {0};
        char expected[64];
        struct err err = {0};
        struct weight w;
        struct tensor host =
            tensor_2d(b.cpu, (enum dtype)type, bytes, 1, dtype_info((enum dtype)type)->block_elements);
        snprintf(expected, sizeof(expected), "no matmul for weights of type %s",
                 dtype_info((enum dtype)type)->name);
        CHECK_INT(weight_pack(&w, b.gpu, &host, &err), -1);
        CHECK_CONTAINS(err.message, expected);
    }
    bed_close(&b);
}

static void test_rows_agree_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    const int64_t T = 5, C = 517;
    struct twin x = TWIN(&b, DTYPE_F32, T, C), y = TWIN(&b, DTYPE_F32, T, C), gain = TWIN(&b, DTYPE_F32, C);
    struct twin out = TWIN(&b, DTYPE_F32, T, C), rows = TWIN(&b, DTYPE_I32, 3);
    struct twin picked = TWIN(&b, DTYPE_F32, 3, C), sum = TWIN(&b, DTYPE_F32, C);
    twin_random(&b, &x);
    twin_random(&b, &y);
    twin_random(&b, &gain);
    twin_ints(&b, &rows, (int32_t[]){4, 0, 4});
    kernel_rmsnorm(b.cpu_stream, &out.cpu, &x.cpu, &gain.cpu, 1e-5f);
    kernel_rmsnorm(b.gpu_stream, &out.gpu, &x.gpu, &gain.gpu, 1e-5f);
    check_near_cpu(&b, &out, 1e-6);
    kernel_activate(b.cpu_stream, &out.cpu, &x.cpu, &y.cpu, ACTIVATION_SILU);
    kernel_activate(b.gpu_stream, &out.gpu, &x.gpu, &y.gpu, ACTIVATION_SILU);
    check_near_cpu(&b, &out, 1e-6);
    kernel_activate(b.cpu_stream, &out.cpu, &x.cpu, NULL, ACTIVATION_GELU_TANH);
    kernel_activate(b.gpu_stream, &out.gpu, &x.gpu, NULL, ACTIVATION_GELU_TANH);
    check_near_cpu(&b, &out, 1e-6);
    kernel_layernorm(b.cpu_stream, &out.cpu, &x.cpu, &gain.cpu, NULL, 1e-5f);
    kernel_layernorm(b.gpu_stream, &out.gpu, &x.gpu, &gain.gpu, NULL, 1e-5f);
    check_near_cpu(&b, &out, 3e-6);
    kernel_layernorm(b.cpu_stream, &out.cpu, &x.cpu, &gain.cpu, &gain.cpu, 1e-5f);
    kernel_layernorm(b.gpu_stream, &out.gpu, &x.gpu, &gain.gpu, &gain.gpu, 1e-5f);
    check_near_cpu(&b, &out, 3e-6);
    kernel_scale(b.cpu_stream, &out.cpu, 1.7f);
    kernel_scale(b.gpu_stream, &out.gpu, 1.7f);
    kernel_softcap(b.cpu_stream, &out.cpu, 0.8f);
    kernel_softcap(b.gpu_stream, &out.gpu, 0.8f);
    check_near_cpu(&b, &out, 3e-6);
    kernel_gather_rows(b.cpu_stream, &picked.cpu, &x.cpu, &rows.cpu);
    kernel_gather_rows(b.gpu_stream, &picked.gpu, &x.gpu, &rows.gpu);
    check_near_cpu(&b, &picked, 0);
    kernel_sum_ranks(b.cpu_stream, &sum.cpu, &x.cpu);
    kernel_sum_ranks(b.gpu_stream, &sum.gpu, &x.gpu);
    check_near_cpu(&b, &sum, 0); /* the same order: the same bits */
    kernel_add(b.cpu_stream, &x.cpu, &y.cpu);
    kernel_add(b.gpu_stream, &x.gpu, &y.gpu);
    check_near_cpu(&b, &x, 0);
    struct twin *all[] = {&x, &y, &gain, &out, &rows, &picked, &sum};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        twin_free(all[i]);
    bed_close(&b);
}

static void check_experts(struct bed *b, enum dtype type, bool renormalise)
{
    const int64_t T = 7, E = 5, USED = 2, N = 19, K = type == DTYPE_Q8_0 ? 96 : 91;
    struct weights w = weights_new(b, type, E * N, K);
    struct twin logits = TWIN(b, DTYPE_F32, T, E), ids = TWIN(b, DTYPE_I32, T, USED);
    struct twin weight = TWIN(b, DTYPE_F32, T, USED), x = TWIN(b, DTYPE_F32, T, K);
    struct twin own = TWIN(b, DTYPE_F32, T * USED, K), out = TWIN(b, DTYPE_F32, T * USED, N);
    struct twin sum = TWIN(b, DTYPE_F32, T, N);
    twin_random(b, &logits);
    twin_random(b, &x);
    twin_random(b, &own);
    kernel_route(b->cpu_stream, &ids.cpu, &weight.cpu, &logits.cpu, renormalise);
    kernel_route(b->gpu_stream, &ids.gpu, &weight.gpu, &logits.gpu, renormalise);
    int32_t *picked = twin_download(b, &ids);
    CHECK(memcmp(picked, ids.cpu.data, tensor_bytes(&ids.cpu)) == 0);
    free(picked);
    check_near_cpu(b, &weight, 1e-6);
    kernel_expert_matmul(b->cpu_stream, &out.cpu, &own.cpu, &w.cpu, &ids.cpu);
    kernel_expert_matmul(b->gpu_stream, &out.gpu, &own.gpu, &w.gpu, &ids.gpu);
    check_near_cpu(b, &out, sqrt((double)K) * 1e-6);
    kernel_expert_matmul(b->cpu_stream, &out.cpu, &x.cpu, &w.cpu, &ids.cpu);
    kernel_expert_matmul(b->gpu_stream, &out.gpu, &x.gpu, &w.gpu, &ids.gpu);
    check_near_cpu(b, &out, sqrt((double)K) * 1e-6);
    kernel_expert_sum(b->cpu_stream, &sum.cpu, &out.cpu, &weight.cpu);
    kernel_expert_sum(b->gpu_stream, &sum.gpu, &out.gpu, &weight.gpu);
    check_near_cpu(b, &sum, sqrt((double)K) * 2e-6);
    struct twin *all[] = {&logits, &ids, &weight, &x, &own, &out, &sum};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        twin_free(all[i]);
    weights_free(&w);
}

static void test_experts_agree_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++)
        check_experts(&b, WEIGHT_TYPES[i], i % 2 == 0);
    bed_close(&b);
}

static void test_embed_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    for (size_t i = 0; i < ARRAY_LEN(WEIGHT_TYPES); i++) {
        const int64_t V = 11, C = WEIGHT_TYPES[i] == DTYPE_Q8_0 ? 96 : 91;
        struct weights w = weights_new(&b, WEIGHT_TYPES[i], V, C);
        struct twin ids = TWIN(&b, DTYPE_I32, 4), out = TWIN(&b, DTYPE_F32, 4, C);
        twin_ints(&b, &ids, (int32_t[]){10, 0, 3, 10});
        kernel_embed(b.cpu_stream, &out.cpu, &w.cpu, &ids.cpu);
        kernel_embed(b.gpu_stream, &out.gpu, &w.gpu, &ids.gpu);
        check_near_cpu(&b, &out, 0);
        twin_free(&ids);
        twin_free(&out);
        weights_free(&w);
    }
    bed_close(&b);
}

static void test_rope_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    const int64_t T = 4, heads = 3, D = 22, pairs = 10; /* two elements of a head are left as they are */
    for (int style = ROPE_INTERLEAVED; style <= ROPE_HALVES; style++) {
        struct twin x = TWIN(&b, DTYPE_F32, T, heads, D), at = TWIN(&b, DTYPE_I32, T);
        struct twin frequency = TWIN(&b, DTYPE_F32, pairs);
        twin_random(&b, &x);
        twin_random(&b, &frequency);
        twin_ints(&b, &at, (int32_t[]){0, 1, 4095, 131071});
        kernel_rope(b.cpu_stream, &x.cpu, &at.cpu, &frequency.cpu, (enum rope_pairs)style, 1.25f);
        kernel_rope(b.gpu_stream, &x.gpu, &at.gpu, &frequency.gpu, (enum rope_pairs)style, 1.25f);
        check_near_cpu(&b, &x, 1e-6);
        twin_free(&x);
        twin_free(&at);
        twin_free(&frequency);
    }
    bed_close(&b);
}

static void test_token_loss_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    struct twin logits = TWIN(&b, DTYPE_F32, 3, 1003), targets = TWIN(&b, DTYPE_I32, 3);
    struct twin nll = TWIN(&b, DTYPE_F32, 3);
    twin_random(&b, &logits);
    twin_ints(&b, &targets, (int32_t[]){1002, 0, 500});
    kernel_token_loss(b.cpu_stream, &nll.cpu, &logits.cpu, &targets.cpu);
    kernel_token_loss(b.gpu_stream, &nll.gpu, &logits.gpu, &targets.gpu);
    check_near_cpu(&b, &nll, 1e-6);
    twin_free(&logits);
    twin_free(&targets);
    twin_free(&nll);
    bed_close(&b);
}

/* ---- attention -------------------------------------------------------------------------------------------
 */

/* Three sequences: one new, one continued, one at its 300th position; their pages lie in disorder. */
struct pages {
    struct twin row_begin, positions, slots, table, k_pages, v_pages;
    struct seq_view cpu, gpu;
};

enum { T_ = 7, H_ = 4, G_ = 2, D_ = 36, PAGE_ = 16, PAGES_ = 30 };

static struct pages pages_new(struct bed *b, enum dtype type)
{
    struct pages p = {.row_begin = TWIN(b, DTYPE_I32, 4),
                      .positions = TWIN(b, DTYPE_I32, T_),
                      .slots = TWIN(b, DTYPE_I32, 3),
                      .table = TWIN(b, DTYPE_I32, 4, 20),
                      .k_pages = TWIN(b, type, PAGES_, PAGE_, G_, D_),
                      .v_pages = TWIN(b, type, PAGES_, PAGE_, G_, D_)};
    int32_t table[4 * 20] = {0};
    for (int i = 0; i < 20; i++)
        table[20 + i] = (i * 7 + 3) % 20; /* slot 1, the long one */
    table[0] = 25, table[40] = 22, table[41] = 21, table[60] = 29;
    twin_random(b, &p.k_pages);
    twin_random(b, &p.v_pages);
    twin_ints(b, &p.row_begin, (int32_t[]){0, 3, 6, 7});
    twin_ints(b, &p.positions, (int32_t[]){0, 1, 2, 17, 18, 19, 300});
    twin_ints(b, &p.slots, (int32_t[]){3, 2, 1});
    twin_ints(b, &p.table, table);
    p.cpu = (struct seq_view){p.row_begin.cpu, p.positions.cpu, p.slots.cpu, p.table.cpu, PAGE_};
    p.gpu = (struct seq_view){p.row_begin.gpu, p.positions.gpu, p.slots.gpu, p.table.gpu, PAGE_};
    return p;
}

static void pages_free(struct pages *p)
{
    struct twin *all[] = {&p->row_begin, &p->positions, &p->slots, &p->table, &p->k_pages, &p->v_pages};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        twin_free(all[i]);
}

static void check_same_bytes(struct bed *b, const struct twin *t)
{
    void *actual = twin_download(b, t);
    CHECK(memcmp(actual, t->cpu.data, tensor_bytes(&t->cpu)) == 0);
    free(actual);
}

static void check_paged(struct bed *b, enum dtype type)
{
    struct pages p = pages_new(b, type);
    struct twin k = TWIN(b, DTYPE_F32, T_, G_, D_), v = TWIN(b, DTYPE_F32, T_, G_, D_);
    struct twin q = TWIN(b, DTYPE_F32, T_, H_, D_), out = TWIN(b, DTYPE_F32, T_, H_, D_);
    struct twin moves = TWIN(b, DTYPE_I32, 4, 2);
    twin_random(b, &k);
    twin_random(b, &v);
    twin_random(b, &q);
    kernel_kv_store(b->cpu_stream, &p.k_pages.cpu, &p.v_pages.cpu, &k.cpu, &v.cpu, &p.cpu);
    kernel_kv_store(b->gpu_stream, &p.k_pages.gpu, &p.v_pages.gpu, &k.gpu, &v.gpu, &p.gpu);
    check_same_bytes(b, &p.k_pages);
    check_same_bytes(b, &p.v_pages);
    static const struct attention_options OPTIONS[] = {
        {.scale = 0.7f}, {.scale = 0.7f, .softcap = 1.2f, .window = 3}, {.scale = 0.7f, .window = 131}};
    for (size_t i = 0; i < ARRAY_LEN(OPTIONS); i++) {
        kernel_attention(b->cpu_stream, &out.cpu, &q.cpu, &p.k_pages.cpu, &p.v_pages.cpu, &p.cpu,
                         &OPTIONS[i]);
        kernel_attention(b->gpu_stream, &out.gpu, &q.gpu, &p.k_pages.gpu, &p.v_pages.gpu, &p.gpu,
                         &OPTIONS[i]);
        check_near_cpu(b, &out, 3e-6);
    }
    twin_ints(b, &moves, (int32_t[]){1, 2, 2, 3, -1, 1, 1, 29}); /* each reads what the one before wrote */
    kernel_move_pages(b->cpu_stream, &p.k_pages.cpu, &moves.cpu);
    kernel_move_pages(b->gpu_stream, &p.k_pages.gpu, &moves.gpu);
    check_same_bytes(b, &p.k_pages);
    struct twin *all[] = {&k, &v, &q, &out, &moves};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        twin_free(all[i]);
    pages_free(&p);
}

static void test_paged_attention_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    check_paged(&b, DTYPE_F32);
    check_paged(&b, DTYPE_F16);
    bed_close(&b);
}

static void test_packed_attention_agrees_with_the_cpu(void)
{
    NEED_GPU();
    struct bed b;
    bed_open(&b);
    const int64_t T = 9, H = 2, G = 1, D = 130; /* more elements than threads */
    struct twin k = TWIN(&b, DTYPE_F32, T, G, D), v = TWIN(&b, DTYPE_F32, T, G, D);
    struct twin q = TWIN(&b, DTYPE_F32, T, H, D), out = TWIN(&b, DTYPE_F32, T, H, D);
    struct twin row_begin = TWIN(&b, DTYPE_I32, 4), positions = TWIN(&b, DTYPE_I32, T);
    twin_random(&b, &k);
    twin_random(&b, &v);
    twin_random(&b, &q);
    twin_ints(&b, &row_begin, (int32_t[]){0, 4, 4, 9}); /* the second document is empty */
    twin_ints(&b, &positions, (int32_t[]){0, 1, 2, 3, 0, 1, 2, 3, 4});
    struct seq_view cpu = {.row_begin = row_begin.cpu, .positions = positions.cpu};
    struct seq_view gpu = {.row_begin = row_begin.gpu, .positions = positions.gpu};
    kernel_attention(b.cpu_stream, &out.cpu, &q.cpu, &k.cpu, &v.cpu, &cpu,
                     &(struct attention_options){.scale = 0.3f});
    kernel_attention(b.gpu_stream, &out.gpu, &q.gpu, &k.gpu, &v.gpu, &gpu,
                     &(struct attention_options){.scale = 0.3f});
    check_near_cpu(&b, &out, 3e-6);
    struct twin *all[] = {&k, &v, &q, &out, &row_begin, &positions};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        twin_free(all[i]);
    bed_close(&b);
}

/* Last: the error is sticky. Only the emulated GPU fails on demand. */
static void test_a_fault_is_told_by_sync(void)
{
    NEED_GPU();
    if (!getenv("LEPTON_CUDA_PLUGIN") || !strstr(plugin, "fake"))
        SKIP("needs the emulated GPU");
    struct bed b;
    struct err err = {0};
    bed_open(&b);
    struct weights w = weights_new(&b, DTYPE_F32, 5, 40);
    struct twin x = TWIN(&b, DTYPE_F32, 2, 40), out = TWIN(&b, DTYPE_F32, 2, 5);
    setenv("FAKE_CUDA_FAIL", "malloc:1", 1);
    CHECK(device_alloc(b.gpu, 100, &err) == NULL);
    CHECK_STR(err.message, "cuda:0: no room for 100 bytes: 1048576 of 1073741824 are free");
    setenv("FAKE_CUDA_FAIL", "launch:1", 1);
    kernel_matmul(b.gpu_stream, &out.gpu, &x.gpu, &w.gpu, NULL);
    stream_copy(b.gpu_stream, out.gpu.data, x.gpu.data, 8);
    for (int again = 0; again < 2; again++) {
        CHECK_INT(stream_sync(b.gpu_stream, &err), -1);
        CHECK_STR(err.message, "cuda:0: last operation enqueued: copy: matmul: an illegal memory access was "
                               "encountered (cudaErrorIllegalAddress, 700)");
    }
    twin_free(&x);
    twin_free(&out);
    weights_free(&w);
    bed_close(&b);
}

/* --gpu-only: `make gpu-check` on a machine without a GPU says so in one line. */
int main(int argc, char **argv)
{
    find_plugin();
    if (argc > 1 && strcmp(argv[1], "--gpu-only") == 0 && gpus <= 0) {
        printf("skip - gpu-check: %s\n", gpu_missing.message);
        return 0;
    }
    TEST(test_probe_answers, "the probe answers with the runtime's own words");
    TEST(test_open_tells_why_there_is_no_gpu, "a GPU that is not there is refused with the reason");
    TEST(test_copies_carry_every_byte, "copies to, on and from the GPU carry every byte");
    TEST(test_memory_is_zeroed_and_its_end_is_told, "GPU memory is zeroed, and its end is told");
    TEST(test_matmul_agrees_with_the_cpu, "matmul on the GPU agrees with the CPU, all types and odd sizes");
    TEST(test_matmul_of_a_row_does_not_depend_on_the_batch,
         "matmul of a row has the same bits in every batch on the GPU");
    TEST(test_matmul_transposed_agrees_with_the_cpu, "matmul_transposed on the GPU agrees with the CPU");
    TEST(test_nan_in_an_input_reaches_the_output,
         "NaN in an input of the GPU's matmul reaches its row alone");
    TEST(test_types_without_a_product_are_refused_by_name,
         "a weight type that the GPU has no product for is refused by name");
    TEST(test_rows_agree_with_the_cpu,
         "norms, activations, scale, softcap, gather_rows, sum_ranks and add agree with the CPU");
    TEST(test_experts_agree_with_the_cpu,
         "route, expert_matmul and expert_sum agree with the CPU, all types");
    TEST(test_embed_agrees_with_the_cpu, "embed on the GPU agrees with the CPU, all types");
    TEST(test_rope_agrees_with_the_cpu, "rope on the GPU agrees with the CPU in both styles");
    TEST(test_token_loss_agrees_with_the_cpu, "token_loss on the GPU agrees with the CPU");
    TEST(test_paged_attention_agrees_with_the_cpu,
         "kv_store, attention over pages and move_pages agree with the CPU");
    TEST(test_packed_attention_agrees_with_the_cpu, "attention over packed documents agrees with the CPU");
    TEST(test_a_fault_is_told_by_sync, "a fault of the GPU is told by stream_sync, again and again");
    return test_result();
}
