#include "tests/test.h"
#include "worker/model/hf_impl.h"

static void put(struct buffer *b, const void *data, size_t bytes)
{
    buffer_append(b, data, bytes);
}

static void put_message(struct buffer *b, uint8_t tag, const struct buffer *inner)
{
    put(b, &tag, 1);
    put(b, &(uint8_t){(uint8_t)inner->size}, 1);
    put(b, inner->data, inner->size);
}

static void put_piece(struct buffer *b, const char *text, float score, uint8_t type)
{
    struct buffer in = {0};
    put(&in, "\x0A", 1);
    put(&in, &(uint8_t){(uint8_t)strlen(text)}, 1);
    put(&in, text, strlen(text));
    put(&in, "\x15", 1);
    put(&in, &score, 4);
    put(&in, "\x18", 1);
    put(&in, &type, 1);
    put_message(b, 0x0A, &in);
    buffer_release(&in);
}

static void put_bytes(struct buffer *b, uint8_t tag, const char *bytes, size_t n)
{
    struct buffer in = {0};
    put(&in, bytes, n);
    put_message(b, tag, &in);
    buffer_release(&in);
}

/* Three pieces, a trainer of type bpe, a normalizer that changes nothing. */
static void good_model(struct buffer *b)
{
    put_piece(b, "<unk>", 0, 2);
    put_piece(b, "<s>", 0, 3);
    put_piece(b, "</s>", 0, 3);
    put_bytes(b, 0x12, "\x18\x02\xC0\x02\x00\xC8\x02\x01\xD0\x02\x02", 11);
    put_bytes(b, 0x1A, "\x0A\x08identity\x12\x00\x18\x00\x20\x00\x28\x01", 18);
}

static int parse(struct hf_vocabulary *v, const void *data, size_t bytes, struct err *err)
{
    uint8_t *exact = xmalloc(bytes ? bytes : 1);
    memcpy(exact, bytes ? data : "", bytes);
    hf_vocabulary_init(v);
    int rc = hf_sentencepiece_parse(v, exact, bytes, "m", err);
    free(exact);
    return rc;
}

static void a_model_is_read_and_written_back(void)
{
    struct buffer b = {0}, again = {0};
    struct hf_vocabulary v, w;
    struct err err = {0};
    good_model(&b);
    put_piece(&b, "\xE2\x96\x81t", -1.5f, 1);
    CHECK_INT(parse(&v, b.data, b.size, &err), 0);
    CHECK_STR(err.message, "");
    CHECK_INT(v.count, 4);
    CHECK_STR(hf_vocabulary_text(&v, 3), "\xE2\x96\x81t");
    CHECK(v.token[3].score == -1.5f && v.token[3].type == HF_TOKEN_NORMAL);
    CHECK(!v.add_space_prefix && v.bos == 1 && v.eos == 2 && v.unknown == 0 && v.pad == -1);
    hf_sentencepiece_write(&v, &again);
    CHECK_INT(parse(&w, again.data, again.size, &err), 0);
    CHECK(w.count == 4 && !w.add_space_prefix && w.bos == 1 && w.eos == 2 && w.unknown == 0 && w.pad == -1);
    for (int64_t i = 0; i < 4; i++) {
        CHECK_STR(hf_vocabulary_text(&w, i), hf_vocabulary_text(&v, i));
        CHECK(w.token[i].score == v.token[i].score && w.token[i].type == v.token[i].type);
    }
    hf_vocabulary_release(&v);
    hf_vocabulary_release(&w);
    buffer_release(&b);
    buffer_release(&again);
}

#define RAW(bytes) bytes, sizeof(bytes) - 1

static const struct {
    const char *bytes; /* behind the good model */
    size_t size;
    const char *error;
} bad[] = {
    {RAW("\x00"), "field number 0"},
    {RAW("\xFF"), "only 0 are left"},
    {RAW("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x02"), "a varint of more than 64 bits"},
    {RAW("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), "a varint of more than 64 bits"},
    {RAW("\x80\x80\x80\x80\x80\x01"), "field number 4294967296, expected"},
    {RAW("\x23"), "wire type 3, expected 0, 1, 2 or 5"},
    {RAW("\x24"), "wire type 4, expected 0, 1, 2 or 5"},
    {RAW("\x26"), "wire type 6, expected 0, 1, 2 or 5"},
    {RAW("\x27"), "wire type 7, expected 0, 1, 2 or 5"},
    {RAW("\x21\x01"), "fixed64"},
    {RAW("\x25\x01"), "fixed32"},
    {RAW("\x20"), "number"},
    {RAW("\x22\x05x"), "bytes"},
    {RAW("\x22\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01x"), "bytes"},
    {RAW("\x08\x01"), "model: wire type 0, expected 2"},
    {RAW("\x15\x01\x01\x01\x01"), "model: wire type 5, expected 2"},
    {RAW("\x1D\x01\x01\x01\x01"), "model: wire type 5, expected 2"},
    {RAW("\x0A\x02\x08\x01"), "piece: wire type 0, expected 2"},
    {RAW("\x0A\x02\x10\x01"), "score: wire type 0, expected 5"},
    {RAW("\x0A\x03\x1A\x01x"), "type: wire type 2, expected 0"},
    {RAW("\x0A\x03\x0A\x05x"), "bytes"},
    {RAW("\x0A\x00"), "token 3: a text of 0 bytes"},
    {RAW("\x0A\x05\x0A\x03<s>"), "tokens 1 and 3 are the same text"},
    {RAW("\x0A\x03\x0A\x01\xFF"), "token 3: expected valid UTF-8"},
    {RAW("\x0A\x04\x0A\x02x\0"), "without zero bytes"},
    {RAW("\x0A\x05\x0A\x01x\x18\x00"), "piece 3: type 0, expected 1 to 6"},
    {RAW("\x0A\x05\x0A\x01x\x18\x07"), "piece 3: type 7, expected 1 to 6"},
    {RAW("\x0A\x08\x0A\x01x\x15\x00\x00\xC0\x7F"), "piece 3: its score is no finite number"},
    {RAW("\x0A\x08\x0A\x01x\x15\x00\x00\x80\xFF"), "piece 3: its score is no finite number"},
    {RAW("\x12\x00"), "of type unigram is not supported, expected bpe"},
    {RAW("\x12\x02\x18\x01"), "of type unigram is not supported, expected bpe"},
    {RAW("\x12\x02\x18\x03"), "of type word is not supported"},
    {RAW("\x12\x02\x18\x04"), "of type char is not supported"},
    {RAW("\x12\x02\x18\x63"), "of type unknown is not supported"},
    {RAW("\x12\x03\x1A\x01x"), "trainer_spec: wire type 2, expected 0"},
    {RAW("\x12\x05\xC5\x02\x01\x01\x01"), "fixed32: expected 4 bytes"},
    {RAW("\x12\x05\x18\x02\xC8\x02\x07"), "bos_id is 7, expected less than 3"},
    {RAW("\x12\x05\x18\x02\xD0\x02\x03"), "eos_id is 3, expected less than 3"},
    {RAW("\x12\x05\x18\x02\xC0\x02\x03"), "unk_id is 3, expected less than 3"},
    {RAW("\x12\x05\x18\x02\xD8\x02\x03"), "pad_id is 3, expected less than 3"},
    {RAW("\x12\x05\x18\x02\xC0\x01\x01"), "treat_whitespace_as_suffix is not supported"},
    {RAW("\x1A\x03\x12\x01x"), "precompiled_charsmap"},
    {RAW("\x1A\x02\x10\x01"), "precompiled_charsmap: wire type 0, expected 2"},
    {RAW("\x1A\x02\x20\x01"), "remove_extra_whitespaces is not supported"},
    {RAW("\x1A\x02\x28\x00"), "without escape_whitespaces is not supported"},
    {RAW("\x1A\x03\x1A\x01x"), "normalizer_spec: wire type 2, expected 0"},
};

static void bad_models_are_refused(void)
{
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct buffer b = {0};
        struct hf_vocabulary v;
        struct err err = {0};
        good_model(&b);
        put(&b, bad[i].bytes, bad[i].size);
        CHECK_INT(parse(&v, b.data, b.size, &err), -1);
        CHECK_CONTAINS(err.message, bad[i].error);
        hf_vocabulary_release(&v);
        buffer_release(&b);
    }
}

static void an_empty_model_is_refused(void)
{
    struct hf_vocabulary v;
    struct err err = {0};
    CHECK_INT(parse(&v, NULL, 0, &err), -1);
    CHECK_CONTAINS(err.message, "no pieces");
    hf_vocabulary_release(&v);
}

/* A message may end behind any of its fields: what stands there is whole. Elsewhere the cut is seen. */
static void truncations_never_pass_for_the_whole(void)
{
    struct buffer b = {0};
    int opened = 0;
    good_model(&b);
    for (size_t n = 0; n < b.size; n++) {
        struct hf_vocabulary v;
        struct err err = {0};
        if (parse(&v, b.data, n, &err) == 0)
            opened++;
        else
            CHECK(err.message[0] != 0);
        hf_vocabulary_release(&v);
    }
    CHECK_INT(opened, 4); /* behind each piece and behind the trainer's message */
    buffer_release(&b);
}

int main(void)
{
    TEST(a_model_is_read_and_written_back,
         "a SentencePiece model is read, and what is written says the same");
    TEST(bad_models_are_refused, "46 bad protobufs are refused, each for its own reason");
    TEST(an_empty_model_is_refused, "an empty file is no model");
    TEST(truncations_never_pass_for_the_whole, "a model cut inside a field is refused");
    return test_result();
}
