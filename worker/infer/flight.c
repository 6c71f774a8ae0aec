#include "worker/infer/flight.h"

#include <string.h>

#include "common/clock.h"
#include "worker/infer/sequences.h"
#include "worker/infer/transfer.h"

/* Pages for the positions up to `end` that the stages do not know yet. */
static void assign_pages(struct leader *l, struct step *step, struct sequence *q, int32_t slot, int32_t end)
{
    for (; q->assigned < leader_pages_needed(l, end); q->assigned++)
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
        step_add_biases(step, &row->row, q->request.biases, q->request.sampling.bias_count);
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

int flight_launch(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[(l->first_flight + l->flight_count) % l->flights];
    if (!plan_step(l, f))
        return 0;
    l->flight_count++;
    watchdog_enter(l->o->watchdog, "a step", l->o->step_limit_ms);
    struct transfer_result r = {0};
    if (!l->o->control)
        r = transfer_result_view(f->result, &f->step);
    if (wake_group(l, err) || executor_run(l->o->executor, &f->step, r.ids, r.logprobs, err))
        return -1;
    if (l->o->control && transfer_send_step(l->o, &f->step, &l->encoded, err))
        return -1;
    return 1;
}

/* What a drawn token means for its sequence. */
static void take_token(struct leader *l, struct sequence *q, int32_t id,
                       const struct token_logprobs *logprobs)
{
    if (id < 0) {
        sequences_finish(l, q, EVENT_FAILED, FINISH_STOP);
        return;
    }
    if (!q->first_us)
        q->first_us = clock_now_us();
    if (q->request.stop_at_end && l->o->is_end[id]) {
        sequences_finish(l, q, EVENT_DONE, FINISH_STOP);
        return;
    }
    struct event e = {.kind = EVENT_TOKEN,
                      .handle = q->request.handle,
                      .choice = q->request.choice,
                      .index = q->known - q->request.prompt_tokens,
                      .id = id};
    if (logprobs)
        e.logprobs = *logprobs;
    mailbox_emit(l->o->mailbox, &e);
    q->tokens[q->known++] = id;
    l->stats.tokens_generated++;
    if (q->known - q->request.prompt_tokens >= q->request.max_tokens)
        sequences_finish(l, q, EVENT_DONE, FINISH_LENGTH);
}

static int receive_result(struct leader *l, struct flight *f, struct err *err)
{
    watchdog_enter(l->o->watchdog, "waiting for the last stage", l->o->wait_limit_ms);
    if (comm_recv(l->o->control, NULL, f->result, transfer_result_bytes(&f->step), l->o->control->size - 1,
                  err))
        return -1;
    uint64_t id = *transfer_result_view(f->result, &f->step).step_id;
    if (id != f->step.id)
        return err_set(err, "the last stage answered step %llu, expected %llu", (unsigned long long)id,
                       (unsigned long long)f->step.id);
    return 0;
}

int flight_collect(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[l->first_flight];
    if (l->o->control && receive_result(l, f, err))
        return -1;
    struct transfer_result r = transfer_result_view(f->result, &f->step);
    for (int32_t i = 0, sample = 0; i < f->step.sequence_count; i++) {
        struct sequence *q = &l->slot[f->slots[i]];
        bool sampled = f->step.sequences[i].sample;
        q->busy = false;
        if (q->cancelled)
            sequences_finish(l, q, EVENT_DONE, FINISH_CANCELLED);
        else if (sampled)
            take_token(l, q, r.ids[sample], r.logprobs ? &r.logprobs[sample] : NULL);
        sample += sampled;
    }
    l->first_flight = (l->first_flight + 1) % l->flights;
    l->flight_count--;
    l->stats.steps++;
    return 0;
}

int flight_send_flag(struct leader *l, uint32_t flags, struct err *err)
{
    struct step step = l->flight[0].step; /* borrows its arrays; nothing is under way */
    step_clear(&step, l->next_step++, flags);
    if (!l->o->control)
        return 0;
    watchdog_enter(l->o->watchdog, "putting the group to sleep", l->o->wait_limit_ms);
    return wake_group(l, err) || transfer_send_step(l->o, &step, &l->encoded, err) ||
                   comm_barrier(l->o->control, NULL, err)
               ? -1
               : 0;
}
