#include "common/base.h"
#include "tests/test.h"

static void test_reader_refuses_past_the_end(void)
{
    const uint8_t bytes[6] = {1, 0, 0, 0, 9, 9};
    struct err err;
    struct reader r;
    reader_init(&r, bytes, sizeof(bytes), "file.bin", &err);
    uint32_t v = 0;
    CHECK_INT(reader_u32(&r, "version", &v), 0);
    CHECK_INT(v, 1);
    CHECK_INT(reader_u32(&r, "count", &v), -1);
    CHECK_STR(err.message, "file.bin:4: count: expected 4 bytes, only 2 are left");
    uint8_t b;
    CHECK_INT(reader_u8(&r, "later", &b), -1); /* a failed reader stays failed */
}

static void test_checked_arithmetic_sees_wraps(void)
{
    uint64_t out;
    CHECK(!checked_add_u64(UINT64_MAX, 1, &out));
    CHECK(!checked_mul_u64(1ull << 33, 1ull << 31, &out));
    CHECK(checked_mul_u64(1ull << 32, 1ull << 31, &out) && out == 1ull << 63);
}

static void test_utf8_follows_rfc_3629(void)
{
    CHECK(utf8_valid("h\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10));
    CHECK(!utf8_valid("\xC0\x80", 2));         /* overlong */
    CHECK(!utf8_valid("\xED\xA0\x80", 3));     /* surrogate */
    CHECK(!utf8_valid("\xF4\x90\x80\x80", 4)); /* past U+10FFFF */
    CHECK(!utf8_valid("\xE2\x82", 2));         /* cut */
    CHECK(!utf8_valid("\xF0\x8F\xBF\xBF", 4)); /* overlong */
}

static void test_errors_keep_their_words(void)
{
    struct err err;
    CHECK_INT(err_set_code(&err, 404, "model %s", "x"), -1);
    CHECK_INT(err_prefix(&err, "group %d", 3), -1);
    CHECK_STR(err.message, "group 3: model x");
    CHECK_INT(err.code, 404);
}

static void test_buffer_grows(void)
{
    struct buffer b = {0};
    for (int i = 0; i < 1000; i++)
        buffer_printf(&b, "%d,", i % 10);
    CHECK_INT(b.size, 2000);
    CHECK(memcmp(b.data + 1998, "9,", 2) == 0);
    buffer_release(&b);
    CHECK(b.data == NULL);
}

int main(void)
{
    TEST(test_reader_refuses_past_the_end, "a reader refuses to read past the end and says where");
    TEST(test_checked_arithmetic_sees_wraps, "checked arithmetic sees 64-bit wraps");
    TEST(test_utf8_follows_rfc_3629, "utf8_valid follows RFC 3629");
    TEST(test_errors_keep_their_words, "err_prefix keeps the code and the message");
    TEST(test_buffer_grows, "a buffer grows as it is written");
    return test_result();
}
