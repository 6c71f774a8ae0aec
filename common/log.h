/* log: one line per event on standard error, for people (text) or machines (JSON lines).
 *
 * A line has a level, the program, a subsystem, a message, and named values. Prompts and generated text are
 * never logged. Lines are written with one write(2), so that processes which share a file do not mix.
 *
 * Logging never waits for whoever reads: a line for which a pipe, terminal or socket has no room is dropped,
 * and so is one that a disk does not take. The next one that can be written says before itself how many were
 * lost.
 */
#ifndef LEPTON_COMMON_LOG_H
#define LEPTON_COMMON_LOG_H

#include "common/base.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_TEXT, LOG_JSON };

/* Set once, before threads start. `program` is borrowed ("coordinator", "worker g0/1"). */
void log_setup(const char *program, enum log_level level, enum log_format format);
bool log_level_from_name(const char *name, enum log_level *out);
bool log_enabled(enum log_level level);

/* subsystem: the module that speaks ("router"). The text is one line; control characters are escaped. */
void log_write(enum log_level level, const char *subsystem, const char *fmt, ...) PRINTF_LIKE(3, 4);
#define log_debug(...) (log_enabled(LOG_DEBUG) ? log_write(LOG_DEBUG, __VA_ARGS__) : (void)0)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
