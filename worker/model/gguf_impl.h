/* gguf_impl: what an opened GGUF file looks like in memory; shared by gguf.c (which parses and checks) and
 * gguf_value.c (which answers questions about the metadata). Nobody else includes it.
 *
 * Sizes are copied out of the mapping while they are checked and never read again: a file that is changed
 * under us can give wrong numbers but no access outside the mapping. */
#ifndef LEPTON_WORKER_MODEL_GGUF_IMPL_H
#define LEPTON_WORKER_MODEL_GGUF_IMPL_H

#include "worker/model/gguf.h"

/* One key with its value. Kept at 40 bytes: the smallest record in a file has 14, and memory is bounded. */
struct gguf_entry {
    const char *key; /* in the mapping, not terminated */
    uint32_t key_bytes;
    uint8_t type;         /* enum gguf_type */
    uint8_t element;      /* of an array: enum gguf_type */
    const uint8_t *value; /* first byte of the scalar, of the string's text, or of the first element */
    uint64_t count;       /* bytes of a string, elements of an array */
    uint64_t
        *offset; /* array of strings: count + 1 offsets of records (8 bytes length, then text); or NULL */
};

/* Open addressing; a slot holds the number of the entry plus one, 0 = free. At most half full. */
struct gguf_index {
    uint32_t *slot;
    uint64_t mask;
};

struct gguf {
    char *name;
    const uint8_t *data;
    uint64_t size;
    void *mapping;             /* NULL when the bytes are the caller's */
    struct buffer header;      /* of an assembled one: what `data` points to */
    struct gguf_source source; /* of an assembled one: where its tensors come from */
    uint32_t version;
    uint32_t alignment;
    uint64_t table_end;   /* where header, metadata and tensor table end */
    uint64_t data_offset; /* table_end rounded up to the alignment */
    struct gguf_entry *entry;
    uint64_t entry_count;
    struct gguf_tensor *tensor;
    uint64_t tensor_count;
    struct gguf_index key_index;
    struct gguf_index tensor_index;
    uint8_t hash_key[16]; /* random per file, so that nobody can choose names that collide */
};

const struct gguf_entry *gguf_entry_find(const struct gguf *g, const char *key);
uint32_t gguf_type_bytes(enum gguf_type type); /* of a scalar; 0 for strings and arrays */
/* A name for a message: at most 64 bytes, control characters and quotes replaced, shortened with "...". */
#define GGUF_SHOW_BYTES 72
const char *gguf_show(struct gguf_string s, char out[GGUF_SHOW_BYTES]);

#endif
