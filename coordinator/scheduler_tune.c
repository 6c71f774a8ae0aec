/* The settings that have a measured optimum: what is in force, within which bounds, and who set it. */
#include "coordinator/scheduler_internal.h"

#include <stdlib.h>
#include <string.h>

#define BELIEF_LOW  5 /* percent: so that a cache that came to work again is noticed */
#define BELIEF_HIGH 100
#define WEIGHT_HIGH 10000

void settings_init(struct scheduler *s, const struct scheduler_limits *l)
{
    bool bounded = l->prefix_weight_high > 0;
    s->weight = (struct setting){.name = "prefix_weight",
                                 .low = bounded ? l->prefix_weight_low : 0,
                                 .high = bounded ? l->prefix_weight_high : WEIGHT_HIGH,
                                 .value = l->prefix_weight,
                                 .automatic = l->prefix_weight_auto};
    if (s->weight.value < s->weight.low || s->weight.value > s->weight.high)
        s->weight.value = s->weight.value < s->weight.low ? s->weight.low : s->weight.high;
    s->belief = (struct setting){.name = "prefix_belief",
                                 .low = BELIEF_LOW,
                                 .high = BELIEF_HIGH,
                                 .value = l->prefix_belief ? l->prefix_belief : BELIEF_HIGH,
                                 .automatic = l->prefix_belief == 0};
    ASSERT(s->weight.low <= s->weight.high && s->belief.value <= BELIEF_HIGH);
    tuner_init(&s->tuner, s->weight.value, s->weight.low ? s->weight.low : 1, s->weight.high);
}

uint32_t prefix_weight(const struct scheduler *s)
{
    return (uint32_t)(s->weight.automatic ? tuner_value(&s->tuner) : s->weight.value);
}

/* Where there is nothing to choose, or nothing is weighed, nothing is to be learned; batch work waits by
 * design, and who was at a group before has waited for other reasons. */
void tune_given(struct scheduler *s, const struct pool *p, struct entry *e)
{
    bool measured = s->weight.automatic && s->policy->prefix && s->prefix && p->groups > 1 &&
                    !s->limits.classes[e->class].preemptible && !e->given;
    e->given = true;
    e->mark = measured ? tuner_given(&s->tuner, s->live - s->queued, s->now_ms) : 0;
}

void scheduler_first_token(struct scheduler *s, uint32_t request, uint64_t after_us)
{
    struct entry *e = scheduler_entry(s, request);
    const struct pool *p = &s->pools[s->flows[e->flow].pool];
    if (e->mark && after_us > 0 && s->weight.automatic)
        tuner_outcome(&s->tuner, e->mark, (double)after_us,
                      (double)e->prompt_tokens * 1e6 / (double)pool_prefill_rate(p));
    e->mark = 0;
}

/* What all pools' caches together were found to hold of what was expected. */
static uint64_t belief_now(const struct scheduler *s)
{
    uint64_t weighed = 0, expected = 0;
    for (uint32_t i = 0; i < s->pool_limit; i++) {
        weighed += pool_prefix_percent(s, &s->pools[i]) * s->pools[i].cached_expected;
        expected += s->pools[i].cached_expected;
    }
    return expected ? weighed / expected : BELIEF_HIGH;
}

int scheduler_setting_read(const char *name, const char *text, bool *automatic, uint64_t *value,
                           struct err *err)
{
    size_t digits = strspn(text, "0123456789");
    *automatic = strcmp(text, "auto") == 0;
    *value = 0;
    if (*automatic)
        return 0;
    if (digits == 0 || digits > 9 || text[digits])
        return err_set_code(err, 400, "%s: \"%.40s\", expected a number or auto", name, text);
    *value = strtoull(text, NULL, 10);
    return 0;
}

static struct setting *find(struct scheduler *s, const char *name)
{
    return strcmp(name, s->weight.name) == 0   ? &s->weight
           : strcmp(name, s->belief.name) == 0 ? &s->belief
                                               : NULL;
}

int scheduler_tune(struct scheduler *s, const char *name, bool automatic, uint64_t value, struct err *err)
{
    struct setting *t = find(s, name);
    if (!t)
        return err_set_code(err, 404, "%s: no such setting; expected prefix_weight or prefix_belief", name);
    if (!automatic && (value < t->low || value > t->high))
        return err_set_code(err, 400, "%s: %llu, expected %llu to %llu, or auto", name,
                            (unsigned long long)value, (unsigned long long)t->low,
                            (unsigned long long)t->high);
    if (automatic && !t->automatic && t == &s->weight) /* from where the hand left it */
        tuner_init(&s->tuner, t->value, t->low ? t->low : 1, t->high);
    t->automatic = automatic;
    if (!automatic)
        t->value = value;
    return 0;
}

static struct scheduler_setting look(const struct setting *t, uint64_t value)
{
    return (struct scheduler_setting){
        .name = t->name, .value = value, .low = t->low, .high = t->high, .automatic = t->automatic};
}

void scheduler_settings(const struct scheduler *s, struct scheduler_setting out[SCHEDULER_SETTINGS])
{
    out[0] = look(&s->weight, s->weight.automatic ? s->tuner.centre : s->weight.value);
    out[1] = look(&s->belief, s->belief.automatic ? belief_now(s) : s->belief.value);
}
