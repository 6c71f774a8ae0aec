/* pretokenize_scan: the scanners. Above each stands the expression that it matches.
 *
 * A scanner sees one piece and a place in it. What a regular expression finds by going back, a scanner finds
 * by remembering a place on the way: it reads each character at most a fixed number of times. */
#include "worker/model/pretokenize_impl.h"

#include <string.h>
#include <utf8proc.h>

/* ---- characters -------------------------------------------------------------------------------------------
 */

static uint16_t space_bits(uint32_t c)
{
    if (c == '\r' || c == '\n')
        return CHAR_SPACE | CHAR_NEWLINE;
    if (c == ' ' || (c >= '\t' && c <= '\f') || c == 0x85 || c == 0xA0 || c == 0x1680 ||
        (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
        c == 0x3000)
        return CHAR_SPACE;
    return 0;
}

static uint16_t category_bits(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
        return CHAR_UPPER;
    case UTF8PROC_CATEGORY_LL:
        return CHAR_LOWER;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return CHAR_OTHER_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return CHAR_NUMBER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return CHAR_MARK;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return CHAR_PUNCTUATION;
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO:
        return CHAR_SYMBOL;
    default:
        return 0;
    }
}

static struct character character_at(const struct piece_of_text *t, size_t at)
{
    if (at >= t->end)
        return (struct character){0};
    uint8_t first = (uint8_t)t->text[at];
    if (first < 0x80)
        return (struct character){first, CHAR_ANY | category_bits(first) | space_bits(first), 1};
    utf8proc_int32_t c;
    size_t left = t->end - at;
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)t->text + at, left < 4 ? (utf8proc_ssize_t)left : 4, &c);
    if (n <= 0)
        return (struct character){0xFFFD, CHAR_ANY | CHAR_SYMBOL, 1};
    return (struct character){(uint32_t)c, CHAR_ANY | category_bits((uint32_t)c) | space_bits((uint32_t)c),
                              (uint8_t)n};
}

/* The end of the run of characters that are any of `classes`. */
static size_t run_end(const struct piece_of_text *t, size_t at, uint16_t classes)
{
    for (struct character c; (c = character_at(t, at)).is & classes;)
        at += c.bytes;
    return at;
}

/* The end of the run of characters that are none of `classes`. */
static size_t run_end_without(const struct piece_of_text *t, size_t at, uint16_t classes)
{
    for (struct character c; (c = character_at(t, at)).is && !(c.is & classes);)
        at += c.bytes;
    return at;
}

/* ---- sets -------------------------------------------------------------------------------------------------
 */

static bool in_set(const struct pass *p, struct character c)
{
    if (!c.is)
        return false;
    bool found =
        (c.is & p->classes) || (c.code && c.code < 0x80 && p->ascii && strchr(p->ascii, (int)c.code));
    uint32_t low = 0, high = found ? 0 : p->range_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c.code > p->ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
        found = c.code >= p->ranges[middle].first && c.code <= p->ranges[middle].last;
        if (found)
            break;
    }
    return found != p->negated;
}

/* [set]+, [set]{min,max}, " ?[set]+", "\s?[set]+" */
size_t match_run(const struct pass *p, const struct piece_of_text *t, size_t at, size_t *skip)
{
    struct character c = character_at(t, at);
    size_t i = at;
    uint32_t count = 0;
    *skip = c.bytes;
    bool space = p->before == BLANK_BEFORE ? c.code == ' ' : p->before && (c.is & CHAR_SPACE);
    if (space && in_set(p, character_at(t, at + c.bytes)))
        i += c.bytes;
    for (; (p->max == 0 || count < p->max) && in_set(p, c = character_at(t, i)); count++)
        i += c.bytes;
    return count >= (p->min ? p->min : 1) ? i - at : 0;
}

/* \s+$ */
size_t match_space_at_end(const struct pass *p, const struct piece_of_text *t, size_t at, size_t *skip)
{
    (void)p;
    size_t end = run_end(t, at, CHAR_SPACE);
    *skip = end > at ? end - at : character_at(t, at).bytes;
    return end == t->end ? end - at : 0;
}

/* ---- words ------------------------------------------------------------------------------------------------
 */

/* \s+(?!\S)|\s+   A run of space leaves its last character to the word that follows. */
static size_t match_space(const struct piece_of_text *t, size_t at)
{
    size_t last = at, end = at;
    for (struct character c; (c = character_at(t, end)).is & CHAR_SPACE; end += c.bytes)
        last = end;
    return end == t->end || last == at ? end - at : last - at;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+   A run of space ends after its last line end. */
static size_t match_lines_or_space(const struct piece_of_text *t, size_t at)
{
    size_t line_end = at, i = at;
    for (struct character c; (c = character_at(t, i)).is & CHAR_SPACE;) {
        i += c.bytes;
        if (c.is & CHAR_NEWLINE)
            line_end = i;
    }
    return line_end > at ? line_end - at : match_space(t, at);
}

/* The letter without its case, as the expressions that ignore case see it: they take U+017F for an s. */
static uint32_t fold(uint32_t code, bool ignore_case)
{
    if (!ignore_case)
        return code;
    return code >= 'A' && code <= 'Z' ? code - 'A' + 'a' : code == 0x17F ? 's' : code;
}

/* 's|'t|'re|'ve|'m|'ll|'d   At an apostrophe. */
static size_t match_contraction(const struct piece_of_text *t, size_t at, bool ignore_case)
{
    struct character a = character_at(t, at + 1);
    uint32_t first = fold(a.code, ignore_case);
    if (!a.is || !first || first >= 0x80)
        return 0;
    if (strchr("stmd", (int)first))
        return 1u + a.bytes;
    struct character b = character_at(t, at + 1 + a.bytes);
    uint32_t second = fold(b.code, ignore_case);
    bool two =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return b.is && two ? 1u + a.bytes + b.bytes : 0;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
size_t match_gpt2(const struct pass *p, const struct piece_of_text *t, size_t at, size_t *skip)
{
    (void)p;
    (void)skip; /* it matches everywhere */
    struct character c = character_at(t, at);
    size_t contraction = c.code == '\'' ? match_contraction(t, at, false) : 0;
    if (contraction)
        return contraction;
    size_t word = c.code == ' ' ? at + 1 : at;
    if (c.code == ' ')
        c = character_at(t, word);
    if (c.is & CHAR_LETTER)
        return run_end(t, word, CHAR_LETTER) - at;
    if (c.is & CHAR_NUMBER)
        return run_end(t, word, CHAR_NUMBER) - at;
    if (c.is && !(c.is & CHAR_SPACE))
        return run_end_without(t, word, CHAR_SPACE | CHAR_LETTER | CHAR_NUMBER) - at;
    return match_space(t, at);
}

/* [A]*[B]+|[A]+[B]*   where A = \p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M} and B = \p{Ll}\p{Lm}\p{Lo}\p{M}
 *
 *     Hello    H in A, "ello" in B         WORLD   all in A, none in B: the second form
 *     ABxC     A takes "AB", B takes "x"   AB中C   A takes all four, gives back down to 中 for B: ends after
 * it
 *
 * `both`: the second form may be tried (the expression tries it only after the first with either prefix). */
static size_t match_cased(const struct piece_of_text *t, size_t at, bool second_form)
{
    const uint16_t both = CHAR_OTHER_LETTER | CHAR_MARK;
    size_t i = at, shared = 0; /* the end of the last character of A that is in B as well */
    for (struct character c; (c = character_at(t, i)).is & (CHAR_UPPER | both);) {
        i += c.bytes;
        if (c.is & both)
            shared = i;
    }
    size_t lower = run_end(t, i, CHAR_LOWER | both);
    if (lower > i)
        return lower - at;
    if (shared)
        return shared - at;
    return second_form ? i - at : 0;
}

/* The words of o200k_base: a character that is no letter, number or line end may stand in front of either
 * form. A mark may be that character or the first of the word. */
static size_t match_cased_word(const struct pass *p, const struct piece_of_text *t, size_t at)
{
    struct character c = character_at(t, at);
    bool prefix = c.is && !(c.is & (CHAR_NEWLINE | CHAR_LETTER | CHAR_NUMBER));
    size_t front = prefix ? c.bytes : 0, n = 0;
    for (int form = 0; form < 2 && !n; form++) {
        if (prefix && (n = match_cased(t, at + front, form)))
            n += front;
        if (!n && (!prefix || (c.is & CHAR_MARK)))
            n = match_cased(t, at, form);
    }
    if (n && p->contraction_last && character_at(t, at + n).code == '\'')
        n += match_contraction(t, at + n, true);
    return n;
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ */
static size_t match_word(const struct pass *p, const struct piece_of_text *t, size_t at)
{
    if (p->cased)
        return match_cased_word(p, t, at);
    struct character c = character_at(t, at);
    if (c.is & CHAR_LETTER)
        return run_end(t, at, CHAR_LETTER) - at;
    if (c.is & (CHAR_NEWLINE | CHAR_NUMBER))
        return 0;
    size_t end = run_end(t, at + c.bytes, CHAR_LETTER);
    return end > at + c.bytes ? end - at : 0;
}

/* The families of cl100k_base and o200k_base:
 *
 *     (?i:'s|'t|'re|'ve|'m|'ll|'d)        contraction_first
 *     |[^\r\n\p{L}\p{N}]?\p{L}+           or cased words, with contraction_last
 *     |\p{N}{1,3}                         max_digits
 *     | ?[^\s\p{L}\p{N}]+[\r\n/]*         newlines_after_symbols, slash_after_symbols
 *     |\s*[\r\n]+|\s+(?!\S)|\s+ */
size_t match_words(const struct pass *p, const struct piece_of_text *t, size_t at, size_t *skip)
{
    (void)skip; /* it matches everywhere */
    struct character c = character_at(t, at);
    size_t n = p->contraction_first && c.code == '\'' ? match_contraction(t, at, true) : 0;
    if (!n)
        n = match_word(p, t, at);
    if (n)
        return n;
    if (c.is & CHAR_NUMBER) {
        for (uint32_t count = 0; count < p->max_digits && (c = character_at(t, at + n)).is & CHAR_NUMBER;
             count++)
            n += c.bytes;
        return n;
    }
    size_t symbol = c.code == ' ' ? at + 1 : at;
    size_t end = run_end_without(t, symbol, CHAR_SPACE | CHAR_LETTER | CHAR_NUMBER);
    if (end == symbol)
        return match_lines_or_space(t, at);
    while (p->newlines_after_symbols &&
           ((c = character_at(t, end)).is & CHAR_NEWLINE || (p->slash_after_symbols && c.code == '/')))
        end += c.bytes;
    return end - at;
}

/* [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+
 * |[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
 * | ?[\p{P}\p{S}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+                        Numbers and control characters may match nothing. */
size_t match_deepseek3(const struct pass *p, const struct piece_of_text *t, size_t at, size_t *skip)
{
    (void)p;
    const uint16_t word = CHAR_LETTER | CHAR_MARK, symbol = CHAR_PUNCTUATION | CHAR_SYMBOL;
    struct character c = character_at(t, at);
    *skip = c.bytes;
    if (c.code < 0x80 && (c.is & symbol)) {
        size_t i = at + 1;
        for (struct character d; (d = character_at(t, i)).code < 0x80 && (d.is & CHAR_LETTER);)
            i++;
        if (i > at + 1)
            return i - at;
    }
    if (!(c.is & (CHAR_NEWLINE | CHAR_LETTER | symbol))) {
        size_t end = run_end(t, at + c.bytes, word);
        if (end > at + c.bytes)
            return end - at;
    }
    if (c.is & word)
        return run_end(t, at, word) - at;
    size_t begin = c.code == ' ' ? at + 1 : at, end = run_end(t, begin, symbol);
    if (end > begin)
        return run_end(t, end, CHAR_NEWLINE) - at;
    return c.is & CHAR_SPACE ? match_lines_or_space(t, at) : 0;
}
