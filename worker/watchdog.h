/* watchdog: ends a rank, or on the leader the group, that is stuck, and says which rank is stuck in what. The
 * step thread says what it is doing and that it goes on; a thread of the watchdog's own compares with the
 * limits and ends the process with _exit when nothing moved for too long. A sick rank takes its group down
 * within seconds (design, decision 3); the supervisor starts it again under a new epoch.
 *
 *   rank 1 ──┐ twice a second while it is busy: what it does, and since when nothing moved
 *   rank 2 ──┼──(the wake connections)──> leader: does any rank move? ──> heartbeats: stuck_ms, stuck
 *   rank 3 ──┘
 *
 * A group moves as long as one of its ranks does: a stage waits for another that computes. A connection that
 * ends without a word of leave is a rank that died: the leader leaves at once, sooner than a launcher tells
 * it. An idle rank says nothing and costs nothing. */
#ifndef LEPTON_WORKER_WATCHDOG_H
#define LEPTON_WORKER_WATCHDOG_H

#include "common/base.h"

#define EXIT_STUCK         71
#define EXIT_GROUP         72 /* the group could not go on: a rank of it is gone, or a message failed */
#define WATCHDOG_MOST_TEXT 128

struct watchdog;

void watchdog_start(struct watchdog **out, int rank);
void watchdog_stop(struct watchdog **w);

/* Leader: takes the reports of the other ranks from these connections, one each, and ends the group when none
 * of its ranks moved for limit_ms. Borrowed until watchdog_stop. */
void watchdog_gather(struct watchdog *w, const int *peers, int count, uint64_t limit_ms);
/* Other ranks: sends reports over this connection. */
void watchdog_report(struct watchdog *w, int leader);
/* Other ranks: says that its end is no failure. */
void watchdog_leave(struct watchdog *w);

/* The operation that begins now and how long it may go on without a sign of progress; 0 ms = idle, no limit.
 * `what` must stay alive (a literal). NULL watchdog: no effect. */
void watchdog_enter(struct watchdog *w, const char *what, uint64_t limit_ms);
/* A sign of progress inside the operation. */
void watchdog_progress(struct watchdog *w);

/* How long no rank of the group has moved though there is work; *idle says that there is none. `text` names
 * the rank and the operation. */
uint64_t watchdog_stuck_ms(struct watchdog *w, bool *idle, char text[WATCHDOG_MOST_TEXT]);

#endif
