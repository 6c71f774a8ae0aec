#include "coordinator/requests.h"
#include "tests/test.h"

static const struct requests_keep keep = {.bytes = 100000, .us = 1000000};

static struct peer client(int connection)
{
    struct peer p = {.size = 4, .role = CURVE_CLIENT, .name = "c"};
    memcpy(p.id, &connection, 4);
    return p;
}

/* With so many choices, and what only some requests carry. */
static struct request *add_many(struct requests *r, int connection, const char *id, uint64_t n,
                                struct err *err)
{
    struct wire_message m;
    struct peer p = client(connection);
    struct wire_stop stop[2] = {{wire_string("END")}, {wire_string("stop")}};
    struct wire_bias bias[1] = {{.id = 7, .bias = -1.5}};
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string(id);
    m.generate.prompt = wire_string("Once");
    m.generate.max_tokens = 4;
    m.generate.sampling.has_seed = true;
    m.generate.sampling.n = n;
    if (n > 1) {
        m.generate.sampling.logprobs = true;
        m.generate.sampling.top_logprobs = 2;
        m.generate.sampling.stop = stop;
        m.generate.sampling.stop_count = 2;
        m.generate.sampling.logit_bias = bias;
        m.generate.sampling.bias_count = 1;
        m.generate.service.cache_salt = wire_string("salt");
    }
    return requests_add(r, &p, &m.generate, 1000, err);
}

static struct request *add(struct requests *r, int connection, const char *id, struct err *err)
{
    return add_many(r, connection, id, 1, err);
}

static void assign(struct request *q)
{
    request_assigned(q, &(struct request_place){.group = 2, .epoch = 9, .name = "g", .stage_count = 3}, 1500);
}

static enum request_token_result token(struct request *q, uint64_t index, const char *text)
{
    struct err err;
    struct wire_token t = {.index = index, .id = 100 + index, .text = wire_string(text)};
    return request_token(q, &t, &err);
}

static bool done(struct request *q, uint64_t tokens)
{
    struct wire_done d = {.finish_reason = wire_string("stop"), .completion_tokens = tokens};
    return request_done(q, &d);
}

static void test_ids(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err = {0};
    struct peer one = client(1), two = client(2);
    struct request *a = add(r, 1, "q", &err), *b = add(r, 2, "q", &err);
    CHECK(a && b && a != b && strcmp(a->id, b->id) != 0);
    CHECK(!add(r, 1, "q", &err));
    CHECK_INT(err.code, 409);
    CHECK(requests_of_client(r, &one, wire_string("q")) == a);
    CHECK(requests_of_client(r, &two, wire_string("q")) == b);
    CHECK(requests_of_client(r, &two, wire_string("p")) == NULL);
    CHECK(requests_of_group(r, wire_string(b->id)) == b);
    const char *wrong[] = {"", "r", "x5", "r-1", "r99999999999999999999", "r0", "q", "r5 "};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
        CHECK(requests_of_group(r, wire_string(wrong[i])) == NULL);
    requests_free(&r);
}

static void test_old_ids_name_nothing(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    char old[24];
    struct request *q = add(r, 1, "q", &err);
    memcpy(old, q->id, sizeof(old));
    requests_remove(r, q);
    q = add(r, 1, "q", &err); /* the same slot */
    CHECK(requests_of_group(r, wire_string(old)) == NULL);
    CHECK(requests_of_group(r, wire_string(q->id)) == q);
    requests_free(&r);
}

/* Of every kind there is: with tokens and without, gone, never there, no id at all. */
static void test_ahead_of_any_id(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err = {0};
    struct request *q[3];
    struct wire_token tokens[6];
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        q[i] = add(r, 1, names[i], &err);
        assign(q[i]);
    }
    CHECK_INT(token(q[0], 0, "x"), REQUEST_TOKEN_LOGGED);
    char gone[sizeof(q[2]->id)];
    memcpy(gone, q[2]->id, sizeof(gone));
    requests_remove(r, q[2]);
    const char *ids[] = {q[0]->id, q[1]->id, gone, "r99", "", "x5"};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        tokens[i] = (struct wire_token){.request = wire_string(ids[i])};
    requests_ahead(r, tokens, ARRAY_LEN(tokens));
    CHECK_INT(requests_count(r), 2);
    CHECK_INT(q[0]->choices[0].token_count, 1);
    CHECK_INT(token(q[0], 1, "y"), REQUEST_TOKEN_LOGGED);
    CHECK_INT(token(q[1], 0, "z"), REQUEST_TOKEN_LOGGED);
    requests_free(&r);
}

static void test_bounded(void)
{
    struct requests *r = requests_new(2, &keep);
    struct err err = {0};
    add(r, 1, "a", &err);
    struct request *b = add(r, 1, "b", &err);
    CHECK(!add(r, 1, "c", &err));
    CHECK_INT(err.code, 429);
    requests_remove(r, b);
    CHECK(add(r, 1, "c", &err) != NULL);
    CHECK_INT(requests_count(r), 2);
    requests_free(&r);
}

static void test_tokens_in_order_once(void)
{
    struct requests *r = requests_new(2, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    CHECK_INT(token(q, 0, "a"), REQUEST_TOKEN_LOGGED);
    CHECK_INT(token(q, 1, ""), REQUEST_TOKEN_LOGGED);
    CHECK_INT(token(q, 1, "x"), REQUEST_TOKEN_DUPLICATE);
    CHECK_INT(token(q, 0, "x"), REQUEST_TOKEN_DUPLICATE);
    CHECK_INT(token(q, 3, "d"), REQUEST_TOKEN_MISSING);
    struct wire_token other_choice = {.choice = 1, .index = 2};
    CHECK_INT(request_token(q, &other_choice, &err), REQUEST_TOKEN_BROKEN);
    CHECK_INT(token(q, 2, "c"), REQUEST_TOKEN_LOGGED);
    CHECK_INT(token(q, 3, "d"), REQUEST_TOKEN_LOGGED);
    CHECK_INT(token(q, 4, "e"), REQUEST_TOKEN_BROKEN); /* max_tokens is 4 */
    struct request_message m;
    const char *texts[] = {"a", "", "c", "d"};
    for (uint64_t i = 0; i < 4; i++) {
        CHECK(request_next(q, q->readers, &m));
        CHECK_INT(m.wire.type, WIRE_TOKEN);
        CHECK_INT(m.wire.token.index, i);
        CHECK_INT(m.wire.token.id, 100 + i);
        CHECK(wire_str_is(m.wire.token.text, texts[i]));
        request_sent(q, q->readers, &m);
    }
    CHECK(!request_next(q, q->readers, &m));
    requests_free(&r);
}

static void test_text_is_bounded(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    char *text = xmalloc(65536);
    memset(text, 'x', 65536);
    struct wire_token t = {.index = 0, .text = {text, 65536}};
    CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_LOGGED);
    t.index = 1;
    CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_BROKEN);
    CHECK_CONTAINS(err.message, "more text");
    free(text);
    requests_free(&r);
}

static void test_one_outcome_after_all_tokens(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    CHECK_INT(token(q, 0, "a"), REQUEST_TOKEN_LOGGED);
    CHECK(done(q, 1));
    CHECK(!done(q, 1));
    CHECK(!request_error(q, 500, "late"));
    struct request_message m;
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_TOKEN);
    request_sent(q, q->readers, &m);
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_DONE);
    CHECK(wire_str_is(m.wire.done.request, "q") && wire_str_is(m.wire.done.group, "g"));
    CHECK_INT(m.wire.done.stages, 3);
    CHECK_INT(m.wire.done.queue_us, 500);
    CHECK(!request_over(q));
    request_sent(q, q->readers, &m);
    CHECK(!request_next(q, q->readers, &m));
    CHECK(!request_over(q)); /* its group holds it still */
    q->group = REQUEST_NO_GROUP;
    CHECK(request_over(q));
    requests_free(&r);
}

static void test_false_counts_become_errors(void)
{
    struct requests *r = requests_new(3, &keep);
    struct err err;
    const uint64_t claims[] = {0, 1, 2, 3};
    const enum request_outcome expected[] = {OUTCOME_ERROR, OUTCOME_DONE, OUTCOME_DONE, OUTCOME_ERROR};
    for (size_t i = 0; i < ARRAY_LEN(claims); i++) {
        struct request *q = add(r, 1, "q", &err);
        assign(q);
        token(q, 0, "a");
        CHECK(done(q, claims[i]));
        CHECK_INT(q->outcome, expected[i]);
        requests_remove(r, q);
    }
    requests_free(&r);
}

static void test_missing_tokens_are_seen(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    token(q, 0, "a");
    static const struct {
        const char *reason;
        uint64_t tokens;
        bool lacks;
    } ends[] = {{"stop", 1, false},   {"stop", 2, false},  {"stop", 3, true},
                {"length", 1, false}, {"length", 2, true}, {"cancelled", 9, false}};
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        struct wire_done d = {.finish_reason = wire_string(ends[i].reason),
                              .completion_tokens = ends[i].tokens};
        CHECK_INT(request_lacks(q, &d), ends[i].lacks);
    }
    CHECK(!request_lacks(q, &(struct wire_done){.choice = 7, .completion_tokens = 9}));
    CHECK_INT(token(q, 2, "c"), REQUEST_TOKEN_MISSING);
    CHECK_INT(token(q, 1, "b"), REQUEST_TOKEN_LOGGED);
    requests_free(&r);
}

static void test_cancelled_may_count_more(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    token(q, 0, "a");
    struct wire_done d = {.finish_reason = wire_string("cancelled"), .completion_tokens = 4};
    CHECK(request_done(q, &d));
    CHECK_INT(q->outcome, OUTCOME_DONE);
    requests_free(&r);
}

static void test_client_id_is_free_after_the_outcome(void)
{
    struct requests *r = requests_new(2, &keep);
    struct err err;
    struct peer one = client(1);
    struct request *old = add(r, 1, "q", &err);
    assign(old);
    request_error(old, 408, "late");
    CHECK(!add(r, 1, "q", &err)); /* the outcome has not been sent */
    struct request_message m;
    CHECK(request_next(old, old->readers, &m));
    request_sent(old, old->readers, &m);
    struct request *q = add(r, 1, "q", &err); /* its group has not let go */
    CHECK(q != NULL && q != old);
    CHECK(requests_of_client(r, &one, wire_string("q")) == q);
    requests_remove(r, old);
    CHECK(requests_of_client(r, &one, wire_string("q")) == q);
    requests_free(&r);
}

static void test_what_was_asked_is_kept(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    const struct request *q = add_many(r, 1, "q", 3, &err); /* its message is gone by now */
    CHECK_INT(q->sampling.stop_count, 2);
    CHECK(wire_str_is(q->sampling.stop[1].text, "stop"));
    CHECK_INT(q->sampling.bias_count, 1);
    CHECK(q->sampling.logit_bias[0].id == 7 && q->sampling.logit_bias[0].bias == -1.5);
    CHECK(wire_str_is(q->service.cache_salt, "salt"));
    CHECK_INT(q->service.priority, 500);
    requests_free(&r);
}

static enum request_token_result choice_token(struct request *q, uint64_t choice, uint64_t index)
{
    struct err err;
    struct wire_alternative top[3] = {{.id = 5, .logprob = -0.5, .piece = wire_string("five")},
                                      {.id = 6, .logprob = -1.5},
                                      {.id = 7, .logprob = -2.5, .piece = wire_string("7")}};
    struct wire_token t = {.choice = choice,
                           .index = index,
                           .id = 10 * choice + index,
                           .text = wire_string("t"),
                           .logprob = -0.25,
                           .piece = wire_string("piece"),
                           .top_logprobs = top,
                           .top_count = index == 3 ? 3 : 2};
    return request_token(q, &t, &err);
}

static bool choice_done(struct request *q, uint64_t choice, uint64_t tokens, const char *reason)
{
    struct wire_done d = {
        .choice = choice, .finish_reason = wire_string(reason), .completion_tokens = tokens};
    return request_done(q, &d);
}

static void test_choices_end_one_by_one(void)
{
    struct requests *r = requests_new(1, &keep);
    struct err err;
    struct request *q = add_many(r, 1, "q", 2, &err);
    struct request_message m;
    assign(q);
    CHECK(!request_let_go(q));
    CHECK_INT(choice_token(q, 1, 0), REQUEST_TOKEN_LOGGED);
    CHECK_INT(choice_token(q, 0, 0), REQUEST_TOKEN_LOGGED);
    CHECK_INT(choice_token(q, 1, 0), REQUEST_TOKEN_DUPLICATE);
    CHECK_INT(choice_token(q, 2, 0), REQUEST_TOKEN_BROKEN);
    CHECK_INT(choice_token(q, 0, 3), REQUEST_TOKEN_MISSING);
    CHECK(!choice_done(q, 1, 1, "length"));
    CHECK_INT(choice_token(q, 1, 1), REQUEST_TOKEN_BROKEN); /* behind its end */
    CHECK(!choice_done(q, 1, 1, "stop"));
    CHECK_INT(q->outcome, OUTCOME_NONE);
    CHECK(!request_let_go(q));
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_TOKEN && m.wire.token.choice == 0);
    CHECK(m.wire.token.logprob == -0.25 && wire_str_is(m.wire.token.piece, "piece"));
    CHECK(wire_str_is(m.wire.token.text, "t"));
    CHECK_INT(m.wire.token.top_count, 2);
    CHECK(m.wire.token.top_logprobs[1].logprob == -1.5 && m.wire.token.top_logprobs[1].piece.size == 0);
    CHECK(m.wire.token.top_logprobs[0].id == 5 && wire_str_is(m.wire.token.top_logprobs[0].piece, "five"));
    request_sent(q, q->readers, &m);
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_TOKEN && m.wire.token.choice == 1);
    request_sent(q, q->readers, &m);
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_DONE && m.wire.done.choice == 1);
    CHECK(wire_str_is(m.wire.done.finish_reason, "length")); /* the first end stands */
    request_sent(q, q->readers, &m);
    CHECK(!request_next(q, q->readers, &m) && !q->readers[0].outcome_sent);
    CHECK(choice_done(q, 0, 2, "cancelled"));
    CHECK(request_let_go(q) && request_was_cancelled(q));
    CHECK(request_next(q, q->readers, &m) && m.wire.type == WIRE_DONE && m.wire.done.choice == 0);
    request_sent(q, q->readers, &m);
    CHECK(q->readers[0].outcome_sent && !request_next(q, q->readers, &m));
    requests_free(&r);
}

static void assign_to(struct request *q, const char *name, uint64_t numeric)
{
    struct request_place place = {.group = 3, .epoch = 1, .name = name, .numeric = numeric, .context = 512};
    request_assigned(q, &place, 9000);
}

static void test_the_log_goes_on_elsewhere(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    struct request *q = add_many(r, 1, "q", 4, &err);
    struct wire_delivered of[4];
    uint32_t *ids;
    assign_to(q, "a", 7);
    CHECK_INT(request_delivered(q, of, &ids), 0);
    CHECK(ids == NULL);
    for (uint64_t c = 1; c < 4; c++)
        for (uint64_t i = 0; i < c; i++) {
            struct wire_token t = {.choice = c, .index = i, .id = 10 * c + i};
            CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_LOGGED);
        }
    struct wire_done d = {.choice = 1, .finish_reason = wire_string("stop"), .completion_tokens = 2};
    CHECK(!request_done(q, &d));
    request_waits_again(q);
    CHECK(q->waits && q->group == REQUEST_NO_GROUP && request_let_go(q));
    CHECK_INT(request_delivered(q, of, &ids), 3);
    CHECK(of[0].choice == 1 && of[0].ended && of[0].id_count == 0);
    CHECK(of[1].choice == 2 && !of[1].ended && of[1].id_count == 2 && of[1].ids[1] == 21);
    CHECK(of[2].choice == 3 && of[2].id_count == 3 && of[2].ids[0] == 30);
    free(ids);
    assign_to(q, "b", 7);
    CHECK(q->moves == 1 && !q->mixed && q->context == 512);
    struct wire_token t = {.choice = 2, .index = 2, .id = 22};
    CHECK_INT(request_token(q, &t, &err), REQUEST_TOKEN_LOGGED);
    request_waits_again(q);
    assign_to(q, "c", 8);
    CHECK(q->moves == 2 && q->mixed);
    for (uint64_t c = 0; c < 4; c++) {
        d = (struct wire_done){.choice = c,
                               .finish_reason = wire_string("stop"),
                               .completion_tokens = q->choices[c].token_count};
        CHECK(request_done(q, &d) == (c == 3));
    }
    CHECK(q->choices[3].done.moves == 2 && q->choices[3].done.mixed && q->choices[1].done.moves == 0);
    CHECK_INT(q->choices[3].done.queue_us, 8000); /* until it was first given away */
    requests_free(&r);
}

static void test_cancelled_while_it_waits_again(void)
{
    struct requests *r = requests_new(4, &keep);
    struct err err;
    struct request *q = add(r, 1, "q", &err);
    assign(q);
    token(q, 0, "a");
    token(q, 1, "b");
    request_waits_again(q);
    request_done_unserved(q);
    CHECK(q->outcome == OUTCOME_DONE && request_was_cancelled(q));
    CHECK_INT(q->choices[0].done.completion_tokens, 2);
    requests_free(&r);
}

static void test_false_alternatives_are_refused(void)
{
    struct requests *r = requests_new(2, &keep);
    struct err err;
    struct request *q = add_many(r, 1, "q", 2, &err);
    assign(q);
    for (uint64_t i = 0; i < 3; i++)
        CHECK_INT(choice_token(q, 0, i), REQUEST_TOKEN_LOGGED);
    CHECK_INT(choice_token(q, 0, 3), REQUEST_TOKEN_BROKEN); /* three where two were asked for */
    struct wire_done d = {.choice = 2, .finish_reason = wire_string("stop")};
    CHECK(request_done(q, &d)); /* a choice that is none */
    CHECK_INT(q->outcome, OUTCOME_ERROR);
    CHECK(!request_let_go(q)); /* its real choices run on until they are cancelled */
    struct request *unserved = add_many(r, 1, "p", 2, &err);
    request_done_unserved(unserved);
    CHECK(unserved->outcome == OUTCOME_DONE && request_was_cancelled(unserved));
    requests_free(&r);
}

/* Random lives of requests: whatever happens, each client sees 0, 1, 2, ... and then one outcome. */
static void test_random_events(void)
{
    enum { LIMIT = 16 };
    struct requests *r = requests_new(LIMIT, &keep);
    struct err err;
    unsigned long long random = 7;
    uint64_t next_index[LIMIT][3] = {{0}};
    int ends[LIMIT] = {0}, errors[LIMIT] = {0}, lives = 0;
    for (int step = 0; step < 10000 && test_failures == 0; step++) {
        uint32_t slot = (uint32_t)(test_random(&random) % LIMIT);
        struct request *q = requests_at(r, slot);
        if (!q) {
            char id[16];
            snprintf(id, sizeof(id), "q%llu", test_random(&random) % 8);
            q = add_many(r, (int)(test_random(&random) % 3), id, 1 + test_random(&random) % 3, &err);
            if (q) {
                memset(next_index[q->slot], 0, sizeof(next_index[q->slot]));
                ends[q->slot] = errors[q->slot] = 0;
                lives++;
            }
            continue;
        }
        struct request_message m;
        switch (test_random(&random) % 6) {
        case 0:
            if (q->waits && q->outcome == OUTCOME_NONE)
                assign(q);
            break;
        case 1:
            if (!q->waits && q->outcome == OUTCOME_NONE)
                request_token(q,
                              &(struct wire_token){.choice = test_random(&random) % 4,
                                                   .index = test_random(&random) % 5,
                                                   .text = wire_string("ab")},
                              &err);
            break;
        case 2:
            if (!q->waits && test_random(&random) % 4 == 0)
                choice_done(q, test_random(&random) % 3, test_random(&random) % 5, "stop");
            break;
        case 3:
            if (test_random(&random) % 4 == 0)
                request_error(q, 500, "made up");
            break;
        case 4:
            if (!request_next(q, q->readers, &m))
                break;
            CHECK(errors[slot] == 0 && ends[slot] < (int)q->sampling.n);
            if (m.wire.type == WIRE_TOKEN)
                CHECK_INT(m.wire.token.index, next_index[slot][m.wire.token.choice]++);
            ends[slot] += m.wire.type == WIRE_DONE;
            errors[slot] += m.wire.type == WIRE_ERROR;
            request_sent(q, q->readers, &m);
            break;
        default:
            if (q->outcome != OUTCOME_NONE) {
                q->waits = false;
                q->group = REQUEST_NO_GROUP;
            }
            if (request_over(q)) {
                CHECK(errors[slot] == 1 || ends[slot] == (int)q->sampling.n);
                requests_remove(r, q);
            }
        }
    }
    CHECK(lives > 100);
    requests_free(&r);
}

int main(void)
{
    TEST(test_ids, "a connection has each id once, and both ids find the request");
    TEST(test_old_ids_name_nothing, "the id of a request that is gone names nothing");
    TEST(test_ahead_of_any_id, "memory is fetched ahead for whatever ids a message names");
    TEST(test_bounded, "live requests are bounded");
    TEST(test_tokens_in_order_once, "the log takes tokens in order, once, up to max_tokens");
    TEST(test_text_is_bounded, "the text of a stream is bounded");
    TEST(test_one_outcome_after_all_tokens, "one outcome comes after all tokens, and only then is it over");
    TEST(test_false_counts_become_errors, "a done that counts tokens which never came is an error");
    TEST(test_missing_tokens_are_seen, "a token or an end that tells of tokens which never came is seen");
    TEST(test_cancelled_may_count_more, "a cancelled request may count tokens that were still under way");
    TEST(test_client_id_is_free_after_the_outcome, "a client may use an id again after its outcome");
    TEST(test_what_was_asked_is_kept, "stops, biases and salt outlive the message that asked");
    TEST(test_choices_end_one_by_one, "each choice has its own log and end; the last end is the outcome");
    TEST(test_the_log_goes_on_elsewhere, "a lost request's log goes to the next group, and its done says so");
    TEST(test_cancelled_while_it_waits_again, "a request may be cancelled between two groups");
    TEST(test_false_alternatives_are_refused, "alternatives and choices that nobody asked for are errors");
    TEST(test_random_events, "10000 random events: tokens in order, one end of each choice or one error");
    return test_result();
}
