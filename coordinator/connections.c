#include "coordinator/connections.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"

/* So many may be accepted past the most before they are shut out one by one: those that were at the door. */
#define SLACK         16
#define ADDRESS_BYTES 256
/* Whoever left is told of so late at most, however much others send. */
#define LAST_WORDS_MS 200

struct leaver {
    struct peer peer;
    uint64_t since_ms;
};

struct connections {
    void *monitor;
    struct curve_zap *zap;
    struct peer **by_fd; /* [fd_count]; NULL: not open, or it has sent nothing yet */
    bool *open;          /* [fd_count] */
    uint32_t fd_count;
    struct leaver *left; /* [left_count]: to be told, the first one first */
    uint32_t left_count, left_capacity;
    uint32_t count, most;
    int listener;
    bool closed_door;
};

int connections_open(struct connections **out, void *context, void *socket, struct curve_zap *zap,
                     uint32_t most, struct err *err)
{
    static const char endpoint[] = "inproc://lepton.connections";
    ASSERT(most > 0);
    struct connections *c = xcalloc(1, sizeof(*c));
    int none = 0;
    c->zap = zap;
    c->most = most;
    c->listener = -1;
    *out = NULL;
    if (zmq_socket_monitor(socket, endpoint, ZMQ_EVENT_ALL) == 0)
        c->monitor = zmq_socket(context, ZMQ_PAIR);
    /* No bound: an event that is lost would leave a connection open for ever. They come as fast as
     * connections do, and each turn reads them all. */
    if (!c->monitor || zmq_setsockopt(c->monitor, ZMQ_LINGER, &none, sizeof(none)) != 0 ||
        zmq_setsockopt(c->monitor, ZMQ_RCVHWM, &none, sizeof(none)) != 0 ||
        zmq_connect(c->monitor, endpoint) != 0) {
        err_set(err, "cannot watch connections: %s", zmq_strerror(errno));
        zmq_socket_monitor(socket, NULL, 0);
        connections_close(&c);
        return -1;
    }
    *out = c;
    return 0;
}

void connections_close(struct connections **pc)
{
    struct connections *c = *pc;
    if (!c)
        return;
    if (c->monitor)
        zmq_close(c->monitor);
    for (uint32_t i = 0; i < c->fd_count; i++)
        free(c->by_fd[i]);
    free(c->by_fd);
    free(c->open);
    free(c->left);
    free(c);
    *pc = NULL;
}

void *connections_events(struct connections *c)
{
    return c->monitor;
}

/* ---- the door ---- */
/* False where the kernel cannot drop what knocks (ipc). */
static bool filter_listener(struct connections *c, bool shut)
{
    struct sock_filter drop = {.code = BPF_RET | BPF_K, .k = 0};
    struct sock_fprog program = {.len = 1, .filter = &drop};
    if (c->listener < 0)
        return false;
    return shut ? setsockopt(c->listener, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) == 0
                : setsockopt(c->listener, SOL_SOCKET, SO_DETACH_FILTER, &drop, sizeof(drop)) == 0;
}

static void mind_door(struct connections *c)
{
    if (!c->closed_door && c->count >= c->most) {
        c->closed_door = true;
        bool quiet = filter_listener(c, true);
        log_warn("router", "%u connections, the most there may be: new ones %s", c->count,
                 quiet ? "wait outside" : "are shut out");
    } else if (c->closed_door && c->count < c->most - c->most / 16) {
        c->closed_door = false;
        filter_listener(c, false);
        log_info("router", "%u connections: new ones are let in again", c->count);
    }
}

/* ---- events ---- */
static void make_room(struct connections *c, uint32_t fd)
{
    if (fd < c->fd_count)
        return;
    uint32_t count = c->fd_count ? c->fd_count : 64;
    while (count <= fd)
        count *= 2;
    c->by_fd = xrealloc(c->by_fd, count * sizeof(struct peer *));
    c->open = xrealloc(c->open, count * sizeof(*c->open));
    memset(c->by_fd + c->fd_count, 0, (count - c->fd_count) * sizeof(struct peer *));
    memset(c->open + c->fd_count, 0, (count - c->fd_count) * sizeof(*c->open));
    c->fd_count = count;
}

static void opened(struct connections *c, uint32_t fd)
{
    make_room(c, fd);
    if (c->open[fd])
        return;
    c->open[fd] = true;
    c->count++;
    /* Who comes though the door is closed. libzmq closes the descriptor when it reads the end. */
    if (c->closed_door && (c->listener < 0 || c->count > c->most + SLACK))
        shutdown((int)fd, SHUT_RDWR);
}

static void note_leaver(struct connections *c, const struct peer *peer)
{
    for (uint32_t i = 0; i < c->left_count; i++)
        if (peer_equal(&c->left[i].peer, peer))
            return;
    if (c->left_count == c->left_capacity) {
        c->left_capacity = c->left_capacity ? 2 * c->left_capacity : 64;
        c->left = xrealloc(c->left, c->left_capacity * sizeof(*c->left));
    }
    c->left[c->left_count++] = (struct leaver){.peer = *peer, .since_ms = clock_now_ms()};
}

static void closed(struct connections *c, uint32_t fd)
{
    if (fd >= c->fd_count || !c->open[fd])
        return;
    c->open[fd] = false;
    c->count--;
    if (!c->by_fd[fd])
        return;
    note_leaver(c, c->by_fd[fd]);
    free(c->by_fd[fd]);
    c->by_fd[fd] = NULL;
}

/* One event; false when there is none. */
static bool read_event(struct connections *c)
{
    uint8_t head[6];
    char address[ADDRESS_BYTES] = "";
    uint16_t event;
    uint32_t value;
    int n = zmq_recv(c->monitor, head, sizeof(head), ZMQ_DONTWAIT);
    if (n < 0)
        return false;
    zmq_recv(c->monitor, address, sizeof(address) - 1,
             ZMQ_DONTWAIT); /* its second part: both arrive together */
    if (n != (int)sizeof(head))
        return true;
    memcpy(&event, head, sizeof(event));
    memcpy(&value, head + sizeof(event), sizeof(value));
    switch (event) {
    case ZMQ_EVENT_LISTENING:
        c->listener = strncmp(address, "tcp://", 6) == 0 ? (int)value : -1;
        break;
    case ZMQ_EVENT_ACCEPTED:
        opened(c, value);
        break;
    case ZMQ_EVENT_DISCONNECTED:
        closed(c, value);
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        curve_zap_note(c->zap, event, value, address);
        break;
    default:
        break;
    }
    return true;
}

void connections_read(struct connections *c)
{
    while (read_event(c))
        mind_door(c);
}

/* Of two users of one descriptor, who came later? 1: a, -1: b, 0: they chose their routing ids, nobody knows.
 * libzmq numbers its own: a zero, then 32 bits that grow. */
static int later(const struct peer *a, const struct peer *b)
{
    if (a->size != 5 || b->size != 5 || a->id[0] || b->id[0])
        return 0;
    uint32_t x, y;
    memcpy(&x, a->id + 1, sizeof(x));
    memcpy(&y, b->id + 1, sizeof(y));
    return (int32_t)(ntohl(x) - ntohl(y)) > 0 ? 1 : -1;
}

void connections_seen(struct connections *c, int fd, const struct peer *peer)
{
    if (fd < 0)
        return;
    uint32_t at = (uint32_t)fd;
    if (at < c->fd_count && c->by_fd[at] && peer_equal(c->by_fd[at], peer))
        return;
    connections_read(c);
    if (at >= c->fd_count || !c->open[at]) { /* a last word */
        note_leaver(c, peer);
        return;
    }
    struct peer *other = c->by_fd[at];
    int order = other ? later(peer, other) : 1;
    if (order < 0) {
        note_leaver(c, peer);
        return;
    }
    if (other && order > 0)
        note_leaver(c, other);
    free(other);
    c->by_fd[at] = NULL;
    if (order > 0) {
        c->by_fd[at] = xmalloc(sizeof(struct peer));
        *c->by_fd[at] = *peer;
    }
}

bool connections_left(struct connections *c, bool drained, struct peer *out)
{
    if (c->left_count == 0 || (!drained && clock_now_ms() < c->left[0].since_ms + LAST_WORDS_MS))
        return false;
    *out = c->left[0].peer;
    memmove(c->left, c->left + 1, --c->left_count * sizeof(*c->left));
    return true;
}

bool connections_waiting(const struct connections *c)
{
    return c->left_count > 0;
}

uint32_t connections_count(const struct connections *c)
{
    return c->count;
}
