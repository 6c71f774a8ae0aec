#include "coordinator/together.h"

#include "tests/test.h"

#define S 1000000ull /* a second, in microseconds */

/* Three processors over a second; what is not said is zero. */
static struct together_sample sample(const uint32_t idle[3])
{
    return (struct together_sample){.elapsed_us = S, .turns = 300, .here = 1, .count = 3, .idle = idle};
}

static const uint32_t idle_all[3] = {960, 950, 970}, idle_none[3] = {100, 0, 499},
                      busy_here[3] = {960, 0, 970};

/* Together on processor 1 since `now_ms`. */
static struct together gathered(uint64_t now_ms)
{
    struct together t;
    struct together_sample s = sample(idle_all);
    together_init(&t);
    CHECK_INT(together_decide(&t, &s, now_ms), 1);
    return t;
}

static void test_they_gather_where_they_are(void)
{
    gathered(5);
}

static void test_they_gather_where_there_is_room(void)
{
    struct together t;
    struct together_sample s = sample(busy_here);
    together_init(&t);
    CHECK_INT(together_decide(&t, &s, 0), 2);
    s = sample(idle_all);
    s.here = TOGETHER_APART;
    together_init(&t);
    CHECK_INT(together_decide(&t, &s, 0), 2);
}

static void test_they_stay_apart_without_room(void)
{
    struct together t;
    struct together_sample s = sample(idle_none);
    together_init(&t);
    CHECK_INT(together_decide(&t, &s, 0), TOGETHER_APART);
    s = sample(idle_all);
    s.count = 1;
    CHECK_INT(together_decide(&t, &s, 1000), TOGETHER_APART);
    s = sample(idle_all);
    s.run_us = S / 4;
    CHECK_INT(together_decide(&t, &s, 2000), TOGETHER_APART);
    s.run_us = S / 4 - 1000;
    CHECK_INT(together_decide(&t, &s, 3000), 1);
}

static void test_a_flood_parts_them(void)
{
    struct together t = gathered(0);
    const uint32_t mine[3] = {960, 500, 970};
    struct together_sample s = sample(mine);
    s.run_us = S / 2; /* all that is not idle there is their own */
    CHECK_INT(together_decide(&t, &s, 1000), 1);
    s.run_us = S / 2 + 1000;
    CHECK_INT(together_decide(&t, &s, 2000), TOGETHER_APART);
}

static void test_others_move_them(void)
{
    struct together t = gathered(0);
    const uint32_t half[3] = {960, 520, 700}, little_better[3] = {700, 520, 760}, others[3] = {960, 480, 700};
    struct together_sample s = sample(little_better);
    CHECK_INT(together_decide(&t, &s, 1000), 1);
    s = sample(half);
    CHECK_INT(together_decide(&t, &s, 2000), 0);
    t = gathered(0);
    s = sample(others);
    CHECK_INT(together_decide(&t, &s, 1000), 0);
}

static void test_others_part_them(void)
{
    struct together t = gathered(0);
    struct together_sample s = sample(idle_none);
    CHECK_INT(together_decide(&t, &s, 1000), TOGETHER_APART);
}

static void test_waiting_for_others_parts_them(void)
{
    struct together t = gathered(0);
    struct together_sample s = sample(idle_all);
    s.run_us = 10000;
    s.wait_us = 10000 + 300 * 50; /* as long as they ran, for each other; and 50 us each time for others */
    CHECK_INT(together_decide(&t, &s, 1000), 1);
    s.wait_us += 50;
    CHECK_INT(together_decide(&t, &s, 2000), TOGETHER_APART);
}

static void test_one_accident_parts_nobody(void)
{
    struct together t = gathered(0);
    struct together_sample s = sample(idle_all);
    s.turns = 2;
    s.wait_us = 1999;
    CHECK_INT(together_decide(&t, &s, 1000), 1);
    s.wait_us = 2000;
    CHECK_INT(together_decide(&t, &s, 2000), TOGETHER_APART);
}

static void test_waiting_moves_them_to_a_better_place(void)
{
    struct together t = gathered(0);
    struct together_sample s = sample(busy_here);
    s.wait_us = S / 10;
    CHECK_INT(together_decide(&t, &s, 1000), 2);
}

static void test_rests_grow(void)
{
    struct together t;
    struct together_sample room = sample(idle_all), none = sample(idle_none);
    uint64_t now_ms = 0;
    together_init(&t);
    for (uint64_t rest = TOGETHER_REST_MS; rest < 4 * TOGETHER_MAX_REST_MS; rest *= 2) {
        uint64_t bounded = rest < TOGETHER_MAX_REST_MS ? rest : TOGETHER_MAX_REST_MS;
        CHECK_INT(together_decide(&t, &room, now_ms), 1);
        CHECK_INT(together_decide(&t, &none, now_ms += 500), TOGETHER_APART);
        CHECK_INT(together_decide(&t, &room, now_ms += bounded - 1), TOGETHER_APART);
        now_ms++;
    }
}

static void test_a_try_that_lasted_makes_rests_short(void)
{
    struct together t = gathered(0);
    struct together_sample room = sample(idle_all), none = sample(idle_none);
    together_decide(&t, &none, 500);
    CHECK_INT(together_decide(&t, &room, 1500), 1);
    CHECK_INT(together_decide(&t, &none, 1500 + 8 * 2 * TOGETHER_REST_MS + 1), TOGETHER_APART);
    uint64_t parted_ms = 1500 + 8 * 2 * TOGETHER_REST_MS + 1;
    CHECK_INT(together_decide(&t, &room, parted_ms + TOGETHER_REST_MS - 1), TOGETHER_APART);
    CHECK_INT(together_decide(&t, &room, parted_ms + TOGETHER_REST_MS), 1);
}

static void test_who_is_moved_rests(void)
{
    struct together t = gathered(0);
    struct together_sample room = sample(idle_all);
    together_part(&t, 100);
    CHECK_INT(together_decide(&t, &room, 100 + TOGETHER_REST_MS - 1), TOGETHER_APART);
    CHECK_INT(together_decide(&t, &room, 100 + TOGETHER_REST_MS), 1);
}

int main(void)
{
    TEST(test_they_gather_where_they_are, "threads gather where the deciding one runs");
    TEST(test_they_gather_where_there_is_room, "where that is loaded, or not known, they gather elsewhere");
    TEST(test_they_stay_apart_without_room, "without room, or with much to do, they stay apart");
    TEST(test_a_flood_parts_them, "more than half of a processor parts them");
    TEST(test_others_move_them, "they move to a processor that is clearly better");
    TEST(test_others_part_them, "others on every processor part them");
    TEST(test_waiting_for_others_parts_them,
         "waiting for others parts them, waiting for each other does not");
    TEST(test_one_accident_parts_nobody, "one short wait parts nobody");
    TEST(test_waiting_moves_them_to_a_better_place, "who waits where another place is better goes there");
    TEST(test_rests_grow, "each rest is twice as long, up to a bound");
    TEST(test_a_try_that_lasted_makes_rests_short, "a try that lasted makes the rests short again");
    TEST(test_who_is_moved_rests, "who was moved by others rests too");
    return test_result();
}
