/* expert.cu: mixture of experts on the GPU: the router's choice, the products of chosen experts, the weighted
 * sum. A row's results depend on the row alone: the products add in the order of matmul.cu, chunk c of 8
 * elements in chain c % 32, the chains one by one. Every (row, expert) pair reads its expert's weights
 * itself: right for decode, where few rows choose the same expert. */
#include "kernels/cuda.cuh"

#define THREADS     128
#define WARPS       4
#define CHAINS      32
#define EXPERTS_MAX 4096

/* ---- the router ------------------------------------------------------------------------------------------
 * k times the highest logit that is left, the lower id among equals; NaN counts as the lowest. */

struct route_shape {
    int64_t E, k;
    bool renormalise;
};

/* Of two candidates the better one, in a's place; id -1 is none. */
static __device__ inline void better(float *value, int *id, float other_value, int other_id)
{
    bool wins =
        other_id >= 0 && (*id < 0 || other_value > *value || (other_value == *value && other_id < *id));
    if (wins) {
        *value = other_value;
        *id = other_id;
    }
}

static __device__ inline float ordered(float logit)
{
    return logit == logit ? logit : -INFINITY;
}

/* The softmax of what was picked, by one thread: the sums' order is that of the ids or of the ranks. */
static __device__ void weigh(float *weights, const int32_t *ids, const float *logits,
                             const struct route_shape &shape)
{
    double highest = (double)ordered(logits[ids[0]]), sum = 0;
    bool nan = false;
    for (int64_t e = 0; e < shape.E; e++)
        nan = nan || logits[e] != logits[e];
    if (shape.renormalise)
        for (int64_t i = 0; i < shape.k; i++)
            sum += exp((double)logits[ids[i]] - highest);
    else
        for (int64_t e = 0; e < shape.E; e++)
            sum += exp((double)logits[e] - highest);
    for (int64_t i = 0; i < shape.k; i++)
        weights[i] = nan ? NAN : (float)(exp((double)logits[ids[i]] - highest) / sum);
}

static __global__ void __launch_bounds__(THREADS)
    route_kernel(int32_t *ids, float *weights, const float *logits, struct route_shape shape)
{
    __shared__ float value[THREADS];
    __shared__ int id[THREADS];
    __shared__ uint8_t used[EXPERTS_MAX];
    const float *row = logits + blockIdx.x * shape.E;
    int32_t *out = ids + blockIdx.x * shape.k;
    for (int64_t e = threadIdx.x; e < shape.E; e += THREADS)
        used[e] = 0;
    __syncthreads();
    for (int64_t i = 0; i < shape.k; i++) {
        float best = 0;
        int best_id = -1;
        for (int64_t e = threadIdx.x; e < shape.E; e += THREADS)
            if (!used[e])
                better(&best, &best_id, ordered(row[e]), (int)e);
        value[threadIdx.x] = best;
        id[threadIdx.x] = best_id;
        __syncthreads();
        for (int width = THREADS / 2; width > 0; width /= 2) {
            if ((int)threadIdx.x < width)
                better(&value[threadIdx.x], &id[threadIdx.x], value[threadIdx.x + width],
                       id[threadIdx.x + width]);
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            out[i] = id[0];
            used[id[0]] = 1;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        weigh(weights + blockIdx.x * shape.k, out, row, shape);
}

void cuda_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
                bool renormalise)
{
    struct route_shape shape = {logits->dim[1], ids->dim[1], renormalise};
    ASSERT(shape.E <= EXPERTS_MAX);
    cuda_launch(s, "route", route_kernel, dim3((unsigned)ids->dim[0]), dim3(THREADS), (int32_t *)ids->data,
                (float *)weights->data, (const float *)logits->data, shape);
}

/* ---- products of the chosen experts: a warp makes one output ---------------------------------------------
 */

struct expert_shape {
    int64_t N, K, E;
    int64_t slots_per_x; /* outputs that read the same row of x */
};

template <int TYPE>
static __global__ void __launch_bounds__(32 * WARPS)
    expert_kernel(float *out, const float *x, struct cuda_weight w, const int32_t *ids,
                  struct expert_shape shape)
{
    __shared__ float chains[WARPS][CHAINS + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t blocks = (shape.N + WARPS - 1) / WARPS, slot = blockIdx.x / blocks;
    int64_t n = blockIdx.x % blocks * WARPS + warp, expert = ids[slot];
    const float *row = x + slot / shape.slots_per_x * shape.K;
    float sum = 0;
    if (expert < 0 || expert >= shape.E)
        __trap();
    for (int64_t k = (int64_t)lane * CUDA_CHUNK; n < shape.N && k < shape.K; k += CHAINS * CUDA_CHUNK) {
        float v[CUDA_CHUNK];
        cuda_weight_load8<TYPE>(w, expert * shape.N + n, k, v);
#pragma unroll
        for (int i = 0; i < CUDA_CHUNK; i++)
            sum = fmaf(v[i], k + i < shape.K ? row[k + i] : 0.0f, sum);
    }
    chains[warp][lane] = sum;
    __syncthreads();
    if (lane > 0 || n >= shape.N)
        return;
    float total = 0;
    for (int i = 0; i < CHAINS; i++)
        total += chains[warp][i];
    out[slot * shape.N + n] = total;
}

template <int TYPE>
static void run_expert(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                       const struct tensor *ids)
{
    struct expert_shape shape = {out->dim[1], x->dim[1], w->stored.dim[0] / out->dim[1],
                                 out->dim[0] / x->dim[0]};
    int64_t blocks = (shape.N + WARPS - 1) / WARPS * out->dim[0];
    cuda_launch(s, "expert_matmul", expert_kernel<TYPE>, dim3((unsigned)blocks), dim3(32 * WARPS),
                (float *)out->data, (const float *)x->data, cuda_weight_view(w), (const int32_t *)ids->data,
                shape);
}

void cuda_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                        const struct tensor *ids)
{
    switch (w->stored.dtype) {
    case DTYPE_F32:
        return run_expert<DTYPE_F32>(s, out, x, w, ids);
    case DTYPE_F16:
        return run_expert<DTYPE_F16>(s, out, x, w, ids);
    case DTYPE_BF16:
        return run_expert<DTYPE_BF16>(s, out, x, w, ids);
    case DTYPE_Q8_0:
        return run_expert<DTYPE_Q8_0>(s, out, x, w, ids);
    default:
        ASSERT(!"a weight of this type was never packed");
    }
}

/* ---- the weighted sum, in the order of the ranks ---------------------------------------------------------
 */

static __global__ void expert_sum_kernel(float *out, const float *parts, const float *weights, int64_t n,
                                         int64_t C, int64_t k)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    int64_t t = i / C, c = i % C;
    float sum = weights[t * k] * parts[t * k * C + c];
    for (int64_t r = 1; r < k; r++)
        sum = sum + weights[t * k + r] * parts[(t * k + r) * C + c];
    out[i] = sum;
}

void cuda_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                     const struct tensor *weights)
{
    int64_t n = tensor_elements(out);
    cuda_launch(s, "expert_sum", expert_sum_kernel, dim3(cuda_blocks(n, THREADS)), dim3(THREADS),
                (float *)out->data, (const float *)parts->data, (const float *)weights->data, n, out->dim[1],
                weights->dim[1]);
}
