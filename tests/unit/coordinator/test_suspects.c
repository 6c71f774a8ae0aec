#include "coordinator/suspects.h"

#include "tests/test.h"

static struct wire_str text(const char *s)
{
    return wire_string(s);
}

static void test_only_own_deaths_accuse(void)
{
    const char *own[] = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "out of memory"};
    const char *outside[] = {"SIGKILL", "SIGTERM", "exit 71", "exit 72", "", "SIGSEG", "SIGSEGV "};
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        CHECK_INT(loss_cause_of(text(own[i])), LOSS_OF_ITSELF);
    for (size_t i = 0; i < ARRAY_LEN(outside); i++)
        CHECK_INT(loss_cause_of(text(outside[i])), LOSS_FROM_OUTSIDE);
}

static void test_one_death_makes_no_suspect(void)
{
    struct suspicion s = {0};
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
    suspicion_lost(&s, 1, 10, 3, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_GO); /* not even held: it goes on at once */
    CHECK(suspicion_learn(&s, 1, 10, text("SIGSEGV")));
    CHECK(!suspicion_learn(&s, 1, 10, text("SIGSEGV")));
    CHECK(!suspicion_learn(&s, 1, 11, text("SIGSEGV")));
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
}

static void test_two_deaths_at_one_token(void)
{
    struct suspicion s = {0};
    suspicion_lost(&s, 1, 10, 3, false);
    suspicion_lost(&s, 2, 5, 3, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD);
    suspicion_learn(&s, 2, 5, text("SIGABRT"));
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD);
    suspicion_learn(&s, 1, 10, text("SIGSEGV"));
    CHECK_INT(suspicion_judge(&s), VERDICT_ALONE);
    s.alone = true;
    suspicion_lost(&s, 1, 11, 3, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD); /* it may have been killed from outside this time */
    struct suspicion other = s;
    suspicion_learn(&s, 1, 11, text("SIGKILL"));
    CHECK_INT(suspicion_judge(&s), VERDICT_ALONE);
    suspicion_learn(&other, 1, 11, text("SIGSEGV"));
    CHECK_INT(suspicion_judge(&other), VERDICT_REFUSE);
}

static void test_two_deaths_are_waited_for_a_moment(void)
{
    struct suspicion s = {0};
    suspicion_lost(&s, 1, 10, 3, false);
    suspicion_lost(&s, 2, 5, 3, false);
    CHECK(!suspicion_is_grave(&s));
    suspicion_waited(&s);
    CHECK_INT(suspicion_judge(&s), VERDICT_GO); /* no news: two deaths may be chance */
    struct suspicion heard = s;
    suspicion_learn(&heard, 1, 10, text("SIGSEGV"));
    CHECK_INT(suspicion_judge(&heard), VERDICT_GO);
    suspicion_learn(&heard, 2, 5, text("SIGSEGV")); /* late, and it counts */
    CHECK_INT(suspicion_judge(&heard), VERDICT_ALONE);
    suspicion_lost(&s, 3, 7, 3, false);
    CHECK(suspicion_is_grave(&s)); /* three are not */
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD);
    suspicion_learn(&s, 3, 7, text("SIGKILL"));
    CHECK(!suspicion_is_grave(&s));
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
}

static void test_killed_from_outside(void)
{
    struct suspicion s = {0};
    suspicion_lost(&s, 1, 10, 0, false);
    suspicion_learn(&s, 1, 10, text("SIGKILL"));
    suspicion_lost(&s, 2, 5, 0, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_GO); /* whatever the second died of: it is the first that counts */
    suspicion_learn(&s, 2, 5, text("SIGTERM"));
    suspicion_lost(&s, 3, 1, 0, false);
    suspicion_lost(&s, 4, 1, 0, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD);
    suspicion_learn(&s, 3, 1, text(""));
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
    suspicion_lost(&s, 5, 1, 0, false);
    CHECK_INT(suspicion_judge(&s), VERDICT_GIVE_UP); /* its retries are used up */
}

static void test_silence_holds_nobody(void)
{
    struct suspicion s = {0};
    suspicion_lost(&s, 1, 10, 3, true);
    suspicion_lost(&s, 2, 5, 3, true);
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
    suspicion_lost(&s, 3, 7, 3, false); /* one death that is not explained is none too many */
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
    CHECK(suspicion_learn(&s, 1, 10, text("SIGSEGV"))); /* it took long to die: it counts all the same */
    CHECK_INT(suspicion_judge(&s), VERDICT_HOLD);
    suspicion_learn(&s, 3, 7, text("SIGKILL"));
    CHECK_INT(suspicion_judge(&s), VERDICT_GO);
    suspicion_learn(&s, 2, 5, text("SIGSEGV"));
    CHECK_INT(suspicion_judge(&s), VERDICT_ALONE);
    suspicion_lost(&s, 4, 1, 3, true);
    suspicion_lost(&s, 5, 1, 3, true);
    CHECK_INT(suspicion_judge(&s), VERDICT_GIVE_UP);
}

static void test_a_token_more_clears(void)
{
    struct suspicion s = {0};
    suspicion_lost(&s, 1, 10, 3, false);
    suspicion_learn(&s, 1, 10, text("SIGSEGV"));
    suspicion_lost(&s, 2, 5, 4, false); /* it got further: another place */
    suspicion_learn(&s, 2, 5, text("SIGSEGV"));
    CHECK(s.count == 1 && suspicion_judge(&s) == VERDICT_GO);
    suspicion_lost(&s, 3, 1, 4, false);
    suspicion_learn(&s, 3, 1, text("SIGSEGV"));
    CHECK_INT(suspicion_judge(&s), VERDICT_ALONE);
    suspicion_clear(&s);
    CHECK(suspicion_judge(&s) == VERDICT_GO && !s.alone);
}

int main(void)
{
    TEST(test_only_own_deaths_accuse,
         "signals of a program's own and lost memory accuse, kills from outside do not");
    TEST(test_one_death_makes_no_suspect, "one death makes no suspect");
    TEST(test_two_deaths_at_one_token,
         "two deaths at one token: held until both are explained, tried alone, then refused");
    TEST(test_two_deaths_are_waited_for_a_moment,
         "two deaths of which nothing is heard are waited for a moment, three until it is known");
    TEST(test_killed_from_outside, "groups killed from outside accuse nobody, but retries are bounded");
    TEST(test_silence_holds_nobody, "nobody waits to hear what groups that were lost in silence died of");
    TEST(test_a_token_more_clears, "a token more clears");
    return test_result();
}
