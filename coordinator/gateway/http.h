/* http: the gateway's door for HTTP: connections and their limits, who may ask (keys.h), routes, and each
 * request as an exchange with the coordinator (upstream.h). libmicrohttpd reads and writes HTTP; its threads
 * never wait for an answer: a connection that has nothing to send is suspended until there is something.
 *
 * What is bounded: connections; bytes of headers, of one body, of all bodies together; the time until a
 * request is there whole (slowloris); the time that a connection takes nothing though there is something for
 * it; what waits for one reader (exchange.h). A client that hangs up is noticed within WATCH_MS, though its
 * connection is suspended, by a thread of its own that looks after connections.
 *
 *   http.c           the daemon, connections, the thread that watches them
 *   http_routes.c    what each request is, and its answer */
#ifndef LEPTON_COORDINATOR_GATEWAY_HTTP_H
#define LEPTON_COORDINATOR_GATEWAY_HTTP_H

#include "coordinator/gateway/keys.h"
#include "coordinator/gateway/openai.h"
#include "coordinator/gateway/upstream.h"

struct http_options {
    const char *listen; /* "127.0.0.1:8080", "[::1]:0" */
    struct keys *keys;  /* NULL: whoever reaches the port may ask; it must be a loopback address then */
    struct upstream *upstream;
    const struct openai_chat *chat; /* NULL: conversations are refused */
    uint32_t threads, max_connections, max_connections_per_address /* 0: no bound of its own */;
    uint64_t max_body_bytes, max_bodies_bytes; /* of one; of all that are held at once */
    uint64_t receive_ms;                       /* for a request to be there whole */
    uint64_t stall_ms;                         /* without reading what is there for it */
};

struct http;
int http_open(struct http **out, const struct http_options *options, struct err *err);
/* "127.0.0.1:8080", with the port that was chosen. */
const char *http_address(const struct http *h);
/* No new connections, and no new work over those that are open. */
void http_drain(struct http *h);
/* Requests that have not ended. */
uint32_t http_live(struct http *h);
/* After upstream_stop: what is left of the answers gets a second to be read. */
void http_close(struct http **h);

#endif
