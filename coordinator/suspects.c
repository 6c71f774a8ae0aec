#include "coordinator/suspects.h"

#include <stdio.h>
#include <string.h>

enum loss_cause loss_cause_of(struct wire_str ended)
{
    static const char *const own[] = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "out of memory"};
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        if (wire_str_is(ended, own[i]))
            return LOSS_OF_ITSELF;
    return LOSS_FROM_OUTSIDE;
}

void suspicion_lost(struct suspicion *s, uint32_t group, uint64_t epoch, uint64_t tokens, bool silent)
{
    if (tokens != s->tokens)
        s->count = 0;
    s->tokens = tokens;
    if (s->count == SUSPECT_LOSSES)
        return;
    s->loss[s->count++] = (struct loss){.group = group, .epoch = epoch, .silent = silent, .alone = s->alone};
}

bool suspicion_learn(struct suspicion *s, uint32_t group, uint64_t epoch, struct wire_str ended)
{
    bool news = false;
    for (uint32_t i = 0; i < s->count; i++) {
        struct loss *l = &s->loss[i];
        if (l->group != group || l->epoch != epoch || l->cause != LOSS_UNKNOWN)
            continue;
        l->cause = loss_cause_of(ended);
        snprintf(l->ended, sizeof(l->ended), "%.*s", (int)ended.size, ended.data ? ended.data : "");
        news = true;
    }
    return news;
}

enum verdict suspicion_judge(const struct suspicion *s)
{
    uint32_t own = 0, unknown = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct loss *l = &s->loss[i];
        if (l->alone && l->cause == LOSS_OF_ITSELF)
            return VERDICT_REFUSE;
        own += l->cause == LOSS_OF_ITSELF;
        unknown += l->cause == LOSS_UNKNOWN && !l->silent;
    }
    if (s->count >= SUSPECT_LOSSES)
        return VERDICT_GIVE_UP;
    if (unknown > 0 && own + unknown >= SUSPECT_DEATHS)
        return VERDICT_HOLD;
    return own >= SUSPECT_DEATHS ? VERDICT_ALONE : VERDICT_GO;
}
