#include "worker/infer/batch.h"

#include <string.h>

#include "tests/test.h"

#define MOST 12

static const struct batch_limits roomy = {
    .tokens = 100, .sequences = 8, .micro_batches = 1, .page_tokens = 16, .pages = 1000};

static struct batch_plan plan;

static struct batch_sequence at(int32_t known, int32_t fed, uint64_t order)
{
    int32_t pages = (fed + 15) / 16;
    return (struct batch_sequence){.known = known, .fed = fed, .order = order, .pages = pages, .sole = pages};
}

static void test_decoding_goes_before_prefill(void)
{
    struct batch_sequence s[3] = {at(50, 0, 1), at(9, 8, 2), at(7, 6, 3)};
    batch_plan_step(s, 3, &roomy, &plan);
    CHECK_INT(plan.item_count, 3);
    CHECK_INT(plan.items[0].sequence, 1);
    CHECK_INT(plan.items[1].sequence, 2);
    CHECK_INT(plan.items[2].sequence, 0);
    CHECK_INT(plan.items[2].tokens, 50);
    CHECK(plan.items[0].sample && plan.items[1].sample && plan.items[2].sample);
}

static void test_a_long_prompt_goes_in_chunks(void)
{
    struct batch_sequence s = at(250, 0, 1);
    int32_t chunks[3] = {100, 100, 50};
    for (int i = 0; i < 3; i++) {
        batch_plan_step(&s, 1, &roomy, &plan);
        CHECK_INT(plan.item_count, 1);
        CHECK_INT(plan.items[0].tokens, chunks[i]);
        CHECK_INT(plan.items[0].sample, i == 2);
        s = at(250, s.fed + plan.items[0].tokens, 1);
    }
    batch_plan_step(&s, 1, &roomy, &plan);
    CHECK_INT(plan.item_count, 0);
}

static void test_prefill_takes_what_decoding_leaves(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[4] = {at(5, 4, 3), at(5, 4, 4), at(30, 0, 1), at(30, 0, 2)};
    limits.tokens = 4;
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.item_count, 3);
    CHECK_INT(plan.items[2].sequence, 2);
    CHECK_INT(plan.items[2].tokens, 2);
    CHECK(!plan.items[2].sample);
}

static void test_prompts_are_shorter_beside_decoding_but_never_kept_out(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[4] = {at(300, 0, 9), at(5, 4, 3), at(5, 4, 4), at(7, 6, 5)};
    limits.mixed_tokens = 20;
    batch_plan_step(s, 1, &limits, &plan); /* nobody decodes */
    CHECK_INT(plan.items[0].tokens, 100);
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.item_count, 4);
    CHECK_INT(plan.items[3].tokens, 17);
    s[1].busy = true; /* decodes in a step that is under way */
    s[1].fed = 5;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.items[0].tokens, 20);
    s[1] = at(5, 4, 3);
    limits.mixed_tokens = 3; /* all taken by those who decode */
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.item_count, 4);
    CHECK_INT(plan.items[3].tokens, 1);
}

static void test_drafts_take_what_is_left(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[4] = {at(9, 8, 1), at(9, 8, 2), at(50, 0, 3), at(9, 8, 4)};
    s[0].draft = s[1].draft = s[2].draft = 8;
    limits.draft_rows = 18; /* of which the four sequences take four */
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.item_count, 4);
    CHECK_INT(plan.items[0].draft, 8);
    CHECK_INT(plan.items[1].draft, 6);
    CHECK_INT(plan.items[2].draft, 0); /* none was guessed */
    CHECK_INT(plan.items[3].draft, 0); /* nothing is left */
    limits.tokens = 55;                /* the prompt goes before drafts */
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.items[3].tokens, 50);
    CHECK_INT(plan.items[0].draft, 2);
    limits.tokens = 30;
    s[0].draft = s[1].draft = 0;
    batch_plan_step(s, 4, &limits, &plan);
    CHECK(!plan.items[3].sample && plan.items[3].draft == 0); /* a prompt in chunks draws at its end only */
    limits = roomy;
    limits.draft_rows = 4;
    s[0].draft = 8;
    batch_plan_step(s, 4, &limits, &plan);
    CHECK_INT(plan.items[0].draft, 0); /* a large batch */
}

static void test_nobody_is_preempted_for_a_draft(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[2] = {at(15, 14, 1), at(30, 29, 2)};
    s[0].draft = 40;
    limits.draft_rows = 60;
    limits.pages = 0;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.victim_count, 0);
    CHECK_INT(plan.items[0].draft, 1); /* to the end of its page */
    limits.pages = 1;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.items[0].draft, 17);
}

static void test_busy_sequences_wait(void)
{
    struct batch_sequence s[2] = {at(5, 4, 1), at(5, 4, 2)};
    s[0].busy = true;
    batch_plan_step(s, 2, &roomy, &plan);
    CHECK_INT(plan.item_count, 1);
    CHECK_INT(plan.items[0].sequence, 1);
}

/* A prompt's next chunk goes behind the one that is under way, and is not taken away from under it. */
static void test_what_flies_is_planned_again_but_not_preempted(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[2] = {at(90, 0, 1), at(90, 64, 2)};
    limits.prompt_tokens = 24;
    s[1].flying = true;
    batch_plan_step(s + 1, 1, &limits, &plan);
    CHECK_INT(plan.item_count, 1);
    CHECK_INT(plan.items[0].tokens, 24);
    CHECK(!plan.items[0].sample);
    limits.pages = 0;
    limits.prompt_tokens = 0;
    s[1].pages = s[1].sole = 100;
    batch_plan_step(s, 2, &limits, &plan); /* the earlier one waits for pages: the other shall land */
    CHECK_INT(plan.victim_count, 0);
    CHECK_INT(plan.item_count, 0);
    s[1].flying = false;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.victim_count, 1);
    CHECK_INT(plan.items[0].sequence, 0);
}

static void test_micro_batches_share_the_sequences(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[6];
    limits.micro_batches = 2;
    for (int i = 0; i < 6; i++)
        s[i] = at(5, 4, (uint64_t)i + 1);
    batch_plan_step(s, 6, &limits, &plan);
    CHECK_INT(plan.item_count, 3);
    for (int i = 0; i < 3; i++)
        s[plan.items[i].sequence].busy = true;
    batch_plan_step(s, 6, &limits, &plan);
    CHECK_INT(plan.item_count, 3);
    CHECK_INT(plan.items[0].sequence, 3);
}

static void test_priority_is_a_head_start(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[3] = {at(90, 0, 1), at(90, 0, 2), at(90, 0, 3)};
    s[0].due_us = 100;
    s[1].due_us = 250 - 200; /* came later, with a priority worth 200 */
    s[2].due_us = 450 - 200; /* so did this one, too late for its head start */
    limits.tokens = 50;
    batch_plan_step(s, 3, &limits, &plan);
    CHECK_INT(plan.items[0].sequence, 1);
    s[1] = at(90, 90, 2);
    batch_plan_step(s, 3, &limits, &plan);
    CHECK_INT(plan.items[0].sequence, 0);
}

static void test_the_last_gives_up_its_pages(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[3] = {at(17, 16, 1), at(40, 39, 2), at(40, 39, 3)};
    limits.pages = 0;
    batch_plan_step(s, 3, &limits, &plan);
    CHECK_INT(plan.victim_count, 1);
    CHECK_INT(plan.victims[0], 2);
    CHECK_INT(plan.item_count, 2);
    CHECK(plan.items[0].sequence == 0 && plan.items[1].sequence == 1);
}

static void test_nobody_takes_from_an_earlier_one(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[2] = {at(40, 39, 1), at(17, 16, 2)};
    limits.pages = 0;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.victim_count, 0);
    CHECK_INT(plan.item_count, 1);
    CHECK_INT(plan.items[0].sequence, 0);
}

static void test_a_planned_one_may_still_be_preempted(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[2] = {at(90, 16, 1), at(17, 16, 2)}; /* the later one decodes and goes first */
    limits.pages = 1;
    batch_plan_step(s, 2, &limits, &plan);
    CHECK_INT(plan.victim_count, 1);
    CHECK_INT(plan.item_count, 1);
    CHECK_INT(plan.items[0].sequence, 0);
    CHECK_INT(plan.items[0].tokens, 32); /* both pages */
}

static void test_a_chunk_shrinks_to_the_pages(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s = at(90, 10, 1);
    limits.pages = 2;
    batch_plan_step(&s, 1, &limits, &plan);
    CHECK_INT(plan.items[0].tokens, 6 + 32);
    s.copy = true;
    batch_plan_step(&s, 1, &limits, &plan);
    CHECK_INT(plan.items[0].tokens, 6 + 16);
}

static void test_shared_pages_do_not_block_the_first(void)
{
    struct batch_limits limits = roomy;
    struct batch_sequence s[3] = {at(17, 16, 1), at(40, 39, 2), at(40, 39, 3)};
    s[1].sole = s[2].sole = 0; /* they hold the same pages */
    s[1].copy = s[2].copy = true;
    limits.pages = 0;
    batch_plan_step(s, 3, &limits, &plan);
    CHECK_INT(plan.item_count, 0);
    CHECK_INT(plan.victim_count, 2);
}

/* ---- properties of random states */

static int32_t pages_for(int32_t tokens, const struct batch_limits *l)
{
    return (tokens + l->page_tokens - 1) / l->page_tokens;
}

static int32_t random_below(unsigned long long *random, int32_t n)
{
    return (int32_t)(test_random(random) % (unsigned long long)n);
}

static int32_t random_state(struct batch_sequence *s, struct batch_limits *l, unsigned long long *random)
{
    int32_t count = random_below(random, MOST + 1);
    *l = (struct batch_limits){.tokens = 1 + random_below(random, 40),
                               .mixed_tokens = random_below(random, 20),
                               .prompt_tokens = random_below(random, 20),
                               .sequences = 1 + random_below(random, MOST),
                               .micro_batches = 1 + random_below(random, 3),
                               .page_tokens = 1 + random_below(random, 8),
                               .draft_rows = random_below(random, 20),
                               .pages = random_below(random, 12)};
    for (int32_t i = 0; i < count; i++) {
        s[i] = (struct batch_sequence){.fed = random_below(random, 30),
                                       .busy = random_below(random, 3) == 0,
                                       .flying = random_below(random, 3) == 0,
                                       .due_us = random_below(random, 5),
                                       .order = test_random(random)};
        s[i].known = s[i].fed + random_below(random, 5);
        s[i].draft = random_below(random, 6);
        s[i].pages = pages_for(s[i].fed, l);
        s[i].sole = s[i].pages ? random_below(random, s[i].pages + 1) : 0;
        s[i].copy = s[i].fed % l->page_tokens && s[i].sole < s[i].pages;
    }
    return count;
}

static bool comes_before(const struct batch_sequence *a, const struct batch_sequence *b)
{
    return batch_earlier(a->due_us, a->order, b->due_us, b->order);
}

static void check_bounds(const struct batch_sequence *s, const struct batch_limits *l)
{
    int32_t tokens = 0, pages = l->pages;
    bool seen[MOST] = {false}, prefill = false;
    CHECK(plan.item_count <= l->sequences);
    for (int32_t i = 0; i < plan.victim_count; i++) {
        const struct batch_sequence *q = &s[plan.victims[i]];
        CHECK(!q->busy && !q->flying && !seen[plan.victims[i]]);
        seen[plan.victims[i]] = true;
        pages += q->sole;
    }
    for (int32_t i = 0; i < plan.item_count; i++) {
        const struct batch_item *item = &plan.items[i];
        const struct batch_sequence *q = &s[item->sequence];
        int32_t behind = q->known - q->fed;
        int32_t missing = pages_for(q->fed + item->tokens + item->draft, l) - q->pages;
        CHECK(!q->busy && !seen[item->sequence]);
        seen[item->sequence] = true;
        CHECK(item->tokens >= 1 && item->tokens <= behind);
        CHECK(item->sample == (item->tokens == behind));
        CHECK(!(prefill && behind == 1));
        prefill |= behind > 1;
        CHECK(item->draft >= 0 && item->draft <= q->draft && (item->sample || item->draft == 0));
        CHECK(item->draft == 0 || plan.item_count + item->draft <= l->draft_rows);
        tokens += item->tokens + item->draft;
        pages -= (missing > 0 ? missing : 0) + q->copy;
    }
    CHECK(tokens <= l->tokens && pages >= 0);
}

static void test_every_plan_keeps_its_bounds(void)
{
    unsigned long long random = 9;
    for (int round = 0; round < 20000; round++) {
        struct batch_sequence s[MOST];
        struct batch_limits l;
        int32_t count = random_state(s, &l, &random), first = -1;
        bool busy = false;
        batch_plan_step(s, count, &l, &plan);
        check_bounds(s, &l);
        for (int32_t i = 0; i < count; i++) {
            busy |= s[i].busy || s[i].flying;
            if (s[i].known > s[i].fed && !s[i].busy && (first < 0 || comes_before(&s[i], &s[first])))
                first = i;
        }
        for (int32_t i = 0; i < plan.victim_count; i++)
            CHECK(plan.victims[i] != first); /* the earliest that could run keeps its pages */
        /* While nothing is under way, the earliest gets on, or others make room for it. */
        bool others = false;
        for (int32_t i = 0; i < count && first >= 0; i++)
            others |= s[i].pages > 0 && comes_before(&s[first], &s[i]);
        if (first >= 0 && !busy && others)
            CHECK(plan.item_count || plan.victim_count);
    }
}

/* A whole life on paper: sequences with prompts and lengths over few pages, run by the plans alone. Everyone
 * must end, whatever the sizes, and the earliest must never be preempted. */
struct life {
    struct batch_sequence s;
    int32_t length; /* tokens at its end */
    bool in, done;
};

static int32_t free_pages(const struct life *life, int32_t count, int32_t total)
{
    for (int32_t i = 0; i < count; i++)
        total -= life[i].in ? life[i].s.pages : 0;
    return total;
}

/* One plan and its consequences; returns the number of those that live. */
static int32_t live_a_step(struct life *life, int32_t count, int32_t total, struct batch_limits *l)
{
    struct batch_sequence view[MOST];
    int32_t who[MOST], n = 0, earliest = -1;
    for (int32_t i = 0; i < count; i++) {
        if (life[i].done)
            continue;
        life[i].in = true; /* as hard as it can be: nobody waits outside */
        life[i].s.sole = life[i].s.pages;
        if (earliest < 0 || comes_before(&life[i].s, &life[earliest].s))
            earliest = i;
        who[n] = i;
        view[n++] = life[i].s;
    }
    l->pages = free_pages(life, count, total);
    batch_plan_step(view, n, l, &plan);
    CHECK(n == 0 || plan.item_count);
    for (int32_t i = 0; i < plan.victim_count; i++) {
        CHECK(who[plan.victims[i]] != earliest);
        life[who[plan.victims[i]]].s.fed = life[who[plan.victims[i]]].s.pages = 0;
    }
    for (int32_t i = 0; i < plan.item_count; i++) {
        struct life *q = &life[who[plan.items[i].sequence]];
        q->s.fed += plan.items[i].tokens;
        q->s.pages = pages_for(q->s.fed, l);
        q->s.known += plan.items[i].sample;
        if (q->s.known >= q->length) {
            q->done = true;
            q->in = false;
            q->s.pages = 0;
        }
    }
    CHECK(free_pages(life, count, total) >= 0);
    return n;
}

static void test_everyone_ends(void)
{
    unsigned long long random = 11;
    for (int round = 0; round < 300; round++) {
        struct life life[MOST];
        struct batch_limits l = {.tokens = 1 + random_below(&random, 20),
                                 .mixed_tokens = random_below(&random, 10),
                                 .sequences = 1 + random_below(&random, MOST),
                                 .micro_batches = 1,
                                 .page_tokens = 1 + random_below(&random, 6)};
        int32_t total = pages_for(60, &l), steps = 0; /* the longest just fits alone */
        for (int32_t i = 0; i < MOST; i++) {
            life[i] = (struct life){.s = {.known = 1 + random_below(&random, 40),
                                          .due_us = random_below(&random, 50),
                                          .order = (uint64_t)i + 1}};
            life[i].length = life[i].s.known + 1 + random_below(&random, 20);
        }
        while (live_a_step(life, MOST, total, &l) && steps < 100000)
            steps++;
        for (int32_t i = 0; i < MOST; i++)
            CHECK(life[i].done);
    }
}

int main(void)
{
    batch_plan_init(&plan, MOST);
    TEST(test_decoding_goes_before_prefill, "decoding goes before prefill, each in order of arrival");
    TEST(test_a_long_prompt_goes_in_chunks, "a long prompt goes in chunks and is sampled at its end");
    TEST(test_prefill_takes_what_decoding_leaves, "prefill takes what decoding leaves of the budget");
    TEST(test_prompts_are_shorter_beside_decoding_but_never_kept_out,
         "prompts take fewer rows beside decoding, and never none");
    TEST(test_drafts_take_what_is_left, "drafts take the rows that are left, and none in a large batch");
    TEST(test_nobody_is_preempted_for_a_draft, "drafts take free pages and nobody else's");
    TEST(test_what_flies_is_planned_again_but_not_preempted, "a prompt's chunks follow each other, and stay");
    TEST(test_busy_sequences_wait, "a sequence in a step under way is not planned again");
    TEST(test_micro_batches_share_the_sequences, "micro-batches share the sequences evenly");
    TEST(test_priority_is_a_head_start, "a priority is a head start, and the one that waited longer wins");
    TEST(test_the_last_gives_up_its_pages, "without pages the last in order gives up its own");
    TEST(test_nobody_takes_from_an_earlier_one, "nobody takes pages from an earlier one");
    TEST(test_a_planned_one_may_still_be_preempted,
         "a decoding one gives its pages to an earlier one's prompt");
    TEST(test_a_chunk_shrinks_to_the_pages, "a chunk shrinks to the pages that there are");
    TEST(test_shared_pages_do_not_block_the_first, "pages that two later ones share do not block the first");
    TEST(test_every_plan_keeps_its_bounds, "random plans keep every bound and spare the earliest");
    TEST(test_everyone_ends, "over few pages everyone ends, and the earliest is never preempted");
    batch_plan_release(&plan);
    return test_result();
}
