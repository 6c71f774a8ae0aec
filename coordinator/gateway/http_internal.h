/* What http.c and http_routes.c share. */
#ifndef LEPTON_COORDINATOR_GATEWAY_HTTP_INTERNAL_H
#define LEPTON_COORDINATOR_GATEWAY_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <pthread.h>

#include "coordinator/gateway/http.h"

/* A connection, as the thread that watches sees it. */
struct http_connection {
    struct http_connection *next, **link;
    int fd;
    bool receiving;            /* a request is not there whole yet */
    uint64_t since_ms;         /* since when */
    struct exchange *exchange; /* what it waits for or is sent; NULL: nothing; borrowed from the call */
};

struct http {
    struct http_options options;
    struct MHD_Daemon *daemon;
    char address[80];
    bool loopback;
    char name[24]; /* begins the ids of our requests: nobody else has them */
    pthread_t watcher;
    pthread_mutex_t lock; /* of what follows */
    struct http_connection *connections;
    uint64_t bodies_bytes, number; /* of requests so far */
    uint32_t live;
    bool draining, closing;
};

/* One request of a connection, from its headers to its end. */
struct http_call {
    struct http *http;
    struct MHD_Connection *connection;
    struct http_connection *watched;
    int (*serve)(struct http_call *call); /* its route */
    const char *argument;                 /* what stands behind the route's path */
    const char *allow;                    /* with 405: the methods of the route */
    enum openai_route openai;
    char *path;
    char method[12], who[KEYS_NAME_BYTES], request_id[129];
    struct buffer body;
    uint64_t reserved; /* of bodies_bytes */
    bool begun, discarding;
    struct openai_error refusal; /* to be said when the body has passed by; code 0: none */
    struct exchange *exchange;
    uint64_t started_us;
    int status;
};

/* ---- http_routes.c ---- */
/* Headers are there: finds the route and refuses what can be refused now. 0, or -1 with the refusal. */
int http_begin(struct http_call *call);
/* The request is there whole, or its connection was woken: MHD_YES, or MHD_NO to cut it. */
enum MHD_Result http_serve(struct http_call *call);
enum MHD_Result http_refuse(struct http_call *call, const struct openai_error *e, bool close);

/* ---- http.c ---- */
/* Reserves bytes for bodies; false: there is no room. */
bool http_reserve(struct http_call *call, uint64_t bytes);
void http_watch(struct http_call *call, struct exchange *x);
bool http_is_draining(struct http *h);
uint64_t http_next_number(struct http *h);

#endif
