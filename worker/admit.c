#include "worker/admit.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

/* `began`: the context of the group where the request began, which set its end; 0: here. */
static int check_length(const struct wire_hello *h, uint64_t prompt, uint64_t began, uint64_t *max_tokens,
                        struct err *err)
{
    uint64_t context = began && began < h->context ? began : h->context;
    if (prompt == 0)
        return err_set_code(err, 400, "prompt: gives no tokens, expected at least one");
    if (prompt >= h->context)
        return err_set_code(err, 413, "prompt: %llu tokens, expected fewer than the context of %llu",
                            (unsigned long long)prompt, (unsigned long long)h->context);
    if (prompt<context && * max_tokens> context - prompt)
        *max_tokens = context - prompt; /* the sequence then ends with finish_reason "length" */
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

void admit_init(struct admit *a, const struct wire_hello *group, const struct tokenizer *tokenizer)
{
    *a = (struct admit){.group = group, .tokenizer = tokenizer};
    randombytes_buf(a->salt_key, sizeof(a->salt_key));
}

/* Keyed (SipHash-2-4, Aumasson & Bernstein 2012), for a client chooses its salt: with a plain hash it could
 * choose one that meets another tenant's. */
static uint64_t salt_of(const struct admit *a, struct wire_str tenant, struct wire_str salt)
{
    uint8_t hash[crypto_shorthash_BYTES];
    struct buffer text = {0};
    uint64_t out;
    _Static_assert(crypto_shorthash_KEYBYTES == sizeof(a->salt_key), "key");
    _Static_assert(sizeof(hash) == sizeof(out), "hash");
    buffer_append(&text, tenant.data, tenant.size);
    buffer_append(&text, "", 1); /* a NUL, which neither may hold */
    buffer_append(&text, salt.data, salt.size);
    crypto_shorthash(hash, text.data, text.size, a->salt_key);
    buffer_release(&text);
    memcpy(&out, hash, sizeof(out));
    return out;
}

static int read_biases(struct sequence_request *out, const struct wire_sampling *s,
                       const struct tokenizer *tokenizer, struct err *err)
{
    uint64_t vocab = (uint64_t)tokenizer_vocab_size(tokenizer);
    _Static_assert(WIRE_MAX_BIASES <= SAMPLE_MAX_BIASES, "biases");
    for (uint32_t i = 0; i < s->bias_count; i++)
        if (s->logit_bias[i].id >= vocab)
            return err_set_code(err, 400, "logit_bias: token %llu, expected 0 to %llu",
                                (unsigned long long)s->logit_bias[i].id, (unsigned long long)vocab - 1);
    out->sampling.bias_count = (int32_t)s->bias_count;
    out->biases = s->bias_count ? xcalloc(s->bias_count, sizeof(*out->biases)) : NULL;
    for (uint32_t i = 0; i < s->bias_count; i++)
        out->biases[i] =
            (struct logit_bias){.id = (int32_t)s->logit_bias[i].id, .bias = (float)s->logit_bias[i].bias};
    return 0;
}

/* What other groups generated of the choices. */
static int read_delivered(struct sequence_request *out, const struct wire_assign *a,
                          const struct tokenizer *tokenizer, struct err *err)
{
    uint64_t vocab = (uint64_t)tokenizer_vocab_size(tokenizer), total = 0, ended = 0;
    const struct wire_delivered *of[WIRE_MAX_CHOICES] = {NULL};
    for (uint32_t i = 0; i < a->delivered_count; i++) {
        const struct wire_delivered *d = &a->delivered[i];
        if (d->choice >= a->sampling.n || of[d->choice])
            return err_set_code(err, 400, "delivered: choice %llu, expected each of 0 to %llu once",
                                (unsigned long long)d->choice, (unsigned long long)a->sampling.n - 1);
        if (!d->ended && d->id_count > (uint64_t)out->max_tokens)
            return err_set_code(err, 413, "choice %llu has %u tokens already, this group has room for %d",
                                (unsigned long long)d->choice, d->id_count, out->max_tokens);
        for (uint32_t k = 0; k < d->id_count; k++)
            if (d->ids[k] >= vocab)
                return err_set_code(err, 400, "delivered: token %u, expected 0 to %llu", d->ids[k],
                                    (unsigned long long)vocab - 1);
        of[d->choice] = d;
        total += d->ended ? 0 : d->id_count;
        ended += d->ended;
    }
    if (ended == a->sampling.n)
        return err_set_code(err, 400, "delivered: every choice has ended, expected one that goes on");
    if (a->delivered_count == 0)
        return 0;
    out->delivered_tokens = xcalloc(a->sampling.n, sizeof(*out->delivered_tokens));
    out->delivered = total ? xcalloc(total, sizeof(*out->delivered)) : NULL;
    int32_t *to = out->delivered;
    for (uint64_t c = 0; c < a->sampling.n; c++) {
        uint32_t count = of[c] && !of[c]->ended ? of[c]->id_count : 0;
        for (uint32_t k = 0; k < count; k++)
            *to++ = (int32_t)of[c]->ids[k];
        out->delivered_tokens[c] = of[c] && of[c]->ended ? -1 : (int32_t)count;
    }
    return 0;
}

static struct sample_row read_sampling(const struct wire_sampling *s, int32_t eos)
{
    _Static_assert(WIRE_MAX_TOP_LOGPROBS <= SAMPLE_MAX_TOP, "alternatives");
    return (struct sample_row){.seed = s->seed,
                               .top_k = (int32_t)s->top_k,
                               .temperature = (float)s->temperature,
                               .top_p = (float)s->top_p,
                               .min_p = (float)s->min_p,
                               .repetition_penalty = (float)s->repetition_penalty,
                               .presence_penalty = (float)s->presence_penalty,
                               .frequency_penalty = (float)s->frequency_penalty,
                               .banned_id = s->ignore_eos ? eos : -1,
                               .logprobs = s->logprobs ? 1 + (int32_t)s->top_logprobs : 0};
}

int admit_request(struct sequence_request *out, const struct wire_assign *a, const struct admit *admit,
                  struct token_ids *ids, struct err *err)
{
    const struct wire_sampling *s = &a->sampling;
    struct wire_str speculation = a->service.speculation;
    uint64_t max_tokens = a->max_tokens;
    if (tokenize(ids, a, admit->group, admit->tokenizer, err) ||
        check_length(admit->group, ids->count, a->context, &max_tokens, err))
        return -1;
    *out = (struct sequence_request){.choices = (int32_t)s->n,
                                     .prompt_tokens = (int32_t)ids->count,
                                     .max_tokens = (int32_t)max_tokens,
                                     .stop_at_end = !s->ignore_eos,
                                     .sampling = read_sampling(s, tokenizer_eos(admit->tokenizer)),
                                     .priority = (int32_t)a->service.priority,
                                     .salt = salt_of(admit, a->tenant, a->service.cache_salt),
                                     .speculation = wire_str_is(speculation, "ngram") ? SPECULATION_NGRAM
                                                    : wire_str_is(speculation, "off") ? SPECULATION_OFF
                                                                                      : SPECULATION_DEFAULT,
                                     .draft_tokens = (int32_t)a->service.draft_tokens};
    if (read_biases(out, s, admit->tokenizer, err) || read_delivered(out, a, admit->tokenizer, err)) {
        sequence_request_release(out);
        return -1;
    }
    out->prompt = xmalloc(ids->count * sizeof(int32_t));
    memcpy(out->prompt, ids->data, ids->count * sizeof(int32_t));
    return 0;
}
