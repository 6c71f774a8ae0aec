/* What clients send: generate, cancel, status. */
#include "coordinator/dispatch_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

/* In which groups that live come back to a coordinator that was started again. */
#define SETTLE_MS 2000

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const struct wire_bias *)a)->id, y = ((const struct wire_bias *)b)->id;
    return x < y ? -1 : x > y;
}

static int check_biases(const struct wire_sampling *s, struct err *err)
{
    struct wire_bias sorted[WIRE_MAX_BIASES];
    if (s->bias_count)
        memcpy(sorted, s->logit_bias, s->bias_count * sizeof(*sorted));
    qsort(sorted, s->bias_count, sizeof(*sorted), by_id);
    for (uint32_t i = 1; i < s->bias_count; i++)
        if (sorted[i].id == sorted[i - 1].id)
            return err_set_code(err, 400, "logit_bias: token %llu is named twice, expected each id once",
                                (unsigned long long)sorted[i].id);
    return 0;
}

/* What no single field shows. */
static int check_asked(const struct wire_generate *in, struct err *err)
{
    const struct wire_sampling *s = &in->sampling;
    if (s->top_logprobs && !s->logprobs)
        return err_set_code(err, 400, "top_logprobs: %llu, expected 0 without logprobs",
                            (unsigned long long)s->top_logprobs);
    uint64_t each = s->logprobs ? 1 + s->top_logprobs : 1, records = s->n * in->max_tokens * each;
    if (records > REQUEST_MAX_RECORDS)
        return err_set_code(err, 400,
                            "n x max_tokens x (1 + top_logprobs): %llu x %llu x %llu, expected at most %u",
                            (unsigned long long)s->n, (unsigned long long)in->max_tokens,
                            (unsigned long long)each, REQUEST_MAX_RECORDS);
    return check_biases(s, err);
}

/* An idempotent id that is known: true when that is the answer, good or bad. *q may be gone. */
static bool join(struct dispatch *d, const struct peer *from, const struct wire_generate *in)
{
    struct err err;
    uint8_t digest[REQUEST_DIGEST];
    struct request *q = requests_of_key(d->requests, from->name, in->request, clock_now_us());
    if (!q || (q->outcome != OUTCOME_NONE && (q->outcome == OUTCOME_ERROR || request_was_cancelled(q))))
        return false; /* what failed is tried anew */
    request_digest(in, digest);
    bool same = memcmp(digest, q->digest, sizeof(digest)) == 0 &&
                (!in->sampling.has_seed || in->sampling.seed == q->sampling.seed);
    if (!same && q->outcome != OUTCOME_NONE)
        return false;
    if (!same) {
        err_set_code(&err, 409, "request %s is live and asks for something else", q->client_request);
        dispatch_reject(d, from, in->request, &err, 0);
        return true;
    }
    if (!request_join(q, from, in, &err)) {
        dispatch_reject(d, from, in->request, &err, err.code == 409 ? 0 : DISPATCH_REJOIN_MS);
        return true;
    }
    log_debug("dispatch", "request %s of client %s is %s another connection", q->id, from->name,
              q->kept ? "replayed to" : "joined by");
    request_reader_of(q, from)->unaccepted = true;
    dispatch_flush(d, q);
    return true;
}

static int check_delivered(const struct wire_generate *in, struct err *err)
{
    if (in->delivered_count && !in->sampling.has_seed)
        return err_set_code(err, 400, "delivered: expected the seed beside it that was in force (accepted)");
    return 0;
}

/* Behind a restart groups come back one after the other: a stream that one class began does not go on in
 * another only because that was there first. */
static int check_settled(const struct dispatch *d, const struct wire_generate *in, struct err *err)
{
    if (!in->delivered_count || !in->numeric || clock_now_ms() >= d->started_ms + SETTLE_MS ||
        cluster_has_numeric(d->cluster, in->numeric))
        return 0;
    return err_set_code(err, 503, "no group of the stream's numeric class has come back yet: try again");
}

static int submit(struct dispatch *d, struct request *q, const struct wire_generate *in, uint64_t now_us,
                  struct scheduler_admission *admission, struct err *err)
{
    uint64_t timeout_ms = in->timeout_ms ? in->timeout_ms : d->options.request_timeout_ms;
    struct prefix_key prefix;
    struct scheduler_submission submission = {.request = q->slot,
                                              .model = q->model,
                                              .tenant = q->client.name,
                                              .class = q->class,
                                              .bytes = q->prompt_bytes,
                                              .choices = (uint32_t)q->sampling.n,
                                              .max_tokens = q->max_tokens,
                                              .exact = q->sampling.ignore_eos && q->sampling.stop_count == 0,
                                              .deadline_ms = now_us / 1000 + timeout_ms,
                                              .numeric = q->again ? q->numeric : 0,
                                              .prefix = &prefix};
    prefix_key_make(&prefix, prefix_salt(q->client.name), q->prompt, q->prompt_bytes);
    return scheduler_submit(d->scheduler, &submission, now_us / 1000, admission, err);
}

void dispatch_generate(struct dispatch *d, const struct peer *from, const struct wire_generate *in)
{
    struct err err;
    if (check_asked(in, &err) || check_delivered(in, &err)) {
        dispatch_reject(d, from, in->request, &err, 0);
        return;
    }
    if (in->idempotent && join(d, from, in))
        return;
    if (dispatch_is_poison(d, from, in, &err)) {
        log_warn("dispatch", "audit: a request of client %s is refused: %s", from->name, err.message);
        dispatch_audit(d, "poison", from->name, "%s", err.message);
        dispatch_reject(d, from, in->request, &err, 0);
        return;
    }
    if (check_settled(d, in, &err)) {
        dispatch_reject(d, from, in->request, &err, DISPATCH_REJOIN_MS);
        return;
    }
    if (!dispatch_may_promise(d, in, &err)) {
        dispatch_reject(d, from, in->request, &err, DISPATCH_RETRY_MS);
        return;
    }
    struct wire_generate asked = *in;
    if (!asked.sampling.has_seed) {
        asked.sampling.has_seed = true;
        asked.sampling.seed = clock_entropy() >> 11; /* 53 bits: every JSON reader keeps them */
    }
    uint64_t now_us = clock_now_us();
    struct request *q = requests_add(d->requests, from, &asked, now_us, &err);
    if (!q) {
        dispatch_reject(d, from, in->request, &err, err.code == 429 ? DISPATCH_RETRY_MS : 0);
        return;
    }
    q->class = SCHEDULER_INTERACTIVE;
    for (uint32_t c = 0; c < ARRAY_LEN(scheduler_standard_classes); c++)
        if (wire_str_is(in->class, scheduler_standard_classes[c].name))
            q->class = c;
    struct scheduler_admission admission;
    if (submit(d, q, in, now_us, &admission, &err) != 0) {
        requests_remove(d->requests, q);
        dispatch_reject(d, from, in->request, &err, admission.retry_after_ms);
        return;
    }
    d->accepted++;
    log_debug("dispatch", "request %s of client %s: %u prompt bytes, up to %llu tokens", q->id, from->name,
              q->prompt_bytes, (unsigned long long)q->max_tokens);
    /* As the first message of its stream: a client that is behind with others hears of it when it reads
     * again. */
    uint32_t slot = q->slot;
    q->readers[0].unaccepted = true;
    q->readers[0].queued = admission.queued;
    dispatch_flush(d, q);
    if (requests_at(d->requests, slot)) /* its client may have left */
        dispatch_recall(d, q, in);
}

void dispatch_cancel_waiting(struct dispatch *d, struct request *q)
{
    request_done_unserved(q);
    d->cancelled++;
    q->waits = false;
    scheduler_finished(d->scheduler, q->slot);
    dispatch_flush(d, q);
}

void dispatch_cancel(struct dispatch *d, const struct peer *from, const struct wire_cancel *in)
{
    struct request *q = requests_of_client(d->requests, from, in->request);
    if (!q || q->outcome != OUTCOME_NONE)
        return; /* it crossed the outcome on the wire; a second outcome would break I1 */
    if (!q->waits) {
        request_yields_no_more(q);      /* it was to make room: it leaves altogether */
        dispatch_cancel_at_group(d, q); /* the group's `done` will say what came out until then */
        dispatch_flush(d, q);
        return;
    }
    dispatch_cancel_waiting(d, q);
}

void dispatch_credit(struct dispatch *d, const struct peer *from, const struct wire_credit *in)
{
    struct request *q = requests_of_client(d->requests, from, in->request);
    struct request_reader *reader = q ? request_reader_of(q, from) : NULL;
    if (!reader)
        return; /* it crossed the outcome on the wire */
    request_credit(reader, in->tokens);
    dispatch_flush(d, q);
}

void dispatch_revoked(struct dispatch *d, const struct peer *from, const struct wire_message *m)
{
    struct err err;
    uint32_t suppressed;
    err_set_code(&err, 401, "the key of client %s is not authorized any more", from->name);
    if (throttle_allows(&d->revoked_log, clock_now_ms(), 10, &suppressed)) {
        log_warn("dispatch", "audit: refused %s of client %s: its key was revoked", wire_type_name(m->type),
                 from->name);
        dispatch_audit(d, "refused", from->name, "%s: its key was revoked", wire_type_name(m->type));
    }
    if (m->type == WIRE_GENERATE)
        dispatch_reject(d, from, m->generate.request, &err, 0);
    else
        router_refuse(d->router, from, &(struct wire_error){.code = 401}, "%s", err.message);
}

/* ---- status ---- */
static void fill_stages(struct wire_group_status *out, const struct group *g)
{
    out->stage_count = g->stage_count;
    out->stages = xcalloc(g->stage_count ? g->stage_count : 1, sizeof(*out->stages));
    for (uint32_t i = 0; i < g->stage_count; i++)
        out->stages[i] = (struct wire_stage){.first_layer = g->stages[i].first_layer,
                                             .last_layer = g->stages[i].last_layer,
                                             .tensor = g->stages[i].tensor,
                                             .pid = g->stages[i].pid,
                                             .busy_us = g->stages[i].busy_us,
                                             .wait_us = g->stages[i].wait_us,
                                             .bubble_us = g->stages[i].bubble_us,
                                             .processor_us = g->stages[i].processor_us,
                                             .host = wire_string(g->stages[i].host)};
}

/* Of two counters, as large as one may be said to be: a worker may say anything. */
static uint64_t sum_of(uint64_t a, uint64_t b)
{
    return a + b < INT64_MAX ? a + b : INT64_MAX;
}

static void fill_group(struct dispatch *d, struct wire_group_status *out, const struct group *g,
                       uint64_t now_ms)
{
    *out = (struct wire_group_status){.group = wire_string(g->name),
                                      .state = wire_string(group_state_name(g->state)),
                                      .model = wire_string(g->model),
                                      .weights = wire_string(g->weights),
                                      .kernels = wire_string(g->kernels),
                                      .kv_type = wire_string(g->kv_type),
                                      .epoch = g->epoch,
                                      .tensor = g->tensor,
                                      .max_sequences = g->max_sequences,
                                      .context = g->context,
                                      .pages = g->pages,
                                      .pages_used = g->pages_used,
                                      .pages_cached = g->pages_cached,
                                      .prefix_queries = g->prefix_queries,
                                      .prefix_hits = g->prefix_hits,
                                      .preemptions = g->preemptions,
                                      .drafted_tokens = g->drafted_tokens,
                                      .accepted_tokens = g->accepted_tokens,
                                      .running = g->running,
                                      .waiting = g->waiting,
                                      .assigned = scheduler_assigned(d->scheduler, g->slot),
                                      .steps = g->steps,
                                      .tokens_generated = g->tokens_generated,
                                      .heartbeat_age_ms = now_ms - g->heard_ms,
                                      .round_trip_us = g->round_trip_us,
                                      .load_ms = g->load_ms};
    for (uint32_t i = 0; i < g->stage_count; i++) {
        out->stage_busy_us = sum_of(out->stage_busy_us, g->stages[i].busy_us);
        out->stage_wait_us = sum_of(out->stage_wait_us, g->stages[i].wait_us);
        out->stage_bubble_us = sum_of(out->stage_bubble_us, g->stages[i].bubble_us);
    }
}

static uint32_t fill_settings(const struct dispatch *d, struct wire_setting out[SCHEDULER_SETTINGS])
{
    struct scheduler_setting in[SCHEDULER_SETTINGS];
    scheduler_settings(d->scheduler, in);
    for (int i = 0; i < SCHEDULER_SETTINGS; i++)
        out[i] = (struct wire_setting){.name = wire_string(in[i].name),
                                       .value = in[i].value,
                                       .low = in[i].low,
                                       .high = in[i].high,
                                       .automatic = in[i].automatic};
    return SCHEDULER_SETTINGS;
}

void dispatch_status(struct dispatch *d, const struct peer *from, const struct wire_status *in)
{
    uint64_t now_ms = clock_now_ms();
    struct wire_message m;
    wire_init(&m, WIRE_STATUS_REPLY);
    struct wire_status_reply *s = &m.status_reply;
    s->version = wire_string(LEPTON_VERSION);
    s->uptime_ms = now_ms - d->started_ms;
    s->queued = scheduler_queued(d->scheduler);
    s->queue_limit = d->options.limits.queue_requests;
    s->live = scheduler_live(d->scheduler);
    s->accepted_total = d->accepted;
    s->completed_total = d->completed;
    s->failed_total = d->failed;
    s->cancelled_total = d->cancelled;
    s->rejected_total = d->rejected;
    s->bad_frames_total = router_bad_frames(d->router);
    s->refused_peers_total = router_refused_peers(d->router);
    s->draining = scheduler_draining(d->scheduler);
    s->processor = wire_string(affinity_state(d->options.affinity));
    struct wire_setting settings[SCHEDULER_SETTINGS];
    s->settings = settings;
    s->setting_count = fill_settings(d, settings);
    uint32_t slots = cluster_slots(d->cluster), stages = 0;
    s->groups = xcalloc(slots ? slots : 1, sizeof(*s->groups));
    for (uint32_t i = 0; i < slots; i++) {
        const struct group *g = cluster_group(d->cluster, i);
        if (!g || g->remembered)
            continue;
        struct wire_group_status *out = &s->groups[s->group_count++];
        fill_group(d, out, g, now_ms);
        if (in->verbose && stages + g->stage_count <= WIRE_MAX_REPLY_STAGES) {
            fill_stages(out, g);
            stages += out->stage_count;
        }
    }
    router_send(d->router, from, &m); /* lost only when the client does not read: it may ask again */
    for (uint32_t i = 0; i < s->group_count; i++)
        free(s->groups[i].stages);
    free(s->groups);
}
