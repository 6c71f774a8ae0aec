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

/* What its groups died of: of themselves, and what is not known (yet). */
struct deaths {
    uint32_t own, unknown, news; /* news: unknown, and waited for */
};

static struct deaths deaths_of(const struct suspicion *s)
{
    struct deaths d = {0};
    for (uint32_t i = 0; i < s->count; i++) {
        const struct loss *l = &s->loss[i];
        bool unknown = l->cause == LOSS_UNKNOWN && !l->silent;
        d.own += l->cause == LOSS_OF_ITSELF;
        d.unknown += unknown;
        d.news += unknown && !l->waited;
    }
    return d;
}

bool suspicion_is_grave(const struct suspicion *s)
{
    struct deaths d = deaths_of(s);
    return d.own + d.unknown > SUSPECT_DEATHS;
}

void suspicion_waited(struct suspicion *s)
{
    for (uint32_t i = 0; i < s->count; i++)
        s->loss[i].waited |= s->loss[i].cause == LOSS_UNKNOWN;
}

enum verdict suspicion_judge(const struct suspicion *s)
{
    struct deaths d = deaths_of(s);
    for (uint32_t i = 0; i < s->count; i++)
        if (s->loss[i].alone && s->loss[i].cause == LOSS_OF_ITSELF)
            return VERDICT_REFUSE;
    if (s->count >= SUSPECT_LOSSES)
        return VERDICT_GIVE_UP;
    if (d.unknown > 0 && d.own + d.unknown >= SUSPECT_DEATHS && (d.news > 0 || suspicion_is_grave(s)))
        return VERDICT_HOLD;
    return d.own >= SUSPECT_DEATHS ? VERDICT_ALONE : VERDICT_GO;
}
