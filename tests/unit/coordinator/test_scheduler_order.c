/* Who goes first, where to, and who makes room: classes, tenants, deadlines, preemption, prefixes, room. */
#include "coordinator/scheduler.h"
#include "tests/test.h"

enum { REALTIME, INTERACTIVE, BATCH };

static const struct scheduler_limits limits = {.live_requests = 1024,
                                               .groups = 8,
                                               .queue_requests = 512,
                                               .prompt_bytes = 10000000,
                                               .group_wait_ms = 500,
                                               .prefix_places = 4096,
                                               .prefix_weight = 100};

static struct scheduler *fresh(void)
{
    return scheduler_new(&limits, &balancer_prefix);
}

static void ready_with(struct scheduler *s, uint32_t group, uint32_t sequences, uint64_t kv_tokens,
                       uint64_t rate)
{
    struct scheduler_group_info info = {.model = "m",
                                        .max_sequences = sequences,
                                        .kv_tokens = kv_tokens,
                                        .prefill_rate = rate,
                                        .decode_rate = rate};
    scheduler_group_ready(s, group, &info);
}

static void ready(struct scheduler *s, uint32_t group, uint32_t sequences)
{
    ready_with(s, group, sequences, 0, 1000);
}

/* 400 bytes: about 100 tokens; 100 to generate; a far deadline. */
static struct scheduler_submission ask(uint32_t request, uint32_t class, const char *tenant)
{
    return (struct scheduler_submission){.request = request,
                                         .model = "m",
                                         .tenant = tenant,
                                         .class = class,
                                         .bytes = 400,
                                         .max_tokens = 100,
                                         .deadline_ms = 3600000};
}

static int submit(struct scheduler *s, const struct scheduler_submission *in)
{
    struct err err = {0};
    struct scheduler_admission out;
    return scheduler_submit(s, in, 0, &out, &err) == 0 ? 0 : err.code;
}

static void put(struct scheduler *s, uint32_t request, uint32_t class, const char *tenant)
{
    struct scheduler_submission in = ask(request, class, tenant);
    CHECK_INT(submit(s, &in), 0);
}

/* The next action; a request of SCHEDULER_NONE when there is none. */
static struct scheduler_action next_at(struct scheduler *s, uint64_t now_ms)
{
    struct scheduler_action a = {.request = SCHEDULER_NONE};
    scheduler_step(s, now_ms, &a, 1);
    scheduler_check(s);
    return a;
}

static struct scheduler_action next(struct scheduler *s)
{
    return next_at(s, 0);
}

static uint32_t next_assigned(struct scheduler *s)
{
    struct scheduler_action a = next(s);
    CHECK_INT(a.kind, SCHEDULER_ASSIGN);
    return a.request;
}

static void over(struct scheduler *s, uint32_t request)
{
    struct scheduler_usage u = {.prompt_tokens = 101, .output_tokens = 100};
    scheduler_used(s, request, &u);
    scheduler_finished(s, request);
}

/* ---- classes ---- */
static void test_shares_of_classes(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    int served[3] = {0};
    for (uint32_t i = 0; i < 300; i++)
        put(s, i, i % 3, "t");
    for (int i = 0; i < 100; i++) { /* all classes have work all the time */
        uint32_t r = next_assigned(s);
        served[r % 3]++;
        over(s, r);
    }
    CHECK(served[REALTIME] >= 69 && served[REALTIME] <= 71);
    CHECK(served[INTERACTIVE] >= 24 && served[INTERACTIVE] <= 26);
    CHECK(served[BATCH] >= 4 && served[BATCH] <= 6);
    scheduler_free(&s);
}

static void test_below_its_share_goes_first(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    for (uint32_t i = 0; i < 20; i++)
        put(s, i, BATCH, "t");
    for (int i = 0; i < 10; i++)
        over(s, next_assigned(s));
    put(s, 100, REALTIME, "t");
    uint32_t r = next_assigned(s);
    CHECK_INT(r, 100);
    over(s, r);
    CHECK(next_assigned(s) < 20); /* alone, batch has everything */
    scheduler_free(&s);
}

/* ---- tenants ---- */
static void test_tenants_share_by_tokens(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    int served[2] = {0};
    for (uint32_t i = 0; i < 200; i++) { /* the first asks for prompts of four times the size */
        struct scheduler_submission in = ask(i, INTERACTIVE, i < 100 ? "large" : "small");
        in.bytes = i < 100 ? 3200 : 400;
        in.max_tokens = 50;
        CHECK_INT(submit(s, &in), 0);
    }
    for (int i = 0; i < 90; i++) {
        uint32_t r = next_assigned(s);
        struct scheduler_usage u = {.prompt_tokens = r < 100 ? 800 : 100, .output_tokens = 50};
        served[r >= 100] += (int)(u.prompt_tokens + 2 * u.output_tokens);
        scheduler_used(s, r, &u);
        scheduler_finished(s, r);
    }
    int difference = served[0] - served[1];
    CHECK(difference < 6000 &&
          difference > -6000); /* of about 20000 each: the bound that deadlines may use */
    CHECK(served[0] > 10000 && served[1] > 10000);
    scheduler_free(&s);
}

static void test_idle_tenants_earn_nothing(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    for (uint32_t i = 0; i < 150; i++)
        put(s, i, INTERACTIVE, "busy");
    for (int i = 0; i < 100; i++)
        over(s, next_assigned(s));
    for (uint32_t i = 200; i < 260; i++)
        put(s, i, INTERACTIVE, "late");
    int late = 0;
    for (int i = 0; i < 60; i++) {
        uint32_t r = next_assigned(s);
        late += r >= 200;
        over(s, r);
    }
    CHECK(late >= 20 && late <= 40); /* half, give or take the bound; not all sixty */
    scheduler_free(&s);
}

static void test_earliest_deadline_first(void)
{
    struct scheduler *s = fresh();
    uint64_t deadlines[] = {9000, 3000, 7000, 5000};
    uint32_t expected[] = {1, 3, 2, 0};
    for (uint32_t i = 0; i < 4; i++) {
        struct scheduler_submission in = ask(i, INTERACTIVE, i % 2 ? "a" : "b");
        in.deadline_ms = deadlines[i];
        CHECK_INT(submit(s, &in), 0);
    }
    ready(s, 0, 1);
    for (int i = 0; i < 4; i++) {
        uint32_t r = next_assigned(s);
        CHECK_INT(r, expected[i]);
        over(s, r);
    }
    scheduler_free(&s);
}

static void test_greedy_tenant_is_shed(void)
{
    struct scheduler_limits small = limits;
    small.queue_requests = 30;
    struct scheduler *s = scheduler_new(&small, &balancer_prefix);
    ready(s, 0, 1);
    put(s, 0, INTERACTIVE, "greedy");
    CHECK_INT(next_assigned(s), 0);
    for (uint32_t i = 1; i <= 30; i++)
        put(s, i, INTERACTIVE, "greedy");
    struct scheduler_submission more = ask(31, INTERACTIVE, "greedy");
    CHECK_INT(submit(s, &more), 429);
    put(s, 32, INTERACTIVE, "modest"); /* has room, at the cost of the one who holds it all */
    struct scheduler_action a = next(s);
    CHECK(a.kind == SCHEDULER_END && a.code == 429 && a.request == 30);
    CHECK_INT(scheduler_queued(s), 30);
    scheduler_free(&s);
}

static void test_lesser_classes_leave_room(void)
{
    struct scheduler_limits small = limits;
    small.queue_requests = 30;
    struct scheduler *s = scheduler_new(&small, &balancer_prefix);
    uint32_t next_request = 0, taken[3];
    ready(s, 0, 1);
    put(s, 1000, BATCH, "t");
    CHECK_INT(next_assigned(s), 1000);
    for (int class = BATCH; class >= REALTIME; class --) {
        int code = 0;
        for (taken[class] = 0; code == 0 && taken[class] < 100; next_request++) {
            struct scheduler_submission in = ask(next_request, (uint32_t) class, "t");
            code = submit(s, &in);
            taken[class] += code == 0;
        }
        CHECK_INT(code, 429);
        CHECK_INT(taken[class], class == REALTIME ? 3 : 15);
    }
    scheduler_free(&s);
}

/* ---- what cannot be done in time ---- */
static void teach_speed(struct scheduler *s)
{
    put(s, 1000, INTERACTIVE, "t");
    CHECK_INT(next_assigned(s), 1000);
    struct scheduler_usage u = {
        .prompt_tokens = 100, .output_tokens = 100, .prefill_us = 100000, .decode_us = 990000};
    scheduler_used(s, 1000, &u); /* 1000 tokens/s of prefill, 10 ms a token */
    scheduler_finished(s, 1000);
}

static void test_hopeless_deadlines_are_refused(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    struct scheduler_submission in = ask(1, INTERACTIVE, "t");
    in.deadline_ms = 500;         /* 100 ms of prefill and a second of generation */
    CHECK_INT(submit(s, &in), 0); /* nothing is known of the speed yet */
    scheduler_finished(s, 1);
    teach_speed(s);
    CHECK_INT(submit(s, &in), 408);
    in.deadline_ms = 2000;
    CHECK_INT(submit(s, &in), 0);
    CHECK_INT(scheduler_counts(s).late, 1);
    scheduler_free(&s);
}

static void test_a_known_length_is_held_against_the_deadline(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    teach_speed(s);
    struct scheduler_submission in = ask(1, INTERACTIVE, "t");
    in.max_tokens = 300; /* at most; some hundred are usual: two seconds may well do */
    in.deadline_ms = 2000;
    CHECK_INT(submit(s, &in), 0);
    in.request = 2;
    in.exact = true; /* three seconds of generation */
    CHECK_INT(submit(s, &in), 408);
    in.max_tokens = 100;
    in.deadline_ms = 60000;
    CHECK_INT(submit(s, &in), 0);
    scheduler_free(&s);
}

static void test_late_in_the_queue(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    teach_speed(s);
    put(s, 0, INTERACTIVE, "t");
    CHECK_INT(next_assigned(s), 0);
    struct scheduler_submission in = ask(1, INTERACTIVE, "t");
    in.deadline_ms = 3000;
    CHECK_INT(submit(s, &in), 0);
    over(s, 0);
    struct scheduler_action a = {.request = SCHEDULER_NONE};
    CHECK_INT(scheduler_step(s, 2500, &a, 1), 1); /* half a second is left for more than one of work */
    CHECK(a.kind == SCHEDULER_END && a.code == 408 && a.request == 1 && a.group == SCHEDULER_NONE);
    scheduler_free(&s);
}

static void test_long_waits_are_refused(void)
{
    struct scheduler_limits short_queue = limits;
    short_queue.queue_ms = 2000;
    struct scheduler *s = scheduler_new(&short_queue, &balancer_prefix);
    ready(s, 0, 1);
    struct err err = {0};
    struct scheduler_admission out = {0};
    int accepted = 0, code = 0;
    for (uint32_t i = 0; i < 100 && code == 0; i++) {
        struct scheduler_submission in = ask(i, INTERACTIVE, "t");
        code = scheduler_submit(s, &in, 0, &out, &err) == 0 ? 0 : err.code;
        accepted += code == 0;
        struct scheduler_action a;
        scheduler_step(s, 0, &a, 1);
    }
    CHECK_INT(code, 429);
    CHECK(accepted >= 10 && accepted <= 14); /* each takes about 0.2 s */
    CHECK(out.wait_ms > 2000 && out.retry_after_ms == out.wait_ms - 2000);
    scheduler_free(&s);
}

/* ---- preemption ---- */
static void test_realtime_preempts_batch(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 2);
    put(s, 0, BATCH, "t");
    put(s, 1, BATCH, "t");
    CHECK_INT(next_assigned(s), 0);
    CHECK_INT(next_assigned(s), 1);
    put(s, 2, INTERACTIVE, "t");
    CHECK_INT(next(s).request, SCHEDULER_NONE); /* that class waits its turn */
    put(s, 3, REALTIME, "t");
    CHECK_INT(next(s).request, SCHEDULER_NONE); /* it has patience */
    struct scheduler_action a = next_at(s, 50);
    CHECK(a.kind == SCHEDULER_PREEMPT && a.request == 1 && a.group == 0); /* it began last */
    CHECK_INT(next(s).request, SCHEDULER_NONE);                           /* one is enough */
    scheduler_yielded(s, 1);
    CHECK_INT(next_assigned(s), 3);
    CHECK_INT(scheduler_queued(s), 2);
    over(s, 3);
    CHECK_INT(next_assigned(s), 2);
    over(s, 2);
    CHECK_INT(next_assigned(s), 1);
    scheduler_free(&s);
}

static void test_preemption_ends(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    put(s, 0, BATCH, "t");
    CHECK_INT(next_assigned(s), 0);
    for (uint32_t i = 1; i <= SCHEDULER_MAX_PREEMPTIONS; i++) {
        put(s, i, REALTIME, "t");
        CHECK_INT(next_at(s, 50).kind, SCHEDULER_PREEMPT);
        scheduler_yielded(s, 0);
        CHECK_INT(next_assigned(s), i);
        over(s, i);
        CHECK_INT(next_assigned(s), 0);
    }
    put(s, 50, REALTIME, "t");
    CHECK_INT(next_at(s, 50).request, SCHEDULER_NONE); /* it has given way often enough */
    over(s, 0);
    CHECK_INT(next_assigned(s), 50);
    scheduler_free(&s);
}

static void test_cancelled_while_it_yields(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 1);
    put(s, 0, BATCH, "t");
    CHECK_INT(next_assigned(s), 0);
    put(s, 1, REALTIME, "t");
    CHECK_INT(next_at(s, 50).kind, SCHEDULER_PREEMPT);
    scheduler_ending(s, 0); /* its client left */
    CHECK_INT(next(s).request, SCHEDULER_NONE);
    scheduler_finished(s, 0);
    CHECK_INT(next_assigned(s), 1);
    scheduler_free(&s);
}

/* ---- where to ---- */
static struct prefix_key key_of(const char *conversation, uint64_t bytes)
{
    static char text[100000];
    struct prefix_key key;
    for (uint64_t i = 0; i < bytes; i++)
        text[i] = conversation[i % strlen(conversation)];
    prefix_key_make(&key, 1, text, bytes);
    return key;
}

static void test_conversation_returns(void)
{
    struct scheduler *s = fresh();
    for (uint32_t g = 0; g < 4; g++)
        ready(s, g, 4);
    uint32_t home[3];
    const char *talk[] = {"one talk ", "another ", "third"};
    for (uint32_t turn = 0; turn < 4; turn++)
        for (uint32_t c = 0; c < 3; c++) {
            struct prefix_key key = key_of(talk[c], 4000 + 1000 * turn);
            struct scheduler_submission in = ask(c, INTERACTIVE, "t");
            in.bytes = 4000 + 1000 * turn;
            in.prefix = &key;
            CHECK_INT(submit(s, &in), 0);
            struct scheduler_action a = next(s);
            CHECK_INT(a.kind, SCHEDULER_ASSIGN);
            if (turn == 0)
                home[c] = a.group;
            CHECK_INT(a.group, home[c]);
            struct scheduler_usage u = {.prompt_tokens = in.bytes / 4, .output_tokens = 100};
            scheduler_used(s, c, &u);
            scheduler_finished(s, c);
        }
    CHECK(home[0] != home[1] && home[1] != home[2] && home[0] != home[2]);
    CHECK(scheduler_counts(s).prefix_tokens > 6000);
    scheduler_free(&s);
}

/* Asks with the same prompt of 8000 bytes, and is told what was found cached. */
static void ask_again(struct scheduler *s, uint64_t found)
{
    struct prefix_key key = key_of("talk", 8000);
    struct scheduler_submission in = ask(0, INTERACTIVE, "t");
    in.bytes = 8000;
    in.prefix = &key;
    CHECK_INT(submit(s, &in), 0);
    CHECK_INT(next_assigned(s), 0);
    struct scheduler_usage u = {.prompt_tokens = 2000, .cached_tokens = found, .output_tokens = 100};
    scheduler_used(s, 0, &u);
    scheduler_finished(s, 0);
}

static void test_empty_caches_are_not_believed(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 4);
    for (int i = 0; i < 40; i++) /* what should be cached never is */
        ask_again(s, 0);
    uint64_t before = scheduler_counts(s).prefix_tokens;
    ask_again(s, 0);
    CHECK(scheduler_counts(s).prefix_tokens - before < 200); /* of about 1800 */
    for (int i = 0; i < 2000; i++)                           /* and now it is */
        ask_again(s, 1800);
    before = scheduler_counts(s).prefix_tokens;
    ask_again(s, 1800);
    CHECK(scheduler_counts(s).prefix_tokens - before > 1500);
    scheduler_free(&s);
}

static void test_lost_caches_are_forgotten(void)
{
    struct scheduler *s = fresh();
    ready(s, 0, 4);
    struct prefix_key key = key_of("talk", 8000);
    struct scheduler_submission in = ask(0, INTERACTIVE, "t");
    in.bytes = 8000;
    in.prefix = &key;
    CHECK_INT(submit(s, &in), 0);
    CHECK_INT(next_assigned(s), 0);
    over(s, 0);
    scheduler_group_gone(s, 0, 0);
    ready(s, 0, 4); /* a new epoch: its pages are empty */
    CHECK_INT(submit(s, &in), 0);
    CHECK_INT(next_assigned(s), 0);
    CHECK_INT(scheduler_counts(s).prefix_tokens, 0);
    scheduler_free(&s);
}

static void test_faster_groups_get_more(void)
{
    struct scheduler *s = fresh();
    ready_with(s, 0, 100, 0, 1000);
    ready_with(s, 1, 100, 0, 3000);
    int fast = 0;
    for (uint32_t i = 0; i < 80; i++)
        put(s, i, INTERACTIVE, "t");
    for (uint32_t i = 0; i < 80; i++)
        fast += next(s).group == 1;
    CHECK(fast >= 58 && fast <= 62);
    scheduler_free(&s);
}

static void test_unmeasured_groups_are_like_their_peers(void)
{
    struct scheduler *s = fresh();
    struct scheduler_group_info info = {.model = "m", .max_sequences = 16};
    uint32_t given[2] = {0};
    scheduler_group_ready(s, 0, &info);
    put(s, 0, INTERACTIVE, "t");
    CHECK_INT(next_assigned(s), 0);
    struct scheduler_usage fast = {
        .prompt_tokens = 100, .output_tokens = 100, .prefill_us = 1000, .decode_us = 9900};
    scheduler_used(s, 0, &fast); /* far faster than any assumption */
    scheduler_finished(s, 0);
    scheduler_group_ready(s, 1, &info);
    for (uint32_t i = 0; i < 8; i++)
        put(s, i, INTERACTIVE, "t");
    for (uint32_t i = 0; i < 8; i++)
        given[next(s).group]++;
    CHECK_INT(given[0], 4);
    CHECK_INT(given[1], 4);
    scheduler_free(&s);
}

static void test_room_is_not_promised_twice(void)
{
    struct scheduler *s = fresh();
    ready_with(s, 0, 8, 500, 1000); /* each takes about 201 */
    for (uint32_t i = 0; i < 4; i++)
        put(s, i, INTERACTIVE, "t");
    CHECK_INT(next_assigned(s), 0);
    CHECK_INT(next_assigned(s), 1);
    CHECK_INT(next(s).request, SCHEDULER_NONE);
    over(s, 0);
    CHECK_INT(next_assigned(s), 2);
    scheduler_free(&s);
}

static void test_large_request_is_not_starved(void)
{
    struct scheduler *s = fresh();
    ready_with(s, 0, 64, 2000, 1000);
    for (uint32_t i = 0; i < 8; i++) {
        put(s, i, INTERACTIVE, "small");
        next_assigned(s);
    }
    struct scheduler_submission large = ask(900, INTERACTIVE, "large");
    large.bytes = 7000; /* needs nearly all of it */
    CHECK_INT(submit(s, &large), 0);
    bool served = false;
    uint32_t oldest = 0, newest = 8;
    for (int i = 0; i < 200 && !served; i++) { /* small ones keep coming */
        put(s, newest % 512, INTERACTIVE, "small");
        newest++;
        over(s, oldest++ % 512);
        struct scheduler_action a;
        while ((a = next(s)).request != SCHEDULER_NONE)
            served |= a.request == 900;
        for (; oldest < newest && scheduler_assigned(s, 0) == 0 && !served; oldest++)
            break;
    }
    CHECK(served);
    scheduler_free(&s);
}

int main(void)
{
    TEST(test_shares_of_classes, "busy classes get their shares");
    TEST(test_below_its_share_goes_first, "a class below its share goes first, alone it gets everything");
    TEST(test_tenants_share_by_tokens, "busy tenants get the same tokens, not the same requests");
    TEST(test_idle_tenants_earn_nothing, "an idle tenant earns nothing");
    TEST(test_earliest_deadline_first, "the earliest deadline goes first");
    TEST(test_greedy_tenant_is_shed, "in a full queue the greediest tenant makes room");
    TEST(test_lesser_classes_leave_room, "a lesser class leaves room in the queue for those before it");
    TEST(test_hopeless_deadlines_are_refused, "what cannot meet its deadline is refused at once");
    TEST(test_a_known_length_is_held_against_the_deadline,
         "a length that is known is held against the deadline, one that is a bound is not");
    TEST(test_late_in_the_queue, "what can no longer meet its deadline is not run");
    TEST(test_long_waits_are_refused, "too long a wait is refused, with the time to try again");
    TEST(test_realtime_preempts_batch, "realtime takes the place of the batch request that began last");
    TEST(test_preemption_ends, "a request gives way three times at most");
    TEST(test_cancelled_while_it_yields, "a request may end while it gives way");
    TEST(test_conversation_returns, "a conversation returns to its pages");
    TEST(test_empty_caches_are_not_believed, "an index that promises what is not there is believed less");
    TEST(test_lost_caches_are_forgotten, "a group that was lost has nothing cached");
    TEST(test_faster_groups_get_more, "a group three times as fast gets three times the work");
    TEST(test_unmeasured_groups_are_like_their_peers,
         "a group that was not measured is taken for one like its peers");
    TEST(test_room_is_not_promised_twice, "KV room is not promised twice");
    TEST(test_large_request_is_not_starved, "a large request is not passed over for ever");
    return test_result();
}
