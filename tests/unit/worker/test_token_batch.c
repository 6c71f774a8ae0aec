#include "worker/token_batch.h"

#include <stdio.h>
#include <string.h>

#include "tests/test.h"

static struct wire_token token(char request[8], uint64_t index, char *text)
{
    snprintf(request, 8, "r%llu", (unsigned long long)(index % 100));
    return (struct wire_token){
        .request = wire_string(request), .text = wire_string(text), .index = index, .id = 7 * index};
}

/* As a receiver would read it. */
static bool is(const struct wire_token *t, const char *request, uint64_t index, const char *text)
{
    return wire_str_is(t->request, request) && wire_str_is(t->text, text) && t->index == index &&
           t->id == 7 * index;
}

static void test_copies(void)
{
    static struct token_batch b;
    struct wire_message m;
    char request[8], text[16];
    CHECK(!token_batch_take(&b, wire_string("g"), 3, &m));
    for (uint64_t i = 0; i < 50; i++) { /* the same two places for all */
        snprintf(text, sizeof(text), i % 3 ? "text %llu" : "", (unsigned long long)i);
        struct wire_token t = token(request, i, text);
        CHECK(token_batch_add(&b, &t));
    }
    memset(request, 'x', sizeof(request));
    memset(text, 'x', sizeof(text));
    CHECK(token_batch_take(&b, wire_string("g"), 3, &m));
    CHECK_INT(m.type, WIRE_TOKENS);
    CHECK_INT(m.tokens.item_count, 50);
    CHECK_INT(m.tokens.epoch, 3);
    CHECK(wire_str_is(m.tokens.group, "g"));
    for (uint64_t i = 0; i < 50; i++) {
        char want[8], said[16];
        snprintf(want, sizeof(want), "r%llu", (unsigned long long)i);
        snprintf(said, sizeof(said), i % 3 ? "text %llu" : "", (unsigned long long)i);
        CHECK(is(&m.tokens.items[i], want, i, said));
    }
    CHECK(!token_batch_take(&b, wire_string("g"), 3, &m));
    token_batch_release(&b);
}

static void test_one(void)
{
    static struct token_batch b;
    struct wire_message m;
    char request[8], text[] = "a";
    struct wire_token t = token(request, 5, text);
    CHECK(token_batch_add(&b, &t));
    CHECK(token_batch_take(&b, wire_string("g"), 4, &m));
    CHECK_INT(m.type, WIRE_TOKEN);
    CHECK(is(&m.token, "r5", 5, "a") && m.token.epoch == 4 && wire_str_is(m.token.group, "g"));
    CHECK(token_batch_add(&b, &t));
    token_batch_drop(&b);
    CHECK(!token_batch_take(&b, wire_string("g"), 4, &m));
    token_batch_release(&b);
}

static void test_alone(void)
{
    static struct token_batch b;
    char request[8], text[] = "a", piece[] = "p";
    struct wire_alternative top = {.id = 1};
    struct wire_token plain = token(request, 5, text), t = plain;
    t.piece = wire_string(piece);
    CHECK(!token_batch_add(&b, &t));
    t = plain;
    t.logprob = -1;
    CHECK(!token_batch_add(&b, &t));
    t = plain;
    t.top_logprobs = &top;
    t.top_count = 1;
    CHECK(!token_batch_add(&b, &t));
    CHECK_INT(b.count, 0);
    for (uint32_t i = 0; i < WIRE_MAX_TOKENS; i++) {
        CHECK(!token_batch_full(&b));
        CHECK(token_batch_add(&b, &plain));
    }
    CHECK(token_batch_full(&b));
    token_batch_release(&b);
}

int main(void)
{
    TEST(test_copies, "tokens of one step become one message, whatever becomes of what they borrowed");
    TEST(test_one, "one token is a message of its own kind; what was dropped is not told");
    TEST(test_alone, "a token with log-probabilities goes alone; there is room for a message's worth");
    return test_result();
}
