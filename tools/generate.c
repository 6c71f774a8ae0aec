/* lepton generate: one prompt to a running coordinator, its text to standard output as it comes. */
#include <stdio.h>

#include "tools/command.h"
#include "tools/prompt.h"

struct generate_settings {
    struct client_settings client;
    struct prompt_settings prompt;
};

static const struct config_option options[] = {
    CLIENT_OPTIONS(struct generate_settings, client),
    PROMPT_OPTIONS(struct generate_settings, prompt),
};

static const struct config_table table = {
    .program = "lepton generate",
    .about = "Sends a prompt to a running coordinator and prints the text as it comes. Ctrl-C cancels.",
    .after = "exit codes:\n"
             "  0 done   1 the request failed   2 wrong usage   3 the coordinator or the group was lost   "
             "130 Ctrl-C\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct generate_settings),
};

int command_generate(int argc, char **argv)
{
    struct generate_settings s;
    struct client *client = NULL;
    struct client_job job = {0};
    struct buffer prompt = {0};
    struct err err = {0};
    bool interrupted = false;
    int code = EXIT_USAGE;
    config_main(&table, &s, argc, argv, NULL, 0);
    if (prompt_read(&s.prompt, &prompt, &err) != 0 || prompt_fill(&s.prompt, &prompt, &job, &err) != 0)
        goto fail;
    int interrupt_fd = prompt_open_interrupt();
    if (client_open(&client, &s.client, 5000, &err) != 0) {
        code = err.code ? EXIT_UNREACHABLE : EXIT_FAILED;
        goto fail;
    }
    client_interrupt_on(client, interrupt_fd);
    client_retry_for(client, (uint64_t)s.prompt.retry_ms);
    client_generate_many(client, &job, 1, &interrupted, &err);
    code = prompt_report("lepton generate", &s.prompt, &job, interrupted);
    goto out;
fail:
    fprintf(stderr, "lepton generate: %s\n", err.message);
out:
    client_close(&client);
    client_job_release(&job);
    buffer_release(&prompt);
    config_release(&table, &s);
    return code;
}
