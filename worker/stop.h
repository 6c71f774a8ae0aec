/* stop: finds the first stop string in an answer's text while it comes in pieces, wherever the pieces'
 * borders lie. Text that may be the beginning of a stop string is held back until it is known. PURE.
 *
 * Each stop string is a Knuth-Morris-Pratt automaton that reads the text byte by byte; the longest partial
 * match is what must be held. A match ends the text at its first byte; of several that end at one byte the
 * longest counts, so the answer does not depend on how the text was cut. Held text begins and ends at
 * characters: a stop string does. */
#ifndef LEPTON_WORKER_STOP_H
#define LEPTON_WORKER_STOP_H

#include "common/base.h"

/* The stop strings of one request; its choices share it. */
struct stop_set;
/* stops[count], each of 1 to UINT16_MAX bytes of UTF-8; copied. NULL for count 0: nothing stops. */
struct stop_set *stop_set_new(const char *const *stops, const size_t *bytes, size_t count);
void stop_set_free(struct stop_set **s);

/* The text of one choice. */
struct stop_matcher {
    const struct stop_set *set; /* borrowed; NULL = nothing stops */
    uint16_t *matched;          /* [count] bytes of each stop string that the text ends with */
    struct buffer held;
    bool stopped;
};
void stop_matcher_init(struct stop_matcher *m, const struct stop_set *set);
void stop_matcher_release(struct stop_matcher *m);
/* Reads a piece of the text and appends to *out what may be shown. True when a stop string was found: what is
 * before it was appended, the rest is dropped, and nothing comes out of later calls. */
bool stop_matcher_push(struct stop_matcher *m, const void *text, size_t bytes, struct buffer *out);
/* The text is over: what was held is no stop string. */
void stop_matcher_flush(struct stop_matcher *m, struct buffer *out);

#endif
