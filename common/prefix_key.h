/* prefix_key: names for the beginnings of a prompt, by which a coordinator remembers who has what cached and
 * a simulated group remembers what it has. A prompt is cut at fixed places, each place is named by a hash of
 * everything before it and of a salt that keeps tenants apart.
 *
 *   cuts: every 256 bytes up to 4 KiB, then each an eighth further than the last, so that a prompt of a
 * megabyte has 64 of them and a match is at most an eighth too short. */
#ifndef LEPTON_COMMON_PREFIX_KEY_H
#define LEPTON_COMMON_PREFIX_KEY_H

#include "common/base.h"

#define PREFIX_CUTS 64 /* of a prompt */

/* The places of one prompt, shortest first. */
struct prefix_key {
    uint32_t count;
    uint64_t place[PREFIX_CUTS];
};

/* The length in bytes before cut i (0-based). */
uint64_t prefix_cut(uint32_t i);
/* A salt from a tenant's name. */
uint64_t prefix_salt(const char *tenant);
/* Hashes a prompt. */
void prefix_key_make(struct prefix_key *out, uint64_t salt, const void *prompt, uint64_t bytes);
/* The next place from the place before it and a name for the content between: for prompts that exist only as
 * numbers (simulations, traces of block hashes). Never 0. */
uint64_t prefix_place_after(uint64_t place, uint64_t content);

#endif
