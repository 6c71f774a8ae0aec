#include "coordinator/heap.h"
#include "tests/test.h"

#define N 200

static void test_order(void)
{
    struct heap_node nodes[8];
    struct heap h = heap_empty();
    uint64_t keys[] = {5, 3, 9, 3, 7};
    uint32_t expected[] = {3, 1, 0, 4, 2}; /* of the two threes the smaller tie is first */
    CHECK(heap_first(&h) == HEAP_NONE);
    for (uint32_t i = 0; i < 5; i++)
        heap_push(&h, nodes, i, keys[i], i == 3 ? 0 : i);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(heap_first(&h), expected[i]);
        heap_remove(&h, nodes, heap_first(&h));
    }
    CHECK(heap_first(&h) == HEAP_NONE && h.count == 0);
}

/* The first of the nodes that are in, by looking at all. */
static uint32_t first_of(const uint64_t *key, const int *in, int heap)
{
    uint32_t best = HEAP_NONE;
    for (uint32_t i = 0; i < N; i++)
        if (in[i] == heap && (best == HEAP_NONE || key[i] < key[best]))
            best = i;
    return best;
}

/* Two heaps over one array, all operations, against an array that is searched. */
static void test_random_operations(void)
{
    static struct heap_node nodes[N];
    struct heap h[2] = {heap_empty(), heap_empty()};
    uint64_t key[N] = {0};
    int in[N];
    unsigned long long random = 7;
    for (int i = 0; i < N; i++)
        in[i] = -1;
    for (int step = 0; step < 100000 && test_failures == 0; step++) {
        uint32_t i = (uint32_t)(test_random(&random) % N);
        uint64_t k = test_random(&random) % 1000 * N + i; /* no two are equal */
        if (in[i] < 0) {
            in[i] = (int)(test_random(&random) % 2);
            key[i] = k;
            heap_push(&h[in[i]], nodes, i, k, 0);
        } else if (test_random(&random) % 3 == 0) {
            key[i] = k;
            heap_move(&h[in[i]], nodes, i, k, 0);
        } else {
            heap_remove(&h[in[i]], nodes, i);
            in[i] = -1;
        }
        for (int x = 0; x < 2; x++)
            CHECK_INT(heap_first(&h[x]), first_of(key, in, x));
    }
}

int main(void)
{
    TEST(test_order, "the smallest key comes first, then the smallest tie");
    TEST(test_random_operations, "100000 random operations on two heaps keep the order");
    return test_result();
}
