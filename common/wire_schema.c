/* wire_schema: the field table of every message. A field is added here, in its struct of wire.h, and nowhere
 * else; `make test` then says that docs/protocol.md is old.
 *
 * Required fields are those without which a message means nothing; every other field has a default, which is
 * not sent. Bounds are chosen so that no value within them can overflow a sum or an allocation behind the
 * decoder. */
#include "common/wire_schema.h"

#include <string.h>

#define ANY   UINT64_MAX
#define COUNT (UINT64_MAX >> 1) /* counters: the sum of two still fits */

#define UINT(s, member, lo, hi, text)                                                    \
    {                                                                                    \
        .name = #member, .kind = WIRE_KIND_UINT, .required = true, .min = lo, .max = hi, \
        .offset = offsetof(struct s, member), .help = text                               \
    }
#define UINT_OPT(s, member, lo, hi, value, text)                                          \
    {                                                                                     \
        .name = #member, .kind = WIRE_KIND_UINT, .min = lo, .max = hi, .standard = value, \
        .offset = offsetof(struct s, member), .help = text                                \
    }
#define BOOL_OPT(s, member, text)                                                                   \
    {                                                                                               \
        .name = #member, .kind = WIRE_KIND_BOOL, .offset = offsetof(struct s, member), .help = text \
    }
#define ID_FIELD(s, member, must, text)                                                        \
    {                                                                                          \
        .name = #member, .kind = WIRE_KIND_ID, .required = must, .min = 1, .max = WIRE_MAX_ID, \
        .offset = offsetof(struct s, member), .help = text                                     \
    }
#define STR(s, member, what, must, lo, hi, words, text)                                          \
    {                                                                                            \
        .name = #member, .kind = what, .required = must, .min = lo, .max = hi, .choices = words, \
        .offset = offsetof(struct s, member), .help = text                                       \
    }
#define STRING(s, member, lo, hi, text) STR(s, member, WIRE_KIND_STRING, true, lo, hi, NULL, text)
#define STRING_OPT(s, member, hi, text) STR(s, member, WIRE_KIND_STRING, false, 0, hi, NULL, text)
#define CHOICE(s, member, words, text)  STR(s, member, WIRE_KIND_STRING, true, 1, 32, words, text)
#define TEXT(s, member, hi, text)       STR(s, member, WIRE_KIND_TEXT, true, 0, hi, NULL, text)
#define TEXT_OPT(s, member, hi, text)   STR(s, member, WIRE_KIND_TEXT, false, 0, hi, NULL, text)
#define ARRAY(s, member, count, must, lo, hi, record, text)                                                \
    {                                                                                                      \
        .name = #member, .kind = WIRE_KIND_ARRAY, .required = must, .min = lo, .max = hi,                  \
        .offset = offsetof(struct s, member), .side_offset = offsetof(struct s, count), .element = record, \
        .help = text                                                                                       \
    }

static const struct wire_field bias_fields[] = {
    UINT(wire_bias, id, 0, UINT32_MAX, "the token's number in the vocabulary"),
    {.name = "bias",
     .kind = WIRE_KIND_FLOAT,
     .required = true,
     .float_min = -100,
     .float_max = 100,
     .offset = offsetof(struct wire_bias, bias),
     .help = "added to its logit, before penalties and temperature"},
};
static const struct wire_record bias_record = {
    .name = "bias",
    .fields = bias_fields,
    .field_count = ARRAY_LEN(bias_fields),
    .bytes = sizeof(struct wire_bias),
    .help = "one token made more or less likely",
};

static const struct wire_field stop_fields[] = {
    STR(wire_stop, text, WIRE_KIND_TEXT, true, 1, WIRE_MAX_STOP, NULL,
        "the text; it is not part of the answer"),
};
static const struct wire_record stop_record = {
    .name = "stop",
    .fields = stop_fields,
    .field_count = ARRAY_LEN(stop_fields),
    .bytes = sizeof(struct wire_stop),
    .bare = true,
    .help = "a text that ends an answer; written as the bare string, not as a map",
};

/* The members of struct wire_sampling lie flat in the map of the message that holds them. */
#define SAMPLE_FLOAT(s, member, lo, hi, value, open, text)                                             \
    {                                                                                                  \
        .name = #member, .kind = WIRE_KIND_FLOAT, .above_min = open, .float_min = lo, .float_max = hi, \
        .float_standard = value, .offset = offsetof(struct s, sampling.member), .help = text           \
    }
#define SAMPLING(s, seed_required)                                                                           \
    {.name = "n",                                                                                            \
     .kind = WIRE_KIND_UINT,                                                                                 \
     .min = 1,                                                                                               \
     .max = WIRE_MAX_CHOICES,                                                                                \
     .standard = 1,                                                                                          \
     .offset = offsetof(struct s, sampling.n),                                                               \
     .help = "how many answers: choices 0 to n-1"},                                                          \
        SAMPLE_FLOAT(s, temperature, 0, 100, 1, false, "divides the logits; 0 takes the likeliest token"),   \
        SAMPLE_FLOAT(s, top_p, 0, 1, 1, true, "keep the likeliest tokens up to this probability together"),  \
        SAMPLE_FLOAT(s, min_p, 0, 1, 0, false,                                                               \
                     "drop tokens below this share of the likeliest one's probability"),                     \
        {.name = "top_k",                                                                                    \
         .kind = WIRE_KIND_UINT,                                                                             \
         .max = INT32_MAX,                                                                                   \
         .offset = offsetof(struct s, sampling.top_k),                                                       \
         .help = "keep this many of the likeliest tokens; 0 keeps all"},                                     \
        {.name = "seed",                                                                                     \
         .kind = WIRE_KIND_UINT,                                                                             \
         .required = seed_required,                                                                          \
         .max = ANY,                                                                                         \
         .has_flag = true,                                                                                   \
         .offset = offsetof(struct s, sampling.seed),                                                        \
         .side_offset = offsetof(struct s, sampling.has_seed),                                               \
         .help = "same request and seed, same tokens; drawn by the coordinator when absent"},                \
        SAMPLE_FLOAT(s, repetition_penalty, 0.01, 10, 1, false, "divides the logits of tokens seen before"), \
        SAMPLE_FLOAT(s, presence_penalty, -2, 2, 0, false,                                                   \
                     "taken from the logit of a token generated before"),                                    \
        SAMPLE_FLOAT(s, frequency_penalty, -2, 2, 0, false,                                                  \
                     "taken once for each time a token was generated"),                                      \
        {.name = "ignore_eos",                                                                               \
         .kind = WIRE_KIND_BOOL,                                                                             \
         .offset = offsetof(struct s, sampling.ignore_eos),                                                  \
         .help = "go on past the model's end-of-text token"},                                                \
        {.name = "stop",                                                                                     \
         .kind = WIRE_KIND_ARRAY,                                                                            \
         .max = WIRE_MAX_STOPS,                                                                              \
         .offset = offsetof(struct s, sampling.stop),                                                        \
         .side_offset = offsetof(struct s, sampling.stop_count),                                             \
         .element = &stop_record,                                                                            \
         .help = "the first of these texts in an answer ends it"},                                           \
        {.name = "logit_bias",                                                                               \
         .kind = WIRE_KIND_ARRAY,                                                                            \
         .max = WIRE_MAX_BIASES,                                                                             \
         .offset = offsetof(struct s, sampling.logit_bias),                                                  \
         .side_offset = offsetof(struct s, sampling.bias_count),                                             \
         .element = &bias_record,                                                                            \
         .help = "tokens made more or less likely, each id once"},                                           \
        {.name = "logprobs",                                                                                 \
         .kind = WIRE_KIND_BOOL,                                                                             \
         .offset = offsetof(struct s, sampling.logprobs),                                                    \
         .help = "send the log-probability of each token"},                                                  \
    {                                                                                                        \
        .name = "top_logprobs", .kind = WIRE_KIND_UINT, .max = WIRE_MAX_TOP_LOGPROBS,                        \
        .offset = offsetof(struct s, sampling.top_logprobs),                                                 \
        .help = "and of so many likeliest tokens in its place; needs logprobs"                               \
    }

/* The members of struct wire_service, flat as well. */
#define SERVICE(s)                                                                                \
    {.name = "priority",                                                                          \
     .kind = WIRE_KIND_UINT,                                                                      \
     .max = 1000,                                                                                 \
     .standard = 500,                                                                             \
     .offset = offsetof(struct s, service.priority),                                              \
     .help = "the lower one goes first in its group"},                                            \
        {.name = "speculation",                                                                   \
         .kind = WIRE_KIND_STRING,                                                                \
         .max = 32,                                                                               \
         .choices = "ngram|off",                                                                  \
         .offset = offsetof(struct s, service.speculation),                                       \
         .help = "draft tokens from the text so far, or not; empty: as the group is configured"}, \
        {.name = "draft_tokens",                                                                  \
         .kind = WIRE_KIND_UINT,                                                                  \
         .max = 64,                                                                               \
         .offset = offsetof(struct s, service.draft_tokens),                                      \
         .help = "most tokens of one draft; 0: as the group is configured"},                      \
    {                                                                                             \
        .name = "cache_salt", .kind = WIRE_KIND_STRING, .max = 256,                               \
        .offset = offsetof(struct s, service.cache_salt),                                         \
        .help = "a cached prompt is reused for the same salt (and client) alone"                  \
    }

#define OWNER(s, must)                                                                           \
    ID_FIELD(s, group, must, "the worker group"),                                                \
    {                                                                                            \
        .name = "epoch", .kind = WIRE_KIND_UINT, .required = must, .max = ANY,                   \
        .offset = offsetof(struct s, epoch), .help = "the group's epoch; another one is ignored" \
    }

static const struct wire_field stage_fields[] = {
    UINT(wire_stage, first_layer, 0, 65535, "first layer of the stage"),
    UINT(wire_stage, last_layer, 0, 65536, "one past its last layer"),
    UINT(wire_stage, tensor, 1, 1024, "tensor-parallel width"),
    UINT(wire_stage, pid, 0, UINT32_MAX, "process of the stage's first rank"),
    STRING(wire_stage, host, 0, 255, "its host name"),
    UINT_OPT(wire_stage, busy_us, 0, COUNT, 0, "status: how long it has run steps so far"),
    UINT_OPT(wire_stage, wait_us, 0, COUNT, 0, "status: how long it ran none though its group had work"),
    UINT_OPT(
        wire_stage, bubble_us, 0, COUNT, 0,
        "status: of that, how long other stages did not have its processors: the bubbles of the pipeline"),
    UINT_OPT(wire_stage, processor_us, 0, COUNT, 0, "status: processor time of its steps so far"),
};
static const struct wire_record stage_record = {
    .name = "stage",
    .fields = stage_fields,
    .field_count = ARRAY_LEN(stage_fields),
    .bytes = sizeof(struct wire_stage),
    .help = "one pipeline stage",
};

static const struct wire_field stage_time_fields[] = {
    UINT(wire_stage_time, busy_us, 0, COUNT, "how long it has run steps so far"),
    UINT(wire_stage_time, wait_us, 0, COUNT, "how long it ran none though its group had work"),
    UINT(wire_stage_time, bubble_us, 0, COUNT, "of that, how long other stages did not have its processors"),
    UINT_OPT(wire_stage_time, processor_us, 0, COUNT, 0,
             "processor time of its steps so far, over all threads of the stage's first rank"),
};
static const struct wire_record stage_time_record = {
    .name = "stage_time",
    .fields = stage_time_fields,
    .field_count = ARRAY_LEN(stage_time_fields),
    .bytes = sizeof(struct wire_stage_time),
    .help = "what steps took one stage",
};

static const struct wire_field group_status_fields[] = {
    ID_FIELD(wire_group_status, group, true, "its name"),
    CHOICE(wire_group_status, state, "ready|resting|draining|held|lost", "what the coordinator thinks of it"),
    STRING(wire_group_status, model, 0, 128, "the model it serves"),
    STRING(wire_group_status, weights, 0, 128, "fingerprint of its weights"),
    STRING(wire_group_status, kernels, 0, 128, "its kernel set"),
    STRING(wire_group_status, kv_type, 0, 32, "number type of its KV cache"),
    UINT(wire_group_status, epoch, 0, ANY, "its epoch"),
    UINT(wire_group_status, tensor, 0, 1024, "tensor-parallel width"),
    UINT(wire_group_status, max_sequences, 0, 1 << 20, "most sequences at once"),
    UINT(wire_group_status, context, 0, UINT32_MAX, "most tokens of one sequence"),
    UINT(wire_group_status, pages, 0, COUNT, "KV pages"),
    UINT(wire_group_status, pages_used, 0, COUNT, "KV pages in use"),
    UINT_OPT(wire_group_status, pages_cached, 0, COUNT, 0, "KV pages kept for prompts that begin alike"),
    UINT_OPT(wire_group_status, prefix_queries, 0, COUNT, 0,
             "prompt tokens looked for in cached pages so far"),
    UINT_OPT(wire_group_status, prefix_hits, 0, COUNT, 0, "prompt tokens found there so far"),
    UINT_OPT(wire_group_status, preemptions, 0, COUNT, 0, "sequences put back and recomputed so far"),
    UINT_OPT(wire_group_status, drafted_tokens, 0, COUNT, 0, "tokens that speculation proposed so far"),
    UINT_OPT(wire_group_status, accepted_tokens, 0, COUNT, 0, "of these, those that were right"),
    UINT_OPT(wire_group_status, stage_busy_us, 0, COUNT, 0, "time that stages ran steps so far, over all"),
    UINT_OPT(wire_group_status, stage_wait_us, 0, COUNT, 0, "time that stages waited though there was work"),
    UINT_OPT(wire_group_status, stage_bubble_us, 0, COUNT, 0,
             "of that, time in which other stages did not have their processors"),
    UINT(wire_group_status, running, 0, COUNT, "sequences in its batch"),
    UINT(wire_group_status, waiting, 0, COUNT, "sequences it holds outside the batch"),
    UINT(wire_group_status, assigned, 0, COUNT, "sequences that the coordinator has given it"),
    UINT(wire_group_status, steps, 0, COUNT, "steps so far: progress"),
    UINT(wire_group_status, tokens_generated, 0, COUNT, "tokens so far"),
    UINT(wire_group_status, heartbeat_age_ms, 0, COUNT, "since its last heartbeat: liveness"),
    UINT_OPT(wire_group_status, round_trip_us, 0, COUNT, 0, "its last heartbeat there and back"),
    UINT(wire_group_status, load_ms, 0, COUNT, "time it took to load the weights"),
    ARRAY(wire_group_status, stages, stage_count, false, 0, WIRE_MAX_STAGES, &stage_record,
          "its stages; left out unless `verbose` was asked"),
};
static const struct wire_record group_status_record = {
    .name = "group",
    .fields = group_status_fields,
    .field_count = ARRAY_LEN(group_status_fields),
    .bytes = sizeof(struct wire_group_status),
    .help = "one worker group",
};

static const struct wire_field delivered_fields[] = {
    UINT(wire_delivered, choice, 0, WIRE_MAX_CHOICES - 1, "which of the request's answers"),
    BOOL_OPT(wire_delivered, ended, "nothing more of it is wanted: it had its done"),
    {.name = "ids",
     .kind = WIRE_KIND_IDS,
     .max = WIRE_MAX_DELIVERED,
     .offset = offsetof(struct wire_delivered, ids),
     .side_offset = offsetof(struct wire_delivered, id_count),
     .help = "its tokens 0, 1, 2, ...: the next one has the index behind them"},
};
static const struct wire_record delivered_record = {
    .name = "delivered",
    .fields = delivered_fields,
    .field_count = ARRAY_LEN(delivered_fields),
    .bytes = sizeof(struct wire_delivered),
    .help = "what was generated of one choice before, elsewhere",
};

static const struct wire_field generate_fields[] = {
    ID_FIELD(wire_generate, request, true, "chosen by the client; unique among its live requests"),
    STRING_OPT(wire_generate, model, 128, "empty: the only model served"),
    TEXT(wire_generate, prompt, WIRE_MAX_PROMPT, "the text to continue"),
    UINT_OPT(wire_generate, max_tokens, 1, 1 << 20, 256, "most tokens to generate"),
    UINT_OPT(wire_generate, timeout_ms, 0, 86400000, 0, "deadline from acceptance; 0: the coordinator's"),
    BOOL_OPT(wire_generate, no_bos, "do not put the model's begin-of-text token in front"),
    BOOL_OPT(wire_generate, special, "special tokens written out in the prompt are those tokens"),
    SAMPLING(wire_generate, false),
    SERVICE(wire_generate),
    {.name = "class",
     .kind = WIRE_KIND_STRING,
     .max = 32,
     .choices = "realtime|interactive|batch",
     .offset = offsetof(struct wire_generate, class),
     .help = "which share of the cluster it belongs to; empty: interactive"},
    BOOL_OPT(
        wire_generate, idempotent,
        "the id is the client's key's, not the connection's: the same again joins or replays the stream"),
    ARRAY(wire_generate, delivered, delivered_count, false, 0, WIRE_MAX_CHOICES, &delivered_record,
          "what the client has had of it: the stream goes on behind that; needs the seed"),
    UINT_OPT(wire_generate, numeric, 0, ANY, 0, "with delivered: numeric of the first token; 0: not known"),
    UINT_OPT(wire_generate, context, 0, UINT32_MAX, 0,
             "with delivered: context of the first token; 0: not known"),
    UINT_OPT(wire_generate, credit, 0, WIRE_MAX_CREDIT, 0,
             "most tokens that are sent before credit grants more; 0: no bound"),
};
static const struct wire_field cancel_fields[] = {
    ID_FIELD(wire_cancel, request, true, "the request to end"),
    OWNER(wire_cancel, false),
};
static const struct wire_field status_fields[] = {
    BOOL_OPT(wire_status, verbose, "list the stages of each group too"),
};
static const struct wire_field tune_fields[] = {
    ID_FIELD(wire_tune, name, true, "the setting, as status_reply names it"),
    BOOL_OPT(wire_tune, automatic, "it is found by itself again"),
    UINT_OPT(wire_tune, value, 0, COUNT, 0, "else its value from now on"),
};
static const struct wire_field credit_fields[] = {
    ID_FIELD(wire_credit, request, true, "a request that was sent with credit"),
    UINT(wire_credit, tokens, 1, WIRE_MAX_CREDIT, "so many more tokens may be sent"),
};
static const struct wire_field hold_fields[] = {
    ID_FIELD(wire_hold, group, true, "the group"),
    BOOL_OPT(wire_hold, release, "it gets work again"),
};
static const struct wire_field setting_fields[] = {
    ID_FIELD(wire_setting, name, true, "its name"),
    UINT(wire_setting, value, 0, COUNT, "in force; of an automatic one the best that is known"),
    UINT(wire_setting, low, 0, COUNT, "its least value"),
    UINT(wire_setting, high, 0, COUNT, "its greatest"),
    BOOL_OPT(wire_setting, automatic, "found from what was measured, not set by hand"),
};
static const struct wire_record setting_record = {
    .name = "setting",
    .fields = setting_fields,
    .field_count = ARRAY_LEN(setting_fields),
    .bytes = sizeof(struct wire_setting),
    .help = "something with a measured optimum",
};
static const struct wire_field accepted_fields[] = {
    ID_FIELD(wire_accepted, request, true, "the request"),
    UINT(wire_accepted, seed, 0, ANY, "the seed in force"),
    UINT(wire_accepted, queued, 0, COUNT, "requests before this one"),
};
#define LOGPROB(s, text)                                                                  \
    {                                                                                     \
        .name = "logprob", .kind = WIRE_KIND_FLOAT, .float_min = -3.4e38, .float_max = 0, \
        .offset = offsetof(struct s, logprob), .help = text                               \
    }
static const struct wire_field alternative_fields[] = {
    UINT(wire_alternative, id, 0, UINT32_MAX, "the token's number in the vocabulary"),
    LOGPROB(wire_alternative, "natural logarithm of its probability, as the token's"),
    TEXT_OPT(wire_alternative, piece, 65536, "the text of this token alone"),
};
static const struct wire_record alternative_record = {
    .name = "alternative",
    .fields = alternative_fields,
    .field_count = ARRAY_LEN(alternative_fields),
    .bytes = sizeof(struct wire_alternative),
    .help = "a token that might have been drawn",
};

#define TOKEN_FIELDS                                                                 \
    ID_FIELD(wire_token, request, true, "the request"),                              \
        UINT(wire_token, index, 0, UINT32_MAX, "0, 1, 2, ... within the choice"),    \
        UINT(wire_token, id, 0, UINT32_MAX, "the token's number in the vocabulary"), \
        TEXT_OPT(wire_token, text, 65536, "the text it completes; may be empty"),    \
        UINT_OPT(wire_token, choice, 0, WIRE_MAX_CHOICES - 1, 0, "which of the request's answers")
static const struct wire_field token_fields[] = {
    TOKEN_FIELDS,
    LOGPROB(wire_token,
            "with logprobs: natural logarithm of its probability in the model's own distribution"),
    TEXT_OPT(wire_token, piece, 65536, "with logprobs: the text of this token alone"),
    ARRAY(wire_token, top_logprobs, top_count, false, 0, WIRE_MAX_TOP_LOGPROBS, &alternative_record,
          "with top_logprobs: the likeliest tokens in its place, the likeliest first"),
    UINT_OPT(wire_token, numeric, 0, ANY, 0,
             "with index 0, by the coordinator: names the numeric class of the group that generated it"),
    UINT_OPT(wire_token, context, 0, UINT32_MAX, 0,
             "with index 0, by the coordinator: most tokens of one sequence of that group, prompt included"),
    STRING_OPT(wire_token, model, 128,
               "with index 0, by the coordinator: which it was, of a request that named none"),
    OWNER(wire_token, false),
};
static const struct wire_field item_fields[] = {TOKEN_FIELDS};
static const struct wire_record item_record = {
    .name = "item",
    .fields = item_fields,
    .field_count = ARRAY_LEN(item_fields),
    .bytes = sizeof(struct wire_token),
    .listed = true,
    .help =
        "one token, without log-probabilities; written as an array of these values in this order, not as a "
        "map: defaults at its end may be left out",
};
static const struct wire_field tokens_fields[] = {
    ARRAY(wire_tokens, items, item_count, true, 1, WIRE_MAX_TOKENS, &item_record, "the tokens, in order"),
    OWNER(wire_tokens, false),
};
static const struct wire_field done_fields[] = {
    ID_FIELD(wire_done, request, true, "the request"),
    UINT_OPT(wire_done, choice, 0, WIRE_MAX_CHOICES - 1, 0, "which of the request's answers"),
    CHOICE(wire_done, finish_reason, "stop|length|cancelled", "why it ended"),
    TEXT_OPT(wire_done, text, 65536, "text still held back, to be appended"),
    UINT(wire_done, prompt_tokens, 0, COUNT, "tokens of the prompt"),
    UINT(wire_done, completion_tokens, 0, COUNT, "tokens generated"),
    UINT_OPT(wire_done, cached_tokens, 0, COUNT, 0, "of the prompt's tokens, those found in the cache"),
    UINT_OPT(wire_done, drafted_tokens, 0, COUNT, 0, "tokens that speculation proposed"),
    UINT_OPT(wire_done, accepted_tokens, 0, COUNT, 0, "of them, those that were right"),
    UINT_OPT(wire_done, queue_us, 0, COUNT, 0, "accepted to assigned"),
    UINT_OPT(wire_done, prefill_us, 0, COUNT, 0, "assigned to first token, in the group"),
    UINT_OPT(wire_done, decode_us, 0, COUNT, 0, "first token to last token, in the group"),
    UINT_OPT(wire_done, moves, 0, COUNT, 0,
             "how often it went on at another group; filled by the coordinator"),
    BOOL_OPT(wire_done, mixed, "groups of more than one numeric class generated it"),
    STRING_OPT(wire_done, model, 128, "by the coordinator: which it was, of a request that named none"),
    OWNER(wire_done, false),
    UINT_OPT(wire_done, stages, 0, WIRE_MAX_STAGES, 0, "pipeline stages that served it"),
};
static const struct wire_field error_fields[] = {
    ID_FIELD(wire_error, request, false, "absent: not about a request"),
    UINT(wire_error, code, 400, 599, "see the error codes"),
    STRING(wire_error, message, 0, WIRE_MAX_MESSAGE, "for a person: what was wrong, what was expected"),
    UINT_OPT(wire_error, retry_after_ms, 0, 86400000, 0, "with 429: when to try again; 0: not said"),
    OWNER(wire_error, false),
};
static const struct wire_field status_reply_fields[] = {
    STRING(wire_status_reply, version, 0, 64, "of the coordinator's program"),
    UINT(wire_status_reply, uptime_ms, 0, COUNT, "since it started"),
    UINT(wire_status_reply, queued, 0, COUNT, "requests that wait"),
    UINT(wire_status_reply, queue_limit, 0, COUNT, "most requests that may wait"),
    UINT(wire_status_reply, live, 0, COUNT, "requests not ended yet"),
    UINT(wire_status_reply, accepted_total, 0, COUNT, "requests accepted since the start"),
    UINT(wire_status_reply, completed_total, 0, COUNT, "of them ended by done"),
    UINT(wire_status_reply, failed_total, 0, COUNT, "of them ended by an error"),
    UINT(wire_status_reply, cancelled_total, 0, COUNT, "of them cancelled"),
    UINT(wire_status_reply, rejected_total, 0, COUNT, "requests refused at the door"),
    UINT(wire_status_reply, bad_frames_total, 0, COUNT, "frames that were refused"),
    UINT(wire_status_reply, refused_peers_total, 0, COUNT, "handshakes that were refused"),
    BOOL_OPT(wire_status_reply, draining, "no new requests are taken"),
    STRING_OPT(wire_status_reply, processor, 32,
               "where the coordinator's threads run: any, auto: any, or N or auto: N for processor N"),
    ARRAY(wire_status_reply, settings, setting_count, false, 0, WIRE_MAX_SETTINGS, &setting_record,
          "what is tuned"),
    ARRAY(wire_status_reply, groups, group_count, false, 0, WIRE_MAX_GROUPS, &group_status_record,
          "the worker groups"),
};
static const struct wire_field hello_fields[] = {
    ID_FIELD(wire_hello, group, true, "the group's name"),
    UINT_OPT(wire_hello, epoch, 0, ANY, 0, "the last epoch this job had; 0: none"),
    UINT(wire_hello, incarnation, 0, ANY, "random, drawn once by the leader's process"),
    STRING_OPT(wire_hello, ended, WIRE_MAX_ENDED,
               "how the job before it ended: SIGSEGV, out of memory, exit 71, ...; empty: there was none"),
    STRING(wire_hello, model, 1, 128, "the model it serves"),
    STRING(wire_hello, weights, 1, 128, "numeric class: fingerprint of the weights, hexadecimal"),
    STRING(wire_hello, kernels, 1, 128, "numeric class: kernel set"),
    STRING(wire_hello, kv_type, 1, 32, "numeric class: number type of the KV cache"),
    UINT(wire_hello, tensor, 1, 1024, "numeric class: tensor-parallel width"),
    UINT(wire_hello, max_sequences, 1, 1 << 20, "most sequences at once"),
    UINT(wire_hello, context, 1, UINT32_MAX, "most tokens of one sequence, prompt included"),
    UINT(wire_hello, pages, 0, COUNT, "KV pages"),
    UINT(wire_hello, page_tokens, 1, 1 << 20, "tokens of one KV page"),
    UINT(wire_hello, load_ms, 0, COUNT, "time it took to load the weights"),
    ARRAY(wire_hello, stages, stage_count, true, 1, WIRE_MAX_STAGES, &stage_record, "in pipeline order"),
};
static const struct wire_field heartbeat_fields[] = {
    OWNER(wire_heartbeat, true),
    UINT(wire_heartbeat, sequence, 0, ANY, "grows by one; an old one is ignored"),
    UINT(wire_heartbeat, steps, 0, COUNT, "steps so far: progress, apart from liveness"),
    UINT(wire_heartbeat, running, 0, COUNT, "sequences in the batch"),
    UINT(wire_heartbeat, waiting, 0, COUNT, "sequences outside the batch"),
    UINT(wire_heartbeat, pages_used, 0, COUNT, "KV pages in use"),
    UINT_OPT(wire_heartbeat, pages_cached, 0, COUNT, 0, "KV pages kept for prompts that begin alike"),
    UINT_OPT(wire_heartbeat, prefix_queries, 0, COUNT, 0, "prompt tokens looked for in cached pages so far"),
    UINT_OPT(wire_heartbeat, prefix_hits, 0, COUNT, 0, "prompt tokens found there so far"),
    UINT_OPT(wire_heartbeat, preemptions, 0, COUNT, 0, "sequences put back and recomputed so far"),
    UINT_OPT(wire_heartbeat, drafted_tokens, 0, COUNT, 0, "tokens that speculation proposed so far"),
    UINT_OPT(wire_heartbeat, accepted_tokens, 0, COUNT, 0, "of these, those that were right"),
    ARRAY(wire_heartbeat, times, time_count, false, 0, WIRE_MAX_STAGES, &stage_time_record,
          "what steps took each stage so far, in pipeline order"),
    UINT(wire_heartbeat, tokens_generated, 0, COUNT, "tokens so far"),
    BOOL_OPT(wire_heartbeat, draining, "it takes nothing new, and leaves when it has nothing left"),
    UINT_OPT(wire_heartbeat, stuck_ms, 0, COUNT, 0,
             "there is work, and for so long none of its ranks has moved"),
    STRING_OPT(wire_heartbeat, stuck, 128, "which rank is stuck in what"),
    UINT_OPT(wire_heartbeat, round_trip_us, 0, COUNT, 0,
             "the last heartbeat that was answered, there and back; 0: none was"),
};
static const struct wire_field bye_fields[] = {
    OWNER(wire_bye, true),
    STRING_OPT(wire_bye, reason, WIRE_MAX_MESSAGE, "for a person"),
};
static const struct wire_field welcome_fields[] = {
    ID_FIELD(wire_welcome, group, true, "the group"),
    UINT(wire_welcome, epoch, 0, ANY, "the group's epoch from now on"),
    UINT(wire_welcome, lease_ms, 1, 3600000, "how long the group may act after the send of a heartbeat"),
    UINT(wire_welcome, heartbeat_ms, 1, 3600000, "how often to send heartbeat"),
};
static const struct wire_field lease_fields[] = {
    OWNER(wire_lease, true),
    UINT(wire_lease, sequence, 0, ANY, "of the heartbeat that it answers"),
};
static const struct wire_field assign_fields[] = {
    OWNER(wire_assign, true),
    ID_FIELD(wire_assign, request, true, "the coordinator's own id of the request"),
    TEXT(wire_assign, prompt, WIRE_MAX_PROMPT, "the text to continue"),
    UINT(wire_assign, max_tokens, 1, 1 << 20, "most tokens to generate"),
    BOOL_OPT(wire_assign, no_bos, "do not put the model's begin-of-text token in front"),
    BOOL_OPT(wire_assign, special, "special tokens written out in the prompt are those tokens"),
    STRING_OPT(wire_assign, tenant, 64, "whose request it is: cached prompts are not shared across tenants"),
    SAMPLING(wire_assign, true),
    SERVICE(wire_assign),
    UINT_OPT(wire_assign, context, 0, UINT32_MAX, 0,
             "most tokens of one sequence where the request began; 0: it begins here"),
    ARRAY(wire_assign, delivered, delivered_count, false, 0, WIRE_MAX_CHOICES, &delivered_record,
          "choices that go on behind what another group generated"),
};
static const struct wire_field drain_fields[] = {
    OWNER(wire_drain, true),
};

#define RECORD(number, stem, way, text)                                                            \
    {                                                                                              \
        .type = number, .name = #stem, .direction = way, .fields = stem##_fields,                  \
        .field_count = ARRAY_LEN(stem##_fields), .bytes = sizeof(struct wire_##stem), .help = text \
    }
static const struct wire_record records[] = {
    RECORD(WIRE_GENERATE, generate, "client -> coordinator", "Asks for a continuation of a prompt."),
    RECORD(WIRE_CANCEL, cancel, "client -> coordinator, coordinator -> worker",
           "Ends a request. `group` and `epoch` are for workers only."),
    RECORD(WIRE_STATUS, status, "client -> coordinator", "Asks for a status_reply."),
    RECORD(WIRE_TUNE, tune, "client -> coordinator",
           "Changes a setting; from a client that the coordinator's option admins names. Answered by "
           "status_reply or error."),
    RECORD(WIRE_CREDIT, credit, "client -> coordinator",
           "The client has room for more tokens of one of its streams."),
    RECORD(WIRE_HOLD, hold, "client -> coordinator",
           "Keeps new work from a group and hands its streams over, or ends that; from a client that the "
           "coordinator's option admins names. Answered by status_reply or error."),
    RECORD(WIRE_ACCEPTED, accepted, "coordinator -> client",
           "The request will get one done for each of its choices, or one error that ends it."),
    RECORD(WIRE_TOKEN, token, "coordinator -> client, worker -> coordinator",
           "One generated token. `group` and `epoch` are sent by workers only."),
    RECORD(WIRE_DONE, done, "coordinator -> client, worker -> coordinator",
           "A choice of the request ended well."),
    RECORD(WIRE_ERROR, error, "coordinator -> client, worker -> coordinator, coordinator -> worker",
           "The request ended badly, or a frame was refused."),
    RECORD(WIRE_STATUS_REPLY, status_reply, "coordinator -> client", "The state of the cluster."),
    RECORD(WIRE_TOKENS, tokens, "coordinator -> client, worker -> coordinator",
           "Several tokens at once, each as a token message would say it."),
    RECORD(WIRE_HELLO, hello, "worker -> coordinator", "A group's leader introduces its group."),
    RECORD(WIRE_HEARTBEAT, heartbeat, "worker -> coordinator", "The group lives; how far it has come."),
    RECORD(WIRE_BYE, bye, "worker -> coordinator", "The group leaves."),
    RECORD(WIRE_WELCOME, welcome, "coordinator -> worker", "Answers hello: the group may take work."),
    RECORD(WIRE_LEASE, lease, "coordinator -> worker", "Answers heartbeat: the lease is renewed."),
    RECORD(WIRE_ASSIGN, assign, "coordinator -> worker", "Gives the group a request."),
    RECORD(WIRE_DRAIN, drain, "coordinator -> worker", "Finish what runs, take nothing new, then send bye."),
};

const struct wire_record *wire_records(size_t *count)
{
    *count = ARRAY_LEN(records);
    return records;
}

const struct wire_record *wire_record_find(uint64_t type)
{
    for (size_t i = 0; i < ARRAY_LEN(records); i++)
        if ((uint64_t)records[i].type == type)
            return &records[i];
    return NULL;
}

const char *wire_type_name(enum wire_type type)
{
    const struct wire_record *record = wire_record_find((uint64_t)type);
    return record ? record->name : "?";
}

bool wire_choice_valid(const char *choices, struct wire_str value)
{
    for (const char *word = choices; *word; word += *word == '|') {
        size_t n = strcspn(word, "|");
        if (n == value.size && memcmp(word, value.data, n) == 0)
            return true;
        word += n;
    }
    return false;
}
