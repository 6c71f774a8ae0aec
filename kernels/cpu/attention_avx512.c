/* attention_avx512: causal attention over pages with AVX-512. Sixteen keys of a block stand in the sixteen
 * lanes of a register, so a score needs no sum across lanes:
 *
 *   block of 16 keys, turned:  kt[D][16]      scores[16] of a query = sum over d, ascending, of q[d] * kt[d]
 *   online softmax over the block, then       acc[D] = acc * fade + sum over keys, ascending, of p[key] *
 * v[key]
 *
 * Blocks lie at absolute positions 0, 16, 32, ...; the turned keys serve all query heads of a KV head and all
 * rows of an item. Every query has sums of its own in one written order: items, chunks, pages and threads do
 * not show. Keys behind a row's position are neither added nor, behind the sequence's last row here, read. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <string.h>

#ifdef CPU_HAS_FAST
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define INLINE \
    static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))

#define KEYS      16 /* of a block: the lanes of a register */
#define ITEM_ROWS 8  /* rows of a sequence that share the turned keys */
#define MAX_HEAD  256
#define TOGETHER  8 /* queries scored side by side */

struct item {
    int32_t sequence, row, rows;
};

struct attention {
    struct team *team;
    const struct tensor *k, *v;
    const float *q;
    float *out;
    const struct seq_view *view;
    const struct item *items;
    float scale;
    int64_t H, G, D, heads; /* heads: query heads of a KV head */
};

/* exp(x) for x <= 0, NaN kept: 2^n * P(r), |r| <= ln2 / 2, Taylor to degree 6; error below 2 units of the
 * last place. */
INLINE __m512 exp_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* The sum of sixteen lanes: halves onto halves, as in lanes.h. */
INLINE float fold_ps(__m512 x)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* Sixteen elements of a key or value from position `at` on, a multiple of 16: half a block of Q8_0. */
INLINE __m512 load_page(enum dtype type, const void *data, int64_t at)
{
    if (type == DTYPE_F32)
        return _mm512_loadu_ps((const float *)data + at);
    if (type == DTYPE_BF16) {
        const __m256i *from = (const void *)((const uint16_t *)data + at);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16));
    }
    if (type == DTYPE_Q8_0) {
        const struct block_q8_0 *block = (const struct block_q8_0 *)data + at / Q8_0_BLOCK;
        __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(block->q + at % Q8_0_BLOCK));
        return _mm512_mul_ps(_mm512_set1_ps(_cvtsh_ss(block->scale)),
                             _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
    }
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)data + at)));
}

/* to[16][16] = from[16]^T */
INLINE void turn(__m512 row[16], float *to)
{
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            __m512d low = _mm512_castps_pd(a[i + h]), high = _mm512_castps_pd(a[i + h + 2]);
            b[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int i = 0; i < 4; i++) {
        __m512 p = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), q = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
        __m512 r = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88),
               s = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
        _mm512_store_ps(to + 16 * i, _mm512_shuffle_f32x4(p, r, 0x88));
        _mm512_store_ps(to + 16 * (i + 4), _mm512_shuffle_f32x4(q, s, 0x88));
        _mm512_store_ps(to + 16 * (i + 8), _mm512_shuffle_f32x4(p, r, 0xDD));
        _mm512_store_ps(to + 16 * (i + 12), _mm512_shuffle_f32x4(q, s, 0xDD));
    }
}

/* The keys and values of one block for one KV head: kt[D][16], v[16][D]; keys from n on are zero. */
TARGET static void load_block(const struct attention *a, const struct item *it, int64_t g, int64_t block,
                              int n, float *kt, float *v)
{
    const struct seq_view *view = a->view;
    int64_t at[KEYS];
    const int32_t *table =
        (const int32_t *)view->page_table.data +
        (int64_t)((const int32_t *)view->slots.data)[it->sequence] * view->page_table.dim[1];
    for (int j = 0; j < n; j++) {
        int64_t position = block * KEYS + j, page = table[position / view->page_tokens];
        ASSERT(page >= 0 && page < a->k->dim[0]);
        at[j] = ((page * view->page_tokens + position % view->page_tokens) * a->G + g) * a->D;
    }
    for (int64_t d = 0; d < a->D; d += 16) {
        __m512 row[16];
        for (int j = 0; j < KEYS; j++)
            row[j] = j < n ? load_page(a->k->dtype, a->k->data, at[j] + d) : _mm512_setzero_ps();
        turn(row, kt + d * KEYS);
        for (int j = 0; j < n; j++)
            _mm512_store_ps(v + j * a->D + d, load_page(a->v->dtype, a->v->data, at[j] + d));
    }
}

/* What a query keeps between blocks. */
struct state {
    float highest, sum;
};

/* Scores of `count` queries (at most TOGETHER; constant where inlined) with the sixteen keys. */
INLINE void score(const float *const *q, const float *kt, int64_t D, __m512 *out, const int count)
{
    __m512 s[TOGETHER];
    for (int i = 0; i < count; i++)
        s[i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d++) {
        __m512 k = _mm512_load_ps(kt + d * KEYS);
#pragma GCC unroll 8
        for (int i = 0; i < count; i++)
            s[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d]), k, s[i]);
    }
    for (int i = 0; i < count; i++)
        out[i] = s[i];
}

/* Softmax of one query over its first `valid` keys of the block; p[16] and how much what was before fades. */
TARGET static float soften(struct state *state, __m512 s, float scale, int valid, float *p)
{
    __mmask16 mask = (__mmask16)((1u << valid) - 1);
    s = _mm512_mul_ps(s, _mm512_set1_ps(scale));
    float most = _mm512_mask_reduce_max_ps(mask, s);
    float highest = most > state->highest ? most : state->highest;
    __m512 e = _mm512_maskz_mov_ps(mask, exp_ps(_mm512_sub_ps(s, _mm512_set1_ps(highest))));
    float fade = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(state->highest - highest)));
    state->sum = state->sum * fade + fold_ps(e);
    state->highest = highest;
    _mm512_storeu_ps(p, e);
    return fade;
}

/* acc[D] = acc * fade + sum of p[j] * v[j], j < valid ascending. */
TARGET static void blend(float *acc, float fade, const float *p, const float *v, int valid, int64_t D)
{
    for (int64_t d = 0; d < D; d += 64) {
        int registers = D - d >= 64 ? 4 : (int)(D - d) / 16;
        __m512 sum[4];
        for (int r = 0; r < registers; r++)
            sum[r] = _mm512_mul_ps(_mm512_load_ps(acc + d + 16 * r), _mm512_set1_ps(fade));
        if (registers == 4) {
            for (int j = 0; j < valid; j++) {
                __m512 weight = _mm512_set1_ps(p[j]);
                for (int r = 0; r < 4; r++)
                    sum[r] = _mm512_fmadd_ps(weight, _mm512_load_ps(v + j * D + d + 16 * r), sum[r]);
            }
        } else {
            for (int j = 0; j < valid; j++)
                for (int r = 0; r < registers; r++)
                    sum[r] =
                        _mm512_fmadd_ps(_mm512_set1_ps(p[j]), _mm512_load_ps(v + j * D + d + 16 * r), sum[r]);
        }
        for (int r = 0; r < registers; r++)
            _mm512_store_ps(acc + d + 16 * r, sum[r]);
    }
}

/* All queries of an item against one block; those whose row lies before the block are left out. */
TARGET static void attend_block(const struct attention *a, const struct item *it, int64_t g, int64_t block,
                                const float *kt, const float *v, struct state *state, float *acc)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    const float *q[TOGETHER];
    int index[TOGETHER], pending = 0, queries = it->rows * (int)a->heads;
    for (int i = 0; i <= queries; i++) {
        bool over = i == queries;
        if (!over && positions[i / a->heads] >= block * KEYS) {
            q[pending] =
                a->q + ((int64_t)(it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
            index[pending++] = i;
        }
        if (pending == 0 || (pending < TOGETHER && !over))
            continue;
        __m512 s[TOGETHER];
        if (pending == TOGETHER)
            score(q, kt, a->D, s, TOGETHER);
        else
            for (int k = 0; k < pending; k++)
                score(q + k, kt, a->D, s + k, 1);
        for (int k = 0; k < pending; k++) {
            float p[KEYS];
            int64_t left = positions[index[k] / a->heads] + 1 - block * KEYS;
            int valid = left < KEYS ? (int)left : KEYS;
            float fade = soften(&state[index[k]], s[k], a->scale, valid, p);
            blend(acc + index[k] * a->D, fade, p, v, valid, a->D);
        }
        pending = 0;
    }
}

TARGET static void finish(const struct attention *a, const struct item *it, int64_t g,
                          const struct state *state, const float *acc)
{
    for (int i = 0; i < it->rows * (int)a->heads; i++) {
        float *out = a->out + ((int64_t)(it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        __m512 inverse = _mm512_set1_ps(1.0f / state[i].sum);
        for (int64_t d = 0; d < a->D; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_load_ps(acc + i * a->D + d), inverse));
    }
}

static void attention_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct attention *a = context;
    int64_t queries = ITEM_ROWS * a->heads;
    size_t floats = (size_t)(2 * KEYS * a->D + queries * a->D);
    float *kt =
        team_scratch(a->team, member, floats * sizeof(float) + (size_t)queries * sizeof(struct state));
    float *v = kt + KEYS * a->D, *acc = v + KEYS * a->D;
    struct state *state = (struct state *)(void *)(acc + queries * a->D);
    for (int64_t i = begin; i < end; i++) {
        const struct item *it = &a->items[i / a->G];
        int64_t g = i % a->G, last = ((const int32_t *)a->view->positions.data)[it->row + it->rows - 1];
        memset(acc, 0, (size_t)(it->rows * a->heads * a->D) * sizeof(float));
        for (int64_t k = 0; k < it->rows * a->heads; k++)
            state[k] = (struct state){.highest = -INFINITY};
        for (int64_t block = 0; block * KEYS <= last; block++) {
            int64_t left = last + 1 - block * KEYS;
            load_block(a, it, g, block, left < KEYS ? (int)left : KEYS, kt, v);
            attend_block(a, it, g, block, kt, v, state, acc);
        }
        finish(a, it, g, state, acc);
    }
}

/* Cuts every sequence's rows into items. Positions of a sequence's rows ascend. */
static int64_t cut_items(const struct seq_view *view, struct item *items)
{
    const int32_t *begin = view->row_begin.data;
    int64_t count = 0;
    for (int32_t s = 0; s + 1 < view->row_begin.dim[0]; s++)
        for (int32_t row = begin[s]; row < begin[s + 1]; row += ITEM_ROWS) {
            int32_t left = begin[s + 1] - row;
            items[count++] = (struct item){s, row, left < ITEM_ROWS ? left : ITEM_ROWS};
        }
    return count;
}

void fast_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options)
{
    int64_t D = q->dim[2];
    if (!view->page_table.data || options->softcap > 0 || options->window > 0 || D % 16 || D > MAX_HEAD) {
        cpu_attention(s, out, q, k, v, view, options);
        return;
    }
    int64_t T = q->dim[0], S = view->slots.dim[0];
    struct item *items = cpu_stream_scratch(s, (size_t)(T / ITEM_ROWS + S + 1) * sizeof(*items));
    struct attention a = {.team = cpu_team(s),
                          .k = k,
                          .v = v,
                          .q = q->data,
                          .out = out->data,
                          .view = view,
                          .items = items,
                          .scale = options->scale,
                          .H = q->dim[1],
                          .G = k->dim[2],
                          .D = D};
    a.heads = a.H / a.G;
    team_for(a.team, cut_items(view, items) * a.G, 1, attention_body, &a);
}
#endif
