/* An answer between two threads: who sleeps is woken once, bytes come in order, and what waits is bounded. */
#include "coordinator/gateway/exchange.h"

#include "tests/test.h"

struct sleeper {
    int sleeps, wakes;
};

static void fall_asleep(void *context)
{
    ((struct sleeper *)context)->sleeps++;
}

static void awake(void *context)
{
    ((struct sleeper *)context)->wakes++;
}

static struct exchange *make(bool stream, struct sleeper *s)
{
    static const char body[] = "{\"prompt\":\"p\",\"stop\":[\"end\"],\"stream\":true}",
                      whole[] = "{\"prompt\":\"p\",\"stop\":[\"end\"]}";
    struct openai_request r;
    struct openai_error e;
    CHECK_INT(
        openai_read(&r, OPENAI_COMPLETIONS, stream ? body : whole, strlen(stream ? body : whole), NULL, &e),
        0);
    struct exchange *x = exchange_new(&r, "r1", 1);
    x->sleep = fall_asleep;
    x->wake = awake;
    x->context = s;
    CHECK(r.body == NULL && wire_str_is(x->request.ask.sampling.stop[0].text, "end"));
    return x;
}

static struct wire_token token(const char *text, uint64_t index)
{
    return (struct wire_token){.index = index, .id = 100 + index, .text = wire_string(text)};
}

static const struct wire_done end_of = {
    .finish_reason = {"stop", 4}, .prompt_tokens = 1, .completion_tokens = 2};

static void check_stream(void)
{
    struct sleeper s = {0};
    struct exchange *x = make(true, &s);
    char bytes[4096];
    bool drained;
    CHECK_INT(exchange_status(x), 0);
    CHECK(s.sleeps == 1 && s.wakes == 0);
    struct wire_token t = token("a", 0);
    CHECK(exchange_token(x, &t, 10));
    CHECK(s.wakes == 1);
    t = token("b", 1);
    CHECK(exchange_token(x, &t, 11));
    CHECK(s.wakes == 1); /* nobody slept */
    CHECK_INT(exchange_status(x), 200);
    CHECK_INT(exchange_take(x, bytes, 10, &drained), 10);
    CHECK(memcmp(bytes, "data: {\"id", 10) == 0 && !drained);
    CHECK(exchange_take(x, bytes, sizeof(bytes), &drained) > 0);
    CHECK_INT(exchange_take(x, bytes, sizeof(bytes), &drained), 0);
    CHECK(s.sleeps == 2);
    CHECK(exchange_done(x, &end_of, 12));
    CHECK(s.wakes == 2);
    long n = exchange_take(x, bytes, sizeof(bytes), &drained);
    CHECK(n > 14 && memcmp(bytes + n - 14, "data: [DONE]\n\n", 14) == 0);
    CHECK_INT(exchange_take(x, bytes, sizeof(bytes), &drained), -1);
    CHECK(x->choices[0].count == 2 && x->choices[0].ids[1] == 101 && x->choices[0].over);
    CHECK(!exchange_leave(x));
    exchange_release(x);
}

static void check_credit(void)
{
    struct sleeper s = {0};
    struct exchange *x = make(true, &s);
    char bytes[65536];
    bool drained;
    CHECK_INT(exchange_credit(x), EXCHANGE_CREDIT);
    for (uint64_t i = 0; i < EXCHANGE_CREDIT; i++) {
        struct wire_token t = token(i % 4 == 3 ? "" : "a", i);
        exchange_token(x, &t, i);
    }
    CHECK_INT(exchange_grant(x), 0);  /* nothing was read */
    CHECK_INT(exchange_credit(x), 1); /* a coordinator that is new may send little more */
    CHECK(exchange_take(x, bytes, 100, &drained) == 100 && !drained);
    CHECK_INT(exchange_grant(x), 0);
    CHECK(exchange_take(x, bytes, sizeof(bytes), &drained) > 0 && drained);
    CHECK_INT(exchange_grant(x), EXCHANGE_CREDIT);
    CHECK_INT(exchange_grant(x), 0);
    struct wire_token silent = token("", EXCHANGE_CREDIT); /* it says nothing: nobody has to read it */
    exchange_token(x, &silent, 99);
    CHECK_INT(exchange_grant(x), 1);
    exchange_release(x);
}

static void check_whole(void)
{
    struct sleeper s = {0};
    struct exchange *x = make(false, &s);
    struct wire_token t = token("a", 0);
    CHECK_INT(exchange_status(x), 0);
    exchange_token(x, &t, 10);
    exchange_ping(x, 1, 1000);
    CHECK(s.wakes == 0 && x->out.size == 0); /* one object is said when it is whole */
    CHECK(exchange_done(x, &end_of, 12));
    CHECK(s.wakes == 1);
    CHECK_INT(exchange_status(x), 200);
    CHECK(x->out.size > 100 && x->out.data[x->out.size - 1] == '}');
    exchange_release(x);
}

static void check_errors(void)
{
    struct sleeper s = {0};
    struct openai_error e;
    char bytes[4096] = "";
    bool drained;
    struct exchange *x = make(true, &s);
    openai_fail(&e, 503, NULL, NULL, "away");
    exchange_fail(x, &e, 1); /* before anything was said: a status */
    CHECK_INT(exchange_status(x), 503);
    CHECK_STR(x->error.err.message, "away");
    exchange_release(x);
    x = make(true, &s);
    exchange_ping(x, 100, 50);
    CHECK_INT(x->status, 0);
    exchange_ping(x, 100, 100);
    CHECK_INT(x->status, 200);
    CHECK_INT(exchange_take(x, bytes, sizeof(bytes), &drained), 8);
    CHECK_STR(bytes, ": ping\n\n");
    exchange_fail(x, &e, 200); /* in mid-stream: an event */
    exchange_fail(x, &e, 201); /* once */
    memset(bytes, 0, sizeof(bytes));
    CHECK(exchange_take(x, bytes, sizeof(bytes) - 1, &drained) > 0);
    CHECK(strncmp(bytes, "data: {\"error\":{\"message\":\"away\"", 32) == 0);
    CHECK_INT(exchange_take(x, bytes, sizeof(bytes), &drained), -1);
    exchange_release(x);
}

static void check_gone(void)
{
    struct sleeper s = {0};
    struct exchange *x = make(true, &s);
    char bytes[100];
    bool drained;
    CHECK_INT(exchange_status(x), 0);
    exchange_abandon(x);
    CHECK(s.wakes == 1);
    CHECK_INT(exchange_status(x), -1);
    CHECK_INT(exchange_take(x, bytes, sizeof(bytes), &drained), -2);
    CHECK(s.sleeps == 1); /* it never sleeps again */
    CHECK(exchange_leave(x));
    struct wire_token t = token("a", 0);
    exchange_token(x, &t, 1);
    CHECK(s.wakes == 1); /* and is not woken: its connection is no more */
    exchange_release(x);
}

int main(void)
{
    TEST(check_stream, "a stream: status with the first token, bytes in order, woken once for each sleep");
    TEST(check_credit, "tokens are granted again when their last byte was taken");
    TEST(check_whole, "one object is said when it is whole");
    TEST(check_errors, "an error is a status before the first byte and an event behind it");
    TEST(check_gone, "who is gone is neither woken nor put to sleep");
    return test_result();
}
