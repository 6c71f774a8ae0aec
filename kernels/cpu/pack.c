/* pack: the pass over a matrix that makes it a weight, and the weights that are used as they lie in the file.
 *
 * The matrix is cut into runs of about a megabyte of its bytes. A thread takes a run, lets the watcher see
 * it, and packs it while it lies in its second-level cache: the bytes come from memory once. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/device_cpu.h"

#define RUN_BYTES   (1u << 20)
#define TOUCH_BYTES (32u << 10) /* packed, then watched: both forms stay in a second-level cache */

struct pass {
    int64_t rows, unit, step; /* step: rows of one call, a multiple of unit */
    uint64_t row_bytes;
    const struct weight_watch *watch;
    void (*body)(void *context, int64_t begin, int64_t end);
    void *context;
};

/* The first row of run r: of the unit in which byte r * RUN_BYTES lies, so that a watcher whose pieces are as
 * long as a run finds each piece's first byte at the front of a run and not at the end of the one before:
 * what of a piece is in another run has left the cache, or is in another processor's. */
static int64_t run_begin(const struct pass *p, int64_t r)
{
    uint64_t byte = (uint64_t)r * RUN_BYTES;
    if (byte >= p->row_bytes * (uint64_t)p->rows)
        return p->rows;
    return (int64_t)(byte / (p->row_bytes * (uint64_t)p->unit)) * p->unit;
}

static void pass_body(void *context, int64_t begin, int64_t end, int member)
{
    const struct pass *p = context;
    int64_t last = run_begin(p, end); /* a run in which no unit begins is empty */
    for (int64_t row = run_begin(p, begin), next; row < last; row = next) {
        next = last - row > p->step ? row + p->step : last;
        p->body(p->context, row, next);
        if (p->watch)
            p->watch->rows(p->watch->context, row, next, member);
    }
}

void cpu_pack_pass(struct device *device, const struct tensor *host, int64_t unit,
                   const struct weight_watch *watch, void (*body)(void *context, int64_t begin, int64_t end),
                   void *context)
{
    struct pass p = {.rows = host->dim[0], .unit = unit, .watch = watch, .body = body, .context = context};
    p.row_bytes = tensor_bytes(host) / (uint64_t)host->dim[0];
    p.step = unit * (int64_t)(1 + TOUCH_BYTES / (p.row_bytes * (uint64_t)unit));
    team_for(cpu_device_team(device), (int64_t)((tensor_bytes(host) + RUN_BYTES - 1) / RUN_BYTES), 1,
             pass_body, &p);
}

/* ---- weights as they lie in the file ------------------------------------------------------------------- */

struct copy {
    const struct tensor *host;
    uint64_t row_bytes;
    char *to;
};

static void copy_rows(void *context, int64_t begin, int64_t end)
{
    const struct copy *c = context;
    uint64_t from = (uint64_t)begin * c->row_bytes;
    memcpy(c->to + from, (const char *)c->host->data + from, (uint64_t)(end - begin) * c->row_bytes);
}

/* Brings rows of a mapped file into memory, so that the first token need not fetch them page by page. */
static void fetch_rows(void *context, int64_t begin, int64_t end)
{
    const struct copy *c = context;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = (uintptr_t)c->host->data + (uint64_t)begin * c->row_bytes;
    uintptr_t to = (uintptr_t)c->host->data + (uint64_t)end * c->row_bytes;
#ifdef MADV_POPULATE_READ
    if (madvise((void *)(from & ~(page - 1)), to - (from & ~(page - 1)), MADV_POPULATE_READ) == 0)
        return;
#endif
    for (; from < to; from = (from & ~(page - 1)) + page)
        (void)*(const volatile char *)from;
}

int cpu_pack(struct weight *out, struct device *device, const struct tensor *host,
             const struct weight_watch *watch, struct err *err)
{
    struct copy copy = {.host = host, .row_bytes = tensor_bytes(host) / (uint64_t)host->dim[0]};
    out->stored = *host;
    out->stored.device = device;
    out->packed = host->data;
    size_t alignment = host->dtype == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    if ((uintptr_t)host->data % alignment == 0) {
        cpu_pack_pass(device, host, 1, watch, fetch_rows, &copy);
        return 0;
    }
    /* A file may place its tensors anywhere; reading misaligned floats is undefined. */
    out->packed = copy.to = device_alloc(device, tensor_bytes(host), err);
    if (!out->packed)
        return -1;
    out->owned = true;
    cpu_pack_pass(device, host, 1, watch, copy_rows, &copy);
    out->stored.data = out->packed;
    return 0;
}
