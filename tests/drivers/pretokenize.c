/* Cuts texts into words for tests/integration/test_pretokenize.py, which knows the published expressions.
 *
 * usage: pretokenize       lists the names and their rules
 *        pretokenize NAME  reads texts from standard input, each after its length in bytes (u32); writes for
 *                               each the number of its words and their lengths in bytes (u32 each)
 *
 * Numbers are little-endian, as on every machine that Lepton runs on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/pretokenize.h"

static int add_word(void *context, const char *text, size_t bytes)
{
    (void)text;
    buffer_u32(context, (uint32_t)bytes);
    return 0;
}

static void cut(const struct pretokenizer *p)
{
    for (uint32_t bytes; fread(&bytes, sizeof(bytes), 1, stdin) == 1;) {
        char *text = xmalloc(bytes + 1u);
        struct buffer words = {0};
        if (fread(text, 1, bytes, stdin) != bytes)
            die("expected %u bytes of text", bytes);
        if (pretokenize(p, text, bytes, add_word, &words))
            die("a callback that never fails failed");
        uint32_t count = (uint32_t)(words.size / 4);
        fwrite(&count, sizeof(count), 1, stdout);
        if (count)
            fwrite(words.data, 1, words.size, stdout);
        buffer_release(&words);
        free(text);
    }
}

int main(int argc, char **argv)
{
    if (argc == 1) {
        for (const struct pretokenizer *p = pretokenizer_all(); p->name; p++)
            printf("%s %s\n", p->name, pretokenizer_rule_name(p));
        return 0;
    }
    const struct pretokenizer *p = pretokenizer_find(argv[1], strlen(argv[1]));
    if (!p)
        die("no rule \"%s\"", argv[1]);
    cut(p);
    return 0;
}
