/* sentencepiece: tokenizer.model, a protobuf message (sentencepiece_model.proto), read and written.
 *
 *   ModelProto      1 pieces (repeated) | 2 trainer_spec | 3 normalizer_spec
 *   SentencePiece   1 piece | 2 score | 3 type
 *   TrainerSpec     3 model_type | 35 byte_fallback | 40 unk_id | 41 bos_id | 42 eos_id | 43 pad_id
 *   NormalizerSpec  1 name | 2 precompiled_charsmap | 3 add_dummy_prefix | 4 remove_extra_whitespaces
 *
 * Fields that say nothing about how a text is cut are passed over. A field with another wire type than its
 * own, a varint of more than 64 bits and a length past its message are errors: such a file was not written by
 * sentencepiece. */
#include "worker/model/hf_impl.h"

#include <math.h>
#include <string.h>

enum wire { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum model_type { MODEL_UNIGRAM = 1, MODEL_BPE = 2, MODEL_WORD = 3, MODEL_CHAR = 4 };

struct field {
    uint64_t number;
    enum wire wire;
    uint64_t value; /* varint, or the bits of a fixed number */
    const uint8_t *data;
    uint64_t bytes;
};

static int read_varint(struct reader *r, const char *what, uint64_t *out)
{
    uint64_t value = 0, start = r->offset;
    for (int shift = 0; shift < 70; shift += 7) {
        uint8_t byte;
        if (reader_u8(r, what, &byte))
            return -1;
        if (shift == 63 && byte > 1)
            break;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return 0;
        }
    }
    r->offset = start;
    return reader_fail(r, "%s: a varint of more than 64 bits", what);
}

/* The next field: 1, 0 at the end of the message, -1. */
static int next_field(struct reader *r, struct field *f)
{
    uint64_t tag, start = r->offset;
    uint32_t half;
    if (r->failed)
        return -1;
    if (reader_left(r) == 0)
        return 0;
    if (read_varint(r, "field", &tag))
        return -1;
    *f = (struct field){.number = tag >> 3, .wire = (enum wire)(tag & 7)};
    if (f->number == 0 || f->number > (1u << 29) - 1) {
        r->offset = start;
        return reader_fail(r, "field number %llu, expected 1 to 536870911", (unsigned long long)f->number);
    }
    switch ((int)f->wire) {
    case WIRE_VARINT:
        return read_varint(r, "number", &f->value) ? -1 : 1;
    case WIRE_FIXED64:
        return reader_u64(r, "fixed64", &f->value) ? -1 : 1;
    case WIRE_FIXED32:
        if (reader_u32(r, "fixed32", &half))
            return -1;
        f->value = half;
        return 1;
    case WIRE_BYTES:
        return read_varint(r, "length", &f->bytes) || reader_bytes(r, "bytes", f->bytes, &f->data) ? -1 : 1;
    }
    r->offset = start;
    return reader_fail(r, "field %llu: wire type %d, expected 0, 1, 2 or 5", (unsigned long long)f->number,
                       (int)f->wire);
}

static int expect(struct reader *r, const struct field *f, enum wire wire, const char *what)
{
    if (f->wire == wire)
        return 0;
    return reader_fail(r, "%s: wire type %d, expected %d", what, (int)f->wire, (int)wire);
}

/* A message inside a message: the same name and errors, its own bounds, offsets from the file's start. */
static struct reader inner(const struct reader *r, const struct field *f)
{
    struct reader in = *r;
    in.offset = (uint64_t)(f->data - r->data);
    in.size = in.offset + f->bytes;
    return in;
}

static int parse_piece(struct hf_vocabulary *v, struct reader r, const char *name, struct err *err)
{
    struct field f, text = {0};
    float score = 0;
    uint64_t type = HF_TOKEN_NORMAL;
    int more;
    while ((more = next_field(&r, &f)) == 1) {
        if (f.number == 1) {
            if (expect(&r, &f, WIRE_BYTES, "piece"))
                return -1;
            text = f;
        } else if (f.number == 2) {
            if (expect(&r, &f, WIRE_FIXED32, "score"))
                return -1;
            uint32_t bits = (uint32_t)f.value;
            memcpy(&score, &bits, sizeof(score));
        } else if (f.number == 3) {
            if (expect(&r, &f, WIRE_VARINT, "type"))
                return -1;
            type = f.value;
        }
    }
    if (more < 0)
        return -1;
    if (!isfinite(score))
        return reader_fail(&r, "piece %llu: its score is no finite number", (unsigned long long)v->count);
    if (type < HF_TOKEN_NORMAL || type > HF_TOKEN_BYTE)
        return reader_fail(&r, "piece %llu: type %llu, expected 1 to 6", (unsigned long long)v->count,
                           (unsigned long long)type);
    return hf_vocabulary_put(v, name, (int64_t)v->count, (const char *)text.data, text.bytes, score,
                             (enum hf_token_type)type, err);
}

static int parse_trainer(struct hf_vocabulary *v, struct reader r)
{
    static const char *const names[] = {"", "unigram", "bpe", "word", "char"};
    struct field f;
    uint64_t model = MODEL_UNIGRAM; /* the message's default */
    bool suffix = false;
    int more;
    v->unknown = 0;
    v->bos = 1;
    v->eos = 2;
    while ((more = next_field(&r, &f)) == 1) {
        int64_t *id = f.number == 40   ? &v->unknown
                      : f.number == 41 ? &v->bos
                      : f.number == 42 ? &v->eos
                      : f.number == 43 ? &v->pad
                                       : NULL;
        if ((id || f.number == 3 || f.number == 24) && expect(&r, &f, WIRE_VARINT, "trainer_spec"))
            return -1;
        if (id)
            *id = (int32_t)f.value;
        else if (f.number == 3)
            model = f.value;
        else if (f.number == 24)
            suffix = f.value != 0;
    }
    if (more < 0)
        return -1;
    if (suffix)
        return reader_fail(&r, "treat_whitespace_as_suffix is not supported");
    if (model != MODEL_BPE)
        return reader_fail(&r, "a SentencePiece model of type %s is not supported, expected bpe",
                           model >= MODEL_UNIGRAM && model <= MODEL_CHAR ? names[model] : "unknown");
    return 0;
}

static int parse_normalizer(struct hf_vocabulary *v, struct reader r)
{
    struct field f;
    int more;
    while ((more = next_field(&r, &f)) == 1) {
        if (f.number == 2) {
            if (expect(&r, &f, WIRE_BYTES, "precompiled_charsmap"))
                return -1;
            if (f.bytes)
                return reader_fail(&r, "a normalizer that changes characters (precompiled_charsmap) is not "
                                       "supported");
        } else if (f.number == 3 || f.number == 4 || f.number == 5) {
            if (expect(&r, &f, WIRE_VARINT, "normalizer_spec"))
                return -1;
            if (f.number == 3)
                v->add_space_prefix = f.value != 0;
            if (f.number == 4 && f.value)
                return reader_fail(&r, "remove_extra_whitespaces is not supported");
            if (f.number == 5 && !f.value)
                return reader_fail(&r, "a normalizer without escape_whitespaces is not supported");
        }
    }
    return more;
}

static int check_id(const struct hf_vocabulary *v, struct reader *r, const char *what, int64_t *id)
{
    if (*id >= (int64_t)v->count)
        return reader_fail(r, "%s is %lld, expected less than %llu", what, (long long)*id,
                           (unsigned long long)v->count);
    if (*id < 0)
        *id = -1;
    return 0;
}

int hf_sentencepiece_parse(struct hf_vocabulary *v, const void *data, uint64_t bytes, const char *name,
                           struct err *err)
{
    struct reader r;
    struct field f;
    int more;
    reader_init(&r, data, bytes, name, err);
    v->sentencepiece = true;
    v->add_space_prefix = true;
    while ((more = next_field(&r, &f)) == 1) {
        int rc = 0;
        if (f.number >= 1 && f.number <= 3 && expect(&r, &f, WIRE_BYTES, "model"))
            return -1;
        if (f.number == 1)
            rc = parse_piece(v, inner(&r, &f), name, err);
        else if (f.number == 2)
            rc = parse_trainer(v, inner(&r, &f));
        else if (f.number == 3)
            rc = parse_normalizer(v, inner(&r, &f));
        if (rc)
            return -1;
    }
    if (more < 0)
        return -1;
    if (v->count == 0)
        return reader_fail(&r, "no pieces: expected a SentencePiece model");
    return check_id(v, &r, "unk_id", &v->unknown) || check_id(v, &r, "bos_id", &v->bos) ||
                   check_id(v, &r, "eos_id", &v->eos) || check_id(v, &r, "pad_id", &v->pad)
               ? -1
               : 0;
}

/* ---- writing ------------------------------------------------------------------------------------------ */

static void put_varint(struct buffer *b, uint64_t v)
{
    uint8_t byte;
    for (; v > 0x7F; v >>= 7) {
        byte = (uint8_t)(v | 0x80);
        buffer_append(b, &byte, 1);
    }
    byte = (uint8_t)v;
    buffer_append(b, &byte, 1);
}

static void put_number(struct buffer *b, uint64_t field, int64_t value)
{
    put_varint(b, field << 3 | WIRE_VARINT);
    put_varint(b, (uint64_t)value);
}

static void put_bytes(struct buffer *b, uint64_t field, const void *data, uint64_t bytes)
{
    put_varint(b, field << 3 | WIRE_BYTES);
    put_varint(b, bytes);
    buffer_append(b, data, bytes);
}

void hf_sentencepiece_write(const struct hf_vocabulary *v, struct buffer *out)
{
    struct buffer message = {0};
    bool bytes = false;
    for (uint64_t i = 0; i < v->count; i++) {
        const struct hf_token *t = &v->token[i];
        bytes |= t->type == HF_TOKEN_BYTE;
        message.size = 0;
        put_bytes(&message, 1, hf_vocabulary_text(v, (int64_t)i), t->bytes);
        put_varint(&message, 2 << 3 | WIRE_FIXED32);
        buffer_append(&message, &t->score, sizeof(t->score));
        put_number(&message, 3, t->type);
        put_bytes(out, 1, message.data, message.size);
    }
    message.size = 0;
    put_number(&message, 3, MODEL_BPE);
    put_number(&message, 4, (int64_t)v->count);
    put_number(&message, 35, bytes);
    put_number(&message, 40, v->unknown);
    put_number(&message, 41, v->bos);
    put_number(&message, 42, v->eos);
    put_number(&message, 43, v->pad);
    put_bytes(out, 2, message.data, message.size);
    message.size = 0;
    put_bytes(&message, 1, "identity", 8);
    put_bytes(&message, 2, "", 0);
    put_number(&message, 3, v->add_space_prefix);
    put_number(&message, 4, 0);
    put_number(&message, 5, 1);
    put_bytes(out, 3, message.data, message.size);
    buffer_release(&message);
}
