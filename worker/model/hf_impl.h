/* hf_impl: what the files of hf share; nobody else but their tests includes it.
 *
 *   hf_family.c         the families as tables: configuration keys, tensor names, what is stored differently
 *   hf_config.c         config.json and generation_config.json -> metadata keys
 *   hf_tokenizer.c      the tokenizer's files -> tokenizer.ggml.* keys
 *   hf_tokenizer_json.c what tokenizer.json means
 *   hf_vocabulary.c     a vocabulary; tokenizer.json's vocabulary and merges, streamed
 *   hf_pre.c            pre-tokenizers and their names
 *   sentencepiece.c     tokenizer.model, the protobuf
 *   hf.c                the assembled model
 *   hf_write*.c         the way back */
#ifndef LEPTON_WORKER_MODEL_HF_IMPL_H
#define LEPTON_WORKER_MODEL_HF_IMPL_H

#include "worker/model/hf.h"
#include "worker/model/json_file.h"

#define HF_CONFIG_MAX    (16u << 20) /* bytes of config.json and its like */
#define HF_TOKENIZER_MAX (256u << 20)
#define HF_EXPERTS_MAX   1024

enum hf_kind { HF_INT, HF_FLOAT };

/* A number of config.json and the key it has in GGUF, behind "<architecture>.". */
struct hf_key {
    const char *config;
    const char *gguf;
    enum hf_kind kind;
    bool required;
    double standard; /* of a key that is not required: what the model's code takes; < 0 = no key is written */
};

/* How a tensor differs between the two formats. */
enum hf_change {
    HF_SAME,
    HF_PERMUTE_Q, /* GGUF pairs rotated elements as (2i, 2i + 1), HF as (i, i + n/2): rows of each head move
                   */
    HF_PERMUTE_K, /* the same, over the KV heads */
    HF_TRANSPOSE, /* HF stores [in, out] (Conv1D) */
    HF_PLUS_ONE,  /* HF stores weight - 1 */
    HF_STACK,     /* HF stores one tensor for each expert */
};

/* "{l}" stands for the layer, "{e}" for the expert. */
struct hf_tensor_row {
    const char *gguf;
    const char *hf;
    enum hf_change change;
    bool optional;
};

struct hf_family {
    const char *model_type;   /* config.json */
    const char *architecture; /* general.architecture */
    const char *class_name;   /* config.json's "architectures" */
    const struct hf_key *keys;
    int key_count;
    const struct hf_tensor_row *tensors;
    int tensor_count;
    const char *activation;       /* the one that the architecture computes */
    const char *activation_alias; /* another name for it; NULL = none */
    const char *prefix;           /* that some files put in front of every tensor's name; NULL = none */
    bool tied;                    /* what tie_word_embeddings is when the configuration does not say */
    bool sliding_window;          /* attention.sliding_window comes from sliding_window */
    bool experts;
    int64_t head_length; /* what head_dim is when the configuration does not say; 0 = embedding / heads */
    double rope_base;    /* what rope_theta is when the configuration does not say; 0 = no rotation */
};

extern const struct hf_family hf_families[];
extern const size_t hf_family_count;
/* config.json's name of the number that is `gguf` in metadata ("block_count"), NULL when there is none. */
const char *hf_config_name(const struct hf_family *family, const char *gguf);
/* The name with layer and expert put in; cut at `bytes`. */
void hf_format_name(char *out, size_t bytes, const char *pattern, int64_t layer, int64_t expert);
/* Moves the elements of a [rows, columns] tensor as `change` says, toward GGUF or toward HF. HF_PLUS_ONE
 * takes F32. dst and src do not overlap. */
void hf_apply(enum hf_change change, bool toward_hf, const void *src, void *dst, int64_t rows,
              int64_t columns, uint32_t element_bytes, int64_t heads);

struct hf_config {
    const struct hf_family *family;
    json_t *root;       /* config.json */
    json_t *generation; /* generation_config.json, NULL when absent */
    char *path, *generation_path;
    int64_t layers, embed, heads, kv_heads, head_length, rope_length, experts, context;
    int64_t vocab; /* 0 = not said */
    bool tied;
    /* Divisors of the rotation's frequencies, [rope_length / 2] each, NULL where the scaling has none: Llama
     * 3's, and long RoPE's two sets. hf.c takes them over. */
    float *rope_divisors, *rope_long, *rope_short;
};

int hf_config_open(struct hf_config *c, const char *directory, struct err *err);
/* Adds every key but the tokenizer's. `name` is general.name. */
int hf_config_keys(struct hf_config *c, struct gguf_writer *w, const char *name, struct err *err);
void hf_config_release(struct hf_config *c);
/* Llama 3's divisor of each rotation frequency, [length / 2]. */
void hf_llama3_divisors(float *out, int64_t length, double base, double factor, double low, double high,
                        double original_context);

/* ---- the tokenizer ------------------------------------------------------------------------------------ */

/* The values of tokenizer.ggml.token_type; 0 stands for an id without a token. */
enum hf_token_type {
    HF_TOKEN_HOLE,
    HF_TOKEN_NORMAL,
    HF_TOKEN_UNKNOWN,
    HF_TOKEN_CONTROL,
    HF_TOKEN_USER_DEFINED,
    HF_TOKEN_UNUSED,
    HF_TOKEN_BYTE,
};

struct hf_token {
    uint64_t text; /* offset in the arena; terminated there */
    uint32_t bytes;
    float score;
    enum hf_token_type type;
};

struct hf_merge {
    int32_t left, right, result; /* ids */
};

/* A vocabulary on its way into metadata. */
struct hf_vocabulary {
    struct hf_token *token; /* by id */
    uint64_t count, capacity;
    struct buffer arena;
    struct hf_merge *merge;
    uint64_t merge_count, merge_capacity;
    uint32_t *slot; /* open-addressing index of the texts: id + 1, or 0; at most half full */
    uint64_t slot_mask;
    uint8_t hash_key[16];
    bool sentencepiece;             /* scores and byte tokens; else bytes and merges */
    bool add_space_prefix;          /* of SentencePiece */
    const char *pre;                /* tokenizer.ggml.pre; NULL for SentencePiece */
    int64_t bos, eos, unknown, pad; /* -1 = none */
    int add_bos, add_eos;           /* -1 = the files do not say */
};

void hf_vocabulary_init(struct hf_vocabulary *v);
void hf_vocabulary_release(struct hf_vocabulary *v);
/* Puts a token at its id. Errors name `where`: an id out of range or taken, a text that is empty, too long,
 * no UTF-8, holds a zero byte, or is there already. */
int hf_vocabulary_put(struct hf_vocabulary *v, const char *where, int64_t id, const char *text,
                      uint64_t bytes, float score, enum hf_token_type type, struct err *err);
int64_t hf_vocabulary_find(const struct hf_vocabulary *v, const char *text, uint64_t bytes); /* -1 = none */
const char *hf_vocabulary_text(const struct hf_vocabulary *v, int64_t id);

/* tokenizer.json without the values of model.vocab and model.merges (null stands there), which are two thirds
 * of jansson's memory; those are streamed into *v. NULL after an error; *found as in json_read. */
json_t *hf_tokenizer_json(struct hf_vocabulary *v, const char *path, bool *found, struct err *err);
json_t *hf_tokenizer_parse(struct hf_vocabulary *v, const char *text, uint64_t bytes, const char *name,
                           struct err *err);
/* What tokenizer.json says beyond the vocabulary, into *v: model, normalizer, pre-tokenizer, added tokens,
 * what is put around a text. Of a vocabulary that came from tokenizer.model only the last two. */
int hf_tokenizer_apply(struct hf_vocabulary *v, const json_t *root, const char *where, struct err *err);
/* Scores that make SentencePiece's algorithm do what the merges do; refused when there are none. */
int hf_scores_from_merges(struct hf_vocabulary *v, const char *where, struct err *err);
/* The name that tokenizer.ggml.pre has for a byte-level pre-tokenizer, and the way back (NULL = unknown). */
int hf_pre_recognise(const json_t *root, const char *where, const char **pre, struct err *err);
json_t *hf_pre_write(const char *pre);
/* tokenizer.model. */
int hf_sentencepiece_parse(struct hf_vocabulary *v, const void *data, uint64_t bytes, const char *name,
                           struct err *err);
void hf_sentencepiece_write(const struct hf_vocabulary *v, struct buffer *out);

/* Reads the directory's tokenizer and adds its keys. `c` may be NULL (no configuration); the vocabulary is
 * filled up to `rows` (0 = as it is). *found false when the directory has no tokenizer. */
int hf_tokenizer_keys(const struct hf_config *c, const char *directory, struct gguf_writer *w, int64_t rows,
                      bool *found, struct err *err);

/* ---- the way back ------------------------------------------------------------------------------------- */

/* The family that a GGUF file's architecture and metadata are. */
const struct hf_family *hf_write_family(const struct gguf *g, struct err *err);
/* config.json and generation_config.json from the metadata. `dtype_name`: "float16". */
json_t *hf_write_config(const struct gguf *g, const struct hf_family *family, const char *dtype_name,
                        struct err *err);
json_t *hf_write_generation(const struct gguf *g);
/* Writes the tokenizer's files into the directory. */
int hf_write_tokenizer(const struct gguf *g, const struct hf_family *family, const char *directory,
                       struct buffer *notes, struct err *err);
/* A file of the directory, whole, on the disk when it returns. */
int hf_write_file(const char *directory, const char *name, const void *data, uint64_t bytes, struct err *err);
int hf_write_json(const char *directory, const char *name, const json_t *root, struct err *err);

#endif
