/* matmul.cu: products of F32 activations with weights of any type, in F32, on the GPU.
 *
 * Exactness (design I7). The additions of an output element have one order, whatever T is and whichever of
 * the kernels below runs:
 *
 *     K is cut into chunks of 8 elements; chunk c belongs to chain c % 32.
 *     A chain adds its products one by one (fused multiply-add), its chunks in order.
 *     The 32 chains are added one by one: (((0 + chain 0) + chain 1) + ... + chain 31).
 *
 *       k:     0....7 8...15  ...  248..255 | 256..263 ...        chains run in parallel in the lanes of a
 *       chain:   0      1     ...     31    |    0     ...        warp, one after the other in a tile
 *
 * gemv (T <= 8) gives each lane one chain, so that a warp reads a row of weights in full cache lines: it is
 * bound by the memory's bandwidth. tile (larger T) walks the chains one after the other with two accumulators
 * an element, the chain's and the sum's: it is bound by F32 multiply-adds. Elements past K count as zeros in
 * both. The bias is added last. */
#include "kernels/cuda.cuh"

#define CHAINS       32
#define GEMV_WARPS   4
#define GEMV_T_MAX   8
#define REPACK_BYTES (64u << 20)

/* ---- x ---------------------------------------------------------------------------------------------------
 * Activations are not padded: a row of K that is no multiple of 4 is read element by element. */
static __device__ inline float4 load_x4(const float *row, int64_t k, int64_t K)
{
    if (K % 4 == 0)
        return k < K ? *(const float4 *)(row + k) : make_float4(0, 0, 0, 0);
    return make_float4(k < K ? row[k] : 0, k + 1 < K ? row[k + 1] : 0, k + 2 < K ? row[k + 2] : 0,
                       k + 3 < K ? row[k + 3] : 0);
}

/* ---- gemv ------------------------------------------------------------------------------------------------
 * A warp makes ROWS outputs for each of TB rows of x. ROWS > 1 so that a load of x serves several rows. */
template <int TYPE, int TB, int ROWS>
static __global__ void __launch_bounds__(32 * GEMV_WARPS)
    gemv(float *out, const float *x, struct cuda_weight w, const float *bias, int T, int64_t N, int64_t K)
{
    static_assert(TB * ROWS <= 32, "one lane adds the chains of one output");
    __shared__ float chains[GEMV_WARPS][TB * ROWS][CHAINS + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t n0 = ((int64_t)blockIdx.x * GEMV_WARPS + warp) * ROWS;
    float acc[ROWS][TB] = {};

    for (int64_t k = (int64_t)lane * CUDA_CHUNK; k < K; k += CHAINS * CUDA_CHUNK) {
        float v[ROWS][CUDA_CHUNK];
#pragma unroll
        for (int r = 0; r < ROWS; r++) /* the last rows again where there are none: never stored */
            cuda_weight_load8<TYPE>(w, n0 + r < N ? n0 + r : N - 1, k, v[r]);
#pragma unroll
        for (int t = 0; t < TB; t++) {
            const float *row = x + (int64_t)(t < T ? t : T - 1) * K;
            float4 a = load_x4(row, k, K), b = load_x4(row, k + 4, K);
            float xs[CUDA_CHUNK] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < CUDA_CHUNK; i++)
                    acc[r][t] = fmaf(v[r][i], xs[i], acc[r][t]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TB; t++)
            chains[warp][r * TB + t][lane] = acc[r][t];
    __syncwarp();
    int64_t n = n0 + lane / TB;
    int t = lane % TB;
    if (lane >= TB * ROWS || n >= N || t >= T)
        return;
    float sum = 0;
    for (int i = 0; i < CHAINS; i++)
        sum += chains[warp][lane][i];
    out[(int64_t)t * N + n] = bias ? sum + bias[n] : sum;
}

/* ---- tile ------------------------------------------------------------------------------------------------
 * A block makes BT x BN outputs, a thread RT x RN of them, as groups of 4 x 4 that lie apart so that reads of
 * shared memory do not collide. One chunk of 8 reduced elements at a time goes through shared memory, twice
 * buffered. TRANSPOSED: reduces over the rows of the weight and makes its columns. */
template <int BT, int BN> struct tile_memory {
    float x[2][CUDA_CHUNK][BT + 4];
    float w[2][CUDA_CHUNK][BN + 4];
};

struct tile_shape {
    int64_t T, M, K; /* rows, outputs, length of the sums */
};

template <int BT, int THREADS>
static __device__ inline void tile_load_x(float4 *regs, const float *x, const struct tile_shape &shape,
                                          int64_t t0, int64_t k)
{
#pragma unroll
    for (int i = 0; i < (BT * 2 + THREADS - 1) / THREADS; i++) {
        int item = threadIdx.x + i * THREADS;
        int64_t t = t0 + item / 2;
        regs[i] = item < BT * 2 && t < shape.T ? load_x4(x + t * shape.K, k + item % 2 * 4, shape.K)
                                               : make_float4(0, 0, 0, 0);
    }
}

template <int TYPE, bool TRANSPOSED, int BN, int THREADS>
static __device__ inline void tile_load_w(float4 *regs, const struct cuda_weight &w,
                                          const struct tile_shape &shape, int64_t m0, int64_t k)
{
#pragma unroll
    for (int i = 0; i < (BN * 2 + THREADS - 1) / THREADS; i++) {
        int item = threadIdx.x + i * THREADS;
        int64_t row = TRANSPOSED ? k + item / (BN / 4) : m0 + item / 2;
        int64_t column = TRANSPOSED ? m0 + item % (BN / 4) * 4 : k + item % 2 * 4;
        bool inside = TRANSPOSED ? row < shape.K && column < shape.M : row < shape.M;
        regs[i] = item < BN * 2 && inside ? cuda_weight_load4<TYPE>(w, row, column) : make_float4(0, 0, 0, 0);
    }
}

/* Puts four elements of one row, [line][at .. at + 4), or of one column, [line .. line + 4)[at]. */
template <int WIDTH>
static __device__ inline void tile_put_column(float (*to)[WIDTH], int line, int at, float4 v)
{
    to[line][at] = v.x, to[line + 1][at] = v.y, to[line + 2][at] = v.z, to[line + 3][at] = v.w;
}

template <int BT, int BN, bool TRANSPOSED, int THREADS>
static __device__ inline void tile_store(struct tile_memory<BT, BN> &mem, int buffer, const float4 *x_regs,
                                         const float4 *w_regs)
{
#pragma unroll
    for (int i = 0; i < (BT * 2 + THREADS - 1) / THREADS; i++) {
        int item = threadIdx.x + i * THREADS;
        if (item < BT * 2)
            tile_put_column<BT + 4>(mem.x[buffer], item % 2 * 4, item / 2, x_regs[i]);
    }
#pragma unroll
    for (int i = 0; i < (BN * 2 + THREADS - 1) / THREADS; i++) {
        int item = threadIdx.x + i * THREADS;
        if (item >= BN * 2)
            continue;
        if (TRANSPOSED)
            *(float4 *)&mem.w[buffer][item / (BN / 4)][item % (BN / 4) * 4] = w_regs[i];
        else
            tile_put_column<BN + 4>(mem.w[buffer], item % 2 * 4, item / 2, w_regs[i]);
    }
}

/* Where the i-th of a thread's R elements along one side lies in the tile. */
template <int SIDE, int R> static __device__ inline int tile_at(int thread, int i)
{
    return i / 4 * (SIDE / (R / 4)) + thread * 4 + i % 4;
}

template <int BT, int BN, int RT, int RN>
static __device__ inline void tile_multiply(const struct tile_memory<BT, BN> &mem, int buffer,
                                            float (*acc)[RN])
{
    int ty = threadIdx.x / (BN / RN), tx = threadIdx.x % (BN / RN);
#pragma unroll
    for (int k = 0; k < CUDA_CHUNK; k++) {
        float a[RT], b[RN];
#pragma unroll
        for (int i = 0; i < RT; i++)
            a[i] = mem.x[buffer][k][tile_at<BT, RT>(ty, i)];
#pragma unroll
        for (int j = 0; j < RN; j++)
            b[j] = mem.w[buffer][k][tile_at<BN, RN>(tx, j)];
#pragma unroll
        for (int i = 0; i < RT; i++)
#pragma unroll
            for (int j = 0; j < RN; j++)
                acc[i][j] = fmaf(b[j], a[i], acc[i][j]);
    }
}

template <int BT, int BN, int RT, int RN>
static __device__ inline void tile_write(float *out, const float (*sum)[RN], const float *bias,
                                         const struct tile_shape &shape, int64_t t0, int64_t m0)
{
    int ty = threadIdx.x / (BN / RN), tx = threadIdx.x % (BN / RN);
#pragma unroll
    for (int i = 0; i < RT; i++) {
        int64_t t = t0 + tile_at<BT, RT>(ty, i);
#pragma unroll
        for (int j = 0; j < RN; j++) {
            int64_t m = m0 + tile_at<BN, RN>(tx, j);
            if (t < shape.T && m < shape.M)
                out[t * shape.M + m] = bias ? sum[i][j] + bias[m] : sum[i][j];
        }
    }
}

/* Blocks are numbered along T first: neighbours read the same weights while these are in the cache. */
template <int TYPE, bool TRANSPOSED, int BT, int BN, int RT, int RN>
static __global__ void __launch_bounds__((BT / RT) * (BN / RN))
    tile(float *out, const float *x, struct cuda_weight w, const float *bias, struct tile_shape shape)
{
    constexpr int THREADS = (BT / RT) * (BN / RN);
    __shared__ __align__(16) struct tile_memory<BT, BN> mem;
    int64_t t_tiles = (shape.T + BT - 1) / BT;
    int64_t t0 = blockIdx.x % t_tiles * BT, m0 = blockIdx.x / t_tiles * BN;
    int64_t chunks = (shape.K + CUDA_CHUNK - 1) / CUDA_CHUNK;
    float4 x_regs[(BT * 2 + THREADS - 1) / THREADS], w_regs[(BN * 2 + THREADS - 1) / THREADS];
    float sum[RT][RN] = {}, acc[RT][RN] = {};

    tile_load_x<BT, THREADS>(x_regs, x, shape, t0, 0);
    tile_load_w<TYPE, TRANSPOSED, BN, THREADS>(w_regs, w, shape, m0, 0);
    tile_store<BT, BN, TRANSPOSED, THREADS>(mem, 0, x_regs, w_regs);
    __syncthreads();
    int64_t chain = 0, chunk = 0;
    for (int buffer = 0;; buffer ^= 1) {
        int64_t next_chain = chain, next = chunk + CHAINS;
        if (next >= chunks)
            next = ++next_chain;
        bool last = next_chain >= CHAINS || next >= chunks;
        if (!last) {
            tile_load_x<BT, THREADS>(x_regs, x, shape, t0, next * CUDA_CHUNK);
            tile_load_w<TYPE, TRANSPOSED, BN, THREADS>(w_regs, w, shape, m0, next * CUDA_CHUNK);
        }
        tile_multiply<BT, BN, RT, RN>(mem, buffer, acc);
        if (next_chain != chain) {
#pragma unroll
            for (int i = 0; i < RT * RN; i++) {
                sum[i / RN][i % RN] += acc[i / RN][i % RN];
                acc[i / RN][i % RN] = 0;
            }
        }
        if (last)
            break;
        tile_store<BT, BN, TRANSPOSED, THREADS>(mem, buffer ^ 1, x_regs, w_regs);
        __syncthreads();
        chain = next_chain, chunk = next;
    }
    if (chunks < CHAINS) /* the empty chains: one zero stands for all, it can only turn -0 into +0 */
#pragma unroll
        for (int i = 0; i < RT * RN; i++)
            sum[i / RN][i % RN] += 0.0f;
    tile_write<BT, BN, RT, RN>(out, sum, bias, shape, t0, m0);
}

/* ---- choice of kernel: by shape alone, and free, since all add in one order ------------------------------
 */

struct product {
    struct stream *stream;
    const char *op;
    float *out;
    const float *x;
    struct cuda_weight w;
    const float *bias;
    struct tile_shape shape;
};

template <int TYPE, int TB, int ROWS> static void run_gemv(const struct product *p)
{
    cuda_launch(p->stream, p->op, gemv<TYPE, TB, ROWS>, dim3(cuda_blocks(p->shape.M, GEMV_WARPS * ROWS)),
                dim3(32 * GEMV_WARPS), p->out, p->x, p->w, p->bias, (int)p->shape.T, p->shape.M, p->shape.K);
}

template <int TYPE, bool TRANSPOSED, int BT, int BN, int RT, int RN>
static void run_tile(const struct product *p)
{
    unsigned blocks = cuda_blocks(p->shape.T, BT) * cuda_blocks(p->shape.M, BN);
    cuda_launch(p->stream, p->op, tile<TYPE, TRANSPOSED, BT, BN, RT, RN>, dim3(blocks),
                dim3((BT / RT) * (BN / RN)), p->out, p->x, p->w, p->bias, p->shape);
}

template <int TYPE, bool TRANSPOSED> static void run_product(const struct product *p)
{
    int64_t T = p->shape.T;
    if (!TRANSPOSED && T <= GEMV_T_MAX) {
        if (T == 1)
            run_gemv<TYPE, 1, 2>(p);
        else if (T == 2)
            run_gemv<TYPE, 2, 4>(p);
        else if (T <= 4)
            run_gemv<TYPE, 4, 4>(p);
        else
            run_gemv<TYPE, 8, 4>(p);
        return;
    }
    /* Large tiles reuse more; small ones where large ones would leave multiprocessors idle. */
    int64_t large = (int64_t)cuda_blocks(T, 128) * cuda_blocks(p->shape.M, 128);
    if (large >= cuda_device_of(p->stream->device)->multiprocessors)
        run_tile<TYPE, TRANSPOSED, 128, 128, 8, 8>(p);
    else
        run_tile<TYPE, TRANSPOSED, 32, 64, 4, 4>(p);
}

template <bool TRANSPOSED> static void run_typed(const struct product *p, enum dtype type)
{
    if (p->shape.T == 0 || p->shape.M == 0)
        return;
    switch (type) {
    case DTYPE_F32:
        return run_product<DTYPE_F32, TRANSPOSED>(p);
    case DTYPE_F16:
        return run_product<DTYPE_F16, TRANSPOSED>(p);
    case DTYPE_BF16:
        return run_product<DTYPE_BF16, TRANSPOSED>(p);
    case DTYPE_Q8_0:
        return run_product<DTYPE_Q8_0, TRANSPOSED>(p);
    default:
        ASSERT(!"a weight of this type was never packed");
    }
}

void cuda_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count)
{
    for (const struct matmul_output *o = outputs; o < outputs + count; o++) {
        struct product p = {};
        p.stream = s;
        p.op = "matmul";
        p.out = (float *)o->out->data;
        p.x = (const float *)x->data;
        p.w = cuda_weight_view(o->w);
        p.bias = o->bias ? (const float *)o->bias->data : NULL;
        p.shape.T = x->dim[0];
        p.shape.M = o->w->stored.dim[0];
        p.shape.K = o->w->stored.dim[1];
        run_typed<false>(&p, o->w->stored.dtype);
    }
}

void cuda_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                            const struct weight *w)
{
    struct product p = {};
    p.stream = s;
    p.op = "matmul_transposed";
    p.out = (float *)dx->data;
    p.x = (const float *)dy->data;
    p.w = cuda_weight_view(w);
    p.shape.T = tensor_elements(dy) / w->stored.dim[0];
    p.shape.M = w->stored.dim[1];
    p.shape.K = w->stored.dim[0];
    run_typed<true>(&p, w->stored.dtype);
}

/* ---- pack ------------------------------------------------------------------------------------------------
 */

/* Q8_0 blocks -> numbers and scales. One thread a block, its 32 numbers as 16 pairs (blocks are 2-aligned).
 */
static __global__ void split_q8_0(uint8_t *elements, uint16_t *scales, const uint16_t *blocks, int64_t count)
{
    int64_t b = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= count)
        return;
    const uint16_t *from = blocks + b * (sizeof(struct block_q8_0) / 2);
    scales[b] = from[0];
    for (int i = 0; i < Q8_0_BLOCK / 2; i++)
        ((uint16_t *)(elements + b * Q8_0_BLOCK))[i] = from[1 + i];
}

static int pack_q8_0(uint8_t *packed, struct device *device, const struct tensor *host, struct err *err)
{
    int64_t blocks = host->dim[0] * host->dim[1] / Q8_0_BLOCK;
    int64_t at_once = REPACK_BYTES / sizeof(struct block_q8_0);
    uint16_t *scales = (uint16_t *)(packed + host->dim[0] * host->dim[1]);
    const struct block_q8_0 *from = (const struct block_q8_0 *)host->data;
    struct block_q8_0 *stage = NULL;
    struct stream *s = NULL;
    int rc = -1;
    at_once = at_once < blocks ? at_once : blocks;
    if (device->ops->stream_open(&s, device, err) < 0)
        return -1;
    stage = (struct block_q8_0 *)device->ops->alloc(device, (size_t)at_once * sizeof(*stage), err);
    if (!stage)
        goto out;
    for (int64_t b = 0; b < blocks; b += at_once) {
        int64_t n = blocks - b < at_once ? blocks - b : at_once;
        device->ops->upload(s, stage, from + b, (size_t)n * sizeof(*stage));
        cuda_launch(s, "weight_pack", split_q8_0, dim3(cuda_blocks(n, 256)), dim3(256),
                    packed + b * Q8_0_BLOCK, scales + b, (const uint16_t *)stage, n);
    }
    rc = device->ops->stream_sync(s, err);
out:
    device->ops->free(device, stage);
    device->ops->stream_close(s);
    return rc;
}

int cuda_pack(struct weight *out, struct device *device, const struct tensor *host,
              const struct weight_watch *watch, struct err *err)
{
    static_assert(sizeof(struct block_q8_0) == 34 && alignof(struct block_q8_0) == 2, "as in the file");
    size_t rows = (size_t)host->dim[0], columns = (size_t)host->dim[1], bytes;
    if (host->dtype != DTYPE_F32 && host->dtype != DTYPE_F16 && host->dtype != DTYPE_BF16 &&
        host->dtype != DTYPE_Q8_0)
        return err_set(err, "%s: no matmul for weights of type %s", device->name,
                       dtype_info(host->dtype)->name);
    size_t element = dtype_info(host->dtype)->block_bytes;
    size_t pitch = (columns + CUDA_CHUNK - 1) / CUDA_CHUNK * CUDA_CHUNK * element;
    bytes = host->dtype == DTYPE_Q8_0 ? rows * columns + rows * columns / Q8_0_BLOCK * 2 : rows * pitch;
    uint8_t *packed = (uint8_t *)device->ops->alloc(device, bytes, err);
    if (!packed)
        return -1;
    if (watch)
        watch->rows(watch->context, 0, host->dim[0], 0);
    if (host->dtype == DTYPE_Q8_0) {
        if (pack_q8_0(packed, device, host, err) < 0)
            goto fail;
    } else {
        cudaError_t rc = cudaMemcpy2D(packed, pitch, host->data, columns * element, columns * element, rows,
                                      cudaMemcpyHostToDevice);
        if (rc != cudaSuccess) {
            cuda_fail(err, "weight_pack: cudaMemcpy2D", rc);
            goto fail;
        }
    }
    out->stored = *host;
    out->stored.device = device;
    out->stored.data = packed;
    out->packed = packed;
    out->owned = true;
    return 0;
fail:
    device->ops->free(device, packed);
    return -1;
}
