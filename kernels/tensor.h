/* tensor: a plain description of numbers that lie on one device. It owns nothing: whoever allocated `data`
 * frees it.
 *
 * Row-major: dim[ndim - 1] varies fastest, block types run along it. Shapes are written [rows, columns].
 * A tensor is always contiguous; a view over some of its rows is another tensor. */
#ifndef LEPTON_KERNELS_TENSOR_H
#define LEPTON_KERNELS_TENSOR_H

#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TENSOR_MAX_DIMS 4

struct device;

struct tensor {
    void *data;            /* memory of `device`; NULL = absent (an optional bias, say) */
    struct device *device; /* borrowed */
    enum dtype dtype;
    int ndim;
    int64_t dim[TENSOR_MAX_DIMS];
};

struct tensor tensor_1d(struct device *device, enum dtype dtype, void *data, int64_t a);
struct tensor tensor_2d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b);
struct tensor tensor_3d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b, int64_t c);
struct tensor tensor_4d(struct device *device, enum dtype dtype, void *data, int64_t a, int64_t b, int64_t c,
                        int64_t d);
int64_t tensor_elements(const struct tensor *t);
uint64_t tensor_bytes(const struct tensor *t);
/* Rows [first, first + count) of dim[0] as a view of the same memory. */
struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
