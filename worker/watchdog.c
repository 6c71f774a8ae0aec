#include "worker/watchdog.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/last_words.h"
#include "common/log.h"

#define LOOK_MS   250  /* between two looks while busy */
#define REPORT_MS 500  /* between two reports */
#define SILENT_MS 2000 /* a busy rank that was not heard for so long is the one that hangs */

/* The ranks of a job run one build: the struct itself travels. */
struct report {
    int32_t rank;
    uint32_t age_ms; /* since when nothing moved */
    char what[56];   /* "leaving": its end is no failure */
};

struct peer {
    struct report last;
    uint8_t part[sizeof(struct report)]; /* of the report that is arriving */
    size_t have;
    uint64_t heard_ms; /* 0: never */
    bool left;
};

struct watchdog {
    pthread_t thread;
    pthread_mutex_t lock;
    int wake; /* eventfd: something changed */
    int rank;
    bool stop;
    const char *what;
    uint64_t since_ms, limit_ms; /* limit 0 = idle */
    int leader;                  /* connection for reports; -1 = none */
    uint64_t reported_ms;
    const int *fds; /* leader: [peer_count] */
    struct peer *peers;
    int peer_count;
    uint64_t group_limit_ms;
};

static void ring(struct watchdog *w)
{
    uint64_t one = 1;
    ssize_t n = write(w->wake, &one, sizeof(one));
    (void)n; /* a full counter wakes as well */
}

/* ---- reports; the lock is held */

static void send_report(struct watchdog *w, uint64_t now_ms)
{
    struct report r = {.rank = w->rank, .age_ms = (uint32_t)(now_ms - w->since_ms)};
    snprintf(r.what, sizeof(r.what), "%s", w->what);
    w->reported_ms = now_ms;
    /* A report is small and the connection otherwise silent this way: it goes whole or, when the leader does
     * not read, not at all. */
    if (w->leader >= 0 && send(w->leader, &r, sizeof(r), MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(r))
        w->leader = -1;
}

static void read_reports(struct watchdog *w, struct peer *p, int fd, uint64_t now_ms)
{
    for (;;) {
        ssize_t n = recv(fd, p->part + p->have, sizeof(p->part) - p->have, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            bool leaving = strcmp(p->last.what, "leaving") == 0;
            p->left = true;
            if (leaving || w->stop)
                return;
            log_error("watchdog", "a rank of the group is gone: its connection ended%s%s; leaving",
                      p->heard_ms ? "; it last was in " : "", p->last.what);
            _exit(EXIT_GROUP);
        }
        p->have += (size_t)n;
        if (p->have < sizeof(p->part))
            continue;
        memcpy(&p->last, p->part, sizeof(p->last));
        p->last.what[sizeof(p->last.what) - 1] = '\0';
        p->have = 0;
        p->heard_ms = now_ms;
    }
}

/* ---- what is stuck; the lock is held */

static bool waits(const char *what)
{
    return strncmp(what, "waiting", 7) == 0 || strncmp(what, "putting", 7) == 0;
}

/* Who holds up the others: a rank that is not heard though it should be busy, else one that does not wait for
 * another. */
static void name_culprit(const struct watchdog *w, uint64_t now_ms, char text[WATCHDOG_MOST_TEXT])
{
    snprintf(text, WATCHDOG_MOST_TEXT, "rank %d is stuck in %s", w->rank, w->what);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < w->peer_count; i++) {
            const struct peer *p = &w->peers[i];
            bool silent = now_ms - p->heard_ms >= SILENT_MS;
            if (p->left || !p->heard_ms || (pass == 0 ? !silent : silent || waits(p->last.what)))
                continue;
            snprintf(text, WATCHDOG_MOST_TEXT, "rank %d is stuck in %s%s", p->last.rank, p->last.what,
                     silent ? " and not heard any more" : "");
            return;
        }
    for (int i = 0; i < w->peer_count && waits(w->what); i++)
        if (!w->peers[i].left && !w->peers[i].heard_ms)
            snprintf(text, WATCHDOG_MOST_TEXT, "rank %d is stuck in %s; a rank was never heard", w->rank,
                     w->what);
}

static uint64_t group_age_ms(const struct watchdog *w, uint64_t now_ms)
{
    uint64_t moved_ms = w->since_ms;
    for (int i = 0; i < w->peer_count; i++) {
        const struct peer *p = &w->peers[i];
        uint64_t at = p->heard_ms > p->last.age_ms ? p->heard_ms - p->last.age_ms : 0;
        moved_ms = p->heard_ms && at > moved_ms ? at : moved_ms;
    }
    return w->limit_ms && now_ms > moved_ms ? now_ms - moved_ms : 0;
}

static void check(struct watchdog *w, uint64_t now_ms)
{
    char text[WATCHDOG_MOST_TEXT];
    uint64_t age = group_age_ms(w, now_ms), own = now_ms - w->since_ms;
    bool group = w->group_limit_ms && age >= w->group_limit_ms;
    if (!w->limit_ms || (own < w->limit_ms && !group))
        return;
    if (own >= w->limit_ms && !group && age < own && waits(w->what))
        return; /* others move: this rank waits for them in good health */
    name_culprit(w, now_ms, text);
    log_error("watchdog", "%s: no progress for %llu ms; leaving", text, (unsigned long long)age);
    last_words_say("exit 71");
    _exit(EXIT_STUCK);
}

/* ---- the thread */

static int look(struct watchdog *w, struct pollfd *fds)
{
    int count = 1;
    fds[0] = (struct pollfd){.fd = w->wake, .events = POLLIN};
    for (int i = 0; i < w->peer_count; i++)
        fds[count++] = (struct pollfd){.fd = w->peers[i].left ? -1 : w->fds[i], .events = POLLIN};
    return count;
}

static void *watch(void *context)
{
    struct watchdog *w = context;
    struct pollfd *fds = xcalloc(1, sizeof(*fds));
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        fds = xrealloc(fds, ((size_t)w->peer_count + 1) * sizeof(*fds));
        int count = look(w, fds), timeout_ms = w->limit_ms ? LOOK_MS : -1;
        pthread_mutex_unlock(&w->lock);
        poll(fds, (nfds_t)count, timeout_ms);
        pthread_mutex_lock(&w->lock);
        uint64_t now_ms = clock_now_ms(), ignored;
        if (fds[0].revents && read(w->wake, &ignored, sizeof(ignored)) < 0)
            continue;
        for (int i = 0; i + 1 < count; i++)
            if (fds[i + 1].revents)
                read_reports(w, &w->peers[i], w->fds[i], now_ms);
        if (w->limit_ms && w->leader >= 0 && now_ms >= w->reported_ms + REPORT_MS)
            send_report(w, now_ms);
        check(w, now_ms);
    }
    pthread_mutex_unlock(&w->lock);
    free(fds);
    return NULL;
}

void watchdog_start(struct watchdog **out, int rank)
{
    struct watchdog *w = xcalloc(1, sizeof(*w));
    pthread_mutex_init(&w->lock, NULL);
    w->rank = rank;
    w->what = "the start";
    w->leader = -1;
    w->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (w->wake < 0 || pthread_create(&w->thread, NULL, watch, w))
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
    pthread_mutex_unlock(&w->lock);
    ring(w);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->lock);
    close(w->wake);
    free(w->peers);
    free(w);
    *pw = NULL;
}

void watchdog_gather(struct watchdog *w, const int *peers, int count, uint64_t limit_ms)
{
    pthread_mutex_lock(&w->lock);
    w->peers = xcalloc((size_t)(count ? count : 1), sizeof(*w->peers));
    w->fds = peers;
    w->peer_count = count;
    w->group_limit_ms = limit_ms;
    pthread_mutex_unlock(&w->lock);
    ring(w);
}

void watchdog_report(struct watchdog *w, int leader)
{
    pthread_mutex_lock(&w->lock);
    w->leader = leader;
    pthread_mutex_unlock(&w->lock);
}

void watchdog_leave(struct watchdog *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->what = "leaving";
    w->limit_ms = 0;
    send_report(w, clock_now_ms());
    w->leader = -1;
    pthread_mutex_unlock(&w->lock);
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
        for (int i = 0; i < w->peer_count; i++) /* silence counts from here */
            w->peers[i].heard_ms = w->peers[i].heard_ms ? w->since_ms : 0;
    pthread_mutex_unlock(&w->lock);
    if (wake)
        ring(w);
}

void watchdog_progress(struct watchdog *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->since_ms = clock_now_ms();
    pthread_mutex_unlock(&w->lock);
}

uint64_t watchdog_stuck_ms(struct watchdog *w, bool *idle, char text[WATCHDOG_MOST_TEXT])
{
    pthread_mutex_lock(&w->lock);
    uint64_t now_ms = clock_now_ms(), age = group_age_ms(w, now_ms);
    *idle = w->limit_ms == 0;
    name_culprit(w, now_ms, text);
    pthread_mutex_unlock(&w->lock);
    return age;
}
