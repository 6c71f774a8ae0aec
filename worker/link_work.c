/* The requests: what the coordinator asks for goes to the step thread, and what that says of them goes back.
 */
#include "worker/link_internal.h"

#include "common/clock.h"
#include "common/log.h"

/* `message` may quote what a peer sent: it is mended in place. */
static void send_error(struct link *l, struct wire_str request, uint64_t code, char *message)
{
    struct wire_message m;
    wire_init(&m, WIRE_ERROR);
    m.error.request = request;
    m.error.code = code;
    m.error.message = wire_string_mend(message, WIRE_MAX_MESSAGE);
    m.error.group = link_group(l);
    m.error.epoch = l->epoch;
    link_send(l, &m);
}

static int assign(struct link *l, const struct wire_assign *a, struct err *err)
{
    struct command c = {.kind = COMMAND_SUBMIT};
    if (l->draining)
        return err_set_code(err, 503, "group is draining");
    struct live *v = live_add(&l->live, a, err);
    if (!v)
        return -1;
    if (admit_request(&c.request, a, &l->admit, &l->ids, err)) {
        live_drop(v);
        return -1;
    }
    c.request.handle = live_handle(&l->live, v);
    uint32_t stopped[WIRE_MAX_CHOICES], count = live_resume(&l->live, v, a, stopped);
    mailbox_send(l->o.mailbox, &c);
    for (uint32_t i = 0; i < count; i++) { /* the group before it died between a stop string and its done */
        struct command over = {
            .kind = COMMAND_CANCEL,
            .request = {.handle = live_handle(&l->live, v), .choice = (int32_t)stopped[i]}};
        mailbox_send(l->o.mailbox, &over);
    }
    return 0;
}

void link_take_assign(struct link *l, const struct wire_assign *a)
{
    struct err err = {0};
    if (assign(l, a, &err))
        send_error(l, a->request, (uint64_t)(err.code ? err.code : 500), err.message);
}

void link_take_cancel(struct link *l, const struct wire_cancel *c)
{
    struct live *v = live_find(&l->live, c->request);
    if (!v || !live_cancel(v))
        return;
    struct command command = {.kind = COMMAND_CANCEL,
                              .request = {.handle = live_handle(&l->live, v), .choice = -1}};
    mailbox_send(l->o.mailbox, &command);
}

void link_begin_drain(struct link *l)
{
    if (l->draining)
        return;
    l->draining = true;
    l->next_heartbeat_ms = 0; /* the coordinator hears of it now: it hands over what runs here */
    log_info("link", "draining");
    mailbox_send(l->o.mailbox, &(struct command){.kind = COMMAND_DRAIN});
}

void link_send_batch(struct link *l)
{
    struct wire_message m;
    if (token_batch_take(&l->batch, link_group(l), l->epoch, &m))
        link_send(l, &m);
}

/* A token waits until all that the step thread has said was heard, unless it is one that goes alone: false.
 */
static bool batch_token(struct link *l, const struct wire_token *t)
{
    if (token_batch_full(&l->batch))
        link_send_batch(l);
    return token_batch_add(&l->batch, t);
}

void link_take_event(struct link *l, const struct event *e)
{
    struct live_news news;
    if (e->kind == EVENT_LEFT) {
        l->left = true;
        return;
    }
    if (canary_take(&l->canary, e, clock_now_ms())) {
        l->next_hello_ms = l->epoch ? l->next_hello_ms : 0;
        return;
    }
    live_take(&l->live, e, &news);
    if (news.cancel)
        mailbox_send(l->o.mailbox, &news.command);
    if (!news.tell)
        return;
    struct wire_message *m = &news.message;
    if (m->type == WIRE_TOKEN && batch_token(l, &m->token))
        return;
    link_send_batch(l); /* what is said of a request keeps its order */
    if (m->type == WIRE_TOKEN) {
        m->token.group = link_group(l);
        m->token.epoch = l->epoch;
    } else if (m->type == WIRE_DONE) {
        m->done.group = link_group(l);
        m->done.epoch = l->epoch;
        m->done.stages = l->o.hello.stage_count;
    } else {
        m->error.group = link_group(l);
        m->error.epoch = l->epoch;
    }
    link_send(l, m);
}
