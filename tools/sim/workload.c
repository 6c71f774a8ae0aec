#include "tools/sim/workload.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire.h"
#include "coordinator/heap.h"

#define BURST_FACTOR 4.0  /* a burst has this many times the mean rate, */
#define BURST_S      10.0 /* lasts so long in the mean, and takes a fifth of the time */
#define BURST_SHARE  0.2
#define BLOCK_TOKENS 512 /* of a Mooncake trace */
#define MAX_LINE     (16 << 20)

struct workload {
    struct workload_options o;
    uint64_t random;
    uint64_t issued; /* taken and pending */
    double next_us;  /* the next conversation */
    bool burst;
    double phase_end_us;
    uint64_t next_conversation;
    struct workload_item *pending; /* later turns, by arrival */
    struct heap_node *nodes;
    struct heap heap;
    uint32_t pending_limit, unused; /* unused: through nodes[].next */
    struct workload_item *trace;    /* or NULL */
    uint64_t trace_count, trace_next;
    uint64_t **blocks; /* of the trace's items */
};

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint64_t draw(struct workload *w)
{
    w->random += 0x9e3779b97f4a7c15ull;
    return mix(w->random);
}

/* In (0, 1]. */
static double uniform(struct workload *w)
{
    return (double)((draw(w) >> 11) + 1) / 9007199254740992.0;
}

static double exponential(struct workload *w, double mean)
{
    return -mean * log(uniform(w));
}

/* Lengths of prompts are about log-normal. */
static double log_normal(struct workload *w, double mean)
{
    const double sigma = 0.8;
    double normal = sqrt(-2 * log(uniform(w))) * cos(2 * M_PI * uniform(w));
    return mean * exp(sigma * normal - sigma * sigma / 2);
}

static uint32_t clamp(double x, double low, double high)
{
    return (uint32_t)(x < low ? low : x > high ? high : x);
}

/* ---- later turns ---- */
static void grow_pending(struct workload *w)
{
    uint32_t limit = w->pending_limit ? 2 * w->pending_limit : 1024;
    w->pending = xrealloc(w->pending, limit * sizeof(*w->pending));
    w->nodes = xrealloc(w->nodes, limit * sizeof(*w->nodes));
    for (uint32_t i = w->pending_limit; i < limit; i++) {
        w->nodes[i].next = w->unused;
        w->unused = i;
    }
    w->pending_limit = limit;
}

static void push(struct workload *w, const struct workload_item *item)
{
    if (w->unused == HEAP_NONE)
        grow_pending(w);
    uint32_t i = w->unused;
    w->unused = w->nodes[i].next;
    w->pending[i] = *item;
    heap_push(&w->heap, w->nodes, i, item->arrival_us, item->conversation);
}

static struct workload_item pop(struct workload *w)
{
    uint32_t i = heap_first(&w->heap);
    heap_remove(&w->heap, w->nodes, i);
    w->nodes[i].next = w->unused;
    w->unused = i;
    return w->pending[i];
}

/* ---- arrivals ---- */
static void next_arrival(struct workload *w)
{
    double turns = w->o.turns > 1 ? w->o.turns : 1, mean_us = 1e6 * turns / w->o.rate;
    if (w->o.arrivals == ARRIVALS_POISSON) {
        w->next_us += exponential(w, mean_us);
        return;
    }
    /* Two rates in turn, so that the mean is the one asked for (a Markov-modulated Poisson process). */
    double quiet = (1 - BURST_FACTOR * BURST_SHARE) / (1 - BURST_SHARE);
    for (;;) {
        double gap = exponential(w, mean_us / (w->burst ? BURST_FACTOR : quiet));
        if (w->next_us + gap <= w->phase_end_us) {
            w->next_us += gap;
            return;
        }
        w->next_us = w->phase_end_us;
        w->burst = !w->burst;
        double mean_s = w->burst ? BURST_S : BURST_S * (1 - BURST_SHARE) / BURST_SHARE;
        w->phase_end_us += exponential(w, 1e6 * mean_s);
    }
}

struct workload *workload_new(const struct workload_options *o)
{
    ASSERT(o->rate > 0 && o->tenants > 0);
    struct workload *w = xcalloc(1, sizeof(*w));
    w->o = *o;
    w->random = o->seed;
    w->heap = heap_empty();
    w->unused = HEAP_NONE;
    next_arrival(w);
    return w;
}

void workload_free(struct workload **pw)
{
    struct workload *w = *pw;
    if (!w)
        return;
    for (uint64_t i = 0; i < w->trace_count; i++)
        free(w->blocks[i]);
    free(w->blocks);
    free(w->trace);
    free(w->pending);
    free(w->nodes);
    free(w);
    *pw = NULL;
}

static uint32_t draw_tenant(struct workload *w)
{
    double all = w->o.greedy + (w->o.tenants - 1), at = uniform(w) * all;
    if (at <= w->o.greedy || w->o.tenants == 1)
        return 0;
    uint32_t tenant = 1 + (uint32_t)(at - w->o.greedy);
    return tenant < w->o.tenants ? tenant : w->o.tenants - 1;
}

static uint32_t draw_class(struct workload *w)
{
    double sum = 0;
    for (int c = 0; c < WORKLOAD_CLASSES; c++)
        sum += w->o.class_share[c];
    double at = uniform(w) * sum;
    for (uint32_t c = 0; c < WORKLOAD_CLASSES - 1; c++) {
        if (at <= w->o.class_share[c])
            return c;
        at -= w->o.class_share[c];
    }
    return WORKLOAD_CLASSES - 1;
}

/* One answer draws nothing: seeds say what they said before there were choices. */
static uint32_t draw_choices(struct workload *w)
{
    return w->o.choices > 1 ? 1 + (uint32_t)(draw(w) % w->o.choices) : 1;
}

static struct workload_item first_turn(struct workload *w)
{
    struct workload_item item = {.arrival_us = (uint64_t)w->next_us,
                                 .conversation = ++w->next_conversation,
                                 .tenant = draw_tenant(w),
                                 .class = draw_class(w)};
    double most = w->o.max_prompt_tokens;
    item.deadline_us = w->o.deadline_ms[item.class] * 1000;
    item.system_tokens = w->o.system_tokens;
    item.prompt_tokens = clamp(w->o.system_tokens + log_normal(w, w->o.prompt_tokens), 4, most);
    item.output_tokens = clamp(exponential(w, w->o.output_tokens), 1, 8 * w->o.output_tokens + 1);
    item.choices = draw_choices(w);
    next_arrival(w);
    return item;
}

uint64_t workload_due_us(const struct workload *w)
{
    uint64_t due = UINT64_MAX;
    if (w->trace)
        return w->trace_next < w->trace_count ? w->trace[w->trace_next].arrival_us : UINT64_MAX;
    if (heap_first(&w->heap) != HEAP_NONE)
        due = w->nodes[heap_first(&w->heap)].key;
    if (w->issued < w->o.requests && (uint64_t)w->next_us < due)
        due = (uint64_t)w->next_us;
    return due;
}

void workload_take(struct workload *w, struct workload_item *out)
{
    if (w->trace) {
        *out = w->trace[w->trace_next++];
        return;
    }
    uint32_t first = heap_first(&w->heap);
    bool fresh =
        w->issued < w->o.requests && (first == HEAP_NONE || (uint64_t)w->next_us < w->nodes[first].key);
    if (fresh)
        w->issued++;
    *out = fresh ? first_turn(w) : pop(w);
}

void workload_answered(struct workload *w, const struct workload_item *item, uint64_t now_us)
{
    if (w->trace || w->o.turns <= 1 || w->issued >= w->o.requests || uniform(w) * w->o.turns <= 1)
        return;
    struct workload_item next = *item;
    double prompt = (double)item->prompt_tokens + item->output_tokens + log_normal(w, w->o.prompt_tokens);
    if (prompt > w->o.max_prompt_tokens)
        return; /* the conversation is as long as it may be */
    next.turn++;
    next.prompt_tokens = (uint32_t)prompt;
    next.output_tokens = clamp(exponential(w, w->o.output_tokens), 1, 8 * w->o.output_tokens + 1);
    next.choices = draw_choices(w);
    next.arrival_us = now_us + (uint64_t)exponential(w, 1e6 * w->o.think_s);
    w->issued++;
    push(w, &next);
}

uint64_t workload_left(const struct workload *w)
{
    return w->trace ? w->trace_count - w->trace_next : w->o.requests - w->issued + w->heap.count;
}

/* ---- what prompts begin with ---- */
static uint64_t content(const struct workload_item *item, uint32_t cut, uint64_t from, uint64_t to)
{
    const uint64_t block = BLOCK_TOKENS * WORKLOAD_TOKEN_BYTES;
    if (item->blocks) { /* the blocks that begin within this piece */
        uint64_t name = 0;
        for (uint64_t b = (from + block - 1) / block; b * block < to && b < item->block_count; b++)
            name = mix(name ^ item->blocks[b]) + 1;
        return name;
    }
    if (to <= (uint64_t)item->system_tokens * WORKLOAD_TOKEN_BYTES)
        return mix(cut + 1);
    return mix(item->conversation * 0x9e3779b97f4a7c15ull + cut);
}

void workload_prefix(const struct workload_item *item, struct prefix_key *key,
                     struct engine_place places[ENGINE_PLACES])
{
    uint64_t bytes = (uint64_t)item->prompt_tokens * WORKLOAD_TOKEN_BYTES, place = item->tenant + 1, from = 0;
    key->count = 0;
    for (uint32_t i = 0; i < PREFIX_CUTS && prefix_cut(i) <= bytes; i++) {
        uint64_t to = prefix_cut(i);
        place = prefix_place_after(place, content(item, i, from, to));
        key->place[key->count++] = place;
        places[i] = (struct engine_place){.name = place, .tokens = (uint32_t)(to / WORKLOAD_TOKEN_BYTES)};
        from = to;
    }
}

/* `bytes` letters that follow from a name; a space now and then, as words have it. */
static void append_letters(struct buffer *out, uint64_t name, uint64_t bytes)
{
    char word[8];
    for (uint64_t i = 0; i < bytes; i += sizeof(word)) {
        uint64_t z = mix(name + i * 0x9e3779b97f4a7c15ull);
        for (size_t k = 0; k < sizeof(word); k++, z >>= 8)
            word[k] = k == sizeof(word) - 1 ? ' ' : (char)('a' + z % 26);
        buffer_append(out, word, bytes - i < sizeof(word) ? (size_t)(bytes - i) : sizeof(word));
    }
}

void workload_prompt(const struct workload_item *item, struct buffer *out)
{
    uint64_t bytes = (uint64_t)item->prompt_tokens * WORKLOAD_TOKEN_BYTES, from = 0;
    out->size = 0;
    for (uint32_t i = 0; i < PREFIX_CUTS && prefix_cut(i) <= bytes; i++) {
        append_letters(out, content(item, i, from, prefix_cut(i)), prefix_cut(i) - from);
        from = prefix_cut(i);
    }
    append_letters(out, mix(item->conversation + item->turn + 1), bytes - from);
}

/* ---- traces ---- */
static int number_of(const json_t *o, const char *name, const char *other, bool needed, double *out,
                     struct err *err)
{
    const json_t *v = json_object_get(o, name);
    v = v ? v : json_object_get(o, other);
    if (!v && !needed)
        return 0;
    if (!json_is_number(v) || !(json_number_value(v) >= 0) || json_number_value(v) > 1e15)
        return err_set(err, "\"%s\" or \"%s\": expected a number from 0 to 1e15", name, other);
    *out = json_number_value(v);
    return 1;
}

static int class_of(const json_t *v, uint32_t *class, struct err *err)
{
    static const char *const names[WORKLOAD_CLASSES] = {"realtime", "interactive", "batch"};
    const char *text = json_string_value(v);
    for (uint32_t c = 0; text && c < WORKLOAD_CLASSES; c++)
        if (strcmp(text, names[c]) == 0) {
            *class = c;
            return 0;
        }
    return err_set(err, "\"class\": expected realtime, interactive or batch");
}

static int read_blocks(const json_t *ids, struct workload_item *item, uint64_t **blocks, struct err *err)
{
    size_t count = json_array_size(ids);
    if (!json_is_array(ids) || count > 1000000)
        return err_set(err, "\"hash_ids\": expected a list of up to 1000000 integers");
    *blocks = xcalloc(count + 1, sizeof(**blocks));
    for (size_t i = 0; i < count; i++) {
        if (!json_is_integer(json_array_get(ids, i)))
            return err_set(err, "\"hash_ids\": entry %zu is not an integer", i);
        (*blocks)[i] = mix((uint64_t)json_integer_value(json_array_get(ids, i)) + 1);
    }
    item->blocks = *blocks;
    item->block_count = (uint32_t)count;
    return 0;
}

static int read_item(const struct workload_options *o, const json_t *line, struct workload_item *item,
                     uint64_t **blocks, struct err *err)
{
    double arrival_ms = 0, prompt = 0, output = 0, tenant = 0, conversation = 0, deadline_ms = -1, n = 1;
    item->class = 1;
    if (number_of(line, "arrival_ms", "timestamp", true, &arrival_ms, err) < 0 ||
        number_of(line, "prompt_tokens", "input_length", true, &prompt, err) < 0 ||
        number_of(line, "output_tokens", "output_length", true, &output, err) < 0 ||
        number_of(line, "tenant", "tenant", false, &tenant, err) < 0 ||
        number_of(line, "conversation", "conversation", false, &conversation, err) < 0 ||
        number_of(line, "deadline_ms", "deadline_ms", false, &deadline_ms, err) < 0 ||
        number_of(line, "n", "n", false, &n, err) < 0)
        return -1;
    const json_t *class = json_object_get(line, "class"), *ids = json_object_get(line, "hash_ids");
    if ((class && class_of(class, &item->class, err)) || (ids && read_blocks(ids, item, blocks, err)))
        return -1;
    if (prompt > 1e7 || output > 1e7)
        return err_set(err, "a request of %.0f and %.0f tokens, expected at most 10000000", prompt, output);
    item->arrival_us = (uint64_t)(arrival_ms * 1000);
    item->prompt_tokens = clamp(prompt, 1, 1e7);
    item->output_tokens = clamp(output, 1, 1e7);
    item->choices = clamp(n, 1, WIRE_MAX_CHOICES);
    item->tenant = (uint32_t)fmod(tenant, 1e6);
    item->conversation = conversation > 0 ? (uint64_t)conversation : item->conversation;
    item->deadline_us =
        deadline_ms >= 0 ? (uint64_t)(deadline_ms * 1000) : o->deadline_ms[item->class] * 1000;
    return 0;
}

static int by_arrival(const void *a, const void *b)
{
    const struct workload_item *x = a, *y = b;
    if (x->arrival_us != y->arrival_us)
        return x->arrival_us < y->arrival_us ? -1 : 1;
    return x->conversation < y->conversation ? -1 : x->conversation > y->conversation;
}

static int read_line(struct workload *w, const char *text, size_t bytes, uint64_t *capacity, struct err *err)
{
    json_error_t where;
    json_t *line = json_loadb(text, bytes, 0, &where);
    if (!json_is_object(line)) {
        json_decref(line);
        return err_set(err, "%s", line ? "expected a JSON object" : where.text);
    }
    if (w->trace_count == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 1024;
        w->trace = xrealloc(w->trace, *capacity * sizeof(*w->trace));
        w->blocks = xrealloc(w->blocks, *capacity * sizeof(*w->blocks));
    }
    uint64_t i = w->trace_count++;
    w->blocks[i] = NULL;
    w->trace[i] = (struct workload_item){.conversation = (1ull << 40) + i};
    int result = read_item(&w->o, line, &w->trace[i], &w->blocks[i], err);
    json_decref(line);
    return result;
}

int workload_trace(struct workload **out, const struct workload_options *o, const char *path, struct err *err)
{
    struct workload_options plain = *o;
    plain.rate = plain.rate > 0 ? plain.rate : 1;
    FILE *file = fopen(path, "r");
    if (!file)
        return err_set(err, "%s: %s", path, strerror(errno));
    struct workload *w = workload_new(&plain);
    char *text = NULL;
    size_t size = 0;
    uint64_t number = 0, capacity = 0;
    ssize_t bytes;
    int result = 0;
    while (result == 0 && (o->requests == 0 || w->trace_count < o->requests) &&
           (bytes = getline(&text, &size, file)) >= 0) {
        number++;
        if (bytes > MAX_LINE)
            result = err_set(err, "%s:%llu: a line of %zd bytes, expected at most %d", path,
                             (unsigned long long)number, bytes, MAX_LINE);
        else if (strspn(text, " \t\r\n") < (size_t)bytes && read_line(w, text, (size_t)bytes, &capacity, err))
            result = err_prefix(err, "%s:%llu", path, (unsigned long long)number);
    }
    if (result == 0 && w->trace_count == 0)
        result = err_set(err, "%s: no request in it", path);
    free(text);
    fclose(file);
    if (result) {
        workload_free(&w);
        return -1;
    }
    qsort(w->trace, w->trace_count, sizeof(*w->trace), by_arrival);
    *out = w;
    return 0;
}
