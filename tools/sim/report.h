/* report: what a simulation says: percentiles, goodput, fairness, the cache, decisions; as a table, as JSON,
 * and as a picture of the queue and the latency over time. */
#ifndef LEPTON_TOOLS_SIM_REPORT_H
#define LEPTON_TOOLS_SIM_REPORT_H

#include <stdio.h>

#include "tools/sim/simulation.h"

extern const char *const sim_class_names[WORKLOAD_CLASSES];

struct sim_percentiles {
    double mean, p50, p90, p99, max;
};

/* By nearest rank; sorts the values. */
struct sim_percentiles sim_percentiles_of(float *values, uint64_t count);

/* Of all requests, of one class, or of one tenant. */
struct sim_class_report {
    char name[24];
    /* refused: not let in, or let go of while it waited (408, 429, 503); missed: its deadline passed while it
     * ran; lost: 502 */
    uint64_t requests, complete, in_time, refused, missed, lost;
    uint64_t output_tokens;
    struct sim_percentiles ttft_ms, e2e_ms,
        refusal_ms; /* of complete ones; of refused ones: how long it took */
};

#define SIM_TENANTS 32 /* that are reported one by one */

struct sim_report {
    struct sim_class_report all, class[WORKLOAD_CLASSES], tenant[SIM_TENANTS];
    double tokens_per_s, goodput_per_s; /* output tokens of complete requests; of those in time */
    double requests_per_s;
    double jain;      /* of the tokens served, over tenants (Jain, Chiu, Hawe 1984): 1 = all the same */
    double cache_hit; /* share of the prompt tokens that were cached */
    double decisions_per_s;
    uint32_t tenants;
};

void sim_report_make(struct sim_report *out, const struct sim_result *r);
/* The latencies by class alone. */
void sim_report_table(FILE *out, const struct sim_report *p);
void sim_report_print(FILE *out, const struct sim_report *p, const struct sim_result *r);
void sim_report_json(FILE *out, const struct sim_report *p, const struct sim_result *r);
/* Every request as a line of CSV, in the order of their ends. -1: the file could not be written. */
int sim_report_csv(const char *path, const struct sim_result *r, struct err *err);
/* -1: the file could not be written. */
int sim_report_svg(const char *path, const struct sim_result *r, struct err *err);

#endif
