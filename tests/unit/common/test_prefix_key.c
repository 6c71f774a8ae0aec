#include "common/prefix_key.h"
#include "tests/test.h"

#include <string.h>

static void test_cuts(void)
{
    CHECK_INT(prefix_cut(0), 256);
    CHECK_INT(prefix_cut(15), 4096);
    for (uint32_t i = 1; i < PREFIX_CUTS; i++)
        CHECK(prefix_cut(i) > prefix_cut(i - 1) &&
              prefix_cut(i) - prefix_cut(i - 1) <= 256 + prefix_cut(i - 1) / 8);
    CHECK(prefix_cut(PREFIX_CUTS - 1) > 1000000);
}

static void test_places_name_beginnings(void)
{
    static char text[20000];
    struct prefix_key a, b;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)('a' + i * i % 23);
    prefix_key_make(&a, 7, text, sizeof(text));
    prefix_key_make(&b, 7, text, 10000);
    CHECK(b.count < a.count && memcmp(a.place, b.place, b.count * sizeof(a.place[0])) == 0);
    text[5000]++;
    prefix_key_make(&b, 7, text, sizeof(text));
    for (uint32_t i = 0; i < a.count; i++)
        CHECK((a.place[i] == b.place[i]) == (prefix_cut(i) <= 5000));
    prefix_key_make(&b, 8, text, sizeof(text));
    CHECK(a.place[0] != b.place[0]); /* another tenant */
    prefix_key_make(&b, 7, text, 255);
    CHECK_INT(b.count, 0);
}

int main(void)
{
    TEST(test_cuts, "cuts are at most an eighth apart and reach a megabyte");
    TEST(test_places_name_beginnings, "a place names all that is before it, and the salt");
    return test_result();
}
