#include "coordinator/prefix.h"
#include "tests/test.h"

#include <stdlib.h>
#include <string.h>

static char text[100000];

static void fill_some(unsigned long long seed, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        text[i] = (char)('a' + test_random(&seed) % 26);
}

static void fill(unsigned long long seed)
{
    fill_some(seed, sizeof(text));
}

static struct prefix_key key_of(uint64_t salt, uint64_t bytes)
{
    struct prefix_key key;
    prefix_key_make(&key, salt, text, bytes);
    return key;
}

/* The bytes that `group` is said to have of this prompt. */
static uint64_t has(struct prefix_index *x, uint32_t group, uint64_t salt, uint64_t bytes)
{
    struct prefix_match found[16];
    struct prefix_key key = key_of(salt, bytes);
    uint32_t count = prefix_find(x, &key, found, 16);
    for (uint32_t i = 0; i < count; i++)
        if (found[i].group == group)
            return found[i].bytes;
    return 0;
}

static void test_longest_first(void)
{
    struct prefix_index *x = prefix_new(4096);
    struct prefix_match found[16];
    fill(1);
    struct prefix_key small = key_of(0, 1000), large = key_of(0, 3000), all = key_of(0, 100000);
    prefix_note(x, &small, 5);
    prefix_note(x, &large, 6);
    CHECK_INT(prefix_find(x, &all, found, 16), 2);
    CHECK_INT(found[0].group, 6);
    CHECK_INT(found[0].bytes, 2816);
    CHECK_INT(found[1].group, 5);
    CHECK_INT(found[1].bytes, 768);
    prefix_free(&x);
}

static void test_differing_prompts_do_not_match(void)
{
    struct prefix_index *x = prefix_new(4096);
    fill(1);
    struct prefix_key key = key_of(0, 5000);
    prefix_note(x, &key, 1);
    CHECK_INT(has(x, 1, 0, 5000), 4608);
    text[1100]++;
    CHECK_INT(has(x, 1, 0, 5000), 1024); /* up to the last cut before the change */
    text[0]++;
    CHECK_INT(has(x, 1, 0, 5000), 0);
    prefix_free(&x);
}

static void test_salt_keeps_tenants_apart(void)
{
    struct prefix_index *x = prefix_new(4096);
    fill(2);
    struct prefix_key key = key_of(1, 5000);
    prefix_note(x, &key, 1);
    CHECK_INT(has(x, 1, 2, 5000), 0);
    CHECK(has(x, 1, 1, 5000) > 0);
    prefix_free(&x);
}

static void test_bounded_and_recent(void)
{
    struct prefix_index *x = prefix_new(1024);
    uint64_t memory = prefix_memory(x);
    for (unsigned i = 0; i < 2000; i++) {
        fill_some(i, 2048);
        struct prefix_key key = key_of(0, 2048);
        prefix_note(x, &key, i % 7);
    }
    CHECK_INT(has(x, 1999 % 7, 0, 2048), 2048); /* the newest is there */
    fill_some(0, 2048);
    CHECK_INT(has(x, 0, 0, 2048), 0); /* the oldest made room */
    CHECK(prefix_places(x) <= 1024 && prefix_memory(x) == memory);
    prefix_free(&x);
}

static void test_drop_group(void)
{
    struct prefix_index *x = prefix_new(4096);
    fill(3);
    struct prefix_key key = key_of(0, 2000);
    prefix_note(x, &key, 1);
    prefix_note(x, &key, 2);
    prefix_drop_group(x, 2);
    CHECK_INT(has(x, 2, 0, 2000), 0);
    CHECK(has(x, 1, 0, 2000) > 0);
    prefix_drop_group(x, 1);
    CHECK_INT(prefix_places(x), 0);
    prefix_free(&x);
}

static const char *name(void *context, uint32_t group)
{
    (void)context;
    return group == 1 ? "one" : group == 4 ? "four" : NULL;
}

static uint32_t number(void *context, const char *text_name)
{
    (void)context;
    return strcmp(text_name, "one") == 0 ? 11 : strcmp(text_name, "four") == 0 ? 14 : UINT32_MAX;
}

static void test_snapshot(void)
{
    struct prefix_index *x = prefix_new(4096), *y = prefix_new(4096);
    struct buffer bytes = {0};
    struct err err;
    fill(4);
    struct prefix_key a = key_of(0, 3000), b = key_of(9, 2000);
    prefix_note(x, &a, 1);
    prefix_note(x, &b, 4);
    prefix_note(x, &b, 3); /* a group without a name is left out */
    prefix_save(x, name, NULL, &bytes);
    CHECK_INT(prefix_load(y, bytes.data, bytes.size, number, NULL, &err), 0);
    CHECK_INT(has(y, 11, 0, 3000), 2816);
    CHECK_INT(has(y, 14, 9, 2000), 1792);
    CHECK_INT(has(y, 3, 9, 2000), 0);
    for (size_t cut = 0; cut < bytes.size; cut++) { /* every truncation is an error, none a crash */
        struct prefix_index *z = prefix_new(64);
        uint8_t *copy = malloc(cut ? cut : 1);
        memcpy(copy, bytes.data, cut);
        CHECK_INT(prefix_load(z, copy, cut, number, NULL, &err), -1);
        free(copy);
        prefix_free(&z);
    }
    bytes.data[0] ^= 1;
    CHECK_INT(prefix_load(y, bytes.data, bytes.size, number, NULL, &err), -1);
    CHECK_STR(err.message, "prefix snapshot:4: not a prefix snapshot");
    buffer_release(&bytes);
    prefix_free(&x);
    prefix_free(&y);
}

int main(void)
{
    TEST(test_longest_first, "the longest common beginning comes first");
    TEST(test_differing_prompts_do_not_match, "a match ends where prompts differ");
    TEST(test_salt_keeps_tenants_apart, "another salt finds nothing");
    TEST(test_bounded_and_recent, "memory is bounded, and the oldest makes room");
    TEST(test_drop_group, "a dropped group is found no more");
    TEST(test_snapshot, "a snapshot comes back by names, and a broken one is refused");
    return test_result();
}
