#include "worker/infer/step.h"

#include "tests/test.h"

static const struct step_limits limits = {.tokens = 16,
                                          .sequences = 4,
                                          .slots = 4,
                                          .context = 64,
                                          .pages = 8,
                                          .pages_per_sequence = 4,
                                          .vocab = 100,
                                          .page_ops = 6,
                                          .biases = 4};

static void fill(struct step *s)
{
    step_clear(s, 42, 0);
    s->sequences[0] = (struct step_sequence){.slot = 1, .position = 3, .tokens = 2, .sample = 1};
    s->sequences[0].row = (struct sample_row){.slot = 1, .history_tokens = 5, .prompt_tokens = 4, .seed = 9};
    s->sequences[1] = (struct step_sequence){.slot = 0, .position = 0, .tokens = 3};
    s->sequence_count = 2;
    s->token_count = 5;
    s->sample_count = 1;
    for (int i = 0; i < 5; i++)
        s->ids[i] = 10 * i;
    s->ops[0] = (struct page_op){.kind = PAGE_ASSIGN, .a = 1, .b = 0, .c = 7};
    s->ops[1] = (struct page_op){.kind = PAGE_MOVE, .a = -1, .b = 3};
    s->op_count = 2;
    s->sequences[0].row.logprobs = 3;
    step_add_biases(s, &s->sequences[0].row,
                    (struct logit_bias[]){{.id = 3, .bias = 1.5f}, {.id = 99, .bias = -100.0f}}, 2);
    step_add_time(s, &(struct stage_time){700, 20, 1, 1300});
    step_add_time(s, &(struct stage_time){800, 0, 1, 1600});
}

static void test_round_trip(void)
{
    struct step a, b;
    struct buffer bytes = {0};
    struct err err;
    step_init(&a, &limits);
    step_init(&b, &limits);
    fill(&a);
    step_encode(&a, &bytes);
    CHECK(bytes.size <= step_max_bytes(&limits));
    CHECK_INT(step_decode(&b, bytes.data, bytes.size, &limits, &err), 0);
    CHECK_INT(b.id, 42);
    CHECK(memcmp(a.sequences, b.sequences, 2 * sizeof(*a.sequences)) == 0);
    CHECK(memcmp(a.ids, b.ids, 5 * sizeof(*a.ids)) == 0);
    CHECK(memcmp(a.ops, b.ops, 2 * sizeof(*a.ops)) == 0);
    CHECK_INT(b.bias_count, 2);
    CHECK(memcmp(a.biases, b.biases, 2 * sizeof(*a.biases)) == 0);
    CHECK_INT(b.time_count, 2);
    CHECK(memcmp(a.times, b.times, 2 * sizeof(*a.times)) == 0);
    CHECK(step_wants_logprobs(&b));
    b.sequences[0].row.logprobs = 0;
    CHECK(!step_wants_logprobs(&b));
    step_release(&a);
    step_release(&b);
    buffer_release(&bytes);
}

static void test_truncation_at_every_byte_is_refused(void)
{
    struct step a;
    struct buffer bytes = {0};
    struct err err;
    step_init(&a, &limits);
    fill(&a);
    step_encode(&a, &bytes);
    for (size_t n = 0; n < bytes.size; n++) {
        uint8_t *copy = malloc(n ? n : 1); /* exact size, so that a sanitizer sees a read past it */
        memcpy(copy, bytes.data, n);
        CHECK_INT(step_decode(&a, copy, n, &limits, &err), -1);
        free(copy);
    }
    buffer_printf(&bytes, "x");
    CHECK_INT(step_decode(&a, bytes.data, bytes.size, &limits, &err), -1);
    CHECK_CONTAINS(err.message, "1 bytes too many");
    step_release(&a);
    buffer_release(&bytes);
}

/* One wrong number each, and a word of the message it must give. */
static const struct {
    const char *what, *says;
} cases[] = {{"slot", "slot 9"},
             {"position", "position 63"},
             {"tokens", "tokens 0"},
             {"history", "history"},
             {"id", "token id 100"},
             {"id negative", "token id -1"},
             {"count", "the header says"},
             {"op slot", "page operation 0"},
             {"op page", "page operation 0"},
             {"move", "page operation 1"},
             {"kind", "page operation 1"},
             {"samples", "samples"},
             {"more samples than rows", "sequence 0: 3 samples of 2 rows"},
             {"history behind a draft", "history"},
             {"bias id", "bias 1: token id 100"},
             {"bias begin", "biases 3 to 5 of 2"},
             {"bias count", "biases 0 to 3 of 2"},
             {"logprobs", "22 log-probabilities"},
             {"times", "times of 256 stages"}};

static void damage(struct step *s, const char *what)
{
    if (!strcmp(what, "times"))
        s->time_count = STEP_MAX_STAGES;
    else if (!strcmp(what, "slot"))
        s->sequences[0].slot = 9;
    else if (!strcmp(what, "position"))
        s->sequences[0].position = 63;
    else if (!strcmp(what, "tokens"))
        s->sequences[1].tokens = 0;
    else if (!strcmp(what, "history"))
        s->sequences[0].row.history_tokens = 65;
    else if (!strcmp(what, "id"))
        s->ids[2] = 100;
    else if (!strcmp(what, "id negative"))
        s->ids[2] = -1;
    else if (!strcmp(what, "count"))
        s->sequences[1].tokens = 2;
    else if (!strcmp(what, "op slot"))
        s->ops[0].a = 4;
    else if (!strcmp(what, "op page"))
        s->ops[0].c = 8;
    else if (!strcmp(what, "move"))
        s->ops[1].b = -1;
    else if (!strcmp(what, "kind"))
        s->ops[1].kind = 3;
    else if (!strcmp(what, "bias id"))
        s->biases[1].id = 100;
    else if (!strcmp(what, "bias begin"))
        s->sequences[0].row.bias_begin = 3;
    else if (!strcmp(what, "bias count"))
        s->sequences[0].row.bias_count = 3;
    else if (!strcmp(what, "logprobs"))
        s->sequences[0].row.logprobs = 22;
    else if (!strcmp(what, "more samples than rows"))
        s->sample_count = s->sequences[0].sample = 3;
    else if (!strcmp(what, "history behind a draft")) {
        s->sample_count = s->sequences[0].sample = 2;
        s->sequences[0].row.history_tokens = 64;
    } else
        s->sample_count = 2;
}

static void test_numbers_over_the_limits_are_refused(void)
{
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct step a, b;
        struct buffer bytes = {0};
        struct err err = {0};
        step_init(&a, &limits);
        step_init(&b, &limits);
        fill(&a);
        damage(&a, cases[i].what);
        step_encode(&a, &bytes);
        CHECK_INT(step_decode(&b, bytes.data, bytes.size, &limits, &err), -1);
        CHECK_CONTAINS(err.message, cases[i].says);
        step_release(&a);
        step_release(&b);
        buffer_release(&bytes);
    }
}

int main(void)
{
    TEST(test_round_trip, "a step survives encoding and decoding");
    TEST(test_truncation_at_every_byte_is_refused, "a descriptor cut at any byte, or too long, is refused");
    TEST(test_numbers_over_the_limits_are_refused, "each number over its limit is refused by name");
    return test_result();
}
