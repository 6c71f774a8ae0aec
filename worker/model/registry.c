/* registry: finding, opening and listing. registry_change.c adds and removes. */
#include "worker/model/registry.h"

#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/model/map_file.h"
#include "worker/model/model_file.h"
#include "worker/model/registry_impl.h"

enum registry_verify registry_verify_from_name(const char *name)
{
    return strcmp(name, "always") == 0  ? VERIFY_ALWAYS
           : strcmp(name, "never") == 0 ? VERIFY_NEVER
                                        : VERIFY_REGISTERED;
}

char *registry_directory(const char *given, struct err *err)
{
    const struct {
        const char *value, *below;
    } place[] = {{given, ""},
                 {getenv("LEPTON_HOME"), "/models"},
                 {getenv("XDG_DATA_HOME"), "/lepton/models"},
                 {getenv("HOME"), "/.local/share/lepton/models"}};
    for (size_t i = 0; i < ARRAY_LEN(place); i++)
        if (place[i].value && place[i].value[0])
            return xasprintf("%s%s", place[i].value, place[i].below);
    err_set(err, "no directory of models: expected --models DIR, or LEPTON_HOME, XDG_DATA_HOME or HOME to be "
                 "set");
    return NULL;
}

int registry_check_name(const char *name, struct err *err)
{
    if (manifest_name_valid(name))
        return 0;
    char shown[GGUF_SHOW_BYTES];
    return err_set(err, "\"%s\": expected a name of 1 to 128 of [A-Za-z0-9._-] without a leading dot",
                   gguf_show((struct gguf_string){name, strlen(name)}, shown));
}

/* ---- one model of the directory ----------------------------------------------------------------------- */

/* The file is where and what the manifest says, as far as can be told without reading it. */
static int check_file(const struct manifest *m, const char *path, struct err *err)
{
    struct stat st;
    char target[4097];
    if (lstat(path, &st) != 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    if (!m->linked && !S_ISREG(st.st_mode))
        return err_set(err, "%s: expected a regular file, as the manifest says", path);
    if (m->linked) {
        ssize_t n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
            return err_set(err, "%s: expected a symbolic link, as the manifest says", path);
        target[n] = '\0';
        if (strcmp(target, m->source) != 0)
            return err_set(err, "%s: links to %s, the manifest says %s", path, target, m->source);
        if (stat(path, &st) != 0)
            return err_set(err, "%s: links to %s: %s", path, m->source, strerror(errno));
    }
    if ((uint64_t)st.st_size != m->file_bytes)
        return err_set(err, "%s: %s: %lld bytes, it had %llu when it was added", m->name, path,
                       (long long)st.st_size, (unsigned long long)m->file_bytes);
    return 0;
}

/* Reads the manifest of DIRECTORY/NAME and checks it against what is there. */
static int read_entry(struct manifest **out, const char *directory, const char *name, struct err *err)
{
    char *path = xasprintf("%s/%s", directory, MANIFEST_FILE),
         *file = xasprintf("%s/%s", directory, MODEL_FILE);
    int code = manifest_read(out, path, err);
    if (code == 0 && strcmp((*out)->name, name) != 0)
        code = err_set(err, "%s: is of a model called %s, expected %s", path, (*out)->name, name);
    if (code == 0)
        code = check_file(*out, file, err);
    if (code)
        manifest_free(out);
    free(path);
    free(file);
    return code;
}

static int find_name(struct registry_model *out, const char *models, const char *name,
                     enum registry_verify how, struct err *err)
{
    struct stat st;
    char *directory = xasprintf("%s/%s", models, name);
    int code = -1;
    if (lstat(directory, &st) != 0)
        err_set_code(err, 404, "%s: no such file, and no model of this name in %s (see `lepton models list`)",
                     name, models);
    else if (!S_ISDIR(st.st_mode))
        err_set(err, "%s: expected a directory: models lie beneath %s", directory, models);
    else
        code = read_entry(&out->manifest, directory, name, err);
    if (code == 0) {
        out->name = xstrdup(name);
        out->path = xasprintf("%s/%s", directory, MODEL_FILE);
    }
    if (how == VERIFY_NEVER)
        manifest_free(&out->manifest);
    free(directory);
    return code;
}

/* A path to the model.gguf of a registry's directory, however it is written. */
static int find_beside(struct registry_model *out, const char *path, enum registry_verify how,
                       struct err *err)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    if (how == VERIFY_NEVER || strcmp(base, MODEL_FILE) != 0)
        return 0;
    char *directory = slash ? xasprintf("%.*s", (int)(slash - path + 1), path) : xstrdup("./");
    char *manifest = xasprintf("%s%s", directory, MANIFEST_FILE);
    int code = 0;
    if (access(manifest, F_OK) == 0 || errno != ENOENT) {
        char *whole = realpath(directory, NULL);
        const char *name = whole ? strrchr(whole, '/') + 1 : "";
        code = whole ? read_entry(&out->manifest, whole, name, err)
                     : err_set(err, "%s: %s", directory, strerror(errno));
        if (code == 0)
            out->name = xstrdup(name);
        free(whole);
    }
    free(manifest);
    free(directory);
    return code;
}

int registry_find(struct registry_model *out, const char *models, const char *word, enum registry_verify how,
                  struct err *err)
{
    *out = (struct registry_model){0};
    int code = 0;
    if (access(word, F_OK) == 0) {
        out->path = xstrdup(word);
        code = find_beside(out, word, how, err);
    } else if (!manifest_name_valid(word)) {
        return err_set_code(err, 404, "%s: %s", word, strerror(errno));
    } else {
        char *directory = registry_directory(models, err);
        code = directory ? find_name(out, directory, word, how, err) : -1;
        free(directory);
    }
    if (code == 0 && how == VERIFY_ALWAYS && !out->manifest)
        code = err_set(err, "%s: has no hashes to verify: expected a model added with `lepton models add`",
                       word);
    return code;
}

void registry_release(struct registry_model *m)
{
    free(m->path);
    free(m->name);
    manifest_free(&m->manifest);
    integrity_close(&m->integrity);
    *m = (struct registry_model){0};
}

/* ---- opening ------------------------------------------------------------------------------------------ */

/* The hash comes before the parser: damage is called damage, whatever the parser would make of it. */
static int check_header(const struct registry_model *m, struct err *err)
{
    const void *data;
    uint64_t bytes;
    if (map_file(m->path, "a GGUF file", &data, &bytes, err))
        return -1;
    int code = bytes == m->manifest->file_bytes
                   ? integrity_check_header(m->manifest, data, bytes, err)
                   : err_set(err, "%s: %s: %llu bytes, it had %llu when it was added", m->name, m->path,
                             (unsigned long long)bytes, (unsigned long long)m->manifest->file_bytes);
    map_file_release(data, bytes);
    return code;
}

int registry_open(struct gguf **out, struct registry_model *m, int threads, struct err *err)
{
    *out = NULL;
    if (m->manifest && (integrity_open(&m->integrity, threads, err) || check_header(m, err)))
        return -1;
    if (model_file_open(out, m->path, err))
        return -1;
    if (m->manifest && integrity_check_table(m->manifest, *out, err)) {
        gguf_close(out);
        return -1;
    }
    return 0;
}

int registry_open_vocabulary(struct gguf **out, struct registry_model *m, struct err *err)
{
    return m->manifest ? registry_open(out, m, 1, err) : model_file_open_vocabulary(out, m->path, err);
}

static int check_tensor(void *context, const struct gguf *g, const struct gguf_tensor *t, struct err *err)
{
    struct registry_model *m = context;
    atomic_fetch_add(&m->checked_bytes, t->bytes);
    return integrity_check_tensor(m->integrity, m->manifest, g, t, err);
}

static void begin_tensor(void *context, const struct gguf *g, const struct gguf_tensor *t, uint64_t begin,
                         int threads)
{
    struct registry_model *m = context;
    integrity_read_begin(m->integrity, m->manifest, g, t, begin, threads);
}

static void read_tensor(void *context, uint64_t begin, uint64_t end, int thread)
{
    struct registry_model *m = context;
    atomic_fetch_add(&m->checked_bytes, end - begin);
    integrity_read(m->integrity, begin, end, thread);
}

static int end_tensor(void *context, struct err *err)
{
    struct registry_model *m = context;
    return integrity_read_end(m->integrity, err);
}

struct model_check registry_check(struct registry_model *m)
{
    if (!m->integrity)
        return (struct model_check){.tensor = NULL};
    return (struct model_check){
        .tensor = check_tensor, .begin = begin_tensor, .read = read_tensor, .end = end_tensor, .context = m};
}

/* ---- the list ----------------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b)
{
    return strcmp(((const struct registry_entry *)a)->name, ((const struct registry_entry *)b)->name);
}

static struct registry_entry make_entry(const char *models, const char *name)
{
    struct registry_model found = {0};
    struct registry_entry e = {.name = xstrdup(name)};
    struct err err = {0};
    if (find_name(&found, models, name, VERIFY_REGISTERED, &err)) {
        e.problem = xstrdup(err.message);
    } else {
        e.manifest = found.manifest;
        found.manifest = NULL;
    }
    registry_release(&found);
    return e;
}

int registry_list(const char *models, struct registry_entry **out, size_t *count, struct err *err)
{
    struct dirent *entry;
    DIR *d = opendir(models);
    *out = NULL;
    *count = 0;
    if (!d)
        return errno == ENOENT ? 0 : err_set(err, "%s: %s", models, strerror(errno));
    while ((entry = readdir(d))) {
        if (!manifest_name_valid(entry->d_name))
            continue;
        *out = xrealloc(*out, (*count + 1) * sizeof(**out));
        (*out)[(*count)++] = make_entry(models, entry->d_name);
    }
    closedir(d);
    if (*count)
        qsort(*out, *count, sizeof(**out), compare_entries);
    return 0;
}

void registry_list_free(struct registry_entry **list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free((*list)[i].name);
        free((*list)[i].problem);
        manifest_free(&(*list)[i].manifest);
    }
    free(*list);
    *list = NULL;
}
