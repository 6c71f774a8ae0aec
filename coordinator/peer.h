/* peer: who sent a message: the connection (ROUTER's routing id) and the identity that ZAP bound to its key.
 * A plain value; the pure modules carry it without knowing any socket. */
#ifndef LEPTON_COORDINATOR_PEER_H
#define LEPTON_COORDINATOR_PEER_H

#include <string.h>

#include "common/curve.h"

#define PEER_MAX_ID 255 /* bytes of a routing id, by ZeroMQ's rules */

struct peer {
    uint8_t size; /* beside the id, which is mostly five bytes: one cache line tells two peers apart */
    uint8_t id[PEER_MAX_ID];
    enum curve_role role;
    char name[65]; /* of the key */
    uint64_t key;  /* its number (curve.h) */
};

/* The same connection? The identity behind a routing id cannot change while it lives. */
static inline bool peer_equal(const struct peer *a, const struct peer *b)
{
    return a->size == b->size && memcmp(a->id, b->id, a->size) == 0;
}

static inline uint64_t peer_hash(const struct peer *p)
{
    uint64_t h = 0xCBF29CE484222325ull; /* FNV-1a */
    for (unsigned i = 0; i < p->size; i++)
        h = (h ^ p->id[i]) * 0x100000001B3ull;
    return h;
}

#endif
