#include "coordinator/cluster.h"
#include "tests/test.h"

static struct peer worker(const char *name, int connection)
{
    struct peer p = {.size = 4, .role = CURVE_WORKER};
    memcpy(p.id, &connection, 4);
    snprintf(p.name, sizeof(p.name), "%s", name);
    return p;
}

static struct wire_stage stages[2] = {{.first_layer = 0, .last_layer = 3},
                                      {.first_layer = 3, .last_layer = 5}};

static struct wire_hello hello(const char *group, uint64_t incarnation, uint64_t epoch)
{
    stages[0].host = stages[1].host = wire_string("node");
    return (struct wire_hello){.group = wire_string(group),
                               .epoch = epoch,
                               .incarnation = incarnation,
                               .model = wire_string("tiny"),
                               .weights = wire_string("ab"),
                               .kernels = wire_string("portable"),
                               .kv_type = wire_string("f32"),
                               .tensor = 1,
                               .max_sequences = 4,
                               .stages = stages,
                               .stage_count = 2};
}

/* 0 or the code of the refusal; *out the group. */
static int join(struct cluster *c, const struct peer *p, const struct wire_hello *h, uint64_t now_ms,
                struct group **out)
{
    struct err err = {0};
    bool was_live, forgotten;
    return cluster_hello(c, p, h, now_ms, out, &was_live, &forgotten, &err) == 0 ? 0 : err.code;
}

static int current_code(struct cluster *c, const struct peer *p, const char *name, uint64_t epoch)
{
    struct err err = {0};
    return cluster_current(c, p, wire_string(name), epoch, &err) ? 0 : err.code;
}

static void test_epochs_grow(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct group *g;
    struct wire_hello h = hello("g", 7, 0);
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    CHECK_INT(g->epoch, 1);
    CHECK_INT(join(c, &p, &h, 10, &g), 0);
    CHECK_INT(g->epoch, 2);
    h.epoch = 40; /* it lived under another coordinator before */
    CHECK_INT(join(c, &p, &h, 20, &g), 0);
    CHECK_INT(g->epoch, 41);
    h.epoch = UINT64_MAX;
    CHECK_INT(join(c, &p, &h, 30, &g), 400);
    CHECK_INT(g->stage_count, 2);
    CHECK_STR(g->stages[1].host, "node");
    cluster_free(&c);
}

static void test_rehello_says_that_it_was_live(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1), reconnected = worker("g", 2);
    struct wire_hello h = hello("g", 7, 0);
    struct group *g;
    struct err err;
    bool was_live, forgotten;
    CHECK_INT(cluster_hello(c, &p, &h, 0, &g, &was_live, &forgotten, &err), 0);
    CHECK(!was_live && !forgotten);
    CHECK_INT(cluster_hello(c, &reconnected, &h, 10, &g, &was_live, &forgotten, &err), 0);
    CHECK(was_live);
    cluster_lost(g, 0);
    CHECK_INT(cluster_hello(c, &p, &h, 20, &g, &was_live, &forgotten, &err), 0);
    CHECK(!was_live);
    cluster_free(&c);
}

static void test_a_group_that_flaps_rests(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct group *g;
    uint64_t now_ms = 0, rests[10];
    for (int i = 0; i < 10; i++) { /* lost a second after each hello, back at once as a new job */
        struct wire_hello h = hello("g", 7 + (uint64_t)i, 0);
        h.ended = wire_string(i ? "SIGSEGV" : NULL);
        CHECK_INT(join(c, &p, &h, now_ms, &g), 0);
        CHECK(i == 0 || (g->ended_epoch == (uint64_t)i && strcmp(g->ended, "SIGSEGV") == 0));
        rests[i] = g->state == GROUP_RESTING ? g->rests_until_ms - now_ms : 0;
        if (g->state == GROUP_RESTING) {
            CHECK_INT(cluster_rest_due_ms(c), g->rests_until_ms);
            CHECK(cluster_rested(c, g->rests_until_ms - 1) == NULL);
            CHECK(cluster_rested(c, g->rests_until_ms) == g && g->state == GROUP_READY);
        }
        cluster_lost(g, now_ms += 1000);
    }
    const uint64_t want[10] = {0, 0, 0, 1000, 2000, 4000, 8000, 16000, 32000, 60000};
    CHECK(memcmp(rests, want, sizeof(want)) == 0);
    struct wire_hello h = hello("g", 99, 0);
    CHECK_INT(join(c, &p, &h, now_ms, &g), 0);
    CHECK(cluster_rested(c, UINT64_MAX - 1) == g);
    cluster_lost(g, now_ms += 30000); /* it lasted: forgiven */
    h = hello("g", 100, 0);
    CHECK_INT(join(c, &p, &h, now_ms, &g), 0);
    CHECK_INT(g->state, GROUP_READY);
    h = hello("g", 100, 0); /* the same job again: it lives, whatever ended its epoch */
    h.ended = wire_string("SIGSEGV");
    cluster_lost(g, now_ms);
    CHECK_INT(join(c, &p, &h, now_ms, &g), 0);
    CHECK(g->ended_epoch == g->epoch - 1 && g->ended[0] == 0);
    cluster_free(&c);
}

static void test_second_job_is_refused_while_the_lease_runs(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer first = worker("g", 1), second = worker("g", 2);
    struct wire_hello h1 = hello("g", 7, 0), h2 = hello("g", 8, 0);
    struct group *g;
    CHECK_INT(join(c, &first, &h1, 0, &g), 0);
    CHECK_INT(join(c, &second, &h2, 999, &g), 409);
    CHECK_INT(current_code(c, &first, "g", 1), 0); /* the refusal changed nothing */
    CHECK_INT(join(c, &second, &h2, 1000, &g), 0);
    CHECK_INT(g->epoch, 2);
    CHECK_INT(current_code(c, &first, "g", 1), 409);
    cluster_free(&c);
}

static void test_other_key_cannot_take_over(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer owner = worker("g", 1), other = worker("g-0", 2);
    struct wire_hello h = hello("g-0", 7, 0);
    struct group *g;
    CHECK_INT(join(c, &owner, &h, 0, &g), 0);
    CHECK_INT(join(c, &other, &h, 0, &g), 409); /* same incarnation, another identity */
    cluster_free(&c);
}

static void test_keys_serve_their_own_groups(void)
{
    CHECK(cluster_may_serve("g", wire_string("g")));
    CHECK(cluster_may_serve("g", wire_string("g-1")));
    CHECK(!cluster_may_serve("g", wire_string("g1")));
    CHECK(!cluster_may_serve("g-1", wire_string("g")));
    CHECK(!cluster_may_serve("", wire_string("g")));
}

static void test_messages_need_epoch_and_connection(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1), reconnected = worker("g", 2), foreign = worker("h", 3);
    struct wire_hello h = hello("g", 7, 5);
    struct group *g;
    CHECK_INT(current_code(c, &p, "g", 6), 409); /* before hello */
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    CHECK_INT(current_code(c, &p, "g", 6), 0);
    CHECK_INT(current_code(c, &p, "g", 5), 409);
    CHECK_INT(current_code(c, &p, "g", 7), 409);
    CHECK_INT(current_code(c, &reconnected, "g", 6), 409);
    CHECK_INT(current_code(c, &foreign, "g", 6), 403);
    cluster_lost(g, 0);
    CHECK_INT(current_code(c, &p, "g", 6), 409);
    cluster_free(&c);
}

static void test_lease_runs_from_the_last_heartbeat(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello h = hello("g", 7, 0);
    struct wire_heartbeat beat = {.sequence = 1, .pages_used = 9};
    struct group *g;
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    CHECK_INT(cluster_due_ms(c), 1000);
    CHECK(cluster_heartbeat(c, g, &beat, 600));
    CHECK_INT(g->pages_used, 9);
    CHECK(cluster_expired(c, 1599) == NULL);
    CHECK(cluster_expired(c, 1600) == g);
    cluster_lost(g, 0);
    CHECK(cluster_expired(c, 1600) == NULL);
    CHECK(cluster_due_ms(c) == UINT64_MAX);
    cluster_free(&c);
}

static void test_a_heartbeat_tells_of_the_stages_that_there_are(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello h = hello("g", 7, 0);
    struct wire_stage_time times[] = {
        {.busy_us = 70, .wait_us = 5, .bubble_us = 3}, {.busy_us = 80}, {.busy_us = 90}};
    struct wire_heartbeat beat = {.sequence = 1, .times = times, .time_count = 3};
    struct group *g;
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    CHECK_INT(g->stage_count, 2);
    CHECK(cluster_heartbeat(c, g, &beat, 100));
    CHECK_INT(g->stages[0].busy_us, 70);
    CHECK_INT(g->stages[1].busy_us, 80);
    CHECK_INT(g->stages[0].wait_us, 5);
    CHECK_INT(g->stages[0].bubble_us, 3);
    beat = (struct wire_heartbeat){.sequence = 2}; /* nothing new is no zero */
    CHECK(cluster_heartbeat(c, g, &beat, 200));
    CHECK_INT(g->stages[0].busy_us, 70);
    cluster_free(&c);
}

static void test_old_heartbeats_renew_nothing(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello h = hello("g", 7, 0);
    struct group *g;
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    CHECK(cluster_heartbeat(c, g, &(struct wire_heartbeat){.sequence = 0}, 100)); /* the first may be 0 */
    CHECK(cluster_heartbeat(c, g, &(struct wire_heartbeat){.sequence = 5}, 200));
    CHECK(!cluster_heartbeat(c, g, &(struct wire_heartbeat){.sequence = 5, .steps = 1}, 900));
    CHECK(!cluster_heartbeat(c, g, &(struct wire_heartbeat){.sequence = 4, .steps = 1}, 900));
    CHECK_INT(g->steps, 0);
    CHECK_INT(cluster_due_ms(c), 1200);
    CHECK_INT(join(c, &p, &h, 1000, &g), 0);
    CHECK(
        cluster_heartbeat(c, g, &(struct wire_heartbeat){.sequence = 1}, 1100)); /* a new epoch counts anew */
    cluster_free(&c);
}

static void test_epochs_stay_between_floor_and_ceiling(void)
{
    struct cluster *c = cluster_new(4, 3000);
    struct peer p = worker("g", 1);
    struct group *g;
    bool was_live, forgotten;
    struct err err = {0};
    struct wire_hello h = hello("g", 7, 0);
    cluster_epochs(c, 1000, 1002);
    for (uint64_t i = 1; i <= 2; i++) {
        CHECK_INT(cluster_hello(c, &p, &h, 0, &g, &was_live, &forgotten, &err), 0);
        CHECK_INT(g->epoch, 1000 + i);
    }
    CHECK_INT(cluster_hello(c, &p, &h, 0, &g, &was_live, &forgotten, &err), -1);
    CHECK_INT(err.code, 409);
    CHECK_INT(cluster_epoch_wanted(c), 1003);
    cluster_epochs(c, 1000, 2000);
    CHECK_INT(cluster_hello(c, &p, &h, 0, &g, &was_live, &forgotten, &err), 0);
    CHECK_INT(g->epoch, 1003);
    h.epoch = 1ull << 50; /* nobody here gave that: it gets the next one and takes nothing along */
    CHECK_INT(cluster_hello(c, &p, &h, 0, &g, &was_live, &forgotten, &err), 0);
    CHECK_INT(g->epoch, (1ull << 50) + 1);
    CHECK_INT(cluster_epoch_wanted(c), 1003);
    cluster_free(&c);
}

static void test_remembered_groups(void)
{
    struct cluster *c = cluster_new(2, 3000);
    struct peer p = worker("g", 1);
    struct group *g;
    bool was_live, forgotten;
    struct err err = {0};
    struct cluster_memory m = {.name = "g", .epoch = 5, .incarnation = 7, .lost_soon = 2, .held = false};
    struct cluster_memory steady = {
        .name = "g-s", .epoch = 9, .incarnation = 8, .lost_soon = 9, .age_ms = 60000};
    CHECK(cluster_remember(c, &m) && cluster_remember(c, &steady));
    CHECK(!cluster_remember(c, &(struct cluster_memory){.name = "more"}));
    CHECK_INT(cluster_due_ms(c), UINT64_MAX); /* they have no lease that ends */
    struct wire_hello h = hello("g", 99, 0);  /* another job: the one before died while nobody looked */
    h.ended = wire_string("SIGSEGV");
    CHECK_INT(cluster_hello(c, &p, &h, 100, &g, &was_live, &forgotten, &err), 0);
    CHECK(g->epoch == 6 && g->ended_epoch == 5 && !was_live && !forgotten && g->state == GROUP_RESTING);
    CHECK_STR(g->ended, "SIGSEGV");
    CHECK_INT(g->lost_soon, 3);
    h = hello("g-s", 8, 9); /* the same job, which lived all the time */
    CHECK_INT(cluster_hello(c, &p, &h, 100, &g, &was_live, &forgotten, &err), 0);
    CHECK(g->epoch == 10 && g->state == GROUP_READY && g->lost_soon == 0 && !g->remembered);
    cluster_free(&c);
}

static void test_bounded_registry(void)
{
    struct cluster *c = cluster_new(2, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello a = hello("g-a", 1, 0), b = hello("g-b", 2, 0), d = hello("g-d", 3, 9);
    struct group *g, *lost;
    struct err err;
    bool was_live, forgotten;
    CHECK_INT(join(c, &p, &a, 0, &lost), 0);
    CHECK_INT(join(c, &p, &b, 0, &g), 0);
    CHECK_INT(join(c, &p, &d, 0, &g), 503);
    uint32_t slot = lost->slot;
    cluster_lost(lost, 0);
    CHECK_INT(cluster_hello(c, &p, &d, 0, &g, &was_live, &forgotten, &err), 0);
    CHECK(forgotten && !was_live);
    CHECK_INT(g->slot, slot);
    CHECK_INT(g->epoch, 10);
    cluster_free(&c);
}

static void test_a_held_group_stays_held(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello h = hello("g", 7, 0);
    struct group *g;
    CHECK(cluster_find(c, wire_string("g")) == NULL);
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    cluster_hold(g);
    CHECK_INT(g->state, GROUP_HELD);
    CHECK_INT(current_code(c, &p, "g", 1), 0); /* it lives, and says what it says */
    CHECK_INT(join(c, &p, &h, 10, &g), 0);     /* its next epoch */
    CHECK_INT(g->state, GROUP_HELD);
    cluster_lost(g, 20);
    CHECK_INT(g->state, GROUP_LOST);
    CHECK_INT(join(c, &p, &h, 30, &g), 0);
    CHECK_INT(g->state, GROUP_HELD);
    cluster_release(g);
    CHECK_INT(g->state, GROUP_READY);
    cluster_draining(g);
    cluster_hold(g); /* it leaves already; whoever comes back under its name is held */
    CHECK_INT(g->state, GROUP_DRAINING);
    cluster_release(g);
    CHECK_INT(g->state, GROUP_DRAINING);
    cluster_free(&c);
}

static void test_the_fastest_of_the_last_heartbeats_counts(void)
{
    struct cluster *c = cluster_new(4, 1000);
    struct peer p = worker("g", 1);
    struct wire_hello h = hello("g", 7, 0);
    struct group *g;
    static const uint64_t trips[] = {0, 900, 300, 0, 5000, 6000, 7000, 8000};
    static const uint64_t want[] = {0, 900, 300, 300, 300, 300, 300, 5000};
    CHECK_INT(join(c, &p, &h, 0, &g), 0);
    for (size_t i = 0; i < ARRAY_LEN(trips); i++) {
        struct wire_heartbeat b = {.sequence = i + 1, .round_trip_us = trips[i]};
        CHECK(cluster_heartbeat(c, g, &b, 10));
        CHECK_INT(g->round_trip_us, want[i]);
    }
    cluster_free(&c);
}

int main(void)
{
    TEST(test_a_held_group_stays_held,
         "a group that is held stays so under all its epochs, until it is let go");
    TEST(test_the_fastest_of_the_last_heartbeats_counts,
         "the fastest of the last heartbeats says how far it is");
    TEST(test_epochs_grow, "every hello gives an epoch above all known ones");
    TEST(test_rehello_says_that_it_was_live, "a hello of a live group says that its old epoch was live");
    TEST(test_a_group_that_flaps_rests, "a group that is lost again and again rests, longer each time");
    TEST(test_second_job_is_refused_while_the_lease_runs, "a second job is refused while the lease runs");
    TEST(test_other_key_cannot_take_over, "another key cannot take a live group over");
    TEST(test_keys_serve_their_own_groups, "a key serves its own name and name-anything");
    TEST(test_messages_need_epoch_and_connection,
         "messages count under the current epoch and connection alone");
    TEST(test_lease_runs_from_the_last_heartbeat, "a lease runs from the last heartbeat");
    TEST(test_a_heartbeat_tells_of_the_stages_that_there_are, "a heartbeat tells what steps took the stages");
    TEST(test_old_heartbeats_renew_nothing, "old and repeated heartbeats change nothing");
    TEST(test_epochs_stay_between_floor_and_ceiling, "epochs lie above the floor, and up to what is stored");
    TEST(test_remembered_groups, "what another run knew of groups counts: epoch, deaths, and one unseen");
    TEST(test_bounded_registry, "the registry is bounded and forgets the group lost longest ago");
    return test_result();
}
