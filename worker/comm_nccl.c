/* comm_nccl: see comm_nccl.h for what it promises; worker/nccl_abi.h for the interface it calls.
 *
 * Three communicators of the same ranks, since NCCL runs the operations of one communicator one after the
 * other, and a send that waits for its peer must hold up nothing else:
 *
 *   LANE_GROUP   collectives                       on the caller's stream
 *   LANE_UP      messages to higher ranks          sends on a stream of their own, receives on the caller's
 *   LANE_DOWN    messages to lower ranks           likewise
 *
 *   caller's stream:  ... compute, copy into the ring ------ compute ------------ receive ...
 *                                        |  stream_wait
 *   stream of the lane:                  '-> send (waits for the peer)
 *
 * It refuses to know CUDA: memory, copies and sums are the device's, a native stream is a pointer passed on.
 */
#include "worker/comm_nccl.h"

#include "common/clock.h"
#include "kernels/kernels.h"
#include "worker/nccl_abi.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SEND_BYTES_DEFAULT (16u << 20)
#define RING_ALIGN         256 /* NCCL copies fastest between 16-byte aligned ends; cudaMalloc gives 256 */
#define POLLS_HOT          200 /* polls that only yield, before naps begin */
#define NAP_US_MAX         100

enum lane_name { LANE_GROUP, LANE_UP, LANE_DOWN, LANE_COUNT };

struct lane {
    struct ncclComm *comm; /* NULL before open and after abort */
    /* UP and DOWN: where sends wait for their peers, and the copies they read. */
    struct stream *stream;
    uint8_t *ring;
    size_t ring_used;
};

struct comm_nccl {
    struct comm base;
    struct nccl_abi abi;
    struct lane lane[LANE_COUNT];
    struct device *device;
    void *(*native_stream)(struct stream *);
    int (*idle)(struct stream *, struct err *);
    int timeout_ms;
    bool failed;           /* final: only abort and close may follow */
    struct stream *stream; /* whose order scratch is used in; NULL before the first call */
    size_t ring_bytes;
    void *scratch; /* [size][count] of the sum under way */
    size_t scratch_bytes;
    uint8_t *barrier_bytes; /* [size + 1]: gathered, own */
};

static struct comm_nccl *nccl_of(struct comm *c)
{
    return (struct comm_nccl *)c;
}

/* ---- the library -----------------------------------------------------------------------------------------
 */

#define ABI_SYMBOL(name)                              \
    {                                                 \
        "nccl" #name, offsetof(struct nccl_abi, name) \
    }
static const struct {
    const char *name;
    size_t offset;
} abi_symbols[] = {
    ABI_SYMBOL(GetVersion),
    ABI_SYMBOL(GetUniqueId),
    ABI_SYMBOL(CommInitRankConfig),
    ABI_SYMBOL(CommFinalize),
    ABI_SYMBOL(CommDestroy),
    ABI_SYMBOL(CommAbort),
    ABI_SYMBOL(CommGetAsyncError),
    ABI_SYMBOL(GetErrorString),
    ABI_SYMBOL(GetLastError),
    ABI_SYMBOL(GroupStart),
    ABI_SYMBOL(GroupEnd),
    ABI_SYMBOL(Send),
    ABI_SYMBOL(Recv),
    ABI_SYMBOL(AllGather),
    ABI_SYMBOL(Broadcast),
};

/* Fills *abi. The library is never closed: NCCL's threads may outlive its communicators. */
static int abi_load(struct nccl_abi *abi, const char *library, struct err *err)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return err_set(err, "NCCL: %s", dlerror());
    char missing[300] = "";
    for (size_t i = 0; i < ARRAY_LEN(abi_symbols); i++) {
        void *symbol = dlsym(handle, abi_symbols[i].name);
        memcpy((char *)abi + abi_symbols[i].offset, &symbol, sizeof(symbol));
        size_t used = strlen(missing);
        if (!symbol)
            snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? ", " : "", abi_symbols[i].name);
    }
    if (missing[0]) {
        dlclose(handle);
        return err_set(err, "NCCL: %s lacks %s", library, missing);
    }
    int version = 0, rc = abi->GetVersion(&version);
    if (rc != NCCL_ABI_SUCCESS)
        return err_set(err, "NCCL: %s: ncclGetVersion: %s (%d)", library, abi->GetErrorString(rc), rc);
    if (version < NCCL_ABI_VERSION_LEAST)
        return err_set(err, "NCCL: %s is version %d, expected %d or newer", library, version,
                       NCCL_ABI_VERSION_LEAST);
    return 0;
}

static const char *library_or_default(const char *library)
{
    return library ? library : "libnccl.so.2";
}

int comm_nccl_unique_id(const char *library, uint8_t id[COMM_NCCL_ID_BYTES], struct err *err)
{
    struct nccl_abi abi;
    struct nccl_abi_id made;
    if (abi_load(&abi, library_or_default(library), err) < 0)
        return -1;
    int rc = abi.GetUniqueId(&made);
    if (rc != NCCL_ABI_SUCCESS)
        return err_set(err, "NCCL: ncclGetUniqueId: %s (%d): %s", abi.GetErrorString(rc), rc,
                       abi.GetLastError(NULL));
    memcpy(id, made.internal, COMM_NCCL_ID_BYTES);
    return 0;
}

/* ---- results and waits -----------------------------------------------------------------------------------
 */

static int fail(struct comm_nccl *c, const struct lane *lane, const char *what, int rc, struct err *err)
{
    const char *more = c->abi.GetLastError(lane->comm); /* NULL: of no communicator */
    c->failed = true;
    return err_set(err, "NCCL rank %d of %d: %s: %s (%d)%s%s", c->base.rank, c->base.size, what,
                   c->abi.GetErrorString(rc), rc, more && more[0] ? ": " : "", more ? more : "");
}

static bool accepted(int rc)
{
    return rc == NCCL_ABI_SUCCESS || rc == NCCL_ABI_IN_PROGRESS;
}

/* One wait: hot at first, then naps that grow, so that ranks that share cores leave them to each other. */
struct patience {
    uint64_t begin_ms;
    unsigned polls;
};

/* False when the time is up. */
static bool patience_nap(const struct comm_nccl *c, struct patience *p)
{
    if (p->polls++ < POLLS_HOT) {
        sched_yield();
    } else {
        unsigned us = p->polls - POLLS_HOT < NAP_US_MAX ? p->polls - POLLS_HOT : NAP_US_MAX;
        nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
    }
    return !c->timeout_ms || clock_now_ms() - p->begin_ms < (uint64_t)c->timeout_ms;
}

static int timed_out(struct comm_nccl *c, const char *what, struct err *err)
{
    c->failed = true;
    return err_set(err, "NCCL rank %d of %d: %s: not done within %d ms; a peer is gone or stuck",
                   c->base.rank, c->base.size, what, c->timeout_ms);
}

static int usable(const struct comm_nccl *c, struct err *err)
{
    if (!c->failed)
        return 0;
    return err_set(err, "NCCL rank %d of %d: an earlier call failed; the communicator cannot go on",
                   c->base.rank, c->base.size);
}

/* The state of a lane: 1 nothing is in progress, 0 something is, -1 a fault. */
static int lane_state(struct comm_nccl *c, const struct lane *lane, const char *what, struct err *err)
{
    int state = NCCL_ABI_SUCCESS;
    int rc = c->abi.CommGetAsyncError(lane->comm, &state);
    if (rc != NCCL_ABI_SUCCESS || !accepted(state))
        return fail(c, lane, what, rc != NCCL_ABI_SUCCESS ? rc : state, err);
    return state == NCCL_ABI_SUCCESS;
}

static int lanes_check(struct comm_nccl *c, const char *what, struct err *err)
{
    for (int i = 0; i < LANE_COUNT; i++)
        if (c->lane[i].comm && lane_state(c, &c->lane[i], what, err) < 0)
            return -1;
    return 0;
}

/* Waits until NCCL has taken all that the lane was given: a non-blocking communicator asks for this before
 * its next call. The other lanes are looked at too: a peer's death may show there first. */
static int settle(struct comm_nccl *c, const struct lane *lane, const char *what, struct err *err)
{
    struct patience p = {.begin_ms = clock_now_ms()};
    for (;;) {
        int settled = lane_state(c, lane, what, err);
        if (settled)
            return settled < 0 ? -1 : 0;
        if (lanes_check(c, what, err) < 0)
            return -1;
        if (!patience_nap(c, &p))
            return timed_out(c, what, err);
    }
}

int comm_nccl_wait(struct comm *base, struct stream *s, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    struct patience p = {.begin_ms = clock_now_ms()};
    if (usable(c, err) < 0)
        return -1;
    for (;;) {
        int idle = c->idle(s, err);
        if (idle < 0) {
            c->failed = true;
            return err_prefix(err, "NCCL rank %d of %d", base->rank, base->size);
        }
        if (idle)
            return stream_sync(s, err);
        if (lanes_check(c, "waiting for the stream", err) < 0)
            return -1;
        if (!patience_nap(c, &p))
            return timed_out(c, "waiting for the stream", err);
    }
}

static void *native(const struct comm_nccl *c, struct stream *s)
{
    return c->native_stream(s);
}

/* Begins a call: scratch is safe in the order of one stream, so a change of streams waits for the earlier. */
static int begin(struct comm_nccl *c, struct stream *s, struct err *err)
{
    if (usable(c, err) < 0)
        return -1;
    if (c->stream && c->stream != s && comm_nccl_wait(&c->base, c->stream, err) < 0)
        return -1;
    c->stream = s;
    return 0;
}

/* Ends a call whose operations returned `rc` (the first failure) and whose data the caller's stream needs. */
static int finish(struct comm_nccl *c, const struct lane *lane, const char *what, int rc, struct err *err)
{
    return accepted(rc) ? settle(c, lane, what, err) : fail(c, lane, what, rc, err);
}

/* Grows with the largest step, then stays. */
static int need_scratch(struct comm_nccl *c, size_t parts, size_t bytes_each, struct err *err)
{
    uint64_t bytes;
    if (!checked_mul_u64(parts, bytes_each, &bytes))
        return err_set(err, "NCCL: %zu parts of %zu bytes do not fit", parts, bytes_each);
    if (bytes <= c->scratch_bytes)
        return 0;
    if (comm_nccl_wait(&c->base, c->stream, err) < 0)
        return -1;
    device_free(c->device, c->scratch);
    c->scratch_bytes = 0;
    c->scratch = device_alloc(c->device, bytes, err);
    if (!c->scratch)
        return -1;
    c->scratch_bytes = bytes;
    return 0;
}

/* out = the sum of scratch over ranks, in rank order. */
static void sum_scratch(struct comm_nccl *c, float *out, size_t count)
{
    struct tensor to = tensor_1d(c->device, DTYPE_F32, out, (int64_t)count);
    struct tensor parts = tensor_2d(c->device, DTYPE_F32, c->scratch, (int64_t)c->base.size, (int64_t)count);
    kernel_sum_ranks(c->stream, &to, &parts);
}

/* ---- point to point --------------------------------------------------------------------------------------
 */

/* Copies the message into the lane's ring in the caller's order. A full ring begins anew once its sends have
 * gone: the bound on what a rank may be ahead of its peers. */
static int ring_put(struct comm_nccl *c, struct lane *lane, struct stream *s, const void *data, size_t bytes,
                    const void **slot, struct err *err)
{
    if (bytes > c->ring_bytes - lane->ring_used) {
        if (comm_nccl_wait(&c->base, lane->stream, err) < 0)
            return -1;
        lane->ring_used = 0;
    }
    uint64_t used = round_up_u64(lane->ring_used + bytes, RING_ALIGN);
    stream_copy(s, lane->ring + lane->ring_used, data, bytes);
    *slot = lane->ring + lane->ring_used;
    lane->ring_used = used < c->ring_bytes ? used : c->ring_bytes;
    return 0;
}

static int nccl_send(struct comm *base, struct stream *s, const void *data, size_t bytes, int peer,
                     struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    struct lane *lane = &c->lane[peer > base->rank ? LANE_UP : LANE_DOWN];
    bool kept = bytes <= c->ring_bytes;
    char what[64];
    ASSERT(peer >= 0 && peer < base->size && peer != base->rank);
    snprintf(what, sizeof(what), "send of %zu bytes to rank %d", bytes, peer);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if ((kept && ring_put(c, lane, s, data, bytes, &data, err) < 0) || settle(c, lane, what, err) < 0)
        return -1;
    stream_wait(lane->stream, s);
    int rc = c->abi.Send(data, bytes, NCCL_ABI_INT8, peer, lane->comm, native(c, lane->stream));
    if (!accepted(rc))
        return fail(c, lane, what, rc, err);
    return kept ? 0 : comm_nccl_wait(base, lane->stream, err);
}

static int nccl_recv(struct comm *base, struct stream *s, void *data, size_t bytes, int peer, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    struct lane *lane = &c->lane[peer < base->rank ? LANE_UP : LANE_DOWN];
    char what[64];
    ASSERT(peer >= 0 && peer < base->size && peer != base->rank);
    snprintf(what, sizeof(what), "receive of %zu bytes from rank %d", bytes, peer);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if (settle(c, lane, what, err) < 0)
        return -1;
    int rc = c->abi.Recv(data, bytes, NCCL_ABI_INT8, peer, lane->comm, native(c, s));
    return finish(c, lane, what, rc, err);
}

/* ---- collectives -----------------------------------------------------------------------------------------
 */

static int nccl_allgather(struct comm *base, struct stream *s, const void *in, void *out,
                          size_t bytes_per_rank, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    const struct lane *lane = &c->lane[LANE_GROUP];
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes_per_rank == 0)
        return 0;
    int rc = c->abi.AllGather(in, out, bytes_per_rank, NCCL_ABI_INT8, lane->comm, native(c, s));
    return finish(c, lane, "allgather", rc, err);
}

static int nccl_allreduce(struct comm *base, struct stream *s, float *data, size_t count, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    if (begin(c, s, err) < 0)
        return -1;
    if (count == 0)
        return 0;
    if (need_scratch(c, (size_t)base->size, count * sizeof(float), err) < 0)
        return -1;
    if (nccl_allgather(base, s, data, c->scratch, count * sizeof(float), err) < 0)
        return err_prefix(err, "allreduce");
    sum_scratch(c, data, count);
    return 0;
}

/* Each rank gets from every other the part that it sums:
 *
 *     rank 0:  a0 a1 a2         scratch of rank 1:  a1   (received from 0)
 *     rank 1:  b0 b1 b2                             b1   (its own, copied)
 *     rank 2:  c0 c1 c2                             c1   (received from 2)      out = (a1 + b1) + c1 */
static int nccl_reduce_scatter(struct comm *base, struct stream *s, const float *in, float *out,
                               size_t count_per_rank, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    const struct lane *lane = &c->lane[LANE_GROUP];
    size_t bytes = count_per_rank * sizeof(float);
    int rc = NCCL_ABI_SUCCESS;
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if (need_scratch(c, (size_t)base->size, bytes, err) < 0)
        return -1;
    const uint8_t *from = (const uint8_t *)in;
    uint8_t *to = c->scratch;
    stream_copy(s, to + (size_t)base->rank * bytes, from + (size_t)base->rank * bytes, bytes);
    rc = c->abi.GroupStart();
    if (rc != NCCL_ABI_SUCCESS)
        return fail(c, lane, "reduce_scatter", rc, err);
    for (int peer = 0; peer < base->size && accepted(rc); peer++) {
        size_t at = (size_t)peer * bytes;
        if (peer == base->rank)
            continue;
        rc = c->abi.Send(from + at, bytes, NCCL_ABI_INT8, peer, lane->comm, native(c, s));
        if (accepted(rc))
            rc = c->abi.Recv(to + at, bytes, NCCL_ABI_INT8, peer, lane->comm, native(c, s));
    }
    int ended = c->abi.GroupEnd();
    if (finish(c, lane, "reduce_scatter", accepted(rc) ? ended : rc, err) < 0)
        return -1;
    sum_scratch(c, out, count_per_rank);
    return 0;
}

static int nccl_broadcast(struct comm *base, struct stream *s, void *data, size_t bytes, int root,
                          struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    const struct lane *lane = &c->lane[LANE_GROUP];
    ASSERT(root >= 0 && root < base->size);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    int rc = c->abi.Broadcast(data, data, bytes, NCCL_ABI_INT8, root, lane->comm, native(c, s));
    return finish(c, lane, "broadcast", rc, err);
}

/* The one collective that holds the host: it returns when every rank has entered. */
static int nccl_barrier(struct comm *base, struct stream *s, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    if (nccl_allgather(base, s, c->barrier_bytes + base->size, c->barrier_bytes, 1, err) < 0 ||
        comm_nccl_wait(base, s, err) < 0)
        return err_prefix(err, "barrier");
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------
 */

/* The library's own threads move what is under way: there is only a fault to look for. */
static int nccl_progress(struct comm *base, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    return usable(c, err) < 0 ? -1 : lanes_check(c, "asynchronous error", err);
}

static void nccl_abort(struct comm *base)
{
    struct comm_nccl *c = nccl_of(base);
    c->failed = true;
    for (int i = 0; i < LANE_COUNT; i++) {
        if (c->lane[i].comm)
            c->abi.CommAbort(c->lane[i].comm); /* frees it whatever it returns */
        c->lane[i].comm = NULL;
    }
}

static int lane_finish(struct comm_nccl *c, struct lane *lane, struct err *err)
{
    if (!lane->comm)
        return 0;
    if (lane->stream && comm_nccl_wait(&c->base, lane->stream, err) < 0)
        return -1;
    int rc = c->abi.CommFinalize(lane->comm);
    if (!accepted(rc) || settle(c, lane, "finalize", err) < 0)
        return -1;
    rc = c->abi.CommDestroy(lane->comm);
    lane->comm = NULL;
    return rc == NCCL_ABI_SUCCESS ? 0 : -1;
}

static void nccl_close(struct comm *base)
{
    struct comm_nccl *c = nccl_of(base);
    struct err ignored; /* a close that fails ends as an abort: nothing is left that a caller could do */
    bool clean = !c->failed && (!c->stream || comm_nccl_wait(base, c->stream, &ignored) == 0);
    for (int i = LANE_COUNT - 1; i >= 0 && clean; i--)
        clean = lane_finish(c, &c->lane[i], &ignored) == 0;
    nccl_abort(base);
    for (int i = 0; i < LANE_COUNT; i++) {
        stream_close(&c->lane[i].stream);
        device_free(c->device, c->lane[i].ring);
    }
    device_free(c->device, c->scratch);
    device_free(c->device, c->barrier_bytes);
    free(c);
}

static const struct comm_ops nccl_ops = {
    .send = nccl_send,
    .recv = nccl_recv,
    .allreduce = nccl_allreduce,
    .reduce_scatter = nccl_reduce_scatter,
    .allgather = nccl_allgather,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .progress = nccl_progress,
    .abort = nccl_abort,
    .close = nccl_close,
};

static struct nccl_abi_config config_non_blocking(void)
{
    return (struct nccl_abi_config){
        .size = sizeof(struct nccl_abi_config),
        .magic = NCCL_ABI_MAGIC,
        .version = NCCL_ABI_VERSION,
        .blocking = 0,
        .cga_cluster_size = NCCL_ABI_UNSET,
        .min_ctas = NCCL_ABI_UNSET,
        .max_ctas = NCCL_ABI_UNSET,
        .split_share = NCCL_ABI_UNSET,
        .traffic_class = NCCL_ABI_UNSET,
        .collnet_enable = NCCL_ABI_UNSET,
        .cta_policy = NCCL_ABI_UNSET,
        .shrink_share = NCCL_ABI_UNSET,
        .nvls_ctas = NCCL_ABI_UNSET,
        .channels_per_net_peer = NCCL_ABI_UNSET,
        .nvlink_centric_sched = NCCL_ABI_UNSET,
    };
}

static int communicator_make(struct comm_nccl *c, struct lane *lane, const uint8_t *id, struct err *err)
{
    struct nccl_abi_config config = config_non_blocking();
    struct nccl_abi_id unique;
    memcpy(unique.internal, id, sizeof(unique.internal));
    int rc = c->abi.CommInitRankConfig(&lane->comm, c->base.size, unique, c->base.rank, &config);
    return finish(c, lane, "making the communicator", rc, err);
}

/* Rank 0 makes the ids of the lanes and tells them over the first communicator. */
static int lane_ids(struct comm_nccl *c, const char *library, uint8_t *ids, size_t bytes, struct err *err)
{
    struct stream *s = c->lane[LANE_UP].stream;
    void *memory = device_alloc(c->device, bytes, err);
    int rc = memory ? 0 : -1;
    for (size_t at = 0; at < bytes && rc == 0 && c->base.rank == 0; at += COMM_NCCL_ID_BYTES)
        rc = comm_nccl_unique_id(library, ids + at, err);
    if (rc == 0) {
        stream_upload(s, memory, ids, bytes);
        rc = nccl_broadcast(&c->base, s, memory, bytes, 0, err);
    }
    if (rc == 0) {
        stream_download(s, ids, memory, bytes);
        rc = comm_nccl_wait(&c->base, s, err);
    }
    c->stream = NULL; /* the caller's stream is yet to come */
    device_free(c->device, memory);
    return rc;
}

static int lanes_open(struct comm_nccl *c, const struct comm_nccl_options *options, struct err *err)
{
    uint8_t ids[2][COMM_NCCL_ID_BYTES] = {{0}};
    for (int i = LANE_UP; i < LANE_COUNT; i++) {
        struct lane *lane = &c->lane[i];
        lane->ring = device_alloc(c->device, c->ring_bytes, err);
        if (!lane->ring || stream_open(&lane->stream, c->device, err) < 0)
            return -1;
    }
    if (communicator_make(c, &c->lane[LANE_GROUP], options->id, err) < 0 ||
        lane_ids(c, library_or_default(options->library), ids[0], sizeof(ids), err) < 0 ||
        communicator_make(c, &c->lane[LANE_UP], ids[0], err) < 0 ||
        communicator_make(c, &c->lane[LANE_DOWN], ids[1], err) < 0)
        return -1;
    return 0;
}

int comm_nccl_open(struct comm **out, const struct comm_nccl_options *options, struct err *err)
{
    ASSERT(options->size >= 1 && options->rank >= 0 && options->rank < options->size);
    struct comm_nccl *c = xcalloc(1, sizeof(*c));
    c->base = (struct comm){.ops = &nccl_ops, .name = "nccl", .rank = options->rank, .size = options->size};
    c->device = options->device;
    c->native_stream = options->native_stream ? options->native_stream : stream_native;
    c->idle = options->stream_idle ? options->stream_idle : stream_idle;
    c->timeout_ms = options->timeout_ms;
    c->ring_bytes = options->send_bytes ? options->send_bytes : SEND_BYTES_DEFAULT;
    if (abi_load(&c->abi, library_or_default(options->library), err) < 0)
        goto fail;
    c->barrier_bytes = device_alloc(c->device, (size_t)options->size + 1, err);
    if (!c->barrier_bytes || lanes_open(c, options, err) < 0)
        goto fail;
    *out = &c->base;
    return 0;
fail:
    c->failed = true;
    nccl_close(&c->base);
    return -1;
}
