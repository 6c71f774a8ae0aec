/* rig: what the tests of kernels share: a device with a stream, memory with guard bytes on both sides, random
 * tensors, and comparison to the bit. Test programs are short-lived: a rig keeps its memory until it closes.
 */
#ifndef LEPTON_TESTS_UNIT_KERNELS_RIG_H
#define LEPTON_TESTS_UNIT_KERNELS_RIG_H

#include "kernels/kernels.h"
#include "tests/test.h"

#define RIG_GUARD_BYTES 64
#define RIG_GUARD       0xA5
#define RIG_MAX_BLOCKS  4096

struct rig {
    struct device *device;
    struct stream *stream;
    unsigned long long random;
    struct {
        uint8_t *memory;
        size_t bytes;
    } block[RIG_MAX_BLOCKS];
    int blocks;
};

/* The kernel set that rigs are opened with; NULL = the reference. */
static const char *rig_kernels;

static inline void rig_open(struct rig *r, int threads)
{
    struct err err;
    memset(r, 0, sizeof(*r));
    r->random = 42;
    struct device_options options = {.threads = threads, .kernels = rig_kernels};
    if (device_open(&r->device, "cpu", &options, &err) != 0 || stream_open(&r->stream, r->device, &err) != 0)
        die("%s", err.message);
}

/* Memory filled with NaN patterns (0xFF), so that an element left unwritten fails every comparison. */
static inline void *rig_memory(struct rig *r, size_t bytes)
{
    ASSERT(r->blocks < RIG_MAX_BLOCKS);
    struct err err;
    uint8_t *memory = device_alloc(r->device, bytes + 2 * RIG_GUARD_BYTES, &err);
    if (!memory)
        die("%s", err.message);
    memset(memory, RIG_GUARD, bytes + 2 * RIG_GUARD_BYTES);
    memset(memory + RIG_GUARD_BYTES, 0xFF, bytes);
    r->block[r->blocks].memory = memory;
    r->block[r->blocks++].bytes = bytes;
    return memory + RIG_GUARD_BYTES;
}

/* Checks every guard byte, frees everything. */
static inline void rig_close(struct rig *r)
{
    int broken = 0;
    for (int i = 0; i < r->blocks; i++) {
        for (int j = 0; j < RIG_GUARD_BYTES; j++) {
            broken += r->block[i].memory[j] != RIG_GUARD;
            broken += r->block[i].memory[RIG_GUARD_BYTES + r->block[i].bytes + (size_t)j] != RIG_GUARD;
        }
        device_free(r->device, r->block[i].memory);
    }
    CHECK_INT(broken, 0);
    stream_close(&r->stream);
    device_close(&r->device);
}

static inline struct tensor rig_tensor(struct rig *r, enum dtype type, int ndim, const int64_t *dim)
{
    struct tensor t = {.device = r->device, .dtype = type, .ndim = ndim};
    for (int i = 0; i < ndim; i++)
        t.dim[i] = dim[i];
    t.data = rig_memory(r, tensor_bytes(&t));
    return t;
}

#define RIG_F32(r, ...) \
    rig_tensor(r, DTYPE_F32, ARRAY_LEN(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})
#define RIG_I32(r, ...) \
    rig_tensor(r, DTYPE_I32, ARRAY_LEN(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})

static inline float *floats(const struct tensor *t)
{
    return t->data;
}

static inline int32_t *ints(const struct tensor *t)
{
    return t->data;
}

static inline void rig_random(struct rig *r, struct tensor *t)
{
    int64_t n = tensor_elements(t);
    float *values = malloc((size_t)(n + 1) * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        values[i] = test_uniform(&r->random);
    dtype_from_f32(t->dtype, values, t->data, (uint64_t)n);
    free(values);
}

/* A packed random weight [N, K]. */
static inline struct weight rig_weight(struct rig *r, enum dtype type, int64_t N, int64_t K)
{
    struct tensor host = rig_tensor(r, type, 2, (int64_t[]){N, K});
    struct weight w;
    struct err err;
    rig_random(r, &host);
    if (weight_pack(&w, r->device, &host, &err) != 0)
        die("%s", err.message);
    return w;
}

static inline bool same_bits(const struct tensor *a, const struct tensor *b)
{
    return tensor_bytes(a) == tensor_bytes(b) && memcmp(a->data, b->data, tensor_bytes(a)) == 0;
}

/* FNV-1a over the bytes: to hold bits against a number written in a test. */
static inline unsigned long long bits_hash(const struct tensor *t)
{
    unsigned long long h = 0xCBF29CE484222325ull;
    for (uint64_t i = 0; i < tensor_bytes(t); i++)
        h = (h ^ ((const uint8_t *)t->data)[i]) * 0x100000001B3ull;
    return h;
}

#endif
