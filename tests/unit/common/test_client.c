#include "common/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

#include "common/curve.h"
#include "tests/test.h"

/* A coordinator of one socket, and a client that is connected to it. */
struct bed {
    char directory[64], endpoint[128], pub[96], key[96];
    void *context, *socket;
    struct client *client;
};

static void open_bed(struct bed *b)
{
    struct curve_key server, own;
    struct err err = {0};
    size_t bytes = sizeof(b->endpoint);
    snprintf(b->directory, sizeof(b->directory), "/tmp/lepton-test-client-XXXXXX");
    ASSERT(mkdtemp(b->directory) != NULL);
    CHECK_INT(curve_generate(&server, b->directory, "server", CURVE_COORDINATOR, &err), 0);
    CHECK_INT(curve_generate(&own, b->directory, "own", CURVE_CLIENT, &err), 0);
    snprintf(b->pub, sizeof(b->pub), "%s/server.pub", b->directory);
    snprintf(b->key, sizeof(b->key), "%s/own.key", b->directory);
    b->context = zmq_ctx_new();
    b->socket = zmq_socket(b->context, ZMQ_ROUTER);
    int linger = 0;
    zmq_setsockopt(b->socket, ZMQ_LINGER, &linger, sizeof(linger));
    CHECK_INT(curve_server(b->socket, &server, &err), 0);
    ASSERT(zmq_bind(b->socket, "tcp://127.0.0.1:*") == 0);
    ASSERT(zmq_getsockopt(b->socket, ZMQ_LAST_ENDPOINT, b->endpoint, &bytes) == 0);
    const struct client_settings s = {.endpoint = b->endpoint, .server_key = b->pub, .key = b->key};
    CHECK_INT(client_open(&b->client, &s, 10000, &err), 0);
}

static void close_bed(struct bed *b)
{
    client_close(&b->client);
    zmq_close(b->socket);
    zmq_ctx_term(b->context);
    char *command = xasprintf("rm -rf '%s'", b->directory);
    CHECK_INT(system(command), 0);
    free(command);
}

/* Answers what the client asks with three tokens in one message. */
static void answer(struct bed *b)
{
    uint8_t id[256], frame[256];
    struct wire_token items[3];
    struct wire_message m;
    struct buffer out = {0};
    int n = zmq_recv(b->socket, id, sizeof(id), 0);
    ASSERT(n > 0 && zmq_recv(b->socket, frame, sizeof(frame), 0) > 0);
    for (uint64_t i = 0; i < ARRAY_LEN(items); i++)
        items[i] = (struct wire_token){.request = wire_string("q"), .index = i, .id = 100 + i};
    wire_init(&m, WIRE_TOKENS);
    m.tokens.items = items;
    m.tokens.item_count = ARRAY_LEN(items);
    wire_encode(&m, &out);
    zmq_send(b->socket, id, (size_t)n, ZMQ_SNDMORE);
    zmq_send(b->socket, out.data, out.size, 0);
    buffer_release(&out);
}

static void ask(struct bed *b)
{
    struct wire_message m;
    struct err err = {0};
    wire_init(&m, WIRE_STATUS);
    CHECK_INT(client_send(b->client, &m, &err), 0);
    answer(b);
}

static void expect_token(struct bed *b, uint64_t index)
{
    struct wire_message m;
    struct err err = {0};
    CHECK_INT(client_receive(b->client, &m, 10000, &err), 1);
    CHECK_INT(m.type, WIRE_TOKEN);
    CHECK_INT(m.token.index, index);
    wire_release(&m);
}

static void test_tokens_of_one_message_come_one_by_one(void)
{
    struct bed b;
    open_bed(&b);
    ask(&b);
    for (uint64_t i = 0; i < 3; i++)
        expect_token(&b, i);
    close_bed(&b);
}

/* What resumes its streams on the new connection has said by then what it has had: a token more of the old
 * one would come twice. */
static void test_nothing_of_the_old_connection_comes_after_a_new_one(void)
{
    struct bed b;
    struct wire_message m;
    struct err err = {0};
    open_bed(&b);
    ask(&b);
    expect_token(&b, 0);
    CHECK_INT(client_reopen(b.client, 10000, &err), 0);
    CHECK_INT(client_receive(b.client, &m, 0, &err), 0);
    ask(&b);
    expect_token(&b, 0);
    close_bed(&b);
}

int main(void)
{
    TEST(test_tokens_of_one_message_come_one_by_one, "tokens of one message come one by one");
    TEST(test_nothing_of_the_old_connection_comes_after_a_new_one,
         "nothing of the old connection comes after a new one was made");
    return test_result();
}
