#include "worker/mock/places.h"

#include <stdlib.h>

#define NONE UINT32_MAX

struct item {
    uint64_t name;
    uint32_t tokens;             /* beyond the place before it */
    uint32_t newer, older, next; /* next: of the hash chain */
};

struct places {
    uint32_t most, count, buckets; /* buckets: a power of two */
    uint32_t newest, oldest, unused;
    uint64_t tokens;
    uint32_t *bucket;
    struct item *items; /* grows up to `most` */
    uint32_t capacity;
};

struct places *places_new(uint32_t most)
{
    struct places *p = xcalloc(1, sizeof(*p));
    p->most = most;
    p->newest = p->oldest = p->unused = NONE;
    for (p->buckets = 16; p->buckets < most && p->buckets < 1u << 20;)
        p->buckets *= 2;
    p->bucket = xcalloc(p->buckets, sizeof(*p->bucket));
    for (uint32_t i = 0; i < p->buckets; i++)
        p->bucket[i] = NONE;
    return p;
}

void places_free(struct places **p)
{
    if (!*p)
        return;
    free((*p)->bucket);
    free((*p)->items);
    free(*p);
    *p = NULL;
}

static uint32_t find(const struct places *p, uint64_t name)
{
    uint32_t i = p->bucket[name & (p->buckets - 1)];
    while (i != NONE && p->items[i].name != name)
        i = p->items[i].next;
    return i;
}

static void unlink_use(struct places *p, uint32_t i)
{
    struct item *t = &p->items[i];
    *(t->newer == NONE ? &p->newest : &p->items[t->newer].older) = t->older;
    *(t->older == NONE ? &p->oldest : &p->items[t->older].newer) = t->newer;
}

static void link_newest(struct places *p, uint32_t i)
{
    struct item *t = &p->items[i];
    t->newer = NONE;
    t->older = p->newest;
    *(p->newest == NONE ? &p->oldest : &p->items[p->newest].newer) = i;
    p->newest = i;
}

static void drop_oldest(struct places *p)
{
    uint32_t i = p->oldest;
    struct item *t = &p->items[i];
    uint32_t *at = &p->bucket[t->name & (p->buckets - 1)];
    while (*at != i)
        at = &p->items[*at].next;
    *at = t->next;
    unlink_use(p, i);
    p->tokens -= t->tokens;
    p->count--;
    t->next = p->unused;
    p->unused = i;
}

static uint32_t take_item(struct places *p)
{
    if (p->unused == NONE && p->count == p->most)
        drop_oldest(p);
    if (p->unused != NONE) {
        uint32_t i = p->unused;
        p->unused = p->items[i].next;
        return i;
    }
    if (p->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 64;
        p->items = xrealloc(p->items, p->capacity * sizeof(*p->items));
    }
    return p->count;
}

uint32_t places_find(struct places *p, const struct engine_place *prompt, uint32_t count)
{
    uint32_t depth = 0;
    while (depth < count) {
        uint32_t i = find(p, prompt[depth].name);
        if (i == NONE)
            break;
        depth++;
    }
    for (uint32_t k = depth; k-- > 0;) { /* the shortest is used last, so the longest goes first */
        uint32_t i = find(p, prompt[k].name);
        unlink_use(p, i);
        link_newest(p, i);
    }
    return depth ? prompt[depth - 1].tokens : 0;
}

void places_keep(struct places *p, const struct engine_place *prompt, uint32_t count, uint64_t max_tokens)
{
    for (uint32_t k = count; k-- > 0;) {
        uint32_t i = find(p, prompt[k].name);
        if (i != NONE) {
            unlink_use(p, i);
            link_newest(p, i);
            continue;
        }
        i = take_item(p);
        uint32_t *bucket = &p->bucket[prompt[k].name & (p->buckets - 1)];
        p->items[i] = (struct item){.name = prompt[k].name,
                                    .tokens = prompt[k].tokens - (k ? prompt[k - 1].tokens : 0),
                                    .next = *bucket};
        *bucket = i;
        p->count++;
        p->tokens += p->items[i].tokens;
        link_newest(p, i);
    }
    while (p->count && p->tokens > max_tokens)
        drop_oldest(p);
}
