#include "worker/stop.h"

#include <stdlib.h>
#include <string.h>

struct stop {
    uint8_t *text;      /* [bytes] */
    uint16_t *fallback; /* [bytes + 1] length of the longest proper border of each prefix */
    uint16_t bytes;
};

struct stop_set {
    struct stop *stop;
    size_t count;
};

static void make_fallback(struct stop *s)
{
    s->fallback[0] = 0;
    if (s->bytes > 0)
        s->fallback[1] = 0;
    for (uint16_t n = 1, border = 0; n < s->bytes; n++) {
        while (border && s->text[n] != s->text[border])
            border = s->fallback[border];
        border = (uint16_t)(border + (s->text[n] == s->text[border]));
        s->fallback[n + 1] = border;
    }
}

struct stop_set *stop_set_new(const char *const *stops, const size_t *bytes, size_t count)
{
    if (count == 0)
        return NULL;
    struct stop_set *set = xcalloc(1, sizeof(*set));
    set->count = count;
    set->stop = xcalloc(count, sizeof(*set->stop));
    for (size_t i = 0; i < count; i++) {
        struct stop *s = &set->stop[i];
        ASSERT(bytes[i] > 0 && bytes[i] <= UINT16_MAX);
        s->bytes = (uint16_t)bytes[i];
        s->text = xmalloc(bytes[i]);
        memcpy(s->text, stops[i], bytes[i]);
        s->fallback = xcalloc(bytes[i] + 1, sizeof(*s->fallback));
        make_fallback(s);
    }
    return set;
}

void stop_set_free(struct stop_set **ps)
{
    if (!ps || !*ps)
        return;
    for (size_t i = 0; i < (*ps)->count; i++) {
        free((*ps)->stop[i].text);
        free((*ps)->stop[i].fallback);
    }
    free((*ps)->stop);
    free(*ps);
    *ps = NULL;
}

void stop_matcher_init(struct stop_matcher *m, const struct stop_set *set)
{
    *m = (struct stop_matcher){.set = set};
    if (set)
        m->matched = xcalloc(set->count, sizeof(*m->matched));
}

void stop_matcher_release(struct stop_matcher *m)
{
    free(m->matched);
    buffer_release(&m->held);
    *m = (struct stop_matcher){0};
}

/* Reads one byte. Returns the length of the longest stop string that it ends, 0 when it ends none; *partial =
 * the longest partial match. */
static size_t step(struct stop_matcher *m, uint8_t byte, size_t *partial)
{
    size_t found = 0;
    *partial = 0;
    for (size_t i = 0; i < m->set->count; i++) {
        const struct stop *s = &m->set->stop[i];
        uint16_t n = m->matched[i];
        while (n && s->text[n] != byte)
            n = s->fallback[n];
        n = (uint16_t)(n + (s->text[n] == byte));
        if (n == s->bytes) {
            found = n > found ? n : found;
            n = s->fallback[n];
        }
        m->matched[i] = n;
        *partial = n > *partial ? n : *partial;
    }
    return found;
}

bool stop_matcher_push(struct stop_matcher *m, const void *text, size_t bytes, struct buffer *out)
{
    if (m->stopped || bytes == 0)
        return m->stopped;
    if (!m->set) {
        buffer_append(out, text, bytes);
        return false;
    }
    size_t before = m->held.size, partial = 0;
    buffer_append(&m->held, text, bytes);
    for (size_t i = before; i < m->held.size; i++) {
        size_t found = step(m, m->held.data[i], &partial);
        if (found) {
            buffer_append(out, m->held.data, i + 1 - found);
            m->held.size = 0;
            m->stopped = true;
            return true;
        }
    }
    size_t shown = m->held.size - partial;
    buffer_append(out, m->held.data, shown);
    memmove(m->held.data, m->held.data + shown, partial);
    m->held.size = partial;
    return false;
}

void stop_matcher_flush(struct stop_matcher *m, struct buffer *out)
{
    if (m->held.size)
        buffer_append(out, m->held.data, m->held.size);
    m->held.size = 0;
}
