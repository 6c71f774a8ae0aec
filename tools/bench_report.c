#include "tools/bench_report.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bench_report_add(struct bench_report *r, const struct bench_row *row, double *rates, int64_t count,
                      double joules_per_token)
{
    r->rows = xrealloc(r->rows, (size_t)(r->row_count + 1) * sizeof(*r->rows));
    struct bench_row *added = &r->rows[r->row_count++];
    *added = *row;
    added->rate = bench_summarise(rates, count);
    added->joules_per_token = joules_per_token;
}

void bench_report_add_lookup(struct bench_report *r, const struct bench_lookup *lookup, double *off,
                             double *on, int64_t count)
{
    r->lookups = xrealloc(r->lookups, (size_t)(r->lookup_count + 1) * sizeof(*r->lookups));
    struct bench_lookup *added = &r->lookups[r->lookup_count++];
    *added = *lookup;
    added->off = bench_summarise(off, count);
    added->on = bench_summarise(on, count);
}

void bench_report_release(struct bench_report *r)
{
    for (int i = 0; i < r->row_count; i++)
        free(r->rows[i].stages);
    free(r->rows);
    free(r->lookups);
    r->rows = NULL;
    r->lookups = NULL;
    r->row_count = r->lookup_count = 0;
}

/* The share of all stages' time in which they ran no step though there was work and processors for it. */
static double bubbles(const struct bench_row *row)
{
    double all = 0, bubble = 0;
    for (int i = 0; i < row->stage_count; i++) {
        all += (double)(row->stages[i].busy_us + row->stages[i].wait_us);
        bubble += (double)row->stages[i].bubble_us;
    }
    return all > 0 ? bubble / all : 0;
}

static double waits(const struct stage_time *stage)
{
    double all = (double)(stage->busy_us + stage->wait_us);
    return all > 0 ? (double)stage->wait_us / all : 0;
}

/* The share of the processors' time in which they computed no step. Of one rank it is what its steps leave
 * idle. */
static double idle(const struct bench_report *r, const struct bench_row *row)
{
    double used = 0, all = 0;
    for (int i = 0; i < row->stage_count; i++) {
        used += (double)row->stages[i].processor_us * r->tensor;
        all += (double)(row->stages[i].busy_us + row->stages[i].wait_us) / row->stage_count;
    }
    all *= r->limit_threads;
    return used < all ? 1 - used / all : 0;
}

static bool is_prompt(const struct bench_row *row)
{
    return strncmp(row->test, "pp", 2) == 0;
}

/* Bytes per second that a row of generation read: the weights once a step, each stream's keys and values. */
static double read_rate(const struct bench_report *r, const struct bench_row *row)
{
    double kv = row->batch * r->work.kv_elements * r->kv_element_bytes * row->context;
    return (r->work.bytes + kv) * row->rate.median / row->tokens_per_step;
}

static double op_rate(const struct bench_report *r, const struct bench_row *row)
{
    double head = r->work.head_ops * row->sampled_per_step / row->tokens_per_step;
    return (r->work.ops - r->work.head_ops + head) * row->rate.median;
}

/* The share of the limit that binds, and that limit's name. */
static double fraction(const struct bench_report *r, const struct bench_row *row, const char **limit)
{
    double compute = op_rate(r, row) / bench_limits_peak(&r->limits, r->work.type, limit);
    if (is_prompt(row))
        return compute;
    double read = read_rate(r, row) / r->limits.read_bytes_per_s;
    if (read >= compute)
        *limit = "read";
    return read >= compute ? read : compute;
}

/* Generation may read faster than anything that was made to measure reading: then it is the limit. */
static void raise_limits(struct bench_report *r)
{
    for (int i = 0; i < r->row_count; i++)
        if (!is_prompt(&r->rows[i]))
            bench_limits_read(&r->limits, read_rate(r, &r->rows[i]), "generation itself");
}

static void print_head(const struct bench_report *r)
{
    printf("%s: %s, %.2f GB of weights; kernel set %s, ", r->model, dtype_info(r->work.type)->name,
           (double)r->work.file_bytes * 1e-9, r->kernel_set);
    if (r->tensor > 1)
        printf("a group of %d stages of %d tensor slots, ", r->stages, r->tensor);
    else if (r->stages > 1)
        printf("a group of %d stages, ", r->stages);
    else
        printf("one rank, ");
    printf("%d threads in all\n", r->limit_threads);
    printf("method: one warm-up, median of %lld runs, spread = (highest - lowest) / median; random prompts, "
           "greedy tokens\n",
           (long long)r->repeats);
    printf("limits of this run: read %.1f GB/s (%s), int8 %.0f GOP/s, bf16 %.0f, fp32 %.0f GFLOP/s\n",
           r->limits.read_bytes_per_s * 1e-9, r->limits.read_by, r->limits.cpu.int8_op_per_s * 1e-9,
           r->limits.cpu.bf16_flop_per_s * 1e-9, r->limits.cpu.fp32_flop_per_s * 1e-9);
    printf("load %.0f ms, to the first token %.0f ms\n", r->load_ms, r->first_token_ms);
    printf("resident%s %.0f MB, of it %.0f MB no file's", r->tensor > 1 ? " (first rank of each stage)" : "",
           (double)r->resident_bytes * 1e-6, (double)r->anonymous_bytes * 1e-6);
    if (r->kv_budget_bytes)
        printf("; weights %.0f MB + KV budget %.0f MB", (double)r->work.file_bytes * 1e-6,
               (double)r->kv_budget_bytes * 1e-6);
    printf("\nenergy: %s\n\n",
           r->energy ? "joules of the processor packages (RAPL)" : "not readable here (no RAPL counter)");
}

/* "2.1 % (stages wait 31.8, 32.4)" */
static void print_bubbles(const struct bench_row *row)
{
    printf("  %5.1f %%", 100 * bubbles(row));
    for (int i = 0; i < row->stage_count; i++)
        printf("%s%.1f%s", i ? ", " : " (stages wait ", 100 * waits(&row->stages[i]),
               i + 1 < row->stage_count ? "" : ")");
}

static void print_lookups(const struct bench_report *r)
{
    printf("\nspeculation by prompt lookup, the same streams without and with it\n%-8s %5s %12s %12s %7s %8s "
           "%9s\n",
           "test", "batch", "off tokens/s", "on tokens/s", "on/off", "drafted", "accepted");
    for (int i = 0; i < r->lookup_count; i++) {
        const struct bench_lookup *l = &r->lookups[i];
        printf("%-8s %5d %12.2f %12.2f %7.2f %8llu %9llu\n", l->test, l->batch, l->off.median, l->on.median,
               l->on.median / l->off.median, (unsigned long long)l->drafted, (unsigned long long)l->accepted);
    }
}

void bench_report_text(struct bench_report *r)
{
    raise_limits(r);
    print_head(r);
    printf("%-8s %5s %7s %-6s %10s %8s %-5s %8s%s%s\n", "test", "batch", "threads", "type", "tokens/s", "of",
           "limit", "spread", r->energy ? "  J/token" : "", r->stages > 1 ? "    idle  bubbles" : "    idle");
    for (int i = 0; i < r->row_count; i++) {
        const struct bench_row *row = &r->rows[i];
        const char *limit;
        double part = fraction(r, row, &limit);
        printf("%-8s %5d %7d %-6s %10.2f %6.1f %% %-5s %6.1f %%", row->test, row->batch, r->limit_threads,
               dtype_info(r->work.type)->name, row->rate.median, part * 100, limit, row->rate.spread * 100);
        if (r->energy)
            printf("  %7.3f", row->joules_per_token);
        printf("  %4.1f %%", 100 * idle(r, row));
        if (r->stages > 1)
            print_bubbles(row);
        printf("\n");
    }
    if (r->lookup_count)
        print_lookups(r);
    if (r->prefix_tokens)
        printf("\nthe same prompt of %lld tokens again: %.2f ms after %.2f ms: %.2f %%\n",
               (long long)r->prefix_tokens, r->prefix_second_ms, r->prefix_first_ms,
               r->prefix_second_ms / r->prefix_first_ms * 100);
}

static json_t *stages_json(const struct bench_row *row)
{
    json_t *list = json_array();
    for (int i = 0; i < row->stage_count; i++)
        json_array_append_new(list,
                              json_pack("{s:I, s:I, s:I, s:I}", "busy_us", (json_int_t)row->stages[i].busy_us,
                                        "wait_us", (json_int_t)row->stages[i].wait_us, "bubble_us",
                                        (json_int_t)row->stages[i].bubble_us, "processor_us",
                                        (json_int_t)row->stages[i].processor_us));
    return list;
}

static json_t *lookups_json(const struct bench_report *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->lookup_count; i++) {
        const struct bench_lookup *l = &r->lookups[i];
        json_array_append_new(list, json_pack("{s:s, s:i, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "test",
                                              l->test, "batch", (int)l->batch, "off_tokens_per_second",
                                              l->off.median, "off_spread", l->off.spread,
                                              "on_tokens_per_second", l->on.median, "on_spread", l->on.spread,
                                              "drafted", (json_int_t)l->drafted, "accepted",
                                              (json_int_t)l->accepted, "tokens", (json_int_t)l->tokens));
    }
    return list;
}

static json_t *row_json(const struct bench_report *r, const struct bench_row *row)
{
    const char *limit;
    double part = fraction(r, row, &limit);
    json_t *o =
        json_pack("{s:s, s:i, s:i, s:s, s:f, s:f, s:s, s:f}", "test", row->test, "batch", (int)row->batch,
                  "threads", r->limit_threads, "type", dtype_info(r->work.type)->name, "tokens_per_second",
                  row->rate.median, "fraction", part, "limit", limit, "spread", row->rate.spread);
    if (r->energy)
        json_object_set_new(o, "joules_per_token", json_real(row->joules_per_token));
    json_object_set_new(o, "idle_ratio", json_real(idle(r, row)));
    if (r->stages > 1) {
        json_object_set_new(o, "bubble_ratio", json_real(bubbles(row)));
        json_object_set_new(o, "stages", stages_json(row));
    }
    return o;
}

void bench_report_json(struct bench_report *r)
{
    raise_limits(r);
    json_t *rows = json_array();
    for (int i = 0; i < r->row_count; i++)
        json_array_append_new(rows, row_json(r, &r->rows[i]));
    json_t *o = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:I, s:{s:f, s:s, s:f, s:f, s:f}, s:f, s:f, s:I, s:I, s:I, s:I, s:b, s:o}",
        "model", r->model, "kernel_set", r->kernel_set, "stages", r->stages, "tensor", r->tensor, "threads",
        r->limit_threads, "repeats", (json_int_t)r->repeats, "limits", "read_bytes_per_s",
        r->limits.read_bytes_per_s, "read_by", r->limits.read_by, "int8_op_per_s",
        r->limits.cpu.int8_op_per_s, "bf16_flop_per_s", r->limits.cpu.bf16_flop_per_s, "fp32_flop_per_s",
        r->limits.cpu.fp32_flop_per_s, "load_ms", r->load_ms, "first_token_ms", r->first_token_ms,
        "resident_bytes", (json_int_t)r->resident_bytes, "anonymous_bytes", (json_int_t)r->anonymous_bytes,
        "weight_bytes", (json_int_t)r->work.file_bytes, "kv_budget_bytes", (json_int_t)r->kv_budget_bytes,
        "energy_readable", r->energy, "results", rows);
    if (r->prefix_tokens)
        json_object_set_new(o, "prefix",
                            json_pack("{s:I, s:f, s:f, s:f}", "tokens", (json_int_t)r->prefix_tokens,
                                      "first_ms", r->prefix_first_ms, "second_ms", r->prefix_second_ms,
                                      "share", r->prefix_second_ms / r->prefix_first_ms));
    if (r->lookup_count)
        json_object_set_new(o, "speculation", lookups_json(r));
    json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(8));
    printf("\n");
    json_decref(o);
}
