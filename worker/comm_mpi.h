/* comm_mpi: comm over MPI (Open MPI 4 or newer), host memory. Only the step thread calls it
 * (MPI_THREAD_FUNNELED).
 *
 * Waiting: a receive tests for a short while, then yields, then sleeps in growing naps of at most 100 us, so
 * that ranks that share cores do not take them from each other; an idle group does not wait here at all
 * (worker/wake.h). */
#ifndef LEPTON_WORKER_COMM_MPI_H
#define LEPTON_WORKER_COMM_MPI_H

#include "worker/comm.h"

/* Splits MPI_COMM_WORLD: the ranks that pass the same color form one communicator, ordered by their world
 * rank. Collective over the world. `device` gives the kernel that sums and its memory; device memory that the
 * host cannot read is staged. */
int comm_mpi_open(struct comm **out, int color, struct device *device, struct err *err);

#endif
