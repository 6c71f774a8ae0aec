#include "worker/layout.h"

#include <stdlib.h>

int layout_check(const struct layout *l, int ranks, struct err *err)
{
    if (l->stages < 1 || l->tensor < 1 || l->replicas < 1)
        return err_set(err, "layout %d stages x %d tensor slots x %d replicas: each must be at least 1",
                       l->stages, l->tensor, l->replicas);
    int64_t product = (int64_t)l->stages * l->tensor * l->replicas;
    if (product != ranks)
        return err_set(err,
                       "layout %d stages x %d tensor slots x %d replicas needs %lld ranks, the job has %d",
                       l->stages, l->tensor, l->replicas, (long long)product, ranks);
    return 0;
}

struct layout_place layout_place(const struct layout *l, int rank)
{
    return (struct layout_place){.stage = rank / l->tensor % l->stages,
                                 .slot = rank % l->tensor,
                                 .replica = rank / l->tensor / l->stages};
}

int layout_rank(const struct layout *l, struct layout_place place)
{
    return (place.replica * l->stages + place.stage) * l->tensor + place.slot;
}

/* Fills stages greedily without passing `limit`; true when every layer found a place and no stage stays
 * empty. Taking as much as fits leaves the later stages the least, so the greedy answer exists whenever any
 * does. */
static bool fill(const uint64_t *cost, int layers, uint64_t embed, uint64_t head, int stages, uint64_t limit,
                 int *first)
{
    int layer = 0;
    for (int s = 0; s < stages; s++) {
        first[s] = layer;
        uint64_t sum = (s == 0 ? embed : 0) + (s == stages - 1 ? head : 0);
        int keep = stages - 1 - s; /* layers that the later stages need at least */
        while (layer < layers - keep && (sum + cost[layer] <= limit || layer == first[s])) {
            sum += cost[layer];
            if (sum > limit)
                return false;
            layer++;
        }
    }
    first[stages] = layer;
    return layer == layers;
}

int layout_split(const uint64_t *cost, int layers, uint64_t embed, uint64_t head, int stages, int *first,
                 struct err *err)
{
    if (stages < 1 || stages > layers)
        return err_set(err, "%d stages for %d layers: expected 1 to %d stages", stages, layers, layers);
    uint64_t high = embed + head;
    for (int l = 0; l < layers; l++)
        high += cost[l];
    uint64_t low = 0;
    /* The smallest limit that works; fill() is monotonic in it. */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (fill(cost, layers, embed, head, stages, middle, first))
            high = middle;
        else
            low = middle + 1;
    }
    bool filled = fill(cost, layers, embed, head, stages, high, first);
    ASSERT(filled);
    return 0;
}
