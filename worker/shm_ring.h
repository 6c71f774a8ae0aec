/* shm_ring: a stream of bytes from one process to another through shared memory. One writes, one reads;
 * neither call blocks: each moves what there is room or bytes for. Messages and waiting are comm_shm's. */
#ifndef LEPTON_WORKER_SHM_RING_H
#define LEPTON_WORKER_SHM_RING_H

#include "worker/shm_word.h"

#define SHM_RING_BYTES (1u << 21) /* a power of two */

/* All zero = empty. */
struct shm_ring {
    struct shm_word written; /* low 32 bits of the bytes written so far: what the reader waits for */
    struct shm_word taken;   /* the same of the bytes read: what the writer looks at */
    uint8_t data[SHM_RING_BYTES];
};

/* Writes as much of data[bytes] as there is room for; returns how much. */
size_t shm_ring_write(struct shm_ring *r, const void *data, size_t bytes);
/* Reads as much into data[bytes] as is there; returns how much. */
size_t shm_ring_read(struct shm_ring *r, void *data, size_t bytes);
/* Waits for a byte to read, at most for `limit_us` (0 = without end); true when there is one. May wake early,
 * as shm_word_wait. */
bool shm_ring_wait(struct shm_ring *r, uint64_t limit_us);

#endif
