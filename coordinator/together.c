#include "coordinator/together.h"

/* Shares in thousandths of a processor's time. A processor that is idle for half of it has room; the threads
 * gather while they use less than a quarter and part at half, so that one load does not do both in turn. */
#define IDLE_ENOUGH  500
#define IDLE_BETTER  250 /* what another processor must have more, to be worth the move */
#define GATHER_BELOW 250
#define PART_ABOVE   500
/* Waiting for others, each time that a thread became ready: more than a sleeping processor takes to wake, and
 * enough in all to be no accident. */
#define WAIT_LIMIT_US 50
#define WAIT_LEAST_US 2000
/* Together for so many rests, the next rest is the shortest again. */
#define LASTED_RESTS 8

void together_init(struct together *t)
{
    *t = (struct together){.on = TOGETHER_APART, .rest_ms = TOGETHER_REST_MS};
}

static uint64_t share(uint64_t part_us, uint64_t elapsed_us)
{
    return elapsed_us ? part_us * 1000 / elapsed_us : 0;
}

/* Of two threads that hand work to each other, one waits while the other runs: so much of the waiting is
 * their own doing. */
static bool waits_for_others(const struct together_sample *s)
{
    uint64_t foreign_us = s->wait_us > s->run_us ? s->wait_us - s->run_us : 0;
    return foreign_us >= WAIT_LEAST_US && foreign_us / WAIT_LIMIT_US > s->turns;
}

/* The share of a processor that its other users leave; `own`: what the threads had of it themselves. */
static uint64_t room(const struct together_sample *s, uint32_t processor, uint64_t own)
{
    return s->idle[processor] + own;
}

/* The processor with most room, at least IDLE_ENOUGH; `home` as long as none has IDLE_BETTER more, because
 * memory is near there. TOGETHER_APART: none has. */
static uint32_t choose(const struct together_sample *s, uint32_t home, uint64_t own)
{
    uint32_t best = TOGETHER_APART;
    uint64_t most = IDLE_ENOUGH - 1;
    for (uint32_t i = 0; i < s->count; i++)
        if (room(s, i, i == home ? own : 0) > most) {
            most = room(s, i, i == home ? own : 0);
            best = i;
        }
    if (home < s->count && room(s, home, own) >= IDLE_ENOUGH && room(s, home, own) + IDLE_BETTER > most)
        best = home;
    return best;
}

void together_part(struct together *t, uint64_t now_ms)
{
    if (t->on != TOGETHER_APART && now_ms - t->since_ms > LASTED_RESTS * t->rest_ms)
        t->rest_ms = TOGETHER_REST_MS;
    t->on = TOGETHER_APART;
    t->till_ms = now_ms + t->rest_ms;
    t->rest_ms = t->rest_ms * 2 < TOGETHER_MAX_REST_MS ? t->rest_ms * 2 : TOGETHER_MAX_REST_MS;
}

uint32_t together_decide(struct together *t, const struct together_sample *s, uint64_t now_ms)
{
    uint64_t own = share(s->run_us, s->elapsed_us);
    if (t->on == TOGETHER_APART) {
        if (s->count < 2 || now_ms < t->till_ms || own >= GATHER_BELOW)
            return TOGETHER_APART;
        t->on = choose(s, s->here, 0);
        t->since_ms = now_ms;
        return t->on;
    }
    uint32_t next = choose(s, t->on, own);
    if (s->count < 2 || own > PART_ABOVE || next == TOGETHER_APART || (waits_for_others(s) && next == t->on))
        together_part(t, now_ms);
    else
        t->on = next;
    return t->on;
}
