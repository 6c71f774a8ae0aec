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
#include "worker/admit.h"
#include "worker/canary.h"
#include "worker/live.h"
#include "worker/token_batch.h"

#define SILENCE_MS       5000 /* of a connection over which nothing comes back */
#define HELLO_UNSENT_MS  500  /* no connection yet */
#define HELLO_RETRY_MS   2000 /* sent, not answered: each hello that arrives ends the epoch before it */
#define HELLO_REFUSED_MS 1000
#define CANARY_LOOK_MS   200  /* while none came through: it ends the wait at once */
#define STUCK_TOLD_MS    1000 /* steps may take as long */
#define LEASE_MARGIN \
    8 /* the group's lease is shorter by this part: a late wake-up of its thread costs nothing */
#define HEARTBEATS_KEPT   64
#define MESSAGES_PER_TURN 64
#define MESSAGES_KEPT     1024

/* Messages that were read and wait for their turn: a ring. Assigns cost time (they are tokenised), and the
 * answers to heartbeats, which keep the lease, must not wait behind them. */
struct backlog {
    struct wire_message item[MESSAGES_KEPT];
    uint32_t first, count;
};

struct link {
    struct link_options o;
    pthread_t thread;
    void *context, *socket;
    int control; /* eventfd: drain (1) and stop (1 << 32) requests */
    uint64_t incarnation, epoch, last_epoch;
    uint64_t lease_ms, heartbeat_ms;
    uint64_t sequence, sent_ms[HEARTBEATS_KEPT]; /* heartbeats: when number n was sent */
    uint64_t round_trip_ms;                      /* of the last heartbeat that was answered */
    uint64_t lease_until_ms, next_heartbeat_ms, next_hello_ms;
    uint64_t greeted_ms; /* when the first hello was sent that may still be answered; 0 = none */
    bool unsent;         /* the hello waits for the connection */
    bool lost;           /* a message about a request could not be sent */
    bool draining, left, stop, refused_logged;
    struct backlog backlog;
    struct token_batch batch;
    struct live_table live;
    struct buffer encoded;
    struct admit admit;
    struct canary canary;
    struct token_ids ids;
};

/* ---- sending
 * ------------------------------------------------------------------------------------------------------- */

/* Sends without waiting. A full or missing connection loses the message. A lost heartbeat costs lease, a lost
 * hello is said again; what was said about a request cannot be said again, so its loss ends the epoch
 * (keep_time): the coordinator then ends the epoch's requests, and none waits for what never comes. */
static bool send_message(struct link *l, const struct wire_message *m)
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

static struct wire_str group_name(const struct link *l)
{
    return l->o.hello.group;
}

/* `message` may quote what a peer sent: it is mended in place. */
static void send_error(struct link *l, struct wire_str request, uint64_t code, char *message)
{
    struct wire_message m;
    wire_init(&m, WIRE_ERROR);
    m.error.request = request;
    m.error.code = code;
    m.error.message = wire_string_mend(message, WIRE_MAX_MESSAGE);
    m.error.group = group_name(l);
    m.error.epoch = l->epoch;
    send_message(l, &m);
}

static void send_hello(struct link *l, uint64_t now_ms)
{
    struct wire_message m;
    wire_init(&m, WIRE_HELLO);
    m.hello = l->o.hello;
    m.hello.epoch = l->last_epoch;
    m.hello.incarnation = l->incarnation;
    bool sent = send_message(l, &m);
    l->next_hello_ms = now_ms + (sent ? HELLO_RETRY_MS : HELLO_UNSENT_MS);
    l->unsent = !sent;
    if (sent && !l->greeted_ms)
        l->greeted_ms = now_ms;
}

static void send_heartbeat(struct link *l, uint64_t now_ms)
{
    struct serve_stats stats = mailbox_stats(l->o.mailbox);
    struct wire_message m;
    char stuck[WATCHDOG_MOST_TEXT];
    uint64_t stuck_ms = canary_stuck_ms(&l->canary, stuck);
    wire_init(&m, WIRE_HEARTBEAT);
    m.heartbeat = (struct wire_heartbeat){.group = group_name(l),
                                          .epoch = l->epoch,
                                          .sequence = ++l->sequence,
                                          .steps = stats.steps,
                                          .running = stats.running,
                                          .waiting = stats.waiting,
                                          .pages_used = stats.pages_used,
                                          .pages_cached = stats.pages_cached,
                                          .prefix_queries = stats.prefix_queries,
                                          .prefix_hits = stats.prefix_hits,
                                          .preemptions = stats.preemptions,
                                          .drafted_tokens = stats.drafted_tokens,
                                          .accepted_tokens = stats.accepted_tokens,
                                          .tokens_generated = stats.tokens_generated,
                                          .round_trip_us = 1000 * l->round_trip_ms,
                                          .draining = l->draining};
    struct wire_stage_time times[WIRE_MAX_STAGES];
    m.heartbeat.times = times;
    m.heartbeat.time_count = (uint32_t)stats.stages;
    for (int32_t i = 0; i < stats.stages; i++)
        times[i] = (struct wire_stage_time){stats.stage[i].busy_us, stats.stage[i].bubble_us};
    if (stuck_ms >= STUCK_TOLD_MS) {
        m.heartbeat.stuck_ms = stuck_ms;
        m.heartbeat.stuck = wire_string_mend(stuck, sizeof(stuck) - 1);
    }
    l->sent_ms[l->sequence % HEARTBEATS_KEPT] = now_ms;
    send_message(l, &m);
    l->next_heartbeat_ms = now_ms + l->heartbeat_ms;
}

/* ---- sequences
 * ----------------------------------------------------------------------------------------------------- */

static int assign(struct link *l, const struct wire_assign *a, struct err *err)
{
    struct command c = {.kind = COMMAND_SUBMIT};
    if (l->draining)
        return err_set_code(err, 503, "group is draining");
    struct live *v = live_add(&l->live, a, err);
    if (!v)
        return -1;
    if (admit_request(&c.request, a, &l->admit, &l->ids, err)) {
        live_drop(v);
        return -1;
    }
    c.request.handle = live_handle(&l->live, v);
    uint32_t stopped[WIRE_MAX_CHOICES], count = live_resume(&l->live, v, a, stopped);
    mailbox_send(l->o.mailbox, &c);
    for (uint32_t i = 0; i < count; i++) { /* the group before it died between a stop string and its done */
        struct command over = {
            .kind = COMMAND_CANCEL,
            .request = {.handle = live_handle(&l->live, v), .choice = (int32_t)stopped[i]}};
        mailbox_send(l->o.mailbox, &over);
    }
    return 0;
}

/* ---- the lease ---------------------------------------------------------------------------------------- */

static int open_socket(struct link *l, struct err *err)
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

/* Drops all work of the epoch: nothing of it may be shown any more. */
static void drop_work(struct link *l)
{
    struct command c = {.kind = COMMAND_CANCEL_ALL};
    mailbox_send(l->o.mailbox, &c);
    live_drop_all(&l->live);
    canary_void(&l->canary);
    token_batch_drop(&l->batch);
    l->epoch = 0;
    l->lost = false;
}

static void clear_backlog(struct backlog *b)
{
    for (; b->count; b->count--, b->first = (b->first + 1) % MESSAGES_KEPT)
        wire_release(&b->item[b->first]);
}

static void reconnect(struct link *l)
{
    struct err err;
    l->greeted_ms = 0;
    zmq_close(l->socket);
    if (open_socket(l, &err))
        die("%s", err.message);
    l->next_hello_ms = clock_now_ms() + 100;
}

static void fence(struct link *l, const char *why)
{
    log_warn("link", "group %.*s fences itself (epoch %llu): %s", (int)l->o.hello.group.size,
             l->o.hello.group.data, (unsigned long long)l->epoch, why);
    drop_work(l);
    clear_backlog(&l->backlog);
    reconnect(l);
}

static void take_welcome(struct link *l, const struct wire_welcome *w, uint64_t now_ms)
{
    /* Epochs only grow: another welcome comes from a past that is over (I5). */
    if (!wire_str_equal(w->group, group_name(l)) || w->epoch <= l->last_epoch)
        return;
    if (l->epoch)
        drop_work(l); /* the coordinator began anew with us: what ran under the old epoch is gone there */
    l->epoch = l->last_epoch = w->epoch;
    l->lease_ms = w->lease_ms - w->lease_ms / LEASE_MARGIN;
    l->heartbeat_ms = w->heartbeat_ms;
    /* From when the hello was sent, for the coordinator counts from before this welcome arrived. Which of
     * several hellos it answers is not known: the first is the safe guess. */
    l->lease_until_ms = (l->greeted_ms ? l->greeted_ms : now_ms) + l->lease_ms;
    l->greeted_ms = 0;
    l->next_heartbeat_ms = now_ms;
    l->refused_logged = false;
    log_info("link", "group %.*s serves under epoch %llu, lease %llu ms", (int)w->group.size, w->group.data,
             (unsigned long long)w->epoch, (unsigned long long)w->lease_ms);
}

static void take_lease(struct link *l, const struct wire_lease *lease)
{
    if (lease->sequence > l->sequence || l->sequence - lease->sequence >= HEARTBEATS_KEPT)
        return;
    uint64_t sent_ms = l->sent_ms[lease->sequence % HEARTBEATS_KEPT], until = sent_ms + l->lease_ms;
    l->round_trip_ms = clock_now_ms() - sent_ms;
    if (until > l->lease_until_ms)
        l->lease_until_ms = until;
}

/* An error that is about no request concerns the group itself. */
static void take_error(struct link *l, const struct wire_error *e, uint64_t now_ms)
{
    if (e->request.size || (l->epoch && e->epoch && e->epoch != l->epoch))
        return;
    if (!l->refused_logged)
        log_warn("link", "coordinator refuses: %llu %.*s", (unsigned long long)e->code, (int)e->message.size,
                 e->message.data);
    l->refused_logged = true;
    if (l->epoch && e->code == 409) {
        fence(l, "the coordinator does not know this epoch");
    } else if (!l->epoch) {
        l->greeted_ms = 0;
        l->next_hello_ms = now_ms + HELLO_REFUSED_MS;
    }
}

/* ---- receiving
 * ----------------------------------------------------------------------------------------------------- */

/* True when a message's (group, epoch) are ours and in force (I5). */
static bool current(const struct link *l, struct wire_str group, uint64_t epoch)
{
    return l->epoch && epoch == l->epoch && wire_str_equal(group, group_name(l));
}

static void take_assign(struct link *l, const struct wire_assign *a)
{
    struct err err = {0};
    if (assign(l, a, &err))
        send_error(l, a->request, (uint64_t)(err.code ? err.code : 500), err.message);
}

static void take_cancel(struct link *l, const struct wire_cancel *c)
{
    struct live *v = live_find(&l->live, c->request);
    if (!v || !live_cancel(v))
        return;
    struct command command = {.kind = COMMAND_CANCEL,
                              .request = {.handle = live_handle(&l->live, v), .choice = -1}};
    mailbox_send(l->o.mailbox, &command);
}

static void begin_drain(struct link *l)
{
    if (l->draining)
        return;
    l->draining = true;
    l->next_heartbeat_ms = 0; /* the coordinator hears of it now: it hands over what runs here */
    log_info("link", "draining");
    mailbox_send(l->o.mailbox, &(struct command){.kind = COMMAND_DRAIN});
}

static void handle_message(struct link *l, const struct wire_message *m)
{
    uint64_t now_ms = clock_now_ms();
    switch (m->type) {
    case WIRE_WELCOME:
        take_welcome(l, &m->welcome, now_ms);
        break;
    case WIRE_ASSIGN:
        if (current(l, m->assign.group, m->assign.epoch))
            take_assign(l, &m->assign);
        break;
    case WIRE_CANCEL:
        if (current(l, m->cancel.group, m->cancel.epoch))
            take_cancel(l, &m->cancel);
        break;
    case WIRE_DRAIN:
        if (current(l, m->drain.group, m->drain.epoch))
            begin_drain(l);
        break;
    case WIRE_ERROR:
        take_error(l, &m->error, now_ms);
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
            if (current(l, m->lease.group, m->lease.epoch))
                take_lease(l, &m->lease);
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

/* ---- events of the step thread
 * ------------------------------------------------------------------------------------- */

/* Sends the tokens that wait, if any do. */
static void send_batch(struct link *l)
{
    struct wire_message m;
    if (token_batch_take(&l->batch, group_name(l), l->epoch, &m))
        send_message(l, &m);
}

/* A token waits until all that the step thread has said was heard, unless it is one that goes alone: false.
 */
static bool batch_token(struct link *l, const struct wire_token *t)
{
    if (token_batch_full(&l->batch))
        send_batch(l);
    return token_batch_add(&l->batch, t);
}

static void handle_event(struct link *l, const struct event *e)
{
    struct live_news news;
    if (e->kind == EVENT_LEFT) {
        l->left = true;
        return;
    }
    if (canary_take(&l->canary, e, clock_now_ms())) {
        l->next_hello_ms = l->epoch ? l->next_hello_ms : 0;
        return;
    }
    live_take(&l->live, e, &news);
    if (news.cancel)
        mailbox_send(l->o.mailbox, &news.command);
    if (!news.tell)
        return;
    struct wire_message *m = &news.message;
    if (m->type == WIRE_TOKEN && batch_token(l, &m->token))
        return;
    send_batch(l); /* what is said of a request keeps its order */
    if (m->type == WIRE_TOKEN) {
        m->token.group = group_name(l);
        m->token.epoch = l->epoch;
    } else if (m->type == WIRE_DONE) {
        m->done.group = group_name(l);
        m->done.epoch = l->epoch;
        m->done.stages = l->o.hello.stage_count;
    } else {
        m->error.group = group_name(l);
        m->error.epoch = l->epoch;
    }
    send_message(l, m);
}

/* ---- the thread
 * ------------------------------------------------------------------------------------------------------ */

static void take_control(struct link *l)
{
    uint64_t asked = 0;
    if (read(l->control, &asked, sizeof(asked)) != (ssize_t)sizeof(asked))
        return;
    if (asked & 0xFFFFFFFFu)
        begin_drain(l);
    if (asked >> 32)
        l->stop = true;
}

static void keep_time(struct link *l)
{
    uint64_t now_ms = clock_now_ms();
    if (l->epoch && now_ms >= l->lease_until_ms)
        fence(l, "the lease ended: the coordinator did not answer in time");
    if (l->epoch && l->lost)
        fence(l, "a message about a request could not be sent");
    if (l->epoch && now_ms >= l->next_heartbeat_ms)
        send_heartbeat(l, now_ms);
    if (l->epoch)
        canary_ping(&l->canary, now_ms);
    if (!l->epoch && l->greeted_ms && now_ms >= l->greeted_ms + SILENCE_MS)
        reconnect(l);
    if (!l->epoch && !l->draining && now_ms >= l->next_hello_ms) {
        if (canary_passed(&l->canary, now_ms))
            send_hello(l, now_ms);
        else
            l->next_hello_ms = now_ms + CANARY_LOOK_MS;
    }
}

static long next_timeout(const struct link *l)
{
    uint64_t now_ms = clock_now_ms();
    if (l->backlog.count)
        return 0;
    uint64_t next =
        l->epoch ? (l->next_heartbeat_ms < l->lease_until_ms ? l->next_heartbeat_ms : l->lease_until_ms)
                 : l->next_hello_ms;
    if (!l->epoch && l->draining)
        return 1000;
    return next > now_ms ? (long)(next - now_ms) : 0;
}

static void say_bye(struct link *l)
{
    struct wire_message m;
    if (!l->epoch)
        return;
    wire_init(&m, WIRE_BYE);
    m.bye.group = group_name(l);
    m.bye.epoch = l->epoch;
    m.bye.reason = wire_string("drained");
    int linger = 1000; /* the goodbye may still be on its way when the socket closes */
    zmq_setsockopt(l->socket, ZMQ_LINGER, &linger, sizeof(linger));
    send_message(l, &m);
}

static void *run_link(void *context)
{
    struct link *l = context;
    while (!l->stop || !l->left) {
        short events = ZMQ_POLLIN | (l->unsent ? ZMQ_POLLOUT : 0);
        zmq_pollitem_t items[3] = {{.socket = l->socket, .events = events},
                                   {.fd = mailbox_event_fd(l->o.mailbox), .events = ZMQ_POLLIN},
                                   {.fd = l->control, .events = ZMQ_POLLIN}};
        zmq_poll(items, 3, l->stop ? 10 : next_timeout(l));
        if (items[2].revents)
            take_control(l);
        if (items[0].revents & ZMQ_POLLOUT) { /* connected: IMMEDIATE lets nothing be queued before */
            l->unsent = false;
            l->next_hello_ms = clock_now_ms();
        }
        /* The lease is looked at before anything is said under it: this thread may have been held up. */
        receive(l);
        keep_time(l);
        struct event e;
        for (int i = 0; i < MAILBOX_MAX_EVENTS && !l->lost && mailbox_next(l->o.mailbox, &e); i++)
            handle_event(l, &e);
        send_batch(l);
        handle_backlog(l);
        keep_time(l);
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
    clear_backlog(&l->backlog);
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
    if (open_socket(l, err)) {
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
