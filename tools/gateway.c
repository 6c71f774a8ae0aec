/* lepton gateway: HTTP in front of a coordinator, in a process of its own: it may die without a native client
 * or another gateway noticing, and the coordinator may die without its clients losing their streams. Here are
 * its options, its chat templates and its signals; the work is in coordinator/gateway. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/gateway/http.h"
#include "tools/command.h"
#include "worker/model/chat.h"

#define MAX_TEMPLATES 64

struct gateway_settings {
    struct client_settings client;
    char *listen, *listen_file, *api_keys, *new_key, *log_level, *log_format;
    struct config_strings chat_template;
    bool no_keys;
    int64_t threads, max_connections, max_connections_per_address, max_body_bytes, max_bodies_bytes;
    int64_t receive_timeout_ms, stall_timeout_ms, retry_ms, ping_ms, drain_timeout_ms;
};

#define OPTION(member) offsetof(struct gateway_settings, member)
#define TEXT(...)      CONFIG_TEXT(struct gateway_settings, __VA_ARGS__)
#define NUMBER(...)    CONFIG_NUMBER(struct gateway_settings, __VA_ARGS__)

static const struct config_option options[] = {
    CLIENT_OPTIONS(struct gateway_settings, client),
    TEXT(listen, "127.0.0.1:8080", "HOST:PORT",
         "Where HTTP clients connect ([HOST]:PORT for IPv6; port 0: a free one). It is not encrypted: beyond "
         "one "
         "machine put a proxy with TLS in front."),
    TEXT(listen_file, NULL, "PATH",
         "Write HOST:PORT, with the port that was chosen, to this file once it listens."),
    TEXT(api_keys, NULL, "PATH",
         "The file of API keys: names and hashes, mode 0600; read again when it was changed. Needed unless "
         "no_keys."),
    {.name = "no_keys",
     .kind = CONFIG_BOOL,
     .offset = OPTION(no_keys),
     .help = "Let whoever reaches the port ask; taken with a loopback address alone."},
    {.name = "new_key",
     .kind = CONFIG_STRING,
     .offset = OPTION(new_key),
     .value = "NAME",
     .help = "Make a key for NAME, add it to the file api_keys, print it, and exit: it is kept nowhere.",
     .given_only = true},
    {.name = "chat_template",
     .kind = CONFIG_STRINGS,
     .offset = OPTION(chat_template),
     .value = "[MODEL=]NAME|FILE",
     .help = "How conversations are written for MODEL, or for every other one: a built-in template (`lepton "
             "template --list`), a file, or the GGUF file whose template it is; without, conversations are "
             "refused."},
    NUMBER(threads, 1, 64, "2", "Threads that read and write HTTP."),
    NUMBER(max_connections, 1, 65536, "1024", "Most HTTP connections; new ones are closed at once."),
    NUMBER(max_connections_per_address, 0, 65536, "0",
           "Of them, most from one address; 0: no bound of its own."),
    NUMBER(max_body_bytes, 1024, 67108864, "16777216", "Most bytes of the body of one request (413)."),
    NUMBER(max_bodies_bytes, 1048576, 1e12, "268435456",
           "Most bytes of bodies that are being received (503)."),
    NUMBER(receive_timeout_ms, 100, 3600000, "30000",
           "Milliseconds for a request to be there whole; slower ones, and idle connections, are closed."),
    NUMBER(stall_timeout_ms, 1000, 3600000, "10000",
           "Milliseconds, in whole seconds, after which a client that takes nothing of its answer is cut."),
    NUMBER(retry_ms, 0, 3600000, "30000",
           "Milliseconds for which a coordinator that was lost is looked for; streams go on when it is "
           "found, and "
           "end with an error when not."),
    NUMBER(
        ping_ms, 100, 3600000, "5000",
        "Milliseconds of silence after which a stream is sent a comment, so that nobody takes it for dead."),
    NUMBER(drain_timeout_ms, 0, 86400000, "30000", "Milliseconds that requests get to finish after SIGTERM."),
    {.name = "log_level",
     .kind = CONFIG_STRING,
     .offset = OPTION(log_level),
     .standard = "info",
     .value = "LEVEL",
     .choices = "debug|info|warn|error",
     .help = "The least level that is logged."},
    {.name = "log_format",
     .kind = CONFIG_STRING,
     .offset = OPTION(log_format),
     .standard = "text",
     .value = "NAME",
     .choices = "text|json",
     .help = "Log lines for people or for machines."},
};

static const struct config_table table = {
    .program = "lepton gateway",
    .about =
        "Serves HTTP clients as OpenAI's API does (completions, chat completions, models), as a client of a "
        "running coordinator. Clients keep their streams when the coordinator is started again. See "
        "docs/gateway.md.",
    .after =
        "signals:\n  TERM, INT  drain: take nothing new, let what runs finish, exit; a second one exits at "
        "once\n"
        "exit codes:\n  0 drained and stopped   1 could not start   2 wrong usage   130 stopped at once\n"
        "examples:\n  lepton gateway --no-keys --chat-template model.gguf\n"
        "  lepton gateway --api-keys keys.txt --new-key alice && lepton gateway --api-keys keys.txt\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct gateway_settings),
};

/* ---- chat templates ---- */
struct templates {
    pthread_mutex_t lock; /* rendering counts references of what all conversations share */
    struct {
        char *model; /* NULL: of every model that has none of its own */
        struct chat_format *format;
    } of[MAX_TEMPLATES];
    size_t count;
};

static struct chat_format *template_of(const struct templates *t, struct wire_str model)
{
    struct chat_format *any = NULL;
    for (size_t i = 0; i < t->count; i++) {
        if (t->of[i].model && wire_str_is(model, t->of[i].model))
            return t->of[i].format;
        if (!t->of[i].model)
            any = t->of[i].format;
    }
    return any;
}

static int render(void *context, struct wire_str model, const json_t *messages, struct openai_prompt *out,
                  struct err *err)
{
    struct templates *t = context;
    struct chat_input input = {.messages = messages, .now = time(NULL)};
    struct chat_format *f = template_of(t, model);
    if (!f)
        return err_set_code(err, 404,
                            "no chat template for model \"%.*s\": the gateway's option chat_template names "
                            "them",
                            (int)(model.size < 128 ? model.size : 128), model.data ? model.data : "");
    pthread_mutex_lock(&t->lock);
    int rc = chat_format_render(f, &input, &out->text, err);
    pthread_mutex_unlock(&t->lock);
    if (rc) {
        err->code = 400;
        return -1;
    }
    out->no_bos = chat_format_begins_with_bos(f, &out->text);
    out->stop = chat_format_token(f, "eos_token");
    return 0;
}

/* "[MODEL=]NAME|FILE" */
static int open_templates(struct templates *t, const struct config_strings *from, struct err *err)
{
    pthread_mutex_init(&t->lock, NULL);
    if (from->count > MAX_TEMPLATES)
        return err_set(err, "chat_template: expected at most %d", MAX_TEMPLATES);
    for (size_t i = 0; i < from->count; i++) {
        const char *text = from->item[i], *equals = strchr(text, '=');
        if (chat_format_open(&t->of[i].format, NULL, equals ? equals + 1 : text, err))
            return err_prefix(err, "chat_template");
        t->of[i].model = equals ? xasprintf("%.*s", (int)(equals - text), text) : NULL;
        t->count++;
    }
    return 0;
}

static void close_templates(struct templates *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->of[i].model);
        chat_format_close(&t->of[i].format);
    }
}

/* ---- running ---- */
static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL); /* before all threads, which inherit it */
    signal(SIGPIPE, SIG_IGN);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (fd < 0)
        die("signalfd: %s", strerror(errno));
    return fd;
}

/* True: a signal came within so many milliseconds (-1: whenever). */
static bool take_signal(int fd, int ms)
{
    struct signalfd_siginfo info;
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    return poll(&ready, 1, ms) > 0 && read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info);
}

static int serve(struct http *http, int signals, uint64_t drain_timeout_ms)
{
    while (!take_signal(signals, -1))
        continue;
    log_info("gateway", "draining: %u requests", http_live(http));
    http_drain(http);
    for (uint64_t end_ms = clock_now_ms() + drain_timeout_ms; http_live(http) > 0 && clock_now_ms() < end_ms;)
        if (take_signal(signals, 20))
            return EXIT_INTERRUPTED;
    return EXIT_OK;
}

static int write_address(const char *path, const char *address, struct err *err)
{
    char *temporary = xasprintf("%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "w");
    bool written = file && fprintf(file, "%s\n", address) > 0;
    written = file && fclose(file) == 0 && written && rename(temporary, path) == 0;
    if (!written) {
        err_set(err, "%s: %s", path, strerror(errno));
        unlink(temporary);
    }
    free(temporary);
    return written ? 0 : -1;
}

static int check(const struct gateway_settings *s, struct err *err)
{
    if (s->new_key && !s->api_keys)
        return err_set(err, "new_key: expected api_keys, the file to which it is added");
    if (!s->new_key && !s->api_keys && !s->no_keys)
        return err_set(err, "api_keys: expected the file of API keys (new_key makes one), or no_keys");
    if (s->api_keys && s->no_keys)
        return err_set(err, "no_keys: expected it without api_keys");
    if (s->max_bodies_bytes < s->max_body_bytes)
        return err_set(err, "max_bodies_bytes: expected at least max_body_bytes (%lld), found %lld",
                       (long long)s->max_body_bytes, (long long)s->max_bodies_bytes);
    return 0;
}

static int make_key(const struct gateway_settings *s, struct err *err)
{
    char key[KEYS_TEXT_BYTES];
    if (keys_add(s->api_keys, s->new_key, key, err))
        return EXIT_FAILED;
    printf("%s\n", key);
    return EXIT_OK;
}

static struct http_options http_settings(const struct gateway_settings *s)
{
    return (struct http_options){.listen = s->listen,
                                 .threads = (uint32_t)s->threads,
                                 .max_connections = (uint32_t)s->max_connections,
                                 .max_connections_per_address = (uint32_t)s->max_connections_per_address,
                                 .max_body_bytes = (uint64_t)s->max_body_bytes,
                                 .max_bodies_bytes = (uint64_t)s->max_bodies_bytes,
                                 .receive_ms = (uint64_t)s->receive_timeout_ms,
                                 .stall_ms = (uint64_t)s->stall_timeout_ms};
}

static int run(const struct gateway_settings *s, struct err *err)
{
    struct templates templates = {.count = 0};
    struct openai_chat chat = {.context = &templates, .render = render};
    struct upstream_options up = {
        .client = &s->client, .retry_ms = (uint64_t)s->retry_ms, .ping_ms = (uint64_t)s->ping_ms};
    struct http_options ho = http_settings(s);
    struct upstream *upstream = NULL;
    struct keys *keys = NULL;
    struct http *http = NULL;
    int code = EXIT_FAILED, signals = open_signals();
    if (open_templates(&templates, &s->chat_template, err) ||
        (s->api_keys && keys_open(&keys, s->api_keys, err)) || upstream_open(&upstream, &up, err))
        goto out;
    ho.keys = keys;
    ho.upstream = upstream;
    ho.chat = templates.count ? &chat : NULL;
    if (http_open(&http, &ho, err) ||
        (s->listen_file && write_address(s->listen_file, http_address(http), err)))
        goto out;
    if (keys && keys_count(keys) == 0)
        log_warn("gateway", "%s holds no key: nobody can ask", s->api_keys);
    log_info("gateway", "listening on http://%s, version " LEPTON_VERSION, http_address(http));
    code = serve(http, signals, (uint64_t)s->drain_timeout_ms);
    unlink(s->listen_file ? s->listen_file : "");
    log_info("gateway", "stopped");
out:
    if (upstream)
        upstream_stop(upstream);
    http_close(&http);
    upstream_close(&upstream);
    keys_close(&keys);
    close_templates(&templates);
    close(signals);
    return code;
}

int command_gateway(int argc, char **argv)
{
    struct gateway_settings s;
    struct err err = {0};
    enum log_level level = LOG_INFO;
    int code = EXIT_USAGE;
    config_main(&table, &s, argc, argv, NULL, 0);
    log_level_from_name(s.log_level, &level);
    log_setup("gateway", level, strcmp(s.log_format, "json") == 0 ? LOG_JSON : LOG_TEXT);
    if (check(&s, &err) == 0)
        code = s.new_key ? make_key(&s, &err) : run(&s, &err);
    if (err.message[0])
        fprintf(stderr, "lepton gateway: %s\n", err.message);
    config_release(&table, &s);
    return code;
}
