/* tokenizer: text <-> token ids, from a GGUF file's tokenizer.ggml.* metadata.
 *
 * `tokenizer.ggml.model = llama`: SentencePiece BPE with scores, byte fallback and the space prefix.
 * Encoding merges the pair with the highest score first (the leftmost among equals), over a heap: O(n log n),
 * no recursion. A run of over 2 MiB without a boundary that the vocabulary's merges cannot cross is cut
 * there; every shorter one is exact. U+2581 in a text counts as a space. Bytes of the text that are no valid
 * UTF-8 are encoded by byte tokens, never dropped. Source of the algorithm: Kudo & Richardson 2018, and the
 * behaviour of the sentencepiece library.
 *
 * `tokenizer.ggml.model = gpt2`: byte-level BPE with tokenizer.ggml.merges. The text is cut into words by the
 * pre-tokenizer that `tokenizer.ggml.pre` names (worker/model/pretokenize.h; a name that is not known is
 * refused), and the bytes of a word are merged, the lowest rank first: O(n log n), no recursion. A word of
 * over 1 MiB is cut there. A file whose vocabulary holds all 256 bytes encodes any bytes and gives them back.
 *
 * A tokenizer is immutable after opening; several threads may use one. */
#ifndef LEPTON_WORKER_MODEL_TOKENIZER_H
#define LEPTON_WORKER_MODEL_TOKENIZER_H

#include "worker/model/gguf.h"

struct tokenizer;

struct tokenizer_options {
    bool add_bos;       /* put BOS in front when the model has one */
    bool add_eos;       /* put EOS behind when the model has one */
    bool parse_special; /* recognise control tokens written out in the text ("</s>") */
};

struct token_ids { /* a growing array of ids */
    int32_t *data;
    size_t count, capacity;
};
void token_ids_push(struct token_ids *ids, int32_t id);
void token_ids_release(struct token_ids *ids);

/* Copies what it needs: the file may be closed afterwards. BOS and EOS default to the control tokens 1 and 2
 * of `llama` files, to 11 of `gpt2` files.
 * Errors: no or unknown tokenizer model (named), missing arrays, arrays of unequal length, duplicate pieces,
 * malformed byte tokens, pieces that are empty or no UTF-8 where they must be, ids out of range; an unknown
 * pre-tokenizer, merges that are malformed, twice there or name pieces that the vocabulary lacks. */
int tokenizer_open(struct tokenizer **out, const struct gguf *g, struct err *err);
void tokenizer_close(struct tokenizer **t);

int32_t tokenizer_vocab_size(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t); /* -1 when there is none */
int32_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_adds_bos(
    const struct tokenizer *t); /* what the file asks for (add_bos_token; default: its kind's) */
bool tokenizer_adds_eos(const struct tokenizer *t); /* the same (add_eos_token; default false) */
/* True for ids that end a generation: EOS, EOT / end-of-message where the file names them, and control tokens
 * with one of the usual names ("<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", ...). */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);
/* The piece as it stands in the vocabulary, not terminated (U+2581 for a space); for people to look at. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes);

#define TOKENIZER_MAX_TEXT_BYTES (64u << 20)

/* Appends the ids of text[0..bytes) to *ids; empty text has none. User-defined tokens are recognised always,
 * the longest one where several begin. A character without a piece becomes its byte tokens, or the unknown
 * token where those are missing. Errors (code 400; *ids is then as before): text over 64 MiB; a character
 * that no token can stand for. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                     const struct tokenizer_options *options, struct token_ids *ids, struct err *err);

/* Streaming detokenisation of one sequence. Never emits a part of a UTF-8 character: bytes of an unfinished
 * one are held back; bytes that can no longer become a character are given as U+FFFD, as are held bytes at
 * the flush. Control tokens give no text; the unknown token and ids outside the vocabulary (which may arrive
 * in a request) give U+FFFD. The single space that the space prefix put in front of the text is removed from
 * the first piece of a sequence that begins at position 0 (`at_start`). */
struct detokenizer {
    const struct tokenizer *tokenizer; /* borrowed */
    uint8_t held[4];
    int held_bytes;
    bool at_start;
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool at_start);
void detokenizer_push(struct detokenizer *d, int32_t id, struct buffer *text);
void detokenizer_flush(struct detokenizer *d, struct buffer *text);

#endif
