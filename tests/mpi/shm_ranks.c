/* shm_ranks: comm_shm through every check of tests/comm/check_comm.c, on the ranks that mpirun started, which
 * find each other over comm_mpi. Rank 0 prints the result of each check over all ranks. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/comm/check_comm.h"
#include "worker/comm_mpi.h"
#include "worker/comm_shm.h"

int main(void)
{
    struct device *device = NULL;
    struct stream *stream = NULL;
    struct comm *over = NULL, *comm = NULL;
    struct err err;
    int provided, failed_checks = 0;
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (device_open(&device, "cpu", &(struct device_options){.threads = 1}, &err) ||
        stream_open(&stream, device, &err) || comm_mpi_open(&over, 0, NULL, &err) ||
        comm_shm_open(&comm, over, device, &err))
        die("%s", err.message);
    struct comm_bed bed = {.comm = comm, .device = device, .stream = stream};
    for (int i = 0; i < comm_check_count(); i++) {
        int mine = comm_check_run(i, &bed), all = 0;
        fflush(stdout);
        if (comm_barrier(comm, stream, &err)) /* sends that are kept go on inside the calls of a comm */
            die("%s", err.message);
        MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (comm->rank == 0)
            printf("%s - comm_shm, %d ranks: %s\n", all ? "not ok" : "ok", comm->size,
                   comm_check_sentence(i));
        failed_checks += all != 0;
    }
    comm_close(&comm);
    comm_close(&over);
    stream_close(&stream);
    device_close(&device);
    MPI_Finalize();
    return failed_checks ? 1 : 0;
}
