/* The texts made from an option table: --help for a terminal, a Markdown table for docs/config.md. */
#include "common/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/config_internal.h"

#define HELP_COLUMNS 100
#define HELP_INDENT  30 /* where the sentences of the options begin */

/* Prints words from column `column` on, broken before HELP_COLUMNS, later lines indented; '\n' is kept. */
static void print_wrapped(FILE *out, const char *text, size_t column, size_t indent)
{
    for (;;) {
        size_t word = strcspn(text, " \n");
        fprintf(out, "%.*s", (int)word, text);
        column += word;
        text += word;
        if (!*text)
            break;
        bool breaks = *text == '\n' || column + 1 + strcspn(text + 1, " \n") > HELP_COLUMNS;
        fprintf(out, "%s%*s", breaks ? "\n" : " ", breaks ? (int)indent : 0, "");
        column = breaks ? indent : column + 1;
        text++;
    }
    fputc('\n', out);
}

static const char *value_word(const struct config_option *option)
{
    if (option->kind == CONFIG_BOOL)
        return "";
    if (option->value)
        return option->value;
    if (option->choices)
        return option->choices;
    return option->kind == CONFIG_STRING || option->kind == CONFIG_STRINGS ? "TEXT" : "N";
}

/* " (1 to 64; default 4)": what the sentence of an option does not say. */
static void append_limits(struct buffer *b, const struct config_option *option)
{
    char low[40], high[40];
    bool bounded = option->min != 0 || option->max != 0;
    bool number = option->kind == CONFIG_INT || option->kind == CONFIG_FLOAT;
    /* 2^63 says "as large as it gets": not worth a reader's time. */
    bool range = number && bounded && option->max < 9e18;
    bool choices = option->choices && option->value;
    bool standard = option->standard && option->kind != CONFIG_BOOL && option->standard[0];
    if (!range && !choices && !standard)
        return;
    buffer_printf(b, " (");
    if (range)
        buffer_printf(b, "%s to %s", config_number(option->kind, option->min, low),
                      config_number(option->kind, option->max, high));
    for (const char *c = choices ? option->choices : ""; *c; c++)
        buffer_append(b, *c == '|' ? ", " : c, *c == '|' ? 2 : 1); /* with spaces, so that lines can break */
    if (standard)
        buffer_printf(b, "%sdefault %s", range || choices ? "; " : "", option->standard);
    buffer_printf(b, ")");
}

static void print_option(FILE *out, const char *left, const char *sentence)
{
    int n = fprintf(out, "%s", left);
    if (n > HELP_INDENT - 2) {
        fputc('\n', out);
        n = 0;
    }
    fprintf(out, "%*s", HELP_INDENT - n, "");
    print_wrapped(out, sentence, HELP_INDENT, HELP_INDENT);
}

void config_help(const struct config_table *table, FILE *out)
{
    bool h_is_taken = false;
    fprintf(out, "usage: %s [options]%s%s\n", table->program, table->arguments ? " " : "",
            table->arguments ? table->arguments : "");
    if (table->about) {
        fputc('\n', out);
        print_wrapped(out, table->about, 0, 0);
    }
    fprintf(out, "\noptions:\n");
    for (size_t i = 0; i < table->option_count; i++) {
        const struct config_option *option = &table->options[i];
        char flag[64], left[256], letter[8] = "    ";
        const char *value = value_word(option);
        struct buffer sentence = {0};
        if (option->letter)
            snprintf(letter, sizeof(letter), "-%c, ", option->letter);
        h_is_taken = h_is_taken || option->letter == 'h';
        snprintf(left, sizeof(left), "  %s--%s%s%.120s", letter, config_flag(option, flag), *value ? " " : "",
                 value);
        buffer_printf(&sentence, "%s", option->help);
        append_limits(&sentence, option);
        print_option(out, left, (const char *)sentence.data);
        buffer_release(&sentence);
    }
    print_option(out, h_is_taken ? "      --help" : "  -h, --help", "Shows this help.");
    if (table->after) {
        fputc('\n', out);
        size_t length = strlen(table->after);
        char *text = xstrdup(table->after);
        if (length && text[length - 1] == '\n')
            text[length - 1] = '\0'; /* print_wrapped ends the line */
        print_wrapped(out, text, 0, 0);
        free(text);
    }
}

/* In a Markdown cell '|' would end the cell. */
static void append_cell(struct buffer *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            buffer_append(out, "\\", 1);
        buffer_append(out, *text == '\n' ? " " : text, 1);
    }
}

static const char *standard_of_kind(enum config_kind kind)
{
    bool text = kind == CONFIG_STRING || kind == CONFIG_STRINGS;
    return kind == CONFIG_BOOL ? "`false`" : text ? "none" : "`0`";
}

void config_describe(const struct config_table *table, struct buffer *out)
{
    buffer_printf(out,
                  "| key | command line | accepts | default | meaning |\n| --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < table->option_count; i++) {
        const struct config_option *option = &table->options[i];
        char flag[64], expected[200];
        const char *value = value_word(option);
        if (option->given_only)
            buffer_printf(out, "| (not in files) | ");
        else
            buffer_printf(out, "| `%s` | ", option->name);
        if (option->letter)
            buffer_printf(out, "`-%c`, ", option->letter);
        buffer_printf(out, "`--%s%s", config_flag(option, flag), *value ? " " : "");
        append_cell(out, value);
        buffer_printf(out, "` | ");
        append_cell(out, config_expected(option, expected, sizeof(expected)));
        buffer_printf(out, " | ");
        if (option->standard && option->standard[0])
            buffer_printf(out, "`%s`", option->standard);
        else
            buffer_printf(out, "%s", standard_of_kind(option->kind));
        buffer_printf(out, " | ");
        append_cell(out, option->help);
        buffer_printf(out, " |\n");
    }
}
