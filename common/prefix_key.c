#include "common/prefix_key.h"

#include <string.h>
#include <xxhash.h>

uint64_t prefix_cut(uint32_t i)
{
    static const uint64_t even = 256, even_cuts = 16;
    if (i < even_cuts)
        return (i + 1) * even;
    uint64_t at = even * even_cuts;
    for (uint32_t k = (uint32_t)even_cuts; k <= i; k++)
        at += at / 8;
    return at;
}

uint64_t prefix_place_after(uint64_t place, uint64_t content)
{
    uint64_t pair[2] = {place, content};
    uint64_t hash = XXH3_64bits(pair, sizeof(pair));
    return hash ? hash : 1;
}

uint64_t prefix_salt(const char *tenant)
{
    return XXH3_64bits(tenant, strlen(tenant));
}

void prefix_key_make(struct prefix_key *out, uint64_t salt, const void *prompt, uint64_t bytes)
{
    uint64_t from = 0, to = prefix_cut(0), place = salt;
    out->count = 0;
    while (out->count < PREFIX_CUTS && to <= bytes) {
        place = prefix_place_after(place, XXH3_64bits((const char *)prompt + from, to - from));
        out->place[out->count++] = place;
        from = to;
        to = prefix_cut(out->count);
    }
}
