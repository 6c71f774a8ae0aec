/* fuzz_safetensors: any bytes as a safetensors file. What opens must hold what it promises: tensors in
 * bounds, end to end, found by their names. */
#include <string.h>

#include "worker/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *s;
    struct err err = {0};
    if (safetensors_parse(&s, data, size, "fuzz", &err) != 0) {
        ASSERT(!s && err.message[0] && memchr(err.message, 0, sizeof(err.message)));
        return 0;
    }
    uint64_t total = 0;
    for (uint64_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensors_tensor *t = safetensors_at(s, i);
        ASSERT(t->bytes > 0 && t->data >= data && t->bytes <= (uint64_t)(data + size - t->data));
        ASSERT(safetensors_find(s, t->name) == t);
        volatile uint8_t touched = t->data[0] ^ t->data[t->bytes - 1];
        (void)touched;
        total += t->bytes;
    }
    ASSERT(total < size);
    safetensors_close(&s);
    return 0;
}
