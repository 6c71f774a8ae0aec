#include "worker/shm_word.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"

#define SPIN_ROUNDS 400 /* of the pause instruction: about 15 us */
#define YIELD_US    200 /* then as long with sched_yield; a sleep and a wake-up cost about 50 */

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* The futexes are shared between processes: no FUTEX_PRIVATE_FLAG. */
static void sleep_on(struct shm_word *w, uint32_t seen, uint64_t limit_us)
{
    struct timespec t = {.tv_sec = (time_t)(limit_us / 1000000),
                         .tv_nsec = (long)(limit_us % 1000000) * 1000};
    syscall(SYS_futex, (uint32_t *)&w->value, FUTEX_WAIT, seen, limit_us ? &t : NULL, NULL, 0);
}

void shm_word_poke(struct shm_word *w)
{
    if (atomic_load(&w->sleepers) != 0)
        syscall(SYS_futex, (uint32_t *)&w->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void shm_word_set(struct shm_word *w, uint32_t value)
{
    /* The writer raises the value before it looks for sleepers, a sleeper counts itself before it looks at
     * the value: one of the two sees the other. */
    atomic_store(&w->value, value);
    shm_word_poke(w);
}

static bool reached(uint32_t value, uint32_t wanted)
{
    return (int32_t)(value - wanted) >= 0;
}

bool shm_word_reached(const struct shm_word *w, uint32_t wanted)
{
    return reached(atomic_load_explicit(&w->value, memory_order_acquire), wanted);
}

bool shm_word_wait(struct shm_word *w, uint32_t wanted, uint64_t limit_us)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (shm_word_reached(w, wanted))
            return true;
        pause_briefly();
    }
    uint64_t begun_us = clock_now_us(), patience_us = limit_us && limit_us < YIELD_US ? limit_us : YIELD_US;
    do {
        if (shm_word_reached(w, wanted))
            return true;
        sched_yield();
    } while (clock_now_us() - begun_us < patience_us);
    if (limit_us && limit_us <= patience_us)
        return shm_word_reached(w, wanted);
    atomic_fetch_add(&w->sleepers, 1);
    uint32_t now = atomic_load(&w->value);
    if (!reached(now, wanted))
        sleep_on(w, now, limit_us ? limit_us - patience_us : 0);
    atomic_fetch_sub(&w->sleepers, 1);
    return shm_word_reached(w, wanted);
}
