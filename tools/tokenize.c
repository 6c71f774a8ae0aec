/* lepton tokenize: shows how a model's vocabulary cuts a text. It reads the metadata of a GGUF file or of a
 * Hugging Face directory only,
 * never the weights. */
#include "tools/command.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "worker/model/registry.h"
#include "worker/model/tokenizer.h"

struct tokenize_settings {
    char *prompt;
    char *file;
    char *models;
    bool bos;
    bool eos;
    bool special;
    bool json;
    bool pieces;
};

#define OFFSET(member) offsetof(struct tokenize_settings, member)
static const struct config_option options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = CONFIG_STRING,
     .offset = OFFSET(prompt),
     .value = "TEXT",
     .help = "The text."},
    {.name = "file",
     .letter = 'f',
     .kind = CONFIG_STRING,
     .offset = OFFSET(file),
     .value = "PATH",
     .help = "Reads the text from this file, every byte of it; - is standard input. At most 64 MiB."},
    {.name = "bos",
     .kind = CONFIG_BOOL,
     .offset = OFFSET(bos),
     .help = "Puts the token that begins a text in front, when the model has one."},
    {.name = "eos",
     .kind = CONFIG_BOOL,
     .offset = OFFSET(eos),
     .help = "Puts the token that ends a text behind, when the model has one."},
    {.name = "special",
     .kind = CONFIG_BOOL,
     .offset = OFFSET(special),
     .help = "Recognises control tokens written out in the text, such as </s>."},
    {.name = "pieces",
     .kind = CONFIG_BOOL,
     .offset = OFFSET(pieces),
     .help = "Shows every id with its piece of the vocabulary."},
    {.name = "json", .kind = CONFIG_BOOL, .offset = OFFSET(json), .help = "Prints one JSON object."},
    MODELS_OPTION(struct tokenize_settings),
};

static const struct config_table table = {
    .program = "lepton tokenize",
    .arguments = "MODEL",
    .about =
        "Shows the token ids of a text: one line of ids, with --pieces one line a token (id, tab, piece), "
        "with --json {\"tokens\":[...]}. MODEL is a GGUF file, a Hugging Face directory or a name of `lepton "
        "models`; a vocabulary "
        "without weights is enough.",
    .after = "exit codes: 0 done, 1 the model or the text could not be read or encoded, 2 wrong usage\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct tokenize_settings),
};

static int read_stream(FILE *f, const char *name, struct buffer *text, struct err *err)
{
    char chunk[65536];
    for (size_t n; (n = fread(chunk, 1, sizeof(chunk), f)) > 0;) {
        if (text->size + n > TOKENIZER_MAX_TEXT_BYTES)
            return err_set(err, "%s: expected at most %u bytes of text", name, TOKENIZER_MAX_TEXT_BYTES);
        buffer_append(text, chunk, n);
    }
    return ferror(f) ? err_set(err, "%s: %s", name, strerror(errno)) : 0;
}

static int read_text(const struct tokenize_settings *settings, struct buffer *text, struct err *err)
{
    if (settings->prompt) {
        buffer_append(text, settings->prompt, strlen(settings->prompt));
        return 0;
    }
    if (strcmp(settings->file, "-") == 0)
        return read_stream(stdin, "standard input", text, err);
    FILE *f = fopen(settings->file, "rb");
    if (!f)
        return err_set(err, "%s: %s", settings->file, strerror(errno));
    int result = read_stream(f, settings->file, text, err);
    fclose(f);
    return result;
}

static void print_json(const struct tokenizer *t, const struct token_ids *ids, bool pieces)
{
    printf("{\"tokens\":[");
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%" PRId32, i ? "," : "", ids->data[i]);
    if (pieces) {
        printf("],\"pieces\":[");
        for (size_t i = 0; i < ids->count; i++) {
            size_t bytes;
            const char *piece = tokenizer_piece(t, ids->data[i], &bytes);
            json_t *string = json_stringn(piece, bytes);
            ASSERT(string); /* every piece is valid UTF-8 */
            printf("%s", i ? "," : "");
            json_dumpf(string, stdout, JSON_ENCODE_ANY);
            json_decref(string);
        }
    }
    printf("]}\n");
}

/* Control characters are escaped: one token stays one line, and a terminal obeys no vocabulary. */
static void print_piece(const char *piece, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t c = (uint8_t)piece[i];
        bool c1 = c == 0xC2 && i + 1 < bytes && (uint8_t)piece[i + 1] < 0xA0;
        if (c == '\\')
            printf("\\\\");
        else if (c < 0x20 || c == 0x7F)
            printf("\\x%02X", c);
        else if (c1) /* U+0080 to U+009F */
            printf("\\u00%02X", (uint8_t)piece[++i]);
        else
            putchar(c);
    }
}

static void print_text(const struct tokenizer *t, const struct token_ids *ids, bool pieces)
{
    for (size_t i = 0; i < ids->count; i++) {
        if (!pieces) {
            printf("%s%" PRId32, i ? " " : "", ids->data[i]);
            continue;
        }
        size_t bytes;
        const char *piece = tokenizer_piece(t, ids->data[i], &bytes);
        printf("%" PRId32 "\t", ids->data[i]);
        print_piece(piece, bytes);
        putchar('\n');
    }
    if (!pieces)
        putchar('\n');
}

static int tokenize(const struct tokenize_settings *settings, const char *model, struct err *err)
{
    struct tokenizer_options how = {
        .add_bos = settings->bos, .add_eos = settings->eos, .parse_special = settings->special};
    struct registry_model m = {0};
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct buffer text = {0};
    struct token_ids ids = {0};
    int result = -1;
    if (registry_find(&m, settings->models, model, VERIFY_REGISTERED, err) ||
        registry_open_vocabulary(&g, &m, err) || tokenizer_open(&t, g, err) ||
        read_text(settings, &text, err) ||
        tokenizer_encode(t, (const char *)text.data, text.size, &how, &ids, err))
        goto out;
    if (settings->json)
        print_json(t, &ids, settings->pieces);
    else
        print_text(t, &ids, settings->pieces);
    result = 0;
out:
    token_ids_release(&ids);
    buffer_release(&text);
    tokenizer_close(&t);
    gguf_close(&g);
    registry_release(&m);
    return result;
}

int command_tokenize(int argc, char **argv)
{
    struct tokenize_settings settings;
    const char *model;
    struct err err;
    int code = EXIT_OK;
    config_main(&table, &settings, argc, argv, &model, 1);
    if (!settings.prompt == !settings.file) {
        fprintf(stderr, "lepton tokenize: expected a text: either -p TEXT or -f PATH\n");
        code = EXIT_USAGE;
    } else if (tokenize(&settings, model, &err)) {
        fprintf(stderr, "lepton tokenize: %s\n", err.message);
        code = EXIT_FAILED;
    }
    config_release(&table, &settings);
    return code;
}
