#include "coordinator/requests.h"
#include "tests/test.h"

static const struct requests_keep keep = {.bytes = 20000, .us = 1000000};

static struct peer client(int connection, const char *name)
{
    struct peer p = {.size = 4, .role = CURVE_CLIENT};
    memcpy(p.id, &connection, 4);
    snprintf(p.name, sizeof(p.name), "%s", name);
    return p;
}

static struct wire_generate ask(const char *id, const char *prompt)
{
    struct wire_message m;
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string(id);
    m.generate.prompt = wire_string(prompt);
    m.generate.max_tokens = 8;
    m.generate.idempotent = true;
    m.generate.sampling.has_seed = true;
    m.generate.sampling.seed = 5;
    return m.generate;
}

static struct request *begin(struct requests *r, int connection, const struct wire_generate *in,
                             uint64_t now_us)
{
    struct err err = {0};
    struct peer p = client(connection, "alice");
    struct request *q = requests_add(r, &p, in, now_us, &err);
    CHECK_STR(err.message, "");
    if (q)
        request_assigned(
            q, &(struct request_place){.group = 2, .epoch = 9, .name = "g", .model = "tiny", .numeric = 7},
            now_us);
    return q;
}

static void tokens(struct request *q, uint64_t from, uint64_t to)
{
    struct err err;
    for (uint64_t i = from; i < to; i++) {
        struct wire_token t = {.index = i, .id = 100 + i, .text = wire_string("word ")};
        CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_LOGGED);
    }
}

static void end(struct request *q, uint64_t count)
{
    struct wire_done d = {.finish_reason = wire_string("length"), .completion_tokens = count};
    CHECK(request_done(q, &d));
    q->group = REQUEST_NO_GROUP;
}

/* Sends the reader all there is: the indices that came, as one number each digit; 9 stands for the end. */
static uint64_t drain(struct request *q, struct request_reader *reader)
{
    struct request_message m;
    uint64_t seen = 0;
    while (request_next(q, reader, &m)) {
        CHECK(m.wire.type != WIRE_TOKEN || wire_str_is(m.wire.token.text, "word "));
        CHECK(m.wire.type != WIRE_DONE || wire_str_is(m.wire.done.request, q->client_request));
        seen = 10 * seen + (m.wire.type == WIRE_TOKEN ? m.wire.token.index + 1 : 9);
        request_sent(q, reader, &m);
    }
    return seen;
}

static void test_a_second_connection_joins_and_both_get_all(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    struct wire_generate in = ask("q", "Once");
    struct request *q = begin(r, 1, &in, 0);
    struct peer second = client(2, "alice"), third = client(3, "alice");
    tokens(q, 0, 2);
    CHECK_INT(drain(q, &q->readers[0]), 12);
    CHECK(requests_of_key(r, "bob", in.request, 0) == NULL);
    CHECK(requests_of_key(r, "alice", in.request, 0) == q);
    CHECK(request_join(q, &second, &in, &err) != NULL);
    CHECK(request_join(q, &second, &in, &err) == NULL);
    CHECK_INT(err.code, 409);
    CHECK_INT(drain(q, request_reader_of(q, &second)), 12);
    tokens(q, 2, 3);
    request_reader_of(q, &second)->gone = true;
    CHECK(request_is_read(q) && !request_over(q));
    CHECK(request_join(q, &third, &in, &err) != NULL); /* in the place of the one that left */
    CHECK_INT(q->reader_count, 2);
    end(q, 3);
    CHECK_INT(drain(q, &q->readers[0]), 39);
    CHECK_INT(drain(q, request_reader_of(q, &third)), 1239);
    CHECK(request_over(q));
    requests_free(&r);
}

static void test_a_complete_answer_is_replayed_until_it_is_too_old(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    struct wire_generate in = ask("q", "Once");
    struct request *q = begin(r, 1, &in, 0);
    struct peer later = client(2, "alice");
    tokens(q, 0, 2);
    end(q, 2);
    drain(q, &q->readers[0]);
    requests_leave(r, q, 500);
    CHECK_INT(requests_count(r), 0);
    q = requests_of_key(r, "alice", in.request, 1000);
    CHECK(q && q->kept && q->prompt == NULL);
    CHECK(q && request_join(q, &later, &in, &err) != NULL);
    CHECK_INT(drain(q, request_reader_of(q, &later)), 129);
    CHECK(request_over(q));
    requests_leave(r, q, 2000);
    CHECK(requests_of_key(r, "alice", in.request, 900000) == q);
    CHECK(requests_of_key(r, "alice", in.request, 2000000) == NULL);
    CHECK(requests_of_client(r, &later, in.request) == NULL); /* nothing to cancel */
    requests_free(&r);
}

static void test_what_is_kept_is_bounded(void)
{
    struct requests *r = requests_new(4, &keep);
    char id[16];
    int known = 0;
    for (int i = 0; i < 100; i++) {
        snprintf(id, sizeof(id), "q%d", i);
        struct wire_generate in = ask(id, "Once");
        struct request *q = begin(r, 1, &in, 0);
        if (!q)
            break;
        tokens(q, 0, 8);
        end(q, 8);
        drain(q, &q->readers[0]);
        requests_leave(r, q, 0);
    }
    for (int i = 0; i < 100; i++) {
        snprintf(id, sizeof(id), "q%d", i);
        struct request *q = requests_of_key(r, "alice", wire_string(id), 0);
        CHECK(!q || i >= 96);
        known += q != NULL;
    }
    CHECK(known > 0 && known <= 4);
    requests_free(&r);
}

static void test_what_failed_or_was_cancelled_is_not_kept(void)
{
    struct requests *r = requests_new(4, &keep);
    struct wire_generate in = ask("q", "Once");
    for (int i = 0; i < 2; i++) {
        struct request *q = begin(r, 1, &in, 0);
        struct wire_done d = {.finish_reason = wire_string("cancelled")};
        if (i == 0)
            request_error(q, 500, "made up");
        else
            request_done(q, &d);
        q->group = REQUEST_NO_GROUP;
        drain(q, &q->readers[0]);
        requests_leave(r, q, 0);
        CHECK(requests_of_key(r, "alice", in.request, 0) == NULL);
    }
    requests_free(&r);
}

static void test_the_digest_is_of_what_decides_the_tokens(void)
{
    uint8_t a[REQUEST_DIGEST], b[REQUEST_DIGEST];
    struct wire_generate in = ask("q", "Once"), other = ask("p", "Once");
    request_digest(&in, a);
    other.timeout_ms = 5;
    other.sampling.seed = 6;
    request_digest(&other, b);
    CHECK(memcmp(a, b, sizeof(a)) == 0);
    other.sampling.temperature = 0.5;
    request_digest(&other, b);
    CHECK(memcmp(a, b, sizeof(a)) != 0);
    other = ask("q", "Onc");
    request_digest(&other, b);
    CHECK(memcmp(a, b, sizeof(a)) != 0);
}

/* A coordinator that knows nothing of the stream takes it over behind what the client has had. */
static void test_a_stream_goes_on_behind_what_was_delivered(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    uint32_t ids[3] = {100, 101, 102}, others[1] = {7}, *given;
    struct wire_delivered had = {.ids = ids, .id_count = 3}, of[2];
    struct wire_generate in = ask("q", "Once");
    in.delivered = &had;
    in.delivered_count = 1;
    in.numeric = 6;
    struct request *q = begin(r, 1, &in, 0);
    CHECK(q->mixed); /* its group is of class 7 */
    CHECK_INT(request_delivered(q, of, &given), 1);
    CHECK(of[0].id_count == 3 && memcmp(given, ids, sizeof(ids)) == 0);
    free(given);
    CHECK_INT(drain(q, &q->readers[0]), 0);
    tokens(q, 3, 5);
    CHECK_INT(drain(q, &q->readers[0]), 45);

    struct peer second = client(2, "alice");
    struct wire_generate all = ask("q", "Once");
    CHECK(request_join(q, &second, &all, &err) == NULL); /* nobody knows the text of its first tokens */
    CHECK_INT(err.code, 409);
    had = (struct wire_delivered){.ids = others, .id_count = 1};
    CHECK(request_join(q, &second, &in, &err) == NULL);
    CHECK_CONTAINS(err.message, "token 0 of choice 0 is 100, the client had 7");
    uint32_t more[6] = {100, 101, 102, 103, 104, 105};
    had = (struct wire_delivered){.ids = more, .id_count = 6};
    CHECK(request_join(q, &second, &in, &err) == NULL);
    CHECK_INT(err.code, 503);
    had.id_count = 4;
    CHECK(request_join(q, &second, &in, &err) != NULL);
    CHECK_INT(drain(q, request_reader_of(q, &second)), 5);
    end(q, 5);
    drain(q, &q->readers[0]);
    drain(q, &q->readers[1]);
    requests_leave(r, q, 0);
    CHECK(requests_of_key(r, "alice", in.request, 0) == NULL); /* without its beginning it is of no use */
    requests_free(&r);
}

static void test_impossible_deliveries_are_refused(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    struct peer p = client(1, "alice");
    uint32_t ids[9] = {0};
    struct wire_delivered had[2] = {{.ids = ids, .id_count = 9}, {.choice = 0}};
    struct wire_generate in = ask("q", "Once");
    in.delivered = had;
    in.delivered_count = 1;
    CHECK(requests_add(r, &p, &in, 0, &err) == NULL);
    CHECK_CONTAINS(err.message, "9 tokens, expected at most max_tokens (8)");
    had[0].id_count = 2;
    in.delivered_count = 2;
    CHECK(requests_add(r, &p, &in, 0, &err) == NULL);
    CHECK_CONTAINS(err.message, "at most once");
    in.delivered_count = 1;
    had[0].choice = 1;
    CHECK(requests_add(r, &p, &in, 0, &err) == NULL);
    CHECK_CONTAINS(err.message, "choice 1, expected");
    had[0] = (struct wire_delivered){.ended = true};
    CHECK(requests_add(r, &p, &in, 0, &err) == NULL);
    CHECK_CONTAINS(err.message, "every choice has ended");
    CHECK_INT(requests_count(r), 0);
    requests_free(&r);
}

static void test_credit_is_used_by_tokens_alone(void)
{
    struct requests *r = requests_new(4, &keep);
    struct wire_generate in = ask("q", "Once");
    in.credit = 2;
    struct request *q = begin(r, 1, &in, 0);
    struct request_reader *reader = &q->readers[0];
    uint8_t with[REQUEST_DIGEST], without[REQUEST_DIGEST];
    tokens(q, 0, 3);
    CHECK_INT(reader->credit, 2);
    CHECK_INT(drain(q, reader), 123); /* dispatch asks for credit, and sends no more than there is */
    reader->credit = 0;
    request_credit(reader, 5);
    end(q, 3);
    CHECK_INT(drain(q, reader), 9);
    CHECK_INT(reader->credit, 5);
    request_credit(reader, UINT64_MAX);
    CHECK_INT(reader->credit, UINT64_MAX - 1); /* never the value that means no bound */
    request_digest(&in, with);
    in.credit = 0;
    request_digest(&in, without);
    CHECK(memcmp(with, without, sizeof(with)) == 0); /* it decides no token */
    reader->credit = UINT64_MAX;
    request_credit(reader, 5);
    CHECK_INT(reader->credit, UINT64_MAX);
    requests_free(&r);
}

static void test_the_model_is_named_to_who_named_none(void)
{
    struct requests *r = requests_new(4, &keep);
    struct request_message m;
    for (uint64_t count = 0; count < 2; count++)
        for (int named = 0; named < 2; named++) {
            struct wire_generate in = ask("q", "Once");
            const char *expected = named ? "" : "tiny";
            in.idempotent = false;
            in.model = wire_string(named ? "other" : NULL);
            struct request *q = begin(r, 1, &in, 0);
            tokens(q, 0, 2 * count); /* none: the first that was drawn ended it */
            end(q, 2 * count);
            for (uint64_t i = 0; i < 2 * count; i++) {
                CHECK(request_next(q, &q->readers[0], &m) && m.wire.type == WIRE_TOKEN);
                CHECK(wire_str_is(m.wire.token.model, i ? "" : expected));
                request_sent(q, &q->readers[0], &m);
            }
            CHECK(request_next(q, &q->readers[0], &m) && m.wire.type == WIRE_DONE);
            CHECK(wire_str_is(m.wire.done.model, expected));
            requests_remove(r, q);
        }
    requests_free(&r);
}

int main(void)
{
    TEST(test_credit_is_used_by_tokens_alone, "credit is used up by tokens, and by nothing else");
    TEST(test_the_model_is_named_to_who_named_none, "the model is named to who named none");
    TEST(test_a_second_connection_joins_and_both_get_all,
         "a second connection joins, and both get all of it");
    TEST(test_a_complete_answer_is_replayed_until_it_is_too_old,
         "a complete answer is replayed until it is too old");
    TEST(test_what_is_kept_is_bounded, "what is kept is bounded, and the oldest leaves first");
    TEST(test_what_failed_or_was_cancelled_is_not_kept, "what failed or was cancelled is not kept");
    TEST(test_the_digest_is_of_what_decides_the_tokens,
         "the digest is of what decides the tokens, and no more");
    TEST(test_a_stream_goes_on_behind_what_was_delivered, "a stream goes on behind what a client has had");
    TEST(test_impossible_deliveries_are_refused, "impossible deliveries are refused");
    return test_result();
}
