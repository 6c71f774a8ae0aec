#include "kernels/cpu/memory.h"

#include <pthread.h>

#include "tests/test.h"

#define SLAB ((size_t)256 << 20)

static bool is_zero(const char *memory, size_t bytes)
{
    return memory[0] == 0 && memory[bytes - 1] == 0 && memcmp(memory, memory + 1, bytes - 1) == 0;
}

static void test_blocks(void)
{
    static const size_t sizes[] = {1, 63, 64, 65, 4096, 65535, 65536, 65537, 1 << 20, (3 << 20) + 5};
    struct cpu_memory *m = cpu_memory_new();
    char *block[ARRAY_LEN(sizes) * 3];
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            char *b = block[(size_t)round * ARRAY_LEN(sizes) + i] = cpu_memory_take(m, sizes[i]);
            CHECK(b && (uintptr_t)b % 64 == 0 && is_zero(b, sizes[i]));
            memset(b, 0x5a, sizes[i]);
        }
    for (size_t i = 0; i < ARRAY_LEN(block); i++)
        CHECK(block[i][0] == 0x5a && block[i][sizes[i % ARRAY_LEN(sizes)] - 1] == 0x5a);
    CHECK(cpu_memory_slab_bytes(m) == SLAB);
    for (size_t i = 0; i < ARRAY_LEN(block); i++)
        cpu_memory_give(m, block[i]);
    cpu_memory_give(m, NULL);
    CHECK(cpu_memory_slab_bytes(m) == 0);
    cpu_memory_free(&m);
    CHECK(m == NULL);
}

static void test_neighbours(void)
{
    struct cpu_memory *m = cpu_memory_new();
    char *a = cpu_memory_take(m, 4 << 20), *b = cpu_memory_take(m, 4 << 20);
    /* One behind the other, so that no block ends in small pages. */
    CHECK(b > a && b - a < (4 << 20) + 4096);
    cpu_memory_give(m, a);
    cpu_memory_give(m, b);
    cpu_memory_free(&m);
}

static void test_slabs_end(void)
{
    struct cpu_memory *m = cpu_memory_new();
    char *first = cpu_memory_take(m, SLAB - (1 << 20)), *second = cpu_memory_take(m, 2 << 20);
    CHECK(cpu_memory_slab_bytes(m) == 2 * SLAB);
    char *long_one = cpu_memory_take(m, SLAB + 1);
    CHECK(long_one && cpu_memory_slab_bytes(m) == 3 * SLAB + (2 << 20));
    long_one[SLAB] = 1;
    cpu_memory_give(m, first);
    CHECK(cpu_memory_slab_bytes(m) == 2 * SLAB + (2 << 20));
    cpu_memory_give(m, long_one);
    cpu_memory_give(m, second);
    CHECK(cpu_memory_slab_bytes(m) == 0);
    /* What comes next is zero again. */
    first = cpu_memory_take(m, 1 << 20);
    CHECK(is_zero(first, 1 << 20));
    cpu_memory_give(m, first);
    cpu_memory_free(&m);
}

static void test_refused(void)
{
    struct cpu_memory *m = cpu_memory_new();
    CHECK(cpu_memory_take(m, SIZE_MAX) == NULL && cpu_memory_take(m, SIZE_MAX - 64) == NULL);
    CHECK(cpu_memory_take(m, (size_t)1 << 62) == NULL);
    CHECK(cpu_memory_slab_bytes(m) == 0);
    cpu_memory_free(&m);
}

static void *take_and_give(void *context)
{
    struct cpu_memory *m = context;
    for (int i = 0; i < 200; i++) {
        char *small = cpu_memory_take(m, 100), *large = cpu_memory_take(m, 100000);
        large[0] = small[0] = (char)i;
        cpu_memory_give(m, large);
        cpu_memory_give(m, small);
    }
    return NULL;
}

static void test_threads(void)
{
    struct cpu_memory *m = cpu_memory_new();
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, take_and_give, m) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    CHECK(cpu_memory_slab_bytes(m) == 0);
    cpu_memory_free(&m);
}

int main(void)
{
    TEST(test_blocks, "blocks are zero, aligned and apart");
    TEST(test_neighbours, "large blocks lie one behind the other");
    TEST(test_slabs_end, "a slab ends with its last block");
    TEST(test_refused, "what cannot be is refused");
    TEST(test_threads, "threads take and give at once");
    return test_result();
}
