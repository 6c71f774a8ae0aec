#include "worker/infer/sequences.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

static void emit_end(struct leader *l, const struct sequence *q, enum event_kind kind,
                     enum finish_reason reason)
{
    uint64_t now = clock_now_us();
    uint64_t first = q->first_us ? q->first_us : now;
    struct event e = {.kind = kind,
                      .handle = q->request.handle,
                      .index = q->known - q->request.prompt_tokens,
                      .reason = reason,
                      .prompt_tokens = q->request.prompt_tokens,
                      .completion_tokens = q->known - q->request.prompt_tokens,
                      .prefill_us = first - q->request.arrived_us,
                      .decode_us = now - first};
    if (!q->silent)
        mailbox_emit(l->o->mailbox, &e);
}

void sequences_release(struct leader *l, struct sequence *q)
{
    ASSERT(!q->busy);
    kv_pages_give(&l->pages, q->pages, q->page_count);
    free(q->tokens);
    free(q->pages);
    free(q->request.prompt);
    *q = (struct sequence){0};
}

void sequences_finish(struct leader *l, struct sequence *q, enum event_kind kind, enum finish_reason reason)
{
    emit_end(l, q, kind, reason);
    sequences_release(l, q);
}

/* Puts a submitted request into a free slot; false when there is no slot or not enough pages now. */
static bool admit(struct leader *l, const struct command *c)
{
    const struct sequence_request *r = &c->request;
    struct sequence *q = NULL;
    int32_t slot = 0;
    for (; slot < l->o->engine.limits.slots && !q; slot++)
        if (!l->slot[slot].used)
            q = &l->slot[slot];
    if (!q)
        return false;
    slot--;
    /* The last drawn token is never fed, so prompt + max_tokens - 1 positions are enough. */
    int32_t most = r->prompt_tokens + r->max_tokens;
    int32_t count = leader_pages_needed(l, most - 1);
    int32_t *pages = xcalloc((size_t)count, sizeof(int32_t));
    if (!kv_pages_take(&l->pages, count, pages)) {
        free(pages);
        return false;
    }
    *q = (struct sequence){.used = true,
                           .request = *r,
                           .order = l->next_order++,
                           .known = r->prompt_tokens,
                           .pages = pages,
                           .page_count = count};
    q->tokens = xcalloc((size_t)most, sizeof(int32_t));
    memcpy(q->tokens, r->prompt, (size_t)r->prompt_tokens * sizeof(int32_t));
    q->request.sampling.slot = slot;
    q->request.sampling.prompt_tokens = r->prompt_tokens;
    return true;
}

static void push_waiting(struct leader *l, struct command *c)
{
    c->request.arrived_us = clock_now_us(); /* the time it waits for a slot counts */
    if (l->waiting_count == l->waiting_capacity) {
        size_t capacity = l->waiting_capacity ? 2 * l->waiting_capacity : 64;
        struct command *items = xcalloc(capacity, sizeof(*items));
        for (size_t i = 0; i < l->waiting_count; i++)
            items[i] = l->waiting[(l->waiting_first + i) % l->waiting_capacity];
        free(l->waiting);
        l->waiting = items;
        l->waiting_capacity = capacity;
        l->waiting_first = 0;
    }
    l->waiting[(l->waiting_first + l->waiting_count++) % l->waiting_capacity] = *c;
}

/* A request that never began: its end is reported (unless silent) and its memory released. */
static void end_waiting(struct leader *l, struct command *c, bool silent)
{
    struct sequence q = {.request = c->request, .known = c->request.prompt_tokens, .silent = silent};
    emit_end(l, &q, EVENT_DONE, FINISH_CANCELLED);
    free(c->request.prompt);
}

void sequences_cancel_waiting(struct leader *l, bool all, uint64_t handle)
{
    size_t kept = 0;
    for (size_t i = 0; i < l->waiting_count; i++) {
        struct command *c = &l->waiting[(l->waiting_first + i) % l->waiting_capacity];
        if (all || c->request.handle == handle)
            end_waiting(l, c, all);
        else
            l->waiting[(l->waiting_first + kept++) % l->waiting_capacity] = *c;
    }
    l->waiting_count = kept;
}

static void cancel(struct leader *l, bool all, uint64_t handle)
{
    sequences_cancel_waiting(l, all, handle);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++) {
        struct sequence *q = &l->slot[i];
        if (!q->used || !(all || q->request.handle == handle))
            continue;
        q->cancelled = true;
        q->silent |= all;
        if (!q->busy)
            sequences_finish(l, q, EVENT_DONE, FINISH_CANCELLED);
    }
}

void sequences_take_commands(struct leader *l)
{
    struct command c;
    while (mailbox_take(l->o->mailbox, &c)) {
        switch (c.kind) {
        case COMMAND_SUBMIT:
            push_waiting(l, &c);
            break;
        case COMMAND_CANCEL:
            cancel(l, false, c.request.handle);
            break;
        case COMMAND_CANCEL_ALL:
            cancel(l, true, 0);
            break;
        case COMMAND_DRAIN:
            l->draining = true;
            break;
        }
    }
    while (l->waiting_count && admit(l, &l->waiting[l->waiting_first])) {
        l->waiting_first = (l->waiting_first + 1) % l->waiting_capacity;
        l->waiting_count--;
    }
}

void sequences_publish(struct leader *l)
{
    l->stats.running = 0;
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        l->stats.running += l->slot[i].used;
    l->stats.waiting = l->waiting_count;
    l->stats.pages_used = (uint64_t)(l->pages.total - l->pages.free_count);
    mailbox_set_stats(l->o->mailbox, &l->stats);
}
