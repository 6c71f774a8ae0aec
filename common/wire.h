/* wire: every ZeroMQ message of Lepton as a C struct, and its one encoding: a msgpack array [version, type,
 * {fields}].
 *
 * One schema table (wire.c) lists each message's fields: name, kind, bounds, required or not, where in the
 * struct it lies. Encoding, decoding, the checks and the field list of docs/protocol.md come from that table,
 * so that they cannot drift apart. Unknown fields are refused by name (I6).
 *
 * Bytes are checked before they are unpacked: one pass over the frame proves depth <= WIRE_MAX_DEPTH, every
 * count <= the bytes that are left, and total objects x their unpacked size <= a budget proportional to the
 * frame. Only then are its objects read, one at a time: decoding needs no memory but for strings and arrays.
 *
 * It knows what the fields mean to nobody: states and rights are the business of coordinator and worker. */
#ifndef LEPTON_COMMON_WIRE_H
#define LEPTON_COMMON_WIRE_H

#include "common/base.h"

#define WIRE_VERSION    1
#define WIRE_MAX_DEPTH  16
#define WIRE_MAX_FRAME  (16u << 20) /* bytes of one frame; also ZMQ_MAXMSGSIZE */
#define WIRE_MAX_ID     64          /* characters of a request id or group name: [A-Za-z0-9._:-]+ */
#define WIRE_MAX_PROMPT (8u << 20)
#define WIRE_MAX_STAGES 256
#define WIRE_MAX_GROUPS 1024 /* groups in one status reply */
/* Stages of all groups together in one status reply: more would not fit the decoder's budget. Whoever fills a
 * reply leaves the stages of further groups out (stage_count = 0). */
#define WIRE_MAX_REPLY_STAGES 32768
#define WIRE_MAX_MESSAGE      1024 /* bytes of an error's message or a bye's reason */
#define WIRE_MAX_CHOICES      128
#define WIRE_MAX_SETTINGS     32
#define WIRE_MAX_CREDIT       (1u << 20) /* tokens in one grant */
#define WIRE_MAX_TOKENS       256        /* in one message */
#define WIRE_MAX_STOPS        16
#define WIRE_MAX_STOP         1024 /* bytes of one stop string */
#define WIRE_MAX_BIASES       1024
#define WIRE_MAX_TOP_LOGPROBS 20
#define WIRE_MAX_ENDED        32         /* bytes of how a job ended */
#define WIRE_MAX_DELIVERED    (1u << 20) /* tokens of one choice that another group generated */

/* Strings: bytes of the decoded message, valid UTF-8, NOT terminated; {NULL, 0} when the field is absent. */
struct wire_str {
    const char *data;
    uint32_t size;
};

enum wire_type {
    /* client -> coordinator */
    WIRE_GENERATE = 1,
    WIRE_CANCEL = 2, /* also coordinator -> worker */
    WIRE_STATUS = 3,
    WIRE_TUNE = 4,
    WIRE_CREDIT = 5,
    WIRE_HOLD = 6,
    /* coordinator -> client */
    WIRE_ACCEPTED = 10,
    WIRE_TOKEN = 11, /* also worker -> coordinator */
    WIRE_DONE = 12,  /* also worker -> coordinator */
    WIRE_ERROR = 13, /* also worker -> coordinator and coordinator -> worker */
    WIRE_STATUS_REPLY = 14,
    WIRE_TOKENS = 15, /* also worker -> coordinator */
    /* worker -> coordinator */
    WIRE_HELLO = 20,
    WIRE_HEARTBEAT = 21,
    WIRE_BYE = 22,
    /* coordinator -> worker */
    WIRE_WELCOME = 30,
    WIRE_LEASE = 31,
    WIRE_ASSIGN = 32,
    WIRE_DRAIN = 33,
};
const char *wire_type_name(enum wire_type type); /* "generate"; "?" for an unknown number */

struct wire_bias {
    uint64_t id;
    double bias;
};

struct wire_stop {
    struct wire_str text;
};

/* How tokens are chosen, how many answers there are and what ends them; part of generate and assign. Absent
 * fields take the default that stands in the table. */
struct wire_sampling {
    uint64_t n;                /* choices: 1..WIRE_MAX_CHOICES, default 1 */
    double temperature;        /* 0..100, default 1 (0 = greedy) */
    double top_p;              /* (0..1], default 1 */
    double min_p;              /* 0..1, default 0 */
    double repetition_penalty; /* 0.01..10, default 1 */
    double presence_penalty;   /* -2..2, default 0 */
    double frequency_penalty;  /* -2..2, default 0 */
    uint64_t top_k;            /* 0..2^31-1, default 0 = off */
    uint64_t seed;             /* absent: drawn by the coordinator at admission */
    bool has_seed;
    bool ignore_eos;
    struct wire_bias *logit_bias; /* bias_count of them; ids once each */
    struct wire_stop *stop;       /* stop_count of them */
    uint32_t bias_count, stop_count;
    bool logprobs;
    uint64_t top_logprobs; /* 0..20; not 0 only with logprobs */
};

/* How the request is served; part of generate and assign. Nothing of it changes a token. */
struct wire_service {
    uint64_t priority;           /* 0..1000, default 500; the lower one goes first */
    struct wire_str speculation; /* "ngram", "off"; absent: as the group is configured */
    uint64_t draft_tokens;       /* 0..64, default 0 = as the group is configured */
    struct wire_str cache_salt;  /* prefixes are shared among equal salts alone */
};

/* What another group generated of one choice: the answer goes on behind it. */
struct wire_delivered {
    uint64_t choice;
    bool ended;    /* nothing more is to be generated of it */
    uint32_t *ids; /* id_count of them */
    uint32_t id_count;
};

struct wire_generate {
    struct wire_str request; /* id, unique among the client's live requests */
    struct wire_str model;   /* empty = the only model served */
    struct wire_str prompt;
    uint64_t max_tokens;   /* 1..2^20, default 256 */
    uint64_t timeout_ms;   /* 1..86400000, default 0 = the coordinator's */
    struct wire_str class; /* "realtime", "interactive", "batch"; absent: interactive */
    bool no_bos;           /* do not put the model's BOS token in front */
    bool special;          /* special tokens written out in the prompt are those tokens */
    struct wire_sampling sampling;
    struct wire_service service;
    bool idempotent;                  /* the id is the key's: the same again joins or replays */
    uint64_t numeric;                 /* with delivered: what the first token's numeric said; 0 = unknown */
    uint64_t context;                 /* the same of its context */
    struct wire_delivered *delivered; /* delivered_count of them; what the client has had of it */
    uint32_t delivered_count;
    uint64_t credit; /* most tokens sent before wire_credit grants more; 0 = no bound */
};

/* The client has room for so many more tokens of one of its streams. */
struct wire_credit {
    struct wire_str request;
    uint64_t tokens;
};

struct wire_cancel {
    struct wire_str request;
    struct wire_str group; /* coordinator -> worker only, with epoch */
    uint64_t epoch;
};

struct wire_accepted {
    struct wire_str request;
    uint64_t seed;   /* the seed in force */
    uint64_t queued; /* requests before this one */
};

/* A token that might have been drawn. */
struct wire_alternative {
    uint64_t id;
    double logprob;
    struct wire_str piece;
};

/* One generated token: (request, choice, index, id, text). text may be empty: the bytes of an unfinished
 * character come with the token that completes it, and what may begin a stop string is held back. logprob and
 * what follows are there when the request asked for logprobs. */
struct wire_token {
    struct wire_str request;
    uint64_t choice;
    uint64_t index;
    uint64_t id;
    struct wire_str text;
    double logprob;
    struct wire_str piece;
    struct wire_alternative *top_logprobs;
    uint32_t top_count;
    uint64_t numeric;      /* coordinator -> client only, of index 0: names the numeric class */
    uint64_t context;      /* as numeric: most tokens of one sequence there, which bounds the stream */
    struct wire_str model; /* as numeric, where the request named none */
    struct wire_str group; /* worker -> coordinator only, with epoch */
    uint64_t epoch;
};

/* Tokens of one step, each of a choice of its own, in one message: at 64 streams the messages cost more than
 * what is in them. */
struct wire_tokens {
    struct wire_token *items; /* without group and epoch */
    uint32_t item_count;
    struct wire_str group;
    uint64_t epoch;
};

struct wire_done {
    struct wire_str request;
    uint64_t choice;
    struct wire_str finish_reason; /* "stop", "length", "cancelled" */
    struct wire_str text; /* what was still held back: an unfinished character, the beginning of a stop */
    uint64_t prompt_tokens;
    uint64_t completion_tokens;
    uint64_t cached_tokens;                   /* of the prompt */
    uint64_t drafted_tokens, accepted_tokens; /* by speculation */
    uint64_t queue_us;                        /* accepted -> assigned; filled by the coordinator */
    uint64_t prefill_us;                      /* assigned -> first token, in the group */
    uint64_t decode_us;                       /* first token -> last token, in the group */
    uint64_t moves;                           /* how often it went on at another group; by the coordinator */
    bool mixed; /* some of these were of another numeric class: other tokens might have come without them */
    struct wire_str model; /* where the request named none; by the coordinator */
    struct wire_str group;
    uint64_t epoch;
    uint64_t stages;
};

/* code: 400 malformed or out of range, 401/403 not allowed, 404 no such model, 408 deadline passed, 409 wrong
 * state or duplicate, 413 too large, 429 queue full, 500 the model failed (NaN), 502 the group was lost, 503
 * draining or no group ready. */
struct wire_error {
    struct wire_str request; /* empty: not about a request */
    uint64_t code;
    struct wire_str message;
    uint64_t retry_after_ms; /* default 0: not said */
    struct wire_str group;   /* worker -> coordinator only, with epoch */
    uint64_t epoch;
};

/* One stage of a group, as announced in hello and shown by status. */
struct wire_stage {
    uint64_t first_layer, last_layer; /* layers [first, last) */
    uint64_t tensor;                  /* tensor-parallel width */
    uint64_t pid;                     /* of the stage's first rank */
    struct wire_str host;
    uint64_t busy_us, wait_us, bubble_us, processor_us; /* status alone */
};

/* What the steps took a stage so far. */
struct wire_stage_time {
    uint64_t busy_us, wait_us, bubble_us, processor_us;
};

struct wire_hello {
    struct wire_str group;
    uint64_t epoch;        /* the last epoch this job had, 0 = none */
    uint64_t incarnation;  /* random, drawn once by the leader's process */
    struct wire_str ended; /* how the job before it ended, as its supervisor saw it */
    struct wire_str model;
    /* the numeric class (I7) */
    struct wire_str weights; /* fingerprint of the weights, hexadecimal */
    struct wire_str kernels; /* device kernel set */
    struct wire_str kv_type;
    uint64_t tensor;
    /* capacity */
    uint64_t max_sequences;
    uint64_t context; /* most tokens of one sequence, prompt included */
    uint64_t pages;
    uint64_t page_tokens;
    uint64_t load_ms;          /* time to load the weights */
    struct wire_stage *stages; /* stage_count of them, owned by the decoded message */
    uint32_t stage_count;
};

struct wire_heartbeat {
    struct wire_str group;
    uint64_t epoch;
    uint64_t sequence; /* grows by one; an old one is ignored */
    uint64_t steps;    /* progress, apart from liveness */
    uint64_t running;
    uint64_t waiting;
    uint64_t pages_used, pages_cached;
    uint64_t prefix_queries, prefix_hits, preemptions;
    uint64_t drafted_tokens, accepted_tokens;
    struct wire_stage_time *times; /* time_count of them, in pipeline order */
    uint32_t time_count;
    uint64_t tokens_generated;
    bool draining;          /* it takes nothing new, and leaves when it has nothing left */
    uint64_t stuck_ms;      /* there is work, and for so long no rank has moved */
    struct wire_str stuck;  /* which rank is stuck in what */
    uint64_t round_trip_us; /* of the last heartbeat that was answered; 0 = none was */
};

struct wire_bye {
    struct wire_str group;
    uint64_t epoch;
    struct wire_str reason;
};

struct wire_welcome {
    struct wire_str group;
    uint64_t epoch; /* the job's epoch from now on */
    uint64_t lease_ms;
    uint64_t heartbeat_ms;
};

struct wire_lease {
    struct wire_str group;
    uint64_t epoch;
    uint64_t sequence; /* of the heartbeat that it answers: the lease runs from when that one was sent */
};

struct wire_assign {
    struct wire_str group;
    uint64_t epoch;
    struct wire_str request; /* the coordinator's own id of the request, unique while it runs */
    struct wire_str prompt;
    uint64_t max_tokens;
    bool no_bos;
    bool special;
    struct wire_str tenant;        /* whose request it is: cached prefixes are never shared across tenants */
    struct wire_sampling sampling; /* has_seed is always set */
    struct wire_service service;
    uint64_t context;                 /* most tokens of one sequence where it began; 0 = it begins here */
    struct wire_delivered *delivered; /* delivered_count of them */
    uint32_t delivered_count;
};

struct wire_drain {
    struct wire_str group;
    uint64_t epoch;
};

struct wire_status {
    bool verbose;
};

struct wire_tune {
    struct wire_str name;
    bool automatic; /* else set to `value` */
    uint64_t value;
};

/* Whoever runs the cluster keeps work from a group, or lets it come again. */
struct wire_hold {
    struct wire_str group;
    bool release;
};

/* Something with a measured optimum. */
struct wire_setting {
    struct wire_str name;
    uint64_t value, low, high;
    bool automatic; /* else set by hand */
};

struct wire_group_status {
    struct wire_str group, state /* "ready", "resting", "draining", "held", "lost" */, model, weights,
        kernels, kv_type;
    uint64_t epoch, tensor, max_sequences, context, pages, pages_used, pages_cached, prefix_queries,
        prefix_hits, preemptions, drafted_tokens, accepted_tokens, stage_busy_us, stage_wait_us,
        stage_bubble_us, running, waiting, assigned, steps, tokens_generated, heartbeat_age_ms, round_trip_us,
        load_ms;
    struct wire_stage *stages;
    uint32_t stage_count;
};

struct wire_status_reply {
    struct wire_str version;
    uint64_t uptime_ms;
    uint64_t queued, queue_limit, live, accepted_total, completed_total, failed_total, cancelled_total,
        rejected_total, bad_frames_total, refused_peers_total;
    bool draining;
    struct wire_str processor;
    struct wire_setting *settings;
    uint32_t setting_count;
    struct wire_group_status *groups;
    uint32_t group_count;
};

/* A decoded message: `type` says which member of the union holds; strings and arrays point into `memory`. */
struct wire_message {
    enum wire_type type;
    union {
        struct wire_generate generate;
        struct wire_cancel cancel;
        struct wire_status status;
        struct wire_tune tune;
        struct wire_credit credit;
        struct wire_hold hold;
        struct wire_accepted accepted;
        struct wire_token token;
        struct wire_tokens tokens;
        struct wire_done done;
        struct wire_error error;
        struct wire_status_reply status_reply;
        struct wire_hello hello;
        struct wire_heartbeat heartbeat;
        struct wire_bye bye;
        struct wire_welcome welcome;
        struct wire_lease lease;
        struct wire_assign assign;
        struct wire_drain drain;
    };
    void *memory; /* owned by a decoded message; NULL in one made for encoding */
};

/* Fills the fields of *m with the defaults of its type (for a message that will be encoded). */
void wire_init(struct wire_message *m, enum wire_type type);
/* Decodes one frame. The frame may be freed afterwards. Errors (code 400; 413 for a frame over
 * WIRE_MAX_FRAME): not msgpack, bounds of the pre-scan, wrong version, unknown type or field, missing field,
 * wrong kind, out of range: each names type, field and expectation, in printable ASCII. On an error *m is
 * empty; wire_release on it is allowed. */
int wire_decode(struct wire_message *m, const void *frame, size_t bytes, struct err *err);
void wire_release(struct wire_message *m);
/* Appends the encoded message to *out. Fields equal to their default are left out where the table calls them
 * optional. A field out of its bounds is our bug (ASSERT): texts from elsewhere (file names, err.message) go
 * through wire_string_mend first. */
void wire_encode(const struct wire_message *m, struct buffer *out);

/* The pre-scan alone, for tests and fuzzing: exactly one well-formed msgpack object within all bounds. */
int wire_scan(const void *frame, size_t bytes, struct err *err);

/* Writes the field table of every message as Markdown (docs/protocol.md holds it; a test compares). */
void wire_describe(struct buffer *out);

struct wire_str wire_string(const char *s); /* borrows a C string; NULL = absent */
bool wire_str_equal(struct wire_str a, struct wire_str b);
bool wire_str_is(struct wire_str a, const char *s);
char *wire_str_dup(struct wire_str s); /* terminated copy; free() */
/* Makes a C string of unknown origin fit for a message, in place: bytes that are no UTF-8 become '?', and it
 * is cut to max_bytes at a character's border. Borrows s. */
struct wire_str wire_string_mend(char *s, size_t max_bytes);
/* True for 1..WIRE_MAX_ID characters of [A-Za-z0-9._:-]. */
bool wire_id_valid(struct wire_str s);

#endif
