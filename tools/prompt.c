#include "tools/prompt.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#include "tools/command.h"

static int read_file(const char *path, struct buffer *out, struct err *err)
{
    char chunk[65536];
    size_t n;
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!f)
        return err_set(err, "%s: %s", path, strerror(errno));
    while (out->size <= WIRE_MAX_PROMPT && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        buffer_append(out, chunk, n);
    bool failed = ferror(f);
    if (f != stdin)
        fclose(f);
    return failed ? err_set(err, "%s: cannot be read", path) : 0;
}

int prompt_read(const struct prompt_settings *s, struct buffer *out, struct err *err)
{
    if ((s->prompt != NULL) == (s->file != NULL))
        return err_set(err, "expected a prompt: either -p TEXT or -f FILE");
    if (s->prompt)
        buffer_append(out, s->prompt, strlen(s->prompt));
    else if (read_file(s->file, out, err))
        return -1;
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

static void print_text(struct client_job *job, const char *text, size_t bytes)
{
    (void)job;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

int prompt_fill(const struct prompt_settings *s, const struct buffer *prompt, struct client_job *job,
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
    m.generate.special = s->special;
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
    job->on_text = s->json ? NULL : print_text;
    if (s->model && (strlen(s->model) > 128 || !utf8_valid(s->model, strlen(s->model))))
        return err_set(err, "--model: expected at most 128 bytes of UTF-8");
    return parse_seed(s->seed, &job->ask.sampling, err);
}

int prompt_report(const char *program, const struct prompt_settings *s, const struct client_job *job,
                  bool interrupted)
{
    if (s->json) {
        char *line = client_job_json(job);
        printf("%s\n", line);
        free(line);
    } else if (job->token_count > 0) {
        printf("\n");
    }
    if (job->error.code != 0 && !interrupted)
        fprintf(stderr, "%s: %d: %s\n", program, job->error.code, job->error.message);
    return interrupted ? EXIT_INTERRUPTED : client_job_exit_code(job);
}

int prompt_open_interrupt(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}
