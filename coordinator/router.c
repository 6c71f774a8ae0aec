#include "coordinator/router.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/connections.h"
#include "coordinator/hangup.h"
#include "coordinator/throttle.h"

/* Connections with bad frames that are remembered; the oldest is forgotten. */
#define OFFENDERS 1024
/* Refusals logged and answered per second, all peers together. */
#define REFUSALS_PER_SECOND 20
/* Messages that wait for one peer; a reader this slow is the caller's business. */
#define SEND_HIGH_WATER_MARK 1000
/* Frames of one peer that are held unread: few, since each may have WIRE_MAX_FRAME bytes; TCP holds the rest.
 */
#define RECEIVE_HIGH_WATER_MARK 64

struct offender {
    struct peer peer; /* size 0: free */
    uint32_t strikes;
};

struct router {
    void *context, *socket;
    int socket_fd, monitor_fd; /* can be read when ZeroMQ has news for the socket, and for its monitor */
    struct curve_zap *zap;
    struct connections *connections;
    char endpoint[512];
    struct buffer out; /* the frame being sent */
    struct offender *offenders;
    uint32_t next_offender, offender_count;
    uint64_t bad_frames;
    struct throttle refusals, ignored;
};

/* ---- opening ---- */
/* An address that means "every interface" hands the socket to networks nobody thought of. */
static int check_endpoint(const struct router_options *o, struct err *err)
{
    const char *e = o->endpoint;
    if (strncmp(e, "ipc://", 6) == 0 && e[6])
        return 0;
    const char *port = strrchr(e, ':');
    if (strncmp(e, "tcp://", 6) != 0 || port < e + 6 || port[1] == 0)
        return err_set(err, "%s: expected tcp://ADDRESS:PORT, tcp://INTERFACE:PORT or ipc://PATH", e);
    static const char *const everywhere[] = {"*", "0.0.0.0", "[::]", "::", "0"};
    for (size_t i = 0; i < ARRAY_LEN(everywhere); i++)
        if (strlen(everywhere[i]) == (size_t)(port - (e + 6)) &&
            strncmp(e + 6, everywhere[i], (size_t)(port - (e + 6))) == 0 && !o->public)
            return err_set(err,
                           "%s: would listen on every interface; name an address or an interface, or set "
                           "public = true",
                           e);
    return 0;
}

static void set_int(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof(value));
    ASSERT(rc == 0);
}

static void set_options(void *socket, const struct router_options *o)
{
    int64_t max_frame = WIRE_MAX_FRAME;
    int rc = zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof(max_frame));
    ASSERT(rc == 0);
    set_int(socket, ZMQ_ROUTER_MANDATORY, 1); /* a send to nobody is an error, not silence */
    set_int(socket, ZMQ_ROUTER_HANDOVER, 0);  /* nobody takes a connection's routing id over */
    set_int(socket, ZMQ_SNDHWM, SEND_HIGH_WATER_MARK);
    set_int(socket, ZMQ_RCVHWM, RECEIVE_HIGH_WATER_MARK);
    /* Half-open connections close within seconds: by the peers' heartbeats, which say for how long each
     * holds, and by the kernel's for peers that send none. This socket sends none of its own: they would tell
     * nothing more. */
    set_int(socket, ZMQ_TCP_KEEPALIVE, 1);
    set_int(socket, ZMQ_TCP_KEEPALIVE_IDLE, 2);
    set_int(socket, ZMQ_TCP_KEEPALIVE_INTVL, 1);
    set_int(socket, ZMQ_TCP_KEEPALIVE_CNT, 3);
    set_int(socket, ZMQ_TCP_MAXRT, 5000 + (int)o->stall_ms); /* a full window counts as silence there */
    set_int(socket, ZMQ_HANDSHAKE_IVL, 5000);
    set_int(socket, ZMQ_BACKLOG, 256);
    set_int(socket, ZMQ_LINGER, 0);
    if (strchr(o->endpoint, '['))
        set_int(socket, ZMQ_IPV6, 1);
}

int router_open(struct router **out, const struct router_options *o, struct err *err)
{
    struct router *r = xcalloc(1, sizeof(*r));
    if (check_endpoint(o, err) != 0)
        goto fail;
    r->offenders = xcalloc(OFFENDERS, sizeof(*r->offenders));
    r->context = zmq_ctx_new();
    if (!r->context)
        die("zmq_ctx_new: %s", zmq_strerror(errno));
    zmq_ctx_set(r->context, ZMQ_MAX_SOCKETS, 32); /* this one, the ZAP handler and its watch */
    if (curve_zap_start(&r->zap, r->context, o->authorized, err) != 0)
        goto fail;
    r->socket = zmq_socket(r->context, ZMQ_ROUTER);
    if (!r->socket)
        die("zmq_socket: %s", zmq_strerror(errno));
    set_options(r->socket, o);
    if (curve_server(r->socket, o->key, err) != 0 ||
        connections_open(&r->connections, r->context, r->socket, r->zap, o->max_connections, err) != 0)
        goto fail;
    if (zmq_bind(r->socket, o->endpoint) != 0) {
        err_set(err, "%s: cannot bind: %s", o->endpoint, zmq_strerror(errno));
        goto fail;
    }
    size_t bytes = sizeof(r->endpoint), fd_bytes = sizeof(int);
    if (zmq_getsockopt(r->socket, ZMQ_LAST_ENDPOINT, r->endpoint, &bytes) != 0)
        die("%s: no last endpoint: %s", o->endpoint, zmq_strerror(errno));
    if (zmq_getsockopt(r->socket, ZMQ_FD, &r->socket_fd, &fd_bytes) != 0 ||
        zmq_getsockopt(connections_events(r->connections), ZMQ_FD, &r->monitor_fd, &fd_bytes) != 0)
        die("no descriptor of a socket: %s", zmq_strerror(errno));
    if (!hangup_in_force())
        log_warn("router",
                 "this libzmq does not wait with epoll: a peer that floods and breaks off may end it");
    *out = r;
    return 0;
fail:
    router_close(&r, 0);
    return -1;
}

void router_close(struct router **router, uint32_t linger_ms)
{
    struct router *r = *router;
    if (!r)
        return;
    if (r->socket) {
        /* Its thread would wait for ever with an event that nobody takes any more. */
        zmq_socket_monitor(r->socket, NULL, 0);
        set_int(r->socket, ZMQ_LINGER, (int)linger_ms);
        zmq_close(r->socket);
    }
    connections_close(&r->connections);
    curve_zap_stop(&r->zap);
    if (r->context)
        zmq_ctx_term(r->context);
    buffer_release(&r->out);
    free(r->offenders);
    free(r);
    *router = NULL;
}

const char *router_endpoint(const struct router *r)
{
    return r->endpoint;
}

uint64_t router_bad_frames(const struct router *r)
{
    return r->bad_frames;
}

uint64_t router_refused_peers(const struct router *r)
{
    return curve_zap_refused(r->zap);
}

/* Asks the socket, and so makes its descriptor tell of what comes from now on. */
static bool readable(void *socket)
{
    int events = 0;
    size_t bytes = sizeof(events);
    if (zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) == 0)
        return events & ZMQ_POLLIN;
    if (errno != EINTR)
        die("zmq_getsockopt: %s", zmq_strerror(errno));
    return true; /* not known: whoever looks will see */
}

/* As zmq_poll does, but for what follows the sleep: there it would ask each socket again, which costs as much
 * as the message that came. Who is told of nothing finds nothing. */
bool router_wait(struct router *r, int other_fd, uint64_t timeout_ms)
{
    void *monitor = connections_events(r->connections);
    struct pollfd items[3] = {{.fd = r->socket_fd, .events = POLLIN},
                              {.fd = other_fd, .events = POLLIN},
                              {.fd = r->monitor_fd, .events = POLLIN}};
    if (connections_waiting(r->connections) && timeout_ms > 10)
        timeout_ms = 10;
    int timeout = timeout_ms == UINT64_MAX ? -1 : (int)(timeout_ms > 3600000 ? 3600000 : timeout_ms);
    bool watched = readable(monitor);
    if (readable(r->socket) || watched)
        timeout = 0;
    if (poll(items, ARRAY_LEN(items), timeout) < 0 && errno != EINTR)
        die("poll: %s", strerror(errno));
    if (watched || items[2].revents & POLLIN)
        connections_read(r->connections);
    return (items[1].revents & POLLIN) != 0;
}

/* ---- bad frames ---- */
static struct offender *offender_find(struct router *r, const struct peer *peer)
{
    for (uint32_t i = 0; i < r->offender_count; i++)
        if (peer_equal(&r->offenders[i].peer, peer))
            return &r->offenders[i];
    return NULL;
}

static uint32_t strike(struct router *r, const struct peer *peer)
{
    struct offender *o = offender_find(r, peer);
    if (!o) {
        o = &r->offenders[r->next_offender];
        r->next_offender = (r->next_offender + 1) % OFFENDERS;
        if (r->offender_count < OFFENDERS)
            r->offender_count++;
        *o = (struct offender){.peer = *peer};
    }
    return ++o->strikes;
}

void router_refuse(struct router *r, const struct peer *peer, const struct wire_error *about, const char *fmt,
                   ...)
{
    char text[500];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    struct wire_message m;
    wire_init(&m, WIRE_ERROR);
    m.error = *about;
    m.error.message = wire_string_mend(text, sizeof(text) - 1);
    r->bad_frames++;
    uint32_t strikes = about->code == 409 ? 0 : strike(r, peer), suppressed = 0;
    bool last = strikes == ROUTER_MAX_STRIKES;
    if (throttle_allows(&r->refusals, clock_now_ms(), REFUSALS_PER_SECOND, &suppressed) || last)
        log_warn("router", "bad frame from %s:%s: %d %s (strike %u, %u not logged before)",
                 curve_role_name(peer->role), peer->name, (int)about->code, text, strikes, suppressed);
    router_send(r, peer, &m); /* best effort: who sends garbage may well not listen */
    if (last)
        log_warn("router", "audit: the connection of %s:%s is ignored after %u bad frames",
                 curve_role_name(peer->role), peer->name, strikes);
}

/* ---- receiving ---- */
/* Drops the other parts of a multipart message; the last one ends it. */
static unsigned drain_parts(struct router *r, zmq_msg_t *part)
{
    unsigned dropped = 0;
    while (zmq_msg_more(part)) {
        zmq_msg_close(part);
        zmq_msg_init(part);
        if (zmq_msg_recv(part, r->socket, ZMQ_DONTWAIT) < 0)
            break; /* a multipart message arrives whole: never */
        dropped++;
    }
    return dropped;
}

static bool identify(struct peer *peer, zmq_msg_t *body)
{
    const char *user = zmq_msg_gets(body, "User-Id"), *name;
    const char *key = zmq_msg_gets(body, CURVE_KEY_PROPERTY);
    if (!user || !key || !curve_user_parse(user, &peer->role, &name))
        return false;
    peer->key = strtoull(key, NULL, 16);
    size_t bytes = strlen(name); /* at most what fits: curve_user_parse saw to it */
    ASSERT(bytes < sizeof(peer->name));
    memcpy(peer->name, name, bytes + 1);
    return true;
}

bool router_allows(struct router *r, const struct peer *peer)
{
    return curve_zap_allows(r->zap, peer->role, peer->name, peer->key);
}

bool router_left(struct router *r, bool drained, struct peer *out)
{
    return connections_left(r->connections, drained, out);
}

uint32_t router_connections(const struct router *r)
{
    return connections_count(r->connections);
}

static int receive_body(struct router *r, const struct peer *from, zmq_msg_t *body,
                        struct router_message *out)
{
    struct wire_error about = {.code = 400};
    unsigned extra = drain_parts(r, body);
    if (extra > 0) {
        router_refuse(r, from, &about, "a message of %u parts; expected one frame", extra + 1);
        return -1;
    }
    struct err err;
    if (wire_decode(&out->wire, zmq_msg_data(body), zmq_msg_size(body), &err) != 0) {
        if (err.code)
            about.code = (uint64_t)err.code;
        router_refuse(r, from, &about, "%s", err.message);
        return -1;
    }
    out->from = *from;
    return 1;
}

int router_receive(struct router *r, struct router_message *out)
{
    struct peer from = {.size = 0};
    zmq_msg_t part;
    zmq_msg_init(&part);
    int result = -1;
    if (zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            die("zmq_msg_recv: %s", zmq_strerror(errno));
        result = 0;
        goto out;
    }
    ASSERT(zmq_msg_size(&part) > 0 && zmq_msg_size(&part) <= PEER_MAX_ID && zmq_msg_more(&part));
    from.size = (uint8_t)zmq_msg_size(&part);
    memcpy(from.id, zmq_msg_data(&part), from.size);
    zmq_msg_close(&part);
    zmq_msg_init(&part);
    if (zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT) < 0)
        die("a message ended after its routing id: %s", zmq_strerror(errno));
    struct offender *o = offender_find(r, &from);
    uint32_t suppressed;
    if (o && o->strikes >= ROUTER_MAX_STRIKES) {
        drain_parts(r, &part);
        r->bad_frames++;
        if (throttle_allows(&r->ignored, clock_now_ms(), 1, &suppressed))
            log_debug("router", "ignored a frame of %s:%s", curve_role_name(o->peer.role), o->peer.name);
        goto out;
    }
    /* Identities come from ZAP alone: a message without one cannot be (CURVE is always on). */
    if (!identify(&from, &part)) {
        drain_parts(r, &part);
        r->bad_frames++;
        log_error("router", "dropped a frame without an identity");
        goto out;
    }
    connections_seen(r->connections, zmq_msg_get(&part, ZMQ_SRCFD), &from);
    result = receive_body(r, &from, &part, out);
out:
    zmq_msg_close(&part);
    return result;
}

/* ---- sending ---- */
enum router_sent router_send(struct router *r, const struct peer *to, const struct wire_message *m)
{
    r->out.size = 0;
    wire_encode(m, &r->out);
    if (zmq_send(r->socket, to->id, to->size, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) {
        if (errno == EAGAIN)
            return ROUTER_FULL;
        if (errno == EHOSTUNREACH || errno == EINTR)
            return errno == EINTR ? ROUTER_FULL : ROUTER_GONE;
        die("zmq_send: %s", zmq_strerror(errno));
    }
    /* The peer was chosen by the part above; the body follows or the peer vanished, which is silent. */
    if (zmq_send(r->socket, r->out.data, r->out.size, ZMQ_DONTWAIT) < 0)
        return ROUTER_GONE;
    if (r->out.capacity > (1u << 20)) /* one long prompt must not hold its memory for ever */
        buffer_release(&r->out);
    return ROUTER_SENT;
}
