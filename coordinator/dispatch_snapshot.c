/* What is known of cached prefixes, from one run of the coordinator to the next: groups outlive it, with
 * their pages. */
#include "coordinator/dispatch_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

#define MAX_BYTES (1u << 30)

struct snapshot {
    struct buffer bytes;
    bool *restored; /* [group slots] */
    uint32_t slots;
};

static int read_file(FILE *file, struct buffer *out)
{
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof(piece), file)) > 0) {
        if (out->size + n > MAX_BYTES)
            return -1;
        buffer_append(out, piece, n);
    }
    return ferror(file) ? -1 : 0;
}

struct snapshot *snapshot_open(const char *path)
{
    FILE *file = path ? fopen(path, "rb") : NULL;
    if (!file) {
        if (path && errno != ENOENT)
            log_warn("dispatch", "%s: %s; it begins without", path, strerror(errno));
        return NULL;
    }
    struct snapshot *s = xcalloc(1, sizeof(*s));
    if (read_file(file, &s->bytes) != 0) {
        log_warn("dispatch", "%s: cannot be read, or is longer than %u bytes; it begins without", path,
                 MAX_BYTES);
        snapshot_close(&s);
    }
    fclose(file);
    return s;
}

void snapshot_close(struct snapshot **s)
{
    if (!*s)
        return;
    buffer_release(&(*s)->bytes);
    free((*s)->restored);
    free(*s);
    *s = NULL;
}

void snapshot_restore(struct dispatch *d, const struct group *g)
{
    struct snapshot *s = d->snapshot;
    struct err err = {0};
    if (!s)
        return;
    if (!s->restored) {
        s->slots = d->options.limits.groups;
        s->restored = xcalloc(s->slots, sizeof(*s->restored));
    }
    if (g->slot >= s->slots || s->restored[g->slot])
        return; /* it was here in this run already: the index knows better */
    s->restored[g->slot] = true;
    if (scheduler_prefix_restore(d->scheduler, s->bytes.data, s->bytes.size, g->name, g->slot, &err) == 0)
        return;
    log_warn("dispatch", "%s: %s; prefixes are learned anew", d->options.prefix_snapshot, err.message);
    snapshot_close(&d->snapshot);
}

static const char *group_name(void *context, uint32_t slot)
{
    struct dispatch *d = context;
    const struct group *g = slot < cluster_slots(d->cluster) ? cluster_group(d->cluster, slot) : NULL;
    return g ? g->name : NULL;
}

void dispatch_save(struct dispatch *d)
{
    const char *path = d->options.prefix_snapshot;
    struct buffer bytes = {0};
    if (!path)
        return;
    scheduler_prefix_save(d->scheduler, group_name, d, &bytes);
    char *temporary = xasprintf("%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "wb");
    bool written = file && fwrite(bytes.data, 1, bytes.size, file) == bytes.size;
    if (file && fclose(file) != 0)
        written = false;
    if (written && rename(temporary, path) != 0)
        written = false;
    if (!written) {
        log_warn("dispatch", "%s: %s; the next run learns prefixes anew", path, strerror(errno));
        unlink(temporary);
    }
    free(temporary);
    buffer_release(&bytes);
}
