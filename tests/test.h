/* test: the smallest harness that fits: one behaviour per TEST, named as a sentence; the program prints one
 * line per test ("ok - NAME", "not ok - NAME", "skip - NAME: why") and exits 1 when one failed. tests/run
 * adds the lines up. */
#ifndef LEPTON_TESTS_TEST_H
#define LEPTON_TESTS_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int test_failures;     /* of the running test */
static int test_total_failed; /* of the program */
static const char *test_skip; /* why the running test was skipped, or NULL */

#define CHECK(cond)                                                      \
    do {                                                                 \
        if (!(cond)) {                                                   \
            printf("# %s:%d: expected %s\n", __FILE__, __LINE__, #cond); \
            test_failures++;                                             \
        }                                                                \
    } while (0)

#define CHECK_INT(actual, expected)                                                              \
    do {                                                                                         \
        long long a_ = (long long)(actual), e_ = (long long)(expected);                          \
        if (a_ != e_) {                                                                          \
            printf("# %s:%d: %s is %lld, expected %lld\n", __FILE__, __LINE__, #actual, a_, e_); \
            test_failures++;                                                                     \
        }                                                                                        \
    } while (0)

#define CHECK_STR(actual, expected)                                                         \
    do {                                                                                    \
        const char *a_ = (actual), *e_ = (expected);                                        \
        if (!a_ || strcmp(a_, e_) != 0) {                                                   \
            printf("# %s:%d: %s is \"%s\", expected \"%s\"\n", __FILE__, __LINE__, #actual, \
                   a_ ? a_ : "(null)", e_);                                                 \
            test_failures++;                                                                \
        }                                                                                   \
    } while (0)

/* The message must contain the given words: an error must say what, where and what was expected. */
#define CHECK_CONTAINS(text, part)                                                                           \
    do {                                                                                                     \
        const char *t_ = (text), *p_ = (part);                                                               \
        if (!t_ || !strstr(t_, p_)) {                                                                        \
            printf("# %s:%d: \"%s\" does not contain \"%s\"\n", __FILE__, __LINE__, t_ ? t_ : "(null)", p_); \
            test_failures++;                                                                                 \
        }                                                                                                    \
    } while (0)

/* NaN never passes: the comparison is written so that NaN makes it false. */
#define CHECK_NEAR(actual, expected, tolerance)                                                             \
    do {                                                                                                    \
        double a_ = (actual), e_ = (expected), t_ = (tolerance);                                            \
        if (!(fabs(a_ - e_) <= t_)) {                                                                       \
            printf("# %s:%d: %s is %.9g, expected %.9g within %.3g\n", __FILE__, __LINE__, #actual, a_, e_, \
                   t_);                                                                                     \
            test_failures++;                                                                                \
        }                                                                                                   \
    } while (0)

#define SKIP(why)          \
    do {                   \
        test_skip = (why); \
        return;            \
    } while (0)

#define TEST(function, sentence)                                            \
    do {                                                                    \
        test_failures = 0;                                                  \
        test_skip = NULL;                                                   \
        function();                                                         \
        if (test_skip)                                                      \
            printf("skip - %s: %s\n", sentence, test_skip);                 \
        else                                                                \
            printf("%s - %s\n", test_failures ? "not ok" : "ok", sentence); \
        test_total_failed += test_failures != 0;                            \
        fflush(stdout);                                                     \
    } while (0)

static inline int test_result(void)
{
    return test_total_failed ? 1 : 0;
}

/* The path of a file of the shared test data, or NULL where it is not there (then SKIP). Static buffer. */
static inline const char *test_shared(const char *path)
{
    static char full[4096];
    const char *root = getenv("LEPTON_SHARED");
    snprintf(full, sizeof(full), "%s/%s", root ? root : "../shared", path);
    return access(full, R_OK) == 0 ? full : NULL;
}

/* A repeatable pseudo-random stream for tests (splitmix64). */
static inline unsigned long long test_random(unsigned long long *state)
{
    unsigned long long z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static inline float test_uniform(unsigned long long *state)
{
    return (float)(test_random(state) >> 40) * (2.0f / 16777216.0f) - 1.0f;
}

#endif
