#include "worker/mock/engine.h"

#include <stdlib.h>
#include <string.h>

#include "worker/mock/places.h"

const struct engine_speed engine_standard_speed = {.base_us = 20000,
                                                   .decode_us = 250,
                                                   .prefill_us = 100,
                                                   .step_tokens = 1024,
                                                   .max_sequences = 32,
                                                   .kv_tokens = 200000,
                                                   .cache_places = 4096};

struct sequence {
    uint64_t id; /* the choices of a request follow one another */
    uint32_t choice, prompt, output, cached;
    uint32_t fed, produced; /* fed: of the prompt, cached part included */
    uint32_t chunk;         /* in the step under way */
    bool cancelled, admitted;
    bool follows; /* a choice before it holds the prompt */
    uint32_t place_count;
    struct engine_place *places;
};

struct engine {
    struct engine_speed speed;
    uint32_t max_jump;
    struct sequence *sequences; /* in order of arrival: those admitted first */
    uint32_t count, capacity, admitted;
    uint64_t kv_used;
    struct places *cache;
    uint64_t start_us; /* of the steps under way */
    double step_us;
    uint32_t steps; /* under way; 0: idle */
    struct engine_event *events;
    size_t event_capacity;
};

struct engine *engine_new(const struct engine_speed *speed, uint32_t max_jump)
{
    ASSERT(speed->base_us >= 0 && speed->prefill_us > 0 && speed->step_tokens > 0 &&
           speed->max_sequences > 0);
    struct engine *e = xcalloc(1, sizeof(*e));
    e->speed = *speed;
    e->max_jump = max_jump ? max_jump : 1;
    if (speed->cache_places)
        e->cache = places_new(speed->cache_places);
    return e;
}

void engine_free(struct engine **pe)
{
    struct engine *e = *pe;
    if (!e)
        return;
    for (uint32_t i = 0; i < e->count; i++)
        free(e->sequences[i].places);
    free(e->sequences);
    free(e->events);
    places_free(&e->cache);
    free(e);
    *pe = NULL;
}

/* What it holds when it is complete: taken as a whole, so that nothing is ever preempted. */
static uint64_t kv_of(const struct sequence *q)
{
    return (q->follows ? 0 : (uint64_t)q->prompt) + q->output;
}

/* Sequences move up into the batch while there is room; the first always may. */
static void admit(struct engine *e)
{
    while (e->admitted < e->count && e->admitted < e->speed.max_sequences) {
        struct sequence *q = &e->sequences[e->admitted];
        if (e->admitted > 0 && e->kv_used + kv_of(q) > e->speed.kv_tokens)
            break;
        e->kv_used += kv_of(q);
        q->admitted = true;
        if (e->cache && !q->follows)
            q->cached = places_find(e->cache, q->places, q->place_count);
        if (q->cached >= q->prompt)
            q->cached = q->prompt - 1; /* the last one's logits are needed */
        q->fed = q->cached;
        e->admitted++;
    }
}

/* Of the choices behind the one that has its prompt now: the last token is left, its logits are needed. */
static void share_prompts(struct engine *e)
{
    for (uint32_t i = 1; i < e->admitted; i++) {
        struct sequence *q = &e->sequences[i];
        const struct sequence *before = &e->sequences[i - 1];
        if (q->follows && q->fed == 0 && before->fed >= before->prompt - 1)
            q->fed = q->cached = q->prompt - 1;
    }
}

/* Begins the next steps at start_us. */
static void plan(struct engine *e, uint64_t start_us)
{
    uint32_t decoding = 0, tokens = 0, least = UINT32_MAX;
    admit(e);
    share_prompts(e);
    for (uint32_t i = 0; i < e->admitted; i++) {
        struct sequence *q = &e->sequences[i];
        q->chunk = 0;
        if (q->fed < q->prompt)
            continue;
        q->chunk = 1;
        decoding++;
        if (q->output - q->produced < least)
            least = q->output - q->produced;
    }
    uint32_t left = e->speed.step_tokens > decoding ? e->speed.step_tokens - decoding : 1;
    for (uint32_t i = 0; i < e->admitted && left > 0; i++) {
        struct sequence *q = &e->sequences[i];
        if (q->fed >= q->prompt || (q->follows && q->fed < q->prompt - 1))
            continue;
        q->chunk = q->prompt - q->fed < left ? q->prompt - q->fed : left;
        left -= q->chunk;
        tokens += q->chunk;
    }
    double memory = e->speed.base_us + decoding * e->speed.decode_us;
    double arithmetic = (decoding + tokens) * e->speed.prefill_us;
    e->step_us = memory > arithmetic ? memory : arithmetic;
    e->start_us = start_us;
    e->steps = decoding + tokens == 0 ? 0 : 1;
    if (e->steps && tokens == 0)
        e->steps = least < e->max_jump ? least : e->max_jump;
}

uint64_t engine_due_us(const struct engine *e)
{
    return e->steps ? e->start_us + (uint64_t)(e->steps * e->step_us + 0.5) : ENGINE_NEVER;
}

/* Somebody came or left: the steps taken as one end with the one under way now. */
static void interrupt(struct engine *e, uint64_t now_us)
{
    if (e->steps <= 1)
        return;
    double past = now_us > e->start_us ? (double)(now_us - e->start_us) / e->step_us : 0;
    if (past + 1 < e->steps)
        e->steps = (uint32_t)past + 1;
}

static void add(struct engine *e, const struct engine_request *r, uint32_t choice)
{
    if (e->count == e->capacity) {
        e->capacity = e->capacity ? 2 * e->capacity : 16;
        e->sequences = xrealloc(e->sequences, e->capacity * sizeof(*e->sequences));
    }
    struct sequence *q = &e->sequences[e->count++];
    *q = (struct sequence){.id = r->id,
                           .choice = choice,
                           .prompt = r->prompt_tokens,
                           .output = r->output_tokens,
                           .follows = choice > 0};
    if (e->cache && r->place_count) {
        q->place_count = r->place_count;
        q->places = xcalloc(r->place_count, sizeof(*q->places));
        memcpy(q->places, r->places, r->place_count * sizeof(*q->places));
    }
}

void engine_submit(struct engine *e, const struct engine_request *r, uint64_t now_us)
{
    ASSERT(r->prompt_tokens > 0 && r->output_tokens > 0 && r->place_count <= ENGINE_PLACES);
    for (uint32_t i = 0; i < (r->choices ? r->choices : 1); i++)
        add(e, r, i);
    if (!e->steps)
        plan(e, now_us);
    else
        interrupt(e, now_us);
}

void engine_cancel(struct engine *e, uint64_t id, int32_t choice, uint64_t now_us)
{
    for (uint32_t i = 0; i < e->count; i++)
        if (e->sequences[i].id == id && (choice < 0 || e->sequences[i].choice == (uint32_t)choice)) {
            e->sequences[i].cancelled = true;
            interrupt(e, now_us);
        }
}

static void emit(struct engine *e, size_t *count, enum engine_event_kind kind, const struct sequence *q)
{
    if (*count == e->event_capacity) {
        e->event_capacity = e->event_capacity ? 2 * e->event_capacity : 64;
        e->events = xrealloc(e->events, e->event_capacity * sizeof(*e->events));
    }
    e->events[(*count)++] = (struct engine_event){
        .kind = kind, .id = q->id, .choice = q->choice, .tokens = q->produced, .cached_tokens = q->cached};
}

/* What the steps that are over did to one sequence; true when it is gone. */
static bool advance(struct engine *e, struct sequence *q, size_t *count)
{
    if (q->chunk > 0 && q->fed < q->prompt) {
        q->fed += q->chunk;
        if (q->fed == q->prompt) {
            q->produced = 1;
            if (e->cache) {
                uint64_t room = e->speed.kv_tokens > e->kv_used ? e->speed.kv_tokens - e->kv_used : 0;
                places_keep(e->cache, q->places, q->place_count, room + q->prompt);
            }
        }
    } else if (q->chunk > 0) {
        q->produced += e->steps;
    }
    bool done = q->produced >= q->output;
    if (q->cancelled)
        emit(e, count, ENGINE_CANCELLED, q);
    else if (q->chunk > 0 && q->produced > 0)
        emit(e, count, done ? ENGINE_DONE : ENGINE_TOKENS, q);
    return q->cancelled || done;
}

/* A sequence leaves; what it held of the prompt goes to the next choice of its request. */
static void leave(struct engine *e, uint32_t at)
{
    struct sequence *q = &e->sequences[at];
    struct sequence *heir = !q->follows && at + 1 < e->count ? &e->sequences[at + 1] : NULL;
    e->kv_used -= q->admitted ? kv_of(q) : 0;
    if (heir && heir->follows && heir->id == q->id) {
        heir->follows = false;
        e->kv_used += heir->admitted ? heir->prompt : 0;
    }
    free(q->places);
}

size_t engine_step(struct engine *e, const struct engine_event **events)
{
    size_t count = 0;
    uint64_t end_us = engine_due_us(e);
    ASSERT(e->steps);
    uint32_t kept = 0, admitted = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        struct sequence *q = &e->sequences[i];
        if (advance(e, q, &count)) {
            leave(e, i);
            continue;
        }
        admitted += q->admitted;
        e->sequences[kept++] = *q;
    }
    e->count = kept;
    e->admitted = admitted;
    plan(e, end_us);
    *events = e->events;
    return count;
}

uint32_t engine_running(const struct engine *e)
{
    return e->admitted;
}

uint32_t engine_waiting(const struct engine *e)
{
    return e->count - e->admitted;
}

uint64_t engine_kv_used(const struct engine *e)
{
    return e->kv_used;
}

double engine_prefill_rate(const struct engine_speed *s)
{
    double chunk = s->step_tokens * s->prefill_us;
    return s->step_tokens * 1e6 / (chunk > s->base_us ? chunk : s->base_us);
}

double engine_decode_rate(const struct engine_speed *s)
{
    double memory = s->base_us + s->max_sequences * s->decode_us;
    double arithmetic = s->max_sequences * s->prefill_us;
    return s->max_sequences * 1e6 / (memory > arithmetic ? memory : arithmetic);
}
