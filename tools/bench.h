/* bench: what the measuring commands share: the method (warm-up, repeats, median, spread), the limits of
 * the machine in the same run, and what the operating system tells of memory and energy. It prints nothing.
 */
#ifndef LEPTON_TOOLS_BENCH_H
#define LEPTON_TOOLS_BENCH_H

#include "common/config.h"
#include "kernels/cpu/limits.h"
#include "kernels/tensor.h"

int command_bench_kernels(int argc, char **argv);
int command_bench_engine(int argc, char **argv);
int command_bench_relay(int argc, char **argv);
extern const struct config_table bench_kernels_table, bench_engine_table, bench_relay_table;

double bench_now_s(void);

/* spread = (largest - smallest) / median. */
struct bench_summary {
    double median, spread;
};
/* Sorts values[count], count >= 1. */
struct bench_summary bench_summarise(double *values, int64_t count);

/* The limits beside which a run is judged. The read limit is the best rate that anything reached: the plain
 * readers of kernels/cpu/limits, the kernels of `bench_limits_kernels`, or what the caller measured itself.
 */
struct bench_limits {
    struct cpu_limits cpu;
    double read_bytes_per_s;
    const char *read_by; /* who reached it; a literal */
};
/* Measures on the device's threads and keeps what is better than before: call it at both ends of a run. */
int bench_limits_measure(struct device *device, int repeats, struct bench_limits *limits, struct err *err);
/* One-row products over 512 MiB of weights, as generation reads them. */
int bench_limits_kernels(struct device *device, int repeats, struct bench_limits *limits, struct err *err);
void bench_limits_read(struct bench_limits *limits, double bytes_per_s, const char *by);
/* The peak of the arithmetic that products with this type are made for, and its name: int8 for
 * block-quantised types, bf16 for BF16, fp32 for the rest; fp32 where the processor has not the better one.
 */
double bench_limits_peak(const struct bench_limits *limits, enum dtype type, const char **name);

/* Resident bytes of a process: all, and the part that is no file's (anonymous). -1 when it cannot be read. */
int bench_resident(int64_t pid, uint64_t *all, uint64_t *anonymous, struct err *err);

/* Energy counters of the processor packages (RAPL through /sys/class/powercap). */
#define BENCH_ENERGY_MAX 16
struct bench_energy {
    int domains;
    uint64_t begun_uj[BENCH_ENERGY_MAX], range_uj[BENCH_ENERGY_MAX];
    char path[BENCH_ENERGY_MAX][96];
};
/* False where no counter can be read (none in a virtual machine; root alone on most systems). */
bool bench_energy_begin(struct bench_energy *e);
/* Joules since the begin. */
double bench_energy_joules(const struct bench_energy *e);

#endif
