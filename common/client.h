/* client: a connection to a coordinator, for every program that is its client: connect with clear reasons
 * when it does not work, send and receive with timeouts, find a lost coordinator again.
 *
 * It speaks common/wire alone and knows no model and no request. A lost connection is noticed at once (a
 * monitor on the socket tells). One thread. */
#ifndef LEPTON_COMMON_CLIENT_H
#define LEPTON_COMMON_CLIENT_H

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
/* The same without connecting: for client_reopen, by whom nobody need be there yet. */
int client_create(struct client **out, const struct client_settings *settings, struct err *err);
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

#endif
