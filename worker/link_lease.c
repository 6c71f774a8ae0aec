/* The epoch and its lease: how a group comes to serve, stays, and stops before its work is given away. */
#include "worker/link_internal.h"

#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"

#define HELLO_UNSENT_MS  500  /* no connection yet */
#define HELLO_RETRY_MS   2000 /* sent, not answered: each hello that arrives ends the epoch before it */
#define HELLO_REFUSED_MS 1000
#define CANARY_LOOK_MS   200  /* while none came through: it ends the wait at once */
#define STUCK_TOLD_MS    1000 /* steps may take as long */
/* The group's lease is shorter by this part: a late wake-up of its thread costs nothing. */
#define LEASE_MARGIN 8

static void send_hello(struct link *l, uint64_t now_ms)
{
    struct wire_message m;
    wire_init(&m, WIRE_HELLO);
    m.hello = l->o.hello;
    m.hello.epoch = l->last_epoch;
    m.hello.incarnation = l->incarnation;
    bool sent = link_send(l, &m);
    l->next_hello_ms = now_ms + (sent ? HELLO_RETRY_MS : HELLO_UNSENT_MS);
    l->unsent = !sent;
    if (sent && !l->greeted_ms)
        l->greeted_ms = now_ms;
}

static void send_heartbeat(struct link *l, uint64_t now_ms)
{
    struct serve_stats stats = mailbox_stats(l->o.mailbox);
    struct wire_message m;
    char stuck[WATCHDOG_MOST_TEXT];
    uint64_t stuck_ms = canary_stuck_ms(&l->canary, stuck);
    wire_init(&m, WIRE_HEARTBEAT);
    m.heartbeat = (struct wire_heartbeat){.group = link_group(l),
                                          .epoch = l->epoch,
                                          .sequence = ++l->sequence,
                                          .steps = stats.steps,
                                          .running = stats.running,
                                          .waiting = stats.waiting,
                                          .pages_used = stats.pages_used,
                                          .pages_cached = stats.pages_cached,
                                          .prefix_queries = stats.prefix_queries,
                                          .prefix_hits = stats.prefix_hits,
                                          .preemptions = stats.preemptions,
                                          .drafted_tokens = stats.drafted_tokens,
                                          .accepted_tokens = stats.accepted_tokens,
                                          .tokens_generated = stats.tokens_generated,
                                          .round_trip_us = 1000 * l->round_trip_ms,
                                          .draining = l->draining};
    struct wire_stage_time times[WIRE_MAX_STAGES];
    m.heartbeat.times = times;
    m.heartbeat.time_count = (uint32_t)stats.stages;
    for (int32_t i = 0; i < stats.stages; i++)
        times[i] = (struct wire_stage_time){.busy_us = stats.stage[i].busy_us,
                                            .wait_us = stats.stage[i].wait_us,
                                            .bubble_us = stats.stage[i].bubble_us,
                                            .processor_us = stats.stage[i].processor_us};
    if (stuck_ms >= STUCK_TOLD_MS) {
        m.heartbeat.stuck_ms = stuck_ms;
        m.heartbeat.stuck = wire_string_mend(stuck, sizeof(stuck) - 1);
    }
    l->sent_ms[l->sequence % HEARTBEATS_KEPT] = now_ms;
    link_send(l, &m);
    l->next_heartbeat_ms = now_ms + l->heartbeat_ms;
}

/* Drops all work of the epoch: nothing of it may be shown any more. */
static void drop_work(struct link *l)
{
    struct command c = {.kind = COMMAND_CANCEL_ALL};
    mailbox_send(l->o.mailbox, &c);
    live_drop_all(&l->live);
    canary_void(&l->canary);
    token_batch_drop(&l->batch);
    l->epoch = 0;
    l->lost = false;
}

static void reconnect(struct link *l)
{
    struct err err;
    l->greeted_ms = 0;
    zmq_close(l->socket);
    if (link_open_socket(l, &err))
        die("%s", err.message);
    l->next_hello_ms = clock_now_ms() + 100;
}

static void fence(struct link *l, const char *why)
{
    log_warn("link", "group %.*s fences itself (epoch %llu): %s", (int)l->o.hello.group.size,
             l->o.hello.group.data, (unsigned long long)l->epoch, why);
    drop_work(l);
    link_clear_backlog(&l->backlog);
    reconnect(l);
}

bool link_current(const struct link *l, struct wire_str group, uint64_t epoch)
{
    return l->epoch && epoch == l->epoch && wire_str_equal(group, link_group(l));
}

void link_take_welcome(struct link *l, const struct wire_welcome *w, uint64_t now_ms)
{
    /* Epochs only grow: another welcome comes from a past that is over (I5). */
    if (!wire_str_equal(w->group, link_group(l)) || w->epoch <= l->last_epoch)
        return;
    if (l->epoch)
        drop_work(l); /* the coordinator began anew with us: what ran under the old epoch is gone there */
    l->epoch = l->last_epoch = w->epoch;
    l->lease_ms = w->lease_ms - w->lease_ms / LEASE_MARGIN;
    l->heartbeat_ms = w->heartbeat_ms;
    /* From when the hello was sent, for the coordinator counts from before this welcome arrived. Which of
     * several hellos it answers is not known: the first is the safe guess. */
    l->lease_until_ms = (l->greeted_ms ? l->greeted_ms : now_ms) + l->lease_ms;
    l->greeted_ms = 0;
    l->next_heartbeat_ms = now_ms;
    l->refused_logged = false;
    log_info("link", "group %.*s serves under epoch %llu, lease %llu ms", (int)w->group.size, w->group.data,
             (unsigned long long)w->epoch, (unsigned long long)w->lease_ms);
}

void link_take_lease(struct link *l, const struct wire_lease *lease)
{
    if (lease->sequence > l->sequence || l->sequence - lease->sequence >= HEARTBEATS_KEPT)
        return;
    uint64_t sent_ms = l->sent_ms[lease->sequence % HEARTBEATS_KEPT], until = sent_ms + l->lease_ms;
    l->round_trip_ms = clock_now_ms() - sent_ms;
    if (until > l->lease_until_ms)
        l->lease_until_ms = until;
}

void link_take_error(struct link *l, const struct wire_error *e, uint64_t now_ms)
{
    if (e->request.size || (l->epoch && e->epoch && e->epoch != l->epoch))
        return;
    if (!l->refused_logged)
        log_warn("link", "coordinator refuses: %llu %.*s", (unsigned long long)e->code, (int)e->message.size,
                 e->message.data);
    l->refused_logged = true;
    if (l->epoch && e->code == 409) {
        fence(l, "the coordinator does not know this epoch");
    } else if (!l->epoch) {
        l->greeted_ms = 0;
        l->next_hello_ms = now_ms + HELLO_REFUSED_MS;
    }
}

void link_keep_time(struct link *l)
{
    uint64_t now_ms = clock_now_ms();
    if (l->epoch && now_ms >= l->lease_until_ms)
        fence(l, "the lease ended: the coordinator did not answer in time");
    if (l->epoch && l->lost)
        fence(l, "a message about a request could not be sent");
    if (l->epoch && now_ms >= l->next_heartbeat_ms)
        send_heartbeat(l, now_ms);
    if (l->epoch)
        canary_ping(&l->canary, now_ms);
    if (!l->epoch && l->greeted_ms && now_ms >= l->greeted_ms + SILENCE_MS)
        reconnect(l);
    if (!l->epoch && !l->draining && now_ms >= l->next_hello_ms) {
        if (canary_passed(&l->canary, now_ms))
            send_hello(l, now_ms);
        else
            l->next_hello_ms = now_ms + CANARY_LOOK_MS;
    }
}

long link_next_timeout(const struct link *l)
{
    uint64_t now_ms = clock_now_ms();
    if (l->backlog.count)
        return 0;
    uint64_t next =
        l->epoch ? (l->next_heartbeat_ms < l->lease_until_ms ? l->next_heartbeat_ms : l->lease_until_ms)
                 : l->next_hello_ms;
    if (!l->epoch && l->draining)
        return 1000;
    return next > now_ms ? (long)(next - now_ms) : 0;
}
