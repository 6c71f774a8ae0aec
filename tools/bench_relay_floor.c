/* The floor of `lepton bench relay`: a child process steps as a mock group does and sends each step's tokens,
 * encoded as a group's link encodes them, over a bare DEALER to a bare ROUTER in this process, which decodes
 * them. */
#include "tools/bench_relay.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/wire.h"
#include "worker/infer/mailbox.h"
#include "worker/mock/mock.h"

#define SILENCE_MS   10000
#define MAX_ENDPOINT 256

struct relay_floor {
    struct relay_traffic traffic;
    pid_t child;
    int control; /* to the child: the endpoint, then a byte for each round */
    void *context, *socket;
};

/* ---- the child ---- */

struct sender {
    struct relay_traffic traffic;
    struct mailbox *mailbox;
    char endpoint[MAX_ENDPOINT];
};

/* As worker/link.c: what the step said together goes out together. */
static void send_tokens(struct sender *s, void *socket, struct buffer *out)
{
    struct wire_token items[WIRE_MAX_TOKENS];
    char names[WIRE_MAX_TOKENS][24];
    struct wire_message m;
    struct event e;
    wire_init(&m, WIRE_TOKENS);
    m.tokens.items = items;
    while (m.tokens.item_count < s->traffic.streams && mailbox_next(s->mailbox, &e)) {
        struct wire_token *t = &items[m.tokens.item_count];
        snprintf(names[m.tokens.item_count], sizeof(names[0]), "r%llu", (unsigned long long)e.handle);
        *t = (struct wire_token){.request = wire_string(names[m.tokens.item_count++]),
                                 .index = (uint64_t)e.index,
                                 .id = (uint64_t)e.id,
                                 .text = wire_string("t00000")};
    }
    if (m.tokens.item_count == 0)
        return;
    out->size = 0;
    wire_encode(&m, out);
    if (zmq_send(socket, out->data, out->size, 0) < 0)
        die("zmq_send: %s", zmq_strerror(errno));
}

static void *run_sender(void *context)
{
    struct sender *s = context;
    struct buffer out = {0};
    void *zmq = zmq_ctx_new(), *socket = zmq ? zmq_socket(zmq, ZMQ_DEALER) : NULL;
    if (!socket || zmq_connect(socket, s->endpoint) != 0)
        die("%s: %s", s->endpoint, zmq_strerror(errno));
    for (;;) {
        zmq_pollitem_t items[2] = {{.socket = socket, .events = ZMQ_POLLIN},
                                   {.fd = mailbox_event_fd(s->mailbox), .events = ZMQ_POLLIN}};
        zmq_poll(items, 2, -1);
        send_tokens(s, socket, &out);
    }
    return NULL;
}

static void step(const struct sender *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->traffic.streams; i++) {
        struct event e = {.kind = EVENT_TOKEN,
                          .handle = i,
                          .index = (int32_t)index,
                          .id = MOCK_STAMP + (int32_t)(clock_now_us() / MOCK_STAMP_US % MOCK_STAMPS)};
        mailbox_emit(s->mailbox, &e);
    }
}

static _Noreturn void run_child(const struct relay_traffic *traffic, int control)
{
    struct sender s = {.traffic = *traffic};
    pthread_t thread;
    char go;
    if (read(control, s.endpoint, sizeof(s.endpoint)) != (ssize_t)sizeof(s.endpoint))
        _exit(0);
    mailbox_open(&s.mailbox);
    if (pthread_create(&thread, NULL, run_sender, &s))
        die("no thread for the sender");
    while (read(control, &go, 1) == 1) {
        uint64_t due_us = clock_now_us();
        for (uint32_t i = 0; i < traffic->steps; i++) {
            due_us += traffic->step_us;
            while (clock_now_us() < due_us) /* as a mock group waits for its step's end; no command comes */
                mailbox_wait_until(s.mailbox, due_us);
            step(&s, i);
        }
    }
    _exit(0);
}

/* ---- this process ---- */

static int listen_for(struct relay_floor *f, struct err *err)
{
    char endpoint[MAX_ENDPOINT] = "";
    size_t bytes = sizeof(endpoint);
    int none = 0;
    f->context = zmq_ctx_new();
    f->socket = f->context ? zmq_socket(f->context, ZMQ_ROUTER) : NULL;
    if (!f->socket || zmq_setsockopt(f->socket, ZMQ_LINGER, &none, sizeof(none)) != 0 ||
        zmq_bind(f->socket, "tcp://127.0.0.1:*") != 0 ||
        zmq_getsockopt(f->socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes) != 0)
        return err_set(err, "no socket for the floor: %s", zmq_strerror(errno));
    if (write(f->control, endpoint, sizeof(endpoint)) != (ssize_t)sizeof(endpoint))
        return err_set(err, "the floor's sender is gone: %s", strerror(errno));
    return 0;
}

int relay_floor_start(struct relay_floor **out, const struct relay_traffic *traffic, struct err *err)
{
    struct relay_floor *f = xcalloc(1, sizeof(*f));
    int pair[2];
    *out = f;
    f->traffic = *traffic;
    f->control = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set(err, "no descriptor for the floor: %s", strerror(errno));
    pid_t parent = getpid();
    f->child = fork();
    if (f->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(0);
        signal(SIGINT, SIG_IGN); /* Ctrl-C is the parent's */
        close(pair[0]);
        run_child(traffic, pair[1]);
    }
    f->control = pair[0];
    close(pair[1]);
    if (f->child < 0)
        return err_set(err, "no process for the floor: %s", strerror(errno));
    return listen_for(f, err);
}

void relay_floor_stop(struct relay_floor **pf)
{
    struct relay_floor *f = *pf;
    if (!f)
        return;
    if (f->control >= 0)
        close(f->control);
    if (f->child > 0) {
        kill(f->child, SIGKILL);
        waitpid(f->child, NULL, 0);
    }
    if (f->socket)
        zmq_close(f->socket);
    if (f->context)
        zmq_ctx_term(f->context);
    free(f);
    *pf = NULL;
}

/* Takes one message; how many of its tokens. */
static int take(struct relay_floor *f, struct relay_ways *ways, struct err *err)
{
    zmq_msg_t part;
    struct wire_message m;
    zmq_msg_init(&part);
    int code = zmq_msg_recv(&part, f->socket, 0); /* the routing id */
    if (code >= 0)
        code = zmq_msg_recv(&part, f->socket, 0);
    if (code < 0)
        err_set(err, "the floor's socket: %s", zmq_strerror(errno));
    else
        code = wire_decode(&m, zmq_msg_data(&part), zmq_msg_size(&part), err);
    if (code == 0) {
        uint64_t now_us = clock_now_us();
        for (uint32_t i = 0; m.type == WIRE_TOKENS && i < m.tokens.item_count; i++)
            if (m.tokens.items[i].index >= 2)
                relay_way(ways, m.tokens.items[i].id, now_us);
        code = m.type == WIRE_TOKENS ? (int)m.tokens.item_count : 0;
        wire_release(&m);
    }
    zmq_msg_close(&part);
    return code < 0 ? -1 : code;
}

int relay_floor_round(struct relay_floor *f, struct relay_ways *ways, struct err *err)
{
    uint64_t left = (uint64_t)f->traffic.streams * f->traffic.steps;
    if (write(f->control, "", 1) != 1)
        return err_set(err, "the floor's sender is gone: %s", strerror(errno));
    while (left > 0) {
        zmq_pollitem_t item = {.socket = f->socket, .events = ZMQ_POLLIN};
        int ready = zmq_poll(&item, 1, SILENCE_MS);
        if (ready == 0)
            return err_set(err, "nothing came from the floor's sender for %d s", SILENCE_MS / 1000);
        int count = ready > 0 ? take(f, ways, err) : 0;
        if (count < 0)
            return -1;
        left -= (uint64_t)count < left ? (uint64_t)count : left;
    }
    return 0;
}
