/* matmul_float_avx512: the tiles of kernels/cpu/matmul_float.h with AVX-512, in fp32 throughout. Sixteen
 * outputs fill a register; a tile keeps its sums in registers through a block of K:
 *
 *   sum[t][p] = fma(x[k][t], panel p [k][16], sum[t][p])
 *
 * Two panels and twelve rows: each weight register serves twelve sums. With few rows it is four panels, for
 * enough chains under way. */
#include "kernels/cpu/fast.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/float_tiles_avx512.h"

/* Element k + i of a panel as sixteen floats: BF16 panels hold them in pairs, so k is even and i < 2. */
AVX512_INLINE __m512 load_weights(enum dtype type, const void *panel, int64_t k, const int i)
{
    const char *at = (const char *)panel + k * PANEL_ROWS * (type == DTYPE_F32 ? 4 : 2);
    if (type == DTYPE_F32)
        return _mm512_loadu_ps((const float *)(const void *)at + i * PANEL_ROWS);
    if (type == DTYPE_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at + i));
    __m512i pair = _mm512_loadu_si512(at);
    return _mm512_castsi512_ps(i == 0 ? _mm512_slli_epi32(pair, 16)
                                      : _mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000u)));
}

/* x * w + sum in the register that holds the sum: left to itself GCC 12 lets some products overwrite x and
 * copies it before, which takes the ports that multiply (six copies to 48 products). */
AVX512_INLINE __m512 multiply_add(__m512 x, __m512 w, __m512 sum)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* The same, the instruction itself taking x to all lanes. */
AVX512_INLINE __m512 multiply_spread(const float *x, __m512 w, __m512 sum)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));
    return sum;
}

/* Element k + i of K, whose numbers of x are at `x`. Of two panels' products three of four take x from
 * memory: where another guest has the core's other thread, the instructions that the front end carries are
 * what limits (one to spread x and two products instead of two: 71 to 75 % of the peak against 81 to 88), and
 * with all four the loads would be. */
AVX512_INLINE void float_element(const float *x, const void *const *panel, int64_t k, const int i,
                                 const int rows, const int side, const enum dtype type,
                                 __m512 sum[FLOAT_MAX_ROWS][FLOAT_MAX_SIDE])
{
    __m512 w[FLOAT_MAX_SIDE];
#pragma GCC unroll 4
    for (int p = 0; p < side; p++)
        w[p] = load_weights(type, panel[p], k, i);
#pragma GCC unroll 12
    for (int t = 0; t < rows; t++) {
        if (side == 2 && t % 4) {
            sum[t][0] = multiply_spread(x + t, w[0], sum[t][0]);
            sum[t][1] = multiply_spread(x + t, w[1], sum[t][1]);
            continue;
        }
        __m512 xs = _mm512_set1_ps(x[t]);
#pragma GCC unroll 4
        for (int p = 0; p < side; p++)
            sum[t][p] = multiply_add(xs, w[p], sum[t][p]);
    }
}

/* rows, side, type and few are constants where this is inlined. */
AVX512_INLINE void float_tile(const struct float_tile *tile, const int rows, const int side,
                              const enum dtype type, const bool few)
{
    const int step = FLOAT_STEP(type), element = FLOAT_LINES * 64 / step;
    const void *panel[FLOAT_MAX_SIDE];
    __m512 sum[FLOAT_MAX_ROWS][FLOAT_MAX_SIDE];
    for (int p = 0; p < side; p++)
        panel[p] = tile->panel[p];
    for (int t = 0; t < rows; t++)
        for (int p = 0; p < side; p++)
            sum[t][p] = _mm512_setzero_ps();
    const float *x = tile->x; /* goes along: an address of its own for each number costs an instruction */
    for (int64_t k = 0; k < tile->k; k += step, x += step * rows) {
        if (few)
            float_ask(tile, k * element, side);
#pragma GCC unroll 4
        for (int i = 0; i < step; i += 2) {
            if (!few)
                _mm_prefetch(tile->ahead + (k + i) * 32, _MM_HINT_T0);
            float_element(x + i * rows, panel, k + i, 0, rows, side, type, sum);
            float_element(x + (i + 1) * rows, panel, k + i, 1, rows, side, type, sum);
        }
    }
    avx512_add_tile(tile, rows, side, sum);
}

#define FEW_TILE(NAME, TYPE, ROWS, SIDE)                                   \
    AVX512_TARGET static void NAME##_##ROWS(const struct float_tile *tile) \
    {                                                                      \
        float_tile(tile, ROWS, SIDE, TYPE, true);                          \
    }
#define MANY_TILE(NAME, TYPE, ROWS, SIDE)                                  \
    AVX512_TARGET static void NAME##_##ROWS(const struct float_tile *tile) \
    {                                                                      \
        float_tile(tile, ROWS, SIDE, TYPE, false);                         \
    }
AVX512_TILES(FEW_TILE, f32, DTYPE_F32)
AVX512_TILES(FEW_TILE, f16, DTYPE_F16)
AVX512_TILES(FEW_TILE, bf16, DTYPE_BF16)
AVX512_TILES(MANY_TILE, many, DTYPE_F32)

AVX512_TARGET static void widen_f16(const void *panel, int64_t k, float *out)
{
    for (int64_t i = 0; i < k; i++)
        _mm512_store_ps(out + i * PANEL_ROWS, load_weights(DTYPE_F16, panel, i, 0));
}

AVX512_TARGET static void widen_bf16(const void *panel, int64_t k, float *out)
{
    for (int64_t i = 0; i < k; i += 2) {
        _mm512_store_ps(out + i * PANEL_ROWS, load_weights(DTYPE_BF16, panel, i, 0));
        _mm512_store_ps(out + (i + 1) * PANEL_ROWS, load_weights(DTYPE_BF16, panel, i, 1));
    }
}

/* [K][rows]: sixteen elements of each row at a time, turned. */
AVX512_TARGET static void lay(const float *x, int64_t K, int64_t laid, int rows, void *out)
{
    float *to = out;
    __mmask16 wanted = avx512_first(rows);
    for (int64_t k = 0; k < K; k += 16) {
        __m512 row[16], column[16];
        int count = K - k < 16 ? (int)(K - k) : 16;
        for (int t = 0; t < 16; t++)
            row[t] =
                t < rows ? _mm512_maskz_loadu_ps(avx512_first(count), x + t * K + k) : _mm512_setzero_ps();
        avx512_turn(row, column);
        for (int i = 0; i < count; i++)
            _mm512_mask_storeu_ps(to + (k + i) * rows, wanted, column[i]);
    }
    for (int64_t k = K; k < laid; k++)
        _mm512_mask_storeu_ps(to + k * rows, wanted, _mm512_setzero_ps());
}

#define TABLE(NAME)                                                                       \
    AVX512_SHAPES, .few = AVX512_BY_ROWS(NAME), .many = AVX512_BY_ROWS(many), .lay = lay, \
                   .x_bytes = sizeof(float)
static const struct float_tiles F32_TILES = {TABLE(f32)};
static const struct float_tiles F16_TILES = {TABLE(f16), .widen = widen_f16};
static const struct float_tiles BF16_TILES = {TABLE(bf16), .widen = widen_bf16};

void fast_matmul_float(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                       int count)
{
    enum dtype type = outputs->w->stored.dtype;
    float_matmul(s, x, outputs, count,
                 type == DTYPE_F32   ? &F32_TILES
                 : type == DTYPE_F16 ? &F16_TILES
                                     : &BF16_TILES);
}
#endif
