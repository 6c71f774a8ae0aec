/* arena: memory that is handed out and given back as one. The bound is what stops a template that grows. */
#include <stdlib.h>
#include <string.h>

#include "worker/model/template/impl.h"

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size;
    _Alignas(16) char data[];
};

void *arena_take(struct arena *a, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (a->limit && bytes > a->limit - a->used)
        return NULL;
    a->used += bytes;
    struct arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < bytes) {
        /* Chunks grow with what is used, so that a large rendering needs few. */
        size_t size = a->used < (4u << 10) ? 4u << 10 : a->used < (256u << 10) ? a->used : 256u << 10;
        if (size < bytes)
            size = bytes;
        c = xmalloc(sizeof(*c) + size);
        *c = (struct arena_chunk){.next = a->chunks, .size = size};
        a->chunks = c;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    return memset(p, 0, bytes);
}

void arena_release(struct arena *a)
{
    while (a->chunks) {
        struct arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    a->used = 0;
}
