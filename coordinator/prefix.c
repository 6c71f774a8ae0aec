#include "coordinator/prefix.h"

#include <stdlib.h>
#include <string.h>

#define WAYS           8 /* entries of a set: the oldest of them makes room */
#define NO_GROUP       UINT32_MAX
#define SNAPSHOT       0x3150584eu /* "NXP1" */
#define MAX_FOUND      16
#define NAME_MAX_BYTES 255

struct place {
    uint64_t hash; /* 0: empty */
    uint32_t used; /* the index's clock when it was last noted */
    uint32_t group[PREFIX_GROUPS];
};

struct prefix_index {
    uint32_t sets; /* a power of two */
    uint32_t clock, in_use;
    struct place *places; /* [sets * WAYS] */
};

struct prefix_index *prefix_new(uint32_t places)
{
    struct prefix_index *x = xcalloc(1, sizeof(*x));
    for (x->sets = 1; x->sets * WAYS < places && x->sets < UINT32_MAX / WAYS / 2;)
        x->sets *= 2;
    x->places = xcalloc((size_t)x->sets * WAYS, sizeof(*x->places));
    return x;
}

void prefix_free(struct prefix_index **x)
{
    if (!*x)
        return;
    free((*x)->places);
    free(*x);
    *x = NULL;
}

static struct place *set_of(const struct prefix_index *x, uint64_t hash)
{
    return &x->places[(size_t)(hash & (x->sets - 1)) * WAYS];
}

static struct place *find(const struct prefix_index *x, uint64_t hash)
{
    struct place *set = set_of(x, hash);
    for (int i = 0; i < WAYS; i++)
        if (set[i].hash == hash)
            return &set[i];
    return NULL;
}

/* An empty place of the set, or the one that was not noted for the longest time. */
static struct place *make_room(struct prefix_index *x, uint64_t hash)
{
    struct place *set = set_of(x, hash), *oldest = &set[0];
    for (int i = 0; i < WAYS; i++) {
        if (!set[i].hash) {
            x->in_use++;
            return &set[i];
        }
        if (x->clock - set[i].used > x->clock - oldest->used)
            oldest = &set[i];
    }
    return oldest;
}

/* To the front; the one behind falls off. */
static void put_group(struct place *p, uint32_t group)
{
    int at = 0;
    while (at < PREFIX_GROUPS - 1 && p->group[at] != group)
        at++;
    memmove(&p->group[1], &p->group[0], (size_t)at * sizeof(p->group[0]));
    p->group[0] = group;
}

static void note(struct prefix_index *x, uint64_t hash, uint32_t group)
{
    struct place *p = find(x, hash);
    if (!p) {
        p = make_room(x, hash);
        p->hash = hash;
        memset(p->group, 0xff, sizeof(p->group));
    }
    p->used = x->clock;
    put_group(p, group);
}

void prefix_note(struct prefix_index *x, const struct prefix_key *key, uint32_t group)
{
    x->clock++;
    for (uint32_t i = 0; i < key->count; i++)
        note(x, key->place[i], group);
}

uint32_t prefix_find(struct prefix_index *x, const struct prefix_key *key, struct prefix_match *out,
                     uint32_t max)
{
    const struct place *found[PREFIX_CUTS];
    uint32_t depth = 0, count = 0;
    ASSERT(max <= MAX_FOUND);
    while (depth < key->count && (found[depth] = find(x, key->place[depth])))
        depth++;
    while (depth-- > 0)
        for (int i = 0; i < PREFIX_GROUPS && count < max; i++) {
            uint32_t group = found[depth]->group[i];
            bool seen = group == NO_GROUP;
            for (uint32_t k = 0; k < count && !seen; k++)
                seen = out[k].group == group;
            if (!seen)
                out[count++] = (struct prefix_match){.group = group, .bytes = prefix_cut(depth)};
        }
    return count;
}

void prefix_drop_group(struct prefix_index *x, uint32_t group)
{
    for (size_t i = 0; i < (size_t)x->sets * WAYS; i++) {
        struct place *p = &x->places[i];
        int kept = 0;
        if (!p->hash)
            continue;
        for (int k = 0; k < PREFIX_GROUPS; k++)
            if (p->group[k] != group && p->group[k] != NO_GROUP)
                p->group[kept++] = p->group[k];
        for (int k = kept; k < PREFIX_GROUPS; k++)
            p->group[k] = NO_GROUP;
        if (!kept) {
            p->hash = 0;
            x->in_use--;
        }
    }
}

uint32_t prefix_places(const struct prefix_index *x)
{
    return x->in_use;
}

uint64_t prefix_memory(const struct prefix_index *x)
{
    return sizeof(*x) + (uint64_t)x->sets * WAYS * sizeof(*x->places);
}

/* ---- snapshot: magic, names (count, then length and bytes each), places (count, then hash and four indices
 * of names) ---- */
static uint32_t highest_group(const struct prefix_index *x)
{
    uint32_t end = 0;
    for (size_t i = 0; i < (size_t)x->sets * WAYS; i++)
        for (int k = 0; k < PREFIX_GROUPS; k++)
            if (x->places[i].hash && x->places[i].group[k] != NO_GROUP && x->places[i].group[k] >= end)
                end = x->places[i].group[k] + 1;
    return end;
}

void prefix_save(const struct prefix_index *x, const char *(*name)(void *context, uint32_t group),
                 void *context, struct buffer *out)
{
    uint32_t end = highest_group(x);
    out->size = 0;
    buffer_u32(out, SNAPSHOT);
    buffer_u32(out, end);
    for (uint32_t g = 0; g < end; g++) {
        const char *n = name(context, g);
        size_t bytes = n ? strlen(n) : 0;
        bytes = bytes > NAME_MAX_BYTES ? 0 : bytes;
        buffer_u32(out, (uint32_t)bytes);
        buffer_append(out, n, bytes);
    }
    buffer_u32(out, x->in_use);
    for (size_t i = 0; i < (size_t)x->sets * WAYS; i++) {
        const struct place *p = &x->places[i];
        if (!p->hash)
            continue;
        buffer_u64(out, p->hash);
        for (int k = 0; k < PREFIX_GROUPS; k++)
            buffer_u32(out, p->group[k]);
    }
}

static int load_names(struct reader *r, uint32_t **numbers, uint32_t *count,
                      uint32_t (*number)(void *context, const char *name), void *context)
{
    if (reader_u32(r, "number of groups", count))
        return -1;
    if (*count > reader_left(r) / sizeof(uint32_t))
        return reader_fail(r, "%u groups do not fit the file", *count);
    *numbers = xcalloc(*count ? *count : 1, sizeof(**numbers));
    for (uint32_t g = 0; g < *count; g++) {
        uint32_t bytes;
        const uint8_t *at;
        char name[NAME_MAX_BYTES + 1] = "";
        if (reader_u32(r, "length of a group's name", &bytes))
            return -1;
        if (bytes > NAME_MAX_BYTES)
            return reader_fail(r, "a group's name of %u bytes, expected at most %d", bytes, NAME_MAX_BYTES);
        if (reader_bytes(r, "a group's name", bytes, &at))
            return -1;
        memcpy(name, at, bytes);
        (*numbers)[g] = name[0] ? number(context, name) : NO_GROUP;
    }
    return 0;
}

static int load_places(struct prefix_index *x, struct reader *r, const uint32_t *numbers, uint32_t groups)
{
    uint32_t count;
    if (reader_u32(r, "number of places", &count))
        return -1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t hash;
        uint32_t group[PREFIX_GROUPS];
        if (reader_u64(r, "a place", &hash))
            return -1;
        for (int k = 0; k < PREFIX_GROUPS; k++)
            if (reader_u32(r, "a group of a place", &group[k]))
                return -1;
        for (int k = PREFIX_GROUPS - 1; k >= 0 && hash; k--)
            if (group[k] < groups && numbers[group[k]] != NO_GROUP)
                note(x, hash, numbers[group[k]]);
    }
    return 0;
}

int prefix_load(struct prefix_index *x, const void *data, size_t bytes,
                uint32_t (*number)(void *context, const char *name), void *context, struct err *err)
{
    struct reader r;
    uint32_t magic, groups = 0, *numbers = NULL;
    reader_init(&r, data, bytes, "prefix snapshot", err);
    int result = -1;
    if (reader_u32(&r, "magic", &magic) == 0) {
        if (magic != SNAPSHOT)
            reader_fail(&r, "not a prefix snapshot");
        else if (load_names(&r, &numbers, &groups, number, context) == 0)
            result = load_places(x, &r, numbers, groups);
    }
    free(numbers);
    return result;
}
