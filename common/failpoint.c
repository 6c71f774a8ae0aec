#include "common/failpoint.h"

#ifdef LEPTON_FAILPOINTS
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

void failpoint_hit(const char *name)
{
    static _Atomic long hits; /* of the one name that is asked for */
    const char *asked = getenv("LEPTON_FAILPOINT");
    size_t bytes = strlen(name);
    if (!asked || strncmp(asked, name, bytes) != 0 || (asked[bytes] && asked[bytes] != ':'))
        return;
    long at = asked[bytes] ? atol(asked + bytes + 1) : 1;
    if (atomic_fetch_add(&hits, 1) + 1 == at)
        raise(SIGKILL);
}
#endif
