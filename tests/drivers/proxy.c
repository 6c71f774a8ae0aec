/* proxy: a TCP proxy that misbehaves as it is told, between peers and a coordinator: the network's faults for
 * tests/faults, where no netem is.
 *
 *   proxy PORT      listens on a free port of 127.0.0.1, prints "port N", forwards to 127.0.0.1:PORT
 *
 * Commands are lines of standard input, each answered with "ok" once it is in force; the end of the input
 * ends the proxy. WHERE is up (to the target), down (from it) or both:
 *
 *   pass            everything flows again; what was held is delivered
 *   hold WHERE      nothing flows, nothing closes, nobody is told: a partition, one-way or symmetric; both of
 *                   them together with a closed end are a half-open connection
 *   drop WHERE      what comes is read and lost: the stream behind it is broken
 *   delay MS        every byte comes so much later
 *   rate BYTES      at most so many bytes a second in each direction of a connection; 0: no limit
 *   again WHERE     of each connection the piece that comes next is delivered twice
 *   swap WHERE      of each connection the two pieces that come next change places
 *   close           resets every connection
 *   refuse on|off   new connections are closed at once
 *
 * A direction holds at most HELD bytes; then it is not read, and TCP tells the sender. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"

#define LINKS 512
#define HELD  (1u << 20)
#define PIECE 16384u

enum { UP, DOWN };

struct piece {
    struct piece *next;
    uint64_t due_ms;
    size_t bytes, sent;
    char data[];
};

/* One direction of a connection: from end[d] to end[1 - d]. */
struct flow {
    struct piece *first, **last;
    size_t held;
    bool ended;          /* its source said that it sends no more */
    bool passed;         /* and that was told on */
    bool again, swap;    /* what is to happen to what comes next */
    struct piece *waits; /* the first of two that change places */
    double tokens;       /* of the rate: bytes that may go now */
    uint64_t since_ms;   /* when they were counted */
};

struct link {
    bool used;
    int end[2]; /* who connected, and the target */
    struct flow flow[2];
};

struct proxy {
    int listener;
    struct sockaddr_in target;
    bool hold[2], drop[2], refuse;
    uint64_t delay_ms, rate;
    struct link link[LINKS];
};

static void nonblocking(int fd)
{
    int one = 1;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        die("fcntl: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* A reset, not a goodbye: the peer must not take it for an end of its own choice. */
static void close_link(struct link *l)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    for (int d = 0; d < 2; d++) {
        setsockopt(l->end[d], SOL_SOCKET, SO_LINGER, &now, sizeof(now));
        close(l->end[d]);
        for (struct piece *p = l->flow[d].first, *next; p; p = next) {
            next = p->next;
            free(p);
        }
        free(l->flow[d].waits);
    }
    *l = (struct link){0};
}

static void accept_link(struct proxy *p)
{
    int from = accept(p->listener, NULL, NULL), i = 0;
    while (i < LINKS && p->link[i].used)
        i++;
    int to = from >= 0 && i < LINKS && !p->refuse ? socket(AF_INET, SOCK_STREAM, 0) : -1;
    if (to < 0 || connect(to, (struct sockaddr *)&p->target, sizeof(p->target)) != 0) {
        if (to >= 0)
            close(to);
        if (from >= 0)
            close(from);
        return;
    }
    struct link *l = &p->link[i];
    *l = (struct link){.used = true, .end = {from, to}};
    for (int d = 0; d < 2; d++) {
        nonblocking(l->end[d]);
        l->flow[d].last = &l->flow[d].first;
        l->flow[d].since_ms = clock_now_ms();
    }
}

/* Behind what is there; with `swap` the first one waits, unsent, for the second, which goes before it. */
static void append(struct flow *f, struct piece *piece)
{
    f->held += piece->bytes;
    piece->next = NULL;
    if (f->swap && f->waits) {
        piece->next = f->waits;
        *f->last = piece;
        f->last = &f->waits->next;
        f->waits = NULL;
        f->swap = false;
    } else if (f->swap) {
        f->waits = piece;
    } else {
        *f->last = piece;
        f->last = &piece->next;
    }
}

/* False: the connection broke. */
static bool take(struct proxy *p, struct link *l, int d)
{
    struct flow *f = &l->flow[d];
    struct piece *piece = xmalloc(sizeof(*piece) + PIECE);
    ssize_t n = read(l->end[d], piece->data, PIECE);
    if (n <= 0 || p->drop[d]) {
        free(piece);
        f->ended |= n == 0;
        return n >= 0 || errno == EAGAIN || errno == EINTR;
    }
    piece->bytes = (size_t)n;
    piece->sent = 0;
    piece->due_ms = clock_now_ms() + p->delay_ms;
    append(f, piece);
    if (f->again) {
        struct piece *copy = xmalloc(sizeof(*copy) + PIECE);
        memcpy(copy, piece, sizeof(*copy) + PIECE);
        append(f, copy);
        f->again = false;
    }
    return true;
}

/* How many bytes may go now. */
static size_t allowance(const struct proxy *p, struct flow *f, uint64_t now_ms)
{
    if (!p->rate)
        return SIZE_MAX;
    f->tokens += (double)p->rate * (double)(now_ms - f->since_ms) / 1000;
    f->since_ms = now_ms;
    double most = (double)p->rate / 20 + 1; /* bursts of 50 ms */
    if (f->tokens > most)
        f->tokens = most;
    return (size_t)f->tokens;
}

static bool give(struct proxy *p, struct link *l, int d, uint64_t now_ms)
{
    struct flow *f = &l->flow[d];
    while (!p->hold[d] && f->first && f->first->due_ms <= now_ms) {
        struct piece *piece = f->first;
        size_t most = allowance(p, f, now_ms), left = piece->bytes - piece->sent;
        ssize_t n =
            most ? send(l->end[1 - d], piece->data + piece->sent, left < most ? left : most, MSG_NOSIGNAL)
                 : 0;
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return true;
        piece->sent += (size_t)n;
        f->held -= (size_t)n;
        if (p->rate)
            f->tokens -= (double)n;
        if (piece->sent < piece->bytes)
            continue;
        f->first = piece->next;
        if (!f->first)
            f->last = &f->first;
        free(piece);
    }
    if (f->ended && !f->first && !f->passed && !p->hold[d]) {
        shutdown(l->end[1 - d], SHUT_WR);
        f->passed = true;
    }
    return true;
}

static void set_where(bool flags[2], const char *where)
{
    flags[UP] |= strcmp(where, "down") != 0;
    flags[DOWN] |= strcmp(where, "up") != 0;
}

static bool obey(struct proxy *p, char *line)
{
    char word[32] = "", value[32] = "";
    if (sscanf(line, "%31s %31s", word, value) < 1)
        return false;
    if (strcmp(word, "pass") == 0) {
        p->hold[UP] = p->hold[DOWN] = p->drop[UP] = p->drop[DOWN] = false;
        p->delay_ms = p->rate = 0;
    } else if (strcmp(word, "hold") == 0) {
        set_where(p->hold, value);
    } else if (strcmp(word, "drop") == 0) {
        set_where(p->drop, value);
    } else if (strcmp(word, "again") == 0 || strcmp(word, "swap") == 0) {
        bool where[2] = {false, false};
        set_where(where, value);
        for (int i = 0; i < 2 * LINKS; i++) {
            struct flow *f = &p->link[i / 2].flow[i % 2];
            f->again |= where[i % 2] && word[0] == 'a';
            f->swap |= where[i % 2] && word[0] == 's';
        }
    } else if (strcmp(word, "delay") == 0) {
        p->delay_ms = strtoull(value, NULL, 10);
    } else if (strcmp(word, "rate") == 0) {
        p->rate = strtoull(value, NULL, 10);
    } else if (strcmp(word, "refuse") == 0) {
        p->refuse = strcmp(value, "on") == 0;
    } else if (strcmp(word, "close") == 0) {
        for (int i = 0; i < LINKS; i++)
            if (p->link[i].used)
                close_link(&p->link[i]);
    } else {
        return false;
    }
    return true;
}

/* What there is to read and to write, and who waits for time alone. */
static int fill(struct proxy *p, struct pollfd *polls, int *wait_ms)
{
    int count = 2;
    polls[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    polls[1] = (struct pollfd){.fd = p->listener, .events = POLLIN};
    *wait_ms = -1;
    for (int i = 0; i < LINKS; i++) {
        struct link *l = &p->link[i];
        for (int d = 0; l->used && d < 2; d++) {
            const struct flow *in = &l->flow[d], *out = &l->flow[1 - d];
            short events = 0;
            if (!in->ended && in->held < HELD && !p->hold[d])
                events |= POLLIN;
            if (out->first && !p->hold[1 - d] && (p->rate || out->first->due_ms > clock_now_ms()))
                *wait_ms = 2;
            else if (out->first && !p->hold[1 - d])
                events |= POLLOUT;
            /* poll() reports a hang-up though nobody asked, again and again: then it is not polled. */
            polls[count++] = (struct pollfd){.fd = events ? l->end[d] : -1, .events = events};
        }
        if (!l->used)
            polls[count] = polls[count + 1] = (struct pollfd){.fd = -1}, count += 2;
    }
    return count;
}

static void turn(struct proxy *p, const struct pollfd *polls)
{
    uint64_t now_ms = clock_now_ms();
    for (int i = 0; i < LINKS; i++) {
        struct link *l = &p->link[i];
        bool whole = true;
        for (int d = 0; l->used && d < 2; d++)
            if (polls[2 + 2 * i + d].revents & ~POLLOUT)
                whole &= take(p, l, d);
        for (int d = 0; l->used && d < 2; d++)
            whole &= give(p, l, d, now_ms);
        if (l->used && (!whole || (l->flow[UP].passed && l->flow[DOWN].passed)))
            close_link(l);
    }
}

int main(int argc, char **argv)
{
    static struct proxy p;
    static struct pollfd polls[2 + 2 * LINKS];
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(own);
    char line[256];
    if (argc != 2)
        die("usage: proxy PORT");
    p.target = own;
    p.target.sin_port = htons((uint16_t)strtoul(argv[1], NULL, 10));
    p.listener = socket(AF_INET, SOCK_STREAM, 0);
    if (p.listener < 0 || bind(p.listener, (struct sockaddr *)&own, sizeof(own)) != 0 ||
        listen(p.listener, 128) != 0 || getsockname(p.listener, (struct sockaddr *)&own, &bytes) != 0)
        die("cannot listen: %s", strerror(errno));
    setvbuf(stdin, NULL, _IONBF, 0); /* what poll() does not see must not hide in a buffer */
    printf("port %u\n", ntohs(own.sin_port));
    fflush(stdout);
    for (;;) {
        int wait_ms, count = fill(&p, polls, &wait_ms);
        if (poll(polls, (nfds_t)count, wait_ms) < 0 && errno != EINTR)
            die("poll: %s", strerror(errno));
        turn(&p, polls);
        if (polls[1].revents)
            accept_link(&p);
        if (!polls[0].revents)
            continue;
        if (!fgets(line, sizeof(line), stdin))
            return 0;
        puts(obey(&p, line) ? "ok" : "unknown command");
        fflush(stdout);
    }
}
