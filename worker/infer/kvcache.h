/* kvcache: keys and values in pages, as every stage holds them: the memory behind the names, and each
 * sequence's table, changed only by the page operations that ride in the steps, in order (design, decision
 * 12). Who holds which page is the leader's book (pages.h). */
#ifndef LEPTON_WORKER_INFER_KVCACHE_H
#define LEPTON_WORKER_INFER_KVCACHE_H

#include "worker/infer/step.h"
#include "worker/model/block.h"

struct kv_pool_options {
    enum dtype dtype; /* that kernel_kv_available has */
    int32_t pages, page_tokens, slots, pages_per_sequence;
};

struct kv_pool {
    struct kv_pool_options options;
    struct device *device; /* borrowed */
    int64_t layers;
    void *memory;           /* all layers' pages, one allocation */
    struct kv_layer *layer; /* [layers] views */
    struct tensor table;    /* [slots, pages_per_sequence] I32 on the device */
    int32_t *host_table;    /* the same, here */
    void *move_memory;      /* device: (from, to) pairs of one step */
    int32_t max_moves;
};

/* Pages for the layers of a model's slice. Bytes of one page over all those layers: kv_page_bytes. */
int kv_pool_open(struct kv_pool **out, const struct model *model, const struct kv_pool_options *options,
                 int32_t max_moves, struct err *err);
void kv_pool_close(struct kv_pool **p);
uint64_t kv_page_bytes(const struct model_params *params, int64_t layers, int32_t page_tokens,
                       enum dtype dtype);

/* Applies page operations in order. Indices were checked by step_decode. */
void kv_pool_apply(struct kv_pool *p, struct stream *stream, const struct page_op *ops, int32_t count);

#endif
