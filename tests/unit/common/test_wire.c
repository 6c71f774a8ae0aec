#include "common/wire.h"

#include <msgpack.h>
#include <sys/wait.h>

#include "common/wire_schema.h"
#include "tests/test.h"

/* ---- random messages, made by walking the schema
 * ------------------------------------------------------------ */

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
    CHECK_INT(count, 15);
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

/* ---- bad frames, written as text: a tiny assembler for msgpack
 * ------------------------------------------------ */

/* Words: {N and [N open a map or array of N, "text" a string, numbers, 1.5 floats, true false nil, xHH raw
 * bytes. Enough to write every bad frame readably. */
static void assemble(struct buffer *out, const char *text)
{
    msgpack_sbuffer sb;
    msgpack_packer p;
    msgpack_sbuffer_init(&sb);
    msgpack_packer_init(&p, &sb, msgpack_sbuffer_write);
    for (const char *s = text; *s;) {
        size_t n = strcspn(s, " ");
        if (*s == '"')
            n = strcspn(s + 1, "\"") + 2;
        if (*s == '{') {
            msgpack_pack_map(&p, strtoul(s + 1, NULL, 10));
        } else if (*s == '[') {
            msgpack_pack_array(&p, strtoul(s + 1, NULL, 10));
        } else if (*s == '"') {
            msgpack_pack_str(&p, n - 2);
            msgpack_pack_str_body(&p, s + 1, n - 2);
        } else if (strncmp(s, "true", 4) == 0) {
            msgpack_pack_true(&p);
        } else if (strncmp(s, "false", 5) == 0) {
            msgpack_pack_false(&p);
        } else if (strncmp(s, "nil", 3) == 0) {
            msgpack_pack_nil(&p);
        } else if (*s == 'x') {
            for (size_t i = 1; i + 1 < n; i += 2) {
                char hex[3] = {s[i], s[i + 1], 0};
                char byte = (char)strtoul(hex, NULL, 16);
                msgpack_sbuffer_write(&sb, &byte, 1);
            }
        } else if (memchr(s, '.', n) || memchr(s, 'n', n)) { /* 1.5, nan, inf, -inf */
            msgpack_pack_double(&p, strtod(s, NULL));
        } else if (*s == '-') {
            msgpack_pack_int64(&p, strtoll(s, NULL, 10));
        } else {
            msgpack_pack_uint64(&p, strtoull(s, NULL, 10));
        }
        s += n;
        while (*s == ' ')
            s++;
    }
    buffer_append(out, sb.data ? sb.data : "", sb.size);
    msgpack_sbuffer_destroy(&sb);
}

struct bad_frame {
    const char *text;
    const char *message; /* part of the error that must come */
};

#define STAGE "{5 \"first_layer\" 0 \"last_layer\" 2 \"tensor\" 1 \"pid\" 9 \"host\" \"h\""
#define HELLO(stages)                                                                                     \
    "[3 1 20 {13 \"group\" \"g\" \"incarnation\" 1 \"model\" \"m\" \"weights\" \"w\" \"kernels\" \"k\" "  \
    "\"kv_type\" \"f16\" \"tensor\" 1 \"max_sequences\" 4 \"context\" 64 \"pages\" 8 \"page_tokens\" 16 " \
    "\"load_ms\" 5 \"stages\" " stages
#define GEN(n, rest) "[3 1 1 {" #n " \"request\" \"r\" \"prompt\" \"p\" " rest
#define ASSIGN(rest) "[3 1 32 {6 \"group\" \"g\" \"epoch\" 1 \"request\" \"r\" \"prompt\" \"p\" " rest
#define DONE(rest)   "[3 1 12 {5 \"request\" \"r\" \"prompt_tokens\" 1 \"completion_tokens\" 1 " rest

static const struct bad_frame bad_frames[] = {
    /* the scan: lengths, counts, depth */
    {"", "empty"},
    {"xddffffffff", "announces 4294967295 objects, only 0 bytes are left"},
    {"xdfffffffff", "announces 8589934590 objects, only 0 bytes are left"},
    {"xc6ffffffff", "expected 4294967295 bytes more"},
    {"xdbffffffff", "expected 4294967295 bytes more"},
    {"xdcffff", "announces 65535 objects"},
    {"xdeffff", "announces 131070 objects"},
    {"xc5ffff", "expected 65535 bytes more"},
    {"xdaffff", "expected 65535 bytes more"},
    {"xc4ff", "expected 255 bytes more"},
    {"xd9ff", "expected 255 bytes more"},
    {"xbf", "expected 31 bytes more"},
    {"x9f", "announces 15 objects"},
    {"x8f", "announces 30 objects"},
    {"x8100", "announces 2 objects, only 1 bytes are left"},
    {"x92930102", "announces 3 objects, only 2 bytes are left"},
    {"xdd", "truncated inside a length"},
    {"xdfffff", "truncated inside a length"},
    {"xd9", "truncated inside a length"},
    {"xc600", "truncated inside a length"},
    {"xca000000", "expected 4 bytes more, only 3 are left"},
    {"xcb", "expected 8 bytes more"},
    {"xcf00000000000000", "expected 8 bytes more, only 7 are left"},
    {"xcc", "expected 1 bytes more"},
    {"xd3", "expected 8 bytes more"},
    {"xc1", "0xc1 is no msgpack type"},
    {"x9301c180", "0xc1 is no msgpack type"},
    {"xd40000", "extension types are not allowed"},
    {"xd6ff00000000", "extension types are not allowed"},
    {"xc70000", "extension types are not allowed"},
    {"xc9ffffffff00", "extension types are not allowed"},
    {"x9191919191919191919191919191919191c0", "byte 16: nested deeper than 16"},
    {"x9191919191919191919191919191919190", "byte 16: nested deeper than 16"},
    {"x810181018101810181018101810181018101810181018101810181018101810181018101c0", "nested deeper than 16"},
    {"[3 1 3 {0 nil", "1 bytes trail the message"},
    {"[3 1 3 {0 [3 1 3 {0", "4 bytes trail the message"},
    /* the envelope */
    {"nil", "expected an array [version, type, {fields}], found nil"},
    {"{0", "expected an array [version, type, {fields}], found a map"},
    {"\"generate\"", "expected an array [version, type, {fields}], found a string"},
    {"[0", "found an array of another length"},
    {"[2 1 3", "found an array of another length"},
    {"[4 1 3 {0 {0", "found an array of another length"},
    {"[3 2 3 {0", "version 2 is not spoken here, expected 1"},
    {"[3 0 3 {0", "version 0 is not spoken here, expected 1"},
    {"[3 \"1\" 3 {0", "version: expected 1, found a string"},
    {"[3 -1 3 {0", "version: expected 1, found a negative integer"},
    {"[3 1 0 {0", "unknown message type 0"},
    {"[3 1 4 {0", "unknown message type 4"},
    {"[3 1 18446744073709551615 {0", "unknown message type 18446744073709551615"},
    {"[3 1 4294967297 {0", "unknown message type 4294967297"}, /* 1 when cut to 32 bits */
    {"[3 1 \"status\" {0", "type: expected a message number, found a string"},
    {"[3 1 -3 {0", "type: expected a message number, found a negative integer"},
    {"[3 1 3 [0", "status: expected a map of fields, found an array"},
    {"[3 1 3 nil", "status: expected a map of fields, found nil"},
    /* field names */
    {"[3 1 3 {1 1 true", "status: expected a string as field name, found an integer"},
    {"[3 1 3 {1 nil true", "status: expected a string as field name, found nil"},
    {"[3 1 3 {1 xc400 true", "status: expected a string as field name, found binary data"},
    {"[3 1 3 {1 \"Verbose\" true", "status: unknown field \"Verbose\""},
    {"[3 1 3 {1 \"verbos\" true", "status: unknown field \"verbos\""},
    {"[3 1 3 {1 \"verbosee\" true", "status: unknown field \"verbosee\""},
    {"[3 1 3 {1 \"\" true", "status: unknown field \"\""},
    {"[3 1 3 {1 xa21b80 true", "status: unknown field \"??\""},
    {"[3 1 3 {2 \"verbose\" true \"verbose\" true", "status: verbose: given twice"},
    {GEN(3, "\"prompt\" \"q\""), "generate: prompt: given twice"},
    /* missing */
    {"[3 1 1 {0", "generate: request: missing"},
    {"[3 1 1 {1 \"request\" \"r\"", "generate: prompt: missing"},
    {"[3 1 2 {0", "cancel: request: missing"},
    {"[3 1 11 {2 \"request\" \"r\" \"index\" 1", "token: id: missing"},
    {"[3 1 13 {1 \"code\" 400", "error: message: missing"},
    {"[3 1 33 {1 \"group\" \"g\"", "drain: epoch: missing"},
    {ASSIGN("\"max_tokens\" 4 \"top_k\" 1"), "assign: seed: missing"},
    {HELLO("[1 {0"), "hello: stages: [0]: first_layer: missing"},
    /* wrong kinds */
    {"[3 1 3 {1 \"verbose\" 1", "status: verbose: expected a boolean, found an integer"},
    {"[3 1 3 {1 \"verbose\" nil", "status: verbose: expected a boolean, found nil"},
    {"[3 1 2 {1 \"request\" 7", "cancel: request: expected a string, found an integer"},
    {"[3 1 2 {1 \"request\" xc40172", "cancel: request: expected a string, found binary data"},
    {GEN(3, "\"max_tokens\" 5.0"), "generate: max_tokens: expected an unsigned integer, found a float"},
    {GEN(3, "\"max_tokens\" -1"),
     "generate: max_tokens: expected an unsigned integer, found a negative integer"},
    {GEN(3, "\"max_tokens\" \"5\""), "generate: max_tokens: expected an unsigned integer, found a string"},
    {GEN(3, "\"max_tokens\" true"), "generate: max_tokens: expected an unsigned integer, found a boolean"},
    {GEN(3, "\"temperature\" \"1\""), "generate: temperature: expected a number, found a string"},
    {GEN(3, "\"temperature\" false"), "generate: temperature: expected a number, found a boolean"},
    {GEN(3, "\"seed\" nil"), "generate: seed: expected an unsigned integer, found nil"},
    {GEN(3, "\"model\" [0"), "generate: model: expected a string, found an array"},
    {HELLO("{0"), "hello: stages: expected an array, found a map"},
    {HELLO("[1 7"), "hello: stages: [0]: expected a map of fields, found an integer"},
    {HELLO("[2 " STAGE " {5 \"first_layer\" 0 \"last_layer\" 2 \"tensor\" 1 \"pid\" 9 \"host\" 4"),
     "hello: stages: [1]: host: expected a string, found an integer"},
    {HELLO("[1 {1 \"layer\" 1"), "hello: stages: [0]: unknown field \"layer\""},
    /* not finite */
    {GEN(3, "\"temperature\" nan"), "generate: temperature: expected a finite number"},
    {GEN(3, "\"temperature\" inf"), "generate: temperature: expected a finite number"},
    {GEN(3, "\"presence_penalty\" -inf"), "generate: presence_penalty: expected a finite number"},
    {GEN(3, "\"top_p\" xca7fc00000"), "generate: top_p: expected a finite number"},
    /* bounds */
    {GEN(3, "\"max_tokens\" 0"), "generate: max_tokens: expected an integer from 1 to 1048576, found 0"},
    {GEN(3, "\"max_tokens\" 1048577"), "max_tokens: expected an integer from 1 to 1048576, found 1048577"},
    {GEN(3, "\"timeout_ms\" 86400001"), "timeout_ms: expected an integer from 0 to 86400000"},
    {GEN(3, "\"top_k\" 2147483648"), "top_k: expected an integer from 0 to 2147483647"},
    {GEN(3, "\"temperature\" 100.5"), "temperature: expected a number from 0 to 100, found 100.5"},
    {GEN(3, "\"temperature\" -0.001"), "temperature: expected a number from 0 to 100"},
    {GEN(3, "\"temperature\" 101"), "temperature: expected a number from 0 to 100, found 101"},
    {GEN(3, "\"top_p\" 0.0"), "top_p: expected a number above 0 to 1, found 0"},
    {GEN(3, "\"top_p\" 0"), "top_p: expected a number above 0 to 1, found 0"},
    {GEN(3, "\"top_p\" 1.01"), "top_p: expected a number above 0 to 1, found 1.01"},
    {GEN(3, "\"min_p\" 1.01"), "min_p: expected a number from 0 to 1"},
    {GEN(3, "\"repetition_penalty\" 0"), "repetition_penalty: expected a number above 0 to 10"},
    {GEN(3, "\"presence_penalty\" -3"), "presence_penalty: expected a number from -2 to 2, found -3"},
    {GEN(3, "\"frequency_penalty\" 2.5"), "frequency_penalty: expected a number from -2 to 2"},
    {"[3 1 13 {2 \"code\" 399 \"message\" \"m\"", "code: expected an integer from 400 to 599, found 399"},
    {"[3 1 13 {2 \"code\" 600 \"message\" \"m\"", "code: expected an integer from 400 to 599, found 600"},
    {"[3 1 30 {4 \"group\" \"g\" \"epoch\" 1 \"lease_ms\" 0 \"heartbeat_ms\" 1",
     "lease_ms: expected an integer from 1"},
    {HELLO("[0"), "hello: stages: expected 1 to 256 entries, found 0"},
    {DONE("\"finish_reason\" \"eos\" \"stages\" 1"),
     "finish_reason: expected one of stop|length|cancelled, found \"eos\""},
    {DONE("\"finish_reason\" \"stop|length\" \"stages\" 1"), "expected one of stop|length|cancelled"},
    {DONE("\"finish_reason\" \"\" \"stages\" 1"), "expected one of stop|length|cancelled"},
    {DONE("\"finish_reason\" \"stop\" \"stages\" 257"), "stages: expected an integer from 0 to 256"},
    /* strings */
    {"[3 1 2 {1 \"request\" \"\"", "request: expected 1 to 64 characters"},
    {"[3 1 2 {1 \"request\" \"a b\"",
     "request: expected 1 to 64 characters of [A-Za-z0-9._:-], found \"a b\""},
    {"[3 1 2 {1 \"request\" xa3610062", "request: expected 1 to 64 characters"},
    {"[3 1 2 {1 \"request\" \"0123456789012345678901234567890123456789012345678901234567890123x\"",
     "request: expected 1 to 64 characters"},
    {"[3 1 2 {2 \"request\" \"r\" \"group\" \"\"", "group: expected 1 to 64 characters"},
    {"[3 1 1 {2 \"request\" \"r\" \"prompt\" xa2c080", "generate: prompt: expected UTF-8"},
    {"[3 1 1 {2 \"request\" \"r\" \"prompt\" xa3eda080", "generate: prompt: expected UTF-8"},
    {"[3 1 1 {2 \"request\" \"r\" \"prompt\" xa1ff", "generate: prompt: expected UTF-8"},
    {GEN(3, "\"model\" xa3610062"), "generate: model: holds a NUL byte"},
};

static void test_bad_frames_get_their_own_message(void)
{
    CHECK(ARRAY_LEN(bad_frames) >= 100);
    for (size_t i = 0; i < ARRAY_LEN(bad_frames); i++) {
        struct buffer frame = {0};
        struct wire_message m;
        struct err err = {0};
        assemble(&frame, bad_frames[i].text);
        char *exact = xmalloc(frame.size + 1); /* of the exact size: a read past the end is seen by ASan */
        if (frame.size)
            memcpy(exact, frame.data, frame.size);
        exact = xrealloc(exact, frame.size ? frame.size : 1);
        int rc = wire_decode(&m, exact, frame.size, &err);
        if (rc == 0 || !strstr(err.message, bad_frames[i].message) || err.code != 400) {
            printf("# frame %zu (%s): \"%s\" (%d), expected \"%s\"\n", i, bad_frames[i].text, err.message,
                   err.code, bad_frames[i].message);
            test_failures++;
        }
        CHECK(m.memory == NULL);
        wire_release(&m);
        free(exact);
        buffer_release(&frame);
    }
}

/* The frames that are bad by one detail above must be good without it, or they would prove nothing. */
static void test_good_twins_of_the_bad_frames(void)
{
    static const char *const good[] = {
        "[3 1 3 {0",
        "[3 1 3 {1 \"verbose\" true",
        "xdd000000030103df00000000", /* long forms of short things */
        GEN(3, "\"max_tokens\" 5"),
        GEN(3, "\"max_tokens\" xd30000000000000005"), /* a signed integer that is not negative */
        GEN(3, "\"temperature\" 1"),
        GEN(3, "\"temperature\" xca3f000000"),
        GEN(3, "\"presence_penalty\" -2"),
        GEN(3, "\"top_p\" 0.0001"),
        "[3 1 1 {2 \"request\" \"r\" \"prompt\" xa3610062", /* NUL is text in a prompt */
        DONE("\"finish_reason\" \"stop\" \"stages\" 256"),
        ASSIGN("\"max_tokens\" 4 \"seed\" 1"),
        HELLO("[2 " STAGE " " STAGE),
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct buffer frame = {0};
        struct wire_message m;
        struct err err = {0};
        assemble(&frame, good[i]);
        int rc = wire_decode(&m, frame.data, frame.size, &err);
        if (rc < 0) {
            printf("# %s: %s\n", good[i], err.message);
            test_failures++;
        }
        wire_release(&m);
        buffer_release(&frame);
    }
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
        _exit(rc == -1 && grown > 0 && grown <= 4 * (WIRE_MAX_FRAME >> 10) + (64 << 10) ? 0 : 1);
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
    TEST(test_bad_frames_get_their_own_message, "every bad frame gets its own message");
    TEST(test_good_twins_of_the_bad_frames, "their good twins pass");
    TEST(test_every_truncation_is_refused, "every truncation of every type is refused");
    TEST(test_a_frame_over_the_limit_is_refused, "a frame over the limit is refused");
    TEST(test_the_longest_prompt_passes_and_one_more_byte_does_not,
         "the longest prompt passes, one more byte does not");
    TEST(test_the_largest_status_reply_passes, "the largest status reply passes");
    TEST(test_a_bomb_of_small_objects_is_over_the_budget, "a bomb of small objects is over the budget");
    TEST(test_memory_of_the_worst_frame_is_bounded, "memory of the worst frame is within 4 x input + 64 MiB");
    TEST(test_flipped_bytes_never_break_the_decoder, "flipped bytes never break the decoder");
    TEST(test_ids, "ids are short and plain");
    TEST(test_mending_makes_text_sendable, "mending makes any C string sendable");
    TEST(test_strings, "strings compare and copy by their size");
    TEST(test_names_of_types, "types have names");
    return test_result();
}
