/* progress: one line on a terminal for work that takes longer than a second: share, bytes, time left. Nothing
 * is shown where standard error is no terminal. */
#ifndef LEPTON_TOOLS_PROGRESS_H
#define LEPTON_TOOLS_PROGRESS_H

#include "common/base.h"

struct progress {
    bool shown, terminal;
    uint64_t start_ms, last_ms, done_bytes, total_bytes;
};

void progress_begin(struct progress *p, uint64_t total_bytes);
/* `bytes` more are done; `what` is the part that is worked on. */
void progress_add(struct progress *p, uint64_t bytes, const char *what);
/* Takes the line away; needed before anything else is written. Safe to call twice. */
void progress_end(struct progress *p);

#endif
