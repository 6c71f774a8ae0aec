/* strings: what methods and filters share: work on strings, and the pairs of a dict. */
#ifndef LEPTON_WORKER_MODEL_TEMPLATE_STRINGS_H
#define LEPTON_WORKER_MODEL_TEMPLATE_STRINGS_H

#include "worker/model/template/impl.h"

enum letter_case {
    CASE_UPPER,
    CASE_LOWER,
    CASE_CAPITALIZE,
    CASE_TITLE,       /* str.title() */
    CASE_TITLE_WORDS, /* the filter title */
};
int string_case(struct render *r, const struct string *s, enum letter_case to, struct value *out);
/* `set` NULL: white space. */
int string_strip(struct render *r, const struct string *s, const struct string *set, bool left, bool right,
                 struct value *out);
/* `by` NULL: at runs of white space; `most` < 0: everywhere. */
int string_split(struct render *r, const struct string *s, const struct string *by, int64_t most,
                 struct value *out);
int string_lines(struct render *r, const struct string *s, struct value *out); /* str.splitlines() */
int string_replace(struct render *r, const struct string *s, const struct string *old,
                   const struct string *new, int64_t most, struct value *out);
int dict_items(struct render *r, const struct dict *d, enum value_kind kind, struct value *out);

#endif
