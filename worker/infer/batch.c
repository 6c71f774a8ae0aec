#include "worker/infer/batch.h"

/* The ready sequence that comes first by order of arrival behind `last`, of those that decode or of those in
 * prefill. */
static int32_t next_ready(const struct batch_sequence *s, int32_t count, bool decode,
                          const struct batch_sequence *last)
{
    int32_t best = -1;
    for (int32_t i = 0; i < count; i++) {
        int32_t behind = s[i].known - s[i].fed;
        if (s[i].busy || behind < 1 || (behind == 1) != decode)
            continue;
        if (last && s[i].order <= last->order)
            continue;
        if (best < 0 || s[i].order < s[best].order)
            best = i;
    }
    return best;
}

int32_t batch_plan(const struct batch_sequence *sequences, int32_t count, const struct batch_limits *limits,
                   struct batch_item *out)
{
    int32_t micro = limits->micro_batches > 0 ? limits->micro_batches : 1;
    int32_t share = (count + micro - 1) / micro;
    int32_t most = share < limits->sequences ? share : limits->sequences;
    int32_t left = limits->tokens, items = 0;
    for (int decode = 1; decode >= 0; decode--) {
        const struct batch_sequence *last = NULL;
        while (items < most && left > 0) {
            int32_t i = next_ready(sequences, count, decode, last);
            if (i < 0)
                break;
            int32_t behind = sequences[i].known - sequences[i].fed;
            int32_t tokens = behind < left ? behind : left;
            out[items++] = (struct batch_item){.sequence = i, .tokens = tokens, .sample = tokens == behind};
            left -= tokens;
            last = &sequences[i];
        }
    }
    return items;
}
