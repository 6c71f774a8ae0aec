/* attention_avx512: causal attention over pages or packed documents with AVX-512. Keys stand in lanes, so a
 * score needs no sum across lanes; queries that see the same keys are computed together, as in a matrix
 * product:
 *
 *   block of 64 keys, turned: kt[4][D][16]    score[64] of a query = sum over d, ascending, of q[d] * kt[d]
 *   online softmax over the block, then       acc[D] = acc * fade + sum over keys, ascending, of p[key] *
 * v[key]
 *
 * Blocks lie at absolute positions 0, 64, 128, ...; the turned keys serve all query heads of a KV head and
 * all rows of an item. Every query has sums of its own in one written order: items, chunks, pages and threads
 * do not show. Keys behind a row's position or before its window are not added and, outside of what the rows
 * of the item see, not read. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <string.h>

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx512_math.h"

#define TARGET   AVX512_TARGET
#define INLINE   AVX512_INLINE
#define KEYS     64 /* of a block: part of the arithmetic */
#define GROUPS   (KEYS / 16)
#define TOGETHER 6  /* queries computed side by side: 6 x 4 registers of sums */
#define QUERIES  96 /* of an item, about: they share the turned keys */

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
    int64_t H, G, D, heads; /* heads: query heads of a KV head */
    int64_t wide;           /* D rounded up to whole registers */
    int64_t count;          /* of items, KV heads counted */
};

/* What a query keeps between blocks. */
struct state {
    float highest, sum;
};

/* A member's memory. */
struct room {
    float *kt, *v, *acc;
    struct state *state;
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

/* The sum of sixteen lanes: halves onto halves, as in lanes.h. */
INLINE float fold_ps(__m512 x)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* Up to sixteen elements of a key or value from element `at` on, zeros behind them; of Q8_0 `at` is a
 * multiple of 16: half a block. */
INLINE __m512 load_page(enum dtype type, const void *data, int64_t at, __mmask16 there)
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
INLINE void ask_for(const struct tensor *x, int64_t at, int64_t D)
{
    int64_t unit = x->dtype == DTYPE_F32    ? (int64_t)sizeof(float)
                   : x->dtype == DTYPE_Q8_0 ? (int64_t)sizeof(struct block_q8_0)
                                            : (int64_t)sizeof(uint16_t);
    int64_t from = x->dtype == DTYPE_Q8_0 ? at / Q8_0_BLOCK : at;
    int64_t units = x->dtype == DTYPE_Q8_0 ? D / Q8_0_BLOCK : D;
    for (int64_t byte = 0; byte < units * unit; byte += 64)
        _mm_prefetch((const char *)x->data + from * unit + byte, _MM_HINT_T1);
}

/* The keys and values of a block for one KV head: kt[4][wide][16], v[64][wide]; keys behind the n are zero.
 * Between them the next block is asked for, piece by piece, so that it is on its way while this one is
 * computed. */
TARGET static void load_block(const struct attention *a, const struct keys *keys, const struct keys *next,
                              const struct room *room)
{
    int64_t parts = a->wide / 16 * GROUPS, part = 0, asked = 0;
    for (int64_t d = 0; d < a->D; d += 16) {
        __mmask16 there = avx512_first(a->D - d);
        for (int group = 0; group < GROUPS; group++) {
            __m512 row[16], column[16];
            for (part++; asked < next->n * part / parts; asked++) {
                ask_for(a->k, next->at[asked], a->D);
                ask_for(a->v, next->at[asked], a->D);
            }
            for (int j = 0; j < 16; j++)
                row[j] = group * 16 + j < keys->n
                             ? load_page(a->k->dtype, a->k->data, keys->at[group * 16 + j] + d, there)
                             : _mm512_setzero_ps();
            avx512_turn(row, column);
            for (int i = 0; i < 16; i++)
                _mm512_store_ps(room->kt + (group * a->wide + d + i) * 16, column[i]);
        }
        for (int j = 0; j < keys->n; j++)
            _mm512_store_ps(room->v + j * a->wide + d,
                            load_page(a->v->dtype, a->v->data, keys->at[j] + d, there));
    }
}

/* Queries of an item that see the keys [low, high) of a block. */
struct batch {
    const float *q[TOGETHER];
    int index[TOGETHER];
    int count, low, high;
    float p[TOGETHER][KEYS], fade[TOGETHER];
};

/* Scores of all keys of the block, into p. rows is a constant where this is inlined. */
INLINE void score(struct batch *b, const float *kt, int64_t D, int64_t wide, const int rows)
{
    __m512 s[TOGETHER][GROUPS];
    const float *q[TOGETHER];
    for (int i = 0; i < rows; i++) {
        q[i] = b->q[i];
        for (int group = 0; group < GROUPS; group++)
            s[i][group] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < D; d++) {
        __m512 k[GROUPS];
#pragma GCC unroll 4
        for (int group = 0; group < GROUPS; group++)
            k[group] = _mm512_load_ps(kt + (group * wide + d) * 16);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(q[i][d]);
#pragma GCC unroll 4
            for (int group = 0; group < GROUPS; group++)
                s[i][group] = _mm512_fmadd_ps(x, k[group], s[i][group]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int group = 0; group < GROUPS; group++)
            _mm512_storeu_ps(b->p[i] + 16 * group, s[i][group]);
}

/* Softmax of one query over its keys of the block, in place; how much what was before fades. */
TARGET static float soften(const struct attention *a, struct state *state, float *p, int low, int high)
{
    __m512 s[GROUPS], most = _mm512_set1_ps(-INFINITY), e[GROUPS];
    uint64_t seen = (high == KEYS ? ~0ull : (1ull << high) - 1) & ~((1ull << low) - 1);
    for (int group = 0; group < GROUPS; group++) {
        s[group] = _mm512_mul_ps(_mm512_loadu_ps(p + 16 * group), _mm512_set1_ps(a->options.scale));
        if (a->options.softcap > 0)
            s[group] = cap_ps(s[group], a->options.softcap);
        most = _mm512_mask_max_ps(most, (__mmask16)(seen >> 16 * group), most, s[group]);
    }
    float highest = _mm512_reduce_max_ps(most);
    highest = highest > state->highest ? highest : state->highest;
    for (int group = 0; group < GROUPS; group++) {
        e[group] = _mm512_maskz_mov_ps((__mmask16)(seen >> 16 * group),
                                       avx512_exp(_mm512_sub_ps(s[group], _mm512_set1_ps(highest))));
        _mm512_storeu_ps(p + 16 * group, e[group]);
    }
    float fade = _mm512_cvtss_f32(avx512_exp(_mm512_set1_ps(state->highest - highest)));
    state->sum =
        state->sum * fade + fold_ps(_mm512_add_ps(_mm512_add_ps(e[0], e[1]), _mm512_add_ps(e[2], e[3])));
    state->highest = highest;
    return fade;
}

/* acc[..] = acc * fade + sum of p[j] * v[j], j ascending, for `registers` registers from d on. rows and
 * registers are constants where this is inlined. */
INLINE void blend(const struct batch *b, float *acc, const float *v, int64_t wide, const int rows,
                  const int registers)
{
    __m512 sum[TOGETHER][4];
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            sum[i][r] =
                _mm512_mul_ps(_mm512_load_ps(acc + b->index[i] * wide + 16 * r), _mm512_set1_ps(b->fade[i]));
    for (int j = b->low; j < b->high; j++) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int r = 0; r < registers; r++)
            value[r] = _mm512_load_ps(v + j * wide + 16 * r);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            __m512 weight = _mm512_set1_ps(b->p[i][j]);
#pragma GCC unroll 4
            for (int r = 0; r < registers; r++)
                sum[i][r] = _mm512_fmadd_ps(weight, value[r], sum[i][r]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < registers; r++)
            _mm512_store_ps(acc + b->index[i] * wide + 16 * r, sum[i][r]);
}

INLINE void batch_of(const struct attention *a, struct batch *b, const struct room *room, const int rows)
{
    int64_t d = 0;
    score(b, room->kt, a->D, a->wide, rows);
    for (int i = 0; i < rows; i++)
        b->fade[i] = soften(a, &room->state[b->index[i]], b->p[i], b->low, b->high);
    for (; d + 64 <= a->wide; d += 64)
        blend(b, room->acc + d, room->v + d, a->wide, rows, 4);
    for (; d < a->wide; d += 16)
        blend(b, room->acc + d, room->v + d, a->wide, rows, 1);
}

/* One function for each number of queries: the sums of each live in registers. */
#define BATCH(ROWS)                                                                                   \
    TARGET static void batch_##ROWS(const struct attention *a, struct batch *b, const struct room *r) \
    {                                                                                                 \
        batch_of(a, b, r, ROWS);                                                                      \
    }
BATCH(1)
BATCH(2)
BATCH(3)
BATCH(4)
BATCH(5)
BATCH(6)

static void run_batch(const struct attention *a, struct batch *b, const struct room *room)
{
    static void (*const by_count[])(const struct attention *, struct batch *, const struct room *) = {
        NULL, batch_1, batch_2, batch_3, batch_4, batch_5, batch_6};
    if (b->count > 0)
        by_count[b->count](a, b, room);
    b->count = 0;
}

/* The first position that a row sees. */
static int64_t oldest_of(const struct attention *a, int64_t position)
{
    int64_t window = a->options.window;
    return window > 0 && window <= position ? position + 1 - window : 0;
}

/* All queries of an item against one block. Those that see the same part of it go together. */
static void attend_block(const struct attention *a, const struct item *it, int64_t g, int64_t base,
                         const struct room *room)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    struct batch b = {.count = 0};
    for (int i = 0; i < it->rows * (int)a->heads; i++) {
        int64_t position = positions[i / a->heads], oldest = oldest_of(a, position);
        if (position < base || oldest >= base + KEYS)
            continue;
        int low = oldest > base ? (int)(oldest - base) : 0;
        int high = position + 1 < base + KEYS ? (int)(position + 1 - base) : KEYS;
        if (b.count == TOGETHER || low != b.low || high != b.high)
            run_batch(a, &b, room);
        b.low = low;
        b.high = high;
        b.index[b.count] = i;
        b.q[b.count++] =
            a->q + ((int64_t)(it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
    }
    run_batch(a, &b, room);
}

TARGET static void finish(const struct attention *a, const struct item *it, int64_t g,
                          const struct room *room)
{
    for (int i = 0; i < it->rows * (int)a->heads; i++) {
        float *out = a->out + ((int64_t)(it->row + i / a->heads) * a->H + g * a->heads + i % a->heads) * a->D;
        __m512 inverse = _mm512_set1_ps(1.0f / room->state[i].sum);
        for (int64_t d = 0; d < a->D; d += 16)
            _mm512_mask_storeu_ps(out + d, avx512_first(a->D - d),
                                  _mm512_mul_ps(_mm512_load_ps(room->acc + i * a->wide + d), inverse));
    }
}

static int64_t item_rows(const struct attention *a)
{
    return a->heads < QUERIES ? QUERIES / a->heads : 1;
}

/* The keys of the block at `base` up to the position `last`; none behind it. */
static void find_block(const struct attention *a, const struct item *it, int64_t g, int64_t base,
                       int64_t last, struct keys *keys)
{
    int64_t left = last + 1 - base;
    keys->n = left <= 0 ? 0 : left < KEYS ? (int)left : KEYS;
    find_keys(a, it->sequence, g, base, keys->n, keys->at);
}

static void attention_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct attention *a = context;
    int64_t queries = item_rows(a) * a->heads, floats = (2 * KEYS + queries) * a->wide;
    struct room room = {
        .kt = team_scratch(a->team, member,
                           (size_t)floats * sizeof(float) + (size_t)queries * sizeof(struct state))};
    room.v = room.kt + KEYS * a->wide;
    room.acc = room.v + KEYS * a->wide;
    room.state = (struct state *)(void *)(room.acc + queries * a->wide);
    for (int64_t i = begin; i < end; i++) {
        int64_t from_end = a->count - 1 - i; /* late rows see most: the long items come first */
        const struct item *it = &a->items[from_end / a->G];
        const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
        int64_t g = from_end % a->G, last = positions[it->rows - 1];
        memset(room.acc, 0, (size_t)(it->rows * a->heads * a->wide) * sizeof(float));
        for (int64_t k = 0; k < it->rows * a->heads; k++)
            room.state[k] = (struct state){.highest = -INFINITY};
        int64_t base = oldest_of(a, positions[0]) / KEYS * KEYS;
        struct keys keys[2];
        find_block(a, it, g, base, last, &keys[0]);
        for (int turn = 0; base <= last; base += KEYS, turn ^= 1) {
            find_block(a, it, g, base + KEYS, last, &keys[turn ^ 1]);
            load_block(a, &keys[turn], &keys[turn ^ 1], &room);
            attend_block(a, it, g, base, &room);
        }
        finish(a, it, g, &room);
    }
}

/* Cuts every sequence's rows into items. Positions of a sequence's rows ascend. */
static int64_t cut_items(const struct attention *a, struct item *items)
{
    const int32_t *begin = a->view->row_begin.data;
    int32_t most = (int32_t)item_rows(a);
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
    struct item *items = cpu_stream_scratch(s, (size_t)(T / item_rows(&a) + S + 1) * sizeof(*items));
    a.items = items;
    a.count = cut_items(&a, items) * a.G;
    team_for(a.team, a.count, 1, attention_body, &a);
}
#endif
