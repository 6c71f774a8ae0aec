#include "worker/infer/occupancy.h"

#include <stdlib.h>

#include "tests/test.h"

/* Two stages of so many threads; each waits from 1000 on, at 2000 the first runs until 5000, then the second
 * until 9000. What of the second's wait was taken. */
static uint64_t in_turn(int threads, int processors)
{
    struct occupancy_shared both = {0};
    struct occupancy a, b;
    occupancy_init(&a, &both, threads, processors);
    occupancy_init(&b, &both, threads, processors);
    occupancy_wake(&a, 1000);
    occupancy_wake(&b, 1000);
    CHECK_INT(occupancy_run(&a, 2000), 0);
    occupancy_wait(&a, 5000);
    uint64_t taken = occupancy_run(&b, 5100);
    occupancy_wait(&b, 9000);
    CHECK_INT(occupancy_run(&a, 9200), threads >= processors ? 3900 : taken * 3900 / 3000);
    return taken;
}

static void test_stages_that_take_turns(void)
{
    CHECK_INT(in_turn(2, 2), 3000); /* the first has all there are */
    CHECK_INT(in_turn(4, 2), 3000); /* and more */
    CHECK_INT(in_turn(1, 2), 0);    /* each has one of its own */
    CHECK_INT(in_turn(2, 3), 1500); /* one of three is free, for one of two threads */
    CHECK_INT(in_turn(16, 32), 0);
}

/* Of many stages that take turns, each waits for all others. */
static void test_many_stages(void)
{
    enum { STAGES = 5 };
    struct occupancy_shared all = {0};
    struct occupancy o[STAGES];
    uint64_t now = 77;
    for (int i = 0; i < STAGES; i++) {
        occupancy_init(&o[i], &all, 8, 8);
        occupancy_wake(&o[i], now);
    }
    for (int step = 0; step < 20; step++)
        for (int i = 0; i < STAGES; i++, now += 10) { /* ten between two of them */
            CHECK_INT(occupancy_run(&o[i], now), step ? 100 * (STAGES - 1) : 100 * i);
            now += 100;
            occupancy_wait(&o[i], now);
        }
}

static void test_what_was_slept_does_not_count(void)
{
    struct occupancy_shared both = {0};
    struct occupancy a, b;
    occupancy_init(&a, &both, 2, 2);
    occupancy_init(&b, &both, 2, 2);
    occupancy_run(&a, 100);
    occupancy_wait(&a, 400);
    occupancy_wake(&b, 500);
    CHECK_INT(occupancy_run(&b, 600), 0);
    CHECK_INT(occupancy_run(&a, 590), 0); /* a clock that is behind */
    occupancy_wait(&a, 700);
    occupancy_wait(&b, 700);
}

int main(void)
{
    TEST(test_stages_that_take_turns,
         "of a wait, the time counts in which no processor is left for the stage");
    TEST(test_many_stages, "stages that take turns wait for all others, and lose nothing by it");
    TEST(test_what_was_slept_does_not_count, "what was slept does not count, and time never goes back");
    return test_result();
}
