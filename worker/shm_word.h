/* shm_word: a counter in memory that processes of one host share; one writes it, others wait for it.
 *
 * A waiter spins for some microseconds (a neighbour that computes the same share of the same layer is never
 * far away), then yields its processor to whoever wants it, then sleeps on a futex: two ranks that keep step
 * never enter the kernel, and a rank whose peer is late burns no core. The counter wraps: what counts is the
 * difference. */
#ifndef LEPTON_WORKER_SHM_WORD_H
#define LEPTON_WORKER_SHM_WORD_H

#include <stdatomic.h>

#include "common/base.h"

struct shm_word {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} __attribute__((aligned(128))); /* words of different writers never share a cache line */

/* Writer: raises the value to `value` and wakes who sleeps. What was written to shared memory before is seen
 * by who sees the value. */
void shm_word_set(struct shm_word *w, uint32_t value);
/* True when the value has reached `wanted`. */
bool shm_word_reached(const struct shm_word *w, uint32_t wanted);
/* Waits until the value has reached `wanted`, at most for `limit_us` (0 = without end); returns
 * shm_word_reached then. Wakes early when the word is poked. */
bool shm_word_wait(struct shm_word *w, uint32_t wanted, uint64_t limit_us);
/* Wakes who sleeps though the value stays: they look around and may wait again. */
void shm_word_poke(struct shm_word *w);

#endif
