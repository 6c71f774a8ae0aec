/* What the leaders of worker groups send: hello, heartbeat, bye, token, done, error. Every message but hello
 * counts only under the group's current epoch and from the connection that introduced it (I5). */
#include "coordinator/dispatch_internal.h"

#include <stdio.h>

#include "common/clock.h"
#include "common/log.h"

/* The scheduler hears of the first token and then of every so many. */
#define PROGRESS_TOKENS 16

/* So many of a message are told in halves: ZeroMQ's thread encrypts and sends one, and the client wakes,
 * while the other is made. */
#define HALVED_TOKENS 32

void dispatch_ready(struct dispatch *d, const struct group *g)
{
    struct scheduler_group_info info = {.model = g->model,
                                        .max_sequences = (uint32_t)g->max_sequences,
                                        .kv_tokens = g->pages * g->page_tokens,
                                        .numeric = g->numeric};
    scheduler_group_ready(d->scheduler, g->slot, &info);
    snapshot_restore(d, g);
    log_info("cluster", "group %s of worker %s is ready: epoch %llu, model %s, %u stages, %llu sequences%s%s",
             g->name, g->peer.name, (unsigned long long)g->epoch, g->model, g->stage_count,
             (unsigned long long)g->max_sequences, g->ended[0] ? "; the job before it ended with " : "",
             g->ended);
}

void dispatch_hello(struct dispatch *d, const struct peer *from, const struct wire_hello *in)
{
    struct err err = {0};
    struct group *g;
    bool was_live, forgotten;
    uint64_t now_ms = clock_now_ms();
    struct wire_error about = {.group = in->group, .epoch = in->epoch};
    if (!router_allows(d->router, from)) {
        log_warn("cluster", "audit: refused group %.*s: the key of worker %s was revoked",
                 (int)in->group.size, in->group.data, from->name);
        dispatch_audit(d, "refused", from->name, "group %.*s: its key was revoked", (int)in->group.size,
                       in->group.data);
        about.code = 401;
        router_refuse(d->router, from, &about, "key \"%s\" is not authorized any more", from->name);
        return;
    }
    if (scheduler_draining(d->scheduler)) {
        about.code = 409; /* not its fault: no strike */
        router_refuse(d->router, from, &about, "the coordinator is draining and takes no new groups");
        return;
    }
    if (cluster_hello(d->cluster, from, in, now_ms, &g, &was_live, &forgotten, &err) != 0) {
        log_warn("cluster", "audit: refused group %.*s of worker %s: %s", (int)in->group.size, in->group.data,
                 from->name, err.message);
        dispatch_audit(d, "refused", from->name, "group %.*s: %d %s", (int)in->group.size, in->group.data,
                       err.code, err.message);
        about.code = (uint64_t)err.code;
        router_refuse(d->router, from, &about, "%s", err.message);
        return;
    }
    if (was_live)
        scheduler_group_gone(d->scheduler, g->slot, now_ms);
    if (forgotten) {
        scheduler_group_forget(d->scheduler, g->slot);
        dispatch_group_forgotten(d, cluster_forgotten(d->cluster));
    }
    dispatch_group_changed(d, g, 0, &err);
    if (g->ended_epoch)
        dispatch_learn(d, g);
    if (g->state == GROUP_HELD) {
        dispatch_ready(d, g);
        scheduler_group_draining(d->scheduler, g->slot, true);
        log_info("cluster", "group %s stays held: it gets no work", g->name);
    } else if (g->state == GROUP_RESTING)
        log_warn("cluster",
                 "group %s of worker %s is back: epoch %llu; it was lost %u times soon after it came, and "
                 "rests for %llu ms",
                 g->name, from->name, (unsigned long long)g->epoch, g->lost_soon,
                 (unsigned long long)(g->rests_until_ms - now_ms));
    else
        dispatch_ready(d, g);
    struct wire_message m;
    wire_init(&m, WIRE_WELCOME);
    m.welcome.group = wire_string(g->name);
    m.welcome.epoch = g->epoch;
    m.welcome.lease_ms = d->options.lease_ms;
    m.welcome.heartbeat_ms = d->options.heartbeat_ms;
    if (router_send(d->router, from, &m) != ROUTER_SENT)
        dispatch_group_lost(d, g, "its welcome could not be sent");
}

/* The group that `from` speaks for, or NULL after the frame was refused. */
static struct group *current(struct dispatch *d, const struct peer *from, const char *what,
                             struct wire_str name, uint64_t epoch, struct wire_str request)
{
    struct err err = {0};
    if (name.size == 0) {
        router_refuse(d->router, from, &(struct wire_error){.code = 400, .request = request},
                      "%s: group: a worker must name its group and epoch", what);
        return NULL;
    }
    struct group *g = cluster_current(d->cluster, from, name, epoch, &err);
    if (!g)
        router_refuse(d->router, from,
                      &(struct wire_error){
                          .code = (uint64_t)err.code, .request = request, .group = name, .epoch = epoch},
                      "%s: %s", what, err.message);
    return g;
}

/* The group was told to leave by whoever runs it: others take what it runs, as far as they have room. */
static void drains(struct dispatch *d, struct group *g)
{
    if (g->state != GROUP_READY && g->state != GROUP_HELD)
        return;
    log_info("cluster", "group %s drains: its %u sequences go on elsewhere where there is room", g->name,
             scheduler_assigned(d->scheduler, g->slot));
    cluster_draining(g);
    scheduler_group_draining(d->scheduler, g->slot, true);
}

/* It lives and does not move: its epoch ends. It drops its work when it hears so, and says hello again when a
 * canary has come through its ranks. */
static void stuck(struct dispatch *d, const struct peer *from, struct group *g,
                  const struct wire_heartbeat *in)
{
    char why[256];
    snprintf(why, sizeof(why), "no progress for %llu ms: %.*s", (unsigned long long)in->stuck_ms,
             (int)in->stuck.size, in->stuck.data ? in->stuck.data : "");
    dispatch_group_silent(d, g, why);
    router_refuse(d->router, from, &(struct wire_error){.code = 409, .group = in->group, .epoch = in->epoch},
                  "heartbeat: %s", why);
}

/* Its key is not authorized any more: its epoch ends, and it cannot begin another. */
static void revoked(struct dispatch *d, const struct peer *from, struct group *g,
                    const struct wire_heartbeat *in)
{
    log_warn("cluster", "audit: the key of worker %s was revoked", from->name);
    dispatch_audit(d, "revoked", from->name, "group %s ends", g->name);
    dispatch_group_lost(d, g, "its key was revoked");
    router_refuse(d->router, from, &(struct wire_error){.code = 409, .group = in->group, .epoch = in->epoch},
                  "heartbeat: key \"%s\" is not authorized any more", from->name);
}

void dispatch_heartbeat(struct dispatch *d, const struct peer *from, const struct wire_heartbeat *in)
{
    uint32_t suppressed;
    uint64_t now_ms = clock_now_ms();
    struct group *g = current(d, from, "heartbeat", in->group, in->epoch, (struct wire_str){NULL, 0});
    if (!g)
        return;
    if (!cluster_heartbeat(d->cluster, g, in, now_ms)) {
        if (throttle_allows(&d->stale_log, now_ms, 10, &suppressed))
            log_warn("cluster", "group %s: ignored heartbeat %llu after %llu", g->name,
                     (unsigned long long)in->sequence, (unsigned long long)g->sequence);
        return;
    }
    if (!router_allows(d->router, from)) {
        revoked(d, from, g, in);
        return;
    }
    if (in->stuck_ms >= d->options.progress_ms) {
        stuck(d, from, g, in);
        return;
    }
    if (in->draining)
        drains(d, g);
    scheduler_group_link(d->scheduler, g->slot, g->round_trip_us);
    struct wire_message m;
    wire_init(&m, WIRE_LEASE);
    m.lease.group = wire_string(g->name);
    m.lease.epoch = g->epoch;
    m.lease.sequence = in->sequence;
    if (router_send(d->router, from, &m) == ROUTER_GONE)
        dispatch_group_lost(d, g, "it closed its connection");
}

void dispatch_bye(struct dispatch *d, const struct peer *from, const struct wire_bye *in)
{
    struct group *g = current(d, from, "bye", in->group, in->epoch, (struct wire_str){NULL, 0});
    if (!g)
        return;
    char why[200];
    snprintf(why, sizeof(why), "it said bye: %.*s", (int)in->reason.size,
             in->reason.data ? in->reason.data : "");
    dispatch_group_lost(d, g, why);
}

/* The live request that group g speaks of; NULL when g does not hold it (late, or never its own). */
static struct request *held(struct dispatch *d, const struct group *g, const char *what, struct wire_str id)
{
    struct request *q = requests_of_group(d->requests, id);
    if (q && q->group == g->slot && q->epoch == g->epoch)
        return q;
    uint32_t suppressed;
    if (throttle_allows(&d->stale_log, clock_now_ms(), 10, &suppressed))
        log_warn("dispatch",
                 "group %s: ignored %s of request %.*s, which it does not hold (%u not logged before)",
                 g->name, what, (int)id.size, id.data, suppressed);
    return NULL;
}

/* Something that the group said did not arrive, or it is sick: either way its word is no good any more. Its
 * epoch ends, and its requests go on elsewhere behind what did arrive. */
static void mistrust(struct dispatch *d, const struct peer *from, struct group *g, const struct request *q,
                     const char *what)
{
    char why[256];
    snprintf(why, sizeof(why), "request %s: %s", q->id, what);
    struct wire_error about = {.code = 409, .group = wire_string(g->name), .epoch = g->epoch};
    dispatch_group_lost(d, g, why);
    router_refuse(d->router, from, &about, "%s", why);
}

/* Takes a token of the group into its request's log: that request, whose readers are to be told; NULL when
 * there is nothing to tell them. */
static struct request *take_token(struct dispatch *d, const struct peer *from, struct group *g,
                                  const struct wire_token *in)
{
    if (g->state == GROUP_LOST)
        return NULL; /* by the token before */
    struct request *q = held(d, g, "a token", in->request);
    if (!q || q->outcome != OUTCOME_NONE)
        return NULL; /* its client has its outcome already; the group was told to cancel */
    struct err err;
    uint32_t suppressed;
    switch (request_token(q, in, &err)) {
    case REQUEST_TOKEN_LOGGED:
        if (in->index == 0)
            scheduler_first_token(d->scheduler, q->slot, clock_now_us() - q->accepted_us);
        if (q->suspicion.count && request_token_count(q) > q->suspicion.tokens) {
            suspicion_clear(&q->suspicion);
            dispatch_cleared(d, q);
            scheduler_shared(d->scheduler, q->slot);
        }
        if (in->index % PROGRESS_TOKENS == 0)
            scheduler_progress(d->scheduler, q->slot, in->index + 1);
        return q;
    case REQUEST_TOKEN_DUPLICATE:
        if (throttle_allows(&d->token_log, clock_now_ms(), 10, &suppressed))
            log_warn("dispatch",
                     "group %s: dropped token %llu of request %s, which came before (%u not logged)", g->name,
                     (unsigned long long)in->index, q->id, suppressed);
        break;
    case REQUEST_TOKEN_MISSING:
        mistrust(d, from, g, q, err.message);
        break;
    case REQUEST_TOKEN_BROKEN:
        log_warn("dispatch", "group %s, request %s: %s", g->name, q->id, err.message);
        dispatch_fail(d, q, 500, err.message);
        break;
    }
    return NULL;
}

void dispatch_token(struct dispatch *d, const struct peer *from, const struct wire_token *in)
{
    struct group *g = current(d, from, "token", in->group, in->epoch, in->request);
    struct request *q = g ? take_token(d, from, g, in) : NULL;
    if (q)
        dispatch_flush(d, q);
}

/* The requests that a message brought tokens for: NULL when there is nothing (more) to do for one. */
struct told {
    struct request *requests[WIRE_MAX_TOKENS];
    bool left[WIRE_MAX_TOKENS]; /* something may be left to tell of it, or it is over */
    uint32_t count;
};

/* Requests of one client, each with the one token that it is to be told next. */
struct parcel {
    struct request *requests[WIRE_MAX_TOKENS];
    uint32_t places[WIRE_MAX_TOKENS]; /* in struct told */
    struct wire_token items[WIRE_MAX_TOKENS];
    uint32_t count;
};

/* Adds the request's next message when it is a token that goes to this client alone; not its first one, which
 * says more than an item can hold. */
static void pack(struct parcel *p, const struct peer *client, struct request *q, uint32_t place)
{
    struct request_message m;
    if (q->packed || q->reader_count != 1 || q->readers[0].gone || q->readers[0].stalled_ms ||
        q->readers[0].credit == 0 || !peer_equal(&q->readers[0].client, client))
        return;
    if (!request_next(q, &q->readers[0], &m) || m.wire.type != WIRE_TOKEN || m.wire.token.index == 0 ||
        m.wire.token.piece.size || m.wire.token.top_count || m.wire.token.logprob != 0)
        return;
    q->packed = true; /* the next one of it follows by itself */
    p->requests[p->count] = q;
    p->places[p->count] = place;
    p->items[p->count++] = m.wire.token;
}

/* Whether its one reader, who was sent a token just now, has all there is of it. */
static bool told_all(const struct request *q)
{
    return q->sampling.n == 1 && q->outcome == OUTCOME_NONE && !q->choices[0].ended &&
           q->readers[0].cursors[0].sent == q->choices[0].token_count;
}

/* Sends them as one message when they are more than one. What is not sent stays for dispatch_flush. */
static void send_parcel(struct dispatch *d, const struct peer *client, struct parcel *p, struct told *t)
{
    struct wire_message m;
    struct request_message sent; /* large: of a token nothing else is looked at */
    wire_init(&m, WIRE_TOKENS);
    m.tokens.items = p->items;
    m.tokens.item_count = p->count;
    bool gone_out = p->count > 1 && router_send(d->router, client, &m) == ROUTER_SENT;
    sent.wire.type = WIRE_TOKEN;
    for (uint32_t i = 0; i < p->count; i++) {
        struct request *q = p->requests[i];
        q->packed = false;
        sent.wire.token = p->items[i];
        if (!gone_out)
            continue;
        request_sent(q, &q->readers[0], &sent);
        t->left[p->places[i]] = !told_all(q);
    }
}

/* What goes to the client of request `first`, and to it alone, in one message. */
static void tell_client(struct dispatch *d, struct told *t, uint32_t first)
{
    struct peer client = t->requests[first]->readers[0].client;
    struct parcel p; /* large: not cleared */
    p.count = 0;
    for (uint32_t i = first; i < t->count; i++)
        if (t->requests[i])
            pack(&p, &client, t->requests[i], i);
    send_parcel(d, &client, &p, t);
    for (uint32_t i = first; p.count > 1 && i < t->count; i++) {
        struct request *q = t->requests[i];
        if (q && q->reader_count == 1 && peer_equal(&q->readers[0].client, &client))
            t->requests[i] = NULL;
    }
}

/* Takes tokens of the group into their requests' logs, and tells who reads them. */
static void take_and_tell(struct dispatch *d, const struct peer *from, struct group *g,
                          const struct wire_token *items, uint32_t count)
{
    struct told t;
    bool all = true;
    for (t.count = 0; t.count < count; t.count++) {
        t.requests[t.count] = take_token(d, from, g, &items[t.count]);
        t.left[t.count] = true;
        all &= t.requests[t.count] != NULL;
    }
    for (uint32_t i = 0; !all && i < t.count; i++) /* a broken one may have ended others */
        t.requests[i] = requests_of_group(d->requests, items[i].request);
    for (uint32_t i = 0; i < t.count; i++)
        if (t.requests[i] && t.requests[i]->reader_count == 1)
            tell_client(d, &t, i);
    for (uint32_t i = 0; i < t.count; i++) {
        struct request *q = t.left[i] ? requests_of_group(d->requests, items[i].request) : NULL;
        if (q)
            dispatch_flush(d, q);
    }
}

void dispatch_tokens(struct dispatch *d, const struct peer *from, const struct wire_tokens *in)
{
    struct group *g = current(d, from, "tokens", in->group, in->epoch, (struct wire_str){NULL, 0});
    if (!g)
        return;
    uint32_t first = in->item_count < HALVED_TOKENS ? in->item_count : in->item_count / 2;
    requests_ahead(d->requests, in->items, in->item_count);
    take_and_tell(d, from, g, in->items, first);
    if (first < in->item_count)
        take_and_tell(d, from, g, in->items + first, in->item_count - first);
}

/* The group lets go of the request: its sequence is free. */
static void release(struct dispatch *d, struct request *q)
{
    q->group = REQUEST_NO_GROUP;
    scheduler_finished(d->scheduler, q->slot);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What the request took, all its choices together: they ran side by side over one prompt. A group may say
 * anything, and its tenant pays for it: no more counts than a sequence there can have had. */
static void report_usage(struct dispatch *d, const struct request *q)
{
    struct scheduler_usage usage = {0};
    uint64_t most_us = clock_now_us() - q->accepted_us;
    for (uint64_t i = 0; i < q->sampling.n; i++) {
        const struct wire_done *done = &q->choices[i].done;
        uint64_t prefill_us = least(done->prefill_us, most_us), decode_us = least(done->decode_us, most_us);
        usage.prompt_tokens = least(done->prompt_tokens, q->place_context);
        usage.output_tokens += least(done->completion_tokens, q->max_tokens + 1);
        usage.prefill_us = prefill_us > usage.prefill_us ? prefill_us : usage.prefill_us;
        usage.decode_us = decode_us > usage.decode_us ? decode_us : usage.decode_us;
    }
    /* The others find what the first computed. */
    usage.cached_tokens = least(q->choices[0].done.cached_tokens, usage.prompt_tokens);
    if (q->again) /* its last group's times are not those of all its tokens */
        usage.prefill_us = usage.decode_us = 0;
    scheduler_used(d->scheduler, q->slot, &usage);
}

void dispatch_done(struct dispatch *d, const struct peer *from, const struct wire_done *in)
{
    struct group *g = current(d, from, "done", in->group, in->epoch, in->request);
    struct request *q = g ? held(d, g, "done", in->request) : NULL;
    if (!q)
        return;
    if (q->outcome == OUTCOME_NONE && request_lacks(q, in)) {
        char what[128];
        snprintf(what, sizeof(what), "it says it generated %llu tokens, %llu came",
                 (unsigned long long)in->completion_tokens,
                 (unsigned long long)q->choices[in->choice].token_count);
        mistrust(d, from, g, q, what);
        return;
    }
    bool over = request_done(q, in);
    if (over && !dispatch_store_outcome(d, q))
        dispatch_count_outcome(d, q);
    if (over && q->outcome == OUTCOME_ERROR)
        log_warn("dispatch", "group %s, request %s: %s", g->name, q->id, q->error_message);
    if (request_let_go(q) && q->yielding && q->outcome == OUTCOME_NONE) {
        request_waits_again(q);
        scheduler_yielded(d->scheduler, q->slot);
    } else if (request_let_go(q)) {
        report_usage(d, q);
        release(d, q);
    } else if (over) { /* what it said of one choice was wrong: it need not go on with the others */
        scheduler_ending(d->scheduler, q->slot);
        dispatch_cancel_at_group(d, q);
    }
    dispatch_flush(d, q);
}

/* The group drains, and the request crossed the word of it: it never began there. */
static void refused(struct dispatch *d, struct group *g, struct request *q)
{
    bool yields = q->yielding, leaves = q->cancelled && !yields;
    drains(d, g);
    request_waits_again(q);
    if (leaves) /* whether it was to make room before or not */
        dispatch_cancel_waiting(d, q);
    else if (yields)
        scheduler_yielded(d->scheduler, q->slot);
    else
        scheduler_unassign(d->scheduler, q->slot);
}

void dispatch_error(struct dispatch *d, const struct peer *from, const struct wire_error *in)
{
    struct group *g = current(d, from, "error", in->group, in->epoch, in->request);
    if (!g)
        return;
    if (in->request.size == 0) {
        log_warn("cluster", "group %s: error %llu: %.*s", g->name, (unsigned long long)in->code,
                 (int)in->message.size, in->message.data);
        return;
    }
    struct request *q = held(d, g, "an error", in->request);
    if (!q)
        return;
    if (in->code == 503 && q->outcome == OUTCOME_NONE) {
        refused(d, g, q);
        return;
    }
    if (request_error(q, (int)in->code, "%.*s", (int)in->message.size, in->message.data))
        d->failed++;
    release(d, q);
    dispatch_flush(d, q);
}
