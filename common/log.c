#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"

/* Written by log_setup before threads start, read-only afterwards. */
static struct {
    const char *program;
    enum log_level level;
    enum log_format format;
} log_settings = {"lepton", LOG_INFO, LOG_TEXT};

/* Where lines go, and what did not. */
static struct {
    pthread_mutex_t lock;
    int fd; /* the same as standard error, of our own; -1: none */
    dev_t device;
    ino_t inode;
    uint64_t lost; /* lines */
    bool cut;      /* the last one was not written whole */
} log_out = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

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

static void format_line(struct buffer *line, enum log_level level, const char *wall, const char *subsystem,
                        const char *message)
{
    if (log_settings.format == LOG_JSON) {
        buffer_printf(line, "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"", wall, level_names[level]);
        append_escaped(line, log_settings.program, true);
        buffer_printf(line, "\",\"subsystem\":\"%s\",\"message\":\"", subsystem);
        append_escaped(line, message, true);
        buffer_printf(line, "\"}\n");
    } else {
        buffer_printf(line, "%s %-5s %s %s: ", wall, level_names[level], log_settings.program, subsystem);
        append_escaped(line, message, false);
        buffer_append(line, "\n", 1);
    }
}

/* ---- writing ---- */

/* O_NONBLOCK belongs to an open file, which others share with us: so what can make us wait is opened once
 * more. -1: that cannot be. */
static int open_again(const struct stat *st)
{
    if (log_out.fd >= 0 && log_out.device == st->st_dev && log_out.inode == st->st_ino)
        return log_out.fd;
    if (log_out.fd >= 0)
        close(log_out.fd);
    log_out.fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    log_out.device = st->st_dev;
    log_out.inode = st->st_ino;
    return log_out.fd;
}

/* As write(2), but never waits for a reader. */
static ssize_t write_now(const void *data, size_t size)
{
    struct stat st;
    struct pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (fstat(STDERR_FILENO, &st) != 0 || S_ISREG(st.st_mode))
        return write(STDERR_FILENO, data, size);
    if (S_ISSOCK(st.st_mode))
        return send(STDERR_FILENO, data, size, MSG_DONTWAIT);
    int fd = open_again(&st);
    if (fd >= 0)
        return write(fd, data, size);
    /* Not ours to open, or nobody reads at all: then writing says so at once. */
    if (poll(&ready, 1, 0) == 1)
        return write(STDERR_FILENO, data, size);
    errno = EAGAIN;
    return -1;
}

/* Nothing can be done about a log that cannot be written; the program's work goes on. */
static void write_line(const struct buffer *line, const char *wall)
{
    struct buffer whole = {0};
    char lost[100];
    if (log_out.cut)
        buffer_append(&whole, "\n", 1);
    if (log_out.lost) {
        snprintf(lost, sizeof(lost), "%llu lines before this one could not be written",
                 (unsigned long long)log_out.lost);
        format_line(&whole, LOG_WARN, wall, "log", lost);
    }
    buffer_append(&whole, line->data, line->size);
    ssize_t written = write_now(whole.data, whole.size);
    if (written < 0) {
        log_out.lost++;
    } else {
        log_out.cut = (size_t)written < whole.size;
        log_out.lost = log_out.cut;
    }
    buffer_release(&whole);
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
    format_line(&line, level, wall, subsystem, message);
    pthread_mutex_lock(&log_out.lock);
    write_line(&line, wall);
    pthread_mutex_unlock(&log_out.lock);
    buffer_release(&line);
}
