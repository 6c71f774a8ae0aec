/* pretokenize: cuts a text into the words within which byte-level BPE merges.
 *
 * Every published tokenizer states its words as regular expressions, applied one after the other: each cuts
 * the pieces that the one before it left, matches and the text between matches alike. The same cuts are made
 * here by scanners written by hand, each in one pass with a bounded look-back, so that no text can make them
 * slow. tests/integration/test_pretokenize.py holds the expressions and compares.
 *
 * It knows categories of characters (Unicode, through utf8proc) and nothing of vocabularies. A byte that is
 * no valid UTF-8 counts as one character U+FFFD, a symbol. Sources: the pre_tokenizer of each model's
 * tokenizer.json; for `default`, which no model publishes, the practice of llama.cpp. */
#ifndef LEPTON_WORKER_MODEL_PRETOKENIZE_H
#define LEPTON_WORKER_MODEL_PRETOKENIZE_H

#include "common/base.h"

struct pretokenize_rule;

struct pretokenizer { /* what one value of tokenizer.ggml.pre means */
    const char *name;
    const struct pretokenize_rule *rule;
    bool ignore_merges; /* a word that is a token is taken whole, whatever the merges say */
    bool add_bos;       /* where the file does not say (add_bos_token) */
};

/* The row of this name, or NULL. */
const struct pretokenizer *pretokenizer_find(const char *name, size_t bytes);
/* All rows, ended by one without a name; and the name of a row's rule. */
const struct pretokenizer *pretokenizer_all(void);
const char *pretokenizer_rule_name(const struct pretokenizer *p);

/* Calls `word` for every word in order; together they are the text. Stops when it returns anything but 0, and
 * returns that. */
int pretokenize(const struct pretokenizer *p, const char *text, size_t bytes,
                int (*word)(void *context, const char *text, size_t bytes), void *context);

#endif
