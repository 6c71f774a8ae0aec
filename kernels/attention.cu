/* attention.cu: causal attention over paged or packed keys and values, the writing of pages and their moves,
 * on the GPU.
 *
 * Online softmax (Milakov & Gimelshein 2018): one block of threads makes one (row, head). It walks the
 * sequence in blocks of KEY_BLOCK positions that lie at absolute positions 0, 128, 256, ..., so that pages,
 * chunks and the other rows of the step do not show in the sums:
 *
 *   scores   thread j: scale * q . k[block + j], along D in ascending order
 *   weights  p[j] = exp(score - highest), highest of all blocks so far
 *   values   thread d: acc[d] = acc[d] * fade + p[0] v[0][d] + p[1] v[1][d] + ...   in ascending order */
#include "kernels/cuda.cuh"

#define KEY_BLOCK 128 /* also the threads of a block; part of the kernel set's arithmetic */
#define D_MAX     512
#define THREADS   256

struct view {
    const int32_t *row_begin, *positions, *slots, *page_table; /* page_table NULL: packed documents */
    int64_t sequences, slot_count, pages_per_sequence, page_count;
    int page_tokens;
};

static struct view view_of(const struct seq_view *v, int64_t page_count)
{
    struct view d = {};
    d.row_begin = (const int32_t *)v->row_begin.data;
    d.positions = (const int32_t *)v->positions.data;
    d.slots = (const int32_t *)v->slots.data;
    d.page_table = (const int32_t *)v->page_table.data;
    d.sequences = v->row_begin.dim[0] - 1;
    d.slot_count = d.page_table ? v->page_table.dim[0] : 0;
    d.pages_per_sequence = d.page_table ? v->page_table.dim[1] : 0;
    d.page_count = page_count;
    d.page_tokens = v->page_tokens;
    return d;
}

/* The last s with row_begin[s] <= t: sequences without rows are passed over. */
static __device__ inline int64_t sequence_of(const struct view &v, int64_t t)
{
    int64_t low = 0, high = v.sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (v.row_begin[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Row of a position in keys and values seen as [rows, G, D]. */
static __device__ inline int64_t row_of(const struct view &v, int64_t sequence, int64_t position)
{
    if (!v.page_table)
        return v.row_begin[sequence] + position;
    int64_t slot = v.slots[sequence], column = position / v.page_tokens;
    if (slot < 0 || slot >= v.slot_count || column >= v.pages_per_sequence)
        __trap();
    int64_t page = v.page_table[slot * v.pages_per_sequence + column];
    if (page < 0 || page >= v.page_count)
        __trap();
    return page * v.page_tokens + position % v.page_tokens;
}

/* ---- pages -----------------------------------------------------------------------------------------------
 */

template <bool HALF> static __device__ inline void put(void *pages, int64_t at, float value)
{
    if (HALF)
        ((uint16_t *)pages)[at] = __half_as_ushort(__float2half_rn(value));
    else
        ((float *)pages)[at] = value;
}

template <bool HALF> static __device__ inline float get(const void *pages, int64_t at)
{
    return HALF ? cuda_f16(((const uint16_t *)pages)[at]) : ((const float *)pages)[at];
}

template <bool HALF>
static __global__ void kv_store_kernel(void *k_pages, void *v_pages, const float *k, const float *v,
                                       struct view view, int64_t elements)
{
    int64_t t = blockIdx.x;
    int64_t row = row_of(view, sequence_of(view, t), view.positions[t]);
    for (int64_t i = threadIdx.x; i < elements; i += THREADS) {
        put<HALF>(k_pages, row * elements + i, k[t * elements + i]);
        put<HALF>(v_pages, row * elements + i, v[t * elements + i]);
    }
}

void cuda_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view)
{
    cuda_launch(s, "kv_store", k_pages->dtype == DTYPE_F16 ? kv_store_kernel<true> : kv_store_kernel<false>,
                dim3((unsigned)k->dim[0]), dim3(THREADS), k_pages->data, v_pages->data,
                (const float *)k->data, (const float *)v->data, view_of(view, k_pages->dim[0]),
                k->dim[1] * k->dim[2]);
}

/* A thread owns one word of every page and makes all moves of it in order: a later move may read what an
 * earlier one wrote, and no thread waits for another. */
template <class Word>
static __global__ void move_kernel(Word *pages, const int32_t *moves, int64_t count, int64_t words,
                                   int64_t page_count)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= words)
        return;
    for (int64_t m = 0; m < count; m++) {
        int64_t from = moves[2 * m], to = moves[2 * m + 1];
        if (to < 0 || to >= page_count || from >= page_count)
            __trap();
        pages[to * words + i] = from < 0 ? Word() : pages[from * words + i];
    }
}

template <class Word>
static void run_move(struct stream *s, struct tensor *pages, const struct tensor *moves, uint64_t page_bytes)
{
    int64_t words = (int64_t)(page_bytes / sizeof(Word));
    cuda_launch(s, "move_pages", move_kernel<Word>, dim3(cuda_blocks(words, THREADS)), dim3(THREADS),
                (Word *)pages->data, (const int32_t *)moves->data, moves->dim[0], words, pages->dim[0]);
}

void cuda_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves)
{
    uint64_t page_bytes = pages->dim[0] ? tensor_bytes(pages) / (uint64_t)pages->dim[0] : 0;
    if (page_bytes % sizeof(uint4) == 0)
        run_move<uint4>(s, pages, moves, page_bytes);
    else
        run_move<uint8_t>(s, pages, moves, page_bytes);
}

/* ---- attention -------------------------------------------------------------------------------------------
 */

struct attention_shape {
    int64_t H, G, D;
    struct attention_options options;
};

template <bool HALF>
static __global__ void __launch_bounds__(KEY_BLOCK)
    attention_kernel(float *out, const float *q, const void *k, const void *v, struct view view,
                     struct attention_shape shape)
{
    __shared__ float query[D_MAX], p[KEY_BLOCK], room[KEY_BLOCK];
    __shared__ int64_t at[KEY_BLOCK]; /* first element of each key of the block */
    int64_t t = blockIdx.x / shape.H, h = blockIdx.x % shape.H, g = h / (shape.H / shape.G), D = shape.D;
    int64_t sequence = sequence_of(view, t), last = view.positions[t];
    float highest = -INFINITY, sum = 0, acc[D_MAX / KEY_BLOCK] = {};
    for (int64_t d = threadIdx.x; d < D; d += KEY_BLOCK)
        query[d] = q[(t * shape.H + h) * D + d];
    __syncthreads();

    int64_t window = shape.options.window;
    int64_t oldest = window > 0 && window <= last ? last + 1 - window : 0; /* the first position seen */
    for (int64_t block = oldest / KEY_BLOCK * KEY_BLOCK; block <= last; block += KEY_BLOCK) {
        int n = last + 1 - block < KEY_BLOCK ? (int)(last + 1 - block) : KEY_BLOCK;
        int from = oldest > block ? (int)(oldest - block) : 0;
        float score = -INFINITY;
        if ((int)threadIdx.x >= from && (int)threadIdx.x < n) {
            int64_t key = (row_of(view, sequence, block + threadIdx.x) * shape.G + g) * D;
            float dot = 0;
            for (int64_t d = 0; d < D; d++)
                dot = fmaf(query[d], get<HALF>(k, key + d), dot);
            score = shape.options.scale * dot;
            if (shape.options.softcap > 0)
                score = shape.options.softcap * tanhf(score / shape.options.softcap);
            at[threadIdx.x] = key;
        }
        float now = fmaxf(highest, cuda_block_max<KEY_BLOCK>(room, score));
        float fade = expf(highest - now); /* 0 for the first block: exp(-infinity) */
        float weight = (int)threadIdx.x >= from && (int)threadIdx.x < n ? expf(score - now) : 0.0f;
        p[threadIdx.x] = weight;
        sum = sum * fade + cuda_block_sum<KEY_BLOCK>(room, weight); /* its barriers show p and at to all */
#pragma unroll
        for (int i = 0; i < D_MAX / KEY_BLOCK; i++) {
            int64_t d = threadIdx.x + i * KEY_BLOCK;
            if (d >= D)
                break;
            acc[i] *= fade;
            for (int j = from; j < n; j++)
                acc[i] = fmaf(p[j], get<HALF>(v, at[j] + d), acc[i]);
        }
        highest = now;
        __syncthreads(); /* p and at are written anew */
    }
#pragma unroll
    for (int i = 0; i < D_MAX / KEY_BLOCK; i++)
        if (threadIdx.x + i * KEY_BLOCK < D)
            out[(t * shape.H + h) * D + threadIdx.x + i * KEY_BLOCK] = acc[i] / sum;
}

void cuda_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options)
{
    struct attention_shape shape = {q->dim[1], k->dim[k->ndim - 2], q->dim[2], *options};
    ASSERT(shape.D <= D_MAX);
    cuda_launch(s, "attention", k->dtype == DTYPE_F16 ? attention_kernel<true> : attention_kernel<false>,
                dim3((unsigned)(q->dim[0] * shape.H)), dim3(KEY_BLOCK), (float *)out->data,
                (const float *)q->data, (const void *)k->data, (const void *)v->data,
                view_of(view, k->dim[0]), shape);
}
