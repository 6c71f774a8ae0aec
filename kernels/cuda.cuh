/* cuda: what the .cu files of the plug-in share: its device, its stream, how a kernel is launched, and how a
 * packed weight lies in device memory. Nothing outside the plug-in includes it.
 *
 * A failed launch or copy is kept in the stream (the first one, with the name of the operation) and told by
 * stream_sync: kernels return nothing, as device.h says. */
#ifndef LEPTON_KERNELS_CUDA_CUH
#define LEPTON_KERNELS_CUDA_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/device_ops.h"

/* Pinned memory through which uploads go, so that the caller's memory is free when upload returns. Small
 * slots: the handful of uploads of a step never waits for the step before it. */
#define CUDA_STAGING_SLOTS      32
#define CUDA_STAGING_SLOT_BYTES (256u << 10)

struct cuda_device {
    struct device base;
    int index;
    int multiprocessors;
};

struct cuda_stream {
    struct stream base;
    cudaStream_t native;
    const char *last_op; /* enqueued most lately; a string literal */
    const char *fault_op;
    cudaError_t fault; /* the first failure, cudaSuccess when none */
    uint8_t *staging;
    cudaEvent_t slot_free[CUDA_STAGING_SLOTS]; /* recorded behind the copy out of the slot */
    int next_slot;
    cudaEvent_t passed; /* recorded when another stream is told to wait for this one */
};

static inline struct cuda_stream *cuda_stream_of(struct stream *s)
{
    return (struct cuda_stream *)s;
}
static inline struct cuda_device *cuda_device_of(struct device *d)
{
    return (struct cuda_device *)d;
}

/* Remembers that `op` was enqueued and whether that failed. */
void cuda_note(struct stream *s, const char *op, cudaError_t rc);
/* err_set with the runtime's name, number and text of `rc`. */
int cuda_fail(struct err *err, const char *what, cudaError_t rc);

/* Enqueues kernel(args...) on the stream. A grid without blocks is nothing to do. */
template <class... Params, class... Args>
static void cuda_launch(struct stream *s, const char *op, void (*kernel)(Params...), dim3 grid, dim3 block,
                        Args... args)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = cuda_stream_of(s)->native;
    cuda_note(s, op, cudaLaunchKernelEx(&config, kernel, (Params)args...));
}

static inline unsigned cuda_blocks(int64_t items, int64_t per_block)
{
    return (unsigned)((items + per_block - 1) / per_block);
}

/* ---- packed weights -------------------------------------------------------------------------------------
 * Plain types: rows of `stride` elements, K rounded up to CUDA_CHUNK and filled with zeros, so that every
 * load is one aligned vector and none needs a guard. Q8_0: the 8-bit numbers alone, [N, K], and behind them
 * the F16 scales, [N, K/32]: blocks of 34 bytes would keep every load below two bytes of alignment. */
#define CUDA_CHUNK 8

struct cuda_weight {
    const uint8_t *elements;
    const uint16_t *scales; /* Q8_0, else NULL */
    int64_t stride;         /* elements from row to row */
};

static inline struct cuda_weight cuda_weight_view(const struct weight *w)
{
    struct cuda_weight v;
    int64_t rows = w->stored.dim[0], columns = w->stored.dim[1];
    v.elements = (const uint8_t *)w->packed;
    v.stride = (columns + CUDA_CHUNK - 1) / CUDA_CHUNK * CUDA_CHUNK;
    v.scales = w->stored.dtype == DTYPE_Q8_0 ? (const uint16_t *)(v.elements + rows * columns) : NULL;
    return v;
}

/* Adds up the block's values in `room`, THREADS of them, in one fixed tree; every thread gets the sum. */
template <int THREADS, class Number>
static __device__ inline Number cuda_block_sum(Number *room, Number value)
{
    room[threadIdx.x] = value;
    __syncthreads();
#pragma unroll
    for (int width = THREADS / 2; width > 0; width /= 2) {
        if ((int)threadIdx.x < width)
            room[threadIdx.x] += room[threadIdx.x + width];
        __syncthreads();
    }
    Number sum = room[0];
    __syncthreads(); /* the room may be used again */
    return sum;
}

/* The greatest value of the block; NaN is passed over, it shows in the sums. */
template <int THREADS> static __device__ inline float cuda_block_max(float *room, float value)
{
    room[threadIdx.x] = value;
    __syncthreads();
#pragma unroll
    for (int width = THREADS / 2; width > 0; width /= 2) {
        if ((int)threadIdx.x < width)
            room[threadIdx.x] = fmaxf(room[threadIdx.x], room[threadIdx.x + width]);
        __syncthreads();
    }
    float highest = room[0];
    __syncthreads();
    return highest;
}

static __device__ inline float cuda_f16(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}
static __device__ inline float cuda_bf16(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

/* Elements [k, k + 4) of a row; k is a multiple of 4. Q8_0: scale * q is exact in F32. */
template <int TYPE>
static __device__ inline float4 cuda_weight_load4(const struct cuda_weight &w, int64_t row, int64_t k)
{
    int64_t at = row * w.stride + k;
    if (TYPE == DTYPE_F32)
        return *(const float4 *)(w.elements + at * 4);
    if (TYPE == DTYPE_Q8_0) {
        float scale = cuda_f16(w.scales[at / Q8_0_BLOCK]);
        char4 q = *(const char4 *)(w.elements + at);
        return make_float4(scale * (float)q.x, scale * (float)q.y, scale * (float)q.z, scale * (float)q.w);
    }
    ushort4 b = *(const ushort4 *)(w.elements + at * 2);
    if (TYPE == DTYPE_F16)
        return make_float4(cuda_f16(b.x), cuda_f16(b.y), cuda_f16(b.z), cuda_f16(b.w));
    return make_float4(cuda_bf16(b.x), cuda_bf16(b.y), cuda_bf16(b.z), cuda_bf16(b.w));
}

/* Elements [k, k + 8); k is a multiple of 8. One 16-byte load for the 16-bit types. */
template <int TYPE>
static __device__ inline void cuda_weight_load8(const struct cuda_weight &w, int64_t row, int64_t k,
                                                float v[8])
{
    int64_t at = row * w.stride + k;
    if (TYPE == DTYPE_F16 || TYPE == DTYPE_BF16) {
        uint4 raw = *(const uint4 *)(w.elements + at * 2);
        uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint16_t low = (uint16_t)word[i], high = (uint16_t)(word[i] >> 16);
            v[2 * i] = TYPE == DTYPE_F16 ? cuda_f16(low) : cuda_bf16(low);
            v[2 * i + 1] = TYPE == DTYPE_F16 ? cuda_f16(high) : cuda_bf16(high);
        }
        return;
    }
    if (TYPE == DTYPE_Q8_0) {
        float scale = cuda_f16(w.scales[at / Q8_0_BLOCK]);
        uint2 raw = *(const uint2 *)(w.elements + at);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t word = i < 4 ? raw.x : raw.y;
            v[i] = scale * (float)(int8_t)(word >> (8 * (i % 4)));
        }
        return;
    }
    float4 a = cuda_weight_load4<TYPE>(w, row, k), b = cuda_weight_load4<TYPE>(w, row, k + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

/* ---- the operations, by file ----------------------------------------------------------------------------
 */

/* matmul.cu */
int cuda_pack(struct weight *out, struct device *device, const struct tensor *host,
              const struct weight_watch *watch, struct err *err);
void cuda_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count);
void cuda_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                            const struct weight *w);
/* rows.cu */
void cuda_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids);
void cuda_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                  float eps);
void cuda_add(struct stream *s, struct tensor *x, const struct tensor *y);
void cuda_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x,
                      const struct tensor *rows);
void cuda_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                    const struct tensor *bias, float eps);
void cuda_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                   enum activation f);
void cuda_scale(struct stream *s, struct tensor *x, float factor);
void cuda_softcap(struct stream *s, struct tensor *x, float cap);
void cuda_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts);
void cuda_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
               const struct tensor *frequency, enum rope_pairs pairs, float magnitude);
/* attention.cu */
void cuda_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view);
void cuda_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options);
void cuda_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves);
/* expert.cu */
void cuda_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
                bool renormalise);
void cuda_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                        const struct tensor *ids);
void cuda_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                     const struct tensor *weights);
/* loss.cu */
void cuda_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                     const struct tensor *targets);

#endif
