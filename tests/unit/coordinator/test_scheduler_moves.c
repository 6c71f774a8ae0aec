/* What becomes of requests when their group is gone or drains, and of those that are held back or run alone.
 */
#include "tests/scheduler_bed.h"

static void test_lost_group_gives_its_requests_back(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    scheduler_group_gone(s, 0, 0);
    CHECK_INT(scheduler_due_ms(s), 0);
    check_moved(s, 0, 0);
    CHECK_INT(scheduler_live(s), 1);
    ready(s, 0, "m", 1); /* back under a new epoch */
    check_assigned(s, 0, 0);
    scheduler_finished(s, 0);
    CHECK_INT(scheduler_live(s), 0);
    scheduler_free(&s);
}

static void test_what_ends_is_not_moved(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 0);
    scheduler_ending(s, 0); /* its client left before the group was lost */
    scheduler_group_gone(s, 0, 0);
    scheduler_ending(s, 1); /* and this one's right after */
    check_two_ended(s, 0, 502);
    CHECK_INT(scheduler_live(s), 0);
    scheduler_free(&s);
}

static void test_moved_goes_first(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    ready(s, 1, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 1);
    struct err err;
    struct scheduler_admission out;
    struct scheduler_submission realtime = {.request = 2, .model = "m", .class = 0, .deadline_ms = 5000};
    CHECK_INT(scheduler_submit(s, &realtime, 0, &out, &err), 0);
    scheduler_group_gone(s, 1, 0);
    check_moved(s, 0, 1);
    scheduler_finished(s, 0);
    check_assigned(s, 1, 0); /* though the other is of a better class, with an earlier deadline */
    scheduler_free(&s);
}

static void ready_of_class(struct scheduler *s, uint32_t group, uint64_t numeric)
{
    struct scheduler_group_info info = {.model = "m", .max_sequences = 1, .numeric = numeric};
    scheduler_group_ready(s, group, &info);
}

static void test_tokens_bind_to_their_numeric_class(void)
{
    struct scheduler *s = fresh();
    ready_of_class(s, 0, 7);
    ready_of_class(s, 1, 7);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 1);
    scheduler_progress(s, 0, 1);
    scheduler_group_gone(s, 0, 0);
    check_moved(s, 0, 0);
    ready_of_class(s, 2, 8);
    check_nothing(s, 0); /* it waits for a place in its class */
    scheduler_group_draining(s, 1, false);
    check_assigned(s, 0, 2); /* until none takes work any more */
    scheduler_check(s);
    scheduler_free(&s);
}

static void test_without_tokens_any_class_will_do(void)
{
    struct scheduler *s = fresh();
    ready_of_class(s, 0, 7);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    ready_of_class(s, 1, 7);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 1);
    scheduler_group_gone(s, 0, 0);
    check_moved(s, 0, 0);
    ready_of_class(s, 2, 8);
    check_assigned(s, 0, 2);
    scheduler_free(&s);
}

static void test_draining_group_hands_over_what_fits(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 0);
    scheduler_group_draining(s, 0, true);
    check_nothing(s, 0); /* nobody else is there: they end where they are */
    ready(s, 1, "m", 1);
    struct scheduler_action a = only_action(s, 0);
    CHECK(a.kind == SCHEDULER_PREEMPT && a.request == 0 && a.group == 0);
    check_nothing(s, 0);
    scheduler_yielded(s, 0);
    check_assigned(s, 0, 1);
    scheduler_check(s);
    scheduler_free(&s);
}

static void test_a_group_that_is_let_go_takes_work_again(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    scheduler_group_draining(s, 0, true);
    CHECK_INT(submit(s, 1), 0);
    check_nothing(s, 0);
    scheduler_group_resumes(s, 0);
    check_assigned(s, 1, 0); /* and what ran there stayed */
    scheduler_group_resumes(s, 0);
    scheduler_check(s);
    ready(s, 1, "m", 1); /* nothing is handed over any more */
    check_nothing(s, 0);
    scheduler_free(&s);
}

static void test_a_far_group_comes_last(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    ready(s, 1, "m", 2);
    scheduler_group_link(s, 0, 60000000); /* a minute: longer than anything here takes */
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 1);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 1, 1);
    CHECK_INT(submit(s, 2), 0);
    check_assigned(s, 2, 0); /* better than none */
    scheduler_group_link(s, 0, 19000);
    scheduler_finished(s, 2);
    scheduler_finished(s, 0);
    CHECK_INT(submit(s, 3), 0);
    check_assigned(s, 3, 0); /* the links are equal again, and its queue is shorter */
    scheduler_check(s);
    scheduler_free(&s);
}

static void test_held_back_and_alone(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 2);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    scheduler_hold(s, 1);
    check_nothing(s, 0);
    scheduler_release(s, 1, true);
    check_nothing(s, 0); /* the only group has another request: it is kept, and takes no more */
    CHECK_INT(submit(s, 2), 0);
    check_nothing(s, 0);
    scheduler_check(s);
    scheduler_finished(s, 0);
    check_assigned(s, 1, 0);
    check_nothing(s, 0);
    scheduler_check(s);
    scheduler_shared(s, 1); /* it has a token more */
    check_assigned(s, 2, 0);
    scheduler_check(s);
    scheduler_free(&s);
}

static void test_held_requests_keep_their_deadline(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    scheduler_hold(s, 0);
    check_nothing(s, 9999);
    check_ended(s, 10000, 0, SCHEDULER_NONE, 408);
    CHECK_INT(scheduler_live(s), 0);
    scheduler_free(&s);
}

static int submit_of(struct scheduler *s, uint32_t request, const char *tenant, uint64_t bytes)
{
    struct err err = {0};
    struct scheduler_admission out;
    struct scheduler_submission in = {.request = request,
                                      .model = "",
                                      .tenant = tenant,
                                      .class = SCHEDULER_INTERACTIVE,
                                      .bytes = bytes,
                                      .deadline_ms = 10000};
    return scheduler_submit(s, &in, 0, &out, &err) == 0 ? 0 : err.code;
}

static void test_nobody_is_shed_for_who_is_refused(void)
{
    const struct scheduler_limits wide = {
        .live_requests = 32, .groups = 4, .queue_requests = 16, .prompt_bytes = 1000, .group_wait_ms = 500};
    struct scheduler *s = scheduler_new(&wide, &balancer_least_loaded);
    for (uint32_t i = 0; i < 16; i++)
        CHECK_INT(submit_of(s, i, "greedy", 50), 0);
    CHECK_INT(submit_of(s, 16, "late", 300), 429); /* its prompt has no room, whoever goes */
    check_nothing(s, 0);
    CHECK_INT(submit_of(s, 16, "late", 100), 0);
    check_ended(s, 0, 15, SCHEDULER_NONE, 429);
    scheduler_free(&s);
}

int main(void)
{
    TEST(test_lost_group_gives_its_requests_back, "what a lost group held waits again");
    TEST(test_what_ends_is_not_moved, "a request whose client has its outcome is not moved");
    TEST(test_moved_goes_first, "what was at a lost group goes before all that waits");
    TEST(test_tokens_bind_to_their_numeric_class, "tokens bind to a numeric class while it takes work");
    TEST(test_without_tokens_any_class_will_do, "without tokens any numeric class will do");
    TEST(test_a_group_that_is_let_go_takes_work_again, "a drained group that is let go takes work again");
    TEST(test_a_far_group_comes_last, "a group behind a slow link gets what nobody else has room for");
    TEST(test_draining_group_hands_over_what_fits, "a draining group hands over what others have room for");
    TEST(test_held_back_and_alone, "a request may be held back, and be given an empty group for itself");
    TEST(test_held_requests_keep_their_deadline, "who is held back keeps its deadline");
    TEST(test_nobody_is_shed_for_who_is_refused, "nobody goes from the queue for somebody who is refused");
    return test_result();
}
