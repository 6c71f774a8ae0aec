#include "coordinator/gateway/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/gateway/http_internal.h"

#define WATCH_MS      100
#define FINISH_MS     60000  /* for the rest of an answer that is over to be read */
#define HEADERS_BYTES 32768  /* of a request; MHD answers 431 to more, 414 to a long line */
#define SEND_BYTES    131072 /* of the kernel's send buffer: it must not swallow what nobody reads */
#define FLUSH_MS      1000

/* ---- what is held ---- */
bool http_reserve(struct http_call *call, uint64_t bytes)
{
    struct http *h = call->http;
    pthread_mutex_lock(&h->lock);
    bool fits = h->bodies_bytes + bytes <= h->options.max_bodies_bytes;
    if (fits) {
        h->bodies_bytes += bytes;
        call->reserved += bytes;
    }
    pthread_mutex_unlock(&h->lock);
    return fits;
}

bool http_is_draining(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    bool draining = h->draining;
    pthread_mutex_unlock(&h->lock);
    return draining;
}

uint64_t http_next_number(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    uint64_t number = h->number++;
    pthread_mutex_unlock(&h->lock);
    return number;
}

uint32_t http_live(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    uint32_t live = h->live;
    pthread_mutex_unlock(&h->lock);
    return live;
}

/* ---- connections ---- */
static void on_connection(void *context, struct MHD_Connection *connection, void **slot,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *h = context;
    struct http_connection *c = *slot;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        int bytes = SEND_BYTES;
        c = xcalloc(1, sizeof(*c));
        c->fd = info->connect_fd;
        c->receiving = true;
        c->since_ms = clock_now_ms();
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        *slot = c;
        pthread_mutex_lock(&h->lock);
        c->next = h->connections;
        c->link = &h->connections;
        if (c->next)
            c->next->link = &c->next;
        h->connections = c;
        pthread_mutex_unlock(&h->lock);
    } else if (c) { /* before its descriptor is closed */
        pthread_mutex_lock(&h->lock);
        *c->link = c->next;
        if (c->next)
            c->next->link = c->link;
        pthread_mutex_unlock(&h->lock);
        free(c);
        *slot = NULL;
    }
}

void http_watch(struct http_call *call, struct exchange *x)
{
    struct http_connection *c = call->watched;
    pthread_mutex_lock(&call->http->lock);
    c->exchange = x;
    c->receiving = false;
    pthread_mutex_unlock(&call->http->lock);
}

/* What has become of one connection that waits or is sent something: shut, or given up. */
static struct exchange *look_at(const struct http_connection *c, uint64_t now_ms)
{
    struct exchange *x = c->exchange;
    struct pollfd peer = {.fd = c->fd, .events = POLLRDHUP};
    if (!x)
        return NULL;
    pthread_mutex_lock(&x->lock);
    bool stuck = x->over && now_ms > x->over_ms + FINISH_MS;
    bool left = !x->gone && poll(&peer, 1, 0) > 0;
    x->users += left;
    pthread_mutex_unlock(&x->lock);
    if (stuck)
        shutdown(c->fd, SHUT_RDWR);
    return left ? x : NULL;
}

/* One look at all connections. Exchanges are abandoned behind the lock: that takes locks of the daemon. */
static void watch(struct http *h, struct exchange ***left, size_t *room)
{
    uint64_t now_ms = clock_now_ms();
    size_t count = 0;
    pthread_mutex_lock(&h->lock);
    for (struct http_connection *c = h->connections; c; c = c->next) {
        if (c->receiving && now_ms - c->since_ms > h->options.receive_ms)
            shutdown(c->fd, SHUT_RDWR); /* MHD sees its end and closes it */
        struct exchange *x = look_at(c, now_ms);
        if (!x)
            continue;
        if (count == *room) {
            *room = *room ? 2 * *room : 16;
            *left = xrealloc(*left, *room * sizeof(**left));
        }
        (*left)[count++] = x;
    }
    pthread_mutex_unlock(&h->lock);
    for (size_t i = 0; i < count; i++) {
        exchange_abandon((*left)[i]);
        exchange_release((*left)[i]);
    }
}

static void *run_watcher(void *argument)
{
    struct http *h = argument;
    struct exchange **left = NULL;
    size_t room = 0;
    for (;;) {
        pthread_mutex_lock(&h->lock);
        bool closing = h->closing;
        pthread_mutex_unlock(&h->lock);
        if (closing)
            break;
        watch(h, &left, &room);
        clock_sleep_ms(WATCH_MS);
    }
    free(left);
    return NULL;
}

/* ---- requests ---- */
static struct http_call *new_call(struct http *h, struct MHD_Connection *connection, const char *path,
                                  const char *method)
{
    struct http_call *call = xcalloc(1, sizeof(*call));
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    call->http = h;
    call->connection = connection;
    call->watched = info->socket_context;
    call->path = xstrdup(path);
    call->started_us = clock_now_us();
    snprintf(call->method, sizeof(call->method), "%s", method);
    pthread_mutex_lock(&h->lock);
    h->live++;
    pthread_mutex_unlock(&h->lock);
    return call;
}

/* A piece of the body. What will be refused is let pass by, up to as much again. */
static enum MHD_Result take_body(struct http_call *call, const char *data, size_t bytes)
{
    const struct http_options *o = &call->http->options;
    if (call->discarding) {
        call->body.size += bytes; /* counts alone: its memory is gone */
        return call->body.size <= 2 * o->max_body_bytes ? MHD_YES : MHD_NO;
    }
    size_t whole = call->body.size + bytes;
    if (whole > o->max_body_bytes)
        openai_fail(&call->refusal, 413, NULL, NULL, "the body: more than %llu bytes",
                    (unsigned long long)o->max_body_bytes);
    else if (whole > call->reserved && !http_reserve(call, whole - call->reserved))
        openai_fail(&call->refusal, 503, "busy", NULL, "too many bodies are being received at once");
    if (call->refusal.err.code) {
        call->discarding = true;
        buffer_release(&call->body);
        call->body.size = whole;
        return MHD_YES;
    }
    buffer_append(&call->body, data, bytes);
    return MHD_YES;
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data, size_t *bytes,
                                  void **slot)
{
    struct http_call *call = *slot;
    (void)version;
    if (!call) {
        *slot = call = new_call(context, connection, path, method);
        return http_begin(call) ? http_refuse(call, &call->refusal, true) : MHD_YES;
    }
    if (*bytes > 0) {
        enum MHD_Result result = take_body(call, data, *bytes);
        *bytes = 0;
        return result;
    }
    if (call->refusal.err.code)
        return http_refuse(call, &call->refusal, true);
    return http_serve(call);
}

static void log_call(const struct http_call *call, bool early)
{
    uint64_t ms = (clock_now_us() - call->started_us) / 1000;
    log_info("http", "%s %.100s %d%s key=%s request=%s %llu ms", call->method, call->path,
             early ? 499 : call->status, early ? " (client gone)" : "", call->who[0] ? call->who : "-",
             call->request_id, (unsigned long long)ms);
}

static void on_end(void *context, struct MHD_Connection *connection, void **slot,
                   enum MHD_RequestTerminationCode how)
{
    struct http *h = context;
    struct http_call *call = *slot;
    (void)connection;
    if (!call)
        return;
    pthread_mutex_lock(&h->lock);
    call->watched->exchange = NULL;
    call->watched->receiving = true;
    call->watched->since_ms = clock_now_ms();
    h->bodies_bytes -= call->reserved;
    h->live--;
    pthread_mutex_unlock(&h->lock);
    if (call->exchange) {
        if (exchange_leave(call->exchange))
            upstream_cancel(h->options.upstream, call->exchange);
        exchange_release(call->exchange);
    }
    log_call(call, how != MHD_REQUEST_TERMINATED_COMPLETED_OK);
    if (call->discarding)
        call->body.size = 0;
    buffer_release(&call->body);
    free(call->path);
    free(call);
    *slot = NULL;
}

/* ---- life ---- */
static void on_message(void *context, const char *format, va_list arguments)
{
    char text[300];
    (void)context;
    vsnprintf(text, sizeof(text), format, arguments);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http", "%s", text);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* "HOST:PORT" or "[HOST]:PORT" to an address; *found is to be freed with freeaddrinfo. */
static int resolve(const char *text, struct addrinfo **found, char host[64], struct err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    const char *colon = strrchr(text, ':');
    size_t bytes = colon ? (size_t)(colon - text) : 0;
    bool brackets = bytes > 2 && text[0] == '[' && colon[-1] == ']';
    char *end = NULL;
    unsigned long port = colon && colon[1] ? strtoul(colon + 1, &end, 10) : 65536;
    if (bytes == 0 || bytes >= 64 || !end || *end || port > 65535 || (!brackets && memchr(text, ':', bytes)))
        return err_set(err, "listen: \"%s\": expected HOST:PORT, [HOST]:PORT for IPv6, port 0 for a free one",
                       text);
    snprintf(host, 64, "%.*s", (int)(bytes - 2 * brackets), text + brackets);
    int rc = getaddrinfo(host, colon + 1, &hints, found);
    return rc ? err_set(err, "listen: \"%s\": %s", text, gai_strerror(rc)) : 0;
}

static int start(struct http *h, const struct addrinfo *at, struct err *err)
{
    const struct http_options *o = &h->options;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                     (at->ai_family == AF_INET6 ? MHD_USE_IPv6 : 0);
    struct MHD_OptionItem pool[] = {{MHD_OPTION_THREAD_POOL_SIZE, (intptr_t)o->threads, NULL},
                                    {MHD_OPTION_END, 0, NULL}};
    if (o->threads < 2)
        pool[0].option = MHD_OPTION_END;
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_message, NULL,
        MHD_OPTION_SOCK_ADDR, at->ai_addr, MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_NOTIFY_COMPLETED, on_end, h,
        MHD_OPTION_CONNECTION_LIMIT, o->max_connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        o->max_connections_per_address, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)((o->stall_ms + 999) / 1000),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADERS_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_LISTEN_BACKLOG_SIZE, 1024u, MHD_OPTION_ARRAY, pool, MHD_OPTION_END);
    return h->daemon ? 0 : err_set(err, "listen: %s: %s", o->listen, strerror(errno));
}

int http_open(struct http **out, const struct http_options *options, struct err *err)
{
    struct http *h = xcalloc(1, sizeof(*h));
    struct addrinfo *at = NULL;
    char host[64];
    *out = NULL;
    h->options = *options;
    snprintf(h->name, sizeof(h->name), "h%016llx-", (unsigned long long)clock_entropy());
    pthread_mutex_init(&h->lock, NULL);
    if (resolve(options->listen, &at, host, err))
        goto fail;
    h->loopback = is_loopback(at->ai_addr);
    if (!options->keys && !h->loopback) {
        err_set(err, "listen: %s: without API keys only a loopback address may be listened on",
                options->listen);
        goto fail;
    }
    if (start(h, at, err))
        goto fail;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT);
    snprintf(h->address, sizeof(h->address), at->ai_family == AF_INET6 ? "[%s]:%u" : "%s:%u", host,
             (unsigned)info->port);
    freeaddrinfo(at);
    if (pthread_create(&h->watcher, NULL, run_watcher, h) != 0)
        die("pthread_create: %s", strerror(errno));
    *out = h;
    return 0;
fail:
    if (at)
        freeaddrinfo(at);
    pthread_mutex_destroy(&h->lock);
    free(h);
    return -1;
}

const char *http_address(const struct http *h)
{
    return h->address;
}

void http_drain(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    bool again = h->draining;
    h->draining = true;
    pthread_mutex_unlock(&h->lock);
    if (again)
        return;
    MHD_socket listening = MHD_quiesce_daemon(h->daemon);
    if (listening != MHD_INVALID_SOCKET)
        close(listening);
}

void http_close(struct http **http)
{
    struct http *h = *http;
    if (!h)
        return;
    http_drain(h);
    for (int i = 0; i < FLUSH_MS / 10 && http_live(h) > 0; i++)
        clock_sleep_ms(10);
    pthread_mutex_lock(&h->lock);
    h->closing = true;
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->watcher, NULL);
    MHD_stop_daemon(h->daemon); /* nothing is suspended: every exchange is over */
    pthread_mutex_destroy(&h->lock);
    free(h);
    *http = NULL;
}
