/* A small scheduler for its unit tests, and checks of what it does next. It knows what scheduler.h shows and
 * no test of its own. */
#ifndef LEPTON_TESTS_SCHEDULER_BED_H
#define LEPTON_TESTS_SCHEDULER_BED_H

#include "coordinator/scheduler.h"
#include "tests/test.h"

static const struct scheduler_limits limits = {
    .live_requests = 8, .groups = 4, .queue_requests = 4, .prompt_bytes = 1000, .group_wait_ms = 500};

static inline struct scheduler *fresh(void)
{
    return scheduler_new(&limits, &balancer_least_loaded);
}

static inline void ready(struct scheduler *s, uint32_t group, const char *model, uint32_t sequences)
{
    struct scheduler_group_info info = {.model = model, .max_sequences = sequences};
    scheduler_group_ready(s, group, &info);
}

/* Submits with a deadline 10 s ahead; returns 0 or the code of the refusal. */
static inline int submit_for(struct scheduler *s, uint32_t request, const char *model, uint64_t bytes,
                             uint64_t now_ms)
{
    struct err err = {0};
    struct scheduler_admission out;
    struct scheduler_submission in = {
        .request = request, .model = model, .bytes = bytes, .deadline_ms = now_ms + 10000};
    return scheduler_submit(s, &in, now_ms, &out, &err) == 0 ? 0 : err.code;
}

static inline int submit(struct scheduler *s, uint32_t request)
{
    return submit_for(s, request, "", 10, 0);
}

static inline struct scheduler_action only_action(struct scheduler *s, uint64_t now_ms)
{
    struct scheduler_action actions[16] = {{.request = 999}};
    CHECK_INT(scheduler_step(s, now_ms, actions, 16), 1);
    return actions[0];
}

static inline void check_nothing(struct scheduler *s, uint64_t now_ms)
{
    struct scheduler_action actions[16];
    CHECK_INT(scheduler_step(s, now_ms, actions, 16), 0);
}

static inline void check_assigned(struct scheduler *s, uint32_t request, uint32_t group)
{
    struct scheduler_action a = only_action(s, 0);
    CHECK_INT(a.kind, SCHEDULER_ASSIGN);
    CHECK_INT(a.request, request);
    CHECK_INT(a.group, group);
}

static inline void check_ended(struct scheduler *s, uint64_t now_ms, uint32_t request, uint32_t group,
                               int code)
{
    struct scheduler_action a = only_action(s, now_ms);
    CHECK_INT(a.kind, SCHEDULER_END);
    CHECK_INT(a.request, request);
    CHECK_INT(a.group, group);
    CHECK_INT(a.code, code);
}

static inline void check_moved(struct scheduler *s, uint64_t now_ms, uint32_t request)
{
    struct scheduler_action a = only_action(s, now_ms);
    CHECK_INT(a.kind, SCHEDULER_MOVE);
    CHECK_INT(a.request, request);
    CHECK_INT(a.group, SCHEDULER_NONE);
}

static inline void check_two_ended(struct scheduler *s, uint64_t now_ms, int code)
{
    struct scheduler_action a[16];
    CHECK_INT(scheduler_step(s, now_ms, a, 16), 2);
    CHECK(a[0].kind == SCHEDULER_END && a[1].kind == SCHEDULER_END);
    CHECK(a[0].code == code && a[1].code == code && a[0].request != a[1].request);
}

#endif
