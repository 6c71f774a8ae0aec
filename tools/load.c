/* lepton load: a running cluster under load: the requests of `lepton sim`, or of a trace, sent in real time
 * to a coordinator, and the same report of what came back. One thread, one connection: it is one tenant.
 * Every token must come once and in order (I2), a lost coordinator included: the requests under way are then
 * asked for again behind what they have had. */
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
/* After a loss: of a request that has no place yet, and between two looks at Ctrl-C. */
#define RESEND_US 200000
#define LOOK_MS   500

struct load_settings {
    struct client_settings client;
    struct demand demand;
    char *model, *svg, *csv;
    int64_t retry_ms;
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
    {.name = "retry_ms",
     .kind = CONFIG_INT,
     .offset = offsetof(struct load_settings, retry_ms),
     .max = 86400000,
     .standard = "30000",
     .value = "N",
     .help = "Look so long for a coordinator that was lost; the requests then go on. 0: do not."},
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

/* What has come of one choice. */
struct heard {
    uint32_t *ids;
    uint32_t count, capacity;
    bool over;
};

/* A request under way; its name on the wire ends with its number. */
struct flight {
    bool over;
    bool accepted, resumed;
    uint32_t left;                   /* choices that have not ended */
    uint64_t seed, numeric, context; /* the last two as its first token said */
    uint64_t resend_us;              /* when to ask again; 0 = no need */
    struct heard *heard;             /* [item.choices], until it is over */
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
    char name[32]; /* begins the names of our requests */
    uint64_t retry_until_us, resends, resumed;
};

/* Asks for a request, or for what is left of it. */
static int ask(struct load *l, uint64_t number, struct err *err)
{
    struct flight *f = &l->flights[number];
    struct wire_message m;
    struct wire_delivered had[WIRE_MAX_CHOICES];
    char name[WIRE_MAX_ID + 1];
    uint64_t now_us = clock_now_us(), spent_us = f->sent_us ? now_us - f->sent_us : 0;
    workload_prompt(&f->item, &l->prompt);
    snprintf(name, sizeof(name), "%s%llu", l->name, (unsigned long long)number);
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string(name);
    m.generate.idempotent = true;
    m.generate.model = wire_string(l->s->model);
    m.generate.prompt = (struct wire_str){(const char *)l->prompt.data, (uint32_t)l->prompt.size};
    m.generate.max_tokens = f->item.output_tokens;
    m.generate.timeout_ms = f->item.deadline_us > spent_us ? (f->item.deadline_us - spent_us) / 1000 : 1;
    m.generate.class = wire_string(sim_class_names[f->item.class]);
    m.generate.sampling.ignore_eos = true;
    m.generate.sampling.n = f->item.choices;
    m.generate.sampling.has_seed = f->accepted;
    m.generate.sampling.seed = f->seed;
    m.generate.numeric = f->numeric;
    m.generate.context = f->context;
    m.generate.delivered = had;
    for (uint32_t c = 0; f->accepted && c < f->item.choices; c++)
        if (f->heard[c].count || f->heard[c].over)
            had[m.generate.delivered_count++] = (struct wire_delivered){.choice = c,
                                                                        .ended = f->heard[c].over,
                                                                        .ids = f->heard[c].ids,
                                                                        .id_count = f->heard[c].count};
    if (!f->sent_us)
        f->sent_us = now_us;
    l->resends -= f->resend_us != 0;
    f->resend_us = 0;
    return client_send(l->client, &m, err);
}

static int send_request(struct load *l, struct err *err)
{
    if (l->count == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 1024;
        l->flights = xrealloc(l->flights, l->capacity * sizeof(*l->flights));
    }
    struct flight *f = &l->flights[l->count];
    *f = (struct flight){0};
    workload_take(l->w, &f->item);
    f->left = f->item.choices;
    f->heard = xcalloc(f->item.choices, sizeof(*f->heard));
    l->open++;
    return ask(l, l->count++, err);
}

static void forget_heard(struct flight *f)
{
    for (uint32_t c = 0; f->heard && c < f->item.choices; c++)
        free(f->heard[c].ids);
    free(f->heard);
    f->heard = NULL;
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
    l->resends -= f->resend_us != 0;
    l->resumed += f->resumed;
    forget_heard(f);
}

static struct flight *flight_of(struct load *l, struct wire_str request)
{
    char name[WIRE_MAX_ID + 1];
    unsigned long long number;
    size_t prefix = strlen(l->name);
    snprintf(name, sizeof(name), "%.*s", (int)request.size, request.data ? request.data : "");
    if (strncmp(name, l->name, prefix) != 0 || sscanf(name + prefix, "%llu", &number) != 1 ||
        number >= l->count || l->flights[number].over)
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

static int take_token(struct load *l, struct flight *f, const struct wire_token *t, struct err *err)
{
    struct heard *h = t->choice < f->item.choices ? &f->heard[t->choice] : NULL;
    if (!h || h->over || t->index != h->count)
        return err_set_code(err, 500, "token %llu of choice %llu came where %u was due",
                            (unsigned long long)t->index, (unsigned long long)t->choice, h ? h->count : 0);
    if (h->count == h->capacity) {
        h->capacity = h->capacity ? 2 * h->capacity : 16;
        h->ids = xrealloc(h->ids, h->capacity * sizeof(*h->ids));
    }
    h->ids[h->count++] = (uint32_t)t->id;
    if (!f->first_us)
        f->first_us = l->last_us;
    if (t->numeric && !f->numeric) {
        f->numeric = t->numeric;
        f->context = t->context;
    }
    if (l->s->stamps)
        take_stamp(l, t->id);
    return 0;
}

static int take_done(struct load *l, struct flight *f, const struct wire_done *d, struct err *err)
{
    if (d->choice >= f->item.choices || f->heard[d->choice].over)
        return err_set_code(err, 500, "a second end of choice %llu came", (unsigned long long)d->choice);
    f->heard[d->choice].over = true;
    f->produced += d->completion_tokens;
    if (d->choice == 0)
        f->cached = d->cached_tokens;
    if (--f->left > 0)
        return 0;
    f->item.output_tokens = (uint32_t)(f->produced / f->item.choices);
    record(l, f, 0);
    workload_answered(l->w, &f->item, l->last_us - l->started_us);
    return 0;
}

static int take_error(struct load *l, const struct wire_error *e, struct err *err)
{
    struct flight *f = flight_of(l, e->request);
    uint64_t again_us = e->retry_after_ms * 1000 > RESEND_US ? e->retry_after_ms * 1000 : RESEND_US;
    if (!f)
        return err_set_code(err, (int)e->code, "%.*s", (int)e->message.size,
                            e->message.data ? e->message.data : "");
    if (f->resumed && client_worth_trying(e->code) && l->last_us + again_us < l->retry_until_us) {
        l->resends += f->resend_us == 0;
        f->resend_us = l->last_us + again_us;
    } else {
        record(l, f, (int)e->code);
    }
    return 0;
}

static int take_message(struct load *l, const struct wire_message *m, struct err *err)
{
    struct flight *f;
    l->last_us = clock_now_us();
    switch (m->type) {
    case WIRE_ACCEPTED:
        f = flight_of(l, m->accepted.request);
        if (f) {
            f->accepted = true;
            f->seed = m->accepted.seed;
        }
        return 0;
    case WIRE_TOKEN:
        f = flight_of(l, m->token.request);
        return f ? take_token(l, f, &m->token, err) : 0;
    case WIRE_DONE:
        f = flight_of(l, m->done.request);
        return f ? take_done(l, f, &m->done, err) : 0;
    case WIRE_ERROR:
        return take_error(l, &m->error, err);
    default:
        return 0;
    }
}

/* The coordinator is lost: finds it, and asks again for all that is under way. */
static int resume(struct load *l, struct err *err)
{
    if (l->s->retry_ms == 0 || err->code != 503)
        return -1;
    uint64_t end_ms = clock_now_ms() + (uint64_t)l->s->retry_ms;
    for (uint64_t i = 0; i < l->count; i++)
        l->flights[i].resumed |= !l->flights[i].over;
    for (;;) {
        uint64_t now_ms = clock_now_ms(), look_ms = now_ms + LOOK_MS;
        if (interrupted())
            return 0;
        if (now_ms >= end_ms)
            return -1;
        if (client_find_again(l->client, look_ms < end_ms ? look_ms : end_ms, err) != 0) {
            if (err->code != 503)
                return -1;
            continue;
        }
        l->last_us = clock_now_us();
        l->retry_until_us = l->last_us + (uint64_t)l->s->retry_ms * 1000;
        int code = 0;
        for (uint64_t i = 0; i < l->count && code == 0; i++)
            if (!l->flights[i].over)
                code = ask(l, i, err);
        if (code == 0)
            return 0;
    }
}

static int ask_due(struct load *l, uint64_t now_us, struct err *err)
{
    for (uint64_t i = 0; l->resends > 0 && i < l->count; i++)
        if (l->flights[i].resend_us && l->flights[i].resend_us <= now_us && ask(l, i, err))
            return -1;
    return 0;
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
        if (ask_due(l, now_us, err) && resume(l, err))
            return -1;
        if (more && l->started_us + due_us <= now_us) {
            if (send_request(l, err) && resume(l, err))
                return -1;
            continue;
        }
        uint64_t wait_ms = more ? (l->started_us + due_us - now_us) / 1000 : 1000;
        struct wire_message m;
        uint64_t most_ms = l->resends ? RESEND_US / 1000 : 1000;
        int got = client_receive(l->client, &m, wait_ms < most_ms ? wait_ms : most_ms, err);
        if (got < 0 && resume(l, err))
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
    if (l->resumed)
        fprintf(stderr, "lepton load: %llu requests were resumed after the coordinator was lost\n",
                (unsigned long long)l->resumed);
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
    snprintf(l.name, sizeof(l.name), "load-%016llx-", (unsigned long long)clock_entropy());
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
    for (uint64_t i = 0; i < l.count; i++)
        forget_heard(&l.flights[i]);
    free(l.flights);
    buffer_release(&l.prompt);
    free(l.ways_ms);
    config_release(&table, &s);
    return code;
}
