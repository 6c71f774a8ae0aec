#include "worker/wake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"

struct wake {
    int listener; /* leader, until all ranks are there; else -1 */
    int *peers;   /* leader: one connection per rank; others: the one to the leader */
    int peer_count;
    uint8_t token[16];
};

static struct wake *wake_new(void)
{
    struct wake *w = xcalloc(1, sizeof(*w));
    w->listener = -1;
    return w;
}

void wake_close(struct wake **pw)
{
    if (!pw || !*pw)
        return;
    struct wake *w = *pw;
    if (w->listener >= 0)
        close(w->listener);
    for (int i = 0; i < w->peer_count; i++)
        close(w->peers[i]);
    free(w->peers);
    free(w);
    *pw = NULL;
}

/* The host's own addresses, loopback first: a rank on the same host finds the leader at once. */
static void list_addresses(struct wake_info *info)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all))
        return;
    for (int loopback = 1; loopback >= 0; loopback--)
        for (struct ifaddrs *a = all; a && info->count < WAKE_MAX_ADDRESSES; a = a->ifa_next) {
            if (!a->ifa_addr || !(a->ifa_flags & IFF_UP) || !!(a->ifa_flags & IFF_LOOPBACK) != loopback)
                continue;
            int i = info->count;
            if (a->ifa_addr->sa_family == AF_INET) {
                memcpy(info->address[i].bytes, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, 4);
            } else if (a->ifa_addr->sa_family == AF_INET6) {
                struct sockaddr_in6 *six = (struct sockaddr_in6 *)a->ifa_addr;
                memcpy(info->address[i].bytes, &six->sin6_addr, 16);
                info->address[i].scope = six->sin6_scope_id;
            } else {
                continue;
            }
            info->address[i].family = a->ifa_addr->sa_family;
            info->count++;
        }
    freeifaddrs(all);
}

/* Both families on one socket where the system has IPv6, else IPv4 alone. */
static int listen_any(uint16_t *port)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), off = 0;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    struct sockaddr_in four = {.sin_family = AF_INET};
    if (fd >= 0 && (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) ||
                    bind(fd, (struct sockaddr *)&six, sizeof(six)))) {
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&four, sizeof(four)))
            goto fail;
    }
    struct sockaddr_storage bound;
    socklen_t size = sizeof(bound);
    if (listen(fd, 128) || getsockname(fd, (struct sockaddr *)&bound, &size))
        goto fail;
    *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                              : ((struct sockaddr_in *)&bound)->sin_port);
    return fd;
fail:
    if (fd >= 0)
        close(fd);
    return -1;
}

int wake_listen(struct wake **out, struct wake_info *info, struct err *err)
{
    struct wake *w = wake_new();
    memset(info, 0, sizeof(*info));
    if (getrandom(w->token, sizeof(w->token), 0) != (ssize_t)sizeof(w->token))
        die("getrandom gave no bytes");
    memcpy(info->token, w->token, sizeof(w->token));
    w->listener = listen_any(&info->port);
    if (w->listener < 0) {
        wake_close(&w);
        return err_set(err, "no TCP port to listen on for the ranks: %s", strerror(errno));
    }
    list_addresses(info);
    *out = w;
    return 0;
}

/* Moves all bytes or fails at the deadline. */
static int transfer(int fd, void *data, size_t bytes, bool out, uint64_t deadline_ms)
{
    char *p = data;
    while (bytes) {
        uint64_t now = clock_now_ms();
        struct pollfd poll_fd = {.fd = fd, .events = out ? POLLOUT : POLLIN};
        if (now >= deadline_ms || (poll(&poll_fd, 1, (int)(deadline_ms - now)) < 0 && errno != EINTR))
            return -1;
        ssize_t n = out ? send(fd, p, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, p, bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return -1;
        if (n > 0) {
            p += n;
            bytes -= (size_t)n;
        }
    }
    return 0;
}

static bool tokens_equal(const uint8_t *a, const uint8_t *b)
{
    uint8_t difference = 0; /* constant time: the token is a secret */
    for (int i = 0; i < 16; i++)
        difference |= a[i] ^ b[i];
    return difference == 0;
}

static void prepare_connection(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

int wake_accept(struct wake *w, int peers, uint64_t timeout_ms, struct err *err)
{
    uint64_t deadline_ms = clock_now_ms() + timeout_ms;
    w->peers = xcalloc((size_t)peers, sizeof(int));
    while (w->peer_count < peers) {
        uint64_t now = clock_now_ms();
        struct pollfd poll_fd = {.fd = w->listener, .events = POLLIN};
        if (now >= deadline_ms || poll(&poll_fd, 1, (int)(deadline_ms - now)) == 0)
            return err_set(err, "%d of %d ranks reached the leader's wake socket within %llu ms",
                           w->peer_count, peers, (unsigned long long)timeout_ms);
        int fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        /* Whoever else finds the port sends no token: it is dropped after a second and the ranks go on. So is
         * a rank that lost patience and came again on another connection: it does not confirm the answer. */
        uint8_t token[16], yes = 1;
        uint64_t patience = clock_now_ms() + 1000;
        if (transfer(fd, token, sizeof(token), false, patience) || !tokens_equal(token, w->token) ||
            transfer(fd, &yes, 1, true, patience) || transfer(fd, &yes, 1, false, patience)) {
            close(fd);
            continue;
        }
        prepare_connection(fd);
        w->peers[w->peer_count++] = fd;
    }
    close(w->listener);
    w->listener = -1;
    return 0;
}

/* Tries one address; the connection, or -1. */
static int connect_address(const struct wake_info *info, int i, uint64_t deadline_ms)
{
    struct sockaddr_storage address = {0};
    socklen_t size;
    if (info->address[i].family == AF_INET) {
        struct sockaddr_in *four = (struct sockaddr_in *)&address;
        *four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(info->port)};
        memcpy(&four->sin_addr, info->address[i].bytes, 4);
        size = sizeof(*four);
    } else {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)&address;
        *six = (struct sockaddr_in6){
            .sin6_family = AF_INET6, .sin6_port = htons(info->port), .sin6_scope_id = info->address[i].scope};
        memcpy(&six->sin6_addr, info->address[i].bytes, 16);
        size = sizeof(*six);
    }
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    uint64_t patience = clock_now_ms() + 2000;
    if (patience > deadline_ms)
        patience = deadline_ms;
    uint8_t token[16], answer = 0;
    memcpy(token, info->token, sizeof(token));
    if ((connect(fd, (struct sockaddr *)&address, size) && errno != EINPROGRESS) ||
        transfer(fd, token, sizeof(token), true, patience) || transfer(fd, &answer, 1, false, patience) ||
        answer != 1 || transfer(fd, &answer, 1, true, patience)) {
        close(fd);
        return -1;
    }
    prepare_connection(fd);
    return fd;
}

int wake_connect(struct wake **out, const struct wake_info *info, uint64_t timeout_ms, struct err *err)
{
    uint64_t deadline_ms = clock_now_ms() + timeout_ms;
    do {
        for (int i = 0; i < info->count && i < WAKE_MAX_ADDRESSES; i++) {
            int fd = connect_address(info, i, deadline_ms);
            if (fd < 0)
                continue;
            struct wake *w = wake_new();
            w->peers = xcalloc(1, sizeof(int));
            w->peers[0] = fd;
            w->peer_count = 1;
            *out = w;
            return 0;
        }
        clock_sleep_ms(50);
    } while (clock_now_ms() < deadline_ms);
    return err_set(err, "the leader's wake socket (port %u, %u addresses) did not answer within %llu ms",
                   info->port, info->count, (unsigned long long)timeout_ms);
}

int wake_connections(const struct wake *w, const int **fds)
{
    *fds = w->peers;
    return w->peer_count;
}

int wake_all(struct wake *w, struct err *err)
{
    uint8_t byte = 1;
    for (int i = 0; i < w->peer_count; i++)
        if (transfer(w->peers[i], &byte, 1, true, clock_now_ms() + 5000))
            return err_set(err, "a rank of the group is gone: its wake connection ended");
    return 0;
}

int wake_wait(struct wake *w, struct err *err)
{
    for (;;) {
        uint8_t byte;
        struct pollfd poll_fd = {.fd = w->peers[0], .events = POLLIN};
        if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
            return err_set(err, "waiting to be woken: %s", strerror(errno));
        ssize_t n = recv(w->peers[0], &byte, 1, MSG_DONTWAIT);
        if (n == 1)
            return 0;
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return err_set(err, "the leader is gone: its wake connection ended");
    }
}
