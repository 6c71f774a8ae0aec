#include "coordinator/tuner.h"

#include <math.h>

#include "tests/test.h"

/* Serves requests whose time is least at `best`: a parabola over the logarithm, times chance. Each outcome
 * comes `delay` requests later. Returns the share of them that was given another value than the last. */
struct world {
    struct tuner t;
    unsigned long long random;
    double best, depth, chance;
    uint64_t now_ms;
    uint32_t marks[64];
    double took[64];
};

static double uniform(struct world *w)
{
    return ((double)(test_random(&w->random) % 1000000) + 0.5) / 1e6;
}

static void serve(struct world *w, int requests, uint32_t delay)
{
    for (int i = 0; i < requests; i++) {
        uint32_t slot = (uint32_t)i % delay;
        if (w->marks[slot])
            tuner_outcome(&w->t, w->marks[slot], w->took[slot], 100);
        double far = log2((double)tuner_value(&w->t) / w->best), noise = 0;
        for (int k = 0; k < 4; k++)
            noise += uniform(w) - 0.5;
        w->now_ms += 1 + test_random(&w->random) % 20;
        w->took[slot] = 100 * exp(w->depth * far * far + w->chance * noise);
        w->marks[slot] = tuner_given(&w->t, 10, w->now_ms);
    }
}

static struct world world(uint64_t begin, uint64_t low, uint64_t high, double best)
{
    struct world w = {.random = 5, .best = best, .depth = 0.05, .chance = 1};
    tuner_init(&w.t, begin, low, high);
    return w;
}

static void test_finds_the_best(void)
{
    static const double best[] = {3, 50, 900, 6400};
    for (size_t i = 0; i < ARRAY_LEN(best); i++) {
        struct world w = world(100, 1, 10000, best[i]);
        serve(&w, 100000, 7);
        double far = log2((double)w.t.centre / best[i]);
        CHECK(fabs(far) <= 2);
        CHECK(w.t.moves > 0 || i == 1);
    }
}

static void test_stays_where_nothing_matters(void)
{
    struct world w = world(100, 1, 10000, 100);
    w.depth = w.chance = 0;
    serve(&w, 100000, 7);
    CHECK_INT(w.t.centre, 100);
    CHECK_INT(w.t.moves, 0);
}

static void test_keeps_its_bounds(void)
{
    struct world w = world(500, 100, 700, 100000);
    for (int i = 0; i < 20000; i++) {
        serve(&w, 1, 1);
        CHECK(tuner_value(&w.t) >= 100 && tuner_value(&w.t) <= 700);
    }
    CHECK_INT(w.t.centre, 700);
    struct world one = world(500, 300, 300, 1);
    serve(&one, 1000, 1);
    CHECK_INT(tuner_value(&one.t), 300);
}

static void test_follows_a_change(void)
{
    struct world w = world(100, 1, 10000, 3200);
    serve(&w, 60000, 7);
    CHECK(w.t.centre >= 800);
    w.best = 10;
    serve(&w, 300000, 7);
    CHECK(w.t.centre <= 40);
}

static void test_rests_when_it_knows(void)
{
    struct world w = world(100, 1, 10000, 100);
    serve(&w, 100000, 7);
    int tried = 0;
    for (int i = 0; i < 20000; i++) {
        serve(&w, 1, 1);
        tried += tuner_value(&w.t) != w.t.centre;
    }
    CHECK(tried < 5000);
}

static void test_outcomes_that_never_come(void)
{
    struct world w = world(100, 1, 10000, 1000);
    for (int i = 0; i < 100000; i++)
        tuner_given(&w.t, 10, (uint64_t)i);
    CHECK_INT(w.t.centre, 100);
    CHECK_INT(w.t.rounds, 0);
    serve(&w, 60000, 7); /* and it still works */
    CHECK(w.t.centre > 100);
}

static void test_what_is_spoiled_says_nothing(void)
{
    struct world w = world(100, 1, 10000, 1000);
    for (int i = 0; i < 500; i++) {
        serve(&w, 200, 7);
        tuner_spoil(&w.t);
    }
    CHECK_INT(w.t.centre, 100);
}

int main(void)
{
    TEST(test_finds_the_best, "it ends within a factor of four of the best value");
    TEST(test_stays_where_nothing_matters, "it stays where nothing matters");
    TEST(test_keeps_its_bounds, "it never leaves its bounds");
    TEST(test_follows_a_change, "it follows when another value becomes the best");
    TEST(test_rests_when_it_knows, "it rests when neither direction is better");
    TEST(test_outcomes_that_never_come, "outcomes that never come do not hold it up for ever");
    TEST(test_what_is_spoiled_says_nothing, "a round that is spoiled says nothing");
    return test_result();
}
