/* lepton template: what a model is sent: renders its chat template over a conversation. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/command.h"
#include "worker/model/chat.h"
#include "worker/model/model_file.h"

struct template_settings {
    char *messages, *tools, *variables, *chat_template;
    bool no_generation_prompt, list, source;
    int64_t now;
};

#define OPTION(member) offsetof(struct template_settings, member)
static const struct config_option options[] = {
    {"messages", 'm', CONFIG_STRING, OPTION(messages), 0, 0, NULL, "FILE", NULL,
     "the conversation: a JSON array of {\"role\": ..., \"content\": ...}; - is standard input; without it a "
     "conversation of three messages",
     false},
    {"tools", 0, CONFIG_STRING, OPTION(tools), 0, 0, NULL, "FILE", NULL,
     "a JSON array of the tools that the model may call", false},
    {"variables", 0, CONFIG_STRING, OPTION(variables), 0, 0, NULL, "FILE", NULL,
     "a JSON object of further variables, such as {\"enable_thinking\": false}", false},
    {"chat_template", 0, CONFIG_STRING, OPTION(chat_template), 0, 0, NULL, "NAME|FILE", NULL,
     "another template for MODEL: a built-in one or a file", false},
    {"no_generation_prompt", 0, CONFIG_BOOL, OPTION(no_generation_prompt), 0, 0, NULL, NULL, NULL,
     "do not begin the assistant's answer", false},
    {"now", 0, CONFIG_INT, OPTION(now), 0, INT64_C(253402300799), "0", "SECONDS", NULL,
     "the time for templates that write the date, since 1970; 0 = the clock", false},
    {"list", 0, CONFIG_BOOL, OPTION(list), 0, 0, NULL, NULL, NULL, "list the built-in templates", false},
    {"source", 0, CONFIG_BOOL, OPTION(source), 0, 0, NULL, NULL, NULL, "with --list: their source as well",
     false},
};

static const struct config_table table = {
    .program = "lepton template",
    .arguments = "[MODEL|NAME|FILE]",
    .about =
        "Renders a chat template over a conversation and prints exactly the text that the model would be "
        "sent. The template is that of MODEL (a GGUF file), a built-in one, or a file.",
    .after =
        "exit codes:\n  0 done   1 the template cannot be read or refuses the conversation   2 wrong usage\n"
        "Examples:\n  lepton template model.gguf\n"
        "  lepton template llama3 --messages conversation.json\n"
        "  lepton template model.gguf --chat-template my.jinja --tools tools.json\n",
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct template_settings),
};

/* A JSON file of the wanted type, or standard input for "-". */
static int read_json(const char *path, bool object, json_t **out, struct err *err)
{
    json_error_t error;
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!f)
        return err_set(err, "%s: %s", path, strerror(errno));
    *out = json_loadf(f, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (f != stdin)
        fclose(f);
    if (!*out)
        return err_set(err, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    if (object ? !json_is_object(*out) : !json_is_array(*out))
        return err_set(err, "%s: expected a JSON %s", path, object ? "object" : "array");
    return 0;
}

static json_t *sample_conversation(void)
{
    return json_pack("[{ss,ss},{ss,ss},{ss,ss}]", "role", "user", "content", "What is 2 + 2?", "role",
                     "assistant", "content", "It is 4.", "role", "user", "content", "And 3 + 3?");
}

/* WHAT alone names the template; with --chat-template it is the model whose tokens are used. */
static int open_format(struct chat_format **out, const char *what, const char *choice, struct err *err)
{
    struct gguf *model = NULL;
    int code = choice ? model_file_open_vocabulary(&model, what, err) : 0;
    if (code == 0)
        code = chat_format_open(out, model, choice ? choice : what, err);
    gguf_close(&model);
    return code;
}

static int render(const struct template_settings *s, const char *what, struct err *err)
{
    struct chat_format *format = NULL;
    struct buffer text = {0};
    json_t *messages = NULL, *tools = NULL, *variables = NULL;
    int code = open_format(&format, what, s->chat_template, err);
    if (code == 0 && s->messages)
        code = read_json(s->messages, false, &messages, err);
    else if (code == 0)
        messages = sample_conversation();
    if (code == 0 && s->tools)
        code = read_json(s->tools, false, &tools, err);
    if (code == 0 && s->variables)
        code = read_json(s->variables, true, &variables, err);
    struct chat_input input = {messages, tools, variables, s->no_generation_prompt,
                               s->now ? s->now : time(NULL)};
    if (code == 0)
        code = chat_format_render(format, &input, &text, err);
    if (code == 0 && text.size)
        fwrite(text.data, 1, text.size, stdout);
    json_decref(messages);
    json_decref(tools);
    json_decref(variables);
    buffer_release(&text);
    chat_format_close(&format);
    return code;
}

static void list_builtins(bool source)
{
    const struct chat_builtin *b;
    for (size_t i = 0; (b = chat_builtin_at(i)); i++) {
        printf("%-10s%s\n", b->name, b->about);
        if (source)
            printf("%s\n\n", b->source);
    }
}

int command_template(int argc, char **argv)
{
    struct template_settings s;
    struct err err = {0};
    const char *what[1];
    int given = config_main(&table, &s, argc, argv, what, 1), code = EXIT_OK;
    if (s.list) {
        list_builtins(s.source);
    } else if (given == 0) {
        fprintf(stderr, "lepton template: expected a model, a built-in template's name or a file\n");
        code = EXIT_USAGE;
    } else if (render(&s, what[0], &err)) {
        fprintf(stderr, "lepton template: %s\n", err.message);
        code = EXIT_FAILED;
    }
    config_release(&table, &s);
    return code;
}
