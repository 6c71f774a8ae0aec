/* Requests that are not taken. A refusal is their one outcome, and there is no request that could keep it:
 * for a client that does not read at the moment it is kept here, as long as a stream would be. Bounded in all
 * and for each client, so that one who floods and never reads takes no room of others. */
#include "coordinator/dispatch_internal.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

/* Between two looks whether clients read again. */
#define RETRY_MS 50

static enum router_sent send_refusal(struct dispatch *d, struct refusal *f)
{
    struct wire_message m;
    wire_init(&m, WIRE_ERROR);
    m.error.request = wire_string(f->request);
    m.error.code = f->code;
    m.error.retry_after_ms = f->retry_after_ms;
    m.error.message = wire_string_mend(f->message, sizeof(f->message) - 1);
    return router_send(d->router, &f->to, &m);
}

static void keep(struct dispatch *d, const struct refusal *f)
{
    uint32_t own = 0;
    for (uint32_t i = 0; i < d->refusal_count; i++)
        own += peer_equal(&d->refusals[i].to, &f->to);
    if (d->refusal_count < DISPATCH_REFUSALS && own < DISPATCH_REFUSALS_EACH)
        d->refusals[d->refusal_count++] = *f;
    else
        log_debug("dispatch", "a refusal is lost: client %s does not read", f->to.name);
}

void dispatch_reject(struct dispatch *d, const struct peer *from, struct wire_str request,
                     const struct err *err, uint64_t retry_after_ms)
{
    struct refusal f = {.to = *from,
                        .code = (uint64_t)err->code,
                        .retry_after_ms = retry_after_ms < 86400000 ? retry_after_ms : 86400000,
                        .until_ms = clock_now_ms() + 2 * d->options.stall_timeout_ms};
    snprintf(f.request, sizeof(f.request), "%.*s", (int)request.size, request.data);
    memcpy(f.message, err->message, sizeof(f.message));
    d->rejected++;
    if (send_refusal(d, &f) == ROUTER_FULL)
        keep(d, &f);
    log_debug("dispatch", "rejected a request of client %s: %d %s", from->name, err->code, f.message);
}

/* In their order; those of a client that still does not read stay. */
void dispatch_tick_refusals(struct dispatch *d, uint64_t now_ms)
{
    uint32_t left = 0;
    if (d->refusal_count == 0 || now_ms < d->refusals_due_ms)
        return;
    d->refusals_due_ms = now_ms + RETRY_MS;
    for (uint32_t i = 0; i < d->refusal_count; i++) {
        struct refusal *f = &d->refusals[i];
        if (now_ms < f->until_ms && send_refusal(d, f) == ROUTER_FULL)
            d->refusals[left++] = *f;
    }
    d->refusal_count = left;
}
