#include "worker/infer/mailbox.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"

/* A growing ring of fixed-size items. */
struct ring {
    char *items;
    size_t item_bytes, capacity, first, count;
};

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t command_ready, event_room;
    struct ring commands, events;
    struct serve_stats stats;
    int event_fd;
    uint64_t since_ms; /* commands wait since then, or since one was taken last */
};

void sequence_request_release(struct sequence_request *r)
{
    free(r->prompt);
    free(r->biases);
    free(r->delivered);
    free(r->delivered_tokens);
    r->prompt = NULL;
    r->delivered = r->delivered_tokens = NULL;
    r->biases = NULL;
}

static void ring_push(struct ring *r, const void *item)
{
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? r->capacity * 2 : 64;
        char *items = xmalloc(capacity * r->item_bytes);
        for (size_t i = 0; i < r->count; i++)
            __builtin_memcpy(items + i * r->item_bytes,
                             r->items + (r->first + i) % r->capacity * r->item_bytes, r->item_bytes);
        free(r->items);
        r->items = items;
        r->capacity = capacity;
        r->first = 0;
    }
    __builtin_memcpy(r->items + (r->first + r->count) % r->capacity * r->item_bytes, item, r->item_bytes);
    r->count++;
}

static bool ring_pop(struct ring *r, void *item)
{
    if (r->count == 0)
        return false;
    __builtin_memcpy(item, r->items + r->first * r->item_bytes, r->item_bytes);
    r->first = (r->first + 1) % r->capacity;
    r->count--;
    return true;
}

void mailbox_open(struct mailbox **out)
{
    struct mailbox *m = xcalloc(1, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&m->command_ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&m->event_room, NULL);
    m->commands.item_bytes = sizeof(struct command);
    m->events.item_bytes = sizeof(struct event);
    m->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (m->event_fd < 0)
        die("no descriptor for the mailbox");
    *out = m;
}

void mailbox_close(struct mailbox **pm)
{
    if (!pm || !*pm)
        return;
    struct mailbox *m = *pm;
    struct command c;
    while (ring_pop(&m->commands, &c))
        sequence_request_release(&c.request);
    free(m->commands.items);
    free(m->events.items);
    close(m->event_fd);
    pthread_cond_destroy(&m->command_ready);
    pthread_cond_destroy(&m->event_room);
    pthread_mutex_destroy(&m->lock);
    free(m);
    *pm = NULL;
}

void mailbox_send(struct mailbox *m, const struct command *command)
{
    pthread_mutex_lock(&m->lock);
    if (m->commands.count == 0)
        m->since_ms = clock_now_ms();
    ring_push(&m->commands, command);
    pthread_cond_signal(&m->command_ready);
    pthread_mutex_unlock(&m->lock);
}

bool mailbox_take(struct mailbox *m, struct command *out)
{
    pthread_mutex_lock(&m->lock);
    bool any = ring_pop(&m->commands, out);
    if (any)
        m->since_ms = clock_now_ms();
    pthread_mutex_unlock(&m->lock);
    return any;
}

uint64_t mailbox_waits_ms(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    uint64_t now_ms = clock_now_ms(), waits = m->commands.count ? now_ms - m->since_ms : 0;
    pthread_mutex_unlock(&m->lock);
    return waits;
}

void mailbox_wait(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    while (m->commands.count == 0)
        pthread_cond_wait(&m->command_ready, &m->lock);
    pthread_mutex_unlock(&m->lock);
}

void mailbox_wait_until(struct mailbox *m, uint64_t until_us)
{
    struct timespec until = {.tv_sec = (time_t)(until_us / 1000000),
                             .tv_nsec = (long)(until_us % 1000000) * 1000};
    if (until_us == UINT64_MAX) {
        mailbox_wait(m);
        return;
    }
    pthread_mutex_lock(&m->lock);
    while (m->commands.count == 0 && pthread_cond_timedwait(&m->command_ready, &m->lock, &until) == 0) {
    }
    pthread_mutex_unlock(&m->lock);
}

void mailbox_emit(struct mailbox *m, const struct event *event)
{
    struct event stamped = *event;
    stamped.emitted_us = clock_now_us();
    pthread_mutex_lock(&m->lock);
    while (m->events.count >= MAILBOX_MAX_EVENTS)
        pthread_cond_wait(&m->event_room, &m->lock);
    bool first = m->events.count == 0; /* of the others the reader hears with it */
    ring_push(&m->events, &stamped);
    pthread_mutex_unlock(&m->lock);
    uint64_t one = 1;
    if (first && write(m->event_fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
        die("the mailbox's descriptor cannot be written");
}

bool mailbox_next(struct mailbox *m, struct event *out)
{
    pthread_mutex_lock(&m->lock);
    bool any = ring_pop(&m->events, out);
    if (any) {
        pthread_cond_signal(&m->event_room);
    } else {
        /* Quieten the descriptor under the lock, so that no event is missed between the look and the read. */
        uint64_t ignored;
        ssize_t n = read(m->event_fd, &ignored, sizeof(ignored));
        (void)n;
    }
    pthread_mutex_unlock(&m->lock);
    return any;
}

int mailbox_event_fd(const struct mailbox *m)
{
    return m->event_fd;
}

void mailbox_set_stats(struct mailbox *m, const struct serve_stats *stats)
{
    pthread_mutex_lock(&m->lock);
    m->stats = *stats;
    pthread_mutex_unlock(&m->lock);
}

struct serve_stats mailbox_stats(struct mailbox *m)
{
    pthread_mutex_lock(&m->lock);
    struct serve_stats s = m->stats;
    pthread_mutex_unlock(&m->lock);
    return s;
}
