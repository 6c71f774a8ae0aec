#include "worker/infer/pipeline.h"

#include "tests/test.h"

/* A machine: what a step of so many rows takes a stage while m micro-batches are under way. */
struct machine {
    double pass_us, row_us;
    bool shared; /* the stages share one memory: passes of m stages take m times as long */
};

static double step_us(const struct machine *x, int32_t m, int32_t rows)
{
    double pass = x->pass_us * (x->shared ? m : 1), arithmetic = x->row_us * rows;
    return pass > arithmetic ? pass : arithmetic;
}

static double round_us(const struct machine *x, int32_t stages, int32_t m, int32_t sequences)
{
    return stages * step_us(x, m, (sequences + m - 1) / m);
}

/* Serves `sequences` for a while and returns what is chosen in the end. */
static int32_t settle(struct pipeline_cost *c, const struct machine *x, int32_t sequences)
{
    int32_t m = 1;
    for (int i = 0; i < 200; i++) {
        m = pipeline_choose(c, sequences);
        CHECK(m >= 1 && m <= c->stages && (m <= sequences || sequences < 1));
        int32_t rows = (sequences + m - 1) / m;
        pipeline_observe(c, m, rows, step_us(x, m, rows));
    }
    return m;
}

static void test_the_choice_is_the_best_there_is(void)
{
    static const struct machine machines[] = {
        {1000, 10, false}, {1000, 10, true}, {1000, 200, false}, {1000, 200, true}, {1000, 2000, true}};
    for (size_t i = 0; i < ARRAY_LEN(machines); i++)
        for (int32_t stages = 1; stages <= 4; stages++)
            for (int32_t sequences = 1; sequences <= 64; sequences *= 2) {
                struct pipeline_cost c;
                pipeline_init(&c, stages);
                int32_t m = settle(&c, &machines[i], sequences);
                double best = round_us(&machines[i], stages, m, sequences);
                for (int32_t k = 1; k <= stages && k <= sequences; k++)
                    CHECK(best <= round_us(&machines[i], stages, k, sequences) * 1.05);
            }
}

static void test_stages_with_memory_of_their_own_are_all_kept_busy(void)
{
    struct pipeline_cost c;
    struct machine x = {1000, 10, false};
    pipeline_init(&c, 4);
    CHECK_INT(settle(&c, &x, 8), 4);
    CHECK_INT(settle(&c, &x, 2), 2); /* not more than there are sequences */
}

static void test_nothing_is_known_at_first(void)
{
    struct pipeline_cost c;
    pipeline_init(&c, 3);
    CHECK_INT(pipeline_choose(&c, 0), 1);
    CHECK_INT(pipeline_choose(&c, 1), 1);
    CHECK_INT(pipeline_choose(&c, 9), 3);
    pipeline_observe(&c, 0, 5, 10); /* and what cannot be is ignored */
    pipeline_observe(&c, 4, 5, 10);
    pipeline_observe(&c, 2, 0, 10);
    CHECK_INT(pipeline_choose(&c, 9), 3);
}

static void test_times_are_learnt(void)
{
    struct pipeline_cost c;
    struct machine x = {1000, 50, false};
    pipeline_init(&c, 2);
    for (int i = 0; i < 300; i++) {
        int32_t rows = i % 3 == 0 ? 1 : i % 3 == 1 ? 8 : 64;
        pipeline_observe(&c, 2, rows, step_us(&x, 2, rows));
    }
    CHECK_NEAR(pipeline_step_us(&c, 2, 1), 1000, 10);
    CHECK_NEAR(pipeline_step_us(&c, 2, 8), 1000, 10);
    CHECK_NEAR(pipeline_step_us(&c, 2, 64), 3200, 40);
    CHECK_NEAR(pipeline_step_us(&c, 2, 128), 3200, 40); /* not seen: no less than fewer rows */
    CHECK_NEAR(pipeline_step_us(&c, 2, 32), 1600, 20);  /* and half of what twice as many take */
    CHECK_NEAR(pipeline_step_us(&c, 1, 64), 1600, 20);  /* and half of it, alone */
}

/* The stages shared a memory and got one each: what was slow with two under way must be tried again. */
static void test_what_was_measured_long_ago_is_tried_again(void)
{
    struct pipeline_cost c;
    struct machine before = {1000, 10, true}, now = {1000, 10, false};
    pipeline_init(&c, 2);
    for (int i = 0; i < 50; i++) { /* now and then a prompt keeps both busy */
        int32_t m = 1 + (i % 4 == 0);
        pipeline_observe(&c, m, 8 / m, step_us(&before, m, 8 / m) * (m == 2 ? 1.5 : 1));
    }
    CHECK_INT(pipeline_choose(&c, 8), 1);
    int tries = 0;
    for (int i = 0; i < 3000; i++) {
        int32_t m = pipeline_choose(&c, 8);
        tries += m == 2;
        pipeline_observe(&c, m, 8 / m, step_us(&before, m, 8 / m) * (m == 2 ? 1.5 : 1));
    }
    CHECK(tries >= 6 && tries <= 18); /* it is still slow, and costs next to nothing to know */
    int32_t m = 1;
    for (int i = 0; i < 1500; i++) {
        m = pipeline_choose(&c, 8);
        pipeline_observe(&c, m, 8 / m, step_us(&now, m, 8 / m));
    }
    CHECK_INT(m, 2);
}

/* The first step of a group, long before two sequences were there, is a cold one. */
static void test_a_cold_step_condemns_nothing(void)
{
    struct pipeline_cost c;
    struct machine x = {1000, 10, true};
    pipeline_init(&c, 2);
    pipeline_observe(&c, 1, 1, 150 * 1000);
    CHECK_INT(settle(&c, &x, 8), 1);
    struct machine apart = {1000, 10, false};
    pipeline_init(&c, 2);
    pipeline_observe(&c, 1, 1, 150 * 1000);
    CHECK_INT(settle(&c, &apart, 8), 2);
}

/* One stream alone takes steps of one row for long; then there are many. */
static void test_steps_of_one_row_tell_nothing_of_many(void)
{
    struct pipeline_cost c;
    struct machine x = {1000, 100, true};
    pipeline_init(&c, 2);
    for (int i = 0; i < 400; i++)
        pipeline_observe(&c, 1, 1, step_us(&x, 1, 1));
    CHECK_INT(settle(&c, &x, 8), 1);
}

/* Eight streams generate for long at the weights' rate, now and then a little slower; then there are 32. */
static void test_few_rows_tell_little_of_many(void)
{
    struct pipeline_cost c;
    pipeline_init(&c, 2);
    for (int i = 0; i < 400; i++)
        pipeline_observe(&c, 1, 8, i % 10 ? 24000 : 31000);
    int32_t m = 1;
    for (int i = 0; i < 100; i++) {
        m = pipeline_choose(&c, 32);
        pipeline_observe(&c, m, 32 / m, m == 1 ? 52000 : 60000);
    }
    CHECK_INT(m, 1);
}

int main(void)
{
    TEST(test_few_rows_tell_little_of_many, "steps of a few rows tell little of those of many");
    TEST(test_steps_of_one_row_tell_nothing_of_many, "steps of one row tell nothing of those of many");
    TEST(test_a_cold_step_condemns_nothing, "a cold first step condemns no number of micro-batches");
    TEST(test_what_was_measured_long_ago_is_tried_again, "what was measured long ago is tried again");
    TEST(test_the_choice_is_the_best_there_is, "no other number of micro-batches is faster by a twentieth");
    TEST(test_stages_with_memory_of_their_own_are_all_kept_busy, "stages that share nothing are kept busy");
    TEST(test_nothing_is_known_at_first, "without observations there is one micro-batch a stage");
    TEST(test_times_are_learnt, "times are learnt, and bound those that were not seen");
    return test_result();
}
