#include "coordinator/hangup.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The upper half of the kernel's data of each descriptor here, which no pointer of a program has; the lower
 * one is the descriptor. */
#define MARK  0xFEED5E75u
#define ASKED (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP)

/* What a set was told of a descriptor. */
struct watch {
    bool known, inside; /* inside: the kernel's set has it as well */
    int set;
    uint32_t asked;
    epoll_data_t data;
};

/* The one thing of this process that is nobody's: functions of the C library have no context. */
static struct {
    pthread_mutex_t lock;
    struct watch *watch; /* [count], by descriptor */
    size_t count;
} hangup = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The kernel itself: what stands between (a sanitizer) would take these for calls of ours, and those that
 * libzmq makes beside them for none. */
static int kernel_ctl(int set, int operation, int fd, struct epoll_event *event)
{
    return (int)syscall(SYS_epoll_ctl, set, operation, fd, event);
}

static int kernel_wait(int set, struct epoll_event *events, int most, int timeout_ms)
{
    return (int)syscall(SYS_epoll_pwait, set, events, most, timeout_ms, NULL, 0);
}

static struct watch *watch_of(int fd)
{
    size_t at = (size_t)fd, count = hangup.count ? hangup.count : 64;
    if (at >= hangup.count) {
        while (count <= at)
            count *= 2;
        hangup.watch = xrealloc(hangup.watch, count * sizeof(*hangup.watch));
        memset(hangup.watch + hangup.count, 0, (count - hangup.count) * sizeof(*hangup.watch));
        hangup.count = count;
    }
    return &hangup.watch[at];
}

static int tell_kernel(int set, int operation, int fd, uint32_t asked)
{
    struct epoll_event event = {.events = asked, .data.u64 = (uint64_t)MARK << 32 | (uint32_t)fd};
    return kernel_ctl(set, operation, fd, &event);
}

/* Whether a descriptor may be added is the kernel's to say: closing one took it out of its set. */
static int add(int set, int fd, const struct epoll_event *event)
{
    struct watch w = {.known = true, .inside = event->events & ASKED, .set = set};
    w.asked = event->events;
    w.data = event->data;
    if (tell_kernel(set, EPOLL_CTL_ADD, fd, w.asked) != 0 ||
        (!w.inside && tell_kernel(set, EPOLL_CTL_DEL, fd, 0) != 0))
        return -1;
    *watch_of(fd) = w;
    return 0;
}

static int change(struct watch *w, int fd, uint32_t asked)
{
    bool inside = asked & ASKED;
    int operation = !w->inside ? EPOLL_CTL_ADD : inside ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    if ((inside || w->inside) && tell_kernel(w->set, operation, fd, asked) != 0)
        return -1;
    w->inside = inside;
    w->asked = asked;
    return 0;
}

static int control(int set, int operation, int fd, const struct epoll_event *event)
{
    if (operation == EPOLL_CTL_ADD)
        return add(set, fd, event);
    struct watch *w = watch_of(fd);
    if (!w->known || w->set != set) {
        errno = ENOENT;
        return -1;
    }
    if (change(w, fd, operation == EPOLL_CTL_MOD ? event->events : 0) != 0)
        return -1;
    w->known = operation == EPOLL_CTL_MOD;
    if (w->known)
        w->data = event->data;
    return 0;
}

int epoll_ctl(int set, int operation, int fd, struct epoll_event *event)
{
    if (fd < 0)
        return kernel_ctl(set, operation, fd, event);
    pthread_mutex_lock(&hangup.lock);
    int rc = control(set, operation, fd, event);
    pthread_mutex_unlock(&hangup.lock);
    return rc;
}

/* What somebody who asked for `asked` is told. */
static uint32_t told(uint32_t asked, uint32_t happened)
{
    if (!(happened & (EPOLLHUP | EPOLLERR)))
        return happened;
    happened &= ~(uint32_t)(EPOLLHUP | EPOLLERR);
    return happened | (asked & (asked & EPOLLIN ? EPOLLIN : EPOLLOUT));
}

int epoll_wait(int set, struct epoll_event *events, int most, int timeout_ms)
{
    int n = kernel_wait(set, events, most, timeout_ms), kept = 0;
    pthread_mutex_lock(&hangup.lock);
    for (int i = 0; i < n; i++) {
        struct epoll_event e = events[i];
        if (e.data.u64 >> 32 == MARK) {
            const struct watch *w = watch_of((int)(uint32_t)e.data.u64);
            e.events = w->known && w->set == set ? told(w->asked, e.events) : 0;
            e.data = w->data;
        }
        if (e.events)
            events[kept++] = e;
    }
    pthread_mutex_unlock(&hangup.lock);
    return n < 0 ? n : kept;
}

bool hangup_in_force(void)
{
    pthread_mutex_lock(&hangup.lock);
    bool used = hangup.count > 0;
    pthread_mutex_unlock(&hangup.lock);
    return used;
}
