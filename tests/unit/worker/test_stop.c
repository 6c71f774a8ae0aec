#include "worker/stop.h"

#include "tests/test.h"

/* What is shown of `text` when it comes in pieces of `cut` bytes (0: at random places). */
static bool run(const char *const *stops, size_t count, const char *text, size_t cut, struct buffer *out)
{
    static unsigned long long random = 3;
    size_t bytes[8], n = strlen(text);
    struct stop_matcher m;
    for (size_t i = 0; i < count; i++)
        bytes[i] = strlen(stops[i]);
    struct stop_set *set = stop_set_new(stops, bytes, count);
    stop_matcher_init(&m, set);
    out->size = 0;
    for (size_t at = 0; at < n;) {
        size_t piece = cut ? cut : 1 + test_random(&random) % 5;
        piece = piece < n - at ? piece : n - at;
        char *copy = malloc(piece); /* exact size, so that a sanitizer sees a read past it */
        memcpy(copy, text + at, piece);
        stop_matcher_push(&m, copy, piece, out);
        free(copy);
        at += piece;
    }
    bool stopped = m.stopped;
    stop_matcher_flush(&m, out);
    buffer_append(out, "", 1);
    stop_matcher_release(&m);
    stop_set_free(&set);
    return stopped;
}

static const struct {
    const char *stops[4], *text, *shown;
    bool stopped;
} cases[] = {
    {{"END"}, "the END of it", "the ", true},
    {{"END"}, "the EN", "the EN", false}, /* held, then flushed */
    {{"END"}, "ENENEND!", "ENEN", true},
    {{"aab"}, "aaaab", "aa", true},
    {{"abab"}, "abacabab", "abac", true},
    {{"\n\n"}, "one\ntwo\n\nthree", "one\ntwo", true},
    {{"x"}, "x", "", true},
    {{"abcd", "bc"}, "abcd", "a", true},    /* what ends first */
    {{"abc", "c"}, "ababc", "ab", true},    /* of those that end together the longest */
    {{"bcd", "abce"}, "xabcd", "xa", true}, /* held for one, ended by the other */
    {{"\xC3\xA9"}, "caf\xC3\xA8 caf\xC3\xA9!", "caf\xC3\xA8 caf", true},
    {{"</s>", "<|im_end|>", "User:", "###"}, "a < b <|im_x|> User <|im_end|>", "a < b <|im_x|> User ", true},
};

static void test_cases(void)
{
    struct buffer out = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t count = 0;
        while (count < 4 && cases[i].stops[count])
            count++;
        for (size_t cut = 0; cut < 8; cut++) {
            CHECK_INT(run(cases[i].stops, count, cases[i].text, cut, &out), cases[i].stopped);
            CHECK_STR((const char *)out.data, cases[i].shown);
        }
    }
    buffer_release(&out);
}

/* The plain way: the first byte at which any stop string has just ended. */
static bool plain(const char *const *stops, size_t count, const char *text, char *shown)
{
    for (size_t end = 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (size_t i = 0; i < count; i++) {
            size_t n = strlen(stops[i]);
            if (n <= end && memcmp(text + end - n, stops[i], n) == 0 && n > longest)
                longest = n;
        }
        if (longest) {
            memcpy(shown, text, end - longest);
            shown[end - longest] = '\0';
            return true;
        }
    }
    strcpy(shown, text);
    return false;
}

static void test_random_texts_equal_the_plain_search(void)
{
    unsigned long long random = 11;
    struct buffer out = {0};
    int stopped = 0;
    for (int round = 0; round < 20000; round++) {
        char text[24], word[3][8], shown[24];
        const char *stops[3] = {word[0], word[1], word[2]};
        size_t count = 1 + test_random(&random) % 3;
        for (size_t i = 0; i < count; i++) {
            size_t n = 1 + test_random(&random) % 6;
            for (size_t k = 0; k < n; k++)
                word[i][k] = (char)('a' + test_random(&random) % 2);
            word[i][n] = '\0';
        }
        size_t n = test_random(&random) % 20;
        for (size_t k = 0; k < n; k++)
            text[k] = (char)('a' + test_random(&random) % 2);
        text[n] = '\0';
        bool want = plain(stops, count, text, shown);
        CHECK_INT(run(stops, count, text, 0, &out), want);
        CHECK_STR((const char *)out.data, shown);
        stopped += want;
    }
    CHECK(stopped > 5000 && stopped < 19000);
    buffer_release(&out);
}

static void test_as_little_as_possible_is_held(void)
{
    struct stop_matcher m;
    struct buffer out = {0};
    struct stop_set *set = stop_set_new((const char *[]){"abcX"}, (size_t[]){4}, 1);
    stop_matcher_init(&m, set);
    CHECK(!stop_matcher_push(&m, "zzab", 4, &out));
    CHECK_INT(out.size, 2);
    CHECK(!stop_matcher_push(&m, "cab", 3, &out)); /* "abcab": the first abc can be no stop any more */
    CHECK_INT(out.size, 5);
    CHECK(!stop_matcher_push(&m, "d", 1, &out));
    CHECK_INT(out.size, 8);
    stop_matcher_release(&m);
    stop_set_free(&set);
    CHECK(stop_set_new(NULL, NULL, 0) == NULL);
    stop_matcher_init(&m, NULL); /* nothing stops: nothing is held */
    CHECK(!stop_matcher_push(&m, "abc", 3, &out));
    CHECK_INT(out.size, 11);
    stop_matcher_release(&m);
    buffer_release(&out);
}

int main(void)
{
    TEST(test_cases, "a stop string is found wherever the text is cut, and only what is before it is shown");
    TEST(test_random_texts_equal_the_plain_search, "20000 random texts and stops equal a plain search");
    TEST(test_as_little_as_possible_is_held, "only what may begin a stop string is held back");
    return test_result();
}
