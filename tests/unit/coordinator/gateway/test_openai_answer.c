/* Tokens and ends to JSON: what jansson reads back is what the wire brought. */
#include "coordinator/gateway/openai.h"

#include "tests/test.h"

static struct openai_answer begin(enum openai_route route, bool stream, uint64_t n, bool logprobs)
{
    struct openai_request r = {.route = route, .stream = stream, .include_usage = stream};
    struct openai_answer a;
    r.ask.model = wire_string("m \"1\"");
    r.ask.sampling.n = n;
    r.ask.sampling.logprobs = logprobs;
    openai_answer_init(&a, &r, "r1", 1700000000);
    return a;
}

static struct wire_token token(uint64_t choice, const char *text)
{
    return (struct wire_token){
        .choice = choice, .text = wire_string(text), .piece = wire_string(text), .logprob = -0.5};
}

static struct wire_done done(uint64_t choice, const char *reason, const char *text)
{
    return (struct wire_done){.choice = choice,
                              .finish_reason = wire_string(reason),
                              .text = wire_string(text),
                              .prompt_tokens = 5,
                              .completion_tokens = 2,
                              .cached_tokens = 4};
}

static json_t *parse(const void *data, size_t bytes)
{
    json_error_t e;
    json_t *j = json_loadb(data, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!j)
        printf("# %s at byte %d of %.*s\n", e.text, e.position, (int)bytes, (const char *)data);
    CHECK(j);
    return j;
}

/* The next event of a stream: its object, or NULL at [DONE]. */
static json_t *next_event(struct buffer *out, size_t *at)
{
    const char *begin_of = (const char *)out->data + *at;
    const char *end = memmem(begin_of, out->size - *at, "\n\n", 2);
    CHECK(end && strncmp(begin_of, "data: ", 6) == 0);
    *at += (size_t)(end - begin_of) + 2;
    if (end - begin_of == 12 && strncmp(begin_of, "data: [DONE]", 12) == 0)
        return NULL;
    return parse(begin_of + 6, (size_t)(end - begin_of) - 6);
}

static const char *word(const json_t *event, const char *a, const char *b)
{
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0),
                 *v = json_object_get(choice, a);
    return json_string_value(b ? json_object_get(v, b) : v);
}

static void check_stream_of_chat(void)
{
    struct openai_answer a = begin(OPENAI_CHAT, true, 1, false);
    struct buffer out = {0};
    size_t at = 0;
    struct wire_token t1 = token(0, ""), t2 = token(0, "a\n\"\\\x01\xc3\xa9"), t3 = token(0, "");
    struct wire_done d = done(0, "stop", "tail");
    openai_answer_token(&a, &t1, &out); /* the first says whose turn it is, though it has no text */
    openai_answer_token(&a, &t2, &out);
    openai_answer_token(&a, &t3, &out); /* nothing to say */
    openai_answer_done(&a, &d, &out);
    openai_answer_end(&a, &out);
    json_t *e = next_event(&out, &at);
    CHECK_STR(word(e, "delta", "role"), "assistant");
    CHECK_STR(json_string_value(json_object_get(e, "object")), "chat.completion.chunk");
    CHECK_STR(json_string_value(json_object_get(e, "model")), "m \"1\"");
    CHECK_STR(json_string_value(json_object_get(e, "id")), "chatcmpl-r1");
    CHECK(json_is_null(json_object_get(e, "usage")) && json_object_get(e, "usage"));
    json_decref(e);
    e = next_event(&out, &at);
    CHECK_STR(word(e, "delta", "content"), "a\n\"\\\x01\xc3\xa9");
    CHECK(word(e, "delta", "role") == NULL);
    json_decref(e);
    e = next_event(&out, &at);
    CHECK_STR(word(e, "delta", "content"), "tail");
    CHECK_STR(word(e, "finish_reason", NULL), "stop");
    json_decref(e);
    e = next_event(&out, &at);
    CHECK_INT(json_array_size(json_object_get(e, "choices")), 0);
    CHECK_INT(json_integer_value(json_object_get(json_object_get(e, "usage"), "total_tokens")), 7);
    CHECK_INT(json_integer_value(json_object_get(
                  json_object_get(json_object_get(e, "usage"), "prompt_tokens_details"), "cached_tokens")),
              4);
    json_decref(e);
    CHECK(next_event(&out, &at) == NULL);
    CHECK_INT(at, out.size);
    buffer_release(&out);
    openai_answer_release(&a);
}

static void check_object_of_choices(void)
{
    struct openai_answer a = begin(OPENAI_COMPLETIONS, false, 2, true);
    struct buffer out = {0};
    struct wire_alternative top[] = {{.logprob = -0.5, .piece = {"b", 1}},
                                     {.logprob = -1, .piece = {"c", 1}},
                                     {.logprob = -2, .piece = {"b", 1}}};
    struct wire_token t1 = token(1, "\xc3\xa9"), t2 = token(0, "x"), t3 = token(1, "b");
    t3.top_logprobs = top;
    t3.top_count = 3;
    struct wire_done d0 = done(0, "length", ""), d1 = done(1, "stop", "z");
    openai_answer_token(&a, &t1, &out);
    openai_answer_token(&a, &t2, &out);
    openai_answer_token(&a, &t3, &out);
    openai_answer_done(&a, &d1, &out);
    openai_answer_done(&a, &d0, &out);
    CHECK_INT(out.size, 0);
    CHECK(openai_answer_bytes(&a) > 5);
    openai_answer_end(&a, &out);
    json_t *j = parse(out.data, out.size), *choices = json_object_get(j, "choices"),
           *second = json_array_get(choices, 1);
    CHECK_INT(json_array_size(choices), 2);
    CHECK_STR(json_string_value(json_object_get(second, "text")), "\xc3\xa9"
                                                                  "bz");
    CHECK_STR(json_string_value(json_object_get(second, "finish_reason")), "stop");
    json_t *l = json_object_get(second, "logprobs");
    CHECK_INT(json_integer_value(json_array_get(json_object_get(l, "text_offset"), 1)), 1); /* characters */
    CHECK_NEAR(json_number_value(json_array_get(json_object_get(l, "token_logprobs"), 0)), -0.5, 0);
    json_t *tops = json_array_get(json_object_get(l, "top_logprobs"), 1);
    CHECK_INT(json_object_size(tops), 2); /* two that look alike have one key: the likelier one's */
    CHECK_NEAR(json_number_value(json_object_get(tops, "b")), -0.5, 0);
    CHECK_INT(json_integer_value(json_object_get(json_object_get(j, "usage"), "completion_tokens")), 4);
    json_decref(j);
    buffer_release(&out);
    openai_answer_release(&a);
}

static void check_chat_logprobs(void)
{
    struct openai_answer a = begin(OPENAI_CHAT, false, 1, true);
    struct buffer out = {0};
    struct wire_alternative top[] = {{.logprob = -3.4e38, .piece = {"\0", 1}}};
    struct wire_token t = token(0, "\xc3\xa9");
    t.top_logprobs = top;
    t.top_count = 1;
    struct wire_done d = done(0, "stop", "");
    openai_answer_token(&a, &t, &out);
    openai_answer_token(&a, &t, &out);
    openai_answer_done(&a, &d, &out);
    openai_answer_end(&a, &out);
    json_t *j = parse(out.data, out.size);
    json_t *content = json_object_get(
        json_object_get(json_array_get(json_object_get(j, "choices"), 0), "logprobs"), "content");
    CHECK_INT(json_array_size(content), 2);
    json_t *entry = json_array_get(content, 1);
    CHECK_INT(json_integer_value(json_array_get(json_object_get(entry, "bytes"), 1)), 0xa9);
    json_t *other = json_array_get(json_object_get(entry, "top_logprobs"), 0);
    CHECK_INT(json_string_length(json_object_get(other, "token")), 1);
    CHECK_NEAR(json_number_value(json_object_get(other, "logprob")), -3.4e38, 1e24);
    json_decref(j);
    buffer_release(&out);
    openai_answer_release(&a);
}

static void check_errors(void)
{
    static const struct {
        int status;
        const char *type, *code;
    } of[] = {{400, "invalid_request_error", NULL},        {401, "authentication_error", "invalid_api_key"},
              {404, "invalid_request_error", "not_found"}, {429, "rate_limit_error", "queue_full"},
              {503, "server_error", "unavailable"},        {599, "server_error", NULL}};
    for (size_t i = 0; i < ARRAY_LEN(of); i++) {
        struct openai_error e;
        struct buffer out = {0};
        openai_fail(&e, of[i].status, NULL, i ? NULL : "p\"", "what \"is\" \x80 %d", 7);
        openai_error_write(&e, &out);
        json_t *j = parse(out.data, out.size), *error = json_object_get(j, "error");
        CHECK_STR(json_string_value(json_object_get(error, "message")), "what \"is\" ? 7");
        CHECK_STR(json_string_value(json_object_get(error, "type")), of[i].type);
        const char *code = json_string_value(json_object_get(error, "code"));
        CHECK(of[i].code ? code && strcmp(code, of[i].code) == 0 : !code);
        CHECK(i ? json_is_null(json_object_get(error, "param"))
                : strcmp(json_string_value(json_object_get(error, "param")), "p\"") == 0);
        json_decref(j);
        buffer_release(&out);
    }
}

int main(void)
{
    TEST(check_stream_of_chat, "a stream of chat: role, text, end, usage, [DONE]");
    TEST(check_object_of_choices, "one object of two choices with log-probabilities");
    TEST(check_chat_logprobs, "log-probabilities of chat, with bytes");
    TEST(check_errors, "errors have OpenAI's form, whatever their words hold");
    return test_result();
}
