/* team: the threads of the CPU device. One call splits an index range among the caller and the helpers and
 * returns when the whole range is done. Helpers that find no work spin for a while (the next kernel
 * of a step comes that soon), then sleep: an idle team burns nothing.
 *
 * Which member does which chunk is left to chance; bodies must give the same bits however the range is cut.
 * Callers of several threads take turns. A body must not call the team again (ASSERT). */
#ifndef LEPTON_KERNELS_CPU_TEAM_H
#define LEPTON_KERNELS_CPU_TEAM_H

#include "common/base.h"

struct team;

/* Called for [begin, end) of the range by member 0..threads-1; no two at a time with the same member. */
typedef void team_body(void *context, int64_t begin, int64_t end, int member);

/* threads: the caller included; 0 = the processors this process may run on. NULL and *err when threads cannot
 * be started. */
struct team *team_new(int threads, struct err *err);
void team_free(struct team **team);
int team_threads(const struct team *team);

/* Runs body over [0, count) in pieces whose length is a multiple of `grain` (the last piece excepted). A
 * range of one piece runs on the caller without waking anyone. */
void team_for(struct team *team, int64_t count, int64_t grain, team_body *body, void *context);

/* The grain that cuts `count` into about `pieces` pieces for each member, for bodies in which every piece has
 * a price of its own. */
int64_t team_grain(const struct team *team, int64_t count, int64_t pieces);

/* Scratch memory of one member, at least `bytes`, 64-byte aligned, contents undefined; for use inside a body.
 * It grows to the largest size ever asked for and stays. */
void *team_scratch(struct team *team, int member, size_t bytes);

#endif
