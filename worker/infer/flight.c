#include "worker/infer/flight.h"

#include <string.h>

#include "common/clock.h"
#include "worker/infer/sequences.h"
#include "worker/infer/transfer.h"

/* With more stages than one a chunk of a prompt is so small a part of step_tokens, but no smaller than a
 * chunk whose arithmetic takes longer than reading the weights. */
#define CHUNKS_PER_STAGE 2
#define CHUNK_LEAST      64

/* ---- planning */

/* What the stages must be told of a sequence's pages before its next rows, at most: room for it must be left
 * in the step. */
static bool fits_step(const struct leader *l, const struct step *step, const struct sequence *q, int32_t end)
{
    const struct step_limits *limits = &l->o->engine.limits;
    int32_t needed = leader_pages_needed(l, end);
    int32_t taken = needed > q->page_count ? needed - q->page_count : 0;
    int32_t fresh = needed > q->assigned ? needed - q->assigned : 0;
    int32_t ops = taken + fresh + 2 * sequences_must_copy(l, q);
    int32_t history = q->fed > q->history ? q->fed - q->history : 0;
    return step->op_count + ops <= limits->page_ops &&
           step->bias_count + q->request.sampling.bias_count <= limits->biases &&
           step->history_tokens + history <= limits->history;
}

static void add_op(struct step *step, enum page_op_kind kind, int32_t a, int32_t b, int32_t c)
{
    step->ops[step->op_count++] = (struct page_op){.kind = (int32_t)kind, .a = a, .b = b, .c = c};
}

/* The planner has made sure that there is one. */
static int32_t take_page(struct leader *l, struct step *step, const struct sequence *q, bool zero)
{
    bool foreign = false;
    int32_t page = pages_take(l->pages, q->request.salt, &foreign);
    ASSERT(page >= 0);
    if (zero && foreign)
        add_op(step, PAGE_MOVE, -1, page, 0);
    return page;
}

/* Pages for the positions up to `end`: a copy of the one that others see, new ones, and the table's entries
 * that the stages do not know yet. */
static void add_pages(struct leader *l, struct step *step, struct sequence *q, int32_t slot, int32_t end)
{
    if (sequences_must_copy(l, q)) {
        int32_t index = q->fed / l->o->engine.page_tokens, page = take_page(l, step, q, false);
        add_op(step, PAGE_MOVE, q->pages[index], page, 0);
        pages_give(l->pages, &q->pages[index], 1);
        q->pages[index] = page;
        q->assigned = q->assigned < index ? q->assigned : index;
        q->published = q->published < index ? q->published : index;
    }
    while (q->page_count < leader_pages_needed(l, end))
        q->pages[q->page_count++] = take_page(l, step, q, true);
    for (; q->assigned < q->page_count; q->assigned++)
        add_op(step, PAGE_ASSIGN, slot, q->assigned, q->pages[q->assigned]);
}

/* The tokens in front of the next rows that went through no stage in this slot. */
static void add_history(struct step *step, struct sequence *q, int32_t slot)
{
    int32_t tokens = q->fed - q->history;
    if (tokens <= 0)
        return;
    step->history[step->history_count++] =
        (struct step_history){.slot = slot, .position = q->history, .tokens = tokens};
    memcpy(step->history_ids + step->history_tokens, q->tokens + q->history,
           (size_t)tokens * sizeof(int32_t));
    step->history_tokens += tokens;
}

static void add_to_step(struct leader *l, struct flight *f, const struct batch_item *item)
{
    int32_t slot = l->plan_slot[item->sequence];
    struct sequence *q = &l->slot[slot];
    struct step *step = &f->step;
    struct step_sequence *row = &step->sequences[step->sequence_count];
    int32_t tokens = item->tokens + item->draft;
    if (!fits_step(l, step, q, q->fed + tokens))
        return; /* the first one always fits */
    add_pages(l, step, q, slot, q->fed + tokens);
    add_history(step, q, slot);
    *row = (struct step_sequence){
        .slot = slot, .position = q->fed, .tokens = tokens, .sample = item->sample ? 1 + item->draft : 0};
    if (item->sample) {
        row->row = q->request.sampling;
        row->row.index = (uint32_t)(q->known - q->request.prompt_tokens);
        row->row.history_tokens = q->known;
        step_add_biases(step, &row->row, q->request.biases, q->request.sampling.bias_count);
        step->sample_count += row->sample;
        q->drafted += item->draft;
        l->stats.drafted_tokens += (uint64_t)item->draft;
    }
    memcpy(step->ids + step->token_count, q->tokens + q->fed, (size_t)tokens * sizeof(int32_t));
    f->slots[step->sequence_count++] = slot;
    step->token_count += tokens;
    q->fed += tokens;
    q->history = q->history > q->fed ? q->history : q->fed;
    q->flights++;
    q->drawing = item->sample;
}

/* Guesses, once per draw, what the sequence may say next; its own limit of tokens is never passed. Where more
 * run than a step with drafts may have rows, none would be used. */
static void make_draft(struct leader *l, struct sequence *q, int32_t running)
{
    const struct sequence_request *r = &q->request;
    enum speculation how = r->speculation == SPECULATION_DEFAULT ? l->o->speculation : r->speculation;
    if (how != SPECULATION_NGRAM || running >= SPECULATE_STEP_ROWS || q->draft_known == q->known)
        return;
    int32_t most = r->draft_tokens ? r->draft_tokens : l->o->draft_tokens;
    int32_t left = r->max_tokens - (q->known - r->prompt_tokens) - 1;
    most = most < SPECULATE_MAX_TOKENS ? most : SPECULATE_MAX_TOKENS;
    q->draft_known = q->known;
    most = draft_length_next(&q->lengths, most < left ? most : left);
    q->draft = speculate_draft(q->tokens, q->known, &speculate_standard, most, q->tokens + q->known);
}

/* The planner's view of what runs. Pages are shared first and counted then: one that is held by a second
 * sequence is no longer the first one's to write into. */
static int32_t view_sequences(struct leader *l)
{
    int32_t slots = l->o->engine.limits.slots, count = 0, running = 0;
    for (int32_t i = 0; i < slots; i++)
        running += l->slot[i].used;
    for (int32_t i = 0; i < slots; i++)
        if (l->slot[i].used && !l->slot[i].drawing)
            l->slot[i].blocked = !sequences_reuse(l, &l->slot[i]);
    for (int32_t i = 0; i < slots; i++) {
        struct sequence *q = &l->slot[i];
        if (!q->used)
            continue;
        if (!q->flights && sequences_must_copy(l, q) && pages_available(l->pages) == 0)
            sequences_give_up_page(l, q); /* computing a page again needs one page, copying it two */
        if (!q->drawing)
            make_draft(l, q, running);
        l->plan_slot[count] = i;
        l->plan_in[count++] = (struct batch_sequence){.slot = i,
                                                      .known = q->known,
                                                      .fed = q->fed,
                                                      .draft = q->draft_known == q->known ? q->draft : 0,
                                                      .busy = q->drawing || q->blocked,
                                                      .flying = q->flights > 0,
                                                      .copy = sequences_must_copy(l, q),
                                                      .pages = q->page_count,
                                                      .sole = pages_sole(l->pages, q->pages, q->page_count),
                                                      .due_us = q->due_us,
                                                      .order = q->order};
    }
    return count;
}

/* Rows of a step up to which prompts get some. A prompt's next rows need nothing of what its last ones draw:
 * its chunks follow each other through the stages, and the smaller they are, the sooner the last stage has
 * work. */
static int32_t prompt_rows(const struct leader *l)
{
    int32_t rows = l->o->engine.limits.tokens / (CHUNKS_PER_STAGE * l->flights);
    if (l->flights == 1)
        return 0;
    return rows > CHUNK_LEAST ? rows : CHUNK_LEAST;
}

/* Plans the next step into the next free flight; false when nothing is ready. */
static bool plan_step(struct leader *l, struct flight *f)
{
    const struct step_limits *limits = &l->o->engine.limits;
    do {
        int32_t count = view_sequences(l);
        struct batch_limits b = {.tokens = limits->tokens,
                                 .mixed_tokens = l->o->mixed_tokens,
                                 .sequences = limits->sequences,
                                 .prompt_tokens = prompt_rows(l),
                                 .micro_batches = l->micro_batches,
                                 .draft_rows = SPECULATE_STEP_ROWS,
                                 .page_tokens = l->o->engine.page_tokens,
                                 .pages = pages_available(l->pages)};
        batch_plan_step(l->plan_in, count, &b, &l->plan);
        for (int32_t i = 0; i < l->plan.victim_count; i++)
            sequences_preempt(l, &l->slot[l->plan_slot[l->plan.victims[i]]]);
    } while (l->plan.item_count == 0 && l->plan.victim_count);
    if (l->plan.item_count == 0)
        return false;
    step_clear(&f->step, l->next_step++, 0);
    for (int32_t i = 0; i < l->plan.item_count; i++)
        add_to_step(l, f, &l->plan.items[i]);
    ASSERT(f->step.sequence_count > 0);
    return true;
}

/* ---- launching */

static int wake_group(struct leader *l, struct err *err)
{
    if (l->awake || !l->o->control)
        return 0;
    l->awake = true;
    return wake_all(l->o->wake, err);
}

bool flight_may_launch(struct leader *l)
{
    int32_t running = 0;
    bool prompts = false;
    for (int32_t i = 0; i < l->o->engine.limits.slots; i++) {
        const struct sequence *q = &l->slot[i];
        running += q->used;
        prompts |= q->used && !q->drawing && q->known - q->fed > 1;
    }
    /* The rows of a prompt bind its steps: to divide them costs nothing. */
    l->micro_batches = prompts ? l->flights : pipeline_choose(&l->cost, running);
    return l->flight_count < l->micro_batches;
}

int flight_launch(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[(l->first_flight + l->flight_count) % l->flights];
    if (!plan_step(l, f))
        return 0;
    l->flight_count++;
    f->micro_batches = l->micro_batches;
    watchdog_enter(l->o->watchdog, "a step", l->o->step_limit_ms);
    struct transfer_result r = {0};
    if (transfer_is_last(l->o))
        r = transfer_result_view(l->o, f->result, &f->step);
    if (wake_group(l, err) || transfer_share_step(l->o, &f->step, &l->encoded, err) ||
        transfer_run_step(l->o, &f->step, &l->since_us, r.ids, r.logprobs, err) ||
        transfer_send_step(l->o, &f->step, &l->encoded, err))
        return -1;
    /* Steps run in order on every stage: whoever holds these pages in a later step finds them full. */
    for (int32_t i = 0; i < f->step.sequence_count; i++)
        sequences_publish_pages(l, &l->slot[f->slots[i]]);
    return 1;
}

/* ---- landing */

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
    l->stats.tokens_generated += !q->request.canary;
    if (q->known - q->request.prompt_tokens >= q->request.max_tokens)
        sequences_finish(l, q, EVENT_DONE, FINISH_LENGTH);
}

/* The draws of one sequence: the first follows its last known token, each further one a token of the draft,
 * and counts only as long as the draft said what was drawn before it. Where the draft was wrong the model
 * goes on from: the rows behind are computed again, over what lies in their places. */
static void take_draws(struct leader *l, struct sequence *q, const struct step_sequence *row,
                       const int32_t *fed, const int32_t *ids, const struct token_logprobs *logprobs)
{
    int32_t drafted = row->sample - 1, accepted = 0;
    const int32_t *draft = fed + row->tokens - drafted;
    take_token(l, q, ids[0], logprobs);
    while (q->used && accepted < drafted && draft[accepted] == ids[accepted]) {
        accepted++;
        q->accepted++;
        l->stats.accepted_tokens++;
        take_token(l, q, ids[accepted], logprobs ? &logprobs[accepted] : NULL);
    }
    if (!q->used)
        return;
    draft_length_learn(&q->lengths, drafted, accepted);
    q->fed = q->known - 1;
    q->history = q->history < q->fed ? q->history : q->fed;
}

static int receive_result(struct leader *l, struct flight *f, struct err *err)
{
    watchdog_enter(l->o->watchdog, "waiting for the last stage", l->o->wait_limit_ms);
    if (comm_recv(l->o->control, NULL, f->result, transfer_result_bytes(l->o, &f->step),
                  transfer_drawing_rank(l->o), err))
        return -1;
    uint64_t id = *transfer_result_view(l->o, f->result, &f->step).step_id;
    if (id != f->step.id)
        return err_set(err, "the last stage answered step %llu, expected %llu", (unsigned long long)id,
                       (unsigned long long)f->step.id);
    f->step.time_count = transfer_stages(l->o);
    memcpy(f->step.times, transfer_result_view(l->o, f->result, &f->step).times,
           (size_t)f->step.time_count * sizeof(*f->step.times));
    return 0;
}

static void count_times(struct leader *l, const struct flight *f)
{
    uint64_t slowest_us = 0;
    l->stats.stages = f->step.time_count;
    for (int32_t i = 0; i < f->step.time_count; i++) {
        const struct stage_time *t = &f->step.times[i];
        l->stats.stage[i].busy_us += t->busy_us;
        l->stats.stage[i].wait_us += t->wait_us;
        l->stats.stage[i].bubble_us += t->bubble_us;
        l->stats.stage[i].processor_us += t->processor_us;
        slowest_us = t->busy_us > slowest_us ? t->busy_us : slowest_us;
    }
    /* Steps that generate alone: beside hundreds of a prompt's rows a pass over the weights does not show. */
    if (f->step.token_count == f->step.sample_count)
        pipeline_observe(&l->cost, f->micro_batches, f->step.token_count, (double)slowest_us);
}

int flight_collect(struct leader *l, struct err *err)
{
    struct flight *f = &l->flight[l->first_flight];
    if (!transfer_is_last(l->o) && receive_result(l, f, err))
        return -1;
    count_times(l, f);
    struct transfer_result r = transfer_result_view(l->o, f->result, &f->step);
    for (int32_t i = 0, sample = 0, fed = 0; i < f->step.sequence_count; i++) {
        struct sequence *q = &l->slot[f->slots[i]];
        const struct step_sequence *row = &f->step.sequences[i];
        q->flights--;
        q->drawing &= !row->sample;
        if (q->cancelled && !q->flights)
            sequences_finish(l, q, EVENT_DONE, FINISH_CANCELLED);
        else if (row->sample && !q->cancelled)
            take_draws(l, q, row, f->step.ids + fed, r.ids + sample, r.logprobs ? &r.logprobs[sample] : NULL);
        sample += row->sample;
        fed += row->tokens;
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
    return wake_group(l, err) || transfer_share_step(l->o, &step, &l->encoded, err) ||
                   transfer_send_step(l->o, &step, &l->encoded, err) || comm_barrier(l->o->control, NULL, err)
               ? -1
               : 0;
}
