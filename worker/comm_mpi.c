#include "worker/comm_mpi.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"

#define SEND_SLOTS 16
#define TAG        1

/* A send under way: the copy of its bytes, and the request. */
struct send_slot {
    MPI_Request request;
    void *bytes;
    size_t capacity;
};

struct comm_mpi {
    struct comm comm;
    MPI_Comm mpi;
    struct device *device; /* borrowed; NULL = host memory, no sums */
    bool host_memory;      /* the device's memory is the host's */
    struct send_slot slot[SEND_SLOTS];
    int next_slot;
    /* Device memory for the parts of a sum, and host memory to stage what the host cannot read. */
    void *parts, *host_a, *host_b;
    size_t parts_bytes, host_a_bytes, host_b_bytes;
};

static int mpi_error(int code, const char *what, struct err *err)
{
    char text[MPI_MAX_ERROR_STRING];
    int n = 0;
    MPI_Error_string(code, text, &n);
    return err_set(err, "MPI %s: %.*s", what, n, text);
}

/* The work that the data depends on is done; host memory (no stream) depends on none. */
static int settle(struct stream *s, struct err *err)
{
    return s ? stream_sync(s, err) : 0;
}

static void nap(long nanoseconds)
{
    struct timespec t = {.tv_nsec = nanoseconds};
    nanosleep(&t, NULL);
}

/* Waits for a request: eager first, then yielding, then in short naps, so that ranks which share cores do not
 * take them from the rank they wait for. */
static int wait_request(MPI_Request *request, MPI_Status *status, const char *what, struct err *err)
{
    for (unsigned spins = 0;; spins++) {
        int done = 0;
        int code = MPI_Test(request, &done, status);
        if (code != MPI_SUCCESS)
            return mpi_error(code, what, err);
        if (done)
            return 0;
        if (spins > 2000)
            nap(100 * 1000);
        else if (spins > 400)
            nap(10 * 1000);
        else if (spins > 50)
            sched_yield();
    }
}

static void reserve_host(void **memory, size_t *capacity, size_t bytes)
{
    if (*capacity < bytes) {
        *memory = xrealloc(*memory, bytes);
        *capacity = bytes;
    }
}

static int reserve_parts(struct comm_mpi *c, size_t bytes, struct err *err)
{
    ASSERT(c->device);
    if (c->parts_bytes >= bytes)
        return 0;
    device_free(c->device, c->parts);
    c->parts_bytes = 0;
    if (!(c->parts = device_alloc(c->device, bytes, err)))
        return -1;
    c->parts_bytes = bytes;
    return 0;
}

/* Host bytes of device data, after all work of the stream: the data itself, or a copy in host_a. */
static const void *host_view(struct comm_mpi *c, struct stream *s, const void *data, size_t bytes,
                             struct err *err)
{
    if (c->host_memory)
        return settle(s, err) ? NULL : data;
    reserve_host(&c->host_a, &c->host_a_bytes, bytes);
    stream_download(s, c->host_a, data, bytes);
    return settle(s, err) ? NULL : c->host_a;
}

static int send_bytes(struct comm *comm, struct stream *s, const void *data, size_t bytes, int peer,
                      struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    if (bytes > INT32_MAX)
        return err_set(err, "MPI send of %zu bytes: expected at most %d", bytes, INT32_MAX);
    struct send_slot *slot = &c->slot[c->next_slot];
    c->next_slot = (c->next_slot + 1) % SEND_SLOTS;
    MPI_Status status;
    if (slot->request != MPI_REQUEST_NULL && wait_request(&slot->request, &status, "send", err))
        return -1;
    reserve_host(&slot->bytes, &slot->capacity, bytes);
    if (c->host_memory) {
        if (settle(s, err))
            return -1;
        if (bytes)
            memcpy(slot->bytes, data, bytes);
    } else {
        stream_download(s, slot->bytes, data, bytes);
        if (settle(s, err))
            return -1;
    }
    int code = MPI_Isend(slot->bytes, (int)bytes, MPI_BYTE, peer, TAG, c->mpi, &slot->request);
    return code == MPI_SUCCESS ? 0 : mpi_error(code, "send", err);
}

static int recv_bytes(struct comm *comm, struct stream *s, void *data, size_t bytes, int peer,
                      struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    if (bytes > INT32_MAX)
        return err_set(err, "MPI receive of %zu bytes: expected at most %d", bytes, INT32_MAX);
    void *to = data;
    if (!c->host_memory) {
        reserve_host(&c->host_b, &c->host_b_bytes, bytes);
        to = c->host_b;
    } else if (settle(s, err)) {
        return -1;
    }
    MPI_Request request;
    MPI_Status status;
    int code = MPI_Irecv(to, (int)bytes, MPI_BYTE, peer, TAG, c->mpi, &request);
    if (code != MPI_SUCCESS)
        return mpi_error(code, "receive", err);
    if (wait_request(&request, &status, "receive", err))
        return -1;
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    if ((size_t)count != bytes)
        return err_set(err, "MPI receive from rank %d: %d bytes came, expected %zu", peer, count, bytes);
    if (!c->host_memory)
        stream_upload(s, data, to, bytes);
    return 0;
}

static int allgather(struct comm *comm, struct stream *s, const void *in, void *out, size_t bytes,
                     struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    size_t total = bytes * (size_t)comm->size;
    if (bytes > INT32_MAX)
        return err_set(err, "MPI allgather of %zu bytes: expected at most %d", bytes, INT32_MAX);
    const void *from = host_view(c, s, in, bytes, err);
    if (!from)
        return -1;
    void *to = out;
    if (!c->host_memory) {
        reserve_host(&c->host_b, &c->host_b_bytes, total);
        to = c->host_b;
    }
    MPI_Request request;
    MPI_Status status;
    int code = MPI_Iallgather(from, (int)bytes, MPI_BYTE, to, (int)bytes, MPI_BYTE, c->mpi, &request);
    if (code != MPI_SUCCESS)
        return mpi_error(code, "allgather", err);
    if (wait_request(&request, &status, "allgather", err))
        return -1;
    if (!c->host_memory)
        stream_upload(s, out, to, total);
    return 0;
}

/* out[n] = the sum in rank order of the [size, n] parts. */
static void sum_parts(struct comm_mpi *c, struct stream *s, float *out, size_t count)
{
    struct tensor parts = tensor_2d(c->device, DTYPE_F32, c->parts, c->comm.size, (int64_t)count);
    struct tensor sum = tensor_1d(c->device, DTYPE_F32, out, (int64_t)count);
    kernel_sum_ranks(s, &sum, &parts);
}

static int allreduce(struct comm *comm, struct stream *s, float *data, size_t count, struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    size_t bytes = count * sizeof(float);
    if (comm->size == 1 || count == 0)
        return 0;
    if (reserve_parts(c, bytes * (size_t)comm->size, err) || allgather(comm, s, data, c->parts, bytes, err))
        return -1;
    sum_parts(c, s, data, count);
    return 0;
}

static int reduce_scatter(struct comm *comm, struct stream *s, const float *in, float *out, size_t count,
                          struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    size_t bytes = count * sizeof(float), total = bytes * (size_t)comm->size;
    if (bytes > INT32_MAX)
        return err_set(err, "MPI reduce-scatter of %zu bytes a rank: expected at most %d", bytes, INT32_MAX);
    const void *from = host_view(c, s, in, total, err);
    if (!from || reserve_parts(c, total, err))
        return -1;
    void *to = c->parts;
    if (!c->host_memory) {
        reserve_host(&c->host_b, &c->host_b_bytes, total);
        to = c->host_b;
    }
    MPI_Request request;
    MPI_Status status;
    int code = MPI_Ialltoall(from, (int)bytes, MPI_BYTE, to, (int)bytes, MPI_BYTE, c->mpi, &request);
    if (code != MPI_SUCCESS)
        return mpi_error(code, "reduce-scatter", err);
    if (wait_request(&request, &status, "reduce-scatter", err))
        return -1;
    if (!c->host_memory)
        stream_upload(s, c->parts, to, total);
    sum_parts(c, s, out, count);
    return 0;
}

static int broadcast(struct comm *comm, struct stream *s, void *data, size_t bytes, int root, struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    if (bytes > INT32_MAX)
        return err_set(err, "MPI broadcast of %zu bytes: expected at most %d", bytes, INT32_MAX);
    void *host = (void *)(uintptr_t)host_view(c, s, data, bytes, err);
    if (!host)
        return -1;
    MPI_Request request;
    MPI_Status status;
    int code = MPI_Ibcast(host, (int)bytes, MPI_BYTE, root, c->mpi, &request);
    if (code != MPI_SUCCESS)
        return mpi_error(code, "broadcast", err);
    if (wait_request(&request, &status, "broadcast", err))
        return -1;
    if (!c->host_memory)
        stream_upload(s, data, host, bytes);
    return 0;
}

static int barrier(struct comm *comm, struct stream *s, struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    MPI_Request request;
    MPI_Status status;
    if (settle(s, err))
        return -1;
    int code = MPI_Ibarrier(c->mpi, &request);
    if (code != MPI_SUCCESS)
        return mpi_error(code, "barrier", err);
    return wait_request(&request, &status, "barrier", err);
}

static int progress(struct comm *comm, struct err *err)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    for (int i = 0; i < SEND_SLOTS; i++) {
        int done;
        if (c->slot[i].request == MPI_REQUEST_NULL)
            continue;
        int code = MPI_Test(&c->slot[i].request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS)
            return mpi_error(code, "send", err);
    }
    return 0;
}

static void abort_all(struct comm *comm)
{
    MPI_Abort(((struct comm_mpi *)comm)->mpi, EXIT_DIE);
}

static void close_comm(struct comm *comm)
{
    struct comm_mpi *c = (struct comm_mpi *)comm;
    struct err ignored;
    for (int i = 0; i < SEND_SLOTS; i++) {
        MPI_Status status;
        if (c->slot[i].request != MPI_REQUEST_NULL)
            wait_request(&c->slot[i].request, &status, "send", &ignored);
        free(c->slot[i].bytes);
    }
    if (c->device)
        device_free(c->device, c->parts);
    free(c->host_a);
    free(c->host_b);
    MPI_Comm_free(&c->mpi);
    free(c);
}

static const struct comm_ops mpi_ops = {
    .send = send_bytes,
    .recv = recv_bytes,
    .allreduce = allreduce,
    .reduce_scatter = reduce_scatter,
    .allgather = allgather,
    .broadcast = broadcast,
    .barrier = barrier,
    .progress = progress,
    .abort = abort_all,
    .close = close_comm,
};

int comm_mpi_open(struct comm **out, int color, struct device *device, struct err *err)
{
    struct comm_mpi *c = xcalloc(1, sizeof(*c));
    c->comm.ops = &mpi_ops;
    c->comm.name = "mpi";
    c->device = device;
    c->host_memory = !device || strcmp(device_name(device), "cpu") == 0;
    int code = MPI_Comm_split(MPI_COMM_WORLD, color, 0, &c->mpi);
    if (code != MPI_SUCCESS) {
        free(c);
        return mpi_error(code, "communicator", err);
    }
    MPI_Comm_set_errhandler(c->mpi, MPI_ERRORS_RETURN);
    MPI_Comm_rank(c->mpi, &c->comm.rank);
    MPI_Comm_size(c->mpi, &c->comm.size);
    for (int i = 0; i < SEND_SLOTS; i++)
        c->slot[i].request = MPI_REQUEST_NULL;
    *out = &c->comm;
    return 0;
}
