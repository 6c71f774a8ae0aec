#include "kernels/cpu/nodes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of the kernel's interface (linux/mempolicy.h, not on every system that has the calls). */
#define POLICY_DEFAULT    0
#define POLICY_INTERLEAVE 3

/* True when a list as "0-3,8,10-11" names a processor of `allowed`. */
static bool list_meets(const char *list, const cpu_set_t *allowed)
{
    for (const char *p = list; *p;) {
        char *end;
        long first = strtol(p, &end, 10), last = first;
        if (end == p)
            return false;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        for (long cpu = first; cpu <= last && cpu >= 0 && cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET((int)cpu, allowed))
                return true;
        p = *end == ',' ? end + 1 : end;
        if (p == end)
            return false;
    }
    return false;
}

static bool node_meets(const char *root, const char *name, const cpu_set_t *allowed)
{
    char list[4096] = "", *path = xasprintf("%s/%s/cpulist", root, name);
    FILE *f = fopen(path, "r");
    bool meets = f && fgets(list, sizeof(list), f) && list_meets(list, allowed);
    if (f)
        fclose(f);
    free(path);
    return meets;
}

void nodes_of_processors(struct node_set *out, const char *root, const cpu_set_t *allowed)
{
    DIR *d = opendir(root);
    struct dirent *entry;
    *out = (struct node_set){.count = 0};
    while (d && (entry = readdir(d))) {
        char *end;
        if (strncmp(entry->d_name, "node", 4))
            continue;
        long node = strtol(entry->d_name + 4, &end, 10);
        if (end == entry->d_name + 4 || *end || node < 0 || node >= NODES_MOST ||
            !node_meets(root, entry->d_name, allowed))
            continue;
        out->bits[(size_t)node / (8 * sizeof(long))] |= 1ul << ((size_t)node % (8 * sizeof(long)));
        out->count++;
    }
    if (d)
        closedir(d);
}

void nodes_of_process(struct node_set *out)
{
    cpu_set_t allowed;
    int policy = POLICY_DEFAULT;
    *out = (struct node_set){.count = 0};
#ifdef SYS_get_mempolicy
    if (syscall(SYS_get_mempolicy, &policy, NULL, 0ul, NULL, 0ul) || policy != POLICY_DEFAULT)
        return;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
        nodes_of_processors(out, "/sys/devices/system/node", &allowed);
#endif
}

void nodes_interleave(const struct node_set *nodes, void *begin, size_t bytes)
{
    if (nodes->count < 2)
        return;
#ifdef SYS_mbind
    /* A refusal costs only speed. The kernel wants one bit more than it reads. */
    (void)syscall(SYS_mbind, begin, bytes, POLICY_INTERLEAVE, nodes->bits, (unsigned long)NODES_MOST + 1, 0u);
#else
    (void)begin;
    (void)bytes;
#endif
}
