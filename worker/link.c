#include "worker/link.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/link_internal.h"

#define MESSAGES_PER_TURN 64

/* ---- the socket ---- */

bool link_send(struct link *l, const struct wire_message *m)
{
    l->encoded.size = 0;
    wire_encode(m, &l->encoded);
    if (zmq_send(l->socket, l->encoded.data, l->encoded.size, ZMQ_DONTWAIT) >= 0)
        return true;
    log_debug("link", "%s not sent: %s", wire_type_name(m->type), zmq_strerror(errno));
    l->lost |=
        m->type == WIRE_TOKEN || m->type == WIRE_TOKENS || m->type == WIRE_DONE || m->type == WIRE_ERROR;
    return false;
}

struct wire_str link_group(const struct link *l)
{
    return l->o.hello.group;
}

int link_open_socket(struct link *l, struct err *err)
{
    static const int alive[][2] = {{ZMQ_TCP_KEEPALIVE, 1},
                                   {ZMQ_TCP_KEEPALIVE_IDLE, 2},
                                   {ZMQ_TCP_KEEPALIVE_INTVL, 1},
                                   {ZMQ_TCP_KEEPALIVE_CNT, 3},
                                   {ZMQ_TCP_MAXRT, SILENCE_MS}};
    int zero = 0, one = 1, most = WIRE_MAX_FRAME;
    int six = strchr(l->o.endpoint, '[') != NULL;
    int64_t bytes = most;
    l->socket = zmq_socket(l->context, ZMQ_DEALER);
    if (!l->socket)
        return err_set(err, "no socket: %s", zmq_strerror(errno));
    /* IMMEDIATE: nothing is queued for a coordinator that is not there, so no stale hello reaches its
     * successor. */
    zmq_setsockopt(l->socket, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(l->socket, ZMQ_IMMEDIATE, &one, sizeof(one));
    zmq_setsockopt(l->socket, ZMQ_IPV6, &six, sizeof(six));
    zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &bytes, sizeof(bytes));
    /* No heartbeats of libzmq's: 4.3.4 aborts when it has to answer one of a connection that broke while its
     * input was stopped, and a coordinator that we send much to stops it. The lease tells both ends of each
     * other; before there is one, the kernel does, and hellos that nobody answers. */
    for (size_t i = 0; i < ARRAY_LEN(alive); i++)
        zmq_setsockopt(l->socket, alive[i][0], &alive[i][1], sizeof(alive[i][1]));
    /* The coordinator sends what the group has room for, and an answer to each heartbeat. */
    zmq_setsockopt(l->socket, ZMQ_RCVHWM, &zero, sizeof(zero));
    int hwm = MAILBOX_MAX_EVENTS;
    zmq_setsockopt(l->socket, ZMQ_SNDHWM, &hwm, sizeof(hwm));
    if (curve_client(l->socket, l->o.key, l->o.server_key, err))
        return -1;
    if (zmq_connect(l->socket, l->o.endpoint))
        return err_set(err, "%s: %s", l->o.endpoint, zmq_strerror(errno));
    return 0;
}

void link_clear_backlog(struct backlog *b)
{
    for (; b->count; b->count--, b->first = (b->first + 1) % MESSAGES_KEPT)
        wire_release(&b->item[b->first]);
}

/* ---- receiving ---- */

static void handle_message(struct link *l, const struct wire_message *m)
{
    uint64_t now_ms = clock_now_ms();
    switch (m->type) {
    case WIRE_WELCOME:
        link_take_welcome(l, &m->welcome, now_ms);
        break;
    case WIRE_ASSIGN:
        if (link_current(l, m->assign.group, m->assign.epoch))
            link_take_assign(l, &m->assign);
        break;
    case WIRE_CANCEL:
        if (link_current(l, m->cancel.group, m->cancel.epoch))
            link_take_cancel(l, &m->cancel);
        break;
    case WIRE_DRAIN:
        if (link_current(l, m->drain.group, m->drain.epoch))
            link_begin_drain(l);
        break;
    case WIRE_ERROR:
        link_take_error(l, &m->error, now_ms);
        break;
    default:
        log_warn("link", "unexpected %s from the coordinator", wire_type_name(m->type));
    }
}

/* Reads what has arrived. Leases count at once; the rest waits in the backlog, in order. */
static void receive(struct link *l)
{
    struct backlog *b = &l->backlog;
    while (b->count < MESSAGES_KEPT) {
        struct wire_message *m = &b->item[(b->first + b->count) % MESSAGES_KEPT];
        zmq_msg_t frame;
        struct err err;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, l->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return;
        }
        if (wire_decode(m, zmq_msg_data(&frame), zmq_msg_size(&frame), &err)) {
            log_warn("link", "bad frame from the coordinator: %s", err.message);
            if (err.code == 500) /* there was no room for it: who sent it would wait for ever */
                no_memory(1, zmq_msg_size(&frame));
        } else if (m->type == WIRE_LEASE) {
            if (link_current(l, m->lease.group, m->lease.epoch))
                link_take_lease(l, &m->lease);
            wire_release(m);
        } else {
            b->count++;
        }
        zmq_msg_close(&frame);
    }
}

/* Handles what was read: a bounded number, and one assign alone, so that heartbeats are not starved. */
static void handle_backlog(struct link *l)
{
    struct backlog *b = &l->backlog;
    enum wire_type type = WIRE_WELCOME;
    for (int i = 0; i < MESSAGES_PER_TURN && b->count && type != WIRE_ASSIGN; i++) {
        struct wire_message m = b->item[b->first]; /* popped first: a fence clears the others */
        b->first = (b->first + 1) % MESSAGES_KEPT;
        b->count--;
        type = m.type;
        handle_message(l, &m);
        wire_release(&m);
    }
}

/* ---- the thread ---- */

static void take_control(struct link *l)
{
    uint64_t asked = 0;
    if (read(l->control, &asked, sizeof(asked)) != (ssize_t)sizeof(asked))
        return;
    if (asked & 0xFFFFFFFFu)
        link_begin_drain(l);
    if (asked >> 32)
        l->stop = true;
}

static void say_bye(struct link *l)
{
    struct wire_message m;
    if (!l->epoch)
        return;
    wire_init(&m, WIRE_BYE);
    m.bye.group = link_group(l);
    m.bye.epoch = l->epoch;
    m.bye.reason = wire_string("drained");
    int linger = 1000; /* the goodbye may still be on its way when the socket closes */
    zmq_setsockopt(l->socket, ZMQ_LINGER, &linger, sizeof(linger));
    link_send(l, &m);
}

static void *run_link(void *context)
{
    struct link *l = context;
    while (!l->stop || !l->left) {
        short events = ZMQ_POLLIN | (l->unsent ? ZMQ_POLLOUT : 0);
        zmq_pollitem_t items[3] = {{.socket = l->socket, .events = events},
                                   {.fd = mailbox_event_fd(l->o.mailbox), .events = ZMQ_POLLIN},
                                   {.fd = l->control, .events = ZMQ_POLLIN}};
        zmq_poll(items, 3, l->stop ? 10 : link_next_timeout(l));
        if (items[2].revents)
            take_control(l);
        if (items[0].revents & ZMQ_POLLOUT) { /* connected: IMMEDIATE lets nothing be queued before */
            l->unsent = false;
            l->next_hello_ms = clock_now_ms();
        }
        /* The lease is looked at before anything is said under it: this thread may have been held up. */
        receive(l);
        link_keep_time(l);
        struct event e;
        for (int i = 0; i < MAILBOX_MAX_EVENTS && !l->lost && mailbox_next(l->o.mailbox, &e); i++)
            link_take_event(l, &e);
        link_send_batch(l);
        handle_backlog(l);
        link_keep_time(l);
    }
    say_bye(l);
    return NULL;
}

static void link_release(struct link *l)
{
    if (l->socket)
        zmq_close(l->socket);
    if (l->context)
        zmq_ctx_term(l->context);
    if (l->control >= 0)
        close(l->control);
    link_clear_backlog(&l->backlog);
    live_table_release(&l->live);
    buffer_release(&l->encoded);
    token_batch_release(&l->batch);
    token_ids_release(&l->ids);
    free(l);
}

int link_start(struct link **out, const struct link_options *options, struct err *err)
{
    struct link *l = xcalloc(1, sizeof(*l));
    l->o = *options;
    l->incarnation = clock_entropy() >> 1; /* fits a signed 64-bit integer of other languages */
    l->control = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    live_table_init(&l->live, options->max_live, options->tokenizer);
    admit_init(&l->admit, &l->o.hello, options->tokenizer);
    canary_init(&l->canary, options->mailbox, options->watchdog);
    l->context = zmq_ctx_new();
    if (l->control < 0 || !l->context) {
        link_release(l);
        return err_set(err, "no descriptors for the link: %s", strerror(errno));
    }
    if (link_open_socket(l, err)) {
        link_release(l);
        return -1;
    }
    if (pthread_create(&l->thread, NULL, run_link, l))
        die("no thread for the link");
    *out = l;
    return 0;
}

void link_drain(struct link *l)
{
    int before = errno; /* of whom a signal interrupted */
    uint64_t drain = 1;
    ssize_t n = write(l->control, &drain, sizeof(drain));
    (void)n; /* a full counter means that a drain was asked for already */
    errno = before;
}

void link_stop(struct link **pl)
{
    if (!pl || !*pl)
        return;
    struct link *l = *pl;
    uint64_t stop = 1ull << 32;
    if (write(l->control, &stop, sizeof(stop)) != (ssize_t)sizeof(stop))
        die("the link's descriptor cannot be written");
    pthread_join(l->thread, NULL);
    link_release(l);
    *pl = NULL;
}
