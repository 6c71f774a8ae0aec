/* registry_change: adding and removing models, so that a name stands for a whole model or for none.
 *
 *   add     MODELS/.add-HOST-PID/ {model.gguf, manifest.json}, each on disk -> fsync of the directory ->
 *           rename to MODELS/NAME, never over another -> fsync of MODELS
 *   remove  rename to MODELS/.rm-HOST-PID -> fsync of MODELS -> its files go
 *
 * Directories with a leading dot whose process has ended on this host are removed by the next change. */
#include "worker/model/registry_impl.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "worker/model/tokenizer.h"

#define COPY_BYTES (16u << 20) /* between two reports of progress */

static int sync_path(const char *path, int flags, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    int code =
        fd >= 0 && fsync(fd) == 0 ? 0 : err_set(err, "%s: cannot reach the disk: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return code;
}

/* ---- temporary directories ---------------------------------------------------------------------------- */

/* Several hosts may share the directory: a process's number means something on its own host alone. */
static void host_name(char out[40])
{
    char host[40] = "";
    if (gethostname(host, sizeof(host) - 1))
        strcpy(host, "host");
    size_t n = 0;
    for (; host[n]; n++)
        out[n] = isalnum((unsigned char)host[n]) ? host[n] : '_';
    out[n] = '\0';
}

/* A directory of ours holds two files; anything else in it is not ours to remove, and rmdir then refuses. */
static int remove_directory(const char *path)
{
    static const char *const files[] = {MODEL_FILE, MANIFEST_FILE};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        char *file = xasprintf("%s/%s", path, files[i]);
        unlink(file);
        free(file);
    }
    return rmdir(path);
}

static void sweep(const char *models)
{
    char host[40], add[64], rm[64];
    struct dirent *entry;
    DIR *d = opendir(models);
    host_name(host);
    snprintf(add, sizeof(add), ".add-%s-", host);
    snprintf(rm, sizeof(rm), ".rm-%s-", host);
    while (d && (entry = readdir(d))) {
        const char *name = entry->d_name;
        size_t n = strncmp(name, add, strlen(add)) == 0 ? strlen(add)
                   : strncmp(name, rm, strlen(rm)) == 0 ? strlen(rm)
                                                        : 0;
        char *end;
        long pid = n ? strtol(name + n, &end, 10) : 0;
        if (pid <= 0 || *end || pid > INT32_MAX || kill((pid_t)pid, 0) == 0 || errno != ESRCH)
            continue;
        char *path = xasprintf("%s/%s", models, name);
        remove_directory(path);
        free(path);
    }
    if (d)
        closedir(d);
}

static char *temporary(const char *models, const char *kind)
{
    char host[40];
    host_name(host);
    return xasprintf("%s/.%s-%s-%ld", models, kind, host, (long)getpid());
}

/* mkdir -p */
static int make_directories(const char *path, struct err *err)
{
    char *part = xstrdup(path);
    int code = 0;
    for (char *at = part + 1; code == 0; at++) {
        if (*at != '/' && *at)
            continue;
        char kept = *at;
        *at = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            code = err_set(err, "%s: %s", part, strerror(errno));
        *at = kept;
        if (!kept)
            break;
    }
    free(part);
    return code;
}

/* ---- copying ------------------------------------------------------------------------------------------ */

/* By the kernel where it can, which may share the blocks; *by_hand says that it cannot. */
static ssize_t copy_some(int from, int to, void *scratch, bool *by_hand)
{
    if (!*by_hand) {
        ssize_t n = copy_file_range(from, NULL, to, NULL, COPY_BYTES, 0);
        if (n >= 0 || (errno != EXDEV && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP))
            return n;
        *by_hand = true;
    }
    ssize_t n = read(from, scratch, COPY_BYTES);
    for (ssize_t done = 0; n > 0 && done < n;) {
        ssize_t written = write(to, (const char *)scratch + done, (size_t)(n - done));
        if (written < 0)
            return -1;
        done += written;
    }
    return n;
}

static int copy_bytes(int from, int to, const struct registry_addition *a, const char *path, struct err *err)
{
    bool by_hand = false;
    void *scratch = xmalloc(COPY_BYTES);
    ssize_t n;
    int code = 0;
    while (code == 0 && (n = copy_some(from, to, scratch, &by_hand)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            code = err_set(err, "%s: cannot copy %s: %s", path, a->path, strerror(errno));
        else if (a->watch.progress && !a->watch.progress(a->watch.context, (uint64_t)n, "copying"))
            code = err_set(err, "%s: stopped", a->path);
    }
    free(scratch);
    return code;
}

/* A copy shares the blocks of the source where the file system can (FICLONE); nobody may write to it. */
static int copy_file(const struct registry_addition *a, const char *path, uint64_t bytes, struct err *err)
{
    int from = open(a->path, O_RDONLY | O_CLOEXEC);
    int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    int code = -1;
    if (from < 0 || to < 0) {
        err_set(err, "%s: %s", from < 0 ? a->path : path, strerror(errno));
        goto out;
    }
    if (ioctl(to, FICLONE, from) == 0) {
        code = 0;
        if (a->watch.progress && !a->watch.progress(a->watch.context, bytes, "copying"))
            code = err_set(err, "%s: stopped", a->path);
    } else {
        code = copy_bytes(from, to, a, path, err);
    }
    struct stat st;
    if (code == 0 && (fstat(to, &st) != 0 || fchmod(to, st.st_mode & 0444) != 0 || fsync(to) != 0))
        code = err_set(err, "%s: cannot reach the disk: %s", path, strerror(errno));
out:
    if (from >= 0)
        close(from);
    if (to >= 0)
        close(to);
    return code;
}

/* ---- adding ------------------------------------------------------------------------------------------- */

/* What a worker would find out when it loads it, without reading a weight. */
static int check_servable(const struct gguf *g, struct err *err)
{
    struct model_params params = {0};
    struct tokenizer *tokenizer = NULL;
    uint64_t bytes;
    int code = model_params_read(&params, g, err);
    for (int64_t l = 0; code == 0 && l < params.layers; l++)
        code = model_layer_bytes(g, &params, l, &bytes, err);
    if (code == 0)
        code = model_head_bytes(g, &params, &bytes, err);
    if (code == 0)
        code = tokenizer_open(&tokenizer, g, err);
    tokenizer_close(&tokenizer);
    model_params_release(&params);
    return code;
}

static int write_manifest(const struct manifest *m, const char *path, struct err *err)
{
    struct buffer text = {0};
    struct manifest *again = NULL;
    int code = manifest_write(m, &text, err);
    /* Read back as it will be: what cannot be read must not be written. */
    if (code == 0)
        code = manifest_parse(&again, text.data, text.size, path, err);
    FILE *f = code == 0 ? fopen(path, "wxe") : NULL;
    if (code == 0 &&
        (!f || fwrite(text.data, 1, text.size, f) != text.size || fflush(f) != 0 || fsync(fileno(f)) != 0))
        code = err_set(err, "%s: cannot write: %s", path, strerror(errno));
    if (f && fclose(f) != 0 && code == 0)
        code = err_set(err, "%s: cannot close: %s", path, strerror(errno));
    manifest_free(&again);
    buffer_release(&text);
    return code;
}

/* Times of files as the manifest has them. */
static int64_t time_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

/* Hashes what lies at `file` and fills the manifest. What was copied is hashed, not what was to be copied. */
static int describe(struct manifest *m, const struct registry_addition *a, const char *file, struct err *err)
{
    struct gguf *g = NULL;
    struct integrity *integrity = NULL;
    struct stat before, after;
    int code = -1;
    if (stat(file, &before) != 0) {
        err_set(err, "%s: %s", file, strerror(errno));
        goto out;
    }
    if (gguf_open(&g, file, err) || check_servable(g, err) || integrity_open(&integrity, a->threads, err) ||
        integrity_make(integrity, m, g, &a->watch, err))
        goto out;
    if (stat(file, &after) != 0 || after.st_size != before.st_size || time_ns(&after) != time_ns(&before)) {
        err_set(err, "%s: changed while it was read", a->path);
        goto out;
    }
    m->file_bytes = (uint64_t)after.st_size;
    m->file_time_ns = time_ns(&after);
    m->created_s = (int64_t)time(NULL);
    code = 0;
out:
    integrity_close(&integrity);
    gguf_close(&g);
    return code;
}

/* Everything below the temporary directory. */
static int fill(struct manifest *m, const struct registry_addition *a, const char *directory, uint64_t bytes,
                struct err *err)
{
    char *file = xasprintf("%s/%s", directory, MODEL_FILE);
    char *manifest = xasprintf("%s/%s", directory, MANIFEST_FILE);
    int code;
    if (a->link)
        code = symlink(m->source, file) ? err_set(err, "%s: %s", file, strerror(errno)) : 0;
    else
        code = copy_file(a, file, bytes, err);
    if (code == 0 && (describe(m, a, file, err) || write_manifest(m, manifest, err)))
        code = -1;
    if (code == 0)
        code = sync_path(directory, O_DIRECTORY, err);
    free(file);
    free(manifest);
    return code;
}

/* Gives the finished directory its name; never over another, not even an empty one. */
static int publish(const char *models, const char *directory, const char *name, struct err *err)
{
    char *final = xasprintf("%s/%s", models, name);
    int code = renameat2(AT_FDCWD, directory, AT_FDCWD, final, RENAME_NOREPLACE);
    /* File systems that do not know the flag: rename takes the place of an empty directory alone. */
    if (code && errno == EINVAL)
        code = rename(directory, final);
    if (code)
        err_set(err, "%s: %s", final,
                errno == EEXIST || errno == ENOTEMPTY ? "a model of this name is there already"
                                                      : strerror(errno));
    else
        code = sync_path(models, O_DIRECTORY, err);
    free(final);
    return code;
}

/* Refusals that need not wait for a copy of many gigabytes. */
static int check_source(const char *models, const struct registry_addition *a, struct stat *st,
                        struct err *err)
{
    struct gguf *g = NULL;
    struct stat other;
    if (registry_check_name(a->name, err))
        return -1;
    if (stat(a->path, st) != 0)
        return err_set(err, "%s: %s", a->path, strerror(errno));
    if (S_ISDIR(st->st_mode))
        return err_set(err, "%s: is a directory: the registry takes GGUF files", a->path);
    char *final = xasprintf("%s/%s", models, a->name);
    int code =
        lstat(final, &other) == 0 ? err_set(err, "%s: a model of this name is there already", final) : 0;
    free(final);
    if (code == 0 && (gguf_open(&g, a->path, err) || check_servable(g, err)))
        code = -1;
    gguf_close(&g);
    return code;
}

int registry_add(const char *models, const struct registry_addition *a, char digest[2 * MANIFEST_HASH + 1],
                 struct err *err)
{
    struct stat st;
    if (check_source(models, a, &st, err) || make_directories(models, err))
        return -1;
    sweep(models);
    struct manifest *m = xcalloc(1, sizeof(*m));
    m->name = xstrdup(a->name);
    m->source = realpath(a->path, NULL);
    m->linked = a->link;
    char *directory = temporary(models, "add");
    int code = -1;
    if (!m->source)
        err_set(err, "%s: %s", a->path, strerror(errno));
    else if (mkdir(directory, 0777) != 0)
        err_set(err, "%s: %s", directory, strerror(errno));
    else if (fill(m, a, directory, (uint64_t)st.st_size, err) || publish(models, directory, a->name, err))
        remove_directory(directory); /* already gone when only the last fsync failed */
    else
        code = 0;
    if (code == 0)
        manifest_digest(m, digest);
    manifest_free(&m);
    free(directory);
    return code;
}

/* ---- removing ----------------------------------------------------------------------------------------- */

int registry_remove(const char *models, const char *name, struct err *err)
{
    struct stat st;
    if (registry_check_name(name, err))
        return -1;
    char *directory = xasprintf("%s/%s", models, name), *gone = temporary(models, "rm");
    int code = -1;
    sweep(models);
    if (lstat(directory, &st) != 0)
        err_set_code(err, 404, "%s: no model of this name in %s", name, models);
    else if (!S_ISDIR(st.st_mode))
        err_set(err, "%s: expected a directory, as `lepton models add` makes it", directory);
    else if (rename(directory, gone) != 0)
        err_set(err, "%s: %s", directory, strerror(errno));
    else if (sync_path(models, O_DIRECTORY, err) == 0)
        code = remove_directory(gone) ? err_set(err, "%s: left behind: %s", gone, strerror(errno)) : 0;
    free(directory);
    free(gone);
    return code;
}
