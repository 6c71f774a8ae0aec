#include "worker/infer/mailbox.h"

#include <poll.h>
#include <pthread.h>

#include "tests/test.h"

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void test_commands_keep_their_order(void)
{
    struct mailbox *m;
    struct command c;
    mailbox_open(&m);
    for (uint64_t i = 0; i < 1000; i++)
        mailbox_send(m, &(struct command){.kind = COMMAND_CANCEL, .request.handle = i});
    for (uint64_t i = 0; i < 1000; i++)
        CHECK(mailbox_take(m, &c) && c.request.handle == i);
    CHECK(!mailbox_take(m, &c));
    mailbox_close(&m);
    CHECK(m == NULL);
}

static void test_descriptor_follows_the_events(void)
{
    struct mailbox *m;
    struct event e;
    mailbox_open(&m);
    CHECK(!readable(mailbox_event_fd(m)));
    mailbox_emit(m, &(struct event){.kind = EVENT_TOKEN, .id = 5});
    CHECK(readable(mailbox_event_fd(m)));
    CHECK(mailbox_next(m, &e) && e.id == 5);
    CHECK(!mailbox_next(m, &e));
    CHECK(!readable(mailbox_event_fd(m)));
    mailbox_close(&m);
}

static void test_prompts_left_behind_are_freed(void)
{
    struct mailbox *m;
    mailbox_open(&m);
    mailbox_send(m, &(struct command){.kind = COMMAND_SUBMIT, .request.prompt = malloc(64)});
    mailbox_close(&m); /* the leak checker of the debug build is the judge */
    CHECK(m == NULL);
}

static void *emit_many(void *context)
{
    for (int i = 0; i < 3 * MAILBOX_MAX_EVENTS; i++)
        mailbox_emit(context, &(struct event){.kind = EVENT_TOKEN, .index = i});
    return NULL;
}

static void test_a_full_queue_makes_the_writer_wait(void)
{
    struct mailbox *m;
    pthread_t thread;
    struct event e;
    int next = 0;
    mailbox_open(&m);
    pthread_create(&thread, NULL, emit_many, m);
    while (next < 3 * MAILBOX_MAX_EVENTS) {
        struct pollfd p = {.fd = mailbox_event_fd(m), .events = POLLIN};
        CHECK_INT(poll(&p, 1, 10000), 1);
        while (mailbox_next(m, &e)) {
            CHECK(e.index == next);
            next++;
        }
    }
    pthread_join(thread, NULL);
    mailbox_close(&m);
}

int main(void)
{
    TEST(test_commands_keep_their_order, "commands keep their order through growth");
    TEST(test_descriptor_follows_the_events, "the descriptor is readable exactly while events are pending");
    TEST(test_prompts_left_behind_are_freed, "prompts left in a closed mailbox are freed");
    TEST(test_a_full_queue_makes_the_writer_wait,
         "a full event queue makes the writer wait and loses nothing");
    return test_result();
}
