/* tensor: shapes and sizes; see tensor.h. */
#include "kernels/tensor.h"

static struct tensor tensor_of(struct device *device, enum dtype dtype, void *data, int ndim,
                               const int64_t *dim)
{
    struct tensor t = {.data = data, .device = device, .dtype = dtype, .ndim = ndim};
    for (int i = 0; i < ndim; i++) {
        ASSERT(dim[i] >= 0);
        t.dim[i] = dim[i];
    }
    return t;
}

struct tensor tensor_1d(struct device *device, enum dtype dtype, void *data, int64_t a)
{
    return tensor_of(device, dtype, data, 1, (const int64_t[]){a});
}

struct tensor tensor_2d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b)
{
    return tensor_of(device, dtype, data, 2, (const int64_t[]){a, b});
}

struct tensor tensor_3d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b, int64_t c)
{
    return tensor_of(device, dtype, data, 3, (const int64_t[]){a, b, c});
}

struct tensor tensor_4d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b, int64_t c,
                        int64_t d)
{
    return tensor_of(device, dtype, data, 4, (const int64_t[]){a, b, c, d});
}

int64_t tensor_elements(const struct tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) {
        bool wrapped = __builtin_mul_overflow(n, t->dim[i], &n);
        ASSERT(!wrapped);
    }
    return n;
}

uint64_t tensor_bytes(const struct tensor *t)
{
    /* Blocks run along the last dimension: it alone must hold a whole number of them. */
    uint64_t bytes = 0;
    if (t->ndim > 0)
        ASSERT((uint64_t)t->dim[t->ndim - 1] % dtype_info(t->dtype)->block_elements == 0);
    int rc = dtype_row_bytes(t->dtype, (uint64_t)tensor_elements(t), &bytes);
    ASSERT(rc == 0);
    return bytes;
}

struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t count)
{
    ASSERT(t->ndim >= 1 && first >= 0 && count >= 0 && first <= t->dim[0] && count <= t->dim[0] - first);
    struct tensor row = *t, view = *t;
    row.dim[0] = 1;
    view.dim[0] = count;
    if (view.data)
        view.data = (char *)t->data + (uint64_t)first * tensor_bytes(&row);
    return view;
}
