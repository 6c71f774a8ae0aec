/* gguf: reading what the writer wrote, typed getters and their refusals, every truncation, and real files.
 * Hand-made bad files are in test_gguf_bad.c. */
#include "worker/model/gguf.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "tests/test.h"

static char directory[] = "/tmp/lepton-test-gguf-XXXXXX";

static const char *in_directory(const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static const char *const tokens[] = {"<unk>", "", "\xE2\x96\x81the", "line\nend"};
static const float scores[] = {0, -1.5f, -2, -3};
static const int32_t kinds[] = {2, 1, 1, -6};

/* A file with a value of every kind that the writer knows and three tensors; the last is a multiple of the
 * alignment, so that the file ends with its last byte. */
static void write_sample(const char *path)
{
    struct gguf_writer *w;
    struct err err = {0};
    float matrix[2 * 3] = {1, 2, 3, 4, 5, 6}, last[8] = {7, 0, 0, 0, 0, 0, 0, 9};
    struct block_q8_0 blocks[2] = {{.scale = 0x3C00, .q = {1, -1}}, {.scale = 0x4000, .q = {127}}};
    CHECK_INT(gguf_writer_open(&w, path, &err), 0);
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_uint(w, "small", 42);
    gguf_writer_uint(w, "large", 1ull << 40);
    gguf_writer_float(w, "epsilon", 1e-5);
    gguf_writer_bool(w, "yes", true);
    gguf_writer_strings(w, "tokens", tokens, ARRAY_LEN(tokens));
    gguf_writer_floats(w, "scores", scores, ARRAY_LEN(scores));
    gguf_writer_ints(w, "kinds", kinds, ARRAY_LEN(kinds));
    gguf_writer_tensor(w, "matrix", DTYPE_F32, 2, (int64_t[]){2, 3});
    gguf_writer_tensor(w, "blocks", DTYPE_Q8_0, 3, (int64_t[]){2, 1, 32});
    gguf_writer_tensor(w, "last", DTYPE_F32, 1, (int64_t[]){8});
    CHECK_INT(gguf_writer_begin(w, &err), 0);
    CHECK_INT(gguf_writer_data(w, matrix, 12, &err), 0); /* row by row */
    CHECK_INT(gguf_writer_data(w, matrix + 3, 12, &err), 0);
    CHECK_INT(gguf_writer_data(w, blocks, sizeof(blocks), &err), 0);
    CHECK_INT(gguf_writer_data(w, last, sizeof(last), &err), 0);
    CHECK_INT(gguf_writer_close(&w, &err), 0);
    CHECK(w == NULL);
    CHECK_STR(err.message, "");
}

static struct gguf *open_sample(void)
{
    struct gguf *g;
    struct err err = {0};
    write_sample(in_directory("sample.gguf"));
    if (gguf_open(&g, in_directory("sample.gguf"), &err)) {
        printf("# %s\n", err.message);
        test_failures++;
        exit(1);
    }
    return g;
}

static bool string_is(struct gguf_string s, const char *expected)
{
    return s.size == strlen(expected) && memcmp(s.data, expected, s.size) == 0;
}

/* The file's bytes at the end of a heap block, so that ASan sees one byte too far. */
static uint8_t *load(const char *path, uint64_t *size)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st))
        exit(1);
    *size = (uint64_t)st.st_size;
    uint8_t *data = malloc(*size);
    if (fread(data, 1, *size, f) != *size)
        exit(1);
    fclose(f);
    return data;
}

static void test_scalars(void)
{
    struct gguf *g = open_sample();
    struct err err = {0};
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    bool b = false;
    struct gguf_string s;
    CHECK_INT(gguf_get_uint(g, "small", &u, &err), 1);
    CHECK_INT(u, 42);
    CHECK_INT(gguf_get_int(g, "small", &i, &err), 1);
    CHECK_INT(i, 42);
    CHECK_INT(gguf_get_uint(g, "large", &u, &err), 1);
    CHECK_INT(u, 1ll << 40);
    CHECK_INT(gguf_get_float(g, "epsilon", &d, &err), 1);
    CHECK_NEAR(d, (double)1e-5f, 0);
    CHECK_INT(gguf_get_bool(g, "yes", &b, &err), 1);
    CHECK(b);
    CHECK_INT(gguf_get_string(g, "general.architecture", &s, &err), 1);
    CHECK(string_is(s, "llama"));
    CHECK_INT(gguf_version(g), 3);
    CHECK_INT(gguf_alignment(g), 32);
    gguf_close(&g);
    CHECK(g == NULL);
}

static void test_absent(void)
{
    struct gguf *g = open_sample();
    struct err err = {0};
    uint64_t u = 7;
    enum gguf_type element;
    CHECK_INT(gguf_get_uint(g, "none", &u, &err), 0);
    CHECK_INT(gguf_get_uint(g, "smal", &u, &err), 0);
    CHECK_INT(gguf_get_uint(g, "", &u, &err), 0);
    CHECK_INT(gguf_get_array(g, "none", &element, &u, &err), 0);
    CHECK_INT(u, 7);
    CHECK(gguf_array_data(g, "none") == NULL);
    CHECK(gguf_tensor_find(g, "none") == NULL);
    CHECK_STR(err.message, "");
    gguf_close(&g);
}

static void test_wrong_types(void)
{
    struct gguf *g = open_sample();
    struct err err = {0};
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    bool b = false;
    struct gguf_string s;
    enum gguf_type element;
    CHECK_INT(gguf_get_uint(g, "general.architecture", &u, &err), -1);
    CHECK_CONTAINS(err.message, "key \"general.architecture\" is of type string, expected an integer");
    CHECK_INT(gguf_get_int(g, "epsilon", &i, &err), -1);
    CHECK_CONTAINS(err.message, "key \"epsilon\" is of type f32, expected an integer");
    CHECK_INT(gguf_get_float(g, "small", &d, &err), -1);
    CHECK_CONTAINS(err.message, "key \"small\" is of type u32, expected f32 or f64");
    CHECK_INT(gguf_get_bool(g, "small", &b, &err), -1);
    CHECK_CONTAINS(err.message, "key \"small\" is of type u32, expected bool");
    CHECK_INT(gguf_get_string(g, "tokens", &s, &err), -1);
    CHECK_CONTAINS(err.message, "key \"tokens\" is of type array, expected string");
    CHECK_INT(gguf_get_array(g, "yes", &element, &u, &err), -1);
    CHECK_CONTAINS(err.message, "key \"yes\" is of type bool, expected array");
    CHECK_CONTAINS(err.message, "sample.gguf: ");
    gguf_close(&g);
}

static void test_arrays(void)
{
    struct gguf *g = open_sample();
    struct err err = {0};
    enum gguf_type element = 0;
    uint64_t count = 0;
    CHECK_INT(gguf_get_array(g, "tokens", &element, &count, &err), 1);
    CHECK_INT(element, GGUF_STRING);
    CHECK_INT(count, ARRAY_LEN(tokens));
    for (uint64_t k = 0; k < count; k++)
        CHECK(string_is(gguf_array_string(g, "tokens", k), tokens[k]));
    CHECK(gguf_array_data(g, "tokens") == NULL);
    CHECK_INT(gguf_get_array(g, "scores", &element, &count, &err), 1);
    CHECK_INT(element, GGUF_F32);
    CHECK_NEAR(gguf_array_float(g, "scores", 1), -1.5, 0);
    CHECK(memcmp(gguf_array_data(g, "scores"), scores, sizeof(scores)) == 0);
    CHECK_INT(gguf_get_array(g, "kinds", &element, &count, &err), 1);
    CHECK_INT(element, GGUF_I32);
    CHECK_INT(gguf_array_int(g, "kinds", 3), -6);
    CHECK_NEAR(gguf_array_float(g, "kinds", 3), -6, 0);
    gguf_close(&g);
}

static void test_keys_in_order(void)
{
    struct gguf *g = open_sample();
    enum gguf_type type;
    CHECK_INT(gguf_key_count(g), 8);
    CHECK(string_is(gguf_key(g, 0, &type), "general.architecture"));
    CHECK_STR(gguf_type_name(type), "string");
    CHECK(string_is(gguf_key(g, 2, &type), "large"));
    CHECK_STR(gguf_type_name(type), "u64");
    CHECK(string_is(gguf_key(g, 7, NULL), "kinds"));
    gguf_close(&g);
}

static void test_tensors(void)
{
    struct gguf *g = open_sample();
    float value;
    CHECK_INT(gguf_tensor_count(g), 3);
    const struct gguf_tensor *t = gguf_tensor_find(g, "matrix");
    CHECK(t == gguf_tensor_at(g, 0) && t->dtype == DTYPE_F32 && t->ndim == 2);
    CHECK_INT(t->dim[0], 2);
    CHECK_INT(t->dim[1], 3);
    CHECK_INT(t->bytes, 24);
    memcpy(&value, (const char *)t->mapped + 20, 4);
    CHECK_NEAR(value, 6, 0);
    t = gguf_tensor_find(g, "blocks");
    CHECK(t && t->dtype == DTYPE_Q8_0 && t->ndim == 3 && t->dim[0] == 2 && t->dim[1] == 1 && t->dim[2] == 32);
    CHECK_INT(t->bytes, 68);
    CHECK_INT(((const int8_t *)t->mapped)[3], -1);
    t = gguf_tensor_find(g, "last");
    CHECK_INT(t->offset % 32, 0);
    CHECK_INT(t->offset + t->bytes, gguf_file_bytes(g));
    memcpy(&value, (const char *)t->mapped + 28, 4);
    CHECK_NEAR(value, 9, 0);
    gguf_close(&g);
}

static void test_every_truncation(void)
{
    uint64_t size;
    struct err err;
    struct gguf *g;
    write_sample(in_directory("sample.gguf"));
    uint8_t *data = load(in_directory("sample.gguf"), &size);
    for (uint64_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, data, n);
        err = (struct err){0};
        if (gguf_parse(&g, cut, n, "cut.gguf", &err) == 0 || g != NULL ||
            strncmp(err.message, "cut.gguf:", 9) != 0 ||
            !(strstr(err.message, "are left") || strstr(err.message, "do not fit") ||
              strstr(err.message, "does not fit") || strstr(err.message, "past the end"))) {
            printf("# cut at %llu: %s\n", (unsigned long long)n, err.message);
            test_failures++;
        }
        free(cut);
    }
    CHECK_INT(gguf_parse(&g, data, size, "whole.gguf", &err), 0);
    gguf_close(&g);
    free(data);
}

/* Any byte of the tables may be anything: the parser answers, and what it accepts can be touched. */
static void test_every_flipped_byte(void)
{
    uint64_t size, accepted = 0;
    struct gguf *g;
    write_sample(in_directory("sample.gguf"));
    uint8_t *data = load(in_directory("sample.gguf"), &size);
    for (uint64_t at = 0; at < size; at++)
        for (int flip = 1; flip < 256; flip = flip * 2 + (flip == 64)) {
            struct err err = {0};
            data[at] ^= (uint8_t)flip;
            if (gguf_parse(&g, data, size, "flipped.gguf", &err) == 0) {
                struct buffer text = {0};
                for (uint64_t k = 0; k < gguf_key_count(g); k++)
                    gguf_format_value(g, k, 20, &text);
                for (uint64_t k = 0; k < gguf_tensor_count(g); k++) {
                    const struct gguf_tensor *t = gguf_tensor_at(g, k);
                    CHECK(t->offset + t->bytes <= size);
                }
                CHECK(text.size > 0);
                buffer_release(&text);
                gguf_close(&g);
                accepted++;
            } else {
                CHECK(strlen(err.message) > 15);
            }
            data[at] ^= (uint8_t)flip;
        }
    CHECK(accepted > 0);
    free(data);
}

static void format_key(const struct gguf *g, const char *key, size_t limit, char *out, size_t bytes)
{
    struct buffer text = {0};
    for (uint64_t k = 0; k < gguf_key_count(g); k++)
        if (string_is(gguf_key(g, k, NULL), key))
            gguf_format_value(g, k, limit, &text);
    snprintf(out, bytes, "%.*s", (int)text.size, text.size ? (char *)text.data : "");
    buffer_release(&text);
}

static void test_format(void)
{
    struct gguf_writer *w;
    struct gguf *g;
    struct err err = {0};
    char text[200];
    int32_t many[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    CHECK_INT(gguf_writer_open(&w, in_directory("format.gguf"), &err), 0);
    gguf_writer_string(w, "evil", "\x1B[2J\"\\\n\xC2\x9B\xFF");
    gguf_writer_string(w, "long", "abc\xE2\x96\x81xyz");
    gguf_writer_ints(w, "many", many, 9);
    gguf_writer_ints(w, "empty", many, 0);
    gguf_writer_strings(w, "words", tokens, 3);
    gguf_writer_float(w, "tenth", 0.1);
    gguf_writer_float(w, "third", 1 / 3.0);
    gguf_writer_float(w, "nan", NAN);
    gguf_writer_bool(w, "no", false);
    CHECK_INT(gguf_writer_begin(w, &err), 0);
    CHECK_INT(gguf_writer_close(&w, &err), 0);
    CHECK_INT(gguf_open(&g, in_directory("format.gguf"), &err), 0);
    format_key(g, "evil", 99, text, sizeof(text));
    CHECK_STR(text, "\"\\x1b[2J\\\"\\\\\\n\\xc2\\x9b\\xff\"");
    format_key(g, "long", 5, text, sizeof(text));
    CHECK_STR(text, "\"abc\"... (9 bytes)");
    format_key(g, "long", 6, text, sizeof(text));
    CHECK_STR(text, "\"abc\xE2\x96\x81\"... (9 bytes)");
    format_key(g, "many", 9, text, sizeof(text));
    CHECK_STR(text, "[1, 2, 3, 4, 5, 6, ...] (9 x i32)");
    format_key(g, "empty", 9, text, sizeof(text));
    CHECK_STR(text, "[] (0 x i32)");
    format_key(g, "words", 99, text, sizeof(text));
    CHECK_STR(text, "[\"<unk>\", \"\", \"\xE2\x96\x81the\"] (3 x string)");
    format_key(g, "tenth", 9, text, sizeof(text));
    CHECK_STR(text, "0.1");
    format_key(g, "third", 9, text, sizeof(text));
    CHECK_STR(text, "0.33333334");
    format_key(g, "nan", 9, text, sizeof(text));
    CHECK_CONTAINS(text, "nan");
    format_key(g, "no", 9, text, sizeof(text));
    CHECK_STR(text, "false");
    gguf_close(&g);
}

static void test_fingerprint(void)
{
    struct err err = {0};
    struct gguf *g = open_sample();
    char first[33], again[33], other[33];
    uint64_t size;
    gguf_fingerprint(g, first);
    gguf_close(&g);
    CHECK_INT(strlen(first), 32);
    uint8_t *data = load(in_directory("sample.gguf"), &size);
    CHECK_INT(gguf_parse(&g, data, size, "a copy elsewhere", &err), 0);
    gguf_fingerprint(g, again);
    gguf_close(&g);
    CHECK_STR(again, first);
    data[size - 1] ^= 1; /* the last weight's last byte */
    CHECK_INT(gguf_parse(&g, data, size, "other weights", &err), 0);
    gguf_fingerprint(g, other);
    gguf_close(&g);
    CHECK(strcmp(other, first) != 0);
    free(data);
}

static void test_files_that_are_none(void)
{
    struct gguf *g;
    struct err err = {0};
    CHECK_INT(gguf_open(&g, in_directory("absent.gguf"), &err), -1);
    CHECK_CONTAINS(err.message, "absent.gguf: No such file or directory");
    CHECK_INT(gguf_open(&g, directory, &err), -1);
    CHECK_CONTAINS(err.message, "no regular file");
    CHECK_INT(mkfifo(in_directory("fifo"), 0600), 0);
    CHECK_INT(gguf_open(&g, in_directory("fifo"), &err), -1);
    CHECK_CONTAINS(err.message, "no regular file");
    fclose(fopen(in_directory("empty.gguf"), "wb"));
    CHECK_INT(gguf_open(&g, in_directory("empty.gguf"), &err), -1);
    CHECK_CONTAINS(err.message, "empty.gguf:0: magic: expected 4 bytes, only 0 are left");
    CHECK(g == NULL);
    gguf_close(&g);
}

static void test_writer_refusals(void)
{
    struct gguf_writer *w;
    struct err err = {0};
    CHECK_INT(gguf_writer_open(&w, "/nonexistent/x.gguf", &err), -1);
    CHECK_CONTAINS(err.message, "/nonexistent/x.gguf");
    const struct {
        enum dtype dtype;
        int64_t dim[2];
        const char *message;
    } bad[] = {
        {DTYPE_Q8_0, {2, 33}, "tensor \"t\": rows of 33 elements are no whole q8_0 blocks of 32"},
        {DTYPE_F32, {0, 4}, "tensor \"t\": dimension of 0"},
        {DTYPE_F32, {4, -1}, "tensor \"t\": dimension of -1"},
        {DTYPE_F32, {1ll << 40, 1ll << 40}, "tensor \"t\": its size does not fit 64 bits"},
        {DTYPE_F32, {1ll << 30, 1ll << 31}, "larger than 2^63 bytes"},
    };
    for (size_t k = 0; k < ARRAY_LEN(bad); k++) {
        CHECK_INT(gguf_writer_open(&w, in_directory("refused.gguf"), &err), 0);
        gguf_writer_tensor(w, "t", bad[k].dtype, 2, bad[k].dim);
        gguf_writer_tensor(w, "fine", DTYPE_F32, 1, (int64_t[]){1});
        CHECK_INT(gguf_writer_begin(w, &err), -1);
        CHECK_CONTAINS(err.message, bad[k].message);
        CHECK_INT(gguf_writer_close(&w, NULL), -1);
        CHECK(access(in_directory("refused.gguf"), F_OK) != 0);
    }
}

static void test_writer_incomplete(void)
{
    struct gguf_writer *w;
    struct err err = {0};
    float x[2] = {1, 2};
    char temporary[200];
    write_sample(in_directory("kept.gguf"));
    CHECK_INT(gguf_writer_open(&w, in_directory("kept.gguf"), &err), 0);
    gguf_writer_tensor(w, "t", DTYPE_F32, 1, (int64_t[]){2});
    CHECK_INT(gguf_writer_begin(w, &err), 0);
    CHECK_INT(gguf_writer_data(w, x, 4, &err), 0);
    snprintf(temporary, sizeof(temporary), "%s.tmp-%ld", in_directory("kept.gguf"), (long)getpid());
    CHECK(access(temporary, F_OK) == 0);
    CHECK_INT(gguf_writer_close(&w, &err), -1);
    CHECK_CONTAINS(err.message, "0 of 1 tensors were complete");
    CHECK(access(temporary, F_OK) != 0);
    struct gguf *g;
    CHECK_INT(gguf_open(&g, in_directory("kept.gguf"), &err), 0);
    CHECK_INT(gguf_tensor_count(g), 3);
    gguf_close(&g);
}

/* 100,000 keys, as many tensors and tokens: a quadratic search would take minutes here. */
static void test_many_names(void)
{
    enum { COUNT = 100000 };
    struct gguf_writer *w;
    struct gguf *g;
    struct err err = {0};
    char name[32];
    float zero[8] = {0};
    uint64_t value = 0;
    CHECK_INT(gguf_writer_open(&w, in_directory("many.gguf"), &err), 0);
    for (int k = 0; k < COUNT; k++) {
        snprintf(name, sizeof(name), "name.%d", k);
        gguf_writer_uint(w, name, (uint64_t)k);
        gguf_writer_tensor(w, name, DTYPE_F32, 1, (int64_t[]){8});
    }
    CHECK_INT(gguf_writer_begin(w, &err), 0);
    for (int k = 0; k < COUNT; k++)
        gguf_writer_data(w, zero, sizeof(zero), &err);
    CHECK_INT(gguf_writer_close(&w, &err), 0);
    CHECK_INT(gguf_open(&g, in_directory("many.gguf"), &err), 0);
    CHECK_INT(gguf_tensor_count(g), COUNT);
    for (int k = 0; k < COUNT; k++) {
        snprintf(name, sizeof(name), "name.%d", k);
        if (gguf_get_uint(g, name, &value, &err) != 1 || value != (uint64_t)k ||
            gguf_tensor_find(g, name) != gguf_tensor_at(g, (uint64_t)k))
            test_failures++;
    }
    gguf_close(&g);
}

static void check_vocabulary(const char *path, uint64_t expected, uint64_t tensors)
{
    struct gguf *g;
    struct err err = {0};
    enum gguf_type element;
    uint64_t count = 0;
    if (gguf_open(&g, path, &err)) {
        printf("# %s\n", err.message);
        test_failures++;
        return;
    }
    CHECK_INT(gguf_get_array(g, "tokenizer.ggml.tokens", &element, &count, &err), 1);
    CHECK_INT(count, expected);
    CHECK_INT(gguf_tensor_count(g), tensors);
    CHECK(gguf_array_string(g, "tokenizer.ggml.tokens", count - 1).size > 0);
    gguf_close(&g);
}

static void test_real_models(void)
{
    const char *path = test_shared("data/lm/stories260K/stories260K.gguf");
    if (!path)
        SKIP("no shared data");
    check_vocabulary(path, 512, 48);
    check_vocabulary(test_shared("data/lm/llama-2-tiny-random/llama-2-tiny-random.gguf"), 32000, 12);
}

static void test_real_vocabularies(void)
{
    const char *path = test_shared("data/tokenizer/ggml-vocab-llama-spm.gguf");
    if (!path)
        SKIP("no shared data");
    check_vocabulary(path, 32000, 0);
    check_vocabulary(test_shared("data/tokenizer/ggml-vocab-gpt-2.gguf"), 50257, 0);
    check_vocabulary(test_shared("data/tokenizer/ggml-vocab-falcon.gguf"), 65024, 0);
}

int main(void)
{
    char clean[64];
    if (!mkdtemp(directory))
        return 1;
    TEST(test_scalars, "scalars come back as written");
    TEST(test_absent, "absent keys and tensors are absent, not errors");
    TEST(test_wrong_types, "a wrong type names the key, the type found and the type expected");
    TEST(test_arrays, "arrays come back as written");
    TEST(test_keys_in_order, "keys keep the file's order");
    TEST(test_tensors, "tensors come back as written, dimensions row-major");
    TEST(test_every_truncation, "a file cut at any byte is refused with a specific error");
    TEST(test_every_flipped_byte, "no flipped bit crashes the parser");
    TEST(test_format, "values are shown escaped, shortened and counted");
    TEST(test_fingerprint, "the fingerprint follows the bytes and not the path");
    TEST(test_files_that_are_none, "absent files, directories, FIFOs and empty files are refused");
    TEST(test_writer_refusals, "the writer refuses impossible tensors by name");
    TEST(test_writer_incomplete, "an incomplete write leaves the old file and no temporary one");
    TEST(test_many_names, "100,000 keys and tensors are opened and found in linear time");
    TEST(test_real_models, "real models open");
    TEST(test_real_vocabularies, "real vocabularies open");
    snprintf(clean, sizeof(clean), "rm -rf %s", directory);
    if (system(clean) != 0)
        return 1;
    return test_result();
}
