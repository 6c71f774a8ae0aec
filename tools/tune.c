/* lepton tune: the settings of a running coordinator that have a measured optimum: shows them, sets one by
 * hand, or lets it be found again. The coordinator decides what is allowed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/scheduler.h"
#include "tools/client.h"
#include "tools/command.h"
#include "tools/settings.h"

#define ANSWER_MS 5000

struct tune_settings {
    struct client_settings client;
};

static const struct config_option options[] = {CLIENT_OPTIONS(struct tune_settings, client)};

static const struct config_table table = {
    .program = "lepton tune",
    .arguments = "[NAME=VALUE|NAME=auto]...",
    .about =
        "Sets what a running coordinator otherwise finds by itself from the times that it measures, or hands "
        "it back with NAME=auto; without arguments it shows all settings. The key must be named in the "
        "coordinator's option admins.",
    .after = "settings:\n"
             "  prefix_weight  percent that a cached prefix counts against a group's queue\n"
             "  prefix_belief  percent of what the index of cached prefixes says that is believed\n"
             "examples:\n"
             "  lepton tune prefix_weight=400\n"
             "  lepton tune prefix_weight=auto\n"
             "exit codes:\n  0 done   1 refused   2 wrong usage   3 the coordinator could not be reached\n",
    .max_arguments = SCHEDULER_SETTINGS,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct tune_settings),
};

/* One NAME=VALUE as a message that borrows `name`. -1: what is wrong with it. */
static int read_change(struct wire_message *m, const char *word, char name[WIRE_MAX_ID + 1], struct err *err)
{
    const char *equals = strchr(word, '=');
    if (!equals || equals == word || equals - word > WIRE_MAX_ID)
        return err_set(err, "\"%.80s\", expected NAME=VALUE or NAME=auto", word);
    snprintf(name, WIRE_MAX_ID + 1, "%.*s", (int)(equals - word), word);
    wire_init(m, WIRE_TUNE);
    m->tune.name = wire_string(name);
    if (!wire_id_valid(m->tune.name))
        return err_set(err, "\"%.80s\", expected the name of a setting before the =", word);
    return scheduler_setting_read(name, equals + 1, &m->tune.automatic, &m->tune.value, err);
}

int command_tune(int argc, char **argv)
{
    struct tune_settings s;
    struct client *client = NULL;
    struct wire_message changes[SCHEDULER_SETTINGS], reply = {.memory = NULL};
    char names[SCHEDULER_SETTINGS][WIRE_MAX_ID + 1];
    const char *words[SCHEDULER_SETTINGS];
    struct err err = {0};
    int code = EXIT_USAGE;
    int count = config_main(&table, &s, argc, argv, words, SCHEDULER_SETTINGS);
    for (int i = 0; i < count; i++)
        if (read_change(&changes[i], words[i], names[i], &err))
            goto out;
    code = EXIT_UNREACHABLE;
    if (client_open(&client, &s.client, ANSWER_MS, &err)) {
        code = err.code ? EXIT_UNREACHABLE : EXIT_FAILED;
        goto out;
    }
    for (int i = 0; i < count; i++)
        if (client_ask(client, &changes[i], ANSWER_MS, &err)) {
            code = err.code == 503 ? EXIT_UNREACHABLE : EXIT_FAILED;
            goto out;
        }
    if (client_status(client, false, ANSWER_MS, &reply, &err))
        goto out;
    settings_print(stdout, &reply.status_reply);
    code = EXIT_OK;
out:
    if (code != EXIT_OK)
        fprintf(stderr, "lepton tune: %s\n", err.message);
    wire_release(&reply);
    client_close(&client);
    config_release(&table, &s);
    return code;
}
