/* fuzz_sentencepiece: any bytes as a tokenizer.model. What opens is written again and must read back as the
 * same vocabulary. */
#include <string.h>

#include "worker/model/hf_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hf_vocabulary v, w;
    struct buffer out = {0};
    struct err err = {0};
    hf_vocabulary_init(&v);
    hf_vocabulary_init(&w);
    if (hf_sentencepiece_parse(&v, data, size, "fuzz", &err) == 0) {
        hf_sentencepiece_write(&v, &out);
        ASSERT(hf_sentencepiece_parse(&w, out.data, out.size, "again", &err) == 0);
        ASSERT(v.count == w.count && v.add_space_prefix == w.add_space_prefix && v.bos == w.bos &&
               v.eos == w.eos && v.unknown == w.unknown && v.pad == w.pad);
        for (uint64_t i = 0; i < v.count; i++) {
            const struct hf_token *a = &v.token[i], *b = &w.token[i];
            ASSERT(a->bytes == b->bytes && a->type == b->type && a->score == b->score);
            ASSERT(hf_vocabulary_find(&w, hf_vocabulary_text(&v, (int64_t)i), a->bytes) == (int64_t)i);
        }
    } else {
        ASSERT(err.message[0]);
    }
    buffer_release(&out);
    hf_vocabulary_release(&v);
    hf_vocabulary_release(&w);
    return 0;
}
