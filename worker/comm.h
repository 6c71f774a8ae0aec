/* comm: how the ranks of a group talk: point to point between pipeline stages, collectives between tensor
 * slots. comm_mpi moves host memory through MPI; comm_nccl moves device memory through NCCL (opened at run
 * time).
 *
 * Every call takes a stream: the data is valid in that stream's order. Sends do not block on the peer: MPI
 * sends are copied to a bounded ring and go on in the background, moved by comm_progress(), which is called
 * between blocks since Open MPI 4 does not move large sends by itself. Sums are made in rank order
 * (allgather, then kernel_sum_ranks), never in whatever order a library picks, so that the result depends on
 * the number of ranks alone (design I7).
 *
 * A failed call is final: the rank ends, its group with it, and the coordinator moves the work (decision 3).
 */
#ifndef LEPTON_WORKER_COMM_H
#define LEPTON_WORKER_COMM_H

#include "kernels/device.h"

struct comm;

struct comm_ops {
    int (*send)(struct comm *c, struct stream *s, const void *data, size_t bytes, int peer, struct err *err);
    int (*recv)(struct comm *c, struct stream *s, void *data, size_t bytes, int peer, struct err *err);
    int (*allreduce)(struct comm *c, struct stream *s, float *data, size_t count, struct err *err);
    int (*reduce_scatter)(struct comm *c, struct stream *s, const float *in, float *out,
                          size_t count_per_rank, struct err *err);
    int (*allgather)(struct comm *c, struct stream *s, const void *in, void *out, size_t bytes_per_rank,
                     struct err *err);
    int (*broadcast)(struct comm *c, struct stream *s, void *data, size_t bytes, int root, struct err *err);
    int (*barrier)(struct comm *c, struct stream *s, struct err *err);
    int (*progress)(struct comm *c, struct err *err);
    void (*abort)(struct comm *c);
    void (*close)(struct comm *c);
};

/* The first member of every implementation's own struct. */
struct comm {
    const struct comm_ops *ops;
    const char *name; /* "mpi", "nccl" */
    int rank;
    int size;
    void
        *shared; /* COMM_SHARED_BYTES that every rank sees, zeros at first; NULL where they share no memory */
};
#define COMM_SHARED_BYTES 64

/* Sends `bytes` to `peer`; messages between two ranks arrive in order. `data` may be reused once the stream
 * has passed. */
static inline int comm_send(struct comm *c, struct stream *s, const void *data, size_t bytes, int peer,
                            struct err *err)
{
    return c->ops->send(c, s, data, bytes, peer, err);
}
/* Receives exactly `bytes` from `peer`; a message of another length is an error. */
static inline int comm_recv(struct comm *c, struct stream *s, void *data, size_t bytes, int peer,
                            struct err *err)
{
    return c->ops->recv(c, s, data, bytes, peer, err);
}
/* data[i] = sum over ranks, in rank order, in place; the same bits on every rank. */
static inline int comm_allreduce(struct comm *c, struct stream *s, float *data, size_t count, struct err *err)
{
    return c->ops->allreduce(c, s, data, count, err);
}
/* out[count_per_rank] = this rank's part of the sum of in[size * count_per_rank], summed in rank order. */
static inline int comm_reduce_scatter(struct comm *c, struct stream *s, const float *in, float *out,
                                      size_t count_per_rank, struct err *err)
{
    return c->ops->reduce_scatter(c, s, in, out, count_per_rank, err);
}
/* out[size * bytes_per_rank] = every rank's `in`, in rank order. */
static inline int comm_allgather(struct comm *c, struct stream *s, const void *in, void *out,
                                 size_t bytes_per_rank, struct err *err)
{
    return c->ops->allgather(c, s, in, out, bytes_per_rank, err);
}
static inline int comm_broadcast(struct comm *c, struct stream *s, void *data, size_t bytes, int root,
                                 struct err *err)
{
    return c->ops->broadcast(c, s, data, bytes, root, err);
}
static inline int comm_barrier(struct comm *c, struct stream *s, struct err *err)
{
    return c->ops->barrier(c, s, err);
}
/* Moves sends that are under way and reports an asynchronous fault. Cheap; called between blocks. */
static inline int comm_progress(struct comm *c, struct err *err)
{
    return c->ops->progress(c, err);
}
/* Ends all operations at once, here and (as far as the library can) at the peers; only comm_close may follow.
 */
static inline void comm_abort(struct comm *c)
{
    c->ops->abort(c);
}
static inline void comm_close(struct comm **c)
{
    if (c && *c) {
        (*c)->ops->close(*c);
        *c = NULL;
    }
}

#endif
