/* Bad frames made by hand, each with the message that must come; test_wire_schema.c makes the others from the
 * table. */
#include "common/wire.h"

#include <msgpack.h>

#include "tests/test.h"

/* A tiny assembler for msgpack. Words: {N and [N open a map or array of N, "text" a string, numbers, 1.5
 * floats, true false nil, xHH raw bytes. Enough to write every bad frame readably. */
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
    {"[3 1 9 {0", "unknown message type 9"},
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
    {GEN(3, "\"repetition_penalty\" 0"), "repetition_penalty: expected a number from 0.01 to 10"},
    {GEN(3, "\"repetition_penalty\" 0.009"), "repetition_penalty: expected a number from 0.01 to 10"},
    {GEN(3, "\"n\" 0"), "n: expected an integer from 1 to 128, found 0"},
    {GEN(3, "\"n\" 129"), "n: expected an integer from 1 to 128, found 129"},
    {GEN(3, "\"stop\" \"END\""), "stop: expected an array, found a string"},
    {GEN(3, "\"stop\" [1 \"\""), "stop: [0]: expected a string of 1 to 1024 bytes, found 0 bytes"},
    {GEN(3, "\"stop\" [2 \"a\" 7"), "stop: [1]: expected a string, found an integer"},
    {GEN(3, "\"logit_bias\" [1 {1 \"id\" 5"), "logit_bias: [0]: bias: missing"},
    {GEN(3, "\"logit_bias\" [1 {2 \"id\" 5 \"bias\" 101"),
     "bias: expected a number from -100 to 100, found 101"},
    {GEN(3, "\"top_logprobs\" 21"), "top_logprobs: expected an integer from 0 to 20, found 21"},
    {GEN(3, "\"speculation\" \"fast\""), "speculation: expected one of ngram|off, found \"fast\""},
    {GEN(3, "\"draft_tokens\" 65"), "draft_tokens: expected an integer from 0 to 64, found 65"},
    {GEN(3, "\"priority\" 1001"), "priority: expected an integer from 0 to 1000, found 1001"},
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

int main(void)
{
    TEST(test_bad_frames_get_their_own_message, "every bad frame gets its own message");
    TEST(test_good_twins_of_the_bad_frames, "their good twins pass");
    return test_result();
}
