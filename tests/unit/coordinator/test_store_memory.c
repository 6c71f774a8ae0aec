/* The store when memory runs out, at every single allocation of a life: open, start, commits, close. This
 * program's own malloc, in front of libc's and SQLite's, fails where it is told to and counts what is held.
 */
#include "coordinator/store.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <unistd.h>

#include "common/log.h"
#include "tests/test.h"

#ifndef LEPTON_SANITIZE
static _Atomic long calls, held, fail_at; /* 0: never */
static _Atomic int fail_on;               /* and from then on */
static _Atomic bool failed;

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void __libc_free(void *p);

static bool fails(void)
{
    long at = atomic_load(&fail_at);
    if (!at)
        return false;
    long call = atomic_fetch_add(&calls, 1) + 1;
    if (call != at && !(call > at && atomic_load(&fail_on)))
        return false;
    atomic_store(&failed, true);
    errno = ENOMEM;
    return true;
}

void *malloc(size_t bytes)
{
    void *p = fails() ? NULL : __libc_malloc(bytes);
    held += p != NULL;
    return p;
}

void *calloc(size_t count, size_t bytes)
{
    void *p = fails() ? NULL : __libc_calloc(count, bytes);
    held += p != NULL;
    return p;
}

void *realloc(void *old, size_t bytes)
{
    void *p = fails() ? NULL : __libc_realloc(old, bytes);
    held += p != NULL && !old;
    return p;
}

void free(void *p)
{
    held -= p != NULL;
    __libc_free(p);
}

#define ROWS 4
static char directory[64], path[96];
static const char *const requests[ROWS + 1] = {"", "a", "b", "c", "d"};

struct outcome {
    bool opened, stored[ROWS + 1], refused[ROWS + 1];
};

/* Bytes of an answer, made by the caller of the store. */
static void *bytes_of(size_t size)
{
    void *p = malloc(size);
    if (p)
        memset(p, 'x', size);
    return p;
}

static void put(struct store *s, uint64_t row, struct outcome *o)
{
    struct err err = {0};
    struct store_done done;
    struct pollfd fd = {.fd = store_fd(s), .events = POLLIN};
    struct store_answer a = {
        .row = row, .owner = "alice", .request = requests[row], .bytes = bytes_of(9000), .size = 9000};
    if (!a.bytes || store_answer(s, &a, row, &err)) {
        CHECK(!a.bytes || (err.code == 503 && err.message[0]));
        o->refused[row] = true;
        return;
    }
    CHECK(poll(&fd, 1, 10000) == 1 && store_next_done(s, &done) && done.tag == row);
    CHECK(done.code == 0 || (done.code == 503 && done.message[0]));
    o->stored[row] = done.code == 0;
    o->refused[row] = done.code != 0;
}

static void see(void *context, const struct store_answer *a)
{
    struct outcome *o = context;
    if (a->row <= ROWS && a->size == 9000)
        o->stored[a->row] = true;
}

/* One life of a store; every error in it must be told. */
static struct outcome live(void)
{
    struct outcome o = {.opened = false}, before = {.opened = false};
    struct store *s = NULL;
    struct err err = {.message = ""};
    if (store_open(&s, &(struct store_options){.path = path}, &err) == 0 &&
        store_each_answer(s, see, &before, &err) == 0 && store_start(s, &err) == 0) {
        o.opened = true;
        for (uint64_t row = 1; row <= ROWS; row++)
            put(s, row, &o);
        store_epochs(s, 5000, 0, &err);
    }
    CHECK(o.opened || err.message[0]);
    store_close(&s);
    CHECK(s == NULL);
    return o;
}

static void fresh(void)
{
    static const char *const suffixes[] = {"", "-wal", "-shm", "-journal", ".lock"};
    char file[160];
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        snprintf(file, sizeof(file), "%s%s", path, suffixes[i]);
        unlink(file);
    }
}

/* Without a fault everything that was acknowledged is there, whole, and nothing that was refused. */
static void look_at(const struct outcome *then)
{
    struct outcome now = {.opened = false};
    struct store *s = NULL;
    struct err err;
    int code = store_open(&s, &(struct store_options){.path = path}, &err);
    CHECK_INT(code, 0);
    if (code)
        return;
    CHECK(store_each_answer(s, see, &now, &err) == 0);
    for (int row = 1; row <= ROWS; row++) {
        CHECK(!then->stored[row] || now.stored[row]);
        CHECK(!then->refused[row] || !now.stored[row]);
    }
    store_close(&s);
}

static long exhaust(bool from_then_on)
{
    long at = 1;
    for (;; at++) {
        fresh();
        atomic_store(&calls, 0);
        atomic_store(&failed, false);
        atomic_store(&fail_on, from_then_on);
        long before = atomic_load(&held);
        atomic_store(&fail_at, at);
        struct outcome then = live();
        atomic_store(&fail_at, 0);
        if (atomic_load(&held) != before)
            printf("# call %ld: %ld blocks leak\n", at, atomic_load(&held) - before);
        CHECK_INT(atomic_load(&held), before);
        look_at(&then);
        if (!atomic_load(&failed))
            return at - 1;
        if (test_failures > 20)
            return at;
    }
}

static void prepare(void)
{
    struct outcome o;
    log_setup("test", LOG_ERROR, LOG_TEXT);
    bool in_memory = access("/dev/shm", W_OK) == 0; /* thousands of lives: no disk has to see them */
    snprintf(directory, sizeof(directory), "%s/lepton-test-XXXXXX", in_memory ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof(path), "%s/state.db", directory);
    for (int i = 0; i < 3; i++) { /* what libraries keep for ever */
        fresh();
        o = live();
        look_at(&o);
    }
}

static void test_one_call(void)
{
    prepare();
    long calls_made = exhaust(false);
    printf("# %ld allocations of a life, each failed once\n", calls_made);
    CHECK(calls_made > 200);
    fresh();
    CHECK(rmdir(directory) == 0);
}

static void test_from_a_call_on(void)
{
    prepare();
    CHECK(exhaust(true) > 200);
    fresh();
    CHECK(rmdir(directory) == 0);
}
#else
static void test_one_call(void)
{
    SKIP("a sanitizer has its own malloc");
}

static void test_from_a_call_on(void)
{
    SKIP("a sanitizer has its own malloc");
}
#endif

int main(void)
{
    TEST(test_one_call, "any one allocation may fail: an error, no leak, and what was acknowledged is there");
    TEST(test_from_a_call_on, "memory may be gone from any allocation on: the same");
    return test_result();
}
