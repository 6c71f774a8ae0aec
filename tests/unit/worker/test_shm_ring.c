#include "worker/shm_ring.h"

#include <pthread.h>
#include <sys/mman.h>

#include "tests/test.h"

static struct shm_ring *new_ring(void)
{
    struct shm_ring *r = mmap(NULL, sizeof(*r), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED)
        die("no shared memory");
    return r;
}

static void test_takes_what_there_is_room_for(void)
{
    struct shm_ring *r = new_ring();
    size_t bytes = SHM_RING_BYTES + 100;
    uint8_t *data = xcalloc(1, bytes), *back = xcalloc(1, bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 9));
    CHECK_INT(shm_ring_read(r, back, 10), 0);
    CHECK_INT(shm_ring_write(r, data, bytes), SHM_RING_BYTES);
    CHECK_INT(shm_ring_write(r, data, 1), 0);
    CHECK_INT(shm_ring_read(r, back, 50), 50);
    CHECK_INT(shm_ring_write(r, data + SHM_RING_BYTES, 100), 50); /* around the end */
    CHECK_INT(shm_ring_read(r, back + 50, bytes), SHM_RING_BYTES);
    CHECK(memcmp(back, data, SHM_RING_BYTES + 50) == 0);
    free(data);
    free(back);
    munmap(r, sizeof(*r));
}

static void test_counters_wrap(void)
{
    struct shm_ring *r = new_ring();
    uint8_t data[64] = {1, 2, 3}, back[64];
    r->written.value = r->taken.value = UINT32_MAX - 10;
    CHECK_INT(shm_ring_write(r, data, 64), 64);
    CHECK(shm_ring_wait(r, 1));
    CHECK_INT(shm_ring_read(r, back, 64), 64);
    CHECK(memcmp(data, back, 64) == 0);
    CHECK(!shm_ring_wait(r, 1));
    munmap(r, sizeof(*r));
}

#define STREAM_BYTES (64u << 20)

static void *write_stream(void *context)
{
    struct shm_ring *r = context;
    uint8_t piece[1000];
    unsigned long long random = 3;
    for (size_t at = 0; at < STREAM_BYTES;) {
        size_t n = 1 + test_random(&random) % sizeof(piece), done = 0;
        if (n > STREAM_BYTES - at)
            n = STREAM_BYTES - at;
        for (size_t i = 0; i < n; i++)
            piece[i] = (uint8_t)((at + i) * 11 + ((at + i) >> 8));
        while (done < n)
            done += shm_ring_write(r, piece + done, n - done);
        at += n;
    }
    return NULL;
}

static void test_a_stream_arrives_whole(void)
{
    struct shm_ring *r = new_ring();
    pthread_t writer;
    uint8_t piece[4096];
    size_t wrong = 0;
    pthread_create(&writer, NULL, write_stream, r);
    for (size_t at = 0; at < STREAM_BYTES;) {
        while (!shm_ring_wait(r, 0)) { /* the wake-up of a piece that was read already comes late */
        }
        size_t n = shm_ring_read(r, piece, sizeof(piece));
        for (size_t i = 0; i < n; i++)
            wrong += piece[i] != (uint8_t)((at + i) * 11 + ((at + i) >> 8));
        at += n;
    }
    pthread_join(writer, NULL);
    CHECK_INT(wrong, 0);
    munmap(r, sizeof(*r));
}

/* A waiter that has gone to sleep is woken by the value, and by a poke without it. */
struct sleeper {
    struct shm_word *word;
    _Atomic int rounds;
};

static void *sleep_twice(void *context)
{
    struct sleeper *s = context;
    while (!shm_word_wait(s->word, 5, 0))
        s->rounds++;
    return NULL;
}

static void wait_for_sleeper(struct shm_word *w)
{
    while (atomic_load(&w->sleepers) == 0)
        usleep(100);
    usleep(1000); /* from the count into the kernel */
}

static void test_a_sleeper_wakes(void)
{
    static struct shm_word word;
    struct sleeper s = {.word = &word};
    pthread_t thread;
    pthread_create(&thread, NULL, sleep_twice, &s);
    wait_for_sleeper(&word);
    while (s.rounds == 0) {
        shm_word_poke(&word);
        usleep(100);
    }
    wait_for_sleeper(&word);
    shm_word_set(&word, 5);
    pthread_join(thread, NULL);
    CHECK(s.rounds >= 1);
    CHECK(shm_word_reached(&word, 5) && !shm_word_reached(&word, 6));
}

static void test_a_wait_ends_at_its_limit(void)
{
    static struct shm_word word;
    CHECK(!shm_word_wait(&word, 1, 50));
    CHECK(!shm_word_wait(&word, 1, 2000));
    CHECK_INT(word.sleepers, 0);
}

int main(void)
{
    TEST(test_takes_what_there_is_room_for, "a ring takes what it has room for, and gives what it has");
    TEST(test_counters_wrap, "the counters of a ring may wrap");
    TEST(test_a_stream_arrives_whole, "a stream of pieces of any size arrives whole");
    TEST(test_a_sleeper_wakes, "a sleeper wakes at a poke and at its value");
    TEST(test_a_wait_ends_at_its_limit, "a wait ends at its limit");
    return test_result();
}
