/* manifest: what a registered model was when it was added: name, origin, sizes, and hashes of every piece,
 * so that a flipped bit is found and named.
 *
 * Two kinds of hashes, for two purposes. Every chunk of CHUNK_BYTES of a tensor has an XXH3-128: it finds
 * damage at the speed of memory, so it can be checked at every load, but a person who can write files can
 * make another chunk with the same hash. Every tensor, and the header with the metadata and the tensor table,
 * has a BLAKE2b-256 as well, which nobody can make twice; of all of these together comes the model's digest.
 * `lepton models verify` checks both kinds.
 *
 * In the file: JSON, at most 256 MiB, sealed by a BLAKE2b of all the rest, so that a damaged manifest is
 * called damaged and the model is not blamed. This file knows no directory and reads no model. */
#ifndef LEPTON_WORKER_MODEL_MANIFEST_H
#define LEPTON_WORKER_MODEL_MANIFEST_H

#include "common/base.h"

#define MANIFEST_VERSION    1
#define MANIFEST_FILE       "manifest.json"
#define MANIFEST_BYTES_MAX  (256u << 20)
#define MANIFEST_CHUNK      (1u << 20) /* bytes of a tensor under one hash; the last chunk may be shorter */
#define MANIFEST_HASH       32         /* bytes of a BLAKE2b-256 */
#define MANIFEST_CHUNK_HASH 16         /* bytes of an XXH3-128, in its canonical (big-endian) form */

struct manifest_tensor {
    char *name;
    uint64_t bytes;
    uint8_t *chunk;              /* [manifest_chunks(bytes)][MANIFEST_CHUNK_HASH] */
    uint8_t hash[MANIFEST_HASH]; /* BLAKE2b over the BLAKE2bs of its chunks */
};

struct manifest {
    char *name;            /* under which it is registered */
    char *source;          /* the absolute path it was added from */
    bool linked;           /* the file stays at `source`; otherwise the registry has a copy */
    uint64_t file_bytes;   /* of the model file */
    int64_t file_time_ns;  /* its modification time, since 1970 */
    int64_t created_s;     /* when it was added, since 1970 */
    uint64_t header_bytes; /* header, metadata and tensor table, from the start of the file */
    uint8_t header[MANIFEST_HASH];
    struct manifest_tensor *tensor; /* in the order of the model's table */
    uint64_t tensor_count;
};

/* [A-Za-z0-9._-]{1,128} without a leading dot. */
bool manifest_name_valid(const char *name);
static inline uint64_t manifest_chunks(uint64_t bytes)
{
    return bytes / MANIFEST_CHUNK + (bytes % MANIFEST_CHUNK != 0);
}
/* Of the content alone: the same model under another name has the same digest. 64 hexadecimal digits. */
void manifest_digest(const struct manifest *m, char out[2 * MANIFEST_HASH + 1]);

/* The manifest as its file holds it. Refuses what JSON cannot say: a source that is not UTF-8. */
int manifest_write(const struct manifest *m, struct buffer *out, struct err *err);
/* `name` stands in messages. Every value is checked, sums too; memory stays within 4 x size + 64 MiB. */
int manifest_parse(struct manifest **out, const void *data, uint64_t size, const char *name, struct err *err);
/* The same from a regular file that is no symbolic link. */
int manifest_read(struct manifest **out, const char *path, struct err *err);
void manifest_free(struct manifest **m);

#endif
