#include "kernels/cpu/matmul_float.h"

#include "kernels/cpu/fast.h"

/* Panels whose outputs stay in the second-level cache while K is gone through, and their rows of x with them.
 */
#define GROUP_PANELS 16
/* Pieces of a member's share where rows are many. */
#define MANY_CHUNKS 16

struct job {
    struct team *team;
    const struct float_tiles *tiles;
    const struct weight *w;
    struct panel_layout layout;
    size_t element_bytes; /* of a panel, sixteen rows of one k */
    const float *x, *bias;
    float *out;
    char *laid; /* x as the tiles read it */
    int64_t T, N, K, K_even;
    int64_t tile_count;
};

/* Rows are spread evenly over the tiles: none is left with a few rows, which would compute slowly. */
static int64_t tile_begin(const struct job *m, int64_t tile)
{
    return m->T * tile / m->tile_count;
}

static int tile_rows(const struct job *m, int64_t tile)
{
    return (int)(tile_begin(m, tile + 1) - tile_begin(m, tile));
}

static char *laid_tile(const struct job *m, int64_t tile, int64_t k)
{
    return m->laid + (tile_begin(m, tile) * m->K_even + k * tile_rows(m, tile)) * m->tiles->x_bytes;
}

static void lay_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    (void)member;
    for (int64_t i = begin; i < end; i++)
        m->tiles->lay(m->x + tile_begin(m, i) * m->K, m->K, m->K_even, tile_rows(m, i), laid_tile(m, i, 0));
}

static const char *panel_at(const struct job *m, int64_t panel, int64_t k)
{
    int64_t last = m->layout.panels - 1;
    return (const char *)m->w->packed + (size_t)(panel < last ? panel : last) * m->layout.panel_bytes +
           (size_t)k * m->element_bytes;
}

/* The tile of panels from `panel` on: where its outputs lie and how many there are. */
static struct float_tile new_tile(const struct job *m, int64_t panel, int64_t k)
{
    int64_t n = panel * PANEL_ROWS, left = m->K_even - k;
    return (struct float_tile){.k = left < FLOAT_BLOCK ? left : FLOAT_BLOCK,
                               .stride = m->N,
                               .outputs = m->N - n,
                               .bias = m->bias && left <= FLOAT_BLOCK ? m->bias + n : NULL,
                               .first = k == 0};
}

/* One tile of rows: the panels pass once, read as they are packed. */
static void few_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    int rows = (int)m->T, side = m->tiles->side[rows];
    (void)member;
    for (int64_t i = begin; i < end; i++) {
        int64_t panel = i * side;
        for (int64_t k = 0; k < m->K_even; k += FLOAT_BLOCK) {
            struct float_tile tile = new_tile(m, panel, k);
            tile.x = m->laid + k * rows * m->tiles->x_bytes;
            tile.out = m->out + panel * PANEL_ROWS;
            tile.ahead = tile.x; /* the tiles fetch their panels themselves */
            for (int p = 0; p < side; p++)
                tile.panel[p] = panel_at(m, panel + p, k);
            m->tiles->by_rows[rows](&tile);
        }
    }
}

/* All tiles of rows against `side` panels and one block of K. Meanwhile the block that is next, `after` and
 * the panels beside it, comes from memory, a part with each tile. */
static void block_of_panels(const struct job *m, int64_t panel, int side, int64_t k, const char *after,
                            float *room)
{
    int64_t parts = FLOAT_BLOCK * (int64_t)m->element_bytes / FLOAT_AHEAD; /* of a panel's block */
    const struct float_tiles *tiles = m->tiles->widened ? m->tiles->widened : m->tiles;
    struct float_tile tile = new_tile(m, panel, k);
    for (int p = 0; p < side; p++) {
        tile.panel[p] = panel_at(m, panel + p, k);
        if (m->tiles->widened) {
            float *wide = room + p * FLOAT_BLOCK * PANEL_ROWS;
            m->tiles->widen(tile.panel[p], tile.k, wide);
            tile.panel[p] = wide;
        }
    }
    for (int64_t i = 0; i < m->tile_count; i++) {
        int rows = tile_rows(m, i);
        tile.x = laid_tile(m, i, k);
        tile.out = m->out + tile_begin(m, i) * m->N + panel * PANEL_ROWS;
        tile.ahead = i < side * parts
                         ? after + (size_t)(i / parts) * m->layout.panel_bytes + i % parts * FLOAT_AHEAD
                         : tile.x;
        tiles->by_rows[rows](&tile);
    }
}

static void many_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    int side = m->tiles->side[m->tiles->max_rows];
    float *room = team_scratch(m->team, member, FLOAT_MAX_SIDE * FLOAT_BLOCK * PANEL_ROWS * sizeof(float));
    for (int64_t group = begin * side; group < end * side; group += GROUP_PANELS)
        for (int64_t k = 0; k < m->K_even; k += FLOAT_BLOCK)
            for (int64_t p = group; p < group + GROUP_PANELS && p < end * side; p += side) {
                bool last = p + side >= group + GROUP_PANELS || p + side >= end * side;
                const char *after = last ? panel_at(m, group, k + FLOAT_BLOCK) : panel_at(m, p + side, k);
                block_of_panels(m, p, side, k, after, room);
            }
}

void float_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                  const struct tensor *bias, const struct float_tiles *tiles)
{
    struct job m = {.team = cpu_team(s),
                    .tiles = tiles,
                    .w = w,
                    .layout = panel_layout(w->stored.dtype, w->stored.dim[0], w->stored.dim[1]),
                    .element_bytes = PANEL_ROWS * dtype_info(w->stored.dtype)->block_bytes,
                    .x = x->data,
                    .bias = bias ? bias->data : NULL,
                    .out = out->data,
                    .T = x->dim[0],
                    .N = w->stored.dim[0],
                    .K = w->stored.dim[1]};
    m.K_even = w->stored.dtype == DTYPE_BF16 ? (m.K + 1) / 2 * 2 : m.K;
    m.tile_count = (m.T + tiles->max_rows - 1) / tiles->max_rows;
    m.laid = cpu_stream_scratch(s, (size_t)(m.T * m.K_even * tiles->x_bytes));
    team_for(m.team, m.tile_count, 1 + 4096 / m.K, lay_body, &m);
    if (m.tile_count == 1) {
        int side = tiles->side[m.T];
        team_for(m.team, (m.layout.panels + side - 1) / side, 1, few_body, &m);
    } else {
        int side = tiles->side[tiles->max_rows];
        int64_t sides = (m.layout.panels + side - 1) / side;
        team_for(m.team, sides, team_grain(m.team, sides, MANY_CHUNKS), many_body, &m);
    }
}
