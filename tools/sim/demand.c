#include "tools/sim/demand.h"

#include <string.h>

int demand_open(struct workload **out, const struct demand *d, double rate, uint32_t max_prompt_tokens,
                struct err *err)
{
    if (d->realtime + d->interactive + d->batch <= 0)
        return err_set(err, "--realtime, --interactive, --batch: expected at least one share above 0");
    struct workload_options o = {
        .requests = (uint64_t)d->requests,
        .seed = (uint64_t)d->seed,
        .rate = d->rate > 0 ? d->rate : rate,
        .arrivals = strcmp(d->arrivals, "bursty") == 0 ? ARRIVALS_BURSTY : ARRIVALS_POISSON,
        .tenants = (uint32_t)d->tenants,
        .greedy = d->greedy,
        .class_share = {d->realtime, d->interactive, d->batch},
        .deadline_ms = {(uint64_t)d->realtime_ms, (uint64_t)d->interactive_ms, (uint64_t)d->batch_ms},
        .turns = (uint32_t)d->turns,
        .think_s = d->think_s,
        .prompt_tokens = (double)d->prompt_tokens,
        .output_tokens = (double)d->output_tokens,
        .system_tokens = (uint32_t)d->system_tokens,
        .choices = (uint32_t)d->choices,
        .max_prompt_tokens = max_prompt_tokens};
    if (d->trace)
        return workload_trace(out, &o, d->trace, err);
    *out = workload_new(&o);
    return 0;
}
