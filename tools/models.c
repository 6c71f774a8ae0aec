/* lepton models: the registry of this machine: list, add, verify, rm. The work is in worker/model/registry;
 * here are words, tables and progress. */
#include "tools/command.h"

#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tools/progress.h"
#include "worker/model/registry.h"

struct models_settings {
    char *models;
    bool link, json;
    int64_t threads;
};

#define OPTION(member) offsetof(struct models_settings, member)

static const struct config_option options[] = {
    {"models", 0, CONFIG_STRING, OPTION(models), 0, 0, NULL, "DIR", NULL,
     "the directory of models (default: $LEPTON_HOME/models, else $XDG_DATA_HOME/lepton/models, else "
     "~/.local/share/lepton/models)",
     false},
    {"link", 'l', CONFIG_BOOL, OPTION(link), 0, 0, NULL, NULL, NULL,
     "add: keep the file where it is and only link to it", false},
    {"json", 'j', CONFIG_BOOL, OPTION(json), 0, 0, NULL, NULL, NULL, "list: print one JSON array", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "N", NULL,
     "add, verify: threads that hash; 0 = every processor", false},
};

static const struct config_table table = {
    .program = "lepton models",
    .arguments = "list | add PATH [NAME] | verify NAME | rm NAME",
    .about = "Keeps models under names, each with hashes of all its bytes. `lepton run NAME`, `lepton-worker "
             "--model NAME` and every other command that takes a MODEL find it by name, and whoever loads it "
             "checks the hashes. add copies a GGUF file (NAME defaults to the file's name); verify reads it "
             "all again and names every chunk that changed; rm removes it.",
    .after =
        "exit codes:\n"
        "  0 done   1 it failed, or verify found damage   2 wrong usage   130 Ctrl-C: nothing was added\n"
        "examples:\n"
        "  lepton models add ~/Downloads/tinyllama.Q8_0.gguf tinyllama\n"
        "  lepton run tinyllama -p \"Once upon a time\"\n",
    .min_arguments = 1,
    .max_arguments = 3,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct models_settings),
};

/* Set by Ctrl-C: what was begun must not stay behind. */
static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static bool on_progress(void *context, uint64_t bytes, const char *what)
{
    progress_add(context, bytes, what);
    return !interrupted;
}

static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- list --------------------------------------------------------------------------------------------- */

static uint64_t parameter_bytes(const struct manifest *m)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < m->tensor_count; i++)
        sum += m->tensor[i].bytes;
    return sum;
}

/* The linked file was written to since: its hashes may still match. */
static bool touched(const char *models, const struct manifest *m)
{
    struct stat st;
    char *path = xasprintf("%s/%s/model.gguf", models, m->name);
    bool is = stat(path, &st) == 0 &&
              (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec != m->file_time_ns;
    free(path);
    return is;
}

static const char *date(int64_t seconds, char out[32])
{
    time_t t = (time_t)seconds;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || !strftime(out, 32, "%Y-%m-%d %H:%M", &tm))
        strcpy(out, "?");
    return out;
}

static json_t *json_entry(const char *models, const struct registry_entry *e)
{
    char digest[2 * MANIFEST_HASH + 1];
    const struct manifest *m = e->manifest;
    if (!m)
        return json_pack("{s:s, s:o}", "name", e->name, "problem",
                         json_string(e->problem) ?: json_string("unreadable"));
    manifest_digest(m, digest);
    return json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:s}", "name", m->name, "source", m->source,
                     "kind", m->linked ? "link" : "copy", "touched", touched(models, m), "file_bytes",
                     (json_int_t)m->file_bytes, "tensors", (json_int_t)m->tensor_count, "tensor_bytes",
                     (json_int_t)parameter_bytes(m), "created", (json_int_t)m->created_s, "digest", digest);
}

static void print_entry(const char *models, const struct registry_entry *e, bool terminal, int width)
{
    char digest[2 * MANIFEST_HASH + 1], when[32];
    const struct manifest *m = e->manifest;
    if (!m) {
        printf(terminal ? "%-*s  broken: %s\n" : "%.*s\tbroken\t%s\n", terminal ? width : 128, e->name,
               e->problem);
        return;
    }
    manifest_digest(m, digest);
    const char *kind = !m->linked ? "copy" : touched(models, m) ? "link, touched since" : "link";
    if (terminal)
        printf("%-*s  %10.1f MB  %s  %.16s  %s\n", width, e->name, (double)m->file_bytes / 1e6,
               date(m->created_s, when), digest, kind);
    else
        printf("%s\t%" PRIu64 "\t%" PRId64 "\t%s\t%s\t%s\n", e->name, m->file_bytes, m->created_s, digest,
               kind, m->source);
}

static int list(const struct models_settings *s, const char *models, struct err *err)
{
    struct registry_entry *entries;
    size_t count;
    bool terminal = isatty(STDOUT_FILENO) == 1;
    int width = 4;
    if (registry_list(models, &entries, &count, err))
        return EXIT_FAILED;
    for (size_t i = 0; i < count; i++)
        width = (int)strlen(entries[i].name) > width ? (int)strlen(entries[i].name) : width;
    json_t *array = json_array();
    if (terminal && !s->json && count)
        printf("%-*s  %13s  %-16s  %-16s  kind\n", width, "name", "size", "added (UTC)", "digest");
    for (size_t i = 0; i < count; i++) {
        if (s->json)
            json_array_append_new(array, json_entry(models, &entries[i]));
        else
            print_entry(models, &entries[i], terminal, width);
    }
    if (s->json) {
        json_dumpf(array, stdout, terminal ? JSON_INDENT(2) : JSON_COMPACT);
        putchar('\n');
    } else if (terminal && !count) {
        printf("no models in %s; `lepton models add PATH` adds one\n", models);
    }
    json_decref(array);
    registry_list_free(&entries, count);
    return EXIT_OK;
}

/* ---- add, verify, rm ---------------------------------------------------------------------------------- */

/* The file's name without ".gguf". */
static void name_of(const char *path, char out[256])
{
    char *copy = xstrdup(path);
    snprintf(out, 256, "%s", basename(copy));
    size_t n = strlen(out);
    if (n > 5 && strcmp(out + n - 5, ".gguf") == 0)
        out[n - 5] = '\0';
    free(copy);
}

static int add(const struct models_settings *s, const char *models, const char *path, const char *given,
               struct err *err)
{
    char name[256], digest[2 * MANIFEST_HASH + 1];
    struct progress progress;
    struct stat st;
    name_of(path, name);
    if (given && snprintf(name, sizeof(name), "%s", given) >= (int)sizeof(name))
        name[200] = '\0'; /* still longer than the rule allows */
    if (strcmp(name, "demo") == 0) {
        err_set(err, "demo: this name is that of the model inside `lepton`");
        return EXIT_FAILED;
    }
    uint64_t bytes = stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
    progress_begin(&progress, s->link ? bytes : 2 * bytes);
    struct registry_addition addition = {.path = path,
                                         .name = name,
                                         .link = s->link,
                                         .threads = (int)s->threads,
                                         .watch = {on_progress, &progress}};
    watch_signals();
    int code = registry_add(models, &addition, digest, err);
    progress_end(&progress);
    if (code)
        return interrupted ? EXIT_INTERRUPTED : EXIT_FAILED;
    printf("%s %s, digest %s\n", s->link ? "linked" : "added", name, digest);
    return EXIT_OK;
}

static void on_mismatch(void *context, const char *message)
{
    progress_end(context);
    fprintf(stderr, "lepton models: %s\n", message);
}

static int check_all(const struct models_settings *s, const struct registry_model *m, struct gguf *g,
                     struct err *err)
{
    struct integrity *integrity = NULL;
    struct progress progress;
    uint64_t mismatches = 0;
    char digest[2 * MANIFEST_HASH + 1];
    progress_begin(&progress, parameter_bytes(m->manifest));
    struct integrity_watch watch = {on_progress, &progress};
    int code = integrity_open(&integrity, (int)s->threads, err);
    if (code == 0)
        code = integrity_check_all(integrity, m->manifest, g, &watch, on_mismatch, &mismatches, err);
    progress_end(&progress);
    integrity_close(&integrity);
    if (code)
        return interrupted ? EXIT_INTERRUPTED : EXIT_FAILED;
    if (mismatches) {
        err_set(err, "%s: %" PRIu64 " of its parts are damaged", m->name, mismatches);
        return EXIT_FAILED;
    }
    manifest_digest(m->manifest, digest);
    printf("%s is whole, digest %s\n", m->name, digest);
    return EXIT_OK;
}

static int verify(const struct models_settings *s, const char *models, const char *word, struct err *err)
{
    struct registry_model m;
    struct gguf *g = NULL;
    int code = EXIT_FAILED;
    watch_signals();
    if (registry_find(&m, models, word, VERIFY_ALWAYS, err) == 0 &&
        registry_open(&g, &m, (int)s->threads, err) == 0)
        code = check_all(s, &m, g, err);
    gguf_close(&g);
    registry_release(&m);
    return code;
}

/* ---- words -------------------------------------------------------------------------------------------- */

enum action { LIST, ADD, VERIFY, REMOVE, ACTIONS };

static const struct {
    const char *word;
    int least, most; /* words behind it */
} actions[ACTIONS] = {{"list", 0, 0}, {"add", 1, 2}, {"verify", 1, 1}, {"rm", 1, 1}};

/* Which action the words ask for, or -1 with *err. An option that would do nothing is refused. */
static int choose(const struct models_settings *s, const char *const *words, int count, struct err *err)
{
    int a = 0;
    while (a < ACTIONS && strcmp(words[0], actions[a].word) != 0)
        a++;
    if (a == ACTIONS)
        return err_set(err, "\"%s\": expected list, add, verify or rm", words[0]);
    if (count - 1 < actions[a].least || count - 1 > actions[a].most)
        return err_set(err, "%s: %d words behind it, expected %s", words[0], count - 1,
                       a == LIST  ? "none"
                       : a == ADD ? "PATH or PATH NAME"
                                  : "NAME");
    if (s->link && a != ADD)
        return err_set(err, "--link: is for add");
    if (s->json && a != LIST)
        return err_set(err, "--json: is for list");
    return a;
}

int command_models(int argc, char **argv)
{
    struct models_settings s;
    struct err err = {0};
    const char *words[3] = {NULL};
    int count = config_main(&table, &s, argc, argv, words, 3), code = EXIT_USAGE;
    int action = choose(&s, words, count, &err);
    char *models = action >= 0 ? registry_directory(s.models, &err) : NULL;
    if (models && action == LIST)
        code = list(&s, models, &err);
    else if (models && action == ADD)
        code = add(&s, models, words[1], words[2], &err);
    else if (models && action == VERIFY)
        code = verify(&s, models, words[1], &err);
    else if (models)
        code = registry_remove(models, words[1], &err) ? EXIT_FAILED : EXIT_OK;
    if (code != EXIT_OK)
        fprintf(stderr, "lepton models: %s\n",
                code == EXIT_INTERRUPTED ? "interrupted: nothing was changed" : err.message);
    free(models);
    config_release(&table, &s);
    return code;
}
