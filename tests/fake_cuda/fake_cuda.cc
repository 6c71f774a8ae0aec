/* fake_cuda: the emulated GPU; see cuda_runtime.h beside this file. */
#include "tests/fake_cuda/cuda_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <vector>

#define STACK_BYTES     (256u << 10)
#define THREADS_MAX     1024
#define MEMORY_BYTES    ((size_t)1 << 30)
#define MULTIPROCESSORS 4 /* few, so that small tests reach the kernels for large shapes */

dim3 threadIdx, blockIdx, blockDim, gridDim;

static cudaError_t sticky;

/* Counts down FAKE_CUDA_FAIL=WHAT:N; true when it is this call. */
static bool fault_due(const char *what)
{
    const char *spec = getenv("FAKE_CUDA_FAIL");
    char name[32], left[48];
    int n = 0;
    if (!spec || sscanf(spec, "%31[a-z]:%d", name, &n) != 2 || strcmp(name, what) != 0 || n < 1)
        return false;
    snprintf(left, sizeof(left), "%s:%d", name, n - 1);
    setenv("FAKE_CUDA_FAIL", left, 1);
    return n == 1;
}

/* ---- threads of a block ----------------------------------------------------------------------------------
 */

struct fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool over;
};
static std::vector<fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static const std::function<void()> *body;

static void fiber_main()
{
    (*body)();
    fibers[current].over = true;
    swapcontext(&fibers[current].context, &scheduler);
}

/* Every thread arrives before any goes on: the scheduler takes them in turn. */
void __syncthreads()
{
    swapcontext(&fibers[current].context, &scheduler);
}

static void fiber_make(struct fiber *f)
{
    f->over = false;
    f->stack.resize(STACK_BYTES);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack.data();
    f->context.uc_stack.ss_size = f->stack.size();
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
}

static void run_block(unsigned threads)
{
    unsigned left = threads;
    for (unsigned i = 0; i < threads; i++)
        fiber_make(&fibers[i]);
    while (left) {
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].over)
                continue;
            current = i;
            threadIdx = dim3(i % blockDim.x, i / blockDim.x, 0);
            swapcontext(&scheduler, &fibers[i].context);
            left -= fibers[i].over;
        }
    }
}

cudaError_t fake_cuda_run(dim3 grid, dim3 block, const std::function<void()> &thread)
{
    if (fault_due("launch"))
        sticky = cudaErrorIllegalAddress;
    if (sticky != cudaSuccess)
        return sticky;
    if (block.x * block.y > THREADS_MAX || block.z != 1 || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidDevice;
    if (fibers.empty())
        fibers.resize(THREADS_MAX);
    body = &thread;
    blockDim = block, gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                run_block(block.x * block.y);
            }
    return cudaSuccess;
}

void __trap()
{
    fprintf(stderr, "fake_cuda: a kernel trapped in block %u, thread %u\n", blockIdx.x, threadIdx.x);
    abort();
}

/* ---- errors and devices ----------------------------------------------------------------------------------
 */

const char *cudaGetErrorString(cudaError_t rc)
{
    return rc == cudaErrorIllegalAddress     ? "an illegal memory access was encountered"
           : rc == cudaErrorMemoryAllocation ? "out of memory"
           : rc == cudaSuccess               ? "no error"
                                             : "an error of the emulated GPU";
}
const char *cudaGetErrorName(cudaError_t rc)
{
    return rc == cudaErrorIllegalAddress     ? "cudaErrorIllegalAddress"
           : rc == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
           : rc == cudaSuccess               ? "cudaSuccess"
                                             : "cudaErrorUnknown";
}
cudaError_t cudaGetLastError()
{
    return sticky;
}
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index)
{
    return index == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrMultiProcessorCount      ? MULTIPROCESSORS
             : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                              : 0;
    return cudaSuccess;
}

/* ---- memory ----------------------------------------------------------------------------------------------
 */

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    if (fault_due("malloc") || bytes > MEMORY_BYTES || posix_memalign(memory, 256, bytes) != 0)
        return cudaErrorMemoryAllocation;
    memset(*memory, 0xFF, bytes); /* NaN: nothing may be read before it is written */
    return sticky;
}
cudaError_t cudaFree(void *memory)
{
    free(memory);
    return sticky;
}
cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    *memory = malloc(bytes);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = 1u << 20, *total = MEMORY_BYTES;
    return cudaSuccess;
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    memset(memory, value, bytes);
    return sticky;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t)
{
    return cudaMemset(memory, value, bytes);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                         size_t rows, cudaMemcpyKind)
{
    for (size_t r = 0; r < rows; r++)
        memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, width);
    return sticky;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    if (sticky == cudaSuccess)
        memcpy(to, from, bytes);
    return sticky;
}

/* ---- streams: all inline ---------------------------------------------------------------------------------
 */

struct fake_cuda_stream {
    int unused;
};
struct fake_cuda_event {
    int unused;
};
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new fake_cuda_stream();
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return sticky;
}
cudaError_t cudaStreamQuery(cudaStream_t)
{
    return sticky;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned)
{
    return sticky;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new fake_cuda_event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return sticky;
}
cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return sticky;
}
