/* prefix: who has what cached. An approximate index over prompt bytes: a prompt is cut at fixed places, each
 * place is named by a hash of everything before it and of the tenant's salt, and the index remembers which
 * groups last saw a prompt through that place. PURE and bounded: the oldest places make room for new ones;
 * a wrong or missing entry costs a prefill, never an answer, since groups compare tokens themselves.
 *
 *   cuts: every 256 bytes up to 4 KiB, then each an eighth further than the last, so that a prompt of a
 * megabyte has 64 of them and a match is at most an eighth too short. */
#ifndef LEPTON_COORDINATOR_PREFIX_H
#define LEPTON_COORDINATOR_PREFIX_H

#include "common/base.h"

#define PREFIX_CUTS   64 /* of a prompt */
#define PREFIX_GROUPS 4  /* remembered for a place */

/* The places of one prompt, shortest first. */
struct prefix_key {
    uint32_t count;
    uint64_t place[PREFIX_CUTS];
};

/* The length in bytes before cut i (0-based). */
uint64_t prefix_cut(uint32_t i);
/* A salt from a tenant's name. */
uint64_t prefix_salt(const char *tenant);
/* Hashes a prompt. `salt` keeps tenants apart. */
void prefix_key_make(struct prefix_key *out, uint64_t salt, const void *prompt, uint64_t bytes);
/* The next place from the place before it and a name for the content between: for prompts that exist only as
 * numbers (simulations, traces of block hashes). */
uint64_t prefix_place_after(uint64_t place, uint64_t content);

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
