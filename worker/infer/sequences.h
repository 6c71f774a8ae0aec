/* sequences: the leader's live sequences: which wait, which hold a slot and pages, and how each ends. Every
 * submitted request ends exactly once per choice (an event, or silence after cancel-all), and gives back what
 * it held. It knows nothing of how steps are made or moved.
 *
 * Nobody reserves pages for what it may generate: a sequence is admitted when its tokens so far fit beside
 * what the running ones need soon, and takes pages as it grows (flight). The price is paid when all grow:
 * the last in order then goes back to wait. */
#ifndef LEPTON_WORKER_INFER_SEQUENCES_H
#define LEPTON_WORKER_INFER_SEQUENCES_H

#include "worker/infer/leader.h"

/* Does what the link asked for since the last call, and admits what waits while there is room. */
void sequences_take_commands(struct leader *l);
/* Reports the end of a sequence that is in no step under way, and releases it. */
void sequences_finish(struct leader *l, struct sequence *q, enum event_kind kind, enum finish_reason reason);
/* Gives everything of a sequence back; nothing of it is under way. */
void sequences_release(struct leader *l, struct sequence *q);
/* Ends all waiting sequences, silently. */
void sequences_drop_waiting(struct leader *l);
/* Takes a sequence's slot and pages; it waits, in its place, to be recomputed. Not one that flies. */
void sequences_preempt(struct leader *l, struct sequence *q);

/* Lets a sequence in its prefill hold pages that are known by its next tokens, or those of another choice of
 * its request. False while it is better to wait: an earlier choice computes the same prompt now. */
bool sequences_reuse(struct leader *l, struct sequence *q);
/* Whether its next row would be written into a page that others see. */
bool sequences_must_copy(const struct leader *l, const struct sequence *q);
/* Gives up the page of its next row: its tokens are fed again from the page's first. */
void sequences_give_up_page(struct leader *l, struct sequence *q);
/* Makes the pages known that the tokens fed so far have filled. */
void sequences_publish_pages(struct leader *l, struct sequence *q);

/* Counts what runs and waits, for heartbeats. */
void sequences_publish(struct leader *l);

#endif
