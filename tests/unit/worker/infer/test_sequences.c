/* What a request asks of its sequences: several choices, log-probabilities, biases. Everything is in the
 * mailbox before the leader starts, and it leaves when that is served: no threads, no waiting. */
#include "worker/infer/sequences.h"

#include "tests/tiny_model.h"

enum { PROMPT = 9, MOST = 12, CHOICES = 4, REQUESTS = 3 };

struct heard {
    int32_t id[MOST], tokens, ends;
    struct token_logprobs logprobs[MOST];
    struct event end;
};

static char path[64];
static struct heard heard[REQUESTS][CHOICES];
static int32_t heard_from[CHOICES]; /* of request 0: index of the first token that is to come */

static struct sequence_request request_of(uint64_t handle, int32_t choices, float temperature)
{
    struct sequence_request r = {
        .handle = handle,
        .choices = choices,
        .prompt = malloc(PROMPT * sizeof(int32_t)),
        .prompt_tokens = PROMPT,
        .max_tokens = MOST,
        .stop_at_end = true,
        .sampling = {
            .seed = 5, .temperature = temperature, .top_p = 1, .repetition_penalty = 1, .banned_id = -1}};
    for (int32_t i = 0; i < PROMPT; i++)
        r.prompt[i] = 1 + i % 7;
    return r;
}

static void submit(struct mailbox *m, struct sequence_request r)
{
    mailbox_send(m, &(struct command){.kind = COMMAND_SUBMIT, .request = r});
}

static void take(const struct event *e)
{
    struct heard *h = &heard[e->handle][e->choice];
    CHECK_INT(h->ends, 0);
    if (e->kind == EVENT_TOKEN) {
        CHECK_INT(e->index, h->tokens);
        h->logprobs[h->tokens] = e->logprobs;
        h->id[h->tokens++] = e->id;
    } else {
        h->ends++;
        h->end = *e;
    }
}

/* Serves what is in the mailbox, with `slots` sequences at once (0: as many as the engine has). */
static void serve(struct mailbox *m, int32_t slots)
{
    static bool is_end[512];
    struct tiny_engine engine;
    struct event e;
    struct err err;
    tiny_engine_open(&engine, path, 1, 16, NULL);
    if (slots)
        engine.options.limits.slots = engine.options.limits.sequences = slots;
    mailbox_send(m, &(struct command){.kind = COMMAND_DRAIN});
    struct serve_options options = {
        .executor = engine.executor, .engine = engine.options, .mailbox = m, .is_end = is_end};
    CHECK_INT(serve_leader(&options, &err), 0);
    memset(heard, 0, sizeof(heard));
    for (int c = 0; c < CHOICES; c++)
        heard[0][c].tokens = heard_from[c];
    while (mailbox_next(m, &e))
        if (e.kind != EVENT_LEFT)
            take(&e);
    CHECK_INT(mailbox_stats(m).pages_used, 0);
    tiny_engine_close(&engine);
}

static void test_choices(void)
{
    struct mailbox *m;
    mailbox_open(&m);
    submit(m, request_of(0, 1, 1));
    submit(m, request_of(1, CHOICES, 1));
    for (int slots = 1; slots <= 8; slots += 7) {
        serve(m, slots);
        CHECK(memcmp(heard[0][0].id, heard[1][0].id, sizeof(heard[0][0].id)) == 0);
        for (int c = 0; c < CHOICES; c++) {
            CHECK_INT(heard[1][c].tokens, MOST);
            CHECK_INT(heard[1][c].ends, 1);
            CHECK_INT(heard[1][c].end.reason, FINISH_LENGTH);
            CHECK_INT(heard[1][c].end.completion_tokens, MOST);
            for (int other = 0; other < c; other++)
                CHECK(memcmp(heard[1][c].id, heard[1][other].id, sizeof(heard[1][c].id)) != 0);
        }
        submit(m, request_of(0, 1, 1));
        submit(m, request_of(1, CHOICES, 1));
    }
    mailbox_close(&m);
}

/* Of four choices one ended elsewhere, one was told whole but for its end, one is half way, one begins. */
static void test_choices_go_on_behind_what_was_delivered(void)
{
    struct mailbox *m;
    mailbox_open(&m);
    submit(m, request_of(0, CHOICES, 1));
    serve(m, 0);
    struct heard want[CHOICES];
    memcpy(want, heard[0], sizeof(want));
    struct sequence_request r = request_of(0, CHOICES, 1);
    const int32_t counts[CHOICES] = {-1, MOST, 5, 0};
    r.delivered_tokens = malloc(sizeof(counts));
    memcpy(r.delivered_tokens, counts, sizeof(counts));
    r.delivered = malloc((MOST + 5) * sizeof(int32_t));
    memcpy(r.delivered, want[1].id, MOST * sizeof(int32_t));
    memcpy(r.delivered + MOST, want[2].id, 5 * sizeof(int32_t));
    submit(m, r);
    heard_from[1] = MOST, heard_from[2] = 5;
    serve(m, 0);
    memset(heard_from, 0, sizeof(heard_from));
    CHECK(heard[0][0].ends == 0 && heard[0][0].tokens == 0);
    CHECK(heard[0][1].ends == 1 && heard[0][1].tokens == MOST && heard[0][1].end.completion_tokens == MOST);
    CHECK_INT(heard[0][1].end.reason, FINISH_LENGTH);
    CHECK(memcmp(heard[0][2].id + 5, want[2].id + 5, (MOST - 5) * sizeof(int32_t)) == 0);
    CHECK(memcmp(heard[0][3].id, want[3].id, sizeof(want[3].id)) == 0);
    CHECK(heard[0][2].end.completion_tokens == MOST && heard[0][3].end.completion_tokens == MOST);
    mailbox_close(&m);
}

static void test_one_choice_is_cancelled(void)
{
    struct mailbox *m;
    mailbox_open(&m);
    submit(m, request_of(0, CHOICES, 1));
    submit(m, request_of(1, CHOICES, 1));
    mailbox_send(m,
                 &(struct command){.kind = COMMAND_CANCEL, .request = {.handle = 0, .choice = CHOICES - 1}});
    mailbox_send(m, &(struct command){.kind = COMMAND_CANCEL, .request = {.handle = 1, .choice = -1}});
    serve(m, 0);
    for (int c = 0; c < CHOICES; c++) {
        CHECK_INT(heard[0][c].end.reason, c == CHOICES - 1 ? FINISH_CANCELLED : FINISH_LENGTH);
        CHECK_INT(heard[1][c].end.reason, FINISH_CANCELLED);
        CHECK_INT(heard[1][c].ends, 1);
    }
    mailbox_close(&m);
}

static void test_logprobs(void)
{
    struct mailbox *m;
    struct sequence_request greedy = request_of(0, 1, 0), none = request_of(1, 1, 0);
    mailbox_open(&m);
    greedy.sampling.logprobs = 1 + 5;
    submit(m, greedy);
    submit(m, none); /* in the same steps */
    serve(m, 0);
    for (int i = 0; i < MOST; i++) {
        const struct token_logprobs *l = &heard[0][0].logprobs[i];
        CHECK_INT(l->count, 5);
        CHECK_INT(l->id[0], heard[0][0].id[i]); /* greedy draws the likeliest */
        CHECK(l->drawn == l->logprob[0] && l->drawn < 0.0f);
        for (int j = 1; j < 5; j++)
            CHECK(l->logprob[j] <= l->logprob[j - 1]);
        CHECK_INT(heard[1][0].logprobs[i].count, 0);
        CHECK_INT(heard[1][0].id[i], heard[0][0].id[i]);
    }
    mailbox_close(&m);
}

/* A bias reaches its own sequence alone, and every choice of it. */
static void test_biases(void)
{
    struct mailbox *m;
    struct sequence_request biased = request_of(0, 2, 1), other = request_of(1, 1, 1);
    const struct logit_bias bias[2] = {{.id = 7, .bias = -100.0f}, {.id = 250, .bias = 100.0f}};
    mailbox_open(&m);
    biased.biases = malloc(sizeof(bias));
    memcpy(biased.biases, bias, sizeof(bias));
    biased.sampling.bias_count = 2;
    submit(m, other);
    submit(m, biased);
    serve(m, 0);
    for (int i = 0; i < MOST; i++) {
        CHECK_INT(heard[0][0].id[i], 250);
        CHECK_INT(heard[0][1].id[i], 250);
        CHECK(heard[1][0].id[i] != 250);
    }
    mailbox_close(&m);
}

int main(void)
{
    snprintf(path, sizeof(path), "/tmp/lepton-test-sequences-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    TEST(test_choices, "each choice draws its own tokens and ends once; choice 0 is the request alone");
    TEST(test_choices_go_on_behind_what_was_delivered, "choices go on behind what another group delivered");
    TEST(test_one_choice_is_cancelled, "a choice is cancelled alone, or all of them are");
    TEST(test_logprobs, "log-probabilities come with the tokens of who asked");
    TEST(test_biases, "biases reach every choice of their request and nobody else");
    unlink(path);
    return test_result();
}
