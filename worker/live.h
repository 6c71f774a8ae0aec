/* live: the requests that the step thread works on, as the coordinator names them, and what its events mean
 * in words: token ids become text (never half a character, nothing of a stop string), the ends of choices
 * become `done`, a failure of one choice becomes the one error of its request. It sends nothing: the link
 * does.
 *
 *   assign -> live_add -> COMMAND_SUBMIT ... EVENT_TOKEN -> live_take -> `token`
 *                                            EVENT_DONE  -> live_take -> `done`, and the last one forgets it
 */
#ifndef LEPTON_WORKER_LIVE_H
#define LEPTON_WORKER_LIVE_H

#include "common/wire.h"
#include "worker/infer/mailbox.h"
#include "worker/model/tokenizer.h"

struct live;
struct live_table {
    struct live *entry; /* [count] */
    uint32_t count;
    const struct tokenizer *tokenizer;
    /* what the last message borrows */
    struct buffer text, pieces;
    struct wire_alternative top[WIRE_MAX_TOP_LOGPROBS];
    char error[160];
};

void live_table_init(struct live_table *t, uint32_t count, const struct tokenizer *tokenizer);
void live_table_release(struct live_table *t);

struct live *live_find(struct live_table *t, struct wire_str request);
/* Takes a request in. Errors: 409 it is there already, 429 the table is full. */
struct live *live_add(struct live_table *t, const struct wire_assign *assign, struct err *err);
/* What the step thread calls it; no handle names two requests. */
uint64_t live_handle(const struct live_table *t, const struct live *v);
/* Asks once: false when it was cancelled before. Its tokens are withheld from now on. */
bool live_cancel(struct live *v);
/* Takes over what other groups delivered: detokeniser and stop strings read it, and nothing of it is told
 * again. A choice may end by a stop string in it: it is to be cancelled at the step thread. The ids were
 * checked (admit). Returns how many entries of `stopped` [choices] were filled. */
uint32_t live_resume(struct live_table *t, struct live *v, const struct wire_assign *assign,
                     uint32_t *stopped);
void live_drop(struct live *v);
void live_drop_all(struct live_table *t);

/* What follows from an event. */
struct live_news {
    struct wire_message message; /* when `tell`: without group, epoch and stages; borrows from the table */
    bool tell;
    bool cancel;            /* the step thread must be given `command` */
    struct command command; /* a stop string ends a choice; a failed choice ends its request */
};
/* Events of requests that are not there any more give nothing. */
void live_take(struct live_table *t, const struct event *e, struct live_news *news);

#endif
