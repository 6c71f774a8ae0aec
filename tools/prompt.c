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

/* "ID=B,ID=B,...": what is within the wire's bounds; an id that is named twice is the coordinator's to
 * refuse.
 */
static int parse_biases(struct prompt_settings *s, struct wire_sampling *sampling, struct err *err)
{
    for (char *at = s->logit_bias; at && *at;) {
        char *end, *value;
        errno = 0;
        unsigned long long id = strtoull(at, &end, 10);
        if (errno || *at < '0' || *at > '9' || *end != '=' || id > UINT32_MAX)
            return err_set(err, "--logit-bias: expected ID=BIAS, found \"%.40s\"", at);
        value = end + 1;
        double bias = strtod(value, &end);
        if (end == value || (*end && *end != ',') || !(bias >= -100 && bias <= 100))
            return err_set(err,
                           "--logit-bias: token %llu: expected a number from -100 to 100, found \"%.40s\"",
                           id, value);
        if (sampling->bias_count == WIRE_MAX_BIASES)
            return err_set(err, "--logit-bias: more than %d tokens", WIRE_MAX_BIASES);
        s->biases[sampling->bias_count++] = (struct wire_bias){.id = id, .bias = bias + 0.0};
        at = *end ? end + 1 : end;
    }
    sampling->logit_bias = s->biases;
    return 0;
}

static int parse_stops(struct prompt_settings *s, struct wire_sampling *sampling, struct err *err)
{
    if (s->stop.count > WIRE_MAX_STOPS)
        return err_set(err, "--stop: expected at most %d, found %zu", WIRE_MAX_STOPS, s->stop.count);
    for (size_t i = 0; i < s->stop.count; i++) {
        const char *text = s->stop.item[i];
        size_t bytes = strlen(text);
        if (bytes < 1 || bytes > WIRE_MAX_STOP || !utf8_valid(text, bytes))
            return err_set(err, "--stop: expected 1 to %d bytes of UTF-8, found %zu bytes%s", WIRE_MAX_STOP,
                           bytes, utf8_valid(text, bytes) ? "" : " that are none");
        s->stops[i].text = wire_string(text);
    }
    sampling->stop = s->stops;
    sampling->stop_count = (uint32_t)s->stop.count;
    return 0;
}

static int parse_logprobs(const char *text, struct wire_sampling *sampling, struct err *err)
{
    if (!text)
        return 0;
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || n > WIRE_MAX_TOP_LOGPROBS)
        return err_set(err, "--logprobs: expected an integer from 0 to %d, found \"%.40s\"",
                       WIRE_MAX_TOP_LOGPROBS, text);
    sampling->logprobs = true;
    sampling->top_logprobs = n;
    return 0;
}

static int check_text(const char *flag, const char *text, size_t most, struct err *err)
{
    if (text && (strlen(text) > most || !utf8_valid(text, strlen(text))))
        return err_set(err, "%s: expected at most %zu bytes of UTF-8", flag, most);
    return 0;
}

static void print_text(struct client_job *job, uint64_t choice, const char *text, size_t bytes)
{
    (void)job;
    (void)choice;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

int prompt_fill(struct prompt_settings *s, const struct buffer *prompt, struct client_job *job,
                struct err *err)
{
    struct wire_message m;
    wire_init(&m, WIRE_GENERATE);
    m.generate.model = wire_string(s->model);
    m.generate.prompt =
        (struct wire_str){prompt->size ? (const char *)prompt->data : "", (uint32_t)prompt->size};
    m.generate.max_tokens = (uint64_t)s->tokens;
    m.generate.timeout_ms = (uint64_t)s->timeout_ms;
    m.generate.class = wire_string(s->class);
    m.generate.no_bos = s->no_bos;
    m.generate.special = s->special;
    m.generate.service = (struct wire_service){.priority = (uint64_t)s->priority,
                                               .speculation = wire_string(s->speculation),
                                               .draft_tokens = (uint64_t)s->draft_tokens,
                                               .cache_salt = wire_string(s->cache_salt)};
    struct wire_sampling *p = &m.generate.sampling;
    p->n = s->choices ? (uint64_t)s->choices : 1;
    p->temperature = s->temperature;
    p->top_k = (uint64_t)s->top_k;
    p->top_p = s->top_p;
    p->min_p = s->min_p;
    p->repetition_penalty = s->repetition_penalty;
    p->presence_penalty = s->presence_penalty;
    p->frequency_penalty = s->frequency_penalty;
    p->ignore_eos = s->ignore_eos;
    if (parse_biases(s, p, err) || parse_stops(s, p, err) || parse_logprobs(s->logprobs, p, err) ||
        check_text("--model", s->model, 128, err) || check_text("--cache-salt", s->cache_salt, 256, err) ||
        parse_seed(s->seed, p, err))
        return -1;
    job->ask = m.generate;
    job->on_text = s->json || p->n > 1 ? NULL : print_text;
    return 0;
}

/* A token's text on one line. */
static void print_piece(const char *piece, size_t bytes)
{
    putchar('"');
    for (size_t i = 0; i < bytes; i++) {
        uint8_t c = (uint8_t)piece[i];
        if (c < 0x20 || c == 0x7F)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void print_logprobs(const struct client_choice *c)
{
    for (size_t i = 0; c->logprobs && i < c->token_count; i++) {
        const struct client_logprob *l = &c->logprobs[i];
        printf("%5zu %7u %9.4f ", i, c->tokens[i], l->logprob);
        print_piece(l->piece, l->piece_bytes);
        for (uint32_t k = 0; k < l->top_count; k++) {
            printf("%s%.4f ", k ? ", " : "  of ", l->top[k].logprob);
            print_piece(l->top[k].piece, l->top[k].piece_bytes);
        }
        printf("\n");
    }
}

static void print_choices(const struct client_job *job)
{
    uint64_t n = job->ask.sampling.n;
    for (uint64_t i = 0; i < n; i++) {
        const struct client_choice *c = &job->choice[i];
        const char *end = c->finish_reason[0] ? c->finish_reason : "failed";
        if (n > 1) {
            printf("--- choice %llu: %zu tokens, %s\n", (unsigned long long)i, c->token_count, end);
            fwrite(c->text.size ? (const char *)c->text.data : "", 1, c->text.size, stdout);
        }
        if (n > 1 || c->token_count > 0)
            printf("\n");
        print_logprobs(c);
    }
}

static void print_usage(const struct client_job *job)
{
    double first = job->first_token_us ? (double)(job->first_token_us - job->sent_us) / 1e3 : 0;
    fprintf(stderr, "%8s %8s %10s %9s %9s %10s %9s %10s\n", "prompt", "cached", "completion", "drafted",
            "accepted", "TTFT ms", "total ms", "tokens/s");
    fprintf(stderr, "%8llu %8llu %10llu %9llu %9llu %10.1f %9.1f %10.1f\n",
            (unsigned long long)job->prompt_tokens, (unsigned long long)job->cached_tokens,
            (unsigned long long)job->completion_tokens, (unsigned long long)job->drafted_tokens,
            (unsigned long long)job->accepted_tokens, first, (double)(job->over_us - job->sent_us) / 1e3,
            client_job_tokens_per_second(job));
}

int prompt_report(const char *program, const struct prompt_settings *s, const struct client_job *job,
                  bool interrupted)
{
    if (s->json) {
        char *line = client_job_json(job);
        printf("%s\n", line);
        free(line);
    } else if (job->choice) {
        print_choices(job);
    }
    if (s->usage && job->error.code == 0) {
        fflush(stdout);
        print_usage(job);
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
