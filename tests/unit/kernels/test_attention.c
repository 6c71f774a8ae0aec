#include "tests/unit/kernels/rig.h"

enum { HEADS = 6, KV_HEADS = 2, SEQUENCES = 3, LONGEST_HEAD = 128 };
static int HEAD_LENGTH = 20; /* no multiple of a register */

static int LENGTHS[SEQUENCES] = {1, 37, 150}; /* the last is the longest */
/* Windows that begin and end within blocks and pages, at their edges, and beyond every sequence. */
static const struct attention_options OPTIONS[] = {{.scale = 0.2236f},
                                                   {.scale = 0.2236f, .softcap = 1.5f},
                                                   {.scale = 0.2236f, .window = 1},
                                                   {.scale = 0.2236f, .window = 16},
                                                   {.scale = 0.2236f, .window = 21, .softcap = 2.0f},
                                                   {.scale = 0.2236f, .window = 1000}};

/* Three sequences and the numbers of all their rows, sequence after sequence. */
struct story {
    struct tensor q, k, v; /* [rows, heads, D] */
    int rows;
    int begin[SEQUENCES + 1];
};

static void story_fill(struct story *s, struct rig *r)
{
    memset(s, 0, sizeof(*s));
    for (int i = 0; i < SEQUENCES; i++)
        s->begin[i + 1] = s->begin[i] + LENGTHS[i];
    s->rows = s->begin[SEQUENCES];
    s->q = RIG_F32(r, s->rows, HEADS, HEAD_LENGTH);
    s->k = RIG_F32(r, s->rows, KV_HEADS, HEAD_LENGTH);
    s->v = RIG_F32(r, s->rows, KV_HEADS, HEAD_LENGTH);
    rig_random(r, &s->q);
    rig_random(r, &s->k);
    rig_random(r, &s->v);
    for (int64_t i = 0; i < tensor_elements(&s->q); i++)
        floats(&s->q)[i] *= 8.0f;
}

/* Pages in a shuffled order, so that a wrong table shows. */
struct cache {
    struct tensor k, v, table;
    int page_tokens, columns;
};

static void cache_make(struct cache *c, struct rig *r, enum dtype type, int page_tokens)
{
    c->page_tokens = page_tokens;
    c->columns = (LENGTHS[SEQUENCES - 1] + page_tokens - 1) / page_tokens;
    int pages = c->columns * SEQUENCES;
    const int64_t dim[4] = {pages, page_tokens, KV_HEADS, HEAD_LENGTH};
    c->k = rig_tensor(r, type, 4, dim);
    c->v = rig_tensor(r, type, 4, dim);
    c->table = RIG_I32(r, SEQUENCES, c->columns);
    for (int i = 0; i < pages; i++)
        ints(&c->table)[i] = i;
    for (int i = pages - 1; i > 0; i--) {
        int j = (int)(test_random(&r->random) % (unsigned)(i + 1)), swap = ints(&c->table)[i];
        ints(&c->table)[i] = ints(&c->table)[j];
        ints(&c->table)[j] = swap;
    }
}

/* Runs one step that holds rows [from[s], to[s]) of each sequence; sequence s uses slot (s + 1) mod 3. */
static void run_step(struct rig *r, const struct story *s, struct cache *c, const int *from, const int *to,
                     const struct attention_options *options, struct tensor *out)
{
    int rows = 0;
    for (int i = 0; i < SEQUENCES; i++)
        rows += to[i] - from[i];
    struct tensor q = RIG_F32(r, rows, HEADS, HEAD_LENGTH), o = RIG_F32(r, rows, HEADS, HEAD_LENGTH);
    struct tensor k = RIG_F32(r, rows, KV_HEADS, HEAD_LENGTH), v = RIG_F32(r, rows, KV_HEADS, HEAD_LENGTH);
    struct seq_view view = {.row_begin = RIG_I32(r, SEQUENCES + 1),
                            .positions = RIG_I32(r, rows),
                            .slots = RIG_I32(r, SEQUENCES),
                            .page_table = c->table,
                            .page_tokens = c->page_tokens};
    for (int i = 0, row = 0; i < SEQUENCES; i++) {
        ints(&view.row_begin)[i] = row;
        ints(&view.slots)[i] = (i + 1) % SEQUENCES;
        for (int p = from[i]; p < to[i]; p++, row++) {
            struct tensor one;
            ints(&view.positions)[row] = p;
#define COPY_ROW(name)                               \
    one = tensor_rows(&s->name, s->begin[i] + p, 1); \
    memcpy(tensor_rows(&name, row, 1).data, one.data, tensor_bytes(&one))
            COPY_ROW(q);
            COPY_ROW(k);
            COPY_ROW(v);
        }
        ints(&view.row_begin)[i + 1] = row;
    }
    kernel_kv_store(r->stream, &c->k, &c->v, &k, &v, &view);
    kernel_attention(r->stream, &o, &q, &c->k, &c->v, &view, options);
    for (int i = 0, row = 0; i < SEQUENCES; i++)
        for (int p = from[i]; p < to[i]; p++, row++) {
            struct tensor one = tensor_rows(&o, row, 1);
            memcpy(tensor_rows(out, s->begin[i] + p, 1).data, one.data, tensor_bytes(&one));
        }
}

/* The whole story in steps of at most `chunk` rows of each sequence. */
static struct tensor run_story(struct rig *r, const struct story *s, enum dtype type, int page_tokens,
                               int chunk, const struct attention_options *options)
{
    struct cache c;
    struct tensor out = RIG_F32(r, s->rows, HEADS, HEAD_LENGTH);
    cache_make(&c, r, type, page_tokens);
    int from[SEQUENCES] = {0}, to[SEQUENCES], left;
    do {
        left = 0;
        for (int i = 0; i < SEQUENCES; i++) {
            to[i] = from[i] + chunk < LENGTHS[i] ? from[i] + chunk : LENGTHS[i];
            left += LENGTHS[i] - to[i];
        }
        run_step(r, s, &c, from, to, options, &out);
        memcpy(from, to, sizeof(from));
    } while (left > 0);
    return out;
}

/* One head's key or value as it comes back from a page. */
static void as_stored(enum dtype type, const float *from, float *to)
{
    char page[LONGEST_HEAD * sizeof(float)];
    dtype_from_f32(type, from, page, (uint64_t)HEAD_LENGTH);
    dtype_to_f32(type, page, to, (uint64_t)HEAD_LENGTH);
}

/* What pages may hold with heads of this length; Q8_0 wants whole blocks. */
static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};

static void check_against_double(const struct story *s, const struct tensor *out, enum dtype type,
                                 const struct attention_options *options)
{
    int wrong = 0;
    for (int i = 0; i < SEQUENCES; i++)
        for (int p = 0; p < LENGTHS[i]; p++)
            for (int h = 0; h < HEADS; h++) {
                const float *q = floats(&s->q) + ((s->begin[i] + p) * HEADS + h) * HEAD_LENGTH;
                double sum = 0.0, o[LONGEST_HEAD] = {0};
                int oldest = options->window && options->window <= p ? p + 1 - (int)options->window : 0;
                for (int j = oldest; j <= p; j++) {
                    int64_t row = ((s->begin[i] + j) * KV_HEADS + h / (HEADS / KV_HEADS)) * HEAD_LENGTH;
                    double score = 0.0;
                    float k[LONGEST_HEAD], v[LONGEST_HEAD];
                    as_stored(type, floats(&s->k) + row, k);
                    as_stored(type, floats(&s->v) + row, v);
                    for (int d = 0; d < HEAD_LENGTH; d++)
                        score += (double)q[d] * (double)k[d];
                    score *= (double)options->scale;
                    if (options->softcap > 0)
                        score = (double)options->softcap * tanh(score / (double)options->softcap);
                    double weight = exp(score);
                    sum += weight;
                    for (int d = 0; d < HEAD_LENGTH; d++)
                        o[d] += weight * (double)v[d];
                }
                const float *got = floats(out) + ((s->begin[i] + p) * HEADS + h) * HEAD_LENGTH;
                for (int d = 0; d < HEAD_LENGTH; d++)
                    wrong += !(fabs(got[d] - o[d] / sum) <= 1.5e-7 * HEAD_LENGTH); /* scores add up */
            }
    CHECK_INT(wrong, 0);
}

static void test_attention_follows_the_definition(void)
{
    for (size_t i = 0; i < ARRAY_LEN(TYPES); i++)
        for (size_t o = 0; o < ARRAY_LEN(OPTIONS); o++) {
            struct rig r;
            struct story s;
            rig_open(&r, 2);
            story_fill(&s, &r);
            if (kernel_kv_available(r.device, TYPES[i], HEAD_LENGTH)) {
                struct tensor out = run_story(&r, &s, TYPES[i], 16, 1000, &OPTIONS[o]);
                check_against_double(&s, &out, TYPES[i], &OPTIONS[o]);
            }
            rig_close(&r);
        }
}

static void check_pages_chunks_and_threads(const struct attention_options *options)
{
    static const int PAGES[] = {1, 4, 16, 33}, CHUNKS[] = {1, 7, 16, 1000};
    for (size_t type = 0; type < ARRAY_LEN(TYPES); type++) {
        struct rig keeper;
        struct tensor first = {0};
        if (TYPES[type] == DTYPE_Q8_0 && HEAD_LENGTH % Q8_0_BLOCK)
            continue;
        rig_open(&keeper, 1);
        for (int threads = 1; threads <= 3; threads++)
            for (size_t p = 0; p < ARRAY_LEN(PAGES); p++)
                for (size_t c = 0; c < ARRAY_LEN(CHUNKS); c++) {
                    struct rig r;
                    struct story s;
                    rig_open(&r, threads);
                    story_fill(&s, &r); /* the same numbers every time */
                    struct tensor out = run_story(&r, &s, TYPES[type], PAGES[p], CHUNKS[c], options);
                    if (!first.data) {
                        first = RIG_F32(&keeper, s.rows, HEADS, HEAD_LENGTH);
                        memcpy(first.data, out.data, tensor_bytes(&out));
                    }
                    CHECK(same_bits(&first, &out));
                    rig_close(&r);
                }
        rig_close(&keeper);
    }
}

static void test_pages_chunks_and_threads_do_not_show(void)
{
    check_pages_chunks_and_threads(&OPTIONS[0]);
}

static void test_nor_do_they_under_a_window_and_a_cap(void)
{
    check_pages_chunks_and_threads(&OPTIONS[4]);
}

static void test_packed_documents_give_the_bits_of_pages(void)
{
    struct rig r;
    struct story s;
    rig_open(&r, 2);
    story_fill(&s, &r);
    struct tensor paged = run_story(&r, &s, DTYPE_F32, 4, 7, &OPTIONS[4]),
                  packed = RIG_F32(&r, s.rows, HEADS, HEAD_LENGTH);
    struct seq_view view = {.row_begin = RIG_I32(&r, SEQUENCES + 1), .positions = RIG_I32(&r, s.rows)};
    for (int i = 0; i < SEQUENCES; i++)
        for (int p = 0; p < LENGTHS[i]; p++)
            ints(&view.positions)[s.begin[i] + p] = p;
    memcpy(view.row_begin.data, s.begin, sizeof(s.begin));
    kernel_attention(r.stream, &packed, &s.q, &s.k, &s.v, &view, &OPTIONS[4]);
    CHECK(same_bits(&packed, &paged));
    rig_close(&r);
}

static void test_nan_reaches_later_rows_alone(void)
{
    struct rig r;
    struct story s;
    rig_open(&r, 1);
    story_fill(&s, &r);
    /* KV head 0: a key of one sequence, a value of another */
    int key = s.begin[1] + 20, value = s.begin[2] + 75;
    floats(&s.k)[key * KV_HEADS * HEAD_LENGTH + 2] = NAN;
    floats(&s.v)[value * KV_HEADS * HEAD_LENGTH] = NAN;
    struct tensor out = run_story(&r, &s, DTYPE_F32, 16, 1000, &OPTIONS[0]);
    for (int row = 0; row < s.rows; row++) {
        bool sees = (row >= key && row < s.begin[2]) || row >= value;
        CHECK(!isnan(floats(&out)[row * HEADS * HEAD_LENGTH]) == !sees);
        CHECK(!isnan(floats(&out)[(row * HEADS + HEADS - 1) * HEAD_LENGTH])); /* KV head 1 */
    }
    rig_close(&r);
}

/* Long enough that a fast set computes the rows of several blocks of keys together, and that blocks have rows
 * before, in and behind what they see of a window. */
static void test_long_chunks_do_not_show(void)
{
    static const struct attention_options HOW[] = {
        {.scale = 0.25f}, {.scale = 0.25f, .window = 1}, {.scale = 0.25f, .window = 100}};
    const int kept[SEQUENCES] = {LENGTHS[0], LENGTHS[1], LENGTHS[2]}, kept_head = HEAD_LENGTH;
    memcpy(LENGTHS, (int[SEQUENCES]){500, 37, 900}, sizeof(LENGTHS));
    HEAD_LENGTH = 16;
    for (size_t o = 0; o < ARRAY_LEN(HOW); o++) {
        struct rig r;
        struct story s;
        rig_open(&r, 1);
        story_fill(&s, &r);
        struct tensor whole = run_story(&r, &s, DTYPE_F16, 16, 1000, &HOW[o]),
                      pieces = run_story(&r, &s, DTYPE_F16, 16, 61, &HOW[o]);
        CHECK(same_bits(&whole, &pieces));
        check_against_double(&s, &whole, DTYPE_F16, &HOW[o]);
        rig_close(&r);
    }
    HEAD_LENGTH = kept_head;
    memcpy(LENGTHS, kept, sizeof(LENGTHS));
}

static void test_pages_move_in_order(void)
{
    struct rig r;
    rig_open(&r, 1);
    const int64_t P = 5, elements = 3 * 2 * 7;
    struct tensor pages = rig_tensor(&r, DTYPE_F16, 4, (int64_t[]){P, 3, 2, 7}), moves = RIG_I32(&r, 5, 2);
    uint16_t *data = pages.data;
    for (int64_t i = 0; i < P * elements; i++)
        data[i] = (uint16_t)(1 + i / elements);
    /* 1 <- 0; 2 <- 1 (what just came from 0); 0 zeroed; 4 <- 0 (zero); 3 onto itself */
    memcpy(moves.data, (int32_t[]){0, 1, 1, 2, -1, 0, 0, 4, 3, 3}, 10 * sizeof(int32_t));
    kernel_move_pages(r.stream, &pages, &moves);
    const uint16_t expected[5] = {0, 1, 1, 4, 0};
    for (int64_t i = 0; i < P * elements; i++)
        CHECK_INT(data[i], expected[i / elements]);
    struct tensor none = tensor_rows(&moves, 0, 0);
    kernel_move_pages(r.stream, &pages, &none);
    rig_close(&r);
}

/* Heads that Q8_0 has room in. */
static void test_block_types_follow_it_too(void)
{
    HEAD_LENGTH = 64;
    test_attention_follows_the_definition();
    test_pages_chunks_and_threads_do_not_show();
    HEAD_LENGTH = 20;
}

static bool is_here(const char *set)
{
    struct device *device = NULL;
    struct err err;
    bool here =
        device_open(&device, "cpu", &(struct device_options){.threads = 1, .kernels = set}, &err) == 0;
    device_close(&device);
    return here;
}

/* AVX2 has the bits of AVX-512: over pages of every type, in chunks and alone, with windows and caps. */
static void test_sets_have_the_same_bits(void)
{
    static const int LENGTH[] = {64, 20, 3, 112};
    if (!is_here("avx2") || !is_here("avx512vnni"))
        return;
    for (size_t n = 0; n < ARRAY_LEN(LENGTH); n++)
        for (size_t o = 0; o < ARRAY_LEN(OPTIONS); o++)
            for (size_t t = 0; t < ARRAY_LEN(TYPES); t++) {
                struct rig r[2];
                struct tensor out[2];
                HEAD_LENGTH = LENGTH[n];
                if (TYPES[t] == DTYPE_Q8_0 && HEAD_LENGTH % 32)
                    continue;
                for (int set = 0; set < 2; set++) {
                    struct story s;
                    rig_kernels = set ? "avx512vnni" : "avx2";
                    rig_open(&r[set], 2);
                    story_fill(&s, &r[set]);
                    out[set] = run_story(&r[set], &s, TYPES[t], 16, 1 + 40 * (int)(o % 2), &OPTIONS[o]);
                }
                CHECK(memcmp(out[0].data, out[1].data, tensor_bytes(&out[0])) == 0);
                rig_close(&r[0]);
                rig_close(&r[1]);
            }
    HEAD_LENGTH = 20;
}

/* The same behaviours of a fast set, at head lengths of whole registers and others. */
static void run_fast(const char *set, const char *name)
{
    static const int LENGTH[] = {16, 48, 64, 112, 20, 3, 128};
    char sentence[200];
    rig_kernels = set;
    snprintf(sentence, sizeof(sentence), "%s: chunks of many blocks do not show in any bit", name);
    TEST(test_long_chunks_do_not_show, sentence);
    for (size_t i = 0; i < ARRAY_LEN(LENGTH); i++) {
        HEAD_LENGTH = LENGTH[i];
#define FAST(function, words)                                                              \
    snprintf(sentence, sizeof(sentence), "%s, heads of %d: %s", name, HEAD_LENGTH, words); \
    TEST(function, sentence)
        FAST(test_attention_follows_the_definition, "attention follows the definition");
        FAST(test_pages_chunks_and_threads_do_not_show, "pages, chunks and threads do not show in any bit");
        FAST(test_nor_do_they_under_a_window_and_a_cap, "nor do they under a window and a cap");
        FAST(test_packed_documents_give_the_bits_of_pages, "packed documents give the bits of pages");
        FAST(test_nan_reaches_later_rows_alone, "NaN in a key or value reaches the rows that see it alone");
    }
}

int main(void)
{
    TEST(test_attention_follows_the_definition, "attention follows the definition over pages of every type");
    TEST(test_pages_chunks_and_threads_do_not_show, "pages, chunks and threads do not show in any bit");
    TEST(test_nor_do_they_under_a_window_and_a_cap, "nor do they under a window and a cap");
    TEST(test_packed_documents_give_the_bits_of_pages, "packed documents give the bits of pages");
    TEST(test_nan_reaches_later_rows_alone,
         "NaN in a key or value reaches the rows that see it and no others");
    TEST(test_long_chunks_do_not_show, "chunks of many blocks do not show in any bit");
    TEST(test_pages_move_in_order, "pages are copied and zeroed in order");
    TEST(test_block_types_follow_it_too, "with heads of whole blocks so do pages of block types");
    if (is_here("avx2"))
        run_fast("avx2", "AVX2");
    run_fast("auto", "the fastest set");
    TEST(test_sets_have_the_same_bits, "AVX2 has the bits of AVX-512");
    return test_result();
}
