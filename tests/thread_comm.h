/* thread_comm: a comm whose ranks are threads of one process, so that a test drives a whole group (stages,
 * tensor slots) without MPI. A world is the set of queues between its ranks; a message is copied when it is
 * sent, as comm_mpi does. Sums are made in rank order, as every comm must (design I7).
 *
 * For tests alone: a rank that fails does not end the others; the test dies instead. */
#ifndef LEPTON_TESTS_THREAD_COMM_H
#define LEPTON_TESTS_THREAD_COMM_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "worker/comm.h"

#define THREAD_COMM_RANKS 8

struct thread_message {
    struct thread_message *next;
    size_t bytes;
    char data[];
};

struct thread_world {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int size;
    struct {
        struct thread_message *first, *last;
    } queue[THREAD_COMM_RANKS][THREAD_COMM_RANKS]; /* [from][to] */
};

struct thread_comm {
    struct comm comm;
    struct thread_world *world;
};

static inline int thread_send(struct comm *comm, struct stream *s, const void *data, size_t bytes, int peer,
                              struct err *err)
{
    struct thread_world *w = ((struct thread_comm *)comm)->world;
    struct thread_message *m = xmalloc(sizeof(*m) + bytes);
    if (s && stream_sync(s, err))
        return -1;
    m->next = NULL;
    m->bytes = bytes;
    memcpy(m->data, data, bytes);
    pthread_mutex_lock(&w->lock);
    if (w->queue[comm->rank][peer].last)
        w->queue[comm->rank][peer].last->next = m;
    else
        w->queue[comm->rank][peer].first = m;
    w->queue[comm->rank][peer].last = m;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return 0;
}

static inline int thread_recv(struct comm *comm, struct stream *s, void *data, size_t bytes, int peer,
                              struct err *err)
{
    (void)s; /* the memory is the host's, and its work runs inline */
    struct thread_world *w = ((struct thread_comm *)comm)->world;
    pthread_mutex_lock(&w->lock);
    while (!w->queue[peer][comm->rank].first)
        pthread_cond_wait(&w->changed, &w->lock);
    struct thread_message *m = w->queue[peer][comm->rank].first;
    if (!(w->queue[peer][comm->rank].first = m->next))
        w->queue[peer][comm->rank].last = NULL;
    pthread_mutex_unlock(&w->lock);
    size_t got = m->bytes;
    memcpy(data, m->data, got < bytes ? got : bytes);
    free(m);
    return got == bytes ? 0
                        : err_set(err, "a message of %zu bytes from rank %d, expected %zu", got, peer, bytes);
}

static inline int thread_allgather(struct comm *comm, struct stream *s, const void *in, void *out,
                                   size_t bytes, struct err *err)
{
    for (int peer = 0; peer < comm->size; peer++)
        if (thread_send(comm, s, in, bytes, peer, err))
            return -1;
    for (int peer = 0; peer < comm->size; peer++)
        if (thread_recv(comm, s, (char *)out + (size_t)peer * bytes, bytes, peer, err))
            return -1;
    return 0;
}

static inline int thread_allreduce(struct comm *comm, struct stream *s, float *data, size_t count,
                                   struct err *err)
{
    float *parts = xmalloc((size_t)comm->size * count * sizeof(float));
    int code = thread_allgather(comm, s, data, parts, count * sizeof(float), err);
    for (size_t i = 0; i < count && code == 0; i++) {
        data[i] = parts[i];
        for (size_t r = 1; r < (size_t)comm->size; r++)
            data[i] += parts[r * count + i];
    }
    free(parts);
    return code;
}

static inline int thread_reduce_scatter(struct comm *comm, struct stream *s, const float *in, float *out,
                                        size_t count, struct err *err)
{
    size_t whole = (size_t)comm->size * count;
    float *all = xmalloc(whole * sizeof(float));
    memcpy(all, in, whole * sizeof(float));
    int code = thread_allreduce(comm, s, all, whole, err);
    memcpy(out, all + (size_t)comm->rank * count, count * sizeof(float));
    free(all);
    return code;
}

static inline int thread_broadcast(struct comm *comm, struct stream *s, void *data, size_t bytes, int root,
                                   struct err *err)
{
    if (comm->rank != root)
        return thread_recv(comm, s, data, bytes, root, err);
    for (int peer = 0; peer < comm->size; peer++)
        if (peer != root && thread_send(comm, s, data, bytes, peer, err))
            return -1;
    return 0;
}

static inline int thread_barrier(struct comm *comm, struct stream *s, struct err *err)
{
    char in = 0, out[THREAD_COMM_RANKS];
    return thread_allgather(comm, s, &in, out, 1, err);
}

static inline int thread_progress(struct comm *comm, struct err *err)
{
    (void)comm;
    (void)err;
    return 0;
}

static inline void thread_abort(struct comm *comm)
{
    (void)comm;
}

static inline void thread_close(struct comm *comm)
{
    free(comm);
}

static const struct comm_ops thread_comm_ops = {.send = thread_send,
                                                .recv = thread_recv,
                                                .allreduce = thread_allreduce,
                                                .reduce_scatter = thread_reduce_scatter,
                                                .allgather = thread_allgather,
                                                .broadcast = thread_broadcast,
                                                .barrier = thread_barrier,
                                                .progress = thread_progress,
                                                .abort = thread_abort,
                                                .close = thread_close};

static inline void thread_world_init(struct thread_world *w, int size)
{
    ASSERT(size >= 1 && size <= THREAD_COMM_RANKS);
    *w = (struct thread_world){.size = size};
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
}

/* Every message was received: one left over is a fault of what was tested. */
static inline void thread_world_release(struct thread_world *w)
{
    for (int from = 0; from < w->size; from++)
        for (int to = 0; to < w->size; to++)
            ASSERT(!w->queue[from][to].first);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
}

/* One rank's end; comm_close frees it. The world outlives it. */
static inline struct comm *thread_comm_open(struct thread_world *w, int rank)
{
    struct thread_comm *c = xcalloc(1, sizeof(*c));
    c->comm = (struct comm){.ops = &thread_comm_ops, .name = "threads", .rank = rank, .size = w->size};
    c->world = w;
    return &c->comm;
}

#endif
