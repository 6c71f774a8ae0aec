#include "coordinator/tuner.h"

#include <math.h>
#include <string.h>

#define LEAST_WINDOW 160 /* requests */
#define WINDOW_WORK  2   /* and so many times what is at work: the window must see its own effect */
#define ROUNDS_LEAST 3   /* before a trial is judged */
#define ROUNDS       12
#define CLEAR        2.0  /* standard errors */
#define WORTH        0.01 /* an improvement below this is none */
#define STEP_FIRST   4
#define STEP_LAST    2
#define REST_ROUNDS  4 /* rounds of rest after neither direction was better; doubles */
#define REST_DOUBLES 4
#define FORGET       0.95 /* of what windows say of the slope, from round to round */
#define PACE_DOUBT   0.05 /* so much pace_squares of no slope at all, to begin with */

static uint64_t neighbour(const struct tuner *t, bool up)
{
    if (up)
        return t->centre > t->high / t->step ? t->high : t->centre * t->step;
    return t->centre / t->step < t->low ? t->low : t->centre / t->step;
}

static void begin_round(struct tuner *t)
{
    memset(t->windows, 0, sizeof(t->windows));
    t->window = 0;
    t->length = 0;
    t->late = 0;
    t->round = (t->round + 1) % (1u << 28);
    t->round += t->round == 0;
}

static void begin_trial(struct tuner *t)
{
    t->trial = neighbour(t, t->up);
    if (t->trial == t->centre) { /* the bound: there is nothing in this direction */
        t->up = !t->up;
        t->trial = neighbour(t, t->up);
    }
    t->rounds = 0;
    t->sum = t->squares = 0;
    begin_round(t);
}

void tuner_init(struct tuner *t, uint64_t value, uint64_t low, uint64_t high)
{
    ASSERT(low >= 1 && low <= high);
    *t = (struct tuner){.low = low, .high = high, .up = true, .step = STEP_FIRST, .pace_squares = PACE_DOUBT};
    t->centre = value < low ? low : value > high ? high : value;
    begin_trial(t);
}

/* Every second round the other way around. */
static bool tries(const struct tuner *t)
{
    bool middle = t->window == 1 || t->window == 2;
    return t->rest == 0 && t->window < TUNER_WINDOWS && middle != (t->rounds % 2 == 1);
}

uint64_t tuner_value(const struct tuner *t)
{
    return tries(t) ? t->trial : t->centre;
}

/* Neither direction is better: smaller steps, or what is known is good enough for a while. */
static void settle(struct tuner *t)
{
    t->turned = false;
    if (t->step > STEP_LAST) {
        t->step = STEP_LAST;
        return;
    }
    t->rest = t->length * TUNER_WINDOWS * (REST_ROUNDS << t->rests);
    t->rests += t->rests < REST_DOUBLES;
    t->step = STEP_FIRST;
}

/* The trial is over. */
static void judge(struct tuner *t, bool better)
{
    if (better) {
        t->centre = t->trial;
        t->moves++;
        t->turned = false;
        t->rests = 0;
    } else {
        bool both = t->turned || neighbour(t, !t->up) == t->centre;
        t->up = !t->up;
        t->turned = true;
        if (both)
            settle(t);
    }
    begin_trial(t);
}

/* Windows of the same value differ by chance, and by how fast requests came. */
static void learn_slope(struct tuner *t, const double mean[TUNER_WINDOWS], const double pace[TUNER_WINDOWS])
{
    double outer = pace[0] - pace[3], inner = pace[1] - pace[2];
    t->products = FORGET * t->products + (mean[0] - mean[3]) * outer + (mean[1] - mean[2]) * inner;
    t->pace_squares = FORGET * t->pace_squares + outer * outer + inner * inner;
}

static double middle_less_ends(const double value[TUNER_WINDOWS])
{
    return (value[1] + value[2] - value[0] - value[3]) / 2;
}

/* All that is to be known of the round is known. */
static void end_round(struct tuner *t)
{
    double mean[TUNER_WINDOWS], pace[TUNER_WINDOWS];
    for (int i = 0; i < TUNER_WINDOWS; i++) {
        const struct tuner_window *w = &t->windows[i];
        mean[i] = w->sum / w->ended;
        pace[i] = -log((double)(w->ended_ms - w->began_ms + 1));
    }
    learn_slope(t, mean, pace);
    double slope = t->products / t->pace_squares;
    double said = middle_less_ends(mean) - slope * middle_less_ends(pace);
    if (t->rounds % 2 == 1)
        said = -said;
    t->rounds++;
    t->sum += said;
    t->squares += said * said;
    double n = t->rounds, worse = t->sum / n;
    double variance = t->rounds > 1 ? (t->squares - n * worse * worse) / (n - 1) : 0;
    double error = sqrt((variance > 0 ? variance : 0) / n);
    bool clear = t->rounds >= ROUNDS_LEAST && fabs(worse + WORTH) > CLEAR * error;
    if (clear || t->rounds == ROUNDS)
        judge(t, worse < -WORTH);
    else
        begin_round(t);
}

/* Nearly all outcomes are there: those that never come (cancelled, lost) must not hold it up. */
static bool round_known(const struct tuner *t)
{
    for (int i = 0; i < TUNER_WINDOWS; i++)
        if (t->windows[i].ended * 20 < t->windows[i].counted * 19)
            return false;
    return true;
}

/* Of a request that is not measured. */
static uint32_t unmeasured(struct tuner *t)
{
    if (t->rest > 0 && --t->rest == 0)
        begin_trial(t);
    else if (t->window == TUNER_WINDOWS && ++t->late >= TUNER_WINDOWS * t->length)
        begin_round(t); /* too many outcomes are missing for too long: it says nothing */
    return 0;
}

uint32_t tuner_given(struct tuner *t, uint32_t running, uint64_t now_ms)
{
    if (t->low == t->high || t->rest > 0 || t->window == TUNER_WINDOWS)
        return unmeasured(t);
    if (t->length == 0) {
        uint64_t length = (uint64_t)WINDOW_WORK * running;
        t->length = length < LEAST_WINDOW ? LEAST_WINDOW : length > 1u << 20 ? 1u << 20 : (uint32_t)length;
    }
    struct tuner_window *w = &t->windows[t->window];
    uint32_t mark = 0;
    if (w->given++ == 0)
        w->began_ms = now_ms;
    if (w->given > t->length / 4) {
        w->counted++;
        mark = t->round * TUNER_WINDOWS + t->window;
    }
    w->ended_ms = now_ms;
    t->window += w->given == t->length;
    return mark;
}

void tuner_outcome(struct tuner *t, uint32_t mark, double took, double expected)
{
    ASSERT(took > 0 && expected > 0);
    if (mark / TUNER_WINDOWS != t->round || t->rest > 0)
        return;
    struct tuner_window *w = &t->windows[mark % TUNER_WINDOWS];
    w->ended++;
    w->sum += log(took / expected);
    if (t->window == TUNER_WINDOWS && round_known(t))
        end_round(t);
}

void tuner_spoil(struct tuner *t)
{
    if (t->rest == 0)
        begin_round(t);
}
