/* embed: rows picked by index: token embeddings, and the rows that get logits; the portable reference. */
#include <string.h>

#include "kernels/cpu/device_cpu.h"

void cpu_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids)
{
    (void)s;
    const int32_t *id = ids->data;
    int64_t V = table->stored.dim[0], C = table->stored.dim[1];
    for (int64_t t = 0; t < ids->dim[0]; t++) {
        ASSERT(id[t] >= 0 && id[t] < V);
        cpu_weight_floats(table, id[t], 0, C, (float *)out->data + t * C);
    }
}

void cpu_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *rows)
{
    (void)s;
    const int32_t *row = rows->data;
    int64_t C = x->dim[1];
    for (int64_t b = 0; b < rows->dim[0]; b++) {
        ASSERT(row[b] >= 0 && row[b] < x->dim[0]);
        memcpy((float *)out->data + b * C, (const float *)x->data + row[b] * C, (size_t)C * sizeof(float));
    }
}
