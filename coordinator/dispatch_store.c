/* What is made durable, when, and what a client is told once it is.
 *
 * The outcome of an idempotent request is told to its readers when it and the whole log are on the disk: so
 * who has seen the last done may ask again after any crash and gets the same stream. Tokens never wait. */
#include "coordinator/dispatch_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/log.h"

/* Epochs left at which more are asked for. */
#define EPOCHS_LOW  500
#define EPOCHS_MORE 1000

/* Whom a tag is for stands in its upper bits; below them the number of the request ("r17"). */
#define TAG_BITS   60
#define TAG_ANSWER (1ull << TAG_BITS)
#define TAG_EPOCHS (2ull << TAG_BITS)
#define TAG_WAITER (3ull << TAG_BITS)

static uint64_t tag_of(const struct request *q)
{
    return TAG_ANSWER | strtoull(q->id + 1, NULL, 10);
}

bool dispatch_store_outcome(struct dispatch *d, struct request *q)
{
    struct err err = {0};
    struct buffer bytes = {0};
    if (!d->options.store || !requests_keeps(d->requests, q))
        return false;
    request_record(q, &bytes);
    struct store_answer a = {.row = ++d->answers,
                             .owner = q->client.name,
                             .request = q->client_request,
                             .bytes = bytes.data,
                             .size = bytes.size};
    _Static_assert(sizeof(a.digest) == sizeof(q->digest), "one digest");
    memcpy(a.digest, q->digest, sizeof(a.digest));
    q->storing = true;
    q->row = a.row;
    if (store_answer(d->options.store, &a, tag_of(q), &err))
        request_not_stored(q, err.code, err.message);
    return q->storing;
}

static void answer_done(struct dispatch *d, const struct store_done *done)
{
    char id[24];
    snprintf(id, sizeof(id), "r%llu", (unsigned long long)(done->tag - TAG_ANSWER));
    struct request *q = requests_of_group(d->requests, wire_string(id));
    ASSERT(q && q->storing);
    if (done->code) {
        log_warn("dispatch", "request %s of client %s: its outcome is not durable: %s", q->id, q->client.name,
                 done->message);
        request_not_stored(q, done->code, done->message);
    }
    q->storing = false;
    dispatch_count_outcome(d, q);
    dispatch_flush(d, q);
    FAILPOINT("store.told");
}

/* Asks for more epochs before they run out. */
static void more_epochs(struct dispatch *d)
{
    struct err err;
    uint64_t wanted = cluster_epoch_wanted(d->cluster);
    if (d->epochs_asked || wanted + EPOCHS_LOW < d->epoch_ceiling)
        return;
    if (store_epochs(d->options.store, wanted + EPOCHS_MORE, TAG_EPOCHS, &err) == 0)
        d->epochs_asked = wanted + EPOCHS_MORE;
}

static void epochs_done(struct dispatch *d, const struct store_done *done)
{
    if (done->code == 0)
        d->epoch_ceiling = d->epochs_asked;
    d->epochs_asked = 0;
    cluster_epochs(d->cluster, store_run(d->options.store).epoch_floor, d->epoch_ceiling);
}

/* Rows that others can provoke: as many a second, those that are left out are counted in the next. */
#define AUDITS_PER_SECOND 50

void dispatch_audit(struct dispatch *d, const char *kind, const char *who, const char *fmt, ...)
{
    char text[600];
    uint32_t left_out = 0;
    struct err err;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (!d->options.store || !throttle_allows(&d->audit, clock_now_ms(), AUDITS_PER_SECOND, &left_out))
        return;
    if (left_out && n > 0 && (size_t)n < sizeof(text) - 40)
        snprintf(text + n, sizeof(text) - (size_t)n, " (%u rows left out before)", left_out);
    if (store_audit(d->options.store, kind, who, text, 0, &err))
        log_warn("dispatch", "not in the audit log: %s", err.message);
}

int dispatch_audit_durably(struct dispatch *d, uint64_t tag, const char *kind, const char *who,
                           struct err *err, const char *fmt, ...)
{
    char text[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return store_audit(d->options.store, kind, who, text, tag, err);
}

/* Handshakes that were refused: libzmq and the ZAP handler name the peers in the log, here they are counted.
 */
static void audit_refused_peers(struct dispatch *d)
{
    uint64_t now = router_refused_peers(d->router);
    if (now == d->refused_peers)
        return;
    dispatch_audit(d, "refused", "unknown peers", "%llu handshakes",
                   (unsigned long long)(now - d->refused_peers));
    d->refused_peers = now;
}

uint64_t dispatch_waiter_tag(struct dispatch *d)
{
    return TAG_WAITER | ++d->waited;
}

void dispatch_tick_store(struct dispatch *d)
{
    struct store *s = d->options.store;
    struct store_done done;
    struct err err;
    uint64_t row;
    requests_expire(d->requests, clock_now_us());
    while (s && store_next_done(s, &done)) {
        if (done.tag >> TAG_BITS == TAG_ANSWER >> TAG_BITS)
            answer_done(d, &done);
        else if (done.tag == TAG_EPOCHS)
            epochs_done(d, &done);
        else
            dispatch_waiter_done(d, &done);
    }
    if (s) {
        more_epochs(d);
        audit_refused_peers(d);
    }
    while (s && requests_forgotten(d->requests, &row))
        if (store_answer_gone(s, row, &err)) {
            log_warn("dispatch", "an answer that is over stays in the store: %s", err.message);
            break;
        }
}

bool dispatch_may_promise(struct dispatch *d, const struct wire_generate *in, struct err *err)
{
    return !in->idempotent || !d->options.store || !store_is_full(d->options.store, err);
}

/* ---- the beginning of a run ---- */
static void restore_answer(void *context, const struct store_answer *a)
{
    struct dispatch *d = context;
    struct err err = {0};
    struct requests_record record = {.owner = a->owner,
                                     .request = a->request,
                                     .row = a->row,
                                     .age_us = a->age_ms * 1000,
                                     .bytes = a->bytes,
                                     .size = a->size};
    memcpy(record.digest, a->digest, sizeof(record.digest));
    d->answers = a->row > d->answers ? a->row : d->answers;
    if (requests_restore(d->requests, &record, clock_now_us(), &err))
        log_warn("dispatch", "a stored answer is left out: %s", err.message);
}

int dispatch_restore(struct dispatch *d, struct err *err)
{
    struct store *s = d->options.store;
    if (!s)
        return 0;
    struct store_run run = store_run(s);
    d->epoch_ceiling = run.epoch_ceiling;
    cluster_epochs(d->cluster, run.epoch_floor, run.epoch_ceiling);
    if (store_each_answer(s, restore_answer, d, err) || dispatch_remember(d, err) || store_start(s, err))
        return -1;
    log_info("dispatch",
             "run %llu of this store: %u answers, %u groups and %u suspects are known from before",
             (unsigned long long)run.number, requests_kept(d->requests), cluster_slots(d->cluster),
             poisons_count(d->poisons));
    dispatch_audit(d, "begin", "coordinator", "run %llu", (unsigned long long)run.number);
    return 0;
}
