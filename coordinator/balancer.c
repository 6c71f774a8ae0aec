#include "coordinator/balancer.h"

#include <stdio.h>
#include <string.h>

/* a/b against c/d without rounding; the operands stay far below 2^64 (128-bit products). */
static int compare_ratios(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    unsigned __int128 left = (unsigned __int128)a * d, right = (unsigned __int128)c * b;
    return left < right ? -1 : left > right;
}

static bool least_loaded_eligible(const struct balancer_group *g)
{
    return g->assigned < g->max_sequences;
}

static int least_loaded_compare(const struct balancer_group *a, const struct balancer_group *b)
{
    int by_sequences = compare_ratios(a->assigned, a->max_sequences, b->assigned, b->max_sequences);
    if (by_sequences != 0 || a->pages == 0 || b->pages == 0)
        return by_sequences;
    return compare_ratios(a->pages_used, a->pages, b->pages_used, b->pages);
}

const struct balancer_policy balancer_least_loaded = {
    .name = "least-loaded",
    .eligible = least_loaded_eligible,
    .compare = least_loaded_compare,
};

void balancer_init(struct balancer *b, const struct balancer_policy *policy)
{
    *b = (struct balancer){.policy = policy};
}

/* Going round from the name after `last`: is `a` reached before `b`? */
static bool comes_first(const char *last, const char *a, const char *b)
{
    bool a_after = strcmp(a, last) > 0, b_after = strcmp(b, last) > 0;
    return a_after != b_after ? a_after : strcmp(a, b) < 0;
}

int balancer_choose(struct balancer *b, const struct balancer_group *groups, size_t count)
{
    int best = -1;
    for (size_t i = 0; i < count; i++) {
        if (!b->policy->eligible(&groups[i]))
            continue;
        int order = best < 0 ? -1 : b->policy->compare(&groups[i], &groups[best]);
        if (order < 0 || (order == 0 && comes_first(b->last, groups[i].name, groups[best].name)))
            best = (int)i;
    }
    if (best >= 0)
        snprintf(b->last, sizeof(b->last), "%s", groups[best].name);
    return best;
}
