#include "worker/infer/pages.h"

#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

#define PAGE 4

static struct pages *open_pages(int32_t total, bool cache)
{
    struct pages *p;
    pages_open(&p, &(struct pages_options){.total = total, .page_tokens = PAGE, .cache = cache});
    return p;
}

static int32_t take(struct pages *p, uint64_t salt)
{
    bool zero;
    return pages_take(p, salt, &zero);
}

static void check_count(const struct pages *p, int32_t used, int32_t cached, int32_t free)
{
    struct pages_count c = pages_count(p);
    CHECK_INT(c.used, used);
    CHECK_INT(c.cached, cached);
    CHECK_INT(c.free, free);
}

/* A chain of known pages that hold tokens[count * PAGE]. */
static void build(struct pages *p, uint64_t salt, const int32_t *tokens, int32_t count, int32_t *out)
{
    for (int32_t i = 0; i < count; i++)
        out[i] = pages_publish(p, salt, i ? out[i - 1] : -1, tokens + i * PAGE, take(p, salt));
}

static const int32_t text[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

static void test_pages_come_back(void)
{
    struct pages *p = open_pages(3, true);
    int32_t a[3];
    for (int i = 0; i < 3; i++)
        a[i] = take(p, 0);
    CHECK(a[0] != a[1] && a[1] != a[2] && a[0] != a[2]);
    CHECK_INT(take(p, 0), -1);
    pages_give(p, a, 3);
    check_count(p, 0, 0, 3);
    pages_close(&p);
}

static void test_known_pages_are_found(void)
{
    struct pages *p = open_pages(4, true);
    int32_t a[2], b[2];
    build(p, 7, text, 2, a);
    pages_give(p, a, 2);
    check_count(p, 0, 2, 2);
    b[0] = pages_find(p, 7, -1, text);
    b[1] = pages_find(p, 7, b[0], text + PAGE);
    CHECK(b[0] == a[0] && b[1] == a[1]);
    check_count(p, 2, 0, 2);
    CHECK_INT(pages_find(p, 7, b[1], text + 2 * PAGE), -1);
    CHECK_INT(pages_find(p, 7, -1, text + PAGE), -1); /* the same tokens elsewhere */
    pages_give(p, b, 2);
    pages_drop_cache(p);
    check_count(p, 0, 0, 4);
    CHECK_INT(pages_find(p, 7, -1, text), -1);
    pages_close(&p);
}

static void test_another_salt_finds_nothing(void)
{
    struct pages *p = open_pages(4, true);
    int32_t a[2];
    build(p, 7, text, 2, a);
    CHECK_INT(pages_find(p, 8, -1, text), -1);
    CHECK_INT(pages_find(p, 8, a[0], text + PAGE), -1);
    CHECK_INT(pages_held_prefix(p, 8, text, 8), 0);
    CHECK_INT(pages_held_prefix(p, 7, text, 8), 2);
    pages_close(&p);
}

static void test_every_token_counts(void)
{
    struct pages *p = open_pages(4, true);
    int32_t a[1];
    build(p, 0, text, 1, a);
    for (int i = 0; i < PAGE; i++) {
        int32_t other[PAGE];
        memcpy(other, text, sizeof(other));
        other[i]++;
        CHECK_INT(pages_find(p, 0, -1, other), -1);
    }
    pages_close(&p);
}

static void test_the_same_tokens_become_one_page(void)
{
    struct pages *p = open_pages(4, true);
    int32_t a[2], b[2];
    build(p, 0, text, 2, a);
    build(p, 0, text, 2, b);
    CHECK(memcmp(a, b, sizeof(a)) == 0);
    check_count(p, 2, 0, 2);
    CHECK_INT(pages_sole(p, a, 2), 0);
    pages_give(p, a, 2);
    CHECK_INT(pages_sole(p, b, 2), 2);
    pages_close(&p);
}

static void test_the_longest_unused_goes_first(void)
{
    struct pages *p = open_pages(4, true);
    int32_t other[8] = {90, 91, 92, 93, 94, 95, 96, 97}, a[2], b[2], fresh[3];
    build(p, 0, text, 2, a);
    build(p, 0, other, 2, b);
    pages_give(p, a, 2);
    pages_give(p, b, 2);
    CHECK_INT(pages_find(p, 0, -1, text), a[0]); /* used again: now the newest */
    pages_give(p, a, 1);
    for (int i = 0; i < 3; i++)
        fresh[i] = take(p, 0);
    /* The end of the first chain, then the second from its end; the first's beginning stays. */
    CHECK(fresh[0] == a[1] && fresh[1] == b[1] && fresh[2] == b[0]);
    CHECK_INT(pages_find(p, 0, -1, text), a[0]);
    CHECK_INT(take(p, 0), -1);
    pages_close(&p);
}

static void test_held_pages_are_not_evicted(void)
{
    struct pages *p = open_pages(2, true);
    int32_t a[2];
    build(p, 0, text, 2, a);
    pages_hold(p, a[0]);
    pages_give(p, a, 2);
    check_count(p, 1, 1, 0);
    CHECK_INT(take(p, 0), a[1]);
    CHECK_INT(take(p, 0), -1);
    pages_close(&p);
}

static void test_another_tenant_gets_cleared_pages(void)
{
    struct pages *p = open_pages(1, true);
    bool zero;
    int32_t page = pages_take(p, 5, &zero);
    CHECK(!zero); /* nobody wrote into it */
    pages_give(p, &page, 1);
    page = pages_take(p, 5, &zero);
    CHECK(!zero); /* its own */
    page = pages_publish(p, 5, -1, text, page);
    pages_give(p, &page, 1);
    page = pages_take(p, 6, &zero);
    CHECK(zero);
    pages_close(&p);
}

static void test_shared_pages_are_told(void)
{
    struct pages *p = open_pages(3, true);
    int32_t page = take(p, 0);
    CHECK(!pages_shared(p, page));
    pages_hold(p, page);
    CHECK(pages_shared(p, page));
    pages_give(p, &page, 1);
    CHECK(!pages_shared(p, page));
    page = pages_publish(p, 0, -1, text, page);
    CHECK(pages_shared(p, page));
    pages_close(&p);
}

static void test_forgotten_pages_are_not_found(void)
{
    struct pages *p = open_pages(4, true);
    int32_t a[3];
    build(p, 0, text, 3, a);
    pages_hold(p, a[0]); /* somebody else trusts it */
    pages_forget(p, a, 3);
    pages_give(p, a, 3);
    CHECK_INT(pages_held_prefix(p, 0, text, 12), 1);
    check_count(p, 1, 0, 3);
    pages_close(&p);
}

static void test_without_a_cache_nothing_is_known(void)
{
    struct pages *p = open_pages(2, false);
    int32_t a[2];
    build(p, 0, text, 2, a);
    CHECK_INT(pages_find(p, 0, -1, text), -1);
    pages_give(p, a, 2);
    check_count(p, 0, 0, 2);
    pages_close(&p);
}

/* A model of the book: holders of pages as chains of tokens from a tiny alphabet, so that prefixes meet. */
struct holder {
    uint64_t salt;
    int32_t count, page[6], tokens[6 * PAGE];
};

static void grow(struct pages *p, struct holder *h, unsigned long long *random)
{
    bool zero;
    int32_t *tokens = h->tokens + h->count * PAGE, before = h->count ? h->page[h->count - 1] : -1;
    if (h->count == 6)
        return;
    for (int i = 0; i < PAGE; i++)
        tokens[i] = i ? 0 : (int32_t)(test_random(random) % 3);
    int32_t page = pages_find(p, h->salt, before, tokens);
    if (page < 0) {
        if ((page = pages_take(p, h->salt, &zero)) < 0)
            return;
        page = pages_publish(p, h->salt, before, tokens, page);
    }
    h->page[h->count++] = page;
}

static void check_model(const struct pages *p, const struct holder *h, int32_t count, int32_t total)
{
    int32_t holders[64] = {0}, used = 0;
    for (int32_t i = 0; i < count; i++)
        for (int32_t k = 0; k < h[i].count; k++)
            holders[h[i].page[k]]++;
    for (int32_t i = 0; i < total; i++)
        used += holders[i] > 0;
    struct pages_count c = pages_count(p);
    CHECK_INT(c.used, used);
    CHECK_INT(c.used + c.cached + c.free, total);
    for (int32_t i = 0; i < count; i++) { /* one page never means two things */
        CHECK_INT(pages_held_prefix(p, h[i].salt, h[i].tokens, h[i].count * PAGE), h[i].count);
        for (int32_t k = 0; k < h[i].count; k++)
            CHECK((holders[h[i].page[k]] == 1) == (pages_sole(p, &h[i].page[k], 1) == 1));
    }
}

static void test_any_history_adds_up(void)
{
    enum { TOTAL = 20, HOLDERS = 7 };
    unsigned long long random = 3;
    for (int round = 0; round < 20; round++) {
        struct pages *p = open_pages(TOTAL, true);
        struct holder h[HOLDERS] = {0};
        for (int step = 0; step < 400; step++) {
            struct holder *one = &h[test_random(&random) % HOLDERS];
            uint64_t dice = test_random(&random) % 8;
            if (dice == 0) {
                pages_give(p, one->page, one->count);
                one->count = 0;
                one->salt = test_random(&random) % 2;
            } else if (dice == 1 && one->count) {
                one->count--;
                pages_give(p, &one->page[one->count], 1);
            } else {
                grow(p, one, &random);
            }
            check_model(p, h, HOLDERS, TOTAL);
        }
        for (int i = 0; i < HOLDERS; i++)
            pages_give(p, h[i].page, h[i].count);
        pages_drop_cache(p);
        check_count(p, 0, 0, TOTAL);
        pages_close(&p);
    }
}

int main(void)
{
    TEST(test_pages_come_back, "pages are taken once and come back");
    TEST(test_known_pages_are_found, "known pages are found behind the page they stand behind");
    TEST(test_another_salt_finds_nothing, "another tenant's salt finds nothing");
    TEST(test_every_token_counts, "a page with one other token is not found");
    TEST(test_the_same_tokens_become_one_page, "the same tokens published twice are held in one page");
    TEST(test_the_longest_unused_goes_first,
         "the page unused for longest is evicted first, chains from their end");
    TEST(test_held_pages_are_not_evicted, "a page that somebody holds is not evicted");
    TEST(test_another_tenant_gets_cleared_pages, "a page that passes to another tenant is to be zeroed");
    TEST(test_shared_pages_are_told, "a page with two holders or a known one must be copied to be written");
    TEST(test_forgotten_pages_are_not_found,
         "forgotten pages are not found, unless somebody else holds them");
    TEST(test_without_a_cache_nothing_is_known,
         "without a cache nothing is found and pages come back at once");
    TEST(test_any_history_adds_up, "holders, cached and free pages add up after any history");
    return test_result();
}
