/* lepton run: everything on this machine. With a prompt it generates once and leaves; without one it serves
 * until Ctrl-C and leaves client.cfg behind for `lepton generate` and `lepton status`. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/command.h"
#include "tools/local.h"
#include "tools/prompt.h"

struct run_settings {
    struct prompt_settings prompt;
    char *endpoint, *log_level, *models, *store;
    int64_t groups, stages, tensor, threads, context, max_sequences, start_ms, drain_ms;
};

#define MAX_WORKER_ARGUMENTS 24
#define MAX_MODELS           16
#define OPTION(member)       offsetof(struct run_settings, member)

static const struct config_option options[] = {
    {"groups", 'g', CONFIG_INT, OPTION(groups), 1, 64, "1", "G", NULL,
     "worker groups of each model, each with the whole of it", false},
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 256, "1", "P", NULL, "pipeline stages of a group", false},
    {"tensor", 0, CONFIG_INT, OPTION(tensor), 1, 256, "1", "T", NULL,
     "tensor slots of a stage: ranks that share each layer; a group has P x T ranks", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "K", NULL,
     "threads of a rank; 0 = the processors shared out over groups and slots", false},
    {"context", 0, CONFIG_INT, OPTION(context), 0, 1 << 24, "0", "N", NULL,
     "most tokens of a sequence; 0 = the model's, at most 4096", false},
    {"max_sequences", 0, CONFIG_INT, OPTION(max_sequences), 1, 4096, "16", "N", NULL,
     "sequences that a group runs at once", false},
    {"endpoint", 0, CONFIG_STRING, OPTION(endpoint), 0, 0, NULL, "tcp://ADDRESS:PORT", NULL,
     "where clients connect (default: a free port on loopback)", false},
    {"store", 0, CONFIG_STRING, OPTION(store), 0, 0, "auto", "PATH", NULL,
     "the coordinator's database: what it keeps when it dies and is started again; auto = in the run's own "
     "directory, removed at its end (with a prompt: none); none = nothing is kept; a PATH outlives the run",
     false},
    PROMPT_OPTIONS(struct run_settings, prompt),
    {"start_ms", 0, CONFIG_INT, OPTION(start_ms), 100, 86400000, "120000", "MS", NULL,
     "most time for the groups to become ready", false},
    {"drain_ms", 0, CONFIG_INT, OPTION(drain_ms), 0, 86400000, "5000", "MS", NULL,
     "time for running requests to finish after Ctrl-C", false},
    {"log_level", 0, CONFIG_STRING, OPTION(log_level), 0, 0, "info", "LEVEL", "debug|info|warn|error",
     "least level in the programs' logs", false},
    MODELS_OPTION(struct run_settings),
};

static const struct config_table table = {
    .program = "lepton run",
    .arguments = "MODEL... [-- WORKER-OPTION...]",
    .about =
        "Starts a coordinator and worker groups for MODEL (a GGUF file, a Hugging Face directory, a name of "
        "`lepton models`, or \"demo\" for the model inside this program) "
        "on this machine. With -p or -f it generates once and exits; without, it serves until Ctrl-C. A "
        "group that "
        "dies is started again. Several models have groups of their own, and requests name theirs (--model). "
        "What stands behind -- goes to every lepton-worker.",
    .after =
        "exit codes:\n"
        "  0 done   1 the request or the start failed   2 wrong usage   3 the group was lost   130 Ctrl-C\n"
        "examples:\n"
        "  lepton run demo -p \"Once upon a time\" -n 60 --temperature 0\n"
        "  lepton run model.gguf --groups 2 --stages 2\n"
        "  lepton run small.gguf large.gguf      # then: lepton generate --model large -p ...\n",
    .min_arguments = 1,
    .max_arguments = MAX_MODELS + MAX_WORKER_ARGUMENTS,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct run_settings),
};

/* The models are the words before "--", the workers' options those behind it; the first word is always a
 * model. Both lists end with NULL. */
static int split_words(const struct run_settings *s, char **argv, const char **words, const char **models,
                       const char **worker, struct err *err)
{
    int i = 0, at = 0, model_count = 0, worker_count = 0;
    for (; words[i]; i++) {
        while (argv[at] != words[i])
            at++;
        if (worker_count || (i > 0 && strcmp(argv[at - 1], "--") == 0)) {
            if (worker_count == MAX_WORKER_ARGUMENTS)
                return err_set(err, "more than %d words behind --", MAX_WORKER_ARGUMENTS);
            worker[worker_count++] = words[i];
        } else if (model_count == MAX_MODELS) {
            return err_set(err, "more than %d models", MAX_MODELS);
        } else {
            models[model_count++] = words[i];
        }
    }
    for (int k = 0; k < worker_count && model_count > 1; k++)
        if (strncmp(worker[k], "--model-name", 12) == 0)
            return err_set(err, "--model-name: would call %d models the same", model_count);
    if (model_count > 1 && (s->prompt.prompt || s->prompt.file) && !s->prompt.model)
        return err_set(err, "--model: expected the name of one of the %d models", model_count);
    return 0;
}

static struct local_options cluster_options(const struct run_settings *s, const char *const *models,
                                            const char *const *worker, bool publish)
{
    /* A single generation ends with its coordinator: there is nothing to keep. */
    const char *automatic = publish ? NULL : "none";
    return (struct local_options){.model = models[0],
                                  .more = models + 1,
                                  .models = s->models,
                                  .worker_arguments = worker,
                                  .endpoint = s->endpoint,
                                  .store = strcmp(s->store, "auto") == 0 ? automatic : s->store,
                                  .groups = (int)s->groups,
                                  .stages = (int)s->stages,
                                  .tensor = (int)s->tensor,
                                  .threads = (int)s->threads,
                                  .context = s->context,
                                  .max_sequences = s->max_sequences,
                                  .log_level = s->log_level,
                                  .publish = publish};
}

/* Until a signal comes; -1 when something cannot be kept alive. */
static int serve(struct local *l, int interrupt_fd, struct err *err)
{
    printf("serving on %s; logs in %s\n", local_endpoint(l), local_directory(l));
    printf("try:  lepton generate -p \"Once upon a time\" -n 60\n      lepton status\nCtrl-C ends it.\n");
    fflush(stdout);
    for (;;) {
        struct pollfd interrupted = {.fd = interrupt_fd, .events = POLLIN};
        if (poll(&interrupted, 1, 500) > 0)
            return 0;
        if (local_check(l, err))
            return -1;
    }
}

static int generate(struct run_settings *s, struct client *client, int interrupt_fd,
                    const struct buffer *prompt, struct err *err)
{
    struct client_job job = {0};
    bool interrupted = false;
    int code = EXIT_USAGE;
    if (prompt_fill(&s->prompt, prompt, &job, err) == 0) {
        client_interrupt_on(client, interrupt_fd);
        client_retry_for(client, 0); /* nobody starts our own coordinator again meanwhile */
        client_generate_many(client, &job, 1, &interrupted, err);
        code = prompt_report("lepton run", &s->prompt, &job, interrupted);
    } else {
        fprintf(stderr, "lepton run: %s\n", err->message);
    }
    client_job_release(&job);
    return code;
}

int command_run(int argc, char **argv)
{
    struct run_settings s;
    struct local *local = NULL;
    struct client *client = NULL;
    struct buffer prompt = {0};
    struct err err = {0};
    const char *words[1 + MAX_MODELS + MAX_WORKER_ARGUMENTS] = {NULL};
    const char *models[MAX_MODELS + 1] = {NULL}, *worker[MAX_WORKER_ARGUMENTS + 1] = {NULL};
    config_main(&table, &s, argc, argv, words, MAX_MODELS + MAX_WORKER_ARGUMENTS);
    bool once = s.prompt.prompt || s.prompt.file;
    int code = EXIT_FAILED;
    if (split_words(&s, argv, words, models, worker, &err) ||
        (once && prompt_read(&s.prompt, &prompt, &err))) {
        code = EXIT_USAGE;
        goto fail;
    }
    int interrupt_fd = prompt_open_interrupt();
    struct local_options options_local = cluster_options(&s, models, worker, !once);
    if (local_start(&local, &options_local, &err))
        goto fail;
    int waited = local_wait(local, &client, interrupt_fd, (uint64_t)s.start_ms, &err);
    if (waited < 0)
        goto fail;
    if (waited > 0)
        code = EXIT_INTERRUPTED;
    else if (once)
        code = generate(&s, client, interrupt_fd, &prompt, &err);
    else if (serve(local, interrupt_fd, &err))
        goto fail;
    else
        code = EXIT_OK;
    goto out;
fail:
    fprintf(stderr, "lepton run: %s\n", err.message);
out:
    client_close(&client);
    local_stop(&local, once ? 0 : (uint64_t)s.drain_ms);
    buffer_release(&prompt);
    config_release(&table, &s);
    return code;
}
