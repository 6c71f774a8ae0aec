/* bench_report: what `lepton bench engine` found, and how it is shown: text for people, or JSON. Fractions
 * are taken at the end, when every rate of the run is known. */
#ifndef LEPTON_TOOLS_BENCH_REPORT_H
#define LEPTON_TOOLS_BENCH_REPORT_H

#include "tools/bench.h"
#include "worker/infer/step.h"

/* What one token costs. */
struct bench_work {
    double bytes;        /* of weights that a step reads, however many rows it has */
    double ops;          /* of all matrices, for a row that gets logits */
    double head_ops;     /* of these, the output head's */
    double kv_elements;  /* that attention reads for each position before it */
    uint64_t file_bytes; /* of all tensors */
    int64_t context;     /* the model's */
    enum dtype type;     /* of most of the weights */
};

struct bench_row {
    char test[24];
    int32_t batch;
    double tokens_per_step,
        sampled_per_step;      /* rows that share one reading of the weights; that get logits */
    double context;            /* positions that a generated token looks back on, on average */
    struct bench_summary rate; /* tokens per second */
    double joules_per_token;
    struct stage_time *stages; /* [stage_count] what the counted runs took each; the report's own */
    int stage_count;
};

/* The same streams without and with prompt lookup. */
struct bench_lookup {
    char test[24];
    int32_t batch;
    struct bench_summary off, on; /* tokens per second */
    uint64_t drafted, accepted, tokens;
};

struct bench_report {
    const char *model;
    char kernel_set[64];
    int threads, stages, tensor, limit_threads;
    int64_t repeats;
    struct bench_work work;
    struct bench_limits limits;
    struct bench_row *rows;
    int row_count;
    struct bench_lookup *lookups;
    int lookup_count;
    double load_ms, first_token_ms;
    uint64_t resident_bytes, anonymous_bytes, kv_budget_bytes; /* budget 0 = not known here */
    double kv_element_bytes;
    bool energy;
    int64_t prefix_tokens; /* 0 = not measured */
    double prefix_first_ms, prefix_second_ms;
};

/* Adds *row with the summary of rates[count]; its `stages` are the report's from now on. */
void bench_report_add(struct bench_report *r, const struct bench_row *row, double *rates, int64_t count,
                      double joules_per_token);
void bench_report_add_lookup(struct bench_report *r, const struct bench_lookup *lookup, double *off,
                             double *on, int64_t count);
void bench_report_text(struct bench_report *r);
void bench_report_json(struct bench_report *r);
void bench_report_release(struct bench_report *r);

#endif
