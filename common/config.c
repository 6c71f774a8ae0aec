/* The table, the checks and the command line. See config.h for what is promised. */
#include "common/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/config_internal.h"

/* ---- the table -------------------------------------------------------------------------------------------
 */

const struct config_option *config_find(const struct config_table *table, const char *name, size_t name_bytes)
{
    for (size_t i = 0; i < table->option_count; i++)
        if (strlen(table->options[i].name) == name_bytes &&
            memcmp(table->options[i].name, name, name_bytes) == 0)
            return &table->options[i];
    return NULL;
}

static const struct config_option *find_letter(const struct config_table *table, char letter)
{
    for (size_t i = 0; i < table->option_count; i++)
        if (letter && table->options[i].letter == letter)
            return &table->options[i];
    return NULL;
}

const char *config_flag(const struct config_option *option, char out[64])
{
    size_t n = strlen(option->name);
    ASSERT(n < 64);
    for (size_t i = 0; i <= n; i++)
        out[i] = option->name[i] == '_' ? '-' : option->name[i];
    return out;
}

static void *member(const struct config_option *option, void *settings)
{
    return (char *)settings + option->offset;
}

static size_t member_bytes(enum config_kind kind)
{
    switch (kind) {
    case CONFIG_BOOL:
        return sizeof(bool);
    case CONFIG_INT:
        return sizeof(int64_t);
    case CONFIG_FLOAT:
        return sizeof(double);
    case CONFIG_STRING:
        return sizeof(char *);
    case CONFIG_STRINGS:
        return sizeof(struct config_strings);
    }
    ASSERT(!"kind");
    return 0;
}

/* ---- the words of a refusal -------------------------------------------------------------------------------
 */

const char *config_number(enum config_kind kind, double v, char out[40])
{
    /* The bounds of a table are doubles: 2^63 stands for INT64_MAX. */
    if (kind == CONFIG_INT && v >= 9223372036854775807.0)
        snprintf(out, 40, "%lld", (long long)INT64_MAX);
    else if (kind == CONFIG_INT)
        snprintf(out, 40, "%lld", (long long)v);
    else
        snprintf(out, 40, "%.12g", v);
    return out;
}

/* "text|json" becomes "one of text, json". */
static void expected_choices(const char *choices, char *out, size_t bytes)
{
    size_t n = (size_t)snprintf(out, bytes, "one of ");
    for (; *choices && n + 3 < bytes; choices++) {
        out[n++] = *choices == '|' ? ',' : *choices;
        if (*choices == '|')
            out[n++] = ' ';
    }
    out[n] = 0;
}

const char *config_expected(const struct config_option *option, char *out, size_t bytes)
{
    char low[40], high[40];
    if (option->kind == CONFIG_BOOL)
        snprintf(out, bytes, "true or false");
    else if (option->kind == CONFIG_STRING && option->choices)
        expected_choices(option->choices, out, bytes);
    else if (option->kind == CONFIG_STRING)
        snprintf(out, bytes, "a string");
    else if (option->kind == CONFIG_STRINGS)
        snprintf(out, bytes, "strings");
    else if (option->min == 0 && option->max == 0)
        snprintf(out, bytes, "%s", option->kind == CONFIG_INT ? "an integer" : "a number");
    else
        snprintf(out, bytes, "%s from %s to %s", option->kind == CONFIG_INT ? "an integer" : "a number",
                 config_number(option->kind, option->min, low),
                 config_number(option->kind, option->max, high));
    return out;
}

const char *config_found(const char *text, char out[CONFIG_FOUND_BYTES])
{
    size_t n = 0, room = CONFIG_FOUND_BYTES - 6; /* two quotes, "...", the end */
    out[n++] = '"';
    for (; *text && n < room; text++)
        out[n++] = (unsigned char)*text < 0x20 || *text == 0x7F ? '?' : *text;
    /* A cut must not leave half of a character behind. */
    while (*text && ((unsigned char)*text & 0xC0) == 0x80 && n > 1)
        text--, n--;
    strcpy(out + n, *text ? "...\"" : "\"");
    return out;
}

int config_refuse(const struct config_option *option, const char *where, const char *found, struct err *err)
{
    char expected[200];
    return err_set(err, "%s: expected %s, found %s", where,
                   config_expected(option, expected, sizeof(expected)), found);
}

/* ---- checked values ---------------------------------------------------------------------------------------
 */

static bool within(const struct config_option *option, double v)
{
    return (option->min == 0 && option->max == 0) || (v >= option->min && v <= option->max);
}

static bool is_choice(const char *choices, const char *v)
{
    size_t n = strlen(v);
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (strncmp(at, v, n) == 0 && (at[n] == '|' || at[n] == 0))
            return true;
    return false;
}

int config_set_bool(const struct config_option *option, void *settings, bool v)
{
    ASSERT(option->kind == CONFIG_BOOL);
    *(bool *)member(option, settings) = v;
    return 0;
}

int config_set_int(const struct config_option *option, void *settings, int64_t v, const char *where,
                   const char *found, struct err *err)
{
    ASSERT(option->kind == CONFIG_INT);
    if (!within(option, (double)v))
        return config_refuse(option, where, found, err);
    *(int64_t *)member(option, settings) = v;
    return 0;
}

int config_set_float(const struct config_option *option, void *settings, double v, const char *where,
                     const char *found, struct err *err)
{
    ASSERT(option->kind == CONFIG_FLOAT);
    if (!isfinite(v) || !within(option, v))
        return config_refuse(option, where, found, err);
    *(double *)member(option, settings) = v;
    return 0;
}

int config_set_string(const struct config_option *option, void *settings, const char *v, const char *where,
                      const char *found, struct err *err)
{
    ASSERT(option->kind == CONFIG_STRING);
    if (option->choices && !is_choice(option->choices, v))
        return config_refuse(option, where, found, err);
    char **at = member(option, settings);
    free(*at);
    *at = xstrdup(v);
    return 0;
}

static void release_strings(struct config_strings *s)
{
    for (size_t i = 0; i < s->count; i++)
        free(s->item[i]);
    free(s->item);
    *s = (struct config_strings){0};
}

void config_add_string(const struct config_option *option, void *settings, const char *v, bool from_file)
{
    struct config_strings *s = member(option, settings);
    ASSERT(option->kind == CONFIG_STRINGS);
    if (s->from_file && !from_file)
        release_strings(s); /* flags win over the file */
    s->from_file = from_file;
    s->item = xrealloc(s->item, (s->count + 1) * sizeof(*s->item));
    s->item[s->count++] = xstrdup(v);
}

/* Defaults and the command line: the whole text must be the value. */
static int set_text(const struct config_option *option, void *settings, const char *text, const char *where,
                    struct err *err)
{
    char found[CONFIG_FOUND_BYTES], *end;
    config_found(text, found);
    if (option->kind == CONFIG_STRING)
        return config_set_string(option, settings, text, where, found, err);
    if (option->kind == CONFIG_STRINGS) {
        config_add_string(option, settings, text, false);
        return 0;
    }
    if (option->kind == CONFIG_BOOL) {
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return config_refuse(option, where, found, err);
        return config_set_bool(option, settings, text[0] == 't');
    }
    /* strtoll and strtod skip white space and know "inf", "nan" and hexadecimal: the characters come first.
     */
    const char *allowed = option->kind == CONFIG_INT ? "+-0123456789" : "+-.0123456789eE";
    if (*text == 0 || text[strspn(text, allowed)] != 0)
        return config_refuse(option, where, found, err);
    errno = 0;
    if (option->kind == CONFIG_INT) {
        int64_t v = strtoll(text, &end, 10);
        if (errno || *end)
            return config_refuse(option, where, found, err);
        return config_set_int(option, settings, v, where, found, err);
    }
    double v = strtod(text, &end);
    if (*end || end == text)
        return config_refuse(option, where, found, err);
    return config_set_float(option, settings, v, where, found, err);
}

void config_defaults(const struct config_table *table, void *settings)
{
    memset(settings, 0, table->settings_bytes);
    for (size_t i = 0; i < table->option_count; i++) {
        const struct config_option *option = &table->options[i];
        struct err err;
        ASSERT(option->name && option->help && !strchr(option->name, '-'));
        ASSERT(config_find(table, option->name, strlen(option->name)) == option);
        ASSERT(!option->letter || find_letter(table, option->letter) == option);
        ASSERT(option->min <= option->max);
        ASSERT(option->offset + member_bytes(option->kind) <= table->settings_bytes);
        if (option->standard && set_text(option, settings, option->standard, option->name, &err) != 0)
            die("%s: the default of %s", table->program, err.message);
    }
}

void config_release(const struct config_table *table, void *settings)
{
    for (size_t i = 0; settings && i < table->option_count; i++)
        if (table->options[i].kind == CONFIG_STRING) {
            char **at = member(&table->options[i], settings);
            free(*at);
            *at = NULL;
        } else if (table->options[i].kind == CONFIG_STRINGS) {
            release_strings(member(&table->options[i], settings));
        }
}

/* ---- did you mean -----------------------------------------------------------------------------------------
 */

/* Edits (insert, delete, replace, swap of neighbours) that turn a into b; words over 40 bytes are far from
 * everything. Optimal string alignment over three rows. */
static size_t distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    size_t rows[3][LONGEST + 1], n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST)
        return SIZE_MAX;
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= m; j++)
        above[j] = j;
    for (size_t i = 1; i <= n; i++) {
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
        size_t *oldest = before;
        before = above, above = row, row = oldest;
    }
    return above[m];
}

const char *config_nearest(const char *word, const char *(*candidate)(const void *context, size_t i),
                           const void *context)
{
    const char *best = NULL, *at;
    size_t least = strlen(word) / 3 + 2; /* one or two slips in a short word, more in a long one */
    for (size_t i = 0; (at = candidate(context, i)); i++) {
        size_t d = distance(word, at);
        if (strlen(word) >= 3 && strncmp(at, word, strlen(word)) == 0)
            d = 1; /* the beginning of a longer name */
        if (d < least)
            least = d, best = at;
    }
    return best;
}

static const char *option_name(const void *context, size_t i)
{
    const struct config_table *table = context;
    return i < table->option_count ? table->options[i].name : NULL;
}

/* ---- the command line -------------------------------------------------------------------------------------
 */

struct command_line {
    const struct config_table *table;
    void *settings;
    int argc;
    char **argv;
    const char **arguments;
    int argument_count;
    bool config_only; /* the first pass: checks the form, takes --config and --help, stores nothing else */
    bool config_seen;
    struct err *err;
};

static int unknown_option(const struct command_line *c, const char *flag)
{
    char name[64], found[CONFIG_FOUND_BYTES], flag_text[64];
    snprintf(name, sizeof(name), "%s", flag + strspn(flag, "-"));
    name[strcspn(name, "=")] = 0;
    for (char *p = name; *p; p++)
        *p = *p == '-' ? '_' : *p;
    const char *near = strncmp(flag, "--", 2) == 0 ? config_nearest(name, option_name, c->table) : NULL;
    if (!near)
        return err_set(c->err, "%s: unknown option", config_found(flag, found));
    return err_set(c->err, "%s: unknown option; did you mean --%s?", config_found(flag, found),
                   config_flag(config_find(c->table, near, strlen(near)), flag_text));
}

/* True when `text` is an option of the table: then it is not the value that the flag before it wants. */
static bool looks_like_option(const struct config_table *table, const char *text)
{
    char flag[64];
    if (strncmp(text, "--", 2) != 0 || !text[2])
        return false;
    for (size_t i = 0; i < table->option_count; i++) {
        size_t n = strlen(config_flag(&table->options[i], flag));
        if (strncmp(text + 2, flag, n) == 0 && (text[2 + n] == 0 || text[2 + n] == '='))
            return true;
    }
    return strcmp(text, "--help") == 0;
}

static int take_value(struct command_line *c, const struct config_option *option, const char *value,
                      const char *where)
{
    bool is_config = strcmp(option->name, "config") == 0;
    if (!c->config_only)
        return is_config ? 0 : set_text(option, c->settings, value, where, c->err);
    if (!is_config)
        return 0;
    if (c->config_seen)
        return err_set(c->err, "%s: expected once, found twice", where);
    c->config_seen = true;
    return set_text(option, c->settings, value, where, c->err);
}

/* Takes the option at argv[*i], and its value, which may be the next argument. */
static int take_option(struct command_line *c, int *i)
{
    char *flag = c->argv[*i], name[64], where[80];
    const struct config_option *option;
    const char *value = NULL;
    if (flag[1] == '-') {
        size_t n = strcspn(flag + 2, "=");
        if (n >= sizeof(name) || memchr(flag, '_', n + 2))
            return unknown_option(c, flag);
        for (size_t k = 0; k < n; k++)
            name[k] = flag[2 + k] == '-' ? '_' : flag[2 + k];
        option = config_find(c->table, name, n);
        value = flag[2 + n] == '=' ? flag + 2 + n + 1 : NULL;
        snprintf(where, sizeof(where), "--%.*s", (int)n, flag + 2);
    } else {
        option = find_letter(c->table, flag[1]);
        value = flag[2] ? flag + 2 : NULL;
        snprintf(where, sizeof(where), "-%c", flag[1]);
    }
    if (!option)
        return unknown_option(c, flag);
    if (option->kind == CONFIG_BOOL) {
        if (value && flag[1] != '-')
            return err_set(c->err, "%s: takes no value, found \"%s\"", where, value);
        return take_value(c, option, value ? value : "true", where);
    }
    if (!value) {
        value = ++*i < c->argc ? c->argv[*i] : NULL;
        if (!value)
            return config_refuse(option, where, "the end of the command line", c->err);
        if (looks_like_option(c->table, value)) {
            char found[CONFIG_FOUND_BYTES + 16];
            snprintf(found, sizeof(found), "the option %.70s", value);
            return config_refuse(option, where, found, c->err);
        }
    }
    return take_value(c, option, value, where);
}

static int take_argument(struct command_line *c, char *argument)
{
    if (c->argument_count == c->table->max_arguments) {
        char found[CONFIG_FOUND_BYTES];
        config_found(argument, found);
        if (c->table->max_arguments == 0)
            return err_set(c->err, "expected no argument, found %s", found);
        return err_set(c->err, "expected %s, found one argument too many: %s", c->table->arguments, found);
    }
    c->arguments[c->argument_count++] = argument;
    return 0;
}

/* What walk() met instead of work. */
enum { WALK_HELP = 1, WALK_DESCRIBE = 2 };

/* 0, WALK_HELP, WALK_DESCRIBE or -1. */
static int walk(struct command_line *c)
{
    bool options = true;
    c->argument_count = 0;
    for (int i = 1; i < c->argc; i++) {
        char *at = c->argv[i];
        int rc = 0;
        if (options && strcmp(at, "--") == 0)
            options = false;
        else if (options &&
                 (strcmp(at, "--help") == 0 || (strcmp(at, "-h") == 0 && !find_letter(c->table, 'h'))))
            return WALK_HELP;
        else if (options && strcmp(at, "--describe") == 0)
            return WALK_DESCRIBE;
        else if (options && at[0] == '-' && at[1])
            rc = take_option(c, &i);
        else
            rc = take_argument(c, at);
        if (rc)
            return rc;
    }
    if (c->argument_count < c->table->min_arguments)
        return err_set(c->err, "expected %s, found %d argument%s", c->table->arguments, c->argument_count,
                       c->argument_count == 1 ? "" : "s");
    return 0;
}

int config_args(const struct config_table *table, void *settings, int argc, char **argv,
                const char **arguments, int *argument_count, struct err *err)
{
    struct command_line c = {.table = table, .settings = settings, .argc = argc, .argv = argv, .err = err};
    c.arguments = arguments;
    ASSERT(table->max_arguments == 0 || (table->arguments && arguments));
    ASSERT(table->min_arguments <= table->max_arguments);
    c.config_only = true;
    int rc = walk(&c);
    if (rc == WALK_HELP)
        config_help(table, stdout);
    if (rc == WALK_DESCRIBE) {
        struct buffer text = {0};
        config_describe(table, &text);
        fwrite(text.data, 1, text.size, stdout);
        buffer_release(&text);
    }
    if (rc)
        return rc < 0 ? -1 : 1;
    const struct config_option *file = config_find(table, "config", strlen("config"));
    /* given_only: else the file could free the path it is read from. */
    ASSERT(!file || (file->kind == CONFIG_STRING && file->given_only));
    if (file && *(char **)member(file, settings))
        if (config_load(table, settings, *(char **)member(file, settings), err) != 0)
            return -1;
    c.config_only = false;
    rc = walk(&c);
    if (argument_count)
        *argument_count = c.argument_count;
    return rc;
}

int config_main(const struct config_table *table, void *settings, int argc, char **argv,
                const char **arguments, int max_arguments)
{
    struct err err;
    int count = 0;
    ASSERT(max_arguments >= table->max_arguments);
    config_defaults(table, settings);
    int rc = config_args(table, settings, argc, argv, arguments, &count, &err);
    if (rc == 0)
        return count;
    config_release(table, settings);
    if (rc < 0)
        fprintf(stderr, "%s: %s\nTry `%s --help`.\n", table->program, err.message, table->program);
    if (fflush(stdout) != 0) {
        fprintf(stderr, "%s: standard output: %s\n", table->program, strerror(errno));
        exit(1);
    }
    exit(rc < 0 ? 2 : 0);
}
