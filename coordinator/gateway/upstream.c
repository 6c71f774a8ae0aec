#include "coordinator/gateway/upstream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

#define BUCKETS         1024 /* a power of two */
#define TURN_MESSAGES   256  /* taken before commands and time get their turn */
#define TICK_MS         50
#define ANSWER_MS       10000 /* a silence this long after a generate means that it is lost */
#define RESEND_MS       200   /* of what has no place yet behind a coordinator that came back */
#define REOPEN_MS       1000  /* one attempt to connect */
#define FIRST_PAUSE_MS  50
#define LAST_PAUSE_MS   1000
#define STATUS_MS       500
#define SETTLE_MS       5000 /* in which the groups of a coordinator that was started again come back */
#define STATUS_VALID_MS 3000

#define STOPPING "the gateway is stopping"

enum order { ORDER_SUBMIT, ORDER_CANCEL, ORDER_CREDIT, ORDER_STOP };
struct command {
    enum order order;
    struct exchange *exchange; /* of SUBMIT and CANCEL; counted as a user */
    struct command *next;
};

struct upstream {
    struct upstream_options options;
    pthread_t thread;
    int wake_fd;
    pthread_mutex_t lock; /* of the next five */
    struct command *first, **last;
    bool stopped;
    struct upstream_state state;
    uint64_t state_ms; /* when it was heard; 0: never, or not since the connection was lost */
    /* the thread's */
    struct client *client;
    struct exchange *buckets[BUCKETS];
    bool connected, known, stopping; /* known: it was connected before */
    uint64_t settled_ms;             /* until then no answer is final of what asks for a place */
    uint64_t try_ms, pause_ms;       /* when to look for the coordinator next */
    uint64_t tick_ms, ask_ms;
    int warned; /* the code of the last failed attempt */
};

/* ---- the table ---- */
static struct exchange **bucket_of(struct upstream *u, struct wire_str id)
{
    uint64_t hash = 1469598103934665603u; /* FNV-1a */
    for (uint32_t i = 0; i < id.size; i++)
        hash = (hash ^ (unsigned char)id.data[i]) * 1099511628211u;
    return &u->buckets[(hash ^ hash >> 32) & (BUCKETS - 1)];
}

static struct exchange **find(struct upstream *u, struct wire_str id)
{
    struct exchange **at = bucket_of(u, id);
    while (*at && !wire_str_is(id, (*at)->id))
        at = &(*at)->next;
    return at;
}

/* It is over: the wire lets go of it. */
static void forget(struct upstream *u, struct exchange *x)
{
    struct exchange **at = bucket_of(u, wire_string(x->id));
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    exchange_release(x);
}

static void end_with(struct upstream *u, struct exchange *x, int code, const char *message,
                     uint64_t retry_after_ms)
{
    struct openai_error e;
    openai_fail(&e, code, code == 404 ? "model_not_found" : NULL, code == 404 ? "model" : NULL, "%s",
                message);
    e.retry_after_ms = retry_after_ms ? retry_after_ms : code == 503 || code == 429 ? 1000 : 0;
    exchange_fail(x, &e, clock_now_ms());
    forget(u, x);
}

/* ---- to the coordinator ---- */
/* What cannot be sent is lost with the connection, or sent again; the monitor tells of the first. */
static int tell(struct upstream *u, const struct wire_message *m)
{
    struct err err;
    return u->connected ? client_send(u->client, m, &err) : -1;
}

static void send_cancel(struct upstream *u, const struct exchange *x)
{
    struct wire_message m;
    wire_init(&m, WIRE_CANCEL);
    m.cancel.request = wire_string(x->id);
    tell(u, &m);
}

static void grant(struct upstream *u, struct exchange *x)
{
    struct wire_message m;
    uint64_t more = x->answer.stream ? exchange_grant(x) : 0;
    if (more == 0 || !x->accepted)
        return;
    wire_init(&m, WIRE_CREDIT);
    m.credit.request = wire_string(x->id);
    m.credit.tokens = more;
    tell(u, &m);
}

/* The deadline stays where it was. */
static uint64_t time_left(const struct exchange *x, uint64_t now_ms)
{
    uint64_t most = x->request.ask.timeout_ms, spent = now_ms - x->first_ms;
    return most == 0 ? 0 : spent < most ? most - spent : 1;
}

/* Asks for an exchange; for what is left of it when it has begun. */
static void ask(struct upstream *u, struct exchange *x, uint64_t now_ms)
{
    struct wire_delivered had[WIRE_MAX_CHOICES];
    struct wire_message m;
    wire_init(&m, WIRE_GENERATE);
    m.generate = x->request.ask;
    m.generate.request = wire_string(x->id);
    m.generate.idempotent = true;
    m.generate.timeout_ms = time_left(x, now_ms);
    m.generate.service.cache_salt = wire_string(x->salt[0] ? x->salt : NULL);
    if (x->answer.stream)
        m.generate.credit = exchange_credit(x);
    if (x->seeded) {
        m.generate.sampling.has_seed = true;
        m.generate.sampling.seed = x->seed;
        m.generate.numeric = x->numeric;
        m.generate.context = x->began_context;
        m.generate.delivered = had;
        for (uint64_t c = 0; c < m.generate.sampling.n; c++)
            if (x->choices[c].count || x->choices[c].over)
                had[m.generate.delivered_count++] = (struct wire_delivered){.choice = c,
                                                                            .ended = x->choices[c].over,
                                                                            .ids = x->choices[c].ids,
                                                                            .id_count = x->choices[c].count};
    }
    x->accepted = false;
    x->sent_ms = now_ms;
    x->resend_ms = tell(u, &m) == 0 ? 0 : now_ms + RESEND_MS;
}

/* ---- from the coordinator ---- */
/* I2: what may never come, if it comes, is an error and never hidden. */
static void break_off(struct upstream *u, struct exchange *x, const char *what, uint64_t choice,
                      uint64_t index)
{
    char message[160];
    snprintf(message, sizeof(message), "%s of choice %llu came where none was due (index %llu)", what,
             (unsigned long long)choice, (unsigned long long)index);
    send_cancel(u, x);
    end_with(u, x, 500, message, 0);
}

static void take_accepted(struct upstream *u, struct exchange *x, const struct wire_accepted *a)
{
    if (x->seeded && a->seed != x->seed) {
        send_cancel(u, x);
        end_with(u, x, 500, "it was accepted again with another seed", 0);
        return;
    }
    x->accepted = x->seeded = true;
    x->seed = a->seed;
    x->give_up_ms = 0;
    grant(u, x); /* what was read meanwhile */
}

static void take_token(struct upstream *u, struct exchange *x, const struct wire_token *t)
{
    if (t->choice >= x->request.ask.sampling.n || x->choices[t->choice].over ||
        t->index != x->choices[t->choice].count) {
        break_off(u, x, "a token", t->choice, t->index);
        return;
    }
    if (t->numeric && !x->numeric) {
        x->numeric = t->numeric;
        x->began_context = t->context;
    }
    if (!exchange_token(x, t, clock_now_ms())) {
        send_cancel(u, x);
        end_with(u, x, 413, "the answer is too large for one object: ask for a stream", 0);
    }
}

static void take_done(struct upstream *u, struct exchange *x, const struct wire_done *d)
{
    if (d->choice >= x->request.ask.sampling.n || x->choices[d->choice].over) {
        break_off(u, x, "an end", d->choice, d->completion_tokens);
        return;
    }
    if (wire_str_is(d->finish_reason, "cancelled")) {
        end_with(u, x, 503, "the request was cancelled at the coordinator", 0);
        return;
    }
    if (exchange_done(x, d, clock_now_ms()))
        forget(u, x);
}

static void take_error(struct upstream *u, struct exchange *x, const struct wire_error *e)
{
    uint64_t now_ms = clock_now_ms(),
             again_ms = e->retry_after_ms > RESEND_MS ? e->retry_after_ms : RESEND_MS;
    char message[WIRE_MAX_MESSAGE + 1];
    if (x->lost && x->give_up_ms && client_worth_trying(e->code) && now_ms + again_ms < x->give_up_ms) {
        x->resend_ms = now_ms + again_ms;
        return;
    }
    /* Whether this gateway may ask is no affair of its clients. */
    bool ours = e->code == 401 || e->code == 403;
    if (ours)
        log_error("upstream", "the coordinator refuses this gateway: %.*s", (int)e->message.size,
                  e->message.data);
    snprintf(message, sizeof(message), "%s%.*s", ours ? "the coordinator refuses this gateway: " : "",
             (int)e->message.size, e->message.data);
    end_with(u, x, ours ? 503 : (int)e->code, message, e->retry_after_ms);
}

static struct upstream_model *model_of(struct upstream_state *s, struct wire_str name)
{
    for (uint32_t i = 0; i < s->model_count; i++)
        if (wire_str_is(name, s->models[i].name))
            return &s->models[i];
    if (s->model_count == UPSTREAM_MAX_MODELS)
        return NULL;
    struct upstream_model *m = &s->models[s->model_count++];
    *m = (struct upstream_model){.groups = 0};
    snprintf(m->name, sizeof(m->name), "%.*s", (int)name.size, name.data);
    return m;
}

static void take_status(struct upstream *u, const struct wire_status_reply *in)
{
    struct upstream_state s = {.reason = NULL};
    for (uint32_t i = 0; i < in->group_count; i++) {
        const struct wire_group_status *g = &in->groups[i];
        bool serves = wire_str_is(g->state, "ready");
        struct upstream_model *m = serves ? model_of(&s, g->model) : NULL;
        s.groups += serves;
        if (!m)
            continue;
        m->groups++;
        m->context = g->context > m->context ? g->context : m->context;
    }
    s.ready = s.groups > 0 && !in->draining;
    s.reason = in->draining ? "the coordinator is draining" : s.groups == 0 ? "no group is ready" : NULL;
    pthread_mutex_lock(&u->lock);
    u->state = s;
    u->state_ms = clock_now_ms();
    pthread_mutex_unlock(&u->lock);
}

static void take(struct upstream *u, const struct wire_message *m)
{
    struct wire_str id = m->type == WIRE_ACCEPTED ? m->accepted.request
                         : m->type == WIRE_TOKEN  ? m->token.request
                         : m->type == WIRE_DONE   ? m->done.request
                         : m->type == WIRE_ERROR  ? m->error.request
                                                  : (struct wire_str){NULL, 0};
    if (m->type == WIRE_STATUS_REPLY)
        take_status(u, &m->status_reply);
    if (m->type == WIRE_ERROR && id.size == 0)
        log_error("upstream", "the coordinator: error %llu: %.*s", (unsigned long long)m->error.code,
                  (int)m->error.message.size, m->error.message.data);
    struct exchange *x = id.size ? *find(u, id) : NULL;
    if (!x)
        return; /* cancelled meanwhile */
    if (m->type == WIRE_ACCEPTED)
        take_accepted(u, x, &m->accepted);
    else if (m->type == WIRE_TOKEN)
        take_token(u, x, &m->token);
    else if (m->type == WIRE_DONE)
        take_done(u, x, &m->done);
    else
        take_error(u, x, &m->error);
}

/* ---- commands ---- */
/* False: it is too late. */
static bool put(struct upstream *u, enum order order, struct exchange *x)
{
    struct command *c = xcalloc(1, sizeof(*c));
    *c = (struct command){.order = order, .exchange = x};
    if (x) {
        pthread_mutex_lock(&x->lock);
        x->users++;
        pthread_mutex_unlock(&x->lock);
    }
    pthread_mutex_lock(&u->lock);
    bool stopped = u->stopped;
    u->stopped |= order == ORDER_STOP;
    if (!stopped) {
        *u->last = c;
        u->last = &c->next;
    }
    pthread_mutex_unlock(&u->lock);
    uint64_t one = 1;
    if (!stopped && write(u->wake_fd, &one, sizeof(one)) != sizeof(one) && errno != EAGAIN)
        die("eventfd: %s", strerror(errno));
    if (stopped) {
        free(c);
        if (x)
            exchange_release(x);
    }
    return !stopped;
}

void upstream_submit(struct upstream *u, struct exchange *x)
{
    struct openai_error e;
    if (put(u, ORDER_SUBMIT, x))
        return;
    openai_fail(&e, 503, "draining", NULL, STOPPING);
    exchange_fail(x, &e, clock_now_ms());
}

void upstream_cancel(struct upstream *u, struct exchange *x)
{
    put(u, ORDER_CANCEL, x);
}

void upstream_drained(struct upstream *u, struct exchange *x)
{
    put(u, ORDER_CREDIT, x);
}

/* The command's user becomes the table's. */
static void submit(struct upstream *u, struct exchange *x, uint64_t now_ms)
{
    struct exchange **at = find(u, wire_string(x->id));
    if (*at) {
        struct openai_error e;
        openai_fail(&e, 409, NULL, "request_id", "request_id: a request of this id is being answered here");
        exchange_fail(x, &e, now_ms);
        exchange_release(x);
        return;
    }
    *at = x;
    x->next = NULL;
    x->first_ms = now_ms;
    x->lost = !u->connected || now_ms < u->settled_ms;
    x->give_up_ms = !u->connected ? now_ms + u->options.retry_ms : x->lost ? u->settled_ms : 0;
    if (u->connected)
        ask(u, x, now_ms);
}

static void obey(struct upstream *u, const struct command *c, uint64_t now_ms)
{
    if (c->order == ORDER_STOP) {
        u->stopping = true;
        return;
    }
    if (c->order == ORDER_SUBMIT) {
        submit(u, c->exchange, now_ms);
        return;
    }
    bool live = *find(u, wire_string(c->exchange->id)) == c->exchange;
    if (live && c->order == ORDER_CREDIT)
        grant(u, c->exchange);
    if (live && c->order == ORDER_CANCEL) {
        send_cancel(u, c->exchange);
        forget(u, c->exchange);
    }
    exchange_release(c->exchange);
}

static void obey_all(struct upstream *u)
{
    uint64_t count;
    if (read(u->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR)
        die("eventfd: %s", strerror(errno));
    pthread_mutex_lock(&u->lock);
    struct command *c = u->first, *next;
    u->first = NULL;
    u->last = &u->first;
    pthread_mutex_unlock(&u->lock);
    for (; c; c = next) {
        next = c->next;
        obey(u, c, clock_now_ms());
        free(c);
    }
}

/* ---- time ---- */
/* What is due of one exchange. */
static void look_after(struct upstream *u, struct exchange *x, uint64_t now_ms)
{
    if (x->give_up_ms && now_ms >= x->give_up_ms) {
        end_with(u, x, 503,
                 u->connected ? "no group took the request in time" : "the coordinator is not reachable", 0);
        return;
    }
    if (u->connected && x->resend_ms && now_ms >= x->resend_ms)
        ask(u, x, now_ms);
    if (u->connected && !x->accepted && !x->resend_ms && now_ms - x->sent_ms >= ANSWER_MS) {
        send_cancel(u, x);
        end_with(u, x, 503, "the coordinator does not answer", 0);
        return;
    }
    if (x->accepted || x->lost)
        exchange_ping(x, u->options.ping_ms, now_ms);
}

static void tick(struct upstream *u, uint64_t now_ms)
{
    struct wire_message m;
    u->tick_ms = now_ms + TICK_MS;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct exchange *x = u->buckets[i], *next; x; x = next) {
            next = x->next;
            look_after(u, x, now_ms);
        }
    if (u->connected && now_ms >= u->ask_ms) {
        u->ask_ms = now_ms + STATUS_MS;
        wire_init(&m, WIRE_STATUS);
        tell(u, &m);
    }
}

/* ---- the connection ---- */
static void lost(struct upstream *u, const struct err *err)
{
    uint64_t now_ms = clock_now_ms();
    log_warn("upstream", "%s; looking for it", err->message);
    u->connected = false;
    u->try_ms = now_ms;
    u->pause_ms = FIRST_PAUSE_MS;
    pthread_mutex_lock(&u->lock);
    u->state_ms = 0;
    pthread_mutex_unlock(&u->lock);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct exchange *x = u->buckets[i]; x; x = x->next) {
            x->lost = true;
            if (!x->give_up_ms)
                x->give_up_ms = now_ms + u->options.retry_ms;
        }
}

static void connect_to(struct upstream *u)
{
    struct err err = {0};
    int rc = client_reopen(u->client, REOPEN_MS, &err);
    uint64_t now_ms = clock_now_ms();
    if (rc != 0) {
        if (err.code != u->warned)
            log_warn("upstream", "%s", err.message);
        u->warned = err.code;
        u->try_ms = now_ms + u->pause_ms;
        u->pause_ms = u->pause_ms * 2 < LAST_PAUSE_MS ? u->pause_ms * 2 : LAST_PAUSE_MS;
        return;
    }
    log_info("upstream", "connected to %s", client_endpoint(u->client));
    u->settled_ms = u->known ? now_ms + SETTLE_MS : 0;
    u->connected = u->known = true;
    u->warned = 0;
    u->ask_ms = now_ms;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct exchange *x = u->buckets[i]; x; x = x->next)
            ask(u, x, now_ms);
}

/* Until a command comes, or for so long. */
static void wait_for_command(struct upstream *u, uint64_t ms)
{
    struct pollfd woken = {.fd = u->wake_fd, .events = POLLIN};
    poll(&woken, 1, (int)ms);
}

static void listen_to(struct upstream *u)
{
    struct err err = {0};
    for (int i = 0; i < TURN_MESSAGES && u->connected; i++) {
        struct wire_message m;
        uint64_t now_ms = clock_now_ms();
        int rc =
            client_receive_watching(u->client, &m, u->tick_ms > now_ms ? u->tick_ms - now_ms : 0, true, &err);
        if (rc < 0)
            lost(u, &err);
        if (rc != 1)
            return;
        take(u, &m);
        wire_release(&m);
    }
}

static void *run(void *argument)
{
    struct upstream *u = argument;
    while (!u->stopping) {
        obey_all(u);
        uint64_t now_ms = clock_now_ms();
        if (now_ms >= u->tick_ms)
            tick(u, now_ms);
        if (u->connected)
            listen_to(u);
        else if (now_ms >= u->try_ms)
            connect_to(u);
        else
            wait_for_command(u, u->try_ms - now_ms < TICK_MS ? u->try_ms - now_ms : TICK_MS);
    }
    for (size_t i = 0; i < BUCKETS; i++)
        while (u->buckets[i]) {
            send_cancel(u, u->buckets[i]);
            end_with(u, u->buckets[i], 503, STOPPING, 0);
        }
    return NULL;
}

/* ---- life ---- */
int upstream_open(struct upstream **out, const struct upstream_options *options, struct err *err)
{
    struct upstream *u = xcalloc(1, sizeof(*u));
    u->options = *options;
    *out = NULL;
    if (client_create(&u->client, options->client, err)) {
        free(u);
        return -1;
    }
    u->pause_ms = FIRST_PAUSE_MS;
    u->last = &u->first;
    u->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (u->wake_fd < 0)
        die("eventfd: %s", strerror(errno));
    client_interrupt_on(u->client, u->wake_fd);
    pthread_mutex_init(&u->lock, NULL);
    if (pthread_create(&u->thread, NULL, run, u) != 0)
        die("pthread_create: %s", strerror(errno));
    *out = u;
    return 0;
}

void upstream_stop(struct upstream *u)
{
    if (put(u, ORDER_STOP, NULL)) /* the last command */
        pthread_join(u->thread, NULL);
}

void upstream_close(struct upstream **upstream)
{
    struct upstream *u = *upstream;
    if (!u)
        return;
    upstream_stop(u);
    client_close(&u->client);
    close(u->wake_fd);
    pthread_mutex_destroy(&u->lock);
    free(u);
    *upstream = NULL;
}

void upstream_state(struct upstream *u, struct upstream_state *out)
{
    pthread_mutex_lock(&u->lock);
    *out = u->state;
    bool heard = u->state_ms && clock_now_ms() - u->state_ms < STATUS_VALID_MS;
    pthread_mutex_unlock(&u->lock);
    out->ready = heard && out->ready;
    if (!heard)
        out->reason = "the coordinator is not reachable";
}
