#include "common/clock.h"

#include <time.h>

#include "tests/test.h"

static void test_wall_is_utc(void)
{
    char text[32];
    struct tm tm = {0};
    int ms = -1, used = 0;
    setenv("TZ", "XYZ-5:30", 1);
    tzset();
    time_t before = time(NULL);
    clock_wall(text);
    time_t after = time(NULL);
    CHECK_INT(sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
                     &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &ms, &used),
              7);
    CHECK_INT(used, strlen(text));
    CHECK(ms >= 0 && ms <= 999);
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    time_t shown = timegm(&tm);
    CHECK(shown >= before && shown <= after);
}

static void test_units_agree(void)
{
    uint64_t before_us = clock_now_us(), ms = clock_now_ms(), after_us = clock_now_us();
    CHECK(before_us <= after_us);
    CHECK(before_us / 1000 <= ms && ms <= after_us / 1000);
}

static void test_sleep_is_not_short(void)
{
    uint64_t before = clock_now_us();
    clock_sleep_ms(3);
    CHECK(clock_now_us() - before >= 3000);
}

static void test_entropy(void)
{
    uint64_t any = 0, all = UINT64_MAX;
    for (int i = 0; i < 64; i++) {
        uint64_t v = clock_entropy();
        any |= v, all &= v;
    }
    /* A bit that stays the same in 64 draws: a chance of 2^-57. */
    CHECK(any == UINT64_MAX && all == 0);
}

int main(void)
{
    TEST(test_wall_is_utc, "the wall clock is written in UTC, wherever the machine stands");
    TEST(test_units_agree, "milliseconds and microseconds come from one clock that does not go back");
    TEST(test_sleep_is_not_short, "a sleep lasts at least as long as was asked");
    TEST(test_entropy, "every bit of entropy varies");
    return test_result();
}
