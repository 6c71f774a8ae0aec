/* pretokenize_impl: what the table of rules (pretokenize.c) and the scanners (pretokenize_scan.c) share. */
#ifndef LEPTON_WORKER_MODEL_PRETOKENIZE_IMPL_H
#define LEPTON_WORKER_MODEL_PRETOKENIZE_IMPL_H

#include "worker/model/pretokenize.h"

/* What a character is; one bit of a general category, and what cuts across them. */
enum char_class {
    CHAR_UPPER = 1 << 0,        /* Lu, Lt */
    CHAR_LOWER = 1 << 1,        /* Ll */
    CHAR_OTHER_LETTER = 1 << 2, /* Lm, Lo */
    CHAR_NUMBER = 1 << 3,       /* \p{N} */
    CHAR_PUNCTUATION = 1 << 4,  /* \p{P} */
    CHAR_SYMBOL = 1 << 5,       /* \p{S} */
    CHAR_MARK = 1 << 6,         /* \p{M} */
    CHAR_SPACE = 1 << 7,        /* \s: White_Space */
    CHAR_NEWLINE = 1 << 8,      /* \r and \n, which are CHAR_SPACE too */
    CHAR_ANY = 1 << 9,          /* every character; only the end of a piece has no bit at all */
    CHAR_LETTER = CHAR_UPPER | CHAR_LOWER | CHAR_OTHER_LETTER,
};

struct character {
    uint32_t code;
    uint16_t is; /* enum char_class; 0 at the end */
    uint8_t bytes;
};

struct piece_of_text { /* what one pass cuts: it sees nothing outside */
    const char *text;
    size_t end;
};

struct code_range {
    uint32_t first, last;
};

enum space_before { NO_SPACE_BEFORE, BLANK_BEFORE /* " ?" */, ANY_SPACE_BEFORE /* "\s?" */ };

/* One regular expression. `match` returns the bytes of the match that begins at `at`, or 0; then *skip says
 * how many bytes further the next may begin. */
struct pass {
    size_t (*match)(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);
    /* match_run: a set of characters, how many of them, and the space in front. */
    uint16_t classes;
    bool negated;
    const char *ascii; /* further members */
    const struct code_range *ranges;
    uint32_t range_count;
    uint32_t min, max; /* 0: one, and no limit */
    enum space_before before;
    /* match_words: how the families of cl100k_base and o200k_base differ. */
    bool contraction_first, contraction_last, cased;
    uint32_t max_digits;
    bool newlines_after_symbols, slash_after_symbols;
};

#define MAX_PASSES 6

struct pretokenize_rule {
    const char *name;
    struct pass passes[MAX_PASSES]; /* the first without `match` ends them */
};

size_t match_run(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);
size_t match_space_at_end(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);
size_t match_gpt2(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);
size_t match_words(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);
size_t match_deepseek3(const struct pass *pass, const struct piece_of_text *t, size_t at, size_t *skip);

#endif
