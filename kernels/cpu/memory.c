#include "kernels/cpu/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/nodes.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes)   ((void)(from), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes) ((void)(from), (void)(bytes))
#endif

#define HUGE_PAGE_BYTES  (2u << 20)
#define SLAB_BYTES       (256u << 20) /* of address space: what is not written costs nothing */
#define SLAB_BLOCK_LEAST (64u << 10)  /* smaller blocks come from malloc */
#define ALIGNMENT_BYTES  64

struct slab {
    char *begin, *mapping;
    size_t bytes, mapping_bytes, used;
    int64_t blocks;
};

/* In front of every block, in the 64 bytes before it. */
struct header {
    struct slab *slab; /* NULL: of malloc */
    void *start;       /* of malloc */
};
_Static_assert(sizeof(struct header) <= ALIGNMENT_BYTES, "it lies in one unit of alignment");

struct cpu_memory {
    pthread_mutex_t lock;
    struct slab *open; /* where the next block goes; NULL = none yet */
    uint64_t slab_bytes;
    struct node_set nodes;
};

struct cpu_memory *cpu_memory_new(void)
{
    struct cpu_memory *m = xcalloc(1, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
    nodes_of_process(&m->nodes);
    return m;
}

static void slab_free(struct cpu_memory *m, struct slab *s)
{
    m->slab_bytes -= s->bytes;
    ASAN_UNPOISON_MEMORY_REGION(s->begin, s->bytes);
    munmap(s->mapping, s->mapping_bytes);
    free(s);
}

void cpu_memory_free(struct cpu_memory **pm)
{
    struct cpu_memory *m = *pm;
    if (!m)
        return;
    ASSERT(m->slab_bytes == 0);
    pthread_mutex_destroy(&m->lock);
    free(m);
    *pm = NULL;
}

/* A slab for a block of `bytes`, its header included. NULL when the system refuses. */
static struct slab *slab_new(struct cpu_memory *m, size_t bytes)
{
    size_t size = bytes > SLAB_BYTES ? round_up_u64(bytes, HUGE_PAGE_BYTES) : SLAB_BYTES;
    char *mapping =
        mmap(NULL, size + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    struct slab *s = xcalloc(1, sizeof(*s));
    *s = (struct slab){.begin = (char *)round_up_u64((uintptr_t)mapping, HUGE_PAGE_BYTES),
                       .mapping = mapping,
                       .bytes = size,
                       .mapping_bytes = size + HUGE_PAGE_BYTES};
    (void)madvise(s->begin, size, MADV_HUGEPAGE); /* a wish: where it is not granted, only speed is lost */
    nodes_interleave(&m->nodes, s->begin, size);
    ASAN_POISON_MEMORY_REGION(s->begin, size);
    m->slab_bytes += size;
    return s;
}

static void *take_from_slab(struct cpu_memory *m, size_t bytes)
{
    size_t whole = ALIGNMENT_BYTES + round_up_u64(bytes, ALIGNMENT_BYTES);
    pthread_mutex_lock(&m->lock);
    struct slab *s = m->open;
    if (!s || s->bytes - s->used < whole) {
        struct slab *fresh = slab_new(m, whole);
        if (!fresh) {
            pthread_mutex_unlock(&m->lock);
            return NULL;
        }
        m->open = s = fresh;
    }
    char *at = s->begin + s->used;
    s->used += whole;
    s->blocks++;
    pthread_mutex_unlock(&m->lock);
    char *block = at + ALIGNMENT_BYTES;
    ASAN_UNPOISON_MEMORY_REGION(block - sizeof(struct header), bytes + sizeof(struct header));
    ((struct header *)(void *)block)[-1] = (struct header){.slab = s};
    ASAN_POISON_MEMORY_REGION(block - sizeof(struct header), sizeof(struct header));
    return block;
}

static void *take_from_heap(size_t bytes)
{
    char *start = calloc(1, bytes + 2 * ALIGNMENT_BYTES);
    if (!start)
        return NULL;
    char *block = (char *)round_up_u64((uintptr_t)start + sizeof(struct header), ALIGNMENT_BYTES);
    ((struct header *)(void *)block)[-1] = (struct header){.start = start};
    return block;
}

void *cpu_memory_take(struct cpu_memory *m, size_t bytes)
{
    if (bytes > SIZE_MAX - 4 * (size_t)HUGE_PAGE_BYTES)
        return NULL;
    return bytes < SLAB_BLOCK_LEAST ? take_from_heap(bytes) : take_from_slab(m, bytes);
}

void cpu_memory_give(struct cpu_memory *m, void *block)
{
    if (!block)
        return;
    struct header *at = (struct header *)block - 1;
    ASAN_UNPOISON_MEMORY_REGION(at, sizeof(*at));
    struct header h = *at;
    if (!h.slab) {
        free(h.start);
        return;
    }
    pthread_mutex_lock(&m->lock);
    if (--h.slab->blocks == 0) {
        m->open = m->open == h.slab ? NULL : m->open;
        slab_free(m, h.slab);
    }
    pthread_mutex_unlock(&m->lock);
}

uint64_t cpu_memory_slab_bytes(struct cpu_memory *m)
{
    pthread_mutex_lock(&m->lock);
    uint64_t bytes = m->slab_bytes;
    pthread_mutex_unlock(&m->lock);
    return bytes;
}
