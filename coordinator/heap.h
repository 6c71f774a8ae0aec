/* heap: several priority queues over one array of nodes: a node is in at most one heap, and is named by its
 * index, as requests and groups are. A pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986): insertion
 * O(1), removal of any node O(log n) amortised, no memory of its own. The smallest (key, tie) comes first.
 * Recursion-free. */
#ifndef LEPTON_COORDINATOR_HEAP_H
#define LEPTON_COORDINATOR_HEAP_H

#include "common/base.h"

#define HEAP_NONE UINT32_MAX

struct heap_node {
    uint64_t key, tie;
    uint32_t child, next; /* first child; next sibling */
    uint32_t previous;    /* previous sibling, or the parent of a first child */
};

struct heap {
    uint32_t root, count;
};

static inline struct heap heap_empty(void)
{
    return (struct heap){.root = HEAP_NONE};
}
/* The first node, or HEAP_NONE. */
static inline uint32_t heap_first(const struct heap *h)
{
    return h->root;
}
/* Puts a node that is in no heap of this array into h. */
void heap_push(struct heap *h, struct heap_node *nodes, uint32_t node, uint64_t key, uint64_t tie);
/* Takes a node of h out of it. */
void heap_remove(struct heap *h, struct heap_node *nodes, uint32_t node);
/* The same node under another key. */
void heap_move(struct heap *h, struct heap_node *nodes, uint32_t node, uint64_t key, uint64_t tie);

#endif
