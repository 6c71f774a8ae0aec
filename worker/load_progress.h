/* load_progress: tells how far the load of the model is: lines in the log when it takes long, and a small
 * file for whoever started the rank and waits (`lepton run`). Before the group's hello nobody else could
 * tell. It knows nothing of models: it is told of parts done and parts in all.
 *
 * The file is FILE.RANK and holds the share done in percent, three digits and a newline, always four bytes,
 * so that a reader never sees half a number. It stays at 100 when the load is over. */
#ifndef LEPTON_WORKER_LOAD_PROGRESS_H
#define LEPTON_WORKER_LOAD_PROGRESS_H

#include "common/base.h"

struct load_progress {
    const char *file; /* borrowed; NULL = none */
    int rank;
    uint64_t every_ms, told_ms; /* log lines: the first after so long, then as often */
    int percent;                /* in the file */
};

void load_progress_begin(struct load_progress *p, const char *file, int rank, uint64_t every_ms);
/* `done` of `all` parts are loaded; to be called for each. context: the struct load_progress. */
void load_progress_tell(void *context, int64_t done, int64_t all);

/* Of all ranks whose files FILE.RANK there are in the directory, FILE beginning with `prefix`: the mean in
 * percent over `ranks` ranks, those without a file having loaded nothing. */
int load_progress_read(const char *directory, const char *prefix, int ranks);

#endif
