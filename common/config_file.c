/* Files of config: a scan of our own, then libconfig, then the table's checks.
 *
 * The scan stands before libconfig because libconfig (1.5, Debian 12) does without a word what we refuse:
 * @include opens other files (and may loop), integers beyond 32 bits wrap unless an L follows them, \x00 in a
 * string vanishes, an unclosed comment swallows the rest of the file. It follows libconfig's own lexical
 * rules (names, strings, three kinds of comments), so both see the same strings and comments. */
#include "common/config.h"

#include <errno.h>
#include <fcntl.h>
#include <libconfig.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config_internal.h"

#define CONFIG_FILE_BYTES_MAX (1u << 20)

/* Reads the whole file as text that ends in NUL and holds no other. */
static int read_text(struct buffer *out, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_set(err, "%s: cannot be opened: %s", path, strerror(errno));
    char chunk[4096];
    ssize_t n;
    while ((n = read(fd, chunk, sizeof(chunk))) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || out->size + (size_t)n > CONFIG_FILE_BYTES_MAX)
            break;
        buffer_append(out, chunk, (size_t)n);
    }
    int error = errno;
    close(fd);
    if (n < 0)
        return err_set(err, "%s: cannot be read: %s", path, strerror(error));
    if (n > 0)
        return err_set(err, "%s: expected at most %u bytes of configuration", path, CONFIG_FILE_BYTES_MAX);
    buffer_append(out, "", 1);
    return 0;
}

/* ---- the scan ---------------------------------------------------------------------------------------------
 */

struct scan {
    const char *path;
    const char *at;
    unsigned line;
    struct buffer *out; /* the text for libconfig: the same, with an L behind every integer that needs one */
    struct err *err;
};

static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '*';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static void keep(struct scan *s, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        s->line += s->at[i] == '\n';
    buffer_append(s->out, s->at, bytes);
    s->at += bytes;
}

static int scan_string(struct scan *s)
{
    unsigned first = s->line;
    keep(s, 1);
    for (;;) {
        char c = *s->at;
        if (c == 0)
            return err_set(s->err, "%s:%u: expected a closing quote for the string that begins here", s->path,
                           first);
        if (c == '\\' && (s->at[1] == 'x' || s->at[1] == 'X') && s->at[2] == '0' && s->at[3] == '0')
            return err_set(s->err, "%s:%u: a string cannot hold \\x00", s->path, s->line);
        keep(s, c == '\\' && (s->at[1] == '\\' || s->at[1] == '"') ? 2 : 1);
        if (c == '"')
            return 0;
    }
}

static int scan_comment(struct scan *s)
{
    if (s->at[0] == '/' && s->at[1] == '*') {
        const char *end = strstr(s->at + 2, "*/");
        if (!end)
            return err_set(s->err, "%s:%u: expected */ for the comment that begins here", s->path, s->line);
        keep(s, (size_t)(end + 2 - s->at));
    } else {
        keep(s, strcspn(s->at, "\n"));
    }
    return 0;
}

static int scan_number(struct scan *s)
{
    const char *digits = s->at + (*s->at == '-' || *s->at == '+');
    size_t n = (size_t)(digits - s->at) + strspn(digits, "0123456789");
    char next = s->at[n];
    if (next == 'x' || next == 'X')
        return err_set(s->err, "%s:%u: expected a decimal number, found a hexadecimal one", s->path, s->line);
    if (next == '.' || next == 'e' || next == 'E') {
        keep(s, n + 1);
        keep(s, *s->at && strchr("+-", *s->at) && next != '.' ? 1 : 0);
        size_t fraction = strspn(s->at, "0123456789");
        if (next == '.' && (s->at[fraction] == 'e' || s->at[fraction] == 'E'))
            fraction += 1 + (s->at[fraction + 1] == '-' || s->at[fraction + 1] == '+');
        keep(s, fraction);
        keep(s, strspn(s->at, "0123456789"));
        return 0;
    }
    errno = 0;
    long long v = strtoll(s->at, NULL, 10);
    if (errno)
        return err_set(s->err, "%s:%u: expected an integer that fits 64 bits, found %.*s", s->path, s->line,
                       n > 40 ? 40 : (int)n, s->at);
    keep(s, n);
    if ((v < INT_MIN || v > INT_MAX) && next != 'L')
        buffer_append(s->out, "L", 1);
    return 0;
}

static int scan(struct scan *s)
{
    while (*s->at) {
        const char *p = s->at;
        int rc = 0;
        if (*p == '"')
            rc = scan_string(s);
        else if (*p == '#' || (*p == '/' && (p[1] == '/' || p[1] == '*')))
            rc = scan_comment(s);
        else if (is_digit(*p) || ((*p == '-' || *p == '+') && is_digit(p[1])))
            rc = scan_number(s);
        else if (is_name_start(*p))
            keep(s, strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*"));
        else if (*p == '@')
            rc = err_set(s->err, "%s:%u: include directives are refused; write the settings in one file",
                         s->path, s->line);
        else
            keep(s, 1);
        if (rc)
            return rc;
    }
    buffer_append(s->out, "", 1);
    return 0;
}

/* ---- the settings -----------------------------------------------------------------------------------------
 */

/* "a list", "7", "\"many\"": what stands in the file, for a message. */
static const char *setting_found(const config_setting_t *setting, char out[CONFIG_FOUND_BYTES])
{
    switch (config_setting_type(setting)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64:
        snprintf(out, CONFIG_FOUND_BYTES, "%lld", config_setting_get_int64(setting));
        break;
    case CONFIG_TYPE_FLOAT:
        snprintf(out, CONFIG_FOUND_BYTES, "the number %g", config_setting_get_float(setting));
        break;
    case CONFIG_TYPE_BOOL:
        snprintf(out, CONFIG_FOUND_BYTES, "%s", config_setting_get_bool(setting) ? "true" : "false");
        break;
    case CONFIG_TYPE_STRING:
        config_found(config_setting_get_string(setting), out);
        break;
    case CONFIG_TYPE_GROUP:
        snprintf(out, CONFIG_FOUND_BYTES, "a group { }");
        break;
    case CONFIG_TYPE_ARRAY:
        snprintf(out, CONFIG_FOUND_BYTES, "an array [ ]");
        break;
    default:
        snprintf(out, CONFIG_FOUND_BYTES, "a list ( )");
    }
    return out;
}

/* One string, or an array of nothing else. */
static int set_strings(const struct config_option *option, void *settings, const config_setting_t *setting,
                       const char *where, struct err *err)
{
    char found[CONFIG_FOUND_BYTES];
    if (config_setting_type(setting) == CONFIG_TYPE_STRING) {
        config_add_string(option, settings, config_setting_get_string(setting), true);
        return 0;
    }
    bool list = config_setting_is_array(setting) || config_setting_is_list(setting);
    for (int i = 0; list && i < config_setting_length(setting); i++) {
        const config_setting_t *item = config_setting_get_elem(setting, (unsigned)i);
        if (config_setting_type(item) != CONFIG_TYPE_STRING)
            return config_refuse(option, where, setting_found(item, found), err);
        config_add_string(option, settings, config_setting_get_string(item), true);
    }
    return list ? 0 : config_refuse(option, where, setting_found(setting, found), err);
}

static int set_from_file(const struct config_option *option, void *settings, const config_setting_t *setting,
                         const char *where, struct err *err)
{
    char found[CONFIG_FOUND_BYTES];
    setting_found(setting, found);
    int type = config_setting_type(setting);
    bool integer = type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64;
    if (option->kind == CONFIG_BOOL && type == CONFIG_TYPE_BOOL)
        return config_set_bool(option, settings, config_setting_get_bool(setting) != 0);
    if (option->kind == CONFIG_INT && integer)
        return config_set_int(option, settings, config_setting_get_int64(setting), where, found, err);
    if (option->kind == CONFIG_FLOAT && integer)
        return config_set_float(option, settings, (double)config_setting_get_int64(setting), where, found,
                                err);
    if (option->kind == CONFIG_FLOAT && type == CONFIG_TYPE_FLOAT)
        return config_set_float(option, settings, config_setting_get_float(setting), where, found, err);
    if (option->kind == CONFIG_STRINGS)
        return set_strings(option, settings, setting, where, err);
    if (option->kind == CONFIG_STRING && type == CONFIG_TYPE_STRING)
        return config_set_string(option, settings, config_setting_get_string(setting), where, found, err);
    return config_refuse(option, where, found, err);
}

static const char *file_name(const void *context, size_t i)
{
    const struct config_table *table = context;
    /* A key that files cannot hold is no good suggestion, but it must not end the list: "" is near nothing.
     */
    if (i >= table->option_count)
        return NULL;
    return table->options[i].given_only ? "" : table->options[i].name;
}

static int take_setting(const struct config_table *table, void *settings, const config_setting_t *setting,
                        const char *path, struct err *err)
{
    char where[256], shown[CONFIG_FOUND_BYTES];
    const char *name = config_setting_name(setting);
    const struct config_option *option = config_find(table, name, strlen(name));
    snprintf(where, sizeof(where), "%.120s:%u: %.60s", path, config_setting_source_line(setting), name);
    if (!option) {
        const char *near = config_nearest(name, file_name, table);
        if (near && *near)
            return err_set(err, "%s: unknown key; did you mean %s?", where, near);
        return err_set(err, "%s: unknown key; expected one of those that `%s --help` lists", where,
                       table->program);
    }
    if (option->given_only)
        return err_set(err, "%s: expected on the command line only (--%s)", where,
                       config_flag(option, shown));
    return set_from_file(option, settings, setting, where, err);
}

int config_load(const struct config_table *table, void *settings, const char *path, struct err *err)
{
    struct buffer text = {0}, checked = {0};
    config_t file;
    int rc = -1;
    config_init(&file);
    if (read_text(&text, path, err) != 0)
        goto out;
    const char *nul = memchr(text.data, 0, text.size);
    struct scan s = {.path = path, .at = (const char *)text.data, .line = 1, .out = &checked, .err = err};
    if (scan(&s) != 0)
        goto out;
    if (nul != (const char *)text.data + text.size - 1) {
        err_set(err, "%s:%u: expected text, found a NUL byte", path, s.line);
        goto out;
    }
    if (!config_read_string(&file, (const char *)checked.data)) {
        const char *what = config_error_text(&file);
        if (strcmp(what, "syntax error") == 0)
            what = "syntax error; expected `key = value;`";
        else if (strcmp(what, "duplicate setting name") == 0)
            what = "a key stands here for the second time; expected each key once";
        err_set(err, "%s:%d: %s", path, config_error_line(&file), what);
        goto out;
    }
    const config_setting_t *root = config_root_setting(&file);
    for (int i = 0; i < config_setting_length(root); i++)
        if (take_setting(table, settings, config_setting_get_elem(root, (unsigned)i), path, err) != 0)
            goto out;
    rc = 0;
out:
    config_destroy(&file);
    buffer_release(&checked);
    buffer_release(&text);
    return rc;
}
