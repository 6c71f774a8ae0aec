#include "coordinator/poison.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct poisons {
    struct poison *items; /* [count], the oldest first */
    uint32_t count;
    uint64_t keep_ms;
};

struct poisons *poisons_new(uint64_t keep_ms)
{
    struct poisons *list = xcalloc(1, sizeof(*list));
    list->keep_ms = keep_ms;
    return list;
}

void poisons_free(struct poisons **list)
{
    if (!*list)
        return;
    free((*list)->items);
    free(*list);
    *list = NULL;
}

uint32_t poisons_count(const struct poisons *list)
{
    return list->count;
}

static void drop_at(struct poisons *list, uint32_t i)
{
    memmove(&list->items[i], &list->items[i + 1], (list->count - i - 1) * sizeof(*list->items));
    list->count--;
}

static struct poison *find(struct poisons *list, const char *owner, const uint8_t digest[REQUEST_DIGEST])
{
    for (uint32_t i = 0; i < list->count; i++)
        if (memcmp(list->items[i].digest, digest, REQUEST_DIGEST) == 0 &&
            strcmp(list->items[i].owner, owner) == 0)
            return &list->items[i];
    return NULL;
}

struct poison *poisons_find(struct poisons *list, const char *owner, const uint8_t digest[REQUEST_DIGEST],
                            uint64_t now_ms)
{
    struct poison *p = find(list, owner, digest);
    return p && now_ms < p->until_ms ? p : NULL;
}

bool poisons_drop(struct poisons *list, const char *owner, const uint8_t digest[REQUEST_DIGEST])
{
    struct poison *p = find(list, owner, digest);
    if (p)
        drop_at(list, (uint32_t)(p - list->items));
    return p != NULL;
}

struct poison *poisons_put(struct poisons *list, const struct poison *in, uint64_t age_ms, uint64_t now_ms,
                           struct poison *dropped)
{
    dropped->owner[0] = 0;
    if (age_ms >= list->keep_ms)
        return NULL;
    poisons_drop(list, in->owner, in->digest);
    if (list->count == POISON_MOST) {
        *dropped = list->items[0];
        drop_at(list, 0);
    }
    if (!list->items)
        list->items = xcalloc(POISON_MOST, sizeof(*list->items));
    struct poison *p = &list->items[list->count++];
    *p = *in;
    p->until_ms = now_ms + list->keep_ms - age_ms;
    return p;
}

struct poison *poisons_learn(struct poisons *list, uint32_t *at, const char *group, uint64_t epoch,
                             const char *ended)
{
    while (*at < list->count) {
        struct poison *p = &list->items[(*at)++];
        bool news = false;
        for (uint32_t i = 0; i < p->count; i++) {
            struct poison_loss *l = &p->loss[i];
            if (l->cause != LOSS_UNKNOWN || l->epoch != epoch || strcmp(l->group, group) != 0)
                continue;
            l->cause = loss_cause_of(wire_string(ended));
            snprintf(l->ended, sizeof(l->ended), "%s", ended);
            news = true;
        }
        if (news)
            return p;
    }
    return NULL;
}

/* ---- as bytes ---- */
/* Each loss: cause, alone, epoch, then its group and how that ended, each behind its length. */
static void put_text(struct buffer *out, const char *text)
{
    uint8_t bytes = (uint8_t)strlen(text);
    buffer_append(out, &bytes, 1);
    buffer_append(out, text, bytes);
}

void poison_record(const struct poison *p, struct buffer *out)
{
    for (uint32_t i = 0; i < p->count; i++) {
        const struct poison_loss *l = &p->loss[i];
        uint8_t facts[2] = {(uint8_t)l->cause, l->alone};
        buffer_append(out, facts, sizeof(facts));
        buffer_u64(out, l->epoch);
        put_text(out, l->group);
        put_text(out, l->ended);
    }
}

static int read_text(struct reader *in, char *out, size_t room)
{
    uint8_t bytes = 0;
    const uint8_t *text = NULL;
    if (reader_u8(in, "length", &bytes) || reader_bytes(in, "text", bytes, &text))
        return -1;
    if (bytes >= room || memchr(text, 0, bytes))
        return reader_fail(in, "a text of %u bytes", bytes);
    snprintf(out, room, "%.*s", (int)bytes, (const char *)text);
    return 0;
}

int poison_read(struct poison *p, const void *bytes, size_t size, struct err *err)
{
    struct reader in;
    reader_init(&in, bytes, size, "losses", err);
    p->count = 0;
    while (reader_left(&in) > 0) {
        uint8_t cause = 0, alone = 0;
        if (p->count == SUSPECT_LOSSES)
            return reader_fail(&in, "more than %d", SUSPECT_LOSSES);
        struct poison_loss *l = &p->loss[p->count];
        if (reader_u8(&in, "cause", &cause) || reader_u8(&in, "alone", &alone) ||
            reader_u64(&in, "epoch", &l->epoch) || read_text(&in, l->group, sizeof(l->group)) ||
            read_text(&in, l->ended, sizeof(l->ended)))
            return -1;
        if (cause > LOSS_OF_ITSELF || alone > 1)
            return reader_fail(&in, "cause %u", cause);
        l->cause = (enum loss_cause)cause;
        l->alone = alone;
        p->count++;
    }
    return 0;
}
