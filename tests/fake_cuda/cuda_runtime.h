/* cuda_runtime: an emulated GPU for machines without one. The plug-in's .cu files are compiled as C++ against
 * this header instead of CUDA's, and every kernel runs here, block after block, each thread of a block as a
 * fiber that gives way at __syncthreads and __syncwarp. It shows wrong indices, missing barriers between
 * dependent phases of a block, wrong arithmetic and guard bytes written over; not speed, not races inside a
 * phase, not what nvcc makes of the source: those need a GPU.
 *
 * FAKE_CUDA_FAIL=launch:N  the N-th launch from now returns cudaErrorIllegalAddress, and so does all that
 *                          follows (a sticky error)
 * FAKE_CUDA_FAIL=malloc:N  the N-th cudaMalloc returns cudaErrorMemoryAllocation */
#ifndef LEPTON_TESTS_FAKE_CUDA_CUDA_RUNTIME_H
#define LEPTON_TESTS_FAKE_CUDA_CUDA_RUNTIME_H
#ifdef __cplusplus /* C sees nothing: only the emulated kernels include this */

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__      static /* blocks run one after the other */
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(4) char4 {
    signed char x, y, z, w;
};
struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline float __uint_as_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

[[noreturn]] void __trap();
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();
static inline void __syncwarp()
{
    __syncthreads(); /* stricter: the whole block arrives */
}

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr {
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMultiProcessorCount
};
#define cudaStreamNonBlocking  1
#define cudaEventDisableTiming 2
typedef struct fake_cuda_stream *cudaStream_t;
typedef struct fake_cuda_event *cudaEvent_t;
#define cudaStreamLegacy ((cudaStream_t)1)
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

const char *cudaGetErrorString(cudaError_t);
const char *cudaGetErrorName(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int);
cudaError_t cudaMalloc(void **, size_t);
cudaError_t cudaFree(void *);
cudaError_t cudaMallocHost(void **, size_t);
cudaError_t cudaFreeHost(void *);
cudaError_t cudaMemGetInfo(size_t *, size_t *);
cudaError_t cudaMemset(void *, int, size_t);
cudaError_t cudaMemcpy2D(void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void *, const void *, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void *, int, size_t, cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamQuery(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);

cudaError_t fake_cuda_run(dim3 grid, dim3 block, const std::function<void()> &thread);

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Params...), Args... args)
{
    return fake_cuda_run(config->gridDim, config->blockDim, [=]() { kernel((Params)args...); });
}

#endif
#endif
