/* fuzz_gguf: any bytes as a GGUF file. What the parser accepts is then used as a loader would: every key
 * shown and asked for by each getter, every array element read, the first and last byte of every tensor
 * touched, and the fingerprint taken. Seeds: tests/fuzz/seeds/fuzz_gguf, made by
 * tests/fuzz/make_gguf_seeds.py. */
#include "worker/model/gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t sum; /* what was read is used, so that no read is optimised away */

static void touch(const void *data, uint64_t bytes)
{
    const volatile uint8_t *p = data;
    if (bytes)
        sum += (uint64_t)p[0] + p[bytes - 1];
}

static void touch_array(const struct gguf *g, const char *key, enum gguf_type element, uint64_t count)
{
    /* Elements of large arrays have the same size: the ends are enough. */
    for (uint64_t i = 0; i < count; i = i == 8 && count > 32 ? count - 8 : i + 1) {
        if (element == GGUF_STRING) {
            struct gguf_string s = gguf_array_string(g, key, i);
            touch(s.data, s.size);
        } else if (element == GGUF_F32 || element == GGUF_F64) {
            sum += gguf_array_float(g, key, i) > 0;
        } else {
            sum += (uint64_t)gguf_array_int(g, key, i);
        }
    }
    ASSERT((gguf_array_data(g, key) != NULL) == (element != GGUF_STRING));
}

static void touch_key(const struct gguf *g, uint64_t index)
{
    enum gguf_type type, element;
    struct gguf_string name = gguf_key(g, index, &type), s = {0};
    struct err err;
    uint64_t u, count;
    int64_t i;
    double d;
    bool b;
    char *key = xmalloc(name.size + 1);
    memcpy(key, name.data, name.size);
    key[name.size] = 0;
    int found = gguf_get_uint(g, key, &u, &err) == 1;
    found += gguf_get_int(g, key, &i, &err) == 1;
    found += gguf_get_float(g, key, &d, &err) == 1;
    found += gguf_get_bool(g, key, &b, &err) == 1;
    if (gguf_get_string(g, key, &s, &err) == 1) {
        found++;
        touch(s.data, s.size);
    }
    if (gguf_get_array(g, key, &element, &count, &err) == 1) {
        found++;
        touch_array(g, key, element, count);
    }
    ASSERT(found >= 1);
    free(key);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct err err = {0};
    struct buffer text = {0};
    char fingerprint[33];
    if (gguf_parse(&g, data, size, "fuzz", &err) != 0) {
        ASSERT(g == NULL && strncmp(err.message, "fuzz:", 5) == 0);
        return 0;
    }
    for (uint64_t k = 0; k < gguf_key_count(g); k++) {
        text.size = 0;
        gguf_format_value(g, k, 16, &text);
        ASSERT(text.size > 0 && utf8_valid((const char *)text.data, text.size));
        touch_key(g, k);
    }
    for (uint64_t k = 0; k < gguf_tensor_count(g); k++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, k);
        ASSERT(t->offset + t->bytes <= size && t->offset % gguf_alignment(g) == 0);
        touch(t->mapped, t->bytes);
    }
    gguf_fingerprint(g, fingerprint);
    sum += (uint64_t)fingerprint[0];
    buffer_release(&text);
    gguf_close(&g);
    return 0;
}
