#include "kernels/cpu/attention_blocks.h"

#define QUERIES_LEAST 96 /* of an item */
#define QUERIES_MOST  512
#define ITEMS_WANTED  16 /* for each thread */

/* The elements at which KV head g of n positions from `base` on begins: a page is looked up once for its run
 * of positions. */
static void find_keys(const struct attention *a, int32_t sequence, int64_t g, int64_t base, int n,
                      int64_t *at)
{
    const struct seq_view *view = a->view;
    const int32_t *pages = view->page_table.data;
    int64_t tokens = view->page_tokens, step = a->G * a->D;
    if (!pages) {
        for (int j = 0; j < n; j++)
            at[j] = (((const int32_t *)view->row_begin.data)[sequence] + base + j) * step + g * a->D;
        return;
    }
    pages += ((const int32_t *)view->slots.data)[sequence] * view->page_table.dim[1];
    for (int j = 0; j < n;) {
        int64_t column = (base + j) / tokens, inside = (base + j) % tokens;
        ASSERT(column < view->page_table.dim[1] && pages[column] >= 0 && pages[column] < a->k->dim[0]);
        int64_t first = (pages[column] * tokens + inside) * step + g * a->D;
        for (int64_t left = tokens - inside; left > 0 && j < n; left--, first += step)
            at[j++] = first;
    }
}

/* The first position that a row sees. */
static int64_t oldest_of(const struct attention *a, int64_t position)
{
    int64_t window = a->options.window;
    return window > 0 && window <= position ? position + 1 - window : 0;
}

/* Queries [begin, end) of an item against one block; each sees some of it. */
static void attend_block(const struct attention *a, const struct attention_item *it, int64_t begin,
                         int64_t end, int64_t base, const struct attention_room *room)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    struct attention_batch b;
    b.first = begin;
    for (int size = 0, rows; b.first < end; b.first += rows) {
        while (a->set->batches[size].rows > end - b.first)
            size++;
        rows = a->set->batches[size].rows;
        /* Positions and windows ascend: the first row sees the least of the end, the last of the start. */
        if (positions[b.first / a->heads] >= base + ATTENTION_KEYS - 1 &&
            oldest_of(a, positions[(b.first + rows - 1) / a->heads]) <= base) {
            a->set->batches[size].whole(a, &b, room);
            continue;
        }
        for (int i = 0; i < rows; i++) {
            int64_t position = positions[(b.first + i) / a->heads], oldest = oldest_of(a, position);
            b.low[i] = oldest > base ? (int)(oldest - base) : 0;
            b.high[i] = position + 1 < base + ATTENTION_KEYS ? (int)(position + 1 - base) : ATTENTION_KEYS;
        }
        a->set->batches[size].parts(a, &b, room);
    }
}

/* The keys of the block at `base` up to the position `last`; none behind it. */
static void find_block(const struct attention *a, const struct attention_item *it, int64_t g, int64_t base,
                       int64_t last, struct attention_keys *keys)
{
    int64_t left = last + 1 - base;
    keys->n = left <= 0 ? 0 : left < ATTENTION_KEYS ? (int)left : ATTENTION_KEYS;
    find_keys(a, it->sequence, g, base, keys->n, keys->at);
}

/* Item i in the order in which they are taken: the long ones first, for late rows see most. */
static const struct attention_item *item_at(const struct attention *a, int64_t i, int64_t *g)
{
    int64_t from_end = a->count - 1 - i;
    *g = from_end % a->G;
    return &a->items[from_end / a->G];
}

static int64_t first_block(const struct attention *a, const struct attention_item *it)
{
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    return oldest_of(a, positions[0]) / ATTENTION_KEYS * ATTENTION_KEYS;
}

/* The first block of item i; none behind the last item. */
static void find_first(const struct attention *a, int64_t i, struct attention_keys *keys)
{
    int64_t g;
    keys->n = 0;
    if (i >= a->count)
        return;
    const struct attention_item *it = item_at(a, i, &g);
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    find_block(a, it, g, first_block(a, it), positions[it->rows - 1], keys);
}

/* Item i. With its last block's load that is asked for which this member likely begins with next. */
static void run_item(const struct attention *a, int64_t i, const struct attention_room *room)
{
    int64_t g;
    const struct attention_item *it = item_at(a, i, &g);
    const int32_t *positions = (const int32_t *)a->view->positions.data + it->row;
    int64_t last = positions[it->rows - 1], base = first_block(a, it);
    int32_t begin = 0, end = 0; /* rows that see some of the block */
    struct attention_keys keys[2];
    a->set->begin(a, it, g, room);
    find_block(a, it, g, base, last, &keys[0]);
    for (int turn = 0; base <= last; base += ATTENTION_KEYS, turn ^= 1) {
        while (positions[begin] < base)
            begin++;
        while (end < it->rows && oldest_of(a, positions[end]) < base + ATTENTION_KEYS)
            end++;
        if (base + ATTENTION_KEYS <= last)
            find_block(a, it, g, base + ATTENTION_KEYS, last, &keys[turn ^ 1]);
        else
            find_first(a, i + team_threads(a->team), &keys[turn ^ 1]);
        a->set->load[a->k->dtype](a, &keys[turn], &keys[turn ^ 1], room);
        attend_block(a, it, begin * a->heads, end * a->heads, base, room);
    }
    a->set->finish(a, it, g, room);
}

/* Members take one item at a time. */
static void run_items(void *context, int64_t begin, int64_t end, int member)
{
    struct attention *a = context;
    int64_t queries = a->rows * a->heads, states = (int64_t)round_up_u64((uint64_t)queries, 16) + 16;
    int64_t floats = (2 * ATTENTION_KEYS + 2 * queries) * a->wide + 2 * states, i;
    struct attention_room room = {.kt = team_scratch(a->team, member, (size_t)floats * sizeof(float))};
    (void)begin;
    (void)end;
    room.v = room.kt + ATTENTION_KEYS * a->wide;
    room.q = room.v + ATTENTION_KEYS * a->wide;
    room.acc = room.q + queries * a->wide;
    room.highest = room.acc + queries * a->wide;
    room.sum = room.highest + states;
    while ((i = atomic_fetch_add_explicit(&a->next_item, 1, memory_order_relaxed)) < a->count)
        run_item(a, i, &room);
}

/* Rows of an item: many, for they share the turned keys, but so few that every thread finds items enough. */
static int64_t item_rows(const struct attention *a, int64_t T)
{
    int64_t queries = T * a->H / (ITEMS_WANTED * team_threads(a->team));
    queries = queries > QUERIES_MOST ? QUERIES_MOST : queries < QUERIES_LEAST ? QUERIES_LEAST : queries;
    return a->heads < queries ? queries / a->heads : 1;
}

/* Cuts every sequence's rows into items. Positions of a sequence's rows ascend. */
static int64_t cut_items(const struct attention *a, struct attention_item *items)
{
    const int32_t *begin = a->view->row_begin.data;
    int32_t most = (int32_t)a->rows;
    int64_t count = 0;
    for (int32_t s = 0; s + 1 < a->view->row_begin.dim[0]; s++)
        for (int32_t row = begin[s]; row < begin[s + 1]; row += most) {
            int32_t left = begin[s + 1] - row;
            items[count++] = (struct attention_item){s, row, left < most ? left : most};
        }
    return count;
}

void attention_run(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view,
                   const struct attention_options *options, const struct attention_set *set)
{
    int64_t T = q->dim[0], S = view->row_begin.dim[0] - 1;
    struct attention a = {.set = set,
                          .team = cpu_team(s),
                          .k = k,
                          .v = v,
                          .q = q->data,
                          .out = out->data,
                          .view = view,
                          .options = *options,
                          .H = q->dim[1],
                          .G = k->dim[k->ndim - 2],
                          .D = q->dim[2]};
    a.heads = a.H / a.G;
    a.wide = (int64_t)round_up_u64((uint64_t)a.D, 16);
    a.rows = item_rows(&a, T);
    struct attention_item *items = cpu_stream_scratch(s, (size_t)(T / a.rows + S + 1) * sizeof(*items));
    a.items = items;
    a.count = cut_items(&a, items) * a.G;
    int64_t members = team_threads(a.team);
    team_for(a.team, a.count < members ? a.count : members, 1, run_items, &a);
}
