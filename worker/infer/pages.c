#include "worker/infer/pages.h"

#include <stdlib.h>
#include <string.h>

#define NONE (-1)

struct page {
    int32_t holders;
    bool known;           /* by its tokens */
    bool written;         /* it belonged to a tenant before: `salt` says which */
    int32_t before;       /* known: the page in front of it, or NONE */
    int32_t successors;   /* known pages that name this one as `before` */
    int32_t chain;        /* known: the next page of its bucket */
    int32_t older, newer; /* cached: neighbours in the order of last use */
    uint64_t salt;
};

struct pages {
    struct pages_options o;
    struct page *page;     /* [total] */
    int32_t *tokens;       /* [total, page_tokens] of the known ones */
    int32_t *bucket;       /* [bucket_count] first page of each chain */
    uint32_t bucket_count; /* a power of two */
    int32_t *free_list; /* a stack: what was used last is warm in the processor's cache, and memory that was
                           never touched stays so */
    int32_t free_count, cached_count;
    int32_t oldest, newest; /* of the cached */
};

void pages_open(struct pages **out, const struct pages_options *options)
{
    struct pages *p = xcalloc(1, sizeof(*p));
    size_t total = (size_t)options->total;
    ASSERT(options->total > 0 && options->page_tokens > 0);
    p->o = *options;
    p->page = xcalloc(total, sizeof(*p->page));
    p->free_list = xcalloc(total, sizeof(int32_t));
    if (options->cache)
        p->tokens = xcalloc(total * (size_t)options->page_tokens, sizeof(int32_t));
    p->bucket_count = 1;
    while (p->bucket_count < 2 * (uint32_t)options->total)
        p->bucket_count *= 2;
    p->bucket = xcalloc(p->bucket_count, sizeof(int32_t));
    for (uint32_t b = 0; b < p->bucket_count; b++)
        p->bucket[b] = NONE;
    for (int32_t i = 0; i < options->total; i++)
        p->free_list[i] = options->total - 1 - i; /* page 0 is taken first */
    p->free_count = options->total;
    p->oldest = p->newest = NONE;
    *out = p;
}

void pages_close(struct pages **pp)
{
    if (!pp || !*pp)
        return;
    struct pages *p = *pp;
    free(p->page);
    free(p->tokens);
    free(p->bucket);
    free(p->free_list);
    free(p);
    *pp = NULL;
}

struct pages_count pages_count(const struct pages *p)
{
    return (struct pages_count){.used = p->o.total - p->free_count - p->cached_count,
                                .cached = p->cached_count,
                                .free = p->free_count};
}

int32_t pages_available(const struct pages *p)
{
    return p->free_count + p->cached_count;
}

static struct page *page_at(const struct pages *p, int32_t page)
{
    ASSERT(page >= 0 && page < p->o.total);
    return &p->page[page];
}

/* ---- what is known */

static int32_t *tokens_of(const struct pages *p, int32_t page)
{
    return p->tokens + (size_t)page * (size_t)p->o.page_tokens;
}

/* The finalizer of splitmix64 (Steele et al. 2014) over each part in turn. */
static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) + 0x9E3779B97F4A7C15u;
    hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9u;
    hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EBu;
    return hash ^ (hash >> 31);
}

static uint32_t bucket_of(const struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens)
{
    uint64_t hash = mix(mix(0, salt), (uint64_t)(uint32_t)before);
    for (int32_t i = 0; i < p->o.page_tokens; i++)
        hash = mix(hash, (uint64_t)(uint32_t)tokens[i]);
    return (uint32_t)hash & (p->bucket_count - 1);
}

/* Not held for anybody. */
static int32_t look_up(const struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens)
{
    if (!p->o.cache)
        return NONE;
    for (int32_t i = p->bucket[bucket_of(p, salt, before, tokens)]; i != NONE; i = p->page[i].chain) {
        const struct page *g = &p->page[i];
        if (g->before == before && g->salt == salt &&
            memcmp(tokens_of(p, i), tokens, (size_t)p->o.page_tokens * sizeof(int32_t)) == 0)
            return i;
    }
    return NONE;
}

static void make_unknown(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    ASSERT(g->known && g->successors == 0);
    int32_t *link = &p->bucket[bucket_of(p, g->salt, g->before, tokens_of(p, page))];
    while (*link != page) {
        ASSERT(*link != NONE);
        link = &p->page[*link].chain;
    }
    *link = g->chain;
    if (g->before != NONE)
        p->page[g->before].successors--;
    g->known = false;
}

/* ---- the cached, in the order of their last use */

static void cache_push(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    g->older = p->newest;
    g->newer = NONE;
    if (p->newest != NONE)
        p->page[p->newest].newer = page;
    else
        p->oldest = page;
    p->newest = page;
    p->cached_count++;
}

static void cache_remove(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    if (g->older != NONE)
        p->page[g->older].newer = g->newer;
    else
        p->oldest = g->newer;
    if (g->newer != NONE)
        p->page[g->newer].older = g->older;
    else
        p->newest = g->older;
    p->cached_count--;
}

static void evict_oldest(struct pages *p)
{
    int32_t page = p->oldest;
    cache_remove(p, page);
    make_unknown(p, page);
    p->free_list[p->free_count++] = page;
}

void pages_drop_cache(struct pages *p)
{
    while (p->cached_count)
        evict_oldest(p);
}

/* ---- holders */

int32_t pages_take(struct pages *p, uint64_t salt, bool *zero)
{
    if (p->free_count == 0 && p->cached_count)
        evict_oldest(p);
    if (p->free_count == 0)
        return NONE;
    int32_t page = p->free_list[--p->free_count];
    struct page *g = page_at(p, page);
    *zero = g->written && g->salt != salt;
    g->written = true;
    g->salt = salt;
    g->holders = 1;
    return page;
}

void pages_hold(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    ASSERT(g->holders > 0);
    g->holders++;
}

static void hold_known(struct pages *p, int32_t page)
{
    struct page *g = page_at(p, page);
    if (g->holders++ == 0)
        cache_remove(p, page);
}

void pages_give(struct pages *p, const int32_t *pages, int32_t count)
{
    for (int32_t i = count - 1; i >= 0; i--) {
        struct page *g = page_at(p, pages[i]);
        ASSERT(g->holders > 0);
        if (--g->holders)
            continue;
        if (g->known)
            cache_push(p, pages[i]);
        else
            p->free_list[p->free_count++] = pages[i];
    }
}

bool pages_shared(const struct pages *p, int32_t page)
{
    const struct page *g = page_at(p, page);
    return g->known || g->holders > 1;
}

int32_t pages_sole(const struct pages *p, const int32_t *pages, int32_t count)
{
    int32_t sole = 0;
    for (int32_t i = 0; i < count; i++)
        sole += page_at(p, pages[i])->holders == 1;
    return sole;
}

int32_t pages_find(struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens)
{
    int32_t page = look_up(p, salt, before, tokens);
    if (page != NONE)
        hold_known(p, page);
    return page;
}

int32_t pages_held_prefix(const struct pages *p, uint64_t salt, const int32_t *tokens, int32_t count)
{
    int32_t held = 0, page = NONE;
    for (; count >= p->o.page_tokens; count -= p->o.page_tokens, tokens += p->o.page_tokens) {
        page = look_up(p, salt, page, tokens);
        if (page == NONE || p->page[page].holders == 0)
            break; /* who holds a page holds those before it: behind an unheld one none is held */
        held++;
    }
    return held;
}

int32_t pages_publish(struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens, int32_t page)
{
    struct page *g = page_at(p, page);
    ASSERT(g->holders > 0 && !g->known && g->salt == salt);
    if (!p->o.cache)
        return page;
    ASSERT(before == NONE || page_at(p, before)->known);
    int32_t same = look_up(p, salt, before, tokens);
    if (same != NONE) {
        hold_known(p, same);
        pages_give(p, &page, 1);
        return same;
    }
    int32_t *first = &p->bucket[bucket_of(p, salt, before, tokens)];
    memcpy(tokens_of(p, page), tokens, (size_t)p->o.page_tokens * sizeof(int32_t));
    g->known = true;
    g->before = before;
    g->successors = 0;
    g->chain = *first;
    *first = page;
    if (before != NONE)
        p->page[before].successors++;
    return page;
}

void pages_forget(struct pages *p, const int32_t *pages, int32_t count)
{
    for (int32_t i = count - 1; i >= 0; i--) {
        struct page *g = page_at(p, pages[i]);
        if (g->known && g->holders == 1 && g->successors == 0)
            make_unknown(p, pages[i]);
    }
}
