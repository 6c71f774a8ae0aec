/* watchdog: ends a rank that is stuck. The step thread says what it is doing and that it goes on; a thread of
 * the watchdog's own compares with the limits and ends the process with _exit when nothing moved for too
 * long, after naming the rank and the operation. A sick rank takes its group down within seconds (design,
 * decision 3); the supervisor starts it again under a new epoch. An idle rank costs nothing here. */
#ifndef LEPTON_WORKER_WATCHDOG_H
#define LEPTON_WORKER_WATCHDOG_H

#include "common/base.h"

#define EXIT_STUCK 71

struct watchdog;

void watchdog_start(struct watchdog **out, int rank);
void watchdog_stop(struct watchdog **w);

/* The operation that begins now and how long it may go on without a sign of progress; 0 ms = idle, no limit.
 * `what` must stay alive (a literal). NULL watchdog: no effect. */
void watchdog_enter(struct watchdog *w, const char *what, uint64_t limit_ms);
/* A sign of progress inside the operation. */
void watchdog_progress(struct watchdog *w);

#endif
