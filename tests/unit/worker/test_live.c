/* What the step thread's events become, with the events made by hand; and what an assign asks of it. */
#include "worker/live.h"

#include "tests/test.h"
#include "worker/admit.h"
#include "worker/model/gguf.h"

static struct gguf *file;
static struct tokenizer *tokenizer;

static struct wire_message assign_of(const char *request, uint64_t n, struct wire_stop *stop)
{
    struct wire_message m;
    wire_init(&m, WIRE_ASSIGN);
    m.assign.request = wire_string(request);
    m.assign.prompt = wire_string("Once");
    m.assign.max_tokens = 8;
    m.assign.sampling.n = n;
    m.assign.sampling.has_seed = true;
    m.assign.sampling.stop = stop;
    m.assign.sampling.stop_count = stop ? 1 : 0;
    return m;
}

static int32_t id_of(const char *text)
{
    struct token_ids ids = {0};
    struct tokenizer_options options = {0};
    struct err err;
    if (tokenizer_encode(tokenizer, text, strlen(text), &options, &ids, &err))
        die("%s", err.message);
    int32_t id = ids.data[ids.count - 1];
    token_ids_release(&ids);
    return id;
}

static struct event event_of(const struct live_table *t, const struct live *v, enum event_kind kind,
                             int32_t choice, int32_t index)
{
    return (struct event){.kind = kind,
                          .handle = live_handle(t, v),
                          .choice = choice,
                          .index = index,
                          .completion_tokens = index,
                          .prompt_tokens = 3,
                          .id = id_of("x"),
                          .reason = FINISH_LENGTH};
}

static void test_a_stop_ends_its_choice_alone(void)
{
    struct live_table t;
    struct live_news news;
    struct err err;
    struct wire_stop stop = {wire_string("xx")};
    struct wire_message a = assign_of("r1", 2, &stop);
    live_table_init(&t, 2, tokenizer);
    struct live *v = live_add(&t, &a.assign, &err);
    CHECK(v != NULL && !live_add(&t, &a.assign, &err) && err.code == 409);
    struct event e = event_of(&t, v, EVENT_TOKEN, 1, 0);
    live_take(&t, &e, &news);
    CHECK(news.tell && !news.cancel && news.message.token.text.size == 0); /* held back */
    e.index = 1;
    live_take(&t, &e, &news);
    CHECK(news.tell && news.cancel && news.message.token.choice == 1 && news.message.token.text.size == 0);
    CHECK(news.command.kind == COMMAND_CANCEL && news.command.request.choice == 1);
    CHECK(news.command.request.handle == live_handle(&t, v));
    e.index = 2; /* under way while the cancel was */
    live_take(&t, &e, &news);
    CHECK(!news.tell && !news.cancel);
    e = event_of(&t, v, EVENT_DONE, 1, 3);
    e.reason = FINISH_CANCELLED;
    live_take(&t, &e, &news);
    CHECK(news.tell && wire_str_is(news.message.done.finish_reason, "stop"));
    CHECK_INT(news.message.done.completion_tokens, 2); /* what was told */
    CHECK(news.message.done.text.size == 0);
    e = event_of(&t, v, EVENT_TOKEN, 0, 0);
    live_take(&t, &e, &news);
    CHECK(news.tell && news.message.token.choice == 0);
    e = event_of(&t, v, EVENT_DONE, 0, 1);
    live_take(&t, &e, &news);
    CHECK(wire_str_is(news.message.done.finish_reason, "length"));
    CHECK(wire_str_is(news.message.done.text, "x")); /* what was held was no stop */
    CHECK(live_find(&t, wire_string("r1")) == NULL);
    live_table_release(&t);
}

static void test_a_failed_choice_ends_the_request_once(void)
{
    struct live_table t;
    struct live_news news;
    struct err err;
    struct wire_message a = assign_of("r1", 3, NULL);
    live_table_init(&t, 1, tokenizer);
    struct live *v = live_add(&t, &a.assign, &err);
    struct event e = event_of(&t, v, EVENT_FAILED, 1, 4);
    live_take(&t, &e, &news);
    CHECK(!news.tell && news.cancel && news.command.request.choice == -1); /* the others are to end first */
    e = event_of(&t, v, EVENT_TOKEN, 0, 0);
    live_take(&t, &e, &news);
    CHECK(!news.tell);
    e = event_of(&t, v, EVENT_DONE, 0, 1);
    live_take(&t, &e, &news);
    CHECK(!news.tell && !news.cancel);
    struct wire_message b = assign_of("r2", 1, NULL);
    CHECK(!live_add(&t, &b.assign, &err) && err.code == 429);
    e = event_of(&t, v, EVENT_FAILED, 2, 0);
    live_take(&t, &e, &news);
    CHECK(news.tell && news.message.type == WIRE_ERROR && news.message.error.code == 500);
    CHECK(wire_str_is(news.message.error.message, "the model gave no finite logits at token 4"));
    live_take(&t, &e, &news); /* of an entry that ended: nothing */
    CHECK(!news.tell && !news.cancel);
    CHECK(live_add(&t, &b.assign, &err) != NULL);
    live_table_release(&t);
}

static void test_cancelled_tokens_are_withheld(void)
{
    struct live_table t;
    struct live_news news;
    struct err err;
    struct wire_message a = assign_of("r1", 1, NULL);
    live_table_init(&t, 1, tokenizer);
    struct live *v = live_add(&t, &a.assign, &err);
    CHECK(live_cancel(v));
    CHECK(!live_cancel(v));
    struct event e = event_of(&t, v, EVENT_TOKEN, 0, 0);
    live_take(&t, &e, &news);
    CHECK(!news.tell);
    e = event_of(&t, v, EVENT_DONE, 0, 1); /* it ended by itself just then */
    live_take(&t, &e, &news);
    CHECK(wire_str_is(news.message.done.finish_reason, "cancelled"));
    live_table_release(&t);
}

static void test_logprobs_name_their_tokens(void)
{
    struct live_table t;
    struct live_news news;
    struct err err;
    struct wire_message a = assign_of("r1", 1, NULL);
    a.assign.sampling.logprobs = true;
    a.assign.sampling.top_logprobs = 2;
    live_table_init(&t, 1, tokenizer);
    struct live *v = live_add(&t, &a.assign, &err);
    struct event e = event_of(&t, v, EVENT_TOKEN, 0, 0);
    e.logprobs = (struct token_logprobs){
        .drawn = -0.5f, .count = 2, .id = {id_of("x"), tokenizer_eos(tokenizer)}, .logprob = {-0.25f, -3.0f}};
    live_take(&t, &e, &news);
    const struct wire_token *m = &news.message.token;
    size_t bytes;
    const char *eos = tokenizer_piece(tokenizer, tokenizer_eos(tokenizer), &bytes);
    CHECK(m->logprob == -0.5 && wire_str_is(m->piece, "x") && m->top_count == 2);
    CHECK(m->top_logprobs[0].logprob == -0.25 && wire_str_is(m->top_logprobs[0].piece, "x"));
    CHECK(wire_str_equal(m->top_logprobs[1].piece, (struct wire_str){eos, (uint32_t)bytes})); /* no text */
    live_table_release(&t);
}

static int admit_with(struct wire_message *a, struct sequence_request *out, struct err *err)
{
    static struct admit admit;
    static struct wire_hello group = {.context = 64, .pages = 64, .page_tokens = 16};
    struct token_ids ids = {0};
    if (!admit.group)
        admit_init(&admit, &group, tokenizer);
    int code = admit_request(out, &a->assign, &admit, &ids, err);
    token_ids_release(&ids);
    return code;
}

static uint64_t salt_with(const char *tenant, const char *salt)
{
    struct sequence_request r;
    struct err err;
    struct wire_message a = assign_of("r1", 1, NULL);
    a.assign.tenant = wire_string(tenant);
    a.assign.service.cache_salt = wire_string(salt);
    CHECK_INT(admit_with(&a, &r, &err), 0);
    sequence_request_release(&r);
    return r.salt;
}

static void test_salts_keep_tenants_apart(void)
{
    CHECK(salt_with("alice", NULL) == salt_with("alice", NULL));
    CHECK(salt_with("alice", "s") == salt_with("alice", "s"));
    CHECK(salt_with("alice", NULL) != salt_with("bob", NULL));
    CHECK(salt_with("alice", "s") != salt_with("alice", NULL));
    CHECK(salt_with("alice", "s") != salt_with("alices", NULL)); /* where the one ends matters */
}

static void test_an_assign_becomes_a_request(void)
{
    struct sequence_request r;
    struct err err = {0};
    struct wire_message a = assign_of("r1", 3, NULL);
    struct wire_bias bias[2] = {{.id = 5, .bias = -1.5}, {.id = 1u << 30, .bias = 1}};
    a.assign.sampling.logit_bias = bias;
    a.assign.sampling.bias_count = 1;
    a.assign.sampling.logprobs = true;
    a.assign.service.priority = 7;
    a.assign.service.speculation = wire_string("ngram");
    a.assign.service.draft_tokens = 9;
    CHECK_INT(admit_with(&a, &r, &err), 0);
    CHECK(r.choices == 3 && r.priority == 7 && r.draft_tokens == 9 && r.speculation == SPECULATION_NGRAM);
    CHECK(r.sampling.bias_count == 1 && r.biases[0].id == 5 && r.biases[0].bias == -1.5f);
    CHECK_INT(r.sampling.logprobs, 1); /* the drawn one's alone */
    sequence_request_release(&r);
    a.assign.sampling.bias_count = 2;
    CHECK_INT(admit_with(&a, &r, &err), -1);
    CHECK_INT(err.code, 400);
    CHECK_CONTAINS(err.message, "logit_bias: token 1073741824, expected 0 to");
}

static void test_delivered_tokens_are_read_and_not_told(void)
{
    struct live_table t;
    struct live_news news;
    struct err err = {0};
    struct wire_stop stop = {wire_string("xxx")};
    uint32_t x = (uint32_t)id_of("x"), ids[] = {x, x, x}, stopped[4];
    struct wire_delivered of[] = {{.choice = 0, .ids = ids, .id_count = 2},
                                  {.choice = 1, .ids = ids, .id_count = 3},
                                  {.choice = 2, .ended = true}};
    struct wire_message a = assign_of("r1", 3, &stop);
    a.assign.delivered = of;
    a.assign.delivered_count = 3;
    live_table_init(&t, 1, tokenizer);
    struct live *v = live_add(&t, &a.assign, &err);
    CHECK_INT(live_resume(&t, v, &a.assign, stopped), 1);
    CHECK_INT(stopped[0], 1); /* its stop string was whole, its done was not told */
    struct event e = event_of(&t, v, EVENT_TOKEN, 0, 2);
    live_take(&t, &e, &news); /* the third x, two of which came before */
    CHECK(news.tell && news.cancel && news.message.token.index == 2 && news.message.token.text.size == 0);
    e = event_of(&t, v, EVENT_DONE, 1, 3);
    e.reason = FINISH_CANCELLED;
    live_take(&t, &e, &news);
    CHECK(wire_str_is(news.message.done.finish_reason, "stop") && news.message.done.completion_tokens == 3);
    e = event_of(&t, v, EVENT_DONE, 0, 3);
    live_take(&t, &e, &news);
    CHECK(wire_str_is(news.message.done.finish_reason, "stop") && news.message.done.completion_tokens == 3);
    CHECK(live_find(&t, wire_string("r1")) == NULL); /* the third had ended elsewhere */
    live_table_release(&t);
}

static void check_refused(const struct wire_message *a, int code, const char *why)
{
    struct sequence_request r;
    struct wire_message copy = *a;
    struct err err = {0};
    CHECK_INT(admit_with(&copy, &r, &err), -1);
    CHECK_INT(err.code, code);
    CHECK_CONTAINS(err.message, why);
}

static void test_what_was_delivered_reaches_the_step_thread(void)
{
    struct sequence_request r;
    struct err err = {0};
    uint32_t one[] = {5, 6}, two[] = {7, 8, 9};
    struct wire_delivered of[] = {{.choice = 2, .ids = two, .id_count = 3},
                                  {.choice = 1, .ended = true},
                                  {.choice = 0, .ids = one, .id_count = 2}};
    struct wire_message a = assign_of("r1", 4, NULL);
    a.assign.delivered = of;
    a.assign.delivered_count = 3;
    CHECK_INT(admit_with(&a, &r, &err), 0);
    const int32_t counts[] = {2, -1, 3, 0}, ids[] = {5, 6, 7, 8, 9};
    CHECK(memcmp(r.delivered_tokens, counts, sizeof(counts)) == 0);
    CHECK(memcmp(r.delivered, ids, sizeof(ids)) == 0);
    sequence_request_release(&r);
    a.assign.context = 10; /* it began where no more fit: it ends where it would have ended there */
    CHECK_INT(admit_with(&a, &r, &err), 0);
    CHECK(r.max_tokens > 3 && r.max_tokens + r.prompt_tokens == 10);
    sequence_request_release(&r);
    a.assign.context = 0;
    a.assign.max_tokens = 2;
    check_refused(&a, 413, "choice 2 has 3 tokens already, this group has room for 2");
    a.assign.max_tokens = 8;
    two[1] = 1u << 30;
    check_refused(&a, 400, "delivered: token 1073741824, expected 0 to");
    of[0].choice = 0;
    two[1] = 8;
    check_refused(&a, 400, "delivered: choice 0, expected each of 0 to 3 once");
    of[0] = (struct wire_delivered){.choice = 4};
    check_refused(&a, 400, "delivered: choice 4");
    of[0] = (struct wire_delivered){.choice = 0, .ended = true};
    a.assign.delivered_count = 1;
    a.assign.sampling.n = 1;
    check_refused(&a, 400, "every choice has ended");
}

int main(void)
{
    struct err err;
    if (gguf_open(&file, "tools/demo/lepton-demo.gguf", &err) || tokenizer_open(&tokenizer, file, &err))
        die("%s", err.message);
    TEST(test_a_stop_ends_its_choice_alone, "a stop string ends its choice, and the others go on");
    TEST(test_a_failed_choice_ends_the_request_once,
         "a failed choice ends the request: one error, when nothing of it runs any more");
    TEST(test_cancelled_tokens_are_withheld,
         "tokens behind a cancel are withheld, and the end says cancelled");
    TEST(test_logprobs_name_their_tokens, "log-probabilities carry the text of each token");
    TEST(test_salts_keep_tenants_apart, "salts are one tenant's and one cache_salt's");
    TEST(test_an_assign_becomes_a_request, "what an assign asks for reaches the step thread, or is refused");
    TEST(test_delivered_tokens_are_read_and_not_told,
         "what another group delivered is read by stop strings and not told again");
    TEST(test_what_was_delivered_reaches_the_step_thread,
         "what another group delivered reaches the step thread, or is refused");
    tokenizer_close(&tokenizer);
    gguf_close(&file);
    return test_result();
}
