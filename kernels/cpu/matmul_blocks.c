#include "kernels/cpu/matmul_blocks.h"

#include <string.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/products.h"

/* What the quantised rows of a group may take of the second-level cache. */
#define GROUP_BYTES (1 << 20)
/* Pieces of a member's share where rows are many. */
#define MANY_CHUNKS 16

struct job {
    struct team *team;
    const struct block_tiles *tiles;
    const struct panel_type *type;
    const struct block_type *functions;
    struct products products;
    const float *x;
    char *quantised; /* x, in tiles */
    int64_t T, K, blocks /* of 32 */, group /* rows of x whose tiles stay in the cache */;
    int tile_rows;
};

/* ---- x in bytes */

/* Row `row` of a tile of `rows`, blocks [block, block + count). */
static void store_quantised(const struct job *m, const struct quantised *q, char *tile, int rows, int row,
                            int count)
{
    size_t block_bytes = TILE_BLOCK_BYTES(rows, m->type->parts);
    for (int b = 0; b < count; b++, tile += block_bytes) {
        char *after = tile + (size_t)rows * PANEL_BLOCK;
        memcpy(tile + row * PANEL_BLOCK, q->numbers[b], PANEL_BLOCK);
        for (int part = 0; part < m->type->parts; part++) {
            int32_t correction = -m->type->offset * q->sums[part][b];
            float sum = q->scales[b] * (float)q->sums[part][b];
            memcpy(after + (part * rows + row) * 4, m->type->has_addends ? (void *)&sum : (void *)&correction,
                   4);
        }
        memcpy(after + (m->type->parts * rows + row) * 4, &q->scales[b], 4);
    }
}

static char *tile_at(const struct job *m, int64_t t)
{
    return m->quantised + (size_t)t * (size_t)m->blocks * TILE_BLOCK_BYTES(1, m->type->parts);
}

static int at_most(int64_t left, int limit)
{
    return left < limit ? (int)left : limit;
}

static void quantise_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    struct quantised q;
    (void)member;
    for (int64_t t = begin; t < end; t++) {
        int64_t first = t / m->tile_rows * m->tile_rows;
        int rows = m->T <= m->tiles->few ? m->tile_rows : at_most(m->T - first, m->tile_rows);
        char *tile = tile_at(m, first);
        for (int64_t b = 0; b < m->blocks; b += BLOCK_QUANTISE) {
            int count = at_most(m->blocks - b, BLOCK_QUANTISE);
            if (t < m->T)
                m->tiles->quantise(m->x + t * m->K + b * PANEL_BLOCK, count, m->type->parts, &q);
            else
                memset(&q, 0, sizeof(q));
            store_quantised(m, &q, tile + (size_t)b * TILE_BLOCK_BYTES(rows, m->type->parts), rows,
                            (int)(t - first), count);
        }
    }
}

/* ---- panels, runs and groups of rows */

/* A member's scratch: the runs of panels side by side, spread, and the sums of a group of rows. */
struct room {
    struct spread_room spread[BLOCK_MAX_SIDE];
    float *sums;
};

static size_t room_bytes(const struct block_tiles *tiles, int64_t run, int64_t rows)
{
    size_t panel = (size_t)run * (SPREAD_CODES + 2 * BLOCK_MAX_PARTS) * PANEL_PIECE;
    return (size_t)tiles->side * (panel + (size_t)rows * PANEL_ROWS * sizeof(float));
}

static struct room room_cut(const struct block_tiles *tiles, char *memory, int64_t run)
{
    struct room r;
    for (int p = 0; p < tiles->side; p++) {
        r.spread[p].codes = (lanes_u32 *)(void *)memory;
        memory += run * SPREAD_CODES * PANEL_PIECE;
        r.spread[p].scales = (lanes_f32 *)(void *)memory;
        memory += run * BLOCK_MAX_PARTS * PANEL_PIECE;
        r.spread[p].addends = (lanes_f32 *)(void *)memory;
        memory += run * BLOCK_MAX_PARTS * PANEL_PIECE;
    }
    r.sums = (float *)(void *)memory;
    return r;
}

/* The sums of rows [t, t + rows) and `panels` panels from panel p on are complete. */
static void store_sums(const struct product *w, const float *sums, int64_t t, int64_t rows, int64_t p,
                       int panels)
{
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < panels; i++, sums += PANEL_ROWS) {
            int64_t n = (p + i) * PANEL_ROWS;
            int here = at_most(w->N - n, PANEL_ROWS);
            float *out = w->out + (t + r) * w->N + n;
            if (here == PANEL_ROWS) /* a length that the compiler knows */
                memcpy(out, sums, PANEL_ROWS * sizeof(float));
            else
                memcpy(out, sums, (size_t)here * sizeof(float));
            for (int j = 0; w->bias && j < here; j++)
                out[j] += w->bias[n + j];
        }
}

/* `panels` panels from panel p on by rows [t, t + rows): what a member does at a time. */
struct piece {
    const struct product *w;
    const struct room *room;
    int64_t p, t, rows;
    int panels;
};

/* Of how many tiles of a run asks the next one's bytes are spread over: as long as that few tiles compute,
 * memory is the slower of the two. */
#define ASKING 4

/* What is to be asked for while the piece is at the run of `blocks` blocks from block b on: the first of
 * `shares` shares of the next run, each `*share` bytes of each panel. */
static struct ask next_run(const struct job *m, const struct piece *a, int64_t b, int64_t blocks,
                           int64_t shares, size_t *share)
{
    const struct panel_layout *l = &a->w->layout;
    const char *panel = a->w->packed + (size_t)a->p * l->panel_bytes;
    size_t bytes = (size_t)(blocks * l->blocks / m->blocks) * (l->group_bytes / (size_t)l->group);
    size_t from = b + blocks < m->blocks
                      ? panel_pieces_at(l, (b + blocks) * l->blocks / m->blocks)
                      : (size_t)a->panels * l->panel_bytes; /* the next panels' beginning */
    *share = round_up_u64((bytes + (size_t)shares - 1) / (size_t)shares, 64);
    struct ask ask = {.block_bytes = (*share + (size_t)blocks - 1) / (size_t)blocks};
    for (int k = 0; k < a->panels; k++)
        ask.at[k] = panel + (size_t)k * l->panel_bytes + from;
    return ask;
}

/* Asks for the outputs of rows [t, t + rows): the rows lie pages apart, which no prefetcher follows. */
static void ask_outputs(const struct piece *a, int64_t t, int64_t rows)
{
    for (int64_t r = t; r < t + rows; r++)
        for (int k = 0; k < a->panels; k++)
            __builtin_prefetch(a->w->out + r * a->w->N + (a->p + k) * PANEL_ROWS, 1);
}

/* The run of `blocks` blocks from block b on, spread, by all tiles. Sums begin with the first run and are
 * stored with the last, tile by tile: all at the end they would have to come from and go to memory at once.
 */
static void run_by_tiles(const struct job *m, const struct piece *a, const struct spread *spread, int64_t b,
                         int64_t blocks)
{
    const int64_t each = m->tile_rows, count = (a->rows + each - 1) / each;
    const int64_t shares = count < ASKING ? count : ASKING;
    const bool last_run = b + blocks == m->blocks;
    size_t share = 0;
    struct ask ask = next_run(m, a, b, blocks, shares, &share);
    float *sums = a->room->sums;
    for (int64_t i = 0; i < count; i++, sums += each * a->panels * PANEL_ROWS) {
        int64_t t = a->t + i * each;
        int here = at_most(a->t + a->rows - t, (int)each);
        const char *x = tile_at(m, t) + (size_t)b * TILE_BLOCK_BYTES(here, m->type->parts);
        ask.next_x = i < count - 1 ? (size_t)m->blocks * TILE_BLOCK_BYTES(each, m->type->parts) : 0;
        if (i == shares)
            ask.block_bytes = 0;
        if (b == 0)
            memset(sums, 0, (size_t)(here * a->panels * PANEL_ROWS) * sizeof(float));
        if (last_run)
            ask_outputs(a, t, here);
        m->functions->by_rows[a->panels - 1][here](spread, &ask, x, blocks, sums);
        if (last_run)
            store_sums(a->w, sums, t, here, a->p, a->panels);
        for (int k = 0; k < a->panels; k++)
            ask.at[k] += share;
    }
}

static void piece_by_runs(const struct job *m, const struct piece *a, int64_t run)
{
    struct spread spread[BLOCK_MAX_SIDE];
    const struct panel_layout *l = &a->w->layout;
    for (int64_t b = 0; b < m->blocks; b += run) {
        int64_t blocks = m->blocks - b < run ? m->blocks - b : run;
        for (int i = 0; i < a->panels; i++)
            spread[i] = m->functions->spread(l, a->w->packed + (size_t)(a->p + i) * l->panel_bytes, b, blocks,
                                             &a->room->spread[i]);
        run_by_tiles(m, a, spread, b, blocks);
    }
}

/* Panels [begin, end) by the rows of x, which are few. */
static void few_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    float sums[BLOCK_MAX_FEW * PANEL_ROWS];
    (void)member;
    int64_t from, to;
    for (int i = 0; i < m->products.count; i++) {
        const struct product *w = &m->products.of[i];
        if (!products_part(&m->products, i, begin, end, &from, &to))
            continue;
        for (int64_t p = from; p < to; p++) {
            m->functions->few[m->tile_rows](&w->layout, w->packed + (size_t)p * w->layout.panel_bytes,
                                            m->quantised, sums);
            store_sums(w, sums, 0, m->T, p, 1);
        }
    }
}

/* By pairs of panels, or as many as the set reads side by side. */
static void many_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    int side = m->tiles->side;
    int64_t run = m->T <= ASKING * m->tiles->rows ? m->tiles->run_few : m->tiles->run_many;
    struct room room =
        room_cut(m->tiles, team_scratch(m->team, member, room_bytes(m->tiles, run, m->group)), run);
    int64_t from, to;
    for (int i = 0; i < m->products.count; i++) {
        const struct product *w = &m->products.of[i];
        if (!products_part(&m->products, i, begin, end, &from, &to))
            continue;
        for (int64_t t = 0; t < m->T; t += m->group)
            for (int64_t p = from * side; p < to * side && p < w->layout.panels; p += side) {
                struct piece a = {.w = w, .room = &room, .p = p, .t = t};
                a.panels = at_most(w->layout.panels - p, side);
                a.rows = m->T - t < m->group ? m->T - t : m->group;
                piece_by_runs(m, &a, run);
            }
    }
}

void block_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count,
                  const struct block_tiles *tiles)
{
    enum dtype dtype = outputs->w->stored.dtype;
    struct job m = {.team = cpu_team(s),
                    .tiles = tiles,
                    .type = panel_type(dtype),
                    .functions = &tiles->types[dtype],
                    .x = x->data,
                    .T = x->dim[0],
                    .K = x->dim[1],
                    .blocks = x->dim[1] / PANEL_BLOCK};
    m.products = products_of(outputs, count, m.T <= tiles->few ? 1 : tiles->side);
    m.tile_rows = m.T <= tiles->few ? tiles->few_rows[m.T] : tiles->rows;
    const int64_t rows = m.T <= tiles->few ? m.tile_rows : m.T; /* with those of zeros */
    size_t row_bytes = (size_t)m.blocks * TILE_BLOCK_BYTES(1, m.type->parts);
    int64_t in_cache = (int64_t)(GROUP_BYTES / row_bytes);
    m.group = (in_cache < tiles->rows ? tiles->rows : in_cache) / tiles->rows * tiles->rows;
    m.group = m.group > m.T ? m.T : m.group;
    m.quantised = cpu_stream_scratch(s, (size_t)rows * row_bytes);
    team_for(m.team, rows, tiles->rows, quantise_body, &m);
    if (m.T <= tiles->few)
        team_for(m.team, m.products.total, 1, few_body, &m);
    else /* a member's x passes by once for each chunk */
        team_for(m.team, m.products.total, team_grain(m.team, m.products.total, MANY_CHUNKS), many_body, &m);
}
