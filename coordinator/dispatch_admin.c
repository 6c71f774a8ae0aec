/* What admins change at run time: tune, drain, undrain. With a store they are answered once the change and
 * its row in the audit log are on the disk, and so found there after any crash. Others who try are refused at
 * once; their rows are written soon, and only so many a second, for anybody can provoke them. */
#include "coordinator/dispatch_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"

/* Is the name one of "a,b,c"? */
static bool named(const char *names, const char *name)
{
    size_t bytes = strlen(name);
    for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, name, bytes) == 0 && (at[bytes] == ',' || at[bytes] == 0))
            return true;
    return false;
}

static void answer(struct dispatch *d, const struct peer *from, struct err *refused)
{
    struct wire_message m;
    if (!refused->code) {
        dispatch_status(d, from, &(struct wire_status){.verbose = false});
        return;
    }
    wire_init(&m, WIRE_ERROR);
    m.error.code = (uint64_t)refused->code;
    m.error.message = wire_string_mend(refused->message, sizeof(refused->message) - 1);
    router_send(d->router, from, &m);
}

/* ---- who waits for the disk ---- */
/* One thing that a client asked for, from the check to the answer. */
struct admin_word {
    const struct peer *from;
    const char *kind, *what; /* for the logs */
    bool admin;
    struct dispatch_waiter *waits; /* NULL: for nothing */
    struct err err;                /* with a code: refused, that is why */
};

/* A tenant must not slow the others down: who may do such a thing is said by who runs the coordinator. What
 * could not be waited for is not begun. */
static int begin(struct dispatch *d, struct admin_word *w)
{
    w->admin = named(d->options.admins, w->from->name);
    if (!w->admin)
        return err_set_code(&w->err, 403,
                            "client %s may not %s: expected one that the coordinator's option admins names",
                            w->from->name, w->kind);
    for (uint32_t i = 0; d->options.store && i < DISPATCH_ADMINS && !w->waits; i++)
        if (!d->waiters[i].tag)
            w->waits = &d->waiters[i];
    if (!w->waits)
        return d->options.store
                   ? err_set_code(&w->err, 503, "%d clients wait for the disk already", DISPATCH_ADMINS)
                   : 0;
    *w->waits = (struct dispatch_waiter){.tag = dispatch_waiter_tag(d), .client = *w->from};
    return 0;
}

/* The tag for what the store is to change; 0: nobody waits. */
static uint64_t tag_of(const struct admin_word *w)
{
    return w->waits ? w->waits->tag : 0;
}

/* The store has taken a change with the tag, or refused it. */
static void queued(struct admin_word *w, int code)
{
    if (w->waits && code == 0)
        w->waits->pending++;
}

/* Logs it, and answers now or when all of it is on the disk. */
static void end(struct dispatch *d, struct admin_word *w)
{
    const char *result = w->err.code ? w->err.message : "done";
    log_info("dispatch", "audit: client %s: %s %s: %s", w->from->name, w->kind, w->what, result);
    if (w->waits) {
        struct err err = {0};
        int code =
            dispatch_audit_durably(d, tag_of(w), w->kind, w->from->name, &err, "%s: %s", w->what, result);
        if (code && !w->err.code)
            w->err = err;
        queued(w, code);
    } else {
        dispatch_audit(d, w->kind, w->from->name, "%s: %s", w->what, result);
    }
    if (w->waits && w->waits->pending) {
        w->waits->refused = w->err;
        return;
    }
    if (w->waits)
        w->waits->tag = 0;
    answer(d, w->from, &w->err);
}

void dispatch_waiter_done(struct dispatch *d, const struct store_done *done)
{
    for (uint32_t i = 0; i < DISPATCH_ADMINS; i++) {
        struct dispatch_waiter *w = &d->waiters[i];
        if (w->tag != done->tag)
            continue;
        if (done->code && !w->refused.code)
            err_set_code(&w->refused, done->code, "it is so now, but not all of it is on the disk: %s",
                         done->message);
        if (--w->pending == 0) {
            w->tag = 0;
            answer(d, &w->client, &w->refused);
        }
    }
}

/* ---- tune ---- */
void dispatch_tune(struct dispatch *d, const struct peer *from, const struct wire_tune *in)
{
    char *name = wire_str_dup(in->name);
    char *what = xasprintf("%.64s to %llu%s", name, (unsigned long long)in->value,
                           in->automatic ? " (automatic)" : "");
    struct admin_word w = {.from = from, .kind = "tune", .what = what};
    if (begin(d, &w) == 0 && scheduler_tune(d->scheduler, name, in->automatic, in->value, &w.err) == 0 &&
        w.waits)
        queued(&w, dispatch_tuned(d, name, in->automatic, in->value, tag_of(&w), &w.err));
    end(d, &w);
    free(what);
    free(name);
}

/* ---- drain, undrain ---- */
static void hold(struct dispatch *d, struct group *g)
{
    bool rested = g->state == GROUP_RESTING;
    cluster_hold(g);
    if (g->state != GROUP_HELD)
        return; /* lost, or it leaves: when it comes back it is held */
    if (rested)
        dispatch_ready(d, g);
    scheduler_group_draining(d->scheduler, g->slot, true);
}

static void let_go(struct dispatch *d, struct group *g)
{
    bool was = g->state == GROUP_HELD;
    cluster_release(g);
    if (was)
        scheduler_group_resumes(d->scheduler, g->slot);
}

void dispatch_hold(struct dispatch *d, const struct peer *from, const struct wire_hold *in)
{
    struct group *g = cluster_find(d->cluster, in->group);
    char *what = xasprintf("group %.*s", (int)in->group.size, in->group.data);
    struct admin_word w = {.from = from, .kind = in->release ? "undrain" : "drain", .what = what};
    if (begin(d, &w) == 0 && !g)
        err_set_code(&w.err, 404, "no %s: expected one that lepton status shows", what);
    if (!w.err.code) {
        in->release ? let_go(d, g) : hold(d, g);
        queued(&w, dispatch_group_changed(d, g, tag_of(&w), &w.err));
    }
    end(d, &w);
    free(what);
}
