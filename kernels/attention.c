/* attention: causal attention over paged or packed keys and values, the writing of pages and their moves; the
 * portable reference.
 *
 * Online softmax (Milakov & Gimelshein 2018) over blocks of KEY_BLOCK positions. The blocks lie at absolute
 * positions 0, 16, 32, ... of the sequence, whatever the pages and chunks are, and each adds its keys in
 * ascending order:
 *
 *   position   0 ........ 15 | 16 ....... 31 | 32 .. t        (row at position t)
 *   block      m, l, acc  -> | rescale, add  | rescale, add
 *
 * so the sums of a row depend on its own position and its sequence's keys alone. A window leaves out the keys
 * before it; its first block may be short at its beginning as the last one is at its end. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fixed_math.h"
#include "kernels/cpu/lanes.h"

/* Part of the kernel set's arithmetic: changing it changes bits. */
#define KEY_BLOCK 16

/* Finds the sequence of row t: the last s with row_begin[s] <= t (sequences without rows are passed over). */
static int64_t sequence_of(const struct seq_view *view, int64_t t)
{
    const int32_t *begin = view->row_begin.data;
    int64_t low = 0, high = view->row_begin.dim[0] - 1;
    ASSERT(begin[low] <= t && t < begin[high]);
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (begin[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Index of a position in pages seen as [P * page_tokens, G, D]. */
static int64_t paged_index(const struct seq_view *view, int64_t sequence, int64_t position,
                           int64_t page_count)
{
    int64_t slot = ((const int32_t *)view->slots.data)[sequence];
    ASSERT(slot >= 0 && slot < view->page_table.dim[0]);
    int64_t column = position / view->page_tokens;
    ASSERT(position >= 0 && column < view->page_table.dim[1]);
    int64_t page = ((const int32_t *)view->page_table.data)[slot * view->page_table.dim[1] + column];
    ASSERT(page >= 0 && page < page_count);
    return page * view->page_tokens + position % view->page_tokens;
}

/* ---- writing pages */

struct kv_store {
    const struct tensor *k, *v;
    struct tensor *k_pages, *v_pages;
    const struct seq_view *view;
};

/* Where element `first` of a tensor begins; of a block type, where a block begins. */
static char *element_at(const struct tensor *x, int64_t first)
{
    const struct dtype_info *info = dtype_info(x->dtype);
    return (char *)x->data + (size_t)first / info->block_elements * info->block_bytes;
}

static void store_row(struct tensor *pages, int64_t index, const struct tensor *x, int64_t t)
{
    int64_t elements = x->dim[1] * x->dim[2];
    char *to = element_at(pages, index * elements);
    dtype_from_f32(pages->dtype, (const float *)x->data + t * elements, to, (uint64_t)elements);
}

static void kv_store_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct kv_store *c = context;
    const int32_t *positions = c->view->positions.data;
    (void)member;
    for (int64_t t = begin; t < end; t++) {
        int64_t index = paged_index(c->view, sequence_of(c->view, t), positions[t], c->k_pages->dim[0]);
        store_row(c->k_pages, index, c->k, t);
        store_row(c->v_pages, index, c->v, t);
    }
}

void cpu_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                  const struct tensor *v, const struct seq_view *view)
{
    struct kv_store c = {.k = k, .v = v, .k_pages = k_pages, .v_pages = v_pages, .view = view};
    team_for(cpu_team(s), k->dim[0], 32, kv_store_body, &c);
}

/* Pages move one after the other: a later move may read what an earlier one wrote. */
void cpu_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves)
{
    (void)s;
    struct tensor one = *pages;
    one.dim[0] = 1;
    size_t bytes = tensor_bytes(&one);
    char *base = pages->data;
    for (int64_t i = 0; i < moves->dim[0]; i++) {
        int64_t from = ((const int32_t *)moves->data)[2 * i], to = ((const int32_t *)moves->data)[2 * i + 1];
        ASSERT(to >= 0 && to < pages->dim[0] && from < pages->dim[0]);
        if (from < 0)
            memset(base + (size_t)to * bytes, 0, bytes);
        else if (from != to)
            memcpy(base + (size_t)to * bytes, base + (size_t)from * bytes, bytes);
    }
}

/* ---- attention */

struct attention {
    struct team *team;
    const struct tensor *q, *k, *v;
    float *out;
    const struct seq_view *view;
    struct attention_options options;
    int64_t H, G, D;
    int64_t heads_per_item; /* query heads that share one read of keys and values: H / G, or 1 */
};

/* The state of one query head between blocks. */
struct softmax_state {
    float highest; /* of the scores so far */
    float sum;     /* of exp(score - highest) */
};

/* Adds one block of n keys to a head: k and v are [n, D], acc is [D]. */
CPU_CLONES static void attend_block(struct softmax_state *state, float *restrict acc, const float *restrict q,
                                    const float *const *k, const float *const *v, int n, int64_t D,
                                    float scale, float softcap)
{
    float score[KEY_BLOCK], p[KEY_BLOCK];
    float highest = state->highest;
    for (int j = 0; j < n; j++) {
        score[j] = scale * lanes_dot(q, k[j], D);
        if (softcap > 0)
            score[j] = softcap * fixed_tanhf(score[j] / softcap);
        highest = score[j] > highest ? score[j] : highest;
    }
    float fade = fixed_expf(state->highest - highest); /* 0 for the first block: exp(-infinity) */
    float sum = state->sum * fade;
    for (int64_t d = 0; d < D; d++)
        acc[d] *= fade;
    for (int j = 0; j < n; j++)
        p[j] = fixed_expf(score[j] - highest);
    for (int j = 0; j < n; j++) {
        const float *restrict row = v[j];
        sum += p[j];
        for (int64_t d = 0; d < D; d++)
            acc[d] += p[j] * row[d];
    }
    state->highest = highest;
    state->sum = sum;
}

/* Row `index` of k or v (seen as [rows, G, D]) for head g as floats: in place, or widened into `room`. */
static const float *kv_row(const struct tensor *x, int64_t index, int64_t g, int64_t G, int64_t D,
                           float *room)
{
    int64_t first = (index * G + g) * D;
    if (x->dtype == DTYPE_F32)
        return (const float *)x->data + first;
    dtype_to_f32(x->dtype, element_at(x, first), room, (uint64_t)D);
    return room;
}

static void attend_heads(const struct attention *a, float *room, int64_t t, int64_t first_head)
{
    int64_t sequence = sequence_of(a->view, t), g = first_head / (a->H / a->G);
    int64_t last = ((const int32_t *)a->view->positions.data)[t];
    int64_t document = ((const int32_t *)a->view->row_begin.data)[sequence];
    bool paged = a->view->page_table.data != NULL;
    ASSERT(last >= 0 && (paged || document + last <= t));
    const float *q = (const float *)a->q->data + (t * a->H + first_head) * a->D;
    float *out = a->out + (t * a->H + first_head) * a->D;
    struct softmax_state *state = (struct softmax_state *)(room + 2 * KEY_BLOCK * a->D);
    memset(out, 0, sizeof(float) * (size_t)(a->heads_per_item * a->D));
    for (int64_t h = 0; h < a->heads_per_item; h++)
        state[h] = (struct softmax_state){.highest = -INFINITY, .sum = 0.0f};

    int64_t window = a->options.window;
    int64_t oldest = window > 0 && window <= last ? last + 1 - window : 0; /* the first position seen */
    for (int64_t block = oldest / KEY_BLOCK * KEY_BLOCK; block <= last; block += KEY_BLOCK) {
        const float *k[KEY_BLOCK], *v[KEY_BLOCK];
        int64_t first = block > oldest ? block : oldest;
        int n = last < block + KEY_BLOCK ? (int)(last + 1 - first) : (int)(block + KEY_BLOCK - first);
        for (int j = 0; j < n; j++) {
            int64_t index =
                paged ? paged_index(a->view, sequence, first + j, a->k->dim[0]) : document + first + j;
            k[j] = kv_row(a->k, index, g, a->G, a->D, room + j * a->D);
            v[j] = kv_row(a->v, index, g, a->G, a->D, room + (KEY_BLOCK + j) * a->D);
        }
        for (int64_t h = 0; h < a->heads_per_item; h++)
            attend_block(&state[h], out + h * a->D, q + h * a->D, k, v, n, a->D, a->options.scale,
                         a->options.softcap);
    }
    for (int64_t h = 0; h < a->heads_per_item; h++)
        for (int64_t d = 0; d < a->D; d++)
            out[h * a->D + d] /= state[h].sum;
}

static void attention_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct attention *a = context;
    int64_t items_per_row = a->H / a->heads_per_item;
    size_t bytes = sizeof(float) * (size_t)(2 * KEY_BLOCK * a->D) +
                   sizeof(struct softmax_state) * (size_t)a->heads_per_item;
    float *room = team_scratch(a->team, member, bytes);
    for (int64_t i = begin; i < end; i++)
        attend_heads(a, room, i / items_per_row, i % items_per_row * a->heads_per_item);
}

void cpu_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view,
                   const struct attention_options *options)
{
    struct attention a = {.team = cpu_team(s),
                          .q = q,
                          .k = k,
                          .v = v,
                          .out = out->data,
                          .view = view,
                          .options = *options,
                          .H = q->dim[1],
                          .G = k->dim[k->ndim - 2],
                          .D = q->dim[2]};
    /* Query heads of a group share the reading of their keys, unless that leaves threads without work. */
    bool shared = q->dim[0] * a.G >= 2 * team_threads(a.team);
    a.heads_per_item = shared ? a.H / a.G : 1;
    team_for(a.team, q->dim[0] * (a.H / a.heads_per_item), 1, attention_body, &a);
}
