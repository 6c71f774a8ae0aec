/* fast: the kernel sets of the CPU that are chosen at run time by what the processor has, beside the portable
 * reference. A set is a copy of the reference's table with faster entries; each set is a numeric class of its
 * own (design I7).
 *
 *   cpu-reference   runs anywhere; written order of additions without fused multiply-add
 *   cpu-avx2        AVX2, FMA and F16C: integer dot products for quantised weights, fused multiply-add for
 *                   the others; products with quantised weights and attention have the bits of AVX-512
 *   cpu-avx512vnni  AVX-512 with VNNI: integer dot products for quantised weights, fused multiply-add
 *                   elsewhere
 *   cpu-avx512bf16  the same, but BF16 weights multiply with VDPBF16PS, which rounds x to BF16; with
 *                   f16_as_bf16 its name has "+f16_as_bf16" behind it, and F16 weights become BF16 when
 * packed */
#ifndef LEPTON_KERNELS_CPU_FAST_H
#define LEPTON_KERNELS_CPU_FAST_H

#include "kernels/cpu/device_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define CPU_HAS_FAST 1
#endif

/* Puts the entries of a set over the reference's in *ops, by its option: the part of its name behind "cpu-",
 * or "auto" = the best one here. -1 when the processor lacks what the set needs, or nothing is called so.
 * *name = its name in the numeric class. */
int fast_select(struct device_ops *ops, const char *option, bool f16_as_bf16, const char **name,
                struct err *err);

void fast_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options);
void fast_activate(struct stream *s, struct tensor *out, const struct tensor *gate, const struct tensor *up,
                   enum activation f);
void fast_softcap(struct stream *s, struct tensor *x, float cap);
void fast_rope(struct stream *s, struct tensor *x, const struct tensor *positions,
               const struct tensor *frequency, enum rope_pairs pairs, float magnitude);
/* Products with packed weights of one type: of blocks, of floats, of BF16. */
void fast_matmul_panels(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count);
void fast_matmul_bf16(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                      int count);
void fast_matmul_float(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                       int count);

void avx2_attention(struct stream *s, struct tensor *out, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct seq_view *view,
                    const struct attention_options *options);
void avx2_matmul_panels(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count);
void avx2_matmul_float(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                       int count);

#endif
