#include "common/config.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "tests/test.h"

#ifdef LEPTON_SANITIZE
/* libconfig 1.5 does not free the strings of a file that it refuses; each process reads one file. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so\n";
}
#endif

struct sample {
    int64_t max_tokens, seed;
    double temperature, scale;
    char *prompt, *log_format, *config;
    bool json;
};

#define AT(field) offsetof(struct sample, field)
static const struct config_option options[] = {
    {.name = "max_tokens",
     .letter = 'n',
     .kind = CONFIG_INT,
     .offset = AT(max_tokens),
     .min = 1,
     .max = 4096,
     .standard = "64",
     .help = "Tokens to generate."},
    {.name = "seed", .kind = CONFIG_INT, .offset = AT(seed), .max = 9223372036854775807.0, .help = "Seed."},
    {.name = "temperature",
     .kind = CONFIG_FLOAT,
     .offset = AT(temperature),
     .max = 2,
     .standard = "0.5",
     .help = "Temperature."},
    {.name = "scale", .kind = CONFIG_FLOAT, .offset = AT(scale), .help = "Without bounds."},
    {.name = "prompt", .letter = 'p', .kind = CONFIG_STRING, .offset = AT(prompt), .help = "Prompt."},
    {.name = "log_format",
     .kind = CONFIG_STRING,
     .offset = AT(log_format),
     .standard = "text",
     .choices = "text|json",
     .help = "Format of the log."},
    {.name = "json", .letter = 'j', .kind = CONFIG_BOOL, .offset = AT(json), .help = "Prints JSON."},
    {.name = "config",
     .kind = CONFIG_STRING,
     .offset = AT(config),
     .value = "FILE",
     .given_only = true,
     .help = "Configuration file."},
};
static const struct config_table table = {
    .program = "sample",
    .arguments = "MODEL [TEXT]",
    .about = "A program.",
    .after = "exit codes: 0 done\n",
    .max_arguments = 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct sample),
};

/* A file of the test's own, removed with file_end(). */
static char file_path[64];
static const char *file_with(const char *text, size_t bytes)
{
    strcpy(file_path, "/tmp/lepton-config-XXXXXX");
    int fd = mkstemp(file_path);
    if (fd < 0 || write(fd, text, bytes) != (ssize_t)bytes)
        abort();
    close(fd);
    return file_path;
}
static void file_end(void)
{
    unlink(file_path);
}

/* Parses a command line given as words; the caller releases *s. */
static struct err args_err;
static const char *args_positional[2];
static int args_count;
static int args_of(struct sample *s, int argc, char **argv)
{
    args_count = -1;
    args_err.message[0] = 0;
    config_defaults(&table, s);
    return config_args(&table, s, argc, argv, args_positional, &args_count, &args_err);
}
#define ARGS(s, ...) \
    args_of((s), ARRAY_LEN(((char *[]){"sample", __VA_ARGS__})), (char *[]){"sample", __VA_ARGS__, NULL})

/* The command line must be refused with exactly these words. */
#define CHECK_REFUSED(words, ...)              \
    do {                                       \
        struct sample s_;                      \
        CHECK_INT(ARGS(&s_, __VA_ARGS__), -1); \
        CHECK_STR(args_err.message, words);    \
        config_release(&table, &s_);           \
    } while (0)

static void test_defaults(void)
{
    struct sample s;
    memset(&s, 0xAA, sizeof(s));
    config_defaults(&table, &s);
    CHECK_INT(s.max_tokens, 64);
    CHECK_INT(s.seed, 0);
    CHECK_NEAR(s.temperature, 0.5, 0);
    CHECK(s.prompt == NULL);
    CHECK_STR(s.log_format, "text");
    CHECK(!s.json);
    config_release(&table, &s);
    CHECK(s.log_format == NULL);
    config_release(&table, NULL);
}

static void test_file(void)
{
    static const char text[] =
        "# a comment\nmax_tokens = 128; temperature : 1\n/* two\nlines */ prompt = \"a \" "
        "\"b\\n\\\"@include \\\"x\\\"\";\nlog_format = \"json\" // end\njson = TRUE;\n"
        "seed = 9007199254740993;\n";
    struct sample s;
    struct err err = {0};
    config_defaults(&table, &s);
    CHECK_INT(config_load(&table, &s, file_with(text, strlen(text)), &err), 0);
    CHECK_STR(err.message, "");
    CHECK_INT(s.max_tokens, 128);
    CHECK_NEAR(s.temperature, 1, 0);
    CHECK_STR(s.prompt, "a b\n\"@include \"x\"");
    CHECK_STR(s.log_format, "json");
    CHECK(s.json);
    CHECK_INT(s.seed, 9007199254740993); /* more than 32 bits, and no double in between */
    config_release(&table, &s);
    file_end();
}

static void test_precedence(void)
{
    static const char text[] = "max_tokens = 7; temperature = 0.25;";
    struct sample s;
    char config[96];
    snprintf(config, sizeof(config), "--config=%s", file_with(text, strlen(text)));
    CHECK_INT(ARGS(&s, "--max-tokens", "9", config), 0); /* the flag stands before the file, and wins */
    CHECK_INT(s.max_tokens, 9);
    CHECK_NEAR(s.temperature, 0.25, 0);
    CHECK_STR(s.log_format, "text");
    config_release(&table, &s);
    file_end();
}

static void test_flag_forms(void)
{
    struct sample s;
    CHECK_INT(ARGS(&s, "-n", "5", "model", "--prompt=x=y", "-j", "--temperature", "1e-1", "text"), 0);
    CHECK_INT(s.max_tokens, 5);
    CHECK_STR(s.prompt, "x=y");
    CHECK(s.json);
    CHECK_NEAR(s.temperature, 0.1, 1e-15);
    CHECK_INT(args_count, 2);
    CHECK_STR(args_positional[0], "model");
    CHECK_STR(args_positional[1], "text");
    config_release(&table, &s);
    CHECK_INT(ARGS(&s, "--scale", "-2.5e3", "--seed", "9223372036854775807"), 0);
    CHECK_NEAR(s.scale, -2500, 0);
    CHECK_INT(s.seed, INT64_MAX);
    config_release(&table, &s);
    CHECK_INT(ARGS(&s, "-n7", "--json", "--json=false", "-pabc", "-n", "8"), 0); /* the last one counts */
    CHECK_INT(s.max_tokens, 8);
    CHECK_STR(s.prompt, "abc");
    CHECK(!s.json);
    config_release(&table, &s);
}

/* A table of its own: options that may be repeated. */
struct words {
    struct config_strings stop;
    char *config;
};
static const struct config_option word_options[] = {
    {.name = "stop",
     .kind = CONFIG_STRINGS,
     .offset = offsetof(struct words, stop),
     .help = "Ends an answer; may be repeated."},
    {.name = "config",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct words, config),
     .given_only = true,
     .help = "A file."},
};
static const struct config_table word_table = {.program = "words",
                                               .options = word_options,
                                               .option_count = ARRAY_LEN(word_options),
                                               .settings_bytes = sizeof(struct words)};

/* The words of a file and of flags, joined by '|'; or the error. */
static const char *words_of(const char *file, int argc, char **argv, char out[200])
{
    struct words s;
    struct err err = {0};
    char *all[8] = {"words"}, config[96];
    int count = 1, arguments = 0;
    for (int i = 0; i < argc; i++)
        all[count++] = argv[i];
    snprintf(config, sizeof(config), "--config=%s", file ? file_with(file, strlen(file)) : "");
    if (file)
        all[count++] = config;
    config_defaults(&word_table, &s);
    int code = config_args(&word_table, &s, count, all, NULL, &arguments, &err);
    out[0] = '\0';
    for (size_t i = 0; code == 0 && i < s.stop.count; i++)
        snprintf(out + strlen(out), 200 - strlen(out), "%s%s", i ? "|" : "", s.stop.item[i]);
    if (code)
        snprintf(out, 200, "%s", strstr(err.message, "stop") ? strstr(err.message, "stop") : err.message);
    config_release(&word_table, &s);
    CHECK_INT(s.stop.count, 0);
    if (file)
        file_end();
    return out;
}

static void test_strings(void)
{
    char out[200];
    CHECK_STR(words_of(NULL, 0, NULL, out), "");
    CHECK_STR(words_of(NULL, 3, (char *[]){"--stop", "a b", "--stop=|"}, out), "a b||");
    CHECK_STR(words_of("stop = \"one\";", 0, NULL, out), "one");
    CHECK_STR(words_of("stop = [\"one\", \"two\"];", 0, NULL, out), "one|two");
    CHECK_STR(words_of("stop = (\"one\");", 2, (char *[]){"--stop", "flag"}, out), "flag");
    CHECK_STR(words_of("stop = 7;", 0, NULL, out), "stop: expected strings, found 7");
    CHECK_STR(words_of("stop = (\"one\", 7);", 0, NULL, out), "stop: expected strings, found 7");
    CHECK_STR(words_of(NULL, 1, (char *[]){"--stop"}, out),
              "stop: expected strings, found the end of the command line");
}

static void test_end_of_options(void)
{
    struct sample s;
    CHECK_INT(ARGS(&s, "-", "--", "--json"), 0);
    CHECK_INT(args_count, 2);
    CHECK_STR(args_positional[0], "-");
    CHECK_STR(args_positional[1], "--json");
    CHECK(!s.json);
    config_release(&table, &s);
}

static void test_values_that_look_like_flags(void)
{
    struct sample s;
    CHECK_INT(ARGS(&s, "-p", "-n", "--prompt", "--not a flag"), 0);
    CHECK_STR(s.prompt, "--not a flag");
    config_release(&table, &s);
    CHECK_REFUSED("--prompt: expected a string, found the option --json", "--prompt", "--json");
    CHECK_INT(ARGS(&s, "--prompt=--json"), 0);
    CHECK_STR(s.prompt, "--json");
    config_release(&table, &s);
}

static void test_command_line_refusals(void)
{
    CHECK_REFUSED("--max-tokens: expected an integer from 1 to 4096, found \"many\"", "--max-tokens", "many");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"5x\"", "-n", "5x");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \" 5\"", "-n", " 5");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"\"", "-n", "");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"0\"", "-n0");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"4097\"", "-n", "4097");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"99999999999999999999\"", "-n",
                  "99999999999999999999");
    CHECK_REFUSED("-n: expected an integer from 1 to 4096, found \"1.0\"", "-n", "1.0");
    CHECK_REFUSED("--temperature: expected a number from 0 to 2, found \"nan\"", "--temperature", "nan");
    CHECK_REFUSED("--temperature: expected a number from 0 to 2, found \"0x1\"", "--temperature", "0x1");
    CHECK_REFUSED("--temperature: expected a number from 0 to 2, found \"1e400\"", "--temperature", "1e400");
    CHECK_REFUSED("--temperature: expected a number from 0 to 2, found \".\"", "--temperature", ".");
    CHECK_REFUSED("--scale: expected a number, found \"-1e999\"", "--scale", "-1e999");
    CHECK_REFUSED("--seed: expected an integer from 0 to 9223372036854775807, found \"9223372036854775808\"",
                  "--seed", "9223372036854775808");
    CHECK_REFUSED("--log-format: expected one of text, json, found \"tex\"", "--log-format", "tex");
    CHECK_REFUSED("--json: expected true or false, found \"maybe\"", "--json=maybe");
    CHECK_REFUSED("-j: takes no value, found \"x\"", "-jx");
    CHECK_REFUSED("--prompt: expected a string, found the end of the command line", "--prompt");
    CHECK_REFUSED("\"--max-token\": unknown option; did you mean --max-tokens?", "--max-token", "1");
    CHECK_REFUSED("\"--max_tokens\": unknown option; did you mean --max-tokens?", "--max_tokens", "1");
    CHECK_REFUSED("\"--zzzzzz=1\": unknown option", "--zzzzzz=1");
    CHECK_REFUSED("\"-z\": unknown option", "-z");
    CHECK_REFUSED("expected MODEL [TEXT], found one argument too many: \"c\"", "a", "b", "c");
    CHECK_REFUSED("--config: expected once, found twice", "--config", "a", "--config", "b");
    CHECK_REFUSED("/nonexistent: cannot be opened: No such file or directory", "--config", "/nonexistent");
}

static void test_too_few_arguments(void)
{
    struct config_table strict = table;
    struct sample s;
    struct err err;
    char *argv[] = {"sample", "--json", NULL};
    strict.min_arguments = 1;
    config_defaults(&strict, &s);
    CHECK_INT(config_args(&strict, &s, 2, argv, args_positional, NULL, &err), -1);
    CHECK_STR(err.message, "expected MODEL [TEXT], found 0 arguments");
    config_release(&strict, &s);
}

/* ---- bad files: each with its own message ---------------------------------------------------------------
 */

#define BAD(text, message)              \
    {                                   \
        text, sizeof(text) - 1, message \
    }
static const struct {
    const char *text;
    size_t bytes;
    const char *message; /* behind "PATH:" */
} bad_files[] = {
    BAD("max_token = 1;", "1: max_token: unknown key; did you mean max_tokens?"),
    BAD("\n\nfrobnicate = 1;",
        "3: frobnicate: unknown key; expected one of those that `sample --help` lists"),
    BAD("max_tokens = \"many\";", "1: max_tokens: expected an integer from 1 to 4096, found \"many\""),
    BAD("max_tokens = 1.0;", "1: max_tokens: expected an integer from 1 to 4096, found the number 1"),
    BAD("max_tokens = true;", "1: max_tokens: expected an integer from 1 to 4096, found true"),
    BAD("max_tokens = 0;", "1: max_tokens: expected an integer from 1 to 4096, found 0"),
    BAD("max_tokens = 4097;", "1: max_tokens: expected an integer from 1 to 4096, found 4097"),
    /* libconfig 1.5 would read 4294967297 as 1 */
    BAD("max_tokens = 4294967297;", "1: max_tokens: expected an integer from 1 to 4096, found 4294967297"),
    BAD("seed = 99999999999999999999;",
        "1: expected an integer that fits 64 bits, found 99999999999999999999"),
    BAD("seed = -1;", "1: seed: expected an integer from 0 to 9223372036854775807, found -1"),
    BAD("seed = 0xFFFFFFFF;", "1: expected a decimal number, found a hexadecimal one"),
    BAD("temperature = 3.5;", "1: temperature: expected a number from 0 to 2, found the number 3.5"),
    BAD("temperature = 1e400;", "1: temperature: expected a number from 0 to 2, found the number inf"),
    BAD("temperature = \"1\";", "1: temperature: expected a number from 0 to 2, found \"1\""),
    BAD("scale = 1e400;", "1: scale: expected a number, found the number inf"),
    BAD("prompt = 5;", "1: prompt: expected a string, found 5"),
    BAD("prompt = [\"a\"];", "1: prompt: expected a string, found an array [ ]"),
    BAD("prompt = (\"a\", 1);", "1: prompt: expected a string, found a list ( )"),
    BAD("json = 1;", "1: json: expected true or false, found 1"),
    BAD("json = { on = true; };", "1: json: expected true or false, found a group { }"),
    BAD("log_format = \"xml\";", "1: log_format: expected one of text, json, found \"xml\""),
    BAD("log_format = \"\";", "1: log_format: expected one of text, json, found \"\""),
    BAD("config = \"other\";", "1: config: expected on the command line only (--config)"),
    BAD("max_tokens = 1;\nmax_tokens = 2;",
        "2: a key stands here for the second time; expected each key once"),
    BAD("\n@include \"/etc/hostname\"\n",
        "2: include directives are refused; write the settings in one file"),
    BAD("json = true; @include \"x\"", "1: include directives are refused; write the settings in one file"),
    BAD("prompt = \"a\nb", "1: expected a closing quote for the string that begins here"),
    BAD("json = true; /* json = false;", "1: expected */ for the comment that begins here"),
    BAD("prompt = \"a\n\\x00b\";", "2: a string cannot hold \\x00"),
    BAD("json = true;\n\0max_tokens = 1;", "2: expected text, found a NUL byte"),
    BAD("max_tokens = 12abc;", "1: syntax error; expected `key = value;`"),
    BAD("max_tokens 12;", "1: syntax error; expected `key = value;`"),
    BAD("json = true;\n}", "2: syntax error; expected `key = value;`"),
    BAD("\xEF\xBB\xBFjson = true;", "1: syntax error; expected `key = value;`"),
    BAD("prompt = [1, \"x\"];", "1: mismatched element type in array"),
};

static void test_bad_files(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad_files); i++) {
        struct sample s;
        struct err err = {0};
        char expected[sizeof(err.message) + 64];
        config_defaults(&table, &s);
        const char *path = file_with(bad_files[i].text, bad_files[i].bytes);
        snprintf(expected, sizeof(expected), "%s:%s", path, bad_files[i].message);
        CHECK_INT(config_load(&table, &s, path, &err), -1);
        CHECK_STR(err.message, expected);
        config_release(&table, &s);
        file_end();
    }
}

static void test_large_and_odd_files(void)
{
    struct sample s;
    struct err err;
    size_t bytes = (1u << 20) + 1;
    char *big = malloc(bytes);
    memset(big, '\n', bytes);
    config_defaults(&table, &s);
    CHECK_INT(config_load(&table, &s, file_with(big, bytes), &err), -1);
    CHECK_CONTAINS(err.message, ": expected at most 1048576 bytes");
    file_end();
    CHECK_INT(config_load(&table, &s, file_with(big, bytes - 1), &err), 0);
    file_end();
    memset(big, '(', bytes - 1); /* nothing may recurse without a bound */
    CHECK_INT(config_load(&table, &s, file_with(big, bytes - 1), &err), -1);
    file_end();
    CHECK_INT(config_load(&table, &s, "/", &err), -1);
    CHECK_STR(err.message, "/: cannot be read: Is a directory");
    config_release(&table, &s);
    free(big);
}

static void test_messages_stay_short_and_printable(void)
{
    struct sample s;
    char word[4000];
    memset(word, 'x', sizeof(word));
    word[2] = '\033';
    word[sizeof(word) - 1] = 0;
    CHECK_INT(ARGS(&s, "-n", word), -1);
    CHECK(strlen(args_err.message) < 200);
    CHECK(!strchr(args_err.message, '\033'));
    CHECK_CONTAINS(args_err.message, "\"xx?x");
    CHECK_CONTAINS(args_err.message, "x...\"");
    config_release(&table, &s);
    for (size_t i = 0; i + 1 < sizeof(word); i++) /* a cut must not split a character */
        word[i] = "\xE2\x82\xAC"[i % 3];
    for (int shift = 0; shift < 3; shift++) {
        CHECK_INT(ARGS(&s, "-n", word + sizeof(word) - 1 - (sizeof(word) - 1) / 3 * 3 + 3 * shift), -1);
        CHECK(utf8_valid(args_err.message, strlen(args_err.message)));
        config_release(&table, &s);
    }
}

/* Whatever stands around it, an include directive is never followed: the included file would set seed. */
static void test_includes_are_never_followed(void)
{
    static const char *const pieces[] = {"\n", " ",  "\"",        "\\", "\\\"", "#", "//",
                                         "/*", "*/", "prompt = ", "x",  ";",    "1", "@include ",
                                         "'",  "\t", "{",         "}",  "-",    "\r"};
    char included[64], text[4096];
    unsigned long long random = 7;
    int loaded = 0;
    strcpy(included, file_with("seed = 77;", 10));
    for (int round = 0; round < 3000; round++) {
        struct sample s;
        size_t n = 0;
        for (int k = (int)(test_random(&random) % 24); k >= 0; k--) {
            const char *piece = pieces[test_random(&random) % ARRAY_LEN(pieces)];
            n += (size_t)snprintf(text + n, sizeof(text) - n, "%s", piece);
            if (test_random(&random) % 6 == 0)
                n += (size_t)snprintf(text + n, sizeof(text) - n, "\n@include \"%s\"\n", included);
        }
        config_defaults(&table, &s);
        loaded += config_load(&table, &s, file_with(text, n), NULL) == 0;
        CHECK_INT(s.seed, 0);
        config_release(&table, &s);
        file_end();
    }
    CHECK(loaded > 10); /* directives inside strings and comments are text, and load */
    unlink(included);
}

/* ---- texts
 * -------------------------------------------------------------------------------------------------- */

static void test_help(void)
{
    char text[4096] = "";
    struct sample s;
    FILE *keep = stdout, *memory = fmemopen(text, sizeof(text), "w");
    stdout = memory;
    int rc = ARGS(&s, "--json", "--help", "--unknown");
    fclose(memory);
    stdout = keep;
    config_release(&table, &s);
    CHECK_INT(rc, 1);
    CHECK_CONTAINS(text, "usage: sample [options] MODEL [TEXT]\n\nA program.\n");
    CHECK_CONTAINS(text, "  -n, --max-tokens N          Tokens to generate. (1 to 4096; default 64)\n");
    CHECK_CONTAINS(text, "      --log-format text|json  Format of the log. (default text)\n");
    CHECK_CONTAINS(text, "      --config FILE           Configuration file.\n");
    CHECK_CONTAINS(text, "      --seed N                Seed.\n");
    CHECK_CONTAINS(text, "  -h, --help                  Shows this help.\n");
    CHECK_CONTAINS(text, "\nexit codes: 0 done\n");
}

static void test_describe(void)
{
    struct buffer b = {0};
    config_describe(&table, &b);
    const char *text = (const char *)b.data;
    CHECK_CONTAINS(text, "| `max_tokens` | `-n`, `--max-tokens N` | an integer from 1 to 4096 | `64` |");
    CHECK_CONTAINS(text, "| `log_format` | `--log-format text\\|json` | one of text, json | `text` |");
    CHECK_CONTAINS(text, "| (not in files) | `--config FILE` | a string | none | Configuration file. |");
    size_t rows = 0;
    for (const char *p = text; *p; p++)
        rows += *p == '\n';
    CHECK_INT(rows, 2 + ARRAY_LEN(options));
    buffer_release(&b);
}

/* config_main ends the process: seen from its parent. */
static int exit_code_of_main(char *argument)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        struct sample s;
        char *argv[] = {"sample", argument, NULL};
        const char *arguments[2];
        int count = config_main(&table, &s, 2, argv, arguments, 2);
        config_release(&table, &s);
        _exit(40 + count);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_main_exits(void)
{
    CHECK_INT(exit_code_of_main("--help"), 0);
    CHECK_INT(exit_code_of_main("-h"), 0);
    CHECK_INT(exit_code_of_main("--describe"), 0);
    CHECK_INT(exit_code_of_main("--bogus"), 2);
    CHECK_INT(exit_code_of_main("model"), 41);
}

static const char *word_at(const void *context, size_t i)
{
    return ((const char *const *)context)[i];
}

static void test_nearest(void)
{
    static const char *const words[] = {"run", "generate", "group", "status", "tokenize", NULL};
    CHECK_STR(config_nearest("genrate", word_at, words), "generate");
    CHECK_STR(config_nearest("stauts", word_at, words), "status");
    CHECK_STR(config_nearest("tok", word_at, words), "tokenize");
    CHECK_STR(config_nearest("rnu", word_at, words), "run");
    CHECK(config_nearest("completely-else", word_at, words) == NULL);
    CHECK(config_nearest("", word_at, words) == NULL);
}

int main(void)
{
    TEST(test_defaults, "defaults fill the settings, and release empties them");
    TEST(test_file, "a file sets every kind of option, comments and long integers included");
    TEST(test_precedence, "flags win over the file, the file over the defaults");
    TEST(test_flag_forms, "long and short flags take their values in every form");
    TEST(test_strings, "an option of strings may be repeated; flags win over a file's list");
    TEST(test_end_of_options, "-- ends the options and - is an argument");
    TEST(test_values_that_look_like_flags, "a flag is not taken for the value of the flag before it");
    TEST(test_command_line_refusals, "each wrong command line is refused with its own message");
    TEST(test_too_few_arguments, "a missing argument is refused");
    TEST(test_bad_files, "each bad file is refused with its own message");
    TEST(test_large_and_odd_files, "files too large, too deep or no files are refused");
    TEST(test_messages_stay_short_and_printable, "messages quote little, and no control characters");
    TEST(test_includes_are_never_followed, "no arrangement of text makes an include directive work");
    TEST(test_help, "--help lists every option and returns 1");
    TEST(test_describe, "describe writes one Markdown row for each option");
    TEST(test_main_exits, "config_main exits 0 after help and 2 after a usage error");
    TEST(test_nearest, "the nearest word is suggested, and only when it is near");
    return test_result();
}
