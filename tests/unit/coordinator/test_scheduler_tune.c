#include "coordinator/scheduler.h"
#include "tests/test.h"

static struct scheduler *fresh(bool automatic)
{
    struct scheduler_limits limits = {.live_requests = 8,
                                      .groups = 4,
                                      .queue_requests = 4,
                                      .prompt_bytes = 100000,
                                      .prefix_places = 64,
                                      .prefix_weight = 200,
                                      .prefix_weight_low = 50,
                                      .prefix_weight_high = 800,
                                      .prefix_weight_auto = automatic};
    return scheduler_new(&limits, &balancer_prefix);
}

static struct scheduler_setting look(const struct scheduler *s, int i)
{
    struct scheduler_setting out[SCHEDULER_SETTINGS];
    scheduler_settings(s, out);
    return out[i];
}

static int tune(struct scheduler *s, const char *name, uint64_t value, struct err *err)
{
    return scheduler_tune(s, name, false, value, err) == 0 ? 0 : err->code;
}

static void test_by_hand(void)
{
    struct scheduler *s = fresh(true);
    struct err err = {0};
    struct scheduler_setting t = look(s, 0);
    CHECK_STR(t.name, "prefix_weight");
    CHECK(t.value == 200 && t.low == 50 && t.high == 800 && t.automatic);
    CHECK_INT(tune(s, "prefix_weight", 400, &err), 0);
    t = look(s, 0);
    CHECK(t.value == 400 && !t.automatic);
    CHECK_INT(scheduler_tune(s, "prefix_weight", true, 0, &err), 0);
    t = look(s, 0);
    CHECK(t.value == 400 && t.automatic); /* it goes on from there */
    scheduler_free(&s);
}

static void test_refusals(void)
{
    struct scheduler *s = fresh(false);
    struct err err = {0};
    CHECK_INT(tune(s, "prefix_weight", 801, &err), 400);
    CHECK_CONTAINS(err.message, "prefix_weight: 801, expected 50 to 800, or auto");
    CHECK_INT(tune(s, "prefix_weight", 49, &err), 400);
    CHECK_INT(tune(s, "prefix_belief", 4, &err), 400);
    CHECK_INT(tune(s, "weight", 100, &err), 404);
    CHECK_CONTAINS(err.message, "weight: no such setting; expected prefix_weight or prefix_belief");
    CHECK(look(s, 0).value == 200 && !look(s, 0).automatic);
    scheduler_free(&s);
}

/* The same prompt again and again, of which caches never hold anything. */
static void serve(struct scheduler *s, int requests)
{
    struct err err;
    struct scheduler_admission out;
    struct scheduler_action a;
    struct prefix_key key;
    char prompt[4000];
    memset(prompt, 'a', sizeof(prompt));
    prefix_key_make(&key, 1, prompt, sizeof(prompt));
    for (int i = 0; i < requests; i++) {
        struct scheduler_submission in = {.request = 0,
                                          .model = "m",
                                          .class = 1,
                                          .bytes = sizeof(prompt),
                                          .deadline_ms = 1000000,
                                          .prefix = &key};
        struct scheduler_usage u = {.prompt_tokens = 1000, .output_tokens = 1};
        CHECK_INT(scheduler_submit(s, &in, 0, &out, &err), 0);
        CHECK_INT(scheduler_step(s, 0, &a, 1), 1);
        scheduler_used(s, 0, &u);
        scheduler_finished(s, 0);
    }
}

static void test_belief(void)
{
    struct scheduler *s = fresh(false);
    struct err err = {0};
    struct scheduler_group_info info = {.model = "m", .max_sequences = 2};
    scheduler_group_ready(s, 0, &info);
    CHECK(look(s, 1).value == 100 && look(s, 1).automatic);
    serve(s, 40);
    CHECK_INT(look(s, 1).value, 5); /* nothing was found of what was expected: as little as it may be */
    CHECK_INT(tune(s, "prefix_belief", 70, &err), 0);
    serve(s, 40);
    CHECK(look(s, 1).value == 70 && !look(s, 1).automatic);
    CHECK_INT(scheduler_tune(s, "prefix_belief", true, 0, &err), 0);
    CHECK_INT(look(s, 1).value, 5);
    scheduler_free(&s);
}

static void test_words(void)
{
    struct err err = {0};
    bool automatic;
    uint64_t value;
    CHECK_INT(scheduler_setting_read("x", "auto", &automatic, &value, &err), 0);
    CHECK(automatic);
    CHECK_INT(scheduler_setting_read("x", "250", &automatic, &value, &err), 0);
    CHECK(!automatic && value == 250);
    static const char *const bad[] = {"", "-1", "1.5", "12x", "Auto", "99999999999"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK_INT(scheduler_setting_read("x", bad[i], &automatic, &value, &err), -1);
}

int main(void)
{
    TEST(test_by_hand, "a setting is set by hand and handed back");
    TEST(test_refusals, "what is unknown or out of its bounds is refused and changes nothing");
    TEST(test_belief, "the belief follows what caches hold, unless it is set by hand");
    TEST(test_words, "values are read as numbers or auto");
    return test_result();
}
