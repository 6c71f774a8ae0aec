#include "worker/model/manifest.h"

#include <sys/stat.h>

#include "tests/test.h"

#define TWO_MIB (2u << 20)

static struct manifest *sample(void)
{
    struct manifest *m = xcalloc(1, sizeof(*m));
    m->name = xstrdup("tiny-1.0");
    m->source = xstrdup("/models/a \"quoted\" name.gguf");
    m->file_bytes = 3u << 20;
    m->file_time_ns = -5;
    m->created_s = 1700000000;
    m->header_bytes = 100;
    m->tensor_count = 2;
    m->tensor = xcalloc(2, sizeof(*m->tensor));
    for (int i = 0; i < 2; i++) {
        struct manifest_tensor *t = &m->tensor[i];
        t->name = xasprintf("blk.%d.weight", i);
        t->bytes = i ? TWO_MIB + 1 : 7;
        t->chunk = xmalloc(manifest_chunks(t->bytes) * MANIFEST_CHUNK_HASH);
        memset(t->chunk, 0xA0 + i, manifest_chunks(t->bytes) * MANIFEST_CHUNK_HASH);
        memset(t->hash, 0x10 + i, sizeof(t->hash));
    }
    return m;
}

static char *sample_text(void)
{
    struct manifest *m = sample();
    struct buffer text = {0};
    struct err err = {0};
    CHECK(manifest_write(m, &text, &err) == 0);
    buffer_append(&text, "", 1);
    manifest_free(&m);
    return (char *)text.data;
}

/* Parses from a block of the exact size, so that ASan sees one byte too far. */
static int parse(struct manifest **out, const char *text, size_t size, struct err *err)
{
    char *exact = xmalloc(size + !size);
    memcpy(exact, text, size);
    int code = manifest_parse(out, exact, size, "m.json", err);
    free(exact);
    return code;
}

static void test_round_trip(void)
{
    struct manifest *m;
    struct err err = {0};
    char *text = sample_text(), first[2 * MANIFEST_HASH + 1], second[2 * MANIFEST_HASH + 1];
    CHECK(parse(&m, text, strlen(text), &err) == 0);
    if (err.message[0])
        printf("# %s\n", err.message);
    if (!m)
        return;
    CHECK_STR(m->name, "tiny-1.0");
    CHECK_STR(m->source, "/models/a \"quoted\" name.gguf");
    CHECK(!m->linked && m->file_bytes == 3u << 20 && m->file_time_ns == -5 && m->created_s == 1700000000);
    CHECK(m->header_bytes == 100 && m->tensor_count == 2 && m->tensor[1].bytes == TWO_MIB + 1);
    CHECK(m->tensor[1].chunk[3 * MANIFEST_CHUNK_HASH - 1] == 0xA1);
    manifest_digest(m, first);
    m->name[0] = 'T';
    manifest_digest(m, second);
    CHECK_STR(second, first);
    m->tensor[1].hash[31] ^= 1;
    manifest_digest(m, second);
    CHECK(strcmp(second, first) != 0);
    manifest_free(&m);
    free(text);
}

/* The sample with `from` replaced by `to`; every place when `all`. */
static char *edited(const char *from, const char *to)
{
    char *text = sample_text(), *at = strstr(text, from);
    if (!at) {
        printf("# nothing to replace: %s\n", from);
        test_failures++;
        return text;
    }
    char *out = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    free(text);
    return out;
}

static const struct {
    const char *from, *to, *message;
} bad[] = {
    {"{\"format\"", "{format", "m.json:1:7: string or '}' expected"},
    {"\"seal\"", "", "m.json:1"},
    {"\"version\": 1,\n", "\"version\": 1,\n \"version\": 1,\n", "duplicate object key"},
    {"{\"format\": \"lepton-model\",", "{", "m.json: format is missing"},
    {"\"lepton-model\"", "\"web-extension\"", "format: \"web-extension\", expected \"lepton-model\""},
    {"\"lepton-model\"", "7", "format: expected a string"},
    {"\"version\": 1,", "", "version is missing"},
    {"\"version\": 1", "\"version\": 2", "version: 2 is not known, expected 1"},
    {"\"version\": 1", "\"version\": 1.0", "version: expected an integer"},
    {"\"version\": 1", "\"version\": 0", "version: 0, expected 1 to"},
    {"\"name\": \"tiny-1.0\",", "", "m.json: name is missing"},
    {"tiny-1.0", "", "name: a text of 0 bytes, expected 1 to 4096"},
    {"tiny-1.0", "../tiny", "name: \"../tiny\", expected [A-Za-z0-9._-]{1,128} without a leading dot"},
    {"tiny-1.0", ".tiny", "name: \".tiny\", expected"},
    {"\"tiny-1.0\"", "[]", "name: expected a string"},
    {"/models/", "models/", "source: \"models/a ?quoted? name.gguf\", expected an absolute path"},
    {"\"copy\"", "\"move\"", "kind: \"move\", expected copy or link"},
    {"\"file_bytes\": 3145728", "\"file_bytes\": -1", "file_bytes: -1, expected 1 to"},
    {"\"file_bytes\": 3145728", "\"file_bytes\": 99999999999999999999", "too big integer"},
    {"\"file_bytes\": 3145728", "\"file_bytes\": 50", "header_bytes: 100, more than file_bytes"},
    {"\"file_bytes\": 3145728", "\"file_bytes\": 2097000",
     "tensor 1: the tensors are larger than the file's 2097000 bytes"},
    {"\"file_time_ns\": -5", "\"file_time_ns\": \"now\"", "file_time_ns: expected an integer"},
    {"\"created\": 1700000000", "\"created\": -3", "created: -3, expected 0 to"},
    {"\"chunk_bytes\": 1048576", "\"chunk_bytes\": 4096", "chunk_bytes: 4096, expected 1048576 to 1048576"},
    {"\"header_bytes\": 100", "\"header_bytes\": 0", "header_bytes: 0, expected 1 to"},
    {"\"header_blake2b\": \"00", "\"header_blake2b\": \"0", "header_blake2b: 63 digits, expected 64"},
    {"\"header_blake2b\": \"00", "\"header_blake2b\": \"0g",
     "header_blake2b: digit 1 is not one of 0-9 and a-f"},
    {"\"tensors\": [", "\"tensors\": 3, \"x\": [", "tensors: expected an array"},
    {"\"tensors\": [", "\"tensors\": [], \"x\": [", "tensors: 0 of them, expected 1 to 262144"},
    {"\"tensors\": [", "\"tensors\": [3, ", "tensor 0: expected an object"},
    {"{\"name\": \"blk.0.weight\", ", "{", "tensor 0: name is missing"},
    {"blk.0.weight", "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
     "tensor 0: name: a text of 78 bytes, expected 1 to 64"},
    {"blk.0.weight", "blk.1.weight", "two tensors are called \"blk.1.weight\""},
    {"\"bytes\": 7", "\"bytes\": 0", "tensor 0: bytes: 0, expected 1 to"},
    {"\"bytes\": 7", "\"bytes\": 9223372036854775807",
     "tensor 0: xxh3_128: 32 digits, expected 281474976710656"},
    {"\"bytes\": 7", "\"bytes\": 1048577", "tensor 0: xxh3_128: 32 digits, expected 64"},
    {"\"bytes\": 7", "\"bytes\": 8", "seal: does not match: the manifest itself was damaged"},
    {"\"blake2b\": \"10", "\"blake2b\": \"10ff", "tensor 0: blake2b: 66 digits, expected 64"},
    {"\"xxh3_128\": \"a0", "\"xxh3_128\": \"A0", "tensor 0: xxh3_128: digit 0 is not one of"},
    {"\"xxh3_128\": \"a0", "\"xxh3\": \"a0", "tensor 0: xxh3_128 is missing"},
    {"{\"name\": \"blk.0", "{\"sparse\": true, \"name\": \"blk.0", "tensor 0: 5 members, expected 4"},
    {"{\"format\"", "{\"encrypted\": true, \"format\"", "14 members, expected 13: made by a newer Lepton?"},
    {"\"seal\": \"", "\"seal\": \"00", "seal: 66 digits, expected 64"},
    {"\"seal\"", "\"seals\"", "seal is missing"},
    {"\"tensors\": [", "\"tensors\": [[[[", "nested deeper than 4"},
    {"\"copy\"", "\"link\"", "seal: does not match"},
    {"tiny-1.0", "tiny-1.1", "seal: does not match"},
    {"\"copy\"", "\"\xff\"", "unable to decode byte 0xff"},
    {"\"copy\"", "\"co\\u0000py\"", "\\u0000 is not allowed"},
};

static void test_bad(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct manifest *m;
        struct err err = {0};
        char *text = edited(bad[i].from, bad[i].to);
        int code = parse(&m, text, strlen(text), &err);
        if (code == 0 || m || !strstr(err.message, bad[i].message)) {
            printf("# %s -> %s\n#   gave \"%s\"\n#   expected \"%s\"\n", bad[i].from, bad[i].to,
                   code ? err.message : "no error", bad[i].message);
            test_failures++;
        }
        manifest_free(&m);
        free(text);
    }
}

static void test_truncated(void)
{
    char *text = sample_text();
    size_t whole = strlen(text) - 1; /* the newline may go */
    struct manifest *m;
    struct err err;
    for (size_t n = 0; n < whole; n++) {
        err.message[0] = '\0';
        if (parse(&m, text, n, &err) == 0 || m || !err.message[0]) {
            printf("# %zu bytes were taken\n", n);
            test_failures++;
            manifest_free(&m);
        }
    }
    free(text);
}

static void test_every_bit(void)
{
    char *text = sample_text(), *body = strstr(text, "lepton-model");
    struct manifest *m;
    struct err err;
    for (char *c = body; *c; c++)
        for (int bit = 0; bit < 8; bit++) {
            *c ^= (char)(1 << bit);
            /* White space between values may be other white space: the meaning is the same. */
            if (parse(&m, text, strlen(text), &err) == 0 && !strchr(" \t\n\r", *c)) {
                printf("# byte %td, bit %d: still accepted\n", c - text, bit);
                test_failures++;
            }
            manifest_free(&m);
            *c ^= (char)(1 << bit);
        }
    free(text);
}

static void test_bombs(void)
{
    struct buffer text = {0};
    struct manifest *m;
    struct err err = {0};
    buffer_printf(&text, "{\"a\": [");
    for (int i = 0; i < 2000000; i++)
        buffer_append(&text, "{},", 3);
    buffer_printf(&text, "{}]}");
    CHECK(manifest_parse(&m, text.data, text.size, "m.json", &err) == -1);
    CHECK_CONTAINS(err.message, "would take");
    text.size = 0;
    for (int i = 0; i < 100000; i++)
        buffer_append(&text, "[", 1);
    CHECK(manifest_parse(&m, text.data, text.size, "m.json", &err) == -1);
    CHECK_CONTAINS(err.message, "m.json:4: nested deeper than 4");
    CHECK(manifest_parse(&m, text.data, (uint64_t)MANIFEST_BYTES_MAX + 1, "m.json", &err) == -1);
    CHECK_CONTAINS(err.message, "expected at most 268435456");
    CHECK(manifest_parse(&m, text.data, 0, "m.json", &err) == -1);
    CHECK_CONTAINS(err.message, "the file is empty");
    buffer_release(&text);
}

static void test_names(void)
{
    static const char *const good[] = {"a", "0", "-", "_x", "Llama-3.1_8B.Q4", "a..b"};
    static const char *const wrong[] = {
        "",     ".",      "..",      ".a",       "a/b", "/a",  "../a",     "a/..",        "a b",
        "a\n",  "a\tb",   "a\\b",    "a:b",      "a*",  "~a",  "$HOME",    "caf\xC3\xA9", "\xFF",
        "a;rm", "a\x01b", "a%2e%2e", "a\"quote", "a'b", "a|b", "name=val", "@x",          "#"};
    char long_name[130];
    memset(long_name, 'n', sizeof(long_name));
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        CHECK(manifest_name_valid(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
        if (manifest_name_valid(wrong[i])) {
            printf("# \"%s\" was taken\n", wrong[i]);
            test_failures++;
        }
    long_name[128] = '\0';
    CHECK(manifest_name_valid(long_name));
    long_name[128] = 'n';
    long_name[129] = '\0';
    CHECK(!manifest_name_valid(long_name));
}

static void test_not_utf8(void)
{
    struct manifest *m = sample();
    struct buffer text = {0};
    struct err err = {0};
    free(m->source);
    m->source = xstrdup("/models/caf\xE9.gguf");
    CHECK(manifest_write(m, &text, &err) == -1);
    CHECK_CONTAINS(err.message, "is not UTF-8");
    buffer_release(&text);
    manifest_free(&m);
}

static void test_files(void)
{
    char directory[] = "/tmp/lepton-test-XXXXXX";
    struct manifest *m;
    struct err err = {0};
    CHECK(mkdtemp(directory) != NULL);
    char *path = xasprintf("%s/m.json", directory), *other = xasprintf("%s/n.json", directory);
    char *text = sample_text();
    CHECK(manifest_read(&m, path, &err) == -1);
    CHECK_CONTAINS(err.message, "No such file");
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    CHECK(manifest_read(&m, path, &err) == 0 && m != NULL);
    manifest_free(&m);
    CHECK(symlink(path, other) == 0);
    CHECK(manifest_read(&m, other, &err) == -1);
    CHECK_CONTAINS(err.message, "expected a regular file");
    unlink(other);
    CHECK(mkfifo(other, 0600) == 0);
    CHECK(manifest_read(&m, other, &err) == -1);
    CHECK_CONTAINS(err.message, "expected a regular file");
    unlink(other);
    unlink(path);
    rmdir(directory);
    free(path);
    free(other);
    free(text);
}

int main(void)
{
    TEST(test_round_trip, "a manifest comes back as it was written; its digest is that of the content");
    TEST(test_bad, "bad manifests are refused, each with its own words");
    TEST(test_truncated, "a manifest cut off anywhere is refused");
    TEST(test_every_bit, "a flipped bit anywhere in a manifest is refused");
    TEST(test_bombs, "nesting and small values without end are refused before memory is taken");
    TEST(test_names, "names are letters, digits, dots, dashes and underscores");
    TEST(test_not_utf8, "a path that JSON cannot say is refused");
    TEST(test_files, "a manifest is a regular file, no link and no pipe");
    return test_result();
}
