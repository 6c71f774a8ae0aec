/* requests: every live request: whose it is, what was asked, where it runs, the log of its tokens, who reads
 * it and how far, and how it ended. PURE: nothing is sent from here.
 *
 *   client's connection + client's id  <->  slot  <->  the coordinator's own id ("r17") that groups see
 *   client's key + client's id, of an idempotent request
 *
 * Invariants: one connection has each id at most once among its live requests, one key each idempotent id:
 * who asks for the same again becomes another reader of the one log. Each choice's log takes tokens in the
 * order 0, 1, 2, ... alone (I2), at most max_tokens of them, and bounded text. A request ends with one done
 * for each of its choices, or with one error (I1). An entry outlives its outcome until its readers have been
 * told (or are gone) and no group holds it; a complete idempotent one is then kept for those who ask again,
 * within bounds of bytes and time, the oldest leaving first. The log stays complete while the request lives:
 * when its group is lost or needs the room, another group is given the log and goes on behind it. */
#ifndef LEPTON_COORDINATOR_REQUESTS_H
#define LEPTON_COORDINATOR_REQUESTS_H

#include "common/wire.h"
#include "coordinator/peer.h"
#include "coordinator/suspects.h"

#define REQUEST_NO_GROUP UINT32_MAX
/* Most tokens and alternatives that the log of one request may have to hold: n x max_tokens x (1 +
 * top_logprobs). */
#define REQUEST_MAX_RECORDS (1u << 20)
#define REQUEST_MAX_READERS 8
#define REQUEST_DIGEST      16

struct request_token {
    uint32_t id;
    uint32_t text_bytes;
    uint64_t text_offset; /* in the log's text */
    /* with logprobs */
    float logprob;
    uint32_t piece_bytes; /* behind the text */
    uint32_t top_count;
    uint64_t top_offset; /* in the log's alternatives */
};

/* A likely token in another's place; its piece lies in the log's text. */
struct request_alternative {
    uint32_t id;
    float logprob;
    uint32_t piece_bytes;
    uint64_t piece_offset;
};

/* The log of one answer: tokens 0..token_count-1, and its end. */
struct request_choice {
    struct request_token *tokens;
    uint64_t token_count, token_capacity;
    uint64_t
        bare; /* the first of them, of which the text is not known: a run before this one delivered them */
    struct buffer text;
    struct buffer alternatives; /* of struct request_alternative */
    bool held;                  /* a group may still say something about it */
    bool ended;
    bool end_unknown;      /* and that was said by a run before this one: nobody else can be told how */
    struct wire_done done; /* its numbers once it is not held; with `ended` its strings: the two below and the
                              request's */
    char finish_reason[16];
    char *done_text;
};

/* How far a reader was sent one choice. */
struct request_cursor {
    uint64_t sent; /* tokens; more than there are: it had them from a run before this one */
    bool end_sent;
};

/* A connection that is sent the log. */
struct request_reader {
    bool gone;
    bool cut; /* too slow: nothing but an error is left for it */
    bool outcome_sent;
    bool unaccepted; /* it is to be told first that the request was taken, and how many waited before it */
    uint64_t queued;
    uint64_t credit;     /* tokens that it has room for; UINT64_MAX: whatever comes */
    uint64_t stalled_ms; /* since when it is behind, and how much it took is counted; 0 = it is not */
    uint32_t taken;      /* messages since then */
    struct request_cursor *cursors; /* [sampling.n] */
    struct peer client;
};

enum request_outcome { OUTCOME_NONE, OUTCOME_DONE, OUTCOME_ERROR };

struct request {
    /* What every token touches comes first, in few cache lines: a step brings tokens of many requests. */
    uint32_t slot; /* below the limit */
    bool used;
    bool waits;     /* not assigned yet */
    bool cancelled; /* the group was told to cancel */
    bool yielding;  /* and it waits again when the group has let go of it */
    bool again;     /* it ran before, and goes on behind what was delivered */
    bool packed;    /* its next token lies in a parcel that is being filled (dispatch_worker.c) */
    char id[24];    /* "r17": as groups know it; never used twice */
    uint32_t
        group; /* where it runs: REQUEST_NO_GROUP while it waits, and again when its group let go of it */
    uint32_t reader_count;
    uint64_t epoch;
    enum request_outcome outcome; /* how it ended */
    int error_code;
    uint64_t numeric, context;      /* of the group that generated its first token; 0: none did yet */
    struct request_choice *choices; /* [sampling.n] */
    struct request_reader *readers; /* [reader_count] */
    uint64_t max_tokens;
    struct wire_sampling sampling; /* the seed is set; its arrays are ours */
    char client_request[WIRE_MAX_ID + 1];
    struct peer client;             /* who asked first */
    bool idempotent;                /* its id is its key's, not its connection's */
    uint8_t digest[REQUEST_DIGEST]; /* of what was asked, of an idempotent one */
    /* what was asked */
    char *model; /* empty: the only one */
    char *prompt;
    uint32_t prompt_bytes;
    bool no_bos, special;
    struct wire_service service;      /* its strings are ours */
    char group_name[WIRE_MAX_ID + 1]; /* of the group it was given to last; empty before */
    char *only_model;     /* that it serves, where none was asked for by name; NULL: not known, or one was */
    uint64_t stage_count; /* of that group */
    uint64_t moves;       /* how often it went on at another group */
    uint64_t place_numeric; /* numeric class and context of the group it was given to last */
    uint64_t place_context;
    bool mixed; /* groups of another class went on with it */
    struct suspicion suspicion;
    bool remembered; /* what it is suspected of outlives it */
    uint32_t class;
    uint64_t accepted_us, assigned_us;
    uint64_t retry_after_ms; /* with 429 */
    char *error_message;
    uint32_t next;   /* in its hash bucket */
    bool storing;    /* its outcome is not durable yet: no reader is told of it */
    bool not_stored; /* and will not be: no reader is told of any more ends, but of the error */
    uint64_t row;    /* under which it is stored; 0: it is not */
    /* kept: it is over, and waits for somebody who asks again */
    bool kept;
    uint64_t kept_until_us, kept_bytes;
};

/* What is kept of requests that are over. */
struct requests_keep {
    uint64_t bytes; /* most, all together; 0: nothing is kept */
    uint64_t us;    /* longest */
};

struct requests;
struct requests *requests_new(uint32_t limit, const struct requests_keep *keep);
void requests_free(struct requests **r);

/* Takes a request in, read by `client`; *in is copied. The seed must be set. What it says to have been
 * delivered stands in the log, and is not sent again. 409: the client has a live request of this id; 429: all
 * slots are taken; 400: what was delivered cannot be. */
struct request *requests_add(struct requests *r, const struct peer *client, const struct wire_generate *in,
                             uint64_t now_us, struct err *err);
void requests_remove(struct requests *r, struct request *q);
struct request *requests_at(struct requests *r, uint32_t slot); /* NULL when the slot is empty */
/* The live request that this connection reads under this id; an idempotent one of its key, read or not. */
struct request *requests_of_client(struct requests *r, const struct peer *client, struct wire_str id);
/* The idempotent request of this key and id, live or kept. */
struct request *requests_of_key(struct requests *r, const char *name, struct wire_str id, uint64_t now_us);
/* The request, live or kept, behind slot number `slot` of requests_slots(); NULL when there is none. */
struct request *requests_any(struct requests *r, uint32_t slot);
uint32_t requests_slots(const struct requests *r);
struct request *requests_of_group(struct requests *r, struct wire_str id); /* by "r17" */
/* Has the memory fetched that logging these tokens and telling their readers will touch, all of it at once:
 * after a pause between steps little of it is left in caches, and one line after the other takes longer than
 * the work. Changes nothing. */
void requests_ahead(const struct requests *r, const struct wire_token *tokens, uint32_t count);
uint32_t requests_limit(const struct requests *r);
uint32_t requests_count(const struct requests *r); /* live */
uint32_t requests_kept(const struct requests *r);

/* ---- what is kept (requests_keep.c) ---- */
/* A request that is over (request_over) leaves, or is kept: *q is elsewhere, or no more. */
void requests_leave(struct requests *r, struct request *q, uint64_t now_us);
/* Will it be kept when it is over? */
bool requests_keeps(struct requests *r, const struct request *q);
/* Forgets what was kept for long enough; and when that is due again: UINT64_MAX: nothing is kept. */
void requests_expire(struct requests *r, uint64_t now_us);
uint64_t requests_expire_due_us(const struct requests *r);
/* The row of a request that was stored and is forgotten now; false when there is none (any more). */
bool requests_forgotten(struct requests *r, uint64_t *row);
/* Its log and its end as bytes, for requests_restore of a later run. */
void request_record(const struct request *q, struct buffer *out);
struct requests_record {
    const char *owner, *request; /* the name of its key; its id */
    uint8_t digest[REQUEST_DIGEST];
    uint64_t row, age_us;
    const void *bytes;
    size_t size;
};
/* Takes a record in as a kept request, behind those that are kept already. -1: it is none, or of another
 * version. What is too old, or does not fit, is forgotten. */
int requests_restore(struct requests *r, const struct requests_record *in, uint64_t now_us, struct err *err);
/* The outcome cannot be made durable: it becomes an error. */
void request_not_stored(struct request *q, int code, const char *message);

struct request_place {
    uint32_t group;
    uint64_t epoch;
    const char *name, *model; /* copied */
    uint64_t stage_count;
    uint64_t numeric, context; /* names its numeric class, not 0; most tokens of one sequence */
};
void request_assigned(struct request *q, const struct request_place *place, uint64_t now_us);

/* Logs a token. REQUEST_TOKEN_DUPLICATE: already delivered, changes nothing; REQUEST_TOKEN_MISSING: those
 * before it did not arrive, *err says which; REQUEST_TOKEN_BROKEN: it cannot be part of this stream (too
 * many, too much text), *err says what: the stream can never be whole again. */
enum request_token_result {
    REQUEST_TOKEN_LOGGED,
    REQUEST_TOKEN_DUPLICATE,
    REQUEST_TOKEN_MISSING,
    REQUEST_TOKEN_BROKEN
};
enum request_token_result request_token(struct request *q, const struct wire_token *token, struct err *err);

/* Whether a group that says this has said more that did not arrive: tokens of the choice are missing. */
bool request_lacks(const struct request *q, const struct wire_done *done);
/* A choice ended. True when this set the request's outcome: it was the last one, or it claims tokens which
 * never came (or a choice that is none), which makes it an error. The first end of a choice and the first
 * outcome stand. Where it ran and how long it waited is filled in. */
bool request_done(struct request *q, const struct wire_done *done);
/* Ends every choice that has not ended: cancelled while no group had the request. */
void request_done_unserved(struct request *q);
/* It was to wait again (yielding), and ends instead: the choices that its group let go of for that are
 * cancelled, those that it still holds end when it says so. */
void request_yields_no_more(struct request *q);
/* Sets the outcome; false when there is one already. */
bool request_error(struct request *q, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Its group let go of it to make room, or is gone: it waits again. */
void request_waits_again(struct request *q);
/* What the next group must know of its choices: fills `of` [sampling.n] and returns how many entries; their
 * ids lie in *ids, which is the caller's to free. */
uint32_t request_delivered(const struct request *q, struct wire_delivered *of, uint32_t **ids);
/* The group has ended every choice: it holds nothing of the request any more. */
bool request_let_go(const struct request *q);
/* Of a request that is done: was any choice cancelled? */
bool request_was_cancelled(const struct request *q);
/* Tokens of all its choices. */
uint64_t request_token_count(const struct request *q);

/* ---- reading (requests_read.c) ---- */
/* Whether `in` asks for the same as the request: everything that decides its tokens. */
void request_digest(const struct wire_generate *in, uint8_t digest[REQUEST_DIGEST]);
/* The same, of a live request. */
void request_digest_of(const struct request *q, uint8_t digest[REQUEST_DIGEST]);
/* Another connection wants the stream: all of it, or what comes behind what it has had. 409: it reads it
 * already, or has had other tokens; 429: there are too many readers; 503: it has had more than there is yet.
 */
struct request_reader *request_join(struct request *q, const struct peer *client,
                                    const struct wire_generate *in, struct err *err);
/* The reader on this connection that is still to be told something; NULL when there is none. */
struct request_reader *request_reader_of(const struct request *q, const struct peer *client);

/* The message that the reader must get next, its strings borrowed from *q; false when there is none now.
 * After it was sent: request_sent with that message. */
struct request_message {
    struct wire_message wire;
    struct wire_alternative top[WIRE_MAX_TOP_LOGPROBS]; /* what a token's array points to */
};
bool request_next(const struct request *q, const struct request_reader *reader, struct request_message *out);
void request_sent(const struct request *q, struct request_reader *reader, const struct request_message *m);
/* The reader has room for more tokens; without a bound it stays so. */
void request_credit(struct request_reader *reader, uint64_t tokens);
/* Somebody reads it, or will when he gets on with reading. */
bool request_is_read(const struct request *q);
/* Nothing is left to do: its readers have the outcome (or are gone), it is durable, and no group holds it. */
bool request_over(const struct request *q);
/* Nobody reads it any more: forgets who did. */
void request_drop_readers(struct request *q);

#endif
