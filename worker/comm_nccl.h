/* comm_nccl: comm over NCCL, for device memory. libnccl is opened at run time (dlopen), so the same code runs
 * against a library of our own in tests. Source of the interface: NCCL user guide, 2.28.
 *
 * Asynchronous faults are found by progress() (ncclCommGetAsyncError); abort() calls ncclCommAbort, which
 * also frees ranks that wait inside the library. NCCL refuses two ranks on one GPU: such layouts use comm_mpi
 * with staging. */
#ifndef LEPTON_WORKER_COMM_NCCL_H
#define LEPTON_WORKER_COMM_NCCL_H

#include "worker/comm.h"

#define COMM_NCCL_ID_BYTES 128

struct comm_nccl_options {
    const char *library;                     /* path or soname; NULL = "libnccl.so.2" */
    struct device *device;                   /* whose memory is moved and whose kernel sums */
    void *(*native_stream)(struct stream *); /* the stream's cudaStream_t; NULL = pass NULL */
    int rank, size;
    uint8_t id[COMM_NCCL_ID_BYTES]; /* made by rank 0 with comm_nccl_unique_id and carried to all by MPI */
    int timeout_ms;                 /* bound on making the communicator and on one wait; 0 = none */
};

/* Makes the id of a new communicator. Errors: library or symbol missing (named), NCCL's own message. */
int comm_nccl_unique_id(const char *library, uint8_t id[COMM_NCCL_ID_BYTES], struct err *err);
int comm_nccl_open(struct comm **out, const struct comm_nccl_options *options, struct err *err);

#endif
