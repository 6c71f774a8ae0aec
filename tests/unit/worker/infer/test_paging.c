/* Pages under the leader: prefixes that are reused, choices that share, sequences that are preempted, tenants
 * that see nothing of each other. The leader is driven turn by turn, so that everything happens where the
 * test wants it. What every test asks besides: the tokens are those of the request alone, without a cache. */
#include "worker/infer/flight.h"
#include "worker/infer/sequences.h"

#include "tests/engine_group.h"
#include "tests/tiny_model.h"

enum { PAGE = 16, LONGEST = 200, MOST = 96, CHOICES = 4, REQUESTS = 24 };

static char path[64];

/* What came of one choice. */
struct heard {
    int32_t id[MOST], tokens, ends;
    int64_t ended_at; /* events before it */
    struct event end;
};

struct rig {
    struct tiny_engine engine;
    struct mailbox *mailbox;
    struct serve_options options;
    struct leader leader;
    bool is_end[512];
    struct heard heard[REQUESTS][CHOICES];
    int64_t events;
};

struct rig_options {
    int32_t slots, pages, step_tokens; /* 0: plenty */
    bool no_cache;
};

static void rig_open(struct rig *r, const struct rig_options *o)
{
    struct err err;
    memset(r, 0, sizeof(*r));
    tiny_engine_open(&r->engine, path, 1, PAGE, NULL);
    struct step_limits *l = &r->engine.options.limits;
    l->slots = o->slots ? o->slots : l->slots;
    l->sequences = l->sequences < l->slots ? l->sequences : l->slots;
    l->pages = o->pages ? o->pages : l->pages;
    l->tokens = o->step_tokens ? o->step_tokens : l->tokens;
    executor_close(&r->engine.executor);
    if (executor_open(&r->engine.executor, r->engine.model, &r->engine.options, &err))
        die("%s", err.message);
    mailbox_open(&r->mailbox);
    r->options = (struct serve_options){.executor = r->engine.executor,
                                        .engine = r->engine.options,
                                        .mailbox = r->mailbox,
                                        .is_end = r->is_end,
                                        .priority_step_ms = 1000000,
                                        .no_prefix_cache = o->no_cache};
    leader_init(&r->leader, &r->options);
}

static void rig_close(struct rig *r)
{
    leader_release(&r->leader); /* asserts that every page is free once the cache is dropped */
    mailbox_close(&r->mailbox);
    tiny_engine_close(&r->engine);
}

static void take_events(struct rig *r)
{
    struct event e;
    while (mailbox_next(r->mailbox, &e)) {
        struct heard *h = &r->heard[e.handle][e.choice];
        r->events++;
        CHECK_INT(h->ends, 0);
        if (e.kind == EVENT_TOKEN) {
            CHECK_INT(e.index, h->tokens);
            h->id[h->tokens++] = e.id;
        } else {
            h->ends++;
            h->end = e;
            h->ended_at = r->events;
        }
    }
}

/* One turn of the leader's loop; false when nobody is left. */
static bool turn(struct rig *r)
{
    struct err err;
    sequences_take_commands(&r->leader);
    int launched = flight_launch(&r->leader, &err);
    if (launched < 0 || (launched && flight_collect(&r->leader, &err)))
        die("%s", err.message);
    sequences_publish(&r->leader);
    take_events(r);
    struct pages_count c = pages_count(r->leader.pages);
    CHECK_INT(c.used + c.cached + c.free, r->options.engine.limits.pages);
    CHECK(launched || (r->leader.stats.running == 0 && r->leader.stats.waiting == 0));
    return launched;
}

static void run(struct rig *r)
{
    while (turn(r))
        ;
    CHECK_INT(pages_count(r->leader.pages).used, 0);
}

/* ---- requests */

struct wanted {
    struct sequence_request r;
    int32_t prompt[LONGEST];
};

/* A prompt of `tokens` tokens that depends on `text`, the first `common` of them on nothing. */
static struct wanted request(uint64_t handle, int text, int32_t common, int32_t tokens, int32_t most)
{
    struct wanted w = {.r = {.handle = handle,
                             .choices = 1,
                             .prompt_tokens = tokens,
                             .max_tokens = most,
                             .stop_at_end = true,
                             .sampling = {.seed = 40 + handle,
                                          .temperature = 1,
                                          .top_p = 1,
                                          .repetition_penalty = 1,
                                          .banned_id = -1}}};
    unsigned long long same = 4, own = 100 + (unsigned long long)text;
    for (int32_t i = 0; i < tokens; i++)
        w.prompt[i] = (int32_t)(test_random(i < common ? &same : &own) % 300);
    return w;
}

static void submit(struct rig *r, const struct wanted *w)
{
    struct command c = {.kind = COMMAND_SUBMIT, .request = w->r};
    size_t bytes = (size_t)w->r.prompt_tokens * sizeof(int32_t);
    c.request.prompt = memcpy(xmalloc(bytes), w->prompt, bytes);
    mailbox_send(r->mailbox, &c);
}

/* Alone, in a pool with room, without a cache: what it must always give. */
static void check_as_alone(struct rig *r, const struct wanted *w)
{
    struct rig alone;
    rig_open(&alone, &(struct rig_options){.no_cache = true});
    submit(&alone, w);
    run(&alone);
    for (int32_t c = 0; c < w->r.choices; c++) {
        const struct heard *h = &r->heard[w->r.handle][c], *want = &alone.heard[w->r.handle][c];
        CHECK_INT(want->end.kind, EVENT_DONE);
        CHECK_INT(h->ends, 1);
        CHECK_INT(h->end.kind, want->end.kind);
        CHECK_INT(h->end.reason, want->end.reason);
        CHECK_INT(h->tokens, want->tokens);
        CHECK(memcmp(h->id, want->id, sizeof(h->id)) == 0);
    }
    rig_close(&alone);
}

static int32_t cached(const struct rig *r, uint64_t handle)
{
    return r->heard[handle][0].end.cached_tokens;
}

/* Two requests one after the other; returns the second one's cached tokens. */
static int32_t second_after_first(const struct wanted *first, const struct wanted *second, bool no_cache)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){.slots = 1, .no_cache = no_cache});
    submit(&r, first);
    run(&r);
    submit(&r, second);
    run(&r);
    check_as_alone(&r, first);
    check_as_alone(&r, second);
    CHECK_INT(cached(&r, first->r.handle), 0);
    int32_t tokens = cached(&r, second->r.handle);
    CHECK_INT(r.leader.stats.prefix_hits, tokens);
    rig_close(&r);
    return tokens;
}

static void test_a_prompt_is_computed_once(void)
{
    int32_t lengths[] = {15, 16, 17, 31, 32, 33, 96, 100}, found[] = {0, 15, 16, 16, 31, 32, 95, 96};
    for (int i = 0; i < 8; i++) { /* pages of 16: whole ones are found, the last token is computed again */
        struct wanted a = request(0, 1, 0, lengths[i], 9), b = request(1, 1, 0, lengths[i], 9);
        CHECK_INT(second_after_first(&a, &b, false), found[i]);
    }
}

static void test_a_common_beginning_is_computed_once(void)
{
    struct wanted a = request(0, 1, 70, 100, 9), b = request(1, 2, 70, 110, 9);
    CHECK_INT(second_after_first(&a, &b, false), 64);
}

static void test_an_answer_is_found_in_the_next_prompt(void)
{
    struct rig r;
    struct wanted a = request(0, 1, 0, 40, 30), b = a;
    rig_open(&r, &(struct rig_options){0});
    submit(&r, &a);
    run(&r);
    b.r.handle = 1;
    b.r.prompt_tokens = 40 + 30 + 5;
    memcpy(b.prompt + 40, r.heard[0][0].id, 30 * sizeof(int32_t));
    submit(&r, &b);
    run(&r);
    CHECK_INT(cached(&r, 1), 64); /* of 69 that went through the model: the last one drawn did not */
    check_as_alone(&r, &b);
    rig_close(&r);
}

static void test_another_tenant_finds_nothing(void)
{
    struct wanted a = request(0, 1, 0, 64, 9), b = request(1, 1, 0, 64, 9);
    b.r.salt = 1;
    CHECK_INT(second_after_first(&a, &b, false), 0);
}

static void test_without_a_cache_nothing_is_found(void)
{
    struct wanted a = request(0, 1, 0, 64, 9), b = request(1, 1, 0, 64, 9);
    CHECK_INT(second_after_first(&a, &b, true), 0);
}

/* Penalties look at the whole prompt, also at what no stage has seen. */
static void test_penalties_know_a_reused_prompt(void)
{
    struct wanted a = request(0, 1, 0, 100, 20), b = request(1, 1, 0, 100, 20);
    b.r.sampling.temperature = 0;
    b.r.sampling.repetition_penalty = 2;
    b.r.sampling.frequency_penalty = 0.5f;
    CHECK_INT(second_after_first(&a, &b, false), 96);
}

/* While the first is still in its prefill, the others take over what it has computed. */
static void test_prompts_that_arrive_together_are_computed_once(void)
{
    struct rig r;
    struct wanted w[4];
    rig_open(&r, &(struct rig_options){.step_tokens = 32});
    for (int i = 0; i < 4; i++) {
        w[i] = request((uint64_t)i, i, 96, 100, 9);
        submit(&r, &w[i]);
    }
    run(&r);
    CHECK_INT(cached(&r, 0), 0);
    for (int i = 0; i < 4; i++) {
        CHECK(i == 0 || cached(&r, (uint64_t)i) >= 64);
        check_as_alone(&r, &w[i]);
    }
    rig_close(&r);
}

static void test_choices_share_their_prompt(void)
{
    for (int no_cache = 0; no_cache < 2; no_cache++)
        for (int32_t prompt = 95; prompt <= 97; prompt++) {
            struct rig r;
            struct wanted w = request(0, 1, 0, prompt, 10);
            int32_t most = 0;
            w.r.choices = CHOICES;
            rig_open(&r, &(struct rig_options){.no_cache = no_cache});
            submit(&r, &w);
            while (turn(&r))
                most = r.leader.stats.running == CHOICES && (int32_t)r.leader.stats.pages_used > most
                           ? (int32_t)r.leader.stats.pages_used
                           : most;
            CHECK(most >= 7 && most <= 6 + 2 * CHOICES); /* four prompts of their own would be 24 */
            check_as_alone(&r, &w);
            CHECK(memcmp(r.heard[0][0].id, r.heard[0][1].id, sizeof(r.heard[0][0].id)) != 0);
            for (int32_t c = 1; c < CHOICES; c++)
                CHECK_INT(r.heard[0][c].end.cached_tokens, prompt - 1);
            rig_close(&r);
        }
}

/* ---- too few pages */

static void test_preempted_streams_go_on(void)
{
    for (int no_cache = 0; no_cache < 2; no_cache++) {
        struct rig r;
        struct wanted w[6];
        rig_open(&r, &(struct rig_options){.pages = 10, .no_cache = no_cache});
        for (int i = 0; i < 6; i++) { /* 2 pages each at first, 7 at their end */
            w[i] = request((uint64_t)i, i, 0, 17 + i, 80);
            w[i].r.sampling.repetition_penalty = 1.1f;
            submit(&r, &w[i]);
        }
        run(&r);
        CHECK(r.leader.stats.preemptions >= 3);
        for (int i = 0; i < 6; i++)
            check_as_alone(&r, &w[i]);
        for (int i = 1; i < 6; i++) /* the first was never put back, so it ended first */
            CHECK(r.heard[0][0].ended_at < r.heard[i][0].ended_at);
        printf("# %llu preemptions\n", (unsigned long long)r.leader.stats.preemptions);
        rig_close(&r);
    }
}

/* A pool of exactly one request's pages, which are cached when the next one comes: its last page must be
 * copied where no page is free. */
static void test_one_request_may_need_every_page(void)
{
    struct rig r;
    struct wanted w[4];
    rig_open(&r, &(struct rig_options){.pages = 4});
    for (int i = 0; i < 4; i++) {
        w[i] = request((uint64_t)i, 1, 0, 64 - 16 * (i % 2), i % 2 ? 17 : 1);
        submit(&r, &w[i]);
    }
    run(&r);
    for (int i = 0; i < 4; i++)
        check_as_alone(&r, &w[i]);
    rig_close(&r);
}

static void test_choices_over_few_pages_go_on(void)
{
    struct rig r;
    struct wanted w[3];
    rig_open(&r, &(struct rig_options){.pages = 9});
    for (int i = 0; i < 3; i++) {
        w[i] = request((uint64_t)i, i % 2, 0, 60, 70);
        w[i].r.choices = CHOICES;
        submit(&r, &w[i]);
    }
    run(&r);
    CHECK(r.leader.stats.preemptions > 0);
    for (int i = 0; i < 3; i++)
        check_as_alone(&r, &w[i]);
    rig_close(&r);
}

static void test_pages_of_another_tenant_are_zeroed(void)
{
    struct rig r;
    struct wanted a = request(0, 1, 0, 40, 1), b = request(1, 2, 0, 33, 1);
    rig_open(&r, &(struct rig_options){.pages = 3});
    submit(&r, &a);
    run(&r);
    b.r.salt = 9;
    submit(&r, &b);
    run(&r);
    int zeroed = 0;
    const struct step *step = &r.leader.flight[0].step; /* the last one, which took all three pages */
    for (int32_t i = 0; i < step->op_count; i++)
        zeroed += step->ops[i].kind == PAGE_MOVE && step->ops[i].a == -1;
    CHECK_INT(zeroed, 3);
    rig_close(&r);
}

static void test_cancelled_pages_come_back_at_once(void)
{
    struct rig r;
    struct wanted w = request(0, 1, 0, 100, 50);
    rig_open(&r, &(struct rig_options){.step_tokens = 32, .no_cache = true});
    submit(&r, &w);
    turn(&r);
    turn(&r);
    CHECK_INT(pages_count(r.leader.pages).used, 4);
    mailbox_send(r.mailbox,
                 &(struct command){.kind = COMMAND_CANCEL, .request = {.handle = 0, .choice = -1}});
    CHECK(!turn(&r));
    CHECK_INT(pages_count(r.leader.pages).used, 0);
    CHECK_INT(r.heard[0][0].end.reason, FINISH_CANCELLED);
    rig_close(&r);
}

/* ---- priorities */

static void test_a_higher_priority_goes_first(void)
{
    struct rig r;
    struct wanted w[3];
    rig_open(&r, &(struct rig_options){.slots = 1});
    for (int i = 0; i < 3; i++) {
        w[i] = request((uint64_t)i, i, 0, 20, 5);
        w[i].r.priority = i == 2 ? -1 : 0; /* the lower number goes first */
        submit(&r, &w[i]);
    }
    run(&r);
    CHECK(r.heard[2][0].ended_at < r.heard[0][0].ended_at);
    CHECK(r.heard[0][0].ended_at < r.heard[1][0].ended_at);
    rig_close(&r);
}

static void test_a_higher_priority_takes_the_place_of_a_lower(void)
{
    struct rig r;
    struct wanted low = request(0, 1, 0, 20, 60), high = request(1, 2, 0, 20, 5);
    high.r.priority = -1;
    rig_open(&r, &(struct rig_options){.slots = 1});
    submit(&r, &low);
    for (int i = 0; i < 10; i++)
        turn(&r);
    submit(&r, &high);
    run(&r);
    CHECK_INT(r.leader.stats.preemptions, 1);
    CHECK(r.heard[1][0].ended_at < r.heard[0][0].ended_at);
    check_as_alone(&r, &low);
    check_as_alone(&r, &high);
    rig_close(&r);
}

/* ---- storms */

/* Submissions and cancellations at random turns, over so few pages that the cache is evicted and sequences
 * are preempted all the time. Prompts begin alike, tenants and priorities differ. */
static void storm(const struct rig_options *o, unsigned long long seed, int requests)
{
    struct rig r;
    unsigned long long random = seed;
    int submitted = 0, cancelled = 0, whole = 0;
    struct wanted w[REQUESTS];
    bool live[REQUESTS] = {false}, stopped[REQUESTS] = {false};
    rig_open(&r, o);
    while (submitted < requests) {
        uint64_t dice = test_random(&random);
        int i = (int)(dice % REQUESTS), choices = dice % 11 == 0 ? 3 : 1;
        for (int k = 0; k < REQUESTS; k++) {
            int ends = 0;
            for (int c = 0; live[k] && c < w[k].r.choices; c++)
                ends += r.heard[k][c].ends;
            if (live[k] && ends == w[k].r.choices && !stopped[k] && whole++ % 50 == 0)
                check_as_alone(&r, &w[k]);
            live[k] &= ends < w[k].r.choices;
        }
        if (!live[i]) {
            memset(r.heard[i], 0, sizeof(r.heard[i]));
            w[i] = request((uint64_t)i, (int)((dice >> 8) % 4), (int32_t)((dice >> 12) % 40),
                           1 + (int32_t)((dice >> 20) % 60), 1 + (int32_t)((dice >> 28) % 20));
            w[i].r.choices = choices;
            w[i].r.salt = (dice >> 40) % 2;
            w[i].r.priority = (int32_t)((dice >> 44) % 3);
            submit(&r, &w[i]);
            live[i] = true;
            stopped[i] = false;
            submitted++;
        } else if (dice >> 50 & 1) {
            mailbox_send(r.mailbox, &(struct command){.kind = COMMAND_CANCEL,
                                                      .request = {.handle = (uint64_t)i, .choice = -1}});
            stopped[i] = true;
            cancelled++;
        }
        for (uint64_t turns = (dice >> 52) % 4; turns > 0; turns--)
            turn(&r);
    }
    run(&r);
    const struct serve_stats *s = &r.leader.stats;
    CHECK(s->preemptions > (uint64_t)requests / 100 && cancelled > requests / 20);
    CHECK(o->no_cache || s->prefix_hits > (uint64_t)requests);
    printf("# %d requests, %d cancellations, %llu preemptions, %llu of %llu prompt tokens reused\n",
           submitted, cancelled, (unsigned long long)s->preemptions, (unsigned long long)s->prefix_hits,
           (unsigned long long)s->prefix_queries);
    rig_close(&r);
}

#ifdef LEPTON_SANITIZE
#define STORM 2500
#else
#define STORM 10000
#endif

static void test_storm(void)
{
    storm(&(struct rig_options){.pages = 9, .slots = 6}, 1, STORM);
    storm(&(struct rig_options){.pages = 9, .slots = 6, .no_cache = true}, 2, STORM / 4);
    storm(&(struct rig_options){.pages = 20, .slots = 8, .step_tokens = 16}, 3, STORM / 4);
}

/* The same through the mailbox, with threads for stages: steps under way, sequences that are busy. */
static void test_storm_in_stages(void)
{
    enum { LIVE = 24 };
    static const char *const words[] = {"--context", "128", "--max-sequences", "8", "--step-tokens", "24"};
    for (int stages = 2; stages <= 3; stages++) {
        struct engine_group g;
        unsigned long long random = (unsigned long long)stages;
        int submitted = 0, ended = 0, left[STORM] = {0};
        engine_group_open(&g, path, stages, 9, words, ARRAY_LEN(words));
        engine_group_start(&g);
        while (ended < STORM / 4) {
            while (submitted < STORM / 4 && submitted - ended < LIVE) {
                uint64_t dice = test_random(&random);
                struct wanted w =
                    request((uint64_t)submitted, (int)((dice >> 8) % 4), (int32_t)((dice >> 12) % 40),
                            1 + (int32_t)((dice >> 20) % 60), 1 + (int32_t)((dice >> 28) % 20));
                w.r.prompt = w.prompt;
                w.r.choices = left[submitted] = dice % 11 == 0 ? 3 : 1;
                w.r.salt = (dice >> 40) % 2;
                w.r.priority = (int32_t)((dice >> 44) % 3);
                engine_group_submit(&g, &w.r);
                if (submitted > 5 && dice >> 50 & 1)
                    engine_group_cancel(&g, (uint64_t)submitted - (dice >> 52) % 5);
                submitted++;
            }
            struct event e = engine_group_next(&g);
            if (e.kind != EVENT_TOKEN && --left[e.handle] == 0)
                ended++;
        }
        struct serve_stats s = engine_group_close(&g);
        CHECK_INT(s.pages_used, 0);
        CHECK_INT(s.running + s.waiting, 0);
        CHECK(s.preemptions > 0 && s.prefix_hits > 0);
    }
}

int main(void)
{
    struct tiny_shape shape = tiny_standard;
    shape.context = 256;
    shape.layers = 3;
    snprintf(path, sizeof(path), "/tmp/lepton-test-paging-%d.gguf", (int)getpid());
    tiny_model_write(path, &shape);
    TEST(test_a_prompt_is_computed_once, "a prompt that was served before is found in whole pages");
    TEST(test_a_common_beginning_is_computed_once, "so is a common beginning");
    TEST(test_an_answer_is_found_in_the_next_prompt, "and an answer that comes back in the next prompt");
    TEST(test_another_tenant_finds_nothing, "another tenant finds nothing");
    TEST(test_without_a_cache_nothing_is_found, "without a cache nothing is found");
    TEST(test_penalties_know_a_reused_prompt, "penalties know the tokens of a reused prompt");
    TEST(test_prompts_that_arrive_together_are_computed_once,
         "prompts that arrive together share their pages");
    TEST(test_choices_share_their_prompt, "choices share their prompt's pages, the last one by copies");
    TEST(test_preempted_streams_go_on, "preempted streams go on as if nothing had happened");
    TEST(test_one_request_may_need_every_page,
         "one request may need every page, its own cached ones among them");
    TEST(test_choices_over_few_pages_go_on, "choices over few pages are preempted and go on");
    TEST(test_pages_of_another_tenant_are_zeroed,
         "pages of another tenant are zeroed by the step that takes them");
    TEST(test_cancelled_pages_come_back_at_once, "pages of a cancelled sequence come back within a step");
    TEST(test_a_higher_priority_goes_first, "a higher priority goes first");
    TEST(test_a_higher_priority_takes_the_place_of_a_lower,
         "a higher priority takes the place of a lower one");
    TEST(test_storm,
         "10,000 requests and cancellations over few pages: one end each, every page free at the end");
    TEST(test_storm_in_stages, "the same in two and three stages");
    unlink(path);
    return test_result();
}
