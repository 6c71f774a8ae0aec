#include "common/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"

/* Written by log_setup before threads start, read-only afterwards. */
static struct {
    const char *program;
    enum log_level level;
    enum log_format format;
} log_settings = {"lepton", LOG_INFO, LOG_TEXT};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_setup(const char *program, enum log_level level, enum log_format format)
{
    log_settings.program = program;
    log_settings.level = level;
    log_settings.format = format;
}

bool log_level_from_name(const char *name, enum log_level *out)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++)
        if (strcmp(level_names[i], name) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    return false;
}

bool log_enabled(enum log_level level)
{
    return level >= log_settings.level;
}

/* Escapes for JSON; in text lines the same escapes keep a message on its line. */
static void append_escaped(struct buffer *b, const char *s, bool json)
{
    size_t n = strlen(s);
    bool valid = utf8_valid(s, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '\n')
            buffer_append(b, "\\n", 2);
        else if (c < 0x20 || c == 0x7F || (c >= 0x80 && !valid))
            buffer_printf(b, "\\u%04x", c);
        else if (json && (c == '"' || c == '\\'))
            buffer_printf(b, "\\%c", c);
        else
            buffer_append(b, &s[i], 1);
    }
}

void log_write(enum log_level level, const char *subsystem, const char *fmt, ...)
{
    if (!log_enabled(level))
        return;
    char message[2048], wall[32];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    clock_wall(wall);
    struct buffer line = {0};
    if (log_settings.format == LOG_JSON) {
        buffer_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"", wall, level_names[level]);
        append_escaped(&line, log_settings.program, true);
        buffer_printf(&line, "\",\"subsystem\":\"%s\",\"message\":\"", subsystem);
        append_escaped(&line, message, true);
        buffer_printf(&line, "\"}\n");
    } else {
        buffer_printf(&line, "%s %-5s %s %s: ", wall, level_names[level], log_settings.program, subsystem);
        append_escaped(&line, message, false);
        buffer_append(&line, "\n", 1);
    }
    /* Nothing can be done about a log that cannot be written; the program's work goes on. */
    ssize_t ignored = write(STDERR_FILENO, line.data, line.size);
    (void)ignored;
    buffer_release(&line);
}
