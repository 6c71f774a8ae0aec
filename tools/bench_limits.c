/* The limits of the machine for `lepton bench`: plain readers and arithmetic (kernels/cpu/limits), and
 * kernels that read weights as fast as they can, for a kernel may read faster than a reader that was written
 * for it. */
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tools/bench.h"

#define COPY_BYTES  (32ull << 20) /* of one matrix */
#define COPIES      16            /* 512 MiB in all: it comes from memory, not from a cache */
#define COPY_INPUTS 2048

void bench_limits_read(struct bench_limits *limits, double bytes_per_s, const char *by)
{
    if (bytes_per_s > limits->read_bytes_per_s) {
        limits->read_bytes_per_s = bytes_per_s;
        limits->read_by = by;
    }
}

static void keep_better(double *best, double found)
{
    if (found > *best)
        *best = found;
}

int bench_limits_measure(struct device *device, int repeats, struct bench_limits *limits, struct err *err)
{
    struct cpu_limits found;
    if (cpu_limits_measure(device, repeats, &found, err))
        return -1;
    keep_better(&limits->cpu.read_bytes_per_s, found.read_bytes_per_s);
    keep_better(&limits->cpu.fp32_flop_per_s, found.fp32_flop_per_s);
    keep_better(&limits->cpu.bf16_flop_per_s, found.bf16_flop_per_s);
    keep_better(&limits->cpu.int8_op_per_s, found.int8_op_per_s);
    bench_limits_read(limits, found.read_bytes_per_s, "a plain reader");
    return 0;
}

/* `count` packed copies of a matrix of this type, COPY_BYTES each. */
static int pack_copies(struct device *device, enum dtype type, struct weight *copies, struct tensor *host,
                       struct err *err)
{
    uint64_t row_bytes = 0;
    int code = dtype_row_bytes(type, COPY_INPUTS, &row_bytes);
    ASSERT(code == 0);
    int64_t rows = (int64_t)(COPY_BYTES / row_bytes);
    /* The reference multiplies rows where they lie, so each copy needs rows of its own. Zeros are numbers of
     * every type, but a page that was never written is not memory yet. */
    char *data = device_alloc(device, COPIES * (size_t)rows * row_bytes, err);
    if (!data)
        return -1;
    for (size_t i = 0; i < COPIES * (size_t)rows * row_bytes; i += 4096)
        data[i] = 0;
    *host = tensor_2d(NULL, type, data, rows, COPY_INPUTS);
    for (int c = 0; c < COPIES; c++) {
        struct tensor copy = *host;
        copy.data = data + (size_t)c * (size_t)rows * row_bytes;
        if (weight_pack(&copies[c], device, &copy, err))
            return -1;
    }
    return 0;
}

static int read_through(struct device *device, struct stream *stream, enum dtype type, int repeats,
                        struct bench_limits *limits, const char *by, struct err *err)
{
    struct weight copies[COPIES] = {0};
    struct tensor host = {0};
    int code = pack_copies(device, type, copies, &host, err);
    float *out = code ? NULL : device_alloc(device, (size_t)host.dim[0] * sizeof(float), err);
    float *x = code ? NULL : device_alloc(device, COPY_INPUTS * sizeof(float), err);
    for (int r = 0; x && out && r <= repeats; r++) {
        struct tensor xt = tensor_2d(device, DTYPE_F32, x, 1, COPY_INPUTS);
        struct tensor ot = tensor_2d(device, DTYPE_F32, out, 1, host.dim[0]);
        double begun = bench_now_s();
        for (int c = 0; c < COPIES; c++)
            kernel_matmul(stream, &ot, &xt, &copies[c], NULL);
        if (r > 0) /* the first warms up */
            bench_limits_read(limits, (double)(COPIES * tensor_bytes(&host)) / (bench_now_s() - begun), by);
    }
    for (int c = 0; c < COPIES; c++)
        weight_release(&copies[c]);
    device_free(device, host.data);
    device_free(device, out);
    device_free(device, x);
    return x && out ? 0 : -1;
}

int bench_limits_kernels(struct device *device, int repeats, struct bench_limits *limits, struct err *err)
{
    struct stream *stream = NULL;
    if (stream_open(&stream, device, err))
        return -1;
    int code = read_through(device, stream, DTYPE_F32, repeats, limits, "a product with f32", err) ||
                       read_through(device, stream, DTYPE_Q8_0, repeats, limits, "a product with q8_0", err)
                   ? -1
                   : 0;
    stream_close(&stream);
    return code;
}

double bench_limits_peak(const struct bench_limits *limits, enum dtype type, const char **name)
{
    bool integers = type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16;
    if (integers && limits->cpu.int8_op_per_s > 0) {
        *name = "int8";
        return limits->cpu.int8_op_per_s;
    }
    if (type == DTYPE_BF16 && limits->cpu.bf16_flop_per_s > 0) {
        *name = "bf16";
        return limits->cpu.bf16_flop_per_s;
    }
    *name = "fp32";
    return limits->cpu.fp32_flop_per_s;
}
