/* matmul_float_avx2: the tiles of kernels/cpu/matmul_float.h with AVX2 and FMA, in fp32 throughout. Sixteen
 * outputs are two registers; a tile keeps its sums in registers through a block of K:
 *
 *   sum[t][p][h] = fma(x[k][t], half h of panel p [k][16], sum[t][p][h])
 *
 * One panel and six rows: twelve of the sixteen registers are sums. With one row it is four panels, with two
 * two, for enough chains under way. */
#include "kernels/cpu/fast.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/matmul_float.h"

#define ROWS   6
#define HALVES 2 /* registers of sixteen outputs */

/* Half h of element k + i of a panel as eight floats: BF16 panels hold elements in pairs, so k is even and
 * i < 2. */
AVX2_INLINE __m256 load_weights(enum dtype type, const void *panel, int64_t k, const int i, const int h)
{
    const char *at = (const char *)panel + k * PANEL_ROWS * (type == DTYPE_F32 ? 4 : 2);
    if (type == DTYPE_F32)
        return _mm256_loadu_ps((const float *)(const void *)at + i * PANEL_ROWS + h * AVX2_LANES);
    if (type == DTYPE_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at + i * HALVES + h));
    __m256i pair = _mm256_loadu_si256((const __m256i *)(const void *)at + h);
    return _mm256_castsi256_ps(i == 0 ? _mm256_slli_epi32(pair, 16)
                                      : _mm256_and_si256(pair, _mm256_set1_epi32((int)0xFFFF0000u)));
}

/* out = sum, or out += sum; bias comes last. */
AVX2_INLINE void add_tile(const struct float_tile *tile, const int rows, const int side,
                          __m256 sum[ROWS][FLOAT_MAX_SIDE][HALVES])
{
#pragma GCC unroll 4
    for (int p = 0; p < side; p++)
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            int64_t n = p * PANEL_ROWS + h * AVX2_LANES;
            if (tile->outputs <= n)
                return;
            __m256i mask = avx2_first(tile->outputs - n);
#pragma GCC unroll 6
            for (int t = 0; t < rows; t++) {
                float *at = tile->out + t * tile->stride + n;
                __m256 all =
                    tile->first ? sum[t][p][h] : _mm256_add_ps(_mm256_maskload_ps(at, mask), sum[t][p][h]);
                if (tile->bias)
                    all = _mm256_add_ps(all, _mm256_maskload_ps(tile->bias + n, mask));
                _mm256_maskstore_ps(at, mask, all);
            }
        }
}

/* rows, side and type are constants where this is inlined. */
AVX2_INLINE void float_step(const float *x, const void *const *panel, int64_t k, const int i, const int rows,
                            const int side, const enum dtype type, __m256 sum[ROWS][FLOAT_MAX_SIDE][HALVES])
{
#pragma GCC unroll 4
    for (int p = 0; p < side; p++) {
        __m256 low = load_weights(type, panel[p], k, i, 0), high = load_weights(type, panel[p], k, i, 1);
#pragma GCC unroll 6
        for (int t = 0; t < rows; t++) {
            __m256 xs = _mm256_set1_ps(x[(k + i) * rows + t]);
            sum[t][p][0] = _mm256_fmadd_ps(xs, low, sum[t][p][0]);
            sum[t][p][1] = _mm256_fmadd_ps(xs, high, sum[t][p][1]);
        }
    }
}

AVX2_INLINE void float_tile(const struct float_tile *tile, const int rows, const int side,
                            const enum dtype type, const bool few)
{
    const int step = FLOAT_STEP(type), element = FLOAT_LINES * 64 / step;
    const void *panel[FLOAT_MAX_SIDE];
    __m256 sum[ROWS][FLOAT_MAX_SIDE][HALVES];
    for (int p = 0; p < side; p++)
        panel[p] = tile->panel[p];
#pragma GCC unroll 6
    for (int t = 0; t < rows; t++)
#pragma GCC unroll 4
        for (int p = 0; p < side; p++)
            sum[t][p][0] = sum[t][p][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < tile->k; k += step) {
        if (few)
            float_ask(tile, k * element, side);
#pragma GCC unroll 4
        for (int i = 0; i < step; i += 2) {
            if (!few)
                _mm_prefetch(tile->ahead + (k + i) * 32, _MM_HINT_T0);
            float_step(tile->x, panel, k + i, 0, rows, side, type, sum);
            float_step(tile->x, panel, k + i, 1, rows, side, type, sum);
        }
    }
    add_tile(tile, rows, side, sum);
}

/* One function for each type and shape, so that the sums live in registers. */
#define TILE(NAME, TYPE, FEW, ROWS_, SIDE)                                \
    AVX2_TARGET static void NAME##_##ROWS_(const struct float_tile *tile) \
    {                                                                     \
        float_tile(tile, ROWS_, SIDE, TYPE, FEW);                         \
    }
#define TILES(NAME, TYPE, FEW)  \
    TILE(NAME, TYPE, FEW, 1, 4) \
    TILE(NAME, TYPE, FEW, 2, 2) \
    TILE(NAME, TYPE, FEW, 3, 1) \
    TILE(NAME, TYPE, FEW, 4, 1) \
    TILE(NAME, TYPE, FEW, 5, 1) \
    TILE(NAME, TYPE, FEW, 6, 1)
TILES(f32, DTYPE_F32, true)
TILES(f16, DTYPE_F16, true)
TILES(bf16, DTYPE_BF16, true)
TILES(many, DTYPE_F32, false)

AVX2_TARGET static void widen_f16(const void *panel, int64_t k, float *out)
{
    for (int64_t i = 0; i < k; i++)
        for (int h = 0; h < HALVES; h++)
            _mm256_storeu_ps(out + i * PANEL_ROWS + h * AVX2_LANES, load_weights(DTYPE_F16, panel, i, 0, h));
}

AVX2_TARGET static void widen_bf16(const void *panel, int64_t k, float *out)
{
    for (int64_t i = 0; i < k; i += 2)
        for (int h = 0; h < HALVES; h++) {
            float *to = out + i * PANEL_ROWS + h * AVX2_LANES;
            _mm256_storeu_ps(to, load_weights(DTYPE_BF16, panel, i, 0, h));
            _mm256_storeu_ps(to + PANEL_ROWS, load_weights(DTYPE_BF16, panel, i, 1, h));
        }
}

/* [K][rows] */
static void lay(const float *x, int64_t K, int64_t laid, int rows, void *out)
{
    float *to = out;
    for (int64_t k = 0; k < K; k++)
        for (int t = 0; t < rows; t++)
            to[k * rows + t] = x[t * K + k];
    for (int64_t i = K * rows; i < laid * rows; i++)
        to[i] = 0;
}

#define BY_ROWS(NAME)                                                    \
    {                                                                    \
        NULL, NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6 \
    }
#define TABLE(NAME)                                                                               \
    .max_rows = ROWS, .side = {0, 4, 2, 1, 1, 1, 1}, .few = BY_ROWS(NAME), .many = BY_ROWS(many), \
    .lay = lay, .x_bytes = sizeof(float)
static const struct float_tiles F32_TILES = {TABLE(f32)};
static const struct float_tiles F16_TILES = {TABLE(f16), .widen = widen_f16};
static const struct float_tiles BF16_TILES = {TABLE(bf16), .widen = widen_bf16};

void avx2_matmul_float(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                       int count)
{
    enum dtype type = outputs->w->stored.dtype;
    float_matmul(s, x, outputs, count,
                 type == DTYPE_F32   ? &F32_TILES
                 : type == DTYPE_F16 ? &F16_TILES
                                     : &BF16_TILES);
}
#endif
