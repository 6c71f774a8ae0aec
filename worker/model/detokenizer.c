/* detokenizer: token ids to text, one id at a time, for one sequence.
 *
 * It owns up to three bytes of an unfinished character and nothing else. What it writes is valid UTF-8 after
 * every call: bytes that cannot become a character are replaced by U+FFFD, one for each maximal subpart (the
 * practice of the Unicode standard, section 3.9, and of the WHATWG decoder), so that cutting the ids
 * elsewhere gives the same text. */
#include "worker/model/tokenizer_impl.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool at_start)
{
    *d = (struct detokenizer){.tokenizer = t, .at_start = at_start && t->add_space_prefix};
}

static void replace_held(struct detokenizer *d, struct buffer *text)
{
    if (d->held_bytes > 0)
        buffer_append(text, REPLACEMENT, strlen(REPLACEMENT));
    d->held_bytes = 0;
}

/* True when `byte` may follow the held bytes. After E0, ED, F0 and F4 the second byte's range is narrower: no
 * overlong forms, no surrogates, nothing past U+10FFFF. */
static bool continues(const struct detokenizer *d, uint8_t byte)
{
    uint8_t low = 0x80, high = 0xBF, first = d->held[0];
    if (d->held_bytes == 1) {
        low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    }
    return byte >= low && byte <= high;
}

static void push_byte(struct detokenizer *d, uint8_t byte, struct buffer *text)
{
    if (d->held_bytes > 0 && !continues(d, byte))
        replace_held(d, text);
    if (d->held_bytes == 0 && utf8_sequence_bytes(byte) == 0) {
        buffer_append(text, REPLACEMENT, strlen(REPLACEMENT));
        return;
    }
    d->held[d->held_bytes++] = byte;
    if (d->held_bytes == utf8_sequence_bytes(d->held[0])) {
        buffer_append(text, d->held, (size_t)d->held_bytes);
        d->held_bytes = 0;
    }
}

/* A piece of whole characters: its space marks become spaces, all else goes through in one copy. */
static void push_piece(struct detokenizer *d, const char *piece, size_t bytes, struct buffer *text)
{
    replace_held(d, text);
    size_t done = 0;
    for (size_t i = 0; i + SPACE_MARK_BYTES <= bytes;) {
        if (memcmp(piece + i, SPACE_MARK, SPACE_MARK_BYTES) != 0) {
            i++;
            continue;
        }
        buffer_append(text, piece + done, i - done);
        buffer_append(text, " ", 1);
        done = i += SPACE_MARK_BYTES;
    }
    buffer_append(text, piece + done, bytes - done);
}

/* A piece of a byte-level vocabulary. A character that stands for no byte is given as it is. */
static void push_bytes(struct detokenizer *d, const struct piece *p, bool first, struct buffer *text)
{
    for (size_t i = 0; i < p->bytes;) {
        uint32_t character;
        int n = tokenizer_character(p->text + i, p->bytes - i, &character), byte;
        ASSERT(n > 0); /* the vocabulary's pieces were checked */
        byte = tokenizer_byte_of(character);
        if (byte < 0) {
            replace_held(d, text);
            buffer_append(text, p->text + i, (size_t)n);
        } else if (byte != ' ' || i > 0 || !first) {
            push_byte(d, (uint8_t)byte, text);
        }
        i += (size_t)n;
    }
}

/* Bytes that the space prefix put in front of this piece when it is the first of a text. */
static size_t prefix_bytes(const struct piece *p)
{
    if (p->type == PIECE_BYTE)
        return p->byte == ' ';
    if (p->bytes >= SPACE_MARK_BYTES && memcmp(p->text, SPACE_MARK, SPACE_MARK_BYTES) == 0)
        return SPACE_MARK_BYTES;
    return 0;
}

void detokenizer_push(struct detokenizer *d, int32_t id, struct buffer *text)
{
    const struct tokenizer *t = d->tokenizer;
    const struct piece *p = id >= 0 && (uint32_t)id < t->count ? &t->pieces[id] : NULL;
    if (p && p->type == PIECE_CONTROL)
        return;
    bool first = d->at_start;
    d->at_start = false;
    if (!p || p->type == PIECE_UNKNOWN) {
        replace_held(d, text);
        buffer_append(text, REPLACEMENT, strlen(REPLACEMENT));
    } else if (p->type == PIECE_USER_DEFINED) { /* as written: the text held it like this */
        replace_held(d, text);
        buffer_append(text, p->text, p->bytes);
    } else if (p->type == PIECE_BYTE) {
        if (!first || prefix_bytes(p) == 0)
            push_byte(d, p->byte, text);
    } else if (d->tokenizer->algorithm->byte_level) {
        push_bytes(d, p, first, text);
    } else {
        size_t skip = first ? prefix_bytes(p) : 0;
        push_piece(d, p->text + skip, p->bytes - skip, text);
    }
}

void detokenizer_flush(struct detokenizer *d, struct buffer *text)
{
    replace_held(d, text);
}
