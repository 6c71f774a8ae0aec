/* matmul: out = x . w^T + bias and its transposed product, for every weight type; the portable reference.
 *
 * A block of weight rows is turned into floats once (exactly: every weight type's values are floats) and then
 * multiplied with all rows of x, a 4 x 4 tile of outputs at a time. Each output has its own sixteen lanes
 * (kernels/cpu/lanes.h), so tiles, chunks and threads do not show in the sums:
 *
 *              chunk of K ->                       K ->
 *   w rows  [ 16 rows as floats, in cache ]   x [ 4 rows ]   acc[4][4][16] += x * w, folded at the end of K
 *
 * With few rows of x (decode) the weights are the traffic: chunks are short, so that the floats never leave
 * the first-level cache. With many (prefill) a chunk is the whole row. */
#include <string.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel.h"

#define TILE_ROWS   4   /* weight rows (outputs) of a tile */
#define TILE_X      4   /* rows of x of a tile */
#define BLOCK_ROWS  16  /* weight rows that one pass over x is shared by */
#define CHUNK_FEW   512 /* elements of K at a time in decode; a multiple of every block size and of LANES */
#define BLOCK_K     256 /* columns of a piece of the transposed product */
#define BLOCK_DX    64  /* rows of dx of such a piece */
#define TRANSPOSE_N PANEL_ROWS /* weight rows made floats at a time there */

/* Row n of a weight from column k on; k is a multiple of the type's block. */
static const char *weight_at(const struct weight *w, int64_t n, int64_t k)
{
    const struct dtype_info *info = dtype_info(w->stored.dtype);
    uint64_t row_blocks = (uint64_t)w->stored.dim[1] / info->block_elements;
    return (const char *)w->packed +
           ((uint64_t)n * row_blocks + (uint64_t)k / info->block_elements) * info->block_bytes;
}

void cpu_weight_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out)
{
    if (w->layout == 0)
        dtype_to_f32(w->stored.dtype, weight_at(w, n, k), out, (uint64_t)count);
    else
        panel_row_floats(w, n, k, count, out);
}

/* ---- out = x . w^T */

/* acc[i][r] += x[i] * w[r] over k elements, for XS rows of x and ROWS weight rows. WIDTH lanes are summed in
 * registers at a time; narrower registers take several passes, which changes no lane's sum. */
#define TILE_KERNEL(NAME, TARGET, WIDTH, XS, ROWS)                                                      \
    TARGET static void NAME(float *restrict acc, const float *restrict x, int64_t x_stride,             \
                            const float *restrict w, int64_t w_stride, int64_t k)                       \
    {                                                                                                   \
        typedef float vec __attribute__((vector_size((WIDTH) * sizeof(float)), aligned(4), may_alias)); \
        int64_t whole = k / LANES * LANES;                                                              \
        for (int lane = 0; lane < LANES; lane += (WIDTH)) {                                             \
            vec sum[XS][ROWS];                                                                          \
            for (int i = 0; i < (XS); i++)                                                              \
                for (int r = 0; r < (ROWS); r++)                                                        \
                    sum[i][r] = *(const vec *)(acc + (i * TILE_ROWS + r) * LANES + lane);               \
            for (int64_t c = lane; c < whole; c += LANES)                                               \
                for (int r = 0; r < (ROWS); r++) {                                                      \
                    vec wv = *(const vec *)(w + r * w_stride + c);                                      \
                    for (int i = 0; i < (XS); i++)                                                      \
                        sum[i][r] += *(const vec *)(x + i * x_stride + c) * wv;                         \
                }                                                                                       \
            for (int i = 0; i < (XS); i++)                                                              \
                for (int r = 0; r < (ROWS); r++)                                                        \
                    *(vec *)(acc + (i * TILE_ROWS + r) * LANES + lane) = sum[i][r];                     \
        }                                                                                               \
        for (int i = 0; i < (XS); i++)                                                                  \
            for (int r = 0; r < (ROWS); r++)                                                            \
                for (int j = 0; whole + j < k; j++)                                                     \
                    acc[(i * TILE_ROWS + r) * LANES + j] +=                                             \
                        x[i * x_stride + whole + j] * w[r * w_stride + whole + j];                      \
    }

typedef void tile_function(float *restrict acc, const float *restrict x, int64_t x_stride,
                           const float *restrict w, int64_t w_stride, int64_t k);

/* One set per register width; `full` is as large as that width's registers can hold. */
struct tiles {
    tile_function *full; /* xs x TILE_ROWS */
    int xs;
    tile_function *one_x;  /* 1 x TILE_ROWS */
    tile_function *single; /* 1 x 1 */
};

TILE_KERNEL(full_portable, , 4, 2, TILE_ROWS)
TILE_KERNEL(one_x_portable, , 4, 1, TILE_ROWS)
TILE_KERNEL(single_portable, , 4, 1, 1)
static const struct tiles PORTABLE = {full_portable, 2, one_x_portable, single_portable};

#ifdef CPU_HAS_CLONES
#define AVX2    __attribute__((target("avx2")))
#define AVX512F __attribute__((target("avx512f")))
TILE_KERNEL(full_avx2, AVX2, 8, 2, TILE_ROWS)
TILE_KERNEL(one_x_avx2, AVX2, 8, 1, TILE_ROWS)
TILE_KERNEL(single_avx2, AVX2, 8, 1, 1)
static const struct tiles WITH_AVX2 = {full_avx2, 2, one_x_avx2, single_avx2};

TILE_KERNEL(full_avx512, AVX512F, 16, 4, TILE_ROWS)
TILE_KERNEL(one_x_avx512, AVX512F, 16, 1, TILE_ROWS)
TILE_KERNEL(single_avx512, AVX512F, 16, 1, 1)
static const struct tiles WITH_AVX512 = {full_avx512, 4, one_x_avx512, single_avx512};
#endif

static const struct tiles *tiles_here(void)
{
#ifdef CPU_HAS_CLONES
    if (__builtin_cpu_supports("avx512f"))
        return &WITH_AVX512;
    if (__builtin_cpu_supports("avx2"))
        return &WITH_AVX2;
#endif
    return &PORTABLE;
}

static void tile_any(const struct tiles *tiles, float *acc, const float *x, int64_t x_stride, int xs,
                     const float *w, int64_t w_stride, int rows, int64_t k)
{
    for (int i = 0, step; i < xs; i += step) {
        float *sums = acc + i * TILE_ROWS * LANES;
        const float *xi = x + i * x_stride;
        step = rows == TILE_ROWS && xs - i >= tiles->xs ? tiles->xs : 1;
        if (rows < TILE_ROWS)
            for (int r = 0; r < rows; r++)
                tiles->single(sums + r * LANES, xi, x_stride, w + r * w_stride, w_stride, k);
        else if (step > 1)
            tiles->full(sums, xi, x_stride, w, w_stride, k);
        else
            tiles->one_x(sums, xi, x_stride, w, w_stride, k);
    }
}

struct matmul {
    struct team *team;
    const struct tiles *tiles;
    const float *x, *bias;
    float *out;
    const struct weight *w;
    int64_t T, N, K;
};

static int at_most(int64_t left, int limit)
{
    return left < limit ? (int)left : limit;
}

/* The tile of outputs [t0, t0 + xs) x [n0, n0 + rows) is complete: fold and store. */
static void store_tile(const struct matmul *m, float *acc, int64_t t0, int xs, int64_t n0, int rows)
{
    for (int i = 0; i < xs; i++)
        for (int r = 0; r < rows; r++) {
            float sum = lanes_fold(acc + (i * TILE_ROWS + r) * LANES);
            m->out[(t0 + i) * m->N + n0 + r] = m->bias ? sum + m->bias[n0 + r] : sum;
        }
}

static void tile_in_chunks(const struct matmul *m, float *acc, float *floats, int64_t n, int rows)
{
    for (int64_t k = 0; k < m->K; k += CHUNK_FEW) {
        int chunk = at_most(m->K - k, CHUNK_FEW);
        for (int r = 0; r < rows; r++)
            dtype_to_f32(m->w->stored.dtype, weight_at(m->w, n + r, k), floats + r * CHUNK_FEW,
                         (uint64_t)chunk);
        tile_any(m->tiles, acc, m->x + k, m->K, (int)m->T, floats, CHUNK_FEW, rows, chunk);
    }
}

/* Outputs n0..n0+rows of at most TILE_X rows of x: the weights pass once, chunk by chunk. */
static void matmul_few(const struct matmul *m, float *floats, int64_t n0, int rows)
{
    _Alignas(64) float acc[TILE_X * TILE_ROWS * LANES];
    for (int r0 = 0; r0 < rows; r0 += TILE_ROWS) {
        int tile = at_most(rows - r0, TILE_ROWS);
        memset(acc, 0, sizeof(acc));
        if (m->w->stored.dtype == DTYPE_F32)
            tile_any(m->tiles, acc, m->x, m->K, (int)m->T, (const float *)weight_at(m->w, n0 + r0, 0), m->K,
                     tile, m->K);
        else
            tile_in_chunks(m, acc, floats, n0 + r0, tile);
        store_tile(m, acc, 0, (int)m->T, n0 + r0, tile);
    }
}

/* Outputs n0..n0+rows of many rows of x: the block becomes floats once and serves them all. */
static void matmul_many(const struct matmul *m, float *floats, int64_t stride, int64_t n0, int rows)
{
    _Alignas(64) float acc[TILE_X * TILE_ROWS * LANES];
    for (int r = 0; r < rows; r++)
        dtype_to_f32(m->w->stored.dtype, weight_at(m->w, n0 + r, 0), floats + r * stride, (uint64_t)m->K);
    for (int64_t t = 0; t < m->T; t += TILE_X) {
        int xs = at_most(m->T - t, TILE_X);
        for (int r = 0; r < rows; r += TILE_ROWS) {
            int tile = at_most(rows - r, TILE_ROWS);
            memset(acc, 0, sizeof(acc));
            tile_any(m->tiles, acc, m->x + t * m->K, m->K, xs, floats + r * stride, stride, tile, m->K);
            store_tile(m, acc, t, xs, n0 + r, tile);
        }
    }
}

static void matmul_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct matmul *m = context;
    bool few = m->T <= TILE_X;
    /* An odd number of cache lines between rows: powers of two would fall into the same cache sets. */
    int64_t stride = (int64_t)round_up_u64((uint64_t)m->K, LANES) + LANES;
    size_t bytes = sizeof(float) * (few ? TILE_ROWS * CHUNK_FEW : BLOCK_ROWS * (size_t)stride);
    float *floats = team_scratch(m->team, member, bytes);
    for (int64_t n = begin; n < end; n += BLOCK_ROWS) {
        int rows = at_most(end - n, BLOCK_ROWS);
        if (few)
            matmul_few(m, floats, n, rows);
        else
            matmul_many(m, floats, stride, n, rows);
    }
}

void cpu_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count)
{
    for (const struct matmul_output *o = outputs; o < outputs + count; o++) {
        struct matmul m = {.team = cpu_team(s),
                           .tiles = tiles_here(),
                           .x = x->data,
                           .bias = o->bias ? o->bias->data : NULL,
                           .out = o->out->data,
                           .w = o->w,
                           .T = x->dim[0],
                           .N = o->w->stored.dim[0],
                           .K = o->w->stored.dim[1]};
        team_for(m.team, m.N, BLOCK_ROWS, matmul_body, &m);
    }
}

/* ---- dx = dy . w: element (t, k) adds dy[t][n] * w[n][k] for n ascending. */

CPU_CLONES static void add_scaled(float *restrict dx, const float *restrict w, float dy, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        dx[k] += dy * w[k];
}

/* Four weight rows in their order, so that dx is read and written a fourth as often. */
CPU_CLONES static void add_four(float *restrict dx, const float *restrict w, const float *restrict dy,
                                int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        float sum = dx[k] + dy[0] * w[k];
        sum += dy[1] * w[BLOCK_K + k];
        sum += dy[2] * w[2 * BLOCK_K + k];
        dx[k] = sum + dy[3] * w[3 * BLOCK_K + k];
    }
}

struct matmul_transposed {
    struct team *team;
    const float *dy;
    float *dx;
    const struct weight *w;
    int64_t T, N, K, pieces_k;
};

/* `count` columns from k on of rows [n, n + rows) as floats, BLOCK_K apart; n is a multiple of TRANSPOSE_N.
 */
static void weight_rows(const struct weight *w, int64_t n, int rows, int64_t k, int64_t count, float *floats)
{
    if (w->layout != 0 && count == BLOCK_K)
        panel_floats(w, n / PANEL_ROWS, k, count, floats);
    else
        for (int r = 0; r < rows; r++)
            cpu_weight_floats(w, n + r, k, count, floats + r * BLOCK_K);
}

/* One piece: BLOCK_DX rows of dx by BLOCK_K columns. */
static void transposed_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct matmul_transposed *m = context;
    float *floats = team_scratch(m->team, member, sizeof(float) * TRANSPOSE_N * BLOCK_K);
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t k = piece % m->pieces_k * BLOCK_K, t0 = piece / m->pieces_k * BLOCK_DX;
        int columns = at_most(m->K - k, BLOCK_K), rows = at_most(m->T - t0, BLOCK_DX);
        for (int t = 0; t < rows; t++)
            memset(m->dx + (t0 + t) * m->K + k, 0, sizeof(float) * (size_t)columns);
        for (int64_t n = 0; n < m->N; n += TRANSPOSE_N) {
            int tile = at_most(m->N - n, TRANSPOSE_N);
            weight_rows(m->w, n, tile, k, columns, floats);
            for (int t = 0; t < rows; t++) {
                float *dx = m->dx + (t0 + t) * m->K + k;
                const float *dy = m->dy + (t0 + t) * m->N + n;
                int r = 0;
                for (; r + 4 <= tile; r += 4)
                    add_four(dx, floats + r * BLOCK_K, dy + r, columns);
                for (; r < tile; r++)
                    add_scaled(dx, floats + r * BLOCK_K, dy[r], columns);
            }
        }
    }
}

void cpu_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                           const struct weight *w)
{
    struct matmul_transposed m = {.team = cpu_team(s),
                                  .dy = dy->data,
                                  .dx = dx->data,
                                  .w = w,
                                  .T = dx->dim[0],
                                  .N = w->stored.dim[0],
                                  .K = w->stored.dim[1]};
    m.pieces_k = (m.K + BLOCK_K - 1) / BLOCK_K;
    team_for(m.team, m.pieces_k * ((m.T + BLOCK_DX - 1) / BLOCK_DX), 1, transposed_body, &m);
}
