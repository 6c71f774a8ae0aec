/* comm_shm: comm between ranks of one host, through a piece of shared memory that all of them map. Host
 * memory only (the cpu device). It knows no MPI: the ranks find each other over another comm.
 *
 * Collectives go in rounds, in the same order on every rank: each writes its part, raises its counter, waits
 * for the others' counters and reads their parts; two areas are used in turn, so that a rank may begin the
 * next round while a slow one still reads. Between two ranks that keep step a round costs about a
 * microsecond, which is what one sum per block half needs; MPI's own waiting would cost more than the sum.
 *
 * Sends are streams through a ring for each pair of ranks, whose memory is taken when it is first used; what
 * does not fit at once is kept and goes on in every later call. */
#ifndef LEPTON_WORKER_COMM_SHM_H
#define LEPTON_WORKER_COMM_SHM_H

#include "worker/comm.h"

/* Collective over `over` (host memory, borrowed during the call): the same ranks. `device` gives the kernel
 * that sums; NULL = no sums. Returns 0; 1 and the reason in *err when the ranks do not all share memory
 * (several hosts, or none left): nothing was opened then on any rank; -1 when `over` failed. */
int comm_shm_open(struct comm **out, struct comm *over, struct device *device, struct err *err);

#endif
