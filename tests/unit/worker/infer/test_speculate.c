#include "worker/infer/speculate.h"

#include "tests/test.h"

static int32_t draft_of(const char *text, int32_t most, char out[SPECULATE_MAX_TOKENS + 1])
{
    int32_t tokens[256], draft[SPECULATE_MAX_TOKENS], count = (int32_t)strlen(text);
    for (int32_t i = 0; i < count; i++)
        tokens[i] = text[i];
    int32_t n = speculate_draft(tokens, count, &speculate_standard, most, draft);
    for (int32_t i = 0; i < n; i++)
        out[i] = (char)draft[i];
    out[n] = '\0';
    return n;
}

static void test_what_followed_is_drafted(void)
{
    char out[SPECULATE_MAX_TOKENS + 1];
    CHECK_INT(draft_of("the red ball. the re", 6, out), 6);
    CHECK_STR(out, "d ball");
}

static void test_the_longest_match_wins(void)
{
    char out[SPECULATE_MAX_TOKENS + 1];
    draft_of("xyzabcX....bcY....abc", 1, out); /* "abc" is further away than "bc" */
    CHECK_STR(out, "X");
    draft_of("1bcX 2bcY 3bc", 1, out); /* equal: the later */
    CHECK_STR(out, "Y");
}

static void test_one_token_is_no_match(void)
{
    char out[SPECULATE_MAX_TOKENS + 1];
    CHECK_INT(draft_of("abcdefa", 4, out), 0);
    CHECK_INT(draft_of("a", 4, out), 0);
    CHECK_INT(draft_of("", 4, out), 0);
    CHECK_INT(draft_of("ababab", 0, out), 0);
}

static void test_a_loop_goes_on(void)
{
    char out[SPECULATE_MAX_TOKENS + 1];
    CHECK_INT(draft_of("....abcabc", 8, out), 8); /* the draft reads on in itself */
    CHECK_STR(out, "abcabcab");
    CHECK_INT(draft_of("zzzz", SPECULATE_MAX_TOKENS, out), SPECULATE_MAX_TOKENS);
    CHECK_STR(out + 60, "zzzz");
}

static void test_the_window_is_kept(void)
{
    int32_t tokens[100], draft[4];
    const struct speculate_options near = {.least_match = 2, .most_match = 4, .window = 20};
    for (int32_t i = 0; i < 100; i++)
        tokens[i] = i;
    tokens[98] = tokens[40];
    tokens[99] = tokens[41];
    CHECK_INT(speculate_draft(tokens, 100, &near, 4, draft), 0);
    CHECK_INT(speculate_draft(tokens, 100, &speculate_standard, 4, draft), 4);
    CHECK_INT(draft[0], 42);
    CHECK_INT(speculate_draft(tokens + 30, 12, &near, 4, draft), 0); /* nothing in front of it is read */
}

/* Against the definition, over random texts of few letters. */
static void test_every_draft_follows_a_match(void)
{
    unsigned long long random = 3;
    for (int round = 0; round < 2000; round++) {
        int32_t tokens[64], draft[5], count = 1 + (int32_t)(test_random(&random) % 64);
        for (int32_t i = 0; i < count; i++)
            tokens[i] = (int32_t)(test_random(&random) % 4);
        int32_t n = speculate_draft(tokens, count, &speculate_standard, 5, draft), best = 0, next = -1;
        for (int32_t end = 0; end < count - 1; end++) {
            int32_t match = 0;
            while (match < 8 && match <= end && tokens[end - match] == tokens[count - 1 - match])
                match++;
            if (match >= best) { /* the later of equal ones */
                best = match;
                next = tokens[end + 1];
            }
        }
        CHECK_INT(n, best >= 2 ? 5 : 0);
        if (n)
            CHECK_INT(draft[0], next);
    }
}

static void test_length_follows_acceptance(void)
{
    struct draft_length d = {0};
    int32_t first = draft_length_next(&d, 64);
    CHECK(first > 0 && first < 16);
    for (int32_t round = 0, drafted; round < 6; round++) {
        drafted = draft_length_next(&d, 64);
        draft_length_learn(&d, drafted, drafted);
    }
    CHECK_INT(draft_length_next(&d, 64), 64);
    CHECK_INT(draft_length_next(&d, 8), 8); /* never over what is allowed */
    draft_length_learn(&d, 8, 8);
    CHECK_INT(draft_length_next(&d, 64), 64); /* a draft cut short says nothing about longer ones */
    draft_length_learn(&d, 64, 3);
    CHECK_INT(draft_length_next(&d, 64), 4);
}

/* Text that does not repeat pays for few drafts: below one draw in ten. */
static void test_misses_are_rare_in_the_end(void)
{
    struct draft_length d = {0};
    int drafts = 0, rows = 0;
    for (int draw = 0; draw < 1000; draw++) {
        int32_t n = draft_length_next(&d, 8);
        drafts += n > 0;
        rows += n;
        draft_length_learn(&d, n, 0);
    }
    CHECK(drafts > 5 && drafts < 40 && rows < 60);
    int32_t n = 0;
    while ((n = draft_length_next(&d, 8)) == 0)
        ;
    draft_length_learn(&d, n, n);
    CHECK(draft_length_next(&d, 8) > 0); /* one that is taken ends the pauses */
}

int main(void)
{
    TEST(test_what_followed_is_drafted, "what followed the last tokens before is drafted");
    TEST(test_the_longest_match_wins, "the longest match wins, the latest of equal ones");
    TEST(test_one_token_is_no_match, "one equal token is no match, and nothing asked is nothing drafted");
    TEST(test_a_loop_goes_on, "a text in a loop is drafted as long as is asked");
    TEST(test_the_window_is_kept, "only the window is searched");
    TEST(test_every_draft_follows_a_match, "drafts are what the definition says, over random texts");
    TEST(test_length_follows_acceptance, "drafts grow while they are taken and shrink when they are not");
    TEST(test_misses_are_rare_in_the_end, "drafts that miss again and again are made rarely");
    return test_result();
}
