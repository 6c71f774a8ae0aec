/* gguf_tensor: the bytes of tensors, whether they lie in a file's mapping or are made by a source, and the
 * fingerprint over them. */
#include "worker/model/gguf.h"

#include <sodium.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/model/gguf_impl.h"

#define SAMPLE_BYTES 4096 /* of each end of a tensor, for the fingerprint */

bool gguf_is_assembled(const struct gguf *g)
{
    return g->source.data != NULL;
}

const void *gguf_header(const struct gguf *g, uint64_t *bytes)
{
    *bytes = g->table_end;
    return g->data;
}

const void *gguf_tensor_data(const struct gguf *g, const struct gguf_tensor *t)
{
    return t->mapped ? t->mapped : g->source.data(g->source.context, (uint64_t)(t - g->tensor));
}

/* A refusal costs only time. */
void gguf_tensor_ask(const struct gguf *g, const struct gguf_tensor *t)
{
    (void)g;
    if (!t->mapped)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)t->mapped & ~(page - 1);
    madvise((void *)from, (uintptr_t)t->mapped + t->bytes - from, MADV_WILLNEED);
}

/* Pages at the ends are shared with the neighbours, which may be in use. */
void gguf_tensor_drop(const struct gguf *g, const struct gguf_tensor *t)
{
    if (g->source.drop)
        g->source.drop(g->source.context, (uint64_t)(t - g->tensor));
    if (!t->mapped)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = round_up_u64((uintptr_t)t->mapped, page);
    uintptr_t to = ((uintptr_t)t->mapped + t->bytes) & ~(page - 1);
    if (from < to)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

/* Both ends of a run of bytes. */
static void take_sample(void *state, const void *data, uint64_t bytes)
{
    uint64_t head = bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES;
    uint64_t tail = bytes - head < SAMPLE_BYTES ? bytes - head : SAMPLE_BYTES;
    crypto_generichash_update(state, data, head);
    crypto_generichash_update(state, (const uint8_t *)data + bytes - tail, tail);
}

void gguf_fingerprint(const struct gguf *g, char out[33])
{
    crypto_generichash_state state;
    uint8_t digest[16];
    /* Samples lie far apart: read-ahead would fetch thirty times what is used. A refusal costs only time. */
    if (g->mapping)
        madvise(g->mapping, g->size, MADV_RANDOM);
    crypto_generichash_init(&state, NULL, 0, sizeof(digest));
    crypto_generichash_update(&state, g->data, g->table_end);
    crypto_generichash_update(&state, (const uint8_t *)&g->size, sizeof(g->size));
    for (uint64_t i = 0; i < g->tensor_count; i++) {
        if (g->tensor[i].mapped)
            take_sample(&state, g->tensor[i].mapped, g->tensor[i].bytes);
        else
            g->source.sample(g->source.context, i, take_sample, &state);
    }
    if (g->mapping)
        madvise(g->mapping, g->size, MADV_NORMAL);
    crypto_generichash_final(&state, digest, sizeof(digest));
    sodium_bin2hex(out, 33, digest, sizeof(digest));
}
