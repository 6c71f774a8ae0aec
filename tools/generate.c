/* lepton generate: one prompt to a running coordinator, its text to standard output as it comes. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/client.h"
#include "tools/command.h"

struct generate_settings {
    struct client_settings client;
    char *prompt, *file, *model;
    int64_t tokens, top_k, timeout_ms;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    char *seed;
    bool ignore_eos, no_bos, json;
};

#define FIELD(member) .offset = offsetof(struct generate_settings, member)
static const struct config_option options[] = {
    CLIENT_OPTIONS(struct generate_settings, client),
    {.name = "prompt",
     .letter = 'p',
     .kind = CONFIG_STRING,
     FIELD(prompt),
     .value = "TEXT",
     .help = "The text to continue."},
    {.name = "file",
     .letter = 'f',
     .kind = CONFIG_STRING,
     FIELD(file),
     .value = "PATH",
     .help = "Read the prompt from a file; - is standard input."},
    {.name = "tokens",
     .letter = 'n',
     .kind = CONFIG_INT,
     FIELD(tokens),
     .min = 1,
     .max = 1 << 20,
     .standard = "256",
     .value = "N",
     .help = "Most tokens to generate."},
    {.name = "model",
     .kind = CONFIG_STRING,
     FIELD(model),
     .value = "NAME",
     .help = "Which of the served models; needed only when there are several."},
    {.name = "temperature",
     .kind = CONFIG_FLOAT,
     FIELD(temperature),
     .min = 0,
     .max = 100,
     .standard = "1",
     .value = "T",
     .help = "Divides the logits; 0 always takes the likeliest token."},
    {.name = "top_k",
     .kind = CONFIG_INT,
     FIELD(top_k),
     .min = 0,
     .max = INT32_MAX,
     .standard = "0",
     .value = "K",
     .help = "Keep this many of the likeliest tokens; 0 keeps all."},
    {.name = "top_p",
     .kind = CONFIG_FLOAT,
     FIELD(top_p),
     .min = 1e-9,
     .max = 1,
     .standard = "1",
     .value = "P",
     .help = "Keep the likeliest tokens up to this probability together."},
    {.name = "min_p",
     .kind = CONFIG_FLOAT,
     FIELD(min_p),
     .min = 0,
     .max = 1,
     .standard = "0",
     .value = "P",
     .help = "Drop tokens below this share of the likeliest one's probability."},
    {.name = "repetition_penalty",
     .kind = CONFIG_FLOAT,
     FIELD(repetition_penalty),
     .min = 1e-9,
     .max = 10,
     .standard = "1",
     .value = "R",
     .help = "Divides the logits of tokens that came before; 1 does nothing."},
    {.name = "presence_penalty",
     .kind = CONFIG_FLOAT,
     FIELD(presence_penalty),
     .min = -2,
     .max = 2,
     .standard = "0",
     .value = "R",
     .help = "Subtracted from the logits of tokens that came before."},
    {.name = "frequency_penalty",
     .kind = CONFIG_FLOAT,
     FIELD(frequency_penalty),
     .min = -2,
     .max = 2,
     .standard = "0",
     .value = "R",
     .help = "The same, once for each time."},
    {.name = "seed",
     .kind = CONFIG_STRING,
     FIELD(seed),
     .value = "S",
     .help = "Makes the answer repeatable: 0 to 2^63-1; drawn by the coordinator when absent."},
    {.name = "ignore_eos",
     .kind = CONFIG_BOOL,
     FIELD(ignore_eos),
     .help = "Go on after the model's end-of-text token."},
    {.name = "no_bos",
     .kind = CONFIG_BOOL,
     FIELD(no_bos),
     .help = "Do not put the model's begin-of-text token in front."},
    {.name = "timeout_ms",
     .kind = CONFIG_INT,
     FIELD(timeout_ms),
     .min = 0,
     .max = 86400000,
     .standard = "0",
     .value = "N",
     .help = "Deadline in milliseconds; 0 leaves it to the coordinator."},
    {.name = "json",
     .kind = CONFIG_BOOL,
     FIELD(json),
     .help = "No streaming; the last line is one JSON object with tokens, text, finish_reason and timings."},
};

static const struct config_table table = {
    .program = "lepton generate",
    .about = "Sends a prompt to a running coordinator and prints the text as it comes. Ctrl-C cancels.",
    .after =
        "exit codes:\n"
        "  0 done   1 the request failed   2 wrong usage   3 the coordinator or the group was lost   130 "
        "Ctrl-C\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct generate_settings),
};

static int read_prompt(const struct generate_settings *s, struct buffer *out, struct err *err)
{
    if ((s->prompt != NULL) == (s->file != NULL))
        return err_set(err, "expected a prompt: either -p TEXT or -f FILE");
    if (s->prompt)
        buffer_append(out, s->prompt, strlen(s->prompt));
    else {
        FILE *f = strcmp(s->file, "-") == 0 ? stdin : fopen(s->file, "rb");
        if (!f)
            return err_set(err, "%s: %s", s->file, strerror(errno));
        char chunk[65536];
        size_t n;
        while (out->size <= WIRE_MAX_PROMPT && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
            buffer_append(out, chunk, n);
        int failed = ferror(f);
        if (f != stdin)
            fclose(f);
        if (failed)
            return err_set(err, "%s: cannot be read", s->file);
    }
    if (out->size > WIRE_MAX_PROMPT)
        return err_set(err, "the prompt has more than %u bytes", WIRE_MAX_PROMPT);
    if (!utf8_valid(out->size ? (const char *)out->data : "", out->size))
        return err_set(err, "the prompt is not valid UTF-8");
    return 0;
}

static int parse_seed(const char *text, struct wire_sampling *sampling, struct err *err)
{
    if (!text)
        return 0;
    char *end;
    errno = 0;
    unsigned long long seed = strtoull(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || seed > INT64_MAX) /* what JSON readers can hold */
        return err_set(err, "--seed: expected an integer from 0 to 9223372036854775807, found \"%s\"", text);
    sampling->has_seed = true;
    sampling->seed = seed;
    return 0;
}

static int fill(const struct generate_settings *s, const struct buffer *prompt, struct client_job *job,
                struct err *err)
{
    struct wire_message m;
    wire_init(&m, WIRE_GENERATE);
    m.generate.model = wire_string(s->model);
    m.generate.prompt =
        (struct wire_str){prompt->size ? (const char *)prompt->data : "", (uint32_t)prompt->size};
    m.generate.max_tokens = (uint64_t)s->tokens;
    m.generate.timeout_ms = (uint64_t)s->timeout_ms;
    m.generate.no_bos = s->no_bos;
    struct wire_sampling *p = &m.generate.sampling;
    p->temperature = s->temperature;
    p->top_k = (uint64_t)s->top_k;
    p->top_p = s->top_p;
    p->min_p = s->min_p;
    p->repetition_penalty = s->repetition_penalty;
    p->presence_penalty = s->presence_penalty;
    p->frequency_penalty = s->frequency_penalty;
    p->ignore_eos = s->ignore_eos;
    job->ask = m.generate;
    if (s->model && (strlen(s->model) > 128 || !utf8_valid(s->model, strlen(s->model))))
        return err_set(err, "--model: expected at most 128 bytes of UTF-8");
    return parse_seed(s->seed, &job->ask.sampling, err);
}

static void print_text(struct client_job *job, const char *text, size_t bytes)
{
    (void)job;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

static int open_interrupt(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Prints how it ended and picks the exit code. */
static int report(const struct client_job *job, bool json, bool interrupted)
{
    if (json) {
        char *line = client_job_json(job);
        printf("%s\n", line);
        free(line);
    } else if (job->token_count > 0) {
        printf("\n");
    }
    if (job->error.code != 0 && !interrupted)
        fprintf(stderr, "lepton generate: %d: %s\n", job->error.code, job->error.message);
    return interrupted ? EXIT_INTERRUPTED : client_job_exit_code(job);
}

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
    if (read_prompt(&s, &prompt, &err) != 0 || fill(&s, &prompt, &job, &err) != 0)
        goto fail;
    int interrupt_fd = open_interrupt();
    if (client_open(&client, &s.client, 5000, &err) != 0) {
        code = err.code ? EXIT_UNREACHABLE : EXIT_FAILED;
        goto fail;
    }
    client_interrupt_on(client, interrupt_fd);
    if (!s.json)
        job.on_text = print_text;
    client_generate_many(client, &job, 1, &interrupted, &err);
    code = report(&job, s.json, interrupted);
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
