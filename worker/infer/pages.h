/* pages: the leader's book of KV pages. A page is free, held by sequences (it counts how many), or cached:
 * held by nobody, but its tokens are known, so a sequence that begins with the same tokens may hold it again.
 *
 *     free --take--> held(1) --publish--> held(n), known by its tokens <--hold/give--> cached --take-->
 * held(1)
 *
 * A full page is known by its tokens, by the page before it and by its tenant's salt: what stands in a page
 * depends on everything in front of it. The chain is a hash table over (page before, tokens, salt), and every
 * hit is compared token by token: a collision costs time, never a wrong answer.
 *
 * Whoever holds a page of a chain holds those before it, and pages are given back last first. So a page's
 * successors are always older in the order of last use than itself, the oldest cached page has none, and the
 * eviction of the oldest breaks no chain.
 *
 * It names pages and knows no memory: what a page holds is in every stage's kv_pool (kvcache.h), changed by
 * the page operations that ride in the steps. */
#ifndef LEPTON_WORKER_INFER_PAGES_H
#define LEPTON_WORKER_INFER_PAGES_H

#include "common/base.h"

struct pages;

struct pages_options {
    int32_t total;
    int32_t page_tokens;
    bool cache; /* false: nothing is known by its tokens, pages go straight back */
};

struct pages_count {
    int32_t used; /* held by sequences */
    int32_t cached;
    int32_t free; /* used + cached + free = total */
};

void pages_open(struct pages **out, const struct pages_options *options);
void pages_close(struct pages **p);
struct pages_count pages_count(const struct pages *p);
/* Those that pages_take can still give: free and cached ones. */
int32_t pages_available(const struct pages *p);

/* One page for a sequence of this tenant, held once; -1 when none is available. The oldest cached page goes
 * when none is free. *zero: the page belonged to another tenant before and must be zeroed. */
int32_t pages_take(struct pages *p, uint64_t salt, bool *zero);
/* One more holder of a page that is held. */
void pages_hold(struct pages *p, int32_t page);
/* One holder less of each, the last first: a run of a sequence's pages, in its order. */
void pages_give(struct pages *p, const int32_t *pages, int32_t count);
/* Whether writing into the page would be seen by others: it has other holders, or is known by its tokens. */
bool pages_shared(const struct pages *p, int32_t page);
/* How many of these would become available were they given back by their one holder. */
int32_t pages_sole(const struct pages *p, const int32_t *pages, int32_t count);

/* The page that holds tokens[page_tokens] behind the page `before` (-1: they are the first), held once more
 * for the caller; -1 when there is none. */
int32_t pages_find(struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens);
/* How many of the pages of tokens[count] are known and held by somebody: those that cost nothing to hold. */
int32_t pages_held_prefix(const struct pages *p, uint64_t salt, const int32_t *tokens, int32_t count);
/* Makes a full page known. `before` is the sequence's page in front of it, known itself, or -1. Returns the
 * page to hold from now on: `page`, or the one that was known by the same tokens already (then held for the
 * caller, and `page` was given back). */
int32_t pages_publish(struct pages *p, uint64_t salt, int32_t before, const int32_t *tokens, int32_t page);
/* Makes unknown again what the caller alone holds: pages whose contents are not to be trusted. */
void pages_forget(struct pages *p, const int32_t *pages, int32_t count);
/* Frees every cached page. */
void pages_drop_cache(struct pages *p);

#endif
