/* Tokens and ends to JSON: events of a stream, one object, errors. Written by hand, for a tree of values for
 * each token would be most of the work. */
#include "coordinator/gateway/openai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gateway/json_text.h"

/* One answer. Of a stream only `begun` and `offset` change. */
struct openai_choice {
    bool begun;
    struct buffer text;
    struct buffer tokens;  /* logprobs: of chat the entries, of completions the tokens */
    struct buffer values;  /* completions: token_logprobs */
    struct buffer tops;    /* completions: top_logprobs */
    struct buffer offsets; /* completions: text_offset */
    uint64_t offset;       /* characters before the next token */
    char finish_reason[16];
};

/* ---- errors ---- */
int openai_fail(struct openai_error *e, int status, const char *code, const char *param, const char *fmt, ...)
{
    va_list args;
    *e = (struct openai_error){.code = code, .err = {.code = status}};
    snprintf(e->param, sizeof(e->param), "%s", param ? param : "");
    va_start(args, fmt);
    vsnprintf(e->err.message, sizeof(e->err.message), fmt, args);
    va_end(args);
    return -1;
}

struct status_words {
    int status;
    const char *type, *code;
};
static const struct status_words statuses[] = {
    {400, "invalid_request_error", NULL},
    {401, "authentication_error", "invalid_api_key"},
    {403, "permission_error", NULL},
    {404, "invalid_request_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "timeout_error", "deadline_passed"},
    {409, "invalid_request_error", "conflict"},
    {413, "invalid_request_error", "too_large"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {429, "rate_limit_error", "queue_full"},
    {500, "server_error", "model_failed"},
    {502, "server_error", "group_lost"},
    {503, "server_error", "unavailable"},
    {507, "server_error", "storage_full"},
};

void openai_error_write(const struct openai_error *e, struct buffer *out)
{
    struct status_words words = {e->err.code, "server_error", NULL};
    char message[sizeof(e->err.message)];
    for (size_t i = 0; i < ARRAY_LEN(statuses); i++)
        if (statuses[i].status == e->err.code)
            words = statuses[i];
    const char *code = e->code ? e->code : words.code;
    memcpy(message, e->err.message, sizeof(message));
    struct wire_str text = wire_string_mend(message, sizeof(message) - 1);
    buffer_printf(out, "{\"error\":{\"message\":");
    json_text_string(out, text.data ? text.data : "", text.size);
    buffer_printf(out, ",\"type\":\"%s\",\"param\":", words.type);
    if (e->param[0])
        json_text_string(out, e->param, strlen(e->param));
    else
        buffer_printf(out, "null");
    buffer_printf(out, code ? ",\"code\":\"%s\"}}" : ",\"code\":null}}", code);
}

/* ---- log-probabilities ---- */
static void write_bytes(struct buffer *out, struct wire_str s)
{
    buffer_printf(out, "[");
    for (uint32_t i = 0; i < s.size; i++)
        buffer_printf(out, i ? ",%u" : "%u", (unsigned char)s.data[i]);
    buffer_printf(out, "]");
}

static void write_entry(struct buffer *out, struct wire_str piece, double logprob)
{
    buffer_printf(out, "{\"token\":");
    json_text_string(out, piece.data ? piece.data : "", piece.size);
    buffer_printf(out, ",\"logprob\":");
    json_text_real(out, logprob);
    buffer_printf(out, ",\"bytes\":");
    write_bytes(out, piece);
}

/* {"token","logprob","bytes","top_logprobs":[...]} */
static void write_chat_logprob(struct buffer *out, const struct wire_token *t)
{
    write_entry(out, t->piece, t->logprob);
    buffer_printf(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < t->top_count; i++) {
        buffer_printf(out, i ? "," : "");
        write_entry(out, t->top_logprobs[i].piece, t->top_logprobs[i].logprob);
        buffer_printf(out, "}");
    }
    buffer_printf(out, "]}");
}

static bool piece_before(const struct wire_token *t, uint32_t i)
{
    for (uint32_t k = 0; k < i; k++)
        if (wire_str_equal(t->top_logprobs[k].piece, t->top_logprobs[i].piece))
            return true;
    return false;
}

/* Completions have four arrays; each token adds to each. */
static void add_completion_logprob(struct openai_choice *c, const struct wire_token *t, bool first)
{
    const char *comma = first ? "" : ",";
    bool any = false;
    buffer_printf(&c->tokens, "%s", comma);
    json_text_string(&c->tokens, t->piece.data ? t->piece.data : "", t->piece.size);
    buffer_printf(&c->values, "%s", comma);
    json_text_real(&c->values, t->logprob);
    buffer_printf(&c->offsets, "%s%llu", comma, (unsigned long long)c->offset);
    buffer_printf(&c->tops, "%s{", comma);
    for (uint32_t i = 0; i < t->top_count; i++) {
        if (piece_before(t, i)) /* two tokens that look alike: the likelier one has the key */
            continue;
        buffer_printf(&c->tops, any ? "," : "");
        any = true;
        json_text_string(&c->tops, t->top_logprobs[i].piece.data ? t->top_logprobs[i].piece.data : "",
                         t->top_logprobs[i].piece.size);
        buffer_printf(&c->tops, ":");
        json_text_real(&c->tops, t->top_logprobs[i].logprob);
    }
    buffer_printf(&c->tops, "}");
}

static void append_all(struct buffer *out, const struct buffer *from)
{
    buffer_append(out, from->data, from->size);
}

static void write_completion_logprobs(struct buffer *out, struct openai_choice *c)
{
    buffer_printf(out, "{\"tokens\":[");
    append_all(out, &c->tokens);
    buffer_printf(out, "],\"token_logprobs\":[");
    append_all(out, &c->values);
    buffer_printf(out, "],\"top_logprobs\":[");
    append_all(out, &c->tops);
    buffer_printf(out, "],\"text_offset\":[");
    append_all(out, &c->offsets);
    buffer_printf(out, "]}");
}

/* What was gathered of a choice; chat in {"content":[...]}. */
static void write_logprobs(struct buffer *out, const struct openai_answer *a, struct openai_choice *c)
{
    if (!a->logprobs) {
        buffer_printf(out, "null");
    } else if (a->route == OPENAI_CHAT) {
        buffer_printf(out, "{\"content\":[");
        append_all(out, &c->tokens);
        buffer_printf(out, "],\"refusal\":null}");
    } else {
        write_completion_logprobs(out, c);
    }
}

static void gather_logprob(const struct openai_answer *a, struct openai_choice *c, const struct wire_token *t)
{
    bool first = c->tokens.size == 0;
    if (!a->logprobs)
        return;
    if (a->route == OPENAI_CHAT) {
        buffer_printf(&c->tokens, first ? "" : ",");
        write_chat_logprob(&c->tokens, t);
    } else {
        add_completion_logprob(c, t, first);
    }
}

static void forget_logprobs(struct openai_choice *c)
{
    c->tokens.size = c->values.size = c->tops.size = c->offsets.size = 0;
}

static uint64_t characters(struct wire_str s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s.size; i++)
        n += ((unsigned char)s.data[i] & 0xc0) != 0x80;
    return n;
}

/* ---- answers ---- */
void openai_answer_init(struct openai_answer *a, const struct openai_request *r, const char *id,
                        int64_t created)
{
    *a = (struct openai_answer){.route = r->route,
                                .stream = r->stream,
                                .include_usage = r->include_usage,
                                .logprobs = r->ask.sampling.logprobs,
                                .created = created,
                                .n = r->ask.sampling.n,
                                .model = wire_str_dup(r->ask.model)};
    snprintf(a->id, sizeof(a->id), "%s-%s", a->route == OPENAI_CHAT ? "chatcmpl" : "cmpl", id);
    a->choices = xcalloc(a->n, sizeof(*a->choices));
}

void openai_answer_release(struct openai_answer *a)
{
    for (uint64_t i = 0; a->choices && i < a->n; i++) {
        struct openai_choice *c = &a->choices[i];
        buffer_release(&c->text);
        buffer_release(&c->tokens);
        buffer_release(&c->values);
        buffer_release(&c->tops);
        buffer_release(&c->offsets);
    }
    free(a->choices);
    free(a->model);
    *a = (struct openai_answer){.model = NULL};
}

size_t openai_answer_bytes(const struct openai_answer *a)
{
    size_t bytes = 0;
    for (uint64_t i = 0; i < a->n; i++) {
        const struct openai_choice *c = &a->choices[i];
        bytes += c->text.size + c->tokens.size + c->values.size + c->tops.size + c->offsets.size;
    }
    return bytes;
}

static void write_head(const struct openai_answer *a, struct buffer *out)
{
    const char *object = a->route == OPENAI_COMPLETIONS ? "text_completion"
                         : a->stream                    ? "chat.completion.chunk"
                                                        : "chat.completion";
    buffer_printf(out, "{\"id\":");
    json_text_string(out, a->id, strlen(a->id));
    buffer_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object, (long long)a->created);
    json_text_string(out, a->model, strlen(a->model));
}

static void write_usage(const struct openai_answer *a, struct buffer *out)
{
    buffer_printf(out,
                  "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                  (unsigned long long)a->prompt_tokens, (unsigned long long)a->completion_tokens,
                  (unsigned long long)(a->prompt_tokens + a->completion_tokens),
                  (unsigned long long)a->cached_tokens);
}

/* One event of one choice: a piece of text, its log-probabilities, its end. */
static void write_event(const struct openai_answer *a, uint64_t index, struct wire_str text,
                        const char *reason, struct buffer *out)
{
    struct openai_choice *c = &a->choices[index];
    buffer_printf(out, "data: ");
    write_head(a, out);
    buffer_printf(out, ",\"choices\":[{\"index\":%llu,", (unsigned long long)index);
    if (a->route == OPENAI_COMPLETIONS) {
        buffer_printf(out, "\"text\":");
        json_text_string(out, text.data ? text.data : "", text.size);
    } else {
        buffer_printf(out, "\"delta\":{%s", c->begun ? "" : "\"role\":\"assistant\"");
        if (text.size || !c->begun) {
            buffer_printf(out, "%s\"content\":", c->begun ? "" : ",");
            json_text_string(out, text.data ? text.data : "", text.size);
        }
        buffer_printf(out, "}");
    }
    buffer_printf(out, ",\"logprobs\":");
    if (c->tokens.size)
        write_logprobs(out, a, c);
    else
        buffer_printf(out, "null");
    buffer_printf(out, reason ? ",\"finish_reason\":\"%s\"}]" : ",\"finish_reason\":null}]", reason);
    buffer_printf(out, a->include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
    c->begun = true;
    forget_logprobs(c);
}

/* Which it was, when the request named none. */
static void take_model(struct openai_answer *a, struct wire_str model)
{
    if (model.size == 0 || a->model[0])
        return;
    free(a->model);
    a->model = wire_str_dup(model);
}

void openai_answer_token(struct openai_answer *a, const struct wire_token *t, struct buffer *out)
{
    struct openai_choice *c = &a->choices[t->choice];
    take_model(a, t->model);
    gather_logprob(a, c, t);
    c->offset += characters(t->text);
    if (!a->stream)
        buffer_append(&c->text, t->text.data, t->text.size);
    else if (t->text.size || a->logprobs || !c->begun)
        write_event(a, t->choice, t->text, NULL, out);
}

void openai_answer_done(struct openai_answer *a, const struct wire_done *d, struct buffer *out)
{
    struct openai_choice *c = &a->choices[d->choice];
    take_model(a, d->model);
    snprintf(c->finish_reason, sizeof(c->finish_reason), "%.*s", (int)d->finish_reason.size,
             d->finish_reason.data);
    a->prompt_tokens = d->prompt_tokens;
    a->cached_tokens = d->cached_tokens > a->cached_tokens ? d->cached_tokens : a->cached_tokens;
    a->completion_tokens += d->completion_tokens;
    if (a->stream)
        write_event(a, d->choice, d->text, c->finish_reason, out);
    else
        buffer_append(&c->text, d->text.data, d->text.size);
}

static void write_choice(const struct openai_answer *a, uint64_t index, struct buffer *out)
{
    struct openai_choice *c = &a->choices[index];
    const char *text = c->text.size ? (const char *)c->text.data : "";
    buffer_printf(out, "%s{\"index\":%llu,", index ? "," : "", (unsigned long long)index);
    buffer_printf(out,
                  a->route == OPENAI_CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    json_text_string(out, text, c->text.size);
    buffer_printf(out, a->route == OPENAI_CHAT ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":");
    write_logprobs(out, a, c);
    buffer_printf(out, ",\"finish_reason\":\"%s\"}", c->finish_reason);
}

void openai_answer_end(struct openai_answer *a, struct buffer *out)
{
    if (a->stream) {
        if (a->include_usage) {
            buffer_printf(out, "data: ");
            write_head(a, out);
            buffer_printf(out, ",\"choices\":[],");
            write_usage(a, out);
            buffer_printf(out, "}\n\n");
        }
        buffer_printf(out, "data: [DONE]\n\n");
        return;
    }
    write_head(a, out);
    buffer_printf(out, ",\"choices\":[");
    for (uint64_t i = 0; i < a->n; i++)
        write_choice(a, i, out);
    buffer_printf(out, "],");
    write_usage(a, out);
    buffer_printf(out, "}");
}

void openai_answer_error(const struct openai_error *e, struct buffer *out)
{
    buffer_printf(out, "data: ");
    openai_error_write(e, out);
    buffer_printf(out, "\n\n");
}

void openai_answer_ping(struct buffer *out)
{
    buffer_printf(out, ": ping\n\n");
}
