/* lepton-coordinator: options, wiring, and the loop: wait, handle a bounded number of messages, tick. One
 * thread decides everything; ZeroMQ's own threads and the ZAP handler do the rest. SIGTERM or SIGINT drains,
 * a second one ends at once. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/config.h"
#include "common/log.h"
#include "coordinator/affinity.h"
#include "coordinator/dispatch.h"

/* Messages handled before leases, deadlines and signals get their turn. */
#define TURN_MESSAGES 256
/* Final messages get this long to leave the socket. */
#define LINGER_MS 1000
/* Files that connections leave to everything else. */
#define OTHER_FILES 64

struct settings {
    char *config, *endpoint, *endpoint_file, *key, *authorized, *log_level, *log_format;
    char *store, *policy, *prefix_snapshot, *prefix_weight, *prefix_belief, *admins, *processor;
    bool public;
    int64_t lease_ms, heartbeat_ms, progress_ms, request_timeout_ms, group_wait_ms, stall_timeout_ms,
        drain_timeout_ms;
    int64_t queue_requests, queue_bytes, queue_wait_ms, live_requests, max_groups, max_connections;
    int64_t prefix_places, prefix_weight_low, prefix_weight_high, replay_bytes, replay_ms, store_bytes,
        audit_rows, suspect_ms, suspect_wait_ms;
};

#define TEXT(...) CONFIG_TEXT(struct settings, __VA_ARGS__)
#define CHOICE(member, preset, words, sentence)                                              \
    {                                                                                        \
        .name = #member, .kind = CONFIG_STRING, .offset = offsetof(struct settings, member), \
        .standard = preset, .value = "NAME", .choices = words, .help = sentence              \
    }
#define NUMBER(...) CONFIG_NUMBER(struct settings, __VA_ARGS__)

static const struct config_option options[] = {
    {.name = "config",
     .letter = 'c',
     .kind = CONFIG_STRING,
     .offset = offsetof(struct settings, config),
     .value = "PATH",
     .help = "Read options from this file; options on the command line win.",
     .given_only = true},
    TEXT(endpoint, "tcp://127.0.0.1:5555", "tcp://ADDRESS:PORT",
         "Where clients and workers connect: an address or an interface of this machine and a port (* picks "
         "a free "
         "one), or ipc://PATH."),
    {.name = "public",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct settings, public),
     .help = "Allow an endpoint that listens on every interface (tcp://*:5555)."},
    TEXT(endpoint_file, NULL, "PATH",
         "Write the endpoint, with the port that was chosen, to this file once connections are taken."),
    TEXT(key, NULL, "PATH", "The coordinator's own key file (lepton keygen); always needed."),
    TEXT(authorized, NULL, "DIR",
         "The directory of .pub files: whose key may connect, as worker or as client; always needed."),
    NUMBER(lease_ms, 100, 3600000, "3000",
           "Milliseconds that a group counts as alive after its last heartbeat."),
    NUMBER(heartbeat_ms, 10, 3600000, "500",
           "Milliseconds between the heartbeats of a group; at most a third of lease_ms."),
    NUMBER(progress_ms, 1000, 3600000, "6000",
           "Milliseconds without progress after which a group that has work loses it, though its heartbeats "
           "come; more than "
           "one layer of the longest step takes."),
    NUMBER(queue_requests, 1, 1000000, "1024", "Most requests that wait for a group."),
    NUMBER(queue_bytes, 1, 1e12, "268435456",
           "Most bytes of prompts that are held, of waiting and running requests together."),
    NUMBER(queue_wait_ms, 0, 86400000, "0",
           "Refuse with 429 what is expected to wait longer; 0: what would wait half of its deadline."),
    NUMBER(live_requests, 1, 1000000, "4096", "Most requests that wait and run."),
    NUMBER(request_timeout_ms, 1, 86400000, "300000",
           "Deadline of a request that names none, in milliseconds after it was accepted."),
    NUMBER(group_wait_ms, 0, 86400000, "30000",
           "Milliseconds that a request waits while no group serves its model."),
    NUMBER(stall_timeout_ms, 100, 3600000, "10000",
           "Milliseconds after which the stream of a client that does not read is cut."),
    NUMBER(replay_bytes, 0, 1e12, "67108864",
           "Most bytes of answers that are kept for clients that ask again with the same idempotent id; 0: "
           "none."),
    NUMBER(replay_ms, 0, 86400000, "300000", "Milliseconds that such an answer is kept."),
    NUMBER(suspect_ms, 0, 604800000, "3600000",
           "Milliseconds for which it is remembered under which requests groups died, so that the same, "
           "asked again, does "
           "not kill more."),
    NUMBER(suspect_wait_ms, 0, 86400000, "1000",
           "Milliseconds that a request under which two groups died at one token waits for the news of what "
           "they died of; with three it waits group_wait_ms."),
    TEXT(store, NULL, "PATH",
         "The database of what must outlive the coordinator: such answers, epochs, suspects, settings "
         "(docs/operations.md); "
         "without it, nothing "
         "does."),
    NUMBER(store_bytes, 0, 1e15, "0",
           "Most bytes of that database, at least replay_bytes and 16 MiB; 0: what the disk holds."),
    NUMBER(audit_rows, 1000, 1e9, "1000000",
           "Most rows of the audit log in that database, about; the oldest go."),
    NUMBER(drain_timeout_ms, 0, 86400000, "30000",
           "Milliseconds that running requests get to finish after SIGTERM."),
    NUMBER(max_connections, 0, 1 << 20, "0",
           "Most connections; new ones then wait outside. 0: what the limit of open files leaves."),
    NUMBER(max_groups, 1, WIRE_MAX_GROUPS, "256", "Most worker groups that are remembered."),
    CHOICE(policy, "prefix", "prefix|least-load|two-choices|round-robin",
           "How a group is chosen: by queue, uncached prefill and decoding; by load; of two at random; in "
           "turn."),
    TEXT(prefix_weight, "auto", "PERCENT",
         "How much a cached prefix counts with policy prefix: a number, or auto: found from measured times."),
    NUMBER(prefix_weight_low, 0, 10000, "0", "Least prefix_weight, found or set by hand."),
    NUMBER(prefix_weight_high, 1, 10000, "10000", "Greatest prefix_weight, found or set by hand."),
    TEXT(prefix_belief, "auto", "PERCENT",
         "How far the index of cached prefixes is believed: 5 to 100, or auto: as groups find their caches."),
    TEXT(admins, NULL, "NAME,NAME",
         "The clients that may run lepton tune, drain and undrain, by the names of their keys."),
    NUMBER(prefix_places, 0, 268435456, "65536",
           "Places of prompts, 32 bytes each, in the index of which group has which prefix cached; 0: none."),
    TEXT(prefix_snapshot, NULL, "PATH",
         "Keep that index in this file from one run to the next: read at the start, written at the end."),
    TEXT(processor, "auto", "auto|off|N",
         "auto: its threads keep to one processor, where a token is under way for less, while one has room; "
         "off: never; N: always to processor N."),
    CHOICE(log_level, "info", "debug|info|warn|error", "The least level that is logged."),
    CHOICE(log_format, "text", "text|json", "Log lines for people or for machines."),
};

static const struct config_table table = {
    .program = "lepton-coordinator",
    .about =
        "Takes requests from clients and spreads them over worker groups. It speaks ZeroMQ with CURVE: every "
        "client and worker needs a key whose .pub file lies in the authorized directory.",
    .after = "signals:\n"
             "  TERM, INT  drain: refuse new requests, let the running ones finish, exit; a second one exits "
             "at once\n"
             "exit codes:\n"
             "  0 drained and stopped   1 could not start   2 wrong usage   130 stopped at once\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct settings),
};

/* What the table cannot say. */
static int check(const struct settings *s, struct err *err)
{
    if (!s->key)
        return err_set(err, "key: expected the path of the coordinator's key file (lepton keygen makes one)");
    if (!s->authorized)
        return err_set(err, "authorized: expected the directory of the .pub files that may connect");
    if (s->prefix_weight_low > s->prefix_weight_high)
        return err_set(err, "prefix_weight_low: expected at most prefix_weight_high (%lld), found %lld",
                       (long long)s->prefix_weight_high, (long long)s->prefix_weight_low);
    if (s->store_bytes && s->store_bytes < s->replay_bytes + (16 << 20))
        return err_set(err, "store_bytes: expected 0, or at least replay_bytes and 16 MiB (%lld), found %lld",
                       (long long)s->replay_bytes + (16 << 20), (long long)s->store_bytes);
    if (s->heartbeat_ms * 3 > s->lease_ms)
        return err_set(err, "heartbeat_ms: expected at most a third of lease_ms (%lld), found %lld",
                       (long long)s->lease_ms, (long long)s->heartbeat_ms);
    return 0;
}

/* Whole or not at all: a reader that waits for the file never sees half of it. */
static int write_endpoint(const char *path, const char *endpoint, struct err *err)
{
    char *temporary = xasprintf("%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "w");
    bool written = file && fprintf(file, "%s\n", endpoint) > 0;
    if (file && fclose(file) != 0)
        written = false;
    if (written && rename(temporary, path) != 0)
        written = false;
    if (!written) {
        err_set(err, "%s: %s", path, strerror(errno));
        unlink(temporary);
    }
    free(temporary);
    return written ? 0 : -1;
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL); /* before ZeroMQ's threads, which inherit it */
    signal(SIGPIPE, SIG_IGN);           /* who read the log may be gone: that ends nobody's stream */
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        die("signalfd: %s", strerror(errno));
    return fd;
}

/* One descriptor that can be read when a signal came, or something has become durable. */
static int open_waits(int signals, const struct store *store)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, signals, &event) != 0 ||
        (store && epoll_ctl(fd, EPOLL_CTL_ADD, store_fd(store), &event) != 0))
        die("epoll: %s", strerror(errno));
    return fd;
}

/* Every connection is a file; the usual soft limit of 1024 is for programs that use select(). */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        log_warn("main", "the limit of open files stays as it is: %s", strerror(errno));
}

/* Connections never take the last files: keys are read, threads are woken and connections are accepted and
 * shut through them. */
static uint32_t connection_limit(int64_t asked)
{
    struct rlimit limit;
    uint64_t files = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? (uint64_t)limit.rlim_cur : 1024;
    uint64_t most = files > 2 * OTHER_FILES ? files - OTHER_FILES : files / 2;
    if (most > 1u << 20)
        most = 1u << 20;
    if (asked == 0)
        return (uint32_t)most;
    if ((uint64_t)asked > most)
        log_warn("main", "max_connections: %lld, but the limit of open files leaves %llu", (long long)asked,
                 (unsigned long long)most);
    return (uint32_t)((uint64_t)asked < most ? (uint64_t)asked : most);
}

static void handle_messages(struct router *router, struct dispatch *dispatch)
{
    bool drained = false;
    for (int i = 0; i < TURN_MESSAGES && !drained; i++) {
        struct router_message message;
        int received = router_receive(router, &message);
        drained = received == 0;
        if (received == 1) {
            dispatch_message(dispatch, &message);
            wire_release(&message.wire);
        }
    }
    struct peer peer;
    while (router_left(router, drained, &peer))
        dispatch_left(dispatch, &peer);
}

/* Runs until drained (0) or told twice to stop (130). */
static int serve(struct router *router, struct dispatch *dispatch, struct affinity *affinity, int signals,
                 int waits, uint64_t drain_timeout_ms)
{
    bool draining = false;
    for (;;) {
        uint64_t due = dispatch_due_ms(dispatch), now = clock_now_ms();
        uint64_t timeout_ms = due == UINT64_MAX ? UINT64_MAX : due > now ? due - now : 0;
        struct signalfd_siginfo signal;
        if (router_wait(router, waits, timeout_ms) &&
            read(signals, &signal, sizeof(signal)) == (ssize_t)sizeof(signal)) {
            log_info("main", "signal %u: %s", signal.ssi_signo, draining ? "stop at once" : "drain");
            if (draining)
                return 130;
            draining = true;
            dispatch_drain(dispatch, drain_timeout_ms);
        }
        handle_messages(router, dispatch);
        dispatch_tick(dispatch);
        affinity_tick(affinity, clock_now_ms());
        if (draining && dispatch_drained(dispatch))
            return 0;
    }
}

static void setup_log(const struct settings *s)
{
    enum log_level level = LOG_INFO;
    bool known = log_level_from_name(s->log_level, &level);
    ASSERT(known);
    log_setup("coordinator", level, strcmp(s->log_format, "json") == 0 ? LOG_JSON : LOG_TEXT);
}

/* "auto", or a number between its bounds. */
static int read_setting(struct scheduler_setting *out, const char *text, struct err *err)
{
    if (scheduler_setting_read(out->name, text, &out->automatic, &out->value, err))
        return -1;
    if (!out->automatic && (out->value < out->low || out->value > out->high))
        return err_set(err, "%s: expected %llu to %llu, or auto, found %llu", out->name,
                       (unsigned long long)out->low, (unsigned long long)out->high,
                       (unsigned long long)out->value);
    return 0;
}

static int make_dispatch(struct dispatch **out, struct router *router, struct store *store,
                         const struct affinity *affinity, const struct settings *s, struct err *err)
{
    struct scheduler_setting weight = {.name = "prefix_weight",
                                       .low = (uint64_t)s->prefix_weight_low,
                                       .high = (uint64_t)s->prefix_weight_high};
    struct scheduler_setting belief = {.name = "prefix_belief", .low = 5, .high = 100};
    if (read_setting(&weight, s->prefix_weight, err) || read_setting(&belief, s->prefix_belief, err))
        return -1;
    struct dispatch_options o = {
        .lease_ms = (uint64_t)s->lease_ms,
        .heartbeat_ms = (uint64_t)s->heartbeat_ms,
        .progress_ms = (uint64_t)s->progress_ms,
        .request_timeout_ms = (uint64_t)s->request_timeout_ms,
        .stall_timeout_ms = (uint64_t)s->stall_timeout_ms,
        .suspect_ms = (uint64_t)s->suspect_ms,
        .suspect_wait_ms = (uint64_t)s->suspect_wait_ms,
        .limits = {.live_requests = (uint32_t)s->live_requests,
                   .groups = (uint32_t)s->max_groups,
                   .queue_requests = (uint32_t)s->queue_requests,
                   .prompt_bytes = (uint64_t)s->queue_bytes,
                   .group_wait_ms = (uint64_t)s->group_wait_ms,
                   .queue_ms = (uint64_t)s->queue_wait_ms,
                   .prefix_places = (uint32_t)s->prefix_places,
                   .prefix_weight = (uint32_t)(weight.automatic ? SCHEDULER_PREFIX_WEIGHT : weight.value),
                   .prefix_weight_low = (uint32_t)weight.low,
                   .prefix_weight_high = (uint32_t)weight.high,
                   .prefix_weight_auto = weight.automatic,
                   .prefix_belief = (uint32_t)belief.value,
                   .seed = clock_entropy()},
        .keep = {.bytes = s->replay_ms ? (uint64_t)s->replay_bytes : 0, .us = (uint64_t)s->replay_ms * 1000},
        .policy = balancer_policy_find(s->policy),
        .admins = s->admins,
        .store = store,
        .affinity = affinity,
        .prefix_snapshot = s->prefix_snapshot,
    };
    *out = dispatch_new(router, &o);
    return dispatch_restore(*out, err);
}

int main(int argc, char **argv)
{
    struct settings s;
    struct curve_key key = {0};
    struct router *router = NULL;
    struct dispatch *dispatch = NULL;
    struct store *store = NULL;
    struct affinity *affinity = NULL;
    struct err err;
    int code = 1, waits = -1;
    config_main(&table, &s, argc, argv, NULL, 0);
    setup_log(&s);
    int signals = open_signals();
    raise_file_limit();
    if (check(&s, &err) != 0 || affinity_open(&affinity, s.processor, "/proc", &err) != 0) {
        code = 2;
        goto fail;
    }
    if (curve_load(&key, s.key, false, &err) != 0)
        goto fail;
    struct router_options ro = {.endpoint = s.endpoint,
                                .public = s.public,
                                .key = &key,
                                .authorized = s.authorized,
                                .max_connections = connection_limit(s.max_connections),
                                .stall_ms = (uint32_t)s.stall_timeout_ms};
    if (key.role != CURVE_COORDINATOR) {
        err_set(&err, "%s: expected a key of role coordinator, found %s", s.key, curve_role_name(key.role));
        goto fail;
    }
    struct store_options so = {
        .path = s.store, .max_bytes = (uint64_t)s.store_bytes, .audit_rows = (uint64_t)s.audit_rows};
    if (s.store && store_open(&store, &so, &err) != 0)
        goto fail;
    affinity_spare(affinity); /* the store's writer: it waits for disks, and no token for it */
    if (router_open(&router, &ro, &err) != 0)
        goto fail;
    if (make_dispatch(&dispatch, router, store, affinity, &s, &err) != 0)
        goto fail;
    if (s.endpoint_file && write_endpoint(s.endpoint_file, router_endpoint(router), &err) != 0)
        goto fail;
    log_info("main", "listening on %s as %s, version " LEPTON_VERSION, router_endpoint(router), key.name);
    waits = open_waits(signals, store);
    code = serve(router, dispatch, affinity, signals, waits, (uint64_t)s.drain_timeout_ms);
    dispatch_save(dispatch);
    log_info("main", "stopped");
    goto out;
fail:
    fprintf(stderr, "lepton-coordinator: %s\n", err.message);
out:
    if (s.endpoint_file && router)
        unlink(s.endpoint_file);
    dispatch_free(&dispatch);
    store_close(&store);
    router_close(&router, code == 0 ? LINGER_MS : 0);
    affinity_close(&affinity);
    curve_wipe(&key);
    close(signals);
    if (waits >= 0)
        close(waits);
    config_release(&table, &s);
    return code;
}
