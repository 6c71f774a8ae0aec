#include "coordinator/connections.h"

#include <string.h>
#include <zmq.h>

#include "common/clock.h"
#include "tests/test.h"

/* A ROUTER whose connections are watched, without CURVE: nothing here depends on keys. */
struct door {
    void *inside, *outside, *router;
    struct connections *c;
    char endpoint[128];
};

static void *quiet_socket(void *context, int type)
{
    int none = 0, patience_ms = 20000;
    void *socket = zmq_socket(context, type);
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof(none));
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience_ms, sizeof(patience_ms));
    return socket;
}

static void door_open(struct door *d, uint32_t most)
{
    struct err err = {0};
    size_t bytes = sizeof(d->endpoint);
    d->inside = zmq_ctx_new();
    d->outside = zmq_ctx_new();
    d->router = quiet_socket(d->inside, ZMQ_ROUTER);
    CHECK_INT(connections_open(&d->c, d->inside, d->router, NULL, most, &err), 0);
    CHECK_INT(zmq_bind(d->router, "tcp://127.0.0.1:*"), 0);
    CHECK_INT(zmq_getsockopt(d->router, ZMQ_LAST_ENDPOINT, d->endpoint, &bytes), 0);
}

static void door_close(struct door *d)
{
    zmq_socket_monitor(d->router, NULL, 0);
    zmq_close(d->router);
    connections_close(&d->c);
    CHECK(d->c == NULL);
    zmq_ctx_term(d->outside);
    zmq_ctx_term(d->inside);
}

static void *knock(struct door *d, const char *routing_id)
{
    void *dealer = quiet_socket(d->outside, ZMQ_DEALER);
    if (routing_id)
        zmq_setsockopt(dealer, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    zmq_connect(dealer, d->endpoint);
    zmq_send(dealer, "hello", 5, 0);
    return dealer;
}

/* The next message's sender, made known. */
static struct peer receive(struct door *d)
{
    struct peer peer = {.role = CURVE_CLIENT};
    zmq_msg_t body;
    int n = zmq_recv(d->router, peer.id, sizeof(peer.id), 0);
    CHECK(n > 0);
    peer.size = (uint8_t)n;
    zmq_msg_init(&body);
    CHECK_INT(zmq_msg_recv(&body, d->router, 0), 5);
    connections_seen(d->c, zmq_msg_get(&body, ZMQ_SRCFD), &peer);
    zmq_msg_close(&body);
    return peer;
}

static struct peer wait_left(struct door *d)
{
    struct peer left = {.size = 0};
    for (int i = 0; i < 2000 && !connections_left(d->c, true, &left); i++) {
        connections_read(d->c);
        clock_sleep_ms(10);
    }
    return left;
}

static void test_who_leaves_is_told_once(void)
{
    struct door d;
    struct peer nobody;
    door_open(&d, 100);
    void *first = knock(&d, NULL), *second = knock(&d, "chosen");
    struct peer a = receive(&d), b = receive(&d);
    CHECK(!peer_equal(&a, &b));
    CHECK_INT(connections_count(d.c), 2);
    zmq_close(first);
    struct peer left = wait_left(&d);
    bool chosen = left.size == 6;
    CHECK(!chosen && (peer_equal(&left, &a) || peer_equal(&left, &b)));
    CHECK_INT(connections_count(d.c), 1);
    CHECK(!connections_left(d.c, true, &nobody));
    zmq_close(second);
    left = wait_left(&d);
    CHECK(left.size == 6 && memcmp(left.id, "chosen", 6) == 0);
    CHECK_INT(connections_count(d.c), 0);
    door_close(&d);
}

/* It said something and was gone before anybody listened: it is still told, after its last words. */
static void test_last_words_come_before_the_leaving(void)
{
    struct door d;
    struct peer nobody;
    door_open(&d, 100);
    void *peer = knock(&d, NULL);
    zmq_pollitem_t item = {.socket = d.router, .events = ZMQ_POLLIN};
    CHECK_INT(zmq_poll(&item, 1, 20000), 1);
    zmq_close(peer);
    for (int i = 0; i < 2000 && connections_count(d.c) == 0; i++) {
        connections_read(d.c);
        clock_sleep_ms(1);
    }
    for (int i = 0; i < 2000 && connections_count(d.c) > 0; i++) {
        connections_read(d.c);
        clock_sleep_ms(10);
    }
    CHECK(!connections_left(d.c, true, &nobody)); /* it had said nothing that was heard */
    struct peer late = receive(&d), left = wait_left(&d);
    CHECK(peer_equal(&late, &left));
    door_close(&d);
}

/* Descriptors are used again at once: each of many that come one after the other is told, none for another.
 */
static void test_reused_descriptors_are_told_apart(void)
{
    struct door d;
    door_open(&d, 100);
    void *stays = knock(&d, NULL);
    struct peer resident = receive(&d);
    for (int i = 0; i < 50; i++) {
        void *peer = knock(&d, NULL);
        struct peer came = receive(&d);
        zmq_close(peer);
        struct peer left = wait_left(&d);
        CHECK(peer_equal(&came, &left) && !peer_equal(&left, &resident));
    }
    CHECK_INT(connections_count(d.c), 1);
    zmq_close(stays);
    door_close(&d);
}

static void test_beyond_the_most_nobody_gets_in_until_one_leaves(void)
{
    struct door d;
    door_open(&d, 2);
    void *first = knock(&d, NULL), *second = knock(&d, NULL);
    receive(&d);
    receive(&d);
    void *third = knock(&d, NULL);
    int brief_ms = 200, patience_ms = 20000;
    char byte[1];
    connections_read(d.c);
    zmq_setsockopt(d.router, ZMQ_RCVTIMEO, &brief_ms, sizeof(brief_ms));
    CHECK_INT(zmq_recv(d.router, byte, 1, 0), -1);
    zmq_setsockopt(d.router, ZMQ_RCVTIMEO, &patience_ms, sizeof(patience_ms));
    zmq_close(first);
    wait_left(&d);
    receive(&d); /* it came by itself */
    CHECK_INT(connections_count(d.c), 2);
    zmq_close(second);
    zmq_close(third);
    door_close(&d);
}

int main(void)
{
    TEST(test_who_leaves_is_told_once, "who leaves is told once, by the right name");
    TEST(test_last_words_come_before_the_leaving, "last words come before the leaving");
    TEST(test_reused_descriptors_are_told_apart, "users of one descriptor are told apart");
    TEST(test_beyond_the_most_nobody_gets_in_until_one_leaves,
         "beyond the most nobody gets in until one leaves");
    return test_result();
}
