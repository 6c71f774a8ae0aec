/* exchange: one HTTP request and its answer, between the two threads that work on it: the one of its HTTP
 * connection, which reads what there is, and the one of the wire (upstream.h), which brings it.
 *
 *   HTTP thread:  exchange_new, upstream_submit, exchange_status ... exchange_take ..., exchange_leave
 *   wire thread:  exchange_token, _done, _fail, _ping;  exchange_release when it is over
 *
 * Until the status is known the HTTP side waits; then it takes bytes until the end. Whoever finds nothing is
 * `asleep`, and is woken when there is something: `sleep` and `wake` are called in turn, with the lock held.
 * What is kept is bounded: of a stream by the tokens that the wire was granted (credit), of one object by
 * EXCHANGE_MAX_ANSWER.
 *
 * The bookkeeping of the wire (ids that were delivered, deadlines) lies here too; it is the wire thread's
 * alone. */
#ifndef LEPTON_COORDINATOR_GATEWAY_EXCHANGE_H
#define LEPTON_COORDINATOR_GATEWAY_EXCHANGE_H

#include <pthread.h>

#include "coordinator/gateway/openai.h"

#define EXCHANGE_MAX_ANSWER (64u << 20)
/* Tokens of a stream that are under way or wait to be read. */
#define EXCHANGE_CREDIT 32

/* The tokens of one choice that came. */
struct exchange_choice {
    uint32_t *ids;
    uint32_t count;
    bool over;
};

struct exchange {
    /* set once, before the wire thread knows of it */
    struct openai_request request;
    char id[WIRE_MAX_ID + 1];
    char salt[40]; /* what becomes of cache_salt; empty: none */
    void (*sleep)(void *context);
    void (*wake)(void *context);
    void *context;

    pthread_mutex_t lock; /* of what follows */
    int users;            /* of the two */
    struct openai_answer answer;
    struct buffer out;
    size_t taken;      /* of out */
    uint64_t consumed; /* tokens whose events were taken to the last byte; the wire grants so many again */
    uint64_t held;     /* tokens whose events lie in out */
    int status;        /* 0: not known yet; 200, or that of `error` */
    struct openai_error error;
    bool over;                   /* nothing more comes */
    bool gone;                   /* the HTTP side has left, or its client */
    bool asleep;                 /* the HTTP side waits */
    uint64_t spoken_ms, over_ms; /* when the last byte was added; when it was over */

    /* the wire thread's */
    struct exchange_choice *choices;       /* [n] */
    struct exchange *next;                 /* in its bucket */
    bool accepted, seeded, lost;           /* by this connection; once; a connection was lost under it */
    uint64_t seed, numeric, began_context; /* what the first token said, and accepted before it */
    uint64_t first_ms, sent_ms, resend_ms, give_up_ms; /* 0: not; monotonic */
    uint64_t granted;                                  /* of consumed */
    uint64_t tokens;
};

/* Takes the request over: *r is empty afterwards. */
struct exchange *exchange_new(struct openai_request *r, const char *id, int64_t created);
void exchange_release(struct exchange *x); /* by each of the two, once */

/* ---- wire side ---- */
/* False: the answer is larger than EXCHANGE_MAX_ANSWER. */
bool exchange_token(struct exchange *x, const struct wire_token *t, uint64_t now_ms);
/* True: it was the last. */
bool exchange_done(struct exchange *x, const struct wire_done *d, uint64_t now_ms);
/* Ends it with the error: its status when nothing was said yet, else an event. */
void exchange_fail(struct exchange *x, const struct openai_error *e, uint64_t now_ms);
/* A stream to which nothing was said for so long gets a ping (and with it the status 200). */
void exchange_ping(struct exchange *x, uint64_t silent_ms, uint64_t now_ms);
/* Tokens that were consumed since the last call. */
uint64_t exchange_grant(struct exchange *x);
/* What may be sent of it from its next generate on: at least one. What it still holds is granted when it is
 * read. */
uint64_t exchange_credit(struct exchange *x);

/* ---- HTTP side ---- */
/* The status; 0: it is asleep; -1: its client is gone. */
int exchange_status(struct exchange *x);
/* Copies up to `most` bytes: how many; 0: it is asleep; -1: that was all; -2: cut off. *drained: the wire may
 * grant more. */
long exchange_take(struct exchange *x, char *into, size_t most, bool *drained);
/* The client is gone: wakes whoever sleeps. Any thread. */
void exchange_abandon(struct exchange *x);
/* Nobody sleeps on it any more or reads it; its release is still due. True: it was not over. */
bool exchange_leave(struct exchange *x);

#endif
