#include "tests/test.h"
#include "worker/mock/engine.h"

/* 10 ms a step, 1 ms for each decoding sequence, 0.1 ms a prompt token. */
static const struct engine_speed speed = {.base_us = 10000,
                                          .decode_us = 1000,
                                          .prefill_us = 100,
                                          .step_tokens = 200,
                                          .max_sequences = 2,
                                          .kv_tokens = 1000,
                                          .cache_places = 8};

static void submit(struct engine *e, uint64_t id, uint32_t prompt, uint32_t output, uint64_t now_us)
{
    struct engine_request r = {.id = id, .prompt_tokens = prompt, .output_tokens = output};
    engine_submit(e, &r, now_us);
}

static size_t step(struct engine *e, const struct engine_event **events, uint64_t due_us)
{
    CHECK_INT(engine_due_us(e), due_us);
    return engine_step(e, events);
}

static void test_one_request(void)
{
    struct engine *e = engine_new(&speed, 1);
    const struct engine_event *v;
    CHECK(engine_due_us(e) == ENGINE_NEVER);
    submit(e, 7, 300, 3, 1000);
    CHECK_INT(step(e, &v, 21000), 0); /* a chunk of 200 tokens: 20 ms of arithmetic */
    CHECK_INT(step(e, &v, 31000), 1); /* the other 100, and the first token */
    CHECK(v[0].kind == ENGINE_TOKENS && v[0].id == 7 && v[0].tokens == 1);
    CHECK_INT(step(e, &v, 42000), 1); /* 10 ms of reading and 1 */
    CHECK_INT(v[0].tokens, 2);
    CHECK_INT(step(e, &v, 53000), 1);
    CHECK(v[0].kind == ENGINE_DONE && v[0].tokens == 3);
    CHECK(engine_due_us(e) == ENGINE_NEVER && engine_kv_used(e) == 0);
    engine_free(&e);
}

static void test_decoding_goes_beside_prefill(void)
{
    struct engine *e = engine_new(&speed, 1);
    const struct engine_event *v;
    submit(e, 1, 10, 5, 0);
    step(e, &v, 10000);
    submit(e, 2, 250, 5, 12000);      /* joins the next step */
    CHECK_INT(step(e, &v, 21000), 1); /* one decodes */
    CHECK_INT(step(e, &v, 41000), 1); /* it decodes, 199 prompt tokens beside it: 200 x 0.1 ms */
    CHECK_INT(v[0].tokens, 3);
    CHECK_INT(step(e, &v, 52000), 2); /* the other 51 */
    engine_free(&e);
}

static void test_room(void)
{
    struct engine *e = engine_new(&speed, 1);
    submit(e, 1, 800, 100, 0);
    submit(e, 2, 100, 50, 0);
    CHECK_INT(engine_running(e), 1); /* 900 of 1000 tokens are taken */
    CHECK_INT(engine_waiting(e), 1);
    engine_free(&e);
    e = engine_new(&speed, 1);
    for (uint64_t i = 0; i < 3; i++)
        submit(e, i, 10, 10, 0);
    const struct engine_event *v;
    engine_step(e, &v);
    CHECK_INT(engine_running(e), 2);
    engine_free(&e);
}

static void test_cancel(void)
{
    struct engine *e = engine_new(&speed, 1000);
    const struct engine_event *v;
    submit(e, 1, 10, 100, 0);
    step(e, &v, 10000);
    engine_cancel(e, 1, -1, 25000);   /* in the second of a long run of steps */
    engine_cancel(e, 99, -1, 25000);  /* nobody */
    CHECK_INT(step(e, &v, 32000), 1); /* it leaves with the step under way */
    CHECK(v[0].kind == ENGINE_CANCELLED && v[0].tokens == 3);
    CHECK(engine_due_us(e) == ENGINE_NEVER);
    engine_free(&e);
}

static void test_prefix(void)
{
    struct engine *e = engine_new(&speed, 1);
    const struct engine_event *v;
    struct engine_place places[] = {{11, 64}, {12, 128}, {13, 192}}, other[] = {{11, 64}, {22, 128}};
    struct engine_request r = {
        .id = 1, .prompt_tokens = 200, .output_tokens = 1, .place_count = 3, .places = places};
    engine_submit(e, &r, 0);
    CHECK_INT(step(e, &v, 20000), 1);
    CHECK_INT(v[0].cached_tokens, 0);
    r.id = 2;
    engine_submit(e, &r, 20000);
    CHECK_INT(step(e, &v, 30000), 1); /* eight tokens are left: the reading decides */
    CHECK_INT(v[0].cached_tokens, 192);
    r.place_count = 2;
    r.places = other;
    engine_submit(e, &r, 30000);
    engine_step(e, &v);
    CHECK_INT(v[0].cached_tokens, 64);
    engine_free(&e);
}

static void test_choices_share_their_prompt(void)
{
    struct engine *e = engine_new(&speed, 1);
    const struct engine_event *v;
    struct engine_request r = {.id = 1, .prompt_tokens = 200, .output_tokens = 3, .choices = 2};
    engine_submit(e, &r, 0);
    CHECK_INT(engine_running(e), 2);
    CHECK_INT(engine_kv_used(e), 200 + 2 * 3);
    CHECK_INT(step(e, &v, 20000), 1); /* the first computes it */
    CHECK(v[0].choice == 0 && v[0].cached_tokens == 0);
    CHECK_INT(step(e, &v, 31000), 2); /* the other needs its last token alone */
    CHECK(v[1].choice == 1 && v[1].tokens == 1 && v[1].cached_tokens == 199);
    CHECK_INT(step(e, &v, 43000), 2);
    CHECK(v[0].kind == ENGINE_DONE && v[1].kind == ENGINE_TOKENS);
    CHECK_INT(engine_kv_used(e), 200 + 3); /* the prompt is the other's now */
    CHECK_INT(step(e, &v, 54000), 1);
    CHECK(v[0].kind == ENGINE_DONE && engine_kv_used(e) == 0);
    engine_free(&e);
}

static void test_a_choice_goes_on_without_the_first(void)
{
    struct engine *e = engine_new(&speed, 1);
    const struct engine_event *v;
    struct engine_request r = {.id = 1, .prompt_tokens = 300, .output_tokens = 1, .choices = 2};
    engine_submit(e, &r, 0);
    engine_cancel(e, 1, 0, 5000); /* in the middle of the prompt */
    CHECK_INT(step(e, &v, 20000), 1);
    CHECK(v[0].kind == ENGINE_CANCELLED && v[0].choice == 0);
    CHECK_INT(step(e, &v, 40000), 0);
    CHECK_INT(step(e, &v, 50000), 1);
    CHECK(v[0].kind == ENGINE_DONE && v[0].choice == 1 && engine_kv_used(e) == 0);
    engine_free(&e);
}

/* The same requests, a step at a time and in long jumps: the same times. */
static void test_jumps_change_nothing(void)
{
    uint64_t ends[2][50] = {{0}};
    for (int way = 0; way < 2; way++) {
        struct engine *e = engine_new(&speed, way ? 1u << 20 : 1);
        unsigned long long random = 3;
        uint64_t next_us = 0, sent = 0, ended = 0;
        while (ended < 50) {
            uint64_t due = engine_due_us(e);
            if (sent < 50 && next_us < due) {
                submit(e, sent++, 1 + (uint32_t)(test_random(&random) % 300),
                       1 + (uint32_t)(test_random(&random) % 40), next_us);
                next_us += test_random(&random) % 200000;
                continue;
            }
            const struct engine_event *v;
            size_t count = engine_step(e, &v);
            for (size_t i = 0; i < count; i++)
                if (v[i].kind == ENGINE_DONE) {
                    ends[way][v[i].id] = due;
                    ended++;
                }
        }
        engine_free(&e);
    }
    for (int i = 0; i < 50; i++)
        CHECK_INT(ends[0][i], ends[1][i]);
}

int main(void)
{
    TEST(test_one_request, "a request takes its chunks of prefill, then a step for each token");
    TEST(test_decoding_goes_beside_prefill, "decoding goes on beside a prefill, within the tokens of a step");
    TEST(test_room, "sequences wait for KV room and for a place");
    TEST(test_cancel, "a cancelled sequence leaves with the step under way");
    TEST(test_choices_share_their_prompt, "choices share their prompt: the first computes it");
    TEST(test_a_choice_goes_on_without_the_first,
         "a choice goes on when the one that computes the prompt leaves");
    TEST(test_prefix, "a prompt that begins like an earlier one is prefilled from there");
    TEST(test_jumps_change_nothing, "steps taken as one end when they would one by one");
    return test_result();
}
