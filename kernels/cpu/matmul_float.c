#include "kernels/cpu/matmul_float.h"

#include "kernels/cpu/fast.h"
#include "kernels/cpu/products.h"

/* Panels, and tiles of rows, whose outputs stay in the second-level cache while K is gone through, and a
 * block of K of those rows with them. */
#define GROUP_PANELS 16
#define GROUP_TILES  22
/* Pieces of a member's share where rows are many. */
#define MANY_CHUNKS 16

struct job {
    struct team *team;
    const struct float_tiles *tiles;
    struct products products;
    size_t element_bytes; /* of a panel, sixteen rows of one k */
    const float *x;
    char *laid;           /* x as the tiles read it */
    int64_t T, K, K_laid; /* K_laid: as long as the panels are */
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
    return m->laid + (tile_begin(m, tile) * m->K_laid + k * tile_rows(m, tile)) * m->tiles->x_bytes;
}

static void lay_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    (void)member;
    for (int64_t i = begin; i < end; i++)
        m->tiles->lay(m->x + tile_begin(m, i) * m->K, m->K, m->K_laid, tile_rows(m, i), laid_tile(m, i, 0));
}

static const char *panel_at(const struct job *m, const struct product *w, int64_t panel, int64_t k)
{
    int64_t last = w->layout.panels - 1;
    return w->packed + (size_t)(panel < last ? panel : last) * w->layout.panel_bytes +
           (size_t)k * m->element_bytes;
}

/* The tile of panels from `panel` on: where its outputs lie and how many there are. */
static struct float_tile new_tile(const struct job *m, const struct product *w, int64_t panel, int64_t k)
{
    int64_t n = panel * PANEL_ROWS, left = m->K_laid - k;
    return (struct float_tile){.k = left < FLOAT_BLOCK ? left : FLOAT_BLOCK,
                               .stride = w->N,
                               .outputs = w->N - n,
                               .bias = w->bias && left <= FLOAT_BLOCK ? w->bias + n : NULL,
                               .first = k == 0};
}

/* One tile of rows: the panels pass once, read as they are packed. */
static void few_panels(const struct job *m, const struct product *w, int64_t panel)
{
    int rows = (int)m->T, side = m->tiles->side[rows];
    for (int64_t k = 0; k < m->K_laid; k += FLOAT_BLOCK) {
        struct float_tile tile = new_tile(m, w, panel, k);
        tile.x = m->laid + k * rows * m->tiles->x_bytes;
        tile.out = w->out + panel * PANEL_ROWS;
        tile.left = (m->K_laid - k) * (int64_t)m->element_bytes;
        tile.jump = (side - 1) * (int64_t)w->layout.panel_bytes;
        for (int p = 0; p < side; p++)
            tile.panel[p] = panel_at(m, w, panel + p, k);
        m->tiles->few[rows](&tile);
    }
}

static void few_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    int64_t from, to;
    (void)member;
    for (int i = 0; i < m->products.count; i++) {
        if (!products_part(&m->products, i, begin, end, &from, &to))
            continue;
        for (int64_t p = from; p < to; p++)
            few_panels(m, &m->products.of[i], p * m->tiles->side[m->T]);
    }
}

/* Tiles [begin, end) of rows against `side` panels and one block of K. Meanwhile the block that is next,
 * `after` and the panels beside it, comes from memory, a part with each tile; and then, with each tile, the
 * next one's x, which may have left the second-level cache (3 %). */
static void block_of_panels(const struct job *m, const struct product *w, int64_t panel, int64_t k,
                            int64_t begin, int64_t end, const char *after, float *room)
{
    int side = m->tiles->side[m->tiles->max_rows];
    int64_t parts = FLOAT_BLOCK * (int64_t)m->element_bytes / FLOAT_AHEAD; /* of a panel's block */
    struct float_tile tile = new_tile(m, w, panel, k);
    for (int p = 0; p < side; p++) {
        tile.panel[p] = panel_at(m, w, panel + p, k);
        if (m->tiles->widen) {
            float *wide = room + p * FLOAT_BLOCK * PANEL_ROWS;
            m->tiles->widen(tile.panel[p], tile.k, wide);
            tile.panel[p] = wide;
        }
    }
    for (int64_t i = begin; i < end; i++) {
        int64_t part = i - begin;
        int rows = tile_rows(m, i);
        tile.x = laid_tile(m, i, k);
        tile.out = w->out + tile_begin(m, i) * w->N + panel * PANEL_ROWS;
        tile.ahead = part < side * parts
                         ? after + (size_t)(part / parts) * w->layout.panel_bytes + part % parts * FLOAT_AHEAD
                         : laid_tile(m, i + 1 < end ? i + 1 : begin, k);
        for (int64_t r = 0; r < rows; r++) /* pages apart, which no prefetcher follows */
            for (int p = 0; p < side; p++)
                __builtin_prefetch(tile.out + r * w->N + p * PANEL_ROWS, 1);
        m->tiles->many[rows](&tile);
    }
}

/* Panels [group, end) of one product by a group of tiles of rows. */
static void group_of_panels(const struct job *m, const struct product *w, int64_t group, int64_t end,
                            int64_t tile, float *room)
{
    int side = m->tiles->side[m->tiles->max_rows];
    int64_t behind = tile + GROUP_TILES < m->tile_count ? tile + GROUP_TILES : m->tile_count;
    for (int64_t k = 0; k < m->K_laid; k += FLOAT_BLOCK)
        for (int64_t p = group; p < end; p += side) {
            const char *after =
                p + side < end ? panel_at(m, w, p + side, k) : panel_at(m, w, group, k + FLOAT_BLOCK);
            block_of_panels(m, w, p, k, tile, behind, after, room);
        }
}

/* Panels [begin, end) of one product, a group at a time. */
static void many_panels(const struct job *m, const struct product *w, int64_t begin, int64_t end, float *room)
{
    for (int64_t group = begin; group < end; group += GROUP_PANELS)
        for (int64_t tile = 0; tile < m->tile_count; tile += GROUP_TILES)
            group_of_panels(m, w, group, group + GROUP_PANELS < end ? group + GROUP_PANELS : end, tile, room);
}

static void many_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct job *m = context;
    int side = m->tiles->side[m->tiles->max_rows];
    float *room = team_scratch(m->team, member, FLOAT_MAX_SIDE * FLOAT_BLOCK * PANEL_ROWS * sizeof(float));
    int64_t from, to;
    for (int i = 0; i < m->products.count; i++)
        if (products_part(&m->products, i, begin, end, &from, &to))
            many_panels(m, &m->products.of[i], from * side, to * side, room);
}

void float_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count,
                  const struct float_tiles *tiles)
{
    enum dtype dtype = outputs->w->stored.dtype;
    struct job m = {.team = cpu_team(s),
                    .tiles = tiles,
                    .element_bytes = PANEL_ROWS * dtype_info(dtype)->block_bytes,
                    .x = x->data,
                    .T = x->dim[0],
                    .K = x->dim[1]};
    m.K_laid = (int64_t)round_up_u64((uint64_t)m.K, PANEL_FLOATS);
    m.tile_count = (m.T + tiles->max_rows - 1) / tiles->max_rows;
    m.laid = cpu_stream_scratch(s, (size_t)(m.T * m.K_laid * tiles->x_bytes));
    m.products = products_of(outputs, count, tiles->side[m.tile_count == 1 ? m.T : tiles->max_rows]);
    team_for(m.team, m.tile_count, 1 + 4096 / m.K, lay_body, &m);
    if (m.tile_count == 1)
        team_for(m.team, m.products.total, 1, few_body, &m);
    else
        team_for(m.team, m.products.total, team_grain(m.team, m.products.total, MANY_CHUNKS), many_body, &m);
}
