#include "tools/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"

#define EVERY_MS 200
#define FROM_MS  1000 /* nothing is shown for work shorter than this */

void progress_begin(struct progress *p, uint64_t total_bytes)
{
    *p = (struct progress){
        .terminal = isatty(STDERR_FILENO) == 1, .start_ms = clock_now_ms(), .total_bytes = total_bytes};
}

void progress_add(struct progress *p, uint64_t bytes, const char *what)
{
    uint64_t now = clock_now_ms(), elapsed = now - p->start_ms;
    p->done_bytes += bytes;
    if (!p->terminal || elapsed < FROM_MS || now - p->last_ms < EVERY_MS)
        return;
    p->last_ms = now;
    p->shown = true;
    double rate = (double)p->done_bytes / (double)elapsed; /* bytes per ms */
    fprintf(stderr, "\r\033[K%3.0f %%  %.0f of %.0f MB, %.0f s left  %s",
            100.0 * (double)p->done_bytes / (double)p->total_bytes, (double)p->done_bytes / 1e6,
            (double)p->total_bytes / 1e6, (double)(p->total_bytes - p->done_bytes) / rate / 1e3, what);
}

void progress_end(struct progress *p)
{
    if (p->shown)
        fprintf(stderr, "\r\033[K");
    p->shown = false;
}
