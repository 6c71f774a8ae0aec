/* link_internal: what the parts of the link share: link.c has the socket, what comes through it, and the
 * thread; link_lease.c the epoch: hellos, heartbeats, the lease, fencing; link_work.c the requests: what is
 * asked of the step thread, and what it says of them. All of it is the link's thread alone. */
#ifndef LEPTON_WORKER_LINK_INTERNAL_H
#define LEPTON_WORKER_LINK_INTERNAL_H

#include <pthread.h>

#include "worker/admit.h"
#include "worker/canary.h"
#include "worker/link.h"
#include "worker/live.h"
#include "worker/token_batch.h"

#define SILENCE_MS      5000 /* of a connection over which nothing comes back */
#define HEARTBEATS_KEPT 64
#define MESSAGES_KEPT   1024

/* Messages that were read and wait for their turn: a ring. Assigns cost time (they are tokenised), and the
 * answers to heartbeats, which keep the lease, must not wait behind them. */
struct backlog {
    struct wire_message item[MESSAGES_KEPT];
    uint32_t first, count;
};

struct link {
    struct link_options o;
    pthread_t thread;
    void *context, *socket;
    int control; /* eventfd: drain (1) and stop (1 << 32) requests */
    uint64_t incarnation, epoch, last_epoch;
    uint64_t lease_ms, heartbeat_ms;
    uint64_t sequence, sent_ms[HEARTBEATS_KEPT]; /* heartbeats: when number n was sent */
    uint64_t round_trip_ms;                      /* of the last heartbeat that was answered */
    uint64_t lease_until_ms, next_heartbeat_ms, next_hello_ms;
    uint64_t greeted_ms; /* when the first hello was sent that may still be answered; 0 = none */
    bool unsent;         /* the hello waits for the connection */
    bool lost;           /* a message about a request could not be sent */
    bool draining, left, stop, refused_logged;
    struct backlog backlog;
    struct token_batch batch;
    struct live_table live;
    struct buffer encoded;
    struct admit admit;
    struct canary canary;
    struct token_ids ids;
};

/* ---- link.c ---- */
/* Sends without waiting. A full or missing connection loses the message. A lost heartbeat costs lease, a lost
 * hello is said again; what was said about a request cannot be said again, so its loss ends the epoch
 * (link_keep_time): the coordinator then ends the epoch's requests, and none waits for what never comes. */
bool link_send(struct link *l, const struct wire_message *m);
struct wire_str link_group(const struct link *l);
int link_open_socket(struct link *l, struct err *err);
void link_clear_backlog(struct backlog *b);

/* ---- link_lease.c ---- */
/* True when a message's (group, epoch) are ours and in force (I5). */
bool link_current(const struct link *l, struct wire_str group, uint64_t epoch);
void link_take_welcome(struct link *l, const struct wire_welcome *w, uint64_t now_ms);
void link_take_lease(struct link *l, const struct wire_lease *lease);
/* An error that is about no request concerns the group itself. */
void link_take_error(struct link *l, const struct wire_error *e, uint64_t now_ms);
/* Does what time asks for: fences, heartbeats, hellos; and in how many milliseconds it asks for something. */
void link_keep_time(struct link *l);
long link_next_timeout(const struct link *l);

/* ---- link_work.c ---- */
void link_take_assign(struct link *l, const struct wire_assign *a);
void link_take_cancel(struct link *l, const struct wire_cancel *c);
void link_begin_drain(struct link *l);
/* Tells the coordinator of an event of the step thread, now or with the next batch of tokens. */
void link_take_event(struct link *l, const struct event *e);
/* Sends the tokens that wait, if any do. */
void link_send_batch(struct link *l);

#endif
