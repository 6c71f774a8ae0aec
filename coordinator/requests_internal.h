/* requests_internal: what requests.c (live requests) and requests_keep.c (those that are over) share. Nobody
 * else includes it. */
#ifndef LEPTON_COORDINATOR_REQUESTS_INTERNAL_H
#define LEPTON_COORDINATOR_REQUESTS_INTERNAL_H

#include "coordinator/requests.h"

#define NONE UINT32_MAX

/* The slots from `limit` on are a ring of those that are kept: the oldest at `first_kept`. */
struct requests {
    struct request *slots; /* [limit + limit] */
    uint32_t *buckets;     /* [bucket_count]: first slot by (client, client's id) */
    uint32_t *free_slots;  /* a stack */
    uint32_t limit, count, bucket_count;
    uint64_t rounds; /* grows with each request: makes the ids unique */
    struct requests_keep keep;
    uint32_t first_kept, kept_count; /* those that were forgotten in the middle are counted */
    uint64_t kept_bytes;
    uint64_t *forgotten; /* [forgotten_count] rows of what was kept and is no more */
    uint32_t forgotten_count, forgotten_capacity;
};

/* The hash bucket that the request is, or would be, in. */
uint32_t *requests_bucket(struct requests *r, const struct request *q);
bool requests_too_old(const struct request *q, uint64_t now_us);
/* Its row, when it has one, is to be deleted. */
void requests_forget_row(struct requests *r, uint64_t row);
/* Frees what it owns, but for its readers. */
void request_release(struct request *q);

#endif
