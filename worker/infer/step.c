#include "worker/infer/step.h"

#include <stdlib.h>
#include <string.h>

#define STEP_MAGIC 0x5054534Cu /* "LSTP" */

struct step_header {
    uint32_t magic, flags;
    uint64_t id;
    int32_t sequence_count, token_count, sample_count, op_count, bias_count;
    int32_t history_count, history_tokens;
    int32_t time_count;
};

void step_init(struct step *s, const struct step_limits *limits)
{
    *s = (struct step){0};
    s->sequences = xcalloc((size_t)limits->sequences, sizeof(*s->sequences));
    s->ids = xcalloc((size_t)limits->tokens, sizeof(*s->ids));
    s->ops = xcalloc((size_t)limits->page_ops, sizeof(*s->ops));
    s->biases = xcalloc((size_t)limits->biases, sizeof(*s->biases));
    s->history = xcalloc((size_t)limits->sequences, sizeof(*s->history));
    s->history_ids = xcalloc((size_t)limits->history, sizeof(*s->history_ids));
}

void step_release(struct step *s)
{
    if (!s)
        return;
    free(s->sequences);
    free(s->ids);
    free(s->ops);
    free(s->biases);
    free(s->history);
    free(s->history_ids);
    *s = (struct step){0};
}

void step_clear(struct step *s, uint64_t id, uint32_t flags)
{
    s->id = id;
    s->flags = flags;
    s->sequence_count = s->token_count = s->sample_count = s->op_count = s->bias_count = 0;
    s->history_count = s->history_tokens = s->time_count = 0;
}

void step_add_time(struct step *s, const struct stage_time *time)
{
    ASSERT(s->time_count < STEP_MAX_STAGES);
    s->times[s->time_count++] = *time;
}

void step_add_biases(struct step *s, struct sample_row *row, const struct logit_bias *biases, int32_t count)
{
    row->bias_begin = s->bias_count;
    row->bias_count = count;
    if (count)
        memcpy(s->biases + s->bias_count, biases, (size_t)count * sizeof(*biases));
    s->bias_count += count;
}

bool step_wants_logprobs(const struct step *s)
{
    for (int32_t i = 0; i < s->sequence_count; i++)
        if (s->sequences[i].sample && s->sequences[i].row.logprobs)
            return true;
    return false;
}

size_t step_max_bytes(const struct step_limits *l)
{
    return sizeof(struct step_header) + (size_t)l->sequences * sizeof(struct step_sequence) +
           (size_t)l->tokens * sizeof(int32_t) + (size_t)l->page_ops * sizeof(struct page_op) +
           (size_t)l->biases * sizeof(struct logit_bias) +
           (size_t)l->sequences * sizeof(struct step_history) + (size_t)l->history * sizeof(int32_t) +
           STEP_MAX_STAGES * sizeof(struct stage_time);
}

void step_encode(const struct step *s, struct buffer *out)
{
    struct step_header h = {.magic = STEP_MAGIC,
                            .flags = s->flags,
                            .id = s->id,
                            .sequence_count = s->sequence_count,
                            .token_count = s->token_count,
                            .sample_count = s->sample_count,
                            .op_count = s->op_count,
                            .bias_count = s->bias_count,
                            .history_count = s->history_count,
                            .history_tokens = s->history_tokens,
                            .time_count = s->time_count};
    out->size = 0;
    buffer_append(out, &h, sizeof(h));
    buffer_append(out, s->sequences, (size_t)s->sequence_count * sizeof(*s->sequences));
    buffer_append(out, s->ids, (size_t)s->token_count * sizeof(*s->ids));
    buffer_append(out, s->ops, (size_t)s->op_count * sizeof(*s->ops));
    buffer_append(out, s->biases, (size_t)s->bias_count * sizeof(*s->biases));
    buffer_append(out, s->history, (size_t)s->history_count * sizeof(*s->history));
    buffer_append(out, s->history_ids, (size_t)s->history_tokens * sizeof(*s->history_ids));
    buffer_append(out, s->times, (size_t)s->time_count * sizeof(*s->times));
}

static bool within(int32_t value, int32_t low, int32_t high)
{
    return value >= low && value <= high;
}

static int check_header(struct reader *r, const struct step_header *h, const struct step_limits *l)
{
    if (h->magic != STEP_MAGIC)
        return reader_fail(r, "no step descriptor");
    if (!within(h->sequence_count, 0, l->sequences) || !within(h->token_count, 0, l->tokens) ||
        !within(h->sample_count, 0, step_samples(l)) || !within(h->op_count, 0, l->page_ops) ||
        !within(h->bias_count, 0, l->biases))
        return reader_fail(
            r, "%d sequences, %d tokens, %d samples, %d page operations, %d biases: over the limits",
            h->sequence_count, h->token_count, h->sample_count, h->op_count, h->bias_count);
    if (!within(h->history_count, 0, l->sequences) || !within(h->history_tokens, 0, l->history))
        return reader_fail(r, "%d spans and %d tokens of history: over the limits", h->history_count,
                           h->history_tokens);
    /* A stage that decodes a step will add its own. */
    if (!within(h->time_count, 0, STEP_MAX_STAGES - 1))
        return reader_fail(r, "times of %d stages: over the limit", h->time_count);
    if ((h->flags & (STEP_SLEEP | STEP_STOP)) && h->token_count)
        return reader_fail(r, "%d tokens in a step without rows", h->token_count);
    return 0;
}

/* What the sampling kernel takes for granted. */
static int check_sample(struct reader *r, const struct step *s, int32_t i, const struct step_limits *l)
{
    const struct step_sequence *q = &s->sequences[i];
    const struct sample_row *row = &q->row;
    if (!within(q->sample, 1, q->tokens))
        return reader_fail(r, "sequence %d: %d samples of %d rows", i, q->sample, q->tokens);
    if (row->slot != q->slot || !within(row->history_tokens, 0, l->context - q->sample + 1) ||
        !within(row->prompt_tokens, 0, row->history_tokens))
        return reader_fail(r, "sequence %d: sampling history over the limits", i);
    if (!within(row->bias_begin, 0, s->bias_count) ||
        !within(row->bias_count, 0, s->bias_count - row->bias_begin))
        return reader_fail(r, "sequence %d: biases %d to %d of %d", i, row->bias_begin,
                           row->bias_begin + row->bias_count, s->bias_count);
    if (!within(row->logprobs, 0, 1 + SAMPLE_MAX_TOP))
        return reader_fail(r, "sequence %d: %d log-probabilities, expected at most %d", i, row->logprobs,
                           1 + SAMPLE_MAX_TOP);
    return 0;
}

static int check_sequences(struct reader *r, const struct step *s, const struct step_limits *l)
{
    int64_t tokens = 0, samples = 0;
    for (int32_t i = 0; i < s->sequence_count; i++) {
        const struct step_sequence *q = &s->sequences[i];
        if (!within(q->slot, 0, l->slots - 1) || !within(q->tokens, 1, l->tokens) ||
            !within(q->position, 0, l->context - 1) || q->position > l->context - q->tokens)
            return reader_fail(r, "sequence %d: slot %d, position %d, tokens %d: over the limits", i, q->slot,
                               q->position, q->tokens);
        if (q->sample && check_sample(r, s, i, l))
            return -1;
        tokens += q->tokens;
        samples += q->sample;
    }
    if (tokens != s->token_count || samples != s->sample_count)
        return reader_fail(r, "sequences hold %lld tokens and %lld samples, the header says %d and %d",
                           (long long)tokens, (long long)samples, s->token_count, s->sample_count);
    for (int32_t t = 0; t < s->token_count; t++)
        if (!within(s->ids[t], 0, l->vocab - 1))
            return reader_fail(r, "row %d: token id %d is not in the vocabulary of %d", t, s->ids[t],
                               l->vocab);
    for (int32_t i = 0; i < s->bias_count; i++)
        if (!within(s->biases[i].id, 0, l->vocab - 1))
            return reader_fail(r, "bias %d: token id %d is not in the vocabulary of %d", i, s->biases[i].id,
                               l->vocab);
    return 0;
}

static int check_ops(struct reader *r, const struct step *s, const struct step_limits *l)
{
    for (int32_t i = 0; i < s->op_count; i++) {
        const struct page_op *op = &s->ops[i];
        bool good =
            op->kind == PAGE_ASSIGN
                ? within(op->a, 0, l->slots - 1) && within(op->b, 0, l->pages_per_sequence - 1) &&
                      within(op->c, 0, l->pages - 1)
                : op->kind == PAGE_MOVE && within(op->a, -1, l->pages - 1) && within(op->b, 0, l->pages - 1);
        if (!good)
            return reader_fail(r, "page operation %d (%d: %d, %d, %d) is over the limits", i, op->kind, op->a,
                               op->b, op->c);
    }
    return 0;
}

static int check_history(struct reader *r, const struct step *s, const struct step_limits *l)
{
    int64_t tokens = 0;
    for (int32_t i = 0; i < s->history_count; i++) {
        const struct step_history *h = &s->history[i];
        if (!within(h->slot, 0, l->slots - 1) || !within(h->position, 0, l->context - 1) ||
            !within(h->tokens, 1, l->context - h->position))
            return reader_fail(r, "history %d: slot %d, position %d, tokens %d: over the limits", i, h->slot,
                               h->position, h->tokens);
        tokens += h->tokens;
    }
    if (tokens != s->history_tokens)
        return reader_fail(r, "history spans hold %lld tokens, the header says %d", (long long)tokens,
                           s->history_tokens);
    for (int32_t t = 0; t < s->history_tokens; t++)
        if (!within(s->history_ids[t], 0, l->vocab - 1))
            return reader_fail(r, "history token %d: id %d is not in the vocabulary of %d", t,
                               s->history_ids[t], l->vocab);
    return 0;
}

static int read_array(struct reader *r, const char *what, void *to, int32_t count, size_t item)
{
    const uint8_t *from = NULL;
    if (reader_bytes(r, what, (uint64_t)count * item, &from))
        return -1;
    if (count)
        memcpy(to, from, (size_t)count * item);
    return 0;
}

int step_decode(struct step *s, const void *data, size_t bytes, const struct step_limits *limits,
                struct err *err)
{
    struct reader r;
    struct step_header h;
    const uint8_t *p = NULL;
    reader_init(&r, data, bytes, "step descriptor", err);
    if (reader_bytes(&r, "header", sizeof(h), &p))
        return -1;
    memcpy(&h, p, sizeof(h));
    if (check_header(&r, &h, limits))
        return -1;
    step_clear(s, h.id, h.flags);
    s->sequence_count = h.sequence_count;
    s->token_count = h.token_count;
    s->sample_count = h.sample_count;
    s->op_count = h.op_count;
    s->bias_count = h.bias_count;
    s->history_count = h.history_count;
    s->history_tokens = h.history_tokens;
    s->time_count = h.time_count;
    if (read_array(&r, "sequences", s->sequences, h.sequence_count, sizeof(*s->sequences)) ||
        read_array(&r, "token ids", s->ids, h.token_count, sizeof(*s->ids)) ||
        read_array(&r, "page operations", s->ops, h.op_count, sizeof(*s->ops)) ||
        read_array(&r, "logit biases", s->biases, h.bias_count, sizeof(*s->biases)) ||
        read_array(&r, "history spans", s->history, h.history_count, sizeof(*s->history)) ||
        read_array(&r, "history ids", s->history_ids, h.history_tokens, sizeof(*s->history_ids)) ||
        read_array(&r, "times of stages", s->times, h.time_count, sizeof(*s->times)))
        return -1;
    if (reader_left(&r))
        return reader_fail(&r, "%llu bytes too many", (unsigned long long)reader_left(&r));
    return check_sequences(&r, s, limits) || check_ops(&r, s, limits) || check_history(&r, s, limits) ? -1
                                                                                                      : 0;
}
