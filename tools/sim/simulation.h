/* simulation: the real scheduler and balancer over simulated groups and clients, in simulated time, in one
 * thread. One seed replays everything. It counts; tools/sim/report.c says it. */
#ifndef LEPTON_TOOLS_SIM_SIMULATION_H
#define LEPTON_TOOLS_SIM_SIMULATION_H

#include "coordinator/scheduler.h"
#include "tools/sim/workload.h"

struct sim_options {
    uint32_t groups;
    struct engine_speed speed;
    double slow_share, slow_factor; /* so many groups are so many times slower */
    double mtbf_s, repair_s;        /* of a group; 0: none fails */
    const struct balancer_policy *policy;
    uint32_t prefix_weight;
    bool prefix_weight_auto;
    uint32_t prefix_belief; /* 0: automatic */
    uint32_t queue_requests;
    uint64_t queue_ms;
    uint32_t tenants_remembered, prefix_places;
    bool announced;    /* max_tokens is the answer's length; else nothing is known of it */
    bool tell_speeds;  /* groups say how fast they are, instead of being measured */
    bool check;        /* every invariant after every event */
    uint64_t until_us; /* the end of new requests; 0: none */
    uint64_t seed;
};

/* One request's story. Times in milliseconds after its arrival; negative: never. */
struct sim_request {
    float arrival_s, ttft_ms, e2e_ms;
    uint32_t tenant, prompt_tokens, output_tokens, cached_tokens;
    int16_t code; /* 0: complete */
    uint8_t class;
    bool accepted; /* it was let in */
    bool in_time;
};

struct sim_sample {
    float at_s;
    uint32_t queued, running;
};

struct sim_result {
    struct sim_request *requests; /* in order of their ends */
    uint64_t count, capacity;
    struct sim_sample *samples; /* once a simulated second or less often */
    uint64_t sample_count, sample_capacity;
    double end_s, wall_s, scheduler_s; /* simulated; real: whole, and inside the scheduler */
    uint64_t decisions, preempted, moved, shed, late, failures;
    uint64_t scheduler_bytes, engine_steps;
    uint32_t most_live;
    struct scheduler_setting settings[SCHEDULER_SETTINGS]; /* at the end */
};

/* Runs a workload to its end; results are released with sim_result_release. */
void simulation_run(struct sim_result *out, const struct sim_options *o, struct workload *w);
void sim_result_release(struct sim_result *r);

#endif
