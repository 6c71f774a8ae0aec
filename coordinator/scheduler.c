#include "coordinator/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_BYTES 129

enum state { FREE, QUEUED, RUNNING, ENDING, LOST };

/* An entry is in at most one list: the queue (QUEUED) or the lost ones (LOST). */
struct entry {
    enum state state;
    uint32_t previous, next;
    uint32_t group; /* RUNNING, ENDING */
    uint64_t bytes;
    uint64_t submitted_ms, deadline_ms;
    char model[MODEL_BYTES]; /* empty: the only one served */
};

struct list {
    uint32_t first, last, count;
};

struct group {
    bool known;     /* was ready once and is not forgotten: its model exists */
    bool live;      /* may hold requests */
    bool accepting; /* may be given more */
    char name[WIRE_MAX_ID + 1];
    char model[MODEL_BYTES];
    uint64_t gone_ms; /* when it was last live */
    struct balancer_group view;
};

struct scheduler {
    struct scheduler_limits limits;
    struct balancer balancer;
    struct entry *entries;             /* [live_requests] */
    struct group *groups;              /* [groups] */
    struct balancer_group *candidates; /* [groups], scratch of one assignment */
    uint32_t group_end;                /* groups at or above were never known */
    struct list queue, lost;
    uint32_t live;
    uint64_t bytes;
    bool assignable; /* something changed since no request could be assigned */
    bool draining;
    uint64_t drain_deadline_ms;
    uint64_t due_ms; /* a lower bound of the next deadline of any entry */
};

struct scheduler *scheduler_new(const struct scheduler_limits *limits, const struct balancer_policy *policy)
{
    ASSERT(limits->live_requests > 0 && limits->groups > 0 && limits->queue_requests > 0);
    struct scheduler *s = xcalloc(1, sizeof(*s));
    s->limits = *limits;
    balancer_init(&s->balancer, policy);
    s->entries = xcalloc(limits->live_requests, sizeof(*s->entries));
    s->groups = xcalloc(limits->groups, sizeof(*s->groups));
    s->candidates = xcalloc(limits->groups, sizeof(*s->candidates));
    s->queue = s->lost = (struct list){SCHEDULER_NONE, SCHEDULER_NONE, 0};
    s->due_ms = SCHEDULER_NEVER;
    return s;
}

void scheduler_free(struct scheduler **s)
{
    if (!*s)
        return;
    free((*s)->entries);
    free((*s)->groups);
    free((*s)->candidates);
    free(*s);
    *s = NULL;
}

/* ---- lists through the entries ---- */
static void list_append(struct scheduler *s, struct list *l, uint32_t request)
{
    struct entry *e = &s->entries[request];
    e->previous = l->last;
    e->next = SCHEDULER_NONE;
    if (l->last == SCHEDULER_NONE)
        l->first = request;
    else
        s->entries[l->last].next = request;
    l->last = request;
    l->count++;
}

static void list_prepend(struct scheduler *s, struct list *l, uint32_t request)
{
    struct entry *e = &s->entries[request];
    e->previous = SCHEDULER_NONE;
    e->next = l->first;
    if (l->first == SCHEDULER_NONE)
        l->last = request;
    else
        s->entries[l->first].previous = request;
    l->first = request;
    l->count++;
}

static void list_remove(struct scheduler *s, struct list *l, uint32_t request)
{
    struct entry *e = &s->entries[request];
    if (e->previous == SCHEDULER_NONE)
        l->first = e->next;
    else
        s->entries[e->previous].next = e->next;
    if (e->next == SCHEDULER_NONE)
        l->last = e->previous;
    else
        s->entries[e->next].previous = e->previous;
    l->count--;
}

static struct entry *entry_at(struct scheduler *s, uint32_t request)
{
    ASSERT(request < s->limits.live_requests);
    return &s->entries[request];
}

static struct group *group_at(struct scheduler *s, uint32_t group)
{
    ASSERT(group < s->limits.groups);
    return &s->groups[group];
}

/* Takes the entry out of whatever it is in. */
static void entry_leave(struct scheduler *s, uint32_t request)
{
    struct entry *e = &s->entries[request];
    switch (e->state) {
    case QUEUED:
        list_remove(s, &s->queue, request);
        break;
    case LOST:
        list_remove(s, &s->lost, request);
        break;
    case RUNNING:
    case ENDING:
        ASSERT(s->groups[e->group].view.assigned > 0);
        s->groups[e->group].view.assigned--;
        s->assignable = true;
        break;
    case FREE:
        break;
    }
}

static void entry_free(struct scheduler *s, uint32_t request)
{
    struct entry *e = entry_at(s, request);
    ASSERT(e->state != FREE);
    entry_leave(s, request);
    s->bytes -= e->bytes;
    s->live--;
    e->state = FREE;
}

/* ---- models ---- */
/* Is there a live group for this model; when not, since when. Empty: any group. */
static bool model_served(const struct scheduler *s, const char *model, uint64_t *absent_since_ms)
{
    *absent_since_ms = 0;
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (!g->known || (model[0] && strcmp(g->model, model) != 0))
            continue;
        if (g->live)
            return true;
        if (g->gone_ms > *absent_since_ms)
            *absent_since_ms = g->gone_ms;
    }
    return false;
}

/* The one model that live groups serve; "" when there is none; NULL when there are several. */
static const char *only_model(const struct scheduler *s)
{
    const char *only = "";
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (!g->live)
            continue;
        if (only[0] && strcmp(only, g->model) != 0)
            return NULL;
        only = g->model;
    }
    return only;
}

/* A name is wrong only when groups have been seen and none of them ever served it: while a cluster starts, a
 * request may wait for its model. */
static bool model_known(const struct scheduler *s, const char *model)
{
    bool any = false;
    for (uint32_t i = 0; i < s->group_end; i++) {
        if (!s->groups[i].known)
            continue;
        any = true;
        if (strcmp(s->groups[i].model, model) == 0)
            return true;
    }
    return !any;
}

/* ---- events of requests ---- */
static int admit(const struct scheduler *s, const struct scheduler_submission *in, struct err *err)
{
    if (s->draining)
        return err_set_code(err, 503, "the coordinator is draining and takes no new requests");
    if (strlen(in->model) >= MODEL_BYTES)
        return err_set_code(err, 404, "no group serves a model with a name of %zu bytes", strlen(in->model));
    if (in->model[0] && !model_known(s, in->model))
        return err_set_code(err, 404, "no group serves model \"%s\"", in->model);
    if (!in->model[0] && !only_model(s))
        return err_set_code(err, 400, "several models are served: name one of them");
    if (in->bytes > s->limits.prompt_bytes)
        return err_set_code(err, 413, "the prompt has %llu bytes, at most %llu are taken",
                            (unsigned long long)in->bytes, (unsigned long long)s->limits.prompt_bytes);
    if (s->queue.count >= s->limits.queue_requests || s->live >= s->limits.live_requests)
        return err_set_code(err, 429, "the queue is full: %u requests wait", s->queue.count);
    if (in->bytes > s->limits.prompt_bytes - s->bytes)
        return err_set_code(err, 429, "the queue is full: its prompts hold %llu of %llu bytes",
                            (unsigned long long)s->bytes, (unsigned long long)s->limits.prompt_bytes);
    return 0;
}

static void due_at(struct scheduler *s, uint64_t ms)
{
    if (ms < s->due_ms)
        s->due_ms = ms;
}

int scheduler_submit(struct scheduler *s, const struct scheduler_submission *in, uint64_t now_ms,
                     uint64_t *queued, struct err *err)
{
    if (admit(s, in, err) != 0)
        return -1;
    struct entry *e = entry_at(s, in->request);
    ASSERT(e->state == FREE);
    *queued = s->queue.count;
    *e = (struct entry){.state = QUEUED,
                        .group = SCHEDULER_NONE,
                        .bytes = in->bytes,
                        .submitted_ms = now_ms,
                        .deadline_ms = in->deadline_ms};
    /* "The only model" is settled at the door where it can be: a second model that comes later changes
     * nothing for those who wait. */
    snprintf(e->model, sizeof(e->model), "%s", in->model[0] ? in->model : only_model(s));
    list_append(s, &s->queue, in->request);
    s->live++;
    s->bytes += in->bytes;
    s->assignable = true;
    due_at(s, in->deadline_ms);
    due_at(s, now_ms + s->limits.group_wait_ms);
    return 0;
}

void scheduler_finished(struct scheduler *s, uint32_t request)
{
    entry_free(s, request);
}

void scheduler_ending(struct scheduler *s, uint32_t request)
{
    struct entry *e = entry_at(s, request);
    ASSERT(e->state == RUNNING || e->state == ENDING || e->state == LOST);
    if (e->state == RUNNING)
        e->state = ENDING;
}

void scheduler_unassign(struct scheduler *s, uint32_t request)
{
    struct entry *e = entry_at(s, request);
    ASSERT(e->state == RUNNING || e->state == LOST);
    entry_leave(s, request);
    e->state = QUEUED;
    e->group = SCHEDULER_NONE;
    list_prepend(s, &s->queue, request);
    s->assignable = true;
    due_at(s, 0); /* its deadline, or the drain, may have come meanwhile */
}

/* ---- events of groups ---- */
void scheduler_group_ready(struct scheduler *s, uint32_t group, const struct scheduler_group_info *info)
{
    struct group *g = group_at(s, group);
    ASSERT(!g->live && g->view.assigned == 0);
    *g = (struct group){.known = true, .live = true, .accepting = true};
    snprintf(g->name, sizeof(g->name), "%s", info->name);
    snprintf(g->model, sizeof(g->model), "%s", info->model);
    g->view = (struct balancer_group){
        .group = group, .name = g->name, .max_sequences = info->max_sequences, .pages = info->pages};
    if (group >= s->group_end)
        s->group_end = group + 1;
    s->assignable = true;
}

void scheduler_group_load(struct scheduler *s, uint32_t group, uint64_t pages_used)
{
    group_at(s, group)->view.pages_used = pages_used;
}

void scheduler_group_draining(struct scheduler *s, uint32_t group)
{
    group_at(s, group)->accepting = false;
}

void scheduler_group_gone(struct scheduler *s, uint32_t group, uint64_t now_ms)
{
    struct group *g = group_at(s, group);
    if (!g->live)
        return;
    for (uint32_t i = 0; i < s->limits.live_requests && g->view.assigned > 0; i++) {
        struct entry *e = &s->entries[i];
        if ((e->state == RUNNING || e->state == ENDING) && e->group == group) {
            entry_leave(s, i);
            e->state = LOST;
            list_append(s, &s->lost, i);
        }
    }
    ASSERT(g->view.assigned == 0);
    g->live = g->accepting = false;
    g->gone_ms = now_ms;
    due_at(s, now_ms + s->limits.group_wait_ms);
}

void scheduler_group_forget(struct scheduler *s, uint32_t group)
{
    struct group *g = group_at(s, group);
    ASSERT(!g->live);
    *g = (struct group){0};
}

void scheduler_drain(struct scheduler *s, uint64_t deadline_ms)
{
    s->draining = true;
    s->drain_deadline_ms = deadline_ms;
    due_at(s, 0); /* the queue is emptied at the next step */
}

/* ---- what to do now ---- */
struct output {
    struct scheduler_action *actions;
    size_t count, max;
};

static bool output_full(const struct output *out)
{
    return out->count == out->max;
}

/* Ends a request: at once when no group holds it, else when its group confirms. */
static void end(struct scheduler *s, struct output *out, uint32_t request, int code, const char *reason)
{
    struct entry *e = &s->entries[request];
    bool held = e->state == RUNNING;
    out->actions[out->count++] = (struct scheduler_action){.kind = SCHEDULER_END,
                                                           .request = request,
                                                           .group = held ? e->group : SCHEDULER_NONE,
                                                           .code = code,
                                                           .reason = reason};
    if (held)
        e->state = ENDING;
    else
        entry_free(s, request);
}

/* When and why this entry ends though nothing happens to it; SCHEDULER_NEVER for those that are ending. */
static uint64_t entry_due(const struct scheduler *s, const struct entry *e, int *code, const char **reason)
{
    *code = 408;
    *reason = NULL;
    if (e->state != QUEUED && e->state != RUNNING)
        return SCHEDULER_NEVER;
    uint64_t due = e->deadline_ms, absent_since;
    *reason = e->state == QUEUED ? "the deadline passed in the queue" : "the deadline passed while it ran";
    if (e->state == QUEUED && !model_served(s, e->model, &absent_since)) {
        uint64_t from = absent_since > e->submitted_ms ? absent_since : e->submitted_ms;
        if (from + s->limits.group_wait_ms < due) {
            due = from + s->limits.group_wait_ms;
            *code = 503;
            *reason = "no group is ready";
        }
    }
    if (s->draining && (e->state == QUEUED || s->drain_deadline_ms < due)) {
        due = e->state == QUEUED ? 0 : s->drain_deadline_ms;
        *code = 503;
        *reason = "the coordinator is draining";
    }
    return due;
}

/* Ends what is due and finds the next due time. */
static void step_deadlines(struct scheduler *s, uint64_t now_ms, struct output *out)
{
    if (now_ms < s->due_ms)
        return;
    uint64_t next = SCHEDULER_NEVER;
    for (uint32_t i = 0; i < s->limits.live_requests; i++) {
        int code;
        const char *reason;
        uint64_t due = entry_due(s, &s->entries[i], &code, &reason);
        if (due <= now_ms) {
            if (output_full(out))
                return; /* due_ms stays in the past: the next call goes on */
            end(s, out, i, code, reason);
        } else if (due < next) {
            next = due;
        }
    }
    s->due_ms = next;
}

static int choose_group(struct scheduler *s, const char *model)
{
    size_t count = 0;
    for (uint32_t i = 0; i < s->group_end; i++) {
        const struct group *g = &s->groups[i];
        if (g->accepting && strcmp(g->model, model) == 0)
            s->candidates[count++] = g->view;
    }
    int chosen = balancer_choose(&s->balancer, s->candidates, count);
    return chosen < 0 ? -1 : (int)s->candidates[chosen].group;
}

static bool any_group_free(const struct scheduler *s)
{
    for (uint32_t i = 0; i < s->group_end; i++)
        if (s->groups[i].accepting && s->balancer.policy->eligible(&s->groups[i].view))
            return true;
    return false;
}

static void assign(struct scheduler *s, struct output *out, uint32_t request, uint32_t group)
{
    struct entry *e = &s->entries[request];
    list_remove(s, &s->queue, request);
    e->state = RUNNING;
    e->group = group;
    s->groups[group].view.assigned++;
    out->actions[out->count++] =
        (struct scheduler_action){.kind = SCHEDULER_ASSIGN, .request = request, .group = group};
    due_at(s, e->deadline_ms);
}

/* First come, first served within a model; a model without a free group does not hold up another's. */
static void step_assign(struct scheduler *s, struct output *out)
{
    if (!s->assignable || s->draining)
        return;
    const char *full[8]; /* models found without a free group in this step */
    size_t full_count = 0;
    uint32_t next;
    for (uint32_t i = s->queue.first; i != SCHEDULER_NONE; i = next) {
        struct entry *e = &s->entries[i];
        next = e->next;
        if (output_full(out))
            return;
        if (!e->model[0]) { /* submitted before any group came */
            const char *only = only_model(s);
            if (!only) {
                end(s, out, i, 400, "several models are served: name one of them");
                continue;
            }
            snprintf(e->model, sizeof(e->model), "%s", only);
        }
        bool known_full = false;
        for (size_t f = 0; f < full_count; f++)
            known_full |= strcmp(full[f], e->model) == 0;
        int group = known_full ? -1 : choose_group(s, e->model);
        if (group >= 0)
            assign(s, out, i, (uint32_t)group);
        else if (!any_group_free(s))
            break;
        else if (!known_full && full_count < ARRAY_LEN(full))
            full[full_count++] = e->model;
    }
    s->assignable = false;
}

size_t scheduler_step(struct scheduler *s, uint64_t now_ms, struct scheduler_action *actions, size_t max)
{
    struct output out = {.actions = actions, .max = max};
    while (s->lost.first != SCHEDULER_NONE && !output_full(&out))
        end(s, &out, s->lost.first, 502, "its group was lost");
    if (!output_full(&out))
        step_deadlines(s, now_ms, &out);
    if (!output_full(&out))
        step_assign(s, &out);
    return out.count;
}

uint64_t scheduler_due_ms(const struct scheduler *s)
{
    if (s->lost.count > 0 || (s->assignable && s->queue.count > 0 && !s->draining))
        return 0;
    return s->due_ms;
}

uint32_t scheduler_queued(const struct scheduler *s)
{
    return s->queue.count;
}

uint32_t scheduler_live(const struct scheduler *s)
{
    return s->live;
}

uint64_t scheduler_bytes(const struct scheduler *s)
{
    return s->bytes;
}

uint32_t scheduler_assigned(const struct scheduler *s, uint32_t group)
{
    return s->groups[group].view.assigned;
}

bool scheduler_draining(const struct scheduler *s)
{
    return s->draining;
}
