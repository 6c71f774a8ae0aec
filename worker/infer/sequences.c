#include "worker/infer/sequences.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

/* ---- ends */

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
                      .cached_tokens =
                          q->cached < q->request.prompt_tokens ? q->cached : q->request.prompt_tokens,
                      .drafted_tokens = q->drafted,
                      .accepted_tokens = q->accepted,
                      .prefill_us = first - q->request.arrived_us,
                      .decode_us = now - first};
    if (!q->silent)
        mailbox_emit(l->o->mailbox, &e);
}

/* What the stages hold of it is nothing from here on. */
static void give_pages(struct leader *l, struct sequence *q)
{
    pages_give(l->pages, q->pages, q->page_count);
    q->fed = q->page_count = q->assigned = q->published = q->history = 0;
}

static void free_sequence(struct sequence *q)
{
    free(q->tokens);
    free(q->pages);
    sequence_request_release(&q->request);
    *q = (struct sequence){0};
}

void sequences_release(struct leader *l, struct sequence *q)
{
    ASSERT(!q->flights);
    give_pages(l, q);
    free_sequence(q);
}

void sequences_finish(struct leader *l, struct sequence *q, enum event_kind kind, enum finish_reason reason)
{
    emit_end(l, q, kind, reason);
    if (kind == EVENT_FAILED) /* whatever is wrong may be in its pages: nobody shall find them */
        pages_forget(l->pages, q->pages, q->page_count);
    sequences_release(l, q);
}

/* ---- those that wait */

static bool earlier(const struct sequence *a, const struct sequence *b)
{
    return batch_earlier(a->due_us, a->order, b->due_us, b->order);
}

/* In its place; most are the latest, so the search begins at the end. */
static void insert_waiting(struct leader *l, const struct sequence *q)
{
    struct waiting *w = xcalloc(1, sizeof(*w)), *before = l->waiting_last;
    w->q = *q;
    while (before && earlier(q, &before->q))
        before = before->before;
    struct waiting *next = before ? before->next : l->waiting;
    w->before = before;
    w->next = next;
    *(before ? &before->next : &l->waiting) = w;
    *(next ? &next->before : &l->waiting_last) = w;
    l->waiting_count++;
}

static void remove_waiting(struct leader *l, struct waiting *w)
{
    *(w->before ? &w->before->next : &l->waiting) = w->next;
    *(w->next ? &w->next->before : &l->waiting_last) = w->before;
    l->waiting_count--;
    free(w);
}

static void *copy_of(const void *from, size_t bytes)
{
    return bytes ? memcpy(xmalloc(bytes), from, bytes) : NULL;
}

/* One choice of a request, with its own copy of what the request owns. What was delivered elsewhere counts as
 * known from the start, as if the sequence had been preempted: it is computed in chunks, not drawn again. */
static void submit_choice(struct leader *l, const struct sequence_request *r, int32_t choice,
                          const int32_t *delivered, int32_t count)
{
    int64_t behind_us = (int64_t)r->priority * (int64_t)l->o->priority_step_ms * 1000;
    struct sequence q = {.used = true,
                         .request = *r,
                         .due_us = (int64_t)r->arrived_us + behind_us,
                         .order = l->next_order++,
                         .known = r->prompt_tokens + count};
    q.request.prompt = q.request.delivered = q.request.delivered_tokens = NULL;
    q.request.biases = copy_of(r->biases, (size_t)r->sampling.bias_count * sizeof(*r->biases));
    q.request.choice = choice;
    q.request.sampling.choice = (uint32_t)choice;
    q.request.sampling.prompt_tokens = r->prompt_tokens;
    q.tokens = xcalloc((size_t)r->prompt_tokens + (size_t)r->max_tokens, sizeof(int32_t));
    q.pages = xcalloc((size_t)l->o->engine.limits.pages_per_sequence, sizeof(int32_t));
    memcpy(q.tokens, r->prompt, (size_t)r->prompt_tokens * sizeof(int32_t));
    if (count)
        memcpy(q.tokens + r->prompt_tokens, delivered, (size_t)count * sizeof(int32_t));
    if (count < r->max_tokens) {
        insert_waiting(l, &q);
        return;
    }
    emit_end(l, &q, EVENT_DONE, FINISH_LENGTH); /* its last token came before its end could be told */
    free_sequence(&q);
}

/* A sequence for each choice that has not ended. */
static void submit(struct leader *l, struct sequence_request *r)
{
    ASSERT(r->choices >= 1 && r->prompt_tokens > 0 && r->max_tokens > 0 &&
           leader_pages_needed(l, r->prompt_tokens + r->max_tokens - 1) <= l->o->engine.limits.pages);
    r->arrived_us = clock_now_us(); /* the time it waits for a slot counts */
    const int32_t *delivered = r->delivered;
    for (int32_t choice = 0; choice < r->choices; choice++) {
        int32_t count = r->delivered_tokens ? r->delivered_tokens[choice] : 0;
        if (count < 0)
            continue;
        ASSERT(count <= r->max_tokens);
        submit_choice(l, r, choice, delivered, count);
        delivered += delivered ? count : 0;
    }
    sequence_request_release(r);
}

/* ---- cancellation. `which` = NULL: all, silently. */

static bool is_named(const struct sequence *q, const struct sequence_request *which)
{
    return !which ||
           (q->request.handle == which->handle && (which->choice < 0 || q->request.choice == which->choice));
}

static void cancel_waiting(struct leader *l, const struct sequence_request *which)
{
    for (struct waiting *w = l->waiting, *next; w; w = next) {
        next = w->next;
        if (!is_named(&w->q, which))
            continue;
        w->q.silent |= !which;
        emit_end(l, &w->q, EVENT_DONE, FINISH_CANCELLED);
        free_sequence(&w->q);
        remove_waiting(l, w);
    }
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
        if (!q->used || !is_named(q, which))
            continue;
        q->cancelled = true;
        q->silent |= !which;
        if (!q->flights)
            sequences_finish(l, q, EVENT_DONE, FINISH_CANCELLED);
    }
}

/* ---- slots */

void sequences_preempt(struct leader *l, struct sequence *q)
{
    ASSERT(q->used && !q->flights);
    give_pages(l, q);
    if (!q->first_us)
        q->cached = 0;
    insert_waiting(l, q);
    *q = (struct sequence){0};
    l->stats.preemptions++;
}

/* The running choice of the same request that is furthest in front of q, if it is before q. */
static struct sequence *earlier_choice(struct leader *l, const struct sequence *q)
{
    struct sequence *best = NULL;
    for (int32_t i = 0; i < l->o->engine.limits.slots && q->request.choice > 0; i++) {
        struct sequence *s = &l->slot[i];
        if (s->used && !s->cancelled && s->request.handle == q->request.handle &&
            s->request.choice < q->request.choice && (!best || s->request.choice < best->request.choice))
            best = s;
    }
    return best;
}

/* Pages that a sequence will ask for before it draws its next token. */
static int32_t pages_wanted(struct leader *l, const struct sequence *q)
{
    int32_t most = q->request.prompt_tokens + q->request.max_tokens - 1; /* the last one drawn is not fed */
    int32_t soon = leader_pages_needed(l, q->known < most ? q->known + 1 : most);
    if (q->page_count == 0 && earlier_choice(l, q))
        soon = soon < 2 ? soon : 2; /* the rest is shared */
    return soon > q->page_count ? soon - q->page_count : 0;
}

/* Whether q, waiting, fits beside what runs: besides its own pages those that the running ones want, and one
 * for each so that the next tokens preempt nobody. Alone it always fits, or it would have been refused. */
static bool has_room(struct leader *l, const struct sequence *q)
{
    int32_t wanted = pages_wanted(l, q), running = 0;
    wanted -= pages_held_prefix(l->pages, q->request.salt, q->tokens, q->known - 1);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        if (l->slot[i].used) {
            wanted += pages_wanted(l, &l->slot[i]) + 1;
            running++;
        }
    return running == 0 || wanted <= pages_available(l->pages);
}

/* Whether has_room could become true by preempting what runs and comes after q. */
static bool could_have_room(struct leader *l, const struct sequence *q)
{
    int32_t wanted = pages_wanted(l, q), reachable = pages_available(l->pages);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++) {
        const struct sequence *s = &l->slot[i];
        if (s->used && earlier(q, s))
            reachable += pages_sole(l->pages, s->pages, s->page_count);
        else if (s->used)
            wanted += pages_wanted(l, s) + 1;
    }
    return wanted <= reachable;
}

static struct sequence *free_slot(struct leader *l)
{
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        if (!l->slot[i].used)
            return &l->slot[i];
    return NULL;
}

static struct sequence *last_running(struct leader *l)
{
    struct sequence *last = NULL;
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        if (l->slot[i].used && (!last || earlier(last, &l->slot[i])))
            last = &l->slot[i];
    return last;
}

/* Gives slots to those that wait, in order and without overtaking, so that a large one is not passed over for
 * ever; one that comes before what runs (a higher priority) takes the place of the last. */
static void admit(struct leader *l)
{
    while (l->waiting) {
        struct sequence *q = &l->waiting->q, *slot;
        while (!(slot = free_slot(l)) || !has_room(l, q)) {
            struct sequence *last = last_running(l);
            if (!last || last->flights || !earlier(q, last) || !could_have_room(l, q))
                return;
            sequences_preempt(l, last);
        }
        *slot = *q;
        slot->request.sampling.slot = (int32_t)(slot - l->slot);
        remove_waiting(l, l->waiting);
    }
}

void sequences_take_commands(struct leader *l)
{
    struct command c;
    while (mailbox_take(l->o->mailbox, &c)) {
        switch (c.kind) {
        case COMMAND_SUBMIT:
            submit(l, &c.request);
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
        case COMMAND_PING:
            l->pinged = true;
            break;
        }
    }
    admit(l);
}

/* ---- pages that are there already */

/* Known pages behind those it holds, as far as they are all in front of its last token: that one is computed
 * in any case, for its logits. */
static void hold_known_pages(struct leader *l, struct sequence *q)
{
    int32_t page_tokens = l->o->engine.page_tokens;
    while (q->fed == q->page_count * page_tokens && q->published == q->page_count) {
        /* A last page that is known whole is copied by the row that is computed again, which takes two. */
        int32_t end = q->fed + page_tokens;
        if (end > q->known || (end == q->known && pages_available(l->pages) < 2))
            return;
        int32_t before = q->page_count ? q->pages[q->page_count - 1] : -1;
        int32_t page = pages_find(l->pages, q->request.salt, before, q->tokens + q->fed);
        if (page < 0)
            return;
        q->pages[q->page_count++] = page;
        q->published++;
        q->fed = end < q->known ? end : q->known - 1;
    }
}

/* The pages of another choice that has fed the whole prompt: the last may be one it is still writing. */
static void hold_choice_pages(struct leader *l, struct sequence *q, const struct sequence *other)
{
    int32_t tokens = q->request.prompt_tokens - 1, page_tokens = l->o->engine.page_tokens;
    while (q->page_count < leader_pages_needed(l, tokens)) {
        int32_t page = other->pages[q->page_count];
        pages_hold(l->pages, page);
        q->pages[q->page_count++] = page;
    }
    q->fed = tokens;
    q->published = tokens / page_tokens < other->published ? tokens / page_tokens : other->published;
}

bool sequences_reuse(struct leader *l, struct sequence *q)
{
    int32_t before = q->fed;
    if (q->known - q->fed < 2)
        return true; /* it decodes, or its prompt is one token */
    struct sequence *other = q->page_count == 0 ? earlier_choice(l, q) : NULL;
    if (other && other->fed < q->request.prompt_tokens - 1)
        return false;
    hold_known_pages(l, q);
    if (other && q->fed < q->request.prompt_tokens - 1 && pages_available(l->pages) > 0)
        hold_choice_pages(l, q, other);
    if (!q->counted)
        l->stats.prefix_queries += (uint64_t)q->known;
    q->counted = true;
    l->stats.prefix_hits += (uint64_t)(q->fed - before);
    if (!q->first_us) /* what is computed again after its first token is not its prompt's */
        q->cached += q->fed - before;
    return true;
}

bool sequences_must_copy(const struct leader *l, const struct sequence *q)
{
    int32_t index = q->fed / l->o->engine.page_tokens;
    return index < q->page_count && pages_shared(l->pages, q->pages[index]);
}

void sequences_give_up_page(struct leader *l, struct sequence *q)
{
    int32_t index = q->fed / l->o->engine.page_tokens;
    ASSERT(!q->flights && index < q->page_count);
    pages_give(l->pages, q->pages + index, q->page_count - index);
    q->page_count = index;
    q->fed = index * l->o->engine.page_tokens;
    q->assigned = q->assigned < index ? q->assigned : index;
    q->published = q->published < index ? q->published : index;
}

void sequences_publish_pages(struct leader *l, struct sequence *q)
{
    int32_t page_tokens = l->o->engine.page_tokens;
    int32_t sure = q->fed < q->known ? q->fed : q->known;
    for (; (q->published + 1) * page_tokens <= sure; q->published++) {
        int32_t i = q->published, before = i ? q->pages[i - 1] : -1;
        int32_t page = pages_publish(l->pages, q->request.salt, before,
                                     q->tokens + (size_t)i * (size_t)page_tokens, q->pages[i]);
        if (page != q->pages[i] && q->assigned > i)
            q->assigned = i; /* the stages learn of it with the sequence's next rows */
        q->pages[i] = page;
    }
}

void sequences_publish(struct leader *l)
{
    struct pages_count count = pages_count(l->pages);
    l->stats.running = 0;
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        l->stats.running += l->slot[i].used;
    l->stats.waiting = l->waiting_count;
    l->stats.pages_used = (uint64_t)count.used;
    l->stats.pages_cached = (uint64_t)count.cached;
    l->stats.pages_free = (uint64_t)count.free;
    mailbox_set_stats(l->o->mailbox, &l->stats);
}
