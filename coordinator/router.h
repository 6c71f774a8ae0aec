/* router: the coordinator's one socket: a ROUTER behind CURVE and ZAP, as wire messages with known senders.
 *
 * What it guards: only peers whose key is known get in (failed handshakes are counted and logged); a frame is
 * exactly [routing id][body]; a frame that is none is answered with an error, counted and logged; a
 * connection with ROUTER_MAX_STRIKES bad frames is not read any more. A send never blocks the one thread: a
 * peer that is gone or does not read is the caller's decision. What messages mean it does not know. */
#ifndef LEPTON_COORDINATOR_ROUTER_H
#define LEPTON_COORDINATOR_ROUTER_H

#include "common/wire.h"
#include "coordinator/peer.h"

#define ROUTER_MAX_STRIKES 16

struct router_options {
    const char *endpoint; /* tcp://ADDRESS:PORT, tcp://INTERFACE:PORT (PORT may be *), ipc://PATH */
    bool public;          /* an address that means every interface is allowed */
    const struct curve_key *key;
    const char *authorized; /* directory of .pub files */
    uint32_t max_connections;
    uint32_t stall_ms; /* a peer that reads nothing for so long is not taken for dead yet */
};

struct router;
/* Binds. Errors name the endpoint. */
int router_open(struct router **out, const struct router_options *options, struct err *err);
/* Unsent messages get `linger_ms` to leave. */
void router_close(struct router **r, uint32_t linger_ms);
/* The endpoint with the port that was chosen: "tcp://127.0.0.1:40123". */
const char *router_endpoint(const struct router *r);

/* Sleeps until something arrives, `other_fd` can be read, or the time is over (UINT64_MAX: for ever). True
 * when other_fd can be read. */
bool router_wait(struct router *r, int other_fd, uint64_t timeout_ms);

struct router_message {
    struct peer from;
    struct wire_message wire; /* release it */
};
/* The next message: 1; nothing is there: 0; something that was no message (dealt with inside): -1. */
int router_receive(struct router *r, struct router_message *out);

/* A peer that had sent something and whose connection is no more; false when there is none (any more). Ask
 * after a turn of router_receive; `drained`: it had found nothing more, so no last words are missed. */
bool router_left(struct router *r, bool drained, struct peer *out);

/* Is the key behind the connection authorized still? It was when it connected. */
bool router_allows(struct router *r, const struct peer *peer);

/* A frame that should not have come: answers with *about (its code, and the request or group it names) and
 * the text, logs and counts it. Every code but 409 is a strike: a worker that outlived a coordinator or its
 * lease cannot know that its frames have no meaning any more, and must be able to say hello again. */
void router_refuse(struct router *r, const struct peer *peer, const struct wire_error *about, const char *fmt,
                   ...) PRINTF_LIKE(4, 5);

enum router_sent { ROUTER_SENT, ROUTER_GONE, ROUTER_FULL };
enum router_sent router_send(struct router *r, const struct peer *to, const struct wire_message *m);

uint64_t router_bad_frames(const struct router *r);
uint64_t router_refused_peers(const struct router *r);
uint32_t router_connections(const struct router *r); /* that are open, unfinished handshakes included */

#endif
