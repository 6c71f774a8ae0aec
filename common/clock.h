/* clock: time. Leases, deadlines and durations use the monotonic clock alone, so that a step of the wall
 * clock changes nothing; the wall clock is for people (log lines). */
#ifndef LEPTON_COMMON_CLOCK_H
#define LEPTON_COMMON_CLOCK_H

#include "common/base.h"

uint64_t clock_now_ns(void); /* monotonic, nanoseconds */
uint64_t clock_now_us(void); /* monotonic, microseconds */
uint64_t clock_now_ms(void); /* monotonic, milliseconds */
/* Processor time of this process so far, all threads together, microseconds. */
uint64_t clock_processor_us(void);
/* "2026-01-31T12:34:56.789Z" into out. */
void clock_wall(char out[32]);
/* Sleeps; returns early when a signal arrives. */
void clock_sleep_ms(uint64_t ms);
/* A random number from the system, for identities and seeds. */
uint64_t clock_entropy(void);

#endif
