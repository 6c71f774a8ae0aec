/* A request for several answers takes a place for each at its group, and KV room for its prompt once. */
#include "coordinator/scheduler.h"
#include "tests/test.h"

enum { REALTIME, INTERACTIVE, BATCH };

static const struct scheduler_limits limits = {
    .live_requests = 64, .groups = 4, .queue_requests = 32, .prompt_bytes = 1000000, .group_wait_ms = 500};

static struct scheduler *with_group(uint32_t sequences, uint64_t kv_tokens)
{
    struct scheduler *s = scheduler_new(&limits, &balancer_least_loaded);
    struct scheduler_group_info info = {.model = "m",
                                        .max_sequences = sequences,
                                        .kv_tokens = kv_tokens,
                                        .prefill_rate = 1000,
                                        .decode_rate = 1000};
    scheduler_group_ready(s, 0, &info);
    return s;
}

/* 400 bytes are about 100 tokens; each answer has 50 at most. */
static void put(struct scheduler *s, uint32_t request, uint32_t class, uint32_t choices)
{
    struct err err;
    struct scheduler_admission out;
    struct scheduler_submission in = {.request = request,
                                      .model = "m",
                                      .class = class,
                                      .bytes = 400,
                                      .choices = choices,
                                      .max_tokens = 50,
                                      .deadline_ms = 3600000};
    CHECK_INT(scheduler_submit(s, &in, 0, &out, &err), 0);
}

/* What the next action is about; SCHEDULER_NONE: there is none. */
static uint32_t next(struct scheduler *s, uint64_t now_ms, enum scheduler_action_kind kind)
{
    struct scheduler_action a = {.kind = kind, .request = SCHEDULER_NONE};
    scheduler_step(s, now_ms, &a, 1);
    scheduler_check(s);
    CHECK_INT(a.kind, kind);
    return a.request;
}

static void test_places(void)
{
    struct scheduler *s = with_group(8, 0);
    put(s, 0, INTERACTIVE, 5);
    put(s, 1, INTERACTIVE, 4);
    put(s, 2, INTERACTIVE, 3);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 0);
    CHECK_INT(scheduler_assigned(s, 0), 5);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), SCHEDULER_NONE); /* the next in turn needs four of three */
    scheduler_finished(s, 0);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 1);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 2);
    CHECK_INT(scheduler_assigned(s, 0), 7);
    scheduler_free(&s);
}

static void test_larger_than_the_group(void)
{
    struct scheduler *s = with_group(4, 0);
    put(s, 0, INTERACTIVE, 1);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 0);
    put(s, 1, INTERACTIVE, 16);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), SCHEDULER_NONE);
    scheduler_finished(s, 0);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 1); /* alone: the group runs four at a time */
    put(s, 2, INTERACTIVE, 1);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), SCHEDULER_NONE);
    scheduler_finished(s, 1);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 2);
    scheduler_free(&s);
}

static void test_kv_room(void)
{
    struct scheduler *s = with_group(8, 600); /* a prompt of about 100 and 50 for each answer */
    put(s, 0, INTERACTIVE, 4);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 0); /* 301: four prompts would be 600 */
    put(s, 1, INTERACTIVE, 4);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), SCHEDULER_NONE);
    scheduler_finished(s, 1);
    put(s, 1, INTERACTIVE, 3);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 1);
    scheduler_free(&s);
}

static void test_preemption_makes_as_many_places(void)
{
    struct scheduler *s = with_group(4, 0);
    for (uint32_t i = 0; i < 4; i++) {
        put(s, i, BATCH, 1);
        CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), i);
    }
    put(s, 4, REALTIME, 3);
    CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), SCHEDULER_NONE); /* it waits a little first */
    for (uint32_t i = 0; i < 3; i++)
        CHECK_INT(next(s, 100, SCHEDULER_PREEMPT), 3 - i);
    CHECK_INT(next(s, 100, SCHEDULER_PREEMPT), SCHEDULER_NONE);
    for (uint32_t i = 1; i < 4; i++)
        scheduler_yielded(s, i);
    CHECK_INT(next(s, 100, SCHEDULER_ASSIGN), 4);
    CHECK_INT(scheduler_assigned(s, 0), 4);
    scheduler_free(&s);
}

static void test_usage_counts_each_answer(void)
{
    struct scheduler *s = with_group(8, 0);
    for (uint32_t i = 0; i < 200; i++) { /* 40 tokens an answer, four of them: 40 is what is learned */
        struct scheduler_usage u = {.prompt_tokens = 100, .output_tokens = 160, .decode_us = 39 * 1000};
        put(s, 0, INTERACTIVE, 4);
        CHECK_INT(next(s, 0, SCHEDULER_ASSIGN), 0);
        scheduler_used(s, 0, &u);
        scheduler_finished(s, 0);
    }
    struct err err = {0};
    struct scheduler_admission out;
    /* 100 ms of prefill at 1000 tokens/s and 40 tokens of 1 ms each: not 160. */
    struct scheduler_submission in = {
        .request = 0, .model = "m", .class = INTERACTIVE, .bytes = 400, .choices = 4, .deadline_ms = 150};
    CHECK_INT(scheduler_submit(s, &in, 0, &out, &err), 0);
    in.request = 1;
    in.deadline_ms = 130;
    CHECK_INT(scheduler_submit(s, &in, 0, &out, &err), -1);
    CHECK_INT(err.code, 408);
    CHECK_INT(scheduler_live(s), 1);
    scheduler_free(&s);
}

int main(void)
{
    TEST(test_places, "a request takes a place for each of its answers");
    TEST(test_larger_than_the_group, "one with more answers than a group has places gets a group for itself");
    TEST(test_kv_room, "the prompt's KV room is taken once, that of answers for each");
    TEST(test_preemption_makes_as_many_places,
         "as many batch requests give way as a realtime one has answers");
    TEST(test_usage_counts_each_answer, "what is learned of answers is learned of each");
    return test_result();
}
