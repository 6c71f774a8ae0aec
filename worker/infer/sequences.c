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
                      .choice = q->request.choice,
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
    sequence_request_release(&q->request);
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
    q->request.sampling.choice = (uint32_t)r->choice;
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

/* The choices of a request wait and run as sequences of their own, each with its own copy of what the request
 * owns. */
static void submit(struct leader *l, struct command *c)
{
    const struct sequence_request r = c->request;
    ASSERT(r.choices >= 1);
    size_t prompt_bytes = (size_t)r.prompt_tokens * sizeof(*r.prompt);
    size_t bias_bytes = (size_t)r.sampling.bias_count * sizeof(*r.biases);
    for (int32_t choice = 0; choice < r.choices; choice++) {
        struct command one = {.kind = COMMAND_SUBMIT, .request = r};
        one.request.choice = choice;
        if (choice) {
            one.request.prompt = xmalloc(prompt_bytes);
            memcpy(one.request.prompt, r.prompt, prompt_bytes);
        }
        if (choice && bias_bytes) {
            one.request.biases = xmalloc(bias_bytes);
            memcpy(one.request.biases, r.biases, bias_bytes);
        }
        push_waiting(l, &one);
    }
}

/* A request that never began: its end is reported (unless silent) and its memory released. */
static void end_waiting(struct leader *l, struct command *c, bool silent)
{
    struct sequence q = {.request = c->request, .known = c->request.prompt_tokens, .silent = silent};
    emit_end(l, &q, EVENT_DONE, FINISH_CANCELLED);
    sequence_request_release(&c->request);
}

static bool is_named(const struct sequence_request *r, uint64_t handle, int32_t choice)
{
    return r->handle == handle && (choice < 0 || r->choice == choice);
}

/* `which` = NULL: all. */
static void cancel_waiting(struct leader *l, const struct sequence_request *which)
{
    size_t kept = 0;
    for (size_t i = 0; i < l->waiting_count; i++) {
        struct command *c = &l->waiting[(l->waiting_first + i) % l->waiting_capacity];
        if (!which || is_named(&c->request, which->handle, which->choice))
            end_waiting(l, c, !which);
        else
            l->waiting[(l->waiting_first + kept++) % l->waiting_capacity] = *c;
    }
    l->waiting_count = kept;
}

void sequences_drop_waiting(struct leader *l)
{
    cancel_waiting(l, NULL);
}

static void cancel(struct leader *l, const struct sequence_request *which)
{
    cancel_waiting(l, which);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++) {
        struct sequence *q = &l->slot[i];
        if (!q->used || (which && !is_named(&q->request, which->handle, which->choice)))
            continue;
        q->cancelled = true;
        q->silent |= !which;
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
            submit(l, &c);
            break;
        case COMMAND_CANCEL:
            cancel(l, &c.request);
            break;
        case COMMAND_CANCEL_ALL:
            cancel(l, NULL);
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
