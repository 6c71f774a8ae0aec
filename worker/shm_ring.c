#include "worker/shm_ring.h"

#include <string.h>

_Static_assert((SHM_RING_BYTES & (SHM_RING_BYTES - 1)) == 0, "positions are taken modulo the size");

static uint32_t load(const struct shm_word *w)
{
    return atomic_load_explicit(&w->value, memory_order_acquire);
}

/* Bytes that lie in the ring; each side's own counter is exact, the other's may be older than the truth,
 * which errs towards less room and fewer bytes. */
static uint32_t filled(const struct shm_ring *r)
{
    uint32_t taken = load(&r->taken);
    return load(&r->written) - taken;
}

size_t shm_ring_write(struct shm_ring *r, const void *data, size_t bytes)
{
    uint32_t at = load(&r->written), room = SHM_RING_BYTES - filled(r);
    size_t n = bytes < room ? bytes : room, place = at & (SHM_RING_BYTES - 1);
    size_t first = n < SHM_RING_BYTES - place ? n : SHM_RING_BYTES - place;
    if (n == 0)
        return 0;
    memcpy(r->data + place, data, first);
    memcpy(r->data, (const uint8_t *)data + first, n - first);
    shm_word_set(&r->written, at + (uint32_t)n);
    return n;
}

size_t shm_ring_read(struct shm_ring *r, void *data, size_t bytes)
{
    uint32_t at = load(&r->taken), there = filled(r);
    size_t n = bytes < there ? bytes : there, place = at & (SHM_RING_BYTES - 1);
    size_t first = n < SHM_RING_BYTES - place ? n : SHM_RING_BYTES - place;
    if (n == 0)
        return 0;
    memcpy(data, r->data + place, first);
    memcpy((uint8_t *)data + first, r->data, n - first);
    shm_word_set(&r->taken, at + (uint32_t)n);
    return n;
}

bool shm_ring_wait(struct shm_ring *r, uint64_t limit_us)
{
    return shm_word_wait(&r->written, load(&r->taken) + 1, limit_us);
}
