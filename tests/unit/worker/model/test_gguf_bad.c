/* Bad GGUF files, made by hand: each is refused with its own message. A file is written as words:
 *
 *   GGUF        the four letters           u8:N u32:N u64:N   little-endian numbers (-1 = all ones)
 *   s:TEXT      a string: u64 length, text t:TEXT x:HEX       raw bytes
 *   z:N         N zero bytes               pad:N              zeros up to a multiple of N
 *   long:N      a string of N letters
 *
 * A "~" in TEXT is a space. The header has 24 bytes; the type of a key of one letter stands at 33, its value
 * at
 * 37. The message must contain the words given, which mostly include the offset. */
#include "worker/model/gguf.h"

#include "tests/test.h"

#define HEAD(tensors, keys) "GGUF u32:3 u64:" #tensors " u64:" #keys " "
#define KEY                 HEAD(0, 1) "s:k "
/* One F32 tensor of 8 elements named `a`: record from 24 to 57; its data at 64. */
#define RECORD(name, elements, offset) "s:" name " u32:1 u64:" #elements " u32:0 u64:" #offset " "

struct bad {
    const char *file;
    const char *message;
};

static void put_hex(struct buffer *b, const char *hex)
{
    for (; hex[0] && hex[1]; hex += 2) {
        char pair[3] = {hex[0], hex[1], 0};
        uint8_t byte = (uint8_t)strtoul(pair, NULL, 16);
        buffer_append(b, &byte, 1);
    }
}

static void put_zeros(struct buffer *b, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        buffer_append(b, "", 1);
}

static void put_text(struct buffer *b, const char *text)
{
    for (; *text; text++)
        buffer_append(b, *text == '~' ? " " : text, 1);
}

static void put_word(struct buffer *b, const char *word)
{
    const char *colon = strchr(word, ':');
    const char *value = colon ? colon + 1 : "";
    uint64_t n = strtoull(value, NULL, 0);
    if (!colon)
        buffer_append(b, word, strlen(word));
    else if (strncmp(word, "u8:", 3) == 0)
        buffer_append(b, &n, 1);
    else if (strncmp(word, "u32:", 4) == 0)
        buffer_append(b, &n, 4);
    else if (strncmp(word, "u64:", 4) == 0)
        buffer_append(b, &n, 8);
    else if (strncmp(word, "z:", 2) == 0)
        put_zeros(b, n);
    else if (strncmp(word, "pad:", 4) == 0)
        put_zeros(b, round_up_u64(b->size, n) - b->size);
    else if (strncmp(word, "x:", 2) == 0)
        put_hex(b, value);
    else if (strncmp(word, "t:", 2) == 0)
        put_text(b, value);
    else if (strncmp(word, "s:", 2) == 0) {
        buffer_u64(b, strlen(value));
        put_text(b, value);
    } else if (strncmp(word, "long:", 5) == 0) {
        buffer_u64(b, n);
        for (uint64_t i = 0; i < n; i++)
            buffer_append(b, "n", 1);
    } else {
        printf("# unknown word %s\n", word);
        exit(1);
    }
}

/* The bytes in a block of their exact size, so that ASan sees one byte too far. */
static uint8_t *make_file(const char *script, uint64_t *size)
{
    struct buffer b = {0};
    char *copy = xstrdup(script), *state = NULL;
    for (char *word = strtok_r(copy, " ", &state); word; word = strtok_r(NULL, " ", &state))
        put_word(&b, word);
    uint8_t *exact = xmalloc(b.size);
    if (b.size)
        memcpy(exact, b.data, b.size);
    *size = b.size;
    buffer_release(&b);
    free(copy);
    return exact;
}

static void check_bad(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct err err = {0};
        struct gguf *g;
        uint64_t size;
        uint8_t *data = make_file(cases[i].file, &size);
        int rc = gguf_parse(&g, data, size, "bad", &err);
        if (rc != -1 || g != NULL || !strstr(err.message, cases[i].message)) {
            printf("# %s\n#   gave \"%s\"\n#   expected \"%s\"\n", cases[i].file,
                   rc ? err.message : "no error", cases[i].message);
            test_failures++;
        }
        gguf_close(&g);
        free(data);
    }
}

static void check_good(const char *const *files, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct err err = {0};
        struct gguf *g;
        uint64_t size;
        uint8_t *data = make_file(files[i], &size);
        if (gguf_parse(&g, data, size, "good", &err)) {
            printf("# %s\n#   gave \"%s\"\n", files[i], err.message);
            test_failures++;
        }
        gguf_close(&g);
        free(data);
    }
}

#define CHECK_BAD(...)                                \
    do {                                              \
        static const struct bad c_[] = {__VA_ARGS__}; \
        check_bad(c_, ARRAY_LEN(c_));                 \
    } while (0)

/* The scripts themselves are right: what differs from these in one word is refused for that word. */
static void test_good(void)
{
    static const char *const files[] = {
        HEAD(0, 0),
        "GGUF u32:2 u64:0 u64:0",
        KEY "u32:7 u8:1",
        KEY "u32:8 u64:0",
        KEY "u32:9 u32:8 u64:2 s:a u64:0",
        KEY "u32:9 u32:4 u64:0",
        HEAD(1, 0) RECORD("a", 8, 0) "pad:32 z:32",
        HEAD(2, 0) RECORD("a", 8, 32) RECORD("b", 8, 0) "pad:32 z:64",
        HEAD(2, 0) RECORD("a", 8, 0) RECORD("b", 8, 64) "pad:32 z:96", /* a hole between them */
        HEAD(1, 1) "s:general.alignment u32:4 u32:8 " RECORD("a", 2, 8) "pad:8 z:16",
        HEAD(1, 1) "s:general.alignment u32:4 u32:64 " RECORD("a", 2, 0) "pad:64 z:8",
        HEAD(1, 0) "s:a u32:4 u64:1 u64:2 u64:3 u64:4 u32:0 u64:0 pad:32 z:96",
        HEAD(1, 0) "s:a u32:1 u64:32 u32:8 u64:0 pad:32 z:34",
        HEAD(1, 0) "long:64 u32:1 u64:8 u32:0 u64:0 pad:32 z:32",
        HEAD(0, 1) "long:65535 u32:0 u8:0",
    };
    check_good(files, ARRAY_LEN(files));
}

static void test_magic(void)
{
    CHECK_BAD({"", "bad:0: magic: expected 4 bytes, only 0 are left"},
              {"t:GGU", "bad:0: magic: expected 4 bytes, only 3 are left"},
              {"t:GGML z:40", "bad:0: magic: expected 47 47 55 46 (\"GGUF\"), found 47 47 4d 4c"},
              {"t:lmgg z:40", "found 6c 6d 67 67"}, {"t:gguf u32:3 u64:0 u64:0", "found 67 67 75 66"},
              {"t:FUGG u32:3 u64:0 u64:0", "found 46 55 47 47"},
              {"x:504b0304 z:40", "bad:0: magic: expected 47 47 55 46 (\"GGUF\"), found 50 4b 03 04"},
              {"z:64", "found 00 00 00 00"}, {"x:1b5b324a", "found 1b 5b 32 4a"}, );
}

static void test_version(void)
{
    CHECK_BAD({"GGUF", "bad:4: version: expected 4 bytes, only 0 are left"},
              {"GGUF x:0300", "bad:4: version: expected 4 bytes, only 2 are left"},
              {"GGUF u32:0 u64:0 u64:0", "bad:4: unknown GGUF version 0: expected 2 or 3"},
              {"GGUF u32:1 u32:0 u32:0", "bad:4: GGUF version 1 is obsolete: expected version 2 or 3"},
              {"GGUF u32:4 u64:0 u64:0", "bad:4: unknown GGUF version 4: expected 2 or 3"},
              {"GGUF u32:-1 u64:0 u64:0", "unknown GGUF version 4294967295"},
              {"GGUF u32:0x00030000 u64:0 u64:0", "unknown GGUF version 196608"},
              {"GGUF x:00000003 z:16", "bad:4: a big-endian GGUF file (version 3): expected little-endian"},
              {"GGUF x:00000002 z:16", "a big-endian GGUF file (version 2)"},
              {"GGUF x:00000001 z:16", "a big-endian GGUF file (version 1)"}, );
}

static void test_counts(void)
{
    CHECK_BAD({"GGUF u32:3", "bad:8: tensor count: expected 8 bytes, only 0 are left"},
              {"GGUF u32:3 u64:0", "bad:16: key count: expected 8 bytes, only 0 are left"},
              {"GGUF u32:3 u64:0 u32:0", "bad:16: key count: expected 8 bytes, only 4 are left"},
              {HEAD(1, 0), "bad:8: tensor count: 1 do not fit into a file of 24 bytes"},
              {HEAD(-1, 0), "bad:8: tensor count: 18446744073709551615 do not fit"},
              {HEAD(0x8000000000000000, 0), "tensor count: 9223372036854775808 do not fit"},
              {HEAD(0x7fffffffffffffff, 0), "tensor count: 9223372036854775807 do not fit"},
              {HEAD(0x100000000, 0) "z:99", "tensor count: 4294967296 do not fit into a file of 123 bytes"},
              {HEAD(4, 0) "z:131", "tensor count: 4 do not fit into a file of 155 bytes"},
              {HEAD(0, 1), "bad:16: key count: 1 do not fit into a file of 24 bytes"},
              {HEAD(0, -1), "bad:16: key count: 18446744073709551615 do not fit"},
              {HEAD(0, 0x8000000000000000), "key count: 9223372036854775808 do not fit"},
              {HEAD(0, 0x4924924924924925) "z:14", "key count: 5270498306774157605 do not fit"},
              {HEAD(0, 2) "z:27", "key count: 2 do not fit into a file of 51 bytes"},
              {HEAD(1, 1) "z:32", "tensor count: 1 do not fit into a file of 56 bytes"},
              {HEAD(0, 2) "s:k u32:4 u32:1 z:20", "bad:41: key is empty"},
              {HEAD(1, 1) "s:k u32:4 u32:1 s:a u32:1 u64:8 z:3", "bad:62: tensor type: expected 4 bytes"}, );
}

static void test_limits(void)
{
    char script[100];
    struct bad one = {script, ""};
    snprintf(script, sizeof(script), HEAD(1048577, 0) "z:%d", 1048577 * 33);
    one.message = "bad:8: tensor count: 1048577 do not fit into a file of 34603065 bytes (at most 1048576)";
    check_bad(&one, 1);
    snprintf(script, sizeof(script), HEAD(0, 1048577) "z:%d", 1048577 * 14);
    one.message = "bad:16: key count: 1048577 do not fit into a file of 14680102 bytes (at most 1048576)";
    check_bad(&one, 1);
}

static void test_keys(void)
{
    CHECK_BAD({HEAD(0, 1) "u64:0 u32:4 u32:1", "bad:24: key is empty"},
              {HEAD(0, 1) "long:65536 u32:0 u8:0", "bad:24: key of 65536 bytes: expected at most 65535"},
              {HEAD(0, 1) "u64:-1 z:20", "bad:24: key of 18446744073709551615 bytes: expected at most 65535"},
              {HEAD(0, 1) "u64:0x7fffffffffffffff z:20", "key of 9223372036854775807 bytes"},
              {HEAD(0, 1) "u64:100 z:20", "bad:32: key: expected 100 bytes, only 20 are left"},
              {HEAD(0, 1) "u64:2 x:ff41 u32:4 u32:1", "bad:32: key is not valid UTF-8"},
              {HEAD(0, 1) "u64:2 x:c0af u32:4 u32:1", "bad:32: key is not valid UTF-8"},
              {HEAD(0, 1) "u64:3 x:eda080 u32:4 u32:1", "bad:32: key is not valid UTF-8"},
              {HEAD(0, 1) "u64:2 x:e296 u32:4 u32:1", "bad:32: key is not valid UTF-8"},
              {HEAD(0, 1) "u64:2 x:4100 u32:4 u32:1", "bad:32: key contains a zero byte"},
              {HEAD(0, 2) "s:k u32:0 u8:1 s:k u32:0 u8:1", "bad:38: key \"k\" stands twice in the file"},
              {HEAD(0, 3) "s:k u32:0 u8:1 s:l u32:0 u8:1 s:k u32:8 s:x",
               "bad:52: key \"k\" stands twice in the file"},
              {HEAD(0, 2) "u64:3 x:1b5b4a u32:0 u8:1 u64:3 x:1b5b4a u32:0 u8:1", "key \"?[J\" stands twice"},
              {HEAD(0, 2) "long:70 u32:0 u8:1 long:70 u32:0 u8:1", "nnnn...\" stands twice"}, );
}

static void test_values(void)
{
    CHECK_BAD({KEY "u32:13 u8:0", "bad:33: key \"k\": unknown value type 13: expected 0 to 12"},
              {KEY "u32:-1 u8:0", "bad:33: key \"k\": unknown value type 4294967295"},
              {KEY "u32:256 u8:0", "unknown value type 256"},
              {HEAD(0, 1) "s:kkkkk u8:0", "bad:37: value type: expected 4 bytes, only 1 are left"},
              {KEY "u32:4 u8:0", "bad:37: value: expected 4 bytes, only 1 are left"},
              {KEY "u32:2 u8:0", "bad:37: value: expected 2 bytes, only 1 are left"},
              {KEY "u32:6 x:000000", "bad:37: value: expected 4 bytes, only 3 are left"},
              {KEY "u32:10 u32:0", "bad:37: value: expected 8 bytes, only 4 are left"},
              {KEY "u32:11 z:7", "bad:37: value: expected 8 bytes, only 7 are left"},
              {KEY "u32:12 z:1", "bad:37: value: expected 8 bytes, only 1 are left"},
              {KEY "u32:7 u8:2", "bad:37: key \"k\": bool is 2, expected 0 or 1"},
              {KEY "u32:7 u8:255", "bad:37: key \"k\": bool is 255, expected 0 or 1"},
              {KEY "u32:8 u32:0", "bad:37: string length: expected 8 bytes, only 4 are left"},
              {KEY "u32:8 u64:1", "bad:45: string: expected 1 bytes, only 0 are left"},
              {KEY "u32:8 u64:4 t:abc", "bad:45: string: expected 4 bytes, only 3 are left"},
              {KEY "u32:8 u64:-1 t:abc", "bad:45: string: expected 18446744073709551615 bytes"},
              {KEY "u32:8 u64:-45 t:abc", "string: expected 18446744073709551571 bytes"},
              {KEY "u32:8 u64:0x8000000000000000 t:abc", "string: expected 9223372036854775808 bytes"}, );
}

static void test_arrays(void)
{
    CHECK_BAD(
        {KEY "u32:9 u8:0", "bad:37: array element type: expected 4 bytes, only 1 are left"},
        {KEY "u32:9 u32:4 u32:0", "bad:41: array length: expected 8 bytes, only 4 are left"},
        {KEY "u32:9 u32:13 u64:0", "bad:37: key \"k\": unknown array element type 13: expected 0 to 12"},
        {KEY "u32:9 u32:-1 u64:0", "unknown array element type 4294967295"},
        {KEY "u32:9 u32:9 u64:0", "bad:37: key \"k\": nested arrays are not supported"},
        {KEY "u32:9 u32:9 u64:1 u32:9 u64:1 u32:0 u64:0",
         "bad:37: key \"k\": nested arrays are not supported"},
        {KEY "u32:9 u32:4 u64:2 u32:0",
         "bad:41: key \"k\": array of 2 x u32 does not fit into the 4 bytes left"},
        {KEY "u32:9 u32:0 u64:-1", "array of 18446744073709551615 x u8 does not fit into the 0 bytes left"},
        {KEY "u32:9 u32:4 u64:0x4000000000000000 u32:0", "array of 4611686018427387904 x u32 does not fit"},
        {KEY "u32:9 u32:10 u64:0x2000000000000001 u64:0", "array of 2305843009213693953 x u64 does not fit"},
        {KEY "u32:9 u32:8 u64:0x2000000000000000 u64:0",
         "array of 2305843009213693952 x string does not fit"},
        {KEY "u32:9 u32:8 u64:-1 u64:0", "array of 18446744073709551615 x string does not fit"},
        {KEY "u32:9 u32:8 u64:2 u64:0 u32:0", "array of 2 x string does not fit into the 12 bytes left"},
        {KEY "u32:9 u32:8 u64:2 u64:8 u64:0",
         "bad:65: array string length: expected 8 bytes, only 0 are left"},
        {KEY "u32:9 u32:8 u64:1 u64:1", "bad:57: array string: expected 1 bytes, only 0 are left"},
        {KEY "u32:9 u32:8 u64:2 s:a u64:-1 z:9", "bad:66: array string: expected 18446744073709551615 bytes"},
        {KEY "u32:9 u32:7 u64:3 x:010002", "bad:51: key \"k\": bool is 2, expected 0 or 1"},
        {KEY "u32:9 u32:12 u64:1 z:7", "array of 1 x f64 does not fit into the 7 bytes left"}, );
}

#define ALIGNMENT HEAD(0, 1) "s:general.alignment "
static void test_alignment(void)
{
    CHECK_BAD(
        {ALIGNMENT "u32:4 u32:0", "bad:53: general.alignment is 0, expected a power of two from 8"},
        {ALIGNMENT "u32:4 u32:1", "general.alignment is 1, expected a power of two from 8"},
        {ALIGNMENT "u32:4 u32:3", "general.alignment is 3, expected a power of two"},
        {ALIGNMENT "u32:4 u32:4", "general.alignment is 4, expected a power of two from 8"},
        {ALIGNMENT "u32:4 u32:24", "general.alignment is 24, expected a power of two"},
        {ALIGNMENT "u32:4 u32:33", "general.alignment is 33, expected a power of two"},
        {ALIGNMENT "u32:4 u32:0x80000000", "general.alignment is 2147483648, expected a power of two"},
        {ALIGNMENT "u32:4 u32:0x2000000", "general.alignment is 33554432, expected a power of two from 8 to"},
        {ALIGNMENT "u32:4 u32:-1", "general.alignment is 4294967295, expected"},
        {ALIGNMENT "u32:5 u32:32", "bad:53: general.alignment is of type i32, expected u32"},
        {ALIGNMENT "u32:10 u64:32", "general.alignment is of type u64, expected u32"},
        {ALIGNMENT "u32:8 s:32", "general.alignment is of type string, expected u32"},
        {ALIGNMENT "u32:6 u32:32", "general.alignment is of type f32, expected u32"},
        {ALIGNMENT "u32:9 u32:4 u64:1 u32:32", "general.alignment is of type array, expected u32"}, );
}

static void test_tensor_names(void)
{
    CHECK_BAD({HEAD(1, 0) "u64:0 z:40", "bad:24: tensor name is empty"},
              {HEAD(1, 0) "long:65 z:40", "bad:24: tensor name of 65 bytes: expected at most 64"},
              {HEAD(1, 0) "u64:-1 z:40", "bad:24: tensor name of 18446744073709551615 bytes"},
              {HEAD(1, 0) "u64:50 z:40", "bad:32: tensor name: expected 50 bytes, only 40 are left"},
              {HEAD(1, 0) "u64:1 x:80 z:40", "bad:32: tensor name is not valid UTF-8"},
              {HEAD(1, 0) "u64:4 x:f4908080 z:40", "bad:32: tensor name is not valid UTF-8"},
              {HEAD(1, 0) "u64:1 x:00 z:40", "bad:32: tensor name contains a zero byte"},
              {HEAD(2, 0) RECORD("a", 8, 0) RECORD("a", 8, 32) "pad:32 z:64",
               "bad:57: tensor \"a\" stands twice in the file"},
              {HEAD(3, 0) RECORD("a", 8, 0) RECORD("b", 8, 32) RECORD("a", 8, 64) "pad:32 z:96",
               "bad:90: tensor \"a\" stands twice in the file"}, );
}

static void test_dimensions(void)
{
    CHECK_BAD(
        {HEAD(1, 0) "s:a u32:0 z:40", "bad:33: tensor \"a\": 0 dimensions, expected 1 to 4"},
        {HEAD(1, 0) "s:a u32:5 z:90", "bad:33: tensor \"a\": 5 dimensions, expected 1 to 4"},
        {HEAD(1, 0) "s:a u32:-1 z:90", "tensor \"a\": 4294967295 dimensions"},
        {HEAD(1, 0) "s:a u32:1 u64:0 z:40", "bad:37: tensor \"a\": dimension of 0, expected 1 or more"},
        {HEAD(1, 0) "s:a u32:2 u64:8 u64:0 z:40", "bad:45: tensor \"a\": dimension of 0"},
        {HEAD(1, 0) "s:a u32:1 u64:-1 z:40", "tensor \"a\": dimension of -1, expected 1 or more"},
        {HEAD(1, 0) "s:a u32:1 u64:0x8000000000000000 z:40", "dimension of -9223372036854775808"},
        {HEAD(1, 0) "s:a u32:4 u64:1 u64:1 u64:1 z:7",
         "bad:61: tensor dimension: expected 8 bytes, only 7 are left"},
        {HEAD(1, 0) "s:a u32:1 u64:0x7fffffffffffffff u32:0 u64:0 z:99",
         "bad:45: tensor \"a\": its size does not fit 64 bits"},
        {HEAD(1, 0) "s:a u32:2 u64:0x100000000 u64:0x100000000 u32:0 u64:0 z:99",
         "tensor \"a\": its size does not fit 64 bits"},
        {HEAD(1, 0) "s:a u32:4 u64:65536 u64:65536 u64:65536 u64:65536 u32:0 u64:0 z:99",
         "bad:69: tensor \"a\": its size does not fit 64 bits"},
        {HEAD(1, 0) "s:a u32:2 u64:0x40000000 u64:0x100000001 u32:0 u64:0 z:99",
         "tensor \"a\": its size does not fit 64 bits"},
        {HEAD(1, 0) "s:a u32:2 u64:0x7fffffffffffffe0 u64:2 u32:8 u64:0 z:99",
         "tensor \"a\": its size does not fit 64 bits"},
        {HEAD(1, 0) "s:a u32:1 u64:33 u32:8 u64:0 z:99",
         "bad:45: tensor \"a\": rows of 33 elements are no whole q8_0 blocks of 32"},
        {HEAD(1, 0) "s:a u32:2 u64:16 u64:2 u32:8 u64:0 z:99",
         "tensor \"a\": rows of 16 elements are no whole q8_0 blocks of 32"},
        {HEAD(1, 0) "s:a u32:1 u64:1 u32:8 u64:0 z:99", "rows of 1 elements are no whole q8_0 blocks"}, );
}

static void test_types(void)
{
    CHECK_BAD(
        {HEAD(1, 0) "s:a u32:1 u64:256 u32:15 u64:0 z:999",
         "tensor \"a\": type q8_K (15) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:256 u32:16 u64:0 z:99",
         "bad:45: tensor \"a\": type iq2_xxs (16) is not supported"},
        {HEAD(1, 0) "s:a u32:1 u64:32 u32:4 u64:0 z:99", "type q4_2 (4) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:32 u32:9 u64:0 z:99", "type q8_1 (9) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:32 u32:20 u64:0 z:99", "type iq4_nl (20) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:256 u32:29 u64:0 z:99", "type iq1_m (29) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:128 u32:12 u64:0 z:999",
         "tensor \"a\": rows of 128 elements are no whole q4_k blocks of 256"},
        {HEAD(1, 0) "s:a u32:1 u64:33 u32:2 u64:0 z:99",
         "rows of 33 elements are no whole q4_0 blocks of 32"},
        {HEAD(1, 0) "s:a u32:1 u64:256 u32:23 u64:0 z:999", "type iq4_xs (23) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:8 u32:28 u64:0 z:99", "type f64 (28) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:8 u32:24 u64:0 z:99", "type i8 (24) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:256 u32:34 u64:0 z:99", "type tq1_0 (34) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:32 u32:39 u64:0 z:99", "type mxfp4 (39) is not supported yet"},
        {HEAD(1, 0) "s:a u32:1 u64:8 u32:99 u64:0 z:99", "bad:45: tensor \"a\": unknown tensor type 99"},
        {HEAD(1, 0) "s:a u32:1 u64:8 u32:-1 u64:0 z:99", "unknown tensor type 4294967295"}, );
}

static void test_places(void)
{
    CHECK_BAD(
        {HEAD(1, 0) RECORD("a", 8, 1) "pad:32 z:64",
         "bad:49: tensor \"a\": offset 1 is no multiple of the alignment 32"},
        {HEAD(1, 0) RECORD("a", 8, 16) "pad:32 z:64",
         "tensor \"a\": offset 16 is no multiple of the alignment 32"},
        {HEAD(1, 0) RECORD("a", 8, -1) "pad:32 z:64", "offset 18446744073709551615 is no multiple"},
        {HEAD(1, 1) "s:general.alignment u32:4 u32:64 " RECORD("a", 8, 32) "pad:64 z:64",
         "offset 32 is no multiple of the alignment 64"},
        {HEAD(1, 0) RECORD("a", 8, 0) "pad:32 z:31", "tensor \"a\": 32 bytes at offset 0 of the data, which "
                                                     "begins at 64, reach past the end of the file (95"},
        {HEAD(1, 0) RECORD("a", 8, 0), "reach past the end of the file (57 bytes)"},
        {HEAD(1, 0) RECORD("a", 8, 32) "pad:32 z:32", "tensor \"a\": 32 bytes at offset 32 of the data"},
        {HEAD(1, 0) RECORD("a", 8, 0xffffffffffffffe0) "pad:32 z:32",
         "at offset 18446744073709551584 of the data"},
        {HEAD(1, 0) RECORD("a", 8, 0xffffffffffffffc0) "pad:32 z:32",
         "at offset 18446744073709551552 of the data"},
        {HEAD(1, 0) RECORD("a", 0x3ffffffffffffff8, 64) "pad:32 z:96",
         "tensor \"a\": 18446744073709551584 bytes at"},
        {HEAD(2, 0) RECORD("a", 8, 0) RECORD("b", 8, 0) "pad:32 z:64",
         "bad:96: tensors \"a\" and \"b\" overlap"},
        {HEAD(2, 0) RECORD("a", 9, 0) RECORD("b", 8, 32) "pad:32 z:64",
         "bad:128: tensors \"a\" and \"b\" overlap"},
        {HEAD(2, 0) RECORD("a", 8, 32) RECORD("b", 24, 0) "pad:32 z:96", "tensors \"b\" and \"a\" overlap"},
        {HEAD(3, 0) RECORD("a", 8, 64) RECORD("b", 8, 0) RECORD("c", 16, 32) "pad:32 z:96",
         "tensors \"c\" and \"a\" overlap"}, );
}

int main(void)
{
    TEST(test_good, "the smallest right files are accepted");
    TEST(test_magic, "another magic is refused");
    TEST(test_version, "another version or byte order is refused by name");
    TEST(test_counts, "counts that the file cannot hold are refused");
    TEST(test_limits, "more than a million keys or tensors are refused");
    TEST(test_keys, "empty, long, ill-formed and doubled keys are refused");
    TEST(test_values, "values of unknown types, cut or out of range are refused");
    TEST(test_arrays, "arrays that are nested, cut or of unknown types are refused");
    TEST(test_alignment, "an alignment that is none is refused");
    TEST(test_tensor_names, "empty, long, ill-formed and doubled tensor names are refused");
    TEST(test_dimensions, "impossible dimensions are refused");
    TEST(test_types, "tensor types that are not supported are refused by name");
    TEST(test_places, "tensors misaligned, past the end or overlapping are refused");
    return test_result();
}
