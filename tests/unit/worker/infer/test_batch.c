#include "worker/infer/batch.h"

#include "tests/test.h"

static const struct batch_limits roomy = {.tokens = 100, .sequences = 8, .micro_batches = 1};

static void test_decoding_goes_before_prefill(void)
{
    struct batch_sequence s[3] = {{.slot = 0, .known = 50, .fed = 0, .order = 1},
                                  {.slot = 1, .known = 9, .fed = 8, .order = 2},
                                  {.slot = 2, .known = 7, .fed = 6, .order = 3}};
    struct batch_item item[8];
    CHECK_INT(batch_plan(s, 3, &roomy, item), 3);
    CHECK_INT(item[0].sequence, 1);
    CHECK_INT(item[1].sequence, 2);
    CHECK_INT(item[2].sequence, 0);
    CHECK_INT(item[2].tokens, 50);
    CHECK(item[0].sample && item[1].sample && item[2].sample);
}

static void test_a_long_prompt_goes_in_chunks(void)
{
    struct batch_sequence s = {.known = 250, .fed = 0, .order = 1};
    struct batch_item item[8];
    int32_t chunks[3] = {100, 100, 50};
    for (int i = 0; i < 3; i++) {
        CHECK_INT(batch_plan(&s, 1, &roomy, item), 1);
        CHECK_INT(item[0].tokens, chunks[i]);
        CHECK_INT(item[0].sample, i == 2);
        s.fed += item[0].tokens;
    }
    CHECK_INT(batch_plan(&s, 1, &roomy, item), 0);
}

static void test_prefill_takes_what_decoding_leaves(void)
{
    struct batch_limits limits = {.tokens = 4, .sequences = 8, .micro_batches = 1};
    struct batch_sequence s[4] = {{.known = 5, .fed = 4, .order = 3},
                                  {.known = 5, .fed = 4, .order = 4},
                                  {.known = 30, .fed = 0, .order = 1},
                                  {.known = 30, .fed = 0, .order = 2}};
    struct batch_item item[8];
    CHECK_INT(batch_plan(s, 4, &limits, item), 3);
    CHECK_INT(item[2].sequence, 2);
    CHECK_INT(item[2].tokens, 2);
    CHECK(!item[2].sample);
}

static void test_busy_sequences_wait(void)
{
    struct batch_sequence s[2] = {{.known = 5, .fed = 4, .order = 1, .busy = true},
                                  {.known = 5, .fed = 4, .order = 2}};
    struct batch_item item[8];
    CHECK_INT(batch_plan(s, 2, &roomy, item), 1);
    CHECK_INT(item[0].sequence, 1);
}

static void test_micro_batches_share_the_sequences(void)
{
    struct batch_limits limits = {.tokens = 100, .sequences = 8, .micro_batches = 2};
    struct batch_sequence s[6];
    struct batch_item item[8];
    for (int i = 0; i < 6; i++)
        s[i] = (struct batch_sequence){.known = 5, .fed = 4, .order = (uint64_t)i + 1};
    CHECK_INT(batch_plan(s, 6, &limits, item), 3);
    for (int i = 0; i < 3; i++)
        s[item[i].sequence].busy = true;
    CHECK_INT(batch_plan(s, 6, &limits, item), 3);
    CHECK_INT(item[0].sequence, 3);
}

static void test_every_plan_keeps_its_bounds(void)
{
    unsigned long long random = 9;
    for (int round = 0; round < 5000; round++) {
        struct batch_sequence s[12];
        struct batch_item item[12];
        int32_t count = (int32_t)(test_random(&random) % 13), tokens = 0;
        struct batch_limits limits = {.tokens = 1 + (int32_t)(test_random(&random) % 40),
                                      .sequences = 1 + (int32_t)(test_random(&random) % 12),
                                      .micro_batches = 1 + (int32_t)(test_random(&random) % 3)};
        bool ready = false, seen[12] = {false};
        for (int32_t i = 0; i < count; i++) {
            s[i].fed = (int32_t)(test_random(&random) % 20);
            s[i].known = s[i].fed + (int32_t)(test_random(&random) % 5);
            s[i].busy = test_random(&random) % 3 == 0;
            s[i].order = test_random(&random);
            ready |= !s[i].busy && s[i].known > s[i].fed;
        }
        int32_t items = batch_plan(s, count, &limits, item);
        CHECK((items > 0) == ready);
        CHECK(items <= limits.sequences);
        for (int32_t i = 0; i < items; i++) {
            const struct batch_sequence *q = &s[item[i].sequence];
            CHECK(!q->busy && !seen[item[i].sequence]);
            seen[item[i].sequence] = true;
            CHECK(item[i].tokens >= 1 && item[i].tokens <= q->known - q->fed);
            CHECK(item[i].sample == (item[i].tokens == q->known - q->fed));
            tokens += item[i].tokens;
        }
        CHECK(tokens <= limits.tokens);
    }
}

int main(void)
{
    TEST(test_decoding_goes_before_prefill, "decoding goes before prefill, each in order of arrival");
    TEST(test_a_long_prompt_goes_in_chunks, "a long prompt goes in chunks and is sampled at its end");
    TEST(test_prefill_takes_what_decoding_leaves, "prefill takes what decoding leaves of the budget");
    TEST(test_busy_sequences_wait, "a sequence in a step under way is not planned again");
    TEST(test_micro_batches_share_the_sequences, "micro-batches share the sequences evenly");
    TEST(test_every_plan_keeps_its_bounds,
         "random plans keep every bound and take work whenever there is some");
    return test_result();
}
