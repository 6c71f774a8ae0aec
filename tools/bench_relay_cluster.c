/* The relay of `lepton bench relay`: the real coordinator and a mock group as processes of their own, with
 * keys in a private directory that goes with them, and this process as their client. */
#include "tools/bench_relay.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/curve.h"
#include "tools/client.h"
#include "tools/interrupt.h"
#include "tools/process.h"

#define START_MS   10000
#define SILENCE_MS 10000
#define STOP_MS    5000

struct relay_cluster {
    struct relay_traffic traffic;
    char *directory;
    struct process coordinator, group;
    struct client *client;
    uint64_t round;
};

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st;
    (void)kind;
    (void)where;
    return remove(path);
}

static char *below(const struct relay_cluster *c, const char *name)
{
    return xasprintf("%s/%s", c->directory, name);
}

/* ---- starting ---- */

static int make_directory(struct relay_cluster *c, struct err *err)
{
    const char *where = getenv("TMPDIR");
    c->directory = xasprintf("%s/lepton-relay-XXXXXX", where && where[0] ? where : "/tmp");
    if (mkdtemp(c->directory))
        return 0;
    err_set(err, "%s: %s", c->directory, strerror(errno));
    free(c->directory);
    c->directory = NULL;
    return -1;
}

static int make_key(struct relay_cluster *c, const char *name, enum curve_role role, struct err *err)
{
    struct curve_key key;
    char *keys = below(c, "keys"), *from = xasprintf("%s/%s.pub", keys, name),
         *to = xasprintf("%s/authorized/%s.pub", c->directory, name);
    int code = curve_generate(&key, keys, name, role, err);
    if (code == 0 && role != CURVE_COORDINATOR && link(from, to) != 0)
        code = err_set(err, "%s: %s", to, strerror(errno));
    curve_wipe(&key);
    free(keys);
    free(from);
    free(to);
    return code;
}

static int write_speed(const struct relay_cluster *c, struct err *err)
{
    char *path = below(c, "speed.cfg");
    FILE *f = fopen(path, "w");
    uint64_t tokens = (uint64_t)c->traffic.streams * (c->traffic.steps + 16ull);
    int code = 0;
    if (!f || fprintf(f,
                      "base_us = %u.0;\ndecode_us = 0.0;\nprefill_us = 0.001;\nstep_tokens = 1000000;\n"
                      "max_sequences = %u;\nkv_tokens = %lluL;\ncache_places = 0;\nstamps = true;\n",
                      c->traffic.step_us, c->traffic.streams, (unsigned long long)tokens) < 0)
        code = err_set(err, "%s: %s", path, strerror(errno));
    if (f && fclose(f) != 0 && code == 0)
        code = err_set(err, "%s: %s", path, strerror(errno));
    free(path);
    return code;
}

static int start_coordinator(struct relay_cluster *c, struct err *err)
{
    char *program = process_sibling("lepton-coordinator"), *log = below(c, "coordinator.log"),
         *file = below(c, "endpoint"), *key = below(c, "keys/coordinator.key"),
         *authorized = below(c, "authorized");
    char *argv[] = {program,
                    "--endpoint",
                    "tcp://127.0.0.1:*",
                    "--endpoint-file",
                    file,
                    "--key",
                    key,
                    "--authorized",
                    authorized,
                    "--processor",
                    (char *)(uintptr_t)c->traffic.processor,
                    NULL};
    int code = process_start(&c->coordinator, argv, log, err);
    free(program);
    free(log);
    free(file);
    free(key);
    free(authorized);
    return code;
}

/* The endpoint once the coordinator listens; to be freed. NULL when it does not come. */
static char *wait_endpoint(struct relay_cluster *c, struct err *err)
{
    char *path = below(c, "endpoint"), line[256] = "";
    uint64_t end_ms = clock_now_ms() + START_MS;
    while (!line[0] && clock_now_ms() < end_ms && process_running(&c->coordinator)) {
        FILE *f = fopen(path, "r");
        if (f && !fgets(line, sizeof(line), f))
            line[0] = '\0';
        if (f)
            fclose(f);
        clock_sleep_ms(line[0] ? 0 : 5);
    }
    free(path);
    line[strcspn(line, "\n")] = '\0';
    if (line[0])
        return xstrdup(line);
    err_set(err, "the coordinator does not listen: see %s/coordinator.log", c->directory);
    return NULL;
}

static int start_group(struct relay_cluster *c, const char *endpoint, struct err *err)
{
    char *program = process_sibling("lepton-worker"), *log = below(c, "group.log"),
         *speed = below(c, "speed.cfg"), *server = below(c, "keys/coordinator.pub"),
         *key = below(c, "keys/group.key");
    char *argv[] = {
        program,        "--mock", speed,   "--group", "group", "--endpoint", (char *)(uintptr_t)endpoint,
        "--server-key", server,   "--key", key,       NULL};
    int code = process_start(&c->group, argv, log, err);
    free(program);
    free(log);
    free(speed);
    free(server);
    free(key);
    return code;
}

static int connect_client(struct relay_cluster *c, char *endpoint, struct err *err)
{
    struct client_settings s = {.endpoint = endpoint,
                                .server_key = below(c, "keys/coordinator.pub"),
                                .key = below(c, "keys/client.key")};
    int code = client_open(&c->client, &s, START_MS, err);
    free(s.server_key);
    free(s.key);
    return code;
}

static int wait_group(struct relay_cluster *c, struct err *err)
{
    uint64_t end_ms = clock_now_ms() + START_MS;
    while (clock_now_ms() < end_ms && !interrupted()) {
        struct wire_message m;
        if (client_status(c->client, false, START_MS, &m, err) != 0)
            return -1;
        bool ready = m.status_reply.group_count == 1 && wire_str_is(m.status_reply.groups[0].state, "ready");
        wire_release(&m);
        if (ready)
            return 0;
        clock_sleep_ms(10);
    }
    return err_set(err, "the mock group is not ready after %d s: see %s/group.log", START_MS / 1000,
                   c->directory);
}

int relay_cluster_start(struct relay_cluster **out, const struct relay_traffic *traffic, struct err *err)
{
    struct relay_cluster *c = xcalloc(1, sizeof(*c));
    char *authorized = NULL, *endpoint = NULL;
    int code = -1;
    *out = c;
    c->traffic = *traffic;
    if (make_directory(c, err) != 0)
        goto out;
    authorized = below(c, "authorized");
    if (mkdir(authorized, 0700) != 0) {
        err_set(err, "%s: %s", authorized, strerror(errno));
        goto out;
    }
    if (make_key(c, "coordinator", CURVE_COORDINATOR, err) != 0 ||
        make_key(c, "client", CURVE_CLIENT, err) != 0 || make_key(c, "group", CURVE_WORKER, err) != 0 ||
        write_speed(c, err) != 0 || start_coordinator(c, err) != 0 || !(endpoint = wait_endpoint(c, err)) ||
        start_group(c, endpoint, err) != 0 || connect_client(c, endpoint, err) != 0 ||
        wait_group(c, err) != 0)
        goto out;
    code = 0;
out:
    free(authorized);
    free(endpoint);
    return code;
}

void relay_cluster_stop(struct relay_cluster **pc)
{
    struct relay_cluster *c = *pc;
    if (!c)
        return;
    client_close(&c->client);
    if (c->group.pid)
        process_stop(&c->group, SIGTERM, STOP_MS);
    if (c->coordinator.pid)
        process_stop(&c->coordinator, SIGTERM, STOP_MS);
    if (c->directory)
        nftw(c->directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(c->directory);
    free(c);
    *pc = NULL;
}

/* ---- a round ---- */

static int ask(struct relay_cluster *c, struct err *err)
{
    c->round++;
    for (uint32_t i = 0; i < c->traffic.streams; i++) {
        struct wire_message m;
        char name[48];
        snprintf(name, sizeof(name), "relay-%llu-%u", (unsigned long long)c->round, i);
        wire_init(&m, WIRE_GENERATE);
        m.generate.request = wire_string(name);
        m.generate.prompt = wire_string("Once");
        m.generate.max_tokens = c->traffic.steps;
        m.generate.sampling.ignore_eos = true;
        if (client_send(c->client, &m, err) != 0)
            return -1;
    }
    return 0;
}

int relay_cluster_round(struct relay_cluster *c, struct relay_ways *ways, struct err *err)
{
    uint32_t left = c->traffic.streams;
    if (ask(c, err) != 0)
        return -1;
    while (left > 0) {
        struct wire_message m;
        int got = client_receive(c->client, &m, SILENCE_MS, err);
        if (got <= 0)
            return got < 0 ? -1
                           : err_set(err, "nothing came from the coordinator for %d s", SILENCE_MS / 1000);
        if (m.type == WIRE_TOKEN && m.token.index >= 2)
            relay_way(ways, m.token.id, clock_now_us());
        left -= m.type == WIRE_DONE;
        if (m.type == WIRE_ERROR)
            err_set(err, "the coordinator answers %llu: %.*s", (unsigned long long)m.error.code,
                    (int)m.error.message.size, m.error.message.data ? m.error.message.data : "");
        bool failed = m.type == WIRE_ERROR;
        wire_release(&m);
        if (failed)
            return -1;
    }
    return 0;
}

double relay_cluster_cpu_s(const struct relay_cluster *c)
{
    clockid_t clock;
    struct timespec t;
    if (!c->coordinator.pid || clock_getcpuclockid(c->coordinator.pid, &clock) != 0 ||
        clock_gettime(clock, &t) != 0)
        return 0;
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
