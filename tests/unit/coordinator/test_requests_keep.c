#include "coordinator/requests.h"
#include "tests/test.h"

static const struct requests_keep keep = {.bytes = 100000, .us = 1000000};
static const struct peer alice = {.size = 4, .id = "one", .role = CURVE_CLIENT, .name = "alice"};

/* An idempotent request of two choices with log-probabilities that has been served to its end. */
static struct request *served(struct requests *r, const char *id)
{
    struct wire_message m;
    struct err err = {0};
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string(id);
    m.generate.prompt = wire_string("Once");
    m.generate.max_tokens = 4;
    m.generate.idempotent = true;
    m.generate.sampling.has_seed = true;
    m.generate.sampling.seed = 77;
    m.generate.sampling.n = 2;
    m.generate.sampling.logprobs = true;
    m.generate.sampling.top_logprobs = 2;
    struct request *q = requests_add(r, &alice, &m.generate, 1000, &err);
    CHECK(q != NULL);
    request_assigned(
        q,
        &(struct request_place){
            .group = 2, .epoch = 9, .name = "g", .model = "tiny", .stage_count = 3, .numeric = 5},
        1500);
    for (uint64_t i = 0; i < 6; i++) {
        struct wire_alternative top[2] = {{.id = 4, .logprob = -1, .piece = wire_string("abc")},
                                          {.id = 5, .logprob = -2}};
        struct wire_token t = {.choice = i % 2,
                               .index = i / 2,
                               .id = 100 + i,
                               .text = wire_string(i == 2 ? "" : "wörd "),
                               .logprob = -0.25 * (double)i,
                               .piece = wire_string("p"),
                               .top_logprobs = top,
                               .top_count = (uint32_t)i % 3};
        CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_LOGGED);
    }
    for (uint64_t i = 0; i < 2; i++) {
        struct wire_done done = {.choice = i,
                                 .finish_reason = wire_string(i ? "length" : "stop"),
                                 .text = wire_string(i ? "" : "tail"),
                                 .prompt_tokens = 3,
                                 .completion_tokens = 3,
                                 .decode_us = 12};
        CHECK_INT(request_done(q, &done), i == 1);
    }
    q->group = REQUEST_NO_GROUP;
    return q;
}

/* Everything that a reader is told, as text. */
static void tell(const struct request *q, struct request_reader *reader, struct buffer *out)
{
    struct request_message m;
    while (request_next(q, reader, &m)) {
        wire_encode(&m.wire, out);
        request_sent(q, reader, &m);
    }
}

static struct requests_record record_of(const struct request *q, const struct buffer *bytes)
{
    struct requests_record in = {
        .owner = "alice", .request = q->client_request, .row = 3, .bytes = bytes->data, .size = bytes->size};
    memcpy(in.digest, q->digest, sizeof(in.digest));
    return in;
}

static void test_outlives(void)
{
    struct requests *r = requests_new(4, &keep), *later = requests_new(4, &keep);
    struct request *q = served(r, "q");
    struct buffer bytes = {0}, before = {0}, after = {0};
    struct err err = {0};
    tell(q, &q->readers[0], &before);
    request_record(q, &bytes);
    struct requests_record in = record_of(q, &bytes);
    CHECK(requests_restore(later, &in, 5000, &err) == 0);
    struct request *k = requests_of_key(later, "alice", wire_string("q"), 5000);
    CHECK(k && k->kept && k->outcome == OUTCOME_DONE && k->sampling.seed == 77 && k->numeric == 5);
    CHECK(k && memcmp(k->digest, q->digest, sizeof(k->digest)) == 0);
    CHECK(requests_of_key(later, "bob", wire_string("q"), 5000) == NULL);
    struct wire_generate ask = {.request = wire_string("q")};
    struct request_reader *reader = k ? request_join(k, &alice, &ask, &err) : NULL;
    CHECK(reader != NULL);
    if (reader)
        tell(k, reader, &after);
    CHECK_INT(after.size, before.size);
    CHECK(after.size == before.size && memcmp(after.data, before.data, after.size) == 0);
    buffer_release(&bytes);
    buffer_release(&before);
    buffer_release(&after);
    requests_free(&r);
    requests_free(&later);
}

/* A record that ends anywhere, or in which a byte is another, is refused or harmless. */
static void test_damaged_records(void)
{
    struct requests *r = requests_new(4, &keep);
    struct request *q = served(r, "q");
    struct buffer bytes = {0};
    struct err err = {0};
    request_record(q, &bytes);
    struct requests_record in = record_of(q, &bytes);
    for (size_t size = 0; size < bytes.size; size++) {
        struct requests *later = requests_new(4, &keep);
        uint64_t row = 0;
        void *exact = malloc(size ? size : 1); /* so that a sanitizer sees the end */
        memcpy(exact, bytes.data, size);
        in.size = size;
        in.bytes = exact;
        CHECK(requests_restore(later, &in, 5000, &err) == -1);
        CHECK(requests_kept(later) == 0 && requests_forgotten(later, &row) && row == 3);
        requests_free(&later);
        free(exact);
    }
    in.size = bytes.size;
    in.bytes = bytes.data;
    for (size_t at = 0; at < 8 * bytes.size; at++) {
        struct requests *later = requests_new(4, &keep);
        bytes.data[at / 8] ^= (uint8_t)(1 << at % 8);
        requests_restore(later, &in, 5000, &err);
        bytes.data[at / 8] ^= (uint8_t)(1 << at % 8);
        requests_free(&later);
    }
    in.size = bytes.size - 1;
    CHECK(requests_restore(r, &in, 5000, &err) == -1);
    CHECK_CONTAINS(err.message, "q:");
    buffer_release(&bytes);
    requests_free(&r);
}

static void test_age_and_room(void)
{
    struct requests *r = requests_new(4, &keep), *later = requests_new(4, &keep);
    struct buffer bytes = {0};
    struct err err = {0};
    uint64_t row;
    struct request *q = served(r, "q");
    request_record(q, &bytes);
    struct requests_record in = record_of(q, &bytes);
    in.age_us = keep.us + 1;
    CHECK(requests_restore(later, &in, 5000, &err) == 0 && requests_kept(later) == 0);
    CHECK(requests_forgotten(later, &row) && row == 3);
    in.age_us = keep.us - 10; /* older than this process: only what is left of its time counts */
    CHECK(requests_restore(later, &in, 5, &err) == 0 && requests_kept(later) == 1);
    CHECK_INT(requests_expire_due_us(later), 16);
    requests_expire(later, 15);
    CHECK_INT(requests_kept(later), 1);
    requests_expire(later, 16);
    CHECK_INT(requests_kept(later), 0);
    CHECK(requests_forgotten(later, &row) && row == 3 && !requests_forgotten(later, &row));
    CHECK_INT(requests_expire_due_us(later), UINT64_MAX);
    in.age_us = 0;
    const char *names[] = {"a", "b", "c", "d", "e", "f"};
    for (uint64_t i = 0; i < 6; i++) { /* as many as may live at once */
        in.request = names[i];
        in.row = 10 + i;
        CHECK(requests_restore(later, &in, 5000 + i, &err) == 0);
    }
    CHECK_INT(requests_kept(later), 4);
    CHECK(requests_forgotten(later, &row) && row == 11 && requests_forgotten(later, &row) && row == 10);
    CHECK(requests_of_key(later, "alice", wire_string("a"), 5000) == NULL);
    CHECK(requests_of_key(later, "alice", wire_string("f"), 5000) != NULL);
    buffer_release(&bytes);
    requests_free(&r);
    requests_free(&later);
}

/* Until it is durable, a reader is told everything but the end. */
static void test_end_waits(void)
{
    struct requests *r = requests_new(4, &keep);
    struct request *q = served(r, "q");
    struct request_message m;
    q->storing = true;
    q->row = 8;
    int tokens = 0;
    while (request_next(q, &q->readers[0], &m)) {
        CHECK_INT(m.wire.type, WIRE_TOKEN);
        request_sent(q, &q->readers[0], &m);
        tokens++;
    }
    CHECK_INT(tokens, 6);
    q->readers[0].gone = true;
    CHECK(!request_over(q)); /* it is not kept before it is durable */
    q->readers[0].gone = false;
    request_not_stored(q, 507, "no room");
    CHECK(request_next(q, &q->readers[0], &m) && m.wire.type == WIRE_ERROR && m.wire.error.code == 507);
    request_sent(q, &q->readers[0], &m);
    CHECK(request_over(q));
    requests_leave(r, q, 2000);
    CHECK_INT(requests_kept(r), 0);
    uint64_t row;
    CHECK(!requests_forgotten(r, &row)); /* nothing of it is stored */
    requests_free(&r);
}

static void test_rows_are_forgotten(void)
{
    struct requests *r = requests_new(4, &keep);
    struct request *q = served(r, "q");
    uint64_t row;
    q->row = 8;
    q->readers[0].outcome_sent = true;
    requests_leave(r, q, 2000);
    CHECK(requests_kept(r) == 1 && !requests_forgotten(r, &row));
    CHECK_INT(requests_expire_due_us(r), 2000 + keep.us + 1);
    requests_expire(r, 2000 + keep.us + 1);
    CHECK(requests_forgotten(r, &row) && row == 8);
    q = served(r, "p");
    q->row = 9;
    q->readers[0].gone = true;
    requests_remove(r, q); /* not kept at all: too large, say */
    CHECK(requests_forgotten(r, &row) && row == 9);
    requests_free(&r);
}

int main(void)
{
    TEST(test_outlives, "a request that is over is told after a restart as it was before, byte by byte");
    TEST(test_damaged_records, "a record cut at any byte is refused, and one with any bit flipped harmless");
    TEST(test_age_and_room, "what is restored keeps its age, and within the bounds the newest stay");
    TEST(test_end_waits,
         "nobody is told of an end before it is durable, and all of an error when it cannot be");
    TEST(test_rows_are_forgotten, "what leaves memory is to leave the store");
    return test_result();
}
