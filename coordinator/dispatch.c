#include "coordinator/dispatch.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/dispatch_internal.h"

/* How often a client that does not read is tried again. */
#define STALL_RETRY_MS 50
/* Messages of a stream that a client takes in stall_timeout_ms, or it does not read. */
#define STALL_LEAST 16
/* After the drain's deadline, errors and cancels get this long to leave. */
#define DRAIN_GRACE_MS 1000

struct dispatch *dispatch_new(struct router *router, const struct dispatch_options *options)
{
    struct dispatch *d = xcalloc(1, sizeof(*d));
    d->options = *options;
    d->router = router;
    d->cluster = cluster_new(options->limits.groups, options->lease_ms);
    d->scheduler = scheduler_new(&options->limits, options->policy);
    d->requests = requests_new(options->limits.live_requests, &options->keep);
    d->poisons = poisons_new(options->suspect_ms);
    scheduler_settings(d->scheduler, d->configured);
    d->snapshot = snapshot_open(options->prefix_snapshot);
    d->started_ms = clock_now_ms();
    return d;
}

void dispatch_free(struct dispatch **d)
{
    if (!*d)
        return;
    cluster_free(&(*d)->cluster);
    scheduler_free(&(*d)->scheduler);
    requests_free(&(*d)->requests);
    poisons_free(&(*d)->poisons);
    snapshot_close(&(*d)->snapshot);
    free(*d);
    *d = NULL;
}

/* ---- requests ---- */
static void remove_if_over(struct dispatch *d, struct request *q)
{
    if (!request_over(q))
        return;
    dispatch_unheld(d, q);
    for (uint32_t i = 0; i < q->reader_count; i++)
        d->stalled -= q->readers[i].stalled_ms != 0;
    requests_leave(d->requests, q, clock_now_us());
}

void dispatch_count_outcome(struct dispatch *d, const struct request *q)
{
    if (q->outcome == OUTCOME_ERROR && q->error_code != 499) /* 499: its client left */
        d->failed++;
    else if (q->outcome == OUTCOME_ERROR || request_was_cancelled(q))
        d->cancelled++;
    else
        d->completed++;
}

void dispatch_cancel_at_group(struct dispatch *d, struct request *q)
{
    if (q->group == REQUEST_NO_GROUP || q->cancelled)
        return;
    q->cancelled = true;
    struct group *g = cluster_group(d->cluster, q->group);
    if (!g || g->state == GROUP_LOST || g->epoch != q->epoch)
        return; /* it lost the request together with its epoch */
    struct wire_message m;
    wire_init(&m, WIRE_CANCEL);
    m.cancel.request = wire_string(q->id);
    m.cancel.group = wire_string(g->name);
    m.cancel.epoch = g->epoch;
    if (router_send(d->router, &g->peer, &m) != ROUTER_SENT)
        dispatch_group_lost(d, g, "it cannot be reached");
}

/* Nobody will hear any more of this request: what is done for it ends. */
static void abandon(struct dispatch *d, struct request *q, int code, const char *why)
{
    if (q->outcome != OUTCOME_NONE)
        return;
    request_error(q, code, "%s", why);
    dispatch_count_outcome(d, q);
    if (q->waits) {
        scheduler_finished(d->scheduler, q->slot);
        q->waits = false;
    } else {
        scheduler_ending(d->scheduler, q->slot);
        dispatch_cancel_at_group(d, q);
    }
}

/* Everything that a connection read that is no more. `but` is left to the caller. */
static void client_left(struct dispatch *d, const struct peer *client, const struct request *but)
{
    struct peer gone = *client;
    uint32_t count = 0;
    for (uint32_t i = 0; i < requests_slots(d->requests); i++) {
        struct request *q = requests_any(d->requests, i);
        struct request_reader *reader = q ? request_reader_of(q, &gone) : NULL;
        if (!reader)
            continue;
        count++;
        reader->gone = true;
        if (!request_is_read(q))
            abandon(d, q, 499, "the client left");
        if (q != but)
            remove_if_over(d, q);
    }
    if (count > 0)
        log_info("dispatch", "client %s left with %u live requests", gone.name, count);
}

static void flush_reader(struct dispatch *d, struct request *q, struct request_reader *reader)
{
    struct request_message m;
    while (request_next(q, reader, &m)) {
        bool waits = m.wire.type == WIRE_TOKEN && reader->credit == 0;
        enum router_sent sent = waits ? ROUTER_FULL : router_send(d->router, &reader->client, &m.wire);
        if (sent == ROUTER_GONE) {
            client_left(d, &reader->client, q);
            break;
        }
        if (sent == ROUTER_FULL) {
            if (!reader->stalled_ms) {
                reader->stalled_ms = clock_now_ms();
                reader->taken = 0;
                d->stalled++;
            }
            return;
        }
        reader->taken++;
        request_sent(q, reader, &m);
    }
    if (reader->stalled_ms) {
        reader->stalled_ms = 0;
        d->stalled--;
    }
}

void dispatch_flush(struct dispatch *d, struct request *q)
{
    for (uint32_t i = 0; i < q->reader_count; i++)
        flush_reader(d, q, &q->readers[i]);
    remove_if_over(d, q);
}

void dispatch_fail(struct dispatch *d, struct request *q, int code, const char *message)
{
    if (request_error(q, code, "%s", message))
        dispatch_count_outcome(d, q);
    if (q->waits) {
        q->waits = false;
        scheduler_finished(d->scheduler, q->slot);
    } else if (q->group != REQUEST_NO_GROUP) {
        scheduler_ending(d->scheduler, q->slot);
        dispatch_cancel_at_group(d, q);
    }
    dispatch_flush(d, q);
}

/* ---- groups ---- */
void dispatch_group_lost(struct dispatch *d, struct group *g, const char *why)
{
    struct err err;
    if (g->state == GROUP_LOST)
        return;
    log_warn("cluster", "group %s (epoch %llu, %u sequences) is gone: %s", g->name,
             (unsigned long long)g->epoch, scheduler_assigned(d->scheduler, g->slot), why);
    cluster_lost(g, clock_now_ms());
    dispatch_group_changed(d, g, 0, &err);
    scheduler_group_gone(d->scheduler, g->slot, clock_now_ms());
}

void dispatch_group_silent(struct dispatch *d, struct group *g, const char *why)
{
    g->silent = true;
    dispatch_group_lost(d, g, why);
}

/* Inside a group the classes stand apart as well: 250 levels each. */
static uint64_t group_priority(const struct request *q)
{
    int64_t p = (int64_t)q->service.priority + 250 * ((int64_t)q->class - SCHEDULER_INTERACTIVE);
    return p < 0 ? 0 : p > 1000 ? 1000 : (uint64_t)p;
}

static bool send_assign(struct dispatch *d, struct request *q, struct group *g)
{
    struct wire_message m;
    wire_init(&m, WIRE_ASSIGN);
    m.assign.group = wire_string(g->name);
    m.assign.epoch = g->epoch;
    m.assign.request = wire_string(q->id);
    m.assign.prompt = (struct wire_str){q->prompt, q->prompt_bytes};
    m.assign.max_tokens = q->max_tokens;
    m.assign.no_bos = q->no_bos;
    m.assign.special = q->special;
    m.assign.sampling = q->sampling;
    m.assign.service = q->service;
    m.assign.service.priority = group_priority(q);
    m.assign.tenant = wire_string(q->client.name);
    struct wire_delivered delivered[WIRE_MAX_CHOICES];
    uint32_t *ids;
    m.assign.context = q->context;
    m.assign.delivered = delivered;
    m.assign.delivered_count = request_delivered(q, delivered, &ids);
    bool sent = router_send(d->router, &g->peer, &m) == ROUTER_SENT;
    free(ids);
    return sent;
}

static void act_assign(struct dispatch *d, const struct scheduler_action *action)
{
    struct request *q = requests_at(d->requests, action->request);
    struct group *g = cluster_group(d->cluster, action->group);
    ASSERT(q && g);
    if (g->state == GROUP_READY && send_assign(d, q, g)) {
        struct request_place place = {.group = g->slot,
                                      .epoch = g->epoch,
                                      .name = g->name,
                                      .model = g->model,
                                      .stage_count = g->stage_count,
                                      .numeric = g->numeric,
                                      .context = g->context};
        request_assigned(q, &place, clock_now_us());
        if (q->moves)
            log_info("dispatch", "request %s goes on at group %s, behind %llu tokens%s", q->id, g->name,
                     (unsigned long long)request_token_count(q),
                     q->mixed ? ": it is of another numeric class" : "");
        else
            log_debug("dispatch", "request %s goes to group %s", q->id, g->name);
        return;
    }
    /* First out of the group's hands, so that its loss does not end a request that it never saw. */
    scheduler_unassign(d->scheduler, action->request);
    dispatch_group_lost(d, g, "it cannot be reached");
}

static void act_end(struct dispatch *d, const struct scheduler_action *action)
{
    struct request *q = requests_at(d->requests, action->request);
    ASSERT(q);
    bool set = action->code == 502
                   ? request_error(q, 502, "group %s was lost while it served the request", q->group_name)
                   : request_error(q, action->code, "%s", action->reason);
    if (set && action->code == 429)
        q->retry_after_ms = DISPATCH_RETRY_MS;
    if (set)
        dispatch_count_outcome(d, q);
    if (action->group == SCHEDULER_NONE) {
        q->waits = false;
        q->group = REQUEST_NO_GROUP;
    } else {
        dispatch_cancel_at_group(d, q);
    }
    dispatch_flush(d, q);
}

static void act_preempt(struct dispatch *d, const struct scheduler_action *action)
{
    struct request *q = requests_at(d->requests, action->request);
    ASSERT(q);
    log_debug("dispatch", "request %s makes room at group %s", q->id, q->group_name);
    q->yielding = !q->cancelled; /* its client's cancel is under way: it leaves altogether */
    dispatch_cancel_at_group(d, q);
}

/* Its group is gone. What was delivered stays; the rest comes from another group. */
static void act_move(struct dispatch *d, const struct scheduler_action *action)
{
    struct request *q = requests_at(d->requests, action->request);
    ASSERT(q && q->outcome == OUTCOME_NONE);
    bool leaves = q->cancelled && !q->yielding; /* its client's cancel was on the way to the group */
    uint32_t group = q->group;
    request_waits_again(q);
    if (leaves)
        dispatch_cancel_waiting(d, q);
    else
        dispatch_moved(d, q, group, q->epoch);
}

/* One action at a time: carrying one out may find that a client or a group is gone, which changes the others.
 */
static void act(struct dispatch *d, uint64_t now_ms)
{
    struct scheduler_action action;
    while (scheduler_step(d->scheduler, now_ms, &action, 1) == 1) {
        if (action.kind == SCHEDULER_ASSIGN)
            act_assign(d, &action);
        else if (action.kind == SCHEDULER_PREEMPT)
            act_preempt(d, &action);
        else if (action.kind == SCHEDULER_MOVE)
            act_move(d, &action);
        else
            act_end(d, &action);
    }
}

/* The client has time to read why, as long again; then it is given up. */
static void cut(struct dispatch *d, struct request *q, struct request_reader *reader, uint64_t now_ms)
{
    if (reader->cut) {
        reader->gone = true;
        return;
    }
    reader->cut = true;
    reader->stalled_ms = now_ms;
    log_warn("dispatch", "request %s of client %s is cut: the client does not read", q->id,
             reader->client.name);
    dispatch_audit(d, "cut", reader->client.name, "request %s: the client does not read", q->client_request);
    if (!request_is_read(q))
        abandon(d, q, 408, "the client did not read");
}

static void retry_stalled(struct dispatch *d, uint64_t now_ms)
{
    for (uint32_t i = 0; d->stalled > 0 && i < requests_slots(d->requests); i++) {
        struct request *q = requests_any(d->requests, i);
        bool stalled = false;
        for (uint32_t k = 0; q && k < q->reader_count; k++) {
            struct request_reader *reader = &q->readers[k];
            stalled |= reader->stalled_ms != 0;
            if (!reader->stalled_ms || now_ms < reader->stalled_ms + d->options.stall_timeout_ms)
                continue;
            if (reader->taken < STALL_LEAST || reader->cut)
                cut(d, q, reader, now_ms);
            reader->stalled_ms = now_ms;
            reader->taken = 0;
        }
        if (stalled)
            dispatch_flush(d, q);
    }
}

/* ---- the turn ---- */
void dispatch_tick(struct dispatch *d)
{
    uint64_t now_ms = clock_now_ms();
    struct group *g;
    while ((g = cluster_expired(d->cluster, now_ms)))
        dispatch_group_silent(d, g, "its lease has ended");
    dispatch_tick_lost(d, now_ms);
    act(d, now_ms);
    dispatch_tick_store(d);
    retry_stalled(d, now_ms);
    dispatch_tick_refusals(d, now_ms);
}

uint64_t dispatch_due_ms(const struct dispatch *d)
{
    uint64_t due = scheduler_due_ms(d->scheduler), lease = cluster_due_ms(d->cluster);
    if (lease < due)
        due = lease;
    uint64_t lost = dispatch_lost_due_ms(d);
    if (lost < due)
        due = lost;
    uint64_t expires_us = requests_expire_due_us(d->requests);
    if (expires_us / 1000 + 1 < due)
        due = expires_us / 1000 + 1;
    if (d->refusal_count > 0 && d->refusals_due_ms < due)
        due = d->refusals_due_ms;
    if (d->stalled > 0 || scheduler_draining(d->scheduler)) {
        uint64_t soon = clock_now_ms() + STALL_RETRY_MS;
        if (soon < due)
            due = soon;
    }
    return due;
}

void dispatch_drain(struct dispatch *d, uint64_t timeout_ms)
{
    d->drain_deadline_ms = clock_now_ms() + timeout_ms;
    dispatch_audit(d, "drain", "coordinator", "it was told to end");
    scheduler_drain(d->scheduler, d->drain_deadline_ms);
    for (uint32_t i = 0; i < cluster_slots(d->cluster); i++) {
        struct group *g = cluster_group(d->cluster, i);
        if (!g || g->state == GROUP_LOST || g->state == GROUP_DRAINING)
            continue;
        cluster_draining(g);
        scheduler_group_draining(d->scheduler, i, false);
        struct wire_message m;
        wire_init(&m, WIRE_DRAIN);
        m.drain.group = wire_string(g->name);
        m.drain.epoch = g->epoch;
        if (router_send(d->router, &g->peer, &m) != ROUTER_SENT)
            dispatch_group_lost(d, g, "it cannot be reached");
    }
}

bool dispatch_drained(const struct dispatch *d)
{
    uint64_t now_ms = clock_now_ms();
    if (requests_count(d->requests) == 0 || now_ms >= d->drain_deadline_ms + DRAIN_GRACE_MS)
        return true;
    if (now_ms < d->drain_deadline_ms)
        return false;
    for (uint32_t i = 0; i < requests_limit(d->requests); i++) { /* groups need not confirm to the end */
        const struct request *q = requests_at(d->requests, i);
        if (q && request_is_read(q))
            return false;
    }
    return true;
}

void dispatch_left(struct dispatch *d, const struct peer *peer)
{
    if (peer->role == CURVE_CLIENT)
        client_left(d, peer, NULL);
    for (uint32_t i = 0; peer->role == CURVE_WORKER && i < cluster_slots(d->cluster); i++) {
        struct group *g = cluster_group(d->cluster, i);
        if (g && g->state != GROUP_LOST && peer_equal(&g->peer, peer))
            dispatch_group_lost(d, g, "it closed its connection");
    }
}

/* ---- messages by sender ---- */
static bool from_client(struct dispatch *d, const struct peer *from, const struct wire_message *m)
{
    bool goes_on = m->type == WIRE_CANCEL || m->type == WIRE_CREDIT;
    if (!goes_on && !router_allows(d->router, from)) {
        dispatch_revoked(d, from, m);
        return true;
    }
    switch (m->type) {
    case WIRE_GENERATE:
        dispatch_generate(d, from, &m->generate);
        return true;
    case WIRE_CANCEL:
        dispatch_cancel(d, from, &m->cancel);
        return true;
    case WIRE_STATUS:
        dispatch_status(d, from, &m->status);
        return true;
    case WIRE_TUNE:
        dispatch_tune(d, from, &m->tune);
        return true;
    case WIRE_CREDIT:
        dispatch_credit(d, from, &m->credit);
        return true;
    case WIRE_HOLD:
        dispatch_hold(d, from, &m->hold);
        return true;
    default:
        return false;
    }
}

static bool from_worker(struct dispatch *d, const struct peer *from, const struct wire_message *m)
{
    switch (m->type) {
    case WIRE_HELLO:
        dispatch_hello(d, from, &m->hello);
        return true;
    case WIRE_HEARTBEAT:
        dispatch_heartbeat(d, from, &m->heartbeat);
        return true;
    case WIRE_BYE:
        dispatch_bye(d, from, &m->bye);
        return true;
    case WIRE_TOKEN:
        dispatch_token(d, from, &m->token);
        return true;
    case WIRE_TOKENS:
        dispatch_tokens(d, from, &m->tokens);
        return true;
    case WIRE_DONE:
        dispatch_done(d, from, &m->done);
        return true;
    case WIRE_ERROR:
        dispatch_error(d, from, &m->error);
        return true;
    default:
        return false;
    }
}

void dispatch_message(struct dispatch *d, const struct router_message *m)
{
    bool handled = m->from.role == CURVE_CLIENT   ? from_client(d, &m->from, &m->wire)
                   : m->from.role == CURVE_WORKER ? from_worker(d, &m->from, &m->wire)
                                                  : false;
    if (!handled)
        router_refuse(d->router, &m->from, &(struct wire_error){.code = 403}, "a %s may not send %s",
                      curve_role_name(m->from.role), wire_type_name(m->wire.type));
}
