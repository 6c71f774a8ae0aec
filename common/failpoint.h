/* failpoint: named places at which a test may kill the process, as kill -9 or a power loss would, at the
 * worst moment. They exist in test builds alone (-DLEPTON_FAILPOINTS, build/VARIANT/tests/faults/): in every
 * other build a FAILPOINT is nothing at all.
 *
 * LEPTON_FAILPOINT=name kills at the first hit of that name, LEPTON_FAILPOINT=name:3 at the third. */
#ifndef LEPTON_COMMON_FAILPOINT_H
#define LEPTON_COMMON_FAILPOINT_H

#ifdef LEPTON_FAILPOINTS
/* Any thread. `name` is a literal. */
void failpoint_hit(const char *name);
#define FAILPOINT(name) failpoint_hit(name)
#else
#define FAILPOINT(name) ((void)0)
#endif

#endif
