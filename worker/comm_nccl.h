/* comm_nccl: comm over NCCL, for device memory. libnccl is opened at run time (dlopen), so the same code runs
 * against a library of our own in tests. Source of the interface: NCCL user guide, 2.28.
 *
 * The communicator is non-blocking: every wait inside a call polls ncclCommGetAsyncError and ends after
 * timeout_ms, so a dead peer never hangs the rank here. What NCCL was given runs on the stream, and there a
 * dead peer would hang stream_sync: a rank that waits for a stream with communication in it calls
 * comm_nccl_wait. abort() calls ncclCommAbort, which also frees ranks that wait inside the library.
 *
 * Sends: NCCL's wait for the peer, comm's must not. So comm_send copies into a ring of device memory and the
 * copy is sent on a stream of its own, one for each direction (to higher and to lower ranks), each over a
 * communicator of its own; a full ring waits for its sends. Messages of one direction leave in order. A
 * receive of another length than the send is not noticed by NCCL; lengths come from step descriptors.
 *
 * NCCL refuses two ranks on one GPU: such layouts use comm_mpi with staging. */
#ifndef LEPTON_WORKER_COMM_NCCL_H
#define LEPTON_WORKER_COMM_NCCL_H

#include "worker/comm.h"

#define COMM_NCCL_ID_BYTES 128

struct comm_nccl_options {
    const char *library;   /* path or soname; NULL = "libnccl.so.2" */
    struct device *device; /* whose memory is moved and whose kernel sums */
    /* The stream's cudaStream_t, and whether its work is done; NULL = device.h's stream_native, stream_idle.
     */
    void *(*native_stream)(struct stream *);
    int (*stream_idle)(struct stream *, struct err *);
    int rank, size;
    uint8_t id[COMM_NCCL_ID_BYTES]; /* made by rank 0 with comm_nccl_unique_id and carried to all by MPI */
    int timeout_ms;                 /* bound on making the communicator and on one wait; 0 = none */
    size_t send_bytes; /* of each direction's ring; 0 = 16 MiB. A send larger than it waits for its peer */
};

/* Makes the id of a new communicator. Errors: library or symbol missing (named), NCCL's own message. */
int comm_nccl_unique_id(const char *library, uint8_t id[COMM_NCCL_ID_BYTES], struct err *err);
/* Collective over the ranks that share the id. Close the comm before the streams it was called with. */
int comm_nccl_open(struct comm **out, const struct comm_nccl_options *options, struct err *err);
/* stream_sync with comm's bound: waits until the stream has done all its work, a peer is found dead or
 * timeout_ms have passed. `c` is a comm_nccl. */
int comm_nccl_wait(struct comm *c, struct stream *s, struct err *err);

#endif
