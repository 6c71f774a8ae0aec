#include "worker/layout.h"

#include "tests/test.h"

static void test_places_are_a_bijection(void)
{
    struct layout l = {.stages = 3, .tensor = 2, .replicas = 2};
    struct err err;
    CHECK_INT(layout_check(&l, 12, &err), 0);
    for (int r = 0; r < 12; r++) {
        struct layout_place p = layout_place(&l, r);
        CHECK(p.stage >= 0 && p.stage < 3 && p.slot >= 0 && p.slot < 2 && p.replica >= 0 && p.replica < 2);
        CHECK_INT(layout_rank(&l, p), r);
    }
    CHECK_INT(layout_place(&l, 1).slot, 1); /* tensor slots are neighbours */
}

static void test_wrong_rank_count_is_refused_with_numbers(void)
{
    struct layout l = {.stages = 3, .tensor = 1, .replicas = 1};
    struct err err;
    CHECK_INT(layout_check(&l, 2, &err), -1);
    CHECK_CONTAINS(err.message, "needs 3 ranks, the job has 2");
    l.stages = 0;
    CHECK_INT(layout_check(&l, 2, &err), -1);
}

/* The dearest stage of a split. */
static uint64_t dearest(const uint64_t *cost, uint64_t embed, uint64_t head, int stages, const int *first)
{
    uint64_t most = 0;
    for (int s = 0; s < stages; s++) {
        uint64_t sum = (s == 0 ? embed : 0) + (s == stages - 1 ? head : 0);
        for (int l = first[s]; l < first[s + 1]; l++)
            sum += cost[l];
        if (sum > most)
            most = sum;
    }
    return most;
}

/* The best possible, by trying every split. */
static uint64_t best(const uint64_t *cost, int layers, uint64_t embed, uint64_t head, int stages, int *first,
                     int stage)
{
    if (stage == stages) {
        first[stages] = layers;
        return first[stages - 1] < layers ? dearest(cost, embed, head, stages, first) : UINT64_MAX;
    }
    uint64_t least = UINT64_MAX;
    for (first[stage] = first[stage - 1] + 1; first[stage] < layers;) {
        int mine = first[stage];
        uint64_t cost_here = best(cost, layers, embed, head, stages, first, stage + 1);
        first[stage] = mine + 1;
        if (cost_here < least)
            least = cost_here;
    }
    return least;
}

static void test_split_is_the_best_one(void)
{
    unsigned long long random = 3;
    for (int round = 0; round < 300; round++) {
        int layers = 1 + (int)(test_random(&random) % 8),
            stages = 1 + (int)(test_random(&random) % (unsigned)layers);
        uint64_t cost[8], embed = test_random(&random) % 50, head = test_random(&random) % 200;
        int first[9], trial[9] = {0};
        struct err err;
        for (int l = 0; l < layers; l++)
            cost[l] = test_random(&random) % 100;
        CHECK_INT(layout_split(cost, layers, embed, head, stages, first, &err), 0);
        CHECK_INT(first[0], 0);
        CHECK_INT(first[stages], layers);
        for (int s = 0; s < stages; s++)
            CHECK(first[s] < first[s + 1]);
        CHECK_INT(dearest(cost, embed, head, stages, first),
                  best(cost, layers, embed, head, stages, trial, 1));
    }
}

static void test_more_stages_than_layers_are_refused(void)
{
    uint64_t cost[2] = {1, 1};
    int first[4];
    struct err err;
    CHECK_INT(layout_split(cost, 2, 0, 0, 3, first, &err), -1);
    CHECK_CONTAINS(err.message, "3 stages for 2 layers: expected 1 to 2 stages");
}

int main(void)
{
    TEST(test_places_are_a_bijection, "every rank has one place and every place one rank");
    TEST(test_wrong_rank_count_is_refused_with_numbers,
         "a layout that does not fit the job is refused with numbers");
    TEST(test_split_is_the_best_one, "the split's dearest stage is as cheap as any split's");
    TEST(test_more_stages_than_layers_are_refused, "more stages than layers are refused");
    return test_result();
}
