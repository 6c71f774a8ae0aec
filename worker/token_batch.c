#include "worker/token_batch.h"

bool token_batch_add(struct token_batch *b, const struct wire_token *t)
{
    if (t->piece.size > 0 || t->top_count > 0 || t->logprob != 0)
        return false;
    ASSERT(!token_batch_full(b));
    b->item[b->count++] = *t;
    buffer_append(&b->text, t->request.data, t->request.size);
    if (t->text.size > 0)
        buffer_append(&b->text, t->text.data, t->text.size);
    return true;
}

/* The bytes may have moved while tokens were added: only now is it known where they lie. */
static void place(struct token_batch *b)
{
    const char *at = (const char *)b->text.data;
    for (uint32_t i = 0; i < b->count; i++) {
        b->item[i].request.data = at;
        at += b->item[i].request.size;
        b->item[i].text.data = at;
        at += b->item[i].text.size;
    }
}

bool token_batch_take(struct token_batch *b, struct wire_str group, uint64_t epoch, struct wire_message *out)
{
    if (b->count == 0)
        return false;
    place(b);
    if (b->count == 1) {
        wire_init(out, WIRE_TOKEN);
        out->token = b->item[0];
        out->token.group = group;
        out->token.epoch = epoch;
    } else {
        wire_init(out, WIRE_TOKENS);
        out->tokens =
            (struct wire_tokens){.items = b->item, .item_count = b->count, .group = group, .epoch = epoch};
    }
    token_batch_drop(b);
    return true;
}

void token_batch_drop(struct token_batch *b)
{
    b->count = 0;
    b->text.size = 0;
}

void token_batch_release(struct token_batch *b)
{
    buffer_release(&b->text);
}
