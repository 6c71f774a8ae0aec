/* last_words: what a process dies of, told to who watches it. Between a rank and its supervisor stands a
 * launcher that passes on one exit code of many, often that of a rank which merely saw that another was gone.
 * So whoever dies of itself says so first:
 *
 *   rank 0  (SIGSEGV)  ── datagram "SIGSEGV" ──┐
 *   rank 1  (its peer is gone: exit 72, silent)├──> the supervisor's socket: the first word counts
 *   launcher: 72, or 139, as it happens        ┘
 *
 * An abstract Unix socket: what was sent arrives whatever becomes of the sender, and no file is left behind.
 * It takes words of its own user alone. From another host nothing arrives: there the launcher's code must do.
 */
#ifndef LEPTON_COMMON_LAST_WORDS_H
#define LEPTON_COMMON_LAST_WORDS_H

#include "common/base.h"

#define LAST_WORDS_ADDRESS 40 /* bytes of an address, its end included */
#define LAST_WORDS_MOST    33 /* bytes of a word, its end included */

/* ---- who watches ---- */
/* Opens a socket under a new address. Returns its descriptor, -1 and *err. */
int last_words_listen(char address[LAST_WORDS_ADDRESS], struct err *err);
/* The first word that came; false: none. Never waits. */
bool last_words_heard(int fd, char out[LAST_WORDS_MOST]);

/* ---- who may die ---- */
/* From now on SIGSEGV, SIGABRT and their like are told to who listens there, and then take their course. With
 * nobody there nothing is ever said. To be called after everybody else who catches these signals. */
void last_words_open(const char *address);
/* Says what this process is about to die of ("out of memory", "exit 71"). Safe in a signal handler. */
void last_words_say(const char *word);

/* SIGSEGV for 11: the signals of which a supervisor tells; NULL for others. */
const char *last_words_signal(int number);

#endif
