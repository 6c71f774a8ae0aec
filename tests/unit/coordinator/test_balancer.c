#include "coordinator/balancer.h"
#include "tests/test.h"

static struct balancer_group group(uint32_t number, uint64_t prefill_tokens, uint64_t decode_tokens)
{
    return (struct balancer_group){.group = number,
                                   .max_sequences = 8,
                                   .prefill_tokens = prefill_tokens,
                                   .decode_tokens = decode_tokens,
                                   .prefill_rate = 1000,
                                   .decode_rate = 100,
                                   .last = number};
}

static const struct balancer_request request = {
    .prompt_tokens = 500, .output_tokens = 20, .kv_tokens = 600, .choices = 1};

static int choose(const struct balancer_policy *policy, const struct balancer_group *groups, size_t count)
{
    return balancer_choose(policy, groups, count, &request, 100);
}

static void test_none_of_none(void)
{
    CHECK_INT(choose(&balancer_least_loaded, NULL, 0), -1);
}

static void test_load_is_time(void)
{
    struct balancer_group groups[] = {group(0, 400, 0), group(1, 1000, 0)};
    CHECK_INT(choose(&balancer_least_loaded, groups, 2), 0);
    groups[1].prefill_rate = 4000; /* 250 ms of work against 400 */
    CHECK_INT(choose(&balancer_least_loaded, groups, 2), 1);
    groups[1].decode_tokens = 60; /* 250 + 600 + 125 of its own against 400 + 500 */
    CHECK_INT(choose(&balancer_least_loaded, groups, 2), 0);
}

static void test_room(void)
{
    struct balancer_group g = group(0, 0, 0);
    g.assigned = g.requests = 8;
    CHECK(!balancer_fits(&g, &request));
    g.assigned = 7;
    CHECK(balancer_fits(&g, &request)); /* its KV cache is unknown */
    g.kv_tokens = 1000;
    g.kv_reserved = 400;
    CHECK(balancer_fits(&g, &request));
    g.kv_reserved = 401;
    CHECK(!balancer_fits(&g, &request));
    g.assigned = g.requests = 0; /* with nobody there it may try, and be refused with the numbers */
    CHECK(balancer_fits(&g, &request));
}

static void test_prefix_draws(void)
{
    struct balancer_group groups[] = {group(0, 300, 0), group(1, 0, 0)};
    groups[0].cached_tokens = 400; /* 300 + 100 to prefill against 500 */
    CHECK_INT(choose(&balancer_prefix, groups, 2), 0);
    CHECK_INT(choose(&balancer_least_loaded, groups, 2), 1);
}

static void test_stickiness_yields(void)
{
    struct balancer_group groups[] = {group(0, 450, 0), group(1, 0, 0)};
    groups[0].cached_tokens = 400; /* 450 + 100 against 500: a fresh prefill elsewhere is sooner */
    CHECK_INT(choose(&balancer_prefix, groups, 2), 1);
}

static void test_prefix_weight(void)
{
    struct balancer_group groups[] = {group(0, 450, 0), group(1, 0, 0)};
    groups[0].cached_tokens = 400;
    CHECK_INT(balancer_choose(&balancer_prefix, groups, 2, &request, 200), 0);
    CHECK_INT(balancer_choose(&balancer_prefix, groups, 2, &request, 0), 1);
}

static void test_ties_take_turns(void)
{
    struct balancer_group groups[] = {group(7, 0, 0), group(3, 0, 0), group(5, 0, 0)};
    uint64_t turn = 10;
    uint32_t expected[] = {3, 5, 7, 3};
    for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
        int chosen = choose(&balancer_prefix, groups, 3);
        CHECK_INT(groups[chosen].group, expected[i]);
        groups[chosen].last = turn++;
    }
}

static void test_more_cached_than_asked(void)
{
    struct balancer_group groups[] = {group(0, 0, 0), group(1, 0, 0)};
    groups[1].cached_tokens = UINT64_MAX;
    CHECK_INT(choose(&balancer_prefix, groups, 2), 1);
}

static void test_names(void)
{
    CHECK(balancer_policy_find("prefix") == &balancer_prefix);
    CHECK(balancer_policy_find("least-load") == &balancer_least_loaded);
    CHECK(balancer_policy_find("two-choices") == &balancer_two_choices);
    CHECK(balancer_policy_find("round-robin") == &balancer_round_robin);
    CHECK(balancer_policy_find("random") == NULL);
}

int main(void)
{
    TEST(test_none_of_none, "nothing is chosen of nothing");
    TEST(test_load_is_time, "load is the time that a group needs for its work, at its own speed");
    TEST(test_room, "a group has room when a sequence and its KV are free");
    TEST(test_prefix_draws, "a cached prefix draws its conversation back");
    TEST(test_stickiness_yields, "it yields when the queue there costs more than a fresh prefill");
    TEST(test_prefix_weight, "the prefix weight scales what a prefill counts");
    TEST(test_ties_take_turns, "equal groups take turns");
    TEST(test_more_cached_than_asked, "a cached length above the prompt's counts as all of it");
    TEST(test_names, "policies are found by name");
    return test_result();
}
