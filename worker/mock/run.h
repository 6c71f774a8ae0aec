/* run: a mock group as a process: reads its speed, opens its link, serves until it is told to drain. It takes
 * the place of MPI, model and executor in lepton-worker; the link and the coordinator do not see the
 * difference. */
#ifndef LEPTON_WORKER_MOCK_RUN_H
#define LEPTON_WORKER_MOCK_RUN_H

#include "worker/link.h"
#include "worker/settings.h"

/* serving() is called with the link once it runs, and with NULL before it stops: what a signal drains. -1:
 * the settings or the speed file are wrong. */
int mock_run(const struct worker_settings *settings, void (*serving)(struct link *link), struct err *err);

#endif
