#include "coordinator/balancer.h"
#include "tests/test.h"

static struct balancer_group group(uint32_t number, const char *name, uint32_t assigned, uint32_t max)
{
    return (struct balancer_group){.group = number, .name = name, .assigned = assigned, .max_sequences = max};
}

static int choose_fresh(const struct balancer_group *groups, size_t count)
{
    struct balancer b;
    balancer_init(&b, &balancer_least_loaded);
    return balancer_choose(&b, groups, count);
}

static void test_none_without_room(void)
{
    struct balancer_group full[] = {group(0, "a", 2, 2), group(1, "b", 1, 1)};
    CHECK_INT(choose_fresh(full, 2), -1);
    CHECK_INT(choose_fresh(full, 0), -1);
}

static void test_share_counts_not_number(void)
{
    struct balancer_group groups[] = {group(0, "a", 1, 2), group(1, "b", 3, 8)};
    CHECK_INT(choose_fresh(groups, 2), 1); /* 3 of 8 is less than 1 of 2 */
}

static void test_huge_capacities_do_not_wrap(void)
{
    struct balancer_group groups[] = {group(0, "a", UINT32_MAX - 1, UINT32_MAX), group(1, "b", 0, 1)};
    CHECK_INT(choose_fresh(groups, 2), 1);
}

static void test_pages_break_ties(void)
{
    struct balancer_group groups[] = {group(0, "a", 1, 4), group(1, "b", 1, 4)};
    groups[0].pages = groups[1].pages = 100;
    groups[0].pages_used = 60;
    groups[1].pages_used = 40;
    CHECK_INT(choose_fresh(groups, 2), 1);
}

static void test_equals_take_turns_by_name(void)
{
    struct balancer b;
    balancer_init(&b, &balancer_least_loaded);
    /* The array's order must not matter, nor that a group joined meanwhile. */
    struct balancer_group groups[] = {group(7, "c", 0, 4), group(8, "a", 0, 4), group(9, "b", 0, 4)};
    const char *expected[] = {"a", "b", "c", "a"};
    for (size_t i = 0; i < ARRAY_LEN(expected); i++)
        CHECK_STR(groups[balancer_choose(&b, groups, 3)].name, expected[i]);
    CHECK_INT(balancer_choose(&b, groups, 1), 0);
}

int main(void)
{
    TEST(test_none_without_room, "no group is chosen when none has room");
    TEST(test_share_counts_not_number, "load is the share of sequences, not their number");
    TEST(test_huge_capacities_do_not_wrap, "huge capacities do not wrap the comparison");
    TEST(test_pages_break_ties, "pages in use break a tie of sequences");
    TEST(test_equals_take_turns_by_name, "equal groups take turns by name");
    return test_result();
}
