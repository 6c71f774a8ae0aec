/* What is remembered from one run of the coordinator to the next, beside answers: of groups their epochs, how
 * often they died and whether they are held; of requests under which groups died, what they are suspected of;
 * and which settings were changed at run time. */
#include "coordinator/dispatch_internal.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

static void warn_lost(int code, const char *what, const struct err *err)
{
    if (code)
        log_warn("dispatch", "%s will not outlive this run: %s", what, err->message);
}

/* ---- groups ---- */
int dispatch_group_changed(struct dispatch *d, const struct group *g, uint64_t tag, struct err *err)
{
    uint64_t now_ms = clock_now_ms();
    struct store_group row = {.name = g->name,
                              .epoch = g->epoch,
                              .incarnation = g->incarnation,
                              .lost_soon = g->lost_soon,
                              .lost = g->state == GROUP_LOST,
                              .held = g->held,
                              .age_ms = now_ms - g->ready_ms};
    if (!d->options.store || store_group(d->options.store, &row, tag, err) == 0)
        return 0;
    warn_lost(-1, g->name, err);
    return -1;
}

void dispatch_group_forgotten(struct dispatch *d, const char *name)
{
    struct err err;
    if (d->options.store)
        warn_lost(store_group_gone(d->options.store, name, &err), name, &err);
}

static void remember_group(void *context, const struct store_group *row)
{
    struct dispatch *d = context;
    struct cluster_memory m = {.name = row->name,
                               .epoch = row->epoch,
                               .incarnation = row->incarnation,
                               .lost_soon = row->lost_soon < UINT32_MAX / 2 ? (uint32_t)row->lost_soon : 0,
                               .lost = row->lost,
                               .held = row->held,
                               .age_ms = row->age_ms};
    if (!cluster_remember(d->cluster, &m))
        dispatch_group_forgotten(d, row->name);
}

/* ---- suspects ---- */
static void forget_suspect(struct dispatch *d, const char *owner, const uint8_t digest[REQUEST_DIGEST])
{
    struct err err;
    if (d->options.store)
        warn_lost(store_suspect_gone(d->options.store, owner, digest, &err), "that a request is cleared",
                  &err);
}

static void store_poison(struct dispatch *d, const struct poison *p)
{
    struct err err;
    struct buffer losses = {0};
    if (!d->options.store)
        return;
    poison_record(p, &losses);
    struct store_suspect row = {.owner = p->owner,
                                .tokens = p->tokens,
                                .refused = p->refused,
                                .losses = losses.data,
                                .size = losses.size};
    memcpy(row.digest, p->digest, sizeof(row.digest));
    warn_lost(store_suspect(d->options.store, &row, &err), "what a request is suspected of", &err);
}

static struct poison *put(struct dispatch *d, const struct poison *p, uint64_t age_ms)
{
    struct poison dropped;
    struct poison *at = poisons_put(d->poisons, p, age_ms, clock_now_ms(), &dropped);
    if (dropped.owner[0])
        forget_suspect(d, dropped.owner, dropped.digest);
    return at;
}

void dispatch_suspected(struct dispatch *d, struct request *q, const char *refused)
{
    struct poison p = {.tokens = q->suspicion.tokens};
    for (uint32_t i = 0; i < q->suspicion.count; i++) {
        const struct loss *l = &q->suspicion.loss[i];
        const struct group *g = cluster_group(d->cluster, l->group);
        if (l->cause == LOSS_FROM_OUTSIDE || (l->cause == LOSS_UNKNOWN && l->silent) || !g)
            continue; /* it accuses nobody */
        struct poison_loss *out = &p.loss[p.count++];
        *out = (struct poison_loss){.epoch = l->epoch, .cause = l->cause, .alone = l->alone};
        memcpy(out->group, g->name, sizeof(out->group));
        memcpy(out->ended, l->ended, sizeof(out->ended));
    }
    if (p.count == 0) {
        dispatch_cleared(d, q);
        return;
    }
    snprintf(p.owner, sizeof(p.owner), "%s", q->client.name);
    snprintf(p.refused, sizeof(p.refused), "%s", refused ? refused : "");
    request_digest_of(q, p.digest);
    q->remembered = true;
    if (put(d, &p, 0))
        store_poison(d, &p);
}

void dispatch_cleared(struct dispatch *d, struct request *q)
{
    uint8_t digest[REQUEST_DIGEST];
    if (!q->remembered)
        return;
    q->remembered = false;
    request_digest_of(q, digest);
    if (poisons_drop(d->poisons, q->client.name, digest))
        forget_suspect(d, q->client.name, digest);
}

static struct poison *known(struct dispatch *d, const char *owner, const struct wire_generate *in)
{
    uint8_t digest[REQUEST_DIGEST];
    if (poisons_count(d->poisons) == 0)
        return NULL;
    request_digest(in, digest);
    return poisons_find(d->poisons, owner, digest, clock_now_ms());
}

bool dispatch_is_poison(struct dispatch *d, const struct peer *from, const struct wire_generate *in,
                        struct err *err)
{
    const struct poison *p = known(d, from->name, in);
    if (!p || !p->refused[0])
        return false;
    err_set_code(err, 500, "the same was refused before: %s", p->refused);
    return true;
}

/* The request that the entry is about lives: another one that asks for the same stands for itself. */
static bool lives(struct dispatch *d, const struct poison *p)
{
    uint8_t digest[REQUEST_DIGEST];
    for (uint32_t i = 0; i < requests_limit(d->requests); i++) {
        const struct request *q = requests_at(d->requests, i);
        if (!q || !q->remembered || strcmp(q->client.name, p->owner) != 0)
            continue;
        request_digest_of(q, digest);
        if (memcmp(digest, p->digest, sizeof(digest)) == 0)
            return true;
    }
    return false;
}

void dispatch_recall(struct dispatch *d, struct request *q, const struct wire_generate *in)
{
    const struct poison *p = known(d, q->client.name, in);
    if (!p || lives(d, p))
        return;
    q->remembered = true;
    q->suspicion.tokens = p->tokens;
    for (uint32_t i = 0; i < p->count && q->suspicion.count + 1 < SUSPECT_LOSSES; i++) {
        const struct poison_loss *l = &p->loss[i];
        const struct group *g = cluster_find(d->cluster, wire_string(l->group));
        struct loss *out = &q->suspicion.loss[q->suspicion.count++];
        *out = (struct loss){
            .group = g ? g->slot : UINT32_MAX, .epoch = l->epoch, .cause = l->cause, .alone = l->alone};
        memcpy(out->ended, l->ended, sizeof(out->ended));
    }
    log_warn("dispatch", "request %s of client %s: %u groups died under the same before", q->id,
             q->client.name, p->count);
    dispatch_judge(d, q);
}

void dispatch_learn_poison(struct dispatch *d, const struct group *g)
{
    uint32_t at = 0;
    struct poison *p;
    while ((p = poisons_learn(d->poisons, &at, g->name, g->ended_epoch, g->ended)))
        store_poison(d, p);
}

static void remember_suspect(void *context, const struct store_suspect *row)
{
    struct dispatch *d = context;
    struct err err;
    struct poison p = {.tokens = row->tokens};
    snprintf(p.owner, sizeof(p.owner), "%s", row->owner);
    snprintf(p.refused, sizeof(p.refused), "%s", row->refused);
    memcpy(p.digest, row->digest, sizeof(p.digest));
    if (poison_read(&p, row->losses, row->size, &err)) {
        log_warn("dispatch", "a stored suspect is left out: %s", err.message);
        p.count = 0;
    }
    if (p.count == 0 || !put(d, &p, row->age_ms))
        forget_suspect(d, row->owner, row->digest);
}

/* ---- settings ---- */
static int64_t configured(const struct dispatch *d, const char *name)
{
    for (int i = 0; i < SCHEDULER_SETTINGS; i++)
        if (strcmp(d->configured[i].name, name) == 0)
            return d->configured[i].automatic ? -1 : (int64_t)d->configured[i].value;
    return -2;
}

int dispatch_tuned(struct dispatch *d, const char *name, bool automatic, uint64_t value, uint64_t tag,
                   struct err *err)
{
    struct store_setting row = {
        .name = name, .automatic = automatic, .value = value, .configured = configured(d, name)};
    return store_setting(d->options.store, &row, tag, err);
}

/* The later word counts: of who tuned, or of who changed the configuration afterwards. */
static void remember_setting(void *context, const struct store_setting *row)
{
    struct dispatch *d = context;
    struct err err = {0};
    bool changed = configured(d, row->name) != row->configured;
    if (changed)
        err_set(&err, "the configuration was changed since");
    if (!changed && scheduler_tune(d->scheduler, row->name, row->automatic, row->value, &err) == 0)
        log_info("dispatch", "%s: %llu%s, as it was tuned in an earlier run", row->name,
                 (unsigned long long)row->value, row->automatic ? " (automatic)" : "");
    else {
        log_warn("dispatch", "%s: what was tuned in an earlier run counts no more: %s", row->name,
                 err.message);
        warn_lost(store_setting_gone(d->options.store, row->name, &err), row->name, &err);
    }
}

int dispatch_remember(struct dispatch *d, struct err *err)
{
    struct store *s = d->options.store;
    return store_each_group(s, remember_group, d, err) || store_each_suspect(s, remember_suspect, d, err) ||
                   store_each_setting(s, remember_setting, d, err)
               ? -1
               : 0;
}
