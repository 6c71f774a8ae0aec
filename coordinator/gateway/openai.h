/* openai: the JSON of OpenAI's completions and chat completions <-> messages of common/wire. PURE: it knows
 * no socket, no connection and no clock but what it is told.
 *
 * A body becomes a `generate`, or an error that names the field. What would alter the output and is not known
 * is refused; what cannot alter it is ignored and named. Numbers and their bounds come from the wire's own
 * table, so that the two doors of a coordinator never take different things.
 *
 * An answer takes tokens and ends as the wire brings them, and writes server-sent events, or at the end the
 * one object, into a buffer. */
#ifndef LEPTON_COORDINATOR_GATEWAY_OPENAI_H
#define LEPTON_COORDINATOR_GATEWAY_OPENAI_H

#include <jansson.h>

#include "common/wire.h"

/* ---- errors ---- */
/* In err: the HTTP status and the message. */
struct openai_error {
    struct err err;
    const char *code; /* static; NULL: what the status says */
    char param[64];   /* the field; empty: none */
    uint64_t retry_after_ms;
};

/* Fills *e and returns -1. param may be NULL. */
int openai_fail(struct openai_error *e, int status, const char *code, const char *param, const char *fmt, ...)
    PRINTF_LIKE(5, 6);
/* {"error":{"message","type","param","code"}} */
void openai_error_write(const struct openai_error *e, struct buffer *out);

/* ---- requests ---- */
#define OPENAI_MAX_REQUEST_ID 256 /* bytes of the field request_id */
#define OPENAI_MAX_SALT       256

enum openai_route { OPENAI_COMPLETIONS, OPENAI_CHAT };

/* A conversation as the text that its model was trained on. */
struct openai_prompt {
    struct buffer text;
    bool no_bos;      /* the text begins with it already */
    const char *stop; /* the model's own end of a turn, or NULL; lives as long as who rendered it */
};
/* How conversations become prompts: the gateway knows no template and no vocabulary. */
struct openai_chat {
    void *context;
    /* Errors: code 400, or 404 for a model without a template. Any thread. */
    int (*render)(void *context, struct wire_str model, const json_t *messages, struct openai_prompt *out,
                  struct err *err);
};

struct openai_request {
    enum openai_route route;
    bool stream, include_usage;
    struct wire_generate ask;   /* borrows from below; request, idempotent and credit are the sender's */
    struct wire_str request_id; /* the field; absent: none */
    char ignored[512];          /* names of fields that were ignored, ", " between */
    /* owned */
    json_t *body;
    struct openai_prompt prompt;
    struct wire_stop stop[WIRE_MAX_STOPS];
    struct wire_bias *bias;
};

/* Reads a body. `chat` may be NULL: conversations are refused then. *r is to be released in any case. */
int openai_read(struct openai_request *r, enum openai_route route, const void *body, size_t bytes,
                const struct openai_chat *chat, struct openai_error *e);
void openai_release(struct openai_request *r);

/* ---- answers ---- */
struct openai_choice;
struct openai_answer {
    enum openai_route route;
    bool stream, include_usage, logprobs;
    char id[WIRE_MAX_ID + 16];
    char *model;
    int64_t created; /* seconds since 1970 */
    uint64_t n;
    struct openai_choice *choices; /* [n] */
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
};

/* `id`: the wire's. */
void openai_answer_init(struct openai_answer *a, const struct openai_request *r, const char *id,
                        int64_t created);
void openai_answer_release(struct openai_answer *a);
/* Tokens and ends in the order in which the wire brings them; of a stream their events are appended. */
void openai_answer_token(struct openai_answer *a, const struct wire_token *t, struct buffer *out);
void openai_answer_done(struct openai_answer *a, const struct wire_done *d, struct buffer *out);
/* What is kept for the one object at the end, in bytes. */
size_t openai_answer_bytes(const struct openai_answer *a);
/* After the last done: the usage and [DONE], or the one object. */
void openai_answer_end(struct openai_answer *a, struct buffer *out);
/* In mid-stream; nothing comes behind it. */
void openai_answer_error(const struct openai_error *e, struct buffer *out);
/* While nothing else is to say. */
void openai_answer_ping(struct buffer *out);

#endif
