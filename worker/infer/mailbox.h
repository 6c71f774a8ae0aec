/* mailbox: the two queues between the leader's link thread (network, text) and its step thread (MPI,
 * numbers). Nothing else is shared between them. Both queues are bounded: the link never sends more sequences
 * than the group admits, and the step thread waits when the link is behind with events.
 *
 * The step thread sleeps in mailbox_wait while the group is idle; the link sleeps in its poll on
 * mailbox_event_fd. */
#ifndef LEPTON_WORKER_INFER_MAILBOX_H
#define LEPTON_WORKER_INFER_MAILBOX_H

#include "kernels/kernels.h"

struct sequence_request {
    uint64_t handle; /* the link's name for the sequence, unique while it lives */
    int32_t *prompt; /* [prompt_tokens]; owned by the command, then by the step thread */
    int32_t prompt_tokens;
    int32_t max_tokens;
    bool stop_at_end;           /* an end token finishes the sequence and is not emitted */
    struct sample_row sampling; /* slot, index and counts are filled by the step thread */
    uint64_t arrived_us;        /* filled by the step thread */
};

enum command_kind {
    COMMAND_SUBMIT = 1,
    COMMAND_CANCEL,     /* one sequence, by handle */
    COMMAND_CANCEL_ALL, /* the lease ended: nothing of what runs may be shown any more; no events follow for
                           it */
    COMMAND_DRAIN,      /* finish what runs, then leave */
};

struct command {
    enum command_kind kind;
    struct sequence_request request; /* submit; cancel: handle only */
};

enum event_kind {
    EVENT_TOKEN = 1,
    EVENT_DONE,
    EVENT_FAILED, /* non-finite logits */
    EVENT_LEFT,   /* the step thread is done (after a drain) */
};
enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

struct event {
    enum event_kind kind;
    uint64_t handle;
    int32_t index, id; /* token */
    enum finish_reason reason;
    int32_t prompt_tokens, completion_tokens;
    uint64_t prefill_us, decode_us;
};

/* Read by the link for heartbeats; written by the step thread. */
struct serve_stats {
    uint64_t steps, running, waiting, pages_used, tokens_generated;
};

struct mailbox;
void mailbox_open(struct mailbox **out);
void mailbox_close(struct mailbox **m);

/* link -> step; never blocks. */
void mailbox_send(struct mailbox *m, const struct command *command);
/* Step thread: takes the next command; false when there is none. */
bool mailbox_take(struct mailbox *m, struct command *out);
/* Step thread: sleeps until there is a command. */
void mailbox_wait(struct mailbox *m);

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
