/* lepton bench kernels: how fast the kernels of the CPU are here, each beside the limit that binds it,
 * measured in the same run: one row of x reads the weights (bytes per second), many rows compute (operations
 * per second). */
#include "tools/bench_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/limits.h"
#include "kernels/kernels.h"
#include "tools/command.h"

#define OPTION(member) offsetof(struct bench_kernels_settings, member)

static const struct config_option options[] = {
    {"kernels", 0, CONFIG_STRING, OPTION(kernels), 0, 0, "auto", "NAME",
     "auto|reference|avx2|avx512vnni|avx512bf16", "kernel set", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "N", NULL, "threads; 0 = every processor",
     false},
    {"type", 0, CONFIG_STRING, OPTION(type), 0, 0, NULL, "TYPE", NULL,
     "one weight type alone (default: every type, and the kernels without weights)", false},
    {"only", 0, CONFIG_STRING, OPTION(only), 0, 0, NULL, "NAME", NULL,
     "one of the kernels without weights alone, as the table calls it (attention, silu, ...)", false},
    {"repeats", 'r', CONFIG_INT, OPTION(repeats), 1, 1000, "5", "N", NULL,
     "counted runs of each kernel, after a warm-up", false},
    {"inputs", 'k', CONFIG_INT, OPTION(inputs), 256, 1 << 20, "2048", "K", NULL,
     "columns of the weight matrix", false},
    {"outputs", 'n', CONFIG_INT, OPTION(outputs), 1, 1 << 20, "5632", "N", NULL, "rows of the weight matrix",
     false},
    {"context", 0, CONFIG_INT, OPTION(context), 16, 1 << 20, "2048", "N", NULL,
     "positions that attention reads", false},
    {"json", 'j', CONFIG_BOOL, OPTION(json), 0, 0, NULL, NULL, NULL, "print one JSON object", false},
};

const struct config_table bench_kernels_table = {
    .program = "lepton bench kernels",
    .about = "Measures the CPU's kernels and the limits of this machine in one run. Method: one warm-up, "
             "then the median of "
             "the counted runs, by the wall clock; the spread is (slowest - fastest) / median. Weights of "
             "one-row products "
             "lie in many copies, 512 MiB together, so that they come from memory.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct bench_kernels_settings),
};

#define WEIGHT_BYTES (512ull << 20)
#define MAX_COPIES   512

void bench_kernel_report(struct bench *b, const char *kernel, const char *type, int64_t rows,
                         struct bench_summary f, double bytes, double ops, const char *bound, double limit,
                         double error)
{
    double gb = bytes / f.median * 1e-9, gop = ops / f.median * 1e-9;
    double rate = strcmp(bound, "read") == 0 ? gb * 1e9 : gop * 1e9, fraction = limit > 0 ? rate / limit : 0;
    if (b->s->json) {
        json_array_append_new(b->results,
                              json_pack("{s:s, s:s, s:I, s:i, s:f, s:f, s:f, s:f, s:s, s:f, s:f}", "kernel",
                                        kernel, "type", type, "rows", (json_int_t)rows, "threads",
                                        device_threads(b->device), "ms", f.median * 1e3, "gb_per_s", gb,
                                        "gop_per_s", gop, "fraction", fraction, "limit", bound, "spread",
                                        f.spread, "error", error));
        return;
    }
    printf("%-10s %-6s %5lld %10.3f %8.1f %9.1f %6.0f %% %-5s %6.0f %%  %.1e\n", kernel, type,
           (long long)rows, f.median * 1e3, gb, gop, fraction * 100, bound, f.spread * 100, error);
    fflush(stdout);
}

static void fill(float *x, int64_t count)
{
    uint64_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
}

/* Relative error of some outputs against exact arithmetic on the same blocks. */
static double matmul_error(const struct tensor *host, const float *x, const float *out, int64_t rows)
{
    int64_t N = host->dim[0], K = host->dim[1];
    uint64_t row_bytes = 0;
    double wrong = 0, all = 0;
    float *row = xmalloc((size_t)K * sizeof(float));
    int code = dtype_row_bytes(host->dtype, (uint64_t)K, &row_bytes);
    ASSERT(code == 0);
    for (int64_t n = 0; n < N; n += 1 + N / 50) {
        dtype_to_f32(host->dtype, (const char *)host->data + (uint64_t)n * row_bytes, row, (uint64_t)K);
        for (int64_t t = 0; t < rows; t += 1 + rows / 8) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)row[k] * (double)x[t * K + k];
            wrong += (sum - (double)out[t * N + n]) * (sum - (double)out[t * N + n]);
            all += sum * sum;
        }
    }
    free(row);
    return sqrt(wrong / all);
}

static int bench_rows(struct bench *b, const struct tensor *host, struct weight *copies, int64_t count,
                      int64_t rows, struct err *err)
{
    int64_t N = host->dim[0], K = host->dim[1], runs = rows == 1 ? count : 1, repeats = b->s->repeats;
    float *x = device_alloc(b->device, (size_t)(rows * K) * sizeof(float), err);
    float *out = x ? device_alloc(b->device, (size_t)(rows * N) * sizeof(float), err) : NULL;
    if (!out) {
        device_free(b->device, x);
        return -1;
    }
    fill(x, rows * K);
    struct tensor xt = tensor_2d(b->device, DTYPE_F32, x, rows, K),
                  ot = tensor_2d(b->device, DTYPE_F32, out, rows, N);
    double *seconds = xcalloc((size_t)repeats, sizeof(*seconds));
    for (int64_t r = -1; r < repeats; r++) {
        double begun = bench_now_s();
        for (int64_t c = 0; c < runs; c++)
            kernel_matmul(b->stream, &ot, &xt, &copies[c], NULL);
        if (r >= 0)
            seconds[r] = (bench_now_s() - begun) / (double)runs;
    }
    const char *set = device_kernel_set(b->device), *bound = "read";
    bool plain = strcmp(set, "cpu-reference") == 0 ||
                 (host->dtype == DTYPE_BF16 && strcmp(set, "cpu-avx512bf16") != 0);
    double limit = b->limits.read_bytes_per_s;
    if (rows > 1)
        limit = bench_limits_peak(&b->limits, plain ? DTYPE_F32 : host->dtype, &bound);
    bench_kernel_report(b, "matmul", dtype_info(host->dtype)->name, rows, bench_summarise(seconds, repeats),
                        (double)tensor_bytes(host), 2.0 * (double)N * (double)K * (double)rows, bound, limit,
                        matmul_error(host, x, out, rows));
    free(seconds);
    device_free(b->device, x);
    device_free(b->device, out);
    return 0;
}

/* A random matrix of the type, and as many packed copies as fill the memory that one-row products shall read.
 */
static int bench_type(struct bench *b, enum dtype type, struct err *err)
{
    int64_t N = b->s->outputs, K = b->s->inputs, count = 0;
    uint64_t row_bytes = 0;
    if (dtype_row_bytes(type, (uint64_t)K, &row_bytes))
        return err_set(err, "--inputs %lld: no whole number of blocks of %s", (long long)K,
                       dtype_info(type)->name);
    float *values = xmalloc((size_t)K * sizeof(float));
    char *data = xmalloc(row_bytes * (uint64_t)N);
    fill(values, K);
    for (int64_t n = 0; n < N; n++) {
        values[n % K] += 0.01f; /* no two rows alike */
        dtype_from_f32(type, values, data + (uint64_t)n * row_bytes, (uint64_t)K);
    }
    struct tensor host = tensor_2d(NULL, type, data, N, K);
    int64_t wanted = (int64_t)(WEIGHT_BYTES / (row_bytes * (uint64_t)N)) + 1;
    struct weight *copies = xcalloc(MAX_COPIES, sizeof(*copies));
    char *rows = NULL;
    int code = 0;
    if (wanted > MAX_COPIES)
        wanted = MAX_COPIES;
    /* The reference keeps the rows as they are: it needs copies of them to read from memory. */
    rows = device_alloc(b->device, row_bytes * (uint64_t)(N * wanted), err);
    code = rows ? 0 : -1;
    for (; count < wanted && code == 0; count++) {
        struct tensor copy = host;
        copy.data = rows + row_bytes * (uint64_t)(N * count);
        memcpy(copy.data, data, row_bytes * (uint64_t)N);
        code = weight_pack(&copies[count], b->device, &copy, err);
    }
    static const int64_t batches[] = {1, 8, 32, 512};
    for (size_t i = 0; i < ARRAY_LEN(batches) && code == 0; i++)
        code = bench_rows(b, &host, copies, count, batches[i], err);
    for (int64_t c = 0; c < count; c++)
        weight_release(&copies[c]);
    device_free(b->device, rows);
    free(copies);
    free(values);
    free(data);
    return code;
}

static int bench_all(struct bench *b, struct err *err)
{
    enum dtype type_alone;
    if (b->s->type && b->s->only)
        return err_set(err, "--type %s and --only %s: expected one of the two", b->s->type, b->s->only);
    if (b->s->type) {
        if (!dtype_from_name(b->s->type, &type_alone) || type_alone == DTYPE_I32)
            return err_set(err, "--type: \"%s\" is no weight type", b->s->type);
        return bench_type(b, type_alone, err);
    }
    for (int type = 0; type < DTYPE_COUNT && !b->s->only; type++)
        if (type != DTYPE_I32 && bench_type(b, (enum dtype)type, err))
            return -1;
    return bench_other_kernels(b, err);
}

static void print_head(const struct bench *b)
{
    printf("kernel set %s, %d threads; %s\n\n", device_kernel_set(b->device), device_threads(b->device),
           "median of the counted runs after a warm-up");
    printf("limits of this run: read %.1f GB/s, fp32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n\n",
           b->limits.read_bytes_per_s * 1e-9, b->limits.cpu.fp32_flop_per_s * 1e-9,
           b->limits.cpu.bf16_flop_per_s * 1e-9, b->limits.cpu.int8_op_per_s * 1e-9);
    printf("%-10s %-6s %5s %10s %8s %9s %8s %-5s %8s  %s\n", "kernel", "type", "rows", "ms", "GB/s", "GOP/s",
           "of", "limit", "spread", "error");
}

static void print_json(const struct bench *b)
{
    json_t *o = json_pack("{s:s, s:i, s:{s:f, s:f, s:f, s:f}, s:O}", "kernel_set",
                          device_kernel_set(b->device), "threads", device_threads(b->device), "limits",
                          "read_bytes_per_s", b->limits.read_bytes_per_s, "fp32_flop_per_s",
                          b->limits.cpu.fp32_flop_per_s, "bf16_flop_per_s", b->limits.cpu.bf16_flop_per_s,
                          "int8_op_per_s", b->limits.cpu.int8_op_per_s, "results", b->results);
    json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(8));
    printf("\n");
    json_decref(o);
}

int command_bench_kernels(int argc, char **argv)
{
    struct bench_kernels_settings s;
    struct bench b = {.s = &s, .results = json_array()};
    struct err err = {0};
    int code = EXIT_FAILED;
    config_main(&bench_kernels_table, &s, argc, argv, NULL, 0);
    if (device_open(&b.device, "cpu",
                    &(struct device_options){.threads = (int)s.threads, .kernels = s.kernels}, &err) ||
        stream_open(&b.stream, b.device, &err) ||
        bench_limits_measure(b.device, (int)s.repeats, &b.limits, &err)) {
        fprintf(stderr, "lepton bench kernels: %s\n", err.message);
    } else {
        if (!s.json)
            print_head(&b);
        if (bench_all(&b, &err))
            fprintf(stderr, "lepton bench kernels: %s\n", err.message);
        else
            code = EXIT_OK;
        if (s.json && code == EXIT_OK)
            print_json(&b);
    }
    stream_close(&b.stream);
    device_close(&b.device);
    json_decref(b.results);
    config_release(&bench_kernels_table, &s);
    return code;
}
