#include "worker/infer/speculate.h"

#include <string.h>

#define FIRST_LENGTH  4
#define LONGEST_PAUSE 64

const struct speculate_options speculate_standard = {.least_match = 2, .most_match = 8, .window = 16384};

/* Tokens that are the same going back from a and from b, at most `most`. */
static int32_t match_back(const int32_t *tokens, int32_t a, int32_t b, int32_t most)
{
    int32_t n = 0;
    while (n < most && a - n >= 0 && tokens[a - n] == tokens[b - n])
        n++;
    return n;
}

int32_t speculate_draft(const int32_t *tokens, int32_t count, const struct speculate_options *options,
                        int32_t most, int32_t *draft)
{
    int32_t last = count - 1, best = 0, end = -1;
    int32_t first = count > options->window ? count - options->window : 0;
    if (most < 1)
        return 0;
    for (int32_t i = last - 1; i >= first && best < options->most_match; i--) {
        if (tokens[i] != tokens[last])
            continue;
        int32_t n = match_back(tokens, i, last, options->most_match);
        if (n > best) {
            best = n;
            end = i;
        }
    }
    if (best < options->least_match)
        return 0;
    /* Behind the last token the draft itself goes on: a text of period p is drafted as long as is asked. */
    int32_t period = last - end;
    for (int32_t t = 0; t < most; t++)
        draft[t] = t < period ? tokens[end + 1 + t] : draft[t - period];
    return most;
}

int32_t draft_length_next(struct draft_length *d, int32_t most)
{
    if (d->pause > 0) {
        d->pause--;
        return 0;
    }
    if (d->length == 0)
        d->length = FIRST_LENGTH;
    return d->length < most ? d->length : most;
}

void draft_length_learn(struct draft_length *d, int32_t drafted, int32_t accepted)
{
    if (drafted == 0)
        return;
    if (accepted == drafted) {
        /* A draft that was cut short by others says nothing about longer ones. */
        if (drafted >= d->length)
            d->length = 2 * drafted < SPECULATE_MAX_TOKENS ? 2 * drafted : SPECULATE_MAX_TOKENS;
    } else {
        d->length = accepted + 1;
    }
    d->missed = accepted ? 0 : d->missed + 1;
    if (d->missed > 1) /* the first miss may be chance */
        d->pause = d->missed < 7 ? 1 << (d->missed - 1) : LONGEST_PAUSE;
}
