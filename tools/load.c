/* lepton load: a running cluster under load: the requests of `lepton sim`, or of a trace, sent in real time
 * to a coordinator, and the same report of what came back. One thread, one connection: it is one tenant. */
#include "tools/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "tools/client.h"
#include "tools/interrupt.h"
#include "tools/sim/demand.h"
#include "tools/sim/report.h"
#include "worker/mock/mock.h"

#define CONNECT_MS 10000
/* Answers that are still missing when so long nothing came are given up. */
#define SILENCE_MS 60000

struct load_settings {
    struct client_settings client;
    struct demand demand;
    char *model, *svg, *csv;
    bool json, stamps;
};

static const struct config_option options[] = {
    CLIENT_OPTIONS(struct load_settings, client),
    {.name = "model",
     .letter = 'm',
     .kind = CONFIG_STRING,
     .offset = offsetof(struct load_settings, model),
     .standard = "",
     .value = "NAME",
     .help = "The model that is asked for; not needed where one is served."},
    DEMAND_OPTIONS(struct load_settings, demand),
    {.name = "json",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct load_settings, json),
     .help = "Print one JSON object."},
    {.name = "stamps",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct load_settings, stamps),
     .help =
         "Measure how long each token was under way, from mock groups on this machine with stamps = true."},
    {.name = "svg",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct load_settings, svg),
     .value = "FILE",
     .help = "Draw the requests and the latency over time."},
    {.name = "csv",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct load_settings, csv),
     .value = "FILE",
     .help = "Write every request as a line of CSV."},
};

static const struct config_table table = {
    .program = "lepton load",
    .about = "Puts a running cluster under load and reports latencies and throughput as `lepton sim` does. "
             "Prompts are "
             "letters of four bytes a token; an answer's length is its max_tokens.",
    .after = "examples:\n"
             "  lepton load --rate 5 --requests 200 --prompt-tokens 100 --output-tokens 50\n"
             "  lepton load --trace requests.jsonl --json\n"
             "exit codes:\n  0 done   1 failed   2 wrong usage   3 the coordinator could not be reached or "
             "was lost   130 "
             "ended by Ctrl-C\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct load_settings),
};

/* A request under way; its name on the wire is its number. */
struct flight {
    bool over;
    uint32_t left; /* choices that have not ended */
    uint64_t produced;
    struct workload_item item;
    uint64_t sent_us, first_us, cached;
};

struct load {
    const struct load_settings *s;
    struct client *client;
    struct workload *w;
    struct sim_result result;
    struct flight *flights;
    uint64_t count, capacity, open;
    uint64_t started_us, next_sample_us, last_us; /* last_us: when something came */
    struct buffer prompt;
    float *ways_ms; /* with --stamps: of each token */
    uint64_t way_count, way_capacity;
};

static int send_request(struct load *l, struct err *err)
{
    if (l->count == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 1024;
        l->flights = xrealloc(l->flights, l->capacity * sizeof(*l->flights));
    }
    struct flight *f = &l->flights[l->count];
    struct wire_message m;
    char name[32];
    *f = (struct flight){0};
    workload_take(l->w, &f->item);
    f->left = f->item.choices;
    workload_prompt(&f->item, &l->prompt);
    snprintf(name, sizeof(name), "load-%llu", (unsigned long long)l->count);
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string(name);
    m.generate.model = wire_string(l->s->model);
    m.generate.prompt = (struct wire_str){(const char *)l->prompt.data, (uint32_t)l->prompt.size};
    m.generate.max_tokens = f->item.output_tokens;
    m.generate.timeout_ms = f->item.deadline_us / 1000;
    m.generate.class = wire_string(sim_class_names[f->item.class]);
    m.generate.sampling.ignore_eos = true;
    m.generate.sampling.n = f->item.choices;
    l->count++;
    l->open++;
    f->sent_us = clock_now_us();
    return client_send(l->client, &m, err);
}

static void record(struct load *l, struct flight *f, int code)
{
    struct sim_result *r = &l->result;
    uint64_t now_us = clock_now_us();
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 1024;
        r->requests = xrealloc(r->requests, r->capacity * sizeof(*r->requests));
    }
    /* From when it was to be sent: a late sender must not flatter the cluster. */
    uint64_t due_us = l->started_us + f->item.arrival_us, e2e_us = now_us > due_us ? now_us - due_us : 0;
    r->requests[r->count++] =
        (struct sim_request){.arrival_s = (float)((double)f->item.arrival_us / 1e6),
                             .ttft_ms = f->first_us ? (float)((double)(f->first_us - due_us) / 1e3) : -1,
                             .e2e_ms = (float)((double)e2e_us / 1e3),
                             .prompt_tokens = f->item.prompt_tokens,
                             .output_tokens = code ? 0 : f->item.choices * f->item.output_tokens,
                             .cached_tokens = (uint32_t)f->cached,
                             .code = (int16_t)code,
                             .class = (uint8_t)f->item.class,
                             .accepted = true,
                             .in_time = code == 0 && e2e_us <= f->item.deadline_us};
    f->over = true;
    l->open--;
}

static struct flight *flight_of(struct load *l, struct wire_str request)
{
    char name[WIRE_MAX_ID + 1];
    unsigned long long number;
    snprintf(name, sizeof(name), "%.*s", (int)request.size, request.data ? request.data : "");
    if (sscanf(name, "load-%llu", &number) != 1 || number >= l->count || l->flights[number].over)
        return NULL;
    return &l->flights[number];
}

/* A mock group's token says when it was made (worker/mock/mock.h). */
static void take_stamp(struct load *l, uint64_t id)
{
    if (id < MOCK_STAMP || id >= MOCK_STAMP + MOCK_STAMPS)
        return;
    if (l->way_count == l->way_capacity) {
        l->way_capacity = l->way_capacity ? 2 * l->way_capacity : 4096;
        l->ways_ms = xrealloc(l->ways_ms, l->way_capacity * sizeof(*l->ways_ms));
    }
    uint64_t ago = (l->last_us / MOCK_STAMP_US - (id - MOCK_STAMP)) % MOCK_STAMPS;
    l->ways_ms[l->way_count++] = (float)(ago * MOCK_STAMP_US) / 1000;
}

static int take_message(struct load *l, const struct wire_message *m, struct err *err)
{
    struct flight *f = NULL;
    l->last_us = clock_now_us();
    switch (m->type) {
    case WIRE_TOKEN:
        f = flight_of(l, m->token.request);
        if (f && !f->first_us)
            f->first_us = l->last_us;
        if (f && l->s->stamps)
            take_stamp(l, m->token.id);
        return 0;
    case WIRE_DONE:
        f = flight_of(l, m->done.request);
        if (!f)
            return 0;
        f->produced += m->done.completion_tokens;
        if (m->done.choice == 0)
            f->cached = m->done.cached_tokens;
        if (--f->left > 0)
            return 0;
        f->item.output_tokens = (uint32_t)(f->produced / f->item.choices);
        record(l, f, 0);
        workload_answered(l->w, &f->item, l->last_us - l->started_us);
        return 0;
    case WIRE_ERROR:
        f = flight_of(l, m->error.request);
        if (f)
            record(l, f, (int)m->error.code);
        else
            return err_set_code(err, (int)m->error.code, "%.*s", (int)m->error.message.size,
                                m->error.message.data ? m->error.message.data : "");
        return 0;
    default:
        return 0;
    }
}

static void sample(struct load *l, uint64_t now_us)
{
    struct sim_result *r = &l->result;
    if (now_us < l->next_sample_us)
        return;
    if (r->sample_count == r->sample_capacity) {
        r->sample_capacity = r->sample_capacity ? 2 * r->sample_capacity : 1024;
        r->samples = xrealloc(r->samples, r->sample_capacity * sizeof(*r->samples));
    }
    r->samples[r->sample_count++] = (struct sim_sample){
        .at_s = (float)((double)(now_us - l->started_us) / 1e6), .running = (uint32_t)l->open};
    l->next_sample_us = now_us + 100000;
}

/* Sends when it is time, receives in between, until everything has its outcome. */
static int drive(struct load *l, struct err *err)
{
    uint64_t until_us = l->s->demand.duration_s > 0 ? (uint64_t)(l->s->demand.duration_s * 1e6) : UINT64_MAX;
    l->started_us = l->last_us = clock_now_us();
    while (!interrupted()) {
        uint64_t now_us = clock_now_us(), due_us = workload_due_us(l->w);
        bool more = due_us != UINT64_MAX && due_us <= until_us;
        if (!more && l->open == 0)
            return 0;
        if (more && l->started_us + due_us <= now_us) {
            if (send_request(l, err))
                return -1;
            continue;
        }
        uint64_t wait_ms = more ? (l->started_us + due_us - now_us) / 1000 : 1000;
        struct wire_message m;
        int got = client_receive(l->client, &m, wait_ms < 1000 ? wait_ms : 1000, err);
        if (got < 0)
            return -1;
        if (got == 1) {
            int code = take_message(l, &m, err);
            wire_release(&m);
            if (code)
                return -1;
        }
        sample(l, now_us);
        if (!more && now_us > l->last_us + SILENCE_MS * 1000ull)
            return err_set_code(err, 503, "nothing came for %d s; %llu answers are missing",
                                SILENCE_MS / 1000, (unsigned long long)l->open);
    }
    return 0;
}

static void report(struct load *l)
{
    struct sim_report p;
    l->result.end_s = l->result.wall_s = (double)(clock_now_us() - l->started_us) / 1e6;
    sim_report_make(&p, &l->result);
    struct sim_percentiles ways = sim_percentiles_of(l->ways_ms, l->way_count);
    if (l->s->stamps)
        fprintf(l->s->json ? stderr : stdout,
                "%llu tokens under way for %.3f ms (median), %.3f (p99), %.3f at most\n",
                (unsigned long long)l->way_count, ways.p50, ways.p99, ways.max);
    if (l->s->json) {
        sim_report_json(stdout, &p, &l->result);
        return;
    }
    sim_report_table(stdout, &p);
    printf("\nin %.1f s: %.2f requests/s, %.1f output tokens/s, %.1f of them of requests in time; %.1f %% of "
           "the prompt "
           "tokens cached\n",
           l->result.wall_s, p.requests_per_s, p.tokens_per_s, p.goodput_per_s, 100 * p.cache_hit);
}

int command_load(int argc, char **argv)
{
    struct load_settings s;
    struct load l = {.s = &s};
    struct err err = {0};
    int code = EXIT_FAILED;
    config_main(&table, &s, argc, argv, NULL, 0);
    interrupt_watch();
    if (demand_open(&l.w, &s.demand, 1, 1u << 18, &err)) {
        fprintf(stderr, "lepton load: %s\n", err.message);
    } else if (client_open(&l.client, &s.client, CONNECT_MS, &err) || drive(&l, &err)) {
        fprintf(stderr, "lepton load: %s\n", err.message);
        code = err.code == 503 || err.code == 401 ? EXIT_UNREACHABLE : EXIT_FAILED;
    } else {
        code = interrupted() ? EXIT_INTERRUPTED : EXIT_OK;
        report(&l);
        if ((s.svg && sim_report_svg(s.svg, &l.result, &err)) ||
            (s.csv && sim_report_csv(s.csv, &l.result, &err))) {
            fprintf(stderr, "lepton load: %s\n", err.message);
            code = EXIT_FAILED;
        }
    }
    client_close(&l.client);
    workload_free(&l.w);
    sim_result_release(&l.result);
    free(l.flights);
    buffer_release(&l.prompt);
    free(l.ways_ms);
    config_release(&table, &s);
    return code;
}
