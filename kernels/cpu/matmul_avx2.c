/* matmul_avx2: the tiles of kernels/cpu/matmul_blocks.h with AVX2. VPMADDUBSW multiplies unsigned bytes by
 * signed ones and adds the products in pairs to 16 bits, where it would saturate; so only as many are added
 * there as 16 bits hold, and VPMADDWD adds these to 32:
 *
 *   codes of   largest  a pair, |x| <= 127   pairs that 16 bits hold, of those in a part
 *   4 bits          15                3810   8
 *   5 bits          31                7874   4
 *   6 bits          63               16002   2
 *   Q8_0       128 as a magnitude    32512   1: x takes the sign of the code (VPSIGNB)
 *
 * Integer sums are exact, so an output has the bits of every other set.
 *
 * A panel is two registers wide; a tile is four rows of x by one panel: eight sums at work, and the float
 * sums wait in memory for the end of a block. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_blocks.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx2.h"

/* For kernels/cpu/spread.h. */
AVX2_INLINE void widen(const void *halves, void *out)
{
    const __m128i *from = halves;
    float *to = out;
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from)));
    _mm256_storeu_ps(to + AVX2_LANES, _mm256_cvtph_ps(_mm_loadu_si128(from + 1)));
}
#define SPREAD_TARGET             AVX2_TARGET
#define SPREAD_WIDEN(halves, out) widen(halves, out)
#include "kernels/cpu/spread.h"

#define TILE   4 /* rows of x */
#define HALVES 2 /* registers of a panel */

/* ---- x in bytes */

AVX2_INLINE __m256i load_bits(const float *x)
{
    return _mm256_and_si256(_mm256_set1_epi32(0x7FFFFFFF),
                            _mm256_loadu_si256((const __m256i *)(const void *)x));
}

/* The bits of the greatest magnitude of a block. */
AVX2_INLINE int32_t most_bits(const float *x)
{
    __m256i all = _mm256_max_epi32(_mm256_max_epi32(load_bits(x), load_bits(x + 8)),
                                   _mm256_max_epi32(load_bits(x + 16), load_bits(x + 24)));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

AVX2_INLINE int32_t sum_epi32(__m256i v)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

/* As matmul_blocks.h says. */
AVX2_TARGET static void quantise_blocks(const float *x, int blocks, int parts, struct quantised *out)
{
    for (int b = 0; b < blocks; b++, x += PANEL_BLOCK) {
        int32_t bits = most_bits(x);
        bool bad = bits >= 0x7F800000;
        float most = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits))), inverse = 127.0f / most;
        bool usable = inverse <= 3.4e38f;
        out->scales[b] = bad ? NAN : usable ? most / 127.0f : 0.0f;
        __m256i number[4];
        __m256 by = _mm256_set1_ps(inverse);
        for (int i = 0; i < 4; i++) /* what has no scale is zeros, not the lowest integer */
            number[i] = bad || !usable ? _mm256_setzero_si256()
                                       : _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by));
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(number[0], number[1]),
                                            _mm256_packs_epi32(number[2], number[3]));
        packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_store_si256((__m256i *)(void *)out->numbers[b], packed);
        int32_t first = sum_epi32(_mm256_add_epi32(number[0], number[1]));
        int32_t second = sum_epi32(_mm256_add_epi32(number[2], number[3]));
        out->sums[0][b] = parts == 1 ? first + second : first;
        out->sums[1][b] = parts == 1 ? first + second : second;
    }
}

/* ---- tiles */

/* How codes multiply. The value is the number of pairs that 16 bits hold. */
enum codes { SIGNED_BYTES = 1, SIX_BITS = 2, FIVE_BITS = 4, FOUR_BITS = 8 };
#define PAIR_SUM(code) (2 * 127 * (code))
_Static_assert(SIGNED_BYTES *PAIR_SUM(128) <= INT16_MAX && SIX_BITS * PAIR_SUM(63) <= INT16_MAX &&
                   FIVE_BITS * PAIR_SUM(31) <= INT16_MAX && FOUR_BITS * PAIR_SUM(15) <= INT16_MAX,
               "a 16-bit sum saturates");

/* Sums that are made at once: the compiler would make a tree of the additions of a block, whose products
 * wait in memory meanwhile. */
AVX2_INLINE __m256i add_now(__m256i sum)
{
    __asm__("" : "+x"(sum));
    return sum;
}

/* isum[t][h] += pieces [j, j + count) of a block by the rows. */
AVX2_INLINE void multiply(__m256i isum[TILE][HALVES], const lanes_u32 *codes, const int32_t *numbers, int j,
                          const int count, const int rows, const enum codes kind)
{
    __m256i sum[TILE][HALVES];
#pragma GCC unroll 8
    for (int i = j; i < j + count; i++) {
        __m256i code[HALVES], size[HALVES];
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            code[h] = _mm256_loadu_si256((const __m256i *)(const void *)(codes + i) + h);
            if (kind == SIGNED_BYTES) { /* without the offset that panels add */
                code[h] = _mm256_xor_si256(code[h], _mm256_set1_epi8(-128));
                size[h] = _mm256_abs_epi8(code[h]);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < rows; t++) {
            __m256i four = _mm256_set1_epi32(numbers[t * 8 + i]);
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; h++) {
                __m256i pairs = kind == SIGNED_BYTES
                                    ? _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(four, code[h]))
                                    : _mm256_maddubs_epi16(code[h], four);
                sum[t][h] = i == j ? pairs : add_now(_mm256_add_epi16(sum[t][h], pairs));
                if (i == j + count - 1) /* the last that 16 bits hold */
                    isum[t][h] = add_now(
                        _mm256_add_epi32(isum[t][h], _mm256_madd_epi16(sum[t][h], _mm256_set1_epi16(1))));
            }
        }
    }
}

/* sums[rows][16] += one part of a block; all but the pointers are constants where this is inlined. */
AVX2_INLINE void add_part(const __m256i isum[TILE][HALVES], const lanes_f32 *scales, const lanes_f32 *addends,
                          const float *x_scales, const float *x_sums, float *sums, const int rows,
                          const bool has_addends)
{
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++) {
        __m256 scale = _mm256_loadu_ps((const float *)scales + h * AVX2_LANES), addend = scale;
        if (has_addends)
            addend = _mm256_loadu_ps((const float *)addends + h * AVX2_LANES);
#pragma GCC unroll 4
        for (int t = 0; t < rows; t++) {
            float *at = sums + t * PANEL_ROWS + h * AVX2_LANES;
            __m256 sum =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[t][h]),
                                _mm256_mul_ps(scale, _mm256_set1_ps(x_scales[t])), _mm256_loadu_ps(at));
            if (has_addends)
                sum = _mm256_fmadd_ps(addend, _mm256_set1_ps(x_sums[t]), sum);
            _mm256_storeu_ps(at, sum);
        }
    }
}

/* sums[rows][16] += a run of `blocks` blocks; all but the run's length are constants where this is inlined.
 */
AVX2_INLINE void tile(const struct spread *w, const struct ask *ask, const char *x, int64_t blocks,
                      float *sums, const int rows, const int parts, const bool has_addends,
                      const enum codes kind)
{
    const int each = SPREAD_CODES / parts, step = (int)kind < each ? (int)kind : each;
    size_t asked = 0;
    for (int64_t b = 0; b < blocks; b++, x += TILE_BLOCK_BYTES(rows, parts)) {
        const int32_t *numbers = (const int32_t *)(const void *)x;
        const int32_t *x_sums = numbers + rows * (PANEL_BLOCK / 4);
        const float *x_scales = (const float *)(const void *)(x_sums + parts * rows);
        for (; asked < (size_t)(b + 1) * ask->block_bytes; asked += 64)
            _mm_prefetch(ask->at[0] + asked, _MM_HINT_T1);
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m256i isum[TILE][HALVES];
            const int32_t *start = x_sums + part * rows;
#pragma GCC unroll 4
            for (int t = 0; t < rows; t++)
                isum[t][0] = isum[t][1] = has_addends || kind == SIGNED_BYTES ? _mm256_setzero_si256()
                                                                              : _mm256_set1_epi32(start[t]);
#pragma GCC unroll 8
            for (int j = part * each; j < (part + 1) * each; j += step)
                multiply(isum, w->codes + b * SPREAD_CODES, numbers, j, step, rows, kind);
            add_part(isum, w->scales + b * parts + part, w->addends + b * parts + part, x_scales,
                     (const float *)(const void *)start, sums, rows, has_addends);
        }
    }
}

/* One function for each number of rows: the sums of each live in registers. */
#define TILE_FUNCTION(NAME, ROWS, PARTS, ADDENDS, KIND)                                                      \
    AVX2_TARGET static void NAME##_tile_##ROWS(const struct spread *w, const struct ask *ask, const char *x, \
                                               int64_t blocks, float *sums)                                  \
    {                                                                                                        \
        tile(w, ask, x, blocks, sums, ROWS, PARTS, ADDENDS, KIND);                                           \
    }
#define TILES(NAME, PARTS, ADDENDS, KIND)                                                            \
    TILE_FUNCTION(NAME, 1, PARTS, ADDENDS, KIND)                                                     \
    TILE_FUNCTION(NAME, 2, PARTS, ADDENDS, KIND)                                                     \
    TILE_FUNCTION(NAME, 3, PARTS, ADDENDS, KIND)                                                     \
    TILE_FUNCTION(NAME, 4, PARTS, ADDENDS, KIND)                                                     \
    static tile_function *const NAME##_tiles[] = {NULL, NAME##_tile_1, NAME##_tile_2, NAME##_tile_3, \
                                                  NAME##_tile_4};
TILES(bytes, 1, false, SIGNED_BYTES)
TILES(fours, 1, false, FOUR_BITS)
TILES(fours_addends, 1, true, FOUR_BITS)
TILES(fours_halves, 2, false, FOUR_BITS)
TILES(fours_halves_addends, 2, true, FOUR_BITS)
TILES(fives, 1, false, FIVE_BITS)
TILES(fives_addends, 1, true, FIVE_BITS)
TILES(sixes_halves, 2, false, SIX_BITS)

/* ---- the types */

#define SPREAD_FUNCTION(NAME, TYPE, PARTS)                                                                \
    AVX2_TARGET static struct spread NAME(const struct panel_layout *l, const char *panel, int64_t block, \
                                          int64_t blocks, const struct spread_room *room) {               \
        return spread_run(TYPE, PARTS, l, panel, block, blocks, room);                                    \
    }
SPREAD_FUNCTION(spread_q8_0, DTYPE_Q8_0, 1)
SPREAD_FUNCTION(spread_q4_0, DTYPE_Q4_0, 1)
SPREAD_FUNCTION(spread_q4_1, DTYPE_Q4_1, 1)
SPREAD_FUNCTION(spread_q5_0, DTYPE_Q5_0, 1)
SPREAD_FUNCTION(spread_q5_1, DTYPE_Q5_1, 1)
SPREAD_FUNCTION(spread_q2_k, DTYPE_Q2_K, 2)
SPREAD_FUNCTION(spread_q3_k, DTYPE_Q3_K, 2)
SPREAD_FUNCTION(spread_q4_k, DTYPE_Q4_K, 1)
SPREAD_FUNCTION(spread_q5_k, DTYPE_Q5_K, 1)
SPREAD_FUNCTION(spread_q6_k, DTYPE_Q6_K, 2)

#define TYPE_ENTRY(NAME, KIND)                               \
    {                                                        \
        .spread = spread_##NAME, .by_rows = { KIND##_tiles } \
    }
static const struct block_type TYPES[DTYPE_COUNT] = {
    [DTYPE_Q8_0] = TYPE_ENTRY(q8_0, bytes),         [DTYPE_Q4_0] = TYPE_ENTRY(q4_0, fours),
    [DTYPE_Q4_1] = TYPE_ENTRY(q4_1, fours_addends), [DTYPE_Q5_0] = TYPE_ENTRY(q5_0, fives),
    [DTYPE_Q5_1] = TYPE_ENTRY(q5_1, fives_addends), [DTYPE_Q2_K] = TYPE_ENTRY(q2_k, fours_halves_addends),
    [DTYPE_Q3_K] = TYPE_ENTRY(q3_k, fours_halves),  [DTYPE_Q4_K] = TYPE_ENTRY(q4_k, fours_addends),
    [DTYPE_Q5_K] = TYPE_ENTRY(q5_k, fives_addends), [DTYPE_Q6_K] = TYPE_ENTRY(q6_k, sixes_halves),
};

/* The codes of a panel's run are 4 or 8 KiB. */
static const struct block_tiles AVX2_TILES = {
    .rows = TILE, .side = 1, .run_few = 8, .run_many = 16, .quantise = quantise_blocks, .types = TYPES};

void avx2_matmul_panels(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    block_matmul(s, x, outputs, count, &AVX2_TILES);
}
#endif
