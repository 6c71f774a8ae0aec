#include "worker/admit.h"

#include <stdlib.h>
#include <string.h>

static int check_length(const struct wire_hello *h, uint64_t prompt, uint64_t *max_tokens, struct err *err)
{
    if (prompt == 0)
        return err_set_code(err, 400, "prompt: gives no tokens, expected at least one");
    if (prompt >= h->context)
        return err_set_code(err, 413, "prompt: %llu tokens, expected fewer than the context of %llu",
                            (unsigned long long)prompt, (unsigned long long)h->context);
    if (*max_tokens > h->context - prompt)
        *max_tokens = h->context - prompt; /* the sequence then ends with finish_reason "length" */
    uint64_t most = prompt + *max_tokens - 1, pages = (most + h->page_tokens - 1) / h->page_tokens;
    if (pages > h->pages)
        return err_set_code(
            err, 413, "prompt of %llu tokens and %llu to generate need %llu KV pages, the group has %llu",
            (unsigned long long)prompt, (unsigned long long)*max_tokens, (unsigned long long)pages,
            (unsigned long long)h->pages);
    return 0;
}

/* The text as ids. A prompt that cannot fit is refused before it is tokenised: a token covers a bounded
 * number of bytes, so the bytes alone prove it. */
static int tokenize(struct token_ids *ids, const struct wire_assign *a, const struct wire_hello *h,
                    const struct tokenizer *tokenizer, struct err *err)
{
    const uint64_t longest_piece = 256;
    if (a->prompt.size / longest_piece >= h->context)
        return err_set_code(err, 413, "prompt: %u bytes cannot fit the context of %llu tokens",
                            a->prompt.size, (unsigned long long)h->context);
    struct tokenizer_options options = {.add_bos = !a->no_bos && tokenizer_adds_bos(tokenizer),
                                        .parse_special = a->special};
    ids->count = 0;
    if (tokenizer_encode(tokenizer, a->prompt.data, a->prompt.size, &options, ids, err)) {
        err->code = 400;
        return -1;
    }
    return 0;
}

int admit_request(struct sequence_request *out, const struct wire_assign *a, const struct wire_hello *group,
                  const struct tokenizer *tokenizer, struct token_ids *ids, struct err *err)
{
    const struct wire_sampling *s = &a->sampling;
    uint64_t max_tokens = a->max_tokens;
    if (tokenize(ids, a, group, tokenizer, err) || check_length(group, ids->count, &max_tokens, err))
        return -1;
    *out = (struct sequence_request){.choices = 1,
                                     .prompt = xmalloc(ids->count * sizeof(int32_t)),
                                     .prompt_tokens = (int32_t)ids->count,
                                     .max_tokens = (int32_t)max_tokens,
                                     .stop_at_end = !s->ignore_eos};
    memcpy(out->prompt, ids->data, ids->count * sizeof(int32_t));
    out->sampling = (struct sample_row){.seed = s->seed,
                                        .top_k = (int32_t)s->top_k,
                                        .temperature = (float)s->temperature,
                                        .top_p = (float)s->top_p,
                                        .min_p = (float)s->min_p,
                                        .repetition_penalty = (float)s->repetition_penalty,
                                        .presence_penalty = (float)s->presence_penalty,
                                        .frequency_penalty = (float)s->frequency_penalty,
                                        .banned_id = s->ignore_eos ? tokenizer_eos(tokenizer) : -1};
    return 0;
}
