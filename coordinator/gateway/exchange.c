#include "coordinator/gateway/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct exchange *exchange_new(struct openai_request *r, const char *id, int64_t created)
{
    struct exchange *x = xcalloc(1, sizeof(*x));
    struct wire_stop *old_stop = r->stop;
    memcpy(&x->request, r, sizeof(*r));
    if (x->request.ask.sampling.stop == old_stop) /* it lies inside */
        x->request.ask.sampling.stop = x->request.stop;
    memset(r, 0, sizeof(*r));
    snprintf(x->id, sizeof(x->id), "%s", id);
    pthread_mutex_init(&x->lock, NULL);
    x->users = 1;
    openai_answer_init(&x->answer, &x->request, id, created);
    x->choices = xcalloc(x->request.ask.sampling.n, sizeof(*x->choices));
    return x;
}

void exchange_release(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    int left = --x->users;
    pthread_mutex_unlock(&x->lock);
    if (left > 0)
        return;
    for (uint64_t i = 0; i < x->request.ask.sampling.n; i++)
        free(x->choices[i].ids);
    free(x->choices);
    openai_answer_release(&x->answer);
    openai_release(&x->request);
    buffer_release(&x->out);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

/* With the lock held, like all of these. */
static void sleep_until_woken(struct exchange *x)
{
    x->asleep = true;
    x->sleep(x->context);
}

static void wake(struct exchange *x)
{
    if (!x->asleep)
        return;
    x->asleep = false;
    x->wake(x->context);
}

static void spoken(struct exchange *x, uint64_t now_ms)
{
    x->spoken_ms = now_ms;
    if (x->status == 0)
        x->status = 200;
    wake(x);
}

static void end(struct exchange *x, uint64_t now_ms)
{
    x->over = true;
    x->over_ms = now_ms;
    wake(x);
}

static void fail(struct exchange *x, const struct openai_error *e, uint64_t now_ms)
{
    if (x->over)
        return;
    if (x->status == 0) {
        x->error = *e;
        x->status = e->err.code;
    } else {
        openai_answer_error(e, &x->out);
    }
    end(x, now_ms);
}

bool exchange_token(struct exchange *x, const struct wire_token *t, uint64_t now_ms)
{
    struct exchange_choice *c = &x->choices[t->choice];
    if ((c->count & (c->count - 1)) == 0) /* doubles at every power of two */
        c->ids = xrealloc(c->ids, (c->count ? (size_t)c->count * 2 : 1) * sizeof(*c->ids));
    c->ids[c->count++] = (uint32_t)t->id;
    x->tokens++;
    pthread_mutex_lock(&x->lock);
    size_t before = x->out.size;
    openai_answer_token(&x->answer, t, &x->out);
    x->held++;
    if (x->out.size > before)
        spoken(x, now_ms);
    else if (x->taken == x->out.size) { /* it said nothing: there is nothing to wait for */
        x->consumed += x->held;
        x->held = 0;
    }
    bool fits = x->answer.stream || x->tokens % 256 || openai_answer_bytes(&x->answer) <= EXCHANGE_MAX_ANSWER;
    pthread_mutex_unlock(&x->lock);
    return fits;
}

bool exchange_done(struct exchange *x, const struct wire_done *d, uint64_t now_ms)
{
    bool last = true;
    x->choices[d->choice].over = true;
    for (uint64_t i = 0; i < x->request.ask.sampling.n; i++)
        last &= x->choices[i].over;
    pthread_mutex_lock(&x->lock);
    openai_answer_done(&x->answer, d, &x->out);
    if (last)
        openai_answer_end(&x->answer, &x->out);
    if (x->answer.stream || last)
        spoken(x, now_ms);
    if (last)
        end(x, now_ms);
    pthread_mutex_unlock(&x->lock);
    return last;
}

void exchange_fail(struct exchange *x, const struct openai_error *e, uint64_t now_ms)
{
    pthread_mutex_lock(&x->lock);
    fail(x, e, now_ms);
    pthread_mutex_unlock(&x->lock);
}

void exchange_ping(struct exchange *x, uint64_t silent_ms, uint64_t now_ms)
{
    pthread_mutex_lock(&x->lock);
    uint64_t since_ms = x->spoken_ms ? x->spoken_ms : x->first_ms;
    if (x->answer.stream && !x->over && x->taken == x->out.size && now_ms - since_ms >= silent_ms) {
        openai_answer_ping(&x->out);
        spoken(x, now_ms);
    }
    pthread_mutex_unlock(&x->lock);
}

uint64_t exchange_grant(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    uint64_t more = x->consumed - x->granted;
    x->granted = x->consumed;
    pthread_mutex_unlock(&x->lock);
    return more;
}

uint64_t exchange_credit(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    uint64_t held = x->held;
    x->granted = x->consumed;
    pthread_mutex_unlock(&x->lock);
    return held < EXCHANGE_CREDIT ? EXCHANGE_CREDIT - held : 1;
}

int exchange_status(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    /* One object is answered when it is whole; its length is known then. */
    int status = x->gone ? -1 : x->answer.stream || x->over ? x->status : 0;
    if (status == 0)
        sleep_until_woken(x);
    pthread_mutex_unlock(&x->lock);
    return status;
}

long exchange_take(struct exchange *x, char *into, size_t most, bool *drained)
{
    long n = 0;
    *drained = false;
    pthread_mutex_lock(&x->lock);
    size_t left = x->out.size - x->taken;
    if (x->gone) {
        n = -2;
    } else if (left > 0) {
        n = (long)(left < most ? left : most);
        memcpy(into, x->out.data + x->taken, (size_t)n);
        x->taken += (size_t)n;
        if (x->taken == x->out.size) {
            x->consumed += x->held;
            *drained = !x->over && x->consumed - x->granted >= EXCHANGE_CREDIT / 2;
            x->held = x->taken = x->out.size = 0;
        }
    } else if (x->over) {
        n = -1;
    } else {
        sleep_until_woken(x);
    }
    pthread_mutex_unlock(&x->lock);
    return n;
}

void exchange_abandon(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    x->gone = true;
    wake(x);
    pthread_mutex_unlock(&x->lock);
}

bool exchange_leave(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool early = !x->over;
    x->gone = true;
    x->asleep = false;
    pthread_mutex_unlock(&x->lock);
    return early;
}
