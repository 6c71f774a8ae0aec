/* affinity: on which processors the coordinator's threads run: the option `processor`. It owns their
 * affinity, and reads from the kernel what `together` decides by: the threads' schedstat and the processors'
 * idle time in /proc/stat. Where the kernel does not tell, or does not let it, the threads stay as they were
 * started, and the log says so once.
 *
 * It wakes nobody: it looks when the main loop turns anyway, at most twice a second, and less often where
 * looking is so slow that it would take more than a thousandth of a processor. */
#ifndef LEPTON_COORDINATOR_AFFINITY_H
#define LEPTON_COORDINATOR_AFFINITY_H

#include "common/base.h"

struct affinity;
/* `processor`: "auto", "off", or the number of the one processor that all threads, those to come too, run on.
 * `proc`: where the kernel tells ("/proc"), borrowed. From the only thread. Errors name the option. */
int affinity_open(struct affinity **out, const char *processor, const char *proc, struct err *err);
void affinity_close(struct affinity **a);
/* Threads that run by now, except the caller, are left where they are. */
void affinity_spare(struct affinity *a);
/* From the thread that opened it, after each turn of the main loop. */
void affinity_tick(struct affinity *a, uint64_t now_ms);
/* "any", "auto: any", "auto: 3" or "3". Until the next tick. */
const char *affinity_state(const struct affinity *a);

#endif
