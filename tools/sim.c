/* lepton sim: the real scheduler and balancer under a simulated cluster: options, one run or many small ones,
 * and the report. */
#include "tools/command.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/sim/demand.h"
#include "tools/sim/report.h"
#include "tools/sim/speed.h"

struct sim_settings {
    struct demand demand;
    int64_t groups, queue, queue_ms, prefix_places, max_sequences, kv_tokens, check;
    double load, slow, slow_factor, mtbf_s, repair_s;
    char *policy, *speed, *svg, *csv, *prefix_weight, *prefix_belief;
    bool json, measured, announced;
};

#define INT(member, low, high, preset, value_, text)                                                      \
    {                                                                                                     \
        .name = #member, .kind = CONFIG_INT, .offset = offsetof(struct sim_settings, member), .min = low, \
        .max = high, .standard = preset, .value = value_, .help = text                                    \
    }
#define REAL(member, low, high, preset, value_, text)                                                       \
    {                                                                                                       \
        .name = #member, .kind = CONFIG_FLOAT, .offset = offsetof(struct sim_settings, member), .min = low, \
        .max = high, .standard = preset, .value = value_, .help = text                                      \
    }
#define TEXT(member, preset, value_, choices_, text)                                             \
    {                                                                                            \
        .name = #member, .kind = CONFIG_STRING, .offset = offsetof(struct sim_settings, member), \
        .standard = preset, .value = value_, .choices = choices_, .help = text                   \
    }
#define FLAG(member, text)                                                                                  \
    {                                                                                                       \
        .name = #member, .kind = CONFIG_BOOL, .offset = offsetof(struct sim_settings, member), .help = text \
    }

static const struct config_option options[] = {
    INT(groups, 1, 100000, "8", "N", "Worker groups."),
    DEMAND_OPTIONS(struct sim_settings, demand),
    REAL(load, 0.001, 1000, "0.8", "X",
         "Without --rate: arrivals as a multiple of what the groups can serve, about."),
    TEXT(policy, "prefix", "NAME", "prefix|least-load|two-choices|round-robin", "How the balancer chooses."),
    TEXT(prefix_weight, "auto", "PERCENT", NULL, "How much a cached prefix counts: 0 to 10000, or auto."),
    TEXT(prefix_belief, "auto", "PERCENT", NULL, "How far the prefix index is believed: 5 to 100, or auto."),
    INT(prefix_places, 0, 1 << 28, "262144", "N", "Places of the prefix index."),
    INT(queue, 1, 1 << 22, "16384", "N", "Most requests that wait."),
    INT(queue_ms, 0, 1e9, "0", "MS", "Refuse what would wait longer; 0: never."),
    TEXT(speed, NULL, "FILE", NULL,
         "How fast a group is: lepton bench engine --json, or numbers (docs/operations.md)."),
    INT(max_sequences, 0, 65536, "0", "N", "Sequences of a group at once; 0: as --speed says, else 32."),
    INT(kv_tokens, 0, 1e12, "0", "N", "KV cache of a group, in tokens; 0: as --speed says, else 200000."),
    FLAG(measured, "Groups do not say how fast they are: the scheduler learns it."),
    FLAG(announced, "max_tokens of a request is the length of its answer, as lepton load sends it."),
    REAL(slow, 0, 1, "0", "SHARE", "Share of the groups that are slow."),
    REAL(slow_factor, 1, 1000, "2", "X", "How many times slower they are."),
    REAL(mtbf_s, 0, 1e9, "0", "S", "Mean time between failures of a group; 0: none fails."),
    REAL(repair_s, 0.001, 1e6, "5", "S", "Mean time until a failed group is back."),
    FLAG(json, "Print one JSON object."),
    TEXT(svg, NULL, "FILE", NULL, "Draw the queue and the latency over time."),
    TEXT(csv, NULL, "FILE", NULL, "Write every request as a line of CSV."),
    INT(check, 0, 1e9, "0", "N",
        "Instead: N random small clusters, seeds S, S + 1, ..., with every invariant checked after every "
        "event."),
};

static const struct config_table table = {
    .program = "lepton sim",
    .about =
        "Simulates a cluster: the coordinator's own scheduler and balancer, over groups that take time as a "
        "measured group does, and clients that follow a seed or a trace.",
    .after = "examples:\n"
             "  lepton sim --groups 100 --turns 6 --requests 50000 --policy round-robin\n"
             "  lepton sim --groups 4 --load 3 --realtime 0.1 --interactive 0.5 --batch 0.4 --svg load.svg\n"
             "  lepton sim --check 1000 --seed 7\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct sim_settings),
};

/* Requests/s that a group serves when it is full: prefills take their time, decoding is shared. */
static double group_rate(const struct sim_settings *s, const struct engine_speed *v)
{
    double conversation = s->demand.turns > 1 ? (s->demand.turns - 1) / 2.0 : 0;
    double prompt = s->demand.system_tokens + s->demand.prompt_tokens +
                    conversation * (s->demand.prompt_tokens + s->demand.output_tokens);
    double choices = (1 + (double)s->demand.choices) / 2, output = choices * (double)s->demand.output_tokens;
    double sequences = v->max_sequences, kv = choices * (double)v->kv_tokens / (prompt + output);
    if (kv >= 1 && kv < sequences)
        sequences = kv;
    double decode_us = output * (v->base_us / sequences + v->decode_us);
    double arithmetic_us = output * v->prefill_us;
    double fresh = v->cache_places && s->demand.turns > 1 ? s->demand.prompt_tokens : prompt;
    return 1e6 / (fresh * v->prefill_us + (decode_us > arithmetic_us ? decode_us : arithmetic_us));
}

/* "auto", or a number within the bounds. */
static int read_setting(const char *name, const char *text, uint64_t low, uint64_t high, uint64_t standard,
                        struct scheduler_setting *out, struct err *err)
{
    if (scheduler_setting_read(name, text, &out->automatic, &out->value, err))
        return -1;
    if (out->automatic)
        out->value = standard;
    else if (out->value < low || out->value > high)
        return err_set(err, "--%s: %llu, expected %llu to %llu, or auto", name,
                       (unsigned long long)out->value, (unsigned long long)low, (unsigned long long)high);
    return 0;
}

static int fill_simulation(struct sim_options *o, const struct sim_settings *s, const struct engine_speed *v,
                           struct err *err)
{
    struct scheduler_setting weight, belief;
    if (read_setting("prefix-weight", s->prefix_weight, 0, 10000, SCHEDULER_PREFIX_WEIGHT, &weight, err) ||
        read_setting("prefix-belief", s->prefix_belief, 5, 100, 0, &belief, err))
        return -1;
    *o = (struct sim_options){.groups = (uint32_t)s->groups,
                              .speed = *v,
                              .slow_share = s->slow,
                              .slow_factor = s->slow_factor,
                              .mtbf_s = s->mtbf_s,
                              .repair_s = s->repair_s,
                              .policy = balancer_policy_find(s->policy),
                              .prefix_weight = (uint32_t)weight.value,
                              .prefix_weight_auto = weight.automatic,
                              .prefix_belief = (uint32_t)belief.value,
                              .queue_requests = (uint32_t)s->queue,
                              .queue_ms = (uint64_t)s->queue_ms,
                              .tenants_remembered = (uint32_t)(4 * s->demand.tenants + 64),
                              .prefix_places = (uint32_t)s->prefix_places,
                              .announced = s->announced,
                              .tell_speeds = !s->measured,
                              .until_us = (uint64_t)(s->demand.duration_s * 1e6),
                              .seed = (uint64_t)s->demand.seed};
    return 0;
}

static int simulate(const struct sim_settings *s, struct err *err)
{
    struct engine_speed speed = engine_standard_speed;
    struct sim_options so;
    struct workload *w = NULL;
    if (s->speed && speed_read(&speed, s->speed, err))
        return -1;
    speed.max_sequences = s->max_sequences ? (uint32_t)s->max_sequences : speed.max_sequences;
    speed.kv_tokens = s->kv_tokens ? (uint64_t)s->kv_tokens : speed.kv_tokens;
    if (fill_simulation(&so, s, &speed, err))
        return -1;
    double fast = s->slow / s->slow_factor + (1 - s->slow);
    uint32_t longest = speed.kv_tokens < 1u << 24 ? (uint32_t)speed.kv_tokens / 2 + 4 : 1u << 23;
    if (demand_open(&w, &s->demand, s->load * group_rate(s, &speed) * (double)s->groups * fast, longest, err))
        return -1;
    struct sim_result result;
    struct sim_report report;
    simulation_run(&result, &so, w);
    sim_report_make(&report, &result);
    if (s->json)
        sim_report_json(stdout, &report, &result);
    else
        sim_report_print(stdout, &report, &result);
    int code = s->svg ? sim_report_svg(s->svg, &result, err) : 0;
    if (s->csv && code == 0)
        code = sim_report_csv(s->csv, &result, err);
    sim_result_release(&result);
    workload_free(&w);
    return code;
}

/* ---- many small clusters ---- */
static volatile uint64_t checked_seed;

/* A broken invariant aborts: the seed that replays it is the last thing said. */
static void say_seed(int signal)
{
    char text[96];
    int n = snprintf(text, sizeof(text), "lepton sim: replay with: lepton sim --check 1 --seed %llu\n",
                     (unsigned long long)checked_seed);
    ssize_t written = write(STDERR_FILENO, text, (size_t)n);
    (void)written;
    (void)signal;
}

static uint64_t part(uint64_t *seed, uint64_t low, uint64_t high)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return low + (*seed >> 33) % (high - low + 1);
}

static void random_cluster(uint64_t seed, struct sim_options *so, struct workload_options *wo)
{
    static const struct balancer_policy *const policies[] = {&balancer_prefix, &balancer_least_loaded,
                                                             &balancer_two_choices, &balancer_round_robin};
    uint64_t r = seed * 0x9e3779b97f4a7c15ull + 1;
    *so = (struct sim_options){.groups = (uint32_t)part(&r, 1, 5),
                               .policy = policies[part(&r, 0, 3)],
                               .prefix_weight = (uint32_t)part(&r, 0, 300),
                               .prefix_weight_auto = part(&r, 0, 1) != 0,
                               .queue_requests = (uint32_t)part(&r, 1, 12),
                               .queue_ms = part(&r, 0, 1) * part(&r, 10, 3000),
                               .tenants_remembered = (uint32_t)part(&r, 2, 20),
                               .prefix_places = (uint32_t)part(&r, 0, 1) * 64,
                               .tell_speeds = part(&r, 0, 1),
                               .mtbf_s = (double)(part(&r, 0, 1) * part(&r, 1, 10)),
                               .repair_s = 0.1 * (double)part(&r, 1, 20),
                               .check = true,
                               .seed = seed};
    so->speed = (struct engine_speed){.base_us = (double)part(&r, 0, 50000),
                                      .decode_us = (double)part(&r, 0, 2000),
                                      .prefill_us = (double)part(&r, 1, 500),
                                      .step_tokens = (uint32_t)part(&r, 1, 600),
                                      .max_sequences = (uint32_t)part(&r, 1, 5),
                                      .kv_tokens = part(&r, 100, 3000),
                                      .cache_places = (uint32_t)part(&r, 0, 40)};
    *wo = (struct workload_options){
        .requests = part(&r, 5, 60),
        .seed = seed,
        .rate = 0.5 * (double)part(&r, 1, 100),
        .arrivals = (enum workload_arrivals)part(&r, 0, 1),
        .tenants = (uint32_t)part(&r, 1, 5),
        .greedy = (double)part(&r, 1, 8),
        .class_share = {(double)part(&r, 0, 2), (double)part(&r, 1, 2), (double)part(&r, 0, 2)},
        .deadline_ms = {part(&r, 1, 5000), part(&r, 1, 20000), part(&r, 1, 60000)},
        .turns = (uint32_t)part(&r, 1, 4),
        .think_s = 0.1 * (double)part(&r, 0, 20),
        .prompt_tokens = (double)part(&r, 4, 400),
        .output_tokens = (double)part(&r, 1, 60),
        .system_tokens = (uint32_t)part(&r, 0, 200),
        .max_prompt_tokens = 2000,
        .choices = (uint32_t)(1 + part(&r, 0, 1) * part(&r, 0, 5))};
}

static int check(const struct sim_settings *s, struct err *err)
{
    uint64_t requests = 0, preempted = 0, moved = 0, failures = 0, outcomes[4] = {0};
    signal(SIGABRT, say_seed);
    for (int64_t i = 0; i < s->check; i++) {
        struct sim_options so;
        struct workload_options wo;
        struct sim_result r;
        checked_seed = (uint64_t)s->demand.seed + (uint64_t)i;
        random_cluster(checked_seed, &so, &wo);
        struct workload *w = workload_new(&wo);
        simulation_run(&r, &so, w);
        for (uint64_t k = 0; k < r.count; k++)
            outcomes[r.requests[k].code == 0     ? 0
                     : r.requests[k].code == 502 ? 1
                     : r.requests[k].code == 408 ? 2
                                                 : 3]++;
        requests += r.count;
        preempted += r.preempted;
        moved += r.moved;
        failures += r.failures;
        sim_result_release(&r);
        workload_free(&w);
    }
    printf(
        "%lld clusters, %llu requests: %llu complete, %llu lost with their group, %llu past their deadline, "
        "%llu refused; %llu preemptions, %llu failures, %llu requests moved; every invariant held\n",
        (long long)s->check, (unsigned long long)requests, (unsigned long long)outcomes[0],
        (unsigned long long)outcomes[1], (unsigned long long)outcomes[2], (unsigned long long)outcomes[3],
        (unsigned long long)preempted, (unsigned long long)failures, (unsigned long long)moved);
    (void)err;
    return 0;
}

int command_sim(int argc, char **argv)
{
    struct sim_settings s;
    struct err err;
    config_main(&table, &s, argc, argv, NULL, 0);
    int code = s.check ? check(&s, &err) : simulate(&s, &err);
    if (code)
        fprintf(stderr, "lepton sim: %s\n", err.message);
    config_release(&table, &s);
    return code ? EXIT_FAILED : EXIT_OK;
}
