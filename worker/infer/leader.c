#include "worker/infer/leader.h"

#include <stdlib.h>

#include "worker/infer/sequences.h"
#include "worker/infer/transfer.h"

void leader_init(struct leader *l, const struct serve_options *o)
{
    const struct step_limits *limits = &o->engine.limits;
    /* The first sequence of a step always fits into it. */
    ASSERT(limits->history >= limits->context && limits->page_ops >= 2 * limits->pages_per_sequence + 2);
    *l = (struct leader){.o = o, .flights = transfer_stages(o), .next_step = 1, .next_order = 1};
    pipeline_init(&l->cost, l->flights);
    l->slot = xcalloc((size_t)limits->slots, sizeof(*l->slot));
    l->flight = xcalloc((size_t)l->flights, sizeof(*l->flight));
    for (int32_t i = 0; i < l->flights; i++) {
        step_init(&l->flight[i].step, limits);
        l->flight[i].slots = xcalloc((size_t)limits->sequences, sizeof(int32_t));
        l->flight[i].result = xcalloc(1, transfer_result_max_bytes(o));
    }
    l->plan_in = xcalloc((size_t)limits->slots, sizeof(*l->plan_in));
    batch_plan_init(&l->plan, limits->slots);
    l->plan_slot = xcalloc((size_t)limits->slots, sizeof(*l->plan_slot));
    struct pages_options pages = {
        .total = limits->pages, .page_tokens = o->engine.page_tokens, .cache = !o->no_prefix_cache};
    pages_open(&l->pages, &pages);
}

void leader_release(struct leader *l)
{
    sequences_drop_waiting(l);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        if (l->slot[i].used) {
            l->slot[i].flights = 0;
            sequences_release(l, &l->slot[i]);
        }
    for (int32_t i = 0; i < l->flights; i++) {
        step_release(&l->flight[i].step);
        free(l->flight[i].slots);
        free(l->flight[i].result);
    }
    /* Every page came back: each is free once the cache is dropped. */
    pages_drop_cache(l->pages);
    ASSERT(pages_count(l->pages).free == l->o->engine.limits.pages);
    free(l->slot);
    free(l->flight);
    free(l->plan_in);
    batch_plan_release(&l->plan);
    free(l->plan_slot);
    pages_close(&l->pages);
    buffer_release(&l->encoded);
}
