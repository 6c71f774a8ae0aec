/* balancer: of the groups that could take a request, which one does. PURE: no socket, no clock, no memory of
 * its own beyond the name it chose last.
 *
 * A policy is two functions and small: may this group take one more, and which of two is better. Ties go
 * round by name, so that equal groups share the work and the result does not depend on the order of the
 * array. */
#ifndef LEPTON_COORDINATOR_BALANCER_H
#define LEPTON_COORDINATOR_BALANCER_H

#include "common/wire.h"

struct balancer_group {
    uint32_t group;   /* the caller's number */
    const char *name; /* borrowed */
    uint32_t assigned, max_sequences;
    uint64_t pages_used, pages;
};

struct balancer_policy {
    const char *name;
    bool (*eligible)(const struct balancer_group *g);
    /* < 0: a is better, > 0: b is, 0: a tie */
    int (*compare)(const struct balancer_group *a, const struct balancer_group *b);
};

/* The smallest assigned / max_sequences; then the smallest share of pages in use. */
extern const struct balancer_policy balancer_least_loaded;

struct balancer {
    const struct balancer_policy *policy;
    char last[WIRE_MAX_ID + 1]; /* the name chosen last; the next tie goes to the one after it */
};

void balancer_init(struct balancer *b, const struct balancer_policy *policy);
/* The index of the chosen group, or -1 when none is eligible. */
int balancer_choose(struct balancer *b, const struct balancer_group *groups, size_t count);

#endif
