/* model: the weights of a run of layers, ready for a device, and the sizes that go with them.
 *
 * A rank opens only its slice: layers [first, last), of them its tensor slot's part (slice.h), the token
 * embedding when it holds the first stage, the output norm and matrix when it holds the last. Tensors stay in
 * the file's mapping where the device uses them as stored. Every tensor's presence, shape and type is checked
 * against the family's table before any is used. */
#ifndef LEPTON_WORKER_MODEL_MODEL_H
#define LEPTON_WORKER_MODEL_MODEL_H

#include "worker/model/slice.h"

struct model_slice {
    int64_t first_layer, last_layer; /* [first, last) */
    bool embed;                      /* the token embedding */
    bool head;                       /* output norm and output matrix */
    int64_t context;                 /* most positions of a sequence that will be served; 0 = the model's */
    int width, slot; /* tensor slots, and which of them; width 0 = 1 = the whole of each layer */
    /* Called while it is opened, behind what is outside of the layers and behind each layer; NULL: nobody
     * asks. */
    void (*loaded)(void *context, int64_t done, int64_t all);
    void *loaded_context;
};

/* Asked for every tensor of the file before it is used; -1 refuses the model. A matrix whose rows are packed
 * as they lie in the file is checked in that pass: begin(), then read() for runs of bytes that cover what is
 * read from `begin` on, by several threads, then end(); all other tensors as a whole before. */
struct model_check {
    int (*tensor)(void *context, const struct gguf *g, const struct gguf_tensor *t, struct err *err);
    void (*begin)(void *context, const struct gguf *g, const struct gguf_tensor *t, uint64_t begin,
                  int threads);
    void (*read)(void *context, uint64_t begin, uint64_t end, int thread);
    int (*end)(void *context, struct err *err);
    void *context;
};

/* A tensor of the model on the device: matrices as `weight`, vectors as F32 `vector` ([n], data NULL =
 * absent). */
struct model_tensor {
    struct weight weight;
    struct tensor vector;
    void *gathered; /* host memory that `weight` lies in when it does not lie so in the file: columns of a
                       tensor slot, experts whose file keeps a tensor for each */
};

struct model {
    struct model_params params; /* of the whole model */
    struct model_slice slice;
    struct model_part part;   /* what of each layer is here: the heads and lengths that its operations have */
    struct device *device;    /* borrowed */
    const struct gguf *gguf;  /* borrowed: must outlive the model */
    struct model_check check; /* while it is opened; .tensor NULL = none */
    struct tensor rope_frequency; /* [rope_length / 2] F32 on the device */
    struct model_tensor global[TENSOR_GLOBAL_COUNT];
    struct model_tensor (*layer)[TENSOR_LAYER_COUNT]; /* [last - first] */
};

/* Opens a slice; `slice` NULL = the whole model. */
int model_open(struct model **out, const struct gguf *g, struct device *device,
               const struct model_slice *slice, struct err *err);
/* The same; every tensor that is used passes `check` first (NULL, or .tensor NULL: none). */
int model_open_checked(struct model **out, const struct gguf *g, struct device *device,
                       const struct model_slice *slice, const struct model_check *check, struct err *err);
void model_close(struct model **m);

/* Bytes of the weights that one token reads: of layer `layer`, and of the output head. For splitting by cost.
 */
int model_layer_bytes(const struct gguf *g, const struct model_params *p, int64_t layer, uint64_t *bytes,
                      struct err *err);
int model_head_bytes(const struct gguf *g, const struct model_params *p, uint64_t *bytes, struct err *err);

#endif
