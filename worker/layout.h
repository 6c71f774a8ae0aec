/* layout: who does what in a group: rank -> (stage, tensor slot, replica), and which layers a stage holds.
 * PURE: numbers in, numbers out, the same on every rank without talking. */
#ifndef LEPTON_WORKER_LAYOUT_H
#define LEPTON_WORKER_LAYOUT_H

#include "common/base.h"

struct layout {
    int stages, tensor, replicas; /* their product is the number of ranks */
};

struct layout_place {
    int stage, slot, replica;
};

/* Tensor slots are neighbours (they talk most), then stages, then replicas:
 *   rank = (replica * stages + stage) * tensor + slot */
int layout_check(const struct layout *l, int ranks, struct err *err);
struct layout_place layout_place(const struct layout *l, int rank);
int layout_rank(const struct layout *l, struct layout_place place);

/* Splits `layers` layers over `stages`, contiguous, at least one layer each, so that the dearest stage is as
 * cheap as possible. cost[l] is layer l's (bytes of weights read per token); `embed` is added to the first
 * stage, `head` to the last. first[s] = first layer of stage s, first[stages] = layers. Error when there are
 * more stages than layers. */
int layout_split(const uint64_t *cost, int layers, uint64_t embed, uint64_t head, int stages, int *first,
                 struct err *err);

#endif
