/* rows.cu: the operations that take rows one by one, on the GPU: embed, norms, add, gather_rows,
 * activations, scale, softcap, sum_ranks, rope. All are bound by memory. A row's sums are made by one block
 * in an order fixed by the row's length, so no row depends on the others of its step. */
#include "kernels/cuda.cuh"

#define THREADS 256

/* ---- element by element ----------------------------------------------------------------------------------
 */

static __device__ inline int64_t element()
{
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

static __global__ void add_kernel(float *x, const float *y, int64_t n)
{
    int64_t i = element();
    if (i < n)
        x[i] += y[i];
}

void cuda_add(struct stream *s, struct tensor *x, const struct tensor *y)
{
    int64_t n = tensor_elements(x);
    cuda_launch(s, "add", add_kernel, dim3(cuda_blocks(n, THREADS)), dim3(THREADS), (float *)x->data,
                (const float *)y->data, n);
}

template <int FUNCTION>
static __global__ void activate_kernel(float *out, const float *gate, const float *up, int64_t n)
{
    int64_t i = element();
    if (i < n) {
        float z = gate[i];
        /* gelu: z / 2 * (1 + tanh(u)) = z / (1 + exp(-2u)) */
        float e = FUNCTION == ACTIVATION_SILU ? z : 1.5957691216057308f * (z + 0.044715f * z * z * z);
        float a = z / (1.0f + expf(-e));
        out[i] = up ? a * up[i] : a;
    }
}

void cuda_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                   enum activation f)
{
    int64_t n = tensor_elements(out);
    cuda_launch(s, "activate",
                f == ACTIVATION_SILU ? activate_kernel<ACTIVATION_SILU>
                                     : activate_kernel<ACTIVATION_GELU_TANH>,
                dim3(cuda_blocks(n, THREADS)), dim3(THREADS), (float *)out->data, (const float *)gate->data,
                (const float *)(up ? up->data : NULL), n);
}

static __global__ void scale_kernel(float *x, float factor, int64_t n)
{
    int64_t i = element();
    if (i < n)
        x[i] *= factor;
}

void cuda_scale(struct stream *s, struct tensor *x, float factor)
{
    int64_t n = tensor_elements(x);
    cuda_launch(s, "scale", scale_kernel, dim3(cuda_blocks(n, THREADS)), dim3(THREADS), (float *)x->data,
                factor, n);
}

static __global__ void softcap_kernel(float *x, float cap, int64_t n)
{
    int64_t i = element();
    if (i < n)
        x[i] = cap * tanhf(x[i] / cap);
}

void cuda_softcap(struct stream *s, struct tensor *x, float cap)
{
    int64_t n = tensor_elements(x);
    cuda_launch(s, "softcap", softcap_kernel, dim3(cuda_blocks(n, THREADS)), dim3(THREADS), (float *)x->data,
                cap, n);
}

static __global__ void sum_ranks_kernel(float *out, const float *parts, int64_t ranks, int64_t n)
{
    int64_t i = element();
    if (i >= n)
        return;
    float sum = parts[i];
    for (int64_t r = 1; r < ranks; r++)
        sum += parts[r * n + i];
    out[i] = sum;
}

void cuda_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts)
{
    int64_t n = tensor_elements(out);
    cuda_launch(s, "sum_ranks", sum_ranks_kernel, dim3(cuda_blocks(n, THREADS)), dim3(THREADS),
                (float *)out->data, (const float *)parts->data, parts->dim[0], n);
}

/* ---- one block a row -------------------------------------------------------------------------------------
 */

template <int TYPE>
static __global__ void embed_kernel(float *out, struct cuda_weight table, const int32_t *ids, int64_t V,
                                    int64_t C)
{
    int64_t t = blockIdx.x, id = ids[t];
    if (id < 0 || id >= V)
        __trap();
    for (int64_t c = (int64_t)threadIdx.x * 4; c < C; c += THREADS * 4) {
        float4 v = cuda_weight_load4<TYPE>(table, id, c);
        float e[4] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < 4 && c + i < C; i++)
            out[t * C + c + i] = e[i];
    }
}

template <int TYPE>
static void run_embed(struct stream *s, struct tensor *out, const struct weight *table,
                      const struct tensor *ids)
{
    cuda_launch(s, "embed", embed_kernel<TYPE>, dim3((unsigned)out->dim[0]), dim3(THREADS),
                (float *)out->data, cuda_weight_view(table), (const int32_t *)ids->data, table->stored.dim[0],
                out->dim[1]);
}

void cuda_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids)
{
    switch (table->stored.dtype) {
    case DTYPE_F32:
        return run_embed<DTYPE_F32>(s, out, table, ids);
    case DTYPE_F16:
        return run_embed<DTYPE_F16>(s, out, table, ids);
    case DTYPE_BF16:
        return run_embed<DTYPE_BF16>(s, out, table, ids);
    case DTYPE_Q8_0:
        return run_embed<DTYPE_Q8_0>(s, out, table, ids);
    default:
        ASSERT(!"a weight of this type was never packed");
    }
}

static __global__ void gather_kernel(float *out, const float *x, const int32_t *rows, int64_t T, int64_t C)
{
    int64_t b = blockIdx.x, row = rows[b];
    if (row < 0 || row >= T)
        __trap();
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        out[b * C + c] = x[row * C + c];
}

void cuda_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *rows)
{
    cuda_launch(s, "gather_rows", gather_kernel, dim3((unsigned)out->dim[0]), dim3(THREADS),
                (float *)out->data, (const float *)x->data, (const int32_t *)rows->data, x->dim[0],
                out->dim[1]);
}

/* Not restrict: out may be x. Every element is read by the thread that writes it. */
static __global__ void rmsnorm_kernel(float *out, const float *x, const float *gain, int64_t C, float eps)
{
    __shared__ float room[THREADS];
    const float *row = x + blockIdx.x * C;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        sum = fmaf(row[c], row[c], sum);
    sum = cuda_block_sum<THREADS>(room, sum);
    float inverse = 1.0f / sqrtf(sum / (float)C + eps);
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        out[blockIdx.x * C + c] = row[c] * inverse * gain[c];
}

void cuda_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                  float eps)
{
    cuda_launch(s, "rmsnorm", rmsnorm_kernel, dim3((unsigned)x->dim[0]), dim3(THREADS), (float *)out->data,
                (const float *)x->data, (const float *)gain->data, x->dim[1], eps);
}

/* Two passes: the mean, then the squares of the differences. Every element is read by the thread that writes
 * it, so out may be x. */
static __global__ void layernorm_kernel(float *out, const float *x, const float *gain, const float *bias,
                                        int64_t C, float eps)
{
    __shared__ float room[THREADS];
    const float *row = x + blockIdx.x * C;
    float sum = 0, squares = 0;
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        sum += row[c];
    float mean = cuda_block_sum<THREADS>(room, sum) / (float)C;
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        squares = fmaf(row[c] - mean, row[c] - mean, squares);
    float inverse = 1.0f / sqrtf(cuda_block_sum<THREADS>(room, squares) / (float)C + eps);
    for (int64_t c = threadIdx.x; c < C; c += THREADS)
        out[blockIdx.x * C + c] = (row[c] - mean) * inverse * gain[c] + (bias ? bias[c] : 0.0f);
}

void cuda_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                    const struct tensor *bias, float eps)
{
    cuda_launch(s, "layernorm", layernorm_kernel, dim3((unsigned)x->dim[0]), dim3(THREADS),
                (float *)out->data, (const float *)x->data, (const float *)gain->data,
                (const float *)(bias ? bias->data : NULL), x->dim[1], eps);
}

struct rope_shape {
    int64_t heads, D, pairs;
    bool halves;
    float magnitude;
};

/* One angle a thread, shared by all heads. */
static __global__ void rope_kernel(float *x, const int32_t *positions, const float *frequency,
                                   struct rope_shape shape)
{
    int64_t t = blockIdx.x;
    for (int64_t i = threadIdx.x; i < shape.pairs; i += THREADS) {
        double angle = (double)positions[t] * (double)frequency[i];
        float cosine = (float)(cos(angle) * (double)shape.magnitude);
        float sine = (float)(sin(angle) * (double)shape.magnitude);
        int64_t first = shape.halves ? i : 2 * i, second = shape.halves ? i + shape.pairs : 2 * i + 1;
        for (int64_t h = 0; h < shape.heads; h++) {
            float *head = x + (t * shape.heads + h) * shape.D;
            float a = head[first], b = head[second];
            head[first] = a * cosine - b * sine;
            head[second] = a * sine + b * cosine;
        }
    }
}

void cuda_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
               const struct tensor *frequency, enum rope_pairs pairs, float magnitude)
{
    struct rope_shape shape = {x->dim[1], x->dim[2], frequency->dim[0], pairs == ROPE_HALVES, magnitude};
    cuda_launch(s, "rope", rope_kernel, dim3((unsigned)x->dim[0]), dim3(THREADS), (float *)x->data,
                (const int32_t *)positions->data, (const float *)frequency->data, shape);
}
