/* config: one option table per program or command. From the table come the defaults, reading of libconfig
 * files, the command line, the checks, --help, and docs/config.md: there is no second list of options
 * anywhere. config.c has the table and the command line, config_file.c the files, config_help.c the texts.
 *
 * A key `max_sequences` in a file is `--max-sequences` on the command line. Flags win over the file, the file
 * over the defaults. Every refusal says where and what was expected: "worker.cfg:12: max_sequences: expected
 * an integer from 1 to 4096, found \"many\"", "--stages: ...". Unknown keys and wrong types are refused;
 * include directives are refused too (they could loop). */
#ifndef LEPTON_COMMON_CONFIG_H
#define LEPTON_COMMON_CONFIG_H

#include <stdio.h>

#include "common/base.h"

enum config_kind {
    CONFIG_BOOL,    /* bool; on the command line a flag without a value (--json), or --name=false */
    CONFIG_INT,     /* int64_t within min..max */
    CONFIG_FLOAT,   /* double within min..max */
    CONFIG_STRING,  /* char *, owned by the settings; NULL when absent and the default is NULL */
    CONFIG_STRINGS, /* struct config_strings: the flag may be repeated; an array or one string in a file */
};

struct config_strings {
    char **item; /* [count], owned by the settings */
    size_t count;
    bool from_file; /* the first flag replaces them */
};

struct config_option {
    const char *name; /* with '_'; the command line writes '-' */
    char letter;      /* short form: 'p' for -p; 0 = none */
    enum config_kind kind;
    size_t offset;        /* of the member in the settings struct */
    double min, max;      /* inclusive bounds of a number; both 0 = no bounds */
    const char *standard; /* the default as text; NULL = absent (string), 0, false */
    const char *value;    /* what stands in help for the value: "N", "PATH", "tcp://HOST:PORT" */
    const char *choices;  /* "text|json": the only strings allowed; NULL = any */
    const char *help;     /* one sentence, unit included */
    bool given_only;      /* command line only: refused in files (say --config itself) */
};

/* Options that are named as their members, with all that they need. */
#define CONFIG_TEXT(type, member, preset, example, sentence)                                          \
    {                                                                                                 \
        .name = #member, .kind = CONFIG_STRING, .offset = offsetof(type, member), .standard = preset, \
        .value = example, .help = sentence                                                            \
    }
#define CONFIG_NUMBER(type, member, low, high, preset, sentence)                                        \
    {                                                                                                   \
        .name = #member, .kind = CONFIG_INT, .offset = offsetof(type, member), .min = low, .max = high, \
        .standard = preset, .value = "N", .help = sentence                                              \
    }

struct config_table {
    const char *program;   /* "lepton tokenize" */
    const char *arguments; /* "MODEL [PROMPT]": positional arguments for the usage line; NULL = none */
    const char *about;     /* one paragraph */
    const char *after;     /* printed after the options: exit codes, examples; may be NULL */
    int min_arguments, max_arguments;
    const struct config_option *options;
    size_t option_count;
    size_t settings_bytes;
};

/* Zeroes *settings and puts the defaults in. A table that contradicts itself is our bug (ASSERT). */
void config_defaults(const struct config_table *table, void *settings);
/* Reads a libconfig file (at most 1 MiB) into *settings, over what is there. Beyond libconfig it refuses
 * include directives, integers that do not fit (libconfig 1.5 would wrap them), hexadecimal and \x00. After
 * an error *settings holds a part of the file and is only good for config_release. */
int config_load(const struct config_table *table, void *settings, const char *path, struct err *err);
/* Reads the command line over *settings (config_defaults first). argv[0] is skipped; "--" ends the options;
 * --name VALUE, --name=VALUE, -x VALUE, -xVALUE; a bool is --name, --name=false or -x; "-" alone is
 * positional. The last of a repeated flag counts (of CONFIG_STRINGS all do), except --config, which may stand
 * once. When the table has an option `config`, that file is loaded first and the flags win. Positional
 * arguments are stored in arguments[max_arguments] (borrowed from argv), *argument_count of them; a wrong
 * number is refused. Returns 0; 1 after printing help for --help or -h, or the Markdown of config_describe
 * for --describe (exit 0 then); -1 with *err (usage error: exit 2). */
int config_args(const struct config_table *table, void *settings, int argc, char **argv,
                const char **arguments, int *argument_count, struct err *err);
/* Frees the strings of *settings. */
void config_release(const struct config_table *table, void *settings);
void config_help(const struct config_table *table, FILE *out);
/* The options as a Markdown table, for docs/config.md. */
void config_describe(const struct config_table *table, struct buffer *out);

/* The usual start of a main(): defaults, args, and on --help or an error prints and exits (0 or 2). Returns
 * the number of positional arguments; max_arguments is what arguments[] can hold (at least the table's). */
int config_main(const struct config_table *table, void *settings, int argc, char **argv,
                const char **arguments, int max_arguments);

/* The candidate nearest to `word` when it is near enough for "did you mean"; NULL when none is.
 * candidate(context, i) gives the i-th, NULL at the end. */
const char *config_nearest(const char *word, const char *(*candidate)(const void *context, size_t i),
                           const void *context);

#endif
