/* prefix: who has what cached. An approximate index over the beginnings of prompts (common/prefix_key.h): it
 * remembers which groups last saw a prompt through each place. PURE and bounded: the oldest places make room
 * for new ones; a wrong or missing entry costs a prefill, never an answer, since groups compare tokens
 * themselves.
 */
#ifndef LEPTON_COORDINATOR_PREFIX_H
#define LEPTON_COORDINATOR_PREFIX_H

#include "common/prefix_key.h"

#define PREFIX_GROUPS 4 /* remembered for a place */

struct prefix_match {
    uint32_t group;
    uint64_t bytes; /* of the prompt's beginning that the group saw */
};

struct prefix_index;
/* Room for `places` places, 32 bytes each. */
struct prefix_index *prefix_new(uint32_t places);
void prefix_free(struct prefix_index **x);
/* The group has, or is about to have, this prompt. */
void prefix_note(struct prefix_index *x, const struct prefix_key *key, uint32_t group);
/* The groups with the longest common beginning, longest first; at most max (<= 16). */
uint32_t prefix_find(struct prefix_index *x, const struct prefix_key *key, struct prefix_match *out,
                     uint32_t max);
/* The group lost its cache (it is gone, or its epoch changed). O(places). */
void prefix_drop_group(struct prefix_index *x, uint32_t group);
uint32_t prefix_places(const struct prefix_index *x); /* in use */
uint64_t prefix_memory(const struct prefix_index *x); /* bytes */

/* A snapshot for a warm restart, groups by the names that name() gives (NULL: left out), and its way back:
 * number() gives the group of a name or UINT32_MAX. */
void prefix_save(const struct prefix_index *x, const char *(*name)(void *context, uint32_t group),
                 void *context, struct buffer *out);
int prefix_load(struct prefix_index *x, const void *data, size_t bytes,
                uint32_t (*number)(void *context, const char *name), void *context, struct err *err);

#endif
