/* Drafts in the engine: what they save and that they are counted. That they change nothing is the matrix of
 * test_exact.c. */
#include "worker/infer/flight.h"

#include "tests/engine_group.h"
#include "tests/tiny_model.h"

static char path[64];

/* A request that says one token over and over (its bias sees to that), which every draft guesses. */
static struct sequence_request monotonous(uint64_t handle, int32_t tokens)
{
    static int32_t prompt[] = {5, 9, 4};
    static struct logit_bias bias = {.id = 7, .bias = 100};
    return (struct sequence_request){.handle = handle,
                                     .choices = 1,
                                     .prompt = prompt,
                                     .prompt_tokens = ARRAY_LEN(prompt),
                                     .max_tokens = tokens,
                                     .biases = &bias,
                                     .sampling = {.seed = 3,
                                                  .temperature = 1,
                                                  .top_p = 1,
                                                  .repetition_penalty = 1,
                                                  .banned_id = -1,
                                                  .bias_count = 1}};
}

/* Takes events until so many requests have ended; `ids` (or NULL) gets the tokens, ends[handle] the ends. */
static void take_ends(struct engine_group *g, int requests, int32_t *ids, struct event *ends)
{
    int32_t tokens = 0;
    while (requests > 0) {
        struct event e = engine_group_next(g);
        if (e.kind == EVENT_TOKEN && ids)
            ids[e.index] = e.id;
        tokens += e.kind == EVENT_TOKEN;
        if (e.kind != EVENT_TOKEN) {
            ends[e.handle] = e;
            requests--;
        }
    }
    CHECK(tokens > 0);
}

static struct serve_stats one_request(const struct sequence_request *r, const char *how, int stages,
                                      struct event *end)
{
    const char *words[] = {"--speculation", how, "--speculation-tokens", "8"};
    struct engine_group g;
    struct event ends[2] = {0};
    int32_t ids[128] = {0};
    engine_group_open(&g, path, stages, 0, words, ARRAY_LEN(words));
    engine_group_start(&g);
    engine_group_submit(&g, r);
    take_ends(&g, 1, ids, ends);
    for (int32_t i = 0; i < r->max_tokens; i++)
        CHECK_INT(ids[i], 7);
    CHECK_INT(ends[1].kind, EVENT_DONE);
    CHECK_INT(ends[1].reason, FINISH_LENGTH);
    CHECK_INT(ends[1].completion_tokens, r->max_tokens);
    *end = ends[1];
    return engine_group_close(&g);
}

static void test_accepted_drafts_save_steps(void)
{
    struct sequence_request r = monotonous(1, 100);
    struct event end;
    struct serve_stats s = one_request(&r, "off", 1, &end);
    CHECK_INT(s.steps, 100);
    CHECK_INT(s.drafted_tokens, 0);
    CHECK_INT(end.drafted_tokens, 0);
    for (int stages = 1; stages <= 2; stages++) {
        s = one_request(&r, "ngram", stages, &end);
        CHECK(s.steps < 25);
        CHECK(s.accepted_tokens > 75 && s.accepted_tokens <= s.drafted_tokens);
        CHECK_INT(s.drafted_tokens, end.drafted_tokens);
        CHECK_INT(s.accepted_tokens, end.accepted_tokens);
        CHECK_INT(s.accepted_tokens + s.steps, 100); /* one draw of each step is no draft's */
        CHECK_INT(s.tokens_generated, 100);
    }
}

/* One sequence is in one stage at a time: each waits for the other. */
static void test_each_stage_tells_its_times(void)
{
    struct sequence_request r = monotonous(1, 40);
    struct event end;
    struct serve_stats s = one_request(&r, "off", 1, &end);
    CHECK_INT(s.stages, 1);
    CHECK(s.stage[0].busy_us > 0);
    CHECK_INT(s.stage[0].wait_us, 0);
    CHECK_INT(s.stage[0].bubble_us, 0);
    s = one_request(&r, "off", 2, &end);
    CHECK_INT(s.stages, 2);
    for (int i = 0; i < 2; i++)
        CHECK(s.stage[i].busy_us > 0 && s.stage[i].wait_us > 0 && s.stage[i].bubble_us == s.stage[i].wait_us);
}

static void test_a_request_decides(void)
{
    struct sequence_request r = monotonous(1, 100);
    struct event end;
    r.speculation = SPECULATION_OFF;
    CHECK_INT(one_request(&r, "ngram", 1, &end).drafted_tokens, 0);
    r.speculation = SPECULATION_NGRAM;
    CHECK(one_request(&r, "off", 1, &end).accepted_tokens > 75);
    r.draft_tokens = 2;
    struct serve_stats s = one_request(&r, "off", 1, &end);
    CHECK(s.steps >= 100 / 3 && s.accepted_tokens <= 67 && s.accepted_tokens > 50);
}

/* The end token ends a sequence in the middle of an accepted draft, and nothing behind it is shown. */
static void test_an_end_inside_a_draft(void)
{
    const char *words[] = {"--speculation", "ngram"};
    struct engine_group g;
    struct sequence_request r = monotonous(1, 60);
    /* Of two tokens that are equally likely the one ends: drafts of the other run into it. */
    static struct logit_bias biases[] = {{.id = 7, .bias = 100}, {.id = 11, .bias = 96}};
    int ended = 0;
    r.biases = biases;
    r.sampling.bias_count = 2;
    r.stop_at_end = true;
    engine_group_open(&g, path, 1, 0, words, ARRAY_LEN(words));
    g.is_end[11] = true;
    engine_group_start(&g);
    for (uint64_t seed = 1; seed <= 40; seed++) {
        r.sampling.seed = seed;
        engine_group_submit(&g, &r);
        int32_t tokens = 0;
        struct event e;
        while ((e = engine_group_next(&g)).kind == EVENT_TOKEN) {
            CHECK_INT(e.id, 7);
            CHECK_INT(e.index, tokens);
            tokens++;
        }
        CHECK_INT(e.completion_tokens, tokens);
        CHECK(e.reason == FINISH_STOP ? tokens < 60 : tokens == 60);
        ended += e.reason == FINISH_STOP && tokens > 8;
    }
    CHECK(ended > 5); /* long enough to have been in drafts */
    CHECK_INT(engine_group_close(&g).pages_used, 0);
}

static void test_many_drafts_leave_no_pages(void)
{
    const char *words[] = {"--speculation", "ngram", "--max-sequences", "8", "--page-tokens", "4"};
    enum { COUNT = 60 };
    struct engine_group g;
    struct event ends[COUNT + 1] = {0};
    engine_group_open(&g, path, 1, 40, words, ARRAY_LEN(words)); /* one and a half of the longest */
    engine_group_start(&g);
    for (uint64_t i = 1; i <= COUNT; i++) {
        struct sequence_request r = monotonous(i, 10 + (int32_t)i);
        r.sampling.seed = i;
        r.sampling.bias_count = i % 2 ? 1 : 0;
        engine_group_submit(&g, &r);
        if (i % 5 == 0)
            engine_group_cancel(&g, i - 3);
    }
    take_ends(&g, COUNT, NULL, ends);
    for (int i = 1; i <= COUNT; i++)
        CHECK(ends[i].reason == FINISH_CANCELLED || ends[i].completion_tokens == 10 + i);
    struct serve_stats s = engine_group_close(&g);
    CHECK_INT(s.pages_used, 0);
    CHECK_INT(s.running, 0);
    CHECK(s.accepted_tokens > 0 && s.preemptions > 0);
}

int main(void)
{
    snprintf(path, sizeof(path), "/tmp/lepton-test-flight-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    TEST(test_accepted_drafts_save_steps, "accepted drafts save steps and are counted");
    TEST(test_each_stage_tells_its_times, "each stage tells how long it ran and how long it waited");
    TEST(test_a_request_decides, "a request decides whether and how much is drafted for it");
    TEST(test_an_end_inside_a_draft, "an end token inside a draft ends the sequence there");
    TEST(test_many_drafts_leave_no_pages, "drafts over few pages: everyone ends, and all pages are free");
    unlink(path);
    return test_result();
}
