/* libFuzzer over chat templates. The first byte chooses what the rest is: even, a template as it is; odd,
 * tokens of the language, one for each byte, which reach deeper than bytes from nothing. What parses is
 * rendered over a fixed conversation within small bounds: the text must be valid UTF-8, and a failure must
 * say why. */
#include <stdlib.h>
#include <string.h>

#include "worker/model/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const words[] = {
    "{{",
    "}}",
    "{%",
    "%}",
    "{{-",
    "-}}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    " ",
    "\n",
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "in",
    "endfor",
    "set",
    "endset",
    "macro",
    "endmacro",
    "break",
    "continue",
    "generation",
    "endgeneration",
    "namespace(a=1)",
    "not",
    "and",
    "or",
    "is",
    "defined",
    "none",
    "true",
    "messages",
    "message",
    "loop",
    "tools",
    "ns",
    "x",
    "y",
    "f",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    ":",
    "|",
    "~",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "==",
    "!=",
    "<",
    ">=",
    "=",
    "0",
    "1",
    "2",
    "-1",
    "100000",
    "9223372036854775807",
    "1.5",
    "1e300",
    "'a'",
    "\"b\\n\"",
    "'\xC3\xBC\xF0\x9F\x99\x82'",
    "role",
    "content",
    "index0",
    "last",
    "previtem",
    "items()",
    "get('role')",
    "strip()",
    "split('a')",
    "replace('', 'ab')",
    "upper()",
    "startswith('a')",
    "tojson",
    "tojson(indent=2)",
    "length",
    "list",
    "map(attribute='role')",
    "map('upper')",
    "selectattr('role', 'equalto', 'user')",
    "select",
    "join(', ')",
    "sort",
    "unique",
    "reverse",
    "first",
    "trim",
    "indent(4, true)",
    "default('d')",
    "int",
    "float",
    "string",
    "items",
    "dictsort",
    "range(3)",
    "range(99999)",
    "raise_exception('no')",
    "strftime_now('%Y')",
    "::-1",
    "1:",
    "iterable",
    "mapping",
    "divisibleby(2)",
    "\xC2\xA0",
    "content ",
    " x ",
    " = ",
    " if ",
    " else ",
    " for ",
    " in ",
    "{% for ",
    "{% if ",
    "{% set ",
    "{% endfor %}",
    "{% endif %}",
    " %}",
    "{{ ",
    " }}",
};

static json_t *variables(void)
{
    static json_t *all;
    if (!all)
        all = json_loads("{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
                         "brief.\"},{\"role\":\"user\",\"content\":\"H\\u00fc "
                         "\\ud83d\\ude42\\u0000\\n 'q' "
                         "\\\"d\\\"\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{"
                         "\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,true,{}]}}}]}],\"tools\":"
                         "null,\"x\":3,\"y\":"
                         "[3,1,2],\"bos_token\":\"<s>\",\"add_generation_prompt\":true}",
                         JSON_ALLOW_NUL, NULL);
    ASSERT(all);
    return all;
}

static void use(const char *source, size_t bytes)
{
    const struct template_options options = {
        .max_steps = 30000, .max_memory_bytes = 1 << 20, .max_output_bytes = 64 << 10, .now = 1732200000};
    struct template *t = NULL;
    struct err err = {0};
    if (template_parse(&t, source, bytes, "fuzz", &err)) {
        ASSERT(!t && err.message[0]);
        return;
    }
    for (int again = 0; again < 2; again++) {
        struct buffer text = {0};
        err.message[0] = '\0';
        if (template_render(t, variables(), &options, &text, &err))
            ASSERT(err.message[0] && text.size == 0);
        else
            ASSERT(text.size <= options.max_output_bytes &&
                   (text.size == 0 || utf8_valid((const char *)text.data, text.size)));
        buffer_release(&text);
    }
    template_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct buffer source = {0};
    if (data[0] & 1)
        for (size_t i = 1; i < size && i < 2000; i++)
            buffer_append(&source, words[data[i] % ARRAY_LEN(words)],
                          strlen(words[data[i] % ARRAY_LEN(words)]));
    else
        buffer_append(&source, data + 1, size - 1);
    use(source.size ? (const char *)source.data : "", source.size);
    buffer_release(&source);
    return 0;
}
