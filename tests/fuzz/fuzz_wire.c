/* Whatever bytes come: the scan and the decoder end without a crash, the decoder takes nothing that the scan
 * refuses, and what was decoded survives encoding: decode(encode(m)) encodes to the same bytes again. That
 * wire_encode ASSERTs every bound makes it the judge of what the decoder lets through. */
#include "common/wire.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(const struct wire_message *m)
{
    struct buffer first = {0}, second = {0};
    struct wire_message back;
    struct err err = {0};
    wire_encode(m, &first);
    ASSERT(wire_decode(&back, first.data, first.size, &err) == 0);
    ASSERT(back.type == m->type);
    wire_encode(&back, &second);
    ASSERT(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
    wire_release(&back);
    buffer_release(&first);
    buffer_release(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_message m;
    struct err scanned = {0}, decoded = {0};
    int scan = wire_scan(data, size, &scanned);
    int rc = wire_decode(&m, data, size, &decoded);
    if (scan != 0)
        ASSERT(rc != 0 && strcmp(scanned.message, decoded.message) == 0 && scanned.code == decoded.code);
    if (rc == 0)
        check_again(&m);
    else /* every refusal has words and a code, and the words can themselves be sent */
        ASSERT(decoded.message[0] && decoded.code >= 400 && decoded.code < 600 && m.memory == NULL &&
               utf8_valid(decoded.message, strlen(decoded.message)));
    wire_release(&m);
    return 0;
}
