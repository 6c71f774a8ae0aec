/* attention_avx512: the blocks of kernels/cpu/attention_blocks.h with AVX-512. Keys stand in lanes, so a
 * score needs no sum across lanes; twelve queries' softmaxes are computed side by side, so that none waits
 * for itself. */
#include "kernels/cpu/attention_blocks.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/fast.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx512_math.h"

#define TARGET   AVX512_TARGET
#define INLINE   AVX512_INLINE
#define GROUPS   (ATTENTION_KEYS / 16)
#define TOGETHER 6 /* queries multiplied side by side: 6 x 4 registers of sums */

/* cap * tanh(s / cap): tanh |x| = (1 - e) / (1 + e), e = exp(-2 |x|), with the sign of x. */
INLINE __m512 cap_ps(__m512 s, float cap)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    __m512 x = _mm512_div_ps(s, _mm512_set1_ps(cap));
    __m512 e = avx512_exp(_mm512_mul_ps(_mm512_andnot_ps(sign, x), _mm512_set1_ps(-2.0f)));
    __m512 t = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    return _mm512_mul_ps(_mm512_or_ps(t, _mm512_and_ps(x, sign)), _mm512_set1_ps(cap));
}

/* Up to sixteen elements of a key or value from element `at` on, zeros behind them; of Q8_0 `at` is a
 * multiple of 16: half a block. */
INLINE __m512 load_page(const enum dtype type, const void *data, int64_t at, __mmask16 there)
{
    if (type == DTYPE_F32)
        return _mm512_maskz_loadu_ps(there, (const float *)data + at);
    if (type == DTYPE_Q8_0) {
        const struct block_q8_0 *block = (const struct block_q8_0 *)data + at / Q8_0_BLOCK;
        __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(block->q + at % Q8_0_BLOCK));
        return _mm512_mul_ps(_mm512_set1_ps(_cvtsh_ss(block->scale)),
                             _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
    }
    __m256i half = _mm256_maskz_loadu_epi16(there, (const uint16_t *)data + at);
    if (type == DTYPE_BF16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    return _mm512_cvtph_ps(half);
}

/* The keys and values of a block for one KV head: kt[wide][64], v[64][wide]; keys behind the n are zero.
 * Between them the next block is asked for, piece by piece, so that it is on its way while this one is
 * computed. `type`, of both, is a constant where this is inlined. */
INLINE void load_block_of(const enum dtype type, const struct attention *a, const struct attention_keys *keys,
                          const struct attention_keys *next, const struct attention_room *room)
{
    const void *k = a->k->data, *v = a->v->data;
    int64_t parts = a->wide / 16 * GROUPS, part = 0, asked = 0;
    for (int64_t d = 0; d < a->D; d += 16) {
        __mmask16 there = avx512_first(a->D - d);
        for (int group = 0; group < GROUPS; group++) {
            __m512 row[16], column[16];
            for (part++; asked < next->n * part / parts; asked++) {
                attention_ask(type, k, next->at[asked], a->D);
                attention_ask(type, v, next->at[asked], a->D);
            }
            const int64_t *at = keys->at + group * 16;
            if (keys->n >= group * 16 + 16)
#pragma GCC unroll 16
                for (int j = 0; j < 16; j++)
                    row[j] = load_page(type, k, at[j] + d, there);
            else
                for (int j = 0; j < 16; j++)
                    row[j] =
                        group * 16 + j < keys->n ? load_page(type, k, at[j] + d, there) : _mm512_setzero_ps();
            avx512_turn(row, column);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                _mm512_store_ps(room->kt + (d + i) * ATTENTION_KEYS + group * 16, column[i]);
        }
        for (int j = 0; j < keys->n; j++)
            _mm512_store_ps(room->v + j * a->wide + d, load_page(type, v, keys->at[j] + d, there));
    }
}

#define LOAD(TYPE)                                                                                       \
    TARGET static void load_##TYPE(const struct attention *a, const struct attention_keys *keys,         \
                                   const struct attention_keys *next, const struct attention_room *room) \
    {                                                                                                    \
        load_block_of(DTYPE_##TYPE, a, keys, next, room);                                                \
    }
ATTENTION_TYPES(LOAD)

/* Scores of all keys of the block, into p, for queries [from, from + rows) of the batch. rows is a constant
 * where this is inlined. */
INLINE void score(const struct attention *a, struct attention_batch *b, const struct attention_room *room,
                  int from, const int rows)
{
    __m512 s[TOGETHER][GROUPS];
    const float *q = room->q + (b->first + from) * a->wide, *kt = room->kt;
    int64_t wide = a->wide, D = a->D;
    for (int i = 0; i < rows; i++)
        for (int group = 0; group < GROUPS; group++)
            s[i][group] = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d++) {
        __m512 k[GROUPS];
#pragma GCC unroll 4
        for (int group = 0; group < GROUPS; group++)
            k[group] = _mm512_load_ps(kt + d * ATTENTION_KEYS + group * 16);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(q[i * wide + d]);
#pragma GCC unroll 4
            for (int group = 0; group < GROUPS; group++)
                s[i][group] = _mm512_fmadd_ps(x, k[group], s[i][group]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int group = 0; group < GROUPS; group++)
            _mm512_storeu_ps(b->p[from + i] + 16 * group, s[i][group]);
}

/* Scores become cap * tanh(score / cap), and powers of two as the softmax wants them. */
TARGET static void cap_scores(struct attention_batch *b, int rows, float cap)
{
    for (int i = 0; i < rows; i++)
        for (int group = 0; group < GROUPS; group++) {
            float *at = b->p[i] + 16 * group;
            _mm512_storeu_ps(
                at, _mm512_mul_ps(cap_ps(_mm512_loadu_ps(at), cap), _mm512_set1_ps(ATTENTION_LOG2_E)));
        }
}

enum fold { FOLD_SUM, FOLD_HIGHEST };

INLINE __m512 join(__m512 a, __m512 b, const enum fold f)
{
    return f == FOLD_SUM ? _mm512_add_ps(a, b) : _mm512_max_ps(a, b);
}

/* Registers x[0 .. rows) folded, each onto its halves until one lane is left: lane i of the result is what
 * register i comes to. Each goes the same way, whichever it is and whatever stands beside it: from a step to
 * the next two share a register. rows and f are constants where this is inlined. */
INLINE __m512 fold(const __m512 *x, const int rows, const enum fold f)
{
    __m512 pair[8], four[4], eight[2];
    const int last = rows - 1;
#pragma GCC unroll 8
    for (int i = 0; i <= last / 2; i++) {
        __m512 a = x[2 * i], b = x[2 * i + 1 > last ? last : 2 * i + 1];
        pair[i] = join(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE), f);
    }
#pragma GCC unroll 4
    for (int i = 0; i <= last / 4; i++) {
        __m512 a = pair[2 * i], b = pair[2 * i + 1 > last / 2 ? last / 2 : 2 * i + 1];
        four[i] = join(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD), f);
    }
#pragma GCC unroll 2
    for (int i = 0; i <= last / 8; i++) {
        __m512 a = four[2 * i], b = four[2 * i + 1 > last / 4 ? last / 4 : 2 * i + 1];
        eight[i] = join(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE), f);
    }
    __m512 a = eight[0], b = eight[last / 8];
    __m512 all = join(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD), f);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                 all);
}

/* Lanes of keys [low, high) of a block, group after group. */
static uint64_t seen_of(const struct attention_batch *b, int i)
{
    return (b->high[i] == ATTENTION_KEYS ? ~0ull : (1ull << b->high[i]) - 1) & ~((1ull << b->low[i]) - 1);
}

/* Softmax of the batch's queries over their keys of the block, in place, and how much what was before fades.
 * whole: every query sees every key. rows and whole are constants where this is inlined. */
INLINE void soften(struct attention_batch *b, const struct attention_room *room, const int rows,
                   const bool whole)
{
    __m512 x[ATTENTION_BATCH];
    uint64_t seen[ATTENTION_BATCH];
    __mmask16 there = (__mmask16)((1u << rows) - 1);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        seen[i] = whole ? ~0ull : seen_of(b, i);
        x[i] = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 4
        for (int group = 0; group < GROUPS; group++)
            x[i] = _mm512_mask_max_ps(x[i], (__mmask16)(seen[i] >> 16 * group), x[i],
                                      _mm512_loadu_ps(b->p[i] + 16 * group));
    }
    __m512 before = _mm512_maskz_loadu_ps(there, room->highest + b->first);
    __m512 highest = _mm512_max_ps(before, fold(x, rows, FOLD_HIGHEST));
    __m512 fade = avx512_exp2(_mm512_sub_ps(before, highest));
    float most[16];
    _mm512_storeu_ps(most, highest);
    _mm512_storeu_ps(b->fade, fade);
    _mm512_mask_storeu_ps(room->highest + b->first, there, highest);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        __m512 e[GROUPS], own = _mm512_set1_ps(most[i]);
#pragma GCC unroll 4
        for (int group = 0; group < GROUPS; group++) {
            e[group] = avx512_exp2(_mm512_sub_ps(_mm512_loadu_ps(b->p[i] + 16 * group), own));
            e[group] = _mm512_maskz_mov_ps((__mmask16)(seen[i] >> 16 * group), e[group]);
            _mm512_storeu_ps(b->p[i] + 16 * group, e[group]);
        }
        x[i] = _mm512_add_ps(_mm512_add_ps(e[0], e[1]), _mm512_add_ps(e[2], e[3]));
    }
    __m512 sum = _mm512_maskz_loadu_ps(there, room->sum + b->first);
    _mm512_mask_storeu_ps(room->sum + b->first, there, _mm512_fmadd_ps(sum, fade, fold(x, rows, FOLD_SUM)));
}

/* acc[..] = acc * fade + sum of p[j] * v[j], j ascending in [low, high), for `registers` registers and
 * queries [from, from + rows) of the batch. rows and registers are constants where this is inlined. */
INLINE void blend(const struct attention_batch *b, float *acc, const float *v, int64_t wide, int from,
                  int low, int high, const int rows, const int registers)
{
    __m512 sum[TOGETHER][4];
    const float(*p)[ATTENTION_KEYS] = b->p + from;
    acc += (b->first + from) * wide;
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            sum[i][r] =
                _mm512_mul_ps(_mm512_load_ps(acc + i * wide + 16 * r), _mm512_set1_ps(b->fade[from + i]));
    for (int j = low; j < high; j++) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int r = 0; r < registers; r++)
            value[r] = _mm512_load_ps(v + j * wide + 16 * r);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512 weight = _mm512_set1_ps(p[i][j]);
#pragma GCC unroll 4
            for (int r = 0; r < registers; r++)
                sum[i][r] = _mm512_fmadd_ps(weight, value[r], sum[i][r]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            _mm512_store_ps(acc + i * wide + 16 * r, sum[i][r]);
}

/* The same for all of a head. */
INLINE void blend_wide(const struct attention_batch *b, const struct attention_room *room, int64_t wide,
                       int from, int low, int high, const int rows)
{
    int64_t d = 0;
    for (; d + 64 <= wide; d += 64)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, 4);
    for (; d < wide; d += 16)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, 1);
}

/* One query alone over keys [low, high); its fading is then done. */
TARGET static void blend_one(struct attention_batch *b, const struct attention_room *room, int64_t wide,
                             int i, int low, int high)
{
    blend_wide(b, room, wide, i, low, high, 1);
    b->fade[i] = 1;
}

/* Queries [from, from + rows) of a batch of which not all see every key: what all see goes together, each
 * one's rest before and behind it alone. */
INLINE void blend_parts(struct attention_batch *b, const struct attention_room *room, int64_t wide, int from,
                        const int rows)
{
    int low = 0, high = ATTENTION_KEYS;
    for (int i = from; i < from + rows; i++) {
        low = b->low[i] > low ? b->low[i] : low;
        high = b->high[i] < high ? b->high[i] : high;
    }
    high = high < low ? low : high;
    for (int i = from; i < from + rows; i++)
        if (b->low[i] < low)
            blend_one(b, room, wide, i, b->low[i], low < b->high[i] ? low : b->high[i]);
    if (low < high)
        blend_wide(b, room, wide, from, low, high, rows);
    for (int i = from; i < from + rows && low < high; i++)
        b->fade[i] = 1;
    for (int i = from; i < from + rows; i++)
        if (b->high[i] > high)
            blend_one(b, room, wide, i, high, b->high[i]);
}

INLINE void batch_of(const struct attention *a, struct attention_batch *b, const struct attention_room *room,
                     const int rows, const bool whole)
{
    const int together = rows > TOGETHER ? rows / 2 : rows;
    for (int from = 0; from < rows; from += together)
        score(a, b, room, from, together);
    if (a->options.softcap > 0)
        cap_scores(b, rows, a->options.softcap);
    soften(b, room, rows, whole);
    for (int from = 0; from < rows; from += together)
        if (whole)
            blend_wide(b, room, a->wide, from, 0, ATTENTION_KEYS, together);
        else
            blend_parts(b, room, a->wide, from, together);
}

/* One function for each number of queries: the sums of each live in registers. */
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
BATCH(1)
BATCH(2)
BATCH(4)
BATCH(8)
BATCH(12)

/* The queries of an item as the scores want them, and their softmaxes at the start. */
TARGET static void begin_item(const struct attention *a, const struct attention_item *it, int64_t g,
                              const struct attention_room *room)
{
    float scale = a->options.softcap > 0 ? a->options.scale : a->options.scale * ATTENTION_LOG2_E;
    for (int64_t i = 0; i < it->rows * a->heads; i++) {
        const float *q = a->q + ((it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        room->highest[i] = -INFINITY;
        room->sum[i] = 0;
        for (int64_t d = 0; d < a->D; d += 16) {
            __m512 x = _mm512_maskz_loadu_ps(avx512_first(a->D - d), q + d);
            _mm512_store_ps(room->q + i * a->wide + d, _mm512_mul_ps(x, _mm512_set1_ps(scale)));
            _mm512_store_ps(room->acc + i * a->wide + d, _mm512_setzero_ps());
        }
    }
}

TARGET static void finish_item(const struct attention *a, const struct attention_item *it, int64_t g,
                               const struct attention_room *room)
{
    for (int64_t i = 0; i < it->rows * a->heads; i++) {
        float *out = a->out + ((it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        __m512 inverse = _mm512_set1_ps(1.0f / room->sum[i]);
        for (int64_t d = 0; d < a->D; d += 16)
            _mm512_mask_storeu_ps(out + d, avx512_first(a->D - d),
                                  _mm512_mul_ps(_mm512_load_ps(room->acc + i * a->wide + d), inverse));
    }
}

static const struct attention_set SET = {.begin = begin_item,
                                         .load = {ATTENTION_TYPES(ATTENTION_LOAD)},
                                         .finish = finish_item,
                                         .batches = {{12, whole_12, parts_12},
                                                     {8, whole_8, parts_8},
                                                     {4, whole_4, parts_4},
                                                     {2, whole_2, parts_2},
                                                     {1, whole_1, parts_1}}};

void fast_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options)
{
    attention_run(s, out, q, k, v, view, options, &SET);
}
#endif
