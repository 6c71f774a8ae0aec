/* matmul_vnni: x . w^T for panels (kernels/cpu/panel.h) with AVX-512 VNNI.
 *
 * x is quantised once per call, each 32 elements of a row by their own scale: a[k] = round(x[k] / s), s =
 * max|x| / 127. A tile of up to TILE rows of x is laid out so that the kernel reads it front to back:
 *
 *   for each block: a [8][tile rows][4], corrections [tile rows], scales [tile rows]
 *
 * VPDPBUSD multiplies unsigned bytes by signed ones, so weights are kept with an offset (128, or 8 for four
 * bits); the correction -offset * sum(a) of the block starts each integer sum, which is exact. Per block, in
 * ascending order:
 *
 *   out[t][n] = fma(float(isum), w_scale[n] * x_scale[t], out[t][n])
 *
 * and nothing else rounds. The order does not depend on the tile, the number of rows or of threads. */
#include "kernels/cpu/fast.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/panel.h"

#ifdef CPU_HAS_FAST
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))
#define INLINE    \
    static inline \
        __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))
#define TILE 12 /* rows of x whose sums fit the registers, twice: integers and floats */

/* Bytes of one block of a quantised tile: numbers, corrections and scales of its rows. */
#define TILE_BLOCK_BYTES(rows) ((size_t)(rows) * (PANEL_BLOCK + sizeof(int32_t) + sizeof(float)))

struct job {
    const struct weight *w;
    struct panel_layout layout;
    const float *x, *bias;
    float *out;
    char *tiles; /* quantised x */
    int64_t T, N, K;
    int32_t offset;
    bool four_bits;
};

static char *tile_at(const struct job *m, int64_t t)
{
    return m->tiles + (size_t)t * (size_t)m->layout.blocks * TILE_BLOCK_BYTES(1);
}

/* One block of one row of x into its place in the tile. NaN or infinity in x makes the scale NaN, and the
 * outputs too. */
TARGET static void quantise_block(const float *x, char *block, int rows, int row, int32_t offset)
{
    __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)));
    bool nan = _mm512_cmp_ps_mask(lo, hi, _CMP_UNORD_Q) != 0 || !(most <= 3.4e38f);
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    if (nan ||
        !(inverse <= 3.4e38f)) { /* of no use, or so small that its inverse overflows: the numbers are zero */
        lo = hi = _mm512_setzero_ps();
        inverse = most = 0;
    }
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(lo, _mm512_set1_ps(inverse)));
    __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(hi, _mm512_set1_ps(inverse)));
    int8_t q[PANEL_BLOCK];
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(void *)(q + 16), _mm512_cvtepi32_epi8(b));
    int32_t correction = -offset * _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
    float scale = nan ? NAN : most / 127.0f;
    for (int j = 0; j < PANEL_BLOCK / 4; j++)
        memcpy(block + (j * rows + row) * 4, q + 4 * j, 4);
    char *after = block + (size_t)rows * PANEL_BLOCK;
    memcpy(after + row * 4, &correction, 4);
    memcpy(after + (rows + row) * 4, &scale, 4);
}

static void quantise_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    (void)member;
    for (int64_t t = begin; t < end; t++) {
        int64_t first = t / TILE * TILE;
        int rows = (int)(m->T - first < TILE ? m->T - first : TILE);
        char *tile = tile_at(m, first);
        for (int64_t b = 0; b < m->layout.blocks; b++)
            quantise_block(m->x + t * m->K + b * PANEL_BLOCK, tile + (size_t)b * TILE_BLOCK_BYTES(rows), rows,
                           (int)(t - first), m->offset);
    }
}

/* Sixteen outputs of `rows` rows of x; `rows` and `four_bits` are constants where this is inlined. */
INLINE void panel_tile(const struct job *m, const uint8_t *quants, const uint16_t *scales, const char *a,
                       float *out, const float *bias, int64_t outputs, const int rows, const bool four_bits)
{
    __m512 sum[TILE];
    for (int t = 0; t < rows; t++)
        sum[t] = _mm512_setzero_ps();
    for (int64_t b = 0; b < m->layout.blocks; b++) {
        const int32_t *numbers = (const int32_t *)(const void *)a;
        const int32_t *corrections = numbers + rows * (PANEL_BLOCK / 4);
        const float *x_scales = (const float *)(const void *)(corrections + rows);
        __m512i isum[TILE];
        for (int t = 0; t < rows; t++)
            isum[t] = _mm512_set1_epi32(corrections[t]);
        if (four_bits) {
            const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i both = _mm512_loadu_si512(quants + j * 64);
                __m512i w0 = _mm512_and_si512(both, low);
                __m512i w1 = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 12
                for (int t = 0; t < rows; t++) {
                    isum[t] = _mm512_dpbusd_epi32(isum[t], w0, _mm512_set1_epi32(numbers[j * rows + t]));
                    isum[t] =
                        _mm512_dpbusd_epi32(isum[t], w1, _mm512_set1_epi32(numbers[(j + 4) * rows + t]));
                }
            }
            quants += 256;
        } else {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                __m512i w = _mm512_loadu_si512(quants + j * 64);
#pragma GCC unroll 12
                for (int t = 0; t < rows; t++)
                    isum[t] = _mm512_dpbusd_epi32(isum[t], w, _mm512_set1_epi32(numbers[j * rows + t]));
            }
            quants += 512;
        }
        __m512 w_scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)scales));
        scales += PANEL_ROWS;
#pragma GCC unroll 12
        for (int t = 0; t < rows; t++)
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[t]),
                                     _mm512_mul_ps(w_scale, _mm512_set1_ps(x_scales[t])), sum[t]);
        a += TILE_BLOCK_BYTES(rows);
    }
    __mmask16 mask = outputs >= PANEL_ROWS ? 0xFFFF : (__mmask16)((1u << outputs) - 1);
    __m512 add = bias ? _mm512_maskz_loadu_ps(mask, bias) : _mm512_setzero_ps();
    for (int t = 0; t < rows; t++)
        _mm512_mask_storeu_ps(out + t * m->N, mask, bias ? _mm512_add_ps(sum[t], add) : sum[t]);
}

/* One function for each number of rows: the sums of each live in registers. */
#define TILE_FUNCTION(R)                                                                                  \
    TARGET static void tile8_##R(const struct job *m, const uint8_t *q, const uint16_t *s, const char *a, \
                                 float *out, const float *bias, int64_t outputs)                          \
    {                                                                                                     \
        panel_tile(m, q, s, a, out, bias, outputs, R, false);                                             \
    }                                                                                                     \
    TARGET static void tile4_##R(const struct job *m, const uint8_t *q, const uint16_t *s, const char *a, \
                                 float *out, const float *bias, int64_t outputs)                          \
    {                                                                                                     \
        panel_tile(m, q, s, a, out, bias, outputs, R, true);                                              \
    }
TILE_FUNCTION(1)
TILE_FUNCTION(2)
TILE_FUNCTION(3)
TILE_FUNCTION(4)
TILE_FUNCTION(5)
TILE_FUNCTION(6)
TILE_FUNCTION(7)
TILE_FUNCTION(8)
TILE_FUNCTION(9)
TILE_FUNCTION(10)
TILE_FUNCTION(11)
TILE_FUNCTION(12)

typedef void tile_function(const struct job *, const uint8_t *, const uint16_t *, const char *, float *,
                           const float *, int64_t);
static tile_function *const tiles8[TILE + 1] = {NULL,     tile8_1,  tile8_2, tile8_3, tile8_4,
                                                tile8_5,  tile8_6,  tile8_7, tile8_8, tile8_9,
                                                tile8_10, tile8_11, tile8_12};
static tile_function *const tiles4[TILE + 1] = {NULL,     tile4_1,  tile4_2, tile4_3, tile4_4,
                                                tile4_5,  tile4_6,  tile4_7, tile4_8, tile4_9,
                                                tile4_10, tile4_11, tile4_12};

static void panels_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    (void)member;
    for (int64_t p = begin; p < end; p++) {
        const uint8_t *quants = (const uint8_t *)m->w->packed + (size_t)p * m->layout.panel_bytes;
        const uint16_t *scales =
            (const uint16_t *)(const void *)(quants + (size_t)m->layout.blocks * m->layout.quant_bytes);
        int64_t n = p * PANEL_ROWS;
        for (int64_t t = 0; t < m->T; t += TILE) {
            int rows = (int)(m->T - t < TILE ? m->T - t : TILE);
            (m->four_bits ? tiles4 : tiles8)[rows](m, quants, scales, tile_at(m, t), m->out + t * m->N + n,
                                                   m->bias ? m->bias + n : NULL, m->N - n);
        }
    }
}

void fast_matmul_panels(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                        const struct tensor *bias)
{
    bool four_bits = w->stored.dtype == DTYPE_Q4_0;
    struct job m = {.w = w,
                    .layout = panel_layout(w->stored.dtype, w->stored.dim[0], w->stored.dim[1]),
                    .x = x->data,
                    .bias = bias ? bias->data : NULL,
                    .out = out->data,
                    .T = x->dim[0],
                    .N = w->stored.dim[0],
                    .K = w->stored.dim[1],
                    .offset = four_bits ? 8 : 128,
                    .four_bits = four_bits};
    m.tiles = cpu_stream_scratch(s, (size_t)m.T * (size_t)m.layout.blocks * TILE_BLOCK_BYTES(1));
    struct team *team = cpu_team(s);
    team_for(team, m.T, TILE, quantise_body, &m);
    team_for(team, m.layout.panels, 4, panels_body, &m);
}
#endif
