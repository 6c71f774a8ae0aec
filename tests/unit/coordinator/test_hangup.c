#include "coordinator/hangup.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "tests/test.h"

struct bed {
    int set, near, far;
};

static struct bed make_bed(uint32_t asked)
{
    int pair[2];
    struct bed b = {.set = epoll_create1(EPOLL_CLOEXEC)};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    b.near = pair[0];
    b.far = pair[1];
    struct epoll_event e = {.events = asked, .data.ptr = &test_failures};
    CHECK_INT(epoll_ctl(b.set, EPOLL_CTL_ADD, b.near, &e), 0);
    return b;
}

static void end_bed(struct bed *b)
{
    close(b->far);
    close(b->near);
    close(b->set);
}

/* What is told of the descriptor; 0: nothing. */
static uint32_t told(struct bed *b)
{
    struct epoll_event e[4];
    int n = epoll_wait(b->set, e, 4, 0);
    CHECK(n == 0 || (n == 1 && e[0].data.ptr == &test_failures));
    return n == 1 ? e[0].events : 0;
}

static int ask(struct bed *b, uint32_t asked)
{
    struct epoll_event e = {.events = asked, .data.ptr = &test_failures};
    return epoll_ctl(b->set, EPOLL_CTL_MOD, b->near, &e);
}

static void a_hang_up_is_told_as_what_was_asked(void)
{
    static const uint32_t asked[] = {EPOLLIN, EPOLLOUT, 0};
    for (size_t i = 0; i < ARRAY_LEN(asked); i++) {
        struct bed b = make_bed(asked[i]);
        shutdown(b.near, SHUT_RDWR);
        CHECK_INT(told(&b), asked[i]);
        end_bed(&b);
    }
    CHECK(hangup_in_force());
}

static void a_hang_up_that_nobody_asked_for_waits_until_somebody_reads(void)
{
    struct bed b = make_bed(EPOLLIN);
    CHECK_INT(told(&b), 0);
    CHECK_INT(ask(&b, 0), 0);
    CHECK_INT(write(b.far, "x", 1), 1);
    close(b.far);
    CHECK_INT(told(&b), 0);
    CHECK_INT(ask(&b, 0), 0);
    CHECK_INT(ask(&b, EPOLLIN), 0);
    CHECK_INT(told(&b), EPOLLIN);
    char c;
    CHECK_INT(read(b.near, &c, 1), 1);
    CHECK_INT(told(&b), EPOLLIN);
    CHECK_INT(read(b.near, &c, 1), 0);
    b.far = -1;
    end_bed(&b);
}

static void what_was_taken_out_is_told_of_no_more(void)
{
    struct bed b = make_bed(EPOLLOUT);
    CHECK_INT(told(&b), EPOLLOUT);
    CHECK_INT(epoll_ctl(b.set, EPOLL_CTL_DEL, b.near, NULL), 0);
    CHECK_INT(told(&b), 0);
    CHECK_INT(ask(&b, EPOLLOUT), -1);
    CHECK_INT(errno, ENOENT);
    CHECK_INT(epoll_ctl(b.set, EPOLL_CTL_DEL, b.near, NULL), -1);
    CHECK_INT(errno, ENOENT);
    end_bed(&b);
}

static void what_was_closed_can_be_added_again_and_twice_it_cannot(void)
{
    struct bed b = make_bed(EPOLLIN);
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = &test_failures};
    CHECK_INT(epoll_ctl(b.set, EPOLL_CTL_ADD, b.near, &e), -1);
    CHECK_INT(errno, EEXIST);
    CHECK_INT(told(&b), 0);
    int number = b.near;
    close(b.near);
    b.near = dup(b.far);
    CHECK_INT(b.near, number);
    CHECK_INT(epoll_ctl(b.set, EPOLL_CTL_ADD, b.near, &e), 0);
    CHECK(told(&b) & EPOLLOUT);
    end_bed(&b);
}

int main(void)
{
    TEST(a_hang_up_is_told_as_what_was_asked, "a hang-up is told as what was asked");
    TEST(a_hang_up_that_nobody_asked_for_waits_until_somebody_reads,
         "a hang-up that nobody asked for waits until somebody reads");
    TEST(what_was_taken_out_is_told_of_no_more, "what was taken out is told of no more");
    TEST(what_was_closed_can_be_added_again_and_twice_it_cannot,
         "what was closed can be added again and twice it cannot");
    return test_result();
}
