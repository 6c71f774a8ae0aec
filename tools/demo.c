/* lepton demo: the whole of Lepton in a minute: a coordinator and groups of several stages on this machine,
 * the model inside this program, prompts that stream at once; then who served what, and how fast. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "tools/command.h"
#include "tools/local.h"
#include "tools/prompt.h"

struct demo_settings {
    int64_t groups, stages, tokens, seed;
    double temperature;
};

#define OPTION(member) offsetof(struct demo_settings, member)

static const struct config_option options[] = {
    {"groups", 'g', CONFIG_INT, OPTION(groups), 1, 16, "2", "G", NULL, "worker groups", false},
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 4, "2", "P", NULL, "pipeline stages of a group", false},
    {"tokens", 'n', CONFIG_INT, OPTION(tokens), 1, 400, "120", "N", NULL, "most tokens of an answer", false},
    {"temperature", 0, CONFIG_FLOAT, OPTION(temperature), 0, 100, "0.6", "T", NULL, "of the sampling", false},
    {"seed", 0, CONFIG_INT, OPTION(seed), 0, INT32_MAX, "1", "S", NULL,
     "the same seed tells the same stories", false},
};

static const struct config_table table = {
    .program = "lepton demo",
    .about = "Starts a coordinator and two groups of two pipeline stages with a tiny model that is part of "
             "this program, "
             "streams four prompts at once, says who served them and how fast, and stops everything.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct demo_settings),
};

static const char *const prompts[] = {"Once upon a time", "The little robot", "In the morning",
                                      "Anna and Tom"};
#define PROMPTS ARRAY_LEN(prompts)

/* Which story speaks, so that four streams can share one terminal: a line per piece of a few words. */
struct speaker {
    int number;
    struct buffer line;
};

static void print_line(struct speaker *s)
{
    if (s->line.size)
        printf("  [%d] %.*s\n", s->number, (int)s->line.size, (const char *)s->line.data);
    fflush(stdout);
    s->line.size = 0;
}

/* Collects what streams in and prints it in lines: a space behind a sentence's end, or behind many letters,
 * ends one. */
static void on_text(struct client_job *job, uint64_t choice, const char *text, size_t bytes)
{
    struct speaker *s = job->context;
    (void)choice;
    for (size_t i = 0; i < bytes; i++) {
        char last = s->line.size ? (char)s->line.data[s->line.size - 1] : ' ';
        bool sentence_over = strchr(".!?\"", last) && s->line.size > 1;
        if (text[i] == '\n' || (text[i] == ' ' && (sentence_over || s->line.size >= 72)))
            print_line(s);
        else if (!(s->line.size == 0 && text[i] == ' '))
            buffer_append(&s->line, &text[i], 1);
    }
}

/* "g-0: layers 0-2 (pid 71), 3-5 (pid 72)" for the group's stages. */
static void print_stages(const struct wire_status_reply *reply)
{
    for (uint32_t i = 0; i < reply->group_count; i++) {
        const struct wire_group_status *g = &reply->groups[i];
        printf("  group %.*s, epoch %llu:", (int)g->group.size, g->group.data, (unsigned long long)g->epoch);
        for (uint32_t k = 0; k < g->stage_count; k++)
            printf("%s stage %u = layers %llu-%llu (pid %llu on %.*s)", k ? "," : "", k,
                   (unsigned long long)g->stages[k].first_layer,
                   (unsigned long long)g->stages[k].last_layer - 1, (unsigned long long)g->stages[k].pid,
                   (int)g->stages[k].host.size, g->stages[k].host.data);
        printf("\n");
    }
}

static void print_table(const struct client_job *job)
{
    printf("\n  %-18s %-7s %-7s %8s %9s %10s  %s\n", "prompt", "group", "stages", "tokens", "TTFT ms",
           "tokens/s", "end");
    for (size_t i = 0; i < PROMPTS; i++) {
        if (job[i].error.code) {
            printf("  %-18s failed: %s\n", prompts[i], job[i].error.message);
            continue;
        }
        printf("  %-18s %-7s %-7llu %8zu %9.1f %10.1f  %s\n", prompts[i], job[i].group,
               (unsigned long long)job[i].stages, job[i].token_count,
               (double)(job[i].first_token_us - job[i].sent_us) / 1000, client_job_tokens_per_second(&job[i]),
               client_job_finish(&job[i], 0));
    }
}

static int tell_stories(const struct demo_settings *s, struct client *client, bool *interrupted,
                        struct err *err)
{
    struct client_job job[PROMPTS] = {0};
    struct speaker speaker[PROMPTS] = {0};
    int failed = 0;
    for (size_t i = 0; i < PROMPTS; i++) {
        struct wire_message m;
        wire_init(&m, WIRE_GENERATE);
        m.generate.prompt = wire_string(prompts[i]);
        m.generate.max_tokens = (uint64_t)s->tokens;
        m.generate.sampling.temperature = s->temperature;
        m.generate.sampling.seed = (uint64_t)s->seed;
        m.generate.sampling.has_seed = true;
        job[i].ask = m.generate;
        job[i].on_text = on_text;
        job[i].context = &speaker[i];
        speaker[i].number = (int)i + 1;
        buffer_append(&speaker[i].line, prompts[i], strlen(prompts[i]));
    }
    int code = client_generate_many(client, job, PROMPTS, interrupted, err);
    for (size_t i = 0; i < PROMPTS; i++) {
        print_line(&speaker[i]);
        failed += job[i].error.code != 0;
        buffer_release(&speaker[i].line);
    }
    if (!*interrupted)
        print_table(job);
    for (size_t i = 0; i < PROMPTS; i++)
        client_job_release(&job[i]);
    if (code == 0 && failed)
        return err_set(err, "%d of %zu prompts failed", failed, PROMPTS);
    return code;
}

int command_demo(int argc, char **argv)
{
    struct demo_settings s;
    struct local *local = NULL;
    struct client *client = NULL;
    struct err err = {0};
    struct wire_message reply;
    bool interrupted = false;
    int code = EXIT_FAILED;
    config_main(&table, &s, argc, argv, NULL, 0);
    struct local_options o = {
        .model = "demo", .store = "none", .groups = (int)s.groups, .stages = (int)s.stages};
    int interrupt_fd = prompt_open_interrupt();
    uint64_t begun_ms = clock_now_ms();
    printf("Starting a coordinator and %d groups of %d stages each ...\n", o.groups, o.stages);
    fflush(stdout);
    int waited = local_start(&local, &o, &err) ? -1 : local_wait(local, &client, interrupt_fd, 120000, &err);
    if (waited == 0 && client_status(client, true, 5000, &reply, &err) == 0) {
        printf("Ready after %.1f s:\n", (double)(clock_now_ms() - begun_ms) / 1000);
        print_stages(&reply.status_reply);
        wire_release(&reply);
        printf("\n%zu prompts at once:\n", PROMPTS);
        client_interrupt_on(client, interrupt_fd);
        client_retry_for(client, 0); /* the cluster is our own: what dies there is to be seen */
        if (tell_stories(&s, client, &interrupted, &err) == 0)
            code = EXIT_OK;
    }
    if (waited > 0 || interrupted)
        code = EXIT_INTERRUPTED;
    else if (code)
        fprintf(stderr, "lepton demo: %s\n", err.message);
    client_close(&client);
    local_stop(&local, 0);
    if (code == EXIT_OK)
        printf("\nEverything is stopped. Next: lepton run MODEL.gguf -p \"...\", and docs/tour.md.\n");
    config_release(&table, &s);
    return code;
}
