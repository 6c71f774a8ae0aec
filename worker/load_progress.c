#include "worker/load_progress.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

void load_progress_begin(struct load_progress *p, const char *file, int rank, uint64_t every_ms)
{
    *p = (struct load_progress){
        .file = file, .rank = rank, .every_ms = every_ms, .told_ms = clock_now_ms(), .percent = -1};
    load_progress_tell(p, 0, 1);
}

/* Nobody's load fails because it cannot be told of: the file is given up with a line in the log. */
static void write_file(struct load_progress *p)
{
    char path[4096], text[8];
    int n = snprintf(path, sizeof(path), "%s.%d", p->file, p->rank);
    snprintf(text, sizeof(text), "%3d\n", p->percent);
    int fd = n < (int)sizeof(path) ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || pwrite(fd, text, 4, 0) != 4) {
        log_warn("worker", "load_file %s: %s", path, strerror(errno));
        p->file = NULL;
    }
    if (fd >= 0)
        close(fd);
}

void load_progress_tell(void *context, int64_t done, int64_t all)
{
    struct load_progress *p = context;
    int percent = all > 0 ? (int)(100 * done / all) : 100;
    uint64_t now_ms = clock_now_ms();
    if (p->file && percent != p->percent) {
        p->percent = percent;
        write_file(p);
    }
    if (done > 0 && now_ms - p->told_ms >= p->every_ms) {
        p->told_ms = now_ms;
        log_info("worker", "rank %d: %d %% of its weights loaded", p->rank, percent);
    }
}

static int read_file(const char *directory, const char *name)
{
    char path[4096], text[5] = "";
    int n = snprintf(path, sizeof(path), "%s/%s", directory, name), percent = 0;
    int fd = n < (int)sizeof(path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && read(fd, text, 4) == 4)
        percent = atoi(text);
    if (fd >= 0)
        close(fd);
    return percent < 0 ? 0 : percent > 100 ? 100 : percent;
}

int load_progress_read(const char *directory, const char *prefix, int ranks)
{
    DIR *d = opendir(directory);
    int64_t sum = 0;
    for (const struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0)
            sum += read_file(directory, e->d_name);
    if (d)
        closedir(d);
    int64_t mean = ranks > 0 ? sum / ranks : 0;
    return mean > 100 ? 100 : (int)mean;
}
