#include "kernels/cpu/products.h"

struct products products_of(const struct matmul_output *outputs, int count, int side)
{
    struct products p = {.count = count};
    for (int i = 0; i < count; i++) {
        const struct matmul_output *o = &outputs[i];
        const int64_t *dim = o->w->stored.dim;
        p.of[i] = (struct product){.layout = panel_layout(o->w->stored.dtype, dim[0], dim[1]),
                                   .packed = o->w->packed,
                                   .bias = o->bias ? o->bias->data : NULL,
                                   .out = o->out->data,
                                   .N = dim[0],
                                   .first = p.total};
        p.total += (p.of[i].layout.panels + side - 1) / side;
    }
    return p;
}

bool products_part(const struct products *p, int i, int64_t begin, int64_t end, int64_t *from, int64_t *to)
{
    int64_t first = p->of[i].first, behind = i + 1 < p->count ? p->of[i + 1].first : p->total;
    *from = (begin > first ? begin : first) - first;
    *to = (end < behind ? end : behind) - first;
    return *from < *to;
}
