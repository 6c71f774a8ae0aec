#include "common/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/curve.h"

struct client {
    void *context, *socket, *monitor;
    char *endpoint;
    struct curve_key own, server;
    int interrupt_fd; /* -1 = none */
    bool connected;
    bool known;  /* it let us in once: the keys are right */
    bool broken; /* a handshake before that broke off: wrong keys, or a coordinator that died in its middle */
    uint64_t retry_ms;
    unsigned opened; /* numbers the monitors: libzmq frees a name some time after the close */
    struct buffer out;
    struct wire_message batch; /* tokens that came in one message and are handed out one by one */
    uint32_t batch_next;
};

/* ---- where the coordinator is ---- */
static int check_home(const char *path, struct err *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return err_set(err, "%s: %s; start `lepton run` first, or give --endpoint, --server-key and --key",
                       path, strerror(errno));
    if (!S_ISDIR(st.st_mode) || st.st_uid != getuid() || (st.st_mode & 077) != 0)
        return err_set(err, "%s: expected a directory of our own with mode 0700; others could put keys there",
                       path);
    return 0;
}

char *client_home(bool create, struct err *err)
{
    const char *home = getenv("LEPTON_HOME"), *runtime = getenv("XDG_RUNTIME_DIR");
    char *path = home && home[0]         ? xstrdup(home)
                 : runtime && runtime[0] ? xasprintf("%s/lepton", runtime)
                                         : xasprintf("/tmp/lepton-%lu", (unsigned long)getuid());
    if (create && mkdir(path, 0700) != 0 && errno != EEXIST) {
        err_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (check_home(path, err) == 0)
        return path;
fail:
    free(path);
    return NULL;
}

/* The file that `lepton run` writes. */
struct home_file {
    struct client_settings client;
};
static const struct config_option file_options[] = {CLIENT_OPTIONS(struct home_file, client)};
static const struct config_table file_table = {
    .program = "client.cfg",
    .options = file_options,
    .option_count = ARRAY_LEN(file_options),
    .settings_bytes = sizeof(struct home_file),
};

static int load_home(struct home_file *file, struct err *err)
{
    char *home = client_home(false, err);
    if (!home)
        return -1;
    char *path = xasprintf("%s/client.cfg", home);
    int rc = config_load(&file_table, file, path, err);
    free(path);
    free(home);
    return rc;
}

/* ---- connecting ---- */
static void set_int(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof(value));
    ASSERT(rc == 0);
}

static int open_socket(struct client *c, struct err *err)
{
    char monitor[64];
    snprintf(monitor, sizeof(monitor), "inproc://client-monitor-%u", c->opened++);
    c->socket = zmq_socket(c->context, ZMQ_DEALER);
    c->monitor = zmq_socket(c->context, ZMQ_PAIR);
    if (!c->socket || !c->monitor)
        die("zmq_socket: %s", zmq_strerror(errno));
    set_int(c->socket, ZMQ_LINGER, 0);
    set_int(c->monitor, ZMQ_LINGER, 0);
    /* What comes is read from the connection though nobody takes it yet: libzmq 4.3.4 aborts when a heartbeat
     * is due on a connection that broke while its input was stopped. It is bounded by what we asked for. */
    set_int(c->socket, ZMQ_RCVHWM, 0);
    set_int(c->socket, ZMQ_HEARTBEAT_IVL, 1000); /* a coordinator that froze is noticed */
    set_int(c->socket, ZMQ_HEARTBEAT_TIMEOUT, 5000);
    set_int(c->socket, ZMQ_HEARTBEAT_TTL, 5000); /* and the coordinator notices that this end is gone */
    int64_t max_frame = WIRE_MAX_FRAME;
    if (zmq_setsockopt(c->socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof(max_frame)) != 0)
        die("ZMQ_MAXMSGSIZE: %s", zmq_strerror(errno));
    if (strchr(c->endpoint, '['))
        set_int(c->socket, ZMQ_IPV6, 1);
    if (curve_client(c->socket, &c->own, c->server.public_key, err) != 0)
        return -1;
    if (zmq_socket_monitor(c->socket, monitor, ZMQ_EVENT_ALL) != 0 || zmq_connect(c->monitor, monitor) != 0)
        die("socket monitor: %s", zmq_strerror(errno));
    if (zmq_connect(c->socket, c->endpoint) != 0)
        return err_set(err, "%s: %s; expected tcp://HOST:PORT", c->endpoint, zmq_strerror(errno));
    return 0;
}

static void close_socket(struct client *c)
{
    /* First the events end: libzmq's own thread waits for ever when it has one to tell and nobody is left. */
    if (c->socket) {
        zmq_socket_monitor(c->socket, NULL, 0);
        zmq_close(c->socket);
    }
    if (c->monitor)
        zmq_close(c->monitor);
    c->socket = c->monitor = NULL;
    c->connected = false;
    /* Tokens that were not handed out go with their connection: who resumes has not had them, and gets them
     * again. */
    wire_release(&c->batch);
    c->batch_next = 0;
}

/* What an event of the socket says about the connection: 1 it stands, 0 nothing, -1 it failed. */
static int judge_event(struct client *c, unsigned event, unsigned value, struct err *err)
{
    switch (event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        c->connected = c->known = true;
        return 1;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        return err_set_code(err, 401,
                            "%s: refused our key (%u): is its .pub file in the coordinator's directory?",
                            c->endpoint, value);
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        if (c->known || !c->broken) { /* once it may have died in the middle */
            c->broken = true;
            return err_set_code(err, 503, "%s: the handshake was broken off", c->endpoint);
        }
        return err_set_code(err, 401, "%s: the handshake failed: is server_key the key of this coordinator?",
                            c->endpoint);
    case ZMQ_EVENT_CONNECT_RETRIED:
        return c->connected ? 0 : err_set_code(err, 503, "%s: nothing listens there", c->endpoint);
    case ZMQ_EVENT_DISCONNECTED:
        return err_set_code(err, 503, "%s: %s", c->endpoint,
                            c->connected ? "the connection to the coordinator was lost"
                                         : "the coordinator closed the connection");
    default:
        return 0;
    }
}

/* Takes what the monitor has: 1 connected, 0 nothing new, -1 lost. */
static int read_monitor(struct client *c, struct err *err)
{
    for (;;) {
        uint8_t head[6], address[512];
        if (zmq_recv(c->monitor, head, sizeof(head), ZMQ_DONTWAIT) != (int)sizeof(head))
            return 0;
        zmq_recv(c->monitor, address, sizeof(address), ZMQ_DONTWAIT);
        uint16_t event;
        uint32_t value;
        memcpy(&event, head, sizeof(event));
        memcpy(&value, head + sizeof(event), sizeof(value));
        int verdict = judge_event(c, event, value, err);
        if (verdict != 0)
            return verdict;
    }
}

static int wait_connected(struct client *c, uint64_t timeout_ms, struct err *err)
{
    uint64_t end_ms = clock_now_ms() + timeout_ms;
    for (;;) {
        int verdict = read_monitor(c, err);
        if (verdict != 0)
            return verdict > 0 ? 0 : -1;
        uint64_t now_ms = clock_now_ms();
        if (now_ms >= end_ms)
            return err_set_code(err, 503, "%s: no connection within %llu ms", c->endpoint,
                                (unsigned long long)timeout_ms);
        zmq_pollitem_t item = {.socket = c->monitor, .events = ZMQ_POLLIN};
        if (zmq_poll(&item, 1, (long)(end_ms - now_ms)) < 0 && errno != EINTR)
            die("zmq_poll: %s", zmq_strerror(errno));
    }
}

int client_create(struct client **out, const struct client_settings *settings, struct err *err)
{
    struct client *c = xcalloc(1, sizeof(*c));
    struct home_file file;
    config_defaults(&file_table, &file);
    const struct client_settings *s = settings;
    c->interrupt_fd = -1;
    c->retry_ms = CLIENT_RETRY_MS;
    int rc = -1;
    if (!s->endpoint && !s->server_key && !s->key && !s->config) {
        if (load_home(&file, err) != 0)
            goto out;
        s = &file.client;
    }
    if (!s->endpoint || !s->server_key || !s->key) {
        err_set(err, "%s: expected endpoint, server_key and key together",
                s->config ? s->config : "settings");
        goto out;
    }
    c->endpoint = xstrdup(s->endpoint);
    c->context = zmq_ctx_new();
    if (!c->context)
        die("zmq_ctx_new: %s", zmq_strerror(errno));
    if (curve_load(&c->server, s->server_key, true, err) == 0 && curve_load(&c->own, s->key, false, err) == 0)
        rc = 0;
out:
    config_release(&file_table, &file);
    if (rc != 0)
        client_close(&c);
    *out = c;
    return rc;
}

int client_open(struct client **out, const struct client_settings *settings, uint64_t timeout_ms,
                struct err *err)
{
    if (client_create(out, settings, err) != 0)
        return -1;
    struct client *c = *out;
    int rc = open_socket(c, err);
    if (rc == 0 && wait_connected(c, timeout_ms, err) != 0)
        rc = c->broken ? client_find_again(c, clock_now_ms() + timeout_ms, err) : -1;
    if (rc != 0)
        client_close(out);
    return rc == 0 ? 0 : -1;
}

void client_close(struct client **client)
{
    struct client *c = *client;
    if (!c)
        return;
    close_socket(c);
    if (c->context)
        zmq_ctx_term(c->context);
    curve_wipe(&c->own);
    curve_wipe(&c->server);
    free(c->endpoint);
    buffer_release(&c->out);
    free(c);
    *client = NULL;
}

const char *client_endpoint(const struct client *c)
{
    return c->endpoint;
}

void client_interrupt_on(struct client *c, int fd)
{
    c->interrupt_fd = fd;
}

/* ---- finding a lost coordinator again ---- */
#define FIRST_PAUSE_MS 50
#define LAST_PAUSE_MS  1000
#define REOPEN_MS      3000 /* one attempt */

void client_retry_for(struct client *c, uint64_t retry_ms)
{
    c->retry_ms = retry_ms;
}

uint64_t client_retry_ms(const struct client *c)
{
    return c->retry_ms;
}

int client_reopen(struct client *c, uint64_t timeout_ms, struct err *err)
{
    close_socket(c);
    return open_socket(c, err) == 0 ? wait_connected(c, timeout_ms, err) : -1;
}

int client_find_again(struct client *c, uint64_t until_ms, struct err *err)
{
    uint64_t now_ms, pause_ms = FIRST_PAUSE_MS;
    while ((now_ms = clock_now_ms()) < until_ms) {
        uint64_t left_ms = until_ms - now_ms;
        struct pollfd interrupted = {.fd = c->interrupt_fd, .events = POLLIN};
        if (poll(&interrupted, 1, (int)(pause_ms < left_ms ? pause_ms : left_ms)) > 0)
            return 1;
        if (client_reopen(c, left_ms < REOPEN_MS ? left_ms : REOPEN_MS, err) == 0)
            return 0;
        if (err->code != 503)
            return -1;
        pause_ms = pause_ms * 2 > LAST_PAUSE_MS ? LAST_PAUSE_MS : pause_ms * 2;
    }
    return -1;
}

bool client_worth_trying(uint64_t code)
{
    return code == 503 || code == 429 || code == 404;
}

/* ---- messages ---- */
int client_send(struct client *c, const struct wire_message *m, struct err *err)
{
    c->out.size = 0;
    wire_encode(m, &c->out);
    if (zmq_send(c->socket, c->out.data, c->out.size, ZMQ_DONTWAIT) < 0)
        return err_set_code(err, 503, "%s: cannot send %s: %s", c->endpoint, wire_type_name(m->type),
                            zmq_strerror(errno));
    return 0;
}

/* The next token of the message before: *m borrows from it until the next call. */
static bool next_of_batch(struct client *c, struct wire_message *m)
{
    if (c->batch.type != WIRE_TOKENS)
        return false;
    if (c->batch_next < c->batch.tokens.item_count) {
        *m = (struct wire_message){.type = WIRE_TOKEN, .token = c->batch.tokens.items[c->batch_next++]};
        return true;
    }
    wire_release(&c->batch);
    c->batch_next = 0;
    return false;
}

int client_receive_watching(struct client *c, struct wire_message *m, uint64_t timeout_ms, bool watch,
                            struct err *err)
{
    int interrupt_fd = watch ? c->interrupt_fd : -1;
    uint64_t end_ms = timeout_ms == UINT64_MAX ? UINT64_MAX : clock_now_ms() + timeout_ms;
    zmq_msg_t frame;
    for (;;) {
        if (next_of_batch(c, m))
            return 1;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, c->socket, ZMQ_DONTWAIT) >= 0) {
            int rc = wire_decode(m, zmq_msg_data(&frame), zmq_msg_size(&frame), err);
            zmq_msg_close(&frame);
            if (rc == 0 && m->type == WIRE_TOKENS) {
                c->batch = *m;
                continue;
            }
            return rc == 0 ? 1 : err_prefix(err, "%s: a message that cannot be read", c->endpoint);
        }
        zmq_msg_close(&frame);
        if (read_monitor(c, err) < 0)
            return -1;
        uint64_t now_ms = clock_now_ms();
        if (now_ms >= end_ms)
            return 0;
        zmq_pollitem_t items[3] = {{.socket = c->socket, .events = ZMQ_POLLIN},
                                   {.socket = c->monitor, .events = ZMQ_POLLIN},
                                   {.fd = interrupt_fd, .events = ZMQ_POLLIN}};
        long wait = end_ms == UINT64_MAX ? -1 : (long)(end_ms - now_ms);
        if (zmq_poll(items, interrupt_fd >= 0 ? 3 : 2, wait) < 0 && errno != EINTR)
            die("zmq_poll: %s", zmq_strerror(errno));
        if (interrupt_fd >= 0 && (items[2].revents & ZMQ_POLLIN))
            return 2;
    }
}

int client_receive(struct client *c, struct wire_message *m, uint64_t timeout_ms, struct err *err)
{
    return client_receive_watching(c, m, timeout_ms, false, err);
}

int client_ask(struct client *c, const struct wire_message *m, uint64_t timeout_ms, struct err *err)
{
    uint64_t end_ms = clock_now_ms() + timeout_ms, now_ms;
    if (client_send(c, m, err))
        return -1;
    while ((now_ms = clock_now_ms()) < end_ms) {
        struct wire_message answer;
        int got = client_receive(c, &answer, end_ms - now_ms, err);
        if (got < 0)
            return -1;
        if (got == 0)
            continue;
        enum wire_type type = answer.type;
        if (type == WIRE_ERROR)
            err_set_code(err, (int)answer.error.code, "%.*s", (int)answer.error.message.size,
                         answer.error.message.data);
        wire_release(&answer);
        if (type == WIRE_ERROR || type == WIRE_STATUS_REPLY)
            return type == WIRE_ERROR ? -1 : 0;
    }
    return err_set_code(err, 503, "%s: no answer within %llu ms", c->endpoint,
                        (unsigned long long)timeout_ms);
}

int client_status(struct client *c, bool verbose, uint64_t timeout_ms, struct wire_message *reply,
                  struct err *err)
{
    struct wire_message m;
    wire_init(&m, WIRE_STATUS);
    m.status.verbose = verbose;
    if (client_send(c, &m, err) != 0)
        return -1;
    uint64_t end_ms = clock_now_ms() + timeout_ms, now_ms;
    while ((now_ms = clock_now_ms()) < end_ms) {
        int rc = client_receive(c, reply, end_ms - now_ms, err);
        if (rc < 0)
            return -1;
        if (rc == 1 && reply->type == WIRE_STATUS_REPLY)
            return 0;
        if (rc == 1)
            wire_release(reply);
    }
    return err_set_code(err, 503, "%s: no answer within %llu ms", c->endpoint,
                        (unsigned long long)timeout_ms);
}
