/* matmul_bf16: x . w^T for panels of BF16 weights with VDPBF16PS: x is rounded to BF16 (to nearest even), a
 * lane adds two products at a time:
 *
 *   sum[t][p] += x[2k][t] * w[2k] + x[2k + 1][t] * w[2k + 1]
 *
 * with the rounding that the instruction defines (subnormals count as zero). Blocks of K and their order are
 * those of kernels/cpu/matmul_float.h. */
#include "kernels/cpu/fast.h"

#ifdef CPU_HAS_FAST

#include "kernels/cpu/float_tiles_avx512.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")))
#define INLINE    \
    static inline \
        __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")))
#define STEP FLOAT_STEP(DTYPE_BF16)

INLINE void bf16_pair(const int32_t *x, const char *const *panel, int64_t k, const int rows, const int side,
                      __m512 sum[FLOAT_MAX_ROWS][FLOAT_MAX_SIDE])
{
    __m512bh w[FLOAT_MAX_SIDE];
#pragma GCC unroll 4
    for (int p = 0; p < side; p++)
        w[p] = (__m512bh)_mm512_loadu_si512(panel[p] + k * PANEL_ROWS * 2);
#pragma GCC unroll 12
    for (int t = 0; t < rows; t++) {
        __m512bh xs = (__m512bh)_mm512_set1_epi32(x[k / 2 * rows + t]);
#pragma GCC unroll 4
        for (int p = 0; p < side; p++)
            sum[t][p] = _mm512_dpbf16_ps(sum[t][p], w[p], xs);
    }
}

/* rows, side and few are constants where this is inlined. */
INLINE void bf16_tile(const struct float_tile *tile, const int rows, const int side, const bool few)
{
    const int32_t *x = tile->x; /* pairs */
    const char *panel[FLOAT_MAX_SIDE];
    __m512 sum[FLOAT_MAX_ROWS][FLOAT_MAX_SIDE];
    for (int p = 0; p < side; p++)
        panel[p] = tile->panel[p];
    for (int t = 0; t < rows; t++)
        for (int p = 0; p < side; p++)
            sum[t][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < tile->k; k += STEP) {
        if (few)
            float_ask(tile, k * PANEL_ROWS * 2, side);
#pragma GCC unroll 8
        for (int i = 0; i < STEP; i += 2) {
            if (!few)
                _mm_prefetch(tile->ahead + (k + i) * 32, _MM_HINT_T0);
            bf16_pair(x, panel, k + i, rows, side, sum);
        }
    }
    avx512_add_tile(tile, rows, side, sum);
}

#define TILE(NAME, FEW, ROWS, SIDE)                                 \
    TARGET static void NAME##_##ROWS(const struct float_tile *tile) \
    {                                                               \
        bf16_tile(tile, ROWS, SIDE, FEW);                           \
    }
AVX512_TILES(TILE, few, true)
AVX512_TILES(TILE, many, false)

/* [laid / 2][rows] pairs: sixteen pairs of each row at a time, turned. */
TARGET static void lay(const float *x, int64_t K, int64_t laid, int rows, void *out)
{
    float *to = out; /* a pair is moved as if it were a float */
    __mmask16 wanted = avx512_first(rows);
    for (int64_t k = 0; k < laid; k += 32) {
        __m512 row[16], column[16];
        for (int t = 0; t < 16; t++) {
            row[t] = _mm512_setzero_ps();
            if (t < rows) {
                const float *at = x + t * K + k;
                __m512 low = _mm512_maskz_loadu_ps(avx512_first(K - k), at);
                __m512 high = _mm512_maskz_loadu_ps(avx512_first(K - k - 16), at + 16);
                row[t] = _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low));
            }
        }
        avx512_turn(row, column);
        for (int i = 0; i < 16 && k + 2 * i < laid; i++)
            _mm512_mask_storeu_ps(to + (k / 2 + i) * rows, wanted, column[i]);
    }
}

static const struct float_tiles BF16_TILES = {AVX512_SHAPES, .few = AVX512_BY_ROWS(few),
                                              .many = AVX512_BY_ROWS(many), .lay = lay,
                                              .x_bytes = sizeof(uint16_t)};

void fast_matmul_bf16(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                      int count)
{
    float_matmul(s, x, outputs, count, &BF16_TILES);
}
#endif
