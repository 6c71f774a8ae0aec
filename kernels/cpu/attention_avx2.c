/* attention_avx2: the blocks of kernels/cpu/attention_blocks.h with AVX2, FMA and F16C. Keys stand in lanes,
 * so a score needs no sum across lanes; three queries by half a block of keys, or by 32 elements of values,
 * fill the twelve registers of sums. */
#include "kernels/cpu/attention_blocks.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/fast.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx2.h"

#define TARGET   AVX2_TARGET
#define INLINE   AVX2_INLINE
#define GROUPS   (ATTENTION_KEYS / AVX2_LANES)
#define TOGETHER 3         /* queries multiplied side by side */
#define ACROSS   4         /* registers of each */
#define LEAST_2  (-126.0f) /* 2^x is a normal number from here on */

/* ---- functions of eight floats, with the operations and the order of avx512_math.h */

/* p * 2^n, n whole from -126 to 0. */
INLINE __m256 scale_2(__m256 p, __m256 n)
{
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(bits));
}

/* x - floor(x), rounded down, as VREDUCEPS does with the rounding that finds the floor. Rounded to nearest it
 * is too large where its sum with the floor, which is exact, is more than x: then it is not 0, and the number
 * below it has bits less by one. */
INLINE __m256 fraction_ps(__m256 x, __m256 whole)
{
    __m256 r = _mm256_sub_ps(x, whole);
    __m256 above = _mm256_cmp_ps(_mm256_add_ps(r, whole), x, _CMP_GT_OQ);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(r), _mm256_castps_si256(above)));
}

/* 2^x for x <= 0. */
INLINE __m256 exp2_ps(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(LEAST_2), x);
    __m256 whole = _mm256_floor_ps(x), r = fraction_ps(x, whole);
    __m256 p = _mm256_set1_ps(0x1.c54174p-13f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.46d64ep-10f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.3d0b92p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.c68912p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.ebfd58p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.62e42cp-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return scale_2(p, whole);
}

/* exp(x) for x <= 0 where it is added to one: what lies below the least normal number is as good as any. */
INLINE __m256 exp_beside_one(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return scale_2(p, _mm256_max_ps(_mm256_set1_ps(LEAST_2), n));
}

/* cap * tanh(s / cap): tanh |x| = (1 - e) / (1 + e), e = exp(-2 |x|), with the sign of x. */
INLINE __m256 cap_ps(__m256 s, float cap)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    __m256 x = _mm256_div_ps(s, _mm256_set1_ps(cap));
    __m256 e = exp_beside_one(_mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(-2.0f)));
    __m256 t = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    return _mm256_mul_ps(_mm256_or_ps(t, _mm256_and_ps(x, sign)), _mm256_set1_ps(cap));
}

/* ---- a block's keys and values */

/* `count` elements (at most eight) of a key or value from element `at` on, zeros behind them; of Q8_0 `at` is
 * a multiple of eight. */
INLINE __m256 load_page(const enum dtype type, const void *data, int64_t at, int64_t count)
{
    if (type == DTYPE_F32)
        return _mm256_maskload_ps((const float *)data + at, avx2_first(count));
    if (type == DTYPE_Q8_0) {
        const struct block_q8_0 *block = (const struct block_q8_0 *)data + at / Q8_0_BLOCK;
        __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)(block->q + at % Q8_0_BLOCK));
        return _mm256_mul_ps(_mm256_set1_ps(_cvtsh_ss(block->scale)),
                             _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)));
    }
    uint16_t some[AVX2_LANES] = {0};
    const uint16_t *from = (const uint16_t *)data + at;
    if (count < AVX2_LANES) { /* what lies behind is another's, or nobody's */
        memcpy(some, from, (size_t)(count > 0 ? count : 0) * sizeof(*from));
        from = some;
    }
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)from);
    if (type == DTYPE_BF16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    return _mm256_cvtph_ps(half);
}

/* Eight registers of eight lanes turned. */
INLINE void turn(const __m256 row[8], __m256 to[8])
{
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            b[i + 2 * h] = _mm256_shuffle_ps(a[i + h], a[i + h + 2], 0x44);
            b[i + 2 * h + 1] = _mm256_shuffle_ps(a[i + h], a[i + h + 2], 0xEE);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        to[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        to[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* Between the pieces the next block is asked for, so that it is on its way while this one is computed.
 * `type`, of both, is a constant where this is inlined. */
INLINE void load_block_of(const enum dtype type, const struct attention *a, const struct attention_keys *keys,
                          const struct attention_keys *next, const struct attention_room *room)
{
    const void *k = a->k->data, *v = a->v->data;
    int64_t parts = a->wide / AVX2_LANES * GROUPS, part = 0, asked = 0;
    for (int64_t d = 0; d < a->wide; d += AVX2_LANES) {
        int64_t count = a->D - d < AVX2_LANES ? a->D - d : AVX2_LANES;
        for (int group = 0; group < GROUPS; group++) {
            __m256 row[8], column[8];
            for (part++; asked < next->n * part / parts; asked++) {
                attention_ask(type, k, next->at[asked], a->D);
                attention_ask(type, v, next->at[asked], a->D);
            }
            for (int j = 0; j < 8; j++)
                row[j] = count > 0 && group * 8 + j < keys->n
                             ? load_page(type, k, keys->at[group * 8 + j] + d, count)
                             : _mm256_setzero_ps();
            turn(row, column);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                _mm256_storeu_ps(room->kt + (d + i) * ATTENTION_KEYS + group * 8, column[i]);
        }
        for (int j = 0; j < keys->n; j++)
            _mm256_storeu_ps(room->v + j * a->wide + d,
                             count > 0 ? load_page(type, v, keys->at[j] + d, count) : _mm256_setzero_ps());
    }
}

#define LOAD(TYPE)                                                                                       \
    TARGET static void load_##TYPE(const struct attention *a, const struct attention_keys *keys,         \
                                   const struct attention_keys *next, const struct attention_room *room) \
    {                                                                                                    \
        load_block_of(DTYPE_##TYPE, a, keys, next, room);                                                \
    }
ATTENTION_TYPES(LOAD)

/* ---- a block by queries */

/* Scores of all keys of the block, into p, for queries [from, from + rows) of the batch. rows is a constant
 * where this is inlined. */
INLINE void score(const struct attention *a, struct attention_batch *b, const struct attention_room *room,
                  int from, const int rows)
{
    const float *q = room->q + (b->first + from) * a->wide;
    for (int key = 0; key < ATTENTION_KEYS; key += ACROSS * AVX2_LANES) {
        __m256 s[TOGETHER][ACROSS];
        for (int i = 0; i < rows; i++)
            for (int r = 0; r < ACROSS; r++)
                s[i][r] = _mm256_setzero_ps();
        for (int64_t d = 0; d < a->D; d++) {
            const float *k = room->kt + d * ATTENTION_KEYS + key;
#pragma GCC unroll 3
            for (int i = 0; i < rows; i++) {
                __m256 x = _mm256_set1_ps(q[i * a->wide + d]);
#pragma GCC unroll 4
                for (int r = 0; r < ACROSS; r++)
                    s[i][r] = _mm256_fmadd_ps(x, _mm256_loadu_ps(k + r * AVX2_LANES), s[i][r]);
            }
        }
        for (int i = 0; i < rows; i++)
            for (int r = 0; r < ACROSS; r++)
                _mm256_storeu_ps(b->p[from + i] + key + r * AVX2_LANES, s[i][r]);
    }
}

/* Scores become cap * tanh(score / cap), and powers of two as the softmax wants them. */
TARGET static void cap_scores(struct attention_batch *b, int rows, float cap)
{
    for (int i = 0; i < rows; i++)
        for (int key = 0; key < ATTENTION_KEYS; key += AVX2_LANES) {
            float *at = b->p[i] + key;
            _mm256_storeu_ps(
                at, _mm256_mul_ps(cap_ps(_mm256_loadu_ps(at), cap), _mm256_set1_ps(ATTENTION_LOG2_E)));
        }
}

/* Sixteen lanes onto their halves, until one is left. */
INLINE float sum_16(__m256 low, __m256 high)
{
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

INLINE float highest_8(__m256 x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Lanes of the keys [low, high) among the eight from `key` on. */
INLINE __m256 seen_of(const struct attention_batch *b, int i, int key)
{
    __m256i before = avx2_first(b->low[i] - key), upto = avx2_first(b->high[i] - key);
    return _mm256_castsi256_ps(_mm256_andnot_si256(before, upto));
}

/* Softmax of query i of the batch over its keys of the block, in place, and how much what was before fades.
 * whole: it sees every key. */
INLINE void soften(struct attention_batch *b, const struct attention_room *room, int i, const bool whole)
{
    float *p = b->p[i], *highest = room->highest + b->first + i, *sum = room->sum + b->first + i;
    __m256 most = _mm256_set1_ps(-INFINITY), e[GROUPS];
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        __m256 x = _mm256_loadu_ps(p + g * AVX2_LANES);
        if (!whole)
            x = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x, seen_of(b, i, g * AVX2_LANES));
        most = _mm256_max_ps(most, x);
    }
    float before = *highest, found = highest_8(most), own = before > found ? before : found;
    b->fade[i] = _mm256_cvtss_f32(exp2_ps(_mm256_set1_ps(before - own)));
    *highest = own;
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        e[g] = exp2_ps(_mm256_sub_ps(_mm256_loadu_ps(p + g * AVX2_LANES), _mm256_set1_ps(own)));
        if (!whole)
            e[g] = _mm256_and_ps(e[g], seen_of(b, i, g * AVX2_LANES));
        _mm256_storeu_ps(p + g * AVX2_LANES, e[g]);
    }
    float all = sum_16(_mm256_add_ps(_mm256_add_ps(e[0], e[2]), _mm256_add_ps(e[4], e[6])),
                       _mm256_add_ps(_mm256_add_ps(e[1], e[3]), _mm256_add_ps(e[5], e[7])));
    *sum = fmaf(*sum, b->fade[i], all);
}

/* acc[..] = acc * fade + sum of p[j] * v[j], j ascending in [low, high), for `registers` registers and
 * queries [from, from + rows) of the batch. rows and registers are constants where this is inlined. */
INLINE void blend(const struct attention_batch *b, float *acc, const float *v, int64_t wide, int from,
                  int low, int high, const int rows, const int registers)
{
    __m256 sum[TOGETHER][ACROSS];
    acc += (b->first + from) * wide;
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            sum[i][r] = _mm256_mul_ps(_mm256_loadu_ps(acc + i * wide + r * AVX2_LANES),
                                      _mm256_set1_ps(b->fade[from + i]));
    for (int j = low; j < high; j++)
#pragma GCC unroll 3
        for (int i = 0; i < rows; i++) {
            __m256 weight = _mm256_set1_ps(b->p[from + i][j]);
#pragma GCC unroll 4
            for (int r = 0; r < registers; r++)
                sum[i][r] =
                    _mm256_fmadd_ps(weight, _mm256_loadu_ps(v + j * wide + r * AVX2_LANES), sum[i][r]);
        }
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            _mm256_storeu_ps(acc + i * wide + r * AVX2_LANES, sum[i][r]);
}

/* The same for all of a head. */
INLINE void blend_wide(const struct attention_batch *b, const struct attention_room *room, int64_t wide,
                       int from, int low, int high, const int rows)
{
    int64_t d = 0;
    for (; d + ACROSS * AVX2_LANES <= wide; d += ACROSS * AVX2_LANES)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, ACROSS);
    for (; d < wide; d += AVX2_LANES)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, 1);
}

INLINE void batch_of(const struct attention *a, struct attention_batch *b, const struct attention_room *room,
                     const int rows, const bool whole)
{
    const int together = rows < TOGETHER ? rows : TOGETHER;
    for (int from = 0; from < rows; from += together)
        score(a, b, room, from, together);
    if (a->options.softcap > 0)
        cap_scores(b, rows, a->options.softcap);
    for (int i = 0; i < rows; i++)
        soften(b, room, i, whole);
    if (whole)
        for (int from = 0; from < rows; from += together)
            blend_wide(b, room, a->wide, from, 0, ATTENTION_KEYS, together);
    else
        for (int i = 0; i < rows; i++)
            blend_wide(b, room, a->wide, i, b->low[i], b->high[i], 1);
}

#define BATCH(ROWS)                                                                       \
    TARGET static void whole_##ROWS(const struct attention *a, struct attention_batch *b, \
                                    const struct attention_room *room)                    \
    {                                                                                     \
        batch_of(a, b, room, ROWS, true);                                                 \
    }                                                                                     \
    TARGET static void parts_##ROWS(const struct attention *a, struct attention_batch *b, \
                                    const struct attention_room *room)                    \
    {                                                                                     \
        batch_of(a, b, room, ROWS, false);                                                \
    }
BATCH(12)
BATCH(6)
BATCH(3)
BATCH(2)
BATCH(1)

/* ---- items */

TARGET static void begin_item(const struct attention *a, const struct attention_item *it, int64_t g,
                              const struct attention_room *room)
{
    float scale = a->options.softcap > 0 ? a->options.scale : a->options.scale * ATTENTION_LOG2_E;
    for (int64_t i = 0; i < it->rows * a->heads; i++) {
        const float *q = a->q + ((it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        room->highest[i] = -INFINITY;
        room->sum[i] = 0;
        for (int64_t d = 0; d < a->wide; d += AVX2_LANES) {
            __m256 x = d < a->D ? _mm256_maskload_ps(q + d, avx2_first(a->D - d)) : _mm256_setzero_ps();
            _mm256_storeu_ps(room->q + i * a->wide + d, _mm256_mul_ps(x, _mm256_set1_ps(scale)));
            _mm256_storeu_ps(room->acc + i * a->wide + d, _mm256_setzero_ps());
        }
    }
}

TARGET static void finish_item(const struct attention *a, const struct attention_item *it, int64_t g,
                               const struct attention_room *room)
{
    for (int64_t i = 0; i < it->rows * a->heads; i++) {
        float *out = a->out + ((it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        __m256 inverse = _mm256_set1_ps(1.0f / room->sum[i]);
        for (int64_t d = 0; d < a->D; d += AVX2_LANES)
            _mm256_maskstore_ps(out + d, avx2_first(a->D - d),
                                _mm256_mul_ps(_mm256_loadu_ps(room->acc + i * a->wide + d), inverse));
    }
}

static const struct attention_set SET = {.begin = begin_item,
                                         .load = {ATTENTION_TYPES(ATTENTION_LOAD)},
                                         .finish = finish_item,
                                         .batches = {{12, whole_12, parts_12},
                                                     {6, whole_6, parts_6},
                                                     {3, whole_3, parts_3},
                                                     {2, whole_2, parts_2},
                                                     {1, whole_1, parts_1}}};

void avx2_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options)
{
    attention_run(s, out, q, k, v, view, options, &SET);
}
#endif
