/* What groups report corrects what was assumed: speeds, lengths of answers, bytes of a token, and how far the
 * index of cached prefixes is to be believed. */
#include "coordinator/scheduler_internal.h"

/* What is learned moves by a sixteenth of the difference: about the last sixteen requests count. */
#define LEARN 16
/* Answers of so many tokens say how far one is from another. */
#define DEVIATION_TOKENS 32
/* Tokens expected in caches after which older ones count half. */
#define PREFIX_MEMORY 1000000

/* *average moves towards the sample; both in units of 1/16. */
static void learn(uint64_t *average, uint64_t sample)
{
    int64_t step = ((int64_t)sample - (int64_t)*average) / LEARN;
    if (step == 0 && sample != *average)
        step = sample > *average ? 1 : -1;
    *average = (uint64_t)((int64_t)*average + step);
}

static void learn_rate(uint64_t *pool_sum, uint64_t *rate, bool measured, uint64_t sample)
{
    uint64_t old = *rate;
    if (sample == 0)
        return;
    if (measured)
        learn(rate, sample);
    else
        *rate = sample;
    *pool_sum += *rate - old;
}

/* What nobody has measured is taken to be as fast as the measured groups of its pool, place for place: else
 * the first that was measured would get everything, or nothing. */
void assume_rates(struct scheduler *s, uint32_t pool)
{
    struct pool *p = &s->pools[pool];
    uint64_t prefill = 0, decode = 0, places = 0, measured = 0;
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (!g->live || g->pool != pool || !g->measured)
            continue;
        prefill += g->view.prefill_rate;
        decode += g->view.decode_rate;
        places += g->view.max_sequences;
        measured++;
    }
    for (uint32_t i = 0; i < s->group_end && measured > 0; i++) {
        struct group *g = &s->groups[i];
        if (!g->live || g->pool != pool || g->measured)
            continue;
        uint64_t old_prefill = g->view.prefill_rate, old_decode = g->view.decode_rate;
        g->view.prefill_rate = prefill / measured;
        g->view.decode_rate = decode * g->view.max_sequences / places + 1;
        p->prefill_rate += g->view.prefill_rate - old_prefill;
        p->decode_rate += g->view.decode_rate - old_decode;
        group_refresh(s, i);
    }
}

/* What lies between two tokens, in the mean of an answer, and how far answers are from it: of short ones,
 * chance has more to say than the group. */
static void learn_token(struct pool *p, uint64_t each_us, uint64_t output)
{
    if (p->token_us == 0) {
        p->token_us = each_us ? each_us : 1;
        return;
    }
    if (output >= DEVIATION_TOKENS)
        learn(&p->token_dev_us, each_us > p->token_us ? each_us - p->token_us : p->token_us - each_us);
    learn(&p->token_us, each_us);
}

/* The prefill's rate includes its wait inside the group, so a short prompt behind others looks slow: only
 * prompts that the group had for itself, or long ones, say how fast it is. */
static void learn_group(struct scheduler *s, struct entry *e, const struct scheduler_usage *u)
{
    struct group *g = &s->groups[e->group];
    struct pool *p = &s->pools[g->pool];
    uint64_t fresh = u->prompt_tokens - (u->cached_tokens < u->prompt_tokens ? u->cached_tokens : 0);
    if (u->prefill_us > 0 && fresh >= 64 && (g->view.requests <= 1 || !g->measured))
        learn_rate(&p->prefill_rate, &g->view.prefill_rate, g->measured, fresh * 1000000 / u->prefill_us);
    if (u->decode_us > 0 && u->output_tokens / e->choices > 4) {
        uint64_t output = u->output_tokens / e->choices; /* of each, side by side */
        uint64_t each_us = u->decode_us / (output - 1);
        learn_token(p, each_us, output);
        if (each_us)
            learn_rate(&p->decode_rate, &g->view.decode_rate, g->measured,
                       g->view.assigned * 1000000 / each_us);
        p->unmeasured -= !g->measured;
        g->measured = true;
    }
    group_refresh(s, e->group);
    if (p->unmeasured > 0)
        assume_rates(s, g->pool);
}

/* Caches evict, and the index does not see it: what was found against what was expected, of late. */
static void learn_prefix(struct pool *p, const struct entry *e, const struct scheduler_usage *u)
{
    if (!e->cached_raw)
        return;
    p->cached_expected += e->cached_raw;
    p->cached_found += u->cached_tokens < e->cached_raw ? u->cached_tokens : e->cached_raw;
    if (p->cached_expected > PREFIX_MEMORY) {
        p->cached_expected /= 2;
        p->cached_found /= 2;
    }
}

void scheduler_used(struct scheduler *s, uint32_t request, const struct scheduler_usage *u)
{
    struct entry *e = scheduler_entry(s, request);
    if (e->state != RUNNING && e->state != ENDING && e->state != PREEMPTED)
        return;
    struct pool *p = &s->pools[s->flows[e->flow].pool];
    if (u->prompt_tokens > 0 && e->bytes > 0) {
        learn(&p->bytes_per_256_tokens, e->bytes * 256 / u->prompt_tokens);
        p->bytes_per_256_tokens = p->bytes_per_256_tokens ? p->bytes_per_256_tokens : 1;
    }
    if (e->state == RUNNING)
        learn(&p->output_tokens_x16, 16 * u->output_tokens / e->choices);
    learn_prefix(p, e, u);
    learn_group(s, e, u);
    entry_settle(s, request, u->prompt_tokens + 2 * u->output_tokens);
}
