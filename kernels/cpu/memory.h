/* memory: where the CPU device's memory comes from. Large blocks lie one behind the other in slabs of 2 MiB
 * pages: weights and KV pages are read in long runs, and a matrix of its own mapping would end in small
 * pages. A slab goes back to the system when its last block does; nothing in it is used twice, so that every
 * block is zero when it is taken and costs no memory until it is written.
 *
 * On a machine of several memory nodes a slab's pages are spread over the nodes that this process may compute
 * on, in turn: which thread will read which rows is left to chance (team.h), so each node serves its share. A
 * policy that was set from outside (numactl) is left alone. */
#ifndef LEPTON_KERNELS_CPU_MEMORY_H
#define LEPTON_KERNELS_CPU_MEMORY_H

#include "common/base.h"

struct cpu_memory;

struct cpu_memory *cpu_memory_new(void);
/* Every block has been given back. */
void cpu_memory_free(struct cpu_memory **m);

/* `bytes` of zeros, 64-byte aligned; NULL when there is not so much. Any thread. */
void *cpu_memory_take(struct cpu_memory *m, size_t bytes);
void cpu_memory_give(struct cpu_memory *m, void *block); /* NULL: nothing happens */

/* Bytes of address space that slabs hold now. */
uint64_t cpu_memory_slab_bytes(struct cpu_memory *m);

#endif
