/* A body to a `generate`: one table of fields. What stands in the wire's own table of generate is read by it;
 * the rest has a reader of its own. */
#include "coordinator/gateway/openai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire_schema.h"
#include "coordinator/gateway/json_text.h"

#define COMPLETIONS (1u << OPENAI_COMPLETIONS)
#define CHAT        (1u << OPENAI_CHAT)
#define BOTH        (COMPLETIONS | CHAT)

struct field {
    const char *name;
    unsigned routes;
    const char *wire; /* its name in generate; NULL: `read` */
    int (*read)(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e);
    bool harmless; /* ignored: it cannot alter the output */
};

static int out_of_place(struct openai_error *e, const char *name, const char *expected)
{
    return openai_fail(e, 400, "invalid_value", name, "%s: expected %s", name, expected);
}

static struct wire_str string_of(const json_t *v)
{
    return (struct wire_str){json_string_value(v), (uint32_t)json_string_length(v)};
}

/* ---- fields of the wire ---- */
static int read_integer(const struct wire_field *w, void *member, const char *name, const json_t *v,
                        struct openai_error *e)
{
    uint64_t value = (uint64_t)json_integer_value(v);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || value < w->min || value > w->max)
        return openai_fail(e, 400, "invalid_value", name, "%s: expected an integer from %llu to %llu", name,
                           (unsigned long long)w->min,
                           (unsigned long long)(w->max > INT64_MAX ? INT64_MAX : w->max));
    *(uint64_t *)member = value;
    return 0;
}

static int read_number(const struct wire_field *w, void *member, const char *name, const json_t *v,
                       struct openai_error *e)
{
    double value = json_number_value(v);
    if (!json_is_number(v) || !(value >= w->float_min && value <= w->float_max) ||
        (w->above_min && value == w->float_min))
        return openai_fail(e, 400, "invalid_value", name, "%s: expected a number %s %g to %g", name,
                           w->above_min ? "above" : "from", w->float_min, w->float_max);
    *(double *)member = value;
    return 0;
}

static int read_string(const struct wire_field *w, void *member, const char *name, const json_t *v,
                       struct openai_error *e)
{
    struct wire_str s = json_is_string(v) ? string_of(v) : (struct wire_str){NULL, 0};
    if (w->choices && (!s.data || !wire_choice_valid(w->choices, s)))
        return openai_fail(e, 400, "invalid_value", name, "%s: expected one of %s", name, w->choices);
    if (!s.data || s.size < w->min || s.size > w->max || memchr(s.data, 0, s.size))
        return openai_fail(e, 400, "invalid_value", name, "%s: expected a string of at most %llu bytes", name,
                           (unsigned long long)w->max);
    *(struct wire_str *)member = s;
    return 0;
}

static int read_wire(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e)
{
    const struct wire_record *generate = wire_record_find(WIRE_GENERATE);
    const struct wire_field *w = NULL;
    for (uint32_t i = 0; i < generate->field_count; i++)
        if (strcmp(generate->fields[i].name, f->wire) == 0)
            w = &generate->fields[i];
    ASSERT(w);
    char *base = (char *)&r->ask;
    void *member = base + w->offset;
    if (w->has_flag)
        *(bool *)(base + w->side_offset) = true;
    switch (w->kind) {
    case WIRE_KIND_UINT:
        return read_integer(w, member, f->name, v, e);
    case WIRE_KIND_FLOAT:
        return read_number(w, member, f->name, v, e);
    case WIRE_KIND_BOOL:
        *(bool *)member = json_is_true(v);
        return json_is_boolean(v) ? 0 : out_of_place(e, f->name, "true or false");
    case WIRE_KIND_STRING:
        return read_string(w, member, f->name, v, e);
    default:
        ASSERT(!"a field of generate with a reader of its own");
        return -1;
    }
}

/* ---- fields with a reader of their own ---- */
typedef int reader(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e);
static reader read_prompt, read_stop, read_bias, read_count_of_logprobs, read_tier, read_request_id,
    read_flag, read_stream_options, read_format, read_nothing, read_tool_choice, read_best_of, read_messages;

static const struct field fields[] = {
    {.name = "model", .routes = BOTH, .wire = "model"},
    {.name = "prompt", .routes = COMPLETIONS, .read = read_prompt},
    {.name = "messages", .routes = CHAT, .read = read_messages},
    {.name = "max_tokens", .routes = BOTH, .wire = "max_tokens"},
    {.name = "max_completion_tokens", .routes = BOTH, .wire = "max_tokens"},
    {.name = "temperature", .routes = BOTH, .wire = "temperature"},
    {.name = "top_p", .routes = BOTH, .wire = "top_p"},
    {.name = "top_k", .routes = BOTH, .wire = "top_k"},
    {.name = "min_p", .routes = BOTH, .wire = "min_p"},
    {.name = "n", .routes = BOTH, .wire = "n"},
    {.name = "stop", .routes = BOTH, .read = read_stop},
    {.name = "seed", .routes = BOTH, .wire = "seed"},
    {.name = "stream", .routes = BOTH, .read = read_flag},
    {.name = "stream_options", .routes = BOTH, .read = read_stream_options},
    {.name = "logprobs", .routes = CHAT, .wire = "logprobs"},
    {.name = "logprobs", .routes = COMPLETIONS, .read = read_count_of_logprobs},
    {.name = "top_logprobs", .routes = CHAT, .wire = "top_logprobs"},
    {.name = "logit_bias", .routes = BOTH, .read = read_bias},
    {.name = "presence_penalty", .routes = BOTH, .wire = "presence_penalty"},
    {.name = "frequency_penalty", .routes = BOTH, .wire = "frequency_penalty"},
    {.name = "repetition_penalty", .routes = BOTH, .wire = "repetition_penalty"},
    {.name = "ignore_eos", .routes = BOTH, .wire = "ignore_eos"},
    {.name = "no_bos", .routes = COMPLETIONS, .wire = "no_bos"},
    {.name = "special", .routes = COMPLETIONS, .wire = "special"},
    {.name = "speculation", .routes = BOTH, .wire = "speculation"},
    {.name = "draft_tokens", .routes = BOTH, .wire = "draft_tokens"},
    {.name = "cache_salt", .routes = BOTH, .wire = "cache_salt"},
    {.name = "priority", .routes = BOTH, .wire = "priority"},
    {.name = "deadline_ms", .routes = BOTH, .wire = "timeout_ms"},
    {.name = "request_id", .routes = BOTH, .read = read_request_id},
    {.name = "service_tier", .routes = BOTH, .read = read_tier},
    {.name = "response_format", .routes = CHAT, .read = read_format},
    /* known, and taken where they ask for nothing */
    {.name = "tools", .routes = CHAT, .read = read_nothing},
    {.name = "functions", .routes = CHAT, .read = read_nothing},
    {.name = "tool_choice", .routes = CHAT, .read = read_tool_choice},
    {.name = "echo", .routes = COMPLETIONS, .read = read_nothing},
    {.name = "suffix", .routes = COMPLETIONS, .read = read_nothing},
    {.name = "best_of", .routes = COMPLETIONS, .read = read_best_of},
    /* cannot alter the output */
    {.name = "user", .routes = BOTH, .harmless = true},
    {.name = "metadata", .routes = BOTH, .harmless = true},
    {.name = "store", .routes = BOTH, .harmless = true},
    {.name = "safety_identifier", .routes = BOTH, .harmless = true},
    {.name = "prompt_cache_key", .routes = BOTH, .harmless = true},
    {.name = "parallel_tool_calls", .routes = CHAT, .harmless = true}, /* of tools, and there are none */
};

static int read_prompt(struct openai_request *r, const struct field *f, const json_t *v,
                       struct openai_error *e)
{
    if (json_is_array(v) && json_array_size(v) == 1)
        v = json_array_get(v, 0);
    if (!json_is_string(v))
        return out_of_place(e, f->name, "a string, or an array of one string");
    if (json_string_length(v) > WIRE_MAX_PROMPT)
        return openai_fail(e, 413, NULL, f->name, "%s: %zu bytes, expected at most %u", f->name,
                           json_string_length(v), WIRE_MAX_PROMPT);
    r->ask.prompt = string_of(v);
    return 0;
}

static int add_stop(struct openai_request *r, const json_t *v, struct openai_error *e)
{
    struct wire_sampling *s = &r->ask.sampling;
    if (!json_is_string(v) || json_string_length(v) == 0 || json_string_length(v) > WIRE_MAX_STOP ||
        s->stop_count == WIRE_MAX_STOPS)
        return openai_fail(e, 400, "invalid_value", "stop",
                           "stop: expected a string of 1 to %d bytes, or an array of at most %d of them",
                           WIRE_MAX_STOP, WIRE_MAX_STOPS);
    s->stop = r->stop;
    s->stop[s->stop_count++].text = string_of(v);
    return 0;
}

static int read_stop(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e)
{
    (void)f;
    if (!json_is_array(v))
        return add_stop(r, v, e);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (add_stop(r, json_array_get(v, i), e))
            return -1;
    return 0;
}

/* {"15043": -100}: token ids as OpenAI writes them, in strings of digits. */
static int read_bias(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e)
{
    struct wire_sampling *s = &r->ask.sampling;
    const char *key;
    json_t *value;
    if (!json_is_object(v) || json_object_size(v) > WIRE_MAX_BIASES)
        return openai_fail(e, 400, "invalid_value", f->name,
                           "%s: expected an object of at most %d token ids and their biases", f->name,
                           WIRE_MAX_BIASES);
    r->bias = xcalloc(json_object_size(v) + 1, sizeof(*r->bias));
    s->logit_bias = r->bias;
    json_object_foreach((json_t *)v, key, value)
    {
        size_t digits = strspn(key, "0123456789");
        bool number = digits > 0 && digits <= 10 && !key[digits] && (key[0] != '0' || digits == 1);
        unsigned long long id = number ? strtoull(key, NULL, 10) : 0;
        double bias = json_number_value(value);
        if (!number || id > UINT32_MAX)
            return openai_fail(e, 400, "invalid_value", f->name,
                               "%s: \"%.20s\": expected a token id from 0 to %u", f->name, key, UINT32_MAX);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100))
            return openai_fail(e, 400, "invalid_value", f->name,
                               "%s: of token %llu: expected a number from -100 to 100", f->name, id);
        r->bias[s->bias_count++] = (struct wire_bias){.id = id, .bias = bias};
    }
    return 0;
}

/* Of completions: how many of the likeliest, where chat has a flag and a number. */
static int read_count_of_logprobs(struct openai_request *r, const struct field *f, const json_t *v,
                                  struct openai_error *e)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > WIRE_MAX_TOP_LOGPROBS)
        return openai_fail(e, 400, "invalid_value", f->name, "%s: expected an integer from 0 to %d", f->name,
                           WIRE_MAX_TOP_LOGPROBS);
    r->ask.sampling.logprobs = true;
    r->ask.sampling.top_logprobs = (uint64_t)json_integer_value(v);
    return 0;
}

static int read_tier(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e)
{
    static const struct {
        const char *tier, *class;
    } tiers[] = {
        {"auto", "interactive"}, {"default", "interactive"}, {"priority", "realtime"}, {"flex", "batch"}};
    for (size_t i = 0; i < ARRAY_LEN(tiers); i++)
        if (json_is_string(v) && strcmp(json_string_value(v), tiers[i].tier) == 0) {
            r->ask.class = wire_string(tiers[i].class);
            return 0;
        }
    return out_of_place(e, f->name, "auto, default, priority or flex");
}

static int read_request_id(struct openai_request *r, const struct field *f, const json_t *v,
                           struct openai_error *e)
{
    size_t bytes = json_is_string(v) ? json_string_length(v) : 0;
    if (bytes == 0 || bytes > OPENAI_MAX_REQUEST_ID)
        return openai_fail(e, 400, "invalid_value", f->name, "%s: expected a string of 1 to %d bytes",
                           f->name, OPENAI_MAX_REQUEST_ID);
    r->request_id = string_of(v);
    return 0;
}

static int read_flag(struct openai_request *r, const struct field *f, const json_t *v, struct openai_error *e)
{
    r->stream = json_is_true(v);
    return json_is_boolean(v) ? 0 : out_of_place(e, f->name, "true or false");
}

static int read_stream_options(struct openai_request *r, const struct field *f, const json_t *v,
                               struct openai_error *e)
{
    const char *key;
    json_t *value;
    if (!json_is_object(v))
        return out_of_place(e, f->name, "an object");
    json_object_foreach((json_t *)v, key, value)
    {
        if (strcmp(key, "include_usage") == 0 && json_is_boolean(value))
            r->include_usage = json_is_true(value);
        else if (strcmp(key, "include_obfuscation") != 0 || json_is_true(value))
            return openai_fail(e, 400, "unknown_field", f->name,
                               "%s.%.40s: expected include_usage, true or false", f->name, key);
    }
    return 0;
}

static int read_format(struct openai_request *r, const struct field *f, const json_t *v,
                       struct openai_error *e)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    (void)r;
    return type && strcmp(type, "text") == 0 && json_object_size(v) == 1
               ? 0
               : openai_fail(e, 400, "unsupported_value", f->name,
                             "%s: expected {\"type\":\"text\"}: other formats are not served", f->name);
}

/* What is taken only while it asks for nothing: false, 0, "" or an empty array. */
static int read_nothing(struct openai_request *r, const struct field *f, const json_t *v,
                        struct openai_error *e)
{
    bool nothing = json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
                   (json_is_string(v) && json_string_length(v) == 0);
    (void)r;
    return nothing ? 0 : openai_fail(e, 400, "unsupported_value", f->name, "%s: is not served", f->name);
}

static int read_tool_choice(struct openai_request *r, const struct field *f, const json_t *v,
                            struct openai_error *e)
{
    const char *word = json_string_value(v);
    (void)r;
    return word && (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0)
               ? 0
               : openai_fail(e, 400, "unsupported_value", f->name, "%s: tools are not served", f->name);
}

static int read_best_of(struct openai_request *r, const struct field *f, const json_t *v,
                        struct openai_error *e)
{
    (void)r;
    return json_is_integer(v) && json_integer_value(v) == 1
               ? 0
               : openai_fail(e, 400, "unsupported_value", f->name,
                             "%s: expected 1: answers are not weighed against each other", f->name);
}

/* ---- conversations ---- */
/* A content in parts becomes one string; NULL: it is none. */
static json_t *join_parts(const json_t *parts)
{
    struct buffer text = {0};
    json_t *joined = NULL;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i), *words = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || strcmp(type, "text") != 0 || !json_is_string(words))
            goto out;
        buffer_append(&text, json_string_value(words), json_string_length(words));
    }
    joined = json_stringn(text.size ? (const char *)text.data : "", text.size);
out:
    buffer_release(&text);
    return joined;
}

static int check_role(json_t *message, size_t i, struct openai_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant"};
    const char *role = json_string_value(json_object_get(message, "role"));
    for (size_t k = 0; role && k < ARRAY_LEN(roles); k++)
        if (strcmp(role, roles[k]) == 0) {
            if (k == 1) /* templates know the older word */
                json_object_set_new(message, "role", json_string("system"));
            return 0;
        }
    return openai_fail(e, 400, "invalid_value", "messages",
                       "messages[%zu].role: expected system, developer, user or assistant", i);
}

static int check_message(json_t *message, size_t i, struct openai_error *e)
{
    const char *key;
    json_t *value, *content = json_object_get(message, "content");
    if (!json_is_object(message))
        return openai_fail(e, 400, "invalid_value", "messages", "messages[%zu]: expected an object", i);
    if (check_role(message, i, e))
        return -1;
    json_object_foreach(message, key, value)
    {
        bool known = strcmp(key, "role") == 0 || strcmp(key, "content") == 0 ||
                     (strcmp(key, "name") == 0 && json_is_string(value)) || json_is_null(value);
        if (!known)
            return openai_fail(e, 400, "unknown_field", "messages", "messages[%zu].%.40s: is not served", i,
                               key);
    }
    if (json_is_array(content)) {
        json_t *joined = join_parts(content);
        if (joined)
            json_object_set_new(message, "content", joined);
        content = joined;
    }
    return json_is_string(content)
               ? 0
               : openai_fail(e, 400, "invalid_value", "messages",
                             "messages[%zu].content: expected a string, or an array of parts of type text",
                             i);
}

static int read_messages(struct openai_request *r, const struct field *f, const json_t *v,
                         struct openai_error *e)
{
    (void)r;
    if (!json_is_array(v) || json_array_size(v) == 0)
        return out_of_place(e, f->name, "an array of at least one message");
    for (size_t i = 0; i < json_array_size(v); i++)
        if (check_message(json_array_get(v, i), i, e))
            return -1;
    return 0;
}

/* The prompt of a conversation, and where its answer ends. */
static int render(struct openai_request *r, const struct openai_chat *chat, struct openai_error *e)
{
    struct wire_sampling *s = &r->ask.sampling;
    const json_t *messages = json_object_get(r->body, "messages");
    if (!chat)
        return openai_fail(e, 404, "no_chat_template", NULL,
                           "conversations need a chat template: this gateway was started without one");
    if (chat->render(chat->context, r->ask.model, messages, &r->prompt, &e->err)) {
        snprintf(e->param, sizeof(e->param), "messages");
        e->err.code = e->err.code ? e->err.code : 400;
        return -1;
    }
    if (r->prompt.text.size > WIRE_MAX_PROMPT)
        return openai_fail(e, 413, NULL, "messages", "messages: a prompt of %zu bytes, expected at most %u",
                           r->prompt.text.size, WIRE_MAX_PROMPT);
    r->ask.prompt = (struct wire_str){r->prompt.text.size ? (const char *)r->prompt.text.data : "",
                                      (uint32_t)r->prompt.text.size};
    r->ask.special = true;
    r->ask.no_bos = r->prompt.no_bos;
    const char *stop = s->ignore_eos ? NULL : r->prompt.stop;
    if (!stop || !*stop || strlen(stop) > WIRE_MAX_STOP)
        return 0;
    if (s->stop_count == WIRE_MAX_STOPS)
        return openai_fail(e, 400, "invalid_value", "stop",
                           "stop: expected at most %d beside the template's own end of a turn",
                           WIRE_MAX_STOPS - 1);
    s->stop = r->stop;
    s->stop[s->stop_count++].text = wire_string(stop);
    return 0;
}

/* ---- the whole ---- */
static const struct field *find_field(const char *name, enum openai_route route)
{
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        if (strcmp(fields[i].name, name) == 0 && (fields[i].routes & (1u << route)))
            return &fields[i];
    return NULL;
}

static void ignore(struct openai_request *r, const char *name)
{
    size_t used = strlen(r->ignored);
    snprintf(r->ignored + used, sizeof(r->ignored) - used, "%s%s", used ? ", " : "", name);
}

/* For a message: what a client wrote, in printable ASCII. */
static void printable(char out[64], const char *name)
{
    snprintf(out, 64, "%.60s", name);
    for (char *c = out; *c; c++)
        if (*c < 0x20 || *c > 0x7e)
            *c = '?';
}

static int read_fields(struct openai_request *r, struct openai_error *e)
{
    const char *name;
    json_t *value;
    json_object_foreach(r->body, name, value)
    {
        const struct field *f = find_field(name, r->route);
        char shown[64];
        printable(shown, name);
        if (!f)
            return openai_fail(e, 400, "unknown_field", shown,
                               "%s: is not known here, and might alter the output", shown);
        if (f->harmless)
            ignore(r, f->name);
        else if (!json_is_null(value) && (f->wire ? read_wire(r, f, value, e) : f->read(r, f, value, e)))
            return -1;
    }
    return 0;
}

/* What no single field shows. */
static int check(const struct openai_request *r, struct openai_error *e)
{
    const struct wire_generate *g = &r->ask;
    const char *text = r->route == OPENAI_CHAT ? "messages" : "prompt";
    const json_t *given = json_object_get(r->body, text), *most = json_object_get(r->body, "max_tokens"),
                 *completion = json_object_get(r->body, "max_completion_tokens");
    if (!given || json_is_null(given))
        return openai_fail(e, 400, "missing_field", text, "%s: is missing", text);
    if (json_is_integer(most) && json_is_integer(completion) &&
        json_integer_value(most) != json_integer_value(completion))
        return out_of_place(e, "max_completion_tokens", "the same as max_tokens, or only one of the two");
    if (g->sampling.top_logprobs && !g->sampling.logprobs)
        return out_of_place(e, "top_logprobs", "0 without logprobs");
    if (r->include_usage && !r->stream)
        return out_of_place(e, "stream_options", "nothing without stream");
    return 0;
}

int openai_read(struct openai_request *r, enum openai_route route, const void *body, size_t bytes,
                const struct openai_chat *chat, struct openai_error *e)
{
    struct wire_message defaults;
    memset(r, 0, sizeof(*r));
    wire_init(&defaults, WIRE_GENERATE);
    r->ask = defaults.generate;
    r->route = route;
    if (json_text_read(&r->body, body, bytes, &e->err))
        return -1;
    if (!json_is_object(r->body))
        return openai_fail(e, 400, NULL, NULL, "the body: expected a JSON object");
    if (read_fields(r, e) || check(r, e))
        return -1;
    return route == OPENAI_CHAT ? render(r, chat, e) : 0;
}

void openai_release(struct openai_request *r)
{
    json_decref(r->body);
    buffer_release(&r->prompt.text);
    free(r->bias);
    memset(r, 0, sizeof(*r));
}
