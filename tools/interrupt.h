/* interrupt: Ctrl-C for commands that write a file: the work looks at it between steps and ends in order, so
 * that no temporary file stays behind. A second Ctrl-C ends the program at once. */
#ifndef LEPTON_TOOLS_INTERRUPT_H
#define LEPTON_TOOLS_INTERRUPT_H

#include <stdbool.h>

/* From here on SIGINT and SIGTERM set the flag. Call it before there is a temporary file. */
void interrupt_watch(void);
bool interrupted(void);

#endif
