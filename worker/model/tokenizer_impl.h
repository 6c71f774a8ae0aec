/* tokenizer_impl: what the tokenizer's own files share; nobody else includes it.
 *
 * tokenizer.c owns the vocabulary (pieces, index, special tokens) and splits the text at special tokens. What
 * lies between them goes to the algorithm that the file names: one row of the table in tokenizer.c, one file
 * each. */
#ifndef LEPTON_WORKER_MODEL_TOKENIZER_IMPL_H
#define LEPTON_WORKER_MODEL_TOKENIZER_IMPL_H

#include "worker/model/tokenizer.h"

/* The values of tokenizer.ggml.token_type. */
enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN = 2,
    PIECE_CONTROL = 3,
    PIECE_USER_DEFINED = 4,
    PIECE_UNUSED = 5,
    PIECE_BYTE = 6,
};

/* No published vocabulary comes near it; it bounds the work that one lookup can cost. */
#define PIECE_MAX_BYTES 1024

/* How SentencePiece writes a space: U+2581. */
#define SPACE_MARK       "\xE2\x96\x81"
#define SPACE_MARK_BYTES 3

struct piece {
    const char *text; /* in tokenizer.arena; not terminated */
    float score;
    uint16_t bytes;
    uint8_t type; /* enum piece_type */
    uint8_t byte; /* of PIECE_BYTE: its value */
};

/* Ids of special tokens, sorted by their text, so that the longest one that stands at a place in the text is
 * found by narrowing a range byte by byte. */
struct special_set {
    int32_t *ids;
    uint32_t count;
    bool begins[256]; /* some member begins with this byte */
};

struct tokenizer;

/* One algorithm. `begin` runs first and may set tokenizer.state and the settings that a file may leave out:
 * add_bos, add_space_prefix, and the ids bos, eos, unknown (none where no token of their kind stands there).
 * `prepare` runs once after the vocabulary is read; `encode` appends the ids of a stretch of text without
 * special tokens, with the space prefix in front when `prefix` is set. */
struct tokenizer_algorithm {
    const char *model;    /* the value of tokenizer.ggml.model */
    bool optional_arrays; /* scores and token_type may be absent: 0 and normal */
    bool byte_level;      /* pieces are written in byte characters (tokenizer_byte_of) */
    int (*begin)(struct tokenizer *t, const struct gguf *g, struct err *err);
    int (*prepare)(struct tokenizer *t, const struct gguf *g, struct err *err);
    int (*encode)(const struct tokenizer *t, const char *text, size_t bytes, bool prefix,
                  struct token_ids *ids, struct err *err);
    void (*release)(struct tokenizer *t);
};

#define TOKENIZER_END_NAMES 16

struct tokenizer {
    const struct tokenizer_algorithm *algorithm;
    void *state; /* of the algorithm */
    char *arena;
    struct piece *pieces;
    uint32_t count;
    uint32_t longest_bytes; /* of the pieces of PIECE_NORMAL */
    uint64_t key[2];        /* random, of the hash tables */
    uint32_t *slots;        /* open-addressing index over the pieces' text: id + 1, or 0 */
    uint32_t slot_mask;
    int32_t byte_id[256];                   /* -1 where the vocabulary has no such byte token */
    struct special_set user_defined;        /* matched in every text */
    struct special_set every_special;       /* those, control and unknown: with parse_special */
    int32_t bos, eos, eot, eom, unknown;    /* -1 = none */
    int32_t end_names[TOKENIZER_END_NAMES]; /* control tokens that end a turn by their name; end_count */
    uint32_t end_count;
    bool add_bos, add_eos, add_space_prefix;
};

extern const struct tokenizer_algorithm tokenizer_spm, tokenizer_bpe;

/* One step of the hash of every table here. The keys are random for each tokenizer, so that no file can be
 * made whose pieces all fall into one place. */
static inline uint64_t tokenizer_mix(const struct tokenizer *t, uint64_t hash, uint64_t word)
{
    unsigned __int128 product = (unsigned __int128)(hash ^ word ^ t->key[0]) * (t->key[1] | 1);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The id of a piece with exactly this text, or -1. */
int32_t tokenizer_lookup(const struct tokenizer *t, const char *text, size_t bytes);
/* Decodes the character at text[0..bytes), bytes > 0: its length, or 0 where no valid UTF-8 begins. */
int tokenizer_character(const char *text, size_t bytes, uint32_t *codepoint);

/* How byte-level vocabularies write bytes (GPT-2's encoder): the printable ones of Latin-1 stand for
 * themselves, the others, in order, for the characters from U+0100. The reverse is -1 for other characters.
 */
static inline uint32_t tokenizer_byte_character(uint8_t byte)
{
    return byte <= 0x20                   ? 0x100u + byte
           : byte >= 0x7F && byte <= 0xA0 ? 0x121u + (byte - 0x7Fu)
           : byte == 0xAD                 ? 0x143u
                                          : byte;
}
static inline int tokenizer_byte_of(uint32_t character)
{
    if (character >= 0x100)
        return character <= 0x120   ? (int)character - 0x100
               : character <= 0x142 ? (int)character - 0x121 + 0x7F
               : character == 0x143 ? 0xAD
                                    : -1;
    return tokenizer_byte_character((uint8_t)character) == character ? (int)character : -1;
}

#endif
