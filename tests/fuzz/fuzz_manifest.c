/* libFuzzer over manifests. The first byte chooses what the rest is:
 *
 *   even  a manifest's text as it is
 *   odd   the values of a manifest: it is written and read back, which must give the same text again or a
 *         refusal; and again with one byte of the text changed, which must not give another manifest */
#include <string.h>

#include "worker/model/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What was taken can be written, and is then the same. */
static void check_again(const struct manifest *m)
{
    struct buffer text = {0}, again = {0};
    struct manifest *second = NULL;
    struct err err = {0};
    char digest[2 * MANIFEST_HASH + 1];
    manifest_digest(m, digest);
    ASSERT(manifest_name_valid(m->name) && m->tensor_count > 0);
    ASSERT(manifest_write(m, &text, &err) == 0);
    ASSERT(manifest_parse(&second, text.data, text.size, "again.json", &err) == 0);
    ASSERT(manifest_write(second, &again, &err) == 0);
    ASSERT(again.size == text.size && memcmp(again.data, text.data, text.size) == 0);
    manifest_free(&second);
    buffer_release(&text);
    buffer_release(&again);
}

static void parse(const void *data, size_t size)
{
    struct manifest *m = NULL;
    struct err err = {0};
    if (manifest_parse(&m, data, size, "fuzz.json", &err)) {
        ASSERT(!m && err.message[0]);
        return;
    }
    check_again(m);
    manifest_free(&m);
}

/* Takes a number or a short text off the front of the input. */
struct input {
    const uint8_t *data;
    size_t size;
};

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t n = 0;
    for (; bytes && in->size; bytes--, in->data++, in->size--)
        n = n << 8 | in->data[0];
    return n;
}

static char *take_text(struct input *in)
{
    size_t n = take(in, 1) % 40;
    n = n < in->size ? n : in->size;
    char *text = xasprintf("%.*s", (int)n, (const char *)in->data); /* ends at a zero byte */
    in->data += n;
    in->size -= n;
    return text;
}

static struct manifest *make(struct input *in)
{
    struct manifest *m = xcalloc(1, sizeof(*m));
    m->name = take_text(in);
    m->source = take_text(in);
    m->linked = take(in, 1) & 1;
    m->file_bytes = take(in, 8);
    m->file_time_ns = (int64_t)take(in, 8);
    m->created_s = (int64_t)take(in, 5);
    m->header_bytes = take(in, 4);
    m->tensor_count = take(in, 1) % 6;
    m->tensor = xcalloc(m->tensor_count + 1, sizeof(*m->tensor));
    for (uint64_t i = 0; i < m->tensor_count; i++) {
        struct manifest_tensor *t = &m->tensor[i];
        t->name = take_text(in);
        t->bytes = take(in, 3);
        t->hash[0] = (uint8_t)take(in, 1);
        t->chunk = xcalloc(manifest_chunks(t->bytes) + 1, MANIFEST_CHUNK_HASH);
        t->chunk[0] = (uint8_t)take(in, 1);
    }
    return m;
}

static void parse_made(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct manifest *m = make(&in), *read = NULL;
    struct buffer text = {0}, again = {0};
    struct err err = {0};
    if (manifest_write(m, &text, &err) == 0) {
        parse(text.data, text.size);
        text.data[take(&in, 3) % text.size] ^= (uint8_t)take(&in, 1);
        if (manifest_parse(&read, text.data, text.size, "changed.json", &err) == 0) {
            struct buffer whole = {0};
            ASSERT(manifest_write(read, &again, &err) == 0 && manifest_write(m, &whole, &err) == 0);
            ASSERT(again.size == whole.size && memcmp(again.data, whole.data, whole.size) == 0);
            buffer_release(&whole);
        }
        manifest_free(&read);
    }
    buffer_release(&text);
    buffer_release(&again);
    manifest_free(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] & 1)
        parse_made(data + 1, size - 1);
    else
        parse(data + 1, size - 1);
    return 0;
}
