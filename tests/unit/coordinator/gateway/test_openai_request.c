/* Bodies to requests: each field, and a corpus of bad bodies of which each has its own error. */
#include "coordinator/gateway/openai.h"

#include "tests/test.h"

/* Conversations as "role: content" lines. */
static int render(void *context, struct wire_str model, const json_t *messages, struct openai_prompt *out,
                  struct err *err)
{
    (void)context;
    if (wire_str_is(model, "plain"))
        return err_set_code(err, 404, "no chat template for model \"plain\"");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        buffer_printf(&out->text, "%s: %s\n", json_string_value(json_object_get(m, "role")),
                      json_string_value(json_object_get(m, "content")));
    }
    out->no_bos = true;
    out->stop = "<end>";
    return 0;
}
static const struct openai_chat chat = {.render = render};

static int take(struct openai_request *r, enum openai_route route, const char *body, struct openai_error *e)
{
    *e = (struct openai_error){.code = NULL};
    return openai_read(r, route, body, strlen(body), &chat, e);
}

static void check_every_field_of_completions(void)
{
    struct openai_request r;
    struct openai_error e;
    CHECK_INT(
        take(&r, OPENAI_COMPLETIONS,
             "{\"model\":\"m\",\"prompt\":\"a\\u0000b\",\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.9,"
             "\"top_k\":40,\"min_p\":0.1,\"n\":3,\"stop\":[\"x\",\"yy\"],\"seed\":9007199254740993,"
             "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"logprobs\":2,"
             "\"logit_bias\":{\"5\":-100,\"17\":2.5},\"presence_penalty\":1,\"frequency_penalty\":-1,"
             "\"repetition_penalty\":1.1,\"ignore_eos\":true,\"no_bos\":true,\"special\":true,"
             "\"speculation\":\"off\",\"draft_tokens\":3,\"cache_salt\":\"s\",\"priority\":10,"
             "\"deadline_ms\":5000,\"request_id\":\"mine\",\"service_tier\":\"flex\",\"user\":\"u\","
             "\"metadata\":{},\"echo\":false,\"suffix\":null,\"best_of\":1}",
             &e),
        0);
    const struct wire_generate *g = &r.ask;
    const struct wire_sampling *s = &g->sampling;
    CHECK(wire_str_is(g->model, "m") && g->prompt.size == 3 && memcmp(g->prompt.data, "a\0b", 3) == 0);
    CHECK_INT(g->max_tokens, 7);
    CHECK_NEAR(s->temperature, 0.5, 0);
    CHECK_NEAR(s->top_p, 0.9, 0);
    CHECK_NEAR(s->min_p, 0.1, 0);
    CHECK_INT(s->top_k, 40);
    CHECK_INT(s->n, 3);
    CHECK(s->stop_count == 2 && wire_str_is(s->stop[0].text, "x") && wire_str_is(s->stop[1].text, "yy"));
    CHECK(s->has_seed && s->seed == 9007199254740993);
    CHECK(r.stream && r.include_usage);
    CHECK(s->logprobs && s->top_logprobs == 2);
    CHECK(s->bias_count == 2 && s->logit_bias[0].id == 5 && s->logit_bias[1].bias == 2.5);
    CHECK_NEAR(s->presence_penalty, 1, 0);
    CHECK_NEAR(s->frequency_penalty, -1, 0);
    CHECK_NEAR(s->repetition_penalty, 1.1, 0);
    CHECK(s->ignore_eos && g->no_bos && g->special);
    CHECK(wire_str_is(g->service.speculation, "off") && wire_str_is(g->service.cache_salt, "s"));
    CHECK(g->service.draft_tokens == 3 && g->service.priority == 10 && g->timeout_ms == 5000);
    CHECK(wire_str_is(g->class, "batch") && wire_str_is(r.request_id, "mine"));
    CHECK_STR(r.ignored, "user, metadata");
    openai_release(&r);
}

static void check_defaults(void)
{
    struct openai_request r;
    struct openai_error e;
    struct wire_message m;
    struct buffer a = {0}, b = {0};
    CHECK_INT(take(&r, OPENAI_COMPLETIONS, "{\"prompt\":[\"hi\"],\"temperature\":null,\"stream\":false}", &e),
              0);
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string("r");
    m.generate.prompt = wire_string("hi");
    wire_encode(&m, &a);
    m.generate = r.ask;
    m.generate.request = wire_string("r");
    wire_encode(&m, &b);
    CHECK(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    CHECK(!r.stream && r.ignored[0] == '\0');
    buffer_release(&a);
    buffer_release(&b);
    openai_release(&r);
}

static void check_conversation(void)
{
    struct openai_request r;
    struct openai_error e;
    CHECK_INT(
        take(&r, OPENAI_CHAT,
             "{\"messages\":[{\"role\":\"developer\",\"content\":\"Be "
             "brief.\"},{\"role\":\"user\",\"content\":"
             "[{\"type\":\"text\",\"text\":\"Hel\"},{\"type\":\"text\",\"text\":\"lo\"}],\"name\":\"a\"}],"
             "\"max_completion_tokens\":9,\"logprobs\":true,\"top_logprobs\":4,\"stop\":\"x\",\"tools\":[],"
             "\"tool_choice\":\"none\",\"response_format\":{\"type\":\"text\"}}",
             &e),
        0);
    CHECK(wire_str_is(r.ask.prompt, "system: Be brief.\nuser: Hello\n"));
    CHECK(r.ask.special && r.ask.no_bos && r.ask.max_tokens == 9);
    CHECK(r.ask.sampling.logprobs && r.ask.sampling.top_logprobs == 4);
    CHECK(r.ask.sampling.stop_count == 2 && wire_str_is(r.ask.sampling.stop[1].text, "<end>"));
    openai_release(&r);
}

#define P "{\"prompt\":\"x\","
#define M "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"

static const struct bad {
    enum openai_route route;
    const char *body;
    int status;
    const char *param; /* "" none */
    const char *words;
} corpus[] = {
    {OPENAI_COMPLETIONS, "", 400, "", "the body is empty"},
    {OPENAI_COMPLETIONS, "{", 400, "", "line 1, column"},
    {OPENAI_COMPLETIONS, "[1]", 400, "", "expected a JSON object"},
    {OPENAI_COMPLETIONS, "\"x\"", 400, "", "no JSON"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":1} x", 400, "", "end of file expected"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":1,}", 400, "", "string or '}' expected"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"x\",\"prompt\":\"y\"}", 400, "", "duplicate object key"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"\\ud800\"}", 400, "", "\\uD800"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"\\udc00x\"}", 400, "", "\\uDC00"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"\xff\"}", 400, "", "unable to decode byte 0xff"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"\xed\xa0\x80\"}", 400, "", "unable to decode byte 0xed"},
    {OPENAI_COMPLETIONS, "{\"prompt\":\"a\nb\"}", 400, "", "unexpected newline"},
    {OPENAI_COMPLETIONS, "{\"a\\u0000b\":1}", 400, "", "NUL byte in object key"},
    {OPENAI_COMPLETIONS, P "\"temperature\":NaN}", 400, "", "invalid token near 'NaN'"},
    {OPENAI_COMPLETIONS, P "\"temperature\":Infinity}", 400, "", "invalid token"},
    {OPENAI_COMPLETIONS, P "\"temperature\":1e400}", 400, "", "real number overflow"},
    {OPENAI_COMPLETIONS, P "\"temperature\":-0.1}", 400, "temperature", "from 0 to 100"},
    {OPENAI_COMPLETIONS, P "\"temperature\":\"1\"}", 400, "temperature", "expected a number"},
    {OPENAI_COMPLETIONS, P "\"temperature\":true}", 400, "temperature", "expected a number"},
    {OPENAI_COMPLETIONS, P "\"top_p\":0}", 400, "top_p", "above 0 to 1"},
    {OPENAI_COMPLETIONS, P "\"min_p\":1.01}", 400, "min_p", "from 0 to 1"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":0}", 400, "max_tokens", "from 1 to 1048576"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":-1}", 400, "max_tokens", "from 1 to 1048576"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":1.5}", 400, "max_tokens", "an integer"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":99999999999999999999}", 400, "", "too big integer"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":-99999999999999999999}", 400, "", "too big negative integer"},
    {OPENAI_COMPLETIONS, P "\"seed\":-5}", 400, "seed", "from 0 to 9223372036854775807"},
    {OPENAI_COMPLETIONS, P "\"top_k\":2147483648}", 400, "top_k", "from 0 to 2147483647"},
    {OPENAI_COMPLETIONS, P "\"n\":129}", 400, "n", "from 1 to 128"},
    {OPENAI_COMPLETIONS, P "\"n\":0}", 400, "n", "from 1 to 128"},
    {OPENAI_COMPLETIONS, P "\"stream\":1}", 400, "stream", "true or false"},
    {OPENAI_COMPLETIONS, P "\"ignore_eos\":\"no\"}", 400, "ignore_eos", "true or false"},
    {OPENAI_COMPLETIONS, P "\"stop\":\"\"}", 400, "stop", "1 to 1024 bytes"},
    {OPENAI_COMPLETIONS, P "\"stop\":[\"a\",1]}", 400, "stop", "1 to 1024 bytes"},
    {OPENAI_COMPLETIONS,
     P "\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
       "\"a\","
       "\"a\"]}",
     400, "stop", "at most 16"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":[]}", 400, "logit_bias", "an object"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":{\"x\":1}}", 400, "logit_bias", "expected a token id"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":{\"-1\":1}}", 400, "logit_bias", "expected a token id"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":{\"007\":1}}", 400, "logit_bias", "expected a token id"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":{\"4294967296\":1}}", 400, "logit_bias", "expected a token id"},
    {OPENAI_COMPLETIONS, P "\"logit_bias\":{\"1\":101}}", 400, "logit_bias", "of token 1"},
    {OPENAI_COMPLETIONS, P "\"logprobs\":21}", 400, "logprobs", "from 0 to 20"},
    {OPENAI_COMPLETIONS, P "\"logprobs\":true}", 400, "logprobs", "from 0 to 20"},
    {OPENAI_COMPLETIONS, P "\"top_logprobs\":1}", 400, "top_logprobs", "is not known here"},
    {OPENAI_COMPLETIONS, P "\"speculation\":\"yes\"}", 400, "speculation", "ngram|off"},
    {OPENAI_COMPLETIONS, P "\"priority\":1001}", 400, "priority", "from 0 to 1000"},
    {OPENAI_COMPLETIONS, P "\"cache_salt\":\"a\\u0000\"}", 400, "cache_salt", "a string of at most 256"},
    {OPENAI_COMPLETIONS, P "\"model\":\"a\\u0000\"}", 400, "model", "a string of at most 128"},
    {OPENAI_COMPLETIONS, P "\"model\":7}", 400, "model", "a string"},
    {OPENAI_COMPLETIONS, P "\"deadline_ms\":86400001}", 400, "deadline_ms", "from 0 to 86400000"},
    {OPENAI_COMPLETIONS, P "\"request_id\":\"\"}", 400, "request_id", "1 to 256 bytes"},
    {OPENAI_COMPLETIONS, P "\"service_tier\":\"gold\"}", 400, "service_tier", "auto, default"},
    {OPENAI_COMPLETIONS, P "\"echo\":true}", 400, "echo", "is not served"},
    {OPENAI_COMPLETIONS, P "\"suffix\":\"y\"}", 400, "suffix", "is not served"},
    {OPENAI_COMPLETIONS, P "\"best_of\":2}", 400, "best_of", "expected 1"},
    {OPENAI_COMPLETIONS, P "\"temprature\":1}", 400, "temprature", "is not known here"},
    {OPENAI_COMPLETIONS, P "\"f\\u00fc\":1}", 400, "f??", "is not known here"},
    {OPENAI_COMPLETIONS, P "\"stream_options\":{\"include_usage\":true}}", 400, "stream_options",
     "without stream"},
    {OPENAI_COMPLETIONS, P "\"stream\":true,\"stream_options\":{\"x\":1}}", 400, "stream_options",
     "include_usage"},
    {OPENAI_COMPLETIONS, P "\"stream_options\":1}", 400, "stream_options", "an object"},
    {OPENAI_COMPLETIONS, P "\"messages\":[]}", 400, "messages", "is not known here"},
    {OPENAI_COMPLETIONS, "{\"max_tokens\":1}", 400, "prompt", "is missing"},
    {OPENAI_COMPLETIONS, "{\"prompt\":null}", 400, "prompt", "is missing"},
    {OPENAI_COMPLETIONS, "{\"prompt\":[1,2]}", 400, "prompt", "array of one string"},
    {OPENAI_COMPLETIONS, "{\"prompt\":[\"a\",\"b\"]}", 400, "prompt", "array of one string"},
    {OPENAI_COMPLETIONS, P "\"max_tokens\":1,\"max_completion_tokens\":2}", 400, "max_completion_tokens",
     "the same"},
    {OPENAI_CHAT, P "\"n\":1}", 400, "prompt", "is not known here"},
    {OPENAI_CHAT, "{\"n\":1}", 400, "messages", "is missing"},
    {OPENAI_CHAT, "{\"messages\":[]}", 400, "messages", "at least one"},
    {OPENAI_CHAT, "{\"messages\":{}}", 400, "messages", "at least one"},
    {OPENAI_CHAT, "{\"messages\":[1]}", 400, "messages", "messages[0]: expected an object"},
    {OPENAI_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", 400, "messages", "messages[0].role"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", 400, "messages",
     "messages[0].role"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", 400, "messages", "messages[0].content"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", 400,
     "messages", "parts of type text"},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[]}]}", 400,
     "messages", "messages[0].tool_calls"},
    {OPENAI_CHAT, M "\"top_logprobs\":2}", 400, "top_logprobs", "without logprobs"},
    {OPENAI_CHAT, M "\"logprobs\":1}", 400, "logprobs", "true or false"},
    {OPENAI_CHAT, M "\"tools\":[{}]}", 400, "tools", "is not served"},
    {OPENAI_CHAT, M "\"tool_choice\":\"required\"}", 400, "tool_choice", "tools are not served"},
    {OPENAI_CHAT, M "\"response_format\":{\"type\":\"json_object\"}}", 400, "response_format",
     "other formats"},
    {OPENAI_CHAT, M "\"response_format\":\"text\"}", 400, "response_format", "other formats"},
    {OPENAI_CHAT, M "\"model\":\"plain\"}", 404, "messages", "no chat template"},
};

static void check_bad_bodies(void)
{
    for (size_t i = 0; i < ARRAY_LEN(corpus); i++) {
        const struct bad *b = &corpus[i];
        struct openai_request r;
        struct openai_error e;
        int before = test_failures;
        CHECK_INT(take(&r, b->route, b->body, &e), -1);
        CHECK_INT(e.err.code, b->status);
        CHECK_STR(e.param, b->param);
        CHECK_CONTAINS(e.err.message, b->words);
        if (test_failures != before)
            printf("# of %s\n", b->body);
        openai_release(&r);
    }
}

/* A body of `count` times `piece`, then what closes it. */
static int take_many(const char *begin, const char *piece, size_t count, struct openai_error *e)
{
    struct buffer body = {0};
    struct openai_request r;
    buffer_append(&body, begin, strlen(begin));
    for (size_t i = 0; i < count; i++)
        buffer_append(&body, piece, strlen(piece));
    *e = (struct openai_error){.code = NULL};
    int rc = openai_read(&r, OPENAI_COMPLETIONS, body.data, body.size, NULL, e);
    openai_release(&r);
    buffer_release(&body);
    return rc;
}

static void check_bombs(void)
{
    struct openai_error e;
    CHECK_INT(take_many("{\"metadata\":", "[", 100000, &e), -1);
    CHECK_CONTAINS(e.err.message, "too many levels of nesting, expected at most 32");
    CHECK_INT(take_many("{\"metadata\":", "{\"a\":", 33, &e), -1);
    CHECK_CONTAINS(e.err.message, "nesting");
    CHECK_INT(take_many("{\"metadata\":[0", ",0", 1000000, &e), -1);
    CHECK_CONTAINS(e.err.message, "too many values, expected at most 262144");
    CHECK_INT(take_many("{\"metadata\":[", "\"\",", 1000000, &e), -1);
    CHECK_CONTAINS(e.err.message, "too many values");
    CHECK_INT(take_many("{\"prompt\":\"", "[[[[\\\"", 20000, &e), -1); /* inside a string nothing counts */
    CHECK_CONTAINS(e.err.message, "premature end of input");
}

static void check_too_large(void)
{
    struct openai_error e;
    struct openai_request r;
    struct buffer body = {0};
    buffer_printf(&body, "{\"prompt\":\"");
    for (size_t i = 0; i < WIRE_MAX_PROMPT / 16 + 1; i++)
        buffer_append(&body, "0123456789abcdef", 16);
    buffer_printf(&body, "\"}");
    CHECK_INT(openai_read(&r, OPENAI_COMPLETIONS, body.data, body.size, NULL, &e), -1);
    CHECK_INT(e.err.code, 413);
    openai_release(&r);
    buffer_release(&body);
}

static void check_no_template(void)
{
    struct openai_error e = {.code = NULL};
    struct openai_request r;
    const char *body = M "\"n\":1}";
    CHECK_INT(openai_read(&r, OPENAI_CHAT, body, strlen(body), NULL, &e), -1);
    CHECK_INT(e.err.code, 404);
    CHECK_STR(e.code, "no_chat_template");
    openai_release(&r);
}

/* Cut anywhere, a body is refused and never read past its end (ASan sees that). */
static void check_truncated(void)
{
    const char *body = M "\"stop\":[\"a\\u00e9\\ud83d\\ude00\"],\"logit_bias\":{\"1\":-1.5e0},\"n\":2}";
    for (size_t n = 0; n < strlen(body); n++) {
        char *copy = malloc(n ? n : 1);
        struct openai_request r;
        struct openai_error e = {.code = NULL};
        memcpy(copy, body, n);
        CHECK_INT(openai_read(&r, OPENAI_CHAT, copy, n, &chat, &e), -1);
        CHECK(e.err.code == 400 && e.err.message[0]);
        openai_release(&r);
        free(copy);
    }
}

int main(void)
{
    TEST(check_every_field_of_completions, "every field of completions reaches the generate");
    TEST(check_defaults, "a body that says nothing more asks for what a bare generate asks");
    TEST(check_conversation, "a conversation becomes a prompt, and its template's end a stop");
    TEST(check_bad_bodies, "each bad body is refused with its own status, field and words");
    TEST(check_bombs, "nesting and values are bounded before a tree is made");
    TEST(check_too_large, "a prompt that no frame holds is refused with 413");
    TEST(check_no_template, "a conversation without a template is refused with 404");
    TEST(check_truncated, "a body cut anywhere is refused");
    return test_result();
}
