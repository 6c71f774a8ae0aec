/* demand: the options that say what clients ask and when, shared by `lepton sim` (simulated clients) and
 * `lepton load` (real ones). In a table of options: DEMAND_OPTIONS(struct, member). */
#ifndef LEPTON_TOOLS_SIM_DEMAND_H
#define LEPTON_TOOLS_SIM_DEMAND_H

#include "common/config.h"
#include "tools/sim/workload.h"

struct demand {
    int64_t requests, seed, tenants, turns, choices, prompt_tokens, output_tokens, system_tokens;
    int64_t realtime_ms, interactive_ms, batch_ms;
    double rate, greedy, realtime, interactive, batch, think_s, duration_s;
    char *arrivals, *trace;
};

#define DEMAND_ROW(type, member, field, kind_, low, high, preset, value_, text)                         \
    {                                                                                                   \
        .name = #field, .kind = kind_, .offset = offsetof(type, member.field), .min = low, .max = high, \
        .standard = preset, .value = value_, .help = text                                               \
    }
#define DEMAND_INT(type, member, field, low, high, preset, value_, text) \
    DEMAND_ROW(type, member, field, CONFIG_INT, low, high, preset, value_, text)
#define DEMAND_REAL(type, member, field, low, high, preset, value_, text) \
    DEMAND_ROW(type, member, field, CONFIG_FLOAT, low, high, preset, value_, text)

#define DEMAND_OPTIONS(type, m)                                                                            \
    DEMAND_INT(type, m, requests, 1, 1e9, "20000", "N", "Requests, all turns of conversations counted."),  \
        DEMAND_INT(type, m, seed, 0, 9223372036854775807.0, "1", "S", "Everything follows from it."),      \
        {.name = "trace",                                                                                  \
         .kind = CONFIG_STRING,                                                                            \
         .offset = offsetof(type, m.trace),                                                                \
         .value = "FILE",                                                                                  \
         .help = "Replay the requests of a file of JSON lines (docs/scheduling.md)."},                     \
        {.name = "arrivals",                                                                               \
         .kind = CONFIG_STRING,                                                                            \
         .offset = offsetof(type, m.arrivals),                                                             \
         .standard = "poisson",                                                                            \
         .value = "NAME",                                                                                  \
         .choices = "poisson|bursty",                                                                      \
         .help = "How conversations arrive."},                                                             \
        DEMAND_REAL(type, m, rate, 0, 1e9, "0", "R", "Requests per second."),                              \
        DEMAND_REAL(type, m, duration_s, 0, 1e9, "0", "S",                                                 \
                    "No new requests after so many seconds; 0: no end."),                                  \
        DEMAND_INT(type, m, turns, 1, 1000, "1", "N", "Mean turns of a conversation."),                    \
        DEMAND_REAL(type, m, think_s, 0, 1e6, "5", "S", "Mean time between an answer and the next turn."), \
        DEMAND_INT(type, m, prompt_tokens, 1, 1000000, "500", "N",                                         \
                   "Mean tokens that a turn adds to its prompt."),                                         \
        DEMAND_INT(type, m, output_tokens, 1, 1000000, "100", "N", "Mean tokens of an answer."),           \
        DEMAND_INT(type, m, system_tokens, 0, 1000000, "0", "N",                                           \
                   "Tokens that every prompt of a tenant begins with."),                                   \
        DEMAND_INT(type, m, choices, 1, 128, "1", "N", "A request asks for one to so many answers."),      \
        DEMAND_INT(type, m, tenants, 1, 1000000, "4", "N", "Tenants."),                                    \
        DEMAND_REAL(type, m, greedy, 0.001, 1e6, "1", "X",                                                 \
                    "The first tenant asks so many times as much as another."),                            \
        DEMAND_REAL(type, m, realtime, 0, 1, "0", "SHARE", "Share of the requests in class realtime."),    \
        DEMAND_REAL(type, m, interactive, 0, 1, "1", "SHARE", "Share in class interactive."),              \
        DEMAND_REAL(type, m, batch, 0, 1, "0", "SHARE", "Share in class batch."),                          \
        DEMAND_INT(type, m, realtime_ms, 1, 1e9, "10000", "MS", "Deadline of a realtime request."),        \
        DEMAND_INT(type, m, interactive_ms, 1, 1e9, "60000", "MS", "Deadline of an interactive request."), \
        DEMAND_INT(type, m, batch_ms, 1, 1e9, "3600000", "MS", "Deadline of a batch request.")

/* The workload of these options. `rate`: requests/s when they name none. */
int demand_open(struct workload **out, const struct demand *d, double rate, uint32_t max_prompt_tokens,
                struct err *err);

#endif
