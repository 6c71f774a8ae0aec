/* nccl_ranks: runs comm_nccl in RANKS forked processes over host memory (the CPU device).
 *
 *   nccl_ranks LIBRARY RANKS check         every check of check_comm; one "ok" or "not ok" line each
 *   nccl_ranks LIBRARY RANKS loop TIMEOUT  steps until a call fails, then abort and close; each rank tells
 * its end in one line; TIMEOUT ms is comm_nccl's bound nccl_ranks LIBRARY 0 probe             opens the
 * library and asks for an id: the words of the answer
 *
 * The whole program is bounded too: a rank that still runs after BOUND_S seconds is a failure. */
#include "common/clock.h"
#include "tests/comm/check_comm.h"
#include "worker/comm_nccl.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define RANKS_MAX  16
#define CHECKS_MAX 32
#define BOUND_S    60
#define LOOP_STEPS 20
#define LATE_MS    10000 /* over the timeout: wide, since the machine may be busy; a hang is for ever */

/* Written by the ranks, read by the parent. */
struct results {
    int failures[RANKS_MAX][CHECKS_MAX];
    bool ran[RANKS_MAX][CHECKS_MAX];
};

struct plan {
    const char *library, *mode;
    int ranks, timeout_ms;
    uint8_t id[COMM_NCCL_ID_BYTES];
    struct results *results;
};

/* Streams of the CPU run inline, but the fake library's sends go on behind them: it is asked. */
static int (*fake_stream_idle)(const void *stream);

static void *stream_as_native(struct stream *s)
{
    return s;
}

static int stream_idle_in_library(struct stream *s, struct err *err)
{
    (void)err;
    return fake_stream_idle(s);
}

static int steps(struct comm *c, struct device *device, struct stream *s, struct err *err)
{
    float *data = device_alloc(device, 1024 * sizeof(float), err);
    int rc = data ? 0 : -1;
    for (int i = 0; i < LOOP_STEPS && rc == 0; i++) {
        rc = comm_send(c, s, data, 999, (c->rank + 1) % c->size, err);
        if (rc == 0)
            rc = comm_recv(c, s, data, 999, (c->rank + c->size - 1) % c->size, err);
        if (rc == 0)
            rc = comm_allreduce(c, s, data, 511, err);
        if (rc == 0)
            rc = comm_broadcast(c, s, data, 77, i % c->size, err);
        if (rc == 0)
            rc = comm_progress(c, err);
    }
    device_free(device, data);
    return rc;
}

static void loop(const struct plan *plan, struct comm *c, struct device *device, struct stream *s)
{
    struct err err, later;
    uint64_t begin = clock_now_ms();
    if (steps(c, device, s, &err) == 0) {
        printf("rank %d: done\n", c->rank);
        return;
    }
    bool late = clock_now_ms() - begin > (uint64_t)(plan->timeout_ms + LATE_MS);
    bool final = comm_progress(c, &later) < 0;
    comm_abort(c);
    printf("rank %d: %s%s: %s\n", c->rank, late ? "LATE " : "", final ? "failed" : "GOES ON", err.message);
}

static int rank_main(const struct plan *plan, int rank)
{
    struct device *device = NULL;
    struct stream *stream = NULL;
    struct comm *comm = NULL;
    struct err err;
    struct comm_nccl_options options = {
        .library = plan->library,
        .rank = rank,
        .size = plan->ranks,
        .timeout_ms = plan->timeout_ms,
        .send_bytes = 2u << 20, /* small: check_large must not fit, check_order must fill it */
    };
    memcpy(options.id, plan->id, sizeof(options.id));
    if (device_open(&device, "cpu", &(struct device_options){.threads = 1}, &err) < 0 ||
        stream_open(&stream, device, &err) < 0)
        die("%s", err.message);
    options.device = device;
    *(void **)&fake_stream_idle = dlsym(dlopen(plan->library, RTLD_NOW), "fake_nccl_stream_idle");
    if (!fake_stream_idle)
        die("%s is not the fake library", plan->library);
    options.native_stream = stream_as_native;
    options.stream_idle = stream_idle_in_library;
    if (comm_nccl_open(&comm, &options, &err) < 0) {
        printf("rank %d: not opened: %s\n", rank, err.message);
    } else if (strcmp(plan->mode, "loop") == 0) {
        loop(plan, comm, device, stream);
    } else {
        struct comm_bed bed = {.comm = comm, .device = device, .stream = stream, .wait = comm_nccl_wait};
        for (int i = 0; i < comm_check_count(); i++) {
            plan->results->failures[rank][i] = comm_check_run(i, &bed);
            plan->results->ran[rank][i] = true;
            if (plan->results->failures[rank][i])
                break;
        }
    }
    comm_close(&comm);
    stream_close(&stream);
    device_close(&device);
    return 0;
}

static int report_checks(const struct plan *plan)
{
    int failed = 0;
    for (int i = 0; i < comm_check_count(); i++) {
        bool ok = true;
        for (int r = 0; r < plan->ranks; r++)
            ok = ok && plan->results->ran[r][i] && plan->results->failures[r][i] == 0;
        printf("%s - nccl, %d ranks: %s\n", ok ? "ok" : "not ok", plan->ranks, comm_check_sentence(i));
        failed += !ok;
    }
    return failed ? 1 : 0;
}

static int run_ranks(const struct plan *plan)
{
    pid_t child[RANKS_MAX];
    int rc = 0;
    fflush(stdout);
    for (int r = 0; r < plan->ranks; r++) {
        child[r] = fork();
        if (child[r] < 0)
            die("fork");
        if (child[r] == 0) {
            alarm(BOUND_S);
            rc = rank_main(plan, r);
            fflush(stdout);
            exit(rc);
        }
    }
    for (int r = 0; r < plan->ranks; r++) {
        int status = 0;
        waitpid(child[r], &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            continue;
        bool hung = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
        printf("rank %d: ended with status %d%s\n", r, WEXITSTATUS(status), hung ? ", HUNG" : "");
        rc = 1;
    }
    return rc;
}

int main(int argc, char **argv)
{
    struct plan plan = {0};
    struct err err;
    if (argc < 4)
        die("usage: nccl_ranks LIBRARY RANKS check|loop|probe [TIMEOUT_MS]");
    setvbuf(stdout, NULL, _IOLBF, 0);
    plan.library = argv[1];
    plan.ranks = atoi(argv[2]);
    plan.mode = argv[3];
    plan.timeout_ms = argc > 4 ? atoi(argv[4]) : 30000;
    ASSERT(plan.ranks <= RANKS_MAX && comm_check_count() <= CHECKS_MAX);
    if (comm_nccl_unique_id(plan.library, plan.id, &err) < 0) {
        printf("no id: %s\n", err.message);
        return 1;
    }
    if (strcmp(plan.mode, "probe") == 0) {
        printf("id made\n");
        return 0;
    }
    plan.results =
        mmap(NULL, sizeof(*plan.results), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(plan.results != MAP_FAILED);
    int rc = run_ranks(&plan);
    if (strcmp(plan.mode, "check") == 0)
        rc |= report_checks(&plan);
    return rc;
}
