/* fake_nccl: a libnccl.so of our own for tests without GPUs: NCCL's symbols, moving HOST memory between the
 * processes of one machine over Unix sockets. Ranks meet in a directory whose path is the unique id.
 *
 * It is stricter than NCCL where a program could get away with a mistake:
 *   a send ends only when the peer has received it, and reads its memory as late as it can;
 *   the groups of one communicator run one after the other;
 *   lengths and kinds of the two ends must agree (ncclInvalidUsage).
 * A group of sends goes on behind the caller, as on a stream of its own; any other keeps the communicator
 * ncclInProgress until its data is there, since the CPU's streams run inline. fake_nccl_stream_idle tells
 * whether groups of a stream are under way. Work moves inside ncclCommGetAsyncError, for all communicators;
 * only non-blocking ones are offered. One thread.
 *
 *   rank 0 --out[1]--> data ->   in[0] rank 1      each direction has its own socket, so that an
 *          <---------- ack  <-                     unread message holds up no acknowledgement
 *
 * FAKE_NCCL_FAIL=WHAT:N[@RANK] injects one fault (counted from 1; every rank without @RANK):
 *   id init send recv allgather broadcast   the N-th such call returns ncclSystemError
 *   async   after N operations the communicator has an asynchronous ncclRemoteError
 *   hang    the N-th operation never ends; only ncclCommAbort helps
 *   die     the process ends in its N-th operation */
#define NCCL_CALL __attribute__((visibility("default")))

#include "worker/nccl_abi.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RANKS_MAX 16

enum kind { KIND_P2P = 1, KIND_ALLGATHER, KIND_BROADCAST, KIND_BYE };

struct frame {
    uint64_t kind, bytes;
};

/* What one ncclGroupStart/End gave to one communicator. */
struct operations {
    struct operations *next;
    struct message *waiting; /* not yet begun: an earlier group is under way */
    int messages;            /* not yet ended */
    bool behind;             /* sends alone: the caller goes on */
    const void *stream;
};

/* One message of an operation, in the queue of one peer and one direction. */
struct message {
    struct message *next;
    struct operations *of;
    bool sends;
    int peer;
    struct frame frame;
    uint8_t *data;
    size_t moved; /* of frame and data when sending, of data when receiving */
};

struct queue {
    struct message *first, *last;
};

struct peer {
    int out, in;
    struct queue sends, receives;
    struct frame arriving; /* header at the front of `in` */
    size_t arriving_bytes;
    bool left; /* said good-bye */
};

struct ncclComm {
    struct ncclComm *next; /* all of the process */
    struct operations *first;
    int rank, size, listener;
    char directory[NCCL_ABI_ID_BYTES];
    struct peer peer[RANKS_MAX];
    bool ready, hung, open_group;
    int error; /* sticky */
    char message[200];
};

static struct ncclComm *all_comms;
static int group_depth;

static char last_error[200];
static int calls_made[8]; /* by fault, below */

/* ---- faults ----------------------------------------------------------------------------------------------
 */

/* True when this is the call that FAKE_NCCL_FAIL names. */
static bool fault_due(const char *what, int *counter, int rank)
{
    const char *spec = getenv("FAKE_NCCL_FAIL");
    char name[32];
    int n = 0, at = -1;
    ++*counter;
    if (!spec || sscanf(spec, "%31[a-z]:%d@%d", name, &n, &at) < 2)
        return false;
    return strcmp(name, what) == 0 && n == *counter && (at < 0 || rank < 0 || at == rank);
}

static int comm_error(struct ncclComm *c, int error, const char *what, int peer)
{
    if (!c->error) {
        c->error = error;
        snprintf(c->message, sizeof(c->message), "%s (rank %d, peer %d)", what, c->rank, peer);
    }
    return error;
}

static int fault_of_operation(struct ncclComm *c, const char *what, int *counter)
{
    if (c->error)
        return c->error;
    if (fault_due(what, counter, c->rank)) {
        snprintf(c->message, sizeof(c->message), "injected: %s number %d", what, *counter);
        return NCCL_ABI_SYSTEM_ERROR;
    }
    if (fault_due("die", &calls_made[4], c->rank))
        _exit(9);
    if (fault_due("hang", &calls_made[5], c->rank))
        c->hung = true;
    if (fault_due("async", &calls_made[6], c->rank))
        comm_error(c, NCCL_ABI_REMOTE_ERROR, "injected: asynchronous error", -1);
    return NCCL_ABI_SUCCESS;
}

/* ---- meeting ---------------------------------------------------------------------------------------------
 */

static struct sockaddr_un address(const struct ncclComm *c, int rank)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t used = strnlen(c->directory, sizeof(a.sun_path) - 8);
    memcpy(a.sun_path, c->directory, used);
    snprintf(a.sun_path + used, sizeof(a.sun_path) - used, "/%d", rank);
    return a;
}

static void meet_out(struct ncclComm *c, int rank)
{
    struct sockaddr_un a = address(c, rank);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int32_t own = c->rank;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
        send(fd, &own, sizeof(own), MSG_NOSIGNAL) == sizeof(own)) {
        c->peer[rank].out = fd;
        return;
    }
    if (fd >= 0)
        close(fd); /* the peer is not there yet: the next poll tries again */
}

static void meet(struct ncclComm *c)
{
    bool all = true;
    int fd;
    while ((fd = accept(c->listener, NULL, NULL)) >= 0) {
        int32_t rank = -1;
        if (recv(fd, &rank, sizeof(rank), MSG_WAITALL) == sizeof(rank) && rank >= 0 && rank < c->size)
            c->peer[rank].in = fd;
        else
            close(fd);
    }
    for (int p = 0; p < c->size; p++) {
        if (p != c->rank && c->peer[p].out < 0)
            meet_out(c, p);
        all = all && (p == c->rank || (c->peer[p].out >= 0 && c->peer[p].in >= 0));
    }
    if (!all)
        return;
    struct sockaddr_un own = address(c, c->rank);
    c->ready = true;
    unlink(own.sun_path);
    rmdir(c->directory); /* the last rank to meet all others succeeds */
}

/* ---- moving ----------------------------------------------------------------------------------------------
 */

static void queue_pop(struct queue *q)
{
    struct message *m = q->first;
    q->first = m->next;
    if (!q->first)
        q->last = NULL;
    m->of->messages--;
    free(m);
}

static void queue_push(struct queue *q, struct message *m)
{
    if (q->last)
        q->last->next = m;
    else
        q->first = m;
    q->last = m;
}

/* Moves what the socket takes; bytes, 0 when it would block, -1 when the peer is gone. */
static ssize_t moved(ssize_t n)
{
    if (n > 0)
        return n;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? 0 : -1;
}

/* Sends the first message of the queue on and looks for its acknowledgement; false when nothing moved. */
static bool move_send(struct ncclComm *c, int p)
{
    struct peer *peer = &c->peer[p];
    struct message *m = peer->sends.first;
    if (!m)
        return false;
    size_t head = sizeof(m->frame), total = head + m->frame.bytes;
    ssize_t n;
    if (m->moved < total) {
        bool header = m->moved < head;
        const uint8_t *from = header ? (const uint8_t *)&m->frame + m->moved : m->data + (m->moved - head);
        n = moved(
            send(peer->out, from, header ? head - m->moved : total - m->moved, MSG_NOSIGNAL | MSG_DONTWAIT));
        if (n > 0)
            m->moved += (size_t)n;
    } else {
        uint8_t ack;
        n = moved(recv(peer->out, &ack, 1, MSG_DONTWAIT));
        if (n > 0)
            queue_pop(&peer->sends);
    }
    if (n < 0)
        comm_error(c, NCCL_ABI_REMOTE_ERROR, "peer is gone", p);
    return n > 0;
}

static bool move_header(struct ncclComm *c, int p)
{
    struct peer *peer = &c->peer[p];
    ssize_t n = moved(recv(peer->in, (uint8_t *)&peer->arriving + peer->arriving_bytes,
                           sizeof(peer->arriving) - peer->arriving_bytes, MSG_DONTWAIT));
    if (n > 0)
        peer->arriving_bytes += (size_t)n;
    if (n < 0)
        comm_error(c, NCCL_ABI_REMOTE_ERROR, "peer is gone", p);
    if (peer->arriving_bytes == sizeof(peer->arriving) && peer->arriving.kind == KIND_BYE)
        peer->left = true;
    return n > 0;
}

static bool move_receive(struct ncclComm *c, int p)
{
    struct peer *peer = &c->peer[p];
    struct message *m = peer->receives.first;
    ssize_t n = 1;
    if (peer->left) {
        if (m || peer->sends.first)
            comm_error(c, NCCL_ABI_REMOTE_ERROR, "peer has left", p);
        return false;
    }
    if (peer->arriving_bytes < sizeof(peer->arriving))
        return move_header(c, p);
    if (!m)
        return false;
    if (m->frame.kind != peer->arriving.kind || m->frame.bytes != peer->arriving.bytes) {
        comm_error(c, NCCL_ABI_INVALID_USAGE, "kind or length of the two ends differ", p);
        return false;
    }
    if (m->moved < m->frame.bytes) {
        n = moved(recv(peer->in, m->data + m->moved, m->frame.bytes - m->moved, MSG_DONTWAIT));
        if (n > 0)
            m->moved += (size_t)n;
    }
    if (n < 0)
        comm_error(c, NCCL_ABI_REMOTE_ERROR, "peer is gone", p);
    if (m->moved == m->frame.bytes) {
        uint8_t ack = 1;
        if (send(peer->in, &ack, 1, MSG_NOSIGNAL) != 1)
            comm_error(c, NCCL_ABI_REMOTE_ERROR, "peer is gone", p);
        peer->arriving_bytes = 0;
        queue_pop(&peer->receives);
    }
    return n > 0;
}

/* Ends groups that are done and begins the next one. */
static void next_operations(struct ncclComm *c)
{
    while (c->first && c->first->messages == 0) {
        struct operations *over = c->first;
        c->first = over->next;
        free(over);
    }
    while (c->first && c->first->waiting && group_depth == 0) {
        struct message *m = c->first->waiting;
        c->first->waiting = m->next;
        m->next = NULL;
        queue_push(m->sends ? &c->peer[m->peer].sends : &c->peer[m->peer].receives, m);
    }
}

static void progress(struct ncclComm *c)
{
    bool moving = true;
    if (!c->ready)
        meet(c);
    while (c->ready && moving && !c->error && !c->hung) {
        moving = false;
        next_operations(c);
        for (int p = 0; p < c->size; p++) {
            if (p == c->rank)
                continue;
            moving |= move_send(c, p);
            moving |= move_receive(c, p);
        }
    }
    next_operations(c);
}

static void progress_all(void)
{
    for (struct ncclComm *c = all_comms; c; c = c->next)
        progress(c);
}

/* True while the caller must wait. */
static bool in_progress(const struct ncclComm *c)
{
    bool waits = !c->ready || c->hung;
    for (const struct operations *o = c->first; o; o = o->next)
        waits = waits || !o->behind;
    return waits;
}

NCCL_CALL int fake_nccl_stream_idle(const void *stream)
{
    progress_all();
    for (struct ncclComm *c = all_comms; c; c = c->next)
        for (const struct operations *o = c->first; o; o = o->next)
            if (o->stream == stream || c->hung)
                return 0;
    return 1;
}

/* ---- operations ------------------------------------------------------------------------------------------
 */

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (!memory)
        abort();
    return memory;
}

/* Adds a message to the open group of the communicator. */
static void enqueue(struct ncclComm *c, bool sends, int p, enum kind kind, void *data, size_t bytes,
                    const void *stream)
{
    struct operations **last = &c->first;
    while (*last && (*last)->next)
        last = &(*last)->next;
    if (!*last || !c->open_group) {
        struct operations *o = allocate(sizeof(*o));
        *o = (struct operations){.behind = true, .stream = stream};
        last = *last ? &(*last)->next : last;
        *last = o;
        c->open_group = true;
    }
    struct message *m = allocate(sizeof(*m)), **end = &(*last)->waiting;
    *m = (struct message){.of = *last, .sends = sends, .peer = p, .data = data};
    m->frame = (struct frame){.kind = kind, .bytes = bytes};
    while (*end)
        end = &(*end)->next;
    *end = m;
    (*last)->messages++;
    (*last)->behind = (*last)->behind && sends && kind == KIND_P2P;
}

/* Ends the open group of every communicator. */
static int launch(void)
{
    bool waits = false;
    for (struct ncclComm *c = all_comms; c; c = c->next) {
        bool given = c->open_group;
        c->open_group = false;
        progress(c);
        waits = waits || (given && in_progress(c));
    }
    return waits ? NCCL_ABI_IN_PROGRESS : NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclGroupStart(void)
{
    group_depth++;
    return NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclGroupEnd(void)
{
    if (group_depth == 0)
        return NCCL_ABI_INVALID_USAGE;
    return --group_depth ? NCCL_ABI_SUCCESS : launch();
}

static int point_to_point(struct ncclComm *c, bool sends, void *data, size_t count, int type, int p,
                          const void *stream)
{
    int rc = fault_of_operation(c, sends ? "send" : "recv", &calls_made[sends ? 0 : 1]);
    if (rc != NCCL_ABI_SUCCESS)
        return rc;
    if (type != NCCL_ABI_INT8 || p < 0 || p >= c->size || p == c->rank)
        return comm_error(c, NCCL_ABI_INVALID_ARGUMENT, "type or peer", p);
    ncclGroupStart();
    enqueue(c, sends, p, KIND_P2P, data, count, stream);
    return ncclGroupEnd();
}

NCCL_CALL int ncclSend(const void *data, size_t count, int type, int peer, struct ncclComm *c, void *stream)
{
    return point_to_point(c, true, (void *)data, count, type, peer, stream);
}

NCCL_CALL int ncclRecv(void *data, size_t count, int type, int peer, struct ncclComm *c, void *stream)
{
    return point_to_point(c, false, data, count, type, peer, stream);
}

NCCL_CALL int ncclAllGather(const void *in, void *out, size_t count, int type, struct ncclComm *c,
                            void *stream)
{
    int rc = fault_of_operation(c, "allgather", &calls_made[2]);
    if (rc != NCCL_ABI_SUCCESS)
        return rc;
    if (type != NCCL_ABI_INT8)
        return comm_error(c, NCCL_ABI_INVALID_ARGUMENT, "type", -1);
    uint8_t *to = out;
    memmove(to + (size_t)c->rank * count, in, count);
    ncclGroupStart();
    for (int p = 0; p < c->size; p++) {
        if (p == c->rank)
            continue;
        enqueue(c, true, p, KIND_ALLGATHER, (void *)in, count, stream);
        enqueue(c, false, p, KIND_ALLGATHER, to + (size_t)p * count, count, stream);
    }
    return ncclGroupEnd();
}

NCCL_CALL int ncclBroadcast(const void *in, void *out, size_t count, int type, int root, struct ncclComm *c,
                            void *stream)
{
    int rc = fault_of_operation(c, "broadcast", &calls_made[3]);
    if (rc != NCCL_ABI_SUCCESS)
        return rc;
    if (type != NCCL_ABI_INT8 || root < 0 || root >= c->size)
        return comm_error(c, NCCL_ABI_INVALID_ARGUMENT, "type or root", root);
    ncclGroupStart();
    if (c->rank == root)
        memmove(out, in, count);
    for (int p = 0; p < c->size; p++)
        if (c->rank == root && p != root)
            enqueue(c, true, p, KIND_BROADCAST, (void *)in, count, stream);
    if (c->rank != root)
        enqueue(c, false, root, KIND_BROADCAST, out, count, stream);
    return ncclGroupEnd();
}

/* ---- communicators ---------------------------------------------------------------------------------------
 */

NCCL_CALL int ncclGetVersion(int *version)
{
    *version = NCCL_ABI_VERSION;
    return NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclGetUniqueId(struct nccl_abi_id *id)
{
    static int made;
    const char *tmp = getenv("TMPDIR");
    memset(id, 0, sizeof(*id));
    /* sun_path is shorter than an id: fall back to /tmp where the directory's name is too long */
    bool fits = tmp && snprintf(id->internal, 80, "%s/fake_nccl.XXXXXX", tmp) < 80;
    if (!fits)
        snprintf(id->internal, sizeof(id->internal), "/tmp/fake_nccl.XXXXXX");
    if (fault_due("id", &made, -1) || !mkdtemp(id->internal)) {
        snprintf(last_error, sizeof(last_error), "no directory %.100s to meet in", id->internal);
        return NCCL_ABI_SYSTEM_ERROR;
    }
    return NCCL_ABI_SUCCESS;
}

static void comm_free(struct ncclComm *c)
{
    struct sockaddr_un own = address(c, c->rank);
    struct ncclComm **link = &all_comms;
    while (*link && *link != c)
        link = &(*link)->next;
    if (*link)
        *link = c->next;
    if (!c->ready)
        unlink(own.sun_path);
    for (int p = 0; p < c->size; p++) {
        struct peer *peer = &c->peer[p];
        while (peer->sends.first)
            queue_pop(&peer->sends);
        while (peer->receives.first)
            queue_pop(&peer->receives);
        if (peer->out >= 0)
            close(peer->out);
        if (peer->in >= 0)
            close(peer->in);
    }
    while (c->first) {
        struct operations *over = c->first;
        for (struct message *m; (m = over->waiting);) {
            over->waiting = m->next;
            free(m);
        }
        c->first = over->next;
        free(over);
    }
    close(c->listener);
    free(c);
}

NCCL_CALL int ncclCommInitRankConfig(struct ncclComm **comm, int size, struct nccl_abi_id id, int rank,
                                     struct nccl_abi_config *config)
{
    static int made;
    if (config->magic != NCCL_ABI_MAGIC || config->blocking != 0 || size < 1 || size > RANKS_MAX ||
        rank < 0 || rank >= size) {
        snprintf(last_error, sizeof(last_error), "blocking communicator, or rank %d of %d", rank, size);
        return NCCL_ABI_INVALID_ARGUMENT;
    }
    struct ncclComm *c = calloc(1, sizeof(*c));
    if (!c)
        return NCCL_ABI_SYSTEM_ERROR;
    c->rank = rank, c->size = size;
    memcpy(c->directory, id.internal, sizeof(c->directory) - 1);
    for (int p = 0; p < size; p++)
        c->peer[p].in = c->peer[p].out = -1;
    struct sockaddr_un own = address(c, rank);
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fault_due("init", &made, rank) || bind(c->listener, (struct sockaddr *)&own, sizeof(own)) < 0 ||
        listen(c->listener, RANKS_MAX) < 0) {
        snprintf(last_error, sizeof(last_error), "cannot listen at %s", own.sun_path);
        comm_free(c);
        return NCCL_ABI_SYSTEM_ERROR;
    }
    c->next = all_comms;
    all_comms = c;
    *comm = c;
    return NCCL_ABI_IN_PROGRESS;
}

NCCL_CALL int ncclCommGetAsyncError(struct ncclComm *c, int *state)
{
    progress_all();
    *state = c->error ? c->error : in_progress(c) ? NCCL_ABI_IN_PROGRESS : NCCL_ABI_SUCCESS;
    return NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclCommFinalize(struct ncclComm *c)
{
    struct frame bye = {.kind = KIND_BYE};
    progress(c);
    bool left = c->first || !c->ready;
    for (int p = 0; p < c->size && !left; p++)
        if (p != c->rank)
            left |= send(c->peer[p].out, &bye, sizeof(bye), MSG_NOSIGNAL) < 0 && !c->peer[p].left;
    return left ? NCCL_ABI_INVALID_USAGE : NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclCommDestroy(struct ncclComm *c)
{
    comm_free(c);
    return NCCL_ABI_SUCCESS;
}

NCCL_CALL int ncclCommAbort(struct ncclComm *c)
{
    comm_free(c);
    return NCCL_ABI_SUCCESS;
}

NCCL_CALL const char *ncclGetErrorString(int result)
{
    static const char *const text[] = {"no error",
                                       "unhandled cuda error",
                                       "unhandled system error",
                                       "internal error",
                                       "invalid argument",
                                       "invalid usage",
                                       "remote process exited or there was a network error",
                                       "NCCL operation in progress"};
    return result >= 0 && result < 8 ? text[result] : "unknown result code";
}

NCCL_CALL const char *ncclGetLastError(struct ncclComm *c)
{
    return c ? c->message : last_error;
}
