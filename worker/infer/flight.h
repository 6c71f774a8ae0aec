/* flight: the leader's steps under way: planning one, running this rank's stage of it and sending it on, and
 * taking its result. Up to one step per stage flies at once, in a ring, and they land in order. */
#ifndef LEPTON_WORKER_INFER_FLIGHT_H
#define LEPTON_WORKER_INFER_FLIGHT_H

#include "worker/infer/leader.h"

/* Whether another step may go under way: as many as go fastest, at most one a stage. */
bool flight_may_launch(struct leader *l);
/* 1 = a step was launched, 0 = nothing is ready, -1 = error. A flight must be free. */
int flight_launch(struct leader *l, struct err *err);
/* Takes the result of the oldest step under way. */
int flight_collect(struct leader *l, struct err *err);
/* Sends a step without rows down the line and waits until every rank has it; nothing is under way. */
int flight_send_flag(struct leader *l, uint32_t flags, struct err *err);

#endif
