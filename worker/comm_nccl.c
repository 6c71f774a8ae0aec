/* comm_nccl: see comm_nccl.h for what it promises; worker/nccl_abi.h for the interface it calls.
 *
 * Everything NCCL is asked to do goes through one group: the sends kept so far and the call's own operations
 * between ncclGroupStart and ncclGroupEnd, then settle(), the one place that waits. It refuses to know CUDA:
 * memory, copies and sums are the device's, a native stream is a pointer that it passes on. */
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
#define SENDS_KEPT_MAX     64
#define RING_ALIGN         256 /* NCCL copies fastest between 16-byte aligned ends; cudaMalloc gives 256 */
#define POLLS_HOT          200 /* polls that only yield, before naps begin */
#define NAP_US_MAX         100

struct kept_send {
    const void *data; /* in the ring */
    size_t bytes;
    int peer;
};

struct comm_nccl {
    struct comm base;
    struct nccl_abi abi;
    struct ncclComm *comm; /* NULL before open and after abort */
    struct device *device;
    void *(*native_stream)(struct stream *);
    int (*stream_idle)(struct stream *, struct err *);
    int timeout_ms;
    bool failed;           /* final: only abort and close may follow */
    struct stream *stream; /* whose order ring and scratch are used in; NULL before the first call */
    uint8_t *ring;
    size_t ring_bytes, ring_used;
    struct kept_send kept[SENDS_KEPT_MAX];
    int kept_count;
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

static int fail(struct comm_nccl *c, const char *what, int rc, struct err *err)
{
    const char *more = c->comm ? c->abi.GetLastError(c->comm) : NULL;
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

/* Waits until NCCL has taken all that it was given: what a non-blocking communicator asks for before the next
 * call. */
static int settle(struct comm_nccl *c, const char *what, struct err *err)
{
    struct patience p = {.begin_ms = clock_now_ms()};
    for (;;) {
        int state = NCCL_ABI_SUCCESS;
        int rc = c->abi.CommGetAsyncError(c->comm, &state);
        if (rc != NCCL_ABI_SUCCESS)
            return fail(c, what, rc, err);
        if (state == NCCL_ABI_SUCCESS)
            return 0;
        if (state != NCCL_ABI_IN_PROGRESS)
            return fail(c, what, state, err);
        if (!patience_nap(c, &p))
            return timed_out(c, what, err);
    }
}

static int usable(const struct comm_nccl *c, struct err *err)
{
    if (!c->failed)
        return 0;
    return err_set(err, "NCCL rank %d of %d: an earlier call failed; the communicator cannot go on",
                   c->base.rank, c->base.size);
}

int comm_nccl_wait(struct comm *base, struct stream *s, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    struct patience p = {.begin_ms = clock_now_ms()};
    if (usable(c, err) < 0)
        return -1;
    while (c->stream_idle) {
        int idle = c->stream_idle(s, err), state = NCCL_ABI_SUCCESS;
        if (idle < 0) {
            c->failed = true;
            return err_prefix(err, "NCCL rank %d of %d", base->rank, base->size);
        }
        if (idle)
            break;
        int rc = c->abi.CommGetAsyncError(c->comm, &state);
        if (rc != NCCL_ABI_SUCCESS || !accepted(state))
            return fail(c, "wait for the stream", rc != NCCL_ABI_SUCCESS ? rc : state, err);
        if (!patience_nap(c, &p))
            return timed_out(c, "wait for the stream", err);
    }
    return stream_sync(s, err);
}

/* ---- groups ----------------------------------------------------------------------------------------------
 */

static void *native(const struct comm_nccl *c, struct stream *s)
{
    return c->native_stream ? c->native_stream(s) : NULL;
}

/* Opens a group with the kept sends in it. */
static int group_begin(struct comm_nccl *c, struct err *err)
{
    int rc = c->abi.GroupStart();
    if (rc != NCCL_ABI_SUCCESS)
        return fail(c, "ncclGroupStart", rc, err);
    for (int i = 0; i < c->kept_count; i++) {
        const struct kept_send *k = &c->kept[i];
        rc = c->abi.Send(k->data, k->bytes, NCCL_ABI_INT8, k->peer, c->comm, native(c, c->stream));
        if (!accepted(rc)) {
            c->abi.GroupEnd();
            return fail(c, "ncclSend of a kept send", rc, err);
        }
    }
    c->kept_count = 0;
    c->ring_used = 0; /* the next copy into the ring comes after these sends in the stream's order */
    return 0;
}

/* Closes the group; `rc` is what the group's own operations returned, the first failure. */
static int group_end(struct comm_nccl *c, const char *what, int rc, struct err *err)
{
    int ended = c->abi.GroupEnd();
    if (!accepted(rc) || !accepted(ended))
        return fail(c, what, accepted(rc) ? ended : rc, err);
    return settle(c, what, err);
}

static int flush(struct comm_nccl *c, struct err *err)
{
    if (c->kept_count == 0)
        return 0;
    if (group_begin(c, err) < 0)
        return -1;
    return group_end(c, "send", NCCL_ABI_SUCCESS, err);
}

/* Ring and scratch are safe in the order of one stream: a change of streams waits for the earlier one. */
static int begin(struct comm_nccl *c, struct stream *s, struct err *err)
{
    if (usable(c, err) < 0)
        return -1;
    if (c->stream && c->stream != s && (flush(c, err) < 0 || comm_nccl_wait(&c->base, c->stream, err) < 0))
        return -1;
    c->stream = s;
    return 0;
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

static int nccl_send(struct comm *base, struct stream *s, const void *data, size_t bytes, int peer,
                     struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    char what[64];
    ASSERT(peer >= 0 && peer < base->size && peer != base->rank);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if ((c->kept_count == SENDS_KEPT_MAX || bytes > c->ring_bytes - c->ring_used) && flush(c, err) < 0)
        return -1;
    snprintf(what, sizeof(what), "send of %zu bytes to rank %d", bytes, peer);
    if (bytes > c->ring_bytes) {
        if (group_begin(c, err) < 0)
            return -1;
        int rc = c->abi.Send(data, bytes, NCCL_ABI_INT8, peer, c->comm, native(c, s));
        return group_end(c, what, rc, err);
    }
    uint8_t *slot = c->ring + c->ring_used;
    uint64_t used = round_up_u64(c->ring_used + bytes, RING_ALIGN);
    stream_copy(s, slot, data, bytes);
    c->kept[c->kept_count++] = (struct kept_send){.data = slot, .bytes = bytes, .peer = peer};
    c->ring_used = used < c->ring_bytes ? used : c->ring_bytes;
    return 0;
}

static int nccl_recv(struct comm *base, struct stream *s, void *data, size_t bytes, int peer, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    char what[64];
    ASSERT(peer >= 0 && peer < base->size && peer != base->rank);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if (group_begin(c, err) < 0)
        return -1;
    snprintf(what, sizeof(what), "receive of %zu bytes from rank %d", bytes, peer);
    return group_end(c, what, c->abi.Recv(data, bytes, NCCL_ABI_INT8, peer, c->comm, native(c, s)), err);
}

/* ---- collectives -----------------------------------------------------------------------------------------
 */

static int nccl_allgather(struct comm *base, struct stream *s, const void *in, void *out,
                          size_t bytes_per_rank, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes_per_rank == 0)
        return 0;
    if (group_begin(c, err) < 0)
        return -1;
    int rc = c->abi.AllGather(in, out, bytes_per_rank, NCCL_ABI_INT8, c->comm, native(c, s));
    return group_end(c, "allgather", rc, err);
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
    if (group_begin(c, err) < 0)
        return -1;
    for (int peer = 0; peer < base->size && accepted(rc); peer++) {
        size_t at = (size_t)peer * bytes;
        if (peer == base->rank)
            continue;
        rc = c->abi.Send(from + at, bytes, NCCL_ABI_INT8, peer, c->comm, native(c, s));
        if (accepted(rc))
            rc = c->abi.Recv(to + at, bytes, NCCL_ABI_INT8, peer, c->comm, native(c, s));
    }
    if (group_end(c, "reduce_scatter", rc, err) < 0)
        return -1;
    sum_scratch(c, out, count_per_rank);
    return 0;
}

static int nccl_broadcast(struct comm *base, struct stream *s, void *data, size_t bytes, int root,
                          struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    ASSERT(root >= 0 && root < base->size);
    if (begin(c, s, err) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    if (group_begin(c, err) < 0)
        return -1;
    int rc = c->abi.Broadcast(data, data, bytes, NCCL_ABI_INT8, root, c->comm, native(c, s));
    return group_end(c, "broadcast", rc, err);
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

static int nccl_progress(struct comm *base, struct err *err)
{
    struct comm_nccl *c = nccl_of(base);
    int state = NCCL_ABI_SUCCESS;
    if (usable(c, err) < 0 || flush(c, err) < 0)
        return -1;
    int rc = c->abi.CommGetAsyncError(c->comm, &state);
    if (rc != NCCL_ABI_SUCCESS || !accepted(state))
        return fail(c, "asynchronous error", rc != NCCL_ABI_SUCCESS ? rc : state, err);
    return 0;
}

static void nccl_abort(struct comm *base)
{
    struct comm_nccl *c = nccl_of(base);
    c->failed = true;
    if (c->comm)
        c->abi.CommAbort(c->comm); /* frees it whatever it returns */
    c->comm = NULL;
}

static void nccl_close(struct comm *base)
{
    struct comm_nccl *c = nccl_of(base);
    struct err ignored; /* a close that fails ends as an abort: nothing is left that a caller could do */
    bool clean = c->comm && !c->failed && flush(c, &ignored) == 0;
    if (clean && c->stream)
        clean = comm_nccl_wait(base, c->stream, &ignored) == 0;
    if (clean)
        clean = accepted(c->abi.CommFinalize(c->comm)) && settle(c, "finalize", &ignored) == 0 &&
                c->abi.CommDestroy(c->comm) == NCCL_ABI_SUCCESS;
    if (clean)
        c->comm = NULL;
    nccl_abort(base);
    device_free(c->device, c->ring);
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

static int communicator_make(struct comm_nccl *c, const uint8_t *id, struct err *err)
{
    struct nccl_abi_config config = config_non_blocking();
    struct nccl_abi_id unique;
    memcpy(unique.internal, id, sizeof(unique.internal));
    int rc = c->abi.CommInitRankConfig(&c->comm, c->base.size, unique, c->base.rank, &config);
    if (!accepted(rc))
        return fail(c, "ncclCommInitRankConfig", rc, err);
    return settle(c, "making the communicator", err);
}

int comm_nccl_open(struct comm **out, const struct comm_nccl_options *options, struct err *err)
{
    ASSERT(options->size >= 1 && options->rank >= 0 && options->rank < options->size);
    struct comm_nccl *c = xcalloc(1, sizeof(*c));
    c->base = (struct comm){.ops = &nccl_ops, .name = "nccl", .rank = options->rank, .size = options->size};
    c->device = options->device;
    c->native_stream = options->native_stream;
    c->stream_idle = options->stream_idle;
    c->timeout_ms = options->timeout_ms;
    c->ring_bytes = options->send_bytes ? options->send_bytes : SEND_BYTES_DEFAULT;
    if (abi_load(&c->abi, library_or_default(options->library), err) < 0)
        goto fail;
    c->ring = device_alloc(c->device, c->ring_bytes, err);
    c->barrier_bytes = c->ring ? device_alloc(c->device, (size_t)options->size + 1, err) : NULL;
    if (!c->barrier_bytes || communicator_make(c, options->id, err) < 0)
        goto fail;
    *out = &c->base;
    return 0;
fail:
    c->failed = true;
    nccl_close(&c->base);
    return -1;
}
