/* nodes: the memory nodes (NUMA) that a process computes on, and spreading memory over them. Where the system
 * has one node, or says nothing of nodes, nothing happens. */
#ifndef LEPTON_KERNELS_CPU_NODES_H
#define LEPTON_KERNELS_CPU_NODES_H

#include <sched.h>

#include "common/base.h"

#define NODES_MOST 1024

struct node_set {
    unsigned long bits[NODES_MOST / (8 * sizeof(unsigned long))];
    int count; /* 0 = leave memory where the system puts it */
};

/* The nodes below `root` (/sys/devices/system/node) that have a processor of `allowed`. */
void nodes_of_processors(struct node_set *out, const char *root, const cpu_set_t *allowed);
/* The nodes of the processors that this process may use; count 0 when somebody chose a policy for it. */
void nodes_of_process(struct node_set *out);
/* Pages of [begin, begin + bytes) that are not there yet will lie on the nodes in turn. */
void nodes_interleave(const struct node_set *nodes, void *begin, size_t bytes);

#endif
