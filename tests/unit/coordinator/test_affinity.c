/* Real threads and real affinities; what the kernel tells comes from files made here. */
#include "coordinator/affinity.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/stat.h>

#include "tests/test.h"

#define LATER 20000 /* ms; more than any look puts off the next */

struct worker {
    pthread_t thread;
    sem_t begun, end;
    pid_t id;
};

struct bench {
    char proc[64];
    cpu_set_t all;
    int first, second; /* processors */
    struct worker spared, kept;
    struct affinity *affinity;
    uint64_t now_ms;
    uint64_t idle[2], busy[2]; /* ticks of the two so far */
};

static void *wait_end(void *arg)
{
    struct worker *w = arg;
    w->id = gettid();
    sem_post(&w->begun);
    sem_wait(&w->end);
    return NULL;
}

static void start(struct worker *w)
{
    sem_init(&w->begun, 0, 0);
    sem_init(&w->end, 0, 0);
    CHECK_INT(pthread_create(&w->thread, NULL, wait_end, w), 0);
    sem_wait(&w->begun);
}

static void stop(struct worker *w)
{
    sem_post(&w->end);
    pthread_join(w->thread, NULL);
    sem_destroy(&w->begun);
    sem_destroy(&w->end);
}

static void put(const struct bench *b, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", b->proc, name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

static void put_thread(const struct bench *b, pid_t id)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/self/task/%d", b->proc, id);
    CHECK_INT(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "self/task/%d/schedstat", id);
    put(b, path, "0 0 0\n");
}

/* The two processors were idle and busy for so many ticks more. */
static void put_stat(struct bench *b, uint64_t idle_first, uint64_t busy_first, uint64_t idle_second,
                     uint64_t busy_second)
{
    char text[512];
    b->idle[0] += idle_first;
    b->busy[0] += busy_first;
    b->idle[1] += idle_second;
    b->busy[1] += busy_second;
    snprintf(text, sizeof(text),
             "cpu  1 2 3 4 5 6 7 8 9 10\ncpu%d %llu 0 0 %llu 0 0 0 0 0 0\n"
             "cpu%d 0 0 %llu %llu 0 0 0 0 0 0\nintr 5 5\n",
             b->first, (unsigned long long)b->busy[0], (unsigned long long)b->idle[0], b->second,
             (unsigned long long)b->busy[1], (unsigned long long)b->idle[1]);
    put(b, "stat", text);
}

static void tick(struct bench *b)
{
    b->now_ms += LATER;
    affinity_tick(b->affinity, b->now_ms);
}

/* The mask of a thread: exactly one processor: its number; all that are allowed: -1; else -2. */
static int place(const struct bench *b, pid_t id)
{
    cpu_set_t set;
    if (sched_getaffinity(id, sizeof(set), &set) != 0)
        return -2;
    if (CPU_EQUAL(&set, &b->all))
        return -1;
    return CPU_COUNT(&set) != 1         ? -2
           : CPU_ISSET(b->first, &set)  ? b->first
           : CPU_ISSET(b->second, &set) ? b->second
                                        : -2;
}

/* False: this process may run on one processor only. Two processors are as good as any number. */
static bool open_bench(struct bench *b)
{
    struct err err;
    char path[96];
    *b = (struct bench){.proc = "/tmp/lepton-affinity-XXXXXX", .first = -1, .second = -1, .now_ms = 1};
    CHECK_INT(sched_getaffinity(0, sizeof(b->all), &b->all), 0);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &b->all)) {
            if (b->first >= 0 && b->second >= 0)
                CPU_CLR(i, &b->all);
            else
                *(b->first < 0 ? &b->first : &b->second) = i;
        }
    if (b->second < 0)
        return false;
    CHECK_INT(sched_setaffinity(0, sizeof(b->all), &b->all), 0);
    CHECK(mkdtemp(b->proc) != NULL);
    snprintf(path, sizeof(path), "%s/self", b->proc);
    CHECK_INT(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/self/task", b->proc);
    CHECK_INT(mkdir(path, 0700), 0);
    put_thread(b, getpid());
    start(&b->spared);
    put_thread(b, b->spared.id);
    CHECK_INT(affinity_open(&b->affinity, "auto", b->proc, &err), 0);
    affinity_spare(b->affinity);
    start(&b->kept);
    put_thread(b, b->kept.id);
    put_stat(b, 100, 100, 100, 100);
    return true;
}

static void close_bench(struct bench *b)
{
    char command[128];
    affinity_close(&b->affinity);
    stop(&b->spared);
    stop(&b->kept);
    sched_setaffinity(0, sizeof(b->all), &b->all);
    snprintf(command, sizeof(command), "rm -r %s", b->proc);
    CHECK_INT(system(command), 0);
}

#define ONE_ONLY "this process may run on one processor only"

/* Gathered on the second processor. */
static void gather(struct bench *b)
{
    char state[24];
    tick(b);
    CHECK_INT(place(b, 0), -1);
    CHECK_STR(affinity_state(b->affinity), "auto: any");
    put_stat(b, 0, 50, 50, 0);
    tick(b);
    CHECK_INT(place(b, 0), b->second);
    CHECK_INT(place(b, b->kept.id), b->second);
    CHECK_INT(place(b, b->spared.id), -1);
    snprintf(state, sizeof(state), "auto: %d", b->second);
    CHECK_STR(affinity_state(b->affinity), state);
}

static void test_gathers_and_parts(void)
{
    struct bench b;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    gather(&b);
    put_stat(&b, 0, 50, 0, 50);
    tick(&b);
    CHECK_INT(place(&b, 0), -1);
    CHECK_INT(place(&b, b.kept.id), -1);
    CHECK_STR(affinity_state(b.affinity), "auto: any");
    close_bench(&b);
}

static void test_moves(void)
{
    struct bench b;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    gather(&b);
    put_stat(&b, 50, 0, 0, 50);
    tick(&b);
    CHECK_INT(place(&b, 0), b.first);
    CHECK_INT(place(&b, b.kept.id), b.first);
    CHECK_INT(place(&b, b.spared.id), -1);
    close_bench(&b);
}

static void test_looks_twice_a_second(void)
{
    struct bench b;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    gather(&b);
    put_stat(&b, 0, 50, 0, 50);
    affinity_tick(b.affinity, b.now_ms + 499);
    CHECK_INT(place(&b, 0), b.second);
    close_bench(&b);
}

static void test_waiting_parts(void)
{
    struct bench b;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    gather(&b);
    char path[64];
    snprintf(path, sizeof(path), "self/task/%d/schedstat", b.kept.id);
    put(&b, path, "0 9000000 100\n");
    put_stat(&b, 0, 50, 50, 0);
    tick(&b);
    CHECK_INT(place(&b, 0), -1);
    close_bench(&b);
}

static void test_silent_kernel(void)
{
    const char *files[] = {"stat", "self/task/%d/schedstat"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        struct bench b;
        char path[64];
        if (!open_bench(&b))
            SKIP(ONE_ONLY);
        gather(&b);
        snprintf(path, sizeof(path), files[i], b.kept.id);
        put(&b, path, "");
        tick(&b);
        CHECK_INT(place(&b, 0), -1);
        CHECK_INT(place(&b, b.kept.id), -1);
        CHECK_STR(affinity_state(b.affinity), "any");
        put_stat(&b, 0, 50, 50, 0);
        tick(&b);
        CHECK_INT(place(&b, 0), -1);
        close_bench(&b);
    }
}

static void test_no_files(void)
{
    struct affinity *a;
    struct err err;
    CHECK_INT(affinity_open(&a, "auto", "/nonexistent", &err), 0);
    affinity_spare(a);
    affinity_tick(a, LATER);
    CHECK_STR(affinity_state(a), "any");
    affinity_close(&a);
    CHECK(a == NULL);
    affinity_close(&a);
}

static void test_offline_processors_are_not_chosen(void)
{
    struct bench b;
    char text[128];
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    snprintf(text, sizeof(text), "cpu  1 1\ncpu%d 0 0 0 100 0 0 0 0\n", b.second);
    put(&b, "stat", text);
    tick(&b);
    snprintf(text, sizeof(text), "cpu  1 1\ncpu%d 100 0 0 100 0 0 0 0\n", b.second);
    put(&b, "stat", text);
    tick(&b);
    CHECK_INT(place(&b, 0), -1);
    close_bench(&b);
}

static void test_moved_by_others(void)
{
    struct bench b;
    cpu_set_t one;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    gather(&b);
    CPU_ZERO(&one);
    CPU_SET(b.first, &one);
    CHECK_INT(sched_setaffinity(0, sizeof(one), &one), 0);
    for (int i = 0; i < 9; i++) {
        put_stat(&b, 0, 50, 50, 0); /* the second would be better, but is not allowed any more */
        tick(&b);
    }
    CHECK_INT(place(&b, 0), b.first);
    CHECK_INT(place(&b, b.kept.id), b.first);
    CHECK_STR(affinity_state(b.affinity), "auto: any");
    CHECK_INT(sched_setaffinity(0, sizeof(b.all), &b.all), 0);
    for (int i = 0; i < 9; i++) {
        put_stat(&b, 0, 50, 50, 0);
        tick(&b);
    }
    CHECK_INT(place(&b, 0), b.second);
    close_bench(&b);
}

static void test_off(void)
{
    struct bench b;
    struct err err;
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    affinity_close(&b.affinity);
    CHECK_INT(affinity_open(&b.affinity, "off", b.proc, &err), 0);
    affinity_spare(b.affinity);
    tick(&b);
    put_stat(&b, 0, 50, 50, 0);
    tick(&b);
    CHECK_INT(place(&b, 0), -1);
    CHECK_STR(affinity_state(b.affinity), "any");
    close_bench(&b);
}

static void test_a_number(void)
{
    struct bench b;
    struct err err;
    char text[16];
    if (!open_bench(&b))
        SKIP(ONE_ONLY);
    affinity_close(&b.affinity);
    snprintf(text, sizeof(text), "%d", b.first);
    CHECK_INT(affinity_open(&b.affinity, text, b.proc, &err), 0);
    affinity_spare(b.affinity);
    tick(&b);
    put_stat(&b, 0, 50, 50, 0);
    tick(&b);
    CHECK_INT(place(&b, 0), b.first);
    CHECK_STR(affinity_state(b.affinity), text);
    close_bench(&b);
}

static void test_refusals(void)
{
    const char *bad[] = {"", "-1", "on", "1x", " 1", "10000", "0x1", "auto "};
    struct affinity *a;
    struct err err;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        CHECK_INT(affinity_open(&a, bad[i], "/proc", &err), -1);
        CHECK_CONTAINS(err.message, "processor: \"");
        CHECK_CONTAINS(err.message, "expected auto, off, or the number");
        affinity_close(&a);
    }
    CHECK_INT(affinity_open(&a, "9999", "/proc", &err), -1);
    CHECK_CONTAINS(err.message, "processor: 9999");
    CHECK_CONTAINS(err.message, "may run on");
    affinity_close(&a);
}

int main(void)
{
    TEST(test_gathers_and_parts, "threads gather where there is room and part where there is none");
    TEST(test_moves, "they move to the processor with room");
    TEST(test_looks_twice_a_second, "nothing is looked at within half a second");
    TEST(test_waiting_parts, "waiting for a processor parts them");
    TEST(test_silent_kernel, "a kernel that tells nothing any more leaves them on any");
    TEST(test_no_files, "a kernel that tells nothing leaves them as they are");
    TEST(test_offline_processors_are_not_chosen, "a processor that is not listed is not chosen");
    TEST(test_moved_by_others, "a mask that others set is kept to");
    TEST(test_off, "off moves nothing");
    TEST(test_a_number, "a number binds all threads there for good");
    TEST(test_refusals, "other words are refused");
    return test_result();
}
