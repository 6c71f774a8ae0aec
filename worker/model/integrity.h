/* integrity: the bytes of a model against the hashes of its manifest, on several threads: making the hashes,
 * checking a tensor as it is loaded, checking everything.
 *
 * A mismatch is named: "NAME: tensor blk.3.ffn_up.weight: chunk 17 (bytes A-B of the file) does not match its
 * hash", A and B both included. It knows no directory: that is registry. */
#ifndef LEPTON_WORKER_MODEL_INTEGRITY_H
#define LEPTON_WORKER_MODEL_INTEGRITY_H

#include "worker/model/gguf.h"
#include "worker/model/manifest.h"

struct integrity;

/* Told after every tensor's part: `bytes` more were read. False stops the work. May be NULL. */
struct integrity_watch {
    bool (*progress)(void *context, uint64_t bytes, const char *tensor);
    void *context;
};

/* threads: 0 = the processors allowed to the process. */
int integrity_open(struct integrity **out, int threads, struct err *err);
void integrity_close(struct integrity **i);

/* Fills what of a manifest comes from the content: header and tensors. -1 also when `watch` stopped it. */
int integrity_make(struct integrity *i, struct manifest *m, const struct gguf *g,
                   const struct integrity_watch *watch, struct err *err);

/* The bytes of header, metadata and tensor table; then that every tensor is as the manifest says, by name and
 * size. `data` = the first bytes of the file, which may be damaged beyond parsing. */
int integrity_check_header(const struct manifest *m, const void *data, uint64_t bytes, struct err *err);
int integrity_check_table(const struct manifest *m, const struct gguf *g, struct err *err);
/* The chunks of one tensor of `g`, whose table was checked. */
int integrity_check_tensor(struct integrity *i, const struct manifest *m, const struct gguf *g,
                           const struct gguf_tensor *t, struct err *err);
/* The same in the pass of somebody else, who reads bytes [begin, end) of the tensor and tells of runs that
 * cover them, from his threads 0..threads-1: each hashes what it has just read, while it lies in its cache.
 * A chunk is hashed to its end by the thread that read its beginning. integrity_read_end says what was found.
 */
void integrity_read_begin(struct integrity *i, const struct manifest *m, const struct gguf *g,
                          const struct gguf_tensor *t, uint64_t begin, int threads);
void integrity_read(struct integrity *i, uint64_t begin, uint64_t end, int thread);
int integrity_read_end(struct integrity *i, struct err *err);
/* Everything, with both kinds of hashes. found() is called for every mismatch; *mismatches counts them. -1
 * only when `watch` stopped it. */
int integrity_check_all(struct integrity *i, const struct manifest *m, const struct gguf *g,
                        const struct integrity_watch *watch,
                        void (*found)(void *context, const char *message), uint64_t *mismatches,
                        struct err *err);

#endif
