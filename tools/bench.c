/* lepton bench: which of its measurements is meant, and what they share (tools/bench.h). */
#include "tools/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/command.h"

static const struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
    const struct config_table *table;
} measurements[] = {
    {"engine", "a model through the whole engine: prompts, generation, batches, load, memory",
     command_bench_engine, &bench_engine_table},
    {"kernels", "every kernel of the CPU alone", command_bench_kernels, &bench_kernels_table},
    {"relay", "what the coordinator and CURVE add to a token on its way", command_bench_relay,
     &bench_relay_table},
};

static void print_help(FILE *out)
{
    fprintf(out, "usage: lepton bench WHAT [options]\n\n"
                 "Measures speed beside the limits of this machine, both in one run.\n\nwhat:\n");
    for (size_t i = 0; i < ARRAY_LEN(measurements); i++)
        fprintf(out, "  %-9s%s\n", measurements[i].name, measurements[i].about);
    fprintf(out, "\n`lepton bench WHAT --help` explains the options.\n");
}

/* The option tables of all, for docs/config.md. */
static int describe(void)
{
    struct buffer text = {0};
    for (size_t i = 0; i < ARRAY_LEN(measurements); i++) {
        buffer_printf(&text, "%s### %s\n\n", i ? "\n" : "", measurements[i].table->program);
        config_describe(measurements[i].table, &text);
    }
    fwrite(text.data, 1, text.size, stdout);
    buffer_release(&text);
    return EXIT_OK;
}

int command_bench(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : NULL;
    for (size_t i = 0; what && i < ARRAY_LEN(measurements); i++)
        if (strcmp(what, measurements[i].name) == 0)
            return measurements[i].run(argc - 1, argv + 1);
    if (what && (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0)) {
        print_help(stdout);
        return EXIT_OK;
    }
    if (what && strcmp(what, "--describe") == 0)
        return describe();
    if (what)
        fprintf(stderr, "lepton bench: \"%s\": expected engine, kernels or relay\n", what);
    else
        print_help(stderr);
    return EXIT_USAGE;
}

double bench_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct bench_summary bench_summarise(double *values, int64_t count)
{
    ASSERT(count >= 1);
    qsort(values, (size_t)count, sizeof(*values), by_value);
    double median = (values[(count - 1) / 2] + values[count / 2]) / 2;
    return (struct bench_summary){median, (values[count - 1] - values[0]) / median};
}

/* ---- memory and energy ---- */

/* A number of /proc/PID/status in bytes; 0 when the line is not there. */
static uint64_t status_bytes(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

int bench_resident(int64_t pid, uint64_t *all, uint64_t *anonymous, struct err *err)
{
    char path[64], text[8192];
    snprintf(path, sizeof(path), "/proc/%lld/status", (long long)pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return err_set(err, "%s: %s", path, strerror(errno));
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = '\0';
    *all = status_bytes(text, "VmRSS:");
    *anonymous = status_bytes(text, "RssAnon:");
    return *all ? 0 : err_set(err, "%s: expected a line VmRSS", path);
}

static bool read_counter(const char *directory, const char *name, uint64_t *out)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *f = fopen(path, "r");
    unsigned long long value = 0;
    bool ok = f && fscanf(f, "%llu", &value) == 1;
    if (f)
        fclose(f);
    *out = value;
    return ok;
}

/* Packages are "intel-rapl:N" (AMD's driver uses the same name); their parts have a second number and would
 * count twice. */
bool bench_energy_begin(struct bench_energy *e)
{
    *e = (struct bench_energy){0};
    for (int package = 0; package < BENCH_ENERGY_MAX; package++) {
        char *path = e->path[e->domains];
        snprintf(path, sizeof(e->path[0]), "/sys/class/powercap/intel-rapl:%d", package);
        if (read_counter(path, "energy_uj", &e->begun_uj[e->domains])) {
            read_counter(path, "max_energy_range_uj", &e->range_uj[e->domains]);
            e->domains++;
        }
    }
    return e->domains > 0;
}

double bench_energy_joules(const struct bench_energy *e)
{
    double sum = 0;
    for (int i = 0; i < e->domains; i++) {
        uint64_t now = 0;
        if (!read_counter(e->path[i], "energy_uj", &now))
            continue;
        if (now < e->begun_uj[i]) /* it went round */
            now += e->range_uj[i];
        sum += (double)(now - e->begun_uj[i]) * 1e-6;
    }
    return sum;
}
