#include "coordinator/poison.h"
#include "tests/test.h"

static const uint8_t *digest_of(uint32_t number)
{
    static uint8_t digest[REQUEST_DIGEST];
    memcpy(digest, &number, sizeof(number));
    return digest;
}

static struct poison entry(const char *owner, uint32_t number)
{
    struct poison p = {.tokens = 3, .count = 2};
    snprintf(p.owner, sizeof(p.owner), "%s", owner);
    memcpy(p.digest, digest_of(number), sizeof(p.digest));
    p.loss[0] = (struct poison_loss){
        .group = "g0", .epoch = 7, .cause = LOSS_OF_ITSELF, .alone = true, .ended = "SIGSEGV"};
    p.loss[1] = (struct poison_loss){.group = "g1-b", .epoch = 1ull << 40};
    return p;
}

static void test_by_owner_and_content(void)
{
    struct poisons *list = poisons_new(1000);
    struct poison p = entry("alice", 1), dropped;
    CHECK(poisons_put(list, &p, 0, 50, &dropped) && !dropped.owner[0]);
    CHECK(poisons_find(list, "alice", digest_of(1), 60) != NULL);
    CHECK(poisons_find(list, "bob", digest_of(1), 60) == NULL);
    CHECK(poisons_find(list, "alice", digest_of(2), 60) == NULL);
    p.tokens = 9;
    CHECK(poisons_put(list, &p, 0, 70, &dropped) && poisons_count(list) == 1);
    CHECK_INT(poisons_find(list, "alice", digest_of(1), 80)->tokens, 9);
    CHECK(!poisons_drop(list, "bob", digest_of(1)));
    CHECK(poisons_drop(list, "alice", digest_of(1)) && poisons_count(list) == 0);
    poisons_free(&list);
}

static void test_in_time_and_number(void)
{
    struct poisons *list = poisons_new(1000);
    struct poison p = entry("alice", 1), dropped;
    poisons_put(list, &p, 0, 50, &dropped);
    CHECK(poisons_find(list, "alice", digest_of(1), 1049) != NULL);
    CHECK(poisons_find(list, "alice", digest_of(1), 1050) == NULL);
    poisons_put(list, &p, 900, 50, &dropped); /* of an earlier run */
    CHECK(poisons_find(list, "alice", digest_of(1), 149) != NULL);
    CHECK(poisons_find(list, "alice", digest_of(1), 150) == NULL);
    CHECK(poisons_put(list, &p, 1000, 50, &dropped) == NULL);
    for (uint32_t i = 0; i < POISON_MOST + 2; i++) {
        p = entry("alice", 100 + i);
        CHECK(poisons_put(list, &p, 0, 50, &dropped) != NULL);
    }
    CHECK_INT(poisons_count(list), POISON_MOST);
    CHECK_STR(dropped.owner, "alice");
    CHECK(memcmp(dropped.digest, digest_of(101), REQUEST_DIGEST) == 0);
    CHECK(poisons_find(list, "alice", digest_of(102), 60) != NULL);
    poisons_free(&list);
    list = poisons_new(0);
    CHECK(poisons_put(list, &p, 0, 50, &dropped) == NULL && poisons_count(list) == 0);
    poisons_free(&list);
}

static void test_learns(void)
{
    struct poisons *list = poisons_new(1000);
    struct poison dropped, p = entry("alice", 1), other = entry("bob", 2);
    uint32_t at = 0;
    other.loss[1].epoch++;
    poisons_put(list, &p, 0, 50, &dropped);
    poisons_put(list, &other, 0, 50, &dropped);
    struct poison *found = poisons_learn(list, &at, "g1-b", 1ull << 40, "SIGABRT");
    CHECK(found && strcmp(found->owner, "alice") == 0 && found->loss[1].cause == LOSS_OF_ITSELF);
    CHECK_STR(found ? found->loss[1].ended : NULL, "SIGABRT");
    CHECK(poisons_learn(list, &at, "g1-b", 1ull << 40, "SIGABRT") == NULL);
    at = 0;
    CHECK(poisons_learn(list, &at, "g0", 7, "SIGKILL") == NULL); /* known already */
    poisons_free(&list);
}

static void test_as_bytes(void)
{
    struct poison p = entry("alice", 1), back = {.count = 0};
    struct buffer bytes = {0};
    struct err err = {0};
    poison_record(&p, &bytes);
    CHECK(poison_read(&back, bytes.data, bytes.size, &err) == 0);
    CHECK_INT(back.count, 2);
    for (int i = 0; i < 2; i++) {
        CHECK_STR(back.loss[i].group, p.loss[i].group);
        CHECK_STR(back.loss[i].ended, p.loss[i].ended);
        CHECK(back.loss[i].epoch == p.loss[i].epoch && back.loss[i].cause == p.loss[i].cause &&
              back.loss[i].alone == p.loss[i].alone);
    }
    for (size_t size = 1; size < bytes.size; size++) {
        void *exact = malloc(size);
        memcpy(exact, bytes.data, size);
        int code = poison_read(&back, exact, size, &err);
        CHECK(code == -1 || back.count == 1); /* a cut between two is none that can be seen */
        free(exact);
    }
    for (size_t at = 0; at < 8 * bytes.size; at++) {
        bytes.data[at / 8] ^= (uint8_t)(1 << at % 8);
        if (poison_read(&back, bytes.data, bytes.size, &err) == 0)
            CHECK(back.count <= SUSPECT_LOSSES);
        bytes.data[at / 8] ^= (uint8_t)(1 << at % 8);
    }
    for (int i = 0; i < 2; i++)
        poison_record(&p, &bytes);
    CHECK(poison_read(&back, bytes.data, bytes.size, &err) == -1); /* six */
    CHECK_CONTAINS(err.message, "more than 5");
    buffer_release(&bytes);
}

int main(void)
{
    TEST(test_by_owner_and_content, "a suspect is known by its key and what it asks");
    TEST(test_in_time_and_number, "suspects are forgotten in time, and the oldest when there are too many");
    TEST(test_learns, "why a group died is learned by all who lost it in that epoch");
    TEST(test_as_bytes, "losses outlive as bytes; what is cut, damaged or too much is refused");
    return test_result();
}
