#include "worker/model/safetensors.h"

#include <sys/stat.h>

#include "tests/test.h"

/* A file of a JSON header and `data_bytes` bytes of data. */

static void file_make(struct buffer *out, const char *header, uint64_t data_bytes)
{
    buffer_u64(out, strlen(header));
    buffer_append(out, header, strlen(header));
    for (uint64_t i = 0; i < data_bytes; i++)
        buffer_append(out, &(uint8_t){(uint8_t)i}, 1);
}

static int parse(struct safetensors **out, const char *header, uint64_t data_bytes, struct err *err)
{
    /* An exact copy on the heap, so that a read past the end is seen. */
    struct buffer file = {0};
    file_make(&file, header, data_bytes);
    uint8_t *exact = xmalloc(file.size);
    memcpy(exact, file.data, file.size);
    int rc = safetensors_parse(out, exact, file.size, "f", err);
    if (rc)
        CHECK(*out == NULL);
    else
        safetensors_close(out);
    free(exact);
    buffer_release(&file);
    return rc;
}

#define T(dtype, shape, begin, end) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" T(
    "F32", "[2,3]", "4", "28") ",\"a\":" T("F16", "[2]", "0", "4") ",\"i\":" T("I64", "[]", "28", "36") "}  ";

static void a_file_opens(void)
{
    struct buffer file = {0};
    struct safetensors *s;
    struct err err;
    file_make(&file, good, 36);
    CHECK_INT(safetensors_parse(&s, file.data, file.size, "f", &err), 0);
    CHECK_INT(safetensors_count(s), 3);
    CHECK_STR(safetensors_at(s, 0)->name, "a");
    const struct safetensors_tensor *b = safetensors_find(s, "b"), *i = safetensors_find(s, "i");
    CHECK(b && b->usable && b->dtype == DTYPE_F32 && b->ndim == 2 && b->dim[0] == 2 && b->dim[1] == 3);
    CHECK(b && b->bytes == 24 && b->data[0] == 4 && b->data[23] == 27);
    CHECK(i && !i->usable && i->ndim == 0 && i->bytes == 8);
    CHECK(!safetensors_find(s, "c"));
    CHECK_STR(safetensors_metadata(s, "format"), "pt");
    CHECK(!safetensors_metadata(s, "author"));
    safetensors_close(&s);
    buffer_release(&file);
}

static const struct {
    const char *header;
    uint64_t data_bytes;
    const char *error;
} bad[] = {
    {"{", 0, "expected 2 to 100000000"},
    {"[]", 0, "expected it to begin with '{'"},
    {" {}", 0, "expected it to begin with '{'"},
    {"{}x", 0, "JSON"},
    {"{]", 0, "JSON"},
    {"{}", 1, "1 bytes of data behind the last tensor's"},
    {"{\"a\":1}", 0, "tensor \"a\": expected an object"},
    {"{\"a\":[]}", 0, "tensor \"a\": expected an object"},
    {"{\"a\":{}}", 0, "dtype: expected a string"},
    {"{\"a\":{\"dtype\":7}}", 0, "dtype: expected a string"},
    {"{\"a\":{\"dtype\":\"F33\"}}", 0, "unknown dtype \"F33\""},
    {"{\"a\":{\"dtype\":\"\"}}", 0, "unknown dtype \"\""},
    {"{\"a\":{\"dtype\":\"f32\"}}", 0, "unknown dtype \"f32\""},
    {"{\"a\":{\"dtype\":\"F\\u001b[2J\"}}", 0, "unknown dtype \"F?[2J\""},
    {"{\"a\":{\"dtype\":\"F32\"}}", 0, "shape: expected an array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":3}}", 0, "shape: expected an array"},
    {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "9 dimensions, expected at most 8"},
    {"{\"a\":" T("F32", "[-1]", "0", "4") "}", 4, "dimension 0: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[0]", "0", "0") "}", 0, "dimension 0: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[2,0]", "0", "0") "}", 0, "dimension 1: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[1.5]", "0", "6") "}", 6, "dimension 0: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[\"1\"]", "0", "4") "}", 4, "dimension 0: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[null]", "0", "4") "}", 4, "dimension 0: expected an integer of 1 or more"},
    {"{\"a\":" T("F32", "[4611686018427387904]", "0", "0") "}", 0, "its size does not fit 63 bits"},
    {"{\"a\":" T("F32", "[4294967296,1073741824]", "0", "0") "}", 0, "its size does not fit 63 bits"},
    {"{\"a\":" T("U8", "[9223372036854775807,2]", "0", "0") "}", 0, "its size does not fit 63 bits"},
    {"{\"a\":" T("F32", "[99999999999999999999]", "0", "0") "}", 0, "JSON: too big integer"},
    {"{\"a\":" T("F32", "[1e400]", "0", "0") "}", 0, "JSON: real number overflow"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets: expected two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
     "data_offsets: expected two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "data_offsets: expected two"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", 4, "data_offsets: expected two"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{\"0\":4}}}", 4, "data_offsets: expected two"},
    {"{\"a\":" T("F32", "[1]", "-4", "0") "}", 4, "expected 0 <= begin <= end"},
    {"{\"a\":" T("F32", "[1]", "4", "0") "}", 4, "expected 0 <= begin <= end"},
    {"{\"a\":" T("F32", "[1]", "0", "5") "}", 4, "reach past the file's 4 bytes of data"},
    {"{\"a\":" T("F32", "[1]", "9223372036854775803", "9223372036854775807") "}", 4, "reach past the file's"},
    {"{\"a\":" T("F32", "[1]", "0", "3") "}", 4, "hold 3 bytes, its shape and dtype F32 need 4"},
    {"{\"a\":" T("F16", "[1]", "0", "4") "}", 4, "hold 4 bytes, its shape and dtype F16 need 2"},
    {"{\"a\":" T("BF16", "[2,2]", "0", "4") "}", 4, "hold 4 bytes, its shape and dtype BF16 need 8"},
    {"{\"a\":" T("F32", "[]", "0", "8") "}", 8, "hold 8 bytes, its shape and dtype F32 need 4"},
    {"{\"a\":" T("F32", "[1]", "0", "4") ",\"a\":" T("F32", "[1]", "4", "8") "}", 8, "duplicate object key"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "duplicate"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "unknown member \"x\""},
    {"{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "0", "4") "}", 4, "overlaps tensor"},
    {"{\"a\":" T("F32", "[2]", "0", "8") ",\"b\":" T("F32", "[1]", "4", "8") "}", 8, "overlaps tensor \"a\""},
    {"{\"a\":" T("F32", "[1]", "0", "4") ",\"b\":" T("F32", "[1]", "8", "12") "}", 12, "a hole of 4 bytes"},
    {"{\"a\":" T("F32", "[1]", "1", "5") "}", 5, "a hole of 1 bytes"},
    {"{\"a\":" T("F32", "[1]", "0", "4") "}", 5, "1 bytes of data behind the last tensor's"},
    {"{\"a\":" T("F32", "[1]", "0", "4") "}", 3, "reach past the file's 3 bytes of data"},
    {"{\"\":" T("F32", "[1]", "0", "4") "}", 4, "a name of 0 bytes"},
    {"{\"__metadata__\":3}", 0, "__metadata__: expected an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__: \"a\": expected a string"},
    {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, "__metadata__: \"a\": expected a string"},
    {"{\"a\\u0000b\":" T("F32", "[1]", "0", "4") "}", 4, "JSON"},
    {"{\"a\":{\"dtype\":\"F32\xFF\"}}", 0, "JSON: unable to decode byte 0xff"},
};

static void bad_headers_are_refused(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct safetensors *s;
        struct err err = {0};
        CHECK_INT(parse(&s, bad[i].header, bad[i].data_bytes, &err), -1);
        CHECK_CONTAINS(err.message, bad[i].error);
        CHECK_CONTAINS(err.message, "f:");
    }
}

static void bad_lengths_are_refused(void)
{
    static const struct {
        uint64_t length;
        const char *error;
    } lengths[] = {{0, "header length 0, expected 2"},
                   {1, "header length 1, expected 2"},
                   {100000001, "header length 100000001, expected 2 to 100000000"},
                   {UINT64_MAX, "header length 18446744073709551615, expected"},
                   {1000, "the file has only"}};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct buffer file = {0};
        struct safetensors *s;
        struct err err = {0};
        buffer_u64(&file, lengths[i].length);
        buffer_append(&file, "{}", 2);
        CHECK_INT(safetensors_parse(&s, file.data, file.size, "f", &err), -1);
        CHECK_CONTAINS(err.message, lengths[i].error);
        buffer_release(&file);
    }
}

static void every_truncation_is_refused(void)
{
    struct buffer file = {0};
    file_make(&file, good, 36);
    for (size_t n = 0; n < file.size; n++) {
        struct safetensors *s;
        struct err err = {0};
        uint8_t *exact = xmalloc(n + 1);
        memcpy(exact, file.data, n);
        exact = xrealloc(exact, n ? n : 1);
        CHECK_INT(safetensors_parse(&s, exact, n, "f", &err), -1);
        CHECK(err.message[0] != 0);
        free(exact);
    }
    buffer_release(&file);
}

static void deep_json_is_refused(void)
{
    char deep[4200];
    struct safetensors *s;
    struct err err = {0};
    memset(deep, 0, sizeof(deep));
    strcpy(deep, "{\"a\":");
    memset(deep + 5, '[', 4000);
    CHECK_INT(parse(&s, deep, 0, &err), -1);
    CHECK_CONTAINS(err.message, "nested deeper than 32");
}

/* 60 MB of "0," would be two gigabytes of values. */
static void json_that_would_fill_memory_is_refused(void)
{
    struct buffer file = {0};
    struct safetensors *s;
    struct err err = {0};
    size_t n = 60u << 20;
    buffer_u64(&file, n);
    buffer_append(&file, "{\"a\":[0", 7);
    uint8_t *filler = xmalloc(n);
    for (size_t i = 0; i < n; i++)
        filler[i] = i % 2 ? '0' : ',';
    buffer_append(&file, filler, n - 9);
    buffer_append(&file, "]}", 2);
    CHECK_INT(safetensors_parse(&s, file.data, file.size, "f", &err), -1);
    CHECK_CONTAINS(err.message, "bytes of memory, expected at most");
    free(filler);
    buffer_release(&file);
}

/* ---- directories -------------------------------------------------------------------------------------- */

static void put_file(const char *directory, const char *name, const void *data, size_t bytes)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0)
        die("%s: cannot write", path);
}

static void put_shard(const char *directory, const char *name, const char *tensor)
{
    char header[200];
    struct buffer file = {0};
    snprintf(header, sizeof(header), "{\"%s\":" T("F32", "[1]", "0", "4") "}", tensor);
    file_make(&file, header, 4);
    put_file(directory, name, file.data, file.size);
    buffer_release(&file);
}

static const struct {
    const char *index, *error; /* NULL: it opens */
} indexes[] = {
    {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", NULL},
    {"{\"weight_map\":{\"a\":\"one.safetensors\"}}", NULL},
    {"", "the file is empty"},
    {"[]", "expected a JSON object"},
    {"{}", "weight_map is missing or empty"},
    {"{\"weight_map\":{}}", "weight_map is missing or empty"},
    {"{\"weight_map\":[]}", "weight_map: expected an object, found an array"},
    {"{\"weight_map\":{\"a\":1}}", "weight_map: \"a\": expected a file name"},
    {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "expected the name of a file in this directory"},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "expected the name of a file in this directory"},
    {"{\"weight_map\":{\"a\":\"x/one.safetensors\"}}", "expected the name of a file in this directory"},
    {"{\"weight_map\":{\"a\":\"..\"}}", "expected the name of a file in this directory"},
    {"{\"weight_map\":{\"a\":\".safetensors\"}}", "expected the name of a file in this directory"},
    {"{\"weight_map\":{\"a\":\"\"}}", "expected a .safetensors file"},
    {"{\"weight_map\":{\"a\":\"one.bin\"}}", "expected a .safetensors file"},
    {"{\"weight_map\":{\"a\":\"three.safetensors\"}}", "three.safetensors is missing"},
    {"{\"weight_map\":{\"c\":\"one.safetensors\"}}", "tensor \"c\" is not in one.safetensors"},
    {"{\"weight_map\":{\"b\":\"one.safetensors\"}}", "tensor \"b\" is not in one.safetensors"},
    {"{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", "duplicate object key"},
};

static void directories_of_shards(void)
{
    char directory[] = "/tmp/test_safetensors-XXXXXX", path[300];
    struct safetensors *s;
    struct err err;
    if (!mkdtemp(directory))
        die("mkdtemp");
    CHECK_INT(safetensors_open_directory(&s, directory, &err), -1);
    CHECK_CONTAINS(err.message, "neither model.safetensors nor");
    put_file(directory, "pytorch_model.bin", "x", 1);
    CHECK_INT(safetensors_open_directory(&s, directory, &err), -1);
    CHECK_CONTAINS(err.message, "a program and not only data");
    put_shard(directory, "one.safetensors", "a");
    put_shard(directory, "two.safetensors", "b");
    for (size_t i = 0; i < ARRAY_LEN(indexes); i++) {
        put_file(directory, "model.safetensors.index.json", indexes[i].index, strlen(indexes[i].index));
        CHECK_INT(safetensors_open_directory(&s, directory, &err), indexes[i].error ? -1 : 0);
        if (indexes[i].error)
            CHECK_CONTAINS(err.message, indexes[i].error);
        else
            CHECK(safetensors_find(s, "a") != NULL);
        safetensors_close(&s);
    }
    static const char *const names[] = {"pytorch_model.bin", "one.safetensors", "two.safetensors",
                                        "model.safetensors.index.json"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

static void what_is_written_reads_back(void)
{
    char path[] = "/tmp/test_safetensors-XXXXXX";
    struct safetensors_writer *w;
    struct safetensors *s;
    struct err err;
    float values[6] = {1, 2, 3, 4, 5, 6};
    close(mkstemp(path));
    CHECK_INT(safetensors_writer_open(&w, path, &err), 0);
    safetensors_writer_tensor(w, "m", DTYPE_F32, 2, (int64_t[]){2, 3});
    safetensors_writer_tensor(w, "h", DTYPE_BF16, 1, (int64_t[]){1});
    CHECK_INT(safetensors_writer_begin(w, &err), 0);
    CHECK_INT(safetensors_writer_data(w, values, 12, &err), 0);
    CHECK_INT(safetensors_writer_data(w, values + 3, 12, &err), 0);
    CHECK_INT(safetensors_writer_data(w, "\x80\x3F", 2, &err), 0);
    CHECK_INT(safetensors_writer_close(&w, &err), 0);
    CHECK_INT(safetensors_open(&s, path, &err), 0);
    const struct safetensors_tensor *m = safetensors_find(s, "m");
    CHECK(m && (uintptr_t)m->data % 8 == 0 && memcmp(m->data, values, sizeof(values)) == 0);
    safetensors_close(&s);
    CHECK_INT(safetensors_writer_open(&w, path, &err), 0);
    safetensors_writer_tensor(w, "m", DTYPE_F32, 1, (int64_t[]){2});
    CHECK_INT(safetensors_writer_begin(w, &err), 0);
    CHECK_INT(safetensors_writer_close(&w, &err), -1);
    CHECK_CONTAINS(err.message, "0 of 8 bytes");
    CHECK_INT(safetensors_open(&s, path, &err), 0); /* the old file is still there */
    safetensors_close(&s);
    unlink(path);
}

int main(void)
{
    TEST(a_file_opens, "a safetensors file opens");
    TEST(bad_headers_are_refused, "55 bad headers are refused, each for its own reason");
    TEST(bad_lengths_are_refused, "header lengths that cannot be are refused");
    TEST(every_truncation_is_refused, "a file cut at any byte is refused");
    TEST(deep_json_is_refused, "deep JSON is refused before it is parsed");
    TEST(json_that_would_fill_memory_is_refused,
         "JSON that would fill the memory is refused before it is parsed");
    TEST(directories_of_shards, "shards are found by the index, which may not leave the directory");
    TEST(what_is_written_reads_back, "what is written reads back, and an unfinished file replaces nothing");
    return test_result();
}
