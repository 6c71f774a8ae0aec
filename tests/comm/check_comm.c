#include "tests/comm/check_comm.h"

#include "tests/test.h"

#define GUARD      0xA5
#define GUARD_SIZE 64

/* A piece of device memory with guards on both sides, and its copy on the host. */
struct piece {
    struct comm_bed *bed;
    uint8_t *memory; /* guard, bytes, guard */
    uint8_t *host;   /* the same */
    size_t bytes;
};

static bool done(struct comm_bed *bed, int rc, const struct err *err, const char *what)
{
    if (rc == 0)
        return true;
    printf("# rank %d: %s: %s\n", bed->comm->rank, what, err->message);
    test_failures++;
    return false;
}

static bool expect(struct comm_bed *bed, bool true_of, const char *what, size_t size)
{
    if (!true_of) {
        printf("# rank %d of %d, size %zu: expected %s\n", bed->comm->rank, bed->comm->size, size, what);
        test_failures++;
    }
    return true_of;
}

static bool wait_for(struct comm_bed *bed)
{
    struct err err;
    int rc = bed->wait ? bed->wait(bed->comm, bed->stream, &err) : stream_sync(bed->stream, &err);
    return done(bed, rc, &err, "waiting for the stream");
}

static struct piece piece_new(struct comm_bed *bed, size_t bytes)
{
    struct piece p = {.bed = bed, .bytes = bytes};
    struct err err;
    p.host = xmalloc(bytes + 2 * GUARD_SIZE);
    memset(p.host, GUARD, bytes + 2 * GUARD_SIZE);
    p.memory = device_alloc(bed->device, bytes + 2 * GUARD_SIZE, &err);
    if (!p.memory)
        die("%s", err.message);
    stream_upload(bed->stream, p.memory, p.host, bytes + 2 * GUARD_SIZE);
    return p;
}

static void *piece_data(struct piece *p)
{
    return p->memory + GUARD_SIZE;
}

static void *piece_host(struct piece *p)
{
    return p->host + GUARD_SIZE;
}

static void piece_upload(struct piece *p)
{
    stream_upload(p->bed->stream, piece_data(p), piece_host(p), p->bytes);
}

/* Brings the piece to the host and looks at its guards; false when a call failed. */
static bool piece_download(struct piece *p)
{
    bool whole = true;
    memset(p->host, 0, p->bytes + 2 * GUARD_SIZE);
    stream_download(p->bed->stream, p->host, p->memory, p->bytes + 2 * GUARD_SIZE);
    if (!wait_for(p->bed))
        return false;
    for (size_t i = 0; i < GUARD_SIZE; i++)
        whole = whole && p->host[i] == GUARD && p->host[GUARD_SIZE + p->bytes + i] == GUARD;
    return expect(p->bed, whole, "whole guard bytes", p->bytes);
}

/* The stream must have passed before memory that a send may still read is freed. */
static void piece_free(struct piece *p)
{
    device_free(p->bed->device, p->memory);
    free(p->host);
}

/* What rank `rank` has at place i in the round called `salt`. */
static uint8_t byte_of(int rank, size_t i, int salt)
{
    return (uint8_t)(i * 31 + (size_t)rank * 77 + (size_t)salt * 13 + (i >> 8));
}

/* Values of very different size, so that another order of the additions gives other bits. */
static float float_of(int rank, size_t i)
{
    unsigned long long state = (unsigned long long)rank * 1000003u + i;
    float small = test_uniform(&state);
    return ldexpf(small, (int)(test_random(&state) % 24));
}

static float sum_of(int ranks, size_t i)
{
    float sum = float_of(0, i);
    for (int r = 1; r < ranks; r++)
        sum += float_of(r, i);
    return sum;
}

static void fill_bytes(struct piece *p, int rank, int salt)
{
    uint8_t *to = piece_host(p);
    for (size_t i = 0; i < p->bytes; i++)
        to[i] = byte_of(rank, i, salt);
    piece_upload(p);
}

static bool holds_bytes(const uint8_t *from, size_t bytes, int rank, int salt)
{
    for (size_t i = 0; i < bytes; i++)
        if (from[i] != byte_of(rank, i, salt))
            return false;
    return true;
}

static int next_rank(const struct comm *c)
{
    return (c->rank + 1) % c->size;
}

static int previous_rank(const struct comm *c)
{
    return (c->rank + c->size - 1) % c->size;
}

static const size_t sizes[] = {1, 3, 17, 255, 4097, (1u << 20) + 5};

/* ---- the checks ------------------------------------------------------------------------------------------
 */

static void check_ring(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    for (size_t n = 0; n < ARRAY_LEN(sizes) && c->size > 1; n++) {
        struct piece out = piece_new(bed, sizes[n]), in = piece_new(bed, sizes[n]);
        fill_bytes(&out, c->rank, 0);
        bool ok = done(bed, comm_send(c, bed->stream, piece_data(&out), sizes[n], next_rank(c), &err), &err,
                       "send") &&
                  done(bed, comm_recv(c, bed->stream, piece_data(&in), sizes[n], previous_rank(c), &err),
                       &err, "receive") &&
                  piece_download(&in);
        if (ok)
            expect(bed, holds_bytes(piece_host(&in), sizes[n], previous_rank(c), 0), "the peer's bytes",
                   sizes[n]);
        piece_free(&out);
        piece_free(&in);
        if (!ok)
            return;
    }
}

static void check_order(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    bool ok = true;
    enum { MESSAGES = 70 };
    struct piece out = piece_new(bed, MESSAGES), in = piece_new(bed, 1);
    fill_bytes(&out, c->rank, 1);
    if (c->size > 1) {
        for (size_t i = 0; i < MESSAGES / 2 && ok; i++)
            ok = done(bed, comm_send(c, bed->stream, (uint8_t *)piece_data(&out) + i, 1, next_rank(c), &err),
                      &err, "send");
        for (size_t i = 0; i < MESSAGES / 2 && ok; i++) {
            ok = done(bed, comm_recv(c, bed->stream, piece_data(&in), 1, previous_rank(c), &err), &err,
                      "receive") &&
                 piece_download(&in);
            if (ok)
                expect(bed, *(uint8_t *)piece_host(&in) == byte_of(previous_rank(c), i, 1),
                       "the i-th message i-th", i);
        }
    }
    piece_free(&out);
    piece_free(&in);
}

/* The sender overwrites its memory in the stream's order, right behind the send. */
static void check_reuse(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    size_t bytes = 4097;
    struct piece out = piece_new(bed, bytes), in = piece_new(bed, bytes);
    if (c->size > 1) {
        fill_bytes(&out, c->rank, 2);
        bool ok =
            done(bed, comm_send(c, bed->stream, piece_data(&out), bytes, next_rank(c), &err), &err, "send");
        fill_bytes(&out, c->rank, 3);
        ok = ok &&
             done(bed, comm_recv(c, bed->stream, piece_data(&in), bytes, previous_rank(c), &err), &err,
                  "receive") &&
             piece_download(&in);
        if (ok)
            expect(bed, holds_bytes(piece_host(&in), bytes, previous_rank(c), 2), "bytes of before", bytes);
    }
    piece_free(&out);
    piece_free(&in);
}

/* Rank 0 alone sends, larger than any ring of kept sends is likely to be in a test; the last one gets it. */
static void check_large(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    size_t bytes = (5u << 20) + 3;
    struct piece p = piece_new(bed, bytes);
    int last = c->size - 1;
    if (c->rank == 0 && last > 0) {
        fill_bytes(&p, 0, 4);
        if (done(bed, comm_send(c, bed->stream, piece_data(&p), bytes, last, &err), &err, "send") &&
            done(bed, comm_progress(c, &err), &err, "progress"))
            wait_for(bed);
    } else if (c->rank == last && last > 0) {
        if (done(bed, comm_recv(c, bed->stream, piece_data(&p), bytes, 0, &err), &err, "receive") &&
            piece_download(&p))
            expect(bed, holds_bytes(piece_host(&p), bytes, 0, 4), "the peer's bytes", bytes);
    }
    piece_free(&p);
}

static void check_allreduce(struct comm_bed *bed)
{
    static const size_t counts[] = {1, 7, 255, 4099};
    struct comm *c = bed->comm;
    struct err err;
    for (size_t n = 0; n < ARRAY_LEN(counts); n++) {
        struct piece p = piece_new(bed, counts[n] * sizeof(float));
        float *host = piece_host(&p);
        bool same = true;
        for (size_t i = 0; i < counts[n]; i++)
            host[i] = float_of(c->rank, i);
        piece_upload(&p);
        bool ok =
            done(bed, comm_allreduce(c, bed->stream, piece_data(&p), counts[n], &err), &err, "allreduce") &&
            piece_download(&p);
        for (size_t i = 0; i < counts[n] && ok; i++) {
            float expected = sum_of(c->size, i);
            same = same && memcmp(&host[i], &expected, sizeof(float)) == 0;
        }
        expect(bed, !ok || same, "the bits of the sum in rank order", counts[n]);
        piece_free(&p);
        if (!ok)
            return;
    }
}

static void check_reduce_scatter(struct comm_bed *bed)
{
    static const size_t counts[] = {1, 5, 1027};
    struct comm *c = bed->comm;
    struct err err;
    for (size_t n = 0; n < ARRAY_LEN(counts); n++) {
        size_t count = counts[n];
        struct piece in = piece_new(bed, (size_t)c->size * count * sizeof(float));
        struct piece out = piece_new(bed, count * sizeof(float));
        bool same = true;
        for (size_t i = 0; i < (size_t)c->size * count; i++)
            ((float *)piece_host(&in))[i] = float_of(c->rank, i);
        piece_upload(&in);
        bool ok =
            done(bed, comm_reduce_scatter(c, bed->stream, piece_data(&in), piece_data(&out), count, &err),
                 &err, "reduce_scatter") &&
            piece_download(&out);
        for (size_t i = 0; i < count && ok; i++) {
            float expected = sum_of(c->size, (size_t)c->rank * count + i);
            same = same && memcmp((float *)piece_host(&out) + i, &expected, sizeof(float)) == 0;
        }
        expect(bed, !ok || same, "this rank's part of the sum in rank order", count);
        piece_free(&in);
        piece_free(&out);
        if (!ok)
            return;
    }
}

static void check_allgather(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    for (size_t n = 0; n < ARRAY_LEN(sizes); n++) {
        struct piece in = piece_new(bed, sizes[n]), out = piece_new(bed, sizes[n] * (size_t)c->size);
        fill_bytes(&in, c->rank, 5);
        bool ok = done(bed, comm_allgather(c, bed->stream, piece_data(&in), piece_data(&out), sizes[n], &err),
                       &err, "allgather") &&
                  piece_download(&out);
        for (int r = 0; r < c->size && ok; r++)
            expect(bed, holds_bytes((uint8_t *)piece_host(&out) + (size_t)r * sizes[n], sizes[n], r, 5),
                   "every rank's bytes in rank order", sizes[n]);
        piece_free(&in);
        piece_free(&out);
        if (!ok)
            return;
    }
}

static void check_broadcast(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    for (size_t n = 0; n < ARRAY_LEN(sizes); n++) {
        for (int root = 0; root < c->size; root++) {
            struct piece p = piece_new(bed, sizes[n]);
            fill_bytes(&p, c->rank, 6);
            bool ok = done(bed, comm_broadcast(c, bed->stream, piece_data(&p), sizes[n], root, &err), &err,
                           "broadcast") &&
                      piece_download(&p);
            if (ok)
                expect(bed, holds_bytes(piece_host(&p), sizes[n], root, 6), "the root's bytes", sizes[n]);
            piece_free(&p);
            if (!ok)
                return;
        }
    }
}

/* A barrier between sends and receives must take no message for its own, and none must be lost to it. */
static void check_barrier(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    struct piece out = piece_new(bed, 1), in = piece_new(bed, 1);
    bool ok = true;
    for (int i = 0; i < 5 && ok; i++) {
        fill_bytes(&out, c->rank, i);
        ok = done(bed, comm_barrier(c, bed->stream, &err), &err, "barrier");
        if (c->size == 1)
            continue;
        ok = ok &&
             done(bed, comm_send(c, bed->stream, piece_data(&out), 1, next_rank(c), &err), &err, "send") &&
             done(bed, comm_recv(c, bed->stream, piece_data(&in), 1, previous_rank(c), &err), &err,
                  "receive") &&
             piece_download(&in);
        if (ok)
            expect(bed, holds_bytes(piece_host(&in), 1, previous_rank(c), i), "the byte of this round", 1);
    }
    piece_free(&out);
    piece_free(&in);
}

/* A pipeline of stages: several messages go forward before the first answer comes back. */
static void check_pipeline(struct comm_bed *bed)
{
    enum { DEPTH = 4 };
    struct comm *c = bed->comm;
    struct err err;
    size_t bytes = 3001;
    int last = c->size - 1;
    struct piece p = piece_new(bed, bytes), answer = piece_new(bed, bytes);
    bool ok = last > 0;
    for (int i = 0; i < DEPTH && ok; i++) {
        if (c->rank == 0) {
            fill_bytes(&p, 0, i);
        } else {
            ok = done(bed, comm_recv(c, bed->stream, piece_data(&p), bytes, c->rank - 1, &err), &err,
                      "receive");
        }
        ok = ok &&
             done(bed, comm_send(c, bed->stream, piece_data(&p), bytes, next_rank(c), &err), &err, "send");
    }
    for (int i = 0; i < DEPTH && ok && c->rank == 0; i++) {
        ok = done(bed, comm_recv(c, bed->stream, piece_data(&answer), bytes, last, &err), &err, "receive") &&
             piece_download(&answer);
        if (ok)
            expect(bed, holds_bytes(piece_host(&answer), bytes, 0, i), "the bytes of this round", bytes);
    }
    if (ok && done(bed, comm_progress(c, &err), &err, "progress"))
        wait_for(bed);
    piece_free(&p);
    piece_free(&answer);
}

static void check_nothing(struct comm_bed *bed)
{
    struct comm *c = bed->comm;
    struct err err;
    struct piece p = piece_new(bed, 4);
    fill_bytes(&p, c->rank, 7);
    bool ok =
        done(bed, comm_progress(c, &err), &err, "progress") &&
        done(bed, comm_allreduce(c, bed->stream, piece_data(&p), 0, &err), &err, "allreduce of none") &&
        done(bed, comm_broadcast(c, bed->stream, piece_data(&p), 0, 0, &err), &err, "broadcast of none") &&
        done(bed, comm_barrier(c, bed->stream, &err), &err, "barrier") && piece_download(&p);
    if (ok)
        expect(bed, holds_bytes(piece_host(&p), 4, c->rank, 7), "untouched bytes", 4);
    piece_free(&p);
}

static const struct {
    const char *sentence;
    void (*run)(struct comm_bed *);
} checks[] = {
    {"a ring of sends and receives of odd sizes carries every byte", check_ring},
    {"messages between two ranks arrive in order", check_order},
    {"memory of a send may be overwritten behind it", check_reuse},
    {"a send larger than the kept ones arrives whole", check_large},
    {"several messages go forward before the first answer comes back", check_pipeline},
    {"allreduce gives every rank the bits of the sum in rank order", check_allreduce},
    {"reduce_scatter gives each rank its part of the sum in rank order", check_reduce_scatter},
    {"allgather puts every rank's bytes in rank order", check_allgather},
    {"broadcast carries the bytes of any root", check_broadcast},
    {"a barrier takes no message of the ranks for its own", check_barrier},
    {"nothing to send is nothing done", check_nothing},
};

int comm_check_count(void)
{
    return (int)ARRAY_LEN(checks);
}

const char *comm_check_sentence(int check)
{
    return checks[check].sentence;
}

int comm_check_run(int check, struct comm_bed *bed)
{
    test_failures = 0;
    checks[check].run(bed);
    fflush(stdout);
    (void)test_skip, (void)test_total_failed;
    return test_failures;
}
