#include "tests/scheduler_bed.h"

static void test_first_come_first_served(void)
{
    struct scheduler *s = fresh();
    for (uint32_t i = 0; i < 3; i++)
        CHECK_INT(submit(s, i), 0);
    check_nothing(s, 0);
    ready(s, 0, "m", 1);
    check_assigned(s, 0, 0);
    CHECK_INT(scheduler_assigned(s, 0), 1);
    check_nothing(s, 0);
    scheduler_finished(s, 0);
    check_assigned(s, 1, 0);
    scheduler_finished(s, 1);
    check_assigned(s, 2, 0);
    scheduler_free(&s);
}

static void test_queue_is_bounded(void)
{
    struct scheduler *s = fresh();
    for (uint32_t i = 0; i < 4; i++)
        CHECK_INT(submit(s, i), 0);
    CHECK_INT(submit(s, 4), 429);
    scheduler_finished(s, 2); /* cancelled by its client */
    CHECK_INT(submit(s, 4), 0);
    CHECK_INT(scheduler_queued(s), 4);
    scheduler_free(&s);
}

static void test_bytes_are_bounded(void)
{
    struct scheduler *s = fresh();
    CHECK_INT(submit_for(s, 0, "", 1001, 0), 413);
    CHECK_INT(submit_for(s, 0, "", 700, 0), 0);
    CHECK_INT(submit_for(s, 1, "", 301, 0), 429);
    CHECK_INT(submit_for(s, 1, "", 300, 0), 0);
    scheduler_finished(s, 0);
    CHECK_INT(scheduler_bytes(s), 300);
    CHECK_INT(submit_for(s, 0, "", 700, 0), 0);
    scheduler_free(&s);
}

static void test_unknown_models_are_refused(void)
{
    struct scheduler *s = fresh();
    CHECK_INT(submit_for(s, 0, "m", 1, 0), 0); /* no group was ever seen: it may still come */
    ready(s, 0, "m", 4);
    CHECK_INT(submit_for(s, 1, "other", 1, 0), 404);
    scheduler_group_gone(s, 0, 0);
    CHECK_INT(submit_for(s, 1, "m", 1, 0), 0); /* known, though lost just now */
    scheduler_free(&s);
}

static void test_several_models_need_a_name(void)
{
    struct scheduler *s = fresh();
    CHECK_INT(submit(s, 0), 0);
    ready(s, 0, "m", 1);
    ready(s, 1, "n", 1);
    CHECK_INT(submit(s, 1), 400);
    check_ended(s, 0, 0, SCHEDULER_NONE, 400); /* it came before either; a guess would be silent */
    scheduler_free(&s);
}

static void test_full_model_does_not_block_another(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    ready(s, 1, "n", 1);
    CHECK_INT(submit_for(s, 0, "m", 1, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit_for(s, 1, "m", 1, 0), 0);
    CHECK_INT(submit_for(s, 2, "n", 1, 0), 0);
    check_assigned(s, 2, 1);
    scheduler_free(&s);
}

static void test_deadline_in_queue(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit_for(s, 1, "m", 1, 1000), 0);
    CHECK(scheduler_due_ms(s) <= 10000);
    check_ended(s, 10000, 0, 0, 408); /* the running one first: its group must confirm */
    check_nothing(s, 10999);
    check_ended(s, 11000, 1, SCHEDULER_NONE, 408);
    CHECK_INT(scheduler_live(s), 1);
    scheduler_free(&s);
}

static void test_timed_out_request_holds_its_sequence(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    check_ended(s, 10000, 0, 0, 408);
    CHECK_INT(submit_for(s, 1, "m", 1, 10000), 0);
    check_nothing(s, 10000);
    scheduler_finished(s, 0); /* the group confirms */
    check_assigned(s, 1, 0);
    scheduler_free(&s);
}

static void test_no_group_for_a_while(void)
{
    struct scheduler *s = fresh();
    CHECK_INT(submit(s, 0), 0);
    check_nothing(s, 499);
    check_ended(s, 500, 0, SCHEDULER_NONE, 503);
    scheduler_free(&s);
}

static void test_wait_counts_from_loss(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    check_nothing(s, 2000); /* it waits behind a live group: no 503 */
    scheduler_group_gone(s, 0, 2000);
    check_moved(s, 2000, 0);
    check_nothing(s, 2499);
    CHECK_INT(scheduler_due_ms(s), 2500);
    check_two_ended(s, 2500, 503);
    scheduler_free(&s);
}

static void test_unassigned_goes_first(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    CHECK_INT(submit(s, 1), 0);
    check_assigned(s, 0, 0);
    scheduler_unassign(s, 0);
    scheduler_group_gone(s, 0, 0);
    check_nothing(s, 0); /* it was not lost with the group that never got it */
    ready(s, 1, "m", 1);
    check_assigned(s, 0, 1);
    scheduler_free(&s);
}

static void test_draining_group_gets_nothing(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 4);
    scheduler_group_draining(s, 0, false);
    CHECK_INT(submit(s, 0), 0);
    check_nothing(s, 0);
    scheduler_free(&s);
}

static void test_drain(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, "m", 1);
    CHECK_INT(submit(s, 0), 0);
    check_assigned(s, 0, 0);
    CHECK_INT(submit(s, 1), 0);
    scheduler_drain(s, 3000);
    CHECK_INT(submit(s, 2), 503);
    check_ended(s, 100, 1, SCHEDULER_NONE, 503);
    CHECK_INT(scheduler_due_ms(s), 3000);
    check_nothing(s, 2999);
    check_ended(s, 3000, 0, 0, 503);
    scheduler_finished(s, 0);
    CHECK_INT(scheduler_live(s), 0);
    scheduler_free(&s);
}

static void test_idle_needs_no_timer(void)
{
    struct scheduler *s = fresh();
    CHECK(scheduler_due_ms(s) == SCHEDULER_NEVER);
    ready(s, 0, "m", 4);
    check_nothing(s, 0);
    CHECK(scheduler_due_ms(s) == SCHEDULER_NEVER);
    scheduler_free(&s);
}

static void test_actions_are_bounded(void)
{
    struct scheduler *s = fresh();
    for (uint32_t i = 0; i < 4; i++)
        CHECK_INT(submit(s, i), 0);
    ready(s, 0, "m", 8);
    struct scheduler_action action;
    for (uint32_t i = 0; i < 4; i++) { /* one at a time, none forgotten */
        CHECK_INT(scheduler_step(s, 0, &action, 1), 1);
        CHECK_INT(action.request, i);
    }
    CHECK_INT(scheduler_step(s, 0, &action, 1), 0);
    scheduler_free(&s);
}

/* ---- random events against a model that knows only the rules ---- */
enum seen { IDLE, WAITS, HOLDS, WAITS_ALONE, RUNS, YIELDS, ENDS }; /* of a request, as its owner sees it */

struct world {
    struct scheduler *s;
    unsigned long long random;
    uint64_t now_ms;
    enum seen seen[8];
    bool alone[8]; /* it was given a group for itself, and nothing has cleared it */
    uint32_t group[8];
    int outcomes[8]; /* of the present life of each request */
    bool live[4];
    uint32_t sequences[4];
    long accepted, ended, moved, alone_runs;
};

static unsigned pick(struct world *w, unsigned n)
{
    return (unsigned)(test_random(&w->random) % n);
}

static void leave(struct world *w, uint32_t request)
{
    CHECK_INT(w->outcomes[request], 1);
    w->seen[request] = IDLE;
    w->ended++;
}

/* Nobody comes to one that runs alone, and it comes to nobody. */
static void check_company(struct world *w, uint32_t request, uint32_t group)
{
    for (uint32_t q = 0; q < 8; q++)
        if (q != request && (w->seen[q] == RUNS || w->seen[q] == YIELDS || w->seen[q] == ENDS) &&
            w->group[q] == group)
            CHECK(!w->alone[q] && w->seen[request] != WAITS_ALONE);
}

static void take_actions(struct world *w)
{
    struct scheduler_action a[3];
    size_t n;
    while ((n = scheduler_step(w->s, w->now_ms, a, 3)) > 0)
        for (size_t i = 0; i < n; i++) {
            uint32_t q = a[i].request;
            if (a[i].kind == SCHEDULER_ASSIGN) {
                CHECK((w->seen[q] == WAITS || w->seen[q] == WAITS_ALONE) && w->live[a[i].group]);
                w->alone_runs += w->seen[q] == WAITS_ALONE;
                check_company(w, q, a[i].group);
                w->seen[q] = RUNS;
                w->group[q] = a[i].group;
                continue;
            }
            if (a[i].kind == SCHEDULER_PREEMPT) {
                CHECK(w->seen[q] == RUNS && w->group[q] == a[i].group);
                w->seen[q] = YIELDS;
                continue;
            }
            if (a[i].kind == SCHEDULER_MOVE) {
                CHECK((w->seen[q] == RUNS || w->seen[q] == YIELDS) && !w->live[w->group[q]]);
                w->seen[q] = WAITS;
                w->alone[q] = false;
                w->moved++;
                continue;
            }
            if (w->seen[q] != ENDS)
                w->outcomes[q]++; /* the client is told */
            if (a[i].group == SCHEDULER_NONE)
                leave(w, q);
            else
                w->seen[q] = ENDS;
        }
}

static void random_request_event(struct world *w)
{
    uint32_t q = pick(w, 8);
    struct err err;
    struct scheduler_admission out;
    switch (w->seen[q]) {
    case IDLE: {
        const char *models[] = {"", "m", "n"};
        struct scheduler_submission in = {.request = q,
                                          .model = models[pick(w, 3)],
                                          .tenant = pick(w, 2) ? "a" : "b",
                                          .class = pick(w, 3),
                                          .bytes = pick(w, 400),
                                          .max_tokens = pick(w, 300),
                                          .deadline_ms = w->now_ms + 1 + pick(w, 2000)};
        if (scheduler_submit(w->s, &in, w->now_ms, &out, &err) == 0) {
            w->seen[q] = WAITS;
            w->alone[q] = false;
            w->outcomes[q] = 0;
            w->accepted++;
        }
        break;
    }
    case WAITS: /* the client cancels, or it is held for a while */
        if (pick(w, 2)) {
            scheduler_hold(w->s, q);
            w->seen[q] = HOLDS;
            break;
        }
        scheduler_finished(w->s, q);
        w->outcomes[q]++;
        leave(w, q);
        break;
    case YIELDS:
        if (pick(w, 2)) {
            scheduler_yielded(w->s, q);
            w->seen[q] = w->alone[q] ? WAITS_ALONE : WAITS;
            break;
        }
        __attribute__((fallthrough)); /* it ended before the group heard of it */
    case RUNS:
        w->outcomes[q]++;
        if (pick(w, 3)) {
            scheduler_finished(w->s, q);
            leave(w, q);
        } else { /* the client left */
            scheduler_ending(w->s, q);
            w->seen[q] = ENDS;
        }
        break;
    case HOLDS:
        if (pick(w, 3)) {
            w->alone[q] = pick(w, 2);
            scheduler_release(w->s, q, w->alone[q]);
            w->seen[q] = w->alone[q] ? WAITS_ALONE : WAITS;
            break;
        }
        __attribute__((fallthrough));
    case WAITS_ALONE:
        scheduler_finished(w->s, q);
        w->outcomes[q]++;
        leave(w, q);
        break;
    case ENDS: /* the group confirms */
        scheduler_finished(w->s, q);
        leave(w, q);
        break;
    }
}

static void random_group_event(struct world *w)
{
    uint32_t g = pick(w, 4);
    if (w->live[g] && pick(w, 6) == 0) {
        scheduler_group_draining(w->s, g, pick(w, 2));
    } else if (w->live[g] && pick(w, 5) == 0) {
        scheduler_group_resumes(w->s, g);
        scheduler_group_link(w->s, g, pick(w, 3) * 50000);
    } else if (w->live[g] && pick(w, 3) == 0) {
        scheduler_group_gone(w->s, g, w->now_ms);
        w->live[g] = false;
        take_actions(w); /* its requests wait again before anything else speaks of them */
    } else if (!w->live[g] && pick(w, 2)) {
        w->sequences[g] = 1 + pick(w, 3);
        struct scheduler_group_info info = {
            .model = g < 3 ? "m" : "n", .max_sequences = w->sequences[g], .numeric = 1 + pick(w, 2)};
        scheduler_group_ready(w->s, g, &info);
        w->live[g] = true;
    }
}

/* What groups report of what they run. */
static void random_report(struct world *w)
{
    uint32_t q = pick(w, 8);
    if (w->seen[q] != RUNS && w->seen[q] != YIELDS)
        return;
    scheduler_progress(w->s, q, 1 + pick(w, 400));
    if (pick(w, 2)) { /* a token more clears a suspect */
        scheduler_shared(w->s, q);
        w->alone[q] = false;
    }
    if (pick(w, 4) == 0)
        scheduler_used(w->s, q,
                       &(struct scheduler_usage){.prompt_tokens = pick(w, 200),
                                                 .cached_tokens = pick(w, 300),
                                                 .output_tokens = pick(w, 100),
                                                 .prefill_us = pick(w, 3) * 50000,
                                                 .decode_us = pick(w, 3) * 50000});
}

static void check_bounds(struct world *w)
{
    uint32_t live = 0, waiting = 0, on[4] = {0};
    for (uint32_t q = 0; q < 8; q++) {
        live += w->seen[q] != IDLE;
        waiting += w->seen[q] == WAITS;
        if (w->seen[q] == RUNS || w->seen[q] == YIELDS || w->seen[q] == ENDS)
            on[w->group[q]]++;
    }
    CHECK_INT(scheduler_live(w->s), live);
    CHECK_INT(scheduler_queued(w->s), waiting);
    CHECK(scheduler_bytes(w->s) <= 1000);
    for (uint32_t g = 0; g < 4; g++) {
        CHECK_INT(scheduler_assigned(w->s, g), on[g]);
        CHECK(!w->live[g] || on[g] <= w->sequences[g]);
    }
}

static void test_random_events(void)
{
    struct world w = {.s = fresh(), .random = 20261121};
    for (int step = 0; step < 10000 && test_failures == 0; step++) {
        w.now_ms += pick(&w, 40);
        unsigned kind = pick(&w, 8);
        if (kind < 5)
            random_request_event(&w);
        else if (kind < 6)
            random_report(&w);
        else
            random_group_event(&w);
        take_actions(&w);
        check_bounds(&w);
        scheduler_check(w.s);
        CHECK(scheduler_due_ms(w.s) > w.now_ms); /* nothing that is due was left: the loop would spin */
    }
    scheduler_drain(w.s, w.now_ms);
    take_actions(&w);
    for (uint32_t g = 0; g < 4; g++)
        scheduler_group_gone(w.s, g, w.now_ms);
    take_actions(&w);
    CHECK_INT(scheduler_live(w.s), 0);
    CHECK_INT(scheduler_bytes(w.s), 0);
    CHECK_INT(w.ended, w.accepted);
    printf("# %ld accepted, %ld moved, %ld ran alone\n", w.accepted, w.moved, w.alone_runs);
    CHECK(w.accepted > 400 && w.moved > 30 && w.alone_runs > 30);
    CHECK_INT(scheduler_counts(w.s).moved, w.moved);
    CHECK(scheduler_counts(w.s).preempted > 10);
    scheduler_free(&w.s);
}

int main(void)
{
    TEST(test_first_come_first_served, "requests are served in the order they came");
    TEST(test_queue_is_bounded, "a full queue refuses with 429 and has room again after a cancel");
    TEST(test_bytes_are_bounded,
         "prompts are bounded in bytes: 413 when too long, 429 when there is no room");
    TEST(test_unknown_models_are_refused, "a model that no group ever served is refused with 404");
    TEST(test_several_models_need_a_name, "with several models a request must name one");
    TEST(test_full_model_does_not_block_another, "a model without a free group does not hold up another's");
    TEST(test_deadline_in_queue, "a deadline ends waiting and running requests with 408");
    TEST(test_timed_out_request_holds_its_sequence, "a sequence stays taken until its group confirms");
    TEST(test_no_group_for_a_while, "a request waits a while for a group, then gets 503");
    TEST(test_wait_counts_from_loss, "that while counts from the loss of the last group");
    TEST(test_unassigned_goes_first, "an assignment that was not delivered goes back to the head");
    TEST(test_draining_group_gets_nothing, "a draining group gets nothing new");
    TEST(test_drain, "a drain ends the queue at once and the running at its deadline");
    TEST(test_idle_needs_no_timer, "an idle scheduler needs no timer");
    TEST(test_actions_are_bounded, "a small action array loses nothing");
    TEST(test_random_events, "10000 random events: one outcome each, bounds kept, nothing left behind");
    return test_result();
}
