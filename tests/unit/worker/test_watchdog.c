/* What the watchdogs of a group tell each other, over socket pairs in place of wake connections. Waiting is
 * by condition, never by a time that must be enough. */
#include "worker/watchdog.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/test.h"

struct pair {
    int leader, other;
};

static struct pair pair_open(void)
{
    int fd[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd))
        die("no socket pair");
    return (struct pair){fd[0], fd[1]};
}

/* Until no rank has moved for so long; what is named then. */
static const char *stuck_for(struct watchdog *w, uint64_t ms)
{
    static char text[WATCHDOG_MOST_TEXT];
    bool idle;
    while (watchdog_stuck_ms(w, &idle, text) < ms)
        clock_sleep_ms(10);
    CHECK(!idle);
    return text;
}

static void test_the_rank_that_hangs_is_named(void)
{
    struct watchdog *w[3];
    struct pair p[2] = {pair_open(), pair_open()};
    const int fds[2] = {p[0].leader, p[1].leader};
    char text[WATCHDOG_MOST_TEXT];
    bool idle;
    for (int i = 0; i < 3; i++)
        watchdog_start(&w[i], i);
    CHECK_INT(watchdog_stuck_ms(w[0], &idle, text), 0);
    CHECK(idle);
    watchdog_gather(w[0], fds, 2, 60000);
    watchdog_report(w[1], p[0].other);
    watchdog_report(w[2], p[1].other);
    watchdog_enter(w[0], "waiting for the last stage", 60000);
    watchdog_enter(w[1], "waiting for a step", 60000);
    watchdog_enter(w[2], "a step", 60000);
    CHECK(strcmp(stuck_for(w[0], 1200), "rank 2 is stuck in a step") == 0);
    watchdog_progress(w[2]); /* one that moves is enough */
    while (watchdog_stuck_ms(w[0], &idle, text) >= 1000)
        clock_sleep_ms(10);
    watchdog_enter(w[0], "idle", 0);
    CHECK_INT(watchdog_stuck_ms(w[0], &idle, text), 0);
    CHECK(idle);
    for (int i = 2; i >= 0; i--) {
        watchdog_leave(i ? w[i] : NULL);
        watchdog_stop(&w[i]);
    }
}

static void test_a_silent_rank_is_named(void)
{
    struct watchdog *w[2];
    struct pair p = pair_open();
    watchdog_start(&w[0], 0);
    watchdog_start(&w[1], 1);
    watchdog_gather(w[0], &p.leader, 1, 60000);
    watchdog_report(w[1], p.other);
    watchdog_enter(w[0], "waiting for the last stage", 60000);
    watchdog_enter(w[1], "a step", 60000);
    while (strcmp(stuck_for(w[0], 600), "rank 1 is stuck in a step") != 0) /* it was heard */
        ;
    watchdog_stop(&w[1]); /* as a stopped process: the connection stays */
    CHECK_CONTAINS(stuck_for(w[0], 3500), "rank 1 is stuck in a step and not heard any more");
    watchdog_stop(&w[0]);
}

/* The exit code of a leader whose only other rank ends its connection, with or without a word. */
static int leader_of(bool says_so)
{
    struct pair p = pair_open();
    pid_t child = fork();
    if (child == 0) {
        struct watchdog *w;
        close(p.other);
        watchdog_start(&w, 0);
        watchdog_gather(w, &p.leader, 1, 60000);
        char byte;
        while (recv(p.leader, &byte, 1, MSG_PEEK) != 0) /* until the other end is closed */
            clock_sleep_ms(1);
        clock_sleep_ms(says_so ? 300 : 60000);
        _exit(0);
    }
    struct watchdog *other;
    watchdog_start(&other, 1);
    watchdog_report(other, p.other);
    if (says_so)
        watchdog_leave(other);
    watchdog_stop(&other);
    close(p.other);
    close(p.leader);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_a_dead_rank_ends_the_group(void)
{
    CHECK_INT(leader_of(false), EXIT_GROUP);
    CHECK_INT(leader_of(true), 0);
}

static void test_nothing_moves_for_too_long(void)
{
    pid_t child = fork();
    if (child == 0) {
        struct watchdog *w;
        struct pair p = pair_open();
        watchdog_start(&w, 0);
        watchdog_gather(w, &p.leader, 1, 300);
        watchdog_enter(w, "waiting for the last stage", 60000); /* the group's limit is the shorter one */
        pause();
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_STUCK);
}

int main(void)
{
    log_setup("test", LOG_ERROR, LOG_TEXT);
    TEST(test_the_rank_that_hangs_is_named,
         "a group moves as long as one rank does; the one that hangs is named");
    TEST(test_a_silent_rank_is_named,
         "a rank that is not heard any more is named before those that wait for it");
    TEST(test_a_dead_rank_ends_the_group, "a connection that ends without a word of leave ends the leader");
    TEST(test_nothing_moves_for_too_long, "a group of which no rank moves ends");
    return test_result();
}
