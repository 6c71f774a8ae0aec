#include "tools/sim/report.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/base.h"

const char *const sim_class_names[WORKLOAD_CLASSES] = {"realtime", "interactive", "batch"};

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

struct sim_percentiles sim_percentiles_of(float *v, uint64_t count)
{
    struct sim_percentiles p = {0};
    if (count == 0)
        return p;
    qsort(v, count, sizeof(*v), by_value);
    for (uint64_t i = 0; i < count; i++)
        p.mean += v[i];
    p.mean /= (double)count;
    p.p50 = v[(count - 1) * 50 / 100];
    p.p90 = v[(count - 1) * 90 / 100];
    p.p99 = v[(count - 1) * 99 / 100];
    p.max = v[count - 1];
    return p;
}

static bool missed(const struct sim_request *q)
{
    return q->code == 408 && q->ttft_ms >= 0;
}

static bool refused(const struct sim_request *q)
{
    return (q->code == 408 || q->code == 429 || q->code == 503) && !missed(q);
}

/* Which requests a report is about: -1 = any. */
struct filter {
    int class, tenant;
};

static bool passes(const struct filter *f, const struct sim_request *q)
{
    return (f->class < 0 || q->class == f->class) && (f->tenant < 0 || q->tenant == (uint32_t)f->tenant);
}

/* `values` has room for all requests. */
static struct sim_class_report class_report(const struct sim_result *r, const struct filter *f, float *values)
{
    struct sim_class_report c = {.name = "all"};
    uint64_t ttft = 0, e2e = 0, refusals = 0;
    if (f->class >= 0)
        snprintf(c.name, sizeof(c.name), "%s", sim_class_names[f->class]);
    if (f->tenant >= 0)
        snprintf(c.name, sizeof(c.name), "tenant-%d", f->tenant);
    for (uint64_t i = 0; i < r->count; i++) {
        const struct sim_request *q = &r->requests[i];
        if (!passes(f, q))
            continue;
        c.requests++;
        c.complete += q->code == 0;
        c.in_time += q->in_time;
        c.refused += refused(q);
        c.missed += missed(q);
        c.lost += q->code == 502;
        c.output_tokens += q->output_tokens;
        if (q->code == 0)
            values[ttft++] = q->ttft_ms;
    }
    c.ttft_ms = sim_percentiles_of(values, ttft);
    for (uint64_t i = 0; i < r->count; i++)
        if (r->requests[i].code == 0 && passes(f, &r->requests[i]))
            values[e2e++] = r->requests[i].e2e_ms;
    c.e2e_ms = sim_percentiles_of(values, e2e);
    for (uint64_t i = 0; i < r->count; i++)
        if (refused(&r->requests[i]) && passes(f, &r->requests[i]))
            values[refusals++] = r->requests[i].e2e_ms;
    c.refusal_ms = sim_percentiles_of(values, refusals);
    return c;
}

/* (sum x)^2 / (n sum x^2) over the tenants that asked for anything. */
static double jain(const struct sim_result *r, uint32_t *tenants)
{
    uint32_t end = 0;
    for (uint64_t i = 0; i < r->count; i++)
        end = r->requests[i].tenant >= end ? r->requests[i].tenant + 1 : end;
    double *served = xcalloc(end + 1, sizeof(*served)), sum = 0, squares = 0;
    bool *asked = xcalloc(end + 1, sizeof(*asked));
    for (uint64_t i = 0; i < r->count; i++) {
        const struct sim_request *q = &r->requests[i];
        asked[q->tenant] = true;
        if (q->code == 0)
            served[q->tenant] += q->prompt_tokens + 2.0 * q->output_tokens;
    }
    *tenants = 0;
    for (uint32_t t = 0; t < end; t++) {
        *tenants += asked[t];
        sum += served[t];
        squares += served[t] * served[t];
    }
    free(served);
    free(asked);
    return squares > 0 ? sum * sum / (*tenants * squares) : 1;
}

void sim_report_make(struct sim_report *out, const struct sim_result *r)
{
    float *values = xcalloc(r->count + 1, sizeof(*values));
    uint64_t prompt = 0, cached = 0, in_time = 0;
    *out = (struct sim_report){.all = class_report(r, &(struct filter){-1, -1}, values)};
    for (int c = 0; c < WORKLOAD_CLASSES; c++)
        out->class[c] = class_report(r, &(struct filter){c, -1}, values);
    out->jain = jain(r, &out->tenants);
    for (int t = 0; t < SIM_TENANTS && t < (int)out->tenants; t++)
        out->tenant[t] = class_report(r, &(struct filter){-1, t}, values);
    free(values);
    for (uint64_t i = 0; i < r->count; i++) {
        const struct sim_request *q = &r->requests[i];
        prompt += q->code == 0 ? q->prompt_tokens : 0;
        cached += q->code == 0 ? q->cached_tokens : 0;
        in_time += q->in_time ? q->output_tokens : 0;
    }
    double s = r->end_s > 0 ? r->end_s : 1;
    out->tokens_per_s = (double)out->all.output_tokens / s;
    out->goodput_per_s = (double)in_time / s;
    out->requests_per_s = (double)out->all.complete / s;
    out->cache_hit = prompt ? (double)cached / (double)prompt : 0;
    out->decisions_per_s = r->scheduler_s > 0 ? (double)r->decisions / r->scheduler_s : 0;
}

/* ---- a table ---- */
static void print_row(FILE *out, const struct sim_class_report *c)
{
    if (c->requests == 0)
        return;
    fprintf(out, "%-12s %9llu %9llu %8llu %7llu %6llu %8.1f %8.1f %8.1f %9.1f %9.1f\n", c->name,
            (unsigned long long)c->requests, (unsigned long long)c->complete, (unsigned long long)c->refused,
            (unsigned long long)c->missed, (unsigned long long)c->lost, c->ttft_ms.mean, c->ttft_ms.p50,
            c->ttft_ms.p99, c->e2e_ms.mean, c->e2e_ms.p99);
}

void sim_report_table(FILE *out, const struct sim_report *p)
{
    fprintf(out, "%-12s %9s %9s %8s %7s %6s %8s %8s %8s %9s %9s\n", "class", "requests", "complete",
            "refused", "missed", "lost", "TTFT ms", "p50", "p99", "E2E ms", "p99");
    for (int c = 0; c < WORKLOAD_CLASSES; c++)
        print_row(out, &p->class[c]);
    print_row(out, &p->all);
}

void sim_report_print(FILE *out, const struct sim_report *p, const struct sim_result *r)
{
    sim_report_table(out, p);
    fprintf(
        out,
        "\nsimulated        %.1f s in %.1f s: %llu requests, %llu failures of groups, %llu requests moved\n",
        r->end_s, r->wall_s, (unsigned long long)r->count, (unsigned long long)r->failures,
        (unsigned long long)r->moved);
    fprintf(out, "output           %.0f tokens/s, %.0f of them of requests in time (goodput)\n",
            p->tokens_per_s, p->goodput_per_s);
    fprintf(out, "fairness         Jain %.3f over %u tenants\n", p->jain, p->tenants);
    fprintf(out, "prefix cache     %.1f %% of the prompt tokens\n", 100 * p->cache_hit);
    fprintf(out, "refusals         decided in %.1f ms (p99)\n", p->all.refusal_ms.p99);
    fprintf(
        out,
        "scheduler        %llu decisions, %.0f per second of its own time; %llu preemptions, %llu too late, "
        "%llu shed; %.1f MiB, at most %u requests\n",
        (unsigned long long)r->decisions, p->decisions_per_s, (unsigned long long)r->preempted,
        (unsigned long long)r->late, (unsigned long long)r->shed, (double)r->scheduler_bytes / 1048576.0,
        r->most_live);
}

/* ---- JSON ---- */
static json_t *json_percentiles(const struct sim_percentiles *p)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", p->mean, "p50", p->p50, "p90", p->p90, "p99",
                     p->p99, "max", p->max);
}

static json_t *json_class(const struct sim_class_report *c)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "name", c->name, "requests",
                     (json_int_t)c->requests, "complete", (json_int_t)c->complete, "in_time",
                     (json_int_t)c->in_time, "refused", (json_int_t)c->refused, "missed",
                     (json_int_t)c->missed, "lost", (json_int_t)c->lost, "output_tokens",
                     (json_int_t)c->output_tokens, "ttft_ms", json_percentiles(&c->ttft_ms), "e2e_ms",
                     json_percentiles(&c->e2e_ms), "refusal_ms", json_percentiles(&c->refusal_ms));
}

void sim_report_json(FILE *out, const struct sim_report *p, const struct sim_result *r)
{
    json_t *classes = json_array(), *tenants = json_array(), *settings = json_array();
    for (uint32_t t = 0; t < p->tenants && t < SIM_TENANTS; t++)
        json_array_append_new(tenants, json_class(&p->tenant[t]));
    for (int c = 0; c < WORKLOAD_CLASSES; c++)
        if (p->class[c].requests)
            json_array_append_new(classes, json_class(&p->class[c]));
    for (int i = 0; i < SCHEDULER_SETTINGS && r->settings[i].name; i++) {
        const struct scheduler_setting *t = &r->settings[i];
        json_array_append_new(settings, json_pack("{s:s, s:I, s:I, s:I, s:b}", "name", t->name, "value",
                                                  (json_int_t)t->value, "low", (json_int_t)t->low, "high",
                                                  (json_int_t)t->high, "automatic", (int)t->automatic));
    }
    json_t *o = json_pack(
        "{s:f, s:f, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:i, s:f, s:I, s:f, s:I, s:I, s:I, s:I, "
        "s:I, s:I, s:I, s:o}",
        "simulated_s", r->end_s, "wall_s", r->wall_s, "all", json_class(&p->all), "classes", classes,
        "by_tenant", tenants, "tokens_per_second", p->tokens_per_s, "goodput_tokens_per_second",
        p->goodput_per_s, "requests_per_second", p->requests_per_s, "jain", p->jain, "tenants",
        (int)p->tenants, "cache_hit", p->cache_hit, "decisions", (json_int_t)r->decisions,
        "decisions_per_second", p->decisions_per_s, "preempted", (json_int_t)r->preempted, "late",
        (json_int_t)r->late, "shed", (json_int_t)r->shed, "failures", (json_int_t)r->failures, "moved",
        (json_int_t)r->moved, "scheduler_bytes", (json_int_t)r->scheduler_bytes, "most_live",
        (json_int_t)r->most_live, "settings", settings);
    json_dumpf(o, out, JSON_COMPACT | JSON_REAL_PRECISION(8));
    fputc('\n', out);
    json_decref(o);
}

/* ---- every request ---- */
int sim_report_csv(const char *path, const struct sim_result *r, struct err *err)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return err_set(err, "%s: cannot be written", path);
    fprintf(f, "arrival_s,class,tenant,prompt_tokens,output_tokens,cached_tokens,code,ttft_ms,e2e_ms\n");
    for (uint64_t i = 0; i < r->count; i++) {
        const struct sim_request *q = &r->requests[i];
        fprintf(f, "%.6f,%s,%u,%u,%u,%u,%d,%.3f,%.3f\n", q->arrival_s, sim_class_names[q->class], q->tenant,
                q->prompt_tokens, q->output_tokens, q->cached_tokens, q->code, q->ttft_ms, q->e2e_ms);
    }
    bool failed = ferror(f) != 0;
    failed |= fclose(f) != 0;
    return failed ? err_set(err, "%s: cannot be written", path) : 0;
}

/* ---- a picture ---- */
#define WIDTH   960
#define PANEL   200
#define LEFT    70
#define BUCKETS 240

struct curve {
    double value[BUCKETS];
    const char *color, *name;
};

static void draw_panel(FILE *f, int top, const char *title, const struct curve *curves, int count,
                       double end_s)
{
    double most = 0;
    for (int c = 0; c < count; c++)
        for (int i = 0; i < BUCKETS; i++)
            most = curves[c].value[i] > most ? curves[c].value[i] : most;
    most = most > 0 ? most : 1;
    fprintf(f, "<text x='%d' y='%d' font-weight='bold'>%s</text>\n", LEFT, top - 8, title);
    fprintf(f, "<rect x='%d' y='%d' width='%d' height='%d' fill='none' stroke='#999'/>\n", LEFT, top, WIDTH,
            PANEL);
    for (int k = 0; k <= 4; k++) {
        fprintf(f, "<text x='%d' y='%d' text-anchor='end' fill='#555'>%.4g</text>\n", LEFT - 6,
                top + PANEL - k * PANEL / 4 + 4, most * k / 4);
        fprintf(f, "<text x='%d' y='%d' text-anchor='middle' fill='#555'>%.4g s</text>\n",
                LEFT + k * WIDTH / 4, top + PANEL + 16, end_s * k / 4);
    }
    for (int c = 0; c < count; c++) {
        fprintf(f, "<polyline fill='none' stroke='%s' stroke-width='1.5' points='", curves[c].color);
        for (int i = 0; i < BUCKETS; i++)
            fprintf(f, "%.1f,%.1f ", LEFT + (i + 0.5) * WIDTH / BUCKETS,
                    top + PANEL - curves[c].value[i] / most * PANEL);
        fprintf(f, "'/>\n<text x='%d' y='%d' fill='%s'>%s</text>\n", LEFT + WIDTH - 170 + c * 85, top - 8,
                curves[c].color, curves[c].name);
    }
}

static int bucket_of(double at_s, double end_s)
{
    int b = end_s > 0 ? (int)(at_s / end_s * BUCKETS) : 0;
    return b < 0 ? 0 : b >= BUCKETS ? BUCKETS - 1 : b;
}

static void queue_curves(const struct sim_result *r, struct curve *queued, struct curve *running)
{
    for (uint64_t i = 0; i < r->sample_count; i++) {
        int b = bucket_of(r->samples[i].at_s, r->end_s);
        queued->value[b] = r->samples[i].queued > queued->value[b] ? r->samples[i].queued : queued->value[b];
        running->value[b] =
            r->samples[i].running > running->value[b] ? r->samples[i].running : running->value[b];
    }
}

static void latency_curves(const struct sim_result *r, struct curve *median, struct curve *p99)
{
    uint64_t counts[BUCKETS + 1] = {0};
    float *values = xcalloc(r->count + 1, sizeof(*values));
    for (uint64_t i = 0; i < r->count; i++)
        if (r->requests[i].code == 0)
            counts[bucket_of(r->requests[i].arrival_s, r->end_s) + 1]++;
    for (int b = 0; b < BUCKETS; b++)
        counts[b + 1] += counts[b];
    uint64_t at[BUCKETS];
    memcpy(at, counts, sizeof(at));
    for (uint64_t i = 0; i < r->count; i++)
        if (r->requests[i].code == 0)
            values[at[bucket_of(r->requests[i].arrival_s, r->end_s)]++] = r->requests[i].ttft_ms;
    for (int b = 0; b < BUCKETS; b++) {
        struct sim_percentiles p = sim_percentiles_of(values + counts[b], counts[b + 1] - counts[b]);
        median->value[b] = p.p50;
        p99->value[b] = p.p99;
    }
    free(values);
}

int sim_report_svg(const char *path, const struct sim_result *r, struct err *err)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return err_set(err, "%s: cannot be written", path);
    struct curve queue[2] = {{.color = "#c0392b", .name = "waiting"},
                             {.color = "#2471a3", .name = "running"}};
    struct curve ttft[2] = {{.color = "#2471a3", .name = "median"}, {.color = "#c0392b", .name = "p99"}};
    queue_curves(r, &queue[0], &queue[1]);
    latency_curves(r, &ttft[0], &ttft[1]);
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' "
            "font-size='12'>\n<rect width='100%%' height='100%%' fill='white'/>\n",
            WIDTH + LEFT + 30, 2 * PANEL + 130);
    draw_panel(f, 40, "requests", queue, 2, r->end_s);
    draw_panel(f, 40 + PANEL + 60, "time to first token, ms, by arrival", ttft, 2, r->end_s);
    fprintf(f, "</svg>\n");
    bool failed = ferror(f) != 0;
    failed |= fclose(f) != 0;
    return failed ? err_set(err, "%s: cannot be written", path) : 0;
}
