#include "kernels/cpu/team.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/test.h"

static struct team *team_of(int threads)
{
    struct err err;
    struct team *team = team_new(threads, &err);
    if (!team)
        die("%s", err.message);
    return team;
}

struct cover {
    _Atomic int *times; /* [count] how often each index was run */
    _Atomic int strange, pieces;
    int64_t count, grain;
    int threads;
};

static void cover_body(void *context, int64_t begin, int64_t end, int member)
{
    struct cover *c = context;
    if (member < 0 || member >= c->threads || begin >= end || begin % c->grain != 0 ||
        (end % c->grain != 0 && end != c->count))
        atomic_fetch_add(&c->strange, 1);
    for (int64_t i = begin; i < end; i++)
        atomic_fetch_add(&c->times[i], 1);
}

static void test_every_index_is_run_once(void)
{
    static const int64_t COUNTS[] = {0, 1, 2, 3, 5, 16, 17, 100, 1000, 4097};
    static const int64_t GRAINS[] = {1, 3, 16, 5000};
    int wrong = 0;
    for (int threads = 1; threads <= 5; threads++) {
        struct team *team = team_of(threads);
        CHECK_INT(team_threads(team), threads);
        for (size_t i = 0; i < ARRAY_LEN(COUNTS); i++)
            for (size_t g = 0; g < ARRAY_LEN(GRAINS); g++) {
                struct cover c = {.count = COUNTS[i], .grain = GRAINS[g], .threads = threads};
                c.times = calloc((size_t)COUNTS[i] + 1, sizeof(*c.times));
                team_for(team, c.count, c.grain, cover_body, &c);
                for (int64_t k = 0; k < c.count; k++)
                    wrong += c.times[k] != 1;
                wrong += c.strange;
                free(c.times);
            }
        team_free(&team);
        CHECK(team == NULL);
    }
    CHECK_INT(wrong, 0);
}

/* Many short jobs in a row, with pauses in which helpers fall asleep: no wake-up is lost. */
static void test_thousands_of_jobs_lose_none(void)
{
    struct team *team = team_of(4);
    static _Atomic int times[64];
    struct cover c = {.times = times, .count = 64, .grain = 1, .threads = 4};
    for (int job = 0; job < 3000; job++) {
        team_for(team, 64, 1, cover_body, &c);
        if (job % 500 == 0)
            usleep(2000);
    }
    int wrong = c.strange;
    for (int i = 0; i < 64; i++)
        wrong += times[i] != 3000;
    CHECK_INT(wrong, 0);
    team_free(&team);
}

static void slow_first_body(void *context, int64_t begin, int64_t end, int member)
{
    struct cover *c = context;
    if (begin == 0)
        usleep(200000); /* whoever has the first chunk: the rest of its part is for the others to take */
    cover_body(context, begin, end, member);
    atomic_fetch_add(&c->pieces, 1);
}

/* A member that is held up holds one chunk, not its part: the others take what it has not begun. */
static void test_what_a_slow_member_has_not_begun_is_taken(void)
{
    struct team *team = team_of(4);
    static _Atomic int times[4000];
    struct cover c = {.times = times, .count = 4000, .grain = 1, .threads = 4};
    team_for(team, 4000, 1, slow_first_body, &c);
    int wrong = c.strange;
    for (int i = 0; i < 4000; i++)
        wrong += times[i] != 1;
    CHECK_INT(wrong, 0);
    CHECK(c.pieces > 4);
    team_free(&team);
}

static void test_a_grain_makes_as_many_pieces_as_asked(void)
{
    struct team *team = team_of(2);
    CHECK_INT(team_grain(team, 320, 16), 10);
    CHECK_INT(team_grain(team, 321, 16), 11);
    CHECK_INT(team_grain(team, 5, 16), 1);
    CHECK_INT(team_grain(team, 1, 16), 1);
    team_free(&team);
}

static void *call_often(void *argument)
{
    struct team *team = argument;
    for (int job = 0; job < 300; job++) {
        _Atomic int times[40] = {0};
        struct cover c = {.times = times, .count = 40, .grain = 1, .threads = 3};
        team_for(team, 40, 1, cover_body, &c);
        for (int i = 0; i < 40; i++)
            if (times[i] != 1)
                return "wrong";
    }
    return NULL;
}

static void test_callers_of_several_threads_take_turns(void)
{
    struct team *team = team_of(3);
    pthread_t other;
    void *failed = NULL;
    CHECK_INT(pthread_create(&other, NULL, call_often, team), 0);
    CHECK(call_often(team) == NULL);
    pthread_join(other, &failed);
    CHECK(failed == NULL);
    team_free(&team);
}

static void nested_body(void *context, int64_t begin, int64_t end, int member)
{
    (void)begin;
    (void)end;
    (void)member;
    struct cover c = {.count = 0, .grain = 1, .threads = 1};
    team_for(context, 1, 1, cover_body, &c);
}

static void test_nested_use_is_refused(void)
{
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(3);
        struct team *team = team_of(1);
        team_for(team, 1, 1, nested_body, team);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static double cpu_seconds(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

static void test_an_idle_team_burns_nothing(void)
{
    struct team *team = team_of(4);
    static _Atomic int times[64];
    struct cover c = {.times = times, .count = 64, .grain = 1, .threads = 4};
    team_for(team, 64, 1, cover_body, &c);
    usleep(20000); /* the helpers' spin ends */
    double before = cpu_seconds();
    usleep(500000);
    CHECK(cpu_seconds() - before < 0.05);
    team_free(&team);
}

static void test_scratch_grows_and_is_one_per_member(void)
{
    struct team *team = team_of(2);
    char *a = team_scratch(team, 0, 100), *b = team_scratch(team, 1, 100);
    CHECK(a != b && (uintptr_t)a % 64 == 0);
    memset(a, 1, 100);
    CHECK(team_scratch(team, 0, 50) == a);
    memset(team_scratch(team, 0, 1 << 20), 2, 1 << 20);
    team_free(&team);
}

static void test_too_many_threads_are_refused(void)
{
    struct err err;
    CHECK(team_new(1000000, &err) == NULL);
    CHECK_CONTAINS(err.message, "threads: expected at most 1024, found 1000000");
    struct team *team = team_of(0); /* all processors that are allowed */
    CHECK(team_threads(team) >= 1 && team_threads(team) <= sysconf(_SC_NPROCESSORS_CONF));
    team_free(&team);
    team_free(&team); /* NULL is accepted */
}

int main(void)
{
    TEST(test_every_index_is_run_once, "every index of a range is run once, in whole grains");
    TEST(test_what_a_slow_member_has_not_begun_is_taken, "what a slow member has not begun is taken from it");
    TEST(test_a_grain_makes_as_many_pieces_as_asked, "a grain makes as many pieces as asked");
    TEST(test_thousands_of_jobs_lose_none, "thousands of short jobs lose no index and no wake-up");
    TEST(test_callers_of_several_threads_take_turns, "callers of several threads take turns");
    TEST(test_nested_use_is_refused, "a body that calls the team again is refused");
    TEST(test_an_idle_team_burns_nothing, "an idle team burns nothing");
    TEST(test_scratch_grows_and_is_one_per_member, "scratch grows and is one per member");
    TEST(test_too_many_threads_are_refused, "too many threads are refused, none means all processors");
    return test_result();
}
