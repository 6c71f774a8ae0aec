#include "worker/model/slice.h"

#include <stdio.h>
#include <string.h>

/* Cuts are made at multiples of so many rows where a dimension is long enough: the panels of the fast kernels
 * then stay full. */
#define EVEN_ROWS 32

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* ---- blocks */

/* The block of the tensor that a row of tables names in a layer; 1 where there is none. */
static int64_t row_block(const struct gguf *g, const struct arch_tensor_row *row, int64_t layer)
{
    char name[128], suffix[64];
    snprintf(name, sizeof(name), "blk.%lld.%s", (long long)layer, row->name);
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (!t && row->each) {
        snprintf(suffix, sizeof(suffix), row->each, 0);
        snprintf(name, sizeof(name), "blk.%lld.%s", (long long)layer, suffix);
        t = gguf_tensor_find(g, name);
    }
    return t ? dtype_info(t->dtype)->block_elements : 1;
}

struct slice_blocks slice_blocks(const struct model_params *p, const struct gguf *g)
{
    struct slice_blocks b = {1, 1, 1};
    for (int64_t layer = 0; layer < p->layers; layer++)
        for (int i = 0; i < p->arch->layer_count; i++) {
            const struct arch_tensor_row *row = &p->arch->layer[i];
            int64_t *at = row->columns == DIM_QUERY        ? &b.query
                          : row->columns == DIM_FFN        ? &b.ffn
                          : row->columns == DIM_EXPERT_FFN ? &b.expert_ffn
                                                           : NULL;
            int64_t block = at ? row_block(g, row, layer) : 1;
            if (at) /* the least that is whole for both */
                *at = *at / gcd(*at, block) * block;
        }
    return b;
}

/* ---- shares */

/* The share of `slot` when `length` is cut at multiples of `unit`; false when there are too few units. */
static bool share(struct slice_run *out, int64_t length, int64_t unit, int width, int slot)
{
    int64_t units = (length + unit - 1) / unit;
    int64_t first = units * slot / width * unit, end = units * (slot + 1) / width * unit;
    *out = (struct slice_run){first, (end < length ? end : length) - first};
    return units >= width;
}

/* A feed-forward length: at block borders, and at even rows where that leaves every slot some. */
static int share_length(struct slice_run *out, const char *what, int64_t length, int64_t block, int width,
                        int slot, struct err *err)
{
    int64_t unit = block < EVEN_ROWS && EVEN_ROWS % block == 0 ? EVEN_ROWS : block;
    if (length == 0) {
        *out = (struct slice_run){0, 0};
        return 0;
    }
    if (share(out, length, unit, width, slot) || share(out, length, block, width, slot))
        return 0;
    return err_set(err,
                   "tensor %d: the %s of %lld is stored in blocks of %lld: it divides among at most %lld "
                   "slots",
                   width, what, (long long)length, (long long)block, (long long)(length / block));
}

/* Slots share a KV head: its query heads are divided among those that hold it. */
static bool share_group(struct model_part *part, int64_t kv_heads, int64_t group, int64_t unit)
{
    int64_t kv = part->slot * kv_heads / part->width;
    /* The slots t with floor(t * G / width) = kv. */
    int64_t begin = (kv * part->width + kv_heads - 1) / kv_heads;
    int64_t end = ((kv + 1) * part->width + kv_heads - 1) / kv_heads;
    struct slice_run run;
    if (group % unit || !share(&run, group, unit, (int)(end - begin), part->slot - (int)begin))
        return false;
    part->kv_heads = (struct slice_run){kv, 1};
    part->heads = (struct slice_run){kv * group + run.first, run.count};
    return true;
}

static int share_heads(struct model_part *part, const struct model_params *p, int64_t block, struct err *err)
{
    int64_t group = p->heads / p->kv_heads;            /* query heads of a KV head */
    int64_t unit = block / gcd(block, p->head_length); /* query heads between two block borders */
    int64_t kv_unit = unit / gcd(unit, group);         /* KV heads between two such */
    if (share(&part->kv_heads, p->kv_heads, kv_unit, part->width, part->slot)) {
        part->heads = (struct slice_run){part->kv_heads.first * group, part->kv_heads.count * group};
        return 0;
    }
    if (part->width > p->kv_heads && share_group(part, p->kv_heads, group, unit))
        return 0;
    return err_set(err,
                   "tensor %d: %lld heads of %lld elements over %lld KV heads, attention's output stored in "
                   "blocks of %lld: expected %s",
                   part->width, (long long)p->heads, (long long)p->head_length, (long long)p->kv_heads,
                   (long long)block, "fewer slots");
}

int slice_part(struct model_part *out, const struct model_params *p, const struct slice_blocks *blocks,
               int width, int slot, struct err *err)
{
    ASSERT(width >= 1 && slot >= 0 && slot < width);
    *out = (struct model_part){.width = width, .slot = slot};
    if (width == 1) {
        out->heads = (struct slice_run){0, p->heads};
        out->kv_heads = (struct slice_run){0, p->kv_heads};
        out->ffn = (struct slice_run){0, p->ffn};
        out->expert_ffn = (struct slice_run){0, p->expert_ffn};
        out->vocab = (struct slice_run){0, p->vocab};
        return 0;
    }
    if (share_heads(out, p, blocks->query, err) ||
        share_length(&out->expert_ffn, "experts' feed-forward length", p->expert_ffn, blocks->expert_ffn,
                     width, slot, err))
        return -1;
    if (p->experts)
        out->ffn = (struct slice_run){0, p->ffn}; /* no tensor has this dimension */
    else if (share_length(&out->ffn, "feed-forward length", p->ffn, blocks->ffn, width, slot, err))
        return -1;
    return share_length(&out->vocab, "vocabulary", p->vocab, 1, width, slot, err);
}

int slice_widest_kv_heads(int64_t *out, const struct model_params *p, const struct slice_blocks *blocks,
                          int width, struct err *err)
{
    int64_t widest = 0;
    for (int slot = 0; slot < width; slot++) {
        struct model_part part;
        if (slice_part(&part, p, blocks, width, slot, err))
            return -1;
        widest = part.kv_heads.count > widest ? part.kv_heads.count : widest;
    }
    *out = widest;
    return 0;
}

struct slice_run slice_vocab(const struct model_params *p, int width, int slot)
{
    struct slice_run run;
    int rc = share_length(&run, "vocabulary", p->vocab, 1, width, slot, NULL);
    ASSERT(rc == 0);
    return run;
}

int64_t slice_widest_vocab(const struct model_params *p, int width)
{
    int64_t widest = 0;
    for (int slot = 0; slot < width; slot++) {
        int64_t count = slice_vocab(p, width, slot).count;
        widest = count > widest ? count : widest;
    }
    return widest;
}

/* ---- cutting */

static struct slice_run times(struct slice_run run, int64_t elements)
{
    return (struct slice_run){run.first * elements, run.count * elements};
}

struct slice_run slice_run(const struct model_part *part, const struct model_params *p, int tensor,
                           enum arch_dim dim)
{
    switch (dim) {
    case DIM_QUERY:
        return times(part->heads, p->head_length);
    case DIM_KV:
        return times(part->kv_heads, p->head_length);
    case DIM_FFN:
        return part->ffn;
    case DIM_EXPERT_FFN:
        return part->expert_ffn;
    case DIM_VOCAB:
        if (tensor == TENSOR_OUTPUT)
            return part->vocab;
        break;
    default:
        break;
    }
    return (struct slice_run){0, model_params_dim(p, dim)};
}

bool slice_leaves_out(const struct model_part *part, int tensor)
{
    return part->slot > 0 && (tensor == TENSOR_ATTN_OUTPUT_BIAS || tensor == TENSOR_FFN_DOWN_BIAS);
}

void *slice_copy(void *out, enum dtype dtype, const void *matrix, int64_t row_elements, struct slice_run rows,
                 struct slice_run columns)
{
    uint64_t row_bytes = 0, before = 0, bytes = 0;
    int rc = dtype_row_bytes(dtype, (uint64_t)row_elements, &row_bytes) |
             dtype_row_bytes(dtype, (uint64_t)columns.first, &before) |
             dtype_row_bytes(dtype, (uint64_t)columns.count, &bytes);
    ASSERT(rc == 0);
    const char *from = (const char *)matrix + (uint64_t)rows.first * row_bytes + before;
    char *to = out;
    for (int64_t r = 0; r < rows.count; r++, from += row_bytes, to += bytes)
        memcpy(to, from, bytes);
    return to;
}
