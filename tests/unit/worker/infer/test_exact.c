/* The exactness matrix (design I7): the same 64 requests give the same token ids however the engine is set up
 * and whatever runs beside them, and the same bits of their log-probabilities, in which one rounding shows
 * that no draw would. The reference is each request alone in a group of one rank and one thread, its prompt
 * in one piece; a cell of the matrix is another way of running all of them. A failing cell prints the model,
 * the cell, the request, the index, and both ids.
 *
 * Cells are made from the table of dimensions: every value alone, then mixtures of all. A new dimension is
 * one line. A numeric class (kernel set, KV type, …) is what may change the numbers: each has its own
 * reference.
 *
 *   test_exact [--mixed N] [--all] [MODEL.gguf ...]
 * runs the matrix over models of any size instead of the small ones that it makes itself; --mixed N asks for
 * that many mixtures, --all for the whole product. The 100M-parameter models of the project's bar:
 *   for t in q8_0 q4_k bf16; do lepton synth --layers 8 --dim 1024 --ffn 3072 --heads 16 --kv-heads 4 \
 *       --vocab 16384 --type $t --pure /tmp/100m-$t.gguf; done    (blocks of 256 that two slots can share)
 *   build/release/tests/unit/worker/infer/test_exact /tmp/100m-*.gguf */
#include "tests/engine_group.h"
#include "tests/tiny_model.h"

#define REQUESTS   64
#define MOST       40  /* tokens asked for */
#define LONGEST    300 /* prompt */
#define CONTEXT    "384"
#define DECOYS     24
#define CHOICES    3 /* most of a request */
#define ANSWERS    (REQUESTS * CHOICES)
#define BUSY       2 /* the batch of 8 */
#define SHOWN      4 /* differences printed per cell */
#define DIMENSIONS 15
#define MIXED      6

/* ---- the requests ------------------------------------------------------------------------------------- */

struct request {
    int32_t prompt[LONGEST];
    struct logit_bias biases[4];
    struct sequence_request r;
};

/* What came of one choice of a request. */
struct answer {
    int32_t id[MOST];
    uint64_t logprobs[MOST]; /* a hash of their bits */
    int32_t count;
    int ended;
    enum event_kind kind;
    enum finish_reason reason;
};

static const struct sample_row settings[] = {
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .banned_id = -1},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .banned_id = -1},
    {.temperature = 0.8f, .top_k = 40, .top_p = 1, .repetition_penalty = 1, .banned_id = -1},
    {.temperature = 1.2f, .top_p = 0.9f, .repetition_penalty = 1, .banned_id = -1},
    {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1, .banned_id = -1},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1.3f, .banned_id = 5},
    {.temperature = 0.7f,
     .top_k = 20,
     .top_p = 0.95f,
     .repetition_penalty = 1,
     .presence_penalty = 0.5f,
     .frequency_penalty = 0.3f,
     .banned_id = -1},
    {.temperature = 1, .top_p = 1, .min_p = 0.02f, .repetition_penalty = 1.1f, .banned_id = 2},
};

/* Four kinds of prompts: one begins as others do (prefixes are shared), one repeats itself (drafts hit), one
 * is short, one is long. Lengths are those that borders of pages and chunks make interesting. */
static void make_prompt(struct request *q, int i, int32_t vocab, unsigned long long *random)
{
    static const int32_t lengths[] = {1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 90, 127, 128, 129, 150};
    int32_t n = lengths[(i / 4) % 16], period = 3 + i % 9;
    unsigned long long common = 77;
    if (i % 4 == 3)
        n = i % 8 == 3 ? n : 130 + (int32_t)(test_random(random) % (LONGEST - 130 + 1));
    for (int32_t t = 0; t < n; t++) {
        unsigned long long *from = i % 4 == 0 && t < 50 ? &common : random;
        q->prompt[t] = 3 + (int32_t)(test_random(from) % (unsigned long long)(vocab - 3));
        if (i % 4 == 1 && t >= period)
            q->prompt[t] = q->prompt[t - period];
    }
    q->r.prompt = q->prompt;
    q->r.prompt_tokens = n;
}

static void make_requests(struct request *requests, int32_t vocab)
{
    unsigned long long random = 20;
    for (int i = 0; i < REQUESTS; i++) {
        struct request *q = &requests[i];
        *q = (struct request){.r = {.handle = (uint64_t)i + 1,
                                    .max_tokens = i % 16 == 9 ? 1 : 8 + (int32_t)(test_random(&random) % 33),
                                    .choices = i % 16 == 6 ? CHOICES : 1,
                                    .biases = q->biases,
                                    .stop_at_end = i % 3 != 0,
                                    .sampling = settings[(i + i / 8) % ARRAY_LEN(settings)]}};
        q->r.sampling.seed = test_random(&random);
        q->r.sampling.logprobs = i % 4 == 2 ? 0 : 1 + i % 5;
        q->r.sampling.bias_count = i % 5 == 3 ? ARRAY_LEN(q->biases) : 0;
        /* Some speak in three or four tokens alone: their drafts are right for a while, then wrong. */
        for (int b = 0; b < q->r.sampling.bias_count; b++)
            q->biases[b] = (struct logit_bias){.id = 10 + 5 * b + i, .bias = i % 2 ? 40 : b % 2 ? 2 : -3};
        make_prompt(q, i, vocab, &random);
    }
}

/* ---- a way of running them ---------------------------------------------------------------------------- */

struct dimension {
    const char *name;      /* an option of lepton-worker, or a word of this file */
    const char *values[5]; /* the first is the reference's */
};

static const struct dimension dimensions[DIMENSIONS] = {
    {"--max-sequences", {"1", "2", "8", "32"}}, /* the batch */
    {"--step-tokens", {"512", "16", "128"}},    /* the chunk */
    {"--mixed-tokens", {"0", "24"}},            /* of these, while others decode */
    {"--threads", {"1", "2"}},
    {"stages", {"1", "2", "3"}},
    {"--page-tokens", {"16", "7", "64"}},
    {"--prefix-cache", {"false", "true"}},
    {"asked", {"once", "twice"}}, /* twice: the second time, which finds the first one's pages, counts */
    {"--speculation", {"off", "ngram"}},
    {"--speculation-tokens", {"8", "3"}},
    {"pages", {"many", "few"}},      /* few: what one longest request needs */
    {"company", {"none", "decoys"}}, /* others that come, and are cancelled anywhere */
    {"priority", {"equal", "mixed"}},
    {"arrival", {"together", "late"}}, /* late: each when another one has ended */
    {"begun", {"here", "elsewhere"}}   /* elsewhere: it goes on behind a part of the reference's answer */
};

/* What may change the numbers; each line has its own reference. */
static const char *const classes[][6] = {
    {"--kernels", "auto", "--kv-type", "f32", "--tensor", "1"},
    {"--kernels", "auto", "--kv-type", "f16", "--tensor", "1"},
    {"--kernels", "auto", "--kv-type", "q8_0", "--tensor", "1"},
    {"--kernels", "reference", "--kv-type", "bf16", "--tensor", "1"},
    {"--kernels", "auto", "--kv-type", "f32", "--tensor", "2"},
};

struct cell {
    int value[DIMENSIONS]; /* index into the dimension's values */
};

static const char *cell_value(const struct cell *c, const char *name)
{
    for (int d = 0; d < DIMENSIONS; d++)
        if (strcmp(dimensions[d].name, name) == 0)
            return dimensions[d].values[c->value[d]];
    die("no dimension %s", name);
}

static bool cell_is(const struct cell *c, const char *name, const char *value)
{
    return strcmp(cell_value(c, name), value) == 0;
}

/* The cell in words: the values that are not the reference's. */
static const char *cell_name(const struct cell *c, int class, char out[256])
{
    int n = snprintf(out, 256, "%s %s tensor %s", classes[class][1], classes[class][3], classes[class][5]);
    for (int d = 0; d < DIMENSIONS; d++)
        if (c->value[d])
            n += snprintf(out + n, 256 - (size_t)n, " %s %s", dimensions[d].name,
                          dimensions[d].values[c->value[d]]);
    return out;
}

/* FNV-1a (Fowler, Noll, Vo) over what the request asked for. */
static uint64_t hash_logprobs(const struct token_logprobs *p)
{
    const unsigned char *bytes = (const unsigned char *)p;
    size_t top = (size_t)p->count * sizeof(float);
    uint64_t hash = 0xCBF29CE484222325ull;
    for (size_t i = 0; i < sizeof(*p); i++) {
        bool counts = i < offsetof(struct token_logprobs, id) + top ||
                      (i >= offsetof(struct token_logprobs, logprob) &&
                       i < offsetof(struct token_logprobs, logprob) + top);
        if (counts)
            hash = (hash ^ bytes[i]) * 0x100000001B3ull;
    }
    return hash;
}

static void note(struct answer *answers, const struct event *e)
{
    if (e->handle < 1 || e->handle > REQUESTS)
        return; /* a decoy's */
    struct answer *a = &answers[(e->handle - 1) * CHOICES + (uint64_t)e->choice];
    CHECK_INT(a->ended, 0);
    if (e->kind == EVENT_TOKEN) {
        CHECK_INT(e->index, a->count);
        if (a->count < MOST) {
            a->id[a->count] = e->id;
            a->logprobs[a->count] = hash_logprobs(&e->logprobs);
        }
        a->count++;
        return;
    }
    a->ended++;
    a->kind = e->kind;
    a->reason = e->reason;
}

/* Another request that is in the way: a prompt of its own, cancelled somewhere. */
static void send_decoy(struct engine_group *g, const struct request *requests, int n)
{
    struct sequence_request r = requests[(n * 7 + 3) % REQUESTS].r;
    r.handle = 1000 + (uint64_t)n;
    r.sampling.logprobs = 0;
    r.max_tokens = 10 + n;
    r.sampling.seed += 1;
    engine_group_submit(g, &r);
    if (n % 3)
        engine_group_cancel(g, 1000 + (uint64_t)(n - n % 3));
}

static int all_choices(const struct request *requests)
{
    int sum = 0;
    for (int i = 0; i < REQUESTS; i++)
        sum += requests[i].r.choices;
    return sum;
}

/* The request as it comes from a group that was lost: after so many tokens of each choice that all places
 * come, also right before the end. */
static void begin_elsewhere(struct sequence_request *r, const struct answer *want, struct answer *answers)
{
    static int32_t ids[CHOICES * MOST], counts[CHOICES];
    int32_t total = 0;
    for (int32_t choice = 0; choice < r->choices; choice++) {
        uint64_t at = (r->handle - 1) * CHOICES + (uint64_t)choice;
        const struct answer *w = &want[at];
        int32_t count = (int32_t)((r->handle * 7 + (uint64_t)choice * 5) % ((uint64_t)w->count + 1));
        for (int32_t t = 0; t < count; t++, total++) {
            ids[total] = answers[at].id[t] = w->id[t];
            answers[at].logprobs[t] = w->logprobs[t];
        }
        counts[choice] = answers[at].count = count;
    }
    r->delivered = ids;
    r->delivered_tokens = counts;
}

/* `want`: the reference's answers; NULL for the reference. */
static void run_requests(struct engine_group *g, const struct cell *c, const struct request *requests,
                         const struct answer *want, struct answer *answers)
{
    bool late = cell_is(c, "arrival", "late"), decoys = cell_is(c, "company", "decoys");
    int all = all_choices(requests), most = late ? 5 : all;
    int sent = 0, begun = 0, ended = 0, decoy = 0;
    while (ended < all) {
        for (; sent < REQUESTS && begun - ended < most; sent++) {
            int i = late ? REQUESTS - 1 - sent : sent;
            struct sequence_request r = requests[i].r;
            r.priority = cell_is(c, "priority", "mixed") ? i % 3 - 1 : 0;
            if (cell_is(c, "begun", "elsewhere"))
                begin_elsewhere(&r, want, answers);
            engine_group_submit(g, &r);
            begun += r.choices;
            if (decoys && sent % 2 && decoy < DECOYS)
                send_decoy(g, requests, decoy++);
        }
        struct event e = engine_group_next(g);
        note(answers, &e);
        ended += e.kind != EVENT_TOKEN && e.handle <= REQUESTS;
    }
    for (; decoy > 0; decoy--)
        engine_group_cancel(g, 1000 + (uint64_t)decoy - 1);
}

static void open_cell(struct engine_group *g, const char *path, const struct cell *c, int class)
{
    static char word[DIMENSIONS][64];
    const char *words[64] = {"--context", CONTEXT};
    int count = 2;
    for (size_t i = 0; i < ARRAY_LEN(classes[class]); i++)
        words[count++] = classes[class][i];
    for (int d = 0; d < DIMENSIONS; d++)
        if (dimensions[d].name[0] == '-') {
            /* One word, so that a flag can be off too. */
            snprintf(word[d], sizeof(word[d]), "%s=%s", dimensions[d].name,
                     dimensions[d].values[c->value[d]]);
            words[count++] = word[d];
        }
    int32_t pages = 0;
    if (cell_is(c, "pages", "few"))
        pages = (LONGEST + MOST) / atoi(cell_value(c, "--page-tokens")) + 1;
    engine_group_open(g, path, atoi(cell_value(c, "stages")), pages, words, count);
    for (int32_t id = 0; id < g->engine.limits.vocab; id++)
        g->is_end[id] = id == 2 || id % 97 == 40;
}

/* What the cells did besides: a matrix whose cells reuse, preempt or accept nothing shows nothing. */
static struct serve_stats total;

static void add_stats(const struct serve_stats *s)
{
    CHECK_INT(s->running, 0);
    CHECK_INT(s->waiting, 0);
    CHECK_INT(s->pages_used, 0);
    CHECK(s->accepted_tokens <= s->drafted_tokens);
    total.prefix_hits += s->prefix_hits;
    total.preemptions += s->preemptions;
    total.drafted_tokens += s->drafted_tokens;
    total.accepted_tokens += s->accepted_tokens;
}

static void run_cell(const char *path, const struct cell *c, int class, const struct request *requests,
                     const struct answer *want, struct answer *answers)
{
    struct engine_group g;
    memset(answers, 0, ANSWERS * sizeof(*answers));
    open_cell(&g, path, c, class);
    engine_group_start(&g);
    run_requests(&g, c, requests, want, answers);
    if (cell_is(c, "asked", "twice")) {
        memset(answers, 0, ANSWERS * sizeof(*answers));
        run_requests(&g, c, requests, want, answers);
    }
    struct serve_stats stats = engine_group_close(&g);
    add_stats(&stats);
}

/* ---- the comparison ----------------------------------------------------------------------------------- */

/* The first token in which they differ, or the length of the shorter. */
static int32_t same_tokens(const struct answer *a, const struct answer *b)
{
    int32_t t = 0;
    while (t < a->count && t < b->count && t < MOST && a->id[t] == b->id[t] &&
           a->logprobs[t] == b->logprobs[t])
        t++;
    return t;
}

static bool same(const struct answer *a, const struct answer *b)
{
    return a->count == b->count && a->kind == b->kind && a->reason == b->reason && a->ended == b->ended &&
           same_tokens(a, b) == a->count;
}

static void compare(const char *model, const char *cell, const struct answer *want, const struct answer *got)
{
    int shown = 0;
    for (int i = 0; i < ANSWERS; i++) {
        const struct answer *w = &want[i], *a = &got[i];
        if (same(w, a))
            continue;
        test_failures++;
        if (shown++ >= SHOWN)
            continue;
        int32_t t = same_tokens(w, a);
        int32_t ours = t < a->count ? a->id[t] : -1, alone = t < w->count ? w->id[t] : -1;
        printf("# %s [%s]: request %d, choice %d, index %d: id %d of %d, alone id %d of %d%s\n", model, cell,
               i / CHOICES, i % CHOICES, t, ours, a->count, alone, w->count,
               ours == alone ? ", with other log-probabilities or another end" : "");
    }
    if (shown > SHOWN)
        printf("# %s [%s]: %d answers differ\n", model, cell, shown);
}

/* The reference must be worth comparing with: many different tokens, every kind of end. */
static void check_reference(const struct answer *want)
{
    int stops = 0, lengths = 0, tokens = 0, same_as_first = 0;
    for (int i = 0; i < ANSWERS; i++) {
        if (!want[i].ended)
            continue; /* fewer choices were asked for */
        CHECK_INT(want[i].kind, EVENT_DONE);
        stops += want[i].reason == FINISH_STOP;
        lengths += want[i].reason == FINISH_LENGTH;
        tokens += want[i].count;
        same_as_first += i > 0 && same(&want[i], &want[0]);
    }
    CHECK(lengths > 20 && tokens > 15 * REQUESTS && same_as_first == 0);
    printf("# reference: %d tokens, %d ended by an end token\n", tokens, stops);
}

static int mixed = MIXED;
static bool whole_product;

static int value_count(int d)
{
    int n = 0;
    while (n < (int)ARRAY_LEN(dimensions[d].values) && dimensions[d].values[n])
        n++;
    return n;
}

/* The n-th cell after the reference: each value alone, in a batch (by itself a sequence is never preempted,
 * say), then mixtures, or the whole product; false behind the last. */
static bool nth_cell(int n, struct cell *c)
{
    *c = (struct cell){0};
    if (whole_product) {
        for (int d = 0; d < DIMENSIONS; d++) {
            c->value[d] = n % value_count(d);
            n /= value_count(d);
        }
        return n == 0;
    }
    for (int d = 0; d < DIMENSIONS; d++) {
        if (n < value_count(d) - 1) {
            c->value[0] = BUSY;
            c->value[d] = n + 1;
            return true;
        }
        n -= value_count(d) - 1;
    }
    unsigned long long random = 4711 + (unsigned long long)n;
    for (int d = 0; d < DIMENSIONS; d++)
        c->value[d] = (int)(test_random(&random) % (unsigned long long)value_count(d));
    return n < mixed;
}

static void run_matrix(const char *path, const char *model)
{
    static struct request requests[REQUESTS];
    static struct answer want[ANSWERS], got[ANSWERS];
    struct cell c = {0};
    struct engine_group g;
    open_cell(&g, path, &c, 0);
    make_requests(requests, g.engine.limits.vocab);
    engine_group_start(&g);
    engine_group_close(&g);
    int cells = 0, failed = 0;
    for (int which = 0; which < (int)ARRAY_LEN(classes); which++) {
        if (strcmp(classes[which][3], "q8_0") == 0 && g.params.head_length % 32)
            continue; /* a head is whole blocks */
        memset(&c, 0, sizeof(c));
        run_cell(path, &c, which, requests, NULL, want);
        check_reference(want);
        /* The other classes differ in kernels that have their own tests: every sixth cell is enough. */
        for (int n = which ? 2 * which : 0; nth_cell(n, &c); n += whole_product || !which ? 1 : 6) {
            char name[256];
            int before = test_failures;
            run_cell(path, &c, which, requests, want, got);
            compare(model, cell_name(&c, which, name), want, got);
            cells++;
            failed += test_failures > before;
        }
    }
    printf(
        "# %s: %d cells of %d requests, %d failed; %llu prompt tokens found in the cache, %llu preemptions, "
        "%llu tokens drafted, %llu accepted\n",
        model, cells, REQUESTS, failed, (unsigned long long)total.prefix_hits,
        (unsigned long long)total.preemptions, (unsigned long long)total.drafted_tokens,
        (unsigned long long)total.accepted_tokens);
    CHECK(total.prefix_hits > 1000 && total.preemptions > 0);
    CHECK(total.accepted_tokens > 20 && total.drafted_tokens > total.accepted_tokens);
    total = (struct serve_stats){0};
}

static void run_tiny(enum dtype dtype, const char *name)
{
    /* Two blocks of every type in a row, so that rows of two tensor slots can be cut. */
    int64_t row = 2 * dtype_info(dtype)->block_elements > 256 ? 512 : 256;
    const struct tiny_shape shape = {.layers = 3,
                                     .embed = row,
                                     .ffn = row,
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .vocab = 384,
                                     .context = 512,
                                     .dtype = dtype};
    char path[64];
    snprintf(path, sizeof(path), "/tmp/lepton-test-exact-%d.gguf", (int)getpid());
    tiny_model_write(path, &shape);
    run_matrix(path, name);
    unlink(path);
}

static void test_stories(void)
{
    const char *path = test_shared("data/lm/stories260K/stories260K.gguf");
    char copy[4096];
    if (!path)
        SKIP("the shared stories260K model is not here");
    snprintf(copy, sizeof(copy), "%s", path);
    run_matrix(copy, "stories260K");
}

static void test_q8_0(void)
{
    run_tiny(DTYPE_Q8_0, "random q8_0");
}

static void test_q4_k(void)
{
    run_tiny(DTYPE_Q4_K, "random q4_k");
}

static void test_bf16(void)
{
    run_tiny(DTYPE_BF16, "random bf16");
}

static const char *given; /* on the command line */

static void test_given(void)
{
    run_matrix(given, given);
}

int main(int argc, char **argv)
{
    int models = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--all") == 0) {
            whole_product = true;
        } else if (strcmp(argv[i], "--mixed") == 0 && i + 1 < argc) {
            mixed = atoi(argv[++i]);
        } else {
            given = argv[i];
            models++;
            TEST(test_given, given);
        }
    }
    if (models)
        return test_result();
    TEST(test_stories, "stories260K gives the same tokens in every cell of the matrix");
    TEST(test_q8_0, "a random model in Q8_0 gives the same tokens in every cell of the matrix");
    TEST(test_q4_k, "a random model in Q4_K gives the same tokens in every cell of the matrix");
    TEST(test_bf16, "a random model in BF16 gives the same tokens in every cell of the matrix");
    return test_result();
}
