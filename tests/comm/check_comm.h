/* check_comm: the behaviour that comm.h promises, checked on any implementation: written against comm.h and
 * device.h alone. Every rank of the communicator runs the same checks in the same order; each computes what
 * it must find by itself, so the checks need no second way to talk.
 *
 *   for (int i = 0; i < comm_check_count(); i++)
 *       failures += comm_check_run(i, &bed);     // on every rank
 */
#ifndef LEPTON_TESTS_COMM_CHECK_COMM_H
#define LEPTON_TESTS_COMM_CHECK_COMM_H

#include "worker/comm.h"

struct comm_bed {
    struct comm *comm;
    struct device *device; /* whose memory is sent and received */
    struct stream *stream;
    /* Waits for the stream; NULL = stream_sync. comm_nccl_wait for a GPU. */
    int (*wait)(struct comm *, struct stream *, struct err *);
};

int comm_check_count(void);
const char *comm_check_sentence(int check); /* "a ring of sends and receives ..." */
/* The number of expectations that failed on this rank; each printed as "# rank 1: ...". A failed call ends
 * the check; the communicator is then good for comm_abort alone. */
int comm_check_run(int check, struct comm_bed *bed);

#endif
