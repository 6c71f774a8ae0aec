/* mailbox: the two queues between the leader's link thread (network, text) and its step thread (MPI,
 * numbers). Nothing else is shared between them. Both queues are bounded: the link never sends more sequences
 * than the group admits, and the step thread waits when the link is behind with events.
 *
 * The step thread sleeps in mailbox_wait while the group is idle; the link sleeps in its poll on
 * mailbox_event_fd. */
#ifndef LEPTON_WORKER_INFER_MAILBOX_H
#define LEPTON_WORKER_INFER_MAILBOX_H

#include "worker/infer/step.h"

enum speculation { SPECULATION_DEFAULT, SPECULATION_OFF, SPECULATION_NGRAM };

/* A request for `choices` sequences over one prompt. Each draws by its own key and ends by itself; what is
 * said about one carries (handle, choice). */
struct sequence_request {
    uint64_t handle; /* the link's name for the request, unique while any of its choices lives */
    int32_t choices; /* 1 or more, named 0, 1, ... */
    int32_t choice;  /* cancel: which one, -1 = all; of a live sequence: which one it is */
    int32_t *prompt; /* [prompt_tokens]; owned by the command, then by the step thread */
    int32_t prompt_tokens;
    int32_t max_tokens; /* of each choice, delivered ones included */
    /* Of a request that began elsewhere: the tokens of each choice, one choice behind the other, and how many
     * are each one's; -1: it ended, nothing of it runs here. NULL: all begin here. Owned as the prompt is. */
    int32_t *delivered;
    int32_t *delivered_tokens;    /* [choices] */
    bool stop_at_end;             /* an end token finishes the sequence and is not emitted */
    struct sample_row sampling;   /* slot, choice, index, counts and bias_begin are the step thread's */
    struct logit_bias *biases;    /* [sampling.bias_count]; owned as the prompt is */
    int32_t priority;             /* the lower one goes first: each level is a head start
                                     (serve_options.priority_step_ms) */
    uint64_t salt;                /* prefixes are shared among equal salts alone: one tenant's. Whatever
                                     else changes keys and values (an adapter) belongs in here too */
    enum speculation speculation; /* as the request asks; default: as the group is configured */
    int32_t draft_tokens;         /* most tokens of one draft; 0 = as the group is configured */
    bool canary;                  /* shows that the group works: no token of anybody's */
    uint64_t arrived_us;          /* filled by the step thread */
};
/* Frees what a request owns. */
void sequence_request_release(struct sequence_request *r);

enum command_kind {
    COMMAND_SUBMIT = 1,
    COMMAND_CANCEL,     /* by handle: one choice, or all */
    COMMAND_CANCEL_ALL, /* the lease ended: nothing of what runs may be shown any more; no events follow for
                           it */
    COMMAND_DRAIN,      /* finish what runs, then leave */
    COMMAND_PING,       /* when nothing runs: send an empty step through every rank */
};

struct command {
    enum command_kind kind;
    struct sequence_request request; /* submit; cancel: handle and choice */
};

enum event_kind {
    EVENT_TOKEN = 1,
    EVENT_DONE,   /* of one choice; a request ends when each of its choices did */
    EVENT_FAILED, /* non-finite logits; of one choice */
    EVENT_LEFT,   /* the step thread is done (after a drain) */
};
enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

struct event {
    enum event_kind kind;
    uint64_t handle;
    int32_t choice;
    int32_t index, id;              /* token */
    struct token_logprobs logprobs; /* token: when the request wants them */
    enum finish_reason reason;
    int32_t prompt_tokens, completion_tokens;
    int32_t cached_tokens;                   /* of the prompt: their pages were there already */
    int32_t drafted_tokens, accepted_tokens; /* by speculation */
    uint64_t prefill_us, decode_us;
    uint64_t emitted_us; /* set by mailbox_emit(), monotonic: when the step thread knew it */
};

/* Read by the link for heartbeats; written by the step thread. */
struct serve_stats {
    uint64_t steps, running, waiting, tokens_generated;
    uint64_t pages_used, pages_cached, pages_free; /* held by sequences; kept for their tokens; neither */
    uint64_t prefix_queries, prefix_hits;          /* prompt tokens looked up; found */
    uint64_t preemptions;                          /* sequences put back to be recomputed */
    uint64_t drafted_tokens, accepted_tokens;      /* guessed by speculation; guessed right */
    int32_t stages;                                /* that have told their times */
    struct stage_time stage[STEP_MAX_STAGES];
};

struct mailbox;
void mailbox_open(struct mailbox **out);
void mailbox_close(struct mailbox **m);

/* link -> step; never blocks. */
void mailbox_send(struct mailbox *m, const struct command *command);
/* Step thread: takes the next command; false when there is none. */
bool mailbox_take(struct mailbox *m, struct command *out);
/* For how long commands wait while the step thread takes none; 0: none wait. */
uint64_t mailbox_waits_ms(struct mailbox *m);
/* Step thread: sleeps until there is a command. */
void mailbox_wait(struct mailbox *m);
/* The same, but no longer than to `until_us` (clock_now_us); UINT64_MAX: without end. */
void mailbox_wait_until(struct mailbox *m, uint64_t until_us);

/* step -> link; waits while MAILBOX_MAX_EVENTS are pending. */
#define MAILBOX_MAX_EVENTS 65536
void mailbox_emit(struct mailbox *m, const struct event *event);
/* Link: takes the next event; false when there is none (the descriptor is then quiet). */
bool mailbox_next(struct mailbox *m, struct event *out);
/* Readable while events are pending. */
int mailbox_event_fd(const struct mailbox *m);

void mailbox_set_stats(struct mailbox *m, const struct serve_stats *stats);
struct serve_stats mailbox_stats(struct mailbox *m);

#endif
