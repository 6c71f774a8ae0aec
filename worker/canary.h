/* canary: whether the group's step loops do what they should, asked through the mailbox as any request is. It
 * belongs to the link thread and knows no message and no socket.
 *
 * A canary is one token of an internal request: it passes through every rank, its logits must be finite. A
 * ping is an empty step through every rank, for a group that has nothing to do. Both go the way that work
 * goes, so a loop that hangs is found before work is lost in it. */
#ifndef LEPTON_WORKER_CANARY_H
#define LEPTON_WORKER_CANARY_H

#include "worker/infer/mailbox.h"
#include "worker/watchdog.h"

#define CANARY_PING_MS 3000 /* between two pings of an idle group */

enum canary_state { CANARY_NONE, CANARY_ASKED, CANARY_PASSED };

struct canary {
    struct mailbox *mailbox;   /* borrowed */
    struct watchdog *watchdog; /* borrowed; NULL: none */
    enum canary_state state;
    uint64_t asked_ms, retry_ms, next_ping_ms;
};

void canary_init(struct canary *c, struct mailbox *mailbox, struct watchdog *watchdog);
/* Has one come through since the last canary_void? Sends one when none is under way. */
bool canary_passed(struct canary *c, uint64_t now_ms);
/* True when the event was a canary's. */
bool canary_take(struct canary *c, const struct event *e, uint64_t now_ms);
/* All work was dropped: what was shown before says nothing any more. */
void canary_void(struct canary *c);
/* Now and then a ping; most is heard of it when it does not come through. */
void canary_ping(struct canary *c, uint64_t now_ms);
/* For how long the group has had something to do and no rank has moved; `text` names the rank and where. */
uint64_t canary_stuck_ms(struct canary *c, char text[WATCHDOG_MOST_TEXT]);

#endif
