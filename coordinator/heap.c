#include "coordinator/heap.h"

static bool before(const struct heap_node *a, const struct heap_node *b)
{
    return a->key != b->key ? a->key < b->key : a->tie < b->tie;
}

/* Joins two roots (neither HEAP_NONE); returns the one above. */
static uint32_t meld(struct heap_node *nodes, uint32_t a, uint32_t b)
{
    if (before(&nodes[b], &nodes[a])) {
        uint32_t t = a;
        a = b;
        b = t;
    }
    nodes[b].next = nodes[a].child;
    if (nodes[a].child != HEAP_NONE)
        nodes[nodes[a].child].previous = b;
    nodes[b].previous = a;
    nodes[a].child = b;
    nodes[a].next = nodes[a].previous = HEAP_NONE;
    return a;
}

/* Joins a list of siblings into one heap: in pairs from the left, then the pairs from the right. */
static uint32_t meld_siblings(struct heap_node *nodes, uint32_t first)
{
    uint32_t pairs = HEAP_NONE; /* a stack through .next */
    while (first != HEAP_NONE) {
        uint32_t a = first, b = nodes[a].next;
        first = b == HEAP_NONE ? HEAP_NONE : nodes[b].next;
        nodes[a].next = nodes[a].previous = HEAP_NONE;
        if (b != HEAP_NONE) {
            nodes[b].next = nodes[b].previous = HEAP_NONE;
            a = meld(nodes, a, b);
        }
        nodes[a].next = pairs;
        pairs = a;
    }
    uint32_t root = HEAP_NONE;
    while (pairs != HEAP_NONE) {
        uint32_t a = pairs;
        pairs = nodes[a].next;
        nodes[a].next = nodes[a].previous = HEAP_NONE;
        root = root == HEAP_NONE ? a : meld(nodes, root, a);
    }
    return root;
}

void heap_push(struct heap *h, struct heap_node *nodes, uint32_t node, uint64_t key, uint64_t tie)
{
    nodes[node] = (struct heap_node){
        .key = key, .tie = tie, .child = HEAP_NONE, .next = HEAP_NONE, .previous = HEAP_NONE};
    h->root = h->root == HEAP_NONE ? node : meld(nodes, h->root, node);
    h->count++;
}

void heap_remove(struct heap *h, struct heap_node *nodes, uint32_t node)
{
    struct heap_node *n = &nodes[node];
    ASSERT(h->count > 0);
    if (node != h->root) { /* cut it out of its siblings */
        if (nodes[n->previous].child == node)
            nodes[n->previous].child = n->next;
        else
            nodes[n->previous].next = n->next;
        if (n->next != HEAP_NONE)
            nodes[n->next].previous = n->previous;
    }
    uint32_t below = meld_siblings(nodes, n->child);
    if (node == h->root)
        h->root = below;
    else if (below != HEAP_NONE)
        h->root = meld(nodes, h->root, below);
    n->child = n->next = n->previous = HEAP_NONE;
    h->count--;
}

void heap_move(struct heap *h, struct heap_node *nodes, uint32_t node, uint64_t key, uint64_t tie)
{
    heap_remove(h, nodes, node);
    heap_push(h, nodes, node, key, tie);
}
