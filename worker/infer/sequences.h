/* sequences: the leader's live sequences: which wait, which hold a slot and pages, and how each ends. Every
 * submitted request ends exactly once (an event, or silence after cancel-all), and gives back what it held.
 * It knows nothing of how steps are made or moved. */
#ifndef LEPTON_WORKER_INFER_SEQUENCES_H
#define LEPTON_WORKER_INFER_SEQUENCES_H

#include "worker/infer/leader.h"

/* Does what the link asked for since the last call, and admits what waits while there is room. */
void sequences_take_commands(struct leader *l);
/* Reports the end of a sequence that is in no step under way, and releases it. */
void sequences_finish(struct leader *l, struct sequence *q, enum event_kind kind, enum finish_reason reason);
/* Gives everything of a sequence back; nothing of it is under way. */
void sequences_release(struct leader *l, struct sequence *q);
/* Ends all waiting requests, silently. */
void sequences_drop_waiting(struct leader *l);
/* Counts what runs and waits, for heartbeats. */
void sequences_publish(struct leader *l);

#endif
