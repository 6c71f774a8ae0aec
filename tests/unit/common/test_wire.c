#include "common/wire.h"

#include <msgpack.h>
#include <sys/wait.h>

#include "common/wire_schema.h"
#include "tests/test.h"

/* ---- random messages, made by walking the schema ---- */

static void *at(const void *base, uint32_t offset)
{
    return (char *)base + offset;
}

static uint64_t random_uint(const struct wire_field *f, unsigned long long *seed)
{
    uint64_t span = f->max - f->min;
    switch (test_random(seed) % 5) {
    case 0:
        return f->min;
    case 1:
        return f->max;
    case 2: /* small numbers, where msgpack changes its encoding */
        return f->min + test_random(seed) % (span < 300 ? span + 1 : 300);
    default:
        return span == UINT64_MAX ? test_random(seed) : f->min + test_random(seed) % (span + 1);
    }
}

static struct wire_str random_string(const struct wire_field *f, unsigned long long *seed)
{
    static const char *const pieces[] = {"a", "Z", "0", ".",        "_",
                                         ":", "-", " ", "\xC3\xA9", "\xF0\x9F\x98\x80"};
    size_t count = f->kind == WIRE_KIND_ID ? 7 : ARRAY_LEN(pieces);
    uint64_t want = f->min + test_random(seed) % 60;
    struct buffer b = {0};
    if (f->choices) {
        const char *word = f->choices;
        for (uint64_t skip = test_random(seed) % 3; skip && strchr(word, '|'); skip--)
            word = strchr(word, '|') + 1;
        buffer_append(&b, word, strcspn(word, "|"));
        return (struct wire_str){(char *)b.data, (uint32_t)b.size};
    }
    while (b.size < want) {
        const char *piece = pieces[test_random(seed) % count];
        if (f->kind == WIRE_KIND_TEXT && test_random(seed) % 8 == 0)
            buffer_append(&b, "\0", 1);
        else if (b.size + strlen(piece) <= f->max)
            buffer_append(&b, piece, strlen(piece));
        else
            break;
    }
    return (struct wire_str){(char *)b.data, (uint32_t)b.size};
}

static void random_record(const struct wire_record *r, void *base, unsigned long long *seed);

static void random_value(const struct wire_field *f, void *base, unsigned long long *seed)
{
    void *value = at(base, f->offset);
    if (f->kind == WIRE_KIND_UINT) {
        *(uint64_t *)value = random_uint(f, seed);
        if (f->has_flag)
            *(bool *)at(base, f->side_offset) = true;
    } else if (f->kind == WIRE_KIND_FLOAT) {
        double part = (double)(test_random(seed) >> 11) / 9007199254740992.0;
        *(double *)value = f->float_max - part * (f->float_max - f->float_min);
    } else if (f->kind == WIRE_KIND_BOOL) {
        *(bool *)value = test_random(seed) & 1;
    } else if (f->kind == WIRE_KIND_ARRAY) {
        uint32_t count = (uint32_t)(f->min + test_random(seed) % 4);
        char *elements = xcalloc(count + 1, f->element->bytes);
        for (uint32_t i = 0; i < count; i++)
            random_record(f->element, elements + (size_t)i * f->element->bytes, seed);
        *(void **)value = elements;
        *(uint32_t *)at(base, f->side_offset) = count;
    } else if (f->kind == WIRE_KIND_IDS) {
        uint32_t count = (uint32_t)(test_random(seed) % 300), *ids = xcalloc(count + 1, sizeof(*ids));
        for (uint32_t i = 0; i < count; i++)
            ids[i] = (uint32_t)test_random(seed);
        *(void **)value = ids;
        *(uint32_t *)at(base, f->side_offset) = count;
    } else {
        *(struct wire_str *)value = random_string(f, seed);
    }
}

static void random_record(const struct wire_record *r, void *base, unsigned long long *seed)
{
    for (uint32_t i = 0; i < r->field_count; i++) {
        const struct wire_field *f = &r->fields[i];
        if (f->required || test_random(seed) & 1)
            random_value(f, base, seed);
        else if (f->kind == WIRE_KIND_UINT) /* array elements have not been through wire_init */
            *(uint64_t *)at(base, f->offset) = f->standard;
    }
}

static void release_record(const struct wire_record *r, void *base)
{
    for (uint32_t i = 0; i < r->field_count; i++) {
        const struct wire_field *f = &r->fields[i];
        void *value = at(base, f->offset);
        if (f->kind == WIRE_KIND_ARRAY) {
            char *elements = *(char **)value;
            uint32_t count = *(uint32_t *)at(base, f->side_offset);
            for (uint32_t k = 0; k < count; k++)
                release_record(f->element, elements + (size_t)k * f->element->bytes);
            free(elements);
        } else if (f->kind == WIRE_KIND_IDS) {
            free(*(void **)value);
        } else if (f->kind == WIRE_KIND_ID || f->kind == WIRE_KIND_STRING || f->kind == WIRE_KIND_TEXT) {
            free((void *)((struct wire_str *)value)->data);
        }
    }
}

static bool same_record(const struct wire_record *r, const void *a, const void *b)
{
    for (uint32_t i = 0; i < r->field_count; i++) {
        const struct wire_field *f = &r->fields[i];
        const void *x = at(a, f->offset), *y = at(b, f->offset);
        bool same = true;
        if (f->has_flag && *(bool *)at(a, f->side_offset) != *(bool *)at(b, f->side_offset))
            same = false;
        else if (f->kind == WIRE_KIND_UINT)
            same = *(const uint64_t *)x == *(const uint64_t *)y;
        else if (f->kind == WIRE_KIND_FLOAT)
            same = *(const double *)x == *(const double *)y;
        else if (f->kind == WIRE_KIND_BOOL)
            same = *(const bool *)x == *(const bool *)y;
        else if (f->kind == WIRE_KIND_ARRAY) {
            uint32_t n = *(uint32_t *)at(a, f->side_offset);
            same = n == *(uint32_t *)at(b, f->side_offset);
            for (uint32_t k = 0; same && k < n; k++)
                same = same_record(f->element, *(char *const *)x + (size_t)k * f->element->bytes,
                                   *(char *const *)y + (size_t)k * f->element->bytes);
        } else if (f->kind == WIRE_KIND_IDS) {
            uint32_t n = *(uint32_t *)at(a, f->side_offset);
            same = n == *(uint32_t *)at(b, f->side_offset) &&
                   (n == 0 || memcmp(*(void *const *)x, *(void *const *)y, n * sizeof(uint32_t)) == 0);
        } else {
            same = wire_str_equal(*(const struct wire_str *)x, *(const struct wire_str *)y);
        }
        if (!same) {
            printf("# %s.%s differs\n", r->name, f->name);
            return false;
        }
    }
    return true;
}

static void test_round_trip_of_every_type(void)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    unsigned long long seed = 1;
    CHECK_INT(count, 19);
    for (size_t i = 0; i < count; i++) {
        for (int round = 0; round < 200; round++) {
            struct wire_message m, back;
            struct buffer frame = {0};
            struct err err;
            wire_init(&m, records[i].type);
            random_record(&records[i], &m.generate, &seed);
            wire_encode(&m, &frame);
            int rc = wire_decode(&back, frame.data, frame.size, &err);
            if (rc < 0)
                printf("# %s\n", err.message);
            CHECK_INT(rc, 0);
            memset(frame.data, 0xEE, frame.size); /* the frame may be reused: nothing points into it */
            CHECK_INT(back.type, m.type);
            CHECK(rc == 0 && same_record(&records[i], &m.generate, &back.generate));
            wire_release(&back);
            release_record(&records[i], &m.generate);
            buffer_release(&frame);
        }
    }
}

static void test_defaults_are_not_sent(void)
{
    struct wire_message m, back;
    struct buffer frame = {0};
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string("r1");
    m.generate.prompt = wire_string("hi");
    wire_encode(&m, &frame);
    /* [1, 1, {"request": "r1", "prompt": "hi"}] */
    static const char expected[] = "\x93\x01\x01\x82\xA7request\xA2r1\xA6prompt\xA2hi";
    CHECK_INT(frame.size, sizeof(expected) - 1);
    CHECK(frame.size == sizeof(expected) - 1 && memcmp(frame.data, expected, frame.size) == 0);
    CHECK_INT(wire_decode(&back, frame.data, frame.size, NULL), 0);
    CHECK_INT(back.generate.max_tokens, 256);
    CHECK_NEAR(back.generate.sampling.temperature, 1, 0);
    CHECK_NEAR(back.generate.sampling.top_p, 1, 0);
    CHECK_NEAR(back.generate.sampling.repetition_penalty, 1, 0);
    CHECK(!back.generate.sampling.has_seed);
    CHECK(back.generate.model.data == NULL);
    wire_release(&back);
    buffer_release(&frame);
}

static void test_a_seed_of_zero_is_a_seed(void)
{
    struct wire_message m, back;
    struct buffer frame = {0};
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string("r1");
    m.generate.sampling.has_seed = true;
    wire_encode(&m, &frame);
    CHECK_INT(wire_decode(&back, frame.data, frame.size, NULL), 0);
    CHECK(back.generate.sampling.has_seed);
    CHECK_INT(back.generate.sampling.seed, 0);
    wire_release(&back);
    buffer_release(&frame);
}

static void test_every_truncation_is_refused(void)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    unsigned long long seed = 7;
    for (size_t i = 0; i < count; i++) {
        struct wire_message m, back;
        struct buffer frame = {0};
        wire_init(&m, records[i].type);
        random_record(&records[i], &m.generate, &seed);
        wire_encode(&m, &frame);
        for (size_t n = 0; n < frame.size; n++) {
            struct err err = {0};
            char *cut = xmalloc(n ? n : 1);
            memcpy(cut, frame.data, n);
            CHECK_INT(wire_decode(&back, cut, n, &err), -1);
            CHECK_CONTAINS(err.message, "frame: ");
            CHECK_INT(err.code, 400);
            free(cut);
        }
        buffer_append(&frame, "\xC0", 1);
        CHECK_INT(wire_decode(&back, frame.data, frame.size, NULL), -1);
        release_record(&records[i], &m.generate);
        buffer_release(&frame);
    }
}

static void test_a_frame_over_the_limit_is_refused(void)
{
    struct wire_message m;
    struct err err;
    char *frame = xcalloc(WIRE_MAX_FRAME + 1, 1);
    CHECK_INT(wire_decode(&m, frame, WIRE_MAX_FRAME + 1, &err), -1);
    CHECK_CONTAINS(err.message, "16777217 bytes, at most 16777216 are allowed");
    CHECK_INT(err.code, 413);
    free(frame);
}

static void test_the_longest_prompt_passes_and_one_more_byte_does_not(void)
{
    struct wire_message m, back;
    struct buffer frame = {0};
    struct err err;
    char *prompt = xmalloc(WIRE_MAX_PROMPT + 1);
    memset(prompt, 'a', WIRE_MAX_PROMPT + 1);
    wire_init(&m, WIRE_GENERATE);
    m.generate.request = wire_string("r");
    m.generate.prompt = (struct wire_str){prompt, WIRE_MAX_PROMPT};
    wire_encode(&m, &frame);
    CHECK_INT(wire_decode(&back, frame.data, frame.size, &err), 0);
    CHECK_INT(back.generate.prompt.size, WIRE_MAX_PROMPT);
    wire_release(&back);
    /* ... {"request": "r", "prompt": str32}: grow the length by one. */
    size_t head = frame.size - WIRE_MAX_PROMPT - 4;
    frame.data[head + 3] = 1;
    buffer_append(&frame, "a", 1);
    CHECK_INT(wire_decode(&back, frame.data, frame.size, &err), -1);
    CHECK_CONTAINS(err.message, "generate: prompt: expected a string of 0 to 8388608 bytes, found 8388609");
    free(prompt);
    buffer_release(&frame);
}

static void fill_reply(struct wire_message *m, struct wire_stage *stages, uint32_t each)
{
    wire_init(m, WIRE_STATUS_REPLY);
    m->status_reply.groups = xcalloc(WIRE_MAX_GROUPS, sizeof(struct wire_group_status));
    m->status_reply.group_count = WIRE_MAX_GROUPS;
    for (uint32_t i = 0; i < WIRE_MAX_GROUPS; i++) {
        struct wire_group_status *g = &m->status_reply.groups[i];
        g->group = wire_string("g");
        g->state = wire_string("ready");
        g->stages = stages;
        g->stage_count = each;
    }
}

static void test_the_largest_status_reply_passes(void)
{
    struct wire_message m, back;
    struct buffer frame = {0};
    struct err err;
    uint32_t each = WIRE_MAX_REPLY_STAGES / WIRE_MAX_GROUPS;
    struct wire_stage stages[WIRE_MAX_REPLY_STAGES / WIRE_MAX_GROUPS];
    for (uint32_t i = 0; i < each; i++) /* the smallest bytes for each object: the worst ratio */
        stages[i] = (struct wire_stage){.first_layer = 0, .last_layer = 1, .tensor = 1, .pid = 1};
    fill_reply(&m, stages, each);
    wire_encode(&m, &frame);
    int rc = wire_decode(&back, frame.data, frame.size, &err);
    if (rc < 0)
        printf("# %s\n", err.message);
    CHECK_INT(rc, 0);
    CHECK_INT(back.status_reply.group_count, WIRE_MAX_GROUPS);
    CHECK_INT(back.status_reply.groups[WIRE_MAX_GROUPS - 1].stage_count, each);
    wire_release(&back);
    free(m.status_reply.groups);
    buffer_release(&frame);
}

static void test_a_bomb_of_small_objects_is_over_the_budget(void)
{
    struct err err;
    struct wire_message m;
    size_t n = 1u << 20;
    uint8_t *frame = xmalloc(n);
    memset(frame, 0xC0, n);
    uint32_t count = (uint32_t)n - 5;
    frame[0] = 0xDD;
    for (int i = 0; i < 4; i++)
        frame[1 + i] = (uint8_t)(count >> (24 - 8 * i));
    CHECK_INT(wire_decode(&m, frame, n, &err), -1);
    CHECK_CONTAINS(err.message, "too many objects for a frame of 1048576 bytes");
    CHECK_INT(err.code, 400);
    free(frame);
}

#ifndef LEPTON_SANITIZE
static size_t peak_kib(void)
{
    char line[256];
    size_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "VmPeak: %zu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* An array of maps of arrays ..., as dense as the budget lets pass, in a frame of the greatest size. */
static void fill_dense(struct buffer *frame)
{
    uint64_t objects = ((16u << 20) + (uint64_t)WIRE_MAX_FRAME) / sizeof(msgpack_object) - 16;
    uint32_t count = (uint32_t)objects;
    uint8_t head[5] = {0xDD, (uint8_t)(count >> 24), (uint8_t)(count >> 16), (uint8_t)(count >> 8),
                       (uint8_t)count};
    buffer_append(frame, head, 5);
    for (uint32_t i = 0; i + 1 < count; i++)
        buffer_append(frame, "\x00", 1);
    uint32_t rest = WIRE_MAX_FRAME - (uint32_t)frame->size - 5;
    uint8_t tail[5] = {0xC6, (uint8_t)(rest >> 24), (uint8_t)(rest >> 16), (uint8_t)(rest >> 8),
                       (uint8_t)rest};
    buffer_append(frame, tail, 5);
    char *bytes = xcalloc(rest, 1);
    buffer_append(frame, bytes, rest);
    free(bytes);
}
#endif

static void test_memory_of_the_worst_frame_is_bounded(void)
{
#ifdef LEPTON_SANITIZE
    SKIP("memory is measured without sanitizers");
#else
    struct buffer frame = {0};
    fill_dense(&frame);
    CHECK_INT(frame.size, WIRE_MAX_FRAME);
    CHECK_INT(wire_scan(frame.data, frame.size, NULL), 0);
    pid_t child = fork(); /* a fresh peak */
    if (child == 0) {
        struct wire_message m;
        struct err err;
        size_t before = peak_kib();
        int rc = wire_decode(&m, frame.data, frame.size, &err);
        size_t grown = peak_kib() - before;
        printf("# %zu KiB more for a frame of %u KiB\n", grown, WIRE_MAX_FRAME >> 10);
        fflush(stdout);
        _exit(rc == -1 && grown <= 1 << 10 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
    buffer_release(&frame);
#endif
}

/* Flips of single bytes: whatever they do, decoding ends with a message or with a valid struct. */
static void test_flipped_bytes_never_break_the_decoder(void)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    unsigned long long seed = 11;
    for (size_t i = 0; i < count; i++) {
        struct wire_message m, back;
        struct buffer frame = {0}, again = {0};
        wire_init(&m, records[i].type);
        random_record(&records[i], &m.generate, &seed);
        wire_encode(&m, &frame);
        for (int round = 0; round < 400; round++) {
            size_t where = test_random(&seed) % frame.size;
            uint8_t old = frame.data[where];
            struct err err = {0};
            frame.data[where] = (uint8_t)test_random(&seed);
            if (wire_decode(&back, frame.data, frame.size, &err) == 0)
                wire_encode(&back, &again); /* asserts that every field is within its bounds */
            else
                CHECK(err.code == 400 && err.message[0]);
            wire_release(&back);
            frame.data[where] = old;
        }
        release_record(&records[i], &m.generate);
        buffer_release(&frame);
        buffer_release(&again);
    }
}

static void test_ids(void)
{
    CHECK(wire_id_valid(wire_string("a.B_9:-")));
    CHECK(!wire_id_valid(wire_string("")));
    CHECK(!wire_id_valid(wire_string("a/b")));
    CHECK(!wire_id_valid(wire_string("\xC3\xA9")));
    char longest[66];
    memset(longest, 'x', 65);
    CHECK(wire_id_valid((struct wire_str){longest, 64}));
    CHECK(!wire_id_valid((struct wire_str){longest, 65}));
}

static void test_mending_makes_text_sendable(void)
{
    char cut[] = "caf\xC3";
    CHECK(wire_str_is(wire_string_mend(cut, 100), "caf?"));
    char border[] = "ab\xC3\xA9";
    CHECK(wire_str_is(wire_string_mend(border, 3), "ab"));
    char bad[] = "\xFFok\x80";
    CHECK(wire_str_is(wire_string_mend(bad, 100), "?ok?"));
    char whole[] = "caf\xC3\xA9";
    CHECK(wire_str_is(wire_string_mend(whole, 5), "caf\xC3\xA9"));
}

static void test_strings(void)
{
    CHECK(wire_string(NULL).data == NULL);
    CHECK(wire_str_equal(wire_string(""), wire_string(NULL)));
    CHECK(wire_str_is(wire_string("abc"), "abc"));
    CHECK(!wire_str_is(wire_string("abc"), "abcd"));
    char *copy = wire_str_dup((struct wire_str){"abcdef", 3});
    CHECK_STR(copy, "abc");
    free(copy);
}

static void test_names_of_types(void)
{
    CHECK_STR(wire_type_name(WIRE_GENERATE), "generate");
    CHECK_STR(wire_type_name(WIRE_STATUS_REPLY), "status_reply");
    CHECK_STR(wire_type_name((enum wire_type)99), "?");
}

int main(void)
{
    TEST(test_round_trip_of_every_type, "random messages of every type survive the round trip");
    TEST(test_defaults_are_not_sent, "defaults are not sent and come back");
    TEST(test_a_seed_of_zero_is_a_seed, "a seed of zero is a seed");
    TEST(test_every_truncation_is_refused, "every truncation of every type is refused");
    TEST(test_a_frame_over_the_limit_is_refused, "a frame over the limit is refused");
    TEST(test_the_longest_prompt_passes_and_one_more_byte_does_not,
         "the longest prompt passes, one more byte does not");
    TEST(test_the_largest_status_reply_passes, "the largest status reply passes");
    TEST(test_a_bomb_of_small_objects_is_over_the_budget, "a bomb of small objects is over the budget");
    TEST(test_memory_of_the_worst_frame_is_bounded,
         "a frame that is full of objects costs no memory before its fields are known");
    TEST(test_flipped_bytes_never_break_the_decoder, "flipped bytes never break the decoder");
    TEST(test_ids, "ids are short and plain");
    TEST(test_mending_makes_text_sendable, "mending makes any C string sendable");
    TEST(test_strings, "strings compare and copy by their size");
    TEST(test_names_of_types, "types have names");
    return test_result();
}
