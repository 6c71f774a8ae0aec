/* device_cpu: what the CPU's kernels see of their device, and the list of its kernels: one function per entry
 * of struct device_ops, in the file of that operation beside the .cu (kernels/matmul.c and so on).
 *
 * These are the portable references: they run anywhere, are tested against plain double arithmetic, and every
 * fast version is tested against them. Shapes, types and devices were checked by kernels.c. */
#ifndef LEPTON_KERNELS_CPU_DEVICE_CPU_H
#define LEPTON_KERNELS_CPU_DEVICE_CPU_H

#include "kernels/cpu/team.h"
#include "kernels/device_ops.h"

/* The threads that a kernel on this stream runs on. */
struct team *cpu_team(const struct stream *s);
struct team *cpu_device_team(const struct device *device);

/* Memory of the stream, at least `bytes`, 64-byte aligned, contents undefined, until the next call of the
 * same function on the stream: one for an operation's own use, one for operations that call others (which
 * take the first). */
void *cpu_stream_scratch(struct stream *s, size_t bytes);
void *cpu_stream_gathered(struct stream *s, size_t bytes);

/* Elements [k, k + count) of row n of a packed weight as floats, exactly; k and count in whole blocks. */
void cpu_weight_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out);

/* Every row of `host` once, on the device's team: body(), then watch->rows() (NULL: none), for runs of rows
 * that begin at multiples of `unit` rows. */
void cpu_pack_pass(struct device *device, const struct tensor *host, int64_t unit,
                   const struct weight_watch *watch, void (*body)(void *context, int64_t begin, int64_t end),
                   void *context);
int cpu_pack(struct weight *out, struct device *device, const struct tensor *host,
             const struct weight_watch *watch, struct err *err);
void cpu_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs, int count);
void cpu_matmul_transposed(struct stream *s, struct tensor *dx, const struct tensor *dy,
                           const struct weight *w);
void cpu_embed(struct stream *s, struct tensor *out, const struct weight *table, const struct tensor *ids);
void cpu_rmsnorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                 float eps);
void cpu_add(struct stream *s, struct tensor *x, const struct tensor *y);
void cpu_gather_rows(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *rows);
void cpu_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                  enum activation f);
void cpu_layernorm(struct stream *s, struct tensor *out, const struct tensor *x, const struct tensor *gain,
                   const struct tensor *bias, float eps);
void cpu_scale(struct stream *s, struct tensor *x, float factor);
void cpu_softcap(struct stream *s, struct tensor *x, float cap);
void cpu_route(struct stream *s, struct tensor *ids, struct tensor *weights, const struct tensor *logits,
               bool renormalise);
void cpu_expert_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                       const struct tensor *ids);
void cpu_expert_sum(struct stream *s, struct tensor *out, const struct tensor *parts,
                    const struct tensor *weights);
void cpu_sum_ranks(struct stream *s, struct tensor *out, const struct tensor *parts);
void cpu_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
              const struct tensor *frequency, enum rope_pairs pairs, float magnitude);
void cpu_kv_store(struct stream *s, struct tensor *k_pages, struct tensor *v_pages, const struct tensor *k,
                  const struct tensor *v, const struct seq_view *view);
void cpu_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct seq_view *view,
                   const struct attention_options *options);
void cpu_move_pages(struct stream *s, struct tensor *pages, const struct tensor *moves);
void cpu_sample(struct stream *s, struct tensor *ids, struct tensor *logits, const struct sample_row *rows,
                const struct tensor *history, const struct sample_extra *extra);
void cpu_token_loss(struct stream *s, struct tensor *nll, const struct tensor *logits,
                    const struct tensor *targets);

#endif
