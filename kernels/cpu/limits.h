/* limits: what the processor can do at most, measured in the same run as a benchmark, so that a kernel's
 * speed can be said as a fraction: bytes read from memory, fp32, bf16 and int8 multiply-adds. For
 * benchmarks only. */
#ifndef LEPTON_KERNELS_CPU_LIMITS_H
#define LEPTON_KERNELS_CPU_LIMITS_H

#include "kernels/device.h"

struct cpu_limits {
    double read_bytes_per_s; /* a sum over 512 MiB in 2 MiB pages where the system gives them */
    double fp32_flop_per_s;  /* fused multiply-adds, two operations each, 24 independent chains a thread */
    double int8_op_per_s;    /* VPDPBUSD, 128 operations each; 0 where the processor has none */
    double bf16_flop_per_s;  /* VDPBF16PS, 64 operations each; 0 where the processor has none */
};

/* Best of `repeats` runs on the threads of a CPU device. -1 when there is no memory for the buffer. */
int cpu_limits_measure(struct device *device, int repeats, struct cpu_limits *out, struct err *err);

#endif
