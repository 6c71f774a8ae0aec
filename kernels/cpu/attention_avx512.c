/* attention_avx512: causal attention over pages or packed documents with AVX-512. Keys stand in lanes, so a
 * score needs no sum across lanes; queries that see the same keys are computed together, as in a matrix
 * product:
 *
 *   block of 64 keys, turned: kt[D][64]       score[64] of a query = sum over d, ascending, of q[d] * kt[d]
 *   online softmax over the block, then       acc[D] = acc * fade + sum over keys, ascending, of p[key] *
 *                                             v[key]
 *
 * Blocks lie at absolute positions 0, 64, 128, ...; the turned keys serve all query heads of a KV head and
 * all rows of an item. Every query has sums of its own in one written order: items, chunks, pages and threads
 * do not show. Keys behind a row's position or before its window are not added and, outside of what the rows
 * of the item see, not read.
 *
 * Queries are multiplied by scale * log2(e) beforehand: the softmax is one of powers of two. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx512_math.h"

#define TARGET     AVX512_TARGET
#define INLINE     AVX512_INLINE
#define KEYS       64 /* of a block: part of the arithmetic */
#define GROUPS     (KEYS / 16)
#define TOGETHER   6  /* queries multiplied side by side: 6 x 4 registers of sums */
#define BATCH_MOST 12 /* queries whose softmaxes are computed side by side, so that none waits for itself */
#define LOG2_E     1.44269504f

/* Queries of an item: they share the turned keys, and stay in the second-level cache. */
#define QUERIES_LEAST 96
#define QUERIES_MOST  512
#define ITEMS_WANTED  16 /* for each thread */

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
    struct attention_options options;
    int64_t H, G, D, heads;    /* heads: query heads of a KV head */
    int64_t wide;              /* D rounded up to whole registers */
    int64_t count;             /* of items, KV heads counted */
    int64_t rows;              /* of an item, at most */
    _Atomic int64_t next_item; /* that nobody has taken */
};

/* A member's memory. Queries of an item are numbered row by row, the heads of a row together. */
struct room {
    float *kt, *v;        /* [wide][KEYS], [KEYS][wide] */
    float *q, *acc;       /* [queries][wide] */
    float *highest, *sum; /* [queries]: of each softmax, so far; as many more as a register has */
};

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

/* The elements at which KV head g of n positions from `base` on begins: a page is looked up once for its run
 * of positions. */
static void find_keys(const struct attention *a, int32_t sequence, int64_t g, int64_t base, int n,
                      int64_t *at)
{
    const struct seq_view *view = a->view;
    const int32_t *pages = view->page_table.data;
    int64_t tokens = view->page_tokens, step = a->G * a->D;
    if (!pages) {
        for (int j = 0; j < n; j++)
            at[j] = (((const int32_t *)view->row_begin.data)[sequence] + base + j) * step + g * a->D;
        return;
    }
    pages += ((const int32_t *)view->slots.data)[sequence] * view->page_table.dim[1];
    for (int j = 0; j < n;) {
        int64_t column = (base + j) / tokens, inside = (base + j) % tokens;
        ASSERT(column < view->page_table.dim[1] && pages[column] >= 0 && pages[column] < a->k->dim[0]);
        int64_t first = (pages[column] * tokens + inside) * step + g * a->D;
        for (int64_t left = tokens - inside; left > 0 && j < n; left--, first += step)
            at[j++] = first;
    }
}

/* Keys and values of one KV head at n positions. */
struct keys {
    int64_t at[KEYS];
    int n;
};

/* Asks memory for the head that begins at element `at`. Q8_0 is the one type with blocks here. */
INLINE void ask_for(const enum dtype type, const void *data, int64_t at, int64_t D)
{
    int64_t unit = type == DTYPE_F32    ? (int64_t)sizeof(float)
                   : type == DTYPE_Q8_0 ? (int64_t)sizeof(struct block_q8_0)
                                        : (int64_t)sizeof(uint16_t);
    int64_t from = type == DTYPE_Q8_0 ? at / Q8_0_BLOCK : at;
    int64_t units = type == DTYPE_Q8_0 ? D / Q8_0_BLOCK : D;
    for (int64_t byte = 0; byte < units * unit; byte += 64)
        _mm_prefetch((const char *)data + from * unit + byte, _MM_HINT_T1);
}

/* The keys and values of a block for one KV head: kt[wide][64], v[64][wide]; keys behind the n are zero.
 * Between them the next block is asked for, piece by piece, so that it is on its way while this one is
 * computed. `type`, of both, is a constant where this is inlined. */
INLINE void load_block_of(const enum dtype type, const struct attention *a, const struct keys *keys,
                          const struct keys *next, const struct room *room)
{
    const void *k = a->k->data, *v = a->v->data;
    int64_t parts = a->wide / 16 * GROUPS, part = 0, asked = 0;
    for (int64_t d = 0; d < a->D; d += 16) {
        __mmask16 there = avx512_first(a->D - d);
        for (int group = 0; group < GROUPS; group++) {
            __m512 row[16], column[16];
            for (part++; asked < next->n * part / parts; asked++) {
                ask_for(type, k, next->at[asked], a->D);
                ask_for(type, v, next->at[asked], a->D);
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
                _mm512_store_ps(room->kt + (d + i) * KEYS + group * 16, column[i]);
        }
        for (int j = 0; j < keys->n; j++)
            _mm512_store_ps(room->v + j * a->wide + d, load_page(type, v, keys->at[j] + d, there));
    }
}

#define LOAD(TYPE)                                                                     \
    TARGET static void load_##TYPE(const struct attention *a, const struct keys *keys, \
                                   const struct keys *next, const struct room *room)   \
    {                                                                                  \
        load_block_of(DTYPE_##TYPE, a, keys, next, room);                              \
    }
LOAD(F32)
LOAD(F16)
LOAD(BF16)
LOAD(Q8_0)

static void load_block(const struct attention *a, const struct keys *keys, const struct keys *next,
                       const struct room *room)
{
    switch (a->k->dtype) {
    case DTYPE_F32:
        load_F32(a, keys, next, room);
        break;
    case DTYPE_BF16:
        load_BF16(a, keys, next, room);
        break;
    case DTYPE_Q8_0:
        load_Q8_0(a, keys, next, room);
        break;
    default:
        load_F16(a, keys, next, room);
        break;
    }
}

/* Neighbouring queries of an item and what they see of a block: the keys [low, high). */
struct batch {
    int64_t first; /* query */
    int low[BATCH_MOST], high[BATCH_MOST];
    float p[BATCH_MOST][KEYS], fade[16];
};

/* Scores of all keys of the block, into p, for queries [from, from + rows) of the batch. rows is a constant
 * where this is inlined. */
INLINE void score(const struct attention *a, struct batch *b, const struct room *room, int from,
                  const int rows)
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
            k[group] = _mm512_load_ps(kt + d * KEYS + group * 16);
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
TARGET static void cap_scores(struct batch *b, int rows, float cap)
{
    for (int i = 0; i < rows; i++)
        for (int group = 0; group < GROUPS; group++) {
            float *at = b->p[i] + 16 * group;
            _mm512_storeu_ps(at, _mm512_mul_ps(cap_ps(_mm512_loadu_ps(at), cap), _mm512_set1_ps(LOG2_E)));
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
static uint64_t seen_of(const struct batch *b, int i)
{
    return (b->high[i] == KEYS ? ~0ull : (1ull << b->high[i]) - 1) & ~((1ull << b->low[i]) - 1);
}

/* Softmax of the batch's queries over their keys of the block, in place, and how much what was before fades.
 * whole: every query sees every key. rows and whole are constants where this is inlined. */
INLINE void soften(struct batch *b, const struct room *room, const int rows, const bool whole)
{
    __m512 x[BATCH_MOST];
    uint64_t seen[BATCH_MOST];
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
INLINE void blend(const struct batch *b, float *acc, const float *v, int64_t wide, int from, int low,
                  int high, const int rows, const int registers)
{
    __m512 sum[TOGETHER][4];
    const float(*p)[KEYS] = b->p + from;
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
INLINE void blend_wide(const struct batch *b, const struct room *room, int64_t wide, int from, int low,
                       int high, const int rows)
{
    int64_t d = 0;
    for (; d + 64 <= wide; d += 64)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, 4);
    for (; d < wide; d += 16)
        blend(b, room->acc + d, room->v + d, wide, from, low, high, rows, 1);
}

/* One query alone over keys [low, high); its fading is then done. */
TARGET static void blend_one(struct batch *b, const struct room *room, int64_t wide, int i, int low, int high)
{
    blend_wide(b, room, wide, i, low, high, 1);
    b->fade[i] = 1;
}

/* Queries [from, from + rows) of a batch of which not all see every key: what all see goes together, each
 * one's rest before and behind it alone. */
INLINE void blend_parts(struct batch *b, const struct room *room, int64_t wide, int from, const int rows)
{
    int low = 0, high = KEYS;
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

INLINE void batch_of(const struct attention *a, struct batch *b, const struct room *room, const int rows,
                     const bool whole)
{
    const int together = rows > TOGETHER ? rows / 2 : rows;
    for (int from = 0; from < rows; from += together)
        score(a, b, room, from, together);
    if (a->options.softcap > 0)
        cap_scores(b, rows, a->options.softcap);
    soften(b, room, rows, whole);
    for (int from = 0; from < rows; from += together)
        if (whole)
            blend_wide(b, room, a->wide, from, 0, KEYS, together);
        else
            blend_parts(b, room, a->wide, from, together);
}

typedef void batch_body(const struct attention *a, struct batch *b, const struct room *room);

/* One function for each number of queries: the sums of each live in registers. */
#define BATCH(ROWS)                                                                                      \
    TARGET static void whole_##ROWS(const struct attention *a, struct batch *b, const struct room *room) \
    {                                                                                                    \
        batch_of(a, b, room, ROWS, true);                                                                \
    }                                                                                                    \
    TARGET static void parts_##ROWS(const struct attention *a, struct batch *b, const struct room *room) \
    {                                                                                                    \
        batch_of(a, b, room, ROWS, false);                                                               \
    }
BATCH(1)
BATCH(2)
BATCH(4)
BATCH(8)
BATCH(12)

/* Most first; every number of queries is a sum of these. */
static const struct {
    int rows;
    batch_body *whole, *parts;
} BATCHES[] = {{12, whole_12, parts_12},
               {8, whole_8, parts_8},
               {4, whole_4, parts_4},
               {2, whole_2, parts_2},
               {1, whole_1, parts_1}};

/* The first position that a row sees. */
static int64_t oldest_of(const struct attention *a, int64_t position)
{
    int64_t window = a->options.window;
    return window > 0 && window <= position ? position + 1 - window : 0;
}

/* Queries [begin, end) of an item against one block; each sees some of it. */
static void attend_block(const struct attention *a, const struct item *it, int64_t begin, int64_t end,
                         int64_t base, const struct room *room)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    struct batch b;
    b.first = begin;
    for (int size = 0, rows; b.first < end; b.first += rows) {
        while (BATCHES[size].rows > end - b.first)
            size++;
        rows = BATCHES[size].rows;
        /* Positions and windows ascend: the first row sees the least of the end, the last of the start. */
        if (positions[b.first / a->heads] >= base + KEYS - 1 &&
            oldest_of(a, positions[(b.first + rows - 1) / a->heads]) <= base) {
            BATCHES[size].whole(a, &b, room);
            continue;
        }
        for (int i = 0; i < rows; i++) {
            int64_t position = positions[(b.first + i) / a->heads], oldest = oldest_of(a, position);
            b.low[i] = oldest > base ? (int)(oldest - base) : 0;
            b.high[i] = position + 1 < base + KEYS ? (int)(position + 1 - base) : KEYS;
        }
        BATCHES[size].parts(a, &b, room);
    }
}

/* The queries of an item as the scores want them, and their softmaxes at the start. */
TARGET static void begin_item(const struct attention *a, const struct item *it, int64_t g,
                              const struct room *room)
{
    float scale = a->options.softcap > 0 ? a->options.scale : a->options.scale * LOG2_E;
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

TARGET static void finish_item(const struct attention *a, const struct item *it, int64_t g,
                               const struct room *room)
{
    for (int64_t i = 0; i < it->rows * a->heads; i++) {
        float *out = a->out + ((it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        __m512 inverse = _mm512_set1_ps(1.0f / room->sum[i]);
        for (int64_t d = 0; d < a->D; d += 16)
            _mm512_mask_storeu_ps(out + d, avx512_first(a->D - d),
                                  _mm512_mul_ps(_mm512_load_ps(room->acc + i * a->wide + d), inverse));
    }
}

/* The keys of the block at `base` up to the position `last`; none behind it. */
static void find_block(const struct attention *a, const struct item *it, int64_t g, int64_t base,
                       int64_t last, struct keys *keys)
{
    int64_t left = last + 1 - base;
    keys->n = left <= 0 ? 0 : left < KEYS ? (int)left : KEYS;
    find_keys(a, it->sequence, g, base, keys->n, keys->at);
}

static void run_item(const struct attention *a, const struct item *it, int64_t g, const struct room *room)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    int64_t last = positions[it->rows - 1], base = oldest_of(a, positions[0]) / KEYS * KEYS;
    int32_t begin = 0, end = 0; /* rows that see some of the block */
    struct keys keys[2];
    begin_item(a, it, g, room);
    find_block(a, it, g, base, last, &keys[0]);
    for (int turn = 0; base <= last; base += KEYS, turn ^= 1) {
        while (positions[begin] < base)
            begin++;
        while (end < it->rows && oldest_of(a, positions[end]) < base + KEYS)
            end++;
        find_block(a, it, g, base + KEYS, last, &keys[turn ^ 1]);
        load_block(a, &keys[turn], &keys[turn ^ 1], room);
        attend_block(a, it, begin * a->heads, end * a->heads, base, room);
    }
    finish_item(a, it, g, room);
}

/* Members take one item at a time, the long ones first: late rows see most. */
static void attention_body(void *context, int64_t begin, int64_t end, int member)
{
    struct attention *a = context;
    int64_t queries = a->rows * a->heads, states = (int64_t)round_up_u64((uint64_t)queries, 16) + 16;
    int64_t floats = (2 * KEYS + 2 * queries) * a->wide + 2 * states, i;
    struct room room = {.kt = team_scratch(a->team, member, (size_t)floats * sizeof(float))};
    (void)begin;
    (void)end;
    room.v = room.kt + KEYS * a->wide;
    room.q = room.v + KEYS * a->wide;
    room.acc = room.q + queries * a->wide;
    room.highest = room.acc + queries * a->wide;
    room.sum = room.highest + states;
    while ((i = atomic_fetch_add_explicit(&a->next_item, 1, memory_order_relaxed)) < a->count) {
        int64_t from_end = a->count - 1 - i;
        run_item(a, &a->items[from_end / a->G], from_end % a->G, &room);
    }
}

/* Rows of an item: many, for they share the turned keys, but so few that every thread finds items enough. */
static int64_t item_rows(const struct attention *a, int64_t T)
{
    int64_t queries = T * a->H / (ITEMS_WANTED * team_threads(a->team));
    queries = queries > QUERIES_MOST ? QUERIES_MOST : queries < QUERIES_LEAST ? QUERIES_LEAST : queries;
    return a->heads < queries ? queries / a->heads : 1;
}

/* Cuts every sequence's rows into items. Positions of a sequence's rows ascend. */
static int64_t cut_items(const struct attention *a, struct item *items)
{
    const int32_t *begin = a->view->row_begin.data;
    int32_t most = (int32_t)a->rows;
    int64_t count = 0;
    for (int32_t s = 0; s + 1 < a->view->row_begin.dim[0]; s++)
        for (int32_t row = begin[s]; row < begin[s + 1]; row += most) {
            int32_t left = begin[s + 1] - row;
            items[count++] = (struct item){s, row, left < most ? left : most};
        }
    return count;
}

void fast_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options)
{
    int64_t T = q->dim[0], S = view->row_begin.dim[0] - 1;
    struct attention a = {.team = cpu_team(s),
                          .k = k,
                          .v = v,
                          .q = q->data,
                          .out = out->data,
                          .view = view,
                          .options = *options,
                          .H = q->dim[1],
                          .G = k->dim[k->ndim - 2],
                          .D = q->dim[2]};
    a.heads = a.H / a.G;
    a.wide = (int64_t)round_up_u64((uint64_t)a.D, 16);
    a.rows = item_rows(&a, T);
    struct item *items = cpu_stream_scratch(s, (size_t)(T / a.rows + S + 1) * sizeof(*items));
    a.items = items;
    a.count = cut_items(&a, items) * a.G;
    int64_t members = team_threads(a.team);
    team_for(a.team, a.count < members ? a.count : members, 1, attention_body, &a);
}
#endif
