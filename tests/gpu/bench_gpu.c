/* bench_gpu: how fast the plug-in's products are on cuda:0, beside the GPU's own copy bandwidth measured in
 * the same run. Decode (T <= 8) is bound by reading the weights: GB/s, and the fraction of the copy's.
 * Prefill is bound by F32 arithmetic: TFLOP/s. Each figure is the median of ROUNDS rounds.
 *
 *   bench_gpu PLUGIN      exits 1 with the reason where there is no GPU */
#include "common/clock.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS     7
#define ROUND_US   50000
#define COLD_BYTES (512u << 20) /* weights cycled through, so that no cache holds them */
#define COPIES_MAX 64
#define COPY_BYTES ((size_t)1 << 30)
#define RUNS_MAX   20000

struct bench {
    struct device *device;
    struct stream *stream;
    struct weight weight[COPIES_MAX];
    int weights;
    struct tensor x, out;
    void *from, *to;
};

static void check(int rc, const struct err *err)
{
    if (rc < 0)
        die("%s", err->message);
}

static void *memory(struct bench *b, size_t bytes)
{
    struct err err;
    void *m = device_alloc(b->device, bytes, &err);
    check(m ? 0 : -1, &err);
    return m;
}

static void run_copy(struct bench *b, int i)
{
    (void)i;
    stream_copy(b->stream, b->to, b->from, COPY_BYTES);
}

static void run_matmul(struct bench *b, int i)
{
    kernel_matmul(b->stream, &b->out, &b->x, &b->weight[i % b->weights], NULL);
}

static void run_transposed(struct bench *b, int i)
{
    kernel_matmul_transposed(b->stream, &b->out, &b->x, &b->weight[i % b->weights]);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double round_us(struct bench *b, void (*run)(struct bench *, int), int runs)
{
    struct err err;
    uint64_t begin = clock_now_us();
    for (int i = 0; i < runs; i++)
        run(b, i);
    check(stream_sync(b->stream, &err), &err);
    return (double)(clock_now_us() - begin);
}

/* Seconds of one run: the median of the rounds, each long enough that the last wait does not count. */
static double seconds(struct bench *b, void (*run)(struct bench *, int))
{
    double round[ROUNDS], warm = round_us(b, run, 3) / 3;
    int runs = (int)(ROUND_US / (warm > 1 ? warm : 1)) + 1;
    runs = runs < RUNS_MAX ? runs : RUNS_MAX;
    for (int r = 0; r < ROUNDS; r++)
        round[r] = round_us(b, run, runs) / runs * 1e-6;
    qsort(round, ROUNDS, sizeof(round[0]), by_value);
    return round[ROUNDS / 2];
}

static double copy_bandwidth(struct bench *b)
{
    b->from = memory(b, COPY_BYTES);
    b->to = memory(b, COPY_BYTES);
    double gbs = 2.0 * COPY_BYTES / seconds(b, run_copy) * 1e-9;
    device_free(b->device, b->from);
    device_free(b->device, b->to);
    return gbs;
}

/* As many copies of a weight [N, K] as no cache holds. Values do not matter to the speed, but must be finite.
 */
static uint64_t weights_make(struct bench *b, enum dtype type, int64_t N, int64_t K, bool cold)
{
    struct tensor host = tensor_2d(NULL, type, NULL, N, K);
    uint64_t bytes = tensor_bytes(&host);
    struct err err;
    float *row = xmalloc((size_t)K * sizeof(float));
    uint8_t *data = xmalloc(bytes);
    for (int64_t k = 0; k < K; k++)
        row[k] = (float)(k % 17 - 8) * 0.125f;
    for (int64_t n = 0; n < N; n++)
        dtype_from_f32(type, row, data + (uint64_t)n * (bytes / (uint64_t)N), (uint64_t)K);
    host.data = data;
    b->weights = cold ? (int)(COLD_BYTES / bytes) + 1 : 1;
    b->weights = b->weights < COPIES_MAX ? b->weights : COPIES_MAX;
    for (int i = 0; i < b->weights; i++)
        check(weight_pack(&b->weight[i], b->device, &host, &err), &err);
    free(row);
    free(data);
    return bytes;
}

static void weights_release(struct bench *b)
{
    for (int i = 0; i < b->weights; i++)
        weight_release(&b->weight[i]);
}

static void rows_make(struct bench *b, int64_t T, int64_t in, int64_t out)
{
    b->x = tensor_2d(b->device, DTYPE_F32, memory(b, (size_t)(T * in) * sizeof(float)), T, in);
    b->out = tensor_2d(b->device, DTYPE_F32, memory(b, (size_t)(T * out) * sizeof(float)), T, out);
}

static void rows_release(struct bench *b)
{
    device_free(b->device, b->x.data);
    device_free(b->device, b->out.data);
}

static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};

static void bench_decode(struct bench *b, double copy_gbs)
{
    static const int64_t SHAPES[][2] = {{4096, 4096}, {14336, 4096}, {4096, 14336}};
    static const int64_t ROWS[] = {1, 2, 4, 8, 16, 32};
    printf("\ndecode: GB/s of weights (fraction of the copy bandwidth)\n%-6s %14s", "type", "N x K");
    for (size_t t = 0; t < ARRAY_LEN(ROWS); t++)
        printf("        T=%-4lld", (long long)ROWS[t]);
    for (size_t i = 0; i < ARRAY_LEN(TYPES); i++) {
        for (size_t s = 0; s < ARRAY_LEN(SHAPES); s++) {
            int64_t N = SHAPES[s][0], K = SHAPES[s][1];
            uint64_t bytes = weights_make(b, TYPES[i], N, K, true);
            printf("\n%-6s %7lld x %-5lld", dtype_info(TYPES[i])->name, (long long)N, (long long)K);
            for (size_t t = 0; t < ARRAY_LEN(ROWS); t++) {
                rows_make(b, ROWS[t], K, N);
                double gbs = (double)bytes / seconds(b, run_matmul) * 1e-9;
                printf("  %5.0f (%.2f)", gbs, gbs / copy_gbs);
                rows_release(b);
            }
            weights_release(b);
        }
    }
    printf("\n");
}

static void bench_prefill(struct bench *b)
{
    static const int64_t ROWS[] = {64, 128, 512, 2048, 8192};
    const int64_t N = 8192, K = 4096;
    printf("\nprefill: TFLOP/s, %lld x %lld\n%-18s", (long long)N, (long long)K, "type");
    for (size_t t = 0; t < ARRAY_LEN(ROWS); t++)
        printf("  T=%-5lld", (long long)ROWS[t]);
    for (size_t i = 0; i < ARRAY_LEN(TYPES); i++) {
        weights_make(b, TYPES[i], N, K, false);
        for (int transposed = 0; transposed < 2; transposed++) {
            printf("\n%-5s %-12s", dtype_info(TYPES[i])->name, transposed ? "transposed" : "");
            for (size_t t = 0; t < ARRAY_LEN(ROWS); t++) {
                rows_make(b, ROWS[t], transposed ? N : K, transposed ? K : N);
                double s = seconds(b, transposed ? run_transposed : run_matmul);
                printf("  %7.2f", 2.0 * (double)(ROWS[t] * N) * (double)K / s * 1e-12);
                rows_release(b);
            }
        }
        weights_release(b);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct err err;
    struct device_options options = {.plugin_path = argc > 1 ? argv[1] : NULL};
    setvbuf(stdout, NULL, _IONBF, 0);
    if (device_open(&b.device, "cuda:0", &options, &err) < 0) {
        fprintf(stderr, "bench_gpu: %s\n", err.message);
        return 1;
    }
    check(stream_open(&b.stream, b.device, &err), &err);
    double copy_gbs = copy_bandwidth(&b);
    printf("%s, %s: copy on the device %.0f GB/s (read and written)\n", device_name(b.device),
           device_kernel_set(b.device), copy_gbs);
    bench_decode(&b, copy_gbs);
    bench_prefill(&b);
    stream_close(&b.stream);
    device_close(&b.device);
    return 0;
}
