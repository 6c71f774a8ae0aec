#include "worker/canary.h"

#include <stdio.h>

#include "common/clock.h"
#include "common/log.h"

#define HANDLE   UINT64_MAX /* no request of the coordinator's has it */
#define RETRY_MS 10000      /* after one that failed */

void canary_init(struct canary *c, struct mailbox *mailbox, struct watchdog *watchdog)
{
    *c = (struct canary){.mailbox = mailbox, .watchdog = watchdog};
}

bool canary_passed(struct canary *c, uint64_t now_ms)
{
    if (c->state == CANARY_NONE && now_ms >= c->retry_ms) {
        struct command submit = {
            .kind = COMMAND_SUBMIT,
            .request = {.handle = HANDLE,
                        .choices = 1,
                        .prompt = xcalloc(1, sizeof(int32_t)), /* token 0: every vocabulary has it */
                        .prompt_tokens = 1,
                        .max_tokens = 1,
                        .speculation = SPECULATION_OFF,
                        .canary = true,
                        .sampling = {.top_p = 1, .repetition_penalty = 1, .banned_id = -1}}};
        mailbox_send(c->mailbox, &submit);
        c->state = CANARY_ASKED;
        c->asked_ms = now_ms;
    }
    return c->state == CANARY_PASSED;
}

bool canary_take(struct canary *c, const struct event *e, uint64_t now_ms)
{
    if (e->kind == EVENT_LEFT || e->handle != HANDLE)
        return false;
    if (e->kind == EVENT_DONE && c->state == CANARY_ASKED) {
        c->state = CANARY_PASSED;
        log_debug("canary", "a token came through every rank in %llu ms",
                  (unsigned long long)(now_ms - c->asked_ms));
    } else if (e->kind == EVENT_FAILED) {
        c->state = CANARY_NONE;
        c->retry_ms = now_ms + RETRY_MS;
        log_error("canary", "the model gave no finite logits: the group serves nobody; asked again in %d s",
                  RETRY_MS / 1000);
    }
    return true;
}

void canary_void(struct canary *c)
{
    c->state = CANARY_NONE;
}

void canary_ping(struct canary *c, uint64_t now_ms)
{
    if (now_ms < c->next_ping_ms)
        return;
    c->next_ping_ms = now_ms + CANARY_PING_MS;
    if (mailbox_waits_ms(c->mailbox) == 0) /* one that is not taken needs no second */
        mailbox_send(c->mailbox, &(struct command){.kind = COMMAND_PING});
}

uint64_t canary_stuck_ms(struct canary *c, char text[WATCHDOG_MOST_TEXT])
{
    bool idle = true;
    uint64_t stuck_ms = c->watchdog ? watchdog_stuck_ms(c->watchdog, &idle, text) : 0;
    if (!idle)
        return stuck_ms;
    snprintf(text, WATCHDOG_MOST_TEXT, "rank 0 is idle and takes no commands");
    return mailbox_waits_ms(c->mailbox);
}
