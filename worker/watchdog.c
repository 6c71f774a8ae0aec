#include "worker/watchdog.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

struct watchdog {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int rank;
    bool stop;
    const char *what;
    uint64_t since_ms, limit_ms; /* limit 0 = idle */
};

static void *watch(void *context)
{
    struct watchdog *w = context;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        if (w->limit_ms == 0) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        uint64_t age = clock_now_ms() - w->since_ms;
        if (age >= w->limit_ms) {
            log_error("watchdog", "rank %d is stuck in %s: no progress for %llu ms; leaving", w->rank,
                      w->what, (unsigned long long)age);
            _exit(EXIT_STUCK);
        }
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += 1;
        pthread_cond_timedwait(&w->changed, &w->lock, &t);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

void watchdog_start(struct watchdog **out, int rank)
{
    struct watchdog *w = xcalloc(1, sizeof(*w));
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    w->rank = rank;
    if (pthread_create(&w->thread, NULL, watch, w))
        die("no thread for the watchdog");
    *out = w;
}

void watchdog_stop(struct watchdog **pw)
{
    if (!pw || !*pw)
        return;
    struct watchdog *w = *pw;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
    *pw = NULL;
}

void watchdog_enter(struct watchdog *w, const char *what, uint64_t limit_ms)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    /* The watching thread sleeps without end only while idle, so only then must it be woken. */
    bool wake = w->limit_ms == 0 && limit_ms != 0;
    w->what = what;
    w->limit_ms = limit_ms;
    w->since_ms = clock_now_ms();
    if (wake)
        pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void watchdog_progress(struct watchdog *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->since_ms = clock_now_ms();
    pthread_mutex_unlock(&w->lock);
}
