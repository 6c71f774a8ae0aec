#include "worker/comm_shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "worker/shm_ring.h"

#define PART_BYTES   (1u << 18) /* of a rank in one round: the parts of a few ranks stay in the caches */
#define PENDING_MOST 16         /* sends kept for one peer before a further one waits */
#define PENDING_US   100        /* how long a wait may sleep while sends are kept */
#define MAX_RANKS    256

/* The shared memory:  header | counters [ranks] | two areas [ranks * PART_BYTES] | rings [ranks * ranks] */
struct header {
    uint8_t token[16]; /* shows that all ranks mapped the same */
    _Atomic uint32_t aborted;
    uint32_t ranks;
    _Alignas(64) uint8_t shared[COMM_SHARED_BYTES];
};

/* A message, or what is left of it, that its ring had no room for. */
struct pending {
    struct pending *next;
    size_t bytes, done;
    uint8_t data[];
};

struct peer {
    struct shm_ring *out, *in;
    bool out_ready; /* the memory of the ring exists */
    struct pending *first, *last;
    int pending_count;
};

struct comm_shm {
    struct comm comm;
    struct device *device; /* borrowed; NULL = no sums */
    int fd;
    uint8_t *memory;
    size_t bytes;
    struct header *header;
    struct shm_word *counter; /* [ranks] rounds that a rank has written */
    uint8_t *area[2];
    struct peer *peer; /* [ranks] */
    uint32_t round;
    int pending; /* over all peers */
};

/* ---- layout */

static size_t counters_offset(void)
{
    return round_up_u64(sizeof(struct header), 4096);
}

static size_t areas_offset(int ranks)
{
    return counters_offset() + round_up_u64((uint64_t)ranks * sizeof(struct shm_word), 4096);
}

static size_t rings_offset(int ranks)
{
    return areas_offset(ranks) + 2 * (size_t)ranks * PART_BYTES;
}

static size_t ring_stride(void)
{
    return round_up_u64(sizeof(struct shm_ring), 4096);
}

static size_t segment_bytes(int ranks)
{
    return rings_offset(ranks) + (size_t)ranks * (size_t)ranks * ring_stride();
}

static size_t ring_offset(const struct comm *c, int from, int to)
{
    return rings_offset(c->size) + ((size_t)from * (size_t)c->size + (size_t)to) * ring_stride();
}

/* ---- waiting */

static int gone(const struct comm_shm *c, struct err *err)
{
    return atomic_load_explicit(&c->header->aborted, memory_order_relaxed)
               ? err_set(err, "shared memory: another rank gave up")
               : 0;
}

/* Moves what is kept for one peer. */
static void push_pending(struct comm_shm *c, struct peer *p)
{
    while (p->first) {
        struct pending *m = p->first;
        m->done += shm_ring_write(p->out, m->data + m->done, m->bytes - m->done);
        if (m->done < m->bytes)
            return;
        p->first = m->next;
        if (!p->first)
            p->last = NULL;
        free(m);
        p->pending_count--;
        c->pending--;
    }
}

static void push_all(struct comm_shm *c)
{
    for (int r = 0; r < c->comm.size && c->pending; r++)
        push_pending(c, &c->peer[r]);
}

/* How long a wait may sleep before it must look after the sends that are kept. */
static uint64_t patience_us(const struct comm_shm *c)
{
    return c->pending ? PENDING_US : 0;
}

/* ---- rounds */

/* This round's area; every rank's part in it has the same place on all ranks. */
static uint8_t *round_area(const struct comm_shm *c)
{
    return c->area[c->round & 1];
}

/* Says that this rank's part of the round is written, and waits for everybody's. */
static int finish_round(struct comm_shm *c, struct err *err)
{
    c->round++;
    shm_word_set(&c->counter[c->comm.rank], c->round);
    for (int r = 0; r < c->comm.size; r++)
        while (!shm_word_wait(&c->counter[r], c->round, patience_us(c))) {
            if (gone(c, err))
                return -1;
            push_all(c);
        }
    return 0;
}

static int settle(struct stream *s, struct err *err)
{
    return s ? stream_sync(s, err) : 0;
}

static void sum_parts(struct comm_shm *c, struct stream *s, float *out, void *parts, size_t count)
{
    struct tensor from = tensor_2d(c->device, DTYPE_F32, parts, c->comm.size, (int64_t)count);
    struct tensor to = tensor_1d(c->device, DTYPE_F32, out, (int64_t)count);
    kernel_sum_ranks(s, &to, &from);
}

static int allreduce(struct comm *comm, struct stream *s, float *data, size_t count, struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    size_t most = PART_BYTES / sizeof(float);
    if (comm->size == 1 || count == 0)
        return 0;
    ASSERT(c->device);
    if (settle(s, err))
        return -1;
    for (size_t at = 0; at < count; at += most) {
        size_t n = count - at < most ? count - at : most;
        float *parts = (float *)(void *)round_area(c);
        memcpy(parts + (size_t)comm->rank * n, data + at, n * sizeof(float));
        if (finish_round(c, err))
            return -1;
        sum_parts(c, s, data + at, parts, n);
    }
    return 0;
}

/* An area holds, for each receiver, the parts of all senders one after the other: [to][from][n]. */
static int reduce_scatter(struct comm *comm, struct stream *s, const float *in, float *out, size_t count,
                          struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    size_t ranks = (size_t)comm->size, most = PART_BYTES / sizeof(float) / ranks;
    ASSERT(c->device);
    if (settle(s, err))
        return -1;
    for (size_t at = 0; at < count; at += most) {
        size_t n = count - at < most ? count - at : most;
        float *parts = (float *)(void *)round_area(c);
        for (size_t to = 0; to < ranks; to++)
            memcpy(parts + (to * ranks + (size_t)comm->rank) * n, in + to * count + at, n * sizeof(float));
        if (finish_round(c, err))
            return -1;
        sum_parts(c, s, out + at, parts + (size_t)comm->rank * ranks * n, n);
    }
    return 0;
}

static int allgather(struct comm *comm, struct stream *s, const void *in, void *out, size_t bytes,
                     struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    if (settle(s, err))
        return -1;
    for (size_t at = 0; at < bytes; at += PART_BYTES) {
        size_t n = bytes - at < PART_BYTES ? bytes - at : PART_BYTES;
        uint8_t *area = round_area(c);
        memcpy(area + (size_t)comm->rank * n, (const uint8_t *)in + at, n);
        if (finish_round(c, err))
            return -1;
        for (int r = 0; r < comm->size; r++)
            memcpy((uint8_t *)out + (size_t)r * bytes + at, area + (size_t)r * n, n);
    }
    return 0;
}

static int broadcast(struct comm *comm, struct stream *s, void *data, size_t bytes, int root, struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    if (settle(s, err))
        return -1;
    for (size_t at = 0; at < bytes; at += PART_BYTES) {
        size_t n = bytes - at < PART_BYTES ? bytes - at : PART_BYTES;
        uint8_t *area = round_area(c);
        if (comm->rank == root)
            memcpy(area, (uint8_t *)data + at, n);
        if (finish_round(c, err))
            return -1;
        if (comm->rank != root)
            memcpy((uint8_t *)data + at, area, n);
    }
    return 0;
}

static int barrier(struct comm *comm, struct stream *s, struct err *err)
{
    return settle(s, err) ? -1 : finish_round((struct comm_shm *)comm, err);
}

/* ---- sends: a message is its length, 8 bytes, then its bytes */

/* The memory behind a ring is taken with its first message: where none is left that is an error here, not a
 * bus error at the first touch. */
static int prepare_ring(struct comm_shm *c, int peer, struct err *err)
{
    struct peer *p = &c->peer[peer];
    if (p->out_ready)
        return 0;
    int code = posix_fallocate(c->fd, (off_t)ring_offset(&c->comm, c->comm.rank, peer), (off_t)ring_stride());
    if (code)
        return err_set(err, "shared memory (/dev/shm) for messages to rank %d, %zu bytes: %s", peer,
                       ring_stride(), strerror(code));
    p->out_ready = true;
    return 0;
}

static void keep(struct comm_shm *c, struct peer *p, const void *data, size_t bytes)
{
    struct pending *m = xmalloc(sizeof(*m) + bytes);
    *m = (struct pending){.bytes = bytes};
    memcpy(m->data, data, bytes);
    if (p->last)
        p->last->next = m;
    else
        p->first = m;
    p->last = m;
    p->pending_count++;
    c->pending++;
}

/* Into the ring as far as there is room, the rest is kept. */
static void stream_out(struct comm_shm *c, struct peer *p, const void *data, size_t bytes)
{
    size_t done = p->first ? 0 : shm_ring_write(p->out, data, bytes);
    if (done < bytes)
        keep(c, p, (const uint8_t *)data + done, bytes - done);
}

static int send_bytes(struct comm *comm, struct stream *s, const void *data, size_t bytes, int peer,
                      struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    struct peer *p = &c->peer[peer];
    uint64_t length = bytes;
    ASSERT(peer >= 0 && peer < comm->size && peer != comm->rank);
    if (settle(s, err) || prepare_ring(c, peer, err) || gone(c, err))
        return -1;
    push_pending(c, p);
    while (p->pending_count >= PENDING_MOST) {
        shm_word_wait(&p->out->taken, atomic_load(&p->out->taken.value) + 1, PENDING_US);
        if (gone(c, err))
            return -1;
        push_all(c);
    }
    stream_out(c, p, &length, sizeof(length));
    stream_out(c, p, data, bytes);
    return 0;
}

static int stream_in(struct comm_shm *c, struct peer *p, void *data, size_t bytes, struct err *err)
{
    for (size_t done = 0; done < bytes;) {
        done += shm_ring_read(p->in, (uint8_t *)data + done, bytes - done);
        while (done < bytes && !shm_ring_wait(p->in, patience_us(c))) {
            if (gone(c, err))
                return -1;
            push_all(c);
        }
    }
    return 0;
}

static int recv_bytes(struct comm *comm, struct stream *s, void *data, size_t bytes, int peer,
                      struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    struct peer *p = &c->peer[peer];
    uint64_t length = 0;
    ASSERT(peer >= 0 && peer < comm->size && peer != comm->rank);
    if (settle(s, err) || gone(c, err))
        return -1;
    push_all(c);
    if (stream_in(c, p, &length, sizeof(length), err))
        return -1;
    if (length != bytes)
        return err_set(err, "shared memory: %llu bytes came from rank %d, expected %zu",
                       (unsigned long long)length, peer, bytes);
    return stream_in(c, p, data, bytes, err);
}

static int progress(struct comm *comm, struct err *err)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    push_all(c);
    return gone(c, err);
}

/* ---- life */

static void abort_all(struct comm *comm)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    atomic_store(&c->header->aborted, 1);
    for (int r = 0; r < comm->size; r++) {
        shm_word_poke(&c->counter[r]);
        if (c->peer[r].out_ready)
            shm_word_poke(&c->peer[r].out->written);
    }
}

static void close_comm(struct comm *comm)
{
    struct comm_shm *c = (struct comm_shm *)comm;
    for (int r = 0; r < comm->size; r++)
        while (c->peer[r].first) {
            struct pending *m = c->peer[r].first;
            c->peer[r].first = m->next;
            free(m);
        }
    if (c->memory)
        munmap(c->memory, c->bytes);
    if (c->fd >= 0)
        close(c->fd);
    free(c->peer);
    free(c);
}

static const struct comm_ops shm_ops = {
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

/* What rank 0 tells the others, and what each answers. */
struct invitation {
    uint8_t token[16];
    char name[48];
};
struct answer {
    int32_t failed;
    char why[200];
};

static int map_segment(struct comm_shm *c, struct err *err)
{
    void *memory = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (memory == MAP_FAILED)
        return err_set(err, "shared memory of %zu bytes: %s", c->bytes, strerror(errno));
    c->memory = memory;
    c->header = memory;
    c->comm.shared = c->header->shared;
    c->counter = (struct shm_word *)(void *)(c->memory + counters_offset());
    for (int i = 0; i < 2; i++)
        c->area[i] = c->memory + areas_offset(c->comm.size) + (size_t)i * (size_t)c->comm.size * PART_BYTES;
    for (int r = 0; r < c->comm.size; r++) {
        c->peer[r].out = (struct shm_ring *)(void *)(c->memory + ring_offset(&c->comm, c->comm.rank, r));
        c->peer[r].in = (struct shm_ring *)(void *)(c->memory + ring_offset(&c->comm, r, c->comm.rank));
    }
    return 0;
}

/* Rank 0: new memory under a name nobody can guess. Only what every rank uses is taken at once. */
static int create_segment(struct comm_shm *c, struct invitation *in, struct err *err)
{
    if (getrandom(in->token, sizeof(in->token), 0) != (ssize_t)sizeof(in->token))
        die("getrandom gave no bytes");
    int n = snprintf(in->name, sizeof(in->name), "/lepton-");
    for (size_t i = 0; i < sizeof(in->token); i++)
        n += snprintf(in->name + n, sizeof(in->name) - (size_t)n, "%02x", in->token[i]);
    c->fd = shm_open(in->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (c->fd < 0)
        return err_set(err, "shared memory %s: %s", in->name, strerror(errno));
    int code = ftruncate(c->fd, (off_t)c->bytes) ? errno : 0;
    if (code == 0)
        code = posix_fallocate(c->fd, 0, (off_t)rings_offset(c->comm.size));
    if (code)
        return err_set(err, "shared memory (/dev/shm) of %zu bytes: %s", rings_offset(c->comm.size),
                       strerror(code));
    if (map_segment(c, err))
        return -1;
    c->header->ranks = (uint32_t)c->comm.size;
    memcpy(c->header->token, in->token, sizeof(in->token));
    return 0;
}

static int join_segment(struct comm_shm *c, const struct invitation *in, struct err *err)
{
    struct stat st;
    c->fd = shm_open(in->name, O_RDWR | O_CLOEXEC, 0);
    if (c->fd < 0)
        return err_set(err, "shared memory of rank 0: %s: another host?", strerror(errno));
    if (fstat(c->fd, &st) || (uint64_t)st.st_size != c->bytes)
        return err_set(err, "shared memory of rank 0: %lld bytes, expected %zu", (long long)st.st_size,
                       c->bytes);
    if (map_segment(c, err))
        return -1;
    if (c->header->ranks != (uint32_t)c->comm.size ||
        memcmp(c->header->token, in->token, sizeof(in->token)) != 0)
        return err_set(err, "shared memory of rank 0: not the one it told of");
    return 0;
}

/* Everybody learns whether everybody could: 0, 1 (somebody could not: *err has the first one's words), -1. */
static int agree(struct comm *over, int failed, struct err *err)
{
    struct answer mine = {.failed = failed != 0};
    struct answer *all = xcalloc((size_t)over->size, sizeof(*all));
    snprintf(mine.why, sizeof(mine.why), "%s", failed ? err->message : "");
    int code = comm_allgather(over, NULL, &mine, all, sizeof(mine), err);
    for (int r = 0; r < over->size && code == 0; r++)
        if (all[r].failed) {
            err_set(err, "rank %d: %s", r, all[r].why);
            code = 1;
        }
    free(all);
    return code;
}

int comm_shm_open(struct comm **out, struct comm *over, struct device *device, struct err *err)
{
    struct comm_shm *c = xcalloc(1, sizeof(*c));
    struct invitation in = {.name = ""};
    *out = NULL;
    c->comm = (struct comm){.ops = &shm_ops, .name = "shm", .rank = over->rank, .size = over->size};
    c->device = device;
    c->fd = -1;
    c->bytes = segment_bytes(over->size);
    c->peer = xcalloc((size_t)over->size, sizeof(*c->peer));
    int failed = 0;
    if (over->size > MAX_RANKS)
        failed = err_set(err, "shared memory: %d ranks, expected at most %d", over->size, MAX_RANKS);
    else if (over->rank == 0)
        failed = create_segment(c, &in, err);
    int code = comm_broadcast(over, NULL, &in, sizeof(in), 0, err) ? -1 : 0;
    if (code == 0) {
        if (!failed && over->rank != 0)
            failed = join_segment(c, &in, err);
        code = agree(over, failed, err);
    }
    /* All who could have opened it by now: the name is no longer needed, and nothing is left behind. */
    if (over->rank == 0 && in.name[0] && c->fd >= 0)
        shm_unlink(in.name);
    if (code) {
        comm_close(&(struct comm *){&c->comm});
        return code;
    }
    *out = &c->comm;
    return 0;
}
