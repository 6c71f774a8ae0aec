/* fuzz_hf_tokenizer: any bytes as a tokenizer.json: the streamed vocabulary, jansson's rest, and what they
 * mean together. */
#include <string.h>

#include "worker/model/hf_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hf_vocabulary v;
    struct err err = {0};
    hf_vocabulary_init(&v);
    json_t *root = hf_tokenizer_parse(&v, (const char *)data, size, "fuzz", &err);
    ASSERT(root || err.message[0]);
    if (root && hf_tokenizer_apply(&v, root, "fuzz", &err) == 0) {
        ASSERT(v.count > 0 && (v.sentencepiece || v.pre));
        for (uint64_t i = 0; i < v.merge_count; i++) {
            const struct hf_merge *m = &v.merge[i];
            ASSERT(v.token[m->left].bytes + v.token[m->right].bytes == v.token[m->result].bytes);
        }
        for (uint64_t i = 0; i < v.count; i++)
            if (v.token[i].type != HF_TOKEN_HOLE)
                ASSERT(hf_vocabulary_find(&v, hf_vocabulary_text(&v, (int64_t)i), v.token[i].bytes) ==
                       (int64_t)i);
    }
    json_decref(root);
    hf_vocabulary_release(&v);
    return 0;
}
