/* device: a place where kernels run, its memory, and the order in which its work happens.
 *
 * A process may hold several devices at once ("cpu", "cuda:0"), so that one test holds them side by side.
 * Every device is one table of functions (struct device_ops): the CPU's is built in, CUDA's comes from the
 * plug-in lepton_cuda.so, opened at run time where a GPU is found, so that one build runs on every node.
 *
 * Every kernel takes a stream and returns at once; work on one stream happens in order. The CPU runs it
 * inline, on the device's team of threads. stream_sync() waits and reports a fault of the device.
 *
 * Life cycle: device_open -> stream_open -> kernels -> stream_close -> device_close. One thread uses a stream
 * at a time. */
#ifndef LEPTON_KERNELS_DEVICE_H
#define LEPTON_KERNELS_DEVICE_H

#include "kernels/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct stream;

struct device_options {
    int threads;         /* CPU: size of the team, the caller included; 0 = all processors allowed to us */
    const char *kernels; /* CPU: "reference", "avx512vnni", ... (kernels/cpu/fast.h), "auto" = the fastest
                            here; NULL = reference */
    bool f16_as_bf16;    /* CPU, set avx512bf16: F16 weights are rounded to BF16 when they are packed */
    const char
        *plugin_path; /* CUDA: the plug-in; NULL = lepton_cuda.so beside the program, then the library path */
};

/* Opens "cpu" or "cuda[:N]". Errors: unknown name, no plug-in, no GPU (message says which and how it was
 * probed). */
int device_open(struct device **out, const char *name, const struct device_options *options, struct err *err);
void device_close(struct device **device);

/* Number of GPUs that the plug-in can use, possibly 0; -1 and *err with the reason when there is no plug-in
 * or its probe fails (no driver, say). Costs nothing that stays: no device is opened. */
int device_gpu_count(const struct device_options *options, struct err *err);

const char *device_name(const struct device *device); /* "cpu", "cuda:0" */
/* Names the kernels' arithmetic for the numeric class (design I7): "cpu-reference", "cuda-sm90". */
const char *device_kernel_set(const struct device *device);
int device_threads(const struct device *device);

/* Device memory, 64-byte aligned (CPU) and zeroed. NULL and *err when there is not enough. free accepts NULL.
 */
void *device_alloc(struct device *device, size_t bytes, struct err *err);
void device_free(struct device *device, void *memory);

int stream_open(struct stream **out, struct device *device, struct err *err);
void stream_close(struct stream **stream);
struct device *stream_device(const struct stream *stream);
/* Waits for all work of the stream; -1 when the device reports a fault (sticky: the process cannot go on with
 * it). */
int stream_sync(struct stream *stream, struct err *err);

/* Copies in stream order. Host memory may be reused once the call returned for upload (staged or inline), and
 * is filled after the next stream_sync for download. */
void stream_upload(struct stream *stream, void *device_memory, const void *host, size_t bytes);
void stream_download(struct stream *stream, void *host, const void *device_memory, size_t bytes);
void stream_copy(struct stream *stream, void *to, const void *from, size_t bytes); /* both on the device */

/* What is enqueued on `stream` from now on waits for what was enqueued on `other` until now (one device). */
void stream_wait(struct stream *stream, struct stream *other);
/* 1 when all work of the stream is done, 0 while it is not, -1 and *err on a fault of the device. */
int stream_idle(struct stream *stream, struct err *err);
/* The runtime's own handle, for libraries that enqueue by themselves (cudaStream_t); NULL on the CPU. */
void *stream_native(struct stream *stream);

#ifdef __cplusplus
}
#endif
#endif
