/* client: a connection to a coordinator, for every subcommand that needs one: connect with clear reasons when
 * it does not work, send and receive with timeouts, and the streaming core: any number of prompts at once.
 *
 * It speaks common/wire alone and knows no model. A lost connection is noticed at once (a monitor on the
 * socket tells); streams then go on behind what they have had, over a new one. One thread. */
#ifndef LEPTON_TOOLS_CLIENT_H
#define LEPTON_TOOLS_CLIENT_H

#include "common/config.h"
#include "common/wire.h"

/* Where the coordinator is and who we are. In a table of options: CLIENT_OPTIONS(struct, member). */
struct client_settings {
    char *config;     /* the file that was given, or NULL */
    char *endpoint;   /* tcp://HOST:PORT */
    char *server_key; /* path of the coordinator's .pub file */
    char *key;        /* path of our own .key file */
};

#define CLIENT_OPTIONS(type, member)                                                                      \
    {.name = "config",                                                                                    \
     .letter = 'c',                                                                                       \
     .kind = CONFIG_STRING,                                                                               \
     .offset = offsetof(type, member.config),                                                             \
     .value = "PATH",                                                                                     \
     .help = "A file with endpoint, server_key and key, such as `lepton run` writes; default client.cfg " \
             "in $LEPTON_HOME, else $XDG_RUNTIME_DIR/lepton, else /tmp/lepton-UID.",                      \
     .given_only = true},                                                                                 \
        {.name = "endpoint",                                                                              \
         .kind = CONFIG_STRING,                                                                           \
         .offset = offsetof(type, member.endpoint),                                                       \
         .value = "tcp://HOST:PORT",                                                                      \
         .help = "Where the coordinator listens."},                                                       \
        {.name = "server_key",                                                                            \
         .kind = CONFIG_STRING,                                                                           \
         .offset = offsetof(type, member.server_key),                                                     \
         .value = "PATH",                                                                                 \
         .help = "The coordinator's .pub file."},                                                         \
    {                                                                                                     \
        .name = "key", .kind = CONFIG_STRING, .offset = offsetof(type, member.key), .value = "PATH",      \
        .help = "Our own .key file, of role client."                                                      \
    }

/* The directory of the files that `lepton run` leaves for other commands: $LEPTON_HOME, else
 * $XDG_RUNTIME_DIR/lepton, else /tmp/lepton-UID. With `create` it is made (0700). Refused unless it is ours
 * and closed to others. Returns a path to free(), or NULL. */
char *client_home(bool create, struct err *err);

struct client;
/* Connects and waits until the coordinator let us in. Settings that name no endpoint are read from client.cfg
 * in client_home(). Errors (code 503 unreachable, 401 refused by key, 0 bad settings) say what to do. */
int client_open(struct client **out, const struct client_settings *settings, uint64_t timeout_ms,
                struct err *err);
void client_close(struct client **c);
const char *client_endpoint(const struct client *c);
/* How long streams look for a coordinator that was lost; 0: not at all. CLIENT_RETRY_MS when nobody says. */
#define CLIENT_RETRY_MS 30000
void client_retry_for(struct client *c, uint64_t retry_ms);
uint64_t client_retry_ms(const struct client *c);
/* Gives the connection up and makes a new one; what was sent over the old one and not answered is not known
 * to have arrived. Errors as client_open's: only with code 503 it is worth to try again. */
int client_reopen(struct client *c, uint64_t timeout_ms, struct err *err);
/* After a loss: tries until a connection stands or `until_ms` (monotonic) has passed, with growing pauses. 1:
 * the descriptor of client_interrupt_on can be read. */
int client_find_again(struct client *c, uint64_t until_ms, struct err *err);
/* Whether an error is worth to try again for a stream that was lost with its coordinator: the groups have not
 * come back yet, or there is no room. */
bool client_worth_trying(uint64_t code);
/* While requests run, this descriptor (a signalfd) becoming readable cancels them all; it is not read. */
void client_interrupt_on(struct client *c, int fd);

int client_send(struct client *c, const struct wire_message *m, struct err *err);
/* 1: *m is the next message (release it); 0: none came in time; -1: the connection is lost. */
int client_receive(struct client *c, struct wire_message *m, uint64_t timeout_ms, struct err *err);
/* As client_receive; with `watch` also 2: the descriptor of client_interrupt_on can be read. */
int client_receive_watching(struct client *c, struct wire_message *m, uint64_t timeout_ms, bool watch,
                            struct err *err);
/* Sends what is answered with a status (0), or an error (-1). */
int client_ask(struct client *c, const struct wire_message *m, uint64_t timeout_ms, struct err *err);
/* Asks for the status; *reply is to be released. */
int client_status(struct client *c, bool verbose, uint64_t timeout_ms, struct wire_message *reply,
                  struct err *err);

/* What else might have stood in a token's place. */
struct client_alternative {
    uint32_t id;
    double logprob;
    char *piece; /* the token's text alone */
    size_t piece_bytes;
};

/* The log-probability of one token, when it was asked for. */
struct client_logprob {
    double logprob;
    char *piece;
    size_t piece_bytes;
    struct client_alternative *top; /* [top_count] */
    uint32_t top_count;
};

/* One answer to a prompt. */
struct client_choice {
    uint32_t *tokens;
    struct client_logprob *logprobs; /* [token_count], or NULL */
    size_t token_count;
    struct buffer text;
    bool over;
    char finish_reason[16];
};

/* One prompt and what became of it. */
struct client_job {
    struct wire_generate ask; /* wire_init'ed; the request id is chosen here */
    /* Called for every piece of text as it comes, the rest at the end included; may be NULL. */
    void (*on_text)(struct client_job *job, uint64_t choice, const char *text, size_t bytes);
    void (*on_token)(struct client_job *job); /* called for every token, with or without text; may be NULL */
    void *context;                            /* the caller's */
    /* the result */
    bool over;
    struct err error;             /* code 0: it went well */
    struct client_choice *choice; /* [ask.sampling.n], from client_generate_many on */
    size_t token_count;           /* of all choices */
    char group[WIRE_MAX_ID + 1];
    uint64_t numeric; /* of the first token: names the numeric class */
    uint64_t resumed; /* how often it was asked for again after a loss */
    uint64_t epoch, stages, moves, seed, prompt_tokens, cached_tokens;
    bool mixed; /* groups of more than one numeric class generated it */
    uint64_t completion_tokens, drafted_tokens, accepted_tokens; /* of all choices */
    uint64_t queue_us, prefill_us, decode_us;  /* as the cluster measured, of the slowest choice */
    uint64_t sent_us, first_token_us, over_us; /* as we saw it, monotonic; 0 = never */
};

/* Runs all jobs at once until each has its outcome. Returns 0 then, though jobs may have failed (job->error);
 * -1 when the coordinator was lost for good or does not answer: the jobs that were not over carry that error
 * too. A coordinator that is lost is looked for again (client_retry_for), and every stream goes on behind
 * what it has had: nothing comes twice or is missing. *interrupted (may be NULL): they were cancelled through
 * client_interrupt_on. */
int client_generate_many(struct client *c, struct client_job *jobs, size_t count, bool *interrupted,
                         struct err *err);
void client_job_release(struct client_job *job);
double client_job_tokens_per_second(const struct client_job *job); /* 0 for less than two tokens */
/* "stop", "length", "cancelled" of a choice; "" when it did not end well. */
const char *client_job_finish(const struct client_job *job, uint64_t choice);
/* The result as one line of JSON: tokens, text, finish_reason and logprobs (when asked for) of choice 0,
 * prompt_tokens, cached_tokens, completion_tokens, drafted_tokens, accepted_tokens, seed, group, stages,
 * moves, mixed, resumed, timings{queue_ms, ttft_ms, total_ms, tokens_per_second}; with n > 1 choices[] with
 * index and the first four as well; of a failed one error{code, message}. */
char *client_job_json(const struct client_job *job);
/* The exit code that fits how the job ended (tools/command.h). */
int client_job_exit_code(const struct client_job *job);

#endif
