#include "coordinator/balancer.h"

#include <string.h>

static uint64_t us_of(uint64_t tokens, uint64_t rate)
{
    return tokens * 1000000 / rate;
}

uint64_t balancer_load_us(const struct balancer_group *g)
{
    return us_of(g->prefill_tokens, g->prefill_rate) + us_of(g->decode_tokens, g->decode_rate) + g->link_us;
}

bool balancer_fits(const struct balancer_group *g, const struct balancer_request *r)
{
    if (g->requests == 0)
        return g->max_sequences > 0;
    if (g->assigned + r->choices > g->max_sequences)
        return false;
    return g->kv_tokens == 0 || g->kv_reserved + r->kv_tokens <= g->kv_tokens;
}

/* What the new request waits for: the prefill before it, its own, and the decoding that goes on beside. */
static uint64_t prefix_cost(const struct balancer_group *g, const struct balancer_request *r,
                            uint32_t prefix_weight)
{
    uint64_t cached = g->cached_tokens < r->prompt_tokens ? g->cached_tokens : r->prompt_tokens;
    return us_of(g->prefill_tokens, g->prefill_rate) +
           us_of(r->prompt_tokens - cached, g->prefill_rate) * prefix_weight / 100 +
           us_of(g->decode_tokens + r->output_tokens, g->decode_rate) + g->link_us;
}

static uint64_t load_cost(const struct balancer_group *g, const struct balancer_request *r,
                          uint32_t prefix_weight)
{
    (void)prefix_weight;
    return balancer_load_us(g) + us_of(r->prompt_tokens, g->prefill_rate) +
           us_of(r->output_tokens, g->decode_rate);
}

static uint64_t no_cost(const struct balancer_group *g, const struct balancer_request *r,
                        uint32_t prefix_weight)
{
    (void)g, (void)r, (void)prefix_weight;
    return 0;
}

const struct balancer_policy balancer_prefix = {
    .name = "prefix", .sample = BALANCER_LEAST, .samples = 4, .prefix = true, .cost = prefix_cost};
const struct balancer_policy balancer_least_loaded = {
    .name = "least-load", .sample = BALANCER_LEAST, .samples = 4, .cost = load_cost};
const struct balancer_policy balancer_two_choices = {
    .name = "two-choices", .sample = BALANCER_RANDOM, .samples = 2, .cost = load_cost};
const struct balancer_policy balancer_round_robin = {
    .name = "round-robin", .sample = BALANCER_NEXT, .samples = 1, .cost = no_cost};

const struct balancer_policy *balancer_policy_find(const char *name)
{
    static const struct balancer_policy *const all[] = {&balancer_prefix, &balancer_least_loaded,
                                                        &balancer_two_choices, &balancer_round_robin};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

int balancer_choose(const struct balancer_policy *policy, const struct balancer_group *groups, size_t count,
                    const struct balancer_request *r, uint32_t prefix_weight)
{
    int best = -1;
    uint64_t least = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t cost = policy->cost(&groups[i], r, prefix_weight);
        if (best < 0 || cost < least || (cost == least && groups[i].last < groups[best].last)) {
            best = (int)i;
            least = cost;
        }
    }
    return best;
}
