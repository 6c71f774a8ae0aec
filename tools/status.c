/* lepton status: what a running coordinator does: totals, and a line for each group with its stages. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/client.h"
#include "tools/command.h"
#include "tools/settings.h"

struct status_settings {
    struct client_settings client;
    bool json;
};

static const struct config_option options[] = {
    CLIENT_OPTIONS(struct status_settings, client),
    {.name = "json",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct status_settings, json),
     .help = "One JSON object instead of a table."},
};

static const struct config_table table = {
    .program = "lepton status",
    .about = "Shows the groups, requests and queue of a running coordinator.",
    .after = "exit codes:\n  0 done   1 failed   2 wrong usage   3 the coordinator could not be reached\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct status_settings),
};

static void set_count(json_t *o, const char *name, uint64_t value)
{
    json_object_set_new(o, name, json_integer((json_int_t)value));
}

static void set_text(json_t *o, const char *name, struct wire_str s)
{
    json_object_set_new(o, name, json_stringn(s.size ? s.data : "", s.size));
}

/* Of the time in which the group had work, since it began, a stage's or that of all. */
static double share(uint64_t part_us, uint64_t busy_us, uint64_t wait_us)
{
    double all = (double)busy_us + (double)wait_us;
    return all > 0 ? (double)part_us / all : 0;
}

static json_t *stages_json(const struct wire_group_status *g)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < g->stage_count; i++) {
        const struct wire_stage *stage = &g->stages[i];
        json_t *o = json_object();
        set_count(o, "first_layer", stage->first_layer);
        set_count(o, "last_layer", stage->last_layer);
        set_count(o, "tensor", stage->tensor);
        set_count(o, "pid", stage->pid);
        set_text(o, "host", stage->host);
        set_count(o, "busy_us", stage->busy_us);
        set_count(o, "wait_us", stage->wait_us);
        set_count(o, "bubble_us", stage->bubble_us);
        set_count(o, "processor_us", stage->processor_us);
        json_object_set_new(o, "bubble_ratio",
                            json_real(share(stage->bubble_us, stage->busy_us, stage->wait_us)));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *group_json(const struct wire_group_status *g)
{
    json_t *o = json_object();
    set_text(o, "group", g->group);
    set_text(o, "state", g->state);
    set_count(o, "epoch", g->epoch);
    set_text(o, "model", g->model);
    set_text(o, "weights", g->weights);
    set_text(o, "kernels", g->kernels);
    set_text(o, "kv_type", g->kv_type);
    set_count(o, "tensor", g->tensor);
    set_count(o, "max_sequences", g->max_sequences);
    set_count(o, "context", g->context);
    set_count(o, "pages", g->pages);
    set_count(o, "pages_used", g->pages_used);
    set_count(o, "pages_cached", g->pages_cached);
    set_count(o, "prefix_queries", g->prefix_queries);
    set_count(o, "prefix_hits", g->prefix_hits);
    set_count(o, "preemptions", g->preemptions);
    set_count(o, "drafted_tokens", g->drafted_tokens);
    set_count(o, "accepted_tokens", g->accepted_tokens);
    json_object_set_new(o, "bubble_ratio",
                        json_real(share(g->stage_bubble_us, g->stage_busy_us, g->stage_wait_us)));
    set_count(o, "assigned", g->assigned);
    set_count(o, "running", g->running);
    set_count(o, "waiting", g->waiting);
    set_count(o, "steps", g->steps);
    set_count(o, "tokens_generated", g->tokens_generated);
    set_count(o, "heartbeat_age_ms", g->heartbeat_age_ms);
    set_count(o, "round_trip_us", g->round_trip_us);
    set_count(o, "load_ms", g->load_ms);
    json_object_set_new(o, "stages", stages_json(g));
    return o;
}

static json_t *settings_json(const struct wire_status_reply *s)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < s->setting_count; i++) {
        const struct wire_setting *t = &s->settings[i];
        json_t *o = json_object();
        set_text(o, "name", t->name);
        set_count(o, "value", t->value);
        set_count(o, "low", t->low);
        set_count(o, "high", t->high);
        json_object_set_new(o, "automatic", json_boolean(t->automatic));
        json_array_append_new(list, o);
    }
    return list;
}

static void print_json(const struct wire_status_reply *s)
{
    json_t *o = json_object(), *groups = json_array();
    set_text(o, "version", s->version);
    set_count(o, "uptime_ms", s->uptime_ms);
    json_object_set_new(o, "draining", json_boolean(s->draining));
    set_text(o, "processor", s->processor);
    set_count(o, "queued", s->queued);
    set_count(o, "queue_limit", s->queue_limit);
    set_count(o, "live", s->live);
    set_count(o, "accepted_total", s->accepted_total);
    set_count(o, "completed_total", s->completed_total);
    set_count(o, "failed_total", s->failed_total);
    set_count(o, "cancelled_total", s->cancelled_total);
    set_count(o, "rejected_total", s->rejected_total);
    set_count(o, "bad_frames_total", s->bad_frames_total);
    set_count(o, "refused_peers_total", s->refused_peers_total);
    json_object_set_new(o, "settings", settings_json(s));
    for (uint32_t i = 0; i < s->group_count; i++)
        json_array_append_new(groups, group_json(&s->groups[i]));
    json_object_set_new(o, "groups", groups);
    if (json_dumpf(o, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER) != 0)
        die("json_dumpf failed");
    printf("\n");
    json_decref(o);
}

#define COUNT(n) (unsigned long long)(n)
#define WORDS(s) (int)(s).size, (s).data
/* The counts come from one heartbeat, the capacity from the hello: a peer's word, so not trusted to add up.
 */
static uint64_t free_pages(const struct wire_group_status *g)
{
    uint64_t taken = g->pages_used + g->pages_cached;
    return taken < g->pages ? g->pages - taken : 0;
}

static void print_stage(uint32_t number, const struct wire_stage *stage)
{
    printf("  stage %-3u layers %llu-%llu on %.*s, pid %llu", number, COUNT(stage->first_layer),
           COUNT(stage->last_layer), WORDS(stage->host), COUNT(stage->pid));
    if (stage->tensor > 1)
        printf(", %llu tensor slots", COUNT(stage->tensor));
    if (stage->busy_us)
        printf(", busy %.1f s, waits %.1f %%", (double)stage->busy_us * 1e-6,
               100 * share(stage->wait_us, stage->busy_us, stage->wait_us));
    printf("\n");
}

static void print_table(const struct wire_status_reply *s, const char *endpoint)
{
    printf("coordinator %s, version %.*s, up %llu s%s\n", endpoint, WORDS(s->version),
           COUNT(s->uptime_ms / 1000), s->draining ? ", draining" : "");
    printf("requests    %llu live, %llu of at most %llu waiting; accepted %llu, completed %llu, failed %llu, "
           "cancelled %llu, rejected %llu\n",
           COUNT(s->live), COUNT(s->queued), COUNT(s->queue_limit), COUNT(s->accepted_total),
           COUNT(s->completed_total), COUNT(s->failed_total), COUNT(s->cancelled_total),
           COUNT(s->rejected_total));
    printf("refused     %llu bad frames, %llu connections\n", COUNT(s->bad_frames_total),
           COUNT(s->refused_peers_total));
    if (s->processor.size)
        printf("processor   %.*s\n", WORDS(s->processor));
    settings_print(stdout, s);
    if (s->group_count == 0) {
        printf("no groups\n");
        return;
    }
    printf("\n%-16s %-9s %7s %9s %11s %10s %7s  %s\n", "GROUP", "STATE", "EPOCH", "ASSIGNED", "PAGES",
           "TOKENS", "HEARD", "MODEL");
    for (uint32_t i = 0; i < s->group_count; i++) {
        const struct wire_group_status *g = &s->groups[i];
        printf("%-16.*s %-9.*s %7llu %4llu/%-4llu %5llu/%-5llu %10llu %5llums  %.*s\n", WORDS(g->group),
               WORDS(g->state), COUNT(g->epoch), COUNT(g->assigned), COUNT(g->max_sequences),
               COUNT(g->pages_used), COUNT(g->pages), COUNT(g->tokens_generated), COUNT(g->heartbeat_age_ms),
               WORDS(g->model));
        printf("  pages %llu used, %llu cached, %llu free; %llu of %llu prompt tokens reused; %llu "
               "preemptions; %llu of %llu drafted tokens accepted\n",
               COUNT(g->pages_used), COUNT(g->pages_cached), COUNT(free_pages(g)), COUNT(g->prefix_hits),
               COUNT(g->prefix_queries), COUNT(g->preemptions), COUNT(g->accepted_tokens),
               COUNT(g->drafted_tokens));
        if (g->round_trip_us > 0)
            printf("  link %.1f ms there and back\n", (double)g->round_trip_us / 1000);
        if (g->stage_count > 1)
            printf("  bubbles %.1f %% of the stages' time\n",
                   100 * share(g->stage_bubble_us, g->stage_busy_us, g->stage_wait_us));
        for (uint32_t k = 0; k < g->stage_count; k++)
            print_stage(k, &g->stages[k]);
    }
}

int command_status(int argc, char **argv)
{
    struct status_settings s;
    struct client *client = NULL;
    struct wire_message reply = {.memory = NULL};
    struct err err = {0};
    int code = EXIT_OK;
    config_main(&table, &s, argc, argv, NULL, 0);
    if (client_open(&client, &s.client, 5000, &err) != 0 ||
        client_status(client, true, 5000, &reply, &err) != 0) {
        fprintf(stderr, "lepton status: %s\n", err.message);
        code = err.code ? EXIT_UNREACHABLE : EXIT_FAILED;
        goto out;
    }
    if (s.json)
        print_json(&reply.status_reply);
    else
        print_table(&reply.status_reply, client_endpoint(client));
    wire_release(&reply);
out:
    client_close(&client);
    config_release(&table, &s);
    return code;
}
