/* attention_blocks: causal attention over pages or packed documents, in blocks of keys. This is the part that
 * knows no instruction set: how the work is cut, which keys a block has, in which order sums are made. The
 * arithmetic of a block is the set's (attention_avx512.c, attention_avx2.c). Queries that see the same keys
 * are computed together, as in a matrix product:
 *
 *   block of 64 keys, turned: kt[D][64]       score[64] of a query = sum over d, ascending, of q[d] * kt[d]
 *   online softmax over the block, then       acc[D] = acc * fade + sum over keys, ascending, of p[key] *
 *                                             v[key]
 *
 * Every product is added by a fused multiply-add. The 64 powers of a block are added as
 *   x[lane] = (e[lane] + e[lane + 16]) + (e[lane + 32] + e[lane + 48]),   lane = 0 .. 15
 * and x onto its halves (8, 4, 2, 1). So every set has the same bits.
 *
 * Blocks lie at absolute positions 0, 64, 128, ...; the turned keys serve all query heads of a KV head and
 * all rows of an item. Every query has sums of its own in one written order: items, chunks, pages and threads
 * do not show. Keys behind a row's position or before its window are not added and, outside of what the rows
 * of the item see, not read.
 *
 * Queries are multiplied by scale * log2(e) beforehand: the softmax is one of powers of two. */
#ifndef LEPTON_KERNELS_CPU_ATTENTION_BLOCKS_H
#define LEPTON_KERNELS_CPU_ATTENTION_BLOCKS_H

#include <stdatomic.h>

#include "kernels/cpu/device_cpu.h"

#define ATTENTION_KEYS   64 /* of a block: part of the arithmetic */
#define ATTENTION_BATCH  12 /* queries that a set may compute side by side */
#define ATTENTION_LOG2_E 1.44269504f

/* Rows of one sequence: they share the turned keys, and stay in the second-level cache. */
struct attention_item {
    int32_t sequence, row, rows;
};

struct attention_set;

struct attention {
    const struct attention_set *set;
    struct team *team;
    const struct tensor *k, *v;
    const float *q;
    float *out;
    const struct seq_view *view;
    const struct attention_item *items;
    struct attention_options options;
    int64_t H, G, D, heads;    /* heads: query heads of a KV head */
    int64_t wide;              /* D rounded up to sixteen */
    int64_t count;             /* of items, KV heads counted */
    int64_t rows;              /* of an item, at most */
    _Atomic int64_t next_item; /* that nobody has taken */
};

/* A member's memory, aligned for the widest registers. Queries of an item are numbered row by row, the heads
 * of a row together. */
struct attention_room {
    float *kt, *v;        /* [wide][64], [64][wide] */
    float *q, *acc;       /* [queries][wide], zeros behind D */
    float *highest, *sum; /* [queries]: of each softmax, so far; as many more as the widest register has */
};

/* Keys and values of one KV head at n positions: the elements at which each begins. */
struct attention_keys {
    int64_t at[ATTENTION_KEYS];
    int n;
};

/* Neighbouring queries of an item and what they see of a block: the keys [low, high). */
struct attention_batch {
    int64_t first; /* query */
    int low[ATTENTION_BATCH], high[ATTENTION_BATCH];
    float p[ATTENTION_BATCH][ATTENTION_KEYS], fade[16];
};

typedef void attention_body(const struct attention *a, struct attention_batch *b,
                            const struct attention_room *room);

/* The types that pages have. A set has a load_TYPE for each. */
#define ATTENTION_TYPES(X)   X(F32) X(F16) X(BF16) X(Q8_0)
#define ATTENTION_LOAD(TYPE) [DTYPE_##TYPE] = load_##TYPE,

typedef void attention_load(const struct attention *a, const struct attention_keys *keys,
                            const struct attention_keys *next, const struct attention_room *room);

struct attention_set {
    /* The queries of an item as the scores want them, and their softmaxes at the start. */
    void (*begin)(const struct attention *a, const struct attention_item *it, int64_t g,
                  const struct attention_room *room);
    /* A block's keys, turned, and its values; keys behind the n are zeros. `next`, maybe of another item, is
     * asked for. */
    attention_load *load[DTYPE_COUNT];
    /* The outputs of an item. */
    void (*finish)(const struct attention *a, const struct attention_item *it, int64_t g,
                   const struct attention_room *room);
    /* One block by `rows` queries, of which all see every key, or not: most rows first, the last one is 1, so
     * that every number of queries is a sum of these. */
    struct {
        int rows;
        attention_body *whole, *parts;
    } batches[5];
};

/* Asks memory for the head that begins at element `at`. Q8_0 is the one type with blocks here. */
static inline void attention_ask(const enum dtype type, const void *data, int64_t at, int64_t D)
{
    int64_t unit = type == DTYPE_F32    ? (int64_t)sizeof(float)
                   : type == DTYPE_Q8_0 ? (int64_t)sizeof(struct block_q8_0)
                                        : (int64_t)sizeof(uint16_t);
    int64_t from = type == DTYPE_Q8_0 ? at / Q8_0_BLOCK : at;
    int64_t units = type == DTYPE_Q8_0 ? D / Q8_0_BLOCK : D;
    for (int64_t byte = 0; byte < units * unit; byte += 64)
        __builtin_prefetch((const char *)data + from * unit + byte, 0, 2);
}

void attention_run(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view,
                   const struct attention_options *options, const struct attention_set *set);

#endif
