/* libFuzzer over configuration. An even first byte: the rest is a file; odd: the rest is a command line, its
 * words separated by NUL. What is accepted must lie within the bounds of the table. */
#include "common/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct sample {
    int64_t count, seed;
    double temperature, scale;
    char *prompt, *format;
    bool json;
};

#define AT(field) offsetof(struct sample, field)
static const struct config_option options[] = {
    {.name = "count",
     .letter = 'n',
     .kind = CONFIG_INT,
     .offset = AT(count),
     .min = 1,
     .max = 64,
     .help = "."},
    {.name = "seed", .kind = CONFIG_INT, .offset = AT(seed), .help = "."},
    {.name = "temperature", .kind = CONFIG_FLOAT, .offset = AT(temperature), .max = 2, .help = "."},
    {.name = "scale", .kind = CONFIG_FLOAT, .offset = AT(scale), .help = "."},
    {.name = "prompt", .letter = 'p', .kind = CONFIG_STRING, .offset = AT(prompt), .help = "."},
    {.name = "format", .kind = CONFIG_STRING, .offset = AT(format), .choices = "text|json", .help = "."},
    {.name = "json", .letter = 'j', .kind = CONFIG_BOOL, .offset = AT(json), .help = "."},
};
static const struct config_table table = {
    .program = "fuzz",
    .arguments = "[A [B]]",
    .max_arguments = 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct sample),
};

/* libconfig 1.5 does not free the strings of a file that it refuses. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so\n";
}

static int load(struct sample *s, const uint8_t *data, size_t size, struct err *err)
{
    static int file = -1;
    char path[64];
    if (file < 0)
        file = memfd_create("config", 0);
    if (ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != (ssize_t)size)
        die("memfd");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file); /* opening it again starts at its beginning */
    return config_load(&table, s, path, err);
}

static int words(struct sample *s, const uint8_t *data, size_t size, struct err *err)
{
    char text[1024], *argv[64] = {"fuzz"};
    const char *arguments[2];
    int argc = 1, count = 0;
    if (size >= sizeof(text))
        size = sizeof(text) - 1;
    memcpy(text, data, size);
    text[size] = 0;
    for (size_t i = 0; i < size && argc < 63; i += strlen(text + i) + 1)
        argv[argc++] = text + i;
    for (int i = 1; i < argc; i++) /* help would only fill the terminal */
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0 ||
            strcmp(argv[i], "--describe") == 0)
            argv[i] = "-";
    int rc = config_args(&table, s, argc, argv, arguments, &count, err);
    ASSERT(rc != 0 || (count >= 0 && count <= 2));
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sample s;
    struct err err = {0};
    if (size == 0)
        return 0;
    config_defaults(&table, &s);
    int rc = (data[0] & 1 ? words : load)(&s, data + 1, size - 1, &err);
    ASSERT(rc == 0 || rc == -1);
    ASSERT((rc == 0) == (err.message[0] == 0));
    ASSERT(s.count == 0 || (s.count >= 1 && s.count <= 64));
    ASSERT(s.temperature >= 0 && s.temperature <= 2 && isfinite(s.scale));
    ASSERT(!s.format || strcmp(s.format, "text") == 0 || strcmp(s.format, "json") == 0);
    config_release(&table, &s);
    return 0;
}
