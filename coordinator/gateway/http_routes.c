/* What each request is: its route, whether it may, its answer. */
#include "coordinator/gateway/http_internal.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/clock.h"
#include "coordinator/gateway/json_text.h"

#define CHUNK_BYTES 16384 /* asked of an exchange at once */

/* ---- answers ---- */
static void add(struct MHD_Response *r, const char *name, const char *value)
{
    enum MHD_Result added = MHD_add_response_header(r, name, value);
    ASSERT(added == MHD_YES); /* what comes from outside was checked to be printable */
}

static enum MHD_Result send_response(struct http_call *call, int status, struct MHD_Response *r,
                                     const char *type)
{
    add(r, "Content-Type", type);
    add(r, "X-Request-Id", call->request_id);
    call->status = status;
    enum MHD_Result queued = MHD_queue_response(call->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return queued;
}

static struct MHD_Response *json_response(struct buffer *body)
{
    buffer_append(body, "\n", 1);
    struct MHD_Response *r = MHD_create_response_from_buffer(body->size, body->data, MHD_RESPMEM_MUST_COPY);
    buffer_release(body);
    if (!r)
        die("no memory for a response");
    return r;
}

static enum MHD_Result send_json(struct http_call *call, int status, struct buffer *body)
{
    return send_response(call, status, json_response(body), "application/json");
}

enum MHD_Result http_refuse(struct http_call *call, const struct openai_error *e, bool close)
{
    struct buffer body = {0};
    char seconds[24];
    openai_error_write(e, &body);
    struct MHD_Response *r = json_response(&body);
    uint64_t after_ms = e->retry_after_ms;
    if (after_ms == 0 && (e->err.code == 503 || e->err.code == 429))
        after_ms = 1000;
    if (after_ms) {
        snprintf(seconds, sizeof(seconds), "%llu", (unsigned long long)((after_ms + 999) / 1000));
        add(r, "Retry-After", seconds);
    }
    if (e->err.code == 401)
        add(r, "WWW-Authenticate", "Bearer");
    if (e->err.code == 405)
        add(r, "Allow", call->allow);
    if (close)
        add(r, "Connection", "close");
    return send_response(call, e->err.code, r, "application/json");
}

static int refuse(struct http_call *call, const struct openai_error *e)
{
    return (int)http_refuse(call, e, false);
}

/* ---- generating ---- */
static void sleep_call(void *context)
{
    struct http_call *call = context;
    MHD_suspend_connection(call->connection);
}

static void wake_call(void *context)
{
    struct http_call *call = context;
    MHD_resume_connection(call->connection);
}

static ssize_t read_answer(void *context, uint64_t position, char *into, size_t most)
{
    struct http_call *call = context;
    bool drained;
    (void)position;
    long n = exchange_take(call->exchange, into, most, &drained);
    if (drained)
        upstream_drained(call->http->options.upstream, call->exchange);
    return n == -1 ? MHD_CONTENT_READER_END_OF_STREAM : n == -2 ? MHD_CONTENT_READER_END_WITH_ERROR : n;
}

/* The status of the exchange is asked for; when it is known the answer begins. */
static int answer(struct http_call *call)
{
    struct exchange *x = call->exchange;
    int status = exchange_status(x);
    if (status <= 0)
        return status == 0 ? MHD_YES : MHD_NO;
    if (status != 200)
        return refuse(call, &x->error);
    struct MHD_Response *r = MHD_create_response_from_callback(
        x->answer.stream ? MHD_SIZE_UNKNOWN : x->out.size, CHUNK_BYTES, read_answer, call, NULL);
    if (!r)
        die("no memory for a response");
    if (x->request.ignored[0])
        add(r, "X-Lepton-Ignored", x->request.ignored);
    if (x->answer.stream) {
        add(r, "Cache-Control", "no-cache");
        add(r, "X-Accel-Buffering", "no"); /* proxies gather events otherwise */
    }
    return (int)send_response(call, 200, r, x->answer.stream ? "text/event-stream" : "application/json");
}

/* Two strings as one of fixed length that says nothing of them and that no two others have. */
static void fingerprint(char out[33], const char *who, struct wire_str text)
{
    uint8_t hash[16];
    crypto_generichash_state state;
    crypto_generichash_init(&state, NULL, 0, sizeof(hash));
    crypto_generichash_update(&state, (const unsigned char *)who, strlen(who) + 1);
    crypto_generichash_update(&state, (const unsigned char *)(text.data ? text.data : ""), text.size);
    crypto_generichash_final(&state, hash, sizeof(hash));
    sodium_bin2hex(out, 33, hash, sizeof(hash));
}

/* Its id at the coordinator: the client's own, apart from those of other keys; else a new one. */
static void choose_id(struct http_call *call, const struct openai_request *r, char id[WIRE_MAX_ID + 1])
{
    char hex[33];
    if (r->request_id.data) {
        fingerprint(hex, call->who, r->request_id);
        snprintf(id, WIRE_MAX_ID + 1, "u%s", hex);
    } else {
        snprintf(id, WIRE_MAX_ID + 1, "%s%llu", call->http->name,
                 (unsigned long long)http_next_number(call->http));
    }
}

static int serve_generate(struct http_call *call)
{
    struct openai_request r;
    struct openai_error e = {.code = NULL};
    struct http *h = call->http;
    char id[WIRE_MAX_ID + 1];
    if (call->exchange)
        return answer(call);
    int rc = http_is_draining(h) ? openai_fail(&e, 503, "draining", NULL, "the gateway is draining") : 0;
    if (rc == 0)
        rc = openai_read(&r, call->openai, call->body.data ? (const char *)call->body.data : "",
                         call->body.size, h->options.chat, &e);
    else
        memset(&r, 0, sizeof(r));
    buffer_release(&call->body);
    if (rc) {
        openai_release(&r);
        return refuse(call, &e);
    }
    choose_id(call, &r, id);
    struct exchange *x = exchange_new(&r, id, (int64_t)time(NULL));
    x->sleep = sleep_call;
    x->wake = wake_call;
    x->context = call;
    if (call->who[0] || x->request.ask.service.cache_salt.size) /* prefixes are shared within one key alone */
        fingerprint(x->salt, call->who, x->request.ask.service.cache_salt);
    call->exchange = x;
    http_watch(call, x);
    upstream_submit(h->options.upstream, x);
    return answer(call);
}

/* ---- the other routes ---- */
static int serve_health(struct http_call *call)
{
    struct buffer body = {0};
    buffer_printf(&body, "{\"status\":\"ok\"}");
    return (int)send_json(call, 200, &body);
}

static int serve_version(struct http_call *call)
{
    struct buffer body = {0};
    buffer_printf(&body, "{\"version\":\"" LEPTON_VERSION "\"}");
    return (int)send_json(call, 200, &body);
}

static int serve_ready(struct http_call *call)
{
    struct upstream_state *state = xmalloc(sizeof(*state));
    struct openai_error e;
    struct buffer body = {0};
    upstream_state(call->http->options.upstream, state);
    bool draining = http_is_draining(call->http), ready = state->ready && !draining;
    const char *reason = draining ? "the gateway is draining" : state->reason;
    unsigned long long groups = state->groups;
    free(state);
    if (!ready) {
        openai_fail(&e, 503, "not_ready", NULL, "%s", reason);
        return refuse(call, &e);
    }
    buffer_printf(&body, "{\"status\":\"ready\",\"groups\":%llu}", groups);
    return (int)send_json(call, 200, &body);
}

static void write_model(struct buffer *out, const struct upstream_model *m)
{
    buffer_printf(out, "{\"id\":");
    json_text_string(out, m->name, strlen(m->name));
    buffer_printf(out,
                  ",\"object\":\"model\",\"created\":0,\"owned_by\":\"lepton\",\"max_model_len\":%llu,"
                  "\"groups\":%llu}",
                  (unsigned long long)m->context, (unsigned long long)m->groups);
}

static int serve_models(struct http_call *call)
{
    struct upstream_state *state = xmalloc(sizeof(*state));
    struct openai_error e;
    struct buffer body = {0};
    const char *name = call->argument;
    bool found = !name;
    upstream_state(call->http->options.upstream, state);
    if (!name)
        buffer_printf(&body, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < state->model_count; i++) {
        if (name && strcmp(name, state->models[i].name) != 0)
            continue;
        buffer_printf(&body, !name && i ? "," : "");
        write_model(&body, &state->models[i]);
        found = true;
    }
    if (!name)
        buffer_printf(&body, "]}");
    free(state);
    if (!found) {
        openai_fail(&e, 404, "model_not_found", "model", "no group serves a model \"%.128s\"", name);
        return refuse(call, &e);
    }
    return (int)send_json(call, 200, &body);
}

static const struct route {
    const char *path;
    bool prefix; /* what stands behind it is its argument */
    const char *methods;
    int (*serve)(struct http_call *call);
    enum openai_route openai;
} routes[] = {
    {"/health", false, "GET, HEAD", serve_health, 0},
    {"/ready", false, "GET, HEAD", serve_ready, 0},
    {"/version", false, "GET, HEAD", serve_version, 0},
    {"/v1/models", false, "GET, HEAD", serve_models, 0},
    {"/v1/models/", true, "GET, HEAD", serve_models, 0},
    {"/v1/completions", false, "POST", serve_generate, OPENAI_COMPLETIONS},
    {"/v1/chat/completions", false, "POST", serve_generate, OPENAI_CHAT},
};

/* ---- what headers say ---- */
struct headers {
    unsigned hosts, lengths, codings, keys, types, ids;
    const char *host, *length, *coding, *key, *type, *id;
};

static enum MHD_Result note(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct headers *h = context;
    const struct {
        const char *name, **value;
        unsigned *count;
    } known[] = {{"Host", &h->host, &h->hosts},
                 {"Content-Length", &h->length, &h->lengths},
                 {"Transfer-Encoding", &h->coding, &h->codings},
                 {"Authorization", &h->key, &h->keys},
                 {"Content-Type", &h->type, &h->types},
                 {"X-Request-Id", &h->id, &h->ids}};
    (void)kind;
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (strcasecmp(name, known[i].name) == 0) {
            *known[i].value = value ? value : "";
            ++*known[i].count;
        }
    return MHD_YES;
}

/* What two programs in a row could understand in two ways is refused. */
static int check_framing(const struct headers *h, uint64_t most, uint64_t *length, struct openai_error *e)
{
    *length = 0;
    if (h->hosts > 1 || h->lengths > 1 || h->codings > 1 || h->keys > 1 || (h->lengths && h->codings))
        return openai_fail(e, 400, "ambiguous_request", NULL,
                           "expected at most one each of Host, Authorization, and of Content-Length and "
                           "Transfer-Encoding together");
    if (h->coding && strcasecmp(h->coding, "chunked") != 0)
        return openai_fail(e, 400, NULL, NULL, "Transfer-Encoding: expected chunked");
    if (!h->length)
        return 0;
    size_t digits = strspn(h->length, "0123456789");
    if (digits == 0 || h->length[digits])
        return openai_fail(e, 400, NULL, NULL, "Content-Length: expected a number of bytes");
    *length = digits > 18 ? UINT64_MAX : strtoull(h->length, NULL, 10);
    if (*length > most)
        return openai_fail(e, 413, NULL, NULL, "Content-Length: expected at most %llu bytes",
                           (unsigned long long)most);
    return 0;
}

/* Without keys a web page could ask through the browser of whoever runs this: names of other hosts that lead
 * here are refused (DNS rebinding). */
static bool is_local_name(const char *host)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; host && i < ARRAY_LEN(names); i++) {
        size_t n = strlen(names[i]);
        if (strncasecmp(host, names[i], n) == 0 && (host[n] == ':' || host[n] == '\0'))
            return true;
    }
    return false;
}

/* Default deny: whoever has no key of the file gets nothing. */
static int authenticate(struct http_call *call, const struct headers *h, struct openai_error *e)
{
    struct keys *keys = call->http->options.keys;
    if (!keys)
        return is_local_name(h->host)
                   ? 0
                   : openai_fail(e, 403, NULL, NULL, "Host: expected localhost: this gateway takes no keys");
    if (!h->key)
        return openai_fail(e, 401, NULL, NULL, "expected the header Authorization: Bearer KEY");
    const char *key = strncasecmp(h->key, "Bearer ", 7) == 0 ? h->key + 7 : NULL;
    if (!key || !keys_find(keys, key, strlen(key), call->who))
        return openai_fail(e, 401, NULL, NULL, "the API key is not known here");
    return 0;
}

static void take_request_id(struct http_call *call, const char *given)
{
    size_t n = given ? strlen(given) : 0;
    bool fine = n > 0 && n < sizeof(call->request_id);
    for (size_t i = 0; fine && i < n; i++)
        fine = given[i] > 0x20 && given[i] < 0x7f;
    if (fine)
        memcpy(call->request_id, given, n + 1);
    else
        snprintf(call->request_id, sizeof(call->request_id), "req-%016llx",
                 (unsigned long long)clock_entropy());
}

static const struct route *find_route(struct http_call *call)
{
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        size_t n = strlen(routes[i].path);
        bool same = strncmp(call->path, routes[i].path, n) == 0;
        if (!same || (routes[i].prefix ? call->path[n] == '\0' : call->path[n] != '\0'))
            continue;
        call->argument = routes[i].prefix ? call->path + n : NULL;
        return &routes[i];
    }
    return NULL;
}

/* "GET" within "GET, HEAD". */
static bool may(const char *methods, const char *method)
{
    size_t n = strlen(method);
    for (const char *m = methods; m; m = strchr(m, ' '), m = m ? m + 1 : NULL)
        if (strncmp(m, method, n) == 0 && (m[n] == ',' || m[n] == '\0'))
            return true;
    return false;
}

static int check_body(struct http_call *call, const struct headers *h, uint64_t length,
                      struct openai_error *e)
{
    static const char json[] = "application/json";
    size_t n = sizeof(json) - 1;
    if (!h->type || h->types > 1 || strncasecmp(h->type, json, n) != 0 || !strchr("; \t", h->type[n]))
        return openai_fail(e, 415, NULL, NULL, "Content-Type: expected application/json");
    if (length && !http_reserve(call, length))
        return openai_fail(e, 503, "busy", NULL, "too many bodies are being received at once");
    return 0;
}

int http_begin(struct http_call *call)
{
    struct openai_error *e = &call->refusal;
    struct headers h = {0};
    uint64_t length;
    MHD_get_connection_values(call->connection, MHD_HEADER_KIND, note, &h);
    take_request_id(call, h.id);
    if (check_framing(&h, call->http->options.max_body_bytes, &length, e))
        return -1;
    const struct route *route = find_route(call);
    if (!(route && route->serve == serve_health) && authenticate(call, &h, e))
        return -1;
    if (!route)
        return openai_fail(e, 404, NULL, NULL, "%.100s: no such route", call->path);
    if (!may(route->methods, call->method)) {
        call->allow = route->methods;
        return openai_fail(e, 405, NULL, NULL, "%s: expected %s", route->path, route->methods);
    }
    call->serve = route->serve;
    call->openai = route->openai;
    return route->serve == serve_generate ? check_body(call, &h, length, e) : 0;
}

enum MHD_Result http_serve(struct http_call *call)
{
    return (enum MHD_Result)call->serve(call);
}
