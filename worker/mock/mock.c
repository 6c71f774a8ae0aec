#include "worker/mock/mock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/prefix_key.h"

#define TOKEN_BYTES 4 /* of a prompt, for each token that it counts */
#define FIRST_BYTE  3 /* the id of byte 0 in the vocabulary */

/* The pieces, their scores and types (as llama.cpp numbers them: 2 unknown, 3 control, 6 byte, 1 normal). */
struct vocabulary {
    int count;
    char (*names)[8];
    const char **pieces;
    float *scores;
    int32_t *types;
};

static void fill_vocabulary(struct vocabulary *v)
{
    for (int i = 0; i < v->count; i++) {
        if (i < MOCK_STAMP)
            snprintf(v->names[i], sizeof(v->names[i]), "<0x%02X>", i >= FIRST_BYTE ? i - FIRST_BYTE : 0);
        else
            snprintf(v->names[i], sizeof(v->names[i]), "t%05X", (unsigned)(i - MOCK_STAMP) & 0xfffff);
        v->pieces[i] = v->names[i];
        v->types[i] = i < MOCK_STAMP ? 6 : 1;
    }
    v->pieces[0] = "<unk>";
    v->pieces[1] = "<s>";
    v->pieces[2] = "</s>";
    v->types[0] = 2;
    v->types[1] = v->types[2] = 3;
}

static int write_vocabulary(const struct vocabulary *v, struct buffer *header, struct err *err)
{
    struct gguf_writer *w = gguf_writer_new("mock vocabulary");
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_string(w, "tokenizer.ggml.model", "llama");
    gguf_writer_strings(w, "tokenizer.ggml.tokens", v->pieces, (uint64_t)v->count);
    gguf_writer_floats(w, "tokenizer.ggml.scores", v->scores, (uint64_t)v->count);
    gguf_writer_ints(w, "tokenizer.ggml.token_type", v->types, (uint64_t)v->count);
    gguf_writer_uint(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_uint(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", false);
    gguf_writer_bool(w, "tokenizer.ggml.add_space_prefix", false);
    int code = gguf_writer_header(w, header, err);
    gguf_writer_free(&w);
    return code;
}

int mock_tokenizer(struct tokenizer **tokenizer, struct gguf **gguf, bool stamps, struct err *err)
{
    static struct buffer header; /* the parsed file borrows it: one mock a process */
    struct vocabulary v = {.count = MOCK_STAMP + (stamps ? MOCK_STAMPS : 0)};
    v.names = xcalloc((size_t)v.count, sizeof(*v.names));
    v.pieces = xcalloc((size_t)v.count, sizeof(*v.pieces));
    v.scores = xcalloc((size_t)v.count, sizeof(*v.scores));
    v.types = xcalloc((size_t)v.count, sizeof(*v.types));
    fill_vocabulary(&v);
    int code = write_vocabulary(&v, &header, err);
    free(v.names);
    free(v.pieces);
    free(v.scores);
    free(v.types);
    if (code || gguf_parse(gguf, header.data, header.size, "mock vocabulary", err))
        return -1;
    return tokenizer_open(tokenizer, *gguf, err);
}

/* One choice of one request. */
struct answer {
    bool used, cancelled, silent, canary;
    uint64_t handle, seed, arrived_us, first_us;
    int32_t choice, prompt_tokens, sent;
    int32_t begun;  /* of them elsewhere: they count as prompt here */
    uint32_t first; /* the slot that names its request to the engine; of a request's choices in a row */
};

struct mock {
    struct mailbox *mailbox;
    struct engine *engine;
    struct answer *answers;
    uint32_t count, live; /* slots; of them used */
    bool draining, stamps;
    struct serve_stats stats;
};

/* So many slots in a row: the first names the request to the engine. */
static uint32_t take_slots(struct mock *m, uint32_t choices)
{
    uint32_t unused = 0;
    for (uint32_t i = 0; i < m->count; i++) {
        unused = m->answers[i].used ? 0 : unused + 1;
        if (unused == choices)
            return i + 1 - choices;
    }
    uint32_t first = m->count - unused;
    m->count = first + choices;
    m->answers = xrealloc(m->answers, m->count * sizeof(*m->answers));
    return first;
}

/* The prompt's beginnings by its bytes, each named for its tenant. */
static uint32_t find_places(const struct sequence_request *r, struct engine_place places[ENGINE_PLACES])
{
    struct prefix_key key;
    char *text = xmalloc((size_t)r->prompt_tokens + 1);
    for (int32_t i = 0; i < r->prompt_tokens; i++)
        text[i] = (char)(r->prompt[i] - FIRST_BYTE);
    prefix_key_make(&key, r->salt, text, (uint64_t)r->prompt_tokens);
    free(text);
    for (uint32_t i = 0; i < key.count; i++)
        places[i] =
            (struct engine_place){.name = key.place[i], .tokens = (uint32_t)(prefix_cut(i) / TOKEN_BYTES)};
    return key.count;
}

static struct answer new_answer(const struct sequence_request *r, int32_t choice, uint32_t first,
                                uint32_t tokens, uint64_t now_us)
{
    return (struct answer){.used = true,
                           .handle = r->handle,
                           .seed = r->sampling.seed,
                           .arrived_us = now_us,
                           .canary = r->canary,
                           .choice = choice,
                           .first = first,
                           .prompt_tokens = (int32_t)tokens};
}

/* A choice that began elsewhere: what was delivered counts as prompt here. */
static void resume(struct mock *m, const struct sequence_request *r, int32_t choice, uint32_t tokens,
                   const struct engine_place *places, uint32_t place_count, uint64_t now_us)
{
    int32_t delivered = r->delivered_tokens[choice];
    if (delivered < 0)
        return;
    if (delivered == r->max_tokens) { /* its end was not told where it began */
        mailbox_emit(m->mailbox, &(struct event){.kind = EVENT_DONE,
                                                 .handle = r->handle,
                                                 .choice = choice,
                                                 .index = delivered,
                                                 .reason = FINISH_LENGTH,
                                                 .prompt_tokens = (int32_t)tokens,
                                                 .completion_tokens = delivered});
        return;
    }
    uint32_t slot = take_slots(m, 1);
    m->answers[slot] = new_answer(r, choice, slot, tokens, now_us);
    m->answers[slot].begun = m->answers[slot].sent = delivered;
    m->live++;
    engine_submit(m->engine,
                  &(struct engine_request){.id = slot,
                                           .prompt_tokens = tokens + (uint32_t)delivered,
                                           .output_tokens = (uint32_t)(r->max_tokens - delivered),
                                           .place_count = place_count,
                                           .places = places},
                  now_us);
}

static void submit(struct mock *m, const struct sequence_request *r, uint64_t now_us)
{
    struct engine_place places[ENGINE_PLACES];
    uint32_t place_count = find_places(r, places);
    uint32_t tokens = ((uint32_t)r->prompt_tokens + TOKEN_BYTES - 1) / TOKEN_BYTES;
    tokens = tokens ? tokens : 1;
    if (r->delivered_tokens) { /* each choice stands somewhere else: they go on one by one */
        for (int32_t c = 0; c < r->choices; c++)
            resume(m, r, c, tokens, places, place_count, now_us);
        return;
    }
    uint32_t first = take_slots(m, (uint32_t)r->choices);
    for (int32_t c = 0; c < r->choices; c++)
        m->answers[first + (uint32_t)c] = new_answer(r, c, first, tokens, now_us);
    m->live += (uint32_t)r->choices;
    engine_submit(m->engine,
                  &(struct engine_request){.id = first,
                                           .prompt_tokens = tokens,
                                           .output_tokens = (uint32_t)r->max_tokens,
                                           .choices = (uint32_t)r->choices,
                                           .place_count = place_count,
                                           .places = places},
                  now_us);
}

static void cancel(struct mock *m, const struct sequence_request *r, bool all, uint64_t now_us)
{
    for (uint32_t i = 0; i < m->count; i++) {
        struct answer *a = &m->answers[i];
        if (!a->used || !(all || (a->handle == r->handle && (r->choice < 0 || a->choice == r->choice))))
            continue;
        a->cancelled = true;
        a->silent |= all;
        engine_cancel(m->engine, a->first, (int32_t)(i - a->first), now_us);
    }
}

static void take_commands(struct mock *m)
{
    struct command c;
    while (mailbox_take(m->mailbox, &c)) {
        uint64_t now_us = clock_now_us();
        if (c.kind == COMMAND_SUBMIT)
            submit(m, &c.request, now_us);
        else if (c.kind == COMMAND_CANCEL || c.kind == COMMAND_CANCEL_ALL)
            cancel(m, &c.request, c.kind == COMMAND_CANCEL_ALL, now_us);
        else if (c.kind == COMMAND_DRAIN)
            m->draining = true; /* a ping asks for nothing else than to be taken */
        sequence_request_release(&c.request);
    }
}

/* Letters that follow from who asks and where they stand, so that a stream can be checked. */
static int32_t letter(const struct answer *a, int32_t index)
{
    uint64_t z =
        (a->seed + (uint64_t)a->choice * 0x9e3779b97f4a7c15ull + (uint64_t)index) * 0xbf58476d1ce4e5b9ull;
    z ^= z >> 31;
    return FIRST_BYTE + (z % 7 == 0 ? ' ' : 'a' + (int32_t)(z % 26));
}

static int32_t stamp(void)
{
    return MOCK_STAMP + (int32_t)(clock_now_us() / MOCK_STAMP_US % MOCK_STAMPS);
}

static void emit_tokens(struct mock *m, struct answer *a, uint32_t tokens)
{
    if (!a->first_us && tokens)
        a->first_us = clock_now_us();
    for (; a->sent < a->begun + (int32_t)tokens; a->sent++) {
        struct event e = {.kind = EVENT_TOKEN,
                          .handle = a->handle,
                          .choice = a->choice,
                          .index = a->sent,
                          .id = m->stamps ? stamp() : letter(a, a->sent)};
        m->stats.tokens_generated += !a->canary;
        if (!a->silent && !a->cancelled)
            mailbox_emit(m->mailbox, &e);
    }
}

static void happened(struct mock *m, const struct engine_event *v)
{
    struct answer *a = &m->answers[v->id + v->choice];
    if (!a->cancelled)
        emit_tokens(m, a, v->tokens);
    if (v->kind == ENGINE_TOKENS)
        return;
    uint64_t now_us = clock_now_us(), first_us = a->first_us ? a->first_us : now_us;
    struct event e = {.kind = EVENT_DONE,
                      .handle = a->handle,
                      .choice = a->choice,
                      .index = a->sent,
                      .reason = v->kind == ENGINE_DONE && !a->cancelled ? FINISH_LENGTH : FINISH_CANCELLED,
                      .prompt_tokens = a->prompt_tokens,
                      .completion_tokens = a->sent,
                      .cached_tokens = (int32_t)v->cached_tokens,
                      .prefill_us = first_us - a->arrived_us,
                      .decode_us = now_us - first_us};
    if (!a->silent)
        mailbox_emit(m->mailbox, &e);
    a->used = false;
    m->live--;
}

static void publish(struct mock *m)
{
    m->stats.running = engine_running(m->engine);
    m->stats.waiting = engine_waiting(m->engine);
    m->stats.pages_used = engine_kv_used(m->engine);
    mailbox_set_stats(m->mailbox, &m->stats);
}

void mock_serve(struct mailbox *mailbox, const struct engine_speed *speed, bool stamps)
{
    struct mock m = {.mailbox = mailbox, .engine = engine_new(speed, 1), .stamps = stamps};
    for (;;) {
        take_commands(&m);
        publish(&m);
        uint64_t due = engine_due_us(m.engine);
        if (due == ENGINE_NEVER && m.draining)
            break;
        if (due > clock_now_us()) {
            mailbox_wait_until(mailbox, due);
            continue;
        }
        const struct engine_event *events;
        size_t count = engine_step(m.engine, &events);
        m.stats.steps++;
        for (size_t i = 0; i < count; i++)
            happened(&m, &events[i]);
    }
    engine_free(&m.engine);
    free(m.answers);
    mailbox_emit(mailbox, &(struct event){.kind = EVENT_LEFT});
}
