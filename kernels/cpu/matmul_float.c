/* matmul_float: x . w^T for panels of F32, F16 and BF16 weights with AVX-512, in fp32 throughout.
 *
 * A panel holds sixteen rows of w side by side: [K][16]. An output is four chains of fused multiply-adds,
 * chain c taking the elements k with k mod 4 = c in ascending order; at the end (c0 + c1) + (c2 + c3).
 * Sixteen outputs fill a register:
 *
 *   acc[t][c][16] = fma(x[t][4i + c], w[4i + c][16], acc[t][c][16])        t < TILE
 *
 * The order does not depend on the tile, the number of rows of x or of threads. */
#include "kernels/cpu/fast.h"

#include "kernels/cpu/panel.h"

#ifdef CPU_HAS_FAST
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define INLINE \
    static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define CHAINS 4
#define TILE   6 /* rows of x whose chains fit the registers */

struct job {
    const struct weight *w;
    struct panel_layout layout;
    const float *x, *bias;
    float *out;
    int64_t T, N, K;
};

/* Row k of a panel as sixteen floats. */
INLINE __m512 load_weights(enum dtype type, const void *panel, int64_t k)
{
    if (type == DTYPE_F32)
        return _mm512_loadu_ps((const float *)panel + k * PANEL_ROWS);
    __m256i half =
        _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)panel + k * PANEL_ROWS));
    if (type == DTYPE_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Sixteen outputs of `rows` rows of x; `rows` and `type` are constants where this is inlined. */
INLINE void panel_tile(const struct job *m, const void *panel, const float *x, float *out, const float *bias,
                       int64_t outputs, const int rows, const enum dtype type)
{
    __m512 sum[TILE][CHAINS];
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < CHAINS; c++)
            sum[t][c] = _mm512_setzero_ps();
    int64_t whole = m->K / CHAINS * CHAINS;
    for (int64_t k = 0; k < whole; k += CHAINS) {
        __m512 w[CHAINS];
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++)
            w[c] = load_weights(type, panel, k + c);
#pragma GCC unroll 6
        for (int t = 0; t < rows; t++)
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++)
                sum[t][c] = _mm512_fmadd_ps(_mm512_set1_ps(x[t * m->K + k + c]), w[c], sum[t][c]);
    }
    for (int c = 0; whole + c < m->K; c++) {
        __m512 w = load_weights(type, panel, whole + c);
        for (int t = 0; t < rows; t++)
            sum[t][c] = _mm512_fmadd_ps(_mm512_set1_ps(x[t * m->K + whole + c]), w, sum[t][c]);
    }
    __mmask16 mask = outputs >= PANEL_ROWS ? 0xFFFF : (__mmask16)((1u << outputs) - 1);
    __m512 add = bias ? _mm512_maskz_loadu_ps(mask, bias) : _mm512_setzero_ps();
    for (int t = 0; t < rows; t++) {
        __m512 all = _mm512_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]), _mm512_add_ps(sum[t][2], sum[t][3]));
        _mm512_mask_storeu_ps(out + t * m->N, mask, bias ? _mm512_add_ps(all, add) : all);
    }
}

typedef void tile_function(const struct job *, const void *, const float *, float *, const float *, int64_t);

/* One function for each type and number of rows: the chains of each live in registers. */
#define TILE_FUNCTION(NAME, TYPE, R)                                                                  \
    TARGET static void NAME##_##R(const struct job *m, const void *panel, const float *x, float *out, \
                                  const float *bias, int64_t outputs)                                 \
    {                                                                                                 \
        panel_tile(m, panel, x, out, bias, outputs, R, TYPE);                                         \
    }
#define TILE_SET(NAME, TYPE)                                                              \
    TILE_FUNCTION(NAME, TYPE, 1)                                                          \
    TILE_FUNCTION(NAME, TYPE, 2)                                                          \
    TILE_FUNCTION(NAME, TYPE, 3)                                                          \
    TILE_FUNCTION(NAME, TYPE, 4)                                                          \
    TILE_FUNCTION(NAME, TYPE, 5)                                                          \
    TILE_FUNCTION(NAME, TYPE, 6)                                                          \
    static tile_function *const NAME[TILE + 1] = {NULL,     NAME##_1, NAME##_2, NAME##_3, \
                                                  NAME##_4, NAME##_5, NAME##_6};
TILE_SET(tiles_f32, DTYPE_F32)
TILE_SET(tiles_f16, DTYPE_F16)
TILE_SET(tiles_bf16, DTYPE_BF16)

static void panels_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    enum dtype type = m->w->stored.dtype;
    tile_function *const *tiles = type == DTYPE_F32 ? tiles_f32 : type == DTYPE_F16 ? tiles_f16 : tiles_bf16;
    (void)member;
    for (int64_t p = begin; p < end; p++) {
        const char *panel = (const char *)m->w->packed + (size_t)p * m->layout.panel_bytes;
        int64_t n = p * PANEL_ROWS;
        for (int64_t t = 0; t < m->T; t += TILE) {
            int64_t left = m->T - t;
            tiles[left < TILE ? left : TILE](m, panel, m->x + t * m->K, m->out + t * m->N + n,
                                             m->bias ? m->bias + n : NULL, m->N - n);
        }
    }
}

void fast_matmul_float(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                       const struct tensor *bias)
{
    struct job m = {.w = w,
                    .layout = panel_layout(w->stored.dtype, w->stored.dim[0], w->stored.dim[1]),
                    .x = x->data,
                    .bias = bias ? bias->data : NULL,
                    .out = out->data,
                    .T = x->dim[0],
                    .N = w->stored.dim[0],
                    .K = w->stored.dim[1]};
    team_for(cpu_team(s), m.layout.panels, 4, panels_body, &m);
}
#endif
