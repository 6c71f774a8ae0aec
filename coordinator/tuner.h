/* tuner: looks for the value of a setting at which what requests wait for is least, while they are served.
 * PURE: it hears which requests are given away and how long each took, and says which value is in force.
 *
 *      requests given away:   |centre|trial |trial |centre|   a round: four windows of equal length
 *                              (the first quarter of each is not counted: queues and caches are still those
 *                               of the window before)
 *
 * A round says by how much the trial is better: the difference of the mean logarithms of (time taken / time
 * expected), in which a load that rises or falls steadily cancels out. How fast requests came in a window
 * explains much of what is left: that part is taken off, by a slope learned from windows of the same value
 * (a control variate). Rounds are repeated until their mean is clear of its standard error, or there were
 * enough. A trial that is better becomes the centre, and the next goes on in its direction; one that is not
 * turns the direction around. When neither direction is better the steps get smaller, and then the centre
 * stays in force for a while, longer each time: a hill climb with a sequential test, after Kiefer and
 * Wolfowitz 1952.
 *
 * Times are compared from window to window and not from request to request: where a request goes costs those
 * behind it as well, so that what is best for each alone is not best for all. */
#ifndef LEPTON_COORDINATOR_TUNER_H
#define LEPTON_COORDINATOR_TUNER_H

#include "common/base.h"

#define TUNER_WINDOWS 4

struct tuner_window {
    uint32_t given, counted, ended; /* requests: in it, of them behind its first quarter, of these measured */
    uint64_t began_ms, ended_ms;
    double sum; /* of the logarithms */
};

/* A plain value; its fields are the tuner's. */
struct tuner {
    uint64_t low, high; /* low >= 1 */
    uint64_t centre, trial;
    uint32_t step;        /* the trial lies so many times above or below the centre */
    bool up;              /* above */
    bool turned;          /* the other direction was no better */
    uint32_t round;       /* names the round in marks; 0: never */
    uint32_t window;      /* under way; TUNER_WINDOWS: waits for outcomes */
    uint32_t length;      /* of a window, in requests */
    uint32_t late;        /* requests given away while it waits */
    uint32_t rest, rests; /* requests left until the next trial; how often it rested in a row */
    struct tuner_window windows[TUNER_WINDOWS];
    uint32_t rounds;               /* of this trial */
    double sum, squares;           /* of what they said */
    double products, pace_squares; /* of the slope: outcome over pace */
    uint64_t moves;                /* of the centre, so far */
};

/* Begins at `value`, between 1 <= low <= high. */
void tuner_init(struct tuner *t, uint64_t value, uint64_t low, uint64_t high);
/* The value in force. */
uint64_t tuner_value(const struct tuner *t);
/* A request is given away under that value; `running` are at work, this one included. What it returns goes to
 * tuner_outcome; 0: it is not measured. */
uint32_t tuner_given(struct tuner *t, uint32_t running, uint64_t now_ms);
/* It took so long, against what was expected; both above 0. A mark of an earlier round says nothing. */
void tuner_outcome(struct tuner *t, uint32_t mark, double took, double expected);
/* Something else than the setting decides now (requests are refused): the round begins anew. */
void tuner_spoil(struct tuner *t);

#endif
