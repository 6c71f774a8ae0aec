#include "worker/model/template.h"
#include "tests/test.h"

#include <time.h>

/* Renders over variables written as JSON; the text, or the message after "t:". */
static const char *render_with(const char *source, size_t bytes, const char *variables,
                               const struct template_options *options)
{
    static char text[4096];
    struct template *t = NULL;
    struct buffer out = {0};
    struct err err = {0};
    json_t *json = json_loads(variables, JSON_ALLOW_NUL, NULL);
    CHECK(json != NULL);
    if (template_parse(&t, source, bytes, "t", &err) || template_render(t, json, options, &out, &err))
        snprintf(text, sizeof(text), "%s", err.message);
    else
        snprintf(text, sizeof(text), "%.*s", (int)out.size, out.size ? (const char *)out.data : "");
    template_free(&t);
    buffer_release(&out);
    json_decref(json);
    return text;
}

static const char *render(const char *source)
{
    return render_with(
        source, strlen(source),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"none\":null,\"n\":3,\"s\":\"abc\"}", NULL);
}

static void test_what_is_refused_at_parse_time(void)
{
    static const char *const bad[][2] = {
        {"{{", "t:1:3: the template ends inside an output"},
        {"{%", "t:1:3: the template ends inside a statement"},
        {"{# x", "t:1:1: this comment does not end"},
        {"a\n{{ 'x }}", "t:2:4: this string does not end"},
        {"{{ 'a\\x1' }}", "t:1:4: an escape of this string is cut short"},
        {"{{ '\\ud800' }}", "t:1:4: an escape of this string is no character"},
        {"{{ '\\N{DASH}' }}", "t:1:4: \\N{...} in a string is not supported"},
        {"{{ 99999999999999999999 }}", "t:1:4: this number does not fit 64 bits"},
        {"{{ 0x }}", "t:1:4: expected digits"},
        {"{{ 012 }}", "t:1:4: an integer does not begin with 0"},
        {"{{ a ? b }}", "t:1:6: unexpected character \"?\""},
        {"{{ \xC3\xBC }}", "t:1:4: unexpected character \"\xC3\xBC\""},
        {"{{ a ! }}", "t:1:6: unexpected character \"!\""},
        {"{{ (1] }}", "t:1:6: unexpected ]: no bracket of its kind is open"},
        {"{{ 1) }}", "t:1:5: unexpected ): no bracket of its kind is open"},
        {"{{ }}", "t:1:4: expected an expression, found }}"},
        {"{{ 1 2 }}", "t:1:6: expected }}, found 2"},
        {"{{ 1 + }}", "t:1:8: expected an expression, found }}"},
        {"{{ else }}", "t:1:4: expected an expression, found else"},
        {"{{ a. }}", "t:1:7: expected a name or a number after the dot, found }}"},
        {"{{ a[] }}", "t:1:6: expected an index, found ]"},
        {"{{ a[1, 2] }}", "t:1:7: expected ], found ,"},
        {"{{ [1 2] }}", "t:1:7: expected ,, found 2"},
        {"{{ {1} }}", "t:1:6: expected :, found }"},
        {"{{ f() }}", "t:1:4: the function f is not supported"},
        {"{{ cycler(1) }}", "t:1:4: the function cycler is not supported"},
        {"{{ lipsum() }}", "t:1:4: the function lipsum is not supported"},
        {"{{ (1)(2) }}", "t:1:7: only functions, macros and methods can be called"},
        {"{{ s.append(1) }}", "t:1:5: the method append is not supported"},
        {"{{ s.format(1) }}", "t:1:5: the method format is not supported"},
        {"{{ s.strip(1, 2) }}", "the method strip takes at most 1 argument"},
        {"{{ s.replace('a') }}", "the method replace needs its argument new"},
        {"{{ s.split(by=1) }}", "t:1:12: the method split has no argument by"},
        {"{{ s.split('a', sep='b') }}", "t:1:17: the method split has its argument sep twice"},
        {"{{ s.split(sep=1, 2) }}", "t:1:19: expected name = value"},
        {"{{ s.split(*n) }}", "t:1:12: unpacking arguments with * is not supported"},
        {"{{ dict(**n) }}", "t:1:9: unpacking arguments with ** is not supported"},
        {"{{ s|xmlattr }}", "t:1:6: the filter xmlattr is not supported"},
        {"{{ s|pprint }}", "t:1:6: the filter pprint is not supported"},
        {"{{ s|attr('x') }}", "t:1:6: the filter attr is not supported"},
        {"{{ s| }}", "t:1:7: expected a filter's name, found }}"},
        {"{{ s|tojson(4, 4, 4, 4, 4) }}", "the filter tojson takes at most 4 arguments"},
        {"{{ s|replace }}", "t:1:6: the filter replace needs its argument old"},
        {"{{ s|map }}", "t:1:6: the filter map needs a filter's name or attribute="},
        {"{{ s|map(n) }}", "t:1:10: the filter map needs a filter's name, as a string"},
        {"{{ s|map('nope') }}", "t:1:10: the filter nope is not supported"},
        {"{{ s|map('map', 'upper') }}", "t:1:10: the filter map inside map is not supported"},
        {"{{ s|select('nope') }}", "t:1:13: the test nope is not supported"},
        {"{{ s|selectattr }}", "t:1:6: the filter selectattr needs its argument attribute"},
        {"{{ s is }}", "t:1:9: expected a test's name, found }}"},
        {"{{ s is nope }}", "t:1:9: the test nope is not supported"},
        {"{{ s is escaped }}", "t:1:9: the test escaped is not supported"},
        {"{{ s is divisibleby }}", "t:1:9: the test divisibleby needs its argument num"},
        {"{{ s is defined(1) }}", "the test defined takes at most 0 arguments"},
        {"{{ s.__class__ }}", "t:1:6: the attribute __class__ is refused"},
        {"{{ ''.__class__.__mro__ }}", "t:1:7: the attribute __class__ is refused"},
        {"{{ __import__ }}", "t:1:4: the name __import__ is refused"},
        {"{{ self }}", "t:1:4: the variable self is not supported"},
        {"{% macro m() %}{{ varargs }}{% endmacro %}", "t:1:19: the variable varargs is not supported"},
        {"{% macro m() %}{{ caller() }}{% endmacro %}", "t:1:19: the variable caller is not supported"},
        {"{% %}", "t:1:4: expected a statement, found %}"},
        {"{% 1 %}", "t:1:4: expected a statement, found 1"},
        {"{% include 'x' %}", "t:1:4: the statement include is not supported"},
        {"{% import 'x' as y %}", "t:1:4: the statement import is not supported"},
        {"{% extends 'x' %}", "t:1:4: the statement extends is not supported"},
        {"{% block x %}{% endblock %}", "t:1:4: the statement block is not supported"},
        {"{% do x %}", "t:1:4: the statement do is not supported"},
        {"{% raw %}{% endraw %}", "t:1:4: the statement raw is not supported"},
        {"{% call f() %}{% endcall %}", "t:1:4: the statement call is not supported"},
        {"{% filter upper %}{% endfilter %}", "t:1:4: the statement filter is not supported"},
        {"{% autoescape true %}", "t:1:4: the statement autoescape is not supported"},
        {"{% endif %}", "t:1:4: unexpected endif: nothing it could end is open"},
        {"{% else %}", "t:1:4: the statement else is not supported"},
        {"{% if n %}", "t:1:11: the template ends: expected {% endif %} for line 1"},
        {"{% if %}{% endif %}", "t:1:7: expected an expression, found %}"},
        {"{% if n %}{% else %}{% else %}{% endif %}", "t:1:24: the statement else is not supported"},
        {"{% if n x %}{% endif %}", "t:1:9: expected %}, found x"},
        {"{% for x %}{% endfor %}", "t:1:10: expected in, found %}"},
        {"{% for 1 in s %}{% endfor %}", "t:1:8: expected a name to assign to, found 1"},
        {"{% for loop in s %}{% endfor %}", "t:1:8: loop cannot be assigned to"},
        {"{% for x in s recursive %}{% endfor %}", "t:1:15: recursive loops are not supported"},
        {"{% for x in s %}", "the template ends: expected {% endfor %}"},
        {"{% for x in s %}{% endif %}{% endfor %}", "t:1:20: unexpected endif"},
        {"{% break %}", "t:1:4: break stands in no loop"},
        {"{% for x in s %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}",
         "t:1:35: continue stands in no loop"},
        {"{% set %}", "t:1:8: expected a name to assign to, found %}"},
        {"{% set true = 1 %}", "t:1:8: true cannot be assigned to"},
        {"{% set range = 1 %}", "t:1:8: range is a function here and cannot be assigned to"},
        {"{% set x = %}", "t:1:12: expected an expression, found %}"},
        {"{% set a.1 = 2 %}", "t:1:10: expected a name after the dot, found 1"},
        {"{% set a, b %}{% endset %}", "expected = after several names"},
        {"{% macro %}{% endmacro %}", "t:1:10: expected a name to assign to, found %}"},
        {"{% macro m %}{% endmacro %}", "t:1:12: expected (, found %}"},
        {"{% macro m(a, a) %}{% endmacro %}", "t:1:15: the macro has this parameter twice"},
        {"{% macro m(a=1, b) %}{% endmacro %}", "the parameters before have defaults"},
        {"{% generation %}", "expected {% endgeneration %}"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK_CONTAINS(render(bad[i][0]), bad[i][1]);
    CHECK(ARRAY_LEN(bad) >= 60);
}

static void test_what_fails_while_rendering(void)
{
    static const char *const bad[][2] = {
        {"{{ x.y }}", "t:1:5: 'x' is undefined"},
        {"{{ s.y.z }}", "t:1:7: 'str object' has no attribute 'y'"},
        {"{{ none.a.b }}", "'None' has no attribute 'a'"},
        {"{{ messages[3].role }}", "list object has no element 3"},
        {"{{ s + 1 }}", "t:1:6: unsupported operand types for +: str and int"},
        {"{{ s + x }}", "'x' is undefined"},
        {"{{ n < s }}", "'<' not supported between int and str"},
        {"{{ 1 // 0 }}", "division by zero"},
        {"{{ 9223372036854775807 + n }}", "does not fit 64 bits"},
        {"{{ 10 ** 30 }}", "does not fit 64 bits"},
        {"{{ -9223372036854775807 * 2 }}", "does not fit 64 bits"},
        {"{{ s % n }}", "formatting a string with % is not supported"},
        {"{{ 1 in n }}", "a int is not iterable"},
        {"{{ n in s }}", "requires a string on the left"},
        {"{% for a, b in messages[0].role %}{% endfor %}", "expected 2 values to unpack, found 1"},
        {"{{ n[1:] }}", "a int cannot be sliced"},
        {"{{ s[::0] }}", "the step of a slice cannot be zero"},
        {"{{ {[]: 1} }}", "unhashable type: a list cannot be a key"},
        {"{{ n.items() }}", "'int object' has no attribute 'items'"},
        {"{{ n|length }}", "a int has no length"},
        {"{{ x|tojson }}", "a value of type Undefined is not JSON serializable"},
        {"{{ range(1, 200000) }}", "range() has more than 100000 elements"},
        {"{% set s.a = 1 %}", "cannot assign attribute on non-namespace object"},
        {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "macro 'm' takes not more than 1 argument(s)"},
        {"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "macro 'm' takes no keyword argument 'b'"},
        {"{% if false %}{% set m = 1 %}{% endif %}{{ m() }}", "'m' is undefined"},
        {"{% set m = 1 %}{{ m() }}", "m is a int and cannot be called"},
        {"a\n {{- raise_exception('No: \"\xC3\xBC\"') }}", "t:2:6: raise_exception: No: \"\xC3\xBC\""},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK_CONTAINS(render(bad[i][0]), bad[i][1]);
}

static char *repeated(const char *head, const char *part, size_t times, const char *tail)
{
    struct buffer b = {0};
    buffer_append(&b, head, strlen(head));
    for (size_t i = 0; i < times; i++)
        buffer_append(&b, part, strlen(part));
    buffer_append(&b, tail, strlen(tail) + 1);
    return (char *)b.data;
}

/* Each is stopped with a message, in bounded time and memory. */
static void test_hostile_templates(void)
{
    static const char *const hostile[][2] = {
        {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"},
        {"{% for a in range(99999) %}{% for b in 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' %}{% set x = 1 "
         "%}{% endfor %}"
         "{% endfor %}",
         "takes more than"},
        {"{{ 'a' * 9223372036854775807 }}", "takes more than"},
        {"{{ [1] * 1000000000000 }}", "takes more than"},
        {"{{ ('a' * 100000000)|length }}", "takes more than"},
        {"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
         "takes more than"},
        {"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% "
         "endfor %}",
         "takes more than"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
         "takes more than"},
        {"{% set x = 'a' * 1000000 %}{% for i in range(99) %}{{ x }}{% endfor %}",
         "the output has more than"},
        {"{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l "
         "}}",
         "nested too deep"},
        {"{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ "
         "ns.l|tojson }}",
         "nested too deep"},
        {"{% set ns = namespace(l=[], k=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}{% set ns.k = "
         "[ns.k] %}"
         "{% endfor %}{{ ns.l == ns.k }}",
         "nested too deep"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deep"},
        {"{% macro m(n) %}{{ n }}{{ k(n) }}{% endmacro %}{% macro k(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) "
         "}}",
         "nested too deep"},
        {"{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
         "takes more than"},
        {"{{ ('a' * 200000).split('')|length }}", "empty separator"},
        {"{{ ('a' * 3000000)|list|length }}", "takes more than"},
        {"{{ s|indent(1000000000000, true) }}", "takes more than"},
        {"{{ {'a': 1}|tojson(indent=1000000000) }}", "an indent of at most 100"},
        {"{{ strftime_now('%c' * 5000) }}", "expected a format of at most"},
    };
    for (size_t i = 0; i < ARRAY_LEN(hostile); i++)
        CHECK_CONTAINS(render(hostile[i][0]), hostile[i][1]);
    static const char *const deep[][5] = {
        {"{{ ", "(", "1", "", "nested too deep"},        {"{{ ", "[", "1", "", "too deep"},
        {"{{ ", "not ", "1", " }}", "nested too deep"},  {"{{ ", "- ", "1", " }}", "nested too deep"},
        {"", "{% if 1 %}", "", "", "nested too deep"},   {"{{ 1", " + 1", "", " }}", "too long"},
        {"{{ s", "|trim", "", " }}", "too long"},        {"{{ s", ".a", "", " }}", "too long"},
        {"{{ 1", " if 1 else 1", "", " }}", "too deep"}, {"{{ s", "[s", "", "", "too deep"},
    };
    for (size_t i = 0; i < ARRAY_LEN(deep); i++) {
        char *tail = xasprintf("%s%s", deep[i][2], deep[i][3]),
             *source = repeated(deep[i][0], deep[i][1], 5000, tail);
        CHECK_CONTAINS(render(source), deep[i][4]);
        free(tail);
        free(source);
    }
    char *large = repeated("", "0123456789", TEMPLATE_MAX_BYTES / 10 + 1, "");
    CHECK_CONTAINS(render(large), "expected a template of at most 524288");
    free(large);
}

static void test_bounds_are_what_the_caller_says(void)
{
    static const struct template_options few_steps = {.max_steps = 100},
                                         little_memory = {.max_memory_bytes = 4096},
                                         short_output = {.max_output_bytes = 10};
    static const char steps[] = "{% for i in range(90) %}{% endfor %}", output[] = "0123456789{{ 1 }}",
                      memory[] = "{{ ('a' * 3000)|length }}{{ ('a' * 3000)|length }}";
    CHECK_CONTAINS(render_with(steps, sizeof(steps) - 1, "{}", &few_steps),
                   "the template takes more than 100 steps");
    CHECK_STR(render_with(output, sizeof(output) - 1, "{}", &short_output),
              "t:1:11: the output has more than 10 bytes");
    CHECK_CONTAINS(render_with(memory, sizeof(memory) - 1, "{}", &little_memory),
                   "takes more than 4096 bytes of memory");
    CHECK_STR(render_with(steps, sizeof(steps) - 1, "{}", NULL), "");
    CHECK_STR(render_with(output, sizeof(output) - 1, "{}", NULL), "01234567891");
    CHECK_STR(render_with(memory, sizeof(memory) - 1, "{}", NULL), "30003000");
}

static void test_bytes_that_are_no_text(void)
{
    CHECK_STR(render("a\xFF"), "t: not valid UTF-8");
    CHECK_STR(render_with("a\0b{{ 1 }}", 10, "{}", NULL), "a"); /* a NUL is a character; %.*s ends there */
    CHECK_CONTAINS(render_with("{{ a \0 }}", 9, "{}", NULL), "unexpected character");
    CHECK_STR(render_with("{{ s|length }}", 14, "{\"s\":\"a\\u0000b\"}", NULL), "3");
    CHECK_STR(render(""), "");
}

static void test_a_failure_leaves_the_output_as_it_was(void)
{
    struct template *t = NULL;
    struct buffer out = {0};
    struct err err = {0};
    json_t *json = json_object();
    buffer_append(&out, "x", 1);
    CHECK_INT(template_parse(&t, "abc{{ raise_exception('no') }}", 30, "t", &err), 0);
    CHECK_INT(template_render(t, json, NULL, &out, &err), -1);
    CHECK_INT(out.size, 1);
    CHECK_INT(err.code, 400);
    CHECK_STR(err.message, "t:1:7: raise_exception: no");
    template_free(&t);
    buffer_release(&out);
    json_decref(json);
}

static void test_the_date_is_the_callers(void)
{
    static const char source[] = "{{ strftime_now('%Y-%m-%d') }}";
    setenv("TZ", "UTC", 1);
    tzset();
    struct template_options o = {.now = 1732200000};
    CHECK_STR(render_with(source, sizeof(source) - 1, "{}", &o), "2024-11-21");
}

int main(void)
{
    TEST(test_what_is_refused_at_parse_time, "what is not on the list is refused by name, line and column");
    TEST(test_what_fails_while_rendering, "a failure while rendering says what and where");
    TEST(test_hostile_templates, "hostile templates are stopped by a bound");
    TEST(test_bounds_are_what_the_caller_says, "the caller's bounds hold");
    TEST(test_bytes_that_are_no_text, "bytes that are no text are refused or kept");
    TEST(test_a_failure_leaves_the_output_as_it_was, "a failure leaves the output as it was");
    TEST(test_the_date_is_the_callers, "the date is the caller's");
    return test_result();
}
