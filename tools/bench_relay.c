/* lepton bench relay: what the coordinator and CURVE add to a token on its way from a group to a client,
 * beside the same traffic without either, in turn in the same run: round by round, so that a machine that
 * changes its speed changes both. It also says what relaying costs the coordinator, and what idling does. */
#include "tools/bench_relay.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/wire.h"
#include "tools/bench.h"
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/sim/report.h"
#include "worker/mock/mock.h"

struct relay_settings {
    int64_t streams, step_us, steps, rounds, idle_s;
    char *processor;
    bool json;
};

#define INT(member, key, low, high, preset, text)                                                       \
    {                                                                                                   \
        .name = #member, .letter = key, .kind = CONFIG_INT,                                             \
        .offset = offsetof(struct relay_settings, member), .min = low, .max = high, .standard = preset, \
        .value = "N", .help = text                                                                      \
    }
static const struct config_option options[] = {
    INT(streams, 's', 1, WIRE_MAX_TOKENS, "64",
        "streams of the one client; each step brings all of them a token"),
    INT(step_us, 0, 1000, 1000000, "20000", "microseconds from step to step"),
    INT(steps, 0, 3, 100000, "100", "steps of a round"),
    INT(rounds, 'r', 1, 1000, "9", "rounds of each way, in turn"),
    INT(idle_s, 0, 0, 3600, "3",
        "seconds without traffic, for the coordinator's idle processor time; 0: none"),
    {.name = "processor",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct relay_settings, processor),
     .standard = "auto",
     .value = "auto|off|N",
     .help = "the coordinator's option of this name"},
    {.name = "json",
     .letter = 'j',
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct relay_settings, json),
     .help = "print one JSON object"},
};

const struct config_table bench_relay_table = {
    .program = "lepton bench relay",
    .about = "Measures how long tokens are under way from a mock group through CURVE and the coordinator to "
             "a client, "
             "and the same traffic over a bare socket (the floor), in turn. What is added is the difference "
             "of the "
             "two percentiles: of each pair of rounds, and of all tokens together.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct relay_settings),
};

void relay_way(struct relay_ways *w, uint64_t id, uint64_t now_us)
{
    if (id < MOCK_STAMP || id >= MOCK_STAMP + MOCK_STAMPS)
        return;
    if (w->count == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 4096;
        w->ms = xrealloc(w->ms, w->capacity * sizeof(*w->ms));
    }
    uint64_t ago = (now_us / MOCK_STAMP_US - (id - MOCK_STAMP)) % MOCK_STAMPS;
    w->ms[w->count++] = (float)(ago * MOCK_STAMP_US) / 1000;
}

/* ---- the run ---- */

enum way { FLOOR, RELAY, WAYS };

struct relay_bench {
    const struct relay_settings *s;
    struct relay_floor *floor;
    struct relay_cluster *cluster;
    struct relay_ways all[WAYS];
    struct sim_percentiles *round[WAYS]; /* [rounds] */
    double *adds_p50, *adds_p99;         /* [rounds] */
    int64_t rounds;                      /* that were measured */
    double relay_cpu_s, idle_cpu;        /* of the coordinator: for all tokens; share of a core without any */
};

static int run_round(struct relay_bench *b, enum way way, struct err *err)
{
    struct relay_ways ways = {.count = 0};
    double begun_s = relay_cluster_cpu_s(b->cluster);
    int code =
        way == FLOOR ? relay_floor_round(b->floor, &ways, err) : relay_cluster_round(b->cluster, &ways, err);
    struct relay_ways *all = &b->all[way];
    if (way == RELAY)
        b->relay_cpu_s += relay_cluster_cpu_s(b->cluster) - begun_s;
    if (code == 0 && ways.count == 0)
        code = err_set(err, "no token came in a round");
    if (code == 0) {
        all->ms = xrealloc(all->ms, (all->count + ways.count) * sizeof(*all->ms));
        for (uint64_t i = 0; i < ways.count; i++)
            all->ms[all->count++] = ways.ms[i];
        b->round[way][b->rounds] = sim_percentiles_of(ways.ms, ways.count);
    }
    free(ways.ms);
    return code;
}

static int measure(struct relay_bench *b, struct err *err)
{
    if (b->s->idle_s) {
        double cpu_s = relay_cluster_cpu_s(b->cluster), begun_s = bench_now_s();
        sleep((unsigned)b->s->idle_s);
        b->idle_cpu = (relay_cluster_cpu_s(b->cluster) - cpu_s) / (bench_now_s() - begun_s);
    }
    while (b->rounds < b->s->rounds && !interrupted()) {
        if (run_round(b, FLOOR, err) || run_round(b, RELAY, err))
            return -1;
        b->adds_p50[b->rounds] = b->round[RELAY][b->rounds].p50 - b->round[FLOOR][b->rounds].p50;
        b->adds_p99[b->rounds] = b->round[RELAY][b->rounds].p99 - b->round[FLOOR][b->rounds].p99;
        b->rounds++;
    }
    return b->rounds ? 0 : err_set(err, "interrupted before a round was over");
}

/* ---- the report ---- */

/* The least and the median; sorts. */
static void best_and_median(double *values, int64_t count, double *best, double *median)
{
    *median = bench_summarise(values, count).median;
    *best = values[0];
}

static void print_way(const char *name, const struct sim_percentiles *p)
{
    printf("%-8s %8.3f %8.3f %8.3f %8.3f\n", name, p->p50, p->p90, p->p99, p->max);
}

static json_t *way_json(const struct sim_percentiles *p)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "p50", p->p50, "p90", p->p90, "p99", p->p99, "max", p->max);
}

static void report(struct relay_bench *b)
{
    struct sim_percentiles p[WAYS];
    double best50, median50, best99, median99;
    uint64_t tokens = (uint64_t)(b->s->streams * b->s->steps * b->rounds);
    double per_core = b->relay_cpu_s > 0 ? (double)tokens / b->relay_cpu_s : 0;
    for (int w = 0; w < WAYS; w++)
        p[w] = sim_percentiles_of(b->all[w].ms, b->all[w].count);
    best_and_median(b->adds_p50, b->rounds, &best50, &median50);
    best_and_median(b->adds_p99, b->rounds, &best99, &median99);
    struct sim_percentiles adds = {.p50 = p[RELAY].p50 - p[FLOOR].p50,
                                   .p90 = p[RELAY].p90 - p[FLOOR].p90,
                                   .p99 = p[RELAY].p99 - p[FLOOR].p99,
                                   .max = p[RELAY].max - p[FLOOR].max};
    if (b->s->json) {
        json_t *o = json_pack("{s:o, s:o, s:o, s:{s:f, s:f, s:f, s:f}, s:f, s:f, s:I}", "floor_ms",
                              way_json(&p[FLOOR]), "relay_ms", way_json(&p[RELAY]), "adds_ms",
                              way_json(&adds), "adds_by_round_ms", "p50_best", best50, "p50_median", median50,
                              "p99_best", best99, "p99_median", median99, "tokens_per_core_s", per_core,
                              "idle_core", b->idle_cpu, "rounds", (json_int_t)b->rounds);
        if (!o || json_dumpf(o, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER))
            die("the report cannot be written");
        printf("\n");
        json_decref(o);
        return;
    }
    printf(
        "%lld streams of one client, a step every %.1f ms; %lld rounds of %lld steps each way, in turn\n\n",
        (long long)b->s->streams, (double)b->s->step_us / 1e3, (long long)b->rounds, (long long)b->s->steps);
    printf("ms            p50      p90      p99      max\n");
    print_way("floor", &p[FLOOR]);
    print_way("relay", &p[RELAY]);
    print_way("adds", &adds);
    printf("\nadded in a round: p50 %.3f best, %.3f median; p99 %.3f best, %.3f median\n", best50, median50,
           best99, median99);
    printf("coordinator: %.0f tokens/s a core", per_core);
    if (b->s->idle_s)
        printf("; idle %.2f %% of a core", 100 * b->idle_cpu);
    printf("\n");
}

int command_bench_relay(int argc, char **argv)
{
    struct relay_settings s;
    struct err err = {0};
    int code = EXIT_FAILED;
    config_main(&bench_relay_table, &s, argc, argv, NULL, 0);
    struct relay_bench b = {.s = &s};
    struct relay_traffic traffic = {.streams = (uint32_t)s.streams,
                                    .step_us = (uint32_t)s.step_us,
                                    .steps = (uint32_t)s.steps,
                                    .processor = s.processor};
    size_t rounds = (size_t)s.rounds;
    for (int w = 0; w < WAYS; w++)
        b.round[w] = xcalloc(rounds, sizeof(*b.round[w]));
    b.adds_p50 = xcalloc(rounds, sizeof(*b.adds_p50));
    b.adds_p99 = xcalloc(rounds, sizeof(*b.adds_p99));
    interrupt_watch();
    if (relay_floor_start(&b.floor, &traffic, &err) || relay_cluster_start(&b.cluster, &traffic, &err) ||
        measure(&b, &err)) {
        fprintf(stderr, "lepton bench relay: %s\n", err.message);
    } else {
        report(&b);
        code = interrupted() ? EXIT_INTERRUPTED : EXIT_OK;
    }
    relay_cluster_stop(&b.cluster);
    relay_floor_stop(&b.floor);
    for (int w = 0; w < WAYS; w++) {
        free(b.all[w].ms);
        free(b.round[w]);
    }
    free(b.adds_p50);
    free(b.adds_p99);
    config_release(&bench_relay_table, &s);
    return code;
}
