/* lepton chat: a conversation with a model. Every turn the whole history is rendered by the model's chat
 * template and sent as one prompt; the cluster keeps nothing of it. Ctrl-C stops the answer and not the
 * program. */
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "tools/command.h"
#include "tools/local.h"
#include "tools/prompt.h"
#include "worker/model/chat.h"
#include "worker/model/registry.h"

struct chat_settings {
    struct client_settings client;
    struct prompt_settings prompt;
    char *system, *chat_template, *log_level;
    int64_t stages, threads, context, start_ms;
};

#define OPTION(member) offsetof(struct chat_settings, member)

static const struct config_option options[] = {
    {"system", 0, CONFIG_STRING, OPTION(system), 0, 0, NULL, "TEXT", NULL,
     "the system prompt: what the model is told before the conversation", false},
    {"chat_template", 0, CONFIG_STRING, OPTION(chat_template), 0, 0, NULL, "NAME|FILE", NULL,
     "how the conversation is written: a built-in template (`lepton template --list`), a file, or the GGUF "
     "file "
     "whose template it is (default: MODEL's own)",
     false},
    PROMPT_REQUEST_OPTIONS(struct chat_settings, prompt),
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 256, "1", "P", NULL, "pipeline stages of MODEL", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "K", NULL,
     "threads of a rank; 0 = the processors shared out", false},
    {"context", 0, CONFIG_INT, OPTION(context), 0, 1 << 24, "0", "N", NULL,
     "most tokens of the conversation; 0 = the model's, at most 4096", false},
    {"start_ms", 0, CONFIG_INT, OPTION(start_ms), 100, 86400000, "120000", "MS", NULL,
     "most time for MODEL to become ready", false},
    {"log_level", 0, CONFIG_STRING, OPTION(log_level), 0, 0, "info", "LEVEL", "debug|info|warn|error",
     "least level in the programs' logs", false},
    CLIENT_OPTIONS(struct chat_settings, client),
};

static const struct config_table table = {
    .program = "lepton chat",
    .arguments = "[MODEL]",
    .about =
        "Talks with a model. With MODEL (a file or directory, a name of `lepton models`, or \"demo\") it is "
        "started on this machine; without, a "
        "running coordinator is asked, and --chat-template must name the format. Each line of standard input "
        "is "
        "a turn, at a terminal or from a pipe. Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice, leaves. "
        "/reset forgets the conversation, /help lists the commands.",
    .after =
        "exit codes:\n  0 done   1 a request or the start failed   2 wrong usage   3 the coordinator or the "
        "group was lost   130 Ctrl-C\n"
        "Examples:\n  lepton chat model.gguf --system \"Be brief.\" --temperature 0.7\n"
        "  printf 'Hello\\nAnd you?\\n' | lepton chat model.gguf --json\n"
        "  lepton chat --chat-template llama3\n",
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct chat_settings),
};

#define LINE_MAX_BYTES (1u << 20)

struct chat {
    struct chat_settings *s;
    struct chat_format *format;
    struct local *local; /* NULL: somebody else's cluster */
    struct client *client;
    int interrupt_fd;
    json_t *messages;
    struct buffer input; /* what was read and not used yet */
    bool input_ended;
    bool terminal;
    int interrupts; /* since the last line */
    int code;       /* of the last answer that failed */
};

static void reset(struct chat *c)
{
    json_array_clear(c->messages);
    if (c->s->system)
        json_array_append_new(c->messages, json_pack("{ss,ss}", "role", "system", "content", c->s->system));
}

/* The signals that came since: how many, and whether one asked to end. */
static int take_interrupts(struct chat *c, bool *end)
{
    struct signalfd_siginfo info;
    int count = 0;
    while (read(c->interrupt_fd, &info, sizeof(info)) == sizeof(info)) {
        *end |= info.ssi_signo != SIGINT;
        count++;
    }
    return count;
}

/* ---- lines ---- */

/* Takes the first line out of the input; false when there is no whole one yet. */
static bool take_line(struct chat *c, char **line, size_t *bytes)
{
    const char *begin = (const char *)c->input.data;
    const char *end = c->input.size ? memchr(begin, '\n', c->input.size) : NULL;
    if (!end && !(c->input_ended && c->input.size))
        return false;
    *bytes = end ? (size_t)(end - begin) : c->input.size;
    *line = xmalloc(*bytes + 1);
    memcpy(*line, begin, *bytes);
    size_t used = *bytes + (end != NULL);
    memmove(c->input.data, c->input.data + used, c->input.size - used);
    c->input.size -= used;
    if (*bytes && (*line)[*bytes - 1] == '\r')
        --*bytes;
    (*line)[*bytes] = '\0';
    return true;
}

enum next { NEXT_LINE, NEXT_END, NEXT_INTERRUPTED, NEXT_FAILED };

/* A Ctrl-C at the prompt: the second one leaves. */
static bool interrupted_twice(struct chat *c)
{
    bool end = false;
    c->interrupts += take_interrupts(c, &end);
    if (c->interrupts < 2 && !end && c->terminal)
        fprintf(stderr, "\n(Ctrl-C again, or Ctrl-D, leaves)\n> ");
    return end || c->interrupts >= 2 || !c->terminal;
}

static enum next read_line(struct chat *c, char **line, size_t *bytes, struct err *err)
{
    char chunk[65536];
    if (c->terminal)
        fprintf(stderr, "> ");
    while (!take_line(c, line, bytes)) {
        struct pollfd fds[2] = {{.fd = c->interrupt_fd, .events = POLLIN},
                                {.fd = STDIN_FILENO, .events = POLLIN}};
        if (c->input_ended)
            return NEXT_END;
        if (c->input.size > LINE_MAX_BYTES) {
            err_set(err, "a line has more than %u bytes", LINE_MAX_BYTES);
            return NEXT_FAILED;
        }
        int ready = poll(fds, 2, 1000);
        if (c->local && local_check(c->local, err))
            return NEXT_FAILED;
        if (ready <= 0)
            continue;
        if (fds[0].revents) {
            if (interrupted_twice(c))
                return NEXT_INTERRUPTED;
            continue;
        }
        ssize_t n = read(STDIN_FILENO, chunk, sizeof(chunk));
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            err_set(err, "standard input: %s", strerror(errno));
            return NEXT_FAILED;
        }
        c->input_ended = n == 0;
        if (n > 0)
            buffer_append(&c->input, chunk, (size_t)n);
    }
    c->interrupts = 0;
    return NEXT_LINE;
}

/* ---- turns ---- */

/* The model's own end of a turn, written out: in the vocabulary of most models it is an end token, which
 * gives no text; where it is none (a template lent from another family) the answer would go on behind it. */
static int add_own_stop(struct chat *c, struct client_job *job, struct err *err)
{
    const char *end = chat_format_token(c->format, "eos_token");
    struct wire_sampling *s = &job->ask.sampling;
    if (!end || !*end || strlen(end) > WIRE_MAX_STOP || s->ignore_eos)
        return 0;
    if (s->stop_count == WIRE_MAX_STOPS)
        return err_set(err, "--stop: expected at most %d beside the model's own \"%s\"", WIRE_MAX_STOPS - 1,
                       end);
    s->stop[s->stop_count++].text = wire_string(end);
    return 0;
}

static int ask(struct chat *c, struct client_job *job, struct buffer *text, bool *interrupted,
               struct err *err)
{
    struct chat_input input = {.messages = c->messages, .now = time(NULL)};
    if (chat_format_render(c->format, &input, text, err))
        return -1;
    if (text->size > WIRE_MAX_PROMPT)
        return err_set(err, "the conversation has more than %u bytes: /reset begins a new one",
                       WIRE_MAX_PROMPT);
    if (prompt_fill(&c->s->prompt, text, job, err))
        return -1;
    job->ask.special = true;
    job->ask.no_bos = chat_format_begins_with_bos(c->format, text);
    if (add_own_stop(c, job, err))
        return -1;
    client_interrupt_on(c->client, c->interrupt_fd);
    client_retry_for(c->client, c->local ? 0 : (uint64_t)c->s->prompt.retry_ms);
    return client_generate_many(c->client, job, 1, interrupted, err);
}

/* Sends the conversation with this line, and keeps the answer; a turn that failed is forgotten. -1: the
 * cluster is lost. */
static int turn(struct chat *c, const char *line, size_t bytes)
{
    struct client_job job = {0};
    struct buffer text = {0};
    struct err err = {0};
    bool interrupted = false, end = false;
    json_t *said = json_stringn(line, bytes);
    int lost = 0;
    if (!said) {
        fprintf(stderr, "lepton chat: the line is not valid UTF-8\n");
        c->code = EXIT_FAILED;
        return 0;
    }
    json_array_append_new(c->messages, json_pack("{ss,so}", "role", "user", "content", said));
    size_t turns = json_array_size(c->messages);
    int code = ask(c, &job, &text, &interrupted, &err);
    if (code && job.error.code == 0) {
        fprintf(stderr, "lepton chat: %s\n", err.message);
        c->code = EXIT_FAILED;
    } else if (interrupted || job.error.code == 0) {
        prompt_report("lepton chat", &c->s->prompt, &job, interrupted);
    } else {
        c->code = prompt_report("lepton chat", &c->s->prompt, &job, false);
        lost = code;
        if (job.error.code == 413)
            fprintf(stderr, "lepton chat: /reset begins a new conversation\n");
    }
    const struct buffer *answer = job.choice ? &job.choice[0].text : &text;
    if (job.error.code == 0 && code == 0 ? true : interrupted && job.choice && answer->size)
        json_array_append_new(c->messages,
                              json_pack("{ss,ss%}", "role", "assistant", "content",
                                        answer->size ? (const char *)answer->data : "", answer->size));
    else
        json_array_remove(c->messages, turns - 1);
    if (interrupted)
        c->interrupts = take_interrupts(c, &end);
    client_job_release(&job);
    buffer_release(&text);
    return lost || end ? -1 : 0;
}

/* 1: leave. */
static int command(struct chat *c, const char *line)
{
    if (strcmp(line, "/reset") == 0)
        reset(c);
    else if (strcmp(line, "/quit") == 0)
        return 1;
    else if (strcmp(line, "/help") == 0)
        fprintf(stderr,
                "/reset  forget the conversation (the system prompt stays)\n/help   this list\n"
                "/quit   leave, as Ctrl-D does\nA line that begins with // is sent with one / less.\n");
    else
        fprintf(stderr, "lepton chat: %s: no such command; /help lists them\n", line);
    return 0;
}

static int converse(struct chat *c, struct err *err)
{
    char *line;
    size_t bytes;
    reset(c);
    for (;;) {
        enum next next = read_line(c, &line, &bytes, err);
        if (next == NEXT_FAILED)
            return EXIT_FAILED;
        if (next == NEXT_INTERRUPTED)
            return EXIT_INTERRUPTED;
        if (next == NEXT_END) {
            if (c->terminal)
                fprintf(stderr, "\n");
            return c->code;
        }
        int leave = 0;
        if (line[0] == '/' && line[1] != '/')
            leave = command(c, line);
        else if (bytes > 0)
            leave = turn(c, line + (line[0] == '/'), bytes - (line[0] == '/'));
        free(line);
        if (leave)
            return leave > 0 ? c->code : c->code ? c->code : EXIT_INTERRUPTED;
    }
}

/* ---- start ---- */

/* The template first, so that a model without one is refused before a cluster is started for it. */
static int open_format(struct chat *c, const char *model, struct err *err)
{
    struct gguf *g = NULL;
    const char *choice = c->s->chat_template;
    struct registry_model m = {0};
    int code = 0;
    if (!model && !choice)
        return err_set(err, "expected MODEL, or --chat-template beside a running coordinator");
    if (model && strcmp(model, "demo") == 0)
        code = choice ? 0
                      : err_set(err,
                                "the demo model was never taught a conversation: try --chat-template plain");
    else if (model)
        code = registry_find(&m, NULL, model, VERIFY_REGISTERED, err) || registry_open_vocabulary(&g, &m, err)
                   ? -1
                   : 0;
    if (code == 0)
        code = chat_format_open(&c->format, g, choice, err);
    gguf_close(&g);
    registry_release(&m);
    return code;
}

/* 0, -1, or 1 when it was interrupted. */
static int connect_to(struct chat *c, const char *model, struct err *err)
{
    if (!model)
        return client_open(&c->client, &c->s->client, 5000, err);
    struct local_options o = {.model = model,
                              .groups = 1,
                              .stages = (int)c->s->stages,
                              .threads = (int)c->s->threads,
                              .context = c->s->context,
                              .max_sequences = 1,
                              .log_level = c->s->log_level};
    if (local_start(&c->local, &o, err))
        return -1;
    return local_wait(c->local, &c->client, c->interrupt_fd, (uint64_t)c->s->start_ms, err);
}

int command_chat(int argc, char **argv)
{
    struct chat_settings s;
    struct chat c = {.s = &s, .terminal = isatty(STDIN_FILENO)};
    struct err err = {0};
    const char *model[1] = {NULL};
    int given = config_main(&table, &s, argc, argv, model, 1), code = EXIT_FAILED;
    if (!given)
        model[0] = NULL;
    c.messages = json_array();
    if (open_format(&c, model[0], &err)) {
        code = !given && !s.chat_template ? EXIT_USAGE : EXIT_FAILED;
    } else {
        c.interrupt_fd = prompt_open_interrupt();
        int connected = connect_to(&c, model[0], &err);
        if (connected < 0)
            code = model[0] ? EXIT_FAILED : err.code ? EXIT_UNREACHABLE : EXIT_USAGE;
        else
            code = connected ? EXIT_INTERRUPTED : converse(&c, &err);
    }
    if (err.message[0])
        fprintf(stderr, "lepton chat: %s\n", err.message);
    client_close(&c.client);
    local_stop(&c.local, 0);
    chat_format_close(&c.format);
    json_decref(c.messages);
    buffer_release(&c.input);
    config_release(&table, &s);
    return code;
}
