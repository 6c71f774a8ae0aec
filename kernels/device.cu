/* device.cu: the CUDA device: memory, streams, copies and errors; and the plug-in's one symbol.
 *
 * It refuses to know any operation: those are in the files named in cuda.cuh. The CUDA runtime is linked
 * statically, so that the plug-in needs nothing but a driver; a node without one answers at probe, with the
 * runtime's own words. A sticky error (an illegal address, say) is told by stream_sync and stays: the process
 * cannot go on with the device. */
#include "kernels/device.h"
#include "kernels/cuda.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuda_fail(struct err *err, const char *what, cudaError_t rc)
{
    return err_set(err, "%s: %s (%s, %d)", what, cudaGetErrorString(rc), cudaGetErrorName(rc), (int)rc);
}

void cuda_note(struct stream *s, const char *op, cudaError_t rc)
{
    struct cuda_stream *c = cuda_stream_of(s);
    c->last_op = op;
    if (rc == cudaSuccess || c->fault != cudaSuccess)
        return;
    c->fault = rc;
    c->fault_op = op;
    (void)cudaGetLastError(); /* a launch that failed leaves its error behind; it is ours now */
}

static cudaError_t use_device(const struct device *device)
{
    return cudaSetDevice(((const struct cuda_device *)device)->index);
}

/* ---- memory ----------------------------------------------------------------------------------------------
 */

static void *cuda_alloc(struct device *device, size_t bytes, struct err *err)
{
    void *memory = NULL;
    const char *call = "cudaSetDevice";
    cudaError_t rc = use_device(device);
    if (rc == cudaSuccess) {
        call = "cudaMalloc";
        rc = cudaMalloc(&memory, bytes ? bytes : 1);
    }
    if (rc == cudaSuccess) {
        /* The memset is on the legacy stream, which our streams do not wait for. */
        call = "cudaMemset";
        rc = cudaMemset(memory, 0, bytes ? bytes : 1);
        if (rc == cudaSuccess)
            rc = cudaStreamSynchronize(cudaStreamLegacy);
    }
    if (rc == cudaSuccess)
        return memory;
    (void)cudaGetLastError();
    size_t available = 0, total = 0;
    if (rc == cudaErrorMemoryAllocation && cudaMemGetInfo(&available, &total) == cudaSuccess) {
        err_set(err, "%s: no room for %zu bytes: %zu of %zu are free", device->name, bytes, available, total);
    } else {
        cuda_fail(err, call, rc);
        err_prefix(err, "%s: %zu bytes", device->name, bytes);
    }
    cudaFree(memory);
    return NULL;
}

static void cuda_free(struct device *device, void *memory)
{
    if (!memory || use_device(device) != cudaSuccess)
        return;
    if (cudaFree(memory) != cudaSuccess) /* a sticky error: stream_sync has told it */
        (void)cudaGetLastError();
}

/* ---- streams ---------------------------------------------------------------------------------------------
 */

static void cuda_stream_close(struct stream *stream)
{
    struct cuda_stream *s = cuda_stream_of(stream);
    if (!s)
        return;
    (void)use_device(s->base.device);
    if (s->native)
        (void)cudaStreamSynchronize(s->native);
    for (int i = 0; i < CUDA_STAGING_SLOTS; i++)
        if (s->slot_free[i])
            (void)cudaEventDestroy(s->slot_free[i]);
    if (s->passed)
        (void)cudaEventDestroy(s->passed);
    if (s->staging)
        (void)cudaFreeHost(s->staging);
    if (s->native)
        (void)cudaStreamDestroy(s->native);
    (void)cudaGetLastError();
    free(s);
}

static int cuda_stream_open(struct stream **out, struct device *device, struct err *err)
{
    struct cuda_stream *s = (struct cuda_stream *)xcalloc(1, sizeof(*s));
    const char *call = "cudaSetDevice";
    cudaError_t rc = use_device(device);
    s->base.device = device;
    s->last_op = "nothing";
    if (rc == cudaSuccess) {
        call = "cudaStreamCreateWithFlags";
        rc = cudaStreamCreateWithFlags(&s->native, cudaStreamNonBlocking);
    }
    if (rc == cudaSuccess) {
        call = "cudaMallocHost";
        rc = cudaMallocHost((void **)&s->staging, (size_t)CUDA_STAGING_SLOTS * CUDA_STAGING_SLOT_BYTES);
    }
    if (rc == cudaSuccess)
        rc = cudaEventCreateWithFlags(&s->passed, cudaEventDisableTiming);
    for (int i = 0; i < CUDA_STAGING_SLOTS && rc == cudaSuccess; i++) {
        call = "cudaEventCreateWithFlags";
        rc = cudaEventCreateWithFlags(&s->slot_free[i], cudaEventDisableTiming);
    }
    if (rc != cudaSuccess) {
        cuda_fail(err, call, rc);
        err_prefix(err, "%s: stream", device->name);
        cuda_stream_close(&s->base);
        return -1;
    }
    *out = &s->base;
    return 0;
}

static int stream_fault(struct cuda_stream *s, cudaError_t rc, const char *seen, struct err *err)
{
    if (s->fault == cudaSuccess) {
        s->fault = rc;
        s->fault_op = seen;
    }
    cuda_fail(err, s->fault_op, s->fault);
    return err_prefix(err, "%s: last operation enqueued: %s", s->base.device->name, s->last_op);
}

static int cuda_stream_sync(struct stream *stream, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(stream);
    cudaError_t rc = use_device(stream->device);
    if (rc == cudaSuccess)
        rc = cudaStreamSynchronize(s->native);
    return rc == cudaSuccess && s->fault == cudaSuccess ? 0 : stream_fault(s, rc, "stream_sync", err);
}

static int cuda_stream_idle(struct stream *stream, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(stream);
    cudaError_t rc = use_device(stream->device);
    if (rc == cudaSuccess)
        rc = cudaStreamQuery(s->native);
    if (rc == cudaErrorNotReady)
        return 0;
    return rc == cudaSuccess && s->fault == cudaSuccess ? 1 : stream_fault(s, rc, "stream_idle", err);
}

static void cuda_stream_wait(struct stream *stream, struct stream *other)
{
    cudaError_t rc = use_device(stream->device);
    if (rc == cudaSuccess)
        rc = cudaEventRecord(cuda_stream_of(other)->passed, cuda_stream_of(other)->native);
    if (rc == cudaSuccess)
        rc = cudaStreamWaitEvent(cuda_stream_of(stream)->native, cuda_stream_of(other)->passed, 0);
    cuda_note(stream, "stream_wait", rc);
}

static void *cuda_stream_native(struct stream *stream)
{
    return cuda_stream_of(stream)->native;
}

/* ---- copies ----------------------------------------------------------------------------------------------
 */

static void cuda_upload(struct stream *stream, void *device_memory, const void *host, size_t bytes)
{
    struct cuda_stream *s = cuda_stream_of(stream);
    cudaError_t rc = use_device(stream->device);
    for (size_t done = 0; done < bytes && rc == cudaSuccess;) {
        size_t n = bytes - done < CUDA_STAGING_SLOT_BYTES ? bytes - done : CUDA_STAGING_SLOT_BYTES;
        int slot = s->next_slot;
        uint8_t *staged = s->staging + (size_t)slot * CUDA_STAGING_SLOT_BYTES;
        s->next_slot = (slot + 1) % CUDA_STAGING_SLOTS;
        rc = cudaEventSynchronize(s->slot_free[slot]);
        if (rc != cudaSuccess)
            break;
        memcpy(staged, (const uint8_t *)host + done, n);
        rc = cudaMemcpyAsync((uint8_t *)device_memory + done, staged, n, cudaMemcpyHostToDevice, s->native);
        if (rc == cudaSuccess)
            rc = cudaEventRecord(s->slot_free[slot], s->native);
        done += n;
    }
    cuda_note(stream, "upload", rc);
}

/* Into pageable memory the runtime returns once the copy has been made: earlier than promised, never later.
 */
static void cuda_download(struct stream *stream, void *host, const void *device_memory, size_t bytes)
{
    cudaError_t rc = use_device(stream->device);
    if (rc == cudaSuccess && bytes)
        rc = cudaMemcpyAsync(host, device_memory, bytes, cudaMemcpyDeviceToHost,
                             cuda_stream_of(stream)->native);
    cuda_note(stream, "download", rc);
}

static void cuda_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    cudaError_t rc = use_device(stream->device);
    if (rc == cudaSuccess && bytes)
        rc = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_stream_of(stream)->native);
    cuda_note(stream, "copy", rc);
}

/* ---- the device ------------------------------------------------------------------------------------------
 */

static void cuda_close(struct device *device)
{
    free(device);
}

static struct device_ops make_ops(void)
{
    struct device_ops ops = {};
    ops.close = cuda_close;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.stream_open = cuda_stream_open;
    ops.stream_close = cuda_stream_close;
    ops.stream_sync = cuda_stream_sync;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.copy = cuda_copy;
    ops.wait = cuda_stream_wait;
    ops.idle = cuda_stream_idle;
    ops.native = cuda_stream_native;
    ops.pack = cuda_pack;
    ops.matmul = cuda_matmul;
    ops.matmul_transposed = cuda_matmul_transposed;
    ops.embed = cuda_embed;
    ops.rmsnorm = cuda_rmsnorm;
    ops.add = cuda_add;
    ops.gather_rows = cuda_gather_rows;
    ops.activate = cuda_activate;
    ops.layernorm = cuda_layernorm;
    ops.scale = cuda_scale;
    ops.softcap = cuda_softcap;
    ops.route = cuda_route;
    ops.expert_matmul = cuda_expert_matmul;
    ops.expert_sum = cuda_expert_sum;
    ops.sum_ranks = cuda_sum_ranks;
    ops.rope = cuda_rope;
    ops.kv_store = cuda_kv_store;
    ops.attention = cuda_attention;
    ops.move_pages = cuda_move_pages;
    ops.token_loss = cuda_token_loss;
    return ops;
}

static const struct device_ops cuda_ops = make_ops();

static int cuda_probe(struct err *err)
{
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);
    if (rc == cudaErrorNoDevice)
        return 0;
    if (rc != cudaSuccess)
        return cuda_fail(err, "cudaGetDeviceCount", rc);
    return count;
}

static int cuda_open(struct device **out, int index, struct err *err)
{
    int major = 0, minor = 0, multiprocessors = 0;
    const char *call = "cudaSetDevice";
    cudaError_t rc = cudaSetDevice(index);
    if (rc == cudaSuccess) {
        call = "cudaDeviceGetAttribute";
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    }
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
    if (rc == cudaSuccess) {
        call = "cudaFree(NULL)"; /* makes the context, so that its failure is told here and not by a kernel */
        rc = cudaFree(NULL);
    }
    if (rc != cudaSuccess) {
        (void)cudaGetLastError();
        cuda_fail(err, call, rc);
        return err_prefix(err, "cuda:%d", index);
    }
    if (major < 8)
        return err_set(err, "cuda:%d: compute capability %d.%d, expected 8.0 or newer", index, major, minor);
    struct cuda_device *d = (struct cuda_device *)xcalloc(1, sizeof(*d));
    d->base.ops = &cuda_ops;
    snprintf(d->base.name, sizeof(d->base.name), "cuda:%d", index);
    snprintf(d->base.kernel_set, sizeof(d->base.kernel_set), "cuda-sm%d%d", major, minor);
    d->base.threads = 1;
    d->index = index;
    d->multiprocessors = multiprocessors;
    *out = &d->base;
    return 0;
}

extern "C" __attribute__((visibility("default")))
const struct lepton_plugin lepton_plugin = {LEPTON_PLUGIN_VERSION, cuda_probe, cuda_open};
