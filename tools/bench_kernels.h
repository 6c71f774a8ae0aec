/* bench_kernels: what the files of `lepton bench kernels` share: the products (bench_kernels.c) and all other
 * kernels (bench_rows.c), one table of results. */
#ifndef LEPTON_TOOLS_BENCH_KERNELS_H
#define LEPTON_TOOLS_BENCH_KERNELS_H

#include <jansson.h>

#include "tools/bench.h"

struct bench_kernels_settings {
    char *kernels, *type, *only;
    int64_t threads, repeats, inputs, outputs, context;
    bool json;
};

struct bench {
    const struct bench_kernels_settings *s;
    struct device *device;
    struct stream *stream;
    struct bench_limits limits;
    json_t *results;
};

/* One line of the table, or one object of the JSON. `bytes` and `ops` of one run; `bound` names the limit. */
void bench_kernel_report(struct bench *b, const char *kernel, const char *type, int64_t rows,
                         struct bench_summary f, double bytes, double ops, const char *bound, double limit,
                         double error);
/* Every kernel that is no product with weights, or the one asked for, at one row and at many. */
int bench_other_kernels(struct bench *b, struct err *err);

#endif
