/* wire_scan: proves that a frame is exactly one well-formed msgpack object within all bounds, before
 * wire_decode reads it: five bytes could otherwise announce 16 GiB.
 *
 * The scan walks the bytes once, without recursion. Every object takes at least one byte, so the objects that
 * were announced and have not come yet can never be more than the bytes left; a count that says otherwise is
 * refused at once.
 *
 * The budget counts each announced object at its unpacked size (sizeof(msgpack_object)), though wire_decode
 * unpacks one at a time: it bounds the work that a frame can ask for. Decoded strings and arrays take at most
 * 2 x frame + 13 MB. */
#include "common/wire.h"

#include <msgpack.h>

/* A small frame may hold a few thousand objects; a real message needs about five object bytes for each byte
 * of the frame (a map of short names and small integers); a bomb of nils needs 24. */
#define SCAN_BASE  (64u << 10)
#define SCAN_RATIO 6
#define SCAN_MOST  (16u << 20)

struct scan {
    const uint8_t *data;
    uint64_t size;
    uint64_t offset;
    uint64_t objects;              /* announced so far, the root included */
    uint64_t pending;              /* announced and not seen yet */
    uint64_t left[WIRE_MAX_DEPTH]; /* objects still to come in each open container */
    int depth;
    struct err *err;
};

static int scan_fail(const struct scan *s, uint64_t at, const char *what)
{
    return err_set_code(s->err, 400, "frame: byte %llu: %s", (unsigned long long)at, what);
}

static uint64_t scan_budget(uint64_t frame_bytes)
{
    uint64_t proportional = SCAN_BASE + SCAN_RATIO * frame_bytes;
    uint64_t most = SCAN_MOST + frame_bytes;
    return proportional < most ? proportional : most;
}

/* Reads a big-endian number of `bytes` bytes (0: the value is in the first byte, already in *out). */
static int scan_length(struct scan *s, uint64_t at, int bytes, uint64_t *out)
{
    if (bytes == 0)
        return 0;
    if (s->size - s->offset < (uint64_t)bytes)
        return scan_fail(s, at, "truncated inside a length");
    *out = 0;
    for (int i = 0; i < bytes; i++)
        *out = *out << 8 | s->data[s->offset++];
    return 0;
}

static int scan_payload(struct scan *s, uint64_t at, uint64_t bytes)
{
    if (s->size - s->offset < bytes)
        return err_set_code(
            s->err, 400, "frame: byte %llu: truncated: expected %llu bytes more, only %llu are left",
            (unsigned long long)at, (unsigned long long)bytes, (unsigned long long)(s->size - s->offset));
    s->offset += bytes;
    return 0;
}

static int scan_container(struct scan *s, uint64_t at, uint64_t count, int objects_each)
{
    uint64_t objects = count * (uint64_t)objects_each; /* count < 2^32: no wrap */
    if (s->depth == WIRE_MAX_DEPTH)
        return scan_fail(s, at, "nested deeper than 16");
    s->pending += objects;
    s->objects += objects;
    if (s->pending > s->size - s->offset)
        return err_set_code(s->err, 400, "frame: byte %llu: announces %llu objects, only %llu bytes are left",
                            (unsigned long long)at, (unsigned long long)objects,
                            (unsigned long long)(s->size - s->offset));
    if (s->objects * sizeof(msgpack_object) > scan_budget(s->size))
        return err_set_code(s->err, 400, "frame: byte %llu: too many objects for a frame of %llu bytes",
                            (unsigned long long)at, (unsigned long long)s->size);
    s->left[s->depth++] = objects;
    return 0;
}

/* Consumes one object's head and, unless it is a container, its payload. */
static int scan_object(struct scan *s)
{
    uint64_t at = s->offset, n = 0;
    uint8_t b = s->data[s->offset++];
    if (b <= 0x7F || b >= 0xE0 || b == 0xC0 || b == 0xC2 || b == 0xC3)
        return 0; /* small integers, nil, false, true */
    if (b <= 0x8F)
        return scan_container(s, at, b & 0x0F, 2);
    if (b <= 0x9F)
        return scan_container(s, at, b & 0x0F, 1);
    if (b <= 0xBF)
        return scan_payload(s, at, b & 0x1F);
    switch (b) {
    case 0xC1:
        return scan_fail(s, at, "0xc1 is no msgpack type");
    case 0xC4: /* bin 8, 16, 32 */
    case 0xC5:
    case 0xC6:
        return scan_length(s, at, 1 << (b - 0xC4), &n) < 0 ? -1 : scan_payload(s, at, n);
    case 0xCA: /* float 32, 64 */
    case 0xCB:
        return scan_payload(s, at, b == 0xCA ? 4 : 8);
    case 0xCC: /* uint 8, 16, 32, 64; then int */
    case 0xCD:
    case 0xCE:
    case 0xCF:
    case 0xD0:
    case 0xD1:
    case 0xD2:
    case 0xD3:
        return scan_payload(s, at, 1u << (b & 3));
    case 0xD9: /* str 8, 16, 32 */
    case 0xDA:
    case 0xDB:
        return scan_length(s, at, 1 << (b - 0xD9), &n) < 0 ? -1 : scan_payload(s, at, n);
    case 0xDC: /* array 16, 32 */
    case 0xDD:
        return scan_length(s, at, b == 0xDC ? 2 : 4, &n) < 0 ? -1 : scan_container(s, at, n, 1);
    case 0xDE: /* map 16, 32 */
    case 0xDF:
        return scan_length(s, at, b == 0xDE ? 2 : 4, &n) < 0 ? -1 : scan_container(s, at, n, 2);
    default: /* 0xC7..0xC9, 0xD4..0xD8 */
        return scan_fail(s, at, "extension types are not allowed");
    }
}

int wire_scan(const void *frame, size_t bytes, struct err *err)
{
    struct scan s = {.data = frame, .size = bytes, .objects = 1, .pending = 1, .err = err};
    if (bytes == 0)
        return err_set_code(err, 400, "frame: empty");
    if (bytes > WIRE_MAX_FRAME)
        return err_set_code(err, 413, "frame: %zu bytes, at most %u are allowed", bytes, WIRE_MAX_FRAME);
    while (s.pending > 0) {
        if (s.offset == s.size)
            return scan_fail(&s, s.offset, "truncated");
        s.pending--;
        if (s.depth > 0)
            s.left[s.depth - 1]--;
        if (scan_object(&s) < 0)
            return -1;
        while (s.depth > 0 && s.left[s.depth - 1] == 0)
            s.depth--;
    }
    if (s.offset != s.size)
        return err_set_code(err, 400, "frame: byte %llu: %llu bytes trail the message",
                            (unsigned long long)s.offset, (unsigned long long)(s.size - s.offset));
    return 0;
}
