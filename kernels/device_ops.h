/* device_ops: the table a device fills, seen by kernels.c, the CPU device and the plug-in; not by models. The
 * entries of kernels mirror kernels.h; shapes were checked before they are called. A NULL kernel entry = not
 * supported. */
#ifndef LEPTON_KERNELS_DEVICE_OPS_H
#define LEPTON_KERNELS_DEVICE_OPS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct device_ops {
    void (*close)(struct device *device);
    void *(*alloc)(struct device *device, size_t bytes, struct err *err);
    void (*free)(struct device *device, void *memory);
    int (*stream_open)(struct stream **out, struct device *device, struct err *err);
    void (*stream_close)(struct stream *stream);
    int (*stream_sync)(struct stream *stream, struct err *err);
    void (*upload)(struct stream *stream, void *device_memory, const void *host, size_t bytes);
    void (*download)(struct stream *stream, void *host, const void *device_memory, size_t bytes);
    void (*copy)(struct stream *stream, void *to, const void *from, size_t bytes);
    /* NULL where streams run inline. */
    void (*wait)(struct stream *stream, struct stream *other);
    int (*idle)(struct stream *stream, struct err *err);
    void *(*native)(struct stream *stream);

    int (*pack)(struct weight *out, struct device *device, const struct tensor *host,
                const struct weight_watch *watch, struct err *err);
    /* At least one output, none of them empty; what has no bias has NULL. */
    void (*matmul)(struct stream *, const struct tensor *x, const struct matmul_output *outputs, int count);
    void (*matmul_transposed)(struct stream *, struct tensor *dx, const struct tensor *dy,
                              const struct weight *w);
    void (*embed)(struct stream *, struct tensor *out, const struct weight *table, const struct tensor *ids);
    void (*rmsnorm)(struct stream *, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                    float eps);
    void (*add)(struct stream *, struct tensor *x, const struct tensor *y);
    void (*gather_rows)(struct stream *, struct tensor *out, const struct tensor *x,
                        const struct tensor *rows);
    void (*activate)(struct stream *, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                     enum activation f);
    void (*sum_ranks)(struct stream *, struct tensor *out, const struct tensor *parts);
    void (*rope)(struct stream *, struct tensor *x, const struct tensor *positions,
                 const struct tensor *frequency, enum rope_pairs pairs, float magnitude);
    void (*kv_store)(struct stream *, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                     const struct tensor *v, const struct seq_view *view);
    void (*attention)(struct stream *, struct tensor *out, const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct seq_view *view,
                      const struct attention_options *options);
    void (*move_pages)(struct stream *, struct tensor *pages, const struct tensor *moves);
    void (*sample)(struct stream *, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                   const struct tensor *history, const struct sample_extra *extra);
    void (*token_loss)(struct stream *, struct tensor *nll, const struct tensor *logits,
                       const struct tensor *targets);
    void (*layernorm)(struct stream *, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                      const struct tensor *bias, float eps);
    void (*scale)(struct stream *, struct tensor *x, float factor);
    void (*softcap)(struct stream *, struct tensor *x, float cap);
    void (*route)(struct stream *, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
                  bool renormalise);
    void (*expert_matmul)(struct stream *, struct tensor *out, const struct tensor *x, const struct weight *w,
                          const struct tensor *ids);
    void (*expert_sum)(struct stream *, struct tensor *out, const struct tensor *parts,
                       const struct tensor *weights);
    uint32_t kv_types; /* bits 1 << dtype: what pages may hold besides F32 and F16 */
};

/* The first member of every device and stream; the implementation's own fields follow it. */
struct device {
    const struct device_ops *ops;
    char name[32];
    char kernel_set[32];
    int threads;
};
struct stream {
    struct device *device;
};

/* The built-in device (kernels/cpu). */
int device_cpu_open(struct device **out, const struct device_options *options, struct err *err);

/* The plug-in's one exported symbol is LEPTON_PLUGIN_SYMBOL, a struct lepton_plugin. */
#define LEPTON_PLUGIN_SYMBOL  "lepton_plugin"
#define LEPTON_PLUGIN_VERSION 5
struct lepton_plugin {
    uint32_t version;
    /* Number of usable devices; -1 and *err with the runtime's own message when the probe fails. */
    int (*probe)(struct err *err);
    int (*open)(struct device **out, int index, struct err *err);
};

#ifdef __cplusplus
}
#endif
#endif
