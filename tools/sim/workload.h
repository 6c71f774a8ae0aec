/* workload: what simulated clients ask and when. PURE: everything follows from the seed (or the trace file).
 *
 * Conversations arrive by themselves (Poisson or in bursts); their later turns come a thinking time after the
 * answer, with everything said so far in front. A trace gives every arrival itself. */
#ifndef LEPTON_TOOLS_SIM_WORKLOAD_H
#define LEPTON_TOOLS_SIM_WORKLOAD_H

#include "common/prefix_key.h"
#include "worker/mock/engine.h"

#define WORKLOAD_CLASSES     3
#define WORKLOAD_TOKEN_BYTES 4 /* a simulated token is this long */

enum workload_arrivals { ARRIVALS_POISSON, ARRIVALS_BURSTY };

struct workload_options {
    uint64_t requests, seed;
    double rate; /* requests/s, later turns included */
    enum workload_arrivals arrivals;
    uint32_t tenants;
    double greedy;                        /* tenant 0 asks this many times as much as another */
    double class_share[WORKLOAD_CLASSES]; /* realtime, interactive, batch; their sum counts as one */
    uint64_t deadline_ms[WORKLOAD_CLASSES];
    uint32_t turns; /* mean of a conversation */
    double think_s;
    double prompt_tokens, output_tokens; /* means: of what a turn adds, of an answer */
    uint32_t system_tokens;              /* at the beginning of every prompt of a tenant */
    uint32_t max_prompt_tokens;
    uint32_t choices; /* a request asks for 1 to so many answers; 0: 1 */
};

struct workload_item {
    uint64_t arrival_us, deadline_us; /* deadline_us: after the arrival */
    uint64_t conversation;
    uint32_t tenant, class, turn;
    uint32_t prompt_tokens, output_tokens; /* output_tokens: of each choice */
    uint32_t choices;
    uint32_t system_tokens; /* of the prompt, shared by its tenant's requests */
    const uint64_t *blocks; /* of a trace: names of the prompt's blocks of 512 tokens; borrowed */
    uint32_t block_count;
};

struct workload;
struct workload *workload_new(const struct workload_options *o);
/* Replays a file of JSON lines: {"timestamp" (ms), "input_length", "output_length", "hash_ids"} as Mooncake's
 * traces have it (Qin et al. 2024), or {"arrival_ms", "prompt_tokens", "output_tokens", "tenant", "class",
 * "conversation", "deadline_ms", "n"}, of which only the first three must be there. -1: what is wrong, in
 * which line. o->requests bounds it when not 0. */
int workload_trace(struct workload **out, const struct workload_options *o, const char *path,
                   struct err *err);
void workload_free(struct workload **w);
/* When the next request comes; UINT64_MAX: none is known (one may follow when an answer is done). */
uint64_t workload_due_us(const struct workload *w);
void workload_take(struct workload *w, struct workload_item *out);
/* The answer of this request is complete: its conversation may go on. */
void workload_answered(struct workload *w, const struct workload_item *item, uint64_t now_us);
uint64_t workload_left(const struct workload *w); /* requests that are still to come, at most */
/* The prompt's beginnings, as the coordinator names them by bytes and the engine by tokens. */
void workload_prefix(const struct workload_item *item, struct prefix_key *key,
                     struct engine_place places[ENGINE_PLACES]);
/* The same prompt as text: letters, equal where the names above are equal. Replaces *out. */
void workload_prompt(const struct workload_item *item, struct buffer *out);

#endif
