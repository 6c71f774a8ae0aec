#include "common/wire.h"
#include "tests/test.h"

/* docs/protocol.md holds the tables of wire_describe between two marker lines. `test_wire_describe --write`,
 * run in the project's root, brings them up to date. */
#define BEGIN   "<!-- messages:"
#define END     "<!-- end of messages -->"
#define PATH    "docs/protocol.md"
#define REFRESH "build/release/tests/unit/common/test_wire_describe --write"

/* The text, terminated; *from..*to is what stands between the markers. NULL when the file is not so. */
static char *read_page(size_t *from, size_t *to)
{
    struct buffer b = {0};
    char chunk[4096];
    size_t n;
    FILE *f = fopen(PATH, "r");
    if (!f)
        return NULL;
    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        buffer_append(&b, chunk, n);
    fclose(f);
    buffer_append(&b, "", 1);
    char *begin = strstr((char *)b.data, BEGIN);
    char *line = begin ? strchr(begin, '\n') : NULL;
    char *end = line ? strstr(line, END) : NULL;
    if (!end) {
        buffer_release(&b);
        return NULL;
    }
    *from = (size_t)(line + 1 - (char *)b.data);
    *to = (size_t)(end - (char *)b.data);
    return (char *)b.data;
}

static struct buffer expected(void)
{
    struct buffer b = {0};
    buffer_printf(&b, "\n");
    wire_describe(&b);
    return b;
}

static void test_the_page_has_the_tables_of_the_code(void)
{
    size_t from = 0, to = 0;
    char *page = read_page(&from, &to);
    struct buffer tables = expected();
    CHECK(page != NULL);
    bool same = page && to - from == tables.size && memcmp(page + from, tables.data, tables.size) == 0;
    if (!same)
        printf("# " PATH " is not what wire_describe says; refresh it with: " REFRESH "\n");
    CHECK(same);
    buffer_release(&tables);
    free(page);
}

static void test_every_field_is_described(void)
{
    struct buffer tables = expected();
    buffer_append(&tables, "", 1);
    const char *text = (const char *)tables.data;
    CHECK_CONTAINS(text, "### 1 `generate`: client -> coordinator\n");
    CHECK_CONTAINS(text, "| `top_p` | number above 0 to 1 | 1 |");
    CHECK_CONTAINS(text, "| `seed` | integer 0 to 2^64-1 | absent |");
    CHECK_CONTAINS(text, "| `finish_reason` | stop or length or cancelled | required |");
    CHECK_CONTAINS(text, "| `prompt` | text, at most 2^23 bytes | required |");
    CHECK_CONTAINS(text, "| `stages` | array of stage, 1 to 256 | required |");
    CHECK_CONTAINS(text, "### element `stage`: one pipeline stage\n");
    buffer_release(&tables);
}

static int write_page(void)
{
    size_t from, to;
    char *page = read_page(&from, &to);
    struct buffer tables = expected();
    FILE *f = page ? fopen(PATH, "w") : NULL;
    if (!f) {
        fprintf(stderr, "%s: not found, or without the lines %s and %s\n", PATH, BEGIN, END);
        free(page);
        return 1;
    }
    fwrite(page, 1, from, f);
    fwrite(tables.data, 1, tables.size, f);
    fputs(page + to, f);
    free(page);
    buffer_release(&tables);
    return fclose(f) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--write") == 0)
        return write_page();
    TEST(test_the_page_has_the_tables_of_the_code, "docs/protocol.md has the tables of the code");
    TEST(test_every_field_is_described, "fields are described with their bounds and defaults");
    return test_result();
}
