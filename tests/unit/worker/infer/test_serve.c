#include "worker/infer/serve.h"

#include <poll.h>
#include <pthread.h>

#include "tests/tiny_model.h"

/* The leader of a group of one rank, in a thread; the test is the link, through the mailbox. */
struct bench {
    struct tiny_engine engine;
    struct mailbox *mailbox;
    struct serve_options options;
    bool is_end[512];
    pthread_t thread;
    int code;
    struct err err;
};

#define REQUESTS 10000

/* What the test knows of the request with handle i. */
struct record {
    int32_t tokens, asked, prompt;
    int ends;
    bool cancelled, after_end, out_of_order;
    struct event end;
    int32_t id[64];
};

static char path[64];

static void *run_leader(void *context)
{
    struct bench *b = context;
    b->code = serve_leader(&b->options, &b->err);
    return NULL;
}

static void bench_open(struct bench *b, int32_t slots, int32_t pages)
{
    memset(b, 0, sizeof(*b));
    tiny_engine_open(&b->engine, path, 1, 16, NULL);
    if (slots)
        b->engine.options.limits.slots = slots;
    if (slots && b->engine.options.limits.sequences > slots)
        b->engine.options.limits.sequences = slots;
    if (pages)
        b->engine.options.limits.pages = pages;
    executor_close(&b->engine.executor);
    if (executor_open(&b->engine.executor, b->engine.model, &b->engine.options, &b->err))
        die("%s", b->err.message);
    mailbox_open(&b->mailbox);
    b->options = (struct serve_options){.executor = b->engine.executor,
                                        .engine = b->engine.options,
                                        .mailbox = b->mailbox,
                                        .is_end = b->is_end};
}

static void bench_start(struct bench *b)
{
    if (pthread_create(&b->thread, NULL, run_leader, b))
        die("no thread");
}

static void submit(struct bench *b, struct record *r, uint64_t handle, int32_t prompt, int32_t most,
                   float temperature)
{
    struct command c = {.kind = COMMAND_SUBMIT};
    r[handle].asked = most;
    r[handle].prompt = prompt;
    c.request = (struct sequence_request){.handle = handle,
                                          .choices = 1,
                                          .prompt = malloc((size_t)prompt * sizeof(int32_t)),
                                          .prompt_tokens = prompt,
                                          .max_tokens = most,
                                          .stop_at_end = true,
                                          .sampling = {.seed = handle,
                                                       .temperature = temperature,
                                                       .top_p = 1,
                                                       .repetition_penalty = 1,
                                                       .banned_id = -1}};
    for (int32_t i = 0; i < prompt; i++)
        c.request.prompt[i] = 1 + i % 7;
    mailbox_send(b->mailbox, &c);
}

static void cancel(struct bench *b, uint64_t handle)
{
    mailbox_send(b->mailbox,
                 &(struct command){.kind = COMMAND_CANCEL, .request = {.handle = handle, .choice = -1}});
}

/* Notes what came; true when the leader has left. */
static bool take_events(struct bench *b, struct record *r)
{
    struct event e;
    while (mailbox_next(b->mailbox, &e)) {
        if (e.kind == EVENT_LEFT)
            return true;
        struct record *q = &r[e.handle];
        q->after_end |= q->ends > 0;
        if (e.kind == EVENT_TOKEN) {
            q->out_of_order |= e.index != q->tokens;
            if (q->tokens < (int32_t)ARRAY_LEN(q->id))
                q->id[q->tokens] = e.id;
            q->tokens++;
        } else {
            q->ends++;
            q->end = e;
        }
    }
    return false;
}

static void wait_events(struct bench *b)
{
    struct pollfd p = {.fd = mailbox_event_fd(b->mailbox), .events = POLLIN};
    if (poll(&p, 1, 60000) != 1)
        die("no event came within a minute");
}

static void wait_ends(struct bench *b, struct record *r, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        while (take_events(b, r), r[i].ends == 0)
            wait_events(b);
}

/* Drains, waits for the end of the leader, and closes everything; `table` (or NULL) gets its memory back. */
static void bench_close_with(struct bench *b, struct record *r, struct weight *table, void *packed)
{
    mailbox_send(b->mailbox, &(struct command){.kind = COMMAND_DRAIN});
    while (!take_events(b, r))
        wait_events(b);
    pthread_join(b->thread, NULL);
    CHECK_INT(b->code, 0);
    struct serve_stats s = mailbox_stats(b->mailbox);
    CHECK_INT(s.pages_used, 0);
    CHECK_INT(s.running, 0);
    CHECK_INT(s.waiting, 0);
    mailbox_close(&b->mailbox);
    if (table)
        table->packed = packed;
    tiny_engine_close(&b->engine);
}

static void bench_close(struct bench *b, struct record *r)
{
    bench_close_with(b, r, NULL, NULL);
}

static void check_record(const struct record *q)
{
    CHECK_INT(q->ends, 1);
    CHECK(!q->after_end && !q->out_of_order);
    CHECK_INT(q->end.completion_tokens, q->tokens);
    CHECK_INT(q->end.prompt_tokens, q->prompt);
    if (q->end.reason == FINISH_LENGTH)
        CHECK_INT(q->tokens, q->asked);
    CHECK(q->end.reason != FINISH_CANCELLED || q->cancelled);
}

static struct record *new_records(void)
{
    return xcalloc(REQUESTS, sizeof(struct record));
}

/* Submissions and cancellations without a rhythm: each request may meet its cancellation anywhere. */
static void storm(unsigned long long seed, uint64_t requests)
{
    struct bench b;
    struct record *r = new_records();
    unsigned long long random = seed;
    uint64_t cancelled = 0, whole = 0;
    bench_open(&b, 0, 20);
    bench_start(&b);
    for (uint64_t i = 0; i < requests; i++) {
        uint32_t dice = (uint32_t)((test_uniform(&random) + 1) * 50);
        submit(&b, r, i, 1 + (int32_t)(dice % 40), 1 + (int32_t)(dice % 5), dice % 2 ? 1 : 0);
        uint64_t victim = i - (uint64_t)((test_uniform(&random) + 1) * 6);
        if (dice % 3 && victim < requests) {
            r[victim].cancelled = true;
            cancel(&b, victim);
            if (dice % 4 == 0)
                cancel(&b, victim);
        }
        take_events(&b, r);
        for (uint64_t k = i > 24 ? i - 24 : 0; i > 24 && r[k].ends == 0;) { /* as bounded as the link's */
            wait_events(&b);
            take_events(&b, r);
        }
    }
    bench_close(&b, r);
    for (uint64_t i = 0; i < requests; i++) {
        check_record(&r[i]);
        cancelled += r[i].end.reason == FINISH_CANCELLED;
        whole += r[i].end.reason == FINISH_LENGTH;
    }
    CHECK(cancelled > requests / 50 && whole > requests / 10);
    printf("# seed %llu: %llu cancelled, %llu whole\n", seed, (unsigned long long)cancelled,
           (unsigned long long)whole);
    free(r);
}

#ifdef LEPTON_SANITIZE
#define STORM (REQUESTS / 5)
#else
#define STORM REQUESTS
#endif

static void test_storm(void)
{
    for (unsigned long long seed = 1; seed <= 2; seed++)
        storm(seed, STORM);
}

static void test_cancel_all_is_silent(void)
{
    struct bench b;
    struct record *r = new_records();
    bench_open(&b, 4, 0);
    bench_start(&b);
    for (int round = 0; round < 50; round++) {
        uint64_t base = (uint64_t)round * 20;
        for (uint64_t i = 0; i < 12; i++) /* some run, some wait */
            submit(&b, r, base + i, 5, 90, 1);
        while (take_events(&b, r), r[base].tokens < 1 + round % 3)
            wait_events(&b);
        mailbox_send(b.mailbox, &(struct command){.kind = COMMAND_CANCEL_ALL});
        submit(&b, r, base + 19, 5, 3, 0);
        wait_ends(&b, r, base + 19, 1);
        check_record(&r[base + 19]);
        for (uint64_t i = 0; i < 12; i++)
            CHECK(r[base + i].ends == 0 || r[base + i].tokens == 90); /* it may have ended before */
    }
    bench_close(&b, r);
    for (uint64_t i = 0; i < 1000; i++)
        CHECK(r[i].ends == (i % 20 == 19) || r[i].tokens == 90);
    free(r);
}

static void test_drain_serves_what_waits(void)
{
    struct bench b;
    struct record *r = new_records();
    bench_open(&b, 2, 0);
    for (uint64_t i = 0; i < 10; i++)
        submit(&b, r, i, 3, 20, 1);
    bench_start(&b);
    bench_close(&b, r);
    for (uint64_t i = 0; i < 10; i++) {
        check_record(&r[i]);
        CHECK_INT(r[i].tokens, 20);
    }
    free(r);
}

static void test_more_than_slots_are_served_in_order(void)
{
    struct bench b;
    struct record *r = new_records();
    struct event e;
    uint64_t next = 0;
    bench_open(&b, 1, 0);
    for (uint64_t i = 0; i < 30; i++)
        submit(&b, r, i, 3, 4, 1);
    bench_start(&b);
    while (next < 30) {
        wait_events(&b);
        while (mailbox_next(b.mailbox, &e)) {
            CHECK_INT(e.handle, next);
            next += e.kind == EVENT_DONE;
        }
    }
    bench_close(&b, r);
    free(r);
}

static void test_waiting_counts_as_prefill(void)
{
    struct bench b;
    struct record *r = new_records();
    bench_open(&b, 1, 0);
    submit(&b, r, 0, 3, 60, 0);
    submit(&b, r, 1, 3, 2, 0);
    bench_start(&b);
    bench_close(&b, r);
    CHECK(r[0].end.decode_us > 0 && r[1].end.prefill_us >= r[0].end.decode_us);
    free(r);
}

static void test_small_pool_makes_requests_wait(void)
{
    struct bench b;
    struct record *r = new_records();
    bench_open(&b, 0, 3); /* 48 positions: one long request, or three short ones */
    for (uint64_t i = 0; i < 40; i++)
        submit(&b, r, i, i % 4 ? 3 : 20, i % 4 ? 10 : 29, 1);
    bench_start(&b);
    bench_close(&b, r);
    for (uint64_t i = 0; i < 40; i++) {
        check_record(&r[i]);
        CHECK(r[i].end.kind == EVENT_DONE && r[i].tokens == r[i].asked);
    }
    free(r);
}

/* Requests 0, 3, 6, ... hold the token whose embedding is NaN. The others must give what they give alone,
 * also in pages that the NaNs were in before. */
static void test_nan_fails_its_own_request_alone(void)
{
    enum { POISON = 7, COUNT = 30 };
    struct record *clean = new_records(), *r = new_records();
    struct bench b;
    for (int poisoned = 0; poisoned < 2; poisoned++) {
        bench_open(&b, 3, 0);
        struct weight *table = &b.engine.model->global[TENSOR_TOKEN_EMBED].weight;
        size_t bytes = (size_t)(tiny_standard.vocab * tiny_standard.embed) * sizeof(float);
        float *copy = xmalloc(bytes);
        memcpy(copy, table->packed, bytes);
        copy[POISON * tiny_standard.embed + 5] = NAN;
        void *before = table->packed;
        if (poisoned)
            table->packed = copy;
        for (uint64_t i = 0; i < COUNT; i++) /* token 7 is the seventh of every long prompt */
            submit(&b, poisoned ? r : clean, i, i % 3 ? 5 : 20, 8, 0);
        bench_start(&b);
        bench_close_with(&b, poisoned ? r : clean, table, before);
        free(copy);
    }
    for (uint64_t i = 0; i < COUNT; i++) {
        CHECK_INT(r[i].ends, 1);
        CHECK(!r[i].after_end);
        CHECK_INT(r[i].end.kind, i % 3 ? EVENT_DONE : EVENT_FAILED);
        CHECK_INT(r[i].tokens, i % 3 ? 8 : 0);
        if (i % 3)
            CHECK(memcmp(r[i].id, clean[i].id, 8 * sizeof(int32_t)) == 0);
    }
    free(clean);
    free(r);
}

static void test_end_tokens(void)
{
    struct bench b;
    struct record *r = new_records();
    bench_open(&b, 0, 0);
    bench_start(&b);
    submit(&b, r, 0, 9, 20, 0);
    wait_ends(&b, r, 0, 1);
    bench_close(&b, r);
    int32_t end = r[0].id[5], first = 0;
    while (r[0].id[first] != end)
        first++;
    bench_open(&b, 0, 0);
    b.is_end[end] = true;
    submit(&b, r, 1, 9, 20, 0);
    struct command c;
    CHECK(mailbox_take(b.mailbox, &c));
    mailbox_send(b.mailbox, &c);
    c.request.handle = 2;
    c.request.stop_at_end = false;
    c.request.prompt = malloc(9 * sizeof(int32_t));
    for (int32_t i = 0; i < 9; i++)
        c.request.prompt[i] = 1 + i % 7;
    mailbox_send(b.mailbox, &c);
    r[2].prompt = 9;
    r[2].asked = 20;
    bench_start(&b);
    bench_close(&b, r);
    CHECK_INT(r[1].end.reason, FINISH_STOP);
    CHECK_INT(r[1].tokens, first); /* the end token itself is not shown */
    CHECK_INT(r[1].end.completion_tokens, first);
    CHECK_INT(r[2].end.reason, FINISH_LENGTH);
    CHECK(memcmp(r[2].id, r[0].id, 20 * sizeof(int32_t)) == 0);
    free(r);
}

int main(void)
{
    snprintf(path, sizeof(path), "/tmp/lepton-test-serve-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    TEST(test_storm, "requests and cancellations at random: one end each, tokens in order, all pages free");
    TEST(test_cancel_all_is_silent,
         "after cancel-all nothing of the past is heard, and new requests are served");
    TEST(test_drain_serves_what_waits, "a drain serves what waits, then leaves");
    TEST(test_more_than_slots_are_served_in_order, "more requests than slots are served in order");
    TEST(test_waiting_counts_as_prefill, "the time a request waits for a slot counts as prefill");
    TEST(test_small_pool_makes_requests_wait, "a pool too small for all makes requests wait, not fail");
    TEST(test_nan_fails_its_own_request_alone,
         "NaN in a token's embedding fails the requests that hold it alone");
    TEST(test_end_tokens, "an end token ends a sequence unshown, or is shown when it is to be ignored");
    unlink(path);
    return test_result();
}
