/* settings: how `lepton status` and `lepton tune` show what a coordinator tunes. */
#ifndef LEPTON_TOOLS_SETTINGS_H
#define LEPTON_TOOLS_SETTINGS_H

#include <stdio.h>

#include "common/wire.h"

/* A line for each: its value, who set it, and the bounds. */
static inline void settings_print(FILE *out, const struct wire_status_reply *s)
{
    for (uint32_t i = 0; i < s->setting_count; i++) {
        const struct wire_setting *t = &s->settings[i];
        fprintf(out, "setting     %.*s %llu (%s), %llu to %llu\n", (int)t->name.size, t->name.data,
                (unsigned long long)t->value, t->automatic ? "automatic" : "by hand",
                (unsigned long long)t->low, (unsigned long long)t->high);
    }
}

#endif
