#include "worker/wake.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/test.h"

/* A rank: sleeps `times` times, then waits for the leader's end. Its exit code says how it went. */
static int rank_main(const struct wake_info *info, int times)
{
    struct wake *w = NULL;
    struct err err;
    if (wake_connect(&w, info, 5000, &err))
        return 1;
    for (int i = 0; i < times; i++)
        if (wake_wait(w, &err))
            return 2;
    int gone = wake_wait(w, &err);
    wake_close(&w);
    return gone == -1 ? 0 : 3;
}

static void test_each_wake_ends_one_sleep(void)
{
    struct wake *w;
    struct wake_info info;
    struct err err;
    pid_t ranks[3];
    CHECK_INT(wake_listen(&w, &info, &err), 0);
    for (int i = 0; i < 3; i++)
        if ((ranks[i] = fork()) == 0) {
            wake_close(&w);
            _exit(rank_main(&info, 5));
        }
    CHECK_INT(wake_accept(w, 3, 5000, &err), 0);
    for (int i = 0; i < 5; i++) /* also before the rank sleeps: none may be lost */
        CHECK_INT(wake_all(w, &err), 0);
    wake_close(&w);
    for (int i = 0; i < 3; i++) {
        int status;
        waitpid(ranks[i], &status, 0);
        CHECK_INT(WEXITSTATUS(status), 0);
    }
}

static int connect_to(const struct wake_info *info)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(info->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_INT(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void test_a_connection_given_up_is_not_counted(void)
{
    struct wake *w;
    struct wake_info info;
    struct err err;
    CHECK_INT(wake_listen(&w, &info, &err), 0);
    int impatient = connect_to(&info);
    CHECK_INT(send(impatient, info.token, sizeof(info.token), 0), sizeof(info.token));
    close(impatient); /* a rank that waited too long for the leader and comes again below */
    pid_t rank = fork();
    if (rank == 0)
        _exit(rank_main(&info, 2));
    CHECK_INT(wake_accept(w, 1, 10000, &err), 0);
    CHECK_INT(wake_all(w, &err), 0);
    CHECK_INT(wake_all(w, &err), 0);
    wake_close(&w);
    int status;
    waitpid(rank, &status, 0);
    CHECK_INT(WEXITSTATUS(status), 0);
}

static void on_signal(int number)
{
    (void)number;
}

static void test_signals_do_not_outlast_the_deadline(void)
{
    struct wake *w;
    struct wake_info info;
    struct err err = {0};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    sigaction(SIGUSR2, &action, &before);
    CHECK_INT(wake_listen(&w, &info, &err), 0);
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        for (int i = 0; i < 20; i++) { /* the first may come before the wait */
            usleep(10000);
            kill(parent, SIGUSR2);
        }
        _exit(0);
    }
    alarm(30); /* one that hangs is a failure too */
    CHECK_INT(wake_accept(w, 1, 500, &err), -1);
    alarm(0);
    CHECK_CONTAINS(err.message, "0 of 1 ranks");
    wake_close(&w);
    waitpid(child, NULL, 0);
    sigaction(SIGUSR2, &before, NULL);
}

static void test_strangers_are_dropped(void)
{
    struct wake *w;
    struct wake_info info;
    struct err err;
    CHECK_INT(wake_listen(&w, &info, &err), 0);
    int stranger = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(info.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_INT(connect(stranger, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_INT(send(stranger, "0123456789abcdef", 16, 0), 16);
    pid_t rank = fork();
    if (rank == 0)
        _exit(rank_main(&info, 0));
    CHECK_INT(wake_accept(w, 1, 5000, &err), 0);
    char byte;
    struct pollfd p = {.fd = stranger, .events = POLLIN};
    CHECK_INT(poll(&p, 1, 5000), 1);
    CHECK(recv(stranger, &byte, 1, 0) <= 0); /* closed, never answered */
    close(stranger);
    wake_close(&w);
    int status;
    waitpid(rank, &status, 0);
    CHECK_INT(WEXITSTATUS(status), 0);
}

static void test_missing_ranks_are_counted(void)
{
    struct wake *w;
    struct wake_info info;
    struct err err;
    CHECK_INT(wake_listen(&w, &info, &err), 0);
    CHECK_INT(wake_accept(w, 2, 50, &err), -1);
    CHECK_CONTAINS(err.message, "0 of 2 ranks");
    wake_close(&w);
    struct wake *nobody = NULL;
    CHECK_INT(wake_connect(&nobody, &info, 100, &err), -1);
    CHECK_CONTAINS(err.message, "did not answer");
}

int main(void)
{
    TEST(test_each_wake_ends_one_sleep,
         "each wake ends one sleep, also one that comes later; the leader's end is seen");
    TEST(test_a_connection_given_up_is_not_counted, "a rank's connection that it gave up is not counted");
    TEST(test_signals_do_not_outlast_the_deadline,
         "signals do not keep the leader waiting behind its deadline");
    TEST(test_strangers_are_dropped, "a connection without the token is dropped and the ranks go on");
    TEST(test_missing_ranks_are_counted,
         "ranks that do not come, and a leader that is not there, are reported");
    return test_result();
}
