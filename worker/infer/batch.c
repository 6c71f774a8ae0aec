#include "worker/infer/batch.h"

#include <stdlib.h>

/* What the planner notes of each sequence. */
struct note {
    const struct batch_sequence *s;
    int32_t index;  /* in the caller's array */
    int32_t tokens; /* planned; 0 = not in the step */
    int32_t taken;  /* pages that these tokens take */
    int32_t draft;  /* guessed tokens behind them */
    bool victim;
};

struct planner {
    const struct batch_limits *limits;
    struct note *note; /* [count] in order */
    int32_t count;
    int32_t tokens, sequences, pages; /* left */
    bool short_of_pages;              /* one found too few: those that fly shall land behind it, for theirs */
};

void batch_plan_init(struct batch_plan *plan, int32_t sequences)
{
    size_t n = (size_t)(sequences > 0 ? sequences : 1);
    *plan = (struct batch_plan){.items = xcalloc(n, sizeof(*plan->items)),
                                .victims = xcalloc(n, sizeof(*plan->victims)),
                                .scratch = xcalloc(n, sizeof(struct note))};
}

void batch_plan_release(struct batch_plan *plan)
{
    if (!plan)
        return;
    free(plan->items);
    free(plan->victims);
    free(plan->scratch);
    *plan = (struct batch_plan){0};
}

bool batch_earlier(int64_t a_due_us, uint64_t a_order, int64_t b_due_us, uint64_t b_order)
{
    return a_due_us != b_due_us ? a_due_us < b_due_us : a_order < b_order;
}

static int compare_notes(const void *pa, const void *pb)
{
    const struct batch_sequence *a = ((const struct note *)pa)->s, *b = ((const struct note *)pb)->s;
    return batch_earlier(a->due_us, a->order, b->due_us, b->order) ? -1 : 1;
}

/* Pages that a sequence's next `tokens` rows need beyond those it holds. */
static int32_t pages_missing(const struct planner *p, const struct batch_sequence *s, int32_t tokens)
{
    int32_t page_tokens = p->limits->page_tokens;
    int32_t missing = (s->fed + tokens + page_tokens - 1) / page_tokens - s->pages;
    return (missing > 0 ? missing : 0) + s->copy;
}

/* The most rows that so many more pages allow. */
static int32_t rows_within(const struct planner *p, const struct batch_sequence *s, int32_t pages)
{
    int64_t rows = ((int64_t)s->pages + pages - s->copy) * p->limits->page_tokens - s->fed;
    return pages < s->copy || rows < 0 ? 0 : rows > INT32_MAX ? INT32_MAX : (int32_t)rows;
}

/* Pages that come back when this one is preempted: those it holds alone, and what this plan gave it. */
static int32_t pages_returned(const struct note *n)
{
    return n->s->busy || n->s->flying || n->victim ? 0 : n->s->sole + n->taken;
}

static void preempt(struct planner *p, struct batch_plan *plan, struct note *n)
{
    p->pages += pages_returned(n);
    if (n->tokens) {
        p->tokens += n->tokens;
        p->sequences++;
    }
    n->tokens = n->taken = 0;
    n->victim = true;
    plan->victims[plan->victim_count++] = n->index;
}

/* Puts the sequence of rank r into the step with as many of its tokens as the budget and the pages allow,
 * which may cost later ones their pages. */
static void consider(struct planner *p, struct batch_plan *plan, int32_t r)
{
    struct note *n = &p->note[r];
    int32_t behind = n->s->known - n->s->fed;
    int32_t tokens = behind < p->tokens ? behind : p->tokens;
    if (pages_missing(p, n->s, tokens) > p->pages) {
        int32_t reachable = p->pages;
        for (int32_t k = r + 1; k < p->count; k++)
            reachable += pages_returned(&p->note[k]);
        int32_t most = rows_within(p, n->s, reachable);
        tokens = most < tokens ? most : tokens;
    }
    p->short_of_pages |= tokens < 1;
    if (tokens < 1)
        return;
    int32_t missing = pages_missing(p, n->s, tokens);
    for (int32_t k = p->count - 1; k > r && p->pages < missing; k--)
        if (pages_returned(&p->note[k]))
            preempt(p, plan, &p->note[k]);
    ASSERT(p->pages >= missing);
    n->tokens = tokens;
    n->taken = missing;
    p->pages -= missing;
    p->tokens -= tokens;
    p->sequences--;
}

/* Prompts leave time to those who generate, whether these are in this step or in one under way. They get a
 * quarter of the rows in any case, so that many streams do not keep them out. */
static void limit_prompts(struct planner *p)
{
    int32_t decoded = p->limits->tokens - p->tokens, most = p->limits->prompt_tokens;
    bool generating = false;
    for (int32_t r = 0; r < p->count && !generating; r++)
        generating = !p->note[r].victim && p->note[r].s->known - p->note[r].s->fed <= 1;
    if (generating && p->limits->mixed_tokens > 0 && (most < 1 || p->limits->mixed_tokens < most))
        most = p->limits->mixed_tokens;
    if (most < 1)
        return;
    int32_t left = most - decoded > (most + 3) / 4 ? most - decoded : (most + 3) / 4;
    if (left < p->tokens)
        p->tokens = left;
}

static bool ready(const struct note *n, bool decode)
{
    int32_t behind = n->s->known - n->s->fed;
    return !n->s->busy && !n->victim && behind >= 1 && (behind == 1) == decode;
}

/* `sole` counts a page that two later sequences share for neither, so what is reachable may seem too little
 * for the earliest although preempting both would do. When it is stuck like that, all others go. */
static void unstick(struct planner *p, struct batch_plan *plan)
{
    bool stuck = false;
    for (int32_t r = 0; r < p->count; r++) {
        if (p->note[r].s->busy || p->note[r].s->flying || p->note[r].tokens || p->note[r].victim)
            return;
        if (stuck && p->note[r].s->pages)
            preempt(p, plan, &p->note[r]);
        stuck |= ready(&p->note[r], true) || ready(&p->note[r], false);
    }
}

/* Drafts behind the sequences that draw, in order, from what is left. */
static void add_drafts(struct planner *p)
{
    int32_t rows = p->limits->draft_rows;
    for (int32_t r = 0; r < p->count; r++)
        rows -= p->note[r].tokens > 0;
    for (int32_t r = 0; r < p->count && rows > 0 && p->tokens > 0; r++) {
        struct note *n = &p->note[r];
        if (n->tokens == 0 || n->tokens < n->s->known - n->s->fed || n->s->draft < 1)
            continue;
        int32_t most = rows_within(p, n->s, n->taken + p->pages) - n->tokens;
        int32_t draft = n->s->draft < rows ? n->s->draft : rows;
        draft = draft < p->tokens ? draft : p->tokens;
        draft = draft < most ? draft : most;
        int32_t missing = pages_missing(p, n->s, n->tokens + draft) - n->taken;
        if (draft < 1)
            continue;
        ASSERT(missing <= p->pages);
        n->draft = draft;
        n->taken += missing;
        p->pages -= missing;
        p->tokens -= draft;
        rows -= draft;
    }
}

static void write_items(const struct planner *p, struct batch_plan *plan)
{
    for (int decode = 1; decode >= 0; decode--)
        for (int32_t r = 0; r < p->count; r++) {
            const struct note *n = &p->note[r];
            if (n->tokens && ready(n, decode))
                plan->items[plan->item_count++] =
                    (struct batch_item){.sequence = n->index,
                                        .tokens = n->tokens,
                                        .draft = n->draft,
                                        .sample = n->tokens == n->s->known - n->s->fed};
        }
}

void batch_plan_step(const struct batch_sequence *sequences, int32_t count, const struct batch_limits *limits,
                     struct batch_plan *plan)
{
    int32_t micro = limits->micro_batches > 0 ? limits->micro_batches : 1;
    int32_t share = (count + micro - 1) / micro;
    struct planner p = {.limits = limits,
                        .note = plan->scratch,
                        .count = count,
                        .tokens = limits->tokens,
                        .sequences = share < limits->sequences ? share : limits->sequences,
                        .pages = limits->pages};
    for (int32_t i = 0; i < count; i++)
        p.note[i] = (struct note){.s = &sequences[i], .index = i};
    qsort(p.note, (size_t)count, sizeof(*p.note), compare_notes);
    plan->item_count = plan->victim_count = 0;
    for (int decode = 1; decode >= 0; decode--) {
        if (!decode)
            limit_prompts(&p);
        for (int32_t r = 0; r < count && p.sequences > 0 && p.tokens > 0; r++)
            if (ready(&p.note[r], decode) && !(p.short_of_pages && p.note[r].s->flying))
                consider(&p, plan, r);
    }
    unstick(&p, plan);
    add_drafts(&p);
    write_items(&p, plan);
}
