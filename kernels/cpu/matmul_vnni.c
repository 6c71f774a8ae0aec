/* matmul_vnni: the tiles of kernels/cpu/matmul_blocks.h with AVX-512 VNNI. VPDPBUSD multiplies unsigned bytes
 * by signed ones: the codes of weights by the numbers of x.
 *
 * A tile is six rows of x by two panels: twelve integer sums and twelve float ones stay in registers. With up
 * to sixteen rows, where memory is the slower part, each panel is read once, from its first byte to its last,
 * and the codes are multiplied as they are spread. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_blocks.h"

#ifdef CPU_HAS_FAST
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))
#define INLINE    \
    static inline \
        __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))

/* For kernels/cpu/spread.h. */
INLINE void widen(const void *halves, void *out)
{
    _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(halves)));
}
#define SPREAD_TARGET             TARGET
#define SPREAD_WIDEN(halves, out) widen(halves, out)
#include "kernels/cpu/spread.h"

#define TILE  6  /* rows of x whose sums fit the registers, twice for two panels: integers and floats */
#define PAIR  2  /* panels side by side */
#define FEW   16 /* rows of x up to which a panel is read once, as it lies in memory */
#define PARTS BLOCK_MAX_PARTS

/* ---- x in bytes */

/* Lane i = the reduction of the sixteen lanes of v[i]. */
#define REDUCE16(NAME, OP)                                                                                  \
    INLINE __m512i NAME(const __m512i v[16])                                                                \
    {                                                                                                       \
        __m512i four[4];                                                                                    \
        for (int i = 0; i < 4; i++) {                                                                       \
            const __m512i *a = v + 4 * i;                                                                   \
            __m512i low = OP(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));         \
            __m512i high = OP(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));        \
            four[i] = OP(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));               \
        }                                                                                                   \
        __m512i low =                                                                                       \
            OP(_mm512_shuffle_i32x4(four[0], four[1], 0x88), _mm512_shuffle_i32x4(four[0], four[1], 0xDD)); \
        __m512i high =                                                                                      \
            OP(_mm512_shuffle_i32x4(four[2], four[3], 0x88), _mm512_shuffle_i32x4(four[2], four[3], 0xDD)); \
        return OP(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xDD));            \
    }
REDUCE16(most16, _mm512_max_epu32)
REDUCE16(sum16, _mm512_add_epi32)

/* As matmul_blocks.h says. */
TARGET static void quantise_blocks(const float *x, int blocks, int parts, struct quantised *out)
{
    __m512i bits[16], first[16], second[16];
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    for (int b = 0; b < 16; b++)
        bits[b] = b < blocks
                      ? _mm512_and_si512(
                            magnitude,
                            _mm512_max_epu32(
                                _mm512_and_si512(magnitude, _mm512_loadu_si512(x + b * PANEL_BLOCK)),
                                _mm512_and_si512(magnitude, _mm512_loadu_si512(x + b * PANEL_BLOCK + 16))))
                      : _mm512_setzero_si512();
    __m512i most_bits = most16(bits);
    __m512 most = _mm512_castsi512_ps(most_bits), steps = _mm512_set1_ps(127.0f);
    __mmask16 bad = _mm512_cmpge_epu32_mask(most_bits, _mm512_set1_epi32(0x7F800000));
    __m512 inverse = _mm512_div_ps(steps, most);
    __mmask16 usable = _mm512_cmp_ps_mask(inverse, _mm512_set1_ps(3.4e38f), _CMP_LE_OQ);
    inverse = _mm512_maskz_mov_ps(usable, inverse);
    __m512 scale = _mm512_maskz_div_ps(usable, most, steps);
    _mm512_storeu_ps(out->scales, _mm512_mask_mov_ps(scale, bad, _mm512_set1_ps(NAN)));
    _Alignas(64) float inverses[16];
    _mm512_store_ps(inverses, inverse);
    for (int b = 0; b < 16; b++) {
        first[b] = second[b] = _mm512_setzero_si512();
        if (b >= blocks)
            continue;
        __m512 by = _mm512_set1_ps(inverses[b]);
        __mmask16 numbers =
            bad >> b & 1 ? 0 : 0xFFFF; /* what has no scale is zeros, not the lowest integer */
        first[b] = _mm512_maskz_cvtps_epi32(numbers, _mm512_mul_ps(_mm512_loadu_ps(x + b * PANEL_BLOCK), by));
        second[b] =
            _mm512_maskz_cvtps_epi32(numbers, _mm512_mul_ps(_mm512_loadu_ps(x + b * PANEL_BLOCK + 16), by));
        _mm_store_si128((__m128i *)(void *)out->numbers[b], _mm512_cvtepi32_epi8(first[b]));
        _mm_store_si128((__m128i *)(void *)(out->numbers[b] + 16), _mm512_cvtepi32_epi8(second[b]));
        if (parts == 1)
            first[b] = _mm512_add_epi32(first[b], second[b]);
    }
    _mm512_storeu_si512(out->sums[0], sum16(first));
    if (parts == 2)
        _mm512_storeu_si512(out->sums[1], sum16(second));
}

/* ---- tiles */

/* sum + codes . four numbers of x, which the instruction itself takes to all lanes: the compiler would load
 * them apart, and that the front end has to carry is what limits a tile (3 % of it). */
INLINE __m512i dot_spread(__m512i sum, __m512i codes, const int32_t *four)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*four));
    return sum;
}

/* sums[rows][panels][16] += a run of `blocks` blocks; all but the run's length are constants where this is
 * inlined. The loops over sums are unrolled to the last, or GCC keeps these in memory beside the registers.
 */
INLINE void tile(const struct spread *w, const struct ask *ask, const char *x, int64_t blocks, float *sums,
                 const int rows, const int panels, const int parts, const bool has_addends)
{
    const int each = parts == 1 ? SPREAD_CODES : SPREAD_CODES / 2;
    __m512 sum[TILE][PAIR];
#pragma GCC unroll 6
    for (int t = 0; t < rows; t++)
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            sum[t][p] = _mm512_loadu_ps(sums + (t * panels + p) * PANEL_ROWS);
    size_t asked = 0;
    for (int64_t b = 0; b < blocks; b++, x += TILE_BLOCK_BYTES(rows, parts)) {
        const int32_t *numbers = (const int32_t *)(const void *)x;
        const int32_t *x_sums = numbers + rows * (PANEL_BLOCK / 4);
        const float *x_scales = (const float *)(const void *)(x_sums + parts * rows);
        for (; asked < (size_t)(b + 1) * ask->block_bytes; asked += 64)
            for (int p = 0; p < panels; p++)
                _mm_prefetch(ask->at[p] + asked, _MM_HINT_T1);
        for (int i = 0; i < (int)TILE_BLOCK_BYTES(rows, parts); i += 64)
            _mm_prefetch(x + ask->next_x + i, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m512i isum[TILE][PAIR];
#pragma GCC unroll 6
            for (int t = 0; t < rows; t++)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    isum[t][p] =
                        has_addends ? _mm512_setzero_si512() : _mm512_set1_epi32(x_sums[part * rows + t]);
#pragma GCC unroll 8
            for (int j = part * each; j < (part + 1) * each; j++) {
                __m512i codes[PAIR];
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    codes[p] = _mm512_loadu_si512(w[p].codes + b * SPREAD_CODES + j);
#pragma GCC unroll 6
                for (int t = 0; t < rows; t++) {
#pragma GCC unroll 2
                    for (int p = 0; p < panels; p++)
                        isum[t][p] = dot_spread(isum[t][p], codes[p], &numbers[t * 8 + j]);
                }
            }
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                __m512 scale = _mm512_loadu_ps((const float *)(w[p].scales + b * parts + part));
#pragma GCC unroll 6
                for (int t = 0; t < rows; t++)
                    sum[t][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[t][p]),
                                                _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[t])), sum[t][p]);
                if (!has_addends)
                    continue;
                __m512 addend = _mm512_loadu_ps((const float *)(w[p].addends + b * parts + part));
                const float *float_sums = (const float *)(const void *)(x_sums + part * rows);
#pragma GCC unroll 6
                for (int t = 0; t < rows; t++)
                    sum[t][p] = _mm512_fmadd_ps(addend, _mm512_set1_ps(float_sums[t]), sum[t][p]);
            }
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < rows; t++)
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            _mm512_storeu_ps(sums + (t * panels + p) * PANEL_ROWS, sum[t][p]);
}

/* One function for each number of rows and panels: the sums of each live in registers. */
#define TILE_FUNCTION(NAME, ROWS, PANELS, PARTS_, ADDENDS)                                     \
    TARGET static void NAME##_##PANELS##_##ROWS(const struct spread *w, const struct ask *ask, \
                                                const char *x, int64_t blocks, float *sums)    \
    {                                                                                          \
        tile(w, ask, x, blocks, sums, ROWS, PANELS, PARTS_, ADDENDS);                          \
    }
#define TILE_ROWS(NAME, PANELS, PARTS_, ADDENDS)                                  \
    TILE_FUNCTION(NAME, 1, PANELS, PARTS_, ADDENDS)                               \
    TILE_FUNCTION(NAME, 2, PANELS, PARTS_, ADDENDS)                               \
    TILE_FUNCTION(NAME, 3, PANELS, PARTS_, ADDENDS)                               \
    TILE_FUNCTION(NAME, 4, PANELS, PARTS_, ADDENDS)                               \
    TILE_FUNCTION(NAME, 5, PANELS, PARTS_, ADDENDS)                               \
    TILE_FUNCTION(NAME, 6, PANELS, PARTS_, ADDENDS)                               \
    static tile_function *const NAME##_##PANELS[TILE + 1] = {NULL,                \
                                                             NAME##_##PANELS##_1, \
                                                             NAME##_##PANELS##_2, \
                                                             NAME##_##PANELS##_3, \
                                                             NAME##_##PANELS##_4, \
                                                             NAME##_##PANELS##_5, \
                                                             NAME##_##PANELS##_6};
#define TILE_KIND(NAME, PARTS_, ADDENDS) \
    TILE_ROWS(NAME, 1, PARTS_, ADDENDS)  \
    TILE_ROWS(NAME, 2, PARTS_, ADDENDS)
TILE_KIND(whole, 1, false)
TILE_KIND(whole_addends, 1, true)
TILE_KIND(halves, 2, false)
TILE_KIND(halves_addends, 2, true)

/* ---- a few rows of x: the codes are multiplied as they are spread, a block at a time */

/* Up to so many rows it is cheaper to shift sums than codes. */
#define RAW_ROWS 4

/* One part of one block of a step; all but the pointers are constants where this is inlined. */
struct few {
    __m512i isum[FEW];
    const int32_t *numbers; /* of the block */
    const char *piece;      /* where the step's share of a block's pieces begins, `share` of them */
    int rows, share, step;
    int block, part, parts; /* of the step; of the block; each block's */
};

/* A product, and what there is to ask memory for with it: asked for all together, the pieces of a long block
 * would wait for each other and keep the step from its instructions. What is of other blocks and parts is
 * emitted in vain, which is known when this is compiled. */
INLINE void emit_dot(void *to, int block, int j, const lanes_u32 *codes)
{
    struct few *f = to;
    if (block != f->block || (f->parts == 2 && j / (SPREAD_CODES / 2) != f->part))
        return;
    const int products = SPREAD_CODES * f->step, product = block * SPREAD_CODES + j;
    __m512i four = _mm512_loadu_si512(codes);
    for (int i = product * f->share / products; i < (product + 1) * f->share / products; i++) {
        _mm_prefetch(f->piece + i * PANEL_PIECE + PANEL_FAR, _MM_HINT_T1);
        _mm_prefetch(f->piece + i * PANEL_PIECE + PANEL_NEAR, _MM_HINT_T0);
    }
#pragma GCC unroll 16
    for (int t = 0; t < f->rows; t++)
        f->isum[t] = dot_spread(f->isum[t], four, &f->numbers[t * SPREAD_CODES + j]);
}

/* Integer sums of one part of block `f->block` of step `step`, from what the codes' offset adds. */
INLINE void dot_few(struct few *f, const enum dtype type, const lanes_u32 *piece, int64_t step,
                    const bool has_addends)
{
    const int32_t *offsets = f->numbers + f->rows * SPREAD_CODES + f->part * f->rows;
    const bool raw = f->rows <= RAW_ROWS && spread_shift(type, 1);
#pragma GCC unroll 16
    for (int t = 0; t < f->rows; t++)
        f->isum[t] = has_addends ? _mm512_setzero_si512() : _mm512_set1_epi32(offsets[t]);
    spread_codes(type, piece, step, raw, emit_dot, f);
    for (int t = 0; raw && t < f->rows; t++) /* exactly: such types have no offset */
        f->isum[t] = _mm512_srai_epi32(f->isum[t], spread_shift(type, f->block));
}

/* sums[rows][16] += isum by the scales of a part, and the addends by the sums of x. */
INLINE void add_few(const struct few *f, __m512 scale, __m512 addend, float *sums, const bool has_addends)
{
    const float *x_sums = (const float *)(const void *)(f->numbers + f->rows * SPREAD_CODES),
                *x_scales = x_sums + f->parts * f->rows;
#pragma GCC unroll 16
    for (int t = 0; t < f->rows; t++) {
        float *at = sums + t * PANEL_ROWS;
        __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(f->isum[t]),
                                     _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[t])), _mm512_loadu_ps(at));
        if (has_addends)
            sum = _mm512_fmadd_ps(addend, _mm512_set1_ps(x_sums[f->part * f->rows + t]), sum);
        _mm512_storeu_ps(at, sum);
    }
}

/* One panel by `rows` rows, all of K; all but the numbers of blocks are constants where this is inlined. The
 * float sums are in memory, near enough for one visit a block, so that sixteen rows have registers. */
INLINE void panel_few(const struct panel_layout *l, const char *panel, const char *x, float *sums,
                      const enum dtype type, const int rows, const int parts, const bool has_addends)
{
    const int each = spread_blocks(type), step = spread_step(type);
    /* Of a block's pieces, with half a line of scales, for each step. */
    const int share = (spread_pieces(type) * step + (spread_in_pairs(type) ? step : 0) + each - 1) / each;
    for (int t = 0; t < rows; t++)
        _mm512_storeu_ps(sums + t * PANEL_ROWS, _mm512_setzero_ps());
    for (int64_t b = 0; b < l->blocks; b++) {
        const lanes_u32 *piece = spread_piece(type, l, panel, b);
        const uint16_t *apart = spread_apart_at(type, l, panel, b);
        lanes_f32 scales[SUPER_BLOCKS * PARTS], addends[SUPER_BLOCKS * PARTS];
        if (type == DTYPE_Q8_0) /* the next panel's scales, which stand behind all of its pieces */
            _mm_prefetch((const char *)apart + l->panel_bytes, _MM_HINT_T0);
        spread_scales(type, piece, apart, scales, addends);
        for (int s = 0; s < each; s += step)
#pragma GCC unroll 4
            for (int i = 0; i < step; i++, x += TILE_BLOCK_BYTES(rows, parts))
#pragma GCC unroll 2
                for (int part = 0; part < parts; part++) {
                    struct few f = {.numbers = (const int32_t *)(const void *)x,
                                    .piece = (const char *)(piece + s / step * share),
                                    .rows = rows,
                                    .share = share,
                                    .step = step,
                                    .block = i,
                                    .part = part,
                                    .parts = parts};
                    dot_few(&f, type, piece, s / step, has_addends);
                    const int at = (s + i) * parts + part;
                    __m512 scale = _mm512_loadu_ps((const float *)&scales[at]);
                    add_few(&f, scale, has_addends ? _mm512_loadu_ps((const float *)&addends[at]) : scale,
                            sums, has_addends);
                }
    }
}

/* ---- the types */

#define FEW_FUNCTION(NAME, TYPE, ROWS, PARTS_, ADDENDS)                                                  \
    TARGET static void NAME##_few_##ROWS(const struct panel_layout *l, const char *panel, const char *x, \
                                         float *sums)                                                    \
    {                                                                                                    \
        panel_few(l, panel, x, sums, TYPE, ROWS, PARTS_, ADDENDS);                                       \
    }
#define TYPE_FUNCTIONS(NAME, TYPE, PARTS_, ADDENDS)                                                          \
    TARGET static struct spread NAME##_spread(const struct panel_layout *l, const char *panel,               \
                                              int64_t block, int64_t blocks, const struct spread_room *room) \
    {                                                                                                        \
        return spread_run(TYPE, PARTS_, l, panel, block, blocks, room);                                      \
    }                                                                                                        \
    FEW_FUNCTION(NAME, TYPE, 1, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 2, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 3, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 4, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 6, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 8, PARTS_, ADDENDS)                                                             \
    FEW_FUNCTION(NAME, TYPE, 12, PARTS_, ADDENDS)                                                            \
    FEW_FUNCTION(NAME, TYPE, 16, PARTS_, ADDENDS)
TYPE_FUNCTIONS(q8_0, DTYPE_Q8_0, 1, false)
TYPE_FUNCTIONS(q4_0, DTYPE_Q4_0, 1, false)
TYPE_FUNCTIONS(q4_1, DTYPE_Q4_1, 1, true)
TYPE_FUNCTIONS(q5_0, DTYPE_Q5_0, 1, false)
TYPE_FUNCTIONS(q5_1, DTYPE_Q5_1, 1, true)
TYPE_FUNCTIONS(q2_k, DTYPE_Q2_K, 2, true)
TYPE_FUNCTIONS(q3_k, DTYPE_Q3_K, 2, false)
TYPE_FUNCTIONS(q4_k, DTYPE_Q4_K, 1, true)
TYPE_FUNCTIONS(q5_k, DTYPE_Q5_K, 1, true)
TYPE_FUNCTIONS(q6_k, DTYPE_Q6_K, 2, false)

#define TYPE_ENTRY(NAME, KIND)                                                                               \
    {                                                                                                        \
        NAME##_spread, {[1] = NAME##_few_1, [2] = NAME##_few_2, [3] = NAME##_few_3,   [4] = NAME##_few_4,    \
                        [6] = NAME##_few_6, [8] = NAME##_few_8, [12] = NAME##_few_12, [16] = NAME##_few_16}, \
        {                                                                                                    \
            KIND##_1, KIND##_2                                                                               \
        }                                                                                                    \
    }
static const struct block_type TYPES[DTYPE_COUNT] = {
    [DTYPE_Q8_0] = TYPE_ENTRY(q8_0, whole),         [DTYPE_Q4_0] = TYPE_ENTRY(q4_0, whole),
    [DTYPE_Q4_1] = TYPE_ENTRY(q4_1, whole_addends), [DTYPE_Q5_0] = TYPE_ENTRY(q5_0, whole),
    [DTYPE_Q5_1] = TYPE_ENTRY(q5_1, whole_addends), [DTYPE_Q2_K] = TYPE_ENTRY(q2_k, halves_addends),
    [DTYPE_Q3_K] = TYPE_ENTRY(q3_k, halves),        [DTYPE_Q4_K] = TYPE_ENTRY(q4_k, whole_addends),
    [DTYPE_Q5_K] = TYPE_ENTRY(q5_k, whole_addends), [DTYPE_Q6_K] = TYPE_ENTRY(q6_k, halves),
};

/* The codes of two panels' runs are 8 or 16 KiB. */
static const struct block_tiles TILES = {
    .rows = TILE,
    .side = PAIR,
    .few = FEW,
    .few_rows = {0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16},
    .run_few = 8,
    .run_many = 16,
    .quantise = quantise_blocks,
    .types = TYPES};

void fast_matmul_panels(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    block_matmul(s, x, outputs, count, &TILES);
}
#endif
