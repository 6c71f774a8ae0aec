#include "worker/infer/serve.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

/* What stands in front of a step on its way from stage to stage. */
struct step_envelope {
    uint64_t descriptor_bytes;
    uint64_t row_bytes;
};

/* ---- both sides: moving steps
 * ------------------------------------------------------------------------------------ */

static int send_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                     struct err *err)
{
    struct tensor rows = executor_rows(o->executor, step);
    int next = o->control->rank + 1;
    step_encode(step, encoded);
    struct step_envelope e = {.descriptor_bytes = encoded->size,
                              .row_bytes = step->token_count ? tensor_bytes(&rows) : 0};
    if (comm_send(o->control, NULL, &e, sizeof(e), next, err) ||
        comm_send(o->control, NULL, encoded->data, encoded->size, next, err))
        return -1;
    return e.row_bytes ? comm_send(o->data, executor_stream(o->executor), rows.data, e.row_bytes, next, err)
                       : 0;
}

static int recv_step(const struct serve_options *o, struct step *step, void *bytes, size_t capacity,
                     struct err *err)
{
    int from = o->control->rank - 1;
    struct step_envelope e;
    if (comm_recv(o->control, NULL, &e, sizeof(e), from, err))
        return -1;
    if (e.descriptor_bytes > capacity)
        return err_set(err, "step descriptor of %llu bytes, expected at most %zu",
                       (unsigned long long)e.descriptor_bytes, capacity);
    if (comm_recv(o->control, NULL, bytes, e.descriptor_bytes, from, err) ||
        step_decode(step, bytes, e.descriptor_bytes, &o->engine.limits, err))
        return -1;
    struct tensor rows = executor_rows(o->executor, step);
    if (e.row_bytes != (step->token_count ? tensor_bytes(&rows) : 0))
        return err_set(err, "step %llu carries %llu bytes of rows, expected %llu",
                       (unsigned long long)step->id, (unsigned long long)e.row_bytes,
                       (unsigned long long)tensor_bytes(&rows));
    return e.row_bytes ? comm_recv(o->data, executor_stream(o->executor), rows.data, e.row_bytes, from, err)
                       : 0;
}

/* Called between blocks: sends under way move on, and the watchdog sees that the step lives. */
static int between_blocks(void *context, struct err *err)
{
    const struct serve_options *o = context;
    watchdog_progress(o->watchdog);
    return o->data && (comm_progress(o->data, err) || comm_progress(o->control, err)) ? -1 : 0;
}

static void hook_stage(const struct serve_options *o)
{
    struct stage *stage = executor_stage(o->executor);
    stage->between = between_blocks;
    stage->between_context = (void *)(uintptr_t)o;
}

/* The answer of the last stage: the step's id, then its drawn tokens. Fixed size, so that one receive takes
 * it. */
static size_t result_bytes(const struct step_limits *l)
{
    return sizeof(uint64_t) + (size_t)l->sequences * sizeof(int32_t);
}

/* ---- followers
 * ----------------------------------------------------------------------------------------------------- */

struct follower {
    const struct serve_options *o;
    struct step step;
    void *bytes; /* a received descriptor */
    size_t capacity;
    struct buffer encoded;
    char *result; /* result_bytes */
};

/* One step, from its receipt to its sending on. *flags = the step's. */
static int follow_step(struct follower *f, uint32_t *flags, struct err *err)
{
    const struct serve_options *o = f->o;
    bool last = o->control->rank == o->control->size - 1;
    watchdog_enter(o->watchdog, "waiting for a step", o->wait_limit_ms);
    if (recv_step(o, &f->step, f->bytes, f->capacity, err))
        return -1;
    *flags = f->step.flags;
    watchdog_enter(o->watchdog, "a step", o->step_limit_ms);
    if (!*flags) {
        memset(f->result, 0, result_bytes(&o->engine.limits));
        memcpy(f->result, &f->step.id, sizeof(f->step.id));
        if (executor_run(o->executor, &f->step, last ? (int32_t *)(f->result + sizeof(uint64_t)) : NULL, err))
            return -1;
        if (last)
            return comm_send(o->control, NULL, f->result, result_bytes(&o->engine.limits), 0, err);
    }
    return last ? 0 : send_step(o, &f->step, &f->encoded, err);
}

/* Sleeping ranks owe nobody a message: sends under way are finished before the sleep. */
static int follow(struct follower *f, struct err *err)
{
    for (;;) {
        watchdog_enter(f->o->watchdog, "sleep", 0);
        if (wake_wait(f->o->wake, err))
            return -1;
        uint32_t flags = 0;
        do {
            if (follow_step(f, &flags, err))
                return -1;
        } while (!flags);
        if (comm_barrier(f->o->control, NULL, err))
            return -1;
        if (flags & STEP_STOP)
            return 0;
    }
}

int serve_follower(const struct serve_options *o, struct err *err)
{
    struct follower f = {.o = o, .capacity = step_max_bytes(&o->engine.limits)};
    hook_stage(o);
    step_init(&f.step, &o->engine.limits);
    f.bytes = xmalloc(f.capacity);
    f.result = xcalloc(1, result_bytes(&o->engine.limits));
    int code = follow(&f, err);
    watchdog_enter(o->watchdog, "leaving", 0);
    step_release(&f.step);
    free(f.bytes);
    free(f.result);
    buffer_release(&f.encoded);
    return code;
}

/* ---- the leader
 * ---------------------------------------------------------------------------------------------------- */

struct sequence {
    bool used;
    struct sequence_request request;
    uint64_t order;
    int32_t *tokens; /* [prompt + max_tokens] prompt, then what was drawn */
    int32_t known, fed;
    int32_t *pages;
    int32_t page_count, assigned; /* assigned: entries of the table that the stages know */
    bool busy, cancelled, silent; /* silent: its end is reported to nobody */
    uint64_t first_us;
};

/* A step under way: which slots it holds and how many tokens of each. */
struct flight {
    struct step step;
    int32_t *slots;
    char *result; /* a group of one rank has it at once */
};

struct leader {
    const struct serve_options *o;
    struct sequence *slot;   /* [limits.slots] */
    struct command *waiting; /* submitted, not yet admitted: a ring */
    size_t waiting_first, waiting_count, waiting_capacity;
    struct kv_pages pages;
    struct flight *flight; /* [stages], a ring */
    int32_t flights, first_flight, flight_count;
    struct batch_sequence *plan_in;
    struct batch_item *plan_out;
    int32_t *plan_slot; /* slot of each plan_in */
    struct buffer encoded;
    uint64_t next_step, next_order;
    bool awake, draining;
    struct serve_stats stats;
};

static int32_t pages_needed(const struct leader *l, int32_t tokens)
{
    return (tokens + l->o->engine.page_tokens - 1) / l->o->engine.page_tokens;
}

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

/* Gives everything of a sequence back; nothing of it is under way. */
static void release_sequence(struct leader *l, struct sequence *q)
{
    ASSERT(!q->busy);
    kv_pages_give(&l->pages, q->pages, q->page_count);
    free(q->tokens);
    free(q->pages);
    free(q->request.prompt);
    *q = (struct sequence){0};
}

static void finish(struct leader *l, struct sequence *q, enum event_kind kind, enum finish_reason reason)
{
    emit_end(l, q, kind, reason);
    release_sequence(l, q);
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
    int32_t count = pages_needed(l, most - 1);
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

static void cancel_waiting(struct leader *l, bool all, uint64_t handle)
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
    cancel_waiting(l, all, handle);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++) {
        struct sequence *q = &l->slot[i];
        if (!q->used || !(all || q->request.handle == handle))
            continue;
        q->cancelled = true;
        q->silent |= all;
        if (!q->busy)
            finish(l, q, EVENT_DONE, FINISH_CANCELLED);
    }
}

static void take_commands(struct leader *l)
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

static void publish_stats(struct leader *l)
{
    l->stats.running = 0;
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        l->stats.running += l->slot[i].used;
    l->stats.waiting = l->waiting_count;
    l->stats.pages_used = (uint64_t)(l->pages.total - l->pages.free_count);
    mailbox_set_stats(l->o->mailbox, &l->stats);
}

/* Pages for the positions up to `end` that the stages do not know yet. */
static void assign_pages(struct leader *l, struct step *step, struct sequence *q, int32_t slot, int32_t end)
{
    for (; q->assigned < pages_needed(l, end); q->assigned++)
        step->ops[step->op_count++] =
            (struct page_op){.kind = PAGE_ASSIGN, .a = slot, .b = q->assigned, .c = q->pages[q->assigned]};
}

static void add_to_step(struct leader *l, struct flight *f, const struct batch_item *item)
{
    int32_t slot = l->plan_slot[item->sequence];
    struct sequence *q = &l->slot[slot];
    struct step *step = &f->step;
    struct step_sequence *row = &step->sequences[step->sequence_count];
    assign_pages(l, step, q, slot, q->fed + item->tokens);
    *row = (struct step_sequence){
        .slot = slot, .position = q->fed, .tokens = item->tokens, .sample = item->sample};
    if (item->sample) {
        row->row = q->request.sampling;
        row->row.index = (uint32_t)(q->known - q->request.prompt_tokens);
        row->row.history_tokens = q->known;
        step->sample_count++;
    }
    memcpy(step->ids + step->token_count, q->tokens + q->fed, (size_t)item->tokens * sizeof(int32_t));
    f->slots[step->sequence_count++] = slot;
    step->token_count += item->tokens;
    q->fed += item->tokens;
    q->busy = true;
}

/* Plans the next step into the next free flight; false when nothing is ready. */
static bool plan_step(struct leader *l, struct flight *f)
{
    const struct step_limits *limits = &l->o->engine.limits;
    int32_t count = 0;
    for (int32_t i = 0; i < limits->slots; i++) {
        const struct sequence *q = &l->slot[i];
        if (!q->used)
            continue;
        l->plan_slot[count] = i;
        l->plan_in[count++] = (struct batch_sequence){
            .slot = i, .known = q->known, .fed = q->fed, .busy = q->busy, .order = q->order};
    }
    struct batch_limits b = {
        .tokens = limits->tokens, .sequences = limits->sequences, .micro_batches = l->flights};
    int32_t items = batch_plan(l->plan_in, count, &b, l->plan_out);
    if (items == 0)
        return false;
    step_clear(&f->step, l->next_step++, 0);
    for (int32_t i = 0; i < items; i++)
        add_to_step(l, f, &l->plan_out[i]);
    return true;
}

static int wake_group(struct leader *l, struct err *err)
{
    if (l->awake || !l->o->control)
        return 0;
    l->awake = true;
    return wake_all(l->o->wake, err);
}

/* 1 = a step was launched, 0 = nothing is ready, -1 = error. */
static int launch_step(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[(l->first_flight + l->flight_count) % l->flights];
    if (!plan_step(l, f))
        return 0;
    l->flight_count++;
    watchdog_enter(l->o->watchdog, "a step", l->o->step_limit_ms);
    int32_t *ids = l->o->control ? NULL : (int32_t *)(f->result + sizeof(uint64_t));
    if (wake_group(l, err) || executor_run(l->o->executor, &f->step, ids, err))
        return -1;
    if (l->o->control && send_step(l->o, &f->step, &l->encoded, err))
        return -1;
    return 1;
}

/* What a drawn token means for its sequence. */
static void take_token(struct leader *l, struct sequence *q, int32_t id)
{
    if (id < 0) {
        finish(l, q, EVENT_FAILED, FINISH_STOP);
        return;
    }
    if (!q->first_us)
        q->first_us = clock_now_us();
    if (q->request.stop_at_end && l->o->is_end[id]) {
        finish(l, q, EVENT_DONE, FINISH_STOP);
        return;
    }
    struct event e = {.kind = EVENT_TOKEN,
                      .handle = q->request.handle,
                      .index = q->known - q->request.prompt_tokens,
                      .id = id};
    mailbox_emit(l->o->mailbox, &e);
    q->tokens[q->known++] = id;
    l->stats.tokens_generated++;
    if (q->known - q->request.prompt_tokens >= q->request.max_tokens)
        finish(l, q, EVENT_DONE, FINISH_LENGTH);
}

/* Takes the result of the oldest step under way. */
static int collect_step(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[l->first_flight];
    if (l->o->control) {
        watchdog_enter(l->o->watchdog, "waiting for the last stage", l->o->wait_limit_ms);
        if (comm_recv(l->o->control, NULL, f->result, result_bytes(&l->o->engine.limits),
                      l->o->control->size - 1, err))
            return -1;
        uint64_t id;
        memcpy(&id, f->result, sizeof(id));
        if (id != f->step.id)
            return err_set(err, "the last stage answered step %llu, expected %llu", (unsigned long long)id,
                           (unsigned long long)f->step.id);
    }
    const int32_t *ids = (const int32_t *)(f->result + sizeof(uint64_t));
    int32_t sample = 0;
    for (int32_t i = 0; i < f->step.sequence_count; i++) {
        struct sequence *q = &l->slot[f->slots[i]];
        q->busy = false;
        int32_t id = f->step.sequences[i].sample ? ids[sample++] : 0;
        if (q->cancelled)
            finish(l, q, EVENT_DONE, FINISH_CANCELLED);
        else if (f->step.sequences[i].sample)
            take_token(l, q, id);
    }
    l->first_flight = (l->first_flight + 1) % l->flights;
    l->flight_count--;
    l->stats.steps++;
    return 0;
}

/* Sends a step without rows down the line and waits until every rank has it. */
static int send_flag(struct leader *l, uint32_t flags, struct err *err)
{
    struct step step = l->flight[0].step; /* borrows its arrays; nothing is under way */
    step_clear(&step, l->next_step++, flags);
    if (!l->o->control)
        return 0;
    watchdog_enter(l->o->watchdog, "putting the group to sleep", l->o->wait_limit_ms);
    return wake_group(l, err) || send_step(l->o, &step, &l->encoded, err) ||
                   comm_barrier(l->o->control, NULL, err)
               ? -1
               : 0;
}

static int lead(struct leader *l, struct err *err)
{
    for (;;) {
        take_commands(l);
        publish_stats(l);
        int launched = 0;
        if (l->flight_count < l->flights && (launched = launch_step(l, err)) < 0)
            return -1;
        if (launched)
            continue;
        if (l->flight_count) {
            if (collect_step(l, err))
                return -1;
            continue;
        }
        if (l->draining && l->waiting_count == 0 && l->stats.running == 0)
            return send_flag(l, STEP_STOP, err);
        if (l->awake && send_flag(l, STEP_SLEEP, err))
            return -1;
        l->awake = false;
        watchdog_enter(l->o->watchdog, "idle", 0);
        mailbox_wait(l->o->mailbox);
    }
}

static void leader_init(struct leader *l, const struct serve_options *o)
{
    const struct step_limits *limits = &o->engine.limits;
    *l = (struct leader){
        .o = o, .flights = o->control ? o->control->size : 1, .next_step = 1, .next_order = 1};
    l->slot = xcalloc((size_t)limits->slots, sizeof(*l->slot));
    l->flight = xcalloc((size_t)l->flights, sizeof(*l->flight));
    for (int32_t i = 0; i < l->flights; i++) {
        step_init(&l->flight[i].step, limits);
        l->flight[i].slots = xcalloc((size_t)limits->sequences, sizeof(int32_t));
        l->flight[i].result = xcalloc(1, result_bytes(limits));
    }
    l->plan_in = xcalloc((size_t)limits->slots, sizeof(*l->plan_in));
    l->plan_out = xcalloc((size_t)limits->sequences, sizeof(*l->plan_out));
    l->plan_slot = xcalloc((size_t)limits->slots, sizeof(*l->plan_slot));
    kv_pages_init(&l->pages, limits->pages);
}

static void leader_release(struct leader *l)
{
    cancel_waiting(l, true, 0);
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++)
        if (l->slot[i].used) {
            l->slot[i].busy = false;
            release_sequence(l, &l->slot[i]);
        }
    for (int32_t i = 0; i < l->flights; i++) {
        step_release(&l->flight[i].step);
        free(l->flight[i].slots);
        free(l->flight[i].result);
    }
    free(l->slot);
    free(l->flight);
    free(l->waiting);
    free(l->plan_in);
    free(l->plan_out);
    free(l->plan_slot);
    kv_pages_release(&l->pages);
    buffer_release(&l->encoded);
}

int serve_leader(const struct serve_options *o, struct err *err)
{
    struct leader l;
    hook_stage(o);
    leader_init(&l, o);
    int code = lead(&l, err);
    watchdog_enter(o->watchdog, "leaving", 0);
    leader_release(&l);
    if (code == 0)
        mailbox_emit(o->mailbox, &(struct event){.kind = EVENT_LEFT});
    return code;
}
